//! Tests of the examples and their output.

use std::process::Command;

/// Runs an example that `cargo test` has built where no target is named, on a new directory.
#[track_caller]
fn check(name: &str, last_line: &str) {
    let binary = std::env::current_exe()
        .unwrap()
        .parent()
        .and_then(|deps| deps.parent())
        .unwrap()
        .join("examples")
        .join(name);
    assert!(
        binary.exists(),
        "{} is not built: cargo build --release -p freestone-sessions --examples",
        binary.display()
    );
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(binary).arg(folder.path().join("repository")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.lines().last().is_some_and(|l| l.starts_with(last_line)), "{text}");
}

#[test]
fn isolated() {
    check("isolated", "[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]");
}

#[test]
fn forked() {
    check("forked", "[0.0, 1.0, 4.0, 9.0]");
}

#[test]
fn shared_by_id() {
    check("shared_by_id", "[0.0, 1.0, 4.0, 9.0]");
}

#[test]
fn shared_state() {
    check("shared_state", "[0.0, 1.0, 4.0, 9.0]");
}

#[test]
fn uncooperative() {
    check("uncooperative", "8 done: [");
}
