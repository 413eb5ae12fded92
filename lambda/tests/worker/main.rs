//! The worker in processes under the emulator, invoked directly and through the client.

// Tests and their helpers report errors by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod answers;
mod client;
mod equivalence;
mod faults;
mod functions;
mod limits;
mod ministack;
mod plans;
mod runs;
#[path = "helper/scripted.rs"]
mod scripted;

use freestone_lambda::Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;
