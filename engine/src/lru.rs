//! A least-recently-used list of chunks.
//!
//! A task caches decoded chunks in an [`Lru`]. The visitor that lists a task's reads uses an
//! [`Lru`] without values, so both evict alike.

/// Values by chunk coordinates, in order of last use.
#[derive(Clone, Debug)]
pub(crate) struct Lru<T> {
    entries: Vec<(Vec<u64>, T)>,
}

impl<T> Default for Lru<T> {
    fn default() -> Lru<T> {
        Lru { entries: Vec::new() }
    }
}

impl<T> Lru<T> {
    /// Marks a chunk as the most recently used. Returns false if the chunk is not cached.
    pub(crate) fn touch(&mut self, coords: &[u64]) -> bool {
        let Some(at) = self.entries.iter().position(|(c, _)| c == coords) else { return false };
        self.entries[at..].rotate_left(1);
        true
    }

    /// Returns the value of a cached chunk.
    pub(crate) fn get(&self, coords: &[u64]) -> Option<&T> {
        self.entries.iter().rev().find(|(c, _)| c == coords).map(|(_, value)| value)
    }

    /// Adds a chunk that is not cached.
    pub(crate) fn push(&mut self, coords: &[u64], value: T) {
        self.entries.push((coords.to_vec(), value));
    }

    /// Evicts the least recently used chunk outside `pinned` if no other chunk fits within `most`.
    /// Returns `None` if there is room.
    pub(crate) fn evict(&mut self, most: usize, pinned: &[&[u64]]) -> Option<T> {
        if self.entries.len() < most.max(1) {
            return None;
        }
        let oldest = self.entries.iter().position(|(c, _)| !pinned.contains(&c.as_slice()))?;
        Some(self.entries.remove(oldest).1)
    }

    /// Removes all chunks.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    /// Removes all chunks and returns their values.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.entries.drain(..).map(|(_, value)| value)
    }

    /// Returns the coordinates of the cached chunks, least recently used first.
    pub(crate) fn coords(&self) -> impl Iterator<Item = &[u64]> {
        self.entries.iter().map(|(c, _)| c.as_slice())
    }
}
