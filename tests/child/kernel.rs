//! A program with a user kernel.

use freestone::{DType, Serial, Target};

use crate::say;
use crate::scenarios::spec_in;

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Doubled;

impl freestone::UserKernel for Doubled {
    const NAME: &'static str = "doubled";
    const VERSION: u32 = 1;

    fn scratch_bytes(&self, inputs: &[&[usize]], _output: &[usize]) -> u64 {
        inputs[0].iter().product::<usize>() as u64 * 4
    }

    fn apply(
        &self,
        inputs: &[freestone::Block<'_>],
        output: &mut freestone::BlockMut<'_>,
        scratch: &mut freestone::Scratch<'_>,
    ) -> Result<(), freestone::KernelError> {
        scratch[..inputs[0].bytes.len()].copy_from_slice(inputs[0].bytes);
        output.array::<f32>()?.assign(&inputs[0].array::<f32>()?.mapv(|x| 2.0 * x));
        Ok(())
    }
}

/// Doubles the array `x` in a folder, and prints the run's resource use.
pub fn run(place: &str) {
    let x = freestone::open(format!("{place}/x")).unwrap();
    let y = freestone::map_blocks(&Doubled, [&x], &freestone::OutputBlocks::new(DType::Float32));
    let spec = spec_in(&format!("{place}/work"));
    let report = freestone::run(
        &freestone::plan(&[Target::array(&y, format!("{place}/y"))], &spec).unwrap(),
        &spec,
        &Serial,
    )
    .unwrap();
    let said = serde_json::json!({
        "projected_mem": report.projected_bytes,
        "peak_mem": report.peak_rss_bytes,
        "bytes_read": report.traffic().bytes_read,
        "stages": [],
    });
    say(&said);
}
