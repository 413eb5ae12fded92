//! Quadratic means of the shipped winds: known results, equal bytes on all executors, each chunk
//! read once.

use std::collections::BTreeMap;
use std::sync::Arc;

use freestone::{Array, CodecName, DType, Processes, Serial, Spec, Stores, Target, Threads};
use freestone_engine::executor::Executor;
use freestone_engine::storage::Store;
use serde_json::Value;

use crate::support::{BINARY, Place, WINDS_V2, WINDS_V3, in_memory, open_in_memory, tree};

/// Sums of the means, computed by NumPy in float64.
const SUMS: [(&str, f64); 3] = [("uu", 3836151.0286), ("uv", 30828.0636), ("vv", 108203.8186)];

fn means(u: &Array, v: &Array) -> [(&'static str, Array); 3] {
    [("uu", (u * u).mean(0)), ("uv", (u * v).mean(0)), ("vv", (v * v).mean(0))]
}

fn winds(group: &str) -> (Array, Array) {
    (freestone::open(format!("{group}/u")).unwrap(), freestone::open(format!("{group}/v")).unwrap())
}

/// Stores the means of a group of winds. Returns the files of the result.
fn stored(
    input: &str,
    output: &str,
    spec: &Spec,
    executor: &dyn Executor,
) -> BTreeMap<String, Vec<u8>> {
    let (u, v) = winds(input);
    let means = means(&u, &v);
    let targets: Vec<Target> =
        means.iter().map(|(name, mean)| Target::in_group(mean, output, name)).collect();
    let planned = freestone::plan(&targets, spec).unwrap();
    freestone::run(&planned, spec, executor).unwrap();
    tree(output)
}

#[track_caller]
fn check_sums(output: &str, spec: &Spec) {
    for (name, expect) in SUMS {
        let map = freestone::open(format!("{output}/{name}")).unwrap();
        assert_eq!((map.shape().unwrap(), map.dtype().unwrap()), (vec![73, 144], DType::Float32));
        let sum =
            freestone::compute::<f64>(&map.astype(DType::Float64).sum(()), spec).unwrap().sum();
        assert!(((sum - expect) / expect).abs() < 1e-6, "{name}: {sum}, not {expect}");
    }
}

#[test]
fn sums_match_numpy() {
    let place = Place::new();
    for (name, input) in [("v3", WINDS_V3), ("v2", WINDS_V2)] {
        stored(input, &place.at(name), &place.spec(), &Threads::new(2));
        check_sums(&place.at(name), &place.spec());
    }
}

#[test]
fn both_formats_of_the_winds_give_the_same_bits() {
    let place = Place::new();
    let mut v2 = stored(WINDS_V2, &place.at("v2"), &place.spec(), &Serial);
    let mut v3 = stored(WINDS_V3, &place.at("v3"), &place.spec(), &Serial);
    // Coordinates and attributes are copies from each format; the means are computed.
    for name in ["uu", "uv", "vv"] {
        let chunks = |files: &mut BTreeMap<String, Vec<u8>>| -> Vec<(String, Vec<u8>)> {
            files.extract_if(.., |key, _| key.starts_with(&format!("{name}/c/"))).collect()
        };
        let (two, three) = (chunks(&mut v2), chunks(&mut v3));
        assert_eq!(two.len(), 4, "{name}");
        assert!(two == three, "{name}");
    }
}

#[test]
fn every_executor_writes_the_same_bytes() {
    let place = Place::new();
    let spec = Spec { parallelism: 4, ..place.spec() };
    let executors: Vec<(&str, Box<dyn Executor>)> = vec![
        ("serial", Box::new(Serial)),
        ("one-thread", Box::new(Threads::new(1))),
        ("two-threads", Box::new(Threads::new(2))),
        ("three-threads", Box::new(Threads::new(3))),
        ("one-process", Box::new(Processes::new(1, BINARY, [freestone::WORKER_ARGUMENT]))),
        ("two-processes", Box::new(Processes::new(2, BINARY, [freestone::WORKER_ARGUMENT]))),
    ];
    let mut first = None;
    for (name, executor) in executors {
        let found = stored(WINDS_V3, &place.at(name), &spec, &*executor);
        let expect = first.get_or_insert_with(|| found.clone());
        assert_eq!(found.keys().collect::<Vec<_>>(), expect.keys().collect::<Vec<_>>(), "{name}");
        for (key, bytes) in &found {
            assert!(bytes == &expect[key], "{name}: {key} differs");
        }
    }
    assert!(tree(place.at("work")).is_empty(), "a good run leaves nothing in its work directory");
}

#[test]
fn three_means_are_one_stage_that_reads_each_chunk_once() {
    let place = Place::new();
    let (input, output) = (in_memory(WINDS_V3), in_memory("/nothing"));
    let (u, v) = (open_in_memory(&input, "u"), open_in_memory(&input, "v"));
    let before = input.counts().reads;
    let stores = Stores::default();
    stores.insert(Arc::<freestone::MemoryStore>::clone(&output));
    stores.insert(Arc::<freestone::MemoryStore>::clone(&input));
    let means = means(&u, &v);
    let target = |(name, mean): &(&str, Array)| {
        Target::in_group(mean, output.url(), name).with_stores(&stores)
    };
    let outputs: Vec<Target> = means.iter().map(target).collect();
    let planned = freestone::plan(&outputs, &place.spec()).unwrap();
    let mean_stages: Vec<_> =
        planned.finalized().plan().stages.iter().filter(|s| s.name.starts_with("mean")).collect();
    assert_eq!(mean_stages.len(), 1);
    assert_eq!(mean_stages[0].outputs.len(), 3);

    let options =
        freestone::RunOptions { stores: stores.clone(), ..freestone::RunOptions::default() };
    freestone::run_with(&planned, &place.spec(), &Threads::new(2), &options).unwrap();
    let reads = input.counts().reads;
    let chunks: Vec<String> = input
        .keys()
        .into_iter()
        .filter(|k| k.starts_with("u/c/") || k.starts_with("v/c/"))
        .collect();
    assert_eq!(chunks.len(), 32);
    for key in &chunks {
        assert_eq!(
            reads.get(key).copied().unwrap_or(0) - before.get(key).copied().unwrap_or(0),
            1,
            "{key}"
        );
    }
    for (key, n) in output.counts().writes {
        assert_eq!(n, 1, "{key} is written once");
    }
}

/// Coordinates come from the store in which the array was opened.
#[test]
fn coordinates_are_found_in_the_store_of_their_array() {
    let (place, input) = (Place::new(), in_memory(WINDS_V3));
    let mean = open_in_memory(&input, "u").mean(0);
    let planned =
        freestone::plan(&[Target::in_group(&mean, place.at("out"), "mean")], &place.spec());
    assert!(planned.is_ok(), "{}", planned.unwrap_err());
}

#[test]
fn the_group_has_names_coordinates_and_attributes() {
    let place = Place::new();
    let (u, v) = winds(WINDS_V3);
    let uv = (&u * &v).mean(0).with_attribute("units", "m2 s-2");
    let output = place.at("means.zarr");
    let planned = freestone::plan(
        &[Target::in_group(&uv, &output, "uv").codec(CodecName::Zstd(1))],
        &place.spec(),
    )
    .unwrap();
    freestone::run(&planned, &place.spec(), &Serial).unwrap();

    let json = |path: &str| -> Value {
        serde_json::from_slice(&std::fs::read(format!("{output}/{path}")).unwrap()).unwrap()
    };
    assert_eq!(json("zarr.json")["node_type"], "group");
    let document = json("uv/zarr.json");
    assert_eq!(document["dimension_names"], serde_json::json!(["latitude", "longitude"]));
    assert_eq!(document["attributes"]["units"], "m2 s-2");
    assert!(
        document["attributes"].get("standard_name").is_none(),
        "a product is no eastward wind: {document:#}"
    );
    assert_eq!(document["shape"], serde_json::json!([73, 144]));
    for (name, n) in [("latitude", 73), ("longitude", 144)] {
        assert_eq!(
            json(&format!("{name}/zarr.json"))["dimension_names"],
            serde_json::json!([name])
        );
        let read = |group: &str| {
            freestone::compute::<f32>(
                &freestone::open(format!("{group}/{name}")).unwrap(),
                &place.spec(),
            )
            .unwrap()
        };
        let copy = read(&output);
        assert_eq!(copy.len(), n);
        assert_eq!(copy, read(WINDS_V3));
        let attributes = |group: &str| {
            freestone::open(format!("{group}/{name}")).unwrap().attributes().unwrap().clone()
        };
        assert_eq!(attributes(&output).get("units"), attributes(WINDS_V3).get("units"));
    }
    assert!(
        !std::path::Path::new(&format!("{output}/time")).exists(),
        "the axis is gone, and its coordinate with it"
    );
}

/// A plan in two stages, which merges partial results, gives the values of one stage.
#[test]
fn partial_means_combine_to_the_same_values() {
    let place = Place::new();
    let (u, v) = winds(WINDS_V3);
    // Partial results of a whole-array mean are small, so that a split pays.
    let product = (&u * &v).astype(DType::Float64).rechunk([1, 20, 20]);
    let mean = product.mean(());
    let stages = |spec: &Spec| {
        let planned = freestone::plan(&[Target::array(&mean, place.at("unused"))], spec).unwrap();
        planned.finalized().plan().stages.iter().map(|s| s.name.clone()).collect::<Vec<_>>()
    };
    let (one, many) =
        (Spec { parallelism: 1, ..place.spec() }, Spec { parallelism: 64, ..place.spec() });
    assert!(stages(&many).iter().any(|name| name.starts_with("combine")), "{:?}", stages(&many));
    let values: Vec<f64> = [&one, &many]
        .iter()
        .map(|spec| freestone::compute::<f64>(&mean, spec).unwrap().sum())
        .collect();
    assert!(((values[0] - values[1]) / values[0]).abs() < 1e-13, "{values:?}");
    // The sum of uv's map is its mean times the number of points.
    let sum = values[1] * 73.0 * 144.0;
    assert!(((sum - SUMS[1].1) / SUMS[1].1).abs() < 1e-5, "{sum}");
    // The same plan gives the same bits on every executor.
    let bits: Vec<u64> = [1, 2, 3]
        .iter()
        .map(|n| {
            freestone::compute_with::<f64>(&mean, &many, &Threads::new(*n)).unwrap().sum().to_bits()
        })
        .collect();
    assert!(bits.windows(2).all(|w| w[0] == w[1]) && bits[0] == values[1].to_bits());
}
