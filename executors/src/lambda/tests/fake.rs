//! A Lambda service in this process, with scripted failures.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use freestone_engine::remote::{Refusal, RefusalKind, write_record};
use freestone_engine::storage::Stores;
use freestone_engine::task::{FailureKind, TaskFailure, TaskOutcome, TaskRequest};
use freestone_engine::user::KernelRegistry;
use freestone_engine::worker::Worker;
use freestone_worker::{Answer, Call, Environment, Invocation};

use crate::lambda::LambdaExecutor;

/// The scripted behaviour of one invocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// All requests are run and answered.
    Done,
    /// Status 429.
    Throttled,
    /// Status 500, and nothing is run.
    Failed,
    /// All requests are run, and the connection breaks.
    Lost,
    /// The connection breaks at once, and requests are run some milliseconds later.
    Late(u64),
    /// Half of the requests are run, then the environment is killed.
    Killed,
    /// The environment exits, and nothing is run.
    Crashed,
    TimedOut,
    Denied,
    /// One request is run, the others are returned.
    Short,
    /// Only the first task of the first request is run.
    Part,
    /// All requests are run, and the outcomes are only in records.
    Recorded,
    /// The invocation takes some milliseconds longer.
    Slow(u64),
    /// The invocation waits until this many have been in flight at once, then is `Done`.
    Gather(u64),
    /// A probe returns this time limit in milliseconds.
    Brief(u64),
    /// Tasks fail because storage asks for fewer requests.
    StorageThrottled,
    Refused(RefusalKind),
}

type Script = dyn Fn(u64, &Invocation) -> Fate + Send + Sync;

/// A server of the Invoke API in this process, which runs tasks with the engine's worker.
pub(super) struct Fake {
    pub(super) url: String,
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    fate: Box<Script>,
    invocations: AtomicU64,
    in_flight: Mutex<InFlight>,
    changed: Condvar,
    fates: Mutex<BTreeMap<String, u64>>,
    /// The number of times that each task was run.
    pub(super) tasks: Mutex<BTreeMap<(usize, u64), u64>>,
    over: AtomicBool,
}

/// The number of invocations in flight.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct InFlight {
    pub(super) now: u64,
    pub(super) most: u64,
    /// The maximum after the first [`EARLY`] invocations.
    pub(super) most_late: u64,
}

/// The number of invocations that do not count for `most_late`.
pub(super) const EARLY: u64 = 20;
/// The limit of waits for conditions, after which a test fails.
const WAIT_LIMIT: Duration = Duration::from_secs(60);

impl Fake {
    pub(super) fn start(fate: impl Fn(u64, &Invocation) -> Fate + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            fate: Box::new(fate),
            invocations: AtomicU64::new(0),
            in_flight: Mutex::default(),
            changed: Condvar::new(),
            fates: Mutex::default(),
            tasks: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let server = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if server.over.load(Ordering::Relaxed) {
                    return;
                }
                let server = Arc::clone(&server);
                thread::spawn(move || server.serve(stream.unwrap()));
            }
        });
        Fake { url, shared }
    }

    pub(super) fn executor(&self, concurrency: usize) -> LambdaExecutor {
        let executor = LambdaExecutor::new("f", "eu-central-1")
            .endpoint(&self.url)
            .credentials("key", "secret", None);
        executor
            .concurrency(concurrency)
            .batches(4, Duration::from_millis(50))
            .function_timeout(Duration::from_secs(20))
    }

    pub(super) fn in_flight(&self) -> InFlight {
        *self.shared.in_flight.lock().unwrap()
    }

    /// Waits until `n` invocations are in flight.
    pub(super) fn wait_for_in_flight(&self, n: u64) {
        self.shared.wait(|in_flight| in_flight.now >= n);
    }

    /// Returns the number of invocations with a fate.
    pub(super) fn count(&self, fate: &str) -> u64 {
        self.shared.fates.lock().unwrap().get(fate).copied().unwrap_or(0)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) {
        let mut input = BufReader::new(stream.try_clone().unwrap());
        let mut output = stream;
        loop {
            let mut head = Vec::new();
            loop {
                let mut line = String::new();
                if input.read_line(&mut line).unwrap_or(0) == 0 {
                    return;
                }
                if line.trim().is_empty() {
                    break;
                }
                head.push(line.trim().to_ascii_lowercase());
            }
            assert!(
                head[0].starts_with("post /2015-03-31/functions/f/invocations "),
                "{}",
                head[0]
            );
            let header = |name: &str| {
                head.iter().find_map(|l| l.strip_prefix(&format!("{name}: ")).map(str::to_owned))
            };
            assert!(
                header("authorization").unwrap().starts_with("aws4-hmac-sha256 credential=key/")
            );
            let mut body = vec![0; header("content-length").unwrap().parse().unwrap()];
            input.read_exact(&mut body).unwrap();
            let invocation =
                Invocation::from_json(&serde_json::from_slice(&body).unwrap()).unwrap();
            self.began();
            let reply = self.reply(&invocation);
            self.in_flight.lock().unwrap().now -= 1;
            self.changed.notify_all();
            let Some((status, headers, body)) = reply else { return };
            let text = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n{body}",
                body.len()
            );
            if output.write_all(text.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn began(&self) {
        let mut in_flight = self.in_flight.lock().unwrap();
        in_flight.now += 1;
        in_flight.most = in_flight.most.max(in_flight.now);
        if self.invocations.load(Ordering::Relaxed) >= EARLY {
            in_flight.most_late = in_flight.most_late.max(in_flight.now);
        }
        self.changed.notify_all();
    }

    /// Waits for a condition.
    fn wait(&self, is_met: impl Fn(&InFlight) -> bool) {
        let in_flight = self.in_flight.lock().unwrap();
        drop(self.changed.wait_timeout_while(in_flight, WAIT_LIMIT, |i| !is_met(i)).unwrap());
    }

    /// Returns the reply to an invocation, or `None` to break the connection.
    fn reply(&self, invocation: &Invocation) -> Option<Response> {
        let n = self.invocations.fetch_add(1, Ordering::Relaxed);
        let fate = (self.fate)(n, invocation);
        let name = format!("{fate:?}").split('(').next().unwrap_or_default().to_owned();
        *self.fates.lock().unwrap().entry(name).or_default() += 1;
        if let Some(error) = service_error(fate) {
            return Some(error);
        }
        let environment = Environment {
            id: "e".into(),
            invocations: n + 1,
            had_plan: true,
            init_ms: 5,
            memory_bytes: 1 << 30,
            peak_bytes: 1,
        };
        match (&invocation.call, fate) {
            (_, Fate::Refused(kind)) => {
                let refusal = Refusal::new(kind, "the worker refuses it");
                Some(answered(&Answer::Refused { environment, refusal }))
            }
            (Call::Probe, _) => {
                let ms = if let Fate::Brief(ms) = fate { ms } else { 20_000 };
                let remaining_ms = Some(ms);
                Some(answered(&Answer::Ready { environment, slots: vec![1], remaining_ms }))
            }
            (Call::Run(requests), Fate::StorageThrottled) => {
                let outcomes = requests.iter().map(slow_down).collect();
                Some(done(environment, outcomes, Vec::new(), Vec::new()))
            }
            (Call::Run(requests), Fate::Late(ms)) => {
                let (invocation, requests) = (invocation.clone(), requests.clone());
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(ms));
                    run(&invocation, &requests, false)
                });
                None
            }
            (Call::Run(requests), _) => self.run(invocation, requests, fate, environment),
        }
    }

    /// Runs requests of an invocation, as many as its fate says.
    fn run(
        &self,
        invocation: &Invocation,
        requests: &[TaskRequest],
        fate: Fate,
        environment: Environment,
    ) -> Option<Response> {
        match fate {
            Fate::Gather(n) => self.wait(|in_flight| in_flight.most_late >= n),
            Fate::Slow(ms) => thread::sleep(Duration::from_millis(ms)),
            _ => {}
        }
        let n_requests = match fate {
            Fate::Killed => requests.len() / 2,
            Fate::Short => 1,
            _ => requests.len(),
        };
        let outcomes = run(invocation, &requests[..n_requests], fate == Fate::Part);
        let mut tasks = self.tasks.lock().unwrap();
        for outcome in &outcomes {
            for report in &outcome.done {
                *tasks.entry((outcome.request.stage.0, report.task)).or_default() += 1;
            }
        }
        drop(tasks);
        let ids = |requests: &[TaskRequest]| requests.iter().map(|r| r.id).collect::<Vec<u64>>();
        let not_started = ids(&requests[n_requests..]);
        match fate {
            Fate::Lost => None,
            Fate::Killed => Some(function_error(
                "Runtime.ExitError",
                "Runtime exited with error: signal: killed",
            )),
            Fate::Recorded => Some(done(environment, Vec::new(), ids(requests), not_started)),
            _ => Some(done(environment, outcomes, Vec::new(), not_started)),
        }
    }
}

/// The status, headers and body of a reply.
type Response = (u16, String, String);

/// Returns the reply of a fate whose requests are not run.
fn service_error(fate: Fate) -> Option<Response> {
    let error = |status, kind: &str, body: &str| {
        Some((status, format!("x-amzn-errortype: {kind}\r\n"), body.to_owned()))
    };
    match fate {
        Fate::Throttled => error(429, "TooManyRequestsException", r#"{"Reason":"Many"}"#),
        Fate::Failed => error(500, "ServiceException", "{}"),
        Fate::Denied => error(403, "AccessDeniedException", r#"{"Message":"no"}"#),
        Fate::Crashed => {
            Some(function_error("Runtime.ExitError", "Runtime exited with error: exit status 3"))
        }
        Fate::TimedOut => {
            Some(function_error("Sandbox.Timedout", "Task timed out after 3.00 seconds"))
        }
        _ => None,
    }
}

fn function_error(kind: &str, message: &str) -> Response {
    let body = format!(r#"{{"errorType":"{kind}","errorMessage":"{message}"}}"#);
    (200, "x-amz-function-error: Unhandled\r\n".into(), body)
}

fn answered(answer: &Answer) -> Response {
    (200, String::new(), serde_json::to_string(answer).unwrap())
}

fn done(
    environment: Environment,
    outcomes: Vec<TaskOutcome>,
    recorded: Vec<u64>,
    not_started: Vec<u64>,
) -> Response {
    answered(&Answer::Done { environment, outcomes, recorded, not_started, wall_ms: 1 })
}

/// Returns the outcome of a request that storage has throttled.
fn slow_down(request: &TaskRequest) -> TaskOutcome {
    let failure = TaskFailure {
        kind: FailureKind::Throttled,
        message: "SlowDown".into(),
        stage: String::new(),
        task: request.first,
    };
    TaskOutcome {
        request: request.clone(),
        worker: "w".into(),
        done: Vec::new(),
        failure: Some(failure),
        worker_peak_bytes: None,
    }
}

/// Runs requests as a worker does, and writes records. If `is_part`, only the first task of the
/// first request is run.
fn run(invocation: &Invocation, requests: &[TaskRequest], is_part: bool) -> Vec<TaskOutcome> {
    let context =
        freestone_worker::fetch(&invocation.address, &Stores::default(), &KernelRegistry::new())
            .unwrap();
    let work = context.stores.open(&invocation.address.work_dir).unwrap();
    let mut worker = Worker::new(context, "fake".into());
    let one = |(i, request): (usize, &TaskRequest)| {
        let count = if is_part && i == 0 { 1 } else { request.count };
        let mut outcome = worker.run(&TaskRequest { count, ..request.clone() });
        outcome.request = request.clone();
        write_record(
            &*work,
            &invocation.address.folder,
            invocation.client.as_deref().unwrap(),
            &outcome,
        )
        .unwrap();
        outcome
    };
    requests.iter().enumerate().map(one).collect()
}

pub(super) fn is_probe(invocation: &Invocation) -> bool {
    invocation.call == Call::Probe
}
