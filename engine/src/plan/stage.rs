//! A stage: a kernel over a grid of tasks, with the arrays that it reads and writes.
//!
//! All of it is data that travels with the plan. `check` verifies it, `layout` derives how its
//! tasks run, and what is particular to its kind is in `stages`.

use serde::{Deserialize, Serialize};

use super::{ArrayId, StageId};
use crate::grid::{AxisGrid, ChunkGrid, Region};
use crate::readmap::ReadMap;
use crate::stages::Kernel;

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

/// An input of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

impl StageOutput {
    /// An output whose axes are those of the iteration space.
    pub(crate) fn kept(array: ArrayId, rank: usize) -> StageOutput {
        StageOutput { array, axes: (0..rank).map(OutAxis::Kept).collect() }
    }
}

impl Stage {
    /// A stage whose tasks load their whole region at once, and keep nothing.
    pub(crate) fn new(
        name: &str,
        kernel: Kernel,
        inputs: Vec<StageInput>,
        outputs: Vec<StageOutput>,
        tasks: ChunkGrid,
    ) -> Stage {
        Stage {
            name: name.to_owned(),
            kernel,
            inputs,
            outputs,
            walk: tasks.clone(),
            tasks,
            sweep: None,
            keep: Vec::new(),
            after: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// The blocks in which all tasks together go through the iteration space.
    pub(crate) fn blocks(&self) -> ChunkGrid {
        if !self.kernel.kind().walks() {
            return self.tasks.clone();
        }
        let finer = |(t, w): (&AxisGrid, &AxisGrid)| {
            if w.n_chunks() >= t.n_chunks() { w.clone() } else { t.clone() }
        };
        ChunkGrid::new(self.tasks.axes().iter().zip(self.walk.axes()).map(finer).collect())
    }

    /// Elements of a block along an axis, at most.
    pub(crate) fn block_extent(&self, d: usize) -> u64 {
        let task = self.tasks.axes()[d].max_extent().max(1);
        if self.kernel.kind().walks() {
            self.walk.axes()[d].max_extent().clamp(1, task)
        } else {
            task
        }
    }

    /// Number of tasks.
    pub fn n_tasks(&self) -> u64 {
        self.tasks.n_chunks()
    }

    /// The axes of the tasks in the order in which tasks are counted: C order, but for the axis of
    /// the sweep, which comes last.
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
