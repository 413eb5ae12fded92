//! Matrix products, summed along axes: the boxes of the result that tasks compute, and the division
//! of the sum into parallel parts.
//!
//! A task iterates along the contracted axes and adds matrix products to its accumulators, a box of
//! the result. Operands are multiplied in place. Operands that are computed, or whose layout is not
//! that of matrices, are packed first.

mod draft;

use std::ops::Range;

use freestone_kernels::{Buffer, DType, Expr, View, contiguous_strides, contract, copy, eval};
use serde::{Deserialize, Serialize};

use super::{Compiled, StageKind};
use crate::grid::AxisGrid;
use crate::memory::Part;
use crate::plan::explain::term;
use crate::plan::layout::{Builder, TASK_OVERHEAD_BYTES, TOO_LARGE, holding};
use crate::plan::loops::Position;
use crate::plan::{OutAxis, Plan, PlanError, ReadMode, Stage, malformed};
use crate::program::{Over, Phase, SlotId, Step};
use crate::readmap::AxisMap;
use crate::state::{TaskState, overrun, sizes};
use crate::task::{Cause, internal};
use crate::user::KernelRegistry;

pub(crate) use draft::ContractDraft;
pub use draft::ContractNode;

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
                    && stage.blocks.axes()[..kept] == stage.tasks.axes()[..kept] =>
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
        let stores_accumulators = info.stored_shape.is_none() && n_objects(layout, 0) == 1;
        let block: Vec<SlotId> =
            if stores_accumulators { Vec::new() } else { vec![layout.output(0)] };
        self.add_packed(layout);
        let packed: Vec<SlotId> = layout.packed.iter().copied().flatten().collect();
        let add = holding(&packed, vec![Step::Compute(Phase::Block)]);
        let body = [layout.loads(0..n), add, layout.unloads(0..n)].concat();
        let adds = Step::ForEach { over: Over::Blocks, body };
        let finish = if stores_accumulators { None } else { Some(Step::Compute(Phase::Finish(0))) };
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

impl Contract {
    /// Adds a slot for each operand that must be packed.
    fn add_packed(&self, layout: &mut Builder<'_>) {
        for (o, expr) in self.operands.iter().enumerate() {
            if expr.is_identity() && self.is_matrix(layout, o) {
                layout.packed.push(None);
                continue;
            }
            let without = self.axes_without(o);
            let size = expr.result_dtypes().first().map_or(0, |d| d.size()) as u64;
            let own = layout.block.iter().enumerate().filter(|(d, _)| !without.contains(d));
            let bytes = own.map(|(_, n)| n).try_fold(size, |p, n| p.checked_mul(*n));
            let slot = layout.program.slot(Part::Region, bytes.unwrap_or(TOO_LARGE));
            layout.packed.push(Some(slot));
        }
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
    fn is_matrix(&self, layout: &Builder<'_>, operand: usize) -> bool {
        let Contract { batch, free, .. } = *self;
        let i = self.inputs_of(operand).start;
        let (input, own) = (&layout.stage.inputs[i], &layout.inputs[i]);
        let rank = input.map.shape().len();
        let first = if operand == 0 { batch } else { batch + free[0] };
        let sides = (first..first + free[operand]).chain(self.kept()..rank);
        // Broadcast values are not stored for each row of a side.
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
            Phase::Finish(_) => extract_object(at, task),
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

/// Copies the current object from the accumulators, which are in C order over the task's part of
/// the output.
fn extract_object(at: &Position, task: &mut TaskState<'_>) -> Result<(), Cause> {
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
