//! An executor with injected faults.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use freestone_engine::executor::{Executor, ExecutorError, Next, TaskSource};
use freestone_engine::task::{FailureKind, TaskFailure, TaskOutcome, TaskRequest};
use freestone_engine::worker::RunContext;

use super::{Fault, Faults, Part};

/// An executor around another one that applies the faults of [`Part::Requests`].
///
/// It also checks the contracts of driver and executor, and records violations.
#[derive(Debug)]
pub struct FaultExecutor {
    inner: Box<dyn Executor>,
    faults: Arc<Faults>,
    account: Mutex<Account>,
}

/// The observed requests and outcomes.
#[derive(Debug, Default)]
struct Account {
    ids: BTreeSet<u64>,
    /// Requests in flight from the driver's view, which includes delayed outcomes.
    under_way: BTreeMap<u64, TaskRequest>,
    violations: Vec<String>,
}

impl Account {
    fn handed_out(&mut self, request: &TaskRequest) {
        if !self.ids.insert(request.id) {
            self.violations.push(format!("two requests are number {}", request.id));
        }
        let overlaps = |r: &&TaskRequest| {
            r.stage == request.stage
                && r.first < request.first + request.count
                && request.first < r.first + r.count
        };
        let twin = self.under_way.values().find(overlaps).filter(|_| request.backup_of.is_none());
        if let Some(twin) = twin {
            self.violations
                .push(format!("{request:?} was handed out while {twin:?} was under way"));
        }
        if request.count == 0 {
            self.violations.push(format!("{request:?} has no tasks"));
        }
        self.under_way.insert(request.id, request.clone());
    }

    fn came_back(&mut self, request: &TaskRequest) {
        if self.under_way.remove(&request.id).as_ref() != Some(request) {
            self.violations.push(format!("{request:?} came back, and was not under way"));
        }
    }
}

impl FaultExecutor {
    pub fn new(inner: Box<dyn Executor>, faults: Arc<Faults>) -> FaultExecutor {
        FaultExecutor { inner, faults, account: Mutex::default() }
    }

    /// Returns the violations of the contracts of executors and task sources.
    pub fn violations(&self) -> Vec<String> {
        self.account.lock().unwrap().violations.clone()
    }

    /// Returns the requests in flight from the driver's view.
    pub fn under_way(&self) -> Vec<TaskRequest> {
        self.account.lock().unwrap().under_way.values().cloned().collect()
    }
}

impl Executor for FaultExecutor {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn slots(&self) -> usize {
        self.inner.slots()
    }

    fn shares_process(&self) -> bool {
        self.inner.shares_process()
    }

    fn check(&self, context: &RunContext) -> Result<(), ExecutorError> {
        self.inner.check(context)
    }

    fn run(&self, context: &RunContext, source: &dyn TaskSource) -> Result<(), ExecutorError> {
        self.account.lock().unwrap().ids.clear();
        let between = FaultSource { source, executor: self, context, state: Mutex::default() };
        let ran = self.inner.run(context, &between);
        let state = between.state.into_inner().unwrap();
        let mut account = self.account.lock().unwrap();
        if !(state.running.is_empty()
            && state.held.is_empty()
            && state.late.is_empty()
            && account.under_way.is_empty())
        {
            let left =
                format!("the executor returned with requests under way: {:?}", account.under_way);
            account.violations.push(left);
        }
        ran
    }
}

/// A task source between the driver and the executor.
struct FaultSource<'a> {
    source: &'a dyn TaskSource,
    executor: &'a FaultExecutor,
    context: &'a RunContext,
    state: Mutex<Between>,
}

#[derive(Default)]
struct Between {
    running: HashMap<u64, TaskRequest>,
    /// Slots in use, by requests in flight from the driver's view and by callers that ask for one.
    taken: usize,
    held: VecDeque<Held>,
    delivered: u64,
    /// Requests to run again.
    again: VecDeque<TaskRequest>,
    twice: BTreeSet<u64>,
    /// Returned requests to run again after a number of outcomes, and those in progress.
    late: VecDeque<(TaskRequest, u64)>,
    late_running: BTreeSet<u64>,
}

/// A delayed outcome.
struct Held {
    outcome: TaskOutcome,
    /// The number of outcomes after which it is released.
    after: u64,
    /// The number of idle polls after which it is released.
    waits: u64,
}

/// The number of [`Next::Wait`] results, a few seconds, for which an outcome is delayed until a
/// backup exists.
const WAITS_FOR_BACKUP: u64 = 150;

fn name(request: &TaskRequest) -> String {
    format!("{}/{}+{}", request.stage.0, request.first, request.count)
}

/// Faults that are reported without running the request.
const NOTHING_DONE: [(Fault, FailureKind); 4] = [
    (Fault::WorkerLost, FailureKind::WorkerLost),
    (Fault::Crashed, FailureKind::Crashed),
    (Fault::TimedOut, FailureKind::TimedOut),
    (Fault::OutOfMemory, FailureKind::OutOfMemory),
];

impl FaultSource<'_> {
    fn strikes(&self, fault: Fault, request: &TaskRequest) -> Option<u64> {
        self.executor.faults.strikes(
            fault,
            Part::Requests,
            &name(request),
            u64::from(request.attempt),
        )
    }

    fn fired(&self, fault: Fault, request: &TaskRequest) {
        self.executor.faults.fired(
            fault,
            Part::Requests,
            &format!("{} (attempt {})", name(request), request.attempt),
        );
    }

    fn failure(
        &self,
        request: &TaskRequest,
        task: u64,
        kind: FailureKind,
        fault: Fault,
    ) -> TaskFailure {
        let stage = self
            .context
            .plan
            .plan()
            .stages
            .get(request.stage.0)
            .map(|s| s.name.clone())
            .unwrap_or_default();
        TaskFailure { kind, message: format!("injected: {fault:?}"), stage, task }
    }

    /// Returns the outcome of a request that does not run.
    fn nothing_done(&self, request: &TaskRequest) -> Option<TaskOutcome> {
        let (fault, kind) =
            *NOTHING_DONE.iter().find(|(fault, _)| self.strikes(*fault, request).is_some())?;
        self.fired(fault, request);
        let failure = Some(self.failure(request, request.first, kind, fault));
        Some(TaskOutcome {
            request: request.clone(),
            worker: format!("nobody {}", request.id),
            done: Vec::new(),
            failure,
            worker_peak_bytes: None,
        })
    }

    /// Applies faults to an arriving outcome.
    fn changed(&self, mut outcome: TaskOutcome) -> TaskOutcome {
        let request = outcome.request.clone();
        let n = outcome.done.len() as u64;
        let keep = if outcome.failure.is_some() || n == 0 {
            return outcome;
        } else if self.strikes(Fault::LostOutcome, &request).is_some() {
            self.fired(Fault::LostOutcome, &request);
            0
        } else if let Some(bits) = self.strikes(Fault::PartOutcome, &request)
            && n > 1
        {
            self.fired(Fault::PartOutcome, &request);
            1 + bits % (n - 1)
        } else {
            return outcome;
        };
        outcome.failure = Some(self.failure(
            &request,
            request.first + keep,
            FailureKind::WorkerLost,
            Fault::LostOutcome,
        ));
        outcome.done.truncate(keep as usize);
        outcome
    }

    /// Passes an outcome to the driver, followed by the delayed outcomes that are due.
    fn deliver(&self, outcome: TaskOutcome) {
        let mut next = Some(outcome);
        while let Some(outcome) = next {
            self.executor.account.lock().unwrap().came_back(&outcome.request);
            self.source.finished(outcome);
            let mut state = self.state.lock().unwrap();
            state.delivered += 1;
            state.taken -= 1;
            let due = state.held.iter().position(|h| h.after <= state.delivered);
            next = due.and_then(|at| state.held.remove(at)).map(|h| h.outcome);
        }
    }

    /// Releases delayed outcomes if nothing else is in flight.
    fn let_go(&self) -> Option<TaskOutcome> {
        let mut state = self.state.lock().unwrap();
        if !state.running.is_empty() {
            return None;
        }
        let first = state.held.front_mut()?;
        first.waits = first.waits.saturating_sub(1);
        if first.waits == 0 { state.held.pop_front().map(|h| h.outcome) } else { None }
    }

    /// Returns a request to run again.
    fn once_more(&self, is_over: bool) -> Option<TaskRequest> {
        let mut state = self.state.lock().unwrap();
        if let Some(request) = state.again.pop_front() {
            state.running.insert(request.id, request.clone());
            return Some(request);
        }
        let delivered = state.delivered;
        let due = state.late.iter().position(|(_, after)| is_over || *after <= delivered)?;
        let (request, _) = state.late.remove(due)?;
        state.late_running.insert(request.id);
        Some(request)
    }

    /// Asks the driver, unless all slots are in use. Delayed outcomes use a slot.
    fn ask(&self) -> Next {
        {
            let mut state = self.state.lock().unwrap();
            if state.taken >= self.executor.slots() {
                return Next::Wait;
            }
            state.taken += 1;
        }
        let next = self.source.try_next();
        let mut state = self.state.lock().unwrap();
        match &next {
            Next::Run(request) => {
                self.executor.account.lock().unwrap().handed_out(request);
                let delivered = state.delivered;
                let repeated =
                    state.held.iter_mut().find(|h| Some(h.outcome.request.id) == request.backup_of);
                // After the backup, or after any outcome before it.
                repeated.into_iter().for_each(|h| h.after = delivered + 1 + request.id % 2);
                state.running.insert(request.id, request.clone());
            }
            _ => state.taken -= 1,
        }
        next
    }
}

impl TaskSource for FaultSource<'_> {
    fn try_next(&self) -> Next {
        loop {
            if let Some(request) = self.once_more(false) {
                return Next::Run(request);
            }
            match self.ask() {
                Next::Run(request) => match self.nothing_done(&request) {
                    Some(outcome) => {
                        self.state.lock().unwrap().running.remove(&request.id);
                        self.deliver(outcome);
                    }
                    None => return Next::Run(request),
                },
                other => {
                    if let Some(outcome) = self.let_go() {
                        self.deliver(outcome);
                    } else if let Some(request) = self.once_more(other == Next::Stop) {
                        return Next::Run(request);
                    } else {
                        return other;
                    }
                }
            }
        }
    }

    fn wait(&self) {
        self.source.wait();
    }

    fn finished(&self, outcome: TaskOutcome) {
        let request = outcome.request.clone();
        {
            let mut state = self.state.lock().unwrap();
            if state.late_running.remove(&request.id) {
                return;
            }
            if state.running.remove(&request.id).as_ref() != Some(&request) {
                self.executor
                    .account
                    .lock()
                    .unwrap()
                    .violations
                    .push(format!("the executor gave {request:?} back, which it did not have"));
            }
            if outcome.failure.is_none()
                && self.strikes(Fault::Twice, &request).is_some()
                && state.twice.insert(request.id)
            {
                self.fired(Fault::Twice, &request);
                state.again.push_back(request);
                return;
            }
        }
        if let Some(bits) = self.strikes(Fault::Delay, &request) {
            self.fired(Fault::Delay, &request);
            std::thread::sleep(Duration::from_micros(100 + bits % 3000));
        }
        let outcome = self.changed(outcome);
        for (fault, waits) in [(Fault::Straggler, 1), (Fault::Stuck, WAITS_FOR_BACKUP)] {
            if let Some(bits) = self.strikes(fault, &request)
                && self.executor.slots() > 1
            {
                self.fired(fault, &request);
                let mut state = self.state.lock().unwrap();
                let after = if fault == Fault::Straggler {
                    state.delivered + 1 + bits % 6
                } else {
                    u64::MAX
                };
                state.held.push_back(Held { outcome, after, waits });
                return;
            }
        }
        if let Some(bits) = self.strikes(Fault::LateTwin, &request) {
            self.fired(Fault::LateTwin, &request);
            let mut state = self.state.lock().unwrap();
            // Soon, or at the end of the run.
            let after =
                if bits.is_multiple_of(3) { u64::MAX } else { state.delivered + 1 + bits % 12 };
            state.late.push_back((request, after));
        }
        self.deliver(outcome);
    }
}

/// Without faults, the adapter is invisible.
#[test]
fn without_faults_the_adapter_conforms() {
    let place = crate::support::Place::new();
    let faults = Arc::new(Faults::new(1, Vec::new()));
    freestone_executors::conformance::check(place.folder.path(), |slots| {
        Box::new(FaultExecutor::new(Box::new(freestone::Threads::new(slots)), Arc::clone(&faults)))
    });
    assert!(faults.counts().is_empty());
}

/// Delayed outcomes and repeated requests keep the contract: no more requests are in flight than
/// slots exist.
#[test]
fn stragglers_and_repeated_requests_conform() {
    let place = crate::support::Place::new();
    let rules = [Fault::Straggler, Fault::Twice, Fault::Delay].map(|fault| super::Rule {
        fault,
        part: Part::Requests,
        rate: 0.3,
    });
    let faults = Arc::new(Faults::new(1, rules.to_vec()));
    freestone_executors::conformance::check(place.folder.path(), |slots| {
        Box::new(FaultExecutor::new(Box::new(freestone::Threads::new(slots)), Arc::clone(&faults)))
    });
    assert_eq!(faults.counts().len(), 3, "{:?}", faults.counts());
}
