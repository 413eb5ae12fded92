//! One plan, one commit: a plan's outputs in a session.
//!
//! A target of a plan is in a session if its store is the session's ([`WritableSession::store`]).
//! Workers write it by the URL alone; the receipts of their tasks, which know nothing of Icechunk,
//! are enough to commit it. [`RepositoryPublisher`] is what the engine's driver needs for that.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use freestone_engine::kernels::Buffer;
use freestone_engine::plan::{ArrayId, FinalizedPlan, Mode, Place, Publication};
use freestone_engine::publish::{PublishError, Publisher, Rejection};
use freestone_engine::storage::metadata::open_array;
use freestone_engine::storage::reader::Written;
use freestone_engine::storage::{ArrayInfo, StorageError, Store};
use freestone_engine::task;
use icechunk::format::ChunkId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use crate::commit::{CommitOptions, Rebase};
use crate::draft::{Draft, NodeChange};
use crate::error::{Conflict, Error};
use crate::receipt::{self, Receipt};
use crate::repository::{Repository, Version};
use crate::session::{Ticket, WritableSession, check_node};
use crate::shared::Joiner;
use crate::store::{Key, SessionStore};

/// An output in this session.
struct Output<'a> {
    path: &'a str,
    info: &'a ArrayInfo,
    publication: &'a Publication,
}

impl WritableSession {
    /// Finds out whether a plan's outputs may be written here, and changes nothing.
    ///
    /// # Errors
    /// [`Error::NodeExists`] where something is that may not be replaced; [`Error::InvalidNode`] where
    /// a region's array is another than was planned for; [`Error::Elsewhere`] where an output is
    /// not in this session.
    pub fn check_plan(&self, plan: &FinalizedPlan) -> Result<(), Error> {
        check_plan(self.session_store(), plan)
    }

    /// Commits a plan's outputs from the receipts of its tasks: arrays are made, references set,
    /// and all of it becomes visible at once.
    ///
    /// A task that was run twice has given the same receipts twice. Where it fails, it can be
    /// called again, with all receipts.
    ///
    /// # Errors
    /// [`Error::Incomplete`] where a chunk has no receipt, and as
    /// [`check_plan`](WritableSession::check_plan) and
    /// [`commit_with`](WritableSession::commit_with). Nothing is visible then.
    pub fn commit_plan(
        &self,
        plan: &FinalizedPlan,
        receipts: impl IntoIterator<Item = task::Receipt>,
        message: &str,
        options: &CommitOptions,
    ) -> Result<String, Error> {
        take_plan(self.session_store(), plan, receipts)?;
        self.commit_with(message, options)
    }
}

/// A plan's outputs, all of which must be in a session.
fn outputs<'a>(
    store: &SessionStore,
    plan: &'a FinalizedPlan,
) -> Result<HashMap<ArrayId, Output<'a>>, Error> {
    plan.plan().publications.iter().map(|p| Ok((p.array, output(store, plan, p)?))).collect()
}

fn output<'a>(
    store: &SessionStore,
    plan: &'a FinalizedPlan,
    publication: &'a Publication,
) -> Result<Output<'a>, Error> {
    let array = plan.plan().array(publication.array);
    match &array.place {
        Place::Output { url, path } if url == store.url() => {
            Ok(Output { path, info: &array.info, publication })
        }
        Place::Output { url, path } => Err(Error::Elsewhere {
            place: format!("{url}/{path}"),
            expected: store.url().to_owned(),
        }),
        _ => Err(Error::Elsewhere { place: array.name.clone(), expected: store.url().to_owned() }),
    }
}

fn check_plan(store: &Arc<SessionStore>, plan: &FinalizedPlan) -> Result<(), Error> {
    for output in outputs(store, plan)?.values() {
        match &output.publication.mode {
            Mode::Region { tag } => {
                let there = open_array(&(Arc::clone(store) as Arc<dyn Store>), output.path)?;
                if there.tag != *tag {
                    let why =
                        "it is not the array any more that was planned for: plan again".to_owned();
                    return Err(Error::InvalidNode { path: output.path.to_owned(), why });
                }
            }
            Mode::Whole | Mode::Metadata => {
                check_node(output.path, &output.publication.document)?;
                if !output.publication.overwrite
                    && !is_made(store, output)
                    && store.document(output.path)?.is_some()
                {
                    return Err(Error::NodeExists {
                        place: store.repository().url().to_owned(),
                        path: output.path.to_owned(),
                    });
                }
                for group in crate::draft::ancestors(output.path) {
                    if store.parsed(group)?.is_some_and(|d| d["node_type"] != "group") {
                        let why =
                            format!("`{group}` is an array, which cannot contain other nodes");
                        return Err(Error::InvalidNode { path: output.path.to_owned(), why });
                    }
                }
            }
        }
    }
    Ok(())
}

/// True if the session has made this very array: its creator, or a commit that failed.
fn is_made(store: &SessionStore, output: &Output<'_>) -> bool {
    let made = |change: &NodeChange| {
        change.hides() && change.document() == Some(&output.publication.document)
    };
    store.draft().is_some_and(|d| d.nodes.get(output.path).is_some_and(made))
}

/// Takes a plan's outputs into a session's draft.
fn take_plan(
    store: &Arc<SessionStore>,
    plan: &FinalizedPlan,
    receipts: impl IntoIterator<Item = task::Receipt>,
) -> Result<(), Error> {
    check_plan(store, plan)?;
    let outputs = outputs(store, plan)?;
    for output in outputs.values().filter(|o| !matches!(o.publication.mode, Mode::Region { .. })) {
        if is_made(store, output) {
            // A try before this one has told of a part, perhaps.
            if output.publication.mode == Mode::Whole {
                store.own_draft()?.receipts.remove(output.path);
            }
        }
        for (path, made) in nodes_of(store, output)? {
            change(store, path, made)?;
        }
    }
    let session = store.session_id()?.to_owned();
    for receipt in receipts {
        let Some(output) = outputs.get(&receipt.array) else {
            if matches!(plan.plan().array(receipt.array).place, Place::Output { .. }) {
                return Err(Error::Internal { invariant: "every output of a plan is published" });
            }
            // Of an intermediate array.
            continue;
        };
        let receipt = ours(&session, output, &receipt)?;
        store.own_draft()?.add(receipt)?;
    }
    outputs
        .values()
        .filter(|o| o.publication.mode != Mode::Metadata)
        .try_for_each(|o| check_written(store, o))
}

/// What becomes of nodes by an output: the array is made, and the root group where there is none.
/// Nothing by a region, or if the session has it already.
fn nodes_of<'a>(
    store: &SessionStore,
    output: &Output<'a>,
) -> Result<Vec<(&'a str, NodeChange)>, Error> {
    let mut nodes = Vec::new();
    if matches!(output.publication.mode, Mode::Region { .. }) {
        return Ok(nodes);
    }
    if let Some(group) = &output.publication.group
        && store.document("")?.is_none()
    {
        nodes.push(("", NodeChange::New(group.clone())));
    }
    if !is_made(store, output) {
        let document = output.publication.document.clone();
        let made = if store.document(output.path)?.is_some() {
            NodeChange::Replaced(document)
        } else {
            NodeChange::New(document)
        };
        nodes.push((output.path, made));
    }
    Ok(nodes)
}

/// All that a session will have changed once a plan's outputs are in it.
fn draft_of(session: &WritableSession, plan: &FinalizedPlan) -> Result<Draft, Error> {
    let store = session.session_store();
    let mut draft = session.draft(|d| Draft { nodes: d.nodes.clone(), ..Draft::default() });
    for output in outputs(store, plan)?.values() {
        for (path, made) in nodes_of(store, output)? {
            draft.change(path, made);
        }
        // An array that is made clashes as a whole.
        if matches!(output.publication.mode, Mode::Region { .. }) {
            for i in 0..output.info.objects().n_chunks() {
                draft.add(Receipt::fill(output.path, &chunk_of(output, i)?))?;
            }
        }
    }
    Ok(draft)
}

fn change(store: &SessionStore, path: &str, change: NodeChange) -> Result<(), Error> {
    store.check_open()?;
    store.own_draft()?.change(path, change);
    Ok(())
}

/// A task's receipt as one of ours.
fn ours(session: &str, output: &Output<'_>, receipt: &task::Receipt) -> Result<Receipt, Error> {
    let chunk = chunk_of(output, receipt.chunk)?;
    Ok(match receipt.written {
        Written::Fill => Receipt::fill(output.path, &chunk),
        Written::Object { len, hash } => Receipt::object(session, output.path, &chunk, len, hash),
    })
}

/// Every chunk that the plan writes of an output has a receipt.
fn check_written(store: &SessionStore, output: &Output<'_>) -> Result<(), Error> {
    let wanted = output.info.objects().n_chunks();
    let draft = store.own_draft()?;
    if draft.receipts.n_chunks(output.path) as u64 >= wanted {
        return Ok(());
    }
    let mut missing = Vec::new();
    for i in 0..wanted {
        let chunk = chunk_of(output, i)?;
        if draft.receipts.get(output.path, &chunk).is_none() {
            missing.push(chunk);
        }
    }
    match missing.first() {
        None => Ok(()),
        Some(first) => {
            let first = first.iter().map(|c| u64::from(*c)).collect();
            Err(Error::Incomplete {
                array: output.path.to_owned(),
                n_missing: missing.len() as u64,
                first,
            })
        }
    }
}

/// The coordinates in the stored array of the chunk or shard of that number: a region's first one
/// is not the array's.
fn chunk_of(output: &Output<'_>, number: u64) -> Result<Vec<u32>, Error> {
    let objects = output.info.objects();
    match Key::parse(&output.info.object_key(&objects.coords(number))) {
        Key::Chunk("", chunk) if number < objects.n_chunks() => Ok(chunk),
        _ => Err(Error::NoChunk { array: output.path.to_owned(), chunk: vec![number] }),
    }
}

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
