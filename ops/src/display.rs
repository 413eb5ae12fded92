//! The summary of an array: dtype, shape, chunks, size, and the number of nodes of its graph.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use freestone_engine::graph::{Node, NodeRef};
use freestone_engine::memory::size;

use crate::array::{Array, Inner};

/// Writes a summary, such as
/// `Array float32 [time 12, lat 73, lon 144], chunks [3, 37, 72], 504.6 kB, 3 nodes`.
impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.inner {
            Ok(inner) => write_array(inner, f),
            Err(error) => write!(f, "Array, failed: {error}"),
        }
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn write_array(inner: &Inner, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Node { dtype, grid, .. } = &*inner.node;
    let shape = grid.shape();
    let axis = |(len, name): (&u64, Option<&str>)| match name {
        Some(name) => format!("{name} {len}"),
        None => len.to_string(),
    };
    let names = inner.dims.iter().map(|dim| dim.name.as_deref());
    let axes: Vec<String> = shape.iter().zip(names).map(axis).collect();
    let n_bytes = shape.iter().product::<u64>().saturating_mul(dtype.size() as u64);
    let n_nodes = count_nodes(&inner.node);
    write!(
        f,
        "Array {dtype} [{}], chunks {:?}, {}, {n_nodes} node{}",
        axes.join(", "),
        grid.max_chunk(),
        size(n_bytes),
        if n_nodes == 1 { "" } else { "s" }
    )
}

/// Returns the number of distinct nodes in the graph of an array, including its own.
fn count_nodes(root: &NodeRef) -> usize {
    let (mut seen, mut pending) = (HashSet::new(), vec![root]);
    while let Some(node) = pending.pop() {
        if seen.insert(Arc::as_ptr(node)) {
            pending.extend(node.inputs());
        }
    }
    seen.len()
}
