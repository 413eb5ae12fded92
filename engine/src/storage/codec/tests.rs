//! Tests of codecs.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn chains() -> Vec<Vec<serde_json::Value>> {
    let le = json!({"name": "bytes", "configuration": {"endian": "little"}});
    let be = json!({"name": "bytes", "configuration": {"endian": "big"}});
    let zstd = json!({"name": "zstd", "configuration": {"level": 1, "checksum": true}});
    let gzip = json!({"name": "gzip", "configuration": {"level": 5}});
    let zlib = json!({"name": "numcodecs.zlib", "configuration": {"level": 5}});
    let crc = json!({"name": "crc32c"});
    let transpose = json!({"name": "transpose", "configuration": {"order": [1, 0]}});
    let blosc = |cname: &str, shuffle: &str| {
        json!({"name": "blosc", "configuration": {
            "cname": cname, "clevel": 5, "shuffle": shuffle, "typesize": 4, "blocksize": 0
        }})
    };
    vec![
        vec![le.clone()],
        vec![be.clone()],
        vec![le.clone(), zstd.clone()],
        vec![le.clone(), crc.clone()],
        vec![le.clone(), zstd.clone(), crc.clone()],
        vec![le.clone(), crc.clone(), gzip.clone()],
        vec![le.clone(), gzip.clone()],
        vec![le.clone(), zlib],
        vec![be, zstd.clone(), crc.clone()],
        vec![transpose.clone(), le.clone(), gzip],
        vec![transpose, le.clone(), blosc("lz4", "shuffle")],
        vec![le.clone(), blosc("zstd", "bitshuffle")],
        vec![le, blosc("lz4", "shuffle"), crc, zstd],
    ]
}

/// Encodes a block with one chain of codecs.
fn encode(codec: &Codec, block: &[u8]) -> Vec<u8> {
    let (mut arena, mut contexts) = (Arena::new(1 << 20), Contexts::default());
    codec.encode(block, &mut arena, &mut contexts).unwrap().parts(block).concat()
}

fn decode(codec: &Codec, bytes: &[u8], len: usize) -> Result<Buffer, CodecError> {
    let (mut arena, mut contexts) = (Arena::new(1 << 20), Contexts::default());
    codec.decode(Buffer::from_slice(bytes), len as u64, &mut arena, &mut contexts)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn blocks_round_trip_within_bounds(
        random in prop::collection::vec(any::<u32>(), 6 * 35), smooth: bool
    ) {
        let ramp = |(i, v): (usize, &u32)| i as u32 * 3 + v % 4;
        let values: Vec<u32> =
            if smooth { random.iter().enumerate().map(ramp).collect() } else { random };
        let block: &[u8] = bytemuck_cast(&values);
        for codecs in chains() {
            let codec = Codec::new(&codecs, DType::UInt32, &[6, 35]).unwrap();
            let bytes = encode(&codec, block);
            prop_assert!(bytes.len() as u64 <= codec.encoded_bound(), "{:?}", codecs);
            let back = decode(&codec, &bytes, block.len()).unwrap();
            prop_assert_eq!(back.bytes(), block, "{:?}", codecs);
        }
    }

    /// Damage leads to an error or to other values of the same size, never to a panic or to more
    /// memory than the bound.
    #[test]
    fn damage_is_an_error(
        flip in any::<prop::sample::Index>(), bit in 0u8..8,
        cut in any::<prop::sample::Index>(), truncate: bool
    ) {
        let values: Vec<u32> = (0..210).map(|i| i * i).collect();
        let block: &[u8] = bytemuck_cast(&values);
        for codecs in chains() {
            let codec = Codec::new(&codecs, DType::UInt32, &[6, 35]).unwrap();
            let mut bytes = encode(&codec, block);
            if truncate {
                bytes.truncate(cut.index(bytes.len()));
            } else {
                let at = flip.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            let decoded = decode(&codec, &bytes, block.len());
            let is_checked = codecs.last().unwrap()["name"] == "crc32c";
            prop_assert!(!is_checked || decoded.is_err());
            match decoded {
                Ok(b) => prop_assert_eq!(b.len(), block.len()),
                Err(e) => prop_assert!(!matches!(e, CodecError::Overrun(_)), "{:?}", codecs),
            }
        }
    }
}

/// The arena of the projected size suffices for all steps.
#[test]
fn steps_stay_within_their_bounds() {
    let values: Vec<u32> = (0..40_000u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
    let block = bytemuck_cast(&values);
    for codecs in chains() {
        let codec = Codec::new(&codecs, DType::UInt32, &[200, 200]).unwrap();
        let mut contexts = Contexts::default();
        let room = codec.encode_beside();
        let mut arena = Arena::new(room);
        let encoded = codec.encode(block, &mut arena, &mut contexts).unwrap().parts(block).concat();
        assert!(arena.peak() <= room + 4096, "{codecs:?}: {} in {room}", arena.peak());

        let room = codec.encoded_beside() + codec.decoded_bytes() + codec.decode_scratch();
        let mut arena = Arena::new(room);
        let mut stored = arena.buffer(codec.read_limit(codec.decoded_bytes())).unwrap();
        stored.set_len(encoded.len());
        stored.bytes_mut().copy_from_slice(&encoded);
        let back = codec.decode(stored, codec.decoded_bytes(), &mut arena, &mut contexts).unwrap();
        assert!(back.bytes() == block, "{codecs:?}");
        assert!(arena.peak() <= room + 4096, "{codecs:?}: {} in {room}", arena.peak());
    }
}

/// Regression test: blosc used the space of the checksum that follows, and exceeded its bound.
#[test]
fn a_checksum_keeps_its_room() {
    let codecs = [
        json!({"name": "bytes", "configuration": {"endian": "little"}}),
        json!({"name": "blosc", "configuration": {
            "cname": "lz4", "clevel": 5, "shuffle": "shuffle", "typesize": 4, "blocksize": 0
        }}),
        json!({"name": "crc32c"}),
    ];
    for n in 1..400u64 {
        let values: Vec<u32> = (0..n as u32).map(|i| (i as f32 * 1.5).to_bits()).collect();
        let codec = Codec::new(&codecs, DType::UInt32, &[n]).unwrap();
        let block = bytemuck_cast(&values);
        let encoded = codec
            .encode(block, &mut Arena::new(1 << 21), &mut Contexts::default())
            .unwrap()
            .parts(block)
            .concat();
        assert!(
            encoded.len() as u64 <= codec.encoded_bound(),
            "{n}: {} over {}",
            encoded.len(),
            codec.encoded_bound()
        );
    }
}

fn bytemuck_cast(values: &[u32]) -> &[u8] {
    zarrs::array::transmute_to_bytes(values)
}

#[test]
fn an_unknown_codec_is_refused() {
    let codecs = [
        json!({"name": "bytes", "configuration": {"endian": "little"}}),
        json!({"name": "lossy_magic"}),
    ];
    let Err(CodecError::Unknown(name)) = Codec::new(&codecs, DType::Float32, &[4]) else {
        panic!("an unknown codec is refused");
    };
    assert_eq!(name, "lossy_magic");
}
