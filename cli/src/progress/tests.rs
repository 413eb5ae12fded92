use freestone_engine::driver::RunError;
use freestone_engine::plan::StageId;
use freestone_engine::task::FailureKind;
use indicatif::InMemoryTerm;

use super::*;
use crate::spans::tests::{failure, outcome, planned, request, started};

/// What a terminal shows after these events, and what it shows when the run has ended. The events
/// are given the time at which the run started.
#[track_caller]
fn shown(
    n_stages: usize,
    finished: u64,
    width: u16,
    events: impl FnOnce(&Progress, Instant),
) -> (String, String) {
    let (plan, finished) = (planned(n_stages, 400), vec![finished; n_stages]);
    let terminal = InMemoryTerm::new(40, width);
    let progress = Progress {
        interval: Duration::ZERO,
        ..Progress::drawing_to(ProgressDrawTarget::term_like(Box::new(terminal.clone())))
    };
    let start = Instant::now();
    progress.on_at(&Event::RunStarted(&started(&plan, &finished)), start);
    events(&progress, start);
    let during = terminal.contents();
    progress.on_at(
        &Event::RunEnded(Err(&RunError::Receipts(String::new()))),
        start + Duration::from_secs(60),
    );
    (during, terminal.contents())
}

fn done(progress: &Progress, now: Instant, stage: usize, first: u64, count: u64) {
    progress.on_at(
        &Event::Outcome {
            outcome: &outcome(request(first + 1, stage, first, count), "w", 50, 1_000_000),
            counted: count,
        },
        now,
    );
}

#[test]
fn a_stage_has_a_bar_with_its_tasks_and_its_memory() {
    let (during, after) = shown(1, 0, 110, |progress, now| {
        progress.on_at(&Event::StageStarted { stage: StageId(0) }, now);
        done(progress, now, 0, 0, 10);
        done(progress, now + Duration::from_secs(1), 0, 10, 20);
    });
    let lines: Vec<&str> = during.lines().collect();
    assert_eq!(lines.len(), 2, "{during}");
    assert!(
        lines[0].contains("] 30/40 ")
            && lines[0].contains("20.0 MB/s, 1.0 kB of ")
            && lines[0].contains("==="),
        "{during}"
    );
    assert!(
        lines[1].contains("0/1 stages done, 30.0 MB read, 15.0 MB written, memory ")
            && lines[1].contains(" of 1.0 GB"),
        "{during}"
    );
    assert_eq!(after, "");
}

#[test]
fn it_fits_a_narrow_terminal() {
    let (during, _) = shown(1, 0, 80, |progress, now| {
        progress.on_at(&Event::StageStarted { stage: StageId(0) }, now);
        done(progress, now, 0, 0, 10);
        done(progress, now + Duration::from_secs(1), 0, 10, 20);
    });
    assert_eq!(during.lines().count(), 2, "{during}");
    assert!(during.lines().all(|l| l.chars().count() <= 80), "{during}");
    assert!(during.contains("left"), "{during}");
}

#[test]
fn bars_of_a_resumed_run_start_at_the_finished_tasks() {
    let (during, _) = shown(1, 25, 110, |progress, now| {
        progress.on_at(&Event::StageStarted { stage: StageId(0) }, now);
        done(progress, now, 0, 25, 5);
    });
    assert!(during.contains("] 30/40 "), "{during}");
}

#[test]
fn many_stages_take_few_lines() {
    let (during, after) = shown(30, 0, 110, |progress, now| {
        (0..30).for_each(|i| progress.on_at(&Event::StageStarted { stage: StageId(i) }, now));
        for i in 0..5 {
            done(progress, now, i, 0, 400);
            progress.on_at(&Event::StageEnded { stage: StageId(i) }, now);
        }
        done(progress, now, 20, 0, 10);
    });
    assert_eq!(during.lines().count(), MAX_BARS + 1, "{during}");
    assert!(during.contains("5/30 stages done, 19 more running"), "{during}");
    assert_eq!(after, "");
}

#[test]
fn many_failures_print_few_lines() {
    let throttled = failure(FailureKind::Throttled, "slow down", 3);
    let (during, after) = shown(1, 0, 110, |progress, now| {
        progress.on_at(&Event::StageStarted { stage: StageId(0) }, now);
        for attempt in 1..=5000 {
            progress.on_at(
                &Event::Retried { failure: &throttled, attempt, delay: Duration::from_millis(200) },
                now,
            );
        }
    });
    assert!(
        during
            .contains("task 3 of stage `copy-000` failed: slow down; retrying in 0.2 s (retry 1)"),
        "{during}"
    );
    assert!(during.contains("5000 retries"), "{during}");
    assert!(
        during.contains("retrying in 0.2 s (retry 5)")
            && !during.contains("retrying in 0.2 s (retry 6)"),
        "{during}"
    );
    assert!(after.contains("and 4995 similar lines (throttled 4995)"), "{after}");
    assert_eq!(after.lines().count(), 6, "{after}");
}

#[test]
fn backups_and_repeated_tasks_are_printed() {
    let (during, _) = shown(1, 0, 110, |progress, now| {
        progress.on_at(&Event::StageStarted { stage: StageId(0) }, now);
        done(progress, now, 0, 0, 40);
        progress.on_at(
            &Event::Started {
                request: &freestone_engine::task::TaskRequest {
                    backup_of: Some(1),
                    ..request(9, 0, 7, 1)
                },
            },
            now,
        );
        progress.on_at(
            &Event::Recomputed { stage: StageId(0), tasks: 15, why: "chunk 3 is damaged" },
            now,
        );
    });
    assert!(during.contains("is slow: started a backup"), "{during}");
    assert!(
        during.contains("repeating 15 finished tasks of stage `")
            && during.contains("`: chunk 3 is damaged"),
        "{during}"
    );
    assert!(during.contains("] 25/40 "), "{during}");
}

#[test]
fn rates_are_of_the_last_seconds() {
    let start = Instant::now();
    let mut rate = Rate::default();
    assert_eq!(rate.at(start, 0), None);
    assert_eq!(rate.at(start + Duration::from_secs(1), 100), Some(100.0));
    let later =
        (2..60).map(|s| rate.at(start + Duration::from_secs(s), 100).unwrap()).last().unwrap();
    assert!(later < 0.01, "{later}");
}

#[test]
fn suppressed_lines_are_counted() {
    let start = Instant::now();
    let mut lines = LineLimit::new(start);
    let printed = (0..100).filter(|_| lines.admit("throttled", start).1).count();
    assert_eq!(printed, BURST as usize);
    let later = start + Duration::from_secs(2);
    assert_eq!(
        lines.admit("crashed", later),
        (Some("… and 95 similar lines (throttled 95)".into()), true)
    );
    assert_eq!(lines.admit("crashed", later), (None, true));
    assert_eq!(lines.admit("crashed", later), (None, false));
    assert_eq!(lines.suppressed(), Some("… and 1 similar lines (crashed 1)".into()));
    assert_eq!(lines.suppressed(), None);
}
