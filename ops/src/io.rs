//! Input and output: stored arrays, and targets of results.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use freestone_engine::graph::{Node, NodeRef, Op};
use freestone_engine::grid::ChunkGrid;
use freestone_engine::plan::Mode;
use freestone_engine::plan::lower::Output as EngineOutput;
use freestone_engine::storage::array::Shard;
use freestone_engine::storage::metadata::{
    self, MetadataError, array_document, group_document, open_array, open_group,
};
use freestone_engine::storage::{
    ArrayInfo, CodecName, Encoding, Keys, Store, StoredArray, Stores, identity, join,
    split_location,
};
use freestone_kernels::Scalar;
use serde_json::{Map, Value};

use crate::array::{Array, Dim, Origin};
use crate::error::Error;
use crate::index::Slice;
use crate::region::{Region, RegionError, agrees, other_meaning, window};

/// Opens an array of Zarr format 2 or 3 in an open store. Reads only metadata.
///
/// # Errors
/// Fails if there is no array, or if it uses an unsupported feature.
pub fn open_in(store: &Arc<dyn Store>, path: &str) -> Result<Array, Error> {
    let stored = open_array(store, path)?;
    let group = path.rsplit_once('/').map_or("", |(group, _)| group).to_owned();
    let shape = stored.info.shape();
    let origin = |len: u64| Origin {
        store: Arc::clone(store),
        group: group.clone(),
        len,
        start: 0,
        step: 1,
    };
    let dims = stored.dims.iter().zip(&shape).map(|(name, len)| Dim {
        name: name.clone(),
        origin: name.is_some().then(|| origin(*len)),
    });
    let (dims, attributes) = (dims.collect(), stored.attributes.clone());
    let node = Arc::new(Node {
        dtype: stored.info.dtype,
        grid: stored.info.grid.clone(),
        op: Op::Stored(Box::new(stored)),
    });
    Ok(Array::from_parts(node, dims, attributes))
}

/// The destination of a result, and its storage options.
#[derive(Clone, Debug)]
pub struct Target {
    array: Array,
    url: String,
    path: String,
    in_group: bool,
    chunks: Option<Vec<u64>>,
    shards: Option<Vec<u64>>,
    codec: Option<Encoding>,
    fill: Option<f64>,
    overwrite: bool,
    consolidated: bool,
    region: Option<Region>,
    stores: Stores,
}

impl Target {
    /// Stores an array by itself at a location.
    pub fn array(array: &Array, location: impl AsRef<Path>) -> Target {
        let (url, path) = split_location(&location.as_ref().to_string_lossy());
        Target::new(array, url, path, false)
    }

    /// Stores an array in a group, with the coordinate arrays of its axes. Creates the group if it
    /// is missing.
    ///
    /// Planning reads the group's existing coordinates. All arrays of a group share them, so an
    /// array with other coordinates is rejected. Unnamed axes receive names, because readers of
    /// groups identify axes by name.
    pub fn in_group(array: &Array, group: impl AsRef<Path>, name: &str) -> Target {
        let group = group.as_ref().to_string_lossy().trim_end_matches('/').to_owned();
        Target::new(array, group, name.to_owned(), true)
    }

    fn new(array: &Array, url: String, path: String, in_group: bool) -> Target {
        Target {
            array: array.clone(),
            url,
            path,
            in_group,
            chunks: None,
            shards: None,
            codec: None,
            fill: None,
            overwrite: false,
            consolidated: false,
            region: None,
            stores: Stores::default(),
        }
    }

    /// Uses stores that are already open, for example in-memory stores.
    #[must_use]
    pub fn with_stores(mut self, stores: &Stores) -> Target {
        self.stores = stores.clone();
        self
    }

    /// Sets the shape of stored chunks. The default is the array's chunk shape, made regular.
    #[must_use]
    pub fn chunks(mut self, chunks: impl AsRef<[u64]>) -> Target {
        self.chunks = Some(chunks.as_ref().to_vec());
        self
    }

    /// Stores shards of this shape, each with several chunks. By default, each chunk is an object.
    ///
    /// Each length must be a multiple of the chunk's. A task holds and writes a whole shard;
    /// readers fetch single chunks.
    #[must_use]
    pub fn shards(mut self, shards: impl AsRef<[u64]>) -> Target {
        self.shards = Some(shards.as_ref().to_vec());
        self
    }

    /// Sets the codec, for example `CodecName::Zstd(3)` or `"zstd:3+crc32c".parse()?`. The default
    /// is zstd at its default level.
    #[must_use]
    pub fn codec(mut self, codec: impl Into<Encoding>) -> Target {
        self.codec = Some(codec.into());
        self
    }

    /// Sets the value of missing chunks. The default is 0.
    #[must_use]
    pub fn fill(mut self, value: f64) -> Target {
        self.fill = Some(value);
        self
    }

    /// Replaces an existing array.
    #[must_use]
    pub fn overwrite(mut self, yes: bool) -> Target {
        self.overwrite = yes;
        self
    }

    /// Writes consolidated metadata of the group, with which readers list all arrays in one
    /// request. Existing consolidated metadata are always updated.
    ///
    /// Applies to arrays [in groups](Target::in_group).
    #[must_use]
    pub fn consolidated(mut self, yes: bool) -> Target {
        self.consolidated = yes;
        self
    }

    /// Writes a region of an existing array, given by one range for each axis. The array's metadata
    /// remain unchanged.
    ///
    /// A region begins and ends at boundaries of stored chunks or shards, or at the array's end.
    /// Runs may write different regions of one array concurrently. Each chunk is replaced
    /// atomically, but the region is not: until the run ends, readers see a mixture of new and old
    /// chunks. Coordinates are not written. An atomic region requires a transactional store.
    #[must_use]
    pub fn region(mut self, region: impl AsRef<[Range<u64>]>) -> Target {
        self.region = Some(Region::At(region.as_ref().to_vec()));
        self
    }

    /// Writes a region that is located by coordinates, like [`region`](Target::region). The values
    /// of each named axis's coordinate must occur contiguously in the coordinate of the stored
    /// array's group.
    ///
    /// Planning reads these coordinates.
    #[must_use]
    pub fn region_auto(mut self) -> Target {
        self.region = Some(Region::Auto);
        self
    }

    /// Returns the stores of [`with_stores`](Target::with_stores).
    pub fn stores(&self) -> &Stores {
        &self.stores
    }

    /// Returns the destination store.
    fn store(&self, stores: &Stores) -> Result<Arc<dyn Store>, Error> {
        Ok(self.stores.get(&self.url).map_or_else(|| stores.open(&self.url), Ok)?)
    }

    /// Returns the path of a sibling in the same group.
    fn beside(&self, name: &str) -> String {
        join(self.path.rsplit_once('/').map_or("", |(group, _)| group), name)
    }
}

/// Returns the planner's outputs for targets, including the coordinates of arrays in groups.
/// `stores` opens the stores of targets without stores of their own.
///
/// # Errors
/// Fails with the first error of an array's expression, or if chunks do not match a shape.
pub fn outputs(targets: &[Target], stores: &Stores) -> Result<Vec<EngineOutput>, Error> {
    let mut all = Vec::new();
    for target in targets {
        all.push(output(target, &target.array, &target.path, stores)?);
    }
    let own: Vec<String> = all.iter().map(|o| identity(&o.url, &o.path)).collect();
    // The coordinates that this plan writes or keeps, each with its axis.
    let mut settled: Vec<(String, Dim, u64)> = Vec::new();
    for target in targets.iter().filter(|t| t.in_group && t.region.is_none()) {
        for (name, dim, coordinate) in coordinates(target)? {
            let store = target.store(stores)?;
            let name = target.beside(&name);
            let (place, len) = (identity(store.url(), &name), coordinate.shape()?[0]);
            let differ = || Error::Coordinates {
                place: store.place(""),
                array: target.path.clone(),
                name: name.clone(),
            };
            if own.contains(&place) {
                continue;
            }
            if let Some((_, other, n)) = settled.iter().find(|(p, ..)| *p == place) {
                if *other == dim && *n == len {
                    continue;
                }
                return Err(differ());
            }
            let there = match open_array(&store, &name) {
                Ok(there) => Some(there),
                Err(MetadataError::NoZarr { .. }) => None,
                Err(e) => return Err(e.into()),
            };
            let same = there.as_ref().map(|t| agrees(t, &dim, len)).transpose()?;
            if same == Some(false) && (!target.overwrite || is_used(&store, &name, &target.path)?) {
                return Err(differ());
            }
            settled.push((place, dim, len));
            if same != Some(true) {
                // Coordinates are small enough for one chunk.
                let chunks = Some(coordinate.shape()?.iter().map(|n| (*n).max(1)).collect());
                let whole = Target { chunks, shards: None, fill: None, ..target.clone() };
                all.push(output(&whole, &coordinate, &name, stores)?);
            }
        }
    }
    Ok(all)
}

/// Returns the planner's outputs for the metadata of targets, and for the values of their
/// coordinates.
///
/// # Errors
/// Returns the errors of [`outputs`], and an error for regions.
pub fn metadata_outputs(targets: &[Target], stores: &Stores) -> Result<Vec<EngineOutput>, Error> {
    if let Some(target) = targets.iter().find(|t| t.region.is_some()) {
        return Err(RegionError::Metadata { place: join(&target.url, &target.path) }.into());
    }
    let mut all = outputs(targets, stores)?;
    all[..targets.len()].iter_mut().for_each(|o| o.mode = Mode::Metadata);
    Ok(all)
}

/// Returns true if an array of the group, except the array `but`, has an axis of this name.
fn is_used(store: &Arc<dyn Store>, name: &str, but: &str) -> Result<bool, Error> {
    let group = name.rsplit_once('/').map_or("", |(group, _)| group);
    let (own, but) = (last(name), last(but));
    let children = match open_group(&**store, group) {
        Ok(group) => group.children,
        Err(MetadataError::NoZarr { .. }) => return Ok(false),
        Err(e) => return Err(e.into()),
    };
    for child in children.iter().filter(|c| *c != own && *c != but) {
        // An unreadable array may use the name.
        match open_array(store, &join(group, child)) {
            Ok(array) if !array.dims.iter().flatten().any(|d| d == own) => {}
            Err(MetadataError::Group { .. } | MetadataError::NoZarr { .. }) => {}
            _ => return Ok(true),
        }
    }
    Ok(false)
}

/// Returns the last part of a path.
fn last(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// Returns the output for a region of an existing array.
fn region_output(target: &Target, region: &Region, stores: &Stores) -> Result<EngineOutput, Error> {
    let store = target.store(stores)?;
    let place = || store.place(&target.path);
    let given = [
        ("chunks", target.chunks.is_some()),
        ("shards", target.shards.is_some()),
        ("a codec", target.codec.is_some()),
        ("a fill value", target.fill.is_some()),
        ("overwrite", target.overwrite),
        ("consolidated metadata", target.consolidated),
    ];
    if let Some((what, _)) = given.into_iter().find(|(_, given)| *given) {
        return Err(RegionError::Fixed { place: place(), what }.into());
    }
    let stored = match open_array(&store, &target.path) {
        Err(MetadataError::NoZarr { .. }) => {
            return Err(RegionError::Missing { place: place() }.into());
        }
        other => other?,
    };
    Ok(EngineOutput {
        node: Arc::clone(&target.array.get()?.node),
        name: target.path.clone(),
        url: store.url().to_owned(),
        path: target.path.clone(),
        info: window(&target.array, &stored, region)?,
        document: Value::Null,
        group: None,
        overwrite: false,
        mode: Mode::Region { tag: stored.tag },
        consolidated: false,
    })
}

fn output(
    target: &Target,
    array: &Array,
    path: &str,
    stores: &Stores,
) -> Result<EngineOutput, Error> {
    if let Some(region) = &target.region {
        return region_output(target, region, stores);
    }
    if target.consolidated && !target.in_group {
        return Err(Error::Argument(format!(
            "consolidated metadata require a group (hint: use `Target::in_group` for `{path}`)"
        )));
    }
    let inner = array.get()?;
    let (dtype, shape) = (inner.node.dtype, inner.node.shape());
    let chunks = match &target.chunks {
        Some(chunks) => chunks.clone(),
        None => inner.node.grid.max_chunk().iter().map(|n| (*n).max(1)).collect(),
    };
    let grid = ChunkGrid::regular(&shape, &chunks)?;
    let fill = match target.fill {
        Some(value) => Scalar::from_f64(dtype, value),
        None => inherited_fill(&inner.node).unwrap_or(Scalar::zero(dtype)),
    };
    let encoding = target.codec.unwrap_or(CodecName::Zstd(0).into());
    encoding.check()?;
    let shard = target.shards.as_ref().map(|shards| shard(shards, &chunks)).transpose()?;
    let info = ArrayInfo {
        dtype,
        fill,
        grid,
        stored_shape: Some(chunks),
        codecs: encoding.codecs(dtype),
        keys: Keys::Default { separator: '/' },
        shard,
        window: None,
    };
    // Readers of groups identify axes by name, so an unnamed axis receives a name that no other
    // array has.
    let unnamed = |d: usize| target.in_group.then(|| format!("{}_dim_{d}", last(path)));
    let names: Vec<Option<String>> = inner
        .dims
        .iter()
        .enumerate()
        .map(|(d, dim)| dim.name.clone().or_else(|| unnamed(d)))
        .collect();
    if target.in_group && names.len() > 1 && names.iter().flatten().any(|n| n == last(path)) {
        return Err(Error::Argument(format!(
            "invalid name `{path}` of an array of several axes: an axis has this name, which \
                is that of its coordinate"
        )));
    }
    let url = target.store(stores)?.url().to_owned();
    Ok(EngineOutput {
        node: Arc::clone(&inner.node),
        name: path.to_owned(),
        url,
        path: path.to_owned(),
        document: array_document(&info, &names, &inner.attributes),
        info,
        group: target.in_group.then(|| group_document(&Map::<String, Value>::new())),
        overwrite: target.overwrite,
        mode: Mode::Whole,
        consolidated: target.consolidated,
    })
}

/// Returns the shard shape, for chunks of a shape.
fn shard(shards: &[u64], chunks: &[u64]) -> Result<Shard, Error> {
    if shards.len() != chunks.len() {
        return Err(Error::Shards(format!(
            "{} shard sizes were given for {} axes: give one for each axis",
            shards.len(),
            chunks.len()
        )));
    }
    for (axis, (shard, chunk)) in shards.iter().zip(chunks).enumerate() {
        let chunk = (*chunk).max(1);
        if *shard == 0 || shard % chunk != 0 {
            let below = shard / chunk * chunk;
            let nearest = if below == 0 {
                format!("{chunk}")
            } else {
                format!("{below} or {}", below.saturating_add(chunk))
            };
            return Err(Error::Shards(format!(
                "along axis {axis} a shard of {shard} is not a multiple of the chunks of {chunk}: \
                    use {nearest}"
            )));
        }
    }
    Ok(Shard::new(shards.iter().zip(chunks).map(|(s, c)| s / (*c).max(1)).collect()))
}

/// Returns the fill value of the array that a copy reads. It may represent missing data, so copies
/// keep it for any chunk shape.
fn inherited_fill(node: &NodeRef) -> Option<Scalar> {
    match &node.op {
        Op::Stored(stored) => Some(stored.info.fill),
        Op::Rechunk(input) => inherited_fill(input),
        Op::View { sources, .. } => sources.first().and_then(inherited_fill),
        _ => None,
    }
}

/// Returns the coordinate arrays of a target's axes: one-dimensional arrays named after the axis,
/// in the group of the array that the axis comes from.
fn coordinates(target: &Target) -> Result<Vec<(String, Dim, Array)>, Error> {
    let mut found = Vec::new();
    let shape = target.array.shape()?;
    for (dim, len) in target.array.dims()?.iter().zip(&shape) {
        let Some(name) = dim.name.as_ref().filter(|name| *name != last(&target.path)) else {
            continue;
        };
        if let Some(coordinate) = coordinate(dim, *len)? {
            found.push((name.clone(), dim.clone(), coordinate));
        }
    }
    Ok(found)
}

/// Returns the coordinate array of an axis of `len` elements. Returns `None` if the axis has no
/// origin or its group has no coordinate.
fn coordinate(dim: &Dim, len: u64) -> Result<Option<Array>, Error> {
    let (Some(name), Some(origin)) = (&dim.name, &dim.origin) else { return Ok(None) };
    let path = join(&origin.group, name);
    let coordinate = match metadata::open_array(&origin.store, &path) {
        Ok(stored) if stored.info.shape() == [origin.len] => open_in(&origin.store, &path)?,
        // There is no coordinate of that name, or another array has the name.
        Ok(_)
        | Err(
            MetadataError::NoZarr { .. }
            | MetadataError::Group { .. }
            | MetadataError::Unsupported { .. },
        ) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    if origin.start == 0 && origin.step == 1 && len == origin.len {
        return Ok(Some(coordinate));
    }
    let stop = origin.start as i64 + origin.step * len as i64;
    let range = Slice::new(Some(origin.start as i64), (stop >= 0).then_some(stop), origin.step);
    coordinate.try_slice(range, &0.into()).map(Some)
}

/// Returns the coordinate array of an axis, to be appended to another coordinate. Returns `None` if
/// there is none.
///
/// # Errors
/// Fails with [`Error::Coordinates`] if the numbers of the two coordinates have different meanings,
/// for example different units.
pub fn coordinate_after(
    array: &Array,
    axis: usize,
    there: &StoredArray,
) -> Result<Option<Array>, Error> {
    let (dims, shape) = (array.dims()?, array.shape()?);
    let Some((dim, len)) = dims.get(axis).zip(shape.get(axis)) else {
        return Err(Error::Axis { axis: axis as i64, rank: shape.len() });
    };
    let Some(coordinate) = coordinate(dim, *len)? else { return Ok(None) };
    if other_meaning(coordinate.attributes()?, &there.attributes).is_some()
        || coordinate.dtype()? != there.info.dtype
    {
        let (group, name) = there.path.rsplit_once('/').unwrap_or(("", &there.path));
        return Err(Error::Coordinates {
            place: there.store.place(group),
            array: last(&there.path).to_owned(),
            name: name.to_owned(),
        });
    }
    Ok(Some(coordinate))
}
