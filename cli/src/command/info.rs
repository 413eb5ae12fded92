//! `freestone info`.

use freestone::size;
use freestone_engine::storage::metadata::{self, MetadataError};
use freestone_engine::storage::{StoredArray, join, split_location};

use super::{Failure, say};

pub(crate) fn info(location: &str) -> Result<(), Failure> {
    let metadata_error = |e: MetadataError| Failure::from(freestone::ArrayError::from(e));
    let (url, name) = split_location(location);
    let store = freestone::stores().open(&url).map_err(freestone::ArrayError::from)?;
    match metadata::open_array(&store, &name) {
        Ok(array) => describe(&array),
        Err(MetadataError::Group { .. }) => {
            let group = metadata::open_group(&*store, &name).map_err(metadata_error)?;
            say(&format!("group {}", store.place(&name)))?;
            attributes(&group.attributes)?;
            for child in &group.children {
                match metadata::open_array(&store, &join(&name, child)) {
                    Ok(a) => say(&format!(
                        "  {child}  {} {:?} in chunks {:?}",
                        a.info.dtype,
                        a.info.shape(),
                        a.info.chunk_shape()
                    ))?,
                    Err(MetadataError::Group { .. }) => say(&format!("  {child}/"))?,
                    Err(MetadataError::NoZarr { .. }) => {}
                    Err(e) => say(&format!("  {child}  cannot be read: {e}"))?,
                }
            }
            Ok(())
        }
        Err(e) => Err(metadata_error(e)),
    }
}

fn describe(array: &StoredArray) -> Result<(), Failure> {
    let info = &array.info;
    let names: Vec<&str> = array.dims.iter().map(|d| d.as_deref().unwrap_or("-")).collect();
    say(&format!("array {} (Zarr format {})", array.location(), array.format))?;
    say(&format!("  dtype   {}", info.dtype))?;
    say(&format!("  shape   {:?} ({})", info.shape(), names.join(", ")))?;
    let bytes = u64::try_from(info.n_bytes()).unwrap_or(u64::MAX);
    say(&format!("  size    {} uncompressed", size(bytes)))?;
    let chunk_bytes =
        info.chunk_shape().iter().fold(info.dtype.size() as u64, |p, n| p.saturating_mul(*n));
    say(&format!(
        "  chunks  {:?} of {}, {} in all",
        info.chunk_shape(),
        size(chunk_bytes),
        info.grid.n_chunks()
    ))?;
    if let Some(shard) = &info.shard {
        say(&format!(
            "  shards  {:?} of {:?} chunks, {} in all",
            info.object_shape(),
            shard.chunks,
            info.objects().n_chunks()
        ))?;
    }
    let codecs: Vec<String> =
        info.codecs.iter().map(|c| c["name"].as_str().unwrap_or_default().to_owned()).collect();
    say(&format!("  codecs  {}", codecs.join(", ")))?;
    say(&format!("  fill    {}", info.fill))?;
    attributes(&array.attributes)
}

fn attributes(attributes: &serde_json::Map<String, serde_json::Value>) -> Result<(), Failure> {
    attributes.iter().try_for_each(|(name, value)| say(&format!("  {name}: {value}")))
}
