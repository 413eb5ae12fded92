//! The time to the first answer of a worker that is not running yet.
//!
//! The stock worker (`bootstrap`) runs under the emulator: a process starts, asks for work, fetches
//! a plan from a folder and answers a probe. AWS Lambda adds the time to find a machine and to load
//! the program.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use freestone::{DType, Settings, Target};
use freestone_engine::task::RunAddress;
use freestone_lambda_emulator::{Config, Emulator};
use freestone_worker::{Answer, Call, Invocation};

use crate::{Failure, process, sample};

/// The number of workers started, one after the other.
const STARTS: usize = 5;
const BUILD_LIMIT: Duration = Duration::from_secs(3600);

/// Measures the median milliseconds from an invocation to its answer if no worker runs.
pub(crate) fn first_answer_ms() -> Result<f64, Failure> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("missing workspace root")?;
    // Builds the current worker first.
    process::checked(
        Command::new("cargo").current_dir(root).args([
            "build",
            "--release",
            "--workspace",
            "--bin",
            "bootstrap",
        ]),
        BUILD_LIMIT,
    )?;
    let worker = std::env::current_exe()?.with_file_name("bootstrap");
    let folder = tempfile::tempdir()?;
    let probe =
        serde_json::to_vec(&Invocation::new(written(folder.path())?, "starts-1", Call::Probe))?;
    let one = |_| -> Result<f64, Failure> {
        // Each invocation finds no running worker.
        let emulator = Emulator::start(Config::new("starts", &worker))?;
        let start = Instant::now();
        let invoked = emulator.invoke(&probe)?;
        let ms = start.elapsed().as_secs_f64() * 1e3;
        match serde_json::from_slice(&invoked.body) {
            Ok(Answer::Ready { .. }) => Ok(ms),
            _ => Err(format!("the worker did not answer the probe: {}", invoked.text()).into()),
        }
    };
    let all = (0..STARTS).map(one).collect::<Result<Vec<_>, Failure>>()?;
    sample::median(all.into_iter()).ok_or_else(|| "no worker was started".into())
}

/// Writes a plan as a driver does.
fn written(folder: &Path) -> Result<RunAddress, Failure> {
    let at = |name: &str| folder.join(name).display().to_string();
    let spec = Settings { work_dir: Some(at("work")), ..Settings::default() }.resolve()?;
    let numbers = freestone::arange(0.0, 1000.0, 1.0, DType::Float64, 100);
    let planned = freestone::plan(&[Target::array(&numbers, at("out"))], &spec)?;
    let address = RunAddress {
        work_dir: at("work"),
        folder: format!("{}-1234567890abcdef-1", planned.finalized().run_id()),
    };
    let run = folder.join("work").join(&address.folder);
    fs::create_dir_all(&run)?;
    fs::write(run.join("plan.json"), planned.finalized().to_bytes()?)?;
    Ok(address)
}
