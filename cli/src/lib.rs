//! What the `freestone` command is made of, for programs that want the same: limits as command-line arguments, observers of runs, plans as
//! drawings, costs on AWS, and packages for AWS Lambda.
//!
//! Observers: [`progress`] bars on a terminal, [`history`] lines of JSON, [`report`] a page of HTML.

pub mod cost;
pub mod drawing;
pub mod history;
pub mod limits;
pub mod package;
pub mod progress;
pub mod report;
mod spans;
