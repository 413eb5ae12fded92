//! Whether a plan holds together: arrays, stages, and who writes what.
//!
//! A plan may come from anywhere, so nothing of it is taken for granted: not that maps stay inside
//! of arrays, nor that no two tasks write one object. [`Plan::finalize`] asks, before it projects
//! the memory.

use std::collections::HashSet;

use super::{ArrayId, MAX_KEPT, Mode, OutAxis, Place, Plan, PlanError, Stage};
use crate::grid::AxisGrid;

impl Plan {
    pub(super) fn check_arrays(&self) -> Result<(), PlanError> {
        for array in &self.arrays {
            let malformed =
                |why: &str| Err(PlanError::Malformed(format!("array `{}`: {why}", array.name)));
            let info = &array.info;
            if info.fill.dtype() != info.dtype {
                return malformed("its fill value has another dtype");
            }
            if !info.grid.axes().iter().all(AxisGrid::holds) {
                return malformed("its grid has empty chunks");
            }
            if let Some(stored) = &info.stored_shape
                && (stored.len() != info.grid.axes().len()
                    || info.grid.max_chunk().iter().zip(stored).any(|(c, s)| c > s))
            {
                return malformed("its chunks are larger than they are stored");
            }
            let rank = info.grid.axes().len();
            if let Some(shard) = &info.shard
                && (shard.chunks.len() != rank
                    || shard.chunks.contains(&0)
                    || info.stored_shape.is_none())
            {
                return malformed("its shards hold no whole chunks");
            }
            let per_object = |d: usize| info.shard.as_ref().map_or(1, |s| s.chunks[d]);
            if let Some(first) = &info.window
                && (first.len() != rank || (0..rank).any(|d| first[d] % per_object(d) != 0))
            {
                return malformed("its window does not begin with a whole object");
            }
            if let Place::Constant(hex) = &array.place
                && hex.len() as u128 != 2 * info.n_bytes()
            {
                return malformed("it has another number of values than elements");
            }
        }
        Ok(())
    }

    pub(super) fn check_stage(&self, index: usize, stage: &Stage) -> Result<(), PlanError> {
        let malformed = |why: String| Err(PlanError::Malformed(why));
        if !stage.tasks.axes().iter().chain(stage.walk.axes()).all(AxisGrid::holds) {
            return malformed("its tasks or its walk are no grid".into());
        }
        let space = stage.tasks.shape();
        if stage.walk.shape() != space {
            return malformed("its walk has another shape than its tasks".into());
        }
        let kind = stage.kernel.kind();
        let dtypes = kind.inputs();
        if dtypes.len() != stage.inputs.len() {
            return malformed("its kernel has another number of inputs".into());
        }
        let before = stage.after.iter().filter_map(|s| self.stages.get(s.0));
        let written: HashSet<ArrayId> = before.flat_map(|s| &s.outputs).map(|o| o.array).collect();
        for (i, (input, dtype)) in stage.inputs.iter().zip(&dtypes).enumerate() {
            if input.map.shape() != kind.input_shape(stage, i) {
                return malformed("an input has another shape than its tasks".into());
            }
            let Some(sources) =
                input.sources.iter().map(|s| self.arrays.get(s.0)).collect::<Option<Vec<_>>>()
            else {
                return malformed("it reads an array that is not there".into());
            };
            if sources.iter().any(|s| s.info.dtype != *dtype) {
                return malformed("an input has another dtype than its expression says".into());
            }
            input.map.check(&sources.iter().map(|s| s.info.shape()).collect::<Vec<_>>())?;
            for (id, source) in input.sources.iter().zip(&sources) {
                if matches!(source.place, Place::Work | Place::Output { .. })
                    && !written.contains(id)
                {
                    return malformed(format!(
                        "it reads `{}` without waiting for who writes it",
                        source.name
                    ));
                }
            }
        }
        if stage.sweep.is_some_and(|d| d >= space.len())
            || stage
                .keep
                .iter()
                .any(|k| k.array.0 >= self.arrays.len() || k.chunks == 0 || k.chunks > MAX_KEPT)
        {
            return malformed("its sweep or what it keeps is not there".into());
        }
        if stage.after.iter().any(|s| s.0 >= index) {
            return malformed("it waits for a stage that is not before it".into());
        }
        let results = kind.check(self, stage)?;
        if results.len() != stage.outputs.len() {
            return malformed("its kernel has another number of results".into());
        }
        for (output, dtype) in stage.outputs.iter().zip(results) {
            let Some(array) = self.arrays.get(output.array.0) else {
                return malformed("it writes an array that is not there".into());
            };
            if array.info.dtype != dtype
                || !matches!(array.place, Place::Work | Place::Output { .. })
            {
                return malformed(format!("`{}` cannot be written by it", array.name));
            }
            if output.axes.len() != array.info.grid.axes().len() {
                return malformed(format!("`{}` has another number of axes", array.name));
            }
            let kept = output
                .axes
                .iter()
                .filter_map(|a| if let OutAxis::Kept(d) = a { Some(*d) } else { None });
            if !kept.eq((0..space.len()).filter(|d| !kind.folds(*d))) {
                return malformed(format!("`{}` has other axes than its tasks", array.name));
            }
            let split = |d: usize| kind.folds(d) && stage.tasks.axes()[d].n_chunks() > 1;
            if (0..space.len()).any(|d| split(d) && !output.axes.contains(&OutAxis::Part(d))) {
                return malformed(format!(
                    "`{}` would be written by several of its tasks",
                    array.name
                ));
            }
            for (axis, grid) in output.axes.iter().zip(array.info.objects().axes()) {
                if !one_writer(axis, grid, stage) {
                    return malformed(format!(
                        "`{}` has chunks that two of its tasks would write",
                        array.name
                    ));
                }
            }
        }
        Ok(())
    }

    /// Every array that is written is written by one stage.
    pub(super) fn check_writers(&self) -> Result<(), PlanError> {
        let mut metadata_only = vec![false; self.arrays.len()];
        for publication in &self.publications {
            let region = matches!(publication.mode, Mode::Region { .. });
            match self.arrays.get(publication.array.0) {
                Some(array)
                    if matches!(array.place, Place::Output { .. })
                        && array.info.window.is_some() == region => {}
                _ => {
                    return Err(PlanError::Malformed(
                        "it publishes what is no output, or another part of it".into(),
                    ));
                }
            }
            metadata_only[publication.array.0] = publication.mode == Mode::Metadata;
        }
        let mut writers = vec![0; self.arrays.len()];
        self.stages.iter().flat_map(|s| &s.outputs).for_each(|o| writers[o.array.0] += 1);
        for ((array, n), metadata_only) in self.arrays.iter().zip(writers).zip(metadata_only) {
            let expect = usize::from(
                !metadata_only && matches!(array.place, Place::Work | Place::Output { .. }),
            );
            if n != expect {
                return Err(PlanError::Malformed(format!(
                    "`{}` is written by {n} stages, not by {expect}",
                    array.name
                )));
            }
        }
        Ok(())
    }
}

/// True if each object (chunk or shard) of the output along this axis lies inside one task, and
/// tasks end where the axis ends.
fn one_writer(axis: &OutAxis, grid: &AxisGrid, stage: &Stage) -> bool {
    let kind = stage.kernel.kind();
    let tasks = stage.tasks.axes();
    match axis {
        OutAxis::Kept(a) => {
            let Some(tasks) = tasks.get(*a) else { return false };
            let single = !kind.writes_one_object() || tasks.n_chunks() == grid.n_chunks();
            !kind.folds(*a) && single && tasks.len() == grid.len() && grid.nests_in(tasks, 0, 1)
        }
        OutAxis::Part(a) => {
            kind.folds(*a)
                && tasks.get(*a).is_some_and(|t| grid.len() == t.n_chunks())
                && grid.max_extent() <= 1
        }
        OutAxis::One => {
            let folded: Vec<usize> = (0..tasks.len()).filter(|d| kind.folds(*d)).collect();
            grid.len() == 1
                && !folded.is_empty()
                && folded.iter().all(|d| tasks[*d].n_chunks() <= 1)
        }
    }
}
