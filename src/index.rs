//! The macro [`s!`](crate::s).

/// Creates an index in Python's bracket notation: `s![0, 1..5, ..;2, ..., None]`.
///
/// An entry is an integer, a range or a list of integers. `;step` sets the step of a range, `...`
/// selects all axes without an entry, and `None` inserts an axis. Pass the result to
/// [`Array::index`](crate::Array::index).
///
/// ```
/// use freestone::{DType, s};
///
/// let x = freestone::zeros([4, 6, 8], DType::Float32, [2, 3, 8]);
/// assert_eq!(x.index(s![-1, ..;2, 1..5]).shape()?, [3, 4]);
/// assert_eq!(x.index(s![..., [7, 0, 0], None]).shape()?, [4, 6, 3, 1]);
/// # Ok::<(), freestone::Error>(())
/// ```
#[macro_export]
macro_rules! s {
    ($($entry:tt)*) => { $crate::__index!([] $($entry)*) };
}

/// Collects the entries of [`s!`](crate::s) from left to right.
#[doc(hidden)]
#[macro_export]
macro_rules! __index {
    ([$($done:expr,)*]) => { [$($done,)*] };
    ([$($done:expr,)*] ... $(, $($rest:tt)*)?) => {
        $crate::__index!([$($done,)* $crate::Index::Ellipsis,] $($($rest)*)?)
    };
    ([$($done:expr,)*] None $(, $($rest:tt)*)?) => {
        $crate::__index!([$($done,)* $crate::Index::NewAxis,] $($($rest)*)?)
    };
    ([$($done:expr,)*] $range:expr; $step:expr $(, $($rest:tt)*)?) => {
        $crate::__index!(
            [$($done,)* $crate::Index::Slice($crate::Slice::from($range).step($step)),]
            $($($rest)*)?
        )
    };
    ([$($done:expr,)*] $entry:expr $(, $($rest:tt)*)?) => {
        $crate::__index!([$($done,)* $crate::Index::from($entry),] $($($rest)*)?)
    };
}
