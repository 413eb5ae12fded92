//! Comparison of measured process memory with its projection.

use super::{Queue, State};
use crate::events::MemoryExcess;
use crate::machine;
use crate::task::TaskOutcome;

/// The memory projection of a process that runs tasks.
#[derive(Clone, Copy)]
pub(super) struct MemoryWatch {
    projected: u64,
    /// The measured bytes above which the projection counts as exceeded.
    limit: u64,
}

impl Queue<'_> {
    /// Starts to compare the memory of processes that run tasks with their projection, which is
    /// `projected` on this machine. The executor projects workers on other machines.
    pub(in crate::driver) fn watch_memory(&mut self, projected: u64) {
        if self.run.executor.is_remote() {
            let projected = self.run.executor.remote_worker_mem(self.plan);
            self.memory = projected.map(|projected| MemoryWatch { projected, limit: projected });
            return;
        }
        let already_held = if self.run.executor.shares_process() {
            // Memory that the program held before the run, beyond its reserve, and an earlier peak
            // do not count.
            let held = machine::rss_bytes().saturating_sub(self.plan.plan().reserved_mem);
            held.max(machine::peak_rss_bytes().saturating_sub(projected))
        } else {
            0
        };
        let limit = projected.saturating_add(already_held);
        self.memory = Some(MemoryWatch { projected, limit });
    }

    /// Returns the peak memory of an outcome's process in bytes; 0 if it is unknown.
    pub(super) fn measured_peak(&self, outcome: &TaskOutcome) -> u64 {
        let own = || if self.local.shared { machine::peak_rss_bytes() } else { 0 };
        outcome.worker_peak_bytes.unwrap_or_else(own)
    }

    /// Compares the measured memory of an outcome's process with the projection. Returns the excess
    /// if it is the first of the run.
    pub(super) fn check_memory(
        &self,
        state: &mut State,
        outcome: &TaskOutcome,
        measured: u64,
    ) -> Option<MemoryExcess> {
        let MemoryWatch { projected, limit } = self.memory?;
        if measured <= limit {
            return None;
        }
        if let Some(excess) = &mut state.memory_excess {
            excess.measured_bytes = excess.measured_bytes.max(measured);
            return None;
        }
        let stages = &self.plan.plan().stages;
        // If tasks share a process, any running task may have taken the memory, most likely one of
        // a user's kernel, which can allocate.
        let others = if self.local.shared {
            state.in_flight.values().map(|f| f.request.stage).collect()
        } else {
            Vec::new()
        };
        let candidates = || {
            let all = std::iter::once(outcome.request.stage).chain(others.iter().copied());
            all.filter_map(|id| stages.get(id.0))
        };
        let stage = candidates()
            .find(|s| s.kernel.user_kernel().is_some())
            .or_else(|| candidates().next())?;
        state.memory_excess = Some(MemoryExcess {
            stage: stage.name.clone(),
            kernel: stage.kernel.user_kernel().map(str::to_owned),
            worker: outcome.worker.clone(),
            measured_bytes: measured,
            projected_bytes: projected,
        });
        state.memory_excess.clone()
    }
}
