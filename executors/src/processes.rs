//! In other processes on this machine.
//!
//! A worker process is started, never forked: a program that is told to [`serve`]. It gets the plan's address, fetches the
//! plan itself, and then answers one request after the other through its standard input and output.

use std::ffi::OsString;
use std::io::{self, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};

use freestone_engine::executor::{Executor, ExecutorError, Next, TaskSource};
use freestone_engine::machine;
use freestone_engine::plan::Place;
use freestone_engine::task::{FailureKind, TaskFailure, TaskOutcome, TaskRequest};
use freestone_engine::user::KernelRegistry;
use freestone_engine::worker::{RunContext, Worker};

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

/// What a worker process does: answers requests until its input ends. It knows the users' kernels that it is given.
///
/// When the input ends, the process ends, also in the middle of a task: a driver that is gone must not be followed by late
/// writes.
///
/// # Errors
/// Where input or output break.
pub fn serve(kernels: &KernelRegistry, input: impl io::Read + Send + 'static, mut output: impl io::Write) -> io::Result<()> {
    let mut input = BufReader::new(input);
    let Some(hello) = receive::<Hello>(&mut input)? else { return Ok(()) };
    let mut ready = Ready { version: VERSION, pid: std::process::id(), error: None };
    let context =
        if hello.version == VERSION { RunContext::fetch(hello.address, kernels) } else { Err(format!("it speaks version {VERSION}, not {}", hello.version)) };
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
        let mut child =
            Command::new(&self.command).args(&self.arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|e| failed(e.to_string()))?;
        let (Some(mut requests), Some(outcomes)) = (child.stdin.take(), child.stdout.take()) else { return Err(failed("it has no pipes".into())) };
        let name = format!("process {} ({index})", child.id());
        let hello = Hello { version: VERSION, address: context.address.clone(), name: name.clone() };
        // A program that is gone already is told from its silence below.
        let _ = send(&mut requests, &hello);
        let mut process = Process { child, requests, outcomes: BufReader::new(outcomes), name };
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
            let answer = send(&mut worker.requests, &request).and_then(|()| receive::<TaskOutcome>(&mut worker.outcomes));
            match answer {
                Ok(Some(outcome)) => source.finished(outcome),
                broken => {
                    let name = worker.name.clone();
                    let how = worker
                        .child
                        .try_wait()
                        .ok()
                        .flatten()
                        .map_or_else(|| broken.err().map_or_else(|| "its output ended".into(), |e| e.to_string()), |s| s.to_string());
                    process = None;
                    source.finished(lost(context, request, name, FailureKind::WorkerLost, format!("the worker process is gone: {how}")));
                }
            }
        }
    }
}

pub(crate) fn lost(context: &RunContext, request: TaskRequest, worker: String, kind: FailureKind, message: String) -> TaskOutcome {
    let stage = context.plan.plan().stages.get(request.stage.0).map(|s| s.name.clone()).unwrap_or_default();
    let failure = TaskFailure { kind, message, stage, task: request.first };
    TaskOutcome { request, worker, done: Vec::new(), failure: Some(failure), worker_peak_bytes: None }
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
        let plan = context.plan.plan();
        let hidden = plan.arrays.iter().find_map(|a| match &a.place {
            Place::Input { url, .. } | Place::Output { url, .. } if url.starts_with("memory://") => Some(a.name.clone()),
            _ => None,
        });
        if let Some(name) = hidden {
            return Err(ExecutorError::Unreachable(format!("`{name}`")));
        }
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
