//! Tests of lowering and of the checks.

use std::sync::Arc;

use freestone_kernels::reduce::Finish;
use freestone_kernels::{BinaryOp, DType, Expr, Generate, Node as ExprNode, ReduceOp, Scalar};
use proptest::prelude::*;

use super::lower::{Output, lower};
use super::*;
use crate::graph::{Node, NodeRef, Op};
use crate::grid::{AxisGrid, ChunkGrid, Region};
use crate::readmap::{AxisMap, Origin, Piece, ReadMap};
use crate::spec::{Settings, Spec};
use crate::stages::ReduceNode;
use crate::storage::{CodecName, Encoding, Keys};

pub(crate) fn spec(allowed: u64, parallelism: u64) -> Spec {
    Settings {
        allowed_mem: Some(allowed),
        parallelism: Some(parallelism),
        threads: Some(2),
        work_dir: Some("work".into()),
        ..Settings::default()
    }
    .resolve()
    .unwrap()
}

pub(crate) fn random(shape: &[u64], chunk: &[u64], seed: u64) -> NodeRef {
    let op =
        Op::Generate(Generate::Uniform { seed, low: Scalar::new(0.0), high: Scalar::new(1.0) });
    Arc::new(Node { op, dtype: DType::Float32, grid: ChunkGrid::regular(shape, chunk).unwrap() })
}

fn product(a: &NodeRef, b: &NodeRef) -> NodeRef {
    let expr = Expr::of(&[DType::Float32, DType::Float32], |e, i| {
        e.push(ExprNode::Binary(BinaryOp::Multiply, i[0], i[1]))
    })
    .unwrap();
    Node::map(expr, vec![Arc::clone(a), Arc::clone(b)])
}

fn mean(a: &NodeRef) -> NodeRef {
    let grid = ChunkGrid::new(a.grid.axes()[1..].to_vec());
    let finish = Finish::Mean { count: a.shape()[0], dtype: a.dtype };
    Node::staged(
        ReduceNode {
            input: Arc::clone(a),
            fold: ReduceOp::Sum,
            finish,
            axes: vec![0],
            keepdims: false,
        },
        a.dtype,
        grid,
    )
}

pub(crate) fn output(node: &NodeRef, path: &str, chunk: Option<&[u64]>) -> Output {
    let chunks = chunk.map_or_else(|| node.grid.max_chunk(), <[u64]>::to_vec);
    let grid = ChunkGrid::regular(&node.shape(), &chunks).unwrap();
    let info = ArrayInfo {
        dtype: node.dtype,
        fill: Scalar::zero(node.dtype),
        grid,
        stored_shape: Some(chunks),
        codecs: Encoding::from(CodecName::Zstd(3)).codecs(node.dtype),
        keys: Keys::Default { separator: '/' },
        shard: None,
        window: None,
    };
    let (node, name, url) = (Arc::clone(node), path.to_owned(), "out".to_owned());
    Output {
        node,
        name,
        url,
        path: path.into(),
        info,
        document: Value::Null,
        group: None,
        overwrite: false,
        mode: Mode::Whole,
        consolidated: false,
    }
}

fn quad_means(shape: &[u64], chunk: &[u64]) -> Vec<Output> {
    let (u, v) = (random(shape, chunk, 1), random(shape, chunk, 2));
    [("uu", product(&u, &u)), ("uv", product(&u, &v)), ("vv", product(&v, &v))]
        .iter()
        .map(|(n, p)| output(&mean(p), n, None))
        .collect()
}

#[test]
fn quadratic_means_are_one_stage_if_there_are_enough_tasks() {
    let plan = lower(&quad_means(&[12, 73, 144], &[3, 37, 72]), &spec(100_000_000, 2)).unwrap();
    let [stage] = plan.plan().stages.as_slice() else { panic!("{plan}") };
    assert_eq!((stage.inputs.len(), stage.outputs.len(), stage.n_tasks()), (2, 3, 4));
}

#[test]
fn a_long_reduction_is_two_stages() {
    let plan =
        lower(&quad_means(&[1_460, 360, 720], &[20, 360, 720]), &spec(400_000_000, 2)).unwrap();
    let names: Vec<&str> = plan.plan().stages.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["mean-000", "combine-001"]);
    assert_eq!(plan.plan().stages[0].n_tasks(), 8);
    assert_eq!(plan.plan().stages[1].outputs.len(), 3);
}

#[test]
fn a_plan_of_a_billion_chunks_is_small() {
    let plan = lower(
        &quad_means(&[1_000_000_000, 16_000, 8_000], &[1_000, 160, 800]),
        &spec(4_000_000_000, 1000),
    )
    .unwrap();
    let winds = plan.plan().arrays.iter().filter(|a| matches!(a.place, Place::Generated(_)));
    assert!(winds.clone().all(|a| a.info.grid.n_chunks() == 1_000_000_000));
    assert_eq!(winds.map(|a| a.info.n_bytes()).sum::<u128>(), 1_024_000_000_000_000_000);
    assert_eq!(plan.plan().stages.len(), 2);
    assert!(plan.to_bytes().unwrap().len() < 20_000);
}

#[test]
fn serialization_round_trips() {
    let plan = lower(&quad_means(&[40, 73, 144], &[3, 37, 72]), &spec(100_000_000, 8)).unwrap();
    let back = FinalizedPlan::from_bytes(&plan.to_bytes().unwrap()).unwrap();
    assert_eq!(back, plan);
    assert_eq!(back.run_id(), plan.run_id());
}

#[test]
fn the_debug_output_of_a_plan_is_short() {
    let plan = lower(&quad_means(&[40, 73, 144], &[3, 37, 72]), &spec(100_000_000, 8)).unwrap();
    let text = format!("{plan:?}");
    assert!(text.contains("mean-000") && text.len() < 300, "{text}");
}

#[test]
fn one_byte_below_the_projection_is_rejected() {
    let outputs = quad_means(&[1_460, 360, 720], &[20, 360, 720]);
    let needs = lower(&outputs, &spec(u64::MAX / 8, 2)).unwrap().projected_mem();
    assert!(lower(&outputs, &spec(needs, 2)).is_ok());
    // Siblings are separated before a plan is rejected: one product alone needs less.
    let alone = lower(&outputs[..1], &spec(u64::MAX / 8, 2)).unwrap().projected_mem();
    let error = lower(&outputs[..1], &spec(alone - 1, 2)).unwrap_err();
    let PlanError::ExceedsMemory { projected, allowed, .. } = &error else { panic!("{error}") };
    assert_eq!((*projected, *allowed), (alone, alone - 1));
    assert!(error.to_string().contains("use smaller chunks"), "{error}");
}

/// Regression: smaller chunks were advised although the network client alone exceeded the limit.
#[test]
fn the_advice_for_too_little_memory_is_applicable() {
    let x = random(&[100, 100], &[10, 100], 1);
    let mut plan = lower(&[output(&x, "x", None)], &spec(100_000_000, 2)).unwrap().plan().clone();
    let codecs = plan
        .arrays
        .iter()
        .find(|a| matches!(a.place, Place::Output { .. }))
        .unwrap()
        .info
        .codecs
        .clone();
    let read = plan.arrays.iter_mut().find(|a| matches!(a.place, Place::Generated(_))).unwrap();
    read.place =
        Place::Input { url: "s3://bucket/archive".into(), path: "x".into(), tag: String::new() };
    read.info.codecs = codecs;
    let mut check = |allowed: u64, advice: &str| {
        (plan.allowed_mem, plan.soft_mem) = (allowed, allowed);
        let error = plan.clone().finalize().unwrap_err().to_string();
        assert_eq!(error.lines().last().unwrap(), advice, "{error}");
    };
    let least = "hint: raise allowed_mem above 40.0 MB (required for any chunk size: 32.0 MB \
        reserved, 8.0 MB for the network)";
    check(39_000_000, least);
    check(
        40_010_000,
        &format!(
            "{least}, or use smaller chunks: the chunks of `x` are [10, 100] (4.0 kB each), \
                longest along axis 1"
        ),
    );
}

#[test]
fn two_tasks_never_write_one_chunk() {
    let x = random(&[100, 100], &[10, 100], 1);
    let plan = lower(&[output(&x, "x", None)], &spec(100_000_000, 2)).unwrap().plan().clone();
    let mut bad = plan.clone();
    bad.stages[0].tasks = ChunkGrid::regular(&[100, 100], &[15, 100]).unwrap();
    bad.stages[0].blocks = bad.stages[0].tasks.clone();
    let error = bad.finalize().unwrap_err().to_string();
    assert!(error.contains("several tasks would write"), "{error}");
    let mut twice = plan.clone();
    twice.stages.push(twice.stages[0].clone());
    let error = twice.finalize().unwrap_err().to_string();
    assert!(error.contains("written by 2 stages"), "{error}");
    let mut other = plan;
    other.format = 99;
    assert!(matches!(other.finalize(), Err(PlanError::Format { found: 99 })));
}

/// Plans come from storage, so every inconsistency is an error.
#[test]
fn malformed_plans_are_rejected() {
    let x = random(&[4, 4], &[2, 2], 1);
    let plan = lower(&[output(&x, "x", None)], &spec(100_000_000, 2)).unwrap().plan().clone();
    #[track_caller]
    fn check(plan: &Plan, change: impl FnOnce(&mut Plan), says: &str) {
        let mut bad = plan.clone();
        change(&mut bad);
        let error = bad.finalize().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let broken = |axis: AxisGrid| {
        move |plan: &mut Plan| {
            let grid = ChunkGrid::new(vec![axis, AxisGrid::regular(4, 2)]);
            (plan.stages[0].tasks, plan.stages[0].blocks) = (grid.clone(), grid);
        }
    };
    check(&plan, broken(AxisGrid::Regular { first: 3, size: 0, n: 3, last: 1 }), "grid is invalid");
    check(
        &plan,
        broken(AxisGrid::Regular { first: 1, size: u64::MAX, n: 4, last: 1 }),
        "grid is invalid",
    );
    check(&plan, broken(AxisGrid::Bounds(Vec::new())), "grid is invalid");
    check(&plan, broken(AxisGrid::Bounds(vec![0, 3, 2, 4])), "grid is invalid");
    check(&plan, |plan| plan.stages[0].outputs[0].axes.swap(0, 1), "different axes than the tasks");
    check(
        &plan,
        |plan| plan.stages[0].outputs[0].axes[1] = OutAxis::One,
        "different axes than the tasks",
    );
    check(&plan, |plan| plan.stages[0].outputs.clear(), "number of outputs");
    check(&plan, |plan| plan.stages[0].inputs.clear(), "number of inputs");
    let nowhere = |plan: &mut Plan| {
        let map = &plan.stages[0].inputs[0].map;
        let along = |axis| AxisMap::Along { axis, start: 0, step: 1 };
        let empty = Piece {
            to: Region { start: vec![0, 0], shape: vec![0, 4] },
            from: Origin::Source { source: 0, axes: vec![along(0), along(99)] },
        };
        let pieces = map.pieces().iter().cloned().chain([empty]).collect();
        plan.stages[0].inputs[0].map = ReadMap::new(map.shape().to_vec(), pieces);
    };
    check(&plan, nowhere, "follows an unknown axis");
}

/// Runs a test on a stack that recursion over ten thousand nodes would overflow.
fn on_a_small_stack(test: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(256 << 10).spawn(test).unwrap().join().unwrap();
}

const MANY: usize = 10_000;

fn plus(a: &NodeRef, b: &NodeRef) -> NodeRef {
    let expr = Expr::of(&[DType::Float32, DType::Float32], |e, i| {
        e.push(ExprNode::Binary(BinaryOp::Add, i[0], i[1]))
    })
    .unwrap();
    Node::map(expr, vec![Arc::clone(a), Arc::clone(b)])
}

#[test]
fn deep_graphs_are_planned_printed_and_dropped_without_recursion() {
    on_a_small_stack(|| {
        let (x, y) = (random(&[100], &[50], 1), random(&[100], &[50], 2));
        let sum = (0..MANY).fold(Arc::clone(&x), |sum, _| plus(&sum, &y));
        let plan = lower(&[output(&sum, "sum", None)], &spec(100_000_000, 2)).unwrap();
        assert_eq!((plan.plan().stages.len(), plan.plan().stages[0].inputs.len()), (1, 2));
        let flipped =
            || ReadMap::image(vec![100], vec![AxisMap::Along { axis: 0, start: 99, step: -1 }]);
        let views = (0..MANY).fold(x, |x, _| Node::view(vec![x], flipped()));
        let plan = lower(&[output(&views, "views", None)], &spec(100_000_000, 2)).unwrap();
        assert_eq!(
            (plan.plan().stages.len(), plan.plan().stages[0].inputs[0].map.clone()),
            (1, ReadMap::identity(&[100]))
        );
        let doubled = (0..100).fold(Arc::clone(&y), |x, _| plus(&x, &x));
        assert!(format!("{doubled:?}").len() < 200, "{doubled:?}");
    });
}

#[test]
fn wide_graphs_are_planned() {
    let inputs: Vec<NodeRef> = (0..MANY).map(|seed| random(&[100], &[50], seed as u64)).collect();
    let sum = inputs.iter().skip(1).fold(Arc::clone(&inputs[0]), |sum, x| plus(&sum, x));
    let plan = lower(&[output(&sum, "sum", None)], &spec(1_000_000_000, 2)).unwrap();
    assert_eq!((plan.plan().stages.len(), plan.plan().stages[0].inputs.len()), (1, MANY));
    let outputs: Vec<Output> = inputs
        .iter()
        .enumerate()
        .map(|(i, x)| output(&plus(x, &inputs[0]), &format!("out-{i}"), None))
        .collect();
    let plan = lower(&outputs, &spec(100_000_000, 2)).unwrap();
    assert_eq!(plan.plan().stages.iter().map(|s| s.outputs.len()).sum::<usize>(), MANY);
}

#[test]
fn the_memory_of_quadratic_means_by_parts() {
    let plan =
        lower(&quad_means(&[1_460, 360, 720], &[20, 360, 720]), &spec(400_000_000, 2)).unwrap();
    insta::assert_snapshot!(plan.layout(StageId(0)).estimate, @r"
         32.0 MB  reserved (program, stacks, plan)
         41.5 MB  decoded chunks
         86.0 kB  kernel scratch
          6.2 MB  accumulators
    ");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// A plan that fits still fits if more memory is allowed and keeps its parallelism, and every
    /// output chunk has one task.
    #[test]
    fn more_memory_never_hurts(
        t in 1u64..60,
        y in 1u64..50,
        x in 1u64..50,
        ct in 1u64..20,
        cy in 1u64..20,
        cx in 1u64..20,
        oy in 1u64..50,
        ox in 1u64..50,
        allowed in 32_200_000u64..34_000_000,
        parallelism in 1u64..9,
        reduce: bool,
    ) {
        let source = random(&[t, y, x], &[ct.min(t), cy.min(y), cx.min(x)], 3);
        let outputs = if reduce {
            vec![output(&mean(&source), "m", Some(&[oy.min(y), ox.min(x)]))]
        } else {
            let grid = ChunkGrid::regular(&[t, y, x], &[t, oy.min(y), ox.min(x)]).unwrap();
            let op = Op::Rechunk(Arc::clone(&source));
            let rechunk = Arc::new(Node { op, dtype: source.dtype, grid });
            vec![output(&rechunk, "r", Some(&[t, oy.min(y), ox.min(x)]))]
        };
        let Ok(plan) = lower(&outputs, &spec(allowed, parallelism)) else { return Ok(()) };
        let more = lower(&outputs, &spec(allowed * 4, parallelism)).unwrap();
        let is_output = |a: &&PlanArray| matches!(a.place, Place::Output { .. });
        let output = plan.plan().arrays.iter().find(is_output).unwrap();
        let chunks = output.info.grid.n_chunks();
        for p in [&plan, &more] {
            prop_assert!(p.projected_mem() <= p.plan().allowed_mem);
            // A rechunk may be cheapest in several copies; a reduction never has more than two
            // stages.
            let most = if reduce { 2 } else { rechunk::MAX_COPIES };
            prop_assert!(p.plan().stages.len() <= most, "{}", p);
            let first = &p.plan().stages[0];
            prop_assert!(first.n_tasks() >= chunks.min(parallelism), "{}", p);
        }
        prop_assert_eq!(FinalizedPlan::from_bytes(&plan.to_bytes().unwrap()).unwrap(), plan);
    }
}
