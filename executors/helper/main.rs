//! The program that tests of processes start: a worker that knows the kernel `odd`, in one of
//! several ways.

// A test that panics has failed.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod kernel;

use std::fs::OpenOptions;
use std::io::Write;

use freestone_engine::executor::Executor;
use freestone_engine::storage::Stores;
use freestone_engine::task::RunAddress;
use freestone_engine::user::KernelRegistry;
use freestone_executors::{Processes, serve};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let argument = |i: usize| arguments.get(i).map_or("", String::as_str);
    match argument(1) {
        // Prints before it serves, as a program's `main` may.
        "noisy" => {
            println!("noisy prints before it serves");
            worker();
        }
        // A `main` that never serves: the same again, whatever its arguments. It appends a line for
        // each start, and what became of it.
        "forgetful" => {
            let [log, work_dir, folder] = [2, 3, 4].map(|i| argument(i).to_owned());
            let say = |line: &str| {
                writeln!(OpenOptions::new().create(true).append(true).open(&log).unwrap(), "{line}")
                    .unwrap()
            };
            say("started");
            let context = freestone_worker::fetch(
                &RunAddress { work_dir, folder },
                &Stores::default(),
                &kernels(),
            )
            .unwrap();
            let again = Processes::new(1, std::env::current_exe().unwrap(), &arguments[1..]);
            say(&again.check(&context).unwrap_err().to_string());
        }
        _ => worker(),
    }
}

fn kernels() -> KernelRegistry {
    KernelRegistry::new().with::<kernel::Odd>()
}

fn worker() {
    if let Err(error) = serve(&kernels(), Stores::default()) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
