//! The subcommands, one file each, and what they share.
//!
//! `execute` plans and runs, `output` parses the locations of results, `commit` opens repositories
//! and sessions, `observe` creates the observers of a run, `json` has the JSON forms of plans and
//! reports, and `console` prints.

pub(crate) mod clean;
mod commit;
pub(crate) mod compute;
pub(crate) mod console;
pub(crate) mod docs;
mod execute;
pub(crate) mod functions;
pub(crate) mod info;
mod json;
pub(crate) mod lambda;
pub(crate) mod negative;
mod observe;
mod output;
pub(crate) mod rechunk;
pub(crate) mod repo;
pub(crate) mod resume;
pub(crate) mod session;

use freestone::{Error, ExitCode};
use freestone_expr::ExpressionError;

use console::print;

/// The error of a subcommand.
pub(crate) enum Failure {
    Freestone(Error),
    Expression(ExpressionError),
    /// Invalid arguments, or a local file that cannot be read or written.
    Usage(String),
    /// The reader of standard output closed the pipe, which ends the command without an error.
    ClosedPipe,
}

impl Failure {
    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure::Usage(message.into())
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Freestone(error) => error.exit_code(),
            // The expression is well-formed, but its inputs do not fit.
            Failure::Expression(error) if error.cause.is_some() => ExitCode::Input,
            Failure::Expression(_) | Failure::Usage(_) | Failure::ClosedPipe => ExitCode::Usage,
        }
    }
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Freestone(error.into())
    }
}
