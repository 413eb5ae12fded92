//! From tokens to an expression: Python's grammar, as much of it as arrays need, with its
//! precedences.
//!
//! Operators are parsed by how tight they bind (Pratt 1973). What Python has and we do not is
//! refused with what to write instead.

use super::ast::{Argument, Binary, Expr, Kind, Span, Subscript, Unary};
use super::error::ExpressionError;
use super::lexer::{KEYWORDS, Token, What, tokens};
use super::vocabulary::{self, either, nearest};

/// Bytes of an expression: longer ones are no typing.
const MAX_BYTES: usize = 65_536;
/// Brackets and signs inside each other.
const MAX_NESTING: usize = 100;
/// Parts inside each other: a sum of so many terms.
const MAX_DEPTH: usize = 1000;

type Result<T> = std::result::Result<T, ExpressionError>;

/// The expression that a text is.
pub(super) fn parse(text: &str) -> Result<Expr> {
    parse_text(text).map_err(|e| e.in_text(text))
}

fn parse_text(text: &str) -> Result<Expr> {
    if text.len() > MAX_BYTES {
        return Err(ExpressionError::new(
            format!("an expression has at most {MAX_BYTES} bytes, this one has {}", text.len()),
            0..1,
        ));
    }
    let mut parser = Parser { text, tokens: tokens(text)?, at: 0, nesting: 0 };
    if parser.tokens.len() == 1 {
        return Err(ExpressionError::new("the expression is empty", 0..0));
    }
    let expr = parser.expression(0)?;
    match parser.peek() {
        What::End => Ok(expr),
        What::Symbol(",") => Err(parser
            .error("an expression gives one array", "a second one begins here")
            .help("pass several expressions as arguments of their own")),
        _ => Err(parser.unexpected("an operator or the end")),
    }
}

struct Parser<'t> {
    text: &'t str,
    tokens: Vec<Token>,
    at: usize,
    nesting: usize,
}

impl Parser<'_> {
    fn peek(&self) -> &What {
        // `End` is never passed.
        self.tokens.get(self.at).map_or(&What::End, |t| &t.what)
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(self.peek(), What::Symbol(s) if *s == symbol)
    }

    fn span(&self) -> Span {
        self.tokens.get(self.at).map_or(self.text.len()..self.text.len(), |t| t.span.clone())
    }

    fn end_of_last(&self) -> usize {
        self.at.checked_sub(1).and_then(|i| self.tokens.get(i)).map_or(0, |t| t.span.end)
    }

    fn next(&mut self) -> What {
        let what = self.peek().clone();
        if what != What::End {
            self.at += 1;
        }
        what
    }

    fn take(&mut self, symbol: &str) -> bool {
        let is = self.is(symbol);
        self.at += usize::from(is);
        is
    }

    fn error(&self, message: impl Into<String>, label: impl Into<String>) -> ExpressionError {
        ExpressionError::new(message, self.span()).label(label)
    }

    /// The next token is not what should come.
    fn unexpected(&self, expected: &str) -> ExpressionError {
        let at = |message: String| self.error(message, format!("here should be {expected}"));
        match self.peek() {
            What::End => at("the expression ends too early".into()),
            What::Name(word) => match KEYWORDS.iter().find(|(k, _)| k == word) {
                Some((_, instead)) => {
                    self.error(format!("`{word}` is not part of expressions"), "").help(*instead)
                }
                None => at(format!("`{word}` is unexpected")),
            },
            What::Symbol(symbol) => {
                let error = at(format!("`{symbol}` is unexpected"));
                match *symbol {
                    "&&" => error.help("write `&`, with comparisons in parentheses"),
                    "||" => error.help("write `|`, with comparisons in parentheses"),
                    "!" => error.help("write `~`"),
                    "=" => error.help("an expression has no name; to compare write `==`"),
                    ":=" | "+=" | "-=" | "*=" | "/=" | "**=" | "//=" | "<<=" | ">>=" => {
                        error.help("an expression assigns nothing")
                    }
                    "?" => error.help("write `where(condition, a, b)`"),
                    ":" => error.help("slices stand in brackets: `x[1:5]`"),
                    "..." => error.help("`...` stands in brackets: `x[..., 0]`"),
                    "{" | "}" => error.help("sequences are written `(1, 2)` or `[1, 2]`"),
                    ";" => error.help("pass several expressions as arguments of their own"),
                    _ => error,
                }
            }
            _ => at(format!("`{}` is unexpected", self.text.get(self.span()).unwrap_or_default())),
        }
    }

    fn expect(&mut self, symbol: &'static str, opened: Span) -> Result<()> {
        if self.take(symbol) {
            return Ok(());
        }
        if *self.peek() == What::End {
            let open = &self.text[opened.clone()];
            return Err(ExpressionError::new(format!("`{open}` is not closed"), opened)
                .label(format!("no `{symbol}` for it")));
        }
        Err(self.unexpected(&format!("`,` or `{symbol}`")))
    }

    /// Goes one bracket or sign deeper.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.nesting == MAX_NESTING {
            return Err(self.error(
                "the expression is nested too deep",
                format!("more than {MAX_NESTING} brackets or signs in each other"),
            ));
        }
        self.nesting += 1;
        let result = parse(self);
        self.nesting -= 1;
        result
    }

    fn make(&self, kind: Kind, span: Span) -> Result<Expr> {
        let depth = 1 + match &kind {
            Kind::Unary(_, a) => a.depth,
            Kind::Binary(_, a, b) => a.depth.max(b.depth),
            Kind::Call(_, arguments) => arguments.iter().map(|a| a.value.depth).max().unwrap_or(0),
            Kind::Index(of, entries) => {
                entries.iter().map(Subscript::depth).max().unwrap_or(0).max(of.depth)
            }
            Kind::Tuple(items) | Kind::List(items) => {
                items.iter().map(|i| i.depth).max().unwrap_or(0)
            }
            _ => 0,
        };
        if depth > MAX_DEPTH {
            return Err(ExpressionError::new("the expression is too long", self.span())
                .label(format!("more than {MAX_DEPTH} operators in each other")));
        }
        Ok(Expr { kind, span, depth })
    }

    /// Operators that bind at least that tight.
    fn expression(&mut self, least: u8) -> Result<Expr> {
        let mut left = self.operand()?;
        while let What::Symbol(symbol) = self.peek() {
            let Some(op) = Binary::ALL
                .iter()
                .copied()
                .find(|op| op.symbol() == *symbol)
                .filter(|op| op.binds() >= least)
            else {
                break;
            };
            if let Kind::Binary(before, ..) = &left.kind
                && before.compares()
                && op.compares()
                && !self.closed(&left)
            {
                let help = "write `(a < b) & (b < c)`; `&` and `|` bind tighter than comparisons, \
                    which need parentheses beside them";
                return Err(self
                    .error("comparisons do not chain", "a second comparison")
                    .help(help));
            }
            self.at += 1;
            // `**` takes everything on its right that binds as a sign or tighter, which makes it
            // right associative.
            let right = if op == Binary::Pow {
                self.nested(|p| p.expression(Unary::Negative.binds()))?
            } else {
                self.expression(op.binds() + 1)?
            };
            let span = left.span.start..self.end_of_last();
            left = self.make(Kind::Binary(op, Box::new(left), Box::new(right)), span)?;
        }
        Ok(left)
    }

    /// True if the token before is the closing parenthesis around that part.
    fn closed(&self, part: &Expr) -> bool {
        self.end_of_last() > part.span.end
    }

    /// A sign and what it is of, or an atom with its brackets.
    fn operand(&mut self) -> Result<Expr> {
        let start = self.span().start;
        let sign = Unary::ALL.iter().copied().find(|op| self.is(op.symbol()));
        let Some(op) = sign else { return self.postfix() };
        self.at += 1;
        let of = self.nested(|p| p.expression(op.binds()))?;
        self.make(Kind::Unary(op, Box::new(of)), start..self.end_of_last())
    }

    fn postfix(&mut self) -> Result<Expr> {
        let start = self.span().start;
        let mut left = self.atom()?;
        loop {
            let opened = self.span();
            if self.take("[") {
                if self.is("]") {
                    return Err(self.unexpected("an index, a slice, `...` or `None`"));
                }
                let entries = self.nested(|p| p.list("]", opened, Parser::subscript))?.0;
                left =
                    self.make(Kind::Index(Box::new(left), entries), start..self.end_of_last())?;
            } else if self.take("(") {
                let Kind::Name(name) = &left.kind else {
                    return Err(ExpressionError::new(
                        "only functions can be called",
                        left.span.start..opened.end,
                    )
                    .label("this is no function's name"));
                };
                let name = name.clone();
                let arguments = self.nested(|p| p.list(")", opened, Parser::argument))?.0;
                left = self.make(Kind::Call(name, arguments), start..self.end_of_last())?;
            } else if self.is(".") {
                return Err(self.attribute(&left, start));
            } else {
                return Ok(left);
            }
        }
    }

    fn atom(&mut self) -> Result<Expr> {
        let span = self.span();
        let kind = match self.peek() {
            What::Name(word) if KEYWORDS.iter().all(|(k, _)| k != word) => Kind::Name(word.clone()),
            What::Int(i) => Kind::Int(*i),
            What::Float(x) => Kind::Float(*x),
            What::Imaginary(x) => Kind::Imaginary(*x),
            What::Text(text) => Kind::Text(text.clone()),
            What::Symbol("(") => {
                self.at += 1;
                let (mut items, comma) =
                    self.nested(|p| p.list(")", span.clone(), |p| p.expression(0)))?;
                return match items.pop() {
                    // Parentheses only group.
                    Some(one) if items.is_empty() && !comma => Ok(one),
                    last => {
                        items.extend(last);
                        self.make(Kind::Tuple(items), span.start..self.end_of_last())
                    }
                };
            }
            What::Symbol("[") => {
                self.at += 1;
                let items = self.nested(|p| p.list("]", span.clone(), |p| p.expression(0)))?.0;
                return self.make(Kind::List(items), span.start..self.end_of_last());
            }
            _ => return Err(self.unexpected("an array, a number or a function")),
        };
        self.at += 1;
        self.make(kind, span)
    }

    /// Items up to the closing bracket, and whether a comma stands last.
    fn list<T>(
        &mut self,
        close: &'static str,
        opened: Span,
        item: impl Fn(&mut Self) -> Result<T>,
    ) -> Result<(Vec<T>, bool)> {
        let (mut items, mut comma) = (Vec::new(), false);
        while !self.is(close) {
            items.push(item(self)?);
            comma = self.take(",");
            if !comma {
                break;
            }
        }
        self.expect(close, opened)?;
        Ok((items, comma))
    }

    fn argument(&mut self) -> Result<Argument> {
        if self.is("*") || self.is("**") {
            return Err(self.unexpected("an argument").help("arguments are written one by one"));
        }
        let start = self.span().start;
        let named =
            matches!(self.tokens.get(self.at + 1).map(|t| &t.what), Some(What::Symbol("=")));
        let name = match self.peek() {
            What::Name(name) if named => Some(name.clone()),
            _ => None,
        };
        self.at += if name.is_some() { 2 } else { 0 };
        let value = self.expression(0)?;
        Ok(Argument { name, value, span: start..self.end_of_last() })
    }

    fn subscript(&mut self) -> Result<Subscript> {
        let span = self.span();
        if self.take("...") {
            return Ok(Subscript::Ellipsis(span));
        }
        let bound = |p: &mut Self| {
            if [":", ",", "]"].iter().any(|s| p.is(s)) {
                Ok(None)
            } else {
                p.expression(0).map(Some)
            }
        };
        let start = bound(self)?;
        match (start, self.take(":")) {
            (start, true) => {
                let stop = bound(self)?;
                let step = if self.take(":") { bound(self)? } else { None };
                Ok(Subscript::Slice { start, stop, step })
            }
            (Some(at), false) => Ok(Subscript::At(at)),
            (None, false) => Err(self.unexpected("an index, a slice, `...` or `None`")),
        }
    }

    /// `x.name`: how the same is written as a call.
    fn attribute(&mut self, left: &Expr, start: usize) -> ExpressionError {
        let object = self.text[start..self.end_of_last()].to_owned();
        let dot = self.span();
        self.at += 1;
        let What::Name(name) = self.next() else {
            return ExpressionError::new("`.` is unexpected", dot)
                .label("here should be an operator or the end");
        };
        let error = ExpressionError::new(
            "arrays have no attributes or methods here",
            dot.start..self.end_of_last(),
        )
        .label("not part of expressions");
        let function = vocabulary::function(&name)
            .or_else(|| vocabulary::function(vocabulary::standard_name(&name)?));
        if matches!(&left.kind, Kind::Name(n) if matches!(n.as_str(), "np" | "numpy" | "xp" | "da" | "jnp" | "xr"))
        {
            return error.help(format!(
                "functions have no module: write `{}(…)`",
                function.map_or(name.as_str(), |f| f.name)
            ));
        }
        let opened = self.span();
        let arguments: Option<Vec<String>> = if self.take("(") {
            let parsed = self.list(")", opened, |p| {
                let start = p.span().start;
                p.argument().map(|_| p.text[start..p.end_of_last()].to_owned())
            });
            parsed.ok().map(|p| p.0)
        } else {
            None
        };
        match (function, name.as_str()) {
            (_, "T" | "mT") => error.help(format!("write `permute_dims({object}, (1, 0))`")),
            (Some(f), _) => error.help(format!(
                "write \
                `{}`",
                f.written(&object, &arguments.unwrap_or_default())
            )),
            (None, _) => {
                match nearest(&name, vocabulary::functions().iter().map(|f| f.name)).as_slice() {
                    [] => error.help(format!(
                        "functions are called with the array as their first \
                    argument, `{name}({object})`; `freestone functions` lists them"
                    )),
                    near => error.help(format!(
                        "did you mean {}, called as a function of \
                    `{object}`?",
                        either(near)
                    )),
                }
            }
        }
    }
}

impl Subscript {
    fn depth(&self) -> usize {
        match self {
            Subscript::At(e) => e.depth,
            Subscript::Slice { start, stop, step } => {
                [start, stop, step].into_iter().flatten().map(|e| e.depth).max().unwrap_or(0)
            }
            Subscript::Ellipsis(_) => 0,
        }
    }
}
