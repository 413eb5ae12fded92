//! Every function of the vocabulary, on several dtypes in four chunkings, against an oracle that
//! shares no code with the library: ndarray, Rust's functions of `f64`, num-complex, and `i128` for
//! integers.
//!
//! Tables have a row with an oracle for each function: [`ELEMENTWISE`] and [`OF_SEVERAL`] in
//! `elementwise`, [`REDUCED`], [`PRODUCTS`], [`MOVED`] and [`MADE`] each in the file of its name. A
//! function without a row fails the test.

mod elementwise;
mod made;
mod moved;
mod products;
mod reduced;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::Location;

use freestone::{Array, Complex128, DType, Serial, Spec, Target};
use freestone_expr::vocabulary::{Value, function, functions};
use ndarray::{ArrayD, IxDyn};

use crate::elements::Element::{self, Complex, Int, Real};
use crate::elements::{Near, computed, is_complex, is_signed, stored};
use crate::support::Place;
use DType::*;
use elementwise::{ELEMENTWISE, OF_SEVERAL, elementwise};
use made::MADE;
use moved::MOVED;
use products::PRODUCTS;
use reduced::REDUCED;

const NUMERIC: &[DType] = &[Int8, UInt8, Int32, Int64, Float32, Float64, Complex64, Complex128];
const REALS: &[DType] = &[Int8, UInt16, Int64, UInt64, Float32, Float64];
/// Includes an integer dtype, for which functions return floats.
const INEXACT: &[DType] = &[Int16, Float32, Float64, Complex64, Complex128];
const FLOATS: &[DType] = &[Int32, Float32, Float64];
const INTEGERS: &[DType] = &[Int8, UInt8, Int16, UInt32, Int64, UInt64];
const BITS: &[DType] = &[Bool, Int8, UInt16, Int32, UInt64];
const SOME: &[DType] = &[Bool, UInt8, Int32, Float32, Complex128];
const EVERY: &[DType] = &DType::ALL;
const BOOL: &[DType] = &[Bool];

/// A call of a function for one dtype and one chunking.
struct Case<'a> {
    name: &'static str,
    dtype: DType,
    /// 0 one chunk, 1 two even ones along each axis, 2 uneven ones, 3 chunks of length 1 along the
    /// first axis.
    chunking: usize,
    spec: &'a Spec,
    seed: Cell<u64>,
    checks: Cell<usize>,
    failures: &'a RefCell<Vec<String>>,
}

/// An array with its values.
struct Pair {
    lazy: Value,
    whole: ArrayD<Element>,
}

/// A row of a table of functions that do not fit [`Elementwise`](elementwise::Elementwise).
struct Other {
    name: &'static str,
    dtypes: &'static [DType],
    run: fn(&Case<'_>),
}

const fn other(name: &'static str, dtypes: &'static [DType], run: fn(&Case<'_>)) -> Other {
    Other { name, dtypes, run }
}

#[test]
fn every_function_matches_its_oracle() {
    let (place, mut turns, mut checks) =
        (Place::quick(), BTreeMap::<&str, BTreeSet<(DType, usize)>>::new(), 0);
    let (spec, failures) = (place.spec(), RefCell::default());
    let mut all = |name: &'static str, dtypes: &[DType], run: &dyn Fn(&Case<'_>)| {
        for (i, dtype) in dtypes.iter().enumerate() {
            for chunking in 0..4 {
                let seed = Cell::new(name.bytes().fold(i as u64, |s, b| 31 * s + u64::from(b)));
                let case = Case {
                    name,
                    dtype: *dtype,
                    chunking,
                    spec: &spec,
                    seed,
                    checks: Cell::new(0),
                    failures: &failures,
                };
                run(&case);
                assert!(case.checks.get() > 0, "{name} of {dtype} checks nothing");
                checks += case.checks.get();
                turns.entry(name).or_default().insert((*dtype, chunking));
            }
        }
    };
    ELEMENTWISE.iter().for_each(|row| all(row.name, row.dtypes, &|c| elementwise(row, c)));
    [OF_SEVERAL, REDUCED, PRODUCTS, MOVED, MADE]
        .into_iter()
        .flatten()
        .for_each(|row| all(row.name, row.dtypes, &row.run));
    let failures = failures.take();
    assert!(
        failures.is_empty(),
        "{} calls, the first of them at\n{}",
        failures.len(),
        failures[..failures.len().min(40)].join("\n")
    );
    for f in functions() {
        let turns = turns.get(f.name).unwrap_or_else(|| {
            panic!("function {} has no row in any table: add one with an oracle", f.name)
        });
        let dtypes: BTreeSet<DType> = turns.iter().map(|t| t.0).collect();
        // Some functions are defined for fewer dtypes.
        let least = match f.dtypes {
            "bool" => 1,
            "floats" if f.name.starts_with("random") => 2,
            _ => 3,
        };
        assert!(
            dtypes.len() >= least && turns.len() == 4 * dtypes.len(),
            "{} runs on {dtypes:?} only",
            f.name
        );
    }
    println!(
        "{} functions, {} turns of a dtype in a chunking, {checks} calls compared",
        turns.len(),
        turns.values().map(BTreeSet::len).sum::<usize>()
    );
    assert_eq!(turns.len(), functions().len(), "a row has no function, or a function has two rows");
}

impl Case<'_> {
    fn draw(&self) -> f64 {
        let state = self
            .seed
            .get()
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.seed.set(state);
        (state >> 33) as f64 / (1u64 << 31) as f64
    }

    /// Returns a random element of `low..high`: a multiple of 1/64, so that `float32` holds it and
    /// sums are exact.
    fn element(&self, dtype: DType, (low, high): (f64, f64)) -> Element {
        let part = || ((low + (high - low) * self.draw()) * 64.0).floor() / 64.0;
        match dtype {
            Bool => Element::Bool(self.draw() < 0.6),
            d if is_complex(d) => Complex(Complex128::new(part(), part())),
            d if d.is_integer() && !is_signed(d) => Int(part().abs() as i128),
            d if d.is_integer() => Int(part() as i128),
            _ => Real(part()),
        }
    }

    fn of(&self, dtype: DType, shape: &[usize], range: (f64, f64)) -> Pair {
        let whole = ArrayD::from_shape_fn(IxDyn(shape), |_| self.element(dtype, range));
        self.pair(whole, dtype)
    }

    fn pair(&self, whole: ArrayD<Element>, dtype: DType) -> Pair {
        let array = stored(&whole, dtype, &chunks_of(self.chunking, whole.shape()));
        assert!(self.chunking == 0 || whole.len() < 2 || array.grid().unwrap().n_chunks() > 1);
        Pair { lazy: Value::Array(array), whole }
    }

    /// Returns an array of the case's dtype with three axes.
    fn cube(&self) -> Pair {
        self.of(self.dtype, &[4, 6, 10], (-9.0, 9.0))
    }

    fn square(&self) -> Pair {
        self.of(self.dtype, &[6, 4], (-9.0, 9.0))
    }

    fn chunks(&self, shape: &[usize]) -> (&'static str, Value) {
        (
            "chunks",
            Value::Sequence(
                chunks_of(self.chunking, shape).into_iter().map(|c| Value::Int(c.into())).collect(),
            ),
        )
    }

    /// Calls the function and compares its results with the oracle's.
    #[track_caller]
    fn check(
        &self,
        positional: Vec<Value>,
        named: Vec<(&str, Value)>,
        expected: &[(DType, ArrayD<Element>)],
        near: Near,
    ) {
        let written = |v: &Value| match v {
            Value::Array(a) => format!("{:?}", a.shape().unwrap()),
            other => format!("{other:?}"),
        };
        let arguments = || {
            positional
                .iter()
                .map(written)
                .chain(named.iter().map(|(n, v)| format!("{n}={}", written(v))))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let what = || {
            format!(
                "{}({}) of {} in chunking {}",
                self.name,
                arguments(),
                self.dtype,
                self.chunking
            )
        };
        let owned = named.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect();
        let found = match function(self.name).unwrap().call(positional.clone(), owned) {
            Ok(Value::Sequence(many)) => many,
            Ok(one) => vec![one],
            Err(e) => panic!("{}: {e}", what()),
        };
        assert_eq!(found.len(), expected.len(), "{}", what());
        for (found, (dtype, whole)) in found.iter().zip(expected) {
            let Value::Array(array) = found else { panic!("{} gives {found:?}", what()) };
            assert_eq!(array.dtype().unwrap(), *dtype, "{}", what());
            let shape: Vec<usize> = array.shape().unwrap().iter().map(|n| *n as usize).collect();
            assert_eq!(shape, whole.shape(), "{}", what());
            let values = computed(array, self.spec).unwrap_or_else(|e| panic!("{}: {e}", what()));
            if self.chunking == 2 && matches!(self.dtype, Float64 | Bool) {
                self.check_requests(array, &what());
            }
            let differ = values.iter().zip(whole).position(|(x, y)| !near.agree(*x, *y, *dtype));
            if let Some(at) = differ {
                let (found, expected) = (values.iter().nth(at), whole.iter().nth(at));
                self.failures.borrow_mut().push(format!(
                    "{}: {}: element {at} is {found:?}, not {expected:?}",
                    Location::caller(),
                    what()
                ));
            }
        }
        self.checks.set(self.checks.get() + 1);
    }

    /// Compares the requests that a plan predicts with those of its run: equal if the prediction is
    /// exact, else within a tenth.
    fn check_requests(&self, array: &Array, what: &str) {
        let out = format!("{}/reads", self.spec.work_dir);
        let planned =
            freestone::plan(&[Target::array(array, &out).overwrite(true)], self.spec).unwrap();
        let report = freestone::run(&planned, self.spec, &Serial).unwrap();
        for (stage, took) in planned.finalized().explain().stages.iter().zip(&report.stages) {
            let said: u64 = stage.reads.iter().map(|r| r.traffic.requests).sum();
            let (took, exact) = (took.traffic.reads, stage.reads.iter().all(|r| r.traffic.exact));
            let near = if exact { said == took } else { said.abs_diff(took) * 10 <= took };
            if !near {
                self.failures.borrow_mut().push(format!(
                    "{what}: `{}` predicts {said} requests and makes {took}",
                    stage.name
                ));
            }
        }
    }

    /// Checks a function that keeps the dtype, without a tolerance.
    #[track_caller]
    fn moves(&self, positional: Vec<Value>, named: Vec<(&str, Value)>, whole: ArrayD<Element>) {
        self.check(positional, named, &[(self.dtype, whole)], Near::Exact);
    }

    #[track_caller]
    fn refuses(&self, positional: Vec<Value>, named: Vec<(&str, Value)>) {
        let owned = named.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect();
        let found = function(self.name).unwrap().call(positional, owned);
        assert!(found.is_err(), "{} gives {found:?}", self.name);
    }
}

fn chunks_of(chunking: usize, shape: &[usize]) -> Vec<u64> {
    let length = |(d, n): (usize, &usize)| match chunking {
        0 => *n,
        1 => n.div_ceil(2),
        2 => (2 * n).div_ceil(3),
        _ if d == 0 => 1,
        _ => 3,
    };
    shape.iter().enumerate().map(length).map(|n| n.max(1) as u64).collect()
}

fn ints(values: &[i128]) -> Value {
    Value::Sequence(values.iter().map(|i| Value::Int(*i)).collect())
}

fn zero(dtype: DType) -> Element {
    Int(0).fit(dtype)
}

fn full(shape: &[usize], value: Element) -> ArrayD<Element> {
    ArrayD::from_elem(IxDyn(shape), value)
}

/// Returns the dtype of a result like `sample` for operands of `dtype`.
fn result(dtype: DType, sample: Element) -> DType {
    match sample {
        Element::Bool(_) => Bool,
        Int(_) | Complex(_) => dtype,
        Real(_) if matches!(dtype, Float32 | Complex64) => Float32,
        Real(_) => Float64,
    }
}

/// Broadcasts an array to a shape.
fn spread(a: &ArrayD<Element>, shape: &[usize]) -> ArrayD<Element> {
    a.broadcast(IxDyn(shape)).unwrap().to_owned()
}
