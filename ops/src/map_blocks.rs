//! Users' functions on whole blocks.

use freestone_engine::graph::{Node, NodeRef};
use freestone_engine::grid::{AxisGrid, ChunkGrid};
use freestone_engine::stages::UserNode;
use freestone_engine::user::{UserKernel, make};
use freestone_kernels::DType;

use crate::array::{Array, Dim, computed_attributes, or_failed};
use crate::error::Error;
use crate::join::cloned;

/// The dtype and the blocks of a result of [`map_blocks`].
#[derive(Clone, Debug, PartialEq)]
pub struct OutputBlocks {
    dtype: DType,
    drop: Vec<usize>,
    add: Vec<(usize, u64)>,
    lengths: Vec<(usize, BlockLengths)>,
}

/// The lengths of the result's blocks along an axis.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BlockLengths {
    /// The same length for every block.
    Each(u64),
    /// One length for each block, in order.
    List(Vec<u64>),
}

impl OutputBlocks {
    /// Describes blocks of this dtype, by default with the lengths of the arrays' blocks.
    pub fn new(dtype: DType) -> OutputBlocks {
        OutputBlocks { dtype, drop: Vec::new(), add: Vec::new(), lengths: Vec::new() }
    }

    /// Drops an axis of the arrays. They must have a single block along it.
    #[must_use]
    pub fn drop_axis(mut self, axis: usize) -> OutputBlocks {
        self.drop.push(axis);
        self
    }

    /// Inserts an axis with one block of `len` elements. The position is that in the result after
    /// all drops and earlier insertions.
    #[must_use]
    pub fn new_axis(mut self, axis: usize, len: u64) -> OutputBlocks {
        self.add.push((axis, len));
        self
    }

    /// Sets the lengths of the blocks along an axis of the result.
    #[must_use]
    pub fn lengths(mut self, axis: usize, lengths: BlockLengths) -> OutputBlocks {
        self.lengths.push((axis, lengths));
        self
    }
}

/// Applies a kernel to blocks: block `i` of the result is computed from block `i` of each array.
///
/// Arrays are aligned at their last axes. Along each axis, an array has the same number of blocks
/// as the others, or a single block, which is passed to every call. Kernels that run in other
/// processes must be in the registry that their `main` passes to `serve`.
///
/// Cost: one stage; computed arrays get a stage of their own first. Memory: a block of each array,
/// one stored chunk, the result's block, and the kernel's scratch memory.
///
/// # Errors
/// Fails if the numbers of blocks differ, or if the drops and insertions do not fit the arrays'
/// axes.
#[track_caller]
pub fn map_blocks<K: UserKernel>(
    kernel: &K,
    arrays: impl IntoIterator<Item = impl AsRef<Array>>,
    out: &OutputBlocks,
) -> Array {
    or_failed(try_map_blocks(kernel, &cloned(arrays), out))
}

fn try_map_blocks<K: UserKernel>(
    kernel: &K,
    arrays: &[Array],
    out: &OutputBlocks,
) -> Result<Array, Error> {
    let named = |error: Error| match error {
        Error::Argument(text) => Error::Argument(format!("map_blocks with `{}`: {text}", K::NAME)),
        other => other,
    };
    let nodes = arrays.iter().map(|a| a.node().cloned()).collect::<Result<Vec<_>, _>>()?;
    let result = result_axes(arrays, &nodes, out).map_err(named)?;
    let grid = ChunkGrid::new(result.iter().map(|axis| axis.grid.clone()).collect());
    let parameters = serde_json::to_value(kernel)
        .map_err(|e| named(argument(format!("its parameters cannot be serialized: {e}"))))?;
    make::<K>(&parameters)
        .map_err(|e| named(argument(format!("its parameters cannot be deserialized: {e}"))))?;
    let attributes = computed_attributes(&arrays.iter().collect::<Vec<_>>())?;
    let user = UserNode {
        axes: block_axes(&nodes, &result),
        name: K::NAME,
        version: K::VERSION,
        parameters,
        scratch_bytes: scratch_bytes(kernel, &nodes, &grid),
        make: make::<K>,
        inputs: nodes,
    };
    let node = Node::staged(user, out.dtype, grid);
    let dims = result.into_iter().map(|axis| axis.dim).collect();
    Ok(Array::from_parts(node, dims, attributes))
}

fn argument(text: impl Into<String>) -> Error {
    Error::Argument(text.into())
}

/// An axis of the result, and the axis of the arrays that it comes from.
struct ResultAxis {
    from: Option<usize>,
    grid: AxisGrid,
    dim: Dim,
}

/// Returns the number of leading axes that an array lacks, compared with `rank`.
fn shift(node: &NodeRef, rank: usize) -> usize {
    rank - node.grid.axes().len()
}

/// Returns the axes of the result.
fn result_axes(
    arrays: &[Array],
    nodes: &[NodeRef],
    out: &OutputBlocks,
) -> Result<Vec<ResultAxis>, Error> {
    let rank = nodes.iter().map(|n| n.grid.axes().len()).max();
    let rank = rank.ok_or_else(|| argument("expected at least one array"))?;
    let mut result = Vec::new();
    for d in 0..rank {
        let Some((grid, dim)) = common_axis(arrays, nodes, d, rank)? else { continue };
        if !out.drop.contains(&d) {
            result.push(ResultAxis { from: Some(d), grid, dim });
        } else if grid.n_chunks() > 1 {
            return Err(argument(format!(
                "axis {d} cannot be dropped while it has {} blocks: rechunk it to one",
                grid.n_chunks()
            )));
        }
    }
    if let Some(d) = out.drop.iter().find(|d| **d >= rank) {
        return Err(Error::Axis { axis: *d as i64, rank });
    }
    for (at, len) in &out.add {
        if *at > result.len() {
            return Err(Error::Axis { axis: *at as i64, rank: result.len() + 1 });
        }
        let grid = AxisGrid::regular(*len, *len);
        result.insert(*at, ResultAxis { from: None, grid, dim: Dim::default() });
    }
    for (axis, lengths) in &out.lengths {
        let rank = result.len();
        let resized = result.get_mut(*axis).ok_or(Error::Axis { axis: *axis as i64, rank })?;
        resized.grid = resized_grid(resized.grid.n_chunks(), lengths, *axis)?;
        resized.dim.origin = None;
    }
    Ok(result)
}

/// Returns the blocks along axis `d` of the array that has most blocks there.
fn common_axis(
    arrays: &[Array],
    nodes: &[NodeRef],
    d: usize,
    rank: usize,
) -> Result<Option<(AxisGrid, Dim)>, Error> {
    let own_axis = |(i, node): (usize, &NodeRef)| {
        d.checked_sub(shift(node, rank)).map(|own| (node.grid.axes()[own].clone(), i, own))
    };
    let axes: Vec<(AxisGrid, usize, usize)> =
        nodes.iter().enumerate().filter_map(own_axis).collect();
    let Some((most, i, own)) = axes.iter().max_by_key(|(g, ..)| (g.n_chunks(), g.len())) else {
        return Ok(None);
    };
    let differs = |g: &AxisGrid| g.n_chunks() != most.n_chunks() && g.n_chunks() > 1;
    if let Some((other, ..)) = axes.iter().find(|(g, ..)| differs(g)) {
        return Err(argument(format!(
            "the arrays have {} and {} blocks along axis {d}: rechunk one of them",
            most.n_chunks(),
            other.n_chunks()
        )));
    }
    Ok(Some((most.clone(), arrays[*i].dims()?[*own].clone())))
}

/// Returns an axis of `n` blocks of the given lengths.
fn resized_grid(n: u64, lengths: &BlockLengths, axis: usize) -> Result<AxisGrid, Error> {
    match lengths {
        BlockLengths::Each(0) => Err(argument(format!("the blocks along axis {axis} are empty"))),
        BlockLengths::Each(each) => {
            let len = n.checked_mul(*each).ok_or_else(|| argument("the result is too large"))?;
            Ok(AxisGrid::regular(len, *each))
        }
        BlockLengths::List(list) if list.len() as u64 != n => Err(argument(format!(
            "{} lengths were given for {n} blocks along axis {axis}",
            list.len()
        ))),
        BlockLengths::List(list) => {
            let mut bounds = vec![0u64];
            for n in list {
                bounds.push(bounds[bounds.len() - 1] + n);
            }
            Ok(AxisGrid::bounds(bounds)?)
        }
    }
}

/// Returns, for each axis of each array, the axis of the result that selects its block. The entry
/// is `None` for an axis with a single block.
fn block_axes(nodes: &[NodeRef], result: &[ResultAxis]) -> Vec<Vec<Option<usize>>> {
    let rank = nodes.iter().map(|n| n.grid.axes().len()).max().unwrap_or(0);
    let place = |d: usize| result.iter().position(|axis| axis.from == Some(d));
    let axes = |node: &NodeRef| {
        let shift = shift(node, rank);
        let selects = |(own, g): (usize, &AxisGrid)| {
            if g.n_chunks() > 1 { place(own + shift) } else { None }
        };
        node.grid.axes().iter().enumerate().map(selects).collect()
    };
    nodes.iter().map(axes).collect()
}

fn scratch_bytes<K: UserKernel>(kernel: &K, nodes: &[NodeRef], grid: &ChunkGrid) -> u64 {
    let sizes =
        |grid: &ChunkGrid| -> Vec<usize> { grid.max_chunk().iter().map(|n| *n as usize).collect() };
    let shapes: Vec<Vec<usize>> = nodes.iter().map(|n| sizes(&n.grid)).collect();
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    kernel.scratch_bytes(&shapes, &sizes(grid))
}
