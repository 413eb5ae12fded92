//! The cost of driving a run: a million tasks on workers that compute nothing.
//!
//! The executor answers each request with valid receipts for chunks that were never written. The
//! remaining cost is the driver's: scheduling, checks of receipts, journal, commit.
//! [`Workers::AtOnce`] answers immediately, with one request in flight per slot.
//! [`Workers::Simulated`] simulates a thousand environments that start, take requests and answer
//! after a delay, on one thread. [`Workers::Function`] is the AWS Lambda executor with a thousand
//! concurrent invocations of a function in another process ([`function`]).

pub(crate) mod function;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use freestone::sessions::{CommitOptions, Format, MAIN, Repository};
use freestone::{CodecName, DType, RunOptions, Settings, Target};
use freestone_engine::executor::{Executor, ExecutorError, Invocations, Next, TaskSource};
use freestone_engine::grid::try_for_each_coord;
use freestone_engine::machine;
use freestone_engine::storage::reader::{Traffic, Written};
use freestone_engine::task::{Receipt, TaskOutcome, TaskReport, TaskRequest};
use freestone_engine::worker::RunContext;
use serde::{Deserialize, Serialize};

use crate::{Failure, process};
use function::{Descriptors, Function};

/// Requests in flight, or concurrent invocations.
pub(crate) const SLOTS: usize = 1000;
/// The number of tasks of every run.
const N_TASKS: u64 = 1_000_000;
/// The start time of an environment, and the latency of a request and of its answer, as in the
/// emulator (FACTS), in µs.
const COLD_MICROS: u64 = 44_000;
const WARM_MICROS: u64 = 2_000;
/// The duration of a task in µs, short for a thousand environments, so that the driver is busy.
const TASK_MICROS: u64 = 25_000;

/// The kind of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workers {
    /// Immediate answers, out of order.
    AtOnce,
    /// Simulated environments with latencies.
    Simulated,
    /// A function, invoked through the client.
    Function,
}

/// The stages of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stages {
    /// One stage of independent tasks.
    One,
    /// Means of rows and the chunks less their means: two stages, of which the second waits for
    /// parts of the first.
    Several,
}

/// The arguments of one measurement in a child process.
#[derive(Args)]
pub(crate) struct Child {
    #[arg(long)]
    workers: Workers,
    #[arg(long)]
    stages: Stages,
    /// Whether to write to a repository, with a commit at the end.
    #[arg(long)]
    commit: bool,
    #[arg(long, default_value_t = N_TASKS)]
    tasks: u64,
    /// The parent folder of the work directory.
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// The cost of driving.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cost {
    pub(crate) tasks: u64,
    pub(crate) wall_s: f64,
    /// Of the whole process, including the receipts created by the workers.
    pub(crate) micros_per_task: f64,
    pub(crate) peak_rss_bytes: u64,
    /// The share of time that simulated environments waited for a request, until the last request
    /// was taken.
    pub(crate) waited: f64,
    /// Figures of a function.
    pub(crate) client: Option<Client>,
}

/// Figures of a function's client.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Client {
    pub(crate) invocations: u64,
    pub(crate) most_at_once: u64,
    /// Requests whose answers were lost and recovered from records.
    pub(crate) recovered: u64,
    /// The maximum number of open descriptors.
    pub(crate) descriptors: u64,
}

/// Measures in new processes.
pub(crate) fn measure(workers: Workers, stages: Stages, commit: bool) -> Result<Cost, Failure> {
    let name = |v: Option<clap::builder::PossibleValue>| {
        v.map(|v| v.get_name().to_owned()).unwrap_or_default()
    };
    let mut command = process::own("child-driving")?;
    // Proxy settings must not apply to local addresses.
    command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
    command.args([
        "--workers",
        &name(workers.to_possible_value()),
        "--stages",
        &name(stages.to_possible_value()),
    ]);
    command.args(commit.then_some("--commit"));
    process::json(&mut command, process::TIME_LIMIT)
}

/// Measures all cases and prints the results.
pub(crate) fn print_all() -> Result<(), Failure> {
    let at_once = Workers::AtOnce;
    let [simulated, function] =
        [Workers::Simulated, Workers::Function].map(|workers| (workers, Stages::One, false));
    let rows = [
        (at_once, Stages::One, false),
        (at_once, Stages::Several, false),
        (at_once, Stages::One, true),
        simulated,
        function,
    ];
    for (workers, stages, commit) in rows {
        let cost = measure(workers, stages, commit)?;
        let rate = cost.tasks as f64 / cost.wall_s;
        println!(
            "{} tasks, stages: {stages:?}, workers: {workers:?}, {}: {:.2} µs of CPU a task, {} at \
                most, {:.2} s, {rate:.0} tasks/s{}",
            cost.tasks,
            if commit { "committed" } else { "plain" },
            cost.micros_per_task,
            freestone::size(cost.peak_rss_bytes),
            cost.wall_s,
            match cost.client {
                Some(client) => format!("; {client}"),
                None if workers == Workers::Simulated => format!(
                    "; {SLOTS} environments waited {:.1} % of their time",
                    100.0 * cost.waited
                ),
                None => String::new(),
            }
        );
    }
    Ok(())
}

/// Drives a run and returns its cost.
pub(crate) fn run(child: &Child) -> Result<Cost, Failure> {
    let folder = match &child.folder {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let at = |name: &str| folder.path().join(name).display().to_string();
    let spec = Settings {
        work_dir: Some(at("work")),
        parallelism: Some(SLOTS as u64),
        ..Settings::default()
    }
    .resolve()?;
    let array = match child.stages {
        Stages::One => freestone::arange(0.0, 10.0 * child.tasks as f64, 1.0, DType::Float64, 10),
        Stages::Several => {
            let x = freestone::random_uniform(
                [child.tasks / 3 * 10, 20],
                0.0,
                1.0,
                1,
                DType::Float64,
                [10, 10],
            );
            &x - &x.mean(1).expand_dims(1)
        }
    };
    let function = (child.workers == Workers::Function).then(Function::start).transpose()?;
    let answering = Answering { workers: child.workers, waited: Mutex::default() };
    let lambda = function.as_ref().map(Function::executor);
    let executor: &dyn Executor = lambda.as_ref().map_or(&answering, |e| e);
    let descriptors = function.as_ref().map(|_| Descriptors::count());
    let (start, cpu);
    let report = if child.commit {
        let repository = Repository::create(&at("repository"), Format::default())?;
        let mut session = freestone::Session::begin(&repository, MAIN)?;
        session.add(session.target(&array, "out").codec(CodecName::None));
        (start, cpu) = (Instant::now(), machine::process_cpu_ns());
        session.commit_with(
            "driven",
            &spec,
            executor,
            CommitOptions::default(),
            &RunOptions::default(),
        )?
    } else {
        let planned =
            freestone::plan(&[Target::array(&array, at("out")).codec(CodecName::None)], &spec)?;
        (start, cpu) = (Instant::now(), machine::process_cpu_ns());
        freestone::run(&planned, &spec, executor)?
    };
    let (took, wall) = (machine::process_cpu_ns() - cpu, start.elapsed());
    let tasks = report.stages.iter().map(|s| s.tasks).sum::<u64>();
    if std::env::var_os("FREESTONE_BENCH_EXPLAIN").is_some() {
        eprintln!("{report}");
    }
    let client = match (report.invoked, descriptors.map(Descriptors::most).transpose()?) {
        (Some(Invocations { invocations, most_at_once, recovered, .. }), Some(descriptors)) => {
            Some(Client { invocations, most_at_once, recovered, descriptors })
        }
        _ => None,
    };
    Ok(Cost {
        tasks,
        wall_s: wall.as_secs_f64(),
        micros_per_task: took as f64 * 1e-3 / tasks as f64,
        peak_rss_bytes: machine::peak_rss_bytes(),
        waited: answering.waited.into_inner().unwrap_or_else(PoisonError::into_inner),
        client,
    })
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Client { invocations, most_at_once, recovered, descriptors } = self;
        write!(
            f,
            "{invocations} invocations, {most_at_once} at once, {recovered} requests by their \
                records, {descriptors} descriptors at most"
        )
    }
}

/// An executor that answers requests without computing.
#[derive(Debug)]
struct Answering {
    workers: Workers,
    waited: Mutex<f64>,
}

impl Executor for Answering {
    fn name(&self) -> &str {
        "answering"
    }

    fn slots(&self) -> usize {
        SLOTS
    }

    fn shares_process(&self) -> bool {
        false
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn check(&self, _: &RunContext) -> Result<(), ExecutorError> {
        Ok(())
    }

    fn run(&self, context: &RunContext, source: &dyn TaskSource) -> Result<(), ExecutorError> {
        match self.workers {
            Workers::AtOnce => at_once(context, source),
            // This variant uses the AWS Lambda executor.
            Workers::Function => {}
            Workers::Simulated => {
                *self.waited.lock().unwrap_or_else(PoisonError::into_inner) =
                    simulated(context, source)
            }
        }
        Ok(())
    }
}

/// Fills all slots with requests, then returns one that is not the first.
fn at_once(context: &RunContext, source: &dyn TaskSource) {
    let (mut flights, mut at) = (Vec::with_capacity(SLOTS), 0);
    loop {
        let next = if flights.len() < SLOTS { source.try_next() } else { Next::Wait };
        match next {
            Next::Run(request) => flights.push(request),
            Next::Wait if flights.is_empty() => source.wait(),
            Next::Stop if flights.is_empty() => return,
            Next::Wait | Next::Stop => {
                at = (at * 7919 + 17) % flights.len();
                source.finished(answer(context, flights.swap_remove(at), 15_000));
            }
        }
    }
}

/// A request in an environment, with its completion time.
struct Flight {
    due: Instant,
    environment: usize,
    request: TaskRequest,
}

impl PartialEq for Flight {
    fn eq(&self, other: &Flight) -> bool {
        self.due == other.due
    }
}

impl Eq for Flight {}

impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Flight) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Flight {
    fn cmp(&self, other: &Flight) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

/// Assigns requests to idle environments, and returns outcomes at their completion times. Returns
/// the share of time that environments waited for a request, until the last request was taken.
fn simulated(context: &RunContext, source: &dyn TaskSource) -> f64 {
    let mut flights: BinaryHeap<Reverse<Flight>> = BinaryHeap::with_capacity(SLOTS);
    let begin = Instant::now();
    // Idle environments, with the start of their idle time.
    let mut idle: VecDeque<(usize, Instant)> = (0..SLOTS).map(|e| (e, begin)).collect();
    let (mut is_warm, mut n) = (vec![false; SLOTS], 0u64);
    let (mut waited, mut last) = (Duration::ZERO, begin);
    loop {
        let mut next = Next::Wait;
        while let Some(&(environment, since)) = idle.front() {
            next = source.try_next();
            let Next::Run(request) = next else { break };
            idle.pop_front();
            n += 1;
            last = Instant::now();
            waited += last - since;
            let start = if std::mem::replace(&mut is_warm[environment], true) {
                WARM_MICROS
            } else {
                COLD_MICROS + WARM_MICROS
            };
            // A factor from 0.5 to 1.5, equal in each run.
            let spread =
                0.5 + (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f64 / (1u64 << 24) as f64;
            let work = Duration::from_micros(TASK_MICROS * request.count).mul_f64(spread);
            flights.push(Reverse(Flight {
                due: last + Duration::from_micros(start) + work,
                environment,
                request,
            }));
            next = Next::Wait;
        }
        let mut any = false;
        while flights.peek().is_some_and(|f| f.0.due <= Instant::now())
            && let Some(Reverse(flight)) = flights.pop()
        {
            any = true;
            // The wait includes delays of this thread.
            idle.push_back((flight.environment, flight.due));
            source.finished(answer(context, flight.request, TASK_MICROS * 1000));
        }
        match flights.peek() {
            None if next == Next::Stop => {
                return waited.as_secs_f64() / (SLOTS as f64 * (last - begin).as_secs_f64());
            }
            None => source.wait(),
            Some(Reverse(next)) if !any => std::thread::sleep(
                next.due.saturating_duration_since(Instant::now()).min(Duration::from_millis(1)),
            ),
            Some(_) => {}
        }
    }
}

/// Returns the outcome of a worker that ran the request.
fn answer(context: &RunContext, request: TaskRequest, wall_ns: u64) -> TaskOutcome {
    let plan = context.plan.plan();
    let stage = &plan.stages[request.stage.0];
    let done = (request.first..request.first + request.count).map(|task| {
        let coords = stage.task_coords(task);
        let mut receipts = Vec::new();
        for output in &stage.outputs {
            let grid = plan.array(output.array).info.objects();
            let chunks = grid.overlapping(&stage.output_region(output, &coords));
            let _ = try_for_each_coord::<()>(&chunks, |c| {
                let chunk = grid.index(c);
                let hash = chunk.wrapping_mul(0x9E37_79B9_7F4A_7C15);
                receipts.push(Receipt {
                    array: output.array,
                    chunk,
                    written: Written::Object { len: 800, hash },
                });
                Ok(())
            });
        }
        let traffic =
            Traffic { bytes_read: 0, bytes_written: 800, reads: 0, writes: receipts.len() as u64 };
        TaskReport { task, receipts, traffic, cpu_ns: 12_000, wall_ns, peak_bytes: 1_234_567 }
    });
    let done = done.collect();
    let worker = format!("environment {}", request.id % SLOTS as u64);
    TaskOutcome { request, worker, done, failure: None, worker_peak_bytes: Some(15_000_000) }
}
