//! How one task runs.
//!
//! A task goes through its stage's buffer schedule: it takes and gives back what the list says, and between that loads
//! blocks, folds or evaluates them, encodes and writes. It is the same function in a thread, in a process and elsewhere;
//! it needs nothing but the plan and storage, and uses one thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use freestone_kernels::eval::{self, Machine};
use freestone_kernels::reduce::{self, Folded};
use freestone_kernels::{Buffer, DType, Generate, View, contiguous_strides, copy};

use crate::flat::{flat_bounds, shared_rows};
use crate::grid::{Region, try_for_each_coord};
use crate::machine;
use crate::memory::{Arena, Overrun, SlotId, Step};
use crate::plan::{FinalizedPlan, Kernel, Place, ReadMode, Stage, StageId, StageLayout, from_hex};
use crate::readmap::{AxisMap, Origin, Piece, Run};
use crate::storage::codec::Contexts;
use crate::storage::reader::{ChunkAccess, ChunkError, Desk, ShardCache};
use crate::storage::{ArrayInfo, Store, Stores, join, read_small};
use crate::task::{Cause, FailureKind, Receipt, RunAddress, TaskFailure, TaskOutcome, TaskReport, TaskRequest, cause_of_chunk, cause_of_plan};
use crate::user::{AnyKernel, Block, BlockMut, KernelRegistry};

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
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks everybody to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// True once asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Plans larger than this are not plans.
const MAX_PLAN_BYTES: u64 = 256_000_000;

impl RunContext {
    /// Fetches a plan from its address and checks it: how a worker in another process begins.
    ///
    /// # Errors
    /// Where it is not there, or not one, or needs a kernel that is not known here.
    pub fn fetch(address: RunAddress, kernels: &KernelRegistry) -> Result<RunContext, String> {
        let stores = Stores::default();
        let store = stores.open(&address.work_dir).map_err(|e| e.to_string())?;
        let key = format!("{}/plan.json", address.folder);
        let bytes =
            read_small(&*store, &key, MAX_PLAN_BYTES).map_err(|e| e.to_string())?.ok_or_else(|| format!("there is no plan at {}", store.place(&key)))?;
        let plan = FinalizedPlan::from_bytes(&bytes).map_err(|e| e.to_string())?;
        let context = RunContext { plan: Arc::new(plan), address, stores, kernels: Arc::new(kernels.clone()), cancel: Cancel::default() };
        context.check_kernels()?;
        Ok(context)
    }
}

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
            Kernel::Map(_) | Kernel::Reduce { .. } => Ok(None),
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
    inputs: Vec<Vec<Source>>,
    outputs: Vec<ChunkAccess>,
    computes: Computes,
}

/// What computes.
#[derive(Debug)]
enum Computes {
    Machine(Machine),
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
    fn read(&mut self, coords: &[u64], desk: &mut Desk) -> Result<Option<Buffer>, ChunkError> {
        match self {
            Source::Chunks(access, cache) => access.read(coords, desk, cache).map(Some),
            Source::Constant(..) => Ok(None),
            Source::Generated(generate, info) => {
                let region = info.grid.region(coords);
                let mut block = desk.arena.buffer(region.n_elements() * info.dtype.size() as u64)?;
                generate.fill(info.dtype, &info.shape(), &region.start, &sizes(&region.shape), block.bytes_mut());
                Ok(Some(block))
            }
        }
    }

    fn bytes<'a>(&'a self, block: &'a Option<Buffer>) -> &'a [u8] {
        match (self, block) {
            (Source::Constant(values, _), _) => values.bytes(),
            (_, Some(block)) => block.bytes(),
            _ => &[],
        }
    }
}

/// A block of an input that was brought in, and how the iteration space lies on it.
#[derive(Debug)]
struct Loaded {
    block: Option<Buffer>,
    /// Elements of the iteration space that it covers.
    cell: Region,
    offset: isize,
    strides: Vec<isize>,
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

    /// Runs a request's tasks one after the other, until one fails.
    pub fn run(&mut self, request: &TaskRequest) -> TaskOutcome {
        let mut outcome = TaskOutcome { request: request.clone(), worker: self.name.clone(), done: Vec::new(), failure: None, worker_peak_bytes: None };
        for task in request.first..request.first.saturating_add(request.count) {
            match self.run_task(request.stage, task) {
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

    fn run_task(&mut self, stage_id: StageId, number: u64) -> Result<TaskReport, Cause> {
        let (start, cpu) = (Instant::now(), machine::thread_cpu_ns());
        let plan = Arc::clone(&self.context.plan);
        let stage =
            plan.plan().stages.get(stage_id.0).filter(|s| number < s.n_tasks()).ok_or((FailureKind::Plan, "there is no such task in the plan".to_owned()))?;
        let layout = plan.layout(stage_id);
        if self.ready.as_ref().is_none_or(|r| r.stage != stage_id) {
            self.desk.arena.set_limit(layout.estimate.per_task());
            // Another stage's codecs are not in this one's projection.
            self.desk.contexts = Contexts::default();
            self.ready = Some(self.context.ready(stage_id)?);
        }
        let Some(ready) = self.ready.as_mut() else { return Err((FailureKind::Plan, "the stage is not ready".into())) };
        self.desk.traffic = Default::default();
        let coords = stage.tasks.coords(number);
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
        };
        task.run(&self.context.cancel)?;
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
            ChunkAccess::new(store, &path, &array.info).map_err(|error| cause_of_plan(&crate::plan::PlanError::Codec { array: array.name.clone(), error }))
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
            inputs: stage.inputs.iter().map(|i| i.sources.iter().map(source).collect()).collect::<Result<_, _>>()?,
            outputs: stage.outputs.iter().map(|o| open(o.array)).collect::<Result<_, _>>()?,
            computes: match (self.kernel(stage).map_err(|e| (FailureKind::Plan, e))?, stage.kernel.expr()) {
                (Some(kernel), _) => Computes::User(kernel),
                (None, Some(expr)) => Computes::Machine(Machine::new(expr)),
                (None, None) => return Err((FailureKind::Plan, "a stage has nothing to compute".into())),
            },
        })
    }
}

impl Task<'_> {
    fn run(&mut self, cancel: &Cancel) -> Result<(), Cause> {
        let schedule = &self.layout.schedule;
        let check = || if cancel.is_cancelled() { Err((FailureKind::Cancelled, "the run was cancelled".to_owned())) } else { Ok(()) };
        check()?;
        let chunks = match &self.stage.kernel {
            Kernel::Map(_) | Kernel::User { .. } => self.ready.outputs.first().map(|o| o.objects().overlapping(&self.region)),
            Kernel::Reduce { .. } => None,
        };
        if let Some(chunks) = &chunks {
            self.chunk.clone_from(&chunks.start);
        }
        self.steps(&schedule.once)?;
        if matches!(self.stage.kernel, Kernel::Reduce { .. }) {
            let (walk, region) = (&self.stage.walk, self.region.clone());
            try_for_each_coord(&walk.overlapping(&region), |at| {
                check()?;
                if let Some(cell) = walk.region(at).intersect(&region) {
                    self.cell = cell;
                    self.steps(&schedule.each_block)?;
                }
                Ok(())
            })?;
        }
        self.steps(&schedule.after)?;
        match chunks {
            Some(chunks) => try_for_each_coord(&chunks, |at| {
                check()?;
                self.chunk = at.to_vec();
                self.steps(&schedule.each_chunk)
            })?,
            None => self.steps(&schedule.each_chunk)?,
        }
        self.steps(&schedule.end)
    }

    fn steps(&mut self, steps: &[Step]) -> Result<(), Cause> {
        for step in steps {
            match *step {
                Step::Take(slot) => self.take(slot)?,
                Step::Release(slot) => self.release(slot),
                Step::Load(i) => self.load(i)?,
                Step::Fold => self.fold(),
                Step::Apply => self.apply()?,
                Step::Finish(j) => self.finish(j)?,
                Step::Store(j) => self.store(j)?,
            }
        }
        Ok(())
    }

    fn take(&mut self, slot: SlotId) -> Result<(), Cause> {
        self.desk.arena.take(self.layout.schedule.slots[slot.0].bytes).map_err(overrun)?;
        let Kernel::Reduce { folds, axes, .. } = &self.stage.kernel else { return Ok(()) };
        if let Some(j) = self.layout.outputs.iter().position(|o| o.accumulator == Some(slot)) {
            let dtype = folds[j].accumulator();
            let elements: u64 = (0..self.region.shape.len()).filter(|d| !axes.contains(d)).map(|d| self.region.shape[d]).product();
            let mut buffer = self.desk.arena.buffer(elements * dtype.size() as u64).map_err(overrun)?;
            folds[j].op.start(folds[j].values, buffer.bytes_mut());
            self.accumulators[j] = Some(buffer);
        }
        Ok(())
    }

    fn release(&mut self, slot: SlotId) {
        for (input, loaded) in self.layout.inputs.iter().zip(&mut self.loaded) {
            if input.region.unwrap_or(input.chunk) == slot
                && let Some(block) = loaded.take().and_then(|l| l.block)
            {
                self.desk.arena.recycle(block);
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
        let pieces = self.stage.inputs[i].map.restrict(&self.cell);
        let loaded = match (self.layout.inputs[i].mode, pieces.as_slice()) {
            (ReadMode::InChunk, [Piece { from: Origin::Source { axes, .. }, to }]) => self.look_into_chunk(i, axes, to)?,
            _ => self.assemble(i, &pieces)?,
        };
        self.loaded[i] = Some(loaded);
        Ok(())
    }

    /// The cell lies inside one chunk: decode it and look at it with strides.
    fn look_into_chunk(&mut self, i: usize, axes: &[AxisMap], to: &Region) -> Result<Loaded, Cause> {
        let source = &mut self.ready.inputs[i][0];
        let grid = &source.info().grid;
        let coords: Vec<u64> = axes.iter().zip(grid.axes()).map(|(map, axis)| axis.find(map.at(0))).collect();
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
        let block = source.read(&coords, self.desk).map_err(|e| cause_of_chunk(&e))?;
        Ok(Loaded { block, cell: self.cell.clone(), offset, strides })
    }

    /// The cell touches several chunks, or is partly fill values: put it together in a buffer.
    fn assemble(&mut self, i: usize, pieces: &[Piece]) -> Result<Loaded, Cause> {
        let varies = &self.layout.inputs[i].varies;
        let shape: Vec<usize> = self.cell.shape.iter().zip(varies).map(|(n, v)| if *v { *n as usize } else { 1 }).collect();
        let strides: Vec<isize> = contiguous_strides(&shape).into_iter().zip(varies).map(|(s, v)| if *v { s } else { 0 }).collect();
        let size = self.stage.kernel.inputs()[i].size();
        let bytes = shape.iter().product::<usize>() * size;
        let mut region = self.desk.arena.buffer(bytes as u64).map_err(overrun)?;
        let desk = &mut *self.desk;
        for piece in pieces {
            let at = |start: &[u64]| start.iter().zip(&strides).map(|(s, stride)| *s as isize * stride).sum::<isize>();
            let extent = |to: &[u64]| -> Vec<usize> { to.iter().zip(varies).map(|(n, v)| if *v { *n as usize } else { 1 }).collect() };
            match &piece.from {
                Origin::Fill(value) => copy::fill_box(value, &extent(&piece.to.shape), region.bytes_mut(), at(&piece.to.start) as usize, &strides),
                Origin::Flat => copy_flat(&self.cell, self.stage.inputs[i].map.shape(), &mut self.ready.inputs[i][0], desk, region.bytes_mut())?,
                Origin::Source { source, axes } => {
                    let source = &mut self.ready.inputs[i][*source];
                    let grid = source.info().grid.clone();
                    // Along each of the source's axes, the chunks that hold what is wanted; each is decoded once.
                    let length = |a: &AxisMap| a.axis().map_or(1, |d| piece.to.shape[d]);
                    let hits: Vec<Vec<(u64, Vec<Run>)>> = axes.iter().zip(grid.axes()).map(|(a, grid)| a.hits(grid, length(a))).collect();
                    let counts: Vec<u64> = hits.iter().map(|h| h.len() as u64).collect();
                    try_for_each_coord(&Region::whole(&counts), |hit| {
                        let (coords, runs): (Vec<u64>, Vec<&[Run]>) =
                            hits.iter().zip(hit).map(|(h, i)| (h[*i as usize].0, h[*i as usize].1.as_slice())).unzip();
                        let chunk = grid.region(&coords);
                        let stored = contiguous_strides(&sizes(&source.stored_shape(&coords)));
                        let block = source.read(&coords, desk).map_err(|e| cause_of_chunk(&e))?;
                        let counts: Vec<u64> = runs.iter().map(|r| r.len() as u64).collect();
                        let _: Result<(), ()> = try_for_each_coord(&Region::whole(&counts), |which| {
                            let (mut target, mut count) = (piece.to.start.clone(), piece.to.shape.clone());
                            let (mut offset, mut from) = (0isize, vec![0isize; target.len()]);
                            for (s, map) in axes.iter().enumerate() {
                                let run = runs[s][which[s] as usize];
                                offset += (run.start - chunk.start[s]) as isize * stored[s];
                                if let Some(axis) = map.axis() {
                                    (target[axis], count[axis]) = (piece.to.start[axis] + run.first, run.count);
                                    from[axis] += run.step as isize * stored[s];
                                }
                            }
                            let view =
                                View { dtype: source.info().dtype, bytes: source.bytes(&block), offset: offset as usize, shape: extent(&count), strides: from };
                            copy::strided(&view, region.bytes_mut(), at(&target) as usize, &strides);
                            Ok(())
                        });
                        block.into_iter().for_each(|b| desk.arena.recycle(b));
                        Ok::<(), Cause>(())
                    })?;
                }
            }
        }
        Ok(Loaded { block: Some(region), cell: self.cell.clone(), offset: 0, strides })
    }

    fn fold(&mut self) {
        let Kernel::Reduce { expr, folds, axes, parts } = &self.stage.kernel else { return };
        let views = views(expr.inputs(), &self.loaded, &self.ready.inputs, &self.cell);
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

    /// Elements that the accumulators of the block at hand hold already. `of` gives, for a reduced axis and the task's first element and
    /// length along it, the elements' first and number for the task, and for the block.
    fn seen_before(&self, axes: &[usize], of: &dyn Fn(usize, u64, u64) -> (u64, u64, u64, u64)) -> u64 {
        let along: Vec<(u64, u64, u64, u64)> = axes.iter().map(|d| of(*d, self.region.start[*d], self.region.shape[*d])).collect();
        let product = |some: &[(u64, u64, u64, u64)], f: fn(&(u64, u64, u64, u64)) -> u64| some.iter().map(f).product::<u64>();
        (0..along.len()).map(|k| product(&along[..k], |a| a.3) * (along[k].2 - along[k].0) * product(&along[k + 1..], |a| a.1)).sum()
    }

    /// Evaluates the output chunk at hand.
    fn apply(&mut self) -> Result<(), Cause> {
        let Some(first) = self.ready.outputs.first() else { return Ok(()) };
        let region = first.objects().region(&self.chunk);
        let shape = sizes(&region.shape);
        let n: usize = shape.iter().product();
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for output in &self.ready.outputs {
            let stored: u64 = output.object_shape(&self.chunk).iter().product();
            blocks.push(self.desk.arena.buffer(stored * output.info().dtype.size() as u64).map_err(overrun)?);
        }
        let mut fronts: Vec<&mut [u8]> = blocks.iter_mut().zip(&self.ready.outputs).map(|(b, o)| &mut b.bytes_mut()[..n * o.info().dtype.size()]).collect();
        match (&mut self.ready.computes, &self.stage.kernel) {
            (Computes::User(kernel), Kernel::User { name, scratch_bytes, dtype, .. }) => {
                let mut scratch = self.desk.arena.buffer(*scratch_bytes).map_err(overrun)?;
                let mut inputs: Vec<Block<'_>> = Vec::with_capacity(self.loaded.len());
                for (loaded, dtype) in self.loaded.iter().zip(self.stage.kernel.inputs()) {
                    if let Some(Loaded { block: Some(block), cell, .. }) = loaded {
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
                let views = views(&kernel.inputs(), &self.loaded, &self.ready.inputs, &region);
                eval::map(machine, &shape, &views, &mut fronts);
            }
            (Computes::User(_), _) => return Err((FailureKind::Plan, "a stage's kernel is not its own".into())),
        }
        for (j, (mut block, output)) in blocks.into_iter().zip(&self.ready.outputs).enumerate() {
            pad(&mut block, &shape, output, &self.chunk);
            self.blocks[j] = Some(block);
        }
        Ok(())
    }

    /// Turns accumulator `j` into its output block.
    fn finish(&mut self, j: usize) -> Result<(), Cause> {
        let Kernel::Reduce { folds, .. } = &self.stage.kernel else { return Ok(()) };
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

    fn store(&mut self, j: usize) -> Result<(), Cause> {
        let output = &self.ready.outputs[j];
        let Some(block) = self.blocks[j].as_ref().or(self.accumulators[j].as_ref()) else { return Ok(()) };
        let written = output.write(&self.chunk, block.bytes(), self.desk).map_err(|e| cause_of_chunk(&e))?;
        self.receipts.push(Receipt { array: self.stage.outputs[j].array, chunk: output.objects().index(&self.chunk), written });
        Ok(())
    }
}

/// Copies the elements of a region of an array of `shape` from a source of another shape with the same elements in C order.
///
/// Chunk by chunk: the chunk's rows are intervals of the common order, and so are the region's; what they share is copied.
fn copy_flat(region: &Region, shape: &[u64], source: &mut Source, desk: &mut Desk, out: &mut [u8]) -> Result<(), Cause> {
    let size = source.info().dtype.size();
    let grid = source.info().grid.clone();
    if region.n_elements() == 0 {
        return Ok(());
    }
    let last: Vec<u64> = region.start.iter().zip(&region.shape).map(|(s, n)| s + n - 1).collect();
    let from = |index: &[u64]| index.iter().zip(shape).fold(0, |at, (i, n)| at * n + i);
    let touched = flat_bounds(&grid.shape(), from(&region.start), from(&last));
    try_for_each_coord(&grid.overlapping(&touched), |coords| {
        let chunk = grid.region(coords);
        if !shared_rows(&chunk, &grid.shape(), region, shape, |_, _, _| true) {
            return Ok(());
        }
        let stored = sizes(&source.stored_shape(coords));
        let strides = contiguous_strides(&stored);
        let block = source.read(coords, desk).map_err(|e| cause_of_chunk(&e))?;
        let bytes = source.bytes(&block);
        shared_rows(&chunk, &grid.shape(), region, shape, |within, to, n| {
            let at: isize = within.iter().zip(&strides).map(|(i, s)| *i as isize * s).sum();
            let (from, to, n) = (at as usize * size, to as usize * size, n as usize * size);
            out[to..to + n].copy_from_slice(&bytes[from..from + n]);
            false
        });
        block.into_iter().for_each(|b| desk.arena.recycle(b));
        Ok(())
    })
}

/// Spreads an edge chunk over its stored shape.
fn pad(block: &mut Buffer, shape: &[usize], output: &ChunkAccess, chunk: &[u64]) {
    let stored = sizes(&output.object_shape(chunk));
    if stored != shape {
        copy::pad_in_place(block.bytes_mut(), shape, &stored, &output.info().fill);
    }
}

/// The loaded blocks as seen from a part of the iteration space.
fn views<'a>(dtypes: &[DType], loaded: &'a [Option<Loaded>], inputs: &'a [Vec<Source>], part: &Region) -> Vec<View<'a>> {
    loaded
        .iter()
        .zip(inputs)
        .zip(dtypes)
        .filter_map(|((loaded, sources), dtype)| {
            let loaded = loaded.as_ref()?;
            let shift: isize = (0..part.start.len()).map(|d| (part.start[d] - loaded.cell.start[d]) as isize * loaded.strides[d]).sum();
            Some(View {
                dtype: *dtype,
                bytes: loaded.block.as_ref().map_or_else(|| sources[0].bytes(&None), Buffer::bytes),
                offset: (loaded.offset + shift) as usize,
                shape: sizes(&part.shape),
                strides: loaded.strides.clone(),
            })
        })
        .collect()
}
