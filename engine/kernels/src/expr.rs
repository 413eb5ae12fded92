//! Elementwise expressions as data.
//!
//! An [`Expr`] is a list in which every node refers to earlier ones only, with one or more results.
//! Fusing two operations is [`Expr::append`]: one expression's results become another's inputs.
//! Dtypes never mix inside: casts are nodes, put in while the expression is built.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::dtype::{DType, Kind};
use crate::scalar::Scalar;

/// The dtypes that a function is defined for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Every dtype.
    All,
    /// Bool only.
    Bool,
    /// Bool and integers.
    Bits,
    /// Integers.
    Integer,
    /// Integers, floats and complex numbers.
    Numeric,
    /// Integers and floats.
    Real,
    /// Floats and complex numbers.
    Inexact,
    /// Floats.
    Float,
}

/// Dtype of a function's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gives {
    Same,
    Bool,
    /// Of a complex number the dtype of its parts.
    Part,
}

impl Domain {
    /// In words, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Domain::All => "all",
            Domain::Bool => "bool",
            Domain::Bits => "bool, integers",
            Domain::Integer => "integers",
            Domain::Numeric => "integers, floats, complex",
            Domain::Real => "integers, floats",
            Domain::Inexact => "floats, complex",
            Domain::Float => "floats",
        }
    }

    /// True if it has `dtype`.
    pub fn has(self, dtype: DType) -> bool {
        let kind = dtype.kind();
        match self {
            Domain::All => true,
            Domain::Bool => kind == Kind::Bool,
            Domain::Bits => kind == Kind::Bool || dtype.is_integer(),
            Domain::Integer => dtype.is_integer(),
            Domain::Numeric => kind != Kind::Bool,
            Domain::Real => dtype.is_real(),
            Domain::Inexact => matches!(kind, Kind::Float | Kind::Complex),
            Domain::Float => kind == Kind::Float,
        }
    }
}

impl Gives {
    fn of(self, dtype: DType) -> DType {
        match (self, dtype) {
            (Gives::Bool, _) => DType::Bool,
            (Gives::Part, DType::Complex64) => DType::Float32,
            (Gives::Part, DType::Complex128) => DType::Float64,
            _ => dtype,
        }
    }
}

/// An enum of functions, and where each is defined.
macro_rules! functions {
    ($(#[$meta:meta])* $name:ident { $($op:ident: $domain:ident -> $gives:ident,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[allow(missing_docs)]
        pub enum $name { $($op,)* }

        impl $name {
            /// The dtypes that it is defined for.
            pub fn domain(self) -> Domain {
                match self { $($name::$op => Domain::$domain,)* }
            }

            /// Dtype of the result for operands of `dtype`.
            ///
            /// # Errors
            /// Where it is not defined for `dtype`.
            pub fn result(self, dtype: DType) -> Result<DType, ExprError> {
                if !self.domain().has(dtype) {
                    return Err(ExprError::Domain { op: self.name(), dtype });
                }
                Ok(match self { $($name::$op => Gives::$gives,)* }.of(dtype))
            }

            /// The function's name in the Array API standard.
            pub fn name(self) -> String {
                serde_json::to_value(self).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
            }
        }
    };
}

functions! {
    /// Function of one element.
    UnaryOp {
        Abs: Numeric -> Part,
        Acos: Inexact -> Same,
        Acosh: Inexact -> Same,
        Asin: Inexact -> Same,
        Asinh: Inexact -> Same,
        Atan: Inexact -> Same,
        Atanh: Inexact -> Same,
        BitwiseInvert: Bits -> Same,
        Ceil: Real -> Same,
        Conj: Numeric -> Same,
        Cos: Inexact -> Same,
        Cosh: Inexact -> Same,
        Exp: Inexact -> Same,
        Expm1: Inexact -> Same,
        Floor: Real -> Same,
        Imag: Numeric -> Part,
        Isfinite: Numeric -> Bool,
        Isinf: Numeric -> Bool,
        Isnan: Numeric -> Bool,
        Log: Inexact -> Same,
        Log1p: Inexact -> Same,
        Log2: Inexact -> Same,
        Log10: Inexact -> Same,
        LogicalNot: Bool -> Same,
        Negative: Numeric -> Same,
        Positive: Numeric -> Same,
        Real: Numeric -> Part,
        Reciprocal: Inexact -> Same,
        Round: Numeric -> Same,
        Sign: Numeric -> Same,
        Signbit: Float -> Bool,
        Sin: Inexact -> Same,
        Sinh: Inexact -> Same,
        Sqrt: Inexact -> Same,
        Square: Numeric -> Same,
        Tan: Inexact -> Same,
        Tanh: Inexact -> Same,
        Trunc: Real -> Same,
    }
}

functions! {
    /// Function of two elements of one dtype.
    BinaryOp {
        Add: Numeric -> Same,
        Atan2: Float -> Same,
        BitwiseAnd: Bits -> Same,
        BitwiseLeftShift: Integer -> Same,
        BitwiseOr: Bits -> Same,
        BitwiseRightShift: Integer -> Same,
        BitwiseXor: Bits -> Same,
        Copysign: Float -> Same,
        Divide: Inexact -> Same,
        Equal: All -> Bool,
        FloorDivide: Real -> Same,
        Greater: Real -> Bool,
        GreaterEqual: Real -> Bool,
        Hypot: Float -> Same,
        Less: Real -> Bool,
        LessEqual: Real -> Bool,
        Logaddexp: Float -> Same,
        LogicalAnd: Bool -> Same,
        LogicalOr: Bool -> Same,
        LogicalXor: Bool -> Same,
        Maximum: Real -> Same,
        Minimum: Real -> Same,
        Multiply: Numeric -> Same,
        Nextafter: Float -> Same,
        NotEqual: All -> Bool,
        Pow: Numeric -> Same,
        Remainder: Real -> Same,
        Subtract: Numeric -> Same,
    }
}

/// One value of an expression; operands are indices of earlier nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Node {
    Input(u32),
    Literal(Scalar),
    Unary(UnaryOp, u32),
    Binary(BinaryOp, u32, u32),
    Where(u32, u32, u32),
    Cast(DType, u32),
}

/// Why an expression is not one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum ExprError {
    #[error("{op} is not defined for {dtype}")]
    Domain { op: String, dtype: DType },
    #[error("{op} needs operands of one dtype, not {left} and {right}: cast one of them")]
    MixedDTypes { op: String, left: DType, right: DType },
    #[error("the condition of `where` must be bool, not {0}")]
    Condition(DType),
    #[error("node {node} refers to {operand}, which is not before it")]
    Order { node: usize, operand: u32 },
    #[error("there is no input {0}")]
    NoInput(u32),
    #[error("an expression needs at least one result")]
    NoResult,
}

/// An elementwise expression: inputs' dtypes, nodes in order, indices of the nodes that are
/// results.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "ExprText", into = "ExprText")]
pub struct Expr {
    inputs: Vec<DType>,
    nodes: Vec<Node>,
    results: Vec<u32>,
    dtypes: Vec<DType>,
    index: Index,
}

/// The first node of each value, in expressions of many nodes. It follows from the nodes, so
/// comparisons leave it out.
#[derive(Clone, Debug, Default)]
struct Index {
    places: HashMap<Node, u32>,
    /// Nodes that are in it.
    n: usize,
}

/// Expressions of fewer nodes are searched one by one.
const INDEXED: usize = 64;

impl PartialEq for Index {
    fn eq(&self, _: &Index) -> bool {
        true
    }
}

impl Eq for Index {}

impl std::hash::Hash for Index {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

impl Index {
    /// The first of `nodes` that equals `node`.
    fn find(&mut self, nodes: &[Node], node: &Node) -> Option<usize> {
        if nodes.len() < INDEXED {
            return nodes.iter().position(|n| n == node);
        }
        for (place, node) in nodes.iter().enumerate().skip(self.n) {
            self.places.entry(*node).or_insert(place as u32);
        }
        self.n = nodes.len();
        self.places.get(node).map(|place| *place as usize)
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct ExprText {
    inputs: Vec<DType>,
    nodes: Vec<Node>,
    results: Vec<u32>,
}

impl Expr {
    /// An expression of these inputs with nothing in it yet.
    pub fn new(inputs: Vec<DType>) -> Expr {
        Expr {
            inputs,
            nodes: Vec::new(),
            results: Vec::new(),
            dtypes: Vec::new(),
            index: Index::default(),
        }
    }

    /// The expression that returns its only input.
    pub fn identity(dtype: DType) -> Expr {
        Expr {
            inputs: vec![dtype],
            nodes: vec![Node::Input(0)],
            results: vec![0],
            dtypes: vec![dtype],
            index: Index::default(),
        }
    }

    /// One function of inputs in order.
    ///
    /// # Errors
    /// Where the function is not defined for those dtypes.
    pub fn of(
        inputs: &[DType],
        build: impl FnOnce(&mut Expr, &[u32]) -> Result<u32, ExprError>,
    ) -> Result<Expr, ExprError> {
        let mut expr = Expr::new(inputs.to_vec());
        let slots = (0..inputs.len() as u32)
            .map(|i| expr.push(Node::Input(i)))
            .collect::<Result<Vec<_>, _>>()?;
        let result = build(&mut expr, &slots)?;
        expr.results.push(result);
        Ok(expr)
    }

    /// Adds a node, or finds the equal one that is already there; returns its index.
    ///
    /// # Errors
    /// Where an operand is not before it, or its function is not defined for the operands' dtypes.
    pub fn push(&mut self, node: Node) -> Result<u32, ExprError> {
        if let Some(same) = self.index.find(&self.nodes, &node) {
            return Ok(same as u32);
        }
        let dtype = self.check(&node)?;
        self.nodes.push(node);
        self.dtypes.push(dtype);
        Ok(self.nodes.len() as u32 - 1)
    }

    /// Adds an input; returns its slot's number.
    pub fn add_input(&mut self, dtype: DType) -> u32 {
        self.inputs.push(dtype);
        self.inputs.len() as u32 - 1
    }

    /// Declares nodes to be results, after those that there are.
    pub fn add_results(&mut self, results: &[u32]) {
        self.results.extend_from_slice(results);
    }

    /// Makes these the results.
    pub fn set_results(&mut self, results: &[u32]) {
        self.results = results.to_vec();
    }

    /// Appends `other`, whose inputs are the nodes `arguments` of this expression; returns the
    /// nodes of its results.
    ///
    /// # Errors
    /// Where an argument's dtype is not that of the input.
    pub fn append(&mut self, other: &Expr, arguments: &[u32]) -> Result<Vec<u32>, ExprError> {
        let mut place = Vec::with_capacity(other.nodes.len());
        for node in &other.nodes {
            let at = |i: u32| place[i as usize];
            let moved = match *node {
                Node::Input(slot) => {
                    let argument = *arguments.get(slot as usize).ok_or(ExprError::NoInput(slot))?;
                    let (left, right) = (self.dtype(argument), other.inputs[slot as usize]);
                    if left != right {
                        return Err(ExprError::MixedDTypes { op: "an input".into(), left, right });
                    }
                    place.push(argument);
                    continue;
                }
                Node::Literal(s) => Node::Literal(s),
                Node::Unary(op, a) => Node::Unary(op, at(a)),
                Node::Binary(op, a, b) => Node::Binary(op, at(a), at(b)),
                Node::Where(c, a, b) => Node::Where(at(c), at(a), at(b)),
                Node::Cast(d, a) => Node::Cast(d, at(a)),
            };
            place.push(self.push(moved)?);
        }
        Ok(other.results.iter().map(|r| place[*r as usize]).collect())
    }

    /// Dtypes of the inputs.
    pub fn inputs(&self) -> &[DType] {
        &self.inputs
    }

    /// The nodes, operands before their users.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Indices of the results' nodes.
    pub fn results(&self) -> &[u32] {
        &self.results
    }

    /// Dtype of a node.
    pub fn dtype(&self, node: u32) -> DType {
        self.dtypes[node as usize]
    }

    /// Dtypes of the results.
    pub fn result_dtypes(&self) -> Vec<DType> {
        self.results.iter().map(|r| self.dtype(*r)).collect()
    }

    /// True if it returns its only input unchanged.
    pub fn is_identity(&self) -> bool {
        self.nodes == [Node::Input(0)] && self.results == [0]
    }

    /// What `node` yields, if it may stand at the end of the list.
    fn check(&self, node: &Node) -> Result<DType, ExprError> {
        let of = |i: u32| {
            self.dtypes
                .get(i as usize)
                .copied()
                .ok_or(ExprError::Order { node: self.nodes.len(), operand: i })
        };
        let same = |op: String, a: u32, b: u32| {
            let (left, right) = (of(a)?, of(b)?);
            if left == right { Ok(left) } else { Err(ExprError::MixedDTypes { op, left, right }) }
        };
        match *node {
            Node::Input(slot) => {
                self.inputs.get(slot as usize).copied().ok_or(ExprError::NoInput(slot))
            }
            Node::Literal(s) => Ok(s.dtype()),
            Node::Unary(op, a) => op.result(of(a)?),
            Node::Binary(op, a, b) => op.result(same(op.name(), a, b)?),
            Node::Where(c, a, b) => match of(c)? {
                DType::Bool => same("where".into(), a, b),
                other => Err(ExprError::Condition(other)),
            },
            Node::Cast(dtype, a) => of(a).map(|_| dtype),
        }
    }
}

impl TryFrom<ExprText> for Expr {
    type Error = ExprError;

    fn try_from(text: ExprText) -> Result<Self, ExprError> {
        let mut expr = Expr::new(text.inputs);
        for node in text.nodes {
            let dtype = expr.check(&node)?;
            expr.nodes.push(node);
            expr.dtypes.push(dtype);
        }
        if text.results.is_empty() {
            return Err(ExprError::NoResult);
        }
        if let Some(bad) = text.results.iter().find(|r| **r as usize >= expr.nodes.len()) {
            return Err(ExprError::Order { node: expr.nodes.len(), operand: *bad });
        }
        expr.results = text.results;
        Ok(expr)
    }
}

impl From<Expr> for ExprText {
    fn from(expr: Expr) -> Self {
        ExprText { inputs: expr.inputs, nodes: expr.nodes, results: expr.results }
    }
}
