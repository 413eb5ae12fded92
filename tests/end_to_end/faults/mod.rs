//! Injection of reproducible random faults.
//!
//! [`Faults`] in [`decisions`] decides whether a fault strikes, from its seed, the kind of fault,
//! its target and the number of attempts, never from time or threads. The adapters are [`store`]
//! around a store, [`executor`] around an executor, and [`processes`], which kills workers and
//! damages files. [`menu`] has the faults of a case. [`model`] runs random plans with random
//! faults, and [`verdict`] checks the outcome. [`killed`] kills the driver itself.

mod decisions;
mod executor;
mod killed;
mod menu;
mod model;
mod plans;
mod processes;
mod store;
mod verdict;
mod watch;

pub use decisions::{Chance, Fault, Faults, Part, Rule, mix};

#[test]
fn decisions_depend_on_the_seed_and_the_target() {
    let rules = vec![Rule { fault: Fault::Transient, part: Part::Inputs, rate: 0.25 }];
    let struck = |seed: u64| -> Vec<bool> {
        let faults = Faults::new(seed, rules.clone());
        (0..4000)
            .map(|i| {
                faults
                    .strikes(Fault::Transient, Part::Inputs, &format!("c/{}", i / 4), i % 4)
                    .is_some()
            })
            .collect()
    };
    let first = struck(1);
    assert_eq!(first, struck(1));
    assert_ne!(first, struck(2));
    let n = first.iter().filter(|s| **s).count();
    assert!((900..1100).contains(&n), "{n} of 4000");
    let other = Faults::new(1, rules);
    assert!((0..100).all(|i| other.strikes(Fault::Transient, Part::Outputs, "c/0", i).is_none()));
    assert!((0..100).all(|i| other.strikes(Fault::Denied, Part::Inputs, "c/0", i).is_none()));
}
