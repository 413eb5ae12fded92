//! From a graph to stages.
//!
//! Only what must be stored becomes an array of its own: outputs, reductions, rechunks. Everything
//! else is folded into who reads it: a chain of views into one read map, a tree of elementwise
//! functions into one expression, and stages that walk the same space over common inputs into one
//! stage with several outputs.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use freestone_kernels::Expr;
use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};
use serde_json::Value;

use super::inline::push_input;
use super::{
    ArrayId, FORMAT, FinalizedPlan, Mode, Place, Plan, PlanArray, PlanError, Publication,
    Repositories, Scope, Stage, StageId, StageInput, StageLayout, to_hex,
};
use crate::graph::{Node, NodeRef, Op};
use crate::grid::{AxisGrid, ChunkGrid};
use crate::memory::size;
use crate::readmap::ReadMap;
use crate::spec::Spec;
use crate::stages::AnyDraft;
use crate::stages::map::MapDraft;
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

/// A stage that makes so many outputs is not joined with further drafts.
const MAX_JOINED: usize = 64;
/// A draft that does not fit beside so many others is not tried with further ones.
const MAX_TRIED: usize = 64;

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
        return Err(PlanError::BadOutput(
            "there is nothing to compute: name at least one array to store".into(),
        ));
    }
    spec.codec.check()?;
    check_places(outputs, &collect(outputs.iter())?)?;
    let order = collect(outputs.iter().filter(|o| o.mode != Mode::Metadata))?;
    let mut lowering = Lowering::new(spec, listed_bytes(&order));
    lowering.mark(&order);
    for output in outputs {
        lowering.add_output(output);
    }
    for node in &order {
        if lowering.stored.contains_key(&key(node)) || lowering.materialise.contains_key(&key(node))
        {
            lowering.add_intermediate(node);
        }
    }
    let mut roots: HashMap<*const Node, Vec<ArrayId>> = HashMap::new();
    for (node, array) in &lowering.roots {
        roots.entry(key(node)).or_default().push(*array);
    }
    // Roots in the order in which they can run.
    for node in &order {
        let mut targets = roots.remove(&key(node)).unwrap_or_default();
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

pub(crate) fn key(node: &NodeRef) -> *const Node {
    Arc::as_ptr(node)
}

/// Kernels of users that the graph has, so that this process finds them.
///
/// # Errors
/// Where the graph is none.
pub fn kernels_of(outputs: &[Output]) -> Result<KernelRegistry, PlanError> {
    let mut kernels = KernelRegistry::new();
    for node in collect(outputs.iter())? {
        if let Op::Staged(op) = &node.op {
            op.kind().register(&mut kernels);
        }
    }
    Ok(kernels)
}

/// Two outputs at one place, or one inside the other, or over an input.
fn check_places(outputs: &[Output], order: &[NodeRef]) -> Result<(), PlanError> {
    let place = |url: &str, path: &str| identity(url, path) + "/";
    let mut all: Vec<(String, usize)> =
        outputs.iter().enumerate().map(|(i, o)| (place(&o.url, &o.path), i)).collect();
    // Whatever a place holds comes right behind it.
    all.sort();
    if let Some(pair) = all.windows(2).find(|pair| pair[1].0.starts_with(&pair[0].0)) {
        let (first, second) =
            if pair[0].1 < pair[1].1 { (&pair[0].0, &pair[1].0) } else { (&pair[1].0, &pair[0].0) };
        return Err(PlanError::BadOutput(format!(
            "two results would be stored at {} and {}: give each a place of its own",
            first.trim_end_matches('/'),
            second.trim_end_matches('/')
        )));
    }
    for node in order {
        if let Op::Stored(array) = &node.op {
            let input = place(array.store.url(), &array.path);
            // The output that the input could be in, and the one that could be in the input.
            let at = all.partition_point(|(o, _)| *o <= input);
            let around = at.checked_sub(1).into_iter().chain([at]).filter_map(|i| all.get(i));
            if let Some((out, _)) = around
                .into_iter()
                .find(|(o, _)| input.starts_with(o.as_str()) || o.starts_with(&input))
            {
                return Err(PlanError::BadOutput(format!(
                    "the result at {} would replace {}, which it is computed from: store it \
                        elsewhere",
                    out.trim_end_matches('/'),
                    input.trim_end_matches('/')
                )));
            }
        }
    }
    Ok(())
}

/// The ancestors of the outputs as a graph, in an order in which each comes after its inputs.
fn collect<'a>(
    outputs: impl DoubleEndedIterator<Item = &'a Output>,
) -> Result<Vec<NodeRef>, PlanError> {
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
            graph.add_edge(from, to, ());
        }
    }
    let order = toposort(&graph, None)
        .map_err(|_| PlanError::Malformed("an array is computed from itself".into()))?;
    Ok(order.into_iter().map(|i| Arc::clone(&graph[i])).collect())
}

/// Bytes of the lists of indices in a graph: who made the plan holds them while it runs, also those
/// that no stage needs any more.
fn listed_bytes(nodes: &[NodeRef]) -> u64 {
    let of = |node: &NodeRef| {
        if let Op::View { map, .. } = &node.op { map.n_indices() * size_of::<u64>() } else { 0 }
    };
    nodes.iter().map(|n| of(n) as u64).sum()
}

/// A stage before its tasks are cut.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) name: &'static str,
    pub(crate) kind: AnyDraft,
    pub(crate) expr: Expr,
    pub(crate) inputs: Vec<StageInput>,
    pub(crate) outputs: Vec<ArrayId>,
    /// Blocks in which the iteration space is walked.
    pub(crate) walk: ChunkGrid,
}

impl Draft {
    /// A draft without inputs.
    pub(crate) fn new(
        name: &'static str,
        kind: AnyDraft,
        target: ArrayId,
        walk: ChunkGrid,
    ) -> Draft {
        Draft {
            name,
            kind,
            expr: Expr::new(Vec::new()),
            inputs: Vec::new(),
            outputs: vec![target],
            walk,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Lowering<'a> {
    pub(crate) spec: &'a Spec,
    /// What the graph itself holds, in lists of indices.
    listed_bytes: u64,
    pub(crate) arrays: Vec<PlanArray>,
    repositories: Repositories,
    publications: Vec<Publication>,
    /// Nodes that have an array.
    pub(crate) stored: HashMap<*const Node, ArrayId>,
    /// Nodes that must get one, and why.
    pub(crate) materialise: HashMap<*const Node, &'static str>,
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
            repositories: Repositories::default(),
            publications: Vec::new(),
            stored: HashMap::new(),
            materialise: HashMap::new(),
            remarks: Vec::new(),
            roots: Vec::new(),
            drafts: Vec::new(),
        }
    }

    fn add_output(&mut self, output: &Output) {
        let id = self.add(PlanArray {
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
        // What is stored anyway is read back by others instead of being stored twice. A user's
        // kernel writes its own blocks only.
        let as_it_is = !matches!(&output.node.op, Op::Staged(op) if !op.kind().is_readable_from(&output.node, &output.info.objects()));
        if as_it_is && self.materialise.contains_key(&key(&output.node)) {
            self.stored.entry(key(&output.node)).or_insert(id);
        }
    }

    fn add_intermediate(&mut self, node: &NodeRef) {
        if self.stored.contains_key(&key(node)) {
            return;
        }
        let id = ArrayId(self.arrays.len());
        let name = format!("{}-{:03}", node.name(), id.0);
        if let Some(why) = self.materialise.get(&key(node)) {
            self.remark(id, format!("`{name}` is stored in between: {why}"));
        }
        self.add(PlanArray {
            name,
            info: ArrayInfo::intermediate(node.dtype, node.grid.clone(), self.spec.codec),
            place: Place::Work,
        });
        self.stored.insert(key(node), id);
        self.roots.push((Arc::clone(node), id));
    }

    /// Says something of the stage that writes an array.
    pub(crate) fn remark(&mut self, array: ArrayId, note: String) {
        self.remarks.push((array, note));
    }

    /// The array of a node that is not computed.
    pub(crate) fn leaf(&mut self, node: &NodeRef) -> Result<ArrayId, PlanError> {
        if let Some(id) = self.stored.get(&key(node)) {
            return Ok(*id);
        }
        let id = ArrayId(self.arrays.len());
        let own = |grid: &ChunkGrid| {
            ArrayInfo::intermediate(node.dtype, grid.clone(), crate::storage::CodecName::None)
        };
        let array = match &node.op {
            Op::Stored(array) => PlanArray {
                name: if array.path.is_empty() {
                    array.store.url().rsplit('/').next().unwrap_or_default().to_owned()
                } else {
                    array.path.clone()
                },
                info: array.info.clone(),
                place: Place::Input {
                    url: array.store.url().to_owned(),
                    path: array.path.clone(),
                    tag: array.tag.clone(),
                },
            },
            Op::Constant(values) if values.len() > MAX_CONSTANT_BYTES => {
                return Err(PlanError::BadOutput(format!(
                    "an array of {} bytes from the program's memory is too large for a plan: store \
                        it first",
                    values.len()
                )));
            }
            Op::Constant(values) => {
                let shape = node.shape();
                let whole =
                    ChunkGrid::new(shape.iter().map(|n| AxisGrid::regular(*n, *n)).collect());
                PlanArray {
                    name: format!("constant-{:03}", id.0),
                    info: own(&whole),
                    place: Place::Constant(to_hex(values.bytes())),
                }
            }
            Op::Generate(what) => PlanArray {
                name: format!("generated-{:03}", id.0),
                info: own(&node.grid),
                place: Place::Generated(what.clone()),
            },
            _ => {
                return Err(PlanError::Malformed(
                    "a computed array is read before it is stored".into(),
                ));
            }
        };
        self.add(array);
        self.stored.insert(key(node), id);
        Ok(id)
    }

    /// Drafts the stage that computes a node.
    fn lower_root(&mut self, root: &NodeRef, target: ArrayId) -> Result<(), PlanError> {
        let staged =
            if let Op::Staged(op) = &root.op { op.kind().draft(root, target, self)? } else { None };
        let draft = match staged {
            Some(draft) => draft,
            None => {
                let grid = self.arrays[target.0].info.objects();
                let draft = Draft::new(
                    root.name(),
                    AnyDraft::Map(MapDraft { grid: grid.clone() }),
                    target,
                    grid,
                );
                match &root.op {
                    Op::Rechunk(input) => self.draft_of(input, draft)?,
                    Op::Staged(_) => self.draft_of(root, draft)?,
                    // Compute the node itself instead of copying the array that other nodes read it
                    // from.
                    _ => {
                        let own = self.stored.remove(&key(root));
                        let draft = self.draft_of(root, draft);
                        if let Some(id) = own {
                            self.stored.insert(key(root), id);
                        }
                        draft?
                    }
                }
            }
        };
        self.drafts.push(draft);
        Ok(())
    }

    /// The draft with the values of a node as its result.
    pub(crate) fn draft_of(&mut self, node: &NodeRef, draft: Draft) -> Result<Draft, PlanError> {
        self.draft_over(node, &ReadMap::identity(&node.shape()), draft)
    }

    /// The same, of a node at its image under a map.
    pub(crate) fn draft_over(
        &mut self,
        node: &NodeRef,
        map: &ReadMap,
        mut draft: Draft,
    ) -> Result<Draft, PlanError> {
        let result = self.inline(node, map, &mut draft)?;
        draft.expr.add_results(&[result]);
        Ok(draft)
    }

    /// True if an array is the one that others read a node from.
    pub(crate) fn is_read_from(&self, node: &NodeRef, array: ArrayId) -> bool {
        self.stored.get(&key(node)) == Some(&array)
    }

    /// Adds an array.
    pub(crate) fn add(&mut self, array: PlanArray) -> ArrayId {
        self.repositories.add(&array);
        self.arrays.push(array);
        ArrayId(self.arrays.len() - 1)
    }

    /// The arrays so far, and the limits.
    pub(crate) fn scope(&self) -> Scope<'_> {
        let repository_mem = self.repositories.bytes();
        Scope {
            arrays: &self.arrays,
            remote_work: is_remote_url(&self.spec.work_dir),
            growth_mem: self.spec.growth_mem(),
            process_mem: self.reserved_mem().saturating_add(repository_mem),
            repository_mem,
        }
    }

    fn reserved_mem(&self) -> u64 {
        self.spec.reserved_mem.saturating_add(self.listed_bytes)
    }

    /// Joins drafts that walk one space over common inputs, where memory allows.
    fn fuse_siblings(&mut self) -> Result<(), PlanError> {
        let mut fused: Vec<Draft> = Vec::new();
        // Places among these of the drafts that write, and of those that read, an array.
        let mut writers: HashMap<ArrayId, usize> = HashMap::new();
        let mut readers: HashMap<(ArrayId, ChunkGrid), Vec<usize>> = HashMap::new();
        for draft in std::mem::take(&mut self.drafts) {
            let inputs = draft.inputs.iter().chain(draft.kind.kind().more_inputs());
            let reads: BTreeSet<ArrayId> = inputs.flat_map(arrays_of).collect();
            // A draft may join any earlier one after which nothing comes that it waits for.
            let first = reads.iter().filter_map(|id| writers.get(id)).max().map_or(0, |i| i + 1);
            let shared: BTreeSet<usize> = draft
                .inputs
                .iter()
                .flat_map(arrays_of)
                .filter_map(|id| readers.get(&(id, draft.walk.clone())))
                .flatten()
                .copied()
                .collect();
            let (mut joined, mut too_large, mut tried) = (None, None, 0);
            for at in shared.range(first..).copied() {
                let other = &fused[at];
                if other.outputs.len() < MAX_JOINED
                    && let Some(both) = join(other, &draft)?
                    && let Some(stage) = both.kind.kind().joined_stage(&both, self)
                {
                    let needs = StageLayout::of(self.scope(), &stage)
                        .map_or(u64::MAX, |l| l.estimate.total());
                    if needs <= self.spec.allowed_mem {
                        joined = Some((at, both));
                        break;
                    }
                    too_large.get_or_insert((other.outputs[0], needs));
                    tried += 1;
                    if tried == MAX_TRIED {
                        break;
                    }
                }
            }
            let place = joined.as_ref().map_or(fused.len(), |(at, _)| *at);
            writers.extend(draft.outputs.iter().map(|id| (*id, place)));
            for id in reads {
                let places = readers.entry((id, draft.walk.clone())).or_default();
                if places.last() != Some(&place) {
                    places.push(place);
                }
            }
            match joined {
                Some((at, both)) => fused[at] = both,
                None => {
                    if let Some((other, needs)) = too_large {
                        let name = &self.arrays[other.0].name;
                        let note = format!(
                            "walks the blocks of `{name}` again: in one stage, a task would need \
                                {}, over allowed_mem",
                            size(needs)
                        );
                        self.remark(draft.outputs[0], note);
                    }
                    fused.push(draft);
                }
            }
        }
        self.drafts = fused;
        Ok(())
    }

    fn into_plan(self, stages: Vec<Stage>) -> Plan {
        Plan {
            format: FORMAT,
            engine: env!("CARGO_PKG_VERSION").into(),
            allowed_mem: self.spec.allowed_mem,
            growth_mem: self.spec.growth_mem(),
            reserved_mem: self.reserved_mem(),
            parallelism: self.spec.parallelism,
            remote_work: is_remote_url(&self.spec.work_dir),
            arrays: self.arrays,
            stages,
            publications: self.publications,
        }
    }

    /// Cuts the drafts into tasks and puts the stages together.
    fn emit(mut self) -> Result<Plan, PlanError> {
        let mut stages: Vec<Stage> = Vec::new();
        for draft in std::mem::take(&mut self.drafts) {
            stages.extend(draft.kind.kind().stages(&draft, &mut self));
        }
        let mut writer = HashMap::new();
        for (i, stage) in stages.iter().enumerate() {
            stage.outputs.iter().for_each(|o| {
                writer.insert(o.array, StageId(i));
            });
        }
        for (i, stage) in stages.iter_mut().enumerate() {
            let mut after: Vec<StageId> = stage
                .inputs
                .iter()
                .flat_map(|i| &i.sources)
                .filter_map(|s| writer.get(s).copied())
                .collect();
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
        Ok(self.into_plan(stages))
    }
}

/// The arrays that an input reads; a number of no array for one that reads none.
fn arrays_of(input: &StageInput) -> Vec<ArrayId> {
    if input.sources.is_empty() { vec![ArrayId(usize::MAX)] } else { input.sources.clone() }
}

/// One draft that does what two do, if they walk the same space and share an input.
fn join(a: &Draft, b: &Draft) -> Result<Option<Draft>, PlanError> {
    if a.walk != b.walk || !b.inputs.iter().any(|i| a.inputs.contains(i)) {
        return Ok(None);
    }
    let Some(kind) = a.kind.join(&b.kind) else { return Ok(None) };
    let mut both =
        Draft { kind, outputs: a.outputs.iter().chain(&b.outputs).copied().collect(), ..a.clone() };
    let bad = |e: freestone_kernels::ExprError| PlanError::Malformed(e.to_string());
    let arguments = b
        .inputs
        .iter()
        .zip(b.expr.inputs())
        .map(|(input, dtype)| push_input(&mut both, input.clone(), *dtype))
        .collect::<Result<Vec<_>, _>>()
        .map_err(bad)?;
    let results = both.expr.append(&b.expr, &arguments).map_err(bad)?;
    both.expr.add_results(&results);
    Ok(Some(both))
}
