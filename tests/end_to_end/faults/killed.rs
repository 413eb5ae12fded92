//! The driver itself is killed, at moments that its progress defines, and another process goes on.
//!
//! The run is made by another process: this test program, told by an environment variable to run one test of it, [`faults_child`]. That process says on its
//! standard output what it does, stops at the moment, and is killed there. It is slowed down, so that its journal is written several times.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use freestone::engine::events::{Event, Observer};
use freestone::engine::executor::Executor;
use freestone::engine::storage::{LocalStore, Store};
use freestone::{DType, Options, Planned, Serial, Spec, Stores, Target, Threads};
use serde_json::{Value, json};

use super::model::{is_part, resume, same_files};
use super::store::{FaultStore, Holds};
use crate::intermediates::without_room;
use crate::support::{Place, processes, spec_in, tree};

/// Tells [`faults_child`] what to do.
const CHILD: &str = "FREESTONE_FAULT_CHILD";
const SLOTS: usize = 2;

/// When the driver is killed.
#[derive(Clone, Debug, PartialEq)]
enum Moment {
    /// When so many tasks are finished.
    Tasks(u64),
    /// When the next chunk is about to be written after so many tasks.
    Chunk(u64),
    /// All stages have ended, and what the journal did not get yet is only in memory.
    StagesEnded,
    /// The journal is whole, and the results are about to be flushed.
    Flush,
    /// So many results are published, and the next one is about to be.
    Published(u64),
}

impl Moment {
    fn text(&self) -> String {
        match self {
            Moment::Tasks(n) => format!("tasks {n}"),
            Moment::Chunk(n) => format!("chunk {n}"),
            Moment::StagesEnded => "stages-ended 0".into(),
            Moment::Flush => "flush 0".into(),
            Moment::Published(n) => format!("published {n}"),
        }
    }

    fn parse(text: &str) -> Option<Moment> {
        let (name, n) = text.split_once(' ')?;
        let n = n.parse().ok()?;
        Some(match name {
            "tasks" => Moment::Tasks(n),
            "chunk" => Moment::Chunk(n),
            "stages-ended" => Moment::StagesEnded,
            "flush" => Moment::Flush,
            "published" => Moment::Published(n),
            _ => return None,
        })
    }
}

/// Some hundred tasks: there and back between rows and columns, a sum, and a result that is all fill values.
///
/// On `memory`, which is threads, there is room for intermediates in memory: they go with the process, and come back. Else there is none.
fn plan(folder: &str, results: &str, on: &str) -> (Planned, Spec) {
    let x = freestone::random_uniform(&[2560, 96], 0.5, 1.0, 7, DType::Float64, &[16, 96]).unwrap();
    let columns = x.rechunk(&[2560, 2]).unwrap() * 2.0;
    let rows = columns.rechunk(&[16, 96]).unwrap() + 1.0;
    let zeros = &rows * 0.0;
    let group = format!("{folder}/{results}");
    let targets =
        [Target::in_group(&rows, &group, "rows"), Target::in_group(&columns.sum(0).unwrap(), &group, "sums"), Target::in_group(&zeros, &group, "zeros")];
    let spec = spec_in(LocalStore::new(format!("{folder}/work")).url());
    let planned = freestone::plan(&targets, &spec).unwrap();
    let spec = if on == "memory" { spec } else { without_room(&spec, &planned, SLOTS) };
    (planned, spec)
}

/// What the other process says and when it stops.
struct Told {
    moment: Option<Moment>,
    n_stages: u64,
    tasks: AtomicU64,
    stages_ended: AtomicU64,
    published: AtomicU64,
    slow: Duration,
}

impl Told {
    fn say(&self, what: &Value) {
        let mut out = std::io::stdout().lock();
        // A parent that is gone is no matter.
        let _ = writeln!(out, "\n{what}").and_then(|()| out.flush());
    }

    /// Stops the thread that calls, for ever, where this is the moment.
    fn reached(&self, is_it: bool) {
        if is_it {
            self.say(&json!({"stopped": self.moment.as_ref().map(Moment::text), "tasks": self.tasks.load(Ordering::SeqCst)}));
            loop {
                std::thread::park();
            }
        }
    }

    fn asked(&self, action: &str, key: &str) {
        let tasks = self.tasks.load(Ordering::SeqCst);
        let document = action == "written" && key.ends_with("/zarr.json");
        let chunk = action == "written" && !document && !key.contains("/journal/") && !key.ends_with("plan.json") && !key.contains("claim");
        if key.contains("/journal/") {
            self.say(&json!({"journal": key, "is": action}));
        }
        match self.moment {
            Some(Moment::Chunk(n)) => self.reached(chunk && tasks >= n),
            Some(Moment::Flush) => self.reached(action == "flushed"),
            Some(Moment::Published(n)) => self.reached(document && self.published.fetch_add(1, Ordering::SeqCst) == n),
            _ => {}
        }
    }
}

impl Observer for Told {
    fn on(&self, event: &Event<'_>) {
        match event {
            Event::RunStarted(start) => self.say(&json!({"run": start.run, "finished": start.finished})),
            Event::Started { request } => self.say(&json!({"out": [request.stage.0, request.first, request.count], "id": request.id})),
            Event::Outcome { outcome, counted } => {
                let tasks = self.tasks.fetch_add(*counted, Ordering::SeqCst) + counted;
                self.say(&json!({"back": outcome.request.stage.0, "counted": counted, "id": outcome.request.id}));
                if let Some(Moment::Tasks(n)) = self.moment {
                    self.reached(tasks >= n);
                }
                std::thread::sleep(self.slow);
            }
            Event::StageEnded { .. } => {
                let ended = self.stages_ended.fetch_add(1, Ordering::SeqCst) + 1;
                self.reached(self.moment == Some(Moment::StagesEnded) && ended == self.n_stages);
            }
            _ => {}
        }
    }
}

/// What the other process does: no test where nobody asks for it.
#[test]
#[ignore = "is the other process of tests here"]
fn faults_child() {
    let Ok(asked) = std::env::var(CHILD) else { return };
    let asked: Value = serde_json::from_str(&asked).unwrap();
    let text = |name: &str| asked[name].as_str().unwrap_or_default().to_owned();
    // Who goes on reads the plan from the run's folder; a part of the results may be there.
    let (planned, spec) = plan(&text("folder"), if asked["resume"].is_null() { "results" } else { "again" }, &text("on"));
    let executor: Box<dyn Executor> = if text("on") == "processes" { Box::new(processes(SLOTS)) } else { Box::new(Threads::new(SLOTS)) };
    let told = Arc::new(Told {
        moment: Moment::parse(&text("moment")),
        n_stages: planned.plan().plan().stages.len() as u64,
        tasks: AtomicU64::new(0),
        stages_ended: AtomicU64::new(0),
        published: AtomicU64::new(0),
        slow: Duration::from_millis(asked["slow_ms"].as_u64().unwrap_or(0)),
    });
    let stores = Stores::default();
    for (name, holds) in [("work", Holds::Work), ("results", Holds::Outputs)] {
        let inner = Arc::new(LocalStore::new(format!("{}/{name}", text("folder"))));
        let told = Arc::clone(&told);
        stores.insert(Arc::new(FaultStore::watched(inner, holds, move |action, key| told.asked(action, key))));
    }
    let observers: [&dyn Observer; 1] = [&*told];
    let options = Options { observers: &observers, stores, ..Options::default() };
    let ended = match asked["resume"].as_str() {
        None => freestone::run_with(&planned, &spec, &*executor, &options),
        Some(run) => resume(&spec.work_dir, run, &spec, &*executor, &options),
    };
    told.say(&match ended {
        Ok(report) => {
            json!({"ended": "well", "finished_before": report.finished_before, "recomputed": report.recomputed, "in_memory": report.kept_bytes > 0})
        }
        Err(error) => json!({"ended": error.to_string()}),
    });
}

/// The other process; killed where it is let go.
struct Other {
    child: Child,
    lines: Mutex<Option<BufReader<std::process::ChildStdout>>>,
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Other {
    fn start(asked: &Value) -> Other {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["faults::killed::faults_child", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env(CHILD, asked.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = child.stdout.take().map(BufReader::new);
        Other { child, lines: Mutex::new(lines) }
    }

    /// What it says, until it has stopped or ended; in the first case it is killed, and what it said until then is heard too.
    fn hear(mut self) -> Vec<Value> {
        let lines = self.lines.lock().unwrap().take().unwrap();
        let mut heard: Vec<Value> = Vec::new();
        for line in lines.lines().map_while(Result::ok).filter(|l| l.starts_with('{')) {
            // Killed in the middle of a word.
            let Ok(said) = serde_json::from_str::<Value>(&line) else { continue };
            if said.get("stopped").is_some() {
                // SIGKILL.
                self.child.kill().unwrap();
            }
            heard.push(said);
        }
        heard
    }
}

/// What is known of a run from what its process said.
#[derive(Debug, Default)]
struct Known {
    run: String,
    stopped_at: Option<u64>,
    ended: Option<Value>,
    /// Tasks of each stage that were finished before, and in this process.
    before: BTreeMap<u64, u64>,
    counted: BTreeMap<u64, u64>,
    /// Finished when the last journal object was whole, and when the one before was: these are in the journal for sure.
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
            known.under_way.insert(said["id"].as_u64().unwrap(), (out[0].as_u64().unwrap(), out[2].as_u64().unwrap()));
        } else if let Some(stage) = said["back"].as_u64() {
            let counted = said["counted"].as_u64().unwrap();
            known.under_way.remove(&said["id"].as_u64().unwrap());
            *known.counted.entry(stage).or_default() += counted;
        } else if said["journal"].is_string() && said["is"] == "wrote" {
            known.journals += 1;
            // The driver takes what it writes once the object before is whole, and what comes back after that waits for the next one.
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

/// Runs, kills at the moment, looks at what is left, goes on in a third process, and looks again. Gives the tasks that were finished at the moment.
fn check(place: &Place, on: &str, moment: &Moment, slow_ms: u64, expect: &BTreeMap<String, Vec<u8>>) -> u64 {
    let folder = place.at(&format!("{on}-{}", moment.text().replace(' ', "-")));
    let asked = json!({"folder": folder, "on": on, "moment": moment.text(), "slow_ms": slow_ms});
    let heard = Other::start(&asked).hear();
    let first = known(&heard);
    let Some(stopped_at) = first.stopped_at else { panic!("{moment:?} never came: {:#?}", heard.last()) };
    let left = tree(format!("{folder}/results"));
    let published = left.keys().filter(|n| n.ends_with("/zarr.json")).count() as u64;
    let may_be = if let Moment::Published(n) = moment { *n } else { 0 };
    assert_eq!(published, may_be, "{moment:?}: {:?}", left.keys());
    assert!(Path::new(&folder).join("work").join(&first.run).join("plan.json").exists(), "{moment:?}: the plan is not there");

    let heard = Other::start(&json!({"folder": folder, "on": on, "resume": first.run})).hear();
    let second = known(&heard);
    let ended = second.ended.clone().unwrap_or_else(|| panic!("{moment:?}: the process that goes on ended: {heard:?}"));
    assert_eq!(ended["ended"], "well", "{moment:?}: {ended}");
    assert_eq!(ended["recomputed"], 0, "{moment:?}: {ended}");
    let mut found = tree(format!("{folder}/results"));
    found.retain(|name, _| !is_part(name));
    same_files(expect, &found).unwrap_or_else(|why| panic!("{moment:?}: {why}"));
    assert!(!Path::new(&folder).join("work").join(&first.run).exists(), "{moment:?}: the run's folder is left");

    // The same plan, for a place that is free.
    let (planned, _) = plan(&folder, "again", on);
    for (i, stage) in planned.plan().plan().stages.iter().enumerate() {
        let of = |tasks: &BTreeMap<u64, u64>| tasks.get(&(i as u64)).copied().unwrap_or(0);
        let under_way: u64 = first.under_way.values().filter(|(s, _)| *s == i as u64).map(|(_, n)| n).sum();
        let again = (of(&first.counted) + of(&second.counted)).saturating_sub(stage.n_tasks());
        let may_be = under_way + of(&first.counted) - of(&first.saved);
        assert!(again <= may_be, "{moment:?}: {again} tasks of stage {i} were computed again, of at most {may_be}: {first:?}\n{second:?}");
        assert_eq!(of(&second.before) + of(&second.counted), stage.n_tasks(), "{moment:?}: stage {i}");
    }
    stopped_at
}

/// Kills at the moments, and says when that was.
fn check_all(on: &str, moments: &[Moment], slow_ms: u64) -> [usize; 5] {
    let place = Place::quick();
    let folder = place.at("undisturbed");
    let (planned, spec) = plan(&folder, "results", on);
    freestone::run(&planned, &spec, &Serial).unwrap();
    let expect = tree(format!("{folder}/results"));
    let total = total(&planned);
    let mut histogram = [0; 5];
    for moment in moments {
        let tasks = check(&place, on, moment, slow_ms, &expect);
        let bin = if tasks >= total { 4 } else { (4 * tasks / total) as usize };
        histogram[bin] += 1;
        println!("{on}: killed at {moment:?}, {tasks} of {total} tasks finished");
    }
    println!("{on}: killed in each quarter of the tasks and after the last one: {histogram:?}");
    histogram
}

fn total(planned: &Planned) -> u64 {
    planned.plan().plan().stages.iter().map(|s| s.n_tasks()).sum()
}

/// In each quarter at four places, and four between the last task and the commit's end.
fn moments(total: u64, in_chunks: bool) -> Vec<Moment> {
    // Requests have up to forty tasks: each of them stays inside its quarter.
    let tasks = (0..16).map(|i| (i, i / 4 * total / 4 + i % 4 * total / 40 + total / 80));
    let during = tasks.map(|(i, n)| if in_chunks && i % 2 == 1 { Moment::Chunk(n) } else { Moment::Tasks(n) });
    during.chain([Moment::StagesEnded, Moment::Flush, Moment::Published(0), Moment::Published(1)]).collect()
}

#[test]
fn a_killed_driver_publishes_nothing_and_can_be_followed() {
    check_all("threads", &[Moment::Tasks(30), Moment::Chunk(150), Moment::StagesEnded, Moment::Published(1)], 0);
}

#[track_caller]
fn check_bar(on: &str, in_chunks: bool) {
    let place = Place::quick();
    let total = total(&plan(&place.at("x"), "results", on).0);
    let histogram = check_all(on, &moments(total, in_chunks), 40);
    assert!(total >= 200 && histogram[..4].iter().all(|n| *n >= 4) && histogram[4] >= 3, "{total} tasks, {histogram:?}");
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
