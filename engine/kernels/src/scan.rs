//! Cumulative sums and products along an axis, block by block.

use serde::{Deserialize, Serialize};

use crate::apply::Numeric;
use crate::copy;
use crate::dispatch;
use crate::dtype::{Complex64, Complex128, DType, Kind, no_loop};
use crate::reduce::{ReduceOp, sum_identity};
use crate::scalar::Scalar;

/// A cumulative operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScanOp {
    /// The sum.
    Sum,
    /// The product.
    Prod,
}

impl ScanOp {
    /// Returns the dtype of the carry from block to block, or `None` if undefined. Floats are added
    /// and multiplied in twice their precision, up to 64 bits.
    pub fn carrier(self, values: DType) -> Option<DType> {
        match values.kind() {
            Kind::Bool => None,
            Kind::Float => Some(DType::Float64),
            Kind::Complex => Some(DType::Complex128),
            _ => Some(values),
        }
    }

    /// Returns the reduction that computes the carries.
    pub fn fold(self) -> ReduceOp {
        match self {
            ScanOp::Sum => ReduceOp::Sum,
            ScanOp::Prod => ReduceOp::Prod,
        }
    }

    /// Fills carries with their value before the first element.
    pub fn start(self, carrier: DType, carries: &mut [u8]) {
        match self {
            ScanOp::Sum => copy::fill(&sum_identity(carrier), carries),
            ScanOp::Prod => copy::fill(&Scalar::new(1i64).cast(carrier), carries),
        }
    }

    /// Replaces a block's values, `outer × n × inner` in C order, by cumulative values along the
    /// middle axis, and updates the carries (`outer × inner`). If `exclusive`, each result excludes
    /// its own element.
    ///
    /// Cost: one pass.
    pub fn run(
        self,
        dtype: DType,
        [outer, n, inner]: [usize; 3],
        values: &mut [u8],
        carries: &mut [u8],
        exclusive: bool,
    ) {
        dispatch!(numeric, dtype, T => {
            let values: &mut [T] = bytemuck::cast_slice_mut(values);
            let carries = bytemuck::cast_slice_mut(carries);
            <T as Carried>::run(self, [outer, n, inner], values, carries, exclusive)
        }, else => no_loop(&self, dtype));
    }
}

/// A dtype with the type of its carries.
trait Carried: Numeric + bytemuck::Pod {
    type Carrier: Numeric + bytemuck::Pod;
    fn widen(self) -> Self::Carrier;
    fn narrow(carrier: Self::Carrier) -> Self;

    fn run(
        op: ScanOp,
        shape: [usize; 3],
        values: &mut [Self],
        carries: &mut [Self::Carrier],
        exclusive: bool,
    ) {
        match op {
            ScanOp::Sum => run(shape, values, carries, exclusive, |a: Self::Carrier, b| a.plus(b)),
            ScanOp::Prod => {
                run(shape, values, carries, exclusive, |a: Self::Carrier, b| a.product(b))
            }
        }
    }
}

fn run<T: Carried>(
    [outer, n, inner]: [usize; 3],
    values: &mut [T],
    carries: &mut [T::Carrier],
    exclusive: bool,
    f: impl Fn(T::Carrier, T::Carrier) -> T::Carrier + Copy,
) {
    if n * inner == 0 {
        return;
    }
    if inner == 1 {
        for (row, carry) in values.chunks_exact_mut(n).zip(carries).take(outer) {
            for value in row {
                let next = f(*carry, value.widen());
                *value = T::narrow(if exclusive { *carry } else { next });
                *carry = next;
            }
        }
        return;
    }
    for (block, carry) in
        values.chunks_exact_mut(n * inner).zip(carries.chunks_exact_mut(inner)).take(outer)
    {
        for row in block.chunks_exact_mut(inner) {
            for (value, carry) in row.iter_mut().zip(carry.iter_mut()) {
                let next = f(*carry, value.widen());
                *value = T::narrow(if exclusive { *carry } else { next });
                *carry = next;
            }
        }
    }
}

macro_rules! carried {
    ($($t:ty => $c:ty, $widen:expr, $narrow:expr;)*) => { $(impl Carried for $t {
        type Carrier = $c;
        #[inline(always)] fn widen(self) -> $c { let f: fn($t) -> $c = $widen; f(self) }
        #[inline(always)] fn narrow(carrier: $c) -> $t { let f: fn($c) -> $t = $narrow; f(carrier) }
    })* };
}
carried! {
    i8 => i8, |x| x, |x| x;
    i16 => i16, |x| x, |x| x;
    i32 => i32, |x| x, |x| x;
    i64 => i64, |x| x, |x| x;
    u8 => u8, |x| x, |x| x;
    u16 => u16, |x| x, |x| x;
    u32 => u32, |x| x, |x| x;
    u64 => u64, |x| x, |x| x;
    f32 => f64, f64::from, |x| x as f32;
    f64 => f64, |x| x, |x| x;
    Complex64 => Complex128,
        |x| Complex128::new(x.re.into(), x.im.into()),
        |x| Complex64::new(x.re as f32, x.im as f32);
    Complex128 => Complex128, |x| x, |x| x;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The initial carry changes no first value: zeros keep their signs, and a complex infinity
    /// gets no NaN.
    #[test]
    fn the_initial_carry_is_an_identity() {
        let check = |op: ScanOp, values: &[f64], dtype: DType, expect: &[f64]| {
            let mut out = values.to_vec();
            let carrier = op.carrier(dtype).unwrap();
            let mut carry = vec![0u64; carrier.size() / 8];
            let n = values.len() * 8 / dtype.size();
            op.start(carrier, bytemuck::cast_slice_mut(&mut carry));
            op.run(
                dtype,
                [1, n, 1],
                bytemuck::cast_slice_mut(&mut out),
                bytemuck::cast_slice_mut(&mut carry),
                false,
            );
            let same = out
                .iter()
                .zip(expect)
                .all(|(x, y)| x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan()));
            assert!(same, "{op:?} of {dtype} {values:?}: {out:?}, not {expect:?}");
        };
        let inf = f64::INFINITY;
        check(ScanOp::Sum, &[-0.0, -0.0, 0.0, -0.0], DType::Float64, &[-0.0, -0.0, 0.0, 0.0]);
        check(ScanOp::Sum, &[-0.0, -0.0, -0.0, 0.0], DType::Complex128, &[-0.0, -0.0, -0.0, 0.0]);
        check(ScanOp::Prod, &[-0.0, -1.0], DType::Float64, &[-0.0, 0.0]);
        check(ScanOp::Prod, &[inf, 1.0], DType::Complex128, &[inf, 1.0]);
        check(ScanOp::Prod, &[-0.0, -0.0], DType::Complex128, &[-0.0, -0.0]);
    }

    proptest! {
        /// Two consecutive blocks give the results of a plain loop over the whole.
        #[test]
        fn carries_connect_blocks(
            outer in 1usize..4,
            n in 1usize..20,
            inner in 1usize..5,
            cut in 0usize..20,
            exclusive: bool,
            product: bool,
        ) {
            let cut = cut.min(n);
            let op = if product { ScanOp::Prod } else { ScanOp::Sum };
            let whole: Vec<i64> = (0..(outer * n * inner) as i64).map(|i| i % 5 - 2).collect();
            let (mut expect, mut out) = (whole.clone(), whole.clone());
            for o in 0..outer { for i in 0..inner {
                let mut carry = i64::from(product);
                for t in 0..n {
                    let at = (o * n + t) * inner + i;
                    let x = whole[at];
                    let next = if product { carry.wrapping_mul(x) } else { carry + x };
                    expect[at] = if exclusive { carry } else { next };
                    carry = next;
                }
            } }
            let mut carries = vec![0i64; outer * inner];
            op.start(DType::Int64, bytemuck::cast_slice_mut(&mut carries));
            for (first, len) in [(0, cut), (cut, n - cut)] {
                let at = |o: usize| (o * n + first) * inner..(o * n + first + len) * inner;
                let mut block: Vec<i64> = (0..outer).flat_map(|o| whole[at(o)].to_vec()).collect();
                let values = bytemuck::cast_slice_mut(&mut block);
                let carries = bytemuck::cast_slice_mut(&mut carries);
                op.run(DType::Int64, [outer, len, inner], values, carries, exclusive);
                let size = len * inner;
                for o in 0..outer {
                    out[at(o)].copy_from_slice(&block[o * size..(o + 1) * size]);
                }
            }
            prop_assert_eq!(out, expect);
        }
    }
}
