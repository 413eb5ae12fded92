//! Operators of arrays and numbers: `+ - * / % & | ^ << >>`, `-x`, `!x`, and `+=` and the like.

use std::ops;

use freestone_kernels::dtype::{Complex64, Complex128};
use freestone_kernels::{BinaryOp, Scalar, UnaryOp};

use crate::array::Array;
use crate::elementwise::{Operand, binary, unary};

macro_rules! operator {
    ($trait:ident $method:ident $op:ident, $left:ty, $right:ty) => {
        impl ops::$trait<$right> for $left {
            type Output = Array;
            #[track_caller]
            fn $method(self, other: $right) -> Array {
                binary(BinaryOp::$op, self.into(), other.into())
            }
        }
    };
}

/// A number as the right operand, of any dtype.
///
/// Operators are generic over it, so that the type of `(&x * 2.0).mean(0)` does not depend on the
/// float type of `2.0`. As left operands, where Rust allows no generic implementation, numbers are
/// `i32`, `f64`, `bool` or complex.
pub trait Number: Into<Operand> {}

macro_rules! number {
    ($($type:ty),*) => { $( impl Number for $type {} )* };
}
number!(bool, i8, i16, i32, i64, u8, u16, u32, u64, f32, f64, Complex64, Complex128, Scalar);

macro_rules! with_number {
    ($trait:ident $method:ident $op:ident, $left:ty) => {
        impl<N: Number> ops::$trait<N> for $left {
            type Output = Array;
            #[track_caller]
            fn $method(self, other: N) -> Array {
                binary(BinaryOp::$op, self.into(), other.into())
            }
        }
    };
}

macro_rules! number_at_left {
    ($trait:ident $method:ident $op:ident: $($number:ty),*) => { $(
        operator!($trait $method $op, $number, &Array);
        operator!($trait $method $op, $number, Array);
    )* };
}

macro_rules! assign {
    ($trait:ident $method:ident $op:ident, $right:ty $(, $generic:ident)?) => {
        impl $(<$generic: Number>)? ops::$trait<$right> for Array {
            #[track_caller]
            fn $method(&mut self, other: $right) {
                *self = binary(BinaryOp::$op, (&*self).into(), other.into());
            }
        }
    };
}

macro_rules! operators {
    ($($trait:ident $method:ident $assign:ident $assign_method:ident $op:ident;)*) => { $(
        operator!($trait $method $op, &Array, &Array);
        operator!($trait $method $op, Array, Array);
        operator!($trait $method $op, Array, &Array);
        operator!($trait $method $op, &Array, Array);
        with_number!($trait $method $op, &Array);
        with_number!($trait $method $op, Array);
        number_at_left!($trait $method $op: bool, i32, f64, Complex64, Complex128);
        assign!($assign $assign_method $op, Array);
        assign!($assign $assign_method $op, &Array);
        assign!($assign $assign_method $op, N, N);
    )* };
}

operators! {
    Add add AddAssign add_assign Add;
    Sub sub SubAssign sub_assign Subtract;
    Mul mul MulAssign mul_assign Multiply;
    Div div DivAssign div_assign Divide;
    Rem rem RemAssign rem_assign Remainder;
    BitAnd bitand BitAndAssign bitand_assign BitwiseAnd;
    BitOr bitor BitOrAssign bitor_assign BitwiseOr;
    BitXor bitxor BitXorAssign bitxor_assign BitwiseXor;
    Shl shl ShlAssign shl_assign BitwiseLeftShift;
    Shr shr ShrAssign shr_assign BitwiseRightShift;
}

macro_rules! prefixes {
    ($($trait:ident $method:ident $op:ident $type:ty;)*) => { $(
        impl ops::$trait for $type {
            type Output = Array;
            #[track_caller]
            fn $method(self) -> Array {
                unary(UnaryOp::$op, &self)
            }
        }
    )* };
}

prefixes! {
    Neg neg Negative Array;
    Neg neg Negative &Array;
    Not not BitwiseInvert Array;
    Not not BitwiseInvert &Array;
}

#[cfg(test)]
mod tests {
    use freestone_kernels::DType;

    #[test]
    fn numbers_of_all_dtypes_are_operands() {
        let x = crate::ones([4], DType::Float32, [2]);
        for array in [&x * 2, 2 * &x, &x + 1.5f32, 1.0 - &x, &x / 3u64, &x + true] {
            assert_eq!(array.dtype().unwrap(), DType::Float32);
        }
        let mut y = &x * 1.0;
        y += 2;
        y *= &x;
        assert_eq!((y.dtype().unwrap(), y.shape().unwrap()), (DType::Float32, vec![4]));
        y += crate::ones([3], DType::Float32, [3]);
        assert!(y.check().unwrap_err().to_string().contains("operators.rs"));
    }
}
