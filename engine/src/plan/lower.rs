//! Lowering of a graph to stages.
//!
//! Only outputs, reductions and rechunks get arrays of their own. All other nodes are folded into
//! their readers: a chain of views into one read map, and a tree of elementwise functions into one
//! expression. Stages that read the same blocks of common inputs become one stage with several
//! outputs (`join`).

mod join;
mod places;

use std::collections::HashMap;
use std::sync::Arc;

use freestone_kernels::Expr;
use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};
use serde_json::Value;

use super::{
    ArrayId, ENGINE, FORMAT, FinalizedPlan, Mode, Place, Plan, PlanArray, PlanError, Publication,
    Repositories, Scope, Stage, StageId, StageInput, malformed, to_hex,
};
use crate::graph::{Node, NodeRef, Op};
use crate::grid::{AxisGrid, ChunkGrid};
use crate::readmap::ReadMap;
use crate::spec::Spec;
use crate::stages::AnyDraft;
use crate::stages::map::MapDraft;
use crate::storage::array::ArrayInfo;
use crate::storage::{CodecName, Stores, is_remote_url};
use crate::user::KernelRegistry;

use places::check_places;

/// An array to compute, with its location.
#[derive(Clone, Debug)]
pub struct Output {
    /// The array to compute.
    pub node: NodeRef,
    /// The display name.
    pub name: String,
    /// The URL of the store.
    pub url: String,
    /// The path of the array in the store.
    pub path: String,
    /// The chunk grid and encoding. Shape and dtype are those of the node.
    pub info: ArrayInfo,
    /// The `zarr.json` of the array.
    pub document: Value,
    /// The `zarr.json` of the parent group.
    pub group: Option<Value>,
    /// True if an existing array or group may be replaced.
    pub overwrite: bool,
    /// The part of the array that the run writes.
    pub mode: Mode,
    /// True if the parent group gets consolidated metadata.
    pub consolidated: bool,
}

/// The maximum size of values that are embedded in a plan.
const MAX_CONSTANT_BYTES: usize = 1_000_000;

/// The maximum number of notes that lowering adds to a stage.
const MAX_NOTES: usize = 6;

/// Lowers outputs to a checked plan.
///
/// Cost: a few microseconds per node, independent of the number of chunks.
///
/// # Errors
/// Returns an error if a stage exceeds `spec.allowed_mem`, or if the outputs are inconsistent.
pub fn lower(outputs: &[Output], spec: &Spec) -> Result<FinalizedPlan, PlanError> {
    if outputs.is_empty() {
        return Err(PlanError::BadOutput(
            "no outputs to compute (hint: name at least one array to store)".into(),
        ));
    }
    spec.codec.check()?;
    check_places(outputs, &collect(outputs.iter())?)?;
    let order = collect(outputs.iter().filter(|o| o.mode != Mode::Metadata))?;
    let mut lowering = Lowering::new(spec, index_list_bytes(&order));
    lowering.mark(&order);
    for output in outputs {
        lowering.add_output(output);
    }
    for node in &order {
        if lowering.stored.contains_key(&key(node))
            || lowering.materialized.contains_key(&key(node))
        {
            lowering.add_intermediate(node);
        }
    }
    let mut roots: HashMap<*const Node, Vec<ArrayId>> = HashMap::new();
    for (node, array) in &lowering.roots {
        roots.entry(key(node)).or_default().push(*array);
    }
    // Lower the roots in topological order.
    for node in &order {
        let mut targets = roots.remove(&key(node)).unwrap_or_default();
        // The array from which other nodes read comes first, because other outputs may copy it.
        targets.sort_by_key(|t| lowering.stored.get(&key(node)) != Some(t));
        for target in targets {
            lowering.lower_root(node, target)?;
        }
    }
    lowering.join_siblings()?;
    lowering.assemble().finalize()
}

/// Returns the stores in which the graph's arrays were opened, so that a run finds stores in
/// memory.
///
/// # Errors
/// Returns an error if the graph has a cycle.
pub fn stores_of(outputs: &[Output]) -> Result<Stores, PlanError> {
    let stores = Stores::default();
    for node in collect(outputs.iter())? {
        if let Op::Stored(array) = &node.op {
            stores.insert(Arc::clone(&array.store));
        }
    }
    Ok(stores)
}

/// Returns the identity of a node.
pub(crate) fn key(node: &NodeRef) -> *const Node {
    Arc::as_ptr(node)
}

/// Returns the user kernels of the graph, so that this process can resolve them.
///
/// # Errors
/// Returns an error if the graph has a cycle.
pub fn kernels_of(outputs: &[Output]) -> Result<KernelRegistry, PlanError> {
    let mut kernels = KernelRegistry::new();
    for node in collect(outputs.iter())? {
        if let Op::Staged(op) = &node.op {
            op.kind().register(&mut kernels);
        }
    }
    Ok(kernels)
}

/// Returns the ancestors of the outputs in topological order.
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
    let order = toposort(&graph, None).map_err(|_| malformed("the graph has a cycle"))?;
    Ok(order.into_iter().map(|i| Arc::clone(&graph[i])).collect())
}

/// Returns the bytes of the index lists of a graph. The process that created the graph holds them
/// during the run, including lists that no stage uses.
fn index_list_bytes(nodes: &[NodeRef]) -> u64 {
    let of = |node: &NodeRef| {
        if let Op::View { map, .. } = &node.op { map.n_indices() * size_of::<u64>() } else { 0 }
    };
    nodes.iter().map(|n| of(n) as u64).sum()
}

/// A stage before its division into tasks.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) name: &'static str,
    pub(crate) kind: AnyDraft,
    pub(crate) expr: Expr,
    pub(crate) inputs: Vec<StageInput>,
    pub(crate) outputs: Vec<ArrayId>,
    /// The grid of blocks by which the iteration space is processed.
    pub(crate) blocks: ChunkGrid,
}

impl Draft {
    /// Returns a draft without inputs.
    pub(crate) fn new(
        name: &'static str,
        kind: AnyDraft,
        target: ArrayId,
        blocks: ChunkGrid,
    ) -> Draft {
        Draft {
            name,
            kind,
            expr: Expr::new(Vec::new()),
            inputs: Vec::new(),
            outputs: vec![target],
            blocks,
        }
    }
}

/// A lowering in progress.
#[derive(Debug)]
pub(crate) struct Lowering<'a> {
    pub(crate) spec: &'a Spec,
    /// The bytes of the graph's index lists.
    index_list_bytes: u64,
    pub(crate) arrays: Vec<PlanArray>,
    repositories: Repositories,
    publications: Vec<Publication>,
    /// The arrays of nodes that have one.
    pub(crate) stored: HashMap<*const Node, ArrayId>,
    /// The nodes that need an array, with the reason.
    pub(crate) materialized: HashMap<*const Node, &'static str>,
    /// The nodes to compute, with their arrays.
    roots: Vec<(NodeRef, ArrayId)>,
    drafts: Vec<Draft>,
    /// The notes about the stages that write these arrays.
    notes: Vec<(ArrayId, String)>,
}

impl<'a> Lowering<'a> {
    fn new(spec: &'a Spec, index_list_bytes: u64) -> Lowering<'a> {
        Lowering {
            spec,
            index_list_bytes,
            arrays: Vec::new(),
            repositories: Repositories::default(),
            publications: Vec::new(),
            stored: HashMap::new(),
            materialized: HashMap::new(),
            notes: Vec::new(),
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
        // Other nodes read the output instead of a second array, unless the output's chunks differ
        // from the blocks that a user kernel writes.
        let objects = output.info.objects();
        let is_readable = match &output.node.op {
            Op::Staged(op) => op.kind().is_readable_from(&output.node, &objects),
            _ => true,
        };
        if is_readable && self.materialized.contains_key(&key(&output.node)) {
            self.stored.entry(key(&output.node)).or_insert(id);
        }
    }

    fn add_intermediate(&mut self, node: &NodeRef) {
        if self.stored.contains_key(&key(node)) {
            return;
        }
        let id = ArrayId(self.arrays.len());
        let name = format!("{}-{:03}", node.name(), id.0);
        if let Some(reason) = self.materialized.get(&key(node)) {
            self.add_note(id, format!("`{name}` is an intermediate array: {reason}"));
        }
        self.add(PlanArray {
            name,
            info: ArrayInfo::intermediate(node.dtype, node.grid.clone(), self.spec.codec),
            place: Place::Work,
        });
        self.stored.insert(key(node), id);
        self.roots.push((Arc::clone(node), id));
    }

    /// Adds a note about the stage that writes an array.
    pub(crate) fn add_note(&mut self, array: ArrayId, note: String) {
        self.notes.push((array, note));
    }

    /// Returns the array of a node that is not computed.
    pub(crate) fn leaf(&mut self, node: &NodeRef) -> Result<ArrayId, PlanError> {
        if let Some(id) = self.stored.get(&key(node)) {
            return Ok(*id);
        }
        let id = ArrayId(self.arrays.len());
        let array = leaf_array(node, id)?;
        self.add(array);
        self.stored.insert(key(node), id);
        Ok(id)
    }

    /// Drafts the stage that computes a node into an array.
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

    /// Returns the draft with the values of a node as its result.
    pub(crate) fn draft_of(&mut self, node: &NodeRef, draft: Draft) -> Result<Draft, PlanError> {
        self.draft_over(node, &ReadMap::identity(&node.shape()), draft)
    }

    /// Returns the draft with the values of a node at its image under a map as its result.
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

    /// Returns true if other nodes read a node from this array.
    pub(crate) fn is_read_from(&self, node: &NodeRef, array: ArrayId) -> bool {
        self.stored.get(&key(node)) == Some(&array)
    }

    /// Adds an array and returns its id.
    pub(crate) fn add(&mut self, array: PlanArray) -> ArrayId {
        self.repositories.add(&array);
        self.arrays.push(array);
        ArrayId(self.arrays.len() - 1)
    }

    /// Returns the arrays so far and the limits.
    pub(crate) fn scope(&self) -> Scope<'_> {
        let repository_mem = self.repositories.bytes();
        Scope {
            arrays: &self.arrays,
            remote_work: is_remote_url(&self.spec.work_dir),
            soft_mem: self.spec.soft_mem(),
            parallelism: self.spec.parallelism,
            process_mem: self.reserved_mem().saturating_add(repository_mem),
            repository_mem,
        }
    }

    fn reserved_mem(&self) -> u64 {
        self.spec.reserved_mem.saturating_add(self.index_list_bytes)
    }

    fn into_plan(self, stages: Vec<Stage>) -> Plan {
        Plan {
            format: FORMAT,
            engine: ENGINE.to_owned(),
            allowed_mem: self.spec.allowed_mem,
            soft_mem: self.spec.soft_mem(),
            reserved_mem: self.reserved_mem(),
            parallelism: self.spec.parallelism,
            remote_work: is_remote_url(&self.spec.work_dir),
            arrays: self.arrays,
            stages,
            publications: self.publications,
        }
    }

    /// Divides the drafts into tasks and assembles the plan.
    fn assemble(mut self) -> Plan {
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
        for (array, note) in std::mem::take(&mut self.notes) {
            if let Some(StageId(i)) = writer.get(&array)
                && stages[*i].notes.len() < MAX_NOTES
            {
                stages[*i].notes.push(note);
            }
        }
        self.into_plan(stages)
    }
}

/// Returns the array of a stored, constant or generated node. `id` distinguishes its name.
fn leaf_array(node: &NodeRef, id: ArrayId) -> Result<PlanArray, PlanError> {
    let unencoded = |grid: ChunkGrid| ArrayInfo::intermediate(node.dtype, grid, CodecName::None);
    let (name, info, place) = match &node.op {
        Op::Stored(array) => {
            let (url, path) = (array.store.url().to_owned(), array.path.clone());
            let folder = url.rsplit('/').next().unwrap_or_default();
            let name = if path.is_empty() { folder.to_owned() } else { path.clone() };
            (name, array.info.clone(), Place::Input { url, path, tag: array.tag.clone() })
        }
        Op::Constant(values) if values.len() > MAX_CONSTANT_BYTES => {
            return Err(PlanError::BadOutput(format!(
                "cannot embed an array of {} bytes from the program's memory in a plan: the limit \
                 is {MAX_CONSTANT_BYTES} bytes (hint: store the array first)",
                values.len()
            )));
        }
        Op::Constant(values) => {
            let whole = node.shape().iter().map(|n| AxisGrid::regular(*n, *n)).collect();
            let place = Place::Constant(to_hex(values.bytes()));
            (format!("constant-{:03}", id.0), unencoded(ChunkGrid::new(whole)), place)
        }
        Op::Generate(generate) => {
            let place = Place::Generated(generate.clone());
            (format!("generated-{:03}", id.0), unencoded(node.grid.clone()), place)
        }
        _ => return Err(malformed("a computed array is read before it is stored")),
    };
    Ok(PlanArray { name, info, place })
}
