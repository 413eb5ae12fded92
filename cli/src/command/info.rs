//! `freestone info`: metadata of arrays and groups.

use freestone::size;
use freestone_engine::storage::metadata::{self, MetadataError};
use freestone_engine::storage::{StoredArray, join, split_location};

use super::{Failure, print};

pub(crate) fn info(location: &str) -> Result<(), Failure> {
    let metadata_error = |e: MetadataError| Failure::from(freestone::ArrayError::from(e));
    let (url, name) = split_location(location);
    let store = freestone::stores().open(&url).map_err(freestone::ArrayError::from)?;
    match metadata::open_array(&store, &name) {
        Ok(array) => describe(&array),
        Err(MetadataError::Group { .. }) => {
            let group = metadata::open_group(&*store, &name).map_err(metadata_error)?;
            print(&format!("group {}", store.place(&name)))?;
            attributes(&group.attributes)?;
            for child in &group.children {
                match metadata::open_array(&store, &join(&name, child)) {
                    Ok(a) => print(&format!(
                        "  {child}  {} {:?} in chunks {:?}",
                        a.info.dtype,
                        a.info.shape(),
                        a.info.chunk_shape()
                    ))?,
                    Err(MetadataError::Group { .. }) => print(&format!("  {child}/"))?,
                    Err(MetadataError::NoZarr { .. }) => {}
                    Err(e) => print(&format!("  {child}  unreadable: {e}"))?,
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
    print(&format!("array {} (Zarr format {})", array.location(), array.format))?;
    print(&format!("  dtype   {}", info.dtype))?;
    print(&format!("  shape   {:?} ({})", info.shape(), names.join(", ")))?;
    let bytes = u64::try_from(info.n_bytes()).unwrap_or(u64::MAX);
    print(&format!("  size    {} uncompressed", size(bytes)))?;
    let chunk_bytes =
        info.chunk_shape().iter().fold(info.dtype.size() as u64, |p, n| p.saturating_mul(*n));
    print(&format!(
        "  chunks  {:?} of {}, {} in all",
        info.chunk_shape(),
        size(chunk_bytes),
        info.grid.n_chunks()
    ))?;
    if let Some(shard) = &info.shard {
        print(&format!(
            "  shards  {:?} of {:?} chunks, {} in all",
            info.object_shape(),
            shard.chunks,
            info.objects().n_chunks()
        ))?;
    }
    let codecs: Vec<String> =
        info.codecs.iter().map(|c| c["name"].as_str().unwrap_or_default().to_owned()).collect();
    print(&format!("  codecs  {}", codecs.join(", ")))?;
    print(&format!("  fill    {}", info.fill))?;
    attributes(&array.attributes)
}

fn attributes(attributes: &serde_json::Map<String, serde_json::Value>) -> Result<(), Failure> {
    attributes.iter().try_for_each(|(name, value)| print(&format!("  {name}: {value}")))
}
