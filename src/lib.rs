#![doc = include_str!("../docs/guide.md")]
//!
//! # Status
//!
#![doc = include_str!("../docs/status.md")]

#[doc = include_str!("../docs/functions.md")]
pub mod functions {}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

mod compute;
mod error;
mod in_memory;
mod index;
pub mod prelude;
#[cfg(feature = "sessions")]
mod session;

pub use compute::{
    Plan, RunOptions, create, discard, open, open_run, plan, resume, run, run_with, serve, stores,
};
pub use error::{Error, ErrorKind, ExitCode};
pub use freestone_engine::driver::record::StoredRun;
pub use freestone_engine::events::{Event, Observer, RunReport};
pub use freestone_engine::executor::Executor;
pub use freestone_engine::memory::size;
pub use freestone_engine::spec::{Settings, Size, Spec, SpecBuilder, parse_size};
pub use freestone_engine::storage::{CodecName, Encoding, MemoryStore, Stores};
pub use freestone_engine::user::{
    Block, BlockError, BlockMut, KernelError, KernelRegistry, Scratch, UserKernel,
};
pub use freestone_engine::worker::Cancel;
#[cfg(feature = "lambda")]
pub use freestone_executors::LambdaExecutor;
pub use freestone_executors::{Processes, Serial, Threads, WORKER_ARGUMENT};
pub use freestone_kernels::dtype::{Bool, Complex64, Complex128};
pub use freestone_kernels::{BinaryOp, DType, Expr, ExprError, Node as ExprNode, Scalar, UnaryOp};
pub use freestone_ops::elementwise::*;
pub use freestone_ops::io::{Target, open_in};
pub use freestone_ops::reduce::Reduce;
pub use freestone_ops::{
    Array, Axes, Axis, Dim, Index, Indexing, Number, Pad, Slice, broadcast_arrays, concat, stack,
};
pub use freestone_ops::{
    BlockLengths, DEFAULT_CHUNK_BYTES, OutputBlocks, default_chunks, from_scalars, map_blocks,
};
pub use freestone_ops::{Error as ArrayError, Packed, RegionError};
pub use freestone_ops::{Scan, TensordotAxes, outer, tensordot, vecdot};
pub use freestone_ops::{
    arange, asarray, empty, empty_like, eye, full, full_like, linspace, meshgrid, ones, ones_like,
    scalar, tril, triu, zeros, zeros_like,
};
pub use freestone_ops::{random_integers, random_normal, random_uniform};
/// Repositories, sessions, tickets and receipts.
#[cfg(feature = "sessions")]
pub use freestone_sessions as sessions;
pub use in_memory::{Compute, Value, compute, compute_scalar, compute_with};
#[cfg(feature = "sessions")]
pub use session::{Session, open_version};
