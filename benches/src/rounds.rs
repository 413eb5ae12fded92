//! Alternating measurements of systems, each in a new process.
//!
//! A round runs every system once, so that other load on the machine affects all of them.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::floor::Floor;
use crate::sample::{Measured, Row, Sample, median};
use crate::table::{BLOCK, CASES, Case, Geometry, Kind};
use crate::workloads::{N_SMALL, Work};
use crate::{Codec, Failure, Peer, Setup, inputs, process};

/// The tolerance of sums in different orders.
const SUM_TOLERANCE: f64 = 1e-8;

/// Measures quadratic means on Freestone and the peers, with their floor. The first round checks
/// that results agree.
pub(crate) fn quad_means(setup: &Setup, vs: &[Peer]) -> Result<Measured, Failure> {
    measure(
        setup,
        Job::Work(Work::QuadMeans),
        &inputs::winds(setup, setup.size(), setup.codec)?,
        vs,
    )
}

/// Measures a sum over many small chunks on Freestone and the peers.
pub(crate) fn many_small(setup: &Setup, vs: &[Peer]) -> Result<Measured, Failure> {
    measure(setup, Job::Work(Work::ManySmall), &inputs::tiny(setup)?, vs)
}

/// Measures the CPU microseconds per chunk or task in memory.
pub(crate) fn micros(setup: &Setup, work: Work) -> Result<f64, Failure> {
    let samples = repeated(setup, work)?;
    Ok(median(samples.iter().map(|s| s.cpu_s)).unwrap_or_default() * 1e6 / N_SMALL as f64)
}

/// Measures the seconds to plan quadratic means of 1 EB and to serialize the plan, and the memory.
pub(crate) fn plan_scaling(setup: &Setup) -> Result<(f64, u64, f64), Failure> {
    let samples = repeated(setup, Work::PlanScaling)?;
    let grown = samples.iter().filter_map(|s| s.grown_bytes).max().unwrap_or_default();
    let slowest = median(samples.iter().filter_map(|s| s.result)).unwrap_or_default();
    Ok((median(samples.iter().map(|s| s.wall_s)).unwrap_or_default(), grown, slowest))
}

/// Measures the relative error of `float32` means of 10⁹ values of about 300, once, because it is
/// deterministic.
pub(crate) fn mean_accuracy(setup: &Setup) -> Result<f64, Failure> {
    let scratch = scratch(setup)?;
    freestone(setup, Work::MeanAccuracy, scratch.path(), scratch.path())?
        .result
        .ok_or_else(|| "missing mean".into())
}

/// Runs a workload of Freestone without peers.
fn repeated(setup: &Setup, work: Work) -> Result<Vec<Sample>, Failure> {
    let scratch = scratch(setup)?;
    (0..setup.repeat).map(|_| freestone(setup, work, scratch.path(), scratch.path())).collect()
}

/// A temporary folder for outputs on the file system of the inputs.
fn scratch(setup: &Setup) -> Result<tempfile::TempDir, Failure> {
    fs::create_dir_all(&setup.data)?;
    Ok(tempfile::Builder::new().prefix("out-").tempdir_in(&setup.data)?)
}

/// A job measured in rounds: a workload with parameters, or a row of the table.
#[derive(Clone, Copy)]
enum Job {
    Work(Work),
    Row(Case),
}

impl Job {
    fn name(self) -> &'static str {
        match self {
            Job::Work(work) => work.name(),
            Job::Row(case) => case.name,
        }
    }

    /// Returns the name in `peer.py`, and the codec of outputs.
    fn of_peers(self, setup: &Setup) -> (&'static str, Codec) {
        match self {
            Job::Work(Work::QuadMeans) => ("quad_means", setup.codec),
            Job::Work(work) => (work.name(), Codec::Zstd),
            Job::Row(case) => (case.kind.name(), case.codec),
        }
    }

    /// Returns the row with its floor.
    fn floor(self, setup: &Setup) -> Option<Case> {
        match self {
            Job::Work(Work::QuadMeans) => {
                CASES.into_iter().find(|c| c.kind == Kind::QuadMeans && c.codec == setup.codec)
            }
            Job::Work(_) => None,
            Job::Row(case) => Some(case),
        }
    }

    /// Returns the reason if Freestone lacks a function.
    fn lacks(self) -> Option<String> {
        let Job::Row(case) = self else { return None };
        case.lacks().map(|function| format!("missing function {function}"))
    }

    /// Returns the written arrays; none if the result is one number.
    fn outputs(self) -> Vec<&'static str> {
        match self {
            Job::Work(Work::QuadMeans) => vec!["uu", "uv", "vv"],
            Job::Work(_) => Vec::new(),
            Job::Row(case) if case.kind.is_number() => Vec::new(),
            Job::Row(case) => case.kind.outputs(1).into_iter().map(|(name, _)| name).collect(),
        }
    }

    fn ours(self, setup: &Setup, input: &Path, scratch: &Path) -> Result<Sample, Failure> {
        match self {
            Job::Work(work) => freestone(setup, work, input, scratch),
            Job::Row(case) => {
                let out = scratch.join("freestone");
                cleared(&out)?;
                let mut command = process::own("child-case")?;
                command.arg(case.name).arg("--input").arg(input).arg("--out").arg(out);
                command.args([
                    "--threads",
                    &setup.threads.to_string(),
                    "--local-mem",
                    &setup.local_mem.to_string(),
                ]);
                process::json(&mut command, process::TIME_LIMIT)
            }
        }
    }
}

/// Measures a row of the table on Freestone and the peers, with its floor. The result includes
/// failures.
pub(crate) fn row(setup: &Setup, case: Case, vs: &[Peer]) -> Result<Measured, Failure> {
    let input = inputs::of(setup, &case)?;
    Ok(measure(setup, Job::Row(case), &input, vs).unwrap_or_else(|e| {
        let ours = Row { failure: Some(e.to_string()), ..Row::new("freestone") };
        Measured { workload: case.name, rows: vec![ours], floors: Vec::new(), notes: Vec::new() }
    }))
}

fn measure(setup: &Setup, job: Job, input: &Path, vs: &[Peer]) -> Result<Measured, Failure> {
    if !vs.is_empty() {
        process::set_up_peers()?;
    }
    let scratch = scratch(setup)?;
    inputs::warm(input)?;
    let systems = std::iter::once("freestone").chain(vs.iter().map(|p| p.system()));
    let mut measured = Measured {
        workload: job.name(),
        rows: systems.map(Row::new).collect(),
        floors: Vec::new(),
        notes: Vec::new(),
    };
    measured.rows[0].failure = job.lacks();
    for round in 0..setup.repeat {
        eprint!("{} round {}/{}:", job.name(), round + 1, setup.repeat);
        for row in measured.rows.iter_mut().filter(|r| r.failure.is_none()) {
            let run = match row.system {
                "freestone" => {
                    job.ours(setup, input, scratch.path()).map_err(|e| format!("freestone: {e}"))?
                }
                system => match peer(setup, job, input, scratch.path(), system) {
                    Ok(sample) => sample,
                    Err(error) => {
                        eprint!(" {}: {error};", row.system);
                        row.failure = Some(error.to_string());
                        continue;
                    }
                },
            };
            eprint!(" {} {:.2} s of CPU;", row.system, run.cpu_s);
            row.samples.push(run);
        }
        if let Some(case) = job.floor(setup) {
            let floor = floor(setup, case, input, scratch.path(), !vs.is_empty())
                .map_err(|e| format!("floor: {e}"))?;
            eprint!(" floor {:.2} s", floor.total());
            measured.floors.push(floor);
        }
        eprintln!();
        if round == 0 && measured.rows[0].failure.is_none() {
            measured.notes.extend(agreements(&measured.rows, job, scratch.path())?);
        }
    }
    Ok(measured)
}

/// With Python, the floor of matrix products is NumPy's time, if that is shorter than Rust's.
fn floor(
    setup: &Setup,
    case: Case,
    input: &Path,
    scratch: &Path,
    python: bool,
) -> Result<Floor, Failure> {
    let mut command = process::own("child-floor")?;
    command.arg(case.name).arg("--input").arg(input).arg("--scratch").arg(scratch.join("floor"));
    let mut floor: Floor = process::json(&mut command, process::TIME_LIMIT)?;
    if case.kind == Kind::Matmul && python {
        let product: f64 =
            process::json(process::script("gemm.py").arg(BLOCK.to_string()), process::TIME_LIMIT)?;
        let n_products = Geometry::of(setup.row_size()).blocks.pow(3);
        floor.compute_s = floor.compute_s.min(product * n_products as f64);
    }
    Ok(floor)
}

fn freestone(setup: &Setup, work: Work, input: &Path, scratch: &Path) -> Result<Sample, Failure> {
    let mut command = process::own("child-freestone")?;
    command
        .arg(work.name())
        .arg("--input")
        .arg(input)
        .arg("--out")
        .arg(scratch.join("freestone"))
        .args(["--codec", setup.codec.name()]);
    command.args([
        "--threads",
        &setup.threads.to_string(),
        "--local-mem",
        &setup.local_mem.to_string(),
    ]);
    process::json(&mut command, process::TIME_LIMIT)
}

fn peer(
    setup: &Setup,
    job: Job,
    input: &Path,
    scratch: &Path,
    system: &str,
) -> Result<Sample, Failure> {
    let out = scratch.join(system);
    cleared(&out)?;
    let (workload, codec) = job.of_peers(setup);
    let mut command = process::script("peer.py");
    command.args([
        "--system",
        system,
        "--workload",
        workload,
        "--codec",
        codec.name(),
        "--threads",
        &setup.threads.to_string(),
    ]);
    process::json(command.arg("--data").arg(input).arg("--out").arg(&out), process::TIME_LIMIT)
}

/// Removes outputs of the previous round, so that the removal is not measured.
fn cleared(folder: &Path) -> Result<(), Failure> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

/// Compares every peer's result with Freestone's. Returns the largest difference, or an error,
/// because times of wrong results are meaningless.
fn agreements(rows: &[Row], job: Job, scratch: &Path) -> Result<Vec<String>, Failure> {
    #[derive(Deserialize)]
    struct Compared {
        max_rel: f64,
    }
    let ours = rows[0].samples.first().and_then(|s| s.result);
    let outputs = job.outputs();
    let mut notes = Vec::new();
    for row in rows.iter().skip(1).filter(|r| !r.samples.is_empty()) {
        let apart = if outputs.is_empty() {
            let (Some(ours), Some(theirs)) = (ours, row.samples[0].result) else {
                return Err(format!("{} returned no result to compare", row.system).into());
            };
            let apart = ((ours - theirs) / theirs).abs();
            if apart.is_nan() || apart > SUM_TOLERANCE {
                return Err(format!(
                    "freestone's result is {ours}, but {}'s is {theirs}",
                    row.system
                )
                .into());
            }
            apart
        } else {
            let mut command = process::script("compare.py");
            command.arg(scratch.join("freestone")).arg(scratch.join(row.system)).args(&outputs);
            let compared: Compared = process::json(&mut command, process::TIME_LIMIT)
                .map_err(|e| format!("cannot compare with {}: {e}", row.system))?;
            compared.max_rel
        };
        notes.push(format!(
            "results of freestone and {} differ by at most {apart:.1e}, relative to the largest",
            row.system
        ));
    }
    Ok(notes)
}
