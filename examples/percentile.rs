//! A kernel of one's own: percentiles of wind speed over time, on threads or in processes.
//!
//!     cargo run --release --example percentile
//!     cargo run --release --example percentile -- --executor processes --percent 50
//!
//! The library has no percentile. A kernel is a type whose fields are its parameters: it says how
//! much scratch memory it needs, and computes one block. The same `main` is the worker: it
//! registers the kernel where it calls `serve`.

// Results go to standard output.
#![allow(clippy::print_stdout)]

use std::process::ExitCode;

use clap::Parser;
use freestone::{
    Block, BlockMut, DType, Error, KernelError, KernelRegistry, OutputBlocks, Scratch, Target,
    UserKernel,
};
use freestone_cli::limits::Limits;
use serde::{Deserialize, Serialize};

#[global_allocator]
static ALLOCATOR: freestone_allocator::Allocator = freestone_allocator::Allocator;

/// The element below which a share of the others is, along the first axis, which is dropped.
///
/// A block is (times, rows, columns); the result of a block is (rows, columns). NaN, if there is
/// one, counts as largest.
#[derive(Debug, Serialize, Deserialize)]
struct Percentile {
    percent: f64,
}

impl UserKernel for Percentile {
    const NAME: &'static str = "percentile";
    const VERSION: u32 = 1;

    /// One column over time.
    fn scratch_bytes(&self, inputs: &[&[usize]], _output: &[usize]) -> u64 {
        (inputs[0][0] * size_of::<f32>()) as u64
    }

    fn apply(
        &self,
        inputs: &[Block<'_>],
        output: &mut BlockMut<'_>,
        scratch: &mut Scratch<'_>,
    ) -> Result<(), KernelError> {
        let values = inputs[0].array::<f32>()?;
        let mut out = output.array::<f32>()?;
        let n = inputs[0].shape[0];
        let at = ((n.max(1) - 1) as f64 * (self.percent / 100.0).clamp(0.0, 1.0)).round() as usize;
        let column = scratch.slice::<f32>(n)?;
        for (out, lane) in out.iter_mut().zip(values.lanes(ndarray::Axis(0))) {
            for (c, x) in column.iter_mut().zip(lane) {
                *c = *x;
            }
            let (_, found, _) = column.select_nth_unstable_by(at, f32::total_cmp);
            *out = *found;
        }
        Ok(())
    }
}

const WINDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/winds-v3.zarr");

/// Percentiles of wind speed over time.
#[derive(Parser)]
struct Arguments {
    /// A group with arrays `u` and `v` whose first axis is time.
    #[arg(long, default_value = WINDS)]
    input: String,
    /// The group of results, which is replaced.
    #[arg(long)]
    output: Option<String>,
    /// From 0, the least, to 100, the greatest.
    #[arg(long, default_value_t = 90.0)]
    percent: f64,
    #[command(flatten)]
    limits: Limits,
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(freestone::WORKER_ARGUMENT) {
        let kernels = KernelRegistry::new().with::<Percentile>();
        return match freestone::serve(&kernels) {
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
        std::env::temp_dir().join("freestone-percentile.zarr").display().to_string()
    });
    let u = freestone::open(format!("{}/u", arguments.input))?;
    let v = freestone::open(format!("{}/v", arguments.input))?;
    let speed = u.hypot(v);
    // A percentile needs all times at once: one block along the first axis.
    let mut chunks = speed.chunks()?;
    chunks[0] = speed.shape()?[0];
    let kernel = Percentile { percent: arguments.percent };
    let out = OutputBlocks::new(DType::Float32).drop_axis(0);
    let map = freestone::map_blocks(&kernel, [speed.rechunk(chunks)], &out);

    let planned =
        freestone::plan(&[Target::in_group(&map, &output, "speed").overwrite(true)], &spec)?;
    println!("{planned}");
    let report = freestone::run(&planned, &spec, &*executor)?;
    println!("{report}\n");

    let stored = freestone::open(format!("{output}/speed"))?;
    let mean: f32 = freestone::compute_scalar(&stored.mean(()), &spec)?;
    println!(
        "{}th percentile of wind speed in {output}: {:.4} in the mean over the map",
        arguments.percent, mean
    );
    Ok(())
}
