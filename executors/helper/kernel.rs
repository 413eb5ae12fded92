//! A kernel that copies its block, with a side effect.

use std::io::Read;
use std::process::Command;

use freestone_engine::user::{Block, BlockMut, KernelError, Scratch, UserKernel};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Odd {
    /// Prints to standard output, itself and through a child process, and reads standard input.
    Prints,
    /// Panics at the block that starts at `at`.
    Panics { at: u64 },
    /// Exits its process.
    Exits,
    /// Allocates memory that is not projected.
    Hogs { bytes: usize },
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
        _scratch: &mut Scratch<'_>,
    ) -> Result<(), KernelError> {
        match self {
            Odd::Prints => {
                println!("kernel prints {:?}", inputs[0].start);
                let echo = Command::new("echo").arg("another process prints").status()?;
                let mut text = String::new();
                let n = std::io::stdin().read_to_string(&mut text)?;
                if !echo.success() || n > 0 {
                    return Err(format!("{echo}, and {n} bytes of standard input: {text}").into());
                }
            }
            Odd::Panics { at } => {
                assert!(inputs[0].start[0] != *at, "block {at} was requested to panic")
            }
            Odd::Exits => std::process::exit(3),
            Odd::Hogs { bytes } => drop(std::hint::black_box(vec![1u8; *bytes])),
        }
        output.bytes.copy_from_slice(inputs[0].bytes);
        Ok(())
    }
}
