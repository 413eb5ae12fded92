//! The texts of inputs, views and expressions in formulas and notes.

use freestone_kernels::{Expr, Node as ExprNode};

use crate::plan::{Plan, StageInput};
use crate::readmap::{AxisMap, Origin, ReadMap};

/// The maximum number of names in an enumeration.
pub(super) const MAX_NAMED: usize = 4;

/// The number of characters after which a formula is truncated.
const MAX_FORMULA: usize = 72;

/// Returns a count with its noun, such as `1 task` or `2 tasks`.
pub(crate) fn counted(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// Returns an enumeration such as `a, b and c`, or `a, b, c and 5 more` above [`MAX_NAMED`] names.
pub(crate) fn listed(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] if names.len() <= MAX_NAMED => {
            format!("{} and {last}", first.join(", "))
        }
        _ => format!(
            "{} and {} more",
            names[..MAX_NAMED - 1].join(", "),
            names.len() + 1 - MAX_NAMED
        ),
    }
}

/// Returns the name of an expression node's function, if the node is one.
pub(super) fn function_name(node: &ExprNode) -> Option<String> {
    match node {
        ExprNode::Input(_) | ExprNode::Literal(_) => None,
        ExprNode::Unary(op, _) => Some(op.name()),
        ExprNode::Binary(op, ..) => Some(op.name()),
        ExprNode::Where(..) => Some("where".into()),
        ExprNode::Cast(dtype, _) => Some(format!("astype {dtype}")),
    }
}

/// Returns result `j` of an expression as text, truncated to about [`MAX_FORMULA`] characters.
pub(crate) fn term(expr: &Expr, j: usize, names: &[String]) -> String {
    let mut text = String::new();
    if let Some(result) = expr.results().get(j) {
        write_term(expr, *result, names, &mut text);
    }
    if text.chars().count() > MAX_FORMULA {
        text.chars().take(MAX_FORMULA).chain(['…']).collect()
    } else {
        text
    }
}

/// Appends a term of an expression until the text exceeds the limit. Every level appends text
/// before it recurses, which bounds the depth.
fn write_term(expr: &Expr, node: u32, names: &[String], text: &mut String) {
    if text.len() > 2 * MAX_FORMULA {
        return;
    }
    let mut call = |name: &str, operands: &[u32]| {
        text.push_str(name);
        text.push('(');
        for (i, operand) in operands.iter().enumerate() {
            if i > 0 {
                text.push_str(", ");
            }
            write_term(expr, *operand, names, text);
        }
        text.push(')');
    };
    match expr.nodes().get(node as usize) {
        Some(ExprNode::Input(i)) => {
            text.push_str(names.get(*i as usize).map_or("?", String::as_str))
        }
        Some(ExprNode::Literal(value)) => text.push_str(&value.to_string()),
        Some(ExprNode::Unary(op, a)) => call(&op.name(), &[*a]),
        Some(ExprNode::Binary(op, a, b)) => call(&op.name(), &[*a, *b]),
        Some(ExprNode::Where(c, a, b)) => call("where", &[*c, *a, *b]),
        Some(ExprNode::Cast(dtype, a)) => call(&dtype.to_string(), &[*a]),
        None => {}
    }
}

/// Returns the text of an input in a formula: the name of its array or view.
pub(super) fn input_name(plan: &Plan, input: &StageInput) -> String {
    let fill = || match input.map.pieces() {
        [piece] => {
            if let Origin::Fill(value) = &piece.from {
                value.to_string()
            } else {
                "mask".into()
            }
        }
        _ => "mask".into(),
    };
    view_name(plan, input).unwrap_or_else(|| {
        input.sources.first().map_or_else(fill, |id| plan.array(*id).name.clone())
    })
}

/// Returns the text of an input that is a view, such as `x[1:, ::-1]` or `x and y in 3 pieces`.
/// Returns `None` for an array that is read unchanged.
pub(super) fn view_name(plan: &Plan, input: &StageInput) -> Option<String> {
    let first = plan.array(*input.sources.first()?);
    if input.map.is_flat() {
        return Some(format!("{} reshaped", first.name));
    }
    let Some(axes) = input.map.as_image() else {
        let mut names: Vec<String> = Vec::new();
        for id in input.sources.iter().take(2 * MAX_NAMED) {
            let name = &plan.array(*id).name;
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        return Some(format!("{} in {} pieces", listed(&names), input.map.pieces().len()));
    };
    let text = image_name(&first.name, axes, &input.map, &first.info.shape());
    (text != first.name).then_some(text)
}

/// Returns the text of a view of one array, such as `x[1:, 3]`.
fn image_name(name: &str, axes: &[AxisMap], map: &ReadMap, source: &[u64]) -> String {
    let shape = map.shape();
    let mut indices: Vec<String> =
        axes.iter().zip(source).map(|(axis, n)| index_name(axis, *n, shape)).collect();
    while indices.last().is_some_and(|i| i == ":") {
        indices.pop();
    }
    let mut text = name.to_owned();
    if !indices.is_empty() {
        text += &format!("[{}]", indices.join(", "));
    }
    let named: Vec<usize> = axes.iter().filter_map(AxisMap::axis).collect();
    if named.windows(2).any(|w| w[0] > w[1]) {
        text += " transposed";
    }
    if (0..shape.len()).any(|d| shape[d] > 1 && !named.contains(&d)) {
        text += " broadcast";
    }
    text
}

/// Returns the text of the index along one source axis of `length` elements, such as `1:` or `3`.
/// `shape` is the shape of the view.
fn index_name(axis: &AxisMap, length: u64, shape: &[u64]) -> String {
    match axis {
        AxisMap::Fixed(0) if length == 1 => ":".to_owned(),
        AxisMap::Fixed(at) => at.to_string(),
        AxisMap::Gather { axis, .. } => format!("{} indices", shape[*axis]),
        AxisMap::Along { axis, start, step } => slice_name(*start, *step, shape[*axis], length),
    }
}

/// Returns the text of a slice of `n` elements of an axis of `length` elements, such as `1::2`.
fn slice_name(start: u64, step: i64, n: u64, length: u64) -> String {
    let first = if step > 0 { 0 } else { length.saturating_sub(1) };
    let from = if start == first { String::new() } else { start.to_string() };
    let end = start as i128 + step as i128 * (n as i128 - 1);
    let next = end + i128::from(step);
    let reaches_end = if step > 0 { next >= i128::from(length) } else { next < 0 };
    let to =
        if reaches_end { String::new() } else { (end + i128::from(step.signum())).to_string() };
    if step == 1 { format!("{from}:{to}") } else { format!("{from}:{to}:{step}") }
}
