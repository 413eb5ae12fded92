//! Memory bounds of reads, writes and index lists.

use super::TOO_LARGE;
use crate::grid::block_bytes;
use crate::plan::{ArrayId, Place, Plan, PlanArray, PlanError, Scope, Stage, StageInput};
use crate::readmap::{AxisMap, Origin};
use crate::storage::array::Shard;
use crate::storage::codec::Codec;
use crate::storage::shard;

/// Returns the memory that a stage's tasks hold always, or during reads, independent of chunk size.
pub(in crate::plan) fn without_chunks(plan: &Plan, stage: &Stage) -> Vec<(&'static str, u64)> {
    let scope = plan.scope();
    let is_remote =
        stage.inputs.iter().flat_map(|i| &i.sources).any(|id| scope.is_remote(plan.array(*id)));
    let lists = stage.inputs.iter().map(|i| list_bytes(i, &vec![0; i.map.shape().len()])).sum();
    let all = [
        ("reserved", plan.reserved_mem),
        ("for repositories", plan.repository_mem()),
        ("for the network", if is_remote { NETWORK_BYTES } else { 0 }),
        ("for index lists", lists),
    ];
    all.into_iter().filter(|(_, bytes)| *bytes > 0).collect()
}

/// The maximum bytes for one index of a list when a task sorts its part of the list by chunks.
const SORTED_INDEX_BYTES: u64 = 128;

/// The bytes for one index of a list besides its text in the plan. They include the index's share
/// of a vector that grows while a plan is parsed.
const LISTED_INDEX_BYTES: u64 = 32;

/// Returns the bytes for index lists, for the text that contains them, and for the sorted part
/// that one block needs.
pub(super) fn list_bytes(input: &StageInput, block: &[u64]) -> u64 {
    let mut bytes = 0;
    for piece in input.map.pieces() {
        let Origin::Source { axes, .. } = &piece.from else { continue };
        for map in axes {
            let AxisMap::Gather { axis, indices, .. } = map else { continue };
            let sorted = block.get(*axis).map_or(u64::MAX, |n| *n).min(piece.to.shape[*axis]);
            let digits = indices.iter().max().map_or(1, |n| n.checked_ilog10().unwrap_or(0) + 1);
            let per_index = LISTED_INDEX_BYTES + u64::from(digits) + 1;
            bytes += per_index * indices.len() as u64 + SORTED_INDEX_BYTES * sorted;
        }
    }
    bytes
}

/// The bytes that network reads hold besides the body's buffer: the client and its threads, trusted
/// certificates, and received fragments of a body.
const NETWORK_BYTES: u64 = 8_000_000;

/// The memory bounds for reading a chunk of an array.
pub(super) struct SourceBounds {
    pub(super) chunk: u64,
    pub(super) encoded: u64,
    pub(super) scratch: u64,
    pub(super) context: u64,
    pub(super) index: u64,
}

impl SourceBounds {
    pub(super) fn of(scope: Scope<'_>, id: ArrayId) -> Result<SourceBounds, PlanError> {
        let array = scope.array(id);
        let chunk =
            block_bytes(&array.info.chunk_shape(), array.info.dtype.size()).unwrap_or(TOO_LARGE);
        let mut bounds = SourceBounds { chunk, encoded: 0, scratch: 0, context: 0, index: 0 };
        if matches!(array.place, Place::Constant(_) | Place::Generated(_)) {
            return Ok(bounds);
        }
        let codec = codec(scope, id)?;
        bounds.encoded =
            codec.encoded_beside() + if scope.is_remote(array) { NETWORK_BYTES } else { 0 };
        bounds.scratch = codec.decode_scratch();
        bounds.context = codec.decode_context_bytes();
        if let Some(shard) = &array.info.shard {
            let index = index_codec(array, shard)?;
            // The encoded index, the decoded index, and the retained entries.
            bounds.index =
                index.encoded_beside() + index.decode_scratch() + 2 * index.decoded_bytes();
        }
        Ok(bounds)
    }
}

/// The memory bounds for writing an object of an array: a chunk or a shard.
#[derive(Debug)]
pub(super) struct TargetBounds {
    pub(super) stored: u64,
    pub(super) encode: u64,
    pub(super) context: u64,
}

impl TargetBounds {
    pub(super) fn of(scope: Scope<'_>, id: ArrayId) -> Result<TargetBounds, PlanError> {
        let array = scope.array(id);
        let codec = codec(scope, id)?;
        let network = |encoded: u64| if scope.is_remote(array) { encoded } else { 0 };
        let context = codec.encode_context_bytes();
        let Some(shard) = &array.info.shard else {
            return Ok(TargetBounds {
                stored: codec.decoded_bytes(),
                encode: codec.encode_beside() + network(codec.encoded_bound()),
                context,
            });
        };
        let index = index_codec(array, shard)?;
        let encoded = shard::encoded_bound(shard, [&codec, &index]).min(TOO_LARGE);
        let stored =
            block_bytes(&array.info.object_shape(), array.info.dtype.size()).unwrap_or(TOO_LARGE);
        Ok(TargetBounds {
            stored,
            encode: encoded + shard::encode_scratch([&codec, &index]) + network(encoded),
            context,
        })
    }
}

/// Returns the maximum encoded size of an object of an array: a chunk or a shard.
pub(super) fn object_limit(scope: Scope<'_>, id: ArrayId) -> Result<u64, PlanError> {
    let (array, codec) = (scope.array(id), codec(scope, id)?);
    match &array.info.shard {
        Some(shard) => {
            Ok(shard::encoded_bound(shard, [&codec, &index_codec(array, shard)?]).min(TOO_LARGE))
        }
        None => Ok(codec.read_limit(codec.decoded_bytes())),
    }
}

fn index_codec(array: &PlanArray, shard: &Shard) -> Result<Codec, PlanError> {
    shard.index_codec().map_err(|error| PlanError::Codec { array: array.name.clone(), error })
}

pub(super) fn codec(scope: Scope<'_>, id: ArrayId) -> Result<Codec, PlanError> {
    let array = scope.array(id);
    Codec::new(&array.info.codecs, array.info.dtype, &array.info.chunk_shape())
        .map_err(|error| PlanError::Codec { array: array.name.clone(), error })
}
