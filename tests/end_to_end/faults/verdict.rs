//! The model: which ends of a run the fired faults permit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use freestone::{Cancel, Error, Plan, RunReport, Spec};
use freestone_engine::driver::RunError;
use freestone_engine::events::{Event, Observer};
use freestone_engine::publish::PublishError;
use freestone_engine::storage::StorageError;
use freestone_engine::task::{FailureKind, TaskFailure};

use super::{Fault, Faults, Part};

/// Attempts of the driver's own storage requests.
const DRIVER_ATTEMPTS: u64 = 6;
/// Failures of all tasks together that a run survives.
const BUDGET: usize = 200;

/// Returns the number of failures of one kind after which a task is retried.
fn max_failures(kind: FailureKind, spec: &Spec) -> usize {
    match kind {
        FailureKind::Transient | FailureKind::WorkerLost => spec.retries as usize,
        FailureKind::Throttled => 4 * spec.retries as usize,
        // The second failure on another worker is final.
        FailureKind::Crashed | FailureKind::TimedOut | FailureKind::OutOfMemory => 1,
        FailureKind::Damaged { .. } => 3,
        _ => 0,
    }
}

/// The events that observers received.
#[derive(Default)]
pub(super) struct Heard {
    pub(super) failures: Vec<(TaskFailure, String)>,
    pub(super) outcomes: u64,
    pub(super) counted: BTreeMap<usize, u64>,
    pub(super) recomputed: BTreeMap<usize, u64>,
    pub(super) started: Vec<usize>,
    pub(super) ended: Vec<usize>,
    pub(super) run: String,
    pub(super) run_ended: u64,
}

pub(super) struct Listener<'a> {
    pub(super) heard: Mutex<Heard>,
    pub(super) faults: &'a Faults,
    /// The number of outcomes after which the run is cancelled.
    pub(super) cancel_after: Option<u64>,
    pub(super) cancel: Cancel,
}

impl Observer for Listener<'_> {
    fn on_event(&self, event: &Event<'_>) {
        let mut heard = self.heard.lock().unwrap();
        match event {
            Event::RunStarted(start) => start.run.clone_into(&mut heard.run),
            Event::StageStarted { stage } => heard.started.push(stage.0),
            Event::StageEnded { stage } => heard.ended.push(stage.0),
            Event::Outcome { outcome, counted } => {
                heard.outcomes += 1;
                *heard.counted.entry(outcome.request.stage.0).or_default() += counted;
                heard.failures.extend(outcome.failure.clone().map(|f| (f, outcome.worker.clone())));
                if self.cancel_after == Some(heard.outcomes) {
                    self.cancel.cancel();
                    self.faults.fired(
                        Fault::Cancelled,
                        Part::Requests,
                        &format!("after {} outcomes", heard.outcomes),
                    );
                }
            }
            Event::Recomputed { stage, tasks, .. } => {
                *heard.recomputed.entry(stage.0).or_default() += tasks
            }
            Event::RunEnded(_) => heard.run_ended += 1,
            Event::Started { .. } | Event::Retried { .. } | Event::MemoryExceeded(_) => {}
        }
    }
}

/// Returns the faults that can cause a failure of a kind.
fn causes(kind: FailureKind) -> &'static [Fault] {
    match kind {
        FailureKind::Transient => &[Fault::Transient, Fault::LostResponse, Fault::Torn],
        FailureKind::Throttled => &[Fault::Throttled],
        FailureKind::WorkerLost => &[
            Fault::WorkerLost,
            Fault::LostOutcome,
            Fault::PartOutcome,
            Fault::Sigkill,
            Fault::Sigsegv,
        ],
        FailureKind::Crashed => &[Fault::Crashed, Fault::Sigsegv],
        FailureKind::TimedOut => &[Fault::TimedOut],
        FailureKind::OutOfMemory => &[Fault::OutOfMemory, Fault::Sigkill],
        FailureKind::Damaged { .. } => &[
            Fault::CorruptWrite,
            Fault::CorruptRead,
            Fault::Dropped,
            Fault::FlippedFile,
            Fault::CutFile,
            Fault::RemovedFile,
        ],
        FailureKind::BadInput => &[Fault::CorruptRead],
        FailureKind::NoSpace => &[Fault::NoSpace],
        FailureKind::Denied => &[Fault::Denied],
        FailureKind::Cancelled => &[Fault::Cancelled],
        FailureKind::Refused
        | FailureKind::Storage
        | FailureKind::Overrun
        | FailureKind::Superseded
        | FailureKind::Plan
        | FailureKind::Kernel
        | FailureKind::Internal => &[],
    }
}

fn cause_of_storage(error: &StorageError) -> &'static [Fault] {
    match error {
        StorageError::Io { transient: true, .. } => causes(FailureKind::Transient),
        StorageError::Throttled { .. } => &[Fault::Throttled],
        StorageError::NoSpace { .. } => &[Fault::NoSpace],
        StorageError::Denied { .. } => &[Fault::Denied],
        _ => &[],
    }
}

const TASKS: &[Part] = &[Part::Intermediates, Part::Outputs, Part::Inputs, Part::Requests];

/// Counts failures by stage, task and kind; damage also by chunk.
fn failures(heard: &Heard) -> BTreeMap<(&str, u64, String), (FailureKind, usize)> {
    let mut failures = BTreeMap::new();
    heard.failures.iter().for_each(|(f, _)| {
        failures
            .entry((f.stage.as_str(), f.task, format!("{:?}", f.kind)))
            .or_insert((f.kind, 0))
            .1 += 1
    });
    failures
}

/// Returns true if a task, or all tasks together, failed more often than a run survives.
fn is_over_budget(heard: &Heard, spec: &Spec) -> bool {
    let counted = heard
        .failures
        .iter()
        .filter(|(f, _)| !matches!(f.kind, FailureKind::Throttled | FailureKind::Superseded))
        .count();
    counted >= BUDGET
        || failures(heard)
            .values()
            .any(|(kind, n)| *kind != FailureKind::Superseded && *n > max_failures(*kind, spec))
}

/// Checks that the fired faults explain an error.
pub(super) fn explain(
    error: &Error,
    heard: &Heard,
    faults: &Faults,
    spec: &Spec,
) -> Result<(), String> {
    let Error::Run(error) = error else { return Err("not an error of a run".into()) };
    let fired = |causes: &[Fault], parts: &[Part]| {
        if faults.any(causes, parts) {
            Ok(())
        } else {
            Err(format!("none of {causes:?} fired on {parts:?}"))
        }
    };
    match error.cause() {
        RunError::Task { failure, attempts, .. } => {
            if !heard.failures.iter().any(|(f, _)| f == failure) {
                return Err("no task reported this failure".into());
            }
            if !is_over_budget(heard, spec) {
                return Err(format!("the task was given up early, after {attempts} attempts"));
            }
            fired(causes(failure.kind), TASKS)
        }
        RunError::Work(e) => fired(cause_of_storage(e), &[Part::Journal]),
        RunError::Publish(PublishError::Storage(e)) => {
            fired(cause_of_storage(e), &[Part::Documents, Part::Outputs])
        }
        RunError::Cancelled => fired(&[Fault::Cancelled], &[Part::Requests]),
        _ => Err("no fault causes this error".into()),
    }
}

/// Returns true if the run must succeed despite the fired faults.
pub(super) fn must_survive(heard: &Heard, faults: &Faults, spec: &Spec) -> bool {
    let counts = faults.counts();
    // The driver retries its own requests, unless access is denied or storage is full.
    let own = |part: &Part| matches!(part, Part::Journal | Part::Documents);
    let passing: u64 = counts
        .iter()
        .filter(|((fault, part), _)| own(part) && *fault != Fault::Delay)
        .map(|(_, n)| n)
        .sum();
    let is_final = counts
        .keys()
        .any(|(fault, _)| matches!(fault, Fault::NoSpace | Fault::Denied | Fault::Cancelled));
    // The driver also removes, lists and flushes what tasks write.
    let others: u64 = counts
        .iter()
        .filter(|((_, part), _)| matches!(part, Part::Intermediates | Part::Outputs))
        .map(|(_, n)| n)
        .sum();
    let seen = heard.failures.iter().filter(|(f, _)| f.message.contains("injected")).count() as u64;
    !is_final
        && passing + others.saturating_sub(seen) < DRIVER_ATTEMPTS
        && !is_over_budget(heard, spec)
}

pub fn same_files(
    expect: &BTreeMap<String, Vec<u8>>,
    found: &BTreeMap<String, Vec<u8>>,
) -> Result<(), String> {
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<BTreeSet<_>>();
    let (e, f) = (names(expect), names(found));
    if e != f {
        return Err(format!(
            "unexpected files: {:?}, missing files: {:?}",
            f.difference(&e).collect::<Vec<_>>(),
            e.difference(&f).collect::<Vec<_>>()
        ));
    }
    let differ: Vec<&String> = expect
        .iter()
        .filter(|(name, bytes)| found[*name] != **bytes)
        .map(|(name, _)| name)
        .collect();
    if differ.is_empty() { Ok(()) } else { Err(format!("different bytes in {differ:?}")) }
}

/// Checks that the received events are consistent.
pub(super) fn check_events(
    ran: &Result<RunReport, Error>,
    heard: &Heard,
    planned: &Plan,
) -> Result<(), String> {
    // A run that could not start has no events.
    if heard.run_ended != u64::from(!heard.run.is_empty()) {
        return Err(format!("received {} `RunEnded` events", heard.run_ended));
    }
    if ran.is_err() {
        return Ok(());
    }
    for (i, stage) in planned.finalized().plan().stages.iter().enumerate() {
        let again = heard.recomputed.get(&i).copied().unwrap_or(0);
        let counted = heard.counted.get(&i).copied().unwrap_or(0);
        if counted != stage.n_tasks() + again {
            return Err(format!(
                "stage {i} has {} tasks: {counted} were counted, {again} of them recomputed",
                stage.n_tasks()
            ));
        }
        let n = |list: &[usize]| list.iter().filter(|s| **s == i).count();
        if n(&heard.started) != 1 || n(&heard.ended) < 1 || again == 0 && n(&heard.ended) > 1 {
            return Err(format!(
                "stage {i} started {} times and ended {} times",
                n(&heard.started),
                n(&heard.ended)
            ));
        }
    }
    Ok(())
}
