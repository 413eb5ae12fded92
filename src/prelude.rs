//! The items that most programs use: `use freestone::prelude::*;`.

#[cfg(feature = "sessions")]
pub use crate::{Session, open_version};

pub use crate::{
    Array, Axes, Compute, DType, Error, ErrorKind, Pad, Plan, Reduce, Scan, Slice, Spec, Target,
    Threads, plan, run, s,
};
