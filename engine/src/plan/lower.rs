//! From a graph to stages.
//!
//! Only what must be stored becomes an array of its own: outputs, reductions, rechunks. Everything else is folded into
//! who reads it: a chain of views into one read map, a tree of elementwise functions into one expression, and stages that
//! walk the same space over common inputs into one stage with several outputs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use freestone_kernels::reduce::Finish;
use freestone_kernels::{Expr, Node as ExprNode, ReduceOp};
use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};
use serde_json::Value;

use super::inline::{Memo, push_input};
use super::{
    ArrayId, FORMAT, FinalizedPlan, Fold, Kernel, Mode, OutAxis, Place, Plan, PlanArray, PlanError, Publication, Stage, StageId, StageInput, StageLayout,
    StageOutput, UserBlocks, to_hex,
};
use crate::graph::{Node, NodeRef, Op, UserNode};
use crate::grid::{AxisGrid, ChunkGrid};
use crate::readmap::{AxisMap, ReadMap};
use crate::spec::Spec;
use crate::storage::array::ArrayInfo;
use crate::storage::{Stores, identity, is_remote_url};
use crate::user::KernelRegistry;

/// An array to compute, and where it goes.
#[derive(Clone, Debug)]
pub struct Output {
    /// What to compute.
    pub node: NodeRef,
    /// The array's name, for people.
    pub name: String,
    /// The store.
    pub url: String,
    /// The array's path there.
    pub path: String,
    /// How its chunks will lie; shape and dtype are the node's.
    pub info: ArrayInfo,
    /// Its `zarr.json`.
    pub document: Value,
    /// `zarr.json` of the group that holds it.
    pub group: Option<Value>,
    /// What is there may be replaced.
    pub overwrite: bool,
    /// How much of it is made.
    pub mode: Mode,
    /// The group gets consolidated metadata.
    pub consolidated: bool,
}

/// Values in the plan itself may be so large; beyond that they must be stored first.
const MAX_CONSTANT_BYTES: usize = 1_000_000;

/// A task folds at most so much input, so that it can be retried, backed up and finish on Lambda.
const MAX_TASK_INPUT_BYTES: u128 = 2_000_000_000;

/// Tasks for each slot of parallelism: the last ones to finish leave others idle for a fraction of a task only.
const TASKS_PER_SLOT: u64 = 4;

/// A split is worth it while partial results are this much smaller than what is read.
const PARTIAL_SHARE: u128 = 8;

/// Lowers outputs to a checked plan.
///
/// Cost: a few microseconds a node; nothing per chunk.
///
/// # Errors
/// Where a stage does not fit `spec.allowed_mem`, or what is asked for contradicts itself.
pub fn lower(outputs: &[Output], spec: &Spec) -> Result<FinalizedPlan, PlanError> {
    if outputs.is_empty() {
        return Err(PlanError::BadOutput("there is nothing to compute: name at least one array to store".into()));
    }
    check_places(outputs)?;
    let order = collect(outputs.iter().filter(|o| o.mode != Mode::Metadata))?;
    let mut lowering = Lowering::new(spec, listed_bytes(&order));
    lowering.mark(&order);
    for output in outputs {
        lowering.add_output(output);
    }
    for node in &order {
        if lowering.stored.contains_key(&key(node)) || lowering.materialise.contains(&key(node)) {
            lowering.add_intermediate(node);
        }
    }
    // Roots in the order in which they can run.
    for node in &order {
        let mut targets: Vec<ArrayId> = lowering.roots.iter().filter(|(n, _)| key(n) == key(node)).map(|(_, array)| *array).collect();
        // The array that others read it from comes first: another output may be a copy of that.
        targets.sort_by_key(|t| lowering.stored.get(&key(node)) != Some(t));
        for target in targets {
            lowering.lower_root(node, target)?;
        }
    }
    lowering.fuse_siblings()?;
    lowering.emit()?.finalize()
}

/// Stores that the graph's arrays were opened in, so that the run finds those in memory.
pub fn stores_of(outputs: &[Output]) -> Result<Stores, PlanError> {
    let stores = Stores::default();
    for node in collect(outputs.iter())? {
        if let Op::Stored(array) = &node.op {
            stores.insert(Arc::clone(&array.store));
        }
    }
    Ok(stores)
}

pub(super) fn key(node: &NodeRef) -> *const Node {
    Arc::as_ptr(node)
}

/// Kernels of users that the graph has, so that this process finds them.
///
/// # Errors
/// Where the graph is none.
pub fn kernels_of(outputs: &[Output]) -> Result<KernelRegistry, PlanError> {
    let mut kernels = KernelRegistry::new();
    for node in collect(outputs.iter())? {
        if let Op::User(user) = &node.op {
            kernels.insert(user.name, user.version, user.make);
        }
    }
    Ok(kernels)
}

/// Two outputs at one place, or one inside the other, or over an input.
fn check_places(outputs: &[Output]) -> Result<(), PlanError> {
    let place = |url: &str, path: &str| identity(url, path) + "/";
    let all: Vec<String> = outputs.iter().map(|o| place(&o.url, &o.path)).collect();
    for (i, a) in all.iter().enumerate() {
        if let Some(b) = all[..i].iter().find(|b| a.starts_with(b.as_str()) || b.starts_with(a.as_str())) {
            return Err(PlanError::BadOutput(format!(
                "two results would be stored at {} and {}: give each a place of its own",
                b.trim_end_matches('/'),
                a.trim_end_matches('/')
            )));
        }
    }
    for node in collect(outputs.iter())? {
        if let Op::Stored(array) = &node.op {
            let input = place(array.store.url(), &array.path);
            if let Some(out) = all.iter().find(|o| input.starts_with(o.as_str()) || o.starts_with(&input)) {
                return Err(PlanError::BadOutput(format!(
                    "the result at {} would replace {}, which it is computed from: store it elsewhere",
                    out.trim_end_matches('/'),
                    input.trim_end_matches('/')
                )));
            }
        }
    }
    Ok(())
}

/// The ancestors of the outputs as a graph, in an order in which each comes after its inputs.
fn collect<'a>(outputs: impl DoubleEndedIterator<Item = &'a Output>) -> Result<Vec<NodeRef>, PlanError> {
    let mut graph: DiGraph<NodeRef, ()> = DiGraph::new();
    let mut seen: HashMap<*const Node, NodeIndex> = HashMap::new();
    let mut open: Vec<NodeRef> = outputs.rev().map(|o| Arc::clone(&o.node)).collect();
    for node in &open {
        seen.entry(key(node)).or_insert_with(|| graph.add_node(Arc::clone(node)));
    }
    while let Some(node) = open.pop() {
        let to = seen[&key(&node)];
        for input in node.inputs() {
            let from = *seen.entry(key(input)).or_insert_with(|| {
                open.push(Arc::clone(input));
                graph.add_node(Arc::clone(input))
            });
            graph.update_edge(from, to, ());
        }
    }
    let order = toposort(&graph, None).map_err(|_| PlanError::Malformed("an array is computed from itself".into()))?;
    Ok(order.into_iter().map(|i| Arc::clone(&graph[i])).collect())
}

/// Bytes of the lists of indices in a graph: who made the plan holds them while it runs, also those that no stage needs any more.
fn listed_bytes(nodes: &[NodeRef]) -> u64 {
    let of = |node: &NodeRef| if let Op::View { map, .. } = &node.op { map.n_indices() * size_of::<u64>() } else { 0 };
    nodes.iter().map(|n| of(n) as u64).sum()
}

/// A stage before its tasks are cut.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) expr: Expr,
    pub(super) inputs: Vec<StageInput>,
    pub(super) outputs: Vec<ArrayId>,
    /// Blocks in which the iteration space is walked.
    pub(super) walk: ChunkGrid,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// Over the output's index space, cut as the output is.
    Map { grid: ChunkGrid },
    /// Over the input's index space; kept axes are cut as the output is.
    Reduce { axes: Vec<usize>, kept: Vec<AxisGrid>, folds: Vec<Fold>, keepdims: Vec<bool> },
    /// Over the output's blocks.
    User { kernel: Kernel },
}

pub(super) struct Lowering<'a> {
    spec: &'a Spec,
    /// What the graph itself holds, in lists of indices.
    listed_bytes: u64,
    arrays: Vec<PlanArray>,
    publications: Vec<Publication>,
    /// Nodes that have an array.
    pub(super) stored: HashMap<*const Node, ArrayId>,
    /// Nodes that must get one.
    pub(super) materialise: HashSet<*const Node>,
    /// Nodes to compute, and where to.
    roots: Vec<(NodeRef, ArrayId)>,
    drafts: Vec<Draft>,
}

impl<'a> Lowering<'a> {
    fn new(spec: &'a Spec, listed_bytes: u64) -> Lowering<'a> {
        Lowering {
            spec,
            listed_bytes,
            arrays: Vec::new(),
            publications: Vec::new(),
            stored: HashMap::new(),
            materialise: HashSet::new(),
            roots: Vec::new(),
            drafts: Vec::new(),
        }
    }

    fn add_output(&mut self, output: &Output) {
        let id = ArrayId(self.arrays.len());
        self.arrays.push(PlanArray {
            name: output.name.clone(),
            info: output.info.clone(),
            place: Place::Output { url: output.url.clone(), path: output.path.clone() },
        });
        self.publications.push(Publication {
            array: id,
            document: output.document.clone(),
            group: output.group.clone(),
            overwrite: output.overwrite,
            mode: output.mode.clone(),
            consolidated: output.consolidated,
        });
        if output.mode == Mode::Metadata {
            return;
        }
        self.roots.push((Arc::clone(&output.node), id));
        // What is stored anyway is read back by others instead of being stored twice. A user's kernel writes its own blocks only.
        let as_it_is = !matches!(output.node.op, Op::User(_)) || output.info.objects() == output.node.grid;
        if as_it_is && self.materialise.contains(&key(&output.node)) {
            self.stored.entry(key(&output.node)).or_insert(id);
        }
    }

    fn add_intermediate(&mut self, node: &NodeRef) {
        if self.stored.contains_key(&key(node)) {
            return;
        }
        let id = ArrayId(self.arrays.len());
        let name = format!("{}-{:03}", name_of(node), id.0);
        self.arrays.push(PlanArray { name, info: ArrayInfo::intermediate(node.dtype, node.grid.clone(), self.spec.codec), place: Place::Work });
        self.stored.insert(key(node), id);
        self.roots.push((Arc::clone(node), id));
    }

    /// The array of a node that is not computed.
    pub(super) fn leaf(&mut self, node: &NodeRef) -> Result<ArrayId, PlanError> {
        if let Some(id) = self.stored.get(&key(node)) {
            return Ok(*id);
        }
        let id = ArrayId(self.arrays.len());
        let own = |grid: &ChunkGrid| ArrayInfo::intermediate(node.dtype, grid.clone(), crate::storage::CodecName::None);
        let array = match &node.op {
            Op::Stored(array) => PlanArray {
                name: if array.path.is_empty() { array.store.url().rsplit('/').next().unwrap_or_default().to_owned() } else { array.path.clone() },
                info: array.info.clone(),
                place: Place::Input { url: array.store.url().to_owned(), path: array.path.clone(), tag: array.tag.clone() },
            },
            Op::Constant(values) if values.len() > MAX_CONSTANT_BYTES => {
                return Err(PlanError::BadOutput(format!(
                    "an array of {} bytes from the program's memory is too large for a plan: store it first",
                    values.len()
                )));
            }
            Op::Constant(values) => {
                let shape = node.shape();
                let whole = ChunkGrid::new(shape.iter().map(|n| AxisGrid::regular(*n, *n)).collect());
                PlanArray { name: format!("constant-{:03}", id.0), info: own(&whole), place: Place::Constant(to_hex(values.bytes())) }
            }
            Op::Generate(what) => PlanArray { name: format!("generated-{:03}", id.0), info: own(&node.grid), place: Place::Generated(what.clone()) },
            _ => return Err(PlanError::Malformed("a computed array is read before it is stored".into())),
        };
        self.arrays.push(array);
        self.stored.insert(key(node), id);
        Ok(id)
    }

    /// Drafts the stage that computes a node.
    fn lower_root(&mut self, root: &NodeRef, target: ArrayId) -> Result<(), PlanError> {
        let grid = self.arrays[target.0].info.objects();
        if let Op::User(user) = &root.op
            && self.stored.get(&key(root)) == Some(&target)
        {
            return self.lower_user(root, user, target);
        }
        // What is computed is the node itself, not the array that others will read it from.
        let (kind, from, walk) = match &root.op {
            Op::Reduce { input, fold, finish, axes, keepdims } => {
                let axis_of = |d: usize| if *keepdims { d } else { d - axes.iter().filter(|a| **a < d).count() };
                let kept = (0..input.grid.axes().len()).filter(|d| !axes.contains(d)).map(|d| grid.axes()[axis_of(d)].clone()).collect();
                let kind =
                    Kind::Reduce { axes: axes.clone(), kept, folds: vec![Fold { op: *fold, values: input.dtype, finish: *finish }], keepdims: vec![*keepdims] };
                (kind, Arc::clone(input), input.grid.clone())
            }
            Op::Rechunk(input) => (Kind::Map { grid: grid.clone() }, Arc::clone(input), grid),
            _ => (Kind::Map { grid: grid.clone() }, Arc::clone(root), grid),
        };
        let mut draft = Draft { name: name_of(root), kind, expr: Expr::new(Vec::new()), inputs: Vec::new(), outputs: vec![target], walk };
        let computed = Arc::ptr_eq(&from, root) && !matches!(root.op, Op::User(_));
        let own = if computed { self.stored.remove(&key(root)) } else { None };
        let result = self.inline(&from, &ReadMap::identity(&from.shape()), &mut draft, &mut Memo::new())?;
        if let Some(id) = own {
            self.stored.insert(key(root), id);
        }
        draft.expr.add_results(&[result]);
        self.drafts.push(draft);
        Ok(())
    }

    fn lower_user(&mut self, root: &NodeRef, user: &UserNode, target: ArrayId) -> Result<(), PlanError> {
        let mut inputs = Vec::with_capacity(user.inputs.len());
        let mut blocks = Vec::with_capacity(user.inputs.len());
        for (input, axes) in user.inputs.iter().zip(&user.axes) {
            // Elementwise functions among the inputs have arrays of their own, so that what is left is one read.
            let mut read = Draft {
                name: "",
                kind: Kind::Map { grid: input.grid.clone() },
                expr: Expr::new(Vec::new()),
                inputs: Vec::new(),
                outputs: Vec::new(),
                walk: input.grid.clone(),
            };
            self.inline(input, &ReadMap::identity(&input.shape()), &mut read, &mut Memo::new())?;
            inputs.extend(read.inputs);
            blocks.push(UserBlocks { dtype: input.dtype, grid: input.grid.clone(), axes: axes.clone() });
        }
        let kernel = Kernel::User {
            name: user.name.to_owned(),
            version: user.version,
            parameters: user.parameters.clone(),
            scratch_bytes: user.scratch_bytes,
            blocks,
            dtype: root.dtype,
        };
        let walk = root.grid.clone();
        self.drafts.push(Draft { name: name_of(root), kind: Kind::User { kernel }, expr: Expr::new(Vec::new()), inputs, outputs: vec![target], walk });
        Ok(())
    }

    /// Joins drafts that walk one space over common inputs, where memory allows.
    fn fuse_siblings(&mut self) -> Result<(), PlanError> {
        let mut fused: Vec<Draft> = Vec::new();
        for draft in std::mem::take(&mut self.drafts) {
            let reads: Vec<ArrayId> = draft.inputs.iter().flat_map(|i| i.sources.clone()).collect();
            // A draft may join any earlier one after which nothing comes that it waits for.
            let first = fused.iter().rposition(|f| f.outputs.iter().any(|o| reads.contains(o))).map_or(0, |i| i + 1);
            let mut joined = None;
            for (at, other) in fused.iter().enumerate().skip(first) {
                if let Some(both) = join(other, &draft)? {
                    let fits = self
                        .cut(&both)
                        .iter()
                        .all(|s| StageLayout::of(&self.as_plan(Vec::new()), s).is_ok_and(|l| l.estimate.total() <= self.spec.allowed_mem));
                    if fits {
                        joined = Some((at, both));
                        break;
                    }
                }
            }
            match joined {
                Some((at, both)) => fused[at] = both,
                None => fused.push(draft),
            }
        }
        self.drafts = fused;
        Ok(())
    }

    fn as_plan(&self, stages: Vec<Stage>) -> Plan {
        Plan {
            format: FORMAT,
            engine: env!("CARGO_PKG_VERSION").into(),
            allowed_mem: self.spec.allowed_mem,
            reserved_mem: self.spec.reserved_mem.saturating_add(self.listed_bytes),
            parallelism: self.spec.parallelism,
            remote_work: is_remote_url(&self.spec.work_dir),
            arrays: self.arrays.clone(),
            stages,
            publications: self.publications.clone(),
        }
    }

    /// Cuts the drafts into tasks and puts the stages together.
    fn emit(mut self) -> Result<Plan, PlanError> {
        let mut stages: Vec<Stage> = Vec::new();
        for draft in std::mem::take(&mut self.drafts) {
            for stage in self.split(draft) {
                stages.push(stage);
            }
        }
        let mut writer = HashMap::new();
        for (i, stage) in stages.iter().enumerate() {
            stage.outputs.iter().for_each(|o| {
                writer.insert(o.array, StageId(i));
            });
        }
        for (i, stage) in stages.iter_mut().enumerate() {
            let mut after: Vec<StageId> = stage.inputs.iter().flat_map(|i| &i.sources).filter_map(|s| writer.get(s).copied()).collect();
            after.sort_unstable();
            after.dedup();
            stage.after = after;
            stage.name = format!("{}-{i:03}", stage.name);
        }
        Ok(self.as_plan(stages))
    }

    /// The stages of a draft; partial results get arrays of their own.
    fn split(&mut self, draft: Draft) -> Vec<Stage> {
        let Kind::Reduce { axes, folds, .. } = &draft.kind else { return self.cut(&draft) };
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
    fn cut(&self, draft: &Draft) -> Vec<Stage> {
        match &draft.kind {
            Kind::Map { grid } => vec![self.map_stage(draft, grid)],
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
                after: Vec::new(),
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
        Stage {
            name: draft.name.into(),
            kernel: Kernel::Reduce { expr: draft.expr.clone(), folds, axes: axes.clone(), parts: None },
            inputs: draft.inputs.clone(),
            outputs: outputs.collect(),
            tasks: ChunkGrid::new(tasks),
            walk: draft.walk.clone(),
            after: Vec::new(),
        }
    }

    /// How many blocks along each reduced axis one task folds.
    fn reduce_groups(&self, draft: &Draft) -> Vec<u64> {
        let Kind::Reduce { axes, kept, folds, .. } = &draft.kind else { return Vec::new() };
        let counts: Vec<u64> = axes.iter().map(|a| draft.walk.axes()[*a].n_chunks().max(1)).collect();
        let kept_tasks: u64 = kept.iter().map(AxisGrid::n_chunks).product::<u64>().max(1);
        let bytes = |id: &ArrayId| self.arrays[id.0].info.n_bytes();
        let input: u128 = draft.inputs.iter().flat_map(|i| &i.sources).map(bytes).sum();
        let partial: u128 = folds.iter().map(|f| f.accumulator().size() as u128).sum::<u128>() * kept.iter().map(|a| u128::from(a.len())).product::<u128>();
        let by_size = (input / u128::from(kept_tasks)).div_ceil(MAX_TASK_INPUT_BYTES);
        let worth = (input / (PARTIAL_SHARE * partial).max(1)).max(1);
        let by_parallelism = u128::from((TASKS_PER_SLOT * self.spec.parallelism).div_ceil(kept_tasks)).min(worth);
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
            after: Vec::new(),
        };
        // A task may write several chunks where that saves reading a source chunk again and again.
        let plan = self.as_plan(Vec::new());
        let mut groups = vec![1u64; grid.axes().len()];
        let grouped = |groups: &[u64]| ChunkGrid::new(grid.axes().iter().zip(groups).map(|(a, g)| a.group(*g)).collect());
        let mut best = stage(grid.clone());
        let mut reads = self.amplification(&best);
        while reads > 1.05 {
            let mut next: Option<(f64, Vec<u64>, Stage)> = None;
            for d in 0..groups.len() {
                if groups[d] >= grid.axes()[d].n_chunks() {
                    continue;
                }
                let mut trial = groups.clone();
                trial[d] = (2 * trial[d]).min(grid.axes()[d].n_chunks());
                let candidate = stage(grouped(&trial));
                let saved = self.amplification(&candidate);
                let enough = candidate.n_tasks() >= TASKS_PER_SLOT * self.spec.parallelism;
                let fits = || StageLayout::of(&plan, &candidate).is_ok_and(|l| l.estimate.total() <= self.spec.allowed_mem);
                if enough && saved <= reads && next.as_ref().is_none_or(|(r, ..)| saved < *r) && fits() {
                    next = Some((saved, trial, candidate));
                }
            }
            let Some((saved, trial, candidate)) = next else { break };
            (reads, groups, best) = (saved, trial, candidate);
        }
        best
    }

    /// Bytes decoded for each byte used, for the worst input, from the sizes of tasks and source chunks.
    fn amplification(&self, stage: &Stage) -> f64 {
        let ratio = |input: &StageInput| {
            let Some(axes) = input.map.as_image() else { return 1.0 };
            let grid = &self.arrays[input.sources[0].0].info.grid;
            axes.iter()
                .zip(grid.axes())
                .map(|(map, chunks)| match map {
                    AxisMap::Fixed(_) | AxisMap::Gather { .. } => 1.0,
                    AxisMap::Along { axis, start, step } => {
                        let tasks = &stage.tasks.axes()[*axis];
                        if chunks.n_chunks() <= 1 || tasks.is_empty() {
                            return (chunks.len().max(1) as f64 / (tasks.max_extent().max(1) as f64 * step.unsigned_abs() as f64)).max(1.0);
                        }
                        if chunks.nests_in(tasks, 0, 1) && *start == 0 && *step == 1 {
                            return 1.0;
                        }
                        let (task, chunk) = (tasks.max_extent() as f64 * step.unsigned_abs() as f64, chunks.max_extent() as f64);
                        (task + chunk - 1.0) / task
                    }
                })
                .product::<f64>()
        };
        stage.inputs.iter().map(ratio).fold(1.0, f64::max)
    }
}

/// One draft that does what two do, if they walk the same space and share an input.
fn join(a: &Draft, b: &Draft) -> Result<Option<Draft>, PlanError> {
    let kind = match (&a.kind, &b.kind) {
        (Kind::Map { grid: x }, Kind::Map { grid: y }) if x == y => a.kind.clone(),
        (Kind::Reduce { axes, kept, folds, keepdims }, Kind::Reduce { axes: axes_b, kept: kept_b, folds: folds_b, keepdims: keepdims_b })
            if axes == axes_b && kept == kept_b =>
        {
            Kind::Reduce {
                axes: axes.clone(),
                kept: kept.clone(),
                folds: folds.iter().chain(folds_b).copied().collect(),
                keepdims: keepdims.iter().chain(keepdims_b).copied().collect(),
            }
        }
        _ => return Ok(None),
    };
    if a.walk != b.walk || !b.inputs.iter().any(|i| a.inputs.contains(i)) {
        return Ok(None);
    }
    let mut both = Draft { kind, outputs: a.outputs.iter().chain(&b.outputs).copied().collect(), ..a.clone() };
    let bad = |e: freestone_kernels::ExprError| PlanError::Malformed(e.to_string());
    let arguments =
        b.inputs.iter().zip(b.expr.inputs()).map(|(input, dtype)| push_input(&mut both, input.clone(), *dtype)).collect::<Result<Vec<_>, _>>().map_err(bad)?;
    let results = both.expr.append(&b.expr, &arguments).map_err(bad)?;
    both.expr.add_results(&results);
    Ok(Some(both))
}

fn name_of(node: &NodeRef) -> &'static str {
    match &node.op {
        Op::Reduce { fold, finish, .. } => match (fold, finish) {
            (_, Finish::Mean { .. }) => "mean",
            (_, Finish::Var { root: true, .. }) => "std",
            (ReduceOp::Sum, _) => "sum",
            (ReduceOp::Prod, _) => "prod",
            (ReduceOp::Min, _) => "min",
            (ReduceOp::Max, _) => "max",
            (ReduceOp::Argmin, _) => "argmin",
            (ReduceOp::Argmax, _) => "argmax",
            (ReduceOp::Var, _) => "var",
        },
        Op::Rechunk(_) => "rechunk",
        Op::User(user) => user.name,
        Op::Map { .. } => "map",
        Op::View { .. } | Op::Stored(_) => "copy",
        Op::Constant(_) | Op::Generate(_) => "create",
    }
}
