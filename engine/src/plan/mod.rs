//! A plan: stages over arrays, checked before anything runs.
//!
//! [`lower()`](lower::lower) makes a [`Plan`] of a graph; [`Plan::finalize`] checks it and projects
//! its memory. Only a [`FinalizedPlan`] runs, and reading one back from bytes goes through the same
//! check. What a stage is says `stage`, what is checked `check`.

mod check;
pub(crate) mod chunks;
pub mod explain;
pub(crate) mod inline;
pub(crate) mod layout;
mod local;
pub(crate) mod looks;
pub mod lower;
mod read_counts;
pub mod reads;
pub(crate) mod rechunk;
mod scope;
mod stage;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod traffic;
pub(crate) mod walk;

use std::fmt;

use freestone_kernels::Generate;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::grid::GridError;
use crate::memory::{MemoryEstimate, commit_bytes, repository_bytes, size};
use crate::program::ProgramError;
use crate::readmap::ReadMapError;
use crate::storage::array::ArrayInfo;
use crate::storage::codec::CodecError;
use crate::storage::{EncodingError, is_in_repository};

pub use explain::PlanExplanation;
pub(crate) use layout::LISTED;
pub use layout::{InputLayout, OutputLayout, ReadMode, StageLayout};
pub use local::{LocalMemory, LocalProjection};
pub(crate) use scope::Scope;
pub use stage::{Keep, OutAxis, Stage, StageInput, StageOutput};
pub(crate) use traffic::MAX_PARTS;

/// Version of the plan's format. A plan of another version is refused.
pub const FORMAT: u32 = 3;

/// Version of the engine. A plan of another version is refused: stages and their memory follow from
/// the engine.
pub const ENGINE: &str = env!("CARGO_PKG_VERSION");

/// A worker keeps no more decoded chunks of an array than this.
pub(crate) const MAX_KEPT: u64 = 4096;

/// Number of an array in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ArrayId(pub usize);

/// Number of a stage in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StageId(pub usize);

/// Stages in an order in which they can run, and the arrays between them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the engine that made it.
    pub engine: String,
    /// Bytes that a task may hold.
    pub allowed_mem: u64,
    /// Bytes of those that it may grow to where that only saves time, so that others of the plan
    /// have room beside it.
    pub growth_mem: u64,
    /// Bytes of those that are not arrays.
    pub reserved_mem: u64,
    /// Tasks that it was made to keep busy.
    pub parallelism: u64,
    /// The work directory is across a network, which holds bytes once more while they move.
    pub remote_work: bool,
    /// The arrays that stages read and write.
    pub arrays: Vec<PlanArray>,
    /// The stages; each comes after those that it waits for.
    pub stages: Vec<Stage>,
    /// What is published at the end.
    pub publications: Vec<Publication>,
}

impl Plan {
    /// Bytes that a process has once, for all of its tasks.
    pub fn process_mem(&self) -> u64 {
        self.reserved_mem.saturating_add(self.repository_mem())
    }

    /// Bytes that the driver's process holds besides for the commit, where outputs are in a
    /// repository.
    pub fn commit_mem(&self) -> u64 {
        let chunks = |a: &PlanArray| match &a.place {
            Place::Output { url, .. } if is_in_repository(url) => a.info.objects().n_chunks(),
            _ => 0,
        };
        commit_bytes(self.arrays.iter().map(chunks).fold(0, u64::saturating_add))
    }

    /// Bytes of those for repositories, where arrays are in some: what is known of chunks there is
    /// held as long as the process lives.
    pub fn repository_mem(&self) -> u64 {
        Repositories::of(&self.arrays).bytes()
    }
}

/// The arrays of a plan that are in repositories.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Repositories {
    any: bool,
    /// Chunks of those that are read: of all, and of the one that has most.
    chunks: u64,
    most: u64,
}

impl Repositories {
    pub(crate) fn of(arrays: &[PlanArray]) -> Repositories {
        let mut found = Repositories::default();
        arrays.iter().for_each(|a| found.add(a));
        found
    }

    pub(crate) fn add(&mut self, array: &PlanArray) {
        let (Place::Input { url, .. } | Place::Output { url, .. }) = &array.place else { return };
        if !is_in_repository(url) {
            return;
        }
        self.any = true;
        if matches!(array.place, Place::Input { .. }) {
            let n = array.info.objects().n_chunks();
            (self.chunks, self.most) = (self.chunks.saturating_add(n), self.most.max(n));
        }
    }

    /// Bytes that a process holds for them.
    pub(crate) fn bytes(&self) -> u64 {
        repository_bytes(self.any, self.chunks, self.most)
    }
}

/// An array that a plan reads or writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanArray {
    /// For people.
    pub name: String,
    /// How its chunks lie.
    pub info: ArrayInfo,
    /// Where they are.
    pub place: Place,
}

/// Where an array's chunks are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// In a store that the plan only reads.
    Input {
        /// The store.
        url: String,
        /// The array's path there.
        path: String,
        /// Hash of its metadata when the plan was made.
        tag: String,
    },
    /// In a store that the plan writes.
    Output {
        /// The store.
        url: String,
        /// The array's path there.
        path: String,
    },
    /// In the run's folder of the work directory.
    Work,
    /// In the plan itself: the values' bytes in C order, as hexadecimal text.
    Constant(String),
    /// Nowhere: values follow from indices.
    Generated(Generate),
}

/// An output array and what its metadata will say; the last thing that a run writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Publication {
    /// The array.
    pub array: ArrayId,
    /// Its `zarr.json`.
    pub document: Value,
    /// The `zarr.json` of the group that holds it, written if there is none yet.
    pub group: Option<Value>,
    /// What is there may be replaced.
    pub overwrite: bool,
    /// How much of it the run makes.
    #[serde(default)]
    pub mode: Mode,
    /// The group that holds it gets consolidated metadata. What has some is kept up in any case.
    #[serde(default)]
    pub consolidated: bool,
}

/// How much of a published array a run makes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// All of it.
    #[default]
    Whole,
    /// Its metadata: the values are written by later runs, region by region.
    Metadata,
    /// The values of a region of an array that is there; its metadata stay as they are.
    Region {
        /// Hash of the metadata when the plan was made.
        tag: String,
    },
}

/// Why a plan does not run.
#[derive(Clone, Debug, Error)]
#[allow(missing_docs)]
pub enum PlanError {
    #[error("stage `{stage}` needs {} per task, but allowed_mem is \
        {}:\n{estimate}\n{advice}", apart(*projected, *allowed), apart(*allowed, *projected))]
    ExceedsMemory {
        stage: String,
        projected: u64,
        allowed: u64,
        estimate: MemoryEstimate,
        advice: String,
    },
    #[error("the local process may hold {} (local_mem), but one task of stage `{stage}` needs {}: \
        raise local_mem", size(*allowed), size(*projected))]
    ExceedsLocalMemory { stage: String, projected: u64, allowed: u64 },
    #[error("the plan is malformed: {0}")]
    Malformed(String),
    #[error(
        "the plan has format {found}, this program reads format {FORMAT}: make the plan again with \
            this version"
    )]
    Format { found: u32 },
    #[error(
        "the plan was made by Freestone {found}, this program is Freestone {ENGINE} (hint: use \
            version {found}, or make the plan again with this one)"
    )]
    Engine { found: String },
    #[error("`{array}`: {error}")]
    Codec { array: String, error: CodecError },
    #[error("codec of intermediate arrays: {0}")]
    Encoding(#[from] EncodingError),
    #[error("{0}")]
    BadOutput(String),
    #[error(transparent)]
    Grid(#[from] GridError),
    #[error(transparent)]
    ReadMap(#[from] ReadMapError),
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// The error of a plan that contradicts itself.
pub(crate) fn malformed(why: impl Into<String>) -> PlanError {
    PlanError::Malformed(why.into())
}

/// A plan that was checked, with the memory of each stage's tasks.
#[derive(Clone, Debug, PartialEq)]
pub struct FinalizedPlan {
    plan: Plan,
    layouts: Vec<StageLayout>,
    run: RunId,
}

/// Hash of a finalised plan's bytes: the same plan is the same run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunId(String);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Plan {
    /// Checks the plan and projects its memory; the only way to something that runs.
    ///
    /// Cost: a few microseconds a stage; nothing per chunk or task.
    ///
    /// # Errors
    /// Where a stage does not fit `allowed_mem` (the worst one is named), or the plan contradicts
    /// itself.
    pub fn finalize(self) -> Result<FinalizedPlan, PlanError> {
        if self.format != FORMAT {
            return Err(PlanError::Format { found: self.format });
        }
        self.check_arrays()?;
        let scope = self.scope();
        let mut layouts = Vec::with_capacity(self.stages.len());
        for (i, stage) in self.stages.iter().enumerate() {
            self.check_stage(i, stage).map_err(|e| match e {
                PlanError::Malformed(why) => {
                    PlanError::Malformed(format!("stage `{}`: {why}", stage.name))
                }
                other => other,
            })?;
            layouts.push(StageLayout::of(scope, stage)?.with_ahead(scope, stage)?);
        }
        self.check_writers()?;
        let worst = layouts.iter().zip(&self.stages).max_by_key(|(l, _)| l.estimate.total());
        if let Some((layout, stage)) = worst.filter(|(l, _)| l.estimate.total() > self.allowed_mem)
        {
            return Err(PlanError::ExceedsMemory {
                stage: stage.name.clone(),
                projected: layout.estimate.total(),
                allowed: self.allowed_mem,
                estimate: layout.estimate.clone(),
                advice: explain::advice(&self, stage),
            });
        }
        let mut hash = Sha256::new();
        written(&self, |bytes| hash.update(bytes))?;
        let run = RunId(hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect());
        Ok(FinalizedPlan { plan: self, layouts, run })
    }

    /// What the layout of its stages depends on.
    pub(crate) fn scope(&self) -> Scope<'_> {
        Scope {
            arrays: &self.arrays,
            remote_work: self.remote_work,
            growth_mem: self.growth_mem,
            process_mem: self.process_mem(),
            repository_mem: self.repository_mem(),
        }
    }

    /// An array.
    pub fn array(&self, id: ArrayId) -> &PlanArray {
        &self.arrays[id.0]
    }
}

impl FinalizedPlan {
    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How a stage's tasks run.
    pub fn layout(&self, stage: StageId) -> &StageLayout {
        &self.layouts[stage.0]
    }

    /// The stages with their layouts.
    pub fn stages(&self) -> impl Iterator<Item = (StageId, &Stage, &StageLayout)> {
        self.plan.stages.iter().zip(&self.layouts).enumerate().map(|(i, (s, l))| (StageId(i), s, l))
    }

    /// The run's name.
    pub fn run_id(&self) -> &RunId {
        &self.run
    }

    /// Projected memory of one task of the hungriest stage, reserved memory included.
    pub fn projected_mem(&self) -> u64 {
        self.layouts.iter().map(|l| l.estimate.total()).max().unwrap_or(self.plan.process_mem())
    }

    /// The bytes that travel.
    ///
    /// # Errors
    /// Never for a plan that was finalised; the type says that it could.
    pub fn to_bytes(&self) -> Result<Vec<u8>, PlanError> {
        // Counted first: a text that grows while it is written takes up to three times its length.
        let mut n = 0;
        written(&self.plan, |bytes| n += bytes.len())?;
        let mut text = Vec::with_capacity(n);
        written(&self.plan, |bytes| text.extend_from_slice(bytes))?;
        Ok(text)
    }

    /// Reads a plan back, and checks it as if it were new.
    ///
    /// # Errors
    /// As [`Plan::finalize`].
    pub fn from_bytes(bytes: &[u8]) -> Result<FinalizedPlan, PlanError> {
        // A plan of another version may have other fields, so versions are looked at before those
        // are missed.
        let parsed = serde_json::from_slice::<Plan>(bytes);
        let versions = match &parsed {
            Ok(plan) => Some(Versions { format: plan.format, engine: plan.engine.clone() }),
            Err(_) => serde_json::from_slice(bytes).ok(),
        };
        match versions {
            Some(Versions { format, .. }) if format != FORMAT => {
                Err(PlanError::Format { found: format })
            }
            Some(Versions { engine, .. }) if engine != ENGINE => {
                Err(PlanError::Engine { found: engine })
            }
            _ => parsed.map_err(|e| PlanError::Malformed(e.to_string()))?.finalize(),
        }
    }
}

/// What says of a plan's text whether this engine can read it.
#[derive(Deserialize)]
struct Versions {
    format: u32,
    engine: String,
}

/// A size in words, or in bytes where words would not tell it from another.
fn apart(bytes: u64, other: u64) -> String {
    if size(bytes).to_string() == size(other).to_string() {
        format!("{bytes} bytes")
    } else {
        size(bytes).to_string()
    }
}

/// Calls `f` with a plan's text, piece by piece: with long lists of indices it is better not held.
fn written(plan: &Plan, f: impl FnMut(&[u8])) -> Result<(), PlanError> {
    struct Pieces<F>(F);
    impl<F: FnMut(&[u8])> std::io::Write for Pieces<F> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            (self.0)(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    serde_json::to_writer(std::io::BufWriter::new(Pieces(f)), plan)
        .map_err(|e| PlanError::Malformed(e.to_string()))
}

/// Bytes as hexadecimal text.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut text = String::with_capacity(2 * bytes.len());
    for b in bytes {
        let _ = write!(text, "{b:02x}");
    }
    text
}

/// Bytes of hexadecimal text; `None` if it is none.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let digit = |c: u8| (c as char).to_digit(16).map(|d| d as u8);
    digits.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}
