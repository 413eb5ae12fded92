//! Routes of a rechunk: the number of copies, and the intermediate chunk shapes.
//!
//! A copy is a stage whose tasks each read one box of the array and write it in other chunks. The
//! intermediate array between two copies has a chunk boundary wherever a task of either copy ends,
//! so each of its chunks has one writer and one reader. The search chooses the shapes of the boxes
//! by the cost of the route: bytes moved, requests, and tasks. It is a greedy hill climb. It starts
//! from boxes that are evenly spaced, on a logarithmic scale, between the two chunk shapes. The
//! cost function is exact in its counts.

use crate::grid::{AxisGrid, ChunkGrid};

/// The parameters of a rechunk.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    /// The number of elements along each axis.
    pub(crate) shape: Vec<u64>,
    /// The shape of a source chunk.
    pub(crate) source: Vec<u64>,
    /// The shape of a stored object of the target.
    pub(crate) target: Vec<u64>,
    /// The bytes per element of a box in the first copy, which may have several inputs.
    pub(crate) source_bytes: u64,
    /// The bytes per element of the result.
    pub(crate) bytes: u64,
    /// The maximum memory of a task in bytes.
    pub(crate) memory: u64,
    /// The minimum number of tasks of a copy.
    pub(crate) tasks: u64,
    /// The costs of bytes and requests.
    pub(crate) prices: Prices,
}

/// Approximate costs in seconds of one worker, which weigh bytes against requests. Measured on
/// local files and on object stores in the same region.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prices {
    /// The cost to read and decode a byte of the source.
    pub(crate) source_byte: f64,
    /// The cost to request a chunk of the source.
    pub(crate) source_request: f64,
    /// The cost to write a byte of an intermediate.
    pub(crate) write_byte: f64,
    /// The cost to read a byte of an intermediate.
    pub(crate) read_byte: f64,
    /// The cost to request a write of an intermediate chunk.
    pub(crate) write_request: f64,
    /// The cost to request a read of an intermediate chunk.
    pub(crate) read_request: f64,
}

impl Prices {
    /// Returns the costs for chunks of the source and of the work directory.
    pub(crate) fn new(source: ChunkStorage, work: ChunkStorage) -> Prices {
        Prices {
            source_byte: source.read_byte(),
            source_request: source.read_request(),
            write_byte: work.write_byte(),
            read_byte: work.read_byte(),
            write_request: work.write_request(),
            read_request: work.read_request(),
        }
    }
}

/// The properties of stored chunks that determine costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkStorage {
    /// True if chunks are compressed.
    pub(crate) compressed: bool,
    /// True if chunks are transferred over a network.
    pub(crate) remote: bool,
}

impl ChunkStorage {
    fn read_byte(self) -> f64 {
        let decode = if self.compressed { 0.9e-9 } else { 0.12e-9 };
        decode + if self.remote { 1e-8 } else { 0.0 }
    }

    fn write_byte(self) -> f64 {
        let encode = if self.compressed { 2e-9 } else { 0.3e-9 };
        encode + if self.remote { 1.5e-8 } else { 0.0 }
    }

    fn read_request(self) -> f64 {
        if self.remote { 2e-2 } else { 1e-4 }
    }

    fn write_request(self) -> f64 {
        if self.remote { 4e-2 } else { 2e-4 }
    }
}

/// A sequence of copies from the source's chunks to the target's.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Route {
    /// The box of a task of each copy.
    pub(crate) boxes: Vec<Vec<u64>>,
    /// The cost in seconds of one worker.
    pub(crate) cost: f64,
}

/// The work of a route.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Moves {
    /// The number of reads and writes, including those of the source and of the target.
    pub(crate) requests: f64,
    /// The bytes written, including the target.
    pub(crate) written: f64,
    /// The number of tasks of the copy with the fewest.
    pub(crate) fewest_tasks: u64,
}

/// The maximum number of copies.
pub(crate) const MAX_COPIES: usize = 4;
/// The number of sizes of the first and last box from which the search chooses its start.
const STARTS: u64 = 64;
/// The maximum number of steps of a climb.
const MAX_STEPS: usize = 400;

/// Returns the number of pieces of an axis of `n` elements with boundaries at the multiples of `a`
/// and of `b`. It equals the number of overlapping pairs of chunks of both sizes.
fn pieces(n: u64, a: u64, b: u64) -> u64 {
    if n == 0 {
        return 0;
    }
    let boundaries = |x: u64| (n - 1) / x;
    // The greatest common divisor, for the boundaries that coincide.
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    1 + boundaries(a) + boundaries(b) - (a / x).checked_mul(b).map_or(0, boundaries)
}

fn product(values: impl Iterator<Item = u64>) -> f64 {
    values.map(|v| v as f64).product()
}

impl Problem {
    /// Returns the number of overlapping pairs of boxes of both shapes.
    fn overlaps(&self, a: &[u64], b: &[u64]) -> f64 {
        product((0..self.shape.len()).map(|d| pieces(self.shape[d], a[d], b[d])))
    }

    fn n_tasks(&self, shape: &[u64]) -> f64 {
        product((0..self.shape.len()).map(|d| self.shape[d].div_ceil(shape[d])))
    }

    /// Returns the approximate bytes that a task of copy `i` holds.
    fn held(&self, boxes: &[Vec<u64>], i: usize) -> f64 {
        let volume = |shape: &[u64]| product(shape.iter().copied());
        let smaller = |a: &[u64], b: &[u64]| product(a.iter().zip(b).map(|(a, b)| *a.min(b)));
        let bytes = self.bytes as f64;
        let read = if i == 0 {
            volume(&self.source) * self.source_bytes as f64
        } else {
            smaller(&boxes[i - 1], &boxes[i]) * bytes
        };
        let written = if i + 1 == boxes.len() {
            volume(&self.target)
        } else {
            smaller(&boxes[i], &boxes[i + 1])
        } * bytes;
        volume(&boxes[i]) * if i == 0 { self.source_bytes as f64 } else { bytes }
            + 2.0 * read
            + 2.0 * written
    }

    /// Returns the cost of a route, or `None` if it exceeds the memory or has too few tasks.
    fn cost(&self, boxes: &[Vec<u64>]) -> Option<f64> {
        let (p, last) = (&self.prices, boxes.len() - 1);
        let total = product(self.shape.iter().copied());
        let mut cost = 0.0;
        for (i, shape) in boxes.iter().enumerate() {
            let tasks = self.n_tasks(shape);
            // The source and the target limit the number of tasks by their numbers of chunks.
            let most = if i == last {
                self.n_tasks(&self.target)
            } else if i == 0 {
                self.n_tasks(&self.source)
            } else {
                f64::MAX
            };
            if self.held(boxes, i) > self.memory as f64 || tasks < most.min(self.tasks as f64) {
                return None;
            }
            let read = if i == 0 {
                self.source_cost(shape)
            } else {
                self.overlaps(&boxes[i - 1], shape) * p.read_request
                    + total * self.bytes as f64 * p.read_byte
            };
            let written = if i == last {
                0.0
            } else {
                self.overlaps(shape, &boxes[i + 1]) * p.write_request
                    + total * self.bytes as f64 * p.write_byte
            };
            cost += read + written;
        }
        Some(cost)
    }

    /// Returns the cost of reading the source by boxes of `shape`.
    fn source_cost(&self, shape: &[u64]) -> f64 {
        self.overlaps(shape, &self.source)
            * (product(self.source.iter().copied())
                * self.source_bytes as f64
                * self.prices.source_byte
                + self.prices.source_request)
    }

    /// Returns the part of a route's cost for reading the source.
    pub(crate) fn source_read_cost(&self, route: &Route) -> f64 {
        self.source_cost(&route.boxes[0])
    }

    /// Returns the cheapest route that the search finds, or `None` if no route fits.
    pub(crate) fn route(&self) -> Option<Route> {
        let mut best: Option<Route> = None;
        for copies in 1..=MAX_COPIES {
            if let Some(route) = self.best(copies)
                && best.as_ref().is_none_or(|b| route.cost < 0.98 * b.cost)
            {
                best = Some(route);
            }
        }
        best
    }

    /// Returns boxes that are evenly spaced between source and target on a logarithmic scale. The
    /// first and the last box grow towards the other end by the fraction `grown`, from 0 to 1.
    fn start(&self, copies: usize, grown: f64) -> Vec<Vec<u64>> {
        let (last, log) = ((copies - 1).max(1) as f64, |x: u64| (x.max(1) as f64).ln());
        let end = |d: usize, from: &[u64], to: &[u64]| {
            let (from, to) = (from[d], to[d]);
            let long = (log(from) + (log(to) - log(from)).max(0.0) * grown).exp().round() as u64;
            (long / from.max(1)).max(1) * from
        };
        let between = |i: usize, d: usize| {
            let (first, final_) =
                (end(d, &self.source, &self.target), end(d, &self.target, &self.source));
            match i {
                _ if i + 1 == copies => final_,
                0 => first,
                _ => (log(first) + (log(final_) - log(first)) * i as f64 / last)
                    .exp()
                    .round()
                    .max(1.0) as u64,
            }
        };
        (0..copies)
            .map(|i| {
                (0..self.shape.len()).map(|d| between(i, d).min(self.shape[d].max(1))).collect()
            })
            .collect()
    }

    /// Returns the best route of several climbs with a number of copies.
    fn best(&self, copies: usize) -> Option<Route> {
        // Start once with the largest first and last boxes that memory and the number of tasks
        // permit, and once with the chunks themselves.
        let grown = (1..=STARTS)
            .rev()
            .map(|k| k as f64 / STARTS as f64)
            .find(|g| self.cost(&self.start(copies, *g)).is_some());
        let starts = grown.into_iter().chain([0.0]).map(|g| self.start(copies, g));
        starts.filter_map(|s| self.climb(s)).min_by(|a, b| a.cost.total_cmp(&b.cost))
    }

    /// Climbs from a start to a local minimum of the cost.
    fn climb(&self, start: Vec<Vec<u64>>) -> Option<Route> {
        let mut here = Route { cost: self.cost(&start)?, boxes: start };
        for _ in 0..MAX_STEPS {
            match self.best_neighbor(&here) {
                Some(better) => here = better,
                None => break,
            }
        }
        Some(here)
    }

    /// Returns the cheapest route that differs from `here` in one or two lengths, if it is cheaper.
    fn best_neighbor(&self, here: &Route) -> Option<Route> {
        let mut best: Option<Route> = None;
        for i in 0..here.boxes.len() {
            for d in 0..self.shape.len() {
                for boxes in self.neighbors(&here.boxes, i, d) {
                    let bound = best.as_ref().map_or(here.cost * (1.0 - 1e-9), |b| b.cost);
                    if let Some(cost) = self.cost(&boxes).filter(|cost| *cost < bound) {
                        best = Some(Route { boxes, cost });
                    }
                }
            }
        }
        best
    }

    /// Returns the boxes with another length of box `i` along axis `d`, alone or with one more
    /// change: a longer box along one axis often requires a shorter one along another axis, or the
    /// same length in the next box.
    fn neighbors(&self, boxes: &[Vec<u64>], i: usize, d: usize) -> Vec<Vec<Vec<u64>>> {
        let copies = boxes.len();
        let mut neighbors = Vec::new();
        for value in self.values(boxes, i, d) {
            let mut trial = boxes.to_vec();
            trial[i][d] = value;
            let mut change = |copy: usize, axis: usize, length: u64| {
                let mut both = trial.clone();
                both[copy][axis] = self.snap(length.max(1), copies, copy, axis);
                neighbors.push(both);
            };
            for e in (0..self.shape.len()).filter(|e| *e != d) {
                let length = boxes[i][e];
                for n in [length * 2, length / 2, length * 3, length / 3] {
                    change(i, e, n);
                }
            }
            if i + 1 < copies {
                let length = boxes[i + 1][d];
                for n in [value, length.saturating_mul(2), length / 2] {
                    change(i + 1, d, n);
                }
            }
            neighbors.push(trial);
        }
        neighbors
    }

    /// Rounds a length to one that the box of copy `i` may have along axis `d`. The last copy
    /// writes whole objects of the target. The first copy reads whole chunks of the source if the
    /// length exceeds one chunk.
    fn snap(&self, value: u64, copies: usize, i: usize, d: usize) -> u64 {
        let n = self.shape[d].max(1);
        let unit = if i + 1 == copies {
            self.target[d]
        } else if i == 0 && value > self.source[d] {
            self.source[d]
        } else {
            1
        };
        (value / unit).max(1).saturating_mul(unit).min(n)
    }

    /// Returns the lengths to try for the box of copy `i` along axis `d`.
    fn values(&self, boxes: &[Vec<u64>], i: usize, d: usize) -> Vec<u64> {
        let (n, now) = (self.shape[d].max(1), boxes[i][d]);
        let parts = n.div_ceil(now);
        let mut values = vec![
            now * 2,
            now / 2,
            now * 3 / 2,
            now * 2 / 3,
            now * 5 / 4,
            now * 4 / 5,
            now + 1,
            now - 1,
            n,
        ];
        values.extend([parts + 1, parts.saturating_sub(1).max(1), parts].map(|k| n.div_ceil(k)));
        let neighbours = [
            i.checked_sub(1).map(|j| boxes[j][d]),
            boxes.get(i + 1).map(|b| b[d]),
            Some(self.source[d]),
            Some(self.target[d]),
        ];
        for unit in neighbours.into_iter().flatten() {
            values.extend([
                unit,
                now / unit * unit,
                (now / unit + 1).saturating_mul(unit),
                unit / (unit / now).max(1),
                unit / (unit / now + 1),
            ]);
        }
        values.iter_mut().for_each(|v| *v = self.snap((*v).max(1), boxes.len(), i, d));
        values.sort_unstable();
        values.dedup();
        values.retain(|v| *v != now);
        values
    }

    /// Returns the work of a route.
    #[cfg(test)]
    fn moves(&self, route: &Route) -> Moves {
        let total = product(self.shape.iter().copied()) * self.bytes as f64;
        let boxes = &route.boxes;
        let between: f64 = boxes.windows(2).map(|w| self.overlaps(&w[0], &w[1])).sum();
        Moves {
            requests: self.overlaps(&boxes[0], &self.source)
                + 2.0 * between
                + self.n_tasks(&self.target),
            written: total * boxes.len() as f64,
            fewest_tasks: boxes.iter().map(|b| self.n_tasks(b) as u64).min().unwrap_or(0),
        }
    }
}

/// The maximum number of explicit boundaries along an axis of an intermediate in a plan.
const MAX_BOUNDARIES: u64 = 1 << 16;

/// Returns the grid with the boundaries of both grids, or `None` if it has too many boundaries.
pub(crate) fn between(a: &ChunkGrid, b: &ChunkGrid) -> Option<ChunkGrid> {
    let axis = |(a, b): (&AxisGrid, &AxisGrid)| {
        if a.nests_in(b, 0, 1) {
            return Some(a.clone());
        }
        if b.nests_in(a, 0, 1) {
            return Some(b.clone());
        }
        if a.n_chunks() + b.n_chunks() > MAX_BOUNDARIES {
            return None;
        }
        let boundaries =
            |g: &AxisGrid| (0..=g.n_chunks()).map(|i| g.start(i)).collect::<Vec<u64>>();
        let mut all = [boundaries(a), boundaries(b)].concat();
        all.sort_unstable();
        all.dedup();
        AxisGrid::bounds(all).ok()
    };
    a.axes().iter().zip(b.axes()).map(axis).collect::<Option<Vec<AxisGrid>>>().map(ChunkGrid::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(
        shape: &[u64],
        source: &[u64],
        target: &[u64],
        bytes: u64,
        memory: u64,
        parallelism: u64,
    ) -> Problem {
        let local = ChunkStorage { compressed: false, remote: parallelism > 64 };
        let tasks = if parallelism > 64 { parallelism } else { 4 * parallelism };
        Problem {
            shape: shape.to_vec(),
            source: source.to_vec(),
            target: target.to_vec(),
            source_bytes: bytes,
            bytes,
            memory,
            tasks,
            prices: Prices::new(local, local),
        }
    }

    #[test]
    fn era5_in_three_copies() {
        let p = problem(
            &[350_640, 721, 1440],
            &[31, 721, 1440],
            &[350_640, 10, 10],
            4,
            2_400_000_000,
            1000,
        );
        let route = p.route().unwrap();
        let moves = p.moves(&route);
        assert!(
            moves.written <= 4.4e12 && moves.requests <= 250_000.0 && moves.fewest_tasks >= 1000,
            "{route:?} {moves:?}"
        );
    }

    #[test]
    fn a_square_turned_in_two_copies() {
        let p = problem(&[10_000, 10_000], &[10_000, 100], &[100, 10_000], 8, 2_000_000_000, 2);
        let route = p.route().unwrap();
        assert!(route.boxes.len() <= 2 && p.moves(&route).fewest_tasks >= 8, "{route:?}");
    }
}
