//! `freestone rechunk`.

use clap::Args;
use freestone::limits::Limits;
use freestone::{CodecName, Target};

use super::{Failure, Mode, execute};

#[derive(Args)]
pub(crate) struct Arguments {
    /// The array to read.
    source: String,
    /// Where the new array goes.
    target: String,
    /// Elements along each axis of a chunk, as in 1830,13,29.
    #[arg(long, value_delimiter = ',', required = true)]
    chunks: Vec<u64>,
    /// Codec of the new chunks: none, lz4, zstd or zstd:LEVEL.
    #[arg(long, default_value = "zstd")]
    codec: CodecName,
    /// Replaces what is at the target.
    #[arg(long)]
    overwrite: bool,
    /// Prints the plan and runs nothing.
    #[arg(long)]
    plan_only: bool,
    #[command(flatten)]
    limits: Limits,
}

pub(crate) fn rechunk(asked: &Arguments) -> Result<(), Failure> {
    let array = freestone::open(&asked.source)?.rechunk(&asked.chunks)?;
    let target = Target::array(&array, &asked.target).chunks(&asked.chunks).codec(asked.codec).overwrite(asked.overwrite);
    execute(&[target], &asked.limits, Mode { plan_only: asked.plan_only, json: false })
}
