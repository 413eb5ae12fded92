//! Plans of the kernel `odd` for tests.

#[path = "../../helper/kernel.rs"]
mod kernel;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use freestone_engine::kernels::DType;
use freestone_engine::plan::lower::{kernels_of, lower};
use freestone_engine::spec::{Settings, Spec};
use freestone_engine::storage::Stores;
use freestone_engine::task::RunAddress;
use freestone_engine::worker::{Cancel, RunContext};
use freestone_ops::io::{Target, outputs};
use freestone_ops::{OutputBlocks, arange, map_blocks};

pub(crate) use kernel::Odd;

/// The program that tests start.
pub(crate) const HELPER: &str = env!("CARGO_BIN_EXE_freestone-test-worker");

pub(crate) fn spec(folder: &Path) -> Spec {
    let work_dir = Some(folder.join("work").display().to_string());
    Settings { work_dir, threads: Some(2), allowed_mem: Some(50_000_000), ..Settings::default() }
        .resolve()
        .unwrap()
}

/// Returns `0, 1, …` through the kernel, in `n` chunks of 10.
pub(crate) fn targets(folder: &Path, kernel: &Odd, n: u32) -> [Target; 1] {
    let numbers = arange(0.0, 10.0 * f64::from(n), 1.0, DType::Float64, 10);
    let odd = map_blocks(kernel, [&numbers], &OutputBlocks::new(DType::Float64));
    [Target::array(&odd, folder.join("out").display().to_string())]
}

/// Returns a plan, stored as a driver stores it.
pub(crate) fn written(folder: &Path) -> RunContext {
    let spec = spec(folder);
    let lowered = outputs(&targets(folder, &Odd::Prints, 3), &Stores::default()).unwrap();
    let plan = lower(&lowered, &spec).unwrap();
    let address = RunAddress {
        work_dir: spec.work_dir,
        folder: format!("{}-1234567890abcdef-1", plan.run_id()),
    };
    let kernels = Arc::new(kernels_of(&lowered).unwrap());
    let context = RunContext {
        plan: Arc::new(plan),
        address,
        stores: Stores::default(),
        kernels,
        cancel: Cancel::default(),
    };
    store(&context, &context.plan.to_bytes().unwrap());
    context
}

pub(crate) fn store(context: &RunContext, plan: &[u8]) {
    fs::create_dir_all(context.address.path()).unwrap();
    fs::write(format!("{}/plan.json", context.address.path()), plan).unwrap();
}
