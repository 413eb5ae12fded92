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

/// A publisher for a repository, which the engine's driver begins, resumes and commits.
///
/// It commits a session at the end of the run
/// ([`committing`](RepositoryPublisher::committing)), or adds the run's changes to a shared session
/// that another process commits ([`joining`](RepositoryPublisher::joining)).
#[derive(Debug)]
pub struct RepositoryPublisher {
    store: Arc<SessionStore>,
    how: How,
    /// True if a run has begun, and will end, with this publisher.
    begun: AtomicBool,
}

#[derive(Debug)]
enum How {
    Own {
        session: WritableSession,
        message: String,
        options: CommitOptions,
    },
    /// The joiner is `None` once it has closed.
    Joined {
        name: String,
        joiner: Mutex<Option<Joiner>>,
    },
}

/// The data in a run's record with which another process can continue the publication.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    Own { ticket: Ticket, message: String, rebase: u32 },
    Joined { repository: String, session: String, joiner: String },
}

/// The field of the ticket.
const RECORD: &str = "icechunk";

impl RepositoryPublisher {
    /// Creates a publisher that commits a session at the end of the run.
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

    /// Creates a publisher that adds the run's changes to a shared session and closes the joiner at
    /// the end of the run.
    pub fn joining(joiner: Joiner) -> RepositoryPublisher {
        let (store, name) = (Arc::clone(joiner.session_store()), joiner.name().to_owned());
        RepositoryPublisher {
            store,
            how: How::Joined { name, joiner: Mutex::new(Some(joiner)) },
            begun: AtomicBool::new(false),
        }
    }

    /// Restores the publisher of a resumed run. Returns `None` if the ticket is of another type.
    ///
    /// # Errors
    /// Returns an error if the repository cannot be opened, and [`Error::Closed`] if the shared
    /// session has ended.
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

    /// Sets the handling of a branch that has moved.
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

    /// Closes a joiner that has flushed nothing. A joiner that has flushed receipts stays open, so
    /// that no commit includes a part of its changes unnoticed.
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
                // Conflicts are reported before the work, unless this session moved the branch.
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
        // Existing arrays stay visible until the commit, and the base does not change.
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
            // An intermediate, fill values, or an object in a store whose writes are durable.
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
    /// Closes a joiner whose run never began, because open joiners prevent the commit. A joiner of
    /// a resumable run stays open.
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
            // The process that has joined since may resume the same run and need its folder.
            Error::Replaced { .. } => Rejection::Conflict,
            // A rebase can commit disjoint changes. Others conflict permanently.
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
            // Icechunk's client has retried the request, and the commit a lost response.
            Error::Repository { .. } => Rejection::Failed,
            e if e.is_transient() => Rejection::Transient,
            _ => Rejection::Failed,
        };
        PublishError::Rejected { why, message: error.to_string() }
    }
}
