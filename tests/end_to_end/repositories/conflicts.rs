//! Conflicts between commits, and outputs that exist already.

use std::fs;

use freestone::sessions::{CommitOptions, Format, MAIN, Rebase, Repository, RepositoryPublisher};
use freestone::{Error, ExitCode, RunOptions, Serial, Session, Stores, Target};

use super::{ramp, repository, values};
use crate::support::{Place, tree};

/// The outcome of resuming after a conflict depends on the changes, not only on the option.
#[test]
fn conflicts_name_a_remedy() {
    let place = Place::quick();
    let spec = place.spec();
    let on_top = Rebase::Disjoint { attempts: 5 };
    // The kind of target, and whether the other commit changes the same elements.
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
            let mut late = begin("x", 0..20);
            let mut other = if overlap { begin("x", 10..30) } else { begin("y", 20..40) };
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
                    ran.resumable_run().is_none() && !text.contains("resume"),
                    "{case}: no remedy is named: {text}"
                );
                continue;
            }
            let run = ran.resumable_run().unwrap_or_else(|| panic!("{case}: {text}")).to_owned();
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
            // Another commit changes the same elements: now neither option can resume the run.
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

/// Planning finds existing outputs in stores and repositories, unless they may be overwritten or a
/// region is written.
#[test]
fn planning_refuses_existing_outputs() {
    let place = Place::quick();
    let spec = place.spec();
    let run = |target: Target| {
        freestone::run(&freestone::plan(&[target], &spec)?, &spec, &Serial).map(drop)
    };
    run(Target::array(&ramp(20.0), place.at("plain"))).unwrap();
    run(Target::in_group(&ramp(20.0), place.at("group"), "x")).unwrap();
    fs::create_dir_all(place.at("old")).unwrap();
    fs::write(place.at("old/.zgroup"), "{\"zarr_format\": 2}").unwrap();
    for location in ["plain", "group", "group/x", "old"] {
        let target = Target::array(&ramp(20.0), place.at(location));
        let error = freestone::plan(std::slice::from_ref(&target), &spec).unwrap_err();
        assert!(
            error.to_string().contains("already exists")
                && error.to_string().contains("--overwrite"),
            "{error}"
        );
        assert_eq!(error.exit_code(), ExitCode::Conflict);
        freestone::plan(&[target.overwrite(true)], &spec).unwrap();
        assert_eq!(
            freestone::create(&[Target::array(&ramp(20.0), place.at(location))], &spec)
                .unwrap_err()
                .exit_code(),
            ExitCode::Conflict
        );
    }
    freestone::plan(
        &[Target::array(&ramp(10.0), place.at("plain")).region(std::slice::from_ref(&(0..10)))],
        &spec,
    )
    .unwrap();
    // The run finds outputs that were created after planning.
    let planned = freestone::plan(&[Target::array(&ramp(20.0), place.at("later"))], &spec).unwrap();
    run(Target::array(&ramp(20.0), place.at("later"))).unwrap();
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

/// Of two runs on one branch one commits. The work of the other is kept, and can be rebased.
#[test]
fn a_run_that_commits_second_can_be_rebased() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let mut sessions = Vec::new();
    for name in ["first", "second"] {
        let mut session = Session::begin(&repository, MAIN).unwrap();
        session.store(&ramp(30.0), name).unwrap();
        sessions.push(session);
    }
    let mut second = sessions.pop().unwrap();
    sessions.pop().unwrap().commit("first", &spec).unwrap();
    let error = second.commit("second", &spec).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Conflict);
    let Error::Run(ran) = &error else { panic!("{error}") };
    let run = ran.resumable_run().expect("the run can be resumed").to_owned();
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
    assert_eq!(report.finished_before, 3, "no task runs again");
    assert_eq!(
        values(&repository, MAIN, "second", &spec).sum(),
        values(&repository, MAIN, "first", &spec).sum()
    );

    // Both write the same array: one is refused, even with a rebase.
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
fn existing_outputs_are_found_before_the_run() {
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
    // Outputs in two places cannot be published at once.
    let session = Session::begin(&repository, MAIN).unwrap();
    let targets = [session.target(&ramp(20.0), "y"), Target::array(&ramp(20.0), place.at("plain"))];
    let planned = freestone::plan(&targets, &spec).unwrap();
    let run = session.publishing("both", CommitOptions::default()).unwrap();
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
    assert!(error.contains("but the run has no session"), "{error}");
    assert_eq!(tree(place.at("repository")), before);
}
