//! The child process of this package's tests: `freestone-sessions-test-child ROLE ARGUMENT…`.
//!
//! Prints its results, one per line. Exits with a failure if an assertion fails.

// A child process of tests panics like a test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::single_range_in_vec_init
)]

#[path = "../sessions/arrays.rs"]
mod arrays;

use std::time::{Duration, Instant};

use freestone_engine::kernels::Buffer;
use freestone_sessions::{
    CommitOptions, Error, Format, MAIN, Rebase, Receipt, Repository, SCHEME, open_store,
};
use serde_json::json;

use arrays::{bytes, create, floats, info, read};

/// The allocator of the programs, so that measurements apply to them.
#[global_allocator]
static ALLOCATOR: freestone_allocator::Allocator = freestone_allocator::Allocator;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["race", url, name, commits] => race(url, name, commits.parse().unwrap()),
        ["append", url, name] => append(url, name),
        ["make", url] => make(url),
        ["join", url, id, worker, chunks] => {
            join(url, id, worker.parse().unwrap(), chunks.parse().unwrap(), false)
        }
        ["join and wait half-way", url, id, worker, chunks] => {
            join(url, id, worker.parse().unwrap(), chunks.parse().unwrap(), true)
        }
        ["receipts", url, n] => many_receipts(url, n.parse().unwrap()),
        ["references", url, arrays, chunks] => {
            read_references(url, arrays.parse().unwrap(), chunks.parse().unwrap())
        }
        ["commit", url, edge, rank] => {
            commit_cube(url, edge.parse().unwrap(), rank.parse().unwrap())
        }
        other => panic!("unknown role: {other:?}"),
    }
}

/// Creates a repository with one array, and reads it.
fn make(url: &str) {
    let repository = Repository::create(url, Format::default()).unwrap();
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "u", &info(&[3], &[1]));
    session.array("u").unwrap().write_chunk(&[1], &bytes(&[7.0])).unwrap();
    session.commit("made").unwrap();
    let shared = repository.create_session(MAIN, "shared", None).unwrap();
    println!(
        "{:?} {}",
        read(repository.readonly_session(&MAIN.into()).unwrap().array("u").unwrap()),
        shared.id().is_empty()
    );
}

/// Commits its own chunk repeatedly, and prints each snapshot's id.
fn race(url: &str, name: &str, commits: u64) {
    let repository = Repository::open(url).unwrap();
    let chunk: u64 = name.parse().unwrap();
    let options =
        CommitOptions { rebase: Rebase::Disjoint { attempts: 200 }, ..CommitOptions::default() };
    for _ in 0..commits {
        let session = repository.writable_session(MAIN).unwrap();
        let mut u = session.array("u").unwrap();
        let before = floats(&u.read_region(&[chunk..chunk + 1]).unwrap())[0].max(0.0);
        u.write_chunk(&[chunk], &bytes(&[before + 1.0])).unwrap();
        println!("{}", session.commit_with(name, &options).unwrap());
    }
}

/// Runs a read-modify-write loop that adds its name to a list in an array's attributes.
fn append(url: &str, name: &str) {
    let repository = Repository::open(url).unwrap();
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        assert!(Instant::now() < deadline, "{name} could not commit in time");
        let session = repository.writable_session(MAIN).unwrap();
        let mut attributes = session.attributes("u").unwrap();
        let mut done =
            attributes.get("done").and_then(|d| d.as_array().cloned()).unwrap_or_default();
        done.push(json!(name));
        attributes.insert("done".into(), json!(done));
        session.set_attributes("u", &attributes).unwrap();
        match session.commit_with(
            name,
            &CommitOptions { rebase: Rebase::Disjoint { attempts: 5 }, ..CommitOptions::default() },
        ) {
            Ok(_) => return,
            Err(Error::Conflict(_)) => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => panic!("{e}"),
        }
    }
}

/// Joins a session, writes chunks, and closes. If asked to wait half-way, continues when its
/// standard input ends.
fn join(url: &str, id: &str, worker: u64, chunks: u64, waits: bool) {
    let joiner =
        Repository::open(url).unwrap().join_session(id, &format!("worker-{worker}")).unwrap();
    let mut u = joiner.array("u").unwrap();
    for i in 0..chunks {
        let chunk = worker * chunks + i;
        u.write_chunk(&[chunk], &bytes(&[chunk as f32; 200])).unwrap();
        if waits && i == chunks / 2 {
            std::io::stdin().read_line(&mut String::new()).unwrap();
        }
    }
    joiner.close().unwrap();
}

/// Returns the current and peak resident memory in MB.
fn memory() -> (f64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let of = |name: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse::<f64>()
            .unwrap()
            / 1000.0
    };
    (of("VmRSS:"), of("VmHWM:"))
}

/// Returns the CPU time of this process in seconds.
fn cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

/// Merges and commits receipts as they come from tasks. Prints the CPU time in seconds and the
/// memory in MB.
fn many_receipts(url: &str, n: u64) {
    let repository = Repository::open(url).unwrap();
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "u", &info(&[n], &[1]));
    let id = session.id().to_owned();
    let texts: Vec<String> = (0..n)
        .map(|i| serde_json::to_string(&Receipt::object(&id, "u", &[i as u32], 1000, i)).unwrap())
        .collect();
    let ((before, _), start) = (memory(), cpu());
    session.merge_receipts(texts.iter().map(|t| serde_json::from_str(t).unwrap())).unwrap();
    session
        .commit_with(
            "many",
            &CommitOptions { complete: vec!["u".into()], ..CommitOptions::default() },
        )
        .unwrap();
    println!("{} {}", cpu() - start, memory().1 - before);
}

/// Reads references of each array, some of each manifest, as a worker does. Prints the costs.
fn read_references(url: &str, arrays: u64, chunks: u64) {
    let (before, _) = memory();
    let store = open_store(&format!("{SCHEME}{url}#branch=main")).unwrap();
    for i in 0..arrays {
        for chunk in (7..chunks).step_by(10_000) {
            // The object does not exist, but the reference is read.
            let _ =
                store.read(&format!("u{i}/c/{chunk}"), None, 100_000, &mut Buffer::zeroed(100_000));
        }
    }
    println!("{}", memory().1 - before);
}

/// Returns the receipts of all chunks of a cube with `edge` chunks along each axis.
fn cube_receipts(session: &str, edge: u64, rank: u32) -> impl Iterator<Item = Receipt> {
    (0..edge.pow(rank)).map(move |i| {
        let chunk: Vec<u32> = (0..rank).map(|axis| (i / edge.pow(axis) % edge) as u32).collect();
        Receipt::object(session, "u", &chunk, 1000, i)
    })
}

/// Commits all chunks of an array, and prints the costs.
fn commit_cube(url: &str, edge: u64, rank: u32) {
    let repository = Repository::open(url).unwrap();
    let session = repository.writable_session(MAIN).unwrap();
    let id = session.id().to_owned();
    let (before, _) = memory();
    session.merge_receipts(cube_receipts(&id, edge, rank)).unwrap();
    session.commit("many").unwrap();
    println!("{}", (memory().1 - before) * 1e6 / edge.pow(rank) as f64);
}
