//! Plans of bounded memory over chunked arrays, and the worker and driver that run them.
//!
//! The path of a computation: a [`graph`] of nodes is [lowered](plan::lower::lower) to a [`Plan`](plan::Plan), whose memory is
//! [projected](memory) and checked; the [`driver`] hands its tasks to an [`executor`], whose [`worker`]s read chunks from
//! [`storage`], compute and write; a [`session`] publishes the results.
//!
//! Nothing imports from what comes later in: `machine · panics · grid · flat → readmap → memory → storage · spec → user → graph → plan → task · session →
//! worker → executor · remote · events → journal → driver`.

pub mod driver;
pub mod events;
pub mod executor;
mod failure;
mod finished;
mod flat;
pub mod graph;
pub mod grid;
pub mod journal;
pub mod machine;
pub mod memory;
pub mod panics;
pub mod plan;
pub mod program;
pub mod readmap;
mod recent;
pub mod remote;
pub mod session;
pub mod spec;
pub mod stages;
mod state;
pub mod storage;
pub mod task;
pub mod user;
pub mod worker;

pub use freestone_kernels as kernels;
