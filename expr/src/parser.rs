//! The parser: from tokens to a syntax tree, with the grammar and precedences of Python.
//!
//! Binary operators are parsed by precedence climbing (Pratt 1973). Operators of one precedence in
//! a row are one node, so the length of a sum is bounded only by the length of the text. Python
//! syntax outside the expression language is rejected with the replacement in a hint.

mod attribute;

use super::ast::{Argument, Binary, Expr, Kind, Operation, Span, Subscript, Unary};
use super::error::ExpressionError;
use super::lexer::{KEYWORDS, Token, TokenKind, tokens};
use super::vocabulary::{self, either, nearest};

/// The maximum length of an expression in bytes.
const MAX_BYTES: usize = 65_536;
/// The maximum nesting of brackets, signs and `**`. Parsing recurses for each of them.
const MAX_NESTING: usize = 100;
/// The maximum height of the tree. Evaluation, printing and dropping recurse for each level.
const MAX_DEPTH: usize = 1000;

type Result<T> = std::result::Result<T, ExpressionError>;

/// Parses an expression.
pub(super) fn parse(text: &str) -> Result<Expr> {
    parse_text(text).map_err(|e| e.in_text(text))
}

fn parse_text(text: &str) -> Result<Expr> {
    if text.len() > MAX_BYTES {
        return Err(ExpressionError::new(
            format!("expression is too long: {} bytes, at most {MAX_BYTES} bytes", text.len()),
            0..1,
        ));
    }
    let mut parser = Parser { text, tokens: tokens(text)?, position: 0, nesting: 0 };
    if parser.tokens.len() == 1 {
        return Err(ExpressionError::new("expression is empty", 0..0));
    }
    let expr = parser.expression(0)?;
    match parser.peek() {
        TokenKind::End => Ok(expr),
        TokenKind::Symbol(",") => Err(parser
            .error("expected one expression, found several", "the second expression")
            .help("pass each expression as a separate argument")),
        _ => Err(parser.unexpected("an operator or the end of the expression")),
    }
}

struct Parser<'t> {
    text: &'t str,
    tokens: Vec<Token>,
    /// The index of the next token.
    position: usize,
    nesting: usize,
}

impl Parser<'_> {
    fn peek(&self) -> &TokenKind {
        // The position never passes `End`.
        self.tokens.get(self.position).map_or(&TokenKind::End, |t| &t.kind)
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(self.peek(), TokenKind::Symbol(s) if *s == symbol)
    }

    fn span(&self) -> Span {
        self.tokens.get(self.position).map_or(self.text.len()..self.text.len(), |t| t.span.clone())
    }

    fn previous_end(&self) -> usize {
        self.position.checked_sub(1).and_then(|i| self.tokens.get(i)).map_or(0, |t| t.span.end)
    }

    fn next(&mut self) -> TokenKind {
        let kind = self.peek().clone();
        if kind != TokenKind::End {
            self.position += 1;
        }
        kind
    }

    /// Consumes the next token if it is that symbol.
    fn eat(&mut self, symbol: &str) -> bool {
        let is = self.is(symbol);
        self.position += usize::from(is);
        is
    }

    fn error(&self, message: impl Into<String>, label: impl Into<String>) -> ExpressionError {
        ExpressionError::new(message, self.span()).label(label)
    }

    /// Returns the error for the next token, which is not the expected one.
    fn unexpected(&self, expected: &str) -> ExpressionError {
        let at = |message: String| self.error(message, format!("expected {expected}"));
        match self.peek() {
            TokenKind::End => at("unexpected end of expression".into()),
            TokenKind::Name(word) => match KEYWORDS.iter().find(|(k, _)| k == word) {
                Some((_, hint)) => {
                    self.error(format!("keyword `{word}` is not supported"), "").help(*hint)
                }
                None => at(format!("unexpected `{word}`")),
            },
            TokenKind::Symbol(symbol) => {
                let error = at(format!("unexpected `{symbol}`"));
                match symbol_hint(symbol) {
                    Some(hint) => error.help(hint),
                    None => error,
                }
            }
            _ => at(format!("unexpected `{}`", self.text.get(self.span()).unwrap_or_default())),
        }
    }

    fn expect(&mut self, symbol: &'static str, opened: Span) -> Result<()> {
        if self.eat(symbol) {
            return Ok(());
        }
        if *self.peek() == TokenKind::End {
            let open = &self.text[opened.clone()];
            return Err(ExpressionError::new(format!("`{open}` is not closed"), opened)
                .label(format!("missing `{symbol}`")));
        }
        Err(self.unexpected(&format!("`,` or `{symbol}`")))
    }

    /// Parses one nesting level deeper.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.nesting == MAX_NESTING {
            return Err(self.error(
                "expression is nested too deeply",
                format!("more than {MAX_NESTING} nested brackets, signs or powers"),
            ));
        }
        self.nesting += 1;
        let result = parse(self);
        self.nesting -= 1;
        result
    }

    fn node(&self, kind: Kind, span: Span) -> Result<Expr> {
        let depth = self.check_depth(1 + kind.operand_depth())?;
        Ok(Expr { kind, span, depth })
    }

    fn check_depth(&self, depth: usize) -> Result<usize> {
        if depth <= MAX_DEPTH {
            return Ok(depth);
        }
        let label = format!("more than {MAX_DEPTH} levels of operators and indices");
        Err(self.error("expression is nested too deeply", label))
    }

    /// Parses operators of at least that precedence.
    fn expression(&mut self, min_precedence: u8) -> Result<Expr> {
        let mut left = self.operand()?;
        while let Some(op) = self.binary_operator().filter(|op| op.precedence() >= min_precedence) {
            self.check_comparison(op, &left)?;
            self.position += 1;
            // The right operand of `**` includes signs and further powers, which makes `**` right
            // associative.
            let right = if op == Binary::Pow {
                self.nested(|p| p.expression(Unary::Negative.precedence()))?
            } else {
                self.expression(op.precedence() + 1)?
            };
            left = self.binary(left, op, right)?;
        }
        Ok(left)
    }

    fn binary_operator(&self) -> Option<Binary> {
        let TokenKind::Symbol(symbol) = self.peek() else { return None };
        Binary::ALL.iter().copied().find(|op| op.symbol() == *symbol)
    }

    fn check_comparison(&self, op: Binary, left: &Expr) -> Result<()> {
        let follows_comparison = match &left.kind {
            Kind::Binary(_, operations) => operations.iter().any(|o| o.operator.is_comparison()),
            _ => false,
        };
        if !follows_comparison || !op.is_comparison() || self.is_parenthesized(left) {
            return Ok(());
        }
        let help = "write `(a < b) & (b < c)`; comparisons need parentheses because `&` and `|` \
            bind more tightly";
        Err(self.error("comparisons do not chain", "second comparison").help(help))
    }

    /// Adds an operation to `left`: to its list if all its operators have the same precedence, else
    /// to a new node.
    fn binary(&self, mut left: Expr, operator: Binary, right: Expr) -> Result<Expr> {
        let end = self.previous_end();
        let span = left.span.start..end;
        let depth = self.check_depth(1 + right.depth)?;
        let operation = Operation { operator, right, end };
        match &mut left.kind {
            Kind::Binary(_, operations)
                if operator.is_left_associative()
                    && operations
                        .iter()
                        .all(|o| o.operator.precedence() == operator.precedence()) =>
            {
                operations.push(operation);
                left.span = span;
                left.depth = left.depth.max(depth);
                Ok(left)
            }
            _ => self.node(Kind::Binary(Box::new(left), vec![operation]), span),
        }
    }

    /// Returns true if the previous token is a closing parenthesis around `part`.
    fn is_parenthesized(&self, part: &Expr) -> bool {
        self.previous_end() > part.span.end
    }

    /// Parses an atom with its brackets, or a sign with its operand.
    fn operand(&mut self) -> Result<Expr> {
        let start = self.span().start;
        let sign = Unary::ALL.iter().copied().find(|op| self.is(op.symbol()));
        let Some(op) = sign else { return self.postfix() };
        self.position += 1;
        let of = self.nested(|p| p.expression(op.precedence()))?;
        self.node(Kind::Unary(op, Box::new(of)), start..self.previous_end())
    }

    fn postfix(&mut self) -> Result<Expr> {
        let start = self.span().start;
        let mut left = self.atom()?;
        loop {
            let opened = self.span();
            if self.eat("[") {
                if self.is("]") {
                    return Err(self.unexpected("an index, a slice, `...` or `None`"));
                }
                let entries = self.nested(|p| p.list("]", opened, Parser::subscript))?.0;
                let kind = Kind::Index(Box::new(left), entries);
                left = self.node(kind, start..self.previous_end())?;
            } else if self.eat("(") {
                let Kind::Name(name) = &left.kind else {
                    let span = left.span.start..opened.end;
                    return Err(ExpressionError::new("only functions can be called", span)
                        .label("not the name of a function"));
                };
                let name = name.clone();
                let arguments = self.nested(|p| p.list(")", opened, Parser::argument))?.0;
                left = self.node(Kind::Call(name, arguments), start..self.previous_end())?;
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
            TokenKind::Name(word) if KEYWORDS.iter().all(|(k, _)| k != word) => {
                Kind::Name(word.clone())
            }
            TokenKind::Int(i) => Kind::Int(*i),
            TokenKind::Float(x) => Kind::Float(*x),
            TokenKind::Imaginary(x) => Kind::Imaginary(*x),
            TokenKind::Text(text) => Kind::Text(text.clone()),
            TokenKind::Symbol("(") => {
                self.position += 1;
                let (mut items, comma) =
                    self.nested(|p| p.list(")", span.clone(), |p| p.expression(0)))?;
                return match items.pop() {
                    // Parentheses around one expression only group.
                    Some(one) if items.is_empty() && !comma => Ok(one),
                    last => {
                        items.extend(last);
                        self.node(Kind::Tuple(items), span.start..self.previous_end())
                    }
                };
            }
            TokenKind::Symbol("[") => {
                self.position += 1;
                let items = self.nested(|p| p.list("]", span.clone(), |p| p.expression(0)))?.0;
                return self.node(Kind::List(items), span.start..self.previous_end());
            }
            _ => return Err(self.unexpected("an array, a number or a function")),
        };
        self.position += 1;
        self.node(kind, span)
    }

    /// Parses items up to the closing bracket. Returns them, and true if a comma follows the last.
    fn list<T>(
        &mut self,
        close: &'static str,
        opened: Span,
        item: impl Fn(&mut Self) -> Result<T>,
    ) -> Result<(Vec<T>, bool)> {
        let (mut items, mut comma) = (Vec::new(), false);
        while !self.is(close) {
            items.push(item(self)?);
            comma = self.eat(",");
            if !comma {
                break;
            }
        }
        self.expect(close, opened)?;
        Ok((items, comma))
    }

    fn argument(&mut self) -> Result<Argument> {
        if self.is("*") || self.is("**") {
            return Err(self.unexpected("an argument").help("write out each argument"));
        }
        let start = self.span().start;
        let following = self.tokens.get(self.position + 1).map(|t| &t.kind);
        let name = match (self.peek(), following) {
            (TokenKind::Name(name), Some(TokenKind::Symbol("="))) => Some(name.clone()),
            _ => None,
        };
        self.position += if name.is_some() { 2 } else { 0 };
        let value = self.expression(0)?;
        Ok(Argument { name, value, span: start..self.previous_end() })
    }

    fn subscript(&mut self) -> Result<Subscript> {
        let span = self.span();
        if self.eat("...") {
            return Ok(Subscript::Ellipsis(span));
        }
        let start = self.bound()?;
        match (start, self.eat(":")) {
            (start, true) => {
                let stop = self.bound()?;
                let step = if self.eat(":") { self.bound()? } else { None };
                Ok(Subscript::Slice { start, stop, step })
            }
            (Some(at), false) => Ok(Subscript::At(at)),
            (None, false) => Err(self.unexpected("an index, a slice, `...` or `None`")),
        }
    }

    /// Parses a bound or step of a slice, which may be absent.
    fn bound(&mut self) -> Result<Option<Expr>> {
        if [":", ",", "]"].iter().any(|s| self.is(s)) {
            return Ok(None);
        }
        self.expression(0).map(Some)
    }
}

/// Returns a hint for symbols of Python and other languages that are not supported.
fn symbol_hint(symbol: &str) -> Option<&'static str> {
    Some(match symbol {
        "&&" => "write `&`, with comparisons in parentheses",
        "||" => "write `|`, with comparisons in parentheses",
        "!" => "write `~`",
        "=" => "assignment is not supported; write `==` to compare",
        ":=" | "+=" | "-=" | "*=" | "/=" | "**=" | "//=" | "<<=" | ">>=" => {
            "assignment is not supported"
        }
        "?" => "write `where(condition, a, b)`",
        ":" => "write slices in brackets: `x[1:5]`",
        "..." => "write `...` in brackets: `x[..., 0]`",
        "{" | "}" => "write sequences as `(1, 2)` or `[1, 2]`",
        ";" => "pass each expression as a separate argument",
        _ => return None,
    })
}

impl Kind {
    /// Returns the largest height of the operands.
    fn operand_depth(&self) -> usize {
        let highest = |depths: &mut dyn Iterator<Item = usize>| depths.max().unwrap_or(0);
        match self {
            Kind::Unary(_, a) => a.depth,
            Kind::Binary(first, operations) => {
                highest(&mut operations.iter().map(|o| o.right.depth)).max(first.depth)
            }
            Kind::Call(_, arguments) => highest(&mut arguments.iter().map(|a| a.value.depth)),
            Kind::Index(of, entries) => {
                highest(&mut entries.iter().map(Subscript::depth)).max(of.depth)
            }
            Kind::Tuple(items) | Kind::List(items) => highest(&mut items.iter().map(|i| i.depth)),
            _ => 0,
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
