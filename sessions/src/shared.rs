//! Shared sessions: found by id, by processes that share only the repository. No server is needed.
//!
//! Each session has a folder of records in the repository, `_freestone/sessions/ID/`. Records are
//! created once and never changed:
//!
//! | record | contents |
//! | --- | --- |
//! | `session.json` | branch, base, message, arrays and groups created before |
//! | `state/000001.json`, … | generations of state and expiry, of which the highest counts |
//! | `joiners/NAME/000001.json`, … | joiners of a name, of which the last may write |
//! | `joiners/NAME/000001.closed.json` | the close of a joiner |
//! | `receipts/NAME/000001-000001-8.json` | the first batch of a joiner, of 8 chunks |
//!
//! The creator creates arrays and groups before it shares the session. A joiner reads the base,
//! those arrays, and its own writes. Its receipts are flushed every second and when it closes. A
//! commit passes through the state `Committing`, in which nobody can join or write. If the
//! committing process ends in that state, another commit finds the snapshot by the session's id in
//! the snapshot's properties, and completes.
//!
//! Expiry is determined by the clock of each process, so clocks should agree to within a minute.
//!
//! This module has the operations on a session. `folder` has the records, `joiner` the writers, and
//! `commit` the commit.

mod commit;
mod folder;
mod joiner;

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::error::{Closed, Error};
use crate::receipt::{Batch, VERSION};
use crate::record::numbered;
use crate::repository::Repository;
use crate::session::WritableSession;

pub use commit::{Committed, SharedCommit};
pub use joiner::Joiner;

use folder::{Generation, Joined, JoinedClosed, Record, State, now, time};
use joiner::check_name;

/// The default lifetime of a session.
const DEFAULT_LIFE: Duration = Duration::from_secs(24 * 3600);

/// The maximum lifetime of a session. Garbage collection retains younger objects.
pub(crate) const LONGEST_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A session that can be joined by its id. The handle is small and serializable.
#[derive(Clone, Debug)]
pub struct SharedSession {
    repository: Repository,
    id: String,
}

/// The state of a shared session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Open for joiners.
    Open,
    /// A commit is in progress or was interrupted.
    Committing,
    /// Closed for joiners and commits.
    Closed(Closed),
    /// The records are damaged.
    Damaged,
}

/// The status of a shared session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedStatus {
    /// The id.
    pub id: String,
    /// The branch to which the session commits.
    pub branch: String,
    /// The snapshot on which the session is based.
    pub base: String,
    /// The commit message.
    pub message: String,
    /// The state.
    pub state: SessionState,
    /// The creation time.
    pub created_at: SystemTime,
    /// The expiry time.
    pub expires_at: SystemTime,
    /// The joiners.
    pub joiners: Vec<JoinerStatus>,
}

/// The status of a joiner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinerStatus {
    /// The name.
    pub name: String,
    /// True if the joiner has not closed.
    pub open: bool,
    /// The number of chunks with durable receipts. Chunks that were written twice count twice.
    pub n_chunks: u64,
}

impl Repository {
    /// Creates a shared session on a branch. It expires after 24 hours by default, and after at
    /// most 7 days.
    ///
    /// To create arrays first, [share](WritableSession::share) a [`WritableSession`] instead.
    ///
    /// # Errors
    /// Returns [`Error::SharingOff`], [`Error::TooLong`] or [`Error::NoVersion`].
    pub fn create_session(
        &self,
        branch: &str,
        message: &str,
        expires_in: Option<Duration>,
    ) -> Result<SharedSession, Error> {
        self.writable_session(branch)?.share(message, expires_in)
    }

    /// Returns the handle of a shared session without joining it.
    ///
    /// # Errors
    /// Returns [`Error::NoSession`] or [`Error::SharingOff`].
    pub fn shared_session(&self, id: &str) -> Result<SharedSession, Error> {
        if !self.is_sharing() {
            return Err(Error::SharingOff { place: self.url().to_owned() });
        }
        let session = SharedSession { repository: self.clone(), id: id.to_owned() };
        check_name(id).map_err(|_| session.no_session())?;
        session.record()?;
        Ok(session)
    }

    /// Joins a shared session under a name. A later joiner of the same name replaces an earlier
    /// one, such as a worker that was restarted.
    ///
    /// # Errors
    /// Returns the errors of [`SharedSession::join`].
    pub fn join_session(&self, id: &str, name: &str) -> Result<Joiner, Error> {
        self.shared_session(id)?.join(name)
    }

    /// Returns the status of all shared sessions with records, in no particular order.
    ///
    /// # Errors
    /// Returns an error if storage fails.
    pub fn list_sessions(&self) -> Result<Vec<SharedStatus>, Error> {
        let mut all = Vec::new();
        for id in self.records().list("sessions")? {
            match (SharedSession { repository: self.clone(), id: id.clone() }).status() {
                Ok(status) => all.push(status),
                // The creator ended before the session was complete.
                Err(Error::NoSession { .. }) => {}
                Err(Error::Damaged { why, .. }) => all.push(SharedStatus {
                    id,
                    branch: String::new(),
                    base: String::new(),
                    message: why,
                    state: SessionState::Damaged,
                    created_at: SystemTime::UNIX_EPOCH,
                    expires_at: SystemTime::UNIX_EPOCH,
                    joiners: Vec::new(),
                }),
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }

    /// Returns the creation time of the oldest session that is open or being committed, in
    /// milliseconds since 1970, and the bases of all such sessions.
    pub(crate) fn live_sessions(&self) -> Result<(Option<u64>, Vec<String>), Error> {
        let (mut oldest, mut bases) = (None, Vec::new());
        for id in self.records().list("sessions")? {
            let session = SharedSession { repository: self.clone(), id };
            let (record, generation) =
                match session.record().and_then(|r| Ok((r, session.generation()?.1))) {
                    Ok(known) => known,
                    Err(Error::NoSession { .. }) => continue,
                    // A damaged session may be live, so objects of its possible age are retained.
                    Err(Error::Damaged { .. }) => {
                        let began = now().saturating_sub(LONGEST_LIFE.as_millis() as u64);
                        oldest = Some(oldest.map_or(began, |o: u64| o.min(began)));
                        continue;
                    }
                    Err(e) => return Err(e),
                };
            // A session that expired during its commit may still be completed.
            if matches!(generation.state, State::Committing)
                || (generation.state == State::Open && generation.expires_at > now())
            {
                oldest = Some(oldest.map_or(record.created_at, |o: u64| o.min(record.created_at)));
                bases.push(record.base);
            }
        }
        Ok((oldest, bases))
    }
}

impl WritableSession {
    /// Shares this session, which is then written and committed by its id. Joiners see its arrays
    /// and groups.
    ///
    /// # Errors
    /// Returns [`Error::SharingOff`] or [`Error::TooLong`], or an error if storage fails.
    pub fn share(
        self,
        message: &str,
        expires_in: Option<Duration>,
    ) -> Result<SharedSession, Error> {
        let repository = self.repository().clone();
        if !repository.is_sharing() {
            return Err(Error::SharingOff { place: repository.url().to_owned() });
        }
        let life = expires_in.unwrap_or(DEFAULT_LIFE);
        if life > LONGEST_LIFE {
            return Err(Error::TooLong { asked: life, most: LONGEST_LIFE });
        }
        let session = SharedSession { repository, id: self.id().to_owned() };
        let (nodes, receipts) = self.draft(|d| (d.nodes.clone(), d.receipts.to_vec()));
        let created_at = now();
        let record = Record {
            version: VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            id: session.id.clone(),
            branch: self.branch().to_owned(),
            base: self.base().to_owned(),
            message: message.to_owned(),
            created_at,
            mark: self.mark(),
            nodes,
        };
        // The state comes last, because a session without a state does not exist.
        if !receipts.is_empty() {
            let name = format!("receipts/creator/000001-000001-{}.json", receipts.len());
            session.create(&name, &Batch::new(&session.id, receipts))?;
            session.create(
                "joiners/creator/000001.json",
                &Joined {
                    version: VERSION,
                    at: created_at,
                    process: std::process::id(),
                    by: crate::new_id(),
                },
            )?;
            session.create(
                "joiners/creator/000001.closed.json",
                &JoinedClosed { at: created_at, batches: 1 },
            )?;
        }
        session.create("session.json", &record)?;
        let expires_at = created_at + life.as_millis() as u64;
        session.create(
            &format!("state/{}", numbered(1)),
            &Generation { version: VERSION, state: State::Open, expires_at, by: crate::new_id() },
        )?;
        self.close(Closed::Shared);
        Ok(session)
    }
}

impl SharedSession {
    /// Returns the id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Returns the status.
    ///
    /// # Errors
    /// Returns an error if the session does not exist or storage fails.
    pub fn status(&self) -> Result<SharedStatus, Error> {
        let (record, (_, generation)) = (self.record()?, self.generation()?);
        let state = match generation.state {
            State::Committed { snapshot, .. } => {
                SessionState::Closed(Closed::Committed { snapshot })
            }
            State::Abandoned => SessionState::Closed(Closed::Abandoned),
            State::Committing => SessionState::Committing,
            State::Open if generation.expires_at <= now() => SessionState::Closed(Closed::Expired),
            State::Open => SessionState::Open,
        };
        let joiners = self
            .joiners()?
            .into_iter()
            .map(|(name, j)| JoinerStatus { name, open: j.is_open(), n_chunks: j.n_chunks() })
            .collect();
        Ok(SharedStatus {
            id: record.id,
            branch: record.branch,
            base: record.base,
            message: record.message,
            state,
            created_at: time(record.created_at),
            expires_at: time(generation.expires_at),
            joiners,
        })
    }

    /// Sets the expiry to a duration from now, at most 7 days after the session's creation.
    ///
    /// # Errors
    /// Returns [`Error::TooLong`], [`Error::Closed`], or [`Error::Stale`] if the session is changed
    /// concurrently.
    pub fn update_expiration(&self, expires_in: Duration) -> Result<(), Error> {
        let (number, _) = self.open_generation()?;
        let expires_at =
            now().saturating_add(u64::try_from(expires_in.as_millis()).unwrap_or(u64::MAX));
        let last = self.record()?.created_at + LONGEST_LIFE.as_millis() as u64;
        if expires_at > last {
            return Err(Error::TooLong {
                asked: expires_in,
                most: Duration::from_millis(last.saturating_sub(now())),
            });
        }
        self.swap(number, State::Open, expires_at).map(|_| ())
    }

    /// Abandons the session, so that its changes never become visible. A later garbage collection
    /// removes the written objects.
    ///
    /// # Errors
    /// Returns [`Error::Closed`], [`Error::Committing`] or [`Error::Stale`].
    pub fn abandon(&self) -> Result<(), Error> {
        let (number, expires_at) = match self.open_generation() {
            Ok((number, generation)) => (number, generation.expires_at),
            // A damaged session can still be abandoned.
            Err(Error::Damaged { .. }) => (self.newest_generation()?, now()),
            Err(e) => return Err(e),
        };
        self.swap(number, State::Abandoned, expires_at).map(|_| ())
    }
}

/// The serialized handle: the repository's URL and the session's id.
#[derive(Serialize, Deserialize)]
struct Handle {
    version: u32,
    repository: String,
    session: String,
}

impl Serialize for SharedSession {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        Handle {
            version: VERSION,
            repository: self.repository.url().to_owned(),
            session: self.id.clone(),
        }
        .serialize(s)
    }
}

impl<'de> Deserialize<'de> for SharedSession {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<SharedSession, D::Error> {
        use serde::de::Error as _;
        let handle = Handle::deserialize(d)?;
        if handle.version != VERSION {
            return Err(D::Error::custom(Error::Version {
                what: "a session's handle",
                found: handle.version,
                known: VERSION,
            }));
        }
        Repository::open(&handle.repository)
            .and_then(|r| r.shared_session(&handle.session))
            .map_err(D::Error::custom)
    }
}
