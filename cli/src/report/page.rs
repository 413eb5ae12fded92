//! The page.

use std::fmt::Write as _;

use freestone_engine::memory::size;
use freestone_engine::spec::Spec;
use freestone_engine::storage::reader::Traffic;
use serde_json::Value;

use super::charts::{self, colour};
use super::record::{Ended, Outcome, Record, Slow, Sort, Stage};
use crate::cost::dollars;
use crate::drawing::{escaped, grouped, svg};

const STYLE: &str = include_str!("page.css");
/// A larger drawing of a plan is left out.
const MAX_DRAWING: usize = 600_000;
/// So much of a plan's text is shown.
const MAX_TEXT: usize = 60_000;
/// Stages in the table: of more, those that took most.
const MAX_STAGES: usize = 150;
/// Stages in the legend.
const MAX_LEGEND: usize = 12;

/// A run's page.
pub(super) fn page(record: &Record, ended: &Ended, spec: &Spec) -> String {
    let mut html = String::with_capacity(64 * 1024);
    let (word, class) = match ended.result {
        Outcome::Done => ("Succeeded", "good"),
        Outcome::Cancelled => ("Cancelled", "warn"),
        Outcome::Failed => ("Failed", "bad"),
    };
    let _ = write!(
        html,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta \
         name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src \
         'unsafe-inline'; img-src data:\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>{word}: Freestone run \
         {run}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header>\n<p class=\"pill {class}\">{word}</p>\n<h1>Freestone run \
         <code>{run}</code></h1>\n\
         <p class=\"quiet\">{executor}, {slots} at once · began {date} UTC</p>\n</header>\n",
        run = escaped(&record.run),
        executor = escaped(&record.executor),
        slots = record.slots,
        date = date(record.unix.as_secs()),
    );
    if let Some(error) = &ended.error {
        let _ =
            writeln!(html, "<p class=\"callout {class}\" role=\"alert\">{}</p>", escaped(error));
    }
    tiles(&mut html, record, ended);
    troubles(&mut html, record, ended.wall);
    when(&mut html, record, ended);
    stages(&mut html, record, ended.wall);
    slowest(&mut html, record);
    plan(&mut html, record);
    settings(&mut html, record, spec);
    html.push_str("</main>\n</body>\n</html>\n");
    html
}

/// The headline in figures.
fn tiles(html: &mut String, record: &Record, ended: &Ended) {
    html.push_str("<section class=\"tiles\" aria-label=\"Summary\">\n");
    let mut tile = |label: &str, figure: String, note: String| {
        let _ = writeln!(
            html,
            "<div class=\"tile\"><h2>{label}</h2><p class=\"figure\">{figure}</p><p \
                class=\"quiet\">{note}</p></div>"
        );
    };
    let traffic = traffic(record);
    let cpu = record.stages.iter().map(|s| s.cpu.as_micros() as u64).sum::<u64>();
    let wall = ended.wall.max(1);
    tile(
        "Time",
        duration(ended.wall),
        format!("{:.1} of {} workers busy", busy(record) as f64 / wall as f64, record.slots),
    );
    tile(
        "CPU",
        duration(cpu),
        format!("by tasks; {} by this process", duration(ended.process_cpu.as_micros() as u64)),
    );
    let (done, all) = (
        record.stages.iter().map(|s| s.done).sum::<u64>(),
        record.stages.iter().map(|s| s.tasks).sum::<u64>(),
    );
    let finished = record.stages.iter().map(|s| s.finished).sum::<u64>();
    let note = match (finished, done + finished == all) {
        (0, true) => format!("in {}", counted(record.stages.len() as u64, "stage")),
        (0, false) => format!("of {}", grouped(all)),
        (_, true) => format!("and {} before", grouped(finished)),
        (_, false) => format!("and {} before, of {}", grouped(finished), grouped(all)),
    };
    tile("Tasks", grouped(done), note);
    tile("Read", size(traffic.bytes_read).to_string(), counted(traffic.reads, "request"));
    tile("Written", size(traffic.bytes_written).to_string(), counted(traffic.writes, "request"));
    if let Some([measured, projected]) = &ended.cost {
        let note = format!(
            "{} and {:.1} GB-seconds; {} projected, prices of {}",
            counted(measured.invocations, "invocation"),
            measured.gb_seconds,
            dollars(projected.dollars()),
            escaped(&measured.date)
        );
        tile("Cost", dollars(measured.dollars()), note);
    }
    let kept = if ended.cached_bytes > 0 {
        format!(", {} of it intermediates", size(ended.cached_bytes))
    } else {
        String::new()
    };
    let (peak, whose, of) = record
        .worker_peak
        .map_or((ended.peak_rss_bytes, "", ""), |peak| (peak, " by a worker", " for a worker"));
    // Against the limit, where something can be seen then.
    let most = peak.max(record.projected_bytes).max(1);
    let scale = if record.local_mem <= 4 * most {
        record.local_mem.max(most) as f64
    } else {
        1.25 * most as f64
    };
    let _ = writeln!(
        html,
        "<div class=\"tile wide\"><h2>Memory</h2><p class=\"figure\">{} <small>at \
            most{whose}{kept}</small></p>{}\
         <p class=\"quiet\">{} projected{of}, {} allowed on this machine</p></div>",
        size(peak),
        gauge(peak as f64 / scale, record.projected_bytes as f64 / scale),
        size(record.projected_bytes),
        size(record.local_mem)
    );
    html.push_str("</section>\n");
}

/// What was measured in what was projected, as parts of the track.
fn gauge(measured: f64, projected: f64) -> String {
    let over = if measured > projected { " over" } else { "" };
    format!(
        "<div class=\"gauge\" aria-hidden=\"true\"><b class=\"projected\" \
            style=\"width:{:.2}%\"></b>\
         <b class=\"measured{over}\" style=\"width:{:.2}%\"></b></div>",
        100.0 * projected.min(1.0),
        100.0 * measured.min(1.0)
    )
}

/// Failures, repetitions and what was computed again.
fn troubles(html: &mut String, record: &Record, wall: u64) {
    let [repeated, first] = record.backups;
    if record.troubles.is_empty() && repeated == 0 {
        return;
    }
    html.push_str("<section>\n<h2>What went another way</h2>\n");
    if repeated > 0 {
        let _ = writeln!(
            html,
            "<p>{} slow requests were begun once more elsewhere; {} of these came back first.</p>",
            grouped(repeated),
            grouped(first)
        );
    }
    if record.recomputed > 0 {
        let _ = writeln!(
            html,
            "<p>{} finished tasks were run once more, because what they had written was damaged or \
                gone.</p>",
            grouped(record.recomputed)
        );
    }
    if !record.troubles.is_empty() {
        table(
            html,
            &[("Kind", ""), ("Times", "n"), ("Tried again", "n"), ("When", ""), ("The first", "")],
        );
        for ((sort, kind), trouble) in &record.troubles {
            let retried =
                if *sort == Sort::Failure { grouped(trouble.retried) } else { "–".into() };
            let when = if trouble.count > 1 && trouble.last > trouble.first {
                format!("{} to {}", duration(trouble.first), duration(trouble.last.min(wall)))
            } else {
                duration(trouble.first)
            };
            html.push_str("<tr>");
            cell(html, "Kind", "head", &escaped(kind));
            cell(html, "Times", "n", &grouped(trouble.count));
            cell(html, "Tried again", "n", &retried);
            cell(html, "When", "whole", &when);
            cell(
                html,
                "The first",
                "long",
                &format!(
                    "<span class=\"quiet\">{}</span> {}",
                    escaped(&trouble.place),
                    escaped(&trouble.message)
                ),
            );
            html.push_str("</tr>\n");
        }
        html.push_str("</tbody></table>\n");
    }
    html.push_str("</section>\n");
}

/// Charts over time.
fn when(html: &mut String, record: &Record, ended: &Ended) {
    if record.timeline.lanes.is_empty() {
        return;
    }
    html.push_str("<section>\n<h2>Who ran what when</h2>\n<p class=\"legend\">");
    for (i, stage) in
        record.stages.iter().enumerate().filter(|s| s.1.first.is_some()).take(MAX_LEGEND)
    {
        let _ = write!(
            html,
            "<span><i class=\"key {}\"></i>{}</span> ",
            colour(i),
            escaped(&stage.name)
        );
    }
    let n_ran = record.stages.iter().filter(|s| s.first.is_some()).count();
    if n_ran > MAX_LEGEND {
        let _ = write!(
            html,
            "<span>and {} more stages in the same colours</span> ",
            n_ran - MAX_LEGEND
        );
    }
    if record.troubles.keys().any(|k| k.0 == Sort::Failure) {
        html.push_str("<span><i class=\"key bad\"></i>failed</span>");
    }
    html.push_str("</p>\n");
    if record.timeline.spans().is_none() {
        html.push_str(
            "<p class=\"quiet\">As high as a worker was busy, in the colour of the stage \
            that had most of its time.</p>\n",
        );
    }
    // What runs on the clocks of workers may end a little later.
    let wall = ended.wall.max(record.timeline.end).max(1);
    charts::timeline(html, record, wall);
    charts::throughput(html, record, wall);
    if record.worker_peak.is_none() {
        charts::memory(html, record, ended);
    }
    html.push_str("</section>\n");
}

fn stages(html: &mut String, record: &Record, wall: u64) {
    let mut shown: Vec<(usize, &Stage)> = record.stages.iter().enumerate().collect();
    let left_out = shown.len().saturating_sub(MAX_STAGES);
    if left_out > 0 {
        shown.sort_by_key(|s| std::cmp::Reverse(s.1.cpu));
        shown.truncate(MAX_STAGES);
        shown.sort_by_key(|s| s.0);
    }
    html.push_str("<section>\n<h2>Stages</h2>\n");
    let figures = ["CPU", "Median task", "Read", "Written"].map(|name| (name, "n"));
    table(
        html,
        &[
            &[("Stage", ""), ("Tasks", "n"), ("When", "")],
            &figures[..],
            &[("Memory of a task", "")],
        ]
        .concat(),
    );
    let reserved = record.reserved_mem;
    let allowed = record.explanation.allowed_mem.saturating_sub(reserved);
    let buffers = |s: &Stage| s.projected_bytes.saturating_sub(reserved);
    let most = record.stages.iter().map(|s| buffers(s).max(s.peak_bytes)).max().unwrap_or(0).max(1);
    // Against the limit, where something can be seen then.
    let against_limit = allowed <= 8 * most;
    let scale = if against_limit { allowed.max(most) } else { most } as f64;
    for (i, stage) in shown {
        html.push_str("<tr>");
        cell(
            html,
            "Stage",
            "head",
            &format!("<i class=\"key {}\"></i>{}", colour(i), escaped(&stage.name)),
        );
        let tasks = if stage.done + stage.finished == stage.tasks {
            grouped(stage.tasks)
        } else {
            format!("{} of {}", grouped(stage.done + stage.finished), grouped(stage.tasks))
        };
        let before = if stage.finished > 0 {
            format!("<br><span class=\"quiet\">{} before</span>", grouped(stage.finished))
        } else {
            String::new()
        };
        cell(html, "Tasks", "n", &(tasks + &before));
        cell(html, "When", "whole", &during(stage, wall));
        cell(html, "CPU", "n", &duration(stage.cpu.as_micros() as u64));
        cell(
            html,
            "Median task",
            "n",
            &stage.walls.median_us().map_or("–".into(), |us| format!("≈ {}", duration(us))),
        );
        let moved = |bytes: u64, requests: u64| {
            format!(
                "{}<br><span class=\"quiet\">{}</span>",
                size(bytes),
                counted(requests, "request")
            )
        };
        let Traffic { bytes_read, bytes_written, reads, writes } = stage.traffic;
        cell(html, "Read", "n", &moved(bytes_read, reads));
        cell(html, "Written", "n", &moved(bytes_written, writes));
        let bar = gauge(stage.peak_bytes as f64 / scale, buffers(stage) as f64 / scale);
        let words = format!("{} of {} projected", size(stage.peak_bytes), size(buffers(stage)));
        cell(
            html,
            "Memory of a task",
            "mem",
            &format!("{bar}<span class=\"quiet\">{words}</span>"),
        );
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table>\n");
    if left_out > 0 {
        let _ = writeln!(
            html,
            "<p class=\"quiet\">{left_out} stages that took less CPU time are left out.</p>"
        );
    }
    let end = if against_limit { "the end of the track is" } else { "far beyond the track is" };
    let _ = writeln!(
        html,
        "<p class=\"quiet\">Memory: the most that the buffers of a task took, in what was \
            projected for them; \
         {end} what a task is allowed, {} ({} less {} reserved).</p>\n</section>",
        size(allowed),
        size(record.explanation.allowed_mem),
        size(reserved)
    );
}

/// When a stage ran, in the time of the run.
fn during(stage: &Stage, wall: u64) -> String {
    let Some(first) = stage.first else { return "–".into() };
    let share = |us: u64| 100.0 * us.min(wall) as f64 / wall.max(1) as f64;
    let (from, to) = (share(first), share(stage.last));
    format!(
        "<div class=\"during\" aria-hidden=\"true\"><b \
            style=\"left:{from:.2}%;width:{:.2}%\"></b></div><span class=\"quiet\">{} to {}</span>",
        (to - from).max(0.5),
        duration(first),
        duration(stage.last)
    )
}

fn slowest(html: &mut String, record: &Record) {
    let slowest = record.slowest();
    let Some(most) = slowest.first().map(|s| s.wall_ns.max(1)) else { return };
    html.push_str("<section>\n<h2>Slowest tasks</h2>\n");
    let figures = ["CPU", "× median", "Read", "Buffers"].map(|name| (name, "n"));
    table(
        html,
        &[&[("Task", ""), ("Time", "")], &figures[..], &[("Worker", ""), ("Began", "n")]].concat(),
    );
    for Slow { wall_ns, stage, task, cpu_ns, start, peak_bytes, bytes_read, worker } in slowest {
        let of = record.stages.get(*stage);
        let median = of.and_then(|s| s.walls.median_us()).unwrap_or(0);
        let times = match *wall_ns as f64 / 1e3 / median as f64 {
            times if times < 10.0 => format!("≈ {times:.1}"),
            times if times.is_finite() => format!("≈ {}", grouped(times as u64)),
            _ => "–".into(),
        };
        let share = 100.0 * *wall_ns as f64 / most as f64;
        html.push_str("<tr>");
        cell(
            html,
            "Task",
            "head",
            &format!(
                "<i class=\"key {}\"></i>{} {}",
                colour(*stage),
                escaped(of.map_or("", |s| s.name.as_str())),
                grouped(*task)
            ),
        );
        let bar = format!(
            "<div class=\"timed\"><div class=\"gauge\" aria-hidden=\"true\"><b class=\"time\" \
                style=\"width:{share:.1}%\"></b></div><span>{}</span></div>",
            duration(wall_ns / 1000)
        );
        cell(html, "Time", "mem", &bar);
        cell(html, "CPU", "n", &duration(cpu_ns / 1000));
        cell(html, "× median", "n", &times);
        cell(html, "Read", "n", &size(*bytes_read).to_string());
        cell(html, "Buffers", "n", &size(*peak_bytes).to_string());
        cell(html, "Worker", "", &escaped(worker));
        cell(html, "Began", "n", &duration(*start));
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table>\n</section>\n");
}

fn plan(html: &mut String, record: &Record) {
    html.push_str("<section>\n<h2>Plan</h2>\n");
    let drawing = svg(&record.explanation);
    if drawing.len() <= MAX_DRAWING {
        let _ = writeln!(
            html,
            "<figure class=\"scroll\" tabindex=\"0\" aria-label=\"The plan, \
                drawn\">{drawing}</figure>"
        );
    } else {
        html.push_str(
            "<p class=\"quiet\">The plan is too large to be drawn here; <code>freestone \
            plan … --svg FILE</code> draws it.</p>\n",
        );
    }
    let text = record.explanation.to_string();
    let shown = text.char_indices().nth(MAX_TEXT).map_or(text.as_str(), |(end, _)| &text[..end]);
    let more = if shown.len() < text.len() { "\n…" } else { "" };
    let _ = writeln!(
        html,
        "<details><summary>The plan in words</summary><pre class=\"scroll\" \
            tabindex=\"0\">{}{more}</pre></details>\n</section>",
        escaped(shown)
    );
}

fn settings(html: &mut String, record: &Record, spec: &Spec) {
    html.push_str("<section>\n<h2>Settings</h2>\n<dl>\n");
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(html, "<div><dt>{}</dt><dd>{}</dd></div>", escaped(name), escaped(value));
    };
    row("executor", &record.executor);
    if let Ok(Value::Object(fields)) = serde_json::to_value(spec) {
        for (name, value) in &fields {
            let value = match (value, name.ends_with("_mem")) {
                (Value::Number(n), true) => {
                    n.as_u64().map_or(n.to_string(), |n| format!("{} ({n} bytes)", size(n)))
                }
                (Value::String(text), _) => text.clone(),
                (other, _) => other.to_string(),
            };
            row(name, &value);
        }
    }
    row("freestone", env!("CARGO_PKG_VERSION"));
    html.push_str("</dl>\n</section>\n");
}

/// `1 task`, `2 000 tasks`.
fn counted(n: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(n), if n == 1 { "" } else { "s" })
}

/// Begins a table: names of columns with their classes.
fn table(html: &mut String, columns: &[(&str, &str)]) {
    html.push_str("<table class=\"cards\"><thead><tr>");
    for (name, class) in columns {
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        let _ = write!(html, "<th scope=\"col\"{class}>{name}</th>");
    }
    html.push_str("</tr></thead><tbody>\n");
}

/// A cell that says on a narrow screen what it is.
fn cell(html: &mut String, label: &str, class: &str, inner: &str) {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    let _ = write!(html, "<td{class} data-label=\"{label}\"><div>{inner}</div></td>");
}

fn traffic(record: &Record) -> Traffic {
    let mut all = Traffic::default();
    record.stages.iter().for_each(|s| all.add(s.traffic));
    all
}

/// Microseconds in which workers ran tasks.
fn busy(record: &Record) -> u64 {
    record.timeline.lanes.iter().flat_map(|l| &l.bins).map(|b| b.busy).sum()
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share.min(1.0))
}

/// A time in three digits or so: `850 µs`, `1.23 s`, `2 min 05 s`.
pub(super) fn duration(us: u64) -> String {
    let (s, min) = (us / 1_000_000, us / 60_000_000);
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{:.0} ms", us as f64 / 1e3),
        1_000_000..10_000_000 => format!("{:.2} s", us as f64 / 1e6),
        10_000_000..100_000_000 => format!("{:.1} s", us as f64 / 1e6),
        100_000_000..3_600_000_000 => format!("{min} min {:02} s", s % 60),
        _ => format!("{} h {:02} min", min / 60, min % 60),
    }
}

/// A time of the Gregorian calendar, `2026-11-22 13:07:10`, of seconds since 1970.
fn date(seconds: u64) -> String {
    let (mut day, mut year) = (seconds / 86_400, 1970);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    for days in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    let time = seconds % 86_400;
    format!(
        "{year}-{month:02}-{:02} {:02}:{:02}:{:02}",
        day + 1,
        time / 3600,
        time / 60 % 60,
        time % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        for (us, expect) in [
            (0, "0 µs"),
            (999, "999 µs"),
            (1_234, "1.23 ms"),
            (99_940, "99.9 ms"),
            (850_400, "850 ms"),
            (1_234_000, "1.23 s"),
            (99_000_000, "99.0 s"),
            (125_000_000, "2 min 05 s"),
            (7_500_000_000, "2 h 05 min"),
        ] {
            assert_eq!(duration(us), expect);
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expect) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_709_251_199, "2024-02-29 23:59:59"),
            (1_735_689_599, "2024-12-31 23:59:59"),
            (1_795_352_830, "2026-11-22 13:07:10"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(date(seconds), expect);
        }
    }
}
