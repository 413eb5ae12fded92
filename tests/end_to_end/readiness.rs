//! Readiness of tasks: never before their inputs are finished, and as soon as they are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use freestone::{Array, CodecName, DType, Plan, RunOptions, Serial, Spec, Stores, Target};
use freestone_engine::events::{Event, Observer};
use freestone_engine::executor::{Executor, ExecutorError, Next, TaskSource};
use freestone_engine::storage::Store;
use freestone_engine::worker::{RunContext, Worker};
use proptest::prelude::*;

use crate::intermediates::Watched;
use crate::scenarios::without_room;
use crate::support::{Place, spec_in};

/// An executor with several requests in flight, completed in random order.
#[derive(Debug)]
struct Shuffled {
    slots: usize,
    chance: Mutex<u64>,
    /// The number of runs of each task.
    ran: Mutex<BTreeMap<(usize, u64), usize>>,
}

impl Shuffled {
    fn pick(&self, n: usize) -> usize {
        let mut x = self.chance.lock().unwrap();
        *x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*x >> 33) as usize % n
    }
}

impl Executor for Shuffled {
    fn name(&self) -> &str {
        "shuffled"
    }

    fn slots(&self) -> usize {
        self.slots
    }

    fn shares_process(&self) -> bool {
        true
    }

    fn check(&self, _context: &RunContext) -> Result<(), ExecutorError> {
        Ok(())
    }

    fn run(&self, context: &RunContext, source: &dyn TaskSource) -> Result<(), ExecutorError> {
        let mut worker = Worker::new(context.clone(), "shuffled".into());
        let mut under_way = Vec::new();
        loop {
            let next = if under_way.len() < self.slots { source.try_next() } else { Next::Wait };
            match next {
                Next::Run(request) => under_way.push(request),
                Next::Stop if under_way.is_empty() => return Ok(()),
                _ => {
                    assert!(
                        !under_way.is_empty(),
                        "nothing is under way, and nothing is handed out"
                    );
                    // A request runs at its end, so the outputs of other requests in flight do not
                    // exist before.
                    let outcome = worker.run(&under_way.swap_remove(self.pick(under_way.len())));
                    assert_eq!(outcome.failure, None);
                    for report in &outcome.done {
                        *self
                            .ran
                            .lock()
                            .unwrap()
                            .entry((outcome.request.stage.0, report.task))
                            .or_default() += 1;
                    }
                    source.finished(outcome);
                }
            }
        }
    }
}

/// An operation on an array of two axes.
#[derive(Clone, Debug)]
enum Step {
    Rechunk(u64, u64),
    Double,
    Roll(i64),
    Flip(usize),
    Transpose,
    Flat(u64),
    Take,
    Every(i64),
    Repeat,
    Joined(usize),
    Sum(usize),
    Mean,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1u64..20, 1u64..20).prop_map(|(a, b)| Step::Rechunk(a, b)),
        3 => Just(Step::Double),
        1 => (1i64..30).prop_map(Step::Roll),
        1 => (0usize..2).prop_map(Step::Flip),
        1 => Just(Step::Transpose),
        1 => (1u64..7).prop_map(Step::Flat),
        1 => Just(Step::Take),
        1 => (2i64..4).prop_map(Step::Every),
        1 => Just(Step::Repeat),
        1 => (0usize..2).prop_map(Step::Joined),
        1 => (0usize..2).prop_map(Step::Sum),
        1 => Just(Step::Mean),
    ]
}

fn apply(x: &Array, step: &Step) -> Array {
    let shape = x.shape().unwrap();
    match step {
        Step::Rechunk(a, b) => x.rechunk([(*a).min(shape[0]), (*b).min(shape[1])]),
        Step::Double => x * 2.0,
        Step::Roll(by) => x.roll(*by, 0),
        Step::Flip(axis) => x.flip(*axis as i64),
        Step::Transpose => x.permute_dims([1, 0]),
        Step::Flat(rows) if (shape[0] * shape[1]).is_multiple_of(*rows) => {
            x.reshape([*rows as i64, -1])
        }
        Step::Flat(_) => x.reshape([1, -1]),
        Step::Take => {
            x.take((0..shape[0] as i64).map(|i| i * 7 % shape[0] as i64).collect::<Vec<_>>(), 0)
        }
        Step::Every(n) => x.slice(freestone::Slice::from(..).step(*n), 0),
        Step::Repeat if shape[0] < 100 => x.repeat(2, 0),
        Step::Repeat => x.clone(),
        Step::Joined(axis) if shape[*axis] < 100 => {
            freestone::concat(&[x.clone(), x * 3.0], *axis as i64)
        }
        Step::Joined(_) => x.clone(),
        // One chunk along an axis: every task reads all tasks of the stage before.
        Step::Sum(axis) => x + &x.sum(freestone::Reduce::from(*axis as i64).keepdims()),
        Step::Mean => x - &(&x.mean(()) * 0.5),
    }
}

/// Runs requests in random order, with a memory limit for intermediates. Returns the values, after
/// checking that everything was read after it was written.
fn run(x: &Array, slots: usize, seed: u64, room: u64) -> ndarray::ArrayD<f64> {
    let (place, work) = (Place::quick(), Watched::new(None));
    let spec = Spec { parallelism: 8, ..spec_in(work.url()) };
    let planned =
        freestone::plan(&[Target::array(x, place.at("out")).codec(CodecName::None)], &spec)
            .unwrap();
    let tight = without_room(&spec, &planned, slots);
    let spec = Spec { local_mem: tight.local_mem + room, ..spec };
    let executor = Shuffled { slots, chance: Mutex::new(seed), ran: Mutex::default() };
    let stores = Stores::default();
    stores.insert(Arc::<Watched>::clone(&work));
    freestone::run_with(
        &planned,
        &spec,
        &executor,
        &RunOptions { stores, ..RunOptions::default() },
    )
    .unwrap();
    assert_eq!(work.missed(), [""; 0], "read before it was written, in\n{}", planned.finalized());
    let ran = executor.ran.into_inner().unwrap();
    let tasks: u64 = planned.finalized().plan().stages.iter().map(|s| s.n_tasks()).sum();
    assert!(ran.len() as u64 == tasks && ran.values().all(|n| *n == 1), "{ran:?}");
    freestone::compute(&freestone::open(place.at("out")).unwrap(), &place.spec()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn no_task_runs_before_its_inputs(
        shape in (1u64..60, 1u64..40),
        chunks in (1u64..12, 1u64..12),
        steps in prop::collection::vec(step(), 1..7),
        slots in 1usize..6,
        seed: u64,
        in_memory: bool,
    ) {
        let chunks = [chunks.0.min(shape.0), chunks.1.min(shape.1)];
        let shape = [shape.0, shape.1];
        let x = freestone::random_uniform(shape, 0.5, 1.0, 5, DType::Float64, chunks);
        let y = steps.iter().fold(x, |x, s| apply(&x, s));
        let found = run(&y, slots, seed, if in_memory { 100_000_000 } else { 0 });
        // One task at a time, in the order of seed 0.
        let expect = run(&y, 1, 0, 0);
        prop_assert_eq!(found, expect);
    }
}

/// Records starts and ends of stages.
#[derive(Default)]
struct Order(Mutex<Vec<(&'static str, usize)>>);

impl Observer for Order {
    fn on_event(&self, event: &Event<'_>) {
        match event {
            Event::StageStarted { stage } => self.0.lock().unwrap().push(("started", stage.0)),
            Event::StageEnded { stage } => self.0.lock().unwrap().push(("ended", stage.0)),
            _ => {}
        }
    }
}

#[track_caller]
fn check(planned: &Plan, spec: &Spec, expect: &[(&'static str, usize)]) {
    let order = Order::default();
    freestone::run_with(
        planned,
        spec,
        &Serial,
        &RunOptions { observers: &[&order], ..RunOptions::default() },
    )
    .unwrap();
    assert_eq!(order.0.into_inner().unwrap(), expect, "{}", planned.finalized());
}

#[test]
fn stages_overlap() {
    let place = Place::new();
    let spec = Spec { parallelism: 16, ..place.spec() };
    let x = freestone::random_uniform([2000, 100], 0.5, 1.0, 7, DType::Float32, [10, 100]);
    let plan = |x: &Array, name: &str| {
        freestone::plan(&[Target::array(x, place.at(name))], &spec).unwrap()
    };
    // Chunks are merged.
    let merged = x.rechunk([40, 100]) * 2.0;
    let overlap = [("started", 0), ("started", 1), ("ended", 0), ("ended", 1)];
    check(&plan(&merged.rechunk([80, 100]), "merged"), &spec, &overlap);
    // Every chunk depends on all others.
    let columns = x.rechunk([2000, 10]) * 2.0;
    let barrier = [("started", 0), ("ended", 0), ("started", 1), ("ended", 1)];
    check(&plan(&columns.rechunk([100, 100]), "columns"), &spec, &barrier);
    // Rows are folded in parts. The parts of one row are merged while others are folded.
    let wide = freestone::random_uniform([8, 100_000], 0.5, 1.0, 7, DType::Float32, [1, 500]);
    check(&plan(&wide.sum(1), "rows"), &spec, &overlap);
}

#[test]
fn stored_results_are_read_chunk_by_chunk() {
    let place = Place::new();
    let x = freestone::random_uniform([600, 10], 0.5, 1.0, 7, DType::Float32, [10, 10]);
    let store: Arc<dyn Store> = Arc::new(freestone::MemoryStore::new());
    let stores = Stores::default();
    stores.insert(Arc::clone(&store));
    let doubled = (&x * 2.0).rechunk([30, 10]);
    let targets = [("a", &doubled), ("b", &(&doubled + 1.0).flip(0))];
    let targets = targets
        .map(|(name, x)| Target::array(x, format!("{}/{name}", store.url())).with_stores(&stores));
    let spec = place.spec();
    let planned = freestone::plan(&targets, &spec).unwrap();
    let executor = Shuffled { slots: 3, chance: Mutex::new(1), ran: Mutex::default() };
    freestone::run(&planned, &spec, &executor).unwrap();
    let [a, b] = ["a", "b"].map(|name| {
        freestone::compute::<f32>(&freestone::open_in(&store, name).unwrap(), &spec).unwrap()
    });
    assert!(b.indexed_iter().all(|(at, b)| a[[599 - at[0], at[1]]] + 1.0 == *b));
}
