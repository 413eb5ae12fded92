//! An execution environment: a worker process, its memory limit, and its Runtime API.
//!
//! Each environment has its own listener, so that the worker sees plain `host:port`, as on AWS. An
//! environment runs one invocation at a time.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hyper::body::Bytes;
use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use crate::Config;
use crate::cgroup::{Cgroup, Parent};
use crate::runtime_api::{Job, RuntimeApi, WorkerResult, serve};
use crate::stats::EnvironmentStats;

/// The time limit for a worker's first request for work, as on AWS.
const INIT_TIMEOUT: Duration = Duration::from_secs(10);
/// The time in which a worker that has answered may request the next job before it is frozen.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);
/// The period in which a slowed process gets one share of running time.
const SLOW_PERIOD: Duration = Duration::from_millis(40);

/// A worker process and its Runtime API.
pub(crate) struct Environment {
    pub(crate) id: String,
    pid: Pid,
    started: Instant,
    api: Arc<RuntimeApi>,
    jobs: mpsc::Sender<Job>,
    exit: watch::Receiver<Option<Exit>>,
    stats: Arc<Mutex<EnvironmentStats>>,
    cgroup: Arc<Mutex<Option<Cgroup>>>,
}

/// The exit of a process.
#[derive(Clone, Debug)]
pub(crate) struct Exit {
    pub(crate) cause: String,
    pub(crate) out_of_memory: bool,
}

/// An invocation to run in an environment.
pub(crate) struct Invocation<'a> {
    pub(crate) id: &'a str,
    pub(crate) body: Bytes,
    pub(crate) timeout: Duration,
    /// The time until the deadline that the worker sees.
    pub(crate) deadline: Duration,
    /// The delay after which the process is killed, as an injected fault.
    pub(crate) kill: Option<Duration>,
    /// The slowdown factor, as an injected fault.
    pub(crate) slow: Option<u32>,
    /// True if the process is stopped afterwards.
    pub(crate) freeze: bool,
}

/// The end of an invocation, seen from outside the process.
pub(crate) enum Completion {
    Response(Bytes),
    /// An error that the handler reported.
    Error(Bytes),
    /// A response of this length, which exceeds the limit.
    TooLong(usize),
    Exited(Exit),
    TimedOut,
    /// Killed by an injected fault.
    Killed,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the command of a worker, with the variables that Lambda sets.
fn command(config: &Config, id: &str, api: SocketAddr) -> io::Result<Command> {
    let mut command = Command::new(&config.command);
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
        .env("AWS_LAMBDA_RUNTIME_API", api.to_string())
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
    Ok(command)
}

/// Puts a command's process into a cgroup, and ends it together with this process.
fn confine(command: &mut Command, cgroup: Option<&Cgroup>) -> io::Result<()> {
    let procs = cgroup.map(Cgroup::procs).transpose()?;
    // SAFETY: between fork and exec, the closure makes two system calls, on an open file and with a
    // constant. It neither allocates nor locks.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || {
            if let Some(mut file) = procs.as_ref() {
                file.write_all(b"0")?;
            }
            Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
        });
    }
    Ok(())
}

impl Environment {
    /// Starts a worker process.
    pub(crate) async fn start(
        config: &Config,
        number: usize,
        parent: Option<&Parent>,
    ) -> io::Result<Environment> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let cgroup_bytes = config.cgroup_bytes.unwrap_or(config.memory_mib << 20);
        let cgroup = parent.map(|p| p.make(cgroup_bytes)).transpose()?;
        let id = format!("env-{number:04}");
        let mut command = command(config, &id, listener.local_addr()?)?;
        confine(&mut command, cgroup.as_ref())?;
        let started = Instant::now();
        let child = command.spawn()?;
        let raw = child.id().unwrap_or_default();
        let pid = i32::try_from(raw)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("the process has no id"))?;

        let (jobs, queue) = mpsc::channel(1);
        let (exited, exit) = watch::channel(None);
        let api = Arc::new(RuntimeApi::new(&config.function, queue));
        let stats = EnvironmentStats { id: id.clone(), pid: raw, ..EnvironmentStats::default() };
        let (stats, cgroup) = (Arc::new(Mutex::new(stats)), Arc::new(Mutex::new(cgroup)));
        let server = tokio::spawn(serve(listener, Arc::clone(&api)));
        let reaper = reap(child, server, Arc::clone(&stats), Arc::clone(&cgroup), exited);
        tokio::spawn(reaper);
        Ok(Environment { id, pid, started, api, jobs, exit, stats, cgroup })
    }

    /// Runs one invocation. No other invocation may run at the same time.
    pub(crate) async fn run(&self, invocation: Invocation<'_>) -> Completion {
        let Invocation { id, body, timeout, deadline, kill, slow, freeze } = invocation;
        self.signal(Signal::CONT);
        if let Some(failed) = self.wait_for_init().await {
            return failed;
        }
        lock(&self.stats).invocations += 1;
        let result = self.api.expect_result(id);
        let mut requests = self.api.requests.subscribe();
        let before = *requests.borrow();
        let deadline_ms = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .saturating_add(deadline)
            .as_millis();
        let _ = self.jobs.send(Job { id: id.to_owned(), body, deadline_ms }).await;
        let completion = self.complete(result, timeout, kill, slow).await;
        self.api.forget_result();
        if matches!(completion, Completion::Killed | Completion::TimedOut) {
            self.kill().await;
            return completion;
        }
        if slow.is_some() {
            self.signal(Signal::CONT);
        }
        // A worker is idle once it requests the next job.
        let mut exit = self.exit.clone();
        tokio::select! {
            _ = requests.wait_for(|n| *n > before) => {}
            _ = exit.wait_for(Option::is_some) => return completion,
            () = sleep(IDLE_TIMEOUT) => {}
        }
        if freeze {
            self.signal(Signal::STOP);
        }
        lock(&self.stats).idle_rss_bytes = rss(self.pid);
        completion
    }

    /// Waits for the worker's result, its exit, its timeout, or an injected fault.
    async fn complete(
        &self,
        mut result: oneshot::Receiver<WorkerResult>,
        timeout: Duration,
        kill: Option<Duration>,
        slow: Option<u32>,
    ) -> Completion {
        let mut exit = self.exit.clone();
        tokio::select! {
            biased;
            result = &mut result => match result {
                _ if kill.is_some() => Completion::Killed,
                Ok(WorkerResult::Response(body)) => Completion::Response(body),
                Ok(WorkerResult::Error(body)) => Completion::Error(body),
                Ok(WorkerResult::TooLong(n)) => Completion::TooLong(n),
                Err(_) => Completion::Exited(self.exited().unwrap_or_else(|| Exit {
                    cause: "the answer was dropped".into(),
                    out_of_memory: false,
                })),
            },
            ended = exit.wait_for(Option::is_some) => match ended.ok().and_then(|e| e.clone()) {
                Some(exit) => Completion::Exited(exit),
                None => Completion::Killed,
            },
            () = after(kill) => Completion::Killed,
            () = sleep(timeout) => Completion::TimedOut,
            () = self.slow_down(slow) => Completion::TimedOut,
        }
    }

    /// Stops and continues the process periodically, without end.
    async fn slow_down(&self, factor: Option<u32>) {
        let Some(factor) = factor else { return std::future::pending().await };
        loop {
            sleep(SLOW_PERIOD / factor).await;
            self.signal(Signal::STOP);
            lock(&self.stats).pauses += 1;
            sleep(SLOW_PERIOD - SLOW_PERIOD / factor).await;
            self.signal(Signal::CONT);
        }
    }

    /// Waits for the worker's first request for work. Returns the failure if none comes.
    async fn wait_for_init(&self) -> Option<Completion> {
        if lock(&self.stats).init_ms.is_some() {
            return None;
        }
        let (mut requests, mut exit) = (self.api.requests.subscribe(), self.exit.clone());
        let left = INIT_TIMEOUT.saturating_sub(self.started.elapsed());
        let failed = tokio::select! {
            _ = requests.wait_for(|n| *n > 0) => {
                lock(&self.stats).init_ms = Some(1000.0 * self.started.elapsed().as_secs_f64());
                return None;
            }
            _ = exit.wait_for(Option::is_some) => {
                self.exited().map_or(Completion::Killed, Completion::Exited)
            }
            () = sleep(left) => Completion::TimedOut,
        };
        self.kill().await;
        Some(failed)
    }

    /// Returns the exit of the process if it has ended.
    pub(crate) fn exited(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    /// Kills the process and waits for its exit.
    pub(crate) async fn kill(&self) {
        self.signal(Signal::KILL);
        let _ = self.exit.clone().wait_for(Option::is_some).await;
    }

    /// Kills the process without waiting.
    pub(crate) fn kill_now(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        // The id of a process that has been reaped may belong to another process.
        if self.exited().is_none() {
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

/// Completes after a delay; never if there is none.
async fn after(delay: Option<Duration>) {
    match delay {
        Some(delay) => sleep(delay).await,
        None => std::future::pending().await,
    }
}

/// Waits for a process to end, and then releases its cgroup and reports its exit.
async fn reap(
    mut child: tokio::process::Child,
    server: tokio::task::JoinHandle<()>,
    stats: Arc<Mutex<EnvironmentStats>>,
    cgroup: Arc<Mutex<Option<Cgroup>>>,
    exited: watch::Sender<Option<Exit>>,
) {
    let cause = child.wait().await.map_or_else(|e| e.to_string(), describe);
    server.abort();
    let cgroup = lock(&cgroup).take();
    let out_of_memory = cgroup.as_ref().is_some_and(|c| c.oom_kills() > 0);
    {
        let mut stats = lock(&stats);
        stats.max_memory_bytes = cgroup.as_ref().and_then(Cgroup::max_bytes);
        stats.ended = Some(cause.clone());
    }
    let _ = tokio::task::spawn_blocking(move || drop(cgroup)).await;
    let _ = exited.send(Some(Exit { cause, out_of_memory }));
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

/// Returns the resident memory of a process.
fn rss(pid: Pid) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
