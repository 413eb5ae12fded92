use std::fs;

use freestone_engine::events::MemoryExcess;
use freestone_engine::plan::StageId;
use freestone_engine::task::FailureKind;
use serde_json::{Value, json};

use super::*;
use crate::spans::tests::{failure, outcome, planned, request, started};

fn lines(file: &Path) -> Vec<Value> {
    fs::read_to_string(file).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Sends every kind of event.
fn send_all_events(history: &History) {
    let plan = planned(2, 400);
    history.on_event(&Event::RunStarted(&started(&plan, &[0, 7])));
    history.on_event(&Event::StageStarted { stage: StageId(0) });
    history.on_event(&Event::Started { request: &request(5, 0, 20, 2) });
    history.on_event(&Event::Outcome {
        outcome: &outcome(request(5, 0, 20, 2), "worker \"1\"", 30, 4000),
        counted: 2,
    });
    let repeated =
        freestone_engine::task::TaskRequest { backup_of: Some(5), ..request(6, 0, 22, 1) };
    history.on_event(&Event::Started { request: &repeated });
    let lost = failure(FailureKind::WorkerLost, "<gone>\n", 22);
    let failed = TaskOutcome {
        failure: Some(lost.clone()),
        done: Vec::new(),
        worker_peak_bytes: Some(99),
        ..outcome(repeated, "w2", 0, 0)
    };
    history.on_event(&Event::Outcome { outcome: &failed, counted: 0 });
    history.on_event(&Event::Retried {
        failure: &lost,
        attempt: 1,
        delay: Duration::from_millis(250),
    });
    history.on_event(&Event::Recomputed { stage: StageId(0), tasks: 3, why: "chunk 1 is gone" });
    let (stage, worker) = ("copy-000".into(), "w2".into());
    let excess = MemoryExcess {
        stage,
        kernel: Some("hog".into()),
        worker,
        measured_bytes: 792,
        projected_bytes: 34,
    };
    history.on_event(&Event::MemoryExceeded(&excess));
    history.on_event(&Event::StageEnded { stage: StageId(0) });
}

#[test]
fn every_event_is_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("history.jsonl");
    let history = History::append(&file).unwrap();
    send_all_events(&history);
    history.on_event(&Event::RunEnded(Ok(&RunReport {
        retries: 1,
        process_cpu: Duration::from_millis(3),
        peak_rss_bytes: 123,
        ..RunReport::default()
    })));
    // Lines are written at the end of the run, before the history is dropped.
    let mut lines = lines(&file);
    let names: Vec<&str> = lines.iter().map(|l| l["event"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "run",
            "stage",
            "taken",
            "outcome",
            "taken",
            "outcome",
            "retry",
            "recompute",
            "memory",
            "stage_end",
            "end"
        ]
    );
    let times: Vec<u64> = lines.iter().map(|l| l["t"].as_u64().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");

    assert!(lines[0]["unix_us"].as_u64().unwrap() > 1_700_000_000_000_000);
    assert_eq!(
        (&lines[0]["version"], &lines[0]["run"], &lines[0]["slots"], &lines[0]["local_mem"]),
        (&json!(1), &json!("run-1"), &json!(2), &json!(1_000_000_000))
    );
    assert_eq!(
        (&lines[0]["stages"][1]["finished"], &lines[0]["stages"][1]["tasks"]),
        (&json!(7), &json!(41))
    );
    // The second task follows the first.
    let tasks = lines[3]["tasks"].take();
    let (start, end) = (tasks[0][1].as_u64().unwrap(), tasks[0][2].as_u64().unwrap());
    assert_eq!(
        tasks,
        json!([
            [20, start, end, 27, 1020, 4000, 1, 2000, 1],
            [21, end, end + 30, 27, 1021, 4000, 1, 2000, 1]
        ])
    );
    assert_eq!(end, start + 30);

    let without_time = |line: &Value| {
        let mut line = line.clone();
        line.as_object_mut().unwrap().remove("t");
        line
    };
    let started = json!({
        "event": "taken", "request": 5, "stage": 0, "first": 20, "count": 2, "attempt": 0,
        "backup_of": null,
    });
    let done = json!({
        "event": "outcome", "request": 5, "stage": 0, "worker": "worker \"1\"", "counted": 2,
        "tasks": null, "failure": null, "worker_peak_mem": null,
    });
    let failed = json!({
        "event": "outcome", "request": 6, "stage": 0, "worker": "w2", "counted": 0, "tasks": [],
        "failure": { "kind": "worker lost", "task": 22, "message": "<gone>\n" },
        "worker_peak_mem": 99,
    });
    let retried = json!({
        "event": "retry", "stage": "copy-000", "kind": "worker lost", "task": 22,
        "message": "<gone>\n", "attempt": 1, "delay_us": 250_000,
    });
    let recomputed =
        json!({ "event": "recompute", "stage": 0, "tasks": 3, "why": "chunk 1 is gone" });
    let memory_exceeded = json!({
        "event": "memory", "stage": "copy-000", "kernel": "hog", "worker": "w2",
        "measured_mem": 792, "projected_mem": 34,
    });
    let ended = json!({
        "event": "end", "result": "done", "error": null, "cpu_us": 3000, "retries": 1,
        "peak_mem": 123, "kept_mem": 0, "bytes_read": 0, "reads": 0, "bytes_written": 0,
        "writes": 0,
    });
    let expect = [
        (2, started),
        (3, done),
        (5, failed),
        (6, retried),
        (7, recomputed),
        (8, memory_exceeded),
        (9, json!({ "event": "stage_end", "stage": 0 })),
        (10, ended),
    ];
    for (at, expect) in expect {
        assert_eq!(without_time(&lines[at]), expect);
    }
    assert_eq!(lines[4]["backup_of"], json!(5));
    assert!(history.take_error().is_none());
}

#[test]
fn failed_and_cancelled_runs_are_appended() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("history.jsonl");
    let errors = [RunError::Cancelled, RunError::Receipts("none".into())];
    for error in &errors {
        let history = History::append(&file).unwrap();
        send_all_events(&history);
        history.on_event(&Event::RunEnded(Err(error)));
    }
    let lines = lines(&file);
    assert_eq!(lines.len(), 22);
    assert_eq!(
        (&lines[10]["result"], &lines[21]["result"]),
        (&json!("cancelled"), &json!("failed"))
    );
    assert_eq!(lines[21]["error"], json!(errors[1].to_string()));
}

#[test]
fn lines_are_written_periodically_and_on_drop() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("history.jsonl");
    let history = History::append(&file).unwrap();
    send_all_events(&history);
    let start = Instant::now();
    while lines(&file).len() < 10 {
        assert!(start.elapsed() < Duration::from_secs(300), "nothing was written");
        thread::sleep(Duration::from_millis(20));
    }
    history.on_event(&Event::StageEnded { stage: StageId(1) });
    drop(history);
    assert_eq!(lines(&file).len(), 11);
}

#[test]
fn a_full_disk_is_reported_once_and_does_not_fail_the_run() {
    let history = History::append(Path::new("/dev/full")).unwrap();
    send_all_events(&history);
    history.on_event(&Event::RunEnded(Ok(&RunReport::default())));
    assert_eq!(history.take_error().map(|e| e.kind()), Some(io::ErrorKind::StorageFull));
    assert!(history.take_error().is_none());
    assert!(History::append(Path::new("/nowhere/at/all")).is_err());
}
