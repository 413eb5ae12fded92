//! Repositories and sessions by command: output, precedence of settings, errors with exit codes,
//! and files.

use std::time::Duration;
use std::{fs, thread};

use freestone::sessions::Repository;
use serde_json::{Value, json};

use super::{id_of, n_snapshots};
use crate::command::{check_failure, freestone_in, stderr, stdout};
use crate::support::{Place, WINDS_V3, tree};

#[test]
fn sessions_by_command() {
    let place = Place::quick();
    let run = |arguments: &[&str]| {
        freestone_in(
            &place,
            &[("FREESTONE_REPOSITORY", "r"), ("FREESTONE_SESSION_EXPIRY", "2h")],
            arguments,
        )
    };
    let id = id_of(&run(&["session", "create", "-m", "for a while"]));
    let status: Value =
        serde_json::from_str(&stdout(&run(&["session", "status", &id, "--json"]))).unwrap();
    let left = status["expires_ms"].as_u64().unwrap() - status["created_ms"].as_u64().unwrap();
    assert_eq!(
        (left, &status["state"], &status["message"]),
        (7_200_000, &json!("open"), &json!("for a while"))
    );
    stdout(&run(&["session", "extend", &id, "3d"]));
    stdout(&run(&["session", "join", &id, "--name", "later"]));
    let refused = run(&["session", "commit", &id]);
    assert_eq!(refused.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("has open writers: later"));
    let compute = [
        "compute",
        "u + 1",
        "-i",
        &format!("u={WINDS_V3}/u"),
        "-o",
        "u1",
        "--session",
        &id,
        "--name",
        "later",
    ];
    stdout(&run(&compute));
    let text = stdout(&run(&["session", "list"]));
    assert!(text.contains("1 writers, 0 open: for a while"), "{text}");
    let snapshot = id_of(&run(&["session", "commit", &id]));
    let log: Value = serde_json::from_str(&stdout(&run(&["repo", "log", "--json"]))).unwrap();
    assert_eq!((&log[0]["id"], &log[0]["message"]), (&json!(snapshot), &json!("for a while")));
    let branches = stdout(&run(&["repo", "branches", "--create", "other", "--tag", "v1"]));
    assert_eq!(
        branches,
        format!("branch  main  {snapshot}\nbranch  other  {snapshot}\ntag     v1  {snapshot}\n")
    );
    stdout(&run(&[
        "compute",
        "a*2",
        "-i",
        "a=icechunk+r#tag=v1/u1",
        "-o",
        "u2",
        "--branch",
        "other",
        "-m",
        "twice",
    ]));
    assert_eq!(stdout(&run(&["repo", "log", "--branch", "other"])).lines().count(), 3);
    assert_eq!(stdout(&run(&["repo", "log", "-n", "1"])).lines().count(), 1);
    assert!(stderr(&run(&["repo", "gc"])).starts_with("removed 0 chunks"));
    assert!(stderr(&run(&["repo", "expire", "30d"])).starts_with("removed 0 snapshots"));

    let gone = id_of(&run(&["session", "create", "--expires-in", "1h"]));
    stdout(&run(&["session", "abandon", &gone]));
    for arguments in [
        &["session", "extend", &gone, "1h"][..],
        &["session", "commit", &gone],
        &["session", "join", &gone, "--name", "x"],
    ] {
        let refused = run(arguments);
        assert_eq!(refused.status.code(), Some(5), "{arguments:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("abandoned"), "{arguments:?}");
    }
    let short = id_of(&run(&["session", "create", "--expires-in", "1ms"]));
    thread::sleep(Duration::from_millis(5));
    let refused = run(&["session", "commit", &short]);
    assert_eq!(refused.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("expired"));
}

/// Precedence: code, command line, environment, file, defaults.
#[test]
fn session_settings_have_a_precedence() {
    let place = Place::quick();
    fs::write(place.at("freestone.toml"), "repository = \"of-file\"\nsharing = false\n").unwrap();
    let create = |variables: &[(&str, &str)], arguments: &[&str]| {
        freestone_in(
            &place,
            variables,
            &[&["compute", "u", "-i", &format!("u={WINDS_V3}/u"), "-o", "u", "-m", "m"], arguments]
                .concat(),
        )
    };
    stdout(&create(&[], &[]));
    stdout(&create(&[("FREESTONE_REPOSITORY", "of-environment")], &[]));
    stdout(&create(
        &[("FREESTONE_REPOSITORY", "of-environment")],
        &["--repository", "of-command-line"],
    ));
    for name in ["of-file", "of-environment", "of-command-line"] {
        assert_eq!(n_snapshots(&Repository::open(&place.at(name)).unwrap()), 2, "{name}");
    }
    // Without sharing, sessions cannot be shared or joined, and have no records.
    let refused = freestone_in(&place, &[], &["session", "create"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("disabled"));
    assert!(!fs::exists(place.at("of-file/_freestone/sessions")).unwrap());
    let id = id_of(&freestone_in(&place, &[("FREESTONE_SHARING", "true")], &["session", "create"]));
    for arguments in [
        &["session", "join", &id, "--name", "x"][..],
        &["compute", "u", "-i", &format!("u={WINDS_V3}/u"), "-o", "v", "--session", &id],
    ] {
        let refused = freestone_in(&place, &[], arguments);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}");
    }
    let refused = freestone_in(&place, &[("FREESTONE_SHARING", "perhaps")], &["session", "create"]);
    assert_eq!(refused.status.code(), Some(2));
    // Without one of the arguments, nothing is committed.
    stdout(&freestone_in(
        &place,
        &[],
        &["compute", "u", "-i", &format!("u={WINDS_V3}/u"), "-o", "plain.zarr"],
    ));
    assert!(fs::exists(place.at("plain.zarr/zarr.json")).unwrap());
}

/// `--format` applies to new repositories. An existing repository has its own format.
#[test]
fn new_repositories_have_the_requested_format() {
    use freestone::sessions::Format;
    let place = Place::quick();
    let input = format!("u={WINDS_V3}/u");
    let compute = |repository: &str, more: &[&str]| {
        freestone_in(
            &place,
            &[],
            &[
                &[
                    "compute",
                    "u",
                    "-i",
                    &input,
                    "-o",
                    "u",
                    "--overwrite",
                    "--repository",
                    repository,
                ],
                more,
            ]
            .concat(),
        )
    };
    let format = |repository: &str| Repository::open(&place.at(repository)).unwrap().format();
    for (name, more, expect) in [
        ("one", &["--format", "1"][..], Format::V1),
        ("two", &["--format", "2"], Format::V2),
        ("default", &[], Format::V2),
    ] {
        stdout(&compute(name, more));
        assert_eq!(format(name), expect, "{name}");
        stdout(&compute(name, more));
        stdout(&compute(name, &[]));
    }
    let other = compute("one", &["--format", "2"]);
    assert_eq!(other.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&other.stderr).contains("repository `one` exists in format 1"));
    let u = format!("{WINDS_V3}/u");
    stdout(&freestone_in(
        &place,
        &[],
        &["rechunk", &u, "u", "--chunks", "12,20,20", "--repository", "rechunked", "--format", "1"],
    ));
    assert_eq!(format("rechunked"), Format::V1);
    id_of(&freestone_in(
        &place,
        &[],
        &["session", "create", "--repository", "shared", "--format", "1"],
    ));
    assert_eq!(format("shared"), Format::V1);
    check_failure(
        &place,
        &["session", "create", "--repository", "none", "--format", "3"],
        2,
        &["invalid repository format `3`", "expected 1 or 2"],
    );
}

/// A refused plan or expression creates no repository.
#[test]
fn a_refused_plan_creates_no_repository() {
    let place = Place::quick();
    let u = format!("{WINDS_V3}/u");
    let input = format!("u={u}");
    let new = |arguments: &[&str], code: i32| {
        check_failure(&place, &[arguments, &["--repository", "new"]].concat(), code, &[])
    };
    new(&["compute", "u", "-i", &input, "-o", "u", "--allowed-mem", "32010kB"], 3);
    new(&["compute", "u", "-i", &input, "-o", "a", "-o", "b"], 2);
    new(&["compute", "u", "u", "-i", &input, "-o", "a", "-o", "a"], 4);
    new(&["compute", "u", "-i", &input, "-o", "u", "--chunks", "1,1"], 4);
    new(&["compute", "mean(u, axis=7)", "-i", &input, "-o", "u"], 4);
    new(&["compute", "u", "-i", &input, "-o", "a/c"], 2);
    new(&["rechunk", &u, "u", "--chunks", "12,73,144", "--allowed-mem", "32100kB"], 3);
    stdout(&freestone_in(
        &place,
        &[],
        &["compute", "u", "-i", &input, "-o", "u", "--repository", "new"],
    ));
    assert_eq!(n_snapshots(&Repository::open(&place.at("new")).unwrap()), 2);
}

#[test]
fn invalid_paths_in_repositories() {
    let place = Place::quick();
    let input = format!("u={WINDS_V3}/u");
    let compute = |output: &str, more: &[&str], code: i32, says: &str| {
        check_failure(
            &place,
            &[&["compute", "u", "-i", &input, "-o", output], more].concat(),
            code,
            &[says],
        );
    };
    compute("u", &["--session", "0123", "--repository", "none"], 4, "no repository at");
    compute("u", &["--branch", "side"], 4, "no repository at");
    compute("u", &["--session", "0123", "-m", "x"], 2, "cannot be used with");
    check_failure(&place, &["info", "icechunk+none#branch=main/x"], 4, &["no repository at"]);
    check_failure(&place, &["info", "icechunk+none#main/x"], 4, &["#branch=NAME/PATH"]);
    check_failure(&place, &["repo", "log"], 4, &["freestone.icechunk"]);
    stdout(&freestone_in(&place, &[], &["compute", "u", "-i", &input, "-o", "u", "-m", "first"]));
    for path in ["a:b", "a//b", "a/c", "..", "a/zarr.json"] {
        compute(path, &["-m", "x"], 2, "in a repository: expected GROUP/NAME");
    }
    compute("v", &["-m", "x", "--branch", "side"], 4, "branch `side`");
    check_failure(
        &place,
        &["info", "icechunk+freestone.icechunk#branch=side/x"],
        4,
        &["branch `side`"],
    );
    check_failure(&place, &["session", "status", "0123456789"], 4, &["no session `0123456789`"]);
}

/// Malicious input that once had an effect.
#[test]
fn invalid_repositories() {
    let place = Place::quick();
    let input = format!("u={WINDS_V3}/u");
    fs::create_dir(place.at("other")).unwrap();
    fs::write(place.at("other/file"), "something").unwrap();
    fs::write(place.at("file"), "something").unwrap();
    for at in ["other", "file", "file/below"] {
        check_failure(
            &place,
            &["compute", "u", "-i", &input, "-o", "u", "--repository", at],
            5,
            &["use another location"],
        );
        check_failure(
            &place,
            &["session", "create", "--repository", at],
            5,
            &["use another location"],
        );
    }
    let run =
        |arguments: &[&str]| freestone_in(&place, &[("FREESTONE_REPOSITORY", "r")], arguments);
    stdout(&run(&["compute", "u", "-i", &input, "-o", "u", "-m", "m"]));
    for (arguments, code) in [
        (["--create", "main"], 5),
        (["--delete", "none"], 4),
        (["--delete", "main"], 2),
        (["--create", ""], 2),
        (["--tag", " "], 2),
    ] {
        assert_eq!(
            run(&["repo", "branches", arguments[0], arguments[1]]).status.code(),
            Some(code),
            "{arguments:?}"
        );
    }
    stdout(&run(&["repo", "branches", "--create", "side/x", "--tag", "v1"]));
    assert_eq!(run(&["repo", "branches", "--tag", "v1"]).status.code(), Some(5));
    assert!(stdout(&run(&["info", "icechunk+r#branch=side%2Fx/u"])).contains("float32"));
}

/// A commit's memory is part of the projection, and a lost record is detected.
#[test]
fn commits_of_many_chunks() {
    let place = Place::quick();
    let run =
        |arguments: &[&str]| freestone_in(&place, &[("FREESTONE_REPOSITORY", "r")], arguments);
    let compute = [
        "compute",
        "zeros((40000,)) + arange(40000)",
        "--chunks",
        "1",
        "--codec",
        "none",
        "--threads",
        "1",
    ];
    let report: Value =
        serde_json::from_str(&stdout(&run(
            &[&compute[..], &["-o", "x", "-m", "many", "--json"]].concat()
        )))
        .unwrap();
    let (peak, projected) =
        (report["peak_mem"].as_u64().unwrap(), report["projected_mem"].as_u64().unwrap());
    println!("40 000 chunks: {peak} bytes measured, {projected} projected");
    assert!(peak <= projected, "{peak} bytes measured, {projected} projected");
    let refused = run(&[&compute[..], &["-o", "y", "-m", "many", "--local-mem", "40MB"]].concat());
    assert_eq!(refused.status.code(), Some(3), "{}", String::from_utf8_lossy(&refused.stderr));

    let id = id_of(&run(&["session", "create"]));
    let u = format!("u={WINDS_V3}/u");
    stdout(&run(&["compute", "u", "-i", &u, "-o", "z", "--session", &id, "--name", "w"]));
    let receipts = place.at(&format!("r/_freestone/sessions/{id}/receipts/w"));
    fs::remove_file(format!("{receipts}/{}", tree(&receipts).into_keys().next().unwrap())).unwrap();
    let refused = run(&["session", "commit", &id]);
    assert!(
        !refused.status.success()
            && String::from_utf8_lossy(&refused.stderr).contains("1 of the 2 records"),
        "{refused:?}"
    );
    stdout(&run(&["session", "leave", &id, "--name", "w", "--drop"]));
    assert!(!run(&["session", "commit", &id]).status.success(), "nothing is left to commit");
}

/// No stored file contains the credentials of a process.
#[test]
fn credentials_are_not_stored() {
    let place = Place::quick();
    let secrets = [
        ("AWS_ACCESS_KEY_ID", "AKIASECRETKEYID"),
        ("AWS_SECRET_ACCESS_KEY", "very/secret+key"),
        ("AWS_SESSION_TOKEN", "token-of-secrets"),
    ];
    let run = |arguments: &[&str]| freestone_in(&place, &secrets, arguments);
    let id = id_of(&run(&["session", "create", "--repository", "r", "-m", "m"]));
    let input = format!("u={WINDS_V3}/u");
    stdout(&run(&[
        "compute",
        "u",
        "-i",
        &input,
        "-o",
        "a",
        "--repository",
        "r",
        "--session",
        &id,
        "--history",
        "h.jsonl",
        "--report",
        "r.html",
    ]));
    stdout(&run(&["session", "commit", &id, "--repository", "r"]));
    // A stopped run leaves its plan, journal and ticket.
    let stopped = run(&[
        "compute",
        "u",
        "-i",
        &input,
        "-o",
        "b",
        "--repository",
        "r",
        "-m",
        "m",
        "--deadline",
        "1ms",
        "--chunks",
        "1,5,5",
    ]);
    assert_eq!(stopped.status.code(), Some(124));
    let all = tree(place.folder.path());
    assert!(
        all.keys().any(|n| n.contains("_freestone/sessions")) && all.contains_key("h.jsonl"),
        "{:?}",
        all.keys()
    );
    for (name, bytes) in &all {
        for (_, secret) in secrets {
            assert!(
                !bytes.windows(secret.len()).any(|w| w == secret.as_bytes()),
                "{name} has a secret in it"
            );
        }
    }
}
