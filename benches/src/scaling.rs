//! Weak scaling on AWS Lambda: work in proportion to the number of environments, which should take
//! constant time.
//!
//! Real worker processes run under the emulator, invoked by the real executor. The worker is this
//! program ([`environment`]) with a kernel that sleeps in proportion to its bytes, so that two
//! cores suffice for sixteen environments. The remaining cost is that of client, driver, workers
//! and storage. Storage is a folder in memory if available, because all environments would share
//! one disk, unlike S3. Each number of environments has its own process. Its first run starts all
//! environments; the others reuse them, and their median counts.

use std::fmt::Write;
use std::time::{Duration, Instant};

use clap::Args;
use freestone::{
    Block, BlockMut, CodecName, DType, KernelError, LambdaExecutor, OutputBlocks, RunReport,
    Scratch, Settings, Stores, Target, UserKernel,
};
use freestone_lambda::{KernelRegistry, serve};
use freestone_lambda_emulator::{Cap, Config, Emulator};
use serde::{Deserialize, Serialize};

use crate::{Failure, process, sample};

/// The numbers of environments, and the factors of the work.
const ENVIRONMENTS: [usize; 5] = [1, 2, 4, 8, 16];
/// The number of tasks per environment.
const N_TASKS: u64 = 192;
/// Elements of a task, 80 kB.
const CHUNK: u64 = 10_000;
/// The speed at which a task sleeps for 250 ms.
const NANOS_PER_BYTE: u64 = 3125;
/// The number of concurrent tasks of an environment with [`MEMORY_MIB`].
const TASKS_AT_ONCE: u64 = 8;
const MEMORY_MIB: u64 = 256;

/// A kernel that copies its block after a delay.
#[derive(Debug, Serialize, Deserialize)]
struct Sleeping {
    nanos_per_byte: u64,
}

impl UserKernel for Sleeping {
    const NAME: &'static str = "sleeping";
    const VERSION: u32 = 1;

    fn scratch_bytes(&self, _inputs: &[&[usize]], _output: &[usize]) -> u64 {
        0
    }

    fn apply(
        &self,
        inputs: &[Block<'_>],
        output: &mut BlockMut<'_>,
        _scratch: &mut Scratch<'_>,
    ) -> Result<(), KernelError> {
        std::thread::sleep(Duration::from_nanos(
            self.nanos_per_byte * inputs[0].bytes.len() as u64,
        ));
        output.bytes.copy_from_slice(inputs[0].bytes);
        Ok(())
    }
}

/// The worker program that the emulator starts.
pub(crate) fn environment() -> Result<(), Failure> {
    Ok(serve(KernelRegistry::new().with::<Sleeping>(), Stores::default())
        .map_err(|e| e.to_string())?)
}

/// The arguments of one measurement in a child process.
#[derive(Args)]
pub(crate) struct Child {
    #[arg(long)]
    environments: usize,
    /// The number of runs with warm environments.
    #[arg(long)]
    repeat: u32,
}

/// The result for a number of environments.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Scaled {
    environments: usize,
    tasks: u64,
    /// The duration of the first run, which starts the environments.
    cold_s: f64,
    warm_s: Vec<f64>,
    /// Figures of the last run.
    invocations: u64,
    most_at_once: u64,
}

impl Scaled {
    fn median_s(&self) -> f64 {
        sample::median(self.warm_s.iter().copied()).unwrap_or(f64::NAN)
    }
}

/// Measures in new processes, with several warm runs each.
pub(crate) fn measure(repeat: u32) -> Result<Vec<Scaled>, Failure> {
    let one = |n: usize| {
        eprintln!("{n} environments");
        let mut command = process::own("child-scaling")?;
        // Proxy settings must not apply to local addresses.
        command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
        process::json(
            command.args(["--environments", &n.to_string(), "--repeat", &repeat.to_string()]),
            process::TIME_LIMIT,
        )
    };
    ENVIRONMENTS.into_iter().map(one).collect()
}

/// Returns the ratio of the slowest of several environments to one.
pub(crate) fn slowest_over_one(all: &[Scaled]) -> Option<f64> {
    let (one, more) = all.split_first()?;
    more.iter().map(|s| s.median_s() / one.median_s()).max_by(f64::total_cmp)
}

/// Formats the table.
pub(crate) fn markdown(all: &[Scaled]) -> String {
    let ideal = (N_TASKS / TASKS_AT_ONCE * NANOS_PER_BYTE * CHUNK * 8) as f64 * 1e-9;
    let mut text = format!(
        "{N_TASKS} tasks for each environment, {TASKS_AT_ONCE} at once, each of which sleeps {:.0} \
            ms for its {} kB: {ideal:.2} s if nothing else took time.\n\n",
        (NANOS_PER_BYTE * CHUNK * 8) as f64 * 1e-6,
        CHUNK * 8 / 1000
    );
    text += "| environments | tasks | cold (s) | warm (s) | over one | tasks/s | invocations | \
        most at once |\n| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";
    let one = all.first().map_or(f64::NAN, Scaled::median_s);
    for s in all {
        let _ = writeln!(
            text,
            "| {} | {} | {:.2} | {:.2} | {:.3} | {:.0} | {} | {} |",
            s.environments,
            s.tasks,
            s.cold_s,
            s.median_s(),
            s.median_s() / one,
            s.tasks as f64 / s.median_s(),
            s.invocations,
            s.most_at_once
        );
    }
    text
}

/// Runs once with cold environments, then with warm ones.
pub(crate) fn run(child: &Child) -> Result<Scaled, Failure> {
    let mut config = Config::new("scaling", std::env::current_exe()?);
    config.arguments = vec!["child-environment".into()];
    (config.memory_mib, config.concurrency, config.cap) =
        (MEMORY_MIB, child.environments, Cap::IfAvailable);
    config.timeout = Duration::from_secs(60);
    let emulator = Emulator::start(config)?;
    let executor = LambdaExecutor::new("scaling", "us-east-1")
        .endpoint(&emulator.url())
        .credentials("key", "secret", None);
    let executor =
        executor.concurrency(child.environments).function_timeout(Duration::from_secs(60));
    let tasks = N_TASKS * child.environments as u64;
    let once = || -> Result<(f64, RunReport), Failure> {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let spec = Settings {
            work_dir: Some(at("work")),
            parallelism: Some(child.environments as u64),
            ..Settings::default()
        }
        .resolve()?;
        let numbers = freestone::arange(0.0, (CHUNK * tasks) as f64, 1.0, DType::Float64, CHUNK);
        let slept = freestone::map_blocks(
            &Sleeping { nanos_per_byte: NANOS_PER_BYTE },
            [&numbers],
            &OutputBlocks::new(DType::Float64),
        );
        let planned =
            freestone::plan(&[Target::array(&slept, at("out")).codec(CodecName::None)], &spec)?;
        let start = Instant::now();
        let report = freestone::run(&planned, &spec, &executor)?;
        Ok((start.elapsed().as_secs_f64(), report))
    };
    let (cold_s, mut report) = once()?;
    let mut warm_s = Vec::new();
    for _ in 0..child.repeat {
        let (seconds, last) = once()?;
        warm_s.push(seconds);
        report = last;
    }
    if std::env::var_os("FREESTONE_BENCH_EXPLAIN").is_some() {
        eprintln!("{report}\n{:?}\n{:?}", report.invoked, emulator.stats());
    }
    let invoked = report.invoked.unwrap_or_default();
    Ok(Scaled {
        environments: child.environments,
        tasks,
        cold_s,
        warm_s,
        invocations: invoked.invocations,
        most_at_once: invoked.most_at_once,
    })
}
