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
