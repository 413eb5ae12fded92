//! The tasks of each worker over time, with throughput and memory, in bounded memory.
//!
//! Time is divided into [`N_BINS`] bins. When the run outlasts them, neighbours are merged, which
//! doubles the width of all bins. The first [`MAX_SPANS`] tasks are also kept individually. A run
//! with no more tasks is drawn task by task.

use std::collections::HashMap;

use freestone_engine::storage::reader::Traffic;

/// The maximum number of bins.
pub(super) const N_BINS: usize = 512;
/// The maximum number of lanes. Further workers share the last lane.
pub(super) const MAX_LANES: usize = 64;
/// The maximum number of tasks that are kept individually.
pub(super) const MAX_SPANS: usize = 1200;
/// The initial width of a bin in microseconds.
const INITIAL_WIDTH: u64 = 16;

/// The timeline of a run. Times are in microseconds since its start.
#[derive(Debug)]
pub(super) struct Timeline {
    /// The width of a bin.
    pub(super) width: u64,
    pub(super) lanes: Vec<Lane>,
    pub(super) samples: Vec<Sample>,
    /// The end of the last task.
    pub(super) end: u64,
    by_name: HashMap<String, usize>,
    spans: Vec<(usize, Span)>,
    n_spans: usize,
}

/// The bins of a worker.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) name: String,
    pub(super) bins: Vec<Bin>,
}

/// A worker's tasks in one bin.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bin {
    /// The time in tasks in microseconds, summed over the workers of the lane.
    pub(super) busy: u64,
    /// The number of tasks that ended in the bin.
    pub(super) tasks: u32,
    pub(super) failed: u32,
    /// The stage with most of the time.
    pub(super) stage: u32,
    /// The lead of that stage over the others.
    lead: u64,
}

/// Throughput and memory in one bin.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sample {
    pub(super) bytes_read: u64,
    pub(super) bytes_written: u64,
    /// The maximum measured resident memory.
    pub(super) rss_bytes: u64,
}

/// The time range of a task.
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
            width: INITIAL_WIDTH,
            lanes: Vec::new(),
            samples: Vec::new(),
            end: 0,
            by_name: HashMap::new(),
            spans: Vec::new(),
            n_spans: 0,
        }
    }
}

impl Timeline {
    /// Returns the lane of a worker.
    pub(super) fn lane(&mut self, worker: &str) -> usize {
        if let Some(lane) = self.by_name.get(worker) {
            return *lane;
        }
        let lane = self.lanes.len().min(MAX_LANES - 1);
        if lane == self.lanes.len() {
            self.lanes.push(Lane { name: worker.to_owned(), bins: Vec::new() });
        }
        // Replaced workers have new names, of which a limited number is stored.
        if self.by_name.len() < 8 * MAX_LANES {
            self.by_name.insert(worker.to_owned(), lane);
        }
        lane
    }

    /// Returns the number of workers that share the last lane with the one that it is named for.
    pub(super) fn n_others(&self) -> usize {
        self.by_name.len().saturating_sub(self.lanes.len())
    }

    /// Adds a task that ran on a worker.
    pub(super) fn add_task(&mut self, lane: usize, span: Span, traffic: Traffic) {
        self.end = self.end.max(span.end);
        self.extend_to(span.end);
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
        if self.samples.len() <= last {
            self.samples.resize(last + 1, Sample::default());
        }
        let length = span.end - span.start;
        let mut assigned = (0, 0);
        for (at, bin) in lane.bins.iter_mut().enumerate().take(last + 1).skip(first) {
            let begin = at as u64 * width;
            let until = span.end.min(begin + width);
            bin.vote(span.stage, until - span.start.max(begin));
            // Bytes are assumed to be spread evenly over the task's time.
            let share = |bytes: u64| {
                if at == last {
                    bytes
                } else {
                    (u128::from(bytes) * u128::from(until - span.start) / u128::from(length)) as u64
                }
            };
            let so_far = (share(traffic.bytes_read), share(traffic.bytes_written));
            self.samples[at].bytes_read += so_far.0 - assigned.0;
            self.samples[at].bytes_written += so_far.1 - assigned.1;
            assigned = so_far;
        }
        lane.bins[last].tasks += 1;
        lane.bins[last].failed += u32::from(span.failed);
    }

    /// Adds a measurement of resident memory.
    pub(super) fn add_memory(&mut self, at: u64, rss_bytes: u64) {
        self.extend_to(at);
        let at = (at / self.width) as usize;
        if self.samples.len() <= at {
            self.samples.resize(at + 1, Sample::default());
        }
        self.samples[at].rss_bytes = self.samples[at].rss_bytes.max(rss_bytes);
    }

    /// Returns all tasks with their lanes, if there are at most [`MAX_SPANS`].
    pub(super) fn spans(&self) -> Option<&[(usize, Span)]> {
        (self.n_spans <= MAX_SPANS).then_some(&self.spans)
    }

    /// Widens the bins until they include a time.
    fn extend_to(&mut self, at: u64) {
        while at / self.width >= N_BINS as u64 {
            self.widen();
        }
    }

    /// Merges neighbouring bins.
    fn widen(&mut self) {
        self.width *= 2;
        for lane in &mut self.lanes {
            merge_pairs(&mut lane.bins, Bin::merge);
        }
        merge_pairs(&mut self.samples, Sample::merge);
    }
}

fn merge_pairs<T: Copy>(bins: &mut Vec<T>, merge: fn(T, T) -> T) {
    let n = bins.len();
    for i in 0..n.div_ceil(2) {
        bins[i] = if 2 * i + 1 < n { merge(bins[2 * i], bins[2 * i + 1]) } else { bins[2 * i] };
    }
    bins.truncate(n.div_ceil(2));
}

impl Bin {
    /// Adds time to the majority vote of Boyer & Moore (1981), which holds one candidate and its
    /// lead: exact if a stage has more than half of the time, otherwise an estimate.
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

    fn merge(self, other: Bin) -> Bin {
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

impl Sample {
    pub(super) fn merge(self, other: Sample) -> Sample {
        Sample {
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
    fn widened_bins_keep_all_time() {
        let mut timeline = Timeline::default();
        let lane = timeline.lane("w");
        let mut t = 0;
        for i in 0..10_000 {
            timeline.add_task(lane, span(t, t + 70 + i % 50, (i / 1000) as u32), READ);
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
            timeline.samples.iter().map(|m| m.bytes_read).sum::<u64>(),
            10_000 * READ.bytes_read
        );
        assert!(bins.iter().all(|b| b.busy <= timeline.width));
        assert_eq!((bins[0].stage, bins[bins.len() - 1].stage), (0, 9));
        assert!(timeline.spans().is_none());
    }

    #[test]
    fn a_long_task_is_in_all_its_bins() {
        let mut timeline = Timeline::default();
        let lane = timeline.lane("w");
        timeline.add_task(lane, span(0, 1_000_000, 3), READ);
        assert_eq!(timeline.samples.iter().map(|m| m.bytes_read).sum::<u64>(), READ.bytes_read);
        assert!(timeline.samples.iter().all(|m| m.bytes_read < READ.bytes_read / 100));
        let bins = &timeline.lanes[lane].bins;
        assert_eq!(bins.iter().map(|b| b.busy).sum::<u64>(), 1_000_000);
        assert!(bins.iter().all(|b| b.stage == 3));
        assert_eq!(timeline.spans().map(<[_]>::len), Some(1));
    }

    #[test]
    fn excess_workers_share_a_lane() {
        let mut timeline = Timeline::default();
        for i in 0..10_000 {
            let lane = timeline.lane(&format!("w{i}"));
            timeline.add_task(lane, span(i, i + 5, 0), READ);
        }
        assert_eq!((timeline.lanes.len(), timeline.by_name.len()), (MAX_LANES, 8 * MAX_LANES));
        assert_eq!(timeline.lane("w3"), 3);
        assert_eq!(timeline.n_others(), 7 * MAX_LANES);
    }
}
