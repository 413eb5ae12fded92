//! Systems in turn, each time in a fresh process.
//!
//! A round runs every system once, so that whatever else the machine does meets all of them.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::floor::Floor;
use crate::sample::{Measured, Row, Sample, median};
use crate::table::{BLOCK, CASES, Case, Geometry, Kind};
use crate::workloads::{N_SMALL, Work};
use crate::{Codec, Failure, Peer, Setup, inputs, process};

/// Sums of the same values in another order agree to this.
const SUM_TOLERANCE: f64 = 1e-8;

/// Quadratic means on Freestone and the peers, with their floor. That they agree is checked in the
/// first round.
pub(crate) fn quad_means(setup: &Setup, vs: &[Peer]) -> Result<Measured, Failure> {
    measure(
        setup,
        Job::Work(Work::QuadMeans),
        &inputs::winds(setup, setup.size(), setup.codec)?,
        vs,
    )
}

/// A sum over many small chunks on Freestone and the peers.
pub(crate) fn many_small(setup: &Setup, vs: &[Peer]) -> Result<Measured, Failure> {
    measure(setup, Job::Work(Work::ManySmall), &inputs::tiny(setup)?, vs)
}

/// CPU time of a chunk or task in memory, in microseconds.
pub(crate) fn micros(setup: &Setup, work: Work) -> Result<f64, Failure> {
    let samples = repeated(setup, work)?;
    Ok(median(samples.iter().map(|s| s.cpu_s)).unwrap_or_default() * 1e6 / N_SMALL as f64)
}

/// Seconds to plan quadratic means of 1 EB and write the plan as text, and the memory that takes.
pub(crate) fn plan_scaling(setup: &Setup) -> Result<(f64, u64, f64), Failure> {
    let samples = repeated(setup, Work::PlanScaling)?;
    let grown = samples.iter().filter_map(|s| s.grown_bytes).max().unwrap_or_default();
    let slowest = median(samples.iter().filter_map(|s| s.result)).unwrap_or_default();
    Ok((median(samples.iter().map(|s| s.wall_s)).unwrap_or_default(), grown, slowest))
}

/// Relative error of `float32` means of 10⁹ values of about 300; once, since it is the same each
/// time.
pub(crate) fn mean_accuracy(setup: &Setup) -> Result<f64, Failure> {
    let scratch = scratch(setup)?;
    freestone(setup, Work::MeanAccuracy, scratch.path(), scratch.path())?
        .result
        .ok_or_else(|| "there is no mean".into())
}

/// A workload that is Freestone's alone.
fn repeated(setup: &Setup, work: Work) -> Result<Vec<Sample>, Failure> {
    let scratch = scratch(setup)?;
    (0..setup.repeat).map(|_| freestone(setup, work, scratch.path(), scratch.path())).collect()
}

/// A folder for outputs that goes when it is dropped, on the file system of the inputs.
fn scratch(setup: &Setup) -> Result<tempfile::TempDir, Failure> {
    fs::create_dir_all(&setup.data)?;
    Ok(tempfile::Builder::new().prefix("out-").tempdir_in(&setup.data)?)
}

/// What is measured in rounds: a workload with parameters of its own, or a row of the table.
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

    /// The name that `peer.py` knows, and the codec of outputs.
    fn of_peers(self, setup: &Setup) -> (&'static str, Codec) {
        match self {
            Job::Work(Work::QuadMeans) => ("quad_means", setup.codec),
            Job::Work(work) => (work.name(), Codec::Zstd),
            Job::Row(case) => (case.kind.name(), case.codec),
        }
    }

    /// The row that has its floor.
    fn floor(self, setup: &Setup) -> Option<Case> {
        match self {
            Job::Work(Work::QuadMeans) => {
                CASES.into_iter().find(|c| c.kind == Kind::QuadMeans && c.codec == setup.codec)
            }
            Job::Work(_) => None,
            Job::Row(case) => Some(case),
        }
    }

    /// Why Freestone cannot do it yet.
    fn lacks(self) -> Option<String> {
        let Job::Row(case) = self else { return None };
        case.lacks().map(|function| format!("there is no {function} yet"))
    }

    /// The arrays that it writes; none if it gives one number.
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

/// A row of the table on Freestone and the peers, with its floor. What fails is said in the result.
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
                    job.ours(setup, input, scratch.path()).map_err(|e| format!("freestone {e}"))?
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
                .map_err(|e| format!("the floor {e}"))?;
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

/// With Python, products of matrices are as fast as NumPy's, if that is faster than what Rust has.
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

/// Removes outputs of the round before, so that no system does that while it is measured.
fn cleared(folder: &Path) -> Result<(), Failure> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

/// Compares every peer's result with Freestone's: how far they are apart, or an error, since times
/// of wrong results mean nothing.
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
                return Err(format!("{} gave no result to compare", row.system).into());
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
                .map_err(|e| format!("comparing with {} {e}", row.system))?;
            compared.max_rel
        };
        notes.push(format!(
            "results of freestone and {} differ by at most {apart:.1e}, relative to the largest",
            row.system
        ));
    }
    Ok(notes)
}
