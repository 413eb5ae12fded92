//! Products of matrices: which boxes of the result tasks make, and whether parts of the sum are made side by side.

use freestone_kernels::reduce::Finish;
use freestone_kernels::{Expr, ReduceOp};

use super::PARTIAL_SHARE;
use crate::grid::{AxisGrid, ChunkGrid};
use crate::plan::lower::{Draft, Kind, Lowering};
use crate::plan::{ArrayId, Fold, Kernel, OutAxis, Place, PlanArray, Stage, StageInput, StageLayout, StageOutput, traffic};
use crate::readmap::ReadMap;
use crate::storage::array::ArrayInfo;

impl Lowering<'_> {
    /// A product of matrices: tasks make boxes of the result as large as memory lets them, and go along the axes that are summed over.
    /// Where there are few boxes and much to sum, parts of the sum are made side by side and added.
    pub(super) fn contract_stages(&mut self, draft: &Draft) -> Vec<Stage> {
        let Kind::Contract { rhs, rhs_inputs, batch, free, grid } = &draft.kind else { return Vec::new() };
        let (kept, rank) = (grid.axes().len(), draft.walk.axes().len());
        let inputs: Vec<StageInput> = draft.inputs.iter().chain(rhs_inputs).cloned().collect();
        let stage = |output: ArrayId, groups: &[u64]| {
            let tasks = ChunkGrid::new(draft.walk.axes().iter().zip(groups).map(|(a, g)| a.group(*g)).collect());
            let split = (kept..rank).filter(|d| tasks.axes()[*d].n_chunks() > 1);
            Stage {
                name: draft.name.into(),
                kernel: Kernel::Contract { operands: Box::new([draft.expr.clone(), rhs.clone()]), batch: *batch, free: *free },
                inputs: inputs.clone(),
                outputs: vec![StageOutput { array: output, axes: (0..kept).map(OutAxis::Kept).chain(split.map(OutAxis::Part)).collect() }],
                walk: ChunkGrid::new(tasks.axes()[..kept].iter().chain(&draft.walk.axes()[kept..]).cloned().collect()),
                tasks,
                sweep: None,
                keep: Vec::new(),
                after: Vec::new(),
                notes: Vec::new(),
            }
        };
        let plan = self.as_plan(Vec::new());
        let counts = draft.walk.chunk_counts();
        // Whole along the axes that are summed over.
        let mut groups: Vec<u64> = (0..rank).map(|d| if d < kept { 1 } else { counts[d].max(1) }).collect();
        let bytes = |s: &Stage| -> f64 { traffic::reads(self.known(), s).iter().map(|(_, t)| t.bytes).sum() };
        let mut best = stage(draft.outputs[0], &groups);
        let mut read = bytes(&best);
        loop {
            let mut next: Option<(f64, usize, u64, Stage)> = None;
            for d in 0..kept {
                let tasks = counts[d].div_ceil(groups[d].max(1));
                if tasks <= 1 {
                    continue;
                }
                // The next size that leaves fewer tasks along the axis.
                let wider = counts[d].div_ceil(tasks - 1);
                let mut trial = groups.clone();
                trial[d] = wider;
                let candidate = stage(draft.outputs[0], &trial);
                let (now, enough) = (bytes(&candidate), candidate.n_tasks() >= self.spec.wanted_tasks());
                let fits = || StageLayout::of(&plan, &candidate).is_ok_and(|l| l.estimate.total() <= self.spec.growth_mem());
                if enough && now < read && next.as_ref().is_none_or(|(r, ..)| now < *r) && fits() {
                    next = Some((now, d, wider, candidate));
                }
            }
            let Some((now, d, wider, candidate)) = next else { break };
            (read, groups[d], best) = (now, wider, candidate);
        }
        let target = &self.arrays[draft.outputs[0].0].info;
        let (made, summed) = (target.n_bytes(), counts[kept..].iter().product::<u64>());
        let idle = self.spec.wanted_tasks() / best.n_tasks().max(1);
        let worth = u64::try_from(read as u128 / (PARTIAL_SHARE * made).max(1)).unwrap_or(u64::MAX);
        let mut parts = idle.min(summed).min(worth);
        if parts <= 1 || best.n_tasks() >= self.spec.parallelism {
            return vec![best];
        }
        for d in kept..rank {
            let here = counts[d].min(parts).max(1);
            groups[d] = counts[d].div_ceil(here).max(1);
            parts = parts.div_ceil(here);
        }
        let id = ArrayId(self.arrays.len());
        let mut first = stage(id, &groups);
        let split: Vec<u64> = first.tasks.axes()[kept..].iter().map(AxisGrid::n_chunks).filter(|n| *n > 1).collect();
        let partial_grid = ChunkGrid::new(first.tasks.axes()[..kept].iter().cloned().chain(split.iter().map(|n| AxisGrid::regular(*n, 1))).collect());
        let dtype = target.dtype;
        self.arrays.push(PlanArray {
            name: format!("partial-{}-{:03}", draft.name, id.0),
            info: ArrayInfo::intermediate(dtype, partial_grid.clone(), self.spec.codec),
            place: Place::Work,
        });
        first.notes.push(format!("sums of {} parts, side by side, because the result has few chunks", split.iter().product::<u64>()));
        let axes: Vec<usize> = (kept..kept + split.len()).collect();
        let combine = Draft {
            name: "combine",
            kind: Kind::Reduce {
                axes: axes.clone(),
                kept: grid.axes().to_vec(),
                folds: vec![Fold { op: ReduceOp::Sum, values: dtype, finish: Finish::Value(dtype) }],
                keepdims: vec![false],
            },
            expr: Expr::identity(dtype),
            inputs: vec![StageInput { sources: vec![id], map: ReadMap::identity(&partial_grid.shape()) }],
            outputs: draft.outputs.clone(),
            walk: partial_grid,
        };
        let second = self.reduce_stage(&combine, &split, None);
        vec![first, second]
    }
}
