//! Publication of a run's outputs in a session, for the engine's driver.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use freestone_engine::kernels::Buffer;
use freestone_engine::plan::FinalizedPlan;
use freestone_engine::publish::{PublishError, Publisher, Rejection};
use freestone_engine::storage::{StorageError, Store};
use freestone_engine::task;
use icechunk::format::ChunkId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use crate::commit::{CommitOptions, Rebase};
use crate::error::{Conflict, Error};
use crate::plan::{check_plan, draft_of, ours, output, take_plan};
use crate::receipt::{self, Receipt};
use crate::repository::Repository;
use crate::session::{Ticket, WritableSession};
use crate::shared::Joiner;
use crate::store::SessionStore;
use crate::version::Version;

/// What a run needs of a session: the engine's driver begins, resumes and commits it.
///
/// A run of its own commits when it is done ([`committing`](RepositoryPublisher::committing)). One that has
/// joined a shared session adds what it has made to that ([`joining`](RepositoryPublisher::joining)), which
/// somebody else commits.
#[derive(Debug)]
pub struct RepositoryPublisher {
    store: Arc<SessionStore>,
    how: How,
    /// A run has begun with it, and says how it ends.
    begun: AtomicBool,
}

#[derive(Debug)]
enum How {
    Own {
        session: WritableSession,
        message: String,
        options: CommitOptions,
    },
    /// Gone once it has closed.
    Joined {
        name: String,
        joiner: Mutex<Option<Joiner>>,
    },
}

/// What is written into a run's record: how to go on with its session in another process.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    Own { ticket: Ticket, message: String, rebase: u32 },
    Joined { repository: String, session: String, joiner: String },
}

/// The field of a run's record.
const RECORD: &str = "icechunk";

impl RepositoryPublisher {
    /// Commits a session when the run is done.
    pub fn committing(
        session: &WritableSession,
        message: &str,
        options: CommitOptions,
    ) -> RepositoryPublisher {
        let store = Arc::clone(session.session_store());
        RepositoryPublisher {
            store,
            how: How::Own { session: session.clone(), message: message.to_owned(), options },
            begun: AtomicBool::new(false),
        }
    }

    /// Adds what the run has made to a shared session, and closes the joiner when it is done.
    pub fn joining(joiner: Joiner) -> RepositoryPublisher {
        let (store, name) = (Arc::clone(joiner.session_store()), joiner.name().to_owned());
        RepositoryPublisher {
            store,
            how: How::Joined { name, joiner: Mutex::new(Some(joiner)) },
            begun: AtomicBool::new(false),
        }
    }

    /// The session of a run that is resumed, from its record; none if it was begun with another
    /// kind of session.
    ///
    /// # Errors
    /// Where the repository cannot be opened; [`Error::Closed`] where the shared session has ended.
    pub fn of_ticket(ticket: &Value) -> Option<Result<RepositoryPublisher, Error>> {
        let bad = |e: serde_json::Error| Error::Damaged {
            place: "the run's record".into(),
            why: e.to_string(),
        };
        let record = serde_json::from_value::<Record>(ticket.get(RECORD)?.clone()).map_err(bad);
        Some(record.and_then(|record| match record {
            Record::Own { ticket, message, rebase } => {
                let rebase =
                    if rebase == 0 { Rebase::Never } else { Rebase::Disjoint { attempts: rebase } };
                Ok(RepositoryPublisher::committing(
                    &ticket.resume()?,
                    &message,
                    CommitOptions { rebase, ..CommitOptions::default() },
                ))
            }
            Record::Joined { repository, session, joiner } => Ok(RepositoryPublisher::joining(
                Repository::open(&repository)?.join_session(&session, &joiner)?,
            )),
        }))
    }

    /// As it was begun, but with another answer where the branch has moved.
    #[must_use]
    pub fn with_rebase(mut self, rebase: Rebase) -> RepositoryPublisher {
        if let How::Own { options, .. } = &mut self.how {
            options.rebase = rebase;
        }
        self
    }

    fn joiner(joiner: &Mutex<Option<Joiner>>) -> MutexGuard<'_, Option<Joiner>> {
        joiner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes a joiner that has added nothing. One that has told others a part of what it made
    /// stays open, so that nobody commits that part without a word.
    fn leave(&self) {
        let How::Joined { joiner, .. } = &self.how else { return };
        let told = self.store.draft().is_some_and(|d| !d.receipts.is_empty());
        if let Some(open) = RepositoryPublisher::joiner(joiner).take_if(|_| !told) {
            let _ = open.end();
        }
    }

    fn check_resumed(&self, plan: &FinalizedPlan) -> Result<(), Error> {
        match &self.how {
            How::Own { session, options, .. } => {
                let repository = session.repository();
                let tip = repository.resolve(&Version::Branch(session.branch().to_owned()))?;
                // Better now than after the work, unless this very session has moved the branch.
                if tip != session.base()
                    && repository
                        .committed(session.id(), session.branch(), session.base())?
                        .is_none()
                {
                    let clashes =
                        repository.clashes(session.base(), &tip, &draft_of(session, plan)?)?;
                    if options.rebase == Rebase::Never || !clashes.is_empty() {
                        let (branch, base) =
                            (session.branch().to_owned(), session.base().to_owned());
                        return Err(Error::Conflict(Conflict { branch, base, tip, clashes }));
                    }
                }
            }
            How::Joined { joiner, .. } => {
                if let Some(joiner) = &*RepositoryPublisher::joiner(joiner) {
                    joiner.check()?;
                }
            }
        }
        check_plan(&self.store, plan)
    }

    fn publish(
        &self,
        plan: &FinalizedPlan,
        receipts: &[task::Receipt],
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<String>, Error> {
        match &self.how {
            How::Own { session, message, options } => {
                let mut options = options.clone();
                options
                    .properties
                    .insert("freestone_plan".into(), json!(plan.run_id().to_string()));
                options
                    .properties
                    .insert("freestone_version".into(), json!(env!("CARGO_PKG_VERSION")));
                take_plan(session.session_store(), plan, receipts.iter().copied())?;
                session.commit_unless(message, &options, is_cancelled).map(Some)
            }
            How::Joined { joiner, .. } => {
                let mut joiner = RepositoryPublisher::joiner(joiner);
                if let Some(open) = &*joiner {
                    open.end_with(&plan.run_id().to_string(), || {
                        take_plan(&self.store, plan, receipts.iter().copied())
                    })?;
                    *joiner = None;
                }
                Ok(None)
            }
        }
    }
}

impl Publisher for RepositoryPublisher {
    fn store(&self) -> Option<Arc<dyn Store>> {
        Some(Arc::new(self.store.for_tasks()))
    }

    fn needs_receipts(&self) -> bool {
        true
    }

    fn check(&self, plan: &FinalizedPlan) -> Result<(), PublishError> {
        Ok(check_plan(&self.store, plan)?)
    }

    fn begin(&self, _plan: &FinalizedPlan) -> Result<(), PublishError> {
        // Nothing has to make room: what is there stays visible until the commit, and the base that
        // was looked at is what it was.
        self.begun.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn ticket(&self) -> Value {
        let record = match &self.how {
            How::Own { session, message, options } => session.fork().ok().map(|ticket| {
                let rebase =
                    if let Rebase::Disjoint { attempts } = options.rebase { attempts } else { 0 };
                Record::Own { ticket, message: message.clone(), rebase }
            }),
            How::Joined { name, .. } => {
                self.store.session_id().ok().map(|session| Record::Joined {
                    repository: self.store.repository().url().to_owned(),
                    session: session.to_owned(),
                    joiner: name.clone(),
                })
            }
        };
        json!({RECORD: record})
    }

    fn resume(&self, plan: &FinalizedPlan, _finished: bool) -> Result<(), PublishError> {
        self.begun.store(true, Ordering::Relaxed);
        Ok(self.check_resumed(plan)?)
    }

    fn is_intact(
        &self,
        plan: &FinalizedPlan,
        receipt: &task::Receipt,
    ) -> Result<bool, StorageError> {
        let find = || -> Result<Option<Receipt>, Error> {
            let Some(publication) =
                plan.plan().publications.iter().find(|p| p.array == receipt.array)
            else {
                return Ok(None);
            };
            ours(self.store.session_id()?, &output(&self.store, plan, publication)?, receipt)
                .map(Some)
        };
        let failed = |e: Error| e.into_storage(self.store.url().to_owned(), "read");
        let objects = self.store.repository().objects();
        match find().map_err(failed)? {
            Some(Receipt {
                written: receipt::Written::Object { id, offset, len }, hash, ..
            }) if !objects.is_remote() => {
                let mut buffer = Buffer::zeroed(len as usize);
                let whole = |e: &StorageError| {
                    !matches!(e, StorageError::Truncated { .. } | StorageError::TooLong { .. })
                };
                match objects.read(&ChunkId::new(id), offset, len, &mut buffer) {
                    Ok(found) => {
                        Ok(found && buffer.len() as u64 == len && xxh3_64(buffer.bytes()) == hash)
                    }
                    Err(e) if whole(&e) => Err(e),
                    Err(_) => Ok(false),
                }
            }
            // An intermediate, fill values, or an object of a store that keeps what it has answered
            // for.
            _ => Ok(true),
        }
    }

    fn commit(
        &self,
        plan: &FinalizedPlan,
        receipts: &[task::Receipt],
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<String>, PublishError> {
        Ok(self.publish(plan, receipts, is_cancelled)?)
    }

    fn abandon(&self, _plan: &FinalizedPlan) {
        match &self.how {
            How::Own { session, .. } => session.abandon(),
            How::Joined { .. } => self.leave(),
        }
    }
}

impl Drop for RepositoryPublisher {
    /// A shared session is not committed while somebody who has joined it is open: who never began
    /// need not be waited for. A run that can be resumed must be.
    fn drop(&mut self) {
        if !self.begun.load(Ordering::Relaxed) {
            self.leave();
        }
    }
}

impl From<Error> for PublishError {
    fn from(error: Error) -> PublishError {
        let why = match &error {
            Error::Storage(e) => return PublishError::Storage(e.clone()),
            // Who has taken over goes on with the same run, perhaps, and needs its folder.
            Error::Replaced { .. } => Rejection::Conflict,
            // What both have changed stays so; what is disjoint can go on top.
            Error::Conflict(conflict) if conflict.clashes.is_empty() => Rejection::NeedsRebase,
            Error::Conflict(_) => Rejection::SessionEnded,
            Error::NodeExists { .. }
            | Error::Committing { .. }
            | Error::OpenJoiners { .. }
            | Error::Contended { .. } => Rejection::Conflict,
            Error::InvalidNode { .. }
            | Error::NoNode { .. }
            | Error::Elsewhere { .. }
            | Error::CreatedTwice { .. }
            | Error::WrittenTwice { .. }
            | Error::Collected { .. }
            | Error::Closed { .. }
            | Error::NoSession { .. }
            | Error::NoVersion { .. } => Rejection::SessionEnded,
            Error::Cancelled => Rejection::Cancelled,
            // Icechunk's client has retried it, and so has the commit where an answer was lost.
            Error::Repository { .. } => Rejection::Failed,
            e if e.is_transient() => Rejection::Transient,
            _ => Rejection::Failed,
        };
        PublishError::Rejected { why, message: error.to_string() }
    }
}
