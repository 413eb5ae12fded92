//! Sessions that are found by their id, by workers that share nothing but the repository: no server.
//!
//! Each session has a folder of records in the repository, `_freestone/sessions/ID/`, all of them created once and never changed:
//!
//! | record | says |
//! | --- | --- |
//! | `session.json` | branch, base, message, what was made before it was shared |
//! | `state/000001.json`, … | one generation each: state and expiry. The highest counts, and who creates the next has swapped |
//! | `joiners/NAME/000001.json`, … | somebody writes under that name; who comes later under the same name takes over |
//! | `joiners/NAME/000001.closed.json` | and has closed |
//! | `receipts/NAME/000001-000001-8.json` | the first 8 chunks that it has written |
//!
//! The creator makes metadata before it shares. A joiner reads the base, what was made, and its own writes; its receipts are made durable
//! when it closes and every second. A commit goes through the state `Committing`, in which nobody joins or writes; whoever commits a session again
//! whose coordinator died there finds its snapshot by the session's id in the snapshot's properties, and finishes.
//!
//! Expiry goes by the clock of whoever looks: clocks should agree to within the minute.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use freestone_engine::storage::Store;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::array::SessionArray;
use crate::commit::{Commit, CommitOptions, Mark};
use crate::draft::{Draft, NodeChange, Pending};
use crate::error::{Closed, Error};
use crate::receipt::{Batch, Receipts, VERSION};
use crate::record::numbered;
use crate::repository::Repository;
use crate::session::WritableSession;
use crate::store::{Keep, SessionStore, Writes};

/// How long a session lives unless something else was asked for.
pub(crate) const DEFAULT_LIFE: Duration = Duration::from_secs(24 * 3600);

/// How long a session may live. Garbage collection spares what is younger.
pub(crate) const LONGEST_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Receipts in one object.
const MAX_BATCH: usize = 50_000;

/// Receipts are made durable that often.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// What was said of a session when it was shared.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    /// Version of the program, for people.
    program: String,
    id: String,
    branch: String,
    base: String,
    message: String,
    /// Milliseconds since 1970.
    created_at: u64,
    mark: Option<Mark>,
    nodes: BTreeMap<String, NodeChange>,
}

/// One generation of a session's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Generation {
    version: u32,
    state: State,
    /// Milliseconds since 1970.
    expires_at: u64,
    /// Who made it: tells two that were made at once apart.
    by: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Open,
    Committing,
    Committed {
        snapshot: String,
        /// Names of joiners whose writes are not in it.
        #[serde(default)]
        dropped: Vec<String>,
    },
    Abandoned,
}

/// The property of a snapshot that says which joiners' writes are not in it: names, and numbers of chunks.
const DROPPED_PROPERTY: &str = "freestone_dropped";

/// Somebody writes.
#[derive(Debug, Serialize, Deserialize)]
struct Joined {
    version: u32,
    at: u64,
    process: u32,
    /// Tells two that came at once apart.
    by: String,
}

/// And has closed.
#[derive(Debug, Serialize, Deserialize)]
struct JoinedClosed {
    at: u64,
    /// Batches of receipts that it has told.
    #[serde(default)]
    batches: u64,
}

/// A session that anybody may join who knows its id. The handle is small, and can be sent to other processes as it is.
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

/// How to commit a shared session.
#[derive(Clone, Debug, Default)]
pub struct SharedCommit {
    /// As for any session.
    pub options: CommitOptions,
    /// What open joiners wrote is dropped, instead of refusing the commit because of them.
    pub force: bool,
}

/// A shared session was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The snapshot's id.
    pub snapshot: String,
    /// Joiners that had not closed: what they wrote is not in it.
    pub dropped: Vec<JoinerStatus>,
}

/// Who has closed while a commit goes on waits so long for its end.
const LONGEST_COMMIT: Duration = Duration::from_secs(30);

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

fn time(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}

impl Repository {
    /// Begins a session on a branch that others may join, which ends by itself after some time (24 hours unless said; at most 7 days).
    ///
    /// Arrays that are to be made belong into a [`WritableSession`] that is then [shared](WritableSession::share).
    ///
    /// # Errors
    /// [`Error::SharingOff`], [`Error::TooLong`], [`Error::NoVersion`].
    pub fn create_session(&self, branch: &str, message: &str, expires_in: Option<Duration>) -> Result<SharedSession, Error> {
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

    /// Joins a shared session under a name. Who joins under the name of somebody else takes over from it: a worker that died and was started
    /// again is the same one.
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

    /// When the oldest session that is still open or being committed began, in milliseconds since 1970, and the bases of all of them.
    pub(crate) fn live_sessions(&self) -> Result<(Option<u64>, Vec<String>), Error> {
        let (mut oldest, mut bases) = (None, Vec::new());
        for id in self.records().list("sessions")? {
            let session = SharedSession { repository: self.clone(), id };
            let (record, generation) = match session.record().and_then(|r| Ok((r, session.generation()?.1))) {
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
            if matches!(generation.state, State::Committing) || (generation.state == State::Open && generation.expires_at > now()) {
                oldest = Some(oldest.map_or(record.created_at, |o: u64| o.min(record.created_at)));
                bases.push(record.base);
            }
        }
        Ok((oldest, bases))
    }
}

impl WritableSession {
    /// Shares this session: from now on it is written and committed by its id. What was made in it before, others see.
    ///
    /// # Errors
    /// [`Error::SharingOff`], [`Error::TooLong`], and where storage fails.
    pub fn share(self, message: &str, expires_in: Option<Duration>) -> Result<SharedSession, Error> {
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
            session.create("joiners/creator/000001.json", &Joined { version: VERSION, at: created_at, process: std::process::id(), by: crate::new_id() })?;
            session.create("joiners/creator/000001.closed.json", &JoinedClosed { at: created_at, batches: 1 })?;
        }
        session.create("session.json", &record)?;
        let expires_at = created_at + life.as_millis() as u64;
        session.create(&format!("state/{}", numbered(1)), &Generation { version: VERSION, state: State::Open, expires_at, by: crate::new_id() })?;
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

    fn key(&self, name: &str) -> String {
        format!("sessions/{}/{name}", self.id)
    }

    fn create(&self, name: &str, record: &impl Serialize) -> Result<(), Error> {
        if self.repository.records().create(&self.key(name), record)? { Ok(()) } else { Err(Error::Stale { session: self.id.clone() }) }
    }

    fn no_session(&self) -> Error {
        Error::NoSession { place: self.repository.url().to_owned(), session: self.id.clone() }
    }

    fn record(&self) -> Result<Record, Error> {
        let record: Record = self.repository.records().get(&self.key("session.json"))?.ok_or_else(|| self.no_session())?;
        if record.version != VERSION {
            return Err(Error::Version { what: "a session's record", found: record.version, known: VERSION });
        }
        Ok(record)
    }

    /// The newest generation, and its number.
    fn generation(&self) -> Result<(u64, Generation), Error> {
        let number = self.newest_generation()?;
        let generation = self.repository.records().get(&self.key(&format!("state/{}", numbered(number))))?.ok_or_else(|| self.no_session())?;
        Ok((number, generation))
    }

    /// The number of the newest generation.
    fn newest_generation(&self) -> Result<u64, Error> {
        let names = self.repository.records().list(&self.key("state"))?;
        let newest = names.last().ok_or_else(|| self.no_session())?;
        newest.trim_end_matches(".json").parse().map_err(|_| Error::Damaged { place: self.key("state"), why: format!("`{newest}` is no number") })
    }

    /// The newest generation, if it takes writes.
    fn open_generation(&self) -> Result<(u64, Generation), Error> {
        let (number, generation) = self.generation()?;
        match &generation.state {
            State::Committed { snapshot, .. } => Err(self.closed(Closed::Committed { snapshot: snapshot.clone() })),
            State::Abandoned => Err(self.closed(Closed::Abandoned)),
            State::Committing => Err(Error::Committing { session: self.id.clone() }),
            State::Open if generation.expires_at <= now() => Err(self.closed(Closed::Expired)),
            State::Open => Ok((number, generation)),
        }
    }

    fn closed(&self, state: Closed) -> Error {
        Error::Closed { session: self.id.clone(), state }
    }

    /// Makes the next generation; refused if somebody else has made it.
    fn swap(&self, number: u64, state: State, expires_at: u64) -> Result<u64, Error> {
        self.create(&format!("state/{}", numbered(number + 1)), &Generation { version: VERSION, state, expires_at, by: crate::new_id() })?;
        Ok(number + 1)
    }

    /// What is known of it.
    ///
    /// # Errors
    /// Where there is none, or storage fails.
    pub fn status(&self) -> Result<SharedStatus, Error> {
        let (record, (_, generation)) = (self.record()?, self.generation()?);
        let state = match generation.state {
            State::Committed { snapshot, .. } => SessionState::Closed(Closed::Committed { snapshot }),
            State::Abandoned => SessionState::Closed(Closed::Abandoned),
            State::Committing => SessionState::Committing,
            State::Open if generation.expires_at <= now() => SessionState::Closed(Closed::Expired),
            State::Open => SessionState::Open,
        };
        let joiners = self.joiners()?.into_iter().map(|(name, j)| JoinerStatus { name, open: j.is_open(), n_chunks: j.n_chunks() }).collect();
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
    /// [`Error::TooLong`], [`Error::Closed`], and [`Error::Stale`] where somebody else changes it at the same time.
    pub fn update_expiration(&self, expires_in: Duration) -> Result<(), Error> {
        let (number, _) = self.open_generation()?;
        let expires_at = now().saturating_add(u64::try_from(expires_in.as_millis()).unwrap_or(u64::MAX));
        let last = self.record()?.created_at + LONGEST_LIFE.as_millis() as u64;
        if expires_at > last {
            return Err(Error::TooLong { asked: expires_in, most: Duration::from_millis(last.saturating_sub(now())) });
        }
        self.swap(number, State::Open, expires_at).map(|_| ())
    }

    /// Gives it up: nothing of it will be seen. Objects that were written go with a later garbage collection.
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

    /// Joins under a name, to write. Who joins under the name of somebody else takes over from it.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Committing`], [`Error::SharingOff`], [`Error::BadName`].
    pub fn join(&self, name: &str) -> Result<Joiner, Error> {
        if !self.repository.is_sharing() {
            return Err(Error::SharingOff { place: self.repository.url().to_owned() });
        }
        let name = check_name(name)?;
        self.open_generation()?;
        let record = self.record()?;
        let turn = self.next_turn(name)?;
        let joined = Arc::new(Membership { session: self.clone(), name: name.to_owned(), turn, checked: Mutex::new(None) });
        // A commit may have begun since the state was looked at, and not have seen us.
        if let Err(refused) = joined.check_now() {
            let _ = self.create(&format!("joiners/{name}/{turn:06}.closed.json"), &JoinedClosed { at: now(), batches: 0 });
            return Err(refused);
        }
        let draft = Arc::new(Mutex::new(Draft { nodes: record.nodes, pending: Some(Pending::default()), ..Draft::default() }));
        let gate = Arc::clone(&joined);
        let gate = Arc::new(move || gate.check());
        let writes = Writes { session: self.id.clone(), receipts: Keep::Here, draft: Some(Arc::clone(&draft)), gate: Some(gate) };
        let store = Arc::new(SessionStore::new(&self.repository, record.base, Some(writes))?);
        let flusher = Arc::new(Flusher { joined, draft, next: Mutex::new(1), run: Mutex::default(), stop: (Mutex::new(false), Condvar::new()) });
        flush_regularly(Arc::downgrade(&flusher))?;
        Ok(Joiner { store, flusher })
    }

    /// The number of who joins next under a name, taken.
    fn next_turn(&self, name: &str) -> Result<u64, Error> {
        loop {
            let names = self.repository.records().list(&self.key(&format!("joiners/{name}")))?;
            let turn = names.iter().filter_map(|n| n.split('.').next()?.parse::<u64>().ok()).max().unwrap_or(0) + 1;
            let joined = Joined { version: VERSION, at: now(), process: std::process::id(), by: crate::new_id() };
            if self.repository.records().create(&self.key(&format!("joiners/{name}/{}", numbered(turn))), &joined)? {
                return Ok(turn);
            }
        }
    }

    /// Who has joined, by name.
    fn joiners(&self) -> Result<BTreeMap<String, Turns>, Error> {
        let records = self.repository.records();
        let mut joiners = BTreeMap::new();
        for name in records.list(&self.key("joiners"))? {
            let mut turns = Turns::default();
            for file in records.list(&self.key(&format!("joiners/{name}")))? {
                let Some(turn) = file.split('.').next().and_then(|n| n.parse::<u64>().ok()) else { continue };
                turns.newest = turns.newest.max(turn);
                if file.ends_with(".closed.json") {
                    turns.closed = turns.closed.max(turn);
                }
                if file.ends_with(".dropped.json") {
                    turns.dropped = turns.dropped.max(turn);
                }
            }
            for file in records.list(&self.key(&format!("receipts/{name}")))? {
                let parts: Vec<u64> = file.trim_end_matches(".json").split('-').filter_map(|n| n.parse().ok()).collect();
                if let [turn, _, n_chunks] = parts[..] {
                    turns.receipts.push((turn, n_chunks, self.key(&format!("receipts/{name}/{file}"))));
                }
            }
            joiners.insert(name, turns);
        }
        Ok(joiners)
    }

    /// Commits what all joiners wrote, with the message that the session was made with.
    ///
    /// # Errors
    /// As [`commit_with`](SharedSession::commit_with).
    pub fn commit(&self) -> Result<Committed, Error> {
        self.commit_with(&SharedCommit::default())
    }

    /// As [`commit`](SharedSession::commit), with options. A session whose coordinator died while it committed is committed by this too, or its
    /// snapshot found.
    ///
    /// # Errors
    /// [`Error::OpenJoiners`] with their names, [`Error::Closed`], [`Error::WrittenTwice`], and as
    /// [`WritableSession::commit_with`](crate::WritableSession::commit_with). After these the session is open again.
    pub fn commit_with(&self, how: &SharedCommit) -> Result<Committed, Error> {
        let record = self.record()?;
        let (number, generation) = match self.open_generation() {
            Ok(open) => open,
            Err(Error::Committing { .. }) => {
                // Where the coordinator lives on, whoever comes first moves the branch; the other then finds the snapshot.
                let (number, generation) = self.generation()?;
                if let Some(snapshot) = self.repository.committed(&self.id, &record.branch, &record.base)? {
                    let of = |(name, n): (&String, &Value)| JoinerStatus { name: name.clone(), open: true, n_chunks: n.as_u64().unwrap_or(0) };
                    let dropped = snapshot.properties.get(DROPPED_PROPERTY).and_then(Value::as_object).into_iter().flatten().map(of).collect();
                    return self.finish(number, generation.expires_at, Committed { snapshot: snapshot.id, dropped });
                }
                (number, generation)
            }
            Err(e) => return Err(e),
        };
        // Who is asked to wait need not be told that the session is being committed.
        if generation.state == State::Open && !how.force {
            self.refuse_open(&self.joiners()?)?;
        }
        let number = self.swap(number, State::Committing, generation.expires_at)?;
        match self.gather_and_commit(&record, how) {
            Ok(done) => self.finish(number, generation.expires_at, done),
            Err(e) => {
                let _ = self.swap(number, State::Open, generation.expires_at);
                Err(e)
            }
        }
    }

    fn refuse_open(&self, joiners: &BTreeMap<String, Turns>) -> Result<(), Error> {
        let open: Vec<String> = joiners.iter().filter(|(_, j)| j.is_open()).map(|(name, _)| name.clone()).collect();
        if open.is_empty() { Ok(()) } else { Err(Error::OpenJoiners { session: self.id.clone(), joiners: open }) }
    }

    /// Commits while nobody joins or writes.
    fn gather_and_commit(&self, record: &Record, how: &SharedCommit) -> Result<Committed, Error> {
        // Looked at once more: somebody may have joined before the state said `Committing`.
        let joiners = self.joiners()?;
        if !how.force {
            self.refuse_open(&joiners)?;
        }
        let mut draft = Draft { nodes: record.nodes.clone(), ..Draft::default() };
        let mut dropped = Vec::new();
        for (name, turns) in &joiners {
            self.check_told(name, turns)?;
            let (nodes, receipts) = self.written_by(turns)?;
            draft.merge_nodes(nodes)?;
            receipts.to_vec().into_iter().try_for_each(|r| draft.receipts.add(r))?;
            if turns.is_open() {
                let n_chunks = turns.receipts.iter().filter(|(turn, ..)| *turn > turns.closed).map(|(_, n, _)| n).sum();
                dropped.push(JoinerStatus { name: name.clone(), open: true, n_chunks });
            }
        }
        let mut options = how.options.clone();
        if !dropped.is_empty() {
            let names: Map<String, Value> = dropped.iter().map(|j| (j.name.clone(), j.n_chunks.into())).collect();
            options.properties.insert(DROPPED_PROPERTY.to_owned(), Value::Object(names));
        }
        let Record { branch, base, message, mark, .. } = record;
        let commit = Commit { branch, base, session: &self.id, mark: *mark, message, options: &options, is_cancelled: &|| false };
        let snapshot = self.repository.commit(&commit, &draft)?;
        Ok(Committed { snapshot, dropped })
    }

    /// All that who has closed last says to have told is there.
    fn check_told(&self, name: &str, turns: &Turns) -> Result<(), Error> {
        if turns.closed <= turns.dropped {
            return Ok(());
        }
        let key = self.key(&format!("joiners/{name}/{:06}.closed.json", turns.closed));
        let said = self.repository.records().get::<JoinedClosed>(&key)?.map_or(0, |c| c.batches);
        let found = turns.receipts.iter().filter(|(turn, ..)| *turn == turns.closed).count() as u64;
        if found < said {
            let why = format!("{found} of the {said} records of what `{name}` has written are there: run it again, or take back what it wrote");
            return Err(Error::Damaged { place: self.key(&format!("receipts/{name}")), why });
        }
        Ok(())
    }

    /// What was written under one name: of those who came one after the other, the later counts. What was written after the last one closed is
    /// dropped.
    fn written_by(&self, turns: &Turns) -> Result<(BTreeMap<String, NodeChange>, Receipts), Error> {
        let counts = |turn: u64| turn > turns.dropped && (!turns.is_open() || turn <= turns.closed);
        let keys: Vec<String> = turns.receipts.iter().filter(|(turn, ..)| counts(*turn)).map(|(.., key)| key.clone()).collect();
        let (mut nodes, mut receipts) = (BTreeMap::new(), Receipts::default());
        let mut batches = Vec::new();
        for (batch, key) in self.repository.records().get_all::<Batch>(&keys)?.into_iter().zip(&keys) {
            let batch = batch.ok_or_else(|| Error::Damaged { place: key.clone(), why: "it is gone".into() })?;
            batch.check(&self.id)?;
            batches.push(batch);
        }
        // What a run has told in part, before it died, is nothing.
        let ended: BTreeSet<String> = batches.iter().filter(|b| b.ends).filter_map(|b| b.run.clone()).collect();
        for batch in batches.into_iter().filter(|b| b.run.as_ref().is_none_or(|run| ended.contains(run))) {
            for (path, change) in batch.nodes {
                // What was written into an array that was made anew since goes with that.
                if nodes.get(&path).is_some_and(|known: &NodeChange| known.document() != change.document()) {
                    receipts.remove(&path);
                }
                nodes.insert(path, change);
            }
            batch.receipts.into_iter().try_for_each(|r| receipts.replace(r))?;
        }
        Ok((nodes, receipts))
    }

    /// Notes that it is committed. Who has taken over meanwhile notes the same.
    fn finish(&self, mut number: u64, expires_at: u64, done: Committed) -> Result<Committed, Error> {
        let dropped: Vec<String> = done.dropped.iter().map(|j| j.name.clone()).collect();
        loop {
            match self.swap(number, State::Committed { snapshot: done.snapshot.clone(), dropped: dropped.clone() }, expires_at) {
                Err(Error::Stale { .. }) => {
                    let (newest, generation) = self.generation()?;
                    if matches!(generation.state, State::Committed { .. }) {
                        return Ok(done);
                    }
                    number = newest;
                }
                other => return other.map(|_| done),
            }
        }
    }
}

/// Those who joined under one name, one after the other.
#[derive(Debug, Default)]
struct Turns {
    newest: u64,
    /// The last one that closed.
    closed: u64,
    /// The last one that took back all that was written until then.
    dropped: u64,
    /// Turn, number of chunks, and key of each batch of receipts, in order.
    receipts: Vec<(u64, u64, String)>,
}

impl Turns {
    fn is_open(&self) -> bool {
        self.newest > self.closed
    }

    fn n_chunks(&self) -> u64 {
        self.receipts.iter().filter(|(turn, ..)| *turn > self.dropped).map(|(_, n, _)| n).sum()
    }
}

/// That somebody may write.
#[derive(Debug)]
struct Membership {
    session: SharedSession,
    name: String,
    turn: u64,
    /// When it was looked at last.
    checked: Mutex<Option<Instant>>,
}

impl Membership {
    /// Refuses who may not write any more. Where a look crosses a network, one a second is enough: what is written in between is not made durable.
    fn check(&self) -> Result<(), Error> {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if self.session.repository.records().is_remote() && checked.is_some_and(|at| at.elapsed() < FLUSH_EVERY) {
            return Ok(());
        }
        self.check_now()?;
        *checked = Some(Instant::now());
        Ok(())
    }

    /// Finds out, after it has closed, whether a commit that was forced at the same moment has dropped what it wrote.
    fn check_taken(&self) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            let state = self.session.generation()?.1.state;
            match state {
                State::Open => return Ok(()),
                State::Committed { snapshot, dropped } if dropped.contains(&self.name) => return Err(self.session.closed(Closed::Committed { snapshot })),
                State::Committed { .. } => return Ok(()),
                State::Abandoned => return Err(self.session.closed(Closed::Abandoned)),
                State::Committing if start.elapsed() > LONGEST_COMMIT => return Err(Error::Committing { session: self.session.id.clone() }),
                State::Committing => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn check_now(&self) -> Result<(), Error> {
        self.session.open_generation()?;
        let names = self.session.repository.records().list(&self.session.key(&format!("joiners/{}", self.name)))?;
        let newest = names.iter().filter_map(|n| n.split('.').next()?.parse::<u64>().ok()).max();
        if newest.is_some_and(|newest| newest > self.turn) {
            return Err(Error::Replaced { session: self.session.id.clone(), joiner: self.name.clone() });
        }
        Ok(())
    }
}

/// Makes receipts durable.
#[derive(Debug)]
struct Flusher {
    joined: Arc<Membership>,
    draft: Arc<Mutex<Draft>>,
    /// Number of the next batch; held while one is written.
    next: Mutex<u64>,
    /// The run that all batches from now on are of.
    run: Mutex<Option<String>>,
    stop: (Mutex<bool>, Condvar),
}

impl Flusher {
    fn flush(&self) -> Result<(), Error> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let Pending { nodes, receipts } = self.take();
            if nodes.is_empty() && receipts.is_empty() {
                return Ok(());
            }
            let run = self.run.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let batch = Batch { nodes, run, ..Batch::new(&self.joined.session.id, receipts) };
            let written = self.tell(*next, &batch);
            if written.is_err() {
                // They are still to be told: storage may be better next time.
                let mut draft = self.draft.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(pending) = &mut draft.pending {
                    pending.receipts.splice(0..0, batch.receipts);
                    // What was made of a node since is newer.
                    for (path, change) in batch.nodes {
                        pending.nodes.entry(path).or_insert(change);
                    }
                }
            }
            written?;
            *next += 1;
        }
    }

    fn tell(&self, number: u64, batch: &Batch) -> Result<(), Error> {
        let name = format!("receipts/{}/{:06}-{number:06}-{}.json", self.joined.name, self.joined.turn, batch.receipts.len());
        self.joined.check_now()?;
        self.joined.session.create(&name, batch)
    }

    /// From now on, what is written is of a run, and counts once [`end_run`](Flusher::end_run) was told.
    fn begin_run(&self, run: String) {
        *self.run.lock().unwrap_or_else(PoisonError::into_inner) = Some(run);
    }

    fn end_run(&self) -> Result<(), Error> {
        self.flush()?;
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let run = self.run.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.tell(*next, &Batch { run, ends: true, ..Batch::new(&self.joined.session.id, Vec::new()) })?;
        *next += 1;
        Ok(())
    }

    /// What is told next.
    fn take(&self) -> Pending {
        let mut draft = self.draft.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pending) = draft.pending.as_mut().filter(|p| !p.is_empty()) else { return Pending::default() };
        let later = pending.receipts.split_off(pending.receipts.len().min(MAX_BATCH));
        Pending { nodes: std::mem::take(&mut pending.nodes), receipts: std::mem::replace(&mut pending.receipts, later) }
    }
}

/// Flushes every second, for as long as the joiner is there. Errors come up when it writes or closes.
fn flush_regularly(flusher: Weak<Flusher>) -> Result<(), Error> {
    let run = move || {
        while let Some(flusher) = flusher.upgrade() {
            let (stop, wake) = &flusher.stop;
            let stop = stop.lock().unwrap_or_else(PoisonError::into_inner);
            let (stop, _) = wake.wait_timeout_while(stop, FLUSH_EVERY, |stop| !*stop).unwrap_or_else(PoisonError::into_inner);
            if *stop {
                return;
            }
            drop(stop);
            let _ = flusher.flush();
        }
    };
    std::thread::Builder::new().name("freestone-receipts".into()).spawn(run).map(drop).map_err(|e| Error::Runtime { message: e.to_string() })
}

/// Somebody who has joined a shared session, and writes.
///
/// It must be [closed](Joiner::close): a session is not committed while somebody is open, since what it still writes would be lost. One that is
/// dropped without that is taken for dead; who joins under its name takes over.
#[derive(Debug)]
pub struct Joiner {
    store: Arc<SessionStore>,
    flusher: Arc<Flusher>,
}

impl Joiner {
    /// The name that it has joined under.
    pub fn name(&self) -> &str {
        &self.flusher.joined.name
    }

    /// The engine's view: the base, with what was made before the session was shared and this joiner has written.
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as Arc<dyn Store>
    }

    /// An array, to be read and written.
    ///
    /// # Errors
    /// Where there is none, or one that uses what is not supported.
    pub fn array(&self, path: &str) -> Result<SessionArray, Error> {
        SessionArray::open(&self.store, path)
    }

    pub(crate) fn session_store(&self) -> &Arc<SessionStore> {
        &self.store
    }

    /// Finds out whether the session takes writes, now.
    ///
    /// # Errors
    /// [`Error::Closed`] and its like.
    pub fn check(&self) -> Result<(), Error> {
        self.flusher.joined.check_now()
    }

    /// Makes receipts of all that was written durable now.
    ///
    /// # Errors
    /// [`Error::Closed`] and its like where the session takes nothing more, and where storage fails.
    pub fn flush(&self) -> Result<(), Error> {
        self.flusher.flush()
    }

    /// Ends: makes receipts durable, and says that no more come.
    ///
    /// # Errors
    /// As [`flush`](Joiner::flush). Then what was not durable before is not part of the session, and it is still open under this name.
    pub fn close(self) -> Result<(), Error> {
        self.end()
    }

    /// Takes back all that was written under this name so far, and closes.
    ///
    /// # Errors
    /// As [`close`](Joiner::close).
    pub fn retract(self) -> Result<(), Error> {
        if let Some(pending) = self.store.draft().as_mut().and_then(|d| d.pending.as_mut()) {
            *pending = Pending::default();
        }
        let joined = &self.flusher.joined;
        joined.check_now()?;
        joined.session.create(&format!("joiners/{}/{:06}.dropped.json", joined.name, joined.turn), &JoinedClosed { at: now(), batches: 0 })?;
        self.end()
    }

    /// Adds what a run has written, all of it or nothing, and closes.
    pub(crate) fn end_with(&self, run: &str, take: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        self.flusher.begin_run(format!("{run}-{:06}", self.flusher.joined.turn));
        take()?;
        self.flusher.end_run()?;
        self.end()
    }

    pub(crate) fn end(&self) -> Result<(), Error> {
        self.flusher.flush()?;
        let joined = &self.flusher.joined;
        joined.check_now()?;
        let batches = *self.flusher.next.lock().unwrap_or_else(PoisonError::into_inner) - 1;
        joined.session.create(&format!("joiners/{}/{:06}.closed.json", joined.name, joined.turn), &JoinedClosed { at: now(), batches })?;
        joined.check_taken()
    }
}

impl Drop for Joiner {
    fn drop(&mut self) {
        let (stop, wake) = &self.flusher.stop;
        *stop.lock().unwrap_or_else(PoisonError::into_inner) = true;
        wake.notify_all();
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
        Handle { version: VERSION, repository: self.repository.url().to_owned(), session: self.id.clone() }.serialize(s)
    }
}

impl<'de> Deserialize<'de> for SharedSession {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<SharedSession, D::Error> {
        use serde::de::Error as _;
        let handle = Handle::deserialize(d)?;
        if handle.version != VERSION {
            return Err(D::Error::custom(Error::Version { what: "a session's handle", found: handle.version, known: VERSION }));
        }
        Repository::open(&handle.repository).and_then(|r| r.shared_session(&handle.session)).map_err(D::Error::custom)
    }
}

/// Names become parts of keys.
fn check_name(name: &str) -> Result<&str, Error> {
    let fits = (1..=64).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if fits { Ok(name) } else { Err(Error::BadName { name: name.to_owned() }) }
}
