//! Elementwise functions: the number of chunks per task, the chunks cached from task to task, and
//! the slices in which a chunk is computed.
//!
//! All three choices avoid repeated reads of a source chunk. The planner tries each, and takes the
//! one that saves most and fits the memory of a task. A copy is the identity function; `copy` finds
//! a route in several passes if one copy would read chunks repeatedly.

use freestone_kernels::{DType, Expr, eval};
use serde::{Deserialize, Serialize};

use super::{Compiled, DraftKind, Kernel, StageKind, copy};
use crate::grid::{AxisGrid, ChunkGrid};
use crate::plan::access::{MAX_PATTERNS, cached_chunks, reads_per_chunk};
use crate::plan::explain::{counted, term};
use crate::plan::layout::{Builder, StageLayout, holding};
use crate::plan::loops::Position;
use crate::plan::lower::{Draft, Lowering};
use crate::plan::{Plan, PlanError, ReadMode, Stage, StageOutput, malformed};
use crate::program::{Over, Phase, SlotId, Step};
use crate::readmap::{AxisMap, Origin};
use crate::state::{TaskState, Values, sizes};
use crate::task::{Cause, internal};
use crate::user::KernelRegistry;

/// The maximum bytes of a slice of a chunk. A slice fits a CPU cache together with slices of a few
/// inputs.
const SLICE_BYTES: u64 = 1 << 19;

/// An elementwise function whose results are the outputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Map(pub Expr);

impl StageKind for Map {
    fn inputs(&self) -> Vec<DType> {
        self.0.inputs().to_vec()
    }

    fn exprs(&self) -> Vec<&Expr> {
        vec![&self.0]
    }

    fn check(&self, plan: &Plan, stage: &Stage) -> Result<Vec<DType>, PlanError> {
        if stage.blocks != stage.tasks {
            for output in &stage.outputs {
                let array = plan
                    .arrays
                    .get(output.array.0)
                    .filter(|a| are_slices(&stage.blocks, &a.info.objects()));
                array.ok_or_else(|| {
                    malformed("the blocks are not contiguous slices of the outputs")
                })?;
            }
        }
        Ok(self.0.result_dtypes())
    }

    fn program(&self, layout: &mut Builder<'_>) -> Result<Vec<Step>, PlanError> {
        let (stage, n) = (layout.stage, layout.inputs.len());
        let objects = |body| Step::ForEach { over: Over::Objects(0), body };
        if self.stores_as_assembled(layout) {
            // The only input's block becomes the only output's block, with room for the padding of
            // an edge chunk.
            let region = layout.inputs[0].region;
            layout.outputs[0].block = region;
            if let Some(SlotId(slot)) = region {
                let stored = layout.stored_bytes(0);
                let bytes = &mut layout.program.slots[slot].bytes;
                *bytes = stored.max(*bytes);
            }
            let body = [
                layout.loads(0..n),
                vec![Step::Compute(Phase::Block)],
                layout.store(0).to_vec(),
                layout.unloads(0..n),
            ];
            return Ok(vec![objects(body.concat())]);
        }
        let blocks: Vec<SlotId> = (0..stage.outputs.len()).map(|j| layout.output(j)).collect();
        let stores = (0..blocks.len()).flat_map(|j| layout.store(j));
        let (begin, compute) = (Step::Compute(Phase::Begin), Step::Compute(Phase::Block));
        let (loads, unloads) = (layout.loads(0..n), layout.unloads(0..n));
        if stage.blocks != stage.tasks {
            let slice = [loads, vec![compute], unloads].concat();
            let slices = Step::ForEach { over: Over::Slices, body: slice };
            return Ok(vec![objects(holding(
                &blocks,
                [begin, slices].into_iter().chain(stores).collect(),
            ))]);
        }
        let one_object = stage.outputs.iter().all(|o| {
            layout.scope.array(o.array).info.objects().chunk_counts() == stage.tasks.chunk_counts()
        });
        if one_object {
            let made = [begin, compute].into_iter().chain(unloads).chain(stores).collect();
            return Ok(vec![objects([loads, holding(&blocks, made)].concat())]);
        }
        let each = objects(holding(&blocks, [begin, compute].into_iter().chain(stores).collect()));
        Ok([loads, vec![each], unloads].concat())
    }

    fn description(&self) -> String {
        if self.0.is_identity() {
            "copies".to_owned()
        } else {
            format!("computes {} elementwise", counted(self.0.results().len() as u64, "result"))
        }
    }

    fn formula(&self, j: usize, names: &[String]) -> String {
        term(&self.0, j, names)
    }

    fn iterates_blocks(&self) -> bool {
        false
    }

    fn compile(&self, _kernels: &KernelRegistry) -> Result<Box<dyn Compiled>, String> {
        Ok(Box::new(CompiledMap {
            evaluator: eval::Evaluator::new(&self.0),
            dtypes: self.inputs(),
        }))
    }
}

impl Map {
    /// Returns true if a task only assembles one object of the output.
    fn stores_as_assembled(&self, layout: &Builder<'_>) -> bool {
        let stage = layout.stage;
        let ([input], [output]) = (stage.inputs.as_slice(), stage.outputs.as_slice()) else {
            return false;
        };
        self.0.is_identity()
            && stage.blocks == stage.tasks
            && layout.inputs[0].mode != ReadMode::InChunk
            && layout.scope.array(output.array).info.objects().chunk_counts()
                == stage.tasks.chunk_counts()
            && input
                .map
                .varies()
                .iter()
                .zip(stage.tasks.axes())
                .all(|(v, t)| *v || t.max_extent() <= 1)
    }
}

/// Returns true if blocks are contiguous slices of objects: divided only along the first axis with
/// a length above 1.
fn are_slices(blocks: &ChunkGrid, objects: &ChunkGrid) -> bool {
    let first = objects.axes().iter().position(|a| a.max_extent() > 1);
    let axis = |(d, (w, o)): (usize, (&AxisGrid, &AxisGrid))| {
        if Some(d) == first { w.nests_in(o, 0, 1) } else { w == o }
    };
    blocks.axes().len() == objects.axes().len()
        && blocks.axes().iter().zip(objects.axes()).enumerate().all(axis)
}

#[derive(Debug)]
struct CompiledMap {
    evaluator: eval::Evaluator,
    dtypes: Vec<DType>,
}

impl Compiled for CompiledMap {
    fn compute(
        &mut self,
        phase: Phase,
        at: &Position,
        task: &mut TaskState<'_>,
    ) -> Result<(), Cause> {
        match phase {
            Phase::Begin => task.begin(at),
            Phase::Block if task.is_stored_as_assembled() => {
                match task.loaded[0].take().map(|loaded| loaded.values) {
                    Some(Values::Own(mut block)) => {
                        block.set_len(task.stored_bytes(0, at));
                        task.blocks[0] = Some(block);
                        task.pad(0, at);
                        Ok(())
                    }
                    _ => Err(internal("a block that is stored as assembled has its own buffer")),
                }
            }
            Phase::Block => self.evaluate(at, task),
            Phase::Start | Phase::Finish(_) => {
                Err(internal("an elementwise stage has no accumulators"))
            }
        }
    }
}

impl CompiledMap {
    /// Evaluates the current cell, which is a slice or the whole of the current object. Pads an
    /// edge chunk after the last slice.
    fn evaluate(&mut self, at: &Position, task: &mut TaskState<'_>) -> Result<(), Cause> {
        let object = task.outputs[0].objects().region(&at.object);
        let (shape, all) = (sizes(&at.cell.shape), sizes(&object.shape));
        let before = (0..all.len())
            .fold(0, |place, d| place * all[d] + (at.cell.start[d] - object.start[d]) as usize);
        let n: usize = shape.iter().product();
        let mut blocks = std::mem::take(&mut task.blocks);
        let mut parts: Vec<&mut [u8]> = Vec::with_capacity(blocks.len());
        for (block, output) in blocks.iter_mut().zip(task.outputs) {
            let size = output.info().dtype.size();
            let block = block
                .as_mut()
                .ok_or_else(|| internal("an output block is allocated before it is computed"))?;
            parts.push(&mut block.bytes_mut()[before * size..(before + n) * size]);
        }
        eval::map(&mut self.evaluator, &shape, &task.views(&self.dtypes, &at.cell), &mut parts);
        task.blocks = blocks;
        if (0..all.len())
            .all(|d| at.cell.start[d] + at.cell.shape[d] == object.start[d] + object.shape[d])
        {
            (0..task.blocks.len()).for_each(|j| task.pad(j, at));
        }
        Ok(())
    }
}

/// An elementwise stage before its division into tasks, over the output's index space.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MapDraft {
    /// The output's objects.
    pub(crate) grid: ChunkGrid,
}

impl DraftKind for MapDraft {
    fn stages(&self, draft: &Draft, lowering: &mut Lowering<'_>) -> Vec<Stage> {
        let direct = map_stage(lowering, draft, &self.grid);
        copy::copies(lowering, draft, &self.grid, &direct).unwrap_or_else(|| vec![direct])
    }

    fn join(&self, other: &MapDraft) -> Option<MapDraft> {
        (self == other).then(|| self.clone())
    }

    fn joined_stage(&self, draft: &Draft, lowering: &Lowering<'_>) -> Option<Stage> {
        Some(map_stage(lowering, draft, &self.grid))
    }
}

/// The maximum average of reads per chunk at which the planner does not search for fewer reads.
const FEW_READS: f64 = 1.05;

/// A division of an elementwise draft into tasks.
struct Division {
    stage: Stage,
    /// The number of chunks per task along each axis.
    groups: Vec<u64>,
    /// The reads per chunk.
    reads: f64,
}

/// Returns the stage of an elementwise draft over a grid of output objects. A task may write
/// several chunks, or cache chunks for the next task, if that avoids repeated reads of a source
/// chunk.
fn map_stage(lowering: &Lowering<'_>, draft: &Draft, grid: &ChunkGrid) -> Stage {
    let (stage, reads) = with_cache(lowering, grouped_stage(draft, grid.clone()));
    let mut best = Division { stage, groups: vec![1; grid.axes().len()], reads };
    while best.reads > FEW_READS
        && let Some(better) = larger_tasks(lowering, draft, grid, &best)
    {
        best = better;
    }
    best.stage
}

/// Returns the stage with these tasks.
fn grouped_stage(draft: &Draft, tasks: ChunkGrid) -> Stage {
    let rank = tasks.axes().len();
    let outputs = draft.outputs.iter().map(|array| StageOutput::kept(*array, rank)).collect();
    let kernel = Kernel::Map(Map(draft.expr.clone()));
    Stage::new(draft.name, kernel, draft.inputs.clone(), outputs, tasks)
}

/// Returns the division with larger tasks along one axis that has the fewest reads, fits, and
/// leaves enough tasks. Returns `None` if none of these has fewer reads than `division`.
fn larger_tasks(
    lowering: &Lowering<'_>,
    draft: &Draft,
    grid: &ChunkGrid,
    division: &Division,
) -> Option<Division> {
    let mut best: Option<Division> = None;
    for (d, axis) in grid.axes().iter().enumerate() {
        let (group, all) = (division.groups[d], axis.n_chunks());
        if group >= all {
            continue;
        }
        // A task of whole rows may avoid reads of adjacent elements.
        for larger in [(2 * group).min(all), all] {
            let mut groups = division.groups.clone();
            groups[d] = larger;
            let tasks = grid.axes().iter().zip(&groups).map(|(axis, n)| axis.group(*n)).collect();
            let stage = grouped_stage(draft, ChunkGrid::new(tasks));
            if stage.n_tasks() < lowering.spec.wanted_tasks()
                || !StageLayout::fits(lowering.scope(), &stage)
            {
                continue;
            }
            let (stage, reads) = with_cache(lowering, stage);
            if reads < best.as_ref().map_or(division.reads, |best| best.reads) {
                best = Some(Division { stage, groups, reads });
            }
        }
    }
    best
}

/// Returns the stage with the order of tasks for which caching decoded chunks saves most, if one
/// saves reads and fits. Returns also the reads per chunk.
fn with_cache(lowering: &Lowering<'_>, stage: Stage) -> (Stage, f64) {
    let patterns = lowering.access_patterns(&stage);
    let plain = reads_per_chunk(&stage, &patterns, None);
    if plain <= FEW_READS {
        return (stage, plain);
    }
    let mut orders: Vec<(f64, usize)> = (0..stage.tasks.axes().len())
        .map(|d| (reads_per_chunk(&stage, &patterns, Some(d)), d))
        .collect();
    orders.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (reads, d) in orders.into_iter().filter(|(r, _)| *r < 0.95 * plain) {
        let cache = cached_chunks(&stage, &patterns);
        let candidate = Stage { inner_axis: Some(d), cache, ..stage.clone() };
        let sliced = in_slices(lowering, &candidate);
        let fits = |stage: &Stage| StageLayout::fits(lowering.scope(), stage);
        if let Some(best) = sliced.into_iter().chain([candidate]).find(fits) {
            return (best, reads);
        }
    }
    (stage, plain)
}

/// Returns the stage with each chunk computed in slices, so that blocks fit a CPU cache. Requires
/// that all viewed chunks remain cached meanwhile.
fn in_slices(lowering: &Lowering<'_>, stage: &Stage) -> Option<Stage> {
    let followed = |axis: &AxisMap| matches!(axis, AxisMap::Along { .. } | AxisMap::Fixed(_));
    let plain = |from: &Origin| match from {
        Origin::Source { axes, .. } => axes.iter().all(followed),
        Origin::Fill(_) => true,
        Origin::Flat => false,
    };
    let pieces: usize = stage.inputs.iter().map(|i| i.map.pieces().len()).sum();
    if pieces > MAX_PATTERNS
        || !stage.inputs.iter().flat_map(|i| i.map.pieces()).all(|p| plain(&p.from))
    {
        return None;
    }
    let objects = lowering.arrays[stage.outputs[0].array.0].info.objects();
    let chunk = objects.max_chunk();
    // Slices along the first axis with a length above 1 are contiguous in a chunk.
    let d = chunk.iter().position(|n| *n > 1)?;
    let size = stage.kernel.kind().inputs().iter().map(|t| t.size() as u64).max().unwrap_or(1);
    let row = chunk[d + 1..].iter().product::<u64>().saturating_mul(size).max(1);
    let AxisGrid::Regular { first, size: rows, .. } = objects.axes()[d] else { return None };
    if first != rows && objects.axes()[d].n_chunks() > 1 {
        return None;
    }
    let most = (SLICE_BYTES / row).max(1);
    let slice = (1..=most.min(rows)).rev().find(|n| rows % n == 0)?;
    if slice == rows || slice * row < SLICE_BYTES / 16 {
        return None;
    }
    let mut blocks = objects.axes().to_vec();
    blocks[d] = AxisGrid::regular(blocks[d].len(), slice);
    Some(Stage { blocks: ChunkGrid::new(blocks), ..stage.clone() })
}
