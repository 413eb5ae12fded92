use freestone_engine::driver::RunError;
use freestone_engine::events::{MemoryExcess, RunReport, RunStart};
use freestone_engine::plan::StageId;
use freestone_engine::task::{FailureKind, TaskOutcome, TaskRequest};

use super::*;
use crate::spans::tests::{failure, outcome, planned, request, spec, started};

/// The maximum length of a page of a long run: a tenth of the required limit.
const MAX_PAGE: usize = 300_000;
/// The maximum size of a record for any number of tasks.
const MAX_RECORD: usize = 4_000_000;

/// Returns a record of tasks in two stages, with one request per task. Every hundredth request
/// fails once.
fn record(n_tasks: u64, n_workers: u64) -> Record {
    let plan = planned(2, n_tasks / 2 * 10);
    let mut record = Record::new(&started(&plan, &[0, 0]));
    let half = n_tasks / 2;
    for i in 0..n_tasks {
        let now = i / n_workers * 2000 + 2500;
        let (stage, worker) = ((i / half).min(1) as usize, format!("worker-{}", i % n_workers));
        let request = request(i, stage, i % half, 1);
        record.at(now - 1800, &Event::Started { request: &request });
        if i % 100 == 7 {
            let lost = failure(FailureKind::Transient, &format!("no answer {i}"), i);
            let outcome = TaskOutcome {
                done: Vec::new(),
                failure: Some(lost.clone()),
                ..outcome(request.clone(), &worker, 0, 0)
            };
            record.at(now - 1700, &Event::Outcome { outcome: &outcome, counted: 0 });
            record.at(
                now - 1700,
                &Event::Retried { failure: &lost, attempt: 1, delay: std::time::Duration::ZERO },
            );
            record.at(now - 1700, &Event::Started { request: &request });
        }
        record.at(
            now,
            &Event::Outcome {
                outcome: &outcome(request, &worker, 1000 + i % 677, 1_000_000 + i),
                counted: 1,
            },
        );
    }
    record
}

fn page_of(record: &mut Record, result: Result<&RunReport, &RunError>) -> String {
    let ended = record.ended(result);
    page::page(record, &ended, &spec())
}

/// Asserts that every element is closed and that the page loads no external resources.
#[track_caller]
fn check_html(html: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        let end = rest.find('>').unwrap();
        let tag = &rest[..end];
        let name = tag.split([' ', '/']).find(|n| !n.is_empty()).unwrap_or("");
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "{}", &rest[..rest.len().min(200)]);
        } else if !tag.ends_with('/')
            && !tag.starts_with('!')
            && !["meta", "link", "br"].contains(&name)
        {
            open.push(name);
        }
        if name == "style" && !tag.starts_with('/') {
            rest = &rest[rest.find("</style>").unwrap()..];
        }
    }
    assert!(open.is_empty(), "{open:?}");
    let outside = html.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    for word in ["http://", "https://", "<script", "src=", "@import", "url("] {
        assert!(!outside.contains(word), "{word}");
    }
}

#[test]
fn a_page_has_the_figures_of_the_run() {
    let mut record = record(1000, 2);
    let html = page_of(&mut record, Ok(&RunReport::default()));
    check_html(&html);
    let contains = |text: &str| assert!(html.contains(text), "{text} is not in {html}");
    contains("<title>Succeeded: Freestone run run-1</title>");
    contains("1\u{2009}000</p>");
    contains("no answer 7<");
    contains("80.0 MB projected, 1.0 GB allowed");
    contains("allowed_mem</dt><dd>40.0 MB (40000000 bytes)");
    // Every task is drawn, including failed ones.
    assert_eq!(
        (html.matches("</title></rect>").count(), html.matches(" failed, ").count()),
        (1010, 10)
    );
}

#[test]
fn sums_and_slowest_tasks_are_exact() {
    let record = record(10_000, 4);
    assert_eq!(record.stages.iter().map(|s| s.done).sum::<u64>(), 10_000);
    assert_eq!(
        record.stages.iter().map(|s| s.traffic.bytes_read).sum::<u64>(),
        (0..10_000).map(|i| 1_000_000 + i).sum::<u64>()
    );
    let walls: Vec<u64> = record.slowest().iter().map(|s| s.wall_ns).collect();
    assert_eq!(walls.len(), 12);
    assert!(
        walls.iter().rev().is_sorted() && walls[0] == 1_676_000 && walls[11] >= 1_675_000,
        "{walls:?}"
    );
    let failures = record.incidents.values().next().unwrap();
    assert_eq!(
        (failures.count, failures.retried, failures.message.as_str()),
        (100, 100, "no answer 7")
    );
    let median = record.stages[0].walls.median_us().unwrap();
    assert!((1000..1700).contains(&median), "{median}");
}

#[test]
fn record_and_page_are_small_for_100_000_tasks() {
    for n_workers in [2, 16, 500] {
        let mut record = record(100_000, n_workers);
        let bins: usize = record
            .timeline
            .lanes
            .iter()
            .map(|l| l.bins.capacity() * size_of::<timeline::Bin>())
            .sum();
        let samples = record.timeline.samples.capacity() * size_of::<timeline::Sample>();
        // The first tasks were kept individually.
        let spans = timeline::MAX_SPANS * 2 * size_of::<(usize, timeline::Span)>();
        assert!(
            bins + samples + spans < MAX_RECORD / 2,
            "{n_workers} workers: {bins} + {samples} + {spans}"
        );
        let html = page_of(&mut record, Ok(&RunReport::default()));
        check_html(&html);
        assert!(html.len() < MAX_PAGE, "{n_workers} workers: {} bytes", html.len());
    }
}

#[test]
fn names_and_messages_are_escaped() {
    let evil = "<script>alert(\"1\")</script>&";
    let plan = planned(1, 400);
    let start = RunStart { run: evil, executor: evil, ..started(&plan, &[]) };
    let mut record = Record::new(&start);
    record.stages[0].name = evil.into();
    record.explanation.stages[0].name = evil.into();
    record.explanation.stages[0].writes[0].array.name = evil.into();
    let lost = failure(FailureKind::Kernel, evil, 3);
    record.at(
        10,
        &Event::Outcome {
            outcome: &TaskOutcome {
                failure: Some(lost),
                ..outcome(request(1, 0, 0, 3), evil, 5, 0)
            },
            counted: 3,
        },
    );
    record.at(10, &Event::Recomputed { stage: StageId(0), tasks: 2, why: evil });
    let [stage, worker] = [evil.to_owned(), evil.to_owned()];
    let excess = MemoryExcess {
        stage,
        kernel: Some(evil.into()),
        worker,
        measured_bytes: 792_000_000,
        projected_bytes: 34_000_000,
    };
    record.at(11, &Event::MemoryExceeded(&excess));
    let html = page_of(&mut record, Err(&RunError::Receipts(evil.into())));
    check_html(&html);
    assert!(html.contains("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;"));
    assert!(!html.contains("alert(\""));
    assert!(
        html.contains("memory exceeded") && html.contains("792.0 MB measured, 34.0 MB projected")
    );
}

#[test]
fn failed_and_cancelled_runs_have_pages() {
    for (error, word) in
        [(RunError::Cancelled, "Cancelled"), (RunError::Receipts("task 3".into()), "Failed")]
    {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("report.html");
        let report = Report::create(&file, &spec()).unwrap();
        let plan = planned(1, 400);
        report.on_event(&Event::RunStarted(&started(&plan, &[12])));
        report.on_event(&Event::Outcome {
            outcome: &outcome(request(1, 0, 12, 3), "w", 5, 0),
            counted: 3,
        });
        report.on_event(&Event::RunEnded(Err(&error)));
        let html = fs::read_to_string(&file).unwrap();
        check_html(&html);
        assert!(
            html.contains(&format!(">{word}</p>")) && html.contains(&error.to_string()),
            "{html}"
        );
        assert!(html.contains("after 12 in an earlier run, of 40"), "{html}");
        assert!(report.take_error().is_none());
    }
}

#[test]
fn a_report_without_a_run_leaves_the_file_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.html");
    drop(Report::create(&file, &spec()).unwrap());
    assert!(!file.exists());
    fs::write(&file, "the last report").unwrap();
    drop(Report::create(&file, &spec()).unwrap());
    assert_eq!(fs::read_to_string(&file).unwrap(), "the last report");
    assert!(Report::create(folder.path(), &spec()).is_err());
}

#[test]
fn a_write_error_is_returned_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sub/report.html");
    fs::create_dir(folder.path().join("sub")).unwrap();
    let report = Report::create(&file, &spec()).unwrap();
    fs::remove_dir_all(folder.path().join("sub")).unwrap();
    let plan = planned(1, 400);
    report.on_event(&Event::RunStarted(&started(&plan, &[])));
    report.on_event(&Event::RunEnded(Ok(&RunReport::default())));
    assert!(report.take_error().is_some());
    assert!(report.take_error().is_none());
}

#[test]
fn backups_that_finish_first_are_counted() {
    let plan = planned(1, 400);
    let mut record = Record::new(&started(&plan, &[]));
    let backup = TaskRequest { backup_of: Some(1), ..request(2, 0, 0, 1) };
    record.at(5, &Event::Started { request: &request(1, 0, 0, 1) });
    record.at(50, &Event::Started { request: &backup });
    record.at(60, &Event::Outcome { outcome: &outcome(backup, "w2", 5, 0), counted: 1 });
    record.at(
        70,
        &Event::Outcome { outcome: &outcome(request(1, 0, 0, 1), "w1", 65, 0), counted: 0 },
    );
    assert_eq!(record.backups, [1, 1]);
    assert_eq!(record.stages[0].done, 1);
    assert!(
        page_of(&mut record, Ok(&RunReport::default()))
            .contains("1 backup of slow requests; 1 finished before the original")
    );
}

#[test]
fn a_page_of_a_billed_run_has_its_cost() {
    let mut record = record(1000, 2);
    let html = page_of(&mut record, Ok(&RunReport::default()));
    assert!(!html.contains("<h2>Cost</h2>"));
    let invoked = freestone_engine::executor::Invocations {
        invocations: 7,
        byte_ms: f64::from(1 << 30) * 3e6,
        ..Default::default()
    };
    let html =
        page_of(&mut record, Ok(&RunReport { invoked: Some(invoked), ..RunReport::default() }));
    check_html(&html);
    assert!(
        html.contains("<h2>Cost</h2>") && html.contains("7 invocations and 3000.0 GB-seconds; $"),
        "{html}"
    );
}
