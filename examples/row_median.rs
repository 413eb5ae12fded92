//! A kernel of the program's own. A run with it is cancelled and resumed, and its error is matched.
//!
//! `cargo run --example row_median`

// Results go to standard output.
#![allow(clippy::print_stdout)]

use freestone::prelude::*;
use freestone::{
    Block, BlockMut, Cancel, Event, KernelError, KernelRegistry, Observer, OutputBlocks,
    RunOptions, Scratch, Serial, Stores, UserKernel,
};
use serde::{Deserialize, Serialize};

/// The upper median of each row, which must be one block.
#[derive(Debug, Serialize, Deserialize)]
struct RowMedian {
    /// Whether a row with a NaN is an error.
    strict: bool,
}

/// The error of the kernel.
#[derive(Debug, thiserror::Error)]
#[error("row {row} holds a NaN")]
struct NanInRow {
    row: u64,
}

impl UserKernel for RowMedian {
    const NAME: &'static str = "row_median";
    const VERSION: u32 = 1;

    fn scratch_bytes(&self, inputs: &[&[usize]], _output: &[usize]) -> u64 {
        (inputs[0][1] * size_of::<f64>()) as u64
    }

    fn apply(
        &self,
        inputs: &[Block<'_>],
        output: &mut BlockMut<'_>,
        scratch: &mut Scratch<'_>,
    ) -> Result<(), KernelError> {
        let values = inputs[0].array::<f64>()?;
        let mut medians = output.array::<f64>()?;
        let row = scratch.slice::<f64>(inputs[0].shape[1])?;
        for (i, (lane, median)) in values.rows().into_iter().zip(&mut medians).enumerate() {
            if self.strict && lane.iter().any(|x| x.is_nan()) {
                return Err(NanInRow { row: inputs[0].start[0] + i as u64 }.into());
            }
            row.iter_mut().zip(lane).for_each(|(to, x)| *to = *x);
            let middle = row.len() / 2;
            *median = *row.select_nth_unstable_by(middle, f64::total_cmp).1;
        }
        Ok(())
    }
}

/// Cancels a run when its first task has finished.
struct CancelEarly(Cancel);

impl Observer for CancelEarly {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::Outcome { .. } = event {
            self.0.cancel();
        }
    }
}

fn medians(array: &Array, strict: bool) -> Array {
    let out = OutputBlocks::new(DType::Float64).drop_axis(1);
    freestone::map_blocks(&RowMedian { strict }, [array], &out)
}

fn main() -> Result<(), Error> {
    let spec = Spec::builder().allowed_mem("100MB").build()?;
    let numbers = freestone::random_normal([1000, 500], 0.0, 1.0, 7, DType::Float64, [50, 500]);
    let output = std::env::temp_dir().join("freestone-medians");
    let target = Target::array(&medians(&numbers, true), &output).overwrite(true);
    let plan = plan(&[target], &spec)?;

    let cancel = Cancel::default();
    let observer = CancelEarly(cancel.clone());
    let options = RunOptions { observers: &[&observer], cancel, ..RunOptions::default() };
    match freestone::run_with(&plan, &spec, &Serial, &options) {
        Err(error) if error.kind() == ErrorKind::Cancelled => {
            let Some(folder) = error.resumable_run() else { return Err(error) };
            let stored = freestone::open_run(folder, &Stores::default())?;
            let kernels = KernelRegistry::new().with::<RowMedian>();
            let options = RunOptions { kernels, ..RunOptions::default() };
            let report = freestone::resume(&stored, &spec, &Serial, &options)?;
            println!("resumed after {} tasks", report.finished_before);
        }
        other => println!("{}", other?),
    }

    let damaged = freestone::where_(&numbers.greater(3.0), f64::NAN, &numbers);
    match medians(&damaged, true).compute::<f64>(&spec) {
        Err(error) if error.kind() == ErrorKind::Kernel => println!("as expected: {error}"),
        other => println!("{}", other?.sum()),
    }
    println!("{:.3}", medians(&damaged, false).mean(()).compute_scalar::<f64>(&spec)?);
    Ok(())
}
