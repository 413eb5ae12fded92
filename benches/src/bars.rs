//! What Freestone promises of itself, checked.

use crate::sample::{Measured, Row};
use crate::workloads::{N_SMALL, Work};
use crate::{Failure, Peer, Setup, report, rounds};

/// A figure that must not be above its limit.
struct Bar {
    name: String,
    /// `None` where a system failed.
    measured: Option<f64>,
    limit: f64,
    unit: &'static str,
}

/// Freestone's CPU time over a peer's.
const CPU_OVER: [(Peer, f64); 3] = [(Peer::Dask, 0.75), (Peer::Cubed, 0.35), (Peer::Tensorstore, 1.0)];
/// Freestone's memory over dask's.
const RSS_OVER_DASK: f64 = 0.5;
const PLAN_SECONDS: f64 = 1.0;
const PLAN_MB: f64 = 100.0;
const MICROS_PER_SMALL_CHUNK: f64 = 80.0;
const MICROS_PER_CHUNK_IN_MEMORY: f64 = 30.0;
const MICROS_PER_TASK: f64 = 60.0;

/// Measures everything, prints each bar, and tells whether all hold.
pub(crate) fn check(setup: &Setup, no_peers: bool) -> Result<bool, Failure> {
    let vs: Vec<Peer> = if no_peers { Vec::new() } else { CPU_OVER.map(|(peer, _)| peer).to_vec() };
    let winds = rounds::quad_means(setup, &vs)?;
    println!("\n{}", report::markdown(&winds, setup, &report::today()));
    let mut bars = against_peers(&winds, &vs);
    bars.push(within_projection(&winds));
    bars.extend(alone(setup)?);

    bars.iter().for_each(Bar::print);
    if no_peers {
        println!("skip  CPU and memory beside dask, cubed and tensorstore: --no-peers was given");
    }
    let missed = bars.iter().filter(|b| !b.holds()).count();
    println!("{} of {} bars hold", bars.len() - missed, bars.len());
    Ok(missed == 0)
}

fn against_peers(winds: &Measured, vs: &[Peer]) -> Vec<Bar> {
    let over = |peer: Peer, what: &str, of: fn(&Row) -> Option<f64>, limit: f64| Bar {
        name: format!("quad_means: {what} over that of {}", peer.system()),
        measured: winds.ratio(peer.system(), of),
        limit,
        unit: "",
    };
    let mut bars: Vec<Bar> = CPU_OVER.iter().filter(|(p, _)| vs.contains(p)).map(|(p, limit)| over(*p, "CPU", Row::cpu_s, *limit)).collect();
    if vs.contains(&Peer::Dask) {
        bars.push(over(Peer::Dask, "peak RSS", Row::peak_rss_bytes, RSS_OVER_DASK));
    }
    bars
}

/// The highest peak of all runs, not a median: the projection is a promise.
fn within_projection(winds: &Measured) -> Bar {
    let ours = &winds.rows[0];
    let peak = ours.samples.iter().map(|s| s.peak_rss_bytes).max();
    let projected = ours.projected_bytes().unwrap_or_default();
    Bar {
        name: "quad_means: highest peak RSS, within its projection".into(),
        measured: peak.map(|b| b as f64 * 1e-6),
        limit: projected as f64 * 1e-6,
        unit: " MB",
    }
}

/// The bars that need nobody else.
fn alone(setup: &Setup) -> Result<Vec<Bar>, Failure> {
    let small = rounds::many_small(setup, &[])?.rows[0].cpu_s().map(|s| s * 1e6 / N_SMALL as f64);
    let (plan_s, plan_bytes) = rounds::plan_scaling(setup)?;
    let bar = |name: &str, measured: Option<f64>, limit: f64, unit| Bar { name: name.into(), measured, limit, unit };
    Ok(vec![
        bar("plan_scaling: time to plan 1 EB", Some(plan_s), PLAN_SECONDS, " s"),
        bar("plan_scaling: memory to plan 1 EB", Some(plan_bytes as f64 * 1e-6), PLAN_MB, " MB"),
        bar("many_small: CPU a chunk", small, MICROS_PER_SMALL_CHUNK, " µs"),
        bar("memory_sum: CPU a chunk", Some(rounds::micros(setup, Work::MemorySum)?), MICROS_PER_CHUNK_IN_MEMORY, " µs"),
        bar("tasks: CPU a task", Some(rounds::micros(setup, Work::Tasks)?), MICROS_PER_TASK, " µs"),
    ])
}

impl Bar {
    fn holds(&self) -> bool {
        self.measured.is_some_and(|m| m <= self.limit)
    }

    fn print(&self) {
        let word = if self.holds() { "ok" } else { "FAIL" };
        let measured = self.measured.map_or("not measured".into(), |m| format!("{m:.3}{}", self.unit));
        println!("{word:<5} {:<52} {measured:>14}, bar {}{}", self.name, (self.limit * 1000.0).round() / 1000.0, self.unit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_holds_up_to_its_limit() {
        for (measured, holds) in [(Some(0.5), true), (Some(1.0), true), (Some(1.01), false), (Some(f64::NAN), false), (None, false)] {
            assert_eq!(Bar { name: String::new(), measured, limit: 1.0, unit: "" }.holds(), holds, "{measured:?}");
        }
    }
}
