//! The consistency checks of a plan: arrays, stages, and single writers.
//!
//! A plan may come from any source, so the checks assume nothing. For example, read maps must stay
//! inside their arrays, and no two tasks may write the same object. [`Plan::finalize`] runs the
//! checks before it projects the memory.

use std::collections::HashSet;

use freestone_kernels::DType;

use super::{
    ArrayId, MAX_CACHED_CHUNKS, Mode, OutAxis, Place, Plan, PlanArray, PlanError, Stage,
    StageInput, StageOutput, malformed,
};
use crate::grid::AxisGrid;

impl Plan {
    /// Checks each array by itself.
    pub(super) fn check_arrays(&self) -> Result<(), PlanError> {
        for array in &self.arrays {
            if let Some(problem) = array_problem(array) {
                return Err(malformed(format!("array `{}`: {problem}", array.name)));
            }
        }
        Ok(())
    }

    /// Checks the stage at `index`, and its relation to arrays and earlier stages.
    pub(super) fn check_stage(&self, index: usize, stage: &Stage) -> Result<(), PlanError> {
        if !stage.tasks.axes().iter().chain(stage.blocks.axes()).all(AxisGrid::is_valid) {
            return Err(malformed("the task grid or the block grid is invalid"));
        }
        if stage.blocks.shape() != stage.tasks.shape() {
            return Err(malformed("the block grid and the task grid differ in shape"));
        }
        self.check_inputs(stage)?;
        let is_known_axis = stage.inner_axis.is_none_or(|d| d < stage.tasks.axes().len());
        let valid_caches = stage.cache.iter().all(|cache| {
            cache.array.0 < self.arrays.len() && (1..=MAX_CACHED_CHUNKS).contains(&cache.chunks)
        });
        if !is_known_axis || !valid_caches {
            return Err(malformed("the order of tasks or a chunk cache is invalid"));
        }
        if stage.after.iter().any(|s| s.0 >= index) {
            return Err(malformed("the stage depends on a stage that does not precede it"));
        }
        let results = stage.kernel.kind().check(self, stage)?;
        if results.len() != stage.outputs.len() {
            return Err(malformed("the number of outputs does not match the kernel"));
        }
        let mut outputs = stage.outputs.iter().zip(results);
        outputs.try_for_each(|(output, dtype)| self.check_output(stage, output, dtype))
    }

    fn check_inputs(&self, stage: &Stage) -> Result<(), PlanError> {
        let dtypes = stage.kernel.kind().inputs();
        if dtypes.len() != stage.inputs.len() {
            return Err(malformed("the number of inputs does not match the kernel"));
        }
        let before = stage.after.iter().filter_map(|s| self.stages.get(s.0));
        let written: HashSet<ArrayId> = before.flat_map(|s| &s.outputs).map(|o| o.array).collect();
        for (i, (input, dtype)) in stage.inputs.iter().zip(dtypes).enumerate() {
            if input.map.shape() != stage.kernel.kind().input_shape(stage, i) {
                return Err(malformed("the shape of an input does not match the tasks"));
            }
            self.check_sources(input, dtype, &written)?;
        }
        Ok(())
    }

    /// Checks the arrays that an input reads. `written` are the arrays that the stage's
    /// dependencies write.
    fn check_sources(
        &self,
        input: &StageInput,
        dtype: DType,
        written: &HashSet<ArrayId>,
    ) -> Result<(), PlanError> {
        let sources: Option<Vec<&PlanArray>> =
            input.sources.iter().map(|s| self.arrays.get(s.0)).collect();
        let sources = sources.ok_or_else(|| malformed("an input reads an unknown array"))?;
        if sources.iter().any(|s| s.info.dtype != dtype) {
            return Err(malformed("the dtype of an input does not match the kernel"));
        }
        input.map.check(&sources.iter().map(|s| s.info.shape()).collect::<Vec<_>>())?;
        let unwritten = input.sources.iter().zip(&sources).find(|(id, source)| {
            matches!(source.place, Place::Work | Place::Output { .. }) && !written.contains(id)
        });
        unwritten.map_or(Ok(()), |(_, source)| {
            Err(malformed(format!(
                "the stage reads `{}` without depending on the stage that writes it",
                source.name
            )))
        })
    }

    fn check_output(
        &self,
        stage: &Stage,
        output: &StageOutput,
        dtype: DType,
    ) -> Result<(), PlanError> {
        let kind = stage.kernel.kind();
        let Some(array) = self.arrays.get(output.array.0) else {
            return Err(malformed("an output is an unknown array"));
        };
        let refuse = |problem: &str| Err(malformed(format!("`{}` {problem}", array.name)));
        if array.info.dtype != dtype {
            return refuse("has a different dtype than the result");
        }
        if !matches!(array.place, Place::Work | Place::Output { .. }) {
            return refuse("is read-only, but the stage writes it");
        }
        if output.axes.len() != array.info.grid.axes().len() {
            return refuse("has a different number of axes than the result");
        }
        let rank = stage.tasks.axes().len();
        let kept = output
            .axes
            .iter()
            .filter_map(|a| if let OutAxis::Kept(d) = a { Some(*d) } else { None });
        if !kept.eq((0..rank).filter(|d| !kind.folds(*d))) {
            return refuse("has different axes than the tasks");
        }
        let is_split = |d: usize| kind.folds(d) && stage.tasks.axes()[d].n_chunks() > 1;
        if (0..rank).any(|d| is_split(d) && !output.axes.contains(&OutAxis::Part(d))) {
            return refuse("would be written by several tasks");
        }
        let objects = array.info.objects();
        let mut axes = output.axes.iter().zip(objects.axes());
        if !axes.all(|(axis, grid)| has_one_writer(axis, grid, stage)) {
            return refuse("has chunks that several tasks would write");
        }
        Ok(())
    }

    /// Checks that exactly one stage writes each array that is not an input.
    pub(super) fn check_writers(&self) -> Result<(), PlanError> {
        let mut metadata_only = vec![false; self.arrays.len()];
        for publication in &self.publications {
            let is_region = matches!(publication.mode, Mode::Region { .. });
            let array = self.arrays.get(publication.array.0).filter(|array| {
                matches!(array.place, Place::Output { .. })
                    && array.info.window.is_some() == is_region
            });
            if array.is_none() {
                return Err(malformed("a publication does not match its output array"));
            }
            metadata_only[publication.array.0] = publication.mode == Mode::Metadata;
        }
        let mut writers = vec![0; self.arrays.len()];
        self.stages.iter().flat_map(|s| &s.outputs).for_each(|o| writers[o.array.0] += 1);
        for ((array, n), metadata_only) in self.arrays.iter().zip(writers).zip(metadata_only) {
            let is_written = matches!(array.place, Place::Work | Place::Output { .. });
            let expected = usize::from(is_written && !metadata_only);
            if n != expected {
                return Err(malformed(format!(
                    "`{}` is written by {n} stages, expected {expected}",
                    array.name
                )));
            }
        }
        Ok(())
    }
}

/// Returns the inconsistency of an array, if there is one.
fn array_problem(array: &PlanArray) -> Option<&'static str> {
    let info = &array.info;
    let rank = info.grid.axes().len();
    if info.fill.dtype() != info.dtype {
        return Some("the fill value has a different dtype");
    }
    if !info.grid.axes().iter().all(AxisGrid::is_valid) {
        return Some("the chunk grid is invalid");
    }
    if let Some(stored) = &info.stored_shape
        && (stored.len() != rank
            || info.grid.max_chunk().iter().zip(stored).any(|(chunk, stored)| chunk > stored))
    {
        return Some("the chunks exceed their stored shape");
    }
    if let Some(shard) = &info.shard
        && (shard.chunks.len() != rank || shard.chunks.contains(&0) || info.stored_shape.is_none())
    {
        return Some("the shards do not consist of whole chunks");
    }
    let per_object = |d: usize| info.shard.as_ref().map_or(1, |s| s.chunks[d]);
    if let Some(first) = &info.window
        && (first.len() != rank || (0..rank).any(|d| first[d] % per_object(d) != 0))
    {
        return Some("the region does not start at an object boundary");
    }
    if let Place::Constant(hex) = &array.place
        && hex.len() as u128 != 2 * info.n_bytes()
    {
        return Some("the number of constant values does not match the shape");
    }
    None
}

/// Returns true if each object (chunk or shard) of an output along an axis lies inside one task,
/// and tasks end where the axis ends.
fn has_one_writer(axis: &OutAxis, grid: &AxisGrid, stage: &Stage) -> bool {
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
