//! The emulator behaves like AWS Lambda towards clients and workers. Both sides use plain HTTP.

// Tests and their helpers report errors by panicking.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use freestone_lambda_emulator::{
    Cap, Config, Emulator, Faults, HttpResponse, InvocationEnd, MAX_BODY_BYTES, Rate, request,
};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde_json::{Value, json};
use tempfile::TempDir;

const WORKER: &str = env!("CARGO_BIN_EXE_scripted-worker");

/// A time limit that only a deadlock exceeds, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

fn start(change: impl FnOnce(&mut Config)) -> Emulator {
    let mut config = Config::new("f", WORKER);
    config.timeout = LIMIT;
    change(&mut config);
    Emulator::start(config).unwrap()
}

fn invoke(emulator: &Emulator, body: Value) -> HttpResponse {
    emulator.invoke(body.to_string().as_bytes()).unwrap()
}

fn value(invoked: &HttpResponse) -> Value {
    serde_json::from_slice(&invoked.body).unwrap()
}

#[track_caller]
fn assert_error(invoked: &HttpResponse, kind: &str, says: &str) {
    assert_eq!(
        (invoked.status, invoked.header("x-amz-function-error")),
        (200, Some("Unhandled")),
        "{}",
        invoked.text()
    );
    let body = value(invoked);
    assert_eq!(body["errorType"], kind);
    assert!(body["errorMessage"].as_str().unwrap().contains(says), "{body}");
}

#[track_caller]
fn assert_refused(invoked: &HttpResponse, status: u16, kind: &str) {
    assert_eq!(
        (invoked.status, invoked.header("x-amzn-errortype")),
        (status, Some(kind)),
        "{}",
        invoked.text()
    );
}

/// Waits for a condition that stays true.
#[track_caller]
fn eventually(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "the condition is still false after {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A file for which workers wait, created by [`Gate::open`].
struct Gate {
    folder: TempDir,
}

impl Gate {
    fn new() -> Gate {
        Gate { folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("open")
    }

    fn open(&self) {
        fs::write(self.file(), "").unwrap();
    }
}

/// Returns an invocation that the worker answers only once the file exists.
fn wait_for(file: &Path) -> Value {
    json!({ "once": file })
}

fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "))
}

#[test]
fn warm_processes_are_reused_and_killed_on_drop() {
    let emulator = start(|_| ());
    let first = value(&invoke(&emulator, json!({ "do": "echo", "n": 7 })));
    let second = value(&invoke(&emulator, json!({ "do": "echo" })));
    assert_eq!(first["echo"]["n"], 7);
    assert_eq!(
        (first["pid"].clone(), first["count"].as_u64(), second["count"].as_u64()),
        (second["pid"].clone(), Some(1), Some(2))
    );
    let left = first["left_ms"].as_u64().unwrap();
    assert!(
        (1..=LIMIT.as_millis()).contains(&left.into()),
        "the deadline is a wall-clock time: {left}"
    );
    let stats = emulator.stats();
    assert_eq!(
        (
            stats.requested,
            stats.invocations,
            stats.environments.len(),
            stats.environments[0].invocations
        ),
        (2, 2, 1, 2)
    );
    assert!(
        stats.environments[0].init_ms.is_some() && stats.environments[0].idle_rss_bytes.is_some()
    );
    let served: Value = serde_json::from_slice(
        &request(emulator.address(), "GET", "/_stats", &[], b"", LIMIT).unwrap().body,
    )
    .unwrap();
    assert_eq!(served["invocations"], 2);
    let pid = stats.environments[0].pid;
    assert!(is_alive(pid));
    drop(emulator);
    eventually(|| !is_alive(pid));
}

#[test]
fn processes_are_stopped_between_invocations() {
    let emulator = start(|_| ());
    let pid = value(&invoke(&emulator, json!({})))["pid"].as_u64().unwrap();
    let state = || {
        fs::read_to_string(format!("/proc/{pid}/stat"))
            .unwrap()
            .rsplit_once(") ")
            .unwrap()
            .1
            .chars()
            .next()
            .unwrap()
    };
    eventually(|| state() == 'T');
    assert_eq!(value(&invoke(&emulator, json!({})))["count"], 2);
    eventually(|| state() == 'T');
}

#[test]
fn concurrent_invocations_have_own_processes_up_to_the_limit() {
    let (emulator, gate) = (start(|c| c.concurrency = 3), Gate::new());
    let answers: Vec<HttpResponse> = std::thread::scope(|s| {
        let calls: Vec<_> =
            (0..6).map(|_| s.spawn(|| invoke(&emulator, wait_for(&gate.file())))).collect();
        eventually(|| emulator.stats().throttled == 3);
        gate.open();
        calls.into_iter().map(|c| c.join().unwrap()).collect()
    });
    let (ran, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|a| a.status == 200);
    assert_eq!((ran.len(), refused.len()), (3, 3));
    for r in refused {
        assert_refused(r, 429, "TooManyRequestsException");
        assert_eq!(value(r)["Reason"], "ReservedFunctionConcurrentInvocationLimitExceeded");
    }
    let mut pids: Vec<u64> = ran.iter().map(|a| value(a)["pid"].as_u64().unwrap()).collect();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 3);
    assert_eq!((emulator.stats().max_concurrent, emulator.stats().throttled), (3, 3));
    assert_eq!(invoke(&emulator, json!({})).status, 200);
}

#[test]
fn invocations_and_new_environments_are_rate_limited() {
    let emulator = start(|c| c.requests = Some(Rate { burst: 2, per_second: 0.0 }));
    let statuses: Vec<u16> = (0..4).map(|_| invoke(&emulator, json!({})).status).collect();
    assert_eq!(statuses, [200, 200, 429, 429]);
    let (emulator, gate) =
        (start(|c| c.scaling = Some(Rate { burst: 1, per_second: 0.0 })), Gate::new());
    let statuses: Vec<u16> = std::thread::scope(|s| {
        let slow = s.spawn(|| invoke(&emulator, wait_for(&gate.file())).status);
        eventually(|| emulator.stats().max_concurrent == 1);
        let refused = invoke(&emulator, json!({})).status;
        gate.open();
        // The existing environment is reusable.
        vec![
            slow.join().unwrap(),
            refused,
            invoke(&emulator, json!({})).status,
            invoke(&emulator, json!({})).status,
        ]
    });
    assert_eq!(statuses, [200, 429, 200, 200]);
}

#[test]
fn exited_processes_are_reported_and_replaced() {
    let emulator = start(|_| ());
    assert_error(
        &invoke(&emulator, json!({ "do": "exit", "n": 3 })),
        "Runtime.ExitError",
        "exit status 3",
    );
    assert_error(
        &invoke(&emulator, json!({ "do": "abort" })),
        "Runtime.ExitError",
        "signal: aborted",
    );
    assert_error(&invoke(&emulator, json!({ "do": "error" })), "Requested", "as requested");
    let after = value(&invoke(&emulator, json!({})));
    assert_eq!(after["count"], 2, "a process survives an error");
    let stats = emulator.stats();
    assert_eq!(
        (stats.exits, stats.function_errors, stats.oom_kills, stats.environments.len()),
        (2, 3, 0, 3)
    );
    assert_eq!(stats.environments[0].ended.as_deref(), Some("exit status 3"));
    let emulator = start(|c| c.variables.push(("FAIL_INIT".into(), "1".into())));
    assert_error(&invoke(&emulator, json!({})), "Runtime.ExitError", "exit status 1");
}

#[test]
fn timeouts_kill() {
    let (emulator, gate) = (start(|c| c.timeout = Duration::from_millis(300)), Gate::new());
    let start = Instant::now();
    assert_error(
        &invoke(&emulator, wait_for(&gate.file())),
        "Sandbox.Timedout",
        "timed out after 0.30 seconds",
    );
    assert!(start.elapsed() >= Duration::from_millis(300));
    let stats = emulator.stats();
    assert_eq!(
        (stats.timeouts, stats.environments[0].ended.as_deref()),
        (1, Some("signal: killed"))
    );
    // On a busy machine, further invocations may time out too.
    let next = std::iter::repeat_with(|| invoke(&emulator, json!({})))
        .find(|answer| !answer.is_function_error())
        .unwrap();
    assert_eq!(value(&next)["count"], 1, "the next invocation has a new process");
}

#[test]
fn bodies_are_limited_in_both_directions() {
    let emulator = start(|_| ());
    let long = json!({ "do": "echo", "n": "x".repeat(MAX_BODY_BYTES) });
    assert_refused(&invoke(&emulator, long), 413, "RequestTooLargeException");
    assert_error(
        &invoke(&emulator, json!({ "do": "long", "n": MAX_BODY_BYTES })),
        "Function.ResponseSizeTooLarge",
        "exceeded",
    );
    let fits = invoke(&emulator, json!({ "do": "long", "n": MAX_BODY_BYTES - 2 }));
    assert_eq!((fits.is_function_error(), fits.body.len()), (false, MAX_BODY_BYTES));
    assert_eq!(emulator.stats().environments.len(), 1);
}

#[test]
fn invalid_requests_are_refused() {
    let emulator = start(|c| c.require_signatures = true);
    let post = |path: &str, headers: &[(&str, &str)], body: &[u8]| {
        request(emulator.address(), "POST", path, headers, body, LIMIT).unwrap()
    };
    let signed = ("Authorization", "AWS4-HMAC-SHA256 Credential=test");
    assert_refused(
        &post("/2015-03-31/functions/f/invocations", &[], b"{}"),
        403,
        "MissingAuthenticationTokenException",
    );
    assert_refused(
        &post("/2015-03-31/functions/g/invocations", &[signed], b"{}"),
        404,
        "ResourceNotFoundException",
    );
    assert_refused(
        &post("/2015-03-31/functions/f/invocations", &[signed], b"{"),
        400,
        "InvalidRequestContentException",
    );
    assert_refused(&post("/elsewhere", &[signed], b"{}"), 404, "UnknownOperationException");
    assert_eq!(
        post(
            "/2015-03-31/functions/f/invocations",
            &[signed, ("X-Amz-Invocation-Type", "DryRun")],
            b"{}"
        )
        .status,
        204
    );
    for name in [
        "f",
        "f:$LATEST",
        "arn:aws:lambda:us-east-1:000000000000:function:f",
        "arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Af",
    ] {
        assert_eq!(
            post(&format!("/2015-03-31/functions/{name}/invocations"), &[signed], b"{}").status,
            200,
            "{name}"
        );
    }
    assert!(Emulator::start(Config::new("f", "/no/such/worker")).is_err());
}

#[test]
fn invocations_continue_after_a_disconnect() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let (emulator, gate) = (start(|_| ()), Gate::new());
    let body = json!({ "do": "append", "to": file, "once": gate.file() }).to_string();
    let mut stream = TcpStream::connect(emulator.address()).unwrap();
    write!(
        stream,
        "POST /2015-03-31/functions/f/invocations HTTP/1.1\r\nHost: \
        f\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    eventually(|| emulator.stats().environments.first().is_some_and(|e| e.invocations == 1));
    drop(stream);
    eventually(|| emulator.stats().disconnects == 1);
    gate.open();
    eventually(|| emulator.stats().invocations == 1);
    assert_eq!(fs::read(&file).unwrap(), b"x");
    assert_eq!(value(&invoke(&emulator, json!({})))["count"], 2);
}

#[test]
fn events_are_accepted_at_once_and_retried_twice() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let emulator = start(|_| ());
    let event = |body: Value| {
        let headers = [("X-Amz-Invocation-Type", "Event")];
        request(
            emulator.address(),
            "POST",
            "/2015-03-31/functions/f/invocations",
            &headers,
            body.to_string().as_bytes(),
            LIMIT,
        )
        .unwrap()
    };
    assert_eq!(event(json!({ "do": "append", "to": file })).status, 202);
    eventually(|| fs::read(&file).is_ok_and(|b| b == b"x"));
    assert_eq!(event(json!({ "do": "exit", "n": 1 })).status, 202);
    eventually(|| emulator.stats().exits == 3);
    assert_eq!(emulator.stats().requested, 4);
}

/// Starts an emulator that injects faults and records invocations.
fn faulty(faults: Faults) -> Emulator {
    start(|c| {
        c.faults = faults;
        c.record_bodies = true;
    })
}

fn append(to: &Path) -> Value {
    json!({ "do": "append", "to": to })
}

#[test]
fn throttled_invocations_are_refused_and_counted() {
    let emulator = faulty(Faults { throttle: 1.0, ..Faults::default() });
    assert_refused(&invoke(&emulator, json!({})), 429, "TooManyRequestsException");
    let stats = emulator.stats();
    assert_eq!((stats.faults.throttled, stats.invocations), (1, 0));
}

#[test]
fn killed_invocations_end_after_their_delay_or_at_their_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (file, never) = (folder.path().join("log"), folder.path().join("never"));
    let emulator = faulty(Faults {
        kill: 1.0,
        kill_after: Duration::from_millis(5)..Duration::from_millis(50),
        ..Faults::default()
    });
    assert_error(
        &invoke(&emulator, json!({ "do": "append", "to": file, "once": never })),
        "Runtime.ExitError",
        "signal: killed",
    );
    assert!(!file.exists());
    // An invocation that answers before its delay has passed is killed at its answer.
    emulator.set_faults(Faults {
        kill: 1.0,
        kill_after: 2 * LIMIT..3 * LIMIT,
        ..Faults::default()
    });
    assert_error(&invoke(&emulator, append(&file)), "Runtime.ExitError", "signal: killed");
    assert_eq!((emulator.stats().faults.killed, emulator.stats().exits), (2, 2));
    assert_eq!(fs::read(&file).unwrap(), b"x");
}

#[test]
fn lost_invocations_complete_without_an_answer() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let emulator = faulty(Faults { lose: 1.0, ..Faults::default() });
    assert!(emulator.invoke(append(&file).to_string().as_bytes()).is_err());
    assert_eq!(
        (emulator.stats().faults.lost, fs::read(&file).unwrap()),
        (1, b"x".to_vec()),
        "the work is complete"
    );
    assert_eq!(emulator.recorded_invocations()[0].end, InvocationEnd::Lost);
    emulator.set_faults(Faults::default());
    assert_eq!(value(&invoke(&emulator, json!({})))["count"], 2);
}

#[test]
fn duplicated_invocations_run_twice() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let emulator = faulty(Faults { duplicate: 1.0, ..Faults::default() });
    invoke(&emulator, append(&file));
    eventually(|| emulator.stats().faults.duplicated == 1);
    assert_eq!(fs::read(&file).unwrap(), b"xx");
    let recorded = emulator.recorded_invocations();
    assert_eq!(recorded.iter().filter(|r| r.is_duplicate).count(), 1);
    assert_eq!(recorded[0].request, recorded[1].request);
}

#[test]
fn slow_invocations_are_paused_and_complete() {
    // Without freezing, only the fault stops the process.
    let (emulator, gate) = (start(|c| c.freeze = false), Gate::new());
    let pid = value(&invoke(&emulator, json!({})))["pid"]
        .as_i64()
        .and_then(|pid| Pid::from_raw(pid as i32))
        .unwrap();
    // Workers are children of this process. The kernel reports once that a stopped child continued,
    // until its next stop.
    let has_continued = || {
        waitid(WaitId::Pid(pid), WaitIdOptions::CONTINUED | WaitIdOptions::NOHANG)
            .unwrap()
            .is_some()
    };
    assert!(!has_continued());
    emulator.set_faults(Faults { slow: 1.0, slow_factor: 10, ..Faults::default() });
    std::thread::scope(|s| {
        let call = s.spawn(|| value(&invoke(&emulator, wait_for(&gate.file())))["count"].clone());
        eventually(has_continued);
        eventually(|| emulator.stats().environments[0].pauses >= 2);
        gate.open();
        assert_eq!(call.join().unwrap(), 2);
    });
    assert_eq!(emulator.stats().faults.slowed, 1);
}

#[test]
fn all_environments_can_be_killed() {
    let (emulator, gate) = (start(|_| ()), Gate::new());
    invoke(&emulator, json!({}));
    std::thread::scope(|s| {
        let call = s.spawn(|| invoke(&emulator, wait_for(&gate.file())));
        eventually(|| emulator.stats().environments[0].invocations == 2);
        emulator.kill_environments();
        assert_error(&call.join().unwrap(), "Runtime.ExitError", "signal: killed");
    });
    assert_eq!(value(&invoke(&emulator, json!({})))["count"], 1);
}

#[test]
#[ignore = "needs root and memory cgroups: .ci/run lambda"]
fn lambda_processes_that_exceed_the_memory_limit_are_killed() {
    let emulator = start(|c| {
        c.memory_mib = 64;
        c.cap = Cap::Required;
    });
    assert!(emulator.has_cgroups());
    assert_eq!(value(&invoke(&emulator, json!({ "do": "allocate", "n": 48 })))["sum"], 48 * 256);
    assert_error(
        &invoke(&emulator, json!({ "do": "allocate", "n": 80 })),
        "Runtime.ExitError",
        "signal: killed",
    );
    assert_eq!(value(&invoke(&emulator, json!({})))["count"], 1);
    let stats = emulator.stats();
    assert_eq!((stats.exits, stats.oom_kills, stats.environments.len()), (1, 1, 2));
    let peak = stats.environments[0].max_memory_bytes.unwrap();
    assert!((48 << 20..=64 << 20).contains(&peak), "{peak}");
}
