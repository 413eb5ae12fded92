//! Single-threaded loops over flat typed slices, independent of plans and storage.
//!
//! The path of values: a [`View`] of decoded bytes → [`eval`] evaluates an [`Expr`] over it in
//! cache-sized strips → the strips are written out ([`eval::map`]) or folded into accumulators
//! ([`reduce::fold`]). [`copy`] copies boxes between strided layouts, [`generate`] fills boxes with
//! generated values.
//!
//! The loops are a separate crate so that several hundred monomorphised loops are compiled once.

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
