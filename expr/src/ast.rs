//! What an expression is made of.

use std::fmt::{self, Display, Formatter};
use std::ops::Range;

/// Bytes of the text.
pub type Span = Range<usize>;

/// A part of an expression, and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// What it is.
    pub kind: Kind,
    /// Where it stands, its parentheses left out.
    pub span: Span,
    /// Parts below it, one in the other: bounded, because each is a call when it is evaluated.
    pub(super) depth: usize,
}

/// What a part is.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Kind {
    Name(String),
    Int(i128),
    Float(f64),
    Imaginary(f64),
    Text(String),
    Unary(Unary, Box<Expr>),
    Binary(Binary, Box<Expr>, Box<Expr>),
    Call(String, Vec<Argument>),
    Index(Box<Expr>, Vec<Subscript>),
    Tuple(Vec<Expr>),
    List(Vec<Expr>),
}

/// An argument of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Argument {
    /// Its keyword.
    pub name: Option<String>,
    /// What is passed.
    pub value: Expr,
    /// Where both stand.
    pub span: Span,
}

/// An entry between brackets.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Subscript {
    At(Expr),
    Slice { start: Option<Expr>, stop: Option<Expr>, step: Option<Expr> },
    Ellipsis(Span),
}

macro_rules! operators {
    ($(#[$doc:meta])* $type:ident: $($variant:ident $symbol:literal $function:literal $binds:literal;)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum $type { $($variant),* }

        impl $type {
            /// All of them.
            pub const ALL: &[$type] = &[$($type::$variant),*];

            /// As it is written.
            pub const fn symbol(self) -> &'static str {
                match self { $($type::$variant => $symbol),* }
            }

            /// The function that it stands for.
            pub const fn function(self) -> &'static str {
                match self { $($type::$variant => $function),* }
            }

            /// The higher, the tighter.
            pub(super) const fn binds(self) -> u8 {
                match self { $($type::$variant => $binds),* }
            }
        }
    };
}

operators! {
    /// Operators between two operands, and how tight Python binds them.
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
    /// Operators before one operand; `**` on their right binds tighter.
    Unary:
    Positive "+" "positive" 8;
    Negative "-" "negative" 8;
    Invert "~" "bitwise_invert" 8;
}

impl Binary {
    /// True for `<` and its like.
    pub(super) fn compares(self) -> bool {
        self.binds() == 1
    }
}

/// Above every operator.
const ATOM: u8 = 10;

impl Expr {
    fn binds(&self) -> u8 {
        match &self.kind {
            Kind::Binary(op, ..) => op.binds(),
            Kind::Unary(op, _) => op.binds(),
            _ => ATOM,
        }
    }

    fn within(&self, least: u8, f: &mut Formatter<'_>) -> fmt::Result {
        if self.binds() < least { write!(f, "({self})") } else { write!(f, "{self}") }
    }
}

/// With the parentheses that it needs; reading it again gives the same.
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
                a.within(op.binds(), f)
            }
            Kind::Binary(Binary::Pow, a, b) => {
                a.within(ATOM, f)?;
                f.write_str("**")?;
                b.within(Unary::Negative.binds(), f)
            }
            Kind::Binary(op, a, b) => {
                // Comparisons do not chain.
                a.within(op.binds() + u8::from(op.compares()), f)?;
                write!(f, " {} ", op.symbol())?;
                b.within(op.binds() + 1, f)
            }
            Kind::Call(name, arguments) => {
                write!(f, "{name}(")?;
                separated(arguments, f)?;
                f.write_str(")")
            }
            Kind::Index(of, entries) => {
                of.within(ATOM, f)?;
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
