//! The cost of observers: an event for progress bars, history and report together.
//!
//! The events are synthetic, as of a run on two workers that finishes a task with each request. CPU
//! time is measured in a new process. Instructions are counted by callgrind, as the difference of
//! two runs, so that fixed costs cancel.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use freestone::{DType, RunReport, Settings, Spec, Target};
use freestone_cli::history::History;
use freestone_cli::progress::Progress;
use freestone_cli::report::Report;
use freestone_engine::events::{Event, Observer, RunStart};
use freestone_engine::machine;
use freestone_engine::plan::StageId;
use freestone_engine::storage::reader::Traffic;
use freestone_engine::task::{
    FailureKind, Receipt, TaskFailure, TaskOutcome, TaskReport, TaskRequest,
};
use indicatif::{ProgressDrawTarget, TermLike};

use crate::{Failure, process};

/// The number of tasks of a measurement, and of the two runs under callgrind.
const N_TASKS: u64 = 500_000;
const COUNTED: [u64; 2] = [20_000, 70_000];
/// One of this many tasks fails once.
const FAILS: u64 = 1000;

/// The arguments of one measurement in a child process.
#[derive(Args)]
pub(crate) struct Child {
    #[arg(long)]
    tasks: u64,
}

/// The cost of an event.
pub(crate) struct Cost {
    pub(crate) micros: f64,
    /// `None` without valgrind.
    pub(crate) instructions: Option<f64>,
}

/// Measures the CPU time of an event, the median of several processes, and counts its instructions.
pub(crate) fn measure(repeat: u32) -> Result<Cost, Failure> {
    let micros = (0..repeat).map(|_| {
        process::json(
            process::own("child-observers")?.args(["--tasks", &N_TASKS.to_string()]),
            process::TIME_LIMIT,
        )
    });
    let micros = micros.collect::<Result<Vec<f64>, Failure>>()?;
    let [few, many] = COUNTED;
    let counted = instructions(few)?.zip(instructions(many)?);
    let instructions = counted
        .map(|(few_did, many_did)| (many_did - few_did) / (n_events(many) - n_events(few)) as f64);
    Ok(Cost { micros: crate::sample::median(micros.into_iter()).unwrap_or_default(), instructions })
}

/// Sends the events of several tasks to the observers. Returns the CPU microseconds per event.
pub(crate) fn run(child: &Child) -> Result<f64, Failure> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let spec = Settings { work_dir: Some(at("work").display().to_string()), ..Settings::default() }
        .resolve()?;
    let progress =
        Progress::drawing_to(ProgressDrawTarget::term_like_with_hz(Box::new(Nowhere), 20));
    let (history, report) =
        (History::append(&at("history.jsonl"))?, Report::create(&at("report.html"), &spec)?);
    let cpu_ns = tell(&[&progress, &history, &report], child.tasks, &spec, &at("out"))?;
    match history.take_error().or(report.take_error()) {
        Some(error) => Err(error.into()),
        None => Ok(cpu_ns as f64 * 1e-3 / n_events(child.tasks) as f64),
    }
}

/// The start of a request, its outcome, and sometimes a retry.
fn n_events(tasks: u64) -> u64 {
    2 * tasks + tasks / FAILS
}

/// CPU nanoseconds, except for start and end.
fn tell(observers: &[&dyn Observer], tasks: u64, spec: &Spec, out: &Path) -> Result<u64, Failure> {
    let array = freestone::arange(0.0, 10.0 * tasks as f64, 1.0, DType::Float64, 10);
    let planned = freestone::plan(&[Target::array(&array, out.display().to_string())], spec)?;
    let plan = planned.finalized();
    let tell = |event: Event<'_>| observers.iter().for_each(|o| o.on_event(&event));
    let start = RunStart {
        run: "observed",
        plan,
        executor: "threads",
        slots: 2,
        projected_bytes: plan.projected_mem(),
        local_mem: spec.local_mem,
        finished: &[0],
    };
    tell(Event::RunStarted(&start));
    let stage = StageId(0);
    tell(Event::StageStarted { stage });
    let request = TaskRequest {
        id: 0,
        stage,
        first: 0,
        count: 1,
        attempt: 0,
        backup_of: None,
        timeout_ms: None,
    };
    let traffic = Traffic { bytes_read: 1_234_567, bytes_written: 234_567, reads: 3, writes: 1 };
    let done = TaskReport {
        task: 0,
        receipts: Vec::<Receipt>::new(),
        traffic,
        cpu_ns: 12_000,
        wall_ns: 15_000,
        peak_bytes: 3_456_789,
    };
    let mut outcomes = ["thread-0", "thread-1"].map(|worker| TaskOutcome {
        request: request.clone(),
        worker: worker.into(),
        done: vec![done.clone()],
        failure: None,
        worker_peak_bytes: None,
    });
    let mut failure = TaskFailure {
        kind: FailureKind::Throttled,
        message: "503 Slow Down".into(),
        stage: "arange-000".into(),
        task: 0,
    };
    let before = machine::process_cpu_ns();
    for task in 0..tasks {
        let outcome = &mut outcomes[(task % 2) as usize];
        (outcome.request.id, outcome.request.first) = (task, task);
        (outcome.done[0].task, outcome.done[0].wall_ns) = (task, 15_000 + task % 977);
        tell(Event::Started { request: &outcome.request });
        tell(Event::Outcome { outcome, counted: 1 });
        if task % FAILS == FAILS - 1 {
            failure.task = task;
            tell(Event::Retried {
                failure: &failure,
                attempt: 1,
                delay: Duration::from_millis(100),
            });
        }
    }
    let took = machine::process_cpu_ns() - before;
    tell(Event::StageEnded { stage });
    tell(Event::RunEnded(Ok(&RunReport::default())));
    Ok(took)
}

/// Counts the instructions of a process that sends the events of several tasks. Returns `None`
/// without valgrind.
fn instructions(tasks: u64) -> Result<Option<f64>, Failure> {
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?);
    command.args(["child-observers", "--tasks", &tasks.to_string()]).stdin(Stdio::null());
    let output = match command.output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        output => output?,
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let count = said.lines().find_map(|l| l.split_once("Collected :")?.1.trim().parse().ok());
    if output.status.success() {
        Ok(count)
    } else {
        Err(format!("callgrind: {}", said.trim()).into())
    }
}

/// A hidden terminal, for which progress bars are still rendered.
#[derive(Debug)]
struct Nowhere;

impl TermLike for Nowhere {
    fn width(&self) -> u16 {
        110
    }
    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn write_line(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn write_str(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn clear_line(&self) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
