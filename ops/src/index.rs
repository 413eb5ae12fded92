//! Indexing as in Python: `x[3, ::2, ..., None]`.

use crate::array::{Array, or_failed};
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
    /// These elements of an axis, in this order; one list at most.
    Take(Vec<i64>),
}

impl Array {
    /// The elements at an index; axes without an entry stay whole.
    ///
    /// Shape: as NumPy's. A list's axis takes the list's place; beside integers that something
    /// other than an integer separates from it, it comes first: `x[0, :, [0, 1]]` has the shape
    /// `(2, …)`. Cost: no stage.
    ///
    /// # Errors
    /// Where there are more entries than axes, an index is out of range, a step is 0, or there is
    /// more than one ellipsis or list.
    #[track_caller]
    pub fn index(&self, index: &[Index]) -> Array {
        or_failed(self.try_index(index))
    }

    pub(crate) fn try_index(&self, index: &[Index]) -> Result<Array, Error> {
        let rank = self.dims()?.len();
        let taken = index.iter().filter(|i| !matches!(i, Index::Ellipsis | Index::NewAxis)).count();
        if taken > rank {
            return Err(Error::Argument(format!(
                "{taken} indices for {rank} axes (axis {rank} does not exist)"
            )));
        }
        if index.iter().filter(|i| **i == Index::Ellipsis).count() > 1 {
            return Err(Error::Argument("an index can have one ellipsis (`...`)".into()));
        }
        let lists = index.iter().filter(|i| matches!(i, Index::Take(_))).count();
        if lists > 1 {
            return Err(Error::Argument(format!(
                "an index can have one list of numbers, not {lists}: index twice"
            )));
        }
        // Beside a list, integers are lists of one: where they do not stand together, NumPy puts
        // their common axis first.
        let advanced = |i: &Index| matches!(i, Index::At(_) | Index::Take(_));
        let between = |first: usize, last: usize| index[first..last].iter().any(|i| !advanced(i));
        let ends = (index.iter().position(advanced), index.iter().rposition(advanced));
        let comes_first =
            lists == 1 && matches!(ends, (Some(first), Some(last)) if between(first, last));
        let mut list_axis = 0;
        let mut result = self.clone();
        // Along the result, and along this array for messages.
        let (mut axis, mut own) = (0, 0);
        let shape = self.shape()?;
        for entry in index {
            match entry {
                Index::At(at) => {
                    let n = i128::from(shape[own]);
                    if !(-n..n).contains(&i128::from(*at)) {
                        return Err(Error::Argument(format!(
                            "index {at} is out of range for axis {own}, which has {n} elements"
                        )));
                    }
                    result = result.try_at(axis, *at)?;
                }
                Index::Slice { start, stop, step } => {
                    // A step beyond the axis takes one element at most, whatever it is.
                    let most = result.shape()?[axis as usize].clamp(1, i64::MAX as u64) as i64;
                    result = result.try_slice(
                        axis,
                        *start,
                        *stop,
                        step.unwrap_or(1).clamp(-most, most),
                    )?;
                    axis += 1;
                }
                Index::Ellipsis => {
                    axis += (rank - taken) as i64;
                    own += rank - taken;
                    continue;
                }
                Index::NewAxis => {
                    result = result.try_expand_dims(axis)?;
                    axis += 1;
                    continue;
                }
                Index::Take(list) => {
                    result = result.try_take(list, axis)?;
                    list_axis = axis;
                    axis += 1;
                }
            }
            own += 1;
        }
        if comes_first { result.try_moveaxis(list_axis, 0) } else { Ok(result) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use freestone_kernels::DType;

    #[track_caller]
    fn check(index: &[Index], expected: Result<&[u64], &str>) {
        let array = crate::full(&[4, 0, 6], 1.0, DType::Int8, &[2, 1, 3]);
        let found = array.index(index).shape().map_err(|e| e.cause().to_string());
        assert_eq!(found.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn entries_take_axes_in_order() {
        use Index::{At, Ellipsis, NewAxis, Slice};
        let every = |step| Slice { start: None, stop: None, step: Some(step) };
        check(&[], Ok(&[4, 0, 6]));
        check(&[At(-4), Ellipsis, At(5)], Ok(&[0]));
        check(&[NewAxis, every(-3), Ellipsis, NewAxis], Ok(&[1, 2, 0, 6, 1]));
        check(&[Ellipsis, every(i64::MIN)], Ok(&[4, 0, 1]));
        check(&[every(1), every(i64::MAX), At(0), Ellipsis], Ok(&[4, 0]));
        check(&[At(4)], Err("index 4 is out of range for axis 0, which has 4 elements"));
        check(&[At(0), At(0)], Err("index 0 is out of range for axis 1, which has 0 elements"));
        check(
            &[At(0), Ellipsis, At(-7)],
            Err("index -7 is out of range for axis 2, which has 6 elements"),
        );
        check(
            &[At(i64::MIN)],
            Err("index -9223372036854775808 is out of range for axis 0, which has 4 elements"),
        );
        check(&[Ellipsis, Ellipsis], Err("an index can have one ellipsis (`...`)"));
        check(&[At(0), At(0), At(0), At(0)], Err("4 indices for 3 axes (axis 3 does not exist)"));
        check(&[Ellipsis, Index::Take(vec![5, -6, 5])], Ok(&[4, 0, 3]));
        check(
            &[Index::Take(vec![4])],
            Err("index 4 is out of range for axis 0, which has 4 elements"),
        );
        check(
            &[Index::Take(vec![0]), Index::Take(vec![])],
            Err("an index can have one list of numbers, not 2: index twice"),
        );
        check(&[every(0)], Err("the step of a slice cannot be 0"));
    }
}
