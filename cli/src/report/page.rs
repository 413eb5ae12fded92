//! The page of a run.

use std::time::Duration;

use freestone_engine::memory::size;
use freestone_engine::spec::Spec;
use freestone_engine::storage::reader::Traffic;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde::Deserialize;
use serde_json::Value;

use super::charts::{self, colour};
use super::format::{counted, date, duration};
use super::record::{IncidentKind, Outcome, Record, RunEnd};
use super::tables::{cell, gauge, header, slowest_tasks, stages};
use crate::cost::dollars;
use crate::drawing::{grouped, svg};

const STYLE: &str = include_str!("page.css");
const CONTENT_SECURITY_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:";
/// The maximum length of a plan's drawing; a longer one is left out.
const MAX_DRAWING: usize = 600_000;
/// The maximum length of a plan's text; the rest is left out.
const MAX_TEXT: usize = 60_000;
/// The maximum number of stages in the legend.
const MAX_LEGEND: usize = 12;

/// Returns the page of a run.
pub(super) fn page(record: &Record, end: &RunEnd, spec: &Spec) -> String {
    let (result, class) = match end.outcome {
        Outcome::Done => ("Succeeded", "good"),
        Outcome::Cancelled => ("Cancelled", "warn"),
        Outcome::Failed => ("Failed", "bad"),
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content=(CONTENT_SECURITY_POLICY);
                link rel="icon" href="data:,";
                title { (result) ": Freestone run " (record.run) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    header {
                        p class={ "pill " (class) } { (result) }
                        h1 { "Freestone run " code { (record.run) } }
                        p.quiet {
                            (record.executor) ", " (counted(record.slots as u64, "slot"))
                            " · started " (date(record.started)) " UTC"
                        }
                    }
                    @if let Some(error) = &end.error {
                        p class={ "callout " (class) } role="alert" { (error) }
                    }
                    (summary(record, end))
                    (incidents(record, end.wall))
                    (timeline(record, end))
                    (stages(record, end.wall))
                    (slowest_tasks(record))
                    (plan(record))
                    (settings(record, spec))
                }
            }
        }
    };
    page.into_string()
}

fn tile(label: &str, figure: &str, note: &str) -> Markup {
    html! { div.tile { h2 { (label) } p.figure { (figure) } p.quiet { (note) } } "\n" }
}

/// Returns the tiles with the most important figures.
fn summary(record: &Record, end: &RunEnd) -> Markup {
    let traffic = traffic(record);
    let cpu = record.stages.iter().map(|s| s.cpu.as_micros() as u64).sum::<u64>();
    let n_busy = busy(record) as f64 / end.wall.max(1) as f64;
    let process_cpu = duration(end.process_cpu.as_micros() as u64);
    let (n_done, tasks_note) = tasks(record);
    html! {
        section.tiles aria-label="Summary" {
            (tile(
                "Time",
                &duration(end.wall),
                &format!("{n_busy:.1} of {} workers busy", record.slots),
            ))
            (tile("CPU", &duration(cpu), &format!("in tasks; {process_cpu} in this process")))
            (tile("Tasks", &grouped(n_done), &tasks_note))
            (tile(
                "Read",
                &size(traffic.bytes_read).to_string(),
                &counted(traffic.reads, "request"),
            ))
            (tile(
                "Written",
                &size(traffic.bytes_written).to_string(),
                &counted(traffic.writes, "request"),
            ))
            @if let Some([measured, projected]) = &end.cost {
                (tile("Cost", &dollars(measured.dollars()), &format!(
                    "{} and {:.1} GB-seconds; {} projected, prices of {}",
                    counted(measured.invocations, "invocation"),
                    measured.gb_seconds,
                    dollars(projected.dollars()),
                    measured.date
                )))
            }
            (memory(record, end))
        }
    }
}

/// Returns the number of tasks done in this run, and a note on the others.
fn tasks(record: &Record) -> (u64, String) {
    let sum =
        |count: fn(&super::record::Stage) -> u64| record.stages.iter().map(count).sum::<u64>();
    let (n_done, n_tasks, n_finished) = (sum(|s| s.done), sum(|s| s.tasks), sum(|s| s.finished));
    let note = match (n_finished, n_done + n_finished == n_tasks) {
        (0, true) => format!("in {}", counted(record.stages.len() as u64, "stage")),
        (0, false) => format!("of {}", grouped(n_tasks)),
        (_, true) => format!("after {} in an earlier run", grouped(n_finished)),
        (_, false) => {
            format!("after {} in an earlier run, of {}", grouped(n_finished), grouped(n_tasks))
        }
    };
    (n_done, note)
}

/// Returns the tile with measured, projected and allowed memory.
fn memory(record: &Record, end: &RunEnd) -> Markup {
    let (peak, of_worker, per_worker) = record
        .worker_peak
        .map_or((end.peak_rss_bytes, "", ""), |peak| (peak, " of a worker", " per worker"));
    // The scale is the limit, unless the bars would be too small to see.
    let largest = peak.max(record.projected_bytes).max(1);
    let scale = if record.local_mem <= 4 * largest {
        record.local_mem.max(largest) as f64
    } else {
        1.25 * largest as f64
    };
    html! {
        div.tile.wide {
            h2 { "Memory" }
            p.figure {
                (size(peak)) " "
                small {
                    "peak" (of_worker)
                    @if end.cached_bytes > 0 {
                        ", of which " (size(end.cached_bytes)) " for intermediates"
                    }
                }
            }
            (gauge(peak as f64 / scale, record.projected_bytes as f64 / scale))
            p.quiet {
                (size(record.projected_bytes)) " projected" (per_worker) ", "
                (size(record.local_mem)) " allowed on this machine"
            }
        }
    }
}

/// Returns the section on failures, retries, backups and recomputed tasks.
fn incidents(record: &Record, wall: u64) -> Markup {
    let [started, finished_first] = record.backups;
    if record.incidents.is_empty() && started == 0 {
        return Markup::default();
    }
    html! {
        section {
            h2 { "Failures and retries" }
            @if started > 0 {
                p {
                    (counted(started, "backup")) " of slow requests; "
                    (grouped(finished_first)) " finished before the original"
                }
            }
            @if record.recomputed > 0 {
                p {
                    (counted(record.recomputed, "task"))
                    " recomputed, because the output was damaged or missing"
                }
            }
            @if !record.incidents.is_empty() {
                table.cards {
                    (header(&[
                        ("Kind", ""),
                        ("Count", "n"),
                        ("Retried", "n"),
                        ("Time", ""),
                        ("First message", ""),
                    ]))
                    tbody {
                        @for ((kind, name), incident) in &record.incidents {
                            (incident_row(*kind, name, incident, wall))
                        }
                    }
                }
            }
        }
    }
}

fn incident_row(
    kind: IncidentKind,
    name: &str,
    incident: &super::record::Incidents,
    wall: u64,
) -> Markup {
    let is_failure = kind == IncidentKind::Failure;
    let retried = if is_failure { grouped(incident.retried) } else { "–".into() };
    let time = if incident.count > 1 && incident.last > incident.first {
        format!("{} to {}", duration(incident.first), duration(incident.last.min(wall)))
    } else {
        duration(incident.first)
    };
    html! {
        tr {
            (cell("Kind", "head", html! { (name) }))
            (cell("Count", "n", html! { (grouped(incident.count)) }))
            (cell("Retried", "n", html! { (retried) }))
            (cell("Time", "whole", html! { (time) }))
            (cell("First message", "long", html! {
                span.quiet { (incident.place) } " " (incident.message)
            }))
        }
        "\n"
    }
}

/// Returns the section with charts over time.
fn timeline(record: &Record, end: &RunEnd) -> Markup {
    if record.timeline.lanes.is_empty() {
        return Markup::default();
    }
    let started = record.stages.iter().enumerate().filter(|s| s.1.first.is_some());
    let n_started = started.clone().count();
    // Tasks that are measured by workers' clocks may end slightly after the run.
    let wall = end.wall.max(record.timeline.end).max(1);
    html! {
        section {
            h2 { "Timeline" }
            p.legend {
                @for (at, stage) in started.take(MAX_LEGEND) {
                    span { i class={ "key " (colour(at)) } {} (stage.name) } " "
                }
                @if n_started > MAX_LEGEND {
                    span { "and " (n_started - MAX_LEGEND) " more stages, with repeated colours" }
                    " "
                }
                @if record.incidents.keys().any(|k| k.0 == IncidentKind::Failure) {
                    span { i class="key bad" {} "failed" }
                }
            }
            @if record.timeline.spans().is_none() {
                p.quiet {
                    "Height: the fraction of time in which the worker was busy. "
                    "Colour: the stage with most of that time."
                }
            }
            (charts::timeline(record, wall))
            (charts::throughput(record, wall))
            @if record.worker_peak.is_none() { (charts::memory(record, end)) }
        }
    }
}

fn plan(record: &Record) -> Markup {
    let drawing = svg(&record.explanation);
    let text = record.explanation.to_string();
    let shown = text.char_indices().nth(MAX_TEXT).map_or(text.as_str(), |(end, _)| &text[..end]);
    html! {
        section {
            h2 { "Plan" }
            @if drawing.len() <= MAX_DRAWING {
                figure.scroll tabindex="0" aria-label="Drawing of the plan" {
                    (PreEscaped(drawing))
                }
            } @else {
                p.quiet {
                    "The plan is too large to draw here; "
                    code { "freestone plan … --svg FILE" } " draws it"
                }
            }
            details {
                summary { "Plan as text" }
                pre.scroll tabindex="0" {
                    (shown)
                    @if shown.len() < text.len() { "\n…" }
                }
            }
        }
    }
}

fn settings(record: &Record, spec: &Spec) -> Markup {
    let row = |name: &str, value: &str| html! { div { dt { (name) } dd { (value) } } "\n" };
    let fields = match serde_json::to_value(spec) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    html! {
        section {
            h2 { "Settings" }
            dl {
                (row("executor", &record.executor))
                @for (name, value) in &fields { (row(name, &setting(name, value))) }
                (row("freestone", env!("CARGO_PKG_VERSION")))
            }
        }
    }
}

fn setting(name: &str, value: &Value) -> String {
    // A duration is an object with seconds and nanoseconds.
    if let Ok(duration) = Duration::deserialize(value) {
        return humantime::format_duration(duration).to_string();
    }
    match (value, name.ends_with("_mem")) {
        (Value::Null, _) => "not set".into(),
        (Value::Number(n), true) => {
            n.as_u64().map_or(n.to_string(), |n| format!("{} ({n} bytes)", size(n)))
        }
        (Value::String(text), _) => text.clone(),
        (other, _) => other.to_string(),
    }
}

fn traffic(record: &Record) -> Traffic {
    let mut total = Traffic::default();
    record.stages.iter().for_each(|s| total.add(s.traffic));
    total
}

/// Returns the time in which workers ran tasks, in microseconds.
fn busy(record: &Record) -> u64 {
    record.timeline.lanes.iter().flat_map(|l| &l.bins).map(|b| b.busy).sum()
}
