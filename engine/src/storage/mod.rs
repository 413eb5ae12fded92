//! Encoded bytes, in and out.
//!
//! Stores move whole objects and ranges of them ([`Store`]: [`LocalStore`], [`MemoryStore`], object
//! stores; [`TieredStore`] over another); [`mod@array`] says how an array's chunks lie in a store;
//! [`codec`] turns encoded bytes into blocks and back, with guards and bounds; [`reader`] does all
//! of it for one chunk.

pub mod array;
#[cfg(feature = "object-stores")]
#[allow(
    clippy::disallowed_methods,
    reason = "credentials expire by the machine's clock, and a command is waited for"
)]
pub mod aws;
mod blosc;
#[cfg(feature = "object-stores")]
mod client;
pub mod codec;
pub mod conformance;
pub(crate) mod consolidated;
mod encoding;
#[cfg(feature = "object-stores")]
mod lease;
#[allow(clippy::disallowed_methods, reason = "its errors name their place")]
mod local;
mod memory;
pub mod metadata;
#[cfg(feature = "object-stores")]
mod object;
pub mod packing;
pub mod reader;
pub(crate) mod shard;
mod tiered;
mod zstd_bound;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use freestone_kernels::Buffer;
use thiserror::Error;

use crate::system::System;

pub use array::{ArrayInfo, Keys, StoredArray};
pub use encoding::{CodecName, Encoding, EncodingError};
pub use local::LocalStore;
pub use memory::{Counts, MemoryStore};
pub use tiered::TieredStore;

/// Why bytes did not move.
#[derive(Clone, Debug, Error)]
#[allow(missing_docs)]
pub enum StorageError {
    #[error(
        "{place} has {len} bytes, but at most {limit} are expected there: the object is damaged or \
            is something else"
    )]
    TooLong { place: String, len: u64, limit: u64 },
    #[error("{place} ends before byte {wanted}: the object is cut short")]
    Truncated { place: String, wanted: u64 },
    #[error("no space is left at {place}: free some, or choose another work_dir or output")]
    NoSpace { place: String },
    #[error("{place} cannot be {action}: permission denied")]
    Denied { place: String, action: &'static str },
    #[error("{place} could not be {action}: {message}")]
    Io { place: String, action: &'static str, message: String, transient: bool },
    #[error(
        "the default work directory `{place}` cannot be trusted: {why} (hint: remove it, or name a \
            directory of your own by FREESTONE_WORK_DIR)"
    )]
    NotPrivate { place: String, why: String },
    #[error("{place} takes nothing from this run: {message}")]
    Refused { place: String, message: String },
    #[error("rate limited by the store at {place}: {message}")]
    Throttled { place: String, message: String },
    /// A request across a network that its client has retried in vain: whoever made it does not
    /// repeat it at once.
    #[error("{place} could not be {action}: {message}")]
    RetriesExhausted { place: String, action: &'static str, message: String, is_throttle: bool },
    #[error(
        "internal error at {place}: broken invariant: {invariant} (hint: this is a defect of \
            Freestone, please report it)"
    )]
    Internal { place: String, invariant: &'static str },
    #[error("`{url}` is no location that can be opened: {why}")]
    InvalidUrl { url: String, why: String },
    #[error(
        "`{0}` names a store in the memory of another process: use a directory or an object store \
            with executors that run processes"
    )]
    NotInProcess(String),
}

impl StorageError {
    /// True if it may pass, other than by asking for less.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            StorageError::Io { transient: true, .. }
                | StorageError::RetriesExhausted { is_throttle: false, .. }
        )
    }

    /// True if the store asks for fewer requests.
    pub fn is_throttle(&self) -> bool {
        matches!(
            self,
            StorageError::Throttled { .. }
                | StorageError::RetriesExhausted { is_throttle: true, .. }
        )
    }

    /// True if trying again may help, and nobody has: requests across a network are retried by
    /// their client.
    pub fn is_retryable(&self) -> bool {
        matches!(self, StorageError::Io { transient: true, .. } | StorageError::Throttled { .. })
    }

    /// A state that cannot happen: a panic in debug builds, else an error that ends the run.
    pub(crate) fn internal(place: String, invariant: &'static str) -> StorageError {
        debug_assert!(false, "broken invariant at {place}: {invariant}");
        StorageError::Internal { place, invariant }
    }

    pub(crate) fn io(place: String, action: &'static str, error: &std::io::Error) -> StorageError {
        use std::io::ErrorKind as K;
        match error.kind() {
            K::StorageFull | K::QuotaExceeded => StorageError::NoSpace { place },
            K::PermissionDenied | K::ReadOnlyFilesystem => StorageError::Denied { place, action },
            kind => StorageError::Io {
                place,
                action,
                message: error.to_string(),
                transient: matches!(
                    kind,
                    K::Interrupted | K::TimedOut | K::WouldBlock | K::ResourceBusy
                ),
            },
        }
    }
}

/// Part of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// `len` bytes from `offset`.
    At {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// The last bytes.
    Last(u64),
}

impl ByteRange {
    /// Offset and length of a range, or of the whole object, of `size` bytes.
    ///
    /// # Errors
    /// Where it is longer than `limit` or reaches beyond the object.
    pub fn of(
        range: Option<ByteRange>,
        size: u64,
        limit: u64,
        place: impl Fn() -> String,
    ) -> Result<(u64, u64), StorageError> {
        let (offset, len) = match range {
            None => (0, size),
            Some(ByteRange::At { offset, len }) => (offset, len),
            Some(ByteRange::Last(len)) => (
                size.checked_sub(len)
                    .ok_or_else(|| StorageError::Truncated { place: place(), wanted: len })?,
                len,
            ),
        };
        if len > limit {
            return Err(StorageError::TooLong { place: place(), len, limit });
        }
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok((offset, len)),
            _ => {
                Err(StorageError::Truncated { place: place(), wanted: offset.saturating_add(len) })
            }
        }
    }
}

/// A part of an object costs as much time as so many bytes more, in a file that the system holds.
pub(crate) const PART_BYTES: u64 = 4096;

/// A part of an object, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectPart {
    /// First byte in the object.
    pub offset: u64,
    /// First byte in what it is read into.
    pub place: usize,
    /// Number of bytes.
    pub len: usize,
}

/// What became of parts that were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartsRead {
    /// They are there.
    Done,
    /// There is no such object.
    Missing,
    /// The object has another length, which is this.
    Length(u64),
}

/// Reads parts of an object one by one.
///
/// # Errors
/// As [`Store::read`].
pub fn read_each<S: Store + ?Sized>(
    store: &S,
    key: &str,
    parts: &[ObjectPart],
    into: &mut [u8],
) -> Result<PartsRead, StorageError> {
    for part in parts {
        let mut buffer = Buffer::zeroed(part.len);
        let range = ByteRange::At { offset: part.offset, len: part.len as u64 };
        if !store.read(key, Some(range), part.len as u64, &mut buffer)? {
            return Ok(PartsRead::Missing);
        }
        into[part.place..part.place + part.len].copy_from_slice(buffer.bytes());
    }
    Ok(PartsRead::Done)
}

/// Copies parts of an object that is in memory, if it has `size` bytes.
pub(crate) fn copy_out(
    object: &[u8],
    size: u64,
    parts: &[ObjectPart],
    into: &mut [u8],
) -> PartsRead {
    if object.len() as u64 != size {
        return PartsRead::Length(object.len() as u64);
    }
    for part in parts {
        into[part.place..part.place + part.len]
            .copy_from_slice(&object[part.offset as usize..][..part.len]);
    }
    PartsRead::Done
}

/// Objects under keys like `u/c/0/1`. Keys are relative, and use `/`.
///
/// Contract: [`write`](Store::write) is atomic (a reader sees the whole object, old or new, or
/// none); a missing object is not an error; every error names the place; requests that cross a
/// network are retried by the store itself, which answers [`StorageError::RetriesExhausted`] in the end. What
/// has a default here is made of the other methods; a store over another one passes all of them on,
/// under `deny(clippy::missing_trait_methods)`.
pub trait Store: Send + Sync + fmt::Debug {
    /// Where it is, as [`Stores::open`] takes it.
    fn url(&self) -> &str;

    /// True if bytes cross a network, which holds them once more while they arrive.
    fn is_remote(&self) -> bool;

    /// Reads an object or a part of it into `into`, sets its length, and returns true; false if
    /// there is no such object.
    ///
    /// `into` has room for `limit` bytes.
    ///
    /// # Errors
    /// Where the object or part is longer than `limit`, a part reaches beyond the object, or the
    /// store fails.
    fn read(
        &self,
        key: &str,
        range: Option<ByteRange>,
        limit: u64,
        into: &mut Buffer,
    ) -> Result<bool, StorageError>;

    /// Begins to read an object or a part of it, as [`read`](Store::read) does, and does not wait
    /// for it. Gives `into` back where the store cannot, or where there is nothing to wait for.
    ///
    /// # Errors
    /// `into`, which is the caller's again.
    fn begin_read(
        &self,
        _key: &str,
        _range: Option<ByteRange>,
        _limit: u64,
        into: Buffer,
    ) -> Result<PendingRead, Buffer> {
        Err(into)
    }

    /// Reads parts of an object of `size` bytes straight to where they belong.
    ///
    /// # Errors
    /// Where the store fails.
    fn read_parts(
        &self,
        key: &str,
        _size: u64,
        parts: &[ObjectPart],
        into: &mut [u8],
    ) -> Result<PartsRead, StorageError> {
        read_each(self, key, parts, into)
    }

    /// Writes a whole object.
    ///
    /// # Errors
    /// Where the store fails; then the object is as before.
    fn write(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError>;

    /// Writes a whole object that is given in parts, one after the other. Stores that can do it
    /// without putting them together first do.
    ///
    /// # Errors
    /// As [`write`](Store::write).
    fn write_parts(&self, key: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        match parts {
            [bytes] | [bytes, []] => self.write(key, bytes),
            _ => self.write(key, &parts.concat()),
        }
    }

    /// Removes an object, or all objects below a prefix that ends in `/`; nothing there is no
    /// error.
    ///
    /// # Errors
    /// Where the store fails.
    fn remove(&self, key: &str) -> Result<(), StorageError>;

    /// The names directly below a prefix (empty, or ending in `/`), objects and prefixes alike.
    ///
    /// # Errors
    /// Where the store fails or cannot list.
    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError>;

    /// Makes objects that were written durable: they survive a power cut once this returns.
    ///
    /// # Errors
    /// Where the store fails.
    fn sync(&self, keys: &mut dyn Iterator<Item = String>) -> Result<(), StorageError>;

    /// Removes what interrupted writes have left below a prefix that ends in `/`, where nobody
    /// writes there any more.
    ///
    /// # Errors
    /// Where the store fails.
    fn remove_partial_writes(&self, prefix: &str) -> Result<(), StorageError>;

    /// Keeps a lock on a key as long as what is returned lives, at most as long as the process;
    /// `None` if somebody else has it. In an object store it is an object of that key that is
    /// written again every five seconds; whoever finds it waits 40 seconds for that, unless its
    /// holder was a process of the same machine that is gone. Stores that have no locks give
    /// [one that means nothing](Lock::noop).
    ///
    /// # Errors
    /// Where the store fails.
    fn lock(&self, key: &str) -> Result<Option<Lock>, StorageError>;

    /// True if somebody has a lock on a key, as far as that is found without waiting and without
    /// writing.
    ///
    /// # Errors
    /// Where the store fails.
    fn is_locked(&self, key: &str) -> Result<bool, StorageError>;

    /// Bytes of an object; `None` if there is no such object, or the store does not tell.
    ///
    /// # Errors
    /// Where the store fails.
    fn size(&self, key: &str) -> Result<Option<u64>, StorageError>;

    /// When an object was written, or its folder changed where it is not there, by the store's
    /// clock; `None` where the store does not tell.
    ///
    /// # Errors
    /// Where the store fails.
    fn modified(&self, key: &str) -> Result<Option<SystemTime>, StorageError>;

    /// What keeps objects from being written below a key, found without trying: the place of a file
    /// where a folder must be.
    fn blocking_file(&self, key: &str) -> Option<String>;

    /// A key in words, for messages.
    fn place(&self, key: &str) -> String {
        if key.is_empty() { self.url().to_owned() } else { format!("{}/{key}", self.url()) }
    }
}

/// A read that is under way ([`Store::begin_read`]). Dropped, it is called off.
pub struct PendingRead(Box<dyn FnOnce() -> Result<(bool, Buffer), StorageError> + Send>);

impl PendingRead {
    /// One that a function waits for: whether the object is there, and the buffer.
    pub fn new(
        wait: impl FnOnce() -> Result<(bool, Buffer), StorageError> + Send + 'static,
    ) -> PendingRead {
        PendingRead(Box::new(wait))
    }

    /// Waits until it has ended: whether the object is there, and the buffer, with its bytes if it
    /// is.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub fn wait(self) -> Result<(bool, Buffer), StorageError> {
        self.0()
    }
}

impl fmt::Debug for PendingRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PendingRead")
    }
}

/// A lock on a key of a store.
#[derive(Debug)]
pub struct Lock(Held);

#[derive(Debug)]
enum Held {
    /// The store has no locks.
    Nothing,
    File(std::fs::File),
    Memory(Names, String),
    #[cfg(feature = "object-stores")]
    Lease(lease::Lease),
}

/// The keys in memory that somebody has a lock on.
type Names = Arc<Mutex<HashSet<String>>>;

impl Lock {
    /// What a store gives that has no locks: it keeps nobody out.
    pub fn noop() -> Lock {
        Lock(Held::Nothing)
    }

    /// True if it keeps nobody out, since the store has no locks.
    pub fn is_noop(&self) -> bool {
        matches!(self.0, Held::Nothing)
    }

    /// True once somebody else has taken it, since this process gave no sign of life: whoever has
    /// it must stop.
    pub fn is_lost(&self) -> bool {
        match &self.0 {
            Held::Nothing | Held::File(_) | Held::Memory(..) => false,
            #[cfg(feature = "object-stores")]
            Held::Lease(lease) => lease.is_lost(),
        }
    }

    /// Finds out whether it is still this process's.
    ///
    /// # Errors
    /// Where the store fails.
    pub fn confirm(&self) -> Result<bool, StorageError> {
        match &self.0 {
            Held::Nothing | Held::File(_) | Held::Memory(..) => Ok(true),
            #[cfg(feature = "object-stores")]
            Held::Lease(lease) => object::confirm(lease),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        match &self.0 {
            // A process that is being started by another thread may have the file for a moment, and
            // the lock with it.
            Held::File(file) => drop(file.unlock()),
            Held::Memory(names, key) => drop(locked(names).remove(key)),
            Held::Nothing => {}
            #[cfg(feature = "object-stores")]
            Held::Lease(_) => {}
        }
    }
}

/// Metadata is rarely larger than this; what is larger costs a second request.
const SMALL_BYTES: u64 = 16_384;

/// Reads an object of at most `limit` bytes whole.
///
/// # Errors
/// As [`Store::read`].
pub fn read_small(
    store: &dyn Store,
    key: &str,
    limit: u64,
) -> Result<Option<Vec<u8>>, StorageError> {
    let mut room = SMALL_BYTES.min(limit);
    loop {
        let mut buffer = Buffer::zeroed(room as usize);
        match store.read(key, None, room, &mut buffer) {
            Ok(found) => return Ok(found.then(|| buffer.bytes().to_vec())),
            Err(StorageError::TooLong { len, .. }) if len > room && len <= limit => room = len,
            Err(StorageError::TooLong { place, len, .. }) => {
                return Err(StorageError::TooLong { place, len, limit });
            }
            Err(e) => return Err(e),
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The stores that a program has opened, by URL. Stores in memory are found only here.
#[derive(Clone, Debug, Default)]
pub struct Stores {
    open: Arc<Mutex<HashMap<String, Arc<Entry>>>>,
    openers: Vec<(&'static str, Opener)>,
    system: System,
}

/// A store that is open, or is being opened: that may take requests, during which only those wait
/// who want the same one.
#[derive(Debug, Default)]
struct Entry {
    store: OnceLock<Arc<dyn Store>>,
    opening: Mutex<()>,
}

impl From<Arc<dyn Store>> for Entry {
    fn from(store: Arc<dyn Store>) -> Entry {
        Entry { store: store.into(), opening: Mutex::default() }
    }
}

/// Opens a store at a URL that the engine does not know.
pub type Opener = fn(&str) -> Result<Arc<dyn Store>, StorageError>;

impl Stores {
    /// With a clock and random numbers of one's own.
    pub fn with_system(system: System) -> Stores {
        Stores { system, ..Stores::default() }
    }

    /// The clock and the random numbers of whoever uses these stores.
    pub fn system(&self) -> &System {
        &self.system
    }

    /// With a way to open what begins with a prefix, such as `icechunk+`.
    #[must_use]
    pub fn with_opener(mut self, prefix: &'static str, opener: Opener) -> Stores {
        self.openers.push((prefix, opener));
        self
    }

    /// Adds a store that was made elsewhere.
    pub fn insert(&self, store: Arc<dyn Store>) {
        locked(&self.open).insert(store.url().to_owned(), Arc::new(store.into()));
    }

    /// The store at a URL, if it was opened or added under that.
    pub fn get(&self, url: &str) -> Option<Arc<dyn Store>> {
        locked(&self.open)
            .get(url.trim_end_matches('/'))
            .and_then(|entry| entry.store.get().cloned())
    }

    /// Takes over all stores of another, but not its ways to open others.
    pub fn extend(&self, other: &Stores) {
        let theirs: Vec<_> =
            locked(&other.open).values().filter_map(|entry| entry.store.get().cloned()).collect();
        theirs.into_iter().for_each(|s| self.insert(s));
    }

    /// The same stores, but with this one at a URL.
    pub fn with(&self, url: &str, store: Arc<dyn Store>) -> Stores {
        let mut open = locked(&self.open).clone();
        open.insert(url.trim_end_matches('/').to_owned(), Arc::new(store.into()));
        Stores { open: Arc::new(Mutex::new(open)), ..self.clone() }
    }

    /// The store at a URL: a path, `file://…`, with the feature `object-stores`
    /// `s3://bucket/prefix` and `http(s)://host/prefix`, with `gcs` `gs://bucket/prefix`, with
    /// `azure` `az://container/prefix`. Nothing is created. Each URL is opened once.
    ///
    /// # Errors
    /// Where the scheme is unknown, or a store in memory is not in this process.
    pub fn open(&self, url: &str) -> Result<Arc<dyn Store>, StorageError> {
        let url = url.trim_end_matches('/');
        let entry = Arc::clone(locked(&self.open).entry(url.to_owned()).or_default());
        let _opening = locked(&entry.opening);
        if let Some(store) = entry.store.get() {
            return Ok(Arc::clone(store));
        }
        let store = self.open_new(url)?;
        Ok(Arc::clone(entry.store.get_or_init(|| store)))
    }

    fn open_new(&self, url: &str) -> Result<Arc<dyn Store>, StorageError> {
        if let Some((_, opener)) = self.openers.iter().find(|(prefix, _)| url.starts_with(prefix)) {
            return opener(url);
        }
        Ok(match url.split_once("://") {
            None => Arc::new(LocalStore::new(url)),
            Some(("file", path)) => Arc::new(LocalStore::new(path)),
            Some(("memory", _)) => return Err(StorageError::NotInProcess(url.to_owned())),
            Some((scheme, _)) => match REMOTE.iter().find(|(known, ..)| *known == scheme) {
                #[cfg(feature = "object-stores")]
                Some((.., true)) => Arc::new(object::ObjectStore::open(url, &self.system)?),
                Some((_, feature, _)) => {
                    let why = format!(
                        "this program was built without the feature `{feature}`: build it with \
                            `--features {feature}`"
                    );
                    return Err(StorageError::InvalidUrl { url: url.to_owned(), why });
                }
                None => {
                    let known: Vec<&str> = REMOTE.iter().map(|(scheme, ..)| *scheme).collect();
                    return Err(StorageError::InvalidUrl {
                        url: url.to_owned(),
                        why: format!("`{scheme}` is not one of file, {}", known.join(", ")),
                    });
                }
            },
        })
    }
}

/// Schemes of stores across a network, the feature that each needs, and whether this build has it.
const REMOTE: [(&str, &str, bool); 5] = [
    ("s3", "object-stores", cfg!(feature = "object-stores")),
    ("http", "object-stores", cfg!(feature = "object-stores")),
    ("https", "object-stores", cfg!(feature = "object-stores")),
    ("gs", "gcs", cfg!(feature = "gcs")),
    ("az", "azure", cfg!(feature = "azure")),
];

/// Splits a location into the store's URL and the name of what lies directly in it, as `a/b.zarr/u`
/// into `a/b.zarr` and `u`. Behind the `#` of a URL that has one, as
/// `icechunk+a/b#branch=main/winds/u`, all after the first `/` is the name.
pub fn split_location(location: &str) -> (String, String) {
    let location = location.trim_end_matches('/');
    if let Some((_, version)) = location
        .split_once('#')
        .filter(|(url, _)| url.split_once(['/', ':']).unwrap_or((url, "")).0.contains('+'))
    {
        let store = location.len() - version.len() + version.find('/').unwrap_or(version.len());
        return (location[..store].into(), location[store..].trim_start_matches('/').into());
    }
    let scheme = location.find("://").map_or(0, |at| at + 3);
    match location[scheme..].rfind('/') {
        Some(0) if scheme == 0 => ("/".into(), location[1..].into()),
        Some(at) => (location[..scheme + at].into(), location[scheme + at + 1..].into()),
        None if scheme > 0 => (location.into(), String::new()),
        None => (".".into(), location.into()),
    }
}

/// Joins parts of a key, leaving out empty ones.
pub fn join(prefix: &str, name: &str) -> String {
    match (prefix.is_empty(), name.is_empty()) {
        (true, _) => name.to_owned(),
        (_, true) => prefix.to_owned(),
        _ => format!("{prefix}/{name}"),
    }
}

/// A location without what says how it is looked at, as `icechunk+` before a repository's.
fn below(url: &str) -> &str {
    url.split_once("://").and_then(|(scheme, _)| scheme.rfind('+')).map_or(url, |at| &url[at + 1..])
}

/// True for what lies in a repository.
pub fn is_in_repository(url: &str) -> bool {
    below(url) != url
}

/// True for locations in the memory of one process.
pub fn is_in_memory(url: &str) -> bool {
    below(url).starts_with("memory://")
}

/// True for locations across a network; a repository over such a location is there too
/// (`icechunk+s3://…`).
pub fn is_remote_url(url: &str) -> bool {
    let url = below(url);
    url.split_once("://")
        .is_some_and(|(scheme, _)| REMOTE.iter().any(|(known, ..)| *known == scheme))
}

/// One name for what lies at a path in the store at a URL, whatever links and dots lead there.
pub fn identity(url: &str, path: &str) -> String {
    let location = join(url.trim_end_matches('/'), path);
    match location.split_once("://") {
        None => local::resolved(location.as_ref()).to_string_lossy().into_owned(),
        Some(("file", path)) => local::resolved(path.as_ref()).to_string_lossy().into_owned(),
        Some(_) => location,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Condvar;

    use super::*;

    #[track_caller]
    fn check(url: &str, feature: &str, built: bool) {
        assert!(is_remote_url(url));
        let opened = Stores::default().open(url);
        match opened {
            Err(error) if !built => {
                assert!(error.to_string().contains(&format!("`--features {feature}`")), "{error}")
            }
            // What the environment lacks is another matter.
            opened => {
                assert!(built && opened.is_ok_and(|s| s.url() == url && s.is_remote()), "{url}")
            }
        }
    }

    #[test]
    fn a_scheme_whose_feature_is_off_names_it() {
        check("s3://bucket/prefix", "object-stores", cfg!(feature = "object-stores"));
        check("http://host/prefix", "object-stores", cfg!(feature = "object-stores"));
        check("gs://bucket/prefix", "gcs", cfg!(feature = "gcs"));
        if cfg!(not(feature = "azure")) {
            // With it, the account's name must be in the environment.
            check("az://container/prefix", "azure", false);
        }
        for url in ["gopher://hole", "gs", "file:///tmp", "/s3://x"] {
            assert!(!is_remote_url(url), "{url}");
        }
        let error = Stores::default().open("gopher://hole").unwrap_err().to_string();
        assert!(error.contains("file, s3, http, https, gs, az"), "{error}");
    }

    #[cfg(feature = "object-stores")]
    #[test]
    fn a_url_without_a_bucket_is_refused() {
        for (scheme, ..) in REMOTE.iter().filter(|(.., built)| *built) {
            let error =
                Stores::default().open(&format!("{scheme}:///prefix")).unwrap_err().to_string();
            assert!(error.contains("no bucket"), "{error}");
        }
    }
    /// A store that is opened by nobody but those who wait for it.
    fn gated(url: &str) -> Result<Arc<dyn Store>, StorageError> {
        static OPENED: Mutex<Vec<String>> = Mutex::new(Vec::new());
        static CHANGED: Condvar = Condvar::new();
        let mut opened = locked(&OPENED);
        assert!(!opened.iter().any(|o| o == url), "{url} is opened once");
        opened.push(url.to_owned());
        CHANGED.notify_all();
        // The first waits until the second is being opened too; the others are opened at once.
        while url.ends_with("first") && !opened.iter().any(|o| o.ends_with("second")) {
            opened = CHANGED.wait(opened).unwrap_or_else(PoisonError::into_inner);
        }
        if url.ends_with("broken") && !opened.iter().any(|o| o == "it was broken") {
            opened.retain(|o| o != url);
            opened.push("it was broken".into());
            return Err(StorageError::NotInProcess(url.to_owned()));
        }
        Ok(Arc::new(MemoryStore::new()))
    }

    #[test]
    fn stores_are_opened_beside_each_other_and_each_once() {
        let stores = Stores::default().with_opener("gate://", gated);
        std::thread::scope(|scope| {
            let first: Vec<_> =
                (0..4).map(|_| scope.spawn(|| stores.open("gate://first").unwrap())).collect();
            // It hangs for ever where one open waits for another.
            let second = stores.open("gate://second").unwrap();
            let first: Vec<_> = first.into_iter().map(|t| t.join().unwrap()).collect();
            assert!(
                first.iter().all(|s| s.url() == first[0].url()) && second.url() != first[0].url()
            );
        });
        assert!(stores.get("gate://third").is_none() && stores.get("gate://second/").is_some());
    }

    #[test]
    fn a_store_that_could_not_be_opened_is_tried_again() {
        let stores = Stores::default().with_opener("gate://", gated);
        assert!(stores.open("gate://broken").is_err() && stores.get("gate://broken").is_none());
        let copy = Stores::default();
        copy.extend(&stores);
        assert!(copy.get("gate://broken").is_none());
        assert!(stores.open("gate://broken").is_ok());
    }
}
