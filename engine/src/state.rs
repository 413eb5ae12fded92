//! The state of a running task: open arrays, loaded blocks, accumulators and output blocks.
//!
//! The worker drives a task through its program, and stage kinds compute on this state.

use freestone_kernels::{Buffer, DType, Generate, View, copy};

use crate::grid::{ChunkGrid, Region};
use crate::lru::Lru;
use crate::memory::Overrun;
use crate::memory::window::transfer_bytes;
use crate::plan::loops::Position;
use crate::plan::{Stage, StageLayout};
use crate::program::SlotId;
use crate::storage::reader::{BegunRead, ChunkAccess, ChunkError, ShardCache, WorkerResources};
use crate::storage::{ArrayInfo, ObjectPart};
use crate::task::{Cause, FailureKind, Receipt, cause_of_chunk, internal};

/// A source of the stage with its cached decoded chunks.
#[derive(Debug)]
pub(crate) struct OpenSource {
    pub(crate) source: Source,
    pub(crate) chunks: Lru<Buffer>,
    pub(crate) sizes: EncodedSizes,
}

/// The encoded sizes of a source's chunks, as far as they were read.
#[derive(Debug, Default)]
pub(crate) struct EncodedSizes {
    /// An exponentially weighted mean in bytes; `None` before the first chunk.
    mean: Option<f64>,
}

impl EncodedSizes {
    /// Adds the size of a chunk.
    pub(crate) fn add(&mut self, bytes: u64) {
        let bytes = bytes as f64;
        self.mean = Some(self.mean.map_or(bytes, |mean| 0.75 * mean + 0.25 * bytes));
    }

    /// Returns the estimated bytes that the transfer of a chunk holds. Before the first chunk,
    /// compression to half the size is assumed.
    pub(crate) fn estimate(&self, access: &ChunkAccess) -> u64 {
        let len = match self.mean {
            Some(mean) => (1.05 * mean) as u64,
            None => access.typical_bytes(),
        };
        transfer_bytes(len)
    }
}

impl OpenSource {
    /// Decodes a chunk that is not cached. `begun` is its read if one is in flight.
    pub(crate) fn fetch(
        &mut self,
        coords: &[u64],
        begun: Option<BegunRead>,
        resources: &mut WorkerResources,
    ) -> Result<(), ChunkError> {
        let (before, is_begun) = (resources.traffic.bytes_read, begun.is_some());
        if let Some(block) = self.source.read(coords, begun, resources)? {
            let encoded = resources.traffic.bytes_read - before;
            // The chunks of a shard that was read whole add no bytes.
            if encoded > 0 && (is_begun || !self.source.is_sharded()) {
                self.sizes.add(encoded);
            }
            self.chunks.push(coords, block);
        }
        Ok(())
    }

    /// Returns the values of a fetched chunk, in C order over its stored shape.
    pub(crate) fn bytes(&self, coords: &[u64]) -> &[u8] {
        match &self.source {
            Source::Constant(values, _) => values.bytes(),
            _ => self.chunks.get(coords).map_or(&[], Buffer::bytes),
        }
    }

    /// Returns true if parts of a chunk can be read and the whole chunk is not cached.
    pub(crate) fn reads_parts(&self, coords: &[u64]) -> bool {
        matches!(&self.source, Source::Chunks(access, _) if access.supports_parts())
            && self.chunks.get(coords).is_none()
    }

    pub(crate) fn read_parts(
        &self,
        coords: &[u64],
        parts: &[ObjectPart],
        into: &mut [u8],
        resources: &mut WorkerResources,
    ) -> Result<bool, Cause> {
        match &self.source {
            Source::Chunks(access, _) => {
                access.read_parts(coords, parts, into, resources).map_err(|e| cause_of_chunk(&e))
            }
            _ => Ok(false),
        }
    }

    pub(crate) fn clear(&mut self, resources: &mut WorkerResources) {
        self.chunks.drain().for_each(|block| resources.arena.recycle(block));
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

    fn is_sharded(&self) -> bool {
        self.info().shard.is_some()
    }

    pub(crate) fn stored_shape(&self, coords: &[u64]) -> Vec<u64> {
        match self {
            Source::Chunks(access, _) => access.stored_shape(coords),
            Source::Constant(_, info) | Source::Generated(_, info) => {
                info.grid.region(coords).shape
            }
        }
    }

    /// Reads the block of a chunk. Returns `None` for a constant, whose values are in memory.
    fn read(
        &mut self,
        coords: &[u64],
        begun: Option<BegunRead>,
        resources: &mut WorkerResources,
    ) -> Result<Option<Buffer>, ChunkError> {
        match self {
            Source::Chunks(access, cache) => {
                access.read_pending(coords, begun, resources, cache).map(Some)
            }
            Source::Constant(..) => Ok(None),
            Source::Generated(generate, info) => {
                let region = info.grid.region(coords);
                let mut block =
                    resources.arena.buffer(region.n_elements() * info.dtype.size() as u64)?;
                generate.fill(
                    info.dtype,
                    &info.shape(),
                    &region.start,
                    &sizes(&region.shape),
                    block.bytes_mut(),
                );
                Ok(Some(block))
            }
        }
    }
}

/// A loaded block of an input, with its mapping onto the iteration space.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) values: Values,
    /// The region of the iteration space that the block covers.
    pub(crate) cell: Region,
    pub(crate) offset: isize,
    pub(crate) strides: Vec<isize>,
}

/// The location of a block's values.
#[derive(Debug)]
pub(crate) enum Values {
    /// A buffer of its own, in which the block was assembled.
    Own(Buffer),
    /// A chunk of one of the stage's sources.
    Chunk { source: usize, coords: Vec<u64> },
}

/// A task in execution.
#[derive(Debug)]
pub(crate) struct TaskState<'a> {
    pub(crate) stage: &'a Stage,
    pub(crate) layout: &'a StageLayout,
    pub(crate) sources: &'a mut [OpenSource],
    /// The chunk grid of each source.
    pub(crate) grids: &'a [&'a ChunkGrid],
    pub(crate) outputs: &'a [ChunkAccess],
    /// The grid of objects of each output.
    pub(crate) objects: &'a [ChunkGrid],
    pub(crate) resources: &'a mut WorkerResources,
    pub(crate) coords: Vec<u64>,
    /// The task's part of the iteration space.
    pub(crate) region: Region,
    pub(crate) loaded: Vec<Option<Loaded>>,
    pub(crate) accumulators: Vec<Option<Buffer>>,
    pub(crate) blocks: Vec<Option<Buffer>>,
    pub(crate) receipts: Vec<Receipt>,
}

impl TaskState<'_> {
    /// Returns views of the loaded blocks over a part of the iteration space.
    pub(crate) fn views(&self, dtypes: &[DType], part: &Region) -> Vec<View<'_>> {
        self.views_of(0..dtypes.len(), dtypes, part)
    }

    /// Returns views of some of the loaded blocks.
    pub(crate) fn views_of(
        &self,
        inputs: std::ops::Range<usize>,
        dtypes: &[DType],
        part: &Region,
    ) -> Vec<View<'_>> {
        let loaded = self.loaded[inputs]
            .iter()
            .zip(dtypes)
            .filter_map(|(loaded, dtype)| Some((loaded.as_ref()?, *dtype)));
        loaded.map(|(loaded, dtype)| self.view(loaded, dtype, part)).collect()
    }

    fn view<'s>(&'s self, loaded: &'s Loaded, dtype: DType, part: &Region) -> View<'s> {
        let shift: isize = (0..part.start.len())
            .map(|d| (part.start[d] - loaded.cell.start[d]) as isize * loaded.strides[d])
            .sum();
        let (bytes, offset) = (self.bytes(&loaded.values), (loaded.offset + shift) as usize);
        View { dtype, bytes, offset, shape: sizes(&part.shape), strides: loaded.strides.clone() }
    }

    /// Returns the bytes of a loaded block.
    pub(crate) fn bytes<'s>(&'s self, values: &'s Values) -> &'s [u8] {
        match values {
            Values::Own(block) => block.bytes(),
            Values::Chunk { source, coords } => self.sources[*source].bytes(coords),
        }
    }

    /// Allocates a buffer of `bytes` within the bound of a slot.
    pub(crate) fn room(&mut self, slot: Option<SlotId>, bytes: u64) -> Result<Buffer, Cause> {
        let bound = slot.map_or(0, |slot| self.layout.program.bytes(slot));
        self.resources.arena.buffer_in(bound, bytes).map_err(overrun)
    }

    /// Allocates the accumulators of output `j`, over the kept axes of the task's region.
    pub(crate) fn start(
        &mut self,
        j: usize,
        dtype: DType,
        kept: impl Fn(usize) -> bool,
    ) -> Result<&mut [u8], Cause> {
        let elements: u64 = (0..self.region.shape.len())
            .filter(|d| kept(*d))
            .map(|d| self.region.shape[d])
            .product();
        let buffer =
            self.room(self.layout.outputs[j].accumulator, elements * dtype.size() as u64)?;
        Ok(self.accumulators[j].insert(buffer).bytes_mut())
    }

    /// Allocates the output blocks of the current object, including the padding of an edge chunk.
    pub(crate) fn begin(&mut self, at: &Position) -> Result<(), Cause> {
        for j in 0..self.outputs.len() {
            let bytes = self.stored_bytes(j, at) as u64;
            self.blocks[j] = Some(self.room(self.layout.outputs[j].block, bytes)?);
        }
        Ok(())
    }

    /// Returns the stored size in bytes of the current object of output `j`.
    pub(crate) fn stored_bytes(&self, j: usize, at: &Position) -> usize {
        let output = &self.outputs[j];
        sizes(&output.object_shape(&at.object)).iter().product::<usize>()
            * output.info().dtype.size()
    }

    /// Spreads the block of output `j` over its stored shape if that is larger.
    pub(crate) fn pad(&mut self, j: usize, at: &Position) {
        let output = &self.outputs[j];
        let (shape, stored) = (
            sizes(&output.objects().region(&at.object).shape),
            sizes(&output.object_shape(&at.object)),
        );
        if let Some(block) = self.blocks[j].as_mut().filter(|_| stored != shape) {
            copy::pad_in_place(block.bytes_mut(), &shape, &stored, &output.info().fill);
        }
    }

    /// Returns true if the block of the only input is stored as assembled.
    pub(crate) fn is_stored_as_assembled(&self) -> bool {
        self.layout.outputs.first().is_some_and(|o| {
            o.block.is_some() && o.block == self.layout.inputs.first().and_then(|i| i.region)
        })
    }

    /// Encodes and writes the block of output `j`, or its accumulators if these are stored
    /// unchanged.
    pub(crate) fn store(&mut self, j: usize, at: &Position) -> Result<(), Cause> {
        let output = &self.outputs[j];
        let made = if self.layout.outputs[j].block.is_some() {
            &self.blocks[j]
        } else {
            &self.accumulators[j]
        };
        let block =
            made.as_ref().ok_or_else(|| internal("an output is computed before it is stored"))?;
        let written = output
            .write(&at.object, block.bytes(), self.resources)
            .map_err(|e| cause_of_chunk(&e))?;
        self.receipts.push(Receipt {
            array: self.stage.outputs[j].array,
            chunk: output.objects().index(&at.object),
            written,
        });
        Ok(())
    }
}

pub(crate) fn sizes(shape: &[u64]) -> Vec<usize> {
    shape.iter().map(|n| *n as usize).collect()
}

pub(crate) fn overrun(e: Overrun) -> Cause {
    (FailureKind::Overrun, e.to_string())
}
