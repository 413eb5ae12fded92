//! A plan: stages over arrays, checked before anything runs.
//!
//! [`lower()`](lower::lower) creates a [`Plan`] from a graph, and [`Plan::finalize`] checks it and
//! projects its memory. Only a [`FinalizedPlan`] can run. Deserialization runs the same check.
//! `stage` defines stages, and `check` defines the checks.

pub(crate) mod access;
mod check;
pub(crate) mod chunks;
pub mod explain;
pub(crate) mod inline;
pub(crate) mod layout;
mod local;
pub(crate) mod loops;
pub mod lower;
mod read_counts;
pub mod reads;
pub(crate) mod rechunk;
mod scope;
mod stage;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod traffic;

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
pub(crate) use layout::MAX_PREFETCH_LIST;
pub use layout::{InputLayout, OutputLayout, ReadMode, StageLayout};
pub use local::{LocalMemory, LocalProjection};
pub(crate) use scope::Scope;
pub use stage::{ChunkCache, OutAxis, Stage, StageInput, StageOutput};
pub(crate) use traffic::MAX_PARTS;

/// The version of the plan format. Plans of other versions are rejected.
pub const FORMAT: u32 = 3;

/// The version of the engine. Plans of other versions are rejected, because the engine determines
/// stages and their memory.
pub const ENGINE: &str = env!("CARGO_PKG_VERSION");

/// The maximum number of decoded chunks of an array that a worker caches.
pub(crate) const MAX_CACHED_CHUNKS: u64 = 4096;

/// The index of an array in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ArrayId(pub usize);

/// The index of a stage in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StageId(pub usize);

/// Stages in topological order, and the arrays that they read and write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The version of the plan format, [`FORMAT`].
    pub format: u32,
    /// The version of the engine that created the plan, [`ENGINE`].
    pub engine: String,
    /// The maximum memory of a task in bytes.
    pub allowed_mem: u64,
    /// The memory in bytes that a task may use for optimizations, which leaves room for other tasks
    /// of the plan. At most `allowed_mem`.
    #[serde(rename = "growth_mem")]
    pub soft_mem: u64,
    /// The part of `allowed_mem` in bytes that is reserved for the program itself.
    pub reserved_mem: u64,
    /// The number of concurrent tasks for which the plan was created.
    pub parallelism: u64,
    /// True if the work directory is accessed over a network, whose client buffers bytes in
    /// transfer.
    pub remote_work: bool,
    /// The arrays that stages read and write.
    pub arrays: Vec<PlanArray>,
    /// The stages, each after the stages on which it depends.
    pub stages: Vec<Stage>,
    /// The metadata to publish after all stages.
    pub publications: Vec<Publication>,
}

impl Plan {
    /// Returns the bytes that a process holds once, for all of its tasks.
    pub fn process_mem(&self) -> u64 {
        self.reserved_mem.saturating_add(self.repository_mem())
    }

    /// Returns the additional bytes that the driver's process holds for the commit, if outputs are
    /// in a repository.
    pub fn commit_mem(&self) -> u64 {
        let chunks = |a: &PlanArray| match &a.place {
            Place::Output { url, .. } if is_in_repository(url) => a.info.objects().n_chunks(),
            _ => 0,
        };
        commit_bytes(self.arrays.iter().map(chunks).fold(0, u64::saturating_add))
    }

    /// Returns the part of [`process_mem`](Plan::process_mem) for repositories. A process holds the
    /// references to their chunks until it ends.
    pub fn repository_mem(&self) -> u64 {
        Repositories::of(&self.arrays).bytes()
    }
}

/// Statistics of the arrays of a plan that are in repositories.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Repositories {
    any: bool,
    /// The total number of chunks of the arrays that are read.
    chunks: u64,
    /// The number of chunks of the array with most chunks.
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

    /// Returns the bytes that a process holds for repositories.
    pub(crate) fn bytes(&self) -> u64 {
        repository_bytes(self.any, self.chunks, self.most)
    }
}

/// An array that a plan reads or writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanArray {
    /// The display name.
    pub name: String,
    /// The dtype, chunk grid and encoding.
    pub info: ArrayInfo,
    /// The location of the chunks.
    pub place: Place,
}

/// The location of an array's chunks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A store that the plan only reads.
    Input {
        /// The URL of the store.
        url: String,
        /// The path of the array in the store.
        path: String,
        /// The hash of the array's metadata at planning time.
        tag: String,
    },
    /// A store that the plan writes.
    Output {
        /// The URL of the store.
        url: String,
        /// The path of the array in the store.
        path: String,
    },
    /// The run's folder in the work directory.
    Work,
    /// The plan itself: the bytes of the values in C order, as hexadecimal text.
    Constant(String),
    /// No location: the values follow from indices.
    Generated(Generate),
}

/// The metadata of an output array. A run writes it last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Publication {
    /// The array.
    pub array: ArrayId,
    /// The `zarr.json` of the array.
    pub document: Value,
    /// The `zarr.json` of the parent group, written if the group has none.
    pub group: Option<Value>,
    /// True if an existing array or group may be replaced.
    pub overwrite: bool,
    /// The part of the array that the run writes.
    #[serde(default)]
    pub mode: Mode,
    /// True if the parent group gets consolidated metadata. Existing consolidated metadata are
    /// always updated.
    #[serde(default)]
    pub consolidated: bool,
}

/// The part of a published array that a run writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The whole array.
    #[default]
    Whole,
    /// Only the metadata. Later runs write the values, region by region.
    Metadata,
    /// The values of a region of an existing array, whose metadata do not change.
    Region {
        /// The hash of the metadata at planning time.
        tag: String,
    },
}

/// The error for a computation that cannot be planned, or for a plan that cannot run.
#[derive(Clone, Debug, Error)]
#[allow(missing_docs)]
pub enum PlanError {
    #[error(
        "stage `{stage}` needs {} per task, but allowed_mem is {}:\n{estimate}\n\nhint: {advice}",
        distinct_size(*projected, *allowed),
        distinct_size(*allowed, *projected)
    )]
    ExceedsMemory {
        stage: String,
        projected: u64,
        allowed: u64,
        estimate: MemoryEstimate,
        advice: String,
    },
    #[error(
        "one task of stage `{stage}` needs {}, but local_mem is {} (hint: raise local_mem)",
        size(*projected), size(*allowed)
    )]
    ExceedsLocalMemory { stage: String, projected: u64, allowed: u64 },
    #[error("malformed plan: {0}")]
    Malformed(String),
    #[error(
        "the plan has format {found}, but this program reads format {FORMAT} (hint: create the \
         plan again with this version)"
    )]
    Format { found: u32 },
    #[error(
        "the plan was created by Freestone {found}, but this program is Freestone {ENGINE} (hint: \
         use version {found}, or create the plan again with this version)"
    )]
    Engine { found: String },
    #[error("`{array}`: {error}")]
    Codec { array: String, error: CodecError },
    #[error("invalid codec for intermediate arrays: {0}")]
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

/// Returns the error for an inconsistent plan.
pub(crate) fn malformed(why: impl Into<String>) -> PlanError {
    PlanError::Malformed(why.into())
}

/// A checked plan, with the layout of each stage.
#[derive(Clone, PartialEq)]
pub struct FinalizedPlan {
    plan: Plan,
    layouts: Vec<StageLayout>,
    run: RunId,
}

impl fmt::Debug for FinalizedPlan {
    /// Writes the run id, the names of the stages, the number of tasks and the projected memory.
    /// Read maps, constants and layouts are omitted, because they may be long.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages: Vec<&str> = self.plan.stages.iter().map(|s| s.name.as_str()).collect();
        let n_tasks = self.plan.stages.iter().map(Stage::n_tasks).fold(0, u64::saturating_add);
        f.debug_struct("FinalizedPlan")
            .field("run_id", &self.run.0)
            .field("stages", &stages)
            .field("n_tasks", &n_tasks)
            .field("projected_mem", &self.projected_mem())
            .finish_non_exhaustive()
    }
}

/// The id of a run: the hash of the finalized plan's bytes. Equal plans have equal ids.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunId(String);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Plan {
    /// Checks the plan and projects its memory.
    ///
    /// Cost: a few microseconds per stage, independent of the number of chunks and tasks.
    ///
    /// # Errors
    /// Returns an error if a stage exceeds `allowed_mem`, which names the stage that needs most, or
    /// if the plan is inconsistent.
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
            layouts.push(StageLayout::of(scope, stage)?.with_window(scope, stage)?);
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
        serialize(&self, |bytes| hash.update(bytes))?;
        let run = RunId(hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect());
        Ok(FinalizedPlan { plan: self, layouts, run })
    }

    /// Returns the arrays and limits on which the layouts of the stages depend.
    pub(crate) fn scope(&self) -> Scope<'_> {
        Scope {
            arrays: &self.arrays,
            remote_work: self.remote_work,
            soft_mem: self.soft_mem,
            parallelism: self.parallelism,
            process_mem: self.process_mem(),
            repository_mem: self.repository_mem(),
        }
    }

    /// Returns an array.
    pub fn array(&self, id: ArrayId) -> &PlanArray {
        &self.arrays[id.0]
    }
}

impl FinalizedPlan {
    /// Returns the plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Returns the layout of a stage.
    pub fn layout(&self, stage: StageId) -> &StageLayout {
        &self.layouts[stage.0]
    }

    /// Returns the stages with their layouts.
    pub fn stages(&self) -> impl Iterator<Item = (StageId, &Stage, &StageLayout)> {
        self.plan.stages.iter().zip(&self.layouts).enumerate().map(|(i, (s, l))| (StageId(i), s, l))
    }

    /// Returns the id of the run.
    pub fn run_id(&self) -> &RunId {
        &self.run
    }

    /// Returns the projected memory of a task of the stage that needs most, including reserved
    /// memory.
    pub fn projected_mem(&self) -> u64 {
        self.layouts.iter().map(|l| l.estimate.total()).max().unwrap_or(self.plan.process_mem())
    }

    /// Serializes the plan.
    ///
    /// # Errors
    /// Returns an error if serialization fails, which does not happen for a finalized plan.
    pub fn to_bytes(&self) -> Result<Vec<u8>, PlanError> {
        // Count the bytes first: a growing vector takes up to three times the final length.
        let mut n = 0;
        serialize(&self.plan, |bytes| n += bytes.len())?;
        let mut text = Vec::with_capacity(n);
        serialize(&self.plan, |bytes| text.extend_from_slice(bytes))?;
        Ok(text)
    }

    /// Deserializes and checks a plan.
    ///
    /// # Errors
    /// Returns the errors of [`Plan::finalize`].
    pub fn from_bytes(bytes: &[u8]) -> Result<FinalizedPlan, PlanError> {
        // A plan of another version may have other fields. Report the version, not the fields.
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

/// The version fields of a serialized plan.
#[derive(Deserialize)]
struct Versions {
    format: u32,
    engine: String,
}

/// Returns a size with a unit, or in bytes if the unit would hide the difference from `other`.
fn distinct_size(bytes: u64, other: u64) -> String {
    if size(bytes).to_string() == size(other).to_string() {
        format!("{bytes} bytes")
    } else {
        size(bytes).to_string()
    }
}

/// Calls `f` with the parts of the serialized plan. Plans with long index lists are large, so the
/// text is not buffered as a whole.
fn serialize(plan: &Plan, f: impl FnMut(&[u8])) -> Result<(), PlanError> {
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

/// Encodes bytes as hexadecimal text.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut text = String::with_capacity(2 * bytes.len());
    for b in bytes {
        let _ = write!(text, "{b:02x}");
    }
    text
}

/// Decodes hexadecimal text. Returns `None` if the text is invalid.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let digit = |c: u8| (c as char).to_digit(16).map(|d| d as u8);
    digits.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}
