//! Decisions on faults, and their log.

use std::collections::BTreeMap;
use std::sync::Mutex;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    // Store faults.
    /// A delayed request.
    Delay,
    /// A transient failure without effect.
    Transient,
    /// A request refused by a rate limit.
    Throttled,
    /// A request that takes effect but reports a failure.
    LostResponse,
    /// A partial write that reports a failure.
    Torn,
    /// A write that changes a byte.
    CorruptWrite,
    /// A read that changes a byte.
    CorruptRead,
    /// A lost object.
    Dropped,
    /// Full storage.
    NoSpace,
    /// Access to an object is denied.
    Denied,
    // Executor faults.
    /// An outcome delayed until others have arrived.
    Straggler,
    /// A worker lost after the work, before the outcome.
    LostOutcome,
    /// A worker lost after some tasks, which are reported.
    PartOutcome,
    /// A worker lost before the work.
    WorkerLost,
    /// A worker that crashed before the work.
    Crashed,
    /// A task timeout without effect.
    TimedOut,
    /// A worker out of memory, without effect.
    OutOfMemory,
    /// A request that runs twice and returns once, after the second run.
    Twice,
    /// A request that runs again after its return, like an abandoned attempt that continues.
    LateTwin,
    /// An outcome delayed until a backup is started, or for a long time.
    Stuck,
    // Faults of processes and their files.
    /// A worker process is killed.
    Sigkill,
    /// A worker process with a segmentation fault.
    Sigsegv,
    /// One byte of an intermediate's file changes.
    FlippedFile,
    /// An intermediate's file is truncated.
    CutFile,
    /// An intermediate's file is removed.
    RemovedFile,
    // Run faults.
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
    /// Chunks of intermediates.
    Intermediates,
    /// The plan, the journal, and other records of a run.
    Journal,
    /// Chunks of results.
    Outputs,
    /// Metadata of results, and claims.
    Documents,
    /// Chunks of inputs.
    Inputs,
    /// Requests and their workers.
    Requests,
}

/// The mean share of attempts on a part that a fault affects.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub fault: Fault,
    pub part: Part,
    pub rate: f64,
}

/// Decides on faults, and logs them.
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

    /// Decides whether a fault strikes an attempt. Returns random bits that determine its effect. A
    /// fault counts once it has [`fired`](Faults::fired).
    pub fn strikes(&self, fault: Fault, part: Part, what: &str, attempt: u64) -> Option<u64> {
        let rate: f64 =
            self.rules.iter().filter(|r| r.fault == fault && r.part == part).map(|r| r.rate).sum();
        let chance = hash(self.seed, &[&format!("{fault:?} {part:?} {attempt} "), what]);
        ((chance >> 11) as f64 / (1u64 << 53) as f64).lt(&rate).then(|| mix(chance))
    }

    /// Logs a fault that took effect.
    pub fn fired(&self, fault: Fault, part: Part, what: &str) {
        *self.fired.lock().unwrap().entry((fault, part)).or_default() += 1;
        self.log.lock().unwrap().push(format!("{fault:?} of {part:?}: {what}"));
    }

    /// Returns the number of times that each fault took effect, by part.
    pub fn counts(&self) -> BTreeMap<(Fault, Part), u64> {
        self.fired.lock().unwrap().clone()
    }

    /// Returns true if one of `faults` took effect on one of `parts`.
    pub fn any(&self, faults: &[Fault], parts: &[Part]) -> bool {
        self.counts().keys().any(|(f, p)| faults.contains(f) && parts.contains(p))
    }

    /// Returns the faults that took effect, in order.
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

/// Hashes a text, equally on every machine and in every version (FNV-1a, mixed).
fn hash(seed: u64, texts: &[&str]) -> u64 {
    let bytes = texts.iter().flat_map(|t| t.bytes());
    mix(bytes.fold(0xcbf2_9ce4_8422_2325 ^ mix(seed), |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    }))
}

/// A generator of random numbers.
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

    /// Returns a number below `n`.
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
