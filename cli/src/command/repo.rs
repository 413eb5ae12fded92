//! `freestone repo`: history, branches, and what is kept.

use std::time::Duration;

use clap::Subcommand;
use freestone::sessions::{Snapshot, Version};
use freestone::size;
use freestone_engine::spec::parse_duration;
use serde_json::{Value, json};

use super::committing::Place;
use super::{Failure, say};

#[derive(Subcommand)]
pub(crate) enum Arguments {
    /// The snapshots of a branch, the newest first.
    Log {
        #[command(flatten)]
        place: Place,
        /// So many.
        #[arg(short, value_name = "N")]
        n: Option<usize>,
        /// Prints one JSON list.
        #[arg(long)]
        json: bool,
    },
    /// The branches and tags, and the snapshots that they lead to.
    Branches {
        #[command(flatten)]
        place: Place,
        /// Makes that branch where --branch is.
        #[arg(long, value_name = "NAME")]
        create: Option<String>,
        /// Names the snapshot where --branch is, for good.
        #[arg(long, value_name = "NAME")]
        tag: Option<String>,
        /// Removes that branch.
        #[arg(long, value_name = "NAME")]
        delete: Option<String>,
    },
    /// Removes what no snapshot refers to any more. What belongs to a live session is spared.
    Gc {
        #[command(flatten)]
        place: Place,
        /// Only what is older, as in 3d; otherwise what is older than any session can be. A run
        /// that began before and is not done is refused at its commit.
        #[arg(long, value_parser = parse_duration)]
        older_than: Option<Duration>,
    },
    /// Takes snapshots out of the history that are older; the newest of each branch stays. What
    /// only they had goes with the next `gc`.
    Expire {
        #[command(flatten)]
        place: Place,
        /// As in 30d.
        #[arg(value_parser = parse_duration)]
        older_than: Duration,
    },
}

pub(crate) fn repo(asked: &Arguments) -> Result<(), Failure> {
    match asked {
        Arguments::Log { place, n, json } => {
            let (repository, spec) = place.open()?;
            let mut history = repository.history(&Version::Branch(spec.branch))?;
            history.truncate(n.unwrap_or(usize::MAX));
            if *json {
                return say(&Value::Array(history.iter().map(as_json).collect()).to_string());
            }
            history.iter().try_for_each(|s| {
                say(&format!(
                    "{}  {}  {}",
                    s.id,
                    humantime::format_rfc3339_seconds(s.written_at),
                    s.message
                ))
            })
        }
        Arguments::Branches { place, create, tag, delete } => {
            let (repository, spec) = place.open()?;
            let here = Version::Branch(spec.branch);
            create.iter().try_for_each(|name| repository.create_branch(name, &here))?;
            tag.iter().try_for_each(|name| repository.create_tag(name, &here))?;
            delete.iter().try_for_each(|name| repository.delete_branch(name))?;
            for (what, names) in [("branch", repository.branches()?), ("tag", repository.tags()?)] {
                for name in names {
                    let version = if what == "tag" {
                        Version::Tag(name.clone())
                    } else {
                        Version::Branch(name.clone())
                    };
                    say(&format!("{what:<6}  {name}  {}", repository.resolve(&version)?))?;
                }
            }
            Ok(())
        }
        Arguments::Gc { place, older_than } => {
            let done = place.open()?.0.gc(*older_than)?;
            say(&format!(
                "removed {} chunks, {} manifests and {} snapshots, {} in all",
                done.n_chunks,
                done.n_manifests,
                done.n_snapshots,
                size(done.n_bytes)
            ))
        }
        Arguments::Expire { place, older_than } => {
            let done = place.open()?.0.expire(*older_than)?;
            say(&format!("{} snapshots are out of the history", done.snapshots.len()))?;
            done.snapshots.iter().try_for_each(|id| say(&format!("  {id}")))
        }
    }
}

fn as_json(snapshot: &Snapshot) -> Value {
    let ms = snapshot
        .written_at
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64);
    json!({"id": snapshot.id, "parent": snapshot.parent, "written_ms": ms, "message": snapshot.message, "properties": snapshot.properties})
}
