//! Errors of expressions, shown with their position in the text.

use std::fmt::{self, Display, Formatter};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use freestone_ops::Error as ArrayError;

use super::ast::Span;

/// An error in an expression, with its position in the text.
#[derive(Clone, Debug)]
pub struct ExpressionError {
    /// The message, in one line.
    pub message: String,
    /// The label beside the marked position.
    pub label: String,
    /// The position in the text.
    pub span: Span,
    /// A hint.
    pub help: Option<String>,
    /// The error of a function that rejected its arguments. The expression itself is well-formed.
    pub cause: Option<Box<ArrayError>>,
    source: Box<Source>,
}

/// The text of the expression, and its name in messages.
#[derive(Clone, Debug)]
struct Source {
    text: String,
    name: String,
}

/// The maximum number of bytes shown before the position in a long text.
const SHOWN: usize = 200;

impl ExpressionError {
    pub(super) fn new(message: impl Into<String>, span: Span) -> ExpressionError {
        let source = Box::new(Source { text: String::new(), name: "expression".into() });
        ExpressionError {
            message: message.into(),
            label: String::new(),
            span,
            help: None,
            cause: None,
            source,
        }
    }

    pub(super) fn label(mut self, label: impl Into<String>) -> ExpressionError {
        self.label = label.into();
        self
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> ExpressionError {
        self.help = Some(help.into());
        self
    }

    pub(super) fn cause(mut self, cause: ArrayError) -> ExpressionError {
        self.cause = Some(Box::new(cause));
        self
    }

    pub(super) fn in_text(mut self, text: &str) -> ExpressionError {
        text.clone_into(&mut self.source.text);
        self
    }

    /// Sets the name of the expression in the message.
    #[must_use]
    pub fn named(mut self, name: &str) -> ExpressionError {
        name.clone_into(&mut self.source.name);
        self
    }

    /// Returns the message, the text with the position marked, and the hint. `colors` adds escape
    /// sequences for terminals.
    pub fn render(&self, colors: bool) -> String {
        let (text, span) = self.shown();
        let mut mark = AnnotationKind::Primary.span(span);
        if !self.label.is_empty() {
            mark = mark.label(&self.label);
        }
        let mut group = Level::ERROR
            .primary_title(&self.message)
            .element(Snippet::source(text).path(&self.source.name).annotation(mark));
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help));
        }
        let renderer = if colors { Renderer::styled() } else { Renderer::plain() };
        renderer.render(&[group])
    }

    /// Returns the part of the text around the position, with control characters made visible, and
    /// the position in that part.
    fn shown(&self) -> (String, Span) {
        let (mut text, mut place) = (String::new(), 0..0);
        for (at, c) in self.source.text.char_indices() {
            if at + SHOWN < self.span.start
                || at > self.span.end.min(self.span.start + SHOWN) + SHOWN / 2
            {
                continue;
            }
            if at < self.span.start {
                place.start = text.len() + visible(c).len_utf8();
            }
            text.push(visible(c));
            if at < self.span.end {
                place.end = text.len();
            }
        }
        place.end = place.end.max(place.start);
        (text, place)
    }
}

fn visible(c: char) -> char {
    match c {
        '\n' => '\n',
        c if c.is_whitespace() => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

impl Display for ExpressionError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for ExpressionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(|c| c as _)
    }
}
