//! The suites that a change must pass: which exist, their order, and the summary of a run.
//!
//! [`suites`] has one function for each suite, [`context`] the commands, logs and counts of the
//! running suite. [`needs`] finds or installs what suites need from the system, [`services`] starts
//! and stops what they share with it. [`limits`] checks the length of files and lines.

mod context;
mod limits;
mod needs;
mod services;
mod suites;

use std::time::Instant;

use crate::Result;
use context::Context;

/// A suite: its name and the function that runs it.
type Suite = (&'static str, fn(&mut Context) -> Result<()>);

/// All suites in the order in which they run.
const SUITES: [Suite; 16] = [
    ("format", suites::format),
    ("clippy", suites::clippy),
    ("features", suites::features),
    ("rustdoc", suites::rustdoc),
    ("tests", suites::tests),
    ("example", suites::example),
    ("interop", suites::interop),
    ("icechunk", suites::icechunk),
    ("memory", suites::memory),
    ("disk", suites::disk),
    ("cgroup", suites::cgroup),
    ("s3", suites::s3),
    ("stores", suites::stores),
    ("lambda", suites::lambda),
    ("faults", suites::faults),
    ("browser", suites::browser),
];

/// Suites that run only if they are named, because they do not pass yet: tests on other stores than
/// those of the suite `stores`.
const NAMED_SUITES: [Suite; 1] = [("clouds", suites::clouds)];

/// One line of the summary.
struct Outcome {
    suite: &'static str,
    result: &'static str,
    passed: u64,
    seconds: u64,
}

/// Prints the names of the suites.
pub(crate) fn list() {
    for (name, _) in SUITES {
        println!("{name}");
    }
}

/// Runs the named suites, or all if none is named.
///
/// # Errors
///
/// If a name is unknown, a suite fails, a suite runs nothing, or a full run leaves ignored tests
/// out.
pub(crate) fn run(names: &[&str]) -> Result<()> {
    let wanted = select(names)?;
    let mut context = Context::new()?;
    needs::rust_tools(&context)?;
    let outcomes: Vec<Outcome> =
        wanted.into_iter().map(|suite| run_suite(suite, &mut context)).collect();
    context.remove_temporary_files()?;

    println!("\n{:<10} {:<12} {:>8} {:>8}", "suite", "outcome", "passed", "seconds");
    for Outcome { suite, result, passed, seconds } in &outcomes {
        println!("{suite:<10} {result:<12} {passed:>8} {seconds:>8}");
    }
    if outcomes.iter().any(|outcome| outcome.result != "ok") {
        return Err("not all suites passed".into());
    }
    if names.is_empty() {
        check_ignored(&context)?;
    }
    Ok(())
}

fn select(names: &[&str]) -> Result<Vec<Suite>> {
    if names.is_empty() {
        return Ok(SUITES.to_vec());
    }
    let find = |name: &&str| {
        SUITES.into_iter().chain(NAMED_SUITES).find(|(suite, _)| suite == name).ok_or_else(|| {
            let all: Vec<&str> = SUITES.iter().map(|(suite, _)| *suite).collect();
            format!("unknown suite `{name}`: expected one of {}", all.join(", ")).into()
        })
    };
    names.iter().map(find).collect()
}

fn run_suite((suite, function): Suite, context: &mut Context) -> Outcome {
    println!("\n== {suite}");
    context.begin(suite);
    let start = Instant::now();
    let result = function(context);
    let seconds = start.elapsed().as_secs();
    let passed = context.n_passed();
    let result = match result {
        Err(error) => {
            eprintln!("xtask: {suite}: {error}");
            println!("suite {suite}: FAILED ({seconds} s)");
            "failed"
        }
        Ok(()) if passed == 0 => {
            println!("suite {suite}: FAILED, nothing ran ({seconds} s)");
            "nothing-ran"
        }
        Ok(()) => {
            println!("suite {suite}: {passed} passed ({seconds} s)");
            "ok"
        }
    };
    Outcome { suite, result, passed, seconds }
}

/// Compares the ignored tests of the suite `tests` with those that the other suites ran: an ignored
/// test whose prefix no suite asks for would never run.
fn check_ignored(context: &Context) -> Result<()> {
    let ignored = context.n_ignored_by_default();
    let ran = context.n_ignored_run();
    if ignored == ran {
        return Ok(());
    }
    let message = format!(
        "{ignored} tests are ignored in the suite `tests`, but the suites that run ignored tests \
         ran {ran}"
    );
    Err(message.into())
}
