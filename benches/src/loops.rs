//! The arithmetic of each workload on a chunk, in one pass, for the [floor](crate::floor).
//!
//! Plain loops that the compiler vectorises, with accumulators that fit in a cache.

use crate::native::wide;

/// Cells of a strip, whose sums stay in the L1 cache over all times.
const STRIP: usize = 1024;
/// Maps that are added together, which reduces loads and stores of sums.
const TIMES: usize = 4;
/// Independent sums, so that additions do not wait for each other.
const LANES: usize = 32;
/// The side of the squares in which a square is transposed.
const SQUARE: usize = 16;

/// Adds u·u, u·v and v·v of one chunk of maps to sums over time, [`TIMES`] maps at a time.
pub(crate) fn quadratic(u: &[f32], v: &[f32], sums: &mut [Vec<f64>; 3]) {
    let cells = sums[0].len();
    wide(
        #[inline(always)]
        || {
            strips(
                cells,
                #[inline(always)]
                |strip| {
                    let (u, v) = (u.chunks_exact(TIMES * cells), v.chunks_exact(TIMES * cells));
                    for (u, v) in
                        u.remainder().chunks_exact(cells).zip(v.remainder().chunks_exact(cells))
                    {
                        products([&u[strip.clone()]], [&v[strip.clone()]], sums, strip.start);
                    }
                    for (u, v) in u.zip(v) {
                        let at = |t: usize| t * cells + strip.start..t * cells + strip.end;
                        products(
                            [&u[at(0)], &u[at(1)], &u[at(2)], &u[at(3)]],
                            [&v[at(0)], &v[at(1)], &v[at(2)], &v[at(3)]],
                            sums,
                            strip.start,
                        );
                    }
                },
            );
        },
    );
}

/// Adds products of strips of several times with the same cells.
#[inline(always)]
fn products<const T: usize>(
    u: [&[f32]; T],
    v: [&[f32]; T],
    sums: &mut [Vec<f64>; 3],
    first: usize,
) {
    let n = u[0].len();
    let [uu, uv, vv] = sums;
    let (uu, uv, vv) =
        (&mut uu[first..first + n], &mut uv[first..first + n], &mut vv[first..first + n]);
    let (u, v) = (u.map(|x| &x[..n]), v.map(|x| &x[..n]));
    for i in 0..n {
        let mut sum = [uu[i], uv[i], vv[i]];
        for t in 0..T {
            let (u, v) = (f64::from(u[t][i]), f64::from(v[t][i]));
            sum = [sum[0] + u * u, sum[1] + u * v, sum[2] + v * v];
        }
        [uu[i], uv[i], vv[i]] = sum;
    }
}

/// Returns the sum of all values, or of a function of them.
pub(crate) fn sum(values: &[f32], of: impl Fn(f32) -> f32 + Copy) -> f64 {
    wide(
        #[inline(always)]
        || {
            let mut lanes = [0.0; LANES];
            let whole = values.chunks_exact(LANES);
            let rest: f64 = whole.remainder().iter().map(|x| f64::from(of(*x))).sum();
            for part in whole {
                for (lane, x) in lanes.iter_mut().zip(part) {
                    *lane += f64::from(of(*x));
                }
            }
            rest + lanes.iter().sum::<f64>()
        },
    )
}

/// Adds one chunk of maps to sums over time.
pub(crate) fn add_maps(u: &[f32], sums: &mut [f64]) {
    wide(
        #[inline(always)]
        || {
            let cells = sums.len();
            strips(
                cells,
                #[inline(always)]
                |strip| {
                    for map in u.chunks_exact(cells) {
                        sums[strip.clone()]
                            .iter_mut()
                            .zip(&map[strip.clone()])
                            .for_each(|(sum, x)| *sum += f64::from(*x));
                    }
                },
            );
        },
    );
}

/// Adds one chunk of maps, less a map, and their squares, to sums over time.
pub(crate) fn add_squares(u: &[f32], less: &[f32], sums: &mut [f64], squares: &mut [f64]) {
    wide(
        #[inline(always)]
        || {
            let cells = sums.len();
            strips(
                cells,
                #[inline(always)]
                |strip| {
                    for map in u.chunks_exact(cells) {
                        let values = map[strip.clone()].iter().zip(&less[strip.clone()]);
                        for ((x, less), (sum, square)) in values
                            .zip(sums[strip.clone()].iter_mut().zip(&mut squares[strip.clone()]))
                        {
                            let x = f64::from(*x - *less);
                            *sum += x;
                            *square += x * x;
                        }
                    }
                },
            );
        },
    );
}

/// Updates the first maximum of each cell, and its time.
pub(crate) fn keep_greatest(u: &[f32], first: u32, best: &mut [f32], at: &mut [u32]) {
    wide(
        #[inline(always)]
        || {
            let cells = best.len();
            strips(
                cells,
                #[inline(always)]
                |strip| {
                    for (time, map) in (first..).zip(u.chunks_exact(cells)) {
                        for (x, (best, at)) in map[strip.clone()]
                            .iter()
                            .zip(best[strip.clone()].iter_mut().zip(&mut at[strip.clone()]))
                        {
                            let better = *x > *best;
                            *best = if better { *x } else { *best };
                            *at = if better { time } else { *at };
                        }
                    }
                },
            );
        },
    );
}

/// Cumulative sums along time, continued from chunk to chunk.
pub(crate) fn accumulate(u: &[f32], running: &mut [f64], out: &mut [f32]) {
    wide(
        #[inline(always)]
        || {
            let cells = running.len();
            strips(
                cells,
                #[inline(always)]
                |strip| {
                    for (map, out) in u.chunks_exact(cells).zip(out.chunks_exact_mut(cells)) {
                        for ((x, sum), out) in map[strip.clone()]
                            .iter()
                            .zip(&mut running[strip.clone()])
                            .zip(&mut out[strip.clone()])
                        {
                            *sum += f64::from(*x);
                            *out = *sum as f32;
                        }
                    }
                },
            );
        },
    );
}

/// Subtracts a map from maps.
pub(crate) fn subtract(u: &[f32], less: &[f32], out: &mut [f32]) {
    wide(
        #[inline(always)]
        || {
            for (map, out) in u.chunks_exact(less.len()).zip(out.chunks_exact_mut(less.len())) {
                map.iter().zip(less).zip(out).for_each(|((x, less), out)| *out = x - less);
            }
        },
    );
}

/// Computes sqrt(a·a + b·b) · exp(−|a − b|) + 1.
pub(crate) fn chain(a: &[f32], b: &[f32], out: &mut [f32]) {
    wide(
        #[inline(always)]
        || {
            a.iter().zip(b).zip(out).for_each(|((a, b), out)| {
                *out = (a * a + b * b).sqrt() * exp_below_zero(-(a - b).abs()) + 1.0
            })
        },
    );
}

/// Adds the transposed `b` to `a`, both squares whose side is a multiple of 16 or less than 16.
///
/// Rows at a distance of a large power of two share cache sets, hence small squares in a separate
/// buffer.
pub(crate) fn add_transposed(a: &[f32], b: &[f32], out: &mut [f32]) {
    let n = a.len().isqrt();
    let side = SQUARE.min(n);
    wide(
        #[inline(always)]
        || {
            let mut square = [[0.0f32; SQUARE]; SQUARE];
            for (i0, j0) in
                (0..n).step_by(side).flat_map(|i| (0..n).step_by(side).map(move |j| (i, j)))
            {
                for j in 0..side {
                    let row = &b[(j0 + j) * n + i0..][..side];
                    square.iter_mut().zip(row).for_each(|(to, x)| to[j] = *x);
                }
                for (i, turned) in (i0..).zip(&square[..side]) {
                    let at = i * n + j0..i * n + j0 + side;
                    out[at.clone()]
                        .iter_mut()
                        .zip(&a[at])
                        .zip(turned)
                        .for_each(|((out, a), b)| *out = a + b);
                }
            }
        },
    );
}

/// Computes central differences of `b` along the second axis less those of `a` along the first, of
/// squares with zero borders.
pub(crate) fn curl(a: &[f32], b: &[f32], out: &mut [f32]) {
    let n = a.len().isqrt();
    wide(
        #[inline(always)]
        || {
            for i in 1..n - 1 {
                let (north, south) = (&a[(i - 1) * n..i * n], &a[(i + 1) * n..(i + 2) * n]);
                let (row, out) = (&b[i * n..(i + 1) * n], &mut out[i * n..(i + 1) * n]);
                let dy = south[1..n - 1].iter().zip(&north[1..n - 1]);
                let dx = row[2..].iter().zip(&row[..n - 2]);
                for (out, ((south, north), (east, west))) in
                    out[1..n - 1].iter_mut().zip(dy.zip(dx))
                {
                    *out = (east - west) * 0.5 - (south - north) * 0.5;
                }
            }
        },
    );
}

/// Copies maps (time, y, x) to columns (y / ny, x / nx, time, ny, nx).
pub(crate) fn scatter(u: &[f32], map: [usize; 2], column: [usize; 2], out: &mut [f32]) {
    let ([height, width], [ny, nx]) = (map, column);
    let times = u.len() / (height * width);
    let mut rows = out.chunks_exact_mut(nx);
    for (y0, x0) in
        (0..height).step_by(ny).flat_map(|y| (0..width).step_by(nx).map(move |x| (y, x)))
    {
        for (t, y) in (0..times).flat_map(|t| (y0..y0 + ny).map(move |y| (t, y))) {
            let from = (t * height + y) * width + x0;
            if let Some(row) = rows.next() {
                row.copy_from_slice(&u[from..from + nx]);
            }
        }
    }
}

#[inline(always)]
fn strips(cells: usize, mut of: impl FnMut(std::ops::Range<usize>)) {
    for start in (0..cells).step_by(STRIP) {
        of(start..(start + STRIP).min(cells));
    }
}

/// Returns the exponential of a number that is not positive, to 2 ulp: 2ⁿ times a Taylor
/// polynomial.
#[inline(always)]
fn exp_below_zero(x: f32) -> f32 {
    // Adding this constant leaves an integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let shifted = x.max(-87.0) * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x.max(-87.0) - n * LN_2[0] - n * LN_2[1];
    let terms = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let polynomial = terms.into_iter().fold(0.0, |p, term| p * r + term);
    polynomial * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quadratic_sums_are_over_time() {
        // 5000 cells: one whole strip and a partial one.
        let (cells, times) = (5000, 3);
        let u: Vec<f32> = (0..cells * times).map(|i| (i % 17) as f32 - 8.0).collect();
        let v: Vec<f32> = (0..cells * times).map(|i| (i % 5) as f32).collect();
        let mut sums = [(); 3].map(|()| vec![1.0; cells]);
        quadratic(&u, &v, &mut sums);
        for cell in 0..cells {
            let over_time = |f: &dyn Fn(f32, f32) -> f32| {
                1.0 + (0..times)
                    .map(|t| f64::from(f(u[t * cells + cell], v[t * cells + cell])))
                    .sum::<f64>()
            };
            assert_eq!(sums[0][cell], over_time(&|u, _| u * u));
            assert_eq!(sums[1][cell], over_time(&|u, v| u * v));
            assert_eq!(sums[2][cell], over_time(&|_, v| v * v));
        }
    }

    #[test]
    fn exponentials_are_near() {
        for x in [0.0f32, -1e-3, -0.3, -1.0, -7.7, -40.0, -86.0] {
            let (ours, exact) = (exp_below_zero(x), x.exp());
            assert!((ours - exact).abs() <= 4e-7 * exact, "{x}: {ours} and {exact}");
        }
    }

    #[test]
    fn the_greatest_is_the_first() {
        let (mut best, mut at) = (vec![f32::NEG_INFINITY; 2], vec![0; 2]);
        keep_greatest(&[1.0, 5.0, 3.0, 4.0, 3.0, 5.0], 10, &mut best, &mut at);
        assert_eq!((best, at), (vec![3.0, 5.0], vec![11, 10]));
    }

    #[test]
    fn columns_hold_all_times() {
        // Two maps of 2 × 4, columns of 1 × 2.
        let u: Vec<f32> = (0..16).map(|x| x as f32).collect();
        let mut out = vec![0.0; 16];
        scatter(&u, [2, 4], [1, 2], &mut out);
        assert_eq!(out[..8], [0.0, 1.0, 8.0, 9.0, 2.0, 3.0, 10.0, 11.0]);
    }

    #[test]
    fn squares_turn() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]);
        let mut out = [0.0; 4];
        add_transposed(&a, &b, &mut out);
        assert_eq!(out, [11.0, 32.0, 23.0, 44.0]);
        let field: Vec<f32> = (0..9).map(|i| (i * i) as f32).collect();
        let mut out = vec![0.0; 9];
        curl(&field, &field, &mut out);
        assert_eq!(out[4], (25.0 - 9.0) * 0.5 - (49.0 - 1.0) * 0.5);
    }
}
