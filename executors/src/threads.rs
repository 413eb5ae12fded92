//! Executors in this process.

use freestone_engine::executor::{Executor, ExecutorError, Next, TaskSource};
use freestone_engine::panics;
use freestone_engine::task::TaskOutcome;
use freestone_engine::worker::{RunContext, Worker};
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
        work(context, source, "main");
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
        pool.broadcast(|thread| work(context, source, &format!("thread {}", thread.index())));
        Ok(())
    }
}

/// Runs requests with one worker until the source stops.
fn work(context: &RunContext, source: &dyn TaskSource, name: &str) {
    let mut worker = Worker::new(context.clone(), name.to_owned());
    loop {
        match source.try_next() {
            Next::Run(request) => {
                // A panic is a defect that must end the run. Without an outcome the other threads
                // would wait forever.
                let ran = panics::caught(|| worker.run(&request)).unwrap_or_else(|panic| {
                    worker = Worker::new(context.clone(), name.to_owned());
                    let failure = Some(panicked(context, &request, &panic));
                    TaskOutcome {
                        request,
                        worker: name.to_owned(),
                        done: Vec::new(),
                        failure,
                        worker_peak_bytes: None,
                    }
                });
                source.finished(ran);
            }
            Next::Wait => {
                // A waiting worker releases its memory for the others.
                worker.release();
                source.wait();
            }
            Next::Stop => return,
        }
    }
}
