//! Simplification of nested strided loops.

/// The dimensions of a loop nest over several operands, outermost first.
#[derive(Debug)]
pub(crate) struct Nest {
    /// Trip counts.
    pub(crate) shape: Vec<usize>,
    /// For each operand, its stride along each dimension.
    pub(crate) strides: Vec<Vec<isize>>,
}

impl Nest {
    /// Drops dimensions of length 1 and merges neighbours that are contiguous for every operand.
    ///
    /// The result has at least one dimension. It is empty if any length is 0.
    pub(crate) fn new(shape: &[usize], operands: &[&[isize]]) -> Nest {
        let mut nest = Nest {
            shape: Vec::with_capacity(shape.len()),
            strides: vec![Vec::with_capacity(shape.len()); operands.len()],
        };
        for (d, &n) in shape.iter().enumerate() {
            if n == 1 {
                continue;
            }
            let merges = nest.shape.last().is_some()
                && operands
                    .iter()
                    .zip(&nest.strides)
                    .all(|(new, old)| old.last().is_some_and(|s| *s == new[d] * n as isize));
            if merges {
                if let Some(last) = nest.shape.last_mut() {
                    *last *= n;
                }
                for (new, old) in operands.iter().zip(&mut nest.strides) {
                    if let Some(s) = old.last_mut() {
                        *s = new[d];
                    }
                }
            } else {
                nest.shape.push(n);
                for (new, old) in operands.iter().zip(&mut nest.strides) {
                    old.push(new[d]);
                }
            }
        }
        if nest.shape.is_empty() {
            nest.shape.push(1);
            nest.strides.iter_mut().for_each(|s| s.push(0));
        }
        nest
    }

    /// Returns true if the nest has no iterations.
    pub(crate) fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }
}

/// Calls `f` with each operand's offset for every index of the dimensions `dims`, in C order.
///
/// `offsets` are the operands' starting offsets, and are restored on return.
pub(crate) fn for_each_index(
    nest: &Nest,
    dims: &[usize],
    offsets: &mut [isize],
    f: &mut impl FnMut(&[isize]),
) {
    let Some((&d, rest)) = dims.split_first() else { return f(offsets) };
    for _ in 0..nest.shape[d] {
        for_each_index(nest, rest, offsets, f);
        for (o, s) in offsets.iter_mut().zip(&nest.strides) {
            *o += s[d];
        }
    }
    for (o, s) in offsets.iter_mut().zip(&nest.strides) {
        *o -= s[d] * nest.shape[d] as isize;
    }
}
