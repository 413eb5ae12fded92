//! Errors for attributes and methods, such as `x.mean(0)`, which expressions do not have.

use super::{Expr, ExpressionError, Kind, Parser, TokenKind, either, nearest, vocabulary};

/// Names that Python programs give to array modules.
const MODULES: [&str; 6] = ["np", "numpy", "xp", "da", "jnp", "xr"];

impl Parser<'_> {
    /// Returns the error for an attribute of `left`, with the equivalent function call as its hint.
    /// The next token is the dot.
    pub(super) fn attribute(&mut self, left: &Expr, start: usize) -> ExpressionError {
        let object = self.text[start..self.previous_end()].to_owned();
        let dot = self.span();
        self.position += 1;
        let TokenKind::Name(name) = self.next() else {
            return ExpressionError::new("unexpected `.`", dot)
                .label("expected an operator or the end of the expression");
        };
        let span = dot.start..self.previous_end();
        let error = ExpressionError::new("attributes and methods are not supported", span);
        let function = vocabulary::function(&name)
            .or_else(|| vocabulary::function(vocabulary::standard_name(&name)?));
        if matches!(&left.kind, Kind::Name(n) if MODULES.contains(&n.as_str())) {
            let name = function.map_or(name.as_str(), |f| f.name);
            return error.help(format!("write `{name}(…)` without a module"));
        }
        let arguments = self.method_arguments();
        error.help(match (function, name.as_str()) {
            (_, "T" | "mT") => format!("write `permute_dims({object}, (1, 0))`"),
            (Some(f), _) => format!("write `{}`", f.written(&object, &arguments)),
            (None, _) => unknown_method(&name, &object),
        })
    }

    /// Returns the arguments of a method call as text. An absent or malformed list is empty.
    fn method_arguments(&mut self) -> Vec<String> {
        let opened = self.span();
        if !self.eat("(") {
            return Vec::new();
        }
        let parsed = self.list(")", opened, |p| {
            let start = p.span().start;
            p.argument().map(|_| p.text[start..p.previous_end()].to_owned())
        });
        parsed.map_or(Vec::new(), |(arguments, _)| arguments)
    }
}

fn unknown_method(name: &str, object: &str) -> String {
    let near = nearest(name, vocabulary::functions().iter().map(|f| f.name));
    if near.is_empty() {
        format!(
            "call functions with the array as the first argument, `{name}({object})`; \
                `freestone functions` lists all functions"
        )
    } else {
        format!("did you mean {}, called as a function of `{object}`?", either(&near))
    }
}
