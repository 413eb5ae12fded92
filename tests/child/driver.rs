//! A driver that reports its progress and stops at its moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use freestone::{RunOptions, Stores};
use freestone_engine::events::{Event, Observer};
use freestone_engine::storage::{LocalStore, is_remote_url};
use serde_json::json;

use crate::faults::store::{FaultStore, Holds};
use crate::scenarios::driver::{Asked, Moment, SLOTS, plan};
use crate::{executor, say, stop};

/// The observer that reports events and stops at the moment.
struct Told {
    moment: Option<Moment>,
    n_stages: u64,
    tasks: AtomicU64,
    stages_ended: AtomicU64,
    published: AtomicU64,
    slow: Duration,
}

impl Told {
    /// Stops the calling thread if the moment is reached.
    fn reached(&self, is_it: bool) {
        if is_it {
            say(&json!({"stopped": self.moment, "tasks": self.tasks.load(Ordering::SeqCst)}));
            stop();
        }
    }

    fn asked(&self, action: &str, key: &str) {
        let tasks = self.tasks.load(Ordering::SeqCst);
        let document = action == "written" && key.ends_with("/zarr.json");
        let chunk = action == "written"
            && !document
            && !key.contains("/journal/")
            && !key.ends_with("plan.json")
            && !key.contains("claim");
        if key.contains("/journal/") {
            say(&json!({"journal": key, "is": action}));
        }
        match self.moment {
            Some(Moment::Chunk(n)) => self.reached(chunk && tasks >= n),
            Some(Moment::Flush) => self.reached(action == "flushed"),
            Some(Moment::Published(n)) => {
                self.reached(document && self.published.fetch_add(1, Ordering::SeqCst) == n)
            }
            _ => {}
        }
    }
}

impl Observer for Told {
    fn on_event(&self, event: &Event<'_>) {
        match event {
            Event::RunStarted(start) => say(&json!({"run": start.run, "finished": start.finished})),
            Event::Started { request } => say(
                &json!({"out": [request.stage.0, request.first, request.count], "id": request.id}),
            ),
            Event::Outcome { outcome, counted } => {
                let tasks = self.tasks.fetch_add(*counted, Ordering::SeqCst) + counted;
                let (stage, id) = (outcome.request.stage.0, outcome.request.id);
                say(&json!({"back": stage, "counted": counted, "id": id}));
                if let Some(Moment::Tasks(n)) = self.moment {
                    self.reached(tasks >= n);
                }
                std::thread::sleep(self.slow);
            }
            Event::StageEnded { .. } => {
                let ended = self.stages_ended.fetch_add(1, Ordering::SeqCst) + 1;
                self.reached(self.moment == Some(Moment::StagesEnded) && ended == self.n_stages);
            }
            _ => {}
        }
    }
}

/// Starts or resumes a run.
pub fn run(asked: &Asked) {
    // A resumed run reads its plan from the run's folder; some of the results may exist already.
    let (planned, spec) =
        plan(&asked.folder, if asked.resume.is_none() { "results" } else { "again" }, &asked.on);
    let executor = executor(&asked.on, &asked.binary, SLOTS);
    let told = Arc::new(Told {
        moment: asked.moment,
        n_stages: planned.finalized().plan().stages.len() as u64,
        tasks: AtomicU64::new(0),
        stages_ended: AtomicU64::new(0),
        published: AtomicU64::new(0),
        slow: Duration::from_millis(asked.slow_ms),
    });
    let stores = Stores::default();
    // Moments other than a number of tasks need watched stores, which are folders.
    let watched = [("work", Holds::Work), ("results", Holds::Outputs)];
    for (name, holds) in watched.into_iter().filter(|_| !is_remote_url(&asked.folder)) {
        let inner = Arc::new(LocalStore::new(format!("{}/{name}", asked.folder)));
        let told = Arc::clone(&told);
        stores.insert(Arc::new(FaultStore::watched(inner, holds, move |action, key| {
            told.asked(action, key)
        })));
    }
    let observers: [&dyn Observer; 1] = [&*told];
    let options = RunOptions { observers: &observers, stores, ..RunOptions::default() };
    let ended = match &asked.resume {
        None => freestone::run_with(&planned, &spec, &*executor, &options),
        Some(run) => {
            let stored =
                freestone::open_run(format!("{}/{run}", spec.work_dir), &options.stores).unwrap();
            freestone::resume(&stored, &spec, &*executor, &options)
        }
    };
    say(&match ended {
        Ok(report) => {
            json!({
                "ended": "well",
                "finished_before": report.finished_before,
                "recomputed": report.recomputed,
                "in_memory": report.cached_bytes > 0,
            })
        }
        Err(error) => json!({"ended": error.to_string()}),
    });
}
