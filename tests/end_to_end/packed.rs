//! Packed values (`scale_factor`, `add_offset`, `_Unsigned`, `_FillValue`, `missing_value`): copied
//! with their attributes, and not computed with unless stored values are requested.

use std::fs;

use freestone::{
    Array, ArrayError, DType, Error, ExitCode, Pad, RegionError, Scalar, Serial, Spec, Target,
    Threads,
};
use freestone_engine::storage::metadata::{self, open_array};
use freestone_engine::storage::packing::Packing;
use ndarray::{Array1, ArrayD};
use serde_json::{Value, json};

use crate::command::{check_failure, freestone, stdout};
use crate::support::{Place, WINDS_V2, chunk_files, document};
use crate::user_kernels::BlockSum;

const N: u64 = 6;
/// The stored values; the last two are missing.
const STORED: [i16; 6] = [0, 100, 200, 300, -32767, -1];

fn attributes() -> Value {
    json!({
        "scale_factor": 0.01,
        "add_offset": 273.15,
        "_FillValue": -32767,
        "missing_value": -1,
        "units": "K",
        "note": "by us",
    })
}

/// Writes an array `t` along `time` with its coordinate, in format 3, or in format 2 with Xarray's
/// place for the fill value.
fn write(place: &Place, name: &str, format: u8, dtype: DType, attributes: Value) -> String {
    let group = place.at(name);
    let array = |path: &str, dtype: DType, attributes: Value, values: &[f64]| {
        let elements: Vec<Vec<u8>> =
            values.iter().map(|v| Scalar::from_f64(dtype, *v).bytes().to_vec()).collect();
        let folder = format!("{group}/{path}");
        fs::create_dir_all(&folder).unwrap();
        for (key, bytes) in chunk_files(&[N], &[4], &elements) {
            let key = if format == 2 { key.trim_start_matches("c/").to_owned() } else { key };
            fs::create_dir_all(std::path::Path::new(&format!("{folder}/{key}")).parent().unwrap())
                .unwrap();
            fs::write(format!("{folder}/{key}"), bytes).unwrap();
        }
        let mut attributes = attributes;
        if format == 3 {
            let mut text = document(&[N], &[4], dtype.name());
            (text["attributes"], text["dimension_names"]) = (attributes, json!(["time"]));
            return fs::write(format!("{folder}/zarr.json"), text.to_string()).unwrap();
        }
        let fill = attributes.as_object_mut().unwrap().remove("_FillValue").unwrap_or(Value::Null);
        attributes["_ARRAY_DIMENSIONS"] = json!(["time"]);
        let kind = if dtype.is_integer() { 'i' } else { 'f' };
        let text = json!({
            "zarr_format": 2,
            "shape": [N],
            "chunks": [4],
            "dtype": format!("<{kind}{}", dtype.size()),
            "order": "C",
            "compressor": null,
            "filters": null,
            "fill_value": fill,
        });
        fs::write(format!("{folder}/.zarray"), text.to_string()).unwrap();
        fs::write(format!("{folder}/.zattrs"), attributes.to_string()).unwrap();
    };
    fs::create_dir_all(&group).unwrap();
    let marker = if format == 2 {
        (".zgroup", json!({"zarr_format": 2}))
    } else {
        ("zarr.json", json!({"zarr_format": 3, "node_type": "group"}))
    };
    fs::write(format!("{group}/{}", marker.0), marker.1.to_string()).unwrap();
    array("t", dtype, attributes, &STORED.map(f64::from));
    // The coordinate is packed, too, and is copied unchanged.
    array(
        "time",
        DType::Int16,
        json!({"units": "hours since 2000-01-01", "scale_factor": 0.5, "_FillValue": -9}),
        &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
    );
    format!("{group}/t")
}

#[track_caller]
fn is_packed(array: Array) {
    let error = array.check().expect_err("packed values were computed with");
    let error = Error::from(error);
    assert_eq!(error.exit_code(), ExitCode::Input);
    let text = error.to_string();
    let wanted = [
        "/t`",
        "scale_factor=0.01",
        "add_offset=273.15",
        "_FillValue=-32767",
        "missing_value=-1",
        "--raw",
        "Array::raw",
    ];
    assert!(wanted.iter().all(|w| text.contains(w)), "{text}");
    assert!(text.contains("`where((t == -32767) | (t == -1), nan, t * 0.01 + 273.15)`"), "{text}");
}

fn values(array: &Array, spec: &Spec) -> ArrayD<i16> {
    freestone::compute::<i16>(&array.raw(), spec).unwrap()
}

fn stored() -> ArrayD<i16> {
    Array1::from(STORED.to_vec()).into_dyn()
}

/// All computations on packed values, of either format, are refused, and so are views of them.
#[test]
fn computations_on_packed_values_are_refused() {
    let place = Place::quick();
    for format in [2, 3] {
        let t = freestone::open(write(
            &place,
            &format!("in-{format}"),
            format,
            DType::Int16,
            attributes(),
        ))
        .unwrap();
        for t in [
            t.clone(),
            t.slice(freestone::Slice::from(1..).step(2), 0),
            t.rechunk([3]),
            t.flip(0).reshape([2, 3]),
        ] {
            is_packed(t.mean(0));
            is_packed(t.max(()));
            is_packed(t.argmin(0));
            is_packed((&t + 1).sum(0));
            is_packed(freestone::square(&t));
            is_packed(freestone::less(&t, 3));
            is_packed(freestone::where_(&freestone::scalar(freestone::Bool(1)), &t, 0));
            is_packed(t.astype(DType::Float64));
            is_packed(t.cumulative_sum(freestone::Scan::axis(0)));
            is_packed(freestone::tensordot(&t, &t, freestone::TensordotAxes::Count(0)));
            is_packed(t.diff(1, 0));
            is_packed(freestone::map_blocks(
                &BlockSum,
                [&t],
                &freestone::OutputBlocks::new(DType::Int16),
            ));
            let rank = t.shape().unwrap().len();
            is_packed(t.pad(vec![(1, 0); rank], Pad::Constant(Scalar::new(0i16))));
            // Packed and stored values in one array.
            is_packed(freestone::concat(&[t.clone(), t.raw()], 0));
            is_packed(freestone::concat(&[t.raw(), t.clone()], 0));
        }
        // The result has no attributes that describe the packing.
        let error = freestone::compute::<i16>(&t, &place.spec()).unwrap_err();
        let Error::Array(ArrayError::Packed(packed)) = &error else { panic!("{error}") };
        assert!(packed.place.as_deref().is_some_and(|p| p.ends_with("/t")), "{error}");
    }
}

/// The expression in the message gives the values that the attributes describe.
#[test]
fn the_suggested_expression_unpacks_values() {
    let place = Place::quick();
    write(&place, "in", 2, DType::Int16, attributes());
    let refused = ["compute", "mean(celsius - 273.15)", "-i", "celsius=in/t", "-o", "out"];
    check_failure(
        &place,
        &refused,
        4,
        &["where((celsius == -32767) | (celsius == -1), nan, celsius * 0.01 + 273.15)", "`--raw`"],
    );
    check_failure(&place, &["plan", "sum(t)", "-i", "t=in/t"], 4, &["where((t == -32767)"]);
    let expression = "where((t == -32767) | (t == -1), nan, t * 0.01 + 273.15)";
    stdout(&freestone(&place, &["compute", expression, "-i", "t=in/t", "-o", "kelvin:t", "--raw"]));
    let kelvin = freestone::open(place.at("kelvin/t")).unwrap();
    assert!(kelvin.packing().unwrap().is_none());
    let found = freestone::compute::<f64>(&kelvin, &place.spec()).unwrap();
    let expect = [273.15, 274.15, 275.15, 276.15, f64::NAN, f64::NAN];
    assert!(
        found.iter().zip(expect).all(|(a, b)| (a - b).abs() < 1e-9 || (a.is_nan() && b.is_nan())),
        "{found}"
    );
    // The coordinate was copied unchanged.
    let time = freestone::open(place.at("kelvin/time")).unwrap();
    assert_eq!(
        Value::Object(time.attributes().unwrap().clone()),
        json!({"units": "hours since 2000-01-01", "scale_factor": 0.5, "_FillValue": -9})
    );
    // Floats, and integers of the other signedness.
    for (dtype, given, name, expression, expect) in [
        (
            DType::Float32,
            json!({"_FillValue": "AAAAAAAA8L8="}),
            "floats",
            "where(t == -1.0, nan, t)",
            f64::NAN,
        ),
        (DType::Int16, json!({"_Unsigned": "true"}), "unsigned", "astype(t, uint16)", 65535.0),
    ] {
        let t = write(&place, name, 3, dtype, given);
        check_failure(
            &place,
            &["compute", "sum(t)", "-i", &format!("t={t}"), "-o", "out"],
            4,
            &[expression],
        );
        stdout(&freestone(
            &place,
            &[
                "compute",
                &format!("astype({expression}, float64)"),
                "-i",
                &format!("t={t}"),
                "-o",
                "out",
                "--raw",
                "--overwrite",
            ],
        ));
        let found =
            freestone::compute::<f64>(&freestone::open(place.at("out")).unwrap(), &place.spec())
                .unwrap();
        assert!(found[[5]] == expect || (found[[5]].is_nan() && expect.is_nan()), "{found}");
        assert_eq!(found[[1]], 100.0);
    }
}

/// Copies and rearrangements on every executor keep the packing attributes of both formats. Missing
/// values of format 2 become fill values of format 3.
#[test]
fn copies_of_packed_values_keep_their_attributes() {
    let place = Place::quick();
    let spec = place.spec();
    let run = |target: Target| {
        freestone::run(&freestone::plan(&[target], &spec).unwrap(), &spec, &Threads::new(2))
            .unwrap()
    };
    for format in [2, 3] {
        let t = freestone::open(write(
            &place,
            &format!("in-{format}"),
            format,
            DType::Int16,
            attributes(),
        ))
        .unwrap();
        let out = place.at(&format!("out-{format}"));
        run(Target::in_group(&t.rechunk([3]), &out, "t"));
        let copy = freestone::open(format!("{out}/t")).unwrap();
        assert_eq!(Value::Object(copy.attributes().unwrap().clone()), attributes());
        assert_eq!(values(&copy, &spec), stored());
        let time = freestone::open(format!("{out}/time")).unwrap();
        assert_eq!(
            Value::Object(time.attributes().unwrap().clone()),
            json!({"units": "hours since 2000-01-01", "scale_factor": 0.5, "_FillValue": -9})
        );
        // All parts have the same packing.
        let pieces = [t.slice(3.., 0), t.slice(..3, 0)];
        let joined = freestone::concat(&pieces, 0);
        assert!(Packing::same(joined.packing().unwrap().as_ref(), t.packing().unwrap().as_ref()));
        assert_eq!(values(&joined, &spec)[[0]], 300);
        // The command's copy, and its description of the array.
        let name = format!("copy-{format}");
        stdout(&freestone(
            &place,
            &[
                "rechunk",
                &format!("in-{format}/t"),
                &name,
                "--chunks",
                "2",
                "--executor",
                "processes",
            ],
        ));
        let store = freestone::Stores::default().open(&place.at(&name)).unwrap();
        assert_eq!(
            metadata::document(&*store, "").unwrap().unwrap()["attributes"]["_FillValue"],
            json!(-32767)
        );
        assert!(
            stdout(&freestone(&place, &["info", &format!("in-{format}/t")]))
                .contains("_FillValue: -32767")
        );
    }
    // A float fill value of format 2 has the encoding that Xarray uses in format 3.
    let t = freestone::open(write(
        &place,
        "floats",
        2,
        DType::Float32,
        json!({"_FillValue": -32767.0}),
    ))
    .unwrap();
    run(Target::array(&t, place.at("out-floats")));
    assert_eq!(
        freestone::open(place.at("out-floats")).unwrap().attributes().unwrap()["_FillValue"],
        "AAAAAMD/38A="
    );
}

/// Attributes that change no value are no packing: NaN as the missing value, fill values of arrays
/// without axis names, units.
#[test]
fn harmless_attributes_are_not_packing() {
    let place = Place::quick();
    let u = freestone::open(format!("{WINDS_V2}/u")).unwrap();
    assert!(u.packing().unwrap().is_none());
    assert!(!u.attributes().unwrap().contains_key("_FillValue"), "a copy has the same attributes");
    freestone::compute::<f32>(&u.mean(()), &place.spec()).unwrap();
    for (i, harmless) in [
        json!({"_FillValue": "AAAAAAAA+H8="}),
        json!({"scale_factor": 1.0, "add_offset": 0}),
        json!({"units": "K"}),
    ]
    .into_iter()
    .enumerate()
    {
        let t = freestone::open(write(&place, &format!("in-{i}"), 3, DType::Float32, harmless))
            .unwrap();
        assert_eq!(
            t.raw().attributes().unwrap(),
            t.attributes().unwrap(),
            "what is not packed stays as it is"
        );
        freestone::compute::<f32>(&t.mean(0), &place.spec()).unwrap();
    }
    // A computed result of another signedness is not read as packed.
    let t = freestone::open(write(&place, "bytes", 3, DType::UInt16, json!({"_Unsigned": "true"})))
        .unwrap();
    let signed = t.astype(DType::Int16);
    assert!(signed.packing().unwrap().is_none());
}

/// A region accepts only values that readers of its array unpack correctly.
#[test]
fn regions_accept_values_of_the_same_packing() {
    let place = Place::quick();
    let spec = place.spec();
    let t = freestone::open(write(&place, "in", 2, DType::Int16, attributes())).unwrap();
    freestone::create(&[Target::in_group(&t, place.at("out"), "t").chunks([3])], &spec).unwrap();
    let write_region = |array: &Array, rows: std::ops::Range<u64>| {
        let target = Target::in_group(array, place.at("out"), "t").region(&[rows]);
        freestone::run(&freestone::plan(&[target], &spec)?, &spec, &Serial).map(drop)
    };
    let half = |from, to| t.slice(from..to, 0);
    write_region(&half(0, 3), 0..3).unwrap();
    write_region(&half(3, 6), 3..6).unwrap();
    assert_eq!(values(&freestone::open(place.at("out/t")).unwrap(), &spec), stored());
    // Plain values would be read as packed ones.
    let error = write_region(&half(0, 3).raw(), 0..3).unwrap_err();
    assert!(
        matches!(&error, Error::Array(ArrayError::Region(RegionError::Packing { .. }))),
        "{error}"
    );
    assert!(
        error.to_string().contains("scale_factor=0.01")
            && error.to_string().contains("no such attributes"),
        "{error}"
    );
    let other = half(0, 3).with_attribute("scale_factor", 0.02);
    assert!(write_region(&other, 0..3).unwrap_err().to_string().contains("scale_factor=0.02"));
    // They are accepted with the attributes of the same packing.
    let same = attributes()
        .as_object()
        .unwrap()
        .iter()
        .fold(half(0, 3).raw(), |array, (k, v)| array.with_attribute(k, v.clone()));
    write_region(&same, 0..3).unwrap();
    // Packed values into an array of plain ones.
    freestone::create(&[Target::array(&t.raw(), place.at("real")).chunks([3])], &spec).unwrap();
    let target = Target::array(&half(0, 3), place.at("real")).region(std::slice::from_ref(&(0..3)));
    assert!(matches!(
        freestone::plan(&[target], &spec),
        Err(Error::Array(ArrayError::Region(RegionError::Packing { .. })))
    ));
    // Refused regions are not written.
    let store = freestone::Stores::default().open(&place.at("out")).unwrap();
    assert_eq!(open_array(&store, "t").unwrap().attributes["_FillValue"], json!(-32767));
}

/// Writes copies of Xarray's packed arrays for `tests/interop/read_outputs.py`.
#[test]
#[ignore = "needs files of Xarray: run by .ci/run"]
fn interop_copies_what_xarray_packed() {
    let (folder, place) = (crate::suites::variable("FREESTONE_INTEROP"), Place::new());
    for format in [2, 3] {
        let names: Vec<String> = fs::read_to_string(format!("{folder}/packed-v{format}.txt"))
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect();
        assert!(names.len() >= 6, "{names:?}");
        for name in names {
            let array = freestone::open(format!("{folder}/packed-v{format}.zarr/{name}")).unwrap();
            assert_eq!(array.mean(()).check().is_err(), !name.starts_with("plain"), "{name}");
            let target = Target::in_group(
                &array.rechunk([5]),
                format!("{folder}/copied-v{format}.zarr"),
                &name,
            )
            .overwrite(true);
            freestone::run(
                &freestone::plan(&[target], &place.spec()).unwrap(),
                &place.spec(),
                &Threads::new(2),
            )
            .unwrap();
        }
    }
}
