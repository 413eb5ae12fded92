//! JSON forms of plans and reports.

use freestone::RunReport;
use freestone_cli::cost::Cost;
use freestone_engine::plan::{LocalProjection, PlanExplanation};
use serde_json::{Value, json};

/// Returns the explanation of a plan, with the projected memory of the local process. All sizes are
/// in bytes.
pub(crate) fn plan(
    explanation: &PlanExplanation,
    local_mem: Option<LocalProjection>,
    cost: Option<&Cost>,
) -> Value {
    let mut all = json!(explanation);
    let local = |p: LocalProjection| {
        json!({
            "projected_mem": p.total(),
            "base": p.base,
            "tasks": p.tasks,
            "intermediates": p.intermediates,
        })
    };
    all["local_mem"] = json!(local_mem.map(local));
    if let Some(cost) = cost {
        all["cost"] = priced(cost);
    }
    all
}

/// Returns a cost with its sum in dollars.
fn priced(cost: &Cost) -> Value {
    let mut all = json!(cost);
    all["dollars"] = json!(cost.dollars());
    all
}

/// Returns the report of a run, with projected and measured memory, bytes, requests and seconds,
/// and its cost if it is billed by use.
pub(crate) fn run(report: &RunReport, measured: Option<&Cost>, projected: Option<&Cost>) -> Value {
    let stages = report.stages.iter().map(|s| {
        json!({
            "name": s.name,
            "tasks": s.tasks,
            "bytes_read": s.traffic.bytes_read,
            "reads": s.traffic.reads,
            "bytes_written": s.traffic.bytes_written,
            "writes": s.traffic.writes,
            "cpu_seconds": s.cpu.as_secs_f64(),
            "projected_mem": s.projected_bytes,
            "peak_mem": s.peak_bytes,
        })
    });
    let all = report.traffic();
    let mut took = json!({
        "run": report.run,
        "snapshot": report.snapshot,
        "stages": stages.collect::<Vec<_>>(),
        "bytes_read": all.bytes_read,
        "reads": all.reads,
        "bytes_written": all.bytes_written,
        "writes": all.writes,
        "seconds": report.wall.as_secs_f64(),
        "cpu_seconds": report.process_cpu.as_secs_f64(),
        "slots": report.slots,
        "retries": report.retries,
        "projected_mem": report.projected_bytes,
        "kept_mem": report.cached_bytes,
        "peak_mem": report.peak_rss_bytes,
        "worker_peak_mem": report.worker_peak_bytes,
        "warnings": report.memory_excess.iter().map(ToString::to_string).collect::<Vec<_>>(),
    });
    if let Some(invoked) = report.invoked {
        took["invoked"] = json!(invoked);
        took["cost"] =
            json!({"measured": measured.map(priced), "projected": projected.map(priced)});
    }
    took
}
