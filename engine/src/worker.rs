//! How one task runs.
//!
//! A task goes through its stage's buffer schedule: it takes and gives back what the list says, and between that loads
//! blocks, folds or evaluates them, encodes and writes. It is the same function in a thread, in a process and elsewhere;
//! it needs nothing but the plan and storage, and uses one thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use freestone_kernels::eval::{self, Machine};
use freestone_kernels::{Buffer, Generate, ReduceOp, View, contiguous_strides, copy, reduce};

use crate::grid::{Region, try_for_each_coord};
use crate::machine;
use crate::memory::{Arena, Overrun, SlotId, Step};
use crate::plan::{FinalizedPlan, Kernel, Place, ReadMode, Stage, StageId, StageLayout, from_hex};
use crate::readmap::{AxisMap, Origin, Piece};
use crate::storage::codec::Contexts;
use crate::storage::reader::{ChunkAccess, ChunkError, Desk, ShardCache};
use crate::storage::{ArrayInfo, Store, Stores, join, read_small};
use crate::task::{Cause, FailureKind, Receipt, RunAddress, TaskFailure, TaskOutcome, TaskReport, TaskRequest, cause_of_chunk, cause_of_plan};

/// What all tasks of a run share.
#[derive(Clone, Debug)]
pub struct RunContext {
    /// The plan.
    pub plan: Arc<FinalizedPlan>,
    /// Where the plan and the intermediates lie.
    pub address: RunAddress,
    /// Stores that are open.
    pub stores: Stores,
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
    /// Where it is not there, or not one.
    pub fn fetch(address: RunAddress) -> Result<RunContext, String> {
        let stores = Stores::default();
        let store = stores.open(&address.work_dir).map_err(|e| e.to_string())?;
        let key = format!("{}/plan.json", address.folder);
        let bytes =
            read_small(&*store, &key, MAX_PLAN_BYTES).map_err(|e| e.to_string())?.ok_or_else(|| format!("there is no plan at {}", store.place(&key)))?;
        let plan = FinalizedPlan::from_bytes(&bytes).map_err(|e| e.to_string())?;
        Ok(RunContext { plan: Arc::new(plan), address, stores, cancel: Cancel::default() })
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
    machine: Machine,
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
            machine: Machine::new(stage.kernel.expr()),
        })
    }
}

impl Task<'_> {
    fn run(&mut self, cancel: &Cancel) -> Result<(), Cause> {
        let schedule = &self.layout.schedule;
        let check = || if cancel.is_cancelled() { Err((FailureKind::Cancelled, "the run was cancelled".to_owned())) } else { Ok(()) };
        check()?;
        let chunks = match &self.stage.kernel {
            Kernel::Map(_) => self.ready.outputs.first().map(|o| o.objects().overlapping(&self.region)),
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
        let Kernel::Reduce { expr, folds, axes } = &self.stage.kernel else { return Ok(()) };
        if let Some(j) = self.layout.outputs.iter().position(|o| o.accumulator == Some(slot)) {
            let values = expr.dtype(expr.results()[j]);
            let dtype = folds[j].op.accumulator(values).unwrap_or(values);
            let elements: u64 = (0..self.region.shape.len()).filter(|d| !axes.contains(d)).map(|d| self.region.shape[d]).product();
            let mut buffer = self.desk.arena.buffer(elements * dtype.size() as u64).map_err(overrun)?;
            reduce::start(folds[j].op, dtype, buffer.bytes_mut());
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
        let coords: Vec<u64> = axes.iter().zip(grid.axes()).map(|(map, axis)| axis.find(map.span(to).0)).collect();
        let starts: Vec<u64> = coords.iter().zip(grid.axes()).map(|(c, axis)| axis.start(*c)).collect();
        let stored = contiguous_strides(&sizes(&source.stored_shape(&coords)));
        let (mut offset, mut strides) = (0isize, vec![0isize; to.shape.len()]);
        for ((map, start), stride) in axes.iter().zip(&starts).zip(&stored) {
            match *map {
                AxisMap::Fixed(x) => offset += (x - start) as isize * stride,
                AxisMap::Along { axis, start: first, step } => {
                    offset += (first as i64 - *start as i64) as isize * stride;
                    strides[axis] += step as isize * stride;
                }
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
        let size = self.ready.inputs[i][0].info().dtype.size();
        let bytes = shape.iter().product::<usize>() * size;
        let mut region = self.desk.arena.buffer(bytes as u64).map_err(overrun)?;
        let desk = &mut *self.desk;
        for piece in pieces {
            let at = |start: &[u64]| start.iter().zip(&strides).map(|(s, stride)| *s as isize * stride).sum::<isize>();
            let extent = |to: &[u64]| -> Vec<usize> { to.iter().zip(varies).map(|(n, v)| if *v { *n as usize } else { 1 }).collect() };
            match &piece.from {
                Origin::Fill(value) => copy::fill_box(value, &extent(&piece.to.shape), region.bytes_mut(), at(&piece.to.start) as usize, &strides),
                Origin::Source { source, axes } => {
                    let source = &mut self.ready.inputs[i][*source];
                    let grid = source.info().grid.clone();
                    let spans: Vec<(u64, u64)> = axes.iter().map(|a| a.span(&piece.to)).collect();
                    let touched = Region { start: spans.iter().map(|s| s.0).collect(), shape: spans.iter().map(|s| s.1 - s.0 + 1).collect() };
                    try_for_each_coord(&grid.overlapping(&touched), |coords| {
                        let chunk = grid.region(coords);
                        // The elements of the piece whose source lies in this chunk.
                        let (mut first, mut count) = (vec![0; piece.to.shape.len()], piece.to.shape.clone());
                        for (map, (lo, n)) in axes.iter().zip(chunk.start.iter().zip(&chunk.shape)) {
                            if let AxisMap::Along { axis, .. } = *map {
                                (first[axis], count[axis]) = map.preimage(*lo, lo + n, piece.to.shape[axis]);
                            }
                        }
                        if count.contains(&0) {
                            return Ok(());
                        }
                        let stored = contiguous_strides(&sizes(&source.stored_shape(coords)));
                        let (mut offset, mut from) = (0isize, vec![0isize; first.len()]);
                        for ((map, start), stride) in axes.iter().zip(&chunk.start).zip(&stored) {
                            match *map {
                                AxisMap::Fixed(x) => offset += (x - start) as isize * stride,
                                AxisMap::Along { axis, start: zero, step } => {
                                    offset += (zero as i64 + step * first[axis] as i64 - *start as i64) as isize * stride;
                                    from[axis] += step as isize * stride;
                                }
                            }
                        }
                        let block = source.read(coords, desk).map_err(|e| cause_of_chunk(&e))?;
                        let target: Vec<u64> = piece.to.start.iter().zip(&first).map(|(a, b)| a + b).collect();
                        let view =
                            View { dtype: source.info().dtype, bytes: source.bytes(&block), offset: offset as usize, shape: extent(&count), strides: from };
                        copy::strided(&view, region.bytes_mut(), at(&target) as usize, &strides);
                        block.into_iter().for_each(|b| desk.arena.recycle(b));
                        Ok(())
                    })?;
                }
            }
        }
        Ok(Loaded { block: Some(region), cell: self.cell.clone(), offset: 0, strides })
    }

    fn fold(&mut self) {
        let Kernel::Reduce { folds, axes, .. } = &self.stage.kernel else { return };
        let views = views(&self.loaded, &self.ready.inputs, &self.cell);
        // Accumulators lie in C order over the kept axes of the task.
        let kept: Vec<usize> = self.region.shape.iter().enumerate().map(|(d, n)| if axes.contains(&d) { 1 } else { *n as usize }).collect();
        let strides: Vec<isize> = contiguous_strides(&kept).into_iter().enumerate().map(|(d, s)| if axes.contains(&d) { 0 } else { s }).collect();
        let offset = (0..kept.len()).map(|d| (self.cell.start[d] - self.region.start[d]) as isize * strides[d]).sum::<isize>();
        let ops: Vec<ReduceOp> = folds.iter().map(|f| f.op).collect();
        let fold = reduce::Fold { ops: &ops, offset: offset as usize, strides: &strides };
        let mut accumulators: Vec<&mut [u8]> = self.accumulators.iter_mut().flatten().map(Buffer::bytes_mut).collect();
        reduce::fold(&mut self.ready.machine, &sizes(&self.cell.shape), &views, &fold, &mut accumulators);
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
        let views = views(&self.loaded, &self.ready.inputs, &region);
        let mut fronts: Vec<&mut [u8]> = blocks.iter_mut().zip(&self.ready.outputs).map(|(b, o)| &mut b.bytes_mut()[..n * o.info().dtype.size()]).collect();
        eval::map(&mut self.ready.machine, &shape, &views, &mut fronts);
        for (j, (mut block, output)) in blocks.into_iter().zip(&self.ready.outputs).enumerate() {
            pad(&mut block, &shape, output, &self.chunk);
            self.blocks[j] = Some(block);
        }
        Ok(())
    }

    /// Turns accumulator `j` into its output block.
    fn finish(&mut self, j: usize) -> Result<(), Cause> {
        let Kernel::Reduce { expr, folds, .. } = &self.stage.kernel else { return Ok(()) };
        let output = &self.ready.outputs[j];
        let region = self.stage.output_region(&self.stage.outputs[j], &self.coords);
        self.chunk = output.objects().overlapping(&region).start;
        let (Some(_), Some(accumulator)) = (self.layout.outputs[j].block, &self.accumulators[j]) else { return Ok(()) };
        let stored: u64 = output.object_shape(&self.chunk).iter().product();
        let size = output.info().dtype.size();
        let mut block = self.desk.arena.buffer(stored * size as u64).map_err(overrun)?;
        let values = expr.dtype(expr.results()[j]);
        let dtype = folds[j].op.accumulator(values).unwrap_or(values);
        let n = region.n_elements() as usize;
        folds[j].finish.apply(dtype, accumulator.bytes(), &mut block.bytes_mut()[..n * size]);
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

/// Spreads an edge chunk over its stored shape.
fn pad(block: &mut Buffer, shape: &[usize], output: &ChunkAccess, chunk: &[u64]) {
    let stored = sizes(&output.object_shape(chunk));
    if stored != shape {
        copy::pad_in_place(block.bytes_mut(), shape, &stored, &output.info().fill);
    }
}

/// The loaded blocks as seen from a part of the iteration space.
fn views<'a>(loaded: &'a [Option<Loaded>], inputs: &'a [Vec<Source>], part: &Region) -> Vec<View<'a>> {
    loaded
        .iter()
        .zip(inputs)
        .filter_map(|(loaded, sources)| {
            let loaded = loaded.as_ref()?;
            let shift: isize = (0..part.start.len()).map(|d| (part.start[d] - loaded.cell.start[d]) as isize * loaded.strides[d]).sum();
            Some(View {
                dtype: sources[0].info().dtype,
                bytes: loaded.block.as_ref().map_or_else(|| sources[0].bytes(&None), Buffer::bytes),
                offset: (loaded.offset + shift) as usize,
                shape: sizes(&part.shape),
                strides: loaded.strides.clone(),
            })
        })
        .collect()
}
