//! The explanation of a plan as data, with its text. Commands also write it as JSON and draw it.
//!
//! An explanation performs no I/O. Its read counts come from the planner's visitor (`read_counts`),
//! or from the closed form (`traffic`) if counting takes too long.

mod advice;
mod names;
mod notes;
mod text;

use freestone_kernels::DType;
use serde::{Serialize, Serializer};

use super::traffic;
use super::{
    ArrayId, FinalizedPlan, Place, Plan, PlanArray, ReadMode, Scope, Stage, StageId, StageLayout,
};
use super::{read_counts, read_counts::MAX_READS};
use crate::memory::MemoryEstimate;

pub(super) use advice::advice;
pub(crate) use names::{counted, listed, term};

/// The explanation of a plan. Sizes are in bytes. Sizes of arrays are decoded sizes; codecs reduce
/// them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanExplanation {
    /// The id of the run.
    pub plan: String,
    /// The maximum memory of a task.
    pub allowed_mem: u64,
    /// The part of `allowed_mem` for the program itself.
    pub reserved_mem: u64,
    /// The projected memory of a task of the stage that needs most.
    pub projected_mem: u64,
    /// The number of tasks of all stages.
    pub tasks: u64,
    /// The reads of all stages.
    pub read: Traffic,
    /// The writes of all stages.
    pub written: Traffic,
    /// The stages in topological order.
    pub stages: Vec<StageExplanation>,
}

/// The explanation of a stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageExplanation {
    /// The name of the stage in progress and reports, such as `mean-003`.
    pub name: String,
    /// A description of the computation, such as `reduces 2 results along axis 0`.
    pub kernel: String,
    /// The number of tasks.
    pub tasks: u64,
    /// The shape of the largest task, in elements of the iteration space.
    pub task_shape: Vec<u64>,
    /// The shape of the largest block that a task loads at once.
    pub block_shape: Vec<u64>,
    /// The names of the stages on which this one depends.
    pub after: Vec<String>,
    /// The arrays that the stage reads.
    pub reads: Vec<ArrayRead>,
    /// The arrays that the stage writes.
    pub writes: Vec<ArrayWrite>,
    /// The projected memory of a task.
    pub projected_mem: u64,
    /// The projected memory by parts.
    #[serde(serialize_with = "by_part")]
    pub memory: MemoryEstimate,
    /// The reasons for the form of the stage.
    pub notes: Vec<String>,
}

/// An array of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArrayExplanation {
    /// The id of the array in the plan.
    pub id: usize,
    /// The name of the array.
    pub name: String,
    /// The role of the array in the plan.
    pub role: Role,
    /// The element type.
    pub dtype: DType,
    /// The number of elements along each axis.
    pub shape: Vec<u64>,
    /// The number of elements of a chunk along each axis.
    pub chunks: Vec<u64>,
    /// The number of elements of a shard along each axis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<Vec<u64>>,
    /// The first element of the region of a larger array that is read or written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<Vec<u64>>,
    /// The decoded size.
    pub bytes: u64,
    /// The location.
    pub place: String,
}

/// The role of an array in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// An existing array.
    Input,
    /// A result.
    Output,
    /// An array between two stages, in memory or in the work directory.
    Intermediate,
    /// An array whose values are part of the plan.
    Constant,
    /// An array whose values follow from indices.
    Generated,
}

/// The method by which an array is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadMethod {
    /// Each block lies inside one chunk.
    ChunkByChunk,
    /// Blocks are assembled from several chunks.
    Assembled,
    /// Only the needed parts of chunks are read. The chunks are not encoded.
    Partial,
    /// Nothing is read: the array is a constant or generated.
    NotRead,
}

/// The reads of a stage from an array.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArrayRead {
    /// The array.
    #[serde(flatten)]
    pub array: ArrayExplanation,
    /// The method.
    pub method: ReadMethod,
    /// The number of the stage's inputs that read the array.
    pub inputs: usize,
    /// The number of decoded chunks that are cached from task to task.
    pub cached_chunks: u64,
    /// The traffic of all tasks.
    pub traffic: Traffic,
}

/// The writes of a stage to an array.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArrayWrite {
    /// The array.
    #[serde(flatten)]
    pub array: ArrayExplanation,
    /// The expression of the values, truncated if long.
    pub formula: String,
    /// The traffic of all tasks.
    pub traffic: Traffic,
}

/// The number of storage requests, and their decoded bytes. A read is of a chunk or a part of one;
/// a write is of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// The total decoded bytes.
    pub bytes: u64,
    /// The number of requests.
    pub requests: u64,
    /// True if the figures are exact, not approximate.
    pub exact: bool,
}

impl Traffic {
    const NONE: Traffic = Traffic { bytes: 0, requests: 0, exact: true };

    fn of(requests: f64, bytes: f64, exact: bool) -> Traffic {
        Traffic { bytes: bytes.round() as u64, requests: requests.round() as u64, exact }
    }

    fn and(self, other: Traffic) -> Traffic {
        Traffic {
            bytes: self.bytes.saturating_add(other.bytes),
            requests: self.requests.saturating_add(other.requests),
            exact: self.exact && other.exact,
        }
    }
}

fn by_part<S: Serializer>(memory: &MemoryEstimate, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(memory.parts().iter().map(|(part, bytes)| (part, bytes)))
}

impl FinalizedPlan {
    /// Returns the explanation of the plan.
    ///
    /// Cost: independent of the number of chunks, as for planning.
    pub fn explain(&self) -> PlanExplanation {
        let plan = self.plan();
        let (scope, mut left) = (plan.scope(), MAX_READS);
        let stages: Vec<StageExplanation> = self
            .stages()
            .map(|(_, stage, layout)| explain_stage(plan, scope, stage, layout, &mut left))
            .collect();
        let reads = stages.iter().flat_map(|s| &s.reads).map(|r| r.traffic);
        let writes = stages.iter().flat_map(|s| &s.writes).map(|w| w.traffic);
        PlanExplanation {
            plan: self.run_id().to_string(),
            allowed_mem: plan.allowed_mem,
            reserved_mem: plan.reserved_mem,
            projected_mem: self.projected_mem(),
            tasks: plan.stages.iter().map(Stage::n_tasks).fold(0, u64::saturating_add),
            read: reads.fold(Traffic::NONE, Traffic::and),
            written: writes.fold(Traffic::NONE, Traffic::and),
            stages,
        }
    }
}

fn explain_stage(
    plan: &Plan,
    scope: Scope<'_>,
    stage: &Stage,
    layout: &StageLayout,
    left: &mut u64,
) -> StageExplanation {
    let reads = read_counts::reads(scope, stage, layout, left);
    let reads = reads.into_iter().map(|(id, read)| explain_read(plan, stage, layout, id, &read));
    let task_shape = stage.tasks.max_chunk();
    let block = stage.blocks.max_chunk().into_iter().zip(&task_shape).map(|(w, t)| w.min(*t));
    StageExplanation {
        name: stage.name.clone(),
        kernel: stage.kernel.kind().description(),
        tasks: stage.n_tasks(),
        block_shape: block.collect(),
        task_shape,
        after: stage.after.iter().map(|StageId(i)| plan.stages[*i].name.clone()).collect(),
        reads: reads.collect(),
        writes: explain_writes(plan, scope, stage),
        projected_mem: layout.estimate.total(),
        memory: layout.estimate.clone(),
        notes: notes::notes(plan, stage),
    }
}

fn explain_read(
    plan: &Plan,
    stage: &Stage,
    layout: &StageLayout,
    id: ArrayId,
    read: &traffic::Traffic,
) -> ArrayRead {
    let array = explain_array(plan, id);
    let inputs = stage.inputs.iter().zip(&layout.inputs).filter(|(i, _)| i.sources.contains(&id));
    let modes: Vec<ReadMode> = inputs.map(|(_, layout)| layout.mode).collect();
    let method = if matches!(array.role, Role::Constant | Role::Generated) {
        ReadMethod::NotRead
    } else if modes.iter().all(|mode| *mode == ReadMode::InChunk) {
        ReadMethod::ChunkByChunk
    } else if read.parts {
        ReadMethod::Partial
    } else {
        ReadMethod::Assembled
    };
    let traffic = match method {
        ReadMethod::NotRead => Traffic::NONE,
        ReadMethod::ChunkByChunk => Traffic::of(read.requests, read.whole_bytes, read.exact),
        ReadMethod::Partial => Traffic::of(read.requests, read.bytes, false),
        ReadMethod::Assembled => Traffic::of(read.requests, read.bytes, read.exact),
    };
    let cached_chunks = stage.cache.iter().find(|c| c.array == id).map_or(0, |c| c.chunks);
    ArrayRead { array, method, inputs: modes.len(), cached_chunks, traffic }
}

fn explain_writes(plan: &Plan, scope: Scope<'_>, stage: &Stage) -> Vec<ArrayWrite> {
    let names: Vec<String> = stage.inputs.iter().map(|i| names::input_name(plan, i)).collect();
    let writes = stage.outputs.iter().zip(traffic::writes(scope, stage)).enumerate();
    let write = writes.map(|(j, (output, write))| ArrayWrite {
        array: explain_array(plan, output.array),
        formula: stage.kernel.kind().formula(j, &names),
        traffic: Traffic::of(write.requests, write.bytes, write.exact),
    });
    write.collect()
}

fn explain_array(plan: &Plan, id: ArrayId) -> ArrayExplanation {
    let PlanArray { name, info, place } = plan.array(id);
    let at = |url: &str, path: &str| crate::storage::join(url, path);
    let (role, place) = match place {
        Place::Input { url, path, .. } => (Role::Input, at(url, path)),
        Place::Output { url, path } => (Role::Output, at(url, path)),
        Place::Work => (Role::Intermediate, "work directory".into()),
        Place::Constant(_) => (Role::Constant, "plan".into()),
        Place::Generated(_) => (Role::Generated, "generated".into()),
    };
    let chunks = info.chunk_shape();
    let start = |first: &Vec<u64>| first.iter().zip(&chunks).map(|(f, c)| f * c).collect();
    ArrayExplanation {
        id: id.0,
        name: name.clone(),
        role,
        dtype: info.dtype,
        shape: info.shape(),
        shards: info.shard.is_some().then(|| info.object_shape()),
        region: info.window.as_ref().map(start),
        chunks,
        bytes: u64::try_from(info.n_bytes()).unwrap_or(u64::MAX),
        place,
    }
}
