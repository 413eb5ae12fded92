//! Folding views and elementwise functions into who reads them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use freestone_kernels::dtype::Bool;
use freestone_kernels::{DType, Node as ExprNode, Scalar};

use super::lower::{Draft, Lowering, key};
use super::{PlanError, StageInput};
use crate::graph::{Node, NodeRef, Op};
use crate::readmap::{Origin, ReadMap, ReadMapError};

/// Expression nodes that were made already, by node and map.
pub(super) type Memo = HashMap<*const Node, Vec<(ReadMap, u32)>>;

impl Lowering<'_> {
    /// Finds what cannot be folded into its readers: reductions, rechunks, too many computed arrays in one view, and what composes with
    /// no view because it is reshaped.
    pub(super) fn mark(&mut self, order: &[NodeRef]) {
        let mut reshaped: HashSet<*const Node> = HashSet::new();
        for node in order {
            match &node.op {
                Op::Reduce { .. } => self.mark_one(node, "others read what a reduction gives"),
                Op::Rechunk(_) => self.mark_one(node, "it is read in its new chunks"),
                Op::Scan { .. } => self.mark_one(node, "others read what runs along an axis"),
                Op::Contract(contract) => {
                    self.mark_one(node, "others read a product of matrices");
                    for (o, operand) in contract.operands.iter().enumerate() {
                        if !self.passes(operand, &contract.map(o), &mut HashMap::new()) {
                            self.mark_one(operand, "the product that reads it would go through views that do not compose");
                        }
                    }
                }
                Op::User(user) => {
                    self.mark_one(node, "a user's kernel writes blocks");
                    for input in &user.inputs {
                        let flat = self.flatten_marked(input).map(|(_, bases)| bases);
                        let computed = |b: &NodeRef| matches!(b.op, Op::Map { .. });
                        let bases = flat.map_or_else(|_| vec![Arc::clone(input)], |bases| bases.into_iter().filter(computed).collect());
                        bases.iter().for_each(|b| self.mark_one(b, "a user's kernel reads blocks"));
                    }
                }
                Op::Map { inputs, .. } if inputs.iter().any(|i| reshaped.contains(&key(i)) && !self.materialise.contains_key(&key(i))) => {
                    reshaped.insert(key(node));
                }
                Op::View { sources, map } => {
                    if map.is_flat() {
                        reshaped.insert(key(node));
                    } else {
                        // No view goes over a reshape: that gets an array.
                        let found = sources.iter().filter(|s| reshaped.contains(&key(s)));
                        found.for_each(|s| self.mark_one(s, "it is reshaped, and a view goes over that"));
                    }
                    let Ok((map, bases)) = self.flatten_marked(node) else {
                        let views = sources.iter().filter(|s| matches!(s.op, Op::View { .. }));
                        views.for_each(|s| self.mark_one(s, "the views over it have too many pieces, or go over a reshape"));
                        continue;
                    };
                    let simple = map.as_image().is_some() && map.n_indices() == 0;
                    let chosen = may_choose(&map, &bases, &|n| self.materialise.contains_key(&key(n)));
                    for (k, base) in bases.iter().enumerate().filter(|(_, b)| matches!(b.op, Op::Map { .. })) {
                        let folds = simple || (chosen && self.passes(base, &only(&map, k, base.dtype), &mut HashMap::new()));
                        if !folds {
                            let why = if chosen { "the view that reads it does not compose with its own" } else { TOO_MANY };
                            self.mark_one(base, why);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn mark_one(&mut self, node: &NodeRef, why: &'static str) {
        self.materialise.entry(key(node)).or_insert(why);
    }

    fn flatten_marked(&self, node: &NodeRef) -> Result<(ReadMap, Vec<NodeRef>), ReadMapError> {
        flatten(node, &ReadMap::identity(&node.shape()), &|n| self.materialise.contains_key(&key(n)))
    }

    /// True if a map goes through the elementwise functions and views that `node` is made of.
    fn passes(&self, node: &NodeRef, map: &ReadMap, seen: &mut HashMap<*const Node, Vec<ReadMap>>) -> bool {
        match &node.op {
            _ if self.materialise.contains_key(&key(node)) => true,
            Op::Map { inputs, .. } => {
                // Where it went through before, it does again: else nobody would still be asking.
                let before = seen.entry(key(node)).or_default();
                if before.contains(map) {
                    return true;
                }
                before.push(map.clone());
                inputs.iter().all(|i| self.passes(i, map, seen))
            }
            Op::View { .. } => match flatten(node, map, &|n| self.materialise.contains_key(&key(n))) {
                Ok((map, bases)) => {
                    may_choose(&map, &bases, &|n| self.materialise.contains_key(&key(n)))
                        && bases.iter().enumerate().all(|(k, b)| self.passes(b, &only(&map, k, b.dtype), seen))
                }
                Err(_) => false,
            },
            _ => true,
        }
    }

    /// The expression node that yields `node` at the iteration space's image under `map`.
    pub(super) fn inline(&mut self, node: &NodeRef, map: &ReadMap, draft: &mut Draft, memo: &mut Memo) -> Result<u32, PlanError> {
        if let Some(found) = memo.get(&key(node)).and_then(|all| all.iter().find(|(m, _)| m == map)) {
            return Ok(found.1);
        }
        let bad = |e: freestone_kernels::ExprError| PlanError::Malformed(e.to_string());
        let result = match &node.op {
            _ if self.stored.contains_key(&key(node)) => {
                let sources = vec![self.leaf(node)?];
                push_input(draft, StageInput { sources, map: filled_as(map, node.dtype) }, node.dtype).map_err(bad)?
            }
            Op::Map { expr, inputs } => {
                let arguments = inputs.iter().map(|i| self.inline(i, map, draft, memo)).collect::<Result<Vec<_>, _>>()?;
                draft.expr.append(expr, &arguments).map_err(bad)?[0]
            }
            Op::View { .. } => {
                let (composed, bases) = flatten(node, map, &|n| self.stored.contains_key(&key(n)))?;
                match bases.as_slice() {
                    [base] if composed.is_flat() || composed.as_image().is_some() => self.inline(base, &composed, draft, memo)?,
                    _ => self.choose(&composed, &bases, node.dtype, draft, memo)?,
                }
            }
            _ => {
                let sources = vec![self.leaf(node)?];
                push_input(draft, StageInput { sources, map: filled_as(map, node.dtype) }, node.dtype).map_err(bad)?
            }
        };
        memo.entry(key(node)).or_default().push((map.clone(), result));
        Ok(result)
    }
    /// The expression node for a view in several pieces. What is computed is evaluated everywhere, over fill values where it is not wanted, and
    /// chosen by masks; what is stored or filled is one read.
    fn choose(&mut self, map: &ReadMap, bases: &[NodeRef], dtype: DType, draft: &mut Draft, memo: &mut Memo) -> Result<u32, PlanError> {
        let bad = |e: freestone_kernels::ExprError| PlanError::Malformed(e.to_string());
        let computed: Vec<usize> = (0..bases.len()).filter(|k| matches!(bases[*k].op, Op::Map { .. }) && !self.stored.contains_key(&key(&bases[*k]))).collect();
        let stored: Vec<usize> = (0..bases.len()).filter(|k| !computed.contains(k)).collect();
        let is_rest = |from: &Origin| !matches!(from, Origin::Source { source, .. } if computed.contains(source));
        let mut result = None;
        if computed.is_empty() || map.pieces().iter().any(|p| is_rest(&p.from)) {
            let sources = stored.iter().map(|k| self.leaf(&bases[*k])).collect::<Result<Vec<_>, _>>()?;
            let rest = map.with_origins(|from| match from {
                Origin::Source { source, axes } => match stored.iter().position(|k| k == source) {
                    Some(at) => Origin::Source { source: at, axes: axes.clone() },
                    None => Origin::Fill(Scalar::zero(dtype)),
                },
                other => other.clone(),
            });
            result = Some(push_input(draft, StageInput { sources, map: filled_as(&rest, dtype) }, dtype).map_err(bad)?);
        }
        for k in computed {
            let value = self.inline(&bases[k], &only(map, k, bases[k].dtype), draft, memo)?;
            let Some(others) = result else {
                result = Some(value);
                continue;
            };
            let is_here = |from: &Origin| matches!(from, Origin::Source { source, .. } if *source == k);
            let mask = map.with_origins(|from| Origin::Fill(Scalar::new(Bool::from(is_here(from)))));
            let mask = push_input(draft, StageInput { sources: Vec::new(), map: mask }, DType::Bool).map_err(bad)?;
            result = Some(draft.expr.push(ExprNode::Where(mask, value, others)).map_err(bad)?);
        }
        result.ok_or_else(|| PlanError::Malformed("a view has no pieces".into()))
    }
}

/// More computed arrays than this are not evaluated side by side to choose one of them.
const MAX_CHOICES: usize = 4;
/// More pieces than this are not looked through for every computed array.
const MAX_CHOSEN_PIECES: usize = 64;
/// Why these get arrays.
const TOO_MANY: &str = "more than 4 computed arrays, or 64 pieces of them, meet in one view";

/// True if a map's pieces can be chosen from what its sources compute, without their being stored.
fn may_choose(map: &ReadMap, bases: &[NodeRef], has_array: &dyn Fn(&NodeRef) -> bool) -> bool {
    let computed = bases.iter().filter(|b| matches!(b.op, Op::Map { .. }) && !has_array(b)).count();
    map.is_flat() || map.as_image().is_some() || computed == 0 || (computed <= MAX_CHOICES && map.pieces().len() <= MAX_CHOSEN_PIECES)
}

/// What a map reads of one of its sources, which becomes source 0; something elsewhere.
fn only(map: &ReadMap, which: usize, dtype: DType) -> ReadMap {
    map.with_origins(|from| match from {
        Origin::Source { source, axes } if *source == which => Origin::Source { source: 0, axes: axes.clone() },
        Origin::Flat => Origin::Flat,
        _ => Origin::Fill(Scalar::zero(dtype)),
    })
}

/// The map with fill values of a dtype: those that have another are never looked at.
fn filled_as(map: &ReadMap, dtype: DType) -> ReadMap {
    map.with_origins(|from| match from {
        Origin::Fill(value) if value.dtype() != dtype => Origin::Fill(Scalar::zero(dtype)),
        other => other.clone(),
    })
}

/// Composes a chain of views down to what is no view, or has an array of its own.
fn flatten(node: &NodeRef, map: &ReadMap, has_array: &dyn Fn(&NodeRef) -> bool) -> Result<(ReadMap, Vec<NodeRef>), ReadMapError> {
    let (mut map, mut bases) = (map.clone(), vec![Arc::clone(node)]);
    let goes_on = |b: &NodeRef| matches!(b.op, Op::View { .. }) && (Arc::ptr_eq(b, node) || !has_array(b));
    while bases.iter().any(goes_on) {
        let inner: Vec<ReadMap> = bases
            .iter()
            .map(|b| match &b.op {
                Op::View { map, .. } if goes_on(b) => map.clone(),
                _ => ReadMap::identity(&b.shape()),
            })
            .collect();
        map = map.compose(&inner)?;
        // Sources that no piece names any more are counted by the maps' own numbering.
        bases = bases
            .iter()
            .zip(&inner)
            .flat_map(|(b, inner)| match &b.op {
                Op::View { sources, .. } if goes_on(b) => sources[..inner.n_sources()].to_vec(),
                _ => vec![Arc::clone(b)],
            })
            .collect();
    }
    Ok((map, bases))
}

/// Adds an input to a draft, or finds it there; returns its expression node.
pub(super) fn push_input(draft: &mut Draft, input: StageInput, dtype: DType) -> Result<u32, freestone_kernels::ExprError> {
    // Inputs without elements are alike but in their dtype.
    let slot = match draft.inputs.iter().zip(draft.expr.inputs()).position(|(i, d)| *i == input && *d == dtype) {
        Some(slot) => slot as u32,
        None => {
            draft.inputs.push(input);
            draft.expr.add_input(dtype)
        }
    };
    draft.expr.push(ExprNode::Input(slot))
}
