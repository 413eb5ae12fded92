//! Sums of products: of matrices, along chosen axes, of vectors.

use freestone_expr::vocabulary::Value;
use ndarray::{ArrayD, Axis, IxDyn};

use super::reduced::{product, total};
use super::{NUMERIC, Other, Pair, full, other, spread};
use crate::elements::Element::{self, Complex};
use crate::elements::Near::Exact;
use crate::elements::list;

/// Products of matrices and vectors.
pub(super) static PRODUCTS: &[Other] = &[
    other("matmul", NUMERIC, |c| {
        let shapes: [(&[usize], &[usize], &[usize]); 4] = [
            (&[5, 7], &[7, 4], &[]),
            (&[3, 5, 7], &[7, 4], &[3]),
            (&[2, 1, 5, 7], &[3, 7, 4], &[2, 3]),
            (&[1, 9], &[9, 1], &[]),
        ];
        for (a, b, stack) in shapes {
            let (x, y) = (c.of(c.dtype, a, (-9.0, 9.0)), c.of(c.dtype, b, (-9.0, 9.0)));
            let mut turned = y.whole.clone();
            turned.swap_axes(b.len() - 2, b.len() - 1);
            let whole = matrices(&x.whole, &turned, stack).mapv(|v| v.fit(c.dtype));
            c.check(vec![x.lazy.clone(), y.lazy.clone()], vec![], &[(c.dtype, whole)], Exact);
        }
        // Vectors are rows and columns.
        let (x, v, w) = (
            c.of(c.dtype, &[5, 7], (-9.0, 9.0)),
            c.of(c.dtype, &[7], (-9.0, 9.0)),
            c.of(c.dtype, &[5], (-9.0, 9.0)),
        );
        let (row, rows) = (
            |x: &Pair| x.whole.iter().copied().collect::<Vec<_>>(),
            |x: &ArrayD<Element>, i: usize| {
                x.index_axis(Axis(0), i).iter().copied().collect::<Vec<_>>()
            },
        );
        let by_column =
            list((0..5).map(|i| dot(&rows(&x.whole, i), &row(&v)).fit(c.dtype)).collect());
        c.check(vec![x.lazy.clone(), v.lazy.clone()], vec![], &[(c.dtype, by_column)], Exact);
        let turned = x.whole.clone().reversed_axes();
        let by_row = list((0..7).map(|i| dot(&row(&w), &rows(&turned, i)).fit(c.dtype)).collect());
        c.check(vec![w.lazy.clone(), x.lazy.clone()], vec![], &[(c.dtype, by_row)], Exact);
        c.check(
            vec![v.lazy.clone(), v.lazy.clone()],
            vec![],
            &[(c.dtype, full(&[], dot(&row(&v), &row(&v)).fit(c.dtype)))],
            Exact,
        );
    }),
    other("tensordot", NUMERIC, |c| {
        let (x, y) =
            (c.of(c.dtype, &[3, 4, 5], (-9.0, 9.0)), c.of(c.dtype, &[5, 4, 2], (-9.0, 9.0)));
        let all = |a: [usize; 2],
                   b: [usize; 2],
                   n: usize,
                   at: &dyn Fn(usize, usize, usize) -> (Element, Element)| {
            ArrayD::from_shape_fn(IxDyn(&[a[0], b[0]]), |index| {
                let (a, b): (Vec<Element>, Vec<Element>) =
                    (0..n).map(|k| at(index[0], index[1], k)).unzip();
                dot(&a, &b).fit(c.dtype)
            })
        };
        let pairs = |l: &[i128], r: &[i128]| {
            Value::Sequence(
                [l, r]
                    .map(|a| Value::Sequence(a.iter().map(|i| Value::Int(*i)).collect()))
                    .to_vec(),
            )
        };
        let both = all([3, 0], [2, 0], 20, &|i, j, k| {
            (x.whole[[i, k / 5, k % 5]], y.whole[[k % 5, k / 5, j]])
        });
        c.check(
            vec![x.lazy.clone(), y.lazy.clone()],
            vec![("axes", pairs(&[1, 2], &[1, 0]))],
            &[(c.dtype, both)],
            Exact,
        );
        let one = all([12, 0], [8, 0], 5, &|i, j, k| {
            (x.whole[[i / 4, i % 4, k]], y.whole[[k, j / 2, j % 2]])
        })
        .into_shape_with_order(IxDyn(&[3, 4, 4, 2]))
        .unwrap();
        c.check(
            vec![x.lazy.clone(), y.lazy.clone()],
            vec![("axes", Value::Int(1))],
            &[(c.dtype, one)],
            Exact,
        );
        let (v, w) = (c.of(c.dtype, &[4], (-9.0, 9.0)), c.of(c.dtype, &[6], (-9.0, 9.0)));
        let none = all([4, 0], [6, 0], 1, &|i, j, _| (v.whole[[i]], w.whole[[j]]));
        c.check(
            vec![v.lazy.clone(), w.lazy.clone()],
            vec![("axes", Value::Int(0))],
            &[(c.dtype, none)],
            Exact,
        );
    }),
    other("vecdot", NUMERIC, |c| {
        let (x, y) = (c.of(c.dtype, &[4, 1, 7], (-9.0, 9.0)), c.of(c.dtype, &[6, 7], (-9.0, 9.0)));
        let conjugate = |x: Element| if let Complex(z) = x { Complex(z.conj()) } else { x };
        let whole = ArrayD::from_shape_fn(IxDyn(&[4, 6]), |at| {
            let (a, b): (Vec<Element>, Vec<Element>) =
                (0..7).map(|k| (conjugate(x.whole[[at[0], 0, k]]), y.whole[[at[1], k]])).unzip();
            dot(&a, &b).fit(c.dtype)
        });
        c.check(vec![x.lazy.clone(), y.lazy.clone()], vec![], &[(c.dtype, whole)], Exact);
    }),
    other("outer", NUMERIC, |c| {
        let (x, y) = (c.of(c.dtype, &[9], (-9.0, 9.0)), c.of(c.dtype, &[5], (-9.0, 9.0)));
        let whole = ArrayD::from_shape_fn(IxDyn(&[9, 5]), |at| {
            product(&[x.whole[[at[0]]], y.whole[[at[1]]]]).fit(c.dtype)
        });
        c.moves(vec![x.lazy.clone(), y.lazy.clone()], vec![], whole);
    }),
];

/// Returns the sum of products of two vectors.
fn dot(a: &[Element], b: &[Element]) -> Element {
    total(&a.iter().zip(b).map(|(a, b)| product(&[*a, *b])).collect::<Vec<_>>())
}

/// Returns the products of stacked matrices `(…, m, k)` and `(…, n, k)`.
fn matrices(a: &ArrayD<Element>, b: &ArrayD<Element>, stack: &[usize]) -> ArrayD<Element> {
    let (m, n, k) = (a.shape()[a.ndim() - 2], b.shape()[b.ndim() - 2], a.shape()[a.ndim() - 1]);
    let (a, b) = (spread(a, &[stack, &[m, k]].concat()), spread(b, &[stack, &[n, k]].concat()));
    ArrayD::from_shape_fn(IxDyn(&[stack, &[m, n]].concat()), |index| {
        let row = |x: &ArrayD<Element>, i: usize| -> Vec<Element> {
            let at = |kk: usize| -> Vec<usize> {
                (0..stack.len()).map(|d| index[d]).chain([i, kk]).collect()
            };
            (0..k).map(|kk| x[IxDyn(&at(kk))]).collect()
        };
        dot(&row(&a, index[stack.len()]), &row(&b, index[stack.len() + 1]))
    })
}
