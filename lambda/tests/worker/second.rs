//! A second Lambda, which others have made: ministack runs the stock package in processes behind
//! Lambda's API and S3's. What holds on both is not a habit of our emulator's.
//!
//! It caps neither memory nor bodies, and does not stop processes between invocations; faults are
//! for ours.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use freestone_engine::task::RunAddress;
use freestone_executors::conformance;
use freestone_lambda::DType;
use freestone_ops::io::Target;
use freestone_ops::random_normal;
use freestone_worker::{Call, Invocation};
use serde_json::{Value, json};
use std::time::Duration;

use crate::support::{CLIENT, Odd, Place, odd, plan, request, stock, written};
use crate::{anywhere, client};

/// Where it is; it has the functions that `tests/interop/lambda_deploy.py` makes.
fn endpoint() -> String {
    std::env::var("FREESTONE_SECOND_LAMBDA").unwrap()
}

#[test]
#[ignore = "needs a second Lambda: .ci/run lambda"]
fn lambda_second_passes_the_suite_for_executors() {
    let place = Place::new();
    conformance::check(place.0.path(), |slots| {
        Box::new(client::executor(&endpoint(), slots, 1000).batches(1, Duration::from_secs(1)))
    });
}

#[test]
#[ignore = "needs a second Lambda: .ci/run lambda"]
fn lambda_second_has_the_same_bytes() {
    let place = Place::new();
    let reports = anywhere::plans_have_the_same_bytes(
        &client::executor(&endpoint(), 4, 200),
        &place.at("there"),
    );
    let invoked: Vec<_> = reports.iter().map(|r| r.invoked.unwrap()).collect();
    assert!(
        invoked.iter().all(|i| i.invocations > 0 && i.crashes + i.lost_answers == 0),
        "{invoked:?}"
    );
}

#[test]
#[ignore = "needs a second Lambda: .ci/run lambda"]
fn lambda_second_has_the_same_bytes_on_an_object_store() {
    let root = std::env::var("FREESTONE_S3").unwrap() + "/second";
    anywhere::plans_have_the_same_bytes(&client::executor(&endpoint(), 4, 200), &root);
}

#[test]
#[ignore = "needs a second Lambda: .ci/run lambda"]
fn lambda_second_commits_once() {
    let place = Place::new();
    anywhere::a_run_is_one_commit(&client::executor(&endpoint(), 4, 50), &place.at("there"));
}

#[test]
#[ignore = "needs a second Lambda: .ci/run lambda"]
fn lambda_second_commits_once_on_an_object_store() {
    let root = std::env::var("FREESTONE_S3").unwrap() + "/second-commit";
    anywhere::a_run_is_one_commit(&client::executor(&endpoint(), 4, 50), &root);
}

/// AWS's own client calls both, and is answered the same.
#[test]
#[ignore = "needs a second Lambda: .ci/run lambda"]
fn lambda_boto3_drives_both() {
    let place = Place::new();
    let spec = place.spec();
    let ours = stock(|_| ());
    let narrow = stock(|config| (config.function, config.concurrency) = ("narrow".into(), 1));
    let numbers = |to: &str| {
        plan(
            &[Target::array(
                &freestone_ops::arange(0.0, 30.0, 1.0, DType::Float64, 10),
                &place.at(to),
            )],
            &spec,
        )
    };
    let invocation = |address: &RunAddress, call: Call| {
        serde_json::to_value(Invocation::new(address.clone(), CLIENT, call)).unwrap()
    };
    let run = |address: &RunAddress, n: u64| {
        invocation(address, Call::Run((0..n).map(|i| request(i, 0, i..i + 1)).collect()))
    };

    let good = written(&numbers("numbers"), &spec);
    let mean = plan(
        &[Target::array(
            &random_normal(&[400, 500], 0.0, 1.0, 1, DType::Float32, &[100, 500]).mean(0),
            &place.at("mean"),
        )],
        &spec,
    );
    let mean = written(&mean, &spec);
    let of = |change: &dyn Fn(&mut Value)| {
        let mut body = invocation(&good, Call::Probe);
        change(&mut body);
        body
    };
    let big = random_normal(&[60_000_000], 0.0, 1.0, 1, DType::Float64, &[60_000_000]);
    let big = written(
        &plan(
            &[Target::array(&big, &place.at("big"))],
            &place.spec_with(|s| s.allowed_mem = Some(2_000_000_000)),
        ),
        &spec,
    );
    let kernel =
        written(&plan(&[Target::array(&odd(2, &Odd::default()), &place.at("odd"))], &spec), &spec);
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
    let slow = random_normal(&[40_000_000], 0.0, 1.0, 1, DType::Float64, &[500_000]);
    let slow = written(
        &plan(
            &[Target::array(&slow.mean(0), &place.at("slow"))],
            &place.spec_with(|s| s.parallelism = Some(1)),
        ),
        &spec,
    );
    let event = |to: &str| json!({ "body": run(&written(&numbers(to), &spec), 3), "file": place.at(&format!("{to}/c/2")) });
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
    let said = String::from_utf8_lossy(&driven.stdout);
    println!("{said}");
    assert!(driven.status.success(), "{}", String::from_utf8_lossy(&driven.stderr));
    assert_eq!(
        said.lines().filter(|l| l.starts_with("ok ")).count(),
        calls.as_object().unwrap().len() + 2 * 5 + 2
    );
}
