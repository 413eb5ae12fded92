//! Other processes receive a ticket, write chunks and return receipts. One commit publishes all
//! chunks.
//!
//! ```sh
//! cargo run --release -p freestone-sessions --example forked -- REPOSITORY
//! ```
#![allow(clippy::print_stdout)]

use std::io::Read as _;
use std::process::{Command, Stdio};

use freestone_sessions::{Batch, CommitOptions, Format, MAIN, Repository, Ticket, Version};
use serde_json::{Map, Value, json};

type Failed = Box<dyn std::error::Error>;

const WORKERS: u64 = 4;

fn main() -> Result<(), Failed> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, chunk] = arguments.as_slice()
        && role == "worker"
    {
        return worker(chunk.parse()?);
    }
    let place =
        arguments.first().ok_or("name a directory or s3://BUCKET/PREFIX for the repository")?;
    let repository = Repository::open_or_create(place, Format::default())?;
    let session = repository.writable_session(MAIN)?;
    session.replace_node("squares", array_of(WORKERS))?;

    // A ticket contains no credentials. Each process takes its own from the environment.
    let ticket = serde_json::to_vec(&session.fork()?)?;
    let mut workers = Vec::new();
    for chunk in 0..WORKERS {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command
            .args(["worker", &chunk.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        std::io::Write::write_all(&mut child.stdin.take().ok_or("no pipe")?, &ticket)?;
        workers.push(child);
    }
    for worker in workers {
        let receipts: Batch = serde_json::from_slice(&worker.wait_with_output()?.stdout)?;
        session.merge(receipts)?;
    }
    session.commit_with(
        "squares by four",
        &CommitOptions { complete: vec!["squares".into()], ..CommitOptions::default() },
    )?;
    println!(
        "{:?}",
        floats(
            &repository
                .readonly_session(&Version::Branch(MAIN.into()))?
                .array("squares")?
                .read()?
        )
    );
    Ok(())
}

/// Reads a ticket, writes one chunk, and prints its receipt.
fn worker(chunk: u64) -> Result<(), Failed> {
    let mut ticket = Vec::new();
    std::io::stdin().read_to_end(&mut ticket)?;
    let fork = serde_json::from_slice::<Ticket>(&ticket)?.open()?;
    fork.array("squares")?.write_chunk(&[chunk], &((chunk * chunk) as f32).to_ne_bytes())?;
    println!("{}", serde_json::to_string(&fork.receipts())?);
    Ok(())
}

/// Returns the Zarr document of an array of `n` numbers in chunks of one.
fn array_of(n: u64) -> Value {
    json!({
        "zarr_format": 3, "node_type": "array", "shape": [n], "data_type": "float32",
        "fill_value": 0.0,
        "attributes": Map::new(),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    })
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).filter_map(|b| b.try_into().ok().map(f32::from_ne_bytes)).collect()
}
