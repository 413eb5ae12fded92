//! A store with injected faults.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use freestone_engine::kernels::Buffer;
use freestone_engine::storage::{ByteRange, ObjectPart, PartsRead, StorageError, Store};

use super::{Fault, Faults, Part};

/// The role of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// The work directory. Its first folder has the run's name, which differs each time and is
    /// ignored by decisions.
    Work,
    Outputs,
    Inputs,
}

/// A store around another one, at its URL, that applies the faults that [`Faults`] decides.
///
/// It keeps the contract of [`Store`], except for [`Fault::Torn`], which leaves a partial object as
/// a crash may where no rename protects it, and the three that no store admits:
/// [`Fault::CorruptWrite`], [`Fault::CorruptRead`], [`Fault::Dropped`].
pub struct FaultStore {
    inner: Arc<dyn Store>,
    holds: Holds,
    faults: Arc<Faults>,
    /// The number of requests for each key.
    tries: Mutex<HashMap<String, u64>>,
    /// Written bytes, and the limit by part.
    full: Vec<(Part, u64)>,
    written: AtomicU64,
    watcher: Option<Watcher>,
}

/// A function called before every request with its action and key, and after a write with the
/// action `wrote`.
type Watcher = Box<dyn Fn(&str, &str) + Send + Sync>;

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultStore")
            .field("inner", &self.inner)
            .field("holds", &self.holds)
            .finish_non_exhaustive()
    }
}

const PARTS: [Part; 5] =
    [Part::Intermediates, Part::Journal, Part::Outputs, Part::Documents, Part::Inputs];

impl FaultStore {
    pub fn new(inner: Arc<dyn Store>, holds: Holds, faults: Arc<Faults>) -> FaultStore {
        let room = |part: &Part| {
            faults.strikes(Fault::NoSpace, *part, "", 0).map(|bits| (*part, 1 << (6 + bits % 10)))
        };
        let full = PARTS.iter().filter_map(room).collect();
        FaultStore {
            inner,
            holds,
            faults,
            tries: Mutex::default(),
            full,
            written: AtomicU64::new(0),
            watcher: None,
        }
    }

    /// Creates a store without faults that reports its requests.
    #[allow(dead_code)] // by the program in `tests/child`
    pub fn watched(
        inner: Arc<dyn Store>,
        holds: Holds,
        watcher: impl Fn(&str, &str) + Send + Sync + 'static,
    ) -> FaultStore {
        FaultStore {
            watcher: Some(Box::new(watcher)),
            ..FaultStore::new(inner, holds, Arc::new(Faults::new(0, Vec::new())))
        }
    }

    fn part(&self, key: &str) -> Part {
        let name = key.rsplit('/').next().unwrap_or(key);
        match self.holds {
            Holds::Inputs => Part::Inputs,
            Holds::Outputs if name.starts_with('.') || name.starts_with('z') || name.is_empty() => {
                Part::Documents
            }
            Holds::Outputs => Part::Outputs,
            // The chunks of an intermediate are in a folder and start with `c`.
            Holds::Work if key.matches('/').count() == 2 && name.starts_with('c') => {
                Part::Intermediates
            }
            Holds::Work => Part::Journal,
        }
    }

    fn request(&self, action: &'static str, key: &str) -> Request<'_> {
        if let Some(watcher) = &self.watcher {
            watcher(action, key);
        }
        let name = if self.holds == Holds::Work {
            key.split_once('/').map_or("", |(_, rest)| rest)
        } else {
            key
        };
        let what = format!("{action} {name}");
        let attempt = {
            let mut tries = self.tries.lock().unwrap();
            let tries = tries.entry(what.clone()).or_default();
            *tries += 1;
            *tries - 1
        };
        Request { store: self, action, key: key.to_owned(), part: self.part(key), what, attempt }
    }
}

/// A request in progress.
struct Request<'a> {
    store: &'a FaultStore,
    action: &'static str,
    key: String,
    part: Part,
    what: String,
    attempt: u64,
}

impl Request<'_> {
    fn strikes(&self, fault: Fault) -> Option<u64> {
        self.store.faults.strikes(fault, self.part, &self.what, self.attempt)
    }

    fn fired(&self, fault: Fault) {
        self.store.faults.fired(fault, self.part, &format!("{} (try {})", self.what, self.attempt));
    }

    fn place(&self) -> String {
        self.store.inner.place(&self.key)
    }

    fn transient(&self, fault: Fault) -> StorageError {
        self.fired(fault);
        StorageError::Io {
            place: self.place(),
            action: self.action,
            message: format!("injected: {fault:?}"),
            transient: true,
        }
    }

    /// Applies the faults that strike before the request.
    fn begin(&self) -> Result<(), StorageError> {
        if let Some(bits) = self.strikes(Fault::Delay) {
            self.fired(Fault::Delay);
            std::thread::sleep(Duration::from_micros(100 + bits % 1500));
        }
        // A denied key stays denied.
        if self.store.faults.strikes(Fault::Denied, self.part, &self.what, 0).is_some() {
            self.fired(Fault::Denied);
            return Err(StorageError::Denied { place: self.place(), action: self.action });
        }
        if self.strikes(Fault::Transient).is_some() {
            return Err(self.transient(Fault::Transient));
        }
        if self.strikes(Fault::Throttled).is_some() {
            self.fired(Fault::Throttled);
            return Err(StorageError::Throttled {
                place: self.place(),
                message: "injected".into(),
            });
        }
        Ok(())
    }

    /// Applies a lost object. Returns true if the object is gone.
    fn drops(&self) -> Result<bool, StorageError> {
        let drops = self.strikes(Fault::Dropped).is_some();
        if drops {
            self.store.inner.remove(&self.key)?;
            self.fired(Fault::Dropped);
        }
        Ok(drops)
    }

    /// Changes a byte.
    fn corrupt(&self, fault: Fault, bytes: &mut [u8]) {
        if let Some(bits) = self.strikes(fault)
            && !bytes.is_empty()
        {
            let at = bits as usize % bytes.len();
            bytes[at] ^= 1 << ((bits >> 32) % 8);
            self.fired(fault);
        }
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for FaultStore {
    forward_store!(inner: url is_remote lock is_locked blocking_file place remove_partial_writes);
    no_read_ahead!();
    no_shared_writes!();

    fn read(
        &self,
        key: &str,
        range: Option<ByteRange>,
        limit: u64,
        into: &mut Buffer,
    ) -> Result<bool, StorageError> {
        let request = self.request("read", key);
        request.begin()?;
        if !self.inner.read(key, range, limit, into)? {
            return Ok(false);
        }
        if request.drops()? {
            return Ok(false);
        }
        request.corrupt(Fault::CorruptRead, into.bytes_mut());
        Ok(true)
    }

    fn read_parts(
        &self,
        key: &str,
        size: u64,
        parts: &[ObjectPart],
        into: &mut [u8],
    ) -> Result<PartsRead, StorageError> {
        let request = self.request("read", key);
        request.begin()?;
        let read = self.inner.read_parts(key, size, parts, into)?;
        if read != PartsRead::Done {
            return Ok(read);
        }
        if request.drops()? {
            return Ok(PartsRead::Missing);
        }
        if let Some(part) = parts.first() {
            request.corrupt(Fault::CorruptRead, &mut into[part.place..part.place + part.len]);
        }
        Ok(read)
    }

    fn write(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        let request = self.request("written", key);
        request.begin()?;
        if let Some((_, room)) = self.full.iter().find(|(part, _)| *part == request.part)
            && self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64
                > *room
        {
            request.fired(Fault::NoSpace);
            return Err(StorageError::NoSpace { place: request.place() });
        }
        if let Some(bits) = request.strikes(Fault::Torn)
            && !bytes.is_empty()
        {
            self.inner.write(key, &bytes[..bits as usize % bytes.len()])?;
            return Err(request.transient(Fault::Torn));
        }
        let mut corrupt = bytes.to_vec();
        request.corrupt(Fault::CorruptWrite, &mut corrupt);
        self.inner.write(key, &corrupt)?;
        if let Some(watcher) = &self.watcher {
            watcher("wrote", key);
        }
        request.drops()?;
        if request.strikes(Fault::LostResponse).is_some() {
            return Err(request.transient(Fault::LostResponse));
        }
        Ok(())
    }

    fn remove(&self, key: &str) -> Result<(), StorageError> {
        let request = self.request("removed", key);
        request.begin()?;
        self.inner.remove(key)?;
        if request.strikes(Fault::LostResponse).is_some() {
            return Err(request.transient(Fault::LostResponse));
        }
        Ok(())
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        self.request("listed", prefix).begin()?;
        self.inner.list(prefix)
    }

    fn sync(&self, keys: &mut dyn Iterator<Item = String>) -> Result<(), StorageError> {
        let request = self.request("flushed", "");
        request.begin()?;
        self.inner.sync(keys)
    }

    fn size(&self, key: &str) -> Result<Option<u64>, StorageError> {
        self.request("measured", key).begin()?;
        self.inner.size(key)
    }

    fn modified(&self, key: &str) -> Result<Option<SystemTime>, StorageError> {
        self.request("looked up", key).begin()?;
        self.inner.modified(key)
    }

    fn write_parts(&self, key: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        self.write(key, &parts.concat())
    }
}

#[cfg(test)]
mod tests {
    use freestone_engine::storage::LocalStore;

    use super::super::Rule;
    use super::*;

    fn over_a_folder(rules: Vec<Rule>) -> (tempfile::TempDir, Arc<Faults>, FaultStore) {
        let folder = tempfile::tempdir().unwrap();
        let faults = Arc::new(Faults::new(1, rules));
        let store = FaultStore::new(
            Arc::new(LocalStore::new(folder.path())),
            Holds::Outputs,
            Arc::clone(&faults),
        );
        (folder, faults, store)
    }

    #[test]
    fn without_faults_the_adapter_conforms() {
        let (_folder, faults, store) = over_a_folder(Vec::new());
        freestone_engine::storage::conformance::check(&store, "x");
        assert!(faults.counts().is_empty());
    }

    /// Checks the object that a faulty write leaves, and the result of the write.
    #[track_caller]
    fn check_write(
        fault: Fault,
        expect: impl Fn(Option<&[u8]>, &Result<(), StorageError>) -> bool,
    ) {
        let (folder, faults, store) =
            over_a_folder(vec![Rule { fault, part: Part::Outputs, rate: 1.0 }]);
        let bytes: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        let said = store.write("c/0", &bytes);
        let there = std::fs::read(folder.path().join("c/0")).ok();
        assert!(
            expect(there.as_deref(), &said),
            "{fault:?}: {} bytes, {said:?}",
            there.map_or(0, |b| b.len())
        );
        assert_eq!(faults.counts(), [((fault, Part::Outputs), 1)].into());
        // Other parts have no faults.
        store.write("zarr.json", &bytes).unwrap();
        assert_eq!(faults.counts().len(), 1);
    }

    #[test]
    fn write_faults_have_their_documented_effect() {
        let bytes: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        let transient =
            |said: &Result<(), StorageError>| said.as_ref().is_err_and(StorageError::is_transient);
        let differ = |there: &[u8]| there.iter().zip(&bytes).filter(|(x, y)| x != y).count();
        check_write(Fault::Delay, |there, said| there == Some(&bytes) && said.is_ok());
        check_write(Fault::Transient, |there, said| there.is_none() && transient(said));
        check_write(Fault::Throttled, |there, said| {
            there.is_none() && matches!(said, Err(StorageError::Throttled { .. }))
        });
        check_write(Fault::LostResponse, |there, said| there == Some(&bytes) && transient(said));
        check_write(Fault::Torn, |there, said| {
            there.is_some_and(|b| b.len() < bytes.len() && bytes.starts_with(b)) && transient(said)
        });
        check_write(Fault::CorruptWrite, |there, said| {
            there.is_some_and(|b| b.len() == bytes.len() && differ(b) == 1) && said.is_ok()
        });
        check_write(Fault::Dropped, |there, said| there.is_none() && said.is_ok());
        check_write(Fault::NoSpace, |there, said| {
            there.is_none() && matches!(said, Err(StorageError::NoSpace { .. }))
        });
        check_write(Fault::Denied, |there, said| {
            there.is_none() && matches!(said, Err(StorageError::Denied { .. }))
        });
    }

    #[test]
    fn corrupt_reads_leave_the_object_intact() {
        let (folder, faults, store) =
            over_a_folder(vec![Rule { fault: Fault::CorruptRead, part: Part::Outputs, rate: 1.0 }]);
        store.write("c/0", &[0; 1000]).unwrap();
        let mut into = Buffer::zeroed(1000);
        assert!(store.read("c/0", None, 1000, &mut into).unwrap());
        assert_eq!(into.bytes().iter().filter(|b| **b != 0).count(), 1);
        let mut into = vec![0; 10];
        assert_eq!(
            store
                .read_parts("c/0", 1000, &[ObjectPart { offset: 5, place: 0, len: 10 }], &mut into)
                .unwrap(),
            PartsRead::Done
        );
        assert_eq!(into.iter().filter(|b| **b != 0).count(), 1);
        assert_eq!(std::fs::read(folder.path().join("c/0")).unwrap(), [0; 1000]);
        assert_eq!(faults.counts()[&(Fault::CorruptRead, Part::Outputs)], 2);
    }
}
