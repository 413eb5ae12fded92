//! Runs that end early, and go on in another process.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs, thread};

use freestone::{
    Array, Cancel, CodecName, DType, Error, ExitCode, Plan, RunOptions, RunReport, Serial, Spec,
    Stores, Target, Threads,
};
use freestone_engine::driver::RunError;
use freestone_engine::driver::record::folders;
use freestone_engine::events::{Event, Observer};
use freestone_engine::executor::{Executor, ExecutorError, Next, TaskSource};
use freestone_engine::machine::ProcessId;
use freestone_engine::publish::PublishError;
use freestone_engine::remote;
use freestone_engine::storage::Store;
use freestone_engine::task::{FailureKind, TaskOutcome};
use freestone_engine::worker::RunContext;

use crate::suites::variable;
use crate::support::{Place, processes, tree};

/// Counts finished tasks by stage, and cancels after so many in all.
#[derive(Default)]
struct Counting {
    tasks: Mutex<BTreeMap<usize, u64>>,
    seen: AtomicU64,
    cancel_after: Option<u64>,
    cancel: Cancel,
    recomputed: AtomicU64,
}

impl Counting {
    fn total(&self) -> u64 {
        self.tasks.lock().unwrap().values().sum()
    }
}

impl Observer for Counting {
    fn on_event(&self, event: &Event<'_>) {
        match event {
            Event::Outcome { outcome, counted } => {
                *self.tasks.lock().unwrap().entry(outcome.request.stage.0).or_default() += counted;
                if self.cancel_after.is_some_and(|n| {
                    self.seen.fetch_add(*counted, Ordering::Relaxed) + counted >= n
                }) {
                    self.cancel.cancel();
                }
            }
            Event::Recomputed { tasks, .. } => {
                self.recomputed.fetch_add(*tasks, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

fn run(
    planned: &Plan,
    spec: &Spec,
    executor: &dyn Executor,
    observer: &Counting,
) -> Result<RunReport, Error> {
    freestone::run_with(
        planned,
        spec,
        executor,
        &RunOptions {
            observers: &[observer],
            cancel: observer.cancel.clone(),
            ..RunOptions::default()
        },
    )
}

fn resume(
    folder: &str,
    spec: &Spec,
    executor: &dyn Executor,
    observer: &Counting,
) -> Result<RunReport, Error> {
    let stored = freestone::open_run(folder, &Stores::default())?;
    freestone::resume(
        &stored,
        spec,
        executor,
        &RunOptions {
            observers: &[observer],
            cancel: observer.cancel.clone(),
            ..RunOptions::default()
        },
    )
}

fn input(place: &Place) -> Array {
    let spec = place.spec();
    let x = freestone::random_uniform(&[600, 400], 0.5, 1.0, 7, DType::Float32, &[20, 400]);
    if !Path::new(&place.at("x")).exists() {
        freestone::run(
            &freestone::plan(&[Target::array(&x, &place.at("x")).codec(CodecName::None)], &spec)
                .unwrap(),
            &spec,
            &Serial,
        )
        .unwrap();
    }
    freestone::open(&place.at("x")).unwrap()
}

/// Two results by several stages, with intermediates between them.
fn stages(place: &Place, name: &str, spec: &Spec) -> Plan {
    let x = input(place);
    let y = (x.rechunk(&[600, 20]) * 2.0).rechunk(&[30, 400]);
    let z = x.sum(());
    let to = |part: &str| place.at(&format!("{name}-{part}"));
    freestone::plan(
        &[Target::array(&y, &to("y")).codec(CodecName::None), Target::array(&z, &to("z"))],
        spec,
    )
    .unwrap()
}

fn both(place: &Place, name: &str) -> Vec<BTreeMap<String, Vec<u8>>> {
    ["y", "z"].map(|part| tree(place.at(&format!("{name}-{part}"))).into_iter().collect()).into()
}

/// With a spec that keeps nothing in memory, or what has room.
fn specs(place: &Place) -> [Spec; 2] {
    let spec = place.spec();
    let planned = stages(place, "specs", &spec);
    [crate::scenarios::without_room(&spec, &planned, 2), spec]
}

/// Whatever the moment of the cancel, the executors, and where intermediates are: nothing that was
/// finished is run again, and the bytes are those of an undisturbed run.
#[test]
fn a_cancelled_run_goes_on_where_it_was() {
    let place = Place::new();
    let expect = {
        let spec = place.spec();
        freestone::run(&stages(&place, "expect", &spec), &spec, &Serial).unwrap();
        both(&place, "expect")
    };
    let executors: [(&str, Box<dyn Executor>); 3] = [
        ("serial", Box::new(Serial)),
        ("threads", Box::new(Threads::new(2))),
        ("processes", Box::new(processes(2))),
    ];
    let mut partial = 0;
    for (name, first) in &executors {
        for (second_name, second) in &executors {
            for (s, spec) in specs(&place).iter().enumerate() {
                for after in [1, 20, 60, 90] {
                    let case = format!("{name}-{second_name}-{s}-{after}");
                    let planned = stages(&place, &case, spec);
                    let n: u64 =
                        planned.finalized().plan().stages.iter().map(|s| s.n_tasks()).sum();
                    let stopped = Counting { cancel_after: Some(after), ..Counting::default() };
                    let error = match run(&planned, spec, &**first, &stopped) {
                        Ok(_) => continue,
                        Err(Error::Run(error)) => error,
                        Err(other) => panic!("{case}: {other}"),
                    };
                    assert!(matches!(error.cause(), RunError::Cancelled), "{case}: {error}");
                    assert!(
                        freestone::open(&place.at(&format!("{case}-y"))).is_err(),
                        "{case}: nothing is published"
                    );
                    let folder = error.kept().unwrap().to_owned();
                    assert!(
                        error.to_string().contains(&format!("freestone resume {folder}")),
                        "{error}"
                    );
                    let resumed = Counting::default();
                    let report = resume(&folder, spec, &**second, &resumed).unwrap();
                    assert_eq!(report.finished_before, stopped.total(), "{case}");
                    assert_eq!(
                        (resumed.total(), report.recomputed),
                        (n - stopped.total(), 0),
                        "{case}: {report}"
                    );
                    partial += u64::from(resumed.total() > 0);
                    assert!(both(&place, &case) == expect, "{case}");
                    assert!(!Path::new(&folder).exists());
                }
            }
        }
    }
    assert!(partial > 20, "only {partial} runs were interrupted half-way");
}

#[test]
fn a_run_of_fill_values_resumes_to_nothing() {
    let place = Place::new();
    let spec = place.spec();
    let zeros = freestone::full(&[100, 100], 0.0, DType::Float64, &[10, 10]);
    let planned =
        freestone::plan(&[Target::array(&(zeros + 0.0), &place.at("out"))], &spec).unwrap();
    let n = planned.finalized().plan().stages[0].n_tasks();
    let stopped = Counting { cancel_after: Some(n), ..Counting::default() };
    let Err(Error::Run(error)) = run(&planned, &spec, &Serial, &stopped) else {
        panic!("it is cancelled with its last task")
    };
    let resumed = Counting::default();
    let report = resume(error.kept().unwrap(), &spec, &Serial, &resumed).unwrap();
    assert_eq!((resumed.total(), report.finished_before), (0, n));
    assert_eq!(
        freestone::compute::<f64>(&freestone::open(&place.at("out")).unwrap(), &spec)
            .unwrap()
            .sum(),
        0.0
    );
}

/// An interrupted run of `stages`, and its folder.
fn interrupted(place: &Place, name: &str, after: u64) -> (Spec, String) {
    let spec = specs(place)[0].clone();
    let stopped = Counting { cancel_after: Some(after), ..Counting::default() };
    let Err(Error::Run(error)) = run(&stages(place, name, &spec), &spec, &Serial, &stopped) else {
        panic!("it is cancelled")
    };
    (spec, error.kept().unwrap().to_owned())
}

fn refused(folder: &str, spec: &Spec, verify: bool) -> RunError {
    let stored = freestone::open_run(folder, &Stores::default()).unwrap();
    match freestone::resume(
        &stored,
        spec,
        &Serial,
        &RunOptions { verify_inputs: verify, ..RunOptions::default() },
    ) {
        Err(Error::Run(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn inputs_that_changed_stop_it() {
    let place = Place::new();
    let (spec, folder) = interrupted(&place, "out", 5);
    // A chunk that is written anew is found where chunks are looked at, even if it keeps its time.
    let chunk = place.at("x/c/29/0");
    let (bytes, modified) =
        (fs::read(&chunk).unwrap(), fs::metadata(&chunk).unwrap().modified().unwrap());
    let changed = |file: &str| fs::metadata(file).map(|m| (m.ctime(), m.ctime_nsec())).unwrap();
    // The file system's clock goes in steps: until the change is seen to be later than the plan.
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
    // Other metadata are found in any case.
    let document = place.at("x/zarr.json");
    let text = fs::read_to_string(&document).unwrap();
    fs::write(&document, text.replace("\"fill_value\": 0.0", "\"fill_value\": 1.0")).unwrap();
    assert!(
        matches!(refused(&folder, &spec, false), RunError::InputChanged { place, .. } if place.ends_with("/x"))
    );
    fs::remove_file(&document).unwrap();
    assert!(matches!(refused(&folder, &spec, false), RunError::InputChanged { .. }));
    fs::write(&document, text).unwrap();
    resume(&folder, &spec, &Serial, &Counting::default()).unwrap();
}

#[test]
fn places_that_another_run_has_taken_stop_it() {
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

/// The batch that says that the outputs' places are the run's is lost, while later ones are there:
/// then nothing counts, since the places are cleared.
#[test]
fn without_the_beginning_of_the_journal_all_is_done_again() {
    let place = Place::new();
    let spec = place.spec();
    freestone::run(&stages(&place, "expect", &spec), &spec, &Serial).unwrap();
    let (spec, folder) = interrupted(&place, "out", 30);
    fs::remove_file(format!("{folder}/journal/000-000001.jsonl")).unwrap();
    let report = resume(&folder, &spec, &Serial, &Counting::default()).unwrap();
    assert_eq!(report.finished_before, 0);
    assert!(both(&place, "out") == both(&place, "expect"));
}

/// A run that is at work keeps others from its results' places.
#[test]
fn a_place_where_a_run_is_at_work_is_refused() {
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

/// What a worker left that was killed in the middle of a write.
#[test]
fn the_beginnings_of_writes_go() {
    let place = Place::new();
    let (spec, folder) = interrupted(&place, "out", 25);
    let left = place.at("out-y/c/3/.0.123-45.part");
    fs::create_dir_all(place.at("out-y/c/3")).unwrap();
    fs::write(&left, "half").unwrap();
    resume(&folder, &spec, &Serial, &Counting::default()).unwrap();
    assert!(!Path::new(&left).exists());
}

#[test]
fn what_is_no_run_is_said() {
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
    // Of one that is removed, this goes first: a kill in the middle of it leaves the rest.
    fs::remove_file(&record).unwrap();
    assert!(open(&folder).contains("run.json is missing"), "{}", open(&folder));
}

#[test]
fn one_process_at_a_time() {
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

/// Damage of the journal, of intermediates, their loss, and that of what they were made from.
#[test]
fn what_is_lost_or_damaged_is_computed_again() {
    type Damage = fn(&str);
    fn intermediates(folder: &str) -> Vec<std::path::PathBuf> {
        let arrays = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.is_dir() && !p.ends_with("journal") && !p.ends_with("kept"));
        let mut chunks: Vec<_> =
            arrays.flat_map(|a| fs::read_dir(a).unwrap().map(|e| e.unwrap().path())).collect();
        chunks.sort();
        assert!(chunks.len() > 3, "{chunks:?}");
        chunks
    }
    let damages: [(&str, Damage); 6] = [
        ("a byte", |folder| {
            for path in intermediates(folder).iter().step_by(2) {
                let mut bytes = fs::read(path).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 4;
                fs::write(path, bytes).unwrap();
            }
        }),
        ("cut short", |folder| {
            let chunks = intermediates(folder);
            fs::write(&chunks[0], &fs::read(&chunks[0]).unwrap()[..100]).unwrap();
            fs::write(&chunks[1], b"").unwrap();
        }),
        ("too long", |folder| {
            let chunks = intermediates(folder);
            fs::write(&chunks[0], fs::read(&chunks[0]).unwrap().repeat(2)).unwrap();
        }),
        ("lost", |folder| fs::remove_file(&intermediates(folder)[1]).unwrap()),
        ("all lost", |folder| {
            intermediates(folder).iter().for_each(|p| fs::remove_file(p).unwrap())
        }),
        ("journal", |folder| {
            let mut batches: Vec<_> = fs::read_dir(format!("{folder}/journal"))
                .unwrap()
                .map(|e| e.unwrap().path())
                .collect();
            batches.sort();
            let last = batches.last().unwrap();
            let mut bytes = fs::read(last).unwrap();
            bytes[20] ^= 1;
            fs::write(last, bytes).unwrap();
        }),
    ];
    let place = Place::new();
    let spec = place.spec();
    freestone::run(&stages(&place, "expect", &spec), &spec, &Serial).unwrap();
    let expect = both(&place, "expect");
    for (i, (what, damage)) in damages.into_iter().enumerate() {
        for executor in [&Threads::new(2) as &dyn Executor, &processes(2)] {
            let name = format!("case-{i}-{}", executor.name());
            let (spec, folder) = interrupted(&place, &name, 24);
            damage(&folder);
            let counting = Counting::default();
            let report = resume(&folder, &spec, executor, &counting)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(what == "journal" || report.recomputed > 0, "{what}: {report}");
            assert_eq!(report.recomputed, counting.recomputed.load(Ordering::Relaxed));
            assert!(both(&place, &name) == expect, "{what}");
        }
    }
}

/// What the lost chunks were made from was removed long ago: it is made again, too.
#[test]
fn what_was_removed_is_made_again_where_it_is_needed() {
    let place = Place::new();
    let plan = |name: &str, spec: &Spec| {
        let y = [[600, 20], [20, 400], [600, 40]]
            .iter()
            .fold(input(&place), |x, chunks| x.rechunk(chunks) * 2.0);
        let planned =
            freestone::plan(&[Target::array(&y, &place.at(name)).codec(CodecName::None)], spec)
                .unwrap();
        assert!(planned.finalized().plan().stages.len() >= 3, "{}", planned.finalized());
        planned
    };
    let spec = crate::scenarios::without_room(&place.spec(), &plan("expect", &place.spec()), 2);
    freestone::run(&plan("expect", &spec), &spec, &Serial).unwrap();
    for executor in [&Threads::new(2) as &dyn Executor, &processes(2)] {
        let planned = plan(executor.name(), &spec);
        let tasks: Vec<u64> =
            planned.finalized().plan().stages.iter().map(|s| s.n_tasks()).collect();
        let before_last: u64 = tasks[..tasks.len() - 1].iter().sum();
        let stopped = Counting { cancel_after: Some(before_last + 2), ..Counting::default() };
        let Err(Error::Run(error)) = run(&planned, &spec, &Serial, &stopped) else {
            panic!("it is cancelled")
        };
        let folder = error.kept().unwrap();
        let arrays = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.is_dir() && !p.ends_with("journal") && !p.ends_with("kept"))
            .collect::<Vec<_>>();
        assert_eq!(arrays.len(), 1, "the first intermediates are gone: {arrays:?}");
        fs::remove_dir_all(&arrays[0]).unwrap();
        let report = resume(folder, &spec, executor, &Counting::default()).unwrap();
        assert!(report.recomputed > tasks[0], "{report}");
        assert!(tree(place.at(executor.name())) == tree(place.at("expect")));
    }
}

/// An input chunk that is damaged is the user's: reported, and the run goes on once it is mended.
#[test]
fn a_damaged_input_is_reported_and_the_run_goes_on_when_it_is_mended() {
    let place = Place::new();
    let spec = place.spec();
    let planned = stages(&place, "out", &spec);
    let chunk = place.at("x/c/17/0");
    let bytes = fs::read(&chunk).unwrap();
    fs::write(&chunk, &bytes[..bytes.len() - 3]).unwrap();
    let error = freestone::run(&planned, &spec, &Serial).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Input);
    assert!(error.to_string().contains("x/c/17/0"), "{error}");
    let Error::Run(error) = error else { panic!() };
    fs::write(&chunk, bytes).unwrap();
    let report = resume(error.kept().unwrap(), &spec, &Serial, &Counting::default()).unwrap();
    assert!(report.finished_before > 0);
    freestone::run(&stages(&place, "expect", &spec), &spec, &Serial).unwrap();
    assert!(both(&place, "out") == both(&place, "expect"));
}

/// Runs the first request, and no other before the run is stopped.
#[derive(Debug)]
struct Stalling;

/// Hands out one request, and then waits for the end of the run.
struct OneRequest<'a> {
    source: &'a dyn TaskSource,
    cancel: &'a Cancel,
    handed_out: AtomicBool,
}

impl TaskSource for OneRequest<'_> {
    fn try_next(&self) -> Next {
        let stopped = self.cancel.is_cancelled();
        if self.handed_out.swap(true, Ordering::Relaxed) && !stopped {
            Next::Wait
        } else {
            self.source.try_next()
        }
    }

    fn wait(&self) {
        self.source.wait();
    }

    fn finished(&self, outcome: TaskOutcome) {
        self.source.finished(outcome);
    }
}

impl Executor for Stalling {
    fn name(&self) -> &str {
        "stalling"
    }

    fn slots(&self) -> usize {
        1
    }

    fn shares_process(&self) -> bool {
        true
    }

    fn check(&self, _: &RunContext) -> Result<(), ExecutorError> {
        Ok(())
    }

    fn run(&self, context: &RunContext, source: &dyn TaskSource) -> Result<(), ExecutorError> {
        Serial.run(
            context,
            &OneRequest { source, cancel: &context.cancel, handed_out: AtomicBool::new(false) },
        )
    }
}

#[test]
fn a_deadline_stops_a_run_and_it_can_be_resumed() {
    let place = Place::new();
    // Far more than the first request takes.
    let spec = Spec { deadline: Some(Duration::from_secs(3)), ..place.spec() };
    let planned = stages(&place, "out", &spec);
    let error =
        freestone::run_with(&planned, &spec, &Stalling, &RunOptions::default()).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Deadline);
    let Error::Run(error) = error else { panic!("{error}") };
    assert!(matches!(error.cause(), RunError::Deadline(_)), "{error}");
    resume(error.kept().unwrap(), &place.spec(), &Serial, &Counting::default()).unwrap();
}

#[test]
fn a_task_that_takes_too_long_ends_the_run() {
    let place = Place::new();
    let x = freestone::random_uniform(&[4000, 4000], 0.5, 1.0, 7, DType::Float32, &[1000, 1000]);
    // Tasks of many chunks, looked at between them.
    for executor in [&Threads::new(2) as &dyn Executor, &processes(2)] {
        let spec = Spec { task_timeout: Some(Duration::from_millis(1)), ..place.spec() };
        let planned =
            freestone::plan(&[Target::array(&x.std(()), &place.at("out"))], &spec).unwrap();
        let error = freestone::run(&planned, &spec, executor).unwrap_err();
        let timed_out = |e: &RunError| matches!(e, RunError::Task { failure, .. } if failure.kind == FailureKind::TimedOut);
        assert!(matches!(&error, Error::Run(e) if timed_out(e.cause())), "{error}");
        assert!(error.to_string().contains("exceeded the `task_timeout` of 1ms"), "{error}");
        assert!(freestone::open(&place.at("out")).is_err());
    }
}

/// Nothing to go on with: no folder stays, and the place is free.
#[test]
fn a_run_that_finished_nothing_leaves_nothing() {
    let place = Place::new();
    let spec = place.spec();
    let planned = stages(&place, "out", &spec);
    let cancel = Cancel::default();
    cancel.cancel();
    let error = freestone::run_with(
        &planned,
        &spec,
        &Serial,
        &RunOptions { cancel, ..RunOptions::default() },
    )
    .unwrap_err();
    let Error::Run(error) = error else { panic!("{error}") };
    assert!(matches!(error, RunError::Cancelled), "{error}");
    assert_eq!(folders(&Stores::default(), &spec.work_dir).unwrap(), Vec::<String>::new());
    assert!(tree(place.at("out-y")).is_empty());
}

/// Work directories in this process's memory cannot be resumed in another one, and keep nothing.
#[test]
fn what_is_in_memory_is_not_kept() {
    let place = Place::new();
    let store = Arc::new(freestone::MemoryStore::new());
    let stores = Stores::default();
    let store_dyn: Arc<dyn freestone_engine::storage::Store> =
        Arc::<freestone::MemoryStore>::clone(&store);
    stores.insert(Arc::clone(&store_dyn));
    let spec = Spec { work_dir: store_dyn.url().to_owned(), ..place.spec() };
    let planned = stages(&place, "out", &spec);
    let stopped = Counting { cancel_after: Some(20), ..Counting::default() };
    let options = RunOptions {
        observers: &[&stopped],
        cancel: stopped.cancel.clone(),
        stores,
        ..RunOptions::default()
    };
    let error = freestone::run_with(&planned, &spec, &Serial, &options).unwrap_err();
    assert!(matches!(&error, Error::Run(RunError::Cancelled)), "{error}");
    assert!(store.keys().is_empty());
}

/// Leaves a record of each outcome, as workers far away do.
#[derive(Debug)]
struct Leaving {
    folder: Mutex<Option<String>>,
}

/// Between an executor and the driver.
struct Between<'a> {
    source: &'a dyn TaskSource,
    work: Arc<dyn Store>,
    folder: &'a str,
}

impl TaskSource for Between<'_> {
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

impl Executor for Leaving {
    fn name(&self) -> &str {
        "leaving"
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
        Serial.run(context, &Between { source, work, folder: &context.address.folder })
    }
}

/// What a worker's record tells of is not run again, though the journal has nothing of it; a record
/// that is damaged, or whose receipts are not what the plan says, tells nothing.
#[test]
fn records_of_workers_count_where_the_journal_is_silent() {
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
            run(&planned, &spec, &Leaving { folder: Mutex::default() }, &stopped)
        else {
            panic!("it is cancelled")
        };
        let folder = error.kept().unwrap().to_owned();
        // All but that the run has begun.
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

/// Does something once, when the first task has ended.
struct Once<F: Fn() + Send + Sync>(std::sync::Once, F);

impl<F: Fn() + Send + Sync> Observer for Once<F> {
    fn on_event(&self, event: &Event<'_>) {
        if matches!(event, Event::Outcome { .. }) {
            self.0.call_once(&self.1);
        }
    }
}

/// In an object store the lock on a run is an object: nobody else goes on with a run while it is
/// going on, and who has lost it to somebody else stops.
#[test]
#[ignore = "needs an S3 server: run by .ci/run"]
fn s3_one_process_at_a_time_is_at_a_run() {
    let place = Place::new();
    let spec = Spec { work_dir: format!("{}/locked", variable("FREESTONE_S3")), ..place.spec() };
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
            freestone::open_run(&format!("{}/{}", spec.work_dir, folder()), &stores).unwrap();
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

    // Somebody else has taken it over, and is gone by now.
    for part in ["y", "z"] {
        fs::remove_dir_all(place.at(&format!("locked-{part}"))).unwrap();
    }
    let gone = ProcessId { started: 1, ..ProcessId::own() };
    let theirs = serde_json::json!({ "id": "theirs", "process": gone, "renewed": 0 }).to_string();
    let taking = Once(std::sync::Once::new(), || {
        store.write(&format!("{}/lock", folder()), theirs.as_bytes()).unwrap();
        // Signs of life are given every five seconds.
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
