//! User kernels: any blocks, any executor, and failures.

use freestone::{
    Array, Block, BlockLengths, BlockMut, DType, Error, KernelError, OutputBlocks, Scratch, Target,
    UserKernel,
};
use ndarray::{Array2, ArrayD, Axis};
use serde::{Deserialize, Serialize};

use crate::support::{Place, processes};

/// A kernel that computes `a·x + y`, or fails.
#[derive(Debug, Serialize, Deserialize)]
struct Scaled {
    by: f64,
    trouble: Option<String>,
}

impl UserKernel for Scaled {
    const NAME: &'static str = "scaled";
    const VERSION: u32 = 3;

    fn scratch_bytes(&self, _inputs: &[&[usize]], output: &[usize]) -> u64 {
        output.iter().product::<usize>() as u64 * 8
    }

    fn apply(
        &self,
        inputs: &[Block<'_>],
        output: &mut BlockMut<'_>,
        scratch: &mut Scratch<'_>,
    ) -> Result<(), KernelError> {
        match self.trouble.as_deref() {
            Some("panic") => panic!("on purpose"),
            Some(trouble) => return Err(trouble.into()),
            None => {}
        }
        assert!(scratch.len() >= output.bytes.len() || output.dtype != DType::Float64);
        let x = inputs[0].array::<f64>()?;
        let mut out = output.array::<f64>()?;
        out.assign(&(&x * self.by));
        if let Some(y) = inputs.get(1) {
            out += &y.array::<f64>()?;
        }
        Ok(())
    }
}

/// A kernel of block sums: each block becomes one element.
#[derive(Debug, Serialize, Deserialize)]
pub struct BlockSum;

impl UserKernel for BlockSum {
    const NAME: &'static str = "block_sum";
    const VERSION: u32 = 1;

    fn scratch_bytes(&self, _inputs: &[&[usize]], _output: &[usize]) -> u64 {
        0
    }

    fn apply(
        &self,
        inputs: &[Block<'_>],
        output: &mut BlockMut<'_>,
        _scratch: &mut Scratch<'_>,
    ) -> Result<(), KernelError> {
        output.array::<f64>()?.fill(inputs[0].array::<f64>()?.sum());
        Ok(())
    }
}

fn numbers(rows: usize, columns: usize) -> Array2<f64> {
    Array2::from_shape_fn((rows, columns), |(i, j)| (i * 100 + j) as f64)
}

fn scaled(by: f64) -> Scaled {
    Scaled { by, trouble: None }
}

fn chunked(values: &Array2<f64>, chunks: &[u64]) -> Array {
    freestone::asarray(values).rechunk(chunks)
}

fn compute(array: &Array) -> ArrayD<f64> {
    freestone::compute(array, &Place::new().spec()).unwrap()
}

#[test]
fn user_kernels_combine_with_other_stages() {
    let whole = numbers(13, 7);
    for chunks in [[13, 7], [4, 3], [1, 7], [5, 1]] {
        let x = chunked(&whole, &chunks);
        let out = OutputBlocks::new(DType::Float64);
        assert_eq!(
            compute(&freestone::map_blocks(&scaled(2.0), [&x], &out)),
            (&whole * 2.0).into_dyn()
        );
        // Elementwise stages before and after, another chunking, a view, and two arrays.
        let y = freestone::map_blocks(&scaled(3.0), [&(&x + 1.0), &x], &out);
        let expected = ((&whole + 1.0) * 3.0 + &whole).into_dyn();
        assert_eq!(compute(&(&y * 0.5)), &expected * 0.5);
        assert_eq!(compute(&y.rechunk([6, 2])), expected);
        let flipped = freestone::map_blocks(&scaled(1.0), [&x.flip(0)], &out);
        let mut reversed = whole.clone();
        reversed.invert_axis(Axis(0));
        assert_eq!(compute(&flipped), reversed.into_dyn());
        assert_eq!(compute(&y.sum(1)), expected.sum_axis(Axis(1)));
    }
}

#[test]
fn blocks_change_shape() {
    let whole = numbers(10, 6);
    let x = chunked(&whole, &[4, 3]);
    let out = OutputBlocks::new(DType::Float64)
        .lengths(0, BlockLengths::Each(1))
        .lengths(1, BlockLengths::List(vec![1, 2]));
    let sums = compute(&freestone::map_blocks(&BlockSum, [&x], &out));
    assert_eq!(sums.shape(), [3, 3]);
    for (i, rows) in [0..4, 4..8, 8..10].into_iter().enumerate() {
        let block =
            |columns: std::ops::Range<usize>| whole.slice(ndarray::s![rows.clone(), columns]).sum();
        assert_eq!(
            [sums[[i, 0]], sums[[i, 1]], sums[[i, 2]]],
            [block(0..3), block(3..6), block(3..6)]
        );
    }
    // One row per block of rows, with a new leading axis.
    let row = chunked(&numbers(1, 6), &[1, 3]);
    let both = freestone::map_blocks(
        &scaled(0.0),
        [&x, &row.at(0, 0)],
        &OutputBlocks::new(DType::Float64),
    );
    assert_eq!(compute(&both), numbers(1, 6).broadcast((10, 6)).unwrap().to_owned().into_dyn());
    let dropped = freestone::map_blocks(
        &BlockSum,
        [&x.rechunk([10, 3])],
        &OutputBlocks::new(DType::Float64).drop_axis(0).new_axis(1, 2),
    );
    assert_eq!(dropped.shape().unwrap(), [6, 2]);
    assert_eq!(compute(&dropped)[[5, 1]], whole.slice(ndarray::s![.., 3..6]).sum());
}

#[test]
fn invalid_kernels_are_refused_before_the_run() {
    let (x, y) = (chunked(&numbers(10, 6), &[4, 3]), chunked(&numbers(10, 6), &[5, 3]));
    let out = OutputBlocks::new(DType::Float64);
    #[track_caller]
    fn check(arrays: &[&Array], out: &OutputBlocks, expected: &str) {
        let error = freestone::map_blocks(&BlockSum, arrays, out).check().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    check(&[], &out, "at least one array");
    check(&[&x, &y], &out, "3 and 2 blocks along axis 0: rechunk");
    check(&[&x], &out.clone().drop_axis(0), "axis 0 cannot be dropped while it has 3 blocks");
    check(&[&x], &out.clone().drop_axis(5), "axis 5 is out of range");
    check(&[&x], &out.clone().new_axis(4, 1), "axis 4 is out of range");
    check(
        &[&x],
        &out.clone().lengths(0, BlockLengths::List(vec![1])),
        "1 lengths were given for 3 blocks along axis 0",
    );
    check(&[&x], &out.lengths(1, BlockLengths::Each(0)), "the blocks along axis 1 are empty");
}

#[test]
fn a_failed_kernel_fails_the_run_with_its_message() {
    let x = chunked(&numbers(10, 6), &[4, 3]);
    let place = Place::new();
    for (trouble, expected) in [
        ("no convergence", "kernel `scaled`: no convergence"),
        ("panic", "kernel `scaled` panicked"),
    ] {
        let kernel = Scaled { by: 1.0, trouble: Some(trouble.into()) };
        let y = freestone::map_blocks(&kernel, [&x], &OutputBlocks::new(DType::Float64));
        let error = freestone::compute::<f64>(&y, &place.spec()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let wrong = freestone::map_blocks(
        &scaled(1.0),
        [&x.astype(DType::Float32)],
        &OutputBlocks::new(DType::Float64),
    );
    let error = freestone::compute::<f64>(&wrong, &place.spec()).unwrap_err().to_string();
    assert!(error.contains("the block has dtype `float32`"), "{error}");
}

/// Workers of the command lack this kernel. They are refused before anything is written.
#[test]
fn workers_without_the_kernel_are_refused() {
    let place = Place::new();
    let winds =
        freestone::open(format!("{}/u", crate::support::WINDS_V3)).unwrap().astype(DType::Float64);
    let y = freestone::map_blocks(&scaled(1.0), [&winds], &OutputBlocks::new(DType::Float64));
    let out = place.at("out.zarr");
    let planned = freestone::plan(&[Target::array(&y, &out)], &place.spec()).unwrap();
    let Err(error) = freestone::run(&planned, &place.spec(), &processes(1)) else {
        panic!("a worker has an unregistered kernel")
    };
    assert!(error.to_string().contains("unknown kernel `scaled` (hint:"), "{error}");
    assert!(matches!(error, Error::Run(_)));
    assert!(!std::path::Path::new(&out).exists());
}

#[test]
fn scratch_memory_is_in_the_projection() {
    let x = chunked(&numbers(100, 100), &[100, 100]);
    let y = freestone::map_blocks(&scaled(1.0), [&x], &OutputBlocks::new(DType::Float64));
    let spec = Place::new().spec();
    let plan = freestone::plan(&[Target::array(&y, "/nowhere")], &spec).unwrap();
    let text = plan.finalized().to_string();
    // 80 000 bytes of scratch memory, and the rest of a task.
    assert!(
        text.contains("applies kernel scaled (version 3)")
            && text.contains("145.5 kB  kernel scratch"),
        "{text}"
    );
}
