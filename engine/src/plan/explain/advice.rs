//! The hint of a plan that exceeds `allowed_mem`.

use crate::memory::size;
use crate::plan::layout::without_chunks;
use crate::plan::{Place, Plan, PlanArray, Stage};

/// Returns the changes by which a user can make a stage fit its memory.
pub(in crate::plan) fn advice(plan: &Plan, stage: &Stage) -> String {
    let fixed = without_chunks(plan, stage);
    let minimum = fixed.iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
    let mut advice = String::from("raise allowed_mem");
    // Close to the minimum, smaller chunks alone help little.
    if plan.allowed_mem - minimum.min(plan.allowed_mem) < minimum / 4 {
        let parts: Vec<String> =
            fixed.iter().map(|(part, bytes)| format!("{} {part}", size(*bytes))).collect();
        let parts = if parts.len() > 1 { format!(": {}", parts.join(", ")) } else { String::new() };
        advice += &format!(" above {} (required for any chunk size{parts})", size(minimum));
    }
    if minimum < plan.allowed_mem {
        advice += &smaller_chunks(plan, stage).unwrap_or_default();
    }
    advice
}

/// Returns the advice to reduce the largest chunks or shards among the stage's inputs and outputs.
fn smaller_chunks(plan: &Plan, stage: &Stage) -> Option<String> {
    let inputs = stage.inputs.iter().flat_map(|input| &input.sources);
    let arrays = inputs.chain(stage.outputs.iter().map(|output| &output.array));
    let array = arrays.map(|id| plan.array(*id)).max_by_key(|array| unit_bytes(array))?;
    let shape = unit_shape(array);
    let noun = if shape == array.info.chunk_shape() { "chunks" } else { "shards" };
    let longest = (0..shape.len()).max_by_key(|d| shape[*d]).unwrap_or(0);
    let each = size(unit_bytes(array));
    Some(format!(
        ", or use smaller {noun}: the {noun} of `{}` are {shape:?} ({each} each), longest along \
         axis {longest}",
        array.name
    ))
}

/// Returns the shape of the unit that a task holds: of a sharded array, tasks write whole shards
/// and read single chunks.
fn unit_shape(array: &PlanArray) -> Vec<u64> {
    if matches!(array.place, Place::Output { .. }) {
        array.info.object_shape()
    } else {
        array.info.chunk_shape()
    }
}

/// Returns the decoded size of the unit that a task holds.
fn unit_bytes(array: &PlanArray) -> u64 {
    let size = array.info.dtype.size() as u64;
    unit_shape(array).iter().fold(size, |product, n| product.saturating_mul(*n))
}
