//! A plan: stages over arrays, checked before anything runs.
//!
//! [`lower()`](lower::lower) makes a [`Plan`] of a graph; [`Plan::finalize`] checks it and projects its memory. Only a [`FinalizedPlan`] runs, and
//! reading one back from bytes goes through the same check.

mod cut;
pub mod explain;
mod inline;
mod layout;
mod local;
pub mod lower;
pub mod reads;
mod rechunk;
#[cfg(test)]
pub(crate) mod tests;
mod traffic;

use std::fmt;

use freestone_kernels::reduce::Finish;
use freestone_kernels::{DType, Expr, Generate, ReduceOp, ScanOp, contract};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::grid::{AxisGrid, ChunkGrid, GridError, Region};
use crate::memory::{MemoryEstimate, ScheduleError, commit_bytes, repository_bytes, size};
use crate::readmap::{ReadMap, ReadMapError};
use crate::storage::array::ArrayInfo;
use crate::storage::codec::CodecError;
use crate::storage::is_in_repository;

pub use explain::PlanExplanation;
pub(crate) use layout::LISTED;
pub use layout::{InputLayout, OutputLayout, ReadMode, StageLayout};
pub use local::{LocalMemory, LocalProjection};
pub(crate) use traffic::MAX_PARTS;

/// Version of the plan's format. A plan of another version is refused.
pub const FORMAT: u32 = 3;

/// A worker keeps no more decoded chunks of an array than this.
pub(crate) const MAX_KEPT: u64 = 4096;

/// Number of an array in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ArrayId(pub usize);

/// Number of a stage in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StageId(pub usize);

/// Stages in an order in which they can run, and the arrays between them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the engine that made it.
    pub engine: String,
    /// Bytes that a task may hold.
    pub allowed_mem: u64,
    /// Bytes of those that it may grow to where that only saves time, so that others of the plan have room beside it.
    pub growth_mem: u64,
    /// Bytes of those that are not arrays.
    pub reserved_mem: u64,
    /// Tasks that it was made to keep busy.
    pub parallelism: u64,
    /// The work directory is across a network, which holds bytes once more while they move.
    pub remote_work: bool,
    /// The arrays that stages read and write.
    pub arrays: Vec<PlanArray>,
    /// The stages; each comes after those that it waits for.
    pub stages: Vec<Stage>,
    /// What is published at the end.
    pub publications: Vec<Publication>,
}

impl Plan {
    /// Bytes that a process has once, for all of its tasks.
    pub fn process_mem(&self) -> u64 {
        self.reserved_mem.saturating_add(self.repository_mem())
    }

    /// Bytes that the driver's process holds besides for the commit, where outputs are in a repository.
    pub fn commit_mem(&self) -> u64 {
        let chunks = |a: &PlanArray| match &a.place {
            Place::Output { url, .. } if is_in_repository(url) => a.info.objects().n_chunks(),
            _ => 0,
        };
        commit_bytes(self.arrays.iter().map(chunks).fold(0, u64::saturating_add))
    }

    /// Bytes of those for repositories, where arrays are in some: what is known of chunks there is held as long as the process lives.
    pub fn repository_mem(&self) -> u64 {
        let url = |a: &PlanArray| match &a.place {
            Place::Input { url, .. } | Place::Output { url, .. } => Some(is_in_repository(url)),
            _ => None,
        };
        let any = self.arrays.iter().any(|a| url(a) == Some(true));
        let read = self.arrays.iter().filter(|a| matches!(a.place, Place::Input { .. }) && url(a) == Some(true));
        repository_bytes(any, read.map(|a| a.info.objects().n_chunks()))
    }
}

/// An array that a plan reads or writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanArray {
    /// For people.
    pub name: String,
    /// How its chunks lie.
    pub info: ArrayInfo,
    /// Where they are.
    pub place: Place,
}

/// Where an array's chunks are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// In a store that the plan only reads.
    Input {
        /// The store.
        url: String,
        /// The array's path there.
        path: String,
        /// Hash of its metadata when the plan was made.
        tag: String,
    },
    /// In a store that the plan writes.
    Output {
        /// The store.
        url: String,
        /// The array's path there.
        path: String,
    },
    /// In the run's folder of the work directory.
    Work,
    /// In the plan itself: the values' bytes in C order, as hexadecimal text.
    Constant(String),
    /// Nowhere: values follow from indices.
    Generated(Generate),
}

/// An output array and what its metadata will say; the last thing that a run writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Publication {
    /// The array.
    pub array: ArrayId,
    /// Its `zarr.json`.
    pub document: Value,
    /// The `zarr.json` of the group that holds it, written if there is none yet.
    pub group: Option<Value>,
    /// What is there may be replaced.
    pub overwrite: bool,
    /// How much of it the run makes.
    #[serde(default)]
    pub mode: Mode,
    /// The group that holds it gets consolidated metadata. What has some is kept up in any case.
    #[serde(default)]
    pub consolidated: bool,
}

/// How much of a published array a run makes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// All of it.
    #[default]
    Whole,
    /// Its metadata: the values are written by later runs, region by region.
    Metadata,
    /// The values of a region of an array that is there; its metadata stay as they are.
    Region {
        /// Hash of the metadata when the plan was made.
        tag: String,
    },
}

/// One lowered operation: many tasks that do not know of each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Unique, for people: `mean-003`.
    pub name: String,
    /// What a task computes.
    pub kernel: Kernel,
    /// What it reads, over the iteration space.
    pub inputs: Vec<StageInput>,
    /// What it writes.
    pub outputs: Vec<StageOutput>,
    /// The tasks: one for each chunk of this grid over the iteration space.
    pub tasks: ChunkGrid,
    /// The blocks in which a task walks its part of the iteration space.
    pub walk: ChunkGrid,
    /// The axis along which neighbouring tasks follow each other; the last one if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep: Option<usize>,
    /// Decoded chunks that stay, because the next block or task reads them again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<Keep>,
    /// Stages whose outputs it reads.
    pub after: Vec<StageId>,
    /// Why it is as it is, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// How many decoded chunks of an array a worker keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// The array.
    pub array: ArrayId,
    /// Chunks.
    pub chunks: u64,
}

/// What a task computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kernel {
    /// An elementwise function; its results are the outputs. A copy is the identity.
    Map(Expr),
    /// Folds of the results of an elementwise function along axes of the iteration space.
    Reduce {
        /// The function; one result for each output.
        expr: Expr,
        /// How each result is folded.
        folds: Vec<Fold>,
        /// The axes, rising.
        axes: Vec<usize>,
        /// Where partial results are merged: for each of the axes, the chunks that these were made of.
        parts: Option<Vec<AxisGrid>>,
    },
    /// A running sum or product along an axis, chunk by chunk of the walk.
    Scan {
        /// What runs: one result.
        expr: Expr,
        /// How.
        op: ScanOp,
        /// The axis.
        axis: usize,
        /// Each element becomes what was there before it.
        exclusive: bool,
        /// The last input has what came before each task: one element along the axis for each of them.
        carry: bool,
    },
    /// `out[b…, i…, j…] = Σ lhs[b…, i…, k…] · rhs[b…, j…, k…]`; the iteration space is `b…, i…, j…, k…`.
    Contract {
        /// `lhs` of the first inputs, `rhs` of the others, one result each.
        operands: Box<[Expr; 2]>,
        /// Number of `b…`.
        batch: usize,
        /// Number of `i…` and of `j…`.
        free: [usize; 2],
    },
    /// A user's kernel on whole blocks: task `i` computes block `i` of the output.
    User {
        /// How it is called.
        name: String,
        /// Its version.
        version: u32,
        /// Its parameters.
        parameters: Value,
        /// Scratch memory that it needs at most.
        scratch_bytes: u64,
        /// The blocks of each input.
        blocks: Vec<UserBlocks>,
        /// Dtype of the output.
        dtype: DType,
    },
}

/// The blocks of an input of a user's kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserBlocks {
    /// Element type.
    pub dtype: DType,
    /// The blocks.
    pub grid: ChunkGrid,
    /// For each axis, along which axis of the tasks its blocks are counted; `None` where it is one block.
    pub axes: Vec<Option<usize>>,
}

impl UserBlocks {
    /// The block for a task.
    pub fn region(&self, task: &[u64]) -> Region {
        let coords: Vec<u64> = self.axes.iter().map(|a| a.map_or(0, |a| task[a])).collect();
        self.grid.region(&coords)
    }
}

/// How one result is folded, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fold {
    /// The operation.
    pub op: ReduceOp,
    /// Dtype of the values that are folded, or that merged partial results were made of.
    pub values: DType,
    /// What is done to the accumulators at the end.
    pub finish: Finish,
}

impl Fold {
    /// Dtype of its accumulators.
    pub fn accumulator(&self) -> DType {
        self.op.accumulator(self.values).unwrap_or(self.values)
    }
}

/// An input of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageInput {
    /// The arrays that the map names.
    pub sources: Vec<ArrayId>,
    /// Where each element of the iteration space comes from.
    pub map: ReadMap,
}

/// An output of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageOutput {
    /// The array.
    pub array: ArrayId,
    /// For each of its axes, where a task's part lies.
    pub axes: Vec<OutAxis>,
}

/// Where along an axis of an output a task's part lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutAxis {
    /// At the task's elements along this axis of the iteration space.
    Kept(usize),
    /// At the task's number along this axis: a partial result.
    Part(usize),
    /// At 0: a reduced axis that stays.
    One,
}

impl Kernel {
    /// The elementwise function, if it has one.
    pub fn expr(&self) -> Option<&Expr> {
        match self {
            Kernel::Map(expr) | Kernel::Reduce { expr, .. } | Kernel::Scan { expr, .. } => Some(expr),
            Kernel::User { .. } | Kernel::Contract { .. } => None,
        }
    }

    /// True if tasks fold along an axis of the iteration space, which the result does not have.
    pub fn folds(&self, axis: usize) -> bool {
        match self {
            Kernel::Reduce { axes, .. } => axes.contains(&axis),
            Kernel::Contract { batch, free, .. } => axis >= batch + free[0] + free[1],
            Kernel::Map(_) | Kernel::Scan { .. } | Kernel::User { .. } => false,
        }
    }

    /// Number of the input that has what came before each task of a scan.
    pub fn carry(&self) -> Option<usize> {
        match self {
            Kernel::Scan { expr, carry: true, .. } => Some(expr.inputs().len()),
            _ => None,
        }
    }

    /// Dtypes of the inputs.
    pub fn inputs(&self) -> Vec<DType> {
        match self {
            Kernel::Map(expr) | Kernel::Reduce { expr, .. } => expr.inputs().to_vec(),
            Kernel::Scan { expr, op, carry, .. } => {
                let carried = expr.result_dtypes().first().and_then(|d| op.carrier(*d)).filter(|_| *carry);
                expr.inputs().iter().copied().chain(carried).collect()
            }
            Kernel::Contract { operands, .. } => operands.iter().flat_map(|o| o.inputs().to_vec()).collect(),
            Kernel::User { blocks, .. } => blocks.iter().map(|b| b.dtype).collect(),
        }
    }

    /// Number of outputs.
    fn n_results(&self) -> usize {
        self.expr().map_or(1, |e| e.results().len())
    }
}

impl Stage {
    /// Number of tasks.
    pub fn n_tasks(&self) -> u64 {
        self.tasks.n_chunks()
    }

    /// The axes of the tasks in the order in which tasks are counted: C order, but for the axis of the sweep, which comes last.
    pub fn order(&self) -> Vec<usize> {
        (0..self.tasks.axes().len()).filter(|d| Some(*d) != self.sweep).chain(self.sweep).collect()
    }

    /// Coordinates of a task by its number.
    pub fn task_coords(&self, number: u64) -> Vec<u64> {
        let counts = self.tasks.chunk_counts();
        let (mut rest, mut coords) = (number, vec![0; counts.len()]);
        for d in self.order().into_iter().rev() {
            coords[d] = rest % counts[d].max(1);
            rest /= counts[d].max(1);
        }
        coords
    }

    /// The part of output `output` that task `coords` writes.
    pub fn output_region(&self, output: &StageOutput, coords: &[u64]) -> Region {
        let task = self.tasks.region(coords);
        let along = |axis: &OutAxis| match axis {
            OutAxis::Kept(a) => (task.start[*a], task.shape[*a]),
            OutAxis::Part(a) => (coords[*a], 1),
            OutAxis::One => (0, 1),
        };
        let (start, shape) = output.axes.iter().map(along).unzip();
        Region { start, shape }
    }
}

/// Why a plan does not run.
#[derive(Clone, Debug, Error)]
#[allow(missing_docs)]
pub enum PlanError {
    #[error("stage `{stage}` needs {} per task, but allowed_mem is {}:\n{estimate}\n{advice}", apart(*projected, *allowed), apart(*allowed, *projected))]
    ExceedsMemory { stage: String, projected: u64, allowed: u64, estimate: MemoryEstimate, advice: String },
    #[error("the local process may hold {} (local_mem), but one task of stage `{stage}` needs {}: raise local_mem", size(*allowed), size(*projected))]
    ExceedsLocalMemory { stage: String, projected: u64, allowed: u64 },
    #[error("the plan is malformed: {0}")]
    Malformed(String),
    #[error("the plan has format {found}, this program reads format {FORMAT}: make the plan again with this version")]
    Format { found: u32 },
    #[error("`{array}`: {error}")]
    Codec { array: String, error: CodecError },
    #[error("{0}")]
    BadOutput(String),
    #[error(transparent)]
    Grid(#[from] GridError),
    #[error(transparent)]
    ReadMap(#[from] ReadMapError),
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
}

/// A plan that was checked, with the memory of each stage's tasks.
#[derive(Clone, Debug, PartialEq)]
pub struct FinalizedPlan {
    plan: Plan,
    layouts: Vec<StageLayout>,
    run: RunId,
}

/// Hash of a finalised plan's bytes: the same plan is the same run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunId(String);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A size in words, or in bytes where words would not tell it from another.
fn apart(bytes: u64, other: u64) -> String {
    if size(bytes).to_string() == size(other).to_string() { format!("{bytes} bytes") } else { size(bytes).to_string() }
}

impl Plan {
    /// Checks the plan and projects its memory; the only way to something that runs.
    ///
    /// Cost: a few microseconds a stage; nothing per chunk or task.
    ///
    /// # Errors
    /// Where a stage does not fit `allowed_mem` (the worst one is named), or the plan contradicts itself.
    pub fn finalize(self) -> Result<FinalizedPlan, PlanError> {
        if self.format != FORMAT {
            return Err(PlanError::Format { found: self.format });
        }
        self.check_arrays()?;
        let mut layouts = Vec::with_capacity(self.stages.len());
        for (i, stage) in self.stages.iter().enumerate() {
            self.check_stage(i, stage).map_err(|e| match e {
                PlanError::Malformed(why) => PlanError::Malformed(format!("stage `{}`: {why}", stage.name)),
                other => other,
            })?;
            layouts.push(StageLayout::of(&self, stage)?.with_ahead(&self, stage)?);
        }
        self.check_writers()?;
        let worst = layouts.iter().zip(&self.stages).max_by_key(|(l, _)| l.estimate.total());
        if let Some((layout, stage)) = worst.filter(|(l, _)| l.estimate.total() > self.allowed_mem) {
            return Err(PlanError::ExceedsMemory {
                stage: stage.name.clone(),
                projected: layout.estimate.total(),
                allowed: self.allowed_mem,
                estimate: layout.estimate.clone(),
                advice: explain::advice(&self, stage),
            });
        }
        let mut hash = Sha256::new();
        written(&self, |bytes| hash.update(bytes))?;
        let run = RunId(hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect());
        Ok(FinalizedPlan { plan: self, layouts, run })
    }

    /// An array.
    pub fn array(&self, id: ArrayId) -> &PlanArray {
        &self.arrays[id.0]
    }

    fn check_arrays(&self) -> Result<(), PlanError> {
        for array in &self.arrays {
            let malformed = |why: &str| Err(PlanError::Malformed(format!("array `{}`: {why}", array.name)));
            let info = &array.info;
            if info.fill.dtype() != info.dtype {
                return malformed("its fill value has another dtype");
            }
            let axes_hold = info.grid.axes().iter().all(|a| match a {
                AxisGrid::Regular { first, size, n, last } => *n < 2 || (*first > 0 && *size > 0 && *last > 0),
                AxisGrid::Bounds(b) => b.first() == Some(&0) && b.windows(2).all(|w| w[0] < w[1]),
            });
            if !axes_hold {
                return malformed("its grid has empty chunks");
            }
            if let Some(stored) = &info.stored_shape
                && (stored.len() != info.grid.axes().len() || info.grid.max_chunk().iter().zip(stored).any(|(c, s)| c > s))
            {
                return malformed("its chunks are larger than they are stored");
            }
            let rank = info.grid.axes().len();
            if let Some(shard) = &info.shard
                && (shard.chunks.len() != rank || shard.chunks.contains(&0) || info.stored_shape.is_none())
            {
                return malformed("its shards hold no whole chunks");
            }
            let per_object = |d: usize| info.shard.as_ref().map_or(1, |s| s.chunks[d]);
            if let Some(first) = &info.window
                && (first.len() != rank || (0..rank).any(|d| first[d] % per_object(d) != 0))
            {
                return malformed("its window does not begin with a whole object");
            }
            if let Place::Constant(hex) = &array.place
                && hex.len() as u128 != 2 * info.n_bytes()
            {
                return malformed("it has another number of values than elements");
            }
        }
        Ok(())
    }

    fn check_stage(&self, index: usize, stage: &Stage) -> Result<(), PlanError> {
        let malformed = |why: String| Err(PlanError::Malformed(why));
        let space = stage.tasks.shape();
        if stage.walk.shape() != space {
            return malformed("its walk has another shape than its tasks".into());
        }
        let dtypes = stage.kernel.inputs();
        if dtypes.len() != stage.inputs.len() || stage.kernel.n_results() != stage.outputs.len() {
            return malformed("its expression has another number of inputs or results".into());
        }
        for (i, (input, dtype)) in stage.inputs.iter().zip(&dtypes).enumerate() {
            let wanted = match &stage.kernel {
                Kernel::User { blocks, .. } => blocks[i].grid.shape(),
                Kernel::Scan { axis, .. } if stage.kernel.carry() == Some(i) => {
                    let parts = |(d, n): (usize, &u64)| if d == *axis { stage.tasks.axes()[d].n_chunks() } else { *n };
                    space.iter().enumerate().map(parts).collect()
                }
                _ => space.clone(),
            };
            if input.map.shape() != wanted {
                return malformed("an input has another shape than its tasks".into());
            }
            let Some(sources) = input.sources.iter().map(|s| self.arrays.get(s.0)).collect::<Option<Vec<_>>>() else {
                return malformed("it reads an array that is not there".into());
            };
            if sources.iter().any(|s| s.info.dtype != *dtype) {
                return malformed("an input has another dtype than its expression says".into());
            }
            input.map.check(&sources.iter().map(|s| s.info.shape()).collect::<Vec<_>>())?;
            for (id, source) in input.sources.iter().zip(&sources) {
                let written = |s: &StageId| self.stages.get(s.0).is_some_and(|w| w.outputs.iter().any(|o| o.array == *id));
                if matches!(source.place, Place::Work | Place::Output { .. }) && !stage.after.iter().any(written) {
                    return malformed(format!("it reads `{}` without waiting for who writes it", source.name));
                }
            }
        }
        if stage.sweep.is_some_and(|d| d >= space.len()) || stage.keep.iter().any(|k| k.array.0 >= self.arrays.len() || k.chunks == 0 || k.chunks > MAX_KEPT) {
            return malformed("its sweep or what it keeps is not there".into());
        }
        if stage.after.iter().any(|s| s.0 >= index) {
            return malformed("it waits for a stage that is not before it".into());
        }
        let results: Vec<DType> = match &stage.kernel {
            Kernel::Map(expr) => expr.result_dtypes(),
            Kernel::User { blocks, dtype, .. } => {
                let fits = |b: &UserBlocks| {
                    let axis = |(axis, grid): (&Option<usize>, &AxisGrid)| match axis {
                        Some(a) => stage.tasks.axes().get(*a).is_some_and(|t| t.n_chunks() == grid.n_chunks()),
                        None => grid.n_chunks() <= 1,
                    };
                    b.axes.len() == b.grid.axes().len() && b.axes.iter().zip(b.grid.axes()).all(axis)
                };
                if !blocks.iter().all(fits) || stage.walk != stage.tasks {
                    return malformed("its blocks are not those of its tasks".into());
                }
                vec![*dtype]
            }
            Kernel::Scan { expr, op, axis, carry, .. } => {
                let [dtype] = expr.result_dtypes()[..] else { return malformed("it scans another number of results than one".into()) };
                let (Some(tasks), Some(_)) = (stage.tasks.axes().get(*axis), op.carrier(dtype)) else { return malformed("its scan is not defined".into()) };
                let whole = |d: usize| d == *axis || stage.tasks.axes()[d] == stage.walk.axes()[d];
                if (!*carry && tasks.n_chunks() > 1) || !(0..space.len()).all(whole) || !stage.walk.axes()[*axis].nests_in(tasks, 0, 1) {
                    return malformed("its tasks do not follow each other along the axis that it scans".into());
                }
                if *carry
                    && stage.inputs.last().is_none_or(|i| {
                        i.sources.len() != 1
                            || i.map != ReadMap::identity(i.map.shape())
                            || self.arrays[i.sources[0].0].info.grid.chunk_counts() != stage.tasks.chunk_counts()
                    })
                {
                    return malformed("what came before its tasks is not there".into());
                }
                vec![dtype]
            }
            Kernel::Contract { operands, batch, free } => {
                let results = operands.iter().flat_map(Expr::result_dtypes).collect::<Vec<_>>();
                let kept = batch + free[0] + free[1];
                match results[..] {
                    [a, b] if a == b && contract::is_defined(a) && kept <= space.len() && stage.walk.axes()[..kept] == stage.tasks.axes()[..kept] => vec![a],
                    _ => return malformed("its operands are no matrices of one dtype".into()),
                }
            }
            Kernel::Reduce { expr, folds, axes, parts } => {
                if folds.len() != expr.results().len() || axes.iter().any(|a| *a >= space.len()) || axes.windows(2).any(|w| w[0] >= w[1]) {
                    return malformed("its folds or axes do not fit".into());
                }
                if let Some(parts) = parts {
                    let one_each = |(a, part): (&usize, &AxisGrid)| part.n_chunks() == space[*a] && stage.walk.axes()[*a].max_extent() <= 1;
                    if parts.len() != axes.len() || !axes.iter().zip(parts).all(one_each) {
                        return malformed("its partial results are not those that it merges".into());
                    }
                }
                let reads = |f: &Fold| if parts.is_some() { f.op.accumulator(f.values) } else { Some(f.values) };
                if expr.result_dtypes().into_iter().zip(folds).any(|(d, f)| reads(f) != Some(d)) {
                    return malformed("a fold reads another dtype than its expression gives".into());
                }
                match folds.iter().map(|f| f.finish.dtype(f.op, f.values)).collect() {
                    Some(all) => all,
                    None => return malformed("a fold is not defined for its dtype".into()),
                }
            }
        };
        for (output, dtype) in stage.outputs.iter().zip(results) {
            let Some(array) = self.arrays.get(output.array.0) else { return malformed("it writes an array that is not there".into()) };
            if array.info.dtype != dtype || !matches!(array.place, Place::Work | Place::Output { .. }) {
                return malformed(format!("`{}` cannot be written by it", array.name));
            }
            if output.axes.len() != array.info.grid.axes().len() {
                return malformed(format!("`{}` has another number of axes", array.name));
            }
            if matches!(stage.kernel, Kernel::Map(_)) && stage.walk != stage.tasks && !are_slices(&stage.walk, &array.info.objects()) {
                return malformed(format!("`{}` is not made slice by slice by it", array.name));
            }
            let split = |d: usize| stage.kernel.folds(d) && stage.tasks.axes()[d].n_chunks() > 1;
            if (0..space.len()).any(|d| split(d) && !output.axes.contains(&OutAxis::Part(d))) {
                return malformed(format!("`{}` would be written by several of its tasks", array.name));
            }
            for (axis, grid) in output.axes.iter().zip(array.info.objects().axes()) {
                if !one_writer(axis, grid, stage) {
                    return malformed(format!("`{}` has chunks that two of its tasks would write", array.name));
                }
            }
        }
        Ok(())
    }

    /// Every array that is written is written by one stage.
    fn check_writers(&self) -> Result<(), PlanError> {
        let mut metadata_only = vec![false; self.arrays.len()];
        for publication in &self.publications {
            let region = matches!(publication.mode, Mode::Region { .. });
            match self.arrays.get(publication.array.0) {
                Some(array) if matches!(array.place, Place::Output { .. }) && array.info.window.is_some() == region => {}
                _ => return Err(PlanError::Malformed("it publishes what is no output, or another part of it".into())),
            }
            metadata_only[publication.array.0] = publication.mode == Mode::Metadata;
        }
        let mut writers = vec![0; self.arrays.len()];
        self.stages.iter().flat_map(|s| &s.outputs).for_each(|o| writers[o.array.0] += 1);
        for ((array, n), metadata_only) in self.arrays.iter().zip(writers).zip(metadata_only) {
            let expect = usize::from(!metadata_only && matches!(array.place, Place::Work | Place::Output { .. }));
            if n != expect {
                return Err(PlanError::Malformed(format!("`{}` is written by {n} stages, not by {expect}", array.name)));
            }
        }
        Ok(())
    }
}

/// True if blocks are slices of objects, one after the other in memory: cut along the first axis that has a length only.
fn are_slices(walk: &ChunkGrid, objects: &ChunkGrid) -> bool {
    let first = objects.axes().iter().position(|a| a.max_extent() > 1);
    let axis = |(d, (w, o)): (usize, (&AxisGrid, &AxisGrid))| if Some(d) == first { w.nests_in(o, 0, 1) } else { w == o };
    walk.axes().len() == objects.axes().len() && walk.axes().iter().zip(objects.axes()).enumerate().all(axis)
}

/// True if each object (chunk or shard) of the output along this axis lies inside one task, and tasks end where the axis ends.
fn one_writer(axis: &OutAxis, grid: &AxisGrid, stage: &Stage) -> bool {
    let kernel = &stage.kernel;
    match axis {
        OutAxis::Kept(a) => {
            let Some(tasks) = stage.tasks.axes().get(*a) else { return false };
            // A reduction writes one chunk a task.
            let single = !matches!(kernel, Kernel::Reduce { .. } | Kernel::User { .. }) || tasks.n_chunks() == grid.n_chunks();
            !kernel.folds(*a) && single && tasks.len() == grid.len() && grid.nests_in(tasks, 0, 1)
        }
        OutAxis::Part(a) => kernel.folds(*a) && stage.tasks.axes().get(*a).is_some_and(|t| grid.len() == t.n_chunks()) && grid.max_extent() <= 1,
        OutAxis::One => grid.len() == 1 && matches!(kernel, Kernel::Reduce { axes, .. } if axes.iter().all(|a| stage.tasks.axes()[*a].n_chunks() <= 1)),
    }
}

impl FinalizedPlan {
    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How a stage's tasks run.
    pub fn layout(&self, stage: StageId) -> &StageLayout {
        &self.layouts[stage.0]
    }

    /// The stages with their layouts.
    pub fn stages(&self) -> impl Iterator<Item = (StageId, &Stage, &StageLayout)> {
        self.plan.stages.iter().zip(&self.layouts).enumerate().map(|(i, (s, l))| (StageId(i), s, l))
    }

    /// The run's name.
    pub fn run_id(&self) -> &RunId {
        &self.run
    }

    /// Projected memory of one task of the hungriest stage, reserved memory included.
    pub fn projected_mem(&self) -> u64 {
        self.layouts.iter().map(|l| l.estimate.total()).max().unwrap_or(self.plan.process_mem())
    }

    /// The bytes that travel.
    ///
    /// # Errors
    /// Never for a plan that was finalised; the type says that it could.
    pub fn to_bytes(&self) -> Result<Vec<u8>, PlanError> {
        // Counted first: a text that grows while it is written takes up to three times its length.
        let mut n = 0;
        written(&self.plan, |bytes| n += bytes.len())?;
        let mut text = Vec::with_capacity(n);
        written(&self.plan, |bytes| text.extend_from_slice(bytes))?;
        Ok(text)
    }

    /// Reads a plan back, and checks it as if it were new.
    ///
    /// # Errors
    /// As [`Plan::finalize`].
    pub fn from_bytes(bytes: &[u8]) -> Result<FinalizedPlan, PlanError> {
        serde_json::from_slice::<Plan>(bytes).map_err(|e| PlanError::Malformed(e.to_string()))?.finalize()
    }
}

/// Calls `f` with a plan's text, piece by piece: with long lists of indices it is better not held.
fn written(plan: &Plan, f: impl FnMut(&[u8])) -> Result<(), PlanError> {
    struct Pieces<F>(F);
    impl<F: FnMut(&[u8])> std::io::Write for Pieces<F> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            (self.0)(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    serde_json::to_writer(std::io::BufWriter::new(Pieces(f)), plan).map_err(|e| PlanError::Malformed(e.to_string()))
}

/// Bytes as hexadecimal text.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut text = String::with_capacity(2 * bytes.len());
    for b in bytes {
        let _ = write!(text, "{b:02x}");
    }
    text
}

/// Bytes of hexadecimal text; `None` if it is none.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let digit = |c: u8| (c as char).to_digit(16).map(|d| d as u8);
    digits.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}
