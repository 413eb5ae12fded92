//! Flushes of the journal, and removal of intermediates without readers.

use super::{Queue, State};
use crate::finished::Finished;
use crate::plan::{ArrayId, Place, Stage, StageId};
use crate::storage::StorageError;

impl Queue<'_> {
    /// Flushes the journal, and removes the intermediates whose removal it records. `save` makes
    /// the results of finished tasks durable first; its argument returns true for an array that
    /// needs no saving: it is about to be removed, or all tasks are finished.
    ///
    /// If this process is killed between such an omission and the next flush, the array's chunks
    /// are missing. A task that reads them when the run is resumed has them written again.
    ///
    /// A failure to remove an intermediate is ignored: it is removed with the run's folder.
    pub(in crate::driver) fn flush(
        &self,
        save: impl FnOnce(&dyn Fn(&str) -> bool) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let recorded: Vec<ArrayId> = {
            let mut state = self.lock();
            state.stages.iter_mut().for_each(|s| s.is_journaled |= s.is_started);
            state.removals.clone()
        };
        if let Some(journal) = self.folder.journal {
            let is_removed = |name: &str| self.is_unneeded(name);
            journal.flush(|| save(&is_removed))?;
        }
        let removable = {
            let mut state = self.lock();
            let mut removals = std::mem::take(&mut state.removals);
            // An intermediate that has readers again stays.
            removals.retain(|id| !self.has_readers(&state, *id));
            // A removal that was added after the flush waits for the next one.
            let (now, later): (Vec<ArrayId>, Vec<ArrayId>) =
                removals.into_iter().partition(|id| recorded.contains(id));
            state.removals = later;
            now.iter().for_each(|id| drop(state.removed.insert(*id, Finished::default())));
            now
        };
        self.remove(&removable);
        Ok(())
    }

    /// Returns true if no task needs an array again: it waits for its removal, or all tasks are
    /// finished.
    fn is_unneeded(&self, name: &str) -> bool {
        let has_name = |id: &ArrayId| self.plan.plan().array(*id).name == name;
        let is_removed = self.lock().removals.iter().any(has_name);
        is_removed || self.is_done()
    }

    /// Returns true if intermediates wait for a flush to be removed.
    pub(in crate::driver) fn has_removals(&self) -> bool {
        !self.lock().removals.is_empty()
    }

    /// Removes intermediates from storage.
    pub(super) fn remove(&self, arrays: &[ArrayId]) {
        for id in arrays {
            let name = &self.plan.plan().array(*id).name;
            let _ = self.folder.intermediates.remove(&format!("{}/{name}/", self.folder.name));
        }
    }

    /// Returns true if an unfinished stage reads an array.
    fn has_readers(&self, state: &State, id: ArrayId) -> bool {
        let reads = |stage: &Stage| stage.inputs.iter().any(|i| i.sources.contains(&id));
        let mut stages = self.plan.plan().stages.iter().enumerate();
        stages.any(|(i, stage)| reads(stage) && !self.is_finished(state, StageId(i)))
    }

    /// Returns the intermediates that `ended` was the last stage to read and that the journal does
    /// not mention, so that the caller can remove them. The others are removed after the next
    /// flush.
    pub(super) fn unneeded_intermediates(&self, state: &mut State, ended: StageId) -> Vec<ArrayId> {
        let plan = self.plan.plan();
        let mut read: Vec<ArrayId> =
            plan.stages[ended.0].inputs.iter().flat_map(|i| i.sources.iter().copied()).collect();
        read.sort_unstable();
        read.dedup();
        read.retain(|id| {
            let exists = state.removed.get(id).is_none_or(|rewritten| rewritten.count() > 0)
                && !state.removals.contains(id);
            plan.array(*id).place == Place::Work && exists && !self.has_readers(state, *id)
        });
        if let Some(journal) = self.folder.journal
            && let Err(error) = read.iter().try_for_each(|id| journal.removed(*id))
        {
            self.fail_locked(state, error);
            return Vec::new();
        }
        let is_journaled =
            |id: &ArrayId| self.writers[id.0].is_some_and(|w| state.stages[w.0.0].is_journaled);
        let (later, now): (Vec<ArrayId>, Vec<ArrayId>) = read.into_iter().partition(is_journaled);
        state.removals.extend(later);
        now.iter().for_each(|id| drop(state.removed.insert(*id, Finished::default())));
        now
    }
}
