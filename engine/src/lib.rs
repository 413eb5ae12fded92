//! Plans with bounded memory over chunked arrays, and the worker and driver that run them.
//!
//! A [`graph`] of nodes is [lowered](plan::lower::lower) to a [`Plan`](plan::Plan), whose memory is
//! [projected](memory) and checked. The [`driver`] assigns the plan's tasks to an [`executor`]. The
//! executor's [`worker`]s read chunks from [`storage`], compute, and write chunks. A
//! [`Publisher`](publish::Publisher) publishes the results.
//!
//! Time and randomness come from a [`System`](system::System) that is passed as an argument. File
//! access goes through [`files`].
//!
//! `ARCHITECTURE.md` lists the modules in import order.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod driver;
pub mod environment;
pub mod events;
pub mod executor;
mod failure;
pub mod files;
mod finished;
mod flat;
pub mod graph;
pub mod grid;
pub mod journal;
mod lru;
pub mod machine;
pub mod memory;
pub mod panics;
pub mod plan;
pub mod program;
pub mod publish;
pub mod readmap;
pub mod remote;
pub mod retry;
pub mod spec;
pub mod stages;
mod state;
pub mod storage;
pub mod system;
pub mod task;
pub mod user;
#[allow(clippy::disallowed_methods, reason = "its errors name the path")]
mod work_dir;
pub mod worker;

pub use freestone_kernels as kernels;
