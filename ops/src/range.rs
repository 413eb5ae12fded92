//! The number of elements of a range, by exact arithmetic.

use freestone_kernels::dtype::Kind;
use freestone_kernels::{DType, Scalar};

use crate::promotion::whole;

/// `mantissa · 2^exponent`, exactly.
#[derive(Clone, Copy, Debug)]
struct Exact {
    mantissa: i128,
    exponent: i32,
}

impl Exact {
    /// The value of a real, finite number.
    fn of(number: Scalar) -> Option<Exact> {
        match number.dtype().kind() {
            Kind::Signed | Kind::Unsigned => Some(Exact { mantissa: whole(number)?, exponent: 0 }),
            Kind::Float => {
                let value = number.cast(DType::Float64).get::<f64>().filter(|x| x.is_finite())?;
                let (bits, fraction) = (value.to_bits(), value.to_bits() & ((1 << 52) - 1));
                let (mantissa, exponent) = match (bits >> 52) & 0x7ff {
                    0 => (fraction, -1074),
                    biased => (fraction | 1 << 52, biased as i32 - 1075),
                };
                Some(Exact {
                    mantissa: if value < 0.0 { -i128::from(mantissa) } else { mantissa.into() },
                    exponent,
                })
            }
            Kind::Bool | Kind::Complex => None,
        }
    }

    fn times(self, factor: i128) -> Exact {
        Exact { mantissa: self.mantissa * factor, ..self }
    }
}

/// The number of words of a sum in two's complement: exponents span 2046 bits, mantissas 128 bits,
/// and a sum has three terms.
const WORDS: usize = 36;

/// Returns true if a sum is negative.
fn is_negative(terms: [Exact; 3]) -> bool {
    let least = terms.iter().map(|t| t.exponent).min().unwrap_or(0);
    let mut sum = [0u64; WORDS];
    for Exact { mantissa, exponent } in terms {
        let shift = (exponent - least) as usize;
        let (skip, bits) = (shift / 64, shift % 64);
        let word = |i: usize| (mantissa >> (64 * i).min(127)) as u64;
        let mut carry = false;
        for (i, total) in sum.iter_mut().skip(skip).enumerate() {
            let below = if bits == 0 || i == 0 { 0 } else { word(i - 1) >> (64 - bits) };
            let (part, first) = total.overflowing_add(word(i) << bits | below);
            let (part, second) = part.overflowing_add(carry.into());
            (*total, carry) = (part, first | second);
        }
    }
    sum[WORDS - 1] >> 63 == 1
}

/// The exclusive upper bound of lengths of ranges.
const MAX_LENGTH: i128 = 1 << 59;

/// Returns `⌈(stop − start) / step⌉` of the exact values, at least 0; `None` if it is not finite or
/// reaches `MAX_LENGTH`.
pub(crate) fn length(start: Scalar, stop: Scalar, step: Scalar) -> Option<u64> {
    let (mut start, mut stop, mut step) = (Exact::of(start)?, Exact::of(stop)?, Exact::of(step)?);
    if step.mantissa == 0 {
        return None;
    }
    if step.mantissa < 0 {
        (start, stop, step) = (start.times(-1), stop.times(-1), step.times(-1));
    }
    // The first index whose value is not before `stop`.
    let is_before = |i: i128| is_negative([start, step.times(i), stop.times(-1)]);
    let (mut low, mut high) = (0, MAX_LENGTH);
    while low < high {
        let middle = low + (high - low) / 2;
        if is_before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    (low < MAX_LENGTH).then_some(low as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of `start stop step length`, computed by Python's `fractions.Fraction`.
    const TABLE: &str = include_str!("../../tests/data/ranges.txt");

    fn number(text: &str) -> Scalar {
        let integer = || {
            text.parse::<i64>().map(Scalar::new).or_else(|_| text.parse::<u64>().map(Scalar::new))
        };
        integer().unwrap_or_else(|_| Scalar::new(text.parse::<f64>().unwrap()))
    }

    #[test]
    fn lengths_are_exact() {
        let mut n = 0;
        for row in TABLE.lines().filter(|l| !l.starts_with('#')) {
            let [start, stop, step, expected] =
                row.split('\t').collect::<Vec<_>>().try_into().unwrap();
            assert_eq!(
                length(number(start), number(stop), number(step)),
                expected.parse().ok(),
                "{row}"
            );
            n += 1;
        }
        assert!(n > 500, "rows are missing");
    }
}
