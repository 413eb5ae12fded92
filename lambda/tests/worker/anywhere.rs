//! What a Lambda does through the client, whoever offers it: ours and another run the same plans,
//! to the same bytes as threads.

use std::collections::BTreeMap;
use std::sync::Arc;

use freestone_engine::driver::{self, Run};
use freestone_engine::events::RunReport;
use freestone_engine::executor::Executor;
use freestone_engine::plan::lower::{kernels_of, lower};
use freestone_engine::spec::Spec;
use freestone_engine::storage::{Store, Stores, read_small};
use freestone_engine::worker::Cancel;
use freestone_executors::Threads;
use freestone_lambda::DType;
use freestone_ops::io::{Target, open_in, outputs};
use freestone_ops::{Array, random_normal};
use freestone_sessions::{CommitOptions, Format, MAIN, Repository, RepositoryPublisher, Snapshot};

use crate::support::{Place, run, tree};

/// Every object below a place, in a directory or on an object store.
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

/// Tasks of at most 60 MB, and a work directory below `root`.
fn spec(own: &Place, root: &str) -> Spec {
    own.spec_with(|s| {
        (s.allowed_mem, s.work_dir) = (Some(60_000_000), Some(format!("{root}/work")))
    })
}

/// Quad means, a rechunk and a product of matrices, with all that they read and write below `root`:
/// the bytes are those that threads write here. What the runs on Lambda have reported.
pub(crate) fn plans_have_the_same_bytes(lambda: &dyn Executor, root: &str) -> Vec<RunReport> {
    let own = Place::new();
    let spec = spec(&own, root);
    let stored = |name: &str, array: &Array| {
        let place = format!("{root}/{name}");
        run(&[Target::array(array, &place).overwrite(true)], &own.spec(), &Threads::new(2));
        open_in(&Stores::default().open(&place).unwrap(), "").unwrap()
    };
    let u =
        stored("u", &random_normal(&[64, 150, 100], 0.0, 1.0, 1, DType::Float32, &[8, 150, 100]));
    let v =
        stored("v", &random_normal(&[64, 150, 100], 1.0, 2.0, 2, DType::Float32, &[8, 150, 100]));
    let a = stored("a", &random_normal(&[300, 400], 0.0, 1.0, 3, DType::Float64, &[100, 100]));
    let quad = [("uu", &u * &u), ("uv", &u * &v), ("vv", &v * &v)]
        .map(|(name, product)| (name, product.mean(0)));
    let kinds = [
        ("quad", quad.to_vec()),
        ("rechunk", vec![("columns", u.rechunk(&[64, 30, 20]))]),
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
        let (here, there) = (own.at(kind), format!("{root}/{kind}"));
        // One `parallelism`: it is part of the plan, which decides the bits.
        run(&targets(&here), &spec, &Threads::new(2));
        reports.push(run(&targets(&there), &spec, lambda));
        let (here, there) = (objects(&here), objects(&there));
        assert!(here.len() > arrays.len());
        assert!(here == there, "{kind}: {:?} and {:?}", here.keys(), there.keys());
    }
    reports
}

/// Computes arrays into a repository, as one commit; who has committed it, and the run's report.
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
    let commit = RepositoryPublisher::committing(&session, "by many", CommitOptions::default());
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
    assert_eq!(
        history
            .iter()
            .filter(|s| s.properties.get("freestone_session").and_then(|v| v.as_str()) == id)
            .count(),
        1,
        "it is committed once"
    );
    (history.swap_remove(0), report)
}

/// Chunk objects of a repository, whatever their names, which follow from the session, too.
pub(crate) fn chunk_objects(repository: &str) -> Vec<Vec<u8>> {
    // What killed workers were writing lies there too, under names that begin with a dot, until
    // garbage is collected.
    let mut chunks: Vec<Vec<u8>> = objects(&format!("{repository}/chunks"))
        .into_iter()
        .filter(|(name, _)| !name.starts_with('.'))
        .map(|(_, bytes)| bytes)
        .collect();
    chunks.sort_unstable();
    chunks
}

/// One commit for a whole run, into a repository below `root`, with receipts from the workers: the
/// same objects as threads write.
pub(crate) fn a_run_is_one_commit(lambda: &dyn Executor, root: &str) {
    let own = Place::new();
    let spec = spec(&own, root);
    let source = random_normal(&[200, 60], 0.0, 1.0, 1, DType::Float64, &[2, 60]);
    let arrays = [
        ("group/twice", &source * 2.0),
        ("group/rows", source.rechunk(&[20, 30])),
        ("group/mean", source.mean(0)),
    ];
    let threads = Threads::new(2);
    let places: [(String, &dyn Executor); 2] = [
        (own.at("repository"), &threads),
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
