//! Read counts of a stage, from the visitor that its tasks use for reading.
//!
//! [`ChunkReads`] visits the programs of tasks without reading anything. For a stage with few tasks and reads, it visits all tasks. For a
//! larger stage, it visits the tasks at the edges and in the middle of each axis, each of which represents similar tasks. If one task alone
//! exceeds the limit of counted reads, the closed form of `traffic` is used. The cost is therefore bounded for every plan.

use super::chunks::{ChunkReads, Touched};
use super::traffic::{self, Traffic};
use super::walk::{TaskLoops, objects};
use super::{ArrayId, Scope, Stage, StageLayout};
use crate::grid::{ChunkGrid, Region, try_for_each_coord};
use crate::program::walk;
use crate::readmap::Run;
use crate::recent::Recent;

/// The maximum number of tasks of a stage that is counted exactly, provided that it reads at most [`MAX_READS`] chunks.
const MAX_TASKS: u64 = 4096;
/// The maximum number of chunk reads that are counted.
const MAX_READS: u64 = 65_536;

/// The error that stops counting at the limit.
struct TooMany;

/// The reads of one source.
#[derive(Clone, Debug, Default)]
struct Count {
    requests: f64,
    bytes: f64,
    whole_bytes: f64,
    parts: bool,
    /// The shard whose index was read last.
    shard: Option<Vec<u64>>,
}

/// Returns the reads of a stage from each array, in the order of its inputs. Generated arrays count as if they were stored.
pub(crate) fn reads(scope: Scope<'_>, stage: &Stage, layout: &StageLayout) -> Vec<(ArrayId, Traffic)> {
    let mut counter = Counter::new(scope, stage, layout);
    let counted = match counter.all() {
        Ok(()) => true,
        Err(TooMany) => {
            counter = Counter::new(scope, stage, layout);
            counter.sample().is_ok()
        }
    };
    if !counted {
        return traffic::reads(scope, stage);
    }
    // Consecutive tasks may run on different workers, and workers do not share cached chunks.
    let exact = !counter.sampled && layout.sources.iter().all(|s| !s.kept);
    let traffic = |(source, count): (&super::layout::SourceLayout, Count)| {
        let Count { requests, bytes, whole_bytes, parts, .. } = count;
        (source.array, Traffic { requests, bytes, whole_bytes, exact, parts })
    };
    layout.sources.iter().zip(counter.counts).map(traffic).collect()
}

struct Counter<'a> {
    scope: Scope<'a>,
    stage: &'a Stage,
    layout: &'a StageLayout,
    grids: Vec<&'a ChunkGrid>,
    objects: Vec<ChunkGrid>,
    counts: Vec<Count>,
    /// Cached chunks of kept sources, which remain for the next task.
    at_hand: Vec<Recent<()>>,
    left: u64,
    /// True if counted tasks represent others.
    sampled: bool,
}

impl<'a> Counter<'a> {
    fn new(scope: Scope<'a>, stage: &'a Stage, layout: &'a StageLayout) -> Counter<'a> {
        let n = layout.sources.len();
        Counter {
            scope,
            stage,
            layout,
            grids: layout.sources.iter().map(|s| &scope.array(s.array).info.grid).collect(),
            objects: objects(scope, stage),
            counts: vec![Count::default(); n],
            at_hand: vec![Recent::default(); n],
            left: MAX_READS,
            sampled: false,
        }
    }

    /// Counts all tasks in sequence.
    fn all(&mut self) -> Result<(), TooMany> {
        if self.stage.n_tasks() > MAX_TASKS {
            return Err(TooMany);
        }
        (0..self.stage.n_tasks()).try_for_each(|number| self.task(&self.stage.task_coords(number), 1.0))
    }

    /// Counts the tasks at the edges and in the middle of each axis, weighted by the number of tasks that they represent.
    fn sample(&mut self) -> Result<(), TooMany> {
        self.sampled = true;
        let along = |n: u64| match n {
            0..=3 => (0..n).map(|c| (c, 1.0)).collect(),
            _ => vec![(0, 1.0), (n / 2, (n - 2) as f64), (n - 1, 1.0)],
        };
        let axes: Vec<Vec<(u64, f64)>> = self.stage.tasks.chunk_counts().into_iter().map(along).collect();
        let counts: Vec<u64> = axes.iter().map(|a| a.len() as u64).collect();
        let samples = Region::whole(&counts);
        if samples.n_elements() > MAX_TASKS {
            return Err(TooMany);
        }
        let sweeps = self.layout.sources.iter().any(|s| s.kept).then_some(self.stage.sweep).flatten();
        try_for_each_coord(&samples, |at| {
            let chosen = axes.iter().zip(at).map(|(axis, i)| axis[*i as usize]);
            let (coords, weights): (Vec<u64>, Vec<f64>) = chosen.unzip();
            self.at_hand.iter_mut().for_each(Recent::clear);
            if let Some(d) = sweeps.filter(|d| coords[*d] > 0) {
                // Start with the chunks that the preceding task leaves in the cache.
                let mut before = coords.clone();
                before[d] -= 1;
                self.task(&before, 0.0)?;
            }
            self.task(&coords, weights.iter().product())
        })
    }

    /// Counts one task with a weight: the number of tasks that it represents.
    fn task(&mut self, coords: &[u64], weight: f64) -> Result<(), TooMany> {
        let (scope, stage, layout) = (self.scope, self.stage, self.layout);
        let (counts, left) = (&mut self.counts, &mut self.left);
        let visit = |source: usize, touched: &Touched<'_>| {
            *left = left.checked_sub(1).ok_or(TooMany)?;
            counts[source].add(scope, stage, layout.sources[source].array, touched, weight);
            Ok(())
        };
        let region = stage.tasks.region(coords);
        let inside = vec![None; stage.inputs.len()];
        let at_hand = std::mem::take(&mut self.at_hand);
        let mut reads = ChunkReads { stage, layout, grids: &self.grids, coords, at_hand, inside, visit };
        let loops = TaskLoops { stage, objects: &self.objects, coords, region: &region };
        walk(&layout.program.steps, &loops, &loops.outside(), &mut reads)?;
        self.at_hand = reads.at_hand;
        Ok(())
    }
}

impl Count {
    fn add(&mut self, scope: Scope<'_>, stage: &Stage, array: ArrayId, touched: &Touched<'_>, weight: f64) {
        let Some(coords) = touched.coords() else { return };
        let info = &scope.array(array).info;
        let size = info.dtype.size() as f64;
        let elements = |shape: &[u64]| shape.iter().fold(1.0, |p, n| p * *n as f64);
        let whole = size * info.stored_shape.as_ref().map_or_else(|| elements(&info.grid.region(coords).shape), |shape| elements(shape));
        let mut bytes = whole;
        if let Touched::Part { axes, runs, .. } = touched {
            let needed = size * runs.iter().map(|runs| runs.iter().map(|r: &Run| r.count as f64).sum::<f64>()).product::<f64>();
            if needed < 0.99 * whole && traffic::in_parts(scope, stage, array, axes) {
                (bytes, self.parts) = (needed, true);
            }
        }
        if let Some(shard) = &info.shard {
            let object: Vec<u64> = coords.iter().zip(&shard.chunks).map(|(c, n)| c / n.max(&1)).collect();
            if self.shard.as_ref() != Some(&object) {
                self.requests += weight;
                self.shard = Some(object);
            }
        }
        self.requests += weight;
        self.bytes += bytes * weight;
        self.whole_bytes += whole * weight;
    }
}
