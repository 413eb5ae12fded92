//! The graph of a computation.
//!
//! A [`Node`] is immutable and shared. A user's `Array` is a handle to a node. Dtype, shape and
//! chunks of a node are known at creation, which reads only the metadata of inputs.

use std::fmt;
use std::sync::Arc;

use freestone_kernels::{Buffer, DType, Expr, Generate};

use crate::grid::{AxisGrid, ChunkGrid};
use crate::readmap::{AxisMap, Origin, ReadMap};
use crate::stages::Operation;
use crate::storage::StoredArray;

/// A shared node.
pub type NodeRef = Arc<Node>;

/// An array that has not been computed.
pub struct Node {
    /// The operation that yields the array.
    pub op: Op,
    /// The element type.
    pub dtype: DType,
    /// The shape and chunks.
    pub grid: ChunkGrid,
}

/// The operation that yields an array.
#[derive(Debug)]
pub enum Op {
    /// An array in a store.
    Stored(Box<StoredArray>),
    /// Values in the memory of the program, in C order.
    Constant(Arc<Buffer>),
    /// Values that follow from indices.
    Generate(Generate),
    /// Elements of other arrays at other positions.
    View {
        /// The arrays to which the map refers.
        sources: Vec<NodeRef>,
        /// The source of each element.
        map: ReadMap,
    },
    /// An elementwise function of arrays of this array's shape.
    Map {
        /// The function, with one result.
        expr: Expr,
        /// The arguments.
        inputs: Vec<NodeRef>,
        /// For each axis, whether values may differ along it.
        varies: Vec<bool>,
    },
    /// The values of an array in other chunks.
    Rechunk(NodeRef),
    /// An operation with a stage kind of its own.
    Staged(Operation),
}

impl fmt::Debug for Node {
    /// Writes operation, dtype, shape and chunks. Arguments are omitted, because the number of
    /// paths in a graph may be exponential.
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
        let placeholder = || Op::Generate(Generate::Triangle { k: 0 });
        let mut open = std::mem::replace(&mut self.op, placeholder()).into_inputs();
        while let Some(node) = open.pop() {
            if let Some(mut last) = Arc::into_inner(node) {
                open.extend(std::mem::replace(&mut last.op, placeholder()).into_inputs());
            }
        }
    }
}

impl Op {
    /// Returns the arguments by value.
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
    /// Returns the number of elements along each axis.
    pub fn shape(&self) -> Vec<u64> {
        self.grid.shape()
    }

    /// Returns the arguments.
    pub fn inputs(&self) -> &[NodeRef] {
        match &self.op {
            Op::Stored(_) | Op::Constant(_) | Op::Generate(_) => &[],
            Op::View { sources, .. } => sources,
            Op::Map { inputs, .. } => inputs,
            Op::Rechunk(input) => std::slice::from_ref(input),
            Op::Staged(op) => op.kind().inputs(),
        }
    }

    /// Returns the display name of a stage that computes the node.
    pub fn name(&self) -> &'static str {
        match &self.op {
            Op::Staged(op) => op.kind().name(),
            Op::Rechunk(_) => "rechunk",
            Op::Map { .. } => "map",
            Op::View { .. } | Op::Stored(_) => "copy",
            Op::Constant(_) | Op::Generate(_) => "create",
        }
    }

    /// Creates a node for an operation with a stage kind of its own.
    pub fn staged(op: impl Into<Operation>, dtype: DType, grid: ChunkGrid) -> NodeRef {
        Arc::new(Node { op: Op::Staged(op.into()), dtype, grid })
    }

    /// Returns true if values may differ along an axis, so that it is not broadcast.
    fn varies(&self, axis: usize) -> bool {
        match &self.op {
            Op::View { map, .. } => map.varies()[axis],
            Op::Map { varies, .. } => varies[axis],
            _ => true,
        }
    }

    /// Creates a view. Its chunk boundaries follow those of its sources where the result is
    /// regular.
    pub fn view(sources: Vec<NodeRef>, map: ReadMap) -> NodeRef {
        let dtype = sources[0].dtype;
        let grid = view_grid(&sources, &map);
        Arc::new(Node { op: Op::View { sources, map }, dtype, grid })
    }

    /// Creates an elementwise function. Along each axis, its chunks are those of the first input
    /// that varies along the axis, preferably in several chunks.
    pub fn map(expr: Expr, inputs: Vec<NodeRef>) -> NodeRef {
        let dtype = expr.result_dtypes()[0];
        // A broadcast axis does not determine chunks, so prefer an input with several chunks.
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

/// The maximum number of elements of a chunk along a broadcast axis, which has no chunks of its
/// own. It keeps blocks small.
const BROADCAST_CHUNK: u64 = 1 << 20;

/// Returns the chunks of a view.
fn view_grid(sources: &[NodeRef], map: &ReadMap) -> ChunkGrid {
    let axes = map.shape().iter().enumerate().map(|(d, n)| view_axis(sources, map, d, *n));
    ChunkGrid::new(axes.collect())
}

/// Returns the chunks of a view along axis `d`, which has `n` elements. They follow the source axis
/// that runs along `d` in the first piece that has one.
fn view_axis(sources: &[NodeRef], map: &ReadMap, d: usize, n: u64) -> AxisGrid {
    for piece in map.pieces() {
        let Origin::Source { source, axes } = &piece.from else { continue };
        let Some(s) = axes.iter().position(|a| a.axis() == Some(d)) else { continue };
        let axis = &sources[*source].grid.axes()[s];
        return match &axes[s] {
            AxisMap::Along { start, step, .. } if piece.to.shape[d] == n => {
                axis.slice(*start, *step, n)
            }
            _ => AxisGrid::regular(n, axis.max_extent()),
        };
    }
    AxisGrid::regular(n, n.clamp(1, BROADCAST_CHUNK))
}
