//! Lowering of matrix products: the boxes of the result that tasks compute, and the division of
//! long sums into parallel parts.

use freestone_kernels::reduce::Finish;
use freestone_kernels::{Expr, ReduceOp};

use super::Contract;
use crate::graph::NodeRef;
use crate::grid::{AxisGrid, ChunkGrid};
use crate::plan::layout::StageLayout;
use crate::plan::lower::{Draft, Lowering};
use crate::plan::{
    ArrayId, OutAxis, Place, PlanArray, PlanError, Stage, StageInput, StageOutput, traffic,
};
use crate::readmap::{AxisMap, ReadMap};
use crate::stages::reduce::{Fold, PARTIAL_SHARE, ReduceDraft};
use crate::stages::{AnyDraft, DraftKind, Kernel, StageOp};
use crate::storage::array::ArrayInfo;

/// A matrix product before its division into tasks, over the free and the contracted indices. The
/// draft's own expression and inputs are the left operand.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ContractDraft {
    rhs: Expr,
    rhs_inputs: Vec<StageInput>,
    batch: usize,
    free: [usize; 2],
    /// The output's objects.
    grid: ChunkGrid,
}

impl DraftKind for ContractDraft {
    /// Chooses tasks that compute boxes of the result as large as memory permits, and that iterate
    /// along the contracted axes. If there are few boxes and long sums, parts of the sum are
    /// computed in parallel and then added.
    fn stages(&self, draft: &Draft, lowering: &mut Lowering<'_>) -> Vec<Stage> {
        let Boxes { stage, mut groups, read_bytes } = self.boxes(draft, lowering);
        let kept = self.grid.axes().len();
        let counts = draft.blocks.chunk_counts();
        let summed: u64 = counts[kept..].iter().product();
        let idle = lowering.spec.wanted_tasks() / stage.n_tasks().max(1);
        let made = lowering.arrays[draft.outputs[0].0].info.n_bytes();
        let worth = read_bytes as u128 / (PARTIAL_SHARE * made).max(1);
        let mut parts = idle.min(summed).min(u64::try_from(worth).unwrap_or(u64::MAX));
        if parts <= 1 || stage.n_tasks() >= lowering.spec.parallelism {
            return vec![stage];
        }
        for d in kept..counts.len() {
            let here = counts[d].min(parts).max(1);
            groups[d] = counts[d].div_ceil(here).max(1);
            parts = parts.div_ceil(here);
        }
        self.split_stages(draft, &groups, lowering)
    }

    fn more_inputs(&self) -> &[StageInput] {
        &self.rhs_inputs
    }
}

/// Boxes of the result as tasks.
struct Boxes {
    stage: Stage,
    /// The number of blocks along each axis of a box.
    groups: Vec<u64>,
    /// The bytes that all tasks read.
    read_bytes: f64,
}

impl ContractDraft {
    /// Returns the stage that computes partial sums over boxes of `groups` blocks, and the stage
    /// that adds them.
    fn split_stages(
        &self,
        draft: &Draft,
        groups: &[u64],
        lowering: &mut Lowering<'_>,
    ) -> Vec<Stage> {
        let kept = self.grid.axes().len();
        let dtype = lowering.arrays[draft.outputs[0].0].info.dtype;
        let id = ArrayId(lowering.arrays.len());
        let mut first = self.stage(draft, id, groups);
        let parts = first.tasks.axes()[kept..].iter().map(AxisGrid::n_chunks);
        let parts: Vec<u64> = parts.filter(|n| *n > 1).collect();
        let part_axes = parts.iter().map(|n| AxisGrid::regular(*n, 1));
        let partial_axes = first.tasks.axes()[..kept].iter().cloned().chain(part_axes);
        let partial_grid = ChunkGrid::new(partial_axes.collect());
        lowering.add(PlanArray {
            name: format!("partial-{}-{:03}", draft.name, id.0),
            info: ArrayInfo::intermediate(dtype, partial_grid.clone(), lowering.spec.codec),
            place: Place::Work,
        });
        first.notes.push(format!(
            "computes {} partial sums in parallel, because the result has few chunks",
            parts.iter().product::<u64>()
        ));
        let sum = ReduceDraft {
            axes: (kept..kept + parts.len()).collect(),
            kept: self.grid.axes().to_vec(),
            folds: vec![Fold { op: ReduceOp::Sum, values: dtype, finish: Finish::Value(dtype) }],
            keepdims: vec![false],
        };
        let map = ReadMap::identity(&partial_grid.shape());
        let combine = Draft {
            name: "combine",
            kind: AnyDraft::Reduce(sum.clone()),
            expr: Expr::identity(dtype),
            inputs: vec![StageInput { sources: vec![id], map }],
            outputs: draft.outputs.clone(),
            blocks: partial_grid,
        };
        let second = sum.stage(&combine, &parts, None, lowering);
        vec![first, second]
    }

    /// Returns the stage whose tasks compute boxes of `groups` chunks along each axis of the
    /// iteration space.
    fn stage(&self, draft: &Draft, output: ArrayId, groups: &[u64]) -> Stage {
        let kept = self.grid.axes().len();
        let tasks = ChunkGrid::new(
            draft.blocks.axes().iter().zip(groups).map(|(a, g)| a.group(*g)).collect(),
        );
        let split = (kept..tasks.axes().len()).filter(|d| tasks.axes()[*d].n_chunks() > 1);
        let axes = (0..kept).map(OutAxis::Kept).chain(split.map(OutAxis::Part)).collect();
        let operands = Box::new([draft.expr.clone(), self.rhs.clone()]);
        let kernel = Kernel::Contract(Contract { operands, batch: self.batch, free: self.free });
        let inputs = draft.inputs.iter().chain(&self.rhs_inputs).cloned().collect();
        let blocks = ChunkGrid::new(
            tasks.axes()[..kept].iter().chain(&draft.blocks.axes()[kept..]).cloned().collect(),
        );
        Stage {
            blocks,
            ..Stage::new(
                draft.name,
                kernel,
                inputs,
                vec![StageOutput { array: output, axes }],
                tasks,
            )
        }
    }

    /// Returns the largest boxes that fit and leave enough tasks. Boxes are whole along the
    /// contracted axes.
    fn boxes(&self, draft: &Draft, lowering: &Lowering<'_>) -> Boxes {
        let (kept, counts) = (self.grid.axes().len(), draft.blocks.chunk_counts());
        let groups = (0..counts.len()).map(|d| if d < kept { 1 } else { counts[d].max(1) });
        let mut best = self.boxes_of(draft, groups.collect(), lowering);
        while let Some(better) = self.wider_boxes(&best, draft, lowering) {
            best = better;
        }
        best
    }

    /// Returns the boxes that are wider along one axis and read the fewest bytes, if any of these
    /// read fewer bytes, fit, and leave enough tasks.
    fn wider_boxes(&self, boxes: &Boxes, draft: &Draft, lowering: &Lowering<'_>) -> Option<Boxes> {
        let (kept, counts) = (self.grid.axes().len(), draft.blocks.chunk_counts());
        let mut best: Option<Boxes> = None;
        for d in 0..kept {
            let tasks = counts[d].div_ceil(boxes.groups[d].max(1));
            if tasks <= 1 {
                continue;
            }
            // The next size that leaves fewer tasks along the axis.
            let mut groups = boxes.groups.clone();
            groups[d] = counts[d].div_ceil(tasks - 1);
            let wider = self.boxes_of(draft, groups, lowering);
            let bound = best.as_ref().map_or(boxes.read_bytes, |best| best.read_bytes);
            if wider.stage.n_tasks() >= lowering.spec.wanted_tasks()
                && wider.read_bytes < bound
                && StageLayout::fits(lowering.scope(), &wider.stage)
            {
                best = Some(wider);
            }
        }
        best
    }

    fn boxes_of(&self, draft: &Draft, groups: Vec<u64>, lowering: &Lowering<'_>) -> Boxes {
        let stage = self.stage(draft, draft.outputs[0], &groups);
        let reads = traffic::reads(lowering.scope(), &stage);
        let read_bytes = reads.iter().map(|(_, traffic)| traffic.bytes).sum();
        Boxes { stage, groups, read_bytes }
    }
}

/// The product `out[b…, i…, j…] = Σ lhs[b…, i…, k…] · rhs[b…, j…, k…]`, summed over all `k…`.
#[derive(Debug)]
pub struct ContractNode {
    /// The operands `lhs` and `rhs`, whose common dtype is that of the result.
    pub operands: [NodeRef; 2],
    /// The number of leading axes that both operands and the result share.
    pub batch: usize,
    /// The number of axes that only `lhs` has, and of those that only `rhs` has.
    pub free: [usize; 2],
}

impl ContractNode {
    /// Returns the lengths of `b…, i…, j…, k…`.
    fn space(&self) -> Vec<u64> {
        let [lhs, rhs] = self.operands.each_ref().map(|o| o.shape());
        let (first, second) = (self.batch + self.free[0], self.batch + self.free[1]);
        [&lhs[..first], &rhs[self.batch..second], &lhs[first..]].concat()
    }

    /// Returns the read map of operand 0 or 1 over the iteration space.
    fn map(&self, operand: usize) -> ReadMap {
        let space = self.space();
        let skip = if operand == 0 { 0 } else { self.free[0] };
        let free = self.batch + skip..self.batch + skip + self.free[operand];
        let along = (0..self.batch)
            .chain(free)
            .chain(self.batch + self.free[0] + self.free[1]..space.len());
        ReadMap::image(space.clone(), along.map(AxisMap::whole).collect())
    }
}

impl StageOp for ContractNode {
    fn inputs(&self) -> &[NodeRef] {
        &self.operands
    }

    fn into_inputs(self) -> Vec<NodeRef> {
        self.operands.into()
    }

    fn name(&self) -> &'static str {
        "matmul"
    }

    fn reason(&self) -> &'static str {
        "other operations read the result of a matrix product"
    }

    fn mark(&self, lowering: &mut Lowering<'_>) {
        for (o, operand) in self.operands.iter().enumerate() {
            if !lowering.composes(operand, &self.map(o)) {
                lowering.materialize(
                    operand,
                    "its views do not compose with those of the matrix product that reads it",
                );
            }
        }
    }

    fn draft(
        &self,
        node: &NodeRef,
        target: ArrayId,
        lowering: &mut Lowering<'_>,
    ) -> Result<Option<Draft>, PlanError> {
        let ContractNode { operands: [lhs, rhs], batch, free } = self;
        let grid = lowering.arrays[target.0].info.objects();
        let n_bytes = |n: &NodeRef| {
            n.shape().iter().map(|n| u128::from(*n)).product::<u128>() * n.dtype.size() as u128
        };
        // Along the contracted axes, blocks follow the chunk grid of the larger operand.
        let (larger, first) = if n_bytes(lhs) >= n_bytes(rhs) {
            (lhs, batch + free[0])
        } else {
            (rhs, batch + free[1])
        };
        let blocks = ChunkGrid::new(
            grid.axes().iter().chain(&larger.grid.axes()[first..]).cloned().collect(),
        );
        let kind = |rhs, rhs_inputs| {
            AnyDraft::Contract(ContractDraft {
                rhs,
                rhs_inputs,
                batch: *batch,
                free: *free,
                grid: grid.clone(),
            })
        };
        let empty = || {
            Draft::new(node.name(), kind(Expr::new(Vec::new()), Vec::new()), target, blocks.clone())
        };
        let left = lowering.draft_over(lhs, &self.map(0), empty())?;
        let right = lowering.draft_over(rhs, &self.map(1), empty())?;
        Ok(Some(Draft { kind: kind(right.expr, right.inputs), ..left }))
    }
}
