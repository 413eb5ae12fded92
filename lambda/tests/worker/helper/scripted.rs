//! A kernel that copies its block, with configurable side effects.

use std::fs;
use std::path::Path;
use std::time::Duration;

use freestone_lambda::{Block, BlockMut, KernelError, Scratch, UserKernel};
use serde::{Deserialize, Serialize};

/// The kernel's side effects. By default it has none.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Scripted {
    /// The file to which it appends `+` when it begins and `-` when it ends.
    pub(crate) log: Option<String>,
    /// The number of tasks that must have begun, by the log, before it continues.
    pub(crate) await_begun: usize,
    /// The block offset from which on it waits until a file exists.
    pub(crate) gate: Option<(u64, String)>,
    /// The time that it sleeps.
    pub(crate) sleep_ms: u64,
    /// Memory that it allocates beyond its projection.
    pub(crate) allocate_mib: usize,
    /// The offset of the block at which it panics.
    pub(crate) panic_at: Option<u64>,
}

impl Scripted {
    fn append_to_log(&self, mark: &[u8]) {
        use std::io::Write;
        let Some(path) = &self.log else { return };
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(mark).unwrap();
    }
}

/// Returns the number of tasks that have begun, by a log.
pub(crate) fn begun(log: impl AsRef<Path>) -> usize {
    fs::read(log).unwrap_or_default().iter().filter(|mark| **mark == b'+').count()
}

fn wait_until(condition: impl Fn() -> bool) {
    while !condition() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl UserKernel for Scripted {
    const NAME: &'static str = "scripted";
    const VERSION: u32 = 1;

    fn scratch_bytes(&self, _inputs: &[&[usize]], _output: &[usize]) -> u64 {
        0
    }

    fn apply(
        &self,
        inputs: &[Block<'_>],
        output: &mut BlockMut<'_>,
        _scratch: &mut Scratch<'_>,
    ) -> Result<(), KernelError> {
        self.append_to_log(b"+");
        let start = inputs[0].start[0];
        assert_ne!(self.panic_at, Some(start), "requested panic");
        let allocated = vec![1u8; self.allocate_mib << 20];
        if let Some(log) = self.log.as_ref().filter(|_| self.await_begun > 0) {
            wait_until(|| begun(log) >= self.await_begun);
        }
        if let Some((_, file)) = self.gate.as_ref().filter(|(first, _)| start >= *first) {
            wait_until(|| Path::new(file).exists());
        }
        std::thread::sleep(Duration::from_millis(self.sleep_ms));
        output.bytes.copy_from_slice(inputs[0].bytes);
        std::hint::black_box(allocated);
        self.append_to_log(b"-");
        Ok(())
    }
}
