//! Generated blocks: constants, ranges, diagonals, and random values.

use serde::{Deserialize, Serialize};

use crate::apply::unary;
use crate::copy;
use crate::dispatch;
use crate::dtype::{DType, Element, no_loop};
use crate::expr::UnaryOp;
use crate::scalar::Scalar;

/// An array whose values are functions of their indices.
///
/// A value depends only on its index in the array, never on the chunking.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Generate {
    /// A constant.
    Full(Scalar),
    /// `start + step·i` along the single axis.
    Arange {
        /// The value at index 0.
        start: Scalar,
        /// The difference of neighbours.
        step: Scalar,
    },
    /// `n` evenly spaced values from `start` to `stop` along the single axis.
    Linspace {
        /// The value at index 0.
        start: Scalar,
        /// The value at index `n` − 1, or at index `n` if the end point is excluded.
        stop: Scalar,
        /// The number of intervals between the two.
        intervals: u64,
    },
    /// 1 where the column index equals the row index plus `k`, else 0.
    Eye {
        /// The diagonal: 0 for the main diagonal, positive above it.
        k: i64,
    },
    /// True where the column index is at most the row index plus `k`.
    Triangle {
        /// The highest true diagonal.
        k: i64,
    },
    /// Independent normally distributed floats.
    ///
    /// Source: Box & Muller (1958) over the words of [`Generate::Uniform`]'s generator.
    Normal {
        /// The key.
        seed: u64,
        /// The mean.
        mean: Scalar,
        /// The standard deviation.
        deviation: Scalar,
    },
    /// Independent uniform integers in `low..low + range`. Probabilities differ by at most one part
    /// in 2⁶⁴ of `range`.
    ///
    /// Source: the high word of a product with the range (Lemire, ACM TOMACS 29, 2019), without
    /// rejection.
    Integers {
        /// The key.
        seed: u64,
        /// The least value.
        low: i64,
        /// The number of values.
        range: u64,
    },
    /// Independent uniform floats in `[low, high)`.
    ///
    /// Source: Philox4x32-10 (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1,
    /// 2, 3", SC 2011), with the element's index as counter and the seed as key.
    Uniform {
        /// The key.
        seed: u64,
        /// The least value.
        low: Scalar,
        /// The exclusive upper bound.
        high: Scalar,
    },
}

impl Generate {
    /// Fills `out` (C order, elements of `dtype`) with the box of the array that starts at `origin`
    /// and has `block` elements along each axis. `shape` is the shape of the whole array.
    pub fn fill(
        &self,
        dtype: DType,
        shape: &[u64],
        origin: &[u64],
        block: &[usize],
        out: &mut [u8],
    ) {
        match self {
            Generate::Full(value) => copy::fill(value, out),
            Generate::Arange { start, step } => {
                let first = first_index(origin);
                dispatch!(numeric, dtype, T => arange::<T>(start, step, first, out),
                    else => no_loop(&"arange", dtype))
            }
            Generate::Linspace { start, stop, intervals } => {
                let (a, b, n) = (real(start), real(stop), *intervals as f64);
                let step = (b - a) / n;
                let first = first_index(origin);
                for (i, o) in (first..).zip(out.chunks_exact_mut(dtype.size())) {
                    // The last value is `stop` itself, without rounding.
                    let value = if i == *intervals { b } else { a + step * i as f64 };
                    o.copy_from_slice(Scalar::from_f64(dtype, value).bytes());
                }
            }
            Generate::Eye { k } => {
                let one = Scalar::new(1u8).cast(dtype);
                out.fill(0);
                for_diagonal(
                    origin,
                    block,
                    |i, j| (j - i == *k).then_some(()),
                    |_, at| {
                        out[at * one.bytes().len()..][..one.bytes().len()]
                            .copy_from_slice(one.bytes())
                    },
                );
            }
            Generate::Triangle { k } => for_diagonal(
                origin,
                block,
                |i, j| Some(u8::from(j - i <= *k)),
                |value, at| out[at] = value,
            ),
            Generate::Integers { seed, low, range } => {
                rows(shape, origin, block, out, dtype.size(), |first, row| {
                    let value = |counter: u64, lane: usize| {
                        let w = philox(counter, *seed);
                        let word = u64::from(w[2 * lane]) << 32 | u64::from(w[2 * lane + 1]);
                        low.wrapping_add(((u128::from(word) * u128::from(*range)) >> 64) as i64)
                    };
                    for (i, o) in (first..).zip(row.chunks_exact_mut(dtype.size())) {
                        o.copy_from_slice(
                            &value(i / 2, (i % 2) as usize).to_ne_bytes()[..dtype.size()],
                        );
                    }
                })
            }
            Generate::Normal { seed, mean, deviation } => {
                rows(shape, origin, block, out, dtype.size(), |first, row| match dtype {
                    DType::Float32 => normal(
                        *seed,
                        [real(mean), real(deviation)],
                        first,
                        bytemuck::cast_slice_mut::<_, f32>(row),
                        |x| x as f32,
                    ),
                    _ => normal(
                        *seed,
                        [real(mean), real(deviation)],
                        first,
                        bytemuck::cast_slice_mut::<_, f64>(row),
                        |x| x,
                    ),
                })
            }
            Generate::Uniform { seed, low, high } => {
                rows(shape, origin, block, out, dtype.size(), |first, row| match dtype {
                    DType::Float32 => uniform_f32(
                        *seed,
                        real(low) as f32,
                        real(high) as f32,
                        first,
                        bytemuck::cast_slice_mut(row),
                    ),
                    _ => uniform_f64(
                        *seed,
                        real(low),
                        real(high),
                        first,
                        bytemuck::cast_slice_mut(row),
                    ),
                })
            }
        }
    }
}

/// Returns the first index of a block of a one-dimensional array.
fn first_index(origin: &[u64]) -> u64 {
    debug_assert_eq!(origin.len(), 1, "invariant `ranges have one axis`");
    origin.first().copied().unwrap_or(0)
}

fn real(value: &Scalar) -> f64 {
    value.cast(DType::Float64).get().unwrap_or_default()
}

/// Computes `start + step·i` in the widest arithmetic of the dtype's kind, then casts. No error
/// accumulates along the axis.
fn arange<T: Element>(start: &Scalar, step: &Scalar, first: u64, out: &mut [u8]) {
    let size = size_of::<T>();
    if T::DTYPE.is_integer() {
        let int = |s: &Scalar| s.cast(DType::Int64).get::<i64>().unwrap_or_default();
        let (a, d) = (int(start), int(step));
        for (i, o) in out.chunks_exact_mut(size).enumerate() {
            let value = a.wrapping_add(d.wrapping_mul((first + i as u64) as i64));
            o.copy_from_slice(&value.to_ne_bytes()[..size]);
        }
    } else {
        let ([a, a_rest], [d, d_rest]) = (two_words(start), two_words(step));
        let exact = a_rest == 0.0 && d_rest == 0.0;
        for (i, o) in out.chunks_exact_mut(size).enumerate() {
            let i = (first + i as u64) as f64;
            let value = if exact { a + d * i } else { compensated([a, a_rest], [d, d_rest], i) };
            o.copy_from_slice(Scalar::from_f64(T::DTYPE, value).bytes());
        }
    }
}

/// Returns a number as a `float64` and the rounding error, which large 64-bit integers have.
fn two_words(value: &Scalar) -> [f64; 2] {
    let nearest = real(value);
    let whole = match value.dtype() {
        DType::UInt64 => value.get::<u64>().map(i128::from),
        _ => value.get::<i64>().map(i128::from),
    };
    [nearest, whole.map_or(0.0, |whole| (whole - nearest as i128) as f64)]
}

/// Returns `start + step·i` for numbers of two words, nearly as if rounded once.
fn compensated([a, a_rest]: [f64; 2], [d, d_rest]: [f64; 2], i: f64) -> f64 {
    let product = d * i;
    let lost = d.mul_add(i, -product);
    let sum = a + product;
    let back = sum - a;
    sum + ((a - (sum - back)) + (product - back) + (lost + d_rest.mul_add(i, a_rest)))
}

/// Calls `f` for each element of a box for which `of`, given its last two indices, returns a value.
/// The arguments are that value and the element's place in the box.
fn for_diagonal<T>(
    origin: &[u64],
    block: &[usize],
    of: impl Fn(i64, i64) -> Option<T>,
    mut f: impl FnMut(T, usize),
) {
    let ([.., rows, columns], [.., i0, j0]) = (block, origin) else {
        debug_assert!(false, "invariant `diagonals have two axes`");
        return;
    };
    let (rows, columns, i0, j0) = (*rows, *columns, *i0, *j0);
    for at in 0..block.iter().product() {
        let (i, j) = (i0 as i64 + (at / columns % rows) as i64, j0 as i64 + (at % columns) as i64);
        if let Some(value) = of(i, j) {
            f(value, at);
        }
    }
}

/// Fills `out` with normal values `first…`. Counter `c` gives elements `2c` and `2c + 1`.
fn normal<T: Copy>(
    seed: u64,
    [mean, deviation]: [f64; 2],
    first: u64,
    out: &mut [T],
    narrow: impl Fn(f64) -> T,
) {
    const PAIRS: usize = 256;
    let (mut radius, mut angle, mut at) = ([0f64; PAIRS], [0f64; PAIRS], 0);
    let mut results = [[0f64; PAIRS]; 2];
    let apply = |op, a: &[f64], out: &mut [f64]| {
        unary(op, DType::Float64, bytemuck::cast_slice(a), bytemuck::cast_slice_mut(out))
    };
    while at < out.len() {
        let counter = (first + at as u64) / 2;
        for (i, (r, a)) in radius.iter_mut().zip(&mut angle).enumerate() {
            let w = philox(counter + i as u64, seed).map(u64::from);
            // Uniform in (0, 1], so that the logarithm is finite.
            *r = (((w[0] << 32 | w[1]) >> 11) + 1) as f64 * (1.0 / 9_007_199_254_740_992.0);
            *a = ((w[2] << 32 | w[3]) >> 11) as f64
                * (std::f64::consts::TAU / 9_007_199_254_740_992.0);
        }
        let [cosines, sines] = &mut results;
        apply(UnaryOp::Log, &radius, cosines);
        radius.iter_mut().zip(&*cosines).for_each(|(r, log)| *r = (-2.0 * log).sqrt() * deviation);
        apply(UnaryOp::Cos, &angle, cosines);
        apply(UnaryOp::Sin, &angle, sines);
        let odd = ((first + at as u64) % 2) as usize;
        let n = (2 * PAIRS - odd).min(out.len() - at);
        for (k, o) in out[at..at + n].iter_mut().enumerate() {
            let (pair, lane) = ((k + odd) / 2, (k + odd) % 2);
            *o = narrow(mean + radius[pair] * results[lane][pair]);
        }
        at += n;
    }
}

/// Calls `f` with the linear index of each row's first element and the row's bytes.
fn rows(
    shape: &[u64],
    origin: &[u64],
    block: &[usize],
    out: &mut [u8],
    size: usize,
    f: impl Fn(u64, &mut [u8]),
) {
    let Some((&n, outer)) = block.split_last() else { return f(0, out) };
    if n == 0 {
        return;
    }
    for (row, bytes) in out.chunks_exact_mut(n * size).enumerate() {
        let (mut rest, mut stride, mut linear) =
            (row, *shape.last().unwrap_or(&1), *origin.last().unwrap_or(&0));
        for (d, count) in outer.iter().enumerate().rev() {
            linear += (origin[d] + (rest % count) as u64) * stride;
            rest /= count;
            stride *= shape[d];
        }
        f(linear, bytes);
    }
}

/// Returns the four random words of Philox4x32-10 for a 64-bit counter and a 64-bit key.
#[inline(always)]
fn philox(counter: u64, key: u64) -> [u32; 4] {
    let (mut c, mut k) =
        ([counter as u32, (counter >> 32) as u32, 0, 0], [key as u32, (key >> 32) as u32]);
    for _ in 0..10 {
        let a = u64::from(c[0]) * 0xD251_1F53;
        let b = u64::from(c[2]) * 0xCD9E_8D57;
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// Fills `out` with elements `first…` of a `float32` stream: element `i` is word `i % 4` of counter
/// `i / 4`.
fn uniform_f32(seed: u64, low: f32, high: f32, first: u64, out: &mut [f32]) {
    fill_words(
        out,
        first,
        4,
        |counter, lane| {
            let word = philox(counter, seed)[lane];
            low + (high - low) * ((word >> 8) as f32 * (1.0 / 16_777_216.0))
        },
        |counter, four| {
            for (o, word) in four.iter_mut().zip(philox(counter, seed)) {
                *o = low + (high - low) * ((word >> 8) as f32 * (1.0 / 16_777_216.0));
            }
        },
    );
}

/// Fills `out` with elements `first…` of a `float64` stream: element `i` is half `i % 2` of counter
/// `i / 2`.
fn uniform_f64(seed: u64, low: f64, high: f64, first: u64, out: &mut [f64]) {
    let unit = move |w: [u32; 4], lane: usize| {
        let bits = u64::from(w[2 * lane]) << 32 | u64::from(w[2 * lane + 1]);
        low + (high - low) * ((bits >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0))
    };
    fill_words(
        out,
        first,
        2,
        |counter, lane| unit(philox(counter, seed), lane),
        |counter, two| {
            let words = philox(counter, seed);
            two.iter_mut().enumerate().for_each(|(lane, o)| *o = unit(words, lane));
        },
    );
}

/// Fills whole counters by `group`, and the incomplete counters at both ends by `one`.
fn fill_words<T>(
    out: &mut [T],
    first: u64,
    lanes: usize,
    one: impl Fn(u64, usize) -> T,
    group: impl Fn(u64, &mut [T]),
) {
    let head = ((lanes as u64 - first % lanes as u64) % lanes as u64) as usize;
    let (ragged, rest) = out.split_at_mut(head.min(out.len()));
    for (i, o) in ragged.iter_mut().enumerate() {
        let at = first + i as u64;
        *o = one(at / lanes as u64, (at % lanes as u64) as usize);
    }
    let mut counter = (first + ragged.len() as u64) / lanes as u64;
    let mut groups = rest.chunks_exact_mut(lanes);
    for g in &mut groups {
        group(counter, g);
        counter += 1;
    }
    for (lane, o) in groups.into_remainder().iter_mut().enumerate() {
        *o = one(counter, lane);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Buffer;

    /// Known answers of the Random123 distribution (`kat_vectors`, philox4x32 10).
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox(0, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    }

    /// Integers above 2^53 are exact until the result is rounded.
    #[test]
    fn ranges_of_large_integers_are_rounded_once() {
        let check = |start: Scalar, step: Scalar, n: usize, expect: &dyn Fn(i128) -> f64| {
            let mut out = vec![0f64; n];
            Generate::Arange { start, step }.fill(
                DType::Float64,
                &[n as u64],
                &[0],
                &[n],
                bytemuck::cast_slice_mut(&mut out),
            );
            out.iter()
                .enumerate()
                .for_each(|(i, x)| assert_eq!(*x, expect(i as i128), "{start} {step} {i}"));
        };
        for start in [(1i64 << 53) + 1, (1 << 60) + 129, -(1 << 53) - 1, i64::MAX - 4096] {
            check(Scalar::new(start), Scalar::new(0.5), 64, &|i| {
                (2 * i128::from(start) + i) as f64 / 2.0
            });
            check(Scalar::new(start), Scalar::new((1i64 << 54) + 3), 64, &|i| {
                (i128::from(start) + i * ((1 << 54) + 3)) as f64
            });
        }
        check(Scalar::new(u64::MAX), Scalar::new(-0.25), 64, &|i| {
            (4 * i128::from(u64::MAX) - i) as f64 / 4.0
        });
        check(Scalar::new(1.4), Scalar::new(0.4), 9, &|i| 1.4 + 0.4 * i as f64);
    }

    #[test]
    fn values_do_not_depend_on_the_box() {
        for dtype in [DType::Float32, DType::Float64] {
            let random =
                Generate::Uniform { seed: 7, low: Scalar::new(-1.0), high: Scalar::new(3.0) };
            let size = dtype.size();
            let mut whole = Buffer::zeroed(5 * 7 * size);
            random.fill(dtype, &[5, 7], &[0, 0], &[5, 7], whole.bytes_mut());
            for (origin, block) in
                [([1, 2], [3, 4]), ([0, 6], [5, 1]), ([4, 0], [1, 7]), ([2, 3], [0, 2])]
            {
                let mut part = Buffer::zeroed(block[0] * block[1] * size);
                random.fill(dtype, &[5, 7], &origin.map(|o| o as u64), &block, part.bytes_mut());
                for r in 0..block[0] {
                    let (a, b) = (r * block[1] * size, ((origin[0] + r) * 7 + origin[1]) * size);
                    assert_eq!(
                        part.bytes()[a..a + block[1] * size],
                        whole.bytes()[b..b + block[1] * size]
                    );
                }
            }
        }
    }
}
