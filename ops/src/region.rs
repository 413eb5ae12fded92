//! Regions of existing arrays: their chunks, and their location by coordinates.

use std::ops::Range;
use std::sync::Arc;

use freestone_engine::grid::{AxisGrid, ChunkGrid};
use freestone_engine::storage::metadata::{MetadataError, open_array};
use freestone_engine::storage::packing::Packing;
use freestone_engine::storage::reader::{ChunkAccess, ShardCache, WorkerResources};
use freestone_engine::storage::{ArrayInfo, Store, StoredArray, join};
use freestone_kernels::DType;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::array::{Array, Dim};
use crate::error::Error;

/// The reason for which a region cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum RegionError {
    #[error(
        "no array at {place} to write a region of (hint: create it by `freestone::create`, or \
            store it whole)"
    )]
    Missing { place: String },
    #[error(
        "cannot set {what} for a region of {place}: the stored array determines it (hint: remove \
            the option)"
    )]
    Fixed { place: String, what: &'static str },
    #[error(
        "cannot create {place} from a region: `create` writes the metadata of whole arrays (hint: \
            remove the region)"
    )]
    Metadata { place: String },
    #[error(
        "invalid region of {region} axes for {place}: expected one range for each of {array} axes"
    )]
    Rank { place: String, region: usize, array: usize },
    #[error("cannot write {array} to {place}, which is {stored} (hint: cast it by `astype`)")]
    DType { place: String, stored: DType, array: DType },
    #[error(
        "cannot write a region of {place}: its readers unpack values by {stored}, but the array \
            has {array} (hint: set the same attributes by `Array::with_attribute` if its values \
            are packed so, or store the array separately)"
    )]
    Packing { place: String, stored: String, array: String },
    #[error("invalid region {}..{} along axis {axis} of {place}: the axis has {len} elements",
        region.start, region.end)]
    Outside { place: String, axis: usize, region: Range<u64>, len: u64 },
    #[error("invalid region {}..{} along axis {axis} of {place}: it has {} elements, but the \
        array has {len}", region.start, region.end, region.end - region.start)]
    Shape { place: String, axis: usize, region: Range<u64>, len: u64 },
    #[error("region {}..{} along axis {axis} of {place} is not aligned to stored objects of \
        {size} elements: {}..{} is the smallest aligned region around it",
        region.start, region.end, around.start, around.end)]
    Unaligned { place: String, axis: usize, region: Range<u64>, size: u64, around: Range<u64> },
    #[error(
        "axis {axis} is {array} in the array, but {stored} in {place} (hint: give the region's \
            ranges, or use the same names)"
    )]
    Name { place: String, axis: usize, array: String, stored: String },
    #[error(
        "cannot locate axis {axis} (`{name}`) in {place}: {why} (hint: give the region's ranges)"
    )]
    Coordinate { place: String, axis: usize, name: String, why: String },
}

/// The region of a target.
#[derive(Clone, Debug)]
pub(crate) enum Region {
    /// One range for each axis.
    At(Vec<Range<u64>>),
    /// The location of the array's coordinates in those of the stored array.
    Auto,
}

/// The maximum size of coordinates that are compared, in bytes.
const MAX_COORDINATE_BYTES: u64 = 64_000_000;

/// The attributes that give a coordinate's numbers their meaning.
const MEANING: [&str; 5] = ["units", "calendar", "scale_factor", "add_offset", "_Unsigned"];

/// Returns the first attribute by which equal numbers of two coordinates have different meanings.
pub(crate) fn other_meaning(
    ours: &Map<String, Value>,
    theirs: &Map<String, Value>,
) -> Option<&'static str> {
    MEANING.into_iter().find(|a| ours.get(*a) != theirs.get(*a))
}

/// Returns the region of a stored array, as an array with the same chunks.
pub(crate) fn window(
    array: &Array,
    stored: &StoredArray,
    region: &Region,
) -> Result<ArrayInfo, Error> {
    let place = || stored.location();
    let (shape, there) = (array.shape()?, stored.info.shape());
    if shape.len() != there.len() {
        return Err(
            RegionError::Rank { place: place(), region: shape.len(), array: there.len() }.into()
        );
    }
    if array.dtype()? != stored.info.dtype {
        return Err(RegionError::DType {
            place: place(),
            stored: stored.info.dtype,
            array: array.dtype()?,
        }
        .into());
    }
    let (stored_as, packed_as) =
        (Packing::of(&stored.attributes, stored.info.dtype), array.packing()?);
    if !Packing::takes(stored_as.as_ref(), packed_as.as_ref()) {
        let text = |packing: Option<Packing>| {
            packing.map_or_else(|| "no such attributes".to_owned(), |p| p.attributes())
        };
        return Err(RegionError::Packing {
            place: place(),
            stored: text(stored_as),
            array: text(packed_as),
        }
        .into());
    }
    let ranges = match region {
        Region::At(ranges) => ranges.clone(),
        Region::Auto => located(array, stored)?,
    };
    if ranges.len() != there.len() {
        return Err(
            RegionError::Rank { place: place(), region: ranges.len(), array: there.len() }.into()
        );
    }
    let (chunks, objects) = (stored.info.chunk_shape(), stored.info.object_shape());
    let (mut axes, mut first) = (Vec::new(), Vec::new());
    for (axis, region) in ranges.into_iter().enumerate() {
        let (len, size, chunk) = (there[axis], objects[axis].max(1), chunks[axis].max(1));
        if region.start > region.end || region.end > len {
            return Err(RegionError::Outside { place: place(), axis, region, len }.into());
        }
        if region.end - region.start != shape[axis] {
            return Err(
                RegionError::Shape { place: place(), axis, region, len: shape[axis] }.into()
            );
        }
        if region.start % size != 0 || (region.end % size != 0 && region.end != len) {
            let around =
                region.start / size * size..region.end.div_ceil(size).saturating_mul(size).min(len);
            return Err(
                RegionError::Unaligned { place: place(), axis, region, size, around }.into()
            );
        }
        axes.push(AxisGrid::regular(shape[axis], chunk));
        first.push(region.start / chunk);
    }
    Ok(ArrayInfo { grid: ChunkGrid::new(axes), window: Some(first), ..stored.info.clone() })
}

/// Locates the values of the array's coordinates in those of the stored array.
fn located(array: &Array, stored: &StoredArray) -> Result<Vec<Range<u64>>, Error> {
    let group = stored.path.rsplit_once('/').map_or("", |(group, _)| group);
    let (shape, there) = (array.shape()?, stored.info.shape());
    let mut ranges = Vec::new();
    for (axis, dim) in array.dims()?.iter().enumerate() {
        let named = |name: &Option<String>| {
            name.as_ref().map_or("without a name".to_owned(), |n| format!("named `{n}`"))
        };
        let name = match (&dim.name, &stored.dims[axis]) {
            (Some(ours), Some(theirs)) if ours == theirs => ours,
            (None, None) if shape[axis] == there[axis] => {
                ranges.push(0..there[axis]);
                continue;
            }
            (ours, theirs) => {
                return Err(RegionError::Name {
                    place: stored.location(),
                    axis,
                    array: named(ours),
                    stored: named(theirs),
                }
                .into());
            }
        };
        let start = find(stored, group, there[axis], dim, shape[axis]).map_err(|e| match e {
            Search::Why(why) => {
                RegionError::Coordinate { place: stored.location(), axis, name: name.clone(), why }
                    .into()
            }
            Search::Failed(error) => error,
        })?;
        ranges.push(start..start + shape[axis]);
    }
    Ok(ranges)
}

/// The reason for which an axis was not located.
enum Search {
    Why(String),
    Failed(Error),
}

impl From<Error> for Search {
    fn from(error: Error) -> Search {
        Search::Failed(error)
    }
}

/// Locates the `len` elements of an axis along a stored axis of `there` elements. Returns the
/// index of the first one.
fn find(stored: &StoredArray, group: &str, there: u64, dim: &Dim, len: u64) -> Result<u64, Search> {
    let why = |text: &str| Search::Why(text.to_owned());
    let Some(name) = dim.name.as_deref() else { return Err(why("the axis has no name")) };
    let theirs = coordinate(&stored.store, group, name, there)?
        .ok_or_else(|| why("the stored array's group has no coordinate of that name and length"))?;
    let ours = match &dim.origin {
        Some(origin) => {
            coordinate(&origin.store, &origin.group, name, origin.len)?.map(|c| (c, origin))
        }
        None => None,
    };
    let (ours, origin) = ours.ok_or_else(|| why("the array has no coordinate for the axis"))?;
    if ours.info.dtype != theirs.info.dtype {
        return Err(Search::Why(format!(
            "its coordinate is {} in the array, but {} in the store",
            ours.info.dtype, theirs.info.dtype
        )));
    }
    if let Some(attribute) = other_meaning(&ours.attributes, &theirs.attributes) {
        return Err(Search::Why(format!("the coordinates' attribute `{attribute}` differs")));
    }
    if len == 0 {
        return Ok(0);
    }
    let size = ours.info.dtype.size();
    let (all, theirs) = (values(&ours)?, values(&theirs)?);
    let element = |i: u64| {
        let at = usize::try_from(origin.start as i64 + origin.step * i as i64)
            .ok()?
            .checked_mul(size)?;
        all.get(at..at + size)
    };
    let wanted = (0..len)
        .map(element)
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| why("internal error: the axis lies outside of its coordinate"))?
        .concat();
    let mut starts = (0..=theirs.len().saturating_sub(wanted.len()))
        .step_by(size)
        .filter(|s| theirs[*s..].starts_with(&wanted));
    match (starts.next(), starts.next()) {
        (Some(start), None) => Ok((start / size) as u64),
        (Some(_), Some(_)) => Err(why("the stored coordinate contains its values more than once")),
        _ => Err(why("the stored coordinate lacks its values in this order and without gaps")),
    }
}

/// Returns true if a group's coordinate equals that of an axis: the same values, with the same
/// meaning by their attributes.
pub(crate) fn agrees(there: &StoredArray, dim: &Dim, len: u64) -> Result<bool, Error> {
    if there.info.shape() != [len] {
        return Ok(false);
    }
    let group = there.path.rsplit_once('/').map_or("", |(group, _)| group);
    match find(there, group, len, dim, len) {
        Ok(start) => Ok(start == 0),
        Err(Search::Why(_)) => Ok(false),
        Err(Search::Failed(error)) => Err(error),
    }
}

/// Opens the one-dimensional array of a name and length in a group.
fn coordinate(
    store: &Arc<dyn Store>,
    group: &str,
    name: &str,
    len: u64,
) -> Result<Option<StoredArray>, Search> {
    match open_array(store, &join(group, name)) {
        Ok(stored) if stored.info.shape() == [len] => Ok(Some(stored)),
        Ok(_)
        | Err(
            MetadataError::NoZarr { .. }
            | MetadataError::Group { .. }
            | MetadataError::Unsupported { .. },
        ) => Ok(None),
        Err(e) => Err(Search::Failed(e.into())),
    }
}

/// Reads all values of a one-dimensional array.
fn values(stored: &StoredArray) -> Result<Vec<u8>, Search> {
    let n_bytes = stored.info.n_bytes();
    if n_bytes > u128::from(MAX_COORDINATE_BYTES) {
        return Err(Search::Why(format!(
            "its coordinate at {} is too large to be compared",
            stored.location()
        )));
    }
    let failed =
        |e: &dyn std::fmt::Display| Search::Why(format!("its coordinate cannot be read: {e}"));
    let access = ChunkAccess::new(Arc::clone(&stored.store), &stored.path, &stored.info)
        .map_err(|e| failed(&e))?;
    let mut resources = WorkerResources::new(4 * MAX_COORDINATE_BYTES);
    let (mut bytes, mut cache) = (Vec::with_capacity(n_bytes as usize), ShardCache::default());
    for chunk in 0..stored.info.grid.n_chunks() {
        let block = access.read(&[chunk], &mut resources, &mut cache).map_err(|e| failed(&e))?;
        let inside =
            stored.info.grid.region(&[chunk]).n_elements() as usize * stored.info.dtype.size();
        bytes.extend_from_slice(&block.bytes()[..inside]);
        resources.arena.recycle(block);
    }
    Ok(bytes)
}
