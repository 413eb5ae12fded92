use super::*;
use freestone_kernels::DType;
use freestone_ops::full;

fn x() -> Value {
    Value::Array(full([4, 6], 1.0, DType::Float32, [2, 3]))
}

/// The shape of a call's result, or its error.
#[track_caller]
fn check(name: &str, positional: Vec<Value>, named: Vec<(&str, Value)>, expected: &str) {
    let named = named.into_iter().map(|(n, v)| (n.to_owned(), v)).collect();
    let said = match function(name).unwrap().call(positional, named) {
        Ok(Value::Array(a)) => format!(
            "{:?} {} {:?}",
            a.shape().unwrap(),
            a.dtype().unwrap(),
            a.grid().unwrap().max_chunk()
        ),
        Ok(other) => other.describe(),
        Err(error) => error.to_string(),
    };
    assert_eq!(said, expected);
}

#[test]
fn arguments_bind_as_in_python() {
    use Value::{Bool, Int};
    check("mean", vec![x()], vec![], "[] float32 []");
    check(
        "mean",
        vec![x()],
        vec![("axis", Int(-1)), ("keepdims", Bool(true))],
        "[4, 1] float32 [2, 1]",
    );
    check(
        "mean",
        vec![x(), Int(0)],
        vec![],
        "mean: expected 1 positional argument, found 2 (hint: write `axis=`)",
    );
    check("mean", vec![], vec![], "mean: missing required argument `x`");
    check("mean", vec![], vec![("x", x())], "mean: argument `x` is positional-only");
    check(
        "mean",
        vec![x()],
        vec![("axes", Int(0))],
        "mean: unexpected keyword argument `axes` (hint: did you mean `axis`?)",
    );
    check(
        "mean",
        vec![x()],
        vec![("axis", Int(0)), ("axis", Int(0))],
        "mean: multiple values for argument `axis`",
    );
    check("add", vec![x()], vec![("x2", x())], "add: argument `x2` is positional-only");
    check(
        "abs",
        vec![x()],
        vec![("out", x())],
        "abs: unexpected keyword argument `out` (hint: it takes no keyword arguments)",
    );
    check("arange", vec![Int(5)], vec![("stop", Int(11)), ("step", Int(2))], "[3] int64 [3]");
    check(
        "arange",
        vec![Int(5), Int(11)],
        vec![("stop", Int(11))],
        "arange: multiple values for argument `stop`",
    );
}

#[test]
fn arguments_of_the_wrong_kind_are_named() {
    use Value::{Bool, Float, Int, Sequence, Text};
    check(
        "mean",
        vec![Int(2)],
        vec![],
        "mean: invalid argument `x`: expected an array, found the number 2",
    );
    check(
        "mean",
        vec![x()],
        vec![("axis", Float(0.5))],
        "mean: invalid argument `axis`: expected an axis, a tuple of axes, or None, found the \
            number 0.5",
    );
    check(
        "mean",
        vec![x()],
        vec![("keepdims", Int(1))],
        "mean: invalid argument `keepdims`: expected True or False, found the number 1",
    );
    check("add", vec![Int(2), Int(3)], vec![], "add: at least one operand must be an array");
    check(
        "astype",
        vec![x(), Text("float31".into())],
        vec![],
        "astype: invalid argument `dtype`: expected a dtype such as float32, found the text \
            'float31'",
    );
    check(
        "broadcast_to",
        vec![x(), Sequence(vec![Int(-4), Int(6)])],
        vec![],
        "broadcast_to: invalid length -4 in `shape` along axis 0",
    );
    check(
        "rechunk",
        vec![x(), Sequence(vec![Int(4)])],
        vec![],
        "rechunk: expected 2 lengths in `chunks`, found 1",
    );
    check("rechunk", vec![x(), Sequence(vec![Int(-1), Int(2)])], vec![], "[4, 6] float32 [4, 2]");
    check("full", vec![Int(3), Bool(true)], vec![], "[3] bool [3]");
}

#[test]
fn numbers_take_the_dtype_of_the_array_beside_them() {
    use Value::{Bool, Complex, Float, Int};
    let small = || Value::Array(full([2], 1.0, DType::Int8, [2]));
    check("add", vec![x(), Int(3)], vec![], "[4, 6] float32 [2, 3]");
    check("add", vec![Float(0.1), x()], vec![], "[4, 6] float32 [2, 3]");
    check("add", vec![small(), Int(-128)], vec![], "[2] int8 [2]");
    check(
        "add",
        vec![small(), Int(128)],
        vec![],
        "128 is out of range for int8: choose a dtype that holds it, or cast the array first",
    );
    check("add", vec![small(), Float(0.5)], vec![], "[2] float64 [2]");
    check("add", vec![x(), Complex(0.0, 1.0)], vec![], "[4, 6] complex64 [2, 3]");
    check("add", vec![x(), Bool(true)], vec![], "[4, 6] float32 [2, 3]");
    check("add", vec![x(), Int(1 << 70)], vec![], "1180591620717411303424 exceeds 64 bits");
}

#[test]
fn every_signature_can_be_read() {
    for f in functions() {
        assert!(
            signature::parse(f.signature).is_ok_and(|p| !p.is_empty()),
            "{}{}",
            f.name,
            f.signature
        );
        assert!(
            !f.summary.is_empty()
                && f.summary.ends_with('.')
                && !f.dtypes.is_empty()
                && !f.cost.is_empty(),
            "{}",
            f.name
        );
    }
    let mut names: Vec<&str> = functions().iter().map(|f| f.name).chain(constants()).collect();
    let n = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), n, "a name stands twice");
}

#[test]
fn a_method_call_is_written_as_a_function_call() {
    let written = |name: &str, arguments: &[&str]| {
        function(name)
            .unwrap()
            .written("u", &arguments.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(written("mean", &["0"]), "mean(u, axis=0)");
    assert_eq!(written("mean", &["axis=0"]), "mean(u, axis=0)");
    assert_eq!(written("astype", &["float32"]), "astype(u, float32)");
    assert_eq!(written("sum", &[]), "sum(u)");
}

#[test]
fn dtypes_are_those_that_work() {
    assert_eq!(function("less").unwrap().dtypes, "bool, integers, floats");
    assert_eq!(function("add").unwrap().dtypes, "all");
    assert_eq!(function("logical_and").unwrap().dtypes, "bool");
}
