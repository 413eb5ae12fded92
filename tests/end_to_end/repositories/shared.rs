//! Shared sessions, joined by id: independent programs, writers that are killed and start again,
//! conflicting arrays.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use freestone::sessions::{
    Closed, CommitOptions, Error as RepositoryError, MAIN, Rebase, Repository, SessionState,
};
use freestone::{Array, Error, ExitCode, RunOptions, Serial, Session};

use super::{id_of, n_snapshots, ramp, repository, values};
use crate::command::{freestone_in, stdout};
use crate::support::{BINARY, Place, WINDS_V3, tree};

/// Serves a folder's metadata. Requests for a chunk are reported to the test and never answered.
fn serve_no_chunks(folder: &'static str) -> (String, Receiver<()>) {
    fn answer(mut stream: TcpStream, folder: &str, asked: &Sender<()>) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        for line in lines.by_ref() {
            if line?.is_empty() {
                break;
            }
        }
        let path = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
        if path.contains("/c/") {
            let _ = asked.send(());
            // Wait until the client disconnects.
            return lines.try_for_each(|line| line.map(drop));
        }
        match fs::read(Path::new(folder).join(path)) {
            Ok(bytes) => {
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    bytes.len()
                )?;
                if request.starts_with("HEAD") { Ok(()) } else { stream.write_all(&bytes) }
            }
            Err(_) => write!(
                stream,
                "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            ),
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (asked, heard) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let asked = asked.clone();
            std::thread::spawn(move || answer(stream, folder, &asked));
        }
    });
    (url, heard)
}

/// Eight programs that know only the repository and the id. One is killed half-way and started
/// again. The result is one commit with all values.
#[test]
fn programs_join_by_id_and_one_is_killed() {
    let place = Place::quick();
    let run = |arguments: &[&str]| freestone_in(&place, &[], arguments);
    let id = id_of(&run(&["session", "create", "--repository", "r", "-m", "by eight"]));
    let compute = |n: usize, inputs: &str| {
        let mut command = Command::new(BINARY);
        command
            .current_dir(place.folder.path())
            .env("NO_PROXY", "127.0.0.1")
            .env("no_proxy", "127.0.0.1")
            .env("FREESTONE_WORK_DIR", place.at(&format!("work-{n}")))
            .args([
                "compute",
                &format!("u * {n}"),
                "-i",
                &format!("u={inputs}/u"),
                "-o",
                &format!("all/u{n}"),
                "--chunks",
                "1,10,10",
            ])
            .args(["--repository", "r", "--session", &id, "--executor", "threads"])
            .stdout(Stdio::null());
        command.spawn().unwrap()
    };
    let (stalled, asked) = serve_no_chunks(WINDS_V3);
    let mut children: Vec<_> =
        (0..8).map(|n| compute(n, if n == 3 { &stalled } else { WINDS_V3 })).collect();
    // The program has joined, and waits for its first chunk.
    asked.recv_timeout(Duration::from_secs(300)).expect("it asks for a chunk");
    children[3].kill().unwrap();
    let refused = run(&["session", "commit", &id, "--repository", "r"]);
    for (n, mut child) in children.into_iter().enumerate() {
        assert_eq!(child.wait().unwrap().success(), n != 3, "{n}");
    }
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(5) && text.contains("open writers"), "{text}");
    let text = stdout(&run(&["session", "status", &id, "--repository", "r"]));
    assert!(
        text.lines().any(|l| l.contains("compute-all-u3") && l.ends_with(": 0 chunks, open")),
        "{text}"
    );
    assert!(compute(3, WINDS_V3).wait().unwrap().success());
    let snapshot = id_of(&run(&["session", "commit", &id, "--repository", "r"]));
    let repository = Repository::open(&place.at("r")).unwrap();
    assert_eq!(n_snapshots(&repository), 2);
    assert_eq!(repository.resolve(&MAIN.into()).unwrap(), snapshot);
    let spec = place.spec();
    let u = freestone::compute::<f32>(&freestone::open(format!("{WINDS_V3}/u")).unwrap(), &spec)
        .unwrap();
    for n in 0..8 {
        let found = freestone::compute::<f32>(
            &freestone::open_version(&repository, MAIN, &format!("all/u{n}")).unwrap(),
            &spec,
        )
        .unwrap();
        assert_eq!(found, &u * n as f32, "{n}");
    }
    // A committed session cannot be joined.
    let late = freestone_in(
        &place,
        &[],
        &[
            "compute",
            "u",
            "-i",
            &format!("u={WINDS_V3}/u"),
            "-o",
            "late",
            "--repository",
            "r",
            "--session",
            &id,
        ],
    );
    assert_eq!(late.status.code(), Some(5));
    assert!(
        String::from_utf8_lossy(&late.stderr)
            .contains(&format!("committed as snapshot {snapshot}"))
    );
}

/// A writer that starts again with other metadata replaces its earlier work. Incomplete records of
/// a killed writer are ignored.
#[test]
fn restarted_writers_replace_their_work() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let shared = repository.create_session(MAIN, "again", None).unwrap();
    for n in [60.0, 20.0] {
        let mut session = Session::joined(shared.join("w").unwrap());
        session.store(&ramp(n), "g/a").unwrap();
        session.commit("", &spec).unwrap();
    }
    // The state of a run killed while it writes records: the batches exist, the final record is
    // missing.
    let mut session = Session::joined(shared.join("dead").unwrap());
    session.store(&ramp(30.0), "g/b").unwrap();
    session.commit("", &spec).unwrap();
    let receipts =
        place.at(&format!("repository/_freestone/sessions/{}/receipts/dead", shared.id()));
    let last = tree(&receipts).into_keys().last().unwrap();
    assert!(last.ends_with("-0.json"), "{last}");
    fs::remove_file(format!("{receipts}/{last}")).unwrap();
    shared.join("dead").unwrap().close().unwrap();
    shared.commit().unwrap();
    assert_eq!(values(&repository, MAIN, "g/a", &spec).sum(), 190.0);
    assert!(freestone::open_version(&repository, MAIN, "g/b").is_err());
}

/// No node can be inside an array, in any order of writers.
#[test]
fn arrays_contain_no_nodes() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let shared = repository.create_session(MAIN, "inside", None).unwrap();
    for path in ["m", "m/n"] {
        let mut session = Session::joined(shared.join(&path.replace('/', "-")).unwrap());
        session.store(&ramp(20.0), path).unwrap();
        session.commit("", &spec).unwrap();
    }
    let error = shared.commit().unwrap_err().to_string();
    assert!(
        error.contains("`m` is created as an array, which cannot contain other nodes"),
        "{error}"
    );
    // One writer withdraws its array, and the work of the other is kept.
    shared.join("m").unwrap().retract().unwrap();
    shared.commit().unwrap();
    assert_eq!(values(&repository, MAIN, "m/n", &spec).sum(), 190.0);
    for (first, second) in [("p", "p/q"), ("r/s", "r")] {
        let mut sessions: Vec<Session> =
            [first, second].iter().map(|_| Session::begin(&repository, MAIN).unwrap()).collect();
        sessions[0].store(&ramp(20.0), first).unwrap();
        sessions[1].store(&ramp(20.0), second).unwrap();
        let mut late = sessions.pop().unwrap();
        sessions.pop().unwrap().commit("first", &spec).unwrap();
        let rebase =
            CommitOptions { rebase: Rebase::Disjoint { attempts: 5 }, ..CommitOptions::default() };
        let error =
            late.commit_with("second", &spec, &Serial, rebase, &RunOptions::default()).unwrap_err();
        assert!(
            error.to_string().contains("also changed") && error.exit_code() == ExitCode::Conflict,
            "{error}"
        );
    }
}

/// Each array of a shared session is created by one participant.
#[test]
fn participants_create_arrays() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let shared = repository.create_session(MAIN, "two", None).unwrap();
    let add = |name: &str, path: &str, array: &Array| -> Result<freestone::RunReport, Error> {
        let mut session = Session::joined(shared.join(name)?);
        session.store(array, path)?;
        session.commit("", &spec)
    };
    assert_eq!(add("one", "g/a", &ramp(30.0)).unwrap().snapshot, None);
    add("two", "g/b", &ramp(20.0)).unwrap();
    // The same array by the same participant replaces the first, without an error.
    add("two", "g/b", &ramp(20.0)).unwrap();
    assert!(freestone::open_version(&repository, MAIN, "g/a").is_err());
    shared.commit().unwrap();
    assert_eq!(
        values(&repository, MAIN, "g/a", &spec).sum()
            - values(&repository, MAIN, "g/b", &spec).sum(),
        435.0 - 190.0
    );
    assert!(matches!(
        shared.status().unwrap().state,
        SessionState::Closed(Closed::Committed { .. })
    ));

    // Different arrays at one path by two participants are an error, and nothing is committed.
    let shared = repository.create_session(MAIN, "clash", None).unwrap();
    for (name, n) in [("one", 30.0), ("two", 20.0)] {
        let mut session = Session::joined(shared.join(name).unwrap());
        session.store(&ramp(n), "same").unwrap();
        session.commit("", &spec).unwrap();
    }
    assert!(
        matches!(shared.commit(), Err(RepositoryError::CreatedTwice { path }) if path == "same")
    );
    // A participant whose planning fails does not block others.
    let shared = repository.create_session(MAIN, "fails", None).unwrap();
    let mut session = Session::joined(shared.join("one").unwrap());
    session.store(&ramp(30.0), "g/a").unwrap();
    assert!(
        session
            .commit("", &spec)
            .unwrap_err()
            .to_string()
            .contains("array or group `g/a` already exists")
    );
    assert!(shared.status().unwrap().joiners.iter().all(|j| !j.open && j.n_chunks == 0));
}

/// Incomplete and damaged sessions block nothing.
#[test]
fn damaged_sessions_block_nothing() {
    let place = Place::quick();
    let run =
        |arguments: &[&str]| freestone_in(&place, &[("FREESTONE_REPOSITORY", "r")], arguments);
    let half = id_of(&run(&["session", "create"]));
    fs::remove_dir_all(place.at(&format!("r/_freestone/sessions/{half}/state"))).unwrap();
    let damaged = id_of(&run(&["session", "create"]));
    for file in tree(place.at(&format!("r/_freestone/sessions/{damaged}/state"))).keys() {
        fs::write(place.at(&format!("r/_freestone/sessions/{damaged}/state/{file}")), "{").unwrap();
    }
    let text = stdout(&run(&["session", "list"]));
    assert!(text.contains(&format!("{damaged}  damaged")) && !text.contains(&half), "{text}");
    stdout(&run(&["repo", "gc", "--older-than", "1ms"]));
    stdout(&run(&["repo", "expire", "1ms"]));
    stdout(&run(&["session", "abandon", &damaged]));
    assert!(stdout(&run(&["session", "list"])).contains("abandoned"));
    let long = id_of(&run(&["session", "create"]));
    assert_eq!(
        run(&["session", "extend", &long, "18446744073709551s616ms"]).status.code(),
        Some(2)
    );
    assert!(stdout(&run(&["session", "status", &long])).contains("open"));
}
