//! Arguments and results of functions.

use freestone_kernels::{DType, Scalar};

use freestone_ops::{Array, Error};

/// An argument or a result of a function.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Value {
    Array(Array),
    Bool(bool),
    Int(i128),
    Float(f64),
    Complex(f64, f64),
    DType(DType),
    None,
    /// A tuple or a list.
    Sequence(Vec<Value>),
    Text(String),
}

impl Value {
    /// Describes the value for messages: `the number 3`, `an array`.
    pub fn describe(&self) -> String {
        match self {
            Value::Array(_) => "an array".into(),
            Value::Bool(b) => if *b { "True" } else { "False" }.into(),
            Value::Int(i) => format!("the number {i}"),
            Value::Float(x) => format!("the number {x:?}"),
            Value::Complex(re, im) => format!("the number {re}{im:+}j"),
            Value::DType(d) => format!("the dtype {d}"),
            Value::None => "None".into(),
            Value::Sequence(items) => format!("a sequence of {}", items.len()),
            Value::Text(text) => format!("the text '{text}'"),
        }
    }

    /// Returns the first error of an array in the value.
    ///
    /// # Errors
    /// The error of the array's expression.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self {
            Value::Array(array) => array.check(),
            Value::Sequence(items) => items.iter().try_for_each(Value::check),
            _ => Ok(()),
        }
    }

    /// Returns true for bools and numbers.
    pub fn is_number(&self) -> bool {
        matches!(self, Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Complex(..))
    }

    /// Returns a number in the widest dtype of its kind.
    pub(crate) fn scalar(&self) -> Option<Result<Scalar, Error>> {
        Some(match self {
            Value::Bool(b) => Ok(Scalar::new(freestone_kernels::dtype::Bool::from(*b))),
            Value::Int(i) => match (i64::try_from(*i), u64::try_from(*i)) {
                (Ok(i), _) => Ok(Scalar::new(i)),
                (_, Ok(u)) => Ok(Scalar::new(u)),
                _ => Err(Error::Argument(format!("{i} exceeds 64 bits"))),
            },
            Value::Float(x) => Ok(Scalar::new(*x)),
            Value::Complex(re, im) => {
                Ok(Scalar::new(freestone_kernels::dtype::Complex128::new(*re, *im)))
            }
            _ => return None,
        })
    }
}

/// Returns the constant with that name: one of the standard, a dtype, `True`, `False` or `None`.
pub fn constant(name: &str) -> Option<Value> {
    Some(match name {
        "True" => Value::Bool(true),
        "False" => Value::Bool(false),
        "None" | "newaxis" => Value::None,
        "pi" => Value::Float(std::f64::consts::PI),
        "e" => Value::Float(std::f64::consts::E),
        "inf" => Value::Float(f64::INFINITY),
        "nan" => Value::Float(f64::NAN),
        _ => Value::DType(DType::from_name(name)?),
    })
}

/// Returns the names of all constants.
pub fn constants() -> impl Iterator<Item = &'static str> {
    ["True", "False", "None", "newaxis", "pi", "e", "inf", "nan"]
        .into_iter()
        .chain(DType::ALL.map(DType::name))
}
