//! Interrupted runs, resumed by another process.

mod conflicts;
mod damage;
mod limits;
mod records;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use freestone::{
    Array, Cancel, CodecName, DType, Error, Plan, RunOptions, RunReport, Serial, Spec, Stores,
    Target, Threads,
};
use freestone_engine::driver::RunError;
use freestone_engine::events::{Event, Observer};
use freestone_engine::executor::Executor;

use crate::support::{Place, processes, tree};

/// Counts finished tasks by stage, and cancels the run after `cancel_after` tasks.
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
    let x = freestone::random_uniform([600, 400], 0.5, 1.0, 7, DType::Float32, [20, 400]);
    if !Path::new(&place.at("x")).exists() {
        freestone::run(
            &freestone::plan(&[Target::array(&x, place.at("x")).codec(CodecName::None)], &spec)
                .unwrap(),
            &spec,
            &Serial,
        )
        .unwrap();
    }
    freestone::open(place.at("x")).unwrap()
}

/// Two results by several stages, with intermediates between them.
fn stages(place: &Place, name: &str, spec: &Spec) -> Plan {
    let x = input(place);
    let y = (x.rechunk([600, 20]) * 2.0).rechunk([30, 400]);
    let z = x.sum(());
    let to = |part: &str| place.at(&format!("{name}-{part}"));
    freestone::plan(
        &[Target::array(&y, to("y")).codec(CodecName::None), Target::array(&z, to("z"))],
        spec,
    )
    .unwrap()
}

fn both(place: &Place, name: &str) -> Vec<BTreeMap<String, Vec<u8>>> {
    ["y", "z"].map(|part| tree(place.at(&format!("{name}-{part}"))).into_iter().collect()).into()
}

/// Returns a spec without a memory tier for intermediates, and one with it.
fn specs(place: &Place) -> [Spec; 2] {
    let spec = place.spec();
    let planned = stages(place, "specs", &spec);
    [crate::scenarios::without_room(&spec, &planned, 2), spec]
}

/// Runs `stages` until `after` tasks are finished. Returns the spec and the run's folder.
fn interrupted(place: &Place, name: &str, after: u64) -> (Spec, String) {
    let spec = specs(place)[0].clone();
    let stopped = Counting { cancel_after: Some(after), ..Counting::default() };
    let Err(Error::Run(error)) = run(&stages(place, name, &spec), &spec, &Serial, &stopped) else {
        panic!("the run is cancelled")
    };
    (spec, error.resumable_run().unwrap().to_owned())
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

/// For any number of finished tasks, pair of executors and place of intermediates: no finished task
/// runs again, and the bytes are those of an undisturbed run.
#[test]
fn a_cancelled_run_is_resumed_without_repeating_tasks() {
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
                        freestone::open(place.at(&format!("{case}-y"))).is_err(),
                        "{case}: nothing is published"
                    );
                    let folder = error.resumable_run().unwrap().to_owned();
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
fn a_finished_run_of_fill_values_resumes_without_tasks() {
    let place = Place::new();
    let spec = place.spec();
    let zeros = freestone::full([100, 100], 0.0, DType::Float64, [10, 10]);
    let planned =
        freestone::plan(&[Target::array(&(zeros + 0.0), place.at("out"))], &spec).unwrap();
    let n = planned.finalized().plan().stages[0].n_tasks();
    let stopped = Counting { cancel_after: Some(n), ..Counting::default() };
    let Err(Error::Run(error)) = run(&planned, &spec, &Serial, &stopped) else {
        panic!("the run is cancelled after its last task")
    };
    let resumed = Counting::default();
    let report = resume(error.resumable_run().unwrap(), &spec, &Serial, &resumed).unwrap();
    assert_eq!((resumed.total(), report.finished_before), (0, n));
    assert_eq!(
        freestone::compute::<f64>(&freestone::open(place.at("out")).unwrap(), &spec).unwrap().sum(),
        0.0
    );
}
