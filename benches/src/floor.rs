//! The minimum cost of a workload.
//!
//! Each input chunk is read from the page cache and decoded by the codec's C library once (twice if
//! values are needed after all have been seen: `cumulative_sum`, `anomalies`). One pass of
//! arithmetic follows, and each output chunk is encoded once and written to a new file. All steps
//! use warm buffers on one thread, without an engine. A part of the chunks is measured by the
//! thread's CPU clock and scaled to all of them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use freestone_engine::machine::thread_cpu_ns;
use ndarray::ArrayView2;
use ndarray::linalg::general_mat_mul;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zstd_safe::{CCtx, CParameter, DCtx};

use crate::table::{COLUMN, Case, Kind};
use crate::{Codec, Failure, loops, native};

/// The number of measured units of work, repeated from the first if there are fewer: for units that
/// are only read, and for units that are also encoded.
const READ_ONLY: u64 = 20;
const ENCODED: u64 = 8;
/// The number of chunks in a unit of small chunks.
const SMALL: u64 = 100;
/// The number of encoded columns.
const COLUMNS: usize = 5;

/// The arguments of one measurement in a child process.
#[derive(Args)]
pub(crate) struct Child {
    /// The row of the table.
    case: String,
    /// The group of inputs.
    #[arg(long)]
    input: PathBuf,
    /// The output folder.
    #[arg(long)]
    scratch: PathBuf,
}

/// CPU seconds of the whole workload, by step.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Floor {
    pub(crate) read_s: f64,
    pub(crate) decode_s: f64,
    pub(crate) compute_s: f64,
    pub(crate) encode_s: f64,
    pub(crate) write_s: f64,
}

impl Floor {
    pub(crate) fn total(&self) -> f64 {
        self.read_s + self.decode_s + self.compute_s + self.encode_s + self.write_s
    }

    fn add(&mut self, other: Floor, times: f64) {
        self.read_s += other.read_s * times;
        self.decode_s += other.decode_s * times;
        self.compute_s += other.compute_s * times;
        self.encode_s += other.encode_s * times;
        self.write_s += other.write_s * times;
    }
}

/// An input's layout.
struct Stored {
    folder: PathBuf,
    shape: Vec<u64>,
    chunk: Vec<u64>,
}

/// Codec states and a buffer that are reused for all chunks, and the measured times.
struct Bench {
    codec: Codec,
    decoder: DCtx<'static>,
    encoder: CCtx<'static>,
    encoded: Vec<u8>,
    scratch: PathBuf,
    n_written: u64,
    /// Times of the current unit.
    unit: Floor,
}

/// Measures the floor of a row of the table.
pub(crate) fn run(child: &Child) -> Result<Floor, Failure> {
    let case = Case::named(&child.case)?;
    measure(case.kind, case.codec, &child.input, &child.scratch)
}

fn measure(kind: Kind, codec: Codec, group: &Path, scratch: &Path) -> Result<Floor, Failure> {
    let inputs = kind
        .inputs()
        .iter()
        .map(|name| Stored::at(&group.join(name)))
        .collect::<Result<Vec<_>, _>>()?;
    let [first, ..] = &inputs[..] else {
        return Err("a workload without inputs has no floor".into());
    };
    let last = inputs.last().unwrap_or(first);
    let mut bench = Bench::new(codec, scratch, first.elements().max(first.cells() * 2) * 8)?;
    match kind {
        Kind::QuadMeans => bench.quad_means(first, last),
        Kind::Sum | Kind::Mean | Kind::Var | Kind::Argmax => bench.reduction(kind, first),
        Kind::Chain | Kind::TransposeAdd | Kind::Vorticity => bench.tiles(kind, first, last),
        Kind::Rechunk => bench.rechunk(first),
        Kind::Matmul => bench.matmul(first, last),
        Kind::CumulativeSum | Kind::Anomalies => bench.two_passes(kind, first),
        Kind::ManySmall => bench.many_small(first),
    }
}

impl Stored {
    fn at(folder: &Path) -> Result<Stored, Failure> {
        let document: Value = serde_json::from_slice(&fs::read(folder.join("zarr.json"))?)?;
        let shape = serde_json::from_value(document["shape"].clone())?;
        let chunk =
            serde_json::from_value(document["chunk_grid"]["configuration"]["chunk_shape"].clone())?;
        Ok(Stored { folder: folder.to_owned(), shape, chunk })
    }

    /// The number of elements of a chunk.
    fn elements(&self) -> usize {
        self.chunk.iter().product::<u64>() as usize
    }

    /// The number of elements of a map, if chunks hold whole maps.
    fn cells(&self) -> usize {
        self.chunk[1..].iter().product::<u64>() as usize
    }

    fn counts(&self) -> Vec<u64> {
        self.shape.iter().zip(&self.chunk).map(|(shape, chunk)| shape.div_ceil(*chunk)).collect()
    }

    fn n_chunks(&self) -> u64 {
        self.counts().iter().product()
    }

    /// Returns the file of a chunk, in C order; numbers beyond the last wrap around.
    fn file(&self, index: u64) -> PathBuf {
        let mut left = index % self.n_chunks();
        let mut key: Vec<String> = Vec::new();
        for count in self.counts().iter().rev() {
            key.push((left % count).to_string());
            left /= count;
        }
        key.reverse();
        self.folder.join("c").join(key.join("/"))
    }

    /// Returns the chunk on the other side of the diagonal.
    fn mirrored(&self, index: u64) -> u64 {
        let n = self.counts()[0];
        index % n * n + index / n % n
    }
}

impl Bench {
    fn new(codec: Codec, scratch: &Path, bytes: usize) -> Result<Bench, Failure> {
        let mut encoder = CCtx::create();
        encoder.set_parameter(CParameter::CompressionLevel(0)).map_err(zstd)?;
        let encoded = vec![1; zstd_safe::compress_bound(bytes).max(native::blosc_bound(bytes))];
        fs::create_dir_all(scratch)?;
        Ok(Bench {
            codec,
            decoder: DCtx::create(),
            encoder,
            encoded,
            scratch: scratch.to_owned(),
            n_written: 0,
            unit: Floor::default(),
        })
    }

    fn quad_means(&mut self, u: &Stored, v: &Stored) -> Result<Floor, Failure> {
        let mut chunks = [u, v].map(|x| vec![0.0; x.elements()]);
        let mut sums = [(); 3].map(|()| vec![0.0; u.cells()]);
        let mut floor = self.sampled(u.n_chunks(), READ_ONLY, |bench, i| {
            for (x, values) in [u, v].iter().zip(&mut chunks) {
                bench.load(&x.file(i), values)?;
            }
            bench.compute(|| loops::quadratic(&chunks[0], &chunks[1], &mut sums));
            Ok(())
        })?;
        for sum in &sums {
            floor.add(self.map(&to_single(sum))?, 1.0);
        }
        Ok(floor)
    }

    fn reduction(&mut self, kind: Kind, u: &Stored) -> Result<Floor, Failure> {
        let mut values = vec![0.0f32; u.elements()];
        let (mut sums, mut squares) = (vec![0.0; u.cells()], vec![0.0; u.cells()]);
        let (mut best, mut at) = (vec![f32::NEG_INFINITY; u.cells()], vec![0u32; u.cells()]);
        let less = vec![1.0f32; u.cells()];
        let mut total = 0.0;
        let mut floor = self.sampled(u.n_chunks(), READ_ONLY, |bench, i| {
            bench.load(&u.file(i), &mut values)?;
            bench.compute(|| match kind {
                Kind::Sum => total += loops::sum(&values, |x| x),
                Kind::Mean => loops::add_maps(&values, &mut sums),
                Kind::Var => loops::add_squares(&values, &less, &mut sums, &mut squares),
                _ => {
                    loops::keep_greatest(&values, i as u32 * u.chunk[0] as u32, &mut best, &mut at)
                }
            });
            Ok(())
        })?;
        match kind {
            Kind::Sum => std::hint::black_box(total),
            Kind::Argmax => {
                floor.add(self.map(&at.iter().map(|t| i64::from(*t)).collect::<Vec<_>>())?, 1.0);
                0.0
            }
            _ => {
                floor.add(self.map(&to_single(&sums))?, 1.0);
                0.0
            }
        };
        Ok(floor)
    }

    fn tiles(&mut self, kind: Kind, a: &Stored, b: &Stored) -> Result<Floor, Failure> {
        let mut chunks = [(); 2].map(|()| vec![0.0f32; a.elements()]);
        let mut out = vec![0.0; a.elements()];
        self.sampled(a.n_chunks(), ENCODED, |bench, i| {
            let [x, y] = &mut chunks;
            bench.load(&a.file(i), x)?;
            if kind == Kind::TransposeAdd {
                // If each chunk is decoded once, the chunk on the other side is decoded already.
                let unit = bench.unit;
                bench.load(&a.file(a.mirrored(i)), y)?;
                bench.unit = unit;
            } else {
                bench.load(&b.file(i), y)?;
            }
            bench.compute(|| match kind {
                Kind::Chain => loops::chain(x, y, &mut out),
                Kind::TransposeAdd => loops::add_transposed(x, y, &mut out),
                _ => loops::curl(x, y, &mut out),
            });
            bench.store(&out)
        })
    }

    fn rechunk(&mut self, u: &Stored) -> Result<Floor, Failure> {
        let (map, column) =
            ([u.shape[1], u.shape[2]].map(|n| n as usize), COLUMN.map(|n| n as usize));
        let n_columns = u.cells() / column.iter().product::<usize>();
        let part = u.elements() / n_columns;
        let (mut values, mut laid_out) = (vec![0.0f32; u.elements()], vec![0.0f32; u.elements()]);
        // The copy of columns from all over the map is not measured.
        let mut columns =
            vec![Vec::with_capacity(part * u.n_chunks() as usize); COLUMNS.min(n_columns)];
        for t in 0..u.n_chunks() {
            self.load(&u.file(t), &mut values)?;
            loops::scatter(&values, map, column, &mut laid_out);
            for (i, whole) in columns.iter_mut().enumerate() {
                whole.extend_from_slice(&laid_out[i * n_columns / COLUMNS * part..][..part]);
            }
        }
        self.fit(columns[0].len() * 4);
        let mut floor = self.sampled(u.n_chunks(), READ_ONLY, |bench, i| {
            bench.load(&u.file(i), &mut values)?;
            bench.compute(|| loops::scatter(&values, map, column, &mut laid_out));
            Ok(())
        })?;
        let stored = self.sampled(n_columns as u64, ENCODED, |bench, i| {
            bench.store(&columns[i as usize % columns.len()])
        })?;
        floor.add(stored, 1.0);
        Ok(floor)
    }

    /// Each operand is decoded once.
    fn matmul(&mut self, a: &Stored, b: &Stored) -> Result<Floor, Failure> {
        let (n, n_blocks) = (a.chunk[0] as usize, a.counts()[0]);
        let mut chunks = [(); 2].map(|()| vec![0.0f64; a.elements()]);
        let mut product = ndarray::Array2::<f64>::zeros((n, n));
        let mut floor = self.sampled(a.n_chunks(), ENCODED, |bench, i| {
            for (x, values) in [a, b].iter().zip(&mut chunks) {
                bench.load(&x.file(i), values)?;
            }
            Ok(())
        })?;
        let [x, y] = [0, 1].map(|i| ArrayView2::from_shape((n, n), &chunks[i]));
        let (x, y) = (x?, y?);
        floor.add(
            self.sampled(n_blocks.pow(3), ENCODED, |bench, _| {
                bench.compute(|| general_mat_mul(1.0, &x, &y, 1.0, &mut product));
                Ok(())
            })?,
            1.0,
        );
        let product = product.as_slice().ok_or("a product is in C order")?;
        floor.add(self.sampled(a.n_chunks(), ENCODED, |bench, _| bench.store(product))?, 1.0);
        Ok(floor)
    }

    fn two_passes(&mut self, kind: Kind, u: &Stored) -> Result<Floor, Failure> {
        let (mut values, mut out) = (vec![0.0f32; u.elements()], vec![0.0f32; u.elements()]);
        let (mut sums, mut running) = (vec![0.0; u.cells()], vec![0.0; u.cells()]);
        let mut floor = self.sampled(u.n_chunks(), ENCODED, |bench, i| {
            bench.load(&u.file(i), &mut values)?;
            bench.compute(|| loops::add_maps(&values, &mut sums));
            Ok(())
        })?;
        let n_maps = ((ENCODED + 1) * u.chunk[0]) as f32;
        let mean: Vec<f32> = sums.iter().map(|sum| *sum as f32 / n_maps).collect();
        let second = self.sampled(u.n_chunks(), ENCODED, |bench, i| {
            bench.load(&u.file(i), &mut values)?;
            bench.compute(|| match kind {
                Kind::CumulativeSum => loops::accumulate(&values, &mut running, &mut out),
                _ => loops::subtract(&values, &mean, &mut out),
            });
            bench.store(&out)
        })?;
        floor.add(second, 1.0);
        Ok(floor)
    }

    fn many_small(&mut self, tiny: &Stored) -> Result<Floor, Failure> {
        let mut values = vec![0.0f32; tiny.elements()];
        let mut total = 0.0;
        let floor = self.sampled(tiny.n_chunks().div_ceil(SMALL), READ_ONLY, |bench, i| {
            for chunk in i * SMALL..(i + 1) * SMALL {
                bench.load(&tiny.file(chunk), &mut values)?;
                total += bench.compute(|| {
                    loops::sum(&values, |x| {
                        let y = x * 2.0 + 1.0;
                        y * y
                    })
                });
            }
            Ok(())
        })?;
        std::hint::black_box(total);
        Ok(floor)
    }

    /// Measures `most` of `n` evenly spaced units of work, after a first one that is discarded, and
    /// scales the times to all units.
    fn sampled(
        &mut self,
        n: u64,
        most: u64,
        mut one: impl FnMut(&mut Bench, u64) -> Result<(), Failure>,
    ) -> Result<Floor, Failure> {
        one(self, 0)?;
        let mut floor = Floor::default();
        for i in 0..most {
            self.unit = Floor::default();
            one(self, if n > most { i * n / most } else { i % n })?;
            floor.add(self.unit, n as f64 / most as f64);
        }
        Ok(floor)
    }

    /// Encodes and writes one map.
    fn map<T: bytemuck::Pod>(&mut self, values: &[T]) -> Result<Floor, Failure> {
        self.sampled(1, 1, |bench, _| bench.store(values))
    }

    /// Reads and decodes a chunk.
    fn load<T: bytemuck::Pod>(&mut self, file: &Path, out: &mut [T]) -> Result<(), Failure> {
        let out: &mut [u8] = bytemuck::cast_slice_mut(out);
        if self.codec == Codec::None {
            return Ok(timed(&mut self.unit.read_s, || File::open(file)?.read_exact(out))?);
        }
        let len = timed(&mut self.unit.read_s, || read(file, &mut self.encoded))?;
        let bytes = &self.encoded[..len];
        let decoded = timed(&mut self.unit.decode_s, || match self.codec {
            Codec::Zstd => self.decoder.decompress(out, bytes).is_ok_and(|n| n == out.len()),
            _ => native::blosc_decode(bytes, out),
        });
        if decoded {
            Ok(())
        } else {
            Err(format!("{} cannot be decoded with {}", file.display(), self.codec.name()).into())
        }
    }

    fn compute<R>(&mut self, work: impl FnOnce() -> R) -> R {
        timed(&mut self.unit.compute_s, work)
    }

    /// Encodes a chunk and writes it to a new file. The removal of the file is not measured.
    fn store<T: bytemuck::Pod>(&mut self, values: &[T]) -> Result<(), Failure> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        self.fit(bytes.len());
        let out = &mut self.encoded[..];
        let len = timed(&mut self.unit.encode_s, || match self.codec {
            Codec::Zstd => self.encoder.compress2(out, bytes).map_err(zstd),
            Codec::Blosc => {
                native::blosc_encode(bytes, out).ok_or_else(|| "blosc cannot encode a chunk".into())
            }
            Codec::None => Ok(0),
        })?;
        let encoded = if self.codec == Codec::None { bytes } else { &self.encoded[..len] };
        self.n_written += 1;
        let path = self.scratch.join(self.n_written.to_string());
        timed(&mut self.unit.write_s, || File::create(&path)?.write_all(encoded))?;
        Ok(fs::remove_file(path)?)
    }

    /// Resizes the buffer for the encoded form of a number of bytes.
    fn fit(&mut self, bytes: usize) {
        let bound = zstd_safe::compress_bound(bytes).max(native::blosc_bound(bytes));
        if self.encoded.len() < bound {
            self.encoded.resize(bound, 1);
        }
    }
}

fn to_single(values: &[f64]) -> Vec<f32> {
    values.iter().map(|x| *x as f32).collect()
}

/// Adds the CPU time of this thread to `seconds`.
fn timed<T>(seconds: &mut f64, work: impl FnOnce() -> T) -> T {
    let start = thread_cpu_ns();
    let done = work();
    *seconds += (thread_cpu_ns() - start) as f64 * 1e-9;
    done
}

/// Reads a whole file into a buffer.
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
