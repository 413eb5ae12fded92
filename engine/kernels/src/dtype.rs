//! The closed list of element types, and dispatch over it.
//!
//! A kernel is written once, as a generic function of `T: Bound`.
//! [`dispatch!`](crate::dispatch) selects `T` from a [`DType`] at run time.

use std::fmt;
use std::str::FromStr;

use bytemuck::{Pod, Zeroable};
use num_complex::Complex;
use serde::{Deserialize, Serialize};

/// A stored bool: one byte, 0 or 1. Any other byte reads as true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Bool(pub u8);

impl From<bool> for Bool {
    fn from(value: bool) -> Self {
        Bool(u8::from(value))
    }
}

impl From<Bool> for bool {
    fn from(value: Bool) -> Self {
        value.0 != 0
    }
}

/// A single-precision complex number.
pub type Complex64 = Complex<f32>;
/// A double-precision complex number.
pub type Complex128 = Complex<f64>;

/// The element type of an array, named as in the Array API standard and Zarr v3.
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

/// The kind of a dtype, for promotion and for the domains of functions.
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
    /// All dtypes, in the order of the standard.
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

    /// Returns the number of bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::Bool | DType::Int8 | DType::UInt8 => 1,
            DType::Int16 | DType::UInt16 => 2,
            DType::Int32 | DType::UInt32 | DType::Float32 => 4,
            DType::Int64 | DType::UInt64 | DType::Float64 | DType::Complex64 => 8,
            DType::Complex128 => 16,
        }
    }

    /// Returns the kind, which determines promotion.
    pub const fn kind(self) -> Kind {
        match self {
            DType::Bool => Kind::Bool,
            DType::Int8 | DType::Int16 | DType::Int32 | DType::Int64 => Kind::Signed,
            DType::UInt8 | DType::UInt16 | DType::UInt32 | DType::UInt64 => Kind::Unsigned,
            DType::Float32 | DType::Float64 => Kind::Float,
            DType::Complex64 | DType::Complex128 => Kind::Complex,
        }
    }

    /// Returns true for signed and unsigned integers.
    pub const fn is_integer(self) -> bool {
        matches!(self.kind(), Kind::Signed | Kind::Unsigned)
    }

    /// Returns true for integers and real floats: the ordered dtypes.
    pub const fn is_real(self) -> bool {
        matches!(self.kind(), Kind::Signed | Kind::Unsigned | Kind::Float)
    }

    /// Returns the name in the Array API standard and in Zarr v3, such as `float32`.
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

    /// Returns the dtype of a name, or `None` if there is none.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Returns the dtype that both operands are cast to.
    ///
    /// Source: the promotion table of the Array API standard. For pairs that the standard leaves
    /// open (a bool or an integer with another kind, `uint64` with a signed integer), the result is
    /// NumPy's: the smallest dtype that holds both, or `float64`.
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

/// The error of a text that is not the name of a dtype.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseDTypeError {
    text: String,
}

impl fmt::Display for ParseDTypeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = DType::ALL.map(DType::name).join(", ");
        write!(f, "invalid dtype `{}`: expected one of {names}", self.text)
    }
}

impl std::error::Error for ParseDTypeError {}

impl FromStr for DType {
    type Err = ParseDTypeError;

    fn from_str(text: &str) -> Result<DType, ParseDTypeError> {
        DType::from_name(text).ok_or_else(|| ParseDTypeError { text: text.to_owned() })
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The Rust type of a [`DType`].
pub trait Element: Pod + Default + PartialEq + Send + Sync + fmt::Debug {
    /// The dtype.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($t:ty => $d:ident),*) => { $(impl Element for $t { const DTYPE: DType = DType::$d; })* };
}
elements!(
    Bool => Bool, i8 => Int8, i16 => Int16, i32 => Int32, i64 => Int64,
    u8 => UInt8, u16 => UInt16, u32 => UInt32, u64 => UInt64,
    f32 => Float32, f64 => Float64, Complex64 => Complex64, Complex128 => Complex128
);

/// Fails in debug builds. A checked expression or plan never requests a missing loop; a release
/// build would leave zeros.
#[cold]
pub(crate) fn no_loop(what: &dyn fmt::Debug, dtype: DType) {
    debug_assert!(false, "invariant `checked dtypes`: {what:?} has no loop for {dtype}");
}

/// Evaluates an expression with `$t` as the Rust type of a dtype, or `else` for dtypes of other
/// kinds.
///
/// Usage: `dispatch!(real, dtype, T => f::<T>(x), else => y)`. The kinds are `all`, `numeric`
/// (without bool), `real`, `integer`, `float`, and `inexact` (floats and complex).
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
        $crate::dispatch!(@arms $d, $t => $body, unreachable!(), Bool = $crate::dtype::Bool,
            Int8 = i8, Int16 = i16, Int32 = i32, Int64 = i64,
            UInt8 = u8, UInt16 = u16, UInt32 = u32, UInt64 = u64, Float32 = f32, Float64 = f64,
            Complex64 = $crate::dtype::Complex64, Complex128 = $crate::dtype::Complex128)
    };
    (numeric, $d:expr, $t:ident => $body:expr, else => $else:expr) => {
        $crate::dispatch!(@arms $d, $t => $body, $else,
            Int8 = i8, Int16 = i16, Int32 = i32, Int64 = i64,
            UInt8 = u8, UInt16 = u16, UInt32 = u32, UInt64 = u64, Float32 = f32, Float64 = f64,
            Complex64 = $crate::dtype::Complex64, Complex128 = $crate::dtype::Complex128)
    };
    (real, $d:expr, $t:ident => $body:expr, else => $else:expr) => {
        $crate::dispatch!(@arms $d, $t => $body, $else,
            Int8 = i8, Int16 = i16, Int32 = i32, Int64 = i64,
            UInt8 = u8, UInt16 = u16, UInt32 = u32, UInt64 = u64, Float32 = f32, Float64 = f64)
    };
    (integer, $d:expr, $t:ident => $body:expr, else => $else:expr) => {
        $crate::dispatch!(@arms $d, $t => $body, $else,
            Int8 = i8, Int16 = i16, Int32 = i32, Int64 = i64,
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
