//! Single values of any dtype, with an exact text form.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::dtype::{Bool, Complex64, Complex128, DType, Element};

/// A single element, such as a literal in an expression or a fill value.
///
/// Scalars are compared by their bytes: a NaN equals itself, and `-0.0` differs from `0.0`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "SerializedScalar", into = "SerializedScalar")]
pub struct Scalar {
    dtype: DType,
    bytes: [u8; 16],
}

impl Scalar {
    /// Creates a scalar of `T`'s dtype.
    pub fn new<T: Element>(value: T) -> Scalar {
        let mut bytes = [0; 16];
        bytes[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&value));
        Scalar { dtype: T::DTYPE, bytes }
    }

    /// Returns the scalar of all-zero bytes: 0, 0.0, or false.
    pub fn zero(dtype: DType) -> Scalar {
        Scalar { dtype, bytes: [0; 16] }
    }

    /// Creates a scalar from bytes in native order, or returns `None` if `value` is not of the
    /// dtype's size.
    pub fn from_bytes(dtype: DType, value: &[u8]) -> Option<Scalar> {
        let mut bytes = [0; 16];
        (value.len() == dtype.size()).then(|| {
            bytes[..value.len()].copy_from_slice(value);
            Scalar { dtype, bytes }
        })
    }

    /// Casts a real number to `dtype` as the standard's `astype` does (towards zero, saturating).
    pub fn from_f64(dtype: DType, value: f64) -> Scalar {
        Scalar::new(value).cast(dtype)
    }

    /// Returns the dtype.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Returns the bytes in native order.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.dtype.size()]
    }

    /// Returns true if every byte is zero.
    pub fn is_zero(&self) -> bool {
        self.bytes.iter().all(|b| *b == 0)
    }

    /// Returns the value as `T`, or `None` if `T` is not its dtype.
    pub fn get<T: Element>(&self) -> Option<T> {
        (T::DTYPE == self.dtype).then(|| bytemuck::pod_read_unaligned(self.bytes()))
    }

    /// Casts the value to another dtype.
    pub fn cast(&self, dtype: DType) -> Scalar {
        let mut out = Scalar::zero(dtype);
        crate::cast::cast(self.dtype, self.bytes(), dtype, &mut out.bytes[..dtype.size()]);
        out
    }
}

/// Conversions from the Rust types of Python's number types.
macro_rules! from_numbers {
    ($($from:ty => $to:ty),*) => { $(
        impl From<$from> for Scalar {
            fn from(value: $from) -> Self {
                Scalar::new(<$to>::from(value))
            }
        }
    )* };
}
from_numbers!(bool => Bool, i32 => i64, i64 => i64, f64 => f64, Complex128 => Complex128);

impl fmt::Debug for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}_{}", self.dtype)
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Bool(b)) = self.get() {
            return write!(f, "{}", b != 0);
        }
        crate::dispatch!(numeric, self.dtype, T => {
            match self.get::<T>() { Some(v) => write!(f, "{v}"), None => Ok(()) }
        }, else => Ok(()))
    }
}

/// The Zarr v3 fill-value encoding: numbers for integers, hexadecimal bit patterns for floats, and
/// pairs of bit patterns for complex numbers. JSON numbers lose bits of floats and exclude NaN.
#[derive(Serialize, Deserialize)]
struct SerializedScalar {
    dtype: DType,
    value: serde_json::Value,
}

impl From<Scalar> for SerializedScalar {
    fn from(s: Scalar) -> Self {
        use serde_json::Value;
        let f32_hex = |x: f32| Value::from(format!("0x{:08x}", x.to_bits()));
        let f64_hex = |x: f64| Value::from(format!("0x{:016x}", x.to_bits()));
        let read = s.bytes();
        let value = match s.dtype {
            DType::Bool => Value::from(read[0] != 0),
            DType::Int8 | DType::Int16 | DType::Int32 | DType::Int64 => {
                Value::from(s.cast(DType::Int64).get::<i64>().unwrap_or_default())
            }
            DType::UInt8 | DType::UInt16 | DType::UInt32 | DType::UInt64 => {
                Value::from(s.cast(DType::UInt64).get::<u64>().unwrap_or_default())
            }
            DType::Float32 => f32_hex(bytemuck::pod_read_unaligned(read)),
            DType::Float64 => f64_hex(bytemuck::pod_read_unaligned(read)),
            DType::Complex64 => {
                let c: Complex64 = bytemuck::pod_read_unaligned(read);
                Value::from(vec![f32_hex(c.re), f32_hex(c.im)])
            }
            DType::Complex128 => {
                let c: Complex128 = bytemuck::pod_read_unaligned(read);
                Value::from(vec![f64_hex(c.re), f64_hex(c.im)])
            }
        };
        SerializedScalar { dtype: s.dtype, value }
    }
}

impl TryFrom<SerializedScalar> for Scalar {
    type Error = String;

    fn try_from(text: SerializedScalar) -> Result<Self, String> {
        use serde_json::Value;
        let bad = || format!("invalid {} value `{}`", text.dtype, text.value);
        let hex = |v: &Value| {
            v.as_str()
                .and_then(|s| s.strip_prefix("0x"))
                .and_then(|s| u64::from_str_radix(s, 16).ok())
                .ok_or_else(bad)
        };
        let narrow = |v: &Value| {
            hex(v).and_then(|b| u32::try_from(b).map_err(|_| bad())).map(f32::from_bits)
        };
        let pair = || text.value.as_array().filter(|a| a.len() == 2).ok_or_else(bad);
        Ok(match text.dtype {
            DType::Bool => Scalar::new(Bool::from(text.value.as_bool().ok_or_else(bad)?)),
            DType::Int8 | DType::Int16 | DType::Int32 | DType::Int64 => {
                Scalar::new(text.value.as_i64().ok_or_else(bad)?).cast(text.dtype)
            }
            DType::UInt8 | DType::UInt16 | DType::UInt32 | DType::UInt64 => {
                Scalar::new(text.value.as_u64().ok_or_else(bad)?).cast(text.dtype)
            }
            DType::Float32 => Scalar::new(narrow(&text.value)?),
            DType::Float64 => Scalar::new(f64::from_bits(hex(&text.value)?)),
            DType::Complex64 => {
                Scalar::new(Complex64::new(narrow(&pair()?[0])?, narrow(&pair()?[1])?))
            }
            DType::Complex128 => Scalar::new(Complex128::new(
                f64::from_bits(hex(&pair()?[0])?),
                f64::from_bits(hex(&pair()?[1])?),
            )),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn serialization_is_exact(bytes: [u8; 16], which in 0..DType::ALL.len()) {
            let dtype = DType::ALL[which];
            let mut bytes = bytes;
            if dtype == DType::Bool { bytes[0] &= 1; }
            let scalar = Scalar::from_bytes(dtype, &bytes[..dtype.size()]).unwrap();
            let text = serde_json::to_string(&scalar).unwrap();
            prop_assert_eq!(serde_json::from_str::<Scalar>(&text).unwrap(), scalar);
        }
    }
}
