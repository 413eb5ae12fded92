//! How one task runs.
//!
//! A task goes through its stage's buffer schedule: it takes and gives back what the list says, and between that loads
//! blocks, folds or evaluates them, encodes and writes. It is the same function in a thread, in a process and elsewhere;
//! it needs nothing but the plan and storage, and uses one thread.

mod ahead;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use freestone_kernels::eval::{self, Machine};
use freestone_kernels::reduce::{self, Folded};
use freestone_kernels::{Buffer, DType, Generate, View, contiguous_strides, contract, copy};

use crate::flat::{flat_bounds, shared_rows};
use crate::grid::{ChunkGrid, Region, try_for_each_coord};
use crate::machine;
use crate::memory::{Arena, Overrun, SlotId, Step};
use crate::plan::{FinalizedPlan, Kernel, MAX_PARTS, Place, PlanError, ReadMode, Stage, StageId, StageLayout, from_hex};
use crate::readmap::{AxisMap, Origin, Piece, Run};
use crate::storage::codec::Contexts;
use crate::storage::reader::{ChunkAccess, ChunkError, Desk, Own, ShardCache};
use crate::storage::{ArrayInfo, ObjectPart, PART_BYTES, Pending, Store, Stores, join};
use crate::task::{Cause, FailureKind, Receipt, RunAddress, TaskFailure, TaskOutcome, TaskReport, TaskRequest, cause_of_chunk, cause_of_plan};
use crate::user::{AnyKernel, Block, BlockMut, KernelRegistry};

use ahead::Ahead;

/// What all tasks of a run share.
#[derive(Clone, Debug)]
pub struct RunContext {
    /// The plan.
    pub plan: Arc<FinalizedPlan>,
    /// Where the plan and the intermediates lie.
    pub address: RunAddress,
    /// Stores that are open.
    pub stores: Stores,
    /// Kernels of users that this program knows.
    pub kernels: Arc<KernelRegistry>,
    /// Set to stop between blocks.
    pub cancel: Cancel,
}

/// A wish to stop, shared by whoever holds a clone.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    own: Arc<AtomicBool>,
    parent: Option<Arc<AtomicBool>>,
}

impl Cancel {
    /// Asks everybody to stop.
    pub fn cancel(&self) {
        self.own.store(true, Ordering::Relaxed);
    }

    /// True once asked.
    pub fn is_cancelled(&self) -> bool {
        self.own.load(Ordering::Relaxed) || self.parent.as_ref().is_some_and(|p| p.load(Ordering::Relaxed))
    }

    /// One that is asked for itself, and whenever this one is.
    pub(crate) fn child(&self) -> Cancel {
        Cancel { own: Arc::default(), parent: Some(Arc::clone(&self.own)) }
    }
}

/// What ends a task early. Asked between chunks, blocks and slices: a kernel that runs is not interrupted.
#[derive(Clone, Copy, Debug)]
struct Limits<'a> {
    cancel: &'a Cancel,
    timeout: Option<(Instant, Duration)>,
}

impl Limits<'_> {
    fn check(&self) -> Result<(), Cause> {
        if self.cancel.is_cancelled() {
            return Err((FailureKind::Cancelled, "the run was cancelled".to_owned()));
        }
        match self.timeout {
            Some((start, limit)) if start.elapsed() > limit => {
                Err((FailureKind::TimedOut, format!("it took longer than the {} that task_timeout allows", humantime::format_duration(limit))))
            }
            _ => Ok(()),
        }
    }
}

/// Plans larger than this are not plans.
pub(crate) const MAX_PLAN_BYTES: u64 = 256_000_000;

impl RunContext {
    /// Finds out whether the kernels that the plan names are known here.
    ///
    /// # Errors
    /// Which is not, and what to do.
    pub fn check_kernels(&self) -> Result<(), String> {
        self.plan.plan().stages.iter().try_for_each(|s| self.kernel(s).map(|_| ()))
    }

    fn kernel(&self, stage: &Stage) -> Result<Option<Arc<dyn AnyKernel>>, String> {
        match &stage.kernel {
            Kernel::User { name, version, parameters, .. } => self.kernels.resolve(name, *version, parameters).map(Some),
            Kernel::Map(_) | Kernel::Reduce { .. } | Kernel::Scan { .. } | Kernel::Contract { .. } => Ok(None),
        }
    }
}

/// One worker: a thread's buffers and the stage that it has ready.
#[derive(Debug)]
pub struct Worker {
    context: RunContext,
    name: String,
    desk: Desk,
    ready: Option<Ready>,
}

/// A stage with its arrays opened and its expression assigned to registers.
#[derive(Debug)]
struct Ready {
    stage: StageId,
    /// In the order of the layout's.
    sources: Vec<Opened>,
    outputs: Vec<ChunkAccess>,
    computes: Computes,
}

/// An array that is read, and its decoded chunks that are at hand.
#[derive(Debug)]
struct Opened {
    source: Source,
    /// The least recently used first.
    chunks: Vec<(Vec<u64>, Buffer)>,
}

impl Opened {
    /// True if a chunk is at hand; then it is the last that was used.
    fn has(&mut self, coords: &[u64]) -> bool {
        let Some(at) = self.chunks.iter().position(|(c, _)| c == coords) else { return false };
        let found = self.chunks.remove(at);
        self.chunks.push(found);
        true
    }

    /// Lets chunks go, so that with one more at most `most` are at hand, but none of `pinned`.
    fn make_room(&mut self, most: usize, pinned: &[Vec<u64>], desk: &mut Desk) {
        while self.chunks.len() >= most.max(1)
            && let Some(oldest) = self.chunks.iter().position(|(c, _)| !pinned.contains(c))
        {
            desk.arena.recycle(self.chunks.remove(oldest).1);
        }
    }

    /// Decodes a chunk that is not at hand, the read of which may have begun.
    fn fetch(&mut self, coords: &[u64], begun: Option<Pending>, desk: &mut Desk) -> Result<(), ChunkError> {
        if let Some(block) = self.source.read(coords, begun, desk)? {
            self.chunks.push((coords.to_vec(), block));
        }
        Ok(())
    }

    /// The values of a chunk that was fetched, in C order over its stored shape.
    fn bytes(&self, coords: &[u64]) -> &[u8] {
        match &self.source {
            Source::Constant(values, _) => values.bytes(),
            _ => self.chunks.iter().rev().find(|(c, _)| c == coords).map_or(&[], |(_, block)| block.bytes()),
        }
    }

    /// True if parts of a chunk can be read, and it is not at hand as a whole.
    fn reads_parts(&self, coords: &[u64]) -> bool {
        matches!(&self.source, Source::Chunks(access, _) if access.is_in_parts()) && !self.chunks.iter().any(|(c, _)| c == coords)
    }

    fn read_parts(&self, coords: &[u64], parts: &[ObjectPart], into: &mut [u8], desk: &mut Desk) -> Result<bool, Cause> {
        match &self.source {
            Source::Chunks(access, _) => access.read_parts(coords, parts, into, desk).map_err(|e| cause_of_chunk(&e)),
            _ => Ok(false),
        }
    }

    fn clear(&mut self, desk: &mut Desk) {
        self.chunks.drain(..).for_each(|(_, block)| desk.arena.recycle(block));
    }
}

/// What computes.
#[derive(Debug)]
enum Computes {
    Machine(Machine),
    /// For each operand of a product.
    Operands(Box<[Machine; 2]>),
    User(Arc<dyn AnyKernel>),
}

#[derive(Debug)]
enum Source {
    Chunks(Box<ChunkAccess>, ShardCache),
    Constant(Buffer, ArrayInfo),
    Generated(Generate, ArrayInfo),
}

impl Source {
    fn info(&self) -> &ArrayInfo {
        match self {
            Source::Chunks(access, _) => access.info(),
            Source::Constant(_, info) | Source::Generated(_, info) => info,
        }
    }

    fn stored_shape(&self, coords: &[u64]) -> Vec<u64> {
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
struct Loaded {
    values: Values,
    /// Elements of the iteration space that it covers.
    cell: Region,
    offset: isize,
    strides: Vec<isize>,
}

/// Where a block's values are.
#[derive(Debug)]
enum Values {
    /// Put together.
    Own(Buffer),
    /// In a chunk of one of the stage's sources.
    Chunk { source: usize, coords: Vec<u64> },
}

/// One task on its way through the schedule.
struct Task<'a> {
    stage: &'a Stage,
    layout: &'a StageLayout,
    ready: &'a mut Ready,
    desk: &'a mut Desk,
    coords: Vec<u64>,
    region: Region,
    cell: Region,
    /// The output chunk or shard at hand: of a map, the same for all outputs.
    chunk: Vec<u64>,
    loaded: Vec<Option<Loaded>>,
    accumulators: Vec<Option<Buffer>>,
    blocks: Vec<Option<Buffer>>,
    receipts: Vec<Receipt>,
    ahead: Ahead,
}

/// The chunk of a source in which a block lies that is inside one.
fn chunk_under(axes: &[AxisMap], grid: &ChunkGrid) -> Vec<u64> {
    axes.iter().zip(grid.axes()).map(|(map, axis)| axis.find(map.at(0))).collect()
}

/// Along each of a source's axes, the chunks that hold what is wanted of a piece, and what of them.
fn hits(axes: &[AxisMap], grid: &ChunkGrid, to: &Region) -> Vec<Vec<(u64, Vec<Run>)>> {
    let length = |a: &AxisMap| a.axis().map_or(1, |d| to.shape[d]);
    axes.iter().zip(grid.axes()).map(|(a, grid)| a.hits(grid, length(a))).collect()
}

/// Visits the chunks of an array that share elements with a region of another of that `shape`, which has the same elements in C order.
fn flat_chunks<E>(grid: &ChunkGrid, region: &Region, shape: &[u64], mut visit: impl FnMut(&[u64]) -> Result<(), E>) -> Result<(), E> {
    if region.n_elements() == 0 {
        return Ok(());
    }
    let last: Vec<u64> = region.start.iter().zip(&region.shape).map(|(s, n)| s + n - 1).collect();
    let from = |index: &[u64]| index.iter().zip(shape).fold(0, |at, (i, n)| at * n + i);
    let touched = flat_bounds(&grid.shape(), from(&region.start), from(&last));
    try_for_each_coord(&grid.overlapping(&touched), |coords| {
        if shared_rows(&grid.region(coords), &grid.shape(), region, shape, |_, _, _| true) { visit(coords) } else { Ok(()) }
    })
}

/// True if reading parts of a chunk of `whole` bytes costs less than reading all of it: a part costs as much as so many bytes.
fn are_worth_it(parts: &[ObjectPart], whole: u64) -> bool {
    parts.iter().map(|p| p.len as u64 + PART_BYTES).sum::<u64>() < whole
}

fn sizes(shape: &[u64]) -> Vec<usize> {
    shape.iter().map(|n| *n as usize).collect()
}

fn overrun(e: Overrun) -> Cause {
    (FailureKind::Overrun, e.to_string())
}

impl Worker {
    /// A worker with nothing ready yet.
    pub fn new(context: RunContext, name: String) -> Worker {
        let desk = Desk { arena: Arena::new(0), contexts: Contexts::default(), traffic: Default::default() };
        Worker { context, name, desk, ready: None }
    }

    /// What it is called in outcomes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a request's tasks one after the other, until one fails.
    pub fn run(&mut self, request: &TaskRequest) -> TaskOutcome {
        let mut outcome = TaskOutcome { request: request.clone(), worker: self.name.clone(), done: Vec::new(), failure: None, worker_peak_bytes: None };
        for task in request.first..request.first.saturating_add(request.count) {
            match self.run_task(request, task) {
                Ok(report) => outcome.done.push(report),
                Err((kind, message)) => {
                    let stage = self.context.plan.plan().stages.get(request.stage.0).map(|s| s.name.clone()).unwrap_or_default();
                    outcome.failure = Some(TaskFailure { kind, message, stage, task });
                    // What the task held is gone with it; start from an empty desk.
                    self.rest();
                    break;
                }
            }
        }
        outcome
    }

    /// Gives everything back to the system: for a worker that has to wait.
    pub fn rest(&mut self) {
        self.ready = None;
        self.desk.arena = Arena::new(0);
        self.desk.contexts = Contexts::default();
    }

    fn run_task(&mut self, request: &TaskRequest, number: u64) -> Result<TaskReport, Cause> {
        let stage_id = request.stage;
        let (start, cpu) = (Instant::now(), machine::thread_cpu_ns());
        let plan = Arc::clone(&self.context.plan);
        let stage =
            plan.plan().stages.get(stage_id.0).filter(|s| number < s.n_tasks()).ok_or((FailureKind::Plan, "there is no such task in the plan".to_owned()))?;
        let layout = plan.layout(stage_id);
        if self.ready.as_ref().is_none_or(|r| r.stage != stage_id) {
            if let Some(before) = &mut self.ready {
                before.sources.iter_mut().for_each(|s| s.clear(&mut self.desk));
            }
            self.desk.arena.set_limit(layout.estimate.per_task());
            // Another stage's codecs are not in this one's projection.
            self.desk.contexts = Contexts::default();
            self.ready = Some(self.context.ready(stage_id)?);
        }
        let Some(ready) = self.ready.as_mut() else { return Err((FailureKind::Plan, "the stage is not ready".into())) };
        self.desk.traffic = Default::default();
        let coords = stage.task_coords(number);
        let region = stage.tasks.region(&coords);
        let mut task = Task {
            stage,
            layout,
            ready,
            desk: &mut self.desk,
            coords,
            cell: region.clone(),
            region,
            chunk: Vec::new(),
            loaded: stage.inputs.iter().map(|_| None).collect(),
            accumulators: stage.outputs.iter().map(|_| None).collect(),
            blocks: stage.outputs.iter().map(|_| None).collect(),
            receipts: Vec::new(),
            ahead: Ahead::default(),
        };
        task.run(Limits { cancel: &self.context.cancel, timeout: request.timeout_ms.map(|ms| (start, Duration::from_millis(ms))) })?;
        task.ahead.finish(task.desk);
        let receipts = task.receipts;
        Ok(TaskReport {
            task: number,
            receipts,
            traffic: self.desk.traffic,
            cpu_ns: machine::thread_cpu_ns().saturating_sub(cpu),
            wall_ns: start.elapsed().as_nanos() as u64,
            peak_bytes: self.desk.arena.highest(),
        })
    }
}

impl RunContext {
    fn ready(&self, stage_id: StageId) -> Result<Ready, Cause> {
        let plan = self.plan.plan();
        let stage = &plan.stages[stage_id.0];
        let storage = |e: crate::storage::StorageError| (crate::task::kind_of_storage(&e), e.to_string());
        let open = |id: crate::plan::ArrayId| -> Result<ChunkAccess, Cause> {
            let array = plan.array(id);
            let (store, path): (Arc<dyn Store>, String) = match &array.place {
                Place::Input { url, path, .. } | Place::Output { url, path } => (self.stores.open(url).map_err(storage)?, path.clone()),
                _ => (self.stores.open(&self.address.work_dir).map_err(storage)?, join(&self.address.folder, &array.name)),
            };
            let access = ChunkAccess::new(store, &path, &array.info).map_err(|error| cause_of_plan(&PlanError::Codec { array: array.name.clone(), error }))?;
            Ok(match &array.place {
                Place::Work => access.owned(Own { array: id.0, whole: true }),
                Place::Output { .. } => access.owned(Own { array: id.0, whole: false }),
                _ => access,
            })
        };
        let source = |id: &crate::plan::ArrayId| -> Result<Source, Cause> {
            let array = plan.array(*id);
            match &array.place {
                Place::Constant(hex) => {
                    let bytes = from_hex(hex).ok_or((FailureKind::Plan, format!("the values of `{}` are malformed", array.name)))?;
                    let mut values = Buffer::zeroed(bytes.len());
                    values.bytes_mut().copy_from_slice(&bytes);
                    Ok(Source::Constant(values, array.info.clone()))
                }
                Place::Generated(generate) => Ok(Source::Generated(generate.clone(), array.info.clone())),
                _ => open(*id).map(|access| Source::Chunks(Box::new(access), ShardCache::default())),
            }
        };
        Ok(Ready {
            stage: stage_id,
            sources: self
                .plan
                .layout(stage_id)
                .sources
                .iter()
                .map(|s| Ok(Opened { source: source(&s.array)?, chunks: Vec::new() }))
                .collect::<Result<_, Cause>>()?,
            outputs: stage.outputs.iter().map(|o| open(o.array)).collect::<Result<_, _>>()?,
            computes: match (self.kernel(stage).map_err(|e| (FailureKind::Plan, e))?, stage.kernel.expr()) {
                (Some(kernel), _) => Computes::User(kernel),
                (None, None) if let Kernel::Contract { operands, .. } = &stage.kernel => {
                    Computes::Operands(Box::new([Machine::new(&operands[0]), Machine::new(&operands[1])]))
                }
                (None, Some(expr)) => Computes::Machine(Machine::new(expr)),
                (None, None) => return Err((FailureKind::Plan, "a stage has nothing to compute".into())),
            },
        })
    }
}

impl Task<'_> {
    fn run(&mut self, limits: Limits<'_>) -> Result<(), Cause> {
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
    fn output_chunks(&self) -> Option<Region> {
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

    /// Brings the block of input `i` for the cell at hand.
    fn load(&mut self, i: usize) -> Result<(), Cause> {
        if let Kernel::User { blocks, .. } = &self.stage.kernel {
            self.cell = blocks[i].region(&self.coords);
        }
        if self.stage.kernel.carry() == Some(i) {
            return self.take_up(i);
        }
        let pieces = self.stage.inputs[i].map.restrict(&self.cell);
        let loaded = match (self.layout.inputs[i].mode, pieces.as_slice()) {
            (ReadMode::InChunk, [Piece { from: Origin::Source { axes, .. }, to }]) => self.look_into_chunk(i, axes, to)?,
            _ => self.assemble(i, &pieces)?,
        };
        self.loaded[i] = Some(loaded);
        Ok(())
    }

    /// A buffer for what a slot holds now.
    fn room(&mut self, slot: Option<SlotId>, bytes: u64) -> Result<Buffer, Cause> {
        let bound = slot.map_or(0, |slot| self.layout.schedule.slots[slot.0].bytes);
        self.desk.arena.buffer_in(bound, bytes).map_err(overrun)
    }

    /// Goes on from what a scan had when it came to this task.
    fn take_up(&mut self, i: usize) -> Result<(), Cause> {
        let (at, coords) = (self.layout.inputs[i].sources[0], self.coords.clone());
        self.fetch(at, &coords)?;
        if let Some(carries) = &mut self.accumulators[0] {
            carries.bytes_mut().copy_from_slice(self.ready.sources[at].bytes(&coords));
        }
        self.pass(at);
        Ok(())
    }

    /// The cell lies inside one chunk: decode it and look at it with strides.
    fn look_into_chunk(&mut self, i: usize, axes: &[AxisMap], to: &Region) -> Result<Loaded, Cause> {
        let at = self.layout.inputs[i].sources[0];
        let source = &self.ready.sources[at].source;
        let grid = &source.info().grid;
        let coords = chunk_under(axes, grid);
        let starts: Vec<u64> = coords.iter().zip(grid.axes()).map(|(c, axis)| axis.start(*c)).collect();
        let stored = contiguous_strides(&sizes(&source.stored_shape(&coords)));
        let (mut offset, mut strides) = (0isize, vec![0isize; to.shape.len()]);
        for ((map, start), stride) in axes.iter().zip(&starts).zip(&stored) {
            match map {
                AxisMap::Along { axis, start: first, step } => {
                    offset += (*first as i64 - *start as i64) as isize * stride;
                    strides[*axis] += *step as isize * stride;
                }
                AxisMap::Fixed(x) => offset += (x - start) as isize * stride,
                AxisMap::Gather { .. } => return Err((FailureKind::Plan, "a list of indices cannot be looked at in place".into())),
            }
        }
        self.fetch(at, &coords)?;
        Ok(Loaded { values: Values::Chunk { source: at, coords }, cell: self.cell.clone(), offset, strides })
    }

    /// Has a chunk of source `at` at hand.
    fn fetch(&mut self, at: usize, coords: &[u64]) -> Result<(), Cause> {
        if self.ready.sources[at].has(coords) {
            return Ok(());
        }
        let looked_at = |l: &Loaded| match &l.values {
            Values::Chunk { source, coords } if *source == at => Some(coords.clone()),
            _ => None,
        };
        let pinned: Vec<Vec<u64>> = self.loaded.iter().flatten().filter_map(looked_at).collect();
        self.ready.sources[at].make_room(self.layout.sources[at].chunks, &pinned, self.desk);
        let begun = self.take_ahead(at, coords);
        self.ready.sources[at].fetch(coords, begun, self.desk).map_err(|e| cause_of_chunk(&e))
    }

    /// The cell touches several chunks, or is partly fill values: put it together in a buffer.
    fn assemble(&mut self, i: usize, pieces: &[Piece]) -> Result<Loaded, Cause> {
        let varies = &self.layout.inputs[i].varies;
        let shape: Vec<usize> = self.cell.shape.iter().zip(varies).map(|(n, v)| if *v { *n as usize } else { 1 }).collect();
        let strides: Vec<isize> = contiguous_strides(&shape).into_iter().zip(varies).map(|(s, v)| if *v { s } else { 0 }).collect();
        let size = self.stage.kernel.inputs()[i].size();
        let bytes = shape.iter().product::<usize>() * size;
        // What is written as it is has room for what fills up an edge chunk.
        let stored = if self.layout.as_is { self.ready.outputs[0].object_shape(&self.chunk).iter().product::<u64>() * size as u64 } else { 0 };
        let mut region = self.room(self.layout.inputs[i].region, stored.max(bytes as u64))?;
        for piece in pieces {
            let at = |start: &[u64]| start.iter().zip(&strides).map(|(s, stride)| *s as isize * stride).sum::<isize>();
            let extent = |to: &[u64]| -> Vec<usize> { to.iter().zip(varies).map(|(n, v)| if *v { *n as usize } else { 1 }).collect() };
            let sources = &self.layout.inputs[i].sources;
            match &piece.from {
                Origin::Fill(value) => copy::fill_box(value, &extent(&piece.to.shape), region.bytes_mut(), at(&piece.to.start) as usize, &strides),
                Origin::Flat => self.copy_flat(i, region.bytes_mut())?,
                Origin::Source { source, axes } => {
                    let which = sources[*source];
                    let info = self.ready.sources[which].source.info();
                    let (grid, dtype) = (info.grid.clone(), info.dtype);
                    // Along each of the source's axes, the chunks that hold what is wanted; each is decoded once.
                    let hits = hits(axes, &grid, &piece.to);
                    let counts: Vec<u64> = hits.iter().map(|h| h.len() as u64).collect();
                    try_for_each_coord(&Region::whole(&counts), |hit| {
                        let (coords, runs): (Vec<u64>, Vec<&[Run]>) =
                            hits.iter().zip(hit).map(|(h, i)| (h[*i as usize].0, h[*i as usize].1.as_slice())).unzip();
                        let chunk = grid.region(&coords);
                        let stored = contiguous_strides(&sizes(&self.ready.sources[which].source.stored_shape(&coords)));
                        let counts: Vec<u64> = runs.iter().map(|r| r.len() as u64).collect();
                        // Each box of the chunk, and where it goes.
                        let boxes = |f: &mut dyn FnMut(usize, Vec<isize>, Vec<usize>, usize)| {
                            let _: Result<(), ()> = try_for_each_coord(&Region::whole(&counts), |one| {
                                let (mut target, mut count) = (piece.to.start.clone(), piece.to.shape.clone());
                                let (mut offset, mut from) = (0isize, vec![0isize; target.len()]);
                                for (s, map) in axes.iter().enumerate() {
                                    let run = runs[s][one[s] as usize];
                                    offset += (run.start - chunk.start[s]) as isize * stored[s];
                                    if let Some(axis) = map.axis() {
                                        (target[axis], count[axis]) = (piece.to.start[axis] + run.first, run.count);
                                        from[axis] += run.step as isize * stored[s];
                                    }
                                }
                                f(offset as usize, from, extent(&count), at(&target) as usize);
                                Ok(())
                            });
                        };
                        if self.ready.sources[which].reads_parts(&coords) {
                            let mut parts = Some(Vec::new());
                            boxes(&mut |offset, from, shape, to| {
                                let more = copy::runs(&shape, &from, &strides, MAX_PARTS as usize);
                                parts = parts.take().zip(more).map(|(mut parts, more)| {
                                    parts.extend(more.into_iter().map(|(a, b, n)| ObjectPart {
                                        offset: ((offset as isize + a) as usize * size) as u64,
                                        place: (to as isize + b) as usize * size,
                                        len: n * size,
                                    }));
                                    parts
                                });
                            });
                            let whole = (stored.first().map_or(1, |s| *s as u64) * chunk.shape.first().copied().unwrap_or(1)) * size as u64;
                            let only = self.layout.inputs[i].mode == ReadMode::Parts;
                            match parts {
                                Some(parts) if only || are_worth_it(&parts, whole) => {
                                    if !self.ready.sources[which].read_parts(&coords, &parts, region.bytes_mut(), self.desk)? {
                                        let fill = self.ready.sources[which].source.info().fill;
                                        boxes(&mut |_, _, shape, to| copy::fill_box(&fill, &shape, region.bytes_mut(), to, &strides));
                                    }
                                    return Ok(());
                                }
                                None if only => return Err((FailureKind::Plan, "a block has too many parts to be read one by one".into())),
                                _ => {}
                            }
                        }
                        self.fetch(which, &coords)?;
                        let opened = &self.ready.sources[which];
                        boxes(&mut |offset, from, shape, to| {
                            let view = View { dtype, bytes: opened.bytes(&coords), offset, shape, strides: from };
                            copy::strided(&view, region.bytes_mut(), to, &strides);
                        });
                        Ok::<(), Cause>(())
                    })?;
                    self.pass(which);
                }
            }
        }
        Ok(Loaded { values: Values::Own(region), cell: self.cell.clone(), offset: 0, strides })
    }

    /// Lets go of a chunk that was only passing, before another array's comes.
    fn pass(&mut self, at: usize) {
        if self.layout.sources[at].slot.is_none() {
            self.ready.sources[at].clear(self.desk);
        }
    }

    /// Copies the elements of the cell at hand from a source of another shape with the same elements in C order.
    ///
    /// Chunk by chunk: the chunk's rows are intervals of the common order, and so are the cell's; what they share is copied.
    fn copy_flat(&mut self, i: usize, out: &mut [u8]) -> Result<(), Cause> {
        let (region, shape, which) = (self.cell.clone(), self.stage.inputs[i].map.shape(), self.layout.inputs[i].sources[0]);
        let info = self.ready.sources[which].source.info();
        let (size, grid) = (info.dtype.size(), info.grid.clone());
        flat_chunks(&grid, &region, shape, |coords| {
            let chunk = grid.region(coords);
            self.fetch(which, coords)?;
            let opened = &self.ready.sources[which];
            let strides = contiguous_strides(&sizes(&opened.source.stored_shape(coords)));
            let bytes = opened.bytes(coords);
            shared_rows(&chunk, &grid.shape(), &region, shape, |within, to, n| {
                let at: isize = within.iter().zip(&strides).map(|(i, s)| *i as isize * s).sum();
                let (from, to, n) = (at as usize * size, to as usize * size, n as usize * size);
                out[to..to + n].copy_from_slice(&bytes[from..from + n]);
                false
            });
            Ok::<(), Cause>(())
        })?;
        self.pass(which);
        Ok(())
    }

    fn fold(&mut self) {
        let Kernel::Reduce { expr, folds, axes, parts } = &self.stage.kernel else { return };
        let views = views(expr.inputs(), &self.loaded, &self.ready.sources, &self.cell);
        // Accumulators lie in C order over the kept axes of the task.
        let kept: Vec<usize> = self.region.shape.iter().enumerate().map(|(d, n)| if axes.contains(&d) { 1 } else { *n as usize }).collect();
        let strides: Vec<isize> = contiguous_strides(&kept).into_iter().enumerate().map(|(d, s)| if axes.contains(&d) { 0 } else { s }).collect();
        let offset = (0..kept.len()).map(|d| (self.cell.start[d] - self.region.start[d]) as isize * strides[d]).sum::<isize>();
        let folded: Vec<Folded> = folds.iter().map(|f| Folded { op: f.op, values: f.values }).collect();
        // Blocks come in C order: along the reduced axes, what lies before this one is folded already.
        let seen = match parts {
            None => self.seen_before(axes, &|d, start, len| (start, len, self.cell.start[d], self.cell.shape[d])),
            Some(parts) => self.seen_before(axes, &|d, first, len| {
                let part = &parts[axes.iter().position(|a| *a == d).unwrap_or(0)];
                let at = |i: u64| part.start(i);
                (at(first), at(first + len) - at(first), at(self.cell.start[d]), part.extent(self.cell.start[d]))
            }),
        };
        let merge = parts.as_ref().map(|parts| axes.iter().zip(parts).map(|(a, part)| part.extent(self.cell.start[*a])).product());
        // `argmin` and `argmax` count in C order along the reduced axes.
        let space = self.stage.tasks.shape();
        let mut weights = vec![0isize; space.len()];
        let mut weight = 1;
        for d in axes.iter().rev() {
            weights[*d] = weight;
            weight *= space[*d] as isize;
        }
        let first = (0..space.len()).map(|d| self.cell.start[d] * weights[d] as u64).sum();
        let fold = reduce::Fold { folds: &folded, offset: offset as usize, strides: &strides, seen, merge, index: (first, &weights) };
        let mut accumulators: Vec<&mut [u8]> = self.accumulators.iter_mut().flatten().map(Buffer::bytes_mut).collect();
        let Computes::Machine(machine) = &mut self.ready.computes else { return };
        reduce::fold(machine, &sizes(&self.cell.shape), &views, &fold, &mut accumulators);
    }

    /// Adds the product of the loaded operands to the accumulators.
    fn multiply(&mut self) -> Result<(), Cause> {
        let Kernel::Contract { operands, batch, free } = &self.stage.kernel else { return Ok(()) };
        let (batch, kept) = (*batch, batch + free[0] + free[1]);
        let count = |axes: std::ops::Range<usize>| self.cell.shape[axes].iter().product::<u64>() as usize;
        let (batches, k) = (count(0..batch), count(kept..self.cell.shape.len()));
        let mut packs: [Option<Buffer>; 2] = [None, None];
        let mut sides: Vec<(Vec<usize>, Vec<View<'_>>)> = Vec::with_capacity(2);
        let mut first = 0;
        // The axes of each operand, and its inputs as seen along these.
        for (o, expr) in operands.iter().enumerate() {
            let skip = if o == 0 { batch + free[0]..kept } else { batch..batch + free[0] };
            let axes: Vec<usize> = (0..self.cell.shape.len()).filter(|d| !skip.contains(d)).collect();
            let last = first + expr.inputs().len();
            let mut views = views(expr.inputs(), &self.loaded[first..last], &self.ready.sources, &self.cell);
            for view in &mut views {
                view.shape = axes.iter().map(|d| view.shape[*d]).collect();
                view.strides = axes.iter().map(|d| view.strides[*d]).collect();
            }
            if self.layout.packed[o].is_some() {
                let shape: Vec<usize> = axes.iter().map(|d| self.cell.shape[*d] as usize).collect();
                let size = expr.result_dtypes().first().map_or(1, |d| d.size());
                let mut pack = self.desk.arena.buffer((shape.iter().product::<usize>() * size) as u64).map_err(overrun)?;
                if let Computes::Operands(machines) = &mut self.ready.computes {
                    eval::map(&mut machines[o], &shape, &views, &mut [pack.bytes_mut()]);
                }
                packs[o] = Some(pack);
            }
            sides.push((axes, views));
            first = last;
        }
        let Some(out) = &mut self.accumulators[0] else { return Ok(()) };
        let dtype = self.ready.outputs[0].info().dtype;
        let rows = [count(batch..batch + free[0]), count(batch + free[0]..kept)];
        let each = rows[0] * rows[1] * dtype.size();
        for b in 0..batches {
            let mut matrices = Vec::with_capacity(2);
            for (o, (axes, views)) in sides.iter().enumerate() {
                let matrix = match (&packs[o], views.first()) {
                    (Some(pack), _) => View { dtype, bytes: pack.bytes(), offset: b * rows[o] * k, shape: vec![rows[o], k], strides: vec![k as isize, 1] },
                    (None, Some(view)) => {
                        let mut rest = b;
                        let mut offset = view.offset as isize;
                        for d in (0..batch).rev() {
                            offset += (rest % view.shape[d]) as isize * view.strides[d];
                            rest /= view.shape[d];
                        }
                        // Each side is one axis, or several that lie as one.
                        let side = |of: std::ops::Range<usize>| of.rev().find(|d| view.shape[*d] > 1).map_or(0, |d| view.strides[d]);
                        let free_end = batch + free[o];
                        let (r, c) = (side(batch..free_end), side(free_end..axes.len()));
                        let strides = match (r, c) {
                            (0, 0) => vec![k as isize, 1],
                            (0, 1) => vec![k as isize, 1],
                            (0, c) => vec![1, c],
                            (r, 0) => vec![r, if r == 1 { rows[o] as isize } else { 1 }],
                            both => vec![both.0, both.1],
                        };
                        View { dtype, bytes: view.bytes, offset: offset as usize, shape: vec![rows[o], k], strides }
                    }
                    (None, None) => return Err((FailureKind::Plan, "an operand has no input".into())),
                };
                if !contract::is_direct(&matrix) {
                    return Err((FailureKind::Plan, "an operand does not lie as a matrix".into()));
                }
                matrices.push(matrix);
            }
            contract::add_product(&matrices[0], &matrices[1], &mut out.bytes_mut()[b * each..(b + 1) * each]);
        }
        drop(sides);
        packs.into_iter().flatten().for_each(|p| self.desk.arena.recycle(p));
        Ok(())
    }

    /// Elements that the accumulators of the block at hand hold already. `of` gives, for a reduced axis and the task's first element and
    /// length along it, the elements' first and number for the task, and for the block.
    fn seen_before(&self, axes: &[usize], of: &dyn Fn(usize, u64, u64) -> (u64, u64, u64, u64)) -> u64 {
        let along: Vec<(u64, u64, u64, u64)> = axes.iter().map(|d| of(*d, self.region.start[*d], self.region.shape[*d])).collect();
        let product = |some: &[(u64, u64, u64, u64)], f: fn(&(u64, u64, u64, u64)) -> u64| some.iter().map(f).product::<u64>();
        (0..along.len()).map(|k| product(&along[..k], |a| a.3) * (along[k].2 - along[k].0) * product(&along[k + 1..], |a| a.1)).sum()
    }

    /// Has output blocks for the chunk at hand, with what fills up an edge chunk.
    fn begin(&mut self) -> Result<(), Cause> {
        for (j, output) in self.ready.outputs.iter().enumerate() {
            let stored: u64 = output.object_shape(&self.chunk).iter().product();
            let bytes = stored * output.info().dtype.size() as u64;
            let bound = self.layout.outputs[j].block.map_or(0, |slot| self.layout.schedule.slots[slot.0].bytes);
            self.blocks[j] = Some(self.desk.arena.buffer_in(bound, bytes).map_err(overrun)?);
        }
        Ok(())
    }

    /// Evaluates a slice of the output chunk at hand; after the last one the chunk is spread over its stored shape.
    fn apply_slice(&mut self) {
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
    fn apply(&mut self) -> Result<(), Cause> {
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
                let applied = catch_unwind(AssertUnwindSafe(|| kernel.apply(&inputs, &mut output, &mut scratch.bytes_mut()[..*scratch_bytes as usize])));
                let applied = applied.unwrap_or_else(|_| Err("it panicked".into()));
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
            (Computes::User(_) | Computes::Operands(_), _) => return Err((FailureKind::Plan, "a stage's kernel is not its own".into())),
        }
        for (j, (mut block, output)) in blocks.into_iter().zip(&self.ready.outputs).enumerate() {
            pad(&mut block, &shape, output, &self.chunk);
            self.blocks[j] = Some(block);
        }
        Ok(())
    }

    /// Turns accumulator `j` into its output block.
    fn finish(&mut self, j: usize) -> Result<(), Cause> {
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

    fn store(&mut self, j: usize) -> Result<(), Cause> {
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

/// The loaded blocks as seen from a part of the iteration space.
fn views<'a>(dtypes: &[DType], loaded: &'a [Option<Loaded>], sources: &'a [Opened], part: &Region) -> Vec<View<'a>> {
    loaded
        .iter()
        .zip(dtypes)
        .filter_map(|(loaded, dtype)| {
            let loaded = loaded.as_ref()?;
            let shift: isize = (0..part.start.len()).map(|d| (part.start[d] - loaded.cell.start[d]) as isize * loaded.strides[d]).sum();
            let bytes = match &loaded.values {
                Values::Own(block) => block.bytes(),
                Values::Chunk { source, coords } => sources[*source].bytes(coords),
            };
            Some(View { dtype: *dtype, bytes, offset: (loaded.offset + shift) as usize, shape: sizes(&part.shape), strides: loaded.strides.clone() })
        })
        .collect()
}
