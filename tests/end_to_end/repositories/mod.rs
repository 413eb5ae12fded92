//! Runs that commit to repositories: one plan, one commit.
//!
//! These tests use the API. `append` grows arrays, `conflicts` has competing commits, `killed`
//! drivers that die, `shared` sessions joined by id, and `command` the command line.

mod append;
mod command;
mod conflicts;
mod killed;
mod shared;

use std::fs;
use std::process::Output;

use freestone::sessions::{CommitOptions, Format, MAIN, Repository, Version};
use freestone::{Array, DType, RunOptions, Serial, Session, Spec, Target, Threads};
use freestone_engine::executor::Executor;
use ndarray::ArrayD;

use crate::command::stdout;
use crate::support::{Place, WINDS_V3, processes, tree};

fn repository(place: &Place) -> Repository {
    Repository::open_or_create(&place.at("repository"), Format::default()).unwrap()
}

fn ramp(n: f64) -> Array {
    freestone::arange(0.0, n, 1.0, DType::Float64, 10)
}

fn values(
    repository: &Repository,
    version: impl Into<Version>,
    path: &str,
    spec: &Spec,
) -> ArrayD<f64> {
    freestone::compute(&freestone::open_version(repository, version, path).unwrap(), spec).unwrap()
}

fn n_snapshots(repository: &Repository) -> usize {
    repository.history(&MAIN.into()).unwrap().len()
}

/// Returns the id that a command printed.
fn id_of(output: &Output) -> String {
    stdout(output).trim().to_owned()
}

#[test]
fn several_arrays_are_one_plan_and_one_commit() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let mut session = Session::begin(&repository, MAIN).unwrap();
    session.store(&ramp(40.0), "a/up").unwrap().store(&(ramp(40.0) * -1.0), "a/b/down").unwrap();
    assert!(
        freestone::open_version(&repository, MAIN, "a/up").is_err(),
        "nothing is visible before the commit"
    );
    let report = session.commit("both", &spec).unwrap();
    assert_eq!(report.stages.len(), 2, "one plan for both");
    assert_eq!(n_snapshots(&repository), 2);
    assert_eq!(values(&repository, MAIN, "a/b/down", &spec).sum(), -780.0);
    let newest = &repository.history(&MAIN.into()).unwrap()[0];
    assert_eq!((Some(&newest.id), newest.message.as_str()), (report.snapshot.as_ref(), "both"));
    assert!(newest.properties.contains_key("freestone_plan"));

    // The result of one commit is the input of the next, and the old snapshot stays readable.
    let mut session = Session::begin(&repository, MAIN).unwrap();
    let up = session.open("a/up").unwrap();
    let target = session.target(&(&up + 1.0), "a/up").overwrite(true);
    session.add(target);
    session.commit("one more", &spec).unwrap();
    assert_eq!(values(&repository, MAIN, "a/up", &spec).sum(), 820.0);
    assert_eq!(
        values(&repository, Version::Snapshot(newest.id.clone()), "a/up", &spec).sum(),
        780.0
    );
}

#[test]
fn a_plan_reads_the_snapshot_of_its_planning() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let commit = |value: f64| {
        let mut session = Session::begin(&repository, MAIN).unwrap();
        let array = freestone::full([20], value, DType::Float64, [10]);
        let target = session.target(&array, "x").overwrite(true);
        session.add(target);
        session.commit("a value", &spec).unwrap();
    };
    commit(1.0);
    let x = freestone::open(format!("icechunk+{}#branch=main/x", place.at("repository"))).unwrap();
    let planned = freestone::plan(&[Target::array(&(&x + 0.0), place.at("plain"))], &spec).unwrap();
    commit(2.0);
    freestone::run(&planned, &spec, &processes(2)).unwrap();
    let plain =
        freestone::compute::<f64>(&freestone::open(place.at("plain")).unwrap(), &spec).unwrap();
    assert_eq!(plain.sum(), 20.0);
}

/// All executors commit the same bytes, with coordinates.
#[test]
fn executors_commit_the_same_bytes() {
    let place = Place::quick();
    let u = freestone::open(format!("{WINDS_V3}/u")).unwrap();
    let (threads, processes) = (Threads::new(2), processes(2));
    let executors: [&dyn Executor; 3] = [&Serial, &threads, &processes];
    let mut chunks = Vec::new();
    for executor in executors {
        let repository =
            Repository::open_or_create(&place.at(executor.name()), Format::default()).unwrap();
        let mut session = Session::begin(&repository, MAIN).unwrap();
        session
            .store(&(&u * &u).mean(0), "means/uu")
            .unwrap()
            .store(&u.rechunk([12, 20, 20]), "means/u")
            .unwrap();
        session
            .commit_with(
                "means",
                &place.spec(),
                executor,
                CommitOptions::default(),
                &RunOptions::default(),
            )
            .unwrap();
        let mean = freestone::open_version(&repository, MAIN, "means/uu").unwrap();
        let names: Vec<_> = mean.dims().unwrap().iter().map(|d| d.name.clone().unwrap()).collect();
        assert_eq!(names, ["latitude", "longitude"]);
        assert_eq!(
            freestone::open_version(&repository, MAIN, "means/latitude").unwrap().shape().unwrap(),
            [73]
        );
        let mut all: Vec<Vec<u8>> =
            tree(format!("{}/chunks", place.at(executor.name()))).into_values().collect();
        all.sort_unstable();
        chunks.push(all);
    }
    assert!(!chunks[0].is_empty() && chunks.windows(2).all(|w| w[0] == w[1]));
}

/// A session's uncommitted changes can be read on threads. Other executors refuse to read the older
/// state.
#[test]
fn uncommitted_changes_are_read_on_threads_only() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let mut session = Session::begin(&repository, MAIN).unwrap();
    session.store(&ramp(20.0), "x").unwrap();
    session.commit("x", &spec).unwrap();
    let begin = || {
        let mut session = Session::begin(&repository, MAIN).unwrap();
        let twos: Vec<u8> = [2.0f64; 10].iter().flat_map(|v| v.to_ne_bytes()).collect();
        session.writable().unwrap().array("x").unwrap().write_chunk(&[0], &twos).unwrap();
        let x = session.open("x").unwrap();
        session.store(&(x * 1.0), "y").unwrap();
        session
    };
    let error = begin()
        .commit_with("y", &spec, &processes(1), CommitOptions::default(), &RunOptions::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("commit it first, or compute on threads"), "{error}");
    begin().commit("y", &spec).unwrap();
    assert_eq!(values(&repository, MAIN, "y", &spec).sum(), 20.0 + 145.0);
    assert_eq!(values(&repository, MAIN, "x", &spec).sum(), 20.0 + 145.0);
}

/// `tests/interop/icechunk_read.py` checks the repositories.
#[test]
#[ignore = "needs Python's icechunk: run by .ci/run"]
fn icechunk_reads_committed_runs() {
    let place = Place::new();
    let folder = std::env::var("FREESTONE_ICECHUNK").expect("FREESTONE_ICECHUNK is set by .ci/run");
    let path = format!("{folder}/ours-run");
    let _ = fs::remove_dir_all(&path);
    let repository = Repository::create(&path, Format::default()).unwrap();
    let u = freestone::open(format!("{WINDS_V3}/u")).unwrap();
    let mut session = Session::begin(&repository, MAIN).unwrap();
    session.store(&(&u * &u).mean(0), "means/uu").unwrap();
    session.commit("squares", &place.spec()).unwrap();
    let mut session = Session::begin(&repository, MAIN).unwrap();
    let twice = session.open("means/uu").unwrap() * 2.0;
    session.store(&twice, "means/twice").unwrap();
    session
        .commit_with(
            "twice that",
            &place.spec(),
            &processes(2),
            CommitOptions::default(),
            &RunOptions::default(),
        )
        .unwrap();
    // The format of Icechunk 1, with a group to which days were appended.
    let repository = append::four_days(&place, Format::V1);
    let (wind, time) = append::days(4, 3);
    let mut session = Session::begin(&repository, MAIN).unwrap();
    session
        .append(&wind, "wind/speed", 0)
        .unwrap()
        .append(&wind, "wind/direction", 0)
        .unwrap()
        .append(&time, "wind/time", 0)
        .unwrap();
    session.commit("three more days", &place.spec()).unwrap();
    let _ = fs::remove_dir_all(format!("{folder}/ours-appended"));
    fs::rename(place.at("wind"), format!("{folder}/ours-appended")).unwrap();
}
