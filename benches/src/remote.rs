//! The gain of prefetching chunks from a remote store.
//!
//! The store keeps its objects in memory, and delivers them with the latency and the bandwidth of
//! one S3 connection (FACTS). The same plan runs with prefetch and without.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use freestone::{
    Array, CodecName, DType, Encoding, MemoryStore, Settings, Spec, Stores, Target, Threads,
};
use freestone_engine::kernels::Buffer;
use freestone_engine::machine;
use freestone_engine::plan::StageId;
use freestone_engine::storage::{Admit, ByteRange, PendingRead, ReadOutcome, StorageError, Store};

use crate::{Failure, sample};

/// The latency of the first byte, and the bandwidth of one connection.
const LATENCY: Duration = Duration::from_millis(20);
const BYTES_PER_SECOND: f64 = 90e6;
/// Days of 4 MB, in chunks of one day.
const SHAPE: [u64; 3] = [64, 1000, 1000];
const CHUNK: [u64; 3] = [1, 1000, 1000];
const THREADS: usize = 2;

#[derive(Debug)]
struct Distant {
    store: Arc<MemoryStore>,
    ahead: bool,
}

/// Reads an object with the simulated delay.
fn deliver(
    store: &MemoryStore,
    key: &str,
    range: Option<ByteRange>,
    limit: u64,
    into: &mut Buffer,
) -> Result<bool, StorageError> {
    let found = store.read(key, range, limit, into)?;
    std::thread::sleep(LATENCY + Duration::from_secs_f64(into.len() as f64 / BYTES_PER_SECOND));
    Ok(found)
}

#[deny(clippy::missing_trait_methods)]
impl Store for Distant {
    forward_store!(store: write remove list sync remove_partial_writes);
    forward_store!(store: lock is_locked size modified blocking_file);
    parts_by_whole_objects!();
    no_shared_writes!();

    fn url(&self) -> &str {
        "s3://distant/store"
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
        deliver(&self.store, key, range, limit, into)
    }

    fn begin_read(
        &self,
        key: &str,
        range: Option<ByteRange>,
        limit: u64,
        admit: Admit,
    ) -> Option<PendingRead> {
        if !self.ahead {
            return None;
        }
        let (store, key, (send, receive)) =
            (Arc::clone(&self.store), key.to_owned(), mpsc::sync_channel(1));
        std::thread::spawn(move || {
            let mut into = Buffer::zeroed(limit as usize);
            send.send(deliver(&store, &key, range, limit, &mut into).map(|found| match found {
                true => admit(into.len() as u64).map_or(ReadOutcome::Refused, |mut admitted| {
                    admitted.bytes_mut().copy_from_slice(into.bytes());
                    ReadOutcome::Found(admitted)
                }),
                false => ReadOutcome::Missing,
            }))
        });
        let dropped = |_| StorageError::Io {
            place: "the distant store".into(),
            action: "read",
            message: "its thread is gone".into(),
            transient: false,
        };
        Some(PendingRead::new(move || receive.recv().map_err(dropped)?))
    }

    fn place(&self, key: &str) -> String {
        format!("{}/{key}", self.url())
    }
}

/// Measures means over time and a rechunk, and prints the results.
pub(crate) fn print_all(repeat: u32) -> Result<(), Failure> {
    let store = Arc::new(MemoryStore::new());
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
    let at = |name: &str| folder.path().join(name).display().to_string();
    let settings = Settings {
        work_dir: Some(at("work")),
        threads: Some(THREADS),
        parallelism: Some(THREADS as u64),
        ..Settings::default()
    };
    let spec = settings.resolve()?;
    let stores = Stores::default();
    stores.insert(Arc::clone(&store) as Arc<dyn Store>);
    let random = freestone::random_normal(SHAPE, 0.0, 1.0, 3, DType::Float32, CHUNK);
    let zstd = Encoding::from(CodecName::Zstd(1));
    let target =
        Target::array(&random, format!("{}/x", store.url())).with_stores(&stores).codec(zstd);
    freestone::run(&freestone::plan(&[target], &spec)?, &spec, &Threads::new(THREADS))?;
    println!(
        "{} chunks of {} MB of noise (zstd), {} ms and {:.0} MB/s away; {THREADS} threads, medians \
            of {repeat}",
        SHAPE[0],
        CHUNK.iter().product::<u64>() * 4 / 1_000_000,
        LATENCY.as_millis(),
        BYTES_PER_SECOND * 1e-6
    );
    type Work = fn(&Array) -> Result<Array, Failure>;
    let works: [(&str, Work); 2] = [
        ("mean over time", |x| Ok(x.mean(0))),
        ("rechunk to rows", |x| Ok(x.rechunk([64, 50, 1000]))),
    ];
    for (name, work) in works {
        let mut medians = Vec::new();
        for ahead in [false, true] {
            let open = || -> Result<Array, Failure> {
                Ok(freestone::open_in(
                    &(Arc::new(Distant { store: Arc::clone(&store), ahead }) as Arc<dyn Store>),
                    "x",
                )?)
            };
            let (array, mut walls, mut cpus) = (work(&open()?)?, Vec::new(), Vec::new());
            for _ in 0..repeat {
                let planned =
                    freestone::plan(&[Target::array(&array, at(name)).overwrite(true)], &spec)?;
                let (start, cpu) = (Instant::now(), machine::process_cpu_ns());
                freestone::run(&planned, &spec, &Threads::new(THREADS))?;
                walls.push(start.elapsed().as_secs_f64());
                cpus.push((machine::process_cpu_ns() - cpu) as f64 * 1e-9);
                if ahead && walls.len() == 1 {
                    print_projection(&planned, &spec);
                }
            }
            let (wall, cpu) = (
                sample::median(walls.into_iter()).unwrap_or(f64::NAN),
                sample::median(cpus.into_iter()).unwrap_or(f64::NAN),
            );
            println!(
                "{name}, {}: {wall:.2} s, {cpu:.2} s of CPU",
                if ahead { "chunks ahead" } else { "each waited for" }
            );
            medians.push(wall);
        }
        println!("{name}: {:.2} times as fast", medians[0] / medians[1]);
    }
    Ok(())
}

fn print_projection(planned: &freestone::Plan, spec: &Spec) {
    let plan = planned.finalized();
    for (i, stage) in plan.plan().stages.iter().enumerate() {
        let layout = plan.layout(StageId(i));
        let (total, allowed) =
            (freestone::size(layout.estimate.total()), freestone::size(spec.allowed_mem));
        println!(
            "  {}: {} tasks, a window of {}, {total} projected of {allowed} allowed",
            stage.name,
            stage.n_tasks(),
            freestone::size(layout.window_bytes)
        );
    }
}
