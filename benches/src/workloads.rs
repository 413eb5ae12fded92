//! Freestone's side of the measurements, in a child process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, ValueEnum};
use freestone::{
    Array, CodecName, DType, Encoding, MemoryStore, RunOptions, RunReport, Scalar, Spec, Stores,
    Target, Threads,
};
use freestone_engine::storage::metadata::array_document;
use freestone_engine::storage::{ArrayInfo, Keys, Store, read_small};
use freestone_engine::{grid::ChunkGrid, machine};
use freestone_expr::{Expression, Inputs};
use serde_json::Map;

use crate::sample::Sample;
use crate::table::Case;
use crate::{Codec, Failure, inputs};

/// One measurement, as the parent process asks for it.
#[derive(Args)]
pub(crate) struct Child {
    pub(crate) work: Work,
    /// Group of inputs.
    #[arg(long)]
    pub(crate) input: PathBuf,
    /// Group of outputs; the work directory is beside it.
    #[arg(long)]
    pub(crate) out: PathBuf,
    #[arg(long)]
    pub(crate) codec: Codec,
    #[arg(long)]
    pub(crate) threads: usize,
    #[arg(long)]
    pub(crate) local_mem: u64,
}

/// One measurement of a row of the table.
#[derive(Args)]
pub(crate) struct CaseChild {
    case: String,
    /// Group of inputs.
    #[arg(long)]
    input: PathBuf,
    /// Group of outputs; the work directory is beside it.
    #[arg(long)]
    out: PathBuf,
    #[arg(long)]
    threads: usize,
    #[arg(long)]
    local_mem: u64,
}

/// The measured quantity.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Work {
    QuadMeans,
    ManySmall,
    MemorySum,
    Tasks,
    PlanScaling,
    MeanAccuracy,
}

impl Work {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Work::QuadMeans => "quad_means",
            Work::ManySmall => "many_small",
            Work::MemorySum => "memory_sum",
            Work::Tasks => "tasks",
            Work::PlanScaling => "plan_scaling",
            Work::MeanAccuracy => "mean_accuracy",
        }
    }

    /// Returns the divisor of the CPU time.
    pub(crate) fn per(self) -> &'static str {
        if self == Work::Tasks { "a task" } else { "a chunk" }
    }
}

/// An environment variable: prints the plan of a row and the report of its run to standard error.
const EXPLAIN: &str = "FREESTONE_BENCH_EXPLAIN";
/// The number of chunks of workloads with small chunks.
pub(crate) const N_SMALL: u64 = 10_000;
/// 10 000 chunks of 1 KB of `float32`.
const MEMORY: [u64; 2] = [1600, 1600];
const MEMORY_CHUNK: [u64; 2] = [16, 16];
/// Two arrays of 5·10⁸ chunks of 1 GB of `float32`.
const VAST: [u64; 3] = [50_000_000, 50_000, 50_000];
const VAST_CHUNK: [u64; 3] = [1000, 500, 500];
const VAST_ALLOWED_MEM: u64 = 10_000_000_000;
/// 10⁹ values, in chunks and in parts that are read back.
const MANY: u64 = 1_000_000_000;
const MANY_CHUNK: u64 = 1_000_000;
const MANY_PART: u64 = 10_000_000;

/// Runs a measurement and returns its cost.
pub(crate) fn run(child: &Child) -> Result<Sample, Failure> {
    let start = Clocks::start();
    let spec = inputs::spec(&child.out.with_extension("work"), child.threads, child.local_mem)?;
    match child.work {
        Work::QuadMeans => quad_means(child, &spec, &start),
        Work::ManySmall => many_small(child, &spec, &start),
        Work::MemorySum => memory_sum(&spec),
        Work::Tasks => tasks(&spec),
        Work::PlanScaling => plan_scaling(spec),
        Work::MeanAccuracy => mean_accuracy(&spec, &start),
    }
}

/// Evaluates a row's expressions, stores the results, and returns the cost.
pub(crate) fn run_case(child: &CaseChild) -> Result<Sample, Failure> {
    let case = Case::named(&child.case)?;
    let start = Clocks::start();
    let spec = inputs::spec(&child.out.with_extension("work"), child.threads, child.local_mem)?;
    let arrays = case
        .kind
        .inputs()
        .iter()
        .map(|name| Ok(((*name).to_owned(), open(&child.input, name)?)))
        .collect::<Result<Inputs, Failure>>()?;
    let times = arrays.get("u").map_or(Ok(0), |u| u.shape().map(|shape| shape[0]))?;
    let results = case.kind.outputs(times).into_iter().map(|(name, text)| {
        let parsed = Expression::parse(&text).map_err(|e| e.to_string())?;
        Ok((name, parsed.array(&arrays).map_err(|e| e.to_string())?))
    });
    let results = results.collect::<Result<Vec<(&str, Array)>, Failure>>()?;
    if let ([(_, number)], true) = (&results[..], case.kind.is_number()) {
        let (number, report) = number_of(number, &spec, &Stores::default())?;
        return Ok(Sample { result: Some(number), ..start.stop(Some(&report)) });
    }
    let (chunks, out) = (case.kind.chunks(times), child.out.display().to_string());
    let target = |(name, array): (&str, Array)| {
        let target = match &chunks {
            Some(chunks) => Target::in_group(&array.rechunk(chunks), &out, name).chunks(chunks),
            None => Target::in_group(&array, &out, name),
        };
        Ok(target.codec(case.codec.ours()))
    };
    let targets = results.into_iter().map(target).collect::<Result<Vec<Target>, Failure>>()?;
    let planned = freestone::plan(&targets, &spec)?;
    let report = freestone::run(&planned, &spec, &Threads::new(spec.threads))?;
    let sample = start.stop(Some(&report));
    if std::env::var_os(EXPLAIN).is_some() {
        eprintln!("{}\n{report:#?}", planned.finalized());
    }
    Ok(sample)
}

fn quad_means(child: &Child, spec: &Spec, start: &Clocks) -> Result<Sample, Failure> {
    let (u, v) = (open(&child.input, "u")?, open(&child.input, "v")?);
    let (codec, out) = (child.codec.ours(), child.out.display().to_string());
    let means: Vec<Target> = quadratic(&u, &v)?
        .iter()
        .map(|(name, mean)| Target::in_group(mean, &out, name).codec(codec).overwrite(true))
        .collect();
    let report =
        freestone::run(&freestone::plan(&means, spec)?, spec, &Threads::new(spec.threads))?;
    Ok(start.stop(Some(&report)))
}

fn many_small(child: &Child, spec: &Spec, start: &Clocks) -> Result<Sample, Failure> {
    let y = open(&child.input, "tiny")? * 2.0 + 1.0;
    let (sum, report) = sum_of(&(&y * &y), spec, &Stores::default())?;
    Ok(Sample { result: Some(sum), ..start.stop(Some(&report)) })
}

fn memory_sum(spec: &Spec) -> Result<Sample, Failure> {
    let (stores, x) = in_memory(spec)?;
    let start = Clocks::start();
    let (sum, report) = sum_of(&x, spec, &stores)?;
    Ok(Sample { result: Some(sum), ..start.stop(Some(&report)) })
}

fn tasks(spec: &Spec) -> Result<Sample, Failure> {
    let (stores, x) = in_memory(spec)?;
    let start = Clocks::start();
    let y = x * 2.0 + 1.0;
    let target = Target::array(&y, place(&stores, "y"))
        .with_stores(&stores)
        .chunks(MEMORY_CHUNK)
        .codec(CodecName::None);
    let report = run_in(&target, spec, &stores)?;
    let sample = start.stop(Some(&report));
    if sample.tasks != N_SMALL {
        return Err(format!(
            "the plan has {} tasks, not one for each of {N_SMALL} chunks",
            sample.tasks
        )
        .into());
    }
    Ok(sample)
}

fn plan_scaling(spec: Spec) -> Result<Sample, Failure> {
    let stores = Stores::default();
    let store = memory_store(&stores);
    let info = ArrayInfo {
        dtype: DType::Float32,
        fill: Scalar::zero(DType::Float32),
        grid: ChunkGrid::regular(&VAST, &VAST_CHUNK)?,
        stored_shape: Some(VAST_CHUNK.to_vec()),
        codecs: Encoding::from(CodecName::Zstd(0)).codecs(DType::Float32),
        keys: Keys::Default { separator: '/' },
        shard: None,
        window: None,
    };
    let document = serde_json::to_vec(&array_document(&info, &[], &Map::new()))?;
    for name in ["u", "v"] {
        store.write(&format!("{name}/zarr.json"), &document)?;
    }
    // Memory limits that leave the planner a choice.
    let spec = Spec { allowed_mem: VAST_ALLOWED_MEM, local_mem: 4 * VAST_ALLOWED_MEM, ..spec };
    machine::reset_peak_rss();
    let (start, before) = (Clocks::start(), machine::peak_rss_bytes());
    let (u, v) = (freestone::open_in(&store, "u")?, freestone::open_in(&store, "v")?);
    let means = quadratic(&u, &v)?;
    let targets: Vec<Target> = means
        .iter()
        .map(|(name, mean)| {
            Target::array(mean, format!("{}/{name}", store.url())).with_stores(&stores)
        })
        .collect();
    let planned = freestone::plan(&targets, &spec)?;
    let text = planned.finalized().to_string();
    let sample = start.stop(None);
    if text.lines().count() < 10 {
        return Err(format!("this is no plan: {text}").into());
    }
    Ok(Sample {
        grown_bytes: Some(sample.peak_rss_bytes.saturating_sub(before)),
        result: Some(slowest_plan(&stores, &store, &spec)?),
        ..sample
    })
}

/// Shape and chunks of a large array, an expression of it, and the chunks of the result if
/// different.
type VastPlan = (&'static [u64], &'static [u64], &'static str, Option<&'static [u64]>);
/// Plans of Cubed's own tests, and difficult cases for this planner.
const PLANS: &[VastPlan] = &[
    (&[25_000_000, 25_000_000], &[5000, 5000], "matmul(x, x)", None),
    (&[50_000, 987, 1920], &[10, 987, 1920], "mean(x*x, axis=0)", None),
    (&[350_640, 721, 1440], &[31, 721, 1440], "x", Some(&[350_640, 10, 10])),
    (&[10_000_000, 1000], &[100, 1000], "cumulative_sum(x, axis=0)", None),
    (&[1_000_000, 1_000_000], &[1000, 1000], "x + matrix_transpose(x)", None),
    (&[1_000_000, 1_000_000], &[1000, 1000], "pad(x, 3) * 2", None),
    (&[1_000_000, 1_000_000], &[1000, 1000], "x[1:-1, 2:] - x[1:-1, :-2] + x[2:, 1:-1]", None),
    (&[1_000_000_000], &[1000], "sum(x)", None),
    (&[1_000_000, 1_000_000], &[1000, 1000], "reshape(x, [-1])", None),
];

/// Returns the planning seconds of the slowest of several plans.
fn slowest_plan(stores: &Stores, store: &Arc<dyn Store>, spec: &Spec) -> Result<f64, Failure> {
    let mut slowest: f64 = 0.0;
    for (i, (shape, chunk, text, chunks)) in PLANS.iter().enumerate() {
        let info = ArrayInfo {
            dtype: DType::Float32,
            fill: Scalar::zero(DType::Float32),
            grid: ChunkGrid::regular(shape, chunk)?,
            stored_shape: Some(chunk.to_vec()),
            codecs: Encoding::from(CodecName::Zstd(0)).codecs(DType::Float32),
            keys: Keys::Default { separator: '/' },
            shard: None,
            window: None,
        };
        store.write(
            &format!("in-{i}/zarr.json"),
            &serde_json::to_vec(&array_document(&info, &[], &Map::new()))?,
        )?;
        let start = Instant::now();
        let x = freestone::open_in(store, &format!("in-{i}"))?;
        let parsed = Expression::parse(text).map_err(|e| e.to_string())?;
        let result = parsed
            .array(&std::iter::once(("x".to_owned(), x)).collect::<Inputs>())
            .map_err(|e| e.to_string())?;
        let result = chunks.map_or_else(|| result.clone(), |c| result.rechunk(c));
        freestone::plan(
            &[Target::array(&result, format!("{}/out-{i}", store.url())).with_stores(stores)],
            spec,
        )?;
        slowest = slowest.max(start.elapsed().as_secs_f64());
    }
    Ok(slowest)
}

/// Returns the larger relative error of `float32` means of 10⁹ values of about 300: of random
/// values and of equal ones.
fn mean_accuracy(spec: &Spec, start: &Clocks) -> Result<Sample, Failure> {
    let mean = |x: &Array| {
        Ok::<f64, Failure>(f64::from(freestone::compute::<f32>(&x.mean(()), spec)?.sum()))
    };
    let random = freestone::random_uniform([MANY], 299.0, 301.0, 41, DType::Float32, [MANY_CHUNK]);
    let equal = 300.1f32;
    let means = [
        mean(&random)?,
        mean(&freestone::full([MANY], f64::from(equal), DType::Float32, [MANY_CHUNK]))?,
    ];
    let expect = [exact_mean(&random, spec)?, f64::from(equal)];
    let errors = means.iter().zip(expect).map(|(mean, expect)| (mean - expect).abs() / expect);
    Ok(Sample { result: Some(errors.fold(0.0, f64::max)), ..start.stop(None) })
}

/// Computed in integers: between 256 and 512 a `float32` is a multiple of 2⁻¹⁵.
fn exact_mean(x: &Array, spec: &Spec) -> Result<f64, Failure> {
    const STEPS: f32 = 32_768.0;
    let (mut sum, mut inside) = (0i64, true);
    for first in (0..MANY).step_by(MANY_PART as usize) {
        let part = freestone::compute::<f32>(
            &x.slice((first as i64)..((first + MANY_PART) as i64), 0),
            spec,
        )?;
        inside &= part.iter().all(|x| (256.0..512.0).contains(x));
        sum += part.iter().map(|x| (x * STEPS) as i64).sum::<i64>();
    }
    if inside {
        Ok(sum as f64 / f64::from(STEPS) / MANY as f64)
    } else {
        Err("these are not values of about 300".into())
    }
}

fn open(group: &Path, name: &str) -> Result<Array, Failure> {
    Ok(freestone::open(group.join(name).display().to_string())?)
}

fn quadratic(u: &Array, v: &Array) -> Result<[(&'static str, Array); 3], Failure> {
    Ok([("uu", (u * u).mean(0)), ("uv", (u * v).mean(0)), ("vv", (v * v).mean(0))])
}

/// Returns the `float64` sum of an array, and the cost.
fn sum_of(array: &Array, spec: &Spec, stores: &Stores) -> Result<(f64, RunReport), Failure> {
    number_of(&array.astype(DType::Float64).sum(()), spec, stores)
}

/// Returns the value of a `float64` array with one element, and the cost. `compute` would return no
/// report.
fn number_of(array: &Array, spec: &Spec, stores: &Stores) -> Result<(f64, RunReport), Failure> {
    let store = memory_store(stores);
    let target = Target::array(array, format!("{}/sum", store.url()))
        .with_stores(stores)
        .codec(CodecName::None);
    let report = run_in(&target, spec, stores)?;
    let bytes = read_small(&*store, "sum/c", 8)?.ok_or("there is no sum")?;
    Ok((f64::from_le_bytes(bytes.as_slice().try_into()?), report))
}

fn run_in(target: &Target, spec: &Spec, stores: &Stores) -> Result<RunReport, Failure> {
    let options = RunOptions { stores: stores.clone(), ..RunOptions::default() };
    let planned = freestone::plan(std::slice::from_ref(target), spec)?;
    Ok(freestone::run_with(&planned, spec, &Threads::new(spec.threads), &options)?)
}

/// Creates an array of small chunks of noise in memory. Returns it with its stores.
fn in_memory(spec: &Spec) -> Result<(Stores, Array), Failure> {
    let stores = Stores::default();
    let store = memory_store(&stores);
    let noise = freestone::random_uniform(MEMORY, -1.0, 1.0, 31, DType::Float32, MEMORY_CHUNK);
    let target = Target::array(&noise, format!("{}/x", store.url()))
        .with_stores(&stores)
        .chunks(MEMORY_CHUNK)
        .codec(CodecName::None);
    run_in(&target, spec, &stores)?;
    let x = freestone::open_in(&store, "x")?;
    Ok((stores, x))
}

/// Creates a store in memory.
fn memory_store(stores: &Stores) -> Arc<dyn Store> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    stores.insert(Arc::clone(&store));
    store
}

/// Returns an array's location in a new store in memory.
fn place(stores: &Stores, name: &str) -> String {
    format!("{}/{name}", memory_store(stores).url())
}

/// The start of the measurement.
struct Clocks {
    wall: Instant,
    cpu_ns: u64,
}

impl Clocks {
    fn start() -> Clocks {
        Clocks { wall: Instant::now(), cpu_ns: machine::process_cpu_ns() }
    }

    /// Returns the cost since the start.
    fn stop(&self, report: Option<&RunReport>) -> Sample {
        let zstd = zstd_safe::version_string().to_owned();
        Sample {
            wall_s: self.wall.elapsed().as_secs_f64(),
            cpu_s: (machine::process_cpu_ns() - self.cpu_ns) as f64 * 1e-9,
            peak_rss_bytes: machine::peak_rss_bytes(),
            versions: BTreeMap::from([
                ("freestone".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
                ("zstd".to_owned(), zstd),
            ]),
            tasks: report.map_or(0, |r| r.stages.iter().map(|s| s.tasks).sum()),
            result: None,
            projected_bytes: report.map(|r| r.projected_bytes),
            grown_bytes: None,
        }
    }
}
