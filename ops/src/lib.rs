//! Lazy arrays.
//!
//! An [`Array`] is a handle on an array that is read, generated or computed later; its dtype, shape
//! and chunks are known now. Operators and methods build a graph and read nothing but metadata.
//! They return an array in any case: an error stays with the array that could not be built. Inside
//! this crate, `try_` variants return the error at once, so that its location is the caller's.
//! [`io`] opens arrays and says where results go.

mod array;
mod chunking;
mod create;
pub mod elementwise;
mod error;
mod index;
pub mod io;
mod linear;
mod manipulate;
mod map_blocks;
mod range;
pub mod reduce;
mod region;

pub use array::{Array, Dim};
pub use chunking::{DEFAULT_CHUNK_BYTES, default_chunks};
pub use create::*;
pub use elementwise::*;
pub use error::{Error, Packed};
pub use index::Index;
pub use linear::{Contracted, Running, outer, tensordot, vecdot};
pub use manipulate::{Pad, broadcast_arrays, concat, stack};
pub use map_blocks::{BlocksOut, Lengths, map_blocks};
pub use region::RegionError;
