//! Elementwise expressions as data.
//!
//! An [`Expr`] is a list of nodes, each of which refers to earlier nodes only, with one or more
//! results. [`Expr::append`] fuses two expressions: the results of one become inputs of the other.
//! Operands of a node have one dtype; casts are nodes, inserted while the expression is built.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::dtype::{DType, Kind};
use crate::scalar::Scalar;

/// The set of dtypes for which a function is defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// All dtypes.
    All,
    /// Bool.
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

/// The dtype of a function's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResultType {
    Same,
    Bool,
    /// The dtype of a complex number's parts.
    Part,
}

impl Domain {
    /// Returns a description, such as `integers, floats`.
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

    /// Returns true if the domain contains `dtype`.
    pub fn contains(self, dtype: DType) -> bool {
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

impl ResultType {
    fn of(self, dtype: DType) -> DType {
        match (self, dtype) {
            (ResultType::Bool, _) => DType::Bool,
            (ResultType::Part, DType::Complex64) => DType::Float32,
            (ResultType::Part, DType::Complex128) => DType::Float64,
            _ => dtype,
        }
    }
}

/// Defines an enum of functions, with the domain and the result dtype of each.
macro_rules! functions {
    ($(#[$meta:meta])* $name:ident { $($op:ident: $domain:ident -> $gives:ident,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[allow(missing_docs)]
        pub enum $name { $($op,)* }

        impl $name {
            /// Returns the dtypes for which the function is defined.
            pub fn domain(self) -> Domain {
                match self { $($name::$op => Domain::$domain,)* }
            }

            /// Returns the dtype of the result for operands of `dtype`.
            ///
            /// # Errors
            /// Returns an error if the function is not defined for `dtype`.
            pub fn result(self, dtype: DType) -> Result<DType, ExprError> {
                if !self.domain().contains(dtype) {
                    return Err(ExprError::Domain { op: self.name(), dtype });
                }
                Ok(match self { $($name::$op => ResultType::$gives,)* }.of(dtype))
            }

            /// Returns the function's name in the Array API standard.
            pub fn name(self) -> String {
                let name = serde_json::to_value(self).ok();
                name.and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
            }
        }
    };
}

functions! {
    /// A unary elementwise function.
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
    /// A binary elementwise function of operands of one dtype.
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

/// A node of an expression. Operands are indices of earlier nodes.
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

/// An error in an expression.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum ExprError {
    #[error("{op} is not defined for {dtype}")]
    Domain { op: String, dtype: DType },
    #[error("{op} requires operands of one dtype, found {left} and {right} (hint: cast one)")]
    MixedDTypes { op: String, left: DType, right: DType },
    #[error("the condition of `where` must be bool, not {0}")]
    Condition(DType),
    #[error("invalid operand {operand} of node {node}: expected an earlier node")]
    Order { node: usize, operand: u32 },
    #[error("invalid input {0}: the expression has fewer inputs")]
    NoInput(u32),
    #[error("an expression needs at least one result")]
    NoResult,
}

/// An elementwise expression: dtypes of the inputs, nodes in order, and indices of the result
/// nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "SerializedExpr", into = "SerializedExpr")]
pub struct Expr {
    inputs: Vec<DType>,
    nodes: Vec<Node>,
    results: Vec<u32>,
    dtypes: Vec<DType>,
    index: Index,
}

/// An index of the first node of each value, for expressions of many nodes. It is derived from the
/// nodes, so comparisons ignore it.
#[derive(Clone, Debug, Default)]
struct Index {
    places: HashMap<Node, u32>,
    /// The number of indexed nodes.
    n: usize,
}

/// The number of nodes from which an expression is indexed. Shorter lists are searched linearly.
const MIN_INDEXED_NODES: usize = 64;

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
    /// Returns the position of the first node equal to `node`.
    fn find(&mut self, nodes: &[Node], node: &Node) -> Option<usize> {
        if nodes.len() < MIN_INDEXED_NODES {
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
struct SerializedExpr {
    inputs: Vec<DType>,
    nodes: Vec<Node>,
    results: Vec<u32>,
}

impl Expr {
    /// Creates an expression of inputs without nodes.
    pub fn new(inputs: Vec<DType>) -> Expr {
        Expr {
            inputs,
            nodes: Vec::new(),
            results: Vec::new(),
            dtypes: Vec::new(),
            index: Index::default(),
        }
    }

    /// Creates the expression that returns its single input.
    pub fn identity(dtype: DType) -> Expr {
        Expr {
            inputs: vec![dtype],
            nodes: vec![Node::Input(0)],
            results: vec![0],
            dtypes: vec![dtype],
            index: Index::default(),
        }
    }

    /// Creates an expression with the node that `build` returns, given the input nodes, as result.
    ///
    /// # Errors
    /// Returns the error of `build`.
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

    /// Adds a node unless an equal node exists. Returns the index of the node.
    ///
    /// # Errors
    /// Returns an error if an operand is not an earlier node, or if the function is not defined for
    /// the operands' dtypes.
    pub fn push(&mut self, node: Node) -> Result<u32, ExprError> {
        if let Some(same) = self.index.find(&self.nodes, &node) {
            return Ok(same as u32);
        }
        let dtype = self.check(&node)?;
        self.nodes.push(node);
        self.dtypes.push(dtype);
        Ok(self.nodes.len() as u32 - 1)
    }

    /// Adds an input and returns its index.
    pub fn add_input(&mut self, dtype: DType) -> u32 {
        self.inputs.push(dtype);
        self.inputs.len() as u32 - 1
    }

    /// Appends nodes to the results.
    pub fn add_results(&mut self, results: &[u32]) {
        self.results.extend_from_slice(results);
    }

    /// Replaces the results.
    pub fn set_results(&mut self, results: &[u32]) {
        self.results = results.to_vec();
    }

    /// Appends `other` with the nodes `arguments` as its inputs. Returns the nodes of its results.
    ///
    /// # Errors
    /// Returns an error if an argument is missing, or if its dtype differs from that of the input.
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

    /// Returns the dtypes of the inputs.
    pub fn inputs(&self) -> &[DType] {
        &self.inputs
    }

    /// Returns the nodes, operands before their users.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns the indices of the result nodes.
    pub fn results(&self) -> &[u32] {
        &self.results
    }

    /// Returns the dtype of a node.
    pub fn dtype(&self, node: u32) -> DType {
        self.dtypes[node as usize]
    }

    /// Returns the dtypes of the results.
    pub fn result_dtypes(&self) -> Vec<DType> {
        self.results.iter().map(|r| self.dtype(*r)).collect()
    }

    /// Returns true if the expression returns its single input unchanged.
    pub fn is_identity(&self) -> bool {
        self.nodes == [Node::Input(0)] && self.results == [0]
    }

    /// Returns the dtype of `node` as the next node.
    ///
    /// # Errors
    /// Returns an error if an operand is not an earlier node, or if the function is not defined for
    /// the operands' dtypes.
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

impl TryFrom<SerializedExpr> for Expr {
    type Error = ExprError;

    fn try_from(text: SerializedExpr) -> Result<Self, ExprError> {
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

impl From<Expr> for SerializedExpr {
    fn from(expr: Expr) -> Self {
        SerializedExpr { inputs: expr.inputs, nodes: expr.nodes, results: expr.results }
    }
}
