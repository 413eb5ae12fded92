//! Runs that cannot be resumed: changed inputs, taken outputs, other processes, invalid records.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use freestone::{Error, ExitCode, RunOptions, Serial, Spec, Stores, Threads};
use freestone_engine::driver::RunError;
use freestone_engine::driver::record::folders;
use freestone_engine::events::{Event, Observer};
use freestone_engine::machine::ProcessId;
use freestone_engine::publish::PublishError;

use super::{Counting, both, interrupted, refused, resume, stages};
use crate::suites::variable;
use crate::support::Place;

#[test]
fn changed_inputs_are_refused() {
    let place = Place::new();
    let (spec, folder) = interrupted(&place, "out", 5);
    // A rewritten chunk is found if chunks are verified, even if its modification time is the same.
    let chunk = place.at("x/c/29/0");
    let (bytes, modified) =
        (fs::read(&chunk).unwrap(), fs::metadata(&chunk).unwrap().modified().unwrap());
    let changed = |file: &str| fs::metadata(file).map(|m| (m.ctime(), m.ctime_nsec())).unwrap();
    // The file system's clock has a coarse resolution: repeat until the change is after the plan.
    while changed(&chunk) <= changed(&format!("{folder}/plan.json")) {
        fs::write(&chunk, &bytes).unwrap();
        fs::File::options().write(true).open(&chunk).unwrap().set_modified(modified).unwrap();
    }
    let error = refused(&folder, &spec, true);
    assert!(
        matches!(&error, RunError::InputChanged { place, .. } if place.contains("x/c/29/0")),
        "{error}"
    );
    assert!(error.to_string().contains("`rechunk-"), "{error}");
    assert_eq!(Error::Run(error).exit_code(), ExitCode::Input);
    // Changed metadata are found without verification of chunks.
    let document = place.at("x/zarr.json");
    let text = fs::read_to_string(&document).unwrap();
    fs::write(&document, text.replace("\"fill_value\": 0.0", "\"fill_value\": 1.0")).unwrap();
    let error = refused(&folder, &spec, false);
    assert!(
        matches!(&error, RunError::InputChanged { place, .. } if place.ends_with("/x")),
        "{error}"
    );
    fs::remove_file(&document).unwrap();
    assert!(matches!(refused(&folder, &spec, false), RunError::InputChanged { .. }));
    fs::write(&document, text).unwrap();
    resume(&folder, &spec, &Serial, &Counting::default()).unwrap();
}

#[test]
fn outputs_taken_by_another_run_are_refused() {
    let place = Place::new();
    let (spec, folder) = interrupted(&place, "out", 5);
    let (_, second) = interrupted(&place, "out", 25);
    let error = refused(&folder, &spec, false);
    assert!(matches!(error.cause(), RunError::Publish(PublishError::Taken { .. })), "{error}");
    resume(&second, &spec, &Serial, &Counting::default()).unwrap();
    assert!(matches!(
        refused(&folder, &spec, false).cause(),
        RunError::Publish(PublishError::Taken { .. })
    ));
}

/// An active run keeps other runs from writing its outputs.
#[test]
fn outputs_of_an_active_run_are_refused() {
    struct Other<'a>(&'a Place, Mutex<Option<ExitCode>>);
    impl Observer for Other<'_> {
        fn on_event(&self, event: &Event<'_>) {
            let mut found = self.1.lock().unwrap();
            if matches!(event, Event::StageStarted { .. }) && found.is_none() {
                let spec = self.0.spec();
                let error =
                    freestone::run(&stages(self.0, "out", &spec), &spec, &Serial).unwrap_err();
                assert!(error.to_string().contains("another run is writing"), "{error}");
                *found = Some(error.exit_code());
            }
        }
    }
    let place = Place::new();
    let spec = place.spec();
    let other = Other(&place, Mutex::default());
    freestone::run_with(
        &stages(&place, "out", &spec),
        &spec,
        &Threads::new(2),
        &RunOptions { observers: &[&other], ..RunOptions::default() },
    )
    .unwrap();
    assert_eq!(other.1.into_inner().unwrap(), Some(ExitCode::Conflict));
    freestone::run(&stages(&place, "expect", &spec), &spec, &Serial).unwrap();
    assert!(both(&place, "out") == both(&place, "expect"));
}

#[test]
fn invalid_runs_are_named() {
    let place = Place::new();
    let open = |folder: &str| {
        freestone::open_run(folder, &Stores::default()).map(drop).unwrap_err().to_string()
    };
    assert!(open(&place.at("work/none")).contains("no resumable run at"));
    let (_, folder) = interrupted(&place, "out", 20);
    let record = format!("{folder}/run.json");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, &text[..text.len() / 2]).unwrap();
    assert!(open(&folder).contains("invalid run.json"));
    fs::write(&record, text.replace("\"format\":1", "\"format\":77")).unwrap();
    assert!(open(&folder).contains("format 77"));
    fs::write(&record, text).unwrap();
    let plan = format!("{folder}/plan.json");
    let text = fs::read_to_string(&plan).unwrap();
    fs::write(&plan, "{}").unwrap();
    assert!(open(&folder).contains("invalid plan.json"));
    fs::write(&plan, text.replacen("rechunk-000", "rechunk-00X", 1)).unwrap();
    assert!(open(&folder).contains("plan.json has changed"));
    // A removal starts with this file: a kill meanwhile leaves the other files.
    fs::remove_file(&record).unwrap();
    assert!(open(&folder).contains("run.json is missing"), "{}", open(&folder));
}

#[test]
fn a_run_locked_by_another_process_is_refused() {
    let place = Place::new();
    let (spec, folder) = interrupted(&place, "out", 20);
    let lock = fs::File::options().write(true).open(format!("{folder}/lock")).unwrap();
    lock.lock().unwrap();
    let error = refused(&folder, &spec, false);
    assert!(matches!(&error, RunError::Running { .. }), "{error}");
    assert_eq!(Error::Run(error).exit_code(), ExitCode::Conflict);
    drop(lock);
    resume(&folder, &spec, &Serial, &Counting::default()).unwrap();
}

/// Calls a function once, when the first task has ended.
struct Once<F: Fn() + Send + Sync>(std::sync::Once, F);

impl<F: Fn() + Send + Sync> Observer for Once<F> {
    fn on_event(&self, event: &Event<'_>) {
        if matches!(event, Event::Outcome { .. }) {
            self.0.call_once(&self.1);
        }
    }
}

/// In an object store, the lock on a run is a lease object. An active run cannot be resumed, and a
/// process that loses the lease stops.
#[test]
#[ignore = "needs an object store: run by .ci/run"]
fn store_a_run_has_one_process_at_a_time() {
    let place = Place::new();
    let spec = Spec { work_dir: format!("{}/locked", variable("FREESTONE_STORE")), ..place.spec() };
    let stores = Stores::default();
    let store = stores.open(&spec.work_dir).unwrap();
    let folder = || folders(&stores, &spec.work_dir).unwrap().pop().unwrap();
    let planned = stages(&place, "locked", &spec);
    let resumed = |first: &str| {
        resume(&format!("{}/{first}", spec.work_dir), &spec, &Serial, &Counting::default())
    };
    let observed = |observer: &dyn Observer| {
        freestone::run_with(
            &planned,
            &spec,
            &Serial,
            &RunOptions { observers: &[observer], ..RunOptions::default() },
        )
    };

    let meanwhile = Mutex::new(None);
    let second = Once(std::sync::Once::new(), || {
        let stored =
            freestone::open_run(format!("{}/{}", spec.work_dir, folder()), &stores).unwrap();
        assert!(stored.status(&stores).unwrap().is_running);
        *meanwhile.lock().unwrap() = Some(resumed(&folder()));
    });
    observed(&second).unwrap();
    let error = meanwhile.into_inner().unwrap().unwrap().unwrap_err();
    assert!(
        matches!(&error, Error::Run(RunError::Running { .. }))
            && error.exit_code() == ExitCode::Conflict,
        "{error}"
    );
    assert_eq!(
        folders(&stores, &spec.work_dir).unwrap(),
        Vec::<String>::new(),
        "the lock goes with the run"
    );
    let expect = both(&place, "locked");

    // Another process took the run over, and has ended.
    for part in ["y", "z"] {
        fs::remove_dir_all(place.at(&format!("locked-{part}"))).unwrap();
    }
    let gone = ProcessId { started: 1, ..ProcessId::own() };
    let theirs = serde_json::json!({ "id": "theirs", "process": gone, "renewed": 0 }).to_string();
    let taking = Once(std::sync::Once::new(), || {
        store.write(&format!("{}/lock", folder()), theirs.as_bytes()).unwrap();
        // The lease is renewed every five seconds.
        thread::sleep(Duration::from_secs(7));
    });
    let error = observed(&taking).unwrap_err();
    assert!(
        matches!(&error, Error::Run(RunError::TakenOver { .. }))
            && error.exit_code() == ExitCode::Conflict,
        "{error}"
    );
    let left = folder();
    assert_eq!(
        fs::exists(place.at("locked-y/zarr.json")).ok(),
        Some(false),
        "nothing is published"
    );
    resumed(&left).unwrap();
    assert!(both(&place, "locked") == expect);
    assert_eq!(folders(&stores, &spec.work_dir).unwrap(), Vec::<String>::new());
}
