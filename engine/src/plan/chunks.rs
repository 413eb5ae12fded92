//! The chunks that a task reads, in order.
//!
//! [`touched`] lists the chunks that a block of an input overlaps. A worker copies from these
//! chunks. [`ChunkReads`] visits a task's program with the same loops and the same eviction, but
//! reads nothing. Prefetch, traffic and cost use it to list a task's reads.

use crate::flat::{flat_bounds, shared_rows};
use crate::grid::{ChunkGrid, Region, try_for_each_coord};
use crate::lru::Lru;
use crate::plan::loops::Position;
use crate::plan::{InputLayout, ReadMode, Stage, StageInput, StageLayout};
use crate::program::{Step, Visitor};
use crate::readmap::{AxisMap, Origin, Piece, Run};
use freestone_kernels::Scalar;

/// A chunk that a block of an input overlaps, or a part of the block without chunks.
#[derive(Debug)]
pub(crate) enum Touched<'a> {
    /// The whole block lies inside this chunk of the source.
    Inside { source: usize, coords: Vec<u64>, axes: &'a [AxisMap], to: &'a Region },
    /// A box of the block overlaps this chunk, in these runs along each of the source's axes.
    Part {
        source: usize,
        coords: Vec<u64>,
        axes: &'a [AxisMap],
        runs: Vec<&'a [Run]>,
        to: &'a Region,
    },
    /// The chunk shares elements with the block in C order.
    Flat { source: usize, coords: Vec<u64> },
    /// A box of the block that holds fill values.
    Fill { value: &'a Scalar, to: &'a Region },
    /// The current box needs no further chunk of the source.
    Done { source: usize },
}

impl Touched<'_> {
    /// Returns the coordinates of the chunk, if there is one.
    pub(crate) fn coords(&self) -> Option<&[u64]> {
        match self {
            Touched::Inside { coords, .. }
            | Touched::Part { coords, .. }
            | Touched::Flat { coords, .. } => Some(coords),
            Touched::Fill { .. } | Touched::Done { .. } => None,
        }
    }
}

/// Visits the chunks that a block of an input overlaps. `grids` holds the chunk grid of each of the
/// stage's sources.
pub(crate) fn touched<E>(
    input: &StageInput,
    layout: &InputLayout,
    grids: &[&ChunkGrid],
    cell: &Region,
    mut visit: impl FnMut(Touched<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let pieces = input.map.restrict(cell);
    if let (ReadMode::InChunk, [Piece { from: Origin::Source { axes, .. }, to }]) =
        (layout.mode, pieces.as_slice())
    {
        let source = layout.sources[0];
        let coords =
            axes.iter().zip(grids[source].axes()).map(|(map, axis)| axis.find(map.at(0))).collect();
        return visit(Touched::Inside { source, coords, axes, to });
    }
    for Piece { from, to } in &pieces {
        let source = match from {
            Origin::Fill(value) => {
                visit(Touched::Fill { value, to })?;
                continue;
            }
            Origin::Flat => {
                let source = layout.sources[0];
                flat_chunks(grids[source], cell, input.map.shape(), |coords| {
                    visit(Touched::Flat { source, coords: coords.to_vec() })
                })?;
                source
            }
            Origin::Source { source, axes } => {
                let source = layout.sources[*source];
                box_chunks(grids[source], axes, to, |coords, runs| {
                    visit(Touched::Part { source, coords, axes, runs, to })
                })?;
                source
            }
        };
        visit(Touched::Done { source })?;
    }
    Ok(())
}

/// Visits the chunks that a box overlaps, with the runs of the box in each chunk.
fn box_chunks<E>(
    grid: &ChunkGrid,
    axes: &[AxisMap],
    to: &Region,
    mut visit: impl FnMut(Vec<u64>, Vec<&[Run]>) -> Result<(), E>,
) -> Result<(), E> {
    let length = |map: &AxisMap| map.axis().map_or(1, |d| to.shape[d]);
    let axes = axes.iter().zip(grid.axes());
    let hits: Vec<_> = axes.map(|(map, chunks)| map.hits(chunks, length(map))).collect();
    let counts: Vec<u64> = hits.iter().map(|h| h.len() as u64).collect();
    try_for_each_coord(&Region::whole(&counts), |hit| {
        let here = hits.iter().zip(hit).map(|(h, i)| &h[*i as usize]);
        let (coords, runs) = here.map(|(chunk, runs)| (*chunk, runs.as_slice())).unzip();
        visit(coords, runs)
    })
}

/// Visits the chunks of an array that share elements with a region of an array of `shape`, which
/// has the same elements in C order.
fn flat_chunks<E>(
    grid: &ChunkGrid,
    region: &Region,
    shape: &[u64],
    mut visit: impl FnMut(&[u64]) -> Result<(), E>,
) -> Result<(), E> {
    if region.n_elements() == 0 {
        return Ok(());
    }
    let last: Vec<u64> = region.start.iter().zip(&region.shape).map(|(s, n)| s + n - 1).collect();
    let from = |index: &[u64]| index.iter().zip(shape).fold(0, |at, (i, n)| at * n + i);
    let touched = flat_bounds(&grid.shape(), from(&region.start), from(&last));
    try_for_each_coord(&grid.overlapping(&touched), |coords| {
        if shared_rows(&grid.region(coords), &grid.shape(), region, shape, |_, _, _| true) {
            visit(coords)
        } else {
            Ok(())
        }
    })
}

/// A visitor of a task's program that lists chunk reads, including repeated reads of the same
/// chunk.
#[derive(Debug)]
pub(crate) struct ChunkReads<'a, F> {
    pub(crate) stage: &'a Stage,
    pub(crate) layout: &'a StageLayout,
    pub(crate) grids: &'a [&'a ChunkGrid],
    /// The task's coordinates.
    pub(crate) coords: &'a [u64],
    /// The cached chunks of each source.
    pub(crate) cached: Vec<Lru<()>>,
    /// The chunk that each input views.
    pub(crate) viewed: Vec<Option<(usize, Vec<u64>)>>,
    /// Called with the source and the part that is read.
    pub(crate) visit: F,
}

impl<'a, E, F: FnMut(usize, &Touched<'_>) -> Result<(), E>> ChunkReads<'a, F> {
    fn read(&mut self, source: usize, touched: &Touched<'_>, coords: &[u64]) -> Result<(), E> {
        if self.cached[source].touch(coords) {
            return Ok(());
        }
        let pinned: Vec<&[u64]> = self
            .viewed
            .iter()
            .flatten()
            .filter(|(s, _)| *s == source)
            .map(|(_, c)| c.as_slice())
            .collect();
        while self.cached[source].evict(self.layout.sources[source].chunks, &pinned).is_some() {}
        self.cached[source].push(coords, ());
        (self.visit)(source, touched)
    }

    fn load(&mut self, i: usize, cell: &Region) -> Result<(), E> {
        let (stage, layout, grids) = (self.stage, self.layout, self.grids);
        let cell = stage.kernel.kind().input_region(stage, i, self.coords, cell);
        touched(&stage.inputs[i], &layout.inputs[i], grids, &cell, |touched| match &touched {
            Touched::Inside { source, coords, .. } => {
                self.read(*source, &touched, coords)?;
                self.viewed[i] = Some((*source, coords.clone()));
                Ok(())
            }
            Touched::Part { source, coords, .. } | Touched::Flat { source, coords } => {
                self.read(*source, &touched, coords)
            }
            Touched::Done { source } => {
                if layout.sources[*source].slot.is_none() {
                    self.cached[*source].clear();
                }
                Ok(())
            }
            Touched::Fill { .. } => Ok(()),
        })
    }
}

impl<'a, E, F: FnMut(usize, &Touched<'_>) -> Result<(), E>> Visitor<Position>
    for ChunkReads<'a, F>
{
    type Stop = E;

    fn step(&mut self, step: &Step, at: &Position) -> Result<(), E> {
        match step {
            Step::Load(i) => self.load(*i, &at.cell)?,
            Step::Release(slot) => {
                let sources = self.layout.sources.iter().zip(&mut self.cached);
                sources
                    .filter(|(source, _)| source.slot == Some(*slot) && !source.retained)
                    .for_each(|(_, chunks)| chunks.clear());
            }
            Step::Take(_) | Step::Compute(_) | Step::Store(_) | Step::ForEach { .. } => {}
        }
        Ok(())
    }

    fn enter(&mut self, body: &[Step], _: &Position) -> Result<(), E> {
        clear_loads(body, &mut self.viewed);
        Ok(())
    }
}

/// Clears the blocks that a loop body loads, before its next iteration. Chunks that the previous
/// iteration viewed may then be evicted.
pub(crate) fn clear_loads<T>(body: &[Step], loaded: &mut [Option<T>]) {
    for step in body {
        if let Step::Load(i) = step {
            loaded[*i] = None;
        }
    }
}
