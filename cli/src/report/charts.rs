//! Charts over the time of a run.
//!
//! Shapes are SVG, stretched to the available width. Labels are HTML beside them, so that they stay
//! legible on narrow screens.

use std::fmt::Write as _;

use freestone_engine::memory::size;
use maud::{Markup, html};

use super::format::{duration, percent};
use super::record::{Record, RunEnd};
use super::timeline::{Bin, Lane, MAX_LANES, Sample, Span};
use crate::drawing::grouped;

/// The number of stage colours, which repeat.
const N_COLOURS: usize = 8;
/// The maximum number of drawn bins of all lanes together.
const MAX_DRAWN: usize = 8192;
/// The maximum number of points of a curve.
const MAX_POINTS: usize = 160;
/// The height of a lane in steps of the fraction of busy time.
const STEPS: u64 = 10;
/// The width of a lane in which every task is drawn.
const LANE_WIDTH: f64 = 10_000.0;

/// Returns the class of a stage's colour.
pub(super) fn colour(stage: usize) -> String {
    format!("s{}", stage % N_COLOURS)
}

/// Returns the lanes of all workers with a time axis.
pub(super) fn timeline(record: &Record, wall: u64) -> Markup {
    let timeline = &record.timeline;
    // Bins are merged until the page is small.
    let n_bins =
        |halvings: u32| timeline.lanes.iter().map(|l| l.bins.len() >> halvings).sum::<usize>();
    let halvings = (0..).find(|h| n_bins(*h) <= MAX_DRAWN).unwrap_or(0);
    let mut lanes: Vec<(usize, &Lane)> = timeline.lanes.iter().enumerate().collect();
    lanes.sort_by_key(|(at, lane)| lane_order(*at, lane));
    html! {
        div.chart.lanes {
            @for (at, lane) in lanes { (lane_row(record, at, lane, halvings, wall)) }
            (axis(wall))
        }
    }
}

/// Returns the sort key of a lane: by name, with worker 9 before worker 10, and the shared lane
/// last.
fn lane_order(at: usize, lane: &Lane) -> (bool, &str, usize, &str) {
    let stem = lane.name.trim_end_matches(|c: char| c.is_ascii_digit());
    (at + 1 == MAX_LANES, stem, lane.name.len(), &lane.name)
}

fn lane_row(record: &Record, at: usize, lane: &Lane, halvings: u32, wall: u64) -> Markup {
    let timeline = &record.timeline;
    let others = if at + 1 == MAX_LANES { timeline.n_others() } else { 0 };
    let name = if others > 0 { format!("{} and others", lane.name) } else { lane.name.clone() };
    let busy = lane.bins.iter().map(|b| b.busy).sum::<u64>() as f64
        / (wall.max(1) as f64 * (others + 1) as f64);
    let n_tasks: u64 = lane.bins.iter().map(|b| u64::from(b.tasks)).sum();
    let title = format!("{name}: {} tasks, busy {}", grouped(n_tasks), percent(busy));
    html! {
        div.row {
            span.label title=(title) { (name) }
            @if let Some(spans) = timeline.spans() {
                (all_tasks(record, spans.iter().filter(|s| s.0 == at).map(|s| &s.1), wall))
            } @else {
                (all_bins(lane, timeline.width, halvings, wall))
            }
            span.side { (percent(busy)) }
        }
        "\n"
    }
}

/// Returns a strip with a view box that is stretched to the available width.
fn strip(width: &str, height: u64, shapes: Markup) -> Markup {
    html! {
        svg.strip viewBox={ "0 0 " (width) " " (height) } preserveAspectRatio="none"
            aria-hidden="true" { (shapes) }
    }
}

/// Returns a lane in which every task is a box.
fn all_tasks<'a>(record: &Record, spans: impl Iterator<Item = &'a Span>, wall: u64) -> Markup {
    let boxes = html! { @for span in spans { (task_box(record, span, wall)) } };
    strip(&LANE_WIDTH.to_string(), 10, boxes)
}

fn task_box(record: &Record, span: &Span, wall: u64) -> Markup {
    let scale = LANE_WIDTH / wall.max(1) as f64;
    let (x, width) = (span.start as f64 * scale, (span.end - span.start) as f64 * scale);
    // Leaves a gap between neighbours, and keeps the shortest task visible.
    let width = (width - (width * 0.1).min(12.0)).max(6.0);
    let class = if span.failed { "bad".into() } else { colour(span.stage as usize) };
    let name = record.stages.get(span.stage as usize).map_or("", |s| s.name.as_str());
    // Failed tasks differ in shape too, not only in colour.
    let (result, y, height) =
        if span.failed { (" failed", Some("2"), "6") } else { ("", None, "10") };
    html! {
        rect class=(class) x=(format!("{x:.0}")) width=(format!("{width:.0}")) y=[y]
            height=(height) {
            title {
                (name) " task " (span.task) (result) ", " (duration(span.end - span.start))
                " from " (duration(span.start))
            }
        }
    }
}

/// A column of a lane: merged bins.
#[derive(Clone, Copy)]
struct Column {
    colour: usize,
    /// The height in steps.
    height: u64,
    has_failures: bool,
}

impl Column {
    fn of(bins: &[Bin], width: u64) -> Column {
        let busy: u64 = bins.iter().map(|b| b.busy).sum();
        let stage = bins.iter().max_by_key(|b| b.busy).map_or(0, |b| b.stage as usize);
        Column {
            colour: stage % N_COLOURS,
            height: (busy * STEPS).div_ceil(width).min(STEPS),
            has_failures: bins.iter().any(|b| b.failed > 0),
        }
    }
}

/// Returns a lane of columns. A column's height is the fraction of busy time, and its colour that
/// of the stage with most of that time.
fn all_bins(lane: &Lane, width: u64, halvings: u32, wall: u64) -> Markup {
    let width = width << halvings;
    let columns: Vec<Column> =
        lane.bins.chunks(1 << halvings).map(|bins| Column::of(bins, width)).collect();
    let mut failures = String::new();
    for (at, _) in columns.iter().enumerate().filter(|c| c.1.has_failures) {
        let _ = write!(failures, "M{at} 0h1v2.5h-1z");
    }
    let shapes = html! {
        @for colour in 0..N_COLOURS {
            @let path = columns_of(&columns, colour);
            @if !path.is_empty() { path class={ "s" (colour) } d=(path) {} }
        }
        @if !failures.is_empty() { path.bad d=(failures) {} }
    };
    strip(&format!("{:.2}", wall as f64 / width as f64), STEPS, shapes)
}

/// Returns the path of the columns with a colour. Equal neighbours are one rectangle.
fn columns_of(columns: &[Column], colour: usize) -> String {
    let mut path = String::new();
    let mut at = 0;
    while at < columns.len() {
        let first = columns[at];
        let is_same = |c: &&Column| (c.colour, c.height) == (first.colour, first.height);
        let n = columns[at..].iter().take_while(is_same).count();
        if first.colour == colour && first.height > 0 {
            let height = first.height;
            let _ = write!(path, "M{at} {}h{n}v{height}h-{n}z", STEPS - height);
        }
        at += n;
    }
    path
}

/// Returns the chart of bytes read and written per second.
pub(super) fn throughput(record: &Record, wall: u64) -> Markup {
    let (points, width) = curve(&record.timeline.samples, record.timeline.width);
    let rate = |bytes: u64| bytes as f64 * 1e6 / width as f64;
    let read: Vec<f64> = points.iter().map(|s| rate(s.bytes_read)).collect();
    let written: Vec<f64> = points.iter().map(|s| rate(s.bytes_written)).collect();
    let top = read.iter().chain(&written).fold(0.0f64, |a, b| a.max(*b));
    if top <= 0.0 {
        return Markup::default();
    }
    let areas = html! {
        path.read d=(area(&read, top)) {}
        path.written d=(area(&written, top)) {}
    };
    html! {
        h3 { "Throughput" }
        div.chart {
            div.row.tall {
                span.label { i.key.read {} "read" br; i.key.written {} "written" }
                (tall_strip(wall, width, areas))
                span.side.top { (size(top as u64)) "/s" }
            }
            (axis(wall))
        }
    }
}

/// Returns the chart of this process's memory, with its projection and limit.
pub(super) fn memory(record: &Record, end: &RunEnd) -> Markup {
    let (points, width) = curve(&record.timeline.samples, record.timeline.width);
    let mut last = points.iter().map(|s| s.rss_bytes).find(|b| *b > 0).unwrap_or(0);
    let rss = points.iter().map(|s| {
        last = if s.rss_bytes > 0 { s.rss_bytes } else { last };
        last as f64
    });
    let rss: Vec<f64> = rss.collect();
    let projected = record.projected_bytes as f64;
    let top = 1.1 * rss.iter().fold(projected, |a, b| a.max(*b));
    // A distant limit is not drawn, because it would flatten the curve.
    let limit = record.local_mem as f64;
    let (top, limit_fits) =
        if limit <= 3.0 * top { (top.max(1.05 * limit), true) } else { (top, false) };
    let line = |value: f64| format!("M0 {:.1}H1000000", 100.0 - 100.0 * value / top);
    let shapes = html! {
        path.rss d=(area(&rss, top)) {}
        path.projected d=(line(projected)) {}
        @if limit_fits { path.limit d=(line(limit)) {} }
    };
    html! {
        h3 { "Memory of this process" }
        div.chart {
            div.row.tall {
                span.label {
                    i.key.rss {} "resident" br; i.line.projected {} "projected"
                    @if limit_fits { br; i.line.limit {} "limit" }
                }
                (tall_strip(end.wall, width, shapes))
                span.side.top { (size(top as u64)) }
            }
            (axis(end.wall))
        }
    }
}

/// Merges samples until there are few enough to draw. Returns them with their width in time.
fn curve(samples: &[Sample], width: u64) -> (Vec<Sample>, u64) {
    let (mut points, mut width) = (samples.to_vec(), width);
    while points.len() > MAX_POINTS {
        points = points
            .chunks(2)
            .map(|pair| pair.iter().copied().reduce(Sample::merge).unwrap_or_default())
            .collect();
        width *= 2;
    }
    (points, width)
}

fn tall_strip(wall: u64, width: u64, shapes: Markup) -> Markup {
    let n_points = (wall as f64 / width as f64).max(1e-3);
    strip(&format!("{n_points:.3}"), 100, shapes)
}

/// Returns the path of the area below a step function.
fn area(values: &[f64], top: f64) -> String {
    let y = |value: f64| 100.0 - 100.0 * value / top;
    let mut path = String::from("M0 100");
    for (at, value) in values.iter().enumerate() {
        let _ = write!(path, "V{:.1}H{}", y(*value), at + 1);
    }
    path.push_str("V100z");
    path
}

/// Returns the time axis of a chart.
fn axis(wall: u64) -> Markup {
    html! {
        div.row.axis {
            span.label {}
            div.ticks {
                @for (at, label) in ticks(wall) {
                    // Near the right edge, a label is left of its tick.
                    @let position = format!("left:{:.2}%", 100.0 * at);
                    span class=[(at > 0.9).then_some("end")] style=(position) { (label) }
                }
            }
            span.side {}
        }
    }
}

/// Returns about four round times with their positions as fractions of the run.
fn ticks(wall: u64) -> Vec<(f64, String)> {
    const MINUTE: u64 = 60_000_000;
    const LONG: [u64; 9] = [1, 2, 5, 10, 20, 30, 60, 120, 240];
    let wall = wall.max(1);
    let least = wall.div_ceil(5);
    let step = if least <= 30_000_000 {
        // 1, 2 or 5 times a power of ten.
        let power = 10u64.pow(least.ilog10());
        [1, 2, 5, 10].into_iter().map(|n| n * power).find(|s| *s >= least).unwrap_or(least)
    } else {
        LONG.into_iter()
            .map(|m| m * MINUTE)
            .find(|s| *s >= least)
            .unwrap_or(least.next_multiple_of(360 * MINUTE))
    };
    (0..=wall / step).map(|i| (i as f64 * step as f64 / wall as f64, tick(i * step))).collect()
}

/// Formats a round time without trailing zeros.
fn tick(us: u64) -> String {
    match us {
        0 => "0".into(),
        1..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{} ms", us as f64 / 1e3),
        1_000_000..120_000_000 => format!("{} s", us as f64 / 1e6),
        120_000_000..7_200_000_000 => format!("{} min", us / 60_000_000),
        _ => format!("{} h", (us as f64 / 3.6e8).round() / 10.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        for (wall, expect) in [
            (1, "0 1 µs"),
            (23_400, "0 5 ms 10 ms 15 ms 20 ms"),
            (3_100_000, "0 1 s 2 s 3 s"),
            (100_000_000, "0 20 s 40 s 60 s 80 s 100 s"),
            (700_000_000, "0 5 min 10 min"),
            (36_000_000_000, "0 2 h 4 h 6 h 8 h 10 h"),
        ] {
            let found = ticks(wall);
            assert_eq!(found.iter().map(|t| t.1.as_str()).collect::<Vec<_>>().join(" "), expect);
            assert!(found.iter().all(|t| (0.0..=1.0).contains(&t.0)));
        }
    }

    #[test]
    fn merged_curves_keep_their_sums() {
        let samples = vec![Sample { bytes_read: 1, bytes_written: 2, rss_bytes: 7 }; 501];
        let (points, width) = curve(&samples, 16);
        assert_eq!((points.len(), width), (126, 64));
        assert_eq!(points.iter().map(|s| s.bytes_read).sum::<u64>(), 501);
        assert!(points.iter().all(|s| s.rss_bytes == 7));
    }
}
