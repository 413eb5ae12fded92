//! Weak scaling on AWS Lambda: as many times the work on as many times the environments, which
//! should take the same time.
//!
//! Real worker processes under the emulator, invoked by the real executor. The worker is this
//! program ([`environment`]), with a kernel that sleeps in proportion to its bytes, so that two
//! cores are enough for sixteen environments: what is left is what the client, the driver, the
//! workers and their storage take. That is a folder in memory where there is one: one disk would be
//! asked by all of them, as S3 is not. Each number of environments has a process of its own: its
//! first run finds no environment and starts all, the others find them warm, and their median
//! counts.

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

/// Environments, and with them the work.
const ENVIRONMENTS: [usize; 5] = [1, 2, 4, 8, 16];
/// For each environment.
const N_TASKS: u64 = 192;
/// Elements of a task: 80 kB.
const CHUNK: u64 = 10_000;
/// So that a task sleeps for 250 ms.
const NANOS_PER_BYTE: u64 = 3125;
/// As many as an environment of [`MEMORY_MIB`] runs at once.
const TASKS_AT_ONCE: u64 = 8;
const MEMORY_MIB: u64 = 256;

/// Copies its block after a while.
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

/// What the emulator starts.
pub(crate) fn environment() -> Result<(), Failure> {
    Ok(serve(KernelRegistry::new().with::<Sleeping>(), Stores::default())
        .map_err(|e| e.to_string())?)
}

/// One number of environments, as the parent process asks for it.
#[derive(Args)]
pub(crate) struct Child {
    #[arg(long)]
    environments: usize,
    /// Runs that find their environments warm.
    #[arg(long)]
    repeat: u32,
}

/// What so many environments took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Scaled {
    environments: usize,
    tasks: u64,
    /// The first run, which starts the environments.
    cold_s: f64,
    warm_s: Vec<f64>,
    /// Of the last run.
    invocations: u64,
    most_at_once: u64,
}

impl Scaled {
    fn median_s(&self) -> f64 {
        sample::median(self.warm_s.iter().copied()).unwrap_or(f64::NAN)
    }
}

/// Measures in fresh processes, with so many warm runs of each.
pub(crate) fn measure(repeat: u32) -> Result<Vec<Scaled>, Failure> {
    let one = |n: usize| {
        eprintln!("{n} environments");
        let mut command = process::own("child-scaling")?;
        // What a machine has to say about the way to the network does not concern its own
        // addresses.
        command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
        process::json(
            command.args(["--environments", &n.to_string(), "--repeat", &repeat.to_string()]),
            process::TIME_LIMIT,
        )
    };
    ENVIRONMENTS.into_iter().map(one).collect()
}

/// The slowest of several environments over one.
pub(crate) fn slowest_over_one(all: &[Scaled]) -> Option<f64> {
    let (one, more) = all.split_first()?;
    more.iter().map(|s| s.median_s() / one.median_s()).max_by(f64::total_cmp)
}

/// The table.
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
            &[&numbers],
            &OutputBlocks::new(DType::Float64),
        );
        let planned =
            freestone::plan(&[Target::array(&slept, &at("out")).codec(CodecName::None)], &spec)?;
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
