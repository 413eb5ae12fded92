//! What sessions promise, in memory, in directories and on an S3 server.

mod conformance;
mod processes;
mod support;
