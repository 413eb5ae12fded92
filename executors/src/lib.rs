//! Where tasks run: one after the other ([`Serial`]), on threads ([`Threads`]), in processes ([`Processes`]).
//!
//! All of them pull requests from the driver and run them with the engine's [`Worker`](freestone_engine::worker::Worker); every executor passes the
//! suite in [`conformance`].

pub mod conformance;
mod processes;
mod protocol;
mod threads;

pub use processes::{Processes, WORKER_ARGUMENT, serve};
pub use threads::{Serial, Threads};

/// Slots that a plan has tasks for.
fn useful(slots: usize, context: &freestone_engine::worker::RunContext) -> usize {
    let tasks = context.plan.plan().stages.iter().map(|s| s.n_tasks()).fold(0, u64::saturating_add);
    slots.min(usize::try_from(tasks).unwrap_or(usize::MAX)).max(1)
}
