//! The worker with the user kernel `scripted`, which tests run in the emulator.

// A worker of tests reports errors by panicking.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

mod scripted;

use freestone_lambda::{Allocator, Error, KernelRegistry, serve, stores};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> Result<(), Error> {
    serve(KernelRegistry::new().with::<scripted::Scripted>(), stores())
}
