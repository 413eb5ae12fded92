//! What a stage is: a kernel over a grid of tasks, with the arrays that it reads and writes.
//!
//! All of it is data that travels with the plan. That it holds together is asked in `check`, how its tasks run in `layout`.

use freestone_kernels::reduce::Finish;
use freestone_kernels::{DType, Expr, ReduceOp, ScanOp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ArrayId, StageId};
use crate::grid::{AxisGrid, ChunkGrid, Region};
use crate::readmap::ReadMap;

/// One lowered operation: many tasks that do not know of each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Unique, for people: `mean-003`.
    pub name: String,
    /// What a task computes.
    pub kernel: Kernel,
    /// What it reads, over the iteration space.
    pub inputs: Vec<StageInput>,
    /// What it writes.
    pub outputs: Vec<StageOutput>,
    /// The tasks: one for each chunk of this grid over the iteration space.
    pub tasks: ChunkGrid,
    /// The blocks in which a task walks its part of the iteration space.
    pub walk: ChunkGrid,
    /// The axis along which neighbouring tasks follow each other; the last one if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep: Option<usize>,
    /// Decoded chunks that stay, because the next block or task reads them again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<Keep>,
    /// Stages whose outputs it reads.
    pub after: Vec<StageId>,
    /// Why it is as it is, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// How many decoded chunks of an array a worker keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// The array.
    pub array: ArrayId,
    /// Chunks.
    pub chunks: u64,
}

/// What a task computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kernel {
    /// An elementwise function; its results are the outputs. A copy is the identity.
    Map(Expr),
    /// Folds of the results of an elementwise function along axes of the iteration space.
    Reduce {
        /// The function; one result for each output.
        expr: Expr,
        /// How each result is folded.
        folds: Vec<Fold>,
        /// The axes, rising.
        axes: Vec<usize>,
        /// Where partial results are merged: for each of the axes, the chunks that these were made of.
        parts: Option<Vec<AxisGrid>>,
    },
    /// A running sum or product along an axis, chunk by chunk of the walk.
    Scan {
        /// What runs: one result.
        expr: Expr,
        /// How.
        op: ScanOp,
        /// The axis.
        axis: usize,
        /// Each element becomes what was there before it.
        exclusive: bool,
        /// The last input has what came before each task: one element along the axis for each of them.
        carry: bool,
    },
    /// `out[b…, i…, j…] = Σ lhs[b…, i…, k…] · rhs[b…, j…, k…]`; the iteration space is `b…, i…, j…, k…`.
    Contract {
        /// `lhs` of the first inputs, `rhs` of the others, one result each.
        operands: Box<[Expr; 2]>,
        /// Number of `b…`.
        batch: usize,
        /// Number of `i…` and of `j…`.
        free: [usize; 2],
    },
    /// A user's kernel on whole blocks: task `i` computes block `i` of the output.
    User {
        /// How it is called.
        name: String,
        /// Its version.
        version: u32,
        /// Its parameters.
        parameters: Value,
        /// Scratch memory that it needs at most.
        scratch_bytes: u64,
        /// The blocks of each input.
        blocks: Vec<UserBlocks>,
        /// Dtype of the output.
        dtype: DType,
    },
}

/// The blocks of an input of a user's kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserBlocks {
    /// Element type.
    pub dtype: DType,
    /// The blocks.
    pub grid: ChunkGrid,
    /// For each axis, along which axis of the tasks its blocks are counted; `None` where it is one block.
    pub axes: Vec<Option<usize>>,
}

impl UserBlocks {
    /// The block for a task.
    pub fn region(&self, task: &[u64]) -> Region {
        let coords: Vec<u64> = self.axes.iter().map(|a| a.map_or(0, |a| task[a])).collect();
        self.grid.region(&coords)
    }
}

/// How one result is folded, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fold {
    /// The operation.
    pub op: ReduceOp,
    /// Dtype of the values that are folded, or that merged partial results were made of.
    pub values: DType,
    /// What is done to the accumulators at the end.
    pub finish: Finish,
}

impl Fold {
    /// Dtype of its accumulators.
    pub fn accumulator(&self) -> DType {
        self.op.accumulator(self.values).unwrap_or(self.values)
    }
}

/// An input of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageInput {
    /// The arrays that the map names.
    pub sources: Vec<ArrayId>,
    /// Where each element of the iteration space comes from.
    pub map: ReadMap,
}

/// An output of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageOutput {
    /// The array.
    pub array: ArrayId,
    /// For each of its axes, where a task's part lies.
    pub axes: Vec<OutAxis>,
}

/// Where along an axis of an output a task's part lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutAxis {
    /// At the task's elements along this axis of the iteration space.
    Kept(usize),
    /// At the task's number along this axis: a partial result.
    Part(usize),
    /// At 0: a reduced axis that stays.
    One,
}

impl Kernel {
    /// The elementwise function, if it has one.
    pub fn expr(&self) -> Option<&Expr> {
        match self {
            Kernel::Map(expr) | Kernel::Reduce { expr, .. } | Kernel::Scan { expr, .. } => Some(expr),
            Kernel::User { .. } | Kernel::Contract { .. } => None,
        }
    }

    /// The name of the user's kernel, if it is one.
    pub fn user_kernel(&self) -> Option<&str> {
        match self {
            Kernel::User { name, .. } => Some(name),
            Kernel::Map(_) | Kernel::Reduce { .. } | Kernel::Scan { .. } | Kernel::Contract { .. } => None,
        }
    }

    /// True if tasks fold along an axis of the iteration space, which the result does not have.
    pub fn folds(&self, axis: usize) -> bool {
        match self {
            Kernel::Reduce { axes, .. } => axes.contains(&axis),
            Kernel::Contract { batch, free, .. } => axis >= batch + free[0] + free[1],
            Kernel::Map(_) | Kernel::Scan { .. } | Kernel::User { .. } => false,
        }
    }

    /// Number of the input that has what came before each task of a scan.
    pub fn carry(&self) -> Option<usize> {
        match self {
            Kernel::Scan { expr, carry: true, .. } => Some(expr.inputs().len()),
            _ => None,
        }
    }

    /// Dtypes of the inputs.
    pub fn inputs(&self) -> Vec<DType> {
        match self {
            Kernel::Map(expr) | Kernel::Reduce { expr, .. } => expr.inputs().to_vec(),
            Kernel::Scan { expr, op, carry, .. } => {
                let carried = expr.result_dtypes().first().and_then(|d| op.carrier(*d)).filter(|_| *carry);
                expr.inputs().iter().copied().chain(carried).collect()
            }
            Kernel::Contract { operands, .. } => operands.iter().flat_map(|o| o.inputs().to_vec()).collect(),
            Kernel::User { blocks, .. } => blocks.iter().map(|b| b.dtype).collect(),
        }
    }

    /// Number of outputs.
    pub(super) fn n_results(&self) -> usize {
        self.expr().map_or(1, |e| e.results().len())
    }
}

impl Stage {
    /// Number of tasks.
    pub fn n_tasks(&self) -> u64 {
        self.tasks.n_chunks()
    }

    /// The axes of the tasks in the order in which tasks are counted: C order, but for the axis of the sweep, which comes last.
    pub fn order(&self) -> Vec<usize> {
        (0..self.tasks.axes().len()).filter(|d| Some(*d) != self.sweep).chain(self.sweep).collect()
    }

    /// Coordinates of a task by its number.
    pub fn task_coords(&self, number: u64) -> Vec<u64> {
        let counts = self.tasks.chunk_counts();
        let (mut rest, mut coords) = (number, vec![0; counts.len()]);
        for d in self.order().into_iter().rev() {
            coords[d] = rest % counts[d].max(1);
            rest /= counts[d].max(1);
        }
        coords
    }

    /// The part of output `output` that task `coords` writes.
    pub fn output_region(&self, output: &StageOutput, coords: &[u64]) -> Region {
        let task = self.tasks.region(coords);
        let along = |axis: &OutAxis| match axis {
            OutAxis::Kept(a) => (task.start[*a], task.shape[*a]),
            OutAxis::Part(a) => (coords[*a], 1),
            OutAxis::One => (0, 1),
        };
        let (start, shape) = output.axes.iter().map(along).unzip();
        Region { start, shape }
    }
}
