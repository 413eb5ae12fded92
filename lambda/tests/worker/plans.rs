//! Plans in the emulator: the same bytes as on threads, within projected memory, and on S3.

use std::fs;

use freestone_engine::storage::{Stores, read_small};
use freestone_executors::{Threads, conformance};
use freestone_lambda::DType;
use freestone_lambda_emulator::Cap;
use freestone_ops::io::{Target, open_in};
use freestone_ops::{Array, random_normal};

use crate::equivalence;
use crate::functions::{EmulatorExecutor, Place, aws_variables, mib, stock_function};
use crate::runs::{executor, plan, run, tree};

#[test]
fn plans_write_the_same_bytes_as_threads() {
    let place = Place::new();
    let spec = place.spec_with(|s| s.allowed_mem = Some(60_000_000));
    let emulator = stock_function(|_| ());
    let stored = |name: &str, array: &Array| {
        run(&[Target::array(array, place.at(name))], &spec, &Threads::new(2));
        open_in(&Stores::default().open(&place.at(name)).unwrap(), "").unwrap()
    };
    let u = stored("u", &random_normal([64, 300, 200], 0.0, 1.0, 1, DType::Float32, [8, 300, 200]));
    let v = stored("v", &random_normal([64, 300, 200], 1.0, 2.0, 2, DType::Float32, [8, 300, 200]));
    let a = stored("a", &random_normal([300, 400], 0.0, 1.0, 3, DType::Float64, [100, 100]));
    let quad = |to: &str| {
        [("uu", &u * &u), ("uv", &u * &v), ("vv", &v * &v)]
            .map(|(name, product)| Target::in_group(&product.mean(0), place.at(to), name))
            .to_vec()
    };
    let rechunk = |to: &str| vec![Target::array(&u.rechunk([64, 30, 20]), place.at(to))];
    let matmul = |to: &str| vec![Target::array(&a.matmul(&a.matrix_transpose()), place.at(to))];
    type Targets<'a> = &'a dyn Fn(&str) -> Vec<Target>;
    let kinds: [(&str, Targets<'_>); 3] =
        [("quad", &quad), ("rechunk", &rechunk), ("matmul", &matmul)];
    for (name, targets) in kinds {
        let (here, there) = (format!("{name}-threads"), format!("{name}-lambda"));
        run(&targets(&here), &spec, &Threads::new(2));
        let report =
            run(&targets(&there), &spec, &EmulatorExecutor { emulator: &emulator, slots: 4 });
        let (here, there) = (tree(place.at(&here)), tree(place.at(&there)));
        assert!(here.len() > 1);
        assert_eq!(here, there, "{name}");
        assert!(report.worker_peak_bytes.is_some() && report.failures.is_empty());
        assert!(
            fs::read_dir(&spec.work_dir).unwrap().next().is_none(),
            "records are removed with the run's folder"
        );
    }
    assert_eq!(emulator.stats().function_errors, 0);
}

#[test]
fn the_emulator_passes_the_executor_conformance_suite() {
    let place = Place::new();
    let emulator = Box::leak(Box::new(stock_function(|_| ())));
    conformance::check(place.0.path(), |slots| Box::new(EmulatorExecutor { emulator, slots }));
    emulator.kill_environments();
}

/// Runs plans in functions with exactly their projected memory, which the kernel enforces.
#[test]
#[ignore = "needs root and memory cgroups: .ci/run lambda"]
fn lambda_plans_run_in_their_projected_memory() {
    let place = Place::new();
    let spec = place.spec();
    let stored = |name: &str, array: &Array| {
        run(&[Target::array(array, place.at(name))], &spec, &Threads::new(2));
        open_in(&Stores::default().open(&place.at(name)).unwrap(), "").unwrap()
    };
    // Incompressible chunks of 8 MB, so that codecs need their maximum memory.
    let u =
        stored("u", &random_normal([16, 1000, 1000], 0.0, 1.0, 1, DType::Float32, [2, 1000, 1000]));
    let v =
        stored("v", &random_normal([16, 1000, 1000], 1.0, 2.0, 2, DType::Float32, [2, 1000, 1000]));
    let a = stored("a", &random_normal([2000, 2000], 0.0, 1.0, 3, DType::Float64, [1000, 1000]));
    let results = [
        ("mean", (&u * &v).mean(0)),
        ("sum of all", u.sum(())),
        ("elementwise", &(&u * &v) + &u),
        ("rechunk", u.rechunk([16, 100, 1000])),
        ("matmul", a.matmul(&a.matrix_transpose())),
    ];
    let mut rows = 0;
    for (name, array) in &results {
        let targets = [Target::array(array, place.at("out")).overwrite(true)];
        let plan = plan(&targets, &spec);
        let emulator = stock_function(|c| {
            c.memory_mib = mib(plan.projected_mem());
            c.cap = Cap::Required;
        });
        let report = run(&targets, &spec, &EmulatorExecutor { emulator: &emulator, slots: 2 });
        let stats = emulator.stats();
        assert_eq!((stats.exits, stats.oom_kills, report.retries), (0, 0, 0), "{name}: {stats:?}");
        let peak = stats.environments.iter().filter_map(|e| e.max_memory_bytes).max().unwrap();
        println!(
            "{name}: {} MiB projected, peak of {:.1} MiB",
            mib(plan.projected_mem()),
            peak as f64 / f64::from(1 << 20)
        );
        rows += 1;
    }
    println!("{rows} rows");
}

/// Runs plans whose arrays and work directory are on S3, with the credentials of the function's
/// environment.
#[test]
#[ignore = "needs an S3 server: .ci/run lambda"]
fn lambda_plans_run_on_an_object_store() {
    let place = std::env::var("FREESTONE_STORE").unwrap() + "/lambda";
    let local = Place::new();
    let spec = local.spec_with(|s| s.work_dir = Some(format!("{place}/work")));
    let emulator = stock_function(|c| {
        c.variables = aws_variables();
    });
    let stored = |name: &str, seed: u64| {
        let array = random_normal([24, 200, 200], 0.0, 1.0, seed, DType::Float32, [8, 200, 200]);
        run(
            &[Target::array(&array, format!("{place}/{name}")).overwrite(true)],
            &spec,
            &EmulatorExecutor { emulator: &emulator, slots: 3 },
        );
        open_in(&Stores::default().open(&format!("{place}/{name}")).unwrap(), "").unwrap()
    };
    let (u, v) = (stored("u", 1), stored("v", 2));
    let targets =
        |to: &str| [Target::array(&(&u * &v).rechunk([24, 50, 50]).mean(0), to).overwrite(true)];
    run(&targets(&local.at("here")), &spec, &Threads::new(2));
    run(
        &targets(&format!("{place}/there")),
        &spec,
        &EmulatorExecutor { emulator: &emulator, slots: 3 },
    );
    let there = Stores::default().open(&format!("{place}/there")).unwrap();
    let here = tree(local.at("here"));
    assert!(here.len() > 1);
    for (key, bytes) in here {
        assert_eq!(read_small(&*there, &key, 1 << 28).unwrap().as_ref(), Some(&bytes), "{key}");
    }
    let client = executor(&emulator.url(), 4, 200);
    equivalence::check_same_bytes(&client, &format!("{place}/client"));
    equivalence::check_one_commit(&client, &format!("{place}/commit"));
    // Connections survive the stops between invocations.
    let stats = emulator.stats();
    assert_eq!(stats.function_errors, 0);
    assert!(stats.environments.iter().any(|e| e.invocations > 1));
}
