//! `freestone rechunk`.

use clap::Args;
use freestone::{Encoding, Session, Target};
use freestone_cli::limits::Limits;
use freestone_engine::storage::split_location;

use super::committing::{Committing, path};
use super::watching::Watching;
use super::{Failure, Mode, execute};

#[derive(Args)]
pub(crate) struct Arguments {
    /// The array to read.
    source: String,
    /// Where the new array goes.
    target: String,
    /// Elements along each axis of a chunk, as in 1830,13,29. Only an array of no axes needs none.
    #[arg(long, value_delimiter = ',')]
    chunks: Vec<u64>,
    /// Elements along each axis of a shard: so many chunks lie in one object.
    #[arg(long, value_delimiter = ',')]
    shards: Vec<u64>,
    /// Codec of the new chunks: none, lz4, zstd, zstd:LEVEL, gzip or gzip:LEVEL; with +crc32c after
    /// it, they have a checksum.
    #[arg(long, default_value = "zstd")]
    codec: Encoding,
    /// Replaces what is at the target.
    #[arg(long)]
    overwrite: bool,
    /// The target is GROUP/NAME: the group is made if it is not there, with the array's
    /// coordinates, and gets consolidated metadata.
    #[arg(long)]
    consolidated: bool,
    /// Prints the plan and runs nothing.
    #[arg(long)]
    plan_only: bool,
    /// With --plan-only, also says what it would cost on AWS Lambda.
    #[arg(long)]
    cost: bool,
    #[command(flatten)]
    watching: Watching,
    #[command(flatten)]
    committing: Committing,
    #[command(flatten)]
    limits: Limits,
}

pub(crate) fn rechunk(asked: &Arguments) -> Result<(), Failure> {
    let array = freestone::open(&asked.source)?;
    if asked.chunks.is_empty() && !array.shape()?.is_empty() {
        return Err(Failure::Usage(format!(
            "--chunks is missing: {} has shape {:?}, give a length for each axis",
            asked.source,
            array.shape()?
        )));
    }
    let array = array.rechunk(&asked.chunks);
    let names = [asked.target.clone()];
    let targets = |session: Option<&Session>| {
        let target = match (asked.consolidated, split_location(&asked.target)) {
            _ if let Some(session) = session => session.target(&array, path(&asked.target)?),
            (false, _) => Target::array(&array, &asked.target),
            (true, (group, _)) if group == "." => {
                return Err(Failure::Usage(
                    "--consolidated needs a group: write the target as GROUP/NAME".into(),
                ));
            }
            (true, (group, name)) => Target::in_group(&array, &group, &name).consolidated(true),
        };
        let target = target.chunks(&asked.chunks).codec(asked.codec).overwrite(asked.overwrite);
        Ok(vec![if asked.shards.is_empty() { target } else { target.shards(&asked.shards) }])
    };
    let session = asked.committing.begin(&asked.limits, &names, asked.plan_only, &targets)?;
    let targets = targets(session.as_ref())?;
    let session = session.map(|s| asked.committing.publishing(s, &names));
    execute(
        &targets,
        session,
        &asked.limits,
        &asked.watching,
        Mode { plan_only: asked.plan_only, json: false, cost: asked.cost, svg: None },
    )
}
