//! `freestone clean`.

use std::time::SystemTime;

use clap::Args;
use freestone::{Error, StoredRun, size};
use freestone_cli::limits::Limits;
use freestone_engine::driver::RunError;
use freestone_engine::driver::record::{self, RunStatus};
use freestone_engine::storage::{StorageError, Store, identity};
use freestone_engine::task::RunAddress;

use super::{Failure, say};

#[derive(Args)]
pub(crate) struct Arguments {
    /// The work directory; otherwise that of the settings.
    dir: Option<String>,
    /// Also removes runs that could be resumed, with what they have written so far.
    #[arg(long)]
    all: bool,
    /// Only lists.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    limits: Limits,
}

/// A folder of a work directory.
struct Found {
    address: RunAddress,
    bytes: u64,
    /// Why it is of no use any more, or the run that it is of.
    run: Result<(StoredRun, RunStatus), String>,
}

impl Found {
    fn words(&self) -> String {
        let state = match &self.run {
            Ok((_, status)) if status.is_running => "is running".to_owned(),
            Ok((_, status)) if status.finished == status.tasks => {
                "all tasks finished, not published".to_owned()
            }
            Ok((_, status)) => {
                format!("{} of {} tasks finished", status.finished, status.tasks)
            }
            Err(why) => why.clone(),
        };
        let age = self
            .run
            .as_ref()
            .ok()
            .and_then(|(run, _)| SystemTime::now().duration_since(run.record.began()).ok());
        let age = age.map_or(String::new(), |age| {
            format!(
                ", begun {} ago",
                humantime::format_duration(std::time::Duration::from_secs(age.as_secs()))
            )
        });
        format!("{}  {}, {state}{age}", self.address.path(), size(self.bytes))
    }

    fn goes(&self, all: bool) -> bool {
        match &self.run {
            Ok((_, status)) => all && !status.is_running,
            Err(_) => true,
        }
    }
}

pub(crate) fn clean(asked: &Arguments) -> Result<(), Failure> {
    let stores = freestone::stores();
    let work_dir = identity(
        &asked.dir.clone().map_or_else(|| asked.limits.spec().map(|s| s.work_dir), Ok)?,
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
        found.push(Found { address, bytes, run });
    }
    for one in &found {
        let verb = if one.goes(asked.all) { "removes" } else { "keeps  " };
        say(&format!("{verb}  {}", one.words()))?;
    }
    if found.is_empty() {
        return say(&format!("there are no runs in {work_dir}"));
    }
    let (mut removed, mut bytes) = (0, 0);
    for one in found.iter().filter(|one| !asked.dry_run && one.goes(asked.all)) {
        match &one.run {
            Ok((run, _)) => freestone::discard(run, &stores)?,
            Err(_) => record::remove(&stores, &one.address).map_err(Error::from)?,
        }
        removed += 1;
        bytes += one.bytes;
    }
    let kept = found.len() - removed;
    say(&format!(
        "{removed} removed ({}), {kept} kept{}",
        size(bytes),
        if kept > 0 && !asked.all {
            "; --all removes those that could be resumed, too"
        } else {
            ""
        }
    ))
}

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
