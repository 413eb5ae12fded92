//! In other processes on this machine.
//!
//! A worker process is started, never forked: a program that is told to [`serve`]. It gets the plan's address, fetches the
//! plan itself, and then answers one request after the other through its standard input and output.

use std::ffi::OsString;
use std::io::{self, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use freestone_engine::executor::{Executor, ExecutorError, Next, TaskSource};
use freestone_engine::machine;
use freestone_engine::remote;
use freestone_engine::storage::Stores;
use freestone_engine::task::{FailureKind, TaskOutcome, TaskRequest};
use freestone_engine::user::KernelRegistry;
use freestone_engine::worker::{Cancel, RunContext, Worker};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::lost;
use crate::protocol::{Hello, Ready, VERSION, receive, send};

/// The argument that makes a program of ours a worker.
pub const WORKER_ARGUMENT: &str = "freestone-worker";

/// A number of worker processes, each of which runs one request at a time.
#[derive(Clone, Debug)]
pub struct Processes {
    processes: usize,
    command: PathBuf,
    arguments: Vec<OsString>,
}

impl Processes {
    /// Workers that are this program, started with [`WORKER_ARGUMENT`]; its `main` must call [`serve`] then.
    ///
    /// # Errors
    /// Where the system does not say which program this is.
    pub fn of_this_program(processes: usize) -> io::Result<Processes> {
        Ok(Processes::new(processes, std::env::current_exe()?, [WORKER_ARGUMENT]))
    }

    /// Workers that are any program that ends up in [`serve`].
    pub fn new(processes: usize, command: impl Into<PathBuf>, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Processes {
        Processes { processes: processes.max(1), command: command.into(), arguments: arguments.into_iter().map(Into::into).collect() }
    }
}

/// What a worker process does: answers requests until its input ends. It knows the users' kernels that it is given, and stores that it can open.
///
/// When the input ends, the process ends, also in the middle of a task: a driver that is gone must not be followed by late
/// writes.
///
/// # Errors
/// Where input or output break.
pub fn serve(kernels: &KernelRegistry, stores: Stores, input: impl io::Read + Send + 'static, mut output: impl io::Write) -> io::Result<()> {
    let mut input = BufReader::new(input);
    let Some(hello) = receive::<Hello>(&mut input)? else { return Ok(()) };
    let mut ready = Ready { version: VERSION, pid: std::process::id(), error: None };
    let context = if hello.version == VERSION {
        remote::fetch(&hello.address, &stores, kernels).map_err(|refusal| refusal.message)
    } else {
        Err(format!("it speaks version {VERSION}, not {}", hello.version))
    };
    let context = match context {
        Ok(context) => context,
        Err(error) => {
            ready.error = Some(error);
            return send(&mut output, &ready);
        }
    };
    send(&mut output, &ready)?;
    let (requests, queue) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok(Some(request)) = receive::<TaskRequest>(&mut input) {
            if requests.send(request).is_err() {
                return;
            }
        }
        std::process::exit(0);
    });
    let mut worker = Worker::new(context, hello.name);
    for request in queue {
        let mut outcome = worker.run(&request);
        outcome.worker_peak_bytes = Some(machine::peak_rss_bytes());
        send(&mut output, &outcome)?;
    }
    Ok(())
}

/// A worker process and the pipes to it.
struct Process {
    child: Child,
    requests: ChildStdin,
    outcomes: BufReader<ChildStdout>,
    name: String,
    /// [`machine::oom_kills`] when it was started.
    oom_kills: u64,
}

/// What became of a request that a worker process was given.
enum Answer {
    Outcome(TaskOutcome),
    /// The process is gone, or must go.
    Gone(FailureKind, String),
}

/// A slot looks so often whether anybody still waits for its outcome.
const TICK: Duration = Duration::from_millis(50);
/// A worker that was asked to be quicker has so much longer until it is stopped.
const GRACE: Duration = Duration::from_secs(5);
/// A process whose output has ended has so long to end itself.
const LAST_WORDS: Duration = Duration::from_millis(500);

impl Process {
    /// Waits for the answer to a request, as long as somebody waits for it and its time is not over.
    fn answer(&mut self, request: &TaskRequest, cancel: &Cancel, source: &dyn TaskSource) -> Answer {
        let limit = request.timeout_ms.map(|ms| Duration::from_millis(ms.saturating_mul(request.count)).saturating_add(GRACE));
        let start = Instant::now();
        while self.outcomes.buffer().is_empty() {
            let mut fds = [PollFd::new(self.outcomes.get_ref(), PollFlags::IN)];
            let tick = Timespec { tv_sec: 0, tv_nsec: TICK.as_nanos() as _ };
            match poll(&mut fds, Some(&tick)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                // An end of the output is one, too, and is found below.
                Ok(_) => break,
                Err(e) => return Answer::Gone(FailureKind::WorkerLost, e.to_string()),
            }
            if cancel.is_cancelled() {
                return Answer::Gone(FailureKind::Cancelled, "the run was cancelled".into());
            }
            if !source.is_wanted(request) {
                return Answer::Gone(FailureKind::Superseded, "another worker was first".into());
            }
            if limit.is_some_and(|l| start.elapsed() > l) {
                return Answer::Gone(FailureKind::TimedOut, "the worker process did not answer in time, and was stopped".into());
            }
        }
        match receive::<TaskOutcome>(&mut self.outcomes) {
            Ok(Some(outcome)) => Answer::Outcome(outcome),
            Ok(None) => self.obituary("its output ended"),
            Err(e) => self.obituary(&e.to_string()),
        }
    }

    /// How a process ended that does not answer any more.
    fn obituary(&mut self, symptom: &str) -> Answer {
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait() {
                Ok(None) if start.elapsed() < LAST_WORDS => std::thread::sleep(Duration::from_millis(2)),
                Ok(status) => break status,
                Err(_) => break None,
            }
        };
        let signals = [Some(from_outside::KILL), Some(from_outside::TERM), Some(from_outside::INT), Some(from_outside::HUP)];
        let kind = match status {
            Some(status) if status.signal() == Some(from_outside::KILL) && machine::oom_kills() > self.oom_kills => FailureKind::OutOfMemory,
            Some(status) if status.signal().is_some() && signals.contains(&status.signal()) => FailureKind::WorkerLost,
            Some(_) => FailureKind::Crashed,
            None => FailureKind::WorkerLost,
        };
        let how = status.map_or_else(|| symptom.to_owned(), |s| s.to_string());
        Answer::Gone(kind, if kind == FailureKind::OutOfMemory { STARVED.to_owned() } else { format!("the worker process is gone: {how}") })
    }
}

const STARVED: &str =
    "the system has killed its worker process for want of memory: give the machine or its container more, or lower local_mem so that fewer tasks run at once";

/// Signals that come from outside.
mod from_outside {
    use rustix::process::Signal;

    pub(super) const KILL: i32 = Signal::KILL.as_raw();
    pub(super) const TERM: i32 = Signal::TERM.as_raw();
    pub(super) const INT: i32 = Signal::INT.as_raw();
    pub(super) const HUP: i32 = Signal::HUP.as_raw();
}

impl Drop for Process {
    fn drop(&mut self) {
        // It holds nothing that could be lost: a killed task is one that is run again.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Processes {
    fn start(&self, context: &RunContext, index: usize) -> Result<Process, ExecutorError> {
        let failed = |message: String| ExecutorError::Start { command: self.command.clone(), message };
        let mut command = Command::new(&self.command);
        // In a group of its own: what interrupts us from a terminal is ours to deal with.
        command.args(&self.arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let oom_kills = machine::oom_kills();
        let mut child = command.spawn().map_err(|e| failed(e.to_string()))?;
        let (Some(mut requests), Some(outcomes)) = (child.stdin.take(), child.stdout.take()) else { return Err(failed("it has no pipes".into())) };
        let name = format!("process {} ({index})", child.id());
        let hello = Hello { version: VERSION, address: context.address.clone(), name: name.clone() };
        // A program that is gone already is told from its silence below.
        let _ = send(&mut requests, &hello);
        let mut process = Process { child, requests, outcomes: BufReader::new(outcomes), name, oom_kills };
        let protocol = |message: String| ExecutorError::Protocol { command: self.command.clone(), message };
        match receive::<Ready>(&mut process.outcomes) {
            Ok(Some(Ready { error: None, version: VERSION, .. })) => Ok(process),
            Ok(Some(Ready { error, version, .. })) => Err(protocol(error.unwrap_or_else(|| format!("it speaks version {version}, not {VERSION}")))),
            Ok(None) => Err(protocol(format!(
                "it ended at once; it must be a program that serves when it is started with `{}`",
                self.arguments.first().map(|a| a.to_string_lossy()).unwrap_or_default()
            ))),
            Err(e) => Err(protocol(e.to_string())),
        }
    }

    /// One slot's life: a process, and another one where it dies.
    fn work(&self, context: &RunContext, source: &dyn TaskSource, index: usize, error: &Mutex<Option<ExecutorError>>) {
        let mut process: Option<Process> = None;
        loop {
            let request = match source.try_next() {
                Next::Run(request) => request,
                Next::Wait => {
                    source.wait();
                    continue;
                }
                Next::Stop => return,
            };
            if process.is_none() {
                match self.start(context, index) {
                    Ok(started) => process = Some(started),
                    Err(e) => {
                        source.finished(lost(context, request, format!("worker {index}"), FailureKind::Plan, e.to_string()));
                        error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                        continue;
                    }
                }
            }
            let Some(worker) = process.as_mut() else { continue };
            let answer = match send(&mut worker.requests, &request) {
                Ok(()) => worker.answer(&request, &context.cancel, source),
                Err(e) => worker.obituary(&e.to_string()),
            };
            match answer {
                Answer::Outcome(outcome) => source.finished(outcome),
                Answer::Gone(kind, message) => {
                    let name = worker.name.clone();
                    // Before it is said to be gone, it is: nobody writes any more.
                    process = None;
                    source.finished(lost(context, request, name, kind, message));
                }
            }
        }
    }
}

impl Executor for Processes {
    fn name(&self) -> &str {
        "processes"
    }

    fn slots(&self) -> usize {
        self.processes
    }

    fn shares_process(&self) -> bool {
        false
    }

    fn check(&self, context: &RunContext) -> Result<(), ExecutorError> {
        crate::in_reach(context)?;
        self.start(context, 0).map(drop)
    }

    fn run(&self, context: &RunContext, source: &dyn TaskSource) -> Result<(), ExecutorError> {
        let error = Mutex::new(None);
        std::thread::scope(|scope| {
            for index in 0..crate::useful(self.processes, context) {
                let error = &error;
                scope.spawn(move || self.work(context, source, index, error));
            }
        });
        // That a worker could not be started fails its tasks; here is why.
        match error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }
}
