//! Stage layouts: the read mode of each input, and the program.
//!
//! The planner derives the layout from the plan to project memory, and the worker derives the same
//! layout to execute the stage.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::{ArrayId, Place, Plan, PlanArray, PlanError, Scope, Stage, StageInput, traffic};
use crate::grid::{AxisGrid, block_bytes};
use crate::memory::{MemoryEstimate, Part};
use crate::program::{Program, SlotId, Step};
use crate::readmap::{AxisMap, Origin, Piece};
use crate::storage::array::Shard;
use crate::storage::codec::Codec;
use crate::storage::shard;

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
    /// True if chunks are read over a network and each chunk is an object.
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
    /// The maximum number of prefetched chunks in flight while an earlier chunk is processed.
    pub prefetch: usize,
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
    /// The extents of the largest block and the largest task, in elements along each axis.
    pub(crate) block: Vec<u64>,
    pub(crate) task: Vec<u64>,
    targets: Vec<TargetBounds>,
    encode: Vec<SlotId>,
    encoded: SlotId,
    decode_scratch: SlotId,
}

impl<'a> Builder<'a> {
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

    /// Returns the bytes of a task's elements of `size` bytes along the axes that are kept.
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

    /// Returns the slots of decoded chunks that input `i` reads from sources that keep no chunks
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
        let block: Vec<u64> = stage
            .walk
            .axes()
            .iter()
            .zip(stage.tasks.axes())
            .map(|(w, t)| w.max_extent().min(t.max_extent()))
            .collect();
        let modes: Vec<ReadMode> = stage
            .inputs
            .iter()
            .enumerate()
            .map(|(i, input)| read_mode(scope, stage, i, input))
            .collect();
        let mut program = Program::default();
        let read = Sources::of(scope, stage, &modes, &mut program)?;
        let inputs = input_layouts(stage, &block, &modes, &read, &mut program);
        let encoded = program.slot(Part::EncodedInput, read.encoded);
        let decode_scratch = program.slot(Part::DecodeScratch, read.scratch);
        let indexes = program.slot(Part::ShardIndex, read.index);
        let lists = stage
            .inputs
            .iter()
            .map(|i| list_bytes(i, if kind.reads_dense() { &[] } else { &block }))
            .sum();
        let lists = program.slot(Part::Indices, lists);
        let kernel_scratch = program.slot(Part::KernelScratch, kind.scratch_bytes(&block));
        let targets = stage
            .outputs
            .iter()
            .map(|o| TargetBounds::of(scope, o.array))
            .collect::<Result<Vec<_>, _>>()?;
        let encode = targets.iter().map(|t| program.slot(Part::EncodeBuffer, t.encode)).collect();
        let encode_context = targets.iter().map(|t| t.context).max().unwrap_or(0);
        let contexts = program.slot(Part::CodecContext, read.context + encode_context);
        let kept = read.sources.iter().filter(|s| s.retained).filter_map(|s| s.slot);
        let held: Vec<SlotId> =
            [contexts, indexes, lists, kernel_scratch].into_iter().chain(kept).collect();
        let mut builder = Builder {
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
        let steps = kind.program(&mut builder)?;
        let Builder { mut program, sources, inputs, outputs, packed, .. } = builder;
        program.steps = holding(&held, steps);
        let estimate = program.estimate(scope.process_mem)?.with_repositories(scope.repository_mem);
        Ok(StageLayout { program, estimate, sources, inputs, outputs, packed, prefetch: 0 })
    }

    /// Returns true if a stage fits within the memory to which a task may grow.
    pub(crate) fn fits(scope: Scope<'_>, stage: &Stage) -> bool {
        StageLayout::of(scope, stage).is_ok_and(|l| l.estimate.total() <= scope.soft_mem)
    }

    /// Adds prefetching of chunks that are read over a network.
    ///
    /// Prefetched chunks are limited in number, add at most half of the task's memory, and fit
    /// within the memory to which a task may grow.
    ///
    /// # Errors
    /// Returns the errors of [`of`](StageLayout::of).
    pub(super) fn with_prefetch(
        mut self,
        scope: Scope<'_>,
        stage: &Stage,
    ) -> Result<StageLayout, PlanError> {
        let mut chunk = 0;
        for source in self.sources.iter().filter(|s| s.prefetch) {
            let codec = codec(scope, source.array)?;
            chunk = codec.read_limit(codec.decoded_bytes()).max(chunk);
        }
        let is_far = |id: &ArrayId| self.sources.iter().any(|s| s.array == *id && s.prefetch);
        let reads = traffic::reads(scope, stage).into_iter().filter(|(id, _)| is_far(id));
        let in_task =
            reads.map(|(_, read)| read.requests).sum::<f64>() / stage.n_tasks().max(1) as f64;
        // The task waits for its first chunk.
        let others = (in_task.ceil() - 1.0).clamp(0.0, MAX_PREFETCH as f64) as u64;
        // Prefetching sorts the lists of indices a second time.
        let lists = LIST_BYTES
            + self
                .program
                .slots
                .iter()
                .filter(|s| s.part == Part::Indices)
                .map(|s| s.bytes)
                .sum::<u64>();
        let room = scope.soft_mem.saturating_sub(self.estimate.total()).saturating_sub(lists);
        let most = MAX_PREFETCH_BYTES.min(self.estimate.per_task() / 2);
        let ahead = others.min(most / chunk.max(1)).min(room / (chunk + STREAM_BYTES));
        if ahead > 0 {
            let slot =
                self.program.slot(Part::EncodedInput, ahead * (chunk + STREAM_BYTES) + lists);
            self.program.steps = holding(&[slot], std::mem::take(&mut self.program.steps));
            self.estimate =
                self.program.estimate(scope.process_mem)?.with_repositories(scope.repository_mem);
            self.prefetch = ahead as usize;
        }
        Ok(self)
    }
}

/// Returns the memory that a stage's tasks hold always, or during reads, independent of chunk size.
pub(super) fn without_chunks(plan: &Plan, stage: &Stage) -> Vec<(&'static str, u64)> {
    let scope = plan.scope();
    let far =
        stage.inputs.iter().flat_map(|i| &i.sources).any(|id| scope.is_remote(plan.array(*id)));
    let lists = stage.inputs.iter().map(|i| list_bytes(i, &vec![0; i.map.shape().len()])).sum();
    let all = [
        ("reserved", plan.reserved_mem),
        ("for repositories", plan.repository_mem()),
        ("for the network", if far { NETWORK_BYTES } else { 0 }),
        ("for lists of indices", lists),
    ];
    all.into_iter().filter(|(_, bytes)| *bytes > 0).collect()
}

/// The maximum number of prefetched chunks, and their maximum total size in bytes.
const MAX_PREFETCH: u64 = 4;
const MAX_PREFETCH_BYTES: u64 = 32_000_000;
/// The maximum length of the list of a task's upcoming chunks.
pub(crate) const MAX_PREFETCH_LIST: usize = 16_384;
const LIST_BYTES: u64 = 16 * MAX_PREFETCH_LIST as u64;

/// Returns true if chunks of an array are read over a network and each chunk is an object.
fn is_prefetchable(scope: Scope<'_>, array: &PlanArray) -> bool {
    scope.is_remote(array) && array.info.shard.is_none()
}

/// The maximum bytes for one index of a list when a task sorts its part of the list by chunks.
const SORTED_INDEX_BYTES: u64 = 128;

/// The bytes for one index of a list besides its text in the plan. They include the index's share
/// of a vector that grows while a plan is parsed.
const LISTED_INDEX_BYTES: u64 = 32;

/// Returns the bytes for lists of indices, for the text that contains them, and for the sorted part
/// that one block needs.
fn list_bytes(input: &StageInput, block: &[u64]) -> u64 {
    let of = |piece: &Piece| match &piece.from {
        Origin::Source { axes, .. } => axes
            .iter()
            .filter_map(|a| {
                if let AxisMap::Gather { axis, indices, .. } = a {
                    Some((axis, indices))
                } else {
                    None
                }
            })
            .map(|(axis, indices)| {
                let here = piece.to.shape[*axis].min(block.get(*axis).copied().unwrap_or(u64::MAX));
                let digits =
                    indices.iter().max().map_or(1, |most| most.checked_ilog10().unwrap_or(0) + 1);
                (LISTED_INDEX_BYTES + u64::from(digits) + 1) * indices.len() as u64
                    + SORTED_INDEX_BYTES * here
            })
            .sum(),
        _ => 0,
    };
    input.map.pieces().iter().map(of).sum()
}

/// The bytes that network reads hold besides the body's buffer: the client and its threads, trusted
/// certificates, and received fragments of a body.
const NETWORK_BYTES: u64 = 8_000_000;

/// The additional bytes for each further body received concurrently. Four prefetched chunks raised
/// the measured peak by up to 1.5 MB.
const STREAM_BYTES: u64 = 1_000_000;

/// The memory bounds for reading a chunk of an array.
struct SourceBounds {
    chunk: u64,
    encoded: u64,
    scratch: u64,
    context: u64,
    index: u64,
}

impl SourceBounds {
    fn of(scope: Scope<'_>, id: ArrayId) -> Result<SourceBounds, PlanError> {
        let array = scope.array(id);
        let chunk =
            block_bytes(&array.info.chunk_shape(), array.info.dtype.size()).unwrap_or(TOO_LARGE);
        let mut bounds = SourceBounds { chunk, encoded: 0, scratch: 0, context: 0, index: 0 };
        if matches!(array.place, Place::Constant(_) | Place::Generated(_)) {
            return Ok(bounds);
        }
        let codec = codec(scope, id)?;
        bounds.encoded =
            codec.encoded_beside() + if scope.is_remote(array) { NETWORK_BYTES } else { 0 };
        bounds.scratch = codec.decode_scratch();
        bounds.context = codec.decode_context_bytes();
        if let Some(shard) = &array.info.shard {
            let index = index_codec(array, shard)?;
            // The encoded index, the decoded index, and the entries that are kept.
            bounds.index =
                index.encoded_beside() + index.decode_scratch() + 2 * index.decoded_bytes();
        }
        Ok(bounds)
    }
}

/// The memory bounds for writing an object of an array: a chunk or a shard.
#[derive(Debug)]
struct TargetBounds {
    stored: u64,
    encode: u64,
    context: u64,
}

impl TargetBounds {
    fn of(scope: Scope<'_>, id: ArrayId) -> Result<TargetBounds, PlanError> {
        let array = scope.array(id);
        let codec = codec(scope, id)?;
        let network = |encoded: u64| if scope.is_remote(array) { encoded } else { 0 };
        let context = codec.encode_context_bytes();
        let Some(shard) = &array.info.shard else {
            return Ok(TargetBounds {
                stored: codec.decoded_bytes(),
                encode: codec.encode_beside() + network(codec.encoded_bound()),
                context,
            });
        };
        let index = index_codec(array, shard)?;
        let encoded = shard::encoded_bound(shard, [&codec, &index]).min(TOO_LARGE);
        let stored =
            block_bytes(&array.info.object_shape(), array.info.dtype.size()).unwrap_or(TOO_LARGE);
        Ok(TargetBounds {
            stored,
            encode: encoded + shard::encode_scratch([&codec, &index]) + network(encoded),
            context,
        })
    }
}

fn index_codec(array: &PlanArray, shard: &Shard) -> Result<Codec, PlanError> {
    shard.index_codec().map_err(|error| PlanError::Codec { array: array.name.clone(), error })
}

fn codec(scope: Scope<'_>, id: ArrayId) -> Result<Codec, PlanError> {
    let array = scope.array(id);
    Codec::new(&array.info.codecs, array.info.dtype, &array.info.chunk_shape())
        .map_err(|error| PlanError::Codec { array: array.name.clone(), error })
}

/// Returns the maximum number of chunks of an array that the inputs of one block view. `readers`
/// are the inputs that read the array. Inputs that certainly view the same chunk count once.
fn viewed_chunks(
    scope: Scope<'_>,
    stage: &Stage,
    array: ArrayId,
    readers: &[usize],
    modes: &[ReadMode],
) -> usize {
    let cuts = scope.array(array).info.grid.axes();
    let of_it = readers
        .iter()
        .filter(|i| modes[**i] == ReadMode::InChunk)
        .map(|i| &stage.inputs[*i])
        .filter(|input| input.sources == [array]);
    let all: Vec<(&[AxisMap], &[u64])> =
        of_it.filter_map(|input| Some((input.map.as_image()?, input.map.shape()))).collect();
    // The only chunk along an axis that a map views, if there is exactly one.
    let only = |map: &AxisMap, shape: &[u64], cut: &AxisGrid| {
        let last = map.axis().map_or(0, |d| shape[d].saturating_sub(1));
        let (a, b) = (cut.find(map.at(0)), cut.find(map.at(last)));
        (a == b && !matches!(map, AxisMap::Gather { .. })).then_some(a)
    };
    // Inputs look at one chunk along an axis where it has one, where both look at the same one
    // throughout, or where their maps are equal.
    let place = |(a, cut): (&AxisMap, &AxisGrid), shape: &[u64]| match only(a, shape, cut) {
        _ if cut.n_chunks() <= 1 => (Some(0), None),
        Some(chunk) => (Some(chunk), None),
        None => (None, Some(a.clone())),
    };
    let places = |(axes, shape): &(&[AxisMap], &[u64])| {
        axes.iter().zip(cuts).map(|pair| place(pair, shape)).collect::<Vec<_>>()
    };
    all.iter().map(places).collect::<HashSet<_>>().len()
}

/// Returns the read mode of an input: [`ReadMode::InChunk`] if every block of every task lies
/// inside one chunk of one source.
fn read_mode(scope: Scope<'_>, stage: &Stage, i: usize, input: &StageInput) -> ReadMode {
    let kind = stage.kernel.kind();
    if let Some(mode) = kind.read_mode(i) {
        return mode;
    }
    let (Some(axes), [source]) = (input.map.as_image(), input.sources.as_slice()) else {
        return ReadMode::Assembled;
    };
    let whole_task = !kind.walks() && stage.walk == stage.tasks;
    let grid = &scope.array(*source).info.grid;
    let inside = axes.iter().zip(grid.axes()).all(|(map, chunks)| match map {
        AxisMap::Fixed(_) => true,
        AxisMap::Gather { .. } => false,
        AxisMap::Along { axis, start, step } => {
            let blocks: &AxisGrid =
                if whole_task { &stage.tasks.axes()[*axis] } else { &stage.walk.axes()[*axis] };
            blocks.is_empty()
                || blocks.nests_in(chunks, *start, *step)
                || stage.tasks.axes()[*axis].nests_in(chunks, *start, *step)
        }
    });
    let finer = || {
        let elements = |shape: Vec<u64>| shape.iter().fold(1u64, |p, n| p.saturating_mul(*n));
        let varies = input.map.varies();
        let block = stage
            .walk
            .max_chunk()
            .into_iter()
            .zip(&varies)
            .filter(|(_, v)| **v)
            .map(|(n, _)| n)
            .collect();
        elements(block) < elements(grid.max_chunk())
    };
    match inside {
        // If a block views only a piece of a chunk, read only that piece.
        true if !(finer() && traffic::only_parts(scope, stage, input)) => ReadMode::InChunk,
        _ if traffic::only_parts(scope, stage, input) => ReadMode::Parts,
        _ => ReadMode::Assembled,
    }
}

/// The sources of a stage, and the memory bounds for reading them.
struct Sources {
    sources: Vec<SourceLayout>,
    /// The position of each array among the sources.
    places: HashMap<ArrayId, usize>,
    /// The decoded size of a chunk of each source in bytes.
    chunk: Vec<u64>,
    encoded: u64,
    scratch: u64,
    context: u64,
    index: u64,
}

impl Sources {
    fn of(
        scope: Scope<'_>,
        stage: &Stage,
        modes: &[ReadMode],
        program: &mut Program,
    ) -> Result<Sources, PlanError> {
        let mut all = Sources {
            sources: Vec::new(),
            places: HashMap::new(),
            chunk: Vec::new(),
            encoded: 0,
            scratch: 0,
            context: 0,
            index: 0,
        };
        let mut readers: HashMap<ArrayId, Vec<usize>> = HashMap::new();
        for (i, input) in stage.inputs.iter().enumerate() {
            for id in &input.sources {
                let own = readers.entry(*id).or_default();
                if own.last() != Some(&i) {
                    own.push(i);
                }
            }
        }
        for id in stage.inputs.iter().flat_map(|i| &i.sources) {
            if all.places.contains_key(id) {
                continue;
            }
            all.places.insert(*id, all.sources.len());
            let own = readers.get(id).map_or(&[][..], Vec::as_slice);
            let bounds = SourceBounds::of(scope, *id)?;
            all.encoded = all.encoded.max(bounds.encoded);
            all.scratch = all.scratch.max(bounds.scratch);
            all.context = all.context.max(bounds.context);
            all.index += bounds.index;
            let keep = stage.cache.iter().find(|k| k.array == *id).map_or(0, |k| k.chunks as usize);
            let viewed = viewed_chunks(scope, stage, *id, own, modes);
            // An input that assembles blocks from an array whose chunks other inputs view needs one
            // more chunk, for chunks that no other input holds.
            let assembled = own.iter().any(|i| modes[*i] == ReadMode::Assembled);
            let chunks = (viewed + usize::from(assembled)).max(keep).max(1);
            let bytes = bounds.chunk.saturating_mul(chunks as u64).min(TOO_LARGE);
            let slot = (keep > 0 || viewed > 0).then(|| program.slot(Part::DecodedChunk, bytes));
            all.sources.push(SourceLayout {
                array: *id,
                chunks,
                slot,
                retained: keep > 0,
                prefetch: is_prefetchable(scope, scope.array(*id)),
            });
            all.chunk.push(bounds.chunk);
        }
        Ok(all)
    }
}

fn input_layouts(
    stage: &Stage,
    block: &[u64],
    modes: &[ReadMode],
    read: &Sources,
    program: &mut Program,
) -> Vec<InputLayout> {
    let kind = stage.kernel.kind();
    let sizes = kind.inputs();
    let layout = |(i, (input, mode)): (usize, (&StageInput, &ReadMode))| {
        let own: Vec<usize> =
            input.sources.iter().filter_map(|id| read.places.get(id).copied()).collect();
        let varies = if kind.reads_dense() {
            vec![true; input.map.shape().len()]
        } else {
            input.map.varies()
        };
        let transient = own
            .iter()
            .filter(|s| read.sources[**s].slot.is_none() && *mode != ReadMode::Parts)
            .map(|s| read.chunk[*s])
            .max();
        let chunk = transient.map(|bytes| program.slot(Part::DecodedChunk, bytes));
        let region = (*mode != ReadMode::InChunk).then(|| {
            let own = kind.input_block(i, block);
            let mut kept = own.iter().zip(&varies).filter(|(_, v)| **v);
            let bytes = kept.try_fold(sizes[i].size() as u64, |p, (n, _)| p.checked_mul(*n));
            program.slot(Part::Region, bytes.unwrap_or(TOO_LARGE))
        });
        InputLayout { mode: *mode, varies, sources: own, chunk, region }
    };
    stage.inputs.iter().zip(modes).enumerate().map(layout).collect()
}
