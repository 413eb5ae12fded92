//! Benchmarks of Freestone against peers, against a floor, and against bars.
//!
//! `run` and `bars` start each measurement in a new process, one system after the other
//! ([`rounds`]), on inputs that are generated once ([`inputs`]). Freestone's processes are this
//! program with a hidden subcommand: [`workloads`] runs Freestone, and [`floor`] measures the C
//! libraries and [`loops`] alone. Peers are in `peers/peer.py`. [`table`] has the workloads that
//! are compared with the floor, [`observers`] the cost of observers, [`scaling`] the scaling over
//! AWS Lambda environments, [`starts`] their start time, and [`remote`] the gain of prefetch.
//! [`report`] prints and stores the results; [`bars`] checks the limits.

#![allow(clippy::print_stdout, reason = "results go to stdout")]
#![cfg_attr(test, allow(clippy::unwrap_used))]

#[path = "../../tests/support/forward_store.rs"]
#[macro_use]
#[allow(unused_macros, reason = "some are for stores of the tests")]
mod forward_store;

mod bars;
mod compile;
mod driving;
mod floor;
mod inputs;
mod kernels;
mod loops;
mod native;
mod observers;
mod process;
mod remote;
mod report;
mod rounds;
mod sample;
mod scaling;
mod starts;
mod table;
#[path = "../../examples/quadratic_means/winds.rs"]
mod winds;
mod workloads;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use freestone::CodecName;
use serde::Serialize;

#[global_allocator]
static ALLOCATOR: freestone_allocator::Allocator = freestone_allocator::Allocator;

type Failure = Box<dyn Error>;

/// Measure Freestone
#[derive(Parser)]
#[command(name = "freestone-bench")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure one workload, alternating with other systems, and store the result
    Run {
        workload: Workload,
        /// Rows of the table, for `workload` (default: all)
        #[arg(value_name = "NAME", value_parser = table::Case::named)]
        cases: Vec<table::Case>,
        #[command(flatten)]
        setup: Setup,
        /// Systems to compare with, such as dask,cubed,tensorstore
        #[arg(long, value_delimiter = ',')]
        vs: Vec<Peer>,
        /// Date of the result, YYYY-MM-DD (default: today)
        #[arg(long)]
        date: Option<String>,
        /// Also measure clean builds, which take long, for `compile_time`
        #[arg(long)]
        cold: bool,
    },
    /// Measure all parts and compare them with the bars; fails if one is missed
    Bars {
        #[command(flatten)]
        setup: Setup,
        /// Skip the bars that need Python
        #[arg(long)]
        no_peers: bool,
        /// Parts to check, such as spine,workloads (default: all)
        #[arg(long, value_delimiter = ',')]
        only: Vec<Part>,
    },
    #[command(hide = true)]
    ChildFreestone(workloads::Child),
    #[command(hide = true)]
    ChildKernels,
    #[command(hide = true)]
    ChildFloor(floor::Child),
    #[command(hide = true)]
    ChildCase(workloads::CaseChild),
    #[command(hide = true)]
    ChildObservers(observers::Child),
    #[command(hide = true)]
    ChildDriving(driving::Child),
    #[command(hide = true)]
    ChildAnswering,
    #[command(hide = true)]
    ChildScaling(scaling::Child),
    #[command(hide = true)]
    ChildEnvironment,
}

/// A part of the bars
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Quadratic means compared with the peers; planning, tasks and small chunks
    Spine,
    /// The rows of the table, compared with the floor and the peers
    Workloads,
    /// Kernels compared with NumPy
    Kernels,
    /// The cost of an event for observers
    Observers,
    /// A million tasks on workers that compute nothing.
    Driving,
    /// More work on more environments.
    Scaling,
    /// The time to the first answer of a new environment
    Starts,
}

/// A benchmark of `run`
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Workload {
    /// Means over time of u·u, u·v and v·v, from Zarr to Zarr
    QuadMeans,
    /// A sum over 10 000 small chunks, and the memory cost of chunks and tasks
    ManySmall,
    /// Rows of the table in the README, each compared with its floor
    #[value(name = "workload")]
    Rows,
    /// Reads of remote chunks with and without prefetch
    Remote,
    /// Planning of quadratic means of 1 EB in 10⁹ chunks
    PlanScaling,
    /// Operations on blocks without an engine; `--vs numpy` compares
    Kernels,
    /// An event for progress bars, history and report: CPU time, and instructions by callgrind
    Observers,
    /// A million tasks on workers that compute nothing: cost of the driver, and idle time of a
    /// thousand workers
    Driving,
    /// 1 to 16 environments with work in proportion: total time
    Scaling,
    /// The time to the first answer of a new AWS Lambda worker
    Starts,
    /// Compilation after a change in an elementwise loop; fails if it takes too long
    CompileTime,
}

/// Parameters of the measurement
#[derive(Args, Clone)]
struct Setup {
    /// Size of the largest inputs (default: 2 GB for `quad_means`, 600 MB for `workload`)
    #[arg(long, value_parser = freestone::parse_size)]
    size: Option<u64>,
    /// Codec of inputs and outputs, for `quad_means`
    #[arg(long, value_enum, default_value_t = Codec::Zstd)]
    codec: Codec,
    /// Threads of every system
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Memory limit of Freestone's process
    #[arg(long, default_value = "400MB", value_parser = freestone::parse_size)]
    local_mem: u64,
    /// Number of processes of each system, of which the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Folder of inputs and temporary outputs
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/data"))]
    data: PathBuf,
}

impl Setup {
    /// Returns the total bytes of u and v, for `quad_means`.
    fn size(&self) -> u64 {
        self.size.unwrap_or(2_000_000_000)
    }

    /// Returns the approximate bytes of a row's largest inputs.
    fn row_size(&self) -> u64 {
        self.size.unwrap_or(600_000_000)
    }
}

/// Codecs that every system supports
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Codec {
    /// zstd at its default level
    Zstd,
    /// lz4 with byte shuffle, by blosc
    Blosc,
    /// Uncompressed
    None,
}

impl Codec {
    fn name(self) -> &'static str {
        match self {
            Codec::Zstd => "zstd",
            Codec::Blosc => "blosc",
            Codec::None => "none",
        }
    }

    fn ours(self) -> CodecName {
        match self {
            Codec::Zstd => CodecName::Zstd(0),
            Codec::Blosc => CodecName::Lz4,
            Codec::None => CodecName::None,
        }
    }
}

/// The systems to compare with
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// dask.array on its threaded scheduler
    Dask,
    /// Cubed with more fusion and uncompressed intermediates
    Cubed,
    /// Cubed with default settings
    CubedDefault,
    /// A hand-written loop over TensorStore
    Tensorstore,
    /// NumPy on one thread, for `kernels` only
    Numpy,
}

impl Peer {
    /// Returns the name in `peer.py`.
    fn system(self) -> &'static str {
        match self {
            Peer::Dask => "dask",
            Peer::Cubed => "cubed-tuned",
            Peer::CubedDefault => "cubed",
            Peer::Tensorstore => "tensorstore",
            Peer::Numpy => "numpy",
        }
    }
}

fn main() -> ExitCode {
    match dispatch(Arguments::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a command. Returns true if no bar was missed.
fn dispatch(command: Command) -> Result<bool, Failure> {
    match command {
        Command::Run { workload, ref vs, .. }
            if vs.iter().any(|p| (*p == Peer::Numpy) != (workload == Workload::Kernels)) =>
        {
            return Err("invalid `--vs`: expected numpy for `kernels`, and only for it".into());
        }
        Command::Run { workload, ref cases, .. }
            if !cases.is_empty() && workload != Workload::Rows =>
        {
            return Err("rows are valid for `run workload` only".into());
        }
        Command::Run { workload: Workload::Rows, cases, setup, vs, date, .. } => {
            let cases = if cases.is_empty() { table::CASES.to_vec() } else { cases };
            let measured = cases
                .into_iter()
                .map(|case| Ok((case, rounds::row(&setup, case, &vs)?)))
                .collect::<Result<Vec<_>, Failure>>()?;
            report::keep_rows(&measured, &setup, date)?;
        }
        Command::Run { workload: Workload::QuadMeans, setup, vs, date, .. } => {
            report::keep(&rounds::quad_means(&setup, &vs)?, &setup, date)?;
        }
        Command::Run { workload: Workload::ManySmall, setup, vs, date, .. } => {
            let mut measured = rounds::many_small(&setup, &vs)?;
            for work in [workloads::Work::MemorySum, workloads::Work::Tasks] {
                let micros = rounds::micros(&setup, work)?;
                measured.notes.push(format!(
                    "{}: {micros:.1} µs of CPU {}",
                    work.name(),
                    work.per()
                ));
            }
            report::keep(&measured, &setup, date)?;
        }
        Command::Run { workload: Workload::PlanScaling, setup, .. } => {
            let (seconds, grown, slowest) = rounds::plan_scaling(&setup)?;
            println!("slowest other large plan: {slowest:.4} s");
            println!(
                "planned quadratic means of 1 EB in 10⁹ chunks, and wrote the plan as text: \
                    {seconds:.4} s, {} more memory",
                freestone::size(grown)
            );
        }
        Command::Run { workload: Workload::Observers, setup, .. } => {
            let observers::Cost { micros, instructions } = observers::measure(setup.repeat)?;
            let instructions = instructions
                .map_or("instructions not counted (valgrind is missing)".into(), |n| {
                    format!("{n:.0} instructions")
                });
            println!(
                "an event for bars, history and report: {micros:.2} µs of CPU, {instructions}"
            );
        }
        Command::Run { workload: Workload::Driving, .. } => driving::print_all()?,
        Command::Run { workload: Workload::Scaling, setup, .. } => {
            println!("{}", scaling::markdown(&scaling::measure(setup.repeat)?))
        }
        Command::Run { workload: Workload::Starts, .. } => {
            println!("a new worker's first answer: {:.1} ms", starts::first_answer_ms()?)
        }
        Command::Run { workload: Workload::Remote, setup, .. } => remote::print_all(setup.repeat)?,
        Command::Run { workload: Workload::CompileTime, cold, .. } => {
            return compile::measure(cold);
        }
        Command::Run { workload: Workload::Kernels, setup, vs, date, .. } => {
            report::keep_kernels(&kernels::measure(&setup, !vs.is_empty())?, &setup, date)?
        }
        Command::Bars { setup, no_peers, only } => return bars::check(&setup, no_peers, &only),
        Command::ChildFreestone(child) => {
            println!("{}", serde_json::to_string(&workloads::run(&child)?)?)
        }
        Command::ChildKernels => println!("{}", serde_json::to_string(&kernels::run()?)?),
        Command::ChildFloor(child) => println!("{}", serde_json::to_string(&floor::run(&child)?)?),
        Command::ChildCase(child) => {
            println!("{}", serde_json::to_string(&workloads::run_case(&child)?)?)
        }
        Command::ChildDriving(child) => {
            println!("{}", serde_json::to_string(&driving::run(&child)?)?)
        }
        Command::ChildAnswering => driving::function::answer()?,
        Command::ChildScaling(child) => {
            println!("{}", serde_json::to_string(&scaling::run(&child)?)?)
        }
        Command::ChildEnvironment => scaling::environment()?,
        Command::ChildObservers(child) => println!("{}", observers::run(&child)?),
    }
    Ok(true)
}
