//! What cannot be built.

use std::panic::Location;
use std::sync::Arc;

use freestone_engine::grid::GridError;
use freestone_engine::readmap::ReadMapError;
use freestone_engine::storage::StorageError;
use freestone_engine::storage::metadata::MetadataError;
use freestone_kernels::{DType, ExprError};
use thiserror::Error;

use crate::region::RegionError;

/// Why an array cannot be built or stored.
#[derive(Clone, Debug, Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("shapes {left:?} and {right:?} do not broadcast: along axis {axis} from the end they have {a} and {b} elements, and neither is 1")]
    Broadcast { left: Vec<u64>, right: Vec<u64>, axis: usize, a: u64, b: u64 },
    #[error("axis {axis} is out of range for an array of {rank} axes (from {} to {})", -(*rank as i64), *rank as i64 - 1)]
    Axis { axis: i64, rank: usize },
    #[error("axis {0} is named twice")]
    AxisTwice(i64),
    #[error("{left} and {right} have no common type: cast one of them")]
    Promotion { left: DType, right: DType },
    #[error("{op} is not defined for {dtype}")]
    Domain { op: &'static str, dtype: DType },
    #[error("the {op} of no elements does not exist: axis {axis} has length 0")]
    Empty { op: &'static str, axis: usize },
    #[error("axis `{name}` of `{array}` has other coordinates than the arrays that are in {place}: store it in another group, or rename the axis")]
    Coordinates { place: String, array: String, name: String },
    #[error("{0}")]
    Argument(String),
    #[error("{0}")]
    Shards(String),
    #[error(transparent)]
    Region(#[from] RegionError),
    #[error("{source} (in the expression at {}:{}:{})", at.file(), at.line(), at.column())]
    Deferred { source: Arc<Error>, at: &'static Location<'static> },
    #[error(transparent)]
    Expr(#[from] ExprError),
    #[error(transparent)]
    Grid(#[from] GridError),
    #[error(transparent)]
    ReadMap(#[from] ReadMapError),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}
