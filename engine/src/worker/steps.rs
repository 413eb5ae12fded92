//! Execution of a task's program.
//!
//! The plan projects the task's memory from the same steps, and each buffer that a step takes is a
//! slot of the program. This module therefore decides neither the size nor the lifetime of buffers.
//! Blocks are loaded in `load`, and kernels compute in `stages`.

use super::prefetch::Prefetch;
use super::{Limits, overrun};
use crate::plan::chunks::clear_loads;
use crate::plan::loops::{Position, TaskLoops};
use crate::program::{SlotId, Step, Visitor, walk};
use crate::stages::Compiled;
use crate::state::{Loaded, TaskState, Values};
use crate::task::Cause;

/// The visitor that executes a task.
pub(super) struct Execution<'a, 't> {
    pub(super) task: &'a mut TaskState<'t>,
    pub(super) compiled: &'a mut dyn Compiled,
    pub(super) prefetch: &'a mut Prefetch,
    pub(super) limits: Limits<'a>,
}

impl Execution<'_, '_> {
    pub(super) fn run(&mut self) -> Result<(), Cause> {
        self.limits.check()?;
        self.prefetch.begin_task(self.task);
        let (coords, region) = (self.task.coords.clone(), self.task.region.clone());
        let loops = TaskLoops {
            stage: self.task.stage,
            objects: self.task.objects,
            coords: &coords,
            region: &region,
        };
        walk(&self.task.layout.program.steps, &loops, &loops.outside(), self)
    }
}

impl Visitor<Position> for Execution<'_, '_> {
    type Stop = Cause;

    fn step(&mut self, step: &Step, at: &Position) -> Result<(), Cause> {
        match step {
            Step::Take(slot) => self
                .task
                .resources
                .arena
                .take(self.task.layout.program.bytes(*slot))
                .map_err(overrun),
            Step::Release(slot) => {
                self.task.release(*slot);
                Ok(())
            }
            Step::Load(i) => self.task.load(*i, &at.cell, self.prefetch),
            Step::Compute(phase) => self.compiled.compute(*phase, at, self.task),
            Step::Store(j) => self.task.store(*j, at),
            Step::ForEach { .. } => Ok(()),
        }
    }

    fn enter(&mut self, body: &[Step], _: &Position) -> Result<(), Cause> {
        self.limits.check()?;
        clear_loads(body, &mut self.task.loaded);
        Ok(())
    }
}

impl TaskState<'_> {
    /// Recycles the buffer of a slot and returns its permit.
    fn release(&mut self, slot: SlotId) {
        for (input, loaded) in self.layout.inputs.iter().zip(&mut self.loaded) {
            if input.region == Some(slot)
                && let Some(Loaded { values: Values::Own(block), .. }) = loaded.take()
            {
                self.resources.arena.recycle(block);
            }
        }
        for (source, opened) in self.layout.sources.iter().zip(&mut *self.sources) {
            if source.slot == Some(slot) && !source.retained {
                opened.clear(self.resources);
            }
        }
        for (j, output) in self.layout.outputs.iter().enumerate() {
            let gone = match slot {
                s if output.block == Some(s) => self.blocks[j].take(),
                s if output.accumulator == Some(s) => self.accumulators[j].take(),
                _ => None,
            };
            gone.into_iter().for_each(|b| self.resources.arena.recycle(b));
        }
        self.resources.arena.release(self.layout.program.bytes(slot));
    }
}
