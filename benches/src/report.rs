//! Reports of results, on the terminal and in files.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fs, iter};

use freestone_engine::machine;
use serde_json::{Value, json};

use crate::floor::Floor;
use crate::kernels::{self, Timing};
use crate::sample::{Measured, Row, median};
use crate::table::Case;
use crate::{Codec, Failure, Setup, inputs};

/// Prints a result, and stores it as Markdown and JSON in `benches/results`.
pub(crate) fn keep(
    measured: &Measured,
    setup: &Setup,
    date: Option<String>,
) -> Result<(), Failure> {
    let date = date.unwrap_or_else(today);
    let (size, codec) = parameters(measured, setup);
    let text = markdown(measured, setup, &date);
    println!("\n{text}");
    let name: Vec<&str> = [&*date, measured.workload]
        .into_iter()
        .chain(size.as_deref())
        .chain(iter::once(codec.name()))
        .collect();
    let document = json!({
        "date": date,
        "revision": revision(),
        "machine": describe_machine(),
        "size_bytes": size.is_some().then_some(setup.size()),
        "codec": codec,
        "threads": setup.threads,
        "local_mem": setup.local_mem,
        "repeat": setup.repeat,
        "measured": measured,
    });
    save(&name.join("-"), &text, &document)
}

/// Prints and stores the results of kernels.
pub(crate) fn keep_kernels(
    table: &kernels::Table,
    setup: &Setup,
    date: Option<String>,
) -> Result<(), Failure> {
    let date = date.unwrap_or_else(today);
    let text = kernels_markdown(table, setup, &date);
    println!("\n{text}");
    let document = json!({
        "date": date,
        "revision": revision(),
        "machine": describe_machine(),
        "repeat": setup.repeat,
        "measured": table,
    });
    save(&format!("{date}-kernels"), &text, &document)
}

/// Prints and stores rows of the table.
pub(crate) fn keep_rows(
    rows: &[(Case, Measured)],
    setup: &Setup,
    date: Option<String>,
) -> Result<(), Failure> {
    let date = date.unwrap_or_else(today);
    let text = rows_markdown(rows, setup, &date);
    println!("\n{text}");
    let measured: Vec<&Measured> = rows.iter().map(|(_, m)| m).collect();
    let document = json!({
        "date": date,
        "revision": revision(),
        "machine": describe_machine(),
        "size_bytes": setup.row_size(),
        "threads": setup.threads,
        "local_mem": setup.local_mem,
        "repeat": setup.repeat,
        "measured": measured,
    });
    let name = match rows {
        [(case, _)] => format!("{date}-{}-{}", case.name, inputs::label(setup.row_size())),
        _ => format!("{date}-workloads-{}", inputs::label(setup.row_size())),
    };
    save(&name, &text, &document)
}

/// Formats a line for each row: relative to the floor, the projection, and each peer.
pub(crate) fn rows_markdown(rows: &[(Case, Measured)], setup: &Setup, date: &str) -> String {
    let dash = || "-".to_owned();
    let number = |value: Option<f64>| value.map_or_else(dash, |v| format!("{v:.2}"));
    let megabytes = |bytes: Option<f64>| bytes.map_or_else(dash, |b| format!("{:.0}", b * 1e-6));
    let mut peers: Vec<&str> = Vec::new();
    for row in rows.iter().flat_map(|(_, m)| m.rows.iter().skip(1)) {
        if !peers.contains(&row.system) {
            peers.push(row.system);
        }
    }
    let head = [
        "workload",
        "bar",
        "CPU / floor",
        "floor CPU s",
        "CPU s",
        "wall s",
        "peak MB",
        "projected",
    ]
    .map(str::to_owned)
    .into_iter();
    let head = head.chain(
        peers.iter().flat_map(|p| [format!("{p} / floor"), "wall ×".into(), "RSS ×".into()]),
    );
    let line = |(case, measured): &(Case, Measured)| {
        let (ours, floor) = (&measured.rows[0], measured.floor_s());
        let over_floor = |cpu: Option<f64>| number(cpu.zip(floor).map(|(cpu, floor)| cpu / floor));
        let highest = ours.samples.iter().map(|s| s.peak_rss_bytes).max();
        let own = [
            case.name.to_owned(),
            case.bar.to_string(),
            over_floor(ours.cpu_s()),
            number(floor),
            number(ours.cpu_s()),
            number(ours.wall_s()),
            megabytes(highest.map(|b| b as f64)),
            megabytes(ours.projected_bytes().map(|b| b as f64)),
        ];
        let beside = peers.iter().flat_map(|peer| {
            let theirs = measured.rows.iter().find(|r| r.system == *peer);
            [
                over_floor(theirs.and_then(Row::cpu_s)),
                number(measured.ratio(peer, Row::wall_s)),
                number(measured.ratio(peer, Row::peak_rss_bytes)),
            ]
        });
        own.into_iter().chain(beside).collect()
    };
    let table = aligned(iter::once(head.collect()).chain(rows.iter().map(line)).collect());
    let parts =
        rows.iter().filter_map(|(case, m)| Some(format!("- {}: {}\n", case.name, in_parts(m)?)));
    let failures = rows.iter().flat_map(|(case, m)| {
        m.rows.iter().filter_map(|r| {
            Some(format!("- {}, {}: {}\n", case.name, r.system, r.failure.as_ref()?))
        })
    });
    format!(
        "# workloads, {}\n\n{date}, revision {}, {}. Medians of {} fresh processes each, in turn; \
            {} threads; inputs in the page cache; local_mem {}.\n\n\
         {table}\nWall × and RSS × are Freestone's figure over the peer's: below 1 is better for \
         Freestone. Peak is the highest of all runs.\n\n\
         Of the floor, in CPU seconds:\n\n{}{}",
        inputs::label(setup.row_size()),
        revision(),
        describe_machine(),
        setup.repeat,
        setup.threads,
        freestone::size(setup.local_mem),
        parts.collect::<String>(),
        failures.collect::<String>()
    )
}

/// Formats the medians of the floor's steps.
fn in_parts(measured: &Measured) -> Option<String> {
    let part = |name: &str, of: fn(&Floor) -> f64| {
        Some(format!("{name} {:.2}", median(measured.floors.iter().map(of))?))
    };
    let parts = [
        part("read", |f| f.read_s)?,
        part("decode", |f| f.decode_s)?,
        part("compute", |f| f.compute_s)?,
        part("encode", |f| f.encode_s)?,
        part("write", |f| f.write_s)?,
    ];
    Some(parts.join(", "))
}

fn save(name: &str, text: &str, document: &Value) -> Result<(), Failure> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(format!("{name}.md")), text)?;
    fs::write(folder.join(format!("{name}.json")), serde_json::to_vec_pretty(document)?)?;
    println!("stored as benches/results/{name}.md and .json");
    Ok(())
}

/// Formats speeds in millions of elements per second, for both sizes and both sides.
pub(crate) fn kernels_markdown(table: &kernels::Table, setup: &Setup, date: &str) -> String {
    let head = ["operation", "bar", "block", "NumPy", "ratio", "cached", "NumPy", "ratio"]
        .map(str::to_owned)
        .to_vec();
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let speed = |timings: &[Timing], of: fn(&Timing) -> f64| {
        or_dash(median(timings.iter().map(of)).map(|ns| format!("{:.0}", 1e3 / ns)))
    };
    let ratio = |row: &kernels::Row, of: fn(&Timing) -> f64| {
        or_dash(row.ratio(of).map(|r| format!("{r:.2}")))
    };
    let block = |t: &Timing| t.block_ns;
    let cached = |t: &Timing| t.cached_ns;
    let rows = table.rows.iter().map(|row| {
        let bar = or_dash(row.bar.map(|bar| bar.to_string()));
        let name = row.case.replacen("astype ", "", 1).replace(" axis", ", axis");
        let name = if row.case.starts_with("astype") { name.replace(' ', " → ") } else { name };
        vec![
            name,
            bar,
            speed(&row.ours, block),
            speed(&row.numpy, block),
            ratio(row, block),
            speed(&row.ours, cached),
            speed(&row.numpy, cached),
            ratio(row, cached),
        ]
    });
    format!(
        "# kernels\n\n{date}, revision {}, {}. Medians of {} fresh processes each, in \
            turn.\n\n{}\n{}",
        revision(),
        describe_machine(),
        setup.repeat,
        aligned(iter::once(head).chain(rows).collect()),
        format_args!(
            "Million elements a second of CPU time on one thread: Freestone's kernels without an \
                engine, and NumPy {} into arrays that are\n\
             there already. *block* has {} elements and is out of any cache, *cached* has {}. The \
             bar is the least ratio of the block.\n",
            table.numpy.as_deref().unwrap_or("(not measured)"),
            table.block,
            table.cached
        )
    )
}

/// Returns the size, if the workload has several, and the codec.
fn parameters(measured: &Measured, setup: &Setup) -> (Option<String>, Codec) {
    if measured.workload == "quad_means" {
        (Some(inputs::label(setup.size())), setup.codec)
    } else {
        (None, Codec::Zstd)
    }
}

/// Formats the whole report.
pub(crate) fn markdown(measured: &Measured, setup: &Setup, date: &str) -> String {
    let (size, codec) = parameters(measured, setup);
    let mut text = format!(
        "# {}{}, {}\n\n",
        measured.workload,
        size.map_or(String::new(), |s| format!(", {s}")),
        codec.name()
    );
    text += &format!(
        "{date}, revision {}, {}. Medians of {} fresh processes each, in turn; inputs in the page \
            cache; local_mem {}.\n\n",
        revision(),
        describe_machine(),
        setup.repeat,
        freestone::size(setup.local_mem)
    );
    text += &table(measured, setup, codec);
    text += "\nThe last three columns are Freestone's figure over the row's: below 1 is better for \
        Freestone.\n";
    if let Some(floor) = measured.floor_s() {
        text += &format!(
            "The floor ({floor:.2} s of CPU) is every chunk read, decoded by the C library and \
                folded once on one thread, with warm buffers.\n"
        );
    }
    let packages =
        measured.rows.iter().skip(1).find_map(|r| r.samples.first()).map(|s| &s.versions);
    let notes = packages.map(|p| {
        format!(
            "peers use {}",
            p.iter().map(|(k, v)| format!("{k} {v}")).collect::<Vec<_>>().join(", ")
        )
    });
    let failures = measured.rows.iter().filter_map(|r| {
        r.failure.as_ref().map(|f| format!("{}, run {}: {f}", r.system, r.samples.len() + 1))
    });
    let notes: Vec<String> = notes
        .into_iter()
        .chain(measured.notes.iter().cloned())
        .chain(failures)
        .map(|n| format!("- {n}\n"))
        .collect();
    if notes.is_empty() { text } else { text + "\n" + &notes.concat() }
}

fn table(measured: &Measured, setup: &Setup, codec: Codec) -> String {
    let head = [
        "system",
        "version",
        "threads",
        "codec",
        "wall s",
        "CPU s",
        "peak RSS",
        "projected",
        "floor CPU s",
        "CPU / floor",
        "CPU ×",
        "wall ×",
        "RSS ×",
    ];
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let number = |value: Option<f64>| or_dash(value.map(|v| format!("{v:.2}")));
    let bytes = |value: Option<u64>| or_dash(value.map(|v| freestone::size(v).to_string()));
    let floor = measured.floor_s();
    let row = |row: &Row| {
        vec![
            row.system.to_owned(),
            or_dash(row.version().map(str::to_owned)),
            setup.threads.to_string(),
            codec.name().to_owned(),
            number(row.wall_s()),
            number(row.cpu_s()),
            bytes(row.peak_rss_bytes().map(|b| b as u64)),
            bytes(row.projected_bytes()),
            number(floor),
            number(row.cpu_s().zip(floor).map(|(cpu, floor)| cpu / floor)),
            number(measured.ratio(row.system, Row::cpu_s)),
            number(measured.ratio(row.system, Row::wall_s)),
            number(measured.ratio(row.system, Row::peak_rss_bytes)),
        ]
    };
    aligned(
        iter::once(head.map(str::to_owned).to_vec()).chain(measured.rows.iter().map(row)).collect(),
    )
}

/// Formats a Markdown table that is aligned as plain text: the first two columns to the left, the
/// others to the right.
fn aligned(rows: Vec<Vec<String>>) -> String {
    let width =
        |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0).max(3);
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        let cells = row.iter().enumerate().map(|(c, cell)| {
            let wide = width(c);
            if c < 2 { format!("{cell:<wide$}") } else { format!("{cell:>wide$}") }
        });
        text += &format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
        if i == 0 {
            let rules = (0..row.len()).map(|c| {
                if c < 2 { "-".repeat(width(c)) } else { format!("{}:", "-".repeat(width(c) - 1)) }
            });
            text += &format!("| {} |\n", rules.collect::<Vec<_>>().join(" | "));
        }
    }
    text
}

fn describe_machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find(|l| l.starts_with("model name"))
        .and_then(|l| l.split_once(": "))
        .map_or("an unknown processor", |(_, m)| m);
    format!("{} cores of {model}, {}", machine::cores(), freestone::size(machine::memory_bytes()))
}

/// Returns the current commit, with a `+` if files were changed.
fn revision() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(arguments)
            .output()
            .ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    match (
        git(&["rev-parse", "--short=10", "HEAD"]),
        git(&["status", "--porcelain", "--untracked-files=no"]),
    ) {
        (Some(commit), Some(changes)) => commit + if changes.is_empty() { "" } else { "+" },
        _ => "unknown".into(),
    }
}

/// Returns today's date, UTC.
pub(crate) fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    date_of(seconds / 86_400)
}

/// Returns the Gregorian date a number of days after 1970-01-01 (Hinnant, "chrono-compatible
/// low-level date algorithms", 2013).
fn date_of(days: u64) -> String {
    // Years start on 1 March, so that the leap day is the last day.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (month, day) = (
        if shifted < 10 { shifted + 3 } else { shifted - 9 },
        day_of_year - (153 * shifted + 2) / 5 + 1,
    );
    format!("{:04}-{month:02}-{day:02}", year_of_era + era * 400 + u64::from(month <= 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_gregorian() {
        for (days, date) in [
            (0, "1970-01-01"),
            (789, "1972-02-29"),
            (11_016, "2000-02-29"),
            (20_454, "2026-01-01"),
            (20_818, "2026-12-31"),
        ] {
            assert_eq!(date_of(days), date, "{days}");
        }
    }

    #[test]
    fn columns_line_up() {
        let text = aligned(vec![
            vec!["a".into(), "b".into(), "CPU ×".into()],
            vec!["dask".into(), "1".into(), "0.5".into()],
        ]);
        assert_eq!(
            text,
            "| a    | b   | CPU × |\n| ---- | --- | ----: |\n| dask | 1   |   0.5 |\n"
        );
    }
}
