//! Whether a fault strikes, and what has been struck.

use std::collections::BTreeMap;
use std::sync::Mutex;

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    // Of stores.
    /// A request takes a while.
    Delay,
    /// A request fails, and nothing was done.
    Transient,
    /// The store asks for fewer requests.
    Throttled,
    /// What was asked for was done, and the answer says that it failed.
    LostResponse,
    /// A part of the object is written, and the answer says that it failed.
    Torn,
    /// One byte is another one than was written.
    CorruptWrite,
    /// One byte is another one than is there.
    CorruptRead,
    /// An object that was written is gone.
    Dropped,
    /// From some byte on, nothing can be written.
    NoSpace,
    /// This object may not be read or written.
    Denied,
    // Of executors.
    /// An outcome is held back until others have come.
    Straggler,
    /// The work is done, and the worker is gone before it says so.
    LostOutcome,
    /// The worker is gone after some tasks of the request, which are reported.
    PartOutcome,
    /// The worker is gone, and nothing was done.
    WorkerLost,
    /// The worker ended by itself, and nothing was done.
    Crashed,
    /// The task took too long, and nothing was done.
    TimedOut,
    /// The worker took too much memory, and nothing was done.
    OutOfMemory,
    /// The request is run twice, and comes back once, after the second time.
    Twice,
    /// The request is run once more after it has come back, as when an attempt that was given up
    /// goes on.
    LateTwin,
    /// An outcome is held back until a backup of its request is handed out, or for long.
    Stuck,
    // Of processes and their files.
    /// A worker process is killed.
    Sigkill,
    /// A worker process breaks.
    Sigsegv,
    /// One byte of an intermediate's file changes.
    FlippedFile,
    /// An intermediate's file loses its end.
    CutFile,
    /// An intermediate's file goes.
    RemovedFile,
    // Of the run.
    /// The run is asked to stop.
    Cancelled,
}

impl Fault {
    pub const ALL: [Fault; 26] = [
        Fault::Delay,
        Fault::Transient,
        Fault::Throttled,
        Fault::LostResponse,
        Fault::Torn,
        Fault::CorruptWrite,
        Fault::CorruptRead,
        Fault::Dropped,
        Fault::NoSpace,
        Fault::Denied,
        Fault::Straggler,
        Fault::LostOutcome,
        Fault::PartOutcome,
        Fault::WorkerLost,
        Fault::Crashed,
        Fault::TimedOut,
        Fault::OutOfMemory,
        Fault::Twice,
        Fault::LateTwin,
        Fault::Stuck,
        Fault::Sigkill,
        Fault::Sigsegv,
        Fault::FlippedFile,
        Fault::CutFile,
        Fault::RemovedFile,
        Fault::Cancelled,
    ];
}

/// The part of a run that a fault affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Chunks between stages.
    Intermediates,
    /// The plan, the journal, and whatever else a run keeps of itself.
    Journal,
    /// Chunks of results.
    Outputs,
    /// What makes results visible, and claims.
    Documents,
    /// Chunks of inputs.
    Inputs,
    /// Requests and who runs them.
    Requests,
}

/// The share of tries of a part that a fault affects, on average.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub fault: Fault,
    pub part: Part,
    pub rate: f64,
}

/// Decides and keeps account.
#[derive(Debug)]
pub struct Faults {
    seed: u64,
    rules: Vec<Rule>,
    fired: Mutex<BTreeMap<(Fault, Part), u64>>,
    log: Mutex<Vec<String>>,
}

impl Faults {
    pub fn new(seed: u64, rules: Vec<Rule>) -> Faults {
        Faults { seed, rules, fired: Mutex::default(), log: Mutex::default() }
    }

    /// Whether a fault strikes this time, with bits of chance for how; it is counted when it is
    /// [`fired`](Faults::fired).
    pub fn strikes(&self, fault: Fault, part: Part, what: &str, attempt: u64) -> Option<u64> {
        let rate: f64 =
            self.rules.iter().filter(|r| r.fault == fault && r.part == part).map(|r| r.rate).sum();
        let chance = hash(self.seed, &[&format!("{fault:?} {part:?} {attempt} "), what]);
        ((chance >> 11) as f64 / (1u64 << 53) as f64).lt(&rate).then(|| mix(chance))
    }

    /// Counts a fault that took effect.
    pub fn fired(&self, fault: Fault, part: Part, what: &str) {
        *self.fired.lock().unwrap().entry((fault, part)).or_default() += 1;
        self.log.lock().unwrap().push(format!("{fault:?} of {part:?}: {what}"));
    }

    /// The number of times that each fault took effect.
    pub fn counts(&self) -> BTreeMap<(Fault, Part), u64> {
        self.fired.lock().unwrap().clone()
    }

    /// True if one of these took effect on one of these.
    pub fn any(&self, faults: &[Fault], parts: &[Part]) -> bool {
        self.counts().keys().any(|(f, p)| faults.contains(f) && parts.contains(p))
    }

    /// The faults that took effect, in order.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

/// Spreads a number over all bits (splitmix64).
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The same on every machine and in every version (FNV-1a, spread).
fn hash(seed: u64, texts: &[&str]) -> u64 {
    let bytes = texts.iter().flat_map(|t| t.bytes());
    mix(bytes.fold(0xcbf2_9ce4_8422_2325 ^ mix(seed), |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    }))
}

/// Numbers one after the other.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(mix(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = mix(self.0);
        self.0
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}
