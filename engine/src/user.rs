//! Kernels of users: a function on whole blocks that the library does not know.
//!
//! A plan names a kernel by [`UserKernel::NAME`] and [`UserKernel::VERSION`] and carries its
//! parameters as data. A worker finds the code in the [`KernelRegistry`] that its `main` built;
//! what it does not find there it refuses before the first task. The process that made the plan
//! knows the kernels of its own graph without being told.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use freestone_kernels::DType;
use freestone_kernels::dtype::Element;
use ndarray::{ArrayViewD, ArrayViewMutD, IxDyn};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::panics;

/// A function on blocks. Its fields are its parameters, and travel as JSON.
pub trait UserKernel: Serialize + DeserializeOwned + fmt::Debug + Send + Sync + 'static {
    /// How plans call it; unique in a program.
    const NAME: &'static str;
    /// To be raised when the same parameters give other values: a worker with another version
    /// refuses the plan.
    const VERSION: u32;

    /// Most bytes of scratch memory that [`apply`](UserKernel::apply) needs for blocks of these
    /// shapes. They are part of the projection, and what `apply` allocates by itself is not.
    fn scratch_bytes(&self, inputs: &[&[usize]], output: &[usize]) -> u64;

    /// Computes one block from the blocks of the inputs. It must give the same values for the same
    /// blocks, and write every element.
    ///
    /// # Errors
    /// What it finds wrong, in words; the run ends with them.
    fn apply(
        &self,
        inputs: &[Block<'_>],
        output: &mut BlockMut<'_>,
        scratch: &mut [u8],
    ) -> Result<(), String>;
}

/// A block of an input.
#[derive(Clone, Debug)]
pub struct Block<'a> {
    /// Element type.
    pub dtype: DType,
    /// First element along each axis of the array.
    pub start: Vec<u64>,
    /// Elements along each axis.
    pub shape: Vec<usize>,
    /// The elements' bytes in C order.
    pub bytes: &'a [u8],
}

/// A block of the result.
#[derive(Debug)]
pub struct BlockMut<'a> {
    /// Element type.
    pub dtype: DType,
    /// First element along each axis of the array.
    pub start: Vec<u64>,
    /// Elements along each axis.
    pub shape: Vec<usize>,
    /// The elements' bytes in C order; what they hold is left over from before.
    pub bytes: &'a mut [u8],
}

/// Returns the error for a view of a block as elements of another dtype.
fn wrong_dtype<T: Element>(dtype: DType) -> String {
    format!("invalid element type `{}`: the block has dtype `{dtype}`", T::DTYPE)
}

impl Block<'_> {
    /// The elements.
    ///
    /// # Errors
    /// Where `T` is not the block's dtype.
    pub fn array<T: Element>(&self) -> Result<ArrayViewD<'_, T>, String> {
        if T::DTYPE != self.dtype {
            return Err(wrong_dtype::<T>(self.dtype));
        }
        ArrayViewD::from_shape(IxDyn(&self.shape), bytemuck::cast_slice(self.bytes))
            .map_err(|e| e.to_string())
    }
}

impl BlockMut<'_> {
    /// The elements, to write.
    ///
    /// # Errors
    /// Where `T` is not the block's dtype.
    pub fn array<T: Element>(&mut self) -> Result<ArrayViewMutD<'_, T>, String> {
        if T::DTYPE != self.dtype {
            return Err(wrong_dtype::<T>(self.dtype));
        }
        ArrayViewMutD::from_shape(IxDyn(&self.shape), bytemuck::cast_slice_mut(self.bytes))
            .map_err(|e| e.to_string())
    }
}

/// A kernel with its parameters, ready to run.
pub trait AnyKernel: fmt::Debug + Send + Sync {
    /// As [`UserKernel::scratch_bytes`].
    fn scratch_bytes(&self, inputs: &[&[usize]], output: &[usize]) -> u64;

    /// As [`UserKernel::apply`].
    ///
    /// # Errors
    /// The kernel's own.
    fn apply(
        &self,
        inputs: &[Block<'_>],
        output: &mut BlockMut<'_>,
        scratch: &mut [u8],
    ) -> Result<(), String>;
}

impl<K: UserKernel> AnyKernel for K {
    fn scratch_bytes(&self, inputs: &[&[usize]], output: &[usize]) -> u64 {
        UserKernel::scratch_bytes(self, inputs, output)
    }

    fn apply(
        &self,
        inputs: &[Block<'_>],
        output: &mut BlockMut<'_>,
        scratch: &mut [u8],
    ) -> Result<(), String> {
        UserKernel::apply(self, inputs, output, scratch)
    }
}

/// How a kernel is made of its parameters.
pub type MakeKernel = fn(&Value) -> Result<Arc<dyn AnyKernel>, String>;

/// The kernels that a program knows, by name and version.
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
    /// One that knows none.
    pub fn new() -> KernelRegistry {
        KernelRegistry::default()
    }

    /// With one more.
    #[must_use]
    pub fn with<K: UserKernel>(mut self) -> KernelRegistry {
        self.insert(K::NAME, K::VERSION, make::<K>);
        self
    }

    /// Adds a kernel by what a graph's node knows of it.
    pub fn insert(&mut self, name: &str, version: u32, make: MakeKernel) {
        self.kernels.insert((name.to_owned(), version), make);
    }

    /// Adds all kernels of another registry.
    pub fn extend(&mut self, other: &KernelRegistry) {
        self.kernels.extend(other.kernels.iter().map(|(k, m)| (k.clone(), *m)));
    }

    /// The kernel that a plan names, with its parameters.
    ///
    /// # Errors
    /// Where it is not here, only in other versions, or does not take the parameters.
    pub fn resolve(
        &self,
        name: &str,
        version: u32,
        parameters: &Value,
    ) -> Result<Arc<dyn AnyKernel>, String> {
        match self.kernels.get(&(name.to_owned(), version)) {
            Some(make) => {
                let made = panics::caught(|| make(parameters))
                    .unwrap_or_else(|panic| Err(format!("deserialization panicked: {panic}")));
                made.map_err(|e| {
                    format!("cannot create the kernel `{name}` from its parameters: {e}")
                })
            }
            None => {
                let others: Vec<String> = self
                    .kernels
                    .keys()
                    .filter(|(n, _)| n == name)
                    .map(|(_, v)| v.to_string())
                    .collect();
                Err(match others.as_slice() {
                    [] => format!(
                        "unknown kernel `{name}` (hint: use the program that contains it, and \
                         register it where a worker calls `serve` and where a run is resumed)"
                    ),
                    _ => format!(
                        "the plan needs version {version} of the kernel `{name}`, but this program \
                         has version {} (hint: use the same program in workers and in the client)",
                        others.join(", ")
                    ),
                })
            }
        }
    }
}

/// Makes a kernel of its parameters.
///
/// # Errors
/// Where they are not the kernel's.
pub fn make<K: UserKernel>(parameters: &Value) -> Result<Arc<dyn AnyKernel>, String> {
    Ok(Arc::new(serde_json::from_value::<K>(parameters.clone()).map_err(|e| e.to_string())?))
}
