//! Charts over the time of a run.
//!
//! Shapes are SVG that is stretched to the width that there is; words are HTML beside them, so that
//! they stay legible on a narrow screen.

use std::fmt::Write as _;

use freestone_engine::memory::size;

use super::page::{duration, percent};
use super::record::{Ended, Record};
use super::timeline::{Bin, Lane, MAX_LANES, Moved, Span};
use crate::drawing::{escaped, grouped};

/// Stages have so many colours in turn.
const N_COLOURS: usize = 8;
/// Bins that are drawn of all lanes together.
const MAX_DRAWN: usize = 8192;
/// Points of a curve.
const MAX_POINTS: usize = 160;
/// Height of a lane in its own units: so many steps of business can be told apart.
const STEPS: u64 = 10;

/// The class of a stage's colour.
pub(super) fn colour(stage: usize) -> String {
    format!("s{}", stage % N_COLOURS)
}

/// Who ran what when, with an axis below.
pub(super) fn timeline(html: &mut String, record: &Record, wall: u64) {
    let timeline = &record.timeline;
    html.push_str("<div class=\"chart lanes\">\n");
    // At least so many that the page stays small.
    let halvings = (0..)
        .find(|h| timeline.lanes.iter().map(|l| l.bins.len() >> h).sum::<usize>() <= MAX_DRAWN)
        .unwrap_or(0);
    let mut lanes: Vec<(usize, &Lane)> = timeline.lanes.iter().enumerate().collect();
    // As people count: worker 9 before worker 10.
    lanes.sort_by_key(|(at, lane)| {
        (
            *at + 1 == MAX_LANES,
            lane.name.trim_end_matches(|c: char| c.is_ascii_digit()),
            lane.name.len(),
            &lane.name,
        )
    });
    for (at, lane) in lanes {
        let others = if at + 1 == MAX_LANES { timeline.n_others() } else { 0 };
        let name = if others > 0 { format!("{} and others", lane.name) } else { lane.name.clone() };
        let busy = lane.bins.iter().map(|b| b.busy).sum::<u64>() as f64
            / (wall.max(1) as f64 * (others + 1) as f64);
        let n_tasks: u64 = lane.bins.iter().map(|b| u64::from(b.tasks)).sum();
        let _ = write!(
            html,
            "<div class=\"row\"><span class=\"who\" title=\"{}\">{}</span>",
            escaped(&format!("{name}: {} tasks, busy {}", grouped(n_tasks), percent(busy))),
            escaped(&name)
        );
        match timeline.spans() {
            Some(spans) => {
                each_task(html, record, spans.iter().filter(|s| s.0 == at).map(|s| &s.1), wall)
            }
            None => each_bin(html, lane, timeline.width, halvings, wall),
        }
        let _ = writeln!(html, "<span class=\"side\">{}</span></div>", percent(busy));
    }
    axis(html, wall);
    html.push_str("</div>\n");
}

/// A lane in which every task is a box.
fn each_task<'a>(
    html: &mut String,
    record: &Record,
    spans: impl Iterator<Item = &'a Span>,
    wall: u64,
) {
    const WIDE: f64 = 10_000.0;
    let _ = write!(
        html,
        "<svg class=\"strip\" viewBox=\"0 0 {WIDE} 10\" preserveAspectRatio=\"none\" \
            aria-hidden=\"true\">"
    );
    for span in spans {
        let scale = WIDE / wall.max(1) as f64;
        let (x, w) = (span.start as f64 * scale, (span.end - span.start) as f64 * scale);
        // A gap between neighbours, and something to see of the shortest.
        let w = (w - (w * 0.1).min(12.0)).max(6.0);
        let class = if span.failed { "bad".into() } else { colour(span.stage as usize) };
        let name = record.stages.get(span.stage as usize).map_or("", |s| s.name.as_str());
        // Not told apart by colour alone.
        let (what, shape) =
            if span.failed { (" failed", "y=\"2\" height=\"6\"") } else { ("", "height=\"10\"") };
        let _ = write!(
            html,
            "<rect class=\"{class}\" x=\"{x:.0}\" width=\"{w:.0}\" {shape}><title>{} task \
                {}{what}, {} from {}</title></rect>",
            escaped(name),
            span.task,
            duration(span.end - span.start),
            duration(span.start)
        );
    }
    html.push_str("</svg>");
}

/// A lane in which a column is as high as the worker was busy, in the colour of the stage that had
/// most of its time.
fn each_bin(html: &mut String, lane: &Lane, width: u64, halvings: u32, wall: u64) {
    let width = width << halvings;
    let bins: Vec<&[Bin]> = lane.bins.chunks(1 << halvings).collect();
    let columns: Vec<(usize, u64, bool)> = bins
        .iter()
        .map(|part| {
            let busy: u64 = part.iter().map(|b| b.busy).sum();
            let most = part.iter().max_by_key(|b| b.busy).map_or(0, |b| b.stage as usize);
            (
                most % N_COLOURS,
                (busy * STEPS).div_ceil(width).min(STEPS),
                part.iter().any(|b| b.failed > 0),
            )
        })
        .collect();
    let wide = wall as f64 / width as f64;
    let _ = write!(
        html,
        "<svg class=\"strip\" viewBox=\"0 0 {wide:.2} {STEPS}\" preserveAspectRatio=\"none\" \
            aria-hidden=\"true\">"
    );
    for stage in 0..N_COLOURS {
        let mut path = String::new();
        let mut at = 0;
        while at < columns.len() {
            let (its, high, _) = columns[at];
            let n = columns[at..].iter().take_while(|c| (c.0, c.1) == (its, high)).count();
            if its == stage && high > 0 {
                let _ = write!(path, "M{at} {}h{n}v{high}h-{n}z", STEPS - high);
            }
            at += n;
        }
        if !path.is_empty() {
            let _ = write!(html, "<path class=\"s{stage}\" d=\"{path}\"/>");
        }
    }
    let mut failed = String::new();
    for (at, _) in columns.iter().enumerate().filter(|c| c.1.2) {
        let _ = write!(failed, "M{at} 0h1v2.5h-1z");
    }
    if !failed.is_empty() {
        let _ = write!(html, "<path class=\"bad\" d=\"{failed}\"/>");
    }
    html.push_str("</svg>");
}

/// Bytes a second that were read and written.
pub(super) fn throughput(html: &mut String, record: &Record, wall: u64) {
    let (points, width) = curve(&record.timeline.moved, record.timeline.width);
    let read: Vec<f64> = points.iter().map(|m| m.bytes_read as f64 * 1e6 / width as f64).collect();
    let written: Vec<f64> =
        points.iter().map(|m| m.bytes_written as f64 * 1e6 / width as f64).collect();
    let high = read.iter().chain(&written).fold(0.0f64, |a, b| a.max(*b));
    if high <= 0.0 {
        return;
    }
    html.push_str("<h3>Throughput</h3>\n<div class=\"chart\"><div class=\"row tall\">");
    html.push_str(
        "<span class=\"who\"><i class=\"key read\"></i>read<br><i class=\"key \
        written\"></i>written</span>",
    );
    open(html, wall, width);
    for (class, values) in [("read", &read), ("written", &written)] {
        let _ = write!(html, "<path class=\"{class}\" d=\"{}\"/>", steps(values, high));
    }
    let _ = writeln!(html, "</svg><span class=\"side top\">{}/s</span></div>", size(high as u64));
    axis(html, wall);
    html.push_str("</div>\n");
}

/// Memory of this process beside what was projected for it and what it may have.
pub(super) fn memory(html: &mut String, record: &Record, ended: &Ended) {
    let (points, width) = curve(&record.timeline.moved, record.timeline.width);
    let mut last = points.iter().map(|m| m.rss_bytes).find(|b| *b > 0).unwrap_or(0);
    let rss = points.iter().map(|m| {
        last = if m.rss_bytes > 0 { m.rss_bytes } else { last };
        last as f64
    });
    let rss: Vec<f64> = rss.collect();
    let high = 1.1 * rss.iter().fold(record.projected_bytes as f64, |a, b| a.max(*b));
    // A limit far away would press the curve flat.
    let limit = record.local_mem as f64;
    let (high, limit_fits) =
        if limit <= 3.0 * high { (high.max(1.05 * limit), true) } else { (high, false) };
    html.push_str("<h3>Memory of this process</h3>\n<div class=\"chart\"><div class=\"row tall\">");
    html.push_str(
        "<span class=\"who\"><i class=\"key rss\"></i>resident<br><i class=\"line \
        projected\"></i>projected",
    );
    html.push_str(if limit_fits {
        "<br><i class=\"line limit\"></i>limit</span>"
    } else {
        "</span>"
    });
    open(html, ended.wall, width);
    let _ = write!(html, "<path class=\"rss\" d=\"{}\"/>", steps(&rss, high));
    let mut line = |class: &str, value: f64| {
        let y = 100.0 - 100.0 * value / high;
        let _ = write!(html, "<path class=\"{class}\" d=\"M0 {y:.1}H1000000\"/>");
    };
    line("projected", record.projected_bytes as f64);
    if limit_fits {
        line("limit", limit);
    }
    let _ = writeln!(html, "</svg><span class=\"side top\">{}</span></div>", size(high as u64));
    axis(html, ended.wall);
    html.push_str("</div>\n");
}

/// As many points as can be told apart, and the time of each.
fn curve(moved: &[Moved], width: u64) -> (Vec<Moved>, u64) {
    let (mut points, mut width) = (moved.to_vec(), width);
    while points.len() > MAX_POINTS {
        points = points
            .chunks(2)
            .map(|pair| pair.iter().copied().reduce(Moved::and).unwrap_or_default())
            .collect();
        width *= 2;
    }
    (points, width)
}

fn open(html: &mut String, wall: u64, width: u64) {
    let wide = (wall as f64 / width as f64).max(1e-3);
    let _ = write!(
        html,
        "<svg class=\"strip\" viewBox=\"0 0 {wide:.3} 100\" preserveAspectRatio=\"none\" \
            aria-hidden=\"true\">"
    );
}

/// The area below steps.
fn steps(values: &[f64], high: f64) -> String {
    let y = |value: f64| 100.0 - 100.0 * value / high;
    let mut path = String::from("M0 100");
    for (at, value) in values.iter().enumerate() {
        let _ = write!(path, "V{:.1}H{}", y(*value), at + 1);
    }
    path.push_str("V100z");
    path
}

/// Round times below a chart.
fn axis(html: &mut String, wall: u64) {
    html.push_str("<div class=\"row axis\"><span class=\"who\"></span><div class=\"ticks\">");
    for (at, label) in ticks(wall) {
        // Where there is no room on its right, a label stands on the left of its time.
        let class = if at > 0.9 { " class=\"end\"" } else { "" };
        let _ = write!(html, "<span{class} style=\"left:{:.2}%\">{label}</span>", 100.0 * at);
    }
    html.push_str("</div><span class=\"side\"></span></div>\n");
}

/// Round times, as parts of the whole: about four of them.
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

/// A round time without what would be zeros.
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
    fn curves_have_few_points_and_lose_nothing() {
        let moved = vec![Moved { bytes_read: 1, bytes_written: 2, rss_bytes: 7 }; 501];
        let (points, width) = curve(&moved, 16);
        assert_eq!((points.len(), width), (126, 64));
        assert_eq!(points.iter().map(|m| m.bytes_read).sum::<u64>(), 501);
        assert!(points.iter().all(|m| m.rss_bytes == 7));
    }
}
