//! Cumulative sums and products along an axis: one stage if enough tasks can run along the whole
//! axis, else three stages.
//!
//! Of the three stages, the first sums parts of the axis, the second computes the sum before each
//! part, and the third reads the input again.

use freestone_kernels::reduce::Finish;
use freestone_kernels::{DType, Expr, Node as ExprNode, ScanOp, eval};
use serde::{Deserialize, Serialize};

use super::reduce::{Fold, MAX_TASK_INPUT_BYTES, Reduce};
use super::{AnyDraft, Compiled, DraftKind, Kernel, StageKind, StageOp};
use crate::graph::NodeRef;
use crate::grid::{AxisGrid, ChunkGrid, Region};
use crate::plan::explain::term;
use crate::plan::layout::{Builder, holding};
use crate::plan::loops::Position;
use crate::plan::lower::{Draft, Lowering};
use crate::plan::{
    ArrayId, OutAxis, Place, Plan, PlanArray, PlanError, ReadMode, Stage, StageInput, StageOutput,
    malformed,
};
use crate::program::{Over, Phase, Step};
use crate::readmap::ReadMap;
use crate::state::{TaskState, sizes};
use crate::storage::array::ArrayInfo;
use crate::task::{Cause, internal};
use crate::user::KernelRegistry;

/// A cumulative sum or product along an axis, block by block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scan {
    /// The expression of the values, with one result.
    pub expr: Expr,
    /// The operation.
    pub op: ScanOp,
    /// The axis.
    pub axis: usize,
    /// True if each element is the total of the elements before it, excluding itself.
    pub exclusive: bool,
    /// True if the last input holds the total before each task, with one element along the axis for
    /// each task.
    pub carry: bool,
}

impl Scan {
    /// Returns the index of the input that holds the total before each task.
    fn carried(&self) -> Option<usize> {
        self.carry.then(|| self.expr.inputs().len())
    }

    /// Returns the dtypes of the scanned values and of the running total.
    fn dtypes(&self) -> Option<(DType, DType)> {
        let [values] = self.expr.result_dtypes()[..] else { return None };
        Some((values, self.op.carrier(values)?))
    }
}

impl StageKind for Scan {
    fn inputs(&self) -> Vec<DType> {
        let carried = self.dtypes().map(|(_, carrier)| carrier).filter(|_| self.carry);
        self.expr.inputs().iter().copied().chain(carried).collect()
    }

    fn exprs(&self) -> Vec<&Expr> {
        vec![&self.expr]
    }

    fn check(&self, plan: &Plan, stage: &Stage) -> Result<Vec<DType>, PlanError> {
        let Scan { axis, carry, .. } = self;
        let Some((dtype, _)) = self.dtypes() else {
            return Err(malformed(
                "a scan requires exactly one result, of a dtype that supports the operation",
            ));
        };
        let Some(tasks) = stage.tasks.axes().get(*axis) else {
            return Err(malformed("the scanned axis does not exist"));
        };
        let whole = |d: usize| d == *axis || stage.tasks.axes()[d] == stage.blocks.axes()[d];
        if (!*carry && tasks.n_chunks() > 1)
            || !(0..stage.tasks.axes().len()).all(whole)
            || !stage.blocks.axes()[*axis].nests_in(tasks, 0, 1)
        {
            return Err(malformed("the tasks are not consecutive along the scanned axis"));
        }
        let is_before = |i: &StageInput| {
            let [source] = i.sources[..] else { return false };
            let parts = plan.arrays.get(source.0).map(|a| a.info.grid.chunk_counts());
            i.map == ReadMap::identity(i.map.shape()) && parts == Some(stage.tasks.chunk_counts())
        };
        if *carry && !stage.inputs.last().is_some_and(is_before) {
            return Err(malformed("the input with the totals before each task is missing"));
        }
        Ok(vec![dtype])
    }

    fn program(&self, layout: &mut Builder<'_>) -> Result<Vec<Step>, PlanError> {
        let (n, all) = (self.expr.inputs().len(), layout.inputs.len());
        let (_, carrier) =
            self.dtypes().ok_or_else(|| malformed("the scan is not defined for its dtype"))?;
        let accumulator =
            layout.accumulator(0, layout.kept_bytes(carrier.size(), |d| d != self.axis));
        let block = layout.output(0);
        let start =
            [layout.loads(n..all), vec![Step::Compute(Phase::Start)], layout.unloads(n..all)]
                .concat();
        let made = [Step::Compute(Phase::Begin), Step::Compute(Phase::Block)]
            .into_iter()
            .chain(layout.unloads(0..n))
            .chain(layout.store(0));
        let each = [layout.loads(0..n), holding(&[block], made.collect())].concat();
        Ok(holding(
            &[accumulator],
            [start, vec![Step::ForEach { over: Over::Objects(0), body: each }]].concat(),
        ))
    }

    fn description(&self) -> String {
        let axis = self.axis;
        if self.exclusive {
            format!("computes the total before each part along axis {axis}")
        } else {
            format!("scans along axis {axis}")
        }
    }

    fn formula(&self, _j: usize, names: &[String]) -> String {
        let name = if self.op == ScanOp::Sum { "cumulative_sum" } else { "cumulative_prod" };
        format!("{name}({})", term(&self.expr, 0, names))
    }

    /// Returns [`ReadMode::InChunk`] for the total before each task, which lies in a chunk of its
    /// own.
    fn read_mode(&self, i: usize) -> Option<ReadMode> {
        (self.carried() == Some(i)).then_some(ReadMode::InChunk)
    }

    fn input_shape(&self, stage: &Stage, i: usize) -> Vec<u64> {
        let mut shape = stage.tasks.shape();
        if let (true, Some(n)) = (self.carried() == Some(i), shape.get_mut(self.axis)) {
            *n = stage.tasks.axes()[self.axis].n_chunks();
        }
        shape
    }

    fn input_region(&self, stage: &Stage, i: usize, coords: &[u64], cell: &Region) -> Region {
        if self.carried() != Some(i) {
            return cell.clone();
        }
        let mut region = stage.tasks.region(coords);
        (region.start[self.axis], region.shape[self.axis]) = (coords[self.axis], 1);
        region
    }

    fn input_blocks(&self, stage: &Stage, i: usize) -> (ChunkGrid, f64) {
        if self.carried() != Some(i) {
            return (stage.task_blocks(), 1.0);
        }
        let axis = |(d, t): (usize, &AxisGrid)| {
            if d == self.axis { AxisGrid::regular(t.n_chunks(), 1) } else { t.clone() }
        };
        (ChunkGrid::new(stage.tasks.axes().iter().enumerate().map(axis).collect()), 1.0)
    }

    fn compile(&self, _kernels: &KernelRegistry) -> Result<Box<dyn Compiled>, String> {
        Ok(Box::new(CompiledScan {
            kernel: self.clone(),
            evaluator: eval::Evaluator::new(&self.expr),
        }))
    }
}

#[derive(Debug)]
struct CompiledScan {
    kernel: Scan,
    evaluator: eval::Evaluator,
}

impl Compiled for CompiledScan {
    fn compute(
        &mut self,
        phase: Phase,
        at: &Position,
        task: &mut TaskState<'_>,
    ) -> Result<(), Cause> {
        match phase {
            Phase::Start => self.start(task),
            Phase::Begin => task.begin(at),
            Phase::Block => self.run(at, task),
            Phase::Finish(_) => Err(internal("a scan has no finish phase")),
        }
    }
}

impl CompiledScan {
    /// Initializes the running total with the total before the task, or with the neutral element.
    fn start(&mut self, task: &mut TaskState<'_>) -> Result<(), Cause> {
        let (op, axis) = (self.kernel.op, self.kernel.axis);
        let (_, carrier) = self
            .kernel
            .dtypes()
            .ok_or_else(|| internal("a checked scan has an accumulator dtype"))?;
        op.start(carrier, task.start(0, carrier, |d| d != axis)?);
        if let Some(i) = self.kernel.carried() {
            let before = task.loaded[i].take().ok_or_else(|| {
                internal("the total before a task is loaded before the task starts")
            })?;
            let mut accumulator = task.accumulators[0]
                .take()
                .ok_or_else(|| internal("a started task has accumulators"))?;
            accumulator.bytes_mut().copy_from_slice(task.bytes(&before.values));
            task.accumulators[0] = Some(accumulator);
        }
        Ok(())
    }

    /// Evaluates the current object and accumulates along it.
    fn run(&mut self, at: &Position, task: &mut TaskState<'_>) -> Result<(), Cause> {
        let Scan { expr, op, axis, exclusive, .. } = &self.kernel;
        let shape = sizes(&at.cell.shape);
        let dtype = task.outputs[0].info().dtype;
        let n = shape.iter().product::<usize>() * dtype.size();
        let (Some(mut block), Some(mut carries)) =
            (task.blocks[0].take(), task.accumulators[0].take())
        else {
            return Err(internal("a scan has an output block and accumulators while it runs"));
        };
        eval::map(
            &mut self.evaluator,
            &shape,
            &task.views(expr.inputs(), &at.cell),
            &mut [&mut block.bytes_mut()[..n]],
        );
        let of = |axes: std::ops::Range<usize>| shape[axes].iter().product::<usize>();
        let around = [of(0..*axis), shape[*axis], of(*axis + 1..shape.len())];
        op.run(dtype, around, &mut block.bytes_mut()[..n], carries.bytes_mut(), *exclusive);
        (task.blocks[0], task.accumulators[0]) = (Some(block), Some(carries));
        task.pad(0, at);
        Ok(())
    }
}

/// A cumulative sum or product before its division into tasks, over the output's index space, chunk
/// by chunk along an axis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScanDraft {
    op: ScanOp,
    axis: usize,
    /// The output's objects.
    grid: ChunkGrid,
}

impl DraftKind for ScanDraft {
    fn stages(&self, draft: &Draft, lowering: &mut Lowering<'_>) -> Vec<Stage> {
        let ScanDraft { op, axis, grid } = self;
        let tasks = self.with(grid.axes()[*axis].group(self.group(draft, lowering)));
        let values = draft.expr.result_dtypes()[0];
        let carrier = op.carrier(values).unwrap_or(values);
        let mut widened = draft.expr.clone();
        let cast = widened.push(ExprNode::Cast(carrier, draft.expr.results()[0]));
        let carry = tasks.axes()[*axis].n_chunks() > 1;
        let last = Scan { expr: draft.expr.clone(), op: *op, axis: *axis, exclusive: false, carry };
        let (Ok(cast), true) = (cast, carry) else {
            return vec![self.stage(draft, last, draft.inputs.clone(), draft.outputs[0], tasks)];
        };
        widened.set_results(&[cast]);
        let (first, totals) = self.totals_stage(draft, widened, carrier, &tasks, lowering);
        let (second, before) = self.before_stage(draft, totals, carrier, &tasks, lowering);
        let carried = self.partial_input(before, &tasks);
        let inputs = draft.inputs.iter().cloned().chain([carried]).collect();
        let third = self.stage(draft, last, inputs, draft.outputs[0], tasks);
        vec![first, second, third]
    }
}

impl ScanDraft {
    /// Returns the grid with the axis replaced.
    fn with(&self, along: AxisGrid) -> ChunkGrid {
        let axis =
            |(d, a): (usize, &AxisGrid)| if d == self.axis { along.clone() } else { a.clone() };
        ChunkGrid::new(self.grid.axes().iter().enumerate().map(axis).collect())
    }

    /// Returns the grid of partial results: one element along the axis for each task.
    fn partial_grid(&self, tasks: &ChunkGrid) -> ChunkGrid {
        let parts = tasks.axes()[self.axis].n_chunks().max(1);
        self.with(AxisGrid::regular(parts, 1))
    }

    /// Returns the input that reads an array of partial results.
    fn partial_input(&self, array: ArrayId, tasks: &ChunkGrid) -> StageInput {
        let map = ReadMap::identity(&self.partial_grid(tasks).shape());
        StageInput { sources: vec![array], map }
    }

    /// Adds an array of partial results.
    fn partial_array(
        &self,
        prefix: &str,
        draft: &Draft,
        dtype: DType,
        tasks: &ChunkGrid,
        lowering: &mut Lowering<'_>,
    ) -> ArrayId {
        let grid = self.partial_grid(tasks);
        let info = ArrayInfo::intermediate(dtype, grid, lowering.spec.codec);
        let name = format!("{prefix}-{}-{:03}", draft.name, lowering.arrays.len());
        lowering.add(PlanArray { name, info, place: Place::Work })
    }

    /// Returns the stage that computes the total of each task, and the array of the totals.
    fn totals_stage(
        &self,
        draft: &Draft,
        expr: Expr,
        carrier: DType,
        tasks: &ChunkGrid,
        lowering: &mut Lowering<'_>,
    ) -> (Stage, ArrayId) {
        let ScanDraft { op, axis, grid } = self;
        let array = self.partial_array("partial", draft, carrier, tasks, lowering);
        let fold = Fold { op: op.fold(), values: carrier, finish: Finish::Carry(carrier) };
        let kernel =
            Kernel::Reduce(Reduce { expr, folds: vec![fold], axes: vec![*axis], parts: None });
        let out = |d: usize| if d == *axis { OutAxis::Part(d) } else { OutAxis::Kept(d) };
        let output = StageOutput { array, axes: (0..grid.axes().len()).map(out).collect() };
        let inputs = draft.inputs.clone();
        let mut stage = Stage::new("partial", kernel, inputs, vec![output], tasks.clone());
        stage.blocks = grid.clone();
        let parts = tasks.axes()[*axis].n_chunks();
        stage.notes.push(format!(
            "computes the totals of {parts} parts along axis {axis}, so that the parts can be \
             scanned in parallel; the input is read twice"
        ));
        (stage, array)
    }

    /// Returns the stage that computes the total before each task, and the array of these totals.
    fn before_stage(
        &self,
        draft: &Draft,
        totals: ArrayId,
        carrier: DType,
        tasks: &ChunkGrid,
        lowering: &mut Lowering<'_>,
    ) -> (Stage, ArrayId) {
        let array = self.partial_array("before", draft, carrier, tasks, lowering);
        let kernel = Scan {
            expr: Expr::identity(carrier),
            op: self.op,
            axis: self.axis,
            exclusive: true,
            carry: false,
        };
        let parts = tasks.axes()[self.axis].n_chunks();
        let whole = self.with(AxisGrid::regular(parts, parts));
        let draft = Draft { name: "before", ..draft.clone() };
        let inputs = vec![self.partial_input(totals, tasks)];
        let mut stage = self.stage(&draft, kernel, inputs, array, whole);
        stage.blocks = self.partial_grid(tasks);
        (stage, array)
    }

    /// Returns the number of chunks along the axis that one task processes.
    fn group(&self, draft: &Draft, lowering: &Lowering<'_>) -> u64 {
        let (axis, grid) = (self.axis, &self.grid);
        let n = grid.axes()[axis].n_chunks().max(1);
        let kept_tasks: u64 = grid
            .axes()
            .iter()
            .enumerate()
            .filter(|(d, _)| *d != axis)
            .map(|(_, a)| a.n_chunks().max(1))
            .product();
        let bytes: u128 = draft
            .inputs
            .iter()
            .flat_map(|i| &i.sources)
            .map(|s| lowering.arrays[s.0].info.n_bytes())
            .sum();
        let by_size = (bytes / u128::from(kept_tasks)).div_ceil(MAX_TASK_INPUT_BYTES) as u64;
        let wanted = if kept_tasks >= lowering.spec.parallelism {
            1
        } else {
            lowering.spec.wanted_tasks().div_ceil(kept_tasks)
        };
        n.div_ceil(wanted.max(by_size).clamp(1, n))
    }

    fn stage(
        &self,
        draft: &Draft,
        kernel: Scan,
        inputs: Vec<StageInput>,
        output: ArrayId,
        tasks: ChunkGrid,
    ) -> Stage {
        let outputs = vec![StageOutput::kept(output, self.grid.axes().len())];
        let mut stage = Stage::new(draft.name, Kernel::Scan(kernel), inputs, outputs, tasks);
        stage.blocks = self.grid.clone();
        stage
    }
}

/// A cumulative sum or product along an axis.
#[derive(Debug)]
pub struct ScanNode {
    /// The values.
    pub input: NodeRef,
    /// The operation.
    pub op: ScanOp,
    /// The axis.
    pub axis: usize,
}

impl StageOp for ScanNode {
    fn inputs(&self) -> &[NodeRef] {
        std::slice::from_ref(&self.input)
    }

    fn into_inputs(self) -> Vec<NodeRef> {
        vec![self.input]
    }

    fn name(&self) -> &'static str {
        if self.op == ScanOp::Sum { "cumulative-sum" } else { "cumulative-prod" }
    }

    fn reason(&self) -> &'static str {
        "other operations read the result of a scan"
    }

    fn draft(
        &self,
        node: &NodeRef,
        target: ArrayId,
        lowering: &mut Lowering<'_>,
    ) -> Result<Option<Draft>, PlanError> {
        let grid = lowering.arrays[target.0].info.objects();
        let kind = ScanDraft { op: self.op, axis: self.axis, grid: grid.clone() };
        lowering
            .draft_of(&self.input, Draft::new(node.name(), AnyDraft::Scan(kind), target, grid))
            .map(Some)
    }
}
