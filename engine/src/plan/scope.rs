//! The arrays of a plan and the limits under which its stages are laid out, borrowed.
//!
//! Lowering lays out many candidates over the arrays that it has so far; a finished plan lays out its stages. Neither copies an array
//! for that.

use super::{ArrayId, Place, PlanArray};
use crate::storage::is_remote_url;

/// What the layout of a stage depends on besides the stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope<'a> {
    /// The arrays, by number.
    pub(crate) arrays: &'a [PlanArray],
    /// The work directory is across a network.
    pub(crate) remote_work: bool,
    /// Bytes that a task may grow to where that only saves time.
    pub(crate) growth_mem: u64,
    /// Bytes that a process has once, for all of its tasks.
    pub(crate) process_mem: u64,
    /// Bytes of these for repositories.
    pub(crate) repository_mem: u64,
}

impl<'a> Scope<'a> {
    /// An array.
    pub(crate) fn array(&self, id: ArrayId) -> &'a PlanArray {
        &self.arrays[id.0]
    }

    /// True if an array's chunks cross a network.
    pub(crate) fn is_remote(&self, array: &PlanArray) -> bool {
        match &array.place {
            Place::Input { url, .. } | Place::Output { url, .. } => is_remote_url(url),
            Place::Work => self.remote_work,
            Place::Constant(_) | Place::Generated(_) => false,
        }
    }
}
