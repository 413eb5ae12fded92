//! The executor against a Lambda of this process, whose worker is the engine's, and on which
//! everything goes wrong that can.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use freestone_engine::remote::{Refusal, RefusalKind, write_record};
use freestone_engine::storage::Stores;
use freestone_engine::task::{FailureKind, TaskFailure, TaskOutcome, TaskRequest};
use freestone_engine::user::KernelRegistry;
use freestone_engine::worker::Worker;
use freestone_worker::{Answer, Call, Invocation};

use super::*;
use crate::conformance::{self, Recording};

/// What becomes of an invocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Done,
    /// 429.
    Throttled,
    /// 500, before anything is done.
    Failed,
    /// Everything is done, and the connection breaks.
    Lost,
    /// The connection breaks at once, the work is done a while later.
    Late(u64),
    /// Half of the requests are done, then the environment is killed.
    Killed,
    /// Nothing is done.
    Crashed,
    TimedOut,
    Denied,
    /// One request is done, the others are given back.
    Short,
    /// The first task of the first request is done, and no more.
    Part,
    /// All is done, and answers are in the records only.
    Recorded,
    /// It takes so many milliseconds more.
    Slow(u64),
    /// A probe is told of so many milliseconds.
    Brief(u64),
    /// Storage asks for fewer requests.
    StorageThrottled,
    Refused(RefusalKind),
}

type Plan = dyn Fn(u64, &Invocation) -> Fate + Send + Sync;

struct Fake {
    url: String,
    shared: Arc<Shared>,
}

struct Shared {
    fate: Box<Plan>,
    invocations: AtomicU64,
    under_way: AtomicU64,
    most: AtomicU64,
    /// The most under way since the twentieth invocation.
    most_late: AtomicU64,
    fates: Mutex<BTreeMap<String, u64>>,
    /// How often each task was computed.
    tasks: Mutex<BTreeMap<(usize, u64), u64>>,
    over: AtomicBool,
}

impl Fake {
    fn start(fate: impl Fn(u64, &Invocation) -> Fate + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            fate: Box::new(fate),
            invocations: AtomicU64::new(0),
            under_way: AtomicU64::new(0),
            most: AtomicU64::new(0),
            most_late: AtomicU64::new(0),
            fates: Mutex::default(),
            tasks: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let its = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if its.over.load(Ordering::Relaxed) {
                    return;
                }
                let its = Arc::clone(&its);
                thread::spawn(move || its.serve(stream.unwrap()));
            }
        });
        Fake { url, shared }
    }

    fn executor(&self, concurrency: usize) -> LambdaExecutor {
        let executor = LambdaExecutor::new("f", "eu-central-1")
            .endpoint(&self.url)
            .credentials("key", "secret", None);
        executor
            .concurrency(concurrency)
            .batches(4, Duration::from_millis(50))
            .function_timeout(Duration::from_secs(20))
    }

    fn count(&self, fate: &str) -> u64 {
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
            let under_way = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
            self.most.fetch_max(under_way, Ordering::Relaxed);
            if self.invocations.load(Ordering::Relaxed) >= 20 {
                self.most_late.fetch_max(under_way, Ordering::Relaxed);
            }
            let reply = self.reply(&invocation);
            self.under_way.fetch_sub(1, Ordering::Relaxed);
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

    fn reply(&self, invocation: &Invocation) -> Option<(u16, String, String)> {
        let n = self.invocations.fetch_add(1, Ordering::Relaxed);
        let fate = (self.fate)(n, invocation);
        let name = format!("{fate:?}").split('(').next().unwrap_or_default().to_owned();
        *self.fates.lock().unwrap().entry(name).or_default() += 1;
        let environment = Environment {
            id: "e".into(),
            invocations: n + 1,
            had_plan: true,
            init_ms: 5,
            memory_bytes: 1 << 30,
            peak_bytes: 1,
        };
        let answer =
            |answer: &Answer| Some((200, String::new(), serde_json::to_string(answer).unwrap()));
        let failed = |kind: &str, message: &str| {
            Some((
                200,
                "x-amz-function-error: Unhandled\r\n".into(),
                format!("{{\"errorType\":\"{kind}\",\"errorMessage\":\"{message}\"}}"),
            ))
        };
        match fate {
            Fate::Throttled => {
                return Some((
                    429,
                    "x-amzn-errortype: TooManyRequestsException\r\n".into(),
                    "{\"Reason\":\"Many\"}".into(),
                ));
            }
            Fate::Failed => {
                return Some((500, "x-amzn-errortype: ServiceException\r\n".into(), "{}".into()));
            }
            Fate::Denied => {
                return Some((
                    403,
                    "x-amzn-errortype: AccessDeniedException\r\n".into(),
                    "{\"Message\":\"no\"}".into(),
                ));
            }
            Fate::Crashed => {
                return failed("Runtime.ExitError", "Runtime exited with error: exit status 3");
            }
            Fate::TimedOut => {
                return failed("Sandbox.Timedout", "Task timed out after 3.00 seconds");
            }
            Fate::Refused(kind) => {
                return answer(&Answer::Refused {
                    environment,
                    refusal: Refusal::new(kind, "it does not like it"),
                });
            }
            _ => {}
        }
        let Call::Run(requests) = &invocation.call else {
            let remaining_ms = if let Fate::Brief(ms) = fate { ms } else { 20_000 };
            return answer(&Answer::Ready {
                environment,
                slots: vec![1],
                remaining_ms: Some(remaining_ms),
            });
        };
        if fate == Fate::StorageThrottled {
            let slow_down = |request: &TaskRequest| {
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
            };
            let outcomes = requests.iter().map(slow_down).collect();
            return answer(&Answer::Done {
                environment,
                outcomes,
                recorded: Vec::new(),
                not_started: Vec::new(),
                wall_ms: 1,
            });
        }
        let n_requests = match fate {
            Fate::Killed => requests.len() / 2,
            Fate::Short => 1,
            _ => requests.len(),
        };
        let wait = if let Fate::Slow(ms) | Fate::Late(ms) = fate { ms } else { 0 };
        if matches!(fate, Fate::Late(_)) {
            let (invocation, requests) = (invocation.clone(), requests.clone());
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(wait));
                run(&invocation, &requests, false)
            });
            return None;
        }
        thread::sleep(Duration::from_millis(wait));
        let outcomes = run(invocation, &requests[..n_requests], fate == Fate::Part);
        let mut tasks = self.tasks.lock().unwrap();
        outcomes.iter().for_each(|o| {
            o.done.iter().for_each(|d| *tasks.entry((o.request.stage.0, d.task)).or_default() += 1)
        });
        drop(tasks);
        let not_started = requests[n_requests..].iter().map(|r| r.id).collect();
        match fate {
            Fate::Lost => None,
            Fate::Killed => {
                failed("Runtime.ExitError", "Runtime exited with error: signal: killed")
            }
            Fate::Recorded => {
                let recorded = requests.iter().map(|r| r.id).collect();
                answer(&Answer::Done {
                    environment,
                    outcomes: Vec::new(),
                    recorded,
                    not_started,
                    wall_ms: 1,
                })
            }
            _ => answer(&Answer::Done {
                environment,
                outcomes,
                recorded: Vec::new(),
                not_started,
                wall_ms: 1,
            }),
        }
    }
}

/// Runs requests as a worker does, records included; only the first task of the first if it is to
/// be a part.
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

fn is_probe(invocation: &Invocation) -> bool {
    invocation.call == Call::Probe
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn it_is_an_executor() {
    let fake = Fake::start(|_, _| Fate::Done);
    let folder = folder();
    conformance::check(folder.path(), |slots| {
        Box::new(fake.executor(slots).batches(1, Duration::from_secs(1)))
    });
}

/// Runs 60 requests of one task, and gives outcomes by the first task: `None` if it is done, else
/// why not; and what it took.
#[track_caller]
fn outcomes(
    folder: &Path,
    executor: &LambdaExecutor,
    count: u64,
) -> (BTreeMap<u64, Option<(FailureKind, String)>>, Invocations) {
    let context = conformance::context(folder);
    let requests = (0..60 / count).map(|i| conformance::request(i * count, count));
    let recorded = Recording::new(executor, requests).run(executor, &context);
    conformance::assert_all_came_back(&recorded);
    let of = |o: &TaskOutcome| match &o.failure {
        Some(f) => Some((f.kind, f.message.clone())),
        None if (o.done.len() as u64) < o.request.count => {
            Some((FailureKind::Superseded, format!("{} done", o.done.len())))
        }
        None => None,
    };
    (
        recorded.outcomes.iter().map(|o| (o.request.first, of(o))).collect(),
        executor.invoked().unwrap(),
    )
}

#[test]
fn being_told_of_too_many_is_no_failure() {
    let fake = Fake::start(|n, _| if n % 3 != 2 { Fate::Throttled } else { Fate::Done });
    let folder = folder();
    let (found, invoked) = outcomes(folder.path(), &fake.executor(8), 1);
    assert!(found.len() == 60 && found.values().all(Option::is_none), "{found:?}");
    assert!(invoked.throttled >= 8 && invoked.throttled == fake.count("Throttled"), "{invoked:?}");
    assert!(fake.shared.most.load(Ordering::Relaxed) <= 8);
    assert!(fake.shared.tasks.lock().unwrap().values().all(|n| *n == 1));
}

/// Where storage asks tasks for fewer requests, or a worker cannot fetch the plan for that, there
/// are fewer invocations.
#[test]
fn storage_that_is_asked_too_much_shrinks_the_window() {
    for (fate, most) in
        [(Fate::StorageThrottled, 5), (Fate::Refused(RefusalKind::Storage), 5), (Fate::Slow(20), 8)]
    {
        let fake = Fake::start(move |n, _| if n < 8 { fate } else { Fate::Slow(20) });
        let folder = folder();
        let (found, _) =
            outcomes(folder.path(), &fake.executor(8).batches(1, Duration::from_secs(1)), 1);
        let failed = found
            .values()
            .flatten()
            .filter(|(kind, _)| matches!(kind, FailureKind::Throttled | FailureKind::Transient))
            .count();
        assert_eq!(failed, if most == 5 { 8 } else { 0 }, "{found:?}");
        assert_eq!(fake.shared.most_late.load(Ordering::Relaxed), most, "{fate:?}");
    }
}

#[test]
fn lost_answers_are_found_in_records() {
    let fake = Fake::start(|n, _| match n % 4 {
        0 => Fate::Lost,
        1 => Fate::Late(300),
        2 => Fate::Recorded,
        _ => Fate::Done,
    });
    let folder = folder();
    let (found, invoked) = outcomes(folder.path(), &fake.executor(4), 1);
    assert!(found.values().all(Option::is_none), "{found:?}");
    assert!(
        invoked.recovered > 0 && invoked.lost_answers >= fake.count("Lost") + fake.count("Late"),
        "{invoked:?}"
    );
    assert!(fake.count("Lost") > 0 && fake.count("Late") > 0 && fake.count("Recorded") > 0);
    assert!(
        fake.shared.tasks.lock().unwrap().values().all(|n| *n == 1),
        "nothing is computed twice"
    );
}

/// More than look for records at once.
#[test]
fn answers_that_are_lost_at_the_same_time_are_found_too() {
    const { assert!(60 > dispatch::LOOKS) };
    let all = std::sync::Barrier::new(60);
    let fake = Fake::start(move |_, _| {
        all.wait();
        Fate::Lost
    });
    let folder = folder();
    let (found, invoked) =
        outcomes(folder.path(), &fake.executor(60).batches(1, Duration::from_secs(1)), 1);
    assert!(found.len() == 60 && found.values().all(Option::is_none), "{found:?}");
    assert_eq!(
        (invoked.recovered, invoked.lost_answers, invoked.most_at_once),
        (60, 60, 60),
        "{invoked:?}"
    );
}

/// Whatever was said of the function before it has told how much time it has.
#[test]
fn an_answer_is_waited_for_as_long_as_the_function_has_time() {
    let folder = folder();
    let lost = |told, said, slow| {
        let is_first = AtomicBool::new(true);
        let fake = Fake::start(move |_, invocation| match () {
            () if is_probe(invocation) => Fate::Brief(told),
            () if is_first.swap(false, Ordering::Relaxed) => Fate::Slow(slow),
            () => Fate::Done,
        });
        let mut executor = fake.executor(4).function_timeout(said);
        executor.grace = Duration::from_secs(1);
        executor.check(&conformance::context(folder.path())).unwrap();
        let (found, invoked) = outcomes(folder.path(), &executor, 1);
        assert_eq!(found.len(), 60);
        invoked.lost_answers
    };
    assert!(lost(100, Duration::from_secs(900), 600_000) > 0);
    assert_eq!(lost(60_000, Duration::ZERO, 3000), 0);
}

#[test]
fn failures_have_their_kinds() {
    for (fate, kind, says) in [
        (Fate::Failed, FailureKind::WorkerLost, "ServiceException"),
        (Fate::TimedOut, FailureKind::TimedOut, "Task timed out"),
        (Fate::Crashed, FailureKind::Crashed, "exit status 3"),
        (Fate::Killed, FailureKind::OutOfMemory, "out of memory"),
        (Fate::Refused(RefusalKind::Storage), FailureKind::Transient, "does not like"),
    ] {
        let fake = Fake::start(move |n, _| if n == 0 { fate } else { Fate::Done });
        let folder = folder();
        let (found, invoked) =
            outcomes(folder.path(), &fake.executor(1).batches(1, Duration::from_secs(1)), 1);
        let failed: Vec<_> = found.values().flatten().collect();
        assert!(
            matches!(&failed[..], [(k, message)] if *k == kind && message.contains(says)),
            "{fate:?}: {failed:?}"
        );
        assert_eq!(invoked.invocations, 60, "{fate:?}");
    }
}

/// Where several requests were in an invocation that crashed, none is blamed before it has crashed
/// alone.
#[test]
fn nobody_is_blamed_for_others() {
    let fake = Fake::start(|n, _| if n == 2 { Fate::Killed } else { Fate::Done });
    let folder = folder();
    let (found, invoked) = outcomes(folder.path(), &fake.executor(1), 1);
    let given_back: Vec<_> = found.values().flatten().collect();
    assert!(
        given_back.iter().all(|(kind, done)| *kind == FailureKind::Superseded && done == "0 done"),
        "{given_back:?}"
    );
    // Of four that were in it, two had their records.
    assert_eq!((given_back.len(), invoked.crashes, invoked.recovered), (2, 1, 2), "{given_back:?}");
}

#[test]
fn what_is_not_started_comes_back() {
    let fake = Fake::start(|n, _| match n {
        2 => Fate::Short,
        4 => Fate::Part,
        _ => Fate::Done,
    });
    let folder = folder();
    let (found, _) = outcomes(folder.path(), &fake.executor(1), 3);
    let mut given_back: Vec<&str> =
        found.values().flatten().map(|(_, done)| done.as_str()).collect();
    given_back.sort_unstable();
    let parts = given_back.iter().filter(|d| **d == "1 done").count();
    assert!(parts == 1 && (1..=4).contains(&given_back.len()), "{given_back:?}");
}

#[test]
fn refusals_end_a_run_at_once() {
    let folder = folder();
    for (i, (fate, says)) in [
        (Fate::Denied, "permit `lambda:InvokeFunction`"),
        (Fate::Refused(RefusalKind::ExceedsMemory), "does not like"),
        (Fate::Crashed, "see the function's log"),
        (Fate::Failed, "ServiceException"),
    ]
    .into_iter()
    .enumerate()
    {
        let context = conformance::context(&folder.path().join(format!("check-{i}")));
        let fake = Fake::start(move |_, _| fate);
        let error = fake.executor(2).check(&context).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(
            matches!(error, ExecutorError::Refused { .. }),
            matches!(fate, Fate::Refused(_)),
            "{error:?}"
        );
    }
    // What fails once in a probe is asked again, and one that goes well tells how many tasks run at
    // once.
    let context = conformance::context(&folder.path().join("check"));
    let fake = Fake::start(|n, _| {
        [Fate::Throttled, Fate::Failed, Fate::Refused(RefusalKind::Storage), Fate::Done]
            [(n as usize).min(3)]
    });
    let executor = fake.executor(2);
    executor.check(&context).unwrap();
    assert_eq!(executor.probed.lock().unwrap().as_ref().unwrap().slots, [1]);
    // A refusal in the middle ends everything.
    let fake = Fake::start(|n, _| if n < 3 { Fate::Done } else { Fate::Denied });
    let executor = fake.executor(2);
    let recorded = Recording::new(&executor, (0..60).map(|i| conformance::request(i, 1)));
    let error = executor.run(&context, &recorded).unwrap_err();
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    let state = recorded.state.lock().unwrap();
    conformance::assert_all_came_back(&state);
    assert!(
        state.outcomes.iter().filter(|o| o.failure.is_some()).all(|o| o
            .failure
            .as_ref()
            .unwrap()
            .kind
            == FailureKind::Denied)
    );
    // Nobody listens.
    let gone = LambdaExecutor::new("f", "r")
        .endpoint("http://127.0.0.1:1")
        .credentials("key", "secret", None);
    assert!(matches!(gone.check(&context), Err(ExecutorError::Unavailable { .. })));
}

#[test]
fn a_cancelled_run_ends_soon() {
    let fake = Fake::start(|_, i| if is_probe(i) { Fate::Done } else { Fate::Slow(3000) });
    let folder = folder();
    let context = conformance::context(folder.path());
    let cancel = context.cancel.clone();
    let executor = fake.executor(4).linger(Duration::from_millis(100));
    let recorded = Recording::new(&executor, (0..60).map(|i| conformance::request(i, 1)));
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(300));
            cancel.cancel();
            recorded.state.lock().unwrap().todo.clear();
        });
        let start = std::time::Instant::now();
        executor.run(&context, &recorded).unwrap();
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    });
    let state = recorded.state.lock().unwrap();
    conformance::assert_all_came_back(&state);
    assert!(
        state.outcomes.iter().all(|o| o.failure.as_ref().unwrap().kind == FailureKind::Cancelled)
    );
}

/// Not a test: what the one below runs, with an `aws` of its own on its path.
#[test]
#[ignore = "not a test: started by another one"]
fn the_client_with_a_profile() {
    let url = std::env::var("FREESTONE_TEST_PROFILE").expect("it is started by another test");
    let folder = folder();
    LambdaExecutor::new("f", "eu-central-1")
        .endpoint(&url)
        .check(&conformance::context(folder.path()))
        .unwrap();
}

#[test]
fn a_profile_signs_invocations() {
    let fake = Fake::start(|_, _| Fate::Done);
    let folder = folder();
    let aws = folder.path().join("aws");
    std::fs::write(
        &aws,
        "#!/bin/sh\necho \
        '{\"AccessKeyId\": \"key\", \"SecretAccessKey\": \"secret\", \"SessionToken\": \"t\"}'\n",
    )
    .unwrap();
    std::fs::set_permissions(&aws, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command
        .args(["lambda::tests::the_client_with_a_profile", "--exact", "--ignored"])
        .env("FREESTONE_TEST_PROFILE", &fake.url);
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()));
    // The other side looks at whose key has signed.
    let output = command.output().unwrap();
    assert!(
        output.status.success() && fake.count("Done") == 1,
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn functions_have_names() {
    let check = |function: &str, expect: (&str, Option<&str>, &str)| {
        let executor = LambdaExecutor::new(function, "r");
        assert_eq!(
            (executor.function.as_str(), executor.qualifier.as_deref(), executor.region.as_str()),
            expect
        );
    };
    check("f", ("f", None, "r"));
    check("f:live", ("f", Some("live"), "r"));
    check("arn:aws:lambda:eu-west-1:123456789012:function:f", ("f", None, "eu-west-1"));
    check("arn:aws:lambda:eu-west-1:123456789012:function:f:7", ("f", Some("7"), "eu-west-1"));
    let env = |name: &str| match name {
        "AWS_DEFAULT_REGION" => Some("r2".to_owned()),
        "AWS_ENDPOINT_URL_LAMBDA" => Some("http://127.0.0.1:9".to_owned()),
        _ => None,
    };
    let executor = LambdaExecutor::from_env(Some("f"), env).unwrap();
    assert_eq!(executor.worker(), "`f` at http://127.0.0.1:9");
    assert!(
        LambdaExecutor::from_env(None, env)
            .unwrap_err()
            .to_string()
            .contains("FREESTONE_LAMBDA_FUNCTION")
    );
    assert!(
        LambdaExecutor::from_env(Some("f"), |_| None)
            .unwrap_err()
            .to_string()
            .contains("AWS_REGION")
    );
}
