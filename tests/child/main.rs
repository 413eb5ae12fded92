//! Child processes of end-to-end tests: `freestone-test-child ROLE ARGUMENT`.
//!
//! A child ends when its standard input closes, so that it never outlives its test.

// Children panic on failure, as tests do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub
)]

#[path = "../support/forward_store.rs"]
#[macro_use]
#[allow(unused_macros, reason = "some are for stores of the tests")]
mod forward_store;

mod driver;
mod kernel;
mod repository;
mod scenarios;

/// The store of injected faults, used here to observe requests.
#[path = "../end_to_end/faults"]
#[allow(dead_code, unused_imports)]
mod faults {
    mod decisions;
    pub mod store;

    pub use decisions::{Fault, Faults, Part, Rule};
}

use std::io::{Read, Write};

use freestone::{Processes, Threads, WORKER_ARGUMENT};
use freestone_engine::executor::Executor;
use serde_json::Value;

fn main() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["driver", asked] => driver::run(&serde_json::from_str(asked).unwrap()),
        ["repository", asked] => repository::run(&serde_json::from_str(asked).unwrap()),
        ["kernel", place] => kernel::run(place),
        other => panic!("unknown role: {other:?}"),
    }
}

/// Prints a line.
fn say(what: &Value) {
    let mut out = std::io::stdout().lock();
    // A closed pipe is not an error.
    let _ = writeln!(out, "{what}").and_then(|()| out.flush());
}

/// Stops the calling thread forever; the parent kills the process.
fn stop() -> ! {
    loop {
        std::thread::park();
    }
}

fn executor(on: &str, binary: &str, slots: usize) -> Box<dyn Executor> {
    if on == "processes" {
        Box::new(Processes::new(slots, binary, [WORKER_ARGUMENT]))
    } else {
        Box::new(Threads::new(slots))
    }
}
