//! A wind field of any size that compresses as real winds do.

use std::f64::consts::TAU;

use freestone::{Array, DType, Encoding, Error, Target};
use ndarray::Array1;

/// Chunks of 20 time steps of the whole map: about 20 MB.
pub(crate) const CHUNK: [u64; 3] = [20, 360, 720];
const WAVES: usize = 6;
/// 2¹³ + 1: multiplying by it and subtracting twice rounds a `float32` to its 11 leading bits, as
/// archives do before they compress (T. J. Dekker, "A floating-point technique for extending the
/// available precision", 1971).
const KEEP_11_BITS: f64 = 8193.0;

/// Arrays `u` and `v`, of so many bytes together, and their coordinates, as targets in a group.
///
/// A zonal jet with a season, planetary waves that travel, and noise, rounded as archives do.
pub(crate) fn synthetic_winds(
    bytes: u64,
    group: &str,
    codec: Encoding,
) -> Result<Vec<Target>, Error> {
    let [_, ny, nx] = CHUNK;
    let nt = (bytes / (2 * 4 * ny * nx)).max(1);
    let shape = [nt, ny, nx];
    let latitude =
        Array1::from_shape_fn(ny as usize, |i| 90.0 - (i as f64 + 0.5) * 180.0 / ny as f64);
    let longitude = Array1::from_shape_fn(nx as usize, |i| i as f64 * 360.0 / nx as f64);
    let column = |a: &Array1<f32>| freestone::asarray(a).expand_dims(1);
    let stack = |a: &Array1<f32>| freestone::asarray(a).expand_dims(1).expand_dims(1);
    let along_t =
        |f: &dyn Fn(f64) -> f64| stack(&Array1::from_shape_fn(nt as usize, |t| f(t as f64) as f32));
    let along_y = |f: &dyn Fn(f64) -> f64| column(&latitude.mapv(|y| f(y.to_radians()) as f32));
    let along_x =
        |f: &dyn Fn(f64) -> f64| freestone::asarray(&longitude.mapv(|x| f(x.to_radians()) as f32));

    let mut targets = Vec::new();
    for (seed, name) in [(11u64, "u"), (12, "v")] {
        let jet = along_y(&|y| 25.0 * (-((y.abs() - 0.7) / 0.26).powi(2)).exp() - 5.0 * y.cos());
        let season = along_t(&|t| 1.0 + 0.3 * (TAU * t / 365.0).cos());
        let mut field: Array = &jet * &season;
        for k in 1..=WAVES {
            let (amplitude, pace, phase) =
                (6.0 / k as f64, 0.07 * (k as f64 + seed as f64 / 7.0), k as f64 * seed as f64);
            let envelope =
                along_y(&|y| amplitude * y.cos() * (y * (1 + k % 3) as f64 + phase).sin());
            let (cos_x, sin_x) =
                (along_x(&|x| (k as f64 * x).cos()), along_x(&|x| (k as f64 * x).sin()));
            let (cos_t, sin_t) =
                (along_t(&|t| (pace * t + phase).cos()), along_t(&|t| (pace * t + phase).sin()));
            field += &envelope * (&cos_x * &cos_t + &sin_x * &sin_t);
        }
        let noise = freestone::random_uniform(shape, -1.4, 1.4, seed, DType::Float32, CHUNK);
        let exact = field + &noise;
        let shifted = &exact * KEEP_11_BITS;
        let rounded = &shifted - &(&shifted - &exact);
        let named =
            rounded.with_dims(["time", "latitude", "longitude"]).with_attribute("units", "m s-1");
        targets
            .push(Target::in_group(&named, group, name).chunks(CHUNK).codec(codec).overwrite(true));
    }
    for (name, units, values) in
        [("latitude", "degrees_north", &latitude), ("longitude", "degrees_east", &longitude)]
    {
        let coordinate =
            freestone::asarray(values).with_dims([name]).with_attribute("units", units);
        targets.push(Target::in_group(&coordinate, group, name).overwrite(true));
    }
    Ok(targets)
}
