//! Shared support: folders, file trees, processes, and a Zarr writer that shares no code with the
//! library.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use freestone::{Array, MemoryStore, Processes, Spec, WORKER_ARGUMENT};
use freestone_engine::storage::Store;
use serde_json::{Value, json};
use tempfile::TempDir;

pub use crate::scenarios::spec_in;

/// The path of the program `tests/child`.
pub const TEST_CHILD: &str = env!("CARGO_BIN_EXE_freestone-test-child");
pub const BINARY: &str = env!("CARGO_BIN_EXE_freestone");
pub const WINDS_V3: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/data/winds-v3.zarr");
pub const WINDS_V2: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/winds-v2.zarr");

/// A temporary folder for one test.
pub struct Place {
    pub folder: TempDir,
}

impl Place {
    pub fn new() -> Place {
        Place { folder: TempDir::new().unwrap() }
    }

    /// Creates a folder in memory, for tests that compute often, if the machine has a memory file
    /// system with enough space. Containers often have little.
    pub fn quick() -> Place {
        let has_room = rustix::fs::statvfs("/dev/shm")
            .is_ok_and(|s| s.f_bavail.saturating_mul(s.f_frsize) >= 1 << 30);
        Place {
            folder: if has_room { TempDir::new_in("/dev/shm") } else { TempDir::new() }.unwrap(),
        }
    }

    pub fn at(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Returns a small spec that is equal on all machines, with the work directory in this folder.
    pub fn spec(&self) -> Spec {
        spec_in(&self.at("work"))
    }
}

/// Returns an executor of the command's binary.
pub fn processes(n: usize) -> Processes {
    Processes::new(n, BINARY, [WORKER_ARGUMENT])
}

/// A test child in a role. It is killed when dropped.
pub struct TestChild(Child);

impl TestChild {
    pub fn start(role: &str, argument: &str) -> TestChild {
        let mut command = Command::new(TEST_CHILD);
        TestChild(
            command
                .args([role, argument])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    /// Returns the JSON lines of the child until it ends, or is killed at the first line for which
    /// `stops` returns true.
    pub fn hear(mut self, stops: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut heard = Vec::new();
        for line in BufReader::new(self.0.stdout.take().unwrap()).lines().map_while(Result::ok) {
            // The last line may be incomplete.
            let Ok(said) = serde_json::from_str::<Value>(&line) else { continue };
            let stopped = stops(&said);
            heard.push(said);
            if stopped {
                self.0.kill().unwrap();
                self.0.wait().unwrap();
            }
        }
        heard
    }
}

impl Drop for TestChild {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns all files of a folder by relative path.
pub fn tree(folder: impl AsRef<Path>) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                found.insert(
                    path.strip_prefix(root).unwrap().display().to_string(),
                    fs::read(&path).unwrap(),
                );
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder.as_ref(), folder.as_ref(), &mut found);
    found
}

/// Returns all files and folders of a folder by relative path, including empty folders.
pub fn names(folder: impl AsRef<Path>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut open = vec![folder.as_ref().to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten() {
            let path = entry.unwrap().path();
            all.push(path.strip_prefix(&folder).unwrap().display().to_string());
            if path.is_dir() {
                open.push(path);
            }
        }
    }
    all.sort_unstable();
    all
}

/// Copies a folder's files to a counting store.
pub fn in_memory(folder: &str) -> Arc<MemoryStore> {
    let store = Arc::new(MemoryStore::new());
    for (key, bytes) in tree(folder) {
        store.write(&key, &bytes).unwrap();
    }
    store
}

pub fn open_in_memory(store: &Arc<MemoryStore>, path: &str) -> Array {
    let store: Arc<dyn Store> = Arc::<MemoryStore>::clone(store);
    freestone::open_in(&store, path).unwrap()
}

/// Returns `zarr.json` of an array of plain bytes.
pub fn document(shape: &[u64], chunks: &[u64], dtype: &str) -> Value {
    json!({
        "zarr_format": 3, "node_type": "array", "shape": shape, "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": if dtype == "bool" { json!(false) } else { json!(0) },
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
    })
}

/// Returns the keys and bytes of the chunks of a regular grid, padded with zeros. `elements` are in
/// C order.
pub fn chunk_files(shape: &[u64], chunks: &[u64], elements: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
    let counts: Vec<u64> = shape.iter().zip(chunks).map(|(n, c)| n.div_ceil(*c)).collect();
    let mut files = Vec::new();
    for number in 0..counts.iter().product::<u64>() {
        let at = unravel(number, &counts);
        let mut bytes = Vec::new();
        for within in 0..chunks.iter().product::<u64>() {
            let index: Vec<u64> = unravel(within, chunks)
                .iter()
                .zip(&at)
                .zip(chunks)
                .map(|((i, c), size)| c * size + i)
                .collect();
            if index.iter().zip(shape).all(|(i, n)| i < n) {
                let flat = index.iter().zip(shape).fold(0, |flat, (i, n)| flat * n + i);
                bytes.extend_from_slice(&elements[flat as usize]);
            } else {
                bytes.extend(std::iter::repeat_n(0, elements[0].len()));
            }
        }
        let key = std::iter::once("c".to_owned())
            .chain(at.iter().map(u64::to_string))
            .collect::<Vec<_>>()
            .join("/");
        files.push((key, bytes));
    }
    files
}

/// Returns the number of chunks of a regular grid.
pub fn chunk_count(shape: &[u64], chunks: &[u64]) -> u64 {
    shape.iter().zip(chunks).map(|(n, c)| n.div_ceil(*c)).product()
}

pub fn unravel(mut flat: u64, shape: &[u64]) -> Vec<u64> {
    let mut index: Vec<u64> = shape
        .iter()
        .rev()
        .map(|n| {
            let i = flat % n;
            flat /= n;
            i
        })
        .collect();
    index.reverse();
    index
}
