//! Credentials that the `aws` command gives, in a process with an environment of its own.

// Tests say by panicking that something is wrong, also in functions that only help them.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

/// A bucket whose objects are all `here`; the key and the token that each request was signed with.
fn bucket_of_signatures() -> (String, Receiver<(String, String)>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (send, receive) = channel();
    thread::spawn(move || {
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
            send.send((key, header("x-amz-security-token:").unwrap_or_default())).unwrap();
            let fixed =
                "Last-Modified: Sun, 22 Nov 2026 20:00:00 GMT\r\nETag: \"1\"\r\nConnection: close";
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n{fixed}\r\n\r\nhere").unwrap();
        }
    });
    (url, receive)
}

/// A process that reads two objects, and a third one when it is told to. Its `aws` is a script.
struct Reader {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
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
        // The machine has no service for credentials.
        command.env("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1").envs(variables.iter().copied());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Reader { child, lines, _folder: folder }
    }

    /// What it says of its first two reads.
    fn first_two(&mut self) -> [String; 2] {
        std::array::from_fn(|_| self.lines.next().unwrap().unwrap())
    }

    /// What it says of the third, which it makes now.
    fn third(mut self) -> String {
        drop(self.child.stdin.take());
        let said = self.lines.next().unwrap().unwrap();
        assert!(self.child.wait().unwrap().success());
        said
    }

    fn all(mut self) -> [String; 3] {
        let [first, second] = self.first_two();
        [first, second, self.third()]
    }
}

/// Gives `k1`, then `k2` and so on, which expire after so many seconds.
fn counting(seconds: u64) -> String {
    format!(
        r#"[ "$*" = "configure export-credentials --format process" ] || exit 1
        echo >>"$0.n"; n=$(wc -l <"$0.n")
        at=$(date -u -d "+{seconds} seconds" +%Y-%m-%dT%H:%M:%S+00:00)
        echo "{{\"Version\": 1, \"AccessKeyId\": \"k$n\", \"SecretAccessKey\": \"s\", \"SessionToken\": \"t$n\", \"Expiration\": \"$at\"}}""#
    )
}

/// Credentials are valid for so long where they are to expire: enough for two requests to this
/// machine, however busy it is.
const VALID: u64 = 10;

#[test]
fn credentials_are_asked_for_once_and_those_of_the_environment_come_first() {
    let (url, signed) = bucket_of_signatures();
    assert_eq!(Reader::start(&counting(3600), &url, &[]).all(), ["read here"; 3]);
    assert_eq!(keys(&signed), ["k1 t1"; 3], "it is asked once");
    let of_environment =
        [("AWS_ACCESS_KEY_ID", "env"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_PROFILE", "p")];
    assert_eq!(Reader::start("exit 1", &url, &of_environment).all(), ["read here"; 3]);
    assert_eq!(keys(&signed), ["env "; 3]);
}

#[test]
fn credentials_are_asked_for_again_before_they_expire() {
    let (url, signed) = bucket_of_signatures();
    let mut reader = Reader::start(&counting(VALID), &url, &[]);
    assert_eq!(reader.first_two(), ["read here"; 2]);
    thread::sleep(Duration::from_secs(VALID + 1));
    assert_eq!(reader.third(), "read here");
    assert_eq!(keys(&signed), ["k1 t1", "k1 t1", "k2 t2"]);
}

#[test]
fn credentials_that_cannot_be_asked_for_again_are_used_until_they_expire() {
    let (url, signed) = bucket_of_signatures();
    let once = format!("[ -e \"$0.n\" ] && exit 1\n{}", counting(VALID));
    let mut reader = Reader::start(&once, &url, &[("AWS_PROFILE", "p")]);
    assert_eq!(reader.first_two(), ["read here"; 2]);
    thread::sleep(Duration::from_secs(VALID + 1));
    let said = reader.third();
    assert!(said.contains("there are no AWS credentials"), "{said}");
    assert_eq!(keys(&signed), ["k1 t1"; 2]);
}

/// The key and the token of each request so far.
fn keys(signed: &Receiver<(String, String)>) -> Vec<String> {
    signed.try_iter().map(|(key, token)| format!("{key} {token}")).collect()
}

#[test]
fn a_profile_that_gives_nothing_says_why() {
    let (url, signed) = bucket_of_signatures();
    let said = Reader::start(
        "echo 'Error: run aws sso login' >&2; exit 255",
        &url,
        &[("AWS_PROFILE", "p")],
    )
    .all();
    assert!(said.iter().all(|s| s.contains("run aws sso login true")), "{said:?}");
    let said = Reader::start("echo 'Error: run aws sso login' >&2; exit 255", &url, &[]).all();
    assert!(said.iter().all(|s| s.contains("run aws sso login; and of the machine")), "{said:?}");
    let said = Reader::start(
        "echo '{\"AccessKeyId\": 7, \"SecretAccessKey\": \"hush\"}'",
        &url,
        &[("AWS_PROFILE", "p")],
    )
    .all();
    assert!(
        said.iter().all(|s| s.contains("answers no JSON of credentials") && !s.contains("hush")),
        "{said:?}"
    );
    assert_eq!(signed.try_iter().count(), 0);
}
