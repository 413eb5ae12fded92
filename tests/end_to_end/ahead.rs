//! Transfers ahead of remote stores: each chunk is read once, none in vain, as many as the window
//! allows; writes are in flight while the next tasks compute.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use freestone::{
    Array, CodecName, DType, MemoryStore, Serial, Settings, Spec, Stores, Target, concat,
};
use freestone_engine::kernels::Buffer;
use freestone_engine::plan::{Place as ArrayPlace, PlanArray, StageId};
use freestone_engine::storage::{
    Admit, ByteRange, PendingRead, PendingWrite, ReadOutcome, SharedBytes, StorageError, Store,
};

use crate::support::{Place, tree};

/// A remote store that counts requests.
#[derive(Debug)]
pub struct FarAway {
    store: Arc<MemoryStore>,
    /// The number of reads of each chunk object.
    reads: Mutex<BTreeMap<String, usize>>,
    waited_for: AtomicUsize,
    under_way: Arc<AtomicUsize>,
    most: AtomicUsize,
    /// The object whose reads fail after they have started.
    broken: Mutex<Option<String>>,
    /// The objects whose next write fails after it has started.
    unwritable: Arc<Mutex<Vec<String>>>,
    /// The current and the maximum number of writes in flight.
    writes: Arc<AtomicUsize>,
    most_writes: AtomicUsize,
}

impl FarAway {
    pub fn new() -> FarAway {
        FarAway {
            store: Arc::new(MemoryStore::new()),
            reads: Mutex::default(),
            waited_for: AtomicUsize::default(),
            under_way: Arc::default(),
            most: AtomicUsize::default(),
            broken: Mutex::default(),
            unwritable: Arc::default(),
            writes: Arc::default(),
            most_writes: AtomicUsize::default(),
        }
    }

    fn note(&self, key: &str) {
        if key.contains("/c/") {
            *self.reads.lock().unwrap().entry(key.to_owned()).or_default() += 1;
        }
    }

    /// Returns the number of reads, of reads that were waited for from the start, and the maximum
    /// number of prefetched reads in flight.
    fn counts(&self) -> (usize, usize, usize) {
        (
            self.reads.lock().unwrap().values().sum(),
            self.waited_for.load(Ordering::Relaxed),
            self.most.load(Ordering::Relaxed),
        )
    }

    fn reset(&self) {
        self.reads.lock().unwrap().clear();
        self.waited_for.store(0, Ordering::Relaxed);
        self.most.store(0, Ordering::Relaxed);
    }
}

/// A read in flight, until it is waited for or dropped.
struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for FarAway {
    forward_store!(store: write remove list sync remove_partial_writes);
    forward_store!(store: lock is_locked size modified blocking_file);
    parts_by_whole_objects!();

    fn url(&self) -> &str {
        "s3://bucket/archive"
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
        self.note(key);
        self.waited_for.fetch_add(usize::from(key.contains("/c/")), Ordering::Relaxed);
        self.store.read(key, range, limit, into)
    }

    fn begin_read(
        &self,
        key: &str,
        range: Option<ByteRange>,
        limit: u64,
        admit: Admit,
    ) -> Option<PendingRead> {
        self.note(key);
        let under_way = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(under_way, Ordering::Relaxed);
        let mut read = ReadOutcome::read_now(&*self.store, key, range, limit, admit);
        if self.broken.lock().unwrap().as_deref() == Some(key) {
            read = Err(StorageError::Io {
                place: key.to_owned(),
                action: "read",
                message: "the line was cut".into(),
                transient: false,
            });
        }
        let counted = UnderWay(Arc::clone(&self.under_way));
        Some(PendingRead::new(move || {
            drop(counted);
            read
        }))
    }

    /// Writes the object when it is waited for.
    fn begin_shared_write(&self, key: &str, bytes: &SharedBytes) -> Option<PendingWrite> {
        let in_flight = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_writes.fetch_max(in_flight, Ordering::Relaxed);
        let (store, key) = (Arc::clone(&self.store), key.to_owned());
        let (unwritable, counted) =
            (Arc::clone(&self.unwritable), UnderWay(Arc::clone(&self.writes)));
        let (bytes, mut counted) = (Arc::clone(bytes), Some(counted));
        Some(PendingWrite::new(move |_| {
            counted.take();
            let mut unwritable = unwritable.lock().unwrap();
            if let Some(at) = unwritable.iter().position(|k| *k == key) {
                unwritable.remove(at);
                let (action, message, transient) = ("write", "the line was cut".into(), true);
                let place = key.clone();
                return Some(Err(StorageError::Io { place, action, message, transient }));
            }
            Some(store.write(&key, (*bytes).as_ref()))
        }))
    }

    fn place(&self, key: &str) -> String {
        format!("{}/{key}", self.url())
    }
}

/// The same arrays in a local and a remote store.
struct Bench {
    place: Place,
    spec: Spec,
    far: Arc<FarAway>,
    near: Arc<dyn Store>,
}

impl Bench {
    fn new(codec: CodecName) -> Bench {
        let (place, far) = (Place::quick(), Arc::new(FarAway::new()));
        let settings = Settings {
            work_dir: Some(place.at("work")),
            allowed_mem: Some(60_000_000),
            parallelism: Some(2),
            ..Settings::default()
        };
        let bench = Bench {
            spec: settings.resolve().unwrap(),
            far,
            near: Arc::new(MemoryStore::new()),
            place,
        };
        for (name, shape, chunks) in [("a", [120u64, 90], [20u64, 30]), ("b", [120, 90], [40, 15])]
        {
            let random = freestone::random_normal(shape, 0.0, 1.0, 5, DType::Float64, chunks);
            let stores = Stores::default();
            stores.insert(Arc::clone(&bench.near));
            let target = Target::array(&random, format!("{}/{name}", bench.near.url()))
                .with_stores(&stores)
                .codec(codec);
            freestone::run(&freestone::plan(&[target], &bench.spec).unwrap(), &bench.spec, &Serial)
                .unwrap();
            // One chunk is missing, so it consists of fill values.
            bench.near.remove(&format!("{name}/c/1/1")).unwrap();
            let mut keys = vec![format!("{name}/zarr.json")];
            for row in bench.near.list(&format!("{name}/c/")).unwrap() {
                keys.extend(
                    bench
                        .near
                        .list(&format!("{name}/c/{row}/"))
                        .unwrap()
                        .iter()
                        .map(|column| format!("{name}/c/{row}/{column}")),
                );
            }
            for key in keys {
                let mut buffer = Buffer::zeroed(1 << 20);
                assert!(bench.near.read(&key, None, 1 << 20, &mut buffer).unwrap());
                bench.far.write(&key, buffer.bytes()).unwrap();
            }
        }
        bench
    }

    fn far(&self, name: &str) -> Array {
        freestone::open_in(&(Arc::clone(&self.far) as Arc<dyn Store>), name).unwrap()
    }

    /// Computes an expression on both stores, expecting a number of remote reads. Prefetched reads
    /// are not waited for.
    #[track_caller]
    fn check(
        &self,
        name: &str,
        expect: usize,
        is_ahead: bool,
        expression: &dyn Fn(&Array, &Array) -> Array,
    ) {
        let near = |name| freestone::open_in(&self.near, name).unwrap();
        let run = |array: &Array, to: &str| {
            let planned =
                freestone::plan(&[Target::array(array, self.place.at(to))], &self.spec).unwrap();
            freestone::run(&planned, &self.spec, &Serial).unwrap();
            planned
        };
        run(&expression(&near("a"), &near("b")), &format!("{name}-near"));
        self.far.reset();
        let planned = run(&expression(&self.far("a"), &self.far("b")), &format!("{name}-far"));
        assert_eq!(
            tree(self.place.at(&format!("{name}-near"))),
            tree(self.place.at(&format!("{name}-far"))),
            "{name}"
        );
        let (reads, waited, most) = self.far.counts();
        let plan = planned.finalized();
        let stages = (0..plan.plan().stages.len()).map(StageId);
        let reading = stages.filter(|s| {
            plan.plan().stages[s.0]
                .inputs
                .iter()
                .any(|i| i.sources.iter().any(|a| is_far(plan.plan().array(*a))))
        });
        let (tasks, ahead) = reading.fold((0, 0), |(n, most), s| {
            let layout = plan.layout(s);
            (n + plan.plan().stages[s.0].n_tasks() as usize, most.max(layout.window_requests))
        });
        println!("{name}: {reads} reads of {tasks} tasks, {waited} waited for, {ahead} ahead");
        assert_eq!(reads, expect, "{name}: nothing is read that is not wanted");
        assert!(ahead > 0 || !is_ahead, "{name}");
        assert!(
            waited <= if ahead > 0 { tasks } else { reads },
            "{name}: of each task, the first is waited for"
        );
        assert!(most <= ahead, "{name}: {most} under way, {ahead} projected");
        assert_eq!(
            self.far.under_way.load(Ordering::Relaxed),
            0,
            "{name}: each that was begun is waited for or cancelled"
        );
        assert!(plan.projected_mem() <= self.spec.allowed_mem);
    }
}

fn is_far(array: &PlanArray) -> bool {
    matches!(&array.place, ArrayPlace::Input { url, .. } if url.starts_with("s3:"))
}

/// All kinds of reads: the same values, no read in vain, and only the first read of each task is
/// waited for.
#[test]
fn remote_chunks_are_prefetched() {
    for codec in [CodecName::None, CodecName::Zstd(1)] {
        let bench = Bench::new(codec);
        type Row<'a> = (&'a str, usize, bool, &'a dyn Fn(&Array, &Array) -> Array);
        let rows: [Row<'_>; 9] = [
            ("two inputs", 21, false, &|a, _| a + &(a * 2.0).roll(20, 0)),
            ("all in one", 18, true, &|a, _| a.sum(())),
            ("means", 18, true, &|a, _| a.mean(0)),
            ("rechunked", 18, true, &|a, _| a.rechunk([120, 10])),
            ("put together", 36, false, &|a, b| concat(&[a.clone(), b.clone()], 1)),
            ("of another shape", 18, true, &|a, _| a.reshape([90, 120])),
            ("taken", 9, true, &|a, _| a.take([3, 100, 7, 50], 0)),
            ("product", 108, true, &|a, b| a.matmul(&b.matrix_transpose())),
            ("running sums", 18, true, &|a, _| a.cumulative_sum(0)),
        ];
        for (name, reads, is_ahead, expression) in rows {
            bench.check(name, reads, is_ahead, expression);
        }
    }
}

/// A prefetched read that fails is reported by the task that needs it; the next run succeeds.
#[test]
fn failed_prefetches_are_reported() {
    let bench = Bench::new(CodecName::Zstd(1));
    *bench.far.broken.lock().unwrap() = Some("a/c/4/1".into());
    let spec = Spec { retries: 0, ..bench.spec.clone() };
    let planned =
        freestone::plan(&[Target::array(&bench.far("a").mean(0), bench.place.at("out"))], &spec)
            .unwrap();
    let error = freestone::run(&planned, &spec, &Serial).unwrap_err();
    assert!(error.to_string().contains("the line was cut"), "{error}");
    assert_eq!(bench.far.under_way.load(Ordering::Relaxed), 0);
    *bench.far.broken.lock().unwrap() = None;
    bench.check("means", 18, true, &|a, _| a.mean(0));
}

/// A shard of which most chunks are needed is read by one request, another one chunk by chunk.
#[test]
fn whole_shards_are_prefetched() {
    let bench = Bench::new(CodecName::Zstd(1));
    let far: Arc<dyn Store> = Arc::clone(&bench.far) as Arc<dyn Store>;
    let values = freestone::random_normal([60, 48], 0.0, 1.0, 7, DType::Float64, [20, 24]);
    for store in [&far, &bench.near] {
        let stores = Stores::default();
        stores.insert(Arc::clone(store));
        let target = Target::array(&values, format!("{}/s", store.url())).with_stores(&stores);
        let target = target.chunks([5, 12]).shards([20, 24]);
        freestone::run(&freestone::plan(&[target], &bench.spec).unwrap(), &bench.spec, &Serial)
            .unwrap();
        // A missing shard consists of fill values.
        store.remove("s/c/1/1").unwrap();
    }
    let check = |name: &str, expect: usize, expression: &dyn Fn(&Array) -> Array| {
        let run = |store: &Arc<dyn Store>, to: &str| {
            let array = expression(&freestone::open_in(store, "s").unwrap());
            let target = Target::array(&array, bench.place.at(to));
            freestone::run(&freestone::plan(&[target], &bench.spec).unwrap(), &bench.spec, &Serial)
                .unwrap();
        };
        run(&bench.near, &format!("{name}-near"));
        bench.far.reset();
        run(&far, &format!("{name}-far"));
        let [near, far] = ["near", "far"].map(|to| tree(bench.place.at(&format!("{name}-{to}"))));
        assert_eq!(near, far, "{name}");
        assert_eq!(bench.far.counts().0, expect, "{name}");
        assert_eq!(bench.far.under_way.load(Ordering::Relaxed), 0, "{name}");
    };
    check("means", 6, &|s| s.mean(0));
    // Blocks alternate between shards, so each chunk is read by itself, and each index again.
    check("sums of rows", 68, &|s| s.sum(1));
    check("all", 68, &|s| s.max(()));
}

/// Writes are in flight together, and the result is complete when the run ends. A failed write is
/// retried.
#[test]
fn writes_are_in_flight_together() {
    let bench = Bench::new(CodecName::Zstd(1));
    let far: Arc<dyn Store> = Arc::clone(&bench.far) as Arc<dyn Store>;
    let stores = Stores::default();
    stores.insert(Arc::clone(&far));
    let run = |name: &str, threads: usize, broken: &[&str]| {
        *bench.far.unwritable.lock().unwrap() = broken.iter().map(|k| (*k).to_owned()).collect();
        let far = freestone::open_in(&bench.near, "a").unwrap() + 1.0;
        let target =
            Target::array(&far, format!("{}/{name}", bench.far.url())).with_stores(&stores);
        let planned = freestone::plan(&[target], &bench.spec).unwrap();
        let layout = planned.finalized().layout(StageId(0));
        assert!(layout.window_bytes > 0 && layout.writes_ahead);
        let report =
            freestone::run(&planned, &bench.spec, &freestone::Threads::new(threads)).unwrap();
        assert_eq!(bench.far.writes.load(Ordering::Relaxed), 0);
        assert_eq!(report.retries, broken.len() as u64, "{name}");
        let mut expect = BTreeMap::new();
        for (key, bytes) in tree_of(&bench.far.store, "whole") {
            expect.insert(key, bytes);
        }
        if name != "whole" {
            assert_eq!(tree_of(&bench.far.store, name), expect);
        }
    };
    run("whole", 1, &[]);
    run("retried", 1, &["retried/c/2/1", "retried/c/5/2"]);
    run("threads", 3, &["threads/c/0/0"]);
    assert!(bench.far.most_writes.load(Ordering::Relaxed) > 1);
}

/// Returns the chunks below a folder of a store, by their keys in the folder.
fn tree_of(store: &MemoryStore, folder: &str) -> BTreeMap<String, Vec<u8>> {
    let mut chunks = BTreeMap::new();
    for row in store.list(&format!("{folder}/c/")).unwrap() {
        for column in store.list(&format!("{folder}/c/{row}/")).unwrap() {
            let mut bytes = Buffer::zeroed(1 << 20);
            let key = format!("c/{row}/{column}");
            assert!(store.read(&format!("{folder}/{key}"), None, 1 << 20, &mut bytes).unwrap());
            chunks.insert(key, bytes.bytes().to_vec());
        }
    }
    assert_eq!(chunks.len(), 18);
    chunks
}

/// With less memory, the window is smaller, down to none; no plan is refused.
#[test]
fn windows_shrink_with_memory() {
    let bench = Bench::new(CodecName::Zstd(1));
    let plan = |allowed_mem| {
        let spec = Spec { allowed_mem, ..bench.spec.clone() };
        let planned = freestone::plan(
            &[Target::array(&bench.far("a").mean(0), bench.place.at("out"))],
            &spec,
        )
        .unwrap();
        (planned.finalized().layout(StageId(0)).window_bytes, planned.finalized().projected_mem())
    };
    let mut found = vec![plan(60_000_000)];
    while let Some((window, projected)) = found.last().copied()
        && window > 0
    {
        found.push(plan(projected - 1));
    }
    assert!(found.len() > 2, "{found:?}");
    assert!(found.is_sorted_by(|(a, more), (b, less)| a > b && more > less), "{found:?}");
    // The window is the only difference.
    let (last, without) = (found[0], found[found.len() - 1]);
    assert!(last.1 - without.1 >= last.0, "{found:?}");
}
