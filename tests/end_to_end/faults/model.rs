//! Random plans with random faults and random kills, against a model of the permitted outcomes.
//!
//! A run either succeeds, and its results are byte for byte those of an undisturbed run, which
//! match ndarray; or it fails with an error that the fired faults explain, and nothing is
//! published. It always ends, each request returns once, and nothing panics. If no fault exceeds
//! what the driver promises to survive, the run must succeed.
//!
//! A number determines each case. `FREESTONE_FAULT_SEED=n` repeats one case,
//! `FREESTONE_FAULT_CASES=n` runs n cases.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use freestone::{Cancel, Error, Plan, RunOptions, RunReport, Serial, Spec, Stores, Threads};
use freestone_engine::driver::RunError;
use freestone_engine::events::Observer;
use freestone_engine::executor::Executor;
use freestone_engine::publish::PublishError;
use freestone_engine::storage::{LocalStore, Store};

use super::executor::FaultExecutor;
use super::menu::{On, menu, rules};
use super::plans::Program;
use super::processes::{Killer, Vandal};
use super::store::{FaultStore, Holds};
use super::verdict::{Heard, Listener, check_events, explain, must_survive, same_files};
use super::watch::Watch;
use super::{Chance, Fault, Faults, Part};
use crate::scenarios::without_room;
use crate::support::{Place, names, processes, tree};
use crate::values::computed;

/// Resumes a run.
pub fn resume(
    work_dir: &str,
    run: &str,
    spec: &Spec,
    executor: &dyn Executor,
    options: &RunOptions<'_>,
) -> Result<RunReport, Error> {
    let stored = freestone::open_run(format!("{work_dir}/{run}"), &options.stores)?;
    freestone::resume(&stored, spec, executor, options)
}

/// The outcomes of all cases.
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

/// Returns true for the hidden file of a partial write, which a killed worker leaves.
pub fn is_part(name: &str) -> bool {
    name.rsplit('/').next().is_some_and(|n| n.starts_with('.') && n.ends_with(".part"))
}

/// The stores, executor and limits of a case.
struct Case {
    on: On,
    faults: Arc<Faults>,
    executor: FaultExecutor,
    planned: Plan,
    spec: Spec,
    work_dir: String,
    group: String,
    stores: Stores,
    cancel_after: Option<u64>,
}

impl Case {
    fn new(on: On, seed: u64, program: &Program, place: &Place, chance: &mut Chance) -> Case {
        let faults = Arc::new(Faults::new(chance.next(), rules(on, seed)));
        let slots = 1 + chance.below(4) as usize;
        let executor: Box<dyn Executor> = match on {
            On::Threads if chance.one_in(6) => Box::new(Serial),
            On::Threads => Box::new(Threads::new(slots)),
            On::Processes => Box::new(processes(slots)),
        };
        let executor = FaultExecutor::new(executor, Arc::clone(&faults));
        let [work_dir, group, inputs] = ["work", "results", "inputs"]
            .map(|name| LocalStore::new(place.at(name)).url().to_owned());
        let (planned, spec) = program.plan(&group, &crate::support::spec_in(&work_dir));
        // Without a memory tier, intermediates pass through the store with faults.
        let spec = if on == On::Threads && !chance.one_in(3) {
            without_room(&spec, &planned, executor.slots())
        } else {
            spec
        };
        let stores = Stores::default();
        for (url, holds) in
            [(&work_dir, Holds::Work), (&group, Holds::Outputs), (&inputs, Holds::Inputs)]
        {
            let inner = Arc::new(LocalStore::new(url));
            stores.insert(Arc::new(FaultStore::new(inner, holds, Arc::clone(&faults))));
        }
        let tasks: u64 = planned.finalized().plan().stages.iter().map(|s| s.n_tasks()).sum();
        let cancel_after = chance.one_in(6).then(|| 1 + chance.below(tasks.min(40)));
        Case { on, faults, executor, planned, spec, work_dir, group, stores, cancel_after }
    }

    /// Runs the plan. Returns the result, the received events, and a report of the last ones.
    fn run(&self, seed: u64) -> (Result<RunReport, Error>, Heard, String) {
        let listener = Listener {
            heard: Mutex::default(),
            faults: &self.faults,
            cancel_after: self.cancel_after,
            cancel: Cancel::default(),
        };
        let watch = Watch::default();
        let killer = Killer::new(Arc::clone(&self.faults));
        let vandal = Vandal::new(Arc::clone(&self.faults), &self.planned, &self.work_dir);
        let observers: [&dyn Observer; 4] = [&listener, &watch, &killer, &vandal];
        let options = RunOptions {
            observers: &observers,
            cancel: listener.cancel.clone(),
            stores: self.stores.clone(),
            ..RunOptions::default()
        };
        let known = || {
            let log = self.faults.log().join("\n  ");
            let in_flight = self.executor.under_way();
            format!("in flight: {in_flight:?}\nfaults:\n  {log}\n{}", self.planned.finalized())
        };
        let ran = watch.watched(&format!("case {seed} on {:?}", self.on), known, || {
            freestone::run_with(&self.planned, &self.spec, &self.executor, &options)
        });
        let last = watch.last().to_string();
        (ran, listener.heard.into_inner().unwrap(), last)
    }

    /// Checks a successful run: its files, and that it left nothing else. Returns the number of
    /// partial files of killed workers.
    fn check_success(&self, expect: &BTreeMap<String, Vec<u8>>) -> Result<u64, String> {
        let mut found = tree(&self.group);
        let parts = found.keys().filter(|n| is_part(n)).count();
        if self.on == On::Threads && parts > 0 {
            return Err(format!("partial files are left: {:?}", found.keys()));
        }
        found.retain(|name, _| !is_part(name));
        same_files(expect, &found).map_err(|why| format!("the run succeeded, but: {why}"))?;
        if !self.faults.any(&Fault::ALL, &[Part::Intermediates, Part::Journal]) {
            assert_eq!(names(&self.work_dir), [""; 0], "a successful run leaves nothing behind");
        }
        Ok(parts as u64)
    }

    /// Checks a failed run: the error, what is published, and that it can be resumed. Returns the
    /// number of resumed runs.
    fn check_failure(
        &self,
        error: &Error,
        heard: &Heard,
        program: &Program,
        expect: &BTreeMap<String, Vec<u8>>,
    ) -> Result<u64, String> {
        explain(error, heard, &self.faults, &self.spec)?;
        if must_survive(heard, &self.faults, &self.spec) {
            return Err("the run must survive these faults".into());
        }
        let found = tree(&self.group);
        // A failure during publication may leave some outputs published, each of them whole.
        let Error::Run(ran) = error else { return Err("not an error of a run".into()) };
        let may_publish = matches!(ran.cause(), RunError::Publish(PublishError::Storage(_)))
            && heard.ended.len() == self.planned.finalized().plan().stages.len();
        for (name, ..) in &program.results {
            if !found.contains_key(&format!("{name}/zarr.json")) {
                continue;
            }
            if !may_publish {
                return Err(format!("{name} is published"));
            }
            let prefix = format!("{name}/");
            let of = |files: &BTreeMap<String, Vec<u8>>| -> BTreeMap<String, Vec<u8>> {
                let mut files = files.clone();
                files.retain(|n, _| n.starts_with(&prefix) && !n.ends_with(".freestone-claim"));
                files
            };
            same_files(&of(expect), &of(&found))
                .map_err(|why| format!("{name} is published, but: {why}"))?;
        }
        if ran.resumable_run().is_none() {
            return Ok(0);
        }
        let plain: Box<dyn Executor> = match self.on {
            On::Threads => Box::new(Threads::new(2)),
            On::Processes => Box::new(processes(2)),
        };
        let options = RunOptions::default();
        resume(&self.work_dir, &heard.run, &self.spec, &*plain, &options)
            .map_err(|e| format!("cannot resume: {e:?}"))?;
        let mut found = tree(&self.group);
        found.retain(|name, _| !is_part(name));
        same_files(expect, &found).map_err(|why| format!("the run was resumed, but: {why}"))?;
        Ok(1)
    }
}

/// Runs one case and checks its outcome.
fn check_case(on: On, seed: u64, tally: &Mutex<Tally>) {
    let place = Place::quick();
    let mut chance = Chance::new(seed);
    let program = Program::new(chance.next(), &place.at("inputs"));
    let expect = undisturbed(&program, &place);
    let case = Case::new(on, seed, &program, &place, &mut chance);
    let (ran, heard, last) = case.run(seed);

    let about = || {
        let outcome = ran.as_ref().map_or_else(|e| format!("{e:?}"), |_| "success".into());
        let log = case.faults.log().join("\n  ");
        let plan = case.planned.finalized();
        format!(
            "outcome: {outcome}\nfaults:\n  {log}\nlast events:\n  {last}\n{:?} in\n{plan}",
            program.names
        )
    };
    let violations = case.executor.violations();
    assert!(violations.is_empty(), "{violations:#?}\n{}", about());
    let (mut left_over, mut resumed) = (0, 0);
    let checked = check_events(&ran, &heard, &case.planned).and_then(|()| {
        match &ran {
            Ok(_) => left_over = case.check_success(&expect)?,
            Err(error) => resumed = case.check_failure(error, &heard, &program, &expect)?,
        }
        Ok(())
    });
    checked.unwrap_or_else(|why| panic!("{why}\n{}", about()));

    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tally.cases += 1;
    tally.left_over += left_over;
    tally.resumed += resumed;
    for (fault, n) in case.faults.counts() {
        *tally.fired.entry(fault).or_default() += n;
    }
    if let Ok(report) = &ran {
        tally.recomputed += report.recomputed;
        (0..2).for_each(|i| tally.backups[i] += report.backups[i]);
    }
    *tally.ended.entry(outcome_name(&ran)).or_default() += 1;
}

fn outcome_name(ran: &Result<RunReport, Error>) -> String {
    match ran {
        Ok(report) if report.retries > 0 => "success, after retries".into(),
        Ok(_) => "success".into(),
        Err(Error::Run(error)) => match error.cause() {
            RunError::Task { failure, .. } => format!("task: {}", failure.kind.name()),
            RunError::Work(_) => "work directory".into(),
            RunError::Publish(_) => "publication".into(),
            other => other.to_string(),
        },
        Err(other) => other.to_string(),
    }
}

/// Returns the files of an undisturbed run, after comparing its values with ndarray.
fn undisturbed(program: &Program, place: &Place) -> BTreeMap<String, Vec<u8>> {
    let group = place.at("expect");
    let (planned, spec) =
        program.plan(&group, &crate::support::spec_in(&place.at("work-of-expect")));
    freestone::run(&planned, &spec, &Serial).unwrap_or_else(|e| panic!("{:?}: {e}", program.names));
    for (name, pair, _) in &program.results {
        let stored = crate::values::Pair {
            lazy: freestone::open(format!("{group}/{name}")).unwrap(),
            ..pair.clone()
        };
        let found = computed(&stored, &place.spec()).unwrap();
        let same = found.shape() == pair.whole.shape()
            && found.iter().zip(&pair.whole).all(|(x, y)| x == y || x.is_nan() && y.is_nan());
        assert!(same, "{:?}: {name} differs from ndarray", program.names);
    }
    tree(&group)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|n| n.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
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
            println!("case {seed} on {on:?} failed: repeat it with FREESTONE_FAULT_SEED={seed}");
            failed.push(seed);
        }
    }
    let tally: Tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{} cases on {on:?}", tally.cases);
    tally.ended.iter().for_each(|(how, n)| println!("  ended {how:<28} {n:>6}"));
    println!(
        "  backups started and first {:?}, tasks recomputed {}, runs resumed {}",
        tally.backups, tally.recomputed, tally.resumed
    );
    println!("  partial files of killed workers beside results: {}", tally.left_over);
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
        assert!(tally.recomputed > 0, "no task was recomputed");
        assert!(on == On::Threads || tally.backups[0] > 0, "no backup was started");
    }
}

#[test]
fn random_plans_with_random_faults_on_threads() {
    check(On::Threads, 24, false);
}

#[test]
fn random_plans_with_random_faults_on_processes() {
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
