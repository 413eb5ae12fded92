//! Matrix products, added to an accumulator.
//!
//! Floats and complex numbers use faer's matrix product on one thread. Integers use plain blocked
//! loops, which are limited by memory bandwidth already.

use faer::linalg::matmul::matmul;
use faer::traits::{ComplexField, Conjugate};
use faer::{Accum, MatMut, MatRef, Par};

use crate::apply::Numeric;
use crate::buffer::View;
use crate::dispatch;
use crate::dtype::{DType, Kind, no_loop};

/// Maximum bytes of packed panels that one product allocates besides operands and result.
pub const SCRATCH_BYTES: u64 = 8 << 20;

/// Returns true if a matrix can be multiplied without a copy: its rows or its columns are
/// contiguous and do not overlap.
pub fn is_direct(view: &View<'_>) -> bool {
    let &[rows, columns] = view.shape.as_slice() else { return false };
    let &[r, c] = view.strides.as_slice() else { return false };
    let lies = |inner: isize, outer: isize, n: usize, m: usize| {
        inner == 1 && (outer >= n as isize || m <= 1)
    };
    lies(c, r, columns, rows) || lies(r, c, rows, columns)
}

/// `out[i, j] += Σ_k lhs[i, k] · rhs[j, k]`; `out` is `rows × columns` in C order, and all have the
/// dtype of `lhs`.
///
/// Views must be [direct](is_direct). Cost: `2 · rows · columns · k` operations. Sums of integers
/// wrap around.
pub fn add_product(lhs: &View<'_>, rhs: &View<'_>, out: &mut [u8]) {
    if lhs.shape.contains(&0) || rhs.shape.contains(&0) {
        return;
    }
    match lhs.dtype.kind() {
        Kind::Float | Kind::Complex => {
            dispatch!(inexact, lhs.dtype, T => floats::<T>(lhs, rhs, out),
                else => no_loop(&"contract", lhs.dtype))
        }
        _ => {
            dispatch!(integer, lhs.dtype, T => integers::<T>(lhs, rhs, out),
                else => no_loop(&"contract", lhs.dtype))
        }
    }
}

fn floats<T: ComplexField + Conjugate<Canonical = T> + bytemuck::Pod>(
    lhs: &View<'_>,
    rhs: &View<'_>,
    out: &mut [u8],
) {
    let (m, n) = (lhs.shape[0], rhs.shape[0]);
    let out: &mut [T] = bytemuck::cast_slice_mut(out);
    let out = MatMut::from_row_major_slice_mut(out, m, n);
    matmul(
        out,
        Accum::Add,
        matrix::<T>(lhs),
        matrix::<T>(rhs).transpose(),
        T::one_impl(),
        Par::Seq,
    );
}

fn matrix<'a, T: bytemuck::Pod>(view: &View<'a>) -> MatRef<'a, T> {
    let values: &'a [T] = &bytemuck::cast_slice(view.bytes)[view.offset..];
    let (rows, columns) = (view.shape[0], view.shape[1]);
    let (r, c) = (view.strides[0], view.strides[1]);
    let last = |inner: usize, outer: usize, stride: usize| stride * (outer - 1) + inner;
    if c == 1 || columns == 1 {
        let stride = if rows > 1 { (r as usize).max(columns) } else { columns };
        MatRef::from_row_major_slice_with_stride(
            &values[..last(columns, rows, stride)],
            rows,
            columns,
            stride,
        )
    } else {
        let stride = (c as usize).max(rows);
        MatRef::from_column_major_slice_with_stride(
            &values[..last(rows, columns, stride)],
            rows,
            columns,
            stride,
        )
    }
}

/// Elements of `k` that stay in the cache while rows are processed.
const BLOCK: usize = 256;

fn integers<T: Numeric>(lhs: &View<'_>, rhs: &View<'_>, out: &mut [u8]) {
    let (a, b): (&[T], &[T]) = (bytemuck::cast_slice(lhs.bytes), bytemuck::cast_slice(rhs.bytes));
    let out: &mut [T] = bytemuck::cast_slice_mut(out);
    let (m, n, k) = (lhs.shape[0], rhs.shape[0], lhs.shape[1]);
    let at = |view: &View<'_>, i: usize, j: usize| {
        (view.offset as isize + i as isize * view.strides[0] + j as isize * view.strides[1])
            as usize
    };
    for first in (0..k).step_by(BLOCK) {
        let last = (first + BLOCK).min(k);
        for i in 0..m {
            let row = &mut out[i * n..(i + 1) * n];
            if rhs.strides[0] == 1 {
                for kk in first..last {
                    let (x, from) = (a[at(lhs, i, kk)], at(rhs, 0, kk));
                    row.iter_mut()
                        .zip(&b[from..from + n])
                        .for_each(|(o, y)| *o = o.plus(x.times(*y)));
                }
            } else {
                for (j, o) in row.iter_mut().enumerate() {
                    *o = (first..last)
                        .fold(*o, |sum, kk| sum.plus(a[at(lhs, i, kk)].times(b[at(rhs, j, kk)])));
                }
            }
        }
    }
}

/// Returns true if products of `dtype` are defined.
pub fn is_defined(dtype: DType) -> bool {
    dtype.kind() != Kind::Bool
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::buffer::{Buffer, contiguous_strides};
    use crate::dtype::Complex128;

    /// Returns small integers, whose sums are exact in any order.
    fn values(n: usize, seed: i64) -> Vec<i64> {
        (0..n as i64).map(|i| (i * 7 + seed) % 11 - 5).collect()
    }

    fn check<T: crate::dtype::Element>(
        make: impl Fn(i64) -> T,
        [m, n, k]: [usize; 3],
        by_columns: [bool; 2],
    ) {
        let (a, b) = (values(m * k, 3), values(n * k, 8));
        let place = |i: usize, kk: usize, rows: usize, columns: bool| {
            if columns { kk * rows + i } else { i * k + kk }
        };
        let laid = |of: &[i64], rows: usize, columns: bool| {
            let mut out = vec![make(0); rows * k];
            (0..rows).for_each(|i| {
                (0..k).for_each(|kk| out[place(i, kk, rows, columns)] = make(of[i * k + kk]))
            });
            Buffer::from_slice(&out)
        };
        let (left, right) = (laid(&a, m, by_columns[0]), laid(&b, n, by_columns[1]));
        fn view<T: crate::dtype::Element>(
            buffer: &Buffer,
            rows: usize,
            k: usize,
            columns: bool,
        ) -> View<'_> {
            View {
                dtype: T::DTYPE,
                bytes: buffer.bytes(),
                offset: 0,
                shape: vec![rows, k],
                strides: if columns {
                    vec![1, rows as isize]
                } else {
                    contiguous_strides(&[rows, k])
                },
            }
        }
        let mut out = Buffer::from_slice(&vec![make(1); m * n]);
        let (l, r) =
            (view::<T>(&left, m, k, by_columns[0]), view::<T>(&right, n, k, by_columns[1]));
        assert!(is_direct(&l) && is_direct(&r));
        add_product(&l, &r, out.bytes_mut());
        let expect: Vec<T> = (0..m * n)
            .map(|at| {
                make(1 + (0..k).map(|kk| a[at / n * k + kk] * b[at % n * k + kk]).sum::<i64>())
            })
            .collect();
        assert_eq!(out.as_slice::<T>(), expect, "{} {m} {n} {k} {by_columns:?}", T::DTYPE);
    }

    proptest! {
        #[test]
        fn products_match_plain_sums(
            m in 1usize..40, n in 1usize..40, k in 1usize..300, left: bool, right: bool,
        ) {
            let shape = [m, n, k];
            check(|x| x as f32, shape, [left, right]);
            check(|x| x as f64, shape, [left, right]);
            check(|x| x as i16, shape, [left, right]);
            check(|x| x as u64, shape, [left, right]);
            check(|x| Complex128::new(x as f64, 0.0), shape, [left, right]);
        }
    }
}
