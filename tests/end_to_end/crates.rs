//! The layers of ARCHITECTURE.md, checked against cargo's dependency graph.

use std::process::Command;

/// Asserts that a package links none of the other packages, directly or indirectly.
#[track_caller]
fn check(package: &str, absent: &[&str]) {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let arguments =
        ["tree", "--offline", "--edges", "normal", "--prefix", "none", "--package", package];
    let output = Command::new(cargo)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let linked: Vec<&str> = tree.lines().filter_map(|l| l.split_whitespace().next()).collect();
    assert_eq!(linked[0], package);
    let found: Vec<&&str> = absent.iter().filter(|p| linked.contains(p)).collect();
    assert!(found.is_empty(), "{package} links {found:?}");
}

#[test]
fn crates_import_upwards_only() {
    check("freestone-kernels", &["freestone-engine"]);
    check(
        "freestone-engine",
        &[
            "freestone-ops",
            "freestone-executors",
            "freestone-sessions",
            "icechunk",
            "lambda_runtime",
        ],
    );
    check(
        "freestone-ops",
        &["freestone", "freestone-executors", "freestone-expr", "freestone-sessions"],
    );
    check("freestone-sessions", &["freestone", "freestone-executors", "freestone-ops"]);
    check("freestone-executors", &["freestone", "freestone-ops", "freestone-expr"]);
    check("freestone-expr", &["freestone", "freestone-executors", "freestone-sessions"]);
    check(
        "freestone-lambda",
        &["freestone", "freestone-ops", "freestone-executors", "freestone-expr"],
    );
}

#[test]
fn a_program_on_the_library_compiles_no_command_line_and_no_packaging() {
    check(
        "freestone",
        &[
            "freestone-cli",
            "freestone-expr",
            "freestone-lambda",
            "clap",
            "ctrlc",
            "indicatif",
            "annotate-snippets",
            "object",
            "zip",
        ],
    );
}

#[test]
fn only_tests_and_the_harness_link_the_emulator() {
    for package in ["freestone", "freestone-cli", "freestone-lambda", "freestone-executors"] {
        check(package, &["freestone-lambda-emulator"]);
    }
}
