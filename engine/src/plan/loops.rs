//! The loops of a task's program over the stage's grids.

use super::{Scope, Stage};
use crate::grid::{ChunkGrid, Region, try_for_each_coord};
use crate::program::{Loops, Over};

/// The position of a task in its program's loops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// The current part of the iteration space. In a loop over objects, the object's region in its
    /// array.
    pub(crate) cell: Region,
    /// The coordinates of the current object; empty outside loops over objects.
    pub(crate) object: Vec<u64>,
}

/// The loops of one task.
#[derive(Debug)]
pub(crate) struct TaskLoops<'a> {
    pub(crate) stage: &'a Stage,
    /// The grid of objects of each output.
    pub(crate) objects: &'a [ChunkGrid],
    /// The task's coordinates.
    pub(crate) coords: &'a [u64],
    /// The task's part of the iteration space.
    pub(crate) region: &'a Region,
}

/// Returns the grid of objects of each output of a stage.
pub(crate) fn objects(scope: Scope<'_>, stage: &Stage) -> Vec<ChunkGrid> {
    stage.outputs.iter().map(|o| scope.array(o.array).info.objects()).collect()
}

impl TaskLoops<'_> {
    /// Returns the position outside all loops.
    pub(crate) fn outside(&self) -> Position {
        Position { cell: self.region.clone(), object: Vec::new() }
    }
}

impl Loops for TaskLoops<'_> {
    type Position = Position;

    fn each<E>(
        &self,
        over: Over,
        at: &Position,
        mut visit: impl FnMut(&Position) -> Result<(), E>,
    ) -> Result<(), E> {
        let blocks = &self.stage.blocks;
        match over {
            Over::Blocks => try_for_each_coord(&blocks.overlapping(self.region), |block| {
                match blocks.region(block).intersect(self.region) {
                    Some(cell) => visit(&Position { cell, object: at.object.clone() }),
                    None => Ok(()),
                }
            }),
            Over::Objects(j) => {
                let part = self.stage.output_region(&self.stage.outputs[j], self.coords);
                let objects = &self.objects[j];
                try_for_each_coord(&objects.overlapping(&part), |object| {
                    visit(&Position { cell: objects.region(object), object: object.to_vec() })
                })
            }
            Over::Slices => try_for_each_coord(&blocks.overlapping(&at.cell), |slice| {
                visit(&Position { cell: blocks.region(slice), object: at.object.clone() })
            }),
        }
    }
}
