//! Cutting drafts into tasks: how much one task does, and whether a result takes one stage or several.

use freestone_kernels::reduce::Finish;
use freestone_kernels::{Expr, Node as ExprNode, ReduceOp, ScanOp};

use super::lower::{Draft, Kind, Lowering};
use super::rechunk::{self, Prices, Problem};
use super::traffic::{self, Arrays};
use super::{ArrayId, Fold, Keep, Kernel, MAX_KEPT, OutAxis, Place, PlanArray, Stage, StageInput, StageLayout, StageOutput};
use crate::grid::{AxisGrid, ChunkGrid};
use crate::readmap::{AxisMap, Origin, ReadMap};
use crate::storage::array::ArrayInfo;
use crate::storage::is_remote_url;

/// A task folds at most so much input, so that it can be retried, backed up and finish on Lambda.
const MAX_TASK_INPUT_BYTES: u128 = 2_000_000_000;

/// A split is worth it while partial results are this much smaller than what is read.
const PARTIAL_SHARE: u128 = 8;

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

    /// A running sum: in one stage where enough tasks can go along the axis from end to end; else sums of parts of it first, what came
    /// before each part next, and then the input once more.
    fn scan_stages(&mut self, draft: &Draft, op: ScanOp, axis: usize, grid: &ChunkGrid) -> Vec<Stage> {
        let along = &grid.axes()[axis];
        let kept_tasks: u64 = grid.axes().iter().enumerate().filter(|(d, _)| *d != axis).map(|(_, a)| a.n_chunks().max(1)).product();
        let bytes: u128 = draft.inputs.iter().flat_map(|i| &i.sources).map(|s| self.arrays[s.0].info.n_bytes()).sum();
        let by_size = (bytes / u128::from(kept_tasks)).div_ceil(MAX_TASK_INPUT_BYTES) as u64;
        let wanted = if kept_tasks >= self.spec.parallelism { 1 } else { self.spec.wanted_tasks().div_ceil(kept_tasks) };
        let group = along.n_chunks().max(1).div_ceil(wanted.max(by_size).clamp(1, along.n_chunks().max(1)));
        let with =
            |axis_grid: AxisGrid| ChunkGrid::new(grid.axes().iter().enumerate().map(|(d, a)| if d == axis { axis_grid.clone() } else { a.clone() }).collect());
        let tasks = with(along.group(group));
        let parts = tasks.axes()[axis].n_chunks().max(1);
        let kept: Vec<OutAxis> = (0..grid.axes().len()).map(OutAxis::Kept).collect();
        let stage = |name: &str, expr: Expr, inputs: Vec<StageInput>, output: ArrayId, tasks: ChunkGrid, walk: ChunkGrid, exclusive: bool, carry: bool| Stage {
            name: name.into(),
            kernel: Kernel::Scan { expr, op, axis, exclusive, carry },
            inputs,
            outputs: vec![StageOutput { array: output, axes: kept.clone() }],
            tasks,
            walk,
            sweep: None,
            keep: Vec::new(),
            after: Vec::new(),
            notes: Vec::new(),
        };
        let values = draft.expr.result_dtypes()[0];
        let carrier = op.carrier(values).unwrap_or(values);
        let mut widened = draft.expr.clone();
        let cast = widened.push(ExprNode::Cast(carrier, draft.expr.results()[0]));
        let (Ok(cast), true) = (cast, parts > 1) else {
            return vec![stage(draft.name, draft.expr.clone(), draft.inputs.clone(), draft.outputs[0], tasks, grid.clone(), false, false)];
        };
        widened.set_results(&[cast]);
        let partial_grid = with(AxisGrid::regular(parts, 1));
        let partial = |lowering: &mut Self, what: &str| {
            let id = ArrayId(lowering.arrays.len());
            let info = ArrayInfo::intermediate(carrier, partial_grid.clone(), lowering.spec.codec);
            lowering.arrays.push(PlanArray { name: format!("{what}-{}-{:03}", draft.name, id.0), info, place: Place::Work });
            id
        };
        let (sums, before) = (partial(self, "partial"), partial(self, "before"));
        let out = |d: usize| if d == axis { OutAxis::Part(d) } else { OutAxis::Kept(d) };
        let first = Stage {
            name: "partial".into(),
            kernel: Kernel::Reduce {
                expr: widened,
                folds: vec![Fold { op: op.fold(), values: carrier, finish: Finish::Value(carrier) }],
                axes: vec![axis],
                parts: None,
            },
            inputs: draft.inputs.clone(),
            outputs: vec![StageOutput { array: sums, axes: (0..grid.axes().len()).map(out).collect() }],
            tasks: tasks.clone(),
            walk: grid.clone(),
            sweep: None,
            keep: Vec::new(),
            after: Vec::new(),
            notes: vec![format!("sums of {parts} parts along axis {axis}, so that the parts can run side by side; the input is read twice")],
        };
        let carried = |id: ArrayId| StageInput { sources: vec![id], map: ReadMap::identity(&partial_grid.shape()) };
        let whole = with(AxisGrid::regular(parts, parts));
        let second = stage("before", Expr::identity(carrier), vec![carried(sums)], before, whole, partial_grid.clone(), true, false);
        let inputs = draft.inputs.iter().cloned().chain([carried(before)]).collect();
        let third = stage(draft.name, draft.expr.clone(), inputs, draft.outputs[0], tasks, grid.clone(), false, true);
        vec![first, second, third]
    }

    /// A product of matrices: tasks make boxes of the result as large as memory lets them, and go along the axes that are summed over.
    /// Where there are few boxes and much to sum, parts of the sum are made side by side and added.
    fn contract_stages(&mut self, draft: &Draft) -> Vec<Stage> {
        let Kind::Contract { rhs, rhs_inputs, batch, free, grid } = &draft.kind else { return Vec::new() };
        let (kept, rank) = (grid.axes().len(), draft.walk.axes().len());
        let inputs: Vec<StageInput> = draft.inputs.iter().chain(rhs_inputs).cloned().collect();
        let stage = |output: ArrayId, groups: &[u64]| {
            let tasks = ChunkGrid::new(draft.walk.axes().iter().zip(groups).map(|(a, g)| a.group(*g)).collect());
            let split = (kept..rank).filter(|d| tasks.axes()[*d].n_chunks() > 1);
            Stage {
                name: draft.name.into(),
                kernel: Kernel::Contract { operands: Box::new([draft.expr.clone(), rhs.clone()]), batch: *batch, free: *free },
                inputs: inputs.clone(),
                outputs: vec![StageOutput { array: output, axes: (0..kept).map(OutAxis::Kept).chain(split.map(OutAxis::Part)).collect() }],
                walk: ChunkGrid::new(tasks.axes()[..kept].iter().chain(&draft.walk.axes()[kept..]).cloned().collect()),
                tasks,
                sweep: None,
                keep: Vec::new(),
                after: Vec::new(),
                notes: Vec::new(),
            }
        };
        let plan = self.as_plan(Vec::new());
        let counts = draft.walk.chunk_counts();
        // Whole along the axes that are summed over.
        let mut groups: Vec<u64> = (0..rank).map(|d| if d < kept { 1 } else { counts[d].max(1) }).collect();
        let bytes = |s: &Stage| -> f64 { traffic::reads(self.known(), s).iter().map(|(_, t)| t.bytes).sum() };
        let mut best = stage(draft.outputs[0], &groups);
        let mut read = bytes(&best);
        loop {
            let mut next: Option<(f64, usize, u64, Stage)> = None;
            for d in 0..kept {
                let tasks = counts[d].div_ceil(groups[d].max(1));
                if tasks <= 1 {
                    continue;
                }
                // The next size that leaves fewer tasks along the axis.
                let wider = counts[d].div_ceil(tasks - 1);
                let mut trial = groups.clone();
                trial[d] = wider;
                let candidate = stage(draft.outputs[0], &trial);
                let (now, enough) = (bytes(&candidate), candidate.n_tasks() >= self.spec.wanted_tasks());
                let fits = || StageLayout::of(&plan, &candidate).is_ok_and(|l| l.estimate.total() <= self.spec.growth_mem());
                if enough && now < read && next.as_ref().is_none_or(|(r, ..)| now < *r) && fits() {
                    next = Some((now, d, wider, candidate));
                }
            }
            let Some((now, d, wider, candidate)) = next else { break };
            (read, groups[d], best) = (now, wider, candidate);
        }
        let target = &self.arrays[draft.outputs[0].0].info;
        let (made, summed) = (target.n_bytes(), counts[kept..].iter().product::<u64>());
        let idle = self.spec.wanted_tasks() / best.n_tasks().max(1);
        let worth = u64::try_from(read as u128 / (PARTIAL_SHARE * made).max(1)).unwrap_or(u64::MAX);
        let mut parts = idle.min(summed).min(worth);
        if parts <= 1 || best.n_tasks() >= self.spec.parallelism {
            return vec![best];
        }
        for d in kept..rank {
            let here = counts[d].min(parts).max(1);
            groups[d] = counts[d].div_ceil(here).max(1);
            parts = parts.div_ceil(here);
        }
        let id = ArrayId(self.arrays.len());
        let mut first = stage(id, &groups);
        let split: Vec<u64> = first.tasks.axes()[kept..].iter().map(AxisGrid::n_chunks).filter(|n| *n > 1).collect();
        let partial_grid = ChunkGrid::new(first.tasks.axes()[..kept].iter().cloned().chain(split.iter().map(|n| AxisGrid::regular(*n, 1))).collect());
        let dtype = target.dtype;
        self.arrays.push(PlanArray {
            name: format!("partial-{}-{:03}", draft.name, id.0),
            info: ArrayInfo::intermediate(dtype, partial_grid.clone(), self.spec.codec),
            place: Place::Work,
        });
        first.notes.push(format!("sums of {} parts, side by side, because the result has few chunks", split.iter().product::<u64>()));
        let axes: Vec<usize> = (kept..kept + split.len()).collect();
        let combine = Draft {
            name: "combine",
            kind: Kind::Reduce {
                axes: axes.clone(),
                kept: grid.axes().to_vec(),
                folds: vec![Fold { op: ReduceOp::Sum, values: dtype, finish: Finish::Value(dtype) }],
                keepdims: vec![false],
            },
            expr: Expr::identity(dtype),
            inputs: vec![StageInput { sources: vec![id], map: ReadMap::identity(&partial_grid.shape()) }],
            outputs: draft.outputs.clone(),
            walk: partial_grid,
        };
        let second = self.reduce_stage(&combine, &split, None);
        vec![first, second]
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

    fn map_stage(&self, draft: &Draft, grid: &ChunkGrid) -> Stage {
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

    /// How the inputs look at arrays: those that go along the same axes at a small distance from each other look as one.
    fn looks(&self, stage: &Stage) -> Vec<Look> {
        let mut looks: Vec<Look> = Vec::new();
        for input in &stage.inputs {
            for piece in input.map.pieces() {
                let Origin::Source { source, axes } = &piece.from else { continue };
                let array = input.sources[*source];
                if traffic::in_parts(self.known(), stage, array, axes) {
                    continue;
                }
                let cuts = self.arrays[array.0].info.grid.axes();
                let along: Vec<Along> = axes
                    .iter()
                    .zip(cuts)
                    .map(|(map, cut)| match map {
                        AxisMap::Along { axis, start, step } if *step == 1 && piece.to.shape[*axis] > 0 => {
                            let shift = *start as i64 - piece.to.start[*axis] as i64;
                            Along {
                                axis: Some(*axis),
                                least: shift,
                                most: shift,
                                step: 1,
                                len: piece.to.shape[*axis],
                                chunk: cut.max_extent(),
                                chunks: cut.n_chunks(),
                            }
                        }
                        AxisMap::Along { axis, step, .. } => Along {
                            axis: Some(*axis),
                            least: 0,
                            most: 0,
                            step: step.unsigned_abs(),
                            len: piece.to.shape[*axis],
                            chunk: cut.max_extent(),
                            chunks: cut.n_chunks(),
                        },
                        // Where a list looks is not gone into.
                        AxisMap::Gather { .. } | AxisMap::Fixed(_) => Along { axis: None, least: 0, most: 0, step: 1, len: 1, chunk: 1, chunks: 1 },
                    })
                    .collect();
                let near = |look: &&mut Look| {
                    look.array == array
                        && look.axes.iter().zip(&along).all(|(a, b)| {
                            let apart = a.most.max(b.most) - a.least.min(b.least);
                            a.axis == b.axis && a.step == b.step && apart.unsigned_abs() <= a.chunk
                        })
                };
                let room = looks.len() < MAX_LOOKS;
                match looks.iter_mut().find(near) {
                    Some(look) => look.axes.iter_mut().zip(&along).for_each(|(a, b)| {
                        (a.least, a.most, a.len) = (a.least.min(b.least), a.most.max(b.most), a.len.max(b.len));
                    }),
                    None if room => looks.push(Look { array, axes: along, inputs: 0 }),
                    None => {}
                }
            }
            // Each input of its own decodes for itself, where nothing is kept.
            let mut seen: Vec<ArrayId> = Vec::new();
            for id in &input.sources {
                if !seen.contains(id) {
                    seen.push(*id);
                    looks.iter_mut().filter(|l| l.array == *id).for_each(|l| l.inputs += 1);
                }
            }
        }
        looks
    }

    /// Seconds of one worker for what a stage reads.
    fn read_cost(&self, stage: &Stage, prices: &Prices) -> f64 {
        // As if nothing stayed from task to task: tasks that follow each other may go to different workers.
        let apart = Stage { keep: Vec::new(), ..stage.clone() };
        traffic::reads(self.known(), &apart).iter().map(|(_, t)| t.bytes * prices.source_byte + t.requests * prices.source_request).sum()
    }

    /// The arrays so far.
    fn known(&self) -> Arrays<'_> {
        Arrays { all: &self.arrays, remote_work: is_remote_url(&self.spec.work_dir) }
    }

    fn kind_of(&self, array: &PlanArray) -> rechunk::Kind {
        rechunk::Kind { compressed: array.info.codecs.len() > 1, remote: self.known().is_remote(array) }
    }

    /// The stages of a copy in several passes, if that is cheaper than one stage that reads chunks again and again.
    fn copies(&mut self, draft: &Draft, grid: &ChunkGrid, direct: &Stage) -> Option<Vec<Stage>> {
        let [target] = draft.outputs.as_slice() else { return None };
        let again = reads_per_chunk(direct, &self.looks(direct), direct.sweep);
        if again <= WORTH_A_LOOK {
            return None;
        }
        let info = self.arrays[target.0].info.clone();
        // How the largest input is cut, seen from the result.
        let images = draft.inputs.iter().filter(|i| i.map.as_image().is_some_and(|axes| !axes.iter().any(|a| matches!(a, AxisMap::Gather { .. }))));
        let largest = images.max_by_key(|i| self.arrays[i.sources[0].0].info.n_bytes())?;
        let source = &self.arrays[largest.sources[0].0];
        let mut cuts: Vec<AxisGrid> = grid.axes().iter().map(|a| AxisGrid::regular(a.len(), a.len())).collect();
        for (map, axis) in largest.map.as_image()?.iter().zip(source.info.grid.axes()) {
            if let AxisMap::Along { axis: d, start, step } = map {
                cuts[*d] = axis.slice(*start, *step, grid.axes()[*d].len());
            }
        }
        let work = PlanArray { name: String::new(), info: ArrayInfo::intermediate(info.dtype, grid.clone(), self.spec.codec), place: Place::Work };
        let extents = |axes: &[AxisGrid]| axes.iter().map(|a| a.max_extent().max(1)).collect::<Vec<u64>>();
        let source_bytes: usize = draft.inputs.iter().filter_map(|i| i.sources.first()).map(|s| self.arrays[s.0].info.dtype.size()).sum();
        let prices = Prices::new(self.kind_of(source), self.kind_of(&work));
        let direct_cost = self.read_cost(direct, &prices);
        let mut problem = Problem {
            shape: grid.shape(),
            source: extents(&cuts),
            target: extents(grid.axes()),
            source_bytes: source_bytes.max(info.dtype.size()) as u64,
            bytes: info.dtype.size() as u64,
            memory: self.spec.growth_mem().saturating_sub(self.as_plan(Vec::new()).process_mem()),
            tasks: self.spec.wanted_tasks(),
            prices,
        };
        for _ in 0..ATTEMPTS {
            let Some(route) = problem.route().filter(|r| r.boxes.len() > 1) else {
                self.remark(*target, format!("chunks are read {again:.1} times: several copies that fit would not be cheaper"));
                return None;
            };
            let arrays = self.arrays.len();
            if let Some(mut stages) = self.route_stages(draft, grid, &cuts, &route) {
                let all = self.read_cost(&stages[0], &prices) + route.cost - problem.first_read(&route);
                let plan = self.as_plan(Vec::new());
                let fits = stages.iter().all(|s| StageLayout::of(&plan, s).is_ok_and(|l| l.estimate.total() <= self.spec.growth_mem()));
                if fits && all < 0.9 * direct_cost {
                    let note =
                        format!("in {} copies: about {all:.2} s of one worker, where one that reads chunks again takes {direct_cost:.2} s", stages.len());
                    stages.iter_mut().for_each(|s| s.notes.push(note.clone()));
                    return Some(stages);
                }
                self.arrays.truncate(arrays);
                if fits {
                    let n = stages.len();
                    let note = format!("chunks are read {again:.1} times: about {direct_cost:.2} s of one worker, where {n} copies take {all:.2} s");
                    self.remark(*target, note);
                    return None;
                }
            }
            problem.memory = problem.memory / 4 * 3;
        }
        None
    }

    /// The copies of a route, with the arrays between them.
    fn route_stages(&mut self, draft: &Draft, grid: &ChunkGrid, cuts: &[AxisGrid], route: &rechunk::Route) -> Option<Vec<Stage>> {
        let last = route.boxes.len() - 1;
        let tasks: Vec<ChunkGrid> = route
            .boxes
            .iter()
            .enumerate()
            .map(|(i, lengths)| {
                let axis = |d: usize| {
                    let (n, length) = (grid.axes()[d].len(), lengths[d]);
                    let own = if i == last { &grid.axes()[d] } else { &cuts[d] };
                    let unit = own.max_extent().max(1);
                    if i == last || (i == 0 && length % unit == 0) { own.group((length / unit).max(1)) } else { AxisGrid::regular(n, length) }
                };
                ChunkGrid::new((0..lengths.len()).map(axis).collect())
            })
            .collect();
        let dtype = self.arrays[draft.outputs[0].0].info.dtype;
        let shape = grid.shape();
        let mut stages: Vec<Stage> = Vec::with_capacity(tasks.len());
        let mut read: Option<ArrayId> = None;
        for (i, own) in tasks.iter().enumerate() {
            let output = if i == last {
                draft.outputs[0]
            } else {
                let id = ArrayId(self.arrays.len());
                let info = ArrayInfo::intermediate(dtype, rechunk::between(own, &tasks[i + 1])?, self.spec.codec);
                self.arrays.push(PlanArray { name: format!("{}-{:03}", draft.name, id.0), info, place: Place::Work });
                id
            };
            let (expr, inputs) = match read {
                None => (draft.expr.clone(), draft.inputs.clone()),
                Some(id) => {
                    let mut copy = Expr::new(vec![dtype]);
                    let node = copy.push(ExprNode::Input(0)).ok()?;
                    copy.add_results(&[node]);
                    (copy, vec![StageInput { sources: vec![id], map: ReadMap::identity(&shape) }])
                }
            };
            stages.push(Stage {
                name: draft.name.into(),
                kernel: Kernel::Map(expr),
                inputs,
                outputs: vec![StageOutput { array: output, axes: (0..shape.len()).map(OutAxis::Kept).collect() }],
                tasks: own.clone(),
                walk: own.clone(),
                sweep: None,
                keep: Vec::new(),
                after: Vec::new(),
                notes: Vec::new(),
            });
            read = Some(output);
        }
        Some(stages)
    }
}

/// A single copy that reads no chunk more often than this, on average, is not worth a second one.
const WORTH_A_LOOK: f64 = 1.3;
/// So often is a route searched again with less memory.
const ATTEMPTS: usize = 8;

/// A piece of a chunk that is folded at once: with that of another input it stays in a cache.
const PIECE_BYTES: u64 = 1 << 19;
/// A slice of a chunk that is made at once: with those of a few inputs it stays in a cache.
const SLICE_BYTES: u64 = 1 << 19;

/// More different ways to look at arrays are not gone into.
const MAX_LOOKS: usize = 64;

/// How inputs look at an array.
#[derive(Clone, Debug)]
struct Look {
    array: ArrayId,
    axes: Vec<Along>,
    /// Inputs that look so.
    inputs: u64,
}

/// How inputs look along an axis of an array.
#[derive(Clone, Copy, Debug)]
struct Along {
    /// The axis of the iteration space that goes along it.
    axis: Option<usize>,
    /// Where they look first and last, in elements from where a task is.
    least: i64,
    most: i64,
    step: u64,
    /// Elements that they see in all.
    len: u64,
    /// Elements of a chunk, and number of chunks.
    chunk: u64,
    chunks: u64,
}

impl Along {
    /// Chunks that one block of `n` elements touches.
    fn touched(&self, n: u64) -> u64 {
        let (reach, chunk) = (n.saturating_mul(self.step).saturating_add((self.most - self.least).unsigned_abs()), self.chunk.max(1));
        let first = self.least.rem_euclid(chunk as i64) as u64;
        // Where blocks are whole chunks long, or parts of chunks, it is known where in a chunk they begin.
        let most = if self.step == 1 && n.is_multiple_of(chunk) {
            first.saturating_add(reach - 1) / chunk + 1
        } else if self.step == 1 && first == 0 && self.least == self.most && chunk.is_multiple_of(n.max(1)) {
            1
        } else {
            reach.saturating_add(chunk - 1).saturating_sub(1) / chunk + 1
        };
        most.clamp(1, self.chunks.max(1))
    }
}

/// Elements of a block along an axis.
fn block_extent(stage: &Stage, d: usize) -> u64 {
    let task = stage.tasks.axes()[d].max_extent().max(1);
    if matches!(stage.kernel, Kernel::Map(_)) { task } else { stage.walk.axes()[d].max_extent().clamp(1, task) }
}

/// Reads for each chunk that is read at all, for the worst look: from block to block along `sweep` chunks are kept.
fn reads_per_chunk(stage: &Stage, looks: &[Look], sweep: Option<usize>) -> f64 {
    let of = |look: &Look| {
        let (mut reads, mut chunks, mut along) = (1.0, 1.0, vec![false; stage.tasks.axes().len()]);
        for axis in &look.axes {
            let Some(d) = axis.axis else { continue };
            along[d] = true;
            let block = block_extent(stage, d);
            let blocks = axis.len.div_ceil(block).max(1) as f64;
            let whole = (axis.len as f64 * axis.step as f64 / axis.chunk.max(1) as f64).ceil().min(axis.chunks as f64).max(1.0);
            reads *= if sweep == Some(d) { whole } else { (blocks * axis.touched(block) as f64).max(whole) };
            chunks *= whole;
        }
        let others = stage.tasks.axes().iter().enumerate().filter(|(d, _)| !along[*d] && sweep != Some(*d));
        let again: f64 = others.map(|(_, t)| t.n_chunks().max(1) as f64).product();
        let together = if sweep.is_none() && reads > chunks { look.inputs.max(1) as f64 } else { 1.0 };
        reads * again * together / chunks
    };
    looks.iter().map(of).fold(1.0, f64::max)
}

/// Chunks to keep of arrays that are read again.
fn keeps(stage: &Stage, looks: &[Look]) -> Vec<Keep> {
    let mut keeps: Vec<Keep> = Vec::new();
    for look in looks {
        let touched: u64 = look.axes.iter().filter_map(|a| a.axis.map(|d| a.touched(block_extent(stage, d)))).product();
        match keeps.iter_mut().find(|k| k.array == look.array) {
            Some(keep) => keep.chunks = (keep.chunks + touched).min(MAX_KEPT),
            None => keeps.push(Keep { array: look.array, chunks: touched.clamp(1, MAX_KEPT) }),
        }
    }
    keeps
}
