//! The worker with a kernel of its own that tests put under the emulator.

// A test that panics has failed.
#![allow(clippy::unwrap_used, missing_docs)]

mod odd;

use freestone_lambda::{Allocator, Error, KernelRegistry, serve, stores};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> Result<(), Error> {
    serve(KernelRegistry::new().with::<odd::Odd>(), stores())
}
