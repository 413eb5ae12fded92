//! Views in several pieces along one axis: shifts, repetitions, padding and differences.

use std::iter::repeat_n;
use std::sync::Arc;

use freestone_engine::grid::Region;
use freestone_engine::readmap::{AxisMap, Origin, Piece, ReadMap};
use freestone_kernels::{BinaryOp, DType, Scalar};

use crate::array::{Array, or_failed};
use crate::axes::{Axes, Axis};
use crate::elementwise::try_binary;
use crate::error::Error;
use crate::promotion::held;

/// The values of elements that [`Array::pad`] adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pad {
    /// A constant, cast to the array's dtype.
    Constant(Scalar),
    /// The element at the edge.
    Edge,
    /// The elements mirrored at the edge, excluding the edge.
    Reflect,
    /// The elements mirrored at the edge, including the edge.
    Symmetric,
    /// The elements of the opposite end.
    Wrap,
}

impl Pad {
    /// Returns the maximum number of elements that can be added to each end of an axis of `n`
    /// elements.
    fn limit(self, n: u64) -> u64 {
        match self {
            Pad::Constant(_) => u64::MAX,
            Pad::Edge if n > 0 => u64::MAX,
            Pad::Edge => 0,
            Pad::Reflect => n.saturating_sub(1),
            Pad::Symmetric | Pad::Wrap => n,
        }
    }

    /// Returns the sources of the elements before and after an axis of `n` elements.
    fn sources(self, before: u64, n: u64) -> [Source; 2] {
        let last = n.saturating_sub(1);
        match self {
            Pad::Constant(_) => [Source::Fill, Source::Fill],
            Pad::Edge => [Source::elements(0, 0), Source::elements(last, 0)],
            Pad::Reflect => {
                [Source::elements(before, -1), Source::elements(n.saturating_sub(2), -1)]
            }
            Pad::Symmetric => {
                [Source::elements(before.saturating_sub(1), -1), Source::elements(last, -1)]
            }
            Pad::Wrap => [Source::elements(n.saturating_sub(before), 1), Source::elements(0, 1)],
        }
    }
}

/// The source of the elements of a piece along an axis.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// The fill value.
    Fill,
    /// The elements of the array from `start` by `step`. A step of 0 repeats the element.
    Elements { start: u64, step: i64 },
}

impl Source {
    const fn elements(start: u64, step: i64) -> Source {
        Source::Elements { start, step }
    }
}

impl Array {
    /// Shifts elements along axes by `shift`. Elements beyond the end reappear at the start.
    ///
    /// With `()`, elements are shifted in C order over all axes, which costs a stage for the
    /// reshape.
    ///
    /// # Errors
    /// Fails if an axis does not exist or is named twice.
    #[track_caller]
    pub fn roll(&self, shift: i64, axes: impl Into<Axes>) -> Array {
        or_failed(self.try_roll(shift, &axes.into()))
    }

    fn try_roll(&self, shift: i64, axes: &Axes) -> Result<Array, Error> {
        let inner = self.get()?;
        let shape = inner.node.shape();
        if axes.len().is_none() && shape.len() != 1 {
            let shape: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
            return self.try_reshape(&[-1])?.try_roll(shift, &0.into())?.try_reshape(&shape);
        }
        let rolled = |array: Array, axis: usize| {
            let n = shape[axis];
            let by = if n == 0 { 0 } else { shift.rem_euclid(n as i64) as u64 };
            let pieces = [(by, Source::elements(n - by, 1)), (n - by, Source::elements(0, 1))];
            array.in_pieces(axis, n, &pieces, None)
        };
        axes.resolve(&inner.dims)?.into_iter().try_fold(self.clone(), rolled)
    }

    /// Repeats the array `repetitions[i]` times along axis `i`. Axes and repetitions are aligned at
    /// the last ones.
    ///
    /// # Errors
    /// Fails if the result exceeds the maximum size of an array.
    #[track_caller]
    pub fn tile(&self, repetitions: impl AsRef<[u64]>) -> Array {
        or_failed(self.try_tile(repetitions.as_ref()))
    }

    fn try_tile(&self, repetitions: &[u64]) -> Result<Array, Error> {
        let mut array = self.clone();
        for _ in self.shape()?.len()..repetitions.len() {
            array = array.try_expand_dims(0)?;
        }
        let rank = array.shape()?.len();
        for (d, times) in repetitions.iter().enumerate() {
            let axis = rank - repetitions.len() + d;
            let n = array.shape()?[axis];
            n.checked_mul(*times).ok_or_else(|| too_large(n, *times))?;
            array = if *times > MAX_TILES_AS_PIECES {
                array.gathered(axis, list(n * times, |i| i % n)?)?
            } else {
                let pieces = vec![(n, Source::elements(0, 1)); *times as usize];
                array.in_pieces(axis, n * times, &pieces, None)?
            };
        }
        Ok(array)
    }

    /// Repeats each element along an axis `times` times.
    ///
    /// # Errors
    /// Fails if the axis does not exist.
    #[track_caller]
    pub fn repeat(&self, times: u64, axis: impl Into<Axis>) -> Array {
        or_failed(self.try_repeat(times, &axis.into()))
    }

    fn try_repeat(&self, times: u64, axis: &Axis) -> Result<Array, Error> {
        let inner = self.get()?;
        let at = axis.resolve(&inner.dims)?;
        let n = inner.node.shape()[at];
        let len = n.checked_mul(times).ok_or_else(|| too_large(n, times))?;
        if times == 1 { Ok(self.clone()) } else { self.gathered(at, list(len, |i| i / times)?) }
    }

    /// Repeats each element along an axis by its entry in `times`.
    ///
    /// # Errors
    /// Fails if the axis does not exist, or if the list and the axis differ in length.
    #[track_caller]
    pub fn repeat_each(&self, times: impl AsRef<[u64]>, axis: impl Into<Axis>) -> Array {
        or_failed(self.try_repeat_each(times.as_ref(), &axis.into()))
    }

    fn try_repeat_each(&self, times: &[u64], axis: &Axis) -> Result<Array, Error> {
        let inner = self.get()?;
        let at = axis.resolve(&inner.dims)?;
        let n = inner.node.shape()[at];
        if times.len() as u64 != n {
            return Err(Error::Argument(format!(
                "{} repetitions were given for the {n} elements of axis {at}",
                times.len()
            )));
        }
        let total = times.iter().try_fold(0u64, |sum, t| sum.checked_add(*t));
        let total = total.filter(|t| *t <= MAX_LIST).ok_or_else(|| too_large(n, u64::MAX))?;
        let mut indices = Vec::with_capacity(total as usize);
        for (i, t) in times.iter().enumerate() {
            indices.extend(repeat_n(i as u64, *t as usize));
        }
        self.gathered(at, indices.into())
    }

    /// Adds `before` and `after` elements to the ends of each axis.
    ///
    /// # Errors
    /// Fails if there is not one pair of widths for each axis, or if the array has too few elements
    /// for the padding.
    #[track_caller]
    pub fn pad(&self, widths: impl AsRef<[(u64, u64)]>, mode: Pad) -> Array {
        or_failed(self.try_pad(widths.as_ref(), mode))
    }

    fn try_pad(&self, widths: &[(u64, u64)], mode: Pad) -> Result<Array, Error> {
        let shape = self.shape()?;
        if widths.len() != shape.len() {
            return Err(Error::Argument(format!(
                "{} pairs of widths were given for {} axes",
                widths.len(),
                shape.len()
            )));
        }
        let fill = if let Pad::Constant(value) = mode { Some(value) } else { None };
        if fill.is_some() {
            // The fill value of padding is not a packed number.
            self.check_unpacked()?;
        }
        let mut array = self.clone();
        for (axis, ((before, after), n)) in widths.iter().zip(&shape).enumerate() {
            let total = n.checked_add(*before).and_then(|t| t.checked_add(*after));
            let total = total.ok_or_else(|| too_large(*n, 2))?;
            let most = *before.max(after);
            if most > mode.limit(*n) {
                return Err(Error::Argument(format!(
                    "axis {axis} has {n} elements, too few to pad {most} elements in this mode"
                )));
            }
            let [low, high] = mode.sources(*before, *n);
            let pieces = [(*before, low), (*n, Source::elements(0, 1)), (*after, high)];
            array = array.in_pieces(axis, total, &pieces, fill)?;
        }
        Ok(array)
    }

    /// Concatenates pieces of this array along one axis. Each piece has a length and a source.
    fn in_pieces(
        &self,
        axis: usize,
        len: u64,
        pieces: &[(u64, Source)],
        fill: Option<Scalar>,
    ) -> Result<Array, Error> {
        let inner = self.get()?;
        let mut shape = inner.node.shape();
        shape[axis] = len;
        let fill = held(fill.unwrap_or(Scalar::zero(inner.node.dtype)), inner.node.dtype)?;
        let origin = |source: Source| match source {
            Source::Fill => Origin::Fill(fill),
            Source::Elements { start, step } => {
                let map = |d| match d {
                    d if d != axis => AxisMap::whole(d),
                    _ if step == 0 => AxisMap::Fixed(start),
                    d => AxisMap::Along { axis: d, start, step },
                };
                Origin::Source { source: 0, axes: (0..shape.len()).map(map).collect() }
            }
        };
        let (mut at, mut all) = (0, Vec::new());
        for (n, source) in pieces {
            let mut to = Region::whole(&shape);
            (to.start[axis], to.shape[axis]) = (at, *n);
            at += n;
            if !to.shape.contains(&0) {
                all.push(Piece { to, from: origin(*source) });
            }
        }
        let mut dims = inner.dims.clone();
        if let [Piece { to, from: Origin::Source { .. } }] = all.as_slice()
            && to.shape == inner.node.shape()
        {
            return Ok(self.clone());
        }
        dims[axis].origin = None;
        self.view(ReadMap::new(shape, all), dims)
    }

    /// Computes the `n`-th difference of neighbours along an axis, which becomes `n` shorter. For
    /// bools, a difference is true where neighbours differ.
    ///
    /// Cost: no stage.
    ///
    /// # Errors
    /// Fails if the axis does not exist, or if both `n` and the length of the axis exceed 32.
    #[track_caller]
    pub fn diff(&self, n: u64, axis: impl Into<Axis>) -> Array {
        or_failed(self.try_diff(n, &axis.into()))
    }

    fn try_diff(&self, n: u64, axis: &Axis) -> Result<Array, Error> {
        let inner = self.get()?;
        // Each difference doubles the reads, so intermediate results of many differences should be
        // stored.
        let n = n.min(inner.node.shape()[axis.resolve(&inner.dims)?]);
        if n > MAX_DIFFERENCES {
            return Err(Error::Argument(format!(
                "cannot compute {n} differences at once: expected at most {MAX_DIFFERENCES} (hint: \
                    store an intermediate result)"
            )));
        }
        (0..n).try_fold(self.clone(), |array, _| array.differences(axis))
    }

    fn differences(&self, axis: &Axis) -> Result<Array, Error> {
        let high = self.try_slice((1..).into(), axis)?;
        let low = self.try_slice((..-1).into(), axis)?;
        let is_bool = self.dtype()? == DType::Bool;
        let op = if is_bool { BinaryOp::NotEqual } else { BinaryOp::Subtract };
        try_binary(op, high.into(), low.into())
    }
}

/// The maximum number of nested differences in one expression.
const MAX_DIFFERENCES: u64 = 32;

/// The number of repetitions above which a list of indices is used.
const MAX_TILES_AS_PIECES: u64 = 64;

/// The maximum length of a list of indices, which readers hold in memory.
const MAX_LIST: u64 = 1 << 24;

fn list(len: u64, index: impl Fn(u64) -> u64) -> Result<Arc<[u64]>, Error> {
    if len > MAX_LIST {
        return Err(Error::Argument(format!(
            "{len} repeated elements along one axis exceed the maximum of {MAX_LIST} (hint: repeat \
                the array in parts)"
        )));
    }
    Ok((0..len).map(index).collect())
}

fn too_large(n: u64, times: u64) -> Error {
    Error::Argument(if times == u64::MAX {
        format!("the sum of the {n} repetitions exceeds {MAX_LIST}")
    } else {
        format!("{times} times {n} elements exceed the maximum size of an array")
    })
}
