//! Sessions that are found by their id, by workers that share nothing but the repository: no
//! server.
//!
//! Each session has a folder of records in the repository, `_freestone/sessions/ID/`, all of them
//! created once and never changed:
//!
//! | record | says |
//! | --- | --- |
//! | `session.json` | branch, base, message, what was made before it was shared |
//! | `state/000001.json`, … | one generation each: state and expiry. The highest counts, and who creates the next has swapped |
//! | `joiners/NAME/000001.json`, … | somebody writes under that name; who comes later under the same name takes over |
//! | `joiners/NAME/000001.closed.json` | and has closed |
//! | `receipts/NAME/000001-000001-8.json` | the first 8 chunks that it has written |
//!
//! The creator makes metadata before it shares. A joiner reads the base, what was made, and its own
//! writes; its receipts are made durable when it closes and every second. A commit goes through the
//! state `Committing`, in which nobody joins or writes; whoever commits a session again whose
//! coordinator died there finds its snapshot by the session's id in the snapshot's properties, and
//! finishes.
//!
//! Expiry goes by the clock of whoever looks: clocks should agree to within the minute.
//!
//! Here is what a user does with one as a whole. `folder` has the records, `joiner` those who join
//! and write, `commit` how all of it becomes one commit.

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

/// How long a session lives unless something else was asked for.
const DEFAULT_LIFE: Duration = Duration::from_secs(24 * 3600);

/// How long a session may live. Garbage collection spares what is younger.
pub(crate) const LONGEST_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A session that anybody may join who knows its id. The handle is small, and can be sent to other
/// processes as it is.
#[derive(Clone, Debug)]
pub struct SharedSession {
    repository: Repository,
    id: String,
}

/// In what state a session is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// It may be joined.
    Open,
    /// A commit is under way, or who did it died.
    Committing,
    /// It takes nothing more.
    Closed(Closed),
    /// Its records cannot be understood.
    Damaged,
}

/// What is known of a shared session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedStatus {
    /// Its id.
    pub id: String,
    /// The branch that it will be committed to.
    pub branch: String,
    /// The snapshot that it is based on.
    pub base: String,
    /// The message that it will be committed with.
    pub message: String,
    /// Its state.
    pub state: SessionState,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it ends by itself.
    pub expires_at: SystemTime,
    /// Who has joined.
    pub joiners: Vec<JoinerStatus>,
}

/// Somebody who has joined a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinerStatus {
    /// Its name.
    pub name: String,
    /// It has not closed yet.
    pub open: bool,
    /// Chunks whose receipts are durable; those that were written twice count twice.
    pub n_chunks: u64,
}

impl Repository {
    /// Begins a session on a branch that others may join, which ends by itself after some time (24
    /// hours unless said; at most 7 days).
    ///
    /// Arrays that are to be made belong into a [`WritableSession`] that is then
    /// [shared](WritableSession::share).
    ///
    /// # Errors
    /// [`Error::SharingOff`], [`Error::TooLong`], [`Error::NoVersion`].
    pub fn create_session(
        &self,
        branch: &str,
        message: &str,
        expires_in: Option<Duration>,
    ) -> Result<SharedSession, Error> {
        self.writable_session(branch)?.share(message, expires_in)
    }

    /// The handle of a shared session, without joining it.
    ///
    /// # Errors
    /// [`Error::NoSession`], [`Error::SharingOff`].
    pub fn shared_session(&self, id: &str) -> Result<SharedSession, Error> {
        if !self.is_sharing() {
            return Err(Error::SharingOff { place: self.url().to_owned() });
        }
        let session = SharedSession { repository: self.clone(), id: id.to_owned() };
        check_name(id).map_err(|_| session.no_session())?;
        session.record()?;
        Ok(session)
    }

    /// Joins a shared session under a name. Who joins under the name of somebody else takes over
    /// from it: a worker that died and was started again is the same one.
    ///
    /// # Errors
    /// As [`SharedSession::join`].
    pub fn join_session(&self, id: &str, name: &str) -> Result<Joiner, Error> {
        self.shared_session(id)?.join(name)
    }

    /// All shared sessions of which there are records, in no order of time.
    ///
    /// # Errors
    /// Where storage fails.
    pub fn list_sessions(&self) -> Result<Vec<SharedStatus>, Error> {
        let mut all = Vec::new();
        for id in self.records().list("sessions")? {
            match (SharedSession { repository: self.clone(), id: id.clone() }).status() {
                Ok(status) => all.push(status),
                // Who made it has died before it was there.
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

    /// When the oldest session that is still open or being committed began, in milliseconds since
    /// 1970, and the bases of all of them.
    pub(crate) fn live_sessions(&self) -> Result<(Option<u64>, Vec<String>), Error> {
        let (mut oldest, mut bases) = (None, Vec::new());
        for id in self.records().list("sessions")? {
            let session = SharedSession { repository: self.clone(), id };
            let (record, generation) =
                match session.record().and_then(|r| Ok((r, session.generation()?.1))) {
                    Ok(known) => known,
                    Err(Error::NoSession { .. }) => continue,
                    // It may live: what is as young as a session can be is spared.
                    Err(Error::Damaged { .. }) => {
                        let began = now().saturating_sub(LONGEST_LIFE.as_millis() as u64);
                        oldest = Some(oldest.map_or(began, |o: u64| o.min(began)));
                        continue;
                    }
                    Err(e) => return Err(e),
                };
            // One that was being committed when it expired may still be finished.
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
    /// Shares this session: from now on it is written and committed by its id. What was made in it
    /// before, others see.
    ///
    /// # Errors
    /// [`Error::SharingOff`], [`Error::TooLong`], and where storage fails.
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
        // The state comes last: a session without one is not there.
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
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// What is known of it.
    ///
    /// # Errors
    /// Where there is none, or storage fails.
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

    /// Lets it end that long from now; at most 7 days after it began.
    ///
    /// # Errors
    /// [`Error::TooLong`], [`Error::Closed`], and [`Error::Stale`] where somebody else changes it
    /// at the same time.
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

    /// Gives it up: nothing of it will be seen. Objects that were written go with a later garbage
    /// collection.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Committing`], [`Error::Stale`].
    pub fn abandon(&self) -> Result<(), Error> {
        let (number, expires_at) = match self.open_generation() {
            Ok((number, generation)) => (number, generation.expires_at),
            // What cannot be understood can still be given up.
            Err(Error::Damaged { .. }) => (self.newest_generation()?, now()),
            Err(e) => return Err(e),
        };
        self.swap(number, State::Abandoned, expires_at).map(|_| ())
    }
}

/// A handle travels as the repository's URL and the id.
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
