//! Computing on arrays that are larger than memory, within a memory that is promised.
//!
//! Array expressions are lazy. They are lowered into a plan of stages whose memory is projected before anything runs; a plan
//! that does not fit is refused. Every stage is many independent tasks, which run on threads or in processes and give the
//! same bytes. Results appear when all of them are complete.
//!
//! ```
//! use freestone::{Spec, Settings, Target, Threads};
//!
//! # let folder = tempfile::tempdir()?;
//! # let out = folder.path().join("means.zarr").display().to_string();
//! # let work_dir = folder.path().join("work").display().to_string();
//! let winds = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/winds-v3.zarr");
//! let u = freestone::open(&format!("{winds}/u"))?;
//! let v = freestone::open(&format!("{winds}/v"))?;
//! let uv = (&u * &v).mean(0)?;
//!
//! let spec = Spec::load(Settings { allowed_mem: Some(100_000_000), work_dir: Some(work_dir), ..Settings::default() })?;
//! let planned = freestone::plan(&[Target::in_group(&uv, &out, "uv")], &spec)?;
//! assert!(planned.plan().projected_mem() <= 100_000_000);
//!
//! let report = freestone::run(&planned, &spec, &Threads::new(2))?;
//! assert_eq!(report.traffic().reads, 34); // every chunk of u and v once, and two coordinates
//!
//! let values = freestone::compute::<f32>(&freestone::open(&format!("{out}/uv"))?.sum(())?, &spec)?;
//! assert!((values.sum() - 30828.06).abs() < 0.1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod compute;
mod error;
#[cfg(feature = "cli")]
pub mod expression;
#[cfg(feature = "cli")]
pub mod limits;
#[cfg(feature = "cli")]
pub mod progress;

pub use compute::{Options, Planned, compute, compute_with, create, plan, run, run_with};
pub use error::{Error, ExitCode};
pub use freestone_engine as engine;
pub use freestone_engine::events::RunReport;
pub use freestone_engine::memory::size;
pub use freestone_engine::spec::{Settings, Spec, parse_size};
pub use freestone_engine::storage::{CodecName, Encoding, MemoryStore, Stores};
pub use freestone_engine::user::{Block, BlockMut, KernelRegistry, UserKernel};
pub use freestone_engine::worker::Cancel;
pub use freestone_executors::{Processes, Serial, Threads, WORKER_ARGUMENT, serve};
pub use freestone_kernels::dtype::{Bool, Complex64, Complex128};
pub use freestone_kernels::{DType, Expr, Scalar};
pub use freestone_ops::elementwise::*;
pub use freestone_ops::io::{Target, open, open_in};
pub use freestone_ops::reduce::{Along, Axes};
pub use freestone_ops::vocabulary;
pub use freestone_ops::{Array, Dim, Index, Indexing, Pad, broadcast_arrays, concat, stack};
pub use freestone_ops::{BlocksOut, Lengths, map_blocks};
pub use freestone_ops::{Error as ArrayError, RegionError};
pub use freestone_ops::{arange, asarray, empty, empty_like, eye, full, full_like, linspace, meshgrid, ones, ones_like, scalar, tril, triu, zeros, zeros_like};
pub use freestone_ops::{random_integers, random_normal, random_uniform};
