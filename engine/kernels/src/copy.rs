//! Copies of boxes between strided layouts.

use bytemuck::Pod;

use crate::buffer::View;
use crate::loops::{Nest, for_each_index};
use crate::scalar::Scalar;

/// Copies the values of `src` into `dst`, whose element at index 0 is at `offset` and whose strides
/// are `strides`.
///
/// Both hold elements of `src.dtype`. Cost: one pass; runs that are contiguous on both sides are
/// copied by `memcpy`.
pub fn strided(src: &View<'_>, dst: &mut [u8], offset: usize, strides: &[isize]) {
    match src.dtype.size() {
        1 => typed::<u8>(src, dst, offset, strides),
        2 => typed::<u16>(src, dst, offset, strides),
        4 => typed::<u32>(src, dst, offset, strides),
        8 => typed::<u64>(src, dst, offset, strides),
        _ => typed::<[u64; 2]>(src, dst, offset, strides),
    }
}

fn typed<T: Pod>(src: &View<'_>, dst: &mut [u8], offset: usize, strides: &[isize]) {
    let from: &[T] = bytemuck::cast_slice(src.bytes);
    let to: &mut [T] = bytemuck::cast_slice_mut(dst);
    let nest = Nest::new(&src.shape, &[&src.strides, strides]);
    if nest.is_empty() {
        return;
    }
    let inner = nest.shape.len() - 1;
    let (n, si, di) = (nest.shape[inner], nest.strides[0][inner], nest.strides[1][inner]);
    // If another axis of the source has a smaller stride than the innermost one, the two are
    // transposed in squares.
    let closer = |d: &usize| {
        nest.strides[0][*d] != 0 && nest.strides[0][*d].abs() < si.abs() && nest.shape[*d] > 1
    };
    if let Some(across) = (0..inner).filter(closer).min_by_key(|d| nest.strides[0][*d].abs()) {
        let dims: Vec<usize> = (0..inner).filter(|d| *d != across).collect();
        let plane = Plane {
            rows: nest.shape[across],
            columns: n,
            from: [nest.strides[0][across], si],
            to: [nest.strides[1][across], di],
        };
        return for_each_index(
            &nest,
            &dims,
            &mut [src.offset as isize, offset as isize],
            &mut |at| plane.transpose(from, at[0], to, at[1]),
        );
    }
    let dims: Vec<usize> = (0..inner).collect();
    for_each_index(&nest, &dims, &mut [src.offset as isize, offset as isize], &mut |at| {
        let (s, d) = (at[0], at[1]);
        if di == 1 && si == 1 {
            to[d as usize..d as usize + n].copy_from_slice(&from[s as usize..s as usize + n]);
        } else if di == 1 && si == 0 {
            to[d as usize..d as usize + n].fill(from[s as usize]);
        } else {
            for i in 0..n as isize {
                to[(d + i * di) as usize] = from[(s + i * si) as usize];
            }
        }
    });
}

/// Returns the runs of elements that are contiguous in both `from` and `to`, or `None` if there are
/// more than `most`.
///
/// A run is `(offset in from, offset in to, elements)`, relative to the first element of the box.
pub fn runs(
    shape: &[usize],
    from: &[isize],
    to: &[isize],
    most: usize,
) -> Option<Vec<(isize, isize, usize)>> {
    let nest = Nest::new(shape, &[from, to]);
    let inner = nest.shape.len() - 1;
    let whole =
        nest.shape[inner] == 1 || (nest.strides[0][inner] == 1 && nest.strides[1][inner] == 1);
    if nest.is_empty() || !whole || nest.shape[..inner].iter().product::<usize>() > most {
        return None;
    }
    let mut runs = Vec::with_capacity(nest.shape[..inner].iter().product());
    for_each_index(&nest, &(0..inner).collect::<Vec<_>>(), &mut [0, 0], &mut |at| {
        runs.push((at[0], at[1], nest.shape[inner]))
    });
    Some(runs)
}

/// Side of a square that is transposed at once. It fits in the cache, and its rows are whole cache
/// lines.
const SQUARE: usize = 32;

/// Two axes of a copy, with the strides along the rows' and the columns' axis.
struct Plane {
    rows: usize,
    columns: usize,
    from: [isize; 2],
    to: [isize; 2],
}

impl Plane {
    /// Copies from `s` to `d` in squares, each through a buffer. Rows at a distance of a power of
    /// two share few cache sets, so all values of a cache line must be used at once.
    fn transpose<T: Pod>(&self, src: &[T], s: isize, dst: &mut [T], d: isize) {
        let mut square = [[T::zeroed(); SQUARE]; SQUARE];
        for row in (0..self.rows).step_by(SQUARE) {
            let rows = SQUARE.min(self.rows - row);
            for column in (0..self.columns).step_by(SQUARE) {
                let columns = SQUARE.min(self.columns - column);
                let start =
                    |strides: [isize; 2]| row as isize * strides[0] + column as isize * strides[1];
                for j in 0..columns {
                    let at = s + start(self.from) + j as isize * self.from[1];
                    if self.from[0] == 1 {
                        square
                            .iter_mut()
                            .zip(&src[at as usize..at as usize + rows])
                            .for_each(|(line, x)| line[j] = *x);
                    } else {
                        square[..rows].iter_mut().enumerate().for_each(|(i, line)| {
                            line[j] = src[(at + i as isize * self.from[0]) as usize]
                        });
                    }
                }
                for (i, line) in square[..rows].iter().enumerate() {
                    let at = d + start(self.to) + i as isize * self.to[0];
                    if self.to[1] == 1 {
                        dst[at as usize..at as usize + columns].copy_from_slice(&line[..columns]);
                    } else {
                        line[..columns]
                            .iter()
                            .enumerate()
                            .for_each(|(j, x)| dst[(at + j as isize * self.to[1]) as usize] = *x);
                    }
                }
            }
        }
    }
}

/// Fills `dst` with copies of one value.
pub fn fill(value: &Scalar, dst: &mut [u8]) {
    let pattern = value.bytes();
    if pattern.iter().all(|b| *b == pattern[0]) {
        dst.fill(pattern[0]);
    } else {
        dst.chunks_exact_mut(pattern.len()).for_each(|d| d.copy_from_slice(pattern));
    }
}

/// Fills a box of `dst` with one value.
pub fn fill_box(value: &Scalar, shape: &[usize], dst: &mut [u8], offset: usize, strides: &[isize]) {
    let mut wide = crate::buffer::Buffer::zeroed(value.dtype().size());
    wide.bytes_mut().copy_from_slice(value.bytes());
    let src = View {
        dtype: value.dtype(),
        bytes: wide.bytes(),
        offset: 0,
        shape: shape.to_vec(),
        strides: vec![0; shape.len()],
    };
    strided(&src, dst, offset, strides);
}

/// Returns true if every element has exactly the bytes of `value`. NaN equals NaN, and -0.0 differs
/// from 0.0.
pub fn is_all(value: &Scalar, bytes: &[u8]) -> bool {
    let pattern = value.bytes();
    let n = pattern.len();
    // Comparing the slice with itself shifted by one element is one vectorised `memcmp`.
    bytes.len() < n || (&bytes[..n] == pattern && bytes[n..] == bytes[..bytes.len() - n])
}

/// Pads a block of `clipped` shape to the `full` shape in place, with `fill` as the new elements.
///
/// The block is in C order at the front of `bytes`. This makes an edge chunk a whole chunk without
/// a second buffer.
pub fn pad_in_place(bytes: &mut [u8], clipped: &[usize], full: &[usize], fill: &Scalar) {
    let size = fill.dtype().size();
    let (Some((&n, outer)), Some((&width, full_outer))) = (clipped.split_last(), full.split_last())
    else {
        return;
    };
    let (n, width) = (n * size, width * size);
    let rows: usize = full_outer.iter().product();
    // From the last row to the first, because a row's new place is never before its old one.
    for row in (0..rows).rev() {
        let (mut rest, mut old, mut stride, mut inside) = (row, 0, 1, true);
        for (have, all) in outer.iter().zip(full_outer).rev() {
            let i = rest % all;
            rest /= all;
            inside &= i < *have;
            old += i * stride;
            stride *= have;
        }
        let new = row * width;
        let kept = if inside { n } else { 0 };
        if inside {
            bytes.copy_within(old * n..old * n + n, new);
        }
        self::fill(fill, &mut bytes[new + kept..new + width]);
    }
}
