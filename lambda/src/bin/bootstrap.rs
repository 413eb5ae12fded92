//! The stock worker: the whole library, without user kernels.

use freestone_lambda::{Allocator, Error, KernelRegistry, serve, stores};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> Result<(), Error> {
    serve(KernelRegistry::new(), stores())
}
