//! Access to an array of a session by chunks and regions.
//!
//! This is for small and irregular work, because the caller holds the values. Plans compute whole
//! arrays within projected memory.

use std::ops::Range;
use std::sync::Arc;

use freestone_engine::grid::{ChunkGrid, Region};
use freestone_engine::storage::metadata::open_array;
use freestone_engine::storage::reader::{ChunkAccess, ShardCache, WorkerResources, Written};
use freestone_engine::storage::{ArrayInfo, Store, StoredArray};

use crate::error::Error;
use crate::store::SessionStore;

/// An array of a session. Values are bytes in C order and native byte order.
#[derive(Debug)]
pub struct SessionArray {
    store: Arc<SessionStore>,
    stored: StoredArray,
    access: ChunkAccess,
    /// The grid of stored objects: chunks, or the shards of a sharded array.
    objects: ChunkGrid,
    resources: WorkerResources,
}

impl SessionArray {
    pub(crate) fn open(store: &Arc<SessionStore>, path: &str) -> Result<SessionArray, Error> {
        let shared: Arc<dyn Store> = Arc::clone(store) as Arc<dyn Store>;
        let stored = open_array(&shared, path)?;
        let access = ChunkAccess::new(shared, path, &stored.info)?;
        let objects = stored.info.objects();
        // There is no limit, because the caller holds the values and no projection exists.
        let resources = WorkerResources::new(1 << 60);
        Ok(SessionArray { store: Arc::clone(store), stored, access, objects, resources })
    }

    /// Returns the description of the array's chunks.
    pub fn info(&self) -> &ArrayInfo {
        &self.stored.info
    }

    /// Returns the array with its metadata.
    pub fn stored(&self) -> &StoredArray {
        &self.stored
    }

    fn path(&self) -> &str {
        &self.stored.path
    }

    /// Reads the whole array.
    ///
    /// # Errors
    /// Returns an error if storage fails or a chunk is damaged.
    pub fn read(&mut self) -> Result<Vec<u8>, Error> {
        let whole: Vec<Range<u64>> = self.stored.info.shape().iter().map(|n| 0..*n).collect();
        self.read_region(&whole)
    }

    /// Reads a region, given by one range per axis. Missing chunks have the fill value.
    ///
    /// # Errors
    /// Returns an error if the region exceeds the array, storage fails or a chunk is damaged.
    pub fn read_region(&mut self, region: &[Range<u64>]) -> Result<Vec<u8>, Error> {
        let region = self.inside(region)?;
        let size = self.stored.info.dtype.size();
        let mut values = vec![0; region.n_elements() as usize * size];
        let grid = self.stored.info.grid.clone();
        let mut cache = ShardCache::default();
        if region.n_elements() > 0 {
            for chunk in coords_of(&grid.overlapping(&region)) {
                let block = self.access.read(&chunk, &mut self.resources, &mut cache)?;
                let lies = grid.region(&chunk);
                let stored = self.access.stored_shape(&chunk);
                if let Some(both) = lies.intersect(&region) {
                    let from = Values { bytes: block.bytes(), shape: &stored, start: &lies.start };
                    copy_box(&both, &from, &mut values, (&region.shape, &region.start), size);
                }
                self.resources.arena.recycle(block);
            }
        }
        Ok(values)
    }

    /// Writes one chunk, or one shard of a sharded array. Values are padded to the full chunk
    /// shape.
    ///
    /// # Errors
    /// Returns an error if the chunk does not exist, the number of bytes is wrong, the session is
    /// closed, or storage fails.
    pub fn write_chunk(&mut self, chunk: &[u64], values: &[u8]) -> Result<(), Error> {
        let counts = self.objects.chunk_counts();
        if chunk.len() != counts.len() || chunk.iter().zip(&counts).any(|(c, n)| c >= n) {
            return Err(Error::NoChunk { array: self.path().to_owned(), chunk: chunk.to_vec() });
        }
        let expected = self.access.object_shape(chunk).iter().product::<u64>()
            * self.stored.info.dtype.size() as u64;
        if values.len() as u64 != expected {
            return Err(Error::Length {
                array: self.path().to_owned(),
                what: format!("chunk {chunk:?}"),
                given: values.len() as u64,
                expected,
            });
        }
        if let Written::Fill = self.access.write(chunk, values, &mut self.resources)? {
            // Nothing was stored, so the previous chunk must be hidden.
            let chunk: Vec<u32> =
                chunk.iter().map(|c| u32::try_from(*c).unwrap_or(u32::MAX)).collect();
            self.store.note_fill(self.path(), &chunk)?;
        }
        Ok(())
    }

    /// Writes a region that is aligned with stored chunks or shards, or ends at the array's end.
    ///
    /// # Errors
    /// Returns [`Error::Misaligned`], which names the smallest aligned region, and the errors of
    /// [`write_chunk`](SessionArray::write_chunk).
    pub fn write_region(&mut self, region: &[Range<u64>], values: &[u8]) -> Result<(), Error> {
        let inside = self.inside(region)?;
        let sizes = self.stored.info.object_shape();
        for (axis, ((range, size), len)) in
            region.iter().zip(&sizes).zip(self.stored.info.shape()).enumerate()
        {
            let size = (*size).max(1);
            if range.start % size != 0 || (range.end % size != 0 && range.end != len) {
                let around = range.start / size * size
                    ..range.end.div_ceil(size).saturating_mul(size).min(len);
                return Err(Error::Misaligned {
                    array: self.path().to_owned(),
                    axis,
                    region: range.clone(),
                    size,
                    around,
                });
            }
        }
        let size = self.stored.info.dtype.size();
        let expected = inside.n_elements() * size as u64;
        if values.len() as u64 != expected {
            return Err(Error::Length {
                array: self.path().to_owned(),
                what: "a region".into(),
                given: values.len() as u64,
                expected,
            });
        }
        if expected == 0 {
            return Ok(());
        }
        for chunk in coords_of(&self.objects.overlapping(&inside)) {
            let lies = self.objects.region(&chunk);
            let shape = self.access.object_shape(&chunk);
            let mut block = vec![0; shape.iter().product::<u64>() as usize * size];
            freestone_engine::kernels::copy::fill(&self.stored.info.fill, &mut block);
            if let Some(both) = lies.intersect(&inside) {
                let from = Values { bytes: values, shape: &inside.shape, start: &inside.start };
                copy_box(&both, &from, &mut block, (&shape, &lies.start), size);
            }
            self.write_chunk(&chunk, &block)?;
        }
        Ok(())
    }

    /// A region that lies in the array.
    fn inside(&self, region: &[Range<u64>]) -> Result<Region, Error> {
        let shape = self.stored.info.shape();
        if region.len() != shape.len() {
            return Err(Error::Rank {
                array: self.path().to_owned(),
                given: region.len(),
                expected: shape.len(),
            });
        }
        for (axis, (range, len)) in region.iter().zip(&shape).enumerate() {
            if range.start > range.end || range.end > *len {
                return Err(Error::Outside {
                    array: self.path().to_owned(),
                    axis,
                    region: range.clone(),
                    len: *len,
                });
            }
        }
        Ok(Region {
            start: region.iter().map(|r| r.start).collect(),
            shape: region.iter().map(|r| r.end - r.start).collect(),
        })
    }
}

/// The values of a region of an array, with its stored shape and start.
struct Values<'a> {
    bytes: &'a [u8],
    shape: &'a [u64],
    start: &'a [u64],
}

/// All coordinates in a region of chunks, in C order.
fn coords_of(chunks: &Region) -> Vec<Vec<u64>> {
    let grid = ChunkGrid::regular(&chunks.shape, &vec![1; chunks.shape.len()]);
    let at = |c: Vec<u64>| c.iter().zip(&chunks.start).map(|(c, start)| c + start).collect();
    grid.map_or_else(
        |_| Vec::new(),
        |grid| (0..grid.n_chunks()).map(|i| at(grid.coords(i))).collect(),
    )
}

/// Copies what two boxes of one array have in common, row by row.
fn copy_box(
    both: &Region,
    from: &Values<'_>,
    to: &mut [u8],
    (to_shape, to_start): (&[u64], &[u64]),
    size: usize,
) {
    let rank = both.shape.len();
    let row = both.shape.last().copied().unwrap_or(1) as usize * size;
    let outer = Region {
        start: both.start[..rank.saturating_sub(1)].to_vec(),
        shape: both.shape[..rank.saturating_sub(1)].to_vec(),
    };
    let offset = |at: &[u64], shape: &[u64], start: &[u64]| {
        at.iter().zip(shape).zip(start).fold(0, |i, ((a, n), s)| i * n + (a - s)) as usize * size
    };
    for mut at in coords_of(&outer) {
        at.extend(both.start.last());
        let (source, place) =
            (offset(&at, from.shape, from.start), offset(&at, to_shape, to_start));
        to[place..place + row].copy_from_slice(&from.bytes[source..source + row]);
    }
}
