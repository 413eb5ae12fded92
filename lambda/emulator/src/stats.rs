//! What has happened, counted.

use serde::{Deserialize, Serialize};

/// What has happened to a function so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Invocations that were asked for, throttled ones included.
    pub asked: u64,
    /// Invocations that ran, duplicates included, and have ended.
    pub invocations: u64,
    /// Milliseconds that these took together, until their answers and with the starts of
    /// environments; what would be paid for.
    pub ran_ms: f64,
    /// 429s, of which `faults.throttled` by plan.
    pub throttled: u64,
    /// Answers that were errors of the function.
    pub function_errors: u64,
    /// Invocations that were stopped because of their time.
    pub timeouts: u64,
    /// Environments that ended during an invocation.
    pub exits: u64,
    /// Of these, killed for want of memory.
    pub oom_kills: u64,
    /// Clients that hung up before their answer came.
    pub hung_up: u64,
    /// Most invocations at once.
    pub most_at_once: usize,
    /// What went wrong on purpose.
    pub faults: FaultsFired,
    /// All environments, in the order of their starts.
    pub environments: Vec<EnvironmentStats>,
}

/// How often each fault has happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultsFired {
    /// 429s.
    pub throttled: u64,
    /// Killed processes.
    pub killed: u64,
    /// Answers that got lost.
    pub lost: u64,
    /// Invocations that ran twice.
    pub duplicated: u64,
    /// Invocations that were slowed down.
    pub slowed: u64,
}

/// One environment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EnvironmentStats {
    /// Its name.
    pub id: String,
    /// Its process.
    pub pid: u32,
    /// Invocations that it was given.
    pub invocations: u64,
    /// Milliseconds from the start of its process to its first request for work.
    pub init_ms: Option<f64>,
    /// The most memory that it had, by its cgroup; `None` where it has none.
    pub max_memory_bytes: Option<u64>,
    /// Resident memory when it last was idle.
    pub idle_rss_bytes: Option<u64>,
    /// Times that it was stopped because an invocation was slowed down.
    pub pauses: u64,
    /// How it ended, if it has.
    pub ended: Option<String>,
}

/// How an invocation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// With an answer.
    Answered,
    /// With an answer that got lost.
    Lost,
    /// With an error of the function.
    Error,
}

/// An invocation that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What it was asked.
    pub request: Vec<u8>,
    /// What it answered.
    pub answer: Vec<u8>,
    /// How it ended.
    pub ended: Ended,
    /// Who ran it.
    pub environment: String,
    /// True if it ran besides the one whose answer counted.
    pub is_duplicate: bool,
}
