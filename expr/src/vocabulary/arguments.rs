//! Access to the arguments of a call, by parameter name and kind.

use freestone_kernels::{DType, Scalar};
use freestone_ops::{Array, Axes, Error, Operand, default_chunks};

use super::signature::{Bound, Given};
use super::{CallError, Value};

/// The arguments of a call. Each getter takes the name of a parameter in the function's signature.
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

    pub(super) fn wrong(&self, name: &str, expected: &str) -> CallError {
        match self.bound(name) {
            Ok(b) => {
                let message = format!(
                    "{}: invalid argument `{name}`: expected {expected}, found {}",
                    self.function,
                    b.value.describe()
                );
                CallError::Kind { message, parameter: b.name, given: b.given.clone() }
            }
            Err(e) => e,
        }
    }

    /// Returns an error about one argument.
    pub fn refuse(&self, name: &'static str, message: impl Into<String>) -> CallError {
        let given = self.bound(name).map_or(Given::Default, |b| b.given.clone());
        CallError::Kind { message: message.into(), parameter: name, given }
    }

    /// Returns an argument of any kind.
    ///
    /// # Errors
    /// All getters return an error if the signature has no such parameter, which is a defect of
    /// the table.
    pub fn value(&self, name: &str) -> Result<&Value, CallError> {
        Ok(&self.bound(name)?.value)
    }

    /// Returns true if the argument is `None`.
    ///
    /// # Errors
    /// As [`value`](Arguments::value).
    pub fn is_none(&self, name: &str) -> Result<bool, CallError> {
        Ok(matches!(self.value(name)?, Value::None))
    }

    /// Returns an array.
    ///
    /// # Errors
    /// This and all getters below return an error if the argument is of another kind.
    pub fn array(&self, name: &str) -> Result<&Array, CallError> {
        match self.value(name)? {
            Value::Array(a) => Ok(a),
            _ => Err(self.wrong(name, "an array")),
        }
    }

    /// Returns an array, or a number that takes the dtype of the other operand.
    ///
    /// # Errors
    /// As [`array`](Arguments::array).
    pub fn operand(&self, name: &str) -> Result<Operand, CallError> {
        let value = self.value(name)?;
        match (value, value.scalar()) {
            (Value::Array(a), _) => Ok(Operand::Array(a.clone())),
            (_, Some(number)) => Ok(Operand::Number(number?)),
            _ => Err(self.wrong(name, "an array or a number")),
        }
    }

    /// Returns a list or tuple of arrays.
    ///
    /// # Errors
    /// As [`array`](Arguments::array).
    pub fn arrays(&self, name: &str) -> Result<Vec<Array>, CallError> {
        let Value::Sequence(items) = self.value(name)? else {
            return Err(self.wrong(name, "a list of arrays"));
        };
        let array = |(i, item): (usize, &Value)| match item {
            Value::Array(a) => Ok(a.clone()),
            other => {
                let b = self.bound(name)?;
                let message = format!(
                    "{}: invalid element {i} of `{name}`: expected an array, found {}",
                    self.function,
                    other.describe()
                );
                Err(CallError::Kind { message, parameter: b.name, given: b.given.clone() })
            }
        };
        items.iter().enumerate().map(array).collect()
    }

    /// Returns axes: one, several, or all for `None`.
    ///
    /// # Errors
    /// As [`array`](Arguments::array).
    pub fn axes(&self, name: &str) -> Result<Axes, CallError> {
        if self.is_none(name)? {
            Ok(().into())
        } else {
            Ok(self.integers_or(name, "an axis, a tuple of axes, or None")?.into())
        }
    }

    /// Returns an integer of 64 bits.
    ///
    /// # Errors
    /// As [`array`](Arguments::array).
    pub fn integer(&self, name: &str) -> Result<i64, CallError> {
        int(self.value(name)?).ok_or_else(|| self.wrong(name, "an integer"))
    }

    /// Returns an integer or `None`.
    ///
    /// # Errors
    /// As [`array`](Arguments::array).
    pub fn optional_integer(&self, name: &str) -> Result<Option<i64>, CallError> {
        if self.is_none(name)? {
            Ok(None)
        } else {
            int(self.value(name)?).map(Some).ok_or_else(|| self.wrong(name, "an integer or None"))
        }
    }

    /// Returns one or several integers.
    ///
    /// # Errors
    /// As [`array`](Arguments::array).
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

    /// Returns a real number.
    ///
    /// # Errors
    /// Also returns an error for an integer that `f64` cannot represent.
    pub fn number(&self, name: &str) -> Result<f64, CallError> {
        match self.value(name)? {
            Value::Float(x) => Ok(*x),
            Value::Int(i) if *i as f64 as i128 == *i => Ok(*i as f64),
            Value::Int(i) => Err(self.refuse_here(
                name,
                format!(
                    "{}: invalid argument `{name}`: float64 cannot represent {i}",
                    self.function
                ),
            )),
            _ => Err(self.wrong(name, "a real number")),
        }
    }

    fn refuse_here(&self, name: &str, message: String) -> CallError {
        match self.bound(name) {
            Ok(b) => CallError::Kind { message, parameter: b.name, given: b.given.clone() },
            Err(e) => e,
        }
    }

    /// Returns `True` or `False`.
    ///
    /// # Errors
    /// As [`array`](Arguments::array).
    pub fn flag(&self, name: &str) -> Result<bool, CallError> {
        match self.value(name)? {
            Value::Bool(b) => Ok(*b),
            _ => Err(self.wrong(name, "True or False")),
        }
    }

    /// Returns a dtype, also given by its name as text, or `None`.
    ///
    /// # Errors
    /// As [`array`](Arguments::array).
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

    /// Returns a number in the widest dtype of its kind.
    ///
    /// # Errors
    /// As [`array`](Arguments::array).
    pub fn scalar(&self, name: &str) -> Result<Scalar, CallError> {
        self.value(name)?
            .scalar()
            .ok_or_else(|| self.wrong(name, "a number"))?
            .map_err(CallError::from)
    }

    /// Returns text.
    ///
    /// # Errors
    /// As [`array`](Arguments::array).
    pub fn text(&self, name: &str) -> Result<&str, CallError> {
        match self.value(name)? {
            Value::Text(text) => Ok(text),
            _ => Err(self.wrong(name, "text in quotes")),
        }
    }

    /// Returns a shape: a tuple, or one number for one axis.
    ///
    /// # Errors
    /// Also returns an error for a negative length.
    pub fn shape(&self, name: &str) -> Result<Vec<u64>, CallError> {
        let integers = self.integers_or(name, "a tuple of integers")?;
        let lengths = integers.iter().map(|n| u64::try_from(*n).ok()).collect::<Option<_>>();
        lengths.ok_or_else(|| self.wrong_lengths(name, &integers))
    }

    /// Returns a chunk shape: [`default_chunks`] for `None`, one length for all axes, or a tuple.
    /// -1 stands for the whole axis.
    ///
    /// # Errors
    /// Also returns an error if the rank differs from that of the shape, or for a length below 1.
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
                    "{}: expected {} lengths in `{name}`, found {}",
                    self.function,
                    shape.len(),
                    lengths.len()
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
        let length = lengths[axis];
        self.refuse_here(
            name,
            format!("{}: invalid length {length} in `{name}` along axis {axis}", self.function),
        )
    }
}

fn int(value: &Value) -> Option<i64> {
    if let Value::Int(i) = value { i64::try_from(*i).ok() } else { None }
}
