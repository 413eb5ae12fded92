//! The speed of kernels without an engine, compared with NumPy on one thread.
//!
//! A case is one operation, on a block larger than any cache, as in a task, and on one that fits in
//! the cache. Freestone evaluates an expression by [`eval::map`] or [`reduce::fold`], as a worker
//! does; NumPy's side is `peers/kernels.py`. Both generate the same operands, measure equally, and
//! report the magnitude of their results, which must agree.

use freestone_engine::kernels::reduce::{self, Finish, FoldBlock, FoldSpec};
use freestone_engine::kernels::{
    BinaryOp, Buffer, DType, Expr, Node, ReduceOp, Scalar, UnaryOp, View, eval,
};
use freestone_engine::machine::thread_cpu_ns;
use serde::{Deserialize, Serialize};

use crate::sample::median;
use crate::{Failure, Setup, process};

/// Elements of a block larger than any cache: 64 MiB of `float32`.
const BLOCK: usize = 16 << 20;
/// Elements of a block that fits in the cache.
const CACHED: usize = 64 << 10;
/// The number of measurements of a case in each process, of which the median counts.
const REPEATS: usize = 3;
/// Calls on the small block per measurement.
const LOOPS: usize = 64;
/// The maximum relative difference of magnitudes: NumPy adds `float32` in `float32`.
const TOLERANCE: f64 = 1e-4;

/// The minimum speed over NumPy's: of arithmetic, comparisons and casts, and of elementary
/// functions.
const SIMPLE: Option<f64> = Some(0.8);
const ELEMENTARY: Option<f64> = Some(0.5);
const INFORMATION: Option<f64> = None;

/// Operations in the notation of both sides (NumPy's name, dtypes, the axis of a reduction), with
/// the minimum speed over NumPy's for the large block.
const CASES: [(&str, Option<f64>); 47] = [
    ("add float32", SIMPLE),
    ("subtract float32", SIMPLE),
    ("multiply float32", SIMPLE),
    ("divide float32", SIMPLE),
    ("maximum float32", SIMPLE),
    ("abs float32", SIMPLE),
    ("floor float32", SIMPLE),
    ("less float32", SIMPLE),
    ("equal float32", SIMPLE),
    ("where float32", SIMPLE),
    ("astype float32 float64", SIMPLE),
    ("astype float64 float32", SIMPLE),
    ("astype float32 int32", SIMPLE),
    ("astype float32 int64", SIMPLE),
    ("astype float32 bool", SIMPLE),
    ("astype int32 float32", SIMPLE),
    ("astype int32 float64", SIMPLE),
    ("sqrt float32", ELEMENTARY),
    ("exp float32", ELEMENTARY),
    ("log float32", ELEMENTARY),
    ("sin float32", ELEMENTARY),
    ("cos float32", ELEMENTARY),
    ("tanh float32", ELEMENTARY),
    ("pow float32", ELEMENTARY),
    ("add float64", INFORMATION),
    ("multiply float64", INFORMATION),
    ("divide float64", INFORMATION),
    ("less float64", INFORMATION),
    ("sqrt float64", INFORMATION),
    ("exp float64", INFORMATION),
    ("log float64", INFORMATION),
    ("sin float64", INFORMATION),
    ("cos float64", INFORMATION),
    ("tanh float64", INFORMATION),
    ("pow float64", INFORMATION),
    ("sum float32 axis 0", INFORMATION),
    ("sum float32 axis 1", INFORMATION),
    ("max float32 axis 0", INFORMATION),
    ("max float32 axis 1", INFORMATION),
    ("argmax float32 axis 0", INFORMATION),
    ("argmax float32 axis 1", INFORMATION),
    ("var float32 axis 0", INFORMATION),
    ("var float32 axis 1", INFORMATION),
    ("sum float64 axis 0", INFORMATION),
    ("sum float64 axis 1", INFORMATION),
    ("var float64 axis 0", INFORMATION),
    ("var float64 axis 1", INFORMATION),
];

/// One side's result of a case.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Timing {
    /// CPU nanoseconds per element.
    pub(crate) block_ns: f64,
    pub(crate) cached_ns: f64,
    /// The sum of absolute values of the small result.
    magnitude: f64,
}

/// The report of one process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Timings {
    version: String,
    timings: Vec<Timing>,
}

/// A case with the timings of all rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) case: &'static str,
    pub(crate) bar: Option<f64>,
    pub(crate) ours: Vec<Timing>,
    pub(crate) numpy: Vec<Timing>,
}

/// All cases.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    pub(crate) block: usize,
    pub(crate) cached: usize,
    pub(crate) numpy: Option<String>,
    pub(crate) rows: Vec<Row>,
}

impl Row {
    /// Returns the median speed over NumPy's.
    pub(crate) fn ratio(&self, of: fn(&Timing) -> f64) -> Option<f64> {
        Some(median(self.numpy.iter().map(of))? / median(self.ours.iter().map(of))?)
    }
}

/// Measures every case, alternating with NumPy if requested.
pub(crate) fn measure(setup: &Setup, with_numpy: bool) -> Result<Table, Failure> {
    if with_numpy {
        process::set_up_peers()?;
    }
    let rows = CASES.map(|(case, bar)| Row { case, bar, ours: Vec::new(), numpy: Vec::new() });
    let mut table = Table { block: BLOCK, cached: CACHED, numpy: None, rows: rows.into() };
    for round in 0..setup.repeat {
        eprintln!("kernels round {}/{}", round + 1, setup.repeat);
        let ours: Timings =
            process::json(&mut process::own("child-kernels")?, process::TIME_LIMIT)?;
        table.rows.iter_mut().zip(ours.timings).for_each(|(row, timing)| row.ours.push(timing));
        if with_numpy {
            let theirs = numpy()?;
            table.numpy = Some(theirs.version);
            table
                .rows
                .iter_mut()
                .zip(theirs.timings)
                .for_each(|(row, timing)| row.numpy.push(timing));
        }
    }
    table.rows.iter().try_for_each(agree)?;
    Ok(table)
}

fn numpy() -> Result<Timings, Failure> {
    let mut command = process::script("kernels.py");
    // Makes malloc retain freed memory, so that NumPy's allocations are warm, too.
    command
        .env("MALLOC_MMAP_THRESHOLD_", "4294967296")
        .env("MALLOC_TRIM_THRESHOLD_", "68719476736")
        .env("MALLOC_TOP_PAD_", "268435456");
    command
        .args(["--block", &BLOCK.to_string(), "--cached", &CACHED.to_string()])
        .args(CASES.map(|(case, _)| case));
    process::json(&mut command, process::TIME_LIMIT)
}

/// The speed of a wrong result is meaningless.
fn agree(row: &Row) -> Result<(), Failure> {
    let (Some(ours), Some(theirs)) = (row.ours.first(), row.numpy.first()) else { return Ok(()) };
    let (ours, theirs) = (ours.magnitude, theirs.magnitude);
    let apart = (ours - theirs).abs() / theirs;
    if ours == theirs || apart < TOLERANCE {
        Ok(())
    } else {
        Err(format!("{}: freestone's results add up to {ours}, NumPy's to {theirs}", row.case)
            .into())
    }
}

/// Measures Freestone in a child process.
pub(crate) fn run() -> Result<Timings, Failure> {
    let timings = CASES.map(|(case, _)| {
        let (block_ns, _) = timed(case, BLOCK, 1)?;
        let (cached_ns, magnitude) = timed(case, CACHED, LOOPS)?;
        Ok(Timing { block_ns, cached_ns, magnitude })
    });
    Ok(Timings {
        version: env!("CARGO_PKG_VERSION").into(),
        timings: timings.into_iter().collect::<Result<_, Failure>>()?,
    })
}

/// Returns the CPU nanoseconds per element of a case, and the magnitude of its result.
fn timed(case: &str, n: usize, calls: usize) -> Result<(f64, f64), Failure> {
    let mut bench = Bench::new(case, n)?;
    bench.call();
    let times = (0..REPEATS).map(|_| {
        let start = thread_cpu_ns();
        (0..calls).for_each(|_| bench.call());
        (thread_cpu_ns() - start) as f64 / (calls * n) as f64
    });
    let median = median(times.collect::<Vec<_>>().into_iter()).unwrap_or_default();
    Ok((
        median,
        converted(bench.out_dtype, &bench.out, DType::Float64)
            .as_slice::<f64>()
            .iter()
            .map(|x| x.abs())
            .sum(),
    ))
}

/// A prepared case.
struct Bench {
    evaluator: eval::Evaluator,
    shape: Vec<usize>,
    inputs: Vec<(DType, Buffer)>,
    out: Buffer,
    out_dtype: DType,
    reduction: Option<Reduction>,
}

struct Reduction {
    op: ReduceOp,
    values: DType,
    finish: Finish,
    axis: usize,
    accumulators: Buffer,
}

impl Bench {
    fn new(case: &str, n: usize) -> Result<Bench, Failure> {
        let words: Vec<&str> = case.split(' ').collect();
        let (name, dtype) = (words[0], named(words[1])?);
        let first = first_operand(n, name, dtype);
        if let [.., "axis", axis] = words[..] {
            return Bench::reducing(name, dtype, first, axis.parse()?);
        }
        let second = || filled(n, 2, 8.0, 0.5, dtype);
        let (expr, inputs) = match name {
            "astype" => {
                let to: DType = named(words[2])?;
                (Expr::of(&[dtype], |e, at| e.push(Node::Cast(to, at[0])))?, vec![(dtype, first)])
            }
            "where" => {
                let negative = Expr::of(&[dtype], |e, at| {
                    let zero = e.push(Node::Literal(Scalar::zero(dtype)))?;
                    e.push(Node::Binary(BinaryOp::Less, at[0], zero))
                })?;
                let condition = mapped(&negative, dtype, &first);
                let expr = Expr::of(&[DType::Bool, dtype, dtype], |e, at| {
                    e.push(Node::Where(at[0], at[1], at[2]))
                })?;
                (expr, vec![(DType::Bool, condition), (dtype, first), (dtype, second())])
            }
            _ => match named::<UnaryOp>(name) {
                Ok(op) => (
                    Expr::of(&[dtype], |e, at| e.push(Node::Unary(op, at[0])))?,
                    vec![(dtype, first)],
                ),
                Err(_) => {
                    let op: BinaryOp = named(name)?;
                    (
                        Expr::of(&[dtype; 2], |e, at| e.push(Node::Binary(op, at[0], at[1])))?,
                        vec![(dtype, first), (dtype, second())],
                    )
                }
            },
        };
        let out_dtype = expr.result_dtypes()[0];
        let out = Buffer::zeroed(n * out_dtype.size());
        Ok(Bench {
            evaluator: eval::Evaluator::new(&expr),
            shape: vec![n],
            inputs,
            out,
            out_dtype,
            reduction: None,
        })
    }

    fn reducing(name: &str, values: DType, block: Buffer, axis: usize) -> Result<Bench, Failure> {
        let side = (block.len() / values.size()).isqrt();
        let op: ReduceOp = named(name)?;
        let out_dtype = if op == ReduceOp::Argmax { DType::Int64 } else { values };
        let finish = match op {
            ReduceOp::Var => Finish::Var {
                count: side as u64,
                correction: Scalar::new(0.0f64),
                root: false,
                dtype: out_dtype,
            },
            _ => Finish::Value(out_dtype),
        };
        let accumulator = op.accumulator(values).ok_or("there is no such reduction")?;
        let accumulators = Buffer::zeroed(side * accumulator.size());
        Ok(Bench {
            evaluator: eval::Evaluator::new(&Expr::identity(values)),
            shape: vec![side; 2],
            inputs: vec![(values, block)],
            out: Buffer::zeroed(side * out_dtype.size()),
            out_dtype,
            reduction: Some(Reduction { op, values, finish, axis, accumulators }),
        })
    }

    /// Runs the measured code: the work of a worker on a decoded block.
    fn call(&mut self) {
        let views: Vec<View<'_>> = self
            .inputs
            .iter()
            .map(|(dtype, b)| View::contiguous(*dtype, b.bytes(), &self.shape))
            .collect();
        let Some(Reduction { op, values, finish, axis, accumulators }) = &mut self.reduction else {
            return eval::map(
                &mut self.evaluator,
                &self.shape,
                &views,
                &mut [self.out.bytes_mut()],
            );
        };
        let along = |d: usize| [isize::from(d == 0), isize::from(d == 1)];
        let fold = FoldBlock {
            folds: &[FoldSpec { op: *op, values: *values }],
            offset: 0,
            strides: &along(1 - *axis),
            seen: 0,
            merge: None,
            index: (0, &along(*axis)),
        };
        op.start(*values, accumulators.bytes_mut());
        reduce::fold(
            &mut self.evaluator,
            &self.shape,
            &views,
            &fold,
            &mut [accumulators.bytes_mut()],
        );
        finish.apply(*op, *values, accumulators.bytes(), self.out.bytes_mut());
    }
}

/// Parses a dtype or an operation.
fn named<T: for<'a> Deserialize<'a>>(name: &str) -> Result<T, Failure> {
    Ok(serde_json::from_value(name.into())?)
}

fn first_operand(n: usize, name: &str, dtype: DType) -> Buffer {
    match name {
        "astype" => filled(n, 1, 16000.0, -8000.0, dtype),
        "log" | "sqrt" | "pow" => filled(n, 1, 16.0, 0.5, dtype),
        _ => filled(n, 1, 16.0, -8.0, dtype),
    }
}

/// Returns pseudo-random values in `[low, low + width)`: the finalizer of MurmurHash3 over indices.
fn filled(n: usize, seed: u32, width: f64, low: f64, dtype: DType) -> Buffer {
    let hashed = (0..n as u32).map(|i| {
        let mut h = i.wrapping_add(seed);
        h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
        h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
        h ^ (h >> 16)
    });
    let mut values = hashed.map(|h| f64::from(h >> 8) / f64::from(1 << 24) * width + low);
    let mut out = Buffer::zeroed(n * dtype.size());
    for piece in out.bytes_mut().chunks_mut(4096 * dtype.size()) {
        let wide: Vec<f64> = values.by_ref().take(4096).collect();
        piece.copy_from_slice(converted(DType::Float64, &Buffer::from_slice(&wide), dtype).bytes());
    }
    out
}

fn converted(from: DType, values: &Buffer, to: DType) -> Buffer {
    match Expr::of(&[from], |e, at| e.push(Node::Cast(to, at[0]))) {
        Ok(expr) => mapped(&expr, from, values),
        Err(_) => Buffer::zeroed(0),
    }
}

/// Returns an expression of one block.
fn mapped(expr: &Expr, dtype: DType, values: &Buffer) -> Buffer {
    let shape = [values.len() / dtype.size()];
    let mut out = Buffer::zeroed(shape[0] * expr.result_dtypes()[0].size());
    eval::map(
        &mut eval::Evaluator::new(expr),
        &shape,
        &[View::contiguous(dtype, values.bytes(), &shape)],
        &mut [out.bytes_mut()],
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_runs() {
        for (case, _) in CASES {
            let mut bench = Bench::new(case, 4096).unwrap();
            // All comparisons may be false; the check needs an output that differs from its initial
            // state.
            bench.out.bytes_mut().fill(0xaa);
            bench.call();
            assert!(bench.out.bytes().iter().any(|b| *b != 0xaa), "{case}");
        }
    }
}
