//! A kernel that copies its block, and does something besides.

use std::fs;
use std::time::Duration;

use freestone_lambda::{Block, BlockMut, UserKernel};
use serde::{Deserialize, Serialize};

/// Does what its fields say.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Odd {
    /// Sleeps so long.
    pub(crate) sleep_ms: u64,
    /// Takes so much memory that no projection knows.
    pub(crate) hog_mib: usize,
    /// Panics at the block that begins here.
    pub(crate) panic_at: Option<u64>,
    /// Appends `+` when it begins and `-` when it ends.
    pub(crate) log: Option<String>,
}

impl UserKernel for Odd {
    const NAME: &'static str = "odd";
    const VERSION: u32 = 1;

    fn scratch_bytes(&self, _inputs: &[&[usize]], _output: &[usize]) -> u64 {
        0
    }

    fn apply(
        &self,
        inputs: &[Block<'_>],
        output: &mut BlockMut<'_>,
        _scratch: &mut [u8],
    ) -> Result<(), String> {
        let log = |what: &[u8]| {
            use std::io::Write;
            let Some(path) = &self.log else { return };
            fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .unwrap()
                .write_all(what)
                .unwrap();
        };
        log(b"+");
        assert_ne!(self.panic_at, Some(inputs[0].start[0]), "it was told to panic");
        let hog = vec![1u8; self.hog_mib << 20];
        std::thread::sleep(Duration::from_millis(self.sleep_ms));
        output.bytes.copy_from_slice(inputs[0].bytes);
        std::hint::black_box(hog);
        log(b"-");
        Ok(())
    }
}
