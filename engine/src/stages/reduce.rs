//! Reductions of an elementwise function along axes of the iteration space.
//!
//! A task reduces its part of the input block by block into accumulators. If there are few tasks
//! and much input, partial results get arrays of their own, and a second stage merges them.

mod shards;

use freestone_kernels::reduce::{self, Finish, FoldSpec};
use freestone_kernels::{
    Buffer, DType, Expr, Node as ExprNode, ReduceOp, contiguous_strides, eval,
};
use serde::{Deserialize, Serialize};

use super::{AnyDraft, Compiled, DraftKind, Kernel, StageKind, StageOp};
use crate::graph::NodeRef;
use crate::grid::{AxisGrid, ChunkGrid, Region};
use crate::plan::access::{cached_chunks, reads_per_chunk};
use crate::plan::explain::{counted, term};
use crate::plan::layout::{Builder, StageLayout, holding};
use crate::plan::loops::Position;
use crate::plan::lower::{Draft, Lowering};
use crate::plan::{
    ArrayId, OutAxis, Place, Plan, PlanArray, PlanError, Scope, Stage, StageInput, StageOutput,
    malformed, traffic,
};
use crate::program::{Over, Phase, SlotId, Step};
use crate::readmap::ReadMap;
use crate::state::{TaskState, sizes};
use crate::storage::array::ArrayInfo;
use crate::task::{Cause, internal};
use crate::user::KernelRegistry;

/// The maximum bytes of input per task, so that tasks can be retried, backed up, and finished
/// within the time limit of AWS Lambda.
pub(super) const MAX_TASK_INPUT_BYTES: u128 = 2_000_000_000;

/// The minimum ratio of bytes read to bytes of partial results for which a split is worthwhile.
pub(super) const PARTIAL_SHARE: u128 = 8;

/// The maximum bytes of a piece of a chunk that is reduced at once. A piece fits a CPU cache
/// together with that of another input.
const PIECE_BYTES: u64 = 1 << 19;

/// Reductions of the results of an elementwise function along axes of the iteration space.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reduce {
    /// The function, with one result for each output.
    pub expr: Expr,
    /// The reduction of each result.
    pub folds: Vec<Fold>,
    /// The reduced axes, in ascending order.
    pub axes: Vec<usize>,
    /// The chunks along each reduced axis from which partial results were computed, for a stage
    /// that merges them.
    pub parts: Option<Vec<AxisGrid>>,
}

/// The reduction of one result, with its final step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fold {
    /// The operation.
    pub op: ReduceOp,
    /// The dtype of the values that are reduced, or from which merged partial results were
    /// computed.
    pub values: DType,
    /// The operation on the accumulators at the end.
    pub finish: Finish,
}

impl Fold {
    /// Returns the dtype of the accumulators.
    pub fn accumulator(&self) -> DType {
        self.op.accumulator(self.values).unwrap_or(self.values)
    }

    /// Returns the display name of the function.
    fn name(&self) -> &'static str {
        match (self.op, self.finish) {
            (_, Finish::Mean { .. }) => "mean",
            (_, Finish::Var { root: true, .. }) => "std",
            (ReduceOp::Sum, _) => "sum",
            (ReduceOp::Prod, _) => "prod",
            (ReduceOp::Min, _) => "min",
            (ReduceOp::Max, _) => "max",
            (ReduceOp::Argmin, _) => "argmin",
            (ReduceOp::Argmax, _) => "argmax",
            (ReduceOp::Var, _) => "var",
        }
    }
}

impl StageKind for Reduce {
    fn inputs(&self) -> Vec<DType> {
        self.expr.inputs().to_vec()
    }

    fn exprs(&self) -> Vec<&Expr> {
        vec![&self.expr]
    }

    fn check(&self, _plan: &Plan, stage: &Stage) -> Result<Vec<DType>, PlanError> {
        let (space, Reduce { expr, folds, axes, parts }) = (stage.tasks.shape(), self);
        if folds.len() != expr.results().len()
            || axes.iter().any(|a| *a >= space.len())
            || axes.windows(2).any(|w| w[0] >= w[1])
        {
            return Err(malformed("the reductions or the reduced axes are invalid"));
        }
        if let Some(parts) = parts {
            let one_each = |(a, part): (&usize, &AxisGrid)| {
                part.is_valid()
                    && part.n_chunks() == space[*a]
                    && stage.blocks.axes()[*a].max_extent() <= 1
            };
            if parts.len() != axes.len() || !axes.iter().zip(parts).all(one_each) {
                return Err(malformed("the partial results do not match the reduced axes"));
            }
        }
        let reads =
            |f: &Fold| if parts.is_some() { f.op.accumulator(f.values) } else { Some(f.values) };
        if expr.result_dtypes().into_iter().zip(folds).any(|(d, f)| reads(f) != Some(d)) {
            return Err(malformed("the dtype of a reduction does not match its expression"));
        }
        let finished: Option<Vec<DType>> =
            folds.iter().map(|f| f.finish.dtype(f.op, f.values)).collect();
        finished.ok_or_else(|| malformed("a reduction is not defined for its dtype"))
    }

    fn program(&self, layout: &mut Builder<'_>) -> Result<Vec<Step>, PlanError> {
        let n = layout.inputs.len();
        let (mut accumulators, mut finishes) = (Vec::new(), Vec::new());
        for (j, fold) in self.folds.iter().enumerate() {
            let bytes = layout.kept_bytes(fold.accumulator().size(), |d| !self.axes.contains(&d));
            accumulators.push(layout.accumulator(j, bytes));
            // Accumulators that are stored unchanged, as one object, need no block of their own.
            let info = &layout.scope.array(layout.stage.outputs[j].array).info;
            let stores_accumulators = fold.finish.is_identity(fold.op, fold.values)
                && info.stored_shape.is_none()
                && info.objects().n_chunks() == layout.stage.n_tasks();
            let block: Vec<SlotId> =
                if stores_accumulators { Vec::new() } else { vec![layout.output(j)] };
            let finish =
                if stores_accumulators { None } else { Some(Step::Compute(Phase::Finish(j))) };
            let body = holding(&block, finish.into_iter().chain(layout.store(j)).collect());
            finishes.push(Step::ForEach { over: Over::Objects(j), body });
        }
        let body =
            [layout.loads(0..n), vec![Step::Compute(Phase::Block)], layout.unloads(0..n)].concat();
        let folds = Step::ForEach { over: Over::Blocks, body };
        Ok(holding(
            &accumulators,
            [Step::Compute(Phase::Start), folds].into_iter().chain(finishes).collect(),
        ))
    }

    fn description(&self) -> String {
        let axes: Vec<String> = self.axes.iter().map(|a| format!("axis {a}")).collect();
        format!("reduces {} along {}", counted(self.folds.len() as u64, "result"), axes.join(", "))
    }

    fn formula(&self, j: usize, names: &[String]) -> String {
        let merged = if self.parts.is_some() { "merged " } else { "" };
        format!(
            "{merged}{}({})",
            self.folds.get(j).map_or("", Fold::name),
            term(&self.expr, j, names)
        )
    }

    fn folds(&self, axis: usize) -> bool {
        self.axes.contains(&axis)
    }

    fn compile(&self, _kernels: &KernelRegistry) -> Result<Box<dyn Compiled>, String> {
        Ok(Box::new(CompiledReduce {
            kernel: self.clone(),
            evaluator: eval::Evaluator::new(&self.expr),
        }))
    }
}

#[derive(Debug)]
struct CompiledReduce {
    kernel: Reduce,
    evaluator: eval::Evaluator,
}

impl Compiled for CompiledReduce {
    fn compute(
        &mut self,
        phase: Phase,
        at: &Position,
        task: &mut TaskState<'_>,
    ) -> Result<(), Cause> {
        match phase {
            Phase::Start => {
                let Reduce { folds, axes, .. } = &self.kernel;
                folds.iter().enumerate().try_for_each(|(j, fold)| {
                    fold.op.start(
                        fold.values,
                        task.start(j, fold.accumulator(), |d| !axes.contains(&d))?,
                    );
                    Ok(())
                })
            }
            Phase::Block => self.fold(at, task),
            Phase::Finish(j) => self.finish(j, at, task),
            Phase::Begin => Err(internal("a reduction has no begin phase")),
        }
    }
}

impl CompiledReduce {
    /// Reduces the loaded blocks of the current cell into the accumulators, which are in C order
    /// over the kept axes of the task.
    fn fold(&mut self, at: &Position, task: &mut TaskState<'_>) -> Result<(), Cause> {
        let Reduce { expr, folds, axes, parts } = &self.kernel;
        let (cell, region) = (&at.cell, &task.region);
        let kept: Vec<usize> = region
            .shape
            .iter()
            .enumerate()
            .map(|(d, n)| if axes.contains(&d) { 1 } else { *n as usize })
            .collect();
        let strides: Vec<isize> = contiguous_strides(&kept)
            .into_iter()
            .enumerate()
            .map(|(d, s)| if axes.contains(&d) { 0 } else { s })
            .collect();
        let offset = (0..kept.len())
            .map(|d| (cell.start[d] - region.start[d]) as isize * strides[d])
            .sum::<isize>();
        let folded: Vec<FoldSpec> =
            folds.iter().map(|f| FoldSpec { op: f.op, values: f.values }).collect();
        let merge = parts.as_ref().map(|parts| {
            axes.iter().zip(parts).map(|(a, part)| part.extent(cell.start[*a])).product()
        });
        // `argmin` and `argmax` count in C order along the reduced axes.
        let space = task.stage.tasks.shape();
        let mut weights = vec![0isize; space.len()];
        let mut weight = 1;
        for d in axes.iter().rev() {
            weights[*d] = weight;
            weight *= space[*d] as isize;
        }
        let first = (0..space.len()).map(|d| cell.start[d] * weights[d] as u64).sum();
        let seen = self.folded_before(cell, region);
        let fold = reduce::FoldBlock {
            folds: &folded,
            offset: offset as usize,
            strides: &strides,
            seen,
            merge,
            index: (first, &weights),
        };
        let mut accumulators = std::mem::take(&mut task.accumulators);
        let mut bytes: Vec<&mut [u8]> =
            accumulators.iter_mut().flatten().map(Buffer::bytes_mut).collect();
        reduce::fold(
            &mut self.evaluator,
            &sizes(&cell.shape),
            &task.views(expr.inputs(), cell),
            &fold,
            &mut bytes,
        );
        task.accumulators = accumulators;
        Ok(())
    }

    /// Returns the number of elements that each accumulator of a cell already contains. Blocks are
    /// processed in C order.
    fn folded_before(&self, cell: &Region, region: &Region) -> u64 {
        let Reduce { axes, parts, .. } = &self.kernel;
        // For each reduced axis: the first element and the number of elements of the task, then of
        // the block.
        let along: Vec<[u64; 4]> = axes
            .iter()
            .enumerate()
            .map(|(k, d)| {
                let (first, len, start, extent) =
                    (region.start[*d], region.shape[*d], cell.start[*d], cell.shape[*d]);
                match parts.as_ref().map(|parts| &parts[k]) {
                    None => [first, len, start, extent],
                    Some(part) => [
                        part.start(first),
                        part.start(first + len) - part.start(first),
                        part.start(start),
                        part.extent(start),
                    ],
                }
            })
            .collect();
        let product =
            |some: &[[u64; 4]], which: usize| some.iter().map(|a| a[which]).product::<u64>();
        (0..along.len())
            .map(|k| {
                product(&along[..k], 3) * (along[k][2] - along[k][0]) * product(&along[k + 1..], 1)
            })
            .sum()
    }

    /// Converts the part of accumulator `j` inside the current object to its output block.
    fn finish(&mut self, j: usize, at: &Position, task: &mut TaskState<'_>) -> Result<(), Cause> {
        let fold = &self.kernel.folds[j];
        let size = task.outputs[j].info().dtype.size();
        let object = task.outputs[j].objects().region(&at.object);
        let mut block = task.room(task.layout.outputs[j].block, task.stored_bytes(j, at) as u64)?;
        let accumulator = task.accumulators[j]
            .as_ref()
            .ok_or_else(|| internal("accumulators exist until the task ends"))?;
        let mut out = &mut block.bytes_mut()[..object.n_elements() as usize * size];
        let held = fold.accumulator().size();
        shards::rows(&task.stage.outputs[j], &task.region, &object, |first, n| {
            let row = &accumulator.bytes()[first * held..][..n * held];
            let (now, rest) = std::mem::take(&mut out).split_at_mut(n * size);
            fold.finish.apply(fold.op, fold.values, row, now);
            out = rest;
        });
        task.blocks[j] = Some(block);
        task.pad(j, at);
        Ok(())
    }
}

/// A reduction before its division into tasks, over the input's index space.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReduceDraft {
    pub(crate) axes: Vec<usize>,
    /// The grids of the kept axes, equal to those of the outputs.
    pub(crate) kept: Vec<AxisGrid>,
    pub(crate) folds: Vec<Fold>,
    /// For each reduction, whether the reduced axes remain with length 1.
    pub(crate) keepdims: Vec<bool>,
}

impl DraftKind for ReduceDraft {
    fn stages(&self, draft: &Draft, lowering: &mut Lowering<'_>) -> Vec<Stage> {
        let this = self.over_shards(draft, lowering);
        let groups = this.whole_shards(draft, lowering, this.groups(draft, lowering));
        let parts: Vec<u64> = this
            .axes
            .iter()
            .zip(&groups)
            .map(|(a, g)| draft.blocks.axes()[*a].n_chunks().div_ceil(*g).max(1))
            .collect();
        if parts.iter().all(|p| *p <= 1) {
            return this.joined_stage(draft, lowering).into_iter().collect();
        }
        // Partial results have one element along each reduced axis for each task along that axis.
        let mut kept_axes = this.kept.iter();
        let partial_axes: Vec<AxisGrid> = (0..draft.blocks.axes().len())
            .map(|d| match this.axes.iter().position(|a| *a == d) {
                Some(i) => AxisGrid::regular(parts[i], 1),
                None => kept_axes.next().cloned().unwrap_or_else(|| AxisGrid::regular(1, 1)),
            })
            .collect();
        let partial_grid = ChunkGrid::new(partial_axes);
        let mut partials = Vec::new();
        let mut combine = Draft {
            name: "combine",
            kind: AnyDraft::Reduce(this.clone()),
            expr: Expr::new(Vec::new()),
            inputs: Vec::new(),
            outputs: draft.outputs.clone(),
            blocks: partial_grid.clone(),
        };
        for fold in &this.folds {
            let dtype = fold.accumulator();
            let info = ArrayInfo::intermediate(dtype, partial_grid.clone(), lowering.spec.codec);
            let name = format!("partial-{}-{:03}", draft.name, lowering.arrays.len());
            let id = lowering.add(PlanArray { name, info, place: Place::Work });
            partials.push(id);
            let slot = combine.expr.add_input(dtype);
            if let Ok(node) = combine.expr.push(ExprNode::Input(slot)) {
                combine.expr.add_results(&[node]);
            }
            combine.inputs.push(StageInput {
                sources: vec![id],
                map: ReadMap::identity(&partial_grid.shape()),
            });
        }
        let first = this.stage(draft, &groups, Some(&partials), lowering);
        let mut second = this.stage(&combine, &parts, None, lowering);
        if let Kernel::Reduce(reduce) = &mut second.kernel {
            reduce.parts = Some(this.axes.iter().map(|a| first.tasks.axes()[*a].clone()).collect());
        }
        vec![first, second]
    }

    fn join(&self, other: &ReduceDraft) -> Option<ReduceDraft> {
        (self.axes == other.axes && self.kept == other.kept).then(|| ReduceDraft {
            folds: self.folds.iter().chain(&other.folds).copied().collect(),
            keepdims: self.keepdims.iter().chain(&other.keepdims).copied().collect(),
            ..self.clone()
        })
    }

    /// Returns a stage that is whole along the reduced axes.
    fn joined_stage(&self, draft: &Draft, lowering: &Lowering<'_>) -> Option<Stage> {
        let whole: Vec<u64> =
            self.axes.iter().map(|a| draft.blocks.axes()[*a].n_chunks().max(1)).collect();
        Some(self.stage(draft, &whole, None, lowering))
    }
}

impl ReduceDraft {
    /// Returns a stage whose tasks reduce `groups` blocks along each reduced axis, into partial
    /// results or the outputs.
    pub(super) fn stage(
        &self,
        draft: &Draft,
        groups: &[u64],
        partials: Option<&[ArrayId]>,
        lowering: &Lowering<'_>,
    ) -> Stage {
        let ReduceDraft { axes, kept, folds, keepdims } = self;
        let mut kept_axes = kept.iter();
        let task = |(d, axis): (usize, &AxisGrid)| match axes.iter().position(|a| *a == d) {
            Some(i) => axis.group(groups[i]),
            None => kept_axes.next().cloned().unwrap_or_else(|| axis.clone()),
        };
        let tasks: Vec<AxisGrid> = draft.blocks.axes().iter().enumerate().map(task).collect();
        let outputs = (0..folds.len()).map(|i| {
            let axis = |d: usize| match (axes.contains(&d), partials.is_some(), keepdims[i]) {
                (false, _, _) => Some(OutAxis::Kept(d)),
                (true, true, _) => Some(OutAxis::Part(d)),
                (true, false, true) => Some(OutAxis::One),
                (true, false, false) => None,
            };
            StageOutput {
                array: partials.map_or(draft.outputs[i], |p| p[i]),
                axes: (0..tasks.len()).filter_map(axis).collect(),
            }
        });
        let folds = folds
            .iter()
            .map(|f| if partials.is_some() { Fold { finish: Finish::Partial, ..*f } } else { *f })
            .collect();
        let kernel = Kernel::Reduce(Reduce {
            expr: draft.expr.clone(),
            folds,
            axes: axes.clone(),
            parts: None,
        });
        let outputs = outputs.collect();
        let mut stage =
            Stage::new(draft.name, kernel, draft.inputs.clone(), outputs, ChunkGrid::new(tasks));
        stage.blocks = draft.blocks.clone();
        if let Some(blocks) = in_pieces(lowering.scope(), &stage, axes) {
            stage.blocks = blocks;
            return stage;
        }
        with_cache(lowering, stage)
    }

    /// Returns the number of blocks along each reduced axis that one task reduces.
    fn groups(&self, draft: &Draft, lowering: &Lowering<'_>) -> Vec<u64> {
        let ReduceDraft { axes, kept, folds, .. } = self;
        let counts: Vec<u64> =
            axes.iter().map(|a| draft.blocks.axes()[*a].n_chunks().max(1)).collect();
        let kept_tasks: u64 = kept.iter().map(AxisGrid::n_chunks).product::<u64>().max(1);
        // The bytes that are reduced, at most the size of the arrays that are read.
        let elements: u128 = draft.blocks.shape().iter().map(|n| u128::from(*n)).product();
        let bytes = |i: &StageInput| {
            let arrays = i.sources.iter().map(|id| &lowering.arrays[id.0].info);
            arrays
                .clone()
                .map(ArrayInfo::n_bytes)
                .sum::<u128>()
                .min(elements * arrays.map(|a| a.dtype.size() as u128).max().unwrap_or(0))
        };
        let input: u128 = draft.inputs.iter().map(bytes).sum();
        let partial: u128 = folds.iter().map(|f| f.accumulator().size() as u128).sum::<u128>()
            * kept.iter().map(|a| u128::from(a.len())).product::<u128>();
        let by_size = (input / u128::from(kept_tasks)).div_ceil(MAX_TASK_INPUT_BYTES);
        let worth = (input / (PARTIAL_SHARE * partial).max(1)).max(1);
        let by_parallelism =
            u128::from(lowering.spec.wanted_tasks().div_ceil(kept_tasks)).min(worth);
        let mut wanted =
            by_size.max(if kept_tasks >= lowering.spec.parallelism { 1 } else { by_parallelism });
        counts
            .iter()
            .map(|n| {
                let parts = (*n).min(u64::try_from(wanted).unwrap_or(u64::MAX)).max(1);
                wanted = wanted.div_ceil(u128::from(parts));
                n.div_ceil(parts)
            })
            .collect()
    }
}

/// Returns the stage with a cache of the chunks that consecutive blocks share, if it saves reads
/// and fits the memory. Consecutive blocks differ along the last axis with several blocks.
fn with_cache(lowering: &Lowering<'_>, stage: Stage) -> Stage {
    let axes = stage.blocks.axes();
    let along = (0..axes.len()).rev().find(|d| axes[*d].n_chunks() > 1);
    let patterns = lowering.access_patterns(&stage);
    let reads = |cached_axis| reads_per_chunk(&stage, &patterns, cached_axis);
    if along.is_none() || reads(along) >= 0.95 * reads(None) {
        return stage;
    }
    let cached = Stage { cache: cached_chunks(&stage, &patterns), ..stage.clone() };
    if StageLayout::fits(lowering.scope(), &cached) { cached } else { stage }
}

/// Returns blocks that fit a CPU cache, if all inputs of a reduction can be read in such pieces.
fn in_pieces(scope: Scope<'_>, stage: &Stage, axes: &[usize]) -> Option<ChunkGrid> {
    let size = stage.kernel.kind().inputs().iter().map(|t| t.size() as u64).max()?;
    let mut blocks = stage.blocks.axes().to_vec();
    let bytes = |blocks: &[AxisGrid]| {
        blocks.iter().fold(size, |p, a| p.saturating_mul(a.max_extent().max(1)))
    };
    // Kept axes come first: along reduced axes, the same accumulators are used again.
    let order = (0..blocks.len()).filter(|d| !axes.contains(d)).chain(axes.iter().copied());
    for d in order {
        let (AxisGrid::Regular { first, size: each, n, .. }, over) =
            (&blocks[d], bytes(&blocks).div_ceil(PIECE_BYTES))
        else {
            continue;
        };
        if over <= 1 || (first != each && *n > 1) {
            continue;
        }
        let most = (each / over).max(1);
        let piece = (1..=most).rev().find(|p| each % p == 0).unwrap_or(1);
        blocks[d] = AxisGrid::regular(blocks[d].len(), piece);
    }
    let fine = Stage { blocks: ChunkGrid::new(blocks), ..stage.clone() };
    let all = bytes(fine.blocks.axes()) < bytes(stage.blocks.axes())
        && fine.inputs.iter().all(|i| traffic::only_parts(scope, &fine, i));
    all.then_some(fine.blocks)
}

/// A reduction along axes.
#[derive(Debug)]
pub struct ReduceNode {
    /// The values to reduce.
    pub input: NodeRef,
    /// The operation.
    pub fold: ReduceOp,
    /// The final operation on the accumulators.
    pub finish: Finish,
    /// The reduced axes, in ascending order.
    pub axes: Vec<usize>,
    /// True if the reduced axes remain with length 1.
    pub keepdims: bool,
}

impl StageOp for ReduceNode {
    fn inputs(&self) -> &[NodeRef] {
        std::slice::from_ref(&self.input)
    }

    fn into_inputs(self) -> Vec<NodeRef> {
        vec![self.input]
    }

    fn name(&self) -> &'static str {
        self.as_fold().name()
    }

    fn reason(&self) -> &'static str {
        "other operations read the result of a reduction"
    }

    fn draft(
        &self,
        node: &NodeRef,
        target: ArrayId,
        lowering: &mut Lowering<'_>,
    ) -> Result<Option<Draft>, PlanError> {
        let ReduceNode { input, axes, keepdims, .. } = self;
        let grid = lowering.arrays[target.0].info.objects();
        let axis_of =
            |d: usize| if *keepdims { d } else { d - axes.iter().filter(|a| **a < d).count() };
        let kept = (0..input.grid.axes().len())
            .filter(|d| !axes.contains(d))
            .map(|d| grid.axes()[axis_of(d)].clone())
            .collect();
        let kind = ReduceDraft {
            axes: axes.clone(),
            kept,
            folds: vec![self.as_fold()],
            keepdims: vec![*keepdims],
        };
        lowering
            .draft_of(
                input,
                Draft::new(node.name(), AnyDraft::Reduce(kind), target, input.grid.clone()),
            )
            .map(Some)
    }
}

impl ReduceNode {
    fn as_fold(&self) -> Fold {
        Fold { op: self.fold, values: self.input.dtype, finish: self.finish }
    }
}
