//! A plan in words.

use std::fmt;

use super::{FinalizedPlan, Kernel, Place, Plan, PlanArray, ReadMode, Stage};
use crate::memory::size;

/// What a user can change to make a stage fit.
pub(super) fn advice(plan: &Plan, stage: &Stage) -> String {
    // The largest chunk among inputs and outputs, and its longest axis, is what dominates.
    let all = stage.inputs.iter().flat_map(|i| &i.sources).chain(stage.outputs.iter().map(|o| &o.array));
    let written = |a: &PlanArray| matches!(a.place, Place::Output { .. });
    // Of a sharded array the shard is written, and the chunk is read.
    let held = |a: &PlanArray| if written(a) { a.info.object_shape() } else { a.info.chunk_shape() };
    let bytes = |shape: &[u64], size: usize| shape.iter().fold(size as u64, |p, n| p.saturating_mul(*n));
    let largest = all.map(|id| plan.array(*id)).max_by_key(|a| bytes(&held(a), a.info.dtype.size()));
    match largest {
        Some(array) => {
            let shape = held(array);
            let what = if shape == array.info.chunk_shape() { "chunks" } else { "shards" };
            let widest = (0..shape.len()).max_by_key(|d| shape[*d]).unwrap_or(0);
            format!(
                "raise allowed_mem, or use smaller {what}: those of `{}` are {:?} ({} each), longest along axis {widest}",
                array.name,
                shape,
                size(bytes(&shape, array.info.dtype.size()))
            )
        }
        None => "raise allowed_mem".into(),
    }
}

impl fmt::Display for FinalizedPlan {
    /// Stages with their tasks, inputs, outputs and memory by parts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.plan();
        let tasks: u64 = plan.stages.iter().map(Stage::n_tasks).fold(0, u64::saturating_add);
        let n = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        writeln!(f, "plan {}: {}, {}, allowed_mem {}", self.run_id(), n(plan.stages.len() as u64, "stage"), n(tasks, "task"), size(plan.allowed_mem))?;
        for (_, stage, layout) in self.stages() {
            let kernel = match &stage.kernel {
                Kernel::Map(expr) if expr.is_identity() => "copies".to_owned(),
                Kernel::Map(expr) => format!("computes {} elementwise", n(expr.results().len() as u64, "result")),
                Kernel::Scan { axis, exclusive: true, .. } => format!("finds what comes before each part along axis {axis}"),
                Kernel::Scan { axis, .. } => format!("runs along axis {axis}"),
                Kernel::Contract { .. } => "multiplies matrices".to_owned(),
                Kernel::User { name, version, .. } => format!("applies kernel {name} (version {version})"),
                Kernel::Reduce { folds, axes, .. } => {
                    format!("folds {} along {}", n(folds.len() as u64, "result"), axes.iter().map(|a| format!("axis {a}")).collect::<Vec<_>>().join(", "))
                }
            };
            writeln!(f, "\n{}: {}, {kernel}", stage.name, n(stage.n_tasks(), "task"))?;
            for (input, how) in stage.inputs.iter().zip(&layout.inputs) {
                for id in &input.sources {
                    let array = plan.array(*id);
                    let (verb, how) = match (&array.place, how.mode) {
                        (Place::Constant(_), _) => ("holds", ""),
                        (Place::Generated(_), _) => ("generates", ""),
                        (_, ReadMode::InChunk) => ("reads", ", chunk by chunk"),
                        (_, ReadMode::Assembled) => ("reads", ", assembling blocks"),
                    };
                    writeln!(f, "  {verb} {} {} {:?} in chunks {:?}{how}", array.name, array.info.dtype, array.info.shape(), array.info.chunk_shape())?;
                }
            }
            for output in &stage.outputs {
                let array = plan.array(output.array);
                let place = match &array.place {
                    Place::Output { url, path } => {
                        let region = array.info.window.as_ref().map_or_else(String::new, |first| {
                            let start: Vec<u64> = first.iter().zip(array.info.chunk_shape()).map(|(f, c)| f * c).collect();
                            format!("a region from {start:?} of ")
                        });
                        format!(" to {region}{}", crate::storage::join(url, path))
                    }
                    _ => " to the work directory".into(),
                };
                let shards = if array.info.shard.is_some() { format!(" in shards {:?}", array.info.object_shape()) } else { String::new() };
                writeln!(f, "  writes {} {} {:?} in chunks {:?}{shards}{place}", array.name, array.info.dtype, array.info.shape(), array.info.chunk_shape())?;
            }
            for note in &stage.notes {
                writeln!(f, "  {note}")?;
            }
            writeln!(f, "  projected memory per task {}:", size(layout.estimate.total()))?;
            for line in layout.estimate.to_string().lines() {
                writeln!(f, "  {line}")?;
            }
        }
        Ok(())
    }
}
