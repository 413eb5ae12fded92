//! Workers that know only the repository and a session's id write to one commit.
//!
//! ```sh
//! cargo run --release -p freestone-sessions --example shared_by_id -- REPOSITORY
//! ```
#![allow(clippy::print_stdout)]

use std::process::Command;
use std::time::Duration;

use freestone_sessions::{Format, MAIN, Repository, Version};
use serde_json::{Map, Value, json};

type Failed = Box<dyn std::error::Error>;

const WORKERS: u64 = 4;

fn main() -> Result<(), Failed> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, place, id, chunk] = arguments.as_slice()
        && role == "worker"
    {
        return worker(place, id, chunk.parse()?);
    }
    let place =
        arguments.first().ok_or("name a directory or s3://BUCKET/PREFIX for the repository")?;
    let repository = Repository::open_or_create(place, Format::default())?;

    // All joiners see arrays that were created before the session was shared.
    let session = repository.writable_session(MAIN)?;
    session.replace_node("squares", array_of(WORKERS))?;
    let shared = session.share("squares by four who joined", Some(Duration::from_secs(3600)))?;

    let mut workers = Vec::new();
    for chunk in 0..WORKERS {
        workers.push(
            Command::new(std::env::current_exe()?)
                .args(["worker", repository.url(), shared.id(), &chunk.to_string()])
                .spawn()?,
        );
    }
    for mut worker in workers {
        worker.wait()?;
    }
    for joiner in shared.status()?.joiners {
        println!(
            "{}: {} chunks, {}",
            joiner.name,
            joiner.n_chunks,
            if joiner.open { "open" } else { "closed" }
        );
    }
    shared.commit()?;
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

/// Joins under a name of its own, so that a restarted worker replaces its predecessor.
fn worker(place: &str, id: &str, chunk: u64) -> Result<(), Failed> {
    let joiner = Repository::open(place)?.join_session(id, &format!("worker-{chunk}"))?;
    joiner.array("squares")?.write_chunk(&[chunk], &((chunk * chunk) as f32).to_ne_bytes())?;
    Ok(joiner.close()?)
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
