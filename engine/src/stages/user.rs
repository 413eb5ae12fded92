//! Users' kernels on whole blocks: task `i` computes block `i` of the output.

use std::sync::Arc;

use freestone_kernels::{DType, Expr};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{AnyDraft, Compiled, DraftKind, Kernel, StageKind, StageOp};
use crate::graph::{NodeRef, Op};
use crate::grid::{AxisGrid, ChunkGrid, Region};
use crate::panics;
use crate::plan::explain::listed;
use crate::plan::inline::read_inputs;
use crate::plan::layout::{Builder, TASK_OVERHEAD_BYTES, TOO_LARGE, holding};
use crate::plan::loops::Position;
use crate::plan::lower::{Draft, Lowering};
use crate::plan::{ArrayId, Plan, PlanError, ReadMode, Stage, StageOutput, malformed};
use crate::program::{Over, Phase, SlotId, Step};
use crate::state::{Loaded, TaskState, Values, overrun, sizes};
use crate::task::{Cause, FailureKind, internal};
use crate::user::{AnyKernel, Block, BlockMut, KernelError, KernelRegistry, MakeKernel, Scratch};

/// A user's kernel on whole blocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct User {
    /// The name of the kernel.
    pub name: String,
    /// The version of the kernel.
    pub version: u32,
    /// The parameters of the kernel.
    pub parameters: Value,
    /// The maximum scratch memory in bytes.
    pub scratch_bytes: u64,
    /// The blocks of each input.
    pub blocks: Vec<UserBlocks>,
    /// The dtype of the output.
    pub dtype: DType,
}

/// The blocks of an input of a user's kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserBlocks {
    /// The dtype of the elements.
    pub dtype: DType,
    /// The grid of blocks.
    pub grid: ChunkGrid,
    /// For each axis, the axis of the tasks that its blocks follow; `None` for a single block.
    pub axes: Vec<Option<usize>>,
}

impl UserBlocks {
    /// Returns the block for a task.
    pub fn region(&self, task: &[u64]) -> Region {
        let coords: Vec<u64> = self.axes.iter().map(|a| a.map_or(0, |a| task[a])).collect();
        self.grid.region(&coords)
    }
}

impl StageKind for User {
    fn inputs(&self) -> Vec<DType> {
        self.blocks.iter().map(|b| b.dtype).collect()
    }

    fn exprs(&self) -> Vec<&Expr> {
        Vec::new()
    }

    fn check(&self, _plan: &Plan, stage: &Stage) -> Result<Vec<DType>, PlanError> {
        let fits = |b: &UserBlocks| {
            let is_valid = b.grid.axes().iter().all(AxisGrid::is_valid);
            let axis = |(axis, grid): (&Option<usize>, &AxisGrid)| match axis {
                Some(a) => {
                    stage.tasks.axes().get(*a).is_some_and(|t| t.n_chunks() == grid.n_chunks())
                }
                None => grid.n_chunks() <= 1,
            };
            is_valid
                && b.axes.len() == b.grid.axes().len()
                && b.axes.iter().zip(b.grid.axes()).all(axis)
        };
        if !self.blocks.iter().all(fits) || stage.blocks != stage.tasks {
            return Err(malformed("the blocks do not match the tasks"));
        }
        Ok(vec![self.dtype])
    }

    fn program(&self, layout: &mut Builder<'_>) -> Result<Vec<Step>, PlanError> {
        let n = layout.inputs.len();
        let block: SlotId = layout.output(0);
        let made = [Step::Compute(Phase::Begin), Step::Compute(Phase::Block)].into_iter();
        let made = made.chain(layout.unloads(0..n)).chain(layout.store(0)).collect();
        Ok(vec![Step::ForEach {
            over: Over::Objects(0),
            body: [layout.loads(0..n), holding(&[block], made)].concat(),
        }])
    }

    fn description(&self) -> String {
        format!("applies kernel {} (version {})", self.name, self.version)
    }

    fn formula(&self, _j: usize, names: &[String]) -> String {
        format!("{}({})", self.name, listed(names))
    }

    fn compile(&self, kernels: &KernelRegistry) -> Result<Box<dyn Compiled>, String> {
        let code = kernels.resolve(&self.name, self.version, &self.parameters)?;
        Ok(Box::new(CompiledUser { kernel: self.clone(), code }))
    }

    fn resolve(&self, kernels: &KernelRegistry) -> Result<(), String> {
        kernels.resolve(&self.name, self.version, &self.parameters).map(|_| ())
    }

    fn user_kernel(&self) -> Option<&str> {
        Some(&self.name)
    }

    fn writes_one_object(&self) -> bool {
        true
    }

    fn scratch_bytes(&self, _block: &[u64]) -> u64 {
        self.scratch_bytes.saturating_add(TASK_OVERHEAD_BYTES).min(TOO_LARGE)
    }

    fn read_mode(&self, _i: usize) -> Option<ReadMode> {
        Some(ReadMode::Assembled)
    }

    fn reads_dense(&self) -> bool {
        true
    }

    fn input_shape(&self, _stage: &Stage, i: usize) -> Vec<u64> {
        self.blocks[i].grid.shape()
    }

    fn input_block(&self, i: usize, _block: &[u64]) -> Vec<u64> {
        self.blocks[i].grid.max_chunk()
    }

    fn input_region(&self, _stage: &Stage, i: usize, coords: &[u64], _cell: &Region) -> Region {
        self.blocks[i].region(coords)
    }

    fn input_blocks(&self, stage: &Stage, i: usize) -> (ChunkGrid, f64) {
        let grid = &self.blocks[i].grid;
        (grid.clone(), stage.n_tasks() as f64 / grid.n_chunks().max(1) as f64)
    }

    fn iterates_blocks(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct CompiledUser {
    kernel: User,
    code: Arc<dyn AnyKernel>,
}

impl Compiled for CompiledUser {
    fn compute(
        &mut self,
        phase: Phase,
        at: &Position,
        task: &mut TaskState<'_>,
    ) -> Result<(), Cause> {
        match phase {
            Phase::Begin => task.begin(at),
            Phase::Block => self.apply(at, task),
            Phase::Start | Phase::Finish(_) => Err(internal("a user kernel has no accumulators")),
        }
    }
}

impl CompiledUser {
    /// Applies the kernel to the loaded blocks of the task.
    fn apply(&self, at: &Position, task: &mut TaskState<'_>) -> Result<(), Cause> {
        let User { scratch_bytes, dtype, .. } = &self.kernel;
        let region = task.outputs[0].objects().region(&at.object);
        let shape = sizes(&region.shape);
        let n = shape.iter().product::<usize>() * dtype.size();
        let mut scratch = task.resources.arena.buffer(*scratch_bytes).map_err(overrun)?;
        let mut block = task.blocks[0]
            .take()
            .ok_or_else(|| internal("an output block is allocated before it is computed"))?;
        let inputs = self.inputs(task)?;
        let bytes = &mut block.bytes_mut()[..n];
        let mut output = BlockMut { dtype: *dtype, start: region.start, shape, bytes };
        let mut scratch_part = Scratch::new(&mut scratch.bytes_mut()[..*scratch_bytes as usize]);
        // A panic is a failure of the kernel, not of the worker.
        let applied = panics::caught(|| self.code.apply(&inputs, &mut output, &mut scratch_part));
        task.resources.arena.recycle(scratch);
        self.check(applied)?;
        task.blocks[0] = Some(block);
        task.pad(0, at);
        Ok(())
    }

    /// Returns the loaded blocks of the task.
    fn inputs<'t>(&self, task: &'t TaskState<'_>) -> Result<Vec<Block<'t>>, Cause> {
        let inputs = task.loaded.iter().zip(&self.kernel.blocks).map(|(loaded, blocks)| {
            let Some(Loaded { values: Values::Own(values), cell, .. }) = loaded else {
                return Err(internal(
                    "the blocks of a user kernel are assembled before the kernel runs",
                ));
            };
            Ok(Block {
                dtype: blocks.dtype,
                start: cell.start.clone(),
                shape: sizes(&cell.shape),
                bytes: values.bytes(),
            })
        });
        inputs.collect()
    }

    /// Returns the failure of a kernel that returned an error or panicked.
    fn check(&self, applied: Result<Result<(), KernelError>, String>) -> Result<(), Cause> {
        let name = &self.kernel.name;
        let problem = match applied {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => format!("kernel `{name}`: {error}"),
            Err(panic) => format!("kernel `{name}` panicked: {panic}"),
        };
        Err((FailureKind::Kernel, problem))
    }
}

/// A user's kernel before its division into tasks, which are the output's blocks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UserDraft {
    kernel: User,
}

impl DraftKind for UserDraft {
    fn stages(&self, draft: &Draft, _lowering: &mut Lowering<'_>) -> Vec<Stage> {
        let outputs = draft
            .outputs
            .iter()
            .map(|array| StageOutput::kept(*array, draft.blocks.axes().len()))
            .collect();
        vec![Stage::new(
            draft.name,
            Kernel::User(self.kernel.clone()),
            draft.inputs.clone(),
            outputs,
            draft.blocks.clone(),
        )]
    }
}

/// A user's kernel over blocks of arrays.
#[derive(Debug)]
pub struct UserNode {
    /// The arguments.
    pub inputs: Vec<NodeRef>,
    /// For each input and axis, the axis of the result that its blocks follow; `None` for a single
    /// block.
    pub axes: Vec<Vec<Option<usize>>>,
    /// The name of the kernel in plans.
    pub name: &'static str,
    /// The version of the kernel.
    pub version: u32,
    /// The parameters of the kernel.
    pub parameters: Value,
    /// The maximum scratch memory in bytes.
    pub scratch_bytes: u64,
    /// The function that creates the kernel from its parameters.
    pub make: MakeKernel,
}

impl StageOp for UserNode {
    fn inputs(&self) -> &[NodeRef] {
        &self.inputs
    }

    fn into_inputs(self) -> Vec<NodeRef> {
        self.inputs
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn reason(&self) -> &'static str {
        "other operations read the blocks that a user kernel writes"
    }

    /// Marks elementwise functions among the inputs for arrays of their own, so that each input is
    /// a single read.
    fn mark(&self, lowering: &mut Lowering<'_>) {
        for input in &self.inputs {
            let flat = lowering.flatten_marked(input).map(|(_, bases)| bases);
            let computed = |b: &NodeRef| matches!(b.op, Op::Map { .. });
            let bases = flat.map_or_else(
                |_| vec![Arc::clone(input)],
                |bases| bases.into_iter().filter(computed).collect(),
            );
            bases.iter().for_each(|b| lowering.materialize(b, "a user kernel reads whole blocks"));
        }
    }

    fn draft(
        &self,
        node: &NodeRef,
        target: ArrayId,
        lowering: &mut Lowering<'_>,
    ) -> Result<Option<Draft>, PlanError> {
        // The kernel writes only its own blocks. Any other array is copied from these.
        if !lowering.is_read_from(node, target) {
            return Ok(None);
        }
        let (mut inputs, mut blocks) =
            (Vec::with_capacity(self.inputs.len()), Vec::with_capacity(self.inputs.len()));
        for (input, axes) in self.inputs.iter().zip(&self.axes) {
            inputs.extend(read_inputs(lowering, input)?);
            blocks.push(UserBlocks {
                dtype: input.dtype,
                grid: input.grid.clone(),
                axes: axes.clone(),
            });
        }
        let kernel = User {
            name: self.name.to_owned(),
            version: self.version,
            parameters: self.parameters.clone(),
            scratch_bytes: self.scratch_bytes,
            blocks,
            dtype: node.dtype,
        };
        let draft =
            Draft::new(self.name, AnyDraft::User(UserDraft { kernel }), target, node.grid.clone());
        Ok(Some(Draft { inputs, ..draft }))
    }

    fn is_readable_from(&self, node: &NodeRef, objects: &ChunkGrid) -> bool {
        *objects == node.grid
    }

    fn register(&self, kernels: &mut KernelRegistry) {
        kernels.insert(self.name, self.version, self.make);
    }
}
