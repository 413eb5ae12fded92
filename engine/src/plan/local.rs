//! The memory projection of the local machine: tasks, and intermediate arrays in memory.

use std::fmt;

use super::{FinalizedPlan, Place, PlanError, StageId};
use crate::memory::size;
use crate::storage::TieredStore;

/// The memory limit of the local machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalMemory {
    /// The maximum bytes of all local tasks together.
    pub limit: u64,
    /// True if tasks share one process.
    pub shared: bool,
}

impl LocalMemory {
    /// Returns the bytes that are held independent of tasks.
    pub fn base(&self, plan: &FinalizedPlan) -> u64 {
        if self.shared { plan.plan.process_mem().saturating_add(plan.plan.commit_mem()) } else { 0 }
    }

    /// Returns the bytes that a task of a stage adds.
    pub fn bytes(&self, plan: &FinalizedPlan, stage: StageId) -> u64 {
        let estimate = &plan.layout(stage).estimate;
        if self.shared { estimate.per_task() } else { estimate.total() }
    }
}

/// The projected peak memory of the local machine, by parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalProjection {
    /// The memory independent of tasks: reserved memory, repositories and their commit. Zero if
    /// each task has its own process.
    pub base: u64,
    /// The memory of all concurrent tasks, which is also the limit for admission.
    pub tasks: u64,
    /// The memory for intermediate arrays. Chunks beyond it are written to the work directory.
    pub intermediates: u64,
}

impl LocalProjection {
    /// Returns the sum of all parts.
    pub fn total(&self) -> u64 {
        self.base.saturating_add(self.tasks).saturating_add(self.intermediates)
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
        if self.intermediates > 0 {
            write!(f, ", up to {} of intermediates", size(self.intermediates))
        } else {
            Ok(())
        }
    }
}

impl FinalizedPlan {
    /// Returns the projected memory of the local machine for `slots` concurrent tasks.
    ///
    /// If tasks share a process, reserved memory counts once, and intermediates use the remainder
    /// of the limit. Otherwise reserved memory counts for each task.
    ///
    /// # Errors
    /// Returns an error if one task of a stage exceeds the limit.
    pub fn projected_local_mem(
        &self,
        slots: usize,
        local: &LocalMemory,
    ) -> Result<LocalProjection, PlanError> {
        let base = local.base(self);
        let room = local.limit.saturating_sub(base);
        // The bytes of a task, and the number of concurrent tasks, of each stage.
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
        // Stages may run concurrently. In the worst case, all slots run the largest tasks. If these
        // exceed the limit, admission allows at most the tasks of one stage.
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
        let intermediates = if local.shared { between().min(room - tasks) } else { 0 };
        Ok(LocalProjection { base, tasks, intermediates })
    }
}
