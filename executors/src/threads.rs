//! In this process.

use freestone_engine::executor::{Executor, ExecutorError, Next, TaskSource};
use freestone_engine::panics;
use freestone_engine::task::TaskOutcome;
use freestone_engine::worker::{RunContext, Worker};
use freestone_worker::panicked;

/// One request after the other, on the calling thread.
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
        crate::knows_kernels(context)
    }

    fn run(&self, context: &RunContext, source: &dyn TaskSource) -> Result<(), ExecutorError> {
        work(context, source, "main");
        Ok(())
    }
}

/// On a pool of threads (rayon's).
#[derive(Clone, Copy, Debug)]
pub struct Threads {
    threads: usize,
}

impl Threads {
    /// With so many threads, at least one.
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
        crate::knows_kernels(context)
    }

    fn run(&self, context: &RunContext, source: &dyn TaskSource) -> Result<(), ExecutorError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(crate::useful(self.threads, context))
            .thread_name(|i| format!("freestone-{i}"))
            .build()
            .map_err(|e| ExecutorError::Threads(e.to_string()))?;
        pool.broadcast(|thread| work(context, source, &format!("thread {}", thread.index())));
        Ok(())
    }
}

/// One worker's life.
fn work(context: &RunContext, source: &dyn TaskSource, name: &str) {
    let mut worker = Worker::new(context.clone(), name.to_owned());
    loop {
        match source.try_next() {
            Next::Run(request) => {
                // A panic is a defect; it must end the run, not leave others waiting for its
                // outcome.
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
                // Who waits holds nothing: its share of memory is for those who work.
                worker.rest();
                source.wait();
            }
            Next::Stop => return,
        }
    }
}
