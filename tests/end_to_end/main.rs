//! End-to-end tests of the library and the command: from Zarr to Zarr, on every executor, with
//! damaged inputs and killed workers.

// Tests panic on failure.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub
)]
// Regions of one axis are arrays of one range.
#![allow(clippy::single_range_in_vec_init)]

#[path = "../support/forward_store.rs"]
#[macro_use]
mod forward_store;

mod ahead;
mod bad_input;
mod command;
mod contended;
mod crates;
mod docs;
mod elements;
mod explain;
mod expressions;
mod faults;
mod functions;
mod groups;
mod intermediates;
mod lambda;
mod memory;
mod observing;
mod outputs;
mod packed;
mod planner;
mod processes;
mod quad_means;
mod readiness;
mod rearranged;
mod regions;
mod repositories;
mod resume;
#[path = "../child/scenarios.rs"]
mod scenarios;
mod standard;
mod storing;
mod suites;
mod support;
mod user_kernels;
mod values;
