//! Whether a plan holds together: arrays, stages, and who writes what.
//!
//! A plan may come from anywhere, so nothing of it is taken for granted: not that maps stay inside of arrays, nor that no two tasks write one object.
//! [`Plan::finalize`] asks, before it projects the memory.

use freestone_kernels::{DType, Expr, contract};

use super::{Fold, Kernel, MAX_KEPT, Mode, OutAxis, Place, Plan, PlanError, Stage, StageId, UserBlocks};
use crate::grid::{AxisGrid, ChunkGrid};
use crate::readmap::ReadMap;

impl Plan {
    pub(super) fn check_arrays(&self) -> Result<(), PlanError> {
        for array in &self.arrays {
            let malformed = |why: &str| Err(PlanError::Malformed(format!("array `{}`: {why}", array.name)));
            let info = &array.info;
            if info.fill.dtype() != info.dtype {
                return malformed("its fill value has another dtype");
            }
            let axes_hold = info.grid.axes().iter().all(|a| match a {
                AxisGrid::Regular { first, size, n, last } => *n < 2 || (*first > 0 && *size > 0 && *last > 0),
                AxisGrid::Bounds(b) => b.first() == Some(&0) && b.windows(2).all(|w| w[0] < w[1]),
            });
            if !axes_hold {
                return malformed("its grid has empty chunks");
            }
            if let Some(stored) = &info.stored_shape
                && (stored.len() != info.grid.axes().len() || info.grid.max_chunk().iter().zip(stored).any(|(c, s)| c > s))
            {
                return malformed("its chunks are larger than they are stored");
            }
            let rank = info.grid.axes().len();
            if let Some(shard) = &info.shard
                && (shard.chunks.len() != rank || shard.chunks.contains(&0) || info.stored_shape.is_none())
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
        let space = stage.tasks.shape();
        if stage.walk.shape() != space {
            return malformed("its walk has another shape than its tasks".into());
        }
        let dtypes = stage.kernel.inputs();
        if dtypes.len() != stage.inputs.len() || stage.kernel.n_results() != stage.outputs.len() {
            return malformed("its expression has another number of inputs or results".into());
        }
        for (i, (input, dtype)) in stage.inputs.iter().zip(&dtypes).enumerate() {
            let wanted = match &stage.kernel {
                Kernel::User { blocks, .. } => blocks[i].grid.shape(),
                Kernel::Scan { axis, .. } if stage.kernel.carry() == Some(i) => {
                    let parts = |(d, n): (usize, &u64)| if d == *axis { stage.tasks.axes()[d].n_chunks() } else { *n };
                    space.iter().enumerate().map(parts).collect()
                }
                _ => space.clone(),
            };
            if input.map.shape() != wanted {
                return malformed("an input has another shape than its tasks".into());
            }
            let Some(sources) = input.sources.iter().map(|s| self.arrays.get(s.0)).collect::<Option<Vec<_>>>() else {
                return malformed("it reads an array that is not there".into());
            };
            if sources.iter().any(|s| s.info.dtype != *dtype) {
                return malformed("an input has another dtype than its expression says".into());
            }
            input.map.check(&sources.iter().map(|s| s.info.shape()).collect::<Vec<_>>())?;
            for (id, source) in input.sources.iter().zip(&sources) {
                let written = |s: &StageId| self.stages.get(s.0).is_some_and(|w| w.outputs.iter().any(|o| o.array == *id));
                if matches!(source.place, Place::Work | Place::Output { .. }) && !stage.after.iter().any(written) {
                    return malformed(format!("it reads `{}` without waiting for who writes it", source.name));
                }
            }
        }
        if stage.sweep.is_some_and(|d| d >= space.len()) || stage.keep.iter().any(|k| k.array.0 >= self.arrays.len() || k.chunks == 0 || k.chunks > MAX_KEPT) {
            return malformed("its sweep or what it keeps is not there".into());
        }
        if stage.after.iter().any(|s| s.0 >= index) {
            return malformed("it waits for a stage that is not before it".into());
        }
        let results: Vec<DType> = match &stage.kernel {
            Kernel::Map(expr) => expr.result_dtypes(),
            Kernel::User { blocks, dtype, .. } => {
                let fits = |b: &UserBlocks| {
                    let axis = |(axis, grid): (&Option<usize>, &AxisGrid)| match axis {
                        Some(a) => stage.tasks.axes().get(*a).is_some_and(|t| t.n_chunks() == grid.n_chunks()),
                        None => grid.n_chunks() <= 1,
                    };
                    b.axes.len() == b.grid.axes().len() && b.axes.iter().zip(b.grid.axes()).all(axis)
                };
                if !blocks.iter().all(fits) || stage.walk != stage.tasks {
                    return malformed("its blocks are not those of its tasks".into());
                }
                vec![*dtype]
            }
            Kernel::Scan { expr, op, axis, carry, .. } => {
                let [dtype] = expr.result_dtypes()[..] else { return malformed("it scans another number of results than one".into()) };
                let (Some(tasks), Some(_)) = (stage.tasks.axes().get(*axis), op.carrier(dtype)) else { return malformed("its scan is not defined".into()) };
                let whole = |d: usize| d == *axis || stage.tasks.axes()[d] == stage.walk.axes()[d];
                if (!*carry && tasks.n_chunks() > 1) || !(0..space.len()).all(whole) || !stage.walk.axes()[*axis].nests_in(tasks, 0, 1) {
                    return malformed("its tasks do not follow each other along the axis that it scans".into());
                }
                if *carry
                    && stage.inputs.last().is_none_or(|i| {
                        i.sources.len() != 1
                            || i.map != ReadMap::identity(i.map.shape())
                            || self.arrays[i.sources[0].0].info.grid.chunk_counts() != stage.tasks.chunk_counts()
                    })
                {
                    return malformed("what came before its tasks is not there".into());
                }
                vec![dtype]
            }
            Kernel::Contract { operands, batch, free } => {
                let results = operands.iter().flat_map(Expr::result_dtypes).collect::<Vec<_>>();
                let kept = batch + free[0] + free[1];
                match results[..] {
                    [a, b] if a == b && contract::is_defined(a) && kept <= space.len() && stage.walk.axes()[..kept] == stage.tasks.axes()[..kept] => vec![a],
                    _ => return malformed("its operands are no matrices of one dtype".into()),
                }
            }
            Kernel::Reduce { expr, folds, axes, parts } => {
                if folds.len() != expr.results().len() || axes.iter().any(|a| *a >= space.len()) || axes.windows(2).any(|w| w[0] >= w[1]) {
                    return malformed("its folds or axes do not fit".into());
                }
                if let Some(parts) = parts {
                    let one_each = |(a, part): (&usize, &AxisGrid)| part.n_chunks() == space[*a] && stage.walk.axes()[*a].max_extent() <= 1;
                    if parts.len() != axes.len() || !axes.iter().zip(parts).all(one_each) {
                        return malformed("its partial results are not those that it merges".into());
                    }
                }
                let reads = |f: &Fold| if parts.is_some() { f.op.accumulator(f.values) } else { Some(f.values) };
                if expr.result_dtypes().into_iter().zip(folds).any(|(d, f)| reads(f) != Some(d)) {
                    return malformed("a fold reads another dtype than its expression gives".into());
                }
                match folds.iter().map(|f| f.finish.dtype(f.op, f.values)).collect() {
                    Some(all) => all,
                    None => return malformed("a fold is not defined for its dtype".into()),
                }
            }
        };
        for (output, dtype) in stage.outputs.iter().zip(results) {
            let Some(array) = self.arrays.get(output.array.0) else { return malformed("it writes an array that is not there".into()) };
            if array.info.dtype != dtype || !matches!(array.place, Place::Work | Place::Output { .. }) {
                return malformed(format!("`{}` cannot be written by it", array.name));
            }
            if output.axes.len() != array.info.grid.axes().len() {
                return malformed(format!("`{}` has another number of axes", array.name));
            }
            if matches!(stage.kernel, Kernel::Map(_)) && stage.walk != stage.tasks && !are_slices(&stage.walk, &array.info.objects()) {
                return malformed(format!("`{}` is not made slice by slice by it", array.name));
            }
            let split = |d: usize| stage.kernel.folds(d) && stage.tasks.axes()[d].n_chunks() > 1;
            if (0..space.len()).any(|d| split(d) && !output.axes.contains(&OutAxis::Part(d))) {
                return malformed(format!("`{}` would be written by several of its tasks", array.name));
            }
            for (axis, grid) in output.axes.iter().zip(array.info.objects().axes()) {
                if !one_writer(axis, grid, stage) {
                    return malformed(format!("`{}` has chunks that two of its tasks would write", array.name));
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
                Some(array) if matches!(array.place, Place::Output { .. }) && array.info.window.is_some() == region => {}
                _ => return Err(PlanError::Malformed("it publishes what is no output, or another part of it".into())),
            }
            metadata_only[publication.array.0] = publication.mode == Mode::Metadata;
        }
        let mut writers = vec![0; self.arrays.len()];
        self.stages.iter().flat_map(|s| &s.outputs).for_each(|o| writers[o.array.0] += 1);
        for ((array, n), metadata_only) in self.arrays.iter().zip(writers).zip(metadata_only) {
            let expect = usize::from(!metadata_only && matches!(array.place, Place::Work | Place::Output { .. }));
            if n != expect {
                return Err(PlanError::Malformed(format!("`{}` is written by {n} stages, not by {expect}", array.name)));
            }
        }
        Ok(())
    }
}

/// True if blocks are slices of objects, one after the other in memory: cut along the first axis that has a length only.
fn are_slices(walk: &ChunkGrid, objects: &ChunkGrid) -> bool {
    let first = objects.axes().iter().position(|a| a.max_extent() > 1);
    let axis = |(d, (w, o)): (usize, (&AxisGrid, &AxisGrid))| if Some(d) == first { w.nests_in(o, 0, 1) } else { w == o };
    walk.axes().len() == objects.axes().len() && walk.axes().iter().zip(objects.axes()).enumerate().all(axis)
}

/// True if each object (chunk or shard) of the output along this axis lies inside one task, and tasks end where the axis ends.
fn one_writer(axis: &OutAxis, grid: &AxisGrid, stage: &Stage) -> bool {
    let kernel = &stage.kernel;
    match axis {
        OutAxis::Kept(a) => {
            let Some(tasks) = stage.tasks.axes().get(*a) else { return false };
            // A reduction writes one chunk a task.
            let single = !matches!(kernel, Kernel::Reduce { .. } | Kernel::User { .. }) || tasks.n_chunks() == grid.n_chunks();
            !kernel.folds(*a) && single && tasks.len() == grid.len() && grid.nests_in(tasks, 0, 1)
        }
        OutAxis::Part(a) => kernel.folds(*a) && stage.tasks.axes().get(*a).is_some_and(|t| grid.len() == t.n_chunks()) && grid.max_extent() <= 1,
        OutAxis::One => grid.len() == 1 && matches!(kernel, Kernel::Reduce { axes, .. } if axes.iter().all(|a| stage.tasks.axes()[*a].n_chunks() <= 1)),
    }
}
