//! What quadratic means cost if nothing but the necessary is done.
//!
//! The necessary is: every chunk is read from the page cache, decoded by the codec's C library and folded once, and three
//! maps are encoded; all of it in buffers that are warm, on one thread. A part of the chunks is measured by the thread's CPU
//! clock and scaled to all of them. No engine comes into it.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use freestone_engine::machine::thread_cpu_ns;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zstd_safe::{CCtx, CParameter, DCtx};

use crate::{Codec, Failure, native};

/// Chunks of each array that are measured: at least these many, again from the first if there are fewer.
const LEAST: u64 = 10;
/// And at most, if there are more.
const MOST: u64 = 25;

/// CPU seconds of the whole workload, by what they are spent on.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Floor {
    pub(crate) read_s: f64,
    pub(crate) decode_s: f64,
    pub(crate) fold_s: f64,
    pub(crate) encode_s: f64,
}

impl Floor {
    pub(crate) fn total(&self) -> f64 {
        self.read_s + self.decode_s + self.fold_s + self.encode_s
    }
}

/// Buffers and codec states that are used for every chunk.
struct Bench {
    codec: Codec,
    decoder: DCtx<'static>,
    encoder: CCtx<'static>,
    encoded: Vec<u8>,
    chunk: [Vec<f32>; 2],
    sums: [Vec<f64>; 3],
}

/// Measures the floor of a group with winds `u` and `v`.
pub(crate) fn measure(group: &Path, codec: Codec) -> Result<Floor, Failure> {
    let document: Value = serde_json::from_slice(&fs::read(group.join("u/zarr.json"))?)?;
    let shape: Vec<u64> = serde_json::from_value(document["shape"].clone())?;
    let chunk: Vec<u64> = serde_json::from_value(document["chunk_grid"]["configuration"]["chunk_shape"].clone())?;
    if shape.len() != 3 || chunk.len() != 3 || shape[1..] != chunk[1..] {
        return Err("the floor is for arrays (time, y, x) that are chunked along time only".into());
    }
    let (elements, cells) = (chunk.iter().product::<u64>() as usize, (chunk[1] * chunk[2]) as usize);
    let mut bench = Bench {
        codec,
        decoder: DCtx::create(),
        encoder: CCtx::create(),
        encoded: vec![1; zstd_safe::compress_bound(4 * elements).max(native::blosc_bound(4 * elements))],
        chunk: [(); 2].map(|()| vec![0.0; elements]),
        sums: [(); 3].map(|()| vec![0.0; cells]),
    };
    bench.encoder.set_parameter(CParameter::CompressionLevel(0)).map_err(zstd)?;

    let n_chunks = shape[0].div_ceil(chunk[0]);
    let mut ignored = Floor::default();
    for t in 0..n_chunks.min(2) {
        bench.chunk(group, t, &mut ignored)?;
    }
    bench.maps(&mut ignored)?;

    let measured = n_chunks.clamp(LEAST, MOST);
    let mut floor = Floor::default();
    for i in 0..measured {
        bench.chunk(group, i % n_chunks, &mut floor)?;
    }
    let scale = n_chunks as f64 / measured as f64;
    (floor.read_s, floor.decode_s, floor.fold_s) = (floor.read_s * scale, floor.decode_s * scale, floor.fold_s * scale);
    bench.maps(&mut floor)?;
    Ok(floor)
}

impl Bench {
    /// Reads, decodes and folds chunk `t` of both arrays.
    fn chunk(&mut self, group: &Path, t: u64, floor: &mut Floor) -> Result<(), Failure> {
        for (name, values) in ["u", "v"].iter().zip(&mut self.chunk) {
            let out: &mut [u8] = bytemuck::cast_slice_mut(values);
            let path = group.join(format!("{name}/c/{t}/0/0"));
            if self.codec == Codec::None {
                timed(&mut floor.read_s, || File::open(path)?.read_exact(out))?;
                continue;
            }
            let len = timed(&mut floor.read_s, || read(&path, &mut self.encoded))?;
            let bytes = &self.encoded[..len];
            let decoded = timed(&mut floor.decode_s, || match self.codec {
                Codec::Zstd => self.decoder.decompress(out, bytes).is_ok_and(|n| n == out.len()),
                _ => native::blosc_decode(bytes, out),
            });
            if !decoded {
                return Err(format!("chunk {t} of {name} cannot be decoded with {}", self.codec.name()).into());
            }
        }
        timed(&mut floor.fold_s, || native::fold(&self.chunk[0], &self.chunk[1], &mut self.sums));
        Ok(())
    }

    /// Encodes three maps of means.
    fn maps(&mut self, floor: &mut Floor) -> Result<(), Failure> {
        for sum in &self.sums {
            let map: Vec<f32> = sum.iter().map(|s| *s as f32).collect();
            let bytes: &[u8] = bytemuck::cast_slice(&map);
            let out = &mut self.encoded[..];
            timed(&mut floor.encode_s, || match self.codec {
                Codec::Zstd => self.encoder.compress2(out, bytes).map(|_| ()).map_err(zstd),
                Codec::Blosc => native::blosc_encode(bytes, out).then_some(()).ok_or_else(|| "blosc cannot encode a map".into()),
                Codec::None => Ok(()),
            })?;
        }
        Ok(())
    }
}

/// Adds the CPU time of this thread to `seconds`.
fn timed<T>(seconds: &mut f64, work: impl FnOnce() -> T) -> T {
    let start = thread_cpu_ns();
    let done = work();
    *seconds += (thread_cpu_ns() - start) as f64 * 1e-9;
    done
}

/// Reads a whole file to the start of a buffer.
fn read(path: &Path, into: &mut [u8]) -> std::io::Result<usize> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len() as usize;
    let into = into.get_mut(..len).ok_or(std::io::ErrorKind::FileTooLarge)?;
    file.read_exact(into)?;
    Ok(len)
}

fn zstd(code: usize) -> Failure {
    format!("zstd: {}", zstd_safe::get_error_name(code)).into()
}
