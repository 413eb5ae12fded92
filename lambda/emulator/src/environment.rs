//! One execution environment: a process, its memory, and the Runtime API that it asks for work.
//!
//! Each has a listener of its own, so that the worker sees plain `host:port`, as on AWS. There is
//! one place for a job: an environment runs one invocation at a time.

use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};
use tokio::net::TcpListener;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot, watch};

use crate::cgroup::{Cgroup, Parent};
use crate::stats::EnvironmentStats;
use crate::{Config, MAX_BODY_BYTES};

/// A worker that has not asked for work by then is given up, as on AWS.
const MAX_INIT: Duration = Duration::from_secs(10);
/// One that has answered has so long to ask for the next job, before it is stopped all the same.
const MAX_AFTER: Duration = Duration::from_secs(1);
/// A slow process has its share of this.
const SLOW_PERIOD: Duration = Duration::from_millis(40);

/// A process.
pub(crate) struct Environment {
    pub(crate) id: String,
    pid: Pid,
    started: Instant,
    api: Arc<Api>,
    jobs: mpsc::Sender<Job>,
    exit: watch::Receiver<Option<Exit>>,
    stats: Arc<Mutex<EnvironmentStats>>,
    cgroup: Arc<Mutex<Option<Cgroup>>>,
}

/// How a process ended.
#[derive(Clone, Debug)]
pub(crate) struct Exit {
    pub(crate) how: String,
    pub(crate) for_memory: bool,
}

/// An invocation on its way to a worker.
struct Job {
    id: String,
    body: Bytes,
    deadline_ms: u128,
}

/// What a worker answers.
enum Said {
    Response(Bytes),
    Error(Bytes),
    TooLong(usize),
}

/// How an invocation ended, seen from outside the process.
pub(crate) enum Ran {
    Response(Bytes),
    /// The handler's own error.
    Error(Bytes),
    TooLong(usize),
    Exited(Exit),
    TimedOut,
    /// By plan.
    Killed,
}

/// What the worker's requests are answered from.
struct Api {
    arn: String,
    queue: AsyncMutex<mpsc::Receiver<Job>>,
    /// How often the worker has asked for work.
    asked: watch::Sender<u64>,
    current: Mutex<Option<(String, oneshot::Sender<Said>)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Environment {
    /// Starts a process.
    pub(crate) async fn start(
        config: &Config,
        number: usize,
        parent: Option<&Parent>,
    ) -> io::Result<Environment> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let cgroup = parent
            .map(|p| p.make(config.cap_bytes.unwrap_or(config.memory_mib << 20)))
            .transpose()?;
        let id = format!("env-{number:04}");
        let mut command = tokio::process::Command::new(&config.command);
        command
            .args(&config.arguments)
            .env_clear()
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(path) = &config.log {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            command.stdout(file.try_clone()?).stderr(file);
        }
        let folder = config.command.parent().unwrap_or_else(|| "/".as_ref());
        command
            .env("AWS_LAMBDA_RUNTIME_API", address.to_string())
            .env("AWS_LAMBDA_FUNCTION_NAME", &config.function)
            .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", config.memory_mib.to_string())
            .env("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{}", config.function))
            .env("AWS_LAMBDA_LOG_STREAM_NAME", format!("emulator/[$LATEST]{id}"))
            .env("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand")
            .env("AWS_EXECUTION_ENV", "AWS_Lambda_provided.al2023")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("LAMBDA_TASK_ROOT", folder)
            .env("LAMBDA_RUNTIME_DIR", folder)
            .env("LANG", "en_US.UTF-8")
            .env("TZ", ":UTC")
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .envs(config.variables.iter().map(|(k, v)| (k, v)));
        let entrance = cgroup.as_ref().map(Cgroup::entrance).transpose()?;
        // SAFETY: between fork and exec it makes two system calls, on a file that is open and with
        // a constant; nothing is allocated or locked.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(move || {
                if let Some(mut file) = entrance.as_ref() {
                    file.write_all(b"0")?;
                }
                Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
            });
        }
        let started = Instant::now();
        let mut child = command.spawn()?;
        let raw = child.id().unwrap_or_default();
        let pid = i32::try_from(raw)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("the process has no id"))?;

        let (jobs, queue) = mpsc::channel(1);
        let (exited, exit) = watch::channel(None);
        let arn = format!("arn:aws:lambda:us-east-1:000000000000:function:{}", config.function);
        let api = Arc::new(Api {
            arn,
            queue: AsyncMutex::new(queue),
            asked: watch::channel(0).0,
            current: Mutex::new(None),
        });
        let stats = Arc::new(Mutex::new(EnvironmentStats {
            id: id.clone(),
            pid: raw,
            ..EnvironmentStats::default()
        }));
        let cgroup = Arc::new(Mutex::new(cgroup));
        let serving = tokio::spawn(serve(listener, Arc::clone(&api)));
        let (its_stats, its_cgroup) = (Arc::clone(&stats), Arc::clone(&cgroup));
        tokio::spawn(async move {
            let how = child.wait().await.map_or_else(|e| e.to_string(), describe);
            serving.abort();
            let cgroup = lock(&its_cgroup).take();
            let for_memory = cgroup.as_ref().is_some_and(|c| c.oom_kills() > 0);
            {
                let mut stats = lock(&its_stats);
                stats.max_memory_bytes = cgroup.as_ref().and_then(Cgroup::max_bytes);
                stats.ended = Some(how.clone());
            }
            let _ = tokio::task::spawn_blocking(move || drop(cgroup)).await;
            let _ = exited.send(Some(Exit { how, for_memory }));
        });
        Ok(Environment { id, pid, started, api, jobs, exit, stats, cgroup })
    }

    /// Runs one invocation; nothing else may run meanwhile. `kill` and `slow` are faults.
    pub(crate) async fn run(
        &self,
        id: &str,
        body: Bytes,
        timeout: Duration,
        kill: Option<Duration>,
        slow: Option<u32>,
        freeze: bool,
    ) -> Ran {
        self.signal(Signal::CONT);
        if let Some(ran) = self.wait_for_init().await {
            return ran;
        }
        lock(&self.stats).invocations += 1;
        let (say, mut said) = oneshot::channel();
        *lock(&self.api.current) = Some((id.to_owned(), say));
        let mut asked = self.api.asked.subscribe();
        let before = *asked.borrow();
        let deadline_ms = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .saturating_add(timeout)
            .as_millis();
        let _ = self.jobs.send(Job { id: id.to_owned(), body, deadline_ms }).await;
        let mut exit = self.exit.clone();
        let ran = {
            let slowing = async {
                let Some(factor) = slow else { return std::future::pending::<()>().await };
                loop {
                    tokio::time::sleep(SLOW_PERIOD / factor).await;
                    self.signal(Signal::STOP);
                    lock(&self.stats).pauses += 1;
                    tokio::time::sleep(SLOW_PERIOD - SLOW_PERIOD / factor).await;
                    self.signal(Signal::CONT);
                }
            };
            let killing = async {
                let Some(after) = kill else { return std::future::pending::<()>().await };
                tokio::time::sleep(after).await;
            };
            tokio::select! {
                biased;
                said = &mut said => match said {
                    _ if kill.is_some() => Ran::Killed,
                    Ok(Said::Response(body)) => Ran::Response(body),
                    Ok(Said::Error(body)) => Ran::Error(body),
                    Ok(Said::TooLong(n)) => Ran::TooLong(n),
                    Err(_) => Ran::Exited(self.has_ended().unwrap_or_else(|| Exit { how: "its \
                        answer was dropped".into(), for_memory: false })),
                },
                ended = exit.wait_for(Option::is_some) => match ended.ok().and_then(|e| e.clone()) {
                    Some(exit) => Ran::Exited(exit),
                    None => Ran::Killed,
                },
                () = killing => Ran::Killed,
                () = tokio::time::sleep(timeout) => Ran::TimedOut,
                () = slowing => Ran::TimedOut,
            }
        };
        lock(&self.api.current).take();
        if matches!(ran, Ran::Killed | Ran::TimedOut) {
            self.kill().await;
            return ran;
        }
        if slow.is_some() {
            self.signal(Signal::CONT);
        }
        // It is idle once it asks for more.
        tokio::select! {
            _ = asked.wait_for(|n| *n > before) => {}
            _ = exit.wait_for(Option::is_some) => return ran,
            () = tokio::time::sleep(MAX_AFTER) => {}
        }
        if freeze {
            self.signal(Signal::STOP);
        }
        lock(&self.stats).idle_rss_bytes = rss(self.pid);
        ran
    }

    /// Waits until the worker asks for work for the first time; how it ended if it does not.
    async fn wait_for_init(&self) -> Option<Ran> {
        if lock(&self.stats).init_ms.is_some() {
            return None;
        }
        let (mut asked, mut exit) = (self.api.asked.subscribe(), self.exit.clone());
        let left = MAX_INIT.saturating_sub(self.started.elapsed());
        let ran = tokio::select! {
            _ = asked.wait_for(|n| *n > 0) => {
                lock(&self.stats).init_ms = Some(1000.0 * self.started.elapsed().as_secs_f64());
                return None;
            }
            _ = exit.wait_for(Option::is_some) => self.has_ended().map_or(Ran::Killed, Ran::Exited),
            () = tokio::time::sleep(left) => Ran::TimedOut,
        };
        self.kill().await;
        Some(ran)
    }

    pub(crate) fn has_ended(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    /// Kills the process and waits until it is gone.
    pub(crate) async fn kill(&self) {
        self.signal(Signal::KILL);
        let _ = self.exit.clone().wait_for(Option::is_some).await;
    }

    pub(crate) fn kill_now(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        // A process that has been waited for has a number no more.
        if self.has_ended().is_none() {
            let _ = kill_process_group(self.pid, signal);
        }
    }

    pub(crate) fn stats(&self) -> EnvironmentStats {
        let mut stats = lock(&self.stats).clone();
        if let Some(cgroup) = &*lock(&self.cgroup) {
            stats.max_memory_bytes = cgroup.max_bytes();
        }
        stats
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(9), _) => "signal: killed".to_owned(),
        (Some(6), _) => "signal: aborted".to_owned(),
        (Some(11), _) => "signal: segmentation fault".to_owned(),
        (Some(n), _) => format!("signal: {n}"),
        (None, code) => format!("exit status {}", code.unwrap_or_default()),
    }
}

/// Resident memory of a process.
fn rss(pid: Pid) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// Answers the worker's requests until its process has ended.
async fn serve(listener: TcpListener, api: Arc<Api>) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let api = Arc::clone(&api);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let api = Arc::clone(&api);
                async move { Ok::<_, Infallible>(api.answer(request).await) }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl Api {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let Some(path) = path.strip_prefix("/2018-06-01/runtime/") else {
            return status(StatusCode::NOT_FOUND);
        };
        match (request.method(), path.split('/').collect::<Vec<_>>().as_slice()) {
            (&Method::GET, ["invocation", "next"]) => self.next().await,
            (&Method::POST, ["invocation", id, "response"]) => {
                self.said((*id).to_owned(), request, Said::Response).await
            }
            (&Method::POST, ["invocation", id, "error"]) => {
                self.said((*id).to_owned(), request, Said::Error).await
            }
            // The process ends after that, and its end is what counts.
            (&Method::POST, ["init", "error"]) => status(StatusCode::ACCEPTED),
            _ => status(StatusCode::NOT_FOUND),
        }
    }

    async fn next(&self) -> Response<Full<Bytes>> {
        self.asked.send_modify(|n| *n += 1);
        let Some(job) = self.queue.lock().await.recv().await else {
            return status(StatusCode::GONE);
        };
        Response::builder()
            .header("Content-Type", "application/json")
            .header("Lambda-Runtime-Aws-Request-Id", &job.id)
            .header("Lambda-Runtime-Deadline-Ms", job.deadline_ms.to_string())
            .header("Lambda-Runtime-Invoked-Function-Arn", &self.arn)
            .header("Lambda-Runtime-Trace-Id", "Root=1-00000000-000000000000000000000000;Sampled=0")
            .body(Full::new(job.body))
            .unwrap_or_else(|_| status(StatusCode::INTERNAL_SERVER_ERROR))
    }

    async fn said(
        &self,
        id: String,
        request: Request<Incoming>,
        what: fn(Bytes) -> Said,
    ) -> Response<Full<Bytes>> {
        let body = read(request.into_body()).await;
        let mut current = lock(&self.current);
        let Some((_, say)) = current.take_if(|(expected, _)| *expected == id) else {
            return status(StatusCode::BAD_REQUEST);
        };
        match body {
            Some(Ok(body)) => drop(say.send(what(body))),
            Some(Err(length)) => {
                drop(say.send(Said::TooLong(length)));
                return status(StatusCode::PAYLOAD_TOO_LARGE);
            }
            None => return status(StatusCode::BAD_REQUEST),
        }
        status(StatusCode::ACCEPTED)
    }
}

fn status(code: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(b"{\"status\":\"OK\"}")));
    *response.status_mut() = code;
    response
}

/// A body; its length if it is longer than may be; `None` if it does not come to its end.
pub(crate) async fn read(mut body: Incoming) -> Option<Result<Bytes, usize>> {
    let (mut kept, mut length) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        if let Ok(part) = frame.ok()?.into_data() {
            length += part.len();
            // What is too long is read to its end, so that the sender gets to read why it was
            // refused.
            if length <= MAX_BODY_BYTES {
                kept.extend_from_slice(&part);
            } else {
                kept = Vec::new();
            }
        }
    }
    Some(if length <= MAX_BODY_BYTES { Ok(kept.into()) } else { Err(length) })
}
