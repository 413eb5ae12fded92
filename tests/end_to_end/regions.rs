//! Arrays created from metadata, and regions of existing arrays.

use std::fs;
use std::ops::Range;
use std::thread;

use freestone::{
    Array, ArrayError, CodecName, DType, Error, ExitCode, RegionError, Serial, Target, Threads,
};
use freestone_engine::driver::RunError;
use freestone_engine::plan::PlanError;
use freestone_engine::publish::PublishError;
use serde_json::json;

use crate::support::{Place, WINDS_V3, document, names, tree};

fn run(target: Target, place: &Place) -> Result<(), Error> {
    let planned = freestone::plan(&[target], &place.spec())?;
    freestone::run(&planned, &place.spec(), &Serial).map(drop)
}

fn values(location: &str, place: &Place) -> ndarray::ArrayD<f64> {
    freestone::compute::<f64>(
        &freestone::open(location).unwrap().astype(DType::Float64),
        &place.spec(),
    )
    .unwrap()
}

/// Returns 1, 2, 3, … in C order.
fn counted(rows: u64, columns: u64) -> Array {
    let along = |n: u64, by: f64| {
        freestone::arange(0.0, n as f64, 1.0, DType::Int64, 2).astype(DType::Float64) * by
    };
    let down = along(rows, columns as f64).expand_dims(1);
    &(&down + &along(columns, 1.0)) + 1.0
}

fn part(array: &Array, rows: i64, columns: i64) -> Array {
    array.slice(..rows, 0).slice(..columns, 1)
}

fn zeros(
    place: &Place,
    shape: &[u64],
    chunks: &[u64],
    how: impl FnOnce(Target) -> Target,
) -> String {
    let zeros = freestone::full(shape, 0.0, DType::Float64, chunks);
    let location = place.at("zeros");
    freestone::create(&[how(Target::array(&zeros, &location).chunks(chunks))], &place.spec())
        .unwrap();
    location
}

/// Cubed's cases: successive regions of 5 × 5 zeros in chunks of 2 × 2.
#[test]
fn successive_regions() {
    let place = Place::new();
    let array = counted(5, 4);
    let location = zeros(&place, &[5, 5], &[2, 2], |t| t);
    let before = fs::read(place.at("zeros/zarr.json")).unwrap();
    let check = |from: Array, region: [Range<u64>; 2], expect: [[i64; 5]; 5]| {
        let target = Target::array(&from, &location).region(&region);
        let planned = freestone::plan(std::slice::from_ref(&target), &place.spec()).unwrap();
        let chunks: u64 = region.iter().map(|r| (r.end - r.start).div_ceil(2)).product();
        assert_eq!(
            planned.finalized().plan().stages[0].n_tasks(),
            chunks,
            "only chunks of the region are written"
        );
        run(target, &place).unwrap();
        assert_eq!(
            values(&location, &place).iter().map(|x| *x as i64).collect::<Vec<_>>(),
            expect.concat()
        );
        assert_eq!(fs::read(place.at("zeros/zarr.json")).unwrap(), before, "metadata stay");
    };
    let none = [0; 5];
    check(part(&array, 2, 2), [0..2, 0..2], [[1, 2, 0, 0, 0], [5, 6, 0, 0, 0], none, none, none]);
    check(
        part(&array, 2, 4),
        [2..4, 0..4],
        [[1, 2, 0, 0, 0], [5, 6, 0, 0, 0], [1, 2, 3, 4, 0], [5, 6, 7, 8, 0], none],
    );
    check(
        part(&array, 3, 3),
        [2..5, 2..5],
        [[1, 2, 0, 0, 0], [5, 6, 0, 0, 0], [1, 2, 1, 2, 3], [5, 6, 5, 6, 7], [0, 0, 9, 10, 11]],
    );
    check(
        part(&array, 3, 1),
        [2..5, 4..5],
        [[1, 2, 0, 0, 0], [5, 6, 0, 0, 0], [1, 2, 1, 2, 1], [5, 6, 5, 6, 5], [0, 0, 9, 10, 9]],
    );
    check(
        part(&array, 5, 1),
        [0..5, 4..5],
        [[1, 2, 0, 0, 1], [5, 6, 0, 0, 5], [1, 2, 1, 2, 9], [5, 6, 5, 6, 13], [0, 0, 9, 10, 17]],
    );
}

#[track_caller]
fn check_refused(target: Target, place: &Place, says: &str, is: impl FnOnce(&RegionError) -> bool) {
    let before = tree(place.folder.path());
    let error = freestone::plan(&[target], &place.spec()).expect_err(says);
    assert!(matches!(&error, Error::Array(ArrayError::Region(e)) if is(e)), "{error:?}");
    assert!(error.to_string().contains(says), "`{error}` does not contain `{says}`");
    assert_eq!(error.exit_code(), ExitCode::Input);
    assert!(tree(place.folder.path()) == before);
}

/// Includes Cubed's error cases.
#[test]
#[allow(clippy::reversed_empty_ranges, clippy::single_range_in_vec_init)]
fn invalid_regions() {
    let place = Place::new();
    let array = counted(4, 4);
    let target = |columns: i64, location: &str| Target::array(&part(&array, 4, columns), location);
    check_refused(
        target(3, &place.at("nothing")).region(&[0..4, 0..3]),
        &place,
        "freestone::create",
        |e| matches!(e, RegionError::Missing { .. }),
    );
    let there = zeros(&place, &[7, 5], &[2, 2], |t| t);
    let shape = |e: &RegionError| {
        let RegionError::Shape { axis: 1, region, len: 3, .. } = e else { return false };
        *region == (2..4)
    };
    check_refused(
        target(3, &there).region(&[0..4, 2..4]),
        &place,
        "region 2..4 along axis 1",
        shape,
    );
    let unaligned = |e: &RegionError| {
        let RegionError::Unaligned { axis: 1, around, .. } = e else { return false };
        *around == (0..4)
    };
    check_refused(
        target(3, &there).region(&[0..4, 1..4]),
        &place,
        "0..4 is the smallest aligned region",
        unaligned,
    );
    check_refused(
        target(3, &there).region(&[0..4, 0..3]),
        &place,
        "objects of 2 elements: 0..4",
        unaligned,
    );
    check_refused(target(3, &there).region(&[4..8, 2..5]), &place, "7 elements", |e| {
        matches!(e, RegionError::Outside { axis: 0, len: 7, .. })
    });
    check_refused(target(3, &there).region(&[4..0, 2..5]), &place, "axis 0", |e| {
        matches!(e, RegionError::Outside { axis: 0, .. })
    });
    check_refused(target(3, &there).region(&[0..4]), &place, "1 axes", |e| {
        matches!(e, RegionError::Rank { region: 1, array: 2, .. })
    });
    let integers = array.astype(DType::Int32);
    check_refused(Target::array(&integers, &there).region(&[0..4, 0..4]), &place, "astype", |e| {
        matches!(e, RegionError::DType { .. })
    });
    for (how, what) in [
        (target(4, &there).chunks([2, 2]), "chunks"),
        (target(4, &there).codec(CodecName::None), "a codec"),
        (target(4, &there).fill(1.0), "a fill value"),
        (target(4, &there).overwrite(true), "overwrite"),
    ] {
        check_refused(how.region(&[0..4, 0..4]), &place, what, |e| {
            matches!(e, RegionError::Fixed { .. })
        });
    }
    let error =
        freestone::create(&[target(4, &there).region(&[0..4, 0..4])], &place.spec()).unwrap_err();
    assert!(
        matches!(error, Error::Array(ArrayError::Region(RegionError::Metadata { .. }))),
        "{error}"
    );
    // The input of a region must not be the array itself.
    let itself = freestone::open(&there).unwrap().slice(2..4, 0);
    let error =
        freestone::plan(&[Target::array(&itself, &there).region(&[0..2, 0..5])], &place.spec())
            .unwrap_err();
    assert!(matches!(error, Error::Plan(PlanError::BadOutput(_))), "{error}");
}

/// A chunk of fill values replaces an existing chunk.
#[test]
fn fill_values_replace_chunks() {
    for shards in [None, Some([4, 4])] {
        let place = Place::new();
        let location =
            zeros(&place, &[8, 6], &[2, 2], |t| if let Some(s) = shards { t.shards(s) } else { t });
        run(Target::array(&counted(8, 6), &location).region(&[0..8, 0..6]), &place).unwrap();
        let zero = freestone::full([4, 6], 0.0, DType::Float64, [4, 6]);
        run(Target::array(&zero, &location).region(&[4..8, 0..6]), &place).unwrap();
        let found = values(&location, &place);
        assert!(
            found.iter().enumerate().all(|(i, x)| *x == if i < 24 { i as f64 + 1.0 } else { 0.0 }),
            "{found}"
        );
        let last = if shards.is_some() { "c/1/0" } else { "c/3/0" };
        assert!(!names(&location).contains(&last.to_owned()), "{:?}", names(&location));
    }
}

#[test]
fn concurrent_runs_write_two_regions() {
    let place = Place::new();
    let location = zeros(&place, &[400, 60], &[10, 10], |t| t.shards([20, 30]));
    thread::scope(|scope| {
        for half in 0..2i64 {
            let (place, location) = (&place, &location);
            scope.spawn(move || {
                let rows = counted(400, 60).slice((200 * half)..(200 * half + 200), 0);
                let from = 200 * half as u64;
                let planned = freestone::plan(
                    &[Target::array(&rows, location).region(&[from..from + 200, 0..60])],
                    &place.spec(),
                )
                .unwrap();
                freestone::run(&planned, &place.spec(), &Threads::new(2)).unwrap();
            });
        }
    });
    let found = values(&location, &place);
    assert!(found.iter().enumerate().all(|(i, x)| *x == i as f64 + 1.0));
}

/// Arrays of other writers keep their keys, byte order and codecs.
#[test]
fn regions_of_foreign_arrays() {
    let place = Place::new();
    let mut v3 = document(&[5, 4], &[2, 2], "float64");
    v3["chunk_key_encoding"] = json!({"name": "v2", "configuration": {"separator": "."}});
    v3["codecs"] = json!([
        {"name": "transpose", "configuration": {"order": [1, 0]}},
        {"name": "bytes", "configuration": {"endian": "big"}},
        {"name": "crc32c"},
    ]);
    let v2 = json!({
        "zarr_format": 2,
        "shape": [5, 4],
        "chunks": [2, 2],
        "dtype": ">f8",
        "compressor": null,
        "fill_value": 0,
        "order": "C",
        "filters": null,
    });
    for (name, file, text) in [("v3", "zarr.json", v3), ("v2", ".zarray", v2)] {
        fs::create_dir(place.at(name)).unwrap();
        fs::write(place.at(&format!("{name}/{file}")), text.to_string()).unwrap();
        run(
            Target::array(&part(&counted(5, 4), 5, 2), place.at(name)).region(&[0..5, 2..4]),
            &place,
        )
        .unwrap();
        let found = values(&place.at(name), &place);
        assert!(
            found
                .indexed_iter()
                .all(|(i, x)| *x == if i[1] < 2 { 0.0 } else { (4 * i[0] + i[1] - 1) as f64 }),
            "{name}: {found}"
        );
        assert_eq!(
            names(place.at(name)),
            [file, "0.1", "1.1", "2.1"]
                .into_iter()
                .collect::<std::collections::BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
        );
    }
}

/// Metadata that change between planning and running, or during the run.
#[test]
fn changed_arrays_are_not_written() {
    let place = Place::new();
    let location = zeros(&place, &[4, 4], &[2, 2], |t| t);
    let planned = freestone::plan(
        &[Target::array(&counted(4, 4), &location).region(&[0..4, 0..4])],
        &place.spec(),
    )
    .unwrap();
    let other = freestone::full([4, 4], 0.0, DType::Float64, [1, 4]);
    freestone::create(&[Target::array(&other, &location).overwrite(true)], &place.spec()).unwrap();
    let error = freestone::run(&planned, &place.spec(), &Serial).unwrap_err();
    assert!(
        matches!(error, Error::Run(RunError::Publish(PublishError::Changed { .. }))),
        "{error}"
    );
    assert_eq!(error.exit_code(), ExitCode::Conflict);
    assert_eq!(names(&location), ["zarr.json"]);
    fs::remove_file(place.at("zeros/zarr.json")).unwrap();
    assert!(freestone::run(&planned, &place.spec(), &Serial).is_err());
}

/// Metadata and coordinates of the winds are stored first, then the values in parts whose ranges
/// follow from coordinates.
#[test]
fn metadata_first_and_regions_by_coordinates() {
    let place = Place::new();
    let group = place.at("winds.zarr");
    let u = freestone::open(format!("{WINDS_V3}/u")).unwrap();
    let target = |array: &Array| Target::in_group(array, &group, "u");
    // Time chunks of one step, so that any month is a region.
    freestone::create(&[target(&u).chunks([1, 37, 72]).shards([1, 74, 144])], &place.spec())
        .unwrap();
    assert!(freestone::create(&[target(&u)], &place.spec()).is_err(), "it is there");
    let stored = names(&group);
    assert!(
        stored.contains(&"u/zarr.json".into())
            && stored.contains(&"latitude/c/0".into())
            && !stored.iter().any(|n| n.starts_with("u/c")),
        "{stored:?}"
    );
    assert!(
        values(&format!("{group}/u"), &place).iter().all(|x| x.is_nan()),
        "until then they are missing"
    );

    let coordinates = tree(&group);
    for months in [0..5, 5..6, 6..12] {
        let piece = u.slice(months.start..months.end, 0);
        run(target(&piece).region_auto(), &place).unwrap();
    }
    assert_eq!(values(&format!("{group}/u"), &place), values(&format!("{WINDS_V3}/u"), &place));
    assert!(
        coordinates.iter().all(|(name, bytes)| tree(&group)[name] == *bytes),
        "coordinates and metadata stay"
    );

    let says = |expected: &'static str| {
        move |e: &RegionError| {
            let RegionError::Coordinate { axis: 0, name, why, .. } = e else { return false };
            name == "time" && why.contains(expected)
        }
    };
    let steps = u.slice(freestone::Slice::from(..).step(2), 0);
    check_refused(target(&steps).region_auto(), &place, "without gaps", says("without gaps"));
    check_refused(target(&u.flip(0)).region_auto(), &place, "in this order", says("in this order"));
    // The region's coordinate no longer matches that of the stored array.
    let path = format!("{group}/time/zarr.json");
    let mut time: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    time["attributes"]["units"] = json!("days since the flood");
    fs::write(&path, time.to_string()).unwrap();
    check_refused(target(&u).region_auto(), &place, "`units` differs", says("units"));
    fs::remove_file(&path).unwrap();
    check_refused(
        target(&u).region_auto(),
        &place,
        "no coordinate of that name",
        says("no coordinate"),
    );
    let renamed = u.with_dims(["month", "latitude", "longitude"]);
    check_refused(target(&renamed).region_auto(), &place, "named `month`", |e| {
        matches!(e, RegionError::Name { axis: 0, .. })
    });
}

#[test]
fn axes_without_names_are_complete_in_automatic_regions() {
    let place = Place::new();
    let location = zeros(&place, &[5, 4], &[2, 2], |t| t);
    run(Target::array(&counted(5, 4), &location).region_auto(), &place).unwrap();
    assert!(values(&location, &place).iter().enumerate().all(|(i, x)| *x == i as f64 + 1.0));
    check_refused(
        Target::array(&part(&counted(5, 4), 4, 4), &location).region_auto(),
        &place,
        "without a name",
        |e| matches!(e, RegionError::Name { .. }),
    );
}

/// Later stages read a region that the same plan stored.
#[test]
fn later_stages_read_stored_regions() {
    let place = Place::new();
    let location = zeros(&place, &[8, 6], &[2, 2], |t| t.shards([4, 2]));
    let rechunked = counted(4, 4).rechunk([4, 1]);
    let targets = [
        Target::array(&rechunked, &location).region(&[4..8, 2..6]),
        Target::array(&rechunked.sum(()), place.at("sum")),
    ];
    let planned = freestone::plan(&targets, &place.spec()).unwrap();
    let text = planned.finalized().to_string();
    assert!(
        text.contains("to the region at [4, 2] of") && text.contains("reads zeros float64 [4, 4]"),
        "{text}"
    );
    freestone::run(&planned, &place.spec(), &Serial).unwrap();
    assert_eq!(
        (values(&place.at("sum"), &place).sum(), values(&location, &place).sum()),
        (136.0, 136.0)
    );
}
