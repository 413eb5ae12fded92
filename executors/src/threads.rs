//! Executors in this process.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, SendError, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use freestone_engine::executor::{Executor, ExecutorError, Next, TaskSource};
use freestone_engine::panics;
use freestone_engine::task::TaskOutcome;
use freestone_engine::worker::{ComputedRequest, RunContext, Worker};
use freestone_worker::panicked;

/// An executor that runs requests in sequence on the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Executor for Serial {
    fn name(&self) -> &str {
        "serial"
    }

    fn slots(&self) -> usize {
        1
    }

    fn shares_process(&self) -> bool {
        true
    }

    fn check(&self, context: &RunContext) -> Result<(), ExecutorError> {
        crate::check_kernels(context)
    }

    fn run(&self, context: &RunContext, source: &dyn TaskSource) -> Result<(), ExecutorError> {
        with_finisher(source, |finisher| work(context, source, finisher, "main"));
        Ok(())
    }
}

/// An executor with a pool of rayon threads.
#[derive(Clone, Copy, Debug)]
pub struct Threads {
    threads: usize,
}

impl Threads {
    /// Creates an executor with a number of threads, at least one.
    pub fn new(threads: usize) -> Threads {
        Threads { threads: threads.max(1) }
    }
}

impl Executor for Threads {
    fn name(&self) -> &str {
        "threads"
    }

    fn slots(&self) -> usize {
        self.threads
    }

    fn shares_process(&self) -> bool {
        true
    }

    fn check(&self, context: &RunContext) -> Result<(), ExecutorError> {
        crate::check_kernels(context)
    }

    fn run(&self, context: &RunContext, source: &dyn TaskSource) -> Result<(), ExecutorError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(crate::useful_slots(self.threads, context))
            .thread_name(|i| format!("freestone-{i}"))
            .build()
            .map_err(|e| ExecutorError::Threads(e.to_string()))?;
        with_finisher(source, |finisher| {
            pool.broadcast(|thread| {
                work(context, source, finisher, &format!("thread {}", thread.index()));
            });
        });
        Ok(())
    }
}

/// The sender of computed requests to the thread that waits for their writes.
type Finisher = Mutex<Sender<Unfinished>>;

/// A computed request whose writes are in flight, and the number of such requests of its worker.
type Unfinished = (ComputedRequest, Arc<AtomicUsize>);

/// Calls `run` while another thread waits for the writes of computed requests and returns their
/// outcomes. All outcomes are returned when this returns.
fn with_finisher(source: &dyn TaskSource, run: impl FnOnce(&Finisher)) {
    let (send, receive) = mpsc::channel::<Unfinished>();
    std::thread::scope(|scope| {
        let finish = move || {
            // A panic of an observer must not lose the outcomes of other requests.
            let mut panic = None;
            for (computed, unfinished) in receive {
                let finished = panics::caught(|| source.finished(computed.wait()));
                unfinished.fetch_sub(1, Ordering::Release);
                panic = panic.or(finished.err());
            }
            if let Some(message) = panic {
                std::panic::resume_unwind(Box::new(message));
            }
        };
        // Without the thread, `send` fails and each worker waits for its own writes.
        let _ = std::thread::Builder::new()
            .name("freestone-writes".to_owned())
            .spawn_scoped(scope, finish);
        let finisher = Mutex::new(send);
        run(&finisher);
        drop(finisher);
    });
}

/// Returns the outcome of a computed request to the source, once its results are durable.
fn finish(
    source: &dyn TaskSource,
    finisher: &Finisher,
    computed: ComputedRequest,
    unfinished: &Arc<AtomicUsize>,
) {
    if computed.is_durable() {
        return source.finished(computed.wait());
    }
    unfinished.fetch_add(1, Ordering::Relaxed);
    let sender = finisher.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(SendError((computed, _))) = sender.send((computed, Arc::clone(unfinished))) {
        drop(sender);
        source.finished(computed.wait());
        unfinished.fetch_sub(1, Ordering::Release);
    }
}

/// Runs requests with one worker until the source stops.
fn work(context: &RunContext, source: &dyn TaskSource, finisher: &Finisher, name: &str) {
    let mut worker = Worker::new(context.clone(), name.to_owned());
    let unfinished = Arc::new(AtomicUsize::new(0));
    loop {
        match source.try_next() {
            Next::Run(request) => {
                // A panic is a defect that must end the run. Without an outcome the other threads
                // would wait forever.
                match panics::caught(|| worker.compute(&request)) {
                    Ok(computed) => finish(source, finisher, computed, &unfinished),
                    Err(panic) => {
                        worker = Worker::new(context.clone(), name.to_owned());
                        let failure = Some(panicked(context, &request, &panic));
                        source.finished(TaskOutcome {
                            request,
                            worker: name.to_owned(),
                            done: Vec::new(),
                            failure,
                            worker_peak_bytes: None,
                        });
                    }
                }
            }
            Next::Wait => {
                // A waiting worker releases its memory for the others. A request whose writes are
                // in flight still accounts for the memory of its worker.
                if unfinished.load(Ordering::Acquire) == 0 {
                    worker.release();
                }
                source.wait();
            }
            Next::Stop => return,
        }
    }
}
