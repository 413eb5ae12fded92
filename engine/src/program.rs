//! Task programs: the steps of one task as a tree, and the traversal that its visitors share.
//!
//! A stage lowers to one [`Program`]. Three visitors share the tree, so none repeats a loop of
//! another:
//!
//! - [`Program::estimate`] projects memory.
//! - `plan/chunks.rs` lists the chunks that a task reads, for prefetch, traffic and cost.
//! - `worker/steps.rs` executes the task.
//!
//! A `Loops` defines the iterations of each loop. The projection runs each body once. The other
//! visitors iterate over the blocks and objects of one task (`plan/loops.rs`).

use thiserror::Error;

use crate::memory::{MemoryEstimate, Part};

/// A named buffer with an upper bound on its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The row of the projection to which the buffer belongs.
    pub part: Part,
    /// The maximum size of the buffer in bytes.
    pub bytes: u64,
}

/// The index of a slot in its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub usize);

/// One step of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Permits the buffer to be allocated from this step on.
    Take(SlotId),
    /// Releases the buffer.
    Release(SlotId),
    /// Runs the body once for each part of the task. The body releases every slot that it takes.
    ForEach {
        /// The parts to iterate over.
        over: Over,
        /// The steps to run for each part.
        body: Vec<Step>,
    },
    /// Loads the block of an input, by input index.
    Load(usize),
    /// Runs a phase of the stage's kernel.
    Compute(Phase),
    /// Encodes the block of an output, by output index, and writes it to the current object.
    Store(usize),
}

/// The parts of a task over which a loop iterates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The blocks of the stage that overlap the task's region.
    Blocks,
    /// The objects (chunks or shards) that the task writes to an output, by output index.
    Objects(usize),
    /// The blocks of the stage inside the current object.
    Slices,
}

/// A phase of a stage's kernel. The stage kind defines its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Prepares the accumulators.
    Start,
    /// Prepares the output blocks of the current object.
    Begin,
    /// Computes with the loaded blocks of the current cell.
    Block,
    /// Computes the block of an output, by output index, from the accumulators.
    Finish(usize),
}

/// The buffers and steps of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// The buffers.
    pub slots: Vec<Slot>,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

/// The error for a program whose takes and releases do not match: a defect of the planner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("malformed program: {0}")]
pub struct ProgramError(pub &'static str);

/// The iterations of a program's loops.
pub(crate) trait Loops {
    /// A position in the loops.
    type Position;

    /// Calls `visit` for each iteration of a loop, with the position inside.
    fn each<E>(
        &self,
        over: Over,
        at: &Self::Position,
        visit: impl FnMut(&Self::Position) -> Result<(), E>,
    ) -> Result<(), E>;
}

/// A visitor of a program's steps.
pub(crate) trait Visitor<Position> {
    /// The reason for which a visit ends early.
    type Stop;

    /// Visits a step other than a loop.
    fn step(&mut self, step: &Step, at: &Position) -> Result<(), Self::Stop>;

    /// Called before each iteration of a loop.
    fn enter(&mut self, body: &[Step], at: &Position) -> Result<(), Self::Stop>;

    /// Called after each iteration of a loop.
    fn leave(&mut self) -> Result<(), Self::Stop> {
        Ok(())
    }
}

/// Visits steps in order, including the bodies of their loops.
pub(crate) fn walk<L: Loops, V: Visitor<L::Position>>(
    steps: &[Step],
    loops: &L,
    at: &L::Position,
    visitor: &mut V,
) -> Result<(), V::Stop> {
    for step in steps {
        match step {
            Step::ForEach { over, body } => loops.each(*over, at, |at| {
                visitor.enter(body, at)?;
                walk(body, loops, at, visitor)?;
                visitor.leave()
            })?,
            _ => visitor.step(step, at)?,
        }
    }
    Ok(())
}

impl Program {
    /// Adds a buffer and returns its slot.
    pub fn slot(&mut self, part: Part, bytes: u64) -> SlotId {
        self.slots.push(Slot { part, bytes });
        SlotId(self.slots.len() - 1)
    }

    /// Returns the bound of a buffer in bytes.
    pub fn bytes(&self, slot: SlotId) -> u64 {
        self.slots[slot.0].bytes
    }

    /// Returns the memory projection: the largest sum of bounds that the steps reach, and its
    /// parts.
    ///
    /// # Errors
    /// Returns an error if a step takes a slot that is taken or releases a slot that is not.
    /// Returns an error if a loop body or the program leaves a slot taken: a single pass would then
    /// not bound repeated passes.
    pub fn estimate(&self, reserved: u64) -> Result<MemoryEstimate, ProgramError> {
        let none = vec![false; self.slots.len()];
        let mut water = HighWater {
            slots: &self.slots,
            taken: none.clone(),
            now: reserved,
            worst: reserved,
            at_worst: none,
            entered: Vec::new(),
        };
        walk(&self.steps, &Once, &(), &mut water)?;
        if water.taken.contains(&true) {
            return Err(ProgramError("the program ends with a slot taken"));
        }
        let held = self
            .slots
            .iter()
            .zip(water.at_worst)
            .filter(|(_, held)| *held)
            .map(|(slot, _)| (slot.part, slot.bytes));
        Ok(MemoryEstimate::new(reserved, held))
    }
}

/// Loops that run each body once.
struct Once;

impl Loops for Once {
    type Position = ();

    fn each<E>(
        &self,
        _: Over,
        at: &(),
        mut visit: impl FnMut(&()) -> Result<(), E>,
    ) -> Result<(), E> {
        visit(at)
    }
}

/// The visitor that projects memory.
struct HighWater<'a> {
    slots: &'a [Slot],
    taken: Vec<bool>,
    now: u64,
    worst: u64,
    at_worst: Vec<bool>,
    /// The slots that were taken on entry to each open loop.
    entered: Vec<Vec<bool>>,
}

impl Visitor<()> for HighWater<'_> {
    type Stop = ProgramError;

    fn step(&mut self, step: &Step, (): &()) -> Result<(), ProgramError> {
        match step {
            Step::Take(SlotId(i)) => {
                if std::mem::replace(&mut self.taken[*i], true) {
                    return Err(ProgramError("a slot is taken twice"));
                }
                self.now = self.now.saturating_add(self.slots[*i].bytes);
                if self.now > self.worst {
                    self.worst = self.now;
                    self.at_worst.clone_from(&self.taken);
                }
            }
            Step::Release(SlotId(i)) => {
                if !std::mem::replace(&mut self.taken[*i], false) {
                    return Err(ProgramError("a slot is released without being taken"));
                }
                self.now = self.now.saturating_sub(self.slots[*i].bytes);
            }
            Step::Load(_) | Step::Compute(_) | Step::Store(_) | Step::ForEach { .. } => {}
        }
        Ok(())
    }

    fn enter(&mut self, _: &[Step], (): &()) -> Result<(), ProgramError> {
        self.entered.push(self.taken.clone());
        Ok(())
    }

    fn leave(&mut self) -> Result<(), ProgramError> {
        if self.entered.pop().as_ref() == Some(&self.taken) {
            Ok(())
        } else {
            Err(ProgramError("a loop body does not release the slots that it takes"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::Arena;

    /// Loops that run each body a fixed number of times.
    struct Times(usize);

    impl Loops for Times {
        type Position = ();

        fn each<E>(
            &self,
            _: Over,
            at: &(),
            mut visit: impl FnMut(&()) -> Result<(), E>,
        ) -> Result<(), E> {
            (0..self.0).try_for_each(|_| visit(at))
        }
    }

    /// A visitor that takes and releases permits as a worker does.
    struct Permits<'a> {
        program: &'a Program,
        arena: Arena,
        highest: u64,
    }

    impl Visitor<()> for Permits<'_> {
        type Stop = crate::memory::Overrun;

        fn step(&mut self, step: &Step, (): &()) -> Result<(), Self::Stop> {
            match step {
                Step::Take(slot) => {
                    self.arena.take(self.program.bytes(*slot))?;
                    self.highest = self.highest.max(self.arena.taken());
                }
                Step::Release(slot) => self.arena.release(self.program.bytes(*slot)),
                _ => {}
            }
            Ok(())
        }

        fn enter(&mut self, _: &[Step], (): &()) -> Result<(), Self::Stop> {
            Ok(())
        }
    }

    /// Generates loops, nested or in sequence.
    fn bodies() -> impl Strategy<Value = Vec<Step>> {
        Just(Vec::new()).prop_recursive(4, 40, 4, |inner| {
            prop::collection::vec((any::<bool>(), inner), 1..4).prop_map(|parts| {
                let step = |(repeats, body): (bool, Vec<Step>)| {
                    if repeats { vec![Step::ForEach { over: Over::Blocks, body }] } else { body }
                };
                parts.into_iter().flat_map(step).collect::<Vec<Step>>()
            })
        })
    }

    /// Wraps the list of steps at each depth in a slot of its own.
    fn with_slots(
        program: &mut Program,
        steps: Vec<Step>,
        sizes: &mut impl Iterator<Item = u64>,
    ) -> Vec<Step> {
        let slot = program.slot(Part::Region, sizes.next().unwrap_or(7));
        let mut all = vec![Step::Take(slot)];
        for step in steps {
            match step {
                Step::ForEach { over, body } => {
                    let body = with_slots(program, body, sizes);
                    all.push(Step::ForEach { over, body });
                }
                other => all.push(other),
            }
        }
        all.push(Step::Release(slot));
        all
    }

    proptest! {
        /// The estimate equals the maximum that a run of the same program reaches, for any number
        /// of iterations.
        #[test]
        fn the_estimate_is_the_high_water_mark(
            shape in bodies(),
            sizes in prop::collection::vec(0u64..1000, 12),
            times in 1usize..4,
            reserved in 0u64..50,
        ) {
            let mut program = Program::default();
            let mut sizes = sizes.into_iter().cycle();
            program.steps = with_slots(&mut program, shape, &mut sizes);
            let estimate = program.estimate(reserved).unwrap();
            let arena = Arena::new(estimate.per_task());
            let mut permits = Permits { program: &program, arena, highest: 0 };
            walk(&program.steps, &Times(times), &(), &mut permits).unwrap();
            prop_assert_eq!(permits.highest, estimate.per_task());
            prop_assert_eq!(estimate.total(), reserved + permits.highest);
            prop_assert_eq!(permits.arena.taken(), 0);
        }
    }

    #[track_caller]
    fn refused(steps: impl Fn(SlotId) -> Vec<Step>, why: &str) {
        let mut program = Program::default();
        let slot = program.slot(Part::Output, 10);
        program.steps = steps(slot);
        assert_eq!(
            program.estimate(0).unwrap_err().to_string(),
            format!("malformed program: {why}")
        );
    }

    #[test]
    fn a_program_that_leaks_is_refused() {
        let each = |body| vec![Step::ForEach { over: Over::Blocks, body }];
        refused(|a| vec![Step::Take(a)], "the program ends with a slot taken");
        refused(|a| vec![Step::Take(a), Step::Take(a)], "a slot is taken twice");
        refused(|a| vec![Step::Release(a)], "a slot is released without being taken");
        refused(
            |a| each(vec![Step::Take(a)]),
            "a loop body does not release the slots that it takes",
        );
        refused(
            |a| [vec![Step::Take(a)], each(vec![Step::Release(a)])].concat(),
            "a loop body does not release the slots that it takes",
        );
    }
}
