//! Places for repositories, and small arrays.

use std::sync::Arc;

use freestone_engine::grid::ChunkGrid;
use freestone_engine::kernels::{DType, Scalar};
use freestone_engine::storage::{ArrayInfo, CodecName, Encoding, Keys, Store};
use freestone_sessions::{Format, Repository, SessionArray, WritableSession};
use serde_json::Map;

/// Where a test's repositories are.
pub(crate) struct Place {
    root: Root,
}

static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

enum Root {
    Memory(usize),
    Local(tempfile::TempDir),
    S3(String),
}

impl Place {
    pub(crate) fn memory() -> Place {
        Place { root: Root::Memory(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) }
    }

    pub(crate) fn local() -> Place {
        Place { root: Root::Local(tempfile::tempdir().unwrap()) }
    }

    /// Below what `.ci/run` says, a folder for each test.
    pub(crate) fn s3(test: &str) -> Place {
        let root = std::env::var("FREESTONE_S3").expect("FREESTONE_S3 is set by .ci/run");
        Place {
            root: Root::S3(format!(
                "{root}/sessions/{test}-{}-{:?}",
                std::process::id(),
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
            )),
        }
    }

    pub(crate) fn url(&self, name: &str) -> String {
        match &self.root {
            Root::Memory(id) => format!("memory://{name}-{id}"),
            Root::Local(folder) => folder.path().join(name).to_string_lossy().into_owned(),
            Root::S3(root) => format!("{root}/{name}"),
        }
    }

    pub(crate) fn new_repository(&self) -> Repository {
        Repository::create(&self.url("repository"), Format::default()).unwrap()
    }
}

/// A `float32` array; its fill value is -1.
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

/// The same without compression, so that chunks are as long as their values.
pub(crate) fn raw(shape: &[u64], chunks: &[u64]) -> ArrayInfo {
    ArrayInfo { codecs: Encoding::from(CodecName::None).codecs(DType::Float32), ..info(shape, chunks) }
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

/// All values of an array, as the engine opens it.
pub(crate) fn through_engine(store: &Arc<dyn Store>, path: &str) -> Vec<f32> {
    use freestone_engine::memory::Arena;
    use freestone_engine::storage::codec::Contexts;
    use freestone_engine::storage::metadata::open_array;
    use freestone_engine::storage::reader::{ChunkAccess, Desk, ShardCache, Traffic};
    let stored = open_array(store, path).unwrap();
    assert_eq!(stored.info.shape().len(), 1, "one axis is enough here");
    let access = ChunkAccess::new(Arc::clone(&stored.store), path, &stored.info).unwrap();
    let mut desk = Desk { arena: Arena::new(100_000_000), contexts: Contexts::default(), traffic: Traffic::default() };
    let mut values = Vec::new();
    for chunk in 0..stored.info.grid.n_chunks() {
        let block = access.read(&[chunk], &mut desk, &mut ShardCache::default()).unwrap();
        let n = stored.info.grid.region(&[chunk]).n_elements() as usize;
        values.extend_from_slice(&floats(block.bytes())[..n]);
    }
    values
}
