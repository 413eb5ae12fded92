//! The worker for AWS Lambda.
//!
//! A client invokes the function with requests of a run (`freestone_engine::remote` defines the
//! messages). The worker fetches the run's plan and caches it while the environment is warm. It
//! runs as many tasks at once as fit in the function's memory, and writes the record of each
//! finished request into the work directory. It answers with the outcomes as plain data. It refuses
//! plans that it cannot run before the first task, and returns requests for which no time is left.
//!
//! The program `bootstrap` is the worker without user kernels. A worker with user kernels is a
//! program of a few lines, deployed in its place:
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
//! The worker itself is in `freestone-worker`. This crate connects it to Lambda's Runtime API and
//! describes Lambda's environments.

pub use freestone_allocator::Allocator;
pub use freestone_engine::kernels::DType;
pub use freestone_engine::storage::Stores;
pub use freestone_engine::user::{
    Block, BlockMut, KernelError, KernelRegistry, Scratch, UserKernel,
};
pub use lambda_runtime::Error;

pub use freestone_worker::stores;

use std::time::{Duration, SystemTime};

use freestone_engine::machine;
use freestone_worker::{Place, Server};
use lambda_runtime::{LambdaEvent, service_fn};
use serde_json::Value;

/// The memory for which Lambda allocates one CPU.
const BYTES_PER_CPU: u64 = 1769 << 20;
/// The maximum number of concurrent tasks per CPU.
///
/// Tasks mostly wait for storage, so several tasks share a CPU. Each further task needs memory that
/// its projection does not include: a stack, and the allocator's memory for its thread.
const TASKS_PER_CPU: u64 = 4;
/// The maximum number of concurrent tasks in an environment with less than two CPUs.
const MIN_MAX_TASKS: u64 = 8;

/// Describes this environment, with the memory limit that Lambda states.
fn place() -> std::io::Result<Place> {
    let mib =
        std::env::var("AWS_LAMBDA_FUNCTION_MEMORY_SIZE").ok().and_then(|v| v.parse::<u64>().ok());
    let memory_bytes = mib.map_or_else(machine::memory_bytes, |mib| mib << 20);
    let max_tasks = (memory_bytes.div_ceil(BYTES_PER_CPU) * TASKS_PER_CPU).max(MIN_MAX_TASKS);
    let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned();
    Ok(Place {
        kind: "lambda",
        id,
        memory_bytes,
        max_tasks: u32::try_from(max_tasks).unwrap_or(u32::MAX),
        is_remote: true,
    })
}

/// Answers invocations until Lambda ends the process. The worker runs the user kernels in
/// `kernels`, and opens additional stores through `stores`.
///
/// # Errors
/// Returns an error if the process does not run in a Lambda environment, or if the Runtime API
/// fails.
pub fn serve(kernels: KernelRegistry, stores: Stores) -> Result<(), Error> {
    // A backtrace would load the program's symbols into memory, where they stay.
    std::panic::set_hook(Box::new(|panic| log(&panic.to_string())));
    let server = Server::new(place()?, kernels, stores);
    let handler = |event: LambdaEvent<Value>| {
        // An environment has one invocation at a time, so the handler may block this thread.
        let answer = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|now| {
            let left = Duration::from_millis(event.context.deadline).saturating_sub(now);
            server.answer(event.payload, Some(left))
        });
        std::future::ready(answer.map_err(|_| {
            Error::from("invalid system time: expected a time after 1970 (needed for the deadline)")
        }))
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(lambda_runtime::run(service_fn(handler)))
}

/// Writes a line to the function's log.
#[allow(clippy::print_stderr)]
fn log(line: &str) {
    eprintln!("{line}");
}
