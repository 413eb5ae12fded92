//! From a graph to stages.
//!
//! Only what must be stored becomes an array of its own: outputs, reductions, rechunks. Everything else is folded into
//! who reads it: a chain of views into one read map, a tree of elementwise functions into one expression, and stages that
//! walk the same space over common inputs into one stage with several outputs.

use std::collections::HashMap;
use std::sync::Arc;

use freestone_kernels::reduce::Finish;
use freestone_kernels::{Expr, ReduceOp, ScanOp};
use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};
use serde_json::Value;

use super::inline::{Memo, push_input};
use super::{
    ArrayId, FORMAT, FinalizedPlan, Fold, Kernel, Mode, Place, Plan, PlanArray, PlanError, Publication, Stage, StageId, StageInput, StageLayout, UserBlocks,
    to_hex,
};
use crate::graph::{ContractNode, Node, NodeRef, Op, UserNode};
use crate::grid::{AxisGrid, ChunkGrid};
use crate::memory::size;
use crate::readmap::ReadMap;
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

/// No more than so many notes are made of a stage.
const MAX_NOTES: usize = 6;

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
    spec.codec.check()?;
    check_places(outputs)?;
    let order = collect(outputs.iter().filter(|o| o.mode != Mode::Metadata))?;
    let mut lowering = Lowering::new(spec, listed_bytes(&order));
    lowering.mark(&order);
    for output in outputs {
        lowering.add_output(output);
    }
    for node in &order {
        if lowering.stored.contains_key(&key(node)) || lowering.materialise.contains_key(&key(node)) {
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
    /// Over the output's index space, chunk after chunk along an axis.
    Scan { op: ScanOp, axis: usize, grid: ChunkGrid },
    /// Over the indices that stay and those that are summed over; `grid` cuts the output. The draft's own expression and first inputs are
    /// the left operand.
    Contract { rhs: Expr, rhs_inputs: Vec<StageInput>, batch: usize, free: [usize; 2], grid: ChunkGrid },
    /// Over the output's blocks.
    User { kernel: Kernel },
}

impl Kind {
    /// Inputs that are not the draft's own.
    fn more_inputs(&self) -> &[StageInput] {
        if let Kind::Contract { rhs_inputs, .. } = self { rhs_inputs } else { &[] }
    }
}

pub(super) struct Lowering<'a> {
    pub(super) spec: &'a Spec,
    /// What the graph itself holds, in lists of indices.
    listed_bytes: u64,
    pub(super) arrays: Vec<PlanArray>,
    publications: Vec<Publication>,
    /// Nodes that have an array.
    pub(super) stored: HashMap<*const Node, ArrayId>,
    /// Nodes that must get one, and why.
    pub(super) materialise: HashMap<*const Node, &'static str>,
    /// Nodes to compute, and where to.
    roots: Vec<(NodeRef, ArrayId)>,
    drafts: Vec<Draft>,
    /// What there is to say of the stages that write these arrays.
    remarks: Vec<(ArrayId, String)>,
}

impl<'a> Lowering<'a> {
    fn new(spec: &'a Spec, listed_bytes: u64) -> Lowering<'a> {
        Lowering {
            spec,
            listed_bytes,
            arrays: Vec::new(),
            publications: Vec::new(),
            stored: HashMap::new(),
            materialise: HashMap::new(),
            remarks: Vec::new(),
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
        if as_it_is && self.materialise.contains_key(&key(&output.node)) {
            self.stored.entry(key(&output.node)).or_insert(id);
        }
    }

    fn add_intermediate(&mut self, node: &NodeRef) {
        if self.stored.contains_key(&key(node)) {
            return;
        }
        let id = ArrayId(self.arrays.len());
        let name = format!("{}-{:03}", name_of(node), id.0);
        if let Some(why) = self.materialise.get(&key(node)) {
            self.remark(id, format!("`{name}` is stored in between: {why}"));
        }
        self.arrays.push(PlanArray { name, info: ArrayInfo::intermediate(node.dtype, node.grid.clone(), self.spec.codec), place: Place::Work });
        self.stored.insert(key(node), id);
        self.roots.push((Arc::clone(node), id));
    }

    /// Says something of the stage that writes an array.
    pub(super) fn remark(&mut self, array: ArrayId, note: String) {
        self.remarks.push((array, note));
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
        if let Op::Contract(contract) = &root.op {
            return self.lower_contract(root, contract, target);
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
            Op::Scan { input, op, axis } => (Kind::Scan { op: *op, axis: *axis, grid: grid.clone() }, Arc::clone(input), grid),
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

    fn lower_contract(&mut self, root: &NodeRef, contract: &ContractNode, target: ArrayId) -> Result<(), PlanError> {
        let grid = self.arrays[target.0].info.objects();
        let [lhs, rhs] = &contract.operands;
        // Along the axes that are summed over, blocks are cut where the larger operand's chunks are.
        let larger = if n_bytes(lhs) >= n_bytes(rhs) { (lhs, contract.batch + contract.free[0]) } else { (rhs, contract.batch + contract.free[1]) };
        let walk = ChunkGrid::new(grid.axes().iter().chain(&larger.0.grid.axes()[larger.1..]).cloned().collect());
        let kind = Kind::Contract { rhs: Expr::new(Vec::new()), rhs_inputs: Vec::new(), batch: contract.batch, free: contract.free, grid };
        let mut drafts = Vec::with_capacity(2);
        for (o, operand) in contract.operands.iter().enumerate() {
            let (kind, walk) = (kind.clone(), walk.clone());
            let mut draft = Draft { name: name_of(root), kind, expr: Expr::new(Vec::new()), inputs: Vec::new(), outputs: vec![target], walk };
            let result = self.inline(operand, &contract.map(o), &mut draft, &mut Memo::new())?;
            draft.expr.add_results(&[result]);
            drafts.push(draft);
        }
        let (Some(right), Some(mut draft)) = (drafts.pop(), drafts.pop()) else { return Ok(()) };
        if let Kind::Contract { rhs, rhs_inputs, .. } = &mut draft.kind {
            (*rhs, *rhs_inputs) = (right.expr, right.inputs);
        }
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
            let reads: Vec<ArrayId> = draft.inputs.iter().chain(draft.kind.more_inputs()).flat_map(|i| i.sources.clone()).collect();
            // A draft may join any earlier one after which nothing comes that it waits for.
            let first = fused.iter().rposition(|f| f.outputs.iter().any(|o| reads.contains(o))).map_or(0, |i| i + 1);
            let (mut joined, mut too_large) = (None, None);
            for (at, other) in fused.iter().enumerate().skip(first) {
                if let Some(both) = join(other, &draft)? {
                    let plan = self.as_plan(Vec::new());
                    let needs = self.cut(&both).iter().map(|s| StageLayout::of(&plan, s).map_or(u64::MAX, |l| l.estimate.total())).max().unwrap_or(0);
                    if needs <= self.spec.allowed_mem {
                        joined = Some((at, both));
                        break;
                    }
                    too_large.get_or_insert((other.outputs[0], needs));
                }
            }
            match joined {
                Some((at, both)) => fused[at] = both,
                None => {
                    if let Some((other, needs)) = too_large {
                        let name = &self.arrays[other.0].name;
                        let note = format!("walks the blocks of `{name}` again: in one stage, a task would need {}, over allowed_mem", size(needs));
                        self.remark(draft.outputs[0], note);
                    }
                    fused.push(draft);
                }
            }
        }
        self.drafts = fused;
        Ok(())
    }

    pub(super) fn as_plan(&self, stages: Vec<Stage>) -> Plan {
        Plan {
            format: FORMAT,
            engine: env!("CARGO_PKG_VERSION").into(),
            allowed_mem: self.spec.allowed_mem,
            growth_mem: self.spec.growth_mem(),
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
        for (array, note) in std::mem::take(&mut self.remarks) {
            if let Some(StageId(i)) = writer.get(&array)
                && stages[*i].notes.len() < MAX_NOTES
            {
                stages[*i].notes.push(note);
            }
        }
        Ok(self.as_plan(stages))
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

/// Number of uncompressed bytes.
fn n_bytes(node: &NodeRef) -> u128 {
    node.shape().iter().map(|n| u128::from(*n)).product::<u128>() * node.dtype.size() as u128
}

fn name_of(node: &NodeRef) -> &'static str {
    match &node.op {
        Op::Reduce { fold, finish, .. } => fold_name(*fold, finish),
        Op::Scan { op: ScanOp::Sum, .. } => "cumulative-sum",
        Op::Scan { op: ScanOp::Prod, .. } => "cumulative-prod",
        Op::Contract(_) => "matmul",
        Op::Rechunk(_) => "rechunk",
        Op::User(user) => user.name,
        Op::Map { .. } => "map",
        Op::View { .. } | Op::Stored(_) => "copy",
        Op::Constant(_) | Op::Generate(_) => "create",
    }
}

/// What a fold is called.
pub(super) fn fold_name(fold: ReduceOp, finish: &Finish) -> &'static str {
    match (fold, finish) {
        (_, Finish::Mean { .. }) => "mean",
        (_, Finish::Var { root: true, .. }) => "std",
        (ReduceOp::Sum, _) => "sum",
        (ReduceOp::Prod, _) => "prod",
        (ReduceOp::Min, _) => "min",
        (ReduceOp::Max, _) => "max",
        (ReduceOp::Argmin, _) => "argmin",
        (ReduceOp::Argmax, _) => "argmax",
        (ReduceOp::Var, _) => "var",
    }
}
