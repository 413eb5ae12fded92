//! Planning and running, for `compute`, `plan`, `rechunk` and `resume`.

use std::path::Path;
use std::process;

use freestone::sessions::RepositoryPublisher;
use freestone::{Cancel, ExitCode, Plan, RunOptions, RunReport, Spec, Target};
use freestone_cli::cost::{self, Cost, Place, Prices};
use freestone_cli::drawing::svg;
use freestone_cli::limits::Limits;
use freestone_engine::driver::RunError;
use freestone_engine::events::Observer;
use freestone_engine::executor::Executor;
use freestone_engine::files;
use freestone_engine::plan::PlanExplanation;
use freestone_engine::publish::Publisher;

use super::console::{Console, print, to_stderr};
use super::observe::ObserverArgs;
use super::{Failure, json};

/// The action on a plan (print, draw or run) and the format of the output.
#[derive(Clone, Copy)]
pub(super) struct Mode<'a> {
    /// Prints the plan instead of running it.
    pub(super) plan_only: bool,
    /// Prints one JSON object.
    pub(super) json: bool,
    /// Adds the projected cost on AWS Lambda to the plan.
    pub(super) cost: bool,
    /// The file for a drawing of the plan.
    pub(super) svg: Option<&'a Path>,
}

/// The arguments that say where and under which limits a plan runs.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) limits: &'a Limits,
    pub(super) observers: &'a ObserverArgs,
    pub(super) console: &'a Console,
}

/// Plans to store all targets, and runs the plan or prints it. A session commits the results.
pub(super) fn execute(
    targets: &[Target],
    session: Option<RepositoryPublisher>,
    run: Run<'_>,
    mode: Mode<'_>,
) -> Result<(), Failure> {
    if mode.plan_only && run.observers.is_any() {
        return Err(Failure::usage(
            "--history, --report and --trace require a run: remove --plan-only",
        ));
    }
    if mode.cost && !mode.plan_only {
        return Err(Failure::usage(
            "--cost requires --plan-only (hint: the cost of a run is printed when it ends)",
        ));
    }
    run.observers.check()?;
    let spec = run.limits.spec()?;
    let planned = freestone::plan(targets, &spec)?;
    let executor = run.limits.executor(&spec).map_err(RunError::from)?;
    if mode.plan_only {
        return explain(&planned, &spec, &*executor, mode);
    }
    if !mode.json {
        let plan = planned.finalized().to_string();
        let shown =
            if run.console.is_verbose() { Some(plan.as_str()) } else { plan.lines().next() };
        run.console.note(shown.unwrap_or_default());
    }
    let cancel = cancel_on_signal(&spec.work_dir)?;
    let session = session.as_ref().map(|s| s as &dyn Publisher);
    let start = |observers: &[&dyn Observer]| {
        let options = RunOptions { observers, cancel, session, ..RunOptions::default() };
        freestone::run_with(&planned, &spec, &*executor, &options)
    };
    let report = run
        .observers
        .observe(&spec, run.console, start)?
        .inspect_err(|_| note_cost_of_failure(&*executor, &spec, run.console))?;
    let projected =
        report.invoked.and_then(|_| projected_cost(&planned.finalized().explain(), &spec).ok());
    summarize(&report, projected.as_ref(), &spec, mode.json, run.console);
    Ok(())
}

/// Prints the explanation of a plan, and draws the plan if asked to.
fn explain(
    planned: &Plan,
    spec: &Spec,
    executor: &dyn Executor,
    mode: Mode<'_>,
) -> Result<(), Failure> {
    let local = executor.local_memory(spec.local_mem);
    let local = planned.finalized().projected_local_mem(executor.slots(), &local);
    let explanation = planned.finalized().explain();
    if let Some(file) = mode.svg {
        files::write(file, svg(&explanation)).map_err(|e| Failure::usage(e.to_string()))?;
    }
    let cost = if mode.cost { Some(projected_cost(&explanation, spec)?) } else { None };
    if mode.json {
        return print(&json::plan(&explanation, local.ok(), cost.as_ref()).to_string());
    }
    let local = match local {
        _ if executor.is_remote() => "memory is limited by the function".to_owned(),
        Ok(local) => local.to_string(),
        Err(error) => error.to_string(),
    };
    let cost = cost.map(|c| format!("\n{c}")).unwrap_or_default();
    print(&format!(
        "{explanation}\n{}, {} at once: {local}{cost}",
        executor.name(),
        executor.workers()
    ))
}

/// Returns the projected cost of a plan on AWS Lambda, for any executor.
fn projected_cost(plan: &PlanExplanation, spec: &Spec) -> Result<Cost, Failure> {
    let place = Place::from_env(spec.parallelism, |name| std::env::var(name).ok())
        .map_err(Failure::Usage)?;
    Ok(Prices::load().map_err(Failure::Usage)?.project(plan, &place))
}

/// Returns the measured cost of a run on machines that are billed by use.
fn measured_cost(report: &RunReport, spec: &Spec) -> Option<Cost> {
    let place = Place::from_env(spec.parallelism, |name| std::env::var(name).ok()).ok()?;
    Prices::load().ok()?.measured(report, &place)
}

/// Notes the cost of a failed run. Requests to S3 by its tasks are not known, because a failed run
/// has no report.
pub(super) fn note_cost_of_failure(executor: &dyn Executor, spec: &Spec, console: &Console) {
    let invoked = executor.invoked().filter(|i| i.invocations > 0);
    let report = RunReport { invoked, ..RunReport::default() };
    if let Some(cost) = measured_cost(&report, spec) {
        console.note(&format!("{cost}\n  excluding requests to S3 by tasks"));
    }
}

/// Prints the report of a run and its cost. The run has succeeded, so a closed pipe is no failure.
pub(super) fn summarize(
    report: &RunReport,
    projected: Option<&Cost>,
    spec: &Spec,
    json: bool,
    console: &Console,
) {
    let measured = measured_cost(report, spec);
    if json {
        let _ = print(&json::run(report, measured.as_ref(), projected).to_string());
        return;
    }
    console.note(&report.to_string());
    match (measured.as_ref(), projected) {
        (Some(measured), Some(projected)) => console.note(&cost::comparison(measured, projected)),
        (Some(measured), None) => console.note(&measured.to_string()),
        (None, _) => {}
    }
}

/// Returns a handle that the first interrupt or termination signal cancels. A second signal exits
/// the process immediately.
pub(super) fn cancel_on_signal(work_dir: &str) -> Result<Cancel, Failure> {
    let cancel = Cancel::default();
    let signalled = cancel.clone();
    let stopped = format!(
        "stopped immediately\n\nhint: `freestone clean --dry-run {work_dir}` lists \
        runs that can be resumed"
    );
    let handler = move || {
        if signalled.is_cancelled() {
            to_stderr(&stopped);
            process::exit(ExitCode::Interrupted as i32);
        }
        signalled.cancel();
    };
    ctrlc::set_handler(handler).map_err(|e| Failure::usage(e.to_string()))?;
    Ok(cancel)
}
