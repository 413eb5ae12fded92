//! `freestone resume`.

use clap::Args;
use freestone::RunOptions;
use freestone_cli::limits::Limits;
use freestone_engine::driver::RunError;
use freestone_engine::events::Observer;
use freestone_engine::publish::Publisher;

use super::watching::Watching;
use super::{Failure, committing, interruptible, say, spent, took};

#[derive(Args)]
pub(crate) struct Arguments {
    /// The run's folder, as its error says it; or its name only, in the work directory.
    run: String,
    /// Also asks for each chunk of the inputs whether it was written since the run began.
    #[arg(long)]
    verify_inputs: bool,
    /// Where another commit came first, goes on top of what it has changed if that is disjoint.
    #[arg(long)]
    rebase: bool,
    /// Prints one JSON object: what the run took.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    watching: Watching,
    #[command(flatten)]
    limits: Limits,
}

pub(crate) fn resume(asked: &Arguments) -> Result<(), Failure> {
    let spec = asked.limits.spec()?;
    let stores = freestone::stores();
    let folder = if asked.run.contains('/') {
        asked.run.clone()
    } else {
        format!("{}/{}", spec.work_dir.trim_end_matches('/'), asked.run)
    };
    let stored = freestone::open_run(&folder, &stores)?;
    let executor = asked.limits.executor(&spec).map_err(RunError::from)?;
    let cancel = interruptible(&stored.address.work_dir)?;
    stored.check_idle(&stores)?;
    let rebased = if asked.rebase {
        freestone::sessions::RepositoryPublisher::of_ticket(&stored.record.session)
    } else {
        None
    };
    let rebased = rebased.transpose()?.map(|s| s.with_rebase(committing::rebase(true)));
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
                verify_inputs: asked.verify_inputs,
                ..RunOptions::default()
            },
        )
    };
    let report = asked.watching.watch(&spec, run)?.inspect_err(|_| spent(&*executor, &spec))?;
    // The work is done; that nobody hears of it is no failure.
    let _ = say(&took(&report, None, &spec, asked.json));
    Ok(())
}
