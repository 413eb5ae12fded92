//! Projected memory by parts, and the arena that refuses to exceed it.
//!
//! A stage's [`Program`](crate::program::Program) says when a task takes and releases its buffers.
//! Its high-water mark is the projection, a [`MemoryEstimate`]; a worker runs the same program
//! through an [`Arena`] that refuses to hold more.

use std::fmt;

use bytesize::ByteSize;
use freestone_kernels::Buffer;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What a buffer is for: the rows of a memory projection.
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
    /// In words, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Reserved => "reserved (program, stacks, plan)",
            Part::Repository => "repositories (manifests, snapshots)",
            Part::EncodedInput => "encoded bytes in flight",
            Part::DecodedChunk => "decoded chunks",
            Part::DecodeScratch => "decoding steps",
            Part::Region => "assembled regions",
            Part::ShardIndex => "shard indexes",
            Part::Indices => "lists of indices",
            Part::KernelScratch => "kernel scratch",
            Part::Accumulator => "accumulators",
            Part::Output => "output blocks",
            Part::EncodeBuffer => "encode buffers",
            Part::CodecContext => "codec contexts",
        }
    }
}

/// Projected memory of one task, by parts, reserved memory first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    parts: Vec<(Part, u64)>,
}

impl MemoryEstimate {
    /// Returns the estimate of a process with `reserved` bytes whose task holds buffers of these
    /// parts at its worst.
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

    /// Bytes, reserved memory included.
    pub fn total(&self) -> u64 {
        self.parts.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Bytes without what a process has once, for all of its tasks: what each further task at the
    /// same time adds.
    pub fn per_task(&self) -> u64 {
        self.total()
            - self
                .parts
                .iter()
                .filter(|(p, _)| matches!(p, Part::Reserved | Part::Repository))
                .map(|(_, b)| b)
                .sum::<u64>()
    }

    /// The same, where so much of what is reserved is for repositories.
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

    /// The rows.
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

/// What a process holds that has repositories open: its own threads for them, the code that it
/// touches, snapshots. Measured: 10 to 12 MB, of which pages of the program are the greater part.
const REPOSITORY_BYTES: u64 = 14_000_000;
/// References to chunks that a repository keeps decoded, at most, and the bytes of one. Measured:
/// 65 to 70.
pub const CACHED_REFERENCES: u64 = 2_000_000;
const REFERENCE_BYTES: u64 = 75;

/// Bytes that a process holds for repositories besides all tasks: `chunks` are those of all arrays
/// that are read from one, `most` those of the largest, whose references are held together while
/// they are decoded.
pub(crate) fn repository_bytes(any: bool, chunks: u64, most: u64) -> u64 {
    let references = chunks.min(CACHED_REFERENCES.saturating_add(most));
    if any {
        REPOSITORY_BYTES.saturating_add(references.saturating_mul(REFERENCE_BYTES))
    } else {
        0
    }
}

/// What a commit holds for each chunk that it refers to: receipts, and references until they are
/// written. Measured: 370 to 430 bytes, and 40 to 80 of the driver.
const COMMIT_BYTES: u64 = 550;

/// What the driver holds to commit so many chunks to a repository.
pub fn commit_bytes(chunks: u64) -> u64 {
    chunks.saturating_mul(COMMIT_BYTES)
}

/// Bytes as people read them, in powers of 1000.
pub fn size(bytes: u64) -> bytesize::Display {
    ByteSize::b(bytes).display().si()
}

/// A task wanted more than its projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "a task that holds {held} bytes requested {asked} more, above its projection of {limit} (hint: \
     this is a defect of the projection, please report it)"
)]
pub struct Overrun {
    /// What was asked for.
    pub asked: u64,
    /// What it held.
    pub held: u64,
    /// Its projection without reserved memory.
    pub limit: u64,
}

/// A task's buffers: permits by the schedule's bounds, and memory that is used again.
///
/// Two things are held under the projection: the bounds of what is taken, and the bytes that really
/// are allocated, idle buffers included.
#[derive(Debug)]
pub struct Arena {
    limit: u64,
    taken: u64,
    allocated: u64,
    highest: u64,
    /// Bytes under the limit that are allocated elsewhere: of a codec's context.
    outside: u64,
    idle: Vec<Buffer>,
}

impl Arena {
    /// For tasks whose projection without reserved memory is `limit`.
    pub fn new(limit: u64) -> Arena {
        Arena { limit, taken: 0, allocated: 0, highest: 0, outside: 0, idle: Vec::new() }
    }

    /// The limit becomes that of another stage; idle buffers beyond it go.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
        self.taken = 0;
        self.outside = 0;
        self.trim(0);
        self.highest = self.allocated;
    }

    /// A permit for a slot.
    ///
    /// # Errors
    /// Where the projection would be exceeded.
    pub fn take(&mut self, bytes: u64) -> Result<(), Overrun> {
        if self.taken + bytes > self.limit {
            return Err(Overrun { asked: bytes, held: self.taken, limit: self.limit });
        }
        self.taken += bytes;
        Ok(())
    }

    /// Gives a permit back.
    pub fn release(&mut self, bytes: u64) {
        self.taken = self.taken.saturating_sub(bytes);
    }

    /// A buffer of `len` bytes, whose content is left over from before.
    ///
    /// # Errors
    /// Where what is allocated would exceed the projection.
    pub fn buffer(&mut self, len: u64) -> Result<Buffer, Overrun> {
        let fits = |b: &Buffer| b.capacity() as u64 >= len;
        if let Some(best) = (0..self.idle.len()).filter(|i| fits(&self.idle[*i])).min_by_key(|i| self.idle[*i].capacity())
            // A larger one is left for who needs it: counted as its capacity, it would take the
            // place of another buffer.
            && self.idle[best].capacity() as u64 <= len + 4096
        {
            let mut buffer = self.idle.swap_remove(best);
            buffer.set_len(len as usize);
            return Ok(buffer);
        }
        self.room(len)?;
        let buffer = Buffer::zeroed(len as usize);
        self.account(&buffer);
        Ok(buffer)
    }

    /// A buffer of `len` bytes for a slot that is taken, whose bound is `bound`: it is made as
    /// large as that, so that whatever the slot holds next fits it too. What was never touched of
    /// it is not resident.
    ///
    /// # Errors
    /// Where what is allocated would exceed the projection.
    pub fn buffer_in(&mut self, bound: u64, len: u64) -> Result<Buffer, Overrun> {
        let mut buffer = self.buffer(bound.max(len))?;
        buffer.set_len(len as usize);
        Ok(buffer)
    }

    /// Takes over bytes that a codec allocated.
    ///
    /// # Errors
    /// Where what is allocated exceeds the projection.
    pub fn adopt(&mut self, bytes: Vec<u8>) -> Result<Buffer, Overrun> {
        self.room(bytes.len() as u64)?;
        let buffer = Buffer::from_vec(bytes);
        self.account(&buffer);
        Ok(buffer)
    }

    /// Lets idle buffers go, so that a codec can allocate so many bytes by itself.
    pub fn prepare(&mut self, bytes: u64) {
        self.trim(bytes);
    }

    /// From now on, so many bytes under the limit are a codec's own, until there is another limit:
    /// idle buffers do not take their place.
    pub fn stand_outside(&mut self, bytes: u64) {
        self.outside = self.outside.max(bytes);
        self.trim(0);
    }

    /// Gives a buffer back for later use.
    pub fn recycle(&mut self, buffer: Buffer) {
        if buffer.is_reusable() {
            self.idle.push(buffer);
        } else {
            self.allocated = self.allocated.saturating_sub(buffer.capacity() as u64);
        }
    }

    /// A buffer of so many bytes is gone, and will not come back.
    pub fn lost(&mut self, bytes: u64) {
        self.allocated = self.allocated.saturating_sub(bytes);
    }

    /// Bytes of the permits that are taken.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// The most bytes that were allocated at once.
    pub fn highest(&self) -> u64 {
        self.highest
    }

    fn room(&mut self, len: u64) -> Result<(), Overrun> {
        self.trim(len);
        // Buffers are whole cache lines: allow that much on top of the bound.
        if self.allocated + len > self.limit + 4096 {
            return Err(Overrun { asked: len, held: self.allocated, limit: self.limit });
        }
        Ok(())
    }

    fn account(&mut self, buffer: &Buffer) {
        self.allocated += buffer.capacity() as u64;
        self.highest = self.highest.max(self.allocated);
    }

    fn trim(&mut self, wanted: u64) {
        self.idle.sort_by_key(Buffer::capacity);
        while self.allocated + self.outside + wanted > self.limit
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
        fn an_arena_never_allocates_over_its_limit(limit in 10_000u64..1_000_000, asks in prop::collection::vec((1u64..400_000, any::<bool>()), 1..40)) {
            let mut arena = Arena::new(limit);
            let mut held = Vec::new();
            for (len, keep) in asks {
                match arena.buffer(len) {
                    Ok(b) if keep => held.push(b),
                    Ok(b) => arena.recycle(b),
                    Err(_) => held.drain(..).for_each(|b| arena.recycle(b)),
                }
                prop_assert!(arena.highest() <= limit + 8192);
            }
        }
    }

    /// A large idle buffer once served a smaller need, and the next large need was over the limit.
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
