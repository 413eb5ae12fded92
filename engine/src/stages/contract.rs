//! Matrix products, summed along axes: the boxes of the result that tasks compute, and the division
//! of the sum into parallel parts.
//!
//! A task iterates along the contracted axes and adds matrix products to its accumulators, a box of
//! the result. Operands are multiplied in place. Operands that are computed, or whose layout is not
//! that of matrices, are packed first.

use std::ops::Range;

use freestone_kernels::reduce::Finish;
use freestone_kernels::{
    Buffer, DType, Expr, ReduceOp, View, contiguous_strides, contract, copy, eval,
};
use serde::{Deserialize, Serialize};

use super::reduce::{Fold, PARTIAL_SHARE, ReduceDraft};
use super::{AnyDraft, Compiled, DraftKind, Kernel, StageKind, StageOp};
use crate::graph::NodeRef;
use crate::grid::{AxisGrid, ChunkGrid};
use crate::memory::Part;
use crate::plan::explain::term;
use crate::plan::layout::{Builder, StageLayout, TASK_OVERHEAD_BYTES, TOO_LARGE, holding};
use crate::plan::lower::{Draft, Lowering};
use crate::plan::walk::Position;
use crate::plan::{
    ArrayId, OutAxis, Place, Plan, PlanArray, PlanError, ReadMode, Stage, StageInput, StageOutput,
    malformed, traffic,
};
use crate::program::{Over, Phase, SlotId, Step};
use crate::readmap::{AxisMap, ReadMap};
use crate::state::{TaskState, overrun, sizes};
use crate::storage::array::ArrayInfo;
use crate::task::{Cause, internal};
use crate::user::KernelRegistry;

/// `out[b…, i…, j…] = Σ lhs[b…, i…, k…] · rhs[b…, j…, k…]`; the iteration space is
/// `b…, i…, j…, k…`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contract {
    /// The expression of `lhs` over the first inputs and that of `rhs` over the others, with one
    /// result each.
    pub operands: Box<[Expr; 2]>,
    /// The number of axes `b…`.
    pub batch: usize,
    /// The numbers of axes `i…` and `j…`.
    pub free: [usize; 2],
}

impl Contract {
    /// Returns the number of axes of the result.
    fn kept(&self) -> usize {
        self.batch + self.free[0] + self.free[1]
    }

    /// Returns the inputs of an operand.
    fn inputs_of(&self, operand: usize) -> Range<usize> {
        let first = self.operands[0].inputs().len();
        if operand == 0 { 0..first } else { first..first + self.operands[1].inputs().len() }
    }

    /// Returns the axes of the iteration space that an operand lacks.
    fn axes_without(&self, operand: usize) -> Range<usize> {
        if operand == 0 {
            self.batch + self.free[0]..self.kept()
        } else {
            self.batch..self.batch + self.free[0]
        }
    }

    /// Returns the axes of an operand, for an iteration space of `rank` axes.
    fn axes_of(&self, operand: usize, rank: usize) -> Vec<usize> {
        let without = self.axes_without(operand);
        (0..rank).filter(|d| !without.contains(d)).collect()
    }
}

impl StageKind for Contract {
    fn inputs(&self) -> Vec<DType> {
        self.operands.iter().flat_map(|o| o.inputs().to_vec()).collect()
    }

    fn exprs(&self) -> Vec<&Expr> {
        self.operands.iter().collect()
    }

    fn check(&self, _plan: &Plan, stage: &Stage) -> Result<Vec<DType>, PlanError> {
        let rank = stage.tasks.axes().len();
        let counts = [self.batch, self.free[0], self.free[1]];
        let Some(kept) = counts.iter().try_fold(0usize, |p, n| p.checked_add(*n)) else {
            return Err(malformed("the operands have too many axes"));
        };
        match self.operands.iter().flat_map(Expr::result_dtypes).collect::<Vec<_>>()[..] {
            [a, b]
                if a == b
                    && contract::is_defined(a)
                    && kept <= rank
                    && stage.walk.axes()[..kept] == stage.tasks.axes()[..kept] =>
            {
                Ok(vec![a])
            }
            _ => Err(malformed("the operands are not matrices of one dtype")),
        }
    }

    fn program(&self, layout: &mut Builder<'_>) -> Result<Vec<Step>, PlanError> {
        let n = layout.inputs.len();
        let info = &layout.scope.array(layout.stage.outputs[0].array).info;
        let accumulator =
            layout.accumulator(0, layout.kept_bytes(info.dtype.size(), |d| !self.folds(d)));
        let as_they_are = info.stored_shape.is_none() && n_objects(layout, 0) == 1;
        let block: Vec<SlotId> = if as_they_are { Vec::new() } else { vec![layout.output(0)] };
        for (o, expr) in self.operands.iter().enumerate() {
            let packed = (!(expr.is_identity() && self.lies_as_matrix(layout, o))).then(|| {
                let without = self.axes_without(o);
                let size = expr.result_dtypes().first().map_or(0, |d| d.size()) as u64;
                let own = layout.block.iter().enumerate().filter(|(d, _)| !without.contains(d));
                let bytes = own.map(|(_, n)| n).try_fold(size, |p, n| p.checked_mul(*n));
                layout.program.slot(Part::Region, bytes.unwrap_or(TOO_LARGE))
            });
            layout.packed.push(packed);
        }
        let packed: Vec<SlotId> = layout.packed.iter().copied().flatten().collect();
        let add = holding(&packed, vec![Step::Compute(Phase::Block)]);
        let body = [layout.loads(0..n), add, layout.unloads(0..n)].concat();
        let adds = Step::ForEach { over: Over::Blocks, body };
        let finish = if as_they_are { None } else { Some(Step::Compute(Phase::Finish(0))) };
        let stored = holding(&block, finish.into_iter().chain(layout.store(0)).collect());
        let stores = Step::ForEach { over: Over::Objects(0), body: stored };
        Ok(holding(&[accumulator], vec![Step::Compute(Phase::Start), adds, stores]))
    }

    fn description(&self) -> String {
        "multiplies matrices".to_owned()
    }

    fn formula(&self, _j: usize, names: &[String]) -> String {
        let (left, right) = names.split_at(self.inputs_of(0).end.min(names.len()));
        format!(
            "matmul({}, {})",
            term(&self.operands[0], 0, left),
            term(&self.operands[1], 0, right)
        )
    }

    fn folds(&self, axis: usize) -> bool {
        axis >= self.kept()
    }

    fn scratch_bytes(&self, block: &[u64]) -> u64 {
        // The panels of both operands, which never exceed these bounds.
        let size = self.inputs().first().map_or(16, |t| t.size() as u64);
        let side = |free: Range<usize>| {
            free.chain(self.kept()..block.len()).fold(size, |p, d| p.saturating_mul(block[d]))
        };
        let (left, right) = (
            side(self.batch..self.batch + self.free[0]),
            side(self.batch + self.free[0]..self.kept()),
        );
        let panels = contract::SCRATCH_BYTES
            .min(left.saturating_add(right).saturating_mul(2).saturating_add(TASK_OVERHEAD_BYTES));
        self.operands.iter().map(eval::scratch_bytes).sum::<u64>() + panels + TASK_OVERHEAD_BYTES
    }

    fn compile(&self, _kernels: &KernelRegistry) -> Result<Box<dyn Compiled>, String> {
        let evaluators =
            [eval::Evaluator::new(&self.operands[0]), eval::Evaluator::new(&self.operands[1])];
        Ok(Box::new(CompiledContract { kernel: self.clone(), evaluators }))
    }
}

/// Returns the maximum number of objects of output `j` that one task writes.
fn n_objects(layout: &Builder<'_>, j: usize) -> u64 {
    let stage = layout.stage;
    let objects = layout.scope.array(stage.outputs[j].array).info.objects();
    let along = |(axis, grid): (&OutAxis, &AxisGrid)| match axis {
        OutAxis::Kept(a) => grid.n_chunks().div_ceil(stage.tasks.axes()[*a].n_chunks().max(1)),
        OutAxis::Part(_) | OutAxis::One => 1,
    };
    stage.outputs[j].axes.iter().zip(objects.axes()).map(along).product()
}

impl Contract {
    /// Returns true if an operand without arithmetic can be multiplied in place. This requires that
    /// each of its two sides is one axis with a positive stride, and that one of these axes is
    /// contiguous.
    fn lies_as_matrix(&self, layout: &Builder<'_>, operand: usize) -> bool {
        let Contract { batch, free, .. } = *self;
        let i = self.inputs_of(operand).start;
        let (input, own) = (&layout.stage.inputs[i], &layout.inputs[i]);
        let rank = input.map.shape().len();
        let first = if operand == 0 { batch } else { batch + free[0] };
        let sides = (first..first + free[operand]).chain(self.kept()..rank);
        // Values that are broadcast along a side are not stored for each of its rows.
        if sides.into_iter().any(|d| !own.varies[d] && input.map.shape()[d] > 1) {
            return false;
        }
        if own.mode != ReadMode::InChunk {
            return true;
        }
        let Some(axes) = input.map.as_image() else { return false };
        let contracted = rank - self.kept();
        let stored = layout.scope.array(input.sources[0]).info.chunk_shape();
        // Trailing axes of the source whose chunk length is 1 do not matter.
        let last = axes.iter().zip(&stored).rev().find(|(_, n)| **n > 1).map(|(a, _)| a);
        let side = |axis: &AxisMap| axis.axis().is_some_and(|a| a >= batch);
        let upwards = |axis: &AxisMap| {
            !matches!(axis, AxisMap::Along { step, .. } if *step < 1)
                && !matches!(axis, AxisMap::Gather { .. })
        };
        let unit = last.is_none_or(|a| side(a) && matches!(a, AxisMap::Along { step: 1, .. }));
        free[operand] <= 1
            && contracted <= 1
            && axes.iter().filter(|a| side(a)).all(upwards)
            && unit
    }
}

#[derive(Debug)]
struct CompiledContract {
    kernel: Contract,
    /// The evaluator of each operand.
    evaluators: [eval::Evaluator; 2],
}

impl Compiled for CompiledContract {
    fn compute(
        &mut self,
        phase: Phase,
        at: &Position,
        task: &mut TaskState<'_>,
    ) -> Result<(), Cause> {
        match phase {
            Phase::Start => {
                let (kernel, dtype) = (&self.kernel, task.outputs[0].info().dtype);
                task.start(0, dtype, |d| !kernel.folds(d))?.fill(0);
                Ok(())
            }
            Phase::Block => self.multiply(at, task),
            Phase::Finish(_) => cut_out(at, task),
            Phase::Begin => Err(internal("a matrix product has no begin phase")),
        }
    }
}

impl CompiledContract {
    /// Adds the product of the loaded operands to the accumulators.
    fn multiply(&mut self, at: &Position, task: &mut TaskState<'_>) -> Result<(), Cause> {
        let mut packs: [Option<Buffer>; 2] = [None, None];
        for (o, pack) in packs.iter_mut().enumerate() {
            if task.layout.packed[o].is_some() {
                *pack = Some(self.pack(o, at, task)?);
            }
        }
        let mut accumulator = task.accumulators[0]
            .take()
            .ok_or_else(|| internal("accumulators exist until the task ends"))?;
        let added = self.add_products(at, task, &packs, accumulator.bytes_mut());
        task.accumulators[0] = Some(accumulator);
        packs.into_iter().flatten().for_each(|p| task.resources.arena.recycle(p));
        added
    }

    /// Returns views of an operand's inputs, along the operand's axes.
    fn views<'t>(&self, operand: usize, at: &Position, task: &'t TaskState<'_>) -> Vec<View<'t>> {
        let axes = self.kernel.axes_of(operand, at.cell.shape.len());
        let mut views = task.views_of(
            self.kernel.inputs_of(operand),
            self.kernel.operands[operand].inputs(),
            &at.cell,
        );
        for view in &mut views {
            view.shape = axes.iter().map(|d| view.shape[*d]).collect();
            view.strides = axes.iter().map(|d| view.strides[*d]).collect();
        }
        views
    }

    /// Evaluates an operand into a buffer with the layout of matrices.
    fn pack(
        &mut self,
        operand: usize,
        at: &Position,
        task: &mut TaskState<'_>,
    ) -> Result<Buffer, Cause> {
        let axes = self.kernel.axes_of(operand, at.cell.shape.len());
        let shape: Vec<usize> = axes.iter().map(|d| at.cell.shape[*d] as usize).collect();
        let size = task.outputs[0].info().dtype.size();
        let mut pack = task
            .resources
            .arena
            .buffer((shape.iter().product::<usize>() * size) as u64)
            .map_err(overrun)?;
        let views = self.views(operand, at, task);
        eval::map(&mut self.evaluators[operand], &shape, &views, &mut [pack.bytes_mut()]);
        Ok(pack)
    }

    /// Adds the products of all batches.
    fn add_products(
        &self,
        at: &Position,
        task: &TaskState<'_>,
        packs: &[Option<Buffer>; 2],
        out: &mut [u8],
    ) -> Result<(), Cause> {
        let Contract { batch, free, .. } = self.kernel;
        let count = |axes: Range<usize>| at.cell.shape[axes].iter().product::<u64>() as usize;
        let (batches, k) = (count(0..batch), count(self.kernel.kept()..at.cell.shape.len()));
        let rows = [count(batch..batch + free[0]), count(batch + free[0]..self.kernel.kept())];
        let dtype = task.outputs[0].info().dtype;
        let each = rows[0] * rows[1] * dtype.size();
        let views = [self.views(0, at, task), self.views(1, at, task)];
        let matrix = |o: usize, b: usize| match (&packs[o], views[o].first()) {
            (Some(pack), _) => Ok(View {
                dtype,
                bytes: pack.bytes(),
                offset: b * rows[o] * k,
                shape: vec![rows[o], k],
                strides: vec![k as isize, 1],
            }),
            (None, Some(view)) => Ok(matrix_of(view, batch, free[o], b, [rows[o], k])),
            (None, None) => Err(internal("an operand of a product has an input or a packed block")),
        };
        for b in 0..batches {
            let (left, right) = (matrix(0, b)?, matrix(1, b)?);
            if !contract::is_direct(&left) || !contract::is_direct(&right) {
                return Err(internal("an operand that is not packed has the layout of a matrix"));
            }
            contract::add_product(&left, &right, &mut out[b * each..(b + 1) * each]);
        }
        Ok(())
    }
}

/// Returns the matrix of batch `b` of an operand that is multiplied in place. Each side is one
/// axis, or several axes that are contiguous.
fn matrix_of<'t>(
    view: &View<'t>,
    batch: usize,
    free: usize,
    b: usize,
    [rows, k]: [usize; 2],
) -> View<'t> {
    let (mut rest, mut offset) = (b, view.offset as isize);
    for d in (0..batch).rev() {
        offset += (rest % view.shape[d]) as isize * view.strides[d];
        rest /= view.shape[d];
    }
    let side =
        |of: Range<usize>| of.rev().find(|d| view.shape[*d] > 1).map_or(0, |d| view.strides[d]);
    let strides = match (side(batch..batch + free), side(batch + free..view.shape.len())) {
        (0, 0) | (0, 1) => vec![k as isize, 1],
        (0, c) => vec![1, c],
        (r, 0) => vec![r, if r == 1 { rows as isize } else { 1 }],
        (r, c) => vec![r, c],
    };
    View {
        dtype: view.dtype,
        bytes: view.bytes,
        offset: offset as usize,
        shape: vec![rows, k],
        strides,
    }
}

/// Copies the current object from accumulators, which are in C order over the task's part of the
/// output.
fn cut_out(at: &Position, task: &mut TaskState<'_>) -> Result<(), Cause> {
    let all = task.stage.output_region(&task.stage.outputs[0], &task.coords);
    let (output, region) = (&task.outputs[0], &task.outputs[0].objects().region(&at.object));
    let (dtype, shape) = (output.info().dtype, sizes(&region.shape));
    let strides = contiguous_strides(&sizes(&all.shape));
    let offset: isize =
        (0..strides.len()).map(|d| (region.start[d] - all.start[d]) as isize * strides[d]).sum();
    let mut block = task.room(task.layout.outputs[0].block, task.stored_bytes(0, at) as u64)?;
    let accumulator = task.accumulators[0]
        .as_ref()
        .ok_or_else(|| internal("accumulators exist until the task ends"))?;
    let view = View {
        dtype,
        bytes: accumulator.bytes(),
        offset: offset as usize,
        shape: shape.clone(),
        strides,
    };
    copy::strided(&view, block.bytes_mut(), 0, &contiguous_strides(&shape));
    task.blocks[0] = Some(block);
    task.pad(0, at);
    Ok(())
}

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
        let (best, groups, read) = self.boxes(draft, lowering);
        let kept = self.grid.axes().len();
        let counts = draft.walk.chunk_counts();
        let target = &lowering.arrays[draft.outputs[0].0].info;
        let (dtype, made, summed) =
            (target.dtype, target.n_bytes(), counts[kept..].iter().product::<u64>());
        let idle = lowering.spec.wanted_tasks() / best.n_tasks().max(1);
        let worth = u64::try_from(read as u128 / (PARTIAL_SHARE * made).max(1)).unwrap_or(u64::MAX);
        let mut parts = idle.min(summed).min(worth);
        if parts <= 1 || best.n_tasks() >= lowering.spec.parallelism {
            return vec![best];
        }
        let mut groups = groups;
        for d in kept..counts.len() {
            let here = counts[d].min(parts).max(1);
            groups[d] = counts[d].div_ceil(here).max(1);
            parts = parts.div_ceil(here);
        }
        let id = ArrayId(lowering.arrays.len());
        let mut first = self.stage(draft, id, &groups);
        let split: Vec<u64> =
            first.tasks.axes()[kept..].iter().map(AxisGrid::n_chunks).filter(|n| *n > 1).collect();
        let partial_axes = first.tasks.axes()[..kept]
            .iter()
            .cloned()
            .chain(split.iter().map(|n| AxisGrid::regular(*n, 1)));
        let partial_grid = ChunkGrid::new(partial_axes.collect());
        let info = ArrayInfo::intermediate(dtype, partial_grid.clone(), lowering.spec.codec);
        lowering.add(PlanArray {
            name: format!("partial-{}-{:03}", draft.name, id.0),
            info,
            place: Place::Work,
        });
        first.notes.push(format!(
            "computes {} partial sums in parallel, because the result has few chunks",
            split.iter().product::<u64>()
        ));
        let sum = ReduceDraft {
            axes: (kept..kept + split.len()).collect(),
            kept: self.grid.axes().to_vec(),
            folds: vec![Fold { op: ReduceOp::Sum, values: dtype, finish: Finish::Value(dtype) }],
            keepdims: vec![false],
        };
        let combine = Draft {
            name: "combine",
            kind: AnyDraft::Reduce(sum.clone()),
            expr: Expr::identity(dtype),
            inputs: vec![StageInput {
                sources: vec![id],
                map: ReadMap::identity(&partial_grid.shape()),
            }],
            outputs: draft.outputs.clone(),
            walk: partial_grid,
        };
        let second = sum.stage(&combine, &split, None, lowering);
        vec![first, second]
    }

    fn more_inputs(&self) -> &[StageInput] {
        &self.rhs_inputs
    }
}

impl ContractDraft {
    /// Returns the stage whose tasks compute boxes of `groups` chunks along each axis of the
    /// iteration space.
    fn stage(&self, draft: &Draft, output: ArrayId, groups: &[u64]) -> Stage {
        let kept = self.grid.axes().len();
        let tasks = ChunkGrid::new(
            draft.walk.axes().iter().zip(groups).map(|(a, g)| a.group(*g)).collect(),
        );
        let split = (kept..tasks.axes().len()).filter(|d| tasks.axes()[*d].n_chunks() > 1);
        let axes = (0..kept).map(OutAxis::Kept).chain(split.map(OutAxis::Part)).collect();
        let operands = Box::new([draft.expr.clone(), self.rhs.clone()]);
        let kernel = Kernel::Contract(Contract { operands, batch: self.batch, free: self.free });
        let inputs = draft.inputs.iter().chain(&self.rhs_inputs).cloned().collect();
        let walk = ChunkGrid::new(
            tasks.axes()[..kept].iter().chain(&draft.walk.axes()[kept..]).cloned().collect(),
        );
        Stage {
            walk,
            ..Stage::new(
                draft.name,
                kernel,
                inputs,
                vec![StageOutput { array: output, axes }],
                tasks,
            )
        }
    }

    /// Returns the largest boxes that fit and leave enough tasks, with the bytes that they read.
    fn boxes(&self, draft: &Draft, lowering: &Lowering<'_>) -> (Stage, Vec<u64>, f64) {
        let (scope, kept, counts) =
            (lowering.scope(), self.grid.axes().len(), draft.walk.chunk_counts());
        // The boxes are whole along the contracted axes.
        let mut groups: Vec<u64> =
            (0..counts.len()).map(|d| if d < kept { 1 } else { counts[d].max(1) }).collect();
        let bytes =
            |s: &Stage| -> f64 { traffic::reads(scope, s).iter().map(|(_, t)| t.bytes).sum() };
        let mut best = self.stage(draft, draft.outputs[0], &groups);
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
                let candidate = self.stage(draft, draft.outputs[0], &trial);
                let (now, enough) =
                    (bytes(&candidate), candidate.n_tasks() >= lowering.spec.wanted_tasks());
                if enough
                    && now < read
                    && next.as_ref().is_none_or(|(r, ..)| now < *r)
                    && StageLayout::fits(scope, &candidate)
                {
                    next = Some((now, d, wider, candidate));
                }
            }
            let Some((now, d, wider, candidate)) = next else { return (best, groups, read) };
            (read, groups[d], best) = (now, wider, candidate);
        }
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
            if !lowering.passes(operand, &self.map(o)) {
                lowering.mark_one(
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
        let walk = ChunkGrid::new(
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
            Draft::new(node.name(), kind(Expr::new(Vec::new()), Vec::new()), target, walk.clone())
        };
        let left = lowering.draft_over(lhs, &self.map(0), empty())?;
        let right = lowering.draft_over(rhs, &self.map(1), empty())?;
        Ok(Some(Draft { kind: kind(right.expr, right.inputs), ..left }))
    }
}
