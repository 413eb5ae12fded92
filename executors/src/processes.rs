//! Worker processes on this machine.
//!
//! A worker process is spawned, never forked: it is a program that calls [`serve`]. It answers one
//! invocation after another (`freestone-worker`) over a socket (`protocol`). The first invocation
//! is a probe, which fetches the plan and checks that it can be run. Requests follow one at a time.

use std::ffi::OsString;
use std::io::{self, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use freestone_engine::environment;
use freestone_engine::executor::{Executor, ExecutorError, Next, TaskSource};
use freestone_engine::machine;
use freestone_engine::remote::RefusalKind;
use freestone_engine::storage::Stores;
use freestone_engine::system::System;
use freestone_engine::task::{FailureKind, TaskOutcome, TaskRequest};
use freestone_engine::user::KernelRegistry;
use freestone_engine::worker::RunContext;
use freestone_worker::{Answer, Call, Invocation, Place, Server};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use crate::lost;
use crate::protocol::{receive, send, socket};

/// The argument that makes a Freestone program run as a worker.
pub const WORKER_ARGUMENT: &str = "freestone-worker";

/// The environment variable that is set in worker processes. Worker processes must not start
/// workers themselves.
pub const WORKER_VARIABLE: &str = environment::WORKER;

/// An executor with a fixed number of worker processes, each of which runs one request at a time.
#[derive(Clone, Debug)]
pub struct Processes {
    processes: usize,
    command: PathBuf,
    arguments: Vec<OsString>,
}

impl Processes {
    /// Creates an executor whose workers are this program, started with [`WORKER_ARGUMENT`]. The
    /// program's `main` must then call [`serve`].
    ///
    /// # Errors
    /// Returns an error if the path of this program is not available.
    pub fn of_this_program(processes: usize) -> io::Result<Processes> {
        Ok(Processes::new(processes, std::env::current_exe()?, [WORKER_ARGUMENT]))
    }

    /// Creates an executor whose workers are any program that calls [`serve`].
    pub fn new(
        processes: usize,
        command: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Processes {
        Processes {
            processes: processes.max(1),
            command: command.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
        }
    }
}

/// Serves as a worker process: answers the driver until it disconnects. The worker uses the users'
/// kernels in `kernels`, and opens stores through `stores`.
///
/// Standard input is empty from this call on, and standard output goes to the driver's standard
/// error. When the driver disconnects, the process exits, even during a task: a worker must not
/// write after its driver has ended.
///
/// # Errors
/// Returns an error if no driver has started this process, or if the socket to the driver fails.
pub fn serve(kernels: &KernelRegistry, stores: Stores) -> io::Result<()> {
    let mut output = socket()?;
    let mut input = BufReader::new(output.try_clone()?);
    let id = std::process::id().to_string();
    let place = Place {
        kind: "process",
        id,
        memory_bytes: machine::memory_bytes(),
        max_tasks: 1,
        is_remote: false,
    };
    let server = Server::new(place, kernels.clone(), stores);
    let (invocations, queue) = mpsc::channel();
    std::thread::Builder::new().name("freestone-driver".into()).spawn(move || {
        loop {
            match receive::<Value>(&mut input) {
                Ok(Some(invocation)) => {
                    // A missing receiver means that `serve` has returned with an error.
                    if invocations.send(invocation).is_err() {
                        return;
                    }
                }
                Ok(None) => std::process::exit(0),
                Err(error) => {
                    eprintln!("cannot read the driver's request: {error}");
                    std::process::exit(1);
                }
            }
        }
    })?;
    queue.into_iter().try_for_each(|invocation| send(&mut output, &server.answer(invocation, None)))
}

/// A worker process and the socket to it.
struct Process {
    child: Child,
    requests: UnixStream,
    answers: BufReader<UnixStream>,
    name: String,
    /// The value of [`machine::oom_kills`] when the process was started.
    oom_kills: u64,
    system: System,
}

/// The result of a request to a worker process.
enum Reply {
    Outcome(TaskOutcome),
    /// The process has ended or must be stopped.
    Lost(FailureKind, String),
}

/// The interval at which a slot checks whether its outcome is still needed.
const TICK: Duration = Duration::from_millis(50);
/// The additional time after a request's timeout before the worker is stopped.
const GRACE: Duration = Duration::from_secs(5);
/// The time limit of a probe. Fetching a plan takes seconds.
const START_LIMIT: Duration = Duration::from_secs(120);
/// The time limit for a process to exit after its answers have ended.
const EXIT_LIMIT: Duration = Duration::from_millis(500);
const EXIT_POLL: Duration = Duration::from_millis(2);

impl Process {
    /// Waits until an answer or its end arrives, or `given_up` returns a reason to stop.
    fn wait<T>(
        &self,
        given_up: impl Fn() -> Option<T>,
        broken: impl Fn(String) -> T,
    ) -> Result<(), T> {
        while self.answers.buffer().is_empty() {
            let mut fds = [PollFd::new(self.answers.get_ref(), PollFlags::IN)];
            let tick = Timespec { tv_sec: 0, tv_nsec: TICK.as_nanos() as _ };
            match poll(&mut fds, Some(&tick)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => break,
                Err(e) => return Err(broken(e.to_string())),
            }
            if let Some(why) = given_up() {
                return Err(why);
            }
        }
        Ok(())
    }

    /// Runs a request, until it is no longer needed or times out.
    fn run(
        &mut self,
        context: &RunContext,
        request: &TaskRequest,
        source: &dyn TaskSource,
    ) -> Reply {
        let invocation =
            Invocation::unrecorded(context.address.clone(), Call::Run(vec![request.clone()]));
        if let Err(e) = send(&mut self.requests, &invocation) {
            return self.exit_cause(&e.to_string());
        }
        let limit = request.timeout_ms.map(|ms| {
            Duration::from_millis(ms.saturating_mul(request.count)).saturating_add(GRACE)
        });
        let start = self.system.now();
        let given_up = || {
            if context.cancel.is_cancelled() {
                Some(Reply::Lost(FailureKind::Cancelled, "the run was cancelled".into()))
            } else if !source.is_wanted(request) {
                Some(Reply::Lost(
                    FailureKind::Superseded,
                    "another worker finished the request first".into(),
                ))
            } else if limit.is_some_and(|l| self.system.elapsed(start) > l) {
                Some(Reply::Lost(
                    FailureKind::TimedOut,
                    "the worker process exceeded its time limit and was stopped".into(),
                ))
            } else {
                None
            }
        };
        if let Err(lost) = self.wait(given_up, |e| Reply::Lost(FailureKind::WorkerLost, e)) {
            return lost;
        }
        let invalid_answer = |what: &str| {
            Reply::Lost(
                FailureKind::Internal,
                format!("internal error: invalid answer from the worker process: {what}"),
            )
        };
        match receive::<Answer>(&mut self.answers) {
            Ok(Some(Answer::Done { mut outcomes, .. })) => match outcomes.pop() {
                Some(outcome) if outcomes.is_empty() && outcome.request.id == request.id => {
                    Reply::Outcome(outcome)
                }
                // Without a time limit, a worker starts every request, and it has only this one.
                _ => invalid_answer("expected one outcome, of this request"),
            },
            Ok(Some(Answer::Refused { refusal, .. })) => {
                Reply::Lost(FailureKind::Plan, refusal.message)
            }
            Ok(Some(Answer::Ready { .. })) => {
                invalid_answer("expected an outcome, got the answer to a probe")
            }
            Ok(None) => self.exit_cause("the worker closed its socket"),
            Err(e) => self.exit_cause(&e.to_string()),
        }
    }

    /// Determines why a process whose socket failed has ended.
    fn exit_cause(&mut self, symptom: &str) -> Reply {
        let start = self.system.now();
        let status = loop {
            match self.child.try_wait() {
                Ok(None) if self.system.elapsed(start) < EXIT_LIMIT => self.system.sleep(EXIT_POLL),
                Ok(status) => break status,
                Err(_) => break None,
            }
        };
        let signals = [
            Some(external_signals::KILL),
            Some(external_signals::TERM),
            Some(external_signals::INT),
            Some(external_signals::HUP),
        ];
        let kind = match status {
            Some(status)
                if status.signal() == Some(external_signals::KILL)
                    && machine::oom_kills() > self.oom_kills =>
            {
                FailureKind::OutOfMemory
            }
            Some(status) if status.signal().is_some() && signals.contains(&status.signal()) => {
                FailureKind::WorkerLost
            }
            Some(_) => FailureKind::Crashed,
            None => FailureKind::WorkerLost,
        };
        let how = status.map_or_else(|| symptom.to_owned(), |s| s.to_string());
        Reply::Lost(
            kind,
            if kind == FailureKind::OutOfMemory {
                OUT_OF_MEMORY.to_owned()
            } else {
                format!("lost the worker process: {how}")
            },
        )
    }
}

const OUT_OF_MEMORY: &str = "the worker process was killed because the system is out of memory \
    (hint: give the machine or its container more memory, or lower `local_mem` so that fewer tasks \
    run at once)";

/// Signals that other processes send to stop a process.
mod external_signals {
    use rustix::process::Signal;

    pub(super) const KILL: i32 = Signal::KILL.as_raw();
    pub(super) const TERM: i32 = Signal::TERM.as_raw();
    pub(super) const INT: i32 = Signal::INT.as_raw();
    pub(super) const HUP: i32 = Signal::HUP.as_raw();
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process holds no state that could be lost: a killed task is retried.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The error of a worker process that could not be started, and the failure kind of its request.
type NotStarted = (FailureKind, ExecutorError);

impl Processes {
    fn start_error(&self, message: String) -> ExecutorError {
        ExecutorError::Start { command: self.command.clone(), message }
    }

    fn protocol_error(&self, message: String) -> NotStarted {
        let command = self.command.clone();
        (FailureKind::Plan, ExecutorError::Protocol { command, message })
    }

    /// Starts a worker and sends it a probe.
    fn start(&self, context: &RunContext) -> Result<Process, NotStarted> {
        let failed = |e: io::Error| (FailureKind::Plan, self.start_error(e.to_string()));
        // A program that does not call `serve` would start itself recursively.
        if std::env::var_os(WORKER_VARIABLE).is_some() {
            return Err((
                FailureKind::Plan,
                ExecutorError::Nested { argument: self.argument(), variable: WORKER_VARIABLE },
            ));
        }
        let oom_kills = machine::oom_kills();
        let (mut child, requests) = self.spawn().map_err(failed)?;
        let answers = match requests.try_clone() {
            Ok(answers) => BufReader::new(answers),
            Err(e) => {
                let _ = child.kill().and_then(|()| child.wait());
                return Err(failed(e));
            }
        };
        let name = format!("process {}", child.id());
        let system = context.stores.system().clone();
        let mut process = Process { child, requests, answers, name, oom_kills, system };
        self.probe(&mut process, context)?;
        Ok(process)
    }

    /// Checks that a started worker can run the plan.
    fn probe(&self, process: &mut Process, context: &RunContext) -> Result<(), NotStarted> {
        // A program that has already exited is detected below by its missing answer.
        let _ = send(
            &mut process.requests,
            &Invocation::unrecorded(context.address.clone(), Call::Probe),
        );
        let (system, began) = (context.stores.system(), context.stores.system().now());
        let given_up = || {
            if context.cancel.is_cancelled() {
                let error = self.start_error("the run was cancelled".into());
                Some((FailureKind::Cancelled, error))
            } else if system.elapsed(began) > START_LIMIT {
                let limit = START_LIMIT.as_secs();
                let message = format!("no answer to the probe within {limit} s {}", self.hint());
                Some(self.protocol_error(message))
            } else {
                None
            }
        };
        process.wait(given_up, |message| self.protocol_error(message))?;
        match receive::<Answer>(&mut process.answers) {
            Ok(Some(Answer::Ready { environment, .. })) => {
                // The worker may not be the child itself, because a shell may have started it.
                process.name = format!("process {}", environment.id);
                Ok(())
            }
            Ok(Some(Answer::Refused { refusal, .. })) => {
                let kind = if refusal.kind == RefusalKind::Storage {
                    FailureKind::Transient
                } else {
                    FailureKind::Plan
                };
                let worker = format!("`{}`", self.command.display());
                Err((kind, ExecutorError::Refused { worker, refusal }))
            }
            Ok(Some(Answer::Done { .. })) => {
                Err(self.protocol_error("expected the answer to a probe, got outcomes".into()))
            }
            Ok(None) => {
                let message = format!("exited before answering the probe {}", self.hint());
                Err(self.protocol_error(message))
            }
            Err(e) => Err(self.protocol_error(e.to_string())),
        }
    }

    /// Spawns the worker and returns it with this end of its socket.
    fn spawn(&self) -> io::Result<(Child, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        // The worker's output must not mix with this program's standard output.
        let printed =
            io::stderr().as_fd().try_clone_to_owned().map_or_else(|_| Stdio::null(), Stdio::from);
        let mut command = Command::new(&self.command);
        // In a process group of its own: this program handles interrupts from the terminal.
        command
            .args(&self.arguments)
            .env(WORKER_VARIABLE, "1")
            .stdin(OwnedFd::from(theirs))
            .stdout(printed)
            .process_group(0);
        Ok((command.spawn()?, ours))
    }

    fn argument(&self) -> String {
        self.arguments.first().map(|a| a.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn hint(&self) -> String {
        format!(
            "(hint: `main` must call `freestone::serve` when the program is started with `{}`)",
            self.argument()
        )
    }

    /// Runs one slot: a process, which is replaced if it ends.
    fn work(
        &self,
        context: &RunContext,
        source: &dyn TaskSource,
        index: usize,
        error: &Mutex<Option<ExecutorError>>,
    ) {
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
            let worker = match process.as_mut() {
                Some(worker) => worker,
                None => match self.start(context) {
                    Ok(started) => process.insert(started),
                    Err((kind, e)) => {
                        source.finished(lost(
                            context,
                            request,
                            format!("worker {index}"),
                            kind,
                            e.to_string(),
                        ));
                        if kind == FailureKind::Plan {
                            error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                        }
                        continue;
                    }
                },
            };
            match worker.run(context, &request, source) {
                Reply::Outcome(outcome) => source.finished(outcome),
                Reply::Lost(kind, message) => {
                    let name = worker.name.clone();
                    // Stop the process before reporting its loss, so that it writes nothing
                    // afterwards.
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
        crate::check_not_in_memory(context)?;
        self.start(context).map(drop).map_err(|(_, error)| error)
    }

    fn run(&self, context: &RunContext, source: &dyn TaskSource) -> Result<(), ExecutorError> {
        let error = Mutex::new(None);
        std::thread::scope(|scope| {
            for index in 0..crate::useful_slots(self.processes, context) {
                let error = &error;
                scope.spawn(move || self.work(context, source, index, error));
            }
        });
        // A worker that cannot be started fails its tasks. This error states the cause.
        match error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }
}
