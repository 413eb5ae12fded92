//! Stage layouts: the read mode of each input, and the program.
//!
//! The planner derives the layout from the plan to project memory, and the worker derives the same
//! layout to execute the stage.

mod bounds;
mod inputs;
mod prefetch;

use std::collections::HashSet;
use std::ops::Range;

use super::{ArrayId, PlanError, Scope, Stage};
use crate::memory::{MemoryEstimate, Part};
use crate::program::{Program, SlotId, Step};

use bounds::TargetBounds;
pub(super) use bounds::without_chunks;
pub(crate) use prefetch::MAX_PREFETCH_LIST;

/// The method by which a block of an input is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMode {
    /// Each block lies inside one chunk. The decoded chunk is viewed in place, not copied.
    InChunk,
    /// A block is assembled from several chunks, decoded in sequence.
    Assembled,
    /// A block is read directly from chunks that are not encoded.
    Parts,
}

/// The layout of an array that a stage reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLayout {
    /// The array.
    pub array: ArrayId,
    /// The maximum number of its decoded chunks in memory.
    pub chunks: usize,
    /// The memory of these chunks; `None` if each input that reads the array holds one chunk while
    /// loading.
    pub slot: Option<SlotId>,
    /// True if chunks remain in memory from block to block and from task to task.
    pub retained: bool,
    /// True if chunks can be prefetched: they are read over a network.
    pub prefetch: bool,
}

/// The layout of a stage's input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputLayout {
    /// The read mode.
    pub mode: ReadMode,
    /// For each axis of the iteration space, whether values differ along it.
    pub varies: Vec<bool>,
    /// For each of the input's sources, its index among the stage's sources.
    pub sources: Vec<usize>,
    /// The slot of a decoded chunk of a source without a slot of its own.
    pub chunk: Option<SlotId>,
    /// The slot of an assembled block.
    pub region: Option<SlotId>,
}

/// The layout of a stage's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputLayout {
    /// The slot of the accumulators, for stage kinds that have them.
    pub accumulator: Option<SlotId>,
    /// The slot of the output block; `None` if the accumulators themselves are stored. A block that
    /// is stored as assembled has the input's slot.
    pub block: Option<SlotId>,
}

/// The layout of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageLayout {
    /// The buffers and the steps.
    pub program: Program,
    /// The projected memory.
    pub estimate: MemoryEstimate,
    /// The arrays that the stage reads, each once.
    pub sources: Vec<SourceLayout>,
    /// The inputs, in order.
    pub inputs: Vec<InputLayout>,
    /// The outputs, in order.
    pub outputs: Vec<OutputLayout>,
    /// The slots of a stage kind's own buffers between loading and computing, such as the packed
    /// operands of a product.
    pub packed: Vec<Option<SlotId>>,
    /// The bytes of transfers in flight besides the chunk that is processed.
    pub window_bytes: u64,
    /// True if some of these transfers may be writes.
    pub writes_ahead: bool,
    /// The maximum number of prefetched objects in flight.
    pub window_requests: usize,
}

/// The size that represents an overflow. No memory limit admits it.
pub(crate) const TOO_LARGE: u64 = 1 << 61;

/// The bytes that one thread holds between chunks: keys, coordinates, small vectors.
pub(crate) const TASK_OVERHEAD_BYTES: u64 = 65_536;

/// A layout under construction. It contains the parts common to all kinds before the kind adds its
/// slots and steps.
#[derive(Debug)]
pub(crate) struct Builder<'a> {
    pub(crate) scope: Scope<'a>,
    pub(crate) stage: &'a Stage,
    pub(crate) program: Program,
    pub(crate) sources: Vec<SourceLayout>,
    pub(crate) inputs: Vec<InputLayout>,
    pub(crate) outputs: Vec<OutputLayout>,
    pub(crate) packed: Vec<Option<SlotId>>,
    /// The shape of the largest block.
    pub(crate) block: Vec<u64>,
    /// The shape of the largest task.
    pub(crate) task: Vec<u64>,
    targets: Vec<TargetBounds>,
    encode: Vec<SlotId>,
    encoded: SlotId,
    decode_scratch: SlotId,
}

impl<'a> Builder<'a> {
    /// Creates a layout with the slots that all stage kinds have. Returns also the slots that a
    /// task holds throughout.
    fn new(scope: Scope<'a>, stage: &'a Stage) -> Result<(Builder<'a>, Vec<SlotId>), PlanError> {
        let kind = stage.kernel.kind();
        let axes = stage.blocks.axes().iter().zip(stage.tasks.axes());
        let block: Vec<u64> = axes.map(|(w, t)| w.max_extent().min(t.max_extent())).collect();
        let mut program = Program::default();
        let (read, inputs) = inputs::layouts(scope, stage, &block, &mut program)?;
        let encoded = program.slot(Part::EncodedInput, read.encoded);
        let decode_scratch = program.slot(Part::DecodeScratch, read.scratch);
        let shard_indexes = program.slot(Part::ShardIndex, read.index);
        let sorted: &[u64] = if kind.reads_dense() { &[] } else { &block };
        let lists = stage.inputs.iter().map(|input| bounds::list_bytes(input, sorted)).sum();
        let lists = program.slot(Part::Indices, lists);
        let kernel_scratch = program.slot(Part::KernelScratch, kind.scratch_bytes(&block));
        let targets = stage.outputs.iter().map(|o| TargetBounds::of(scope, o.array));
        let targets = targets.collect::<Result<Vec<_>, _>>()?;
        let encode = targets.iter().map(|t| program.slot(Part::EncodeBuffer, t.encode)).collect();
        let encode_context = targets.iter().map(|t| t.context).max().unwrap_or(0);
        let contexts = program.slot(Part::CodecContext, read.context + encode_context);
        let retained = read.sources.iter().filter(|s| s.retained).filter_map(|s| s.slot);
        let held = [contexts, shard_indexes, lists, kernel_scratch].into_iter().chain(retained);
        let held = held.collect();
        let builder = Builder {
            scope,
            stage,
            program,
            sources: read.sources,
            inputs,
            outputs: vec![OutputLayout::default(); stage.outputs.len()],
            packed: Vec::new(),
            block,
            task: stage.tasks.max_chunk(),
            targets,
            encode,
            encoded,
            decode_scratch,
        };
        Ok((builder, held))
    }

    /// Adds the accumulators of output `j`.
    pub(crate) fn accumulator(&mut self, j: usize, bytes: u64) -> SlotId {
        let slot = self.program.slot(Part::Accumulator, bytes.min(TOO_LARGE));
        self.outputs[j].accumulator = Some(slot);
        slot
    }

    /// Adds the block of output `j`.
    pub(crate) fn output(&mut self, j: usize) -> SlotId {
        let slot = self.program.slot(Part::Output, self.targets[j].stored);
        self.outputs[j].block = Some(slot);
        slot
    }

    /// Returns the decoded size in bytes of an object of output `j`.
    pub(crate) fn stored_bytes(&self, j: usize) -> u64 {
        self.targets[j].stored
    }

    /// Returns the bytes of a task's elements of `size` bytes along the kept axes.
    pub(crate) fn kept_bytes(&self, size: usize, kept: impl Fn(usize) -> bool) -> u64 {
        let bytes = self
            .task
            .iter()
            .enumerate()
            .filter(|(d, _)| kept(*d))
            .try_fold(size as u64, |p, (_, n)| p.checked_mul(*n));
        bytes.unwrap_or(TOO_LARGE).min(TOO_LARGE)
    }

    /// Returns the steps that load inputs in sequence.
    pub(crate) fn loads(&self, inputs: Range<usize>) -> Vec<Step> {
        let (mut steps, mut taken) = (Vec::new(), HashSet::new());
        for i in inputs {
            let input = &self.inputs[i];
            steps.extend(input.region.map(Step::Take));
            for slot in self.transient(i) {
                if taken.insert(slot) {
                    steps.push(Step::Take(slot));
                }
            }
            steps.extend(input.chunk.map(Step::Take));
            steps.extend([
                Step::Take(self.encoded),
                Step::Take(self.decode_scratch),
                Step::Load(i),
            ]);
            steps.extend([Step::Release(self.decode_scratch), Step::Release(self.encoded)]);
            steps.extend(input.chunk.map(Step::Release));
        }
        steps
    }

    /// Returns the steps that release the slots that [`loads`](Builder::loads) leaves taken.
    pub(crate) fn unloads(&self, inputs: Range<usize>) -> Vec<Step> {
        let mut released = HashSet::new();
        let regions = inputs.clone().filter_map(|i| self.inputs[i].region);
        regions
            .chain(inputs.flat_map(|i| self.transient(i)))
            .filter(|slot| released.insert(*slot))
            .map(Step::Release)
            .collect()
    }

    /// Returns the slots of decoded chunks that input `i` reads from sources that retain no chunks
    /// between blocks.
    fn transient(&self, i: usize) -> Vec<SlotId> {
        self.inputs[i]
            .sources
            .iter()
            .map(|k| &self.sources[*k])
            .filter(|s| !s.retained)
            .filter_map(|s| s.slot)
            .collect()
    }

    /// Returns the steps that store output `j`.
    pub(crate) fn store(&self, j: usize) -> [Step; 3] {
        [Step::Take(self.encode[j]), Step::Store(j), Step::Release(self.encode[j])]
    }
}

/// Wraps steps in the takes and releases of slots.
pub(crate) fn holding(slots: &[SlotId], steps: Vec<Step>) -> Vec<Step> {
    let takes = slots.iter().copied().map(Step::Take);
    takes.chain(steps).chain(slots.iter().copied().map(Step::Release)).collect()
}

impl StageLayout {
    /// Derives the layout of a stage.
    ///
    /// # Errors
    /// Returns an error if a codec cannot be used or sizes overflow.
    pub(crate) fn of(scope: Scope<'_>, stage: &Stage) -> Result<StageLayout, PlanError> {
        let kind = stage.kernel.kind();
        let (mut builder, held) = Builder::new(scope, stage)?;
        let steps = kind.program(&mut builder)?;
        let Builder { mut program, sources, inputs, outputs, packed, .. } = builder;
        program.steps = holding(&held, steps);
        let estimate = program.estimate(scope.process_mem)?.with_repositories(scope.repository_mem);
        Ok(StageLayout {
            program,
            estimate,
            sources,
            inputs,
            outputs,
            packed,
            window_bytes: 0,
            window_requests: 0,
            writes_ahead: false,
        })
    }

    /// Returns true if a stage fits within the soft memory limit of a task.
    pub(crate) fn fits(scope: Scope<'_>, stage: &Stage) -> bool {
        StageLayout::of(scope, stage).is_ok_and(|l| l.estimate.total() <= scope.soft_mem)
    }
}
