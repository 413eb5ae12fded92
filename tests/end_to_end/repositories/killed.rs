//! Drivers killed while they overwrite an array. Readers see the old array or the new one, and a
//! resumed run commits once.
//!
//! The driver is the test child, which stops at its [`Moment`] and is killed there.

use std::process::Command;

use freestone::sessions::{CommitOptions, Format, MAIN, Repository};
use freestone::{DType, RunOptions, Serial, Session, Stores};
use ndarray::ArrayD;
use serde_json::{Value, json};

use super::values;
use crate::command::stdout;
use crate::scenarios::repository::{Asked, Moment, SHAPE, overwriting};
use crate::suites::variable;
use crate::support::{BINARY, Place, TestChild, spec_in};

/// Kills the driver at the moment, in a folder or a prefix of an object store, checks the readers'
/// view, resumes, and checks again. Returns whether the commit had succeeded.
fn check_killed(root: &str, on: &str, moment: Moment, expect: &ArrayD<f64>) -> bool {
    let folder = format!("{root}/{on}-{moment:?}").replace(['(', ')'], "-");
    let repository =
        Repository::open_or_create(&format!("{folder}/repository"), Format::default()).unwrap();
    let mut session = Session::begin(&repository, MAIN).unwrap();
    session.store(&freestone::full(SHAPE, -1.0, DType::Float64, [16, 64]), "data/rows").unwrap();
    let reader = Place::new();
    let spec = spec_in(&reader.at("reader"));
    session.commit("old", &spec).unwrap();

    let asked = Asked { folder: folder.clone(), on: on.into(), binary: BINARY.into(), moment };
    let heard = TestChild::start("repository", &serde_json::to_string(&asked).unwrap())
        .hear(|said| said == "stopped");
    assert_eq!(heard.last(), Some(&json!("stopped")), "{moment:?} never came");

    let repository = Repository::open(&format!("{folder}/repository")).unwrap();
    let seen = values(&repository, MAIN, "data/rows", &spec);
    let is_new = seen == *expect;
    assert!(
        is_new || seen.iter().all(|v| *v == -1.0),
        "{moment:?}: a reader sees neither the old array nor the new one"
    );
    match moment {
        Moment::Tasks(_) | Moment::BeforeCommit => assert!(!is_new, "{moment:?}"),
        Moment::AfterCommit => assert!(is_new, "{moment:?}"),
        Moment::InCommit(_) => {}
    }
    let runs =
        freestone_engine::driver::record::folders(&Stores::default(), &format!("{folder}/work"))
            .unwrap();
    let [run] = runs.as_slice() else { panic!("{moment:?}: {runs:?}") };
    let run = format!("{folder}/work/{run}");
    let output = Command::new(BINARY).arg("resume").arg(run).arg("--json").output().unwrap();
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let repository = Repository::open(&format!("{folder}/repository")).unwrap();
    assert_eq!(values(&repository, MAIN, "data/rows", &spec), *expect, "{moment:?}");
    let history = repository.history(&MAIN.into()).unwrap();
    let messages: Vec<&str> = history.iter().map(|s| s.message.as_str()).collect();
    assert_eq!(messages[..2], ["overwritten", "old"], "{moment:?}: committed once");
    assert_eq!(report["snapshot"], json!(history[0].id), "{moment:?}");
    is_new
}

fn check_all_killed(root: Option<&str>, on: &str, moments: &[Moment]) {
    let place = Place::quick();
    let root = root.map_or_else(|| place.at("killed"), str::to_owned);
    let whole = place.at("undisturbed");
    let repository =
        Repository::open_or_create(&format!("{whole}/repository"), Format::default()).unwrap();
    let (planned, spec, session) = overwriting(&whole);
    let total: u64 = planned.finalized().plan().stages.iter().map(|s| s.n_tasks()).sum();
    let run = session.publishing("undisturbed", CommitOptions::default()).unwrap();
    freestone::run_with(
        &planned,
        &spec,
        &Serial,
        &RunOptions { session: Some(&run), ..RunOptions::default() },
    )
    .unwrap();
    let expect = values(&repository, MAIN, "data/rows", &spec);
    assert_eq!(expect.shape(), [1280, 64]);
    let mut histogram = [0; 5];
    for moment in moments {
        let moment = if let Moment::Tasks(twentieth) = moment {
            Moment::Tasks((twentieth * total / 20).max(1))
        } else {
            *moment
        };
        let is_new = check_killed(&root, on, moment, &expect);
        let bin = if let Moment::Tasks(n) = moment { (4 * n / total).min(3) as usize } else { 4 };
        histogram[bin] += 1;
        println!(
            "{on}: killed at {moment:?} of {total} tasks: a reader sees the {} array",
            if is_new { "new" } else { "old" }
        );
    }
    println!("{on}: killed in each quarter of the tasks and after the last one: {histogram:?}");
    assert!(
        moments.len() < 20 || (histogram[..4].iter().all(|n| *n >= 4) && histogram[4] >= 3),
        "{histogram:?}"
    );
}

#[test]
fn a_killed_driver_leaves_the_old_or_the_new_array() {
    check_all_killed(
        None,
        "threads",
        &[Moment::Tasks(9), Moment::BeforeCommit, Moment::InCommit(3_000), Moment::AfterCommit],
    );
}

fn twenty() -> Vec<Moment> {
    // Four moments of each quarter, between a fortieth and the next quarter.
    let tasks = [1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14, 16, 17, 18, 19].map(Moment::Tasks);
    tasks
        .into_iter()
        .chain([
            Moment::BeforeCommit,
            Moment::InCommit(500),
            Moment::InCommit(4_000),
            Moment::AfterCommit,
        ])
        .collect()
}

#[test]
#[ignore = "takes minutes: run by .ci/run"]
fn faults_repository_overwritten_on_threads() {
    check_all_killed(None, "threads", &twenty());
}

#[test]
#[ignore = "takes minutes: run by .ci/run"]
fn faults_repository_overwritten_on_processes() {
    check_all_killed(None, "processes", &twenty());
}

#[test]
#[ignore = "needs an object store: run by .ci/run"]
fn store_a_killed_driver_commits_once() {
    let root = format!("{}/commits-{}", variable("FREESTONE_STORE"), std::process::id());
    check_all_killed(Some(&root), "threads", &[Moment::Tasks(9), Moment::AfterCommit]);
}
