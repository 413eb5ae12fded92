//! Random plans × random faults × random kills, against what must come of them.
//!
//! A run either ends well, and its results are byte for byte those of an undisturbed run, which are
//! what ndarray gives; or it ends with an error that the faults which fired explain, and nothing is
//! published. It ends in any case, every request comes back once, and nothing panics. Where no
//! fault was worse than what the driver promises to survive, it must end well.
//!
//! Each case follows from one number. `FREESTONE_FAULT_SEED=n` runs one case again,
//! `FREESTONE_FAULT_CASES=n` runs so many.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use freestone::{Cancel, Error, Plan, RunOptions, RunReport, Serial, Spec, Stores, Threads};
use freestone_engine::driver::RunError;
use freestone_engine::events::{Event, Observer};
use freestone_engine::executor::Executor;
use freestone_engine::publish::PublishError;
use freestone_engine::storage::{LocalStore, StorageError, Store};
use freestone_engine::task::{FailureKind, TaskFailure};

use super::executor::FaultExecutor;
use super::plans::Program;
use super::processes::{Killer, Vandal};
use super::store::{FaultStore, Holds};
use super::watch::Watch;
use super::{Chance, Fault, Faults, Part, Rule, mix};
use crate::scenarios::without_room;
use crate::support::{Place, names, processes, tree};
use crate::values::computed;

/// Goes on with a run that did not end.
pub fn resume(
    work_dir: &str,
    run: &str,
    spec: &Spec,
    executor: &dyn Executor,
    options: &RunOptions<'_>,
) -> Result<RunReport, Error> {
    let stored = freestone::open_run(&format!("{work_dir}/{run}"), &options.stores)?;
    freestone::resume(&stored, spec, executor, options)
}

/// What a driver asks of storage for itself may fail so often.
const DRIVERS_TRIES: u64 = 6;
/// So many failures of all tasks a run survives in any case.
const BUDGET: usize = 200;

/// How often a task may fail in one way, and be tried again.
fn tries(kind: FailureKind, spec: &Spec) -> usize {
    match kind {
        FailureKind::Transient | FailureKind::WorkerLost => spec.retries as usize,
        FailureKind::Throttled => 4 * spec.retries as usize,
        // Twice on different workers is too often.
        FailureKind::Crashed | FailureKind::TimedOut | FailureKind::OutOfMemory => 1,
        FailureKind::Damaged { .. } => 3,
        _ => 0,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Threads,
    Processes,
}

/// What strikes what where tasks run in this process.
const ON_THREADS: &[(Fault, &[Part])] = &[
    (Fault::Delay, &[Part::Intermediates, Part::Outputs, Part::Inputs, Part::Requests]),
    (
        Fault::Transient,
        &[Part::Intermediates, Part::Outputs, Part::Inputs, Part::Journal, Part::Documents],
    ),
    (
        Fault::Throttled,
        &[Part::Intermediates, Part::Outputs, Part::Inputs, Part::Journal, Part::Documents],
    ),
    (Fault::LostResponse, &[Part::Intermediates, Part::Outputs, Part::Journal, Part::Documents]),
    (Fault::Torn, &[Part::Intermediates, Part::Outputs, Part::Journal]),
    (Fault::NoSpace, &[Part::Intermediates, Part::Outputs, Part::Journal]),
    (
        Fault::Denied,
        &[Part::Intermediates, Part::Outputs, Part::Inputs, Part::Journal, Part::Documents],
    ),
    (Fault::CorruptRead, &[Part::Inputs]),
];

/// What happens to intermediates that pass this process.
const DAMAGES: &[(Fault, &[Part])] = &[
    (Fault::CorruptWrite, &[Part::Intermediates]),
    (Fault::CorruptRead, &[Part::Intermediates]),
    (Fault::Dropped, &[Part::Intermediates]),
];

/// What happens to their files.
const DAMAGES_TO_FILES: &[(Fault, &[Part])] = &[
    (Fault::FlippedFile, &[Part::Intermediates]),
    (Fault::CutFile, &[Part::Intermediates]),
    (Fault::RemovedFile, &[Part::Intermediates]),
];

/// Workers' stores are not struck, since adapters do not travel.
const ON_PROCESSES: &[(Fault, &[Part])] = &[
    (Fault::Transient, &[Part::Journal, Part::Documents]),
    (Fault::LostResponse, &[Part::Journal, Part::Documents]),
    (Fault::Sigkill, &[Part::Requests]),
    (Fault::Sigsegv, &[Part::Requests]),
    (Fault::Sigkill, &[Part::Requests]),
    (Fault::Sigsegv, &[Part::Requests]),
];

const ON_REQUESTS: &[(Fault, &[Part])] = &[
    (Fault::Straggler, &[Part::Requests]),
    (Fault::LostOutcome, &[Part::Requests]),
    (Fault::PartOutcome, &[Part::Requests]),
    (Fault::WorkerLost, &[Part::Requests]),
    (Fault::Crashed, &[Part::Requests]),
    (Fault::TimedOut, &[Part::Requests]),
    (Fault::OutOfMemory, &[Part::Requests]),
    (Fault::Twice, &[Part::Requests]),
];

const LATE: &[(Fault, &[Part])] = &[(Fault::LateTwin, &[Part::Requests])];

fn menu(on: On) -> Vec<(Fault, &'static [Part])> {
    let (own, damages) =
        if on == On::Threads { (ON_THREADS, DAMAGES) } else { (ON_PROCESSES, DAMAGES_TO_FILES) };
    // Where tasks run in this process, there are no backups.
    let stuck: &[(Fault, &[Part])] =
        if on == On::Processes { &[(Fault::Stuck, &[Part::Requests])] } else { &[] };
    [own, ON_REQUESTS, damages, LATE, stuck].concat()
}

/// What happens in one case. Each fault of the menu leads in turn; others come with it.
fn rules(on: On, seed: u64) -> Vec<Rule> {
    let (menu, mut chance) = (menu(on), Chance::new(mix(seed) ^ 1));
    let mut chosen = vec![menu[seed as usize % menu.len()]];
    (0..chance.below(3)).for_each(|_| chosen.push(chance.pick(&menu)));
    let mut rules = Vec::new();
    for (i, (fault, parts)) in chosen.into_iter().enumerate() {
        // What ends a run soon is rare, unless it leads.
        let for_good = matches!(fault, Fault::Denied | Fault::NoSpace | Fault::CorruptRead);
        let rates: &[f64] = match (fault, i) {
            (Fault::NoSpace, 0) => &[1.0],
            (_, 0) if for_good => &[0.02, 0.1],
            _ if for_good => &[0.005],
            (Fault::Stuck, 0) => &[0.1],
            (Fault::Stuck, _) => &[0.01],
            (Fault::LateTwin, 0) => &[0.3, 1.0],
            (_, 0) => &[0.05, 0.15, 0.3],
            _ => &[0.01, 0.05],
        };
        let rate = chance.pick(rates);
        let all = chance.one_in(2);
        let part = chance.pick(parts);
        // There are few of these, and what strikes them ends most runs before they have begun.
        let rate_of = |part: Part| {
            if i > 0 && matches!(part, Part::Journal | Part::Documents) { rate / 4.0 } else { rate }
        };
        rules.extend(parts.iter().filter(|p| all || **p == part).map(|part| Rule {
            fault,
            part: *part,
            rate: rate_of(*part),
        }));
    }
    rules
}

/// What was told, for the model.
#[derive(Default)]
struct Told {
    failures: Vec<(TaskFailure, String)>,
    outcomes: u64,
    counted: BTreeMap<usize, u64>,
    recomputed: BTreeMap<usize, u64>,
    started: Vec<usize>,
    ended: Vec<usize>,
    run: String,
    run_ended: u64,
}

struct Listener<'a> {
    told: Mutex<Told>,
    faults: &'a Faults,
    /// After so many outcomes the run is asked to stop.
    cancel_after: Option<u64>,
    cancel: Cancel,
}

impl Observer for Listener<'_> {
    fn on_event(&self, event: &Event<'_>) {
        let mut told = self.told.lock().unwrap();
        match event {
            Event::RunStarted(start) => start.run.clone_into(&mut told.run),
            Event::StageStarted { stage } => told.started.push(stage.0),
            Event::StageEnded { stage } => told.ended.push(stage.0),
            Event::Outcome { outcome, counted } => {
                told.outcomes += 1;
                *told.counted.entry(outcome.request.stage.0).or_default() += counted;
                told.failures.extend(outcome.failure.clone().map(|f| (f, outcome.worker.clone())));
                if self.cancel_after == Some(told.outcomes) {
                    self.cancel.cancel();
                    self.faults.fired(
                        Fault::Cancelled,
                        Part::Requests,
                        &format!("after {} outcomes", told.outcomes),
                    );
                }
            }
            Event::Recomputed { stage, tasks, .. } => {
                *told.recomputed.entry(stage.0).or_default() += tasks
            }
            Event::RunEnded(_) => told.run_ended += 1,
            Event::Started { .. } | Event::Retried { .. } | Event::MemoryExceeded(_) => {}
        }
    }
}

/// Faults after which a failure of this kind may be seen.
fn causes(kind: FailureKind) -> &'static [Fault] {
    match kind {
        FailureKind::Transient => &[Fault::Transient, Fault::LostResponse, Fault::Torn],
        FailureKind::Throttled => &[Fault::Throttled],
        FailureKind::WorkerLost => &[
            Fault::WorkerLost,
            Fault::LostOutcome,
            Fault::PartOutcome,
            Fault::Sigkill,
            Fault::Sigsegv,
        ],
        FailureKind::Crashed => &[Fault::Crashed, Fault::Sigsegv],
        FailureKind::TimedOut => &[Fault::TimedOut],
        FailureKind::OutOfMemory => &[Fault::OutOfMemory, Fault::Sigkill],
        FailureKind::Damaged { .. } => &[
            Fault::CorruptWrite,
            Fault::CorruptRead,
            Fault::Dropped,
            Fault::FlippedFile,
            Fault::CutFile,
            Fault::RemovedFile,
        ],
        FailureKind::BadInput => &[Fault::CorruptRead],
        FailureKind::NoSpace => &[Fault::NoSpace],
        FailureKind::Denied => &[Fault::Denied],
        FailureKind::Cancelled => &[Fault::Cancelled],
        FailureKind::Refused
        | FailureKind::Storage
        | FailureKind::Overrun
        | FailureKind::Superseded
        | FailureKind::Plan
        | FailureKind::Kernel
        | FailureKind::Internal => &[],
    }
}

fn cause_of_storage(error: &StorageError) -> &'static [Fault] {
    match error {
        StorageError::Io { transient: true, .. } => causes(FailureKind::Transient),
        StorageError::Throttled { .. } => &[Fault::Throttled],
        StorageError::NoSpace { .. } => &[Fault::NoSpace],
        StorageError::Denied { .. } => &[Fault::Denied],
        _ => &[],
    }
}

const TASKS: &[Part] = &[Part::Intermediates, Part::Outputs, Part::Inputs, Part::Requests];

/// How often each task failed in each way: by stage, number and kind, and of what it found damaged,
/// by chunk.
fn failures(told: &Told) -> BTreeMap<(&str, u64, String), (FailureKind, usize)> {
    let mut failures = BTreeMap::new();
    told.failures.iter().for_each(|(f, _)| {
        failures
            .entry((f.stage.as_str(), f.task, format!("{:?}", f.kind)))
            .or_insert((f.kind, 0))
            .1 += 1
    });
    failures
}

/// Whether some task failed more often than a driver must endure, or all together did.
fn too_often(told: &Told, spec: &Spec) -> bool {
    let counted = told
        .failures
        .iter()
        .filter(|(f, _)| !matches!(f.kind, FailureKind::Throttled | FailureKind::Superseded))
        .count();
    counted >= BUDGET
        || failures(told)
            .values()
            .any(|(kind, n)| *kind != FailureKind::Superseded && *n > tries(*kind, spec))
}

/// Whether an error is what the faults that fired lead to.
fn explain(error: &Error, told: &Told, faults: &Faults, spec: &Spec) -> Result<(), String> {
    let Error::Run(error) = error else { return Err("it is no error of a run".into()) };
    let fired = |causes: &[Fault], parts: &[Part]| {
        if faults.any(causes, parts) {
            Ok(())
        } else {
            Err(format!("none of {causes:?} fired on {parts:?}"))
        }
    };
    match error.cause() {
        RunError::Task { failure, attempts, .. } => {
            if !told.failures.iter().any(|(f, _)| f == failure) {
                return Err("no task reported this failure".into());
            }
            if !too_often(told, spec) {
                return Err(format!("the task was given up too early, after {attempts} attempts"));
            }
            fired(causes(failure.kind), TASKS)
        }
        RunError::Work(e) => fired(cause_of_storage(e), &[Part::Journal]),
        RunError::Publish(PublishError::Storage(e)) => {
            fired(cause_of_storage(e), &[Part::Documents, Part::Outputs])
        }
        RunError::Cancelled => fired(&[Fault::Cancelled], &[Part::Requests]),
        _ => Err("no fault leads to that".into()),
    }
}

/// Whether the run had to end well.
fn must_survive(told: &Told, faults: &Faults, spec: &Spec) -> bool {
    let counts = faults.counts();
    // What the driver asks for itself it tries again; that it is not permitted, or that there is no
    // room, it does not.
    let own = |part: &Part| matches!(part, Part::Journal | Part::Documents);
    let passing: u64 = counts
        .iter()
        .filter(|((fault, part), _)| own(part) && *fault != Fault::Delay)
        .map(|(_, n)| n)
        .sum();
    let for_good = counts
        .keys()
        .any(|(fault, _)| matches!(fault, Fault::NoSpace | Fault::Denied | Fault::Cancelled));
    // Of what tasks write, the driver removes, lists and flushes.
    let others: u64 = counts
        .iter()
        .filter(|((_, part), _)| matches!(part, Part::Intermediates | Part::Outputs))
        .map(|(_, n)| n)
        .sum();
    let seen = told.failures.iter().filter(|(f, _)| f.message.contains("injected")).count() as u64;
    !for_good && passing + others.saturating_sub(seen) < DRIVERS_TRIES && !too_often(told, spec)
}

/// What a case came to.
#[derive(Default)]
struct Tally {
    fired: BTreeMap<(Fault, Part), u64>,
    ended: BTreeMap<String, u64>,
    cases: u64,
    left_over: u64,
    backups: [u64; 2],
    recomputed: u64,
    resumed: u64,
}

/// Files that a killed worker had begun to write: no part of the results, and hidden.
pub fn is_part(name: &str) -> bool {
    name.rsplit('/').next().is_some_and(|n| n.starts_with('.') && n.ends_with(".part"))
}

/// One case, from nothing to a judgement.
fn check_case(on: On, seed: u64, tally: &Mutex<Tally>) {
    let place = Place::quick();
    let mut chance = Chance::new(seed);
    let program = Program::new(chance.next(), &place.at("inputs"));
    let expect = undisturbed(&program, &place);

    let faults = Arc::new(Faults::new(chance.next(), rules(on, seed)));
    let slots = 1 + chance.below(4) as usize;
    let executor: Box<dyn Executor> = match on {
        On::Threads if chance.one_in(6) => Box::new(Serial),
        On::Threads => Box::new(Threads::new(slots)),
        On::Processes => Box::new(processes(slots)),
    };
    let executor = FaultExecutor::new(executor, Arc::clone(&faults));
    let [work_dir, group, inputs] =
        ["work", "results", "inputs"].map(|name| LocalStore::new(place.at(name)).url().to_owned());
    let (planned, spec) = program.plan(&group, &crate::support::spec_in(&work_dir));
    // So that intermediates pass the store that fails, and not only memory.
    let spec = if on == On::Threads && !chance.one_in(3) {
        without_room(&spec, &planned, executor.slots())
    } else {
        spec
    };
    let stores = Stores::default();
    for (url, holds) in
        [(&work_dir, Holds::Work), (&group, Holds::Outputs), (&inputs, Holds::Inputs)]
    {
        stores.insert(Arc::new(FaultStore::new(
            Arc::new(LocalStore::new(url)),
            holds,
            Arc::clone(&faults),
        )));
    }
    let tasks: u64 = planned.finalized().plan().stages.iter().map(|s| s.n_tasks()).sum();
    let cancel_after = chance.one_in(6).then(|| 1 + chance.below(tasks.min(40)));
    let listener = Listener {
        told: Mutex::default(),
        faults: &faults,
        cancel_after,
        cancel: Cancel::default(),
    };
    let (watch, killer, vandal) = (
        Watch::default(),
        Killer::new(Arc::clone(&faults)),
        Vandal::new(Arc::clone(&faults), &planned, &work_dir),
    );
    let observers: [&dyn Observer; 4] = [&listener, &watch, &killer, &vandal];
    let options = RunOptions {
        observers: &observers,
        cancel: listener.cancel.clone(),
        stores,
        ..RunOptions::default()
    };
    let known = || {
        format!(
            "under way: {:?}\nfaults:\n  {}\n{}",
            executor.under_way(),
            faults.log().join("\n  "),
            planned.finalized()
        )
    };
    let ran = watch.watched(&format!("case {seed} on {on:?}"), known, || {
        freestone::run_with(&planned, &spec, &executor, &options)
    });

    let told = listener.told.into_inner().unwrap();
    let about = || {
        let how = ran.as_ref().map_or_else(|e| format!("{e:?}"), |_| "well".into());
        format!(
            "it ended: {how}\nfaults:\n  {}\nlast events:\n  {}\n{:?} in\n{}",
            faults.log().join("\n  "),
            watch.last(),
            program.names,
            planned.finalized()
        )
    };
    assert!(executor.violations().is_empty(), "{:#?}\n{}", executor.violations(), about());
    check_told(&ran, &told, &planned).unwrap_or_else(|why| panic!("{why}\n{}", about()));
    let found = tree(&group);
    match &ran {
        Ok(_) => {
            let parts = found.keys().filter(|n| is_part(n)).count();
            assert!(
                on == On::Processes || parts == 0,
                "files that were begun are left: {:?}",
                found.keys()
            );
            tally.lock().unwrap_or_else(PoisonError::into_inner).left_over += parts as u64;
            let mut found = found.clone();
            found.retain(|name, _| !is_part(name));
            same_files(&expect, &found)
                .unwrap_or_else(|why| panic!("the run ended well, and {why}\n{}", about()));
            if !faults.any(&Fault::ALL, &[Part::Intermediates, Part::Journal]) {
                assert_eq!(
                    names(&work_dir),
                    [""; 0],
                    "a run that ended well leaves something behind"
                );
            }
        }
        Err(error) => {
            explain(error, &told, &faults, &spec)
                .unwrap_or_else(|why| panic!("{why}\n{}", about()));
            assert!(
                !must_survive(&told, &faults, &spec),
                "these faults are to be survived\n{}",
                about()
            );
            // In the middle of the commit, some may be published, each of them whole.
            let may_publish = matches!(error, Error::Run(e) if matches!(e.cause(), RunError::Publish(PublishError::Storage(_))))
                && told.ended.len() == planned.finalized().plan().stages.len();
            for (name, ..) in &program.results {
                let document = format!("{name}/zarr.json");
                assert!(
                    may_publish || !found.contains_key(&document),
                    "{name} is published\n{}",
                    about()
                );
                let of = |files: &BTreeMap<String, Vec<u8>>| -> BTreeMap<String, Vec<u8>> {
                    files
                        .iter()
                        .filter(|(n, _)| {
                            n.starts_with(&format!("{name}/")) && !n.ends_with(".freestone-claim")
                        })
                        .map(|(n, b)| (n.clone(), b.clone()))
                        .collect()
                };
                if found.contains_key(&document) {
                    same_files(&of(&expect), &of(&found)).unwrap_or_else(|why| {
                        panic!("{name} is published, and {why}\n{}", about())
                    });
                }
            }
            // It goes on, with nothing in its way.
            if let Error::Run(e) = error
                && e.kept().is_some()
            {
                let plain: Box<dyn Executor> = if on == On::Threads {
                    Box::new(Threads::new(2))
                } else {
                    Box::new(processes(2))
                };
                let resumed = resume(&work_dir, &told.run, &spec, &*plain, &RunOptions::default());
                resumed.unwrap_or_else(|e| panic!("it could not be resumed: {e:?}\n{}", about()));
                let mut found = tree(&group);
                found.retain(|name, _| !is_part(name));
                same_files(&expect, &found)
                    .unwrap_or_else(|why| panic!("the run was resumed, and {why}\n{}", about()));
                tally.lock().unwrap_or_else(PoisonError::into_inner).resumed += 1;
            }
        }
    }
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tally.cases += 1;
    faults.counts().into_iter().for_each(|(fault, n)| *tally.fired.entry(fault).or_default() += n);
    if let Ok(report) = &ran {
        tally.recomputed += report.recomputed;
        (0..2).for_each(|i| tally.backups[i] += report.backups[i]);
    }
    let ended = match &ran {
        Ok(report) if report.retries > 0 => "well, after retries".into(),
        Ok(_) => "well".into(),
        Err(Error::Run(error)) => match error.cause() {
            RunError::Task { failure, .. } => format!("task: {}", failure.kind.name()),
            RunError::Work(_) => "work directory".into(),
            RunError::Publish(_) => "session".into(),
            other => other.to_string(),
        },
        Err(other) => other.to_string(),
    };
    *tally.ended.entry(ended).or_default() += 1;
}

/// The files of an undisturbed run, whose values are what ndarray gives.
fn undisturbed(program: &Program, place: &Place) -> BTreeMap<String, Vec<u8>> {
    let group = place.at("expect");
    let (planned, spec) =
        program.plan(&group, &crate::support::spec_in(&place.at("work-of-expect")));
    freestone::run(&planned, &spec, &Serial).unwrap_or_else(|e| panic!("{:?}: {e}", program.names));
    for (name, pair, _) in &program.results {
        let stored = crate::values::Pair {
            lazy: freestone::open(&format!("{group}/{name}")).unwrap(),
            ..pair.clone()
        };
        let found = computed(&stored, &place.spec()).unwrap();
        let same = found.shape() == pair.whole.shape()
            && found.iter().zip(&pair.whole).all(|(x, y)| x == y || x.is_nan() && y.is_nan());
        assert!(same, "{:?}: {name} is not what ndarray gives", program.names);
    }
    tree(&group)
}

pub fn same_files(
    expect: &BTreeMap<String, Vec<u8>>,
    found: &BTreeMap<String, Vec<u8>>,
) -> Result<(), String> {
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<BTreeSet<_>>();
    let (e, f) = (names(expect), names(found));
    if e != f {
        return Err(format!(
            "there is too much: {:?}, and too little: {:?}",
            f.difference(&e).collect::<Vec<_>>(),
            e.difference(&f).collect::<Vec<_>>()
        ));
    }
    let differ: Vec<&String> = expect
        .iter()
        .filter(|(name, bytes)| found[*name] != **bytes)
        .map(|(name, _)| name)
        .collect();
    if differ.is_empty() { Ok(()) } else { Err(format!("other bytes are in {differ:?}")) }
}

/// What observers heard holds together.
fn check_told(ran: &Result<RunReport, Error>, told: &Told, planned: &Plan) -> Result<(), String> {
    // A run that could not begin is not told of.
    if told.run_ended != u64::from(!told.run.is_empty()) {
        return Err(format!("the end was told {} times", told.run_ended));
    }
    if ran.is_err() {
        return Ok(());
    }
    for (i, stage) in planned.finalized().plan().stages.iter().enumerate() {
        let again = told.recomputed.get(&i).copied().unwrap_or(0);
        let counted = told.counted.get(&i).copied().unwrap_or(0);
        if counted != stage.n_tasks() + again {
            return Err(format!(
                "{counted} tasks of stage {i} were counted, {again} of them again, and it has {}",
                stage.n_tasks()
            ));
        }
        let n = |list: &[usize]| list.iter().filter(|s| **s == i).count();
        if n(&told.started) != 1 || n(&told.ended) < 1 || again == 0 && n(&told.ended) > 1 {
            return Err(format!(
                "stage {i} started {} times and ended {} times",
                n(&told.started),
                n(&told.ended)
            ));
        }
    }
    Ok(())
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|n| n.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

fn check(on: On, default_cases: u64, all_must_fire: bool) {
    let (tally, mut failed) = (Mutex::default(), Vec::new());
    let replayed = number("FREESTONE_FAULT_SEED");
    let cases = replayed
        .map_or(0..number("FREESTONE_FAULT_CASES").unwrap_or(default_cases), |seed| seed..seed + 1);
    for seed in cases {
        let ran =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check_case(on, seed, &tally)));
        if ran.is_err() {
            println!("case {seed} on {on:?} failed: FREESTONE_FAULT_SEED={seed} runs it again");
            failed.push(seed);
        }
    }
    let tally: Tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{} cases on {on:?}", tally.cases);
    tally.ended.iter().for_each(|(how, n)| println!("  ended {how:<28} {n:>6}"));
    println!(
        "  backups made and first {:?}, tasks computed again {}, runs resumed {}",
        tally.backups, tally.recomputed, tally.resumed
    );
    println!("  files that killed workers had begun, left beside results: {}", tally.left_over);
    let expected: BTreeSet<Fault> =
        menu(on).iter().map(|(fault, _)| *fault).chain([Fault::Cancelled]).collect();
    let fired = |fault: Fault| {
        tally.fired.iter().filter(|((f, _), _)| *f == fault).map(|(_, n)| n).sum::<u64>()
    };
    for fault in &expected {
        let parts: Vec<String> = tally
            .fired
            .iter()
            .filter(|((f, _), _)| f == fault)
            .map(|((_, part), n)| format!("{part:?} {n}"))
            .collect();
        println!(
            "  fired {:<14} {:>6}   {}",
            format!("{fault:?}"),
            fired(*fault),
            parts.join(", ")
        );
    }
    assert!(failed.is_empty(), "cases {failed:?} failed");
    if all_must_fire && replayed.is_none() {
        let never: Vec<&Fault> = expected.iter().filter(|f| fired(**f) == 0).collect();
        assert!(never.is_empty(), "these never fired: {never:?}");
        assert!(tally.recomputed > 0, "nothing was computed again");
        assert!(on == On::Threads || tally.backups[0] > 0, "no backup was made");
    }
}

#[test]
fn any_plan_under_any_faults_on_threads() {
    check(On::Threads, 24, false);
}

#[test]
fn any_plan_under_any_faults_on_processes() {
    check(On::Processes, 8, false);
}

#[test]
#[ignore = "takes minutes: run by .ci/run"]
fn faults_threads() {
    check(On::Threads, 200, true);
}

#[test]
#[ignore = "takes minutes: run by .ci/run"]
fn faults_processes() {
    check(On::Processes, 200, true);
}
