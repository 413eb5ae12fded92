//! How a stage's tasks run: how each input is read, and the program.
//!
//! The layout is derived from the plan, by the planner to project memory and by the worker to do the work: there is one source.

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

/// How a block of an input is brought in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMode {
    /// Each block lies inside one chunk: the decoded chunk is looked at, not copied.
    InChunk,
    /// A block is assembled from several chunks, decoded one after the other.
    Assembled,
    /// A block is read straight out of chunks that are not encoded.
    Parts,
}

/// An array that a stage reads, ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLayout {
    /// Which.
    pub array: ArrayId,
    /// Decoded chunks of it that are there at once, at most.
    pub chunks: usize,
    /// Their memory; `None` if each input that reads it has that of one chunk while it is loaded.
    pub slot: Option<SlotId>,
    /// They stay from block to block, and from task to task.
    pub kept: bool,
    /// They are waited for, across a network, and each is an object.
    pub far: bool,
}

/// An input of a stage, ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputLayout {
    /// How.
    pub mode: ReadMode,
    /// Axes of the iteration space along which its values differ.
    pub varies: Vec<bool>,
    /// For each of its sources, which of the stage's it is.
    pub sources: Vec<usize>,
    /// A decoded chunk of those that have no slot of their own.
    pub chunk: Option<SlotId>,
    /// An assembled block.
    pub region: Option<SlotId>,
}

/// An output of a stage, ready to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputLayout {
    /// Its accumulators, for kinds that have some.
    pub accumulator: Option<SlotId>,
    /// Its block; `None` where the accumulators themselves are stored. A block that is stored as it was assembled has the input's slot.
    pub block: Option<SlotId>,
}

/// A stage, ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageLayout {
    /// The buffers and the steps.
    pub program: Program,
    /// Its projected memory.
    pub estimate: MemoryEstimate,
    /// The arrays that are read, each once.
    pub sources: Vec<SourceLayout>,
    /// Inputs in order.
    pub inputs: Vec<InputLayout>,
    /// Outputs in order.
    pub outputs: Vec<OutputLayout>,
    /// Buffers of a kind's own between loading and computing: packed operands of a product.
    pub packed: Vec<Option<SlotId>>,
    /// Chunks from across a network that are in flight while one before them is worked on, at most.
    pub ahead: usize,
}

/// Stands for what cannot be counted: no limit allows it.
pub(crate) const TOO_LARGE: u64 = 1 << 61;

/// Bytes that one thread holds between chunks: keys, coordinates, small vectors.
pub(crate) const TASK_OVERHEAD_BYTES: u64 = 65_536;

/// A layout while it is built: what all kinds have in common is there before the kind adds its slots and steps.
#[derive(Debug)]
pub(crate) struct Builder<'a> {
    pub(crate) scope: Scope<'a>,
    pub(crate) stage: &'a Stage,
    pub(crate) program: Program,
    pub(crate) sources: Vec<SourceLayout>,
    pub(crate) inputs: Vec<InputLayout>,
    pub(crate) outputs: Vec<OutputLayout>,
    pub(crate) packed: Vec<Option<SlotId>>,
    /// Largest block and largest task, in elements along each axis.
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

    /// Bytes of an object of output `j`, decoded.
    pub(crate) fn stored_bytes(&self, j: usize) -> u64 {
        self.targets[j].stored
    }

    /// Bytes of a task's elements of this size along the axes that are kept.
    pub(crate) fn kept_bytes(&self, size: usize, kept: impl Fn(usize) -> bool) -> u64 {
        let bytes = self.task.iter().enumerate().filter(|(d, _)| kept(*d)).try_fold(size as u64, |p, (_, n)| p.checked_mul(*n));
        bytes.unwrap_or(TOO_LARGE).min(TOO_LARGE)
    }

    /// Loads inputs, one after the other.
    pub(crate) fn loads(&self, inputs: Range<usize>) -> Vec<Step> {
        let (mut steps, mut taken) = (Vec::new(), HashSet::new());
        for i in inputs {
            let input = &self.inputs[i];
            steps.extend(input.region.map(Step::Take));
            for slot in self.passing(i) {
                if taken.insert(slot) {
                    steps.push(Step::Take(slot));
                }
            }
            steps.extend(input.chunk.map(Step::Take));
            steps.extend([Step::Take(self.encoded), Step::Take(self.decode_scratch), Step::Load(i)]);
            steps.extend([Step::Release(self.decode_scratch), Step::Release(self.encoded)]);
            steps.extend(input.chunk.map(Step::Release));
        }
        steps
    }

    /// Releases what [`loads`](Builder::loads) leaves taken.
    pub(crate) fn unloads(&self, inputs: Range<usize>) -> Vec<Step> {
        let mut released = HashSet::new();
        let regions = inputs.clone().filter_map(|i| self.inputs[i].region);
        regions.chain(inputs.flat_map(|i| self.passing(i))).filter(|slot| released.insert(*slot)).map(Step::Release).collect()
    }

    /// Slots of the decoded chunks that input `i` reads, of sources that keep none from block to block.
    fn passing(&self, i: usize) -> Vec<SlotId> {
        self.inputs[i].sources.iter().map(|k| &self.sources[*k]).filter(|s| !s.kept).filter_map(|s| s.slot).collect()
    }

    /// Stores output `j`.
    pub(crate) fn store(&self, j: usize) -> [Step; 3] {
        [Step::Take(self.encode[j]), Step::Store(j), Step::Release(self.encode[j])]
    }
}

/// The steps between which buffers are taken: takes before, releases after.
pub(crate) fn holding(slots: &[SlotId], steps: Vec<Step>) -> Vec<Step> {
    let takes = slots.iter().copied().map(Step::Take);
    takes.chain(steps).chain(slots.iter().copied().map(Step::Release)).collect()
}

impl StageLayout {
    /// Derives the layout.
    ///
    /// # Errors
    /// Where a codec cannot be used, or sizes overflow.
    pub(crate) fn of(scope: Scope<'_>, stage: &Stage) -> Result<StageLayout, PlanError> {
        let kind = stage.kernel.kind();
        let block: Vec<u64> = stage.walk.axes().iter().zip(stage.tasks.axes()).map(|(w, t)| w.max_extent().min(t.max_extent())).collect();
        let modes: Vec<ReadMode> = stage.inputs.iter().enumerate().map(|(i, input)| read_mode(scope, stage, i, input)).collect();
        let mut program = Program::default();
        let read = Sources::of(scope, stage, &modes, &mut program)?;
        let inputs = input_layouts(stage, &block, &modes, &read, &mut program);
        let encoded = program.slot(Part::EncodedInput, read.encoded);
        let decode_scratch = program.slot(Part::DecodeScratch, read.scratch);
        let indexes = program.slot(Part::ShardIndex, read.index);
        let lists = stage.inputs.iter().map(|i| list_bytes(i, if kind.reads_dense() { &[] } else { &block })).sum();
        let lists = program.slot(Part::Indices, lists);
        let kernel_scratch = program.slot(Part::KernelScratch, kind.scratch_bytes(&block));
        let targets = stage.outputs.iter().map(|o| TargetBounds::of(scope, o.array)).collect::<Result<Vec<_>, _>>()?;
        let encode = targets.iter().map(|t| program.slot(Part::EncodeBuffer, t.encode)).collect();
        let encode_context = targets.iter().map(|t| t.context).max().unwrap_or(0);
        let contexts = program.slot(Part::CodecContext, read.context + encode_context);
        let kept = read.sources.iter().filter(|s| s.kept).filter_map(|s| s.slot);
        let held: Vec<SlotId> = [contexts, indexes, lists, kernel_scratch].into_iter().chain(kept).collect();
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
        Ok(StageLayout { program, estimate, sources, inputs, outputs, packed, ahead: 0 })
    }

    /// True if a stage fits what a task may grow to.
    pub(crate) fn fits(scope: Scope<'_>, stage: &Stage) -> bool {
        StageLayout::of(scope, stage).is_ok_and(|l| l.estimate.total() <= scope.growth_mem)
    }

    /// The same, with chunks that are fetched before they are asked for, where they cross a network: a few, as far as they add no more than a half to
    /// what a task needs, and there is room for it to grow.
    ///
    /// # Errors
    /// As [`of`](StageLayout::of).
    pub(super) fn with_ahead(mut self, scope: Scope<'_>, stage: &Stage) -> Result<StageLayout, PlanError> {
        let mut chunk = 0;
        for source in self.sources.iter().filter(|s| s.far) {
            let codec = codec(scope, source.array)?;
            chunk = codec.read_limit(codec.decoded_bytes()).max(chunk);
        }
        let is_far = |id: &ArrayId| self.sources.iter().any(|s| s.array == *id && s.far);
        let reads = traffic::reads(scope, stage).into_iter().filter(|(id, _)| is_far(id));
        let in_task = reads.map(|(_, read)| read.requests).sum::<f64>() / stage.n_tasks().max(1) as f64;
        // The first is waited for.
        let others = (in_task.ceil() - 1.0).clamp(0.0, MOST_AHEAD as f64) as u64;
        // Lists of indices are sorted once more while it is looked ahead.
        let lists = LIST_BYTES + self.program.slots.iter().filter(|s| s.part == Part::Indices).map(|s| s.bytes).sum::<u64>();
        let room = scope.growth_mem.saturating_sub(self.estimate.total()).saturating_sub(lists);
        let most = AHEAD_BYTES.min(self.estimate.per_task() / 2);
        let ahead = others.min(most / chunk.max(1)).min(room / (chunk + STREAM_BYTES));
        if ahead > 0 {
            let slot = self.program.slot(Part::EncodedInput, ahead * (chunk + STREAM_BYTES) + lists);
            self.program.steps = holding(&[slot], std::mem::take(&mut self.program.steps));
            self.estimate = self.program.estimate(scope.process_mem)?.with_repositories(scope.repository_mem);
            self.ahead = ahead as usize;
        }
        Ok(self)
    }
}

/// What tasks of a stage hold all the while, or whenever they read, however small the chunks are.
pub(super) fn without_chunks(plan: &Plan, stage: &Stage) -> Vec<(&'static str, u64)> {
    let scope = plan.scope();
    let far = stage.inputs.iter().flat_map(|i| &i.sources).any(|id| scope.is_remote(plan.array(*id)));
    let lists = stage.inputs.iter().map(|i| list_bytes(i, &vec![0; i.map.shape().len()])).sum();
    let all = [
        ("reserved", plan.reserved_mem),
        ("for repositories", plan.repository_mem()),
        ("for the network", if far { NETWORK_BYTES } else { 0 }),
        ("for lists of indices", lists),
    ];
    all.into_iter().filter(|(_, bytes)| *bytes > 0).collect()
}

/// Chunks that are fetched ahead, at most, and bytes of all of them.
const MOST_AHEAD: u64 = 4;
const AHEAD_BYTES: u64 = 32_000_000;
/// The list of chunks that a task will ask for, at most this many at a time.
pub(crate) const LISTED: usize = 16_384;
const LIST_BYTES: u64 = 16 * LISTED as u64;

/// True if chunks of an array are waited for, across a network, and each is an object.
fn is_far(scope: Scope<'_>, array: &PlanArray) -> bool {
    scope.is_remote(array) && array.info.shard.is_none()
}

/// What one index of a list becomes, at worst, when a task sorts its part of the list by chunks.
const SORTED_INDEX_BYTES: u64 = 128;

/// What one index of a list takes besides its text in the plan: itself, and a vector of them that grows while a plan is read.
const LISTED_INDEX_BYTES: u64 = 32;

/// Lists of indices, the text that carries them, and what is made of the part that one block needs.
fn list_bytes(input: &StageInput, block: &[u64]) -> u64 {
    let of = |piece: &Piece| match &piece.from {
        Origin::Source { axes, .. } => axes
            .iter()
            .filter_map(|a| if let AxisMap::Gather { axis, indices, .. } = a { Some((axis, indices)) } else { None })
            .map(|(axis, indices)| {
                let here = piece.to.shape[*axis].min(block.get(*axis).copied().unwrap_or(u64::MAX));
                let digits = indices.iter().max().map_or(1, |most| most.checked_ilog10().unwrap_or(0) + 1);
                (LISTED_INDEX_BYTES + u64::from(digits) + 1) * indices.len() as u64 + SORTED_INDEX_BYTES * here
            })
            .sum(),
        _ => 0,
    };
    input.map.pieces().iter().map(of).sum()
}

/// What reading over a network holds besides the bytes in their buffer: the client and its threads, trusted certificates, and the
/// pieces of a body that have arrived.
const NETWORK_BYTES: u64 = 8_000_000;

/// What each further body that arrives at the same time holds besides. Measured: with four chunks ahead, a peak of up to 1.5 MB more than without.
const STREAM_BYTES: u64 = 1_000_000;

/// Bounds of reading a chunk of an array.
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
        let chunk = block_bytes(&array.info.chunk_shape(), array.info.dtype.size()).unwrap_or(TOO_LARGE);
        let mut bounds = SourceBounds { chunk, encoded: 0, scratch: 0, context: 0, index: 0 };
        if matches!(array.place, Place::Constant(_) | Place::Generated(_)) {
            return Ok(bounds);
        }
        let codec = codec(scope, id)?;
        bounds.encoded = codec.encoded_beside() + if scope.is_remote(array) { NETWORK_BYTES } else { 0 };
        bounds.scratch = codec.decode_scratch();
        bounds.context = codec.decode_context_bytes();
        if let Some(shard) = &array.info.shard {
            let index = index_codec(array, shard)?;
            // The encoded index, the decoded one, and the entries that are kept.
            bounds.index = index.encoded_beside() + index.decode_scratch() + 2 * index.decoded_bytes();
        }
        Ok(bounds)
    }
}

/// Bounds of writing an object of an array: a chunk, or a shard.
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
            return Ok(TargetBounds { stored: codec.decoded_bytes(), encode: codec.encode_beside() + network(codec.encoded_bound()), context });
        };
        let index = index_codec(array, shard)?;
        let encoded = shard::encoded_bound(shard, [&codec, &index]).min(TOO_LARGE);
        let stored = block_bytes(&array.info.object_shape(), array.info.dtype.size()).unwrap_or(TOO_LARGE);
        Ok(TargetBounds { stored, encode: encoded + shard::encode_scratch([&codec, &index]) + network(encoded), context })
    }
}

fn index_codec(array: &PlanArray, shard: &Shard) -> Result<Codec, PlanError> {
    shard.index_codec().map_err(|error| PlanError::Codec { array: array.name.clone(), error })
}

fn codec(scope: Scope<'_>, id: ArrayId) -> Result<Codec, PlanError> {
    let array = scope.array(id);
    Codec::new(&array.info.codecs, array.info.dtype, &array.info.chunk_shape()).map_err(|error| PlanError::Codec { array: array.name.clone(), error })
}

/// Chunks of an array that the inputs of one block look at, at most; `readers` are the inputs that read it. Inputs that surely look at the same one count once.
fn chunks_looked_at(scope: Scope<'_>, stage: &Stage, array: ArrayId, readers: &[usize], modes: &[ReadMode]) -> usize {
    let cuts = scope.array(array).info.grid.axes();
    let of_it = readers.iter().filter(|i| modes[**i] == ReadMode::InChunk).map(|i| &stage.inputs[*i]).filter(|input| input.sources == [array]);
    let all: Vec<(&[AxisMap], &[u64])> = of_it.filter_map(|input| Some((input.map.as_image()?, input.map.shape()))).collect();
    // The one chunk along an axis that a map ever looks at, if it is one.
    let only = |map: &AxisMap, shape: &[u64], cut: &AxisGrid| {
        let last = map.axis().map_or(0, |d| shape[d].saturating_sub(1));
        let (a, b) = (cut.find(map.at(0)), cut.find(map.at(last)));
        (a == b && !matches!(map, AxisMap::Gather { .. })).then_some(a)
    };
    // Inputs look at one chunk along an axis where it has one, where both look at the same one throughout, or where their maps are equal.
    let place = |(a, cut): (&AxisMap, &AxisGrid), shape: &[u64]| match only(a, shape, cut) {
        _ if cut.n_chunks() <= 1 => (Some(0), None),
        Some(chunk) => (Some(chunk), None),
        None => (None, Some(a.clone())),
    };
    let places = |(axes, shape): &(&[AxisMap], &[u64])| axes.iter().zip(cuts).map(|pair| place(pair, shape)).collect::<Vec<_>>();
    all.iter().map(places).collect::<HashSet<_>>().len()
}

/// [`ReadMode::InChunk`] if every block of every task lies inside one chunk of one source.
fn read_mode(scope: Scope<'_>, stage: &Stage, i: usize, input: &StageInput) -> ReadMode {
    let kind = stage.kernel.kind();
    if let Some(mode) = kind.read_mode(i) {
        return mode;
    }
    let (Some(axes), [source]) = (input.map.as_image(), input.sources.as_slice()) else { return ReadMode::Assembled };
    let whole_task = !kind.walks() && stage.walk == stage.tasks;
    let grid = &scope.array(*source).info.grid;
    let inside = axes.iter().zip(grid.axes()).all(|(map, chunks)| match map {
        AxisMap::Fixed(_) => true,
        AxisMap::Gather { .. } => false,
        AxisMap::Along { axis, start, step } => {
            let blocks: &AxisGrid = if whole_task { &stage.tasks.axes()[*axis] } else { &stage.walk.axes()[*axis] };
            blocks.is_empty() || blocks.nests_in(chunks, *start, *step) || stage.tasks.axes()[*axis].nests_in(chunks, *start, *step)
        }
    });
    let finer = || {
        let elements = |shape: Vec<u64>| shape.iter().fold(1u64, |p, n| p.saturating_mul(*n));
        let varies = input.map.varies();
        let block = stage.walk.max_chunk().into_iter().zip(&varies).filter(|(_, v)| **v).map(|(n, _)| n).collect();
        elements(block) < elements(grid.max_chunk())
    };
    match inside {
        // Of a chunk of which a piece is looked at, no more than that is read.
        true if !(finer() && traffic::only_parts(scope, stage, input)) => ReadMode::InChunk,
        _ if traffic::only_parts(scope, stage, input) => ReadMode::Parts,
        _ => ReadMode::Assembled,
    }
}

/// The sources of a stage, and the bounds of what reading them takes.
struct Sources {
    sources: Vec<SourceLayout>,
    /// The place of each array among them.
    places: HashMap<ArrayId, usize>,
    /// Decoded bytes of a chunk of each.
    chunk: Vec<u64>,
    encoded: u64,
    scratch: u64,
    context: u64,
    index: u64,
}

impl Sources {
    fn of(scope: Scope<'_>, stage: &Stage, modes: &[ReadMode], program: &mut Program) -> Result<Sources, PlanError> {
        let mut all = Sources { sources: Vec::new(), places: HashMap::new(), chunk: Vec::new(), encoded: 0, scratch: 0, context: 0, index: 0 };
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
            let keep = stage.keep.iter().find(|k| k.array == *id).map_or(0, |k| k.chunks as usize);
            let looked_at = chunks_looked_at(scope, stage, *id, own, modes);
            // Who assembles blocks from an array whose chunks others look at needs one more for the chunks that those don't have.
            let assembled = own.iter().any(|i| modes[*i] == ReadMode::Assembled);
            let chunks = (looked_at + usize::from(assembled)).max(keep).max(1);
            let bytes = bounds.chunk.saturating_mul(chunks as u64).min(TOO_LARGE);
            let slot = (keep > 0 || looked_at > 0).then(|| program.slot(Part::DecodedChunk, bytes));
            all.sources.push(SourceLayout { array: *id, chunks, slot, kept: keep > 0, far: is_far(scope, scope.array(*id)) });
            all.chunk.push(bounds.chunk);
        }
        Ok(all)
    }
}

fn input_layouts(stage: &Stage, block: &[u64], modes: &[ReadMode], read: &Sources, program: &mut Program) -> Vec<InputLayout> {
    let kind = stage.kernel.kind();
    let sizes = kind.inputs();
    let layout = |(i, (input, mode)): (usize, (&StageInput, &ReadMode))| {
        let own: Vec<usize> = input.sources.iter().filter_map(|id| read.places.get(id).copied()).collect();
        let varies = if kind.reads_dense() { vec![true; input.map.shape().len()] } else { input.map.varies() };
        let passing = own.iter().filter(|s| read.sources[**s].slot.is_none() && *mode != ReadMode::Parts).map(|s| read.chunk[*s]).max();
        let chunk = passing.map(|bytes| program.slot(Part::DecodedChunk, bytes));
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
