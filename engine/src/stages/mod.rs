//! Stage kinds: the computations of tasks, one module for each kind.
//!
//! A kind owns its specifics: validation, division into tasks, the [program](crate::program),
//! reads, explanation, and the execution of its phases. All other code dispatches through the list
//! of kinds below.
//!
//! To add a kind, write a module with a kernel that implements `StageKind` and a draft that
//! implements `DraftKind`. If users build the kind, add an operation that implements `StageOp`.
//! Then name these types in the list. `ARCHITECTURE.md` has an example.

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
use crate::plan::loops::Position;
use crate::plan::lower::{Draft, Lowering};
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

/// Declares the stage kinds: the types of each kind's kernel, draft and optional operation.
macro_rules! stage_kinds {
    ($($(#[$doc:meta])* $kind:ident($kernel:ty, $draft:ty $(, $op:ty)?);)*) => {
        /// The computation of a task.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Kernel {
            $($(#[$doc])* $kind($kernel),)*
        }

        impl Kernel {
            /// Returns the name of the user's kernel, if this is one.
            pub fn user_kernel(&self) -> Option<&str> {
                self.kind().user_kernel()
            }

            /// Returns the stage kind: the only dispatch over kinds.
            pub(crate) fn kind(&self) -> &dyn StageKind {
                match self {
                    $(Kernel::$kind(kernel) => kernel,)*
                }
            }
        }

        /// A stage of some kind before its division into tasks.
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

            /// Returns a draft that combines both drafts, if their kind supports it.
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

        /// A graph operation that is lowered to stages of its own kind.
        #[derive(Debug)]
        #[allow(missing_docs)]
        pub enum Operation {
            $($($kind($op),)?)*
        }

        impl Operation {
            /// Returns the arguments by value.
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
    /// An elementwise function whose results are the outputs. A copy is the identity.
    Map(map::Map, map::MapDraft);
    /// Reductions of the results of an elementwise function along axes of the iteration space.
    Reduce(reduce::Reduce, reduce::ReduceDraft, reduce::ReduceNode);
    /// A cumulative sum or product along an axis, block by block.
    Scan(scan::Scan, scan::ScanDraft, scan::ScanNode);
    /// Matrix products, summed along axes of the iteration space.
    Contract(contract::Contract, contract::ContractDraft, contract::ContractNode);
    /// A user's kernel on whole blocks.
    User(user::User, user::UserDraft, user::UserNode);
}

/// The specifics of a stage kind.
pub(crate) trait StageKind: fmt::Debug {
    /// Returns the dtypes of the inputs.
    fn inputs(&self) -> Vec<DType>;

    /// Returns the expressions that are evaluated over loaded blocks.
    fn exprs(&self) -> Vec<&Expr>;

    /// Checks the kind's requirements on a stage and returns the dtypes of its outputs.
    fn check(&self, plan: &Plan, stage: &Stage) -> Result<Vec<DType>, PlanError>;

    /// Returns the kind's own steps, which run between the steps common to all stages, and adds the
    /// slots that they use.
    fn program(&self, layout: &mut Builder<'_>) -> Result<Vec<Step>, PlanError>;

    /// Returns a description of the stage's work, such as "reduces 2 results along axis 0".
    fn description(&self) -> String;

    /// Returns the formula of output `j`, given the names of the inputs.
    fn formula(&self, j: usize, names: &[String]) -> String;

    /// Compiles the kernel for a worker.
    ///
    /// # Errors
    /// Returns an error if the worker's program lacks a user's kernel.
    fn compile(&self, kernels: &KernelRegistry) -> Result<Box<dyn Compiled>, String>;

    /// Checks that a worker's program has everything that [`compile`](StageKind::compile) needs.
    fn resolve(&self, _kernels: &KernelRegistry) -> Result<(), String> {
        Ok(())
    }

    /// Returns the name of the user's kernel, if this is one.
    fn user_kernel(&self) -> Option<&str> {
        None
    }

    /// Returns true if tasks reduce along an axis of the iteration space, which the result does not
    /// have.
    fn folds(&self, _axis: usize) -> bool {
        false
    }

    /// Returns true if a task writes exactly one object of each output.
    fn writes_one_object(&self) -> bool {
        false
    }

    /// Returns the bytes of scratch memory for blocks of this shape, including those that a thread
    /// holds between chunks.
    fn scratch_bytes(&self, _block: &[u64]) -> u64 {
        self.exprs().into_iter().map(eval::scratch_bytes).sum::<u64>() + TASK_OVERHEAD_BYTES
    }

    /// Returns the read mode of an input if the kind requires a specific one.
    fn read_mode(&self, _i: usize) -> Option<ReadMode> {
        None
    }

    /// Returns true if blocks need every element in C order, even along axes where their values
    /// repeat.
    fn reads_dense(&self) -> bool {
        false
    }

    /// Returns the shape of the space over which input `i` is read.
    fn input_shape(&self, stage: &Stage, _i: usize) -> Vec<u64> {
        stage.tasks.shape()
    }

    /// Returns the shape of the largest block of input `i`, for stage blocks of this shape.
    fn input_block(&self, _i: usize, block: &[u64]) -> Vec<u64> {
        block.to_vec()
    }

    /// Returns the region of input `i` that the task at `coords` reads for a cell.
    fn input_region(&self, _stage: &Stage, _i: usize, _coords: &[u64], cell: &Region) -> Region {
        cell.clone()
    }

    /// Returns the blocks in which all tasks read input `i`, and the number of times that all of
    /// them are read.
    fn input_blocks(&self, stage: &Stage, _i: usize) -> (ChunkGrid, f64) {
        (stage.task_blocks(), 1.0)
    }

    /// Returns true if a task processes its region block by block. Other tasks
    /// load the whole region at once, or in slices.
    fn iterates_blocks(&self) -> bool {
        true
    }
}

/// A kernel compiled for a worker: expressions with assigned registers, or a resolved user's
/// kernel.
pub(crate) trait Compiled: fmt::Debug + Send {
    /// Runs a phase at a position of the task.
    fn compute(
        &mut self,
        phase: Phase,
        at: &Position,
        task: &mut TaskState<'_>,
    ) -> Result<(), Cause>;
}

/// A stage before its division into tasks.
pub(crate) trait DraftKind: fmt::Debug {
    /// Divides the draft into the stages that compute it, and adds arrays for partial results.
    fn stages(&self, draft: &Draft, lowering: &mut Lowering<'_>) -> Vec<Stage>;

    /// Returns a draft that combines this one and another over one iteration space, or `None` if
    /// they cannot be combined.
    fn join(&self, _other: &Self) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }

    /// Returns the single stage of a joined draft, for a check of its memory. Returns `None` for
    /// kinds that are never joined.
    fn joined_stage(&self, _draft: &Draft, _lowering: &Lowering<'_>) -> Option<Stage> {
        None
    }

    /// Returns the inputs besides the draft's own.
    fn more_inputs(&self) -> &[StageInput] {
        &[]
    }
}

/// A graph operation with a stage kind.
pub(crate) trait StageOp: fmt::Debug {
    /// Returns the arguments.
    fn inputs(&self) -> &[NodeRef];

    /// Returns the arguments by value.
    fn into_inputs(self) -> Vec<NodeRef>
    where
        Self: Sized;

    /// Returns the display name of its stages.
    fn name(&self) -> &'static str;

    /// Returns the reason for which its result gets an array if other operations read it.
    fn reason(&self) -> &'static str;

    /// Marks the arguments that cannot be folded into its stage.
    fn mark(&self, _lowering: &mut Lowering<'_>) {}

    /// Drafts the stage that computes the operation into an array. Returns `None` if the array is a
    /// copy of the one that holds the result.
    fn draft(
        &self,
        node: &NodeRef,
        target: ArrayId,
        lowering: &mut Lowering<'_>,
    ) -> Result<Option<Draft>, PlanError>;

    /// Returns true if other operations may read the result from an output with these objects.
    fn is_readable_from(&self, _node: &NodeRef, _objects: &ChunkGrid) -> bool {
        true
    }

    /// Adds the kernels that the operation needs to a registry.
    fn register(&self, _kernels: &mut KernelRegistry) {}
}
