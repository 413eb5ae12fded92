//! The open stage of a worker.
//!
//! Opening a stage costs requests and memory, and a worker runs many tasks of a stage. Arrays,
//! decoded chunks and the compiled kernel therefore remain from task to task, until the worker
//! opens another stage.

use std::sync::Arc;

use freestone_kernels::Buffer;

use super::RunContext;
use crate::grid::ChunkGrid;
use crate::lru::Lru;
use crate::plan::loops::objects;
use crate::plan::{ArrayId, Place, PlanError, StageId, from_hex};
use crate::stages::Compiled;
use crate::state::{EncodedSizes, OpenSource, Source};
use crate::storage::reader::{ChunkAccess, ShardCache, WrittenByRun};
use crate::storage::{Store, join};
use crate::task::{Cause, FailureKind, cause_of_plan, kind_of_storage};

/// A stage with open arrays and a compiled kernel.
#[derive(Debug)]
pub(super) struct OpenStage {
    pub(super) stage: StageId,
    /// The sources, in the order of the layout.
    pub(super) sources: Vec<OpenSource>,
    pub(super) outputs: Vec<ChunkAccess>,
    /// The grid of objects of each output.
    pub(super) objects: Vec<ChunkGrid>,
    pub(super) compiled: Box<dyn Compiled>,
}

impl RunContext {
    pub(super) fn open_stage(&self, stage_id: StageId) -> Result<OpenStage, Cause> {
        let plan = self.plan.plan();
        let stage = &plan.stages[stage_id.0];
        let layout = self.plan.layout(stage_id);
        let opened = |id| {
            Ok(OpenSource {
                source: self.source(id)?,
                chunks: Lru::default(),
                sizes: EncodedSizes::default(),
            })
        };
        Ok(OpenStage {
            stage: stage_id,
            sources: layout
                .sources
                .iter()
                .map(|s| opened(s.array))
                .collect::<Result<_, Cause>>()?,
            outputs: stage
                .outputs
                .iter()
                .map(|o| self.chunks(o.array))
                .collect::<Result<_, _>>()?,
            objects: objects(plan.scope(), stage),
            compiled: stage
                .kernel
                .kind()
                .compile(&self.kernels)
                .map_err(|e| (FailureKind::Plan, e))?,
        })
    }

    fn source(&self, id: ArrayId) -> Result<Source, Cause> {
        let array = self.plan.plan().array(id);
        match &array.place {
            Place::Constant(hex) => {
                let bytes = from_hex(hex).ok_or((
                    FailureKind::Plan,
                    format!(
                        "invalid values of the constant `{}`: expected hexadecimal",
                        array.name
                    ),
                ))?;
                let mut values = Buffer::zeroed(bytes.len());
                values.bytes_mut().copy_from_slice(&bytes);
                Ok(Source::Constant(values, array.info.clone()))
            }
            Place::Generated(generate) => {
                Ok(Source::Generated(generate.clone(), array.info.clone()))
            }
            _ => Ok(Source::Chunks(Box::new(self.chunks(id)?), ShardCache::default())),
        }
    }

    /// Opens an array in a store.
    fn chunks(&self, id: ArrayId) -> Result<ChunkAccess, Cause> {
        let array = self.plan.plan().array(id);
        let open =
            |url: &str| self.stores.open(url).map_err(|e| (kind_of_storage(&e), e.to_string()));
        let (store, path): (Arc<dyn Store>, String) = match &array.place {
            Place::Input { url, path, .. } | Place::Output { url, path } => {
                (open(url)?, path.clone())
            }
            _ => (open(&self.address.work_dir)?, join(&self.address.folder, &array.name)),
        };
        let codec = |error| cause_of_plan(&PlanError::Codec { array: array.name.clone(), error });
        let access = ChunkAccess::new(store, &path, &array.info).map_err(codec)?;
        Ok(match &array.place {
            Place::Work => access.written_by_run(WrittenByRun { array: id.0, is_complete: true }),
            Place::Output { .. } => {
                access.written_by_run(WrittenByRun { array: id.0, is_complete: false })
            }
            _ => access,
        })
    }
}
