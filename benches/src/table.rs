//! The workloads that are compared with the floor: computation, inputs, and bar.

use freestone_expr::vocabulary;

use crate::{Codec, winds};

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// The codec of inputs and outputs.
    pub(crate) codec: Codec,
    /// The maximum ratio of CPU time to the floor.
    pub(crate) bar: f64,
}

/// The computation of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    QuadMeans,
    Sum,
    Mean,
    Var,
    Argmax,
    Chain,
    Rechunk,
    TransposeAdd,
    Matmul,
    CumulativeSum,
    Vorticity,
    Anomalies,
    ManySmall,
}

/// The input group of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// `u` and `v`, `float32` (time, y, x) in chunks of 20 MB.
    Winds,
    /// `a` and `b`, `float32` squares in chunks of 17 MB.
    Tiles,
    /// `A` and `B`, `float64` squares in chunks of 19 MB.
    Matrices,
    /// `tiny`, `float32` in chunks of 16 KB.
    Tiny,
}

const fn case(name: &'static str, kind: Kind, codec: Codec, bar: f64) -> Case {
    Case { name, kind, codec, bar }
}

/// All rows.
pub(crate) const CASES: [Case; 16] = [
    case("quad_means_zstd", Kind::QuadMeans, Codec::Zstd, 1.2),
    case("quad_means_lz4", Kind::QuadMeans, Codec::Blosc, 1.3),
    case("quad_means_none", Kind::QuadMeans, Codec::None, 1.8),
    case("sum", Kind::Sum, Codec::Zstd, 1.2),
    case("mean", Kind::Mean, Codec::Zstd, 1.2),
    case("var", Kind::Var, Codec::Zstd, 1.2),
    case("argmax", Kind::Argmax, Codec::Zstd, 1.2),
    case("elementwise_chain", Kind::Chain, Codec::Zstd, 1.25),
    case("rechunk_zstd", Kind::Rechunk, Codec::Zstd, 1.25),
    case("rechunk_none", Kind::Rechunk, Codec::None, 1.5),
    case("transpose_add", Kind::TransposeAdd, Codec::Zstd, 1.35),
    case("matmul", Kind::Matmul, Codec::Zstd, 1.2),
    case("cumulative_sum", Kind::CumulativeSum, Codec::Zstd, 1.15),
    case("vorticity", Kind::Vorticity, Codec::Zstd, 1.4),
    case("anomalies", Kind::Anomalies, Codec::Zstd, 1.3),
    case("many_small", Kind::ManySmall, Codec::Zstd, 1.2),
];

/// Elements along an axis of a chunk: of tiles, and of matrices.
pub(crate) const TILE: u64 = 2048;
pub(crate) const BLOCK: u64 = 1536;
/// Cells of the chunks of a rechunk's result.
pub(crate) const COLUMN: [u64; 2] = [36, 72];
/// Days of each month of a year without 29 February.
const DAYS: [u64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

impl Case {
    /// Returns the row of a name.
    pub(crate) fn named(name: &str) -> Result<Case, String> {
        let known = || CASES.map(|c| c.name).join(", ");
        CASES
            .into_iter()
            .find(|c| c.name == name)
            .ok_or_else(|| format!("unknown workload: expected one of {}", known()))
    }

    /// Returns the missing function, if there is one.
    pub(crate) fn lacks(&self) -> Option<&'static str> {
        let needed = match self.kind {
            Kind::Matmul => "matmul",
            Kind::CumulativeSum => "cumulative_sum",
            _ => return None,
        };
        vocabulary::function(needed).is_none().then_some(needed)
    }
}

impl Kind {
    /// Returns the name in `peer.py`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::QuadMeans => "quad_means",
            Kind::Sum => "sum",
            Kind::Mean => "mean",
            Kind::Var => "var",
            Kind::Argmax => "argmax",
            Kind::Chain => "elementwise_chain",
            Kind::Rechunk => "rechunk",
            Kind::TransposeAdd => "transpose_add",
            Kind::Matmul => "matmul",
            Kind::CumulativeSum => "cumulative_sum",
            Kind::Vorticity => "vorticity",
            Kind::Anomalies => "anomalies",
            Kind::ManySmall => "many_small",
        }
    }

    pub(crate) fn group(self) -> Group {
        match self {
            Kind::Chain | Kind::TransposeAdd | Kind::Vorticity => Group::Tiles,
            Kind::Matmul => Group::Matrices,
            Kind::ManySmall => Group::Tiny,
            _ => Group::Winds,
        }
    }

    /// Returns the arrays that the row reads.
    pub(crate) fn inputs(self) -> &'static [&'static str] {
        match self {
            Kind::QuadMeans => &["u", "v"],
            Kind::Chain | Kind::Vorticity => &["a", "b"],
            Kind::TransposeAdd => &["a"],
            Kind::Matmul => &["A", "B"],
            Kind::ManySmall => &["tiny"],
            _ => &["u"],
        }
    }

    /// Returns true if the result is one number in memory.
    pub(crate) fn is_number(self) -> bool {
        matches!(self, Kind::Sum | Kind::ManySmall)
    }

    /// Returns the names and expressions of the outputs, for a number of times if the row reads
    /// winds.
    pub(crate) fn outputs(self, times: u64) -> Vec<(&'static str, String)> {
        let one = |text: &str| vec![("out", text.to_owned())];
        match self {
            Kind::QuadMeans => [
                ("uu", "mean(u*u, axis=0)"),
                ("uv", "mean(u*v, axis=0)"),
                ("vv", "mean(v*v, axis=0)"),
            ]
            .map(|(n, e)| (n, e.into()))
            .to_vec(),
            Kind::Sum => one("sum(u, dtype=float64)"),
            Kind::Mean => one("mean(u, axis=0)"),
            Kind::Var => one("var(u, axis=0)"),
            Kind::Argmax => one("argmax(u, axis=0)"),
            Kind::Chain => one("sqrt(a*a + b*b) * exp(-abs(a - b)) + 1"),
            Kind::Rechunk => one("u"),
            Kind::TransposeAdd => one("a + matrix_transpose(a)"),
            Kind::Matmul => one("matmul(A, B)"),
            Kind::CumulativeSum => one("cumulative_sum(u, axis=0)"),
            Kind::Vorticity => {
                one("(b[1:-1, 2:] - b[1:-1, :-2]) * 0.5 - (a[2:, 1:-1] - a[:-2, 1:-1]) * 0.5")
            }
            Kind::Anomalies => one(&anomalies(times)),
            Kind::ManySmall => one("sum(square(tiny * 2 + 1), dtype=float64)"),
        }
    }

    /// Returns the chunks of an output, for a number of times if it is of winds.
    pub(crate) fn chunks(self, times: u64) -> Option<Vec<u64>> {
        match self {
            Kind::Chain | Kind::TransposeAdd | Kind::Vorticity => Some(vec![TILE; 2]),
            Kind::Matmul => Some(vec![BLOCK; 2]),
            Kind::Rechunk => Some([&[times], &COLUMN[..]].concat()),
            Kind::CumulativeSum | Kind::Anomalies => Some(winds::CHUNK.to_vec()),
            _ => None,
        }
    }
}

/// Returns the month, from 0, of each of a number of days.
pub(crate) fn months(times: u64) -> Vec<usize> {
    let year = DAYS.iter().enumerate().flat_map(|(month, days)| vec![month; *days as usize]);
    year.cycle().take(times as usize).collect()
}

/// Returns `u` less the mean of its month over all years.
fn anomalies(times: u64) -> String {
    let months = months(times);
    let days = |month: usize| {
        months.iter().enumerate().filter(|(_, m)| **m == month).map(|(t, _)| t).collect::<Vec<_>>()
    };
    let mean = |month: usize| {
        let days = days(month);
        let (first, last) = (*days.first()?, *days.last()?);
        let of = if last - first + 1 == days.len() {
            format!("u[{first}:{}]", last + 1)
        } else {
            format!("take(u, {days:?}, axis=0)")
        };
        Some(format!("mean({of}, axis=0)"))
    };
    let means: Vec<String> = (0..12).filter_map(mean).collect();
    format!("u - take(stack([{}]), {months:?}, axis=0)", means.join(", "))
}

/// Returns the number of times of winds, and of chunks along an axis of tiles and of matrices, for
/// a size of the largest inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) times: u64,
    pub(crate) tiles: u64,
    pub(crate) blocks: u64,
}

impl Geometry {
    pub(crate) fn of(bytes: u64) -> Geometry {
        let [slab, ny, nx] = winds::CHUNK;
        Geometry {
            times: slab * (bytes / (2 * 4 * slab * ny * nx)).max(1),
            tiles: (bytes / (2 * 4 * TILE * TILE)).isqrt().max(1),
            blocks: (bytes / (2 * 8 * BLOCK * BLOCK)).isqrt().max(1),
        }
    }

    /// Returns the bytes of both winds.
    pub(crate) fn winds_bytes(&self) -> u64 {
        let [_, ny, nx] = winds::CHUNK;
        2 * 4 * self.times * ny * nx
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ() {
        let mut names = CASES.map(|c| c.name).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CASES.len());
    }

    #[test]
    fn months_begin_again_after_a_year() {
        let months = months(400);
        assert_eq!(
            (months[0], months[30], months[31], months[364], months[365], months[399]),
            (0, 0, 1, 11, 0, 1)
        );
    }

    #[test]
    fn sizes_give_whole_chunks() {
        assert_eq!(Geometry::of(600_000_000), Geometry { times: 280, tiles: 4, blocks: 3 });
        assert_eq!(Geometry::of(1), Geometry { times: 20, tiles: 1, blocks: 1 });
    }
}
