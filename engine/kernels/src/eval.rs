//! Evaluating an [`Expr`] in strips that stay in the cache.
//!
//! Registers hold one strip of [`STRIP`] elements each, so the scratch memory of an expression does not grow with the
//! block: it is registers × strip × itemsize. One pass over a strip per node costs little more than a hand-fused loop.

use num_complex::ComplexFloat;
use num_traits::AsPrimitive;

use crate::buffer::{Buffer, View, contiguous_strides};
use crate::copy;
use crate::dispatch;
use crate::dtype::{Complex64, Complex128, DType, Element, Kind};
use crate::expr::{BinaryOp, Expr, Node, UnaryOp};
use crate::loops::{Nest, for_each_index};

/// Elements per strip: with a handful of registers of 8 bytes an element this stays in the second-level cache.
pub const STRIP: usize = 1024;

/// Scratch bytes that a [`Machine`] for `expr` occupies, at most.
pub fn scratch_bytes(expr: &Expr) -> u64 {
    let (_, registers) = allocate(expr);
    registers.iter().map(|size| (STRIP * size) as u64).sum()
}

/// An expression made ready to run: registers assigned, literals spread out.
#[derive(Debug)]
pub struct Machine {
    expr: Expr,
    place: Vec<usize>,
    registers: Vec<Buffer>,
}

/// One operand's strip: values `offset`, `offset + stride`, … of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strip<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) offset: isize,
    pub(crate) stride: isize,
}

/// The register of each node and the element size of each register. A register is free again after its last reader.
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
        // A literal's register is filled once, before the first strip: nothing else may ever be in it.
        let reusable = if matches!(node, Node::Literal(_)) { None } else { free.iter().position(|r| sizes[*r] == size) };
        let found = reusable.map(|at| free.swap_remove(at));
        place.push(found.unwrap_or_else(|| {
            sizes.push(size);
            sizes.len() - 1
        }));
        // Literals and inputs are filled once or from outside; they keep their registers.
        let mut dead: Vec<u32> = operands(node).into_iter().filter(|o| last_use[*o as usize] == i).collect();
        dead.sort_unstable();
        dead.dedup();
        free.extend(dead.into_iter().filter(|o| !matches!(expr.nodes()[*o as usize], Node::Literal(_) | Node::Input(_))).map(|o| place[o as usize]));
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

impl Machine {
    /// Assigns registers and fills the literals'.
    pub fn new(expr: &Expr) -> Machine {
        let (place, sizes) = allocate(expr);
        let mut registers: Vec<Buffer> = sizes.iter().map(|size| Buffer::zeroed(STRIP * size)).collect();
        for (node, at) in expr.nodes().iter().zip(&place) {
            if let Node::Literal(value) = node {
                copy::fill(value, registers[*at].bytes_mut());
            }
        }
        Machine { expr: expr.clone(), place, registers }
    }

    /// The expression.
    pub fn expr(&self) -> &Expr {
        &self.expr
    }

    /// Evaluates one strip of `n` elements.
    pub(crate) fn run(&mut self, inputs: &[Strip<'_>], n: usize) {
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
            let mut out = std::mem::replace(&mut self.registers[self.place[i]], Buffer::zeroed(0));
            let dtype = self.expr.dtype(i as u32);
            let dst = &mut out.bytes_mut()[..n * dtype.size()];
            let value = |a: u32| self.value(a, inputs, n);
            match node {
                Node::Unary(op, a) => unary(op, self.expr.dtype(a), value(a), dst),
                Node::Binary(op, a, b) => binary(op, self.expr.dtype(a), value(a), value(b), dst),
                Node::Where(c, a, b) => select(dtype, value(c), value(a), value(b), dst),
                Node::Cast(to, a) => cast(self.expr.dtype(a), value(a), to, dst),
                Node::Input(_) | Node::Literal(_) => {}
            }
            self.registers[self.place[i]] = out;
        }
    }

    /// The `n` values of a node after [`Machine::run`].
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

/// Evaluates an expression over whole blocks of one shape; each result fills one contiguous buffer.
pub fn map(machine: &mut Machine, shape: &[usize], inputs: &[View<'_>], outputs: &mut [&mut [u8]]) {
    let out_strides = contiguous_strides(shape);
    if machine.expr.is_identity() {
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
    let mut strips: Vec<Strip<'_>> = inputs.iter().map(|v| Strip { bytes: v.bytes, offset: 0, stride: 0 }).collect();
    let results: Vec<u32> = machine.expr.results().to_vec();
    for_each_index(&nest, &dims, &mut offsets, &mut |at| {
        for start in (0..nest.shape[inner]).step_by(STRIP) {
            let n = STRIP.min(nest.shape[inner] - start);
            for (i, strip) in strips.iter_mut().enumerate() {
                strip.stride = nest.strides[i][inner];
                strip.offset = at[i] + start as isize * strip.stride;
            }
            machine.run(&strips, n);
            for (result, out) in results.iter().zip(outputs.iter_mut()) {
                let size = machine.expr.dtype(*result).size();
                let first = (at[inputs.len()] as usize + start) * size;
                out[first..first + n * size].copy_from_slice(machine.value(*result, &strips, n));
            }
        }
    });
}

wide_fn! {
    fn loop1<T, U, F>(a: &[T], out: &mut [U], f: F) where {T: Copy, F: Fn(T) -> U} {
        for (o, a) in out.iter_mut().zip(a) { *o = f(*a); }
    }
}
wide_fn! {
    fn loop2<T, U, F>(a: &[T], b: &[T], out: &mut [U], f: F) where {T: Copy, F: Fn(T, T) -> U} {
        for ((o, a), b) in out.iter_mut().zip(a).zip(b) { *o = f(*a, *b); }
    }
}
wide_fn! {
    fn loop3<T>(c: &[u8], a: &[T], b: &[T], out: &mut [T]) where {T: Copy} {
        for (((o, c), a), b) in out.iter_mut().zip(c).zip(a).zip(b) { *o = if *c != 0 { *a } else { *b }; }
    }
}

fn see<T: Element>(bytes: &[u8]) -> &[T] {
    bytemuck::cast_slice(bytes)
}

fn see_mut<T: Element>(bytes: &mut [u8]) -> &mut [T] {
    bytemuck::cast_slice_mut(bytes)
}

/// Arithmetic that every numeric dtype has; integers wrap.
pub(crate) trait Numeric: Element {
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    fn neg(self) -> Self;
}

/// What real dtypes have on top; minimum and maximum propagate NaN.
pub(crate) trait Real: Numeric + PartialOrd {
    fn least(self, other: Self) -> Self;
    fn greatest(self, other: Self) -> Self;
    fn magnitude(self) -> Self;
    fn nearest(self) -> Self;
}

macro_rules! integers {
    ($($t:ty: $abs:expr),*) => { $(
        impl Numeric for $t {
            #[inline(always)] fn plus(self, other: Self) -> Self { self.wrapping_add(other) }
            #[inline(always)] fn minus(self, other: Self) -> Self { self.wrapping_sub(other) }
            #[inline(always)] fn times(self, other: Self) -> Self { self.wrapping_mul(other) }
            #[inline(always)] fn neg(self) -> Self { self.wrapping_neg() }
        }
        impl Real for $t {
            #[inline(always)] fn least(self, other: Self) -> Self { self.min(other) }
            #[inline(always)] fn greatest(self, other: Self) -> Self { self.max(other) }
            #[inline(always)] fn magnitude(self) -> Self { let f: fn($t) -> $t = $abs; f(self) }
            #[inline(always)] fn nearest(self) -> Self { self }
        }
    )* };
}
integers!(i8: |x| x.wrapping_abs(), i16: |x| x.wrapping_abs(), i32: |x| x.wrapping_abs(), i64: |x| x.wrapping_abs(), u8: |x| x, u16: |x| x, u32: |x| x, u64: |x| x);

macro_rules! inexact {
    ($($t:ty),*) => { $(
        impl Numeric for $t {
            #[inline(always)] fn plus(self, other: Self) -> Self { self + other }
            #[inline(always)] fn minus(self, other: Self) -> Self { self - other }
            #[inline(always)] fn times(self, other: Self) -> Self { self * other }
            #[inline(always)] fn neg(self) -> Self { -self }
        }
    )* };
}
inexact!(f32, f64, Complex64, Complex128);

macro_rules! floats {
    ($($t:ty),*) => { $(
        impl Real for $t {
            #[inline(always)] fn least(self, other: Self) -> Self { if self < other || self.is_nan() { self } else { other } }
            #[inline(always)] fn greatest(self, other: Self) -> Self { if self > other || self.is_nan() { self } else { other } }
            #[inline(always)] fn magnitude(self) -> Self { self.abs() }
            #[inline(always)] fn nearest(self) -> Self { self.round_ties_even() }
        }
    )* };
}
floats!(f32, f64);

fn unary(op: UnaryOp, dtype: DType, a: &[u8], out: &mut [u8]) {
    match op {
        UnaryOp::Negative => dispatch!(numeric, dtype, T => loop1(see::<T>(a), see_mut::<T>(out), |x| x.neg()), else => {}),
        UnaryOp::Abs => match dtype {
            DType::Complex64 => loop1(see::<Complex64>(a), see_mut::<f32>(out), |x| x.norm()),
            DType::Complex128 => loop1(see::<Complex128>(a), see_mut::<f64>(out), |x| x.norm()),
            _ => dispatch!(real, dtype, T => loop1(see::<T>(a), see_mut::<T>(out), |x| x.magnitude()), else => {}),
        },
        UnaryOp::Sqrt => dispatch!(inexact, dtype, T => loop1(see::<T>(a), see_mut::<T>(out), ComplexFloat::sqrt), else => {}),
        UnaryOp::Round => dispatch!(real, dtype, T => loop1(see::<T>(a), see_mut::<T>(out), |x| x.nearest()), else => {}),
        UnaryOp::LogicalNot => loop1(a, out, |x| u8::from(x == 0)),
    }
}

fn binary(op: BinaryOp, dtype: DType, a: &[u8], b: &[u8], out: &mut [u8]) {
    use BinaryOp as B;
    match op {
        B::Add => dispatch!(numeric, dtype, T => loop2(see::<T>(a), see(b), see_mut::<T>(out), |x, y| x.plus(y)), else => {}),
        B::Subtract => dispatch!(numeric, dtype, T => loop2(see::<T>(a), see(b), see_mut::<T>(out), |x, y| x.minus(y)), else => {}),
        B::Multiply => dispatch!(numeric, dtype, T => loop2(see::<T>(a), see(b), see_mut::<T>(out), |x, y| x.times(y)), else => {}),
        B::Divide => dispatch!(inexact, dtype, T => loop2(see::<T>(a), see(b), see_mut::<T>(out), |x, y| x / y), else => {}),
        B::Minimum => dispatch!(real, dtype, T => loop2(see::<T>(a), see(b), see_mut::<T>(out), |x, y| x.least(y)), else => {}),
        B::Maximum => dispatch!(real, dtype, T => loop2(see::<T>(a), see(b), see_mut::<T>(out), |x, y| x.greatest(y)), else => {}),
        B::Equal | B::NotEqual if dtype == DType::Bool => loop2(a, b, out, move |x, y| u8::from(((x != 0) == (y != 0)) == (op == B::Equal))),
        B::Equal => dispatch!(all, dtype, T => loop2(see::<T>(a), see(b), out, |x, y| u8::from(x == y))),
        B::NotEqual => dispatch!(all, dtype, T => loop2(see::<T>(a), see(b), out, |x, y| u8::from(x != y))),
        B::Less => dispatch!(real, dtype, T => loop2(see::<T>(a), see(b), out, |x, y| u8::from(x < y)), else => {}),
        B::LessEqual => dispatch!(real, dtype, T => loop2(see::<T>(a), see(b), out, |x, y| u8::from(x <= y)), else => {}),
        B::Greater => dispatch!(real, dtype, T => loop2(see::<T>(a), see(b), out, |x, y| u8::from(x > y)), else => {}),
        B::GreaterEqual => dispatch!(real, dtype, T => loop2(see::<T>(a), see(b), out, |x, y| u8::from(x >= y)), else => {}),
        B::LogicalAnd => loop2(a, b, out, |x, y| u8::from(x != 0 && y != 0)),
        B::LogicalOr => loop2(a, b, out, |x, y| u8::from(x != 0 || y != 0)),
    }
}

fn select(dtype: DType, c: &[u8], a: &[u8], b: &[u8], out: &mut [u8]) {
    match dtype.size() {
        1 => loop3::<u8>(c, a, b, out),
        2 => loop3::<u16>(c, bytemuck::cast_slice(a), bytemuck::cast_slice(b), bytemuck::cast_slice_mut(out)),
        4 => loop3::<u32>(c, bytemuck::cast_slice(a), bytemuck::cast_slice(b), bytemuck::cast_slice_mut(out)),
        8 => loop3::<u64>(c, bytemuck::cast_slice(a), bytemuck::cast_slice(b), bytemuck::cast_slice_mut(out)),
        _ => loop3::<[u64; 2]>(c, bytemuck::cast_slice(a), bytemuck::cast_slice(b), bytemuck::cast_slice_mut(out)),
    }
}

/// Casts values: to integers towards zero and saturating (NaN gives 0), complex to real by dropping the imaginary part,
/// anything to bool by comparing with zero.
///
/// `a` holds values of `from`, `out` as many of `to`.
pub fn cast(from: DType, a: &[u8], to: DType, out: &mut [u8]) {
    if from == to {
        out.copy_from_slice(a);
    } else if to == DType::Bool {
        dispatch!(all, from, T => spread::<T, u8>(a, out, |x| u8::from(x != T::default())));
    } else if from == DType::Bool {
        dispatch!(numeric, to, U => spread(a, out, |x: u8| if x != 0 { one::<U>() } else { U::default() }), else => {});
    } else {
        dispatch!(numeric, from, T => cast_from::<T>(a, to, out), else => {});
    }
}

fn one<U: Element>() -> U {
    bytemuck::pod_read_unaligned(crate::scalar::Scalar::new(1u8).cast(U::DTYPE).bytes())
}

fn spread<T: Element, U: Element>(a: &[u8], out: &mut [u8], f: impl Fn(T) -> U) {
    match (bytemuck::try_cast_slice(a), bytemuck::try_cast_slice_mut(out)) {
        (Ok(a), Ok(out)) => loop1(a, out, f),
        // Scalars' bytes are not aligned; there is one of them.
        _ => {
            for (x, o) in a.chunks_exact(size_of::<T>()).zip(out.chunks_exact_mut(size_of::<U>())) {
                o.copy_from_slice(bytemuck::bytes_of(&f(bytemuck::pod_read_unaligned(x))));
            }
        }
    }
}

fn cast_from<T: Element + CastSource>(a: &[u8], to: DType, out: &mut [u8]) {
    match to.kind() {
        Kind::Complex if to == DType::Complex64 => spread::<T, Complex64>(a, out, |x| {
            let c = x.complex();
            Complex64::new(c.re as f32, c.im as f32)
        }),
        Kind::Complex => spread::<T, Complex128>(a, out, |x| x.complex()),
        _ => dispatch!(real, to, U => spread::<T, U>(a, out, |x| x.part().as_()), else => {}),
    }
}

/// What a value is before it is cast: itself, or the real part.
trait CastSource {
    type Part: Copy
        + 'static
        + AsPrimitive<i8>
        + AsPrimitive<i16>
        + AsPrimitive<i32>
        + AsPrimitive<i64>
        + AsPrimitive<u8>
        + AsPrimitive<u16>
        + AsPrimitive<u32>
        + AsPrimitive<u64>
        + AsPrimitive<f32>
        + AsPrimitive<f64>;
    fn part(self) -> Self::Part;
    fn complex(self) -> Complex128;
}

macro_rules! cast_sources {
    ($($t:ty),*) => { $(impl CastSource for $t {
        type Part = $t;
        #[inline(always)] fn part(self) -> $t { self }
        #[inline(always)] fn complex(self) -> Complex128 { Complex128::new(self as f64, 0.0) }
    })* };
}
cast_sources!(i8, i16, i32, i64, u8, u16, u32, u64, f32, f64);

macro_rules! complex_sources {
    ($($t:ty: $p:ty),*) => { $(impl CastSource for $t {
        type Part = $p;
        #[inline(always)] fn part(self) -> $p { self.re }
        #[inline(always)] fn complex(self) -> Complex128 { Complex128::new(self.re as f64, self.im as f64) }
    })* };
}
complex_sources!(Complex64: f32, Complex128: f64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scalar::Scalar;

    /// A literal that comes after registers were given back once shared one with them, and was right for the first strip only.
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
        map(&mut Machine::new(&expr), &shape, &[View::contiguous(DType::Float32, input.bytes(), &shape)], &mut [out.bytes_mut()]);
        let expect: Vec<f32> = values.iter().map(|v| [3.0f32, 5.0, 7.0, 11.0].iter().fold(*v, |x, l| -(x * l) + x)).collect();
        assert_eq!(out.as_slice::<f32>(), expect);
    }
}
