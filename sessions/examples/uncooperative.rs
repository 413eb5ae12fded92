//! Independent processes change the same attribute. One commit succeeds, and the others read the
//! attribute again and retry.
//!
//! ```sh
//! cargo run --release -p freestone-sessions --example uncooperative -- REPOSITORY
//! ```
#![allow(clippy::print_stdout)]

use std::process::Command;
use std::time::Duration;

use freestone_sessions::{Error, Format, MAIN, Repository};
use serde_json::{Map, Value, json};

type Failed = Box<dyn std::error::Error>;

const WORKERS: u64 = 8;

fn main() -> Result<(), Failed> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, place, name] = arguments.as_slice()
        && role == "worker"
    {
        return Ok(worker(place, name)?);
    }
    let place =
        arguments.first().ok_or("name a directory or s3://BUCKET/PREFIX for the repository")?;
    let repository = Repository::open_or_create(place, Format::default())?;
    let session = repository.writable_session(MAIN)?;
    session.replace_node("work", array_of(1))?;
    session.commit("nothing done yet")?;

    let mut workers = Vec::new();
    for n in 0..WORKERS {
        workers.push(
            Command::new(std::env::current_exe()?)
                .args(["worker", repository.url(), &format!("worker-{n}")])
                .spawn()?,
        );
    }
    for mut worker in workers {
        worker.wait()?;
    }
    let done = repository.writable_session(MAIN)?.attributes("work")?["done"].clone();
    println!("{} done: {done}", done.as_array().map_or(0, Vec::len));
    Ok(())
}

/// Reads the list, appends its name, and commits. Starts again after a conflict.
fn worker(place: &str, name: &str) -> Result<(), Error> {
    let repository = Repository::open(place)?;
    loop {
        let session = repository.writable_session(MAIN)?;
        let mut attributes = session.attributes("work")?;
        let mut done =
            attributes.get("done").and_then(Value::as_array).cloned().unwrap_or_default();
        done.push(json!(name));
        attributes.insert("done".into(), done.into());
        session.set_attributes("work", &attributes)?;
        match session.commit(name) {
            Err(Error::Conflict(conflict)) => {
                println!("{name}: {conflict}");
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other.map(drop),
        }
    }
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
