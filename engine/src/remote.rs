//! What travels between a client and a worker that is invoked from afar, and what the worker leaves in storage in case its answer is lost.
//!
//! A client sends an [`Invocation`], a worker gives an [`Answer`]; both are JSON of less than [`MAX_BODY_BYTES`]. As each request of an invocation
//! ends, its outcome is written below `{folder}/answers/` in the work directory, before the answer is given: a client whose answer was lost, or a
//! later process that resumes the run, finds it there ([`read_record`], [`read_records`]). Keys follow from the request and from who asked, so that an
//! invocation that is delivered twice writes the same objects with the same receipts.

use std::collections::BTreeSet;
use std::ops::Range;

use freestone_kernels::Buffer;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::plan::{FinalizedPlan, Place, PlanError, StageId};
use crate::storage::metadata::{MetadataError, open_array};
use crate::storage::{ByteRange, StorageError, Store, Stores, is_remote_url, read_small};
use crate::task::{RunAddress, TaskOutcome, TaskRequest};
use crate::user::KernelRegistry;
use crate::worker::{Cancel, MAX_PLAN_BYTES, RunContext};

/// Version of what travels. Client and worker must have the same.
pub const PROTOCOL: u32 = 1;

/// The engine's version. Client and worker must have the same, since a plan's layout follows from the engine.
pub const ENGINE: &str = env!("CARGO_PKG_VERSION");

/// Neither an invocation nor an answer is longer: what AWS Lambda takes is 6 MiB, of which this leaves some to headers and encoding.
pub const MAX_BODY_BYTES: usize = 6_000_000;

/// What a client asks of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Invocation {
    /// [`PROTOCOL`] of the client.
    pub protocol: u32,
    /// [`ENGINE`] of the client.
    pub engine: String,
    /// Where the run's plan lies.
    pub address: RunAddress,
    /// Names the process that asks, and no other that ever drives this run: ids of requests are unique with it. It is part of keys, so it has only
    /// letters, digits, `-` and `_`.
    pub client: String,
    /// What is wanted.
    pub call: Call,
}

/// What is wanted of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// To fetch the plan and find out whether it can be run. Runs nothing.
    Probe,
    /// To run these requests, as many at once as fit into memory.
    Run(Vec<TaskRequest>),
}

impl Invocation {
    /// An invocation by this program.
    pub fn new(address: RunAddress, client: impl Into<String>, call: Call) -> Invocation {
        Invocation { protocol: PROTOCOL, engine: ENGINE.to_owned(), address, client: client.into(), call }
    }

    /// Reads an invocation, if it is of this program's versions.
    ///
    /// # Errors
    /// [`RefusalKind::Protocol`] or [`RefusalKind::Engine`].
    pub fn from_json(body: &serde_json::Value) -> Result<Invocation, Refusal> {
        let version = body.get("protocol").and_then(serde_json::Value::as_u64);
        if version != Some(u64::from(PROTOCOL)) {
            let theirs = version.map_or("no version of it".to_owned(), |v| format!("version {v}"));
            return Err(Refusal::new(RefusalKind::Protocol, format!("this worker speaks version {PROTOCOL} of the protocol, the client {theirs}: {DEPLOY}")));
        }
        let theirs = body.get("engine").and_then(serde_json::Value::as_str).unwrap_or("none");
        if theirs != ENGINE {
            return Err(Refusal::new(RefusalKind::Engine, format!("this worker has version {ENGINE} of the engine, the client {theirs}: {DEPLOY}")));
        }
        let invocation = Invocation::deserialize(body).map_err(|e| Refusal::new(RefusalKind::Protocol, format!("the invocation cannot be read: {e}")))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if invocation.client.is_empty() || !invocation.client.chars().all(plain) {
            return Err(Refusal::new(RefusalKind::Protocol, format!("`{}` is no name of a client", invocation.client)));
        }
        Ok(invocation)
    }
}

const DEPLOY: &str = "deploy the worker of the client's version";

/// What a worker answers. (That it answers with something else, or not at all, is for the client to tell.)
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To a probe: the plan can be run.
    Ready {
        /// Who answers.
        environment: Environment,
        /// For each stage of the plan, how many of its tasks run at once in one environment; at least 1.
        slots: Vec<u32>,
        /// Milliseconds that one invocation may take, of which this one had so many left.
        remaining_ms: u64,
    },
    /// To either: nothing was run.
    Refused {
        /// Who answers.
        environment: Environment,
        /// Why.
        refusal: Refusal,
    },
    /// To requests: what became of them. Each is in one of the lists.
    Done {
        /// Who answers.
        environment: Environment,
        /// Requests that have ended. Where one's `done` has fewer tasks than it asks for and it has no `failure`, the rest was not started for
        /// want of time.
        outcomes: Vec<TaskOutcome>,
        /// Ids of requests that have ended and whose outcomes are only in their records, since the answer would be too long.
        recorded: Vec<u64>,
        /// Ids of requests that were not started for want of time.
        not_started: Vec<u64>,
        /// Milliseconds from the invocation's arrival to its answer.
        wall_ms: u64,
    },
}

/// One execution environment: a process that answers one invocation after another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Unlike that of any other.
    pub id: String,
    /// How many invocations it has answered, this one included: 1 is a cold start.
    pub invocations: u64,
    /// True if the plan was there from an earlier invocation.
    pub had_plan: bool,
    /// Milliseconds from the process's start to its first request for work.
    pub init_ms: u64,
    /// Bytes of memory that it may use.
    pub memory_bytes: u64,
    /// Highest resident memory of the process in this invocation, or since its start where the system does not count anew.
    pub peak_bytes: u64,
}

/// Why a worker does not run a plan.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Refusal {
    /// By kind.
    pub kind: RefusalKind,
    /// In words, and what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Refusal {
        Refusal { kind, message: message.into() }
    }
}

/// Kinds of refusals. None but [`Storage`](RefusalKind::Storage) goes away by asking again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// Client and worker speak different versions of the protocol, or this is no invocation.
    Protocol,
    /// Client and worker have different engines.
    Engine,
    /// The plan has another format.
    Format,
    /// There is no plan, or another one, or it does not hold together.
    Plan,
    /// The plan needs a kernel, or a version of one, that this worker does not have.
    UnknownKernel,
    /// A task would need more memory than the worker has.
    ExceedsMemory,
    /// The work directory, an input or an output is where this worker cannot go.
    Unreachable,
    /// Storage failed; it may answer next time.
    Storage,
}

fn refusal_of_storage(error: &StorageError) -> Refusal {
    let kind = if error.is_transient() || error.is_throttle() { RefusalKind::Storage } else { RefusalKind::Unreachable };
    Refusal::new(kind, error.to_string())
}

/// Fetches a plan from its address, checks it, and finds out whether this program can run it: its kernels are known, and its places can be opened.
/// Stores that the engine does not know are opened as `stores` says.
///
/// # Errors
/// A [`Refusal`].
pub fn fetch(address: &RunAddress, stores: &Stores, kernels: &KernelRegistry) -> Result<RunContext, Refusal> {
    let store = stores.open(&address.work_dir).map_err(|e| refusal_of_storage(&e))?;
    let key = format!("{}/plan.json", address.folder);
    let no_plan = |why: String| Refusal::new(RefusalKind::Plan, why);
    let bytes = read_small(&*store, &key, MAX_PLAN_BYTES).map_err(|e| refusal_of_storage(&e))?;
    let bytes = bytes.ok_or_else(|| no_plan(format!("there is no plan at {}", store.place(&key))))?;
    let plan = FinalizedPlan::from_bytes(&bytes).map_err(|e| match e {
        PlanError::Format { .. } => Refusal::new(RefusalKind::Format, e.to_string()),
        e => no_plan(e.to_string()),
    })?;
    drop(bytes);
    if !address.is_of(&plan) {
        return Err(no_plan(format!("{} is not what it was when the run began", store.place(&key))));
    }
    let places = plan.plan().arrays.iter().filter_map(|a| match &a.place {
        Place::Input { url, .. } | Place::Output { url, .. } => Some((&a.name, url)),
        _ => None,
    });
    for (name, url) in places {
        stores.open(url).map_err(|e| Refusal::new(RefusalKind::Unreachable, format!("array `{name}`: {e}")))?;
    }
    let context =
        RunContext { plan: plan.into(), address: address.clone(), stores: stores.clone(), kernels: kernels.clone().into(), cancel: Cancel::default() };
    context.check_kernels().map_err(|e| Refusal::new(RefusalKind::UnknownKernel, e))?;
    Ok(context)
}

/// Finds out whether what a plan reads is there where this program looks, and what it was when the plan was made: a directory of that name may be
/// another one here, or none, and chunks that are not there are fill values. The metadata of each array in a directory are read, and in each store
/// elsewhere those of one.
///
/// # Errors
/// A [`Refusal`].
pub fn check_inputs(context: &RunContext) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    for array in &context.plan.plan().arrays {
        let Place::Input { url, path, tag } = &array.place else { continue };
        if !seen.insert((url, (!is_remote_url(url)).then_some(path))) {
            continue;
        }
        let store = context.stores.open(url).map_err(|e| refusal_of_storage(&e))?;
        let unreachable = |why: String| Refusal::new(RefusalKind::Unreachable, format!("array `{}`: {why}", array.name));
        match open_array(&store, path) {
            Ok(there) if there.tag == *tag => {}
            Ok(_) => return Err(unreachable(format!("{} is not what it was when the plan was made, or another one of that name", store.place(path)))),
            Err(MetadataError::Storage(e)) => return Err(refusal_of_storage(&e)),
            Err(e) => return Err(unreachable(format!("{e}; inputs must be where workers see them, such as s3://BUCKET/PREFIX"))),
        }
    }
    Ok(())
}

/// For each stage, how many tasks fit into `memory_bytes` of one process at once, reserved memory counted once, and at most `most`.
///
/// # Errors
/// [`RefusalKind::ExceedsMemory`] where a stage's projection does not fit.
pub fn slots(plan: &FinalizedPlan, memory_bytes: u64, most: u32) -> Result<Vec<u32>, Refusal> {
    let room = memory_bytes.saturating_sub(plan.plan().reserved_mem);
    plan.stages()
        .map(|(_, stage, layout)| {
            let (total, each) = (layout.estimate.total(), layout.estimate.per_task());
            if total > memory_bytes {
                let mib = |bytes: u64| bytes.div_ceil(1 << 20);
                let message = format!(
                    "stage `{}` is projected to need {} MiB per task, but this worker has {} MiB: give the function more memory, or plan with a lower allowed_mem",
                    stage.name,
                    mib(total),
                    memory_bytes >> 20
                );
                return Err(Refusal::new(RefusalKind::ExceedsMemory, message));
            }
            Ok(u32::try_from(room / each.max(1)).unwrap_or(u32::MAX).clamp(1, most.max(1)))
        })
        .collect()
}

/// Where records of a run lie.
fn answers(folder: &str) -> String {
    format!("{folder}/answers")
}

/// Records are not longer: a request's outcome has some hundred bytes a chunk.
const MAX_RECORD_BYTES: u64 = 1 << 28;

/// The key of the record of a request, in the work directory: `FOLDER/answers/CLIENT/ID-ATTEMPT-STAGE-FIRST-COUNT.json`.
pub fn record_key(folder: &str, client: &str, request: &TaskRequest) -> String {
    let TaskRequest { id, stage, first, count, attempt, .. } = request;
    format!("{}/{client}/{id:08}-{attempt}-{}-{first}-{count}.json", answers(folder), stage.0)
}

/// Stage and tasks that a record's name tells of.
fn tasks_of(name: &str) -> Option<(StageId, Range<u64>)> {
    let numbers: Vec<u64> = name.strip_suffix(".json")?.split('-').map(|n| n.parse().ok()).collect::<Option<_>>()?;
    let [_, _, stage, first, count] = numbers[..] else { return None };
    Some((StageId(usize::try_from(stage).ok()?), first..first.checked_add(count)?))
}

/// Writes the record of a request that has ended, before its answer is given; bytes of its JSON.
///
/// # Errors
/// Where storage fails.
pub fn write_record(work: &dyn Store, folder: &str, client: &str, outcome: &TaskOutcome) -> Result<usize, StorageError> {
    let key = record_key(folder, client, &outcome.request);
    // Serialising plain data to memory cannot fail.
    let body = serde_json::to_vec(outcome).unwrap_or_default();
    work.write(&key, &body).map(|()| body.len())
}

/// The outcome of a request whose answer was lost, if its worker has come to write it. One that is damaged counts as not written.
///
/// # Errors
/// Where storage fails.
pub fn read_record(work: &dyn Store, folder: &str, client: &str, request: &TaskRequest) -> Result<Option<TaskOutcome>, StorageError> {
    let found = read_outcome(work, &record_key(folder, client, request))?;
    Ok(found.filter(|o| (o.request.stage, o.request.first, o.request.count) == (request.stage, request.first, request.count)))
}

fn read_outcome(work: &dyn Store, key: &str) -> Result<Option<TaskOutcome>, StorageError> {
    Ok(read_small(work, key, MAX_RECORD_BYTES)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// The key of what a client leaves once it waits for none of its requests any more, beside the records of these.
fn over_key(folder: &str, client: &str) -> String {
    format!("{}/{client}/over", answers(folder))
}

/// Tells the workers of a client that it waits for none of its requests any more.
///
/// # Errors
/// Where storage fails.
pub fn write_over(work: &dyn Store, folder: &str, client: &str) -> Result<(), StorageError> {
    work.write(&over_key(folder, client), b"{}")
}

/// True if a worker need not begin what a client has asked for: it has said so, or its run has ended and the folder is gone. A look costs one request
/// to the store; looks with even and odd numbers are at one and the other. Where storage does not answer, nothing is over.
pub fn is_over(work: &dyn Store, folder: &str, client: &str, look: u64) -> bool {
    let is_there = |key: &str| {
        let mut first = Buffer::zeroed(1);
        work.read(key, Some(ByteRange::At { offset: 0, len: 1 }), 1, &mut first).ok()
    };
    if look.is_multiple_of(2) { is_there(&over_key(folder, client)) == Some(true) } else { is_there(&format!("{folder}/plan.json")) == Some(false) }
}

/// Goes through the records of all clients of a run, one at a time. `wanted` is asked with stage and tasks before a record is read.
///
/// # Errors
/// Where storage fails.
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
        TaskRequest { id, stage: StageId(2), first, count: 3, attempt: 1, backup_of: None, timeout_ms: None }
    }

    fn outcome(request: TaskRequest) -> TaskOutcome {
        let failure = TaskFailure { kind: FailureKind::TimedOut, message: "too slow".into(), stage: "s".into(), task: request.first };
        TaskOutcome { request, worker: "w".into(), done: Vec::new(), failure: Some(failure), worker_peak_bytes: Some(7) }
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
        read_records(&work, "no such run", &mut |_, _| true, &mut |_| panic!("there is none")).unwrap();
    }

    #[test]
    fn what_is_over_is_seen_at_one_look_or_the_other() {
        let work = MemoryStore::new();
        let looks = |client: &str| [0, 1].map(|look| is_over(&work, "run", client, look));
        work.write("run/plan.json", b"{}").unwrap();
        assert_eq!(looks("c-1"), [false, false]);
        write_over(&work, "run", "c-1").unwrap();
        assert_eq!((looks("c-1"), looks("c-2")), ([true, false], [false, false]));
        // It is no record.
        read_records(&work, "run", &mut |_, _| true, &mut |_| panic!("there is none")).unwrap();
        work.remove("run/").unwrap();
        assert_eq!(looks("c-2"), [false, true]);
    }

    #[test]
    fn invocations_of_other_versions_are_refused_by_kind() {
        let address = RunAddress { work_dir: "w".into(), folder: "f".into() };
        let good = Invocation::new(address, "c-1", Call::Run(vec![request(1, 0)]));
        let check = |change: &dyn Fn(&mut serde_json::Value), kind: Option<RefusalKind>| {
            let mut body = serde_json::to_value(&good).unwrap();
            change(&mut body);
            assert_eq!(Invocation::from_json(&body).map_err(|r| r.kind), kind.map_or_else(|| Ok(good.clone()), Err), "{body}");
        };
        check(&|_| (), None);
        check(&|b| b["protocol"] = 0.into(), Some(RefusalKind::Protocol));
        check(&|b| *b = "hello".into(), Some(RefusalKind::Protocol));
        check(&|b| b["engine"] = "0.0.1".into(), Some(RefusalKind::Engine));
        check(&|b| b["call"] = "dance".into(), Some(RefusalKind::Protocol));
        check(&|b| b["client"] = "../elsewhere".into(), Some(RefusalKind::Protocol));
    }
}
