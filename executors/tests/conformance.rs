//! Conformance of the executors in this process.

// A test that panics has failed.
#![allow(clippy::unwrap_used, missing_docs)]

use freestone_executors::{Serial, Threads, conformance};

#[test]
fn serial() {
    conformance::check(tempfile::tempdir().unwrap().path(), |_| Box::new(Serial));
}

#[test]
fn threads() {
    conformance::check(tempfile::tempdir().unwrap().path(), |slots| Box::new(Threads::new(slots)));
}
