//! The window of transfers in flight, for objects that are read or written over a network.

use super::{StageLayout, bounds, holding};
use crate::memory::Part;
use crate::memory::window::transfer_bytes;
use crate::plan::{PlanError, Scope, Stage, traffic};

/// The bytes of transfers in flight of all tasks of a local process. At 80 MB/s a connection and
/// 25 ms a request, a window of this size saturates 10 Gbit/s.
const PROCESS_WINDOW_BYTES: u64 = 256_000_000;
/// The maximum number of transfers in flight of all tasks of a local process.
const PROCESS_REQUESTS: u64 = 256;
/// The number of tasks that share the limits of a process. Above it, tasks run in many processes.
const MAX_SHARES: u64 = 16;
/// The maximum length of the list of a worker's upcoming chunks.
pub(crate) const MAX_PREFETCH_LIST: usize = 4096;
/// The bytes of the list of upcoming chunks.
const LIST_BYTES: u64 = 24 * MAX_PREFETCH_LIST as u64;

impl StageLayout {
    /// Adds the window for objects that are read or written over a network.
    ///
    /// The window fits within the soft memory limit. Its size is the share of one task in the
    /// window of a process, but not more than a task's share of the stage's transfers.
    ///
    /// # Errors
    /// Returns the errors of [`of`](StageLayout::of).
    pub(in crate::plan) fn with_window(
        mut self,
        scope: Scope<'_>,
        stage: &Stage,
    ) -> Result<StageLayout, PlanError> {
        let (read, n_reads) = self.prefetched(scope, stage)?;
        let (written, n_writes) = written_ahead(scope, stage)?;
        // A write for which the window has no room is waited for.
        let (each, n) = (if n_reads > 0 { read } else { written }, n_reads + n_writes);
        let each = transfer_bytes(each);
        // Prefetching sorts the index lists a second time.
        let lists = self.program.slots.iter().filter(|slot| slot.part == Part::Indices);
        let lists = LIST_BYTES + lists.map(|slot| slot.bytes).sum::<u64>();
        let room = scope.soft_mem.saturating_sub(self.estimate.total()).saturating_sub(lists);
        let shares = scope.parallelism.clamp(1, MAX_SHARES);
        let window = (PROCESS_WINDOW_BYTES / shares).max(each).min(n.saturating_mul(each));
        let window = window.min(room);
        if n > 0 && window >= each && each <= PROCESS_WINDOW_BYTES {
            let slot = self.program.slot(Part::EncodedInput, window + lists);
            self.program.steps = holding(&[slot], std::mem::take(&mut self.program.steps));
            self.estimate =
                self.program.estimate(scope.process_mem)?.with_repositories(scope.repository_mem);
            self.window_bytes = window;
            self.writes_ahead = n_writes > 0;
            self.window_requests = (PROCESS_REQUESTS / shares) as usize;
        }
        Ok(self)
    }

    /// Returns the maximum encoded size of an object that can be prefetched, and the number of such
    /// chunks that a worker reads. Chunks for which a task waits anyway do not count.
    fn prefetched(&self, scope: Scope<'_>, stage: &Stage) -> Result<(u64, u64), PlanError> {
        let mut chunk = 0;
        for source in self.sources.iter().filter(|s| s.prefetch) {
            chunk = bounds::object_limit(scope, source.array)?.max(chunk);
        }
        let is_prefetched = |id| self.sources.iter().any(|s| s.array == id && s.prefetch);
        let reads = traffic::reads(scope, stage).into_iter().filter(|(id, _)| is_prefetched(*id));
        let requests: f64 = reads.map(|(_, read)| read.requests).sum();
        // A worker waits for its first chunk.
        Ok((chunk, (requests / workers(scope, stage)).ceil().max(1.0) as u64 - 1))
    }
}

/// Returns the maximum encoded size of an object that is written over a network, and the number of
/// such objects that a worker writes.
fn written_ahead(scope: Scope<'_>, stage: &Stage) -> Result<(u64, u64), PlanError> {
    let (mut object, mut n) = (0, 0.0);
    for (output, traffic) in stage.outputs.iter().zip(traffic::writes(scope, stage)) {
        if scope.is_remote(scope.array(output.array)) {
            object = bounds::object_limit(scope, output.array)?.max(object);
            n += traffic.requests;
        }
    }
    Ok((object, (n / workers(scope, stage)).ceil() as u64))
}

/// Returns the number of workers that run tasks of a stage at the same time.
fn workers(scope: Scope<'_>, stage: &Stage) -> f64 {
    stage.n_tasks().clamp(1, scope.parallelism.max(1)) as f64
}
