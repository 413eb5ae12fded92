//! Drivers killed at defined moments of their progress, and resumed by another process.
//!
//! The test child runs the driver. It reports its progress on standard output, stops at the moment,
//! and is killed there. Pauses make it write several journal batches.

use std::collections::BTreeMap;
use std::path::Path;

use freestone::{Plan, Serial};
use serde_json::{Value, json};

use super::model::is_part;
use super::verdict::same_files;
use crate::scenarios::driver::{Asked, Moment, plan};
use crate::suites::variable;
use crate::support::{BINARY, Place, TestChild, tree};

/// Returns the child's reports until it stops or ends.
fn hear(asked: &Asked) -> Vec<Value> {
    TestChild::start("driver", &serde_json::to_string(asked).unwrap())
        .hear(|said| said.get("stopped").is_some())
}

/// The state of a run, derived from its process's reports.
#[derive(Debug, Default)]
struct Known {
    run: String,
    stopped_at: Option<u64>,
    ended: Option<Value>,
    /// Finished tasks of each stage, from before and in this process.
    before: BTreeMap<u64, u64>,
    counted: BTreeMap<u64, u64>,
    /// Tasks finished at the last complete journal object, and at the one before: the latter are
    /// certainly in the journal.
    wrote: BTreeMap<u64, u64>,
    saved: BTreeMap<u64, u64>,
    under_way: BTreeMap<u64, (u64, u64)>,
    journals: u64,
}

fn known(heard: &[Value]) -> Known {
    let mut known = Known::default();
    for said in heard {
        if let Some(run) = said["run"].as_str() {
            run.clone_into(&mut known.run);
            let finished = said["finished"].as_array().unwrap().iter().enumerate();
            known.before = finished.map(|(i, n)| (i as u64, n.as_u64().unwrap())).collect();
        } else if let Some(out) = said["out"].as_array() {
            known.under_way.insert(
                said["id"].as_u64().unwrap(),
                (out[0].as_u64().unwrap(), out[2].as_u64().unwrap()),
            );
        } else if let Some(stage) = said["back"].as_u64() {
            let counted = said["counted"].as_u64().unwrap();
            known.under_way.remove(&said["id"].as_u64().unwrap());
            *known.counted.entry(stage).or_default() += counted;
        } else if said["journal"].is_string() && said["is"] == "wrote" {
            known.journals += 1;
            // An object contains what was finished when the object before was complete.
            let earlier = std::mem::replace(&mut known.wrote, known.counted.clone());
            known.saved = earlier;
        } else if said.get("stopped").is_some() {
            known.stopped_at = said["tasks"].as_u64();
        } else if said.get("ended").is_some() {
            known.ended = Some(said.clone());
        }
    }
    known
}

/// Runs, kills the driver at the moment, checks the files, resumes in a third process, and checks
/// again. Returns the number of finished tasks at the moment.
fn check(
    place: &Place,
    on: &str,
    moment: Moment,
    slow_ms: u64,
    expect: &BTreeMap<String, Vec<u8>>,
) -> u64 {
    let folder = place.at(&format!("{on}-{moment:?}").replace(['(', ')'], "-"));
    let asked = Asked {
        folder: folder.clone(),
        on: on.into(),
        binary: BINARY.into(),
        moment: Some(moment),
        resume: None,
        slow_ms,
    };
    let heard = hear(&asked);
    let first = known(&heard);
    let Some(stopped_at) = first.stopped_at else {
        panic!("{moment:?} never came: {:#?}", heard.last())
    };
    let left = tree(format!("{folder}/results"));
    let published = left.keys().filter(|n| n.ends_with("/zarr.json")).count() as u64;
    let may_be = if let Moment::Published(n) = moment { n } else { 0 };
    assert_eq!(published, may_be, "{moment:?}: {:?}", left.keys());
    assert!(
        Path::new(&folder).join("work").join(&first.run).join("plan.json").exists(),
        "{moment:?}: the plan is not there"
    );

    let heard = hear(&Asked { moment: None, resume: Some(first.run.clone()), slow_ms: 0, ..asked });
    let second = known(&heard);
    let ended = second
        .ended
        .clone()
        .unwrap_or_else(|| panic!("{moment:?}: the process that goes on ended: {heard:?}"));
    assert_eq!(ended["ended"], "well", "{moment:?}: {ended}");
    assert_eq!(ended["recomputed"], 0, "{moment:?}: {ended}");
    let mut found = tree(format!("{folder}/results"));
    found.retain(|name, _| !is_part(name));
    same_files(expect, &found).unwrap_or_else(|why| panic!("{moment:?}: {why}"));
    assert!(
        !Path::new(&folder).join("work").join(&first.run).exists(),
        "{moment:?}: the run's folder is left"
    );

    // The same plan, with a free location.
    let (planned, _) = plan(&folder, "again", on);
    for (i, stage) in planned.finalized().plan().stages.iter().enumerate() {
        let of = |tasks: &BTreeMap<u64, u64>| tasks.get(&(i as u64)).copied().unwrap_or(0);
        let under_way: u64 =
            first.under_way.values().filter(|(s, _)| *s == i as u64).map(|(_, n)| n).sum();
        let again = (of(&first.counted) + of(&second.counted)).saturating_sub(stage.n_tasks());
        let may_be = under_way + of(&first.counted) - of(&first.saved);
        assert!(
            again <= may_be,
            "{moment:?}: {again} tasks of stage {i} were computed again, of at most {may_be}: \
                {first:?}\n{second:?}"
        );
        assert_eq!(
            of(&second.before) + of(&second.counted),
            stage.n_tasks(),
            "{moment:?}: stage {i}"
        );
    }
    stopped_at
}

/// Kills drivers at the moments, and prints the finished tasks.
fn check_all(on: &str, moments: &[Moment], slow_ms: u64) -> [usize; 5] {
    let place = Place::quick();
    let folder = place.at("undisturbed");
    let (planned, spec) = plan(&folder, "results", on);
    freestone::run(&planned, &spec, &Serial).unwrap();
    let expect = tree(format!("{folder}/results"));
    let total = total(&planned);
    let mut histogram = [0; 5];
    for moment in moments {
        let tasks = check(&place, on, *moment, slow_ms, &expect);
        let bin = if tasks >= total { 4 } else { (4 * tasks / total) as usize };
        histogram[bin] += 1;
        println!("{on}: killed at {moment:?}, {tasks} of {total} tasks finished");
    }
    println!("{on}: killed in each quarter of the tasks and after the last one: {histogram:?}");
    histogram
}

fn total(planned: &Plan) -> u64 {
    planned.finalized().plan().stages.iter().map(|s| s.n_tasks()).sum()
}

/// Four moments in each quarter of the tasks, and four between the last task and the end of the
/// commit.
fn moments(total: u64, in_chunks: bool) -> Vec<Moment> {
    // Requests have up to forty tasks, so each moment stays within its quarter.
    let tasks = (0..16).map(|i| (i, i / 4 * total / 4 + i % 4 * total / 40 + total / 80));
    let during = tasks
        .map(|(i, n)| if in_chunks && i % 2 == 1 { Moment::Chunk(n) } else { Moment::Tasks(n) });
    during
        .chain([Moment::StagesEnded, Moment::Flush, Moment::Published(0), Moment::Published(1)])
        .collect()
}

#[test]
fn a_killed_driver_publishes_nothing_and_is_resumed() {
    check_all(
        "threads",
        &[Moment::Tasks(30), Moment::Chunk(150), Moment::StagesEnded, Moment::Published(1)],
        0,
    );
}

#[track_caller]
fn check_bar(on: &str, in_chunks: bool) {
    let place = Place::quick();
    let total = total(&plan(&place.at("x"), "results", on).0);
    let histogram = check_all(on, &moments(total, in_chunks), 40);
    assert!(
        total >= 200 && histogram[..4].iter().all(|n| *n >= 4) && histogram[4] >= 3,
        "{total} tasks, {histogram:?}"
    );
}

#[test]
#[ignore = "takes minutes: run by .ci/run"]
fn faults_driver_killed_on_threads() {
    check_bar("threads", true);
}

#[test]
#[ignore = "takes minutes: run by .ci/run"]
fn faults_driver_killed_with_intermediates_in_memory() {
    check_bar("memory", true);
}

#[test]
#[ignore = "takes minutes: run by .ci/run"]
fn faults_driver_killed_on_processes() {
    check_bar("processes", false);
}

/// In an object store, the run's lock is a lease, which the resuming process takes over.
#[test]
#[ignore = "needs an object store: run by .ci/run"]
fn store_a_killed_run_is_resumed() {
    let (root, place) = (variable("FREESTONE_STORE"), Place::quick());
    let (planned, spec) = plan(&place.at("undisturbed"), "results", "threads");
    freestone::run(&planned, &spec, &Serial).unwrap();
    let total = total(&planned);
    for on in ["threads", "processes"] {
        let asked = Asked {
            folder: format!("{root}/killed-{on}-{}", std::process::id()),
            on: on.into(),
            binary: BINARY.into(),
            moment: Some(Moment::Tasks(total / 2)),
            resume: None,
            slow_ms: 200,
        };
        let first = known(&hear(&asked));
        assert!(first.stopped_at.is_some_and(|n| n < total), "{on}: {first:?}");
        let results = |location: &str, name: &str| {
            let array = freestone::open(format!("{location}/results/{name}"));
            array.map(|array| freestone::compute::<f64>(&array, &place.spec()).unwrap())
        };
        assert!(results(&asked.folder, "rows").is_err(), "{on}: nothing is published");

        let again = Asked { moment: None, resume: Some(first.run.clone()), slow_ms: 0, ..asked };
        let second = known(&hear(&again));
        let ended = second.ended.unwrap_or_else(|| panic!("{on}: the second process failed"));
        assert_eq!((&ended["ended"], &ended["recomputed"]), (&json!("well"), &json!(0)), "{on}");
        let finished: u64 = second.before.values().sum();
        assert!(finished > 0, "{on}: the second process starts from the journal");
        for name in ["rows", "sums", "zeros"] {
            let expect = results(&place.at("undisturbed"), name).unwrap();
            assert_eq!(results(&again.folder, name).unwrap(), expect, "{on}: {name}");
        }
    }
}
