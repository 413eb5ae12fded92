//! The size of requests.
//!
//! The queue forms requests by these rules, and cost projections assume them.

use std::time::Duration;

/// The maximum number of tasks in one request, which are lost if its worker is lost.
pub const MAX_BATCH: u64 = 64;
/// The maximum bytes that the tasks of one request read together.
pub const MAX_BATCH_BYTES: u64 = 500_000_000;
/// The maximum expected duration of a request.
pub const MAX_BATCH_TIME: Duration = Duration::from_secs(1);
/// The number of requests of a stage for each worker, if the stage has enough tasks. All workers
/// then finish at about the same time.
pub const REQUESTS_PER_WORKER: u64 = 16;
