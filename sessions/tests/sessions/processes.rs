//! Several processes and one repository: this test binary runs itself again, in a role.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use freestone_engine::kernels::Buffer;
use freestone_engine::memory::commit_bytes;
use freestone_engine::plan::lower::lower;
use freestone_engine::spec::{Settings, Spec};
use freestone_engine::storage::Stores;
use freestone_ops::io::{Target, outputs};
use freestone_sessions::{CommitOptions, Error, Format, MAIN, Rebase, Receipt, Repository, SCHEME, Version, open_store};
use serde_json::json;

use crate::support::{Place, bytes, create, floats, info, raw, read};

const ROLE: &str = "FREESTONE_TEST_ROLE";

/// Begins this binary again, to do one thing only.
fn begin(role: &str, arguments: &[&str]) -> Child {
    another(role, arguments).spawn().unwrap()
}

fn another(role: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "processes::another_process", "--nocapture"]).env(ROLE, role).env("FREESTONE_TEST_ARGUMENTS", arguments.join("\n"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command
}

/// What it printed in lines that begin with `>`.
fn end(child: Child) -> Vec<String> {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    // The test harness prints in the same line.
    text.lines().filter_map(|l| l.split_once('>')).map(|(_, l)| l.to_owned()).collect()
}

/// Where a process begins that [`begin`] has started; otherwise there is nothing to do.
#[test]
fn another_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let arguments = std::env::var("FREESTONE_TEST_ARGUMENTS").unwrap();
    let arguments: Vec<&str> = arguments.split('\n').collect();
    match (role.as_str(), arguments.as_slice()) {
        ("race", [url, name]) => race(url, name),
        ("append", [url, name]) => append(url, name),
        ("make", [url]) => make(url),
        ("join", [url, id, chunk]) => join(url, id, chunk.parse().unwrap(), None),
        ("join slowly", [url, id, chunk]) => join(url, id, chunk.parse().unwrap(), Some(Duration::from_secs(60))),
        ("receipts", [url]) => many_receipts(url),
        ("references", [url, arrays, chunks]) => read_references(url, arrays.parse().unwrap(), chunks.parse().unwrap()),
        ("commit", [url, edge, rank]) => commit_cube(url, edge.parse().unwrap(), rank.parse().unwrap()),
        other => panic!("{other:?}"),
    }
}

/// Makes a repository with one array, and reads it.
fn make(url: &str) {
    let repository = Repository::create(url, Format::default()).unwrap();
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "u", &info(&[3], &[1]));
    session.array("u").unwrap().write_chunk(&[1], &bytes(&[7.0])).unwrap();
    session.commit("made").unwrap();
    let shared = repository.create_session(MAIN, "shared", None).unwrap();
    println!(">{:?} {}", read(repository.readonly_session(&MAIN.into()).unwrap().array("u").unwrap()), shared.id().is_empty());
}

/// Who has a profile only, which the `aws` command knows, can use repositories: Icechunk's objects, chunks, and our records.
#[test]
#[ignore = "needs an S3 server: run by .ci/run"]
fn s3_a_profile_opens_repositories() {
    let folder = tempfile::tempdir().unwrap();
    let aws = folder.path().join("aws");
    std::fs::write(&aws, "#!/bin/sh\necho >>\"$0.asked\"\necho '{\"AccessKeyId\": \"key\", \"SecretAccessKey\": \"secret\", \"SessionToken\": \"t\"}'\n")
        .unwrap();
    std::fs::set_permissions(&aws, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let url = Place::s3("profile").url("repository");
    let mut command = another("make", &[&url]);
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY").env("AWS_PROFILE", "p");
    let child = command.env("PATH", format!("{}:/usr/bin:/bin", folder.path().display())).spawn().unwrap();
    assert_eq!(end(child), ["[-1.0, 7.0, -1.0] false"]);
    assert_eq!(std::fs::read(folder.path().join("aws.asked")).unwrap().len(), 1, "it is asked once");
}

const RACERS: u64 = 8;
const COMMITS: u64 = 25;

fn race_in(place: &Place) {
    let repository = place.new_repository();
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "u", &info(&[RACERS], &[1]));
    session.commit("made").unwrap();
    let racers: Vec<Child> = (0..RACERS).map(|n| begin("race", &[repository.url(), &n.to_string()])).collect();
    let reported: Vec<String> = racers.into_iter().flat_map(end).collect();
    assert_eq!(reported.len() as u64, RACERS * COMMITS);
    let history: Vec<String> = repository.history(&Version::Branch(MAIN.into())).unwrap().into_iter().map(|s| s.id).collect();
    assert_eq!(history.len() as u64, RACERS * COMMITS + 2, "each commit is in the history, and no other");
    let lost: Vec<&String> = reported.iter().filter(|id| !history.contains(id)).collect();
    assert!(lost.is_empty(), "reported but not there: {lost:?}");
    assert_eq!(read(repository.readonly_session(&Version::Branch(MAIN.into())).unwrap().array("u").unwrap()), [COMMITS as f32; RACERS as usize]);
}

/// Commits its own chunk again and again, and says each snapshot's id.
fn race(url: &str, name: &str) {
    let repository = Repository::open(url).unwrap();
    let chunk: u64 = name.parse().unwrap();
    let options = CommitOptions { rebase: Rebase::Disjoint { attempts: 200 }, ..CommitOptions::default() };
    for _ in 0..COMMITS {
        let session = repository.writable_session(MAIN).unwrap();
        let mut u = session.array("u").unwrap();
        let before = floats(&u.read_region(&[chunk..chunk + 1]).unwrap())[0].max(0.0);
        u.write_chunk(&[chunk], &bytes(&[before + 1.0])).unwrap();
        println!(">{}", session.commit_with(name, &options).unwrap());
    }
}

#[test]
fn racing_commits_to_a_directory_are_all_there() {
    race_in(&Place::local());
}

#[test]
#[ignore = "needs an S3 server: run by .ci/run"]
fn s3_racing_commits_are_all_there() {
    race_in(&Place::s3("race"));
}

/// The read-modify-write loop: each adds its name to a list in an array's attributes, until all are in.
fn append(url: &str, name: &str) {
    let repository = Repository::open(url).unwrap();
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        assert!(Instant::now() < deadline, "{name} never got its turn");
        let session = repository.writable_session(MAIN).unwrap();
        let mut attributes = session.attributes("u").unwrap();
        let mut done = attributes.get("done").and_then(|d| d.as_array().cloned()).unwrap_or_default();
        done.push(json!(name));
        attributes.insert("done".into(), json!(done));
        session.set_attributes("u", &attributes).unwrap();
        match session.commit_with(name, &CommitOptions { rebase: Rebase::Disjoint { attempts: 5 }, ..CommitOptions::default() }) {
            Ok(_) => return,
            Err(Error::Conflict(_)) => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn a_list_that_eight_processes_append_to_has_all_of_them() {
    let place = Place::local();
    let repository = place.new_repository();
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "u", &info(&[1], &[1]));
    session.commit("made").unwrap();
    let names: Vec<String> = (0..8).map(|n| format!("p{n}")).collect();
    let children: Vec<Child> = names.iter().map(|n| begin("append", &[repository.url(), n])).collect();
    children.into_iter().for_each(|c| drop(end(c)));
    let attributes = repository.writable_session(MAIN).unwrap().attributes("u").unwrap();
    let mut done: Vec<String> = serde_json::from_value(attributes["done"].clone()).unwrap();
    done.sort_unstable();
    assert_eq!(done, names);
}

const CHUNKS_EACH: u64 = 4;

/// Joins, writes its chunks, and closes, unless it is to wait half-way.
fn join(url: &str, id: &str, worker: u64, wait: Option<Duration>) {
    let joiner = Repository::open(url).unwrap().join_session(id, &format!("worker-{worker}")).unwrap();
    let mut u = joiner.array("u").unwrap();
    for i in 0..CHUNKS_EACH {
        let chunk = worker * CHUNKS_EACH + i;
        u.write_chunk(&[chunk], &bytes(&[chunk as f32; 200])).unwrap();
        if let Some(wait) = wait.filter(|_| i == CHUNKS_EACH / 2) {
            println!(">half-way");
            std::thread::sleep(wait);
        }
    }
    joiner.close().unwrap();
}

fn join_in(place: &Place) {
    let repository = place.new_repository();
    let session = repository.writable_session(MAIN).unwrap();
    let n_chunks = RACERS * CHUNKS_EACH;
    create(&session, "u", &raw(&[n_chunks * 200], &[200]));
    let shared = session.share("by eight", None).unwrap();
    let mut killed = begin("join slowly", &[repository.url(), shared.id(), "0"]);
    let others: Vec<Child> = (1..RACERS).map(|n| begin("join", &[repository.url(), shared.id(), &n.to_string()])).collect();
    others.into_iter().for_each(|c| drop(end(c)));
    // It has written half of its chunks, and some of its receipts are there.
    let deadline = Instant::now() + Duration::from_secs(120);
    while !shared.status().unwrap().joiners.iter().any(|j| j.name == "worker-0" && j.n_chunks > CHUNKS_EACH / 2) {
        assert!(Instant::now() < deadline, "{:?}", shared.status());
        std::thread::sleep(Duration::from_millis(100));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    let error = shared.commit().unwrap_err();
    assert!(matches!(&error, Error::OpenJoiners { joiners, .. } if *joiners == ["worker-0"]), "{error}");
    end(begin("join", &[repository.url(), shared.id(), "0"]));
    let options = CommitOptions { complete: vec!["u".into()], ..CommitOptions::default() };
    shared.commit_with(&freestone_sessions::SharedCommit { options, force: false }).unwrap();
    let expect: Vec<f32> = (0..n_chunks).flat_map(|c| [c as f32; 200]).collect();
    assert_eq!(read(repository.readonly_session(&Version::Branch(MAIN.into())).unwrap().array("u").unwrap()), expect);
    assert_eq!(repository.history(&Version::Branch(MAIN.into())).unwrap().len(), 2);
}

#[test]
fn eight_processes_join_and_one_is_killed_and_run_again() {
    join_in(&Place::local());
}

#[test]
#[ignore = "needs an S3 server: run by .ci/run"]
fn s3_eight_processes_join_and_one_is_killed_and_run_again() {
    join_in(&Place::s3("join"));
}

/// Resident memory now, and the most so far, in MB.
fn memory() -> (f64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let of = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1000.0;
    (of("VmRSS:"), of("VmHWM:"))
}

const MANY: u64 = 10_000;

/// Merges and commits receipts as they come from tasks, and says seconds and MB.
fn many_receipts(url: &str) {
    let repository = Repository::open(url).unwrap();
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "u", &info(&[MANY], &[1]));
    let id = session.id().to_owned();
    let texts: Vec<String> = (0..MANY).map(|i| serde_json::to_string(&Receipt::object(&id, "u", &[i as u32], 1000, i)).unwrap()).collect();
    let ((before, _), start) = (memory(), Instant::now());
    session.merge_receipts(texts.iter().map(|t| serde_json::from_str(t).unwrap())).unwrap();
    session.commit_with("many", &CommitOptions { complete: vec!["u".into()], ..CommitOptions::default() }).unwrap();
    println!(">{} {}", start.elapsed().as_secs_f64(), memory().1 - before);
}

#[test]
fn ten_thousand_receipts_take_less_than_a_second_and_50_mb() {
    let place = Place::local();
    let repository = place.new_repository();
    let said = end(begin("receipts", &[repository.url()]));
    let numbers: Vec<f64> = said[0].split(' ').map(|n| n.parse().unwrap()).collect();
    println!("10000 receipts: {:.3} s, {:.1} MB", numbers[0], numbers[1]);
    assert!(numbers[0] < 1.0 && numbers[1] < 50.0, "{said:?}");
}

/// Reads references of each array, some of each manifest, as a worker does, and says what that took.
fn read_references(url: &str, arrays: u64, chunks: u64) {
    let (before, _) = memory();
    let store = open_store(&format!("{SCHEME}{url}#branch=main")).unwrap();
    for i in 0..arrays {
        for chunk in (7..chunks).step_by(10_000) {
            // The object is not there, but the reference is read.
            let _ = store.read(&format!("u{i}/c/{chunk}"), None, 100_000, &mut Buffer::zeroed(100_000));
        }
    }
    println!(">{}", memory().1 - before);
}

/// Receipts of all chunks of a cube with that many along each edge.
fn cube_receipts(session: &str, edge: u64, rank: u32) -> impl Iterator<Item = Receipt> {
    (0..edge.pow(rank)).map(move |i| {
        let chunk: Vec<u32> = (0..rank).map(|axis| (i / edge.pow(axis) % edge) as u32).collect();
        Receipt::object(session, "u", &chunk, 1000, i)
    })
}

/// Commits all chunks of an array, and says what that took.
fn commit_cube(url: &str, edge: u64, rank: u32) {
    let repository = Repository::open(url).unwrap();
    let session = repository.writable_session(MAIN).unwrap();
    let id = session.id().to_owned();
    let (before, _) = memory();
    session.merge_receipts(cube_receipts(&id, edge, rank)).unwrap();
    session.commit("many").unwrap();
    println!(">{}", (memory().1 - before) * 1e6 / edge.pow(rank) as f64);
}

/// What a commit takes for each chunk: of an array that has none yet, and of one whose references are all replaced.
#[test]
fn commits_take_what_is_projected() {
    for (edge, rank) in [(200_000, 1), (21, 4)] {
        let place = Place::local();
        let repository = place.new_repository();
        let session = repository.writable_session(MAIN).unwrap();
        create(&session, "u", &info(&vec![edge; rank as usize], &vec![1; rank as usize]));
        session.commit("an array").unwrap();
        for what in ["new", "replaced"] {
            let said = end(begin("commit", &[repository.url(), &edge.to_string(), &rank.to_string()]));
            let measured: f64 = said[0].parse().unwrap();
            println!("{} chunks, {rank} axes, {what}: {measured:.0} bytes a chunk", edge.pow(rank));
            let projected = commit_bytes(1) as f64;
            assert!(measured < projected && projected < 1.6 * measured, "{measured} bytes measured, {projected} projected");
        }
    }
}

/// What the planner counts for repositories is what they take: not less, and not much more.
#[test]
fn references_take_what_is_projected() {
    for (arrays, chunks) in [(1, 10), (1, 200_000), (4, 50_000)] {
        let place = Place::local();
        let repository = place.new_repository();
        let session = repository.writable_session(MAIN).unwrap();
        let id = session.id().to_owned();
        for a in 0..arrays {
            create(&session, &format!("u{a}"), &info(&[chunks], &[1]));
            session.merge_receipts((0..chunks).map(|i| Receipt::object(&id, &format!("u{a}"), &[i as u32], 1000, i))).unwrap();
        }
        session.commit("many").unwrap();
        let said = end(begin("references", &[repository.url(), &arrays.to_string(), &chunks.to_string()]));
        let measured: f64 = said[0].parse().unwrap();
        let projected = projected_for(&repository, arrays);
        println!("{arrays} arrays of {chunks} references: {measured:.1} MB of {projected:.1} MB projected");
        assert!(measured < projected && projected < 1.6 * measured, "{arrays} x {chunks}: {measured} MB measured, {projected} MB projected");
    }
}

/// The plan's part for repositories, of a plan that reads the arrays, in MB.
fn projected_for(repository: &Repository, arrays: u64) -> f64 {
    let store = repository.readonly_session(&MAIN.into()).unwrap().store();
    let targets: Vec<Target> = (0..arrays)
        .map(|i| Target::array(&freestone_ops::io::open_in(&store, &format!("u{i}")).unwrap().sum(()).unwrap(), &format!("/tmp/none/sum{i}")))
        .collect();
    let plan = lower(&outputs(&targets, &Stores::default()).unwrap(), &Spec::load(Settings::default()).unwrap()).unwrap();
    plan.plan().repository_mem() as f64 / 1e6
}
