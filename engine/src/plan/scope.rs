//! A borrowed view of a plan's arrays and of the limits for the layout of its stages.
//!
//! Lowering lays out many candidates over the arrays built so far, and a finished plan lays out its
//! stages. Neither copies the arrays.

use super::{ArrayId, Place, PlanArray};
use crate::storage::is_remote_url;

/// The inputs of a stage's layout other than the stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope<'a> {
    /// The arrays, by array id.
    pub(crate) arrays: &'a [PlanArray],
    /// True if the work directory is accessed over a network.
    pub(crate) remote_work: bool,
    /// The maximum bytes to which a task may grow for optimizations that only save time.
    pub(crate) soft_mem: u64,
    /// The number of concurrent tasks that the plan is made for.
    pub(crate) parallelism: u64,
    /// The bytes that a process holds once, for all of its tasks.
    pub(crate) process_mem: u64,
    /// The part of `process_mem` for repositories, in bytes.
    pub(crate) repository_mem: u64,
}

impl<'a> Scope<'a> {
    /// Returns an array.
    pub(crate) fn array(&self, id: ArrayId) -> &'a PlanArray {
        &self.arrays[id.0]
    }

    /// Returns true if the chunks of an array are transferred over a network.
    pub(crate) fn is_remote(&self, array: &PlanArray) -> bool {
        match &array.place {
            Place::Input { url, .. } | Place::Output { url, .. } => is_remote_url(url),
            Place::Work => self.remote_work,
            Place::Constant(_) | Place::Generated(_) => false,
        }
    }
}
