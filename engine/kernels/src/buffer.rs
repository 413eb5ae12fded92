//! Byte buffers of blocks, and strided views of them.

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

use crate::dtype::{DType, Element};

/// The size from which a buffer is an anonymous memory mapping.
const MAPPED_BYTES: usize = 262_144;

/// One cache line. Its alignment aligns a [`Buffer`] without unsafe code.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// An owned byte buffer that can be viewed as a slice of any dtype.
///
/// Buffers are aligned to 64 bytes. A large buffer is an anonymous memory mapping, so dropping it
/// returns its pages to the system, whatever the program's allocator retains. A codec's output
/// ([`Buffer::from_vec`]) is taken over without a copy if its alignment allows.
#[derive(Debug)]
pub struct Buffer {
    memory: Memory,
    len: usize,
}

#[derive(Debug)]
enum Memory {
    Lines(Vec<Line>),
    Mapped(MmapMut),
    Foreign(Vec<u8>),
}

impl Buffer {
    /// Returns `len` zero bytes. Pages of a new mapping are not touched until they are written.
    pub fn zeroed(len: usize) -> Buffer {
        if len >= MAPPED_BYTES
            && let Ok(map) = MmapMut::map_anon(len)
        {
            // A failure is ignored: huge pages only save time. Without them, a pass over a block
            // spends as much time on page tables as on values.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            return Buffer { memory: Memory::Mapped(map), len };
        }
        Buffer { memory: Memory::Lines(bytemuck::zeroed_vec(len.div_ceil(64))), len }
    }

    /// Takes over a codec's output. Copies it only if it is not aligned to 16 bytes.
    pub fn from_vec(bytes: Vec<u8>) -> Buffer {
        let len = bytes.len();
        if bytes.as_ptr().align_offset(16) == 0 || len < 2 {
            return Buffer { memory: Memory::Foreign(bytes), len };
        }
        let mut out = Buffer::zeroed(len);
        out.bytes_mut().copy_from_slice(&bytes);
        out
    }

    /// Returns a copy of typed values.
    pub fn from_slice<T: Element>(values: &[T]) -> Buffer {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let mut out = Buffer::zeroed(bytes.len());
        out.bytes_mut().copy_from_slice(bytes);
        out
    }

    /// Returns the number of bytes in use.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns true if no byte is in use.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of allocated bytes.
    pub fn capacity(&self) -> usize {
        match &self.memory {
            Memory::Lines(lines) => lines.len() * 64,
            Memory::Mapped(map) => map.len(),
            Memory::Foreign(bytes) => bytes.capacity(),
        }
    }

    /// Returns true if the buffer can be reused for other values: it does not hold a codec's
    /// output.
    pub fn is_reusable(&self) -> bool {
        !matches!(self.memory, Memory::Foreign(_))
    }

    /// Sets the number of bytes in use, at most the capacity at creation. The contents are
    /// unspecified.
    ///
    /// # Panics
    /// Panics if `len` exceeds that capacity.
    pub fn set_len(&mut self, len: usize) {
        let room = match &self.memory {
            Memory::Lines(lines) => lines.len() * 64,
            Memory::Mapped(map) => map.len(),
            Memory::Foreign(bytes) => bytes.len(),
        };
        assert!(len <= room, "a buffer of {room} bytes cannot hold {len}");
        self.len = len;
    }

    /// Returns the bytes in use.
    pub fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Lines(lines) => &bytemuck::cast_slice(lines)[..self.len],
            Memory::Mapped(map) => &map[..self.len],
            Memory::Foreign(bytes) => &bytes[..self.len],
        }
    }

    /// Returns the bytes in use, mutably.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Lines(lines) => &mut bytemuck::cast_slice_mut(lines)[..self.len],
            Memory::Mapped(map) => &mut map[..self.len],
            Memory::Foreign(bytes) => &mut bytes[..self.len],
        }
    }

    /// Returns the bytes in use as values of `T`.
    pub fn as_slice<T: Element>(&self) -> &[T] {
        bytemuck::cast_slice(self.bytes())
    }

    /// Returns the bytes in use as values of `T`, mutably.
    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.bytes_mut())
    }
}

/// A strided view of the values of a block. Strides and offset are in elements; a stride of 0
/// repeats an element.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// The element type of `bytes`.
    pub dtype: DType,
    /// The block's bytes, aligned for `dtype`.
    pub bytes: &'a [u8],
    /// The element at index 0 along every axis.
    pub offset: usize,
    /// The number of elements along each axis.
    pub shape: Vec<usize>,
    /// The distance between neighbours along each axis.
    pub strides: Vec<isize>,
}

impl<'a> View<'a> {
    /// Returns a view of a whole block in C order.
    pub fn contiguous(dtype: DType, bytes: &'a [u8], shape: &[usize]) -> View<'a> {
        View { dtype, bytes, offset: 0, shape: shape.to_vec(), strides: contiguous_strides(shape) }
    }
}

/// Returns the strides, in elements, of a block in C order.
pub fn contiguous_strides(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![0; shape.len()];
    let mut step = 1;
    for (stride, n) in strides.iter_mut().zip(shape).rev() {
        *stride = step;
        step *= (*n).max(1) as isize;
    }
    strides
}
