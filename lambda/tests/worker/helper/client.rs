//! A client that tests start as a process, to kill it or to give it its own environment:
//!
//! ```text
//! test_client commit URL ROOT LOG N_TASKS
//! test_client gated URL ROOT N_TASKS FIRST_GATED
//! ```

// A client of tests reports errors by panicking, and its result on standard output.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, dead_code, missing_docs)]

#[path = "../runs.rs"]
mod runs;
mod scripted;

use std::path::Path;
use std::time::Duration;

use freestone_engine::storage::Stores;
use freestone_executors::Threads;
use freestone_ops::io::{Target, open_in};
use freestone_sessions::{Format, MAIN, Repository};

use runs::{committed, executor, numbers, run, scripted as through_numbers, spec_in, through};
use scripted::Scripted;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["commit", url, root, log, n] => commit(url, root, log, n.parse().unwrap()),
        ["gated", url, root, n, first] => {
            gated(url, root, n.parse().unwrap(), first.parse().unwrap());
        }
        _ => panic!("invalid arguments {arguments:?}"),
    }
}

/// Runs tasks on an array below `root` and commits the result. Prints how many invocations were
/// throttled, recovered and crashed.
fn commit(url: &str, root: &str, log: &str, n_tasks: u64) {
    let spec = spec_in(Path::new("."), |s| s.work_dir = Some(format!("{root}/work")));
    let input = format!("{root}/numbers");
    run(&[Target::array(&numbers(n_tasks), &input)], &spec, &Threads::new(16));
    let array = open_in(&Stores::default().open(&input).unwrap(), "").unwrap();
    let kernel = Scripted { sleep_ms: 4, log: Some(log.to_owned()), ..Scripted::default() };
    let lambda = executor(url, 16, 30).batches(4, Duration::from_millis(30));
    let place = format!("{root}/repository");
    let repository = Repository::open_or_create(&place, Format::default()).unwrap();
    let arrays = [("numbers", through(&kernel, &array))];
    let (_, report) = committed(&repository, &arrays, &spec, &lambda);
    let session = repository.readonly_session(&MAIN.into()).unwrap();
    let values = session.array("numbers").unwrap().read().unwrap();
    let expected: Vec<u8> = (0..10 * n_tasks).flat_map(|i| (i as f64).to_le_bytes()).collect();
    assert!(values == expected, "the values differ");
    let invocations = report.invoked.unwrap();
    println!("[{}, {}, {}]", invocations.throttled, invocations.recovered, invocations.crashes);
}

/// Runs tasks of which those from a number on wait for the file `ROOT/gate`.
fn gated(url: &str, root: &str, n_tasks: u64, first_gated: u64) {
    let at = |name: &str| format!("{root}/{name}");
    let kernel = Scripted {
        sleep_ms: 5,
        log: Some(at("log")),
        gate: Some((10 * first_gated, at("gate"))),
        ..Scripted::default()
    };
    let targets = [Target::array(&through_numbers(n_tasks, &kernel), at("out"))];
    run(&targets, &spec_in(Path::new(root), |_| ()), &executor(url, 8, 100));
}
