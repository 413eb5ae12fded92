//! `freestone session`: sessions that several programs share by an id.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use freestone::sessions::{
    Closed, CommitOptions, Format, SessionState, SharedCommit, SharedSession, SharedStatus,
};
use freestone_engine::spec::parse_duration;
use freestone_engine::system::System;
use serde_json::{Value, json};

use super::commit::{RepositoryArgs, rebase};
use super::console::Console;
use super::{Failure, print};

#[derive(Subcommand)]
pub(crate) enum Arguments {
    /// Create a session and print its id, for `freestone compute … --session ID`
    Create {
        #[command(flatten)]
        repository: RepositoryArgs,
        /// Message of the commit
        #[arg(short, long, default_value = "a shared session")]
        message: String,
        /// Format of a new repository: 1 (Icechunk 1 and 2) or 2 (Icechunk 2) [default: 2]
        #[arg(long, value_name = "FORMAT")]
        format: Option<Format>,
        /// Lifetime of the session, such as 2h; at most 7d [default: from settings]
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        expires_in: Option<Duration>,
    },
    /// Announce a writer, so that a commit is rejected until the writer has closed
    Join {
        #[command(flatten)]
        session: SessionArgs,
        /// Name of the writer, for `freestone compute --session ID --name NAME`
        #[arg(long)]
        name: String,
    },
    /// Close a writer
    Leave {
        #[command(flatten)]
        session: SessionArgs,
        /// Name of the writer
        #[arg(long)]
        name: String,
        /// Discard the writer's chunks
        #[arg(long)]
        drop: bool,
    },
    /// Show state, expiry and writers of a session
    Status {
        #[command(flatten)]
        session: SessionArgs,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List the sessions of a repository
    List {
        #[command(flatten)]
        repository: RepositoryArgs,
        /// Print one JSON list
        #[arg(long)]
        json: bool,
    },
    /// Set the remaining lifetime of a session
    Extend {
        #[command(flatten)]
        session: SessionArgs,
        /// Lifetime from now on, such as 2h or 3d
        #[arg(value_name = "DURATION", value_parser = parse_duration)]
        expires_in: Duration,
    },
    /// Abandon a session and discard its chunks
    Abandon {
        #[command(flatten)]
        session: SessionArgs,
    },
    /// Publish all chunks of a session in one commit, and print the snapshot's id
    Commit {
        #[command(flatten)]
        session: SessionArgs,
        /// Discard the chunks of open writers instead of rejecting the commit
        #[arg(long)]
        force: bool,
        /// Rebase onto concurrent commits that changed other chunks
        #[arg(long)]
        rebase: bool,
    },
}

/// A session of a repository.
#[derive(Args)]
pub(crate) struct SessionArgs {
    /// Id of the session
    id: String,
    #[command(flatten)]
    repository: RepositoryArgs,
}

impl SessionArgs {
    fn open(&self) -> Result<SharedSession, Failure> {
        Ok(self.repository.open()?.0.shared_session(&self.id)?)
    }
}

pub(crate) fn session(arguments: &Arguments, console: &Console) -> Result<(), Failure> {
    match arguments {
        Arguments::Create { repository, message, format, expires_in } => {
            let (repository, spec) = repository.open_or_create(*format)?;
            let expires_in = Some(expires_in.unwrap_or(spec.session_expiry));
            print(repository.create_session(&spec.branch, message, expires_in)?.id())
        }
        Arguments::Join { session, name } => {
            let joiner = session.open()?.join(name)?;
            // The writer stays open until a process closes it under its name.
            std::mem::forget(joiner);
            console.note(&format!("`{name}` joined session {}", session.id));
            Ok(())
        }
        Arguments::Leave { session, name, drop } => {
            let joiner = session.open()?.join(name)?;
            if *drop { joiner.retract() } else { joiner.close() }?;
            console.note(&format!("`{name}` left session {}", session.id));
            Ok(())
        }
        Arguments::Status { session, json } => {
            let status = session.open()?.status()?;
            if *json { print(&as_json(&status).to_string()) } else { describe(&status) }
        }
        Arguments::List { repository, json } => list(repository, *json, console),
        Arguments::Extend { session, expires_in } => {
            session.open()?.update_expiration(*expires_in)?;
            let left = humantime::format_duration(*expires_in);
            console.note(&format!("session {} expires in {left}", session.id));
            Ok(())
        }
        Arguments::Abandon { session } => {
            session.open()?.abandon()?;
            console.note(&format!("abandoned session {}", session.id));
            Ok(())
        }
        Arguments::Commit { session, force, rebase: rebases } => {
            let options = CommitOptions { rebase: rebase(*rebases), ..CommitOptions::default() };
            let done = session.open()?.commit_with(&SharedCommit { options, force: *force })?;
            print(&done.snapshot)?;
            for writer in &done.dropped {
                let (name, chunks) = (&writer.name, writer.n_chunks);
                console.warn(&format!("discarded {chunks} chunks of open writer `{name}`"));
            }
            Ok(())
        }
    }
}

fn list(repository: &RepositoryArgs, json: bool, console: &Console) -> Result<(), Failure> {
    let mut sessions = repository.open()?.0.list_sessions()?;
    sessions.sort_by_key(|s| s.created_at);
    if json {
        return print(&Value::Array(sessions.iter().map(as_json).collect()).to_string());
    }
    if sessions.is_empty() {
        console.note("no sessions");
    }
    sessions.iter().try_for_each(|s| {
        let (writers, open) = (s.joiners.len(), s.joiners.iter().filter(|j| j.open).count());
        let state = state(s);
        print(&format!("{}  {state}, {writers} writers, {open} open: {}", s.id, s.message))
    })
}

fn state(status: &SharedStatus) -> String {
    match &status.state {
        SessionState::Open => {
            let expiry = status.expires_at.duration_since(SystemTime::UNIX_EPOCH);
            let left = expiry.unwrap_or_default().saturating_sub(System::default().since_epoch());
            let left = Duration::from_secs(left.as_secs());
            format!("open, expires in {}", humantime::format_duration(left))
        }
        SessionState::Committing => "committing".into(),
        SessionState::Closed(closed) => closed.to_string(),
        SessionState::Damaged => "damaged".into(),
    }
}

fn describe(status: &SharedStatus) -> Result<(), Failure> {
    print(&format!("session {}: {}", status.id, state(status)))?;
    print(&format!("  commit to {}, based on {}: {}", status.branch, status.base, status.message))?;
    status.joiners.iter().try_for_each(|j| {
        let state = if j.open { "open" } else { "closed" };
        print(&format!("  {}: {} chunks, {state}", j.name, j.n_chunks))
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
        "id": status.id,
        "state": state,
        "snapshot": snapshot,
        "branch": status.branch,
        "base": status.base,
        "message": status.message,
        "created_ms": ms(status.created_at),
        "expires_ms": ms(status.expires_at),
        "joiners": joiners,
    })
}
