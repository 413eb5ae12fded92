//! Stage kinds: what a task computes, one module for each.
//!
//! A kind owns what is particular to it: its check, how it is cut into tasks, its [program](crate::program), what it reads, how it
//! explains itself, and how its phases are executed. Everything else dispatches through the one list below.
//!
//! To add a kind, write a module with a kernel that implements [`StageKind`], a draft that implements [`DraftKind`] and, where users
//! build it, an operation that implements [`StageOp`]; then name them in the list. `ARCHITECTURE.md` has an example.

pub(crate) mod contract;
pub(crate) mod copy;
pub(crate) mod map;
pub(crate) mod reduce;
pub(crate) mod scan;
pub(crate) mod user;

use std::fmt;

use freestone_kernels::{DType, Expr, eval};
use serde::{Deserialize, Serialize};

use crate::graph::NodeRef;
use crate::grid::{ChunkGrid, Region};
use crate::plan::layout::{Builder, TASK_OVERHEAD_BYTES};
use crate::plan::lower::{Draft, Lowering};
use crate::plan::walk::At;
use crate::plan::{ArrayId, Plan, PlanError, ReadMode, Stage, StageInput};
use crate::program::{Phase, Step};
use crate::state::TaskState;
use crate::task::Cause;
use crate::user::KernelRegistry;

pub use contract::{Contract, ContractNode};
pub use map::Map;
pub use reduce::{Fold, Reduce, ReduceNode};
pub use scan::{Scan, ScanNode};
pub use user::{User, UserBlocks, UserNode};

/// Declares the kinds of stage: for each the type of its kernel, of its draft and, where there is one, of its operation.
macro_rules! stage_kinds {
    ($($(#[$doc:meta])* $kind:ident($kernel:ty, $draft:ty $(, $op:ty)?);)*) => {
        /// What a task computes.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Kernel {
            $($(#[$doc])* $kind($kernel),)*
        }

        impl Kernel {
            /// The name of the user's kernel, if it is one.
            pub fn user_kernel(&self) -> Option<&str> {
                self.kind().user_kernel()
            }

            /// The one dispatch over kinds.
            pub(crate) fn kind(&self) -> &dyn StageKind {
                match self {
                    $(Kernel::$kind(kernel) => kernel,)*
                }
            }
        }

        /// A stage of some kind before it is cut into tasks.
        #[derive(Clone, Debug, PartialEq)]
        pub(crate) enum AnyDraft {
            $($kind($draft),)*
        }

        impl AnyDraft {
            pub(crate) fn kind(&self) -> &dyn DraftKind {
                match self {
                    $(AnyDraft::$kind(draft) => draft,)*
                }
            }

            /// Returns the draft that does what both do, if their kind can.
            pub(crate) fn join(&self, other: &AnyDraft) -> Option<AnyDraft> {
                match (self, other) {
                    $((AnyDraft::$kind(a), AnyDraft::$kind(b)) => a.join(b).map(AnyDraft::$kind),)*
                    _ => None,
                }
            }
        }

        $($(
            impl From<$op> for Operation {
                fn from(op: $op) -> Operation {
                    Operation::$kind(op)
                }
            }
        )?)*

        /// An operation of the graph that is lowered to stages of its own kind.
        #[derive(Debug)]
        #[allow(missing_docs)]
        pub enum Operation {
            $($($kind($op),)?)*
        }

        impl Operation {
            /// Its arguments, by value.
            pub(crate) fn into_inputs(self) -> Vec<NodeRef> {
                match self {
                    $($(Operation::$kind(op) => { let op: $op = op; op.into_inputs() })?)*
                }
            }

            pub(crate) fn kind(&self) -> &dyn StageOp {
                match self {
                    $($(Operation::$kind(op) => { let op: &$op = op; op })?)*
                }
            }
        }
    };
}

stage_kinds! {
    /// An elementwise function; its results are the outputs. A copy is the identity.
    Map(map::Map, map::MapDraft);
    /// Folds of the results of an elementwise function along axes of the iteration space.
    Reduce(reduce::Reduce, reduce::ReduceDraft, reduce::ReduceNode);
    /// A running sum or product along an axis, chunk by chunk of the walk.
    Scan(scan::Scan, scan::ScanDraft, scan::ScanNode);
    /// Products of matrices, summed along axes of the iteration space.
    Contract(contract::Contract, contract::ContractDraft, contract::ContractNode);
    /// A user's kernel on whole blocks.
    User(user::User, user::UserDraft, user::UserNode);
}

/// What is particular to a kind of stage.
pub(crate) trait StageKind: fmt::Debug {
    /// Dtypes of the inputs.
    fn inputs(&self) -> Vec<DType>;

    /// The expressions that are evaluated over loaded blocks.
    fn exprs(&self) -> Vec<&Expr>;

    /// Checks what the kind demands of a stage, and returns the dtypes of its outputs.
    fn check(&self, plan: &Plan, stage: &Stage) -> Result<Vec<DType>, PlanError>;

    /// Returns the steps of a task between those that every stage has, and adds the slots that they name.
    fn program(&self, layout: &mut Builder<'_>) -> Result<Vec<Step>, PlanError>;

    /// The stage's work in words: "folds 2 results along axis 0".
    fn description(&self) -> String;

    /// What is computed for output `j`, of inputs with these names.
    fn formula(&self, j: usize, names: &[String]) -> String;

    /// Prepares the kernel for a worker.
    ///
    /// # Errors
    /// Where the worker's program lacks a user's kernel.
    fn compile(&self, kernels: &KernelRegistry) -> Result<Box<dyn Compiled>, String>;

    /// Checks that a worker's program has what [`compile`](StageKind::compile) needs.
    fn resolve(&self, _kernels: &KernelRegistry) -> Result<(), String> {
        Ok(())
    }

    /// The name of the user's kernel, if it is one.
    fn user_kernel(&self) -> Option<&str> {
        None
    }

    /// True if tasks fold along an axis of the iteration space, which the result does not have.
    fn folds(&self, _axis: usize) -> bool {
        false
    }

    /// True if a task writes exactly one object of each output.
    fn writes_one_object(&self) -> bool {
        false
    }

    /// What the stage does after it reads, for its explanation.
    fn after_reading(&self) -> &'static str {
        "reads, and then folds"
    }

    /// Bytes of scratch memory for blocks of this shape, with what a thread holds between chunks.
    fn scratch_bytes(&self, _block: &[u64]) -> u64 {
        self.exprs().into_iter().map(eval::scratch_bytes).sum::<u64>() + TASK_OVERHEAD_BYTES
    }

    /// How an input must be read, where its kind leaves no choice.
    fn read_mode(&self, _i: usize) -> Option<ReadMode> {
        None
    }

    /// True if an input's block needs every element in C order, also along axes where its values repeat.
    fn reads_dense(&self) -> bool {
        false
    }

    /// Shape of the space over which input `i` is read.
    fn input_shape(&self, stage: &Stage, _i: usize) -> Vec<u64> {
        stage.tasks.shape()
    }

    /// Largest block of input `i`, of a stage with blocks of this shape.
    fn input_block(&self, _i: usize, block: &[u64]) -> Vec<u64> {
        block.to_vec()
    }

    /// The region of input `i` that task `coords` reads for a cell.
    fn input_region(&self, _stage: &Stage, _i: usize, _coords: &[u64], cell: &Region) -> Region {
        cell.clone()
    }

    /// The blocks in which input `i` is read by all tasks, and how often all of them are.
    fn input_blocks(&self, stage: &Stage, _i: usize) -> (ChunkGrid, f64) {
        (stage.blocks(), 1.0)
    }

    /// True if a task goes through its region block by block of the stage's walk; else it loads its whole region at once, or slices.
    fn walks(&self) -> bool {
        true
    }
}

/// A kernel as a worker has it: expressions assigned to registers, a user's code found.
pub(crate) trait Compiled: fmt::Debug + Send {
    /// Runs a phase at a position of the task.
    fn compute(&mut self, phase: Phase, at: &At, task: &mut TaskState<'_>) -> Result<(), Cause>;
}

/// A stage before it is cut into tasks.
pub(crate) trait DraftKind: fmt::Debug {
    /// Cuts the draft into the stages that compute it; partial results get arrays of their own.
    fn stages(&self, draft: &Draft, lowering: &mut Lowering<'_>) -> Vec<Stage>;

    /// The draft that does what this one and another do, over one iteration space; `None` if they cannot be one.
    fn join(&self, _other: &Self) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }

    /// The one stage that a joined draft would be, to see whether it fits; `None` for kinds that are never joined.
    fn joined_stage(&self, _draft: &Draft, _lowering: &Lowering<'_>) -> Option<Stage> {
        None
    }

    /// Inputs that are not the draft's own.
    fn more_inputs(&self) -> &[StageInput] {
        &[]
    }
}

/// An operation of the graph with a kind of stage.
pub(crate) trait StageOp: fmt::Debug {
    /// Its arguments.
    fn inputs(&self) -> &[NodeRef];

    /// Its arguments, by value.
    fn into_inputs(self) -> Vec<NodeRef>
    where
        Self: Sized;

    /// The name of its stages, for people.
    fn name(&self) -> &'static str;

    /// Why its result gets an array where others read it.
    fn reason(&self) -> &'static str;

    /// Marks those of its arguments that cannot be folded into its stage.
    fn mark(&self, _lowering: &mut Lowering<'_>) {}

    /// Drafts the stage that computes it into an array; `None` if that array is to be copied from the one that has the result.
    fn draft(&self, node: &NodeRef, target: ArrayId, lowering: &mut Lowering<'_>) -> Result<Option<Draft>, PlanError>;

    /// True if others may read it from an output with these objects.
    fn is_readable_from(&self, _node: &NodeRef, _objects: &ChunkGrid) -> bool {
        true
    }

    /// Adds the kernels that it needs to a registry.
    fn register(&self, _kernels: &mut KernelRegistry) {}
}
