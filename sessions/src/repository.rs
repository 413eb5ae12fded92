//! An Icechunk repository: branches, tags, history, and sessions over them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use freestone_engine::storage::{Store, Stores};
use futures_util::TryStreamExt;
use icechunk::format::SnapshotId;
use icechunk::format::format_constants::SpecVersionBin;
use icechunk::repository::{RepositoryErrorKind, VersionInfo};
use icechunk::storage::StorageErrorKind;

use crate::backend::{Memory, check_free, config, exists, memory, states, storage};
use crate::commit::LOST_ANSWERS;
use crate::error::Error;
use crate::location::Location;
use crate::lock::Lock;
use crate::objects::Objects;
use crate::record::Records;
use crate::runtime::wait;
use crate::session::{ReadonlySession, WritableSession};
use crate::version::{Format, Snapshot, Version};

/// The branch that every repository has.
pub const MAIN: &str = "main";

/// A versioned store of arrays: in a directory, below a prefix of a bucket, or in memory.
///
/// Clones are cheap and share the repository. Methods block until their requests are finished; they
/// also work on the threads of an asynchronous runtime.
#[derive(Clone, Debug)]
pub struct Repository {
    inner: Arc<Inner>,
    sharing: bool,
}

#[derive(Debug)]
struct Inner {
    location: Location,
    url: String,
    repository: Arc<icechunk::Repository>,
    objects: Objects,
    records: Records,
    /// Keeps a repository in memory alive.
    _memory: Option<Arc<Memory>>,
}

/// The number of polls, and the pause between them, for a repository that another process is
/// creating.
const MAKING_ATTEMPTS: u32 = 250;
const MAKING_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

impl Repository {
    /// Creates a repository at a path, `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` (feature `gcs`),
    /// `az://CONTAINER/PREFIX` (feature `azure`) or `memory://NAME`.
    ///
    /// # Errors
    /// Returns [`Error::Exists`] or [`Error::Occupied`] if the location is not empty, and an error
    /// if storage fails.
    pub fn create(url: &str, format: Format) -> Result<Repository, Error> {
        let location = Location::parse(url)?;
        // Checked before a lock file is created there.
        check_free(&location)?;
        let _lock = Lock::take(&location, &|| false)?;
        let memory = memory(&location, true)?;
        if exists(&location, memory.as_deref())? {
            return Err(Error::Exists { place: location.to_string() });
        }
        check_free(&location)?;
        let (backend, place) = (storage(&location, memory.as_deref())?, location.to_string());
        // This crate's settings are not stored in the repository, because other readers have their
        // own. The directory has been checked already.
        let clean = location.directory().is_none();
        wait(async move {
            let created = icechunk::Repository::create(backend)
                .spec_version(format.spec())
                .check_clean_root(clean)
                .execute()
                .await;
            created.map(drop).map_err(|e| match e.kind {
                // The second kind is a lost race.
                RepositoryErrorKind::ParentDirectoryNotClean
                | RepositoryErrorKind::RepoInfoUpdated => Error::Exists { place },
                kind => failed(&place, "create", kind),
            })
        })?;
        Repository::opened(location, memory)
    }

    /// Creates a repository in the memory of this process. It exists as long as a handle to it.
    ///
    /// # Errors
    /// Returns the errors of [`create`](Repository::create).
    pub fn in_memory() -> Result<Repository, Error> {
        Repository::create(&format!("memory://{}", crate::new_id()), Format::default())
    }

    /// Opens the repository at a path, at a URL that [`create`](Repository::create) accepts, or at
    /// a `memory://NAME` of this process.
    ///
    /// Credentials and endpoints come from the environment (`AWS_…`, `GOOGLE_…`, `AZURE_…`).
    ///
    /// # Errors
    /// Returns [`Error::NoRepository`] if there is none, and an error if storage fails.
    pub fn open(url: &str) -> Result<Repository, Error> {
        let location = Location::parse(url)?;
        let memory = memory(&location, false)?;
        Repository::opened(location, memory)
    }

    /// Opens a repository whose caches are shared by all callers of this function in this process.
    pub(crate) fn open_shared(url: &str) -> Result<Repository, Error> {
        static OPEN: Mutex<Option<HashMap<String, Weak<Inner>>>> = Mutex::new(None);
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let open = open.get_or_insert_default();
        open.retain(|_, inner| inner.strong_count() > 0);
        let place = Location::parse(url)?.to_string();
        if let Some(inner) = open.get(&place).and_then(Weak::upgrade) {
            return Ok(Repository { inner, sharing: true });
        }
        let repository = Repository::open(url)?;
        open.insert(place, Arc::downgrade(&repository.inner));
        Ok(repository)
    }

    /// Opens a repository, or creates it if it does not exist.
    ///
    /// # Errors
    /// Returns the errors of [`open`](Repository::open) and [`create`](Repository::create).
    pub fn open_or_create(url: &str, format: Format) -> Result<Repository, Error> {
        let mut lost = 0;
        for _ in 0..MAKING_ATTEMPTS {
            match Repository::open(url) {
                Err(Error::NoRepository { .. } | Error::NotInProcess { .. }) => {}
                other => return other,
            }
            match Repository::create(url, format) {
                // Another process is creating it.
                Err(Error::Exists { .. }) => std::thread::sleep(MAKING_PAUSE),
                // The repository may or may not have been created.
                Err(e) if e.is_transient() && lost < LOST_ANSWERS => {
                    lost += 1;
                    std::thread::sleep(MAKING_PAUSE * lost);
                }
                other => return other,
            }
        }
        Repository::open(url)
    }

    fn opened(location: Location, memory: Option<Arc<Memory>>) -> Result<Repository, Error> {
        if location.directory().is_some_and(|d| !d.is_dir()) {
            return Err(Error::NoRepository { place: location.to_string() });
        }
        let backend = storage(&location, memory.as_deref())?;
        let (url, place) = (location.to_string(), location.to_string());
        let repository = wait(async move {
            icechunk::Repository::open(backend).config(config()).execute().await.map_err(
                |e| match e.kind {
                    RepositoryErrorKind::RepositoryDoesntExist => Error::NoRepository { place },
                    kind => failed(&place, "open", kind),
                },
            )
        })?;
        let repository = Arc::new(repository);
        let objects = match &location {
            Location::Memory(_) => Objects::Memory(Arc::clone(repository.asset_manager())),
            Location::Local(_) | Location::Bucket { .. } => {
                Objects::Store(Stores::default().open(&url)?)
            }
        };
        let records = Records::new(states(&location, memory.as_deref())?, &location);
        Ok(Repository {
            inner: Arc::new(Inner { location, url, repository, objects, records, _memory: memory }),
            sharing: true,
        })
    }

    /// Enables or disables shared sessions. If disabled, none can be created or joined.
    #[must_use]
    pub fn sharing(mut self, yes: bool) -> Repository {
        self.sharing = yes;
        self
    }

    /// Returns the location, as [`open`](Repository::open) accepts it.
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// Returns the on-disk format.
    pub fn format(&self) -> Format {
        if self.inner.repository.spec_version() == SpecVersionBin::V1 {
            Format::V1
        } else {
            Format::V2
        }
    }

    /// Returns a session that reads one snapshot, independently of later commits.
    ///
    /// # Errors
    /// Returns [`Error::NoVersion`] if the version does not exist.
    pub fn readonly_session(&self, version: &Version) -> Result<ReadonlySession, Error> {
        ReadonlySession::new(self, self.resolve(version)?)
    }

    /// Returns a session that starts at the newest snapshot of a branch and commits to it.
    ///
    /// # Errors
    /// Returns [`Error::NoVersion`] if the branch does not exist.
    pub fn writable_session(&self, branch: &str) -> Result<WritableSession, Error> {
        WritableSession::new(self, branch)
    }

    /// Returns the snapshot id of a version.
    ///
    /// # Errors
    /// Returns [`Error::NoVersion`] if the version does not exist.
    pub fn resolve(&self, version: &Version) -> Result<String, Error> {
        let wanted = self.info_of(version)?;
        let (what, exact) = (version.to_string(), matches!(version, Version::Snapshot(_)));
        let place = self.url().to_owned();
        self.ask("read", move |r| async move {
            let found = if exact {
                // Icechunk resolves snapshot ids without checking that they exist.
                match &wanted {
                    VersionInfo::SnapshotId(id) => r.lookup_snapshot(id).await.map(|s| s.id),
                    other => r.resolve_version(other).await,
                }
            } else {
                r.resolve_version(&wanted).await
            };
            match found {
                Ok(id) => Ok(Ok(id.to_string())),
                Err(e) if is_missing(&e.kind) => Ok(Err(())),
                Err(e) => Err(e.kind),
            }
        })?
        .map_err(|()| Error::NoVersion { place, what })
    }

    /// Returns the names of all branches.
    ///
    /// # Errors
    /// Returns an error if storage fails.
    pub fn branches(&self) -> Result<Vec<String>, Error> {
        self.ask("read", |r| async move {
            r.list_branches().await.map(|b| b.into_iter().collect()).map_err(|e| e.kind)
        })
    }

    /// Returns the names of all tags.
    ///
    /// # Errors
    /// Returns an error if storage fails.
    pub fn tags(&self) -> Result<Vec<String>, Error> {
        self.ask("read", |r| async move {
            r.list_tags().await.map(|t| t.into_iter().collect()).map_err(|e| e.kind)
        })
    }

    /// Creates a branch at a version.
    ///
    /// # Errors
    /// Returns an error if a branch of that name exists or the version does not exist.
    pub fn create_branch(&self, name: &str, at: &Version) -> Result<(), Error> {
        let (name, id) = (named(name)?, self.id(at)?);
        let _lock = self.lock()?;
        self.refuse_if_there(&Version::Branch(name.clone()))?;
        self.ask("create a branch of", move |r| async move {
            r.create_branch(&name, &id).await.map_err(|e| e.kind)
        })
    }

    /// Deletes a branch. The next garbage collection removes snapshots to which no other branch or
    /// tag refers.
    ///
    /// # Errors
    /// Returns an error if the branch does not exist or is `main`.
    pub fn delete_branch(&self, name: &str) -> Result<(), Error> {
        if name == MAIN {
            return Err(Error::InvalidRef { name: name.to_owned() });
        }
        let name = name.to_owned();
        let _lock = self.lock()?;
        self.resolve(&Version::Branch(name.clone()))?;
        self.ask("delete a branch of", move |r| async move {
            r.delete_branch(&name).await.map_err(|e| e.kind)
        })
    }

    /// Creates a tag at a version.
    ///
    /// # Errors
    /// Returns an error if a tag of that name exists or has existed, or if the version does not
    /// exist.
    pub fn create_tag(&self, name: &str, at: &Version) -> Result<(), Error> {
        let (name, id) = (named(name)?, self.id(at)?);
        let _lock = self.lock()?;
        self.refuse_if_there(&Version::Tag(name.clone()))?;
        self.ask("tag", move |r| async move { r.create_tag(&name, &id).await.map_err(|e| e.kind) })
    }

    /// Deletes a tag.
    ///
    /// # Errors
    /// Returns an error if the tag does not exist.
    pub fn delete_tag(&self, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        let _lock = self.lock()?;
        self.resolve(&Version::Tag(name.clone()))?;
        self.ask("delete a tag of", move |r| async move {
            r.delete_tag(&name).await.map_err(|e| e.kind)
        })
    }

    fn refuse_if_there(&self, version: &Version) -> Result<(), Error> {
        match self.resolve(version) {
            Err(Error::NoVersion { .. }) => Ok(()),
            Ok(_) => {
                Err(Error::RefExists { place: self.url().to_owned(), what: version.to_string() })
            }
            Err(e) => Err(e),
        }
    }

    /// Returns a version's snapshots, newest first.
    ///
    /// # Errors
    /// Returns an error if the version does not exist.
    pub fn history(&self, of: &Version) -> Result<Vec<Snapshot>, Error> {
        let id = self.id(of)?;
        self.ask("read", move |r| async move {
            let history = r.ancestry(&VersionInfo::SnapshotId(id)).await.map_err(|e| e.kind)?;
            let snapshot = |s: icechunk::format::snapshot::SnapshotInfo| Snapshot {
                id: s.id.to_string(),
                parent: s.parent_id.map(|p| p.to_string()),
                written_at: s.flushed_at.into(),
                message: s.message,
                properties: s.metadata.into_iter().collect(),
            };
            history
                .map_ok(snapshot)
                .try_collect()
                .await
                .map_err(|e: icechunk::repository::RepositoryError| e.kind)
        })
    }

    pub(crate) fn id(&self, version: &Version) -> Result<SnapshotId, Error> {
        snapshot_id(&self.resolve(version)?)
    }

    fn info_of(&self, version: &Version) -> Result<VersionInfo, Error> {
        Ok(match version {
            Version::Branch(name) => VersionInfo::BranchTipRef(name.clone()),
            Version::Tag(name) => VersionInfo::TagRef(name.clone()),
            Version::Snapshot(id) => {
                VersionInfo::SnapshotId(snapshot_id(id).map_err(|_| self.no_version(version))?)
            }
        })
    }

    fn no_version(&self, version: &Version) -> Error {
        Error::NoVersion { place: self.url().to_owned(), what: version.to_string() }
    }

    /// Runs a request of Icechunk and waits for it.
    pub(crate) fn ask<T, F, A>(&self, action: &'static str, question: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(Arc<icechunk::Repository>) -> A,
        A: Future<Output = Result<T, RepositoryErrorKind>> + Send + 'static,
    {
        let (asked, place) = (question(Arc::clone(&self.inner.repository)), self.inner.url.clone());
        wait(async move { asked.await.map_err(|kind| failed(&place, action, kind)) })
    }

    /// Locks a local repository. Elsewhere no lock is needed, because the store supports
    /// conditional puts.
    pub(crate) fn lock(&self) -> Result<Lock, Error> {
        Lock::take(&self.inner.location, &|| false)
    }

    /// Locks a local repository, unless cancelled while waiting.
    pub(crate) fn lock_unless(&self, is_cancelled: &dyn Fn() -> bool) -> Result<Lock, Error> {
        Lock::take(&self.inner.location, is_cancelled)
    }

    pub(crate) fn directory(&self) -> Option<&std::path::Path> {
        self.inner.location.directory()
    }

    pub(crate) fn icechunk(&self) -> &Arc<icechunk::Repository> {
        &self.inner.repository
    }

    pub(crate) fn objects(&self) -> &Objects {
        &self.inner.objects
    }

    pub(crate) fn records(&self) -> &Records {
        &self.inner.records
    }

    pub(crate) fn is_sharing(&self) -> bool {
        self.sharing
    }

    /// Returns the engine's store of the repository's objects, unless they are in memory.
    pub(crate) fn base_store(&self) -> Option<&Arc<dyn Store>> {
        match &self.inner.objects {
            Objects::Store(store) => Some(store),
            Objects::Memory(_) => None,
        }
    }
}

/// Checks the name of a new branch or tag.
fn named(name: &str) -> Result<String, Error> {
    if name.trim().is_empty() {
        Err(Error::InvalidRef { name: name.to_owned() })
    } else {
        Ok(name.to_owned())
    }
}

pub(crate) fn snapshot_id(id: &str) -> Result<SnapshotId, Error> {
    SnapshotId::try_from(id).map_err(|e| Error::InvalidUrl {
        url: id.to_owned(),
        why: format!("invalid snapshot id: {e}"),
    })
}

/// Converts an error of Icechunk. Only its kind is used, because its trace of spans is for
/// Icechunk's developers.
pub(crate) fn failed(
    place: &str,
    action: &'static str,
    kind: impl std::error::Error + 'static,
) -> Error {
    let (mut message, mut transient) = (kind.to_string(), false);
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&kind);
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        // As in the engine's object stores: the client has retried transient errors, but another
        // worker may still succeed.
        transient |= matches!(error.downcast_ref(), Some(object_store::Error::Generic { .. }));
        cause = error.source();
    }
    Error::Repository { place: place.to_owned(), action, message, transient }
}

fn is_missing(kind: &RepositoryErrorKind) -> bool {
    use icechunk::format::IcechunkFormatErrorKind as F;
    use icechunk::refs::RefErrorKind as R;
    matches!(
        kind,
        RepositoryErrorKind::SnapshotNotFound { .. }
            | RepositoryErrorKind::Ref(R::RefNotFound(_))
            | RepositoryErrorKind::FormatError(
                F::BranchNotFound { .. } | F::TagNotFound { .. } | F::SnapshotIdNotFound { .. }
            )
            | RepositoryErrorKind::StorageError(StorageErrorKind::ObjectNotFound)
    )
}
