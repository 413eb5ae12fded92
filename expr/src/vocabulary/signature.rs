//! Signatures in Python's syntax, and the binding of arguments to them.

use super::nearest::{either, nearest};
use super::{CallError, Value};

/// A parameter of a signature such as `(x, /, *, axis=None, keepdims=False)`.
#[derive(Clone, Debug)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    kind: Kind,
    default: Option<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    PositionalOnly,
    Either,
    KeywordOnly,
    /// `*arrays`: all remaining positional arguments.
    Rest,
}

/// The source of a parameter's value in a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    /// The positional argument with that index.
    Positional(usize),
    /// The keyword argument with that name.
    Named(String),
    /// The default.
    Default,
}

/// Parses a signature.
///
/// # Errors
/// Returns a message if the text is not a signature.
pub(super) fn parse(text: &'static str) -> Result<Vec<Parameter>, String> {
    let inner = text.strip_prefix('(').and_then(|t| t.strip_suffix(')')).ok_or("no parentheses")?;
    let mut parameters: Vec<Parameter> = Vec::new();
    let mut kind = Kind::Either;
    for part in inner.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        match part {
            "/" => parameters.iter_mut().for_each(|p| p.kind = Kind::PositionalOnly),
            "*" => kind = Kind::KeywordOnly,
            _ if part.starts_with('*') => {
                parameters.push(Parameter { name: &part[1..], kind: Kind::Rest, default: None });
                kind = Kind::KeywordOnly;
            }
            _ => {
                let (name, default) = match part.split_once('=') {
                    Some((name, default)) => {
                        let value = literal(default);
                        (name, Some(value.ok_or_else(|| format!("invalid default `{default}`"))?))
                    }
                    None => (part, None),
                };
                parameters.push(Parameter { name, kind, default });
            }
        }
    }
    Ok(parameters)
}

fn literal(text: &str) -> Option<Value> {
    if let Some(quoted) = text.strip_prefix('\'').and_then(|t| t.strip_suffix('\'')) {
        return Some(Value::Text(quoted.into()));
    }
    super::constant(text)
        .or_else(|| text.parse().ok().map(Value::Int))
        .or_else(|| text.parse().ok().map(Value::Float))
}

/// A parameter's value, and its source in the call.
#[derive(Clone, Debug)]
pub(super) struct Bound {
    pub(super) name: &'static str,
    pub(super) value: Value,
    pub(super) given: Given,
}

/// Binds arguments to parameters.
pub(super) fn bind(
    function: &'static str,
    parameters: &[Parameter],
    positional: Vec<Value>,
    named: Vec<(String, Value)>,
) -> Result<Vec<Bound>, CallError> {
    let mut bound: Vec<Option<Bound>> = vec![None; parameters.len()];
    let places: Vec<usize> = (0..parameters.len())
        .filter(|i| matches!(parameters[*i].kind, Kind::PositionalOnly | Kind::Either))
        .collect();
    let rest = parameters.iter().position(|p| p.kind == Kind::Rest);
    let count = positional.len();
    let mut gathered = Vec::new();
    for (i, value) in positional.into_iter().enumerate() {
        match (places.get(i), rest) {
            (Some(at), _) => {
                bound[*at] =
                    Some(Bound { name: parameters[*at].name, value, given: Given::Positional(i) })
            }
            (None, Some(_)) => gathered.push(value),
            (None, None) => {
                let next = parameters.iter().find(|p| p.kind == Kind::KeywordOnly).map(|p| p.name);
                return Err(CallError::TooMany {
                    function,
                    takes: places.len(),
                    given: count,
                    next,
                });
            }
        }
    }
    if let Some(at) = rest {
        bound[at] = Some(Bound {
            name: parameters[at].name,
            value: Value::Sequence(gathered),
            given: Given::Positional(places.len()),
        });
    }
    for (name, value) in named {
        let Some(at) = parameters.iter().position(|p| p.name == name && p.kind != Kind::Rest)
        else {
            let known = parameters
                .iter()
                .filter(|p| matches!(p.kind, Kind::Either | Kind::KeywordOnly))
                .map(|p| p.name);
            let near = nearest(&name, known.clone());
            let hint = match (near.is_empty(), known.clone().count()) {
                (false, _) => format!("did you mean {}?", either(&near)),
                (true, 0) => "it takes no keyword arguments".into(),
                (true, _) => format!("the keywords are {}", known.collect::<Vec<_>>().join(", ")),
            };
            return Err(CallError::Unexpected { function, name, hint });
        };
        if parameters[at].kind == Kind::PositionalOnly {
            return Err(CallError::PositionalOnly { function, name });
        }
        if bound[at].is_some() {
            return Err(CallError::Twice { function, name });
        }
        bound[at] = Some(Bound { name: parameters[at].name, value, given: Given::Named(name) });
    }
    bound
        .into_iter()
        .zip(parameters)
        .map(|(b, p)| match (b, &p.default) {
            (Some(b), _) => Ok(b),
            (None, Some(value)) => {
                Ok(Bound { name: p.name, value: value.clone(), given: Given::Default })
            }
            (None, None) => Err(CallError::Missing { function, name: p.name }),
        })
        .collect()
}

/// Formats arguments for a hint. Keyword-only arguments that were given by position get their
/// keywords.
pub(super) fn with_keywords(parameters: &[Parameter], arguments: &[String]) -> String {
    let mut positional = parameters
        .iter()
        .filter(|p| matches!(p.kind, Kind::PositionalOnly | Kind::Either | Kind::Rest))
        .skip(1);
    let mut keywords = parameters.iter().filter(|p| p.kind == Kind::KeywordOnly);
    let written = arguments.iter().map(|a| match (a.contains('='), positional.next()) {
        (true, _) | (_, Some(_)) => a.clone(),
        (false, None) => keywords.next().map_or_else(|| a.clone(), |p| format!("{}={a}", p.name)),
    });
    written.map(|a| format!(", {a}")).collect()
}
