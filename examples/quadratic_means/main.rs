//! Quadratic means of winds: the means over time of u·u, u·v and v·v, from Zarr to Zarr.
//!
//!     cargo run --release --example quadratic_means
//!     cargo run --release --example quadratic_means -- --generate 4GB --allowed-mem 200MB
//!
//! The first runs on monthly winds that the repository ships; the second makes a wind field of any
//! size and runs on that.

// Results go to standard output.
#![allow(clippy::print_stdout)]

mod winds;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use freestone::{Cancel, DType, Encoding, Error, RunOptions, Target};
use freestone_cli::limits::Limits;
use freestone_cli::progress::Progress;
use winds::synthetic_winds;

#[global_allocator]
static ALLOCATOR: freestone_allocator::Allocator = freestone_allocator::Allocator;

const WINDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/winds-v3.zarr");

/// Means over time of u·u, u·v and v·v.
#[derive(Parser)]
struct Arguments {
    /// A group with arrays `u` and `v` whose first axis is time.
    #[arg(long, default_value = WINDS)]
    input: String,
    /// The group of results, which is replaced.
    #[arg(long)]
    output: Option<String>,
    /// Makes a wind field of this size first, beside the output, and runs on it.
    #[arg(long, value_parser = freestone::parse_size)]
    generate: Option<u64>,
    /// Codec of the results and of generated winds: as in zstd:3+crc32c.
    #[arg(long, default_value = "zstd")]
    codec: Encoding,
    #[command(flatten)]
    limits: Limits,
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(freestone::WORKER_ARGUMENT) {
        return match freestone::serve(&freestone::KernelRegistry::new()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        };
    }
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code() as u8)
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    let spec = arguments.limits.spec()?;
    let executor = arguments.limits.executor(&spec)?;
    let output = arguments.output.clone().unwrap_or_else(|| {
        let folder: PathBuf = std::env::temp_dir().join("freestone-quadratic-means");
        folder.join("means.zarr").display().to_string()
    });
    let cancel = Cancel::default();
    let asked = cancel.clone();
    let _ = ctrlc::set_handler(move || {
        if asked.is_cancelled() { std::process::exit(130) } else { asked.cancel() }
    });
    let progress = Progress::new();
    let options =
        RunOptions { observers: &[&progress], cancel: cancel.clone(), ..RunOptions::default() };

    let input = match arguments.generate {
        None => arguments.input.clone(),
        Some(bytes) => {
            let input = format!("{}-winds.zarr", output.trim_end_matches(".zarr"));
            let planned =
                freestone::plan(&synthetic_winds(bytes, &input, arguments.codec)?, &spec)?;
            println!("generating {} of winds in {input}", freestone::size(bytes));
            let report = freestone::run_with(&planned, &spec, &*executor, &options)?;
            println!(
                "wrote {} in {:.1} s\n",
                freestone::size(report.traffic().bytes_written),
                report.wall.as_secs_f64()
            );
            input
        }
    };
    let u = freestone::open(format!("{input}/u"))?;
    let v = freestone::open(format!("{input}/v"))?;
    let means = [("uu", (&u * &u).mean(0)), ("uv", (&u * &v).mean(0)), ("vv", (&v * &v).mean(0))];
    let targets: Vec<Target> = means
        .iter()
        .map(|(name, mean)| {
            Target::in_group(mean, &output, name).codec(arguments.codec).overwrite(true)
        })
        .collect();

    let planned = freestone::plan(&targets, &spec)?;
    println!("{}", planned.finalized());
    freestone_engine::machine::reset_peak_rss();
    let progress = Progress::new();
    let options = RunOptions { observers: &[&progress], cancel, ..RunOptions::default() };
    let report = freestone::run_with(&planned, &spec, &*executor, &options)?;
    println!("{report}\n");

    println!("sums over the maps in {output}:");
    for (name, _) in &means {
        let map = freestone::open(format!("{output}/{name}"))?;
        let sum = freestone::compute::<f64>(&map.astype(DType::Float64).sum(()), &spec)?;
        println!("  mean({}·{})  {:.4}", &name[..1], &name[1..], sum.sum());
    }
    Ok(())
}
