//! The expression language: arrays from text such as `mean(u*v, axis=0)[::2]`.
//!
//! The syntax is Python's; the functions are those of the [`vocabulary`], and operators stand for functions in it. The path of a
//! text: `lexer` → `parser` → [`ast`] → `evaluate`, with `numbers` for arithmetic without arrays. Nothing is read or written; an
//! error shows the place in the text.
//!
//! ```
//! use freestone_expr::{Expression, Inputs};
//!
//! let x = freestone_ops::arange(0.0, 12.0, 1.0, freestone_kernels::DType::Float64, 5)?;
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

/// A text that is well-formed.
#[derive(Clone, Debug)]
pub struct Expression {
    text: String,
    root: ast::Expr,
}

impl Expression {
    /// Reads a text.
    ///
    /// # Errors
    /// Where it is no expression, with the place.
    pub fn parse(text: &str) -> Result<Expression, ExpressionError> {
        Ok(Expression { text: text.to_owned(), root: parser::parse(text)? })
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its parts.
    pub fn root(&self) -> &ast::Expr {
        &self.root
    }

    /// The lazy array that it is.
    ///
    /// # Errors
    /// Where a name is not known, arguments do not fit a function, the arrays cannot be computed with (then
    /// [`cause`](field@ExpressionError::cause) is what the function said), or the result is no array.
    pub fn array(&self, inputs: &Inputs) -> Result<Array, ExpressionError> {
        evaluate::array(&self.root, inputs).map_err(|e| e.in_text(&self.text))
    }
}
