//! What one task does, as a tree of steps, and the walker that all visitors of it share.
//!
//! A stage lowers to one [`Program`]. The memory projection ([`Program::estimate`]), the list of chunks that a task will read
//! (`plan/chunks.rs`: prefetch, traffic, cost), and the execution (`worker/steps.rs`) are visitors of the same tree, so none of them
//! repeats a loop that another has. What the loops run over is a [`Loops`]: nothing in particular for the projection, the blocks and
//! objects of one task for the others (`plan/walk.rs`).

use thiserror::Error;

use crate::memory::{MemoryEstimate, Part};

/// A named buffer and its bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The row of the projection that the buffer belongs to.
    pub part: Part,
    /// The most bytes that it takes.
    pub bytes: u64,
}

/// Number of a slot in its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub usize);

/// One step of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Allows the buffer to exist from here on.
    Take(SlotId),
    /// Ends the buffer.
    Release(SlotId),
    /// Runs the body once for each part of the task; the body releases what it takes.
    ForEach {
        /// The parts.
        over: Over,
        /// The steps for each.
        body: Vec<Step>,
    },
    /// Brings in the block of input `0…`.
    Load(usize),
    /// Runs a phase of the stage's kernel.
    Compute(Phase),
    /// Encodes the block of output `0…` and writes it to the current object.
    Store(usize),
}

/// The parts of a task that a loop goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Blocks of the stage's walk that overlap the task's region.
    Blocks,
    /// Objects (chunks or shards) of output `0…` that the task writes.
    Objects(usize),
    /// Blocks of the stage's walk inside the current object.
    Slices,
}

/// A phase of a stage's kernel. What it does is the stage kind's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Prepares the accumulators.
    Start,
    /// Prepares the output blocks of the current object.
    Begin,
    /// Computes with the loaded blocks of the current cell.
    Block,
    /// Makes the block of output `0…` from what was accumulated.
    Finish(usize),
}

/// The buffers of a task, and its steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// The buffers.
    pub slots: Vec<Slot>,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

/// A program that takes and releases its buffers in no order that holds: a defect of the planner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("malformed program: {0}")]
pub struct ProgramError(pub &'static str);

/// What the loops of a program run over.
pub(crate) trait Loops {
    /// A position in the loops.
    type At;

    /// Calls `visit` for each iteration of a loop, with the position inside.
    fn each<E>(&self, over: Over, at: &Self::At, visit: impl FnMut(&Self::At) -> Result<(), E>) -> Result<(), E>;
}

/// What is done at each step of a program.
pub(crate) trait Visitor<At> {
    /// Why a visit ends early.
    type Stop;

    /// Visits a step that is no loop.
    fn step(&mut self, step: &Step, at: &At) -> Result<(), Self::Stop>;

    /// Called before each iteration of a loop.
    fn enter(&mut self, body: &[Step], at: &At) -> Result<(), Self::Stop>;

    /// Called after each iteration of a loop.
    fn leave(&mut self) -> Result<(), Self::Stop> {
        Ok(())
    }
}

/// Goes through steps in order, and through the bodies of their loops.
pub(crate) fn walk<L: Loops, V: Visitor<L::At>>(steps: &[Step], loops: &L, at: &L::At, visitor: &mut V) -> Result<(), V::Stop> {
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
    /// Adds a buffer.
    pub fn slot(&mut self, part: Part, bytes: u64) -> SlotId {
        self.slots.push(Slot { part, bytes });
        SlotId(self.slots.len() - 1)
    }

    /// The bound of a buffer.
    pub fn bytes(&self, slot: SlotId) -> u64 {
        self.slots[slot.0].bytes
    }

    /// The projection: the highest sum of bounds that the steps reach, and its parts.
    ///
    /// # Errors
    /// Where a step takes what is taken or releases what is not, or where the body of a loop or the program leaves something taken:
    /// repeating it would not be bounded by going through it once.
    pub fn estimate(&self, reserved: u64) -> Result<MemoryEstimate, ProgramError> {
        let none = vec![false; self.slots.len()];
        let mut water = HighWater { slots: &self.slots, taken: none.clone(), now: reserved, worst: reserved, at_worst: none, entered: Vec::new() };
        walk(&self.steps, &Once, &(), &mut water)?;
        if water.taken.contains(&true) {
            return Err(ProgramError("the task ends with a buffer taken"));
        }
        let held = self.slots.iter().zip(water.at_worst).filter(|(_, held)| *held).map(|(slot, _)| (slot.part, slot.bytes));
        Ok(MemoryEstimate::new(reserved, held))
    }
}

/// Goes through each body once.
struct Once;

impl Loops for Once {
    type At = ();

    fn each<E>(&self, _: Over, at: &(), mut visit: impl FnMut(&()) -> Result<(), E>) -> Result<(), E> {
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
    /// What was taken when each open loop was entered.
    entered: Vec<Vec<bool>>,
}

impl Visitor<()> for HighWater<'_> {
    type Stop = ProgramError;

    fn step(&mut self, step: &Step, (): &()) -> Result<(), ProgramError> {
        match step {
            Step::Take(SlotId(i)) => {
                if std::mem::replace(&mut self.taken[*i], true) {
                    return Err(ProgramError("a buffer is taken twice"));
                }
                self.now = self.now.saturating_add(self.slots[*i].bytes);
                if self.now > self.worst {
                    self.worst = self.now;
                    self.at_worst.clone_from(&self.taken);
                }
            }
            Step::Release(SlotId(i)) => {
                if !std::mem::replace(&mut self.taken[*i], false) {
                    return Err(ProgramError("a buffer is released that is not taken"));
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
        if self.entered.pop().as_ref() == Some(&self.taken) { Ok(()) } else { Err(ProgramError("a loop's body does not release what it takes")) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::Arena;

    /// Runs each loop a number of times.
    struct Times(usize);

    impl Loops for Times {
        type At = ();

        fn each<E>(&self, _: Over, at: &(), mut visit: impl FnMut(&()) -> Result<(), E>) -> Result<(), E> {
            (0..self.0).try_for_each(|_| visit(at))
        }
    }

    /// Takes and releases permits as a worker does.
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

    /// Loops in loops, side by side or nested.
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

    /// Wraps every list of steps, at each depth, in a slot of its own.
    fn with_slots(program: &mut Program, steps: Vec<Step>, sizes: &mut impl Iterator<Item = u64>) -> Vec<Step> {
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
        /// The estimate is what a run of the same program reaches at most, and reaches, however often its loops run.
        #[test]
        fn the_estimate_is_the_high_water_mark(
            shape in bodies(), sizes in prop::collection::vec(0u64..1000, 12), times in 1usize..4, reserved in 0u64..50,
        ) {
            let mut program = Program::default();
            let mut sizes = sizes.into_iter().cycle();
            program.steps = with_slots(&mut program, shape, &mut sizes);
            let estimate = program.estimate(reserved).unwrap();
            let mut permits = Permits { program: &program, arena: Arena::new(estimate.per_task()), highest: 0 };
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
        assert_eq!(program.estimate(0).unwrap_err().to_string(), format!("malformed program: {why}"));
    }

    #[test]
    fn a_program_that_leaks_is_refused() {
        let each = |body| vec![Step::ForEach { over: Over::Blocks, body }];
        refused(|a| vec![Step::Take(a)], "the task ends with a buffer taken");
        refused(|a| vec![Step::Take(a), Step::Take(a)], "a buffer is taken twice");
        refused(|a| vec![Step::Release(a)], "a buffer is released that is not taken");
        refused(|a| each(vec![Step::Take(a)]), "a loop's body does not release what it takes");
        refused(|a| [vec![Step::Take(a)], each(vec![Step::Release(a)])].concat(), "a loop's body does not release what it takes");
    }
}
