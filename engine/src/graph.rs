//! What a computation is: nodes that name their inputs.
//!
//! A [`Node`] is immutable and shared; a user's `Array` is a handle on one. Nodes know dtype, shape
//! and chunks as soon as they are made. Nothing is read but input metadata.

use std::fmt;
use std::sync::Arc;

use freestone_kernels::{Buffer, DType, Expr, Generate};

use crate::grid::{AxisGrid, ChunkGrid};
use crate::readmap::{AxisMap, Origin, ReadMap};
use crate::stages::Operation;
use crate::storage::StoredArray;

/// A shared node.
pub type NodeRef = Arc<Node>;

/// An array that is not computed yet.
pub struct Node {
    /// What it is.
    pub op: Op,
    /// Element type.
    pub dtype: DType,
    /// Shape and chunks.
    pub grid: ChunkGrid,
}

/// What an array is made of.
#[derive(Debug)]
pub enum Op {
    /// An array in a store.
    Stored(Box<StoredArray>),
    /// Values that the program has in memory, in C order.
    Constant(Arc<Buffer>),
    /// Values that follow from indices.
    Generate(Generate),
    /// Elements of other arrays, elsewhere.
    View {
        /// The arrays that the map's pieces name.
        sources: Vec<NodeRef>,
        /// Where each element comes from.
        map: ReadMap,
    },
    /// An elementwise function of arrays of this array's shape.
    Map {
        /// The function, of one result.
        expr: Expr,
        /// Its arguments.
        inputs: Vec<NodeRef>,
        /// For each axis, whether the values may differ along it.
        varies: Vec<bool>,
    },
    /// The same values in other chunks.
    Rechunk(NodeRef),
    /// An operation with a kind of stage of its own.
    Staged(Operation),
}

impl fmt::Debug for Node {
    /// Writes the operation, dtype, shape and chunks, and nothing of the arguments: a graph has
    /// more paths than nodes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shape, chunks) = (self.shape(), self.grid.max_chunk());
        f.debug_struct("Node")
            .field("op", &self.name())
            .field("dtype", &self.dtype)
            .field("shape", &shape)
            .field("chunks", &chunks)
            .finish()
    }
}

impl Drop for Node {
    /// Drops a deep graph without recursion.
    fn drop(&mut self) {
        let nothing = || Op::Generate(Generate::Triangle { k: 0 });
        let mut open = std::mem::replace(&mut self.op, nothing()).into_inputs();
        while let Some(node) = open.pop() {
            if let Some(mut last) = Arc::into_inner(node) {
                open.extend(std::mem::replace(&mut last.op, nothing()).into_inputs());
            }
        }
    }
}

impl Op {
    fn into_inputs(self) -> Vec<NodeRef> {
        match self {
            Op::Stored(_) | Op::Constant(_) | Op::Generate(_) => Vec::new(),
            Op::View { sources, .. } => sources,
            Op::Map { inputs, .. } => inputs,
            Op::Rechunk(input) => vec![input],
            Op::Staged(op) => op.into_inputs(),
        }
    }
}

impl Node {
    /// Elements along each axis.
    pub fn shape(&self) -> Vec<u64> {
        self.grid.shape()
    }

    /// The nodes that it is made of.
    pub fn inputs(&self) -> &[NodeRef] {
        match &self.op {
            Op::Stored(_) | Op::Constant(_) | Op::Generate(_) => &[],
            Op::View { sources, .. } => sources,
            Op::Map { inputs, .. } => inputs,
            Op::Rechunk(input) => std::slice::from_ref(input),
            Op::Staged(op) => op.kind().inputs(),
        }
    }

    /// The name of the stage that would compute it, for people.
    pub fn name(&self) -> &'static str {
        match &self.op {
            Op::Staged(op) => op.kind().name(),
            Op::Rechunk(_) => "rechunk",
            Op::Map { .. } => "map",
            Op::View { .. } | Op::Stored(_) => "copy",
            Op::Constant(_) | Op::Generate(_) => "create",
        }
    }

    /// An operation with a kind of stage of its own.
    pub fn staged(op: impl Into<Operation>, dtype: DType, grid: ChunkGrid) -> NodeRef {
        Arc::new(Node { op: Op::Staged(op.into()), dtype, grid })
    }

    /// True if its values may differ along an axis: it is not broadcast there.
    fn varies(&self, axis: usize) -> bool {
        match &self.op {
            Op::View { map, .. } => map.varies()[axis],
            Op::Map { varies, .. } => varies[axis],
            _ => true,
        }
    }

    /// A view; its chunks are cut where those of its sources are, where that is simple.
    pub fn view(sources: Vec<NodeRef>, map: ReadMap) -> NodeRef {
        let dtype = sources[0].dtype;
        let grid = view_grid(&sources, &map);
        Arc::new(Node { op: Op::View { sources, map }, dtype, grid })
    }

    /// An elementwise function; its chunks are those of the first of its largest inputs.
    pub fn map(expr: Expr, inputs: Vec<NodeRef>) -> NodeRef {
        let dtype = expr.result_dtypes()[0];
        // A broadcast axis says nothing of how to cut it: prefer, axis by axis, an input that is
        // cut.
        let rank = inputs.first().map_or(0, |i| i.grid.axes().len());
        let axes = (0..rank).map(|d| {
            let axis = |n: &NodeRef| n.grid.axes()[d].clone();
            let varying = inputs
                .iter()
                .find(|n| n.varies(d) && n.grid.axes()[d].n_chunks() > 1)
                .or(inputs.iter().find(|n| n.varies(d)));
            varying.or(inputs.first()).map_or_else(|| AxisGrid::regular(1, 1), axis)
        });
        let grid = ChunkGrid::new(axes.collect());
        let varies = (0..rank).map(|d| inputs.iter().any(|i| i.varies(d))).collect();
        Arc::new(Node { op: Op::Map { expr, inputs, varies }, dtype, grid })
    }
}

/// Most elements along a broadcast axis in one chunk: without a cut of its own it is cut so that
/// blocks stay small.
const BROADCAST_CHUNK: u64 = 1 << 20;

fn view_grid(sources: &[NodeRef], map: &ReadMap) -> ChunkGrid {
    let shape = map.shape();
    let axes = shape.iter().enumerate().map(|(d, n)| {
        // The source axis that runs along `d` in the first piece that has one decides the cuts.
        let along = map.pieces().iter().find_map(|piece| match &piece.from {
            Origin::Source { source, axes } => axes.iter().enumerate().find_map(|(s, a)| match a {
                AxisMap::Along { axis, start, step } if *axis == d => {
                    Some((piece, &sources[*source].grid.axes()[s], Some((*start, *step))))
                }
                AxisMap::Gather { axis, .. } if *axis == d => {
                    Some((piece, &sources[*source].grid.axes()[s], None))
                }
                _ => None,
            }),
            Origin::Fill(_) | Origin::Flat => None,
        });
        match along {
            Some((piece, axis, Some((start, step)))) if piece.to.shape[d] == *n => {
                axis.slice(start, step, *n)
            }
            Some((_, axis, ..)) => AxisGrid::regular(*n, axis.max_extent()),
            None => AxisGrid::regular(*n, (*n).clamp(1, BROADCAST_CHUNK)),
        }
    });
    ChunkGrid::new(axes.collect())
}
