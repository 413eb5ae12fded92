//! The syntax tree of an expression.

use std::fmt::{self, Display, Formatter};
use std::ops::Range;

/// A byte range of the text.
pub type Span = Range<usize>;

/// A node of the tree with its position.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// The kind of the node, with its operands.
    pub kind: Kind,
    /// The position in the text, without surrounding parentheses.
    pub span: Span,
    /// The height of the tree below this node. The parser bounds it because evaluation, printing
    /// and dropping recurse once per level.
    pub(super) depth: usize,
}

/// The kind of a node.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Kind {
    Name(String),
    Int(i128),
    Float(f64),
    Imaginary(f64),
    Text(String),
    Unary(Unary, Box<Expr>),
    /// A first operand and at least one operation on it, applied from left to right.
    ///
    /// All operators have one precedence. `a - b + c` is one node with two operations, so long sums
    /// are wide and not deep. A comparison and `**` have exactly one operation.
    Binary(Box<Expr>, Vec<Operation>),
    Call(String, Vec<Argument>),
    Index(Box<Expr>, Vec<Subscript>),
    Tuple(Vec<Expr>),
    List(Vec<Expr>),
}

/// A binary operator with its right operand.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// The operator.
    pub operator: Binary,
    /// The right operand.
    pub right: Expr,
    /// The end of the right operand in the text, including its parentheses.
    pub end: usize,
}

/// An argument of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Argument {
    /// The keyword.
    pub name: Option<String>,
    /// The value.
    pub value: Expr,
    /// The position of keyword and value.
    pub span: Span,
}

/// An entry between the brackets of an index.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Subscript {
    At(Expr),
    Slice { start: Option<Expr>, stop: Option<Expr>, step: Option<Expr> },
    Ellipsis(Span),
}

macro_rules! operators {
    ($(#[$doc:meta])* $type:ident:
     $($variant:ident $symbol:literal $function:literal $precedence:literal;)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum $type { $($variant),* }

        impl $type {
            /// All operators.
            pub const ALL: &[$type] = &[$($type::$variant),*];

            /// Returns the operator's symbol.
            pub const fn symbol(self) -> &'static str {
                match self { $($type::$variant => $symbol),* }
            }

            /// Returns the name of the equivalent function.
            pub const fn function(self) -> &'static str {
                match self { $($type::$variant => $function),* }
            }

            /// Returns the precedence: operators with higher values bind more tightly.
            pub(super) const fn precedence(self) -> u8 {
                match self { $($type::$variant => $precedence),* }
            }
        }
    };
}

operators! {
    /// Binary operators, with Python's precedences.
    Binary:
    Less "<" "less" 1;
    LessEqual "<=" "less_equal" 1;
    Greater ">" "greater" 1;
    GreaterEqual ">=" "greater_equal" 1;
    Equal "==" "equal" 1;
    NotEqual "!=" "not_equal" 1;
    Or "|" "bitwise_or" 2;
    Xor "^" "bitwise_xor" 3;
    And "&" "bitwise_and" 4;
    Left "<<" "bitwise_left_shift" 5;
    Right ">>" "bitwise_right_shift" 5;
    Add "+" "add" 6;
    Subtract "-" "subtract" 6;
    Multiply "*" "multiply" 7;
    Divide "/" "divide" 7;
    FloorDivide "//" "floor_divide" 7;
    Remainder "%" "remainder" 7;
    MatMul "@" "matmul" 7;
    Pow "**" "pow" 9;
}

operators! {
    /// Unary operators. A `**` on their right binds more tightly.
    Unary:
    Positive "+" "positive" 8;
    Negative "-" "negative" 8;
    Invert "~" "bitwise_invert" 8;
}

impl Binary {
    /// Returns true for `<`, `<=`, `>`, `>=`, `==` and `!=`.
    pub(super) fn is_comparison(self) -> bool {
        self.precedence() == 1
    }

    /// Returns true if `a op b op c` means `(a op b) op c`.
    pub(super) fn is_left_associative(self) -> bool {
        !self.is_comparison() && self != Binary::Pow
    }
}

/// The precedence of names, literals, calls and brackets, above every operator.
const ATOM: u8 = 10;

impl Expr {
    fn precedence(&self) -> u8 {
        match &self.kind {
            Kind::Binary(_, operations) => {
                operations.first().map_or(ATOM, |o| o.operator.precedence())
            }
            Kind::Unary(op, _) => op.precedence(),
            _ => ATOM,
        }
    }

    /// Prints an operand, in parentheses if its precedence is below `least`.
    fn fmt_operand(&self, least: u8, f: &mut Formatter<'_>) -> fmt::Result {
        if self.precedence() < least { write!(f, "({self})") } else { write!(f, "{self}") }
    }
}

fn fmt_binary(first: &Expr, operations: &[Operation], f: &mut Formatter<'_>) -> fmt::Result {
    for (i, Operation { operator, right, .. }) in operations.iter().enumerate() {
        let precedence = operator.precedence();
        if *operator == Binary::Pow {
            first.fmt_operand(ATOM, f)?;
            f.write_str("**")?;
            return right.fmt_operand(Unary::Negative.precedence(), f);
        }
        if i == 0 {
            // Comparisons do not chain.
            first.fmt_operand(precedence + u8::from(operator.is_comparison()), f)?;
        }
        write!(f, " {} ", operator.symbol())?;
        right.fmt_operand(precedence + 1, f)?;
    }
    Ok(())
}

/// Prints the expression with the necessary parentheses. Parsing the result gives an equal tree.
impl Display for Expr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Name(name) => f.write_str(name),
            Kind::Int(i) => write!(f, "{i}"),
            Kind::Float(x) => write!(f, "{x:?}"),
            Kind::Imaginary(x) => write!(f, "{x:?}j"),
            Kind::Text(text) if text.contains('\'') => write!(f, "\"{text}\""),
            Kind::Text(text) => write!(f, "'{text}'"),
            Kind::Unary(op, a) => {
                f.write_str(op.symbol())?;
                a.fmt_operand(op.precedence(), f)
            }
            Kind::Binary(first, operations) => fmt_binary(first, operations, f),
            Kind::Call(name, arguments) => {
                write!(f, "{name}(")?;
                separated(arguments, f)?;
                f.write_str(")")
            }
            Kind::Index(of, entries) => {
                of.fmt_operand(ATOM, f)?;
                f.write_str("[")?;
                separated(entries, f)?;
                f.write_str("]")
            }
            Kind::Tuple(items) => {
                f.write_str("(")?;
                separated(items, f)?;
                f.write_str(if items.len() == 1 { ",)" } else { ")" })
            }
            Kind::List(items) => {
                f.write_str("[")?;
                separated(items, f)?;
                f.write_str("]")
            }
        }
    }
}

impl Display for Argument {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.name.iter().try_for_each(|name| write!(f, "{name}="))?;
        write!(f, "{}", self.value)
    }
}

impl Display for Subscript {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Subscript::At(e) => write!(f, "{e}"),
            Subscript::Slice { start, stop, step } => {
                start.iter().try_for_each(|e| write!(f, "{e}"))?;
                f.write_str(":")?;
                stop.iter().try_for_each(|e| write!(f, "{e}"))?;
                step.iter().try_for_each(|e| write!(f, ":{e}"))
            }
            Subscript::Ellipsis(_) => f.write_str("..."),
        }
    }
}

fn separated(items: &[impl Display], f: &mut Formatter<'_>) -> fmt::Result {
    items
        .iter()
        .enumerate()
        .try_for_each(|(i, item)| write!(f, "{}{item}", if i == 0 { "" } else { ", " }))
}
