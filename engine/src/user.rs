//! User kernels: functions on whole blocks, defined outside the library.
//!
//! A plan refers to a kernel by [`UserKernel::NAME`] and [`UserKernel::VERSION`] and contains its
//! parameters as data. A worker resolves the code in the [`KernelRegistry`] that its `main`
//! function builds, and rejects a plan with an unknown kernel before the first task. The process
//! that created the plan knows the kernels of its graph without registration.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use freestone_kernels::DType;
use freestone_kernels::dtype::Element;
use ndarray::{ArrayViewD, ArrayViewMutD, IxDyn};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use crate::panics;

/// A function on blocks. Its fields are its parameters, which plans contain as JSON.
pub trait UserKernel: Serialize + DeserializeOwned + fmt::Debug + Send + Sync + 'static {
    /// The name of the kernel in plans, unique in a program.
    const NAME: &'static str;
    /// The version of the kernel. Increase it when the same parameters give different values. A
    /// worker with another version rejects the plan.
    const VERSION: u32;

    /// Returns the maximum scratch memory in bytes that [`apply`](UserKernel::apply) needs for
    /// blocks of these shapes. The projection includes it. It does not include memory that `apply`
    /// allocates itself.
    fn scratch_bytes(&self, inputs: &[&[usize]], output: &[usize]) -> u64;

    /// Computes one block from the blocks of the inputs. Must be deterministic and write every
    /// element of the output.
    ///
    /// # Errors
    /// Returns a message if the kernel fails. The run then fails with this message.
    fn apply(
        &self,
        inputs: &[Block<'_>],
        output: &mut BlockMut<'_>,
        scratch: &mut Scratch<'_>,
    ) -> Result<(), KernelError>;
}

/// A block of an input.
#[derive(Clone, Debug)]
pub struct Block<'a> {
    /// The element type.
    pub dtype: DType,
    /// The index of the first element along each axis of the array.
    pub start: Vec<u64>,
    /// The number of elements along each axis.
    pub shape: Vec<usize>,
    /// The bytes of the elements in C order.
    pub bytes: &'a [u8],
}

/// A block of the output.
#[derive(Debug)]
pub struct BlockMut<'a> {
    /// The element type.
    pub dtype: DType,
    /// The index of the first element along each axis of the array.
    pub start: Vec<u64>,
    /// The number of elements along each axis.
    pub shape: Vec<usize>,
    /// The bytes of the elements in C order, with arbitrary initial content.
    pub bytes: &'a mut [u8],
}

/// The error of a kernel. Any error converts to it, and so does a message by `.into()`.
pub type KernelError = Box<dyn std::error::Error + Send + Sync>;

/// The error of a typed view of a block or of scratch memory.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum BlockError {
    #[error("invalid element type `{requested}`: the block has dtype `{found}`")]
    DType { found: DType, requested: DType },
    #[error("the block has {len} bytes, which does not match its shape {shape:?}")]
    Shape { len: usize, shape: Vec<usize> },
    #[error("cannot use {needed} bytes of scratch memory: `scratch_bytes` returned {len}")]
    Scratch { len: usize, needed: usize },
}

/// Scratch memory of a kernel, of the length that [`UserKernel::scratch_bytes`] returned.
///
/// The contents are unspecified when [`apply`](UserKernel::apply) begins. The bytes are aligned for
/// every element type.
#[derive(Debug)]
pub struct Scratch<'a> {
    bytes: &'a mut [u8],
}

impl<'a> Scratch<'a> {
    pub(crate) fn new(bytes: &'a mut [u8]) -> Scratch<'a> {
        Scratch { bytes }
    }

    /// Returns the first `n` elements of the memory as a slice.
    ///
    /// # Errors
    /// Returns an error if the memory is shorter.
    pub fn slice<T: Element>(&mut self, n: usize) -> Result<&mut [T], BlockError> {
        let (len, needed) = (self.bytes.len(), n.saturating_mul(size_of::<T>()));
        let too_short = BlockError::Scratch { len, needed };
        let bytes = self.bytes.get_mut(..needed).ok_or_else(|| too_short.clone())?;
        bytemuck::try_cast_slice_mut(bytes).map_err(|_| too_short)
    }
}

impl std::ops::Deref for Scratch<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl std::ops::DerefMut for Scratch<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes
    }
}

/// Checks that elements of type `T` have the dtype of a block.
fn check_dtype<T: Element>(found: DType) -> Result<(), BlockError> {
    let requested = T::DTYPE;
    if found == requested { Ok(()) } else { Err(BlockError::DType { found, requested }) }
}

impl Block<'_> {
    /// Returns a view of the elements.
    ///
    /// # Errors
    /// Returns an error if `T` is not the block's dtype.
    pub fn array<T: Element>(&self) -> Result<ArrayViewD<'_, T>, BlockError> {
        check_dtype::<T>(self.dtype)?;
        let len = self.bytes.len();
        ArrayViewD::from_shape(IxDyn(&self.shape), bytemuck::cast_slice(self.bytes))
            .map_err(|_| BlockError::Shape { len, shape: self.shape.clone() })
    }
}

impl BlockMut<'_> {
    /// Returns a mutable view of the elements.
    ///
    /// # Errors
    /// Returns an error if `T` is not the block's dtype.
    pub fn array<T: Element>(&mut self) -> Result<ArrayViewMutD<'_, T>, BlockError> {
        check_dtype::<T>(self.dtype)?;
        let len = self.bytes.len();
        ArrayViewMutD::from_shape(IxDyn(&self.shape), bytemuck::cast_slice_mut(self.bytes))
            .map_err(|_| BlockError::Shape { len, shape: self.shape.clone() })
    }
}

/// A user kernel with its parameters, as a trait object.
pub trait AnyKernel: fmt::Debug + Send + Sync {
    /// Calls [`UserKernel::scratch_bytes`].
    fn scratch_bytes(&self, inputs: &[&[usize]], output: &[usize]) -> u64;

    /// Calls [`UserKernel::apply`].
    ///
    /// # Errors
    /// Returns the error of the kernel.
    fn apply(
        &self,
        inputs: &[Block<'_>],
        output: &mut BlockMut<'_>,
        scratch: &mut Scratch<'_>,
    ) -> Result<(), KernelError>;
}

impl<K: UserKernel> AnyKernel for K {
    fn scratch_bytes(&self, inputs: &[&[usize]], output: &[usize]) -> u64 {
        UserKernel::scratch_bytes(self, inputs, output)
    }

    fn apply(
        &self,
        inputs: &[Block<'_>],
        output: &mut BlockMut<'_>,
        scratch: &mut Scratch<'_>,
    ) -> Result<(), KernelError> {
        UserKernel::apply(self, inputs, output, scratch)
    }
}

/// A function that creates a kernel from its parameters.
pub type MakeKernel = fn(&Value) -> Result<Arc<dyn AnyKernel>, String>;

/// The user kernels of a program, by name and version.
#[derive(Clone, Default)]
pub struct KernelRegistry {
    kernels: BTreeMap<(String, u32), MakeKernel>,
}

impl fmt::Debug for KernelRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.kernels.keys()).finish()
    }
}

impl KernelRegistry {
    /// Creates an empty registry.
    pub fn new() -> KernelRegistry {
        KernelRegistry::default()
    }

    /// Returns the registry with the kernel `K` added.
    #[must_use]
    pub fn with<K: UserKernel>(mut self) -> KernelRegistry {
        self.insert(K::NAME, K::VERSION, make::<K>);
        self
    }

    /// Adds a kernel by name, version and constructor.
    pub fn insert(&mut self, name: &str, version: u32, make: MakeKernel) {
        self.kernels.insert((name.to_owned(), version), make);
    }

    /// Adds all kernels of another registry.
    pub fn extend(&mut self, other: &KernelRegistry) {
        self.kernels.extend(other.kernels.iter().map(|(k, m)| (k.clone(), *m)));
    }

    /// Creates the kernel to which a plan refers from its parameters.
    ///
    /// # Errors
    /// Returns an error if the kernel is unknown, if only other versions are known, or if the
    /// parameters are invalid.
    pub fn resolve(
        &self,
        name: &str,
        version: u32,
        parameters: &Value,
    ) -> Result<Arc<dyn AnyKernel>, String> {
        let Some(make) = self.kernels.get(&(name.to_owned(), version)) else {
            return Err(self.unknown(name, version));
        };
        let made = panics::caught(|| make(parameters))
            .unwrap_or_else(|panic| Err(format!("deserialization panicked: {panic}")));
        made.map_err(|e| format!("cannot create the kernel `{name}` from its parameters: {e}"))
    }

    /// Returns the error for a kernel that is not registered.
    fn unknown(&self, name: &str, version: u32) -> String {
        let versions = self.kernels.keys().filter(|(n, _)| n == name);
        let versions: Vec<String> = versions.map(|(_, version)| version.to_string()).collect();
        if versions.is_empty() {
            return format!(
                "unknown kernel `{name}` (hint: use the program that contains it, and register it \
                 where a worker calls `serve` and where a run is resumed)"
            );
        }
        format!(
            "the plan needs version {version} of the kernel `{name}`, but this program has version \
             {} (hint: use the same program in workers and in the client)",
            versions.join(", ")
        )
    }
}

/// Creates a kernel from its parameters.
///
/// # Errors
/// Returns an error if the parameters do not deserialize.
pub fn make<K: UserKernel>(parameters: &Value) -> Result<Arc<dyn AnyKernel>, String> {
    Ok(Arc::new(serde_json::from_value::<K>(parameters.clone()).map_err(|e| e.to_string())?))
}
