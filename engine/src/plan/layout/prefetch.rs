//! Prefetching of chunks that are read over a network.

use super::{StageLayout, bounds, holding};
use crate::memory::Part;
use crate::plan::{PlanError, Scope, Stage, traffic};

/// The maximum number of prefetched chunks.
const MAX_PREFETCH: u64 = 4;
/// The maximum total size of prefetched chunks in bytes.
const MAX_PREFETCH_BYTES: u64 = 32_000_000;
/// The maximum length of the list of a task's upcoming chunks.
pub(crate) const MAX_PREFETCH_LIST: usize = 16_384;
/// The bytes of the list of upcoming chunks.
const LIST_BYTES: u64 = 16 * MAX_PREFETCH_LIST as u64;

/// The additional bytes for each further body received concurrently. Four prefetched chunks raised
/// the measured peak by up to 1.5 MB.
const STREAM_BYTES: u64 = 1_000_000;

impl StageLayout {
    /// Adds prefetching of chunks that are read over a network.
    ///
    /// Prefetched chunks are limited in number, add at most half of the task's memory, and fit
    /// within the soft memory limit.
    ///
    /// # Errors
    /// Returns the errors of [`of`](StageLayout::of).
    pub(in crate::plan) fn with_prefetch(
        mut self,
        scope: Scope<'_>,
        stage: &Stage,
    ) -> Result<StageLayout, PlanError> {
        let (chunk, n) = self.prefetched(scope, stage)?;
        // Prefetching sorts the index lists a second time.
        let lists = self.program.slots.iter().filter(|slot| slot.part == Part::Indices);
        let lists = LIST_BYTES + lists.map(|slot| slot.bytes).sum::<u64>();
        let room = scope.soft_mem.saturating_sub(self.estimate.total()).saturating_sub(lists);
        let most = MAX_PREFETCH_BYTES.min(self.estimate.per_task() / 2);
        let n = n.min(most / chunk.max(1)).min(room / (chunk + STREAM_BYTES));
        if n > 0 {
            let bytes = n * (chunk + STREAM_BYTES) + lists;
            let slot = self.program.slot(Part::EncodedInput, bytes);
            self.program.steps = holding(&[slot], std::mem::take(&mut self.program.steps));
            self.estimate =
                self.program.estimate(scope.process_mem)?.with_repositories(scope.repository_mem);
            self.prefetch = n as usize;
        }
        Ok(self)
    }

    /// Returns the maximum encoded size of a chunk that can be prefetched, and the number of such
    /// chunks. Chunks for which a task waits anyway do not count. The number is at most
    /// [`MAX_PREFETCH`].
    fn prefetched(&self, scope: Scope<'_>, stage: &Stage) -> Result<(u64, u64), PlanError> {
        let mut chunk = 0;
        for source in self.sources.iter().filter(|s| s.prefetch) {
            let codec = bounds::codec(scope, source.array)?;
            chunk = codec.read_limit(codec.decoded_bytes()).max(chunk);
        }
        let is_prefetched = |id| self.sources.iter().any(|s| s.array == id && s.prefetch);
        let reads = traffic::reads(scope, stage).into_iter().filter(|(id, _)| is_prefetched(*id));
        let requests: f64 = reads.map(|(_, read)| read.requests).sum();
        let per_task = (requests / stage.n_tasks().max(1) as f64).ceil();
        // The task waits for its first chunk.
        Ok((chunk, (per_task - 1.0).clamp(0.0, MAX_PREFETCH as f64) as u64))
    }
}
