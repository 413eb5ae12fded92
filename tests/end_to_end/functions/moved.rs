//! Functions that move elements, and differences of neighbours.

use freestone::DType;
use freestone_expr::vocabulary::Value;
use ndarray::{ArrayD, Axis, Dimension, IxDyn};

use super::elementwise::each2;
use super::{Case, EVERY, Other, Pair, SOME, full, ints, other, spread, zero};
use crate::elements::Element::{self, Int};
use crate::elements::Near::Exact;
use crate::elements::list;
use DType::*;

/// Functions that move elements, and differences of neighbours.
pub(super) static MOVED: &[Other] = &[
    other("diff", SOME, |c| {
        let x = c.cube();
        let difference = |a: &ArrayD<Element>, axis: usize| {
            let n = a.shape()[axis];
            let (mut high, low) = (
                pick(a, axis, &(1..n).collect::<Vec<_>>()),
                pick(a, axis, &(0..n - 1).collect::<Vec<_>>()),
            );
            high.zip_mut_with(&low, |x, y| {
                *x = if c.dtype == Bool {
                    Element::Bool(x != y)
                } else {
                    each2(*x, *y, |x, y| x - y, |x, y| x - y, |x, y| x - y).fit(c.dtype)
                }
            });
            high
        };
        c.moves(vec![x.lazy.clone()], vec![], difference(&x.whole, 2));
        c.moves(vec![x.lazy.clone()], vec![("n", Value::Int(0))], x.whole.clone());
        c.moves(
            vec![x.lazy.clone()],
            vec![("n", Value::Int(3)), ("axis", Value::Int(0))],
            difference(&difference(&difference(&x.whole, 0), 0), 0),
        );
        let (before, after) =
            (c.of(c.dtype, &[4, 2, 10], (-9.0, 9.0)), c.of(c.dtype, &[4, 1, 10], (-9.0, 9.0)));
        let longer = ndarray::concatenate(
            Axis(1),
            &[before.whole.view(), x.whole.view(), after.whole.view()],
        )
        .unwrap();
        let ends = vec![
            ("axis", Value::Int(-2)),
            ("prepend", before.lazy),
            ("append", after.lazy),
            ("n", Value::Int(2)),
        ];
        c.moves(vec![x.lazy.clone()], ends, difference(&difference(&longer, 1), 1));
        c.refuses(vec![x.lazy], vec![("n", Value::Int(-1))]);
    }),
    other("broadcast_arrays", SOME, |c| {
        let (x, y, z) =
            (c.of(c.dtype, &[6, 1], (-9.0, 9.0)), c.cube(), c.of(c.dtype, &[10], (-9.0, 9.0)));
        let all = [&x.whole, &y.whole, &z.whole].map(|w| (c.dtype, spread(w, &[4, 6, 10])));
        c.check(vec![x.lazy, y.lazy, z.lazy], vec![], &all, Exact);
    }),
    other("broadcast_to", SOME, |c| {
        let x = c.of(c.dtype, &[6, 1], (-9.0, 9.0));
        c.moves(vec![x.lazy.clone(), ints(&[4, 6, 10])], vec![], spread(&x.whole, &[4, 6, 10]));
        c.moves(vec![x.lazy.clone(), ints(&[6, 5])], vec![], spread(&x.whole, &[6, 5]));
        c.refuses(vec![x.lazy, ints(&[4, 10])], vec![]);
    }),
    other("concat", SOME, |c| {
        let (x, y) = (c.cube(), c.of(c.dtype, &[4, 3, 10], (-9.0, 9.0)));
        let arrays = |a: &[&Pair]| Value::Sequence(a.iter().map(|p| p.lazy.clone()).collect());
        c.moves(
            vec![arrays(&[&x, &y, &x])],
            vec![("axis", Value::Int(-2))],
            ndarray::concatenate(Axis(1), &[x.whole.view(), y.whole.view(), x.whole.view()])
                .unwrap(),
        );
        let flat = list(x.whole.iter().chain(&y.whole).copied().collect());
        c.moves(vec![arrays(&[&x, &y])], vec![("axis", Value::None)], flat);
        c.refuses(vec![arrays(&[&x, &y])], vec![]);
    }),
    other("expand_dims", SOME, |c| {
        let x = c.cube();
        c.moves(vec![x.lazy.clone()], vec![], x.whole.clone().insert_axis(Axis(0)));
        c.moves(
            vec![x.lazy.clone()],
            vec![("axis", Value::Int(-1))],
            x.whole.clone().insert_axis(Axis(3)),
        );
        c.moves(
            vec![x.lazy.clone()],
            vec![("axis", Value::Int(2))],
            x.whole.clone().insert_axis(Axis(2)),
        );
        c.refuses(vec![x.lazy, Value::Int(4)], vec![]);
    }),
    other("flip", SOME, |c| {
        let x = c.cube();
        let flipped = |axes: &[usize]| {
            let mut whole = x.whole.clone();
            axes.iter().for_each(|d| whole.invert_axis(Axis(*d)));
            whole
        };
        c.moves(vec![x.lazy.clone()], vec![], flipped(&[0, 1, 2]));
        c.moves(vec![x.lazy.clone()], vec![("axis", Value::Int(1))], flipped(&[1]));
        c.moves(vec![x.lazy.clone()], vec![("axis", ints(&[-1, 0]))], flipped(&[0, 2]));
    }),
    other("matrix_transpose", SOME, |c| {
        let x = c.cube();
        c.moves(vec![x.lazy.clone()], vec![], permuted(&x.whole, &[0, 2, 1]));
    }),
    other("moveaxis", SOME, |c| {
        let x = c.cube();
        c.moves(
            vec![x.lazy.clone(), Value::Int(0), Value::Int(-1)],
            vec![],
            permuted(&x.whole, &[1, 2, 0]),
        );
        c.moves(
            vec![x.lazy.clone(), ints(&[0, 1]), ints(&[2, 0])],
            vec![],
            permuted(&x.whole, &[1, 2, 0]),
        );
        c.refuses(vec![x.lazy, ints(&[0, 1]), Value::Int(0)], vec![]);
    }),
    other("pad", SOME, |c| {
        type From = fn(i64, i64) -> Option<i64>;
        let modes: [(&str, From); 5] = [
            ("constant", |i, n| (0..n).contains(&i).then_some(i)),
            ("edge", |i, n| Some(i.clamp(0, n - 1))),
            ("reflect", |i, n| {
                Some(if i < 0 {
                    -i
                } else if i < n {
                    i
                } else {
                    2 * (n - 1) - i
                })
            }),
            ("symmetric", |i, n| {
                Some(if i < 0 {
                    -i - 1
                } else if i < n {
                    i
                } else {
                    2 * n - 1 - i
                })
            }),
            ("wrap", |i, n| Some(i.rem_euclid(n))),
        ];
        let (x, widths) = (c.cube(), [(0, 3), (2, 1), (5, 4)]);
        for (mode, from) in modes {
            let shape: Vec<usize> =
                widths.iter().zip(x.whole.shape()).map(|((a, b), n)| a + b + n).collect();
            let whole = ArrayD::from_shape_fn(IxDyn(&shape), |at| {
                let at: Option<Vec<usize>> = (0..3)
                    .map(|d| {
                        from(at[d] as i64 - widths[d].0 as i64, x.whole.shape()[d] as i64)
                            .map(|i| i as usize)
                    })
                    .collect();
                at.map_or(Int(1).fit(c.dtype), |at| x.whole[&at[..]])
            });
            let pairs = Value::Sequence(
                widths.iter().map(|(a, b)| ints(&[*a as i128, *b as i128])).collect(),
            );
            c.moves(
                vec![x.lazy.clone(), pairs],
                vec![("mode", Value::Text(mode.into())), ("constant_values", Value::Int(1))],
                whole,
            );
        }
        let more = ArrayD::from_shape_fn(IxDyn(&[6, 8, 12]), |at| {
            let inside = (0..3).all(|d| (1..=x.whole.shape()[d]).contains(&at[d]));
            if inside { x.whole[[at[0] - 1, at[1] - 1, at[2] - 1]] } else { zero(c.dtype) }
        });
        c.moves(vec![x.lazy, Value::Int(1)], vec![], more);
    }),
    other("permute_dims", SOME, |c| {
        let x = c.cube();
        c.moves(vec![x.lazy.clone(), ints(&[2, 0, 1])], vec![], permuted(&x.whole, &[2, 0, 1]));
        c.moves(vec![x.lazy.clone(), ints(&[-1, -2, -3])], vec![], permuted(&x.whole, &[2, 1, 0]));
        c.refuses(vec![x.lazy, ints(&[0, 0, 1])], vec![]);
    }),
    other("repeat", SOME, |c| {
        let x = c.cube();
        c.moves(
            vec![x.lazy.clone(), Value::Int(3)],
            vec![("axis", Value::Int(1))],
            pick(&x.whole, 1, &(0..18).map(|i| i / 3).collect::<Vec<_>>()),
        );
        c.moves(
            vec![x.lazy.clone(), ints(&[2, 0, 1, 3])],
            vec![("axis", Value::Int(0))],
            pick(&x.whole, 0, &[0, 0, 2, 3, 3, 3]),
        );
        c.moves(
            vec![x.lazy, Value::Int(2)],
            vec![],
            list(x.whole.iter().flat_map(|x| [*x, *x]).collect()),
        );
    }),
    other("reshape", SOME, |c| {
        let x = c.cube();
        for (asked, shape) in [
            (ints(&[-1]), &[240][..]),
            (ints(&[24, 10]), &[24, 10]),
            (ints(&[4, 1, 60, -1]), &[4, 1, 60, 1]),
            (ints(&[10, 6, 4]), &[10, 6, 4]),
        ] {
            c.moves(
                vec![x.lazy.clone(), asked],
                vec![],
                ArrayD::from_shape_vec(IxDyn(shape), x.whole.iter().copied().collect()).unwrap(),
            );
        }
        c.refuses(vec![x.lazy, ints(&[7, -1])], vec![]);
    }),
    other("roll", SOME, |c| {
        let x = c.cube();
        let moved =
            |n: i64, by: i64| (0..n).map(|i| (i - by).rem_euclid(n) as usize).collect::<Vec<_>>();
        c.moves(
            vec![x.lazy.clone(), Value::Int(2)],
            vec![("axis", Value::Int(2))],
            pick(&x.whole, 2, &moved(10, 2)),
        );
        c.moves(
            vec![x.lazy.clone(), ints(&[-13, 1])],
            vec![("axis", ints(&[1, 0]))],
            pick(&pick(&x.whole, 1, &moved(6, -13)), 0, &moved(4, 1)),
        );
        let mut flat: Vec<Element> = x.whole.iter().copied().collect();
        flat.rotate_right(37);
        c.moves(
            vec![x.lazy, Value::Int(37)],
            vec![],
            ArrayD::from_shape_vec(IxDyn(&[4, 6, 10]), flat).unwrap(),
        );
    }),
    other("squeeze", SOME, |c| {
        let x = c.of(c.dtype, &[1, 6, 1, 4], (-9.0, 9.0));
        c.moves(vec![x.lazy.clone(), Value::Int(0)], vec![], x.whole.clone().remove_axis(Axis(0)));
        c.moves(
            vec![x.lazy.clone(), ints(&[-2, 0])],
            vec![],
            x.whole.clone().remove_axis(Axis(2)).remove_axis(Axis(0)),
        );
        c.refuses(vec![x.lazy, Value::Int(1)], vec![]);
    }),
    other("stack", SOME, |c| {
        let (x, y) = (c.cube(), c.cube());
        let arrays = Value::Sequence(vec![x.lazy, y.lazy]);
        c.moves(
            vec![arrays.clone()],
            vec![],
            ndarray::stack(Axis(0), &[x.whole.view(), y.whole.view()]).unwrap(),
        );
        c.moves(
            vec![arrays],
            vec![("axis", Value::Int(-1))],
            ndarray::stack(Axis(3), &[x.whole.view(), y.whole.view()]).unwrap(),
        );
    }),
    other("tile", SOME, |c| {
        let x = c.square();
        let twice = |n: usize, times: usize| (0..n * times).map(|i| i % n).collect::<Vec<_>>();
        c.moves(vec![x.lazy.clone(), ints(&[3])], vec![], pick(&x.whole, 1, &twice(4, 3)));
        let tiled = pick(&pick(&x.whole, 0, &twice(6, 2)), 1, &twice(4, 3));
        c.moves(
            vec![x.lazy.clone(), ints(&[2, 2, 3])],
            vec![],
            ndarray::stack(Axis(0), &[tiled.view(), tiled.view()]).unwrap(),
        );
        c.moves(vec![x.lazy, ints(&[0, 1])], vec![], full(&[0, 4], zero(c.dtype)));
    }),
    other("tril", SOME, |c| triangles(c, |i, j, k| j <= i + k)),
    other("triu", SOME, |c| triangles(c, |i, j, k| j >= i + k)),
    other("unstack", SOME, |c| {
        let x = c.cube();
        let at = |axis: usize| {
            (0..x.whole.shape()[axis])
                .map(|i| (c.dtype, x.whole.index_axis(Axis(axis), i).to_owned()))
                .collect::<Vec<_>>()
        };
        c.check(vec![x.lazy.clone()], vec![], &at(0), Exact);
        c.check(vec![x.lazy.clone()], vec![("axis", Value::Int(-2))], &at(1), Exact);
    }),
    other("take", SOME, |c| {
        let x = c.cube();
        c.moves(
            vec![x.lazy.clone(), ints(&[5, 0, 0, -1])],
            vec![("axis", Value::Int(1))],
            pick(&x.whole, 1, &[5, 0, 0, 5]),
        );
        c.moves(
            vec![x.lazy.clone(), ints(&[])],
            vec![("axis", Value::Int(-1))],
            full(&[4, 6, 0], zero(c.dtype)),
        );
        let line = c.of(c.dtype, &[12], (-9.0, 9.0));
        c.moves(vec![line.lazy, ints(&[11, 3])], vec![], pick(&line.whole, 0, &[11, 3]));
        c.refuses(vec![x.lazy.clone(), ints(&[0])], vec![]);
        c.refuses(vec![x.lazy, ints(&[4])], vec![("axis", Value::Int(0))]);
    }),
    other("rechunk", EVERY, |c| {
        let x = c.cube();
        for chunks in [ints(&[1, 6, 10]), ints(&[3, -1, 4]), Value::Int(2)] {
            c.moves(vec![x.lazy.clone(), chunks], vec![], x.whole.clone());
        }
        c.refuses(vec![x.lazy, ints(&[0, 1, 1])], vec![]);
    }),
];

fn pick(a: &ArrayD<Element>, axis: usize, indices: &[usize]) -> ArrayD<Element> {
    a.select(Axis(axis), indices)
}

fn permuted(a: &ArrayD<Element>, order: &[usize]) -> ArrayD<Element> {
    a.clone().permuted_axes(IxDyn(order)).as_standard_layout().into_owned()
}

fn triangles(c: &Case<'_>, inside: fn(i64, i64, i64) -> bool) {
    for x in [c.cube(), c.square()] {
        for k in [0, -1, 2, 20] {
            let whole = ArrayD::from_shape_fn(x.whole.raw_dim(), |at| {
                let [.., i, j] = *at.slice() else { panic!("too few axes") };
                if inside(i as i64, j as i64, k) { x.whole[at] } else { zero(c.dtype) }
            });
            c.moves(
                vec![x.lazy.clone()],
                if k == 0 { vec![] } else { vec![("k", Value::Int(k.into()))] },
                whole,
            );
        }
    }
}
