//! What a worker has open of the stage that it works on.
//!
//! Opening costs requests and memory, and a worker runs many tasks of a stage: arrays, decoded chunks that are at hand and the
//! expression's registers stay from task to task, until another stage comes. `load` reads through what is here.

use std::sync::Arc;

use freestone_kernels::eval::Machine;
use freestone_kernels::{Buffer, Generate};

use super::{RunContext, sizes};
use crate::plan::{Kernel, Place, PlanError, StageId, from_hex};
use crate::storage::reader::{ChunkAccess, ChunkError, Desk, Own, ShardCache};
use crate::storage::{ArrayInfo, ObjectPart, Pending, Store, join};
use crate::task::{Cause, FailureKind, cause_of_chunk, cause_of_plan};
use crate::user::AnyKernel;

/// A stage with its arrays opened and its expression assigned to registers.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) stage: StageId,
    /// In the order of the layout's.
    pub(super) sources: Vec<Opened>,
    pub(super) outputs: Vec<ChunkAccess>,
    pub(super) computes: Computes,
}

/// An array that is read, and its decoded chunks that are at hand.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) source: Source,
    /// The least recently used first.
    pub(super) chunks: Vec<(Vec<u64>, Buffer)>,
}

impl Opened {
    /// True if a chunk is at hand; then it is the last that was used.
    pub(super) fn has(&mut self, coords: &[u64]) -> bool {
        let Some(at) = self.chunks.iter().position(|(c, _)| c == coords) else { return false };
        let found = self.chunks.remove(at);
        self.chunks.push(found);
        true
    }

    /// Lets chunks go, so that with one more at most `most` are at hand, but none of `pinned`.
    pub(super) fn make_room(&mut self, most: usize, pinned: &[Vec<u64>], desk: &mut Desk) {
        while self.chunks.len() >= most.max(1)
            && let Some(oldest) = self.chunks.iter().position(|(c, _)| !pinned.contains(c))
        {
            desk.arena.recycle(self.chunks.remove(oldest).1);
        }
    }

    /// Decodes a chunk that is not at hand, the read of which may have begun.
    pub(super) fn fetch(&mut self, coords: &[u64], begun: Option<Pending>, desk: &mut Desk) -> Result<(), ChunkError> {
        if let Some(block) = self.source.read(coords, begun, desk)? {
            self.chunks.push((coords.to_vec(), block));
        }
        Ok(())
    }

    /// The values of a chunk that was fetched, in C order over its stored shape.
    pub(super) fn bytes(&self, coords: &[u64]) -> &[u8] {
        match &self.source {
            Source::Constant(values, _) => values.bytes(),
            _ => self.chunks.iter().rev().find(|(c, _)| c == coords).map_or(&[], |(_, block)| block.bytes()),
        }
    }

    /// True if parts of a chunk can be read, and it is not at hand as a whole.
    pub(super) fn reads_parts(&self, coords: &[u64]) -> bool {
        matches!(&self.source, Source::Chunks(access, _) if access.is_in_parts()) && !self.chunks.iter().any(|(c, _)| c == coords)
    }

    pub(super) fn read_parts(&self, coords: &[u64], parts: &[ObjectPart], into: &mut [u8], desk: &mut Desk) -> Result<bool, Cause> {
        match &self.source {
            Source::Chunks(access, _) => access.read_parts(coords, parts, into, desk).map_err(|e| cause_of_chunk(&e)),
            _ => Ok(false),
        }
    }

    pub(super) fn clear(&mut self, desk: &mut Desk) {
        self.chunks.drain(..).for_each(|(_, block)| desk.arena.recycle(block));
    }
}

/// What computes.
#[derive(Debug)]
pub(super) enum Computes {
    Machine(Machine),
    /// For each operand of a product.
    Operands(Box<[Machine; 2]>),
    User(Arc<dyn AnyKernel>),
}

#[derive(Debug)]
pub(super) enum Source {
    Chunks(Box<ChunkAccess>, ShardCache),
    Constant(Buffer, ArrayInfo),
    Generated(Generate, ArrayInfo),
}

impl Source {
    pub(super) fn info(&self) -> &ArrayInfo {
        match self {
            Source::Chunks(access, _) => access.info(),
            Source::Constant(_, info) | Source::Generated(_, info) => info,
        }
    }

    pub(super) fn stored_shape(&self, coords: &[u64]) -> Vec<u64> {
        match self {
            Source::Chunks(access, _) => access.stored_shape(coords),
            Source::Constant(_, info) | Source::Generated(_, info) => info.grid.region(coords).shape,
        }
    }

    /// The block of a chunk; `None` for a constant, whose values are at hand.
    fn read(&mut self, coords: &[u64], begun: Option<Pending>, desk: &mut Desk) -> Result<Option<Buffer>, ChunkError> {
        match self {
            Source::Chunks(access, cache) => access.read_begun(coords, begun, desk, cache).map(Some),
            Source::Constant(..) => Ok(None),
            Source::Generated(generate, info) => {
                let region = info.grid.region(coords);
                let mut block = desk.arena.buffer(region.n_elements() * info.dtype.size() as u64)?;
                generate.fill(info.dtype, &info.shape(), &region.start, &sizes(&region.shape), block.bytes_mut());
                Ok(Some(block))
            }
        }
    }
}

impl RunContext {
    pub(super) fn ready(&self, stage_id: StageId) -> Result<Ready, Cause> {
        let plan = self.plan.plan();
        let stage = &plan.stages[stage_id.0];
        let storage = |e: crate::storage::StorageError| (crate::task::kind_of_storage(&e), e.to_string());
        let open = |id: crate::plan::ArrayId| -> Result<ChunkAccess, Cause> {
            let array = plan.array(id);
            let (store, path): (Arc<dyn Store>, String) = match &array.place {
                Place::Input { url, path, .. } | Place::Output { url, path } => (self.stores.open(url).map_err(storage)?, path.clone()),
                _ => (self.stores.open(&self.address.work_dir).map_err(storage)?, join(&self.address.folder, &array.name)),
            };
            let access = ChunkAccess::new(store, &path, &array.info).map_err(|error| cause_of_plan(&PlanError::Codec { array: array.name.clone(), error }))?;
            Ok(match &array.place {
                Place::Work => access.owned(Own { array: id.0, whole: true }),
                Place::Output { .. } => access.owned(Own { array: id.0, whole: false }),
                _ => access,
            })
        };
        let source = |id: &crate::plan::ArrayId| -> Result<Source, Cause> {
            let array = plan.array(*id);
            match &array.place {
                Place::Constant(hex) => {
                    let bytes = from_hex(hex).ok_or((FailureKind::Plan, format!("the values of `{}` are malformed", array.name)))?;
                    let mut values = Buffer::zeroed(bytes.len());
                    values.bytes_mut().copy_from_slice(&bytes);
                    Ok(Source::Constant(values, array.info.clone()))
                }
                Place::Generated(generate) => Ok(Source::Generated(generate.clone(), array.info.clone())),
                _ => open(*id).map(|access| Source::Chunks(Box::new(access), ShardCache::default())),
            }
        };
        Ok(Ready {
            stage: stage_id,
            sources: self
                .plan
                .layout(stage_id)
                .sources
                .iter()
                .map(|s| Ok(Opened { source: source(&s.array)?, chunks: Vec::new() }))
                .collect::<Result<_, Cause>>()?,
            outputs: stage.outputs.iter().map(|o| open(o.array)).collect::<Result<_, _>>()?,
            computes: match (self.kernel(stage).map_err(|e| (FailureKind::Plan, e))?, stage.kernel.expr()) {
                (Some(kernel), _) => Computes::User(kernel),
                (None, None) if let Kernel::Contract { operands, .. } = &stage.kernel => {
                    Computes::Operands(Box::new([Machine::new(&operands[0]), Machine::new(&operands[1])]))
                }
                (None, Some(expr)) => Computes::Machine(Machine::new(expr)),
                (None, None) => return Err((FailureKind::Plan, "a stage has nothing to compute".into())),
            },
        })
    }
}
