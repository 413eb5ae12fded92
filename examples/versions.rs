//! Two commits to a repository: an array, then more days of it. The first version stays readable.
//!
//! `cargo run --example versions -- climate`

// Results go to standard output.
#![allow(clippy::print_stdout)]

use freestone::prelude::*;
use freestone::sessions::{Format, MAIN, Repository, Version};

/// Daily temperatures at 6 places, and the days' numbers.
fn days(first: i64, last: i64) -> (Array, Array) {
    let day = freestone::arange(first, last, 1, DType::Int64, 30).with_dims(["day"]);
    let place = freestone::linspace(-5.0, 5.0, 6, true, DType::Float64, 6).with_dims(["place"]);
    let season = (&day * (std::f64::consts::TAU / 365.0)).cos();
    let temperature = 10.0 - 8.0 * season.expand_dims(1) + place;
    (temperature.with_attribute("units", "degree_Celsius"), day)
}

fn main() -> Result<(), Error> {
    let location = std::env::args().nth(1).unwrap_or_else(|| "climate.icechunk".to_owned());
    let spec = Spec::builder().allowed_mem("200MB").build()?;
    let repository = Repository::open_or_create(&location, Format::default())?;

    let (temperature, day) = days(0, 90);
    let first = Session::begin(&repository, MAIN)?
        .store(&temperature, "station/temperature")?
        .store(&day, "station/day")?
        .commit("90 days", &spec)?;

    let (temperature, day) = days(90, 120);
    Session::begin(&repository, MAIN)?
        .append(&temperature, "station/temperature", "day")?
        .append(&day, "station/day", "day")?
        .commit("30 more days", &spec)?;

    let newest = open_version(&repository, MAIN, "station/temperature")?;
    println!("{MAIN}: {newest}, mean {:.2}", newest.mean(()).compute_scalar::<f64>(&spec)?);
    if let Some(snapshot) = first.snapshot {
        let old = open_version(&repository, Version::Snapshot(snapshot), "station/temperature")?;
        println!("before: {old}, mean {:.2}", old.mean(()).compute_scalar::<f64>(&spec)?);
    }
    for version in repository.history(&MAIN.into())? {
        println!("{} {}", version.id, version.message);
    }
    Ok(())
}
