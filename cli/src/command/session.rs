//! `freestone session`: sessions that are shared by their ids.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use freestone::sessions::{
    Closed, CommitOptions, Format, SessionState, SharedCommit, SharedStatus,
};
use freestone_engine::spec::parse_duration;
use serde_json::{Value, json};

use super::committing::{Place, rebase};
use super::{Failure, say};

#[derive(Subcommand)]
pub(crate) enum Arguments {
    /// Begins a session, and prints its id: freestone compute … --session ID then writes into it.
    Create {
        #[command(flatten)]
        place: Place,
        /// What the commit will say.
        #[arg(short, long, default_value = "a shared session")]
        message: String,
        /// Format of a repository that is made: 1, which Icechunk 1.x reads too, or 2 (default),
        /// which Icechunk 2 reads
        #[arg(long, value_name = "1|2")]
        format: Option<Format>,
        /// How long it lives, as in 2h or 3d; at most 7 days. Otherwise as the settings say.
        #[arg(long, value_parser = parse_duration)]
        expires_in: Option<Duration>,
    },
    /// Announces a writer: the session is not committed before it has written and closed.
    /// `compute --session ID --name NAME` writes under its name.
    Join {
        #[command(flatten)]
        session: Which,
        /// The writer.
        #[arg(long)]
        name: String,
    },
    /// Closes a writer that was announced and has nothing (more) to write.
    Leave {
        #[command(flatten)]
        session: Which,
        /// The writer.
        #[arg(long)]
        name: String,
        /// Takes back what it has written.
        #[arg(long)]
        drop: bool,
    },
    /// Says in what state a session is, when it ends by itself, and who has joined it.
    Status {
        #[command(flatten)]
        session: Which,
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Lists all sessions of a repository.
    List {
        #[command(flatten)]
        place: Place,
        /// Prints one JSON list.
        #[arg(long)]
        json: bool,
    },
    /// Lets a session live that long from now on.
    Extend {
        #[command(flatten)]
        session: Which,
        /// As in 2h or 3d.
        #[arg(value_parser = parse_duration)]
        expires_in: Duration,
    },
    /// Gives a session up: nothing of it will be seen.
    Abandon {
        #[command(flatten)]
        session: Which,
    },
    /// Makes all that was written in a session visible at once, and prints the snapshot's id.
    Commit {
        #[command(flatten)]
        session: Which,
        /// Drops what writers have written that are still open, and says whose, instead of
        /// refusing.
        #[arg(long)]
        force: bool,
        /// Where others have committed meanwhile, goes on top of what they have changed if that is
        /// disjoint.
        #[arg(long)]
        rebase: bool,
    },
}

/// A session.
#[derive(Args)]
pub(crate) struct Which {
    /// The session's id.
    id: String,
    #[command(flatten)]
    place: Place,
}

pub(crate) fn session(asked: &Arguments) -> Result<(), Failure> {
    match asked {
        Arguments::Create { place, message, format, expires_in } => {
            let (repository, spec) = place.open_or_create(*format)?;
            let session = repository.create_session(
                &spec.branch,
                message,
                Some(expires_in.unwrap_or(spec.session_expiry)),
            )?;
            say(session.id())
        }
        Arguments::Join { session, name } => {
            let joiner = session.open()?.join(name)?;
            // It is open until somebody who comes under its name closes.
            std::mem::forget(joiner);
            say(&format!("{name} has joined: session {} waits until it has closed", session.id))
        }
        Arguments::Leave { session, name, drop } => {
            let joiner = session.open()?.join(name)?;
            if *drop {
                joiner.retract()?
            } else {
                joiner.close()?
            };
            say(&format!("{name} has left session {}", session.id))
        }
        Arguments::Status { session, json } => {
            let status = session.open()?.status()?;
            if *json { say(&as_json(&status).to_string()) } else { describe(&status) }
        }
        Arguments::List { place, json } => {
            let mut all = place.open()?.0.list_sessions()?;
            all.sort_by_key(|s| s.created_at);
            if *json {
                return say(&Value::Array(all.iter().map(as_json).collect()).to_string());
            }
            if all.is_empty() {
                return say("there are no sessions");
            }
            let open = |s: &SharedStatus| s.joiners.iter().filter(|j| j.open).count();
            all.iter().try_for_each(|s| {
                say(&format!(
                    "{}  {}, {} joined, {} open: {}",
                    s.id,
                    state(s),
                    s.joiners.len(),
                    open(s),
                    s.message
                ))
            })
        }
        Arguments::Extend { session, expires_in } => {
            session.open()?.update_expiration(*expires_in)?;
            say(&format!(
                "session {} ends in {}",
                session.id,
                humantime::format_duration(*expires_in)
            ))
        }
        Arguments::Abandon { session } => {
            session.open()?.abandon()?;
            say(&format!("session {} is abandoned", session.id))
        }
        Arguments::Commit { session, force, rebase: on_top } => {
            let options = CommitOptions { rebase: rebase(*on_top), ..CommitOptions::default() };
            let done = session.open()?.commit_with(&SharedCommit { options, force: *force })?;
            say(&done.snapshot)?;
            done.dropped.iter().try_for_each(|j| {
                say(&format!("dropped what {} had written: {} chunks", j.name, j.n_chunks))
            })
        }
    }
}

impl Which {
    fn open(&self) -> Result<freestone::sessions::SharedSession, Failure> {
        Ok(self.place.open()?.0.shared_session(&self.id)?)
    }
}

fn state(status: &SharedStatus) -> String {
    match &status.state {
        SessionState::Open => {
            let left = status.expires_at.duration_since(SystemTime::now()).unwrap_or_default();
            format!(
                "open, ends in {}",
                humantime::format_duration(Duration::from_secs(left.as_secs()))
            )
        }
        SessionState::Committing => "being committed".into(),
        SessionState::Closed(closed) => closed.to_string(),
        SessionState::Damaged => "damaged".into(),
    }
}

fn describe(status: &SharedStatus) -> Result<(), Failure> {
    say(&format!("session {}: {}", status.id, state(status)))?;
    say(&format!("  commits to {}, from {}: {}", status.branch, status.base, status.message))?;
    status.joiners.iter().try_for_each(|j| {
        say(&format!(
            "  {}: {} chunks, {}",
            j.name,
            j.n_chunks,
            if j.open { "open" } else { "closed" }
        ))
    })
}

fn as_json(status: &SharedStatus) -> Value {
    let (state, snapshot) = match &status.state {
        SessionState::Open => ("open", None),
        SessionState::Committing => ("committing", None),
        SessionState::Closed(Closed::Committed { snapshot }) => ("committed", Some(snapshot)),
        SessionState::Closed(Closed::Abandoned) => ("abandoned", None),
        SessionState::Closed(Closed::Shared) => ("shared", None),
        SessionState::Closed(Closed::Expired) => ("expired", None),
        SessionState::Damaged => ("damaged", None),
    };
    let ms = |at: SystemTime| {
        at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    };
    let joiners: Vec<Value> = status
        .joiners
        .iter()
        .map(|j| json!({"name": j.name, "open": j.open, "chunks": j.n_chunks}))
        .collect();
    json!({
        "id": status.id, "state": state, "snapshot": snapshot, "branch": status.branch, "base": status.base, "message": status.message,
        "created_ms": ms(status.created_at), "expires_ms": ms(status.expires_at), "joiners": joiners,
    })
}
