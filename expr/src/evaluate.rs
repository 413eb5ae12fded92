//! The evaluator: from a syntax tree and its inputs to a lazy array.

use std::collections::BTreeMap;

use freestone_ops::{Array, Error as ArrayError, Index, Packed, Slice};

use super::ast::{Argument, Binary, Expr, Kind, Operation, Span, Subscript, Unary};
use super::error::ExpressionError;
use super::numbers;
use super::vocabulary::{self, CallError, Given, Value, either, nearest};

type Result<T> = std::result::Result<T, ExpressionError>;

/// The input arrays by their names in expressions.
pub type Inputs = BTreeMap<String, Array>;

/// Evaluates an expression to an array.
pub(super) fn array(root: &Expr, inputs: &Inputs) -> Result<Array> {
    match value(root, inputs).map_err(|e| name_packed_input(e, inputs))? {
        Value::Array(array) => Ok(array),
        other => {
            let error = ExpressionError::new("expression is not an array", root.span.clone())
                .label(format!("this is {}", other.describe()));
            Err(if other.is_number() {
                error.help("write `full((), …)` for an array of one number")
            } else {
                error
            })
        }
    }
}

/// Replaces the location of a packed array in an error by the name of the input.
fn name_packed_input(error: ExpressionError, inputs: &Inputs) -> ExpressionError {
    let cause = error.cause.as_deref().map(ArrayError::cause);
    let Some(ArrayError::Packed(packed)) = cause else { return error };
    let is_packed = |array: &Array| match array.check_unpacked() {
        Err(ArrayError::Packed(p)) => p.place == packed.place,
        _ => false,
    };
    let Some((name, _)) = inputs.iter().find(|(_, array)| is_packed(array)) else { return error };
    let packed = Packed { name: name.clone(), ..packed.clone() };
    let mut error = error;
    error.message = packed.to_string();
    error.cause(packed.into())
}

fn value(expr: &Expr, inputs: &Inputs) -> Result<Value> {
    let several =
        |items: &[Expr]| items.iter().map(|e| value(e, inputs)).collect::<Result<Vec<_>>>();
    Ok(match &expr.kind {
        Kind::Name(name) => return named(name, expr, inputs),
        Kind::Int(i) => Value::Int(*i),
        Kind::Float(x) => Value::Float(*x),
        Kind::Imaginary(x) => Value::Complex(0.0, *x),
        Kind::Text(text) => Value::Text(text.clone()),
        Kind::Unary(op, a) => return unary(*op, value(a, inputs)?, &expr.span),
        Kind::Binary(first, operations) => return chain(first, operations, expr, inputs),
        Kind::Call(name, arguments) => return call(name, arguments, expr, inputs),
        Kind::Index(of, entries) => return index(of, entries, expr, inputs),
        Kind::Tuple(items) | Kind::List(items) => Value::Sequence(several(items)?),
    })
}

fn named(name: &str, expr: &Expr, inputs: &Inputs) -> Result<Value> {
    if let Some(array) = inputs.get(name) {
        return Ok(Value::Array(array.clone()));
    }
    if let Some(constant) = vocabulary::constant(name) {
        return Ok(constant);
    }
    if vocabulary::function(name).is_some() {
        return Err(ExpressionError::new(format!("`{name}` is a function"), expr.span.clone())
            .label("not called")
            .help(format!("write `{name}(…)`")));
    }
    let error = ExpressionError::new(format!("unknown name `{name}`"), expr.span.clone())
        .label("not an input or a constant");
    let built_in = vocabulary::constants().chain(vocabulary::functions().iter().map(|f| f.name));
    let known = inputs.keys().map(String::as_str).chain(built_in.map(|n| -> &str { n }));
    Err(error.help(match (nearest(name, known).as_slice(), inputs.is_empty()) {
        ([], true) => format!("pass it with `-i {name}=ARRAY`"),
        ([], false) => format!(
            "pass it with `-i {name}=ARRAY`; the inputs are {}",
            inputs.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
        ),
        (near, _) => {
            format!("did you mean {}? Inputs are passed with `-i {name}=ARRAY`", either(near))
        }
    }))
}

fn unary(op: Unary, a: Value, span: &Span) -> Result<Value> {
    match numbers::unary(op, &a) {
        Some(number) => number.map_err(|e| ExpressionError::new(e, span.clone())),
        None => operator(op.symbol(), op.function(), vec![a], span),
    }
}

/// Applies operations of one precedence from left to right.
fn chain(first: &Expr, operations: &[Operation], expr: &Expr, inputs: &Inputs) -> Result<Value> {
    operations.iter().try_fold(value(first, inputs)?, |left, operation| {
        let right = value(&operation.right, inputs)?;
        binary(operation.operator, left, right, &(expr.span.start..operation.end))
    })
}

fn binary(op: Binary, a: Value, b: Value, span: &Span) -> Result<Value> {
    match numbers::binary(op, &a, &b) {
        Some(number) => number.map_err(|e| ExpressionError::new(e, span.clone())),
        None => operator(op.symbol(), op.function(), vec![a, b], span)
            .map_err(|e| if op == Binary::Xor { e.help("write `**` for a power") } else { e }),
    }
}

fn operator(symbol: &str, name: &str, operands: Vec<Value>, span: &Span) -> Result<Value> {
    let error = |message: String| ExpressionError::new(message, span.clone());
    if let Some(wrong) = operands.iter().find(|v| !v.is_number() && !matches!(v, Value::Array(_))) {
        return Err(error(format!("operands of `{symbol}` must be arrays or numbers"))
            .label(format!("one operand is {}", wrong.describe())));
    }
    let Some(function) = vocabulary::function(name) else {
        return Err(error(format!("`{symbol}` requires the function `{name}`, which is missing")));
    };
    function.call(operands, Vec::new()).map_err(|e| match e {
        CallError::Array(error) | CallError::Refused { error, .. } => refused(error, span.clone()),
        other => error(other.to_string()),
    })
}

/// Converts the error of a function that rejected its arguments.
fn refused(error: ArrayError, span: Span) -> ExpressionError {
    // The location of a deferred error is in this crate.
    ExpressionError::new(error.cause().to_string(), span).cause(error)
}

fn call(name: &str, arguments: &[Argument], expr: &Expr, inputs: &Inputs) -> Result<Value> {
    let Some(function) = vocabulary::function(name) else {
        return Err(unknown_function(name, expr, inputs));
    };
    let help = || format!("{name}{}", function.signature);
    let (mut positional, mut named) = (Vec::new(), Vec::new());
    for argument in arguments {
        let v = value(&argument.value, inputs)?;
        match &argument.name {
            Some(name) => named.push((name.clone(), v)),
            None if named.is_empty() => positional.push(v),
            None => {
                let span = argument.value.span.clone();
                let message = "positional argument follows keyword argument";
                return Err(ExpressionError::new(message, span).help(help()));
            }
        }
    }
    function.call(positional, named).map_err(|error| match error {
        CallError::Refused { axis, error } => {
            refused(error, axis.map_or(expr.span.clone(), |a| argument_span(&a, arguments, expr)))
        }
        CallError::Array(error) => refused(error, expr.span.clone()),
        error => {
            let span = error_span(&error, arguments, expr);
            ExpressionError::new(error.to_string(), span).help(help())
        }
    })
}

fn unknown_function(name: &str, expr: &Expr, inputs: &Inputs) -> ExpressionError {
    let span = expr.span.start..expr.span.start + name.len();
    if inputs.contains_key(name) {
        return ExpressionError::new(format!("`{name}` is an array, not a function"), span)
            .help(format!("write `{name}[…]` for its elements"));
    }
    let standard = vocabulary::standard_name(name).filter(|n| vocabulary::function(n).is_some());
    let near = match standard {
        Some(name) => vec![name],
        None => nearest(name, vocabulary::functions().iter().map(|f| f.name)),
    };
    ExpressionError::new(format!("unknown function `{name}`"), span).help(if near.is_empty() {
        "`freestone functions` lists all functions".into()
    } else {
        format!("did you mean {}?", either(&near))
    })
}

/// Returns the position of the argument that an error is about, or that of the whole call.
fn error_span(error: &CallError, arguments: &[Argument], expr: &Expr) -> Span {
    match error {
        CallError::Kind { given, .. } => argument_span(given, arguments, expr),
        CallError::TooMany { takes, .. } => {
            argument_span(&Given::Positional(*takes), arguments, expr)
        }
        CallError::Unexpected { name, .. }
        | CallError::PositionalOnly { name, .. }
        | CallError::Twice { name, .. } => arguments
            .iter()
            .rfind(|a| a.name.as_ref() == Some(name))
            .map_or(expr.span.clone(), |a| a.span.clone()),
        _ => expr.span.clone(),
    }
}

/// Returns the position of an argument's value, or that of the whole call for a default.
fn argument_span(given: &Given, arguments: &[Argument], expr: &Expr) -> Span {
    let found = match given {
        Given::Positional(i) => arguments.iter().filter(|a| a.name.is_none()).nth(*i),
        Given::Named(n) => arguments.iter().find(|a| a.name.as_ref() == Some(n)),
        Given::Default => None,
    };
    found.map_or(expr.span.clone(), |a| a.value.span.clone())
}

fn index(of: &Expr, entries: &[Subscript], expr: &Expr, inputs: &Inputs) -> Result<Value> {
    let array = match value(of, inputs)? {
        Value::Array(array) => array,
        Value::Sequence(items) => return element(items, entries, expr, inputs),
        other => {
            let message = "only arrays and sequences can be indexed";
            return Err(ExpressionError::new(message, of.span.clone())
                .label(format!("this is {}", other.describe())));
        }
    };
    let mut index = Vec::new();
    for entry in entries {
        match entry {
            Subscript::Ellipsis(_) => index.push(Index::Ellipsis),
            Subscript::Slice { start, stop, step } => {
                let (start, stop) = (bound(start, inputs)?, bound(stop, inputs)?);
                let step = bound(step, inputs)?.unwrap_or(1);
                index.push(Slice::new(start, stop, step).into());
            }
            Subscript::At(e) => push_entry(value(e, inputs)?, e, &mut index)?,
        }
    }
    let elements = array.index(&index);
    elements.check().map_err(|e| refused(e, expr.span.clone()))?;
    Ok(Value::Array(elements))
}

/// Adds one entry of an index. A tuple adds each of its elements.
fn push_entry(v: Value, e: &Expr, index: &mut Vec<Index>) -> Result<()> {
    let wrong = |label: String| {
        ExpressionError::new(
            "index must be an integer, a slice, `...`, `None` or a list of integers",
            e.span.clone(),
        )
        .label(label)
    };
    match v {
        Value::Int(i) => {
            let i = i64::try_from(i).map_err(|_| {
                refused(
                    ArrayError::Argument(format!(
                        "index {i} is out of range for axis {}",
                        index.len()
                    )),
                    e.span.clone(),
                )
            })?;
            index.push(Index::At(i));
        }
        Value::None => index.push(Index::NewAxis),
        Value::Sequence(items) => {
            let integers = items
                .iter()
                .map(|i| if let Value::Int(i) = i { i64::try_from(*i).ok() } else { None });
            match integers.collect::<Option<Vec<i64>>>() {
                Some(all) if matches!(e.kind, Kind::List(_)) => index.push(Index::Take(all)),
                // `x[(1, 2)]` is `x[1, 2]` in Python.
                Some(all) => index.extend(all.into_iter().map(Index::At)),
                None => return Err(wrong("not all elements are integers".into())),
            }
        }
        Value::Array(_) => {
            return Err(wrong("this is an array".into())
                .help("select by a list of numbers, `x[[3, 1]]`, or by a condition with `where`"));
        }
        other => return Err(wrong(format!("this is {}", other.describe()))),
    }
    Ok(())
}

/// Evaluates a bound or step of a slice. Values beyond 64 bits are clamped, since they exceed every
/// array.
fn bound(expr: &Option<Expr>, inputs: &Inputs) -> Result<Option<i64>> {
    let Some(e) = expr else { return Ok(None) };
    match value(e, inputs)? {
        Value::None => Ok(None),
        Value::Int(i) => Ok(Some(i.clamp(i64::MIN.into(), i64::MAX.into()) as i64)),
        other => {
            Err(ExpressionError::new("slice bounds and step must be integers", e.span.clone())
                .label(format!("this is {}", other.describe())))
        }
    }
}

/// Selects one element of a sequence: `unstack(x)[0]`.
fn element(
    items: Vec<Value>,
    entries: &[Subscript],
    expr: &Expr,
    inputs: &Inputs,
) -> Result<Value> {
    let wrong = || {
        ExpressionError::new("a sequence must be indexed by one integer", expr.span.clone())
            .label(format!("sequence of {}", items.len()))
    };
    let [Subscript::At(e)] = entries else { return Err(wrong()) };
    let Value::Int(i) = value(e, inputs)? else { return Err(wrong()) };
    let at = if i < 0 { i + items.len() as i128 } else { i };
    let found = usize::try_from(at).ok().and_then(|at| items.get(at).cloned());
    found.ok_or_else(|| {
        ExpressionError::new(format!("index {i} is out of range"), e.span.clone())
            .label(format!("for a sequence of {}", items.len()))
    })
}
