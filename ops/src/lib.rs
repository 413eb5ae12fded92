//! Lazy arrays.
//!
//! An [`Array`] is a handle on an array that is read, generated or computed later; its dtype, shape and chunks are known
//! now. Operators and methods build a graph and read nothing but metadata. [`io`] opens arrays and says where results go.

mod array;
mod create;
pub mod elementwise;
mod error;
pub mod io;
mod manipulate;
pub mod reduce;
mod region;

pub use array::{Array, Dim};
pub use create::{arange, asarray, full, random_uniform, scalar};
pub use elementwise::*;
pub use error::Error;
pub use region::RegionError;
