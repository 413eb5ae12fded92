//! Generated inputs, kept between runs.

use std::f64::consts::PI;
use std::path::{Path, PathBuf};
use std::{fs, io};

use freestone::{Array, CodecName, DType, Settings, Spec, Target, Threads};
use serde_json::{Value, json};

use crate::table::{BLOCK, Case, Geometry, Group, TILE};
use crate::winds::synthetic_winds;
use crate::{Codec, Failure, Setup};

/// The number of elements along an axis of `tiny`, and of its chunks: 10 000 chunks of 16 KB.
const TINY: [u64; 2] = [6400, 6400];
const TINY_CHUNK: [u64; 2] = [64, 64];

/// Returns the group of the winds `u` and `v`, of a total size.
pub(crate) fn winds(setup: &Setup, size: u64, codec: Codec) -> Result<PathBuf, Failure> {
    let folder = setup.data.join(format!("{}-{}", label(size), codec.name()));
    let parameters = json!({"field": "winds-1", "bytes": size, "codec": codec.name()});
    made(&folder, &parameters, setup, |group| {
        Ok(synthetic_winds(size, group, codec.ours().into())?)
    })
}

/// Returns the input group of a row.
pub(crate) fn of(setup: &Setup, case: &Case) -> Result<PathBuf, Failure> {
    let geometry = Geometry::of(setup.row_size());
    match case.kind.group() {
        Group::Winds => winds(setup, geometry.winds_bytes(), case.codec),
        Group::Tiles => tiles(setup, geometry.tiles),
        Group::Matrices => matrices(setup, geometry.blocks),
        Group::Tiny => tiny(setup),
    }
}

/// Returns the group of `a` and `b`, with a number of chunks along each axis: waves and noise,
/// rounded to 10 bits.
fn tiles(setup: &Setup, n: u64) -> Result<PathBuf, Failure> {
    let folder = setup.data.join(format!("tiles-{n}-zstd"));
    let parameters = json!({"field": "tiles-1", "n": n, "codec": Codec::Zstd.name()});
    made(&folder, &parameters, setup, |group| {
        let (shape, chunk) = ([n * TILE; 2], [TILE; 2]);
        let along = freestone::linspace(0.0, 40.0 * PI, n * TILE, true, DType::Float32, TILE);
        let (y, x) = (along.expand_dims(1), along);
        let field = |seed: u64| {
            let shift = seed as f64;
            let waves = freestone::sin(&(&y * 0.7 + shift)) * freestone::cos(&(&x * 0.31)) * 10.0
                + freestone::cos(&((&y + &x) * 0.11)) * 5.0
                + 1.0;
            let noise = freestone::random_uniform(shape, -0.35, 0.35, seed, DType::Float32, chunk);
            rounded(&(waves + noise))
        };
        [("a", 3), ("b", 4)]
            .map(|(name, seed)| {
                Ok(Target::in_group(&field(seed)?, group, name)
                    .chunks(chunk)
                    .codec(CodecName::Zstd(0))
                    .overwrite(true))
            })
            .into_iter()
            .collect()
    })
}

/// Rounds by adding and subtracting a multiple (T. J. Dekker), as the winds do.
fn rounded(exact: &Array) -> Result<Array, Failure> {
    let shifted = exact * 8193.0;
    Ok(&shifted - &(&shifted - exact))
}

/// Returns the group of `A` and `B`, with a number of chunks along each axis: numbers of three
/// decimals.
fn matrices(setup: &Setup, n: u64) -> Result<PathBuf, Failure> {
    let folder = setup.data.join(format!("matrices-{n}-zstd"));
    let parameters = json!({"field": "matrices-1", "n": n, "codec": Codec::Zstd.name()});
    made(&folder, &parameters, setup, |group| {
        let (shape, chunk) = ([n * BLOCK; 2], [BLOCK; 2]);
        let field = |seed| {
            let normal = freestone::random_normal(shape, 0.0, 1000.0, seed, DType::Float64, chunk);
            Ok::<Array, Failure>(freestone::round(&normal) / 1000.0)
        };
        [("A", 5), ("B", 6)]
            .map(|(name, seed)| {
                Ok(Target::in_group(&field(seed)?, group, name)
                    .chunks(chunk)
                    .codec(CodecName::Zstd(0))
                    .overwrite(true))
            })
            .into_iter()
            .collect()
    })
}

/// Returns the group of `tiny`: noise of limited precision, which zstd can compress.
pub(crate) fn tiny(setup: &Setup) -> Result<PathBuf, Failure> {
    let folder = setup.data.join("many_small-zstd");
    let parameters =
        json!({"field": "tiny-1", "shape": TINY, "chunk": TINY_CHUNK, "codec": Codec::Zstd.name()});
    made(&folder, &parameters, setup, |group| {
        let noise = freestone::random_uniform(TINY, -30.0, 30.0, 21, DType::Float32, TINY_CHUNK);
        let rounded = freestone::round(&(noise * 32.0)) / 32.0;
        Ok(vec![
            Target::in_group(&rounded, group, "tiny")
                .chunks(TINY_CHUNK)
                .codec(CodecName::Zstd(0))
                .overwrite(true),
        ])
    })
}

/// Creates a group unless a stamp file has the same parameters. The stamp is written last.
fn made(
    folder: &Path,
    parameters: &Value,
    setup: &Setup,
    targets: impl FnOnce(&str) -> Result<Vec<Target>, Failure>,
) -> Result<PathBuf, Failure> {
    let (group, stamp) = (folder.join("inputs.zarr"), folder.join("stamp.json"));
    let found = fs::read(&stamp).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    if found.as_ref() != Some(parameters) {
        eprintln!("generating inputs in {}", folder.display());
        match fs::remove_file(&stamp) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
            _ => fs::create_dir_all(folder)?,
        }
        let work_dir = folder.join("work");
        let spec = spec(&work_dir, setup.threads, setup.local_mem)?;
        let planned = freestone::plan(&targets(&group.display().to_string())?, &spec)?;
        freestone::run(&planned, &spec, &Threads::new(spec.threads))?;
        fs::remove_dir_all(&work_dir)?;
        fs::write(&stamp, serde_json::to_vec_pretty(parameters)?)?;
    }
    Ok(group)
}

/// Returns the limits of Freestone's measurements: each thread may use its share. The user's
/// settings do not apply.
pub(crate) fn spec(work_dir: &Path, threads: usize, local_mem: u64) -> Result<Spec, Failure> {
    let settings = Settings {
        work_dir: Some(work_dir.display().to_string()),
        allowed_mem: Some(local_mem),
        local_mem: Some(local_mem),
        threads: Some(threads),
        ..Settings::default()
    };
    Ok(settings.resolve()?)
}

/// Reads every file once, so that the page cache is warm for the first system.
pub(crate) fn warm(folder: &Path) -> Result<(), Failure> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            warm(&entry.path())?;
        } else {
            io::copy(&mut fs::File::open(entry.path())?, &mut io::sink())?;
        }
    }
    Ok(())
}

/// Formats a size for a file name, such as `2GB` or `1.5GB`.
pub(crate) fn label(bytes: u64) -> String {
    freestone::size(bytes).to_string().replace(".0 ", "").replace(' ', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_make_short_names() {
        for (bytes, name) in
            [(2_000_000_000, "2GB"), (1_500_000_000, "1.5GB"), (64_000_000, "64MB")]
        {
            assert_eq!(label(bytes), name);
        }
    }
}
