//! Settings and runs shared by tests and their child program.

use freestone::{Plan, Settings, Spec};
use freestone_engine::plan::LocalMemory;

/// Returns a small spec that is equal on all machines.
pub fn spec_in(work_dir: &str) -> Spec {
    let settings = Settings {
        work_dir: Some(work_dir.into()),
        allowed_mem: Some(100_000_000),
        local_mem: Some(1_000_000_000),
        threads: Some(2),
        parallelism: Some(2),
        ..Settings::default()
    };
    settings.resolve().unwrap()
}

/// Returns a spec with memory for tasks only.
pub fn without_room(spec: &Spec, planned: &Plan, slots: usize) -> Spec {
    let local = LocalMemory { limit: spec.local_mem, shared: true };
    let projection = planned.finalized().projected_local_mem(slots, &local).unwrap();
    Spec { local_mem: projection.base + projection.tasks, ..spec.clone() }
}

/// A run with plain arrays as results.
pub mod driver {
    use freestone::{DType, Plan, Spec, Target};
    use freestone_engine::storage::{LocalStore, Store, is_remote_url};
    use serde::{Deserialize, Serialize};

    pub const SLOTS: usize = 2;

    /// When the driver is killed.
    #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
    pub enum Moment {
        /// After a number of finished tasks.
        Tasks(u64),
        /// Before the next write of a chunk, after a number of tasks.
        Chunk(u64),
        /// After the end of all stages, while the last journal entries are in memory.
        StagesEnded,
        /// Before the results are flushed, with a complete journal.
        Flush,
        /// Before the next result is published, after a number of results.
        Published(u64),
    }

    /// What the child is asked to do.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct Asked {
        /// Where everything is: a folder, or a prefix of an object store.
        pub folder: String,
        /// `threads`, `memory` or `processes`.
        pub on: String,
        /// The command's binary, for processes.
        pub binary: String,
        /// When to stop.
        pub moment: Option<Moment>,
        /// The run to resume, if it is not a new one.
        pub resume: Option<String>,
        /// A pause after each outcome.
        pub slow_ms: u64,
    }

    /// Plans several hundred tasks: rechunks between rows and columns, a sum, and a result of fill
    /// values.
    ///
    /// With `memory`, intermediates are in memory and are lost with the process; tasks run on
    /// threads. With the others, no memory tier exists.
    pub fn plan(folder: &str, results: &str, on: &str) -> (Plan, Spec) {
        let x = freestone::random_uniform([2560, 96], 0.5, 1.0, 7, DType::Float64, [16, 96]);
        let columns = x.rechunk([2560, 2]) * 2.0;
        let rows = columns.rechunk([16, 96]) + 1.0;
        let zeros = &rows * 0.0;
        let group = format!("{folder}/{results}");
        let targets = [
            Target::in_group(&rows, &group, "rows"),
            Target::in_group(&columns.sum(0), &group, "sums"),
            Target::in_group(&zeros, &group, "zeros"),
        ];
        let work_dir = format!("{folder}/work");
        let spec = if is_remote_url(&work_dir) {
            super::spec_in(&work_dir)
        } else {
            super::spec_in(LocalStore::new(work_dir).url())
        };
        let planned = freestone::plan(&targets, &spec).unwrap();
        let spec = if on == "memory" { spec } else { super::without_room(&spec, &planned, SLOTS) };
        (planned, spec)
    }
}

/// A run that overwrites an array of a repository.
pub mod repository {
    use freestone::sessions::{MAIN, Repository};
    use freestone::{DType, Plan, Session, Spec};
    use serde::{Deserialize, Serialize};

    /// When the driver is killed.
    #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
    pub enum Moment {
        /// After a number of finished tasks.
        Tasks(u64),
        /// Before the commit, with all tasks finished.
        BeforeCommit,
        /// A number of microseconds after the start of the commit. The machine determines which
        /// part of the commit that is, and which array a reader sees.
        InCommit(u64),
        /// After the commit, before the driver knows of it.
        AfterCommit,
    }

    /// What the child is asked to do.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct Asked {
        /// Where everything is.
        pub folder: String,
        /// `threads` or `processes`.
        pub on: String,
        /// The command's binary, for processes.
        pub binary: String,
        /// When to stop.
        pub moment: Moment,
    }

    pub const SHAPE: [u64; 2] = [1280, 64];

    /// Rechunks from rows to columns and back, and overwrites the array.
    pub fn overwriting(folder: &str) -> (Plan, Spec, Session) {
        let repository = Repository::open(&format!("{folder}/repository")).unwrap();
        let session = Session::begin(&repository, MAIN).unwrap();
        let x = freestone::random_uniform(SHAPE, 0.5, 1.0, 7, DType::Float64, [16, 64]);
        let rows = (x.rechunk([1280, 2]) * 2.0).rechunk([16, 64]);
        let spec = super::spec_in(&format!("{folder}/work"));
        let planned =
            freestone::plan(&[session.target(&rows, "data/rows").overwrite(true)], &spec).unwrap();
        let spec = super::without_room(&spec, &planned, 2);
        (planned, spec, session)
    }
}
