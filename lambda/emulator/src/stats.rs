//! Counters of a function and its environments, and recorded invocations.

use serde::{Deserialize, Serialize};

/// The counters of a function.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Requested invocations, including throttled ones.
    pub requested: u64,
    /// Invocations that have run and ended, including duplicates.
    pub invocations: u64,
    /// The total duration of these invocations in milliseconds, including starts of environments.
    /// Lambda would bill this time.
    pub billed_ms: f64,
    /// Responses with status 429, of which `faults.throttled` were injected.
    pub throttled: u64,
    /// Answers that reported an error of the function.
    pub function_errors: u64,
    /// Invocations that timed out.
    pub timeouts: u64,
    /// Environments that ended during an invocation.
    pub exits: u64,
    /// Of these, environments that the OOM killer ended.
    pub oom_kills: u64,
    /// Clients that disconnected before the answer.
    pub disconnects: u64,
    /// The maximum number of concurrent invocations.
    pub max_concurrent: usize,
    /// Injected faults.
    pub faults: FaultCounts,
    /// All environments in start order.
    pub environments: Vec<EnvironmentStats>,
}

/// The number of injected faults of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultCounts {
    /// Responses with status 429.
    pub throttled: u64,
    /// Killed processes.
    pub killed: u64,
    /// Lost answers.
    pub lost: u64,
    /// Invocations that ran twice.
    pub duplicated: u64,
    /// Slowed invocations.
    pub slowed: u64,
}

/// The state of one environment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EnvironmentStats {
    /// The name of the environment.
    pub id: String,
    /// The process id.
    pub pid: u32,
    /// The number of invocations.
    pub invocations: u64,
    /// Milliseconds from the start of its process to its first request for work.
    pub init_ms: Option<f64>,
    /// Peak memory usage of the cgroup; `None` without a cgroup.
    pub max_memory_bytes: Option<u64>,
    /// Resident memory when last idle.
    pub idle_rss_bytes: Option<u64>,
    /// The number of stops by which invocations were slowed down.
    pub pauses: u64,
    /// The cause of the exit, if the process has ended.
    pub ended: Option<String>,
}

/// The end of an invocation, as the client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvocationEnd {
    /// The client received the answer.
    Answered,
    /// The answer was lost.
    Lost,
    /// The function reported an error.
    Error,
}

/// A recorded invocation that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedInvocation {
    /// The request body.
    pub request: Vec<u8>,
    /// The answer's body.
    pub answer: Vec<u8>,
    /// The end of the invocation.
    pub end: InvocationEnd,
    /// The name of the environment.
    pub environment: String,
    /// True for a duplicate, whose answer was discarded.
    pub is_duplicate: bool,
}
