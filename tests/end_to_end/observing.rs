//! Run observers: history and report of real runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use freestone::{
    Cancel, CodecName, DType, MemoryStore, RunOptions, RunReport, Spec, Stores, Target, Threads,
};
use freestone_cli::history::History;
use freestone_cli::report::Report;
use freestone_engine::events::Observer;
use freestone_engine::kernels::Buffer;
use freestone_engine::storage::{ByteRange, StorageError, Store};
use serde_json::Value;

use crate::command::{check_failure, freestone, stdout};
use crate::suites::variable;
use crate::support::{Place, WINDS_V3, names};

fn lines(file: &str) -> Vec<Value> {
    fs::read_to_string(file).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn winds(name: &str) -> String {
    format!("{name}={WINDS_V3}/{name}")
}

/// Returns the number of tasks by stage, and the bytes read, from history lines.
fn sums(lines: &[Value]) -> (BTreeMap<u64, u64>, u64) {
    let (mut tasks, mut read) = (BTreeMap::new(), 0);
    for outcome in lines.iter().filter(|l| l["event"] == "outcome") {
        for task in outcome["tasks"].as_array().unwrap() {
            *tasks.entry(outcome["stage"].as_u64().unwrap()).or_insert(0) += 1;
            read += task[5].as_u64().unwrap();
            assert!(
                task[1].as_u64() <= task[2].as_u64() && task[2].as_u64() <= outcome["t"].as_u64(),
                "{outcome}"
            );
        }
    }
    (tasks, read)
}

#[test]
fn history_and_report_match_the_run() {
    for executor in ["serial", "threads", "processes"] {
        let place = Place::new();
        let [history, page, out] =
            ["history.jsonl", "report.html", "out.zarr:uv"].map(|n| place.at(n));
        let (u, v) = (winds("u"), winds("v"));
        let arguments = [
            "compute",
            "mean(u*v, axis=0)",
            "-i",
            &u,
            "-i",
            &v,
            "-o",
            &out,
            "--executor",
            executor,
        ];
        let watched = freestone(
            &place,
            &[&arguments[..], &["--json", "--history", &history, "--report", &page]].concat(),
        );
        let said: Value = serde_json::from_str(&stdout(&watched)).unwrap();
        assert_eq!(String::from_utf8_lossy(&watched.stderr), "");

        let lines = lines(&history);
        assert_eq!(
            (&lines[0]["event"], &lines[0]["run"], &lines[0]["executor"]),
            (&"run".into(), &said["run"], &executor.into())
        );
        let end = lines.last().unwrap();
        assert_eq!(
            (&end["event"], &end["result"], &end["bytes_read"]),
            (&"end".into(), &"done".into(), &said["bytes_read"])
        );
        let (tasks, read) = sums(&lines);
        assert_eq!(Some(read), said["bytes_read"].as_u64());
        let stages: Vec<u64> = said["stages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| s["tasks"].as_u64().unwrap())
            .collect();
        assert_eq!(tasks.values().copied().collect::<Vec<_>>(), stages);
        let count = |name: &str| lines.iter().filter(|l| l["event"] == name).count();
        assert_eq!(
            (count("stage"), count("stage_end"), count("taken")),
            (stages.len(), stages.len(), count("outcome"))
        );

        let html = fs::read_to_string(&page).unwrap();
        for text in [
            "Succeeded",
            "mean-000",
            "copy-001",
            said["run"].as_str().unwrap(),
            &freestone::size(read).to_string(),
        ] {
            assert!(html.contains(text), "{text} is not in the page");
        }
    }
}

#[test]
fn a_failed_run_has_a_report() {
    let place = Place::new();
    let [history, page] = ["history.jsonl", "report.html"].map(|n| place.at(n));
    let input = damaged(&place, "x<b>&amp;");
    let output = freestone(
        &place,
        &[
            "rechunk",
            &input,
            &place.at("out"),
            "--chunks",
            "12,73,144",
            "--history",
            &history,
            "--report",
            &page,
        ],
    );
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    let html = fs::read_to_string(&page).unwrap();
    assert!(
        html.contains(">Failed</p>")
            && html.contains("bad input")
            && html.contains("x&lt;b&gt;&amp;amp;/c/")
            && !html.contains("<b>&"),
        "{html}"
    );
    let lines = lines(&history);
    assert_eq!(
        (&lines.last().unwrap()["event"], &lines.last().unwrap()["result"]),
        (&"end".into(), &"failed".into())
    );
    assert!(lines.iter().any(|l| l["failure"]["kind"] == "bad input"));
}

#[test]
fn a_cancelled_run_has_a_report() {
    let place = Place::new();
    let page = place.at("report.html");
    let report = Report::create(Path::new(&page), &place.spec()).unwrap();
    let cancel = Cancel::default();
    cancel.cancel();
    let array = freestone::ones([100], DType::Float64, [10]);
    let planned =
        freestone::plan(&[Target::array(&array, place.at("out"))], &place.spec()).unwrap();
    freestone::run_with(
        &planned,
        &place.spec(),
        &Threads::new(2),
        &RunOptions { observers: &[&report], cancel, ..RunOptions::default() },
    )
    .unwrap_err();
    assert!(fs::read_to_string(&page).unwrap().contains(">Cancelled</p>"));
}

#[test]
fn unwritable_reports_are_errors_or_warnings() {
    let place = Place::new();
    let (source, nowhere) = (format!("{WINDS_V3}/u"), place.at("no/such/folder/file"));
    let taken = place.at("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(place.at("taken/file"), "text").unwrap();
    for option in ["--history", "--report", "--trace"] {
        let out = place.at("out");
        check_failure(
            &place,
            &["rechunk", &source, &out, "--chunks", "12,73,144", option, &nowhere],
            2,
            &["cannot write to", &nowhere],
        );
        check_failure(
            &place,
            &[
                "rechunk",
                &source,
                &out,
                "--chunks",
                "12,73,144",
                "--plan-only",
                option,
                &place.at("f"),
            ],
            2,
            &["require a run: remove --plan-only"],
        );
        // A run that does not start leaves no file.
        check_failure(
            &place,
            &["rechunk", &source, &taken, "--chunks", "12,73,144", "--report", &place.at("f")],
            5,
            &[],
        );
    }
    // A full disk does not stop the run.
    for option in ["--history", "--report", "--trace"] {
        let output = freestone(
            &place,
            &[
                "rechunk",
                &source,
                &place.at("out"),
                "--chunks",
                "12,73,144",
                "--overwrite",
                option,
                "/dev/full",
            ],
        );
        stdout(&output);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            errors.lines().filter(|l| l.starts_with("warning: ")).count() == 1
                && errors.contains("warning: `/dev/full` is incomplete: "),
            "{errors}"
        );
    }
}

/// Copies an array and damages one of its chunks.
fn damaged(place: &Place, name: &str) -> String {
    let source = Path::new(WINDS_V3).join("u");
    let copy = Path::new(&place.at(name)).to_owned();
    for file in names(&source) {
        let to = copy.join(&file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        if source.join(&file).is_file() {
            fs::copy(source.join(&file), &to).unwrap();
        }
    }
    fs::write(copy.join("c/2/1/0"), b"not zstd").unwrap();
    copy.display().to_string()
}

// Pages for a browser.

/// A slow store that fails or is rate limited when some chunks are read for the first time.
#[derive(Debug)]
struct Flaky {
    store: MemoryStore,
    requests: AtomicU64,
    failed: Mutex<BTreeSet<String>>,
}

impl Flaky {
    /// Fails the first read of some chunks, of which no task reads enough to fail permanently.
    fn wait(&self, key: &str) -> Result<(), StorageError> {
        let n = self.requests.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_micros(300 + n * 7919 % 2500));
        let time: Option<u64> =
            key.strip_prefix("x/c/").and_then(|k| k.split('/').next()?.parse().ok());
        let place = self.store.place(key);
        let error = match time {
            Some(time) if time % 40 == 7 => StorageError::Io {
                place,
                action: "read",
                message: "connection reset by <peer> & \"lost\"".into(),
                transient: true,
            },
            Some(time) if time % 20 == 19 => {
                StorageError::Throttled { place, message: "503 Slow Down".into() }
            }
            _ => return Ok(()),
        };
        if self.failed.lock().unwrap().insert(key.into()) { Err(error) } else { Ok(()) }
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for Flaky {
    forward_store!(store: url place write remove list sync);
    forward_store!(store: remove_partial_writes lock is_locked size modified blocking_file);
    no_read_ahead!();
    parts_by_whole_objects!();
    no_shared_writes!();

    fn is_remote(&self) -> bool {
        false
    }

    fn read(
        &self,
        key: &str,
        range: Option<ByteRange>,
        limit: u64,
        into: &mut Buffer,
    ) -> Result<bool, StorageError> {
        if key.contains("/c/") {
            self.wait(key)?;
        }
        self.store.read(key, range, limit, into)
    }
}

fn run(targets: &[Target], spec: &Spec, stores: &Stores, observers: &[&dyn Observer]) -> RunReport {
    let planned = freestone::plan(targets, spec).unwrap();
    let options = RunOptions { observers, stores: stores.clone(), ..RunOptions::default() };
    freestone::run_with(&planned, spec, &Threads::new(spec.threads), &options).unwrap()
}

/// Computes means, anomalies and products of an array in a flaky store.
fn flaky_run(place: &Place, page: &Path) {
    let stores = Stores::default();
    let store: Arc<dyn Store> = Arc::new(Flaky {
        store: MemoryStore::new(),
        requests: AtomicU64::new(0),
        failed: Mutex::default(),
    });
    stores.insert(Arc::clone(&store));
    let spec = Spec { threads: 6, parallelism: 6, local_mem: 600_000_000, ..place.spec() };
    let at = |name: &str| format!("{}/{name}", store.url());
    let noise = freestone::random_uniform([480, 60, 80], 0.0, 1.0, 3, DType::Float32, [4, 30, 40]);
    let target = |array: &freestone::Array, name: &str| {
        Target::array(array, at(name)).with_stores(&stores).codec(CodecName::None)
    };
    run(&[target(&noise, "x").chunks([4, 30, 40])], &spec, &stores, &[]);
    let x = freestone::open_in(&store, "x").unwrap();
    let mean = x.mean(0);
    let anomalies = (&x - &mean).rechunk([60, 10, 80]);
    let targets = [
        target(&mean, "mean"),
        target(&anomalies, "anomalies"),
        target(&(&x * &x).mean(vec![1, 2]), "squares"),
    ];
    let report = Report::create(page, &spec).unwrap();
    let took = run(&targets, &spec, &stores, &[&report]);
    assert!(took.retries > 5, "only {} retries", took.retries);
}

/// Runs one task for each of 100 000 chunks.
fn long_run(place: &Place, page: &Path, history: &Path) {
    let stores = Stores::default();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    stores.insert(Arc::clone(&store));
    let spec = place.spec();
    let array = freestone::arange(0.0, 1_000_000.0, 1.0, DType::Float64, 10);
    let target = Target::array(&array, format!("{}/x", store.url()))
        .with_stores(&stores)
        .codec(CodecName::None);
    let (report, history) =
        (Report::create(page, &spec).unwrap(), History::append(history).unwrap());
    let took = run(&[target], &spec, &stores, &[&report, &history]);
    assert_eq!(took.stages[0].tasks, 100_000);
    assert!(report.take_error().is_none() && history.take_error().is_none());
}

#[test]
fn a_long_run_has_a_small_report_and_a_complete_history() {
    let place = Place::quick();
    let (page, history) = (place.at("report.html"), place.at("history.jsonl"));
    long_run(&place, Path::new(&page), Path::new(&history));
    let size = fs::metadata(&page).unwrap().len();
    assert!(size < 300_000, "{size}");
    assert_eq!(sums(&lines(&history)).0, BTreeMap::from([(0, 100_000)]));
}

#[test]
#[ignore = "makes pages for a browser: run by .ci/run"]
fn browser_reports_of_real_runs() {
    let folder = variable("FREESTONE_BROWSER");
    let place = Place::new();
    let page = |name: &str| format!("{folder}/{name}.html");
    let (u, v) = (winds("u"), winds("v"));
    let means = [
        "compute",
        "mean(u*u, axis=0)",
        "mean(u*v, axis=0)",
        "mean(v*v, axis=0)",
        "-i",
        &u,
        "-i",
        &v,
    ];
    let outputs = ["uu", "uv", "vv"].map(|n| place.at(&format!("means.zarr:{n}")));
    stdout(&freestone(
        &place,
        &[
            &means[..],
            &["-o", &outputs[0], "-o", &outputs[1], "-o", &outputs[2], "--report", &page("winds")],
        ]
        .concat(),
    ));
    let source = format!("{WINDS_V3}/u");
    let rechunk = [
        "rechunk",
        &source,
        &place.at("rechunked"),
        "--chunks",
        "12,10,10",
        "--executor",
        "processes",
        "--report",
        &page("processes"),
    ];
    stdout(&freestone(&place, &rechunk));
    let damaged = damaged(&place, "x<b>&amp; with a rather long name that goes on and on");
    let output = freestone(
        &place,
        &[
            "rechunk",
            &damaged,
            &place.at("none"),
            "--chunks",
            "12,73,144",
            "--report",
            &page("failed"),
        ],
    );
    assert_eq!(output.status.code(), Some(4));
    flaky_run(&place, Path::new(&page("flaky")));
    long_run(&place, Path::new(&page("tasks")), Path::new(&place.at("history.jsonl")));
}
