//! Invalid inputs and outputs: a typed error, its exit code, and no files left.

use std::fs;
use std::path::Path;

use freestone::{
    Array, ArrayError, CodecName, DType, Error, ExitCode, Serial, Settings, Spec, Target, Threads,
};
use freestone_engine::driver::RunError;
use freestone_engine::plan::PlanError;
use freestone_engine::publish::PublishError;
use freestone_engine::storage::StorageError;
use freestone_engine::storage::codec::CodecError;
use freestone_engine::storage::metadata::MetadataError;
use freestone_engine::task::FailureKind;
use serde_json::{Value, json};

use crate::support::{Place, WINDS_V3, chunk_files, document, names, tree};

/// 7 × 5 float32 in chunks of 3 × 2, stored by the tests' own writer.
fn small(folder: &str, change: impl FnOnce(&mut Value)) {
    let elements: Vec<Vec<u8>> = (0..35u8).map(|i| f32::from(i).to_le_bytes().to_vec()).collect();
    let mut document = document(&[7, 5], &[3, 2], "float32");
    change(&mut document);
    for (key, bytes) in chunk_files(&[7, 5], &[3, 2], &elements) {
        let path = Path::new(folder).join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    fs::write(Path::new(folder).join("zarr.json"), serde_json::to_vec(&document).unwrap()).unwrap();
}

fn also(document: &mut Value, codec: &str) {
    document["codecs"].as_array_mut().unwrap().push(json!({"name": codec}));
}

/// The same array as the library stores it.
fn encoded(place: &Place, name: &str, codec: CodecName) -> String {
    small(&place.at("plain"), |_| {});
    let array = freestone::open(place.at("plain")).unwrap();
    store(&array, &place.at(name), place, |t| t.codec(codec)).unwrap();
    place.at(name)
}

fn store(
    array: &Array,
    output: &str,
    place: &Place,
    how: impl FnOnce(Target) -> Target,
) -> Result<(), Error> {
    let planned = freestone::plan(&[how(Target::array(array, output))], &place.spec())?;
    freestone::run(&planned, &place.spec(), &Serial).map(drop)
}

#[track_caller]
fn check(
    result: Result<impl Sized, impl Into<Error>>,
    code: ExitCode,
    says: &str,
    is: impl FnOnce(&Error) -> bool,
) {
    let Err(error) = result.map_err(Into::into) else { panic!("expected an error with: {says}") };
    assert!(is(&error), "another error than expected: {error:?}");
    assert!(error.to_string().contains(says), "`{error}` does not contain `{says}`");
    assert_eq!(error.exit_code(), code, "{error}");
}

fn is_metadata(error: &Error, is: fn(&MetadataError) -> bool) -> bool {
    matches!(error, Error::Array(ArrayError::Metadata(e)) if is(e))
}

fn is_bad_chunk(error: &Error) -> bool {
    let Error::Run(error) = error else { return false };
    let RunError::Task { failure, attempts: 1, .. } = error.cause() else { return false };
    failure.kind == FailureKind::BadInput
}

/// Reads a damaged array: an error of kind input, and nothing is published.
#[track_caller]
fn check_damaged(place: &Place, input: &str, says: &str) {
    let array = freestone::open(input).unwrap();
    check(store(&array, &place.at("copy"), place, |t| t), ExitCode::Input, says, is_bad_chunk);
    assert!(freestone::open(place.at("copy")).is_err(), "nothing is published");
}

#[test]
fn paths_without_an_array() {
    let place = Place::new();
    fs::write(place.at("file"), "text").unwrap();
    for path in [place.at("nothing"), place.at("file"), place.folder.path().display().to_string()] {
        check(freestone::open(&path), ExitCode::Input, "no Zarr array", |e| {
            is_metadata(e, |m| matches!(m, MetadataError::NoZarr { .. }))
        });
    }
    fn is_group(e: &MetadataError) -> bool {
        let MetadataError::Group { children, .. } = e else { return false };
        children.contains(&"u".to_owned())
    }
    let group = |e: &Error| is_metadata(e, is_group);
    check(freestone::open(WINDS_V3), ExitCode::Input, "is a Zarr group", group);
    check(freestone::open("ftp://host/array"), ExitCode::Input, "ftp", |e| {
        matches!(e, Error::Array(ArrayError::Storage(StorageError::InvalidUrl { .. })))
    });
}

#[track_caller]
fn check_metadata(change: impl FnOnce(&mut Value), says: &str, is: fn(&MetadataError) -> bool) {
    let place = Place::new();
    small(&place.at("in"), change);
    let before = names(place.folder.path());
    check(freestone::open(place.at("in")), ExitCode::Input, says, |e| is_metadata(e, is));
    assert_eq!(names(place.folder.path()), before);
}

#[test]
fn invalid_metadata() {
    let malformed: fn(&MetadataError) -> bool = |e| matches!(e, MetadataError::Malformed { .. });
    let refused: fn(&MetadataError) -> bool = |e| {
        matches!(
            e,
            MetadataError::Malformed { .. }
                | MetadataError::Unsupported { .. }
                | MetadataError::Codec { .. }
        )
    };
    let unknown: fn(&MetadataError) -> bool = |e| {
        let MetadataError::Codec { error: CodecError::Unknown(name), .. } = e else { return false };
        name == "lossy_magic"
    };
    check_metadata(|d| also(d, "lossy_magic"), "lossy_magic", unknown);
    check_metadata(|d| d["shape"] = json!("seven"), "/in", malformed);
    check_metadata(|d| d["shape"] = json!([7, -5]), "/in", malformed);
    check_metadata(|d| d["shape"] = json!([7, 5, 2]), "/in", malformed);
    check_metadata(|d| d["codecs"] = json!(3), "/in", malformed);
    check_metadata(|d| d["codecs"] = json!([]), "/in", refused);
    check_metadata(|d| d["fill_value"] = json!({"a": 1}), "/in", malformed);
    check_metadata(|d| d["chunk_grid"] = json!(null), "/in", malformed);
    check_metadata(
        |d| d["chunk_grid"]["configuration"]["chunk_shape"] = json!([3, 0]),
        "/in",
        malformed,
    );
    check_metadata(
        |d| d["chunk_grid"]["configuration"]["chunk_shape"] = json!([3]),
        "/in",
        malformed,
    );
    check_metadata(|d| d["data_type"] = json!("string"), "/in", refused);
    check_metadata(|d| *d = json!([1, 2]), "/in", refused);
    check_metadata(|d| *d = json!({}), "/in", refused);
}

#[test]
fn truncated_metadata() {
    let place = Place::new();
    small(&place.at("in"), |_| {});
    let path = place.at("in/zarr.json");
    let whole = fs::read(&path).unwrap();
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        check(freestone::open(place.at("in")), ExitCode::Input, "invalid JSON", |e| {
            is_metadata(e, |m| matches!(m, MetadataError::Malformed { .. }))
        });
    }
}

/// Opening or planning fails without a panic, an overflow, or an allocation.
#[track_caller]
fn check_absurd(shape: [u64; 2], chunk: [u64; 2]) {
    let place = Place::new();
    small(&place.at("in"), |d| {
        d["shape"] = json!(shape);
        d["chunk_grid"]["configuration"]["chunk_shape"] = json!(chunk);
    });
    let planned = freestone::open(place.at("in")).and_then(|array| {
        let sum = array.sum(());
        freestone::plan(&[Target::array(&sum, place.at("out"))], &place.spec())
    });
    let error = planned.expect_err("it cannot be held");
    assert!([ExitCode::Input, ExitCode::Memory].contains(&error.exit_code()), "{error}");
    assert!(!Path::new(&place.at("out")).exists());
}

#[test]
fn chunks_whose_elements_overflow() {
    check_absurd([u64::MAX, 5], [u64::MAX, 2]);
    check_absurd([7, 5], [u64::MAX, u64::MAX]);
    check_absurd([1 << 40, 1 << 40], [1 << 40, 1 << 40]);
}

#[test]
fn chunks_whose_bytes_overflow() {
    check_absurd([1 << 62, 4], [1 << 62, 1]);
    check_absurd([1 << 61, 4], [1 << 61, 1]);
}

#[test]
fn chunks_larger_than_memory() {
    check_absurd([1 << 62, 4], [1 << 31, 4]);
    check_absurd([7, 5], [1 << 40, 1]);
}

#[test]
fn arrays_whose_elements_overflow() {
    check_absurd([1 << 40, 1 << 40], [1 << 10, 1 << 10]);
}

#[test]
fn the_longest_axes() {
    check_absurd([u64::MAX, u64::MAX], [3, 2]);
}

#[test]
fn an_axis_longer_than_a_signed_index() {
    check_absurd([u64::MAX, 1], [1 << 20, 1]);
}

#[test]
fn damaged_chunks() {
    let place = Place::new();
    small(&place.at("short"), |_| {});
    fs::write(place.at("short/c/1/1"), [1, 2, 3]).unwrap();
    check_damaged(&place, &place.at("short"), "c/1/1");
    fs::write(place.at("short/c/1/1"), []).unwrap();
    check_damaged(&place, &place.at("short"), "c/1/1");
    fs::write(place.at("short/c/1/1"), [0; 4096]).unwrap();
    check_damaged(&place, &place.at("short"), "c/1/1");

    let zstd = encoded(&place, "zstd", CodecName::Zstd(3));
    let chunk = format!("{zstd}/c/0/1");
    let whole = fs::read(&chunk).unwrap();
    fs::write(&chunk, &whole[..whole.len() - 2]).unwrap();
    check_damaged(&place, &zstd, "c/0/1");
    let values = |name: &str| {
        freestone::compute::<f32>(&freestone::open(place.at(name)).unwrap(), &place.spec()).unwrap()
    };
    // The magic number, the frame header descriptor, the window or the frame content size.
    for at in 0..6 {
        for bit in 0..8 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << bit;
            fs::write(&chunk, &damaged).unwrap();
            let array = freestone::open(&zstd).unwrap();
            match store(&array, &place.at("flipped"), &place, |t| t.overwrite(true)) {
                // A bit that declares a dictionary or a checksum may go unnoticed if no value
                // changes.
                Ok(()) => assert!(
                    values("flipped") == values("plain"),
                    "byte {at}, bit {bit}: other values"
                ),
                Err(error) => assert!(
                    is_bad_chunk(&error) && error.exit_code() == ExitCode::Input,
                    "byte {at}, bit {bit}: {error:?}"
                ),
            }
        }
    }
    // A content size of terabytes: single segment, eight bytes of size.
    let mut liar = whole[..4].to_vec();
    liar.push(0xe0);
    liar.extend((1u64 << 45).to_le_bytes());
    liar.extend(&whole[6..]);
    fs::write(&chunk, &liar).unwrap();
    check_damaged(&place, &zstd, "c/0/1");

    let lz4 = encoded(&place, "lz4", CodecName::Lz4);
    let mut damaged = fs::read(format!("{lz4}/c/0/0")).unwrap();
    damaged[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    fs::write(format!("{lz4}/c/0/0"), damaged).unwrap();
    check_damaged(&place, &lz4, "c/0/0");
}

#[test]
fn checksums_detect_every_flipped_byte() {
    let place = Place::new();
    let crc = place.at("crc");
    small(&crc, |d| also(d, "crc32c"));
    for (key, bytes) in tree(format!("{crc}/c")) {
        let sum = crc32c(&bytes);
        fs::write(format!("{crc}/c/{key}"), [bytes.as_slice(), &sum.to_le_bytes()].concat())
            .unwrap();
    }
    let array = freestone::open(&crc).unwrap();
    store(&array, &place.at("good"), &place, |t| t).unwrap();
    let whole = fs::read(format!("{crc}/c/2/2")).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(format!("{crc}/c/2/2"), damaged).unwrap();
        check_damaged(&place, &crc, "crc32c");
    }
}

/// Computes the CRC-32C bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |c, _| if c & 1 == 1 { c >> 1 ^ 0x82f6_3b78 } else { c >> 1 },
        )
    })
}

/// Returns true if `is` holds for an array's error, without the location that it was deferred from.
fn cause_is(error: &Error, is: impl Fn(&ArrayError) -> bool) -> bool {
    matches!(error, Error::Array(error) if is(error.cause()))
}

#[test]
fn invalid_operations() {
    let u = freestone::open(format!("{WINDS_V3}/u")).unwrap();
    let latitude = freestone::open(format!("{WINDS_V3}/latitude")).unwrap();
    let line = line!() + 1;
    let failed = &u + &latitude;
    let here = format!("{}:{line}:", file!());
    let deferred = |e: &Error| cause_is(e, |e| matches!(e, ArrayError::Broadcast { .. }));
    check(failed.shape(), ExitCode::Input, &here, deferred);
    check(failed.mean(0).check(), ExitCode::Input, &here, deferred);
    let place = Place::new();
    check(
        store(&(failed * 2.0), &place.at("out"), &place, |t| t),
        ExitCode::Input,
        &here,
        deferred,
    );
    check(u.mean(3).check(), ExitCode::Input, "out of range", |e| {
        cause_is(e, |e| matches!(e, ArrayError::Axis { axis: 3, rank: 3 }))
    });
    check(u.mean([0, -3]).check(), ExitCode::Input, "twice", |e| {
        cause_is(e, |e| matches!(e, ArrayError::AxisTwice(_)))
    });
    check(u.rechunk([0, 1, 1]).check(), ExitCode::Input, "0", |e| {
        cause_is(e, |e| matches!(e, ArrayError::Grid(_)))
    });
    check(u.slice(freestone::Slice::from(..).step(0), 0).check(), ExitCode::Input, "0", |e| {
        cause_is(e, |e| matches!(e, ArrayError::Argument(_)))
    });
    check(freestone::compute::<f64>(&u, &place.spec()), ExitCode::Input, "float32", |e| {
        matches!(e, Error::ResultType { found: DType::Float32, .. })
    });
    assert!(names(place.folder.path()).is_empty());
}

#[test]
fn existing_outputs_are_refused() {
    let place = Place::new();
    small(&place.at("in"), |_| {});
    let array = freestone::open(place.at("in")).unwrap();
    let tripled = &array * 3.0;
    store(&tripled, &place.at("out"), &place, |t| t).unwrap();
    let before = tree(place.at("out"));
    let exists =
        |e: &Error| matches!(e, Error::Run(RunError::Publish(PublishError::Exists { .. })));
    check(
        store(&array, &place.at("out"), &place, |t| t),
        ExitCode::Conflict,
        "already exists",
        exists,
    );
    assert!(tree(place.at("out")) == before);
    store(&array, &place.at("out"), &place, |t| t.overwrite(true)).unwrap();
    assert!(tree(place.at("out")) != before);

    fs::create_dir(place.at("notes")).unwrap();
    fs::write(place.at("notes/thesis.tex"), "years of work").unwrap();
    let foreign = |e: &Error| {
        let Error::Run(RunError::Publish(PublishError::Foreign { names, .. })) = e else {
            return false;
        };
        *names == ["thesis.tex"]
    };
    for overwrite in [false, true] {
        check(
            store(&array, &place.at("notes"), &place, |t| t.overwrite(overwrite)),
            ExitCode::Conflict,
            "thesis.tex",
            foreign,
        );
    }
    assert_eq!(fs::read_to_string(place.at("notes/thesis.tex")).unwrap(), "years of work");

    let over_input = |e: &Error| matches!(e, Error::Plan(PlanError::BadOutput(_)));
    let input = tree(place.at("in"));
    for output in [place.at("in"), place.at("in/c"), place.at("in/../in"), place.at("./in")] {
        check(
            store(&tripled, &output, &place, |t| t.overwrite(true)),
            ExitCode::Input,
            "from which it is computed",
            over_input,
        );
        assert!(tree(place.at("in")) == input, "{output}");
    }
}

#[test]
fn a_failed_overwrite_leaves_no_array() {
    let place = Place::new();
    small(&place.at("in"), |_| {});
    let array = freestone::open(place.at("in")).unwrap();
    store(&(&array * 3.0), &place.at("out"), &place, |t| t).unwrap();
    // The last chunk, so that the others are already written.
    fs::write(place.at("in/c/2/2"), [1]).unwrap();
    check(
        store(&array, &place.at("out"), &place, |t| t.overwrite(true)),
        ExitCode::Input,
        "c/2/2",
        is_bad_chunk,
    );
    check(freestone::open(place.at("out")), ExitCode::Input, "no Zarr array", |_| true);
    // The files of the failed run do not block another run.
    small(&place.at("in"), |_| {});
    store(&array, &place.at("out"), &place, |t| t).unwrap();
    assert!(freestone::open(place.at("out")).is_ok());
}

#[test]
fn a_work_dir_that_cannot_be_created() {
    let place = Place::new();
    small(&place.at("in"), |_| {});
    fs::write(place.at("file"), "").unwrap();
    let spec = Spec { work_dir: place.at("file/work"), ..place.spec() };
    let array = freestone::open(place.at("in")).unwrap();
    let planned = freestone::plan(&[Target::array(&array, place.at("out"))], &spec).unwrap();
    let before = names(place.folder.path());
    check(freestone::run(&planned, &spec, &Serial), ExitCode::Failed, "work directory", |e| {
        matches!(e, Error::Run(RunError::Work(_)))
    });
    assert_eq!(names(place.folder.path()), before);
}

/// The overwrite would remove the run's own plan and journal.
#[test]
fn a_work_dir_inside_a_result_is_refused() {
    let place = Place::new();
    small(&place.at("in"), |_| {});
    let array = freestone::open(place.at("in")).unwrap();
    store(&array, &place.at("out"), &place, |t| t).unwrap();
    let before = tree(place.at("out"));
    for work_dir in [place.at("out"), place.at("out/work"), place.at("in/../out/c")] {
        let spec = Spec { work_dir, ..place.spec() };
        let planned =
            freestone::plan(&[Target::array(&array, place.at("out")).overwrite(true)], &spec)
                .unwrap();
        let refused = |e: &Error| matches!(e, Error::Run(RunError::Plan(PlanError::BadOutput(_))));
        check(
            freestone::run(&planned, &spec, &Serial),
            ExitCode::Failed,
            "choose another `work_dir`",
            refused,
        );
        assert!(tree(place.at("out")) == before);
    }
}

#[test]
fn memory_one_byte_short_is_refused() {
    let place = Place::new();
    let u = freestone::open(format!("{WINDS_V3}/u")).unwrap();
    let mean = (&u * &u).mean(0);
    let targets = [Target::array(&mean, place.at("out"))];
    let projected = freestone::plan(&targets, &place.spec()).unwrap().finalized().projected_mem();
    let allow = |allowed_mem: u64| Spec { allowed_mem, ..place.spec() };
    let refused = |e: &Error| {
        let Error::Plan(PlanError::ExceedsMemory { allowed, projected: p, .. }) = e else {
            return false;
        };
        *allowed == projected - 1 && *p == projected
    };
    check(
        freestone::plan(&targets, &allow(projected - 1)),
        ExitCode::Memory,
        "allowed_mem",
        refused,
    );
    assert!(names(place.folder.path()).is_empty());

    let spec = allow(projected);
    let planned = freestone::plan(&targets, &spec).unwrap();
    let local = Spec { local_mem: projected - 1, ..spec.clone() };
    let exceeds =
        |e: &Error| matches!(e, Error::Run(RunError::Plan(PlanError::ExceedsLocalMemory { .. })));
    check(
        freestone::run(&planned, &local, &Threads::new(2)),
        ExitCode::Memory,
        "local_mem",
        exceeds,
    );
    assert!(names(place.folder.path()).is_empty());
    freestone::run(&planned, &Spec { local_mem: projected, ..spec }, &Threads::new(2)).unwrap();
    assert!(freestone::open(place.at("out")).is_ok());
    let zero = Settings { allowed_mem: Some(0), ..Settings::default() }.resolve();
    check(zero, ExitCode::Usage, "allowed_mem", |e| matches!(e, Error::Spec(_)));
}

#[test]
fn empty_and_zero_dimensional_arrays() {
    let place = Place::new();
    for (name, shape) in [("empty", vec![0, 5]), ("none", vec![7, 0]), ("zero-d", vec![])] {
        let folder = place.at(name);
        fs::create_dir_all(format!("{folder}/c")).unwrap();
        let chunks: Vec<u64> = shape.iter().map(|_| 2).collect();
        let mut document = document(&shape, &chunks, "float32");
        document["fill_value"] = json!(1.5);
        fs::write(format!("{folder}/zarr.json"), document.to_string()).unwrap();
        let array = freestone::open(&folder).unwrap();
        assert_eq!(array.shape().unwrap(), shape);
        let values = freestone::compute::<f32>(&array, &place.spec()).unwrap();
        assert_eq!(values.len(), shape.iter().product::<u64>() as usize);
        assert!(values.iter().all(|x| *x == 1.5));
        store(&(&array + 1.0), &place.at(&format!("{name}-out")), &place, |t| t).unwrap();
        let back = freestone::open(place.at(&format!("{name}-out"))).unwrap();
        assert_eq!(back.shape().unwrap(), shape);
        let sum = freestone::compute::<f32>(&back.sum(()), &place.spec()).unwrap().sum();
        assert_eq!(sum, if shape.is_empty() { 2.5 } else { 0.0 });
        let mean = freestone::compute::<f32>(&array.mean(()), &place.spec()).unwrap().sum();
        assert!(if shape.is_empty() { mean == 1.5 } else { mean.is_nan() }, "{name}: {mean}");
    }
    let empty = freestone::open(place.at("empty")).unwrap();
    check(empty.max(0).check(), ExitCode::Input, "no elements", |e| {
        cause_is(e, |e| matches!(e, ArrayError::Empty { .. }))
    });
    assert!(
        empty.max(1).check().is_ok(),
        "a row of none is no extreme of nothing: there is no row"
    );
    // A chunk of a zero-dimensional array has the key `c`.
    fs::remove_dir(place.at("zero-d/c")).unwrap();
    fs::write(place.at("zero-d/c"), 4.25f32.to_le_bytes()).unwrap();
    assert_eq!(
        freestone::compute::<f32>(&freestone::open(place.at("zero-d")).unwrap(), &place.spec())
            .unwrap()
            .sum(),
        4.25
    );
}

/// The output is the input under another name, and must not replace it.
#[test]
fn an_output_that_is_the_input_is_refused() {
    let place = Place::new();
    small(&place.at("in"), |_| {});
    fs::create_dir(place.at("other")).unwrap();
    std::os::unix::fs::symlink(place.at("in"), place.at("link")).unwrap();
    let before = tree(place.at("in"));
    let array = freestone::open(place.at("in")).unwrap();
    for output in ["other/../in", "link"] {
        let ended = store(&(&array * 3.0), &place.at(output), &place, |t| t.overwrite(true));
        assert!(tree(place.at("in")) == before, "{output}: the input was replaced");
        assert!(ended.is_err(), "{output}");
    }
}

/// A user's folder with the name of a chunk folder.
#[test]
fn a_folder_named_c_is_kept() {
    let place = Place::new();
    std::fs::create_dir_all(place.at("project/c")).unwrap();
    std::fs::write(place.at("project/c/main.c"), "code").unwrap();
    let target = Target::array(&freestone::scalar(1.0), place.at("project"));
    let error = freestone::plan(&[target], &place.spec())
        .and_then(|p| freestone::run(&p, &place.spec(), &freestone::Serial))
        .unwrap_err();
    assert_eq!(error.exit_code(), freestone::ExitCode::Conflict, "{error}");
    assert_eq!(std::fs::read_to_string(place.at("project/c/main.c")).unwrap(), "code");
}

/// Missing chunks stay missing in a copy. Several hundred of them in a new folder are not an error.
#[test]
fn a_copy_keeps_its_fill_value() {
    let place = Place::new();
    let spec = place.spec();
    let nan = freestone::full([3000], f64::NAN, freestone::DType::Float64, [1000]);
    let first = Target::array(&nan, place.at("new/folder/a")).fill(f64::NAN);
    freestone::run(&freestone::plan(&[first], &spec).unwrap(), &spec, &freestone::Serial).unwrap();
    let again = freestone::open(place.at("new/folder/a")).unwrap().rechunk([5]);
    let report = freestone::run(
        &freestone::plan(&[Target::array(&again, place.at("b/c"))], &spec).unwrap(),
        &spec,
        &freestone::Serial,
    )
    .unwrap();
    assert_eq!(report.traffic().bytes_written, 0);
    assert!(
        freestone::compute::<f64>(&freestone::open(place.at("b/c")).unwrap(), &spec)
            .unwrap()
            .iter()
            .all(|x| x.is_nan())
    );
}
