//! What workers far away have finished, and the journal does not know.
//!
//! Such a worker leaves a record of each request before it answers ([`remote`]). A driver that was
//! killed had not written down all answers, and some never reached it; who resumes the run reads
//! the records after the journal.

use std::ops::Range;

use super::{Kept, receipts_fit};
use crate::finished::Finished;
use crate::journal::Replay;
use crate::plan::{FinalizedPlan, Stage, StageId};
use crate::remote;
use crate::storage::{StorageError, Store};
use crate::task::{Receipt, TaskOutcome};

/// For each stage its finished tasks, those too of which only records tell; and what of these'
/// receipts is kept. Records of tasks that the journal knows are not read; of others, those whose
/// receipts are what the plan asks for count, if `holds` says so of what they wrote.
///
/// That a task's intermediate was removed since is no matter: who needs it finds it gone, and has
/// it made again.
///
/// # Errors
/// Where storage fails.
pub(super) fn finished_with_answers(
    work: &dyn Store,
    folder: &str,
    plan: &FinalizedPlan,
    replay: &Replay,
    keep: &Kept,
    holds: &dyn Fn(&[Receipt]) -> bool,
) -> Result<(Vec<Finished>, Vec<Receipt>), StorageError> {
    let stages = &plan.plan().stages;
    let (mut finished, mut receipts) = (replay.finished.clone(), Vec::new());
    let mut wanted = |id: StageId, tasks: Range<u64>| {
        let is_new = |s: &Stage| {
            tasks.end <= s.n_tasks() && !replay.finished[id.0].contains(tasks.start, tasks.end)
        };
        stages.get(id.0).is_some_and(is_new)
    };
    let mut each = |outcome: TaskOutcome| {
        let request = &outcome.request;
        let Some(stage) = stages.get(request.stage.0) else { return };
        let asked = request.first..request.first.saturating_add(request.count).min(stage.n_tasks());
        for report in outcome.done.iter().filter(|r| asked.contains(&r.task)) {
            if receipts_fit(plan, stage, report)
                && holds(&report.receipts)
                && finished[request.stage.0].insert(report.task)
            {
                receipts.extend(keep.of_outputs(&report.receipts));
            }
        }
    };
    remote::read_records(work, folder, &mut wanted, &mut each)?;
    Ok((finished, receipts))
}
