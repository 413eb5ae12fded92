//! The place and the lifetime of intermediates.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use freestone::{
    Cancel, CodecName, DType, Error, MemoryStore, Plan, RunOptions, RunReport, Serial, Spec,
    Stores, Target, Threads,
};
use freestone_engine::driver::RunError;
use freestone_engine::events::{Event, Observer};
use freestone_engine::kernels::Buffer;
use freestone_engine::plan::{Place as ArrayPlace, StageId};
use freestone_engine::storage::{ByteRange, StorageError, Store};

use crate::scenarios::without_room;
use crate::support::{Place, processes, spec_in, tree};

/// A work directory in memory that counts bytes, denies chosen writes, and records reads of missing
/// objects.
#[derive(Debug)]
pub struct Watched {
    store: MemoryStore,
    /// The URL of a directory, so that a run in it can be resumed.
    url: String,
    sizes: Mutex<BTreeMap<String, u64>>,
    missed: Mutex<Vec<String>>,
    /// Stages with entries in the journal.
    told: Mutex<BTreeSet<u64>>,
    /// Writes to this array are denied after a number of objects.
    refuses: Option<(String, usize)>,
}

impl Watched {
    pub fn new(refuses: Option<(String, usize)>) -> Arc<Watched> {
        let store = MemoryStore::new();
        let url = format!("/watched/{}", store.url().rsplit('/').next().unwrap());
        Arc::new(Watched {
            store,
            url,
            sizes: Mutex::default(),
            missed: Mutex::default(),
            told: Mutex::default(),
            refuses,
        })
    }

    /// Returns the bytes of intermediates by array.
    pub fn arrays(&self) -> BTreeMap<String, u64> {
        let mut arrays = BTreeMap::new();
        for (key, size) in self.sizes.lock().unwrap().iter() {
            let parts: Vec<&str> = key.split('/').collect();
            if let [_, array, _] = parts.as_slice()
                && *array != "journal"
            {
                *arrays.entry((*array).to_owned()).or_default() += size;
            }
        }
        arrays
    }

    /// Returns the intermediates that were read before they were written.
    pub fn missed(&self) -> Vec<String> {
        self.missed.lock().unwrap().clone()
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for Watched {
    forward_store!(store: list sync remove_partial_writes lock);
    forward_store!(store: is_locked size modified blocking_file);
    no_read_ahead!();
    parts_by_whole_objects!();
    no_shared_writes!();

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
        let found = self.store.read(key, range, limit, into)?;
        if !found {
            self.missed.lock().unwrap().push(key.to_owned());
        }
        Ok(found)
    }

    fn write(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        if let Some((array, after)) = &self.refuses
            && key.contains(array.as_str())
            && self.sizes.lock().unwrap().keys().filter(|k| k.contains(array.as_str())).count()
                >= *after
        {
            return Err(StorageError::Denied { place: self.place(key), action: "write" });
        }
        self.sizes.lock().unwrap().insert(key.to_owned(), bytes.len() as u64);
        if key.contains("/journal/") {
            let lines = std::str::from_utf8(bytes)
                .unwrap()
                .lines()
                .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
            self.told.lock().unwrap().extend(lines.filter_map(|entry| entry["done"][0].as_u64()));
        }
        self.store.write(key, bytes)
    }

    fn remove(&self, key: &str) -> Result<(), StorageError> {
        self.sizes
            .lock()
            .unwrap()
            .retain(|k, _| !(k == key || key.ends_with('/') && k.starts_with(key)));
        self.store.remove(key)
    }

    fn place(&self, key: &str) -> String {
        format!("{}/{key}", self.url)
    }
}

/// Plans a chain of four stages with three intermediates. Each chunk depends on all chunks of the
/// stage before.
fn chain(output: &str, spec: &Spec) -> Plan {
    let mut x = freestone::random_uniform([240, 200], 0.5, 1.0, 7, DType::Float32, [20, 200]);
    for chunks in [[240, 20], [20, 200], [240, 40]] {
        x = x.rechunk(chunks) * 2.0;
    }
    let planned =
        freestone::plan(&[Target::array(&x, output).codec(CodecName::None)], spec).unwrap();
    let between =
        planned.finalized().plan().arrays.iter().filter(|a| a.place == ArrayPlace::Work).count();
    assert_eq!(
        (planned.finalized().plan().stages.len(), between),
        (4, 3),
        "{}",
        planned.finalized()
    );
    planned
}

/// An observer that calls a function when a stage has ended.
struct Ended<F>(F);

impl<F: Fn(StageId) + Send + Sync> Observer for Ended<F> {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::StageEnded { stage } = event {
            (self.0)(*stage);
        }
    }
}

fn run(
    planned: &Plan,
    spec: &Spec,
    work: &Arc<Watched>,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<RunReport, Error> {
    let stores = Stores::default();
    stores.insert(Arc::<Watched>::clone(work));
    freestone::run_with(
        planned,
        spec,
        &Serial,
        &RunOptions {
            observers: &[observer],
            cancel: cancel.clone(),
            stores,
            ..RunOptions::default()
        },
    )
}

fn written_by(planned: &Plan, stage: usize) -> String {
    let plan = planned.finalized().plan();
    plan.array(plan.stages[stage].outputs[0].array).name.clone()
}

/// An intermediate without journal entries is removed as soon as the next stage has ended;
/// otherwise with the next journal batch.
#[test]
fn intermediates_are_removed_after_their_readers() {
    let (place, work) = (Place::new(), Watched::new(None));
    let spec = spec_in(work.url());
    let planned = chain(&place.at("out"), &spec);
    let seen = Mutex::new(Vec::new());
    let observer = Ended(|_: StageId| seen.lock().unwrap().push(work.arrays()));
    run(&planned, &without_room(&spec, &planned, 1), &work, &observer, &Cancel::default()).unwrap();
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen.len(), 4);
    let told = work.told.lock().unwrap();
    for (stage, arrays) in seen.iter().enumerate() {
        // The next stage reads this intermediate.
        assert!(
            stage == 3 || arrays.contains_key(&written_by(&planned, stage)),
            "after stage {stage}: {arrays:?}"
        );
        for earlier in 0..stage.min(3) {
            let is_there = arrays.contains_key(&written_by(&planned, earlier));
            assert!(
                !is_there || told.contains(&(earlier as u64)),
                "after stage {stage}, what stage {earlier} wrote is there: {arrays:?}"
            );
        }
        assert!(arrays.len() <= stage + 1, "{arrays:?}");
    }
    assert!(work.arrays().is_empty() && work.missed().is_empty());
}

#[test]
fn a_failed_run_keeps_needed_intermediates() {
    let place = Place::new();
    let planned = |work: &Arc<Watched>| chain(&place.at("out"), &spec_in(work.url()));
    let third = written_by(&planned(&Watched::new(None)), 2);
    let work = Watched::new(Some((third.clone(), 3)));
    let (spec, planned) = (spec_in(work.url()), planned(&work));
    let error =
        run(&planned, &without_room(&spec, &planned, 1), &work, &Ended(|_| {}), &Cancel::default())
            .unwrap_err();
    assert!(
        matches!(&error, Error::Run(e) if matches!(e.cause(), RunError::Task { .. })),
        "{error:?}"
    );
    // The third stage's input is complete, and its partial output is kept.
    let second = written_by(&planned, 1);
    let arrays = work.arrays();
    assert_eq!(arrays.keys().cloned().collect::<Vec<_>>(), [second.clone(), third]);
    let info = &planned.finalized().plan().arrays.iter().find(|a| a.name == second).unwrap().info;
    let chunks = work.store.keys().iter().filter(|k| k.contains(&second)).count() as u64;
    assert_eq!(chunks, info.grid.n_chunks());
}

#[test]
fn a_cancelled_run_keeps_needed_intermediates() {
    let (place, work) = (Place::new(), Watched::new(None));
    let spec = spec_in(work.url());
    let planned = chain(&place.at("out"), &spec);
    let cancel = Cancel::default();
    let observer = Ended(|stage: StageId| {
        if stage.0 == 1 {
            cancel.cancel()
        }
    });
    let error =
        run(&planned, &without_room(&spec, &planned, 1), &work, &observer, &cancel).unwrap_err();
    assert!(
        matches!(&error, Error::Run(e) if matches!(e.cause(), RunError::Cancelled)),
        "{error:?}"
    );
    assert_eq!(work.arrays().keys().cloned().collect::<Vec<_>>(), [written_by(&planned, 1)]);
    assert!(freestone::open(place.at("out")).is_err());
}

/// With memory for all intermediates, for none, and for some.
#[test]
fn the_memory_tier_changes_no_byte() {
    let place = Place::new();
    let mut expect = None;
    for room in [None, Some(0), Some(300_000)] {
        let work = Watched::new(None);
        let spec = spec_in(work.url());
        let output = place.at(&format!("out-{room:?}"));
        let planned = chain(&output, &spec);
        let tight = without_room(&spec, &planned, 2);
        let spec = room.map_or(spec.clone(), |room| Spec {
            local_mem: tight.local_mem + room,
            ..spec.clone()
        });
        let stores = Stores::default();
        stores.insert(Arc::<Watched>::clone(&work));
        let report = freestone::run_with(
            &planned,
            &spec,
            &Threads::new(2),
            &RunOptions { stores, ..RunOptions::default() },
        )
        .unwrap();
        // If a run takes long enough for a journal batch, intermediates in memory are saved in
        // `kept`.
        let is_chunk = |k: &String| {
            k.matches('/').count() == 2 && !k.contains("/journal/") && !k.contains("/kept/")
        };
        let spilled = work.store.counts().writes.keys().any(is_chunk);
        assert_eq!(
            (report.cached_bytes > 0, spilled),
            (room != Some(0), room.is_some()),
            "{room:?}: {report}"
        );
        assert!(
            report.projected_bytes <= spec.local_mem
                && report.cached_bytes <= room.unwrap_or(u64::MAX)
        );
        assert!(work.arrays().is_empty());
        let found = tree(&output);
        assert!(*expect.get_or_insert_with(|| found.clone()) == found, "{room:?}");
    }
}

#[test]
fn a_small_sum_writes_only_plan_and_journal() {
    let (place, work) = (Place::new(), Watched::new(None));
    let spec = spec_in(work.url());
    let x = freestone::random_uniform([1000, 100], 0.0, 1.0, 7, DType::Float32, [10, 100]);
    let planned = freestone::plan(&[Target::array(&x.sum(()), place.at("out"))], &spec).unwrap();
    assert_eq!(planned.finalized().plan().stages.len(), 2);
    let stores = Stores::default();
    stores.insert(Arc::<Watched>::clone(&work));
    freestone::run_with(
        &planned,
        &spec,
        &Threads::new(2),
        &RunOptions { stores, ..RunOptions::default() },
    )
    .unwrap();
    let mut written: Vec<String> = work
        .store
        .counts()
        .writes
        .into_keys()
        .map(|k| k.split_once('/').unwrap().1.to_owned())
        .collect();
    written.sort_unstable();
    // The number of journal batches, and of intermediates saved with them, depends on the run's
    // duration.
    written.retain(|name| !name.starts_with("journal/") && !name.starts_with("kept/"));
    assert_eq!(written, ["plan.json", "run.json"]);
}

#[test]
fn processes_have_no_memory_tier() {
    let place = Place::new();
    let planned = chain(&place.at("out"), &place.spec());
    let report = freestone::run(&planned, &place.spec(), &processes(2)).unwrap();
    assert_eq!(
        (report.cached_bytes, report.projected_bytes),
        (0, planned.finalized().projected_mem())
    );
}

/// Whole processes, with memory for all intermediates and for some.
#[test]
fn the_memory_tier_is_in_the_projection() {
    let place = Place::new();
    let spec = place.spec();
    let x = freestone::random_uniform([4000, 2000], 0.0, 1.0, 3, DType::Float32, [500, 2000]);
    let small = x.rechunk([100, 200]);
    for (name, x) in [("large", &x), ("small", &small)] {
        freestone::run(
            &freestone::plan(&[Target::array(x, place.at(name)).codec(CodecName::None)], &spec)
                .unwrap(),
            &spec,
            &Serial,
        )
        .unwrap();
    }
    for (i, (name, local)) in
        [("large", "1GB"), ("large", "110MB"), ("small", "1GB"), ("small", "60MB")]
            .into_iter()
            .enumerate()
    {
        let (input, out) = (format!("x={}", place.at(name)), place.at(&format!("out-{i}")));
        let shared = ["--codec", "none", "--threads", "2", "--json", "--local-mem", local];
        let arguments = [
            "compute",
            "rechunk(rechunk(rechunk(x * 2, [1000, 500]) + 1, [500, 1000]), [250, 2000])",
            "-i",
            &input,
            "-o",
            &out,
        ];
        let said = crate::command::stdout(&crate::command::freestone(
            &place,
            &[&arguments[..], &shared].concat(),
        ));
        let report: serde_json::Value = serde_json::from_str(&said).unwrap();
        let [projected, peak, kept] =
            ["projected_mem", "peak_mem", "kept_mem"].map(|k| report[k].as_u64().unwrap());
        println!("{name} in {local}: {peak} measured, {kept} kept, {projected} projected");
        assert!(
            peak <= projected && projected <= freestone::parse_size(local).unwrap(),
            "{name} in {local}: {peak} measured, {projected} projected"
        );
        // Two intermediates of 32 MB coexist while the second is written.
        assert!(kept > if local == "1GB" { 64_000_000 } else { 10_000_000 }, "{kept}");
        assert!(peak > kept);
    }
}
