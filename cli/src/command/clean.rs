//! `freestone clean`.

use std::time::{Duration, SystemTime};

use clap::Args;
use freestone::{Error, StoredRun, size};
use freestone_cli::limits::Limits;
use freestone_engine::driver::RunError;
use freestone_engine::driver::record::{self, RunStatus};
use freestone_engine::storage::{StorageError, Store, identity};
use freestone_engine::system::System;
use freestone_engine::task::RunAddress;

use super::console::Console;
use super::{Failure, print};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Work directory [default: from settings]
    dir: Option<String>,
    /// Remove also runs that can be resumed, with their results so far
    #[arg(long)]
    all: bool,
    /// List runs without removing any
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    limits: Limits,
}

/// A run's folder in a work directory.
struct Folder {
    address: RunAddress,
    bytes: u64,
    /// The run, or the reason why it cannot be resumed.
    run: Result<(StoredRun, RunStatus), String>,
}

impl Folder {
    fn describe(&self, now: Duration) -> String {
        let state = match &self.run {
            Ok((_, status)) if status.is_running => "running".to_owned(),
            Ok((_, status)) if status.finished == status.tasks => {
                "all tasks finished, not published".to_owned()
            }
            Ok((_, status)) => {
                format!("{} of {} tasks finished", status.finished, status.tasks)
            }
            Err(why) => why.clone(),
        };
        let age = self.run.as_ref().ok().and_then(|(run, _)| {
            let began = run.record.began().duration_since(SystemTime::UNIX_EPOCH).ok()?;
            Some(Duration::from_secs(now.checked_sub(began)?.as_secs()))
        });
        let age = age.map_or(String::new(), |age| {
            format!(", started {} ago", humantime::format_duration(age))
        });
        format!("{}  {}, {state}{age}", self.address.path(), size(self.bytes))
    }

    fn is_removable(&self, all: bool) -> bool {
        match &self.run {
            Ok((_, status)) => all && !status.is_running,
            Err(_) => true,
        }
    }
}

pub(crate) fn clean(arguments: &Arguments, console: &Console) -> Result<(), Failure> {
    let stores = freestone::stores();
    let work_dir = identity(
        &arguments.dir.clone().map_or_else(|| arguments.limits.spec().map(|s| s.work_dir), Ok)?,
        "",
    );
    let work = stores.open(&work_dir).map_err(RunError::Work)?;
    let mut found = Vec::new();
    for folder in record::folders(&stores, &work_dir)? {
        let address = RunAddress { work_dir: work_dir.clone(), folder };
        let run = match StoredRun::open(&stores, address.clone()) {
            Ok(run) => run.status(&stores).map(|status| Ok((run, status)))?,
            Err(error @ RunError::Work(_)) => return Err(error.into()),
            Err(error) => Err(error.to_string()),
        };
        let bytes = bytes_below(&*work, &format!("{}/", address.folder)).map_err(RunError::Work)?;
        found.push(Folder { address, bytes, run });
    }
    let now = System::default().since_epoch();
    for folder in &found {
        let verb = if folder.is_removable(arguments.all) { "remove" } else { "keep  " };
        print(&format!("{verb}  {}", folder.describe(now)))?;
    }
    if found.is_empty() {
        console.note(&format!("no runs in {work_dir}"));
        return Ok(());
    }
    let (mut removed, mut bytes) = (0, 0);
    for folder in found.iter().filter(|f| !arguments.dry_run && f.is_removable(arguments.all)) {
        match &folder.run {
            Ok((run, _)) => freestone::discard(run, &stores)?,
            Err(_) => record::remove(&stores, &folder.address).map_err(Error::from)?,
        }
        removed += 1;
        bytes += folder.bytes;
    }
    let kept = found.len() - removed;
    let hint = if kept > 0 && !arguments.all {
        " (hint: --all removes also runs that can be resumed)"
    } else {
        ""
    };
    console.note(&format!("removed {removed} runs ({}), kept {kept}{hint}", size(bytes)));
    Ok(())
}

/// Returns the size of all objects with that prefix.
fn bytes_below(work: &dyn Store, prefix: &str) -> Result<u64, StorageError> {
    let mut bytes = 0;
    for name in work.list(prefix)? {
        let key = format!("{prefix}{name}");
        bytes += match work.size(&key)? {
            Some(bytes) => bytes,
            None => bytes_below(work, &format!("{key}/"))?,
        };
    }
    Ok(bytes)
}
