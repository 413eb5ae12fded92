//! What a run on AWS Lambda has cost, under the emulator, which counts for itself.

use std::fs;
use std::time::Duration;

use freestone::{CodecName, DType, LambdaExecutor, Serial, Target};
use freestone_cli::cost::{Place as Region, Prices};
use freestone_lambda_emulator::{Config, Emulator, worker_binary};

use crate::command::freestone_in;
use crate::support::Place;

fn function() -> Emulator {
    let mut config = Config::new("freestone", worker_binary().unwrap());
    config.timeout = Duration::from_secs(600);
    Emulator::start(config).unwrap()
}

/// `[0, 1, …]` in as many chunks, of 8 MB each.
fn stored(place: &Place, n_chunks: u64) -> String {
    let numbers = freestone::arange(0.0, 1e6 * n_chunks as f64, 1.0, DType::Float64, 1_000_000);
    let spec = place.spec();
    let url = place.at("numbers");
    freestone::run(
        &freestone::plan(&[Target::array(&numbers, &url).codec(CodecName::Zstd(3))], &spec)
            .unwrap(),
        &spec,
        &Serial,
    )
    .unwrap();
    url
}

#[test]
#[ignore = "needs the worker: run by .ci/run lambda"]
fn lambda_what_a_run_has_cost_is_what_the_function_has_counted() {
    const N: u64 = 60;
    let place = Place::new();
    let numbers = freestone::open(&stored(&place, N)).unwrap();
    let emulator = function();
    let executor = LambdaExecutor::new("freestone", "us-east-1")
        .endpoint(&emulator.url())
        .credentials("test", "test", None)
        .concurrency(3);
    let spec = place.spec();
    let planned =
        freestone::plan(&[Target::array(&(&numbers * 2.0), &place.at("out"))], &spec).unwrap();
    let report = freestone::run(&planned, &spec, &executor).unwrap();
    let cost =
        Prices::built_in().measured(&report, &Region::from_env(3, |_| None).unwrap()).unwrap();
    let stats = emulator.stats();
    println!("{cost}\n{stats:?}");
    // The probe is not the run's.
    assert_eq!(cost.invocations + 1, stats.invocations);
    assert_eq!(cost.memory_mib, Some(256));
    // The emulator's time has what lies between it and its processes.
    let counted = 0.25 * stats.ran_ms / 1e3;
    assert!(
        (0.3..=1.02).contains(&(cost.gb_seconds / counted)),
        "{} of {counted}",
        cost.gb_seconds
    );
    // A record for each request. A request has several tasks, an invocation may return a part of
    // one, and backups repeat slow ones.
    let (traffic, records) = (report.traffic(), report.invoked.unwrap().records);
    let most = N + report.backups[0] + cost.invocations;
    assert!(
        cost.puts == traffic.writes + records && (1..=most).contains(&records),
        "{records} of {most}"
    );
    // Each environment has fetched the plan once: for the probe, or in the run.
    assert_eq!(report.invoked.unwrap().plans + 1, stats.environments.len() as u64);
    assert!(cost.gets >= traffic.reads + report.invoked.unwrap().plans);
}

#[test]
#[ignore = "needs the worker: run by .ci/run lambda"]
fn lambda_a_run_that_failed_says_what_it_has_cost() {
    let place = Place::new();
    let numbers = stored(&place, 8);
    fs::write(format!("{numbers}/c/5"), b"no chunk").unwrap();
    let emulator = function();
    let url = emulator.url();
    let variables = [
        ("AWS_ENDPOINT_URL_LAMBDA", url.as_str()),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
    ];
    let arguments = [
        "compute",
        "x + 1",
        "-i",
        &format!("x={numbers}"),
        "-o",
        "out",
        "--executor",
        "lambda:freestone",
    ];
    let output = freestone_in(&place, &variables, &arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success()
            && errors.contains("cost on AWS Lambda (us-east-1 x86_64, 256 MiB")
            && errors.contains("GB-seconds"),
        "{errors}"
    );
}
