//! Running sums and products: in one stage where enough tasks can go along the axis from end to end, else in three.

use freestone_kernels::reduce::Finish;
use freestone_kernels::{Expr, Node as ExprNode, ScanOp};

use super::MAX_TASK_INPUT_BYTES;
use crate::grid::{AxisGrid, ChunkGrid};
use crate::plan::lower::{Draft, Lowering};
use crate::plan::{ArrayId, Fold, Kernel, OutAxis, Place, PlanArray, Stage, StageInput, StageOutput};
use crate::readmap::ReadMap;
use crate::storage::array::ArrayInfo;

impl Lowering<'_> {
    /// A running sum: in one stage where enough tasks can go along the axis from end to end; else sums of parts of it first, what came
    /// before each part next, and then the input once more.
    pub(super) fn scan_stages(&mut self, draft: &Draft, op: ScanOp, axis: usize, grid: &ChunkGrid) -> Vec<Stage> {
        let along = &grid.axes()[axis];
        let kept_tasks: u64 = grid.axes().iter().enumerate().filter(|(d, _)| *d != axis).map(|(_, a)| a.n_chunks().max(1)).product();
        let bytes: u128 = draft.inputs.iter().flat_map(|i| &i.sources).map(|s| self.arrays[s.0].info.n_bytes()).sum();
        let by_size = (bytes / u128::from(kept_tasks)).div_ceil(MAX_TASK_INPUT_BYTES) as u64;
        let wanted = if kept_tasks >= self.spec.parallelism { 1 } else { self.spec.wanted_tasks().div_ceil(kept_tasks) };
        let group = along.n_chunks().max(1).div_ceil(wanted.max(by_size).clamp(1, along.n_chunks().max(1)));
        let with =
            |axis_grid: AxisGrid| ChunkGrid::new(grid.axes().iter().enumerate().map(|(d, a)| if d == axis { axis_grid.clone() } else { a.clone() }).collect());
        let tasks = with(along.group(group));
        let parts = tasks.axes()[axis].n_chunks().max(1);
        let kept: Vec<OutAxis> = (0..grid.axes().len()).map(OutAxis::Kept).collect();
        let stage = |name: &str, expr: Expr, inputs: Vec<StageInput>, output: ArrayId, tasks: ChunkGrid, walk: ChunkGrid, exclusive: bool, carry: bool| Stage {
            name: name.into(),
            kernel: Kernel::Scan { expr, op, axis, exclusive, carry },
            inputs,
            outputs: vec![StageOutput { array: output, axes: kept.clone() }],
            tasks,
            walk,
            sweep: None,
            keep: Vec::new(),
            after: Vec::new(),
            notes: Vec::new(),
        };
        let values = draft.expr.result_dtypes()[0];
        let carrier = op.carrier(values).unwrap_or(values);
        let mut widened = draft.expr.clone();
        let cast = widened.push(ExprNode::Cast(carrier, draft.expr.results()[0]));
        let (Ok(cast), true) = (cast, parts > 1) else {
            return vec![stage(draft.name, draft.expr.clone(), draft.inputs.clone(), draft.outputs[0], tasks, grid.clone(), false, false)];
        };
        widened.set_results(&[cast]);
        let partial_grid = with(AxisGrid::regular(parts, 1));
        let partial = |lowering: &mut Self, what: &str| {
            let id = ArrayId(lowering.arrays.len());
            let info = ArrayInfo::intermediate(carrier, partial_grid.clone(), lowering.spec.codec);
            lowering.arrays.push(PlanArray { name: format!("{what}-{}-{:03}", draft.name, id.0), info, place: Place::Work });
            id
        };
        let (sums, before) = (partial(self, "partial"), partial(self, "before"));
        let out = |d: usize| if d == axis { OutAxis::Part(d) } else { OutAxis::Kept(d) };
        let first = Stage {
            name: "partial".into(),
            kernel: Kernel::Reduce {
                expr: widened,
                folds: vec![Fold { op: op.fold(), values: carrier, finish: Finish::Carry(carrier) }],
                axes: vec![axis],
                parts: None,
            },
            inputs: draft.inputs.clone(),
            outputs: vec![StageOutput { array: sums, axes: (0..grid.axes().len()).map(out).collect() }],
            tasks: tasks.clone(),
            walk: grid.clone(),
            sweep: None,
            keep: Vec::new(),
            after: Vec::new(),
            notes: vec![format!("sums of {parts} parts along axis {axis}, so that the parts can run side by side; the input is read twice")],
        };
        let carried = |id: ArrayId| StageInput { sources: vec![id], map: ReadMap::identity(&partial_grid.shape()) };
        let whole = with(AxisGrid::regular(parts, parts));
        let second = stage("before", Expr::identity(carrier), vec![carried(sums)], before, whole, partial_grid.clone(), true, false);
        let inputs = draft.inputs.iter().cloned().chain([carried(before)]).collect();
        let third = stage(draft.name, draft.expr.clone(), inputs, draft.outputs[0], tasks, grid.clone(), false, true);
        vec![first, second, third]
    }
}
