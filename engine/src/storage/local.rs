//! A store in a directory.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use freestone_kernels::Buffer;

use super::lock::LockKind;
use super::{ByteRange, Lock, ObjectPart, PartsRead, StorageError, Store};

/// A store of files below a directory, which the first write creates.
///
/// A write creates a file with a unique name beside its target and renames it. Readers thus never
/// see a partial object, and retries and concurrent writes of the same object are harmless. Nothing
/// is flushed to the disk before [`Store::sync`].
#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
    url: String,
}

/// The number of files up to which [`Store::sync`] flushes each file. Above it, one flush of the
/// whole file system is cheaper, if the operating system supports it.
const SYNC_ONE_BY_ONE: usize = 256;

static NEXT_NAME: AtomicU64 = AtomicU64::new(0);

impl LocalStore {
    /// Creates the store of a directory, which need not exist.
    pub fn new(root: impl AsRef<Path>) -> LocalStore {
        let root = resolved(root.as_ref());
        LocalStore { url: root.to_string_lossy().trim_end_matches('/').to_owned(), root }
    }

    fn path(&self, key: &str) -> PathBuf {
        if key.is_empty() { self.root.clone() } else { self.root.join(key) }
    }

    fn failed(
        &self,
        key: &str,
        action: &'static str,
    ) -> impl FnOnce(std::io::Error) -> StorageError {
        let place = self.place(key);
        move |error| StorageError::io(place, action, &error)
    }
}

/// Resolves links and `..` in a path as far as it exists, so that equal locations have equal paths.
pub(super) fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut known = PathBuf::new();
    for component in absolute.components() {
        match component {
            Component::ParentDir => {
                known.pop();
            }
            other => known.push(other),
        }
        if let Ok(real) = known.canonicalize() {
            known = real;
        }
    }
    known
}

/// Returns true for the names of files that are being written.
fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".part")
}

impl Store for LocalStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn is_remote(&self) -> bool {
        false
    }

    fn read(
        &self,
        key: &str,
        range: Option<ByteRange>,
        limit: u64,
        into: &mut Buffer,
    ) -> Result<bool, StorageError> {
        let mut file = match File::open(self.path(key)) {
            Ok(file) => file,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(false);
            }
            Err(e) => return Err(self.failed(key, "read")(e)),
        };
        let metadata = file.metadata().map_err(self.failed(key, "read"))?;
        if metadata.is_dir() {
            return Ok(false);
        }
        let (offset, len) = ByteRange::of(range, metadata.len(), limit, || self.place(key))?;
        if offset > 0 {
            file.seek(SeekFrom::Start(offset)).map_err(self.failed(key, "read"))?;
        }
        into.set_len(len as usize);
        file.read_exact(into.bytes_mut()).map_err(self.failed(key, "read"))?;
        Ok(true)
    }

    fn read_parts(
        &self,
        key: &str,
        size: u64,
        parts: &[ObjectPart],
        into: &mut [u8],
    ) -> Result<PartsRead, StorageError> {
        let file = match File::open(self.path(key)) {
            Ok(file) => file,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(PartsRead::Missing);
            }
            Err(e) => return Err(self.failed(key, "read")(e)),
        };
        let metadata = file.metadata().map_err(self.failed(key, "read"))?;
        if metadata.is_dir() {
            return Ok(PartsRead::Missing);
        }
        if metadata.len() != size {
            return Ok(PartsRead::Length(metadata.len()));
        }
        for part in parts {
            let bytes = &mut into[part.place..part.place + part.len];
            std::os::unix::fs::FileExt::read_exact_at(&file, bytes, part.offset)
                .map_err(self.failed(key, "read"))?;
        }
        Ok(PartsRead::Done)
    }

    fn write(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.write_parts(key, &[bytes])
    }

    fn write_parts(&self, key: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        let target = self.path(key);
        let mut name = OsString::from(".");
        name.push(target.file_name().unwrap_or_default());
        name.push(format!(
            ".{}-{}.part",
            std::process::id(),
            NEXT_NAME.fetch_add(1, Ordering::Relaxed)
        ));
        let temporary = target.with_file_name(name);
        let mut file = match File::create_new(&temporary) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(target.parent().unwrap_or(&self.root))
                    .map_err(self.failed(key, "write"))?;
                File::create_new(&temporary)
            }
            other => other,
        }
        .map_err(self.failed(key, "write"))?;
        let written = parts.iter().try_for_each(|part| file.write_all(part)).and_then(|()| {
            drop(file);
            fs::rename(&temporary, &target)
        });
        written.map_err(|e| {
            let _ = fs::remove_file(&temporary);
            self.failed(key, "write")(e)
        })
    }

    fn remove(&self, key: &str) -> Result<(), StorageError> {
        let removed = match key.strip_suffix('/') {
            Some(prefix) => fs::remove_dir_all(self.path(prefix)),
            None => fs::remove_file(self.path(key)),
        };
        match removed {
            Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Err(self.failed(key, "remove")(e))
            }
            _ => Ok(()),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        let entries = match fs::read_dir(self.path(prefix.trim_end_matches('/'))) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            other => other.map_err(self.failed(prefix, "list"))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry
                .map_err(self.failed(prefix, "list"))?
                .file_name()
                .to_string_lossy()
                .into_owned();
            if !is_temporary(&name) {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn remove_partial_writes(&self, prefix: &str) -> Result<(), StorageError> {
        let mut folders = vec![self.path(prefix.trim_end_matches('/'))];
        while let Some(folder) = folders.pop() {
            let entries = match fs::read_dir(&folder) {
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    continue;
                }
                other => other.map_err(self.failed(prefix, "list"))?,
            };
            for entry in entries {
                let entry = entry.map_err(self.failed(prefix, "list"))?;
                // Links are not followed.
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    folders.push(entry.path());
                } else if is_temporary(&entry.file_name().to_string_lossy()) {
                    fs::remove_file(entry.path()).map_err(self.failed(prefix, "remove"))?;
                }
            }
        }
        Ok(())
    }

    fn lock(&self, key: &str) -> Result<Option<Lock>, StorageError> {
        let path = self.path(key);
        let open = || File::options().create(true).truncate(false).write(true).open(&path);
        let file = match open() {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(path.parent().unwrap_or(&self.root))
                    .map_err(self.failed(key, "lock"))?;
                open()
            }
            other => other,
        };
        let file = file.map_err(self.failed(key, "lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(LockKind::File(file)))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(e)) => Err(self.failed(key, "lock")(e)),
        }
    }

    fn is_locked(&self, key: &str) -> Result<bool, StorageError> {
        let file = match File::open(self.path(key)) {
            Ok(file) => file,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(false);
            }
            Err(e) => return Err(self.failed(key, "inspect")(e)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(fs::TryLockError::WouldBlock) => Ok(true),
            Err(fs::TryLockError::Error(e)) => Err(self.failed(key, "inspect")(e)),
        }
    }

    fn size(&self, key: &str) -> Result<Option<u64>, StorageError> {
        match fs::metadata(self.path(key)) {
            Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(e) => Err(self.failed(key, "inspect")(e)),
        }
    }

    fn modified(&self, key: &str) -> Result<Option<SystemTime>, StorageError> {
        let path = self.path(key);
        let found = path.ancestors().find_map(|p| match fs::metadata(p) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
            other => Some(other),
        });
        let Some(metadata) = found.transpose().map_err(self.failed(key, "inspect"))? else {
            return Ok(None);
        };
        // The change time also detects a copy that preserves the modification time.
        let (seconds, nanoseconds) = (metadata.ctime(), metadata.ctime_nsec());
        Ok(SystemTime::UNIX_EPOCH.checked_add(Duration::new(
            seconds.max(0) as u64,
            nanoseconds.clamp(0, 999_999_999) as u32,
        )))
    }

    fn blocking_file(&self, key: &str) -> Option<String> {
        let path = self.path(key);
        let there = path.ancestors().find(|p| p.exists())?;
        (!there.is_dir()).then(|| there.display().to_string())
    }

    fn sync(&self, keys: &mut dyn Iterator<Item = String>) -> Result<(), StorageError> {
        let first: Vec<String> = (&mut *keys).take(SYNC_ONE_BY_ONE + 1).collect();
        #[cfg(target_os = "linux")]
        if first.len() > SYNC_ONE_BY_ONE {
            let root = match File::open(&self.root) {
                // If all chunks are fill values, no write has created the folder.
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
                other => other.map_err(self.failed("", "flush"))?,
            };
            return rustix::fs::syncfs(&root).map_err(|e| self.failed("", "flush")(e.into()));
        }
        let mut folders = std::collections::BTreeSet::new();
        // Without a flush of the whole file system, the remaining keys follow.
        for key in first.into_iter().chain(keys) {
            let path = self.path(&key);
            match File::open(&path).and_then(|f| f.sync_all()) {
                // Chunks of fill values are not stored.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                other => other.map_err(self.failed(&key, "flush"))?,
            }
            folders.extend(path.parent().map(Path::to_owned));
        }
        // A rename survives a power failure only if the folder is flushed too.
        for folder in folders {
            File::open(&folder).and_then(|f| f.sync_all()).map_err(self.failed("", "flush"))?;
        }
        Ok(())
    }
}
