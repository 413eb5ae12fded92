//! What becomes of a task that failed: another try after a while, or the end of the run.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::plan::StageId;
use crate::retry::Backoff;
use crate::task::{FailureKind, TaskFailure};

/// How often what is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// Tries of a task after a failure of storage or a lost worker; after throttling, four times as
    /// many.
    pub(super) retries: u32,
    /// Tries of all tasks of a run, throttling left out.
    pub(super) budget: u64,
    /// Sets the jitter of this run apart from that of others.
    pub(super) seed: u64,
}

/// The failures of a run so far.
#[derive(Debug)]
pub(super) struct Attempts {
    policy: Policy,
    by_task: HashMap<(StageId, u64), Vec<Failed>>,
    /// By kind.
    pub(super) failures: BTreeMap<&'static str, u64>,
    pub(super) retries: u64,
    spent: u64,
}

#[derive(Clone, Debug)]
struct Failed {
    failure: TaskFailure,
    worker: String,
}

/// What is to be done about a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Try again, not before so long.
    Again { attempt: u32, delay: Duration },
    /// End the run with this failure of the task, after so many attempts, and what is to be said
    /// besides.
    Stop { failure: TaskFailure, attempts: u32, note: String },
}

/// Pauses before a task is handed out again.
const PAUSES: Backoff =
    Backoff { first: Duration::from_millis(50), longest: Duration::from_secs(10) };
/// The same where a store asks for fewer requests.
const THROTTLE_PAUSES: Backoff =
    Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(20) };
/// What a task does to its worker by itself is not tried more often, whoever the workers are.
const SAME_WAY: usize = 3;
/// A chunk that is damaged again and again is not computed more often.
const MAX_DAMAGES: usize = 4;

/// Who is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Storage, the network, the machine: another try may end better.
    Outside,
    /// Perhaps the task itself: twice on different workers, and it is.
    Perhaps,
    /// What the task reads was damaged and is made anew.
    Damage,
    /// The task: another try would end the same way.
    Task,
}

fn cause(kind: FailureKind) -> Cause {
    match kind {
        FailureKind::Transient | FailureKind::Throttled | FailureKind::WorkerLost => Cause::Outside,
        FailureKind::Crashed | FailureKind::TimedOut | FailureKind::OutOfMemory => Cause::Perhaps,
        FailureKind::Damaged { .. } => Cause::Damage,
        _ => Cause::Task,
    }
}

/// How a worker ended, beside the message of the failure.
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

    /// Takes note of a failure of a task of a stage.
    pub(super) fn decide(
        &mut self,
        stage: StageId,
        failure: &TaskFailure,
        worker: &str,
    ) -> Decision {
        *self.failures.entry(failure.kind.name()).or_default() += 1;
        let history = self.by_task.entry((stage, failure.task)).or_default();
        history.push(Failed { failure: failure.clone(), worker: worker.to_owned() });
        let attempts = history.len() as u32;
        // Of damage, that of the same chunk: a task may find one after the other of those that it
        // reads.
        let alike: Vec<&Failed> =
            history.iter().filter(|f| f.failure.kind == failure.kind).collect();
        let n = alike.len();
        let throttled = failure.kind == FailureKind::Throttled;
        let why = match cause(failure.kind) {
            Cause::Task => Some(String::new()),
            Cause::Perhaps if alike.iter().any(|f| f.worker != worker) => {
                Some(format!("{} on two workers", ending(failure.kind)))
            }
            Cause::Perhaps if n >= SAME_WAY => Some(format!("{} {n} times", ending(failure.kind))),
            Cause::Damage if n >= MAX_DAMAGES => Some(format!("recomputed {} times", n - 1)),
            Cause::Outside if n as u32 > self.policy.retries * if throttled { 4 } else { 1 } => {
                Some(String::new())
            }
            _ if !throttled && self.spent >= self.policy.budget => {
                Some(format!("the run's {} retries are used up", self.policy.budget))
            }
            _ => None,
        };
        let Some(why) = why else {
            self.retries += 1;
            self.spent += u64::from(!throttled);
            let pauses = if throttled { THROTTLE_PAUSES } else { PAUSES };
            let delay = match cause(failure.kind) {
                Cause::Damage => Duration::ZERO,
                _ => pauses.pause(n as u32, self.jitter(stage, failure.task, attempts)),
            };
            return Decision::Again { attempt: attempts, delay };
        };
        let mut notes: Vec<String> = if why.is_empty() { Vec::new() } else { vec![why] };
        // What the task did by itself says more than how its last worker went.
        let own = history
            .iter()
            .find(|f| matches!(cause(f.failure.kind), Cause::Perhaps | Cause::Task))
            .map_or(failure, |f| &f.failure);
        if own.kind != failure.kind {
            notes.push(format!("last failure: {}", failure.message));
        }
        Decision::Stop { failure: own.clone(), attempts, note: notes.join("; ") }
    }

    /// From 0 to 1: many tasks that failed together are not tried again together. The same in each
    /// run of the same folder.
    fn jitter(&self, stage: StageId, task: u64, attempt: u32) -> f64 {
        let words = [self.policy.seed, stage.0 as u64, task, u64::from(attempt)]
            .map(u64::to_le_bytes)
            .concat();
        (xxhash_rust::xxh3::xxh3_64(&words) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ArrayId;

    /// Feeds failures of one task, each by a worker, and says how many were tried again before the
    /// run ended.
    #[track_caller]
    fn check(failures: &[(FailureKind, &str)], again: usize, says: &str) {
        let mut attempts = Attempts::new(Policy { retries: 4, budget: 100, seed: 1 });
        for (i, (kind, worker)) in failures.iter().enumerate() {
            let failure = TaskFailure {
                kind: *kind,
                message: format!("failure {i}"),
                stage: "s".into(),
                task: 7,
            };
            match attempts.decide(StageId(0), &failure, worker) {
                Decision::Again { attempt, delay } => {
                    assert!(i < again, "failure {i} is tried again");
                    assert_eq!(attempt as usize, i + 1);
                    assert!(delay <= THROTTLE_PAUSES.longest);
                }
                Decision::Stop { failure, attempts, note } => {
                    assert_eq!((i, attempts as usize), (again, i + 1), "{note}");
                    let said = format!("{} | {note}", failure.message);
                    assert!(said.contains(says), "{said}");
                    return;
                }
            }
        }
        assert_eq!(again, failures.len(), "the run ends");
    }

    #[test]
    fn kinds_of_failures_are_told_apart() {
        use FailureKind as K;
        let same = |kind, n| vec![(kind, "a"); n];
        let turns = |kind, n| (0..n).map(|i| (kind, ["a", "b", "c"][i % 3])).collect::<Vec<_>>();
        // Another try would end the same way.
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
        // Each kind counts for itself.
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
        // The task's own failure comes first, and one of the same kind says no more.
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
    fn a_run_has_a_budget_and_pauses_grow() {
        let mut attempts = Attempts::new(Policy { retries: 4, budget: 10, seed: 1 });
        let mut failure = TaskFailure {
            kind: FailureKind::Transient,
            message: "no answer".into(),
            stage: "s".into(),
            task: 0,
        };
        for task in 0..10 {
            failure.task = task;
            assert!(matches!(attempts.decide(StageId(0), &failure, "a"), Decision::Again { .. }));
        }
        let throttled = TaskFailure { kind: FailureKind::Throttled, task: 50, ..failure.clone() };
        let mut last = Duration::ZERO;
        for i in 0..8 {
            let Decision::Again { delay, .. } = attempts.decide(StageId(0), &throttled, "a") else {
                panic!("throttling spends no budget")
            };
            let whole = THROTTLE_PAUSES.first * (1 << i);
            assert!(
                delay >= (whole / 2).min(THROTTLE_PAUSES.longest / 2)
                    && delay <= whole.min(THROTTLE_PAUSES.longest),
                "{delay:?} of {whole:?}"
            );
            assert!(delay > last / 4);
            last = delay;
        }
        failure.task = 11;
        assert!(
            matches!(attempts.decide(StageId(0), &failure, "a"), Decision::Stop { note, .. } if note.contains("10 retries"))
        );
        assert_eq!(
            (attempts.failures["storage"], attempts.failures["throttled"], attempts.retries),
            (11, 8, 18)
        );
    }
}
