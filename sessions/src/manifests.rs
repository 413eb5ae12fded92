//! The division of chunk references into manifests.
//!
//! By default, Icechunk stores all references of an array in one manifest, which is read as a whole
//! and rewritten with each changed chunk. This crate divides the grid of a large array among
//! manifests. A commit then holds one manifest in memory, and writes only the manifests of changed
//! chunks. The division depends only on the number of chunks along each axis, so that all commits
//! agree.

use icechunk::config::{
    ManifestSplitCondition, ManifestSplitDim, ManifestSplitDimCondition, ManifestSplittingConfig,
};

/// The maximum number of references in a manifest, unless the array has more than [`MANIFESTS`]
/// times as many.
const REFERENCES: u64 = 1 << 16;
/// The approximate maximum number of manifests of an array. Icechunk scans all changes for each.
const MANIFESTS: u64 = 64;

/// Returns the division of arrays, given their paths and numbers of chunks along each axis. Returns
/// `None` if no array is divided.
pub(crate) fn splitting<'a>(
    arrays: impl Iterator<Item = (&'a str, Vec<u64>)>,
) -> Option<ManifestSplittingConfig> {
    let of = |(path, counts): (&str, Vec<u64>)| {
        let dims =
            counts_in_one(&counts)?.into_iter().enumerate().map(|(axis, n)| ManifestSplitDim {
                condition: ManifestSplitDimCondition::Axis(axis),
                num_chunks: u32::try_from(n).unwrap_or(u32::MAX),
            });
        Some((
            ManifestSplitCondition::PathMatches {
                regex: format!("^/{}$", regex_syntax::escape(path)),
            },
            dims.collect(),
        ))
    };
    let sizes: Vec<_> = arrays.filter_map(of).collect();
    (!sizes.is_empty()).then_some(ManifestSplittingConfig { split_sizes: Some(sizes) })
}

/// Returns the number of chunks of one manifest along each axis: whole rows, as far as they fit.
/// Returns `None` if all chunks fit.
fn counts_in_one(counts: &[u64]) -> Option<Vec<u64>> {
    let all = counts.iter().fold(1u64, |all, n| all.saturating_mul(*n));
    let most = REFERENCES.max((all / MANIFESTS).next_power_of_two());
    if all <= most {
        return None;
    }
    let mut room = most;
    let mut inside: Vec<u64> = counts
        .iter()
        .rev()
        .map(|n| {
            let fit = (*n).min(room).max(1);
            room /= fit;
            if fit < *n {
                room = 1;
            }
            fit
        })
        .collect();
    inside.reverse();
    Some(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(counts: &[u64], expect: Option<&[u64]>) {
        let found = counts_in_one(counts);
        assert_eq!(found.as_deref(), expect);
        let all: u64 = counts.iter().product();
        if let Some(inside) = found {
            let in_one: u64 = inside.iter().product();
            let manifests: u64 =
                counts.iter().zip(&inside).map(|(n, fit)| n.div_ceil(*fit)).product();
            assert!(in_one <= REFERENCES.max((all / MANIFESTS).next_power_of_two()));
            // A row that almost fits twice is alone.
            assert!(manifests <= 2 * MANIFESTS && in_one * manifests < 3 * all, "{manifests}");
        }
    }

    #[test]
    fn large_grids_are_cut_into_whole_rows() {
        check(&[], None);
        check(&[0, 5], None);
        check(&[65_536], None);
        check(&[65_537], Some(&[65_536]));
        check(&[1_000_000], Some(&[65_536]));
        check(&[1000, 1000], Some(&[65, 1000]));
        check(&[3, 60_000], Some(&[1, 60_000]));
        check(&[3, 200_000], Some(&[1, 65_536]));
        check(&[10, 10, 10_000], Some(&[1, 6, 10_000]));
        check(&[50_000_000], Some(&[1_048_576]));
    }

    #[test]
    fn paths_are_taken_literally() {
        let config =
            splitting([("g.h/a+b", vec![1_000_000]), ("small", vec![7])].into_iter()).unwrap();
        let sizes = config.split_sizes.unwrap();
        assert_eq!(sizes.len(), 1);
        let matches = |path: &str| sizes[0].0.matches(&path.try_into().unwrap());
        assert!(
            matches("/g.h/a+b")
                && !matches("/gxh/aab")
                && !matches("/g.h/a+b/c")
                && !matches("/x/g.h/a+b")
        );
    }
}
