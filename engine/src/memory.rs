//! The projected memory of a task by parts, and the arena that enforces it.
//!
//! A stage's [`Program`](crate::program::Program) determines when a task takes and releases its
//! buffers. Its high-water mark is the projection, a [`MemoryEstimate`]. A worker executes the same
//! program through an [`Arena`], which rejects allocations above the projection.

pub(crate) mod window;

use std::fmt;

use bytesize::ByteSize;
use freestone_kernels::Buffer;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The purpose of a buffer: a row of a memory projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Part {
    Reserved,
    Repository,
    EncodedInput,
    DecodedChunk,
    DecodeScratch,
    Region,
    ShardIndex,
    Indices,
    KernelScratch,
    Accumulator,
    Output,
    EncodeBuffer,
    CodecContext,
}

impl Part {
    /// Returns the display name.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Reserved => "reserved (program, stacks, plan)",
            Part::Repository => "repositories (manifests, snapshots)",
            Part::EncodedInput => "encoded bytes in flight",
            Part::DecodedChunk => "decoded chunks",
            Part::DecodeScratch => "decoder scratch",
            Part::Region => "assembled regions",
            Part::ShardIndex => "shard indexes",
            Part::Indices => "index lists",
            Part::KernelScratch => "kernel scratch",
            Part::Accumulator => "accumulators",
            Part::Output => "output blocks",
            Part::EncodeBuffer => "encode buffers",
            Part::CodecContext => "codec contexts",
        }
    }
}

/// The projected memory of one task by parts, with reserved memory first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    parts: Vec<(Part, u64)>,
}

impl MemoryEstimate {
    /// Creates the estimate for a process with `reserved` bytes whose task holds these buffers at
    /// its peak.
    pub(crate) fn new(reserved: u64, held: impl Iterator<Item = (Part, u64)>) -> MemoryEstimate {
        let mut parts = vec![(Part::Reserved, reserved)];
        for (part, bytes) in held.filter(|(_, bytes)| *bytes > 0) {
            match parts.iter_mut().find(|(p, _)| *p == part) {
                Some((_, sum)) => *sum = sum.saturating_add(bytes),
                None => parts.push((part, bytes)),
            }
        }
        parts.sort_by_key(|(part, _)| *part);
        MemoryEstimate { parts }
    }

    /// Returns the total bytes, including reserved memory.
    pub fn total(&self) -> u64 {
        self.parts.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Returns the bytes that each further concurrent task adds: the total without the memory that
    /// a process holds once, for all of its tasks.
    pub fn per_task(&self) -> u64 {
        let is_shared = |part: Part| matches!(part, Part::Reserved | Part::Repository);
        let shared = self.parts.iter().filter(|(part, _)| is_shared(*part));
        self.total() - shared.map(|(_, bytes)| bytes).sum::<u64>()
    }

    /// Moves `bytes` of the reserved memory to a row for repositories.
    #[must_use]
    pub(crate) fn with_repositories(mut self, bytes: u64) -> MemoryEstimate {
        if let Some((at, (_, reserved))) =
            self.parts.iter_mut().enumerate().find(|(_, (p, _))| *p == Part::Reserved)
            && bytes > 0
        {
            *reserved -= bytes;
            self.parts.insert(at + 1, (Part::Repository, bytes));
        }
        self
    }

    /// Returns the parts in order.
    pub fn parts(&self) -> &[(Part, u64)] {
        &self.parts
    }
}

impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (part, bytes)) in self.parts.iter().enumerate() {
            let end = if i + 1 < self.parts.len() { "\n" } else { "" };
            write!(f, "{:>12}  {}{end}", size(*bytes).to_string(), part.name())?;
        }
        Ok(())
    }
}

/// The bytes that a process with open repositories holds: threads, resident code, and snapshots.
/// Measured: 10 to 12 MB, mostly pages of the program.
const REPOSITORY_BYTES: u64 = 14_000_000;
/// The maximum number of decoded chunk references that a repository caches.
pub const CACHED_REFERENCES: u64 = 2_000_000;
/// The bytes of one chunk reference. Measured: 65 to 70.
const REFERENCE_BYTES: u64 = 75;

/// Returns the bytes that a process holds for repositories, independent of tasks.
///
/// `chunks` is the total number of chunks of the arrays that are read from repositories. `most` is
/// that of the largest array, whose references are all in memory while they are decoded.
pub(crate) fn repository_bytes(any: bool, chunks: u64, most: u64) -> u64 {
    let references = chunks.min(CACHED_REFERENCES.saturating_add(most));
    if any {
        REPOSITORY_BYTES.saturating_add(references.saturating_mul(REFERENCE_BYTES))
    } else {
        0
    }
}

/// The bytes that a commit holds per chunk: receipts, and references until they are written.
/// Measured: 370 to 430 bytes, and 40 to 80 bytes of the driver.
const COMMIT_BYTES: u64 = 550;

/// Returns the bytes that the driver holds to commit a number of chunks to a repository.
pub fn commit_bytes(chunks: u64) -> u64 {
    chunks.saturating_mul(COMMIT_BYTES)
}

/// Formats a size with a decimal unit, such as `1.5 MB`.
pub fn size(bytes: u64) -> bytesize::Display {
    ByteSize::b(bytes).display().si()
}

/// The error for a task that exceeds its projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "a task that holds {held} bytes requested {asked} more, above its projection of {limit} (hint: \
     this is a defect of the projection, please report it)"
)]
pub struct Overrun {
    /// The requested bytes.
    pub asked: u64,
    /// The bytes that the task holds.
    pub held: u64,
    /// The projection without reserved memory.
    pub limit: u64,
}

/// The buffers of a task: permits for the slots of its program, and a pool of reusable memory.
///
/// The arena limits two quantities to the projection: the bounds of the taken slots, and the
/// allocated bytes including idle buffers.
#[derive(Debug)]
pub struct Arena {
    limit: u64,
    taken: u64,
    allocated: u64,
    peak: u64,
    /// The bytes under the limit that a codec's context allocates.
    external: u64,
    /// The bytes under the limit that the worker's window holds.
    lent: u64,
    idle: Vec<Buffer>,
}

/// The bytes by which the capacities of a task's buffers may exceed their lengths, because buffers
/// consist of whole cache lines.
const CACHE_LINES_BYTES: u64 = 4096;

impl Arena {
    /// Creates an arena for tasks whose projection without reserved memory is `limit`.
    pub fn new(limit: u64) -> Arena {
        Arena { limit, taken: 0, allocated: 0, peak: 0, external: 0, lent: 0, idle: Vec::new() }
    }

    /// Sets the limit for the tasks of another stage and frees idle buffers above it.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
        self.taken = 0;
        self.external = 0;
        self.lent = 0;
        self.trim(0);
        self.peak = self.allocated;
    }

    /// Withholds `bytes` of the limit for transfers in flight, until the next call of
    /// [`set_limit`](Arena::set_limit).
    pub fn lend(&mut self, bytes: u64) {
        self.lent = bytes;
        self.trim(0);
    }

    /// Takes the permit for a slot of `bytes`.
    ///
    /// # Errors
    /// Returns an error if the permits would exceed the projection.
    pub fn take(&mut self, bytes: u64) -> Result<(), Overrun> {
        if self.taken + bytes > self.limit {
            return Err(Overrun { asked: bytes, held: self.taken, limit: self.limit });
        }
        self.taken += bytes;
        Ok(())
    }

    /// Returns the permit for a slot of `bytes`.
    pub fn release(&mut self, bytes: u64) {
        self.taken = self.taken.saturating_sub(bytes);
    }

    /// Returns a buffer of `len` bytes with arbitrary content.
    ///
    /// # Errors
    /// Returns an error if the allocated bytes would exceed the projection.
    pub fn buffer(&mut self, len: u64) -> Result<Buffer, Overrun> {
        // A much larger buffer is left idle: it counts by its capacity, and would use the room of
        // another buffer.
        let fits = |b: &Buffer| (len..=len + CACHE_LINES_BYTES).contains(&(b.capacity() as u64));
        let fitting = (0..self.idle.len()).filter(|i| fits(&self.idle[*i]));
        if let Some(best) = fitting.min_by_key(|i| self.idle[*i].capacity()) {
            let mut buffer = self.idle.swap_remove(best);
            buffer.set_len(len as usize);
            return Ok(buffer);
        }
        self.check_room(len)?;
        let buffer = Buffer::zeroed(len as usize);
        self.account(&buffer);
        Ok(buffer)
    }

    /// Returns a buffer of `len` bytes for a taken slot. Its capacity is the slot's `bound`, so
    /// that the next content of the slot fits too. Pages that are never touched are not resident.
    ///
    /// # Errors
    /// Returns an error if the allocated bytes would exceed the projection.
    pub fn buffer_in(&mut self, bound: u64, len: u64) -> Result<Buffer, Overrun> {
        let mut buffer = self.buffer(bound.max(len))?;
        buffer.set_len(len as usize);
        Ok(buffer)
    }

    /// Accounts for bytes that a codec allocated, and returns them as a buffer.
    ///
    /// # Errors
    /// Returns an error if the allocated bytes exceed the projection.
    pub fn adopt(&mut self, bytes: Vec<u8>) -> Result<Buffer, Overrun> {
        self.check_room(bytes.len() as u64)?;
        let buffer = Buffer::from_vec(bytes);
        self.account(&buffer);
        Ok(buffer)
    }

    /// Accounts for a buffer that a transfer filled.
    ///
    /// # Errors
    /// Returns an error if the allocated bytes exceed the projection.
    pub fn accept(&mut self, buffer: &Buffer) -> Result<(), Overrun> {
        self.check_room(buffer.capacity() as u64)?;
        self.account(buffer);
        Ok(())
    }

    /// Frees idle buffers, so that a codec can allocate `bytes` itself.
    pub fn make_room(&mut self, bytes: u64) {
        self.trim(bytes);
    }

    /// Reserves `bytes` under the limit for the context of a codec, until the next call of
    /// [`set_limit`](Arena::set_limit).
    pub fn reserve_external(&mut self, bytes: u64) {
        self.external = self.external.max(bytes);
        self.trim(0);
    }

    /// Returns a buffer to the pool.
    pub fn recycle(&mut self, buffer: Buffer) {
        if buffer.is_reusable() {
            self.idle.push(buffer);
        } else {
            self.allocated = self.allocated.saturating_sub(buffer.capacity() as u64);
        }
    }

    /// Returns the bytes of the taken permits.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Returns the peak of the allocated bytes.
    pub fn peak(&self) -> u64 {
        self.peak
    }

    /// Frees idle buffers and checks that `len` bytes can be allocated.
    fn check_room(&mut self, len: u64) -> Result<(), Overrun> {
        self.trim(len);
        let held = self.allocated + self.lent;
        if held + len > self.limit + CACHE_LINES_BYTES {
            return Err(Overrun { asked: len, held, limit: self.limit });
        }
        Ok(())
    }

    fn account(&mut self, buffer: &Buffer) {
        self.allocated += buffer.capacity() as u64;
        self.peak = self.peak.max(self.allocated);
    }

    /// Frees the largest idle buffers until `wanted` bytes fit.
    fn trim(&mut self, wanted: u64) {
        self.idle.sort_by_key(Buffer::capacity);
        while self.allocated + self.external + self.lent + wanted > self.limit
            && let Some(largest) = self.idle.pop()
        {
            self.allocated = self.allocated.saturating_sub(largest.capacity() as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_arena_never_allocates_above_its_limit(
            limit in 10_000u64..1_000_000,
            requests in prop::collection::vec((1u64..400_000, any::<bool>()), 1..40),
        ) {
            let mut arena = Arena::new(limit);
            let mut held = Vec::new();
            for (len, hold) in requests {
                match arena.buffer(len) {
                    Ok(b) if hold => held.push(b),
                    Ok(b) => arena.recycle(b),
                    Err(_) => held.drain(..).for_each(|b| arena.recycle(b)),
                }
                prop_assert!(arena.peak() <= limit + 8192);
            }
        }
    }

    /// Regression: a large idle buffer served a small request, and the next large request exceeded
    /// the limit.
    #[test]
    fn a_larger_buffer_does_not_stand_in_for_a_smaller_one() {
        let mut arena = Arena::new(900_000);
        let large = arena.buffer(500_000).unwrap();
        arena.recycle(large);
        let small = arena.buffer(400_000).unwrap();
        let large = arena.buffer(500_000).unwrap();
        assert_eq!((small.len(), large.len()), (400_000, 500_000));
    }
}
