//! `freestone repo`: history, branches, garbage collection and expiry of snapshots.

use std::time::Duration;

use clap::Subcommand;
use freestone::sessions::{Repository, Snapshot, Version};
use freestone::size;
use freestone_engine::spec::parse_duration;
use serde_json::{Value, json};

use super::commit::RepositoryArgs;
use super::console::Console;
use super::{Failure, print};

#[derive(Subcommand)]
pub(crate) enum Arguments {
    /// List the snapshots of a branch, newest first
    Log {
        #[command(flatten)]
        repository: RepositoryArgs,
        /// Show at most N snapshots
        #[arg(short, value_name = "N")]
        n: Option<usize>,
        /// Print one JSON list
        #[arg(long)]
        json: bool,
    },
    /// List branches and tags with their snapshots, and create or delete them
    Branches {
        #[command(flatten)]
        repository: RepositoryArgs,
        /// Create branch NAME at --branch
        #[arg(long, value_name = "NAME")]
        create: Option<String>,
        /// Create tag NAME, which is permanent, at --branch
        #[arg(long, value_name = "NAME")]
        tag: Option<String>,
        /// Delete branch NAME
        #[arg(long, value_name = "NAME")]
        delete: Option<String>,
    },
    /// Remove objects that no snapshot and no live session refers to
    Gc {
        #[command(flatten)]
        repository: RepositoryArgs,
        /// Minimum age of removed objects, such as 3d [default: older than any session]
        ///
        /// The commit of a run that started earlier and is not finished is rejected.
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        older_than: Option<Duration>,
    },
    /// Remove old snapshots from the history, except the newest of each branch
    ///
    /// `freestone repo gc` then removes the objects that only these snapshots referred to.
    Expire {
        #[command(flatten)]
        repository: RepositoryArgs,
        /// Minimum age of removed snapshots, such as 30d
        #[arg(value_name = "DURATION", value_parser = parse_duration)]
        older_than: Duration,
    },
}

pub(crate) fn repo(arguments: &Arguments, console: &Console) -> Result<(), Failure> {
    match arguments {
        Arguments::Log { repository, n, json } => log(repository, *n, *json),
        Arguments::Branches { repository, create, tag, delete } => {
            let (repository, spec) = repository.open()?;
            let branch = Version::Branch(spec.branch);
            create.iter().try_for_each(|name| repository.create_branch(name, &branch))?;
            tag.iter().try_for_each(|name| repository.create_tag(name, &branch))?;
            delete.iter().try_for_each(|name| repository.delete_branch(name))?;
            list_branches(&repository)
        }
        Arguments::Gc { repository, older_than } => {
            let removed = repository.open()?.0.gc(*older_than)?;
            console.note(&format!(
                "removed {} chunks, {} manifests and {} snapshots ({})",
                removed.n_chunks,
                removed.n_manifests,
                removed.n_snapshots,
                size(removed.n_bytes)
            ));
            Ok(())
        }
        Arguments::Expire { repository, older_than } => {
            let expired = repository.open()?.0.expire(*older_than)?.snapshots;
            expired.iter().try_for_each(|id| print(id))?;
            console.note(&format!("removed {} snapshots from the history", expired.len()));
            Ok(())
        }
    }
}

fn log(repository: &RepositoryArgs, n: Option<usize>, json: bool) -> Result<(), Failure> {
    let (repository, spec) = repository.open()?;
    let mut history = repository.history(&Version::Branch(spec.branch))?;
    history.truncate(n.unwrap_or(usize::MAX));
    if json {
        return print(&Value::Array(history.iter().map(as_json).collect()).to_string());
    }
    history.iter().try_for_each(|s| {
        let written = humantime::format_rfc3339_seconds(s.written_at);
        print(&format!("{}  {written}  {}", s.id, s.message))
    })
}

fn list_branches(repository: &Repository) -> Result<(), Failure> {
    for name in repository.branches()? {
        let id = repository.resolve(&Version::Branch(name.clone()))?;
        print(&format!("branch  {name}  {id}"))?;
    }
    for name in repository.tags()? {
        let id = repository.resolve(&Version::Tag(name.clone()))?;
        print(&format!("tag     {name}  {id}"))?;
    }
    Ok(())
}

fn as_json(snapshot: &Snapshot) -> Value {
    let ms = snapshot
        .written_at
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64);
    json!({
        "id": snapshot.id,
        "parent": snapshot.parent,
        "written_ms": ms,
        "message": snapshot.message,
        "properties": snapshot.properties,
    })
}
