//! `freestone resume`.

use clap::Args;
use freestone::RunOptions;
use freestone_cli::limits::Limits;
use freestone_engine::driver::RunError;
use freestone_engine::events::Observer;
use freestone_engine::publish::Publisher;

use super::Failure;
use super::commit;
use super::console::Console;
use super::execute::{cancel_on_signal, note_cost_of_failure, summarize};
use super::observe::ObserverArgs;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Folder of the run, or its name in the work directory
    run: String,
    /// Check that no input chunk was modified since the run started
    #[arg(long)]
    verify_inputs: bool,
    /// Rebase onto concurrent commits that changed other chunks
    #[arg(long)]
    rebase: bool,
    /// Print the report of the run as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    observers: ObserverArgs,
    #[command(flatten)]
    limits: Limits,
}

pub(crate) fn resume(arguments: &Arguments, console: &Console) -> Result<(), Failure> {
    arguments.observers.check()?;
    let spec = arguments.limits.spec()?;
    let stores = freestone::stores();
    let folder = if arguments.run.contains('/') {
        arguments.run.clone()
    } else {
        format!("{}/{}", spec.work_dir.trim_end_matches('/'), arguments.run)
    };
    let stored = freestone::open_run(&folder, &stores)?;
    let executor = arguments.limits.executor(&spec).map_err(RunError::from)?;
    let cancel = cancel_on_signal(&stored.address.work_dir)?;
    stored.check_idle(&stores)?;
    let rebased = if arguments.rebase {
        freestone::sessions::RepositoryPublisher::of_ticket(&stored.record.session)
    } else {
        None
    };
    let rebased = rebased.transpose()?.map(|s| s.with_rebase(commit::rebase(true)));
    let session = rebased.as_ref().map(|s| s as &dyn Publisher);
    let run = |observers: &[&dyn Observer]| {
        freestone::resume(
            &stored,
            &spec,
            &*executor,
            &RunOptions {
                observers,
                cancel,
                session,
                stores,
                verify_inputs: arguments.verify_inputs,
                ..RunOptions::default()
            },
        )
    };
    let report = arguments
        .observers
        .observe(&spec, console, run)?
        .inspect_err(|_| note_cost_of_failure(&*executor, &spec, console))?;
    summarize(&report, None, &spec, arguments.json, console);
    Ok(())
}
