//! The worker that AWS Lambda runs.
//!
//! A client invokes the function with requests of a run (`freestone_engine::remote` has what
//! travels); the worker fetches the run's plan, keeps it while it is warm, runs as many tasks at
//! once as fit into the function's memory, writes the record of each request that has ended into
//! the work directory, and answers with what became of them. Answers are data. What it cannot run
//! it refuses before the first task; what it has no time for it gives back.
//!
//! The program `bootstrap` is the worker without kernels of users. With kernels of one's own, it is
//! a program of a few lines, which is deployed in its place:
//!
//! ```no_run
//! use freestone_lambda::{Allocator, Error, KernelRegistry, serve, stores};
//!
//! #[global_allocator]
//! static ALLOCATOR: Allocator = Allocator;
//!
//! fn main() -> Result<(), Error> {
//!     let kernels = KernelRegistry::new(); // .with::<MyKernel>()
//!     serve(kernels, stores())
//! }
//! ```
//!
//! The worker itself is `freestone-worker`; here is what Lambda's Runtime API and its environments
//! add.

pub use freestone_allocator::Allocator;
pub use freestone_engine::kernels::DType;
pub use freestone_engine::storage::Stores;
pub use freestone_engine::user::{Block, BlockMut, KernelRegistry, UserKernel};
pub use lambda_runtime::Error;

pub use freestone_worker::stores;

use std::time::{Duration, SystemTime};

use freestone_engine::machine;
use freestone_worker::{Place, Server};
use lambda_runtime::{LambdaEvent, service_fn};
use serde_json::Value;

/// Lambda gives one CPU for so much memory.
const BYTES_PER_CPU: u64 = 1769 << 20;
/// Tasks wait for storage most of the time, so more than one for each CPU are of use; beyond so
/// many, each more would only take its share of memory that is not in its projection: a stack, and
/// what the allocator keeps for its thread.
const TASKS_PER_CPU: u64 = 4;
const FEWEST_TASKS: u64 = 8;

/// This environment.
fn place() -> std::io::Result<Place> {
    let mib =
        std::env::var("AWS_LAMBDA_FUNCTION_MEMORY_SIZE").ok().and_then(|v| v.parse::<u64>().ok());
    let memory_bytes = mib.map_or_else(machine::memory_bytes, |mib| mib << 20);
    let max_tasks = (memory_bytes.div_ceil(BYTES_PER_CPU) * TASKS_PER_CPU).max(FEWEST_TASKS);
    let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned();
    Ok(Place {
        kind: "lambda",
        id,
        memory_bytes,
        max_tasks: u32::try_from(max_tasks).unwrap_or(u32::MAX),
        is_remote: true,
    })
}

/// Answers invocations until Lambda ends the process. The worker knows the users' kernels that it
/// is given, and opens stores that the engine does not know as `stores` says.
///
/// # Errors
/// Where this is no Lambda environment, or its Runtime API breaks.
pub fn serve(kernels: KernelRegistry, stores: Stores) -> Result<(), Error> {
    // A backtrace would bring the program's symbols into memory for good.
    std::panic::set_hook(Box::new(|panic| log(&panic.to_string())));
    let server = Server::new(place()?, kernels, stores);
    let handler = |event: LambdaEvent<Value>| {
        // One invocation at a time: nothing else is on this thread, so the handler may block it.
        let answer = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|now| {
            let left = Duration::from_millis(event.context.deadline).saturating_sub(now);
            server.answer(event.payload, Some(left))
        });
        std::future::ready(answer.map_err(|_| {
            Error::from("the clock is before 1970, so there is no deadline to keep to")
        }))
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(lambda_runtime::run(service_fn(handler)))
}

/// A line for the function's log.
#[allow(clippy::print_stderr)]
fn log(line: &str) {
    eprintln!("{line}");
}
