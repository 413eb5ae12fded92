//! The check of a read map from an untrusted source.

use super::{AxisMap, MAX_PIECES, Origin, Piece, ReadMap, ReadMapError};

impl ReadMap {
    /// Checks that pieces are disjoint, cover the array, and read inside their sources. `sources`
    /// holds the shapes of the sources.
    ///
    /// # Errors
    /// Returns an error that describes the first problem.
    pub fn check(&self, sources: &[Vec<u64>]) -> Result<(), ReadMapError> {
        if self.pieces.len() > MAX_PIECES {
            return Err(ReadMapError::TooManyPieces(self.pieces.len()));
        }
        let mut covered = 0;
        for (i, piece) in self.pieces.iter().enumerate() {
            self.check_box(piece)?;
            covered += n_elements(&piece.to.shape);
            if self.pieces[..i].iter().any(|other| other.to.intersect(&piece.to).is_some()) {
                return Err(ReadMapError::Malformed("two pieces overlap"));
            }
            match &piece.from {
                Origin::Fill(_) => {}
                Origin::Flat => self.check_flat(piece, sources)?,
                Origin::Source { source, axes } => {
                    let shape = sources
                        .get(*source)
                        .ok_or(ReadMapError::Malformed("a piece refers to an unknown source"))?;
                    self.check_image(piece, axes, shape)?;
                }
            }
        }
        if covered != n_elements(&self.shape) {
            return Err(ReadMapError::Malformed("the pieces do not cover the array"));
        }
        Ok(())
    }

    /// Checks that the box of a piece lies inside the array.
    fn check_box(&self, piece: &Piece) -> Result<(), ReadMapError> {
        let (to, rank) = (&piece.to, self.shape.len());
        if to.start.len() != rank || to.shape.len() != rank {
            return Err(ReadMapError::Malformed(
                "a piece has a different number of axes than the array",
            ));
        }
        let ends = to.start.iter().zip(&to.shape).map(|(start, n)| start.checked_add(*n));
        if ends.zip(&self.shape).any(|(end, n)| end.is_none_or(|end| end > *n)) {
            return Err(ReadMapError::Malformed("a piece extends beyond the array"));
        }
        Ok(())
    }

    /// Checks that the only piece of a reshape is the whole array, with the source's number of
    /// elements.
    fn check_flat(&self, piece: &Piece, sources: &[Vec<u64>]) -> Result<(), ReadMapError> {
        let n_source = sources.first().map(|shape| n_elements(shape));
        if self.pieces.len() != 1
            || piece.to.shape != self.shape
            || n_source != Some(n_elements(&self.shape))
        {
            return Err(ReadMapError::Malformed(
                "a reshaped array has a different number of elements than its source",
            ));
        }
        Ok(())
    }

    /// Checks the index maps of a piece into a source of `shape`.
    fn check_image(
        &self,
        piece: &Piece,
        axes: &[AxisMap],
        shape: &[u64],
    ) -> Result<(), ReadMapError> {
        if shape.len() != axes.len() {
            return Err(ReadMapError::Malformed(
                "a piece has a different number of index maps than its source has axes",
            ));
        }
        if axes.iter().filter_map(AxisMap::axis).any(|a| a >= self.shape.len()) {
            return Err(ReadMapError::Malformed("an index map follows an unknown axis"));
        }
        if piece.to.shape.contains(&0) {
            return Ok(());
        }
        if axes.iter().zip(shape).all(|(axis, n)| reads_inside(axis, &piece.to.shape, *n)) {
            Ok(())
        } else {
            Err(ReadMapError::Malformed("a piece reads outside its source"))
        }
    }
}

/// Returns true if an index map over a box of shape `to` stays inside a source axis of `n`
/// elements.
fn reads_inside(axis: &AxisMap, to: &[u64], n: u64) -> bool {
    let last = |axis: usize, start: u64, step: i64| {
        i128::from(start) + i128::from(step) * (i128::from(to[axis]) - 1)
    };
    match axis {
        AxisMap::Fixed(x) => *x < n,
        AxisMap::Along { axis, start, step } => {
            *step != 0 && *start < n && (0..i128::from(n)).contains(&last(*axis, *start, *step))
        }
        AxisMap::Gather { axis, start, step, indices } => {
            let listed = 0..indices.len() as i128;
            *step != 0
                && listed.contains(&i128::from(*start))
                && listed.contains(&last(*axis, *start, *step))
                && indices.iter().all(|i| *i < n)
        }
    }
}

fn n_elements(shape: &[u64]) -> u128 {
    shape.iter().map(|n| u128::from(*n)).product()
}
