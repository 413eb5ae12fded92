//! Cutting drafts into tasks: how much one task does, and whether a result takes one stage or several.
//!
//! Here is what is common, and reductions. Each other kind of draft has its file: `map`, with `copies` where one copy would read chunks again and again,
//! `scan`, `contract`. What a stage reads again, and what it keeps so that it need not, is weighed with `looks`.

mod contract;
mod copies;
mod looks;
mod map;
mod scan;

use freestone_kernels::reduce::Finish;
use freestone_kernels::{Expr, Node as ExprNode};

use super::lower::{Draft, Kind, Lowering};
use super::traffic::{self, Arrays};
use super::{ArrayId, Fold, Kernel, OutAxis, Place, PlanArray, Stage, StageInput, StageLayout, StageOutput};
use crate::grid::{AxisGrid, ChunkGrid};
use crate::readmap::ReadMap;
use crate::storage::array::ArrayInfo;
use crate::storage::is_remote_url;

use looks::{keeps, reads_per_chunk};

/// A task folds at most so much input, so that it can be retried, backed up and finish on Lambda.
const MAX_TASK_INPUT_BYTES: u128 = 2_000_000_000;

/// A split is worth it while partial results are this much smaller than what is read.
const PARTIAL_SHARE: u128 = 8;

/// A piece of a chunk that is folded at once: with that of another input it stays in a cache.
const PIECE_BYTES: u64 = 1 << 19;

impl Lowering<'_> {
    /// The stages of a draft; partial results get arrays of their own.
    pub(super) fn split(&mut self, draft: Draft) -> Vec<Stage> {
        let (axes, folds) = match &draft.kind {
            Kind::Reduce { axes, folds, .. } => (axes, folds),
            Kind::Map { grid } => {
                let direct = self.map_stage(&draft, grid);
                return self.copies(&draft, grid, &direct).unwrap_or_else(|| vec![direct]);
            }
            Kind::Scan { op, axis, grid } => return self.scan_stages(&draft, *op, *axis, grid),
            Kind::Contract { .. } => return self.contract_stages(&draft),
            Kind::User { .. } => return self.cut(&draft),
        };
        let groups = self.reduce_groups(&draft);
        let parts: Vec<u64> = axes.iter().zip(&groups).map(|(a, g)| draft.walk.axes()[*a].n_chunks().div_ceil(*g).max(1)).collect();
        if parts.iter().all(|p| *p <= 1) {
            return self.cut(&draft);
        }
        let shape = draft.walk.shape();
        let (fold_axes, folds) = (axes.clone(), folds.clone());
        let Kind::Reduce { kept, keepdims, .. } = &draft.kind else { return Vec::new() };
        // Partial results: one element along each reduced axis for each task along it.
        let mut kept_axes = kept.iter();
        let partial_axes: Vec<AxisGrid> = (0..shape.len())
            .map(|d| match fold_axes.iter().position(|a| *a == d) {
                Some(i) => AxisGrid::regular(parts[i], 1),
                None => kept_axes.next().cloned().unwrap_or_else(|| AxisGrid::regular(1, 1)),
            })
            .collect();
        let partial_grid = ChunkGrid::new(partial_axes);
        let partial_shape = partial_grid.shape();
        let mut partials = Vec::new();
        let mut combine = Draft {
            name: "combine",
            kind: Kind::Reduce { axes: fold_axes.clone(), kept: kept.clone(), folds: folds.clone(), keepdims: keepdims.clone() },
            expr: Expr::new(Vec::new()),
            inputs: Vec::new(),
            outputs: draft.outputs.clone(),
            walk: partial_grid.clone(),
        };
        for fold in &folds {
            let dtype = fold.accumulator();
            let id = ArrayId(self.arrays.len());
            self.arrays.push(PlanArray {
                name: format!("partial-{}-{:03}", draft.name, id.0),
                info: ArrayInfo::intermediate(dtype, partial_grid.clone(), self.spec.codec),
                place: Place::Work,
            });
            partials.push(id);
            let slot = combine.expr.add_input(dtype);
            if let Ok(node) = combine.expr.push(ExprNode::Input(slot)) {
                combine.expr.add_results(&[node]);
            }
            combine.inputs.push(StageInput { sources: vec![id], map: ReadMap::identity(&partial_shape) });
        }
        let first = self.reduce_stage(&draft, &groups, Some(&partials));
        let mut second = self.reduce_stage(&combine, &parts, None);
        if let Kernel::Reduce { axes, parts, .. } = &mut second.kernel {
            *parts = Some(axes.iter().map(|a| first.tasks.axes()[*a].clone()).collect());
        }
        vec![first, second]
    }

    /// The one stage of a draft, whole along reduced axes.
    pub(super) fn cut(&self, draft: &Draft) -> Vec<Stage> {
        match &draft.kind {
            Kind::Map { grid } => vec![self.map_stage(draft, grid)],
            // These are never joined with others, so nobody asks for them in one stage.
            Kind::Scan { .. } | Kind::Contract { .. } => Vec::new(),
            Kind::User { kernel } => vec![Stage {
                name: draft.name.into(),
                kernel: kernel.clone(),
                inputs: draft.inputs.clone(),
                outputs: draft
                    .outputs
                    .iter()
                    .map(|array| StageOutput { array: *array, axes: (0..draft.walk.axes().len()).map(OutAxis::Kept).collect() })
                    .collect(),
                tasks: draft.walk.clone(),
                walk: draft.walk.clone(),
                sweep: None,
                keep: Vec::new(),
                after: Vec::new(),
                notes: Vec::new(),
            }],
            Kind::Reduce { axes, .. } => {
                let whole: Vec<u64> = axes.iter().map(|a| draft.walk.axes()[*a].n_chunks().max(1)).collect();
                vec![self.reduce_stage(draft, &whole, None)]
            }
        }
    }

    fn reduce_stage(&self, draft: &Draft, groups: &[u64], partials: Option<&[ArrayId]>) -> Stage {
        let Kind::Reduce { axes, kept, folds, keepdims } = &draft.kind else { return self.map_stage(draft, &draft.walk) };
        let mut kept_axes = kept.iter();
        let tasks: Vec<AxisGrid> = draft
            .walk
            .axes()
            .iter()
            .enumerate()
            .map(|(d, axis)| match axes.iter().position(|a| *a == d) {
                Some(i) => axis.group(groups[i]),
                None => kept_axes.next().cloned().unwrap_or_else(|| axis.clone()),
            })
            .collect();
        let outputs = (0..folds.len()).map(|i| {
            let axis = |d: usize| match (axes.contains(&d), partials.is_some(), keepdims[i]) {
                (false, _, _) => Some(OutAxis::Kept(d)),
                (true, true, _) => Some(OutAxis::Part(d)),
                (true, false, true) => Some(OutAxis::One),
                (true, false, false) => None,
            };
            StageOutput { array: partials.map_or(draft.outputs[i], |p| p[i]), axes: (0..tasks.len()).filter_map(axis).collect() }
        });
        let folds = folds.iter().map(|f| if partials.is_some() { Fold { finish: Finish::Keep, ..*f } } else { *f }).collect();
        let mut stage = Stage {
            name: draft.name.into(),
            kernel: Kernel::Reduce { expr: draft.expr.clone(), folds, axes: axes.clone(), parts: None },
            inputs: draft.inputs.clone(),
            outputs: outputs.collect(),
            tasks: ChunkGrid::new(tasks),
            walk: draft.walk.clone(),
            sweep: None,
            keep: Vec::new(),
            after: Vec::new(),
            notes: Vec::new(),
        };
        if let Some(walk) = self.in_pieces(&stage) {
            stage.walk = walk;
            return stage;
        }
        // Blocks follow each other along the last axis that has several: what they share stays, if it fits.
        let (looks, along) = (self.looks(&stage), (0..stage.walk.axes().len()).rev().find(|d| stage.walk.axes()[*d].n_chunks() > 1));
        if along.is_some() && reads_per_chunk(&stage, &looks, along) < 0.95 * reads_per_chunk(&stage, &looks, None) {
            stage.keep = keeps(&stage, &looks);
            if !StageLayout::of(&self.as_plan(Vec::new()), &stage).is_ok_and(|l| l.estimate.total() <= self.spec.growth_mem()) {
                stage.keep.clear();
            }
        }
        stage
    }

    /// Blocks of a cache's size, if all that a reduction reads can be read in such pieces.
    fn in_pieces(&self, stage: &Stage) -> Option<ChunkGrid> {
        let Kernel::Reduce { axes, .. } = &stage.kernel else { return None };
        let size = stage.kernel.inputs().iter().map(|t| t.size() as u64).max()?;
        let mut walk = stage.walk.axes().to_vec();
        let bytes = |walk: &[AxisGrid]| walk.iter().fold(size, |p, a| p.saturating_mul(a.max_extent().max(1)));
        // Axes that stay first: along those that go, the same accumulators are used again.
        let order = (0..walk.len()).filter(|d| !axes.contains(d)).chain(axes.iter().copied());
        for d in order {
            let (AxisGrid::Regular { first, size: each, n, .. }, over) = (&walk[d], bytes(&walk).div_ceil(PIECE_BYTES)) else { continue };
            if over <= 1 || (first != each && *n > 1) {
                continue;
            }
            let most = (each / over).max(1);
            let piece = (1..=most).rev().find(|p| each % p == 0).unwrap_or(1);
            walk[d] = AxisGrid::regular(walk[d].len(), piece);
        }
        let fine = Stage { walk: ChunkGrid::new(walk), ..stage.clone() };
        let plan = self.as_plan(Vec::new());
        let all = bytes(fine.walk.axes()) < bytes(stage.walk.axes()) && fine.inputs.iter().all(|i| traffic::only_parts(&plan, &fine, i));
        all.then_some(fine.walk)
    }

    /// How many blocks along each reduced axis one task folds.
    fn reduce_groups(&self, draft: &Draft) -> Vec<u64> {
        let Kind::Reduce { axes, kept, folds, .. } = &draft.kind else { return Vec::new() };
        let counts: Vec<u64> = axes.iter().map(|a| draft.walk.axes()[*a].n_chunks().max(1)).collect();
        let kept_tasks: u64 = kept.iter().map(AxisGrid::n_chunks).product::<u64>().max(1);
        // What is folded, at most as much as the arrays that it is of.
        let elements: u128 = draft.walk.shape().iter().map(|n| u128::from(*n)).product();
        let bytes = |i: &StageInput| {
            let arrays = i.sources.iter().map(|id| &self.arrays[id.0].info);
            arrays.clone().map(ArrayInfo::n_bytes).sum::<u128>().min(elements * arrays.map(|a| a.dtype.size() as u128).max().unwrap_or(0))
        };
        let input: u128 = draft.inputs.iter().map(bytes).sum();
        let partial: u128 = folds.iter().map(|f| f.accumulator().size() as u128).sum::<u128>() * kept.iter().map(|a| u128::from(a.len())).product::<u128>();
        let by_size = (input / u128::from(kept_tasks)).div_ceil(MAX_TASK_INPUT_BYTES);
        let worth = (input / (PARTIAL_SHARE * partial).max(1)).max(1);
        let by_parallelism = u128::from(self.spec.wanted_tasks().div_ceil(kept_tasks)).min(worth);
        let mut wanted = by_size.max(if kept_tasks >= self.spec.parallelism { 1 } else { by_parallelism });
        counts
            .iter()
            .map(|n| {
                let parts = (*n).min(u64::try_from(wanted).unwrap_or(u64::MAX)).max(1);
                wanted = wanted.div_ceil(u128::from(parts));
                n.div_ceil(parts)
            })
            .collect()
    }

    /// The arrays so far.
    fn known(&self) -> Arrays<'_> {
        Arrays { all: &self.arrays, remote_work: is_remote_url(&self.spec.work_dir) }
    }
}
