//! From an expression and its inputs to a lazy array.

use std::collections::BTreeMap;

use freestone_ops::{Array, Error as ArrayError, Index, Packed};

use super::ast::{Argument, Binary, Expr, Kind, Span, Subscript, Unary};
use super::error::ExpressionError;
use super::numbers;
use super::vocabulary::{self, CallError, Given, Value, either, nearest};

type Result<T> = std::result::Result<T, ExpressionError>;

/// Arrays by the names that expressions use.
pub type Inputs = BTreeMap<String, Array>;

/// The array that an expression is.
pub(super) fn array(root: &Expr, inputs: &Inputs) -> Result<Array> {
    match value(root, inputs).map_err(|e| by_its_name(e, inputs))? {
        Value::Array(array) => Ok(array),
        other => {
            let error = ExpressionError::new("the result is not an array", root.span.clone())
                .label(format!("this is {}", other.describe()));
            Err(if other.is_number() {
                error.help("for an array of it write `full((), …)`")
            } else {
                error
            })
        }
    }
}

/// Calls a packed array as the expression does.
fn by_its_name(error: ExpressionError, inputs: &Inputs) -> ExpressionError {
    let cause = error.cause.as_deref().map(|cause| match cause {
        ArrayError::Deferred { source, .. } => &**source,
        other => other,
    });
    let Some(ArrayError::Packed(packed)) = cause else { return error };
    let is_it = |array: &Array| matches!(array.check_unpacked(), Err(ArrayError::Packed(p)) if p.place == packed.place);
    let Some((name, _)) = inputs.iter().find(|(_, array)| is_it(array)) else { return error };
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
        Kind::Unary(op, a) => return unary(*op, value(a, inputs)?, expr),
        Kind::Binary(op, a, b) => return binary(*op, value(a, inputs)?, value(b, inputs)?, expr),
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
    let error = ExpressionError::new(format!("`{name}` is not known"), expr.span.clone())
        .label("neither an input nor a constant");
    let ours = vocabulary::constants().chain(vocabulary::functions().iter().map(|f| f.name));
    let known = inputs.keys().map(String::as_str).chain(ours.map(|n| -> &str { n }));
    Err(error.help(match (nearest(name, known).as_slice(), inputs.is_empty()) {
        ([], true) => format!("give it with `-i {name}=ARRAY`"),
        ([], false) => format!(
            "give it with `-i {name}=ARRAY`; the inputs are {}",
            inputs.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
        ),
        (near, _) => {
            format!("did you mean {}? An input is given with `-i {name}=ARRAY`", either(near))
        }
    }))
}

fn unary(op: Unary, a: Value, expr: &Expr) -> Result<Value> {
    match numbers::unary(op, &a) {
        Some(number) => number.map_err(|e| ExpressionError::new(e, expr.span.clone())),
        None => operator(op.symbol(), op.function(), vec![a], expr),
    }
}

fn binary(op: Binary, a: Value, b: Value, expr: &Expr) -> Result<Value> {
    match numbers::binary(op, &a, &b) {
        Some(number) => number.map_err(|e| ExpressionError::new(e, expr.span.clone())),
        None => operator(op.symbol(), op.function(), vec![a, b], expr)
            .map_err(|e| if op == Binary::Xor { e.help("for a power write `**`") } else { e }),
    }
}

fn operator(symbol: &str, name: &str, operands: Vec<Value>, expr: &Expr) -> Result<Value> {
    if let Some(wrong) = operands.iter().find(|v| !v.is_number() && !matches!(v, Value::Array(_))) {
        let error =
            ExpressionError::new(format!("`{symbol}` takes arrays and numbers"), expr.span.clone());
        return Err(error.label(format!("one side is {}", wrong.describe())));
    }
    let Some(function) = vocabulary::function(name) else {
        return Err(ExpressionError::new(
            format!("`{symbol}` needs the function {name}, which is not known yet"),
            expr.span.clone(),
        ));
    };
    function.call(operands, Vec::new()).map_err(|e| match e {
        CallError::Array(error) | CallError::Refused { error, .. } => {
            refused(error, expr.span.clone())
        }
        other => ExpressionError::new(other.to_string(), expr.span.clone()),
    })
}

/// A function's own error: the expression is well-formed.
fn refused(error: ArrayError, span: Span) -> ExpressionError {
    let message = match &error {
        // Its place is one in our own code.
        ArrayError::Deferred { source, .. } => source.to_string(),
        other => other.to_string(),
    };
    ExpressionError::new(message, span).cause(error)
}

fn call(name: &str, arguments: &[Argument], expr: &Expr, inputs: &Inputs) -> Result<Value> {
    let at = expr.span.start..expr.span.start + name.len();
    let Some(function) = vocabulary::function(name) else {
        if inputs.contains_key(name) {
            return Err(ExpressionError::new(format!("`{name}` is an array, not a function"), at)
                .help(format!("elements of it are `{name}[…]`")));
        }
        let error =
            ExpressionError::new(format!("there is no function `{name}`"), at).label("not known");
        let standard =
            vocabulary::standard_name(name).filter(|n| vocabulary::function(n).is_some());
        let near: Vec<&str> = standard
            .map(|n| vec![n])
            .unwrap_or_else(|| nearest(name, vocabulary::functions().iter().map(|f| f.name)));
        return Err(error.help(if near.is_empty() {
            "`freestone functions` lists them".into()
        } else {
            format!("did you mean {}?", either(&near))
        }));
    };
    let (mut positional, mut named) = (Vec::new(), Vec::new());
    for argument in arguments {
        let v = value(&argument.value, inputs)?;
        match &argument.name {
            Some(name) => named.push((name.clone(), v)),
            None if named.is_empty() => positional.push(v),
            None => {
                let error = ExpressionError::new(
                    "an argument without a keyword stands after those with one",
                    argument.value.span.clone(),
                );
                return Err(error.help(format!("{name}{}", function.signature)));
            }
        }
    }
    let of = |given: &Given| {
        let found = match given {
            Given::Positional(i) => arguments.iter().filter(|a| a.name.is_none()).nth(*i),
            Given::Named(n) => arguments.iter().find(|a| a.name.as_ref() == Some(n)),
            Given::Default => None,
        };
        found.map_or(expr.span.clone(), |a| a.value.span.clone())
    };
    function.call(positional, named).map_err(|error| {
        let message = error.to_string();
        let span = match &error {
            CallError::Refused { axis, error } => {
                return refused(error.clone(), axis.as_ref().map_or(expr.span.clone(), of));
            }
            CallError::Array(error) => return refused(error.clone(), expr.span.clone()),
            CallError::Kind { given, .. } => of(given),
            CallError::Unexpected { name, .. }
            | CallError::PositionalOnly { name, .. }
            | CallError::Twice { name, .. } => arguments
                .iter()
                .rfind(|a| a.name.as_ref() == Some(name))
                .map_or(expr.span.clone(), |a| a.span.clone()),
            CallError::TooMany { takes, .. } => of(&Given::Positional(*takes)),
            CallError::Missing { .. } => expr.span.clone(),
        };
        ExpressionError::new(message, span).help(format!("{name}{}", function.signature))
    })
}

fn index(of: &Expr, entries: &[Subscript], expr: &Expr, inputs: &Inputs) -> Result<Value> {
    let array = match value(of, inputs)? {
        Value::Array(array) => array,
        Value::Sequence(items) => return element(items, entries, expr, inputs),
        other => {
            return Err(ExpressionError::new("only arrays have elements", of.span.clone())
                .label(format!("this is {}", other.describe())));
        }
    };
    let mut index = Vec::new();
    for entry in entries {
        match entry {
            Subscript::Ellipsis(_) => index.push(Index::Ellipsis),
            Subscript::Slice { start, stop, step } => {
                index.push(Index::Slice {
                    start: bound(start, inputs)?,
                    stop: bound(stop, inputs)?,
                    step: bound(step, inputs)?,
                });
            }
            Subscript::At(e) => entry_of(value(e, inputs)?, e, &mut index)?,
        }
    }
    array.index(&index).map(Value::Array).map_err(|e| refused(e, expr.span.clone()))
}

/// What stands between two commas of an index, or all of it where it is one tuple.
fn entry_of(v: Value, e: &Expr, index: &mut Vec<Index>) -> Result<()> {
    let wrong = |what: String| {
        ExpressionError::new(
            "an index is an integer, a slice, `...`, `None` or a list of integers",
            e.span.clone(),
        )
        .label(what)
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
                None => return Err(wrong("not all of these are integers".into())),
            }
        }
        Value::Array(_) => {
            return Err(wrong("this is an array".into()).help(
                "elements can be named by a list of \
                numbers, as in x[[3, 1]]; by a condition there is `where`",
            ));
        }
        other => return Err(wrong(format!("this is {}", other.describe()))),
    }
    Ok(())
}

/// A bound or step of a slice; what is beyond 64 bits is beyond every array.
fn bound(expr: &Option<Expr>, inputs: &Inputs) -> Result<Option<i64>> {
    let Some(e) = expr else { return Ok(None) };
    match value(e, inputs)? {
        Value::None => Ok(None),
        Value::Int(i) => Ok(Some(i.clamp(i64::MIN.into(), i64::MAX.into()) as i64)),
        other => {
            Err(ExpressionError::new("a slice's bounds and step are integers", e.span.clone())
                .label(format!("this is {}", other.describe())))
        }
    }
}

/// One of several results or items: `unstack(x)[0]`.
fn element(
    items: Vec<Value>,
    entries: &[Subscript],
    expr: &Expr,
    inputs: &Inputs,
) -> Result<Value> {
    let wrong = || {
        ExpressionError::new("one integer chooses from a sequence", expr.span.clone())
            .label(format!("a sequence of {}", items.len()))
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
