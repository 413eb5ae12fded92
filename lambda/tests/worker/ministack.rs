//! The stock worker on ministack, an independent implementation of the Lambda and S3 APIs. These
//! tests show that the worker and client do not depend on peculiarities of the emulator.
//!
//! Ministack limits neither memory nor bodies, does not stop processes between invocations, and
//! injects no faults.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use freestone_engine::task::RunAddress;
use freestone_executors::conformance;
use freestone_lambda::DType;
use freestone_ops::io::Target;
use freestone_ops::random_normal;
use freestone_worker::{Call, Invocation};
use serde_json::{Value, json};

use crate::equivalence;
use crate::functions::{CLIENT, Place, request, stock_function, written};
use crate::runs::{executor, numbers, plan, scripted};
use crate::scripted::Scripted;

/// Returns the URL of ministack, to which `tests/interop/lambda_deploy.py` has deployed functions.
fn endpoint() -> String {
    std::env::var("FREESTONE_SECOND_LAMBDA").unwrap()
}

#[test]
#[ignore = "needs ministack: .ci/run lambda"]
fn lambda_ministack_passes_the_executor_conformance_suite() {
    let place = Place::new();
    conformance::check(place.0.path(), |slots| {
        Box::new(executor(&endpoint(), slots, 1000).batches(1, Duration::from_secs(1)))
    });
}

#[test]
#[ignore = "needs ministack: .ci/run lambda"]
fn lambda_ministack_writes_the_same_bytes() {
    let place = Place::new();
    let reports = equivalence::check_same_bytes(&executor(&endpoint(), 4, 200), &place.at("there"));
    let invoked: Vec<_> = reports.iter().map(|r| r.invoked.unwrap()).collect();
    assert!(
        invoked.iter().all(|i| i.invocations > 0 && i.crashes + i.lost_answers == 0),
        "{invoked:?}"
    );
}

#[test]
#[ignore = "needs ministack: .ci/run lambda"]
fn lambda_ministack_writes_the_same_bytes_on_an_object_store() {
    let root = std::env::var("FREESTONE_STORE").unwrap() + "/second";
    equivalence::check_same_bytes(&executor(&endpoint(), 4, 200), &root);
}

#[test]
#[ignore = "needs ministack: .ci/run lambda"]
fn lambda_ministack_makes_one_commit() {
    let place = Place::new();
    equivalence::check_one_commit(&executor(&endpoint(), 4, 50), &place.at("there"));
}

#[test]
#[ignore = "needs ministack: .ci/run lambda"]
fn lambda_ministack_makes_one_commit_on_an_object_store() {
    let root = std::env::var("FREESTONE_STORE").unwrap() + "/second-commit";
    equivalence::check_one_commit(&executor(&endpoint(), 4, 50), &root);
}

/// The AWS SDK for Python receives the same answers from both implementations.
#[test]
#[ignore = "needs ministack: .ci/run lambda"]
fn lambda_boto3_gets_the_same_answers_from_both() {
    let place = Place::new();
    let spec = place.spec();
    let ours = stock_function(|_| ());
    let narrow =
        stock_function(|config| (config.function, config.concurrency) = ("narrow".into(), 1));
    let numbers_to = |to: &str| plan(&[Target::array(&numbers(3), place.at(to))], &spec);
    let invocation = |address: &RunAddress, call: Call| {
        serde_json::to_value(Invocation::new(address.clone(), CLIENT, call)).unwrap()
    };
    let run = |address: &RunAddress, n: u64| {
        invocation(address, Call::Run((0..n).map(|i| request(i, 0, i..i + 1)).collect()))
    };

    let good = written(&numbers_to("numbers"), &spec);
    let mean = plan(
        &[Target::array(
            &random_normal([400, 500], 0.0, 1.0, 1, DType::Float32, [100, 500]).mean(0),
            place.at("mean"),
        )],
        &spec,
    );
    let mean = written(&mean, &spec);
    let of = |change: &dyn Fn(&mut Value)| {
        let mut body = invocation(&good, Call::Probe);
        change(&mut body);
        body
    };
    let big = random_normal([60_000_000], 0.0, 1.0, 1, DType::Float64, [60_000_000]);
    let big = written(
        &plan(
            &[Target::array(&big, place.at("big"))],
            &place.spec_with(|s| s.allowed_mem = Some(2_000_000_000)),
        ),
        &spec,
    );
    let kernel = written(
        &plan(&[Target::array(&scripted(2, &Scripted::default()), place.at("scripted"))], &spec),
        &spec,
    );
    let nowhere = RunAddress { folder: format!("{}-2", good.folder), ..good.clone() };
    let calls = json!({
        "a probe": invocation(&good, Call::Probe),
        "requests": run(&good, 3),
        "a probe of a reduction": invocation(&mean, Call::Probe),
        "a reduction": run(&mean, 1),
        "a plan that needs more memory": invocation(&big, Call::Probe),
        "a kernel that nobody knows": run(&kernel, 1),
        "a plan that is not there": run(&nowhere, 1),
        "another protocol": of(&|body| body["protocol"] = 999.into()),
        "another engine": of(&|body| body["engine"] = "9.9.9".into()),
        "no invocation": [1, 2],
    });
    let slow = random_normal([40_000_000], 0.0, 1.0, 1, DType::Float64, [500_000]);
    let slow = written(
        &plan(
            &[Target::array(&slow.mean(0), place.at("slow"))],
            &place.spec_with(|s| s.parallelism = Some(1)),
        ),
        &spec,
    );
    let event = |to: &str| {
        let body = run(&written(&numbers_to(to), &spec), 3);
        json!({ "body": body, "file": place.at(&format!("{to}/c/2")) })
    };
    let setup = json!({
        "sides": {
            "ours": { "freestone": ours.url(), "narrow": narrow.url() },
            "theirs": { "freestone": endpoint(), "narrow": endpoint() },
        },
        "calls": calls,
        "slow": run(&slow, 1),
        "event": { "ours": event("event-ours"), "theirs": event("event-theirs") },
    });
    fs::write(place.at("setup.json"), setup.to_string()).unwrap();
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/interop/lambda_drive.py");
    let driven = Command::new(std::env::var("FREESTONE_PYTHON").unwrap())
        .arg(script)
        .arg(place.at("setup.json"))
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&driven.stdout);
    println!("{output}");
    assert!(driven.status.success(), "{}", String::from_utf8_lossy(&driven.stderr));
    assert_eq!(
        output.lines().filter(|l| l.starts_with("ok ")).count(),
        calls.as_object().unwrap().len() + 2 * 5 + 2
    );
}
