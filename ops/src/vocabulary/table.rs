//! The functions that are not elementwise of one or two operands: one row each.

use freestone_kernels::DType;

use super::operand::as_arrays;
use super::{Arguments, CallError, Section, Value};
use crate::array::Array;
use crate::elementwise::where_;
use crate::error::Error;
use crate::reduce::Axes;
use crate::{arange, full, random_uniform};

/// A row.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) signature: &'static str,
    pub(super) summary: &'static str,
    pub(super) dtypes: &'static str,
    pub(super) cost: &'static str,
    pub(super) call: fn(&Arguments) -> Result<Value, CallError>,
}

/// `name signature, summary, dtypes, cost, arguments => result;` where the result is `Ok` of what a [`Value`] is made from.
macro_rules! rows {
    ($($name:ident $signature:literal, $summary:literal, $dtypes:expr, $cost:expr, $a:ident => $result:expr;)*) => {
        &[$(Row {
            name: stringify!($name),
            signature: $signature,
            summary: $summary,
            dtypes: $dtypes,
            cost: $cost,
            call: |$a| Ok(Value::from($result?)),
        }),*]
    };
}

const ALL: &str = "all";
const NUMBERS: &str = "integers, floats, complex";
const REAL: &str = "integers, floats";
const VIEW: &str = "no stage";
const FOLD: &str = "one stage where one task can stream the reduced axes, else two";
const MADE: &str = "no stage: values follow from indices";

pub(super) static ROWS: &[(Section, &[Row])] = &[
    (
        Section::Elementwise,
        rows! {
            where "(condition, x1, x2, /)", "Elements of `x1` where the condition is true, of `x2` elsewhere.", ALL, VIEW, a => choose(a);
        },
    ),
    (
        Section::Statistical,
        rows! {
            sum "(x, /, *, axis=None, dtype=None, keepdims=False)", "The sum; integers give 64 bits and wrap.", NUMBERS, FOLD, a => sum(a);
            mean "(x, /, *, axis=None, keepdims=False)", "The mean; NaN if there is one. Integers give float64.", NUMBERS, FOLD,
                a => reduce(a, |x, axes| x.mean(axes), |x, axes| x.mean_keepdims(axes));
            min "(x, /, *, axis=None, keepdims=False)", "The least element; NaN if there is one.", REAL, FOLD,
                a => reduce(a, |x, axes| x.min(axes), |x, axes| x.min_keepdims(axes));
            max "(x, /, *, axis=None, keepdims=False)", "The greatest element; NaN if there is one.", REAL, FOLD,
                a => reduce(a, |x, axes| x.max(axes), |x, axes| x.max_keepdims(axes));
        },
    ),
    (
        Section::Manipulation,
        rows! {
            broadcast_to "(x, /, shape)", "The array in a shape that its own broadcasts to.", ALL, VIEW, a => a.array("x")?.broadcast_to(&a.shape("shape")?);
            expand_dims "(x, /, axis)", "A new axis of length 1 before axis `axis` of the result.", ALL, VIEW, a => a.array("x")?.expand_dims(a.integer("axis")?);
            flip "(x, /, *, axis=None)", "Backwards along axes.", ALL, VIEW, a => flip(a);
            permute_dims "(x, /, axes)", "Axis `i` of the result is axis `axes[i]`.", ALL, VIEW, a => a.array("x")?.permute_dims(&a.integers("axes")?);
        },
    ),
    (
        Section::DataType,
        rows! {
            astype "(x, dtype, /, *, copy=True)", "The array in another dtype; to integers towards zero.", ALL, VIEW, a => {
                a.array("x")?.astype(a.dtype("dtype")?.ok_or_else(|| a.refuse("dtype", "dtype is None, but astype needs one"))?)
            };
        },
    ),
    (
        Section::Creation,
        rows! {
            arange "(start, /, stop=None, step=1, *, dtype=None, chunks=None)", "`start, start + step, …` up to but without `stop`.", REAL, MADE, a => range(a);
            full "(shape, fill_value, *, dtype=None, chunks=None)", "Every element is `fill_value`.", ALL, MADE, a => filled(a, &a.shape("shape")?, None);
            full_like "(x, /, fill_value, *, dtype=None, chunks=None)", "As `full`, with the shape and dtype of `x`.", ALL, MADE, a => {
                filled(a, &a.array("x")?.shape()?, Some(a.array("x")?.dtype()?))
            };
            ones "(shape, *, dtype=None, chunks=None)", "Every element is 1.", ALL, MADE, a => constant(a, 1.0);
            zeros "(shape, *, dtype=None, chunks=None)", "Every element is 0.", ALL, MADE, a => constant(a, 0.0);
        },
    ),
    (
        Section::Random,
        rows! {
            random_uniform "(shape, low=0.0, high=1.0, *, seed, dtype=float64, chunks=None)", "Independent uniform values in `[low, high)`.", "floats", MADE, a => {
                let (shape, dtype) = (a.shape("shape")?, a.dtype("dtype")?.unwrap_or(DType::Float64));
                let seed = u64::try_from(a.integer("seed")?).map_err(|_| a.refuse("seed", "seed is negative"))?;
                random_uniform(&shape, a.number("low")?, a.number("high")?, seed, dtype, &a.chunks("chunks", &shape, dtype)?)
            };
        },
    ),
    (
        Section::Chunking,
        rows! {
            rechunk "(x, /, chunks)", "The same values in chunks of another shape; -1 stands for a whole axis.", ALL, "one stage that copies everything", a => {
                let x = a.array("x")?;
                x.rechunk(&a.chunks("chunks", &x.shape()?, x.dtype()?)?)
            };
        },
    ),
];

/// Names from NumPy and from older versions of the standard.
pub(super) static ALIASES: &[(&str, &str)] = &[
    ("absolute", "abs"),
    ("arccos", "acos"),
    ("arccosh", "acosh"),
    ("arcsin", "asin"),
    ("arcsinh", "asinh"),
    ("arctan", "atan"),
    ("arctan2", "atan2"),
    ("arctanh", "atanh"),
    ("amax", "max"),
    ("amin", "min"),
    ("array", "asarray"),
    ("average", "mean"),
    ("concatenate", "concat"),
    ("conjugate", "conj"),
    ("cumprod", "cumulative_prod"),
    ("cumsum", "cumulative_sum"),
    ("fabs", "abs"),
    ("invert", "bitwise_invert"),
    ("left_shift", "bitwise_left_shift"),
    ("mod", "remainder"),
    ("power", "pow"),
    ("product", "prod"),
    ("right_shift", "bitwise_right_shift"),
    ("swapaxes", "permute_dims"),
    ("transpose", "permute_dims"),
    ("true_divide", "divide"),
];

impl From<Array> for Value {
    fn from(array: Array) -> Self {
        Value::Array(array)
    }
}

type Fold = fn(&Array, Axes) -> Result<Array, Error>;

fn reduce(a: &Arguments, dropping: Fold, keeping: Fold) -> Result<Array, CallError> {
    let fold = if a.flag("keepdims")? { keeping } else { dropping };
    Ok(fold(a.array("x")?, a.axes("axis")?)?)
}

fn sum(a: &Arguments) -> Result<Array, CallError> {
    let Some(dtype) = a.dtype("dtype")? else { return reduce(a, |x, axes| x.sum(axes), |x, axes| x.sum_keepdims(axes)) };
    // As if the elements were cast first: that is what the standard says of `dtype`.
    let x = a.array("x")?.astype(dtype)?;
    let axes = a.axes("axis")?;
    Ok(if a.flag("keepdims")? { x.sum_keepdims(axes)? } else { x.sum(axes)? }.astype(dtype)?)
}

fn choose(a: &Arguments) -> Result<Array, CallError> {
    let (x1, x2) = as_arrays(a.operand("x1")?, a.operand("x2")?)?;
    Ok(where_(a.array("condition")?, &x1, &x2)?)
}

fn flip(a: &Arguments) -> Result<Array, CallError> {
    let x = a.array("x")?;
    let axes = match a.axes("axis")? {
        Axes::All => (0..x.shape()?.len() as i64).collect(),
        Axes::These(axes) => axes,
    };
    Ok(axes.into_iter().try_fold(x.clone(), |x, axis| x.flip(axis))?)
}

fn range(a: &Arguments) -> Result<Array, CallError> {
    // One number is where it ends.
    let (start, stop) = if a.is_none("stop")? { (0.0, a.number("start")?) } else { (a.number("start")?, a.number("stop")?) };
    let step = a.number("step")?;
    let integers = ["start", "stop", "step"].iter().all(|n| !matches!(a.value(n), Ok(Value::Float(_))));
    let dtype = a.dtype("dtype")?.unwrap_or(if integers { DType::Int64 } else { DType::Float64 });
    let n = ((stop - start) / step).ceil().max(0.0);
    let chunks = a.chunks("chunks", &[if n.is_finite() { n as u64 } else { 0 }], dtype)?;
    Ok(arange(start, stop, step, dtype, chunks[0])?)
}

fn filled(a: &Arguments, shape: &[u64], like: Option<DType>) -> Result<Array, CallError> {
    let (value, own) = match a.value("fill_value")? {
        Value::Bool(b) => (f64::from(u8::from(*b)), DType::Bool),
        Value::Complex(..) => return Err(a.refuse("fill_value", "complex fill values are not there yet: add two arrays")),
        Value::Float(x) => (*x, DType::Float64),
        _ => (a.number("fill_value")?, DType::Int64),
    };
    let dtype = a.dtype("dtype")?.or(like).unwrap_or(own);
    Ok(full(shape, value, dtype, &a.chunks("chunks", shape, dtype)?)?)
}

fn constant(a: &Arguments, value: f64) -> Result<Array, CallError> {
    let (shape, dtype) = (a.shape("shape")?, a.dtype("dtype")?.unwrap_or(DType::Float64));
    Ok(full(&shape, value, dtype, &a.chunks("chunks", &shape, dtype)?)?)
}
