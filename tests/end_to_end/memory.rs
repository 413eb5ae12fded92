//! The bound of every read path and kernel: what a task's buffers really take is under its projection, and not far under.
//!
//! Buffers are counted where they are allocated; whole processes are measured by the `cgroup` suite and the harness.

use freestone::engine::memory::Part;
use freestone::{Array, CodecName, DType, Encoding, Serial, Spec, Target};

use crate::support::{Place, spec_in};

/// Chunks of 4 MB: large beside what is fixed.
const CHUNK: [u64; 2] = [1000, 1000];

fn stored(place: &Place, name: &str, chunks: &[u64], codec: Encoding, incompressible: bool, spec: &Spec) -> Array {
    let shape = [3000, 2000];
    let values = if incompressible {
        freestone::random_uniform(&shape, -1.0, 1.0, 7, DType::Float32, chunks).unwrap()
    } else {
        freestone::full(&shape, 3.0, DType::Float32, chunks).unwrap()
    };
    let target = Target::array(&values, &place.at(name)).codec(codec);
    freestone::run(&freestone::plan(&[target], spec).unwrap(), spec, &Serial).unwrap();
    freestone::open(&place.at(name)).unwrap()
}

/// Runs the plan of `build` on one thread and compares each stage's buffers with its projection.
#[track_caller]
fn check(what: &str, codec: CodecName, build: impl Fn(&Array, &Array) -> Array) {
    check_stored(what, codec, |target| target, build);
}

#[track_caller]
fn check_stored(what: &str, codec: impl Into<Encoding> + Copy, store: impl Fn(Target) -> Target, build: impl Fn(&Array, &Array) -> Array) {
    let codec = codec.into();
    for incompressible in [true, false] {
        let place = Place::new();
        let spec = Spec { allowed_mem: 400_000_000, ..spec_in(&place.at("work")) };
        let a = stored(&place, "a", &CHUNK, codec, incompressible, &spec);
        let b = stored(&place, "b", &[1500, 700], codec, incompressible, &spec);
        let target = store(Target::array(&build(&a, &b), &place.at("out")).codec(codec));
        let planned = freestone::plan(&[target], &spec).unwrap();
        let report = freestone::run(&planned, &spec, &Serial).unwrap();
        assert!(report.traffic().bytes_read > 0, "{what}: nothing was read");
        for (stage, (_, _, layout)) in report.stages.iter().zip(planned.plan().stages()) {
            let projected = layout.estimate.per_task();
            assert!(stage.peak_bytes <= projected, "{what}, {}: {} over {projected}", stage.name, stage.peak_bytes);
            // What codecs and the evaluator hold inside is not counted here.
            let inside = [Part::Reserved, Part::CodecContext, Part::KernelScratch, Part::DecodeScratch];
            let buffers: u64 = layout.estimate.parts().iter().filter(|(p, _)| !inside.contains(p)).map(|(_, b)| b).sum();
            // So are the bytes that blosc makes before a checksum is put behind them.
            if incompressible && buffers > 1_000_000 && codec != (Encoding { codec: CodecName::Lz4, crc32c: true }) {
                assert!(buffers * 10 <= stage.peak_bytes * 14, "{what}, {}: {buffers} projected for {}", stage.name, stage.peak_bytes);
            }
        }
    }
}

#[test]
fn copies_are_bounded_for_every_codec() {
    for codec in ["none", "lz4", "zstd:1", "zstd:3", "gzip:1", "none+crc32c", "lz4+crc32c", "zstd:1+crc32c"] {
        check_stored(&format!("copy {codec}"), codec.parse::<Encoding>().unwrap(), |target| target, |a, _| a.clone());
    }
}

#[test]
fn elementwise_functions_are_bounded() {
    check("a·2 + 1", CodecName::Zstd(1), |a, _| a * 2.0 + 1.0);
    check("misaligned a + b", CodecName::Zstd(1), |a, b| a + b);
    check("comparison", CodecName::Zstd(1), |a, b| freestone::less(a, b).unwrap());
    check("broadcast", CodecName::Zstd(1), |a, _| a - &a.at(0, 5).unwrap());
}

#[test]
fn views_are_bounded() {
    check("slice off by one", CodecName::Zstd(1), |a, _| a.slice(0, Some(1), None, 1).unwrap());
    check("step", CodecName::Zstd(1), |a, _| a.slice(1, None, None, 2).unwrap());
    check("flip", CodecName::Lz4, |a, _| a.flip(0).unwrap());
    check("transpose", CodecName::Zstd(1), |a, _| a.permute_dims(&[1, 0]).unwrap());
}

#[test]
fn reductions_are_bounded() {
    check("mean over rows", CodecName::Zstd(1), |a, _| a.mean(0).unwrap());
    check("sum over columns", CodecName::Lz4, |a, _| a.sum(1).unwrap());
    check("max of everything", CodecName::None, |a, _| a.max(()).unwrap());
    check("mean of a product", CodecName::Zstd(3), |a, b| (a * b).mean(0).unwrap());
}

#[test]
fn reductions_with_state_are_bounded() {
    check("variance over rows", CodecName::Zstd(1), |a, _| a.var(0).unwrap());
    check("variance over columns", CodecName::None, |a, _| a.var(1).unwrap());
    check("position over rows", CodecName::Zstd(1), |a, _| a.argmax(0).unwrap());
    check("position in everything", CodecName::Lz4, |a, _| a.argmin(()).unwrap());
    check("sum in twice the precision", CodecName::Zstd(1), |a, _| a.astype(DType::Float64).unwrap().sum(0).unwrap());
    check("product and any", CodecName::Zstd(1), |a, _| &a.prod(1).unwrap() * &a.any(1).unwrap().astype(DType::Float32).unwrap());
}

#[test]
fn elementary_functions_are_bounded() {
    check("exp, log, sin", CodecName::Zstd(1), |a, _| freestone::sin(&freestone::log(&freestone::exp(a).unwrap()).unwrap()).unwrap());
    check("hypot", CodecName::Lz4, |a, b| freestone::hypot(a, b).unwrap());
    check("complex", CodecName::Zstd(1), |a, _| freestone::abs(&freestone::exp(&a.astype(DType::Complex128).unwrap()).unwrap()).unwrap());
}

#[test]
fn views_by_lists_and_pieces_are_bounded() {
    let every_third: Vec<i64> = (0..1000).map(|i| i * 3).rev().collect();
    check("take rows", CodecName::Zstd(1), |a, _| a.take(&every_third, 0).unwrap());
    check("take columns", CodecName::None, |a, _| a.take(&(0..2000).map(|i| i * 7 % 2000).collect::<Vec<_>>(), 1).unwrap());
    check("repeat", CodecName::Zstd(1), |a, _| a.repeat(2, 0).unwrap());
    check("tile", CodecName::Zstd(1), |a, _| a.tile(&[1, 2]).unwrap());
    check("roll", CodecName::Zstd(1), |a, _| a.roll(17, 0).unwrap());
    check("pad", CodecName::Zstd(1), |a, _| a.pad(&[(5, 5), (3, 3)], freestone::Pad::Reflect).unwrap());
    check("concat", CodecName::Zstd(1), |a, b| freestone::concat(&[a.clone(), b.clone()], Some(0)).unwrap());
    check("stack", CodecName::Zstd(1), |a, b| freestone::stack(&[a.clone(), b.clone()], 0).unwrap());
    check("diff", CodecName::Zstd(1), |a, _| a.diff(0, 1).unwrap());
    check("lower triangle", CodecName::Zstd(1), |a, _| freestone::tril(a, 0).unwrap());
}

/// Long lists of indices are in the plan and in its text: a whole process, from storage, is within its projection on every executor.
#[test]
fn long_lists_are_bounded_in_whole_processes() {
    let place = Place::new();
    let x = freestone::random_uniform(&[30_000, 4], 0.0, 1.0, 3, DType::Float32, &[30_000, 4]).unwrap();
    let spec = place.spec();
    freestone::run(&freestone::plan(&[Target::array(&x, &place.at("x")).codec(CodecName::None)], &spec).unwrap(), &spec, &Serial).unwrap();
    let input = format!("x={}", place.at("x"));
    // All of a list, and next to nothing of one that is longer.
    let expressions = ["repeat(x, 100, axis=0)", "take(repeat(x, 200, axis=0)[::-3], [5, 7, 1000000], axis=0)"];
    for (i, (executor, expression)) in ["threads", "processes"].into_iter().flat_map(|e| expressions.map(|x| (e, x))).enumerate() {
        let out = place.at(&format!("out-{i}"));
        let arguments = ["compute", expression, "-i", &input, "-o", &out, "--codec", "none", "--chunks", "100000,4", "--threads", "1", "--json"];
        let said = crate::command::stdout(&crate::command::freestone(&place, &[&arguments[..], &["--executor", executor]].concat()));
        let report: serde_json::Value = serde_json::from_str(&said).unwrap();
        let projected = report["projected_mem"].as_u64().unwrap();
        // The driver holds the plan too, and the workers read it.
        let measured = [&report["peak_mem"], &report["worker_peak_mem"]].map(|v| v.as_u64().unwrap_or(0));
        assert!(measured[0] > 0 && (executor == "threads" || measured[1] > 0), "{said}");
        for peak in measured {
            assert!(peak <= projected, "{executor}: {peak} over {projected}");
        }
        assert!(projected - 32_000_000 <= 3 * measured[0], "{executor}: {projected} for {measured:?}");
        println!("{executor}: {measured:?} measured, {projected} projected");
    }
}

/// Sums of sums share their parts: planning once went through each of the 2^60 ways.
#[test]
fn shared_expressions_are_planned_once() {
    let place = Place::new();
    let spec = place.spec();
    let mut x = freestone::random_uniform(&[6, 1], 0.0, 1.0, 3, DType::Float64, &[2, 1]).unwrap().broadcast_to(&[6, 4]).unwrap();
    for _ in 0..60 {
        x = (&x + &x) * 0.5;
    }
    for view in [x.take(&[3, 0, 5], 0).unwrap(), x.reshape(&[-1]).unwrap()] {
        assert!(freestone::plan(&[Target::array(&view, &place.at("out"))], &spec).is_ok());
    }
}

#[test]
fn reshapes_are_bounded() {
    check("flat", CodecName::Zstd(1), |a, _| a.reshape(&[-1]).unwrap());
    check("split rows", CodecName::Zstd(1), |a, _| a.reshape(&[300, 10, 2000]).unwrap());
    check("other way round", CodecName::None, |a, _| a.reshape(&[2000, 3000]).unwrap());
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Doubled;

impl freestone::UserKernel for Doubled {
    const NAME: &'static str = "doubled";
    const VERSION: u32 = 1;

    fn scratch_bytes(&self, inputs: &[&[usize]], _output: &[usize]) -> u64 {
        inputs[0].iter().product::<usize>() as u64 * 4
    }

    fn apply(&self, inputs: &[freestone::Block<'_>], output: &mut freestone::BlockMut<'_>, scratch: &mut [u8]) -> Result<(), String> {
        scratch[..inputs[0].bytes.len()].copy_from_slice(inputs[0].bytes);
        output.array::<f32>()?.assign(&inputs[0].array::<f32>()?.mapv(|x| 2.0 * x));
        Ok(())
    }
}

#[test]
fn kernels_of_users_are_bounded() {
    let out = freestone::BlocksOut::new(DType::Float32);
    check("user's kernel", CodecName::Zstd(1), |a, _| freestone::map_blocks(&Doubled, &[a], &out).unwrap());
}

#[test]
fn rechunks_are_bounded() {
    check("to rows", CodecName::Zstd(1), |a, _| a.rechunk(&[30, 2000]).unwrap());
    check("to columns", CodecName::None, |a, _| a.rechunk(&[3000, 50]).unwrap());
}

#[test]
fn shards_are_bounded() {
    let shards = |target: Target| target.chunks(&[500, 250]).shards(&[1000, 1000]);
    for codec in ["none", "lz4", "zstd:1+crc32c"] {
        check_stored(&format!("shards {codec}"), codec.parse::<Encoding>().unwrap(), shards, |a, _| a.clone());
    }
    let small = |target: Target| target.chunks(&[50, 50]).shards(&[1000, 1000]);
    check_stored("many small chunks", CodecName::Lz4, small, |a, _| a.clone());
    check_stored("shards of a product", CodecName::Zstd(1), |t| t.chunks(&[700, 500]).shards(&[1400, 1000]), |a, b| a * b);
    check_stored("shards of a mean", CodecName::Zstd(1), |t| t.chunks(&[100]).shards(&[1000]), |a, _| a.mean(0).unwrap());
}

/// Output chunks larger than input chunks: the second task of a thread once reused a larger buffer for a smaller need and ran over.
#[test]
fn merging_rechunks_are_bounded_over_many_tasks() {
    for codec in [CodecName::None, CodecName::Lz4, CodecName::Zstd(1)] {
        check("merge", codec, |a, _| a.rechunk(&[2000, 1000]).unwrap());
        check("merge both", codec, |a, _| a.rechunk(&[1500, 1400]).unwrap());
    }
}
