//! The decision about a failed task: a retry after a pause, or the end of the run.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::plan::StageId;
use crate::retry::Backoff;
use crate::task::{FailureKind, TaskFailure};

/// The limits of retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// The maximum retries of a task after failures of storage or lost workers. After throttling,
    /// the maximum is four times as high.
    pub(super) retries: u32,
    /// The maximum retries of all tasks of a run, not counting those after throttling.
    pub(super) budget: u64,
    /// The seed of the jitter, different for each run.
    pub(super) seed: u64,
}

/// The failures of a run so far.
#[derive(Debug)]
pub(super) struct Attempts {
    policy: Policy,
    by_task: HashMap<(StageId, u64), Vec<FailedAttempt>>,
    /// The number of failures by kind.
    pub(super) failures: BTreeMap<&'static str, u64>,
    pub(super) retries: u64,
    /// The number of retries that count against the budget.
    spent: u64,
}

#[derive(Clone, Debug)]
struct FailedAttempt {
    failure: TaskFailure,
    worker: String,
}

/// The consequence of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Retry after `delay`.
    Retry { attempt: u32, delay: Duration },
    /// End the run with this failure of the task. The note adds details to its message.
    Stop { failure: TaskFailure, attempts: u32, note: String },
}

/// The pauses before a task is retried.
const BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(50), longest: Duration::from_secs(10) };
/// The pauses after a store asked for fewer requests.
const THROTTLE_BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(20) };
/// The maximum failures of one kind that the task itself may have caused, even if all happened on
/// one worker.
const MAX_SUSPECT_FAILURES: usize = 3;
/// The maximum times that a task finds the same chunk damaged.
const MAX_DAMAGES: usize = 4;

/// The probable cause of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Storage, the network or the machine. A retry may succeed.
    External,
    /// Possibly the task itself. Failures on two workers confirm it.
    Suspect,
    /// A damaged chunk, which is recomputed.
    Damage,
    /// The task. A retry would fail in the same way.
    Task,
}

fn cause(kind: FailureKind) -> Cause {
    match kind {
        FailureKind::Transient | FailureKind::Throttled | FailureKind::WorkerLost => {
            Cause::External
        }
        FailureKind::Crashed | FailureKind::TimedOut | FailureKind::OutOfMemory => Cause::Suspect,
        FailureKind::Damaged { .. } => Cause::Damage,
        _ => Cause::Task,
    }
}

/// Returns how a worker ended, for a note beside the failure's message.
fn ending(kind: FailureKind) -> &'static str {
    if kind == FailureKind::OutOfMemory { "killed" } else { kind.name() }
}

impl Attempts {
    pub(super) fn new(policy: Policy) -> Attempts {
        Attempts {
            policy,
            by_task: HashMap::new(),
            failures: BTreeMap::new(),
            retries: 0,
            spent: 0,
        }
    }

    /// Records a failure and decides whether its task is retried.
    pub(super) fn decide(
        &mut self,
        stage: StageId,
        failure: &TaskFailure,
        worker: &str,
    ) -> Decision {
        *self.failures.entry(failure.kind.name()).or_default() += 1;
        let history = self.by_task.entry((stage, failure.task)).or_default();
        history.push(FailedAttempt { failure: failure.clone(), worker: worker.to_owned() });
        let attempts = history.len() as u32;
        // For damage, the same kind means the same chunk: a task may find each of its inputs
        // damaged.
        let same_kind: Vec<&FailedAttempt> =
            history.iter().filter(|f| f.failure.kind == failure.kind).collect();
        if let Some(reason) =
            self.policy.reason_to_stop(self.spent, &same_kind, failure.kind, worker)
        {
            return stop(history, failure, reason);
        }
        let n = same_kind.len() as u32;
        let throttled = failure.kind == FailureKind::Throttled;
        self.retries += 1;
        self.spent += u64::from(!throttled);
        let backoff = if throttled { THROTTLE_BACKOFF } else { BACKOFF };
        let delay = match cause(failure.kind) {
            Cause::Damage => Duration::ZERO,
            _ => backoff.pause(n, self.jitter(stage, failure.task, attempts)),
        };
        Decision::Retry { attempt: attempts, delay }
    }

    /// Returns a number from 0 to 1, the same in each run of a folder. Tasks that failed together
    /// are not retried together.
    fn jitter(&self, stage: StageId, task: u64, attempt: u32) -> f64 {
        let words = [self.policy.seed, stage.0 as u64, task, u64::from(attempt)]
            .map(u64::to_le_bytes)
            .concat();
        (xxhash_rust::xxh3::xxh3_64(&words) >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Policy {
    /// Returns the note of the run's error if the task must not be retried; the note may be empty.
    /// `spent` is the number of retries that count against the budget, and `same_kind` are the
    /// task's failures of this kind, with the last one by `worker`.
    fn reason_to_stop(
        &self,
        spent: u64,
        same_kind: &[&FailedAttempt],
        kind: FailureKind,
        worker: &str,
    ) -> Option<String> {
        let n = same_kind.len();
        let throttled = kind == FailureKind::Throttled;
        let max_retries = self.retries * if throttled { 4 } else { 1 };
        match cause(kind) {
            Cause::Task => Some(String::new()),
            Cause::Suspect if same_kind.iter().any(|f| f.worker != worker) => {
                Some(format!("{} on two workers", ending(kind)))
            }
            Cause::Suspect if n >= MAX_SUSPECT_FAILURES => {
                Some(format!("{} {n} times", ending(kind)))
            }
            Cause::Damage if n >= MAX_DAMAGES => Some(format!("recomputed {} times", n - 1)),
            Cause::External if n as u32 > max_retries => Some(String::new()),
            _ if !throttled && spent >= self.budget => {
                Some(format!("the run's {} retries are used up", self.budget))
            }
            _ => None,
        }
    }
}

/// Ends the run. A failure that the task itself may have caused is reported rather than the last
/// one, because it says more.
fn stop(history: &[FailedAttempt], last: &TaskFailure, reason: String) -> Decision {
    let mut notes: Vec<String> = if reason.is_empty() { Vec::new() } else { vec![reason] };
    let reported = history
        .iter()
        .find(|f| matches!(cause(f.failure.kind), Cause::Suspect | Cause::Task))
        .map_or(last, |f| &f.failure);
    if reported.kind != last.kind {
        notes.push(format!("last failure: {}", last.message));
    }
    let attempts = history.len() as u32;
    Decision::Stop { failure: reported.clone(), attempts, note: notes.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ArrayId;

    /// Checks the number of retries of one task, given its failures with their workers, and a part
    /// of the error's text.
    #[track_caller]
    fn check(failures: &[(FailureKind, &str)], retries: usize, says: &str) {
        let mut attempts = Attempts::new(Policy { retries: 4, budget: 100, seed: 1 });
        for (i, (kind, worker)) in failures.iter().enumerate() {
            let failure = TaskFailure {
                kind: *kind,
                message: format!("failure {i}"),
                stage: "s".into(),
                task: 7,
            };
            match attempts.decide(StageId(0), &failure, worker) {
                Decision::Retry { attempt, delay } => {
                    assert!(i < retries, "failure {i} is retried");
                    assert_eq!(attempt as usize, i + 1);
                    assert!(delay <= THROTTLE_BACKOFF.longest);
                }
                Decision::Stop { failure, attempts, note } => {
                    assert_eq!((i, attempts as usize), (retries, i + 1), "{note}");
                    let text = format!("{} | {note}", failure.message);
                    assert!(text.contains(says), "{text}");
                    return;
                }
            }
        }
        assert_eq!(retries, failures.len(), "the run ends");
    }

    #[test]
    fn retries_depend_on_the_kind_of_failure() {
        use FailureKind as K;
        let same = |kind, n| vec![(kind, "a"); n];
        let turns = |kind, n| (0..n).map(|i| (kind, ["a", "b", "c"][i % 3])).collect::<Vec<_>>();
        // A retry would fail in the same way.
        for kind in [
            K::BadInput,
            K::Cancelled,
            K::Denied,
            K::Internal,
            K::Kernel,
            K::NoSpace,
            K::Overrun,
            K::Plan,
            K::Refused,
            K::Storage,
            K::Superseded,
        ] {
            check(&same(kind, 1), 0, "failure 0");
            check(&[(K::Transient, "a"), (kind, "b")], 1, "failure 1");
        }
        check(&turns(K::Transient, 9), 4, "failure 4");
        check(&turns(K::WorkerLost, 9), 4, "failure 4");
        check(&turns(K::Throttled, 30), 16, "failure 16");
        check(&turns(K::Crashed, 9), 1, "crashed on two workers");
        check(&same(K::Crashed, 9), 2, "crashed 3 times");
        check(&turns(K::OutOfMemory, 9), 1, "failure 0 | killed on two workers");
        check(&turns(K::TimedOut, 9), 1, "timed out on two workers");
        check(&same(K::Damaged { array: ArrayId(0), object: 3 }, 9), 3, "recomputed 3 times");
        let chunks: Vec<_> =
            (0..20).map(|object| (K::Damaged { array: ArrayId(0), object }, "a")).collect();
        check(&chunks, 20, "");
        // Each kind is counted separately.
        check(
            &[
                (K::Crashed, "a"),
                (K::TimedOut, "b"),
                (K::OutOfMemory, "c"),
                (K::Transient, "a"),
                (K::Throttled, "a"),
            ],
            5,
            "",
        );
        check(&same(K::OutOfMemory, 9), 2, "failure 0 | killed 3 times");
        // The failure that the task may have caused is reported, with the last one in the note.
        check(
            &[
                (K::Crashed, "a"),
                (K::WorkerLost, "b"),
                (K::WorkerLost, "b"),
                (K::WorkerLost, "b"),
                (K::WorkerLost, "b"),
                (K::WorkerLost, "b"),
            ],
            5,
            "failure 0 | last failure: failure 5",
        );
    }

    #[test]
    fn retries_have_a_budget_and_exponential_backoff() {
        let mut attempts = Attempts::new(Policy { retries: 4, budget: 10, seed: 1 });
        let mut failure = TaskFailure {
            kind: FailureKind::Transient,
            message: "no answer".into(),
            stage: "s".into(),
            task: 0,
        };
        for task in 0..10 {
            failure.task = task;
            assert!(matches!(attempts.decide(StageId(0), &failure, "a"), Decision::Retry { .. }));
        }
        let throttled = TaskFailure { kind: FailureKind::Throttled, task: 50, ..failure.clone() };
        let mut last = Duration::ZERO;
        for i in 0..8 {
            let Decision::Retry { delay, .. } = attempts.decide(StageId(0), &throttled, "a") else {
                panic!("throttling does not count against the budget")
            };
            let full = THROTTLE_BACKOFF.first * (1 << i);
            assert!(
                delay >= (full / 2).min(THROTTLE_BACKOFF.longest / 2)
                    && delay <= full.min(THROTTLE_BACKOFF.longest),
                "{delay:?} of {full:?}"
            );
            assert!(delay > last / 4);
            last = delay;
        }
        failure.task = 11;
        let Decision::Stop { note, .. } = attempts.decide(StageId(0), &failure, "a") else {
            panic!("the budget is used up")
        };
        assert!(note.contains("10 retries"), "{note}");
        assert_eq!(
            (attempts.failures["storage"], attempts.failures["throttled"], attempts.retries),
            (11, 8, 18)
        );
    }
}
