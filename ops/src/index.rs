//! Slices and indices with Python's semantics: `x[3, ::2, ..., None]`.

use std::ops::{Range, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive};

use crate::array::{Array, or_failed};
use crate::axes::Axis;
use crate::error::Error;

/// A range of elements with a step. Bounds are as in Python: negative bounds count from the end,
/// and bounds beyond the axis are clamped.
///
/// ```
/// use freestone_ops::Slice;
///
/// assert_eq!(Slice::from(1..-1), Slice::new(Some(1), Some(-1), 1));
/// assert_eq!(Slice::from(..).step(-2), Slice::new(None, None, -2));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    pub(crate) start: Option<i64>,
    pub(crate) stop: Option<i64>,
    pub(crate) step: i64,
}

impl Slice {
    /// Creates a slice like Python's `slice(start, stop, step)`. A missing bound is the end of the
    /// axis at which the slice begins or ends, in the direction of the step.
    pub const fn new(start: Option<i64>, stop: Option<i64>, step: i64) -> Slice {
        Slice { start, stop, step }
    }

    /// Sets the step. A negative step reverses the order of elements.
    #[must_use]
    pub const fn step(self, step: i64) -> Slice {
        Slice { step, ..self }
    }
}

impl From<RangeFull> for Slice {
    fn from(_: RangeFull) -> Slice {
        Slice::new(None, None, 1)
    }
}

impl From<Range<i64>> for Slice {
    fn from(range: Range<i64>) -> Slice {
        Slice::new(Some(range.start), Some(range.end), 1)
    }
}

impl From<RangeFrom<i64>> for Slice {
    fn from(range: RangeFrom<i64>) -> Slice {
        Slice::new(Some(range.start), None, 1)
    }
}

impl From<RangeTo<i64>> for Slice {
    fn from(range: RangeTo<i64>) -> Slice {
        Slice::new(None, Some(range.end), 1)
    }
}

impl From<RangeInclusive<i64>> for Slice {
    fn from(range: RangeInclusive<i64>) -> Slice {
        Slice::new(Some(*range.start()), after(*range.end()), 1)
    }
}

impl From<RangeToInclusive<i64>> for Slice {
    fn from(range: RangeToInclusive<i64>) -> Slice {
        Slice::new(None, after(range.end), 1)
    }
}

/// Returns the exclusive bound for an inclusive one. After the last element (-1) there is no bound.
fn after(last: i64) -> Option<i64> {
    if last == -1 { None } else { Some(last.saturating_add(1)) }
}

/// An entry of an index. [`s!`](https://docs.rs/freestone) creates lists of entries in Python's
/// notation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Index {
    /// An element of an axis, which is dropped. Negative indices count from the end.
    At(i64),
    /// A range of elements.
    Slice(Slice),
    /// All axes without another entry: `...` in Python.
    Ellipsis,
    /// A new axis of length 1: `None` in Python.
    NewAxis,
    /// The elements of an axis at these indices, in this order. An index can have one list.
    Take(Vec<i64>),
}

impl From<i64> for Index {
    fn from(at: i64) -> Index {
        Index::At(at)
    }
}

impl From<Vec<i64>> for Index {
    fn from(list: Vec<i64>) -> Index {
        Index::Take(list)
    }
}

impl From<&[i64]> for Index {
    fn from(list: &[i64]) -> Index {
        Index::Take(list.to_vec())
    }
}

impl<const N: usize> From<[i64; N]> for Index {
    fn from(list: [i64; N]) -> Index {
        Index::Take(list.to_vec())
    }
}

macro_rules! index_from_slices {
    ($($type:ty),*) => { $(
        impl From<$type> for Index {
            fn from(slice: $type) -> Index {
                Index::Slice(slice.into())
            }
        }
    )* };
}
index_from_slices!(
    Slice,
    RangeFull,
    Range<i64>,
    RangeFrom<i64>,
    RangeTo<i64>,
    RangeInclusive<i64>,
    RangeToInclusive<i64>
);

/// An index after the checks that do not depend on the lengths of axes.
struct Checked {
    /// The entries that index one axis each.
    n_taken: usize,
    /// True if the axis of the list moves to the front.
    list_moves: bool,
}

fn checked(index: &[Index], rank: usize) -> Result<Checked, Error> {
    let takes_axis = |i: &&Index| !matches!(i, Index::Ellipsis | Index::NewAxis);
    let n_taken = index.iter().filter(takes_axis).count();
    if n_taken > rank {
        return Err(Error::Argument(format!(
            "{n_taken} indices for {rank} axes (axis {rank} does not exist)"
        )));
    }
    if index.iter().filter(|i| **i == Index::Ellipsis).count() > 1 {
        return Err(Error::Argument("an index can have one ellipsis (`...`)".into()));
    }
    let n_lists = index.iter().filter(|i| matches!(i, Index::Take(_))).count();
    if n_lists > 1 {
        return Err(Error::Argument(format!(
            "invalid index: expected at most one list, found {n_lists} (hint: index twice)"
        )));
    }
    // If an index has a list, integers are lists of one element. If other entries separate them
    // from the list, NumPy puts their common axis first.
    let advanced = |i: &Index| matches!(i, Index::At(_) | Index::Take(_));
    let ends = index.iter().position(advanced).zip(index.iter().rposition(advanced));
    let separated = |(first, last): (usize, usize)| index[first..last].iter().any(|i| !advanced(i));
    Ok(Checked { n_taken, list_moves: n_lists == 1 && ends.is_some_and(separated) })
}

impl Array {
    /// Selects elements by an index. Axes without an entry are selected whole.
    ///
    /// Shape: as in NumPy. The axis of a list replaces the indexed axis. If other entries separate
    /// an integer from the list, the list's axis comes first: `x[0, :, [0, 1]]` has a shape
    /// `(2, …)`. Cost: no stage.
    ///
    /// # Errors
    /// Fails if there are more entries than axes or more than one ellipsis or list. Also fails if
    /// an index is out of range, or if a step is 0.
    #[track_caller]
    pub fn index(&self, index: impl AsRef<[Index]>) -> Array {
        or_failed(self.try_index(index.as_ref()))
    }

    fn try_index(&self, index: &[Index]) -> Result<Array, Error> {
        let shape = self.shape()?;
        let rank = shape.len();
        let Checked { n_taken, list_moves } = checked(index, rank)?;
        let mut list_axis = 0;
        let mut result = self.clone();
        // The next axis of the result, and of this array for messages.
        let (mut axis, mut own) = (0, 0);
        for entry in index {
            match entry {
                Index::At(at) => {
                    check_range(*at, own, shape[own])?;
                    result = result.try_at(*at, &Axis::position(axis))?;
                }
                Index::Slice(slice) => {
                    result = result.try_slice(*slice, &Axis::position(axis))?;
                    axis += 1;
                }
                Index::Ellipsis => {
                    axis += rank - n_taken;
                    own += rank - n_taken;
                    continue;
                }
                Index::NewAxis => {
                    result = result.try_expand_dims(axis as i64)?;
                    axis += 1;
                    continue;
                }
                Index::Take(list) => {
                    result = result.try_take(list, &Axis::position(axis))?;
                    list_axis = axis;
                    axis += 1;
                }
            }
            own += 1;
        }
        if list_moves {
            result.try_moveaxis(&(list_axis as i64).into(), &0.into())
        } else {
            Ok(result)
        }
    }
}

fn check_range(at: i64, axis: usize, len: u64) -> Result<(), Error> {
    let n = i128::from(len);
    if (-n..n).contains(&i128::from(at)) {
        return Ok(());
    }
    Err(Error::Argument(format!(
        "index {at} is out of range for axis {axis}, which has {n} elements"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use freestone_kernels::DType;

    #[track_caller]
    fn check(index: &[Index], expected: Result<&[u64], &str>) {
        let array = crate::full([4, 0, 6], 1.0, DType::Int8, [2, 1, 3]);
        let found = array.index(index).shape().map_err(|e| e.cause().to_string());
        assert_eq!(found.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn entries_take_axes_in_order() {
        use Index::{At, Ellipsis, NewAxis};
        let every = |step| Index::from(Slice::from(..).step(step));
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
            Err("invalid index: expected at most one list, found 2 (hint: index twice)"),
        );
        check(&[every(0)], Err("the step of a slice cannot be 0"));
    }

    #[test]
    fn ranges_are_slices() {
        check(&[(1..3).into(), (..).into(), (2..).into()], Ok(&[2, 0, 4]));
        check(&[(..-1).into(), Index::Ellipsis, (1..=2).into()], Ok(&[3, 0, 2]));
        check(&[Index::Ellipsis, (..=-1).into()], Ok(&[4, 0, 6]));
        check(&[[3, 0].into()], Ok(&[2, 0, 6]));
    }
}
