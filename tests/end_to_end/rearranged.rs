//! Views in random programs, with their oracle: mostly lists of indices.

use freestone::{Index, Pad};
use ndarray::{ArrayD, Axis, Dimension, IxDyn};

use crate::values::{Pair, Step, promoted, python_slice, rounded};

/// Applies a view. Returns `None` if it is undefined for its operand.
#[expect(clippy::too_many_lines, reason = "a table: one arm for each view")]
pub fn rearrange(
    a: &Pair,
    pool: &[Pair],
    step: &Step,
    names: &mut Vec<&'static str>,
) -> Option<Pair> {
    let rank = a.whole.ndim();
    let axis = (rank > 0).then(|| step.a.unsigned_abs() as usize % rank)?;
    let n = a.whole.shape()[axis];
    let at = axis as i64 - if step.c < 0 { rank as i64 } else { 0 };
    let pick = |indices: &[usize]| a.whole.select(Axis(axis), indices);
    let (name, lazy, whole) = match step.op % 12 {
        0 => {
            let by = i64::from(step.b % 11);
            let indices: Vec<usize> =
                (0..n as i64).map(|i| (i - by).rem_euclid(n as i64) as usize).collect();
            ("roll", a.lazy.roll(by, at), pick(&indices))
        }
        1 => {
            let flat: Vec<f64> = a.whole.iter().copied().collect();
            let mut rolled = flat.clone();
            let len = flat.len().max(1);
            rolled.rotate_right(i64::from(step.b).rem_euclid(len as i64) as usize);
            (
                "roll flat",
                a.lazy.roll(step.b.into(), ()),
                ArrayD::from_shape_vec(
                    a.whole.raw_dim(),
                    if flat.is_empty() { flat } else { rolled },
                )
                .unwrap(),
            )
        }
        2 | 3 => {
            let list: Vec<i64> = (0..step.b.unsigned_abs() % 9)
                .filter(|_| n > 0)
                .map(|i| {
                    (i64::from(i) * i64::from(step.c)).rem_euclid(n as i64)
                        - if i % 2 == 0 { 0 } else { n as i64 }
                })
                .collect();
            let indices: Vec<usize> =
                list.iter().map(|i| i.rem_euclid(n as i64) as usize).collect();
            ("take", a.lazy.take(&list, at), pick(&indices))
        }
        4 => {
            let times = step.b.unsigned_abs() as usize % 4;
            if step.c % 2 == 0 {
                let indices: Vec<usize> = (0..n * times).map(|i| i / times).collect();
                ("repeat", a.lazy.repeat(times as u64, at), pick(&indices))
            } else {
                let counts: Vec<u64> = (0..n).map(|i| ((i + times) % 3) as u64).collect();
                let indices: Vec<usize> =
                    (0..n).flat_map(|i| std::iter::repeat_n(i, counts[i] as usize)).collect();
                ("repeat", a.lazy.repeat_each(&counts, at), pick(&indices))
            }
        }
        5 => {
            let times = [1, 2, 3, 70][step.b.unsigned_abs() as usize % 4];
            let mut repetitions = vec![1; rank - axis];
            repetitions[0] = times as u64;
            let indices: Vec<usize> = (0..n * times).map(|i| i % n).collect();
            ("tile", a.lazy.tile(&repetitions), pick(&indices))
        }
        6 => {
            let (before, after) =
                (step.b.unsigned_abs() as usize % 5, step.c.unsigned_abs() as usize % 4);
            let mut widths = vec![(0, 0); rank];
            widths[axis] = (before as u64, after as u64);
            let (mode, index): (Pad, fn(i64, i64) -> i64) = match step.operand % 5 {
                0 => (Pad::Constant(1.into()), |_, _| -1),
                1 => (Pad::Edge, |i, n| i.clamp(0, n - 1)),
                2 => (Pad::Reflect, |i, n| if i < 0 { -i } else { 2 * (n - 1) - i }),
                3 => (Pad::Symmetric, |i, n| if i < 0 { -i - 1 } else { 2 * n - 1 - i }),
                _ => (Pad::Wrap, |i, n| i.rem_euclid(n)),
            };
            let padded = a.lazy.pad(&widths, mode);
            let most = before.max(after);
            let enough = match mode {
                Pad::Constant(_) => true,
                Pad::Edge => n > 0,
                Pad::Reflect => most < n,
                _ => most <= n,
            };
            if !enough {
                assert!(padded.check().is_err() || most == 0, "{mode:?} of {most} for {n}");
                return None;
            }
            let mut shape = a.whole.shape().to_vec();
            shape[axis] += before + after;
            let whole = ArrayD::from_shape_fn(IxDyn(&shape), |at| {
                let (mut at, i) = (at.slice().to_vec(), at[axis] as i64 - before as i64);
                let from = if (0..n as i64).contains(&i) { i } else { index(i, n as i64) };
                at[axis] = from.max(0) as usize;
                if from < 0 { 1.0 } else { a.whole[&at[..]] }
            });
            ("pad", padded, whole)
        }
        7 => {
            let fits = |p: &&Pair| {
                let s = p.whole.shape();
                s.len() == rank
                    && promoted(a.dtype, p.dtype).is_some()
                    && (0..rank).all(|d| d == axis || s[d] == a.whole.shape()[d])
            };
            let b = pool.iter().rev().find(fits)?;
            let dtype = promoted(a.dtype, b.dtype)?;
            let whole =
                ndarray::concatenate(Axis(axis), &[a.whole.view(), b.whole.view(), a.whole.view()])
                    .ok()?
                    .mapv(|x| rounded(x, dtype));
            names.push("concat");
            return Some(Pair {
                lazy: freestone::concat(&[a.lazy.clone(), b.lazy.clone(), a.lazy.clone()], at),
                whole,
                dtype,
            });
        }
        8 if rank < 4 => {
            let b =
                pool.iter().find(|p| p.whole.shape() == a.whole.shape() && p.dtype == a.dtype)?;
            (
                "stack",
                freestone::stack(&[a.lazy.clone(), b.lazy.clone()], at),
                ndarray::stack(
                    Axis(if step.c < 0 { axis + 1 } else { axis }),
                    &[a.whole.view(), b.whole.view()],
                )
                .ok()?,
            )
        }
        9 | 10 => {
            let flat: Vec<f64> = a.whole.iter().copied().collect();
            let (len, factor) = (flat.len(), [2, 3, 4, 6][step.b.unsigned_abs() as usize % 4]);
            let shape: Vec<usize> = match step.c.rem_euclid(4) {
                0 => vec![len],
                1 if rank > 1 => [
                    &a.whole.shape()[..rank - 2],
                    &[a.whole.shape()[rank - 2] * a.whole.shape()[rank - 1]],
                ]
                .concat(),
                2 if len > 0 && len % factor == 0 => vec![len / factor, factor],
                _ => a.whole.shape().iter().rev().copied().collect(),
            };
            let asked: Vec<i64> = shape
                .iter()
                .enumerate()
                .map(|(d, s)| if d == 0 && len > 0 { -1 } else { *s as i64 })
                .collect();
            (
                "reshape",
                a.lazy.reshape(&asked),
                ArrayD::from_shape_vec(IxDyn(&shape), flat).unwrap(),
            )
        }
        _ => {
            let (to, mut order) =
                (step.b.unsigned_abs() as usize % rank, (0..rank).collect::<Vec<_>>());
            order.remove(axis);
            order.insert(to, axis);
            let moved =
                a.whole.clone().permuted_axes(IxDyn(&order)).as_standard_layout().into_owned();
            if step.c % 2 == 0 {
                ("moveaxis", a.lazy.moveaxis(at, to as i64), moved)
            } else {
                // All kinds of indices at once.
                let slice = python_slice(None, Some(-1), -2, n as i64);
                let indices: Vec<Index> = (0..axis)
                    .map(|_| Index::from(..))
                    .chain([
                        freestone::Slice::from(..-1).step(-2).into(),
                        Index::NewAxis,
                        Index::Ellipsis,
                    ])
                    .collect();
                if rank > 3 {
                    return None;
                }
                ("index", a.lazy.index(&indices), pick(&slice).insert_axis(Axis(axis + 1)))
            }
        }
    };
    lazy.check().unwrap_or_else(|e| panic!("{name}: {e}"));
    let shape: Vec<usize> = lazy.shape().unwrap().iter().map(|n| *n as usize).collect();
    assert_eq!(shape, whole.shape(), "{name}");
    names.push(name);
    Some(Pair { lazy, whole, dtype: a.dtype })
}

/// The read map of an array's start looks like the identity. Reshaping it once read the whole
/// array.
#[test]
fn the_start_of_an_array_is_reshaped() {
    let x = freestone::arange(0, 24, 1, freestone::DType::Int64, 5);
    let spec = crate::support::Place::new().spec();
    let start = x.slice(..12, 0).reshape([3, 4]);
    let values: Vec<i64> = freestone::compute::<i64>(&start, &spec).unwrap().into_iter().collect();
    assert_eq!(values, (0..12).collect::<Vec<_>>());
    let rows = x.reshape([6, 4]).slice(..2, 0);
    assert_eq!(freestone::compute::<i64>(&rows, &spec).unwrap().sum(), (0..8).sum::<i64>());
}
