//! Evaluation of an [`Expr`] in cache-sized strips.
//!
//! A register holds one strip of [`STRIP`] elements. The scratch memory of an expression therefore
//! does not grow with the block: it is registers × strip × itemsize. One pass over a strip per node
//! costs little more than a hand-fused loop.

use crate::apply::{binary, select, unary};
use crate::buffer::{Buffer, View, contiguous_strides};
use crate::cast::cast;
use crate::copy;
use crate::expr::{Expr, Node};
use crate::loops::{Nest, for_each_index};

/// Elements per strip. A handful of registers with 8 bytes per element fits in the L2 cache.
pub const STRIP: usize = 1024;

/// Returns the maximum scratch bytes of an [`Evaluator`] for `expr`.
pub fn scratch_bytes(expr: &Expr) -> u64 {
    let (_, registers) = allocate(expr);
    registers.iter().map(|size| (STRIP * size) as u64).sum()
}

/// An expression evaluator: an expression with assigned registers and filled literals.
#[derive(Debug)]
pub struct Evaluator {
    expr: Expr,
    /// The register of each node.
    place: Vec<usize>,
    /// For each node, the output to write instead of the register. Requires that no other node
    /// reads the value.
    direct: Vec<Option<usize>>,
    registers: Vec<Buffer>,
}

/// A strip of one operand: the elements `offset`, `offset + stride`, … of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strip<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) offset: isize,
    pub(crate) stride: isize,
}

/// Returns the register of each node and the element size of each register. A register becomes
/// free after its last reader.
fn allocate(expr: &Expr) -> (Vec<usize>, Vec<usize>) {
    let n = expr.nodes().len();
    let mut last_use: Vec<usize> = (0..n).collect();
    for (i, node) in expr.nodes().iter().enumerate() {
        for operand in operands(node) {
            last_use[operand as usize] = i;
        }
    }
    expr.results().iter().for_each(|r| last_use[*r as usize] = n);
    let (mut place, mut sizes, mut free) = (Vec::with_capacity(n), Vec::new(), Vec::<usize>::new());
    for (i, node) in expr.nodes().iter().enumerate() {
        let size = expr.dtype(i as u32).size();
        // A literal's register is filled once, before the first strip, and must not be shared.
        let reusable = if matches!(node, Node::Literal(_)) {
            None
        } else {
            free.iter().position(|r| sizes[*r] == size)
        };
        let found = reusable.map(|at| free.swap_remove(at));
        place.push(found.unwrap_or_else(|| {
            sizes.push(size);
            sizes.len() - 1
        }));
        // Registers of literals and inputs are never reused: they are filled once or by the caller.
        let mut dead: Vec<u32> =
            operands(node).into_iter().filter(|o| last_use[*o as usize] == i).collect();
        dead.sort_unstable();
        dead.dedup();
        free.extend(
            dead.into_iter()
                .filter(|o| !matches!(expr.nodes()[*o as usize], Node::Literal(_) | Node::Input(_)))
                .map(|o| place[o as usize]),
        );
    }
    (place, sizes)
}

fn operands(node: &Node) -> Vec<u32> {
    match *node {
        Node::Input(_) | Node::Literal(_) => vec![],
        Node::Unary(_, a) | Node::Cast(_, a) => vec![a],
        Node::Binary(_, a, b) => vec![a, b],
        Node::Where(c, a, b) => vec![c, a, b],
    }
}

impl Evaluator {
    /// Creates an evaluator: assigns registers and fills those of literals.
    pub fn new(expr: &Expr) -> Evaluator {
        let (place, sizes) = allocate(expr);
        let mut registers: Vec<Buffer> =
            sizes.iter().map(|size| Buffer::zeroed(STRIP * size)).collect();
        for (node, at) in expr.nodes().iter().zip(&place) {
            if let Node::Literal(value) = node {
                copy::fill(value, registers[*at].bytes_mut());
            }
        }
        let mut reads = vec![0; place.len()];
        expr.nodes()
            .iter()
            .flat_map(operands)
            .chain(expr.results().iter().copied())
            .for_each(|r| reads[r as usize] += 1);
        let direct = (0..place.len() as u32).map(|node| match expr.nodes()[node as usize] {
            Node::Input(_) | Node::Literal(_) => None,
            _ if reads[node as usize] != 1 => None,
            _ => expr.results().iter().position(|r| *r == node),
        });
        Evaluator { direct: direct.collect(), expr: expr.clone(), place, registers }
    }

    /// Returns the expression.
    pub fn expr(&self) -> &Expr {
        &self.expr
    }

    /// Evaluates one strip of `n` elements into registers.
    pub(crate) fn run(&mut self, inputs: &[Strip<'_>], n: usize) {
        self.run_into(inputs, n, &mut [], 0);
    }

    /// Evaluates one strip of `n` elements. Nodes with an output write it from element `first` on.
    fn run_into(
        &mut self,
        inputs: &[Strip<'_>],
        n: usize,
        outputs: &mut [&mut [u8]],
        first: usize,
    ) {
        for i in 0..self.expr.nodes().len() {
            let node = self.expr.nodes()[i];
            if matches!(node, Node::Literal(_)) {
                continue;
            }
            if let Node::Input(slot) = node {
                let strip = inputs[slot as usize];
                if strip.stride != 1 {
                    let src = View {
                        dtype: self.expr.dtype(i as u32),
                        bytes: strip.bytes,
                        offset: strip.offset as usize,
                        shape: vec![n],
                        strides: vec![strip.stride],
                    };
                    copy::strided(&src, self.registers[self.place[i]].bytes_mut(), 0, &[1]);
                }
                continue;
            }
            let mut register =
                std::mem::replace(&mut self.registers[self.place[i]], Buffer::zeroed(0));
            let dtype = self.expr.dtype(i as u32);
            let (size, output) = (dtype.size(), self.direct[i].and_then(|at| outputs.get_mut(at)));
            let dst = match output {
                Some(output) => &mut output[first * size..(first + n) * size],
                None => &mut register.bytes_mut()[..n * size],
            };
            let value = |a: u32| self.value(a, inputs, n);
            match node {
                Node::Unary(op, a) => unary(op, self.expr.dtype(a), value(a), dst),
                Node::Binary(op, a, b) => binary(op, self.expr.dtype(a), value(a), value(b), dst),
                Node::Where(c, a, b) => select(dtype, value(c), value(a), value(b), dst),
                Node::Cast(to, a) => cast(self.expr.dtype(a), value(a), to, dst),
                Node::Input(_) | Node::Literal(_) => {}
            }
            self.registers[self.place[i]] = register;
        }
    }

    /// Returns the `n` values of a node after [`Evaluator::run`].
    pub(crate) fn value<'a>(&'a self, node: u32, inputs: &[Strip<'a>], n: usize) -> &'a [u8] {
        let bytes = n * self.expr.dtype(node).size();
        if let Node::Input(slot) = self.expr.nodes()[node as usize]
            && inputs[slot as usize].stride == 1
        {
            let start = inputs[slot as usize].offset as usize * self.expr.dtype(node).size();
            return &inputs[slot as usize].bytes[start..start + bytes];
        }
        &self.registers[self.place[node as usize]].bytes()[..bytes]
    }
}

/// Evaluates an expression over blocks of one shape. Each result fills one contiguous buffer.
pub fn map(
    evaluator: &mut Evaluator,
    shape: &[usize],
    inputs: &[View<'_>],
    outputs: &mut [&mut [u8]],
) {
    let out_strides = contiguous_strides(shape);
    if evaluator.expr.is_identity() {
        return copy::strided(&inputs[0], outputs[0], 0, &out_strides);
    }
    let mut operands: Vec<&[isize]> = inputs.iter().map(|v| v.strides.as_slice()).collect();
    operands.push(&out_strides);
    let nest = Nest::new(shape, &operands);
    if nest.is_empty() {
        return;
    }
    let inner = nest.shape.len() - 1;
    let dims: Vec<usize> = (0..inner).collect();
    let mut offsets: Vec<isize> = inputs.iter().map(|v| v.offset as isize).chain([0]).collect();
    let mut strips: Vec<Strip<'_>> =
        inputs.iter().map(|v| Strip { bytes: v.bytes, offset: 0, stride: 0 }).collect();
    let results: Vec<u32> = evaluator.expr.results().to_vec();
    for_each_index(&nest, &dims, &mut offsets, &mut |at| {
        for start in (0..nest.shape[inner]).step_by(STRIP) {
            let n = STRIP.min(nest.shape[inner] - start);
            for (i, strip) in strips.iter_mut().enumerate() {
                strip.stride = nest.strides[i][inner];
                strip.offset = at[i] + start as isize * strip.stride;
            }
            let first = at[inputs.len()] as usize + start;
            evaluator.run_into(&strips, n, outputs, first);
            for (result, out) in results
                .iter()
                .zip(outputs.iter_mut())
                .filter(|(r, _)| evaluator.direct[**r as usize].is_none())
            {
                let size = evaluator.expr.dtype(*result).size();
                out[first * size..(first + n) * size]
                    .copy_from_slice(evaluator.value(*result, &strips, n));
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::expr::{BinaryOp, UnaryOp};
    use crate::scalar::Scalar;

    /// A literal once reused a freed register, and was correct for the first strip only.
    #[test]
    fn literals_keep_their_registers_over_many_strips() {
        let mut expr = Expr::new(vec![DType::Float32]);
        let mut x = expr.push(Node::Input(0)).unwrap();
        for literal in [3.0f32, 5.0, 7.0, 11.0] {
            let l = expr.push(Node::Literal(Scalar::new(literal))).unwrap();
            let a = expr.push(Node::Binary(BinaryOp::Multiply, x, l)).unwrap();
            let b = expr.push(Node::Unary(UnaryOp::Negative, a)).unwrap();
            x = expr.push(Node::Binary(BinaryOp::Add, b, x)).unwrap();
        }
        expr.add_results(&[x]);
        let values: Vec<f32> = (0..5 * STRIP + 77).map(|i| (i % 13) as f32).collect();
        let input = Buffer::from_slice(&values);
        let mut out = Buffer::zeroed(input.len());
        let shape = [values.len()];
        map(
            &mut Evaluator::new(&expr),
            &shape,
            &[View::contiguous(DType::Float32, input.bytes(), &shape)],
            &mut [out.bytes_mut()],
        );
        let expect: Vec<f32> = values
            .iter()
            .map(|v| [3.0f32, 5.0, 7.0, 11.0].iter().fold(*v, |x, l| -(x * l) + x))
            .collect();
        assert_eq!(out.as_slice::<f32>(), expect);
    }
}
