//! The performance bars: limits that the measurements must meet.

use crate::driving::{self, Stages, Workers};
use crate::sample::{Measured, Row};
use crate::table::{CASES, Case};
use crate::workloads::{N_SMALL, Work};
use crate::{Failure, Part, Peer, Setup, kernels, observers, report, rounds, scaling, starts};

/// A measured figure with its limit.
struct Bar {
    name: String,
    /// `None` if a system failed.
    measured: Option<f64>,
    limit: Limit,
    unit: &'static str,
}

#[derive(Clone, Copy)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}
use Limit::{AtLeast, AtMost};

/// Freestone's CPU time over a peer's.
const CPU_OVER: [(Peer, f64); 3] =
    [(Peer::Dask, 0.75), (Peer::Cubed, 0.35), (Peer::Tensorstore, 1.0)];
/// Freestone's memory over dask's.
const RSS_OVER_DASK: f64 = 0.5;
const PLAN_SECONDS: f64 = 1.0;
const PLAN_MB: f64 = 100.0;
const SLOWEST_PLAN_SECONDS: f64 = 0.1;
const MICROS_PER_SMALL_CHUNK: f64 = 80.0;
const MICROS_PER_CHUNK_IN_MEMORY: f64 = 30.0;
const MICROS_PER_TASK: f64 = 60.0;
const MICROS_PER_EVENT: f64 = 3.0;
/// The same, at two instructions per nanosecond.
const INSTRUCTIONS_PER_EVENT: f64 = 6000.0;
/// The driver's peak memory for a million tasks, with plain results and with a commit.
const MICROS_TO_DRIVE: f64 = 25.0;
const MB_TO_DRIVE: f64 = 200.0;
const MB_TO_COMMIT: f64 = 400.0;
/// Open descriptors of a client, besides one per concurrent invocation.
const OTHER_DESCRIPTORS: f64 = 256.0;
/// The share of time that a thousand simulated environments wait for requests.
const WAITED: f64 = 0.05;
/// The ratio of the slowest run on several environments, with work in proportion, to the run on
/// one.
const SLOWEST_OVER_ONE: f64 = 1.15;
/// Milliseconds until a new AWS Lambda worker answers.
const MS_TO_FIRST_ANSWER: f64 = 100.0;
/// The relative error of a `float32` mean of 10⁹ values of about 300.
const MEAN_ERROR: f64 = 1e-7;

/// The peers with which rows of the table are compared.
const ROW_PEERS: [Peer; 2] = [Peer::Dask, Peer::Tensorstore];

/// Measures all parts or the named ones, and prints each bar. Returns true if all bars hold.
pub(crate) fn check(setup: &Setup, no_peers: bool, only: &[Part]) -> Result<bool, Failure> {
    let asked = |part: Part| only.is_empty() || only.contains(&part);
    let (mut bars, mut missing) = (Vec::new(), Vec::new());
    if asked(Part::Spine) {
        let vs: Vec<Peer> =
            if no_peers { Vec::new() } else { CPU_OVER.map(|(peer, _)| peer).to_vec() };
        let winds = rounds::quad_means(setup, &vs)?;
        println!("\n{}", report::markdown(&winds, setup, &report::today()));
        bars.extend(against_peers(&winds, &vs));
        bars.push(within_projection(&winds));
        bars.extend(alone(setup)?);
    }
    if asked(Part::Workloads) {
        let vs: &[Peer] = if no_peers { &[] } else { &ROW_PEERS };
        let rows = CASES
            .into_iter()
            .map(|case| Ok((case, rounds::row(setup, case, vs)?)))
            .collect::<Result<Vec<_>, Failure>>()?;
        println!("\n{}", report::rows_markdown(&rows, setup, &report::today()));
        for (case, measured) in &rows {
            match case.lacks() {
                Some(function) => {
                    missing.push(format!("{}: missing function {function}", case.name))
                }
                None => bars.extend(of_row(case, measured)),
            }
        }
    }
    if asked(Part::Kernels) && !no_peers {
        let kernels = kernels::measure(setup, true)?;
        println!("\n{}", report::kernels_markdown(&kernels, setup, &report::today()));
        bars.extend(kernels.rows.iter().filter_map(speed));
    }
    if asked(Part::Observers) {
        let cost = observers::measure(setup.repeat)?;
        let bar = |what: &str, measured, limit, unit| Bar {
            name: format!("observers: {what} per event"),
            measured,
            limit: AtMost(limit),
            unit,
        };
        bars.push(bar("CPU", Some(cost.micros), MICROS_PER_EVENT, " µs"));
        bars.push(bar("instructions", cost.instructions, INSTRUCTIONS_PER_EVENT, ""));
    }

    if asked(Part::Driving) {
        bars.extend(driver()?);
    }
    if asked(Part::Scaling) {
        let all = scaling::measure(setup.repeat)?;
        println!("\n{}", scaling::markdown(&all));
        bars.push(Bar {
            name: "scaling: slowest of 2 to 16 environments over one".into(),
            measured: scaling::slowest_over_one(&all),
            limit: AtMost(SLOWEST_OVER_ONE),
            unit: "",
        });
    }
    if asked(Part::Starts) {
        bars.push(Bar {
            name: "starts: time to a new worker's first answer".into(),
            measured: Some(starts::first_answer_ms()?),
            limit: AtMost(MS_TO_FIRST_ANSWER),
            unit: " ms",
        });
    }

    bars.iter().for_each(Bar::print);
    missing.iter().for_each(|why| println!("skip  {why}"));
    if no_peers {
        println!("skip  comparisons with peers (`--no-peers`)");
    }
    let missed = bars.iter().filter(|b| !b.holds()).count();
    println!("{} of {} bars hold", bars.len() - missed, bars.len());
    Ok(missed == 0)
}

/// Bars of a row: CPU time over the floor, memory within the projection, and wall time and memory
/// within those of the peers.
fn of_row(case: &Case, measured: &Measured) -> Vec<Bar> {
    let bar = |what: String, measured, limit| Bar {
        name: format!("{}: {what}", case.name),
        measured,
        limit: AtMost(limit),
        unit: "",
    };
    let over_floor =
        measured.rows[0].cpu_s().zip(measured.floor_s()).map(|(cpu, floor)| cpu / floor);
    let mut bars =
        vec![bar("CPU over the floor".into(), over_floor, case.bar), within_projection(measured)];
    for peer in measured.rows.iter().skip(1).filter(|r| r.failure.is_none()) {
        bars.push(bar(
            format!("wall time over {}", peer.system),
            measured.ratio(peer.system, Row::wall_s),
            1.0,
        ));
        bars.push(bar(
            format!("peak RSS over {}", peer.system),
            measured.ratio(peer.system, Row::peak_rss_bytes),
            1.0,
        ));
    }
    bars
}

fn against_peers(winds: &Measured, vs: &[Peer]) -> Vec<Bar> {
    let over = |peer: Peer, what: &str, of: fn(&Row) -> Option<f64>, limit: f64| Bar {
        name: format!("quad_means: {what} over {}", peer.system()),
        measured: winds.ratio(peer.system(), of),
        limit: AtMost(limit),
        unit: "",
    };
    let mut bars: Vec<Bar> = CPU_OVER
        .iter()
        .filter(|(p, _)| vs.contains(p))
        .map(|(p, limit)| over(*p, "CPU", Row::cpu_s, *limit))
        .collect();
    if vs.contains(&Peer::Dask) {
        bars.push(over(Peer::Dask, "peak RSS", Row::peak_rss_bytes, RSS_OVER_DASK));
    }
    bars
}

/// The highest peak of all runs, not the median, because the projection is a bound.
fn within_projection(measured: &Measured) -> Bar {
    let ours = &measured.rows[0];
    let peak = ours.samples.iter().map(|s| s.peak_rss_bytes).max();
    let projected = ours.projected_bytes().unwrap_or_default();
    Bar {
        name: format!("{}: highest peak RSS, bounded by the projection", measured.workload),
        measured: peak.map(|b| b as f64 * 1e-6),
        limit: AtMost(projected as f64 * 1e-6),
        unit: " MB",
    }
}

/// Returns the bar of a kernel's speed, if it has one.
fn speed(row: &kernels::Row) -> Option<Bar> {
    Some(Bar {
        name: format!("kernels: speed of {} over NumPy's", row.case),
        measured: row.ratio(|t| t.block_ns),
        limit: AtLeast(row.bar?),
        unit: "",
    })
}

/// Returns the bars that need no peers.
fn alone(setup: &Setup) -> Result<Vec<Bar>, Failure> {
    let small = rounds::many_small(setup, &[])?.rows[0].cpu_s().map(|s| s * 1e6 / N_SMALL as f64);
    let (plan_s, plan_bytes, slowest_s) = rounds::plan_scaling(setup)?;
    let bar = |name: &str, measured: Option<f64>, limit: f64, unit| Bar {
        name: name.into(),
        measured,
        limit: AtMost(limit),
        unit,
    };
    Ok(vec![
        bar("plan_scaling: time to plan 1 EB", Some(plan_s), PLAN_SECONDS, " s"),
        bar("plan_scaling: memory to plan 1 EB", Some(plan_bytes as f64 * 1e-6), PLAN_MB, " MB"),
        bar(
            "plan_scaling: time of the slowest other large plan",
            Some(slowest_s),
            SLOWEST_PLAN_SECONDS,
            " s",
        ),
        bar("many_small: CPU per chunk", small, MICROS_PER_SMALL_CHUNK, " µs"),
        bar(
            "memory_sum: CPU per chunk",
            Some(rounds::micros(setup, Work::MemorySum)?),
            MICROS_PER_CHUNK_IN_MEMORY,
            " µs",
        ),
        bar(
            "tasks: CPU per task",
            Some(rounds::micros(setup, Work::Tasks)?),
            MICROS_PER_TASK,
            " µs",
        ),
        bar(
            "mean of 10⁹ values of about 300: relative error",
            Some(rounds::mean_accuracy(setup)?),
            MEAN_ERROR,
            "",
        ),
    ])
}

/// Returns the bars of the driver, alone and with slow environments.
fn driver() -> Result<Vec<Bar>, Failure> {
    let mut bars = Vec::new();
    let rows = [
        ("one stage", Stages::One, false, MB_TO_DRIVE),
        ("several stages", Stages::Several, false, MB_TO_DRIVE),
        ("one stage and a commit", Stages::One, true, MB_TO_COMMIT),
    ];
    for (name, stages, commit, most_mb) in rows {
        let cost = driving::measure(Workers::AtOnce, stages, commit)?;
        let bar = |what: &str, measured, limit, unit| Bar {
            name: format!("driving {name}: {what}"),
            measured: Some(measured),
            limit: AtMost(limit),
            unit,
        };
        bars.push(bar("CPU per task", cost.micros_per_task, MICROS_TO_DRIVE, " µs"));
        bars.push(bar("peak RSS", cost.peak_rss_bytes as f64 * 1e-6, most_mb, " MB"));
    }
    let cost = driving::measure(Workers::Simulated, Stages::One, false)?;
    println!("driving 1000 simulated environments: {:.0} tasks/s", cost.tasks as f64 / cost.wall_s);
    bars.push(Bar {
        name: "driving 1000 environments: share of idle time".into(),
        measured: Some(cost.waited),
        limit: AtMost(WAITED),
        unit: "",
    });
    let cost = driving::measure(Workers::Function, Stages::One, false)?;
    let said = cost.client.map(|c| c.to_string()).unwrap_or_default();
    println!(
        "driving a function, {} concurrent invocations: {:.0} tasks/s; {said}",
        driving::SLOTS,
        cost.tasks as f64 / cost.wall_s
    );
    let bar = |what: &str, measured, most, unit| Bar {
        name: format!("driving a function: {what}"),
        measured,
        limit: AtMost(most),
        unit,
    };
    bars.push(bar("CPU per task", Some(cost.micros_per_task), MICROS_TO_DRIVE, " µs"));
    bars.push(bar("peak RSS", Some(cost.peak_rss_bytes as f64 * 1e-6), MB_TO_DRIVE, " MB"));
    bars.push(bar(
        "open descriptors",
        cost.client.map(|c| c.descriptors as f64),
        driving::SLOTS as f64 + OTHER_DESCRIPTORS,
        "",
    ));
    Ok(bars)
}

impl Bar {
    fn holds(&self) -> bool {
        self.measured.is_some_and(|m| match self.limit {
            AtMost(limit) => m <= limit,
            AtLeast(limit) => m >= limit,
        })
    }

    fn print(&self) {
        let word = if self.holds() { "ok" } else { "FAIL" };
        let measured =
            self.measured.map_or("not measured".into(), |m| format!("{}{}", number(m), self.unit));
        let (side, limit) = match self.limit {
            AtMost(limit) => ("at most", limit),
            AtLeast(limit) => ("at least", limit),
        };
        println!(
            "{word:<5} {:<58} {measured:>14}, {side} {}{}",
            self.name,
            number(limit),
            self.unit
        );
    }
}

/// Formats a number with three decimals, or in exponential form if all would be 0.
fn number(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 { format!("{value:.1e}") } else { format!("{value:.3}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_holds_up_to_its_limit() {
        for (measured, most, least) in [
            (Some(0.5), true, false),
            (Some(1.0), true, true),
            (Some(1.01), false, true),
            (Some(f64::NAN), false, false),
            (None, false, false),
        ] {
            let bar = |limit| Bar { name: String::new(), measured, limit, unit: "" };
            assert_eq!(
                (bar(AtMost(1.0)).holds(), bar(AtLeast(1.0)).holds()),
                (most, least),
                "{measured:?}"
            );
        }
    }

    #[test]
    fn small_figures_keep_their_digits() {
        assert_eq!([0.0, 1e-7, 0.8, 169.5].map(number), ["0.000", "1.0e-7", "0.800", "169.500"]);
    }
}
