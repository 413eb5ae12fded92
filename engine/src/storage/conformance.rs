//! The conformance suite of stores.

use std::sync::Arc;

use freestone_kernels::Buffer;

use super::{
    Admit, ByteRange, ObjectPart, PartsRead, PendingRead, ReadOutcome, SharedBytes, StorageError,
    Store, read_small,
};

/// Checks that a store, which is empty below `prefix`, fulfils the contract of [`Store`].
///
/// # Panics
/// Panics with a description of the first violation.
#[allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]
pub fn check(store: &dyn Store, prefix: &str) {
    check_objects(store, prefix);
    check_parts(store, prefix);
    check_locks(store, prefix);
    check_atomic_writes(store, prefix);
}

fn test_bytes() -> Vec<u8> {
    (0..100_000u32).map(|i| (i % 251) as u8).collect()
}

#[allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]
fn check_objects(store: &dyn Store, prefix: &str) {
    let key = |name: &str| format!("{prefix}/{name}");
    let whole = |name: &str| read_small(store, &key(name), 1_000_000).unwrap();
    let part = |name: &str, range: ByteRange, limit: u64| {
        let mut buffer = Buffer::zeroed(limit as usize);
        store
            .read(&key(name), Some(range), limit, &mut buffer)
            .map(|found| found.then(|| buffer.bytes().to_vec()))
    };
    let bytes = test_bytes();

    assert_eq!(whole("a"), None, "a missing object is not found");
    assert_eq!(part("a", ByteRange::Last(4), 4).unwrap(), None, "nor is a range of it");
    store.remove(&key("a")).expect("removing a missing object is not an error");
    store.remove(&key("a/")).expect("nor is removing an empty prefix");

    store.write(&key("a"), &bytes).unwrap();
    store.write(&key("b/c/0/1"), b"").unwrap();
    store.write(&key("b/c/0/2"), b"two").unwrap();
    assert_eq!(whole("a").as_deref(), Some(bytes.as_slice()));
    assert_eq!(whole("b/c/0/1").as_deref(), Some(b"".as_slice()), "an empty object exists");
    assert_eq!(whole("b"), None, "a prefix is not an object");
    assert_eq!(part("a", ByteRange::At { offset: 7, len: 5 }, 5).unwrap().unwrap(), bytes[7..12]);
    assert_eq!(part("a", ByteRange::Last(9), 20).unwrap().unwrap(), bytes[bytes.len() - 9..]);

    assert!(
        matches!(
            part("a", ByteRange::At { offset: 0, len: 50 }, 49),
            Err(StorageError::TooLong { .. })
        ),
        "the limit applies to ranges"
    );
    assert!(matches!(
        store.read(&key("a"), None, 10, &mut Buffer::zeroed(10)),
        Err(StorageError::TooLong { len: 100_000, limit: 10, .. })
    ));
    for (offset, len) in [(99_990, 20), (100_000, 1), (u64::MAX - 1, 5)] {
        let beyond = part("a", ByteRange::At { offset, len }, 100);
        assert!(
            beyond.is_err(),
            "a range of {len} bytes from {offset} exceeds the object: {beyond:?}"
        );
    }

    store.write(&key("a"), b"new").unwrap();
    assert_eq!(whole("a").as_deref(), Some(b"new".as_slice()), "a write replaces the whole object");
    assert_eq!(store.list(&format!("{prefix}/")).unwrap(), ["a", "b"]);
    assert_eq!(store.list(&key("b/c/0/")).unwrap(), ["1", "2"]);
    store
        .sync(&mut ["a", "not there", "b/c/0/2"].into_iter().map(key))
        .expect("flushing a missing object is not an error");

    store.remove(&key("b/")).unwrap();
    assert_eq!((whole("b/c/0/1"), whole("b/c/0/2")), (None, None));
    store.remove(&key("a")).unwrap();
    assert_eq!(store.list(&format!("{prefix}/")).unwrap(), Vec::<String>::new());
}

#[allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]
fn check_parts(store: &dyn Store, prefix: &str) {
    let key = |name: &str| format!("{prefix}/{name}");
    let whole = |name: &str| read_small(store, &key(name), 1_000_000).unwrap();
    let bytes = test_bytes();

    store.write(&key("d/parts"), &bytes).unwrap();
    let wanted = [
        ObjectPart { offset: 10, place: 4, len: 3 },
        ObjectPart { offset: 99_999, place: 0, len: 1 },
    ];
    let mut into = [0; 8];
    assert_eq!(
        store.read_parts(&key("d/parts"), 100_000, &wanted, &mut into).unwrap(),
        PartsRead::Done
    );
    assert_eq!(
        (into[0], &into[4..7]),
        (bytes[99_999], &bytes[10..13]),
        "parts are read to their destinations"
    );
    assert_eq!(
        store.read_parts(&key("d/none"), 100_000, &wanted, &mut into).unwrap(),
        PartsRead::Missing
    );
    store.write_parts(&key("d/parts"), &[b"one", b"", b"two"]).unwrap();
    assert_eq!(
        whole("d/parts").as_deref(),
        Some(b"onetwo".as_slice()),
        "parts are written as one object"
    );
    assert!(
        matches!(store.size(&key("d/parts")).unwrap(), None | Some(6))
            && store.size(&key("d/none")).unwrap().is_none(),
        "the size, if it is reported"
    );
    store.remove_partial_writes(&key("d/")).unwrap();
    assert_eq!(
        whole("d/parts").as_deref(),
        Some(b"onetwo".as_slice()),
        "complete objects are not removed"
    );
    check_transfers(store, prefix);
    store.remove(&key("d/")).unwrap();
}

#[allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]
fn check_transfers(store: &dyn Store, prefix: &str) {
    let begin = |name: &str, limit, admit: Admit| {
        store.begin_read(&format!("{prefix}/{name}"), None, limit, admit).map(PendingRead::wait)
    };
    let room = || -> Admit { Box::new(|len| Some(Buffer::zeroed(len as usize))) };
    let Some(found) = begin("d/parts", 10, room()) else { return };
    let found = found.unwrap();
    assert!(matches!(&found, ReadOutcome::Found(b) if b.bytes() == b"onetwo"), "{found:?}");
    let missing = begin("d/none", 10, room()).map(Result::unwrap);
    assert!(matches!(missing, None | Some(ReadOutcome::Missing)), "{missing:?}");
    let refused = begin("d/parts", 10, Box::new(|_| None)).unwrap().unwrap();
    assert!(matches!(refused, ReadOutcome::Refused), "{refused:?}");
    assert!(matches!(begin("d/parts", 2, room()).unwrap(), Err(StorageError::TooLong { .. })));
    let bytes: SharedBytes = Arc::new(b"three".to_vec());
    if let Some(written) = store.begin_shared_write(&format!("{prefix}/d/begun"), &bytes) {
        written.wait().unwrap();
        let mut into = Buffer::zeroed(10);
        assert!(store.read(&format!("{prefix}/d/begun"), None, 10, &mut into).unwrap());
        assert_eq!(into.bytes(), b"three");
    }
}

#[allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]
fn check_locks(store: &dyn Store, prefix: &str) {
    let key = |name: &str| format!("{prefix}/{name}");

    let is_locked = || store.is_locked(&key("lock")).unwrap();
    assert!(!is_locked(), "the key is not locked");
    let lock = store.lock(&key("lock")).unwrap().expect("the lock is free");
    assert!(!lock.is_lost() && lock.confirm().unwrap());
    if !lock.is_noop() {
        assert!(is_locked() && store.lock(&key("lock")).unwrap().is_none(), "a lock is exclusive");
        assert!(store.lock(&key("other")).unwrap().is_some(), "other keys are not locked");
        drop(lock);
        assert!(
            !is_locked() && store.lock(&key("lock")).unwrap().is_some(),
            "a released lock can be taken"
        );
    }
    store.remove(&key("lock")).unwrap();
    store.remove(&key("other")).unwrap();
}

/// Checks that readers see one whole object or the other, never a partial object or a mixture.
#[allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]
fn check_atomic_writes(store: &dyn Store, prefix: &str) {
    let key = |name: &str| format!("{prefix}/{name}");
    let whole = |name: &str| read_small(store, &key(name), 1_000_000).unwrap();

    let kinds = [vec![1u8; 60_000], vec![2u8; 90_000]];
    store.write(&key("race"), &kinds[0]).unwrap();
    std::thread::scope(|scope| {
        let writers: Vec<_> = kinds
            .iter()
            .map(|k| scope.spawn(|| (0..20).for_each(|_| store.write(&key("race"), k).unwrap())))
            .collect();
        for _ in 0..40 {
            let seen = whole("race").expect("the object exists at all times");
            assert!(kinds.contains(&seen), "a reader saw {} bytes of a mixture", seen.len());
        }
        writers.into_iter().for_each(|w| w.join().unwrap());
    });
    store.remove(&key("race")).unwrap();
}

#[cfg(test)]
mod tests {
    use super::super::{LocalStore, MemoryStore};
    use super::*;

    #[test]
    fn local_and_memory_stores_conform() {
        let folder = tempfile::tempdir().unwrap();
        check(&LocalStore::new(folder.path()), "x");
        check(&MemoryStore::new(), "x");
    }

    #[test]
    fn an_interrupted_write_is_not_listed() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::new(folder.path());
        store.write("u", b"whole").unwrap();
        std::fs::write(folder.path().join(".u.1-2.part"), b"ha").unwrap();
        assert_eq!(store.list("").unwrap(), ["u"]);
    }
}
