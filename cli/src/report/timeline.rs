//! Who ran what when, and what went on meanwhile, in bounded memory.
//!
//! Time is cut in [`N_BINS`] bins. When the run outlasts them, each two become one, and all are
//! twice as wide. The first [`MAX_SPANS`] tasks are kept as they are too: a run that has no more is
//! drawn task by task.

use std::collections::HashMap;

use freestone_engine::storage::reader::Traffic;

/// Bins of time.
pub(super) const N_BINS: usize = 512;
/// Workers beyond these share the last lane.
pub(super) const MAX_LANES: usize = 64;
/// A run of no more tasks is drawn task by task.
pub(super) const MAX_SPANS: usize = 1200;
/// The first width of a bin, in microseconds.
const LEAST_WIDTH: u64 = 16;

/// A run in time. Times are microseconds since it began.
#[derive(Debug)]
pub(super) struct Timeline {
    /// Of a bin.
    pub(super) width: u64,
    pub(super) lanes: Vec<Lane>,
    pub(super) moved: Vec<Moved>,
    /// The end of the last task.
    pub(super) end: u64,
    by_name: HashMap<String, usize>,
    spans: Vec<(usize, Span)>,
    n_spans: usize,
}

/// A worker.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) name: String,
    pub(super) bins: Vec<Bin>,
}

/// What a worker did in a bin of time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bin {
    /// Microseconds in which it ran tasks; of several workers, of all of them.
    pub(super) busy: u64,
    /// Tasks that ended in it.
    pub(super) tasks: u32,
    pub(super) failed: u32,
    /// The stage that had most of it.
    pub(super) stage: u32,
    /// By how much more than others had.
    lead: u64,
}

/// What went on in a bin of time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moved {
    pub(super) bytes_read: u64,
    pub(super) bytes_written: u64,
    /// The highest resident memory that was seen.
    pub(super) rss_bytes: u64,
}

/// A task's time on a worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) stage: u32,
    pub(super) task: u64,
    pub(super) failed: bool,
}

impl Default for Timeline {
    fn default() -> Timeline {
        Timeline {
            width: LEAST_WIDTH,
            lanes: Vec::new(),
            moved: Vec::new(),
            end: 0,
            by_name: HashMap::new(),
            spans: Vec::new(),
            n_spans: 0,
        }
    }
}

impl Timeline {
    /// The lane of a worker.
    pub(super) fn lane(&mut self, worker: &str) -> usize {
        if let Some(lane) = self.by_name.get(worker) {
            return *lane;
        }
        let lane = self.lanes.len().min(MAX_LANES - 1);
        if lane == self.lanes.len() {
            self.lanes.push(Lane { name: worker.to_owned(), bins: Vec::new() });
        }
        // Workers that die and are replaced have new names; not all of them need be known.
        if self.by_name.len() < 8 * MAX_LANES {
            self.by_name.insert(worker.to_owned(), lane);
        }
        lane
    }

    /// Workers that are in the last lane, beyond the one that it is named for.
    pub(super) fn n_others(&self) -> usize {
        self.by_name.len().saturating_sub(self.lanes.len())
    }

    /// A task ran on a worker and moved so much.
    pub(super) fn ran(&mut self, lane: usize, span: Span, traffic: Traffic) {
        self.end = self.end.max(span.end);
        self.reach(span.end);
        self.n_spans += 1;
        if self.n_spans <= MAX_SPANS {
            self.spans.push((lane, span));
        } else {
            self.spans = Vec::new();
        }
        let width = self.width;
        let Some(lane) = self.lanes.get_mut(lane) else { return };
        let (first, last) = ((span.start / width) as usize, (span.end / width) as usize);
        if lane.bins.len() <= last {
            lane.bins.resize(last + 1, Bin::default());
        }
        if self.moved.len() <= last {
            self.moved.resize(last + 1, Moved::default());
        }
        let length = span.end - span.start;
        let mut before = (0, 0);
        for (at, bin) in lane.bins.iter_mut().enumerate().take(last + 1).skip(first) {
            let begin = at as u64 * width;
            let until = span.end.min(begin + width);
            bin.vote(span.stage, until - span.start.max(begin));
            // As if evenly, of which each bin has what the ones before it left.
            let share = |bytes: u64| {
                if at == last {
                    bytes
                } else {
                    (u128::from(bytes) * u128::from(until - span.start) / u128::from(length)) as u64
                }
            };
            let so_far = (share(traffic.bytes_read), share(traffic.bytes_written));
            self.moved[at].bytes_read += so_far.0 - before.0;
            self.moved[at].bytes_written += so_far.1 - before.1;
            before = so_far;
        }
        lane.bins[last].tasks += 1;
        lane.bins[last].failed += u32::from(span.failed);
    }

    /// So much memory was resident then.
    pub(super) fn memory(&mut self, at: u64, rss_bytes: u64) {
        self.reach(at);
        let at = (at / self.width) as usize;
        if self.moved.len() <= at {
            self.moved.resize(at + 1, Moved::default());
        }
        self.moved[at].rss_bytes = self.moved[at].rss_bytes.max(rss_bytes);
    }

    /// The tasks with their lanes, if they are so few that all were kept.
    pub(super) fn spans(&self) -> Option<&[(usize, Span)]> {
        (self.n_spans <= MAX_SPANS).then_some(&self.spans)
    }

    /// Makes bins as wide as they must be for that time to be in one.
    fn reach(&mut self, at: u64) {
        while at / self.width >= N_BINS as u64 {
            self.widen();
        }
    }

    /// Makes one of each two bins.
    fn widen(&mut self) {
        self.width *= 2;
        for lane in &mut self.lanes {
            halve(&mut lane.bins, Bin::and);
        }
        halve(&mut self.moved, Moved::and);
    }
}

fn halve<T: Copy>(bins: &mut Vec<T>, and: fn(T, T) -> T) {
    let n = bins.len();
    for i in 0..n.div_ceil(2) {
        bins[i] = if 2 * i + 1 < n { and(bins[2 * i], bins[2 * i + 1]) } else { bins[2 * i] };
    }
    bins.truncate(n.div_ceil(2));
}

impl Bin {
    /// The majority by one candidate and its lead (Boyer & Moore 1981): exact where a stage has
    /// more than half, a good guess elsewhere.
    fn vote(&mut self, stage: u32, busy: u64) {
        self.busy += busy;
        self.count(stage, busy);
    }

    fn count(&mut self, stage: u32, votes: u64) {
        if stage == self.stage {
            self.lead += votes;
        } else if votes > self.lead {
            (self.stage, self.lead) = (stage, votes - self.lead);
        } else {
            self.lead -= votes;
        }
    }

    fn and(self, other: Bin) -> Bin {
        let mut both = Bin {
            busy: self.busy + other.busy,
            tasks: self.tasks + other.tasks,
            failed: self.failed + other.failed,
            ..self
        };
        both.count(other.stage, other.lead);
        both
    }
}

impl Moved {
    pub(super) fn and(self, other: Moved) -> Moved {
        Moved {
            bytes_read: self.bytes_read + other.bytes_read,
            bytes_written: self.bytes_written + other.bytes_written,
            rss_bytes: self.rss_bytes.max(other.rss_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Traffic = Traffic { bytes_read: 10_001, bytes_written: 0, reads: 1, writes: 0 };

    fn span(start: u64, end: u64, stage: u32) -> Span {
        Span { start, end, stage, task: 0, failed: false }
    }

    #[test]
    fn no_time_is_lost_however_wide_bins_become() {
        let mut timeline = Timeline::default();
        let lane = timeline.lane("w");
        let mut t = 0;
        for i in 0..10_000 {
            timeline.ran(lane, span(t, t + 70 + i % 50, (i / 1000) as u32), READ);
            t += 200;
        }
        let bins = &timeline.lanes[lane].bins;
        assert!(bins.len() <= N_BINS && bins.len() > N_BINS / 2 - 2, "{}", bins.len());
        assert_eq!(
            bins.iter().map(|b| b.busy).sum::<u64>(),
            (0..10_000).map(|i| 70 + i % 50).sum::<u64>()
        );
        assert_eq!(bins.iter().map(|b| b.tasks).sum::<u32>(), 10_000);
        assert_eq!(
            timeline.moved.iter().map(|m| m.bytes_read).sum::<u64>(),
            10_000 * READ.bytes_read
        );
        assert!(bins.iter().all(|b| b.busy <= timeline.width));
        assert_eq!((bins[0].stage, bins[bins.len() - 1].stage), (0, 9));
        assert!(timeline.spans().is_none());
    }

    #[test]
    fn a_task_that_outlasts_many_bins_is_in_all_of_them() {
        let mut timeline = Timeline::default();
        let lane = timeline.lane("w");
        timeline.ran(lane, span(0, 1_000_000, 3), READ);
        assert_eq!(timeline.moved.iter().map(|m| m.bytes_read).sum::<u64>(), READ.bytes_read);
        assert!(timeline.moved.iter().all(|m| m.bytes_read < READ.bytes_read / 100));
        let bins = &timeline.lanes[lane].bins;
        assert_eq!(bins.iter().map(|b| b.busy).sum::<u64>(), 1_000_000);
        assert!(bins.iter().all(|b| b.stage == 3));
        assert_eq!(timeline.spans().map(<[_]>::len), Some(1));
    }

    #[test]
    fn many_workers_share_a_lane() {
        let mut timeline = Timeline::default();
        for i in 0..10_000 {
            let lane = timeline.lane(&format!("w{i}"));
            timeline.ran(lane, span(i, i + 5, 0), READ);
        }
        assert_eq!((timeline.lanes.len(), timeline.by_name.len()), (MAX_LANES, 8 * MAX_LANES));
        assert_eq!(timeline.lane("w3"), 3);
        assert_eq!(timeline.n_others(), 7 * MAX_LANES);
    }
}
