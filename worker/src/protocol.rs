//! The protocol between a client and a worker: an [`Invocation`] is answered by an [`Answer`]. Both
//! are JSON.
//!
//! The protocol is the same over the socket of a worker process and over the Invoke API of AWS
//! Lambda. Lambda limits both to [`MAX_BODY_BYTES`].

use freestone_engine::plan::ENGINE;
use freestone_engine::remote::{Refusal, RefusalKind};
use freestone_engine::task::{RunAddress, TaskOutcome, TaskRequest};
use serde::{Deserialize, Serialize};

/// The protocol version. Client and worker must use the same.
pub const PROTOCOL: u32 = 3;

/// The maximum length of an invocation or an answer. AWS Lambda accepts 6 MiB; the remainder is
/// left for headers and encoding.
pub const MAX_BODY_BYTES: usize = 6_000_000;

/// A client's message to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Invocation {
    /// The [`PROTOCOL`] of the client.
    pub protocol: u32,
    /// The [`ENGINE`] of the client.
    pub engine: String,
    /// The location of the run's plan.
    pub address: RunAddress,
    /// The name under which the worker records finished requests in the work directory; `None` if
    /// answers cannot be lost and no records are needed.
    ///
    /// No other process that ever drives this run has the same name. The name is part of keys, so
    /// it contains only letters, digits, `-` and `_`.
    pub client: Option<String>,
    /// The call.
    pub call: Call,
}

/// The operation that a client requests from a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Fetches the plan and checks that it can be run. Runs no task.
    Probe,
    /// Runs these requests, as many at once as fit into memory.
    Run(Vec<TaskRequest>),
}

impl Invocation {
    /// Creates an invocation by this program, whose outcomes are recorded under the client's name.
    pub fn new(address: RunAddress, client: impl Into<String>, call: Call) -> Invocation {
        Invocation { client: Some(client.into()), ..Invocation::unrecorded(address, call) }
    }

    /// Creates an invocation by this program, whose outcomes are only in the answer.
    pub fn unrecorded(address: RunAddress, call: Call) -> Invocation {
        Invocation { protocol: PROTOCOL, engine: ENGINE.to_owned(), address, client: None, call }
    }

    /// Parses an invocation, if it has this program's versions.
    ///
    /// # Errors
    /// Returns [`RefusalKind::Protocol`] or [`RefusalKind::Engine`] if a version differs.
    pub fn from_json(body: &serde_json::Value) -> Result<Invocation, Refusal> {
        let refused = |kind, message: String| Err(Refusal::new(kind, message));
        let version = body.get("protocol").and_then(serde_json::Value::as_u64);
        if version != Some(u64::from(PROTOCOL)) {
            let theirs = version.map_or("none".to_owned(), |v| format!("version {v}"));
            return refused(
                RefusalKind::Protocol,
                format!(
                    "protocol mismatch: worker has version {PROTOCOL}, client {theirs} {DEPLOY}"
                ),
            );
        }
        let theirs =
            body.get("engine").and_then(serde_json::Value::as_str).unwrap_or("of unknown version");
        if theirs != ENGINE {
            return refused(
                RefusalKind::Engine,
                format!(
                    "engine mismatch: worker is Freestone {ENGINE}, client is Freestone {theirs} \
                        {DEPLOY}"
                ),
            );
        }
        let invocation = match Invocation::deserialize(body) {
            Ok(invocation) => invocation,
            Err(e) => return refused(RefusalKind::Protocol, format!("invalid invocation: {e}")),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if let Some(client) =
            invocation.client.as_ref().filter(|c| c.is_empty() || !c.chars().all(plain))
        {
            return refused(
                RefusalKind::Protocol,
                format!("invalid client name `{client}`: expected letters, digits, `-` and `_`"),
            );
        }
        Ok(invocation)
    }
}

const DEPLOY: &str = "(hint: build or deploy the worker of the client's version)";

/// A worker's answer. Clients handle missing and malformed answers themselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The answer to a probe: the plan can be run.
    Ready {
        /// The environment that answers.
        environment: Environment,
        /// For each stage of the plan, the number of its tasks that run at once in one environment;
        /// at least 1.
        slots: Vec<u32>,
        /// The milliseconds that this invocation had left; `None` if its time is not limited.
        remaining_ms: Option<u64>,
    },
    /// The refusal of either call: no task was run.
    Refused {
        /// The environment that answers.
        environment: Environment,
        /// The reason.
        refusal: Refusal,
    },
    /// The results of requests. Each request is in one of the lists.
    Done {
        /// The environment that answers.
        environment: Environment,
        /// The outcomes of finished requests. If `done` has fewer tasks than the request and there
        /// is no `failure`, the time did not suffice for the rest.
        outcomes: Vec<TaskOutcome>,
        /// The ids of finished requests whose outcomes are only in their records, because the
        /// answer would be too long.
        recorded: Vec<u64>,
        /// The ids of requests that were not started, because the time did not suffice.
        not_started: Vec<u64>,
        /// The milliseconds from the invocation's arrival to its answer.
        wall_ms: u64,
    },
}

/// An execution environment: a process that answers one invocation after another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// The unique id of the environment.
    pub id: String,
    /// The number of invocations answered, including this one; 1 indicates a cold start.
    pub invocations: u64,
    /// True if the plan was cached from an earlier invocation.
    pub had_plan: bool,
    /// The milliseconds from the start of the process to its first request for work.
    pub init_ms: u64,
    /// The memory limit in bytes.
    pub memory_bytes: u64,
    /// The peak resident memory since the process fetched this plan, or since its start if the
    /// system cannot reset the peak.
    pub peak_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use freestone_engine::plan::StageId;

    #[test]
    fn invocations_of_other_versions_are_refused_by_kind() {
        let address = RunAddress { work_dir: "w".into(), folder: "f".into() };
        let request = TaskRequest {
            id: 1,
            stage: StageId(2),
            first: 0,
            count: 3,
            attempt: 1,
            backup_of: None,
            timeout_ms: None,
        };
        let good = Invocation::new(address, "c-1", Call::Run(vec![request]));
        let check = |change: &dyn Fn(&mut serde_json::Value), kind: Option<RefusalKind>| {
            let mut body = serde_json::to_value(&good).unwrap();
            change(&mut body);
            assert_eq!(
                Invocation::from_json(&body).map_err(|r| r.kind),
                kind.map_or_else(|| Ok(good.clone()), Err),
                "{body}"
            );
        };
        check(&|_| (), None);
        check(&|b| b["protocol"] = (PROTOCOL + 1).into(), Some(RefusalKind::Protocol));
        check(&|b| b["protocol"] = 0.into(), Some(RefusalKind::Protocol));
        check(&|b| *b = "hello".into(), Some(RefusalKind::Protocol));
        check(&|b| b["engine"] = "0.0.1".into(), Some(RefusalKind::Engine));
        check(&|b| b["call"] = "dance".into(), Some(RefusalKind::Protocol));
        check(&|b| b["client"] = "../elsewhere".into(), Some(RefusalKind::Protocol));
    }
}
