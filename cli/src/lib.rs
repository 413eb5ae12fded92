//! The parts of the `freestone` command, for use by other programs: limits as command-line
//! arguments, observers of runs, drawings of plans, AWS costs, and AWS Lambda packages.
//!
//! The observers are [`progress`] bars on a terminal, [`logging`] of events, [`history`] as lines
//! of JSON, [`report`] as an HTML page, and [`trace`] for Perfetto.

pub mod cost;
pub mod drawing;
pub mod history;
pub mod limits;
pub mod logging;
pub mod package;
pub mod progress;
pub mod report;
mod spans;
pub mod trace;
