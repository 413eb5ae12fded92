//! The worker that AWS Lambda runs.
//!
//! A client invokes the function with requests of a run (`freestone_engine::remote` has what travels); the worker fetches the run's plan, keeps it
//! while it is warm, runs as many tasks at once as fit into the function's memory, writes the record of each request that has ended into the work
//! directory, and answers with what became of them. Answers are data. What it cannot run it refuses before the first task; what it has no time for
//! it gives back.
//!
//! The program `bootstrap` is the worker without kernels of users. With kernels of one's own, it is a program of a few lines, which is deployed in
//! its place:
//!
//! ```no_run
//! use freestone_lambda::{Allocator, Error, KernelRegistry, Stores, serve};
//!
//! #[global_allocator]
//! static ALLOCATOR: Allocator = Allocator;
//!
//! fn main() -> Result<(), Error> {
//!     let kernels = KernelRegistry::new(); // .with::<MyKernel>()
//!     serve(kernels, Stores::default())
//! }
//! ```
//!
//! `environment` answers one invocation after another; `requests` runs those of one.

mod environment;
mod requests;

pub use freestone_allocator::Allocator;
pub use freestone_engine::kernels::DType;
pub use freestone_engine::storage::Stores;
pub use freestone_engine::user::{Block, BlockMut, KernelRegistry, UserKernel};
pub use lambda_runtime::Error;

use environment::Worker;
use lambda_runtime::{LambdaEvent, service_fn};
use serde_json::Value;

/// Answers invocations until Lambda ends the process. The worker knows the users' kernels that it is given, and opens stores that the engine does not
/// know as `stores` says.
///
/// # Errors
/// Where this is no Lambda environment, or its Runtime API breaks.
pub fn serve(kernels: KernelRegistry, stores: Stores) -> Result<(), Error> {
    // A backtrace would bring the program's symbols into memory for good.
    std::panic::set_hook(Box::new(|panic| log(&panic.to_string())));
    let worker = std::sync::Mutex::new(Worker::start(kernels, stores)?);
    let handler = |event: LambdaEvent<Value>| {
        // One invocation at a time: nothing else is on this thread, so the handler may block it.
        let answer = worker.lock().unwrap_or_else(std::sync::PoisonError::into_inner).answer(event.payload, event.context.deadline);
        std::future::ready(Ok::<_, Error>(answer))
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(lambda_runtime::run(service_fn(handler)))
}

/// A line for the function's log.
#[allow(clippy::print_stderr)]
fn log(line: &str) {
    eprintln!("{line}");
}
