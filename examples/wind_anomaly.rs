//! Wind speed, its mean over time and the anomaly, as three arrays of one group.
//!
//! `cargo run --example wind_anomaly -- means.zarr`

// Results go to standard output.
#![allow(clippy::print_stdout)]

use freestone::prelude::*;

const WINDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/winds-v3.zarr");

fn main() -> Result<(), Error> {
    let output = std::env::args().nth(1).unwrap_or_else(|| "wind_anomaly.zarr".to_owned());
    let u = freestone::open(format!("{WINDS}/u"))?;
    let v = freestone::open(format!("{WINDS}/v"))?;

    let speed = (&u * &u + &v * &v).sqrt();
    let mean = speed.mean("time");
    let anomaly = &speed - &mean;
    println!("{speed}");

    let spec = Spec::builder().allowed_mem("100MB").build()?;
    let targets = [("speed", &speed), ("mean", &mean), ("anomaly", &anomaly)]
        .map(|(name, array)| Target::in_group(array, &output, name).overwrite(true));
    let plan = plan(&targets, &spec)?;
    println!("{}", run(&plan, &spec, &Threads::new(spec.threads))?);

    let stored = freestone::open(format!("{output}/anomaly"))?;
    let largest: f32 = stored.abs().max(()).compute_scalar(&spec)?;
    println!("the largest anomaly is {largest:.1} m/s");
    Ok(())
}
