//! The reported cost of runs on AWS Lambda, compared with the counters of the emulator.

use std::fs;
use std::time::Duration;

use freestone::{CodecName, DType, LambdaExecutor, Serial, Target};
use freestone_cli::cost::{Place as Region, Prices};
use freestone_lambda_emulator::{Config, Emulator, RecordedInvocation, worker_binary};
use serde_json::Value;

use crate::command::freestone_in;
use crate::support::Place;

fn function() -> Emulator {
    let mut config = Config::new("freestone", worker_binary().unwrap());
    (config.timeout, config.record_bodies) = (Duration::from_secs(600), true);
    Emulator::start(config).unwrap()
}

/// Stores `[0, 1, …]` in chunks of 8 MB and returns the location.
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

/// Returns the gigabyte-seconds of a function's runs, by the times that its workers reported: the
/// duration of each invocation, and the start of its environment.
fn reported_gb_seconds(emulator: &Emulator, memory_mib: u64) -> f64 {
    let milliseconds = |recorded: &RecordedInvocation| {
        let answer: Value = serde_json::from_slice(&recorded.answer).unwrap();
        let done = answer.get("done")?;
        let environment = &done["environment"];
        let is_cold = environment["invocations"] == 1;
        let start = if is_cold { environment["init_ms"].as_u64()? } else { 0 };
        Some(done["wall_ms"].as_u64()? + start)
    };
    let total: u64 = emulator.recorded_invocations().iter().filter_map(milliseconds).sum();
    memory_mib as f64 / 1024.0 * total as f64 / 1e3
}

#[test]
#[ignore = "needs the worker: run by .ci/run lambda"]
fn lambda_reported_cost_matches_the_counters_of_the_function() {
    const N: u64 = 60;
    let place = Place::new();
    let numbers = freestone::open(stored(&place, N)).unwrap();
    let emulator = function();
    let executor = LambdaExecutor::new("freestone", "us-east-1")
        .endpoint(&emulator.url())
        .credentials("test", "test", None)
        .concurrency(3);
    let spec = place.spec();
    let planned =
        freestone::plan(&[Target::array(&(&numbers * 2.0), place.at("out"))], &spec).unwrap();
    let report = freestone::run(&planned, &spec, &executor).unwrap();
    let cost =
        Prices::built_in().measured(&report, &Region::from_env(3, |_| None).unwrap()).unwrap();
    let stats = emulator.stats();
    println!("{cost}\n{stats:?}");
    // The run's cost excludes the probe.
    assert_eq!(cost.invocations + 1, stats.invocations);
    assert_eq!(cost.memory_mib, Some(256));
    let reported = reported_gb_seconds(&emulator, 256);
    assert!((cost.gb_seconds - reported).abs() < 1e-6, "{} of {reported}", cost.gb_seconds);
    // The emulator's time includes the wait for its processes, so it is longer.
    let counted = 0.25 * stats.billed_ms / 1e3;
    assert!(cost.gb_seconds > 0.0 && cost.gb_seconds <= counted, "{reported} of {counted}");
    // Each request has a record. A request has several tasks, an invocation may return part of a
    // request, and backups repeat slow requests.
    let (traffic, records) = (report.traffic(), report.invoked.unwrap().records);
    let most = N + report.backups[0] + cost.invocations;
    assert!(
        cost.puts == traffic.writes + records && (1..=most).contains(&records),
        "{records} of {most}"
    );
    // Each environment fetched the plan once, for the probe or in the run.
    assert_eq!(report.invoked.unwrap().plans + 1, stats.environments.len() as u64);
    assert!(cost.gets >= traffic.reads + report.invoked.unwrap().plans);
}

#[test]
#[ignore = "needs the worker: run by .ci/run lambda"]
fn lambda_a_failed_run_reports_its_cost() {
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
