//! Test of credentials from a profile, by a child process with an `aws` program on its path.

// A test that panics has failed.
#![cfg(feature = "lambda")]
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use freestone_worker::{Answer, Environment};
use support::{HELPER, written};

/// Answers one probe. Returns the header `authorization`.
fn answer_probe(listener: &TcpListener) -> String {
    let (mut stream, _) = listener.accept().unwrap();
    let mut input = BufReader::new(stream.try_clone().unwrap());
    let (mut authorization, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        input.read_line(&mut line).unwrap();
        match line.trim().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                value.clone_into(&mut authorization);
            }
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().unwrap();
            }
            None if line.trim().is_empty() => break,
            _ => {}
        }
    }
    input.read_exact(&mut vec![0; length]).unwrap();
    let environment = Environment {
        id: "e".into(),
        invocations: 1,
        had_plan: false,
        init_ms: 1,
        memory_bytes: 1 << 30,
        peak_bytes: 1,
    };
    let answer = Answer::Ready { environment, slots: vec![1], remaining_ms: None };
    let body = serde_json::to_string(&answer).unwrap();
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    authorization
}

#[test]
fn a_profile_signs_invocations() {
    let folder = tempfile::tempdir().unwrap();
    let context = written(folder.path());
    let aws = folder.path().join("aws");
    let credentials =
        r#"{"AccessKeyId": "key", "SecretAccessKey": "secret", "SessionToken": "token"}"#;
    fs::write(&aws, format!("#!/bin/sh\necho '{credentials}'\n")).unwrap();
    fs::set_permissions(&aws, fs::Permissions::from_mode(0o755)).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut child = Command::new(HELPER)
        .args(["probe", &url, &context.address.work_dir, &context.address.folder])
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()))
        .spawn()
        .unwrap();
    let server = std::thread::spawn(move || answer_probe(&listener));
    assert!(child.wait().unwrap().success());
    let authorization = server.join().unwrap();
    assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=key/"), "{authorization}");
}
