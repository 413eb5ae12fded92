//! The faults of a case, chosen by its seed.

use super::{Chance, Fault, Part, Rule, mix};

/// The executor of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum On {
    Threads,
    Processes,
}

/// Faults for tasks that run in this process.
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

/// Damage to intermediates that pass through this process.
const DAMAGES: &[(Fault, &[Part])] = &[
    (Fault::CorruptWrite, &[Part::Intermediates]),
    (Fault::CorruptRead, &[Part::Intermediates]),
    (Fault::Dropped, &[Part::Intermediates]),
];

/// Damage to the files of intermediates.
const DAMAGES_TO_FILES: &[(Fault, &[Part])] = &[
    (Fault::FlippedFile, &[Part::Intermediates]),
    (Fault::CutFile, &[Part::Intermediates]),
    (Fault::RemovedFile, &[Part::Intermediates]),
];

/// Faults for tasks that run in other processes, whose stores have no adapters.
const ON_PROCESSES: &[(Fault, &[Part])] = &[
    (Fault::Transient, &[Part::Journal, Part::Documents]),
    (Fault::LostResponse, &[Part::Journal, Part::Documents]),
    (Fault::Sigkill, &[Part::Requests]),
    (Fault::Sigsegv, &[Part::Requests]),
    (Fault::Sigkill, &[Part::Requests]),
    (Fault::Sigsegv, &[Part::Requests]),
];

/// Faults of requests.
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

pub(super) fn menu(on: On) -> Vec<(Fault, &'static [Part])> {
    let (own, damages) =
        if on == On::Threads { (ON_THREADS, DAMAGES) } else { (ON_PROCESSES, DAMAGES_TO_FILES) };
    // Tasks in this process have no backups.
    let stuck: &[(Fault, &[Part])] =
        if on == On::Processes { &[(Fault::Stuck, &[Part::Requests])] } else { &[] };
    [own, ON_REQUESTS, damages, LATE, stuck].concat()
}

/// Returns the rules of a case: one fault of the menu by turns, and up to two others by chance.
pub(super) fn rules(on: On, seed: u64) -> Vec<Rule> {
    let (menu, mut chance) = (menu(on), Chance::new(mix(seed) ^ 1));
    let mut chosen = vec![menu[seed as usize % menu.len()]];
    (0..chance.below(3)).for_each(|_| chosen.push(chance.pick(&menu)));
    let mut rules = Vec::new();
    for (i, (fault, parts)) in chosen.into_iter().enumerate() {
        // Faults that end a run are rare, unless the case is about them.
        let is_final = matches!(fault, Fault::Denied | Fault::NoSpace | Fault::CorruptRead);
        let rates: &[f64] = match (fault, i) {
            (Fault::NoSpace, 0) => &[1.0],
            (_, 0) if is_final => &[0.02, 0.1],
            _ if is_final => &[0.005],
            (Fault::Stuck, 0) => &[0.1],
            (Fault::Stuck, _) => &[0.01],
            (Fault::LateTwin, 0) => &[0.3, 1.0],
            (_, 0) => &[0.05, 0.15, 0.3],
            _ => &[0.01, 0.05],
        };
        let rate = chance.pick(rates);
        let all = chance.one_in(2);
        let part = chance.pick(parts);
        // Requests of these parts are few, and their faults end most runs early.
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
