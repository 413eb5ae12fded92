//! The stock worker: all of the library, no kernels of users.

use freestone_lambda::{Allocator, Error, KernelRegistry, Stores, serve};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> Result<(), Error> {
    serve(KernelRegistry::new(), Stores::default())
}
