//! Outcome records of remote workers, which count if the journal lacks them.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use freestone::{Error, Serial, Threads};
use freestone_engine::executor::{Executor, ExecutorError, Next, TaskSource};
use freestone_engine::remote;
use freestone_engine::storage::Store;
use freestone_engine::task::TaskOutcome;
use freestone_engine::worker::RunContext;

use super::{Counting, both, resume, run, specs, stages};
use crate::support::Place;

/// An executor that leaves a record of each outcome, as remote workers do.
#[derive(Debug)]
struct Recording {
    folder: Mutex<Option<String>>,
}

/// A source that writes a record of each outcome.
struct RecordingSource<'a> {
    source: &'a dyn TaskSource,
    work: Arc<dyn Store>,
    folder: &'a str,
}

impl TaskSource for RecordingSource<'_> {
    fn try_next(&self) -> Next {
        self.source.try_next()
    }

    fn wait(&self) {
        self.source.wait();
    }

    fn finished(&self, outcome: TaskOutcome) {
        remote::write_record(&*self.work, self.folder, "first", &outcome).unwrap();
        self.source.finished(outcome);
    }
}

impl Executor for Recording {
    fn name(&self) -> &str {
        "recording"
    }

    fn slots(&self) -> usize {
        1
    }

    fn shares_process(&self) -> bool {
        false
    }

    fn check(&self, _: &RunContext) -> Result<(), ExecutorError> {
        Ok(())
    }

    fn run(&self, context: &RunContext, source: &dyn TaskSource) -> Result<(), ExecutorError> {
        *self.folder.lock().unwrap() = Some(context.address.folder.clone());
        let work = context.stores.open(&context.address.work_dir).unwrap();
        Serial.run(context, &RecordingSource { source, work, folder: &context.address.folder })
    }
}

/// Tasks with a worker's record do not run again, even if the journal lacks them. Records that are
/// damaged, or whose receipts do not match the plan, are ignored.
#[test]
fn records_of_workers_replace_missing_journal_entries() {
    let place = Place::new();
    let (expect, spec) = {
        let spec = place.spec();
        freestone::run(&stages(&place, "expect", &spec), &spec, &Serial).unwrap();
        (both(&place, "expect"), specs(&place)[0].clone())
    };
    for (case, after) in [("early", 0.2), ("later", 0.5), ("late", 0.9)] {
        let planned = stages(&place, case, &spec);
        let n: u64 = planned.finalized().plan().stages.iter().map(|s| s.n_tasks()).sum();
        let stopped =
            Counting { cancel_after: Some((n as f64 * after) as u64), ..Counting::default() };
        let Err(Error::Run(error)) =
            run(&planned, &spec, &Recording { folder: Mutex::default() }, &stopped)
        else {
            panic!("the run is cancelled")
        };
        let folder = error.resumable_run().unwrap().to_owned();
        // Keep only the batch that records the start of the run.
        let mut journal: Vec<_> =
            fs::read_dir(format!("{folder}/journal")).unwrap().map(|e| e.unwrap().path()).collect();
        journal.sort();
        assert!(journal.len() > 1);
        journal.iter().skip(1).for_each(|f| fs::remove_file(f).unwrap());
        let mut records: Vec<_> = fs::read_dir(format!("{folder}/answers/first"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        records.sort();
        let tasks = |path: &Path| {
            serde_json::from_slice::<TaskOutcome>(&fs::read(path).unwrap()).unwrap().done.len()
                as u64
        };
        assert_eq!(records.iter().map(|r| tasks(r)).sum::<u64>(), stopped.total());
        let lost = tasks(&records[1]) + tasks(&records[3]);
        fs::write(&records[1], b"{\"request\":").unwrap();
        let text = fs::read_to_string(&records[3]).unwrap();
        assert!(text.contains("\"chunk\":"), "{text}");
        fs::write(&records[3], text.replace("\"chunk\":", "\"chunk\":1")).unwrap();
        let resumed = Counting::default();
        let report = resume(&folder, &spec, &Threads::new(2), &resumed).unwrap();
        assert_eq!(
            (report.finished_before, report.recomputed),
            (stopped.total() - lost, 0),
            "{case}"
        );
        assert_eq!(resumed.total(), n - stopped.total() + lost, "{case}");
        assert!(both(&place, case) == expect, "{case}");
    }
}
