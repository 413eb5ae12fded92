//! Threads of one program share a session by cloning its handle.
//!
//! ```sh
//! cargo run --release -p freestone-sessions --example shared_state -- REPOSITORY
//! ```
#![allow(clippy::print_stdout)]

use freestone_sessions::{Error, Format, MAIN, Repository, Version};
use serde_json::{Map, Value, json};

type Failed = Box<dyn std::error::Error>;

const THREADS: u64 = 4;

fn main() -> Result<(), Failed> {
    let place = std::env::args().nth(1).unwrap_or_else(|| "memory://shared".into());
    let repository = Repository::open_or_create(&place, Format::default())?;
    let session = repository.writable_session(MAIN)?;
    session.replace_node("squares", array_of(THREADS))?;
    std::thread::scope(|scope| {
        let write = |chunk: u64| {
            let session = session.clone();
            move || -> Result<(), Error> {
                session
                    .array("squares")?
                    .write_chunk(&[chunk], &((chunk * chunk) as f32).to_ne_bytes())
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|chunk| scope.spawn(write(chunk))).collect();
        threads
            .into_iter()
            .try_for_each(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    session.commit("squares by four threads")?;
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
