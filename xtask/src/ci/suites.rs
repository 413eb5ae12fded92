//! The suites, one function each.

use std::fs;

use super::context::{Context, TestCounts, count_lines, remove_dir, run, stdout_of, sum_cases};
use super::context::{sum_rows, tee};
use super::services::{Cgroup, FaultyProxy, S3Server, Server};
use super::services::{set_azure_environment, set_google_environment, set_s3_environment};
use super::{limits, needs};
use crate::Result;

/// Formatting, and the limits on the length of files and lines.
pub(crate) fn format(context: &mut Context) -> Result<()> {
    run(context.cargo(["fmt", "--all", "--check"]))?;
    let n_files = limits::check(&context.root)?;
    context.passed(n_files);
    Ok(())
}

/// Clippy on everything, tests included; warnings are errors.
pub(crate) fn clippy(context: &mut Context) -> Result<()> {
    let options = ["--locked", "--release", "--workspace", "--all-targets"];
    let mut command = context.cargo(["clippy"]);
    command.args(options).args(["--", "-D", "warnings"]);
    run(command)?;
    context.passed(n_packages(context)?);
    Ok(())
}

/// Clippy on the facade without default features, and with each of its features alone.
pub(crate) fn features(context: &mut Context) -> Result<()> {
    for feature in ["", "object-stores", "sessions", "lambda", "gcs", "azure"] {
        let mut command = context.cargo(["clippy", "--locked", "--release"]);
        command.args(["--package", "freestone", "--lib", "--no-default-features"]);
        command.args(["--features", feature]).args(["--", "-D", "warnings"]);
        println!("features: {}", if feature.is_empty() { "none" } else { feature });
        run(command)?;
        context.passed(1);
    }
    Ok(())
}

/// The documentation; warnings are errors.
pub(crate) fn rustdoc(context: &mut Context) -> Result<()> {
    context.set("RUSTDOCFLAGS", "-D warnings");
    run(context.cargo(["doc", "--locked", "--release", "--workspace", "--no-deps"]))?;
    context.passed(n_packages(context)?);
    Ok(())
}

fn n_packages(context: &Context) -> Result<u64> {
    let command = context.cargo(["metadata", "--locked", "--no-deps", "--format-version", "1"]);
    Ok(stdout_of(command)?.matches("\"manifest_path\":").count() as u64)
}

/// All tests of the workspace that need only Rust.
pub(crate) fn tests(context: &mut Context) -> Result<()> {
    context.default_tests()
}

/// The examples. A user's kernel writes the same bytes on threads and in processes.
pub(crate) fn example(context: &mut Context) -> Result<()> {
    let n_results = run_examples(context)?;
    context.passed(n_results);
    Ok(())
}

fn run_examples(context: &mut Context) -> Result<u64> {
    let means = context.out.join("means.zarr");
    remove_dir(&means)?;
    let mut command = context.cargo(["run", "--release", "--example", "quadratic_means", "--"]);
    command.arg("--output").arg(means);
    let mut output = tee(command, &context.out.join("example.log"))?;

    let executors = ["threads", "processes"];
    let folders = executors.map(|name| context.out.join(format!("percentile-{name}.zarr")));
    for (executor, folder) in executors.iter().zip(&folders) {
        remove_dir(folder)?;
        let mut command = context.cargo(["run", "--release", "--example", "percentile", "--"]);
        command.args(["--executor", executor, "--output"]).arg(folder);
        output += &tee(command, &context.out.join(format!("percentile-{executor}.log")))?;
    }
    let mut diff = context.command("diff");
    diff.arg("-r").args(&folders);
    run(diff)?;
    for example in ["wind_anomaly", "versions", "row_median"] {
        let folder = context.out.join(example);
        remove_dir(&folder)?;
        let mut command = context.cargo(["run", "--release", "--example", example, "--"]);
        command.arg(&folder);
        output += &tee(command, &context.out.join(format!("{example}.log")))?;
    }
    context.example_ran = true;
    let results =
        ["  mean(", "percentile of wind speed", "the largest anomaly", "before: ", "as expected: "];
    Ok(count_lines(&output, |line| results.iter().any(|result| line.contains(result))))
}

/// Freestone reads what zarr-python wrote, and the other way round.
pub(crate) fn interop(context: &mut Context) -> Result<()> {
    let programs = needs::python(context)?;
    if !context.example_ran {
        run_examples(context)?;
    }
    let python = programs.join("python");
    let folder = context.out.join("interop");
    let mut write = context.command(&python);
    write.arg("tests/interop/write_inputs.py").arg(&folder);
    run(write)?;
    context.set("FREESTONE_INTEROP", &folder);
    context.ignored_tests("interop_", &[])?;
    let mut read = context.command(&python);
    read.arg("tests/interop/read_outputs.py");
    read.args([context.out.join("means.zarr"), folder.join("outputs.zarr")]);
    let output = tee(read, &context.out.join("interop.log"))?;
    context.passed(count_ok(&output));
    Ok(())
}

/// Repositories: Python's icechunk reads what Freestone commits, Freestone reads what it commits,
/// and both write on.
pub(crate) fn icechunk(context: &mut Context) -> Result<()> {
    let folder = context.out.join("icechunk");
    remove_dir(&folder)?;
    fs::create_dir_all(&folder)?;
    let pythons = needs::icechunk_pythons(context)?;
    let scripts = |context: &Context, script: &str| -> Result<u64> {
        let mut n_ok = 0;
        for (index, python) in pythons.iter().enumerate() {
            let mut command = context.command(python);
            command.arg(format!("tests/interop/icechunk_{script}.py")).arg(&folder);
            let log = context.out.join(format!("icechunk-{script}-{index}.log"));
            n_ok += count_ok(&tee(command, &log)?);
        }
        Ok(n_ok)
    };
    let n_written = scripts(context, "write")?;
    context.set("FREESTONE_ICECHUNK", &folder);
    context.ignored_tests("icechunk_", &[])?;
    let n_read = scripts(context, "read")?;
    context.passed(n_written + n_read);
    Ok(())
}

fn count_ok(output: &str) -> u64 {
    count_lines(output, |line| line.starts_with("ok "))
}

/// Every kernel, read path and codec in a process of its own: measured against projected. The table
/// is `target/ci/memory.md`.
pub(crate) fn memory(context: &mut Context) -> Result<()> {
    context.set("FREESTONE_MEMORY", context.out.join("memory.md"));
    let log = context.ignored_tests("memory::memory_", &["--nocapture"])?;
    context.passed(sum_rows(&log));
    Ok(())
}

/// Runs on a full file system of 4 MB.
///
/// It is mounted in a mount namespace, which ends with the tests, however they end.
pub(crate) fn disk(context: &mut Context) -> Result<()> {
    let namespace = needs::mount_namespace(context)?;
    let folder = context.out.join("small");
    fs::create_dir_all(&folder)?;
    context.set("FREESTONE_SMALL_DISK", &folder);
    let tests = context.ignored_tests_command(&["end_to_end", "sessions"], "disk_", &[]);
    let script = "mount -t tmpfs -o size=4m tmpfs \"$FREESTONE_SMALL_DISK\" && exec \"$@\"";
    let mut command = context.command("unshare");
    command.args(namespace).args(["sh", "-c", script, "sh"]);
    command.arg(tests.get_program()).args(tests.get_args());
    context.run_ignored_tests(command)?;
    fs::remove_dir(&folder)?;
    Ok(())
}

/// All rows of the suite `memory` under a memory limit of exactly the projection.
pub(crate) fn cgroup(context: &mut Context) -> Result<()> {
    let cgroup = Cgroup::new()?;
    context.set("FREESTONE_CGROUP", &cgroup.folder);
    let log = context.ignored_tests("cgroup_", &["--nocapture"])?;
    context.passed(sum_rows(&log));
    Ok(())
}

/// Tests on an S3 server; those of sessions once more through a proxy.
///
/// Commits and shared sessions depend on conditional puts: the proxy loses the answer of each one
/// that is done.
pub(crate) fn s3(context: &mut Context) -> Result<()> {
    let programs = needs::python(context)?;
    let server = S3Server::start(context, &programs, "s3")?;
    context.set("FREESTONE_STORE", "s3://freestone-ci/run");
    // Both prefixes: tests of any store, and those of S3.
    context.ignored_tests("store_", &["s3_"])?;

    let proxy = faulty_proxy(context, &server.endpoint)?;
    context.set("AWS_ENDPOINT", &proxy.endpoint);
    context.set("FREESTONE_STORE", "s3://freestone-ci/faulty");
    again(context, &["sessions"], "s3-faulty")?;
    print!("{}", proxy.stop()?);
    Ok(())
}

fn faulty_proxy(context: &Context, endpoint: &str) -> Result<FaultyProxy> {
    run(context.cargo(["build", "--release", "--workspace", "--bin", "freestone-store-proxy"]))?;
    let faults = ["--slow-down", "0.01", "--fail", "0.01", "--lose", "0.01"];
    let faults = [&faults[..], &["--lose-conditional", "1"]].concat();
    FaultyProxy::start(context, endpoint, &faults)
}

/// Runs the tests of any store on another server than the suite `s3`.
fn again(context: &mut Context, programs: &[&str], name: &str) -> Result<()> {
    let tests = context.ignored_tests_command(programs, "store_", &[]);
    let log = tee(tests, &context.out.join(format!("{name}.log")))?;
    context.passed(TestCounts::of(&log).passed);
    Ok(())
}

/// The programs with tests of any store.
const STORE_TESTS: [&str; 2] = ["end_to_end", "sessions"];

/// The tests of the suite `s3` on Google Cloud Storage, and HTTP with ranges.
pub(crate) fn stores(context: &mut Context) -> Result<()> {
    let programs = needs::python(context)?;
    let google = Server::python(context, &programs, "google", &["gs"])?;
    set_google_environment(context, &google.endpoint);
    context.set("FREESTONE_STORE", "gs://freestone-ci/run");
    context.set("FREESTONE_HTTP", format!("{}/freestone-ci/run", google.endpoint));
    context.ignored_tests("http_", &[])?;
    again(context, &STORE_TESTS, "gs")
}

/// The tests of the suite `s3` on Azure Blob Storage and on S3 with signatures, and the tests of
/// sessions through the proxy. Credentials expire during a run.
pub(crate) fn clouds(context: &mut Context) -> Result<()> {
    let programs = needs::python(context)?;
    let node = needs::azurite(context)?;
    let signed = Server::python(context, &programs, "s3-signed", &["s3", "100"])?;
    set_s3_environment(context, &signed.endpoint);
    // The server's rule for secrets.
    context.set("AWS_SECRET_ACCESS_KEY", "secret-test");
    context.set("FREESTONE_STORE", "s3://freestone-ci/run");
    again(context, &STORE_TESTS, "s3-signed")?;
    expiring_credentials(context)?;

    let azure = Server::azurite(context, &node, &programs)?;
    set_azure_environment(context, &azure.endpoint);
    context.set("FREESTONE_STORE", "az://freestone-ci/run");
    again(context, &STORE_TESTS, "az")?;
    let proxy = faulty_proxy(context, &azure.endpoint)?;
    set_azure_environment(context, &proxy.endpoint);
    context.set("FREESTONE_STORE", "az://freestone-ci/faulty");
    again(context, &["sessions"], "az-faulty")?;
    print!("{}", proxy.stop()?);

    let google = Server::python(context, &programs, "google", &["gs"])?;
    let proxy = faulty_proxy(context, &google.endpoint)?;
    set_google_environment(context, &proxy.endpoint);
    context.set("FREESTONE_STORE", "gs://freestone-ci/faulty");
    again(context, &["sessions"], "gs-faulty")?;
    print!("{}", proxy.stop()?);
    Ok(())
}

/// Computes from and to S3 with credentials that the server refuses after 100 requests each, and
/// compares the results with those of a local run.
fn expiring_credentials(context: &mut Context) -> Result<()> {
    let folder = context.out.join("expiring");
    remove_dir(&folder)?;
    fs::create_dir_all(&folder)?;
    let aws = folder.join("aws");
    fs::write(&aws, AWS_COMMAND)?;
    fs::set_permissions(&aws, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let path = std::env::var("PATH")?;
    context.set("PATH", format!("{}:{path}", folder.display()));
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        context.set(name, "");
    }
    context.set("AWS_PROFILE", "expiring");
    run(context.cargo(["build", "--release", "--workspace", "--bin", "freestone"]))?;
    let freestone = |context: &Context, arguments: &[&str]| {
        let mut command = context.command(context.program("freestone"));
        command.args(arguments);
        run(command)
    };
    let (local, remote) = (folder.display().to_string(), "s3://freestone-ci/expiring");
    let u = "examples/data/winds-v3.zarr/u";
    let chunks = ["--chunks", "1,10,20"];
    freestone(context, &[&["rechunk", u, &format!("{remote}/u")], &chunks[..]].concat())?;
    freestone(context, &[&["rechunk", u, &format!("{local}/u")], &chunks[..]].concat())?;
    let work = format!("{remote}/work");
    for (root, work_dir) in [(remote, work.as_str()), (local.as_str(), local.as_str())] {
        let (input, output) = (format!("u={root}/u"), format!("{root}/means"));
        let compute = ["compute", "mean(u*u, axis=0)", "-i", &input, "-o", &output];
        freestone(context, &[&compute[..], &["--work-dir", work_dir]].concat())?;
    }
    for (root, copy) in [(remote, "fetched"), (local.as_str(), "expected")] {
        let (source, target) = (format!("{root}/means"), format!("{local}/{copy}"));
        freestone(context, &["rechunk", &source, &target, "--chunks", "73,144"])?;
    }
    let mut diff = context.command("diff");
    diff.args(["-r", &format!("{local}/expected"), &format!("{local}/fetched")]);
    run(diff)?;
    let n_keys = fs::read_to_string(folder.join("aws.n"))?.lines().count();
    if n_keys < 5 {
        return Err(format!("credentials were renewed only {n_keys} times").into());
    }
    context.passed(1);
    Ok(())
}

/// An `aws` command that prints new credentials at each call, which do not state their expiry.
const AWS_COMMAND: &str = r#"#!/bin/sh
echo >>"$0.n"
key=temporary-$(wc -l <"$0.n")
echo "{\"AccessKeyId\": \"$key\", \"SecretAccessKey\": \"secret-$key\", \
\"SessionToken\": \"token-$key\"}"
"#;

/// AWS Lambda: the template; the package; the worker in the emulator where that needs memory
/// cgroups or an S3 server; and ministack's Lambda. Every plan of the suite `memory` runs in
/// environments of exactly its projection.
///
/// The log has the duration of starts. They have a limit only in `freestone-bench bars --only
/// starts`, since machines differ.
pub(crate) fn lambda(context: &mut Context) -> Result<()> {
    let programs = needs::python(context)?;
    let mut lint = context.command(programs.join("cfn-lint"));
    lint.arg("lambda/template.yaml");
    run(lint)?;
    context.passed(1);
    let package = package_lambda(context)?;
    context.passed(1);

    let cgroup = Cgroup::new()?;
    let server = S3Server::start(context, &programs, "s3,lambda")?;
    let python = programs.join("python");
    let mut deploy = context.command(&python);
    deploy.arg("tests/interop/lambda_deploy.py").arg(&server.endpoint).arg(package);
    run(deploy)?;
    context.set("FREESTONE_CGROUP", &cgroup.folder);
    context.set("FREESTONE_STORE", "s3://freestone-ci/run");
    context.set("FREESTONE_SECOND_LAMBDA", &server.endpoint);
    context.set("FREESTONE_PYTHON", python);
    // Tests start this client. `cargo test --test` builds no examples.
    let mut client = context.cargo(["build", "--release", "--workspace"]);
    client.args(["--example", "test_client"]);
    run(client)?;
    let test_programs = ["worker", "emulator", "end_to_end"];
    let log = context.ignored_tests_of(&test_programs, "lambda_", &["--nocapture"])?;
    context.passed(sum_rows(&log));

    let mut starts = context.cargo(["test", "--release", "--workspace", "--test", "worker"]);
    starts.args(["start_times_are_printed", "--", "--nocapture"]);
    let output = stdout_of(starts)?;
    let lines: Vec<&str> = output.lines().filter(|line| line.contains("cold start")).collect();
    if lines.is_empty() {
        return Err("the test `start_times_are_printed` printed no cold start".into());
    }
    println!("{}", lines.join("\n"));
    Ok(())
}

/// Builds the package as the other suites build it, so that nothing is compiled again.
fn package_lambda(context: &Context) -> Result<std::path::PathBuf> {
    let programs = ["--bin", "bootstrap", "--bin", "freestone"];
    let mut build = context.cargo(["build", "--release", "--workspace"]);
    build.args(programs);
    run(build)?;
    let package = context.out.join("freestone.zip");
    let mut command = context.command(context.program("freestone"));
    command.args(["lambda", "package", "--bootstrap"]).arg(context.program("bootstrap"));
    command.arg("--output").arg(&package);
    run(command)?;
    let bytes = fs::metadata(&package)?.len();
    if bytes >= 12_000_000 {
        return Err(format!("the package has {bytes} bytes: expected less than 12 MB").into());
    }
    Ok(package)
}

/// Random plans under random faults, and a driver that is killed. The log has the count of each
/// fault and the times of the kills.
pub(crate) fn faults(context: &mut Context) -> Result<()> {
    context.set("FREESTONE_FAULT_CASES", "200");
    let log = context.ignored_tests("faults_", &["--nocapture", "--test-threads=1"])?;
    context.passed(sum_cases(&log));
    Ok(())
}

/// Reports of real runs in Chromium, as a phone and as a desktop show them, light and dark. Pages
/// and screenshots are in `target/ci/browser`.
pub(crate) fn browser(context: &mut Context) -> Result<()> {
    let mut needed = vec![("chromium", "chromium"), ("chromedriver", "chromium-driver")];
    needed.extend([("python3", "python3")]);
    needs::packages(context, &needed)?;
    let folder = context.out.join("browser");
    remove_dir(&folder)?;
    fs::create_dir_all(&folder)?;
    context.set("FREESTONE_BROWSER", &folder);
    context.ignored_tests("browser_", &[])?;
    let mut pages = Vec::new();
    for entry in fs::read_dir(&folder)? {
        pages.push(entry?.path());
    }
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "html"));
    pages.sort();
    let mut check = context.command("python3");
    check.arg("tests/browser/check.py").arg(&folder).args(pages);
    let output = tee(check, &context.out.join("browser.log"))?;
    context.passed(count_ok(&output));
    Ok(())
}
