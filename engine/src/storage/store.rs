//! The [`Store`] trait: whole objects and ranges of them, by key.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use freestone_kernels::Buffer;

use super::{Lock, StorageError};

/// A range of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// `len` bytes from `offset`.
    At {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// The given number of bytes at the end.
    Last(u64),
}

impl ByteRange {
    /// Returns offset and length of a range, or of the whole object, of an object of `size` bytes.
    ///
    /// # Errors
    /// Returns an error if the range is longer than `limit` or exceeds the object.
    pub fn of(
        range: Option<ByteRange>,
        size: u64,
        limit: u64,
        place: impl Fn() -> String,
    ) -> Result<(u64, u64), StorageError> {
        let truncated = |wanted| StorageError::Truncated { place: place(), wanted };
        let (offset, len) = match range {
            None => (0, size),
            Some(ByteRange::At { offset, len }) => (offset, len),
            Some(ByteRange::Last(len)) => {
                (size.checked_sub(len).ok_or_else(|| truncated(len))?, len)
            }
        };
        if len > limit {
            return Err(StorageError::TooLong { place: place(), len, limit });
        }
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok((offset, len)),
            _ => Err(truncated(offset.saturating_add(len))),
        }
    }
}

/// The cost of reading one part of a cached file, expressed in bytes read.
pub(crate) const PART_BYTES: u64 = 4096;

/// A part of an object and its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectPart {
    /// First byte in the object.
    pub offset: u64,
    /// First byte in the destination.
    pub place: usize,
    /// Number of bytes.
    pub len: usize,
}

/// The result of [`Store::read_parts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartsRead {
    /// All parts were read.
    Done,
    /// The object does not exist.
    Missing,
    /// The object has this length instead of the expected one.
    Length(u64),
}

/// Reads parts of an object one by one.
///
/// # Errors
/// Returns the errors of [`Store::read`].
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

/// Copies parts of an object in memory if the object has `size` bytes.
pub(crate) fn copy_parts_of(
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

/// A store of objects under keys such as `u/c/0/1`. Keys are relative and use `/`.
///
/// Contract, which [`conformance::check`](super::conformance::check) tests:
///
/// - [`write`](Store::write) is atomic: a reader sees the old object, the new object, or none;
/// - a missing object is not an error;
/// - every error names the location;
/// - a store retries its network requests, and then returns [`StorageError::RetriesExhausted`].
///
/// Methods with a default are implemented by the other methods. An adapter over another store
/// forwards all of them, under `deny(clippy::missing_trait_methods)`.
pub trait Store: Send + Sync + fmt::Debug {
    /// Returns the URL of the store, as [`Stores::open`](super::Stores::open) accepts it.
    fn url(&self) -> &str;

    /// Returns true if objects are transferred over a network, whose client buffers them once more.
    fn is_remote(&self) -> bool;

    /// Reads an object or a range of it into `into` and sets its length. Returns false if the
    /// object does not exist.
    ///
    /// `into` has room for `limit` bytes.
    ///
    /// # Errors
    /// Returns an error if the object or range is longer than `limit`, if the range exceeds the
    /// object, or if the store fails.
    fn read(
        &self,
        key: &str,
        range: Option<ByteRange>,
        limit: u64,
        into: &mut Buffer,
    ) -> Result<bool, StorageError>;

    /// Starts a [`read`](Store::read) without waiting for it. Returns `None` if the store does not
    /// support this, or if the read would not block.
    ///
    /// `admit` provides the buffer once the number of bytes is known, before they are received.
    fn begin_read(
        &self,
        _key: &str,
        _range: Option<ByteRange>,
        _limit: u64,
        _admit: Admit,
    ) -> Option<PendingRead> {
        None
    }

    /// Reads parts of an object of `size` bytes directly to their destinations.
    ///
    /// # Errors
    /// Returns an error if the store fails.
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
    /// Returns an error if the store fails. The object is then unchanged.
    fn write(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError>;

    /// Writes a whole object, given as consecutive parts. Stores avoid concatenating the parts in
    /// memory where they can.
    ///
    /// # Errors
    /// Returns the errors of [`write`](Store::write).
    fn write_parts(&self, key: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        match parts {
            [bytes] | [bytes, []] => self.write(key, bytes),
            _ => self.write(key, &parts.concat()),
        }
    }

    /// Starts a [`write`](Store::write) without waiting for it and without copying the bytes.
    /// Returns `None` if the store does not support this, or if the write would not block.
    fn begin_shared_write(&self, _key: &str, _bytes: &SharedBytes) -> Option<PendingWrite> {
        None
    }

    /// Removes an object, or all objects below a prefix that ends in `/`. A missing object is not
    /// an error.
    ///
    /// # Errors
    /// Returns an error if the store fails.
    fn remove(&self, key: &str) -> Result<(), StorageError>;

    /// Lists the names of objects and prefixes directly below a prefix, which is empty or ends in
    /// `/`.
    ///
    /// # Errors
    /// Returns an error if the store fails or does not support listing.
    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError>;

    /// Makes written objects durable: they survive a power failure once this returns.
    ///
    /// # Errors
    /// Returns an error if the store fails.
    fn sync(&self, keys: &mut dyn Iterator<Item = String>) -> Result<(), StorageError>;

    /// Removes the remains of interrupted writes below a prefix that ends in `/`. No write may be
    /// in progress there.
    ///
    /// # Errors
    /// Returns an error if the store fails.
    fn remove_partial_writes(&self, prefix: &str) -> Result<(), StorageError>;

    /// Locks a key for the lifetime of the result, at most until the process ends. Returns `None`
    /// if the key is locked.
    ///
    /// In an object store, the lock is an object at that key which its holder renews every five
    /// seconds. A holder that has not renewed it for 40 seconds loses the lock. A process of the
    /// same machine that has ended loses it at once. Stores without locks return a
    /// [no-op lock](Lock::noop).
    ///
    /// # Errors
    /// Returns an error if the store fails.
    fn lock(&self, key: &str) -> Result<Option<Lock>, StorageError>;

    /// Returns true if a key is locked, as far as the store can tell without waiting or writing.
    ///
    /// # Errors
    /// Returns an error if the store fails.
    fn is_locked(&self, key: &str) -> Result<bool, StorageError>;

    /// Returns the size of an object in bytes, or `None` if the object does not exist or the store
    /// does not report sizes.
    ///
    /// # Errors
    /// Returns an error if the store fails.
    fn size(&self, key: &str) -> Result<Option<u64>, StorageError>;

    /// Returns the time at which an object was written, by the store's clock. If the object does
    /// not exist, returns the time at which its folder changed. Returns `None` if the store does
    /// not report times.
    ///
    /// # Errors
    /// Returns an error if the store fails.
    fn modified(&self, key: &str) -> Result<Option<SystemTime>, StorageError>;

    /// Returns the location of a file that prevents writes below a key, because a folder is needed
    /// there. Does not attempt a write.
    fn blocking_file(&self, key: &str) -> Option<String>;

    /// Returns the location of a key, for messages.
    fn place(&self, key: &str) -> String {
        if key.is_empty() { self.url().to_owned() } else { format!("{}/{key}", self.url()) }
    }
}

/// Provides the buffer of a read in progress, given its number of bytes. Returns `None` to refuse
/// the read, which then transfers nothing more.
pub type Admit = Box<dyn FnOnce(u64) -> Option<Buffer> + Send>;

/// The result of a read in progress.
#[derive(Debug)]
pub enum ReadOutcome {
    /// The buffer with the bytes that were read.
    Found(Buffer),
    /// The object does not exist.
    Missing,
    /// [`Admit`] refused the read. The object must be read again.
    Refused,
}

impl ReadOutcome {
    /// Reads with [`Store::read`] into a buffer that `admit` provides. For stores in memory.
    ///
    /// # Errors
    /// Returns the errors of [`Store::read`].
    pub fn read_now(
        store: &dyn Store,
        key: &str,
        range: Option<ByteRange>,
        limit: u64,
        admit: Admit,
    ) -> Result<ReadOutcome, StorageError> {
        let mut whole = Buffer::zeroed(limit as usize);
        if !store.read(key, range, limit, &mut whole)? {
            return Ok(ReadOutcome::Missing);
        }
        Ok(match admit(whole.len() as u64) {
            Some(mut into) => {
                into.bytes_mut().copy_from_slice(whole.bytes());
                ReadOutcome::Found(into)
            }
            None => ReadOutcome::Refused,
        })
    }
}

/// A read in progress ([`Store::begin_read`]). Dropping it cancels the read.
pub struct PendingRead(Box<dyn FnOnce() -> Result<ReadOutcome, StorageError> + Send>);

impl PendingRead {
    /// Creates a pending read from a function that waits for its result.
    pub fn new(
        wait: impl FnOnce() -> Result<ReadOutcome, StorageError> + Send + 'static,
    ) -> PendingRead {
        PendingRead(Box::new(wait))
    }

    /// Waits for the read.
    ///
    /// # Errors
    /// Returns the errors of [`Store::read`].
    pub fn wait(self) -> Result<ReadOutcome, StorageError> {
        self.0()
    }
}

impl fmt::Debug for PendingRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PendingRead")
    }
}

/// Bytes that a write in progress shares with their owner.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A write in progress ([`Store::begin_shared_write`]). Dropping it cancels the write, whose object
/// may then be the old or the new one.
pub struct PendingWrite(WaitFor);

/// The longest wait of [`PendingWrite::wait`] at a time. Requests have timeouts of their own.
const LONG_WAIT: Duration = Duration::from_secs(60);

/// Waits for a result for at most a given time.
type WaitFor = Box<dyn FnMut(Duration) -> Option<Result<(), StorageError>> + Send>;

impl PendingWrite {
    /// Creates a pending write from a function that waits for its result for at most a given time.
    pub fn new(
        wait: impl FnMut(Duration) -> Option<Result<(), StorageError>> + Send + 'static,
    ) -> PendingWrite {
        PendingWrite(Box::new(wait))
    }

    /// Waits for the write.
    ///
    /// # Errors
    /// Returns the errors of [`Store::write`].
    pub fn wait(mut self) -> Result<(), StorageError> {
        loop {
            if let Some(result) = self.wait_for(LONG_WAIT) {
                return result;
            }
        }
    }

    /// Waits for the write for at most `time`. Returns its result once, and `None` if it has not
    /// ended.
    pub fn wait_for(&mut self, time: Duration) -> Option<Result<(), StorageError>> {
        self.0(time)
    }
}

impl fmt::Debug for PendingWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PendingWrite")
    }
}

/// The size of the first request of [`read_small`]. Metadata is rarely larger; a larger object
/// takes a second request.
const SMALL_BYTES: u64 = 16_384;

/// Reads a whole object of at most `limit` bytes.
///
/// # Errors
/// Returns the errors of [`Store::read`].
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
