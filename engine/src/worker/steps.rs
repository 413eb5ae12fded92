//! How a task goes through its stage's schedule.
//!
//! The lists of steps come from the plan, which projected the task's memory from them; what a step takes is a slot there. So nothing here decides
//! how much is held, or when. What the steps do to blocks is in `load`, `fold` and `apply`.

use freestone_kernels::Buffer;

use super::ahead::Ahead;
use super::load::{Loaded, Values};
use super::ready::Ready;
use super::{Limits, overrun};
use crate::grid::{Region, try_for_each_coord};
use crate::memory::{SlotId, Step};
use crate::plan::{Kernel, Stage, StageLayout};
use crate::storage::reader::Desk;
use crate::task::{Cause, Receipt};

/// One task on its way through the schedule.
pub(super) struct Task<'a> {
    pub(super) stage: &'a Stage,
    pub(super) layout: &'a StageLayout,
    pub(super) ready: &'a mut Ready,
    pub(super) desk: &'a mut Desk,
    pub(super) coords: Vec<u64>,
    pub(super) region: Region,
    pub(super) cell: Region,
    /// The output chunk or shard at hand: of a map, the same for all outputs.
    pub(super) chunk: Vec<u64>,
    pub(super) loaded: Vec<Option<Loaded>>,
    pub(super) accumulators: Vec<Option<Buffer>>,
    pub(super) blocks: Vec<Option<Buffer>>,
    pub(super) receipts: Vec<Receipt>,
    pub(super) ahead: Ahead,
}

impl Task<'_> {
    pub(super) fn run(&mut self, limits: Limits<'_>) -> Result<(), Cause> {
        let schedule = &self.layout.schedule;
        let check = || limits.check();
        check()?;
        let chunks = self.output_chunks();
        if let Some(chunks) = &chunks {
            self.chunk.clone_from(&chunks.start);
        }
        self.steps(&schedule.once)?;
        if matches!(self.stage.kernel, Kernel::Reduce { .. } | Kernel::Contract { .. }) {
            let (walk, region) = (&self.stage.walk, self.region.clone());
            try_for_each_coord(&walk.overlapping(&region), |at| {
                check()?;
                if let Some(cell) = walk.region(at).intersect(&region) {
                    self.cell = cell;
                    // What the last block looked at may go.
                    self.loaded.iter_mut().for_each(|l| *l = None);
                    self.steps(&schedule.each_block)?;
                }
                Ok(())
            })?;
        }
        check()?;
        self.steps(&schedule.after)?;
        match chunks {
            Some(chunks) => try_for_each_coord(&chunks, |at| {
                check()?;
                self.chunk = at.to_vec();
                if matches!(self.stage.kernel, Kernel::Scan { .. }) {
                    self.cell = self.ready.outputs[0].objects().region(at);
                    self.loaded.iter_mut().for_each(|l| *l = None);
                }
                if self.layout.in_slices {
                    self.steps(&schedule.chunk_begin)?;
                    let (walk, chunk) = (&self.stage.walk, self.ready.outputs[0].objects().region(at));
                    try_for_each_coord(&walk.overlapping(&chunk), |slice| {
                        check()?;
                        self.cell = walk.region(slice);
                        self.loaded.iter_mut().for_each(|l| *l = None);
                        self.steps(&schedule.each_slice)
                    })?;
                }
                self.steps(&schedule.each_chunk)
            })?,
            None => self.steps(&schedule.each_chunk)?,
        }
        self.steps(&schedule.end)
    }

    /// The objects that the task writes one after the other; none of a reduction, whose outputs differ.
    pub(super) fn output_chunks(&self) -> Option<Region> {
        match &self.stage.kernel {
            Kernel::Reduce { .. } => None,
            _ => self.ready.outputs.first().map(|o| o.objects().overlapping(&self.stage.output_region(&self.stage.outputs[0], &self.coords))),
        }
    }

    fn steps(&mut self, steps: &[Step]) -> Result<(), Cause> {
        for step in steps {
            match *step {
                Step::Take(slot) => self.take(slot)?,
                Step::Release(slot) => self.release(slot),
                Step::Load(i) => self.load(i)?,
                Step::Fold if matches!(self.stage.kernel, Kernel::Contract { .. }) => self.multiply()?,
                Step::Fold => self.fold(),
                Step::Begin => self.begin()?,
                Step::Apply if self.layout.in_slices => self.apply_slice(),
                Step::Apply => self.apply()?,
                Step::Finish(j) => self.finish(j)?,
                Step::Store(j) => self.store(j)?,
            }
        }
        Ok(())
    }

    fn take(&mut self, slot: SlotId) -> Result<(), Cause> {
        self.desk.arena.take(self.layout.schedule.slots[slot.0].bytes).map_err(overrun)?;
        let Some(j) = self.layout.outputs.iter().position(|o| o.accumulator == Some(slot)) else { return Ok(()) };
        let own = |kept: &dyn Fn(usize) -> bool| (0..self.region.shape.len()).filter(|d| kept(*d)).map(|d| self.region.shape[d]).product::<u64>();
        let dtype = self.ready.outputs[j].info().dtype;
        let (elements, dtype) = match &self.stage.kernel {
            Kernel::Reduce { folds, axes, .. } => (own(&|d| !axes.contains(&d)), folds[j].accumulator()),
            Kernel::Scan { op, axis, .. } => (own(&|d| d != *axis), op.carrier(dtype).unwrap_or(dtype)),
            kernel => (own(&|d| !kernel.folds(d)), dtype),
        };
        let mut buffer = self.room(Some(slot), elements * dtype.size() as u64)?;
        match &self.stage.kernel {
            Kernel::Reduce { folds, .. } => folds[j].op.start(folds[j].values, buffer.bytes_mut()),
            Kernel::Scan { op, .. } => op.start(dtype, buffer.bytes_mut()),
            _ => buffer.bytes_mut().fill(0),
        }
        self.accumulators[j] = Some(buffer);
        Ok(())
    }

    fn release(&mut self, slot: SlotId) {
        for (input, loaded) in self.layout.inputs.iter().zip(&mut self.loaded) {
            if input.region == Some(slot) && self.layout.as_is {
                self.blocks[0].take().into_iter().for_each(|b| self.desk.arena.recycle(b));
            }
            if input.region == Some(slot)
                && let Some(Loaded { values: Values::Own(block), .. }) = loaded.take()
            {
                self.desk.arena.recycle(block);
            }
        }
        for (source, opened) in self.layout.sources.iter().zip(&mut self.ready.sources) {
            if source.slot == Some(slot) && !source.kept {
                opened.clear(self.desk);
            }
        }
        for (j, output) in self.layout.outputs.iter().enumerate() {
            let gone = match slot {
                s if output.block == Some(s) => self.blocks[j].take(),
                s if output.accumulator == Some(s) => self.accumulators[j].take(),
                _ => None,
            };
            gone.into_iter().for_each(|b| self.desk.arena.recycle(b));
        }
        self.desk.arena.release(self.layout.schedule.slots[slot.0].bytes);
    }

    /// A buffer for what a slot holds now.
    pub(super) fn room(&mut self, slot: Option<SlotId>, bytes: u64) -> Result<Buffer, Cause> {
        let bound = slot.map_or(0, |slot| self.layout.schedule.slots[slot.0].bytes);
        self.desk.arena.buffer_in(bound, bytes).map_err(overrun)
    }
}
