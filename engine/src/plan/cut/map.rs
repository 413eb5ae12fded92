//! Elementwise stages: how many chunks a task writes, what it keeps from task to task, and in which slices it makes a chunk.
//!
//! All three save reading a source chunk again and again; what is tried is what saves most and fits into the memory of a task.

use super::looks::{MAX_LOOKS, keeps, reads_per_chunk};
use crate::grid::{AxisGrid, ChunkGrid};
use crate::plan::lower::{Draft, Lowering};
use crate::plan::{Kernel, OutAxis, Stage, StageLayout, StageOutput};
use crate::readmap::{AxisMap, Origin};

/// A slice of a chunk that is made at once: with those of a few inputs it stays in a cache.
const SLICE_BYTES: u64 = 1 << 19;

impl Lowering<'_> {
    pub(super) fn map_stage(&self, draft: &Draft, grid: &ChunkGrid) -> Stage {
        let stage = |tasks: ChunkGrid| Stage {
            name: draft.name.into(),
            kernel: Kernel::Map(draft.expr.clone()),
            inputs: draft.inputs.clone(),
            outputs: draft.outputs.iter().map(|array| StageOutput { array: *array, axes: (0..grid.axes().len()).map(OutAxis::Kept).collect() }).collect(),
            walk: tasks.clone(),
            tasks,
            sweep: None,
            keep: Vec::new(),
            after: Vec::new(),
            notes: Vec::new(),
        };
        // A task may write several chunks, or chunks be kept for the next task, where that saves reading a source chunk again and again.
        let plan = self.as_plan(Vec::new());
        let mut groups = vec![1u64; grid.axes().len()];
        let grouped = |groups: &[u64]| ChunkGrid::new(grid.axes().iter().zip(groups).map(|(a, g)| a.group(*g)).collect());
        let fits = |stage: &Stage| StageLayout::of(&plan, stage).is_ok_and(|l| l.estimate.total() <= self.spec.growth_mem());
        let (mut best, mut reads) = self.with_kept(stage(grid.clone()), &fits);
        while reads > 1.05 {
            let mut next: Option<(f64, Vec<u64>, Stage)> = None;
            for d in 0..groups.len() {
                let all = grid.axes()[d].n_chunks();
                if groups[d] >= all {
                    continue;
                }
                // Whole rows may be read without what lies beside them.
                for wider in [(2 * groups[d]).min(all), all] {
                    let mut trial = groups.clone();
                    trial[d] = wider;
                    let candidate = stage(grouped(&trial));
                    if candidate.n_tasks() < self.spec.wanted_tasks() || !fits(&candidate) {
                        continue;
                    }
                    let (candidate, saved) = self.with_kept(candidate, &fits);
                    if saved < reads && next.as_ref().is_none_or(|(r, ..)| saved < *r) {
                        next = Some((saved, trial, candidate));
                    }
                }
            }
            let Some((saved, trial, candidate)) = next else { break };
            (reads, groups, best) = (saved, trial, candidate);
        }
        best
    }

    /// The stage with the sweep along which keeping decoded chunks saves most, if it saves some and fits; and how often chunks are read.
    fn with_kept(&self, stage: Stage, fits: &dyn Fn(&Stage) -> bool) -> (Stage, f64) {
        let looks = self.looks(&stage);
        let plain = reads_per_chunk(&stage, &looks, None);
        if plain <= 1.05 {
            return (stage, plain);
        }
        let mut sweeps: Vec<(f64, usize)> = (0..stage.tasks.axes().len()).map(|d| (reads_per_chunk(&stage, &looks, Some(d)), d)).collect();
        sweeps.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (reads, d) in sweeps.into_iter().filter(|(r, _)| *r < 0.95 * plain) {
            let keep = keeps(&stage, &looks);
            let candidate = Stage { sweep: Some(d), keep, ..stage.clone() };
            let slim = self.in_slices(&candidate);
            if let Some(best) = slim.into_iter().chain([candidate]).find(fits) {
                return (best, reads);
            }
        }
        (stage, plain)
    }

    /// The stage with its chunks made slice by slice, if all chunks that are looked at stay meanwhile: then blocks are assembled in a cache's size.
    fn in_slices(&self, stage: &Stage) -> Option<Stage> {
        let followed = |axis: &AxisMap| matches!(axis, AxisMap::Along { .. } | AxisMap::Fixed(_));
        let plain = |from: &Origin| match from {
            Origin::Source { axes, .. } => axes.iter().all(followed),
            Origin::Fill(_) => true,
            Origin::Flat => false,
        };
        let pieces: usize = stage.inputs.iter().map(|i| i.map.pieces().len()).sum();
        if pieces > MAX_LOOKS || !stage.inputs.iter().flat_map(|i| i.map.pieces()).all(|p| plain(&p.from)) {
            return None;
        }
        let objects = self.arrays[stage.outputs[0].array.0].info.objects();
        let chunk = objects.max_chunk();
        // Slices along the first axis that has a length lie one after the other in a chunk.
        let d = chunk.iter().position(|n| *n > 1)?;
        let size = stage.kernel.inputs().iter().map(|t| t.size() as u64).max().unwrap_or(1);
        let row = chunk[d + 1..].iter().product::<u64>().saturating_mul(size).max(1);
        let AxisGrid::Regular { first, size: rows, .. } = objects.axes()[d] else { return None };
        if first != rows && objects.axes()[d].n_chunks() > 1 {
            return None;
        }
        let most = (SLICE_BYTES / row).max(1);
        let slice = (1..=most.min(rows)).rev().find(|n| rows % n == 0)?;
        if slice == rows || slice * row < SLICE_BYTES / 16 {
            return None;
        }
        let mut walk = objects.axes().to_vec();
        walk[d] = AxisGrid::regular(walk[d].len(), slice);
        Some(Stage { walk: ChunkGrid::new(walk), ..stage.clone() })
    }
}
