//! Reports of processes, and statistics of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::floor::Floor;

/// One run of one system in a new process; `peer.py` prints the same fields.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) versions: BTreeMap<String, String>,
    /// The wall time from the end of set-up until the results are written.
    pub(crate) wall_s: f64,
    pub(crate) cpu_s: f64,
    /// The peak of the whole process.
    pub(crate) peak_rss_bytes: u64,
    pub(crate) tasks: u64,
    /// The result, if it is one number.
    pub(crate) result: Option<f64>,
    /// Freestone's projection for the whole process.
    pub(crate) projected_bytes: Option<u64>,
    /// The growth of resident memory during the measurement, if that is measured.
    pub(crate) grown_bytes: Option<u64>,
}

/// All runs of one system.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) system: &'static str,
    pub(crate) samples: Vec<Sample>,
    /// The failure that ended the runs.
    pub(crate) failure: Option<String>,
}

/// A workload on all systems; Freestone's row is the first.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) workload: &'static str,
    pub(crate) rows: Vec<Row>,
    /// One per repetition, if the workload has a floor.
    pub(crate) floors: Vec<Floor>,
    pub(crate) notes: Vec<String>,
}

impl Row {
    pub(crate) fn new(system: &'static str) -> Row {
        Row { system, samples: Vec::new(), failure: None }
    }

    pub(crate) fn median(&self, of: impl Fn(&Sample) -> f64) -> Option<f64> {
        median(self.samples.iter().map(of))
    }

    pub(crate) fn wall_s(&self) -> Option<f64> {
        self.median(|s| s.wall_s)
    }

    pub(crate) fn cpu_s(&self) -> Option<f64> {
        self.median(|s| s.cpu_s)
    }

    pub(crate) fn peak_rss_bytes(&self) -> Option<f64> {
        self.median(|s| s.peak_rss_bytes as f64)
    }

    pub(crate) fn projected_bytes(&self) -> Option<u64> {
        self.samples.first()?.projected_bytes
    }

    /// Returns the version of the system.
    pub(crate) fn version(&self) -> Option<&str> {
        let package = self.system.trim_end_matches("-tuned");
        self.samples.first()?.versions.get(package).map(String::as_str)
    }
}

impl Measured {
    /// Returns the ratio of Freestone's median to that of another system.
    pub(crate) fn ratio(&self, system: &str, of: impl Fn(&Row) -> Option<f64>) -> Option<f64> {
        let theirs = self.rows.iter().find(|r| r.system == system)?;
        Some(of(self.rows.first()?)? / of(theirs)?)
    }

    /// Returns the CPU seconds of the whole workload at the floor.
    pub(crate) fn floor_s(&self) -> Option<f64> {
        median(self.floors.iter().map(Floor::total))
    }
}

/// Returns the median, or `None` without values.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[half]),
        _ => Some((sorted[half - 1] + sorted[half]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        for (values, expect) in [
            (vec![], None),
            (vec![3.0], Some(3.0)),
            (vec![9.0, 1.0, 2.0], Some(2.0)),
            (vec![4.0, 1.0], Some(2.5)),
        ] {
            assert_eq!(median(values.iter().copied()), expect, "{values:?}");
        }
    }

    #[test]
    fn reports_of_peers_are_parsed() {
        let line = r#"{
            "system": "dask", "workload": "many_small", "versions": {"dask": "2026.8.0"},
            "threads": 2, "codec": "zstd", "wall_s": 1.5, "cpu_s": 2.5, "peak_rss_bytes": 1000,
            "import_s": 0.1, "tasks": 7, "result": 0.25
        }"#;
        let sample: Sample = serde_json::from_str(line).unwrap();
        assert_eq!((sample.wall_s, sample.result, sample.projected_bytes), (1.5, Some(0.25), None));
        let row = Row { samples: vec![sample], ..Row::new("dask") };
        assert_eq!((row.version(), row.cpu_s()), (Some("2026.8.0"), Some(2.5)));
    }
}
