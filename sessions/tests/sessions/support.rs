//! Locations of the tests' repositories.

use std::sync::Arc;

use freestone_engine::kernels::DType;
use freestone_engine::spec::{Settings, Spec};
use freestone_engine::storage::{ArrayInfo, CodecName, Encoding, Store};
use freestone_sessions::{Format, Repository};

pub(crate) use crate::arrays::{bytes, create, floats, info, read};

/// The location of a test's repositories.
pub(crate) struct Place {
    root: Root,
}

static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

enum Root {
    Memory(usize),
    Local(tempfile::TempDir),
    Store(String),
}

impl Place {
    pub(crate) fn memory() -> Place {
        Place { root: Root::Memory(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) }
    }

    pub(crate) fn local() -> Place {
        Place { root: Root::Local(tempfile::tempdir().unwrap()) }
    }

    /// Returns a folder for each test below the prefix of `FREESTONE_STORE`.
    pub(crate) fn store(test: &str) -> Place {
        let root = std::env::var("FREESTONE_STORE").expect("FREESTONE_STORE is set by .ci/run");
        Place {
            root: Root::Store(format!(
                "{root}/sessions/{test}-{}-{:?}",
                std::process::id(),
                std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .unwrap()
                    .as_nanos()
            )),
        }
    }

    pub(crate) fn url(&self, name: &str) -> String {
        match &self.root {
            Root::Memory(id) => format!("memory://{name}-{id}"),
            Root::Local(folder) => folder.path().join(name).to_string_lossy().into_owned(),
            Root::Store(root) => format!("{root}/{name}"),
        }
    }

    pub(crate) fn new_repository(&self) -> Repository {
        Repository::create(&self.url("repository"), Format::default()).unwrap()
    }
}

/// Returns [`info`] without compression, so that encoded chunks have the size of their values.
pub(crate) fn raw(shape: &[u64], chunks: &[u64]) -> ArrayInfo {
    ArrayInfo {
        codecs: Encoding::from(CodecName::None).codecs(DType::Float32),
        ..info(shape, chunks)
    }
}

/// Returns a spec that does not depend on machine and environment.
pub(crate) fn spec() -> Spec {
    let settings = Settings {
        allowed_mem: Some(100_000_000),
        local_mem: Some(1_000_000_000),
        threads: Some(2),
        parallelism: Some(2),
        ..Settings::default()
    };
    settings.resolve().unwrap()
}

/// Reads all values of an array through the engine.
pub(crate) fn through_engine(store: &Arc<dyn Store>, path: &str) -> Vec<f32> {
    use freestone_engine::storage::metadata::open_array;
    use freestone_engine::storage::reader::{ChunkAccess, ShardCache, WorkerResources};
    let stored = open_array(store, path).unwrap();
    assert_eq!(stored.info.shape().len(), 1, "one axis is enough here");
    let access = ChunkAccess::new(Arc::clone(&stored.store), path, &stored.info).unwrap();
    let mut resources = WorkerResources::new(100_000_000);
    let mut values = Vec::new();
    for chunk in 0..stored.info.grid.n_chunks() {
        let block = access.read(&[chunk], &mut resources, &mut ShardCache::default()).unwrap();
        let n = stored.info.grid.region(&[chunk]).n_elements() as usize;
        values.extend_from_slice(&floats(block.bytes())[..n]);
    }
    values
}
