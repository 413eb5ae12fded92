//! A driver that overwrites an array in a repository and stops at its moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use freestone::RunOptions;
use freestone::sessions::{CommitOptions, RepositoryPublisher};
use freestone_engine::events::{Event, Observer};
use freestone_engine::plan::FinalizedPlan;
use freestone_engine::publish::{PublishError, Publisher};
use freestone_engine::storage::{StorageError, Store};
use freestone_engine::task::Receipt;
use serde_json::{Value, json};

use crate::scenarios::repository::{Asked, Moment, overwriting};
use crate::{executor, say, stop};

/// Reports that the moment is reached, and stops.
fn reached() -> ! {
    say(&json!("stopped"));
    stop()
}

/// An observer and publisher that stop at the moment.
struct Stopping {
    moment: Moment,
    inner: RepositoryPublisher,
    tasks: AtomicU64,
}

impl Observer for Stopping {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::Outcome { counted, .. } = event {
            let tasks = self.tasks.fetch_add(*counted, Ordering::SeqCst) + counted;
            if matches!(self.moment, Moment::Tasks(n) if tasks >= n) {
                reached();
            }
            // The pause lets the driver write journal batches.
            thread::sleep(Duration::from_millis(30));
        }
    }
}

impl Publisher for Stopping {
    fn store(&self) -> Option<Arc<dyn Store>> {
        self.inner.store()
    }

    fn needs_receipts(&self) -> bool {
        self.inner.needs_receipts()
    }

    fn check(&self, plan: &FinalizedPlan) -> Result<(), PublishError> {
        self.inner.check(plan)
    }

    fn begin(&self, plan: &FinalizedPlan) -> Result<(), PublishError> {
        self.inner.begin(plan)
    }

    fn ticket(&self) -> Value {
        self.inner.ticket()
    }

    fn resume(&self, plan: &FinalizedPlan, finished: bool) -> Result<(), PublishError> {
        self.inner.resume(plan, finished)
    }

    fn is_intact(&self, plan: &FinalizedPlan, receipt: &Receipt) -> Result<bool, StorageError> {
        self.inner.is_intact(plan, receipt)
    }

    fn commit(
        &self,
        plan: &FinalizedPlan,
        receipts: &[Receipt],
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<String>, PublishError> {
        match self.moment {
            Moment::BeforeCommit => reached(),
            Moment::InCommit(us) => drop(thread::spawn(move || {
                thread::sleep(Duration::from_micros(us));
                say(&json!("stopped"));
            })),
            _ => {}
        }
        let done = self.inner.commit(plan, receipts, is_cancelled);
        if self.moment == Moment::AfterCommit || matches!(self.moment, Moment::InCommit(_)) {
            reached();
        }
        done
    }

    fn abandon(&self, plan: &FinalizedPlan) {
        self.inner.abandon(plan);
    }
}

/// Runs until the moment is reached.
pub fn run(asked: &Asked) {
    let (planned, spec, session) = overwriting(&asked.folder);
    let stopping = Stopping {
        moment: asked.moment,
        inner: session.publishing("overwritten", CommitOptions::default()).unwrap(),
        tasks: AtomicU64::new(0),
    };
    let executor = executor(&asked.on, &asked.binary, 2);
    let _ = freestone::run_with(
        &planned,
        &spec,
        &*executor,
        &RunOptions { session: Some(&stopping), observers: &[&stopping], ..RunOptions::default() },
    );
    panic!("the moment never came");
}
