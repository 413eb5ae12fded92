//! One session in one process: one commit publishes several arrays, and an old snapshot stays
//! readable.
//!
//! ```sh
//! cargo run --release -p freestone-sessions --example isolated -- REPOSITORY
//! ```
#![allow(clippy::print_stdout, clippy::single_range_in_vec_init)]

use freestone_sessions::{Error, Format, MAIN, Repository, Version};
use serde_json::{Map, Value, json};

fn main() -> Result<(), Error> {
    let place = std::env::args().nth(1).unwrap_or_else(|| "memory://isolated".into());
    let repository = Repository::open_or_create(&place, Format::default())?;

    let session = repository.writable_session(MAIN)?;
    for name in ["temperature", "pressure"] {
        session.replace_node(name, array_of(6))?;
        session.array(name)?.write_region(&[0..6], &bytes(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))?;
    }
    let first = session.commit("two arrays")?;

    // Append along the axis, in whole chunks.
    let session = repository.writable_session(MAIN)?;
    session.resize("temperature", &[9])?;
    session.array("temperature")?.write_region(&[6..9], &bytes(&[7.0, 8.0, 9.0]))?;
    session.commit("three more")?;

    for version in [Version::Snapshot(first), Version::Branch(MAIN.into())] {
        let mut temperature = repository.readonly_session(&version)?.array("temperature")?;
        println!("{:?}", floats(&temperature.read()?));
    }
    Ok(())
}

/// Returns the Zarr document of an array of `n` numbers in chunks of 3.
fn array_of(n: u64) -> Value {
    json!({
        "zarr_format": 3, "node_type": "array", "shape": [n], "data_type": "float32",
        "fill_value": 0.0,
        "attributes": Map::new(),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [3]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    })
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).filter_map(|b| b.try_into().ok().map(f32::from_ne_bytes)).collect()
}
