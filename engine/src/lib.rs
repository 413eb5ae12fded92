//! Plans of bounded memory over chunked arrays, and the worker and driver that run them.
//!
//! The path of a computation: a [`graph`] of nodes is [lowered](plan::lower::lower) to a
//! [`Plan`](plan::Plan), whose memory is [projected](memory) and checked; the [`driver`] hands its
//! tasks to an [`executor`], whose [`worker`]s read chunks from [`storage`], compute and write; a
//! [`session`] publishes the results.
//!
//! Time and randomness come from a [`System`](system::System) that is passed along, files from
//! [`files`].
//!
//! Nothing imports from what comes later in:
//! `files · system · retry · machine · panics · grid · flat → readmap → memory → program → storage · work_dir · spec → user → graph → plan · stages · state → task · session → worker → executor · remote · events → journal → driver`.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod driver;
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
#[allow(clippy::disallowed_methods, reason = "a worker measures its tasks by the machine's clock")]
pub mod worker;

pub use freestone_kernels as kernels;
