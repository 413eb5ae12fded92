//! In this process.

use std::panic::{AssertUnwindSafe, catch_unwind};

use freestone_engine::executor::{Executor, ExecutorError, Next, TaskSource};
use freestone_engine::task::FailureKind;
use freestone_engine::worker::{RunContext, Worker};

use crate::lost;

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

    fn check(&self, _context: &RunContext) -> Result<(), ExecutorError> {
        Ok(())
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

    fn check(&self, _context: &RunContext) -> Result<(), ExecutorError> {
        Ok(())
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
                // A panic is a defect; it must end the run, not leave others waiting for its outcome.
                let ran = catch_unwind(AssertUnwindSafe(|| worker.run(&request)));
                source.finished(
                    ran.unwrap_or_else(|_| lost(context, request, name.to_owned(), FailureKind::Plan, "the task panicked: please report this".into())),
                );
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
