//! Storage of results: shards and codecs.

use std::fs;

use freestone::{Array, ArrayError, CodecName, DType, Encoding, Error, Serial, Target};

use crate::support::{Place, names, processes, tree};

fn run(targets: &[Target], place: &Place) -> Result<(), Error> {
    let planned = freestone::plan(targets, &place.spec())?;
    freestone::run(&planned, &place.spec(), &Serial).map(drop)
}

fn values(location: &str, place: &Place) -> ndarray::ArrayD<f32> {
    freestone::compute::<f32>(&freestone::open(location).unwrap(), &place.spec()).unwrap()
}

fn noise(shape: &[u64], chunks: &[u64]) -> Array {
    freestone::random_uniform(shape, 0.0, 1.0, 11, DType::Float32, chunks)
}

/// A sharded array has the same values, in as many objects as shards.
#[track_caller]
fn check_shards(shape: &[u64], made: &[u64], chunks: &[u64], shards: &[u64], codec: &str) {
    let place = Place::new();
    let array = noise(shape, made);
    let whole = freestone::compute::<f32>(&array, &place.spec()).unwrap();
    let target = Target::array(&array, place.at("out"))
        .chunks(chunks)
        .shards(shards)
        .codec(codec.parse::<Encoding>().unwrap());
    run(&[target], &place).unwrap();
    assert_eq!(values(&place.at("out"), &place), whole);
    let objects =
        tree(place.at("out")).into_iter().filter(|(name, _)| name != "zarr.json").count() as u64;
    assert_eq!(objects, shape.iter().zip(shards).map(|(n, s)| n.div_ceil(*s)).product::<u64>());
    // Views and reductions read chunks inside shards.
    let array = freestone::open(place.at("out")).unwrap();
    assert_eq!(
        array.grid().unwrap().max_chunk(),
        shape.iter().zip(chunks).map(|(n, c)| *n.min(c)).collect::<Vec<_>>()
    );
    let sum: f64 = freestone::compute::<f64>(&array.astype(DType::Float64).sum(()), &place.spec())
        .unwrap()
        .sum();
    assert!((sum - whole.iter().map(|x| f64::from(*x)).sum::<f64>()).abs() < 1e-6);
}

#[test]
fn shards_hold_the_result() {
    for codec in ["none", "zstd:1", "lz4+crc32c"] {
        check_shards(&[30, 41], &[30, 41], &[8, 8], &[16, 24], codec);
    }
    check_shards(&[30, 41], &[7, 9], &[4, 5], &[8, 40], "gzip:1");
    check_shards(&[16, 16], &[8, 8], &[4, 4], &[4, 4], "none+crc32c");
    check_shards(&[5, 6, 7], &[5, 6, 7], &[2, 2, 2], &[4, 2, 8], "zstd+crc32c");
    check_shards(&[3], &[3], &[8], &[16], "zstd");
    check_shards(&[], &[], &[], &[], "zstd");
}

/// The index at the end has the offset and length of each chunk, and a checksum. A chunk of fill
/// values has the maximum offset and length.
#[test]
fn chunks_of_fill_values_are_not_stored() {
    let place = Place::new();
    let column = freestone::arange(0.0, 6.0, 1.0, DType::Float32, 2);
    // Columns 0 to 3 are zero, 4 and 5 are 4 and 5 in all rows.
    let kept = freestone::where_(
        &freestone::greater(&column, freestone::scalar(3.5f32)),
        &column,
        freestone::scalar(0f32),
    );
    let array = kept.broadcast_to([8, 6]);
    run(
        &[Target::array(&array, place.at("out"))
            .chunks([2, 2])
            .shards([4, 4])
            .codec(CodecName::None)],
        &place,
    )
    .unwrap();
    assert_eq!(
        names(place.at("out/c")),
        ["0", "0/1", "1", "1/1"],
        "shards of nothing but fill values are not stored"
    );
    let shard = fs::read(place.at("out/c/1/1")).unwrap();
    let (chunks, index) = shard.split_at(shard.len() - 4 * 16 - 4);
    let numbers: Vec<u64> =
        index[..64].chunks(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect();
    let none = u64::MAX;
    assert_eq!(numbers, [0, 16, none, none, 16, 16, none, none]);
    assert_eq!(
        chunks.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>(),
        [4.0, 5.0, 4.0, 5.0, 4.0, 5.0, 4.0, 5.0]
    );
}

/// A later stage reads a sharded result of an earlier one. Reductions write shards, too, on every
/// executor.
#[test]
fn stages_read_and_write_shards() {
    let place = Place::new();
    let rechunked = noise(&[40, 30], &[7, 30]).rechunk([10, 5]);
    let (sum, mean) = (rechunked.sum(0), rechunked.mean(0));
    let whole = freestone::compute::<f32>(&rechunked, &place.spec()).unwrap();
    let planned = |folder: &str| {
        let targets = [
            Target::array(&rechunked, place.at(&format!("{folder}/x")))
                .chunks([10, 5])
                .shards([20, 10]),
            Target::array(&sum, place.at(&format!("{folder}/sum"))).chunks([5]).shards([10]),
            Target::array(&mean, place.at(&format!("{folder}/mean"))).chunks([5]).shards([30]),
        ];
        freestone::plan(&targets, &place.spec()).unwrap()
    };
    let text = planned("text").finalized().to_string();
    assert!(text.contains("in chunks [10, 5] in shards [20, 10]"), "{text}");
    assert!(
        text.contains("reads text/x") || text.contains("reads x"),
        "the sums read what is stored: {text}"
    );
    freestone::run(&planned("serial"), &place.spec(), &Serial).unwrap();
    freestone::run(&planned("processes"), &place.spec(), &processes(2)).unwrap();
    assert!(tree(place.at("serial")) == tree(place.at("processes")));
    assert_eq!(values(&place.at("serial/x"), &place), whole);
    for (name, expect) in [
        ("sum", whole.sum_axis(ndarray::Axis(0))),
        ("mean", whole.mean_axis(ndarray::Axis(0)).unwrap()),
    ] {
        let found = values(&place.at(&format!("serial/{name}")), &place);
        assert!(found.iter().zip(&expect).all(|(a, b)| (a - b).abs() < 1e-4), "{name}");
    }
}

#[test]
fn invalid_shards() {
    let place = Place::new();
    let array = noise(&[30, 41], &[8, 8]);
    for (shards, says) in [
        (
            vec![16, 20],
            "along axis 1 a shard of 20 is not a multiple of the chunks of 8: use 16 or 24",
        ),
        (vec![16, 4], "use 8"),
        (vec![0, 8], "along axis 0"),
        (vec![16], "1 shard sizes were given for 2 axes"),
    ] {
        let error = freestone::plan(
            &[Target::array(&array, place.at("out")).chunks([8, 8]).shards(&shards)],
            &place.spec(),
        )
        .unwrap_err();
        assert!(
            matches!(error, Error::Array(ArrayError::Shards(_)))
                && error.to_string().contains(says),
            "{error}"
        );
    }
    // A shard larger than memory is refused, and the error names the shard.
    let target = Target::array(&array, place.at("out")).chunks([8, 8]).shards([80_000, 80_000]);
    let error = freestone::plan(&[target], &place.spec()).unwrap_err();
    assert!(error.to_string().contains("smaller shards"), "{error}");
    for shards in [[u64::MAX / 8 * 8, u64::MAX / 8 * 8], [1 << 40, 8]] {
        assert!(
            freestone::plan(
                &[Target::array(&array, place.at("out")).chunks([8, 8]).shards(shards)],
                &place.spec()
            )
            .is_err()
        );
    }
    assert!(names(place.folder.path()).is_empty());
}

#[test]
fn codecs_by_name_are_read_back() {
    for name in [
        "none",
        "lz4",
        "zstd:-1",
        "zstd:19",
        "gzip",
        "gzip:0",
        "none+crc32c",
        "lz4+crc32c",
        "zstd:3+crc32c",
        "gzip:9+crc32c",
    ] {
        let place = Place::new();
        let array = noise(&[30, 41], &[8, 16]);
        run(
            &[Target::array(&array, place.at("out")).codec(name.parse::<Encoding>().unwrap())],
            &place,
        )
        .unwrap();
        assert_eq!(
            values(&place.at("out"), &place),
            freestone::compute::<f32>(&array, &place.spec()).unwrap(),
            "{name}"
        );
    }
}
