//! Runs that are there: what a run's folder in the work directory says of it.
//!
//! `plan.json`, `run.json` (how to go on), `journal/`, `lock`, `kept/` (small intermediates that
//! were in memory), and a folder for each intermediate.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::RunError;
use crate::finished::Finished;
use crate::journal::Journal;
use crate::plan::{FinalizedPlan, Place, PlanError};
use crate::storage::{Lock, StorageError, Store, Stores, is_in_memory, read_small};
use crate::task::RunAddress;
use crate::work_dir;
use crate::worker::MAX_PLAN_BYTES;

/// What must be known, besides plan and journal, to go on with a run in another process. No
/// credentials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRecord {
    /// [`RECORD_FORMAT`].
    pub format: u32,
    /// When the run began, in milliseconds since 1970.
    pub began_ms: u64,
    /// What the session needs ([`Publisher::ticket`](crate::publish::Publisher::ticket)).
    pub session: Value,
}

/// Version of [`RunRecord`].
pub const RECORD_FORMAT: u32 = 1;
const MAX_RECORD_BYTES: u64 = 1_000_000;

impl RunRecord {
    /// When the run began.
    pub fn began(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.began_ms)
    }
}

/// A run that was begun, as its folder has it.
#[derive(Clone, Debug)]
pub struct StoredRun {
    /// Where it is.
    pub address: RunAddress,
    /// How to go on with it.
    pub record: RunRecord,
    /// Its plan.
    pub plan: Arc<FinalizedPlan>,
}

/// How far a run has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Finished tasks.
    pub finished: u64,
    /// All tasks.
    pub tasks: u64,
    /// A process is at it now.
    pub is_running: bool,
}

impl StoredRun {
    /// Reads plan and record of a run.
    ///
    /// # Errors
    /// Where there is no such run, or it is not one that this engine can run.
    pub fn open(stores: &Stores, address: RunAddress) -> Result<StoredRun, RunError> {
        let work = open_work(stores, &address.work_dir)?;
        let no_run = |why: &str| RunError::NoRun { run: address.path(), why: why.to_owned() };
        let get = |name: &str, limit: u64| {
            let found = read_small(&*work, &format!("{}/{name}", address.folder), limit)
                .map_err(RunError::Work)?;
            found.ok_or_else(|| no_run(&format!("{name} is missing")))
        };
        // It is the first to go, when a run has ended or is cleaned.
        let record = get("run.json", MAX_RECORD_BYTES).map_err(|error| {
            match (error, work.list(&format!("{}/", address.folder))) {
                (RunError::NoRun { .. }, Ok(names)) if !names.is_empty() => no_run(
                    "run.json is missing: the run has ended or was cleaned, and removal of its \
                        folder was interrupted",
                ),
                (error, _) => error,
            }
        })?;
        let record: RunRecord = serde_json::from_slice(&record)
            .map_err(|e| no_run(&format!("invalid run.json: {e}")))?;
        if record.format != RECORD_FORMAT {
            return Err(no_run(&format!(
                "run.json has format {}, this program supports format {RECORD_FORMAT}",
                record.format
            )));
        }
        let plan =
            FinalizedPlan::from_bytes(&get("plan.json", MAX_PLAN_BYTES)?).map_err(|error| {
                match error {
                    PlanError::Engine { found } => {
                        RunError::OtherEngine { run: address.path(), found }
                    }
                    error => no_run(&format!("invalid plan.json: {error}")),
                }
            })?;
        if !address.is_of(&plan) {
            return Err(no_run("plan.json has changed since the run began"));
        }
        Ok(StoredRun { address, record, plan: Arc::new(plan) })
    }

    /// Finds out whether a process is at it now.
    ///
    /// # Errors
    /// [`RunError::Running`], and where the work directory cannot be read.
    pub fn check_idle(&self, stores: &Stores) -> Result<(), RunError> {
        let work = open_work(stores, &self.address.work_dir)?;
        if self.address.is_locked(&*work)? {
            Err(RunError::Running { run: self.address.path() })
        } else {
            Ok(())
        }
    }

    /// How far it has come.
    ///
    /// # Errors
    /// Where the work directory cannot be read.
    pub fn standing(&self, stores: &Stores) -> Result<Standing, RunError> {
        let work = open_work(stores, &self.address.work_dir)?;
        let is_running = self.address.is_locked(&*work)?;
        let replay = Journal::read(&*work, &self.address.journal(), &self.plan, &mut |_, _| true)
            .map_err(RunError::Work)?;
        let finished = replay.finished.iter().map(Finished::count).sum();
        let tasks =
            self.plan.plan().stages.iter().map(|s| s.n_tasks()).fold(0, u64::saturating_add);
        Ok(Standing { finished, tasks, is_running })
    }
}

impl RunAddress {
    /// The folder's path or URL, which is how a run is called when it is to be resumed.
    pub fn path(&self) -> String {
        format!("{}/{}", self.work_dir.trim_end_matches('/'), self.folder)
    }

    /// True if the folder is one of a run of this plan: its name begins with the hash of the plan.
    pub fn is_of(&self, plan: &FinalizedPlan) -> bool {
        self.folder.split('-').next() == Some(plan.run_id().to_string().as_str())
    }

    pub(super) fn journal(&self) -> String {
        format!("{}/journal", self.folder)
    }

    /// `None` while a process is at the run.
    pub(super) fn lock(&self, work: &dyn Store) -> Result<Option<Lock>, RunError> {
        work.lock(&format!("{}/lock", self.folder)).map_err(RunError::Work)
    }

    /// True while a process is at the run.
    fn is_locked(&self, work: &dyn Store) -> Result<bool, RunError> {
        work.is_locked(&format!("{}/lock", self.folder)).map_err(RunError::Work)
    }
}

/// Opens a work directory; the default one only if it is this user's alone.
pub(super) fn open_work(stores: &Stores, work_dir: &str) -> Result<Arc<dyn Store>, RunError> {
    work_dir::check(work_dir).and_then(|()| stores.open(work_dir)).map_err(RunError::Work)
}

/// Names of the folders in a work directory that are runs, or were meant to be.
///
/// # Errors
/// Where the work directory cannot be listed.
pub fn folders(stores: &Stores, work_dir: &str) -> Result<Vec<String>, RunError> {
    let work = open_work(stores, work_dir)?;
    let mut runs = Vec::new();
    for name in work.list("").map_err(RunError::Work)? {
        // Anything else in the directory is not ours.
        let ours = |name: &String| OURS.contains(&name.as_str());
        if is_run(&name) && work.list(&format!("{name}/")).map_err(RunError::Work)?.iter().any(ours)
        {
            runs.push(name);
        }
    }
    Ok(runs)
}

/// One of these is in the folder of every run, also of one that was removed in part.
const OURS: [&str; 4] = ["journal", "lock", "plan.json", "run.json"];

/// True for names of runs' folders: hash of the plan, time, process.
fn is_run(name: &str) -> bool {
    let hex = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
    };
    match name.split('-').collect::<Vec<_>>()[..] {
        [plan, time, pid] => {
            plan.len() == 16
                && hex(plan)
                && time.len() >= 15
                && hex(time)
                && pid.parse::<u32>().is_ok()
        }
        _ => false,
    }
}

/// Removes a run's folder, unless a process is at it.
///
/// # Errors
/// Where it is running, or storage fails.
pub fn remove(stores: &Stores, address: &RunAddress) -> Result<(), RunError> {
    let work = open_work(stores, &address.work_dir)?;
    let Some(_lock) = address.lock(&*work)? else {
        return Err(RunError::Running { run: address.path() });
    };
    clean(&*work, &address.folder).map_err(RunError::Work)
}

/// Removes a run's folder. What says that it is a run goes first: whatever is left of it after that
/// is none.
pub(super) fn clean(work: &dyn Store, folder: &str) -> Result<(), StorageError> {
    work.remove(&format!("{folder}/run.json"))?;
    work.remove(&format!("{folder}/"))
}

/// True if another process, perhaps, could go on with a run: nothing that it reads or writes is in
/// this one's memory.
pub(super) fn can_be_resumed(plan: &FinalizedPlan, work: &dyn Store) -> bool {
    let places = plan.plan().arrays.iter().any(|a| matches!(&a.place, Place::Input { url, .. } | Place::Output { url, .. } if is_in_memory(url)));
    !places && !is_in_memory(work.url())
}
