//! Elementwise expressions as data.
//!
//! An [`Expr`] is a list in which every node refers to earlier ones only, with one or more results. Fusing two operations
//! is [`Expr::append`]: one expression's results become another's inputs. Dtypes never mix inside: casts are nodes, put in
//! while the expression is built.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::dtype::{DType, Kind};
use crate::scalar::Scalar;

/// Function of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum UnaryOp {
    Negative,
    Abs,
    Sqrt,
    Round,
    LogicalNot,
}

/// Function of two elements of one dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum BinaryOp {
    Add,
    Subtract,
    Multiply,
    Divide,
    Minimum,
    Maximum,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    LogicalAnd,
    LogicalOr,
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

/// An elementwise expression: inputs' dtypes, nodes in order, indices of the nodes that are results.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "ExprText", into = "ExprText")]
pub struct Expr {
    inputs: Vec<DType>,
    nodes: Vec<Node>,
    results: Vec<u32>,
    dtypes: Vec<DType>,
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
        Expr { inputs, nodes: Vec::new(), results: Vec::new(), dtypes: Vec::new() }
    }

    /// The expression that returns its only input.
    pub fn identity(dtype: DType) -> Expr {
        Expr { inputs: vec![dtype], nodes: vec![Node::Input(0)], results: vec![0], dtypes: vec![dtype] }
    }

    /// One function of inputs in order.
    ///
    /// # Errors
    /// Where the function is not defined for those dtypes.
    pub fn of(inputs: &[DType], build: impl FnOnce(&mut Expr, &[u32]) -> Result<u32, ExprError>) -> Result<Expr, ExprError> {
        let mut expr = Expr::new(inputs.to_vec());
        let slots = (0..inputs.len() as u32).map(|i| expr.push(Node::Input(i))).collect::<Result<Vec<_>, _>>()?;
        let result = build(&mut expr, &slots)?;
        expr.results.push(result);
        Ok(expr)
    }

    /// Adds a node, or finds the equal one that is already there; returns its index.
    ///
    /// # Errors
    /// Where an operand is not before it, or its function is not defined for the operands' dtypes.
    pub fn push(&mut self, node: Node) -> Result<u32, ExprError> {
        if let Some(same) = self.nodes.iter().position(|n| *n == node) {
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

    /// Appends `other`, whose inputs are the nodes `arguments` of this expression; returns the nodes of its results.
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
        let of = |i: u32| self.dtypes.get(i as usize).copied().ok_or(ExprError::Order { node: self.nodes.len(), operand: i });
        let same = |op: String, a: u32, b: u32| {
            let (left, right) = (of(a)?, of(b)?);
            if left == right { Ok(left) } else { Err(ExprError::MixedDTypes { op, left, right }) }
        };
        match *node {
            Node::Input(slot) => self.inputs.get(slot as usize).copied().ok_or(ExprError::NoInput(slot)),
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

impl UnaryOp {
    /// Dtype of the result.
    ///
    /// # Errors
    /// Where it is not defined for `dtype`.
    pub fn result(self, dtype: DType) -> Result<DType, ExprError> {
        let kind = dtype.kind();
        match self {
            UnaryOp::Negative if kind != Kind::Bool => Ok(dtype),
            UnaryOp::Abs => match dtype {
                DType::Bool => None,
                DType::Complex64 => Some(DType::Float32),
                DType::Complex128 => Some(DType::Float64),
                other => Some(other),
            }
            .ok_or(self.domain(dtype)),
            UnaryOp::Sqrt if matches!(kind, Kind::Float | Kind::Complex) => Ok(dtype),
            UnaryOp::Round if dtype.is_real() => Ok(dtype),
            UnaryOp::LogicalNot if kind == Kind::Bool => Ok(dtype),
            _ => Err(self.domain(dtype)),
        }
    }

    fn domain(self, dtype: DType) -> ExprError {
        ExprError::Domain { op: name(&self), dtype }
    }
}

impl BinaryOp {
    /// The function's name in the Array API standard.
    pub fn name(self) -> String {
        name(&self)
    }

    /// Dtype of the result for operands of `dtype`.
    ///
    /// # Errors
    /// Where it is not defined for `dtype`.
    pub fn result(self, dtype: DType) -> Result<DType, ExprError> {
        use BinaryOp as B;
        let kind = dtype.kind();
        let result = match self {
            B::Add | B::Subtract | B::Multiply => (kind != Kind::Bool).then_some(dtype),
            B::Divide => matches!(kind, Kind::Float | Kind::Complex).then_some(dtype),
            B::Minimum | B::Maximum => dtype.is_real().then_some(dtype),
            B::Equal | B::NotEqual => Some(DType::Bool),
            B::Less | B::LessEqual | B::Greater | B::GreaterEqual => dtype.is_real().then_some(DType::Bool),
            B::LogicalAnd | B::LogicalOr => (kind == Kind::Bool).then_some(dtype),
        };
        result.ok_or(ExprError::Domain { op: self.name(), dtype })
    }
}

/// The serialised name of a variant.
fn name(op: &impl Serialize) -> String {
    serde_json::to_value(op).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
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
