//! What a run holds of this machine's memory: tasks, and between them intermediates.

use std::fmt;

use super::{FinalizedPlan, Place, PlanError, StageId};
use crate::memory::size;
use crate::storage::TieredStore;

/// How much the local machine may hold, and how tasks share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalMemory {
    /// Bytes in all.
    pub limit: u64,
    /// Tasks share one process.
    pub shared: bool,
}

impl LocalMemory {
    /// Bytes that are held whatever runs.
    pub fn base(&self, plan: &FinalizedPlan) -> u64 {
        if self.shared { plan.plan.process_mem().saturating_add(plan.plan.commit_mem()) } else { 0 }
    }

    /// Bytes that a task of a stage adds.
    pub fn bytes(&self, plan: &FinalizedPlan, stage: StageId) -> u64 {
        let estimate = &plan.layout(stage).estimate;
        if self.shared { estimate.per_task() } else { estimate.total() }
    }
}

/// What the local machine holds at its worst, by parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalProjection {
    /// Whatever runs: reserved memory, repositories and their commit, where tasks share a process.
    pub base: u64,
    /// All tasks that run at once. No more are admitted.
    pub tasks: u64,
    /// Intermediates that are kept in memory. What does not fit goes to the work directory.
    pub kept: u64,
}

impl LocalProjection {
    /// All parts.
    pub fn total(&self) -> u64 {
        self.base.saturating_add(self.tasks).saturating_add(self.kept)
    }
}

impl fmt::Display for LocalProjection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "projected memory {}: {} reserved, {} for tasks",
            size(self.total()),
            size(self.base),
            size(self.tasks)
        )?;
        if self.kept > 0 {
            write!(f, ", up to {} of intermediates", size(self.kept))
        } else {
            Ok(())
        }
    }
}

impl FinalizedPlan {
    /// Projected memory of the whole local machine: reserved memory once if tasks share a process,
    /// else once for each; the tasks that run at once; and intermediates in what that leaves over
    /// of the limit, if tasks share a process.
    ///
    /// # Errors
    /// Where a stage has no room for one task.
    pub fn projected_local_mem(
        &self,
        slots: usize,
        local: &LocalMemory,
    ) -> Result<LocalProjection, PlanError> {
        let base = local.base(self);
        let room = local.limit.saturating_sub(base);
        // Bytes of a task, and how many there are.
        let mut stages = Vec::with_capacity(self.plan.stages.len());
        let mut alone = 0;
        for (id, stage, layout) in self.stages() {
            let (each, n) =
                (local.bytes(self, id).max(1), stage.n_tasks().max(1).min(slots as u64));
            if each > room {
                return Err(PlanError::ExceedsLocalMemory {
                    stage: stage.name.clone(),
                    projected: layout.estimate.total(),
                    allowed: local.limit,
                });
            }
            alone = alone.max(each * n.min(room / each));
            stages.push((each, n));
        }
        // Stages run at the same time too: at worst the hungriest tasks of all. Where they don't
        // fit together, as many run as of one stage.
        stages.sort_unstable_by(|a, b| b.cmp(a));
        let mut left = slots as u64;
        let together = stages.into_iter().fold(0u64, |sum, (each, n)| {
            let taken = n.min(left);
            left -= taken;
            sum.saturating_add(each.saturating_mul(taken))
        });
        let tasks = if together <= room { together } else { alone };
        let between = || {
            self.plan
                .arrays
                .iter()
                .filter(|a| a.place == Place::Work)
                .map(|a| TieredStore::bound(&a.info))
                .fold(0, u64::saturating_add)
        };
        let kept = if local.shared { between().min(room - tasks) } else { 0 };
        Ok(LocalProjection { base, tasks, kept })
    }
}
