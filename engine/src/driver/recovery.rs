//! Recovery of a run's state when it is resumed.
//!
//! The journal lists finished tasks. Workers on other machines also leave a record of each request
//! before they answer ([`remote`]). A killed driver may not have journaled every answer, and some
//! answers may never have arrived. Records are therefore read after the journal.

use std::collections::BTreeMap;
use std::ops::Range;

use super::queue::receipts_fit;
use super::record::StoredRun;
use super::retry::retry_storage;
use super::{Run, RunError};
use crate::finished::Finished;
use crate::journal::{Journal, Replay};
use crate::plan::{ArrayId, FinalizedPlan, Place, PlanArray, Stage, StageId};
use crate::publish::Publisher;
use crate::storage::{StorageError, Store};
use crate::task::{Receipt, TaskOutcome};
use crate::{machine, remote};

/// The recovered state of a run; the default is the state of a new run.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// The finished tasks of each stage.
    pub(super) finished: Vec<Finished>,
    /// The removed intermediates, with the tasks that have rewritten their part since.
    pub(super) removed: BTreeMap<ArrayId, Finished>,
    /// The receipts of finished output chunks, if the publisher commits them.
    pub(super) receipts: Vec<Receipt>,
    /// The number of times that the run was resumed.
    pub(super) epoch: u32,
    /// True if the run has taken its output locations.
    pub(super) is_begun: bool,
}

impl Recovered {
    /// Returns true if all tasks are finished.
    pub(super) fn is_finished(&self, plan: &FinalizedPlan) -> bool {
        self.finished.iter().zip(&plan.plan().stages).all(|(f, s)| f.count() == s.n_tasks())
    }
}

/// Selects the receipts that the publisher's commit needs.
#[derive(Clone, Debug, Default)]
pub(super) struct ReceiptFilter {
    /// For each array of the plan, whether its receipts are needed.
    arrays: Vec<bool>,
}

impl ReceiptFilter {
    /// Creates a filter that selects output chunks if the publisher needs receipts, else nothing.
    pub(super) fn new(plan: &FinalizedPlan, publisher: &dyn Publisher) -> ReceiptFilter {
        let is_needed = |array: &PlanArray| {
            publisher.needs_receipts() && matches!(array.place, Place::Output { .. })
        };
        ReceiptFilter { arrays: plan.plan().arrays.iter().map(is_needed).collect() }
    }

    /// Returns the needed ones of a task's receipts.
    pub(super) fn select<'a>(
        &'a self,
        written: &'a [Receipt],
    ) -> impl Iterator<Item = Receipt> + 'a {
        written.iter().filter(|r| self.arrays.get(r.array.0).copied().unwrap_or(false)).copied()
    }
}

/// Reads the journal of a run and its workers' records.
pub(super) fn recover(
    stored: &StoredRun,
    run: &Run<'_>,
    work: &dyn Store,
) -> Result<Recovered, RunError> {
    let (plan, address, system) = (&stored.plan, &stored.address, run.stores.system());
    let filter = ReceiptFilter::new(plan, run.publisher);
    let verifier = Verifier { plan, publisher: run.publisher, boot: &machine::boot_id() };
    let mut receipts = Vec::new();
    let replay = retry_storage(system, || {
        receipts.clear();
        Journal::read(work, &address.journal(), plan, &mut |replay, written| {
            let is_valid = verifier.is_intact(replay, written);
            if is_valid {
                receipts.extend(filter.select(written));
            }
            is_valid
        })
    });
    let replay = replay.map_err(RunError::Work)?;
    if replay.begun.is_empty() {
        // The run takes its output locations again, which removes everything written before.
        return Ok(Recovered {
            epoch: replay.epoch,
            finished: vec![Finished::default(); plan.plan().stages.len()],
            ..Recovered::default()
        });
    }
    let is_valid = |receipts: &[Receipt]| verifier.is_intact(&replay, receipts);
    let records = Records { work, folder: &address.folder, plan, filter: &filter };
    let found = retry_storage(system, || records.read(&replay.finished, &is_valid));
    let (finished, recorded) = found.map_err(RunError::Work)?;
    receipts.extend(recorded);
    Ok(Recovered {
        finished,
        removed: replay.removed,
        receipts,
        epoch: replay.epoch,
        is_begun: true,
    })
}

/// Checks that journaled chunks exist.
struct Verifier<'a> {
    plan: &'a FinalizedPlan,
    publisher: &'a dyn Publisher,
    boot: &'a str,
}

impl Verifier<'_> {
    /// Returns true if the chunks of these receipts are intact. After a reboot, files that were not
    /// flushed may be lost or torn, so the chunks are read.
    fn is_intact(&self, replay: &Replay, receipts: &[Receipt]) -> bool {
        if replay.begun.last().is_none_or(|boot| boot == self.boot) {
            return true;
        }
        receipts.iter().all(|r| self.publisher.is_intact(self.plan, r).unwrap_or(false))
    }
}

/// The records that workers on other machines left in a run's folder.
struct Records<'a> {
    work: &'a dyn Store,
    folder: &'a str,
    plan: &'a FinalizedPlan,
    filter: &'a ReceiptFilter,
}

impl Records<'_> {
    /// Returns the finished tasks of each stage, including those that only records list, and the
    /// needed receipts of the latter.
    ///
    /// Records of journaled tasks are not read. A recorded task counts if its receipts match the
    /// plan and `is_valid` accepts them. A record of a task whose intermediate was removed since
    /// also counts: a reader finds the chunk missing, and the task runs again.
    fn read(
        &self,
        journaled: &[Finished],
        is_valid: &dyn Fn(&[Receipt]) -> bool,
    ) -> Result<(Vec<Finished>, Vec<Receipt>), StorageError> {
        let stages = &self.plan.plan().stages;
        let (mut finished, mut receipts) = (journaled.to_vec(), Vec::new());
        let mut is_wanted = |id: StageId, tasks: Range<u64>| {
            let is_new = |s: &Stage| {
                tasks.end <= s.n_tasks() && !journaled[id.0].contains(tasks.start, tasks.end)
            };
            stages.get(id.0).is_some_and(is_new)
        };
        let mut add = |outcome: TaskOutcome| {
            let request = &outcome.request;
            let Some(stage) = stages.get(request.stage.0) else { return };
            let end = request.first.saturating_add(request.count).min(stage.n_tasks());
            let requested = request.first..end;
            for report in outcome.done.iter().filter(|r| requested.contains(&r.task)) {
                if receipts_fit(self.plan, stage, report)
                    && is_valid(&report.receipts)
                    && finished[request.stage.0].insert(report.task)
                {
                    receipts.extend(self.filter.select(&report.receipts));
                }
            }
        };
        remote::read_records(self.work, self.folder, &mut is_wanted, &mut add)?;
        Ok((finished, receipts))
    }
}
