//! Random programs over random arrays in random chunks give the results of ndarray, bit for bit.
//!
//! The oracle is an `f64` array and a dtype. Every operation is computed in `f64` (or in `i128` for
//! integers) and rounded to the dtype, which is exact for one operation on `float32`. Values are
//! small multiples of 1/4, and sums are taken only if they are exact in any order, so no test needs
//! a tolerance.

mod oracle;
mod reductions;
mod steps;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use freestone::{Array, CodecName, DType, MemoryStore, Spec};
use freestone_engine::storage::Store;
use freestone_engine::storage::metadata::open_array;
use ndarray::{ArrayD, IxDyn};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};

pub use oracle::{promoted, python_slice, rounded};

use crate::support::{Place, chunk_files, document};
use steps::apply;

pub const DTYPES: [DType; 8] = [
    DType::Float32,
    DType::Float64,
    DType::Int32,
    DType::Float32,
    DType::UInt8,
    DType::Int64,
    DType::Bool,
    DType::Int16,
];

/// A lazy array with its expected values.
#[derive(Clone)]
pub struct Pair {
    pub lazy: Array,
    pub whole: ArrayD<f64>,
    pub dtype: DType,
}

#[derive(Clone, Debug)]
pub struct Input {
    /// Length and chunk along each axis.
    pub axes: Vec<(u64, u64)>,
    /// The index in [`DTYPES`].
    pub dtype: usize,
    pub seed: u64,
}

/// A random operation. Numbers are taken modulo the number of choices.
#[derive(Clone, Debug)]
pub struct Step {
    pub op: u8,
    pub operand: u8,
    pub a: i8,
    pub b: i8,
    pub c: i8,
}

#[derive(Clone, Debug)]
struct Program {
    inputs: Vec<Input>,
    steps: Vec<Step>,
    parallelism: u64,
    codec: u8,
}

fn programs() -> impl Strategy<Value = Program> {
    let axis = (
        prop_oneof![12 => 2u64..14, 1 => Just(1u64), 1 => Just(0u64), 1 => 14u64..40],
        prop_oneof![6 => 1u64..6, 1 => 6u64..20],
    );
    let rank = prop_oneof![1 => Just(1usize), 5 => Just(2), 4 => Just(3)];
    let axes = rank.prop_flat_map(move |rank| prop::collection::vec(axis.clone(), rank));
    let input = (axes, 0..DTYPES.len(), any::<u64>()).prop_map(|(axes, dtype, seed)| Input {
        axes,
        dtype,
        seed,
    });
    let step = (any::<u8>(), any::<u8>(), any::<i8>(), any::<i8>(), any::<i8>())
        .prop_map(|(op, operand, a, b, c)| Step { op, operand, a, b, c });
    let parallelism = prop_oneof![Just(1u64), Just(3), Just(50)];
    (prop::collection::vec(input, 1..3), prop::collection::vec(step, 1..9), parallelism, 0u8..3)
        .prop_map(|(inputs, steps, parallelism, codec)| Program {
            inputs,
            steps,
            parallelism,
            codec,
        })
}

fn element_bytes(x: f64, dtype: DType) -> Vec<u8> {
    match dtype {
        DType::Float32 => (x as f32).to_le_bytes().to_vec(),
        DType::Float64 => x.to_le_bytes().to_vec(),
        DType::Int64 => (x as i64).to_le_bytes().to_vec(),
        DType::Int32 => (x as i32).to_le_bytes().to_vec(),
        DType::Int16 => (x as i16).to_le_bytes().to_vec(),
        _ => vec![x as u8],
    }
}

/// Stores an input by the tests' own writer.
pub fn stored(input: &Input, number: usize, store: &Arc<dyn Store>) -> Pair {
    let dtype = DTYPES[input.dtype];
    let shape: Vec<u64> = input.axes.iter().map(|a| a.0).collect();
    let chunks: Vec<u64> = input.axes.iter().map(|a| a.1).collect();
    let mut state = input.seed | 1;
    let mut draw = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % 33) as f64 - 16.0
    };
    let value = |x: f64| match dtype {
        DType::Float32 | DType::Float64 if x == 13.0 && input.seed.is_multiple_of(4) => f64::NAN,
        DType::Float32 | DType::Float64 => x / 4.0,
        DType::Bool => f64::from(u8::from(x > 2.0)),
        DType::UInt8 => x + 16.0,
        _ => x,
    };
    let extents: Vec<usize> = shape.iter().map(|n| *n as usize).collect();
    let whole = ArrayD::from_shape_fn(IxDyn(&extents), |_| value(draw()));
    let elements: Vec<Vec<u8>> = whole.iter().map(|x| element_bytes(*x, dtype)).collect();
    let path = format!("input-{number}");
    store
        .write(
            &format!("{path}/zarr.json"),
            &serde_json::to_vec(&document(&shape, &chunks, dtype.name())).unwrap(),
        )
        .unwrap();
    for (key, bytes) in chunk_files(&shape, &chunks, &elements) {
        // Chunks of zeros may be missing.
        if bytes.iter().any(|b| *b != 0) || input.seed.is_multiple_of(2) {
            store.write(&format!("{path}/{key}"), &bytes).unwrap();
        }
    }
    Pair { lazy: freestone::open_in(store, &path).unwrap(), whole, dtype }
}

/// Applies steps and adds their results to the pool. Returns the names of the operations.
pub fn apply_all(pool: &mut Vec<Pair>, steps: &[Step]) -> Vec<&'static str> {
    let mut names = Vec::new();
    for step in steps {
        // Mostly the newest array, so that programs are deep.
        let of = if step.operand % 4 == 0 {
            step.operand as usize / 4 % pool.len()
        } else {
            pool.len() - 1
        };
        let Some(next) = apply(&pool[of], pool, step, &mut names) else { continue };
        let integers_are_exact =
            !next.dtype.is_integer() || next.whole.iter().all(|x| x.abs() < 9e15);
        if next.whole.len() < 20_000 && integers_are_exact {
            pool.push(next);
        }
    }
    names
}

/// Computes an array, as values of the oracle.
pub fn computed(pair: &Pair, spec: &Spec) -> Result<ArrayD<f64>, freestone::Error> {
    Ok(match pair.dtype {
        DType::Bool => {
            freestone::compute::<freestone_engine::kernels::dtype::Bool>(&pair.lazy, spec)?
                .mapv(|x| f64::from(x.0))
        }
        DType::Float32 => freestone::compute::<f32>(&pair.lazy, spec)?.mapv(f64::from),
        DType::Float64 => freestone::compute::<f64>(&pair.lazy, spec)?,
        DType::Int16 => freestone::compute::<i16>(&pair.lazy, spec)?.mapv(f64::from),
        DType::Int32 => freestone::compute::<i32>(&pair.lazy, spec)?.mapv(f64::from),
        DType::Int64 => freestone::compute::<i64>(&pair.lazy, spec)?.mapv(|x| x as f64),
        DType::UInt64 => freestone::compute::<u64>(&pair.lazy, spec)?.mapv(|x| x as f64),
        _ => freestone::compute::<u8>(&pair.lazy, spec)?.mapv(f64::from),
    })
}

#[derive(Default, Debug)]
struct Statistics {
    cases: usize,
    many_chunks_on_two_axes: usize,
    two_stages: usize,
    empty: usize,
    elements_compared: usize,
    operations: BTreeMap<&'static str, usize>,
}

fn run(
    program: &Program,
    place: &Place,
    statistics: &RefCell<Statistics>,
) -> Result<(), TestCaseError> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let mut pool: Vec<Pair> =
        program.inputs.iter().enumerate().map(|(i, input)| stored(input, i, &store)).collect();
    let names = apply_all(&mut pool, &program.steps);
    let codec = [CodecName::None, CodecName::Zstd(0), CodecName::Lz4][program.codec as usize];
    let spec = Spec { parallelism: program.parallelism, codec: codec.into(), ..place.spec() };
    let made = &pool[program.inputs.len().min(pool.len() - 1)..];
    for pair in made.iter().rev().take(2) {
        let shape: Vec<usize> = pair
            .lazy
            .shape()
            .map_err(|e| TestCaseError::fail(e.to_string()))?
            .iter()
            .map(|n| *n as usize)
            .collect();
        prop_assert_eq!(&shape[..], pair.whole.shape(), "{:?}", names);
        prop_assert_eq!(pair.lazy.dtype().unwrap(), pair.dtype, "{:?}", names);
        let found =
            computed(pair, &spec).map_err(|e| TestCaseError::fail(format!("{names:?}: {e}")))?;
        let same = |x: &f64, y: &f64| x == y || (x.is_nan() && y.is_nan());
        let differ = found.iter().zip(pair.whole.iter()).position(|(x, y)| !same(x, y));
        prop_assert!(
            differ.is_none(),
            "element {:?} after {:?}\n found {}\n expected {}",
            differ,
            names,
            found,
            pair.whole
        );
        statistics.borrow_mut().elements_compared += found.len();
    }
    let mut s = statistics.borrow_mut();
    let many = |i: &Input| {
        i.axes.iter().all(|a| a.0 > 0) && i.axes.iter().filter(|a| a.0 > a.1).count() >= 2
    };
    s.cases += 1;
    s.many_chunks_on_two_axes += usize::from(program.inputs.iter().any(many));
    s.two_stages += usize::from(
        names.iter().filter(|n| ["sum", "mean", "min", "max", "rechunk"].contains(n)).count() >= 2,
    );
    s.empty += usize::from(pool.iter().any(|p| p.whole.is_empty()));
    names.iter().for_each(|n| *s.operations.entry(n).or_default() += 1);
    Ok(())
}

/// More cases: `PROPTEST_CASES=5000`. Another seed: `PROPTEST_RNG_SEED=1`.
#[test]
fn random_programs_match_ndarray() {
    let place = Place::quick();
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 1000;
    }
    if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
        config.rng_seed = RngSeed::Fixed(20_240_229);
    }
    let statistics = RefCell::default();
    let ended =
        TestRunner::new(config).run(&programs(), |program| run(&program, &place, &statistics));
    if let Err(error) = ended {
        panic!("{error}");
    }
    let s = statistics.into_inner();
    println!("{s:#?}");
    assert!(2 * s.many_chunks_on_two_axes >= s.cases, "{s:?}");
    assert!(s.operations.len() >= 20 && s.operations.values().all(|n| *n >= 5), "{s:?}");
}

#[test]
fn the_tests_writer_produces_valid_arrays() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let pair = stored(&Input { axes: vec![(7, 3), (5, 2)], dtype: 0, seed: 3 }, 0, &store);
    assert_eq!(open_array(&store, "input-0").unwrap().info.grid.chunk_counts(), [3, 3]);
    let place = Place::quick();
    assert_eq!(computed(&pair, &place.spec()).unwrap(), pair.whole);
}

/// Empty views of several dtypes were once merged into one input.
#[test]
fn empty_views_of_several_dtypes() {
    let place = Place::quick();
    let empty = |dtype| freestone::zeros([2, 0], dtype, [1, 1]).roll(1, 0);
    let sum = &empty(DType::Float64) + &(&empty(DType::Float32) + &empty(DType::Float64));
    assert_eq!(freestone::compute::<f64>(&sum, &place.spec()).unwrap().shape(), [2, 0]);
}
