//! Zarr metadata: v2 and v3 in, v3 out.

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

/// Metadata larger than this is not metadata.
const MAX_METADATA_BYTES: u64 = 64_000_000;

/// Why a location is not an array that can be read.
#[derive(Clone, Debug, Error)]
#[allow(missing_docs)]
pub enum MetadataError {
    #[error("there is no Zarr array at {place}: neither zarr.json nor .zarray is there")]
    NoZarr { place: String },
    #[error("{place} is a Zarr group, not an array: name one of its arrays, such as \
        {}", children.join(", "))]
    Group { place: String, children: Vec<String> },
    #[error("{place} is a Zarr array, not a group")]
    NoGroup { place: String },
    #[error("the Zarr metadata of {place} cannot be used: {why}")]
    Malformed { place: String, why: String },
    #[error("{place} has {what}, which is not supported")]
    Unsupported { place: String, what: String },
    #[error("the codecs of {place} cannot be used: {error}")]
    Codec { place: String, error: CodecError },
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Opens an array: reads its metadata, nothing else.
///
/// # Errors
/// Where there is none, or it uses what is not supported.
pub fn open_array(store: &Arc<dyn Store>, path: &str) -> Result<StoredArray, MetadataError> {
    let place = store.place(path);
    let malformed = |why: String| MetadataError::Malformed { place: place.clone(), why };
    let parse = |bytes: &[u8]| {
        serde_json::from_slice::<Value>(bytes).map_err(|e| malformed(format!("it is no JSON: {e}")))
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

/// What a group holds, with its attributes.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// User attributes.
    pub attributes: Map<String, Value>,
    /// Names directly below it.
    pub children: Vec<String>,
}

/// Opens a group.
///
/// # Errors
/// Where there is none.
pub fn open_group(store: &dyn Store, path: &str) -> Result<Group, MetadataError> {
    let place = store.place(path);
    let malformed = |e: serde_json::Error| MetadataError::Malformed {
        place: place.clone(),
        why: format!("it is no JSON: {e}"),
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

/// True if any node of either format is there.
///
/// # Errors
/// Where the store fails.
pub fn exists(store: &dyn Store, path: &str) -> Result<bool, StorageError> {
    for name in ["zarr.json", ".zarray", ".zgroup"] {
        if read_small(store, &join(path, name), MAX_METADATA_BYTES)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The `zarr.json` of a node; `Null` where it is no JSON.
///
/// # Errors
/// Where the store fails.
pub fn document(store: &dyn Store, path: &str) -> Result<Option<Value>, StorageError> {
    consolidated::document(store, &join(path, "zarr.json"))
}

fn is_group(store: &dyn Store, path: &str) -> Result<bool, StorageError> {
    Ok(read_small(store, &join(path, ".zgroup"), MAX_METADATA_BYTES)?.is_some())
}

fn children(store: &dyn Store, path: &str) -> Result<Vec<String>, StorageError> {
    // Plain web servers cannot list: there consolidated metadata are asked first, elsewhere what is
    // there.
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
    // The codec list is looked at first: zarrs' message for an unknown codec names a plugin.
    if format == 3 {
        known_codecs(&document["codecs"])
            .map_err(|error| MetadataError::Codec { place: place.clone(), error })?;
    }
    let array = Array::new_with_metadata(Arc::new(NoStore::new()), "/", metadata)
        .map_err(|e| malformed(e.to_string()))?;
    let name = array.data_type().name_v3().map(|n| n.into_owned()).unwrap_or_default();
    let dtype = DType::from_name(&name).ok_or_else(|| {
        unsupported(format!(
            "elements of type `{}`",
            if name.is_empty() { document["dtype"].to_string() } else { name.clone() }
        ))
    })?;
    let fill = Scalar::from_bytes(dtype, array.fill_value().as_ne_bytes())
        .ok_or_else(|| malformed("its fill value is of another type".into()))?;
    if document["storage_transformers"].as_array().is_some_and(|t| !t.is_empty()) {
        return Err(unsupported("storage transformers".into()));
    }
    let grid_document = if format == 3 {
        if document["chunk_grid"]["name"] != "regular" {
            return Err(unsupported(format!(
                "a chunk grid of type {}",
                document["chunk_grid"]["name"]
            )));
        }
        &document["chunk_grid"]["configuration"]["chunk_shape"]
    } else {
        &document["chunks"]
    };
    let outer: Vec<u64> =
        serde_json::from_value(grid_document.clone()).map_err(|e| malformed(e.to_string()))?;
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
    // Attributes that cannot be read may say what the values mean.
    let attributes = match attributes.as_ref().or(document.get("attributes")) {
        Some(Value::Object(attributes)) => attributes.clone(),
        None | Some(Value::Null) => Map::new(),
        Some(_) => return Err(malformed("its attributes are no JSON object".into())),
    };
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

/// Chunk shape, codecs, and the shard if there is one.
type Unsharded = (Vec<u64>, Vec<Value>, Option<Shard>);

/// Inner chunk shape, inner codecs and the shard, for an array that is sharded; else what was
/// given.
fn unshard(outer: &[u64], codecs: Vec<Value>) -> Result<Unsharded, CodecError> {
    if !codecs.iter().any(|c| c["name"] == "sharding_indexed") {
        return Ok((outer.to_vec(), codecs, None));
    }
    let unusable =
        |why: &str| CodecError::Unusable { name: "sharding_indexed".into(), why: why.into() };
    let [sharding] = codecs.as_slice() else {
        return Err(unusable("only sharding on its own is supported, without codecs around it"));
    };
    let configuration = &sharding["configuration"];
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let inner: Vec<u64> =
        list(&configuration["chunk_shape"]).iter().filter_map(Value::as_u64).collect();
    if inner.len() != outer.len() || inner.iter().zip(outer).any(|(i, o)| *i == 0 || o % i != 0) {
        return Err(unusable("its chunks do not divide the shard"));
    }
    let inner_codecs = list(&configuration["codecs"]);
    known_codecs(&configuration["codecs"])?;
    if inner_codecs.iter().any(|c| c["name"] == "sharding_indexed") {
        return Err(unusable("shards inside shards are not supported"));
    }
    let shard = Shard {
        chunks: outer.iter().zip(&inner).map(|(o, i)| o / i).collect(),
        index_codecs: list(&configuration["index_codecs"]),
        index_at_end: configuration["index_location"] != "start",
    };
    Ok((inner, inner_codecs, Some(shard)))
}

/// A Zarr v3 array document.
///
/// `dims` may be empty.
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
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": at_least_one(info.object_shape())}},
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

/// A Zarr v3 group document.
pub fn group_document(attributes: &Map<String, Value>) -> Value {
    json!({"zarr_format": 3, "node_type": "group", "attributes": attributes})
}

/// A fill value as Zarr v3 writes it, in the most readable of its exact forms.
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
