//! Small arrays for the tests and their child process.

use freestone_engine::grid::ChunkGrid;
use freestone_engine::kernels::{DType, Scalar};
use freestone_engine::storage::{ArrayInfo, CodecName, Encoding, Keys};
use freestone_sessions::{SessionArray, WritableSession};
use serde_json::Map;

/// Returns the description of a compressed `float32` array with a fill value of -1.
pub(crate) fn info(shape: &[u64], chunks: &[u64]) -> ArrayInfo {
    ArrayInfo {
        dtype: DType::Float32,
        fill: Scalar::from_f64(DType::Float32, -1.0),
        grid: ChunkGrid::regular(shape, chunks).unwrap(),
        stored_shape: Some(chunks.to_vec()),
        codecs: Encoding::from(CodecName::Zstd(0)).codecs(DType::Float32),
        keys: Keys::Default { separator: '/' },
        shard: None,
        window: None,
    }
}

pub(crate) fn create(session: &WritableSession, path: &str, info: &ArrayInfo) {
    session.create_array(path, info, &[], &Map::new()).unwrap();
}

pub(crate) fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect()
}

pub(crate) fn read(mut array: SessionArray) -> Vec<f32> {
    floats(&array.read().unwrap())
}
