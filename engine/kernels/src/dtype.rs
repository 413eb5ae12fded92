//! The closed list of element types, and dispatch over it.
//!
//! One list, and one dispatch macro per bound whose body is one call of a generic function: a
//! kernel is written once, for `T: Bound`, and [`dispatch!`](crate::dispatch) and its siblings
//! choose `T` from a [`DType`] at run time.

use std::fmt;

use bytemuck::{Pod, Zeroable};
use num_complex::Complex;
use serde::{Deserialize, Serialize};

/// A truth value as stored: one byte, 0 or 1 (any other byte reads as true).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Bool(pub u8);

impl From<bool> for Bool {
    fn from(value: bool) -> Self {
        Bool(u8::from(value))
    }
}

/// Single-precision complex number.
pub type Complex64 = Complex<f32>;
/// Double-precision complex number.
pub type Complex128 = Complex<f64>;

/// Element type of an array, with the Array API standard's (and Zarr v3's) names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum DType {
    Bool,
    Int8,
    Int16,
    Int32,
    Int64,
    UInt8,
    UInt16,
    UInt32,
    UInt64,
    Float32,
    Float64,
    Complex64,
    Complex128,
}

/// What a dtype is, for promotion and for the domain of functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    Bool,
    Signed,
    Unsigned,
    Float,
    Complex,
}

impl DType {
    /// All dtypes, in the order of the standard's text.
    pub const ALL: [DType; 13] = [
        DType::Bool,
        DType::Int8,
        DType::Int16,
        DType::Int32,
        DType::Int64,
        DType::UInt8,
        DType::UInt16,
        DType::UInt32,
        DType::UInt64,
        DType::Float32,
        DType::Float64,
        DType::Complex64,
        DType::Complex128,
    ];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::Bool | DType::Int8 | DType::UInt8 => 1,
            DType::Int16 | DType::UInt16 => 2,
            DType::Int32 | DType::UInt32 | DType::Float32 => 4,
            DType::Int64 | DType::UInt64 | DType::Float64 | DType::Complex64 => 8,
            DType::Complex128 => 16,
        }
    }

    /// The kind that decides promotion.
    pub const fn kind(self) -> Kind {
        match self {
            DType::Bool => Kind::Bool,
            DType::Int8 | DType::Int16 | DType::Int32 | DType::Int64 => Kind::Signed,
            DType::UInt8 | DType::UInt16 | DType::UInt32 | DType::UInt64 => Kind::Unsigned,
            DType::Float32 | DType::Float64 => Kind::Float,
            DType::Complex64 | DType::Complex128 => Kind::Complex,
        }
    }

    /// True for integers of either sign.
    pub const fn is_integer(self) -> bool {
        matches!(self.kind(), Kind::Signed | Kind::Unsigned)
    }

    /// True for integers and real floats: what has an order.
    pub const fn is_real(self) -> bool {
        matches!(self.kind(), Kind::Signed | Kind::Unsigned | Kind::Float)
    }

    /// The name in the Array API standard and in Zarr v3, as in `float32`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::Bool => "bool",
            DType::Int8 => "int8",
            DType::Int16 => "int16",
            DType::Int32 => "int32",
            DType::Int64 => "int64",
            DType::UInt8 => "uint8",
            DType::UInt16 => "uint16",
            DType::UInt32 => "uint32",
            DType::UInt64 => "uint64",
            DType::Float32 => "float32",
            DType::Float64 => "float64",
            DType::Complex64 => "complex64",
            DType::Complex128 => "complex128",
        }
    }

    /// The dtype of that name, if it is on the list.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }

    /// The dtype that both operands are cast to.
    ///
    /// Source: the Array API standard's promotion table. Where that leaves a pair open (a bool or
    /// an integer with another kind, `uint64` with a signed integer), NumPy's answer is taken,
    /// which is the least dtype that holds both, or `float64`.
    pub fn promote(self, other: DType) -> DType {
        use DType as D;
        let (a, b) = if self.kind() <= other.kind() { (self, other) } else { (other, self) };
        let is_small = |integer: D| integer.size() <= 2;
        match (a.kind(), b.kind()) {
            (Kind::Bool, _) => b,
            (left, right) if left == right => {
                if a.size() >= b.size() {
                    a
                } else {
                    b
                }
            }
            (Kind::Signed, Kind::Unsigned) => match a.size().max(2 * b.size()) {
                2 => D::Int16,
                4 => D::Int32,
                8 => D::Int64,
                _ => D::Float64,
            },
            (Kind::Float, _) => {
                if a == D::Float64 || b == D::Complex128 {
                    D::Complex128
                } else {
                    D::Complex64
                }
            }
            (_, Kind::Float) => {
                if is_small(a) {
                    b
                } else {
                    D::Float64
                }
            }
            _ => {
                if is_small(a) {
                    b
                } else {
                    D::Complex128
                }
            }
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A Rust type that stands for a [`DType`].
pub trait Element: Pod + Default + PartialEq + Send + Sync + fmt::Debug {
    /// Its place on the list.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($t:ty => $d:ident),*) => { $(impl Element for $t { const DTYPE: DType = DType::$d; })* };
}
elements!(Bool => Bool, i8 => Int8, i16 => Int16, i32 => Int32, i64 => Int64, u8 => UInt8, u16 => UInt16, u32 => UInt32, u64 => UInt64,
    f32 => Float32, f64 => Float64, Complex64 => Complex64, Complex128 => Complex128);

/// Fails where debug assertions are on: an expression or a plan that was checked never asks for a
/// loop that is not there, which would leave zeros.
#[cold]
pub(crate) fn no_loop(what: &dyn fmt::Debug, dtype: DType) {
    debug_assert!(false, "invariant `checked dtypes`: {what:?} has no loop for {dtype}");
}

/// Calls the body with `$t` standing for the Rust type of a dtype, for the kinds named first.
///
/// `dispatch!(real, dtype, T => f::<T>(x), else => y)`; the kinds are `all`, `numeric` (without
/// bool), `real`, `integer`, `float`, `inexact` (floats and complex).
#[macro_export]
macro_rules! dispatch {
    (@arms $d:expr, $t:ident => $body:expr, $else:expr, $($variant:ident = $ty:ty),*) => {
        match $d {
            $($crate::dtype::DType::$variant => { type $t = $ty; $body })*
            #[allow(unreachable_patterns)]
            _ => $else,
        }
    };
    (all, $d:expr, $t:ident => $body:expr) => {
        $crate::dispatch!(@arms $d, $t => $body, unreachable!(), Bool = $crate::dtype::Bool, Int8 = i8, Int16 = i16, Int32 = i32, Int64 = i64,
            UInt8 = u8, UInt16 = u16, UInt32 = u32, UInt64 = u64, Float32 = f32, Float64 = f64,
            Complex64 = $crate::dtype::Complex64, Complex128 = $crate::dtype::Complex128)
    };
    (numeric, $d:expr, $t:ident => $body:expr, else => $else:expr) => {
        $crate::dispatch!(@arms $d, $t => $body, $else, Int8 = i8, Int16 = i16, Int32 = i32, Int64 = i64,
            UInt8 = u8, UInt16 = u16, UInt32 = u32, UInt64 = u64, Float32 = f32, Float64 = f64,
            Complex64 = $crate::dtype::Complex64, Complex128 = $crate::dtype::Complex128)
    };
    (real, $d:expr, $t:ident => $body:expr, else => $else:expr) => {
        $crate::dispatch!(@arms $d, $t => $body, $else, Int8 = i8, Int16 = i16, Int32 = i32, Int64 = i64,
            UInt8 = u8, UInt16 = u16, UInt32 = u32, UInt64 = u64, Float32 = f32, Float64 = f64)
    };
    (integer, $d:expr, $t:ident => $body:expr, else => $else:expr) => {
        $crate::dispatch!(@arms $d, $t => $body, $else, Int8 = i8, Int16 = i16, Int32 = i32, Int64 = i64,
            UInt8 = u8, UInt16 = u16, UInt32 = u32, UInt64 = u64)
    };
    (float, $d:expr, $t:ident => $body:expr, else => $else:expr) => {
        $crate::dispatch!(@arms $d, $t => $body, $else, Float32 = f32, Float64 = f64)
    };
    (inexact, $d:expr, $t:ident => $body:expr, else => $else:expr) => {
        $crate::dispatch!(@arms $d, $t => $body, $else, Float32 = f32, Float64 = f64,
            Complex64 = $crate::dtype::Complex64, Complex128 = $crate::dtype::Complex128)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(a: DType, b: DType, expect: DType) {
        assert_eq!(a.promote(b), expect, "{a} with {b}");
        assert_eq!(b.promote(a), expect, "{b} with {a}");
    }

    #[test]
    fn promotion_follows_the_standard_and_numpy() {
        use DType::*;
        check(Int8, Int16, Int16);
        check(UInt8, Int8, Int16);
        check(UInt16, Int8, Int32);
        check(UInt32, Int64, Int64);
        check(UInt64, Int8, Float64);
        check(UInt8, UInt64, UInt64);
        check(Float32, Float64, Float64);
        check(Float32, Complex64, Complex64);
        check(Float64, Complex64, Complex128);
        check(Int16, Float32, Float32);
        check(Int32, Float32, Float64);
        check(Int64, Complex64, Complex128);
        check(UInt64, Float64, Float64);
        check(Bool, Int8, Int8);
        check(Bool, Complex64, Complex64);
        for d in DType::ALL {
            check(d, d, d);
            assert_eq!(DType::from_name(d.name()), Some(d));
        }
    }
}
