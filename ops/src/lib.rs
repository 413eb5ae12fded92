//! Lazy arrays.
//!
//! An [`Array`] is a handle to an array that is read, generated or computed later. Its dtype, shape
//! and chunks are already known. Operators and methods build a graph, and read only metadata. They
//! always return an array: an array that cannot be built holds the error. In this crate, `try_`
//! variants return the error directly, so that its location is the caller's. [`io`] opens arrays
//! and specifies the targets of results.

mod array;
mod axes;
mod chunking;
mod create;
mod display;
pub mod elementwise;
mod error;
mod index;
pub mod io;
mod join;
mod linear;
mod map_blocks;
mod operators;
mod promotion;
mod range;
pub mod reduce;
mod region;
mod repeat;
mod reshape;
mod views;

pub use array::{Array, Dim};
pub use axes::{Axes, Axis};
pub use chunking::{DEFAULT_CHUNK_BYTES, default_chunks};
pub use create::*;
pub use elementwise::*;
pub use error::{Error, Packed};
pub use index::{Index, Slice};
pub use join::{broadcast_arrays, concat, stack};
pub use linear::{Scan, TensordotAxes, outer, tensordot, vecdot};
pub use map_blocks::{BlockLengths, OutputBlocks, map_blocks};
pub use operators::Number;
pub use region::RegionError;
pub use repeat::Pad;
