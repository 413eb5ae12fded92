//! The worker in worker processes on this machine and in environments of AWS Lambda.
//!
//! A client sends an [`Invocation`]. A [`Server`] fetches the run's plan and caches it for the next
//! invocation. It runs as many tasks at once as fit its memory, and returns an [`Answer`]. A worker
//! refuses a plan that it cannot run before the first task, with the reason in [`Answer::Refused`].
//! Reasons include another protocol, engine or plan format version, an unknown kernel, and too
//! little memory. [`Call::Probe`] requests only this check. Requests for which no time is left are
//! returned.
//!
//! Each place has its own transport: frames over a socket (`freestone-executors`), or Lambda's
//! Runtime API (`freestone-lambda`).
//!
//! `protocol` defines the messages, `plan` fetches and checks plans, `server` answers invocations,
//! and `requests` runs tasks.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod plan;
mod protocol;
mod requests;
mod server;

pub use plan::{check_inputs, fetch, slots};
pub use protocol::{Answer, Call, Environment, Invocation, MAX_BODY_BYTES, PROTOCOL};
pub use requests::panicked;
pub use server::{Place, Server};

use freestone_engine::storage::Stores;

/// Returns stores with openers for every scheme of this build. The feature `sessions` adds
/// repositories.
pub fn stores() -> Stores {
    let stores = Stores::default();
    #[cfg(feature = "sessions")]
    let stores = stores.with_opener(freestone_sessions::SCHEME, freestone_sessions::open_store);
    stores
}

/// Writes a line to the worker's log.
pub(crate) fn log(line: &str) {
    eprintln!("{line}");
}
