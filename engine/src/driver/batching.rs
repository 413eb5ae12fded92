//! How many tasks a request has at most, and how a stage's tasks are shared out among workers.
//!
//! The driver's queue forms requests by these rules, and projections of a run's cost assume them.

use std::time::Duration;

/// Maximum tasks in one request: what is lost with a worker.
pub const MAX_BATCH: u64 = 64;
/// Maximum bytes that the tasks of one request read together.
pub const MAX_BATCH_BYTES: u64 = 500_000_000;
/// Longest time that one request should take.
pub const MAX_BATCH_TIME: Duration = Duration::from_secs(1);
/// Requests that each worker gets of a stage where it has enough tasks: so many that all workers
/// finish together.
pub const REQUESTS_PER_WORKER: u64 = 16;
