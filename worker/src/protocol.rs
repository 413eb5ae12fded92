//! The protocol between a client and a worker: an [`Invocation`] is answered by an [`Answer`]; both are JSON.
//!
//! It is the same over the socket of a worker process and over the Invoke API of AWS Lambda, where neither is longer than [`MAX_BODY_BYTES`].

use freestone_engine::plan::ENGINE;
use freestone_engine::remote::{Refusal, RefusalKind};
use freestone_engine::task::{RunAddress, TaskOutcome, TaskRequest};
use serde::{Deserialize, Serialize};

/// Version of the protocol. Client and worker must have the same.
pub const PROTOCOL: u32 = 3;

/// Neither an invocation nor an answer is longer: what AWS Lambda takes is 6 MiB, of which this leaves some to headers and encoding.
pub const MAX_BODY_BYTES: usize = 6_000_000;

/// What a client asks of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Invocation {
    /// [`PROTOCOL`] of the client.
    pub protocol: u32,
    /// [`ENGINE`] of the client.
    pub engine: String,
    /// Where the run's plan lies.
    pub address: RunAddress,
    /// Name of the client under which the worker leaves records of finished requests in the work directory; `None` where no answer can be lost, so that
    /// none are needed. No other process that ever drives this run has the same name. It is part of keys, so it has only letters, digits, `-` and `_`.
    pub client: Option<String>,
    /// What is asked for.
    pub call: Call,
}

/// What is wanted of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// To fetch the plan and find out whether it can be run. Runs nothing.
    Probe,
    /// To run these requests, as many at once as fit into memory.
    Run(Vec<TaskRequest>),
}

impl Invocation {
    /// An invocation by this program, whose outcomes are recorded under the client's name.
    pub fn new(address: RunAddress, client: impl Into<String>, call: Call) -> Invocation {
        Invocation { client: Some(client.into()), ..Invocation::unrecorded(address, call) }
    }

    /// An invocation by this program, whose outcomes are only in the answer.
    pub fn unrecorded(address: RunAddress, call: Call) -> Invocation {
        Invocation { protocol: PROTOCOL, engine: ENGINE.to_owned(), address, client: None, call }
    }

    /// Reads an invocation, if it is of this program's versions.
    ///
    /// # Errors
    /// [`RefusalKind::Protocol`] or [`RefusalKind::Engine`].
    pub fn from_json(body: &serde_json::Value) -> Result<Invocation, Refusal> {
        let refused = |kind, message: String| Err(Refusal::new(kind, message));
        let version = body.get("protocol").and_then(serde_json::Value::as_u64);
        if version != Some(u64::from(PROTOCOL)) {
            let theirs = version.map_or("none".to_owned(), |v| format!("version {v}"));
            return refused(RefusalKind::Protocol, format!("protocol mismatch: worker has version {PROTOCOL}, client {theirs} {DEPLOY}"));
        }
        let theirs = body.get("engine").and_then(serde_json::Value::as_str).unwrap_or("of unknown version");
        if theirs != ENGINE {
            return refused(RefusalKind::Engine, format!("engine mismatch: worker is Freestone {ENGINE}, client is Freestone {theirs} {DEPLOY}"));
        }
        let invocation = match Invocation::deserialize(body) {
            Ok(invocation) => invocation,
            Err(e) => return refused(RefusalKind::Protocol, format!("invalid invocation: {e}")),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if let Some(client) = invocation.client.as_ref().filter(|c| c.is_empty() || !c.chars().all(plain)) {
            return refused(RefusalKind::Protocol, format!("invalid client name `{client}`: expected letters, digits, `-` and `_`"));
        }
        Ok(invocation)
    }
}

const DEPLOY: &str = "(hint: build or deploy the worker of the client's version)";

/// What a worker answers. (That it answers with something else, or not at all, is for the client to tell.)
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To a probe: the plan can be run.
    Ready {
        /// Who answers.
        environment: Environment,
        /// For each stage of the plan, how many of its tasks run at once in one environment; at least 1.
        slots: Vec<u32>,
        /// Milliseconds that this invocation had left; `None` where its time is not limited.
        remaining_ms: Option<u64>,
    },
    /// To either: nothing was run.
    Refused {
        /// Who answers.
        environment: Environment,
        /// Why.
        refusal: Refusal,
    },
    /// To requests: what became of them. Each is in one of the lists.
    Done {
        /// Who answers.
        environment: Environment,
        /// Requests that have ended. Where one's `done` has fewer tasks than it asks for and it has no `failure`, the rest was not started for
        /// want of time.
        outcomes: Vec<TaskOutcome>,
        /// Ids of requests that have ended and whose outcomes are only in their records, since the answer would be too long.
        recorded: Vec<u64>,
        /// Ids of requests that were not started for want of time.
        not_started: Vec<u64>,
        /// Milliseconds from the invocation's arrival to its answer.
        wall_ms: u64,
    },
}

/// One execution environment: a process that answers one invocation after another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Unlike that of any other.
    pub id: String,
    /// How many invocations it has answered, this one included: 1 is a cold start.
    pub invocations: u64,
    /// True if the plan was there from an earlier invocation.
    pub had_plan: bool,
    /// Milliseconds from the process's start to its first request for work.
    pub init_ms: u64,
    /// Bytes of memory that it may use.
    pub memory_bytes: u64,
    /// Highest resident memory of the process since it fetched this plan, or since its start where the system does not count anew.
    pub peak_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use freestone_engine::plan::StageId;

    #[test]
    fn invocations_of_other_versions_are_refused_by_kind() {
        let address = RunAddress { work_dir: "w".into(), folder: "f".into() };
        let request = TaskRequest { id: 1, stage: StageId(2), first: 0, count: 3, attempt: 1, backup_of: None, timeout_ms: None };
        let good = Invocation::new(address, "c-1", Call::Run(vec![request]));
        let check = |change: &dyn Fn(&mut serde_json::Value), kind: Option<RefusalKind>| {
            let mut body = serde_json::to_value(&good).unwrap();
            change(&mut body);
            assert_eq!(Invocation::from_json(&body).map_err(|r| r.kind), kind.map_or_else(|| Ok(good.clone()), Err), "{body}");
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
