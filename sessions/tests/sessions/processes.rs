//! Several processes with one repository. The other processes run `tests/child`.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use freestone_engine::memory::commit_bytes;
use freestone_engine::plan::lower::lower;
use freestone_engine::storage::Stores;
use freestone_ops::io::{Target, outputs};
use freestone_sessions::{CommitOptions, Error, MAIN, Receipt, Repository, Version};

use crate::support::{Place, create, info, raw, read, spec};

/// Starts the child process with a role.
fn begin(role: &str, arguments: &[&str]) -> Child {
    another(role, arguments).spawn().unwrap()
}

fn another(role: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_freestone-sessions-test-child"));
    command
        .arg(role)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    command
}

/// Waits for a child process and returns the lines that it printed.
#[track_caller]
fn end(child: Child) -> Vec<String> {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    text.lines().map(str::to_owned).collect()
}

/// Repositories work with the credentials of a profile, which the `aws` command resolves: for
/// Icechunk's objects, chunks, and records.
#[test]
#[ignore = "needs an S3 server: run by .ci/run"]
fn s3_a_profile_opens_repositories() {
    let folder = tempfile::tempdir().unwrap();
    let aws = folder.path().join("aws");
    std::fs::write(
        &aws,
        "#!/bin/sh\necho >>\"$0.asked\"\necho \
        '{\"AccessKeyId\": \"key\", \"SecretAccessKey\": \"secret\", \"SessionToken\": \"t\"}'\n",
    )
    .unwrap();
    std::fs::set_permissions(&aws, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let url = Place::store("profile").url("repository");
    let mut command = another("make", &[&url]);
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .env("AWS_PROFILE", "p");
    let child =
        command.env("PATH", format!("{}:/usr/bin:/bin", folder.path().display())).spawn().unwrap();
    assert_eq!(end(child), ["[-1.0, 7.0, -1.0] false"]);
    assert_eq!(
        std::fs::read(folder.path().join("aws.asked")).unwrap().len(),
        1,
        "the command is called once"
    );
}

const RACERS: u64 = 8;
const COMMITS: u64 = 25;

fn race_in(place: &Place) {
    let repository = place.new_repository();
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "u", &info(&[RACERS], &[1]));
    session.commit("made").unwrap();
    let racers: Vec<Child> = (0..RACERS)
        .map(|n| begin("race", &[repository.url(), &n.to_string(), &COMMITS.to_string()]))
        .collect();
    let reported: Vec<String> = racers.into_iter().flat_map(end).collect();
    assert_eq!(reported.len() as u64, RACERS * COMMITS);
    let history: Vec<String> = repository
        .history(&Version::Branch(MAIN.into()))
        .unwrap()
        .into_iter()
        .map(|s| s.id)
        .collect();
    assert_eq!(
        history.len() as u64,
        RACERS * COMMITS + 2,
        "each commit is in the history, and no other"
    );
    let lost: Vec<&String> = reported.iter().filter(|id| !history.contains(id)).collect();
    assert!(lost.is_empty(), "reported but missing: {lost:?}");
    assert_eq!(
        read(
            repository.readonly_session(&Version::Branch(MAIN.into())).unwrap().array("u").unwrap()
        ),
        [COMMITS as f32; RACERS as usize]
    );
}

#[test]
fn concurrent_commits_to_a_directory_all_succeed() {
    race_in(&Place::local());
}

#[test]
#[ignore = "needs an object store: run by .ci/run"]
fn store_concurrent_commits_all_succeed() {
    race_in(&Place::store("race"));
}

#[test]
fn eight_processes_append_to_one_list() {
    let place = Place::local();
    let repository = place.new_repository();
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "u", &info(&[1], &[1]));
    session.commit("made").unwrap();
    let names: Vec<String> = (0..8).map(|n| format!("p{n}")).collect();
    let children: Vec<Child> =
        names.iter().map(|n| begin("append", &[repository.url(), n])).collect();
    children.into_iter().for_each(|c| drop(end(c)));
    let attributes = repository.writable_session(MAIN).unwrap().attributes("u").unwrap();
    let mut done: Vec<String> = serde_json::from_value(attributes["done"].clone()).unwrap();
    done.sort_unstable();
    assert_eq!(done, names);
}

const CHUNKS_EACH: u64 = 4;

fn join_in(place: &Place) {
    let repository = place.new_repository();
    let session = repository.writable_session(MAIN).unwrap();
    let n_chunks = RACERS * CHUNKS_EACH;
    create(&session, "u", &raw(&[n_chunks * 200], &[200]));
    let shared = session.share("by eight", None).unwrap();
    let begin_join = |role: &str, n: u64| {
        begin(role, &[repository.url(), shared.id(), &n.to_string(), &CHUNKS_EACH.to_string()])
    };
    let mut killed = begin_join("join and wait half-way", 0);
    let others: Vec<Child> = (1..RACERS).map(|n| begin_join("join", n)).collect();
    others.into_iter().for_each(|c| drop(end(c)));
    // The joiner has written half of its chunks and flushed some receipts.
    let deadline = Instant::now() + Duration::from_secs(300);
    while !shared
        .status()
        .unwrap()
        .joiners
        .iter()
        .any(|j| j.name == "worker-0" && j.n_chunks > CHUNKS_EACH / 2)
    {
        assert!(Instant::now() < deadline, "{:?}", shared.status());
        std::thread::sleep(Duration::from_millis(100));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    let error = shared.commit().unwrap_err();
    assert!(
        matches!(&error, Error::OpenJoiners { joiners, .. } if *joiners == ["worker-0"]),
        "{error}"
    );
    end(begin_join("join", 0));
    let options = CommitOptions { complete: vec!["u".into()], ..CommitOptions::default() };
    shared.commit_with(&freestone_sessions::SharedCommit { options, force: false }).unwrap();
    let expect: Vec<f32> = (0..n_chunks).flat_map(|c| [c as f32; 200]).collect();
    assert_eq!(
        read(
            repository.readonly_session(&Version::Branch(MAIN.into())).unwrap().array("u").unwrap()
        ),
        expect
    );
    assert_eq!(repository.history(&Version::Branch(MAIN.into())).unwrap().len(), 2);
}

#[test]
fn eight_processes_join_and_one_is_restarted() {
    join_in(&Place::local());
}

#[test]
#[ignore = "needs an object store: run by .ci/run"]
fn store_eight_processes_join_and_one_is_restarted() {
    join_in(&Place::store("join"));
}

#[test]
fn ten_thousand_receipts_take_less_than_a_second_of_cpu_and_50_mb() {
    let place = Place::local();
    let repository = place.new_repository();
    let said = end(begin("receipts", &[repository.url(), "10000"]));
    let numbers: Vec<f64> = said[0].split(' ').map(|n| n.parse().unwrap()).collect();
    println!("10000 receipts: {:.3} s of CPU, {:.1} MB", numbers[0], numbers[1]);
    assert!(numbers[0] < 1.0 && numbers[1] < 50.0, "{said:?}");
}

/// The memory of a commit per chunk, for a new array and for one whose references are all replaced.
#[test]
fn commits_stay_within_projection() {
    for (edge, rank) in [(200_000, 1), (21, 4)] {
        let place = Place::local();
        let repository = place.new_repository();
        let session = repository.writable_session(MAIN).unwrap();
        create(&session, "u", &info(&vec![edge; rank as usize], &vec![1; rank as usize]));
        session.commit("an array").unwrap();
        for what in ["new", "replaced"] {
            let said =
                end(begin("commit", &[repository.url(), &edge.to_string(), &rank.to_string()]));
            let measured: f64 = said[0].parse().unwrap();
            println!("{} chunks, {rank} axes, {what}: {measured:.0} bytes a chunk", edge.pow(rank));
            let projected = commit_bytes(1) as f64;
            assert!(
                measured < projected && projected < 1.6 * measured,
                "{measured} bytes measured, {projected} projected"
            );
        }
    }
}

/// The planner's projection for repositories is at least the measured memory, and not much more.
#[test]
fn references_stay_within_projection() {
    for (arrays, chunks) in [(1, 10), (1, 200_000), (4, 50_000)] {
        let place = Place::local();
        let repository = place.new_repository();
        let session = repository.writable_session(MAIN).unwrap();
        let id = session.id().to_owned();
        for a in 0..arrays {
            create(&session, &format!("u{a}"), &info(&[chunks], &[1]));
            session
                .merge_receipts(
                    (0..chunks)
                        .map(|i| Receipt::object(&id, &format!("u{a}"), &[i as u32], 1000, i)),
                )
                .unwrap();
        }
        session.commit("many").unwrap();
        let said =
            end(begin("references", &[repository.url(), &arrays.to_string(), &chunks.to_string()]));
        let measured: f64 = said[0].parse().unwrap();
        let projected = projected_for(&repository, arrays);
        println!(
            "{arrays} arrays of {chunks} references: {measured:.1} MB of {projected:.1} MB \
                projected"
        );
        assert!(
            measured < projected && projected < 1.6 * measured,
            "{arrays} x {chunks}: {measured} MB measured, {projected} MB projected"
        );
    }
}

/// Returns the part for repositories, in MB, of the projection of a plan that reads the arrays.
fn projected_for(repository: &Repository, arrays: u64) -> f64 {
    let store = repository.readonly_session(&MAIN.into()).unwrap().store();
    let targets: Vec<Target> = (0..arrays)
        .map(|i| {
            Target::array(
                &freestone_ops::io::open_in(&store, &format!("u{i}")).unwrap().sum(()),
                format!("/tmp/none/sum{i}"),
            )
        })
        .collect();
    let plan = lower(&outputs(&targets, &Stores::default()).unwrap(), &spec()).unwrap();
    plan.plan().repository_mem() as f64 / 1e6
}
