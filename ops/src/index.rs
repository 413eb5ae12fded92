//! Indexing as in Python: `x[3, ::2, ..., None]`.

use crate::array::Array;
use crate::error::Error;

/// One entry of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Index {
    /// One element of an axis, which is dropped; negative numbers count from the end.
    At(i64),
    /// Every `step`th element; bounds as in Python.
    Slice {
        /// First element; without one the first in the step's direction.
        start: Option<i64>,
        /// The element before which it ends.
        stop: Option<i64>,
        /// 1 if not given.
        step: Option<i64>,
    },
    /// All axes that no other entry takes.
    Ellipsis,
    /// A new axis of length 1.
    NewAxis,
    /// Elements of an axis by their numbers.
    Take(Vec<i64>),
}

impl Array {
    /// The elements at an index; axes without an entry stay whole.
    ///
    /// Cost: no stage.
    ///
    /// # Errors
    /// Where there are more entries than axes, an index is out of range, a step is 0, or there is more than one ellipsis.
    pub fn index(&self, index: &[Index]) -> Result<Array, Error> {
        let rank = self.dims()?.len();
        let taken = index.iter().filter(|i| !matches!(i, Index::Ellipsis | Index::NewAxis)).count();
        if taken > rank {
            return Err(Error::Argument(format!("{taken} indices for {rank} axes (axis {rank} does not exist)")));
        }
        if index.iter().filter(|i| **i == Index::Ellipsis).count() > 1 {
            return Err(Error::Argument("an index can have one ellipsis (`...`)".into()));
        }
        let mut result = self.clone();
        let mut axis = 0;
        for entry in index {
            match entry {
                Index::At(at) => result = result.at(axis, *at)?,
                Index::Slice { start, stop, step } => {
                    // A step beyond the axis takes one element at most, whatever it is.
                    let most = result.shape()?[axis as usize].clamp(1, i64::MAX as u64) as i64;
                    result = result.slice(axis, *start, *stop, step.unwrap_or(1).clamp(-most, most))?;
                    axis += 1;
                }
                Index::Ellipsis => axis += (rank - taken) as i64,
                Index::NewAxis => {
                    result = result.expand_dims(axis)?;
                    axis += 1;
                }
                Index::Take(_) => return Err(Error::Argument("indexing by a list of numbers is not there yet".into())),
            }
        }
        Ok(result)
    }
}
