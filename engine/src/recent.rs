//! Chunks at hand, the least recently used first.
//!
//! A task keeps decoded chunks in one, and whoever lists the chunks that a task will read goes through one without chunks: so both evict alike.

/// Values by chunk coordinates, in the order of their last use.
#[derive(Clone, Debug)]
pub(crate) struct Recent<T> {
    entries: Vec<(Vec<u64>, T)>,
}

impl<T> Default for Recent<T> {
    fn default() -> Recent<T> {
        Recent { entries: Vec::new() }
    }
}

impl<T> Recent<T> {
    /// True if a chunk is at hand; then it is the last that was used.
    pub(crate) fn touch(&mut self, coords: &[u64]) -> bool {
        let Some(at) = self.entries.iter().position(|(c, _)| c == coords) else { return false };
        self.entries[at..].rotate_left(1);
        true
    }

    /// The value of a chunk at hand.
    pub(crate) fn get(&self, coords: &[u64]) -> Option<&T> {
        self.entries.iter().rev().find(|(c, _)| c == coords).map(|(_, value)| value)
    }

    /// Adds a chunk that is not at hand.
    pub(crate) fn push(&mut self, coords: &[u64], value: T) {
        self.entries.push((coords.to_vec(), value));
    }

    /// Removes a chunk, so that with one more at most `most` are at hand; none of the `pinned`. `None` once there is room.
    pub(crate) fn evict(&mut self, most: usize, pinned: &[&[u64]]) -> Option<T> {
        if self.entries.len() < most.max(1) {
            return None;
        }
        let oldest = self.entries.iter().position(|(c, _)| !pinned.contains(&c.as_slice()))?;
        Some(self.entries.remove(oldest).1)
    }

    /// Removes all.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    /// Removes all, and returns their values.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.entries.drain(..).map(|(_, value)| value)
    }

    /// Chunk coordinates, the least recently used first.
    pub(crate) fn coords(&self) -> impl Iterator<Item = &[u64]> {
        self.entries.iter().map(|(c, _)| c.as_slice())
    }
}
