//! The vocabulary: functions by name, as data for the command, the documentation and tests.
//!
//! [`functions`] lists all functions. [`Function::call`] binds arguments to the signature as Python
//! does, and calls the function. A new function is a row in `table.rs`. Elementwise functions of
//! one or two operands come from the lists in `freestone-ops`.

mod arguments;
mod nearest;
mod signature;
mod table;
mod value;

use std::fmt::{self, Write};
use std::sync::LazyLock;

use freestone_kernels::{BinaryOp, Domain, UnaryOp};
use freestone_ops::{BINARY, Error, Operand, UNARY, binary, unary};
use thiserror::Error as ThisError;

use signature::Parameter;
use table::VIEW;

pub use arguments::Arguments;
pub use nearest::{either, nearest};
pub use signature::Given;
pub use value::{Value, constant, constants};

/// The section of the Array API standard that defines a function. `Random` and `Chunking` are
/// extensions.
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
    /// Returns the title for headings.
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

/// A function of the vocabulary.
#[derive(Clone, Debug)]
pub struct Function {
    /// The name in the standard.
    pub name: &'static str,
    /// The section of the standard.
    pub section: Section,
    /// The parameters in Python's syntax: `(x, /, *, axis=None, keepdims=False)`.
    pub signature: &'static str,
    /// The result, in one sentence.
    pub summary: &'static str,
    /// The shape of the result.
    pub shape: &'static str,
    /// The supported dtypes.
    pub dtypes: &'static str,
    /// The number of stages, and what they read.
    pub cost: &'static str,
    parameters: Vec<Parameter>,
    call: Call,
}

#[derive(Clone, Copy)]
enum Call {
    Unary(UnaryOp),
    Binary(BinaryOp),
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

/// An error of a call.
#[derive(Clone, Debug, ThisError)]
#[allow(missing_docs)]
pub enum CallError {
    #[error("{function}: missing required argument `{name}`")]
    Missing { function: &'static str, name: &'static str },
    #[error("{function}: unexpected keyword argument `{name}` (hint: {hint})")]
    Unexpected { function: &'static str, name: String, hint: String },
    #[error("{function}: argument `{name}` is positional-only")]
    PositionalOnly { function: &'static str, name: String },
    #[error("{function}: multiple values for argument `{name}`")]
    Twice { function: &'static str, name: String },
    #[error("{function}: expected {takes} positional argument{}, found {given}{}",
        if *takes == 1 { "" } else { "s" },
        next.map(|n| format!(" (hint: write `{n}=`)")).unwrap_or_default())]
    TooMany { function: &'static str, takes: usize, given: usize, next: Option<&'static str> },
    /// An argument of the wrong kind.
    #[error("{message}")]
    Kind { message: String, parameter: &'static str, given: Given },
    /// The function rejected arguments of the right kind. `axis` is the argument that names an
    /// invalid axis.
    #[error("{error}")]
    Refused { error: Error, axis: Option<Given> },
    #[error(transparent)]
    Array(#[from] Error),
}

impl Function {
    /// Calls the function.
    ///
    /// # Errors
    /// Returns an error if the arguments do not match the signature, or if the function rejects
    /// them.
    pub fn call(
        &self,
        positional: Vec<Value>,
        named: Vec<(String, Value)>,
    ) -> Result<Value, CallError> {
        let arguments = Arguments {
            function: self.name,
            bound: signature::bind(self.name, &self.parameters, positional, named)?,
        };
        let result = match self.call {
            Call::Unary(op) => Ok(Value::Array(unary(op, arguments.array("x")?))),
            Call::Binary(op) => match (arguments.operand("x1")?, arguments.operand("x2")?) {
                (Operand::Number(_), Operand::Number(_)) => {
                    return Err(arguments.refuse(
                        "x1",
                        format!("{}: at least one operand must be an array", self.name),
                    ));
                }
                (a, b) => Ok(Value::Array(binary(op, a, b))),
            },
            Call::General(call) => call(&arguments),
        };
        let checked = result.and_then(|value| {
            value.check()?;
            Ok(value)
        });
        checked.map_err(|e| match e {
            CallError::Array(error) => {
                let error = error.cause().clone();
                let names_axis = matches!(error, Error::Axis { .. } | Error::AxisTwice(_));
                let axis = arguments
                    .bound
                    .iter()
                    .find(|b| names_axis && matches!(b.name, "axis" | "axes"))
                    .map(|b| b.given.clone());
                CallError::Refused { error, axis }
            }
            other => other,
        })
    }

    /// Formats a call with `first` as the first argument, for hints about the method call
    /// `first.name(arguments…)`.
    pub fn written(&self, first: &str, arguments: &[String]) -> String {
        format!("{}({first}{})", self.name, signature::with_keywords(&self.parameters, arguments))
    }
}

static ALL: LazyLock<Vec<Function>> = LazyLock::new(|| {
    let elementwise = |name, signature, summary, shape, dtypes, call| {
        function_of(
            Section::Elementwise,
            table::Row {
                name,
                signature,
                summary,
                shape,
                dtypes,
                cost: VIEW,
                call: |_| Ok(Value::None),
            },
            call,
        )
    };
    let unary = UNARY.iter().map(|(name, op, doc)| {
        elementwise(name, "(x, /)", doc, "the shape of x", op.domain().name(), Call::Unary(*op))
    });
    let together = "the broadcast shape of the operands";
    let binary = BINARY.iter().map(|(name, op, doc)| {
        elementwise(name, "(x1, x2, /)", doc, together, of_two(op.domain()), Call::Binary(*op))
    });
    let general = table::ROWS.iter().flat_map(|(section, rows)| {
        rows.iter().map(|row| function_of(*section, *row, Call::General(row.call)))
    });
    let mut all: Vec<Function> = unary.chain(binary).chain(general).collect();
    all.sort_by_key(|f| (f.section, f.name));
    all
});

/// Returns the dtypes of a binary function, where bools count as numbers.
fn of_two(domain: Domain) -> &'static str {
    match domain {
        Domain::Numeric => Domain::All.name(),
        Domain::Real => "bool, integers, floats",
        Domain::Integer => Domain::Bits.name(),
        other => other.name(),
    }
}

fn function_of(section: Section, row: table::Row, call: Call) -> Function {
    let table::Row { name, signature, summary, shape, dtypes, cost, .. } = row;
    // A test parses all signatures, so the default is never used.
    Function {
        name,
        section,
        signature,
        summary,
        shape,
        dtypes,
        cost,
        parameters: signature::parse(signature).unwrap_or_default(),
        call,
    }
}

/// Returns the index of all functions as Markdown, with a table for each section.
pub fn index() -> String {
    let mut text = String::from(
        "Expressions can call these functions by name. Most are in the Array API standard, some \
            are from NumPy or extensions. In Rust they are functions of this crate or methods of \
            `Array`. \"No stage\" means that the stage that reads the result also computes it.\n",
    );
    let mut section = None;
    for f in functions() {
        if section.replace(f.section) != Some(f.section) {
            let _ = write!(
                text,
                "\n### {}\n\n| function | result | shape | dtypes | cost |\n| --- | --- | \
                    --- | --- | --- |\n",
                f.section.title()
            );
        }
        let cell = |text: &str| text.replace('|', "\\|");
        let _ = writeln!(
            text,
            "| `{}{}` | {} | {} | {} | {} |",
            f.name,
            cell(f.signature),
            cell(f.summary),
            cell(f.shape),
            f.dtypes,
            f.cost
        );
    }
    text
}

/// Returns all functions, sorted by section and name.
pub fn functions() -> &'static [Function] {
    &ALL
}

/// Returns the function with that name.
pub fn function(name: &str) -> Option<&'static Function> {
    ALL.iter().find(|f| f.name == name)
}

/// Returns the standard's name of a function, for its name in NumPy or older versions of the
/// standard.
pub fn standard_name(name: &str) -> Option<&'static str> {
    table::ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests;
