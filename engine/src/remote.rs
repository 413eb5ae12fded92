//! Records of finished requests, which workers write to storage in case an answer is lost; and
//! refusals of workers to run a plan.
//!
//! A worker writes the outcome of each request below `{folder}/answers/` in the work directory
//! before it answers. A client whose answer was lost, or a later process that resumes the run,
//! finds the outcome there ([`read_record`], [`read_records`]). Keys follow from the request and
//! the client, so an invocation that is delivered twice writes the same objects with the same
//! receipts. The protocol is in `freestone-worker`.

use std::ops::Range;

use freestone_kernels::Buffer;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::plan::StageId;
use crate::storage::{ByteRange, StorageError, Store, read_small};
use crate::task::{TaskOutcome, TaskRequest};

/// The reason for which a worker refuses to run a plan.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Refusal {
    /// The kind of refusal.
    pub kind: RefusalKind,
    /// The message, including a suggested remedy.
    pub message: String,
}

impl Refusal {
    /// Creates a refusal.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Refusal {
        Refusal { kind, message: message.into() }
    }
}

/// Kinds of refusals. Only [`Storage`](RefusalKind::Storage) may succeed on a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// Client and worker use different protocol versions, or the message is not an invocation.
    Protocol,
    /// Client and worker, or worker and plan, use different engine versions.
    Engine,
    /// The plan has a different format version.
    Format,
    /// The plan is missing, inconsistent, or a different plan than requested.
    Plan,
    /// The plan needs a kernel, or a kernel version, that this worker does not have.
    UnknownKernel,
    /// A task needs more memory than the worker has.
    ExceedsMemory,
    /// The work directory, an input or an output is not accessible to this worker.
    Unreachable,
    /// Storage failed; a retry may succeed.
    Storage,
}

/// Returns the folder of a run's records.
fn answers(folder: &str) -> String {
    format!("{folder}/answers")
}

/// The maximum length of a record. An outcome takes a few hundred bytes per chunk.
const MAX_RECORD_BYTES: u64 = 1 << 28;

/// Returns the key of a request's record in the work directory:
/// `FOLDER/answers/CLIENT/ID-ATTEMPT-STAGE-FIRST-COUNT.json`.
pub fn record_key(folder: &str, client: &str, request: &TaskRequest) -> String {
    let TaskRequest { id, stage, first, count, attempt, .. } = request;
    format!("{}/{client}/{id:08}-{attempt}-{}-{first}-{count}.json", answers(folder), stage.0)
}

/// Returns the stage and tasks that a record's name encodes.
fn tasks_of(name: &str) -> Option<(StageId, Range<u64>)> {
    let numbers: Vec<u64> =
        name.strip_suffix(".json")?.split('-').map(|n| n.parse().ok()).collect::<Option<_>>()?;
    let [_, _, stage, first, count] = numbers[..] else { return None };
    Some((StageId(usize::try_from(stage).ok()?), first..first.checked_add(count)?))
}

/// Writes the record of a finished request and returns the length of its JSON in bytes. Workers
/// call this before they answer.
///
/// # Errors
/// Returns an error if storage fails.
pub fn write_record(
    work: &dyn Store,
    folder: &str,
    client: &str,
    outcome: &TaskOutcome,
) -> Result<usize, StorageError> {
    let key = record_key(folder, client, &outcome.request);
    let body = serde_json::to_vec(outcome).map_err(|e| StorageError::Io {
        place: work.place(&key),
        action: "serialize",
        message: e.to_string(),
        transient: false,
    })?;
    work.write(&key, &body).map(|()| body.len())
}

/// Returns the recorded outcome of a request whose answer was lost, or `None` if no valid record
/// exists. A damaged record counts as missing.
///
/// # Errors
/// Returns an error if storage fails.
pub fn read_record(
    work: &dyn Store,
    folder: &str,
    client: &str,
    request: &TaskRequest,
) -> Result<Option<TaskOutcome>, StorageError> {
    let found = read_outcome(work, &record_key(folder, client, request))?;
    Ok(found.filter(|o| {
        (o.request.stage, o.request.first, o.request.count)
            == (request.stage, request.first, request.count)
    }))
}

fn read_outcome(work: &dyn Store, key: &str) -> Result<Option<TaskOutcome>, StorageError> {
    Ok(read_small(work, key, MAX_RECORD_BYTES)?
        .and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Returns the key of the object that a client writes beside its records once it needs no outcomes.
fn over_key(folder: &str, client: &str) -> String {
    format!("{}/{client}/over", answers(folder))
}

/// Writes the object by which a client's workers know that the client needs no outcomes.
///
/// # Errors
/// Returns an error if storage fails.
pub fn write_over(work: &dyn Store, folder: &str, client: &str) -> Result<(), StorageError> {
    work.write(&over_key(folder, client), b"{}")
}

/// Returns true if the client needs no outcomes, so that workers skip its requests.
///
/// Either the client has written its end object, or the run has ended and its folder is gone. Each
/// check costs one storage request. Even and odd values of `look` check one and the other
/// condition. Returns false if storage fails.
pub fn is_over(work: &dyn Store, folder: &str, client: &str, look: u64) -> bool {
    let is_there = |key: &str| {
        let mut first = Buffer::zeroed(1);
        work.read(key, Some(ByteRange::At { offset: 0, len: 1 }), 1, &mut first).ok()
    };
    if look.is_multiple_of(2) {
        is_there(&over_key(folder, client)) == Some(true)
    } else {
        is_there(&format!("{folder}/plan.json")) == Some(false)
    }
}

/// Visits the records of all clients of a run, one at a time. Calls `wanted` with stage and tasks
/// before reading a record.
///
/// # Errors
/// Returns an error if storage fails.
pub fn read_records(
    work: &dyn Store,
    folder: &str,
    wanted: &mut dyn FnMut(StageId, Range<u64>) -> bool,
    each: &mut dyn FnMut(TaskOutcome),
) -> Result<(), StorageError> {
    let all = answers(folder);
    for client in work.list(&format!("{all}/"))? {
        for name in work.list(&format!("{all}/{client}/"))? {
            if tasks_of(&name).is_some_and(|(stage, tasks)| wanted(stage, tasks))
                && let Some(outcome) = read_outcome(work, &format!("{all}/{client}/{name}"))?
            {
                each(outcome);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStore;
    use crate::task::{FailureKind, TaskFailure};

    fn request(id: u64, first: u64) -> TaskRequest {
        TaskRequest {
            id,
            stage: StageId(2),
            first,
            count: 3,
            attempt: 1,
            backup_of: None,
            timeout_ms: None,
        }
    }

    fn outcome(request: TaskRequest) -> TaskOutcome {
        let failure = TaskFailure {
            kind: FailureKind::TimedOut,
            message: "too slow".into(),
            stage: "s".into(),
            task: request.first,
        };
        TaskOutcome {
            request,
            worker: "w".into(),
            done: Vec::new(),
            failure: Some(failure),
            worker_peak_bytes: Some(7),
        }
    }

    #[test]
    fn records_are_found_again_by_request_and_by_run() {
        let work = MemoryStore::new();
        let (a, b) = (outcome(request(1, 10)), outcome(request(2, 20)));
        assert_eq!(record_key("run", "c-1", &a.request), "run/answers/c-1/00000001-1-2-10-3.json");
        for (client, o) in [("c-1", &a), ("c-2", &b), ("c-2", &b)] {
            write_record(&work, "run", client, o).unwrap();
        }
        assert_eq!(read_record(&work, "run", "c-1", &a.request).unwrap().as_ref(), Some(&a));
        assert_eq!(read_record(&work, "run", "c-2", &a.request).unwrap(), None);
        work.write("run/answers/c-2/00000009-0-2-30-3.json", b"{\"requ").unwrap();
        work.write("run/answers/c-2/what else", b"").unwrap();
        let (mut asked, mut found) = (Vec::new(), Vec::new());
        let mut wanted = |stage: StageId, tasks: Range<u64>| {
            asked.push((stage.0, tasks.clone()));
            tasks.start != 10
        };
        read_records(&work, "run", &mut wanted, &mut |o| found.push(o)).unwrap();
        asked.sort_by_key(|(_, t)| t.start);
        assert_eq!(asked, [(2, 10..13), (2, 20..23), (2, 30..33)]);
        assert_eq!(found, [b]);
        read_records(&work, "no such run", &mut |_, _| true, &mut |_| panic!("there is none"))
            .unwrap();
    }

    #[test]
    fn what_is_over_is_seen_at_one_look_or_the_other() {
        let work = MemoryStore::new();
        let looks = |client: &str| [0, 1].map(|look| is_over(&work, "run", client, look));
        work.write("run/plan.json", b"{}").unwrap();
        assert_eq!(looks("c-1"), [false, false]);
        write_over(&work, "run", "c-1").unwrap();
        assert_eq!((looks("c-1"), looks("c-2")), ([true, false], [false, false]));
        // The end object is not a record.
        read_records(&work, "run", &mut |_, _| true, &mut |_| panic!("there is none")).unwrap();
        work.remove("run/").unwrap();
        assert_eq!(looks("c-2"), [false, true]);
    }
}
