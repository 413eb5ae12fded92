//! How a task makes its output chunks and writes them.
//!
//! A chunk is evaluated from loaded blocks, as a whole or in slices, is what a user's kernel makes of them, or comes from accumulators at the end of a
//! reduction (`fold`). It is spread over its stored shape before it is encoded and written whole.

use freestone_kernels::{Buffer, View, contiguous_strides, copy, eval};

use super::load::{Loaded, Values, views};
use super::ready::Computes;
use super::steps::Task;
use super::{overrun, sizes};
use crate::panics;
use crate::plan::Kernel;
use crate::storage::reader::ChunkAccess;
use crate::task::{Cause, FailureKind, Receipt, cause_of_chunk, internal};
use crate::user::{Block, BlockMut};

impl Task<'_> {
    /// Has output blocks for the chunk at hand, with what fills up an edge chunk.
    pub(super) fn begin(&mut self) -> Result<(), Cause> {
        for (j, output) in self.ready.outputs.iter().enumerate() {
            let stored: u64 = output.object_shape(&self.chunk).iter().product();
            let bytes = stored * output.info().dtype.size() as u64;
            let bound = self.layout.outputs[j].block.map_or(0, |slot| self.layout.schedule.slots[slot.0].bytes);
            self.blocks[j] = Some(self.desk.arena.buffer_in(bound, bytes).map_err(overrun)?);
        }
        Ok(())
    }

    /// Evaluates a slice of the output chunk at hand; after the last one the chunk is spread over its stored shape.
    pub(super) fn apply_slice(&mut self) {
        let Some(first) = self.ready.outputs.first() else { return };
        let region = first.objects().region(&self.chunk);
        let (shape, all) = (sizes(&self.cell.shape), sizes(&region.shape));
        let before = (0..all.len()).fold(0, |at, d| at * all[d] + (self.cell.start[d] - region.start[d]) as usize);
        let n: usize = shape.iter().product();
        let views = views(&self.stage.kernel.inputs(), &self.loaded, &self.ready.sources, &self.cell);
        let mut parts: Vec<&mut [u8]> = Vec::with_capacity(self.blocks.len());
        for (block, output) in self.blocks.iter_mut().zip(&self.ready.outputs) {
            let size = output.info().dtype.size();
            if let Some(block) = block {
                parts.push(&mut block.bytes_mut()[before * size..(before + n) * size]);
            }
        }
        if let Computes::Machine(machine) = &mut self.ready.computes {
            eval::map(machine, &shape, &views, &mut parts);
        }
        let is_last = (0..all.len()).all(|d| self.cell.start[d] + self.cell.shape[d] == region.start[d] + region.shape[d]);
        if is_last {
            for (block, output) in self.blocks.iter_mut().zip(&self.ready.outputs) {
                block.iter_mut().for_each(|b| pad(b, &all, output, &self.chunk));
            }
        }
    }

    /// Evaluates the output chunk at hand.
    pub(super) fn apply(&mut self) -> Result<(), Cause> {
        let Some(first) = self.ready.outputs.first() else { return Ok(()) };
        let region = first.objects().region(&self.chunk);
        let shape = sizes(&region.shape);
        let n: usize = shape.iter().product();
        if self.layout.as_is {
            if let Some(Loaded { values: Values::Own(mut block), .. }) = self.loaded[0].take() {
                pad(&mut block, &shape, first, &self.chunk);
                self.blocks[0] = Some(block);
            }
            return Ok(());
        }
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (output, layout) in self.ready.outputs.iter().zip(&self.layout.outputs) {
            let stored: u64 = output.object_shape(&self.chunk).iter().product();
            let bound = layout.block.map_or(0, |slot| self.layout.schedule.slots[slot.0].bytes);
            blocks.push(self.desk.arena.buffer_in(bound, stored * output.info().dtype.size() as u64).map_err(overrun)?);
        }
        let mut fronts: Vec<&mut [u8]> = blocks.iter_mut().zip(&self.ready.outputs).map(|(b, o)| &mut b.bytes_mut()[..n * o.info().dtype.size()]).collect();
        match (&mut self.ready.computes, &self.stage.kernel) {
            (Computes::User(kernel), Kernel::User { name, scratch_bytes, dtype, .. }) => {
                let mut scratch = self.desk.arena.buffer(*scratch_bytes).map_err(overrun)?;
                let mut inputs: Vec<Block<'_>> = Vec::with_capacity(self.loaded.len());
                for (loaded, dtype) in self.loaded.iter().zip(self.stage.kernel.inputs()) {
                    if let Some(Loaded { values: Values::Own(block), cell, .. }) = loaded {
                        inputs.push(Block { dtype, start: cell.start.clone(), shape: sizes(&cell.shape), bytes: block.bytes() });
                    }
                }
                let Some(bytes) = fronts.pop() else { return Ok(()) };
                let mut output = BlockMut { dtype: *dtype, start: region.start.clone(), shape: shape.clone(), bytes };
                // A panic is the kernel's failure, not that of who runs it.
                let applied = panics::caught(|| kernel.apply(&inputs, &mut output, &mut scratch.bytes_mut()[..*scratch_bytes as usize]));
                let applied = applied.unwrap_or_else(|panic| Err(format!("it panicked: {panic}")));
                self.desk.arena.recycle(scratch);
                applied.map_err(|e| (FailureKind::Kernel, format!("kernel `{name}`: {e}")))?;
            }
            (Computes::Machine(machine), kernel) => {
                let views = views(&kernel.inputs(), &self.loaded, &self.ready.sources, &region);
                eval::map(machine, &shape, &views, &mut fronts);
                if let (Kernel::Scan { op, axis, exclusive, .. }, Some(values), Some(Some(carries))) =
                    (kernel, fronts.first_mut(), self.accumulators.first_mut())
                {
                    let of = |axes: std::ops::Range<usize>| shape[axes].iter().product::<usize>();
                    op.run(first.info().dtype, [of(0..*axis), shape[*axis], of(*axis + 1..shape.len())], values, carries.bytes_mut(), *exclusive);
                }
            }
            (Computes::User(_) | Computes::Operands(_), _) => return Err(internal("a stage's kernel is what its worker compiled")),
        }
        for (j, (mut block, output)) in blocks.into_iter().zip(&self.ready.outputs).enumerate() {
            pad(&mut block, &shape, output, &self.chunk);
            self.blocks[j] = Some(block);
        }
        Ok(())
    }

    /// Turns accumulator `j` into its output block.
    pub(super) fn finish(&mut self, j: usize) -> Result<(), Cause> {
        let Kernel::Reduce { folds, .. } = &self.stage.kernel else { return self.cut_out(j) };
        let output = &self.ready.outputs[j];
        let region = self.stage.output_region(&self.stage.outputs[j], &self.coords);
        self.chunk = output.objects().overlapping(&region).start;
        let (Some(_), Some(accumulator)) = (self.layout.outputs[j].block, &self.accumulators[j]) else { return Ok(()) };
        let stored: u64 = output.object_shape(&self.chunk).iter().product();
        let size = output.info().dtype.size();
        let mut block = self.desk.arena.buffer(stored * size as u64).map_err(overrun)?;
        let n = region.n_elements() as usize;
        folds[j].finish.apply(folds[j].op, folds[j].values, accumulator.bytes(), &mut block.bytes_mut()[..n * size]);
        pad(&mut block, &sizes(&region.shape), output, &self.chunk);
        self.blocks[j] = Some(block);
        Ok(())
    }

    /// Copies the chunk at hand out of accumulators that lie in C order over the task's part of the output.
    fn cut_out(&mut self, j: usize) -> Result<(), Cause> {
        let output = &self.ready.outputs[j];
        let all = self.stage.output_region(&self.stage.outputs[j], &self.coords);
        let (Some(_), Some(accumulator)) = (self.layout.outputs[j].block, &self.accumulators[j]) else { return Ok(()) };
        let region = output.objects().region(&self.chunk);
        let stored: u64 = output.object_shape(&self.chunk).iter().product();
        let mut block = self.desk.arena.buffer(stored * output.info().dtype.size() as u64).map_err(overrun)?;
        let strides = contiguous_strides(&sizes(&all.shape));
        let offset: isize = (0..strides.len()).map(|d| (region.start[d] - all.start[d]) as isize * strides[d]).sum();
        let shape = sizes(&region.shape);
        let view = View { dtype: output.info().dtype, bytes: accumulator.bytes(), offset: offset as usize, shape: shape.clone(), strides };
        copy::strided(&view, block.bytes_mut(), 0, &contiguous_strides(&shape));
        pad(&mut block, &shape, output, &self.chunk);
        self.blocks[j] = Some(block);
        Ok(())
    }

    pub(super) fn store(&mut self, j: usize) -> Result<(), Cause> {
        let output = &self.ready.outputs[j];
        let Some(block) = self.blocks[j].as_ref().or(self.accumulators[j].as_ref()) else { return Ok(()) };
        let written = output.write(&self.chunk, block.bytes(), self.desk).map_err(|e| cause_of_chunk(&e))?;
        self.receipts.push(Receipt { array: self.stage.outputs[j].array, chunk: output.objects().index(&self.chunk), written });
        Ok(())
    }
}

/// Spreads an edge chunk over its stored shape.
fn pad(block: &mut Buffer, shape: &[usize], output: &ChunkAccess, chunk: &[u64]) {
    let stored = sizes(&output.object_shape(chunk));
    if stored != shape {
        copy::pad_in_place(block.bytes_mut(), shape, &stored, &output.info().fill);
    }
}
