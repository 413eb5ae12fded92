//! Requests and serial round trips for metadata: of a plan, of a run's begin and of its publication.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use freestone::{MemoryStore, RunOptions, Serial, Settings, Stores, Target};
use freestone_engine::events::{Event, Observer};
use freestone_engine::kernels::Buffer;
use freestone_engine::storage::concurrent::{add_round_trip, round_trips};
use freestone_engine::storage::{ByteRange, LocalStore, Lock, StorageError, Store};

use crate::support::WINDS_V3;

/// A remote store that counts requests, except those for chunks.
#[derive(Debug)]
struct Counting {
    url: String,
    store: Arc<dyn Store>,
    requests: Arc<AtomicUsize>,
}

impl Counting {
    fn count(&self, key: &str) {
        if !key.contains("/c/") {
            self.requests.fetch_add(1, Ordering::Relaxed);
            add_round_trip();
        }
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for Counting {
    forward_store!(store: remove_partial_writes);
    no_read_ahead!();
    parts_by_whole_objects!();
    no_shared_writes!();

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
        self.count(key);
        self.store.read(key, range, limit, into)
    }

    fn write(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.count(key);
        self.store.write(key, bytes)
    }

    fn remove(&self, key: &str) -> Result<(), StorageError> {
        self.count(key);
        self.store.remove(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        self.count(prefix);
        self.store.list(prefix)
    }

    fn lock(&self, key: &str) -> Result<Option<Lock>, StorageError> {
        self.count(key);
        self.store.lock(key)
    }

    fn is_locked(&self, key: &str) -> Result<bool, StorageError> {
        self.count(key);
        self.store.is_locked(key)
    }

    fn size(&self, key: &str) -> Result<Option<u64>, StorageError> {
        self.count(key);
        self.store.size(key)
    }

    fn modified(&self, key: &str) -> Result<Option<std::time::SystemTime>, StorageError> {
        self.count(key);
        self.store.modified(key)
    }

    fn sync(&self, _keys: &mut dyn Iterator<Item = String>) -> Result<(), StorageError> {
        Ok(())
    }

    fn blocking_file(&self, _key: &str) -> Option<String> {
        None
    }

    fn place(&self, key: &str) -> String {
        format!("{}/{key}", self.url)
    }
}

/// The requests and round trips at the start and at the end of a run.
struct Seen {
    requests: Arc<AtomicUsize>,
    at: Mutex<Vec<(usize, u64)>>,
}

impl Seen {
    fn note(&self) {
        let now = (self.requests.load(Ordering::Relaxed), round_trips());
        self.at.lock().unwrap().push(now);
    }
}

impl Observer for Seen {
    fn on_event(&self, event: &Event<'_>) {
        if matches!(event, Event::RunStarted(_) | Event::RunEnded(_)) {
            self.note();
        }
    }
}

/// Stores means of a number of arrays in a new group, and returns the requests and round trips of
/// planning, begin and publication.
fn store(names: &[&str]) -> [(usize, u64); 3] {
    let (stores, requests) = (Stores::default(), Arc::new(AtomicUsize::new(0)));
    let insert = |url: &str, store: Arc<dyn Store>| {
        let requests = Arc::clone(&requests);
        let counting: Arc<dyn Store> = Arc::new(Counting { url: url.to_owned(), store, requests });
        stores.insert(Arc::clone(&counting));
        counting
    };
    let winds = insert("s3://counted/winds", Arc::new(LocalStore::new(WINDS_V3)));
    for url in ["s3://counted", "s3://counted/out", "s3://counted/work"] {
        insert(url, Arc::new(MemoryStore::new()));
    }
    let settings = Settings {
        work_dir: Some("s3://counted/work".into()),
        allowed_mem: Some(100_000_000),
        ..Settings::default()
    };
    let spec = settings.resolve().unwrap();
    let u = freestone::open_in(&winds, "u").unwrap();
    let targets: Vec<Target> = names
        .iter()
        .map(|name| Target::in_group(&(&u * 2.0), "s3://counted/out", name).with_stores(&stores))
        .collect();
    let seen = Seen { requests: Arc::clone(&requests), at: Mutex::default() };
    seen.note();
    let planned = freestone::plan(&targets, &spec).unwrap();
    seen.note();
    let options = RunOptions { observers: &[&seen], ..RunOptions::default() };
    freestone::run_with(&planned, &spec, &Serial, &options).unwrap();
    let at = seen.at.into_inner().unwrap();
    let between = |n: usize| (at[n + 1].0 - at[n].0, at[n + 1].1 - at[n].1);
    [between(0), between(1), between(2)]
}

/// The number of round trips does not grow with the number of outputs.
#[test]
fn metadata_take_few_round_trips() {
    let [planning, begin, publication] = store(&["a", "b", "c"]);
    let [planned, begun, published] = [planning, begin, publication].map(|(_, trips)| trips);
    println!("requests and round trips: {planning:?}, {begin:?}, {publication:?}");
    assert!(planned <= 8 && begun <= 5 && published <= 5, "{planned}, {begun}, {published}");
    let one = store(&["a"]);
    assert_eq!(one.map(|(_, trips)| trips), [planned, begun, published]);
}
