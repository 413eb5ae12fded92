//! Tests of the tiered store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use freestone_kernels::Buffer;

use super::super::{MemoryStore, conformance};
use super::*;

fn tier(budget: u64) -> (Arc<MemoryStore>, TieredStore) {
    let below = Arc::new(MemoryStore::new());
    (Arc::clone(&below), TieredStore::new(below, "run/".into(), budget, 0))
}

#[test]
fn tiered_store_conforms() {
    for budget in [0, 100_000, 300_000, 600_000, 100_000_000] {
        conformance::check(&tier(budget).1, "run");
        conformance::check(&tier(budget).1, "other");
    }
}

#[test]
fn saved_objects_are_restored() {
    for (budget, back) in [
        (0, 0),
        (400_000, 100_000_000),
        (1_000_000, 600_000),
        (100_000_000, 100_000_000),
        (100_000_000, 0),
    ] {
        let (below, tier) = tier(budget);
        let object = |i: usize| vec![i as u8; if i.is_multiple_of(7) { 300_000 } else { 1000 + i }];
        let check = |store: &dyn Store, last: usize| {
            for i in 0..last {
                let found = read_small(store, &format!("run/a/{i}"), 1 << 20).unwrap();
                assert!(
                    found.as_deref() == Some(object(i).as_slice()),
                    "object {i}, budget {budget}"
                );
            }
        };
        for i in 0..30 {
            tier.write(&format!("run/a/{i}"), &object(i)).unwrap();
            tier.write(&format!("run/gone/{i}"), &object(i)).unwrap();
            if i == 10 || i == 20 {
                tier.save(&|_| false).unwrap();
                // Objects that are replaced after a save have the later contents.
                tier.write("run/a/3", b"other").unwrap();
                tier.write("run/a/3", &object(3)).unwrap();
            }
        }
        tier.save(&|folder| folder == "gone").unwrap();
        tier.write("run/a/30", &object(30)).unwrap();
        check(&tier, 31);
        drop(tier);
        let below: Arc<dyn Store> = below;
        let second = TieredStore::new(Arc::clone(&below), "run/".into(), back, 1);
        TieredStore::restore(&*below, "run/", &second, &|folder| folder == "gone").unwrap();
        check(&second, 30);
        assert!(
            budget < 100_000_000 || read_small(&second, "run/a/30", 1 << 20).unwrap().is_none()
        );
        let gone = |i: usize| second.read_cache().objects.contains_key(&format!("run/gone/{i}"));
        assert!(!(0..30).any(gone));
        // A third process restores what the second has saved.
        second.write("run/a/31", &object(31)).unwrap();
        second.save(&|_| false).unwrap();
        let third = TieredStore::new(Arc::clone(&below), "run/".into(), back, 2);
        TieredStore::restore(&*below, "run/", &third, &|_| false).unwrap();
        check(&third, 30);
        assert!(read_small(&third, "run/a/31", 1 << 20).unwrap().unwrap() == object(31));
    }
}

#[test]
fn objects_below_the_prefix_stay_in_memory_within_the_budget() {
    let (below, tier) = tier(3_000_000);
    tier.write("plan.json", b"plan").unwrap();
    for i in 0..10 {
        tier.write(&format!("run/large/{i}"), &vec![i; 500_000]).unwrap();
        tier.write(&format!("run/small/{i}"), &vec![i; 70_000]).unwrap();
    }
    assert!(tier.highest() <= 3_000_000);
    let spilled = below.keys().len();
    assert!((2..19).contains(&spilled), "{:?}", below.keys());
    for i in 0..10u8 {
        for (name, len) in [("large", 500_000), ("small", 70_000)] {
            let mut into = Buffer::zeroed(500_000);
            assert!(tier.read(&format!("run/{name}/{i}"), None, 500_000, &mut into).unwrap());
            assert!(into.len() == len && into.bytes().iter().all(|b| *b == i));
        }
    }
    assert_eq!(tier.list("run/small/").unwrap().len(), 10);
    // Replace objects with and without room in the budget.
    tier.write("run/large/0", &vec![9; 500_000]).unwrap();
    tier.write("run/small/0", b"other").unwrap();
    let mut into = Buffer::zeroed(500_000);
    assert!(tier.read("run/small/0", None, 500_000, &mut into).unwrap());
    assert_eq!(into.bytes(), b"other");
    tier.remove("run/large/").unwrap();
    tier.remove("run/small/").unwrap();
    let cache = tier.read_cache();
    assert_eq!(
        (cache.used(), cache.slabs.len(), cache.filling.len(), cache.objects.len()),
        (0, 0, 0, 0)
    );
    assert_eq!(below.keys(), ["plan.json"]);
}

/// A store in memory whose shared writes end at the second wait.
#[derive(Debug)]
struct Slow {
    below: Arc<MemoryStore>,
    in_flight: Arc<AtomicUsize>,
    peak: AtomicUsize,
}

/// A shared write, which is cancelled when it is dropped.
struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Store for Slow {
    fn url(&self) -> &str {
        self.below.url()
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
        self.below.read(key, range, limit, into)
    }
    fn write(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.below.write(key, bytes)
    }
    fn begin_shared_write(&self, key: &str, bytes: &SharedBytes) -> Option<PendingWrite> {
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak.fetch_max(now, Ordering::Relaxed);
        let (below, key, bytes) = (Arc::clone(&self.below), key.to_owned(), Arc::clone(bytes));
        let (in_flight, mut waits) = (InFlight(Arc::clone(&self.in_flight)), 0);
        Some(PendingWrite::new(move |_| {
            let _ = &in_flight;
            waits += 1;
            (waits > 1).then(|| below.write(&key, (*bytes).as_ref()))
        }))
    }
    fn remove(&self, key: &str) -> Result<(), StorageError> {
        self.below.remove(key)
    }
    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        self.below.list(prefix)
    }
    fn sync(&self, keys: &mut dyn Iterator<Item = String>) -> Result<(), StorageError> {
        self.below.sync(keys)
    }
    fn remove_partial_writes(&self, prefix: &str) -> Result<(), StorageError> {
        self.below.remove_partial_writes(prefix)
    }
    fn lock(&self, key: &str) -> Result<Option<Lock>, StorageError> {
        self.below.lock(key)
    }
    fn is_locked(&self, key: &str) -> Result<bool, StorageError> {
        self.below.is_locked(key)
    }
    fn size(&self, key: &str) -> Result<Option<u64>, StorageError> {
        self.below.size(key)
    }
    fn modified(&self, key: &str) -> Result<Option<SystemTime>, StorageError> {
        self.below.modified(key)
    }
    fn blocking_file(&self, key: &str) -> Option<String> {
        self.below.blocking_file(key)
    }
}

/// Returns a tier over a slow store, with 40 large and 40 small objects in each of two folders.
fn slow_tier(budget: u64) -> (Arc<Slow>, TieredStore) {
    let slow = Arc::new(Slow {
        below: Arc::new(MemoryStore::new()),
        in_flight: Arc::default(),
        peak: AtomicUsize::new(0),
    });
    let tier = TieredStore::new(Arc::<Slow>::clone(&slow), "run/".into(), budget, 0);
    for folder in ["a", "b"] {
        for i in 0..40 {
            tier.write(&format!("run/{folder}/large{i}"), &vec![i; 300_000]).unwrap();
            tier.write(&format!("run/{folder}/small{i}"), &vec![i; 3000]).unwrap();
        }
    }
    (slow, tier)
}

#[test]
fn saves_are_concurrent_and_bounded() {
    let (slow, tier) = slow_tier(100_000_000);
    tier.save(&|_| false).unwrap();
    assert_eq!(slow.peak.load(Ordering::Relaxed), 16);
    assert_eq!(slow.in_flight.load(Ordering::Relaxed), 0);
    let saved = slow.below.keys();
    assert_eq!(saved.iter().filter(|key| key.contains("/large")).count(), 80);
    assert_eq!(saved.iter().filter(|key| key.contains("/kept/")).count(), 2);
    slow.peak.store(0, Ordering::Relaxed);
    tier.save(&|_| false).unwrap();
    assert_eq!(slow.peak.load(Ordering::Relaxed), 0, "what is saved is not saved again");
}

#[test]
fn saves_are_cancelled_once_they_are_not_needed() {
    let (slow, tier) = slow_tier(100_000_000);
    // The folder `a` is consumed while its first objects are in flight.
    let begun = || slow.in_flight.load(Ordering::Relaxed) > 8;
    let is_consumed = AtomicBool::new(false);
    tier.save(&|folder| {
        is_consumed.fetch_or(begun(), Ordering::Relaxed);
        folder == "a" && is_consumed.load(Ordering::Relaxed)
    })
    .unwrap();
    let saved = slow.below.keys();
    let of = |folder: &str| saved.iter().filter(|key| key.contains(folder)).count();
    assert_eq!((of("run/a/"), of("run/b/"), of("run/kept/")), (0, 40, 1), "{saved:?}");
    assert_eq!(slow.in_flight.load(Ordering::Relaxed), 0);
}

#[test]
fn buffers_of_writes_in_flight_count_after_their_removal() {
    let (slow, tier) = slow_tier(100_000_000);
    let used = || tier.read_cache().used();
    tier.save(&|_| {
        if slow.in_flight.load(Ordering::Relaxed) == 16 {
            tier.remove("run/a/").unwrap();
            tier.remove("run/b/").unwrap();
            assert!(used() >= 300_000, "{} bytes in use", used());
        }
        false
    })
    .unwrap();
    assert_eq!(used(), 0);
}

#[test]
fn full_tier_is_saved_within_its_budget() {
    let budget = slow_tier(100_000_000).1.highest();
    let (slow, tier) = slow_tier(budget);
    tier.save(&|_| false).unwrap();
    assert_eq!(tier.highest(), budget);
    let saved = slow.below.keys();
    assert_eq!((saved.len(), slow.in_flight.load(Ordering::Relaxed)), (82, 0));
}
