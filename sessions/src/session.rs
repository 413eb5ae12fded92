//! Sessions of one process, and what its forks need.

use std::sync::{Arc, Mutex, PoisonError};

use freestone_engine::storage::metadata::{array_document, group_document};
use freestone_engine::storage::{ArrayInfo, Store};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::array::SessionArray;
use crate::commit::{Commit, CommitOptions, Mark};
use crate::draft::{Draft, Known, NodeChange};
use crate::error::{Closed, Error};
use crate::node::Shape;
use crate::receipt::{Batch, Receipt, VERSION};
use crate::repository::Repository;
use crate::store::{Keep, SessionStore, Writes};
use crate::version::Version;

/// Reads one snapshot, whatever is committed meanwhile.
#[derive(Clone, Debug)]
pub struct ReadonlySession {
    store: Arc<SessionStore>,
}

impl ReadonlySession {
    pub(crate) fn new(repository: &Repository, snapshot: String) -> Result<ReadonlySession, Error> {
        Ok(ReadonlySession { store: Arc::new(SessionStore::new(repository, snapshot, None)?) })
    }

    /// The snapshot's id.
    pub fn snapshot(&self) -> &str {
        self.store.snapshot()
    }

    /// The engine's view, whose URL names the snapshot: arrays opened from it are pinned to that.
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as Arc<dyn Store>
    }

    pub(crate) fn session_store(&self) -> &SessionStore {
        &self.store
    }

    /// An array, to be read.
    ///
    /// # Errors
    /// Where there is none, or one that uses what is not supported.
    pub fn array(&self, path: &str) -> Result<SessionArray, Error> {
        SessionArray::open(&self.store, path)
    }
}

/// Collects changes, and commits them once.
///
/// Cheap to clone; clones are one session, and may be used by several threads at once. After the
/// commit all of them refuse to write.
#[derive(Clone, Debug)]
pub struct WritableSession {
    store: Arc<SessionStore>,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    branch: String,
    id: String,
    mark: Option<Mark>,
    draft: Arc<Mutex<Draft>>,
    closed: Arc<Mutex<Option<Closed>>>,
}

/// What another process needs to write for a session: no credentials, and nothing of Icechunk's
/// own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ticket {
    /// Version of this record.
    pub version: u32,
    /// The repository's URL.
    pub repository: String,
    /// The snapshot that the session is based on.
    pub base: String,
    /// The session.
    pub session: String,
    /// The branch that it will be committed to.
    pub branch: String,
    /// Where the operations log was as it began.
    mark: Option<Mark>,
    /// What the session has made or changed before.
    nodes: std::collections::BTreeMap<String, NodeChange>,
}

/// Writes for a session that is elsewhere.
#[derive(Clone, Debug)]
pub struct Fork {
    store: Arc<SessionStore>,
    session: String,
}

impl WritableSession {
    pub(crate) fn new(repository: &Repository, branch: &str) -> Result<WritableSession, Error> {
        // First the mark: what is collected after it is noticed.
        let mark = repository.mark()?;
        let base = repository.resolve(&Version::Branch(branch.to_owned()))?;
        let inner = Inner {
            branch: branch.to_owned(),
            id: crate::new_id(),
            mark,
            draft: Arc::default(),
            closed: Arc::default(),
        };
        WritableSession::over(repository, base, inner)
    }

    fn over(repository: &Repository, base: String, inner: Inner) -> Result<WritableSession, Error> {
        let (closed, id) = (Arc::clone(&inner.closed), inner.id.clone());
        let gate = Arc::new(move || refuse(&closed, &id));
        let writes = Writes {
            session: inner.id.clone(),
            receipts: Keep::Here,
            draft: Some(Arc::clone(&inner.draft)),
            gate: Some(gate),
        };
        let store = Arc::new(SessionStore::new(repository, base, Some(writes))?);
        Ok(WritableSession { store, inner: Arc::new(inner) })
    }

    /// The branch that it commits to.
    pub fn branch(&self) -> &str {
        &self.inner.branch
    }

    /// The snapshot that it is based on.
    pub fn base(&self) -> &str {
        self.store.snapshot()
    }

    /// Its id: in tickets, receipts, and the snapshot's properties.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    pub(crate) fn mark(&self) -> Option<Mark> {
        self.inner.mark
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        self.store.repository()
    }

    pub(crate) fn session_store(&self) -> &Arc<SessionStore> {
        &self.store
    }

    /// The engine's view: the base, with what this session has written over it.
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as Arc<dyn Store>
    }

    /// Makes a group, and those around it; nothing happens where it is already.
    ///
    /// # Errors
    /// Where an array of that name is.
    pub fn create_group(&self, path: &str, attributes: &Map<String, Value>) -> Result<(), Error> {
        match self.document(path)? {
            Some(document) if document["node_type"] == "group" => Ok(()),
            Some(_) => Err(self.exists(path)),
            None => self.change(path, NodeChange::New(group_document(attributes))),
        }
    }

    /// Makes an array of fill values, and groups around it.
    ///
    /// # Errors
    /// [`Error::NodeExists`] where something of that name is.
    pub fn create_array(
        &self,
        path: &str,
        info: &ArrayInfo,
        dims: &[Option<String>],
        attributes: &Map<String, Value>,
    ) -> Result<(), Error> {
        self.create_node(path, array_document(info, dims, attributes))
    }

    /// Makes an array or group by its Zarr document.
    ///
    /// # Errors
    /// [`Error::NodeExists`] where something of that name is, [`Error::InvalidNode`] where a repository
    /// cannot hold it.
    pub fn create_node(&self, path: &str, document: Value) -> Result<(), Error> {
        if self.document(path)?.is_some() {
            return Err(self.exists(path));
        }
        check_node(path, &document)?;
        self.change(path, NodeChange::New(document))
    }

    /// Makes an array or group by its Zarr document; what is there goes with the commit, and all
    /// below it.
    ///
    /// # Errors
    /// [`Error::InvalidNode`] where a repository cannot hold it.
    pub fn replace_node(&self, path: &str, document: Value) -> Result<(), Error> {
        check_node(path, &document)?;
        self.change(path, NodeChange::Replaced(document))
    }

    /// Gives an array or group other attributes.
    ///
    /// # Errors
    /// [`Error::NoNode`] where there is none.
    pub fn set_attributes(&self, path: &str, attributes: &Map<String, Value>) -> Result<(), Error> {
        let mut document = self.document(path)?.ok_or_else(|| self.no_node(path))?;
        document["attributes"] = Value::Object(attributes.clone());
        self.change(path, NodeChange::Updated(document))
    }

    /// Attributes of an array or group.
    ///
    /// # Errors
    /// [`Error::NoNode`] where there is none.
    pub fn attributes(&self, path: &str) -> Result<Map<String, Value>, Error> {
        let document = self.document(path)?.ok_or_else(|| self.no_node(path))?;
        Ok(document["attributes"].as_object().cloned().unwrap_or_default())
    }

    /// Gives an array another shape: chunks inside of both stay, what is new has fill values, what
    /// is outside goes.
    ///
    /// # Errors
    /// [`Error::Rank`] where the array has another number of axes.
    pub fn resize(&self, path: &str, shape: &[u64]) -> Result<(), Error> {
        let mut document = self.document(path)?.ok_or_else(|| self.no_node(path))?;
        let before = Shape::of(path, &document)?;
        if before.lens.len() != shape.len() {
            return Err(Error::Rank {
                array: path.to_owned(),
                given: shape.len(),
                expected: before.lens.len(),
            });
        }
        document["shape"] = shape.into();
        self.change(path, NodeChange::Updated(document))
    }

    /// Removes an array or a group with all below it.
    ///
    /// # Errors
    /// [`Error::NoNode`] where there is none.
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        self.document(path)?.ok_or_else(|| self.no_node(path))?;
        self.change(path, NodeChange::Removed)
    }

    /// An array, to be read and written.
    ///
    /// # Errors
    /// Where there is none, or one that uses what is not supported.
    pub fn array(&self, path: &str) -> Result<SessionArray, Error> {
        SessionArray::open(&self.store, path)
    }

    /// What another process needs to write for this session, with the arrays that were made so far.
    /// It can be used any number of times.
    ///
    /// # Errors
    /// After the commit.
    pub fn fork(&self) -> Result<Ticket, Error> {
        refuse(&self.inner.closed, &self.inner.id)?;
        Ok(Ticket {
            version: VERSION,
            repository: self.repository().url().to_owned(),
            base: self.base().to_owned(),
            session: self.inner.id.clone(),
            branch: self.inner.branch.clone(),
            mark: self.inner.mark,
            nodes: self.draft(|d| d.nodes.clone()),
        })
    }

    /// Takes over what a fork has written.
    ///
    /// # Errors
    /// [`Error::WrittenTwice`] where a chunk has other content already, [`Error::Foreign`] for
    /// another session's receipts.
    pub fn merge(&self, batch: Batch) -> Result<(), Error> {
        refuse(&self.inner.closed, &self.inner.id)?;
        batch.check(&self.inner.id)?;
        self.merge_receipts(batch.receipts)
    }

    /// Takes over receipts, for instance those that [`Receipt::object`] makes of a task's.
    ///
    /// # Errors
    /// As [`merge`](WritableSession::merge).
    pub fn merge_receipts(&self, receipts: impl IntoIterator<Item = Receipt>) -> Result<(), Error> {
        refuse(&self.inner.closed, &self.inner.id)?;
        self.draft(|d| receipts.into_iter().try_for_each(|r| d.receipts.add(r)))
    }

    /// Number of chunks that were written or merged so far.
    pub fn n_chunks(&self) -> usize {
        self.draft(|d| d.receipts.len())
    }

    /// Makes everything visible, at once, as one snapshot on the branch; its id.
    ///
    /// # Errors
    /// As [`commit_with`](WritableSession::commit_with).
    pub fn commit(&self, message: &str) -> Result<String, Error> {
        self.commit_with(message, &CommitOptions::default())
    }

    /// As [`commit`](WritableSession::commit), with options.
    ///
    /// # Errors
    /// [`Error::Conflict`] where the branch has moved and that was not allowed, or both have
    /// changed the same; [`Error::Incomplete`]; [`Error::Collected`]; [`Error::NothingToCommit`].
    /// Nothing is visible then, and the session can be committed again.
    pub fn commit_with(&self, message: &str, options: &CommitOptions) -> Result<String, Error> {
        self.commit_unless(message, options, &|| false)
    }

    /// The same, unless it is cancelled while it waits for others.
    pub(crate) fn commit_unless(
        &self,
        message: &str,
        options: &CommitOptions,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<String, Error> {
        // Who writes while a commit goes on waits, and is refused afterwards.
        let mut closed = self.inner.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = &*closed {
            return Err(Error::Closed { session: self.inner.id.clone(), state: state.clone() });
        }
        let commit = Commit {
            branch: self.branch(),
            base: self.base(),
            session: self.id(),
            mark: self.inner.mark,
            message,
            options,
            is_cancelled,
        };
        let snapshot = self.draft(|draft| self.repository().commit(&commit, draft))?;
        *closed = Some(Closed::Committed { snapshot: snapshot.clone() });
        Ok(snapshot)
    }

    /// Gives up: nothing more can be written or committed. Objects that were written go with a
    /// later garbage collection.
    pub fn abandon(&self) {
        self.close(Closed::Abandoned);
    }

    pub(crate) fn close(&self, state: Closed) {
        self.inner.closed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(state);
    }

    pub(crate) fn draft<T>(&self, f: impl FnOnce(&mut Draft) -> T) -> T {
        f(&mut self.inner.draft.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, path: &str, change: NodeChange) -> Result<(), Error> {
        refuse(&self.inner.closed, &self.inner.id)?;
        self.draft(|d| d.change(path, change));
        Ok(())
    }

    /// True if an array or group, or one around it, was made, changed or removed, or chunks of it
    /// were written.
    pub fn has_changed(&self, path: &str) -> bool {
        self.draft(|d| !matches!(d.node(path), Known::Unchanged) || d.receipts.n_chunks(path) > 0)
    }

    fn document(&self, path: &str) -> Result<Option<Value>, Error> {
        self.store.parsed(path)
    }

    fn exists(&self, path: &str) -> Error {
        Error::NodeExists { place: self.repository().url().to_owned(), path: path.to_owned() }
    }

    fn no_node(&self, path: &str) -> Error {
        Error::NoNode { place: self.repository().url().to_owned(), path: path.to_owned() }
    }
}

fn refuse(closed: &Mutex<Option<Closed>>, session: &str) -> Result<(), Error> {
    match &*closed.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(state) => Err(Error::Closed { session: session.to_owned(), state: state.clone() }),
        None => Ok(()),
    }
}

pub(crate) fn check_node(path: &str, document: &Value) -> Result<(), Error> {
    match document["node_type"].as_str() {
        Some("group") => Ok(()),
        Some("array") => Shape::of(path, document).map(|_| ()),
        _ => Err(Error::InvalidNode {
            path: path.to_owned(),
            why: "its document is of no array and no group".into(),
        }),
    }
}

impl Ticket {
    /// Begins to write, with the credentials of this process. Reads the base's documents when they
    /// are asked for, nothing else.
    ///
    /// # Errors
    /// Where the repository cannot be opened, or another version of the program made the ticket.
    pub fn open(&self) -> Result<Fork, Error> {
        let repository = self.repository()?;
        let draft = Draft { nodes: self.nodes.clone(), ..Draft::default() };
        let writes = Writes {
            session: self.session.clone(),
            receipts: Keep::Here,
            draft: Some(Arc::new(Mutex::new(draft))),
            gate: None,
        };
        let store = Arc::new(SessionStore::new(&repository, self.base.clone(), Some(writes))?);
        Ok(Fork { store, session: self.session.clone() })
    }

    /// Goes on with the session itself, where the process that began it has died: receipts that
    /// were kept elsewhere can be merged and committed. If it was committed already, committing it
    /// again finds that snapshot.
    ///
    /// # Errors
    /// As [`open`](Ticket::open).
    pub fn resume(&self) -> Result<WritableSession, Error> {
        let draft = Draft { nodes: self.nodes.clone(), ..Draft::default() };
        let (branch, id) = (self.branch.clone(), self.session.clone());
        let inner = Inner {
            branch,
            id,
            mark: self.mark,
            draft: Arc::new(Mutex::new(draft)),
            closed: Arc::default(),
        };
        let repository = self.repository()?;
        repository.resolve(&Version::Snapshot(self.base.clone())).map_err(|e| match e {
            Error::NoVersion { .. } => Error::Collected { place: self.repository.clone() },
            other => other,
        })?;
        WritableSession::over(&repository, self.base.clone(), inner)
    }

    fn repository(&self) -> Result<Repository, Error> {
        if self.version != VERSION {
            return Err(Error::Version { what: "a ticket", found: self.version, known: VERSION });
        }
        Repository::open(&self.repository)
    }

    /// The URL of a store that writes for this session, as [`open_store`](crate::open_store) takes
    /// it.
    pub fn store_url(&self) -> String {
        crate::location::StoreUrl {
            repository: self.repository.clone(),
            version: Version::Snapshot(self.base.clone()),
            session: Some(self.session.clone()),
        }
        .to_string()
    }
}

impl Fork {
    /// The engine's view: the base, with what the session had made and this fork has written over
    /// it.
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

    /// Receipts of everything that was written so far, for [`WritableSession::merge`].
    pub fn receipts(&self) -> Batch {
        let draft = self.store.draft();
        debug_assert!(draft.is_some(), "broken invariant: a fork keeps its receipts");
        Batch::new(&self.session, draft.map(|d| d.receipts.to_vec()).unwrap_or_default())
    }
}
