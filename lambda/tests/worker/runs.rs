//! Plans and runs, as a client makes them. The test client shares this module.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use freestone_engine::driver::{self, Run, RunError};
use freestone_engine::events::RunReport;
use freestone_engine::executor::Executor;
use freestone_engine::plan::FinalizedPlan;
use freestone_engine::plan::lower::{kernels_of, lower, stores_of};
use freestone_engine::publish::PlainZarr;
use freestone_engine::spec::{Settings, Spec};
use freestone_engine::storage::Stores;
use freestone_engine::user::KernelRegistry;
use freestone_engine::worker::Cancel;
use freestone_executors::LambdaExecutor;
use freestone_lambda::DType;
use freestone_ops::io::{Target, outputs};
use freestone_ops::{Array, OutputBlocks, map_blocks};
use freestone_sessions::{CommitOptions, MAIN, Repository, RepositoryPublisher, Snapshot};

use crate::scripted::Scripted;

/// Returns a registry with the kernel of the test worker.
pub(crate) fn kernels() -> KernelRegistry {
    KernelRegistry::new().with::<Scripted>()
}

/// Returns the spec of tests, with its work directory below `root`: tasks of at most 100 MB, and a
/// parallelism of 2.
pub(crate) fn spec_in(root: &Path, change: impl FnOnce(&mut Settings)) -> Spec {
    let mut settings = Settings {
        work_dir: Some(root.join("work").display().to_string()),
        allowed_mem: Some(100_000_000),
        local_mem: Some(1_000_000_000),
        threads: Some(2),
        parallelism: Some(2),
        ..Settings::default()
    };
    change(&mut settings);
    settings.resolve().unwrap()
}

/// Returns `0, 1, …` in chunks of 10 elements.
pub(crate) fn numbers(n_chunks: u64) -> Array {
    freestone_ops::arange(0.0, 10.0 * n_chunks as f64, 1.0, DType::Float64, 10)
}

/// Returns `0, 1, …` in chunks of 10 elements, mapped by the kernel.
pub(crate) fn scripted(n_chunks: u64, kernel: &Scripted) -> Array {
    through(kernel, &numbers(n_chunks))
}

/// Maps an array of float64 by the kernel.
pub(crate) fn through(kernel: &Scripted, array: &Array) -> Array {
    map_blocks(kernel, [array], &OutputBlocks::new(DType::Float64))
}

pub(crate) fn plan(targets: &[Target], spec: &Spec) -> FinalizedPlan {
    lower(&outputs(targets, &Stores::default()).unwrap(), spec).unwrap()
}

/// Plans and runs.
pub(crate) fn run(targets: &[Target], spec: &Spec, executor: &dyn Executor) -> RunReport {
    try_run(targets, spec, executor).unwrap()
}

/// Plans and runs. Returns the run's error.
pub(crate) fn try_run(
    targets: &[Target],
    spec: &Spec,
    executor: &dyn Executor,
) -> Result<RunReport, RunError> {
    let lowered = outputs(targets, &Stores::default()).unwrap();
    let plan = Arc::new(lower(&lowered, spec).unwrap());
    let stores = stores_of(&lowered).unwrap();
    let session = PlainZarr::new(stores.clone());
    let kernels = kernels_of(&lowered).unwrap();
    let run = Run {
        spec,
        stores: &stores,
        kernels: &kernels,
        executor,
        publisher: &session,
        observers: &[],
        cancel: Cancel::default(),
    };
    driver::run(&plan, &run)
}

/// Returns an executor for the function `freestone` at a URL. `batch_ms` is the duration at which
/// its invocations aim.
pub(crate) fn executor(url: &str, concurrency: usize, batch_ms: u64) -> LambdaExecutor {
    LambdaExecutor::new("freestone", "us-east-1")
        .endpoint(url)
        .credentials("key", "secret", None)
        .concurrency(concurrency)
        .batches(8, Duration::from_millis(batch_ms))
        .function_timeout(Duration::from_secs(30))
}

/// Computes arrays into a repository as one commit. Returns the commit and the run's report.
pub(crate) fn committed(
    repository: &Repository,
    arrays: &[(&str, Array)],
    spec: &Spec,
    executor: &dyn Executor,
) -> (Snapshot, RunReport) {
    let before = repository.history(&MAIN.into()).unwrap().len();
    let session = repository.writable_session(MAIN).unwrap();
    let stores = freestone_lambda::stores();
    stores.insert(session.store());
    let url = session.store().url().to_owned();
    let targets: Vec<Target> = arrays
        .iter()
        .map(|(name, array)| Target::in_group(array, &url, name).with_stores(&stores))
        .collect();
    let lowered = outputs(&targets, &stores).unwrap();
    let plan = Arc::new(lower(&lowered, spec).unwrap());
    let commit = RepositoryPublisher::committing(&session, "one commit", CommitOptions::default());
    stores.insert(freestone_engine::publish::Publisher::store(&commit).unwrap());
    let kernels = kernels_of(&lowered).unwrap();
    let run = Run {
        spec,
        stores: &stores,
        kernels: &kernels,
        executor,
        publisher: &commit,
        observers: &[],
        cancel: Cancel::default(),
    };
    let report = driver::run(&plan, &run).unwrap();
    let mut history = repository.history(&MAIN.into()).unwrap();
    assert_eq!((history.len(), report.snapshot.as_ref()), (before + 1, Some(&history[0].id)));
    let id = Some(session.id());
    let is_of_session = |snapshot: &&Snapshot| {
        snapshot.properties.get("freestone_session").and_then(|v| v.as_str()) == id
    };
    assert_eq!(history.iter().filter(is_of_session).count(), 1, "the session has one commit");
    (history.swap_remove(0), report)
}

/// Returns all files below a folder by their relative paths.
pub(crate) fn tree(folder: impl AsRef<Path>) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                found.insert(
                    path.strip_prefix(root).unwrap().display().to_string(),
                    fs::read(&path).unwrap(),
                );
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder.as_ref(), folder.as_ref(), &mut found);
    found
}
