//! Object stores: S3 and compatible services, plain HTTP servers, and with features Google Cloud
//! Storage and Azure Blob Storage.
//!
//! The engine is synchronous. Requests run on a small runtime of their own, and callers wait on a
//! channel. This works on any thread, including the threads of a user's runtime.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;
use freestone_kernels::Buffer;
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectStore as Backend, ObjectStoreExt, PutPayload,
};
use tokio::runtime::Runtime;

use super::aws::{self, NoCredentials};
use super::client::{Connector, Failure, RequestFailed, retry_config};
use super::lease::{self, Lease};
use super::lock::LockKind;
use super::{
    Admit, ByteRange, Lock, PendingRead, PendingWrite, ReadOutcome, SharedBytes, StorageError,
    Store,
};
use crate::retry::Retry;
use crate::system::System;

/// The objects below a prefix of a bucket or server.
#[derive(Debug)]
pub(super) struct ObjectStore {
    url: String,
    prefix: String,
    backend: Arc<dyn Backend>,
    system: System,
}

/// The number of threads that wait for sockets. They perform no computation.
const IO_THREADS: usize = 2;

fn runtime() -> Result<&'static Runtime, StorageError> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(IO_THREADS)
            .thread_name("freestone-io")
            .enable_all()
            .build()
            .map_err(|e| e.to_string())
    });
    made.as_ref().map_err(|message| StorageError::Io {
        place: "the I/O runtime".into(),
        action: "start",
        message: message.clone(),
        transient: false,
    })
}

impl ObjectStore {
    /// Opens a store with credentials, region and endpoint from the environment (`AWS_…`,
    /// `GOOGLE_…`, `AZURE_…`). AWS credentials may also come from a profile.
    pub(super) fn open(url: &str, system: &System) -> Result<ObjectStore, StorageError> {
        ObjectStore::open_with(url, system, Retry::REQUESTS)
    }

    pub(super) fn open_with(
        url: &str,
        system: &System,
        retry: Retry,
    ) -> Result<ObjectStore, StorageError> {
        let bad = |why: String| StorageError::InvalidUrl { url: url.to_owned(), why };
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| bad("expected a URL with a scheme".into()))?;
        let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() {
            return Err(bad("missing bucket or host name".into()));
        }
        let connector = Connector::new(retry, system.clone());
        let backend: Arc<dyn Backend> = match scheme {
            "s3" => Arc::new(
                aws::bucket_with(host, connector)
                    .and_then(AmazonS3Builder::build)
                    .map_err(|e| bad(e.to_string()))?,
            ),
            #[cfg(feature = "gcs")]
            "gs" => Arc::new(
                super::clouds::google_bucket_with(host, connector)
                    .build()
                    .map_err(|e| bad(e.to_string()))?,
            ),
            #[cfg(feature = "azure")]
            "az" => Arc::new(
                super::clouds::azure_container_with(host, connector)
                    .build()
                    .map_err(|e| bad(e.to_string()))?,
            ),
            _ => {
                let options = ClientOptions::new().with_allow_http(scheme == "http");
                Arc::new(
                    HttpBuilder::new()
                        .with_retry(retry_config(&retry))
                        .with_http_connector(connector)
                        .with_url(format!("{scheme}://{host}"))
                        .with_client_options(options)
                        .build()
                        .map_err(|e| bad(e.to_string()))?,
                )
            }
        };
        Ok(ObjectStore::over(url, prefix, backend, system))
    }

    pub(super) fn over(
        url: &str,
        prefix: &str,
        backend: Arc<dyn Backend>,
        system: &System,
    ) -> ObjectStore {
        ObjectStore {
            url: url.to_owned(),
            prefix: prefix.to_owned(),
            backend,
            system: system.clone(),
        }
    }

    #[cfg(test)]
    pub(super) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    fn path(&self, key: &str) -> Result<Path, StorageError> {
        Path::parse(super::join(&self.prefix, key))
            .map_err(|e| StorageError::InvalidUrl { url: self.place(key), why: e.to_string() })
    }

    /// Starts a read.
    fn pending(
        &self,
        runtime: &Runtime,
        place: String,
        path: Path,
        (range, limit): (Option<ByteRange>, u64),
        admit: Admit,
    ) -> PendingRead {
        let backend = Arc::clone(&self.backend);
        let begun =
            begin(runtime, async move { fetch(&*backend, &path, (range, limit), admit).await });
        PendingRead::new(move || match outcome(place.clone(), "read", begun.result())? {
            None => Ok(ReadOutcome::Missing),
            Some(Fetched::TooLong(len)) => Err(StorageError::TooLong { place, len, limit }),
            Some(Fetched::Refused) => Ok(ReadOutcome::Refused),
            Some(Fetched::Read(buffer)) => match range {
                Some(ByteRange::At { len, .. } | ByteRange::Last(len))
                    if (buffer.len() as u64) < len =>
                {
                    Err(StorageError::Truncated { place, wanted: len })
                }
                _ => Ok(ReadOutcome::Found(buffer)),
            },
        })
    }

    /// Runs a request on the runtime and waits for it.
    fn wait<T: Send + 'static>(
        &self,
        key: &str,
        action: &'static str,
        request: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<Option<T>, StorageError> {
        outcome(self.place(key), action, begin(runtime()?, request).result())
    }
}

/// Renews a lease and returns whether this process still holds it.
pub(super) fn confirm(lease: &Lease) -> Result<bool, StorageError> {
    let confirmed =
        outcome("the run's lock".to_owned(), "renew", begin(runtime()?, lease.confirm()).result());
    confirmed.map(|ours| ours.unwrap_or(false))
}

/// A request that runs on the runtime. Dropping it cancels the request.
struct Begun<T> {
    answer: mpsc::Receiver<object_store::Result<T>>,
    task: tokio::task::AbortHandle,
}

fn begin<T: Send + 'static>(
    runtime: &Runtime,
    request: impl Future<Output = object_store::Result<T>> + Send + 'static,
) -> Begun<T> {
    let (send, answer) = mpsc::sync_channel(1);
    let task = runtime.spawn(async move {
        let _ = send.send(request.await);
    });
    Begun { answer, task: task.abort_handle() }
}

impl<T> Begun<T> {
    /// Waits for the result. Returns `None` if the request was cancelled.
    fn result(self) -> Option<object_store::Result<T>> {
        self.answer.recv().ok()
    }
}

impl<T> Drop for Begun<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Converts a request's result. Returns `None` if the object does not exist.
fn outcome<T>(
    place: String,
    action: &'static str,
    result: Option<object_store::Result<T>>,
) -> Result<Option<T>, StorageError> {
    match result {
        None => Err(StorageError::Io {
            place,
            action,
            message: "the request was cancelled".into(),
            transient: true,
        }),
        Some(Ok(value)) => Ok(Some(value)),
        Some(Err(object_store::Error::NotFound { .. })) => Ok(None),
        Some(Err(
            object_store::Error::PermissionDenied { .. }
            | object_store::Error::Unauthenticated { .. },
        )) => Err(StorageError::Denied { place, action }),
        Some(Err(object_store::Error::Generic { source, .. })) if source.is::<NoCredentials>() => {
            Err(StorageError::Io { place, action, message: source.to_string(), transient: false })
        }
        Some(Err(e)) => {
            let (message, failure) =
                (e.to_string(), RequestFailed::of(&e).map(|failed| failed.kind));
            match failure {
                Some(Failure::Unsupported) => {
                    Err(StorageError::Io { place, action, message, transient: false })
                }
                // Other generic failures may pass later, or on another worker.
                None if !matches!(e, object_store::Error::Generic { .. }) => {
                    Err(StorageError::Io { place, action, message, transient: false })
                }
                kind => Err(StorageError::RetriesExhausted {
                    place,
                    action,
                    message,
                    is_throttle: kind == Some(Failure::Throttle),
                }),
            }
        }
    }
}

/// Converts the result of a put.
fn written(place: String, result: Option<object_store::Result<()>>) -> Result<(), StorageError> {
    outcome(place.clone(), "write", result)?.ok_or_else(|| StorageError::Io {
        place,
        action: "write",
        message: "the bucket does not exist".into(),
        transient: false,
    })
}

/// Shared bytes as the owner of a payload.
struct Owned(SharedBytes);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

/// The result of [`fetch`].
enum Fetched {
    Read(Buffer),
    /// The object or range has this length, which exceeds the limit.
    TooLong(u64),
    Refused,
}

/// Reads an object or a range of it, piece by piece, into the buffer that `admit` provides.
async fn fetch(
    backend: &dyn Backend,
    path: &Path,
    (range, limit): (Option<ByteRange>, u64),
    admit: Admit,
) -> object_store::Result<Fetched> {
    let range = range.map(|r| match r {
        ByteRange::At { offset, len } => GetRange::Bounded(offset..offset.saturating_add(len)),
        ByteRange::Last(len) => GetRange::Suffix(len),
    });
    let options = |range| GetOptions { range, ..GetOptions::default() };
    let found = match (backend.get_opts(path, options(range.clone())).await, range) {
        // Azure has no such ranges.
        (Err(object_store::Error::NotSupported { .. }), Some(GetRange::Suffix(len))) => {
            let meta = backend.head(path).await?;
            let range = GetRange::Bounded(meta.size.saturating_sub(len)..meta.size);
            let range = (meta.size > 0).then_some(range);
            backend.get_opts(path, GetOptions { if_match: meta.e_tag, ..options(range) }).await?
        }
        (found, _) => found?,
    };
    let len = found.range.end - found.range.start;
    // The length is known before the body is fetched, so memory use stays within the limit.
    if len > limit {
        return Ok(Fetched::TooLong(len));
    }
    let Some(mut into) = admit(len) else { return Ok(Fetched::Refused) };
    into.set_len(len as usize);
    let (mut pieces, mut end) = (found.into_stream(), 0);
    while let Some(piece) = pieces.try_next().await? {
        match into.bytes_mut().get_mut(end..end + piece.len()) {
            Some(place) => place.copy_from_slice(&piece),
            None => return Ok(Fetched::TooLong((end + piece.len()) as u64)),
        }
        end += piece.len();
    }
    into.set_len(end);
    Ok(Fetched::Read(into))
}

/// Deletes all objects below a path, as pages of one recursive listing arrive. The backend bounds
/// the number of deletions in flight; S3 and Azure delete many objects with one request.
async fn delete_below(backend: &dyn Backend, path: &Path) -> object_store::Result<()> {
    let below = backend.list(Some(path)).map_ok(|found| found.location).boxed();
    let mut deleted = backend.delete_stream(below);
    while let Some(result) = deleted.next().await {
        match result {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

impl Store for ObjectStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn read(
        &self,
        key: &str,
        range: Option<ByteRange>,
        limit: u64,
        into: &mut Buffer,
    ) -> Result<bool, StorageError> {
        // The request owns the buffer while it fills it, so that the bytes are in memory only once.
        let (path, buffer) = (self.path(key)?, std::mem::replace(into, Buffer::zeroed(0)));
        let admit = Box::new(move |_| Some(buffer));
        match self.pending(runtime()?, self.place(key), path, (range, limit), admit).wait()? {
            ReadOutcome::Found(buffer) => {
                *into = buffer;
                Ok(true)
            }
            ReadOutcome::Missing => Ok(false),
            ReadOutcome::Refused => {
                Err(StorageError::internal(self.place(key), "a read on demand is admitted"))
            }
        }
    }

    fn begin_read(
        &self,
        key: &str,
        range: Option<ByteRange>,
        limit: u64,
        admit: Admit,
    ) -> Option<PendingRead> {
        // An invalid path is reported by `read`.
        let (path, runtime) = (self.path(key).ok()?, runtime().ok()?);
        Some(self.pending(runtime, self.place(key), path, (range, limit), admit))
    }

    fn write(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.write_parts(key, &[bytes])
    }

    fn write_parts(&self, key: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        let (backend, path, payload) =
            (Arc::clone(&self.backend), self.path(key)?, PutPayload::from(parts.concat()));
        let put = async move { backend.put(&path, payload).await.map(drop) };
        written(self.place(key), begin(runtime()?, put).result())
    }

    fn begin_shared_write(&self, key: &str, bytes: &SharedBytes) -> Option<PendingWrite> {
        // An invalid path is reported by `write`.
        let (path, runtime) = (self.path(key).ok()?, runtime().ok()?);
        let (backend, place) = (Arc::clone(&self.backend), self.place(key));
        let payload = PutPayload::from(Bytes::from_owner(Owned(Arc::clone(bytes))));
        let begun = begin(runtime, async move { backend.put(&path, payload).await.map(drop) });
        Some(PendingWrite::new(move |time| match begun.answer.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => None,
            answer => Some(written(place.clone(), answer.ok())),
        }))
    }

    fn remove(&self, key: &str) -> Result<(), StorageError> {
        let (backend, path) =
            (Arc::clone(&self.backend), self.path(key.strip_suffix('/').unwrap_or(key))?);
        let removed = if key.ends_with('/') {
            self.wait(key, "remove", async move { delete_below(&*backend, &path).await })
        } else {
            self.wait(key, "remove", async move { backend.delete(&path).await })
        };
        removed.map(drop)
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        let (backend, path) = (Arc::clone(&self.backend), self.path(prefix.trim_end_matches('/'))?);
        let found = self
            .wait(prefix, "list", async move { backend.list_with_delimiter(Some(&path)).await })?;
        let mut names: Vec<String> = Vec::new();
        if let Some(found) = found {
            let all = found.objects.iter().map(|o| &o.location).chain(&found.common_prefixes);
            names.extend(all.filter_map(|p| p.filename().map(str::to_owned)));
        }
        names.sort_unstable();
        Ok(names)
    }

    fn lock(&self, key: &str) -> Result<Option<Lock>, StorageError> {
        let (backend, path, system) =
            (Arc::clone(&self.backend), self.path(key)?, self.system.clone());
        let taken = async move {
            match Lease::take(backend, path, system).await {
                Ok(taken) => Ok(taken.map(|lease| Lock(LockKind::Lease(lease)))),
                // The store does not support conditional puts.
                Err(
                    object_store::Error::NotImplemented { .. }
                    | object_store::Error::NotSupported { .. },
                ) => Ok(Some(Lock::noop())),
                Err(e) => Err(e),
            }
        };
        let no_bucket = || StorageError::Io {
            place: self.place(key),
            action: "lock",
            message: "the bucket does not exist".into(),
            transient: false,
        };
        self.wait(key, "lock", taken)?.ok_or_else(no_bucket)
    }

    fn is_locked(&self, key: &str) -> Result<bool, StorageError> {
        let (backend, path, system) =
            (Arc::clone(&self.backend), self.path(key)?, self.system.clone());
        Ok(self.wait(key, "inspect", lease::is_held(backend, path, system))?.unwrap_or(false))
    }

    fn size(&self, key: &str) -> Result<Option<u64>, StorageError> {
        let (backend, path) = (Arc::clone(&self.backend), self.path(key)?);
        Ok(self
            .wait(key, "inspect", async move { backend.head(&path).await })?
            .map(|meta| meta.size))
    }

    fn modified(&self, key: &str) -> Result<Option<SystemTime>, StorageError> {
        let (backend, path) = (Arc::clone(&self.backend), self.path(key)?);
        let found = self.wait(key, "inspect", async move { backend.head(&path).await })?;
        Ok(found.map(|meta| meta.last_modified.into()))
    }

    fn sync(&self, _keys: &mut dyn Iterator<Item = String>) -> Result<(), StorageError> {
        // An acknowledged put is durable.
        Ok(())
    }

    fn remove_partial_writes(&self, _prefix: &str) -> Result<(), StorageError> {
        // An interrupted put leaves nothing.
        Ok(())
    }

    fn blocking_file(&self, _key: &str) -> Option<String> {
        // Object stores have no folders.
        None
    }
}
