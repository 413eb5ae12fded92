//! Prefetching of chunks.
//!
//! The chunks that a task requests, and their order, follow from its program: [`ChunkReads`] visits
//! the program as the task does. While the task waits for a chunk or processes it, the next chunks
//! are in flight, as far as the layout has room. The list is only a hint: a chunk that is not in
//! flight is read on demand.

use std::collections::VecDeque;

use crate::lru::Lru;
use crate::plan::MAX_PREFETCH_LIST;
use crate::plan::chunks::{ChunkReads, Touched};
use crate::plan::loops::TaskLoops;
use crate::program::walk;
use crate::state::{OpenSource, Source, TaskState};
use crate::storage::PendingRead;
use crate::storage::reader::WorkerResources;

/// A chunk of one of the stage's sources, by its index in the array.
type Wanted = (u32, u64);

/// The chunks that a task has in flight.
#[derive(Debug, Default)]
pub(super) struct Prefetch {
    /// The chunks cached when the task began, by source.
    cached: Option<Vec<Lru<()>>>,
    /// The chunks that the task requests next, in order.
    list: VecDeque<Wanted>,
    /// The number of chunks listed so far.
    listed: u64,
    /// True if no chunks remain to be listed.
    is_whole: bool,
    /// The started reads with the bytes of their buffers; `None` for a chunk that needs no wait, or
    /// that the store cannot read asynchronously.
    begun: VecDeque<(Wanted, Option<(u64, PendingRead)>)>,
}

/// The error that stops listing when the list is full.
struct Full;

impl Prefetch {
    /// Returns the pending read of a requested chunk, if the read has started. Starts reads of the
    /// next chunks.
    pub(super) fn take(
        &mut self,
        task: &mut TaskState<'_>,
        source: usize,
        coords: &[u64],
    ) -> Option<PendingRead> {
        if task.layout.prefetch == 0 || !task.layout.sources[source].prefetch {
            return None;
        }
        let wanted = (source as u32, task.grids[source].index(coords));
        let begun = match self.begun.iter().position(|(w, _)| *w == wanted) {
            Some(place) => {
                self.skip(place, task.resources);
                self.begun.pop_front().and_then(|(_, begun)| begun).map(|(_, pending)| pending)
            }
            None => {
                self.refill(task);
                if let Some(place) = self.list.iter().position(|w| *w == wanted) {
                    self.skip(self.begun.len(), task.resources);
                    self.list.drain(..=place);
                }
                None
            }
        };
        // Chunks that need no wait are checked a few at a time.
        while self.in_flight() < task.layout.prefetch && self.begun.len() < 4 * task.layout.prefetch
        {
            self.refill(task);
            let Some(next) = self.list.front().copied() else { break };
            let Source::Chunks(access, _) = &task.sources[next.0 as usize].source else { break };
            let coords = access.info().grid.coords(next.1);
            // The arena is full at this point of the task; room may become free later.
            let Ok(into) = task.resources.arena.buffer(access.encoded_limit(&coords)) else {
                break;
            };
            let bytes = into.capacity() as u64;
            self.list.pop_front();
            let pending = access.begin_read(&coords, into, task.resources);
            self.begun.push_back((next, pending.map(|pending| (bytes, pending))));
        }
        begun
    }

    fn in_flight(&self) -> usize {
        self.begun.iter().filter(|(_, begun)| begun.is_some()).count()
    }

    /// Waits for the first `n` reads in flight, whose chunks are not needed.
    fn skip(&mut self, n: usize, resources: &mut WorkerResources) {
        for (bytes, pending) in self.begun.drain(..n).filter_map(|(_, begun)| begun) {
            match pending.wait() {
                Ok((_, buffer)) => resources.arena.recycle(buffer),
                // The next request for this chunk reports the error.
                Err(_) => resources.arena.forget(bytes),
            }
        }
    }

    /// Waits for all reads in flight, at the end of a task.
    pub(super) fn finish(&mut self, resources: &mut WorkerResources) {
        self.skip(self.begun.len(), resources);
    }

    /// Lists the next chunks if the list is empty.
    fn refill(&mut self, task: &TaskState<'_>) {
        if !self.list.is_empty() || self.is_whole {
            return;
        }
        let cached =
            self.cached.get_or_insert_with(|| task.sources.iter().map(names).collect()).clone();
        // The list's allocation is reused.
        let (mut list, mut skip) = (std::mem::take(&mut self.list), self.listed);
        let visit = |source: usize, touched: &Touched<'_>| {
            let (true, Some(coords)) = (task.layout.sources[source].prefetch, touched.coords())
            else {
                return Ok(());
            };
            if skip > 0 {
                skip -= 1;
            } else if list.len() == MAX_PREFETCH_LIST {
                return Err(Full);
            } else {
                list.push_back((source as u32, task.grids[source].index(coords)));
            }
            Ok(())
        };
        let viewed = vec![None; task.stage.inputs.len()];
        let (stage, layout, grids, coords) =
            (task.stage, task.layout, task.grids, task.coords.as_slice());
        let mut reads = ChunkReads { stage, layout, grids, coords, cached, viewed, visit };
        let loops = TaskLoops { stage, objects: task.objects, coords, region: &task.region };
        self.is_whole = walk(&layout.program.steps, &loops, &loops.outside(), &mut reads).is_ok();
        self.listed += list.len() as u64;
        self.list = list;
    }
}

/// Returns the coordinates of a source's cached chunks, without their values.
fn names(opened: &OpenSource) -> Lru<()> {
    let mut names = Lru::default();
    opened.chunks.coords().for_each(|coords| names.push(coords, ()));
    names
}
