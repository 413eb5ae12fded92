//! The memory bound of every read path, kernel and codec: a process stays below its projection, and
//! not far below.
//!
//! `table` has the rows, and `measure` runs one in a new process. A few rows run with all tests;
//! all of them run in the CI suite `memory`, and in the suite `cgroup` under a limit that kills.

mod measure;
mod table;
mod worker;

use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use freestone::{CodecName, DType, Serial, Target};
use freestone_engine::memory::size;

use measure::{Bench, Measured, command, measured};
use table::{Data, Row, Size, n_rows, rows};

use crate::suites::{Cgroup, variable};
use crate::support::{Place, TEST_CHILD};

/// The maximum ratio of a task's projected to its measured bytes, for large incompressible chunks.
const TIGHT: f64 = 1.4;

/// The maximum ratio for reads over a network. A server that is faster than the task leaves a part
/// of the window empty.
const TIGHT_OVER_NETWORK: f64 = 2.0;

/// Calls `work` for every row, two at a time.
fn each<T: Send>(rows: &[Row], work: impl Fn(&Row) -> T + Sync) -> Vec<T> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((i, row)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, rows.get(i)?)))
                {
                    let result = work(row);
                    done.lock().unwrap().push((i, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Returns the violations of a row's bounds.
fn faults(row: &Row, found: &Measured, idle: u64) -> Vec<String> {
    let name = row.name();
    let mut faults = Vec::new();
    if found.bytes_read == 0 {
        faults.push(format!("{name}: nothing was read"));
    }
    if found.peak > found.projected {
        faults.push(format!(
            "{name}: {} over the projection of {}",
            size(found.peak),
            size(found.projected)
        ));
    }
    for (stage, projected, peak) in
        found.stages.iter().filter(|(_, projected, peak)| peak > projected)
    {
        faults.push(format!(
            "{name}, {stage}: buffers of {} over the projection of {}",
            size(*peak),
            size(*projected)
        ));
    }
    let tight = if row.is_over_network() { TIGHT_OVER_NETWORK } else { TIGHT };
    if row.is_tight() && found.looseness(idle) > tight {
        faults.push(format!("{name}: {:.2} times what the task took", found.looseness(idle)));
    }
    faults
}

/// Runs the rows, prints the table, and checks it. Returns the table.
#[track_caller]
fn check(rows: &[Row]) -> String {
    let bench = Bench::new();
    let idle = bench.idle();
    let (mut all, mut wrong) = (Vec::new(), Vec::new());
    for (row, found) in rows.iter().zip(each(rows, |row| bench.measure(row))) {
        match found {
            Ok(found) => {
                wrong.extend(faults(row, &found, idle));
                all.push((row, found));
            }
            Err(failure) => wrong.push(failure),
        }
    }
    let text = document(&all, idle);
    println!("{text}");
    assert!(wrong.is_empty(), "{} faults:\n{}", wrong.len(), wrong.join("\n"));
    text
}

/// Formats the table as Markdown.
fn document(all: &[(&Row, Measured)], idle: u64) -> String {
    let git = |arguments: &[&str]| {
        let run = std::process::Command::new("git")
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output();
        run.ok()
            .filter(|o| o.status.success())
            .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
            .unwrap_or_default()
    };
    let revision = git(&["log", "-1", "--format=%h of %cs"]);
    let worst = |loose: bool| {
        let of = |(_, found): &&(&Row, Measured)| {
            if loose { found.looseness(idle) } else { found.peak as f64 / found.projected as f64 }
        };
        all.iter()
            .filter(|(row, _)| !loose || row.is_tight())
            .max_by(|a, b| of(a).total_cmp(&of(b)))
    };
    let mut text = format!(
        "# Memory: projected and measured\n\n\
        This page has {} rows, measured at revision {revision}. Each row is a process with one \
        thread that reads 2 × 2 chunks from a disk. The peak of the process (`VmHWM`) must be \
        below its projection, for any data. The projection of the task excludes the {} of the \
        program, and its measurement the {} of an idle run. For incompressible chunks of 9 MB, \
        the projection of the task must be at most {TIGHT} times the measurement. Compressible \
        chunks have fewer encoded bytes than the bound. Figures are in MB. The suite `memory` of \
        `.ci/run` generates this page (`just memory`). The suite `cgroup` runs every row in a \
        memory cgroup limited to its projection.\n",
        all.len(),
        size(freestone_engine::spec::DEFAULT_RESERVED_MEM),
        size(idle),
    );
    for (what, loose) in [("Closest to its projection", false), ("Farthest from it", true)] {
        if let Some((row, found)) = worst(loose) {
            text += &format!(
                "\n{what}: {}; {} of {}, {:.2} for the task.\n",
                row.name(),
                size(found.peak),
                size(found.projected),
                found.looseness(idle)
            );
        }
    }
    for size in Size::ALL {
        for data in Data::ALL {
            let chosen: Vec<_> =
                all.iter().filter(|(row, _)| row.size == size && row.data == data).collect();
            if chosen.is_empty() {
                continue;
            }
            text += &format!("\n## Chunks of {}, {} data\n\n", size.name(), data.name());
            text += "| operation | codec | projected | measured | task: projected | task: \
                measured | ratio |\n| --- | --- | ---: | ---: | ---: | ---: | ---: |\n";
            for (row, found) in chosen {
                let mb = |bytes: u64| bytes as f64 / 1e6;
                text += &format!(
                    "| {} | {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.2} |\n",
                    row.what,
                    row.codec(),
                    mb(found.projected),
                    mb(found.peak),
                    mb(found.projected - freestone_engine::spec::DEFAULT_RESERVED_MEM),
                    mb(found.peak.saturating_sub(idle)),
                    found.looseness(idle)
                );
            }
        }
    }
    text
}

/// `MEMORY_ROWS=all` runs all rows.
fn chosen() -> Vec<Row> {
    let everything = std::env::var("MEMORY_ROWS").is_ok_and(|v| v == "all");
    let rows = rows(everything);
    let names: std::collections::BTreeSet<String> = rows.iter().map(Row::name).collect();
    assert_eq!(
        (names.len(), rows.len()),
        (n_rows(everything), n_rows(everything)),
        "each row once"
    );
    rows
}

/// The documented table has as many rows as the suites run.
#[test]
fn the_documentation_has_all_rows() {
    let documented = include_str!("../../docs/memory.md")
        .lines()
        .find_map(|line| line.strip_prefix("This page has ")?.split_once(" rows,"))
        .unwrap()
        .0;
    assert_eq!(documented, rows(false).len().to_string());
    assert_eq!(rows(true).len(), n_rows(true));
    chosen();
}

#[test]
fn small_chunks_are_bounded() {
    check(
        &rows(false)
            .into_iter()
            .filter(|r| {
                r.size == Size::Small && r.data == Data::Incompressible && r.stored != "zstd:19"
            })
            .collect::<Vec<_>>(),
    );
}

#[test]
#[ignore = "takes minutes: run by .ci/run"]
fn memory_of_all_rows_is_bounded() {
    let rows = chosen();
    let place = variable("FREESTONE_MEMORY");
    std::fs::write(place, check(&rows)).unwrap();
    println!("{} rows", rows.len());
}

#[test]
#[ignore = "needs a memory cgroup: run by .ci/run"]
fn cgroup_projected_memory_is_enough_for_all_rows() {
    let (rows, bench, number) = (chosen(), Bench::new(), AtomicUsize::new(0));
    let faults: Vec<Vec<String>> = each(&rows, |row| {
        let (projected, id) = (bench.projected(row), number.fetch_add(1, Ordering::Relaxed));
        let mut faults = Vec::new();
        let limited = bench.run(row, Some(&Cgroup::new(&format!("row-{id}"), projected).enter()));
        if let Err(failure) = measured(&row.name(), &limited) {
            faults.push(format!("in {}: {failure}", size(projected)));
        }
        // The limit is effective: half of such a run's memory is not enough. (With small chunks,
        // most of it is the program, whose pages can be evicted.)
        if row.is_tight() && row.what == "copy" {
            let half = bench.measure(row).unwrap().peak / 2;
            if !killed(&bench.run(row, Some(&Cgroup::new(&format!("half-{id}"), half).enter()))) {
                faults.push(format!(
                    "{}: {} is enough, which is half of what it takes",
                    row.name(),
                    size(half)
                ));
            }
        }
        faults
    });
    let faults = faults.concat();
    println!("\n{} rows", rows.len());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

fn killed(run: &std::process::Output) -> bool {
    std::os::unix::process::ExitStatusExt::signal(&run.status) == Some(9)
}

/// Long index lists are part of the plan and its JSON. A whole process stays within its projection
/// on every executor.
#[test]
fn long_lists_are_bounded_in_whole_processes() {
    let place = Place::new();
    let x = freestone::random_uniform([30_000, 4], 0.0, 1.0, 3, DType::Float32, [30_000, 4]);
    let spec = place.spec();
    freestone::run(
        &freestone::plan(&[Target::array(&x, place.at("x")).codec(CodecName::None)], &spec)
            .unwrap(),
        &spec,
        &Serial,
    )
    .unwrap();
    let input = format!("x={}", place.at("x"));
    // A complete list, and almost none of a longer one.
    let expressions =
        ["repeat(x, 100, axis=0)", "take(repeat(x, 200, axis=0)[::-3], [5, 7, 1000000], axis=0)"];
    for (i, (executor, expression)) in
        ["threads", "processes"].into_iter().flat_map(|e| expressions.map(|x| (e, x))).enumerate()
    {
        let out = place.at(&format!("out-{i}"));
        let arguments = [
            "compute",
            expression,
            "-i",
            &input,
            "-o",
            &out,
            "--codec",
            "none",
            "--chunks",
            "100000,4",
            "--threads",
            "1",
            "--json",
        ];
        let said = crate::command::stdout(&crate::command::freestone(
            &place,
            &[&arguments[..], &["--executor", executor]].concat(),
        ));
        let report: serde_json::Value = serde_json::from_str(&said).unwrap();
        let projected = report["projected_mem"].as_u64().unwrap();
        // The driver holds the plan, too, and the workers read it.
        let measured =
            [&report["peak_mem"], &report["worker_peak_mem"]].map(|v| v.as_u64().unwrap_or(0));
        assert!(measured[0] > 0 && (executor == "threads" || measured[1] > 0), "{said}");
        for peak in measured {
            assert!(peak <= projected, "{executor}: {peak} over {projected}");
        }
        assert!(
            projected - 32_000_000 <= 3 * measured[0],
            "{executor}: {projected} for {measured:?}"
        );
        println!("{executor}: {measured:?} measured, {projected} projected");
    }
}

/// Nested sums share their parts. Planning once followed each of the 2^60 paths.
#[test]
fn shared_expressions_are_planned_once() {
    let place = Place::new();
    let spec = place.spec();
    let mut x =
        freestone::random_uniform([6, 1], 0.0, 1.0, 3, DType::Float64, [2, 1]).broadcast_to([6, 4]);
    for _ in 0..60 {
        x = (&x + &x) * 0.5;
    }
    for view in [x.take([3, 0, 5], 0), x.reshape([-1])] {
        assert!(freestone::plan(&[Target::array(&view, place.at("out"))], &spec).is_ok());
    }
}

#[test]
fn user_kernels_are_bounded() {
    let took = |edge: u64| {
        let place = Place::new();
        let x = freestone::random_uniform(
            [2 * edge, 2 * edge],
            0.0,
            1.0,
            3,
            DType::Float32,
            [edge, edge],
        );
        let spec = place.spec();
        freestone::run(
            &freestone::plan(&[Target::array(&x, place.at("x"))], &spec).unwrap(),
            &spec,
            &Serial,
        )
        .unwrap();
        let mut child = command(None, Path::new(TEST_CHILD));
        child
            .arg("kernel")
            .arg(place.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        // The process ends when this handle is closed.
        let input = child.stdin.take();
        let output = child.wait_with_output().unwrap();
        drop(input);
        measured("a user's kernel", &output).unwrap()
    };
    let (idle, found) = (took(4), took(1500));
    println!(
        "{} measured, {} projected, {:.2} for the task",
        size(found.peak),
        size(found.projected),
        found.looseness(idle.peak)
    );
    assert!(found.bytes_read > 0 && found.peak <= found.projected, "{found:?}");
    assert!(found.looseness(idle.peak) <= TIGHT, "{found:?}, {idle:?}");
}
