use proptest::prelude::*;

use super::*;
use crate::buffer::{Buffer, View};
use crate::eval::Evaluator;
use crate::expr::Expr;

/// Folds blocks of `float32` values, each with the index of its first element along `axis` and of
/// `shape`, in the given order. Returns the accumulators.
fn folded(
    op: ReduceOp,
    shape: [usize; 2],
    axis: usize,
    blocks: &[(u64, Vec<f32>)],
) -> Vec<[u64; 2]> {
    let along = |d: usize| [isize::from(d == 0), isize::from(d == 1)];
    let mut acc = Buffer::zeroed(shape[1 - axis] * 16);
    op.start(DType::Float32, acc.bytes_mut());
    let mut evaluator = Evaluator::new(&Expr::identity(DType::Float32));
    for (first, values) in blocks {
        let view = View::contiguous(DType::Float32, bytemuck::cast_slice(values), &shape);
        let folds = [FoldSpec { op, values: DType::Float32 }];
        let block = FoldBlock {
            folds: &folds,
            offset: 0,
            strides: &along(1 - axis),
            seen: 0,
            merge: None,
            index: (*first, &along(axis)),
        };
        fold(&mut evaluator, &shape, &[view], &block, &mut [acc.bytes_mut()]);
    }
    bytemuck::cast_slice(acc.bytes()).to_vec()
}

proptest! {
    /// The order of folds does not matter: a NaN wins over the extreme, the lowest index over
    /// equal values.
    #[test]
    fn positions_match_a_plain_loop(
        rows in 1usize..12,
        columns in prop::sample::select(vec![1, 31, 127, 128, 1025, 4100]),
        axis in 0usize..2,
        seed in 0usize..1000,
        nans in any::<bool>(),
    ) {
        let shape = [rows, columns];
        let value = |block: usize, i: usize| match (i * 7919 + block * 104_729 + seed) % 37 {
            0 if nans => f32::NAN,
            x => (x % 11) as f32 - 5.0,
        };
        let block = |b: usize| (0..rows * columns).map(|i| value(b, i)).collect::<Vec<f32>>();
        // The block with the lower indices is folded second.
        let blocks = [(shape[axis] as u64, block(1)), (0, block(0))];
        let all = |cell: usize| (0..2 * shape[axis]).map(move |i| {
            let (b, i) = (i / shape[axis], i % shape[axis]);
            value(b, if axis == 0 { i * columns + cell } else { cell * columns + i })
        });
        for (op, sign) in [(ReduceOp::Argmax, 1.0), (ReduceOp::Argmin, -1.0)] {
            for (cell, [_, index]) in folded(op, shape, axis, &blocks).into_iter().enumerate() {
                let nan = all(cell).position(f32::is_nan);
                let greatest = all(cell).map(|x| x * sign).fold(f32::NEG_INFINITY, f32::max);
                let extreme = || all(cell).position(|x| x * sign == greatest);
                prop_assert_eq!(Some(index as usize), nan.or_else(extreme));
            }
        }
    }
}
