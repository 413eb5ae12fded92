//! A user's own function on whole blocks.

use freestone_engine::graph::{Node, NodeRef};
use freestone_engine::grid::{AxisGrid, ChunkGrid};
use freestone_engine::stages::UserNode;
use freestone_engine::user::{UserKernel, make};
use freestone_kernels::DType;

use crate::array::{Array, Dim, computed_attributes, or_failed};
use crate::error::Error;
use crate::join::cloned;

/// What [`map_blocks`] makes of its arrays' blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputBlocks {
    dtype: DType,
    drop: Vec<usize>,
    add: Vec<(usize, u64)>,
    lengths: Vec<(usize, BlockLengths)>,
}

/// Elements of the result's blocks along an axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockLengths {
    /// As many in each.
    Each(u64),
    /// So many in one after the other.
    List(Vec<u64>),
}

impl OutputBlocks {
    /// Blocks of that dtype, as many and as large as those of the arrays.
    pub fn new(dtype: DType) -> OutputBlocks {
        OutputBlocks { dtype, drop: Vec::new(), add: Vec::new(), lengths: Vec::new() }
    }

    /// Without an axis of the arrays, along which they are one block.
    #[must_use]
    pub fn drop_axis(mut self, axis: usize) -> OutputBlocks {
        self.drop.push(axis);
        self
    }

    /// With a new axis at that place of the result, of one block of `len` elements. Places are
    /// those after all drops and earlier additions.
    #[must_use]
    pub fn new_axis(mut self, axis: usize, len: u64) -> OutputBlocks {
        self.add.push((axis, len));
        self
    }

    /// With blocks of other lengths along an axis of the result.
    #[must_use]
    pub fn lengths(mut self, axis: usize, lengths: BlockLengths) -> OutputBlocks {
        self.lengths.push((axis, lengths));
        self
    }
}

/// Applies a kernel to blocks: block `i` of the result is made of block `i` of each array.
///
/// The arrays' axes are aligned at the last; along each of them an array has as many blocks as the
/// others, or one, which then is given to all. Kernels that run in other processes must be in the
/// registry that their `main` passes to `serve`.
///
/// Cost: one stage; arrays that are computed get a stage of their own before it. Memory: a block of
/// each array, one stored chunk, the result's block, and the kernel's scratch memory.
///
/// # Errors
/// Where the numbers of blocks differ, or the result's axes are not what is left of the arrays'.
#[track_caller]
pub fn map_blocks<K: UserKernel>(
    kernel: &K,
    arrays: impl IntoIterator<Item = impl AsRef<Array>>,
    out: &OutputBlocks,
) -> Array {
    let arrays = cloned(arrays);
    or_failed(try_map_blocks(kernel, &arrays.iter().collect::<Vec<_>>(), out))
}

fn try_map_blocks<K: UserKernel>(
    kernel: &K,
    arrays: &[&Array],
    out: &OutputBlocks,
) -> Result<Array, Error> {
    let bad = |what: String| Error::Argument(format!("map_blocks with `{}`: {what}", K::NAME));
    let nodes = arrays.iter().map(|a| a.node().cloned()).collect::<Result<Vec<_>, _>>()?;
    let rank = nodes
        .iter()
        .map(|n| n.grid.axes().len())
        .max()
        .ok_or_else(|| bad("give at least one array".into()))?;
    // Along each axis, the array that has most blocks.
    let shift = |node: &NodeRef| rank - node.grid.axes().len();
    let mut grids: Vec<(AxisGrid, Dim)> = Vec::with_capacity(rank);
    for d in 0..rank {
        let axis = |(i, node): (usize, &NodeRef)| {
            d.checked_sub(shift(node)).map(|own| (node.grid.axes()[own].clone(), i, own))
        };
        let along: Vec<(AxisGrid, usize, usize)> =
            nodes.iter().enumerate().filter_map(axis).collect();
        let Some((most, i, own)) = along.iter().max_by_key(|(g, ..)| (g.n_chunks(), g.len()))
        else {
            continue;
        };
        if let Some((other, ..)) =
            along.iter().find(|(g, ..)| g.n_chunks() != most.n_chunks() && g.n_chunks() > 1)
        {
            return Err(bad(format!(
                "the arrays have {} and {} blocks along axis {d}: rechunk one of them",
                most.n_chunks(),
                other.n_chunks()
            )));
        }
        grids.push((most.clone(), arrays[*i].dims()?[*own].clone()));
    }
    // The result's axes: what is left, and where each axis of the arrays went.
    let mut result: Vec<(Option<usize>, AxisGrid, Dim)> = Vec::new();
    for (d, (grid, dim)) in grids.into_iter().enumerate() {
        if !out.drop.contains(&d) {
            result.push((Some(d), grid, dim));
        } else if grid.n_chunks() > 1 {
            return Err(bad(format!(
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
        result.insert(*at, (None, AxisGrid::regular(*len, *len), Dim::default()));
    }
    for (axis, lengths) in &out.lengths {
        let n_axes = result.len();
        let Some((_, grid, dim)) = result.get_mut(*axis) else {
            return Err(Error::Axis { axis: *axis as i64, rank: n_axes });
        };
        let n = grid.n_chunks();
        let resized = match lengths {
            BlockLengths::Each(0) => {
                return Err(bad(format!("blocks of 0 elements along axis {axis} hold nothing")));
            }
            BlockLengths::Each(each) => AxisGrid::regular(
                n.checked_mul(*each).ok_or_else(|| bad("the result is too large".into()))?,
                *each,
            ),
            BlockLengths::List(list) if list.len() as u64 != n => {
                return Err(bad(format!(
                    "{} lengths were given for {n} blocks along axis {axis}",
                    list.len()
                )));
            }
            BlockLengths::List(list) => AxisGrid::bounds(
                std::iter::once(0)
                    .chain(list.iter().scan(0u64, |at, n| {
                        *at += n;
                        Some(*at)
                    }))
                    .collect(),
            )?,
        };
        (*grid, *dim) = (resized, Dim { name: dim.name.clone(), origin: None });
    }
    let grid = ChunkGrid::new(result.iter().map(|(_, g, _)| g.clone()).collect());
    let place = |d: usize| result.iter().position(|(from, ..)| *from == Some(d));
    let axes = nodes
        .iter()
        .map(|node| {
            node.grid
                .axes()
                .iter()
                .enumerate()
                .map(|(own, g)| if g.n_chunks() > 1 { place(own + shift(node)) } else { None })
                .collect()
        })
        .collect();
    let sizes =
        |grid: &ChunkGrid| -> Vec<usize> { grid.max_chunk().iter().map(|n| *n as usize).collect() };
    let shapes: Vec<Vec<usize>> = nodes.iter().map(|n| sizes(&n.grid)).collect();
    let scratch_bytes =
        kernel.scratch_bytes(&shapes.iter().map(Vec::as_slice).collect::<Vec<_>>(), &sizes(&grid));
    let parameters = serde_json::to_value(kernel)
        .map_err(|e| bad(format!("its parameters are no JSON: {e}")))?;
    make::<K>(&parameters)
        .map_err(|e| bad(format!("its parameters do not come back from JSON: {e}")))?;
    let attributes = computed_attributes(arrays)?;
    let user = UserNode {
        inputs: nodes.clone(),
        axes,
        name: K::NAME,
        version: K::VERSION,
        parameters,
        scratch_bytes,
        make: make::<K>,
    };
    let node = Node::staged(user, out.dtype, grid);
    let dims = result.into_iter().map(|(.., dim)| dim).collect();
    Ok(Array::from_parts(node, dims, attributes))
}
