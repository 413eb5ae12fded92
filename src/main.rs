//! The `freestone` command.

use std::io::{self, Write};
use std::process;

use clap::{Parser, Subcommand};
use freestone::engine::driver::RunError;
use freestone::engine::storage::metadata::{self, MetadataError};
use freestone::engine::storage::{StoredArray, Stores, join, split_location};
use freestone::limits::Limits;
use freestone::progress::Progress;
use freestone::{Cancel, Encoding, Error, ExitCode, Options, Target, size};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Computes on arrays that are larger than memory, within a memory that is promised.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 over allowed_mem, 4 an input cannot be used, 5 something is in the way of the
/// result, 130 interrupted.
#[derive(Parser)]
#[command(name = "freestone", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Says what is stored at a location: an array's shape, dtype, chunks and codecs, or a group's arrays.
    Info {
        /// A path, file://…, s3://… or http(s)://….
        store: String,
    },
    /// Copies an array into chunks of another shape.
    Rechunk {
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
        /// Codec of the new chunks: none, lz4, zstd, zstd:LEVEL, gzip or gzip:LEVEL; with +crc32c after it, they have a checksum.
        #[arg(long, default_value = "zstd")]
        codec: Encoding,
        /// Replaces what is at the target.
        #[arg(long)]
        overwrite: bool,
        /// The target is GROUP/NAME: the group is made if it is not there, with the array's coordinates, and gets consolidated metadata.
        #[arg(long)]
        consolidated: bool,
        /// Prints the plan and runs nothing.
        #[arg(long)]
        plan_only: bool,
        #[command(flatten)]
        limits: Limits,
    },
    /// Answers a driver's requests through standard input and output.
    #[command(name = freestone::WORKER_ARGUMENT, hide = true)]
    Worker,
}

fn main() {
    let arguments = Arguments::parse();
    let code = match run(arguments.command) {
        Ok(()) => 0,
        Err(Failure::Pipe) => 0,
        Err(Failure::Usage(message)) => {
            let _ = writeln!(io::stderr(), "error: {message}");
            ExitCode::Usage as i32
        }
        Err(Failure::Freestone(error)) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            error.exit_code() as i32
        }
    };
    process::exit(code);
}

enum Failure {
    Freestone(Error),
    Usage(String),
    /// Who reads our output has gone away: nothing to say to anybody.
    Pipe,
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Freestone(error.into())
    }
}

fn say(text: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "{text}").map_err(|_| Failure::Pipe)
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Info { store } => info(&store),
        Command::Rechunk { source, target, chunks, shards, codec, overwrite, consolidated, plan_only, limits } => {
            let array = freestone::open(&source)?;
            if chunks.is_empty() && !array.shape()?.is_empty() {
                return Err(Failure::Usage(format!("--chunks is missing: {source} has shape {:?}, give a length for each axis", array.shape()?)));
            }
            let array = array.rechunk(&chunks)?;
            let target = match (consolidated, split_location(&target)) {
                (false, _) => Target::array(&array, &target),
                (true, (group, _)) if group == "." => return Err(Failure::Usage("--consolidated needs a group: write the target as GROUP/NAME".into())),
                (true, (group, name)) => Target::in_group(&array, &group, &name).consolidated(true),
            };
            let target = target.chunks(&chunks).codec(codec).overwrite(overwrite);
            let target = if shards.is_empty() { target } else { target.shards(&shards) };
            compute(&[target], &limits, plan_only)
        }
        Command::Worker => freestone::serve(io::stdin(), io::stdout()).map_err(|_| Failure::Pipe),
    }
}

fn compute(targets: &[Target], limits: &Limits, plan_only: bool) -> Result<(), Failure> {
    let spec = limits.spec()?;
    let planned = freestone::plan(targets, &spec)?;
    let said = say(&planned.plan().to_string());
    if plan_only {
        return said;
    }
    let executor = limits.executor(&spec).map_err(RunError::from)?;
    let cancel = Cancel::default();
    let asked = cancel.clone();
    // The first request ends cleanly, the second at once.
    let handler = move || if asked.is_cancelled() { process::exit(ExitCode::Interrupted as i32) } else { asked.cancel() };
    ctrlc::set_handler(handler).map_err(|e| Failure::Usage(e.to_string()))?;
    let progress = Progress::new();
    let report = freestone::run_with(&planned, &spec, &*executor, &Options { observers: &[&progress], cancel, ..Options::default() })?;
    // The work is done; that nobody hears of it is no failure.
    let _ = say(&report.to_string());
    Ok(())
}

fn info(location: &str) -> Result<(), Failure> {
    let metadata_error = |e: MetadataError| Failure::from(freestone::ArrayError::from(e));
    let (url, name) = split_location(location);
    let store = Stores::default().open(&url).map_err(freestone::ArrayError::from)?;
    match metadata::open_array(&store, &name) {
        Ok(array) => describe(&array),
        Err(MetadataError::Group { .. }) => {
            let group = metadata::open_group(&*store, &name).map_err(metadata_error)?;
            say(&format!("group {}", store.place(&name)))?;
            attributes(&group.attributes)?;
            for child in &group.children {
                match metadata::open_array(&store, &join(&name, child)) {
                    Ok(a) => say(&format!("  {child}  {} {:?} in chunks {:?}", a.info.dtype, a.info.shape(), a.info.chunk_shape()))?,
                    Err(MetadataError::Group { .. }) => say(&format!("  {child}/"))?,
                    Err(MetadataError::NoZarr { .. }) => {}
                    Err(e) => say(&format!("  {child}  cannot be read: {e}"))?,
                }
            }
            Ok(())
        }
        Err(e) => Err(metadata_error(e)),
    }
}

fn describe(array: &StoredArray) -> Result<(), Failure> {
    let info = &array.info;
    let names: Vec<&str> = array.dims.iter().map(|d| d.as_deref().unwrap_or("-")).collect();
    say(&format!("array {} (Zarr format {})", array.location(), array.format))?;
    say(&format!("  dtype   {}", info.dtype))?;
    say(&format!("  shape   {:?} ({})", info.shape(), names.join(", ")))?;
    let bytes = u64::try_from(info.n_bytes()).unwrap_or(u64::MAX);
    say(&format!("  size    {} uncompressed", size(bytes)))?;
    let chunk_bytes = info.chunk_shape().iter().fold(info.dtype.size() as u64, |p, n| p.saturating_mul(*n));
    say(&format!("  chunks  {:?} of {}, {} in all", info.chunk_shape(), size(chunk_bytes), info.grid.n_chunks()))?;
    if let Some(shard) = &info.shard {
        say(&format!("  shards  {:?} of {:?} chunks, {} in all", info.object_shape(), shard.chunks, info.objects().n_chunks()))?;
    }
    let codecs: Vec<String> = info.codecs.iter().map(|c| c["name"].as_str().unwrap_or_default().to_owned()).collect();
    say(&format!("  codecs  {}", codecs.join(", ")))?;
    say(&format!("  fill    {}", info.fill))?;
    attributes(&array.attributes)
}

fn attributes(attributes: &serde_json::Map<String, serde_json::Value>) -> Result<(), Failure> {
    attributes.iter().try_for_each(|(name, value)| say(&format!("  {name}: {value}")))
}
