//! `freestone rechunk`.

use clap::Args;
use freestone::{Encoding, Session, Target};
use freestone_cli::limits::Limits;
use freestone_engine::storage::split_location;

use super::Failure;
use super::commit::{CommitArgs, path};
use super::console::Console;
use super::execute::{Mode, Run, execute};
use super::observe::ObserverArgs;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Location of the array to copy
    source: String,
    /// Location of the copy
    target: String,
    /// Shape of chunks, such as 1830,13,29; required unless the array has no axes
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    chunks: Vec<u64>,
    /// Shape of shards, which store several chunks in one object
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    shards: Vec<u64>,
    /// Codec: none, lz4, zstd, zstd:LEVEL, gzip or gzip:LEVEL; append +crc32c for checksums
    #[arg(long, default_value = "zstd")]
    codec: Encoding,
    /// Replace an existing array
    #[arg(long)]
    overwrite: bool,
    /// Write to the group of a target GROUP/NAME, with coordinates and consolidated metadata
    #[arg(long)]
    consolidated: bool,
    /// Print the plan without running it
    #[arg(long)]
    plan_only: bool,
    /// With --plan-only, print the projected cost on AWS Lambda
    #[arg(long)]
    cost: bool,
    #[command(flatten)]
    observers: ObserverArgs,
    #[command(flatten)]
    commit: CommitArgs,
    #[command(flatten)]
    limits: Limits,
}

pub(crate) fn rechunk(arguments: &Arguments, console: &Console) -> Result<(), Failure> {
    let array = freestone::open(&arguments.source)?;
    if arguments.chunks.is_empty() && !array.shape()?.is_empty() {
        return Err(Failure::Usage(format!(
            "missing required argument --chunks: `{}` has shape {:?}",
            arguments.source,
            array.shape()?
        )));
    }
    let array = array.rechunk(&arguments.chunks);
    let names = [arguments.target.clone()];
    let targets = |session: Option<&Session>| {
        let target = match (arguments.consolidated, split_location(&arguments.target)) {
            _ if let Some(session) = session => session.target(&array, path(&arguments.target)?),
            (false, _) => Target::array(&array, &arguments.target),
            (true, (group, _)) if group == "." => {
                return Err(Failure::Usage(
                    "--consolidated requires a group (hint: write the target as GROUP/NAME)".into(),
                ));
            }
            (true, (group, name)) => Target::in_group(&array, &group, &name).consolidated(true),
        };
        let target =
            target.chunks(&arguments.chunks).codec(arguments.codec).overwrite(arguments.overwrite);
        Ok(vec![if arguments.shards.is_empty() {
            target
        } else {
            target.shards(&arguments.shards)
        }])
    };
    let session =
        arguments.commit.begin(&arguments.limits, &names, arguments.plan_only, &targets)?;
    let targets = targets(session.as_ref())?;
    let session = session.map(|s| arguments.commit.publishing(s, &names)).transpose()?;
    let run = Run { limits: &arguments.limits, observers: &arguments.observers, console };
    let mode =
        Mode { plan_only: arguments.plan_only, json: false, cost: arguments.cost, svg: None };
    execute(&targets, session, run, mode)
}
