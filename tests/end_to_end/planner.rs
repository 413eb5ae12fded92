//! Structure of plans, reads per chunk, and results of multi-stage plans: rechunks, matrix
//! products, cumulative sums.

use std::sync::Arc;

use freestone::{
    Array, CodecName, DType, MemoryStore, Pad, Scan, Serial, Spec, Stores, Target, concat, stack,
    tensordot,
};
use freestone_engine::plan::{FinalizedPlan, OutAxis, Place as ArrayPlace};
use freestone_engine::stages::Kernel;
use freestone_engine::storage::Store;
use ndarray::{Array2, ArrayD, Axis, IxDyn};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use crate::ahead::FarAway;
use crate::support::{Place, document, open_in_memory};

/// An array without chunks, which is enough for planning.
pub(crate) fn planned(shape: &[u64], chunks: &[u64], dtype: &str) -> Array {
    planned_in(Arc::new(MemoryStore::new()), shape, chunks, dtype)
}

fn planned_in(store: Arc<dyn Store>, shape: &[u64], chunks: &[u64], dtype: &str) -> Array {
    let mut zarr = document(shape, chunks, dtype);
    zarr["codecs"].as_array_mut().unwrap().push(
        serde_json::json!({"name": "zstd", "configuration": {"level": 3, "checksum": false}}),
    );
    store.write("x/zarr.json", &serde_json::to_vec(&zarr).unwrap()).unwrap();
    freestone::open_in(&store, "x").unwrap()
}

fn plan(x: &Array, place: &Place, spec: &Spec) -> FinalizedPlan {
    freestone::plan(&[Target::array(x, place.at("out")).codec(CodecName::None)], spec)
        .unwrap()
        .finalized()
        .clone()
}

/// Returns the chunks read, objects written and bytes written by all tasks.
fn traffic(plan: &FinalizedPlan) -> (u128, u128) {
    let pieces = |n: u64, a: &dyn Fn(u64) -> u64, b: &dyn Fn(u64) -> u64| {
        let (mut at, mut count) = (0, 0u128);
        while at < n {
            at = a(at).min(b(at));
            count += 1;
        }
        count
    };
    let (mut requests, mut written) = (0, 0);
    for stage in &plan.plan().stages {
        for input in &stage.inputs {
            let grid = &plan.plan().array(input.sources[0]).info.grid;
            requests += (0..grid.axes().len())
                .map(|d| {
                    let end = |g: &freestone_engine::grid::AxisGrid, x: u64| g.start(g.find(x) + 1);
                    pieces(grid.axes()[d].len(), &|x| end(&grid.axes()[d], x), &|x| {
                        end(&stage.tasks.axes()[d], x)
                    })
                })
                .product::<u128>();
        }
        for output in &stage.outputs {
            let info = &plan.plan().array(output.array).info;
            requests += u128::from(info.objects().n_chunks());
            written += info.n_bytes();
        }
    }
    (requests, written)
}

#[test]
fn a_climate_archive_is_rechunked_in_three_copies() {
    let place = Place::quick();
    // On local files, requests are cheap and bytes are not, so the plan has two copies.
    let cases: [(Arc<dyn Store>, String, u128); 2] = [
        (Arc::new(FarAway::new()), "s3://bucket/work".to_owned(), 250_000),
        (Arc::new(MemoryStore::new()), place.at("work"), 3_000_000),
    ];
    for (store, work_dir, most) in cases {
        let x = planned_in(store, &[350_640, 721, 1440], &[31, 721, 1440], "float32")
            .rechunk([350_640, 10, 10]);
        let spec = Spec { allowed_mem: 2_500_000_000, parallelism: 1000, work_dir, ..place.spec() };
        let plan = plan(&x, &place, &spec);
        let stages = &plan.plan().stages;
        let (requests, written) = traffic(&plan);
        println!(
            "{} copies, {} tasks, {written} bytes, {requests} requests, {} projected",
            stages.len(),
            stages.iter().map(|s| s.n_tasks()).sum::<u64>(),
            plan.projected_mem()
        );
        assert!(stages.iter().all(|s| s.n_tasks() >= 1000));
        assert!(
            stages.len() <= 3 && written <= 4_400_000_000_000 && requests <= most,
            "{} copies, {written} bytes, {requests} requests",
            stages.len()
        );
        assert!(
            plan.to_string().contains(&format!("split into {} copies", stages.len())),
            "{plan}"
        );
    }
}

#[test]
fn a_square_rechunk_has_one_intermediate() {
    let place = Place::quick();
    let x = planned(&[10_000, 10_000], &[10_000, 100], "float64").rechunk([100, 10_000]);
    let plan = plan(&x, &place, &Spec { allowed_mem: 2_000_000_000, ..place.spec() });
    let stages = &plan.plan().stages;
    assert!(stages.len() <= 2 && stages.iter().all(|s| s.n_tasks() >= 8), "{plan}");
}

#[test]
fn more_memory_never_costs_parallelism() {
    let place = Place::quick();
    let x = planned(&[1000, 1000], &[100, 100], "float64");
    for (array, least) in
        [(x.reshape([-1]), 8), (&x + &x.rechunk([70, 300]), 8), (x.rechunk([1000, 100]), 8)]
    {
        for allowed_mem in [50_000_000, 2_000_000_000, 60_000_000_000] {
            let plan = plan(
                &array,
                &place,
                &Spec { allowed_mem, local_mem: 4 * allowed_mem, ..place.spec() },
            );
            assert!(plan.plan().stages.iter().all(|s| s.n_tasks() >= least), "{plan}");
        }
    }
}

/// Creates a store with a random array of whole numbers.
fn integers(
    shape: &[u64],
    chunks: &[u64],
    seed: u64,
    spec: &Spec,
) -> (Arc<MemoryStore>, Array, ArrayD<i64>) {
    let store = Arc::new(MemoryStore::new());
    let x = freestone::random_integers(shape, -50, 50, seed, DType::Int64, chunks);
    let whole = freestone::compute_with::<i64>(&x, spec, &Serial).unwrap();
    store
        .write("x/zarr.json", &serde_json::to_vec(&document(shape, chunks, "int64")).unwrap())
        .unwrap();
    let elements: Vec<Vec<u8>> = whole.iter().map(|x| x.to_le_bytes().to_vec()).collect();
    for (key, bytes) in crate::support::chunk_files(shape, chunks, &elements) {
        store.write(&format!("x/{key}"), &bytes).unwrap();
    }
    let x = open_in_memory(&store, "x");
    (store, x, whole)
}

/// The same array, compressed, so that partial reads are impossible.
fn compressed(x: &Array, spec: &Spec) -> Array {
    let store = Arc::new(MemoryStore::new());
    let stores = Stores::default();
    stores.insert(Arc::<MemoryStore>::clone(&store));
    let target =
        Target::in_group(x, store.url(), "x").with_stores(&stores).codec(CodecName::Zstd(1));
    freestone::run(&freestone::plan(&[target], spec).unwrap(), spec, &Serial).unwrap();
    open_in_memory(&store, "x")
}

#[derive(Clone, Debug)]
struct Rechunk {
    /// Length, and chunk lengths before and after, along each axis.
    axes: Vec<(u64, u64, u64)>,
    compressed: bool,
}

fn rechunks() -> impl Strategy<Value = Rechunk> {
    let axes = (1usize..5).prop_flat_map(|rank| {
        let longest = [3000u64, 220, 40, 16][rank - 1];
        let axis = (longest / 2..=longest).prop_flat_map(move |n| {
            let least = (n / 40).max(1);
            (Just(n), least..=n, least..=n)
        });
        prop::collection::vec(axis, rank)
    });
    (axes, prop::bool::weighted(0.7)).prop_map(|(axes, compressed)| Rechunk { axes, compressed })
}

/// As Cubed's property test: memory for five of the largest chunks is enough, values are unchanged,
/// and each object is written once.
#[test]
fn rechunks_fit_in_five_chunks_and_keep_values() {
    let place = Place::quick();
    let (several, cases) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let config = Config {
        cases: 320,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(7),
        max_shrink_iters: 64,
        ..Config::default()
    };
    let ended = TestRunner::new(config).run(&rechunks(), |case| {
        let (shape, source): (Vec<u64>, Vec<u64>) = case.axes.iter().map(|a| (a.0, a.1)).unzip();
        let target: Vec<u64> = case.axes.iter().map(|a| a.2).collect();
        let largest = 8 * source.iter().product::<u64>().max(target.iter().product());
        // Memory that does not depend on chunks: scratch of kernels, and codec contexts.
        let allowed_mem = 5 * largest + 400_000;
        let spec =
            Spec { reserved_mem: 0, allowed_mem, local_mem: 8 * allowed_mem, ..place.spec() };
        let (_, x, whole) = integers(&shape, &source, 3, &place.spec());
        let x = if case.compressed { compressed(&x, &place.spec()) } else { x };
        let out: Arc<MemoryStore> = Arc::new(MemoryStore::new());
        let stores = Stores::default();
        stores.insert(Arc::<MemoryStore>::clone(&out));
        let y = x.rechunk(&target);
        let target =
            Target::in_group(&y, out.url(), "y").with_stores(&stores).codec(CodecName::None);
        let plan =
            freestone::plan(&[target], &spec).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert!(plan.finalized().projected_mem() <= allowed_mem);
        several.set(several.get() + usize::from(plan.finalized().plan().stages.len() > 1));
        cases.set(cases.get() + 1);
        freestone::run(&plan, &spec, &Serial).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let twice: Vec<String> = out
            .counts()
            .writes
            .iter()
            .filter(|(k, n)| **n > 1 && !k.ends_with("zarr.json"))
            .map(|(k, _)| k.clone())
            .collect();
        prop_assert!(twice.is_empty(), "written twice: {:?}", twice);
        let found =
            freestone::compute_with::<i64>(&open_in_memory(&out, "y"), &place.spec(), &Serial)
                .unwrap();
        prop_assert_eq!(found, whole);
        Ok(())
    });
    if let Err(error) = ended {
        panic!("{error}");
    }
    println!("{} rechunks, {} of them in several copies", cases.get(), several.get());
    assert!(cases.get() >= 300 && several.get() >= 8, "{} of {}", several.get(), cases.get());
}

/// Returns the stages of a stored view of a computed array. Views cost no stage.
#[test]
fn views_of_computed_arrays_cost_no_stage() {
    let place = Place::quick();
    let (_, x, whole) = integers(&[24, 30], &[5, 7], 11, &place.spec());
    let f = |v: ArrayD<i64>| v.mapv(|v| 3 * v + 1);
    let y = &(&x * 3) + 1;
    let whole = f(whole);
    let pick = |a: usize, indices: Vec<usize>| whole.select(Axis(a), &indices);
    let padded = |fill: i64| {
        let mut out = ArrayD::from_elem(IxDyn(&[29, 33]), fill);
        out.slice_mut(ndarray::s![2..26, 0..30])
            .assign(&whole.view().into_dimensionality::<ndarray::Ix2>().unwrap());
        out
    };
    let cases: Vec<(&str, Array, ArrayD<i64>)> = vec![
        (
            "x[::2]",
            y.slice(freestone::Slice::from(..).step(2), 0),
            pick(0, (0..24).step_by(2).collect()),
        ),
        ("x[1:]", y.slice(1.., 0), pick(0, (1..24).collect())),
        ("flip", y.flip(0), pick(0, (0..24).rev().collect())),
        ("roll", y.roll(5, 0), pick(0, (0..24).map(|i| (i + 19) % 24).collect())),
        ("take", y.take([3, 3, 20, 1], 0), pick(0, vec![3, 3, 20, 1])),
        ("repeat", y.repeat(2, 1), pick(1, (0..60).map(|i| i / 2).collect())),
        ("tile", y.tile([2, 1]), pick(0, (0..48).map(|i| i % 24).collect())),
        ("diff", y.diff(1, 0), &pick(0, (1..24).collect()) - &pick(0, (0..23).collect())),
        ("pad", y.pad([(2, 3), (0, 3)], Pad::Constant(7.into())), padded(7)),
        ("concat", concat(&[y.clone(), x.clone(), &x * &x], 0), {
            let x = whole.mapv(|v| (v - 1) / 3);
            ndarray::concatenate(Axis(0), &[whole.view(), x.view(), (&x * &x).view()]).unwrap()
        }),
        (
            "stack",
            stack(&[y.clone(), -&y], 1),
            ndarray::stack(Axis(1), &[whole.view(), whole.mapv(|v| -v).view()]).unwrap(),
        ),
        ("unstack", y.unstack(0).unwrap().swap_remove(4), whole.index_axis(Axis(0), 4).to_owned()),
        ("roll of a concat of rolls", concat(&[y.roll(3, 1), &y + 1], 1).roll(-4, 1), {
            let a = whole.select(Axis(1), &(0..30).map(|i| (i + 27) % 30).collect::<Vec<_>>());
            let both =
                ndarray::concatenate(Axis(1), &[a.view(), whole.mapv(|v| v + 1).view()]).unwrap();
            both.select(Axis(1), &(0..60).map(|i| (i + 4) % 60).collect::<Vec<_>>())
        }),
    ];
    for (name, array, expect) in cases {
        let plan = plan(&array, &place, &place.spec());
        assert_eq!(plan.plan().stages.len(), 1, "{name}: {plan}");
        assert!(plan.plan().arrays.iter().all(|a| a.place != ArrayPlace::Work), "{name}");
        assert_eq!(
            freestone::compute_with::<i64>(&array, &place.spec(), &Serial).unwrap(),
            expect,
            "{name}"
        );
    }
}

/// Returns the maximum and the mean number of reads of a chunk by one worker.
#[track_caller]
fn reads(name: &str, make: impl Fn(&Array) -> Array, average: f64) {
    let place = Place::quick();
    let spec = Spec { parallelism: 1, threads: 1, ..place.spec() };
    let (store, x, _) = integers(&[160, 90], &[10, 9], 5, &spec);
    let array = make(&x);
    let before = store.counts();
    freestone::compute_with::<i64>(&array, &spec, &Serial).unwrap();
    let chunks: Vec<u64> = store
        .counts()
        .reads
        .iter()
        .filter(|(k, _)| k.contains("/c/"))
        .map(|(k, n)| n - before.reads.get(k).copied().unwrap_or(0))
        .collect();
    let mean = chunks.iter().sum::<u64>() as f64 / chunks.len() as f64;
    println!("{name}: {mean:.2} reads a chunk, {} at most", chunks.iter().max().unwrap());
    assert!(mean <= average, "{name}: {mean} reads a chunk");
}

#[test]
fn chunks_are_decoded_once_where_blocks_overlap() {
    let cut = |x: &Array, axis: i64, start: i64, stop: Option<i64>| {
        x.slice(freestone::Slice::new(Some(start), stop, 1), axis)
    };
    reads("x[1:]", |x| cut(x, 0, 1, None), 1.2);
    reads("x[:, 1:]", |x| cut(x, 1, 1, None), 1.2);
    reads("x[1:] - x[:-1]", |x| x.diff(1, 0), 1.2);
    reads("pad", |x| x.pad([(3, 3), (4, 4)], Pad::Constant(0.into())), 2.2);
    reads(
        "stencil",
        |x| &(&cut(x, 0, 2, None) - &cut(x, 0, 0, Some(-2))) + &cut(x, 0, 1, Some(-1)),
        1.2,
    );
    reads("roll", |x| x.roll(3, 0), 1.3);
    reads("misaligned", |x| &cut(x, 0, 0, Some(155)) + &cut(x, 0, 5, None), 1.2);
}

#[track_caller]
fn product(
    a: &Array,
    b: &Array,
    spec: &Spec,
    stages: usize,
    expect: &Array2<f64>,
) -> FinalizedPlan {
    let place = Place::quick();
    let c = a.matmul(b);
    let plan = self::plan(&c, &place, spec);
    assert_eq!(plan.plan().stages.len(), stages, "{plan}");
    assert_eq!(
        freestone::compute_with::<f64>(&c, spec, &Serial).unwrap(),
        expect.clone().into_dyn(),
        "{plan}"
    );
    plan
}

#[test]
fn matrix_products_with_any_memory() {
    let place = Place::quick();
    let spec = place.spec();
    let real = |shape: &[u64], chunks: &[u64], seed| {
        let (_, x, whole) = integers(shape, chunks, seed, &spec);
        (
            x.astype(DType::Float64),
            whole.mapv(|v| v as f64).into_dimensionality::<ndarray::Ix2>().unwrap(),
        )
    };
    let (a, wa) = real(&[70, 90], &[16, 25], 1);
    let (b, wb) = real(&[90, 50], &[31, 14], 2);
    product(&a, &b, &spec, 1, &wa.dot(&wb));
    // With computed operands, and through views.
    let (a1, b2) = (&a + 1.0, &b * 2.0);
    product(&a1, &b2, &spec, 1, &(&wa + 1.0).dot(&(&wb * 2.0)));
    product(&a.flip(0), &b, &spec, 1, &wa.slice(ndarray::s![..;-1, ..]).dot(&wb));
    product(&a.flip(1), &b.flip(0), &spec, 1, &wa.dot(&wb));
    product(
        &a.slice(freestone::Slice::from(1..).step(2), 1),
        &b.slice(freestone::Slice::from(..).step(2), 0),
        &spec,
        1,
        &wa.slice(ndarray::s![.., 1..;2]).dot(&wb.slice(ndarray::s![..;2, ..])),
    );
    product(&a, &a.matrix_transpose(), &spec, 1, &wa.dot(&wa.t()));
    product(&a.roll(3, 1), &b.roll(3, 0), &spec, 1, &wa.dot(&wb));
    let ones = freestone::ones([1, 90], DType::Float64, [1, 90]).broadcast_to([20, 90]);
    product(&ones, &b, &spec, 1, &Array2::ones((20, 90)).dot(&wb));
    // A long contraction with one result chunk is computed in parts.
    let (long, wl) = real(&[6000, 8], &[100, 8], 3);
    let plan = product(
        &long.matrix_transpose(),
        &long,
        &Spec { parallelism: 4, threads: 4, ..spec.clone() },
        2,
        &wl.t().dot(&wl),
    );
    assert!(
        plan.plan().stages[0].n_tasks() >= 4
            && plan.plan().stages[0].outputs[0].axes.contains(&OutAxis::Part(2)),
        "{plan}"
    );
    // More memory allows larger boxes, each of which reads the operands once.
    let (big, wbig) = real(&[120, 120], &[10, 10], 4);
    let boxes = |allowed_mem: u64| {
        let spec =
            Spec { allowed_mem, reserved_mem: 0, parallelism: 1, threads: 1, ..place.spec() };
        product(&big, &big, &spec, 1, &wbig.dot(&wbig)).plan().stages[0].n_tasks()
    };
    assert!(boxes(9_000_000) <= 9);
}

#[test]
fn tensors_are_contracted_over_several_axes() {
    let place = Place::quick();
    let (_, x, wx) = integers(&[6, 7, 8, 5], &[4, 3, 3, 5], 1, &place.spec());
    let (_, y, wy) = integers(&[8, 7, 9], &[3, 7, 4], 2, &place.spec());
    let z = tensordot(&x, &y, freestone::TensordotAxes::from(([1, 2], [1, 0])));
    let expect = ArrayD::from_shape_fn(IxDyn(&[6, 5, 9]), |at| {
        (0..7)
            .flat_map(|k| (0..8).map(move |l| (k, l)))
            .map(|(k, l)| wx[[at[0], k, l, at[1]]] * wy[[l, k, at[2]]])
            .sum::<i64>()
    });
    assert_eq!(freestone::compute_with::<i64>(&z, &place.spec(), &Serial).unwrap(), expect);
}

/// Cubed fails for 6 to 9 blocks, 11 to 14, and many more.
#[test]
fn cumulative_sums_over_any_number_of_blocks() {
    let place = Place::quick();
    for blocks in (1..=40).chain([130]) {
        for (parallelism, columns) in [(1, 3), (3, 3), (3, 1), (50, 3)] {
            let spec = Spec { parallelism, threads: 2, ..place.spec() };
            let (store, x, whole) =
                integers(&[3 * blocks - 1, 2 * columns], &[3, 2], blocks, &spec);
            let before = store.counts();
            let sum = x.cumulative_sum(0);
            let mut expect = whole.clone();
            expect.accumulate_axis_inplace(Axis(0), |a, b| *b += a);
            assert_eq!(
                freestone::compute_with::<i64>(&sum, &spec, &Serial).unwrap(),
                expect,
                "{blocks} blocks, {parallelism}"
            );
            let most = store
                .counts()
                .reads
                .iter()
                .filter(|(k, _)| k.contains("/c/"))
                .map(|(k, n)| n - before.reads.get(k).copied().unwrap_or(0))
                .max()
                .unwrap();
            assert!(most <= 2, "{blocks} blocks, {parallelism}: a chunk is read {most} times");
            let plan = plan(&sum, &place, &spec);
            let large = plan.plan().arrays.iter().filter(|a| {
                a.place == ArrayPlace::Work && a.info.n_bytes() > 8 * 2 * u128::from(columns) * 260
            });
            assert_eq!(large.count(), 0, "{plan}");
        }
    }
    let x = freestone::arange(0, 7, 1, DType::Int64, 2);
    let with = freestone::compute_with::<i64>(
        &x.cumulative_sum(Scan::axis(0).include_initial()),
        &place.spec(),
        &Serial,
    )
    .unwrap();
    assert_eq!(with.into_raw_vec_and_offset().0, [0, 0, 1, 3, 6, 10, 15, 21]);
}

#[test]
fn sums_of_a_million_chunks_are_two_stages() {
    let place = Place::quick();
    let x = planned(&[1000, 1000, 1000], &[10, 10, 10], "float32");
    for array in [x.sum(()), x.mean(()), x.argmax(()), x.sum(0)] {
        let plan = plan(&array, &place, &place.spec());
        assert!(
            plan.plan().stages.len() <= 2
                && plan.plan().stages.iter().all(|s| matches!(s.kernel, Kernel::Reduce { .. })),
            "{plan}"
        );
    }
}

/// Chunks outside a slice are neither read nor computed, and may be damaged.
#[test]
fn chunks_outside_slices_are_not_read() {
    let place = Place::quick();
    let (_, x, whole) = integers(&[24, 30], &[6, 10], 11, &place.spec());
    let store = Arc::new(MemoryStore::new());
    let stores = Stores::default();
    stores.insert(Arc::<MemoryStore>::clone(&store));
    let target = Target::in_group(&x, store.url(), "x")
        .with_stores(&stores)
        .codec("zstd+crc32c".parse::<freestone::Encoding>().unwrap());
    freestone::run(&freestone::plan(&[target], &place.spec()).unwrap(), &place.spec(), &Serial)
        .unwrap();
    // All chunks of the last two columns of chunks, and of the last row.
    for key in store.keys().into_iter().filter(|k| {
        k.starts_with("x/c/") && (k.ends_with("/1") || k.ends_with("/2") || k.starts_with("x/c/3/"))
    }) {
        store.write(&key, b"poison").unwrap();
    }
    let x = open_in_memory(&store, "x");
    let cut = |x: &Array| x.slice(..10, 1).slice(..18, 0);
    let kept = whole.slice(ndarray::s![..18, ..10]).to_owned();
    let y = cut(&x.cumulative_sum(0).rechunk([24, 30]));
    assert!(
        freestone::compute_with::<i64>(&y, &place.spec(), &Serial).is_err(),
        "the poison works"
    );
    let shifted = kept.mapv(|v| v * 3 + 1);
    assert_eq!(
        freestone::compute_with::<i64>(&cut(&(&(&x * 3) + 1)), &place.spec(), &Serial).unwrap(),
        shifted.clone().into_dyn()
    );
    let both = concat(&[cut(&x), -&cut(&x)], 1).slice(3..13, 1);
    let expect = ndarray::concatenate(Axis(1), &[kept.view(), kept.mapv(|v| -v).view()])
        .unwrap()
        .slice(ndarray::s![.., 3..13])
        .to_owned();
    assert_eq!(
        freestone::compute_with::<i64>(&both, &place.spec(), &Serial).unwrap(),
        expect.into_dyn()
    );
    let total = cut(&x).sum(());
    assert_eq!(
        freestone::compute_with::<i64>(&total, &place.spec(), &Serial).unwrap().sum(),
        kept.sum()
    );
    let product = cut(&x).matmul(&cut(&x).matrix_transpose());
    let expect = kept.dot(&kept.t());
    assert_eq!(
        freestone::compute_with::<i64>(&product, &place.spec(), &Serial).unwrap(),
        expect.into_dyn()
    );
}

/// A stored result that is also an operand is stored, too. Cubed's fusion once left it empty.
#[test]
fn stored_operands_are_stored() {
    let place = Place::quick();
    let (_, x, whole) = integers(&[24, 30], &[6, 10], 2, &place.spec());
    let d = -&(-&x);
    let targets = [Target::array(&d, place.at("d")), Target::array(&(&d + 1), place.at("e"))];
    freestone::run(&freestone::plan(&targets, &place.spec()).unwrap(), &place.spec(), &Serial)
        .unwrap();
    let read = |name: &str| {
        freestone::compute_with::<i64>(
            &freestone::open(place.at(name)).unwrap(),
            &place.spec(),
            &Serial,
        )
        .unwrap()
    };
    assert_eq!(read("d"), whole);
    assert_eq!(read("e"), whole.mapv(|v| v + 1));
}
