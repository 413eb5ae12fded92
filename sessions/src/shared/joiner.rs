//! Joiners of a shared session, which write to it.
//!
//! A [`Joiner`] writes like a session of its own. A thread flushes its receipts every second.
//! Before each batch it checks that it may still write: the session may have ended, or another
//! process may have joined under its name.

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

/// The maximum number of receipts in one object.
const MAX_BATCH: usize = 50_000;

/// The interval of flushes.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// The maximum wait of a joiner that closes during a commit.
const LONGEST_COMMIT: Duration = Duration::from_secs(30);

/// A writer that has joined a shared session.
///
/// It must be [closed](Joiner::close), because open joiners prevent the commit. A joiner that is
/// dropped without a close counts as lost until another process joins under its name.
#[derive(Debug)]
pub struct Joiner {
    store: Arc<SessionStore>,
    flusher: Arc<Flusher>,
}

impl Joiner {
    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.flusher.joined.name
    }

    /// Returns the engine's view: the base with the changes before the session was shared and those
    /// of this joiner.
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as Arc<dyn Store>
    }

    /// Opens an array for reading and writing.
    ///
    /// # Errors
    /// Returns an error if the array does not exist or has unsupported features.
    pub fn array(&self, path: &str) -> Result<SessionArray, Error> {
        SessionArray::open(&self.store, path)
    }

    pub(crate) fn session_store(&self) -> &Arc<SessionStore> {
        &self.store
    }

    /// Checks that the session accepts writes.
    ///
    /// # Errors
    /// Returns [`Error::Closed`], [`Error::Committing`] or [`Error::Replaced`] if it does not.
    pub fn check(&self) -> Result<(), Error> {
        self.flusher.joined.check_now()
    }

    /// Flushes the receipts of all written chunks.
    ///
    /// # Errors
    /// Returns the errors of [`check`](Joiner::check), and an error if storage fails.
    pub fn flush(&self) -> Result<(), Error> {
        self.flusher.flush()
    }

    /// Flushes all receipts and closes the joiner.
    ///
    /// # Errors
    /// Returns the errors of [`flush`](Joiner::flush). Receipts that were not flushed are then not
    /// part of the session, and the joiner remains open.
    pub fn close(self) -> Result<(), Error> {
        self.end()
    }

    /// Retracts all changes of this name, and closes the joiner.
    ///
    /// # Errors
    /// Returns the errors of [`close`](Joiner::close).
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

    /// Adds the changes of a run atomically, and closes the joiner.
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
    /// Joins under a name for writing. A later joiner of the same name replaces an earlier one.
    ///
    /// # Errors
    /// Returns [`Error::Closed`], [`Error::Committing`], [`Error::SharingOff`] or
    /// [`Error::InvalidName`].
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
        // A commit may have started since the state was checked, without seeing this joiner.
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

    /// Claims and returns the next number of a joiner of a name.
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

/// The right of a joiner to write.
#[derive(Debug)]
struct Membership {
    session: SharedSession,
    name: String,
    turn: u64,
    /// The time of the last check.
    checked: Mutex<Option<Instant>>,
}

impl Membership {
    /// Checks that the joiner may write. In remote repositories, one check per second suffices,
    /// because receipts are not flushed in between.
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

    /// Checks, after closing, that a concurrent forced commit has not dropped this joiner's
    /// changes.
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

/// The flusher of a joiner's receipts.
#[derive(Debug)]
struct Flusher {
    joined: Arc<Membership>,
    draft: Arc<Mutex<Draft>>,
    /// The number of the next batch. Locked during a write.
    next: Mutex<u64>,
    /// The run to which further batches belong.
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
                // The receipts stay pending for the next flush.
                let mut draft = self.draft.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(pending) = &mut draft.pending {
                    pending.receipts.splice(0..0, batch.receipts);
                    // Later changes of a node have precedence.
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

    /// Starts a run. Its batches count once [`end_run`](Flusher::end_run) has succeeded.
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

    /// Takes the receipts and nodes of the next batch.
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

/// Flushes at intervals for the lifetime of the joiner. Writes and closes report errors.
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

/// Checks a name, which becomes part of keys.
pub(super) fn check_name(name: &str) -> Result<&str, Error> {
    let fits = (1..=64).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if fits { Ok(name) } else { Err(Error::InvalidName { name: name.to_owned() }) }
}
