//! Inlining of views and elementwise functions into their readers.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use freestone_kernels::dtype::Bool;
use freestone_kernels::{DType, ExprError, Node as ExprNode, Scalar};

use super::lower::{Draft, Lowering, key};
use super::{ArrayId, PlanError, StageInput, malformed};
use crate::graph::{Node, NodeRef, Op};
use crate::readmap::{Origin, ReadMap, ReadMapError};
use crate::stages::AnyDraft;
use crate::stages::map::MapDraft;

/// The values of nodes in a draft under construction: expression nodes, by node and map.
///
/// Nodes are evaluated in steps on an explicit stack, because graphs may be deeper than the call
/// stack.
#[derive(Default)]
struct Inlining {
    known: HashMap<*const Node, Vec<(Rc<ReadMap>, u32)>>,
    steps: Vec<Inline>,
    values: Vec<u32>,
    /// Inputs of the draft.
    slots: HashMap<(StageInput, DType), u32>,
}

/// The state of marking.
#[derive(Default)]
struct Marking {
    /// The nodes that are reshapes, or elementwise functions of reshapes.
    reshaped: HashSet<*const Node>,
    /// The views that are an image of one node, composed down to that node.
    images: HashMap<*const Node, (ReadMap, NodeRef)>,
}

/// A step of inlining. Each step yields one value.
enum Inline {
    /// Evaluate a node at the iteration space's image under a map.
    Node(NodeRef, Rc<ReadMap>),
    /// Apply the function of a node to the last values.
    Apply(NodeRef, Rc<ReadMap>),
    /// Select between the last value, from one of the computed arrays, and the previously selected
    /// value.
    Select { mask: StageInput },
    /// Record the last value as the value of a node.
    Memoize(NodeRef, Rc<ReadMap>),
}

impl Lowering<'_> {
    /// Marks the nodes that cannot be folded into their readers. These are reductions, rechunks,
    /// views of too many computed arrays, and reshaped nodes that do not compose with a view.
    pub(crate) fn mark(&mut self, order: &[NodeRef]) {
        let mut marking = Marking::default();
        for node in order {
            match &node.op {
                Op::Rechunk(_) => self.materialize(node, "readers use its new chunks"),
                Op::Staged(op) => {
                    self.materialize(node, op.kind().reason());
                    op.kind().mark(self);
                }
                Op::Map { inputs, .. } => {
                    let is_reshaped =
                        |i: &NodeRef| marking.reshaped.contains(&key(i)) && !self.has_array(i);
                    if inputs.iter().any(is_reshaped) {
                        marking.reshaped.insert(key(node));
                    }
                }
                Op::View { sources, map } => self.mark_view(node, sources, map, &mut marking),
                Op::Stored(_) | Op::Constant(_) | Op::Generate(_) => {}
            }
        }
    }

    /// Marks the nodes that a view reads and that cannot be folded into its readers.
    fn mark_view(
        &mut self,
        node: &NodeRef,
        sources: &[NodeRef],
        map: &ReadMap,
        marking: &mut Marking,
    ) {
        if map.is_flat() {
            marking.reshaped.insert(key(node));
        } else {
            let reason = "a view of a reshaped array does not compose with the reshape";
            let reshaped = sources.iter().filter(|s| marking.reshaped.contains(&key(s)));
            reshaped.for_each(|s| self.materialize(s, reason));
        }
        let Ok((map, bases)) = self.compose_view(node, sources, map, marking) else {
            let reason = "the views of it have too many pieces or include a reshape";
            let views = sources.iter().filter(|s| matches!(s.op, Op::View { .. }));
            views.for_each(|s| self.materialize(s, reason));
            return;
        };
        let is_simple = map.as_image().is_some() && map.n_indices() == 0;
        if let (true, [base]) = (is_simple, bases.as_slice()) {
            marking.images.insert(key(node), (map.clone(), Arc::clone(base)));
        }
        let selects = can_select(&map, &bases, &|n| self.has_array(n));
        let computed = bases.iter().enumerate().filter(|(_, b)| matches!(b.op, Op::Map { .. }));
        for (k, base) in computed {
            if !selects {
                self.materialize(base, TOO_MANY);
            } else if !is_simple && !self.composes(base, &only(&map, k, base.dtype)) {
                let reason = "the view that reads it does not compose with the views that it reads";
                self.materialize(base, reason);
            }
        }
    }

    /// Composes a view with the views that it reads. A chain of images of one node is composed
    /// incrementally.
    fn compose_view(
        &self,
        node: &NodeRef,
        sources: &[NodeRef],
        map: &ReadMap,
        marking: &Marking,
    ) -> Result<(ReadMap, Vec<NodeRef>), ReadMapError> {
        let image = match sources {
            [source] if !self.has_array(source) => marking.images.get(&key(source)),
            _ => None,
        };
        match image {
            Some((inner, base)) => {
                let map = map.compose(std::slice::from_ref(inner))?;
                Ok((map, vec![Arc::clone(base)]))
            }
            None => self.flatten_marked(node),
        }
    }

    /// Returns true if a node is marked for an array of its own.
    fn has_array(&self, node: &NodeRef) -> bool {
        self.materialized.contains_key(&key(node))
    }

    /// Marks a node for an array of its own, with the reason.
    pub(crate) fn materialize(&mut self, node: &NodeRef, reason: &'static str) {
        self.materialized.entry(key(node)).or_insert(reason);
    }

    /// Composes a chain of views down to nodes that are not views or are marked.
    pub(crate) fn flatten_marked(
        &self,
        node: &NodeRef,
    ) -> Result<(ReadMap, Vec<NodeRef>), ReadMapError> {
        flatten(node, &ReadMap::identity(&node.shape()), &|n| self.has_array(n))
    }

    /// Returns true if a map composes with the elementwise functions and views of `node`.
    pub(crate) fn composes(&self, node: &NodeRef, map: &ReadMap) -> bool {
        let has_array = |n: &NodeRef| self.has_array(n);
        let mut seen: HashMap<*const Node, Vec<Rc<ReadMap>>> = HashMap::new();
        let mut open = vec![(Arc::clone(node), Rc::new(map.clone()))];
        let mut left = MAX_STEPS;
        while let Some((node, map)) = open.pop() {
            left -= 1;
            if left == 0 {
                return false;
            }
            match &node.op {
                _ if has_array(&node) => {}
                Op::Map { inputs, .. } => {
                    let before = seen.entry(key(&node)).or_default();
                    if !before.contains(&map) {
                        before.push(Rc::clone(&map));
                        open.extend(inputs.iter().map(|i| (Arc::clone(i), Rc::clone(&map))));
                    }
                }
                Op::View { .. } => match flatten(&node, &map, &has_array) {
                    Ok((map, bases)) if can_select(&map, &bases, &has_array) => {
                        let part = |(k, base): (usize, &NodeRef)| {
                            (Arc::clone(base), Rc::new(only(&map, k, base.dtype)))
                        };
                        open.extend(bases.iter().enumerate().map(part));
                    }
                    _ => return false,
                },
                _ => {}
            }
        }
        true
    }

    /// Returns the expression node that yields `node` at the iteration space's image under `map`.
    pub(crate) fn inline(
        &mut self,
        node: &NodeRef,
        map: &ReadMap,
        draft: &mut Draft,
    ) -> Result<u32, PlanError> {
        let mut inlining = Inlining::default();
        inlining.steps.push(Inline::Node(Arc::clone(node), Rc::new(map.clone())));
        let mut left = MAX_STEPS;
        while let Some(step) = inlining.steps.pop() {
            left -= 1;
            if left == 0 {
                return Err(PlanError::BadOutput(
                    "the computation reads arrays at too many places for one plan (hint: rechunk \
                     or store an intermediate array)"
                        .into(),
                ));
            }
            match step {
                Inline::Node(node, map) => self.inline_node(node, map, draft, &mut inlining)?,
                Inline::Apply(node, map) => {
                    let Op::Map { expr, inputs, .. } = &node.op else {
                        return Err(malformed("a node to apply is not an elementwise function"));
                    };
                    let arguments = inlining.values.split_off(inlining.values.len() - inputs.len());
                    let results = draft.expr.append(expr, &arguments).map_err(bad_expr)?;
                    inlining.values.push(results[0]);
                    inlining.memoize(&node, map);
                }
                Inline::Select { mask } => {
                    let mask = inlining.push_input(draft, mask, DType::Bool)?;
                    let (Some(value), Some(others)) =
                        (inlining.values.pop(), inlining.values.pop())
                    else {
                        return Err(malformed("a view has no pieces"));
                    };
                    inlining.values.push(
                        draft.expr.push(ExprNode::Where(mask, value, others)).map_err(bad_expr)?,
                    );
                }
                Inline::Memoize(node, map) => inlining.memoize(&node, map),
            }
        }
        inlining.values.pop().ok_or_else(|| malformed("a node has no value"))
    }

    fn inline_node(
        &mut self,
        node: NodeRef,
        map: Rc<ReadMap>,
        draft: &mut Draft,
        inlining: &mut Inlining,
    ) -> Result<(), PlanError> {
        if let Some(found) =
            inlining.known.get(&key(&node)).and_then(|all| all.iter().find(|(m, _)| *m == map))
        {
            inlining.values.push(found.1);
            return Ok(());
        }
        match &node.op {
            Op::Map { inputs, .. } if !self.stored.contains_key(&key(&node)) => {
                inlining.steps.push(Inline::Apply(Arc::clone(&node), Rc::clone(&map)));
                inlining.steps.extend(
                    inputs.iter().rev().map(|i| Inline::Node(Arc::clone(i), Rc::clone(&map))),
                );
            }
            Op::View { .. } if !self.stored.contains_key(&key(&node)) => {
                let (composed, bases) =
                    flatten(&node, &map, &|n| self.stored.contains_key(&key(n)))?;
                inlining.steps.push(Inline::Memoize(Arc::clone(&node), map));
                match bases.as_slice() {
                    [base] if composed.is_flat() || composed.as_image().is_some() => {
                        inlining.steps.push(Inline::Node(Arc::clone(base), Rc::new(composed)));
                    }
                    _ => self.select_pieces(&composed, &bases, node.dtype, draft, inlining)?,
                }
            }
            _ => {
                let sources = vec![self.leaf(&node)?];
                let input = StageInput { sources, map: filled_as(&map, node.dtype) };
                let value = inlining.push_input(draft, input, node.dtype)?;
                inlining.values.push(value);
                inlining.memoize(&node, map);
            }
        }
        Ok(())
    }

    /// Returns the input that reads the pieces of a view other than those of the computed bases.
    /// The computed pieces become fill values.
    fn rest(
        &mut self,
        map: &ReadMap,
        bases: &[NodeRef],
        computed: &[usize],
        dtype: DType,
    ) -> Result<StageInput, PlanError> {
        let stored: Vec<usize> = (0..bases.len()).filter(|k| !computed.contains(k)).collect();
        let sources: Result<Vec<ArrayId>, PlanError> =
            stored.iter().map(|k| self.leaf(&bases[*k])).collect();
        let rest = map.with_origins(|from| match from {
            Origin::Source { source, axes } => match stored.iter().position(|k| k == source) {
                Some(at) => Origin::Source { source: at, axes: axes.clone() },
                None => Origin::Fill(Scalar::zero(dtype)),
            },
            other => other.clone(),
        });
        Ok(StageInput { sources: sources?, map: filled_as(&rest, dtype) })
    }

    /// Evaluates a view in several pieces. Computed pieces are evaluated everywhere, over fill
    /// values outside the piece, and selected by masks. Stored pieces and fill values are one read.
    fn select_pieces(
        &mut self,
        map: &ReadMap,
        bases: &[NodeRef],
        dtype: DType,
        draft: &mut Draft,
        inlining: &mut Inlining,
    ) -> Result<(), PlanError> {
        let computed: Vec<usize> = (0..bases.len())
            .filter(|k| {
                matches!(bases[*k].op, Op::Map { .. })
                    && !self.stored.contains_key(&key(&bases[*k]))
            })
            .collect();
        let is_rest = |from: &Origin| match from {
            Origin::Source { source, .. } => !computed.contains(source),
            Origin::Fill(_) | Origin::Flat => true,
        };
        let mut has_value = false;
        if computed.is_empty() || map.pieces().iter().any(|p| is_rest(&p.from)) {
            let rest = self.rest(map, bases, &computed, dtype)?;
            let value = inlining.push_input(draft, rest, dtype)?;
            inlining.values.push(value);
            has_value = true;
        }
        let mut steps = Vec::new();
        for k in computed {
            steps.push(Inline::Node(Arc::clone(&bases[k]), Rc::new(only(map, k, bases[k].dtype))));
            if std::mem::replace(&mut has_value, true) {
                let is_here =
                    |from: &Origin| matches!(from, Origin::Source { source, .. } if *source == k);
                let mask =
                    map.with_origins(|from| Origin::Fill(Scalar::new(Bool::from(is_here(from)))));
                steps.push(Inline::Select { mask: StageInput { sources: Vec::new(), map: mask } });
            }
        }
        inlining.steps.extend(steps.into_iter().rev());
        Ok(())
    }
}

impl Inlining {
    /// Adds an input to the draft, or finds it there, and returns its expression node.
    fn push_input(
        &mut self,
        draft: &mut Draft,
        input: StageInput,
        dtype: DType,
    ) -> Result<u32, PlanError> {
        let slot = *self.slots.entry((input, dtype)).or_insert_with_key(|(input, dtype)| {
            draft.inputs.push(input.clone());
            draft.expr.add_input(*dtype)
        });
        draft.expr.push(ExprNode::Input(slot)).map_err(bad_expr)
    }

    /// Records the last value as the value of a node.
    fn memoize(&mut self, node: &NodeRef, map: Rc<ReadMap>) {
        if let Some(value) = self.values.last() {
            self.known.entry(key(node)).or_default().push((map, *value));
        }
    }
}

fn bad_expr(error: ExprError) -> PlanError {
    malformed(error.to_string())
}

/// Returns the inputs of a stage that reads the values of a node unchanged.
pub(crate) fn read_inputs(
    lowering: &mut Lowering<'_>,
    node: &NodeRef,
) -> Result<Vec<StageInput>, PlanError> {
    let grid = MapDraft { grid: node.grid.clone() };
    let mut draft = Draft {
        outputs: Vec::new(),
        ..Draft::new("", AnyDraft::Map(grid), ArrayId(0), node.grid.clone())
    };
    lowering.inline(node, &ReadMap::identity(&node.shape()), &mut draft)?;
    Ok(draft.inputs)
}

/// The maximum number of steps that fold an array's graph into its readers.
const MAX_STEPS: usize = 1 << 20;

/// The maximum number of computed arrays that are evaluated side by side to select one of them.
const MAX_SELECTED: usize = 4;
/// The maximum number of pieces of a view that are evaluated for every computed array.
const MAX_SELECTED_PIECES: usize = 64;
/// The explanation for storing these arrays.
const TOO_MANY: &str = "a view combines more than 4 computed arrays or more than 64 pieces";

/// Returns true if a map's pieces can be selected from the computed values of its sources, without
/// storing the sources.
fn can_select(map: &ReadMap, bases: &[NodeRef], has_array: &dyn Fn(&NodeRef) -> bool) -> bool {
    let computed = bases.iter().filter(|b| matches!(b.op, Op::Map { .. }) && !has_array(b)).count();
    map.is_flat()
        || map.as_image().is_some()
        || computed == 0
        || (computed <= MAX_SELECTED && map.pieces().len() <= MAX_SELECTED_PIECES)
}

/// Returns the part of a map that reads one of its sources, which becomes source 0. Other elements
/// become zero.
fn only(map: &ReadMap, which: usize, dtype: DType) -> ReadMap {
    map.with_origins(|from| match from {
        Origin::Source { source, axes } if *source == which => {
            Origin::Source { source: 0, axes: axes.clone() }
        }
        Origin::Flat => Origin::Flat,
        _ => Origin::Fill(Scalar::zero(dtype)),
    })
}

/// Returns the map with fill values of a dtype. Fill values of another dtype are never read.
fn filled_as(map: &ReadMap, dtype: DType) -> ReadMap {
    map.with_origins(|from| match from {
        Origin::Fill(value) if value.dtype() != dtype => Origin::Fill(Scalar::zero(dtype)),
        other => other.clone(),
    })
}

/// Composes a chain of views down to nodes that are not views or that have arrays of their own.
fn flatten(
    node: &NodeRef,
    map: &ReadMap,
    has_array: &dyn Fn(&NodeRef) -> bool,
) -> Result<(ReadMap, Vec<NodeRef>), ReadMapError> {
    let (mut map, mut bases) = (map.clone(), vec![Arc::clone(node)]);
    let is_open =
        |b: &NodeRef| matches!(b.op, Op::View { .. }) && (Arc::ptr_eq(b, node) || !has_array(b));
    while bases.iter().any(is_open) {
        let inner: Vec<ReadMap> = bases
            .iter()
            .map(|b| match &b.op {
                Op::View { map, .. } if is_open(b) => map.clone(),
                _ => ReadMap::identity(&b.shape()),
            })
            .collect();
        map = map.compose(&inner)?;
        // Take only the sources that the inner maps count, because `compose` numbers sources by
        // these counts.
        bases = bases
            .iter()
            .zip(&inner)
            .flat_map(|(b, inner)| match &b.op {
                Op::View { sources, .. } if is_open(b) => sources[..inner.n_sources()].to_vec(),
                _ => vec![Arc::clone(b)],
            })
            .collect();
    }
    Ok((map, bases))
}

/// Adds an input to a draft, or finds an equal one. Returns its expression node.
pub(crate) fn push_input(
    draft: &mut Draft,
    input: StageInput,
    dtype: DType,
) -> Result<u32, ExprError> {
    // Inputs without elements differ only in dtype.
    let slot = match draft
        .inputs
        .iter()
        .zip(draft.expr.inputs())
        .position(|(i, d)| *i == input && *d == dtype)
    {
        Some(slot) => slot as u32,
        None => {
            draft.inputs.push(input);
            draft.expr.add_input(dtype)
        }
    };
    draft.expr.push(ExprNode::Input(slot))
}
