//! Zarr metadata: reads formats 2 and 3, writes format 3.

use std::sync::Arc;

use freestone_kernels::{DType, Scalar};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zarrs::array::CodecMetadataOptions;
use zarrs::array::{Array, ArrayMetadata};
use zarrs::storage::store::MemoryStore as NoStore;

use super::array::{ArrayInfo, Keys, Shard, StoredArray};
use super::codec::{Codec, CodecError};
use super::{StorageError, Store, consolidated, join, packing, read_small};
use crate::grid::{ChunkGrid, GridError};

/// The maximum size of a metadata document in bytes.
const MAX_METADATA_BYTES: u64 = 64_000_000;

/// The error of a location without a readable array or group.
#[derive(Clone, Debug, Error)]
#[allow(missing_docs)]
pub enum MetadataError {
    #[error("no Zarr array at `{place}`: neither zarr.json nor .zarray exists")]
    NoZarr { place: String },
    #[error("`{place}` is a Zarr group, not an array (hint: name one of its arrays: {})",
        children.join(", "))]
    Group { place: String, children: Vec<String> },
    #[error("`{place}` is a Zarr array, not a group")]
    NoGroup { place: String },
    #[error("invalid Zarr metadata of `{place}`: {why}")]
    Malformed { place: String, why: String },
    #[error("`{place}` has {what}, which is not supported")]
    Unsupported { place: String, what: String },
    #[error("unsupported codecs of `{place}`: {error}")]
    Codec { place: String, error: CodecError },
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Opens an array. Reads only its metadata.
///
/// # Errors
/// Returns an error if there is no array, or if it has unsupported features.
pub fn open_array(store: &Arc<dyn Store>, path: &str) -> Result<StoredArray, MetadataError> {
    let place = store.place(path);
    let malformed = |why: String| MetadataError::Malformed { place: place.clone(), why };
    let parse = |bytes: &[u8]| {
        serde_json::from_slice::<Value>(bytes).map_err(|e| malformed(format!("invalid JSON: {e}")))
    };
    if let Some(bytes) = read_small(&**store, &join(path, "zarr.json"), MAX_METADATA_BYTES)? {
        let document = parse(&bytes)?;
        if document["node_type"] == "group" {
            return Err(MetadataError::Group { place, children: children(&**store, path)? });
        }
        return opened(store, path, 3, document, None, &bytes);
    }
    if let Some(bytes) = read_small(&**store, &join(path, ".zarray"), MAX_METADATA_BYTES)? {
        let attributes = match read_small(&**store, &join(path, ".zattrs"), MAX_METADATA_BYTES)? {
            Some(text) => Some(parse(&text)?),
            None => None,
        };
        return opened(store, path, 2, parse(&bytes)?, attributes, &bytes);
    }
    if is_group(&**store, path)? {
        return Err(MetadataError::Group { place, children: children(&**store, path)? });
    }
    Err(MetadataError::NoZarr { place })
}

/// The attributes and children of a group.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// The user attributes.
    pub attributes: Map<String, Value>,
    /// The names directly below the group.
    pub children: Vec<String>,
}

/// Opens a group.
///
/// # Errors
/// Returns an error if there is no group.
pub fn open_group(store: &dyn Store, path: &str) -> Result<Group, MetadataError> {
    let place = store.place(path);
    let malformed = |e: serde_json::Error| MetadataError::Malformed {
        place: place.clone(),
        why: format!("invalid JSON: {e}"),
    };
    let object = |v: &Value| v.as_object().cloned().unwrap_or_default();
    if let Some(bytes) = read_small(store, &join(path, "zarr.json"), MAX_METADATA_BYTES)? {
        let document: Value = serde_json::from_slice(&bytes).map_err(malformed)?;
        if document["node_type"] == "array" {
            return Err(MetadataError::NoGroup { place });
        }
        return Ok(Group {
            attributes: object(&document["attributes"]),
            children: children(store, path)?,
        });
    }
    if read_small(store, &join(path, ".zgroup"), MAX_METADATA_BYTES)?.is_none() {
        return Err(MetadataError::NoZarr { place });
    }
    let attributes = match read_small(store, &join(path, ".zattrs"), MAX_METADATA_BYTES)? {
        Some(bytes) => object(&serde_json::from_slice(&bytes).map_err(malformed)?),
        None => Map::new(),
    };
    Ok(Group { attributes, children: children(store, path)? })
}

/// Returns true if an array or group of either format exists.
///
/// # Errors
/// Returns an error if the store fails.
pub fn exists(store: &dyn Store, path: &str) -> Result<bool, StorageError> {
    for name in ["zarr.json", ".zarray", ".zgroup"] {
        if read_small(store, &join(path, name), MAX_METADATA_BYTES)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads the `zarr.json` of a node. Returns `Null` if it is not valid JSON.
///
/// # Errors
/// Returns an error if the store fails.
pub fn document(store: &dyn Store, path: &str) -> Result<Option<Value>, StorageError> {
    consolidated::document(store, &join(path, "zarr.json"))
}

fn is_group(store: &dyn Store, path: &str) -> Result<bool, StorageError> {
    Ok(read_small(store, &join(path, ".zgroup"), MAX_METADATA_BYTES)?.is_some())
}

fn children(store: &dyn Store, path: &str) -> Result<Vec<String>, StorageError> {
    // Plain web servers cannot list, so consolidated metadata has precedence there.
    let consolidated = |no: Option<StorageError>| match (consolidated::names(store, path)?, no) {
        (None, Some(error)) => Err(error),
        (names, _) => Ok(names),
    };
    if store.url().starts_with("http")
        && let Some(names) = consolidated(None)?
    {
        return Ok(names);
    }
    let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
    let names = match store.list(&prefix) {
        Ok(names) => names,
        Err(error) => consolidated(Some(error))?.unwrap_or_default(),
    };
    Ok(names.into_iter().filter(|n| n != "zarr.json" && !n.starts_with('.')).collect())
}

fn opened(
    store: &Arc<dyn Store>,
    path: &str,
    format: u8,
    document: Value,
    attributes: Option<Value>,
    text: &[u8],
) -> Result<StoredArray, MetadataError> {
    let place = store.place(path);
    let malformed = |why: String| MetadataError::Malformed { place: place.clone(), why };
    let unsupported = |what: String| MetadataError::Unsupported { place: place.clone(), what };
    let metadata = if format == 3 {
        ArrayMetadata::V3(
            serde_json::from_value(document.clone()).map_err(|e| malformed(e.to_string()))?,
        )
    } else {
        ArrayMetadata::V2(
            serde_json::from_value(document.clone()).map_err(|e| malformed(e.to_string()))?,
        )
    };
    // The codec list is checked first, because zarrs' error for an unknown codec mentions plugins.
    if format == 3 {
        known_codecs(&document["codecs"])
            .map_err(|error| MetadataError::Codec { place: place.clone(), error })?;
    }
    let array = Array::new_with_metadata(Arc::new(NoStore::new()), "/", metadata)
        .map_err(|e| malformed(e.to_string()))?;
    let name = array.data_type().name_v3().map(|n| n.into_owned()).unwrap_or_default();
    let dtype = DType::from_name(&name).ok_or_else(|| {
        unsupported(format!(
            "the element type `{}`",
            if name.is_empty() { document["dtype"].to_string() } else { name.clone() }
        ))
    })?;
    let fill = Scalar::from_bytes(dtype, array.fill_value().as_ne_bytes())
        .ok_or_else(|| malformed("the fill value does not match the element type".into()))?;
    if document["storage_transformers"].as_array().is_some_and(|t| !t.is_empty()) {
        return Err(unsupported("storage transformers".into()));
    }
    let outer = outer_chunks(&place, format, &document)?;
    let keys = keys(format, &document).ok_or_else(|| {
        unsupported(format!("chunk keys of type {}", document["chunk_key_encoding"]))
    })?;
    let codecs: Vec<Value> = array
        .codecs()
        .create_metadatas(&CodecMetadataOptions::default())
        .into_iter()
        .map(serde_json::to_value)
        .collect::<Result<_, _>>()
        .map_err(|e| malformed(e.to_string()))?;
    let codec_error = |error| MetadataError::Codec { place: place.clone(), error };
    let (chunk, codecs, shard) = unshard(&outer, codecs).map_err(codec_error)?;
    Codec::new(&codecs, dtype, &chunk).map_err(codec_error)?;
    if let Some(shard) = &shard {
        shard.index_codec().map_err(codec_error)?;
    }
    let grid = ChunkGrid::regular(array.shape(), &chunk)
        .map_err(|e: GridError| malformed(e.to_string()))?;
    let attributes = attributes_of(&place, attributes.as_ref(), &document)?;
    let dims = dims(format, &document, &attributes, array.shape().len());
    let tag = Sha256::digest(text).iter().take(16).map(|b| format!("{b:02x}")).collect();
    let info = ArrayInfo {
        dtype,
        fill,
        grid,
        stored_shape: Some(chunk),
        codecs,
        keys,
        shard,
        window: None,
    };
    let attributes = if format == 2 {
        packing::normalized(attributes, dtype, (!document["fill_value"].is_null()).then_some(&fill))
    } else {
        attributes
    };
    Ok(StoredArray {
        store: Arc::clone(store),
        path: path.to_owned(),
        info,
        format,
        dims,
        attributes,
        tag,
    })
}

/// Returns the shape of stored objects: chunks, or the shards of a sharded array.
fn outer_chunks(place: &str, format: u8, document: &Value) -> Result<Vec<u64>, MetadataError> {
    let shape = if format == 3 {
        let grid = &document["chunk_grid"];
        if grid["name"] != "regular" {
            let what = format!("a chunk grid of type {}", grid["name"]);
            return Err(MetadataError::Unsupported { place: place.to_owned(), what });
        }
        &grid["configuration"]["chunk_shape"]
    } else {
        &document["chunks"]
    };
    serde_json::from_value(shape.clone())
        .map_err(|e| MetadataError::Malformed { place: place.to_owned(), why: e.to_string() })
}

/// Returns the attributes of format 2, or those of the document.
fn attributes_of(
    place: &str,
    attributes: Option<&Value>,
    document: &Value,
) -> Result<Map<String, Value>, MetadataError> {
    match attributes.or(document.get("attributes")) {
        Some(Value::Object(attributes)) => Ok(attributes.clone()),
        None | Some(Value::Null) => Ok(Map::new()),
        // Invalid attributes are not ignored, because they may define a packing.
        Some(_) => Err(MetadataError::Malformed {
            place: place.to_owned(),
            why: "the attributes are not a JSON object".into(),
        }),
    }
}

fn known_codecs(codecs: &Value) -> Result<(), CodecError> {
    for codec in codecs.as_array().into_iter().flatten() {
        let name = codec["name"].as_str().or(codec.as_str()).unwrap_or_default();
        let short = name.strip_prefix("numcodecs.").unwrap_or(name);
        if !["bytes", "transpose", "sharding_indexed", "zstd", "blosc", "gzip", "zlib", "crc32c"]
            .contains(&short)
        {
            return Err(CodecError::Unknown(name.to_owned()));
        }
    }
    Ok(())
}

fn keys(format: u8, document: &Value) -> Option<Keys> {
    let separator =
        |v: &Value, default: char| v.as_str().and_then(|s| s.chars().next()).unwrap_or(default);
    if format == 2 {
        return Some(Keys::V2 { separator: separator(&document["dimension_separator"], '.') });
    }
    let encoding = &document["chunk_key_encoding"];
    match encoding["name"].as_str().or(encoding.as_str()) {
        Some("default") => Some(Keys::Default {
            separator: separator(&encoding["configuration"]["separator"], '/'),
        }),
        Some("v2") => {
            Some(Keys::V2 { separator: separator(&encoding["configuration"]["separator"], '.') })
        }
        _ => None,
    }
}

fn dims(
    format: u8,
    document: &Value,
    attributes: &Map<String, Value>,
    rank: usize,
) -> Vec<Option<String>> {
    let names = if format == 3 {
        document["dimension_names"].as_array()
    } else {
        attributes.get("_ARRAY_DIMENSIONS").and_then(Value::as_array)
    };
    match names {
        Some(names) if names.len() == rank => {
            names.iter().map(|n| n.as_str().map(str::to_owned)).collect()
        }
        _ => vec![None; rank],
    }
}

/// The chunk shape, the codecs, and the shard if there is one.
type Unsharded = (Vec<u64>, Vec<Value>, Option<Shard>);

/// Returns the inner chunk shape, the inner codecs and the shard of a sharded array. Returns the
/// arguments for other arrays.
fn unshard(outer: &[u64], codecs: Vec<Value>) -> Result<Unsharded, CodecError> {
    if !codecs.iter().any(|c| c["name"] == "sharding_indexed") {
        return Ok((outer.to_vec(), codecs, None));
    }
    let unusable =
        |why: &str| CodecError::Unusable { name: "sharding_indexed".into(), why: why.into() };
    let [sharding] = codecs.as_slice() else {
        return Err(unusable("codecs before or after sharding are not supported"));
    };
    let configuration = &sharding["configuration"];
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let inner: Vec<u64> =
        list(&configuration["chunk_shape"]).iter().filter_map(Value::as_u64).collect();
    if inner.len() != outer.len() || inner.iter().zip(outer).any(|(i, o)| *i == 0 || o % i != 0) {
        return Err(unusable("the chunk shape does not divide the shard shape"));
    }
    let inner_codecs = list(&configuration["codecs"]);
    known_codecs(&configuration["codecs"])?;
    if inner_codecs.iter().any(|c| c["name"] == "sharding_indexed") {
        return Err(unusable("nested sharding is not supported"));
    }
    let shard = Shard {
        chunks: outer.iter().zip(&inner).map(|(o, i)| o / i).collect(),
        index_codecs: list(&configuration["index_codecs"]),
        index_at_end: configuration["index_location"] != "start",
    };
    Ok((inner, inner_codecs, Some(shard)))
}

/// Returns the Zarr v3 document of an array. `dims` may be empty.
pub fn array_document(
    info: &ArrayInfo,
    dims: &[Option<String>],
    attributes: &Map<String, Value>,
) -> Value {
    let at_least_one = |shape: Vec<u64>| shape.into_iter().map(|c| c.max(1)).collect::<Vec<_>>();
    let codecs = match &info.shard {
        Some(shard) => json!([{"name": "sharding_indexed", "configuration": {
            "chunk_shape": at_least_one(info.chunk_shape()),
            "codecs": info.codecs,
            "index_codecs": shard.index_codecs,
            "index_location": if shard.index_at_end { "end" } else { "start" },
        }}]),
        None => json!(info.codecs),
    };
    let mut document = json!({
        "zarr_format": 3,
        "node_type": "array",
        "shape": info.shape(),
        "data_type": info.dtype.name(),
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": at_least_one(info.object_shape())},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value(&info.fill),
        "codecs": codecs,
        "attributes": attributes,
    });
    if dims.iter().any(Option::is_some) {
        document["dimension_names"] = json!(dims);
    }
    document
}

/// Returns the Zarr v3 document of a group.
pub fn group_document(attributes: &Map<String, Value>) -> Value {
    json!({"zarr_format": 3, "node_type": "group", "attributes": attributes})
}

/// Returns a fill value in the most readable exact form of Zarr v3.
fn fill_value(fill: &Scalar) -> Value {
    let hex = || serde_json::to_value(fill).map(|v| v["value"].clone()).unwrap_or(Value::Null);
    let readable = |x: f64, exact: bool| match x {
        x if x.is_nan() => None,
        x if x.is_infinite() => Some(json!(if x > 0.0 { "Infinity" } else { "-Infinity" })),
        x if exact && x == x.trunc() && x.abs() < 1e15 && !(x == 0.0 && x.is_sign_negative()) => {
            Some(json!(x))
        }
        _ => None,
    };
    match fill.dtype() {
        DType::Float32 if fill.get::<f32>().is_some_and(|x| x.to_bits() == 0x7fc0_0000) => {
            json!("NaN")
        }
        DType::Float64
            if fill.get::<f64>().is_some_and(|x| x.to_bits() == 0x7ff8_0000_0000_0000) =>
        {
            json!("NaN")
        }
        DType::Float32 | DType::Float64 => fill
            .cast(DType::Float64)
            .get::<f64>()
            .and_then(|x| readable(x, true))
            .unwrap_or_else(hex),
        DType::Complex64 | DType::Complex128 => {
            let parts = fill.cast(DType::Complex128).get::<freestone_kernels::dtype::Complex128>();
            match parts.map(|c| (readable(c.re, true), readable(c.im, true))) {
                Some((Some(re), Some(im))) => json!([re, im]),
                _ => hex(),
            }
        }
        _ => hex(),
    }
}
