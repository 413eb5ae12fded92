//! The functions by name, as data: for the command, for documentation and for tests.
//!
//! [`functions`] lists them; a call by name goes through [`Function::call`], which binds arguments to the signature as Python
//! does. Another function is one more row in `table.rs`; elementwise functions of one or two operands come from lists.

mod arguments;
mod nearest;
mod operand;
mod signature;
mod table;
mod value;

use std::borrow::Cow;
use std::fmt;
use std::sync::LazyLock;

use freestone_kernels::{DType, Scalar};
use thiserror::Error as ThisError;

use crate::array::Array;
use crate::error::Error;
use operand::{BINARY, Binary, UNARY, Unary};
use signature::Parameter;

pub use arguments::Arguments;
pub use nearest::{either, nearest};
pub use operand::Operand;
pub use signature::Given;
pub use value::{Value, constant, constants};

/// Where the Array API standard has a function; the last two are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Section {
    Elementwise,
    Statistical,
    Searching,
    Sorting,
    Set,
    Utility,
    Manipulation,
    Indexing,
    DataType,
    Creation,
    LinearAlgebra,
    Random,
    Chunking,
}

impl Section {
    /// For a heading.
    pub const fn title(self) -> &'static str {
        match self {
            Section::Elementwise => "Elementwise",
            Section::Statistical => "Statistical",
            Section::Searching => "Searching",
            Section::Sorting => "Sorting",
            Section::Set => "Sets",
            Section::Utility => "Utilities",
            Section::Manipulation => "Manipulation",
            Section::Indexing => "Indexing",
            Section::DataType => "Data types",
            Section::Creation => "Creation",
            Section::LinearAlgebra => "Linear algebra",
            Section::Random => "Random",
            Section::Chunking => "Chunking",
        }
    }
}

/// A function that can be called by its name.
#[derive(Clone, Debug)]
pub struct Function {
    /// As in the standard.
    pub name: &'static str,
    /// Where the standard has it.
    pub section: Section,
    /// Parameters as Python writes them: `(x, /, *, axis=None, keepdims=False)`.
    pub signature: &'static str,
    /// What it returns, in a sentence.
    pub summary: Cow<'static, str>,
    /// The dtypes that it is defined for.
    pub dtypes: Cow<'static, str>,
    /// Stages, and what they read.
    pub cost: &'static str,
    parameters: Vec<Parameter>,
    call: Call,
}

#[derive(Clone, Copy)]
enum Call {
    Unary(Unary),
    Binary(Binary),
    General(fn(&Arguments) -> Result<Value, CallError>),
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Call::Unary(_) => "Unary",
            Call::Binary(_) => "Binary",
            Call::General(_) => "General",
        })
    }
}

/// Why a call gives nothing.
#[derive(Clone, Debug, ThisError)]
#[allow(missing_docs)]
pub enum CallError {
    #[error("{function} misses its argument `{name}`")]
    Missing { function: &'static str, name: &'static str },
    #[error("{function} has no keyword `{name}`: {hint}")]
    Unexpected { function: &'static str, name: String, hint: String },
    #[error("{function} takes `{name}` by position only, not by keyword")]
    PositionalOnly { function: &'static str, name: String },
    #[error("{function} was given `{name}` twice")]
    Twice { function: &'static str, name: String },
    #[error("{function} takes {takes} positional argument{}, but {given} were given{}", if *takes == 1 { "" } else { "s" },
        next.map(|n| format!("; write `{n}=`")).unwrap_or_default())]
    TooMany { function: &'static str, takes: usize, given: usize, next: Option<&'static str> },
    /// An argument that is not what the function needs.
    #[error("{message}")]
    Kind { message: String, parameter: &'static str, given: Given },
    /// The arguments are what they should be, but cannot be computed with; `axis` says which argument named an axis.
    #[error("{error}")]
    Refused { error: Error, axis: Option<Given> },
    #[error(transparent)]
    Array(#[from] Error),
}

impl Function {
    /// Calls it.
    ///
    /// # Errors
    /// Where the arguments do not fit the signature, or the function's own error.
    pub fn call(&self, positional: Vec<Value>, named: Vec<(String, Value)>) -> Result<Value, CallError> {
        let arguments = Arguments { function: self.name, bound: signature::bind(self.name, &self.parameters, positional, named)? };
        let result = match self.call {
            Call::Unary(call) => call(arguments.array("x")?).map(Value::Array).map_err(CallError::from),
            Call::Binary(call) => match (arguments.operand("x1")?, arguments.operand("x2")?) {
                (Operand::Number(_), Operand::Number(_)) => return Err(arguments.refuse("x1", format!("{} needs an array on one side at least", self.name))),
                (a, b) => call(a, b).map(Value::Array).map_err(CallError::from),
            },
            Call::General(call) => call(&arguments),
        };
        result.map_err(|e| match e {
            CallError::Array(error) => {
                let names_axis = matches!(error, Error::Axis { .. } | Error::AxisTwice(_));
                let axis = arguments.bound.iter().find(|b| names_axis && matches!(b.name, "axis" | "axes")).map(|b| b.given.clone());
                CallError::Refused { error, axis }
            }
            other => other,
        })
    }

    /// How a call reads whose first argument is `first`: for hints to who wrote `first.name(arguments…)`.
    pub fn written(&self, first: &str, arguments: &[String]) -> String {
        format!("{}({first}{})", self.name, signature::with_keywords(&self.parameters, arguments))
    }
}

static ALL: LazyLock<Vec<Function>> = LazyLock::new(|| {
    let unary =
        UNARY.iter().map(|(name, call, summary)| row(Section::Elementwise, name, "(x, /)", summary, &unary_dtypes(*call), "no stage", Call::Unary(*call)));
    let binary = BINARY
        .iter()
        .map(|(name, call, summary)| row(Section::Elementwise, name, "(x1, x2, /)", summary, &binary_dtypes(*call), "no stage", Call::Binary(*call)));
    let general = table::ROWS.iter().flat_map(|(section, rows)| {
        let row = |r: &table::Row| row(*section, r.name, r.signature, r.summary, r.dtypes, r.cost, Call::General(r.call));
        rows.iter().map(row).collect::<Vec<_>>()
    });
    let mut all: Vec<Function> = unary.chain(binary).chain(general).collect();
    all.sort_by_key(|f| (f.section, f.name));
    all
});

fn row(section: Section, name: &'static str, signature: &'static str, summary: &str, dtypes: &str, cost: &'static str, call: Call) -> Function {
    // A signature that cannot be read is one of no parameters; a test reads all of them.
    let parameters = signature::parse(signature).unwrap_or_default();
    Function { name, section, signature, summary: summary.to_owned().into(), dtypes: dtypes.to_owned().into(), cost, parameters, call }
}

fn unary_dtypes(call: Unary) -> String {
    dtypes(call)
}

fn binary_dtypes(call: Binary) -> String {
    dtypes(|x| call(Operand::Array(x.clone()), Operand::Array(x.clone())))
}

/// Tries all of them: the functions themselves know it best.
fn dtypes(call: impl Fn(&Array) -> Result<Array, Error>) -> String {
    let works = |d: &DType| operand::full(Scalar::zero(*d)).and_then(|x| call(&x)).is_ok();
    let mut left: Vec<DType> = DType::ALL.into_iter().filter(works).collect();
    let groups = [("integers", 1..9), ("floats", 9..11), ("complex", 11..13)];
    let mut names = Vec::new();
    for (name, range) in groups {
        let members = &DType::ALL[range];
        if members.iter().all(|d| left.contains(d)) {
            left.retain(|d| !members.contains(d));
            names.push(name);
        }
    }
    left.iter().map(|d| d.name()).chain(names).collect::<Vec<_>>().join(", ")
}

/// All functions, by section and name.
pub fn functions() -> &'static [Function] {
    &ALL
}

/// The function of that name.
pub fn function(name: &str) -> Option<&'static Function> {
    ALL.iter().find(|f| f.name == name)
}

/// What NumPy and others call a function that the standard calls otherwise.
pub fn standard_name(name: &str) -> Option<&'static str> {
    table::ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests;
