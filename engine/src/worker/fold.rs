//! How a block is folded into a task's accumulators: reductions, and products of matrices.
//!
//! Accumulators stay for the whole task, in C order over what is kept of its part of the iteration space; blocks come one after the other. The
//! loops are the kernels' (`reduce`, `contract`); here is where a block lies among the accumulators. What becomes of them is in `apply`.

use freestone_kernels::reduce::{self, Folded};
use freestone_kernels::{Buffer, View, contiguous_strides, contract, eval};

use super::load::views;
use super::ready::Computes;
use super::steps::Task;
use super::{overrun, sizes};
use crate::plan::Kernel;
use crate::task::{Cause, internal};

impl Task<'_> {
    pub(super) fn fold(&mut self) {
        let Kernel::Reduce { expr, folds, axes, parts } = &self.stage.kernel else { return };
        let views = views(expr.inputs(), &self.loaded, &self.ready.sources, &self.cell);
        // Accumulators lie in C order over the kept axes of the task.
        let kept: Vec<usize> = self.region.shape.iter().enumerate().map(|(d, n)| if axes.contains(&d) { 1 } else { *n as usize }).collect();
        let strides: Vec<isize> = contiguous_strides(&kept).into_iter().enumerate().map(|(d, s)| if axes.contains(&d) { 0 } else { s }).collect();
        let offset = (0..kept.len()).map(|d| (self.cell.start[d] - self.region.start[d]) as isize * strides[d]).sum::<isize>();
        let folded: Vec<Folded> = folds.iter().map(|f| Folded { op: f.op, values: f.values }).collect();
        // Blocks come in C order: along the reduced axes, what lies before this one is folded already.
        let seen = match parts {
            None => self.seen_before(axes, &|d, start, len| (start, len, self.cell.start[d], self.cell.shape[d])),
            Some(parts) => self.seen_before(axes, &|d, first, len| {
                let part = &parts[axes.iter().position(|a| *a == d).unwrap_or(0)];
                let at = |i: u64| part.start(i);
                (at(first), at(first + len) - at(first), at(self.cell.start[d]), part.extent(self.cell.start[d]))
            }),
        };
        let merge = parts.as_ref().map(|parts| axes.iter().zip(parts).map(|(a, part)| part.extent(self.cell.start[*a])).product());
        // `argmin` and `argmax` count in C order along the reduced axes.
        let space = self.stage.tasks.shape();
        let mut weights = vec![0isize; space.len()];
        let mut weight = 1;
        for d in axes.iter().rev() {
            weights[*d] = weight;
            weight *= space[*d] as isize;
        }
        let first = (0..space.len()).map(|d| self.cell.start[d] * weights[d] as u64).sum();
        let fold = reduce::Fold { folds: &folded, offset: offset as usize, strides: &strides, seen, merge, index: (first, &weights) };
        let mut accumulators: Vec<&mut [u8]> = self.accumulators.iter_mut().flatten().map(Buffer::bytes_mut).collect();
        let Computes::Machine(machine) = &mut self.ready.computes else { return };
        reduce::fold(machine, &sizes(&self.cell.shape), &views, &fold, &mut accumulators);
    }

    /// Adds the product of the loaded operands to the accumulators.
    pub(super) fn multiply(&mut self) -> Result<(), Cause> {
        let Kernel::Contract { operands, batch, free } = &self.stage.kernel else { return Ok(()) };
        let (batch, kept) = (*batch, batch + free[0] + free[1]);
        let count = |axes: std::ops::Range<usize>| self.cell.shape[axes].iter().product::<u64>() as usize;
        let (batches, k) = (count(0..batch), count(kept..self.cell.shape.len()));
        let mut packs: [Option<Buffer>; 2] = [None, None];
        let mut sides: Vec<(Vec<usize>, Vec<View<'_>>)> = Vec::with_capacity(2);
        let mut first = 0;
        // The axes of each operand, and its inputs as seen along these.
        for (o, expr) in operands.iter().enumerate() {
            let skip = if o == 0 { batch + free[0]..kept } else { batch..batch + free[0] };
            let axes: Vec<usize> = (0..self.cell.shape.len()).filter(|d| !skip.contains(d)).collect();
            let last = first + expr.inputs().len();
            let mut views = views(expr.inputs(), &self.loaded[first..last], &self.ready.sources, &self.cell);
            for view in &mut views {
                view.shape = axes.iter().map(|d| view.shape[*d]).collect();
                view.strides = axes.iter().map(|d| view.strides[*d]).collect();
            }
            if self.layout.packed[o].is_some() {
                let shape: Vec<usize> = axes.iter().map(|d| self.cell.shape[*d] as usize).collect();
                let size = expr.result_dtypes().first().map_or(1, |d| d.size());
                let mut pack = self.desk.arena.buffer((shape.iter().product::<usize>() * size) as u64).map_err(overrun)?;
                if let Computes::Operands(machines) = &mut self.ready.computes {
                    eval::map(&mut machines[o], &shape, &views, &mut [pack.bytes_mut()]);
                }
                packs[o] = Some(pack);
            }
            sides.push((axes, views));
            first = last;
        }
        let Some(out) = &mut self.accumulators[0] else { return Ok(()) };
        let dtype = self.ready.outputs[0].info().dtype;
        let rows = [count(batch..batch + free[0]), count(batch + free[0]..kept)];
        let each = rows[0] * rows[1] * dtype.size();
        for b in 0..batches {
            let mut matrices = Vec::with_capacity(2);
            for (o, (axes, views)) in sides.iter().enumerate() {
                let matrix = match (&packs[o], views.first()) {
                    (Some(pack), _) => View { dtype, bytes: pack.bytes(), offset: b * rows[o] * k, shape: vec![rows[o], k], strides: vec![k as isize, 1] },
                    (None, Some(view)) => {
                        let mut rest = b;
                        let mut offset = view.offset as isize;
                        for d in (0..batch).rev() {
                            offset += (rest % view.shape[d]) as isize * view.strides[d];
                            rest /= view.shape[d];
                        }
                        // Each side is one axis, or several that lie as one.
                        let side = |of: std::ops::Range<usize>| of.rev().find(|d| view.shape[*d] > 1).map_or(0, |d| view.strides[d]);
                        let free_end = batch + free[o];
                        let (r, c) = (side(batch..free_end), side(free_end..axes.len()));
                        let strides = match (r, c) {
                            (0, 0) => vec![k as isize, 1],
                            (0, 1) => vec![k as isize, 1],
                            (0, c) => vec![1, c],
                            (r, 0) => vec![r, if r == 1 { rows[o] as isize } else { 1 }],
                            both => vec![both.0, both.1],
                        };
                        View { dtype, bytes: view.bytes, offset: offset as usize, shape: vec![rows[o], k], strides }
                    }
                    (None, None) => return Err(internal("an operand of a product has an input or a packed block")),
                };
                if !contract::is_direct(&matrix) {
                    return Err(internal("an operand that is not packed lies as a matrix"));
                }
                matrices.push(matrix);
            }
            contract::add_product(&matrices[0], &matrices[1], &mut out.bytes_mut()[b * each..(b + 1) * each]);
        }
        drop(sides);
        packs.into_iter().flatten().for_each(|p| self.desk.arena.recycle(p));
        Ok(())
    }

    /// Elements that the accumulators of the block at hand hold already. `of` gives, for a reduced axis and the task's first element and
    /// length along it, the elements' first and number for the task, and for the block.
    fn seen_before(&self, axes: &[usize], of: &dyn Fn(usize, u64, u64) -> (u64, u64, u64, u64)) -> u64 {
        let along: Vec<(u64, u64, u64, u64)> = axes.iter().map(|d| of(*d, self.region.start[*d], self.region.shape[*d])).collect();
        let product = |some: &[(u64, u64, u64, u64)], f: fn(&(u64, u64, u64, u64)) -> u64| some.iter().map(f).product::<u64>();
        (0..along.len()).map(|k| product(&along[..k], |a| a.3) * (along[k].2 - along[k].0) * product(&along[k + 1..], |a| a.1)).sum()
    }
}
