//! Axes of an array, by number or by name.

use std::fmt;

use crate::array::Dim;
use crate::error::Error;

/// An axis of an array: its position or its name.
///
/// Negative numbers count from the end.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Axis {
    /// The position of the axis.
    Number(i64),
    /// The name of the axis ([`Dim::name`]).
    Name(String),
}

impl From<i64> for Axis {
    fn from(axis: i64) -> Axis {
        Axis::Number(axis)
    }
}

impl From<&str> for Axis {
    fn from(name: &str) -> Axis {
        Axis::Name(name.to_owned())
    }
}

impl From<String> for Axis {
    fn from(name: String) -> Axis {
        Axis::Name(name)
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Axis::Number(axis) => write!(f, "{axis}"),
            Axis::Name(name) => write!(f, "`{name}`"),
        }
    }
}

impl Axis {
    /// Returns the axis at a valid position.
    pub(crate) fn position(at: usize) -> Axis {
        Axis::Number(at as i64)
    }

    /// Returns the position of the axis in an array with these dimensions.
    pub(crate) fn resolve(&self, dims: &[Dim]) -> Result<usize, Error> {
        match self {
            Axis::Number(axis) => position(*axis, dims.len()),
            Axis::Name(name) => named(name, dims),
        }
    }
}

/// Returns the position of an axis of an array of `rank` axes.
pub(crate) fn position(axis: i64, rank: usize) -> Result<usize, Error> {
    let at = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
    if (0..rank as i64).contains(&at) { Ok(at as usize) } else { Err(Error::Axis { axis, rank }) }
}

fn named(name: &str, dims: &[Dim]) -> Result<usize, Error> {
    let is_named = |dim: &Dim| dim.name.as_deref() == Some(name);
    let unknown = || {
        let names = dims.iter().filter_map(|dim| dim.name.clone()).collect();
        Error::AxisName { name: name.to_owned(), names }
    };
    let at = dims.iter().position(is_named).ok_or_else(unknown)?;
    if dims[at + 1..].iter().any(is_named) {
        return Err(Error::AmbiguousAxis { name: name.to_owned() });
    }
    Ok(at)
}

/// Axes of an array: one axis, a list of axes, or `()` for all axes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Axes(Option<Vec<Axis>>);

macro_rules! axes_from_one {
    ($($type:ty),*) => { $(
        impl From<$type> for Axes {
            fn from(axis: $type) -> Axes {
                Axes(Some(vec![axis.into()]))
            }
        }
    )* };
}
axes_from_one!(i64, &str, String, Axis);

impl From<()> for Axes {
    fn from((): ()) -> Axes {
        Axes(None)
    }
}

impl<T: Into<Axis>, const N: usize> From<[T; N]> for Axes {
    fn from(axes: [T; N]) -> Axes {
        axes.into_iter().collect()
    }
}

impl<T: Into<Axis>> From<Vec<T>> for Axes {
    fn from(axes: Vec<T>) -> Axes {
        axes.into_iter().collect()
    }
}

impl<T: Into<Axis> + Clone, const N: usize> From<&[T; N]> for Axes {
    fn from(axes: &[T; N]) -> Axes {
        axes.iter().cloned().collect()
    }
}

impl<T: Into<Axis> + Clone> From<&[T]> for Axes {
    fn from(axes: &[T]) -> Axes {
        axes.iter().cloned().collect()
    }
}

impl<T: Into<Axis> + Clone> From<&Vec<T>> for Axes {
    fn from(axes: &Vec<T>) -> Axes {
        axes.iter().cloned().collect()
    }
}

impl<T: Into<Axis>> FromIterator<T> for Axes {
    fn from_iter<I: IntoIterator<Item = T>>(axes: I) -> Axes {
        Axes(Some(axes.into_iter().map(Into::into).collect()))
    }
}

impl Axes {
    /// Returns the number of axes; `None` for all axes.
    pub(crate) fn len(&self) -> Option<usize> {
        self.0.as_ref().map(Vec::len)
    }

    /// Returns the positions in an array with these dimensions, in the given order.
    pub(crate) fn in_order(&self, dims: &[Dim]) -> Result<Vec<usize>, Error> {
        let Some(axes) = &self.0 else { return Ok((0..dims.len()).collect()) };
        let mut positions: Vec<usize> = Vec::with_capacity(axes.len());
        for axis in axes {
            let at = axis.resolve(dims)?;
            if positions.contains(&at) {
                return Err(Error::AxisTwice(at as i64));
            }
            positions.push(at);
        }
        Ok(positions)
    }

    /// Returns the positions in an array with these dimensions, in ascending order.
    pub(crate) fn resolve(&self, dims: &[Dim]) -> Result<Vec<usize>, Error> {
        let mut positions = self.in_order(dims)?;
        positions.sort_unstable();
        Ok(positions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(names: &[&str]) -> Vec<Dim> {
        names.iter().map(|name| Dim { name: Some((*name).to_owned()), ..Dim::default() }).collect()
    }

    #[track_caller]
    fn check(axes: impl Into<Axes>, expected: Result<&[usize], &str>) {
        let found = axes.into().in_order(&dims(&["time", "lat", "lon"])).map_err(|e| e.to_string());
        assert_eq!(found.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn axes_are_numbers_names_or_lists() {
        check((), Ok(&[0, 1, 2]));
        check(-1, Ok(&[2]));
        check([2, 0], Ok(&[2, 0]));
        check([0, 1], Ok(&[0, 1]));
        check(Vec::<i64>::new(), Ok(&[]));
        check("lat", Ok(&[1]));
        check(["lon", "time"], Ok(&[2, 0]));
        check(3, Err("axis 3 is out of range for an array of 3 axes (from -3 to 2)"));
        check([1, -2], Err("axis 1 is named twice"));
        check("level", Err("no axis is named `level`: the names are `time`, `lat`, `lon`"));
    }

    #[test]
    fn a_name_of_two_axes_is_ambiguous() {
        let error = Axes::from("x").resolve(&dims(&["x", "x"])).unwrap_err().to_string();
        assert_eq!(error, "axis name `x` is ambiguous: two axes have it, so give a number");
    }
}
