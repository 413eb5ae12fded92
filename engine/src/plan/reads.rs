//! Dependencies between tasks: the tasks of earlier stages that must finish before a task can run.
//!
//! They are derived from read maps when the driver is about to dispatch a request. No state is held
//! per chunk, and planning does not use them.

use std::ops::Range;

use super::{ArrayId, OutAxis, Plan, Stage, StageId, StageInput, StageOutput};
use crate::flat::flat_bounds;
use crate::grid::{Region, try_for_each_coord};
use crate::readmap::{AxisMap, Origin};

/// A range of tasks of a stage, in the order of the stage.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskRange {
    /// The stage.
    pub stage: StageId,
    /// The first task.
    pub first: u64,
    /// One past the last task.
    pub end: u64,
}

/// The maximum number of ranges for a request. Beyond it, the request waits for whole stages.
const MAX_RANGES: usize = 4096;
/// The maximum number of pieces and index list entries that are visited for a request.
const MAX_VISITS: usize = 65_536;

/// Returns, for each array, the stage that writes it and the index of the output.
pub fn writers(plan: &Plan) -> Vec<Option<(StageId, usize)>> {
    let mut writers = vec![None; plan.arrays.len()];
    for (i, stage) in plan.stages.iter().enumerate() {
        stage
            .outputs
            .iter()
            .enumerate()
            .for_each(|(j, o)| writers[o.array.0] = Some((StageId(i), j)));
    }
    writers
}

/// Returns the tasks on which a range of a stage's tasks depends, as disjoint ascending ranges.
/// They include at least all tasks whose results the range reads.
///
/// The cost is bounded for every plan. If the exact answer exceeds the bound, the result is all
/// tasks of the stages on which the stage depends.
pub fn tasks_read(
    plan: &Plan,
    writers: &[Option<(StageId, usize)>],
    stage: StageId,
    tasks: Range<u64>,
) -> Vec<TaskRange> {
    let whole = |stage: &StageId| TaskRange {
        stage: *stage,
        first: 0,
        end: plan.stages[stage.0].n_tasks(),
    };
    let after = &plan.stages[stage.0].after;
    let mut search = Search { plan, writers, ranges: Vec::new(), left: MAX_VISITS };
    match search.stage(&plan.stages[stage.0], tasks) {
        Some(()) => {
            // Wait for all tasks of stages on which the stage depends without reading their
            // outputs.
            let reads = |s: &&StageId| {
                plan.stages[stage.0]
                    .inputs
                    .iter()
                    .flat_map(|i| &i.sources)
                    .any(|a| writers[a.0].is_some_and(|w| w.0 == **s))
            };
            search.ranges.extend(after.iter().filter(|s| !reads(s)).map(whole));
            merge(&mut search.ranges);
            search.ranges
        }
        None => after.iter().map(whole).collect(),
    }
}

/// Returns the tasks that write an object of an array, given the index of the object in C order.
pub fn tasks_writing(
    plan: &Plan,
    writers: &[Option<(StageId, usize)>],
    array: ArrayId,
    object: u64,
) -> Vec<TaskRange> {
    let objects = plan.array(array).info.objects();
    if object >= objects.n_chunks() {
        return Vec::new();
    }
    let spans = spans(&objects.region(&objects.coords(object)));
    let mut search = Search { plan, writers, ranges: Vec::new(), left: MAX_VISITS };
    match (search.read(array, &spans), writers[array.0]) {
        (None, Some((stage, _))) => {
            vec![TaskRange { stage, first: 0, end: plan.stages[stage.0].n_tasks() }]
        }
        _ => search.ranges,
    }
}

/// Sorts ranges and merges adjacent ones.
fn merge(ranges: &mut Vec<TaskRange>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, last| {
        let touches = next.stage == last.stage && next.first <= last.end;
        if touches {
            last.end = last.end.max(next.end);
        }
        touches
    });
}

/// A search for the tasks that write what other tasks read. Its methods return `None` when the
/// search exceeds a limit.
struct Search<'a> {
    plan: &'a Plan,
    writers: &'a [Option<(StageId, usize)>],
    ranges: Vec<TaskRange>,
    /// The remaining number of visits.
    left: usize,
}

impl Search<'_> {
    /// Adds the tasks that write what a range of a stage's tasks reads.
    fn stage(&mut self, stage: &Stage, tasks: Range<u64>) -> Option<()> {
        for number in tasks {
            let coords = stage.task_coords(number);
            let task = stage.tasks.region(&coords);
            for (i, input) in stage.inputs.iter().enumerate() {
                if input.sources.iter().all(|s| self.writers[s.0].is_none()) {
                    continue;
                }
                let region = stage.kernel.kind().input_region(stage, i, &coords, &task);
                if region.n_elements() > 0 {
                    self.input(input, &region)?;
                }
            }
        }
        Some(())
    }

    /// Adds the tasks that write a region of an input.
    fn input(&mut self, input: &StageInput, region: &Region) -> Option<()> {
        self.left = self.left.checked_sub(input.map.pieces().len())?;
        for piece in input.map.restrict(region) {
            match &piece.from {
                Origin::Fill(_) => {}
                Origin::Source { source, axes } => {
                    let id = input.sources[*source];
                    let shape = self.plan.array(id).info.shape();
                    let axes = axes.iter().zip(&shape);
                    let spans = axes.map(|(axis, n)| self.span(axis, &piece.to.shape, *n));
                    let spans = spans.collect::<Option<Vec<_>>>()?;
                    self.read(id, &spans)?;
                }
                Origin::Flat => {
                    let id = input.sources[0];
                    let shape = self.plan.array(id).info.shape();
                    self.read(id, &flat_spans(region, input.map.shape(), &shape))?;
                }
            }
        }
        Some(())
    }

    /// Returns the lowest and the highest index of an index map along a source axis of `n`
    /// elements, over a box of shape `to`.
    fn span(&mut self, axis: &AxisMap, to: &[u64], n: u64) -> Option<(u64, u64)> {
        match axis {
            AxisMap::Fixed(x) => Some((*x, *x)),
            AxisMap::Along { axis: d, .. } => {
                let (a, b) = (axis.at(0), axis.at(to[*d] - 1));
                Some((a.min(b), a.max(b)))
            }
            AxisMap::Gather { axis: d, .. } => {
                self.left = self.left.checked_sub(usize::try_from(to[*d]).ok()?)?;
                Some(
                    (0..to[*d])
                        .map(|j| axis.at(j))
                        .fold((n, 0), |(lo, hi), x| (lo.min(x), hi.max(x))),
                )
            }
        }
    }

    /// Adds the tasks that write a box of an array, given the first and the last element along each
    /// axis.
    fn read(&mut self, array: ArrayId, spans: &[(u64, u64)]) -> Option<()> {
        let Some((id, output)) = self.writers[array.0] else { return Some(()) };
        let writer = &self.plan.stages[id.0];
        let (order, counts) = (writer.order(), writer.tasks.chunk_counts());
        let counts: Vec<u64> = order.iter().map(|d| counts[*d]).collect();
        let tasks = writing_tasks(writer, &writer.outputs[output], spans);
        let (start, shape) = order.iter().map(|d| (tasks.start[*d], tasks.shape[*d])).unzip();
        let tasks = Region { start, shape };
        // Trailing axes that are covered entirely, and the axis before them, form one range.
        let mut inner = counts.len();
        while inner > 0 && tasks.shape[inner - 1] == counts[inner - 1] {
            inner -= 1;
        }
        let below: u64 = counts[inner..].iter().product();
        let Some(last) = inner.checked_sub(1) else {
            self.ranges.push(TaskRange { stage: id, first: 0, end: below });
            return self.check();
        };
        let outer =
            Region { start: tasks.start[..last].to_vec(), shape: tasks.shape[..last].to_vec() };
        if outer.n_elements() > MAX_RANGES as u64 {
            return None;
        }
        let added: Result<(), ()> = try_for_each_coord(&outer, |at| {
            let row = at.iter().zip(&counts).fold(0, |i, (c, n)| i * n + c) * counts[last]
                + tasks.start[last];
            self.ranges.push(TaskRange {
                stage: id,
                first: row * below,
                end: (row + tasks.shape[last]) * below,
            });
            Ok(())
        });
        added.ok()?;
        self.check()
    }

    /// Merges the ranges if there are too many.
    fn check(&mut self) -> Option<()> {
        if self.ranges.len() > MAX_RANGES {
            self.left = self.left.checked_sub(self.ranges.len())?;
            merge(&mut self.ranges);
        }
        (self.ranges.len() <= MAX_RANGES).then_some(())
    }
}

/// Returns the first and the last element along each axis that a region may read. The region is in
/// an array of `shape`, and the elements are in one of `source` shape with the same C order.
fn flat_spans(region: &Region, shape: &[u64], source: &[u64]) -> Vec<(u64, u64)> {
    let position = |index: &[u64]| index.iter().zip(shape).fold(0, |at, (i, n)| at * n + i);
    let last: Vec<u64> = region.start.iter().zip(&region.shape).map(|(s, n)| s + n - 1).collect();
    spans(&flat_bounds(source, position(&region.start), position(&last)))
}

/// Returns the first and the last element of a region along each axis.
fn spans(region: &Region) -> Vec<(u64, u64)> {
    region.start.iter().zip(&region.shape).map(|(s, n)| (*s, s + (*n).max(1) - 1)).collect()
}

/// Returns the box of tasks that write a box of an output.
fn writing_tasks(writer: &Stage, output: &StageOutput, spans: &[(u64, u64)]) -> Region {
    let mut tasks = Region::whole(&writer.tasks.chunk_counts());
    for (axis, (first, last)) in output.axes.iter().zip(spans) {
        let (d, a, b) = match axis {
            OutAxis::Kept(d) => {
                (*d, writer.tasks.axes()[*d].find(*first), writer.tasks.axes()[*d].find(*last))
            }
            OutAxis::Part(d) => (*d, *first, *last),
            OutAxis::One => continue,
        };
        (tasks.start[d], tasks.shape[d]) = (a, b - a + 1);
    }
    tasks
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use freestone_kernels::{DType, Expr};

    use super::super::lower::lower;
    use super::super::tests::{output, random, spec};
    use super::super::{FinalizedPlan, Place};
    use super::*;
    use crate::graph::{Node, Op};
    use crate::grid::ChunkGrid;
    use crate::readmap::ReadMap;

    /// Returns a plan of two stages. The first has 30 tasks over chunks of (10, 10) of (60, 50).
    /// The second reads its output through `map`.
    fn two_stages(map: ReadMap, tasks: &[u64]) -> FinalizedPlan {
        let x = random(&[60, 50], &[10, 10], 1);
        let expr = Expr::identity(DType::Float32);
        let first = Node::map(expr.clone(), vec![x]);
        let cut = Arc::new(Node {
            op: Op::Rechunk(Arc::clone(&first)),
            dtype: first.dtype,
            grid: ChunkGrid::regular(&[60, 50], &[20, 50]).unwrap(),
        });
        let mut plan =
            lower(&[output(&first, "a", None), output(&cut, "b", None)], &spec(100_000_000, 2))
                .unwrap()
                .plan()
                .clone();
        assert_eq!(plan.stages.len(), 2);
        let a = plan
            .arrays
            .iter()
            .position(|a| matches!(&a.place, Place::Output { path, .. } if path == "a"))
            .unwrap();
        let shape = map.shape().to_vec();
        plan.stages[1].inputs = vec![StageInput { sources: vec![ArrayId(a)], map }];
        plan.stages[1].tasks = ChunkGrid::regular(&shape, tasks).unwrap();
        plan.stages[1].blocks = plan.stages[1].tasks.clone();
        plan.stages[1].after = vec![StageId(0)];
        let b = plan.stages[1].outputs[0].array;
        plan.stages[1].outputs[0].axes = (0..shape.len()).map(OutAxis::Kept).collect();
        plan.arrays[b.0].info.grid = plan.stages[1].tasks.clone();
        plan.arrays[b.0].info.stored_shape = None;
        plan.finalize().unwrap()
    }

    #[track_caller]
    fn check(map: ReadMap, tasks: &[u64], which: Range<u64>, expect: &[(u64, u64)]) {
        let plan = two_stages(map, tasks);
        let found = tasks_read(plan.plan(), &writers(plan.plan()), StageId(1), which);
        assert_eq!(found.iter().map(|r| (r.first, r.end)).collect::<Vec<_>>(), expect);
        assert_eq!(tasks_read(plan.plan(), &writers(plan.plan()), StageId(0), 0..30), []);
    }

    #[test]
    fn dependencies_follow_from_the_read_map() {
        let along = |axis, start, step| AxisMap::Along { axis, start, step };
        let whole = || ReadMap::identity(&[60, 50]);
        check(whole(), &[20, 50], 1..2, &[(10, 20)]);
        check(whole(), &[20, 50], 0..3, &[(0, 30)]);
        check(whole(), &[60, 10], 2..3, &[(2, 3), (7, 8), (12, 13), (17, 18), (22, 23), (27, 28)]);
        check(whole(), &[15, 25], 3..4, &[(7, 10), (12, 15)]);
        // Flipped, transposed, every third row, one row, a list, another shape.
        check(
            ReadMap::image(vec![60, 50], vec![along(0, 59, -1), along(1, 0, 1)]),
            &[20, 50],
            0..1,
            &[(20, 30)],
        );
        check(
            ReadMap::image(vec![50, 60], vec![along(1, 0, 1), along(0, 0, 1)]),
            &[10, 30],
            1..2,
            &[(15, 16), (20, 21), (25, 26)],
        );
        check(
            ReadMap::image(vec![20, 50], vec![along(0, 0, 3), along(1, 0, 1)]),
            &[5, 50],
            1..2,
            &[(5, 15)],
        );
        check(
            ReadMap::image(vec![50], vec![AxisMap::Fixed(33), along(0, 0, 1)]),
            &[20],
            1..2,
            &[(17, 19)],
        );
        let listed =
            AxisMap::Gather { axis: 0, start: 0, step: 1, indices: Arc::from([41, 49, 3, 5]) };
        check(
            ReadMap::image(vec![4, 50], vec![listed, along(1, 0, 1)]),
            &[2, 50],
            0..1,
            &[(20, 25)],
        );
        check(ReadMap::flat(vec![3000]), &[500], 1..2, &[(5, 10)]);
    }

    #[test]
    fn a_search_above_its_limit_waits_for_whole_stages() {
        let plan = two_stages(ReadMap::identity(&[60, 50]), &[1, 1]);
        let writers = writers(plan.plan());
        assert_eq!(
            tasks_read(plan.plan(), &writers, StageId(1), 0..1),
            [TaskRange { stage: StageId(0), first: 0, end: 1 }]
        );
        let mut search =
            Search { plan: plan.plan(), writers: &writers, ranges: Vec::new(), left: 5 };
        assert_eq!(search.stage(&plan.plan().stages[1], 0..6), None);
    }
}
