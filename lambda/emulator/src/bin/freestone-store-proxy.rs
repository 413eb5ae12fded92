//! The object store proxy as a program, which runs until its standard input ends.
//!
//! ```text
//! freestone-store-proxy STORE [--seed 1] [--slow-down 0.01] [--fail 0.01] [--lose 0.01]
//!     [--lose-conditional 1]
//! ```
//!
//! STORE is `http://ADDRESS:PORT`. Prints its URL, and its counters at the end.

// The program reports on standard output.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::io::{self, Read};
use std::process::ExitCode;

use freestone_lambda_emulator::{StoreFaults, StoreProxy};

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), Box<dyn Error>> {
    let store = arguments.next().ok_or("missing argument STORE")?;
    let store = store.trim_start_matches("http://").trim_end_matches('/').parse()?;
    let mut faults = StoreFaults::default();
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("missing value for `{name}`"))?;
        match name.as_str() {
            "--seed" => faults.seed = value.parse()?,
            "--slow-down" => faults.slow_down = value.parse()?,
            "--fail" => faults.fail = value.parse()?,
            "--lose" => faults.lose = value.parse()?,
            "--lose-conditional" => faults.lose_conditional = value.parse()?,
            _ => return Err(format!("unknown option `{name}`").into()),
        }
    }
    let proxy = StoreProxy::start(store, faults)?;
    println!("{}", proxy.url());
    io::stdin().read_to_end(&mut Vec::new())?;
    println!("{:?}", proxy.stats());
    Ok(())
}
