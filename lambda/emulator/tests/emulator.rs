//! The emulator behaves as AWS Lambda does, as far as a client and a worker can tell. Plain HTTP on both sides.

// Tests say by panicking that something is wrong, also in functions that only help them.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use freestone_lambda_emulator::{Cap, Config, Emulator, Ended, Faults, Invoked, MAX_BODY_BYTES, Rate, request};
use serde_json::{Value, json};

const WORKER: &str = env!("CARGO_BIN_EXE_scripted-worker");

fn start(change: impl FnOnce(&mut Config)) -> Emulator {
    let mut config = Config::new("f", WORKER);
    config.timeout = Duration::from_secs(5);
    change(&mut config);
    Emulator::start(config).unwrap()
}

fn tell(emulator: &Emulator, body: Value) -> Invoked {
    emulator.invoke(body.to_string().as_bytes()).unwrap()
}

fn value(invoked: &Invoked) -> Value {
    serde_json::from_slice(&invoked.body).unwrap()
}

#[track_caller]
fn assert_error(invoked: &Invoked, kind: &str, says: &str) {
    assert_eq!((invoked.status, invoked.header("x-amz-function-error")), (200, Some("Unhandled")), "{}", invoked.text());
    let body = value(invoked);
    assert_eq!(body["errorType"], kind);
    assert!(body["errorMessage"].as_str().unwrap().contains(says), "{body}");
}

#[track_caller]
fn assert_refused(invoked: &Invoked, status: u16, kind: &str) {
    assert_eq!((invoked.status, invoked.header("x-amzn-errortype")), (status, Some(kind)), "{}", invoked.text());
}

/// Waits until something is so.
#[track_caller]
fn eventually(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(20), "it never was");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "))
}

#[test]
fn a_warm_process_is_used_again_and_all_are_gone_in_the_end() {
    let emulator = start(|_| ());
    let first = value(&tell(&emulator, json!({ "do": "echo", "n": 7 })));
    let second = value(&tell(&emulator, json!({ "do": "echo" })));
    assert_eq!(first["echo"]["n"], 7);
    assert_eq!((first["pid"].clone(), first["count"].as_u64(), second["count"].as_u64()), (second["pid"].clone(), Some(1), Some(2)));
    let left = first["left_ms"].as_u64().unwrap();
    assert!((1..=5000).contains(&left), "the deadline is a time of day: {left}");
    let stats = emulator.stats();
    assert_eq!((stats.asked, stats.invocations, stats.environments.len(), stats.environments[0].invocations), (2, 2, 1, 2));
    assert!(stats.environments[0].init_ms.is_some() && stats.environments[0].idle_rss_bytes.is_some());
    let told: Value = serde_json::from_slice(&request(emulator.address(), "GET", "/_stats", &[], b"", Duration::from_secs(5)).unwrap().body).unwrap();
    assert_eq!(told["invocations"], 2);
    let pid = stats.environments[0].pid;
    assert!(is_alive(pid));
    drop(emulator);
    eventually(|| !is_alive(pid));
}

#[test]
fn between_invocations_processes_are_stopped() {
    let emulator = start(|_| ());
    let pid = value(&tell(&emulator, json!({})))["pid"].as_u64().unwrap();
    let state = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().rsplit_once(") ").unwrap().1.chars().next().unwrap();
    eventually(|| state() == 'T');
    assert_eq!(value(&tell(&emulator, json!({})))["count"], 2);
    eventually(|| state() == 'T');
}

#[test]
fn invocations_at_once_have_processes_of_their_own_and_beyond_the_cap_there_is_429() {
    let emulator = start(|c| c.concurrency = 3);
    let answers: Vec<Invoked> = std::thread::scope(|s| {
        let calls: Vec<_> = (0..6).map(|_| s.spawn(|| tell(&emulator, json!({ "do": "sleep", "n": 400 })))).collect();
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
    assert_eq!((emulator.stats().most_at_once, emulator.stats().throttled), (3, 3));
    assert_eq!(tell(&emulator, json!({})).status, 200);
}

#[test]
fn invocations_and_new_environments_have_rates() {
    let emulator = start(|c| c.requests = Some(Rate { burst: 2, per_second: 0.01 }));
    let statuses: Vec<u16> = (0..4).map(|_| tell(&emulator, json!({})).status).collect();
    assert_eq!(statuses, [200, 200, 429, 429]);
    let emulator = start(|c| c.scaling = Some(Rate { burst: 1, per_second: 0.01 }));
    let statuses: Vec<u16> = std::thread::scope(|s| {
        let slow = s.spawn(|| tell(&emulator, json!({ "do": "sleep", "n": 500 })).status);
        eventually(|| emulator.stats().asked == 1);
        let refused = tell(&emulator, json!({})).status;
        // The one that there is can be used again and again.
        vec![slow.join().unwrap(), refused, tell(&emulator, json!({})).status, tell(&emulator, json!({})).status]
    });
    assert_eq!(statuses, [200, 429, 200, 200]);
}

#[test]
fn processes_that_end_are_told_of_and_replaced() {
    let emulator = start(|_| ());
    assert_error(&tell(&emulator, json!({ "do": "exit", "n": 3 })), "Runtime.ExitError", "exit status 3");
    assert_error(&tell(&emulator, json!({ "do": "abort" })), "Runtime.ExitError", "signal: aborted");
    assert_error(&tell(&emulator, json!({ "do": "error" })), "Told", "to fail");
    let after = value(&tell(&emulator, json!({})));
    assert_eq!(after["count"], 2, "an error is not the end of a process");
    let stats = emulator.stats();
    assert_eq!((stats.exits, stats.function_errors, stats.oom_kills, stats.environments.len()), (2, 3, 0, 3));
    assert_eq!(stats.environments[0].ended.as_deref(), Some("exit status 3"));
    let emulator = start(|c| c.variables.push(("FAIL_INIT".into(), "1".into())));
    assert_error(&tell(&emulator, json!({})), "Runtime.ExitError", "exit status 1");
}

#[test]
fn time_limits_kill() {
    let emulator = start(|c| c.timeout = Duration::from_millis(300));
    let start = Instant::now();
    assert_error(&tell(&emulator, json!({ "do": "sleep", "n": 60_000 })), "Sandbox.Timedout", "timed out after 0.30 seconds");
    assert!(start.elapsed() >= Duration::from_millis(300));
    let stats = emulator.stats();
    assert_eq!((stats.timeouts, stats.environments[0].ended.as_deref()), (1, Some("signal: killed")));
    assert_eq!(value(&tell(&emulator, json!({})))["count"], 1, "the next one has a new process");
}

#[test]
fn bodies_have_a_most_length_both_ways() {
    let emulator = start(|_| ());
    let long = json!({ "do": "echo", "n": "x".repeat(MAX_BODY_BYTES) });
    assert_refused(&tell(&emulator, long), 413, "RequestTooLargeException");
    assert_error(&tell(&emulator, json!({ "do": "long", "n": MAX_BODY_BYTES })), "Function.ResponseSizeTooLarge", "exceeded");
    let fits = tell(&emulator, json!({ "do": "long", "n": MAX_BODY_BYTES - 2 }));
    assert_eq!((fits.is_function_error(), fits.body.len()), (false, MAX_BODY_BYTES));
    assert_eq!(emulator.stats().environments.len(), 1);
}

#[test]
fn what_is_asked_wrongly_is_refused() {
    let emulator = start(|c| c.signed = true);
    let post = |path: &str, headers: &[(&str, &str)], body: &[u8]| request(emulator.address(), "POST", path, headers, body, Duration::from_secs(10)).unwrap();
    let signed = ("Authorization", "AWS4-HMAC-SHA256 Credential=test");
    assert_refused(&post("/2015-03-31/functions/f/invocations", &[], b"{}"), 403, "MissingAuthenticationTokenException");
    assert_refused(&post("/2015-03-31/functions/g/invocations", &[signed], b"{}"), 404, "ResourceNotFoundException");
    assert_refused(&post("/2015-03-31/functions/f/invocations", &[signed], b"{"), 400, "InvalidRequestContentException");
    assert_refused(&post("/elsewhere", &[signed], b"{}"), 404, "UnknownOperationException");
    assert_eq!(post("/2015-03-31/functions/f/invocations", &[signed, ("X-Amz-Invocation-Type", "DryRun")], b"{}").status, 204);
    for name in ["f", "f:$LATEST", "arn:aws:lambda:us-east-1:000000000000:function:f", "arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Af"] {
        assert_eq!(post(&format!("/2015-03-31/functions/{name}/invocations"), &[signed], b"{}").status, 200, "{name}");
    }
    assert!(Emulator::start(Config::new("f", "/no/such/worker")).is_err());
}

#[test]
fn a_client_that_hangs_up_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let emulator = start(|_| ());
    let body = json!({ "do": "append", "n": 300, "to": file }).to_string();
    let mut stream = TcpStream::connect(emulator.address()).unwrap();
    write!(stream, "POST /2015-03-31/functions/f/invocations HTTP/1.1\r\nHost: f\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    eventually(|| emulator.stats().environments.first().is_some_and(|e| e.invocations == 1));
    drop(stream);
    eventually(|| emulator.stats().hung_up == 1);
    assert_eq!(fs::read(&file).unwrap(), b"x");
    assert_eq!(value(&tell(&emulator, json!({})))["count"], 2);
}

#[test]
fn events_are_answered_at_once_and_tried_three_times() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let emulator = start(|_| ());
    let event = |body: Value| {
        let headers = [("X-Amz-Invocation-Type", "Event")];
        request(emulator.address(), "POST", "/2015-03-31/functions/f/invocations", &headers, body.to_string().as_bytes(), Duration::from_secs(5)).unwrap()
    };
    assert_eq!(event(json!({ "do": "append", "n": 50, "to": file })).status, 202);
    eventually(|| fs::read(&file).is_ok_and(|b| b == b"x"));
    assert_eq!(event(json!({ "do": "exit", "n": 1 })).status, 202);
    eventually(|| emulator.stats().exits == 3);
}

#[test]
fn faults_happen_as_planned_and_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let all = |change: fn(&mut Faults)| {
        let mut faults = Faults { seed: 3, kill_after: Duration::from_millis(5)..Duration::from_millis(50), slow_factor: 10, ..Faults::default() };
        change(&mut faults);
        start(|c| {
            c.faults = faults;
            c.keep_bodies = true;
        })
    };
    let append = |ms: u64| json!({ "do": "append", "n": ms, "to": file });

    let emulator = all(|f| f.throttle = 1.0);
    assert_refused(&tell(&emulator, json!({})), 429, "TooManyRequestsException");
    assert_eq!(emulator.stats().faults.throttled, 1);

    let emulator = all(|f| f.kill = 1.0);
    assert_error(&tell(&emulator, append(10_000)), "Runtime.ExitError", "signal: killed");
    assert!(!file.exists() || fs::read(&file).unwrap().is_empty());
    // One that would be done before is killed as it answers.
    emulator.set_faults(Faults { kill: 1.0, kill_after: Duration::from_secs(4)..Duration::from_secs(5), ..Faults::default() });
    assert_error(&tell(&emulator, append(0)), "Runtime.ExitError", "signal: killed");
    assert_eq!((emulator.stats().faults.killed, emulator.stats().exits), (2, 2));
    assert_eq!(fs::read(&file).unwrap(), b"x");

    let emulator = all(|f| f.lose = 1.0);
    assert!(emulator.invoke(append(0).to_string().as_bytes()).is_err());
    assert_eq!((emulator.stats().faults.lost, fs::read(&file).unwrap().len()), (1, 2), "the work is done");
    assert_eq!(emulator.kept()[0].ended, Ended::Lost);
    emulator.set_faults(Faults::default());
    assert_eq!(value(&tell(&emulator, json!({})))["count"], 2);

    let emulator = all(|f| f.duplicate = 1.0);
    tell(&emulator, append(20));
    eventually(|| emulator.stats().faults.duplicated == 1);
    assert_eq!(fs::read(&file).unwrap().len(), 4);
    let kept = emulator.kept();
    assert_eq!(kept.iter().filter(|k| k.is_duplicate).count(), 1);
    assert_eq!(kept[0].request, kept[1].request);

    // A slow one is stopped again and again; how much longer it takes depends on the machine's other work.
    let emulator = start(|c| c.freeze = false);
    let pid = value(&tell(&emulator, json!({})))["pid"].as_u64().unwrap();
    let is_stopped = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ");
    assert!(!is_stopped());
    emulator.set_faults(Faults { slow: 1.0, slow_factor: 10, ..Faults::default() });
    std::thread::scope(|s| {
        let call = s.spawn(|| value(&tell(&emulator, json!({ "do": "spin", "n": 50 })))["count"].clone());
        (0..2).for_each(|_| {
            eventually(is_stopped);
            eventually(|| !is_stopped());
        });
        assert_eq!(call.join().unwrap(), 2);
    });
    eventually(|| !is_stopped());
    assert_eq!(emulator.stats().faults.slowed, 1);
}

#[test]
fn environments_can_be_lost_all_at_once() {
    let emulator = start(|_| ());
    tell(&emulator, json!({}));
    std::thread::scope(|s| {
        let call = s.spawn(|| tell(&emulator, json!({ "do": "sleep", "n": 10_000 })));
        eventually(|| emulator.stats().environments[0].invocations == 2);
        emulator.lose_environments();
        assert_error(&call.join().unwrap(), "Runtime.ExitError", "signal: killed");
    });
    assert_eq!(value(&tell(&emulator, json!({})))["count"], 1);
}

/// Needs root and memory cgroups.
#[test]
#[ignore = "needs root and memory cgroups: .ci/run lambda"]
fn lambda_who_takes_more_memory_than_the_function_has_is_killed() {
    let emulator = start(|c| {
        c.memory_mib = 64;
        c.cap = Cap::Always;
    });
    assert!(emulator.is_capped());
    assert_eq!(value(&tell(&emulator, json!({ "do": "allocate", "n": 48 })))["sum"], 48 * 256);
    assert_error(&tell(&emulator, json!({ "do": "allocate", "n": 80 })), "Runtime.ExitError", "signal: killed");
    assert_eq!(value(&tell(&emulator, json!({})))["count"], 1);
    let stats = emulator.stats();
    assert_eq!((stats.exits, stats.oom_kills, stats.environments.len()), (1, 1, 2));
    let peak = stats.environments[0].max_memory_bytes.unwrap();
    assert!((48 << 20..=64 << 20).contains(&peak), "{peak}");
}
