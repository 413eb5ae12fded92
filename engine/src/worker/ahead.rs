//! Chunks that are fetched before they are asked for.
//!
//! Which chunks a task asks for, and in which order, follows from its stage: [`Task::upcoming`] goes through the schedule as the task does and lists
//! them. While the task waits for one or works on it, those after it are on their way, as many as the layout has room for. The list decides nothing:
//! what is not on its way when it is asked for is read then.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use super::load::{chunk_under, flat_chunks, hits};
use super::ready::Source;
use super::steps::Task;
use crate::grid::{Region, try_for_each_coord};
use crate::memory::Step;
use crate::plan::{Kernel, LISTED, ReadMode};
use crate::readmap::{Origin, Piece};
use crate::storage::Pending;
use crate::storage::reader::Desk;

/// A chunk of one of the stage's sources, by its number in the array.
type Wanted = (u32, u64);

/// What a task has on its way.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// What it will ask for next, in order.
    list: VecDeque<Wanted>,
    /// So many were listed.
    listed: u64,
    /// There are no more.
    is_whole: bool,
    /// With the bytes of its buffer, each that was begun; none for one that need not be waited for, or that the store cannot begin.
    begun: VecDeque<(Wanted, Option<(u64, Pending)>)>,
}

impl Ahead {
    /// Waits for the first so many of those on their way, which nobody wants.
    fn skip(&mut self, n: usize, desk: &mut Desk) {
        for (bytes, pending) in self.begun.drain(..n).filter_map(|(_, begun)| begun) {
            match pending.wait() {
                Ok((_, buffer)) => desk.arena.recycle(buffer),
                // Who asks for it again is told.
                Err(_) => desk.arena.lost(bytes),
            }
        }
    }

    /// At the end of a task.
    pub(super) fn finish(&mut self, desk: &mut Desk) {
        self.skip(self.begun.len(), desk);
    }
}

impl Task<'_> {
    /// The read of a chunk that is asked for now, if it has begun. Begins those of the next.
    pub(super) fn take_ahead(&mut self, at: usize, coords: &[u64]) -> Option<Pending> {
        if self.layout.ahead == 0 || !self.layout.sources[at].far {
            return None;
        }
        let wanted = (at as u32, self.ready.sources[at].source.info().grid.index(coords));
        let begun = match self.ahead.begun.iter().position(|(w, _)| *w == wanted) {
            Some(place) => {
                self.ahead.skip(place, self.desk);
                self.ahead.begun.pop_front().and_then(|(_, begun)| begun).map(|(_, pending)| pending)
            }
            None => {
                self.refill();
                if let Some(place) = self.ahead.list.iter().position(|w| *w == wanted) {
                    self.ahead.skip(self.ahead.begun.len(), self.desk);
                    self.ahead.list.drain(..=place);
                }
                None
            }
        };
        // Those that need not be waited for are looked at a few at a time.
        let is_short = |ahead: &Ahead| ahead.begun.iter().flat_map(|(_, begun)| begun).count() < self.layout.ahead;
        while is_short(&self.ahead) && self.ahead.begun.len() < 4 * self.layout.ahead {
            self.refill();
            let Some(next) = self.ahead.list.front().copied() else { break };
            let Source::Chunks(access, _) = &self.ready.sources[next.0 as usize].source else { break };
            let coords = access.info().grid.coords(next.1);
            // Where others hold more than they will at the end, there is room later.
            let Ok(into) = self.desk.arena.buffer(access.encoded_limit(&coords)) else { break };
            let bytes = into.capacity() as u64;
            self.ahead.list.pop_front();
            let pending = access.begin_read(&coords, into, self.desk);
            self.ahead.begun.push_back((next, pending.map(|pending| (bytes, pending))));
        }
        begun
    }

    /// Lists what comes next, where the list is used up.
    fn refill(&mut self) {
        if !self.ahead.list.is_empty() || self.ahead.is_whole {
            return;
        }
        // Its memory is used again.
        let (mut list, mut skip) = (std::mem::take(&mut self.ahead.list), self.ahead.listed);
        let ended = self.upcoming(&mut |wanted| {
            if skip > 0 {
                skip -= 1;
            } else if list.len() == LISTED {
                return ControlFlow::Break(());
            } else {
                list.push_back(wanted);
            }
            ControlFlow::Continue(())
        });
        self.ahead.is_whole = ended.is_continue();
        self.ahead.listed += list.len() as u64;
        self.ahead.list = list;
    }

    /// Visits the chunks that the task fetches from across a network, in order. What is at hand is not fetched again.
    fn upcoming(&self, visit: &mut dyn FnMut(Wanted) -> ControlFlow<()>) -> ControlFlow<()> {
        let mut at_hand: Vec<Vec<Vec<u64>>> = self.ready.sources.iter().map(|s| s.chunks.iter().map(|(coords, _)| coords.clone()).collect()).collect();
        let mut listing = Listing { task: self, at_hand: &mut at_hand, visit };
        let schedule = &self.layout.schedule;
        let region = &self.region;
        listing.steps(&schedule.once, region)?;
        let walk = &self.stage.walk;
        if matches!(self.stage.kernel, Kernel::Reduce { .. } | Kernel::Contract { .. }) {
            each(&walk.overlapping(region), |at| match walk.region(at).intersect(region) {
                Some(cell) => listing.steps(&schedule.each_block, &cell),
                None => ControlFlow::Continue(()),
            })?;
        }
        listing.steps(&schedule.after, region)?;
        let Some(chunks) = self.output_chunks() else { return ControlFlow::Continue(()) };
        let objects = self.ready.outputs[0].objects();
        each(&chunks, |at| {
            let chunk = objects.region(at);
            if self.layout.in_slices {
                each(&walk.overlapping(&chunk), |slice| listing.steps(&schedule.each_slice, &walk.region(slice)))?;
            }
            listing.steps(&schedule.each_chunk, &chunk)
        })
    }
}

fn each(region: &Region, mut visit: impl FnMut(&[u64]) -> ControlFlow<()>) -> ControlFlow<()> {
    match try_for_each_coord(region, |at| if visit(at).is_break() { Err(()) } else { Ok(()) }) {
        Ok(()) => ControlFlow::Continue(()),
        Err(()) => ControlFlow::Break(()),
    }
}

/// A walk through a task's steps that reads nothing.
struct Listing<'a, 't> {
    task: &'a Task<'t>,
    /// For each source, the chunks that will be at hand, the least recently used first.
    at_hand: &'a mut [Vec<Vec<u64>>],
    visit: &'a mut dyn FnMut(Wanted) -> ControlFlow<()>,
}

impl Listing<'_, '_> {
    fn steps(&mut self, steps: &[Step], cell: &Region) -> ControlFlow<()> {
        for step in steps {
            match *step {
                Step::Load(i) => self.load(i, cell)?,
                Step::Release(slot) => {
                    let sources = self.task.layout.sources.iter().zip(self.at_hand.iter_mut());
                    sources.filter(|(source, _)| source.slot == Some(slot) && !source.kept).for_each(|(_, chunks)| chunks.clear());
                }
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }

    fn load(&mut self, i: usize, cell: &Region) -> ControlFlow<()> {
        let (task, input) = (self.task, &self.task.layout.inputs[i]);
        if task.stage.kernel.carry() == Some(i) {
            self.fetch(input.sources[0], &task.coords)?;
            self.pass(input.sources[0]);
            return ControlFlow::Continue(());
        }
        let own;
        let cell = match &task.stage.kernel {
            Kernel::User { blocks, .. } => {
                own = blocks[i].region(&task.coords);
                &own
            }
            _ => cell,
        };
        for Piece { from, to } in task.stage.inputs[i].map.restrict(cell) {
            let (which, axes) = match &from {
                Origin::Fill(_) => continue,
                Origin::Flat => {
                    let (which, shape) = (input.sources[0], task.stage.inputs[i].map.shape());
                    let grid = task.ready.sources[which].source.info().grid.clone();
                    let mut end = ControlFlow::Continue(());
                    let _ = flat_chunks(&grid, cell, shape, |coords| {
                        end = self.fetch(which, coords);
                        if end.is_break() { Err(()) } else { Ok(()) }
                    });
                    end?;
                    self.pass(which);
                    continue;
                }
                Origin::Source { source, axes } => (input.sources[*source], axes),
            };
            let grid = &task.ready.sources[which].source.info().grid;
            if input.mode == ReadMode::InChunk {
                self.fetch(which, &chunk_under(axes, grid))?;
                continue;
            }
            let hits = hits(axes, grid, &to);
            let counts: Vec<u64> = hits.iter().map(|h| h.len() as u64).collect();
            each(&Region::whole(&counts), |hit| {
                let coords: Vec<u64> = hits.iter().zip(hit).map(|(h, i)| h[*i as usize].0).collect();
                self.fetch(which, &coords)
            })?;
            self.pass(which);
        }
        ControlFlow::Continue(())
    }

    fn fetch(&mut self, at: usize, coords: &[u64]) -> ControlFlow<()> {
        let (chunks, most) = (&mut self.at_hand[at], self.task.layout.sources[at].chunks.max(1));
        if let Some(place) = chunks.iter().position(|c| c == coords) {
            let found = chunks.remove(place);
            chunks.push(found);
            return ControlFlow::Continue(());
        }
        let excess = (chunks.len() + 1).saturating_sub(most);
        chunks.drain(..excess);
        chunks.push(coords.to_vec());
        if !self.task.layout.sources[at].far {
            return ControlFlow::Continue(());
        }
        (self.visit)((at as u32, self.task.ready.sources[at].source.info().grid.index(coords)))
    }

    fn pass(&mut self, at: usize) {
        if self.task.layout.sources[at].slot.is_none() {
            self.at_hand[at].clear();
        }
    }
}
