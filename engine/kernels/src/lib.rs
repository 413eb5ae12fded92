//! Loops over flat typed slices: what a task computes, without any notion of plans or storage.
//!
//! The path of values: a [`View`] of decoded bytes → [`eval`] runs an [`Expr`] over it in
//! cache-sized strips → the strips are written out ([`eval::map`]) or folded into accumulators
//! ([`reduce::fold`]). [`copy`] moves boxes between strided layouts, [`generate`] fills boxes from
//! nothing. Everything is single-threaded: a task computes on one thread.
//!
//! This is its own crate so that some hundreds of monomorphised loops are compiled once.

#[macro_use]
mod simd;
mod apply;
pub mod buffer;
mod cast;
pub mod contract;
pub mod copy;
pub mod dtype;
pub mod eval;
pub mod expr;
pub mod generate;
mod loops;
mod math;
pub mod reduce;
pub mod scalar;
pub mod scan;

pub use buffer::{Buffer, View, contiguous_strides};
pub use dtype::DType;
pub use expr::{BinaryOp, Domain, Expr, ExprError, Node, UnaryOp};
pub use generate::Generate;
pub use reduce::ReduceOp;
pub use scalar::Scalar;
pub use scan::ScanOp;
