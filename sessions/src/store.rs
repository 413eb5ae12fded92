//! The engine's view of a session: a [`Store`] with Zarr's keys.
//!
//! `u/zarr.json` is the document of a node and `u/c/0/1` a chunk, which is read through a reference
//! in a manifest. A missing chunk is a missing object, so that readers use fill values. A session
//! sees its own changes.

mod zarr;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use freestone_engine::kernels::Buffer;
use freestone_engine::storage::{StorageError, Store, join};
use icechunk::format::manifest::{ChunkPayload, ChunkRef};
use icechunk::format::snapshot::NodeSnapshot;
use icechunk::format::{ByteRange as IceRange, ChunkId, ChunkIndices};
use icechunk::repository::VersionInfo;
use icechunk::session::{Session, SessionErrorKind};
use serde_json::Value;

use crate::draft::{Draft, Known, icechunk_path, our_path};
use crate::error::Error;
use crate::location::StoreUrl;
use crate::receipt::{Receipt, Written};
use crate::repository::{Repository, failed, snapshot_id};
use crate::runtime::wait;
use crate::version::Version;

/// A snapshot of a repository with the changes of a session.
#[derive(Debug)]
pub struct SessionStore {
    url: String,
    repository: Repository,
    snapshot: String,
    session: Arc<Session>,
    writes: Option<Writes>,
}

/// The handling of writes.
pub(crate) struct Writes {
    /// The id of the session.
    pub(crate) session: String,
    /// The handling of receipts.
    pub(crate) receipts: Keep,
    /// The changes so far. `None` if only another process knows them; reads are then refused,
    /// because they would return data of the base.
    pub(crate) draft: Option<Arc<Mutex<Draft>>>,
    /// The check before each write.
    pub(crate) gate: Option<Gate>,
}

/// A check that writes are allowed.
pub(crate) type Gate = Arc<dyn Fn() -> Result<(), Error> + Send + Sync>;

/// The handling of receipts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// The draft records them, with the bytes of small chunks.
    Here,
    /// The caller creates them from length and hash. Every chunk is an object.
    Elsewhere,
}

impl fmt::Debug for Writes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writes")
            .field("session", &self.session)
            .field("receipts", &self.receipts)
            .finish_non_exhaustive()
    }
}

/// The location of a chunk's bytes.
enum Found {
    Nowhere,
    Here(Bytes),
    Object {
        id: ChunkId,
        offset: u64,
        len: u64,
    },
    /// In a file outside of the repository.
    Virtual {
        len: u64,
    },
}

/// Opens the store at a URL of this crate, for
/// [`Stores::with_opener`](freestone_engine::storage::Stores::with_opener):
/// `icechunk+REPOSITORY#snapshot=ID`, `#branch=NAME` or `#tag=NAME` for reading, and
/// `#snapshot=ID&session=ID` for writing. For a branch, opens its newest snapshot, which the URL of
/// the store then names.
///
/// A store for writing refuses reads and records no receipts. Its caller creates them with
/// [`Receipt::object`] from the arguments of [`Store::write`]. Credentials come from the
/// environment.
///
/// # Errors
/// Returns an error if the repository or snapshot does not exist.
pub fn open_store(url: &str) -> Result<Arc<dyn Store>, StorageError> {
    let open = || {
        let parsed = StoreUrl::parse(url)?;
        let repository = Repository::open_shared(&parsed.repository)?;
        let writes = parsed.session.map(|session| Writes {
            session,
            receipts: Keep::Elsewhere,
            draft: None,
            gate: None,
        });
        let snapshot = if let Version::Snapshot(id) = parsed.version {
            id
        } else {
            repository.resolve(&parsed.version)?
        };
        SessionStore::new(&repository, snapshot, writes)
    };
    let opened = open().map_err(|e: Error| e.into_storage(url.to_owned(), "open"))?;
    Ok(Arc::new(opened))
}

impl SessionStore {
    pub(crate) fn new(
        repository: &Repository,
        snapshot: String,
        writes: Option<Writes>,
    ) -> Result<SessionStore, Error> {
        let id = snapshot_id(&snapshot)?;
        if writes.is_none() {
            repository.resolve(&Version::Snapshot(snapshot.clone()))?;
        }
        let session = repository.ask("read", |r| async move {
            r.readonly_session(&VersionInfo::SnapshotId(id)).await.map_err(|e| e.kind)
        })?;
        let session_id = writes.as_ref().map(|w| w.session.clone());
        let url = StoreUrl {
            repository: repository.url().to_owned(),
            version: Version::Snapshot(snapshot.clone()),
            session: session_id,
        }
        .to_string();
        Ok(SessionStore {
            url,
            repository: repository.clone(),
            snapshot,
            session: Arc::new(session),
            writes,
        })
    }

    /// Returns the snapshot on which the store is based.
    pub fn snapshot(&self) -> &str {
        &self.snapshot
    }

    pub(crate) fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Returns the same view for the tasks of a plan, whose receipts the driver creates.
    pub(crate) fn for_tasks(&self) -> SessionStore {
        let writes = |w: &Writes| Writes {
            session: w.session.clone(),
            receipts: Keep::Elsewhere,
            draft: w.draft.clone(),
            gate: w.gate.clone(),
        };
        SessionStore {
            url: self.url.clone(),
            repository: self.repository.clone(),
            snapshot: self.snapshot.clone(),
            session: Arc::clone(&self.session),
            writes: self.writes.as_ref().map(writes),
        }
    }

    /// Returns the id of the session that is written.
    pub(crate) fn session_id(&self) -> Result<&str, Error> {
        self.writes.as_ref().map(|w| w.session.as_str()).ok_or(Error::Internal {
            invariant: "a run's outputs are in a session that is written",
        })
    }

    /// Returns the draft of a session whose changes are known to this process.
    pub(crate) fn own_draft(&self) -> Result<MutexGuard<'_, Draft>, Error> {
        self.draft().ok_or(Error::Internal {
            invariant: "a session that takes receipts knows what it has changed",
        })
    }

    pub(crate) fn draft(&self) -> Option<MutexGuard<'_, Draft>> {
        self.writes
            .as_ref()?
            .draft
            .as_ref()
            .map(|d| d.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns [`Error::Unseen`] if the session's changes are not known to this process.
    fn check_seen(&self) -> Result<(), Error> {
        match &self.writes {
            Some(Writes { draft: None, session, .. }) => {
                Err(Error::Unseen { session: session.clone() })
            }
            _ => Ok(()),
        }
    }

    fn failed(
        &self,
        action: &'static str,
    ) -> impl Fn(icechunk::session::SessionError) -> Error + use<> {
        let place = self.url.clone();
        move |e| failed(&place, action, e.kind)
    }

    /// Returns the node in the base.
    fn base_node(&self, path: &str) -> Result<Option<NodeSnapshot>, Error> {
        let (session, at, failed) =
            (Arc::clone(&self.session), icechunk_path(path)?, self.failed("read"));
        wait(async move {
            match session.get_node(&at).await {
                Ok(node) => Ok(Some(node)),
                Err(e) if matches!(e.kind, SessionErrorKind::NodeNotFound { .. }) => Ok(None),
                Err(e) => Err(failed(e)),
            }
        })
    }

    /// Returns a node's document.
    pub(crate) fn document(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        self.check_seen()?;
        if let Some(draft) = self.draft() {
            match draft.node(path) {
                Known::Document(document) => return Ok(Some(document.to_string().into_bytes())),
                Known::Gone => return Ok(None),
                Known::Unchanged => {}
            }
        }
        Ok(self.base_node(path)?.map(|node| node.user_data.to_vec()))
    }

    /// Returns a node's parsed document.
    pub(crate) fn parsed(&self, path: &str) -> Result<Option<Value>, Error> {
        let bad = |e: serde_json::Error| Error::InvalidNode {
            path: path.to_owned(),
            why: format!("invalid JSON: {e}"),
        };
        self.document(path)?.map(|text| serde_json::from_slice(&text).map_err(bad)).transpose()
    }

    fn locate(&self, array: &str, chunk: &[u32]) -> Result<Found, Error> {
        self.check_seen()?;
        if let Some(draft) = self.draft() {
            match draft.receipts.get(array, chunk) {
                Some((Written::Fill, _)) => return Ok(Found::Nowhere),
                Some((Written::Inline { bytes }, _)) => {
                    return Ok(Found::Here(Bytes::copy_from_slice(bytes)));
                }
                Some((Written::Object { id, offset, len }, _)) => {
                    return Ok(Found::Object { id: ChunkId::new(*id), offset: *offset, len: *len });
                }
                None if draft.hides_chunks(array) => return Ok(Found::Nowhere),
                None => {}
            }
        }
        let (session, path, coords, failed) = (
            Arc::clone(&self.session),
            icechunk_path(array)?,
            ChunkIndices(chunk.to_vec()),
            self.failed("read"),
        );
        let payload = wait(async move {
            match session.get_chunk_ref(&path, &coords).await {
                Ok(payload) => Ok(payload),
                Err(e)
                    if matches!(
                        e.kind,
                        SessionErrorKind::NodeNotFound { .. } | SessionErrorKind::NotAnArray { .. }
                    ) =>
                {
                    Ok(None)
                }
                Err(e) => Err(failed(e)),
            }
        })?;
        Ok(match payload {
            None => Found::Nowhere,
            Some(ChunkPayload::Inline(bytes)) => Found::Here(bytes),
            Some(ChunkPayload::Ref(ChunkRef { id, offset, length })) => {
                Found::Object { id, offset, len: length }
            }
            Some(other) => Found::Virtual { len: other.length() },
        })
    }

    /// Reads bytes of a chunk's object, which must exist.
    fn read_object(
        &self,
        key: &str,
        id: &ChunkId,
        offset: u64,
        len: u64,
        into: &mut Buffer,
    ) -> Result<(), StorageError> {
        if self.repository.objects().read(id, offset, len, into)? {
            Ok(())
        } else {
            Err(self.gone(key, id))
        }
    }

    fn gone(&self, key: &str, id: &ChunkId) -> StorageError {
        let message = format!(
            "its object {} is missing (hint: garbage collection may have removed it)",
            crate::objects::key(id)
        );
        StorageError::Io { place: self.place(key), action: "read", message, transient: false }
    }

    /// Reads bytes of a virtual chunk in a file outside of the repository.
    fn read_virtual(
        &self,
        array: &str,
        chunk: Vec<u32>,
        offset: u64,
        len: u64,
    ) -> Result<Bytes, Error> {
        let (session, path, failed) =
            (Arc::clone(&self.session), icechunk_path(array)?, self.failed("read"));
        wait(async move {
            let range = IceRange::bounded(offset, offset + len);
            match session
                .get_chunk_reader(&path, &ChunkIndices(chunk), &range)
                .await
                .map_err(&failed)?
            {
                Some(bytes) => bytes.await.map_err(&failed),
                None => Ok(Bytes::new()),
            }
        })
    }

    /// Checks that writes are allowed.
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        self.writes.as_ref().and_then(|w| w.gate.as_ref()).map_or(Ok(()), |gate| gate())
    }

    fn writes(&self, key: &str) -> Result<&Writes, StorageError> {
        let refused = || StorageError::Denied {
            place: self.place(key),
            action: "write in the read-only session",
        };
        let writes = self.writes.as_ref().ok_or_else(refused)?;
        if let Some(gate) = &writes.gate {
            gate().map_err(|e| e.into_storage(self.place(key), "write"))?;
        }
        Ok(writes)
    }

    /// Returns the names directly below a node.
    fn children(&self, path: &str) -> Result<Vec<String>, Error> {
        let (session, at, failed) =
            (Arc::clone(&self.session), icechunk_path(path)?, self.failed("list"));
        let base: Vec<String> = wait(async move {
            let mut below = Vec::new();
            for node in session.list_nodes(&at).await.map_err(&failed)? {
                below.push(our_path(&node.map_err(&failed)?.path));
            }
            Ok(below)
        })?;
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let child = |p: &str| {
            p.strip_prefix(&prefix)
                .and_then(|p| p.split('/').next())
                .filter(|n| !n.is_empty())
                .map(str::to_owned)
        };
        let mut names: BTreeSet<String> = BTreeSet::new();
        let draft = self.draft();
        for node in base
            .iter()
            .filter(|p| !draft.as_ref().is_some_and(|d| matches!(d.node(p), Known::Gone)))
        {
            names.extend(child(node));
        }
        for (node, change) in draft.iter().flat_map(|d| &d.nodes) {
            names.extend(change.document().and_then(|_| child(node)));
        }
        Ok(names.into_iter().collect())
    }
}

impl SessionStore {
    fn note(&self, receipt: Receipt) -> Result<(), StorageError> {
        let noted = self.draft().map_or(Ok(()), |mut draft| draft.write(receipt));
        noted.map_err(|e| e.into_storage(self.url.clone(), "write"))
    }

    /// Records that a chunk consists of fill values.
    pub(crate) fn note_fill(&self, array: &str, chunk: &[u32]) -> Result<(), Error> {
        self.remove(&join(array, &chunk.iter().fold("c".to_owned(), |key, c| format!("{key}/{c}"))))
            .map_err(Error::from)
    }
}
