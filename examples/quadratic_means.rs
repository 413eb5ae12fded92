//! Quadratic means of winds: the means over time of u·u, u·v and v·v, from Zarr to Zarr.
//!
//!     cargo run --release --example quadratic_means
//!     cargo run --release --example quadratic_means -- --generate 4GB --allowed-mem 200MB
//!
//! The first runs on monthly winds that the repository ships; the second makes a wind field of any size and runs on that.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use freestone::engine::executor::Executor;
use freestone::progress::Progress;
use freestone::{Array, Cancel, CodecName, DType, Error, Options, Processes, Serial, Settings, Spec, Target, Threads};
use ndarray::Array1;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Means over time of u·u, u·v and v·v.
#[derive(Parser)]
struct Arguments {
    /// A group with arrays `u` and `v` whose first axis is time.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/winds-v3.zarr"))]
    input: String,
    /// Where the group of results goes; it is replaced.
    #[arg(long)]
    output: Option<String>,
    /// Makes a wind field of this size first, beside the output, and runs on it.
    #[arg(long, value_parser = freestone::parse_size)]
    generate: Option<u64>,
    /// Bytes that one task may hold.
    #[arg(long, value_parser = freestone::parse_size)]
    allowed_mem: Option<u64>,
    /// Bytes that the whole process may hold.
    #[arg(long, value_parser = freestone::parse_size)]
    local_mem: Option<u64>,
    /// For intermediate results.
    #[arg(long)]
    work_dir: Option<String>,
    /// Threads or processes.
    #[arg(long)]
    threads: Option<usize>,
    /// Where tasks run: serial, threads or processes.
    #[arg(long, default_value = "threads")]
    executor: String,
    /// Codec of the results and of generated winds: none, lz4, zstd or zstd:LEVEL.
    #[arg(long, default_value = "zstd")]
    codec: CodecName,
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(freestone::WORKER_ARGUMENT) {
        return match freestone::serve(std::io::stdin(), std::io::stdout()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
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
    let spec = Spec::load(Settings {
        allowed_mem: arguments.allowed_mem,
        local_mem: arguments.local_mem,
        work_dir: arguments.work_dir.clone(),
        threads: arguments.threads,
        ..Settings::default()
    })?;
    let executor: Box<dyn Executor> = match arguments.executor.as_str() {
        "serial" => Box::new(Serial),
        "processes" => Box::new(Processes::of_this_program(spec.threads).map_err(|e| freestone::ArrayError::Argument(e.to_string()))?),
        _ => Box::new(Threads::new(spec.threads)),
    };
    let output = arguments.output.clone().unwrap_or_else(|| {
        let folder: PathBuf = std::env::temp_dir().join("freestone-quadratic-means");
        folder.join("means.zarr").display().to_string()
    });
    let cancel = Cancel::default();
    let asked = cancel.clone();
    let _ = ctrlc::set_handler(move || if asked.is_cancelled() { std::process::exit(130) } else { asked.cancel() });
    let progress = Progress::new();
    let options = Options { observers: &[&progress], cancel: cancel.clone(), ..Options::default() };

    let input = match arguments.generate {
        None => arguments.input.clone(),
        Some(bytes) => {
            let input = format!("{}-winds.zarr", output.trim_end_matches(".zarr"));
            let planned = freestone::plan(&synthetic_winds(bytes, &input, arguments.codec)?, &spec)?;
            println!("generating {} of winds in {input}", freestone::size(bytes));
            let report = freestone::run_with(&planned, &spec, &*executor, &options)?;
            println!("wrote {} in {:.1} s\n", freestone::size(report.traffic().bytes_written), report.wall.as_secs_f64());
            input
        }
    };
    let u = freestone::open(&format!("{input}/u"))?;
    let v = freestone::open(&format!("{input}/v"))?;
    let means = [("uu", (&u * &u).mean(0)?), ("uv", (&u * &v).mean(0)?), ("vv", (&v * &v).mean(0)?)];
    let targets: Vec<Target> = means.iter().map(|(name, mean)| Target::in_group(mean, &output, name).codec(arguments.codec).overwrite(true)).collect();

    let planned = freestone::plan(&targets, &spec)?;
    println!("{}", planned.plan());
    freestone::engine::machine::reset_peak_rss();
    let progress = Progress::new();
    let options = Options { observers: &[&progress], cancel, ..Options::default() };
    let report = freestone::run_with(&planned, &spec, &*executor, &options)?;
    println!("{report}\n");

    println!("sums over the maps in {output}:");
    for (name, _) in &means {
        let map = freestone::open(&format!("{output}/{name}"))?;
        let sum = freestone::compute::<f64>(&map.astype(DType::Float64)?.sum(())?, &spec)?;
        println!("  mean({}·{})  {:.4}", &name[..1], &name[1..], sum.sum());
    }
    Ok(())
}

/// Chunks of 20 time steps of the whole map: about 20 MB.
const CHUNK: [u64; 3] = [20, 360, 720];
const WAVES: usize = 6;

/// A zonal jet with a season, planetary waves that travel, and noise, rounded as archives do, so that it compresses as
/// real winds do.
fn synthetic_winds(bytes: u64, group: &str, codec: CodecName) -> Result<Vec<Target>, Error> {
    use std::f64::consts::TAU;
    let [_, ny, nx] = CHUNK;
    let nt = (bytes / (2 * 4 * ny * nx)).max(1);
    let shape = [nt, ny, nx];
    let latitude = Array1::from_shape_fn(ny as usize, |i| 90.0 - (i as f64 + 0.5) * 180.0 / ny as f64);
    let longitude = Array1::from_shape_fn(nx as usize, |i| i as f64 * 360.0 / nx as f64);
    let column = |a: &Array1<f32>| freestone::asarray(a).expand_dims(1);
    let stack = |a: &Array1<f32>| freestone::asarray(a).expand_dims(1)?.expand_dims(1);
    let along_t = |f: &dyn Fn(f64) -> f64| stack(&Array1::from_shape_fn(nt as usize, |t| f(t as f64) as f32));
    let along_y = |f: &dyn Fn(f64) -> f64| column(&latitude.mapv(|y| f(y.to_radians()) as f32));
    let along_x = |f: &dyn Fn(f64) -> f64| freestone::asarray(&longitude.mapv(|x| f(x.to_radians()) as f32));

    let mut targets = Vec::new();
    for (seed, name) in [(11u64, "u"), (12, "v")] {
        let jet = along_y(&|y| 25.0 * (-((y.abs() - 0.7) / 0.26).powi(2)).exp() - 5.0 * y.cos())?;
        let season = along_t(&|t| 1.0 + 0.3 * (TAU * t / 365.0).cos())?;
        let mut field: Array = &jet * &season;
        for k in 1..=WAVES {
            let (amplitude, pace, phase) = (6.0 / k as f64, 0.07 * (k as f64 + seed as f64 / 7.0), k as f64 * seed as f64);
            let envelope = along_y(&|y| amplitude * y.cos() * (y * (1 + k % 3) as f64 + phase).sin())?;
            let (cos_x, sin_x) = (along_x(&|x| (k as f64 * x).cos()), along_x(&|x| (k as f64 * x).sin()));
            let (cos_t, sin_t) = (along_t(&|t| (pace * t + phase).cos())?, along_t(&|t| (pace * t + phase).sin())?);
            field = field + &envelope * (&cos_x * &cos_t + &sin_x * &sin_t);
        }
        let noise = freestone::random_uniform(&shape, -1.4, 1.4, seed, DType::Float32, &CHUNK)?;
        let rounded = freestone::round(&((field + &noise) * 32.0))? / 32.0;
        let named = rounded.with_dims(&[Some("time"), Some("latitude"), Some("longitude")])?.with_attribute("units", "m s-1")?;
        targets.push(Target::in_group(&named, group, name).chunks(&CHUNK).codec(codec).overwrite(true));
    }
    for (name, units, values) in [("latitude", "degrees_north", &latitude), ("longitude", "degrees_east", &longitude)] {
        let coordinate = freestone::asarray(values).with_dims(&[Some(name)])?.with_attribute("units", units)?;
        targets.push(Target::in_group(&coordinate, group, name).overwrite(true));
    }
    Ok(targets)
}
