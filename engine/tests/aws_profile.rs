//! Credentials from the `aws` command, in child processes with their own environment and clock.

// Tests and their helpers report errors by panicking.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::SystemTime;

use freestone_engine::system::{Clock, ManualClock};
use tempfile::TempDir;

/// Serves a bucket in which every object is `here`. Returns its URL, and the key and session token
/// that signed each request.
fn signature_recording_bucket() -> (String, Receiver<(String, String)>) {
    expiring_bucket(usize::MAX)
}

/// Like [`signature_recording_bucket`]. Each key expires after a number of requests.
fn expiring_bucket(requests: usize) -> (String, Receiver<(String, String)>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (send, receive) = channel();
    thread::spawn(move || {
        let mut seen = HashMap::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let head: Vec<String> = lines.take_while(|l| !l.is_empty()).collect();
            let header = |name: &str| {
                head.iter().find_map(|l| {
                    l.to_ascii_lowercase().strip_prefix(name).map(|v| v.trim().to_owned())
                })
            };
            let signed = header("authorization:").unwrap_or_default();
            let key = signed
                .split_once("credential=")
                .and_then(|(_, rest)| rest.split_once('/'))
                .map_or_else(String::new, |(key, _)| key.to_owned());
            let n_seen: &mut usize = seen.entry(key.clone()).or_default();
            *n_seen += 1;
            send.send((key, header("x-amz-security-token:").unwrap_or_default())).unwrap();
            if *n_seen > requests {
                let body = "<Error><Code>ExpiredToken</Code></Error>";
                let len = body.len();
                write!(stream, "HTTP/1.1 400 Bad Request\r\nContent-Length: {len}\r\n").unwrap();
                write!(stream, "Connection: close\r\n\r\n{body}").unwrap();
                continue;
            }
            let fixed =
                "Last-Modified: Sun, 22 Nov 2026 20:00:00 GMT\r\nETag: \"1\"\r\nConnection: close";
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n{fixed}\r\n\r\nhere").unwrap();
        }
    });
    (url, receive)
}

/// A child process that reads objects on request. Its `aws` command is a script.
struct Reader {
    child: Child,
    commands: ChildStdin,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    _folder: TempDir,
}

impl Reader {
    fn start(script: &str, url: &str, variables: &[(&str, &str)]) -> Reader {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("aws");
        fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_freestone-engine-test-child"));
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_"))
        {
            command.env_remove(name);
        }
        command.arg("read").stdin(Stdio::piped()).stdout(Stdio::piped());
        command.env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()));
        command.envs([
            ("AWS_ENDPOINT", url),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "r"),
            ("NO_PROXY", "127.0.0.1"),
        ]);
        // No instance role is available.
        command.env("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1").envs(variables.iter().copied());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let commands = child.stdin.take().unwrap();
        Reader { child, commands, lines, _folder: folder }
    }

    /// Reads an object and returns the child's report.
    fn read(&mut self) -> String {
        writeln!(self.commands, "read a").unwrap();
        self.lines.next().unwrap().unwrap()
    }

    fn read_three_times(&mut self) -> [String; 3] {
        std::array::from_fn(|_| self.read())
    }

    /// Advances the child's clock.
    fn advance(&mut self, seconds: u64) {
        writeln!(self.commands, "advance {seconds}").unwrap();
    }

    fn end(mut self) {
        drop(self.commands);
        assert!(self.child.wait().unwrap().success());
    }
}

/// The wall-clock time of a child's clock that has not been advanced, in seconds.
fn start_seconds() -> u64 {
    let start = ManualClock::default().system_time();
    start.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// The time for which credentials of [`counting`] are valid, and the time before expiry at which
/// they are renewed.
const VALID: u64 = 3600;
const MARGIN: u64 = 300;

/// Returns a script whose `n`-th call prints the credentials `k{n}`, which expire `n` times
/// [`VALID`] seconds after the clock's start.
fn counting() -> String {
    let start = start_seconds();
    format!(
        r#"[ "$*" = "configure export-credentials --format process" ] || exit 1
        echo >>"$0.n"; n=$(wc -l <"$0.n")
        at=$(date -u -d "@$(({start} + n * {VALID}))" +%Y-%m-%dT%H:%M:%S+00:00)
        echo "{{\"Version\": 1, \"AccessKeyId\": \"k$n\", \"SecretAccessKey\": \"s\", \
            \"SessionToken\": \"t$n\", \"Expiration\": \"$at\"}}""#
    )
}

#[test]
fn credentials_are_cached_and_the_environment_takes_precedence() {
    let (url, signed) = signature_recording_bucket();
    let mut reader = Reader::start(&counting(), &url, &[]);
    assert_eq!(reader.read_three_times(), ["read here"; 3]);
    reader.end();
    assert_eq!(keys(&signed), ["k1 t1"; 3], "the command is called once");
    let variables =
        [("AWS_ACCESS_KEY_ID", "env"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_PROFILE", "p")];
    let mut reader = Reader::start("exit 1", &url, &variables);
    assert_eq!(reader.read_three_times(), ["read here"; 3]);
    reader.end();
    assert_eq!(keys(&signed), ["env "; 3]);
}

#[test]
fn credentials_are_renewed_before_they_expire() {
    let (url, signed) = signature_recording_bucket();
    let mut reader = Reader::start(&counting(), &url, &[]);
    assert_eq!(reader.read(), "read here");
    reader.advance(VALID - MARGIN - 1);
    assert_eq!(reader.read(), "read here");
    reader.advance(1);
    assert_eq!(reader.read(), "read here");
    reader.end();
    assert_eq!(keys(&signed), ["k1 t1", "k1 t1", "k2 t2"]);
}

#[test]
fn credentials_that_cannot_be_renewed_are_used_until_they_expire() {
    let (url, signed) = signature_recording_bucket();
    let once = format!("[ -e \"$0.n\" ] && exit 1\n{}", counting());
    let mut reader = Reader::start(&once, &url, &[("AWS_PROFILE", "p")]);
    assert_eq!(reader.read(), "read here");
    reader.advance(VALID - 1);
    assert_eq!(reader.read(), "read here");
    reader.advance(1);
    let error = reader.read();
    assert!(error.contains("cannot find AWS credentials"), "{error}");
    reader.end();
    assert_eq!(keys(&signed), ["k1 t1"; 2]);
}

#[test]
fn refused_credentials_are_renewed_within_the_request() {
    let (url, signed) = expiring_bucket(2);
    let mut reader = Reader::start(&counting(), &url, &[("AWS_PROFILE", "p")]);
    assert_eq!(reader.read_three_times(), ["read here"; 3]);
    reader.end();
    assert_eq!(keys(&signed), ["k1 t1", "k1 t1", "k1 t1", "k2 t2"]);
}

#[test]
fn refused_credentials_without_others_are_tried_again_later() {
    let (url, signed) = expiring_bucket(1);
    // The second call still prints the first credentials.
    let cached = r#"echo >>"$0.n"; n=$(($(wc -l <"$0.n") / 3 + 1))
        echo "{\"AccessKeyId\": \"k$n\", \"SecretAccessKey\": \"s\"}""#;
    let mut reader = Reader::start(cached, &url, &[("AWS_PROFILE", "p")]);
    assert_eq!(reader.read(), "read here");
    for _ in 0..2 {
        let error = reader.read();
        assert!(error.contains("ExpiredToken") && error.ends_with("false"), "{error}");
    }
    assert_eq!(keys(&signed), ["k1 "; 3]);
    reader.advance(60);
    assert_eq!(reader.read(), "read here");
    reader.end();
    assert_eq!(keys(&signed), ["k2 "], "the command is called again after a minute");
}

/// Returns the key and session token of each request so far.
fn keys(signed: &Receiver<(String, String)>) -> Vec<String> {
    signed.try_iter().map(|(key, token)| format!("{key} {token}")).collect()
}

#[test]
fn a_profile_without_credentials_reports_the_reason() {
    let (url, signed) = signature_recording_bucket();
    let check = |script: &str, profile: &[(&str, &str)], expected: &str| {
        let mut reader = Reader::start(script, &url, profile);
        let errors = reader.read_three_times();
        reader.end();
        let is_expected = |error: &String| error.contains(expected) && !error.contains("hush");
        assert!(errors.iter().all(is_expected), "{errors:?}");
    };
    let expired = "echo 'Error: run aws sso login' >&2; exit 255";
    let malformed = "echo '{\"AccessKeyId\": 7, \"SecretAccessKey\": \"hush\"}'";
    let profile = [("AWS_PROFILE", "p")];
    check(expired, &profile, "run aws sso login true");
    check(expired, &[], "run aws sso login; the machine's instance role");
    check(malformed, &profile, "expected credentials as JSON");
    assert_eq!(signed.try_iter().count(), 0);
}
