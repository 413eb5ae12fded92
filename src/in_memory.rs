//! Results in memory.

use std::sync::Arc;

use freestone_engine::events::RunReport;
use freestone_engine::executor::Executor;
use freestone_engine::plan::PlanError;
use freestone_engine::spec::Spec;
use freestone_engine::storage::reader::{ChunkAccess, ShardCache, WorkerResources};
use freestone_engine::storage::{CodecName, MemoryStore, Store, Stores, metadata};
use freestone_executors::Threads;
use freestone_kernels::dtype::{Bool, Complex64, Complex128, Element};
use freestone_ops::Array;
use freestone_ops::io::Target;
use ndarray::{ArrayD, ArrayViewD, IxDyn, Slice};

use crate::compute::{Plan, plan, run};
use crate::error::Error;

/// The type of the elements of a result in memory: every element type, and `bool`.
pub trait Value: Sized {
    /// The type of the elements in storage.
    type Stored: Element;

    /// Converts the result.
    fn from_stored(values: ArrayD<Self::Stored>) -> ArrayD<Self>;
}

macro_rules! values {
    ($($type:ty),*) => { $(
        impl Value for $type {
            type Stored = $type;

            fn from_stored(values: ArrayD<$type>) -> ArrayD<$type> {
                values
            }
        }
    )* };
}
values!(Bool, i8, i16, i32, i64, u8, u16, u32, u64, f32, f64, Complex64, Complex128);

impl Value for bool {
    type Stored = Bool;

    fn from_stored(values: ArrayD<Bool>) -> ArrayD<bool> {
        values.mapv_into_any(bool::from)
    }
}

/// Computes an array into memory, on threads.
///
/// ```
/// # use freestone::{DType, Spec};
/// # let folder = tempfile::tempdir()?;
/// # let spec = Spec::builder().work_dir(folder.path()).build()?;
/// let x = freestone::arange(0, 6, 1, DType::Int64, 2).reshape([2, 3]);
/// assert_eq!(freestone::compute::<i64>(&x.sum(0), &spec)?, ndarray::array![3, 5, 7].into_dyn());
/// let large = freestone::compute::<bool>(&x.greater(4).any(0), &spec)?;
/// assert_eq!(large, ndarray::array![false, false, true].into_dyn());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Returns the errors of [`plan`] and [`run`]. Returns an error if `T` is not the array's dtype, if
/// the array's values are packed ([`Array::raw`]), or if the result exceeds `local_mem`.
pub fn compute<T: Value>(array: &Array, spec: &Spec) -> Result<ArrayD<T>, Error> {
    compute_with(array, spec, &Threads::new(spec.threads))
}

/// Computes an array of one element, on threads.
///
/// # Errors
/// Returns the errors of [`compute`], and an error if the array does not have exactly one element.
pub fn compute_scalar<T: Value>(array: &Array, spec: &Spec) -> Result<T, Error> {
    let shape = array.shape()?;
    let not_one = || Error::NotScalar { shape: shape.clone() };
    if array.size()? != 1 {
        return Err(not_one());
    }
    compute(array, spec)?.into_iter().next().ok_or_else(not_one)
}

/// Computes an array into memory, on an executor.
///
/// # Errors
/// Returns the errors of [`compute`]. Executors that run processes cannot access this memory, and
/// return an error.
pub fn compute_with<T: Value>(
    array: &Array,
    spec: &Spec,
    executor: &dyn Executor,
) -> Result<ArrayD<T>, Error> {
    let found = array.dtype()?;
    if found != T::Stored::DTYPE {
        return Err(Error::ResultType { found, asked: T::Stored::DTYPE });
    }
    let (planned, store) = plan_in_memory(array, spec)?;
    run(&planned, spec, executor)?;
    read_whole(&store).map(T::from_stored)
}

/// Creates a plan that computes an array into an in-memory store.
fn plan_in_memory(array: &Array, spec: &Spec) -> Result<(Plan, Arc<dyn Store>), Error> {
    // The result cannot have the attributes that describe packed values.
    array.check_unpacked()?;
    let bytes = array.nbytes()?;
    if bytes > spec.local_mem {
        return Err(Error::ResultExceedsMemory { bytes, local_mem: spec.local_mem });
    }
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let stores = Stores::default();
    stores.insert(Arc::clone(&store));
    let target = Target::array(array, format!("{}/result", store.url()))
        .with_stores(&stores)
        .codec(CodecName::None);
    Ok((plan(&[target], spec)?, store))
}

/// Moves the result out of the store chunk by chunk, so that memory never holds it twice.
fn read_whole<T: Element>(store: &Arc<dyn Store>) -> Result<ArrayD<T>, Error> {
    let stored = metadata::open_array(store, "result")?;
    let shape: Vec<usize> = stored.info.shape().iter().map(|n| *n as usize).collect();
    let mut values = ArrayD::<T>::from_elem(IxDyn(&shape), T::default());
    let access = ChunkAccess::new(Arc::clone(store), "result", &stored.info)
        .map_err(|error| PlanError::Codec { array: "result".into(), error })?;
    let mut resources = WorkerResources::new(u64::MAX / 4);
    let grid = &stored.info.grid;
    for index in 0..grid.n_chunks() {
        let coords = grid.coords(index);
        let region = grid.region(&coords);
        let read = access.read(&coords, &mut resources, &mut ShardCache::default());
        let block = read.map_err(|e| {
            freestone_ops::Error::Argument(format!("the result could not be read back: {e}"))
        })?;
        let whole: Vec<usize> = access.stored_shape(&coords).iter().map(|n| *n as usize).collect();
        let invariant = "a chunk that was read has the elements of its stored shape";
        let chunk = ArrayViewD::from_shape(IxDyn(&whole), block.as_slice::<T>())
            .map_err(|_| Error::Internal { invariant })?;
        let inside = |d: usize| Slice::from(0..region.shape[d] as usize);
        let place = |d: usize| {
            let start = region.start[d] as usize;
            Slice::from(start..start + region.shape[d] as usize)
        };
        values
            .slice_each_axis_mut(|axis| place(axis.axis.index()))
            .assign(&chunk.slice_each_axis(|axis| inside(axis.axis.index())));
        resources.arena.recycle(block);
        store.remove(&access.key(&coords))?;
    }
    Ok(values)
}

/// Methods that plan and run an array. Part of the [`prelude`](crate::prelude).
pub trait Compute {
    /// Creates the plan that [`compute`](Compute::compute) runs.
    ///
    /// # Errors
    /// Returns the errors of [`plan`].
    fn plan(&self, spec: &Spec) -> Result<Plan, Error>;

    /// Computes the array into memory, on threads. See [`compute`].
    ///
    /// # Errors
    /// Returns the errors of [`compute`].
    fn compute<T: Value>(&self, spec: &Spec) -> Result<ArrayD<T>, Error>;

    /// Computes the array, which must have one element, on threads.
    ///
    /// # Errors
    /// Returns the errors of [`compute_scalar`].
    fn compute_scalar<T: Value>(&self, spec: &Spec) -> Result<T, Error>;

    /// Stores the array as a Zarr array at a location, computed on threads.
    ///
    /// # Errors
    /// Returns the errors of [`plan`] and [`run`].
    fn store(&self, location: impl AsRef<std::path::Path>, spec: &Spec)
    -> Result<RunReport, Error>;
}

impl Compute for Array {
    fn plan(&self, spec: &Spec) -> Result<Plan, Error> {
        plan_in_memory(self, spec).map(|(planned, _)| planned)
    }

    fn compute<T: Value>(&self, spec: &Spec) -> Result<ArrayD<T>, Error> {
        compute(self, spec)
    }

    fn compute_scalar<T: Value>(&self, spec: &Spec) -> Result<T, Error> {
        compute_scalar(self, spec)
    }

    fn store(
        &self,
        location: impl AsRef<std::path::Path>,
        spec: &Spec,
    ) -> Result<RunReport, Error> {
        let planned = plan(&[Target::array(self, location)], spec)?;
        run(&planned, spec, &Threads::new(spec.threads))
    }
}
