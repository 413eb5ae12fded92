//! Random plans with known results.

use std::sync::Arc;

use freestone::{CodecName, Plan, Spec, Target};
use freestone_engine::storage::{LocalStore, Store};
use serde_json::{Value, json};

use super::Chance;
use crate::support::tree;
use crate::values::{DTYPES, Input, Pair, Step, apply_all, stored};

/// A random program: inputs on disk, and results to compute.
pub struct Program {
    /// The results, with their chunks.
    pub results: Vec<(String, Pair, Vec<u64>)>,
    pub names: Vec<&'static str>,
    parallelism: u64,
    codec: CodecName,
}

impl Program {
    /// Creates the program of a seed, with its inputs in a folder. Most programs have several
    /// stages, because operations on whole axes are frequent.
    pub fn new(seed: u64, inputs: &str) -> Program {
        let mut chance = Chance::new(seed);
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(inputs));
        let mut pool: Vec<Pair> = (0..1 + chance.below(2) as usize)
            .map(|number| {
                let rank = 1 + chance.below(3);
                let axes = (0..rank)
                    .map(|_| axis(&mut chance, [400, 60, 16][rank as usize - 1]))
                    .collect();
                let mut pair = stored(
                    &Input {
                        axes,
                        dtype: chance.below(DTYPES.len() as u64) as usize,
                        seed: chance.next(),
                    },
                    number,
                    &store,
                );
                add_checksums(&format!("{inputs}/input-{number}"));
                pair.lazy = freestone::open_in(&store, &format!("input-{number}")).unwrap();
                pair
            })
            .collect();
        let n_inputs = pool.len();
        let steps: Vec<Step> = (0..4 + chance.below(6)).map(|_| step(&mut chance)).collect();
        let names = apply_all(&mut pool, &steps);
        let made = if pool.len() > n_inputs { &pool[n_inputs..] } else { &pool[..1] };
        let n_results = 1 + chance.below(3) as usize;
        let chosen = made.iter().rev().filter(|p| !p.whole.is_empty()).take(n_results);
        let mut results: Vec<_> = chosen
            .enumerate()
            .map(|(i, pair)| (format!("result-{i}"), pair.clone(), cut(pair, &mut chance)))
            .collect();
        if results.is_empty() {
            results.push(("result-0".into(), pool[0].clone(), cut(&pool[0], &mut chance)));
        }
        Program {
            results,
            names,
            parallelism: chance.pick(&[3, 16, 64]),
            codec: chance.pick(&[CodecName::None, CodecName::Zstd(0), CodecName::Lz4]),
        }
    }

    /// Plans all results into one group.
    pub fn plan(&self, group: &str, spec: &Spec) -> (Plan, Spec) {
        let spec = Spec { parallelism: self.parallelism, codec: self.codec.into(), ..spec.clone() };
        let target = |(name, pair, chunks): &(String, Pair, Vec<u64>)| {
            let target = Target::in_group(&pair.lazy, group, name).codec(self.codec);
            if chunks.is_empty() || chunks.contains(&0) { target } else { target.chunks(chunks) }
        };
        let targets: Vec<Target> = self.results.iter().map(target).collect();
        let planned =
            freestone::plan(&targets, &spec).unwrap_or_else(|e| panic!("{:?}: {e}", self.names));
        (planned, spec)
    }
}

/// Length and chunk length.
fn axis(chance: &mut Chance, most: u64) -> (u64, u64) {
    let n = most / 4 + 1 + chance.below(most);
    (n, (n / (1 + chance.below(8))).max(1))
}

fn cut(pair: &Pair, chance: &mut Chance) -> Vec<u64> {
    pair.whole.shape().iter().map(|n| (*n as u64 / (1 + chance.below(9))).max(1)).collect()
}

fn step(chance: &mut Chance) -> Step {
    // A rechunk, a reduction, a roll, a reshape, or any operation.
    let op = if chance.one_in(2) {
        chance.pick(&[22, 22, 23, 28, 29, 36, 45])
    } else {
        chance.next() as u8
    };
    Step {
        op,
        operand: chance.next() as u8,
        a: chance.next() as i8,
        b: chance.next() as i8,
        c: chance.next() as i8,
    }
}

/// Adds a checksum to chunks of plain bytes, so that damage is detected.
fn add_checksums(folder: &str) {
    for (name, mut bytes) in tree(folder) {
        if name == "zarr.json" {
            let mut document: Value = serde_json::from_slice(&bytes).unwrap();
            document["codecs"].as_array_mut().unwrap().push(json!({"name": "crc32c"}));
            bytes = serde_json::to_vec(&document).unwrap();
        } else {
            bytes.extend(crc32c(&bytes).to_le_bytes());
        }
        std::fs::write(format!("{folder}/{name}"), bytes).unwrap();
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, b| (0..8).fold(crc ^ u32::from(*b), bit))
}

#[test]
fn the_checksum_is_crc32c() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

/// Most plans have several stages.
#[test]
fn plans_have_stages_intermediates_and_several_results() {
    let (mut stages, mut tasks, mut many) = (Vec::new(), Vec::new(), 0);
    for seed in 0..60 {
        let place = crate::support::Place::quick();
        let program = Program::new(seed, &place.at("inputs"));
        let (planned, _) = program.plan(&place.at("results"), &place.spec());
        let plan = planned.finalized().plan();
        stages.push(plan.stages.len());
        tasks.push(plan.stages.iter().map(|s| s.n_tasks()).sum::<u64>());
        many += usize::from(program.results.len() > 1);
    }
    stages.sort_unstable();
    tasks.sort_unstable();
    println!("stages {stages:?}\ntasks {tasks:?}\nseveral results {many}");
    assert!(stages[30] >= 2 && stages[50] >= 4 && tasks[30] >= 30 && many >= 20);
}
