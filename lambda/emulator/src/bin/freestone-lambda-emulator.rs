//! The emulator as a program, which runs until its standard input ends.
//!
//! ```text
//! freestone-lambda-emulator WORKER [--name freestone] [--memory 256] [--timeout 30]
//!     [--concurrency 8] [--env NAME=VALUE]…
//! ```
//!
//! Prints its URL, and its counters at the end. Workers inherit only the variables that `--env`
//! names; `--env NAME` passes on this process's value.

// The program reports on standard output.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::io::{self, Read};
use std::process::ExitCode;
use std::time::Duration;

use freestone_lambda_emulator::{Config, Emulator};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let emulator = Emulator::start(config(std::env::args().skip(1))?)?;
    println!("{}", emulator.url());
    if !emulator.has_cgroups() {
        eprintln!(
            "warning: memory is not limited (hint: run as root with a writable /sys/fs/cgroup)"
        );
    }
    io::stdin().read_to_end(&mut Vec::new())?;
    println!("{}", serde_json::to_string(&emulator.stats())?);
    Ok(())
}

fn config(mut arguments: impl Iterator<Item = String>) -> Result<Config, Box<dyn Error>> {
    let mut config = Config::new("freestone", arguments.next().ok_or("missing argument WORKER")?);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("missing value for `{name}`"))?;
        match name.as_str() {
            "--name" => config.function = value,
            "--memory" => config.memory_mib = value.parse()?,
            "--timeout" => config.timeout = Duration::from_secs_f64(value.parse()?),
            "--concurrency" => config.concurrency = value.parse()?,
            "--env" => {
                let variable =
                    value.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
                config.variables.extend(
                    variable.or_else(|| Some((value.clone(), std::env::var(&value).ok()?))),
                );
            }
            _ => return Err(format!("unknown option `{name}`").into()),
        }
    }
    Ok(config)
}
