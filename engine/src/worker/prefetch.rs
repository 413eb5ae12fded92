//! Prefetching of chunks.
//!
//! The chunks that the tasks of a request read, and their order, follow from their program:
//! [`ChunkReads`] visits the program as a task does. While a task waits for a chunk or processes
//! it, the next chunks are in flight, as far as the worker's window has room: first those of the
//! task, then those of the next tasks. The list is only a hint: a chunk that is not in flight is
//! read on demand.

use std::collections::VecDeque;

use crate::lru::Lru;
use crate::plan::MAX_PREFETCH_LIST;
use crate::plan::chunks::{ChunkReads, Touched};
use crate::plan::loops::TaskLoops;
use crate::program::walk;
use crate::state::{OpenSource, Source, TaskState};
use crate::storage::reader::BegunRead;
use crate::task::TaskRequest;

/// An object of one of the stage's sources, a chunk or a shard, by its index in the array.
type Wanted = (u32, u64);

/// An object with the number of its chunks that are requested in succession.
type Listed = (Wanted, u32);

/// The number of entries at the end of the list among which the last shard of a source is searched.
/// It exceeds the number of sources of most stages.
const SAME_SHARD: usize = 8;

/// The chunks that a worker has in flight for the tasks of a request.
#[derive(Debug, Default)]
pub(super) struct Prefetch {
    /// The task whose reads are listed, and the end of the request's tasks.
    task: u64,
    end: u64,
    /// The chunks that are cached when that task begins, by source; `None` before the first task.
    cached: Option<Vec<Lru<()>>>,
    /// The objects that are requested next, in order.
    list: VecDeque<Listed>,
    /// The number of chunks of the task that were listed.
    listed: u64,
    /// The started reads; `None` for a chunk that needs no wait, or that the store cannot read
    /// asynchronously.
    begun: VecDeque<(Wanted, Option<BegunRead>)>,
}

/// The error that stops listing when the list is full.
struct Full;

impl Prefetch {
    /// Creates the prefetch of a request's tasks.
    pub(super) fn of(request: &TaskRequest) -> Prefetch {
        Prefetch {
            task: request.first,
            end: request.first.saturating_add(request.count),
            ..Prefetch::default()
        }
    }

    /// Prepares for a task, before it reads or evicts any chunk.
    pub(super) fn begin_task(&mut self, task: &TaskState<'_>) {
        if self.cached.is_none() && task.layout.window_bytes > 0 {
            self.cached = Some(task.sources.iter().map(names).collect());
        }
    }

    /// Returns the started read of a requested chunk, if there is one. Starts reads of the next
    /// chunks.
    pub(super) fn take(
        &mut self,
        task: &mut TaskState<'_>,
        source: usize,
        coords: &[u64],
    ) -> Option<BegunRead> {
        if task.layout.window_bytes == 0 || !task.layout.sources[source].prefetch {
            return None;
        }
        let Source::Chunks(access, cache) = &task.sources[source].source else { return None };
        let object = access.object(coords);
        let (is_sharded, is_held) = (access.info().shard.is_some(), cache.holds(&object));
        let wanted = (source as u32, access.objects().index(&object));
        if is_sharded && is_held {
            return None;
        }
        let mut begun = self.take_begun(wanted);
        if begun.is_none() {
            self.refill(task);
            if let Some(place) = self.list.iter().position(|(w, _)| *w == wanted) {
                self.begun.clear();
                // A shard is waited for in the same way whether its read has started or not.
                self.list.drain(..place + usize::from(!is_sharded));
            }
        }
        self.top_up(task);
        if begun.is_none() && is_sharded {
            begun = self.take_begun(wanted);
        }
        begun.flatten()
    }

    /// Removes a requested object from the started reads. Objects before it are not needed.
    fn take_begun(&mut self, wanted: Wanted) -> Option<Option<BegunRead>> {
        let place = self.begun.iter().position(|(w, _)| *w == wanted)?;
        self.begun.drain(..place);
        self.begun.pop_front().map(|(_, begun)| begun)
    }

    /// Starts reads of the next chunks.
    fn top_up(&mut self, task: &mut TaskState<'_>) {
        // Chunks that need no wait are checked a few at a time.
        let most = task.layout.window_requests;
        while self.begun.len() < 4 * most && self.in_flight() < most {
            self.refill(task);
            let Some((next, n_chunks)) = self.list.front().copied() else { break };
            let OpenSource { source: Source::Chunks(access, _), sizes, .. } =
                &task.sources[next.0 as usize]
            else {
                break;
            };
            // A shard of which only few chunks are needed is read chunk by chunk.
            let shard = access.info().shard.as_ref();
            if shard.is_some_and(|shard| 2 * u64::from(n_chunks) < shard.n_chunks()) {
                self.list.pop_front();
                self.begun.push_back((next, None));
                continue;
            }
            let object = access.objects().coords(next.1);
            let Some(permit) = task.resources.window.reserve_read(sizes.estimate(access)) else {
                break;
            };
            self.list.pop_front();
            self.begun.push_back((next, access.begin_read(&object, permit)));
        }
    }

    fn in_flight(&self) -> usize {
        self.begun.iter().filter(|(_, begun)| begun.is_some()).count()
    }

    /// Lists the next chunks if the list is empty.
    fn refill(&mut self, task: &TaskState<'_>) {
        while self.list.is_empty() && self.task < self.end {
            self.list_next(task);
        }
    }

    /// Lists chunks of the current task, and continues with the next task at its end.
    fn list_next(&mut self, task: &TaskState<'_>) {
        let before = self.cached.get_or_insert_default();
        // The list's allocation is reused.
        let (mut list, mut skip) = (std::mem::take(&mut self.list), self.listed);
        let mut visited = 0;
        let visit = |source: usize, touched: &Touched<'_>| {
            let (true, Some(coords)) = (task.layout.sources[source].prefetch, touched.coords())
            else {
                return Ok(());
            };
            if skip > 0 {
                skip -= 1;
                return Ok(());
            }
            let Source::Chunks(access, _) = &task.sources[source].source else { return Ok(()) };
            let wanted = (source as u32, access.objects().index(&access.object(coords)));
            let is_sharded = access.info().shard.is_some();
            let mut last = list.iter_mut().rev().take(if is_sharded { SAME_SHARD } else { 0 });
            // A worker holds one shard of a source, so only successive chunks count.
            let same_source = last.find(|((s, _), _)| *s == wanted.0);
            if let Some((_, n)) = same_source.filter(|(w, _)| *w == wanted) {
                *n += 1;
            } else if list.len() == MAX_PREFETCH_LIST {
                return Err(Full);
            } else {
                list.push_back((wanted, 1));
            }
            visited += 1;
            Ok(())
        };
        let (stage, layout, grids) = (task.stage, task.layout, task.grids);
        let coords = stage.task_coords(self.task);
        let region = stage.tasks.region(&coords);
        let (cached, viewed) = (before.clone(), vec![None; stage.inputs.len()]);
        let mut reads = ChunkReads { stage, layout, grids, coords: &coords, cached, viewed, visit };
        let loops = TaskLoops { stage, objects: task.objects, coords: &coords, region: &region };
        let is_whole = walk(&layout.program.steps, &loops, &loops.outside(), &mut reads).is_ok();
        let after = reads.cached;
        if is_whole {
            (self.task, self.listed, self.cached) = (self.task + 1, 0, Some(after));
        } else {
            self.listed += visited;
        }
        self.list = list;
    }
}

/// Returns the coordinates of a source's cached chunks, without their values.
fn names(opened: &OpenSource) -> Lru<()> {
    let mut names = Lru::default();
    opened.chunks.coords().for_each(|coords| names.push(coords, ()));
    names
}
