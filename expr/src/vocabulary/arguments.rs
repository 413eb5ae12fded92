//! Arguments of a call, by the name of their parameter and the kind that is needed.

use freestone_kernels::{DType, Scalar};
use freestone_ops::reduce::Axes;
use freestone_ops::{Array, Error, Operand, default_chunks};

use super::signature::{Bound, Given};
use super::{CallError, Value};

/// The arguments of a call; each getter names a parameter of the function's signature.
#[derive(Clone, Debug)]
pub struct Arguments {
    pub(super) function: &'static str,
    pub(super) bound: Vec<Bound>,
}

impl Arguments {
    fn bound(&self, name: &str) -> Result<&Bound, CallError> {
        self.bound.iter().find(|b| b.name == name).ok_or_else(|| {
            CallError::Array(Error::Argument(format!("{} has no parameter {name}", self.function)))
        })
    }

    fn wrong(&self, name: &str, expected: &str) -> CallError {
        match self.bound(name) {
            Ok(b) => {
                let message = format!(
                    "{name} is {}, but {} needs {expected}",
                    b.value.describe(),
                    self.function
                );
                CallError::Kind { message, parameter: b.name, given: b.given.clone() }
            }
            Err(e) => e,
        }
    }

    /// An error about one argument.
    pub fn refuse(&self, name: &'static str, message: impl Into<String>) -> CallError {
        let given = self.bound(name).map_or(Given::Default, |b| b.given.clone());
        CallError::Kind { message: message.into(), parameter: name, given }
    }

    /// Whatever it is.
    ///
    /// # Errors
    /// Where the signature has no such parameter, which is a defect of the table; so it is with all
    /// getters.
    pub fn value(&self, name: &str) -> Result<&Value, CallError> {
        Ok(&self.bound(name)?.value)
    }

    /// True for None.
    ///
    /// # Errors
    /// As [`value`](Arguments::value).
    pub fn is_none(&self, name: &str) -> Result<bool, CallError> {
        Ok(matches!(self.value(name)?, Value::None))
    }

    /// An array.
    ///
    /// # Errors
    /// Where it is something else, as with all getters below.
    pub fn array(&self, name: &str) -> Result<&Array, CallError> {
        match self.value(name)? {
            Value::Array(a) => Ok(a),
            _ => Err(self.wrong(name, "an array")),
        }
    }

    /// An array, or a number that takes the dtype of the array beside it.
    ///
    /// # Errors
    /// Where it is neither.
    pub fn operand(&self, name: &str) -> Result<Operand, CallError> {
        let value = self.value(name)?;
        match (value, value.scalar()) {
            (Value::Array(a), _) => Ok(Operand::Array(a.clone())),
            (_, Some(number)) => Ok(Operand::Number(number?)),
            _ => Err(self.wrong(name, "an array or a number")),
        }
    }

    /// A list or tuple of arrays.
    ///
    /// # Errors
    /// Where it is none, or one of its elements is no array.
    pub fn arrays(&self, name: &str) -> Result<Vec<Array>, CallError> {
        let Value::Sequence(items) = self.value(name)? else {
            return Err(self.wrong(name, "a list of arrays"));
        };
        let array = |(i, item): (usize, &Value)| match item {
            Value::Array(a) => Ok(a.clone()),
            other => {
                let b = self.bound(name)?;
                let message = format!(
                    "element {i} of {name} is {}, but {} needs arrays",
                    other.describe(),
                    self.function
                );
                Err(CallError::Kind { message, parameter: b.name, given: b.given.clone() })
            }
        };
        items.iter().enumerate().map(array).collect()
    }

    /// Axes to work along: None for all, one, or several.
    ///
    /// # Errors
    /// Where it is something else.
    pub fn axes(&self, name: &str) -> Result<Axes, CallError> {
        if self.is_none(name)? {
            Ok(().into())
        } else {
            Ok(self.integers_or(name, "an axis, a tuple of axes, or None")?.into())
        }
    }

    /// An integer.
    ///
    /// # Errors
    /// Where it is none, or beyond 64 bits.
    pub fn integer(&self, name: &str) -> Result<i64, CallError> {
        int(self.value(name)?).ok_or_else(|| self.wrong(name, "an integer"))
    }

    /// An integer, or None.
    ///
    /// # Errors
    /// Where it is neither.
    pub fn optional_integer(&self, name: &str) -> Result<Option<i64>, CallError> {
        if self.is_none(name)? {
            Ok(None)
        } else {
            int(self.value(name)?).map(Some).ok_or_else(|| self.wrong(name, "an integer or None"))
        }
    }

    /// One integer or several.
    ///
    /// # Errors
    /// Where it is something else.
    pub fn integers(&self, name: &str) -> Result<Vec<i64>, CallError> {
        self.integers_or(name, "an integer or a tuple of integers")
    }

    fn integers_or(&self, name: &str, expected: &str) -> Result<Vec<i64>, CallError> {
        let integers = match self.value(name)? {
            Value::Sequence(items) => items.iter().map(int).collect(),
            one => int(one).map(|i| vec![i]),
        };
        integers.ok_or_else(|| self.wrong(name, expected))
    }

    /// A real number.
    ///
    /// # Errors
    /// Where it is none.
    pub fn number(&self, name: &str) -> Result<f64, CallError> {
        match self.value(name)? {
            Value::Float(x) => Ok(*x),
            // An integer that a float cannot hold would be another number.
            Value::Int(i) if *i as f64 as i128 == *i => Ok(*i as f64),
            Value::Int(i) => Err(self.refuse_here(name, format!("{i} is not exact as float64"))),
            _ => Err(self.wrong(name, "a real number")),
        }
    }

    fn refuse_here(&self, name: &str, message: String) -> CallError {
        match self.bound(name) {
            Ok(b) => CallError::Kind { message, parameter: b.name, given: b.given.clone() },
            Err(e) => e,
        }
    }

    /// True or False.
    ///
    /// # Errors
    /// Where it is neither.
    pub fn flag(&self, name: &str) -> Result<bool, CallError> {
        match self.value(name)? {
            Value::Bool(b) => Ok(*b),
            _ => Err(self.wrong(name, "True or False")),
        }
    }

    /// A dtype, or None. Its name as text will do.
    ///
    /// # Errors
    /// Where it is neither.
    pub fn dtype(&self, name: &str) -> Result<Option<DType>, CallError> {
        match self.value(name)? {
            Value::None => Ok(None),
            Value::DType(d) => Ok(Some(*d)),
            Value::Text(text) => DType::from_name(text)
                .map(Some)
                .ok_or_else(|| self.wrong(name, "a dtype such as float32")),
            _ => Err(self.wrong(name, "a dtype such as float32")),
        }
    }

    /// A number in the widest dtype of its kind.
    ///
    /// # Errors
    /// Where it is none.
    pub fn scalar(&self, name: &str) -> Result<Scalar, CallError> {
        self.value(name)?
            .scalar()
            .ok_or_else(|| self.wrong(name, "a number"))?
            .map_err(CallError::from)
    }

    /// Text.
    ///
    /// # Errors
    /// Where it is none.
    pub fn text(&self, name: &str) -> Result<&str, CallError> {
        match self.value(name)? {
            Value::Text(text) => Ok(text),
            _ => Err(self.wrong(name, "text in quotes")),
        }
    }

    /// Lengths of axes: a tuple, or one number for one axis.
    ///
    /// # Errors
    /// Where it is neither, or one is negative.
    pub fn shape(&self, name: &str) -> Result<Vec<u64>, CallError> {
        let integers = self.integers_or(name, "a shape: a tuple of integers")?;
        let lengths = integers.iter().map(|n| u64::try_from(*n).ok()).collect::<Option<_>>();
        lengths.ok_or_else(|| self.wrong_lengths(name, &integers))
    }

    /// Lengths of chunks for a shape: None for [`default_chunks`], one number for every axis, or a
    /// tuple; -1 for a whole axis.
    ///
    /// # Errors
    /// Where it is something else, of another length than the shape, or has a length below 1.
    pub fn chunks(&self, name: &str, shape: &[u64], dtype: DType) -> Result<Vec<u64>, CallError> {
        let lengths = match self.value(name)? {
            Value::None => return Ok(default_chunks(shape, dtype.size())),
            Value::Sequence(_) => self.integers_or(name, "a tuple of integers")?,
            one => vec![
                int(one).ok_or_else(
                    || self.wrong(name, "None, an integer or a tuple of integers")
                )?;
                shape.len()
            ],
        };
        if lengths.len() != shape.len() {
            return Err(self.refuse_here(
                name,
                format!(
                    "{name} has {} lengths, but the array has {} axes",
                    lengths.len(),
                    shape.len()
                ),
            ));
        }
        let length = |(c, n): (&i64, &u64)| match *c {
            -1 => Some((*n).max(1)),
            c => u64::try_from(c).ok().filter(|c| *c > 0),
        };
        lengths
            .iter()
            .zip(shape)
            .map(length)
            .collect::<Option<_>>()
            .ok_or_else(|| self.wrong_lengths(name, &lengths))
    }

    fn wrong_lengths(&self, name: &str, lengths: &[i64]) -> CallError {
        let axis = lengths
            .iter()
            .position(|n| *n < 0)
            .or_else(|| lengths.iter().position(|n| *n == 0))
            .unwrap_or(0);
        self.refuse_here(name, format!("{name} has the length {} along axis {axis}", lengths[axis]))
    }
}

fn int(value: &Value) -> Option<i64> {
    if let Value::Int(i) = value { i64::try_from(*i).ok() } else { None }
}
