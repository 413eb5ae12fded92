//! Read counts of a stage, from the visitor that its tasks use for reading.
//!
//! [`ChunkReads`] visits the programs of all tasks without reading anything. A stage for which that
//! takes long, because it has many tasks, blocks or list entries, has the closed form of `traffic`
//! instead. The cost is therefore bounded for every plan.

use super::chunks::{ChunkReads, Touched};
use super::layout::SourceLayout;
use super::loops::{TaskLoops, objects};
use super::traffic::{self, Traffic};
use super::{ArrayId, Scope, Stage, StageLayout};
use crate::grid::ChunkGrid;
use crate::lru::Lru;
use crate::program::walk;
use crate::readmap::Run;

/// The maximum number of chunk reads that are counted for a plan.
pub(crate) const MAX_READS: u64 = 65_536;
/// The maximum number of rows, pieces and list entries that are visited for a stage.
const MAX_WORK: u64 = 2_000_000;

/// The error that stops counting at the limit.
struct TooMany;

/// The reads of one source.
#[derive(Clone, Debug, Default)]
struct Count {
    requests: f64,
    bytes: f64,
    whole_bytes: f64,
    parts: bool,
    /// The shard that was read last, and the number of its chunks that were read.
    shard: Option<(Vec<u64>, u64)>,
}

/// Returns the reads of a stage from each array, in the order of its inputs. Generated arrays count
/// as if they were stored. Counted reads are subtracted from `left`.
pub(crate) fn reads(
    scope: Scope<'_>,
    stage: &Stage,
    layout: &StageLayout,
    left: &mut u64,
) -> Vec<(ArrayId, Traffic)> {
    if work(scope, stage).is_none_or(|work| work > MAX_WORK) {
        return traffic::reads(scope, stage);
    }
    let mut counter = Counter::new(scope, stage, layout, *left);
    if (0..stage.n_tasks()).try_for_each(|number| counter.task(&stage.task_coords(number))).is_err()
    {
        return traffic::reads(scope, stage);
    }
    *left = counter.left;
    // Consecutive tasks may run on different workers, which share neither cached chunks nor shard
    // indexes.
    let stays = |s: &SourceLayout| s.retained || scope.array(s.array).info.shard.is_some();
    let exact = !layout.sources.iter().any(stays);
    let traffic = |(source, count): (&SourceLayout, Count)| {
        let Count { requests, bytes, whole_bytes, parts, .. } = count;
        (source.array, Traffic { requests, bytes, whole_bytes, exact, parts })
    };
    layout.sources.iter().zip(counter.counts).map(traffic).collect()
}

/// Returns the approximate cost of counting a stage in addition to its reads, or `None` on
/// overflow.
fn work(scope: Scope<'_>, stage: &Stage) -> Option<u64> {
    let kind = stage.kernel.kind();
    let n_inputs = stage.inputs.len() as u64;
    let mut all = stage.n_tasks().checked_mul(n_inputs)?;
    for (i, input) in stage.inputs.iter().enumerate() {
        let (blocks, _) = kind.input_blocks(stage, i);
        let n = stage.task_blocks().n_chunks().max(blocks.n_chunks());
        let each = if input.map.is_flat() {
            // Each chunk near a block is compared with the rows of the block.
            let rows =
                blocks.max_chunk().iter().rev().skip(1).try_fold(1u64, |p, n| p.checked_mul(*n))?;
            rows.checked_mul(
                traffic::flat_reads(&blocks, &scope.array(*input.sources.first()?).info.grid)
                    as u64
                    / n.max(1)
                    + 1,
            )?
        } else {
            (input.map.pieces().len() + input.map.n_indices()) as u64
        };
        // A release visits all inputs.
        all = all.checked_add(n.checked_mul(each.checked_add(n_inputs)?)?)?;
    }
    Some(all)
}

struct Counter<'a> {
    scope: Scope<'a>,
    stage: &'a Stage,
    layout: &'a StageLayout,
    grids: Vec<&'a ChunkGrid>,
    objects: Vec<ChunkGrid>,
    counts: Vec<Count>,
    /// Cached chunks of retained sources, which remain for the next task.
    cached: Vec<Lru<()>>,
    left: u64,
}

impl<'a> Counter<'a> {
    fn new(scope: Scope<'a>, stage: &'a Stage, layout: &'a StageLayout, left: u64) -> Counter<'a> {
        let n = layout.sources.len();
        Counter {
            scope,
            stage,
            layout,
            grids: layout.sources.iter().map(|s| &scope.array(s.array).info.grid).collect(),
            objects: objects(scope, stage),
            counts: vec![Count::default(); n],
            cached: vec![Lru::default(); n],
            left,
        }
    }

    /// Counts one task.
    fn task(&mut self, coords: &[u64]) -> Result<(), TooMany> {
        let (scope, stage, layout) = (self.scope, self.stage, self.layout);
        let (counts, left) = (&mut self.counts, &mut self.left);
        let visit = |source: usize, touched: &Touched<'_>| {
            *left = left.checked_sub(1).ok_or(TooMany)?;
            counts[source].add(scope, stage, (layout, source), touched);
            Ok(())
        };
        let region = stage.tasks.region(coords);
        let viewed = vec![None; stage.inputs.len()];
        let cached = std::mem::take(&mut self.cached);
        let mut reads =
            ChunkReads { stage, layout, grids: &self.grids, coords, cached, viewed, visit };
        let loops = TaskLoops { stage, objects: &self.objects, coords, region: &region };
        walk(&layout.program.steps, &loops, &loops.outside(), &mut reads)?;
        self.cached = reads.cached;
        Ok(())
    }
}

impl Count {
    fn add(
        &mut self,
        scope: Scope<'_>,
        stage: &Stage,
        (layout, source): (&StageLayout, usize),
        touched: &Touched<'_>,
    ) {
        let Some(coords) = touched.coords() else { return };
        let SourceLayout { array, prefetch, .. } = layout.sources[source];
        let is_ahead = prefetch && layout.window_bytes > 0;
        let info = &scope.array(array).info;
        let size = info.dtype.size() as f64;
        let elements = |shape: &[u64]| shape.iter().fold(1.0, |p, n| p * *n as f64);
        let whole = size
            * info
                .stored_shape
                .as_ref()
                .map_or_else(|| elements(&info.grid.region(coords).shape), |shape| elements(shape));
        let mut bytes = whole;
        if let Touched::Part { axes, runs, .. } = touched {
            let needed = size
                * runs
                    .iter()
                    .map(|runs| runs.iter().map(|r: &Run| r.count as f64).sum::<f64>())
                    .product::<f64>();
            if needed < 0.99 * whole && traffic::in_parts(scope, stage, array, axes) {
                (bytes, self.parts) = (needed, true);
            }
        }
        if let Some(shard) = &info.shard {
            let object: Vec<u64> =
                coords.iter().zip(&shard.chunks).map(|(c, n)| c / n.max(&1)).collect();
            let before = match &self.shard {
                Some((last, n)) if *last == object => *n,
                _ => {
                    // The request for the index, or for the whole shard.
                    self.requests += 1.0;
                    0
                }
            };
            let is_whole = |n: u64| is_ahead && 2 * n >= shard.n_chunks();
            match (is_whole(before), is_whole(before + 1)) {
                (false, false) => self.requests += 1.0,
                // The chunks so far were counted one by one.
                (false, true) => self.requests -= before as f64,
                _ => {}
            }
            self.shard = Some((object, before + 1));
        } else {
            self.requests += 1.0;
        }
        self.bytes += bytes;
        self.whole_bytes += whole;
    }
}
