//! What a computation is: nodes that name their inputs.
//!
//! A [`Node`] is immutable and shared; a user's `Array` is a handle on one. Nodes know dtype, shape and chunks as soon as
//! they are made. Nothing is read but input metadata.

use std::collections::HashSet;
use std::sync::Arc;

use freestone_kernels::reduce::Finish;
use freestone_kernels::{Buffer, DType, Expr, Generate, ReduceOp, ScanOp};

use crate::grid::{AxisGrid, ChunkGrid};
use crate::readmap::{AxisMap, Origin, ReadMap};
use crate::storage::StoredArray;
use crate::user::MakeKernel;

/// A shared node.
pub type NodeRef = Arc<Node>;

/// An array that is not computed yet.
#[derive(Debug)]
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
    },
    /// A fold along axes.
    Reduce {
        /// What is folded.
        input: NodeRef,
        /// How.
        fold: ReduceOp,
        /// What becomes of the accumulators.
        finish: Finish,
        /// The axes, rising.
        axes: Vec<usize>,
        /// They stay, with length 1.
        keepdims: bool,
    },
    /// A running sum or product along an axis.
    Scan {
        /// What runs.
        input: NodeRef,
        /// How.
        op: ScanOp,
        /// Along which axis.
        axis: usize,
    },
    /// Products of matrices.
    Contract(ContractNode),
    /// The same values in other chunks.
    Rechunk(NodeRef),
    /// A function on blocks that the library does not know.
    User(Box<UserNode>),
}

/// `out[b…, i…, j…] = Σ lhs[b…, i…, k…] · rhs[b…, j…, k…]` over all `k…`.
#[derive(Debug)]
pub struct ContractNode {
    /// `lhs` and `rhs`, of one dtype, which is the result's.
    pub operands: [NodeRef; 2],
    /// Axes that both have and that stay: the first ones.
    pub batch: usize,
    /// Axes that only `lhs`, and that only `rhs` has.
    pub free: [usize; 2],
}

impl ContractNode {
    /// Lengths of `b…, i…, j…, k…`.
    pub fn space(&self) -> Vec<u64> {
        let [lhs, rhs] = self.operands.each_ref().map(|o| o.shape());
        let (first, second) = (self.batch + self.free[0], self.batch + self.free[1]);
        [&lhs[..first], &rhs[self.batch..second], &lhs[first..]].concat()
    }

    /// Where operand 0 or 1 looks from there.
    pub fn map(&self, operand: usize) -> ReadMap {
        let space = self.space();
        let skip = if operand == 0 { 0 } else { self.free[0] };
        let free = self.batch + skip..self.batch + skip + self.free[operand];
        let along = (0..self.batch).chain(free).chain(self.batch + self.free[0] + self.free[1]..space.len());
        ReadMap::image(space.clone(), along.map(AxisMap::whole).collect())
    }
}

/// A user's kernel over blocks of arrays.
#[derive(Debug)]
pub struct UserNode {
    /// Its arguments.
    pub inputs: Vec<NodeRef>,
    /// For each input, along which axis of the result its blocks run, axis by axis; `None` where it is one block.
    pub axes: Vec<Vec<Option<usize>>>,
    /// How plans call it.
    pub name: &'static str,
    /// Its version.
    pub version: u32,
    /// Its parameters.
    pub parameters: serde_json::Value,
    /// Scratch memory that it needs at most.
    pub scratch_bytes: u64,
    /// How it is made of its parameters.
    pub make: MakeKernel,
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
            Op::Reduce { input, .. } | Op::Scan { input, .. } | Op::Rechunk(input) => std::slice::from_ref(input),
            Op::Contract(c) => &c.operands,
            Op::User(user) => &user.inputs,
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
        // A broadcast axis says nothing of how to cut it: prefer, axis by axis, an input that is cut.
        let rank = inputs.first().map_or(0, |i| i.grid.axes().len());
        let axes = (0..rank).map(|d| {
            let axis = |n: &NodeRef| n.grid.axes()[d].clone();
            let varying = inputs.iter().find(|n| varies(n, d) && n.grid.axes()[d].n_chunks() > 1).or(inputs.iter().find(|n| varies(n, d)));
            varying.or(inputs.first()).map_or_else(|| AxisGrid::regular(1, 1), axis)
        });
        let grid = ChunkGrid::new(axes.collect());
        Arc::new(Node { op: Op::Map { expr, inputs }, dtype, grid })
    }
}

/// True if the node's values may differ along an axis: it is not broadcast there.
fn varies(node: &NodeRef, axis: usize) -> bool {
    fn look(node: &NodeRef, axis: usize, seen: &mut HashSet<*const Node>) -> bool {
        match &node.op {
            Op::View { map, .. } => map.varies()[axis],
            // What was looked at before did not vary: else nobody would still be looking.
            Op::Map { inputs, .. } => seen.insert(Arc::as_ptr(node)) && inputs.iter().any(|i| look(i, axis, seen)),
            _ => true,
        }
    }
    look(node, axis, &mut HashSet::new())
}

/// Most elements along a broadcast axis in one chunk: without a cut of its own it is cut so that blocks stay small.
const BROADCAST_CHUNK: u64 = 1 << 20;

fn view_grid(sources: &[NodeRef], map: &ReadMap) -> ChunkGrid {
    let shape = map.shape();
    let axes = shape.iter().enumerate().map(|(d, n)| {
        // The source axis that runs along `d` in the first piece that has one decides the cuts.
        let along = map.pieces().iter().find_map(|piece| match &piece.from {
            Origin::Source { source, axes } => axes.iter().enumerate().find_map(|(s, a)| match a {
                AxisMap::Along { axis, start, step } if *axis == d => Some((piece, &sources[*source].grid.axes()[s], Some((*start, *step)))),
                AxisMap::Gather { axis, .. } if *axis == d => Some((piece, &sources[*source].grid.axes()[s], None)),
                _ => None,
            }),
            Origin::Fill(_) | Origin::Flat => None,
        });
        match along {
            Some((piece, axis, Some((start, step)))) if piece.to.shape[d] == *n => axis.slice(start, step, *n),
            Some((_, axis, ..)) => AxisGrid::regular(*n, axis.max_extent()),
            None => AxisGrid::regular(*n, (*n).clamp(1, BROADCAST_CHUNK)),
        }
    });
    ChunkGrid::new(axes.collect())
}
