//! A stage: a kernel over a grid of tasks, with the arrays that it reads and writes.
//!
//! A stage is data and part of the serialized plan. `check` validates it, and `layout` derives its
//! layout. The specifics of its kind are in `stages`.

use serde::{Deserialize, Serialize};

use super::{ArrayId, StageId};
use crate::grid::{AxisGrid, ChunkGrid, Region};
use crate::readmap::ReadMap;
use crate::stages::Kernel;

/// A lowered operation, divided into independent tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// The unique display name, such as `mean-003`.
    pub name: String,
    /// The computation of a task.
    pub kernel: Kernel,
    /// The inputs, over the iteration space.
    pub inputs: Vec<StageInput>,
    /// The outputs.
    pub outputs: Vec<StageOutput>,
    /// The grid of tasks over the iteration space.
    pub tasks: ChunkGrid,
    /// The grid of blocks by which a task processes its part of the iteration space.
    #[serde(rename = "walk")]
    pub blocks: ChunkGrid,
    /// The axis along which consecutive tasks are adjacent; `None` for the last axis.
    #[serde(default, rename = "sweep", skip_serializing_if = "Option::is_none")]
    pub inner_axis: Option<usize>,
    /// The caches of decoded chunks that the next block or task reads again.
    #[serde(default, rename = "keep", skip_serializing_if = "Vec::is_empty")]
    pub cache: Vec<ChunkCache>,
    /// The stages whose outputs this one reads.
    pub after: Vec<StageId>,
    /// The reasons for the form of the stage, for its explanation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The capacity of a worker's cache of decoded chunks of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkCache {
    /// The array.
    pub array: ArrayId,
    /// The maximum number of chunks.
    pub chunks: u64,
}

/// An input of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StageInput {
    /// The arrays to which the map refers.
    pub sources: Vec<ArrayId>,
    /// The source of each element of the iteration space.
    pub map: ReadMap,
}

/// An output of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageOutput {
    /// The array.
    pub array: ArrayId,
    /// For each axis of the array, the position of a task's part.
    pub axes: Vec<OutAxis>,
}

/// The position of a task's part along an axis of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutAxis {
    /// The task's elements along this axis of the iteration space.
    Kept(usize),
    /// The task's index along this axis, for a partial result.
    Part(usize),
    /// Index 0, for a reduced axis that remains with length 1.
    One,
}

impl StageOutput {
    /// Returns an output whose axes are those of the iteration space.
    pub(crate) fn kept(array: ArrayId, rank: usize) -> StageOutput {
        StageOutput { array, axes: (0..rank).map(OutAxis::Kept).collect() }
    }
}

impl Stage {
    /// Returns a stage whose tasks load their whole region at once, without a chunk cache.
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
            blocks: tasks.clone(),
            tasks,
            inner_axis: None,
            cache: Vec::new(),
            after: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Returns the blocks by which all tasks together cover the iteration space.
    pub(crate) fn task_blocks(&self) -> ChunkGrid {
        if !self.kernel.kind().iterates_blocks() {
            return self.tasks.clone();
        }
        let finer = |(t, w): (&AxisGrid, &AxisGrid)| {
            if w.n_chunks() >= t.n_chunks() { w.clone() } else { t.clone() }
        };
        ChunkGrid::new(self.tasks.axes().iter().zip(self.blocks.axes()).map(finer).collect())
    }

    /// Returns the maximum number of elements of a block along an axis.
    pub(crate) fn block_extent(&self, d: usize) -> u64 {
        let task = self.tasks.axes()[d].max_extent().max(1);
        if self.kernel.kind().iterates_blocks() {
            self.blocks.axes()[d].max_extent().clamp(1, task)
        } else {
            task
        }
    }

    /// Returns the number of tasks.
    pub fn n_tasks(&self) -> u64 {
        self.tasks.n_chunks()
    }

    /// Returns the axes of the task grid from the slowest to the fastest: C order, except that
    /// `inner_axis` comes last.
    pub fn order(&self) -> Vec<usize> {
        let outer = (0..self.tasks.axes().len()).filter(|d| Some(*d) != self.inner_axis);
        outer.chain(self.inner_axis).collect()
    }

    /// Returns the coordinates of a task, given its number.
    pub fn task_coords(&self, number: u64) -> Vec<u64> {
        let counts = self.tasks.chunk_counts();
        let (mut rest, mut coords) = (number, vec![0; counts.len()]);
        for d in self.order().into_iter().rev() {
            coords[d] = rest % counts[d].max(1);
            rest /= counts[d].max(1);
        }
        coords
    }

    /// Returns the region of an output that the task at `coords` writes.
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
