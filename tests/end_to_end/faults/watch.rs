//! Detection of runs that hang.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use freestone_engine::events::{Event, Observer};

/// A run without events for this long hangs. Tasks take milliseconds, and retries wait a few
/// seconds at most.
const SILENCE: Duration = Duration::from_secs(180);

/// The number of last events to print.
const LAST: usize = 60;

/// An observer that keeps the last events.
#[derive(Default)]
pub struct Watch {
    heard: Mutex<Heard>,
    over: Condvar,
}

#[derive(Default)]
struct Heard {
    events: u64,
    last: VecDeque<String>,
    is_over: bool,
}

impl Watch {
    /// Calls `what`. If no event arrives for a long time, prints the state and aborts the process,
    /// because a hanging thread cannot be ended.
    pub fn watched<T>(
        &self,
        name: &str,
        known: impl Fn() -> String + Sync,
        what: impl FnOnce() -> T,
    ) -> T {
        std::thread::scope(|scope| {
            let guard = scope.spawn(|| self.wait_for_silence(name, &known));
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(what));
            self.heard.lock().unwrap().is_over = true;
            self.over.notify_all();
            guard.join().unwrap();
            done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn wait_for_silence(&self, name: &str, known: &dyn Fn() -> String) {
        let mut heard = self.heard.lock().unwrap();
        let mut events = heard.events;
        while !heard.is_over {
            let (again, waited) = self
                .over
                .wait_timeout_while(heard, SILENCE, |h| !h.is_over && h.events == events)
                .unwrap();
            heard = again;
            if waited.timed_out() {
                eprintln!(
                    "{name} hangs: nothing was heard of it for {SILENCE:?}\nlast events:\n  {}",
                    self.text(&heard)
                );
                eprintln!("{}", known());
                std::process::abort();
            }
            events = heard.events;
        }
    }

    fn text(&self, heard: &Heard) -> String {
        heard.last.iter().cloned().collect::<Vec<_>>().join("\n  ")
    }

    /// Returns the last events.
    pub fn last(&self) -> String {
        self.text(&self.heard.lock().unwrap())
    }
}

impl Observer for Watch {
    fn on_event(&self, event: &Event<'_>) {
        let text = match event {
            Event::RunStarted(start) => format!(
                "run {} of {} tasks",
                start.run,
                start.plan.plan().stages.iter().map(|s| s.n_tasks()).sum::<u64>()
            ),
            Event::Outcome { outcome, counted } => {
                let r = &outcome.request;
                let failure = outcome.failure.as_ref().map_or(String::new(), |f| {
                    format!(", {:?} of {}: {}", f.kind, f.task, f.message)
                });
                format!(
                    "back {} ({}/{}+{}) from {}: {} done, {counted} counted{failure}",
                    r.id,
                    r.stage.0,
                    r.first,
                    r.count,
                    outcome.worker,
                    outcome.done.len()
                )
            }
            Event::Started { request: r } => {
                format!(
                    "out {} ({}/{}+{}), attempt {}, backup of {:?}",
                    r.id, r.stage.0, r.first, r.count, r.attempt, r.backup_of
                )
            }
            Event::RunEnded(Ok(_)) => "the run ended well".into(),
            other => format!("{other:?}"),
        };
        let mut heard = self.heard.lock().unwrap();
        heard.events += 1;
        if heard.last.len() == LAST {
            heard.last.pop_front();
        }
        heard.last.push_back(text);
    }
}
