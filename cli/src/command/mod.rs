//! The subcommands, one file each; `report` says what a plan is and what a run took, `output` where
//! results go, `watching` who looks on.

pub(crate) mod clean;
mod committing;
pub(crate) mod compute;
pub(crate) mod functions;
pub(crate) mod info;
pub(crate) mod lambda;
pub(crate) mod negative;
mod output;
pub(crate) mod rechunk;
pub(crate) mod repo;
mod report;
pub(crate) mod resume;
pub(crate) mod session;
mod watching;

use std::io::{self, Write};
use std::path::Path;
use std::{fs, process};

use freestone::sessions::RepositoryPublisher;
use freestone::{Cancel, Error, ExitCode, RunOptions, RunReport, Spec, Target};
use freestone_cli::cost::{self, Cost, Place, Prices};
use freestone_cli::drawing::svg;
use freestone_cli::limits::Limits;
use freestone_engine::driver::RunError;
use freestone_engine::events::Observer;
use freestone_engine::executor::Executor;
use freestone_engine::plan::PlanExplanation;
use freestone_engine::publish::Publisher;
use freestone_expr::ExpressionError;
use watching::Watching;

/// Why a subcommand did not do what it was asked for.
pub(crate) enum Failure {
    Freestone(Error),
    Expression(ExpressionError),
    Usage(String),
    /// Who reads our output has gone away: nothing to say to anybody.
    Pipe,
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Freestone(error.into())
    }
}

fn say(text: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "{text}").map_err(|_| Failure::Pipe)
}

/// How much is done, and in which form it is reported.
#[derive(Clone, Copy)]
struct Mode<'a> {
    plan_only: bool,
    json: bool,
    /// Also says what it would cost on AWS Lambda.
    cost: bool,
    /// Where a drawing of the plan goes.
    svg: Option<&'a Path>,
}

/// Plans to store all targets, and runs the plan unless only it is wanted. With a session, the
/// results are committed by that.
fn execute(
    targets: &[Target],
    session: Option<RepositoryPublisher>,
    limits: &Limits,
    watching: &Watching,
    mode: Mode<'_>,
) -> Result<(), Failure> {
    if mode.plan_only && watching.is_asked() {
        return Err(Failure::Usage(
            "--plan-only runs nothing, so there is nothing for --history or --report to tell"
                .into(),
        ));
    }
    let spec = limits.spec()?;
    let planned = freestone::plan(targets, &spec)?;
    let executor = limits.executor(&spec).map_err(RunError::from)?;
    if mode.cost && !mode.plan_only {
        return Err(Failure::Usage(
            "--cost goes with --plan-only; what a run has cost is said after it".into(),
        ));
    }
    if mode.plan_only {
        let local = executor.local_memory(spec.local_mem);
        let here = planned.finalized().projected_local_mem(executor.slots(), &local);
        let explanation = planned.finalized().explain();
        if let Some(file) = mode.svg {
            fs::write(file, svg(&explanation)).map_err(|e| {
                Failure::Usage(format!("cannot write the drawing to {}: {e}", file.display()))
            })?;
        }
        let cost = if mode.cost { Some(projected(&explanation, &spec)?) } else { None };
        return say(&if mode.json {
            report::plan(&explanation, here.ok(), cost.as_ref()).to_string()
        } else {
            let here = match here {
                _ if executor.is_remote() => "memory is the function's".to_owned(),
                Ok(here) => here.to_string(),
                Err(error) => error.to_string(),
            };
            let cost = cost.map(|c| format!("\n{c}")).unwrap_or_default();
            format!(
                "{explanation}\n{}, {} at once: {here}{cost}",
                executor.name(),
                executor.workers()
            )
        });
    }
    // With JSON, one object is all that is said.
    let said = if mode.json { Ok(()) } else { say(&planned.finalized().to_string()) };
    let cancel = interruptible(&spec.work_dir)?;
    let session = session.as_ref().map(|s| s as &dyn Publisher);
    let run = |observers: &[&dyn Observer]| {
        freestone::run_with(
            &planned,
            &spec,
            &*executor,
            &RunOptions { observers, cancel, session, ..RunOptions::default() },
        )
    };
    let report = watching.watch(&spec, run)?.inspect_err(|_| spent(&*executor, &spec))?;
    // The work is done; that nobody hears of it is no failure.
    let projected =
        report.invoked.and_then(|_| projected(&planned.finalized().explain(), &spec).ok());
    let _ = said.and_then(|()| say(&took(&report, projected.as_ref(), &spec, mode.json)));
    Ok(())
}

/// What a plan would cost on AWS Lambda, whatever it is going to run on.
fn projected(plan: &PlanExplanation, spec: &Spec) -> Result<Cost, Failure> {
    let place = Place::from_env(spec.parallelism, |name| std::env::var(name).ok())
        .map_err(Failure::Usage)?;
    Ok(Prices::load().map_err(Failure::Usage)?.project(plan, &place))
}

/// What a run has cost that ran on machines that are paid for by use.
fn measured(report: &RunReport, spec: &Spec) -> Option<Cost> {
    let place = Place::from_env(spec.parallelism, |name| std::env::var(name).ok()).ok()?;
    Prices::load().ok()?.measured(report, &place)
}

/// Says what a run has cost that did not end well. What its tasks read and wrote is in the report
/// that it does not have.
fn spent(executor: &dyn Executor, spec: &Spec) {
    let invoked = executor.invoked().filter(|i| i.invocations > 0);
    if let Some(cost) = measured(&RunReport { invoked, ..RunReport::default() }, spec) {
        let _ = writeln!(io::stderr(), "{cost}\n  and requests to S3 of its tasks");
    }
}

/// What a run took, and what that has cost where it ran on machines that are paid for by use.
fn took(report: &RunReport, projected: Option<&Cost>, spec: &Spec, json: bool) -> String {
    let measured = measured(report, spec);
    let cost = match (measured.as_ref(), projected) {
        (Some(measured), Some(projected)) => format!("\n{}", cost::beside(measured, projected)),
        (Some(measured), None) => format!("\n{measured}"),
        (None, _) => String::new(),
    };
    if json {
        report::run(report, measured.as_ref(), projected).to_string()
    } else {
        format!("{report}{cost}")
    }
}

/// What is cancelled when somebody asks this process to stop, by Ctrl-C or otherwise: the first
/// request ends cleanly, the second at once.
fn interruptible(work_dir: &str) -> Result<Cancel, Failure> {
    let cancel = Cancel::default();
    let asked = cancel.clone();
    let hint = format!(
        "stopped at once. What can be resumed is listed by: freestone clean --dry-run {work_dir}"
    );
    let handler = move || {
        if asked.is_cancelled() {
            let _ = writeln!(io::stderr(), "{hint}");
            process::exit(ExitCode::Interrupted as i32);
        }
        asked.cancel();
    };
    ctrlc::set_handler(handler).map_err(|e| Failure::Usage(e.to_string()))?;
    Ok(cancel)
}
