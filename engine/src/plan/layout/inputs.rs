//! The layouts of a stage's inputs and of the arrays that they read.

use std::collections::{HashMap, HashSet};

use freestone_kernels::DType;

use super::bounds::SourceBounds;
use super::{InputLayout, ReadMode, SourceLayout, TOO_LARGE};
use crate::grid::AxisGrid;
use crate::memory::Part;
use crate::plan::{ArrayId, PlanError, Scope, Stage, StageInput, traffic};
use crate::program::Program;
use crate::readmap::AxisMap;

/// The sources of a stage, and the memory bounds for reading them.
#[derive(Default)]
pub(super) struct Sources {
    pub(super) sources: Vec<SourceLayout>,
    /// The index of each array among the sources.
    indices: HashMap<ArrayId, usize>,
    /// The decoded size of a chunk of each source in bytes.
    chunk: Vec<u64>,
    pub(super) encoded: u64,
    pub(super) scratch: u64,
    pub(super) context: u64,
    pub(super) index: u64,
}

/// Returns the layouts of the sources and inputs of a stage, and adds their slots. `block` is the
/// shape of the largest block.
pub(super) fn layouts(
    scope: Scope<'_>,
    stage: &Stage,
    block: &[u64],
    program: &mut Program,
) -> Result<(Sources, Vec<InputLayout>), PlanError> {
    let inputs = stage.inputs.iter().enumerate();
    let modes: Vec<ReadMode> = inputs.map(|(i, input)| read_mode(scope, stage, i, input)).collect();
    let mut sources = Sources::default();
    let readers = readers(stage);
    for id in stage.inputs.iter().flat_map(|input| &input.sources) {
        if !sources.indices.contains_key(id) {
            let own = readers.get(id).map_or(&[][..], Vec::as_slice);
            sources.add(scope, stage, *id, Readers { inputs: own, modes: &modes }, program)?;
        }
    }
    let dtypes = stage.kernel.kind().inputs();
    let layouts =
        modes.iter().zip(dtypes).enumerate().map(|(i, (mode, dtype))| {
            sources.input_layout(stage, i, (*mode, dtype), block, program)
        });
    let layouts = layouts.collect();
    Ok((sources, layouts))
}

/// Returns the inputs that read each array.
fn readers(stage: &Stage) -> HashMap<ArrayId, Vec<usize>> {
    let mut readers: HashMap<ArrayId, Vec<usize>> = HashMap::new();
    for (i, input) in stage.inputs.iter().enumerate() {
        for id in &input.sources {
            let own = readers.entry(*id).or_default();
            if own.last() != Some(&i) {
                own.push(i);
            }
        }
    }
    readers
}

/// The inputs that read an array.
#[derive(Clone, Copy)]
struct Readers<'a> {
    /// The indices of the inputs.
    inputs: &'a [usize],
    /// The read modes of all inputs of the stage.
    modes: &'a [ReadMode],
}

impl Readers<'_> {
    /// Returns the maximum number of chunks of an array that these inputs view for one block.
    /// Inputs that certainly view the same chunk count once.
    fn viewed_chunks(self, scope: Scope<'_>, stage: &Stage, array: ArrayId) -> usize {
        let axes = scope.array(array).info.grid.axes();
        let in_chunk = self.inputs.iter().filter(|i| self.modes[**i] == ReadMode::InChunk);
        let inputs = in_chunk.map(|i| &stage.inputs[*i]).filter(|input| input.sources == [array]);
        let viewed = inputs.filter_map(|input| {
            let maps = input.map.as_image()?.iter().zip(axes);
            let shape = input.map.shape();
            Some(maps.map(|(map, axis)| viewed_chunk(map, shape, axis)).collect::<Vec<_>>())
        });
        viewed.collect::<HashSet<_>>().len()
    }
}

/// Identifies the chunk along an axis that an input of `shape` views for a block. Inputs with equal
/// identifiers view the same chunk.
fn viewed_chunk(map: &AxisMap, shape: &[u64], axis: &AxisGrid) -> (Option<u64>, Option<AxisMap>) {
    if axis.n_chunks() <= 1 {
        return (Some(0), None);
    }
    let last = map.axis().map_or(0, |d| shape[d].saturating_sub(1));
    let (a, b) = (axis.find(map.at(0)), axis.find(map.at(last)));
    if a == b && !matches!(map, AxisMap::Gather { .. }) {
        (Some(a), None)
    } else {
        (None, Some(map.clone()))
    }
}

impl Sources {
    /// Adds the layout of an array, with a slot if chunks remain loaded after an input is loaded.
    fn add(
        &mut self,
        scope: Scope<'_>,
        stage: &Stage,
        id: ArrayId,
        readers: Readers<'_>,
        program: &mut Program,
    ) -> Result<(), PlanError> {
        let bounds = SourceBounds::of(scope, id)?;
        self.encoded = self.encoded.max(bounds.encoded);
        self.scratch = self.scratch.max(bounds.scratch);
        self.context = self.context.max(bounds.context);
        self.index += bounds.index;
        let cached = stage.cache.iter().find(|c| c.array == id).map_or(0, |c| c.chunks as usize);
        let viewed = readers.viewed_chunks(scope, stage, id);
        // An input that assembles blocks from an array whose chunks other inputs view needs one
        // more chunk, for chunks that no other input holds.
        let assembled = readers.inputs.iter().any(|i| readers.modes[*i] == ReadMode::Assembled);
        let chunks = (viewed + usize::from(assembled)).max(cached).max(1);
        let bytes = bounds.chunk.saturating_mul(chunks as u64).min(TOO_LARGE);
        let slot = (cached > 0 || viewed > 0).then(|| program.slot(Part::DecodedChunk, bytes));
        self.indices.insert(id, self.sources.len());
        self.sources.push(SourceLayout {
            array: id,
            chunks,
            slot,
            retained: cached > 0,
            prefetch: scope.is_remote(scope.array(id)),
        });
        self.chunk.push(bounds.chunk);
        Ok(())
    }

    /// Returns the layout of input `i`, with its slots for blocks of shape `block` at most.
    fn input_layout(
        &self,
        stage: &Stage,
        i: usize,
        (mode, dtype): (ReadMode, DType),
        block: &[u64],
        program: &mut Program,
    ) -> InputLayout {
        let kind = stage.kernel.kind();
        let input = &stage.inputs[i];
        let sources: Vec<usize> =
            input.sources.iter().filter_map(|id| self.indices.get(id).copied()).collect();
        let rank = input.map.shape().len();
        let varies = if kind.reads_dense() { vec![true; rank] } else { input.map.varies() };
        let without_slot = sources.iter().filter(|s| self.sources[**s].slot.is_none());
        let chunk = without_slot.map(|s| self.chunk[*s]).max().filter(|_| mode != ReadMode::Parts);
        let chunk = chunk.map(|bytes| program.slot(Part::DecodedChunk, bytes));
        let region = (mode != ReadMode::InChunk).then(|| {
            let own = kind.input_block(i, block);
            let mut varying = own.iter().zip(&varies).filter(|(_, v)| **v);
            let bytes = varying.try_fold(dtype.size() as u64, |p, (n, _)| p.checked_mul(*n));
            program.slot(Part::Region, bytes.unwrap_or(TOO_LARGE))
        });
        InputLayout { mode, varies, sources, chunk, region }
    }
}

/// Returns the read mode of an input: [`ReadMode::InChunk`] if every block of every task lies
/// inside one chunk of one source.
fn read_mode(scope: Scope<'_>, stage: &Stage, i: usize, input: &StageInput) -> ReadMode {
    if let Some(mode) = stage.kernel.kind().read_mode(i) {
        return mode;
    }
    let (Some(axes), [source]) = (input.map.as_image(), input.sources.as_slice()) else {
        return ReadMode::Assembled;
    };
    let grid = &scope.array(*source).info.grid;
    let is_inside = axes.iter().zip(grid.axes()).all(|(map, axis)| is_in_chunk(stage, map, axis));
    // If a block views only a piece of a chunk, read only that piece.
    let is_finer = || varying_elements(stage, input) < n_elements(grid.max_chunk().into_iter());
    if is_inside && !(is_finer() && traffic::only_parts(scope, stage, input)) {
        ReadMode::InChunk
    } else if traffic::only_parts(scope, stage, input) {
        ReadMode::Parts
    } else {
        ReadMode::Assembled
    }
}

/// Returns true if each block lies inside one chunk along a source axis.
fn is_in_chunk(stage: &Stage, map: &AxisMap, chunks: &AxisGrid) -> bool {
    let (axis, start, step) = match map {
        AxisMap::Fixed(_) => return true,
        AxisMap::Gather { .. } => return false,
        AxisMap::Along { axis, start, step } => (*axis, *start, *step),
    };
    let loads_whole_task = !stage.kernel.kind().iterates_blocks() && stage.blocks == stage.tasks;
    let tasks = &stage.tasks.axes()[axis];
    let blocks = if loads_whole_task { tasks } else { &stage.blocks.axes()[axis] };
    blocks.is_empty() || blocks.nests_in(chunks, start, step) || tasks.nests_in(chunks, start, step)
}

/// Returns the number of elements of the largest block along the axes on which an input varies.
fn varying_elements(stage: &Stage, input: &StageInput) -> u64 {
    let block = stage.blocks.max_chunk().into_iter().zip(input.map.varies());
    n_elements(block.filter(|(_, varies)| *varies).map(|(n, _)| n))
}

fn n_elements(shape: impl Iterator<Item = u64>) -> u64 {
    shape.fold(1, u64::saturating_mul)
}
