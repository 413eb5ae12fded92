//! Blocks that are made, not read.

use serde::{Deserialize, Serialize};

use crate::copy;
use crate::dispatch;
use crate::dtype::{DType, Element};
use crate::scalar::Scalar;

/// An array whose values follow from their indices.
///
/// A value depends on its index in the array only, never on the chunking.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Generate {
    /// One value everywhere.
    Full(Scalar),
    /// `start + step·i` along the only axis.
    Arange {
        /// Value at index 0.
        start: Scalar,
        /// Distance of neighbours.
        step: Scalar,
    },
    /// Independent uniform values in `[low, high)`, for floats.
    ///
    /// Source: Philox4x32-10 (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011), with
    /// the element's index as counter and the seed as key.
    Uniform {
        /// The key.
        seed: u64,
        /// Least value.
        low: Scalar,
        /// Bound above.
        high: Scalar,
    },
}

impl Generate {
    /// Fills `out` (C order, elements of `dtype`) with the box of the array that starts at `origin` and has `block` elements
    /// along each axis. `shape` is the whole array's.
    pub fn fill(&self, dtype: DType, shape: &[u64], origin: &[u64], block: &[usize], out: &mut [u8]) {
        match self {
            Generate::Full(value) => copy::fill(value, out),
            Generate::Arange { start, step } => dispatch!(numeric, dtype, T => arange::<T>(start, step, origin.first().copied().unwrap_or(0), out), else => {}),
            Generate::Uniform { seed, low, high } => rows(shape, origin, block, out, dtype.size(), |first, row| match dtype {
                DType::Float32 => uniform_f32(*seed, real(low) as f32, real(high) as f32, first, bytemuck::cast_slice_mut(row)),
                _ => uniform_f64(*seed, real(low), real(high), first, bytemuck::cast_slice_mut(row)),
            }),
        }
    }
}

fn real(value: &Scalar) -> f64 {
    value.cast(DType::Float64).get().unwrap_or_default()
}

/// `start + step·i` in the widest arithmetic of the dtype's kind, then cast: no error piles up along the axis.
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
        let (a, d) = (real(start), real(step));
        for (i, o) in out.chunks_exact_mut(size).enumerate() {
            o.copy_from_slice(Scalar::from_f64(T::DTYPE, a + d * (first + i as u64) as f64).bytes());
        }
    }
}

/// Calls `f` with the linear index of each row's first element and the row's bytes.
fn rows(shape: &[u64], origin: &[u64], block: &[usize], out: &mut [u8], size: usize, f: impl Fn(u64, &mut [u8])) {
    let Some((&n, outer)) = block.split_last() else { return f(0, out) };
    if n == 0 {
        return;
    }
    for (row, bytes) in out.chunks_exact_mut(n * size).enumerate() {
        let (mut rest, mut stride, mut linear) = (row, *shape.last().unwrap_or(&1), *origin.last().unwrap_or(&0));
        for (d, count) in outer.iter().enumerate().rev() {
            linear += (origin[d] + (rest % count) as u64) * stride;
            rest /= count;
            stride *= shape[d];
        }
        f(linear, bytes);
    }
}

/// Philox4x32-10: four random words for a 64-bit counter and a 64-bit key.
#[inline(always)]
fn philox(counter: u64, key: u64) -> [u32; 4] {
    let (mut c, mut k) = ([counter as u32, (counter >> 32) as u32, 0, 0], [key as u32, (key >> 32) as u32]);
    for _ in 0..10 {
        let a = u64::from(c[0]) * 0xD251_1F53;
        let b = u64::from(c[2]) * 0xCD9E_8D57;
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// Elements `first…` of a `float32` stream: element `i` is word `i % 4` of counter `i / 4`.
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

/// Elements `first…` of a `float64` stream: element `i` is half `i % 2` of counter `i / 2`.
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

/// Whole counters by `group`, the ragged ends element by element.
fn fill_words<T>(out: &mut [T], first: u64, lanes: usize, one: impl Fn(u64, usize) -> T, group: impl Fn(u64, &mut [T])) {
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

    #[test]
    fn values_do_not_depend_on_the_box() {
        for dtype in [DType::Float32, DType::Float64] {
            let random = Generate::Uniform { seed: 7, low: Scalar::new(-1.0), high: Scalar::new(3.0) };
            let size = dtype.size();
            let mut whole = Buffer::zeroed(5 * 7 * size);
            random.fill(dtype, &[5, 7], &[0, 0], &[5, 7], whole.bytes_mut());
            for (origin, block) in [([1, 2], [3, 4]), ([0, 6], [5, 1]), ([4, 0], [1, 7]), ([2, 3], [0, 2])] {
                let mut part = Buffer::zeroed(block[0] * block[1] * size);
                random.fill(dtype, &[5, 7], &origin.map(|o| o as u64), &block, part.bytes_mut());
                for r in 0..block[0] {
                    let (a, b) = (r * block[1] * size, ((origin[0] + r) * 7 + origin[1]) * size);
                    assert_eq!(part.bytes()[a..a + block[1] * size], whole.bytes()[b..b + block[1] * size]);
                }
            }
        }
    }
}
