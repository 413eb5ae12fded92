//! The worker, the same in every place: a process on this machine, an environment of AWS Lambda.
//!
//! A client sends an [`Invocation`]; a [`Server`] fetches the run's plan, keeps it for the next invocation, runs as many tasks at once as fit into its
//! memory, and gives an [`Answer`]. What it cannot run it refuses before the first task, with the reason as data: another protocol or engine, another
//! format of plans, a kernel that it does not know, too little memory ([`Call::Probe`] asks for nothing else). What it has no time for it gives back.
//! How invocations and answers travel is the place's affair: frames over a socket (`freestone-executors`), Lambda's Runtime API (`freestone-lambda`).
//!
//! `protocol` has the messages, `plan` fetches and checks, `server` answers, `requests` runs.

mod plan;
mod protocol;
mod requests;
mod server;

pub use plan::{check_inputs, fetch, slots};
pub use protocol::{Answer, Call, Environment, Invocation, MAX_BODY_BYTES, PROTOCOL};
pub use requests::panicked;
pub use server::{Place, Server};

use freestone_engine::storage::Stores;

/// Stores, with ways to open all that a worker of this build knows: with the feature `sessions` repositories, too.
pub fn stores() -> Stores {
    let stores = Stores::default();
    #[cfg(feature = "sessions")]
    let stores = stores.with_opener(freestone_sessions::SCHEME, freestone_sessions::open_store);
    stores
}

/// A line for the log of the worker's place.
pub(crate) fn log(line: &str) {
    eprintln!("{line}");
}
