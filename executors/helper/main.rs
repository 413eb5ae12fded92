//! The program that tests start: a worker with the kernel `odd`, or a client of Lambda. Its first
//! argument is the mode.

// A test that panics has failed.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod kernel;

use std::fs::OpenOptions;
use std::io::Write;

use freestone_engine::executor::Executor;
use freestone_engine::storage::Stores;
use freestone_engine::task::RunAddress;
use freestone_engine::user::KernelRegistry;
use freestone_engine::worker::RunContext;
use freestone_executors::{Processes, serve};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let argument = |i: usize| arguments.get(i).map_or("", String::as_str);
    match argument(1) {
        // Prints before it serves.
        "noisy" => {
            println!("noisy prints before it serves");
            worker();
        }
        // A program whose `main` starts itself as a worker but never serves. Appends a line for
        // each start, and its error.
        "forgetful" => {
            let log = |line: &str| {
                let file = OpenOptions::new().create(true).append(true).open(argument(2));
                writeln!(file.unwrap(), "{line}").unwrap()
            };
            log("started");
            let itself = Processes::new(1, std::env::current_exe().unwrap(), &arguments[1..]);
            let error = itself.check(&context(argument(3), argument(4))).unwrap_err();
            log(&error.to_string());
        }
        // Probes the function at an endpoint, with the credentials of the environment.
        #[cfg(feature = "lambda")]
        "probe" => {
            let executor = freestone_executors::LambdaExecutor::new("f", "eu-central-1");
            executor.endpoint(argument(2)).check(&context(argument(3), argument(4))).unwrap();
        }
        _ => worker(),
    }
}

fn kernels() -> KernelRegistry {
    KernelRegistry::new().with::<kernel::Odd>()
}

fn context(work_dir: &str, folder: &str) -> RunContext {
    let address = RunAddress { work_dir: work_dir.to_owned(), folder: folder.to_owned() };
    freestone_worker::fetch(&address, &Stores::default(), &kernels()).unwrap()
}

fn worker() {
    if let Err(error) = serve(&kernels(), Stores::default()) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
