//! The AWS Lambda executor, with a function that computes nothing.
//!
//! The function runs in another process ([`answer`]), so that its cost is not counted. It reads
//! invocations as a worker does, and answers with the receipts of the tasks after their simulated
//! duration. Besides the driver, the cost is that of the client: batches, window, JSON, signatures,
//! HTTP, and records of lost answers.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use freestone::LambdaExecutor;
use freestone_engine::remote;
use freestone_engine::storage::Stores;
use freestone_engine::user::KernelRegistry;
use freestone_engine::worker::RunContext;
use freestone_lambda_emulator::StubFunction;
use freestone_worker::{Answer, Call, Environment, Invocation, fetch};

use super::{SLOTS, TASK_MICROS, WARM_MICROS};
use crate::{Failure, process};

/// One of this many answers is lost.
const PER_LOST: u64 = 100;
/// The interval of counting open descriptors, which takes time.
const COUNT: Duration = Duration::from_millis(100);

/// The process of the function.
pub(super) struct Function {
    url: String,
    child: Child,
    /// The process ends when this handle is closed.
    stdin: Option<ChildStdin>,
}

impl Function {
    pub(super) fn start() -> Result<Function, Failure> {
        let mut child = process::own("child-answering")?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().ok_or("it has no stdout")?);
        let mut url = String::new();
        BufReader::new(stdout).read_line(&mut url)?;
        Ok(Function { url: url.trim().to_owned(), child, stdin })
    }

    /// As many environments as in the simulation.
    pub(super) fn executor(&self) -> LambdaExecutor {
        LambdaExecutor::new("driven", "us-east-1")
            .endpoint(&self.url)
            .credentials("key", "secret", None)
            .concurrency(SLOTS)
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

/// Runs the function's process, which answers until its standard input ends.
pub(crate) fn answer() -> Result<(), Failure> {
    let (plan, n) = (Mutex::new(None), AtomicU64::new(0));
    let stub = StubFunction::start(move |body| {
        let invocation =
            serde_json::from_slice(body).ok().and_then(|body| Invocation::from_json(&body).ok())?;
        let n = n.fetch_add(1, Ordering::Relaxed);
        answer_to(&invocation, &context(&plan, &invocation)?, n)
    })?;
    println!("{}", stub.url());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// The run's plan, fetched once.
fn context(plan: &Mutex<Option<RunContext>>, invocation: &Invocation) -> Option<RunContext> {
    let mut plan = plan.lock().unwrap_or_else(PoisonError::into_inner);
    if plan.as_ref().is_none_or(|p| p.address != invocation.address) {
        *plan = fetch(&invocation.address, &Stores::default(), &KernelRegistry::new()).ok();
    }
    plan.clone()
}

/// Returns the body of the `n`-th answer, and the total duration of its tasks, or `None` if it is
/// lost.
fn answer_to(invocation: &Invocation, context: &RunContext, n: u64) -> Option<(Vec<u8>, Duration)> {
    let environment = Environment {
        id: "driven".into(),
        invocations: n + 1,
        had_plan: n > 0,
        init_ms: 0,
        memory_bytes: 256 << 20,
        peak_bytes: 100_000_000,
    };
    let warm = Duration::from_micros(WARM_MICROS);
    let requests = match &invocation.call {
        Call::Probe => {
            let slots = vec![1; context.plan.plan().stages.len()];
            let ready = Answer::Ready { environment, slots, remaining_ms: Some(900_000) };
            return Some((serde_json::to_vec(&ready).ok()?, warm));
        }
        Call::Run(requests) => requests,
    };
    let tasks = requests.iter().map(|r| r.count).sum::<u64>();
    let work = Duration::from_micros(TASK_MICROS * tasks);
    let outcomes: Vec<_> =
        requests.iter().map(|r| super::answer(context, r.clone(), TASK_MICROS * 1000)).collect();
    if n % PER_LOST == PER_LOST - 1 {
        let work = context.stores.open(&invocation.address.work_dir).ok()?;
        let client = invocation.client.as_ref()?;
        outcomes
            .iter()
            .try_for_each(|o| {
                remote::write_record(&*work, &invocation.address.folder, client, o).map(|_| ())
            })
            .ok()?;
        return None;
    }
    let wall_ms = work.as_millis() as u64;
    let done = Answer::Done {
        environment,
        outcomes,
        recorded: Vec::new(),
        not_started: Vec::new(),
        wall_ms,
    };
    Some((serde_json::to_vec(&done).ok()?, warm + work))
}

/// Counts this process's open descriptors periodically.
pub(super) struct Descriptors {
    is_over: Arc<AtomicBool>,
    counting: JoinHandle<u64>,
}

impl Descriptors {
    pub(super) fn count() -> Descriptors {
        let is_over = Arc::new(AtomicBool::new(false));
        let its = Arc::clone(&is_over);
        let counting = std::thread::spawn(move || {
            let mut most = 0;
            while !its.load(Ordering::Relaxed) {
                most = most
                    .max(std::fs::read_dir("/proc/self/fd").map_or(0, |open| open.count() as u64));
                std::thread::sleep(COUNT);
            }
            most
        });
        Descriptors { is_over, counting }
    }

    /// The maximum number of open descriptors.
    pub(super) fn most(self) -> Result<u64, Failure> {
        self.is_over.store(true, Ordering::Relaxed);
        self.counting.join().map_err(|_| "descriptors were not counted".into())
    }
}
