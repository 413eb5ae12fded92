//! The rows on the AWS Lambda worker, in environments that have exactly the projected memory and
//! are killed above it.

use std::path::Path;
use std::time::Duration;

use freestone::{Error, LambdaExecutor, Spec, Target};
use freestone_engine::driver::RunError;
use freestone_engine::memory::size;
use freestone_engine::task::FailureKind;
use freestone_lambda_emulator::{Cap, Config, Emulator, Stats, worker_binary};
use serde_json::Value;

use super::measure::{Bench, remove};
use super::table::Row;
use super::{chosen, each};
use crate::support::{spec_in, tree};

/// Creates a function of a memory size whose environments are killed above it, or above
/// `cap_bytes`.
fn function(memory_bytes: u64, cap_bytes: Option<u64>) -> Emulator {
    let mut config = Config::new("freestone", worker_binary().unwrap());
    config.memory_mib = memory_bytes.div_ceil(1 << 20);
    config.timeout = Duration::from_secs(600);
    (config.cap, config.cgroup_bytes) = (Cap::Required, cap_bytes);
    Emulator::start(config).unwrap()
}

/// Returns the peak memory of an environment by its cgroup, which includes page cache up to the
/// limit.
fn most(stats: &Stats) -> u64 {
    stats.environments.iter().filter_map(|e| e.max_memory_bytes).max().unwrap()
}

/// The memory use of a row on the worker.
struct Ran {
    projected: u64,
    /// The peak resident memory measured by the worker.
    peak: u64,
    most: u64,
    environments: usize,
}

/// Runs a row locally and through the function, and compares the results.
fn run(bench: &Bench, row: &Row) -> Result<Ran, String> {
    let (mut here, expect) = bench.command(row, "serial", None);
    let here = here.output().unwrap();
    let expected = tree(&expect);
    remove(&expect);
    if !here.status.success() || expected.is_empty() {
        return Err(String::from_utf8_lossy(&here.stderr).into_owned());
    }
    let projected = bench.projected(row);
    let emulator = function(projected, None);
    let (mut command, out) = bench.command(row, "lambda:freestone", None);
    command.env("AWS_ENDPOINT_URL_LAMBDA", emulator.url()).env("AWS_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    let there = command.output().unwrap();
    let found = tree(&out);
    remove(&out);
    let stats = emulator.stats();
    if !there.status.success() {
        return Err(format!(
            "{} with {} kills: {}",
            there.status,
            stats.oom_kills,
            String::from_utf8_lossy(&there.stderr)
        ));
    }
    let report: Value = serde_json::from_slice(&there.stdout).unwrap();
    let (retries, peak) =
        (report["retries"].as_u64().unwrap(), report["worker_peak_mem"].as_u64().unwrap());
    let wrong = [
        (report["projected_mem"] != projected, "another projection"),
        (stats.exits > 0 || stats.oom_kills > 0, "environments were killed"),
        (retries > 0 || stats.function_errors > 0, "something was tried again"),
        (peak > projected, "more than was projected"),
        (found != expected, "another result than here"),
    ];
    match wrong.iter().find(|(is_so, _)| *is_so) {
        Some((_, what)) => Err(format!("{what}: {stats:?}\n{report}")),
        None => {
            Ok(Ran { projected, peak, most: most(&stats), environments: stats.environments.len() })
        }
    }
}

#[test]
#[ignore = "needs memory cgroups and the worker: run by .ci/run lambda"]
fn lambda_projected_memory_is_enough_for_all_rows() {
    let (rows, bench) = (chosen(), Bench::new());
    let ran = each(&rows, |row| run(&bench, row));
    assert_eq!(ran.len(), rows.len());
    let mut faults = Vec::new();
    for (row, ran) in rows.iter().zip(ran) {
        match ran {
            Ok(ran) => println!(
                "{}: {} projected, {} resident, {} in the cgroup of one of {}",
                row.name(),
                size(ran.projected),
                size(ran.peak),
                size(ran.most),
                ran.environments
            ),
            Err(fault) => faults.push(format!("{}: {fault}", row.name())),
        }
    }
    println!("\n{} rows", rows.len());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// Runs a row whose plan needs more memory than the environment has. Returns the violations of the
/// expected failure.
fn in_half(bench: &Bench, row: &Row) -> Result<String, String> {
    let a = freestone::open(bench.input("a", row)).unwrap();
    let array = if row.what == "copy" { a } else { a.sum(0) };
    let spec = Spec {
        parallelism: 1,
        allowed_mem: 1_000_000_000,
        local_mem: 2_000_000_000,
        ..spec_in(&bench.at("half-work"))
    };
    let attempt = |name: &str, cap_bytes: Option<u64>| {
        let out = bench.at(&format!("{}-{}-{name}", row.what, row.stored).replace([' ', ','], "-"));
        let planned = freestone::plan(&[Target::array(&array, &out)], &spec).unwrap();
        let emulator = function(planned.finalized().projected_mem(), cap_bytes);
        let executor = LambdaExecutor::new("freestone", "us-east-1")
            .endpoint(&emulator.url())
            .credentials("test", "test", None)
            .concurrency(1);
        let stage = &planned.finalized().plan().stages[0];
        let ended = freestone::run(&planned, &spec, &executor);
        (ended, (stage.name.clone(), stage.n_tasks()), emulator.stats(), out)
    };
    let (enough, ..) = attempt("whole", None);
    let peak = enough.map_err(|e| e.to_string())?.worker_peak_bytes.unwrap();
    let (ended, (stage, n_tasks), stats, out) = attempt("half", Some(peak / 2));
    let Err(Error::Run(error)) = ended else {
        return Err(format!(
            "{} is enough, which is half of what it takes: {stats:?}",
            size(peak / 2)
        ));
    };
    let RunError::Task { failure, attempts, .. } = error.cause() else {
        return Err(format!("it ends otherwise: {error}"));
    };
    // The task fails twice, in different environments. Each other task fails at most once
    // meanwhile.
    let told = failure.kind == FailureKind::OutOfMemory
        && failure.stage == stage
        && error.to_string().contains(&stage)
        && *attempts == 2;
    if !told
        || stats.exits != stats.oom_kills
        || !(2..=n_tasks + 1).contains(&stats.oom_kills)
        || Path::new(&out).join("zarr.json").exists()
    {
        return Err(format!("{failure:?} after {attempts} attempts: {error}\n{stats:?}"));
    }
    Ok(format!("{} of {}: {error}", size(peak / 2), size(peak)))
}

/// The limit is effective: half of a task's memory is not enough, and the error names the task.
#[test]
#[ignore = "needs memory cgroups and the worker: run by .ci/run lambda"]
fn lambda_half_of_the_memory_is_reported() {
    let bench = Bench::new();
    let rows: Vec<Row> = chosen()
        .into_iter()
        .filter(|r| r.is_tight() && ["copy", "sum, axis 0"].contains(&r.what.as_str()))
        .collect();
    assert!(rows.len() >= 2);
    let faults: Vec<String> = each(&rows, |row| match in_half(&bench, row) {
        Ok(told) => {
            println!("{}: {told}", row.name());
            None
        }
        Err(fault) => Some(format!("{}: {fault}", row.name())),
    })
    .into_iter()
    .flatten()
    .collect();
    println!("\n{} rows", rows.len());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
