//! Output of the command: data on standard output, everything else on standard error.

use std::io::{self, IsTerminal, Write};

use freestone::Error;

use super::Failure;

/// How much the command prints besides data and errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verbosity {
    /// Nothing.
    Quiet,
    /// One line for each stage of a run, and a summary.
    Normal,
    /// Also the whole plan of a run.
    Verbose,
}

/// The settings of the command's output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Console {
    pub(crate) verbosity: Verbosity,
    /// True if events are logged to standard error, which excludes progress bars.
    pub(crate) logs: bool,
}

impl Console {
    /// Prints a line to standard error, unless the command is quiet.
    pub(crate) fn note(&self, text: &str) {
        if self.verbosity != Verbosity::Quiet {
            to_stderr(text);
        }
    }

    /// Prints a warning to standard error, unless the command is quiet.
    pub(crate) fn warn(&self, text: &str) {
        self.note(&format!("warning: {text}"));
    }

    pub(crate) fn is_verbose(&self) -> bool {
        self.verbosity == Verbosity::Verbose
    }

    /// Returns true if progress bars are drawn where standard error is a terminal.
    pub(crate) fn has_progress(&self) -> bool {
        self.verbosity != Verbosity::Quiet && !self.logs
    }
}

/// Prints a line of data to standard output.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "{text}").map_err(|_| Failure::ClosedPipe)
}

/// Prints an error to standard error. A hint at the end of its text, `(hint: …)`, gets a paragraph
/// of its own.
pub(crate) fn error(failure: &Failure) {
    let text = match failure {
        Failure::Expression(error) => return to_stderr(&error.render(has_colors())),
        // The location of a deferred error is in this program.
        Failure::Freestone(Error::Array(error)) => error.cause().to_string(),
        Failure::Freestone(error) => error.to_string(),
        Failure::Usage(message) => message.clone(),
        Failure::ClosedPipe => return,
    };
    let (message, hint) = split_hint(&text);
    to_stderr(&format!("error: {message}"));
    if let Some(hint) = hint {
        to_stderr(&format!("\nhint: {hint}"));
    }
}

/// Returns true if standard error is a terminal and `NO_COLOR` is unset or empty.
pub(crate) fn has_colors() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints a line to standard error. A closed standard error is no reason to fail.
pub(crate) fn to_stderr(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn split_hint(text: &str) -> (&str, Option<&str>) {
    match text.strip_suffix(')').and_then(|t| t.rsplit_once(" (hint: ")) {
        Some((message, hint)) => (message, Some(hint)),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_at_the_end_are_split_off() {
        assert_eq!(split_hint("a `b` (c)"), ("a `b` (c)", None));
        assert_eq!(split_hint("a (hint: do `b`)"), ("a", Some("do `b`")));
        assert_eq!(split_hint("a (hint: do b(c))"), ("a", Some("do b(c)")));
        assert_eq!(split_hint("a (hint: b) c"), ("a (hint: b) c", None));
    }
}
