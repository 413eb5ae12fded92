//! Sessions of one process, and their forks.

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

/// A session that reads one snapshot, independently of later commits.
#[derive(Clone, Debug)]
pub struct ReadonlySession {
    store: Arc<SessionStore>,
}

impl ReadonlySession {
    pub(crate) fn new(repository: &Repository, snapshot: String) -> Result<ReadonlySession, Error> {
        Ok(ReadonlySession { store: Arc::new(SessionStore::new(repository, snapshot, None)?) })
    }

    /// Returns the snapshot's id.
    pub fn snapshot(&self) -> &str {
        self.store.snapshot()
    }

    /// Returns the engine's view of the snapshot. Its URL names the snapshot, so arrays opened from
    /// it are pinned to it.
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as Arc<dyn Store>
    }

    pub(crate) fn session_store(&self) -> &SessionStore {
        &self.store
    }

    /// Opens an array for reading.
    ///
    /// # Errors
    /// Returns an error if the array does not exist or has unsupported features.
    pub fn array(&self, path: &str) -> Result<SessionArray, Error> {
        SessionArray::open(&self.store, path)
    }
}

/// A session that collects changes and commits them once.
///
/// Clones are cheap, refer to the same session, and can be used on several threads. After the
/// commit, all of them refuse writes.
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

/// The data with which another process can write to a session. It contains no credentials and no
/// data formats of Icechunk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ticket {
    /// The version of this record.
    pub version: u32,
    /// The repository's URL.
    pub repository: String,
    /// The snapshot on which the session is based.
    pub base: String,
    /// The id of the session.
    pub session: String,
    /// The branch to which the session commits.
    pub branch: String,
    /// The position of the operations log at the start of the session.
    mark: Option<Mark>,
    /// The changes of arrays and groups before the ticket was created.
    nodes: std::collections::BTreeMap<String, NodeChange>,
}

/// A writer for a session of another process.
#[derive(Clone, Debug)]
pub struct Fork {
    store: Arc<SessionStore>,
    session: String,
}

impl WritableSession {
    pub(crate) fn new(repository: &Repository, branch: &str) -> Result<WritableSession, Error> {
        // The mark comes first, so that later garbage collections are detected.
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

    /// Returns the branch to which the session commits.
    pub fn branch(&self) -> &str {
        &self.inner.branch
    }

    /// Returns the snapshot on which the session is based.
    pub fn base(&self) -> &str {
        self.store.snapshot()
    }

    /// Returns the id, which is part of tickets, receipts and the snapshot's properties.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    pub(crate) fn mark(&self) -> Option<Mark> {
        self.inner.mark
    }

    /// Returns the repository.
    pub fn repository(&self) -> &Repository {
        self.store.repository()
    }

    pub(crate) fn session_store(&self) -> &Arc<SessionStore> {
        &self.store
    }

    /// Returns the engine's view: the base with the changes of this session.
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as Arc<dyn Store>
    }

    /// Creates a group and its parent groups, unless they exist.
    ///
    /// # Errors
    /// Returns an error if an array of that name exists.
    pub fn create_group(&self, path: &str, attributes: &Map<String, Value>) -> Result<(), Error> {
        match self.document(path)? {
            Some(document) if document["node_type"] == "group" => Ok(()),
            Some(_) => Err(self.exists(path)),
            None => self.change(path, NodeChange::New(group_document(attributes))),
        }
    }

    /// Creates an array of fill values, and its parent groups.
    ///
    /// # Errors
    /// Returns [`Error::NodeExists`] if an array or group of that name exists.
    pub fn create_array(
        &self,
        path: &str,
        info: &ArrayInfo,
        dims: &[Option<String>],
        attributes: &Map<String, Value>,
    ) -> Result<(), Error> {
        self.create_node(path, array_document(info, dims, attributes))
    }

    /// Creates an array or group from its Zarr document.
    ///
    /// # Errors
    /// Returns [`Error::NodeExists`] if an array or group of that name exists, and
    /// [`Error::InvalidNode`] if a repository does not support the document.
    pub fn create_node(&self, path: &str, document: Value) -> Result<(), Error> {
        if self.document(path)?.is_some() {
            return Err(self.exists(path));
        }
        check_node(path, &document)?;
        self.change(path, NodeChange::New(document))
    }

    /// Creates an array or group from its Zarr document. The commit removes an existing one and
    /// everything below it.
    ///
    /// # Errors
    /// Returns [`Error::InvalidNode`] if a repository does not support the document.
    pub fn replace_node(&self, path: &str, document: Value) -> Result<(), Error> {
        check_node(path, &document)?;
        self.change(path, NodeChange::Replaced(document))
    }

    /// Replaces the attributes of an array or group.
    ///
    /// # Errors
    /// Returns [`Error::NoNode`] if it does not exist.
    pub fn set_attributes(&self, path: &str, attributes: &Map<String, Value>) -> Result<(), Error> {
        let mut document = self.document(path)?.ok_or_else(|| self.no_node(path))?;
        document["attributes"] = Value::Object(attributes.clone());
        self.change(path, NodeChange::Updated(document))
    }

    /// Returns the attributes of an array or group.
    ///
    /// # Errors
    /// Returns [`Error::NoNode`] if it does not exist.
    pub fn attributes(&self, path: &str) -> Result<Map<String, Value>, Error> {
        let document = self.document(path)?.ok_or_else(|| self.no_node(path))?;
        Ok(document["attributes"].as_object().cloned().unwrap_or_default())
    }

    /// Resizes an array. Chunks in both shapes stay, chunks outside of the new shape are removed,
    /// and new elements have the fill value.
    ///
    /// # Errors
    /// Returns [`Error::Rank`] if the array has another number of axes.
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

    /// Removes an array, or a group with everything below it.
    ///
    /// # Errors
    /// Returns [`Error::NoNode`] if it does not exist.
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        self.document(path)?.ok_or_else(|| self.no_node(path))?;
        self.change(path, NodeChange::Removed)
    }

    /// Opens an array for reading and writing.
    ///
    /// # Errors
    /// Returns an error if the array does not exist or has unsupported features.
    pub fn array(&self, path: &str) -> Result<SessionArray, Error> {
        SessionArray::open(&self.store, path)
    }

    /// Returns a ticket with which other processes can write to this session, including the arrays
    /// created so far. A ticket can be opened any number of times.
    ///
    /// # Errors
    /// Returns an error after the commit.
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

    /// Merges the chunks that a fork has written.
    ///
    /// # Errors
    /// Returns [`Error::WrittenTwice`] if a chunk has other contents already, and
    /// [`Error::Foreign`] for the receipts of another session.
    pub fn merge(&self, batch: Batch) -> Result<(), Error> {
        refuse(&self.inner.closed, &self.inner.id)?;
        batch.check(&self.inner.id)?;
        self.merge_receipts(batch.receipts)
    }

    /// Merges receipts, for example those that [`Receipt::object`] returns for the receipts of a
    /// task.
    ///
    /// # Errors
    /// Returns the errors of [`merge`](WritableSession::merge).
    pub fn merge_receipts(&self, receipts: impl IntoIterator<Item = Receipt>) -> Result<(), Error> {
        refuse(&self.inner.closed, &self.inner.id)?;
        self.draft(|d| receipts.into_iter().try_for_each(|r| d.receipts.add(r)))
    }

    /// Returns the number of chunks that were written or merged.
    pub fn n_chunks(&self) -> usize {
        self.draft(|d| d.receipts.len())
    }

    /// Commits all changes as one snapshot on the branch, and returns its id.
    ///
    /// # Errors
    /// Returns the errors of [`commit_with`](WritableSession::commit_with).
    pub fn commit(&self, message: &str) -> Result<String, Error> {
        self.commit_with(message, &CommitOptions::default())
    }

    /// Commits all changes with options, and returns the id of the snapshot.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] if the branch has moved and a rebase is not allowed or not
    /// possible, [`Error::Incomplete`], [`Error::Collected`], or [`Error::NothingToCommit`]. No
    /// change is visible then, and the commit can be retried.
    pub fn commit_with(&self, message: &str, options: &CommitOptions) -> Result<String, Error> {
        self.commit_unless(message, options, &|| false)
    }

    /// Commits all changes, unless cancelled while it waits for other writers.
    pub(crate) fn commit_unless(
        &self,
        message: &str,
        options: &CommitOptions,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<String, Error> {
        // Concurrent writers wait during the commit and are refused after it.
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

    /// Abandons the session, which then accepts no writes and no commit. A later garbage collection
    /// removes the written objects.
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

    /// Returns true if an array or group or one of its parents was created, changed or removed, or
    /// if its chunks were written.
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
            why: "the document describes neither an array nor a group".into(),
        }),
    }
}

impl Ticket {
    /// Opens the session for writing with the credentials of this process. Reads documents of the
    /// base on demand.
    ///
    /// # Errors
    /// Returns an error if the repository cannot be opened, or if another version of the program
    /// created the ticket.
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

    /// Resumes the session itself after the process that started it has ended. Receipts stored
    /// elsewhere can be merged and committed. If the session was committed already, another commit
    /// returns that snapshot.
    ///
    /// # Errors
    /// Returns the errors of [`open`](Ticket::open).
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

    /// Returns the URL of a store that writes to this session, as
    /// [`open_store`](crate::open_store) accepts it.
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
    /// Returns the engine's view: the base with the changes in the ticket and those of this fork.
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

    /// Returns the receipts of all written chunks, for [`WritableSession::merge`].
    pub fn receipts(&self) -> Batch {
        let draft = self.store.draft();
        debug_assert!(draft.is_some(), "broken invariant: a fork keeps its receipts");
        Batch::new(&self.session, draft.map(|d| d.receipts.to_vec()).unwrap_or_default())
    }
}
