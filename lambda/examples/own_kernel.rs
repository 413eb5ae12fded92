//! A worker with a user kernel, deployed in place of the stock worker.
//!
//!     cargo build --release -p freestone-lambda --example own_kernel
//!     freestone lambda package --bootstrap target/release/examples/own_kernel
//!
//! Define the kernel in a library that the client uses too, so that both have the same version.

use freestone_lambda::{
    Allocator, Block, BlockMut, Error, KernelError, KernelRegistry, Scratch, UserKernel, serve,
    stores,
};
use serde::{Deserialize, Serialize};

/// Replaces elements above a maximum by the maximum.
#[derive(Debug, Serialize, Deserialize)]
struct Clip {
    max: f32,
}

impl UserKernel for Clip {
    const NAME: &'static str = "clip";
    const VERSION: u32 = 1;

    fn scratch_bytes(&self, _inputs: &[&[usize]], _output: &[usize]) -> u64 {
        0
    }

    fn apply(
        &self,
        inputs: &[Block<'_>],
        output: &mut BlockMut<'_>,
        _scratch: &mut Scratch<'_>,
    ) -> Result<(), KernelError> {
        output
            .array::<f32>()?
            .iter_mut()
            .zip(inputs[0].array::<f32>()?)
            .for_each(|(out, x)| *out = x.min(self.max));
        Ok(())
    }
}

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> Result<(), Error> {
    serve(KernelRegistry::new().with::<Clip>(), stores())
}
