//! Those who join a shared session, and write.
//!
//! A [`Joiner`] writes as a session of its own does; what it wrote is told to the others by its
//! receipts, which a thread makes durable every second. Before each batch it looks whether it may
//! still write: the session may have ended, or somebody else have taken over its name.

use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use freestone_engine::storage::Store;

use super::SharedSession;
use super::folder::{Joined, JoinedClosed, State, now};
use crate::array::SessionArray;
use crate::draft::{Draft, Pending};
use crate::error::{Closed, Error};
use crate::receipt::{Batch, VERSION};
use crate::record::numbered;
use crate::store::{Keep, SessionStore, Writes};

/// Receipts in one object.
const MAX_BATCH: usize = 50_000;

/// Receipts are made durable that often.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// Who has closed while a commit goes on waits so long for its end.
const LONGEST_COMMIT: Duration = Duration::from_secs(30);

/// Somebody who has joined a shared session, and writes.
///
/// It must be [closed](Joiner::close): a session is not committed while somebody is open, since
/// what it still writes would be lost. One that is dropped without that is taken for dead; who
/// joins under its name takes over.
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

    /// The engine's view: the base, with what was made before the session was shared and this
    /// joiner has written.
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
    /// [`Error::Closed`] and its like where the session takes nothing more, and where storage
    /// fails.
    pub fn flush(&self) -> Result<(), Error> {
        self.flusher.flush()
    }

    /// Ends: makes receipts durable, and says that no more come.
    ///
    /// # Errors
    /// As [`flush`](Joiner::flush). Then what was not durable before is not part of the session,
    /// and it is still open under this name.
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
        joined.session.create(
            &format!("joiners/{}/{:06}.dropped.json", joined.name, joined.turn),
            &JoinedClosed { at: now(), batches: 0 },
        )?;
        self.end()
    }

    /// Adds what a run has written, all of it or nothing, and closes.
    pub(crate) fn end_with(
        &self,
        run: &str,
        take: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
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
        joined.session.create(
            &format!("joiners/{}/{:06}.closed.json", joined.name, joined.turn),
            &JoinedClosed { at: now(), batches },
        )?;
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

impl SharedSession {
    /// Joins under a name, to write. Who joins under the name of somebody else takes over from it.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Committing`], [`Error::SharingOff`], [`Error::InvalidName`].
    pub fn join(&self, name: &str) -> Result<Joiner, Error> {
        if !self.repository.is_sharing() {
            return Err(Error::SharingOff { place: self.repository.url().to_owned() });
        }
        let name = check_name(name)?;
        self.open_generation()?;
        let record = self.record()?;
        let turn = self.next_turn(name)?;
        let joined = Arc::new(Membership {
            session: self.clone(),
            name: name.to_owned(),
            turn,
            checked: Mutex::new(None),
        });
        // A commit may have begun since the state was looked at, and not have seen us.
        if let Err(refused) = joined.check_now() {
            let _ = self.create(
                &format!("joiners/{name}/{turn:06}.closed.json"),
                &JoinedClosed { at: now(), batches: 0 },
            );
            return Err(refused);
        }
        let draft = Arc::new(Mutex::new(Draft {
            nodes: record.nodes,
            pending: Some(Pending::default()),
            ..Draft::default()
        }));
        let gate = Arc::clone(&joined);
        let gate = Arc::new(move || gate.check());
        let writes = Writes {
            session: self.id.clone(),
            receipts: Keep::Here,
            draft: Some(Arc::clone(&draft)),
            gate: Some(gate),
        };
        let store = Arc::new(SessionStore::new(&self.repository, record.base, Some(writes))?);
        let flusher = Arc::new(Flusher {
            joined,
            draft,
            next: Mutex::new(1),
            run: Mutex::default(),
            stop: (Mutex::new(false), Condvar::new()),
        });
        flush_regularly(Arc::downgrade(&flusher))?;
        Ok(Joiner { store, flusher })
    }

    /// The number of who joins next under a name, taken.
    fn next_turn(&self, name: &str) -> Result<u64, Error> {
        loop {
            let names = self.repository.records().list(&self.key(&format!("joiners/{name}")))?;
            let turn = names
                .iter()
                .filter_map(|n| n.split('.').next()?.parse::<u64>().ok())
                .max()
                .unwrap_or(0)
                + 1;
            let joined = Joined {
                version: VERSION,
                at: now(),
                process: std::process::id(),
                by: crate::new_id(),
            };
            if self
                .repository
                .records()
                .create(&self.key(&format!("joiners/{name}/{}", numbered(turn))), &joined)?
            {
                return Ok(turn);
            }
        }
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
    /// Refuses who may not write any more. Where a look crosses a network, one a second is enough:
    /// what is written in between is not made durable.
    fn check(&self) -> Result<(), Error> {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if self.session.repository.records().is_remote()
            && checked.is_some_and(|at| at.elapsed() < FLUSH_EVERY)
        {
            return Ok(());
        }
        self.check_now()?;
        *checked = Some(Instant::now());
        Ok(())
    }

    /// Finds out, after it has closed, whether a commit that was forced at the same moment has
    /// dropped what it wrote.
    fn check_taken(&self) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            let state = self.session.generation()?.1.state;
            match state {
                State::Open => return Ok(()),
                State::Committed { snapshot, dropped } if dropped.contains(&self.name) => {
                    return Err(self.session.closed(Closed::Committed { snapshot }));
                }
                State::Committed { .. } => return Ok(()),
                State::Abandoned => return Err(self.session.closed(Closed::Abandoned)),
                State::Committing if start.elapsed() > LONGEST_COMMIT => {
                    return Err(Error::Committing { session: self.session.id.clone() });
                }
                State::Committing => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn check_now(&self) -> Result<(), Error> {
        self.session.open_generation()?;
        let names = self
            .session
            .repository
            .records()
            .list(&self.session.key(&format!("joiners/{}", self.name)))?;
        let newest = names.iter().filter_map(|n| n.split('.').next()?.parse::<u64>().ok()).max();
        if newest.is_some_and(|newest| newest > self.turn) {
            return Err(Error::Replaced {
                session: self.session.id.clone(),
                joiner: self.name.clone(),
            });
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
        let name = format!(
            "receipts/{}/{:06}-{number:06}-{}.json",
            self.joined.name,
            self.joined.turn,
            batch.receipts.len()
        );
        self.joined.check_now()?;
        self.joined.session.create(&name, batch)
    }

    /// From now on, what is written is of a run, and counts once [`end_run`](Flusher::end_run) was
    /// told.
    fn begin_run(&self, run: String) {
        *self.run.lock().unwrap_or_else(PoisonError::into_inner) = Some(run);
    }

    fn end_run(&self) -> Result<(), Error> {
        self.flush()?;
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let run = self.run.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.tell(
            *next,
            &Batch { run, ends: true, ..Batch::new(&self.joined.session.id, Vec::new()) },
        )?;
        *next += 1;
        Ok(())
    }

    /// What is told next.
    fn take(&self) -> Pending {
        let mut draft = self.draft.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pending) = draft.pending.as_mut().filter(|p| !p.is_empty()) else {
            return Pending::default();
        };
        let later = pending.receipts.split_off(pending.receipts.len().min(MAX_BATCH));
        Pending {
            nodes: std::mem::take(&mut pending.nodes),
            receipts: std::mem::replace(&mut pending.receipts, later),
        }
    }
}

/// Flushes every second, for as long as the joiner is there. Errors come up when it writes or
/// closes.
fn flush_regularly(flusher: Weak<Flusher>) -> Result<(), Error> {
    let run = move || {
        while let Some(flusher) = flusher.upgrade() {
            let (stop, wake) = &flusher.stop;
            let stop = stop.lock().unwrap_or_else(PoisonError::into_inner);
            let (stop, _) = wake
                .wait_timeout_while(stop, FLUSH_EVERY, |stop| !*stop)
                .unwrap_or_else(PoisonError::into_inner);
            if *stop {
                return;
            }
            drop(stop);
            let _ = flusher.flush();
        }
    };
    std::thread::Builder::new()
        .name("freestone-receipts".into())
        .spawn(run)
        .map(drop)
        .map_err(|e| Error::Runtime { message: e.to_string() })
}

/// Names become parts of keys.
pub(super) fn check_name(name: &str) -> Result<&str, Error> {
    let fits = (1..=64).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if fits { Ok(name) } else { Err(Error::InvalidName { name: name.to_owned() }) }
}
