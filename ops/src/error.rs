//! Errors of building and storing arrays.

use std::panic::Location;
use std::sync::Arc;

use freestone_engine::grid::GridError;
use freestone_engine::readmap::ReadMapError;
use freestone_engine::storage::metadata::MetadataError;
use freestone_engine::storage::packing::Packing;
use freestone_engine::storage::{EncodingError, StorageError};
use freestone_kernels::{DType, ExprError};
use thiserror::Error;

use crate::region::RegionError;

/// An array with packed values, in a computation that requires unpacked ones.
#[derive(Clone, Debug, Error)]
#[error(
    "cannot compute on {}: its values are packed ({}), and are not unpacked when they are read \
        (hint: `--raw`, in Rust `Array::raw`, computes on the stored \
     numbers{})",
    place.as_deref().map_or_else(|| "an \
        array".to_owned(), |place| format!("`{place}`")), packing.attributes(), self.unpacked()
)]
pub struct Packed {
    /// The location of the stored array.
    pub place: Option<String>,
    /// The name of the array in an expression.
    pub name: String,
    /// The packing of its values.
    pub packing: Box<Packing>,
}

impl Packed {
    /// Named after the last part of its location, if that is a valid name.
    pub(crate) fn new(place: Option<String>, packing: Packing) -> Packed {
        let last = place
            .as_deref()
            .and_then(|p| p.rsplit('/').next())
            .filter(|n| is_identifier(n))
            .unwrap_or("x")
            .to_owned();
        Packed { place, name: last, packing: Box::new(packing) }
    }

    fn unpacked(&self) -> String {
        self.packing
            .expression(&self.name)
            .map(|e| format!("; unpacked they are `{e}`"))
            .unwrap_or_default()
    }
}

fn is_identifier(text: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.chars().all(inside) && text.chars().next().is_some_and(|c| !c.is_ascii_digit())
}

fn known_names(names: &[String]) -> String {
    if names.is_empty() {
        return "the axes have no names".to_owned();
    }
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    format!("the names are {}", quoted.join(", "))
}

/// The error of building or storing an array.
#[derive(Clone, Debug, Error)]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum Error {
    #[error(
        "shapes {left:?} and {right:?} do not broadcast: along axis {axis} from the end they have \
            {a} and {b} elements, and neither is 1"
    )]
    Broadcast { left: Vec<u64>, right: Vec<u64>, axis: usize, a: u64, b: u64 },
    #[error("axis {axis} is out of range for an array of {rank} axes (from {} to \
        {})", -(*rank as i64), *rank as i64 - 1)]
    Axis { axis: i64, rank: usize },
    #[error("axis {0} is named twice")]
    AxisTwice(i64),
    #[error("no axis is named `{name}`: {}", known_names(names))]
    AxisName { name: String, names: Vec<String> },
    #[error("axis name `{name}` is ambiguous: two axes have it, so give a number")]
    AmbiguousAxis { name: String },
    #[error("cannot promote {left} and {right} to a common dtype (hint: cast one of them)")]
    Promotion { left: DType, right: DType },
    #[error("{op} is not defined for {dtype}")]
    Domain { op: &'static str, dtype: DType },
    #[error("{op} of no elements is not defined: axis {axis} has length 0")]
    Empty { op: &'static str, axis: usize },
    #[error(
        "axis `{name}` of `{array}` has other coordinates than the arrays in {place} (hint: store \
            it in another group, or rename the axis)"
    )]
    Coordinates { place: String, array: String, name: String },
    #[error(transparent)]
    Packed(#[from] Packed),
    #[error("{0}")]
    Argument(String),
    #[error("{0}")]
    Shards(String),
    #[error(transparent)]
    Encoding(#[from] EncodingError),
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

impl Error {
    /// Returns the error without the location of its expression.
    pub fn cause(&self) -> &Error {
        match self {
            Error::Deferred { source, .. } => source.cause(),
            other => other,
        }
    }
}
