//! Copies in several passes, for inputs whose chunks a single pass would read repeatedly.
//!
//! `plan/rechunk.rs` finds the intermediate chunk shapes. This module states the problem, and
//! builds the stages of the solution if they are cheaper than one stage.

use freestone_kernels::Expr;

use super::Kernel;
use super::map::Map;
use crate::grid::{AxisGrid, ChunkGrid};
use crate::plan::access::reads_per_chunk;
use crate::plan::lower::{Draft, Lowering};
use crate::plan::rechunk::{self, Prices, Problem};
use crate::plan::{
    ArrayId, Place, PlanArray, Scope, Stage, StageInput, StageLayout, StageOutput, traffic,
};
use crate::readmap::{AxisMap, ReadMap};
use crate::storage::array::ArrayInfo;

/// The maximum average of reads per chunk for which a single copy is kept without a search for a
/// cheaper route.
const MAX_DIRECT_READS: f64 = 1.3;

/// The maximum number of searches for a route, each with less memory.
const ATTEMPTS: usize = 8;

/// Returns the stages of a copy in several passes, if they are cheaper than one stage that reads
/// chunks repeatedly.
pub(super) fn copies(
    lowering: &mut Lowering<'_>,
    draft: &Draft,
    grid: &ChunkGrid,
    direct: &Stage,
) -> Option<Vec<Stage>> {
    let [target] = draft.outputs.as_slice() else { return None };
    let patterns = lowering.access_patterns(direct);
    let reads = reads_per_chunk(direct, &patterns, direct.inner_axis);
    if reads <= MAX_DIRECT_READS {
        return None;
    }
    let (mut problem, source_grid) = problem(lowering, draft, grid)?;
    let prices = problem.prices;
    let direct_cost = read_cost(lowering, direct, &prices);
    for _ in 0..ATTEMPTS {
        let Some(route) = problem.route().filter(|r| r.boxes.len() > 1) else {
            let note = format!(
                "chunks are read {reads:.1} times each: no route of several copies that fits in \
                 memory is cheaper"
            );
            lowering.add_note(*target, note);
            return None;
        };
        let n_arrays = lowering.arrays.len();
        if let Some(mut stages) = route_stages(lowering, draft, grid, &source_grid, &route) {
            let cost = read_cost(lowering, &stages[0], &prices) + route.cost
                - problem.source_read_cost(&route);
            let fits = stages.iter().all(|s| StageLayout::fits(lowering.scope(), s));
            let n = stages.len();
            if fits && cost < 0.9 * direct_cost {
                let note = format!(
                    "split into {n} copies: estimated {cost:.2} s of worker time, instead of \
                     {direct_cost:.2} s for one copy that reads chunks repeatedly"
                );
                stages.iter_mut().for_each(|s| s.notes.push(note.clone()));
                return Some(stages);
            }
            lowering.arrays.truncate(n_arrays);
            if fits {
                let note = format!(
                    "chunks are read {reads:.1} times each: estimated {direct_cost:.2} s of worker \
                     time, instead of {cost:.2} s for {n} copies"
                );
                lowering.add_note(*target, note);
                return None;
            }
        }
        problem.memory = problem.memory / 4 * 3;
    }
    None
}

/// Returns the rechunk of a draft's largest input, and the chunk grid of that input along the axes
/// of the result. Returns `None` if no input is an image of an array.
fn problem(
    lowering: &Lowering<'_>,
    draft: &Draft,
    grid: &ChunkGrid,
) -> Option<(Problem, Vec<AxisGrid>)> {
    let scope = lowering.scope();
    let info = &scope.array(draft.outputs[0]).info;
    let is_gather = |map: &AxisMap| matches!(map, AxisMap::Gather { .. });
    let is_image =
        |input: &&StageInput| input.map.as_image().is_some_and(|axes| !axes.iter().any(is_gather));
    let images = draft.inputs.iter().filter(is_image);
    let largest = images.max_by_key(|i| scope.array(i.sources[0]).info.n_bytes())?;
    let source = scope.array(largest.sources[0]);
    let mut source_grid: Vec<AxisGrid> =
        grid.axes().iter().map(|a| AxisGrid::regular(a.len(), a.len())).collect();
    for (map, axis) in largest.map.as_image()?.iter().zip(source.info.grid.axes()) {
        if let AxisMap::Along { axis: d, start, step } = map {
            source_grid[*d] = axis.slice(*start, *step, grid.axes()[*d].len());
        }
    }
    let work = PlanArray {
        name: String::new(),
        info: ArrayInfo::intermediate(info.dtype, grid.clone(), lowering.spec.codec),
        place: Place::Work,
    };
    let extents =
        |axes: &[AxisGrid]| axes.iter().map(|a| a.max_extent().max(1)).collect::<Vec<u64>>();
    let first_sources = draft.inputs.iter().filter_map(|i| i.sources.first());
    let source_bytes: usize = first_sources.map(|s| scope.array(*s).info.dtype.size()).sum();
    let problem = Problem {
        shape: grid.shape(),
        source: extents(&source_grid),
        target: extents(grid.axes()),
        source_bytes: source_bytes.max(info.dtype.size()) as u64,
        bytes: info.dtype.size() as u64,
        memory: lowering.spec.soft_mem().saturating_sub(scope.process_mem),
        tasks: lowering.spec.wanted_tasks(),
        prices: Prices::new(chunk_storage(scope, source), chunk_storage(scope, &work)),
    };
    Some((problem, source_grid))
}

/// Returns the copies of a route, with intermediate arrays between them.
fn route_stages(
    lowering: &mut Lowering<'_>,
    draft: &Draft,
    grid: &ChunkGrid,
    source_grid: &[AxisGrid],
    route: &rechunk::Route,
) -> Option<Vec<Stage>> {
    let last = route.boxes.len() - 1;
    let boxes = route.boxes.iter().enumerate();
    let tasks = boxes.map(|(i, lengths)| match i {
        _ if i == last => group(grid.axes(), lengths),
        0 => first_tasks(source_grid, lengths),
        _ => regular(grid, lengths),
    });
    let tasks: Vec<ChunkGrid> = tasks.collect();
    let dtype = lowering.arrays[draft.outputs[0].0].info.dtype;
    let shape = grid.shape();
    let mut stages: Vec<Stage> = Vec::with_capacity(tasks.len());
    let mut read: Option<ArrayId> = None;
    for (i, own) in tasks.iter().enumerate() {
        let output = if i == last {
            draft.outputs[0]
        } else {
            let between = rechunk::between(own, &tasks[i + 1])?;
            let info = ArrayInfo::intermediate(dtype, between, lowering.spec.codec);
            let name = format!("{}-{:03}", draft.name, lowering.arrays.len());
            lowering.add(PlanArray { name, info, place: Place::Work })
        };
        let (expr, inputs) = match read {
            None => (draft.expr.clone(), draft.inputs.clone()),
            Some(id) => {
                let map = ReadMap::identity(&shape);
                (Expr::identity(dtype), vec![StageInput { sources: vec![id], map }])
            }
        };
        let outputs = vec![StageOutput::kept(output, shape.len())];
        stages.push(Stage::new(draft.name, Kernel::Map(Map(expr)), inputs, outputs, own.clone()));
        read = Some(output);
    }
    Some(stages)
}

/// Returns tasks of whole chunks, of `lengths` elements at most.
fn group(axes: &[AxisGrid], lengths: &[u64]) -> ChunkGrid {
    let axis =
        |(axis, length): (&AxisGrid, &u64)| axis.group((length / axis.max_extent().max(1)).max(1));
    ChunkGrid::new(axes.iter().zip(lengths).map(axis).collect())
}

/// Returns the tasks of the first copy: whole chunks along each axis where `lengths` is a multiple
/// of the chunk length.
fn first_tasks(axes: &[AxisGrid], lengths: &[u64]) -> ChunkGrid {
    let axis = |(axis, length): (&AxisGrid, &u64)| {
        let unit = axis.max_extent().max(1);
        if length % unit == 0 {
            axis.group((length / unit).max(1))
        } else {
            AxisGrid::regular(axis.len(), *length)
        }
    };
    ChunkGrid::new(axes.iter().zip(lengths).map(axis).collect())
}

/// Returns tasks of `lengths` elements.
fn regular(grid: &ChunkGrid, lengths: &[u64]) -> ChunkGrid {
    let axes = grid.axes().iter().zip(lengths);
    ChunkGrid::new(axes.map(|(axis, length)| AxisGrid::regular(axis.len(), *length)).collect())
}

/// Returns the cost of a stage's reads in seconds of one worker.
fn read_cost(lowering: &Lowering<'_>, stage: &Stage, prices: &Prices) -> f64 {
    // Ignore chunks that remain from task to task, because consecutive tasks may run on different
    // workers.
    let apart = Stage { cache: Vec::new(), ..stage.clone() };
    traffic::reads(lowering.scope(), &apart)
        .iter()
        .map(|(_, t)| t.bytes * prices.source_byte + t.requests * prices.source_request)
        .sum()
}

fn chunk_storage(scope: Scope<'_>, array: &PlanArray) -> rechunk::ChunkStorage {
    rechunk::ChunkStorage {
        compressed: array.info.codecs.len() > 1,
        remote: scope.is_remote(array),
    }
}
