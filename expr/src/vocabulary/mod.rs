//! The functions by name, as data: for the command, for documentation and for tests.
//!
//! [`functions`] lists them; a call by name goes through [`Function::call`], which binds arguments
//! to the signature as Python does. Another function is one more row in `table.rs`; elementwise
//! functions of one or two operands come from lists.

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
    pub summary: &'static str,
    /// Shape of the result.
    pub shape: &'static str,
    /// The dtypes that it is defined for.
    pub dtypes: &'static str,
    /// Stages, and what they read.
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
    #[error("{function} takes {takes} positional argument{}, but {given} were \
        given{}", if *takes == 1 { "" } else { "s" },
        next.map(|n| format!("; write `{n}=`")).unwrap_or_default())]
    TooMany { function: &'static str, takes: usize, given: usize, next: Option<&'static str> },
    /// An argument that is not what the function needs.
    #[error("{message}")]
    Kind { message: String, parameter: &'static str, given: Given },
    /// The arguments are what they should be, but cannot be computed with; `axis` says which
    /// argument named an axis.
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
            Call::Unary(op) => {
                unary(op, arguments.array("x")?).map(Value::Array).map_err(CallError::from)
            }
            Call::Binary(op) => match (arguments.operand("x1")?, arguments.operand("x2")?) {
                (Operand::Number(_), Operand::Number(_)) => {
                    return Err(arguments.refuse(
                        "x1",
                        format!("{} needs an array on one side at least", self.name),
                    ));
                }
                (a, b) => binary(op, a, b).map(Value::Array).map_err(CallError::from),
            },
            Call::General(call) => call(&arguments),
        };
        result.map_err(|e| match e {
            CallError::Array(error) => {
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

    /// How a call reads whose first argument is `first`: for hints to who wrote
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
        elementwise(name, "(x, /)", doc, "the same", op.domain().name(), Call::Unary(*op))
    });
    let together = "what the operands broadcast to";
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

/// The dtypes of functions of two operands: bools stand for numbers there.
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
    // A signature that cannot be read is one of no parameters; a test reads all of them.
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

/// The index of all functions, as Markdown: a table for each section.
pub fn index() -> String {
    let mut text = String::from(
        "The functions that expressions can call by name: the Array API standard's, with some of \
            NumPy's and our own. In Rust they are functions \
         of this crate or methods of `Array`. \"No stage\": what reads the result computes it as \
         it goes.\n",
    );
    let mut section = None;
    for f in functions() {
        if section.replace(f.section) != Some(f.section) {
            let _ = write!(
                text,
                "\n### {}\n\n| function | what it gives | shape | dtypes | cost |\n| --- | --- | \
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
