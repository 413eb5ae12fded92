//! Bytes of a block, and strided looks at them.

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

use crate::dtype::{DType, Element};

/// Buffers from here on are mappings of their own.
const MAPPED_BYTES: usize = 262_144;

/// One cache line: what aligns a [`Buffer`] without unsafe code.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// An owned run of bytes that can be seen as a slice of any dtype.
///
/// A buffer made here is aligned to 64 bytes. A large one is a mapping of its own, which is the
/// system's again as soon as it is dropped, whatever the program's allocator keeps: what is not
/// held is not resident. One that a codec made ([`Buffer::from_vec`]) is taken over without a copy
/// where its alignment allows.
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
    /// `len` zero bytes. Fresh pages are not touched until they are written.
    pub fn zeroed(len: usize) -> Buffer {
        if len >= MAPPED_BYTES
            && let Ok(map) = MmapMut::map_anon(len)
        {
            // Advice only: without huge pages a pass over a block waits for page tables as much as
            // for values.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            return Buffer { memory: Memory::Mapped(map), len };
        }
        Buffer { memory: Memory::Lines(bytemuck::zeroed_vec(len.div_ceil(64))), len }
    }

    /// Takes over a codec's bytes; copies them only if they are not aligned to 16 bytes.
    pub fn from_vec(bytes: Vec<u8>) -> Buffer {
        let len = bytes.len();
        if bytes.as_ptr().align_offset(16) == 0 || len < 2 {
            return Buffer { memory: Memory::Foreign(bytes), len };
        }
        let mut out = Buffer::zeroed(len);
        out.bytes_mut().copy_from_slice(&bytes);
        out
    }

    /// A copy of typed values.
    pub fn from_slice<T: Element>(values: &[T]) -> Buffer {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let mut out = Buffer::zeroed(bytes.len());
        out.bytes_mut().copy_from_slice(bytes);
        out
    }

    /// Number of bytes in use.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if no byte is in use.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of bytes that it occupies.
    pub fn capacity(&self) -> usize {
        match &self.memory {
            Memory::Lines(lines) => lines.len() * 64,
            Memory::Mapped(map) => map.len(),
            Memory::Foreign(bytes) => bytes.capacity(),
        }
    }

    /// True if it was made here, so that any use of its bytes is as good as its first.
    pub fn is_reusable(&self) -> bool {
        !matches!(self.memory, Memory::Foreign(_))
    }

    /// Sets the number of bytes in use, at most the capacity that it was made with; what they hold
    /// is left over from before.
    pub fn set_len(&mut self, len: usize) {
        let room = match &self.memory {
            Memory::Lines(lines) => lines.len() * 64,
            Memory::Mapped(map) => map.len(),
            Memory::Foreign(bytes) => bytes.len(),
        };
        assert!(len <= room, "a buffer of {room} bytes cannot hold {len}");
        self.len = len;
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Lines(lines) => &bytemuck::cast_slice(lines)[..self.len],
            Memory::Mapped(map) => &map[..self.len],
            Memory::Foreign(bytes) => &bytes[..self.len],
        }
    }

    /// Its bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Lines(lines) => &mut bytemuck::cast_slice_mut(lines)[..self.len],
            Memory::Mapped(map) => &mut map[..self.len],
            Memory::Foreign(bytes) => &mut bytes[..self.len],
        }
    }

    /// Its values; the caller knows the dtype.
    pub fn as_slice<T: Element>(&self) -> &[T] {
        bytemuck::cast_slice(self.bytes())
    }

    /// Its values, to write.
    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.bytes_mut())
    }
}

/// A strided look at the values of a block. Strides and offset are in elements; a stride of 0
/// repeats.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// Element type of `bytes`.
    pub dtype: DType,
    /// The block's bytes, aligned for `dtype`.
    pub bytes: &'a [u8],
    /// Element at index 0 along every axis.
    pub offset: usize,
    /// Elements along each axis.
    pub shape: Vec<usize>,
    /// Distance between neighbours along each axis.
    pub strides: Vec<isize>,
}

impl<'a> View<'a> {
    /// The whole of a block in C order.
    pub fn contiguous(dtype: DType, bytes: &'a [u8], shape: &[usize]) -> View<'a> {
        View { dtype, bytes, offset: 0, shape: shape.to_vec(), strides: contiguous_strides(shape) }
    }
}

/// Strides of a block of that shape in C order, in elements.
pub fn contiguous_strides(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![0; shape.len()];
    let mut step = 1;
    for (stride, n) in strides.iter_mut().zip(shape).rev() {
        *stride = step;
        step *= (*n).max(1) as isize;
    }
    strides
}
