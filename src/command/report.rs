//! What a plan is and what a run took, as JSON.

use freestone::RunReport;
use freestone::engine::plan::{ArrayId, FinalizedPlan, LocalProjection, Place, Plan};
use freestone::engine::storage::join;
use serde_json::{Map, Value, json};

/// A plan: its stages with tasks, arrays and projected memory, and what this machine would hold if all of it has room. All sizes are bytes.
pub(crate) fn plan(finalized: &FinalizedPlan, here: Option<LocalProjection>) -> Value {
    let plan = finalized.plan();
    let stages = finalized.stages().map(|(_, stage, layout)| {
        let memory: Map<String, Value> =
            layout.estimate.parts().iter().map(|(part, bytes)| (json!(part).as_str().unwrap_or_default().to_owned(), json!(bytes))).collect();
        json!({
            "name": stage.name,
            "tasks": stage.n_tasks(),
            "after": stage.after.iter().map(|id| plan.stages[id.0].name.as_str()).collect::<Vec<_>>(),
            "reads": stage.inputs.iter().flat_map(|i| &i.sources).map(|id| array(plan, *id)).collect::<Vec<_>>(),
            "writes": stage.outputs.iter().map(|o| array(plan, o.array)).collect::<Vec<_>>(),
            "projected_mem": layout.estimate.total(),
            "memory": memory,
        })
    });
    json!({
        "plan": finalized.run_id().to_string(),
        "allowed_mem": plan.allowed_mem,
        "reserved_mem": plan.reserved_mem,
        "projected_mem": finalized.projected_mem(),
        "local_mem": here.map(|p| json!({"projected_mem": p.total(), "base": p.base, "tasks": p.tasks, "intermediates": p.kept})),
        "tasks": plan.stages.iter().map(|s| s.n_tasks()).fold(0, u64::saturating_add),
        "stages": stages.collect::<Vec<_>>(),
    })
}

fn array(plan: &Plan, id: ArrayId) -> Value {
    let array = plan.array(id);
    let place = match &array.place {
        Place::Input { url, path, .. } | Place::Output { url, path } => join(url, path),
        Place::Work => "work directory".into(),
        Place::Constant(_) => "plan".into(),
        Place::Generated(_) => "generated".into(),
    };
    json!({"name": array.name, "dtype": array.info.dtype, "shape": array.info.shape(), "chunks": array.info.chunk_shape(), "place": place})
}

/// What a run took: projected and measured memory, bytes and requests, seconds.
pub(crate) fn run(report: &RunReport) -> Value {
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
    json!({
        "run": report.run,
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
        "kept_mem": report.kept_bytes,
        "peak_mem": report.peak_rss_bytes,
        "worker_peak_mem": report.worker_peak_bytes,
    })
}
