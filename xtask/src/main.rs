//! Tasks of the repository, run as `cargo xtask TASK`.
//!
//! [`ci`] runs the suites that a change must pass. The crate has no dependencies, so that it
//! compiles within seconds on a fresh clone.
#![allow(clippy::print_stdout, reason = "progress and results go to stdout")]

#[cfg(test)]
mod architecture;
mod ci;

use std::process::ExitCode;

/// The result of a step; errors are messages for the terminal.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "\
Tasks of the repository

Usage: cargo xtask ci [SUITE]...

Arguments:
  [SUITE]...  Suites to run [default: all]

Options:
      --list  List the suites
  -h, --help  Print help

Each suite prints `suite NAME: N passed (S s)`. The run fails if a suite fails, or if it passes
without running anything. Logs and other outputs are in target/ci. All suites use the release
profile and share one build. Packages of the system are installed only if CI=true.

Environment:
  MEMORY_ROWS=all  Run memory, cgroup and lambda on the full product of operations and codecs";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        [] | ["-h" | "--help", ..] | ["ci", "-h" | "--help", ..] => {
            println!("{USAGE}");
            Ok(())
        }
        ["ci", "--list"] => {
            ci::list();
            Ok(())
        }
        ["ci", suites @ ..] => ci::run(suites),
        [task, ..] => Err(format!("unknown task `{task}`: expected `ci`").into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
