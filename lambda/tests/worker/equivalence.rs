//! Plans that any implementation of Lambda must run to the same bytes as threads: the emulator and
//! ministack.

use std::collections::BTreeMap;

use freestone_engine::events::RunReport;
use freestone_engine::executor::Executor;
use freestone_engine::spec::Spec;
use freestone_engine::storage::{Store, Stores, read_small};
use freestone_executors::Threads;
use freestone_lambda::DType;
use freestone_ops::io::{Target, open_in};
use freestone_ops::{Array, random_normal};
use freestone_sessions::{Format, MAIN, Repository};

use crate::functions::Place;
use crate::runs::{committed, run, tree};

/// Returns all objects below a location, which is a directory or on an object store.
pub(crate) fn objects(place: &str) -> BTreeMap<String, Vec<u8>> {
    fn walk(store: &dyn Store, folder: &str, found: &mut BTreeMap<String, Vec<u8>>) {
        for name in store.list(folder).unwrap() {
            let key = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            match read_small(store, &key, 1 << 28).unwrap() {
                Some(bytes) => drop(found.insert(key, bytes)),
                None => walk(store, &key, found),
            }
        }
    }
    if !place.contains("://") {
        return tree(place);
    }
    let mut found = BTreeMap::new();
    walk(&*Stores::default().open(place).unwrap(), "", &mut found);
    found
}

/// Returns a spec with tasks of at most 60 MB, and a work directory below `root`.
fn spec(local: &Place, root: &str) -> Spec {
    local.spec_with(|s| {
        (s.allowed_mem, s.work_dir) = (Some(60_000_000), Some(format!("{root}/work")))
    })
}

/// Runs quadratic means, a rechunk and a matrix product, with inputs and outputs below `root`.
/// Asserts that they write the same bytes as threads. Returns the reports of the runs on Lambda.
pub(crate) fn check_same_bytes(lambda: &dyn Executor, root: &str) -> Vec<RunReport> {
    let local = Place::new();
    let spec = spec(&local, root);
    let stored = |name: &str, array: &Array| {
        let place = format!("{root}/{name}");
        run(&[Target::array(array, &place).overwrite(true)], &local.spec(), &Threads::new(2));
        open_in(&Stores::default().open(&place).unwrap(), "").unwrap()
    };
    let u = stored("u", &random_normal([64, 150, 100], 0.0, 1.0, 1, DType::Float32, [8, 150, 100]));
    let v = stored("v", &random_normal([64, 150, 100], 1.0, 2.0, 2, DType::Float32, [8, 150, 100]));
    let a = stored("a", &random_normal([300, 400], 0.0, 1.0, 3, DType::Float64, [100, 100]));
    let quad = [("uu", &u * &u), ("uv", &u * &v), ("vv", &v * &v)]
        .map(|(name, product)| (name, product.mean(0)));
    let kinds = [
        ("quad", quad.to_vec()),
        ("rechunk", vec![("columns", u.rechunk([64, 30, 20]))]),
        ("matmul", vec![("product", a.matmul(&a.matrix_transpose()))]),
    ];
    let mut reports = Vec::new();
    for (kind, arrays) in kinds {
        let targets = |to: &str| {
            arrays
                .iter()
                .map(|(name, array)| Target::in_group(array, to, name).overwrite(true))
                .collect::<Vec<_>>()
        };
        let (here, there) = (local.at(kind), format!("{root}/{kind}"));
        // `parallelism` is part of the plan, which determines the exact bits, so it is the same.
        run(&targets(&here), &spec, &Threads::new(2));
        reports.push(run(&targets(&there), &spec, lambda));
        let (here, there) = (objects(&here), objects(&there));
        assert!(here.len() > arrays.len());
        assert!(here == there, "{kind}: {:?} and {:?}", here.keys(), there.keys());
    }
    reports
}

/// Returns the sorted contents of a repository's chunk objects. Their names depend on the session.
pub(crate) fn chunk_objects(repository: &str) -> Vec<Vec<u8>> {
    // Killed workers leave partial files, with names that begin with a dot, until garbage is
    // collected.
    let mut chunks: Vec<Vec<u8>> = objects(&format!("{repository}/chunks"))
        .into_iter()
        .filter(|(name, _)| !name.starts_with('.'))
        .map(|(_, bytes)| bytes)
        .collect();
    chunks.sort_unstable();
    chunks
}

/// Runs a plan as one commit into a repository below `root`, from the receipts of its workers.
/// Asserts that it has the same objects as a run on threads.
pub(crate) fn check_one_commit(lambda: &dyn Executor, root: &str) {
    let local = Place::new();
    let spec = spec(&local, root);
    let source = random_normal([200, 60], 0.0, 1.0, 1, DType::Float64, [2, 60]);
    let arrays = [
        ("group/twice", &source * 2.0),
        ("group/rows", source.rechunk([20, 30])),
        ("group/mean", source.mean(0)),
    ];
    let threads = Threads::new(2);
    let places: [(String, &dyn Executor); 2] = [
        (local.at("repository"), &threads),
        (format!("{root}/repository-{}", std::process::id()), lambda),
    ];
    let mut found = Vec::new();
    for (place, executor) in &places {
        let repository = Repository::open_or_create(place, Format::default()).unwrap();
        committed(&repository, &arrays, &spec, *executor);
        let session = repository.readonly_session(&MAIN.into()).unwrap();
        let values =
            arrays.each_ref().map(|(name, _)| session.array(name).unwrap().read().unwrap());
        found.push((values, chunk_objects(place)));
    }
    assert_eq!(found[0].0[0].len(), 200 * 60 * 8);
    assert!(found[0].0 == found[1].0, "the values differ");
    assert!(
        found[0].1.len() >= 120 && found[0].1 == found[1].1,
        "{} and {} objects",
        found[0].1.len(),
        found[1].1.len()
    );
}
