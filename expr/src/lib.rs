//! The expression language: arrays from text such as `mean(u*v, axis=0)[::2]`.
//!
//! The syntax is that of Python. The functions are those of the [`vocabulary`], and operators map
//! to its functions. A text passes through `lexer` → `parser` → [`ast`] → `evaluate`, with
//! `numbers` for arithmetic without arrays. No array data is read or written. Errors point to the
//! position in the text.
//!
//! ```
//! use freestone_expr::{Expression, Inputs};
//!
//! let x = freestone_ops::arange(0.0, 12.0, 1.0, freestone_kernels::DType::Float64, 5);
//! let inputs = Inputs::from([("x".to_owned(), x)]);
//! let total = Expression::parse("sum(x[::-2] * 2)")?.array(&inputs)?;
//! assert!(total.shape()?.is_empty());
//!
//! let error = Expression::parse("sum(x[::-2] * )").unwrap_err();
//! assert_eq!(error.span, 14..15);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod ast;
mod error;
mod evaluate;
mod lexer;
mod numbers;
mod parser;
#[cfg(test)]
mod tests;
pub mod vocabulary;

use freestone_ops::Array;

pub use error::ExpressionError;
pub use evaluate::Inputs;
pub use lexer::is_identifier;

/// A well-formed expression.
#[derive(Clone, Debug)]
pub struct Expression {
    text: String,
    root: ast::Expr,
}

impl Expression {
    /// Parses a text.
    ///
    /// # Errors
    /// Returns an error with its position if the text is not an expression.
    pub fn parse(text: &str) -> Result<Expression, ExpressionError> {
        Ok(Expression { text: text.to_owned(), root: parser::parse(text)? })
    }

    /// Returns the text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the syntax tree.
    pub fn root(&self) -> &ast::Expr {
        &self.root
    }

    /// Builds the lazy array that the expression denotes.
    ///
    /// # Errors
    /// Returns an error if a name is unknown, arguments do not match a function, or the result is
    /// not an array. If a function rejects its arrays, [`cause`](field@ExpressionError::cause) is
    /// the function's error.
    pub fn array(&self, inputs: &Inputs) -> Result<Array, ExpressionError> {
        evaluate::array(&self.root, inputs).map_err(|e| e.in_text(&self.text))
    }
}
