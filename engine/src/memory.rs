//! What a task may hold, and proof that it does not hold more.
//!
//! A stage has a [`Schedule`]: its named buffers with their bounds, and the order in which a task takes them, works, and
//! gives them back. The planner runs the schedule in the abstract, and its high-water mark is the projection
//! ([`Schedule::estimate`]); the worker runs the same list for real, through an [`Arena`] that refuses to hold more. One
//! source, no drift.

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

/// A named buffer and the most bytes that it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// What it is for.
    pub part: Part,
    /// Its bound.
    pub bytes: u64,
}

/// Number of a slot in its schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub usize);

/// One step of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// From here on the buffer may exist.
    Take(SlotId),
    /// From here on it does not.
    Release(SlotId),
    /// Bring the block of input `0…` into its slot.
    Load(usize),
    /// Fold the loaded blocks into the accumulators.
    Fold,
    /// Make output blocks ready for their slices.
    Begin,
    /// Evaluate the loaded blocks into the output blocks.
    Apply,
    /// Turn accumulator `0…` into its output block.
    Finish(usize),
    /// Encode output block `0…` and write it.
    Store(usize),
}

/// What one task does, as straight lists of steps: once, for each block of its walk, after the walk, for each chunk that it
/// writes, and at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// The buffers.
    pub slots: Vec<Slot>,
    /// Before the first block.
    pub once: Vec<Step>,
    /// For each block; what it takes it gives back.
    pub each_block: Vec<Step>,
    /// After the last block.
    pub after: Vec<Step>,
    /// Where chunks are made slice by slice, before the first slice of each; what it takes [`each_chunk`](Schedule::each_chunk) gives back.
    pub chunk_begin: Vec<Step>,
    /// For each slice of a chunk; what it takes it gives back.
    pub each_slice: Vec<Step>,
    /// For each chunk written; what it takes it gives back.
    pub each_chunk: Vec<Step>,
    /// At the end.
    pub end: Vec<Step>,
}

impl Schedule {
    /// Adds a buffer.
    pub fn slot(&mut self, part: Part, bytes: u64) -> SlotId {
        self.slots.push(Slot { part, bytes });
        SlotId(self.slots.len() - 1)
    }

    /// The projection: the highest sum of bounds that the steps reach, and what it is made of.
    ///
    /// # Errors
    /// If a list takes what is taken, gives back what is not, or leaves something taken: then repeating it would not be
    /// bounded by going through it once.
    pub fn estimate(&self, reserved: u64) -> Result<MemoryEstimate, ScheduleError> {
        let mut walk = Walk { taken: vec![false; self.slots.len()], now: reserved, worst: reserved, at_worst: vec![false; self.slots.len()] };
        walk.go(&self.slots, &self.once)?;
        let before = walk.taken.clone();
        walk.go(&self.slots, &self.each_block)?;
        if walk.taken != before {
            return Err(ScheduleError("a block's steps do not give back what they take"));
        }
        walk.go(&self.slots, &self.after)?;
        let before = walk.taken.clone();
        walk.go(&self.slots, &self.chunk_begin)?;
        let begun = walk.taken.clone();
        walk.go(&self.slots, &self.each_slice)?;
        if walk.taken != begun {
            return Err(ScheduleError("a slice's steps do not give back what they take"));
        }
        walk.go(&self.slots, &self.each_chunk)?;
        if walk.taken != before {
            return Err(ScheduleError("a chunk's steps do not give back what they take"));
        }
        walk.go(&self.slots, &self.end)?;
        if walk.taken.contains(&true) {
            return Err(ScheduleError("the task ends with a buffer taken"));
        }
        let mut parts = vec![(Part::Reserved, reserved)];
        for (slot, held) in self.slots.iter().zip(&walk.at_worst) {
            if *held && slot.bytes > 0 {
                match parts.iter_mut().find(|(p, _)| *p == slot.part) {
                    Some((_, bytes)) => *bytes += slot.bytes,
                    None => parts.push((slot.part, slot.bytes)),
                }
            }
        }
        parts.sort_by_key(|(part, _)| *part);
        Ok(MemoryEstimate { parts })
    }
}

struct Walk {
    taken: Vec<bool>,
    now: u64,
    worst: u64,
    at_worst: Vec<bool>,
}

impl Walk {
    fn go(&mut self, slots: &[Slot], steps: &[Step]) -> Result<(), ScheduleError> {
        for step in steps {
            match step {
                Step::Take(SlotId(i)) => {
                    if std::mem::replace(&mut self.taken[*i], true) {
                        return Err(ScheduleError("a buffer is taken twice"));
                    }
                    self.now = self.now.saturating_add(slots[*i].bytes);
                    if self.now > self.worst {
                        self.worst = self.now;
                        self.at_worst.clone_from(&self.taken);
                    }
                }
                Step::Release(SlotId(i)) => {
                    if !std::mem::replace(&mut self.taken[*i], false) {
                        return Err(ScheduleError("a buffer is given back that is not taken"));
                    }
                    self.now = self.now.saturating_sub(slots[*i].bytes);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A schedule that is not one: a defect of the planner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the buffer schedule is malformed: {0}")]
pub struct ScheduleError(pub &'static str);

/// Projected memory of one task, by parts, reserved memory first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    parts: Vec<(Part, u64)>,
}

impl MemoryEstimate {
    /// Bytes, reserved memory included.
    pub fn total(&self) -> u64 {
        self.parts.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Bytes without what a process has once, for all of its tasks: what each further task at the same time adds.
    pub fn per_task(&self) -> u64 {
        self.total() - self.parts.iter().filter(|(p, _)| matches!(p, Part::Reserved | Part::Repository)).map(|(_, b)| b).sum::<u64>()
    }

    /// The same, where so much of what is reserved is for repositories.
    #[must_use]
    pub(crate) fn with_repositories(mut self, bytes: u64) -> MemoryEstimate {
        if let Some((at, (_, reserved))) = self.parts.iter_mut().enumerate().find(|(_, (p, _))| *p == Part::Reserved)
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

/// What a process holds that has repositories open: its own threads for them, the code that it touches, snapshots. Measured: 10 to 12 MB, of which pages of the program are the greater part.
const REPOSITORY_BYTES: u64 = 14_000_000;
/// References to chunks that a repository keeps decoded, at most, and the bytes of one. Measured: 65 to 70.
pub const CACHED_REFERENCES: u64 = 2_000_000;
const REFERENCE_BYTES: u64 = 75;

/// What a process holds for repositories, besides all tasks: `chunks` are those of each array that is read from one, and `any` says whether one
/// is read or written at all. The references of an array are held together while they are decoded.
pub(crate) fn repository_bytes(any: bool, chunks: impl Iterator<Item = u64> + Clone) -> u64 {
    let (all, largest) = (chunks.clone().fold(0, u64::saturating_add), chunks.max().unwrap_or(0));
    let references = all.min(CACHED_REFERENCES.saturating_add(largest));
    if any { REPOSITORY_BYTES.saturating_add(references.saturating_mul(REFERENCE_BYTES)) } else { 0 }
}

/// What a commit holds for each chunk that it refers to: receipts, and references until they are written. Measured: 370 to 430 bytes, and 40 to 80 of
/// the driver.
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
#[error("a task asked for {asked} bytes on top of {held}, over its projection of {limit}: this is a defect of the projection, please report it")]
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
/// Two things are held under the projection: the bounds of what is taken, and the bytes that really are allocated, idle
/// buffers included.
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
            // A larger one is left for who needs it: counted as its capacity, it would take the place of another buffer.
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

    /// A buffer of `len` bytes for a slot that is taken, whose bound is `bound`: it is made as large as that, so that whatever the slot holds next
    /// fits it too. What was never touched of it is not resident.
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

    /// From now on, so many bytes under the limit are a codec's own, until there is another limit: idle buffers do not take their place.
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
        /// The estimate is what a run of the same steps, with any number of blocks and chunks, reaches at most, and reaches.
        #[test]
        fn the_estimate_is_the_high_water_mark(
            sizes in prop::collection::vec(0u64..1000, 3..8), keep in 0usize..3, blocks in 1usize..5, chunks in 1usize..4, reserved in 0u64..50,
        ) {
            let mut s = Schedule::default();
            let ids: Vec<SlotId> = sizes.iter().map(|b| s.slot(Part::Region, *b)).collect();
            let (kept, rest) = ids.split_at(keep);
            s.once = kept.iter().map(|i| Step::Take(*i)).collect();
            s.each_block = rest.iter().map(|i| Step::Take(*i)).chain([Step::Fold]).chain(rest.iter().map(|i| Step::Release(*i))).collect();
            s.each_chunk = rest.iter().flat_map(|i| [Step::Take(*i), Step::Store(0), Step::Release(*i)]).collect();
            s.end = kept.iter().map(|i| Step::Release(*i)).collect();
            let estimate = s.estimate(reserved).unwrap();
            let mut arena = Arena::new(estimate.per_task());
            let mut highest = 0;
            let mut run = |steps: &[Step]| for step in steps {
                match step {
                    Step::Take(i) => { arena.take(s.slots[i.0].bytes).unwrap(); highest = highest.max(arena.taken); }
                    Step::Release(i) => arena.release(s.slots[i.0].bytes),
                    _ => {}
                }
            };
            run(&s.once);
            (0..blocks).for_each(|_| run(&s.each_block));
            run(&s.after);
            (0..chunks).for_each(|_| run(&s.each_chunk));
            run(&s.end);
            prop_assert_eq!(highest, estimate.per_task());
            prop_assert_eq!(estimate.total(), reserved + highest);
            prop_assert_eq!(arena.taken, 0);
        }

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

    #[test]
    fn a_list_that_leaks_is_refused() {
        let mut s = Schedule::default();
        let a = s.slot(Part::Output, 10);
        s.each_chunk = vec![Step::Take(a)];
        assert!(s.estimate(0).is_err());
        s.each_chunk = vec![Step::Take(a), Step::Take(a), Step::Release(a), Step::Release(a)];
        assert!(s.estimate(0).is_err());
    }
}
