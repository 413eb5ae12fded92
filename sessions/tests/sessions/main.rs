//! Tests of sessions in memory, in directories and in an object store.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::single_range_in_vec_init
)]

mod arrays;
mod conformance;
mod examples;
mod interop;
mod plans;
mod processes;
mod support;

/// The allocator of the programs, so that measurements apply to them.
#[global_allocator]
static ALLOCATOR: freestone_allocator::Allocator = freestone_allocator::Allocator;
