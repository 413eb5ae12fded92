//! What a task has at hand while it runs: open arrays, loaded blocks, accumulators, output blocks.
//!
//! The worker drives a task through its program; stage kinds compute on what is here.

use freestone_kernels::{Buffer, DType, Generate, View, copy};

use crate::grid::{ChunkGrid, Region};
use crate::memory::Overrun;
use crate::plan::walk::At;
use crate::plan::{Stage, StageLayout};
use crate::program::SlotId;
use crate::recent::Recent;
use crate::storage::reader::{ChunkAccess, ChunkError, Desk, ShardCache};
use crate::storage::{ArrayInfo, ObjectPart, Pending};
use crate::task::{Cause, FailureKind, Receipt, cause_of_chunk, internal};

/// An array that is read, and its decoded chunks that are at hand.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) source: Source,
    pub(crate) chunks: Recent<Buffer>,
}

impl Opened {
    /// Decodes a chunk that is not at hand, the read of which may have begun.
    pub(crate) fn fetch(&mut self, coords: &[u64], begun: Option<Pending>, desk: &mut Desk) -> Result<(), ChunkError> {
        if let Some(block) = self.source.read(coords, begun, desk)? {
            self.chunks.push(coords, block);
        }
        Ok(())
    }

    /// The values of a chunk that was fetched, in C order over its stored shape.
    pub(crate) fn bytes(&self, coords: &[u64]) -> &[u8] {
        match &self.source {
            Source::Constant(values, _) => values.bytes(),
            _ => self.chunks.get(coords).map_or(&[], Buffer::bytes),
        }
    }

    /// True if parts of a chunk can be read, and it is not at hand as a whole.
    pub(crate) fn reads_parts(&self, coords: &[u64]) -> bool {
        matches!(&self.source, Source::Chunks(access, _) if access.is_in_parts()) && self.chunks.get(coords).is_none()
    }

    pub(crate) fn read_parts(&self, coords: &[u64], parts: &[ObjectPart], into: &mut [u8], desk: &mut Desk) -> Result<bool, Cause> {
        match &self.source {
            Source::Chunks(access, _) => access.read_parts(coords, parts, into, desk).map_err(|e| cause_of_chunk(&e)),
            _ => Ok(false),
        }
    }

    pub(crate) fn clear(&mut self, desk: &mut Desk) {
        self.chunks.drain().for_each(|block| desk.arena.recycle(block));
    }
}

#[derive(Debug)]
pub(crate) enum Source {
    Chunks(Box<ChunkAccess>, ShardCache),
    Constant(Buffer, ArrayInfo),
    Generated(Generate, ArrayInfo),
}

impl Source {
    pub(crate) fn info(&self) -> &ArrayInfo {
        match self {
            Source::Chunks(access, _) => access.info(),
            Source::Constant(_, info) | Source::Generated(_, info) => info,
        }
    }

    pub(crate) fn stored_shape(&self, coords: &[u64]) -> Vec<u64> {
        match self {
            Source::Chunks(access, _) => access.stored_shape(coords),
            Source::Constant(_, info) | Source::Generated(_, info) => info.grid.region(coords).shape,
        }
    }

    /// The block of a chunk; `None` for a constant, whose values are at hand.
    fn read(&mut self, coords: &[u64], begun: Option<Pending>, desk: &mut Desk) -> Result<Option<Buffer>, ChunkError> {
        match self {
            Source::Chunks(access, cache) => access.read_begun(coords, begun, desk, cache).map(Some),
            Source::Constant(..) => Ok(None),
            Source::Generated(generate, info) => {
                let region = info.grid.region(coords);
                let mut block = desk.arena.buffer(region.n_elements() * info.dtype.size() as u64)?;
                generate.fill(info.dtype, &info.shape(), &region.start, &sizes(&region.shape), block.bytes_mut());
                Ok(Some(block))
            }
        }
    }
}

/// A block of an input that was brought in, and how the iteration space lies on it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) values: Values,
    /// Elements of the iteration space that it covers.
    pub(crate) cell: Region,
    pub(crate) offset: isize,
    pub(crate) strides: Vec<isize>,
}

/// Where a block's values are.
#[derive(Debug)]
pub(crate) enum Values {
    /// In a buffer in which they were assembled.
    Own(Buffer),
    /// In a chunk of one of the stage's sources.
    Chunk { source: usize, coords: Vec<u64> },
}

/// One task on its way through its program.
#[derive(Debug)]
pub(crate) struct TaskState<'a> {
    pub(crate) stage: &'a Stage,
    pub(crate) layout: &'a StageLayout,
    pub(crate) sources: &'a mut [Opened],
    /// The chunks of each source.
    pub(crate) grids: Vec<&'a ChunkGrid>,
    pub(crate) outputs: &'a [ChunkAccess],
    /// Objects of each output.
    pub(crate) objects: &'a [ChunkGrid],
    pub(crate) desk: &'a mut Desk,
    pub(crate) coords: Vec<u64>,
    /// The task's part of the iteration space.
    pub(crate) region: Region,
    pub(crate) loaded: Vec<Option<Loaded>>,
    pub(crate) accumulators: Vec<Option<Buffer>>,
    pub(crate) blocks: Vec<Option<Buffer>>,
    pub(crate) receipts: Vec<Receipt>,
}

impl TaskState<'_> {
    /// Views of the loaded blocks over a part of the iteration space.
    pub(crate) fn views(&self, dtypes: &[DType], part: &Region) -> Vec<View<'_>> {
        self.views_of(0..dtypes.len(), dtypes, part)
    }

    /// Views of some of the loaded blocks.
    pub(crate) fn views_of(&self, inputs: std::ops::Range<usize>, dtypes: &[DType], part: &Region) -> Vec<View<'_>> {
        let loaded = self.loaded[inputs].iter().zip(dtypes).filter_map(|(loaded, dtype)| Some((loaded.as_ref()?, *dtype)));
        loaded.map(|(loaded, dtype)| self.view(loaded, dtype, part)).collect()
    }

    fn view<'s>(&'s self, loaded: &'s Loaded, dtype: DType, part: &Region) -> View<'s> {
        let shift: isize = (0..part.start.len()).map(|d| (part.start[d] - loaded.cell.start[d]) as isize * loaded.strides[d]).sum();
        let (bytes, offset) = (self.bytes(&loaded.values), (loaded.offset + shift) as usize);
        View { dtype, bytes, offset, shape: sizes(&part.shape), strides: loaded.strides.clone() }
    }

    /// The bytes of a loaded block.
    pub(crate) fn bytes<'s>(&'s self, values: &'s Values) -> &'s [u8] {
        match values {
            Values::Own(block) => block.bytes(),
            Values::Chunk { source, coords } => self.sources[*source].bytes(coords),
        }
    }

    /// A buffer for what a slot holds now.
    pub(crate) fn room(&mut self, slot: Option<SlotId>, bytes: u64) -> Result<Buffer, Cause> {
        let bound = slot.map_or(0, |slot| self.layout.program.bytes(slot));
        self.desk.arena.buffer_in(bound, bytes).map_err(overrun)
    }

    /// Allocates the accumulators of output `j`, over the axes of the task's region that are kept.
    pub(crate) fn start(&mut self, j: usize, dtype: DType, kept: impl Fn(usize) -> bool) -> Result<&mut [u8], Cause> {
        let elements: u64 = (0..self.region.shape.len()).filter(|d| kept(*d)).map(|d| self.region.shape[d]).product();
        let buffer = self.room(self.layout.outputs[j].accumulator, elements * dtype.size() as u64)?;
        Ok(self.accumulators[j].insert(buffer).bytes_mut())
    }

    /// Allocates the output blocks of the current object, with room for what fills up an edge chunk.
    pub(crate) fn begin(&mut self, at: &At) -> Result<(), Cause> {
        for j in 0..self.outputs.len() {
            let bytes = self.stored_bytes(j, at) as u64;
            self.blocks[j] = Some(self.room(self.layout.outputs[j].block, bytes)?);
        }
        Ok(())
    }

    /// Bytes of the current object of output `j` as it is stored.
    pub(crate) fn stored_bytes(&self, j: usize, at: &At) -> usize {
        let output = &self.outputs[j];
        sizes(&output.object_shape(&at.object)).iter().product::<usize>() * output.info().dtype.size()
    }

    /// Spreads the block of output `j` over its stored shape, where that is larger.
    pub(crate) fn pad(&mut self, j: usize, at: &At) {
        let output = &self.outputs[j];
        let (shape, stored) = (sizes(&output.objects().region(&at.object).shape), sizes(&output.object_shape(&at.object)));
        if let Some(block) = self.blocks[j].as_mut().filter(|_| stored != shape) {
            copy::pad_in_place(block.bytes_mut(), &shape, &stored, &output.info().fill);
        }
    }

    /// True if the block of the only input is stored as it was assembled.
    pub(crate) fn is_stored_as_assembled(&self) -> bool {
        self.layout.outputs.first().is_some_and(|o| o.block.is_some() && o.block == self.layout.inputs.first().and_then(|i| i.region))
    }

    /// Encodes the block of output `j`, or its accumulators where these are stored as they are, and writes it.
    pub(crate) fn store(&mut self, j: usize, at: &At) -> Result<(), Cause> {
        let output = &self.outputs[j];
        let made = if self.layout.outputs[j].block.is_some() { &self.blocks[j] } else { &self.accumulators[j] };
        let block = made.as_ref().ok_or_else(|| internal("an output is computed before it is stored"))?;
        let written = output.write(&at.object, block.bytes(), self.desk).map_err(|e| cause_of_chunk(&e))?;
        self.receipts.push(Receipt { array: self.stage.outputs[j].array, chunk: output.objects().index(&at.object), written });
        Ok(())
    }
}

pub(crate) fn sizes(shape: &[u64]) -> Vec<usize> {
    shape.iter().map(|n| *n as usize).collect()
}

pub(crate) fn overrun(e: Overrun) -> Cause {
    (FailureKind::Overrun, e.to_string())
}
