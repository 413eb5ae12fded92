//! The lexer: from text to tokens, by Python's rules.

use winnow::Result as Parsed;
use winnow::ascii::digit1;
use winnow::combinator::{alt, opt, repeat};
use winnow::prelude::*;
use winnow::stream::AsChar;
use winnow::token::{any, one_of, take_till, take_while};

use super::ast::Span;
use super::error::ExpressionError;

/// A token with its position.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) span: Span,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum TokenKind {
    Name(String),
    Int(i128),
    Float(f64),
    Imaginary(f64),
    Text(String),
    Symbol(&'static str),
    End,
}

/// All symbols, each before its own prefixes. Some are listed only for better error messages.
const SYMBOLS: [&str; 46] = [
    "...", "**=", "//=", "<<=", ">>=", "**", "//", "<<", ">>", "<=", ">=", "==", "!=", "&&", "||",
    ":=", "->", "+=", "-=", "*=", "/=", "(", ")", "[", "]", "{", "}", ",", ":", ".", "=", "+", "-",
    "*", "/", "%", "@", "&", "|", "^", "~", "<", ">", "!", ";", "?",
];

/// Keywords of Python, which cannot be names, with hints.
pub(super) const KEYWORDS: [(&str, &str); 14] = [
    ("and", "write `a & b` with each side in parentheses, or `logical_and(a, b)`"),
    ("or", "write `a | b` with each side in parentheses, or `logical_or(a, b)`"),
    ("not", "write `~a`, or `logical_not(a)`"),
    ("if", "write `where(condition, a, b)`"),
    ("else", "write `where(condition, a, b)`"),
    ("for", "loops are not supported; functions apply to whole arrays"),
    ("in", "loops are not supported; functions apply to whole arrays"),
    ("is", "write `a == b`"),
    ("lambda", "functions cannot be defined; `freestone functions` lists all functions"),
    ("import", "functions need no import; `freestone functions` lists all functions"),
    ("from", "functions need no import; `freestone functions` lists all functions"),
    ("def", "functions cannot be defined; `freestone functions` lists all functions"),
    ("return", "an expression needs no `return`"),
    ("del", "expressions cannot change their inputs"),
];

/// Characters that resemble operators, with their replacements.
const LOOKALIKES: [(char, &str); 12] = [
    ('×', "*"),
    ('·', "*"),
    ('÷', "/"),
    ('−', "-"),
    ('–', "-"),
    ('²', "**2"),
    ('³', "**3"),
    ('≤', "<="),
    ('≥', ">="),
    ('≠', "!="),
    ('’', "'"),
    ('“', "\""),
];

/// Splits a text into tokens. The last token is `End`.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, ExpressionError> {
    let mut rest = text;
    let mut found = Vec::new();
    loop {
        rest = rest.trim_start();
        let start = text.len() - rest.len();
        let Some(first) = rest.chars().next() else {
            found.push(Token { kind: TokenKind::End, span: text.len()..text.len() });
            return Ok(found);
        };
        let kind = token(&mut rest, first, start)?;
        found.push(Token { kind, span: start..text.len() - rest.len() });
    }
}

fn token(rest: &mut &str, first: char, start: usize) -> Result<TokenKind, ExpressionError> {
    if is_first(first) {
        return Ok(TokenKind::Name(name.parse_next(rest).unwrap_or_default().to_owned()));
    }
    // A parser that fails leaves its input at an unspecified position.
    let mut after = *rest;
    if let Ok(digits) = number.parse_next(&mut after) {
        *rest = after;
        return value(digits, rest, start);
    }
    if first == '\'' || first == '"' {
        let Ok(inside) = quoted.parse_next(rest) else {
            return Err(ExpressionError::new("unterminated string", start..start + 1)
                .label(format!("missing closing {first}")));
        };
        return match inside.find('\\') {
            Some(at) => Err(ExpressionError::new(
                "escape sequences are not supported",
                start + 1 + at..start + 2 + at,
            )
            .label("unexpected backslash")),
            None => Ok(TokenKind::Text(inside.to_owned())),
        };
    }
    if let Some(symbol) = SYMBOLS.iter().find(|s| rest.starts_with(**s)) {
        *rest = &rest[symbol.len()..];
        return Ok(TokenKind::Symbol(symbol));
    }
    let error = ExpressionError::new(
        format!("unexpected character `{}`", first.escape_debug()),
        start..start + first.len_utf8(),
    );
    Err(match LOOKALIKES.iter().find(|(c, _)| *c == first) {
        Some((_, instead)) => error.help(format!("write `{instead}`")),
        None if first == '#' => error.help("comments are not supported"),
        None => error,
    })
}

fn is_first(c: char) -> bool {
    c == '_' || c.is_alphabetic()
}

fn continues(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Returns true if an input can have this name.
pub fn is_identifier(text: &str) -> bool {
    let keyword =
        KEYWORDS.iter().any(|(k, _)| *k == text) || matches!(text, "True" | "False" | "None");
    !keyword && text.starts_with(is_first) && text.chars().all(continues)
}

fn name<'t>(input: &mut &'t str) -> Parsed<&'t str> {
    (any.verify(|c| is_first(*c)), take_while(0.., continues)).take().parse_next(input)
}

fn quoted<'t>(input: &mut &'t str) -> Parsed<&'t str> {
    let mut quote = one_of(['\'', '"']).parse_next(input)?;
    let inside = take_till(0.., [quote, '\n']).parse_next(input)?;
    quote.parse_next(input)?;
    Ok(inside)
}

/// Parses digits with optional underscores: `12`, `1_000`.
fn digits<'t>(input: &mut &'t str) -> Parsed<&'t str> {
    (digit1, repeat::<_, _, (), _, _>(0.., ('_', digit1))).take().parse_next(input)
}

/// Parses the text of a number: `0x_ff`, `12`, `1.5e-3`, `.5`, `2j`.
fn number<'t>(input: &mut &'t str) -> Parsed<&'t str> {
    let hex = (
        '0',
        one_of(['x', 'X']),
        repeat::<_, _, (), _, _>(1.., (opt('_'), one_of(AsChar::is_hex_digit))),
    )
        .take();
    let octal =
        ('0', one_of(['o', 'O']), repeat::<_, _, (), _, _>(1.., (opt('_'), one_of('0'..='7'))))
            .take();
    let binary =
        ('0', one_of(['b', 'B']), repeat::<_, _, (), _, _>(1.., (opt('_'), one_of(['0', '1']))))
            .take();
    let point = alt(((digits, opt(('.', opt(digits)))).void(), ('.', digits).void()));
    let exponent = (one_of(['e', 'E']), opt(one_of(['+', '-'])), digits);
    let decimal = (point, opt(exponent), opt(one_of(['j', 'J']))).take();
    alt((hex, octal, binary, decimal)).parse_next(input)
}

/// Converts the text of a number.
fn value(written: &str, rest: &str, start: usize) -> Result<TokenKind, ExpressionError> {
    let span = start..start + written.len();
    if let Some(next) = rest.chars().next().filter(|c| continues(*c)) {
        let tail = rest.chars().take_while(|c| continues(*c)).map(char::len_utf8).sum::<usize>();
        let error = ExpressionError::new(
            format!("invalid number `{written}{}`", &rest[..tail]),
            start..span.end + tail,
        );
        return Err(if next.is_alphabetic() && written.bytes().all(|b| b.is_ascii_digit()) {
            error.help(format!("write `{written} * {}` for a product", &rest[..tail]))
        } else {
            error
        });
    }
    let plain = written.replace('_', "");
    let lower = plain.to_lowercase();
    let radix = [("0x", 16), ("0o", 8), ("0b", 2)]
        .into_iter()
        .find(|(prefix, _)| lower.starts_with(prefix));
    let large = || ExpressionError::new(format!("number `{written}` is too large"), span.clone());
    if let Some((_, radix)) = radix {
        return i128::from_str_radix(&lower[2..], radix)
            .map(TokenKind::Int)
            .map_err(|_| large().label("exceeds 128 bits"));
    }
    if lower.bytes().all(|b| b.is_ascii_digit()) {
        if lower.starts_with('0') && lower.bytes().any(|b| b != b'0') {
            return Err(ExpressionError::new("invalid leading zero in a decimal number", span)
                .help("write octal numbers as `0o17`"));
        }
        return lower.parse().map(TokenKind::Int).map_err(|_| large().label("exceeds 128 bits"));
    }
    let (float, imaginary) = lower.strip_suffix('j').map_or((lower.as_str(), false), |f| (f, true));
    match float.parse::<f64>() {
        Ok(x) if x.is_finite() && imaginary => Ok(TokenKind::Imaginary(x)),
        Ok(x) if x.is_finite() => Ok(TokenKind::Float(x)),
        _ => Err(large().label("exceeds float64").help("write `inf` for infinity")),
    }
}
