//! Laws of read maps: composition and restriction agree with tracing elements.

use proptest::prelude::*;

use super::*;

/// Returns the source of one element by a search of the pieces.
fn trace(map: &ReadMap, index: &[u64]) -> Result<(usize, Vec<u64>), Scalar> {
    let piece = map
        .pieces
        .iter()
        .find(|p| {
            (0..index.len())
                .all(|d| p.to.start[d] <= index[d] && index[d] < p.to.start[d] + p.to.shape[d])
        })
        .expect("pieces cover the array");
    match &piece.from {
        Origin::Fill(v) => Err(*v),
        Origin::Source { source, axes } => Ok((
            *source,
            axes.iter()
                .map(|a| a.at(a.axis().map_or(0, |axis| index[axis] - piece.to.start[axis])))
                .collect(),
        )),
        Origin::Flat => unreachable!(),
    }
}

fn indices(shape: &[u64]) -> Vec<Vec<u64>> {
    let mut all = Vec::new();
    let _: Result<(), ()> = crate::grid::try_for_each_coord(&Region::whole(shape), |i| {
        all.push(i.to_vec());
        Ok(())
    });
    all
}

/// A source of small pseudo-random numbers, by index.
#[derive(Clone, Copy)]
struct Picks(u64);

impl Picks {
    /// Returns number `k`, below `n`.
    fn pick(self, k: u64, n: u64) -> u64 {
        let mixed = self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15 + k);
        (self.0.rotate_left(k as u32 * 7 + 3) ^ mixed) % n.max(1)
    }
}

fn along(axis: usize) -> AxisMap {
    AxisMap::Along { axis, start: 0, step: 1 }
}

/// Returns a random view of an array of `shape`: a slice with steps, a permutation, a broadcast, a
/// pad, a list of indices, one index, or two halves swapped.
fn view(shape: Vec<u64>, seed: u64) -> ReadMap {
    let picks = Picks(seed);
    let rank = shape.len();
    match picks.pick(0, 6) {
        0 => sliced(&shape, picks),
        1 => {
            let reversed = shape.iter().rev().copied().collect();
            ReadMap::image(reversed, (0..rank).rev().map(along).collect())
        }
        2 => ReadMap::image([vec![3], shape].concat(), (1..=rank).map(along).collect()),
        3 => padded(shape),
        5 => taken(shape, picks),
        _ if rank > 1 => {
            let fixed = AxisMap::Fixed(picks.pick(3, shape[0]));
            let axes = std::iter::once(fixed).chain((0..rank - 1).map(along)).collect();
            ReadMap::image(shape[1..].to_vec(), axes)
        }
        _ => swapped(shape, picks),
    }
}

/// Returns a slice along each axis, ascending or descending.
fn sliced(shape: &[u64], picks: Picks) -> ReadMap {
    let mut out = Vec::new();
    let mut axes = Vec::new();
    for (axis, n) in shape.iter().enumerate() {
        let d = axis as u64;
        let stride = 1 + picks.pick(d + 1, 3);
        let len = picks.pick(d + 5, n.div_ceil(stride)) + 1;
        let span = (len - 1) * stride;
        let first = picks.pick(d + 9, n - span);
        out.push(len);
        axes.push(if picks.pick(d + 13, 2) == 0 {
            AxisMap::Along { axis, start: first, step: stride as i64 }
        } else {
            AxisMap::Along { axis, start: first + span, step: -(stride as i64) }
        });
    }
    ReadMap::image(out, axes)
}

/// Returns some elements along one axis, in any order and repeated.
fn taken(shape: Vec<u64>, picks: Picks) -> ReadMap {
    let rank = shape.len();
    let axis = picks.pick(1, rank as u64) as usize;
    let indices: Arc<[u64]> =
        (0..1 + picks.pick(2, 7)).map(|i| picks.pick(i + 3, shape[axis])).collect();
    let mut out = shape;
    out[axis] = indices.len() as u64;
    let mut axes: Vec<AxisMap> = (0..rank).map(along).collect();
    axes[axis] = AxisMap::Gather { axis, start: 0, step: 1, indices };
    ReadMap::image(out, axes)
}

/// Returns the array with one row of fill values before it and two after it.
fn padded(shape: Vec<u64>) -> ReadMap {
    let rank = shape.len();
    let rows = |start: u64, n: u64| Region {
        start: [vec![start], vec![0; rank - 1]].concat(),
        shape: [vec![n], shape[1..].to_vec()].concat(),
    };
    let fill = Origin::Fill(Scalar::new(7i32));
    let body = Origin::Source { source: 0, axes: (0..rank).map(along).collect() };
    let pieces = vec![
        Piece { to: rows(0, 1), from: fill.clone() },
        Piece { to: rows(1, shape[0]), from: body },
        Piece { to: rows(shape[0] + 1, 2), from: fill },
    ];
    ReadMap::new([vec![shape[0] + 3], shape[1..].to_vec()].concat(), pieces)
}

/// Returns an array of one axis with two halves swapped.
fn swapped(shape: Vec<u64>, picks: Picks) -> ReadMap {
    let by = picks.pick(4, shape[0]);
    let part = |to: u64, n: u64, from: u64| Piece {
        to: Region { start: vec![to], shape: vec![n] },
        from: Origin::Source {
            source: 0,
            axes: vec![AxisMap::Along { axis: 0, start: from, step: 1 }],
        },
    };
    let parts = [part(0, by, shape[0] - by), part(by, shape[0] - by, 0)];
    let pieces = parts.into_iter().filter(|p| p.to.shape[0] > 0).collect();
    ReadMap::new(shape, pieces)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn composition_is_composition(
        shape in prop::collection::vec(1u64..6, 1..4),
        seeds in prop::collection::vec(any::<u64>(), 1..5),
    ) {
        let mut whole = ReadMap::identity(&shape);
        let mut chain: Vec<ReadMap> = Vec::new();
        for seed in seeds {
            let next = view(whole.shape().to_vec(), seed);
            next.check(&[whole.shape().to_vec()]).unwrap();
            whole = next.compose(std::slice::from_ref(&whole)).unwrap();
            chain.push(next);
        }
        whole.check(&[shape]).unwrap();
        for index in indices(whole.shape()) {
            let mut at = Ok((0, index.clone()));
            for map in chain.iter().rev() {
                at = at.and_then(|(_, i)| trace(map, &i));
            }
            prop_assert_eq!(trace(&whole, &index), at);
        }
    }

    #[test]
    fn a_restriction_agrees_with_the_whole(
        shape in prop::collection::vec(1u64..6, 1..4), seed: u64, cut: u64,
    ) {
        let map = view(shape, seed);
        let shape = map.shape().iter().enumerate();
        let start = shape.map(|(d, n)| cut.rotate_left(d as u32 * 9) % n);
        let start: Vec<u64> = start.collect();
        let rest = map.shape().iter().zip(&start).map(|(n, s)| n - s).enumerate();
        let size = rest.map(|(d, n)| 1 + cut.rotate_right(d as u32 * 5) % n);
        let size: Vec<u64> = size.collect();
        let region = Region { start: start.clone(), shape: size.clone() };
        let part = ReadMap::new(size.clone(), map.restrict(&region));
        for index in indices(&size) {
            let global: Vec<u64> = index.iter().zip(&start).map(|(a, b)| a + b).collect();
            prop_assert_eq!(trace(&part, &index), trace(&map, &global));
        }
    }
}

#[test]
fn concatenation_numbers_its_sources() {
    let along = AxisMap::Along { axis: 0, start: 0, step: 1 };
    let half = |at: u64, source: usize| Piece {
        to: Region { start: vec![at], shape: vec![2] },
        from: Origin::Source { source, axes: vec![along.clone()] },
    };
    let concat = ReadMap::new(vec![4], vec![half(0, 0), half(2, 1)]);
    let flip = ReadMap::image(vec![2], vec![AxisMap::Along { axis: 0, start: 1, step: -1 }]);
    let both = concat.compose(&[concat_of_one(), flip]).unwrap();
    assert_eq!(trace(&both, &[1]), Ok((0, vec![1])));
    assert_eq!(trace(&both, &[3]), Ok((1, vec![0])));
}

fn concat_of_one() -> ReadMap {
    ReadMap::identity(&[2])
}
