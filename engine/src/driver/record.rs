//! Stored runs: the contents of a run's folder in the work directory.
//!
//! The folder contains `run.json` (how to resume the run), `plan.json`, `journal/`, `lock`, `kept/`
//! (small intermediates that were in memory), and a folder for each intermediate.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::RunError;
use crate::finished::Finished;
use crate::journal::Journal;
use crate::plan::{FinalizedPlan, Place, PlanArray, PlanError};
use crate::storage::{Lock, StorageError, Store, Stores, is_in_memory, read_small};
use crate::task::RunAddress;
use crate::work_dir;
use crate::worker::MAX_PLAN_BYTES;

/// The information, besides plan and journal, that another process needs to resume a run. Contains
/// no credentials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRecord {
    /// The format version, [`RECORD_FORMAT`].
    pub format: u32,
    /// The start of the run, in milliseconds since the Unix epoch.
    pub began_ms: u64,
    /// The publisher's ticket ([`Publisher::ticket`](crate::publish::Publisher::ticket)).
    pub session: Value,
}

/// The format version of [`RunRecord`].
pub const RECORD_FORMAT: u32 = 1;
const MAX_RECORD_BYTES: u64 = 1_000_000;

impl RunRecord {
    /// Returns the start of the run.
    pub fn began(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.began_ms)
    }
}

/// A run as stored in its folder.
#[derive(Clone, Debug)]
pub struct StoredRun {
    /// The location of the folder.
    pub address: RunAddress,
    /// The record of the run.
    pub record: RunRecord,
    /// The plan of the run.
    pub plan: Arc<FinalizedPlan>,
}

/// The progress of a stored run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunStatus {
    /// The number of finished tasks.
    pub finished: u64,
    /// The number of tasks.
    pub tasks: u64,
    /// True if a process drives the run.
    pub is_running: bool,
}

impl StoredRun {
    /// Reads the plan and the record of a run.
    ///
    /// # Errors
    /// Returns [`RunError::NoRun`] if the folder is not a run that this engine version can resume.
    pub fn open(stores: &Stores, address: RunAddress) -> Result<StoredRun, RunError> {
        let work = open_work_dir(stores, &address.work_dir)?;
        let no_run = |why: &str| RunError::NoRun { run: address.path(), why: why.to_owned() };
        let get = |name: &str, limit: u64| {
            let found = read_small(&*work, &format!("{}/{name}", address.folder), limit)
                .map_err(RunError::Work)?;
            found.ok_or_else(|| no_run(&format!("{name} is missing")))
        };
        // The removal of a folder starts with `run.json`.
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

    /// Checks that no process drives the run.
    ///
    /// # Errors
    /// Returns [`RunError::Running`] if a process does, or an error of the work directory.
    pub fn check_idle(&self, stores: &Stores) -> Result<(), RunError> {
        let work = open_work_dir(stores, &self.address.work_dir)?;
        if self.address.is_locked(&*work)? {
            Err(RunError::Running { run: self.address.path() })
        } else {
            Ok(())
        }
    }

    /// Reads the progress of the run.
    ///
    /// # Errors
    /// Returns an error if the work directory cannot be read.
    pub fn status(&self, stores: &Stores) -> Result<RunStatus, RunError> {
        let work = open_work_dir(stores, &self.address.work_dir)?;
        let is_running = self.address.is_locked(&*work)?;
        let replay = Journal::read(&*work, &self.address.journal(), &self.plan, &mut |_, _| true)
            .map_err(RunError::Work)?;
        let finished = replay.finished.iter().map(Finished::count).sum();
        let tasks =
            self.plan.plan().stages.iter().map(|s| s.n_tasks()).fold(0, u64::saturating_add);
        Ok(RunStatus { finished, tasks, is_running })
    }
}

impl RunAddress {
    /// Returns the path or URL of the folder, which identifies the run when it is resumed.
    pub fn path(&self) -> String {
        format!("{}/{}", self.work_dir.trim_end_matches('/'), self.folder)
    }

    /// Returns true if the folder belongs to a run of this plan: its name begins with the plan's
    /// hash.
    pub fn is_of(&self, plan: &FinalizedPlan) -> bool {
        self.folder.split('-').next() == Some(plan.run_id().to_string().as_str())
    }

    /// Returns the prefix of the journal's keys.
    pub(super) fn journal(&self) -> String {
        format!("{}/journal", self.folder)
    }

    /// Locks the run. Returns `None` if another process holds the lock.
    pub(super) fn lock(&self, work: &dyn Store) -> Result<Option<Lock>, RunError> {
        work.lock(&format!("{}/lock", self.folder)).map_err(RunError::Work)
    }

    /// Returns true if a process holds the run's lock.
    fn is_locked(&self, work: &dyn Store) -> Result<bool, RunError> {
        work.is_locked(&format!("{}/lock", self.folder)).map_err(RunError::Work)
    }
}

/// Opens a work directory. The default one must belong to this user alone.
pub(super) fn open_work_dir(stores: &Stores, work_dir: &str) -> Result<Arc<dyn Store>, RunError> {
    work_dir::check(work_dir).and_then(|()| stores.open(work_dir)).map_err(RunError::Work)
}

/// Returns the names of the run folders in a work directory, including incomplete ones.
///
/// # Errors
/// Returns an error if the work directory cannot be listed.
pub fn folders(stores: &Stores, work_dir: &str) -> Result<Vec<String>, RunError> {
    let work = open_work_dir(stores, work_dir)?;
    let mut runs = Vec::new();
    for name in work.list("").map_err(RunError::Work)? {
        // Other programs may use the directory too, but not names of this form.
        if !is_run_name(&name) {
            continue;
        }
        let files = work.list(&format!("{name}/")).map_err(RunError::Work)?;
        // A removal may have been interrupted after any file.
        if !files.is_empty() {
            runs.push(name);
        }
    }
    Ok(runs)
}

/// Returns true for names of run folders: hash of the plan, time, process.
fn is_run_name(name: &str) -> bool {
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

/// Removes the folder of a run that no process drives.
///
/// # Errors
/// Returns [`RunError::Running`] if a process does, or an error of the work directory.
pub fn remove(stores: &Stores, address: &RunAddress) -> Result<(), RunError> {
    let work = open_work_dir(stores, &address.work_dir)?;
    let Some(_lock) = address.lock(&*work)? else {
        return Err(RunError::Running { run: address.path() });
    };
    remove_folder(&*work, &address.folder).map_err(RunError::Work)
}

/// Removes a run's folder. `run.json` is removed first, so that a partly removed folder is not
/// taken for a run.
pub(super) fn remove_folder(work: &dyn Store, folder: &str) -> Result<(), StorageError> {
    work.remove(&format!("{folder}/run.json"))?;
    work.remove(&format!("{folder}/"))
}

/// Returns true if another process could resume a run, because no location of the run is in this
/// process's memory.
pub(super) fn can_be_resumed(plan: &FinalizedPlan, work: &dyn Store) -> bool {
    let is_hidden = |array: &PlanArray| match &array.place {
        Place::Input { url, .. } | Place::Output { url, .. } => is_in_memory(url),
        _ => false,
    };
    !plan.plan().arrays.iter().any(is_hidden) && !is_in_memory(work.url())
}
