//! In how many copies an array gets other chunks, and through which intermediates.
//!
//! A copy is a stage whose tasks each read one box of the array and write it in other chunks.
//! Between two copies lies an intermediate array that is cut wherever a task of the one or of the
//! other ends, so that each of its chunks has one writer and one reader. What is chosen is the
//! shape of the boxes, by the time that a route takes: bytes moved, requests, tasks. The search
//! climbs from boxes that lie evenly, on a logarithmic scale, between the two chunk shapes; it is
//! exact in what it counts and greedy in where it goes.

use crate::grid::{AxisGrid, ChunkGrid};

/// What a rechunk has to do with.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    /// Elements along each axis.
    pub(crate) shape: Vec<u64>,
    /// Elements of a source chunk along each axis.
    pub(crate) source: Vec<u64>,
    /// Elements of a stored object of the target along each axis.
    pub(crate) target: Vec<u64>,
    /// Bytes that an element of a box takes in the first copy, whose inputs may be several.
    pub(crate) source_bytes: u64,
    /// Bytes of an element of the result.
    pub(crate) bytes: u64,
    /// Bytes that a task may hold.
    pub(crate) memory: u64,
    /// Tasks that a copy should have.
    pub(crate) tasks: u64,
    /// What things cost.
    pub(crate) prices: Prices,
}

/// Seconds of one worker, roughly: they weigh bytes against requests. Measured on local files and
/// on object stores in the same region.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prices {
    /// To read and decode a byte of the source.
    pub(crate) source_byte: f64,
    /// To ask for a chunk of the source.
    pub(crate) source_request: f64,
    /// To write a byte of an intermediate.
    pub(crate) write_byte: f64,
    /// To read a byte of an intermediate.
    pub(crate) read_byte: f64,
    /// To write a chunk of an intermediate.
    pub(crate) write_request: f64,
    /// To read a chunk of an intermediate.
    pub(crate) read_request: f64,
}

impl Prices {
    /// Of chunks that are or are not compressed, and do or do not cross a network.
    pub(crate) fn new(source: Kind, work: Kind) -> Prices {
        let read = |k: Kind| if k.compressed { 0.9e-9 } else { 0.12e-9 } + if k.remote { 1e-8 } else { 0.0 };
        let write = |k: Kind| if k.compressed { 2e-9 } else { 0.3e-9 } + if k.remote { 1.5e-8 } else { 0.0 };
        let ask = |k: Kind| if k.remote { 2e-2 } else { 1e-4 };
        Prices {
            source_byte: read(source),
            source_request: ask(source),
            write_byte: write(work),
            read_byte: read(work),
            write_request: if work.remote { 4e-2 } else { 2e-4 },
            read_request: ask(work),
        }
    }
}

/// How chunks are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) compressed: bool,
    pub(crate) remote: bool,
}

/// A way from the source's chunks to the target's.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Route {
    /// The box of a task, copy by copy.
    pub(crate) boxes: Vec<Vec<u64>>,
    /// Seconds of one worker.
    pub(crate) cost: f64,
}

/// What a route moves.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Moves {
    /// Reads and writes, those of the source and of the target included.
    pub(crate) requests: f64,
    /// Bytes written, the target included.
    pub(crate) written: f64,
    /// Tasks of the copy that has the fewest.
    pub(crate) fewest_tasks: u64,
}

/// More copies than this are never worth it.
pub(crate) const MAX_COPIES: usize = 4;
/// Sizes of the boxes at the ends from which the search may begin.
const STARTS: u64 = 64;
/// Steps of the climb, as a stop for what does not end.
const MAX_STEPS: usize = 400;

/// Pieces of an axis that is cut at the multiples of `a` and of `b`: also the pairs of one of each
/// that touch.
fn pieces(n: u64, a: u64, b: u64) -> u64 {
    if n == 0 {
        return 0;
    }
    let cuts = |x: u64| (n - 1) / x;
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    1 + cuts(a) + cuts(b) - (a / x).checked_mul(b).map_or(0, cuts)
}

fn product(values: impl Iterator<Item = u64>) -> f64 {
    values.map(|v| v as f64).product()
}

impl Problem {
    fn counts(&self, a: &[u64], b: &[u64]) -> f64 {
        product((0..self.shape.len()).map(|d| pieces(self.shape[d], a[d], b[d])))
    }

    fn n_tasks(&self, shape: &[u64]) -> f64 {
        product((0..self.shape.len()).map(|d| self.shape[d].div_ceil(shape[d])))
    }

    /// Bytes that a task of copy `i` holds, nearly.
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

    /// What a route costs; `None` if it does not fit memory or has too few tasks.
    fn cost(&self, boxes: &[Vec<u64>]) -> Option<f64> {
        let (p, last) = (&self.prices, boxes.len() - 1);
        let total = product(self.shape.iter().copied());
        let mut cost = 0.0;
        for (i, shape) in boxes.iter().enumerate() {
            let tasks = self.n_tasks(shape);
            // There are never more tasks than whole chunks of the source or of the target.
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
                self.first(shape)
            } else {
                self.counts(&boxes[i - 1], shape) * p.read_request
                    + total * self.bytes as f64 * p.read_byte
            };
            let written = if i == last {
                0.0
            } else {
                self.counts(shape, &boxes[i + 1]) * p.write_request
                    + total * self.bytes as f64 * p.write_byte
            };
            cost += read + written;
        }
        Some(cost)
    }

    /// What the first copy's reading costs.
    fn first(&self, shape: &[u64]) -> f64 {
        self.counts(shape, &self.source)
            * (product(self.source.iter().copied())
                * self.source_bytes as f64
                * self.prices.source_byte
                + self.prices.source_request)
    }

    /// The share of a route's cost that is reading the source.
    pub(crate) fn first_read(&self, route: &Route) -> f64 {
        self.first(&route.boxes[0])
    }

    /// The cheapest route that the search finds; `None` if none fits.
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

    /// Boxes evenly between source and target, those at the ends grown towards each other by
    /// `grown`, from 0 to 1, on a logarithmic scale.
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

    /// The best of a few climbs.
    fn best(&self, copies: usize) -> Option<Route> {
        // The ends as large as memory and the number of tasks let them be, and as they are.
        let grown = (1..=STARTS)
            .rev()
            .map(|k| k as f64 / STARTS as f64)
            .find(|g| self.cost(&self.start(copies, *g)).is_some());
        let starts = grown.into_iter().chain([0.0]).map(|g| self.start(copies, g));
        starts.filter_map(|s| self.climb(s)).min_by(|a, b| a.cost.total_cmp(&b.cost))
    }

    fn climb(&self, start: Vec<Vec<u64>>) -> Option<Route> {
        let mut here = Route { cost: self.cost(&start)?, boxes: start };
        for _ in 0..MAX_STEPS {
            let mut best: Option<Route> = None;
            let mut look = |boxes: Vec<Vec<u64>>| {
                if let Some(cost) = self
                    .cost(&boxes)
                    .filter(|c| *c < best.as_ref().map_or(here.cost * (1.0 - 1e-9), |b| b.cost))
                {
                    best = Some(Route { boxes, cost });
                }
            };
            for i in 0..here.boxes.len() {
                for d in 0..self.shape.len() {
                    for value in self.values(&here.boxes, i, d) {
                        let mut trial = here.boxes.clone();
                        trial[i][d] = value;
                        // Longer along one axis often asks for shorter along another, or for the
                        // same in the neighbour.
                        for e in (0..self.shape.len()).filter(|e| *e != d) {
                            for other in [2, 3]
                                .into_iter()
                                .flat_map(|k| [here.boxes[i][e] * k, here.boxes[i][e] / k])
                            {
                                let mut both = trial.clone();
                                both[i][e] = self.snap(other.max(1), both.len(), i, e);
                                look(both);
                            }
                        }
                        if i + 1 < trial.len() {
                            for other in
                                [value, trial[i + 1][d].saturating_mul(2), trial[i + 1][d] / 2]
                            {
                                let mut both = trial.clone();
                                both[i + 1][d] = self.snap(other.max(1), both.len(), i + 1, d);
                                look(both);
                            }
                        }
                        look(trial);
                    }
                }
            }
            match best {
                Some(better) => here = better,
                None => break,
            }
        }
        Some(here)
    }

    /// A length that the box of copy `i` may have along axis `d`: the last copy writes whole
    /// objects of the target, the first reads whole chunks of the source where it can.
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

    /// Lengths worth trying for the box of copy `i` along axis `d`.
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

    /// What a route moves, counted.
    #[cfg(test)]
    fn moves(&self, route: &Route) -> Moves {
        let total = product(self.shape.iter().copied()) * self.bytes as f64;
        let boxes = &route.boxes;
        let between: f64 = boxes.windows(2).map(|w| self.counts(&w[0], &w[1])).sum();
        Moves {
            requests: self.counts(&boxes[0], &self.source)
                + 2.0 * between
                + self.n_tasks(&self.target),
            written: total * boxes.len() as f64,
            fewest_tasks: boxes.iter().map(|b| self.n_tasks(b) as u64).min().unwrap_or(0),
        }
    }
}

/// More cuts than this along one axis of an intermediate are not written into a plan.
const MAX_CUTS: u64 = 1 << 16;

/// The grid that is cut where either grid is; `None` where that has too many cuts to list.
pub(crate) fn between(a: &ChunkGrid, b: &ChunkGrid) -> Option<ChunkGrid> {
    let axis = |(a, b): (&AxisGrid, &AxisGrid)| {
        if a.nests_in(b, 0, 1) {
            return Some(a.clone());
        }
        if b.nests_in(a, 0, 1) {
            return Some(b.clone());
        }
        if a.n_chunks() + b.n_chunks() > MAX_CUTS {
            return None;
        }
        let cuts = |g: &AxisGrid| (0..=g.n_chunks()).map(|i| g.start(i)).collect::<Vec<u64>>();
        let mut all = [cuts(a), cuts(b)].concat();
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
        let local = Kind { compressed: false, remote: parallelism > 64 };
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
