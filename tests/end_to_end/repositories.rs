//! Runs that commit to repositories: one plan, one commit.
//!
//! Here through the API; `killed` has drivers that die, `shared` sessions that several join by
//! their id, `command` what the program says and refuses.

mod command;
mod killed;
mod shared;

use std::fs;
use std::process::Output;

use freestone::sessions::{
    CommitOptions, Format, MAIN, Rebase, Repository, RepositoryPublisher, Version,
};
use freestone::{
    Array, DType, Error, ExitCode, RunOptions, Serial, Session, Spec, Stores, Target, Threads,
};
use freestone_engine::executor::Executor;
use ndarray::{ArrayD, Axis};

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

#[test]
fn several_arrays_are_one_plan_and_one_commit() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let mut session = Session::begin(&repository, MAIN).unwrap();
    session.store(&ramp(40.0), "a/up").unwrap().store(&(ramp(40.0) * -1.0), "a/b/down").unwrap();
    assert!(
        freestone::open_version(&repository, MAIN, "a/up").is_err(),
        "nothing is there before the commit"
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
fn a_plan_reads_the_snapshot_that_it_was_made_for() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let commit = |value: f64| {
        let mut session = Session::begin(&repository, MAIN).unwrap();
        let array = freestone::full(&[20], value, DType::Float64, &[10]);
        let target = session.target(&array, "x").overwrite(true);
        session.add(target);
        session.commit("a value", &spec).unwrap();
    };
    commit(1.0);
    let x = freestone::open(&format!("icechunk+{}#branch=main/x", place.at("repository"))).unwrap();
    let planned =
        freestone::plan(&[Target::array(&(&x + 0.0), &place.at("plain"))], &spec).unwrap();
    commit(2.0);
    freestone::run(&planned, &spec, &processes(2)).unwrap();
    let plain =
        freestone::compute::<f64>(&freestone::open(&place.at("plain")).unwrap(), &spec).unwrap();
    assert_eq!(plain.sum(), 20.0);
}

/// Coordinates come along, on every executor the same bytes.
#[test]
fn executors_commit_the_same() {
    let place = Place::quick();
    let u = freestone::open(&format!("{WINDS_V3}/u")).unwrap();
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
            .store(&u.rechunk(&[12, 20, 20]), "means/u")
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

#[test]
fn an_array_grows_by_whole_chunks() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let part = |n: u64, value: f64| freestone::full(&[n, 6], value, DType::Float64, &[2, 3]);
    let mut session = Session::begin(&repository, MAIN).unwrap();
    session.store(&part(4, 1.0), "t").unwrap();
    session.commit("first", &spec).unwrap();
    for (value, n) in [(2.0, 2), (3.0, 1)] {
        let mut session = Session::begin(&repository, MAIN).unwrap();
        session.append(&part(n, value), "t", 0).unwrap();
        session.commit("more", &spec).unwrap();
    }
    let rows: Vec<f64> =
        values(&repository, MAIN, "t", &spec).mean_axis(Axis(1)).unwrap().into_iter().collect();
    assert_eq!(rows, [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 3.0]);
    let mut session = Session::begin(&repository, MAIN).unwrap();
    let error = session
        .append(&freestone::zeros(&[2, 5], DType::Float64, &[2, 5]), "t", 0)
        .unwrap_err()
        .to_string();
    assert!(error.contains("all other axes must be of the same length"), "{error}");
    // A region that cuts a chunk names the boundary.
    let target = session.target(&part(3, 5.0), "t").region(&[1..4, 0..6]);
    session.add(target);
    let error = session.commit("cut", &spec).unwrap_err().to_string();
    assert!(error.contains("0..4"), "{error}");
    let mut session = Session::begin(&repository, MAIN).unwrap();
    let target = session.target(&part(2, 5.0), "t").region(&[2..4, 0..6]);
    session.add(target);
    session.commit("a region", &spec).unwrap();
    assert_eq!(
        values(&repository, MAIN, "t", &spec).sum(),
        6.0 * (1.0 + 1.0 + 5.0 + 5.0 + 2.0 + 2.0 + 3.0)
    );
    // Now it ends inside of a chunk, which is written again with what it had.
    let mut session = Session::begin(&repository, MAIN).unwrap();
    session.append(&part(2, 4.0), "t", 0).unwrap();
    let error = session.append(&part(1, 4.0), "t", 0).unwrap_err().to_string();
    assert!(
        error.contains(
            "ends at 9 along axis 0, inside of a chunk of 2, and was changed in this session"
        ),
        "{error}"
    );
    let ints = freestone::zeros(&[1, 6], DType::Int64, &[1, 6]);
    assert!(session.append(&ints, "t", 0).unwrap_err().to_string().contains("cast it with astype"));
    session.commit("inside", &spec).unwrap();
    let rows: Vec<f64> =
        values(&repository, MAIN, "t", &spec).mean_axis(Axis(1)).unwrap().into_iter().collect();
    assert_eq!(rows, [1.0, 1.0, 5.0, 5.0, 2.0, 2.0, 3.0, 4.0, 4.0]);
}

/// `n` days from `first` on, with names for the axes: as the wind of each day, or as the days
/// themselves.
fn days(first: u64, n: u64) -> (Array, Array) {
    let time = freestone::arange(first as f64, (first + n) as f64, 1.0, DType::Float64, 4)
        .with_dims(["time"]);
    let ones = freestone::full(&[n, 6], 1.0, DType::Float64, &[2, 3]);
    ((&time.expand_dims(1) * &ones).with_dims(["time", "x"]), time)
}

/// A group `wind` with `speed` and `direction` of four days, and `time`.
fn four_days(place: &Place, format: Format) -> Repository {
    let repository = Repository::create(&place.at("wind"), format).unwrap();
    let mut session = Session::begin(&repository, MAIN).unwrap();
    let (wind, time) = days(0, 4);
    let time = time.with_attribute("units", "days since 2000-01-01");
    session
        .store(&wind, "wind/speed")
        .unwrap()
        .store(&wind, "wind/direction")
        .unwrap()
        .store(&time, "wind/time")
        .unwrap();
    session.commit("four days", &place.spec()).unwrap();
    repository
}

fn lengths(repository: &Repository) -> [u64; 3] {
    ["speed", "direction", "time"].map(|name| {
        freestone::open_version(repository, MAIN, &format!("wind/{name}")).unwrap().shape().unwrap()
            [0]
    })
}

/// Readers refuse a group whose arrays differ along an axis: so does the commit, and says what is
/// missing.
#[test]
fn arrays_of_a_group_grow_together() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = four_days(&place, Format::default());
    let (wind, time) = days(4, 2);
    let all = [("wind/speed", &wind), ("wind/direction", &wind), ("wind/time", &time)];
    for chosen in 1..8 {
        let mut session = Session::begin(&repository, MAIN).unwrap();
        let grown: Vec<_> = all
            .iter()
            .enumerate()
            .filter(|(i, _)| chosen & (1 << i) != 0)
            .map(|(_, a)| *a)
            .collect();
        for (path, array) in &grown {
            session.append(array, path, 0).unwrap();
        }
        if grown.len() == 3 {
            session.commit("six days", &spec).unwrap();
            continue;
        }
        let error = session.commit("uneven", &spec).unwrap_err();
        let Error::Uneven { left, before: 4, after: 6, .. } = &error else { panic!("{error}") };
        let missing: Vec<&str> = all
            .iter()
            .map(|(path, _)| *path)
            .filter(|path| !grown.iter().any(|(g, _)| g == path))
            .collect();
        assert!(
            left.len() == missing.len()
                && missing.iter().all(|path| left.iter().any(|l| l == path)),
            "{left:?}, not {missing:?}"
        );
        assert!(
            error.to_string().contains("session.append(&values, \"wind/")
                && error.exit_code() == ExitCode::Input,
            "{error}"
        );
        assert_eq!(lengths(&repository), [4, 4, 4], "nothing is visible");
    }
    assert_eq!(lengths(&repository), [6, 6, 6]);
    let expect: Vec<f64> = (0..6).map(f64::from).collect();
    assert_eq!(
        values(&repository, MAIN, "wind/time", &spec).into_iter().collect::<Vec<_>>(),
        expect
    );
}

/// What comes from a stored array brings its coordinates along, again and again, although these end
/// inside of a chunk.
#[test]
fn coordinates_are_appended_by_themselves() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = four_days(&place, Format::default());
    let source = |name: &str, units: &str, first: u64, n: u64| {
        let (wind, time) = days(first, n);
        let time = time.with_attribute("units", units);
        let targets = [
            Target::in_group(&wind, &place.at(name), "w"),
            Target::in_group(&time, &place.at(name), "time"),
        ];
        freestone::run(&freestone::plan(&targets, &spec).unwrap(), &spec, &Serial).unwrap();
        freestone::open(&place.at(&format!("{name}/w"))).unwrap()
    };
    for (i, (first, n)) in [(4, 3), (7, 1), (8, 2)].into_iter().enumerate() {
        let wind = source(&format!("part-{i}"), "days since 2000-01-01", first, n);
        let mut session = Session::begin(&repository, MAIN).unwrap();
        session
            .append(&(&wind * 1.0), "wind/speed", 0)
            .unwrap()
            .append(&wind, "wind/direction", 0)
            .unwrap();
        session.commit("more days", &spec).unwrap();
    }
    assert_eq!(lengths(&repository), [10, 10, 10]);
    let expect: Vec<f64> = (0..10).map(f64::from).collect();
    for name in ["wind/time", "wind/speed"] {
        let found = values(&repository, MAIN, name, &spec);
        let found: Vec<f64> = if found.ndim() == 1 {
            found.into_iter().collect()
        } else {
            found.index_axis(Axis(1), 2).iter().copied().collect()
        };
        assert_eq!(found, expect, "{name}");
    }
    let units = freestone::open_version(&repository, MAIN, "wind/time")
        .unwrap()
        .attributes()
        .unwrap()["units"]
        .clone();
    assert_eq!(units, "days since 2000-01-01");

    // Numbers that mean other days, and arrays of different days.
    let refused = |arrays: [&Array; 2]| {
        let mut session = Session::begin(&repository, MAIN).unwrap();
        session
            .append(arrays[0], "wind/speed", 0)
            .unwrap()
            .append(arrays[1], "wind/direction", 0)
            .unwrap();
        let error = session.commit("no", &spec).unwrap_err();
        assert!(
            error.to_string().contains("has other coordinates")
                && error.exit_code() == ExitCode::Conflict,
            "{error}"
        );
        assert_eq!(lengths(&repository), [10, 10, 10]);
    };
    let hours = source("hours", "hours since 2000-01-01", 10, 2);
    refused([&hours, &hours]);
    let (ours, others) = (
        source("ours", "days since 2000-01-01", 10, 2),
        source("others", "days since 2000-01-01", 12, 2),
    );
    refused([&ours, &others]);
}

/// All ways in which another commit can come first: what resuming does follows from the changes,
/// not from the option alone.
#[test]
fn conflicts_say_what_helps() {
    let place = Place::quick();
    let spec = place.spec();
    let on_top = Rebase::Disjoint { attempts: 5 };
    // Does the other commit change the same?
    let overlaps =
        [("whole arrays", true), ("whole arrays", false), ("regions", true), ("regions", false)];
    for (i, (kind, overlap)) in overlaps.into_iter().enumerate() {
        for rebase in [Rebase::Never, on_top] {
            let case = format!("{kind}, overlapping: {overlap}, {rebase:?}");
            let repository = Repository::create(
                &place.at(&format!("r-{i}-{}", rebase == on_top)),
                Format::default(),
            )
            .unwrap();
            let mut session = Session::begin(&repository, MAIN).unwrap();
            session.store(&ramp(40.0), "x").unwrap();
            session.commit("base", &spec).unwrap();
            let begin = |name: &str, rows: std::ops::Range<u64>| {
                let mut session = Session::begin(&repository, MAIN).unwrap();
                let target = match kind {
                    "regions" => {
                        session.target(&ramp((rows.end - rows.start) as f64), "x").region(&[rows])
                    }
                    _ => session.target(&ramp(40.0), name).overwrite(true),
                };
                session.add(target);
                session
            };
            let late = begin("x", 0..20);
            let other = if overlap { begin("x", 10..30) } else { begin("y", 20..40) };
            other.commit("the other", &spec).unwrap();
            let options = CommitOptions { rebase, ..CommitOptions::default() };
            let committed =
                late.commit_with("late", &spec, &Serial, options, &RunOptions::default());
            if !overlap && rebase == on_top {
                committed.unwrap_or_else(|e| panic!("{case}: {e}"));
                continue;
            }
            let error = committed.unwrap_err();
            let text = error.to_string();
            assert_eq!(error.exit_code(), ExitCode::Conflict, "{case}: {text}");
            let Error::Run(ran) = &error else { panic!("{case}: {text}") };
            if overlap {
                assert!(
                    text.contains("also changed")
                        && text.contains("start again from the new state"),
                    "{case}: {text}"
                );
                assert!(
                    ran.kept().is_none() && !text.contains("resume"),
                    "{case}: nothing that cannot help is offered: {text}"
                );
                continue;
            }
            let run = ran.kept().unwrap_or_else(|| panic!("{case}: {text}")).to_owned();
            assert!(
                text.contains("the changes are disjoint")
                    && text.contains(&format!("freestone resume {run} --rebase")),
                "{case}: {text}"
            );
            let stored = freestone::open_run(&run, &Stores::default()).unwrap();
            let resume = |rebase: Rebase| {
                let session = RepositoryPublisher::of_ticket(&stored.record.session)
                    .unwrap()
                    .unwrap()
                    .with_rebase(rebase);
                freestone::resume(
                    &stored,
                    &spec,
                    &Serial,
                    &RunOptions { session: Some(&session), ..RunOptions::default() },
                )
            };
            let text = resume(Rebase::Never).unwrap_err().to_string();
            assert!(text.contains("the changes are disjoint"), "{case}: {text}");
            // Meanwhile somebody changes the same: now neither can be resumed.
            begin("x", 0..10).commit("and another", &spec).unwrap();
            for rebase in [Rebase::Never, on_top] {
                let error = resume(rebase).unwrap_err();
                let text = error.to_string();
                assert!(
                    text.contains("also changed") && !text.contains("disjoint"),
                    "{case}, resumed: {text}"
                );
                assert_eq!(error.exit_code(), ExitCode::Conflict);
            }
        }
    }
}

/// What is there already is found before anything runs, in plain stores and repositories, unless it
/// may be replaced or is written in part.
#[test]
fn a_plan_finds_what_is_in_its_way() {
    let place = Place::quick();
    let spec = place.spec();
    let run = |target: Target| {
        freestone::run(&freestone::plan(&[target], &spec)?, &spec, &Serial).map(drop)
    };
    run(Target::array(&ramp(20.0), &place.at("plain"))).unwrap();
    run(Target::in_group(&ramp(20.0), &place.at("group"), "x")).unwrap();
    fs::create_dir_all(place.at("old")).unwrap();
    fs::write(place.at("old/.zgroup"), "{\"zarr_format\": 2}").unwrap();
    for location in ["plain", "group", "group/x", "old"] {
        let target = Target::array(&ramp(20.0), &place.at(location));
        let error = freestone::plan(std::slice::from_ref(&target), &spec).unwrap_err();
        assert!(
            error.to_string().contains("already exists")
                && error.to_string().contains("--overwrite"),
            "{error}"
        );
        assert_eq!(error.exit_code(), ExitCode::Conflict);
        freestone::plan(&[target.overwrite(true)], &spec).unwrap();
        assert_eq!(
            freestone::create(&[Target::array(&ramp(20.0), &place.at(location))], &spec)
                .unwrap_err()
                .exit_code(),
            ExitCode::Conflict
        );
    }
    freestone::plan(
        &[Target::array(&ramp(10.0), &place.at("plain")).region(std::slice::from_ref(&(0..10)))],
        &spec,
    )
    .unwrap();
    // What comes after the plan is found by the run.
    let planned =
        freestone::plan(&[Target::array(&ramp(20.0), &place.at("later"))], &spec).unwrap();
    run(Target::array(&ramp(20.0), &place.at("later"))).unwrap();
    assert_eq!(
        freestone::run(&planned, &spec, &Serial).unwrap_err().exit_code(),
        ExitCode::Conflict
    );

    let repository = repository(&place);
    let mut session = Session::begin(&repository, MAIN).unwrap();
    session.store(&ramp(20.0), "x").unwrap();
    session.commit("x", &spec).unwrap();
    let session = Session::begin(&repository, MAIN).unwrap();
    let error = freestone::plan(&[session.target(&ramp(30.0), "x")], &spec).unwrap_err();
    assert!(
        error.to_string().contains("array or group `x` already exists")
            && error.to_string().contains("--overwrite"),
        "{error}"
    );
    assert_eq!(error.exit_code(), ExitCode::Conflict);
    freestone::plan(&[session.target(&ramp(30.0), "x").overwrite(true)], &spec).unwrap();
    freestone::plan(
        &[session.target(&ramp(10.0), "x").region(std::slice::from_ref(&(0..10)))],
        &spec,
    )
    .unwrap();
}

/// What a session has changed itself can be read on threads, and not silently as it was before
/// elsewhere.
#[test]
fn own_changes_are_read_where_they_are_known() {
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

/// Of two runs on one branch one wins; the other's work is kept, and goes on top if that is
/// allowed.
#[test]
fn a_run_that_comes_second_can_go_on_top() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let mut sessions = Vec::new();
    for name in ["first", "second"] {
        let mut session = Session::begin(&repository, MAIN).unwrap();
        session.store(&ramp(30.0), name).unwrap();
        sessions.push(session);
    }
    let second = sessions.pop().unwrap();
    sessions.pop().unwrap().commit("first", &spec).unwrap();
    let error = second.commit("second", &spec).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Conflict);
    let Error::Run(ran) = &error else { panic!("{error}") };
    let run = ran.kept().expect("what was computed is kept").to_owned();
    assert!(error.to_string().contains("the changes are disjoint"), "{error}");
    let stored = freestone::open_run(&run, &Stores::default()).unwrap();
    let again =
        freestone::resume(&stored, &spec, &Serial, &RunOptions::default()).unwrap_err().to_string();
    assert!(again.contains("conflict with an earlier commit"), "{again}");
    let on_top = RepositoryPublisher::of_ticket(&stored.record.session)
        .unwrap()
        .unwrap()
        .with_rebase(Rebase::Disjoint { attempts: 5 });
    let report = freestone::resume(
        &stored,
        &spec,
        &Serial,
        &RunOptions { session: Some(&on_top), ..RunOptions::default() },
    )
    .unwrap();
    assert_eq!(report.finished_before, 3, "no task is run again");
    assert_eq!(
        values(&repository, MAIN, "second", &spec).sum(),
        values(&repository, MAIN, "first", &spec).sum()
    );

    // The same array by both: one is refused, whatever is allowed.
    let mut session = Session::begin(&repository, MAIN).unwrap();
    let target = session.target(&ramp(20.0), "first").overwrite(true);
    session.add(target);
    let mut other = Session::begin(&repository, MAIN).unwrap();
    let target = other.target(&ramp(10.0), "first").overwrite(true);
    other.add(target);
    other.commit("shorter", &spec).unwrap();
    let rebase =
        CommitOptions { rebase: Rebase::Disjoint { attempts: 5 }, ..CommitOptions::default() };
    let error =
        session.commit_with("longer", &spec, &Serial, rebase, &RunOptions::default()).unwrap_err();
    assert!(error.to_string().contains("the metadata of `first`"), "{error}");
    assert_eq!(values(&repository, MAIN, "first", &spec).sum(), 45.0);
}

#[test]
fn what_is_in_the_way_is_found_before_anything_runs() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let mut session = Session::begin(&repository, MAIN).unwrap();
    session.store(&ramp(20.0), "x").unwrap();
    session.commit("x", &spec).unwrap();
    let before = tree(place.at("repository"));
    let check = |path: &str, says: &str| {
        let mut session = Session::begin(&repository, MAIN).unwrap();
        session.store(&ramp(20.0), path).unwrap();
        let error = session.commit("no", &spec).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(tree(place.at("repository")), before);
    };
    check("x", "array or group `x` already exists");
    check("x/y", "`x` is an array, which cannot contain other nodes");
    // Results in two places cannot be published at once.
    let session = Session::begin(&repository, MAIN).unwrap();
    let targets =
        [session.target(&ramp(20.0), "y"), Target::array(&ramp(20.0), &place.at("plain"))];
    let planned = freestone::plan(&targets, &spec).unwrap();
    let run = session.publishing("both", CommitOptions::default());
    let error = freestone::run_with(
        &planned,
        &spec,
        &Serial,
        &RunOptions { session: Some(&run), ..RunOptions::default() },
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("all outputs of a run must be in one session"), "{error}");
    let error = freestone::run(&planned, &spec, &Serial).unwrap_err().to_string();
    assert!(error.contains("give the run its session"), "{error}");
    assert_eq!(tree(place.at("repository")), before);
}

/// `tests/interop/icechunk_read.py` looks at it.
#[test]
#[ignore = "needs Python's icechunk: run by .ci/run"]
fn icechunk_reads_what_runs_commit() {
    let place = Place::new();
    let folder = std::env::var("FREESTONE_ICECHUNK").expect("FREESTONE_ICECHUNK is set by .ci/run");
    let path = format!("{folder}/ours-run");
    let _ = fs::remove_dir_all(&path);
    let repository = Repository::create(&path, Format::default()).unwrap();
    let u = freestone::open(&format!("{WINDS_V3}/u")).unwrap();
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
    // In the format that Icechunk 1 reads: a group to which days were appended.
    let repository = four_days(&place, Format::V1);
    let (wind, time) = days(4, 3);
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

/// The id that a command has printed.
fn id_of(output: &Output) -> String {
    stdout(output).trim().to_owned()
}
