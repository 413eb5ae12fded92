//! Loading of input blocks.
//!
//! A block inside one chunk is viewed in place. A block that overlaps several chunks, or that
//! contains fill values, is assembled in a buffer. `plan/chunks.rs` lists the chunks of a block.

use freestone_kernels::{Buffer, View, contiguous_strides, copy};

use super::prefetch::Prefetch;
use crate::flat::shared_rows;
use crate::grid::{ChunkGrid, Region, try_for_each_coord};
use crate::plan::chunks::{Touched, touched};
use crate::plan::{MAX_PARTS, ReadMode};
use crate::readmap::{AxisMap, Run};
use crate::state::{Loaded, TaskState, Values, sizes};
use crate::storage::{ObjectPart, PART_BYTES};
use crate::task::{Cause, cause_of_chunk, internal};

/// A block under assembly.
struct Block {
    buffer: Buffer,
    /// The strides in elements; 0 along axes where values repeat.
    strides: Vec<isize>,
    /// The size of an element in bytes.
    size: usize,
}

/// The boxes of a chunk that overlap a box of a block, with their destinations.
struct Boxes<'a> {
    axes: &'a [AxisMap],
    runs: &'a [&'a [Run]],
    to: &'a Region,
    varies: &'a [bool],
    chunk: &'a Region,
    /// The strides of the chunk as stored.
    stored: &'a [isize],
}

impl TaskState<'_> {
    /// Loads the block of input `i` for a cell.
    pub(super) fn load(
        &mut self,
        i: usize,
        cell: &Region,
        prefetch: &mut Prefetch,
    ) -> Result<(), Cause> {
        let (stage, layout) = (self.stage, self.layout);
        let cell = stage.kernel.kind().input_region(stage, i, &self.coords, cell);
        let (input, mode) = (&layout.inputs[i], layout.inputs[i].mode);
        let grids = self.grids;
        let mut block = None;
        let mut inside = None;
        if mode != ReadMode::InChunk {
            block = Some(self.block(i, &cell)?);
        }
        touched(&stage.inputs[i], input, grids, &cell, |touched| {
            if let Touched::Inside { source, coords, axes, to } = touched {
                self.fetch(source, &coords, prefetch)?;
                inside = Some(self.look_into(source, coords, axes, to, &cell)?);
                return Ok(());
            }
            let block = match &mut block {
                Some(block) => block,
                // The map of a block inside one chunk may have no piece there, or several pieces if
                // the block has no elements.
                None => block.insert(self.block(i, &cell)?),
            };
            self.copy(i, block, touched, &cell, prefetch)
        })?;
        self.loaded[i] = Some(match (inside, block) {
            (Some(inside), _) => inside,
            (None, Some(Block { buffer, strides, .. })) => {
                Loaded { values: Values::Own(buffer), cell, offset: 0, strides }
            }
            (None, None) => {
                let Block { buffer, strides, .. } = self.block(i, &cell)?;
                Loaded { values: Values::Own(buffer), cell, offset: 0, strides }
            }
        });
        Ok(())
    }

    /// Allocates a buffer for the block of input `i` over a cell.
    fn block(&mut self, i: usize, cell: &Region) -> Result<Block, Cause> {
        let varies = &self.layout.inputs[i].varies;
        let shape = extent(&cell.shape, varies);
        let strides = contiguous_strides(&shape)
            .into_iter()
            .zip(varies)
            .map(|(s, v)| if *v { s } else { 0 })
            .collect();
        let size = self.stage.kernel.kind().inputs()[i].size();
        let buffer = self
            .room(self.layout.inputs[i].region, (shape.iter().product::<usize>() * size) as u64)?;
        Ok(Block { buffer, strides, size })
    }

    /// Views a fetched chunk with strides of the iteration space.
    fn look_into(
        &self,
        source: usize,
        coords: Vec<u64>,
        axes: &[AxisMap],
        to: &Region,
        cell: &Region,
    ) -> Result<Loaded, Cause> {
        let starts = coords.iter().zip(self.grids[source].axes()).map(|(c, axis)| axis.start(*c));
        let stored = contiguous_strides(&sizes(&self.sources[source].source.stored_shape(&coords)));
        let (mut offset, mut strides) = (0isize, vec![0isize; to.shape.len()]);
        for ((map, start), stride) in axes.iter().zip(starts).zip(&stored) {
            match map {
                AxisMap::Along { axis, start: first, step } => {
                    offset += (*first as i64 - start as i64) as isize * stride;
                    strides[*axis] += *step as isize * stride;
                }
                AxisMap::Fixed(x) => offset += (x - start) as isize * stride,
                AxisMap::Gather { .. } => {
                    return Err(internal(
                        "an input that is read in its chunk has no list of indices",
                    ));
                }
            }
        }
        Ok(Loaded { values: Values::Chunk { source, coords }, cell: cell.clone(), offset, strides })
    }

    /// Fetches a chunk of a source, unless it is cached.
    fn fetch(
        &mut self,
        source: usize,
        coords: &[u64],
        prefetch: &mut Prefetch,
    ) -> Result<(), Cause> {
        if self.sources[source].chunks.touch(coords) {
            return Ok(());
        }
        let looked_at = |l: &'_ Loaded| match &l.values {
            Values::Chunk { source: at, coords } if *at == source => Some(coords.clone()),
            _ => None,
        };
        let pinned: Vec<Vec<u64>> = self.loaded.iter().flatten().filter_map(looked_at).collect();
        let pinned: Vec<&[u64]> = pinned.iter().map(Vec::as_slice).collect();
        while let Some(gone) =
            self.sources[source].chunks.evict(self.layout.sources[source].chunks, &pinned)
        {
            self.resources.arena.recycle(gone);
        }
        let begun = prefetch.take(self, source, coords);
        self.sources[source].fetch(coords, begun, self.resources).map_err(|e| cause_of_chunk(&e))
    }

    /// Copies the elements that a block takes from a chunk, or fills a box of the block.
    fn copy(
        &mut self,
        i: usize,
        block: &mut Block,
        touched: Touched<'_>,
        cell: &Region,
        prefetch: &mut Prefetch,
    ) -> Result<(), Cause> {
        match touched {
            Touched::Fill { value, to } => {
                let shape = extent(&to.shape, &self.layout.inputs[i].varies);
                copy::fill_box(
                    value,
                    &shape,
                    block.buffer.bytes_mut(),
                    place(&to.start, &block.strides),
                    &block.strides,
                );
            }
            Touched::Part { source, coords, axes, runs, to } => {
                let chunk = self.grids[source].region(&coords);
                let stored =
                    contiguous_strides(&sizes(&self.sources[source].source.stored_shape(&coords)));
                let boxes = Boxes {
                    axes,
                    runs: &runs,
                    to,
                    varies: &self.layout.inputs[i].varies,
                    chunk: &chunk,
                    stored: &stored,
                };
                if self.read_parts(i, source, &coords, block, &boxes)? {
                    return Ok(());
                }
                self.fetch(source, &coords, prefetch)?;
                let opened = &self.sources[source];
                let (dtype, bytes) = (opened.source.info().dtype, opened.bytes(&coords));
                boxes.each(|offset, strides, shape, to| {
                    let view = View { dtype, bytes, offset, shape, strides };
                    copy::strided(
                        &view,
                        block.buffer.bytes_mut(),
                        place(&to, &block.strides),
                        &block.strides,
                    );
                });
            }
            Touched::Flat { source, coords } => {
                self.fetch(source, &coords, prefetch)?;
                self.copy_flat(i, source, &coords, block, cell);
            }
            Touched::Done { source } => {
                // A chunk that is not kept is released before another array's chunk is read.
                if self.layout.sources[source].slot.is_none() {
                    self.sources[source].clear(self.resources);
                }
            }
            Touched::Inside { .. } => {
                return Err(internal("a block inside one chunk is not assembled"));
            }
        }
        Ok(())
    }

    /// Reads the boxes directly from a chunk that is not encoded, if that costs less than reading
    /// the whole chunk. Returns false if nothing was read.
    fn read_parts(
        &mut self,
        i: usize,
        source: usize,
        coords: &[u64],
        block: &mut Block,
        boxes: &Boxes<'_>,
    ) -> Result<bool, Cause> {
        if !self.sources[source].reads_parts(coords) {
            return Ok(false);
        }
        let (size, only) = (block.size, self.layout.inputs[i].mode == ReadMode::Parts);
        let mut parts = Some(Vec::new());
        boxes.each(|offset, from, shape, to| {
            let to = place(&to, &block.strides);
            let more = copy::runs(&shape, &from, &block.strides, MAX_PARTS as usize);
            parts = parts.take().zip(more).map(|(mut parts, more)| {
                parts.extend(more.into_iter().map(|(a, b, n)| ObjectPart {
                    offset: ((offset as isize + a) as usize * size) as u64,
                    place: (to as isize + b) as usize * size,
                    len: n * size,
                }));
                parts
            });
        });
        let whole = (boxes.stored.first().map_or(1, |s| *s as u64)
            * boxes.chunk.shape.first().copied().unwrap_or(1))
            * size as u64;
        match parts {
            Some(parts) if only || are_worth_it(&parts, whole) => {
                if !self.sources[source].read_parts(
                    coords,
                    &parts,
                    block.buffer.bytes_mut(),
                    self.resources,
                )? {
                    let fill = self.sources[source].source.info().fill;
                    boxes.each(|_, _, shape, to| {
                        copy::fill_box(
                            &fill,
                            &shape,
                            block.buffer.bytes_mut(),
                            place(&to, &block.strides),
                            &block.strides,
                        )
                    });
                }
                Ok(true)
            }
            None if only => Err(internal("a block that is read in parts has few of them")),
            _ => Ok(false),
        }
    }

    /// Copies the elements that a chunk shares with a cell of another shape, whose elements have
    /// the same C order.
    ///
    /// The rows of the chunk and those of the cell are intervals of the common order. Their
    /// intersections are copied.
    fn copy_flat(&self, i: usize, source: usize, coords: &[u64], block: &mut Block, cell: &Region) {
        let (grid, opened): (&ChunkGrid, _) = (self.grids[source], &self.sources[source]);
        let strides = contiguous_strides(&sizes(&opened.source.stored_shape(coords)));
        let (bytes, size, out) = (opened.bytes(coords), block.size, block.buffer.bytes_mut());
        shared_rows(
            &grid.region(coords),
            &grid.shape(),
            cell,
            self.stage.inputs[i].map.shape(),
            |within, to, n| {
                let at: isize = within.iter().zip(&strides).map(|(i, s)| *i as isize * s).sum();
                let (from, to, n) = (at as usize * size, to as usize * size, n as usize * size);
                out[to..to + n].copy_from_slice(&bytes[from..from + n]);
                false
            },
        );
    }
}

impl Boxes<'_> {
    /// Calls `f` with each box: its offset and strides in the chunk, its extent, and its
    /// destination.
    fn each(&self, mut f: impl FnMut(usize, Vec<isize>, Vec<usize>, Vec<u64>)) {
        let counts: Vec<u64> = self.runs.iter().map(|r| r.len() as u64).collect();
        let _: Result<(), ()> = try_for_each_coord(&Region::whole(&counts), |one| {
            let (mut target, mut count) = (self.to.start.clone(), self.to.shape.clone());
            let (mut offset, mut from) = (0isize, vec![0isize; target.len()]);
            for (s, map) in self.axes.iter().enumerate() {
                let run = self.runs[s][one[s] as usize];
                offset += (run.start - self.chunk.start[s]) as isize * self.stored[s];
                if let Some(axis) = map.axis() {
                    (target[axis], count[axis]) = (self.to.start[axis] + run.first, run.count);
                    from[axis] += run.step as isize * self.stored[s];
                }
            }
            f(offset as usize, from, extent(&count, self.varies), target);
            Ok(())
        });
    }
}

/// Returns the number of elements along each axis; 1 where values repeat.
fn extent(shape: &[u64], varies: &[bool]) -> Vec<usize> {
    shape.iter().zip(varies).map(|(n, v)| if *v { *n as usize } else { 1 }).collect()
}

/// Returns the position of the element at an index.
fn place(index: &[u64], strides: &[isize]) -> usize {
    index.iter().zip(strides).map(|(i, stride)| *i as isize * stride).sum::<isize>() as usize
}

/// Returns true if reading parts of a chunk of `whole` bytes costs less than reading all of it.
/// Each part has a fixed cost of `PART_BYTES`.
fn are_worth_it(parts: &[ObjectPart], whole: u64) -> bool {
    parts.iter().map(|p| p.len as u64 + PART_BYTES).sum::<u64>() < whole
}
