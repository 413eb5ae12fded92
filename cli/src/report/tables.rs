//! The tables of stages and of slow tasks.

use freestone_engine::memory::size;
use freestone_engine::storage::reader::Traffic;
use maud::{Markup, html};

use super::charts::colour;
use super::format::{counted, duration};
use super::record::{Record, SlowTask, Stage};
use crate::drawing::grouped;

/// The maximum number of stages in the table. Of more stages, those with most CPU time are shown.
const MAX_STAGES: usize = 150;

/// Returns the header of a table: the names of its columns with their classes.
pub(super) fn header(columns: &[(&str, &str)]) -> Markup {
    html! {
        thead {
            tr {
                @for (name, class) in columns {
                    th scope="col" class=[(!class.is_empty()).then_some(class)] { (name) }
                }
            }
        }
    }
}

/// Returns a cell, with the label that narrow screens show.
pub(super) fn cell(label: &str, class: &str, inner: Markup) -> Markup {
    let class = (!class.is_empty()).then_some(class);
    html! { td class=[class] data-label=(label) { div { (inner) } } }
}

/// Returns a bar that shows a measured value within a projected one, as fractions of its width.
pub(super) fn gauge(measured: f64, projected: f64) -> Markup {
    let class = if measured > projected { "measured over" } else { "measured" };
    let width = |fraction: f64| format!("width:{:.2}%", 100.0 * fraction.min(1.0));
    html! {
        div.gauge aria-hidden="true" {
            b.projected style=(width(projected)) {}
            b class=(class) style=(width(measured)) {}
        }
    }
}

/// The scale of the memory gauges of stages.
struct MemoryScale {
    reserved: u64,
    /// The limit of a task, without reserved memory.
    allowed: u64,
    /// True if the end of the gauges is the limit.
    ends_at_limit: bool,
    end: f64,
}

impl MemoryScale {
    fn of(record: &Record) -> MemoryScale {
        let reserved = record.reserved_mem;
        let allowed = record.explanation.allowed_mem.saturating_sub(reserved);
        let largest = record
            .stages
            .iter()
            .map(|s| s.projected_bytes.saturating_sub(reserved).max(s.peak_bytes))
            .max()
            .unwrap_or(0)
            .max(1);
        // Relative to a distant limit, the bars would be too small to see.
        let ends_at_limit = allowed <= 8 * largest;
        let end = if ends_at_limit { allowed.max(largest) } else { largest } as f64;
        MemoryScale { reserved, allowed, ends_at_limit, end }
    }
}

/// Returns the section with all stages.
pub(super) fn stages(record: &Record, wall: u64) -> Markup {
    let mut shown: Vec<(usize, &Stage)> = record.stages.iter().enumerate().collect();
    let n_omitted = shown.len().saturating_sub(MAX_STAGES);
    if n_omitted > 0 {
        shown.sort_by_key(|s| std::cmp::Reverse(s.1.cpu));
        shown.truncate(MAX_STAGES);
        shown.sort_by_key(|s| s.0);
    }
    let scale = MemoryScale::of(record);
    let end = if scale.ends_at_limit { "the end of the bar" } else { "far beyond the bar" };
    html! {
        section {
            h2 { "Stages" }
            table.cards {
                (header(&[
                    ("Stage", ""),
                    ("Tasks", "n"),
                    ("Time", ""),
                    ("CPU", "n"),
                    ("Median task", "n"),
                    ("Read", "n"),
                    ("Written", "n"),
                    ("Memory per task", ""),
                ]))
                tbody {
                    @for (at, stage) in shown { (stage_row(at, stage, wall, &scale)) }
                }
            }
            @if n_omitted > 0 {
                p.quiet { (counted(n_omitted as u64, "stage")) " with less CPU time not shown" }
            }
            p.quiet {
                "Memory: the peak of a task's buffers, within their projection. The limit of a \
                 task is " (end) ": " (size(scale.allowed)) " ("
                (size(record.explanation.allowed_mem)) " minus " (size(scale.reserved))
                " reserved)."
            }
        }
    }
}

fn stage_row(at: usize, stage: &Stage, wall: u64, scale: &MemoryScale) -> Markup {
    let n_done = stage.done + stage.finished;
    let tasks = if n_done == stage.tasks {
        grouped(stage.tasks)
    } else {
        format!("{} of {}", grouped(n_done), grouped(stage.tasks))
    };
    let median = stage.walls.median_us();
    let moved = |bytes: u64, requests: u64| {
        html! { (size(bytes)) br; span.quiet { (counted(requests, "request")) } }
    };
    let Traffic { bytes_read, bytes_written, reads, writes } = stage.traffic;
    let projected = stage.projected_bytes.saturating_sub(scale.reserved);
    html! {
        tr {
            (cell("Stage", "head", html! { i class={ "key " (colour(at)) } {} (stage.name) }))
            (cell("Tasks", "n", html! {
                (tasks)
                @if stage.finished > 0 {
                    br; span.quiet { (grouped(stage.finished)) " before" }
                }
            }))
            (cell("Time", "whole", time_range(stage, wall)))
            (cell("CPU", "n", html! { (duration(stage.cpu.as_micros() as u64)) }))
            (cell("Median task", "n", html! {
                @if let Some(us) = median { "≈ " (duration(us)) } @else { "–" }
            }))
            (cell("Read", "n", moved(bytes_read, reads)))
            (cell("Written", "n", moved(bytes_written, writes)))
            (cell("Memory per task", "mem", html! {
                (gauge(stage.peak_bytes as f64 / scale.end, projected as f64 / scale.end))
                span.quiet { (size(stage.peak_bytes)) " of " (size(projected)) " projected" }
            }))
        }
        "\n"
    }
}

/// Returns the time range of a stage within that of the run.
fn time_range(stage: &Stage, wall: u64) -> Markup {
    let Some(first) = stage.first else { return html! { "–" } };
    let share = |us: u64| 100.0 * us.min(wall) as f64 / wall.max(1) as f64;
    let (from, to) = (share(first), share(stage.last));
    let style = format!("left:{from:.2}%;width:{:.2}%", (to - from).max(0.5));
    html! {
        div.during aria-hidden="true" { b style=(style) {} }
        span.quiet { (duration(first)) " to " (duration(stage.last)) }
    }
}

/// Returns the section with the slowest tasks.
pub(super) fn slowest_tasks(record: &Record) -> Markup {
    let slowest = record.slowest();
    let Some(longest_ns) = slowest.first().map(|s| s.wall_ns.max(1)) else {
        return Markup::default();
    };
    html! {
        section {
            h2 { "Slowest tasks" }
            table.cards {
                (header(&[
                    ("Task", ""),
                    ("Time", ""),
                    ("CPU", "n"),
                    ("× median", "n"),
                    ("Read", "n"),
                    ("Buffers", "n"),
                    ("Worker", ""),
                    ("Start", "n"),
                ]))
                tbody { @for task in slowest { (task_row(record, task, longest_ns)) } }
            }
        }
    }
}

fn task_row(record: &Record, slow: &SlowTask, longest_ns: u64) -> Markup {
    let stage = record.stages.get(slow.stage);
    let median = stage.and_then(|s| s.walls.median_us()).unwrap_or(0);
    let times_median = match slow.wall_ns as f64 / 1e3 / median as f64 {
        times if times < 10.0 => format!("≈ {times:.1}"),
        times if times.is_finite() => format!("≈ {}", grouped(times as u64)),
        _ => "–".into(),
    };
    let width = format!("width:{:.1}%", 100.0 * slow.wall_ns as f64 / longest_ns as f64);
    html! {
        tr {
            (cell("Task", "head", html! {
                i class={ "key " (colour(slow.stage)) } {}
                (stage.map_or("", |s| s.name.as_str())) " " (grouped(slow.task))
            }))
            (cell("Time", "mem", html! {
                div.timed {
                    div.gauge aria-hidden="true" { b.time style=(width) {} }
                    span { (duration(slow.wall_ns / 1000)) }
                }
            }))
            (cell("CPU", "n", html! { (duration(slow.cpu_ns / 1000)) }))
            (cell("× median", "n", html! { (times_median) }))
            (cell("Read", "n", html! { (size(slow.bytes_read)) }))
            (cell("Buffers", "n", html! { (size(slow.peak_bytes)) }))
            (cell("Worker", "", html! { (slow.worker) }))
            (cell("Start", "n", html! { (duration(slow.start)) }))
        }
        "\n"
    }
}
