//! Copies in several passes, for inputs whose chunks a single pass would read repeatedly.
//!
//! `plan/rechunk.rs` finds the intermediate chunk shapes. This module states the problem, and
//! builds the stages of the solution if they are cheaper than one stage.

use freestone_kernels::{Expr, Node as ExprNode};

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
const MIN_READS_PER_CHUNK: f64 = 1.3;

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
    let reads = reads_per_chunk(direct, &lowering.patterns(direct), direct.inner_axis);
    if reads <= MIN_READS_PER_CHUNK {
        return None;
    }
    let info = lowering.arrays[target.0].info.clone();
    // The chunk grid of the largest input, mapped to the axes of the result.
    let images = draft.inputs.iter().filter(|i| {
        i.map
            .as_image()
            .is_some_and(|axes| !axes.iter().any(|a| matches!(a, AxisMap::Gather { .. })))
    });
    let largest = images.max_by_key(|i| lowering.arrays[i.sources[0].0].info.n_bytes())?;
    let source = &lowering.arrays[largest.sources[0].0];
    let mut cuts: Vec<AxisGrid> =
        grid.axes().iter().map(|a| AxisGrid::regular(a.len(), a.len())).collect();
    for (map, axis) in largest.map.as_image()?.iter().zip(source.info.grid.axes()) {
        if let AxisMap::Along { axis: d, start, step } = map {
            cuts[*d] = axis.slice(*start, *step, grid.axes()[*d].len());
        }
    }
    let work = PlanArray {
        name: String::new(),
        info: ArrayInfo::intermediate(info.dtype, grid.clone(), lowering.spec.codec),
        place: Place::Work,
    };
    let extents =
        |axes: &[AxisGrid]| axes.iter().map(|a| a.max_extent().max(1)).collect::<Vec<u64>>();
    let source_bytes: usize = draft
        .inputs
        .iter()
        .filter_map(|i| i.sources.first())
        .map(|s| lowering.arrays[s.0].info.dtype.size())
        .sum();
    let prices = Prices::new(kind_of(lowering.scope(), source), kind_of(lowering.scope(), &work));
    let direct_cost = read_cost(lowering, direct, &prices);
    let mut problem = Problem {
        shape: grid.shape(),
        source: extents(&cuts),
        target: extents(grid.axes()),
        source_bytes: source_bytes.max(info.dtype.size()) as u64,
        bytes: info.dtype.size() as u64,
        memory: lowering.spec.soft_mem().saturating_sub(lowering.scope().process_mem),
        tasks: lowering.spec.wanted_tasks(),
        prices,
    };
    for _ in 0..ATTEMPTS {
        let Some(route) = problem.route().filter(|r| r.boxes.len() > 1) else {
            lowering.add_note(
                *target,
                format!(
                    "chunks are read {reads:.1} times each: no route of several copies that fits in \
                     memory is cheaper"
                ),
            );
            return None;
        };
        let arrays = lowering.arrays.len();
        if let Some(mut stages) = route_stages(lowering, draft, grid, &cuts, &route) {
            let all =
                read_cost(lowering, &stages[0], &prices) + route.cost - problem.first_read(&route);
            let fits = stages.iter().all(|s| StageLayout::fits(lowering.scope(), s));
            if fits && all < 0.9 * direct_cost {
                let note = format!(
                    "split into {} copies: estimated {all:.2} s of worker time, instead of \
                     {direct_cost:.2} s for one copy that reads chunks repeatedly",
                    stages.len()
                );
                stages.iter_mut().for_each(|s| s.notes.push(note.clone()));
                return Some(stages);
            }
            lowering.arrays.truncate(arrays);
            if fits {
                let n = stages.len();
                let note = format!(
                    "chunks are read {reads:.1} times each: estimated {direct_cost:.2} s of worker \
                     time, instead of {all:.2} s for {n} copies"
                );
                lowering.add_note(*target, note);
                return None;
            }
        }
        problem.memory = problem.memory / 4 * 3;
    }
    None
}

/// Returns the copies of a route, with intermediate arrays between them.
fn route_stages(
    lowering: &mut Lowering<'_>,
    draft: &Draft,
    grid: &ChunkGrid,
    cuts: &[AxisGrid],
    route: &rechunk::Route,
) -> Option<Vec<Stage>> {
    let last = route.boxes.len() - 1;
    let tasks: Vec<ChunkGrid> = route
        .boxes
        .iter()
        .enumerate()
        .map(|(i, lengths)| {
            let axis = |d: usize| {
                let (n, length) = (grid.axes()[d].len(), lengths[d]);
                let own = if i == last { &grid.axes()[d] } else { &cuts[d] };
                let unit = own.max_extent().max(1);
                if i == last || (i == 0 && length % unit == 0) {
                    own.group((length / unit).max(1))
                } else {
                    AxisGrid::regular(n, length)
                }
            };
            ChunkGrid::new((0..lengths.len()).map(axis).collect())
        })
        .collect();
    let dtype = lowering.arrays[draft.outputs[0].0].info.dtype;
    let shape = grid.shape();
    let mut stages: Vec<Stage> = Vec::with_capacity(tasks.len());
    let mut read: Option<ArrayId> = None;
    for (i, own) in tasks.iter().enumerate() {
        let output = if i == last {
            draft.outputs[0]
        } else {
            let info = ArrayInfo::intermediate(
                dtype,
                rechunk::between(own, &tasks[i + 1])?,
                lowering.spec.codec,
            );
            let name = format!("{}-{:03}", draft.name, lowering.arrays.len());
            lowering.add(PlanArray { name, info, place: Place::Work })
        };
        let (expr, inputs) = match read {
            None => (draft.expr.clone(), draft.inputs.clone()),
            Some(id) => {
                let mut copy = Expr::new(vec![dtype]);
                let node = copy.push(ExprNode::Input(0)).ok()?;
                copy.add_results(&[node]);
                (copy, vec![StageInput { sources: vec![id], map: ReadMap::identity(&shape) }])
            }
        };
        let outputs = vec![StageOutput::kept(output, shape.len())];
        stages.push(Stage::new(draft.name, Kernel::Map(Map(expr)), inputs, outputs, own.clone()));
        read = Some(output);
    }
    Some(stages)
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

fn kind_of(scope: Scope<'_>, array: &PlanArray) -> rechunk::Kind {
    rechunk::Kind { compressed: array.info.codecs.len() > 1, remote: scope.is_remote(array) }
}
