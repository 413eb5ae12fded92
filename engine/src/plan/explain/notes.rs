//! The notes of a stage: the reasons for its form.
//!
//! Fused functions, views and shared stages follow from the plan itself. Lowering records all other
//! decisions in [`Stage::notes`].

use super::names::{MAX_NAMED, counted, function_name, listed, view_name};
use crate::plan::{Plan, Stage};

/// The maximum number of notes in the explanation of a stage.
const MAX_NOTES: usize = 8;

/// The maximum number of names that are collected for an enumeration. It exceeds [`MAX_NAMED`], so
/// that the enumeration shows that more exist.
const MAX_COLLECTED: usize = 3 * MAX_NAMED + 1;

/// Returns the notes of a stage, at most [`MAX_NOTES`].
pub(super) fn notes(plan: &Plan, stage: &Stage) -> Vec<String> {
    let derived = [fused(stage), shared(plan, stage), views(plan, stage), reuse(stage)];
    let mut notes: Vec<String> = derived.into_iter().flatten().collect();
    let room = MAX_NOTES - notes.len();
    if stage.notes.len() <= room {
        notes.extend(stage.notes.iter().cloned());
    } else {
        let shown = room - 1;
        notes.extend(stage.notes.iter().take(shown).cloned());
        notes.push(format!("and {} more notes", stage.notes.len() - shown));
    }
    notes
}

/// Returns the note about elementwise functions that the stage evaluates.
fn fused(stage: &Stage) -> Option<String> {
    let exprs = stage.kernel.kind().exprs();
    let functions: Vec<String> =
        exprs.into_iter().flat_map(|e| e.nodes()).filter_map(function_name).collect();
    if functions.is_empty() {
        return None;
    }
    let count = counted(functions.len() as u64, "function");
    Some(format!("fuses {count}: {}", listed(&distinct(functions.into_iter()))))
}

/// Returns the note about outputs that share the stage.
fn shared(plan: &Plan, stage: &Stage) -> Option<String> {
    let names: Vec<String> =
        stage.outputs.iter().map(|o| plan.array(o.array).name.clone()).collect();
    (names.len() > 1).then(|| {
        format!("{} share one stage: they read the same blocks of the same inputs", listed(&names))
    })
}

/// Returns the note about inputs that are views.
fn views(plan: &Plan, stage: &Stage) -> Option<String> {
    if stage.kernel.kind().reads_dense() {
        return None;
    }
    let views = distinct(stage.inputs.iter().filter_map(|input| view_name(plan, input)));
    match views.len() {
        0 => None,
        1 => Some(format!("{} is a view and needs no stage", views[0])),
        _ => Some(format!("{} are views and need no stage", listed(&views))),
    }
}

/// Returns the note about chunks that remain cached from task to task.
fn reuse(stage: &Stage) -> Option<String> {
    let axis = stage.inner_axis.filter(|_| !stage.cache.is_empty())?;
    Some(format!("consecutive tasks advance along axis {axis} and reuse cached chunks"))
}

/// Returns the distinct names, at most [`MAX_COLLECTED`].
fn distinct(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut distinct: Vec<String> = Vec::new();
    for name in names {
        if distinct.len() == MAX_COLLECTED {
            break;
        }
        if !distinct.contains(&name) {
            distinct.push(name);
        }
    }
    distinct
}
