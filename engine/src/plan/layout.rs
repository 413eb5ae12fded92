//! How a stage's tasks run: how each input is read, and the buffer schedule.
//!
//! This is derived from the plan, by the planner to project memory and by the worker to do the work: there is one source.

use freestone_kernels::{contract, eval};

use super::{ArrayId, Kernel, OutAxis, Place, Plan, PlanArray, PlanError, Stage, StageInput, traffic};
use crate::grid::{AxisGrid, block_bytes};
use crate::memory::{MemoryEstimate, Part, Schedule, SlotId, Step};
use crate::readmap::{AxisMap, Origin, Piece};
use crate::storage::array::Shard;
use crate::storage::codec::Codec;
use crate::storage::{is_remote_url, shard};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputLayout {
    /// Its accumulators, for a reduction.
    pub accumulator: Option<SlotId>,
    /// Its block; the accumulators themselves where they are what is stored.
    pub block: Option<SlotId>,
}

/// A stage, ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageLayout {
    /// The buffers and the steps.
    pub schedule: Schedule,
    /// Its projected memory.
    pub estimate: MemoryEstimate,
    /// The arrays that are read, each once.
    pub sources: Vec<SourceLayout>,
    /// Inputs in order.
    pub inputs: Vec<InputLayout>,
    /// Outputs in order.
    pub outputs: Vec<OutputLayout>,
    /// Operands of a product that are put together before they are multiplied.
    pub packed: [Option<SlotId>; 2],
    /// A task writes one object of each output.
    pub one_chunk: bool,
    /// The assembled block of the only input is what is written.
    pub as_is: bool,
    /// Chunks are made slice by slice, each a block of the walk.
    pub in_slices: bool,
    /// Chunks from across a network that are on their way while one before them is worked on, at most.
    pub ahead: usize,
}

/// Stands for what cannot be counted: no limit allows it.
const TOO_LARGE: u64 = 1 << 61;

/// What one thread keeps between chunks: keys, coordinates, small vectors.
const TASK_OVERHEAD_BYTES: u64 = 65_536;

impl StageLayout {
    /// Derives the layout.
    ///
    /// # Errors
    /// Where a codec cannot be used, or sizes overflow.
    pub fn of(plan: &Plan, stage: &Stage) -> Result<StageLayout, PlanError> {
        let block: Vec<u64> = stage.walk.axes().iter().zip(stage.tasks.axes()).map(|(w, t)| w.max_extent().min(t.max_extent())).collect();
        let task = stage.tasks.max_chunk();
        let dtypes = stage.kernel.inputs();
        let user = matches!(stage.kernel, Kernel::User { .. });
        let mut s = Schedule::default();
        let (mut decode_contexts, mut encode_contexts, mut encoded, mut scratch, mut indexes) = (0u64, 0u64, 0u64, 0u64, 0u64);
        let modes: Vec<ReadMode> = stage.inputs.iter().enumerate().map(|(i, input)| read_mode(plan, stage, i, input)).collect();
        let mut sources: Vec<SourceLayout> = Vec::new();
        let mut chunk_bytes: Vec<u64> = Vec::new();
        for id in stage.inputs.iter().flat_map(|i| &i.sources) {
            if sources.iter().any(|s| s.array == *id) {
                continue;
            }
            let bounds = SourceBounds::of(plan, *id)?;
            encoded = encoded.max(bounds.encoded);
            scratch = scratch.max(bounds.scratch);
            decode_contexts = decode_contexts.max(bounds.context);
            indexes += bounds.index;
            let keep = stage.keep.iter().find(|k| k.array == *id).map_or(0, |k| k.chunks as usize);
            let looked_at = chunks_looked_at(plan, stage, *id, &modes);
            // Who assembles blocks from an array whose chunks others look at needs one more for the chunks that those don't have.
            let assembled = stage.inputs.iter().zip(&modes).any(|(i, m)| *m == ReadMode::Assembled && i.sources.contains(id));
            let chunks = (looked_at + usize::from(assembled)).max(keep).max(1);
            let slot = (keep > 0 || looked_at > 0).then(|| s.slot(Part::DecodedChunk, bounds.chunk.saturating_mul(chunks as u64).min(TOO_LARGE)));
            sources.push(SourceLayout { array: *id, chunks, slot, kept: keep > 0, far: is_far(plan, plan.array(*id)) });
            chunk_bytes.push(bounds.chunk);
        }
        let in_slices = matches!(stage.kernel, Kernel::Map(_)) && stage.walk != stage.tasks;
        let as_is = !in_slices && is_plain_copy(plan, stage, &modes);
        let mut inputs = Vec::with_capacity(stage.inputs.len());
        for (i, (input, mode)) in stage.inputs.iter().zip(modes).enumerate() {
            let own: Vec<usize> = input.sources.iter().filter_map(|id| sources.iter().position(|s| s.array == *id)).collect();
            // A user's kernel sees every element of its block, in C order.
            let varies = if user { vec![true; input.map.shape().len()] } else { input.map.varies() };
            let passing = own.iter().filter(|s| sources[**s].slot.is_none() && mode != ReadMode::Parts).map(|s| chunk_bytes[*s]).max();
            let chunk = passing.map(|bytes| s.slot(Part::DecodedChunk, bytes));
            let size = dtypes[i].size() as u64;
            let region = match mode {
                ReadMode::InChunk => None,
                // What a scan carries goes where it is carried on.
                ReadMode::Assembled if stage.kernel.carry() == Some(i) => None,
                ReadMode::Assembled | ReadMode::Parts => {
                    let own = if let Kernel::User { blocks, .. } = &stage.kernel { blocks[i].grid.max_chunk() } else { block.clone() };
                    let elements = own.iter().zip(&varies).filter(|(_, v)| **v).try_fold(size, |p, (n, _)| p.checked_mul(*n));
                    let stored = if as_is { TargetBounds::of(plan, stage.outputs[0].array)?.stored } else { 0 };
                    Some(s.slot(Part::Region, elements.unwrap_or(TOO_LARGE).max(stored)))
                }
            };
            inputs.push(InputLayout { mode, varies, sources: own, chunk, region });
        }
        let encoded = s.slot(Part::EncodedInput, encoded);
        let scratch = s.slot(Part::DecodeScratch, scratch);
        let indexes = s.slot(Part::ShardIndex, indexes);
        let lists = s.slot(Part::Indices, stage.inputs.iter().map(|i| list_bytes(i, if user { &[] } else { &block })).sum());
        let kernel_scratch = match &stage.kernel {
            Kernel::User { scratch_bytes, .. } => scratch_bytes.saturating_add(TASK_OVERHEAD_BYTES).min(TOO_LARGE),
            Kernel::Map(expr) | Kernel::Reduce { expr, .. } | Kernel::Scan { expr, .. } => eval::scratch_bytes(expr) + TASK_OVERHEAD_BYTES,
            Kernel::Contract { operands, batch, free } => {
                // Panels of both operands, which are never larger than these.
                let kept = batch + free[0] + free[1];
                let side = |free: std::ops::Range<usize>| {
                    free.chain(kept..block.len()).fold(dtypes.first().map_or(16, |t| t.size() as u64), |p, d| p.saturating_mul(block[d]))
                };
                let both = side(*batch..batch + free[0]).saturating_add(side(batch + free[0]..kept)).saturating_mul(2);
                let panels = contract::SCRATCH_BYTES.min(both.saturating_add(TASK_OVERHEAD_BYTES));
                operands.iter().map(eval::scratch_bytes).sum::<u64>() + panels + TASK_OVERHEAD_BYTES
            }
        };
        let kernel_scratch = s.slot(Part::KernelScratch, kernel_scratch);
        let mut outputs = Vec::with_capacity(stage.outputs.len());
        let mut encode_slots = Vec::with_capacity(stage.outputs.len());
        let mut one_chunk = true;
        for (j, output) in stage.outputs.iter().enumerate() {
            let array = plan.array(output.array);
            let TargetBounds { stored, encode, context } = TargetBounds::of(plan, output.array)?;
            encode_contexts = encode_contexts.max(context);
            encode_slots.push(s.slot(Part::EncodeBuffer, encode));
            let kept_bytes = |size: usize, kept: &dyn Fn(usize) -> bool| {
                let bytes = task.iter().enumerate().filter(|(d, _)| kept(*d)).try_fold(size as u64, |p, (_, n)| p.checked_mul(*n));
                bytes.unwrap_or(TOO_LARGE).min(TOO_LARGE)
            };
            match &stage.kernel {
                Kernel::Scan { op, axis, .. } => {
                    let carrier = op.carrier(array.info.dtype).unwrap_or(array.info.dtype);
                    let accumulator = s.slot(Part::Accumulator, kept_bytes(carrier.size(), &|d| d != *axis));
                    outputs.push(OutputLayout { accumulator: Some(accumulator), block: Some(s.slot(Part::Output, stored)) });
                }
                Kernel::Contract { .. } => {
                    let accumulator = s.slot(Part::Accumulator, kept_bytes(array.info.dtype.size(), &|d| !stage.kernel.folds(d)));
                    let as_they_are = array.info.stored_shape.is_none() && n_objects(plan, stage, j) == 1;
                    let block = (!as_they_are).then(|| s.slot(Part::Output, stored));
                    outputs.push(OutputLayout { accumulator: Some(accumulator), block });
                }
                Kernel::Map(_) | Kernel::User { .. } => {
                    one_chunk &= array.info.objects().chunk_counts() == stage.tasks.chunk_counts();
                    outputs.push(OutputLayout { accumulator: None, block: (!as_is).then(|| s.slot(Part::Output, stored)) });
                }
                Kernel::Reduce { folds, axes, .. } => {
                    let accumulator = folds[j].accumulator();
                    let accumulator = s.slot(Part::Accumulator, kept_bytes(accumulator.size(), &|d| !axes.contains(&d)));
                    // Accumulators that are stored as they are need no block of their own.
                    let as_they_are = folds[j].finish.is_nothing(folds[j].op, folds[j].values) && array.info.stored_shape.is_none();
                    let block = (!as_they_are).then(|| s.slot(Part::Output, stored));
                    outputs.push(OutputLayout { accumulator: Some(accumulator), block });
                }
            }
        }
        let mut packed = [None; 2];
        if let Kernel::Contract { operands, batch, free } = &stage.kernel {
            let mut first = 0;
            for (o, expr) in operands.iter().enumerate() {
                let last = first + expr.inputs().len();
                if !(expr.is_identity() && lies_as_matrix(plan, &stage.inputs[first], &inputs[first], *batch, *free, o)) {
                    let other = batch + free[0] * (1 - o)..batch + free[0] + free[1] * (1 - o);
                    let size = expr.result_dtypes().first().map_or(0, |d| d.size()) as u64;
                    let elements = block.iter().enumerate().filter(|(d, _)| !other.contains(d)).try_fold(size, |p, (_, n)| p.checked_mul(*n));
                    packed[o] = Some(s.slot(Part::Region, elements.unwrap_or(TOO_LARGE)));
                }
                first = last;
            }
        }
        let contexts = s.slot(Part::CodecContext, decode_contexts + encode_contexts);
        let kept = sources.iter().filter(|s| s.kept).filter_map(|s| s.slot);
        let held: Vec<SlotId> = [contexts, indexes, lists, kernel_scratch].into_iter().chain(kept).collect();
        let of_blocks: Vec<SlotId> = sources.iter().filter(|s| !s.kept).filter_map(|s| s.slot).collect();
        let carry = stage.kernel.carry();
        let loads = |s: &mut Vec<Step>| {
            let mut taken: Vec<SlotId> = Vec::new();
            for (i, input) in inputs.iter().enumerate().filter(|(i, _)| Some(*i) != carry) {
                s.extend(input.region.map(Step::Take));
                for slot in input.sources.iter().filter_map(|k| sources[*k].slot).filter(|slot| of_blocks.contains(slot)) {
                    if !taken.contains(&slot) {
                        s.push(Step::Take(slot));
                        taken.push(slot);
                    }
                }
                s.extend(input.chunk.map(Step::Take));
                s.extend([Step::Take(encoded), Step::Take(scratch), Step::Load(i), Step::Release(scratch), Step::Release(encoded)]);
                s.extend(input.chunk.map(Step::Release));
            }
        };
        let unload = |s: &mut Vec<Step>| {
            s.extend(inputs.iter().filter_map(|i| i.region).map(Step::Release));
            s.extend(of_blocks.iter().copied().map(Step::Release));
        };
        let store = |s: &mut Vec<Step>, j: usize| s.extend([Step::Take(encode_slots[j]), Step::Store(j), Step::Release(encode_slots[j])]);
        s.once.extend(held.iter().copied().map(Step::Take));
        match &stage.kernel {
            Kernel::Map(_) | Kernel::User { .. } => {
                let blocks: Vec<SlotId> = outputs.iter().filter_map(|o| o.block).collect();
                let (mut once, mut apply, mut chunk, mut end) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
                loads(&mut once);
                apply.extend(blocks.iter().map(|b| Step::Take(*b)));
                apply.push(Step::Apply);
                if in_slices {
                    s.chunk_begin = blocks.iter().map(|b| Step::Take(*b)).chain([Step::Begin]).collect();
                    s.each_slice.append(&mut once);
                    s.each_slice.push(Step::Apply);
                    let mut slice = std::mem::take(&mut s.each_slice);
                    unload(&mut slice);
                    s.each_slice = slice;
                    (0..outputs.len()).for_each(|j| store(&mut chunk, j));
                    chunk.extend(blocks.iter().map(|b| Step::Release(*b)));
                } else if as_is {
                    store(&mut chunk, 0);
                    unload(&mut end);
                    s.after = apply;
                } else if one_chunk {
                    unload(&mut apply);
                    (0..outputs.len()).for_each(|j| store(&mut chunk, j));
                    end.extend(blocks.iter().map(|b| Step::Release(*b)));
                    s.after = apply;
                } else {
                    chunk = apply;
                    (0..outputs.len()).for_each(|j| store(&mut chunk, j));
                    chunk.extend(blocks.iter().map(|b| Step::Release(*b)));
                    unload(&mut end);
                }
                s.once.extend(once);
                s.each_chunk = chunk;
                s.end = end;
            }
            Kernel::Scan { .. } => {
                s.once.extend(outputs.iter().filter_map(|o| o.accumulator).map(Step::Take));
                if let Some(i) = carry {
                    s.once.extend(inputs[i].chunk.map(Step::Take));
                    s.once.extend([Step::Take(encoded), Step::Take(scratch), Step::Load(i), Step::Release(scratch), Step::Release(encoded)]);
                    s.once.extend(inputs[i].chunk.map(Step::Release));
                }
                let mut chunk = Vec::new();
                loads(&mut chunk);
                chunk.extend(outputs.iter().filter_map(|o| o.block).map(Step::Take));
                chunk.push(Step::Apply);
                unload(&mut chunk);
                store(&mut chunk, 0);
                chunk.extend(outputs.iter().filter_map(|o| o.block).map(Step::Release));
                s.each_chunk = chunk;
                s.end.extend(outputs.iter().filter_map(|o| o.accumulator).map(Step::Release));
            }
            Kernel::Reduce { .. } | Kernel::Contract { .. } => {
                s.once.extend(outputs.iter().filter_map(|o| o.accumulator).map(Step::Take));
                let (mut each, mut chunk) = (Vec::new(), Vec::new());
                loads(&mut each);
                each.extend(packed.into_iter().flatten().map(Step::Take));
                each.push(Step::Fold);
                each.extend(packed.into_iter().flatten().map(Step::Release));
                unload(&mut each);
                for (j, output) in outputs.iter().enumerate() {
                    chunk.extend(output.block.map(Step::Take));
                    chunk.push(Step::Finish(j));
                    store(&mut chunk, j);
                    chunk.extend(output.block.map(Step::Release));
                }
                s.each_block = each;
                s.each_chunk = chunk;
                s.end.extend(outputs.iter().filter_map(|o| o.accumulator).map(Step::Release));
            }
        }
        s.end.extend(held.iter().copied().map(Step::Release));
        let estimate = s.estimate(plan.process_mem())?.with_repositories(plan.repository_mem());
        Ok(StageLayout { schedule: s, estimate, sources, inputs, outputs, packed, one_chunk, as_is, in_slices, ahead: 0 })
    }

    /// The same, with chunks that are fetched before they are asked for, where they cross a network: a few, as far as they add no more than a half to
    /// what a task needs, and there is room for it to grow.
    ///
    /// # Errors
    /// As [`of`](StageLayout::of).
    pub(super) fn with_ahead(mut self, plan: &Plan, stage: &Stage) -> Result<StageLayout, PlanError> {
        let mut chunk = 0;
        for source in self.sources.iter().filter(|s| s.far) {
            let codec = codec(plan, source.array)?;
            chunk = codec.read_limit(codec.decoded_bytes()).max(chunk);
        }
        let is_far = |id: &ArrayId| self.sources.iter().any(|s| s.array == *id && s.far);
        let reads = traffic::reads(traffic::Arrays::of(plan), stage).into_iter().filter(|(id, _)| is_far(id));
        let in_task = reads.map(|(_, read)| read.requests).sum::<f64>() / stage.n_tasks().max(1) as f64;
        // The first is waited for.
        let others = (in_task.ceil() - 1.0).clamp(0.0, MOST_AHEAD as f64) as u64;
        // Lists of indices are sorted once more while it is looked ahead.
        let lists = LIST_BYTES + self.schedule.slots.iter().filter(|s| s.part == Part::Indices).map(|s| s.bytes).sum::<u64>();
        let room = plan.growth_mem.saturating_sub(self.estimate.total()).saturating_sub(lists);
        let most = AHEAD_BYTES.min(self.estimate.per_task() / 2);
        let ahead = others.min(most / chunk.max(1)).min(room / (chunk + STREAM_BYTES));
        if ahead > 0 {
            let slot = self.schedule.slot(Part::EncodedInput, ahead * (chunk + STREAM_BYTES) + lists);
            self.schedule.once.insert(0, Step::Take(slot));
            self.schedule.end.push(Step::Release(slot));
            self.estimate = self.schedule.estimate(plan.process_mem())?.with_repositories(plan.repository_mem());
            self.ahead = ahead as usize;
        }
        Ok(self)
    }
}

/// What tasks of a stage hold all the while, or whenever they read, however small the chunks are.
pub(super) fn without_chunks(plan: &Plan, stage: &Stage) -> Vec<(&'static str, u64)> {
    let far = stage.inputs.iter().flat_map(|i| &i.sources).any(|id| is_remote(plan, &plan.array(*id).place));
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
fn is_far(plan: &Plan, array: &PlanArray) -> bool {
    is_remote(plan, &array.place) && array.info.shard.is_none()
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
    fn of(plan: &Plan, id: ArrayId) -> Result<SourceBounds, PlanError> {
        let array = plan.array(id);
        let chunk = block_bytes(&array.info.chunk_shape(), array.info.dtype.size()).unwrap_or(TOO_LARGE);
        let mut bounds = SourceBounds { chunk, encoded: 0, scratch: 0, context: 0, index: 0 };
        if matches!(array.place, Place::Constant(_) | Place::Generated(_)) {
            return Ok(bounds);
        }
        let codec = codec(plan, id)?;
        bounds.encoded = codec.encoded_beside() + if is_remote(plan, &array.place) { NETWORK_BYTES } else { 0 };
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
struct TargetBounds {
    stored: u64,
    encode: u64,
    context: u64,
}

impl TargetBounds {
    fn of(plan: &Plan, id: ArrayId) -> Result<TargetBounds, PlanError> {
        let array = plan.array(id);
        let codec = codec(plan, id)?;
        let network = |encoded: u64| if is_remote(plan, &array.place) { encoded } else { 0 };
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

fn codec(plan: &Plan, id: ArrayId) -> Result<Codec, PlanError> {
    let array = plan.array(id);
    Codec::new(&array.info.codecs, array.info.dtype, &array.info.chunk_shape()).map_err(|error| PlanError::Codec { array: array.name.clone(), error })
}

/// True if chunks cross a network.
fn is_remote(plan: &Plan, place: &Place) -> bool {
    match place {
        Place::Input { url, .. } | Place::Output { url, .. } => is_remote_url(url),
        Place::Work => plan.remote_work,
        Place::Constant(_) | Place::Generated(_) => false,
    }
}

/// True if all that a task does is to put one object of the output together.
fn is_plain_copy(plan: &Plan, stage: &Stage, modes: &[ReadMode]) -> bool {
    let (Kernel::Map(expr), [input], [output]) = (&stage.kernel, stage.inputs.as_slice(), stage.outputs.as_slice()) else { return false };
    let one_object = plan.array(output.array).info.objects().chunk_counts() == stage.tasks.chunk_counts();
    expr.is_identity()
        && matches!(modes, [ReadMode::Assembled | ReadMode::Parts])
        && one_object
        && input.map.varies().iter().zip(stage.tasks.axes()).all(|(v, t)| *v || t.max_extent() <= 1)
}

/// Chunks of an array that the inputs of one block look at, at most: inputs that surely look at the same one count once.
fn chunks_looked_at(plan: &Plan, stage: &Stage, array: ArrayId, modes: &[ReadMode]) -> usize {
    let cuts = plan.array(array).info.grid.axes();
    let of_it = stage.inputs.iter().zip(modes).filter(|(input, mode)| **mode == ReadMode::InChunk && input.sources == [array]);
    let all: Vec<(&[AxisMap], &[u64])> = of_it.filter_map(|(input, _)| Some((input.map.as_image()?, input.map.shape()))).collect();
    // The one chunk along an axis that a map ever looks at, if it is one.
    let only = |map: &AxisMap, shape: &[u64], cut: &AxisGrid| {
        let last = map.axis().map_or(0, |d| shape[d].saturating_sub(1));
        let (a, b) = (cut.find(map.at(0)), cut.find(map.at(last)));
        (a == b && !matches!(map, AxisMap::Gather { .. })).then_some(a)
    };
    let same = |(a, b): (&AxisMap, &AxisMap), cut: &AxisGrid, shape: &[u64]| {
        a == b || cut.n_chunks() <= 1 || only(a, shape, cut).is_some_and(|c| only(b, shape, cut) == Some(c))
    };
    let alike = |a: &[AxisMap], b: &[AxisMap], shape: &[u64]| a.iter().zip(b).zip(cuts).all(|(pair, cut)| same(pair, cut, shape));
    (0..all.len()).filter(|i| !all[..*i].iter().any(|(other, shape)| alike(other, all[*i].0, shape))).count()
}

/// Objects of output `j` that one task writes at most.
fn n_objects(plan: &Plan, stage: &Stage, j: usize) -> u64 {
    let objects = plan.array(stage.outputs[j].array).info.objects();
    let along = |(axis, grid): (&OutAxis, &AxisGrid)| match axis {
        OutAxis::Kept(a) => grid.n_chunks().div_ceil(stage.tasks.axes()[*a].n_chunks().max(1)),
        OutAxis::Part(_) | OutAxis::One => 1,
    };
    stage.outputs[j].axes.iter().zip(objects.axes()).map(along).product()
}

/// True if an operand that needs no arithmetic can be multiplied where its values are: each of its two sides is one axis, upwards, and one
/// of these is contiguous.
fn lies_as_matrix(plan: &Plan, input: &StageInput, layout: &InputLayout, batch: usize, free: [usize; 2], operand: usize) -> bool {
    let rank = input.map.shape().len();
    let first = if operand == 0 { batch } else { batch + free[0] };
    let sides = (first..first + free[operand]).chain(batch + free[0] + free[1]..rank);
    // Values that are broadcast along a side are not there for each of its rows.
    if sides.into_iter().any(|d| !layout.varies[d] && input.map.shape()[d] > 1) {
        return false;
    }
    if layout.mode != ReadMode::InChunk {
        return true;
    }
    let Some(axes) = input.map.as_image() else { return false };
    let contracted = rank - batch - free[0] - free[1];
    let stored = plan.array(input.sources[0]).info.chunk_shape();
    // Axes of the source after the last that has a length in its chunks do not matter.
    let last = axes.iter().zip(&stored).rev().find(|(_, n)| **n > 1).map(|(a, _)| a);
    let side = |axis: &AxisMap| axis.axis().is_some_and(|a| a >= batch);
    let upwards = |axis: &AxisMap| !matches!(axis, AxisMap::Along { step, .. } if *step < 1) && !matches!(axis, AxisMap::Gather { .. });
    let unit = last.is_none_or(|a| side(a) && matches!(a, AxisMap::Along { step: 1, .. }));
    free[operand] <= 1 && contracted <= 1 && axes.iter().filter(|a| side(a)).all(upwards) && unit
}

/// [`ReadMode::InChunk`] if every block of every task lies inside one chunk of one source.
fn read_mode(plan: &Plan, stage: &Stage, i: usize, input: &StageInput) -> ReadMode {
    let (Some(axes), [source]) = (input.map.as_image(), input.sources.as_slice()) else { return ReadMode::Assembled };
    if matches!(stage.kernel, Kernel::User { .. }) || stage.kernel.carry() == Some(i) {
        return ReadMode::Assembled;
    }
    let whole_task = matches!(stage.kernel, Kernel::Map(_)) && stage.walk == stage.tasks;
    let grid = &plan.array(*source).info.grid;
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
        true if !(finer() && traffic::only_parts(plan, stage, input)) => ReadMode::InChunk,
        _ if traffic::only_parts(plan, stage, input) => ReadMode::Parts,
        _ => ReadMode::Assembled,
    }
}
