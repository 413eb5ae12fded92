//! How a task brings in the block of an input.
//!
//! A block that lies inside one chunk is looked at where it was decoded; one that touches several, or is partly fill values, is put together in a
//! buffer. Which chunks that takes is asked by `ahead` too, before anything is read, so it is said once: [`chunk_under`], [`hits`], [`flat_chunks`].

use freestone_kernels::{Buffer, DType, View, contiguous_strides, copy};

use super::ready::Opened;
use super::sizes;
use super::steps::Task;
use crate::flat::{flat_bounds, shared_rows};
use crate::grid::{ChunkGrid, Region, try_for_each_coord};
use crate::plan::{Kernel, MAX_PARTS, ReadMode};
use crate::readmap::{AxisMap, Origin, Piece, Run};
use crate::storage::{ObjectPart, PART_BYTES};
use crate::task::{Cause, cause_of_chunk, internal};

/// A block of an input that was brought in, and how the iteration space lies on it.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) values: Values,
    /// Elements of the iteration space that it covers.
    pub(super) cell: Region,
    pub(super) offset: isize,
    pub(super) strides: Vec<isize>,
}

/// Where a block's values are.
#[derive(Debug)]
pub(super) enum Values {
    /// Put together.
    Own(Buffer),
    /// In a chunk of one of the stage's sources.
    Chunk { source: usize, coords: Vec<u64> },
}

impl Task<'_> {
    /// Brings the block of input `i` for the cell at hand.
    pub(super) fn load(&mut self, i: usize) -> Result<(), Cause> {
        if let Kernel::User { blocks, .. } = &self.stage.kernel {
            self.cell = blocks[i].region(&self.coords);
        }
        if self.stage.kernel.carry() == Some(i) {
            return self.take_up(i);
        }
        let pieces = self.stage.inputs[i].map.restrict(&self.cell);
        let loaded = match (self.layout.inputs[i].mode, pieces.as_slice()) {
            (ReadMode::InChunk, [Piece { from: Origin::Source { axes, .. }, to }]) => self.look_into_chunk(i, axes, to)?,
            _ => self.assemble(i, &pieces)?,
        };
        self.loaded[i] = Some(loaded);
        Ok(())
    }

    /// Goes on from what a scan had when it came to this task.
    fn take_up(&mut self, i: usize) -> Result<(), Cause> {
        let (at, coords) = (self.layout.inputs[i].sources[0], self.coords.clone());
        self.fetch(at, &coords)?;
        if let Some(carries) = &mut self.accumulators[0] {
            carries.bytes_mut().copy_from_slice(self.ready.sources[at].bytes(&coords));
        }
        self.pass(at);
        Ok(())
    }

    /// The cell lies inside one chunk: decode it and look at it with strides.
    fn look_into_chunk(&mut self, i: usize, axes: &[AxisMap], to: &Region) -> Result<Loaded, Cause> {
        let at = self.layout.inputs[i].sources[0];
        let source = &self.ready.sources[at].source;
        let grid = &source.info().grid;
        let coords = chunk_under(axes, grid);
        let starts: Vec<u64> = coords.iter().zip(grid.axes()).map(|(c, axis)| axis.start(*c)).collect();
        let stored = contiguous_strides(&sizes(&source.stored_shape(&coords)));
        let (mut offset, mut strides) = (0isize, vec![0isize; to.shape.len()]);
        for ((map, start), stride) in axes.iter().zip(&starts).zip(&stored) {
            match map {
                AxisMap::Along { axis, start: first, step } => {
                    offset += (*first as i64 - *start as i64) as isize * stride;
                    strides[*axis] += *step as isize * stride;
                }
                AxisMap::Fixed(x) => offset += (x - start) as isize * stride,
                AxisMap::Gather { .. } => return Err(internal("an input that is read in its chunk has no list of indices")),
            }
        }
        self.fetch(at, &coords)?;
        Ok(Loaded { values: Values::Chunk { source: at, coords }, cell: self.cell.clone(), offset, strides })
    }

    /// Has a chunk of source `at` at hand.
    fn fetch(&mut self, at: usize, coords: &[u64]) -> Result<(), Cause> {
        if self.ready.sources[at].has(coords) {
            return Ok(());
        }
        let looked_at = |l: &Loaded| match &l.values {
            Values::Chunk { source, coords } if *source == at => Some(coords.clone()),
            _ => None,
        };
        let pinned: Vec<Vec<u64>> = self.loaded.iter().flatten().filter_map(looked_at).collect();
        self.ready.sources[at].make_room(self.layout.sources[at].chunks, &pinned, self.desk);
        let begun = self.take_ahead(at, coords);
        self.ready.sources[at].fetch(coords, begun, self.desk).map_err(|e| cause_of_chunk(&e))
    }

    /// The cell touches several chunks, or is partly fill values: put it together in a buffer.
    fn assemble(&mut self, i: usize, pieces: &[Piece]) -> Result<Loaded, Cause> {
        let varies = &self.layout.inputs[i].varies;
        let shape: Vec<usize> = self.cell.shape.iter().zip(varies).map(|(n, v)| if *v { *n as usize } else { 1 }).collect();
        let strides: Vec<isize> = contiguous_strides(&shape).into_iter().zip(varies).map(|(s, v)| if *v { s } else { 0 }).collect();
        let size = self.stage.kernel.inputs()[i].size();
        let bytes = shape.iter().product::<usize>() * size;
        // What is written as it is has room for what fills up an edge chunk.
        let stored = if self.layout.as_is { self.ready.outputs[0].object_shape(&self.chunk).iter().product::<u64>() * size as u64 } else { 0 };
        let mut region = self.room(self.layout.inputs[i].region, stored.max(bytes as u64))?;
        for piece in pieces {
            let at = |start: &[u64]| start.iter().zip(&strides).map(|(s, stride)| *s as isize * stride).sum::<isize>();
            let extent = |to: &[u64]| -> Vec<usize> { to.iter().zip(varies).map(|(n, v)| if *v { *n as usize } else { 1 }).collect() };
            let sources = &self.layout.inputs[i].sources;
            match &piece.from {
                Origin::Fill(value) => copy::fill_box(value, &extent(&piece.to.shape), region.bytes_mut(), at(&piece.to.start) as usize, &strides),
                Origin::Flat => self.copy_flat(i, region.bytes_mut())?,
                Origin::Source { source, axes } => {
                    let which = sources[*source];
                    let info = self.ready.sources[which].source.info();
                    let (grid, dtype) = (info.grid.clone(), info.dtype);
                    // Along each of the source's axes, the chunks that hold what is wanted; each is decoded once.
                    let hits = hits(axes, &grid, &piece.to);
                    let counts: Vec<u64> = hits.iter().map(|h| h.len() as u64).collect();
                    try_for_each_coord(&Region::whole(&counts), |hit| {
                        let (coords, runs): (Vec<u64>, Vec<&[Run]>) =
                            hits.iter().zip(hit).map(|(h, i)| (h[*i as usize].0, h[*i as usize].1.as_slice())).unzip();
                        let chunk = grid.region(&coords);
                        let stored = contiguous_strides(&sizes(&self.ready.sources[which].source.stored_shape(&coords)));
                        let counts: Vec<u64> = runs.iter().map(|r| r.len() as u64).collect();
                        // Each box of the chunk, and where it goes.
                        let boxes = |f: &mut dyn FnMut(usize, Vec<isize>, Vec<usize>, usize)| {
                            let _: Result<(), ()> = try_for_each_coord(&Region::whole(&counts), |one| {
                                let (mut target, mut count) = (piece.to.start.clone(), piece.to.shape.clone());
                                let (mut offset, mut from) = (0isize, vec![0isize; target.len()]);
                                for (s, map) in axes.iter().enumerate() {
                                    let run = runs[s][one[s] as usize];
                                    offset += (run.start - chunk.start[s]) as isize * stored[s];
                                    if let Some(axis) = map.axis() {
                                        (target[axis], count[axis]) = (piece.to.start[axis] + run.first, run.count);
                                        from[axis] += run.step as isize * stored[s];
                                    }
                                }
                                f(offset as usize, from, extent(&count), at(&target) as usize);
                                Ok(())
                            });
                        };
                        if self.ready.sources[which].reads_parts(&coords) {
                            let mut parts = Some(Vec::new());
                            boxes(&mut |offset, from, shape, to| {
                                let more = copy::runs(&shape, &from, &strides, MAX_PARTS as usize);
                                parts = parts.take().zip(more).map(|(mut parts, more)| {
                                    parts.extend(more.into_iter().map(|(a, b, n)| ObjectPart {
                                        offset: ((offset as isize + a) as usize * size) as u64,
                                        place: (to as isize + b) as usize * size,
                                        len: n * size,
                                    }));
                                    parts
                                });
                            });
                            let whole = (stored.first().map_or(1, |s| *s as u64) * chunk.shape.first().copied().unwrap_or(1)) * size as u64;
                            let only = self.layout.inputs[i].mode == ReadMode::Parts;
                            match parts {
                                Some(parts) if only || are_worth_it(&parts, whole) => {
                                    if !self.ready.sources[which].read_parts(&coords, &parts, region.bytes_mut(), self.desk)? {
                                        let fill = self.ready.sources[which].source.info().fill;
                                        boxes(&mut |_, _, shape, to| copy::fill_box(&fill, &shape, region.bytes_mut(), to, &strides));
                                    }
                                    return Ok(());
                                }
                                None if only => return Err(internal("a block that is read in parts has few of them")),
                                _ => {}
                            }
                        }
                        self.fetch(which, &coords)?;
                        let opened = &self.ready.sources[which];
                        boxes(&mut |offset, from, shape, to| {
                            let view = View { dtype, bytes: opened.bytes(&coords), offset, shape, strides: from };
                            copy::strided(&view, region.bytes_mut(), to, &strides);
                        });
                        Ok::<(), Cause>(())
                    })?;
                    self.pass(which);
                }
            }
        }
        Ok(Loaded { values: Values::Own(region), cell: self.cell.clone(), offset: 0, strides })
    }

    /// Lets go of a chunk that was only passing, before another array's comes.
    fn pass(&mut self, at: usize) {
        if self.layout.sources[at].slot.is_none() {
            self.ready.sources[at].clear(self.desk);
        }
    }

    /// Copies the elements of the cell at hand from a source of another shape with the same elements in C order.
    ///
    /// Chunk by chunk: the chunk's rows are intervals of the common order, and so are the cell's; what they share is copied.
    fn copy_flat(&mut self, i: usize, out: &mut [u8]) -> Result<(), Cause> {
        let (region, shape, which) = (self.cell.clone(), self.stage.inputs[i].map.shape(), self.layout.inputs[i].sources[0]);
        let info = self.ready.sources[which].source.info();
        let (size, grid) = (info.dtype.size(), info.grid.clone());
        flat_chunks(&grid, &region, shape, |coords| {
            let chunk = grid.region(coords);
            self.fetch(which, coords)?;
            let opened = &self.ready.sources[which];
            let strides = contiguous_strides(&sizes(&opened.source.stored_shape(coords)));
            let bytes = opened.bytes(coords);
            shared_rows(&chunk, &grid.shape(), &region, shape, |within, to, n| {
                let at: isize = within.iter().zip(&strides).map(|(i, s)| *i as isize * s).sum();
                let (from, to, n) = (at as usize * size, to as usize * size, n as usize * size);
                out[to..to + n].copy_from_slice(&bytes[from..from + n]);
                false
            });
            Ok::<(), Cause>(())
        })?;
        self.pass(which);
        Ok(())
    }
}

/// The loaded blocks as seen from a part of the iteration space.
pub(super) fn views<'a>(dtypes: &[DType], loaded: &'a [Option<Loaded>], sources: &'a [Opened], part: &Region) -> Vec<View<'a>> {
    loaded
        .iter()
        .zip(dtypes)
        .filter_map(|(loaded, dtype)| {
            let loaded = loaded.as_ref()?;
            let shift: isize = (0..part.start.len()).map(|d| (part.start[d] - loaded.cell.start[d]) as isize * loaded.strides[d]).sum();
            let bytes = match &loaded.values {
                Values::Own(block) => block.bytes(),
                Values::Chunk { source, coords } => sources[*source].bytes(coords),
            };
            Some(View { dtype: *dtype, bytes, offset: (loaded.offset + shift) as usize, shape: sizes(&part.shape), strides: loaded.strides.clone() })
        })
        .collect()
}

/// The chunk of a source in which a block lies that is inside one.
pub(super) fn chunk_under(axes: &[AxisMap], grid: &ChunkGrid) -> Vec<u64> {
    axes.iter().zip(grid.axes()).map(|(map, axis)| axis.find(map.at(0))).collect()
}

/// Along each of a source's axes, the chunks that hold what is wanted of a piece, and what of them.
pub(super) fn hits(axes: &[AxisMap], grid: &ChunkGrid, to: &Region) -> Vec<Vec<(u64, Vec<Run>)>> {
    let length = |a: &AxisMap| a.axis().map_or(1, |d| to.shape[d]);
    axes.iter().zip(grid.axes()).map(|(a, grid)| a.hits(grid, length(a))).collect()
}

/// Visits the chunks of an array that share elements with a region of another of that `shape`, which has the same elements in C order.
pub(super) fn flat_chunks<E>(grid: &ChunkGrid, region: &Region, shape: &[u64], mut visit: impl FnMut(&[u64]) -> Result<(), E>) -> Result<(), E> {
    if region.n_elements() == 0 {
        return Ok(());
    }
    let last: Vec<u64> = region.start.iter().zip(&region.shape).map(|(s, n)| s + n - 1).collect();
    let from = |index: &[u64]| index.iter().zip(shape).fold(0, |at, (i, n)| at * n + i);
    let touched = flat_bounds(&grid.shape(), from(&region.start), from(&last));
    try_for_each_coord(&grid.overlapping(&touched), |coords| {
        if shared_rows(&grid.region(coords), &grid.shape(), region, shape, |_, _, _| true) { visit(coords) } else { Ok(()) }
    })
}

/// True if reading parts of a chunk of `whole` bytes costs less than reading all of it: a part costs as much as so many bytes.
fn are_worth_it(parts: &[ObjectPart], whole: u64) -> bool {
    parts.iter().map(|p| p.len as u64 + PART_BYTES).sum::<u64>() < whole
}
