//! The functions that are not elementwise of one or two operands: one row each.

use freestone_kernels::{DType, Scalar};
use freestone_ops::reduce::Reduce;
use freestone_ops::{
    Array, Axes, Indexing, Pad, Scan, TensordotAxes, broadcast_arrays, clip, concat, outer, stack,
    tensordot, vecdot, where_,
};
use freestone_ops::{
    arange, empty_like, eye, from_scalars, full, full_like, linspace, meshgrid, ones_like, tril,
    triu, zeros_like,
};
use freestone_ops::{random_integers, random_normal, random_uniform};

use super::{Arguments, CallError, Section, Value};

/// A row.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) signature: &'static str,
    pub(super) summary: &'static str,
    pub(super) shape: &'static str,
    pub(super) dtypes: &'static str,
    pub(super) cost: &'static str,
    pub(super) call: fn(&Arguments) -> Result<Value, CallError>,
}

/// `name signature, summary, shape, dtypes, cost, arguments => result;` where a [`Value`] is made
/// from the result.
macro_rules! rows {
    ($($name:ident $signature:literal, $summary:literal, $shape:literal, $dtypes:expr, $cost:expr,
       $a:ident => $result:expr;)*) => {
        &[$(Row {
            name: stringify!($name),
            signature: $signature,
            summary: $summary,
            shape: $shape,
            dtypes: $dtypes,
            cost: $cost,
            call: |$a| Ok(Value::from($result)),
        }),*]
    };
}

const ALL: &str = "all";
const REAL: &str = "integers, floats";
const ORDERED: &str = "bool, integers, floats";
pub(super) const VIEW: &str = "no stage";
const FOLD: &str = "one stage if one task can stream the reduced axes, otherwise two";
const MADE: &str = "no stage: values are computed from indices";
const PIECES: &str = "no stage; more than four computed arrays are stored first, in one stage \
    each";
const FLATTENED: &str = "no stage; with axis=None the cost of `reshape`";
const SCAN: &str = "one stage if enough tasks can each process the whole axis, otherwise three \
    that read the input twice";
const PRODUCT: &str = "one stage; two if the result has few chunks and the sums are long";
const LISTED: &str = "no stage; the plan contains the list of indices";
const RESHAPED: &str = "no stage if only axes of length 1 are added or removed, otherwise one";

pub(super) static ROWS: &[(Section, &[Row])] = &[
    (
        Section::Elementwise,
        rows! {
            clip "(x, /, min=None, max=None)", "The elements, limited to the range from `min` \
                to `max`; NaN where the element or a bound is NaN.", "the shape of x", REAL, VIEW,
                a => {
                let bound = |name| match a.is_none(name)? {
                    true => Ok::<_, CallError>(None),
                    false => a.operand(name).map(Some),
                };
                clip(a.array("x")?, bound("min")?, bound("max")?)
            };
        },
    ),
    (
        Section::Statistical,
        rows! {
            sum "(x, /, *, axis=None, dtype=None, keepdims=False)", "The sum. Integers are \
                summed in 64 bits and wrap on overflow.", "without the reduced axes; with \
                keepdims they have length 1", "all; bools count as 0 and 1", FOLD,
                a => a.array("x")?.sum(reduce(a)?);
            cumulative_prod "(x, /, *, axis=None, dtype=None, include_initial=False)", "The \
                cumulative product along an axis. Integers give 64 bits and wrap on overflow.",
                "the shape of x; 1 longer along axis with include_initial", ALL, SCAN,
                a => a.array("x")?.cumulative_prod(scan(a)?);
            cumulative_sum "(x, /, *, axis=None, dtype=None, include_initial=False)", "The \
                cumulative sum along an axis. Integers give 64 bits and wrap on overflow.",
                "the shape of x; 1 longer along axis with include_initial", ALL, SCAN,
                a => a.array("x")?.cumulative_sum(scan(a)?);
            prod "(x, /, *, axis=None, dtype=None, keepdims=False)", "The product. Integers \
                give 64 bits and wrap on overflow.", "without the reduced axes; with keepdims \
                they have length 1", "all; bools count as 0 and 1", FOLD,
                a => a.array("x")?.prod(reduce(a)?);
            mean "(x, /, *, axis=None, keepdims=False)", "The arithmetic mean; NaN if any \
                element is NaN. Integers give `float64`.", "without the reduced axes; with \
                keepdims they have length 1", "all; bools count as 0 and 1", FOLD,
                a => a.array("x")?.mean(reduce(a)?);
            var "(x, /, *, axis=None, correction=0.0, keepdims=False)", "The variance; the \
                divisor is the number of elements minus `correction`.", "without the reduced \
                axes; with keepdims they have length 1", REAL, FOLD,
                a => a.array("x")?.var(reduce(a)?);
            std "(x, /, *, axis=None, correction=0.0, keepdims=False)", "The standard deviation: \
                the square root of `var`.", "without the reduced axes; with keepdims they have \
                length 1", REAL, FOLD,
                a => a.array("x")?.std(reduce(a)?);
            min "(x, /, *, axis=None, keepdims=False)", "The smallest element; NaN if any \
                element is NaN.", "without the reduced axes; with keepdims they have length 1",
                ORDERED, FOLD, a => a.array("x")?.min(reduce(a)?);
            max "(x, /, *, axis=None, keepdims=False)", "The largest element; NaN if any \
                element is NaN.", "without the reduced axes; with keepdims they have length 1",
                ORDERED, FOLD, a => a.array("x")?.max(reduce(a)?);
        },
    ),
    (
        Section::LinearAlgebra,
        rows! {
            matmul "(x1, x2, /)", "The matrix product over the last two axes, or the product of \
                vectors. The other axes broadcast.", "(…, m, k) by (…, k, n) gives (…, m, \
                n)", ALL, PRODUCT, a => a.array("x1")?.matmul(a.array("x2")?);
            outer "(x1, x2, /)", "The outer product of two vectors.", "(m,) and \
                (n,) give (m, n)", ALL, VIEW, a => outer(a.array("x1")?, a.array("x2")?);
            tensordot "(x1, x2, /, *, axes=2)", "Sums of products over the last axes of `x1` \
                and the first axes of `x2`, or over two lists of axes.", "the remaining axes of \
                x1, then those of x2", ALL, PRODUCT,
                a => tensordot(a.array("x1")?, a.array("x2")?, tensordot_axes(a)?);
            vecdot "(x1, x2, /, *, axis=-1)", "The dot product along an axis, with the complex \
                conjugate of `x1`. The other axes broadcast.", "the broadcast shape of the \
                other axes", ALL, FOLD,
                a => vecdot(a.array("x1")?, a.array("x2")?, a.integer("axis")?);
        },
    ),
    (
        Section::Searching,
        rows! {
            argmax "(x, /, *, axis=None, keepdims=False)", "The index of the first largest \
                element, or of the first NaN.", "without the axis, or all axes with axis=None; \
                with keepdims they have length 1", ORDERED, FOLD,
                a => a.array("x")?.argmax(reduce(a)?);
            argmin "(x, /, *, axis=None, keepdims=False)", "The index of the first smallest \
                element, or of the first NaN.", "without the axis, or all axes with axis=None; \
                with keepdims they have length 1", ORDERED, FOLD,
                a => a.array("x")?.argmin(reduce(a)?);
            count_nonzero "(x, /, *, axis=None, keepdims=False)", "The number of nonzero \
                elements.", "without the reduced axes; with keepdims they have length 1", ALL, FOLD,
                a => a.array("x")?.count_nonzero(reduce(a)?);
            where "(condition, x1, x2, /)", "Elements of `x1` where `condition` is true, and of \
                `x2` elsewhere.", "the broadcast shape of the operands", ALL, VIEW,
                a => where_(a.array("condition")?, a.operand("x1")?, a.operand("x2")?);
        },
    ),
    (
        Section::Utility,
        rows! {
            all "(x, /, *, axis=None, keepdims=False)", "True if all elements are nonzero.",
                "without the reduced axes; with keepdims they have length 1", ALL, FOLD,
                a => a.array("x")?.all(reduce(a)?);
            any "(x, /, *, axis=None, keepdims=False)", "True if any element is nonzero.",
                "without the reduced axes; with keepdims they have length 1", ALL, FOLD,
                a => a.array("x")?.any(reduce(a)?);
            diff "(x, /, *, axis=-1, n=1, prepend=None, append=None)", "The `n`-th difference \
                of adjacent elements along an axis.", "n shorter along axis, after prepend and \
                append are added", ALL, VIEW, a => {
                let end = |name| match a.is_none(name)? {
                    true => Ok::<_, CallError>(None),
                    false => a.array(name).map(|x| Some(x.clone())),
                };
                let parts = [end("prepend")?, Some(a.array("x")?.clone()), end("append")?];
                let parts: Vec<Array> = parts.into_iter().flatten().collect();
                let n = count(a, "n")?;
                concat(&parts, a.integer("axis")?).diff(n, a.integer("axis")?)
            };
        },
    ),
    (
        Section::Manipulation,
        rows! {
            broadcast_arrays "(*arrays)", "The arrays, broadcast to a common shape.", "the \
                common broadcast shape, for each array", ALL, VIEW,
                a => broadcast_arrays(&a.arrays("arrays")?)?;
            broadcast_to "(x, /, shape)", "The array, broadcast to `shape`.", "shape", ALL, VIEW,
                a => a.array("x")?.broadcast_to(&a.shape("shape")?);
            concat "(arrays, /, *, axis=0)", "The arrays joined along an axis. With \
                `axis=None`, each array is flattened first.", "the sum of the lengths along \
                axis; (number of elements,) with axis=None", ALL, PIECES,
                a => {
                    let axis = a.optional_integer("axis")?;
                    concat(&a.arrays("arrays")?, axis.map_or_else(Axes::default, Axes::from))
                };
            expand_dims "(x, /, axis=0)", "The array with a new axis of length 1 at position \
                `axis`.", "the shape of x, with 1 inserted at axis", ALL, VIEW,
                a => a.array("x")?.expand_dims(a.integer("axis")?);
            flip "(x, /, *, axis=None)", "The elements in reverse order along axes.", "the \
                shape of x", ALL, VIEW, a => a.array("x")?.flip(a.axes("axis")?);
            matrix_transpose "(x, /)", "The array with its last two axes exchanged.", "the \
                shape of x, with the last two lengths exchanged", ALL, VIEW,
                a => a.array("x")?.matrix_transpose();
            moveaxis "(x, source, destination, /)", "The array with axes moved to other \
                positions.", "the lengths of x in the new order of axes", ALL, VIEW,
                a => a.array("x")?.moveaxis(a.integers("source")?, a.integers("destination")?);
            pad "(x, /, pad_width, *, mode='constant', constant_values=0)", "The array with \
                elements added before and after each axis. The modes are those of NumPy.",
                "each length plus the elements added before and after", ALL, PIECES, a => pad(a)?;
            permute_dims "(x, /, axes)", "Axis `i` of the result is axis `axes[i]`.", "the \
                lengths of x in the order of axes", ALL, VIEW,
                a => a.array("x")?.permute_dims(&a.integers("axes")?);
            repeat "(x, repeats, /, *, axis=None)", "Each element repeated along an axis. With \
                `axis=None`, the array is flattened first.", "along axis, the length times \
                repeats, or the sum of a list of repeats; one axis with axis=None", ALL, LISTED,
                a => repeat(a)?;
            reshape "(x, /, shape, *, copy=None)", "The elements in C order in another shape. \
                One length can be -1 and is then inferred.", "shape, with the inferred length \
                in place of -1", ALL, RESHAPED,
                a => a.array("x")?.reshape(&a.integers("shape")?);
            roll "(x, /, shift, *, axis=None)", "The elements shifted cyclically along axes. \
                With `axis=None`, they are shifted in C order.", "the shape of x", ALL, FLATTENED,
                a => roll(a)?;
            squeeze "(x, /, axis)", "The array without the named axes, which have length 1.",
                "the shape of x without the named axes", ALL, VIEW,
                a => a.array("x")?.squeeze(a.axes("axis")?);
            stack "(arrays, /, *, axis=0)", "Arrays of equal shape, joined along a new axis.",
                "the shape of the arrays, with their number inserted at axis", ALL, PIECES,
                a => stack(&a.arrays("arrays")?, a.integer("axis")?);
            tile "(x, repetitions, /)", "The array repeated along each axis.", "each length \
                times its repetitions; additional repetitions add leading axes", ALL, PIECES,
                a => a.array("x")?.tile(&a.shape("repetitions")?);
            tril "(x, /, *, k=0)", "The lower triangle of the last two axes; 0 elsewhere.",
                "the shape of x", ALL, VIEW, a => tril(a.array("x")?, a.integer("k")?);
            triu "(x, /, *, k=0)", "The upper triangle of the last two axes; 0 elsewhere.",
                "the shape of x", ALL, VIEW, a => triu(a.array("x")?, a.integer("k")?);
            unstack "(x, /, *, axis=0)", "The array split into its elements along an axis.",
                "the shape of x without the axis, for each array", ALL, VIEW,
                a => a.array("x")?.unstack(a.integer("axis")?)?;
        },
    ),
    (
        Section::Indexing,
        rows! {
            take "(x, indices, /, *, axis=None)", "Elements at a list of indices along an \
                axis.", "the shape of x, with the number of indices along axis", ALL, LISTED, a => {
                let x = a.array("x")?;
                let only = (x.shape()?.len() == 1).then_some(0);
                let axis = a.optional_integer("axis")?.or(only);
                let expected = "an integer for an array of several axes";
                let axis = axis.ok_or_else(|| a.wrong("axis", expected))?;
                x.take(&a.integers("indices")?, axis)
            };
        },
    ),
    (
        Section::DataType,
        rows! {
            astype "(x, dtype, /, *, copy=True)", "The array cast to a dtype. Casts from floats \
                to integers round towards 0.", "the shape of x", ALL, VIEW, a => {
                let dtype = a.dtype("dtype")?;
                a.array("x")?.astype(dtype.ok_or_else(|| a.wrong("dtype", "a dtype"))?)
            };
        },
    ),
    (
        Section::Creation,
        rows! {
            arange "(start, /, stop=None, step=1, *, dtype=None, chunks=None)", "Values from \
                `start` up to, but excluding, `stop` in steps of `step`.", "(⌈(stop − start) / \
                step⌉,)", REAL, MADE, a => range(a)?;
            asarray "(obj, /, *, dtype=None)", "An array of a number or of nested lists of \
                numbers.", "the lengths of the lists, outermost first; () for a number", ALL,
                "no stage; the plan contains the values", a => listed(a)?;
            empty "(shape, *, dtype=None, chunks=None)", "An array of unspecified values.", "shape",
                ALL, MADE,
                a => filled(a, &a.shape("shape")?, Scalar::new(0u8), None)?;
            empty_like "(x, /, *, dtype=None)", "Like `empty`, with the shape, dtype and chunks \
                of `x`.", "the shape of x", ALL, MADE,
                a => empty_like(a.array("x")?, a.dtype("dtype")?);
            eye "(n_rows, n_cols=None, /, *, k=0, dtype=None, chunks=None)", "A matrix with \
                ones on diagonal `k` and zeros elsewhere.", "(n_rows, n_cols), or (n_rows, n_rows)",
                ALL, MADE, a => {
                let columns = if a.is_none("n_cols")? { "n_rows" } else { "n_cols" };
                let shape = [count(a, "n_rows")?, count(a, columns)?];
                let dtype = a.dtype("dtype")?.unwrap_or(DType::Float64);
                eye(shape[0], shape[1], a.integer("k")?, dtype, &a.chunks("chunks", &shape, dtype)?)
            };
            full "(shape, fill_value, *, dtype=None, chunks=None)", "An array in which every \
                element is `fill_value`.", "shape", ALL, MADE,
                a => {
                    let value = a.scalar("fill_value")?;
                    filled(a, &a.shape("shape")?, value, Some(value.dtype()))?
                };
            full_like "(x, /, fill_value, *, dtype=None)", "Like `full`, with the shape, dtype \
                and chunks of `x`.", "the shape of x", ALL, MADE,
                a => full_like(a.array("x")?, a.scalar("fill_value")?, a.dtype("dtype")?);
            linspace "(start, stop, /, num, *, dtype=None, endpoint=True, chunks=None)", "`num` \
                evenly spaced values from `start` to `stop`.", "(num,)", REAL, MADE, a => {
                let (n, dtype) = (count(a, "num")?, a.dtype("dtype")?.unwrap_or(DType::Float64));
                let chunk = a.chunks("chunks", &[n], dtype)?[0];
                let (start, stop) = (a.number("start")?, a.number("stop")?);
                linspace(start, stop, n, a.flag("endpoint")?, dtype, chunk)
            };
            meshgrid "(*arrays, indexing='xy')", "Coordinate arrays of the grid that \
                one-dimensional arrays span.", "the lengths of all arrays, for each array; the \
                first two exchanged with indexing='xy'", ALL, VIEW, a => {
                let indexing = match a.text("indexing")? {
                    "xy" => Indexing::Xy,
                    "ij" => Indexing::Ij,
                    _ => return Err(a.wrong("indexing", "'xy' or 'ij'")),
                };
                meshgrid(&a.arrays("arrays")?, indexing)?
            };
            ones "(shape, *, dtype=None, chunks=None)", "An array of ones.", "shape", ALL, MADE,
                a => filled(a, &a.shape("shape")?, Scalar::new(1u8), None)?;
            ones_like "(x, /, *, dtype=None)", "Like `ones`, with the shape, dtype and chunks \
                of `x`.", "the shape of x", ALL, MADE,
                a => ones_like(a.array("x")?, a.dtype("dtype")?);
            zeros "(shape, *, dtype=None, chunks=None)", "An array of zeros.", "shape", ALL, MADE,
                a => filled(a, &a.shape("shape")?, Scalar::new(0u8), None)?;
            zeros_like "(x, /, *, dtype=None)", "Like `zeros`, with the shape, dtype and chunks \
                of `x`.", "the shape of x", ALL, MADE,
                a => zeros_like(a.array("x")?, a.dtype("dtype")?);
        },
    ),
    (
        Section::Random,
        rows! {
            random_integers "(shape, low, high, *, seed, dtype=int64, chunks=None)",
                "Independent uniform integers in `[low, high)`.", "shape", "integers", MADE, a => {
                let (shape, dtype) = (a.shape("shape")?, a.dtype("dtype")?.unwrap_or(DType::Int64));
                let chunks = a.chunks("chunks", &shape, dtype)?;
                let (low, high) = (a.integer("low")?, a.integer("high")?);
                random_integers(&shape, low, high, count(a, "seed")?, dtype, &chunks)
            };
            random_normal "(shape, mean=0.0, deviation=1.0, *, seed, dtype=float64, \
                chunks=None)", "Independent normally distributed values.", "shape", "floats", MADE,
                a => {
                let shape = a.shape("shape")?;
                let dtype = a.dtype("dtype")?.unwrap_or(DType::Float64);
                let chunks = a.chunks("chunks", &shape, dtype)?;
                let (mean, deviation) = (a.number("mean")?, a.number("deviation")?);
                random_normal(&shape, mean, deviation, count(a, "seed")?, dtype, &chunks)
            };
            random_uniform "(shape, low=0.0, high=1.0, *, seed, dtype=float64, \
                chunks=None)", "Independent uniformly distributed values in `[low, high)`.",
                "shape", "floats", MADE, a => {
                let shape = a.shape("shape")?;
                let dtype = a.dtype("dtype")?.unwrap_or(DType::Float64);
                let chunks = a.chunks("chunks", &shape, dtype)?;
                let (low, high) = (a.number("low")?, a.number("high")?);
                random_uniform(&shape, low, high, count(a, "seed")?, dtype, &chunks)
            };
        },
    ),
    (
        Section::Chunking,
        rows! {
            rechunk "(x, /, chunks)", "The same values in chunks of another shape. A length of \
                -1 is the length of the axis.", "the shape of x", ALL, "one copy, or several if \
                they cost less", a => {
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

impl From<Vec<Array>> for Value {
    fn from(arrays: Vec<Array>) -> Self {
        Value::Sequence(arrays.into_iter().map(Value::Array).collect())
    }
}

/// The options of a reduction, those that its signature has.
fn reduce(a: &Arguments) -> Result<Reduce, CallError> {
    let mut reduce = Reduce::axes(a.axes("axis")?);
    if a.flag("keepdims")? {
        reduce = reduce.keepdims();
    }
    if let Ok(Some(dtype)) = a.dtype("dtype") {
        reduce = reduce.dtype(dtype);
    } else if a.value("dtype").is_ok() {
        a.dtype("dtype")?;
    }
    if a.value("correction").is_ok() {
        reduce = reduce.correction(a.number("correction")?);
    }
    Ok(reduce)
}

fn scan(a: &Arguments) -> Result<Scan, CallError> {
    let mut scan = a.optional_integer("axis")?.map_or_else(Scan::default, Scan::axis);
    if let Some(dtype) = a.dtype("dtype")? {
        scan = scan.dtype(dtype);
    }
    Ok(if a.flag("include_initial")? { scan.include_initial() } else { scan })
}

fn tensordot_axes(a: &Arguments) -> Result<TensordotAxes, CallError> {
    let axes = |v: &Value| match v {
        Value::Int(i) => Some(vec![i64::try_from(*i).ok()?]),
        Value::Sequence(items) => items
            .iter()
            .map(|v| if let Value::Int(i) = v { i64::try_from(*i).ok() } else { None })
            .collect(),
        _ => None,
    };
    let over = match a.value("axes")? {
        Value::Int(n) => usize::try_from(*n).ok().map(TensordotAxes::Count),
        Value::Sequence(two) if two.len() == 2 => {
            axes(&two[0]).zip(axes(&two[1])).map(|(l, r)| TensordotAxes::Pairs(l.into(), r.into()))
        }
        _ => None,
    };
    over.ok_or_else(|| {
        a.wrong("axes", "a number of axes, or a list of axes of x1 and a list of axes of x2")
    })
}

fn count(a: &Arguments, name: &'static str) -> Result<u64, CallError> {
    u64::try_from(a.integer(name)?).map_err(|_| a.wrong(name, "a nonnegative integer"))
}

fn roll(a: &Arguments) -> Result<Array, CallError> {
    let (x, shifts) = (a.array("x")?, a.integers("shift")?);
    if a.is_none("axis")? {
        return Ok(x.roll(shifts.iter().sum(), ()));
    }
    let axes = a.integers("axis")?;
    if shifts.len() != axes.len() && shifts.len() != 1 {
        return Err(a.refuse(
            "shift",
            format!("roll: expected 1 or {} shifts, found {}", axes.len(), shifts.len()),
        ));
    }
    Ok(axes
        .iter()
        .zip(shifts.iter().cycle())
        .fold(x.clone(), |x, (axis, shift)| x.roll(*shift, *axis)))
}

fn repeat(a: &Arguments) -> Result<Array, CallError> {
    let times: Vec<u64> = a.shape("repeats")?;
    let (x, axis) = match a.optional_integer("axis")? {
        Some(axis) => (a.array("x")?.clone(), axis),
        None => (a.array("x")?.reshape([-1]), 0),
    };
    Ok(if let [times] = times.as_slice() {
        x.repeat(*times, axis)
    } else {
        x.repeat_each(&times, axis)
    })
}

fn pad(a: &Arguments) -> Result<Array, CallError> {
    let x = a.array("x")?;
    let rank = x.shape()?.len();
    let number = |v: &Value| if let Value::Int(i) = v { u64::try_from(*i).ok() } else { None };
    let pair = |v: &Value| match v {
        Value::Sequence(two) if two.len() == 2 => Some((number(&two[0])?, number(&two[1])?)),
        one => number(one).map(|n| (n, n)),
    };
    let widths = match a.value("pad_width")? {
        // One pair is for every axis; as many pairs as axes are one each.
        Value::Sequence(two) if two.len() == 2 && two.iter().all(|v| number(v).is_some()) => {
            pair(&Value::Sequence(two.clone())).map(|p| vec![p; rank])
        }
        Value::Sequence(pairs) => pairs.iter().map(pair).collect(),
        one => pair(one).map(|p| vec![p; rank]),
    };
    let widths = widths.ok_or_else(|| {
        a.wrong("pad_width", "an integer, a pair of integers, or a pair for each axis")
    })?;
    let mode = match a.text("mode")? {
        "constant" => Pad::Constant(a.scalar("constant_values")?),
        "edge" => Pad::Edge,
        "reflect" => Pad::Reflect,
        "symmetric" => Pad::Symmetric,
        "wrap" => Pad::Wrap,
        _ => {
            let expected = "'constant', 'edge', 'reflect', 'symmetric' or 'wrap'";
            return Err(a.wrong("mode", expected));
        }
    };
    Ok(x.pad(&widths, mode))
}

fn range(a: &Arguments) -> Result<Array, CallError> {
    // One number is where it ends.
    let (start, stop) = if a.is_none("stop")? {
        (Scalar::new(0i64), a.scalar("start")?)
    } else {
        (a.scalar("start")?, a.scalar("stop")?)
    };
    let step = a.scalar("step")?;
    let own = if [start, stop, step].iter().all(|s| s.dtype() == DType::Int64) {
        DType::Int64
    } else {
        DType::Float64
    };
    let dtype = a.dtype("dtype")?.unwrap_or(own);
    let n = arange(start, stop, step, dtype, 1).shape()?;
    Ok(arange(start, stop, step, dtype, a.chunks("chunks", &n, dtype)?[0]))
}

fn filled(
    a: &Arguments,
    shape: &[u64],
    value: Scalar,
    own: Option<DType>,
) -> Result<Array, CallError> {
    let dtype = a.dtype("dtype")?.or(own).unwrap_or(DType::Float64);
    Ok(full(shape, value, dtype, &a.chunks("chunks", shape, dtype)?))
}

/// Numbers of nested lists, and their common dtype.
fn listed(a: &Arguments) -> Result<Array, CallError> {
    fn walk(
        value: &Value,
        depth: usize,
        shape: &mut Vec<usize>,
        flat: &mut Vec<Scalar>,
    ) -> Option<()> {
        if let Value::Sequence(items) = value {
            if depth == shape.len() && flat.is_empty() {
                shape.push(items.len());
            }
            (shape.get(depth) == Some(&items.len())).then_some(())?;
            return items.iter().try_for_each(|v| walk(v, depth + 1, shape, flat));
        }
        flat.push(value.scalar()?.ok()?);
        (depth == shape.len()).then_some(())
    }
    if let Value::Array(x) = a.value("obj")? {
        return Ok(a.dtype("dtype")?.map_or_else(|| x.clone(), |d| x.astype(d)));
    }
    let (mut shape, mut flat) = (Vec::new(), Vec::new());
    let even =
        || a.wrong("obj", "a number or nested lists of numbers, of equal lengths at each depth");
    walk(a.value("obj")?, 0, &mut shape, &mut flat).ok_or_else(even)?;
    let widest = flat.iter().map(Scalar::dtype).max().unwrap_or(DType::Float64);
    let dtype = a.dtype("dtype")?.unwrap_or(widest);
    Ok(from_scalars(&shape, &flat, dtype))
}
