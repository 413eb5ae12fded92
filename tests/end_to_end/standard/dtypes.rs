//! Dtypes of results, against NumPy and the standard's promotion table.

use freestone::{Complex128, DType};
use freestone_expr::vocabulary::{Value, function};
use ndarray::{ArrayD, IxDyn};

use super::ones;
use crate::elements::{Element, computed, is_complex, is_signed, list, stored};
use crate::support::Place;

const PROMOTION: &str = include_str!("../../data/promotion.txt");
/// NumPy's dtypes, written by `tests/interop/numpy_tables.py`.
const DTYPES: &str = include_str!("../../data/dtypes.txt");

fn promotions() -> impl Iterator<Item = (DType, DType, Option<DType>)> {
    PROMOTION.lines().filter(|l| !l.starts_with('#')).map(|line| {
        let [left, right, result] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let dtype = |name| DType::from_name(name).unwrap();
        (dtype(left), dtype(right), (result != "undefined").then(|| dtype(result)))
    })
}

/// Returns the dtype of a result that differs from NumPy's by design; `Some(None)` is an error.
fn differs_from_numpy(name: &str, dtypes: &[DType]) -> Option<Option<DType>> {
    let any_complex = dtypes.iter().any(|d| is_complex(*d));
    let common = dtypes.iter().copied().reduce(DType::promote).unwrap();
    match name {
        // The standard defines these for bools only, and no order of complex numbers.
        "logical_and" | "logical_or" | "logical_xor" if common != DType::Bool => Some(None),
        "less" | "less_equal" | "greater" | "greater_equal" | "maximum" | "minimum" | "min"
        | "max" | "argmin" | "argmax"
            if any_complex =>
        {
            Some(None)
        }
        "var" | "std" if any_complex => Some(None),
        // Without `float16`, integers become `float64`.
        "atan2" | "copysign" | "hypot" | "logaddexp" | "nextafter"
            if common == DType::Bool || common.is_integer() =>
        {
            Some(Some(DType::Float64))
        }
        _ => None,
    }
}

/// Checks every function for every dtype and pair of dtypes: the dtype is NumPy's, or an error if
/// NumPy has one.
#[test]
fn result_dtypes_match_numpy() {
    let (mut rows, mut refused) = (0, 0);
    for line in DTYPES.lines().filter(|l| !l.starts_with('#')) {
        let [name, dtypes, result] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let dtypes: Vec<DType> = dtypes.split(' ').map(|d| DType::from_name(d).unwrap()).collect();
        let expected = differs_from_numpy(name, &dtypes)
            .unwrap_or_else(|| (result != "refused").then(|| DType::from_name(result).unwrap()));
        let arrays: Vec<Value> =
            dtypes.iter().map(|d| Value::Array(stored(&ones(*d), *d, &[2]))).collect();
        let (arguments, named) = match name {
            "concat" | "stack" => (vec![Value::Sequence(arrays)], vec![]),
            "where" => (
                [vec![Value::Array(stored(&ones(DType::Bool), DType::Bool, &[2]))], arrays]
                    .concat(),
                vec![],
            ),
            "tensordot" => (arrays, vec![("axes".into(), Value::Int(1))]),
            _ => (arrays, vec![]),
        };
        match (function(name).unwrap().call(arguments, named), expected) {
            (Ok(Value::Array(array)), Some(expected)) => {
                assert_eq!(array.dtype().unwrap(), expected, "{line}")
            }
            (Err(_), None) => refused += 1,
            (found, expected) => panic!("{line}: {found:?}, not {expected:?}"),
        }
        rows += 1;
    }
    println!("dtypes: {rows} rows, {refused} refused");
    assert!(rows > 6000, "rows are missing");
}

#[test]
fn promotion_follows_the_standard() {
    for (left, right, standard) in promotions() {
        assert!(standard.is_none_or(|d| d == left.promote(right)), "{left} with {right}");
    }
}

/// All four pairs of bools, as in NumPy.
#[test]
fn functions_of_bools() {
    let place = Place::quick();
    let bools = |values: [u8; 4]| {
        Value::Array(stored(
            &list(values.map(|b| Element::Bool(b == 1)).to_vec()),
            DType::Bool,
            &[3],
        ))
    };
    let check = |name: &str, arguments: Vec<Value>, expected: &[f64]| {
        let Ok(Value::Array(array)) = function(name).unwrap().call(arguments, vec![]) else {
            panic!("{name} is refused")
        };
        let values: Vec<f64> = computed(&array, &place.spec())
            .unwrap()
            .iter()
            .map(|x| if let Element::Bool(b) = x { f64::from(u8::from(*b)) } else { x.real() })
            .collect();
        assert_eq!(values, expected, "{name}");
    };
    for (name, expected) in [
        ("add", [0.0, 1.0, 1.0, 1.0]),
        ("multiply", [0.0, 0.0, 0.0, 1.0]),
        ("maximum", [0.0, 1.0, 1.0, 1.0]),
        ("minimum", [0.0, 0.0, 0.0, 1.0]),
        ("pow", [1.0, 0.0, 1.0, 1.0]),
        ("less", [0.0, 1.0, 0.0, 0.0]),
        ("less_equal", [1.0, 1.0, 0.0, 1.0]),
        ("greater", [0.0, 0.0, 1.0, 0.0]),
        ("greater_equal", [1.0, 0.0, 1.0, 1.0]),
        ("bitwise_left_shift", [0.0, 0.0, 1.0, 2.0]),
        ("floor_divide", [0.0, 0.0, 0.0, 1.0]),
        ("remainder", [0.0, 0.0, 0.0, 0.0]),
        ("hypot", [0.0, 1.0, 1.0, 2f64.sqrt()]),
    ] {
        check(name, vec![bools([0, 0, 1, 1]), bools([0, 1, 0, 1])], &expected);
    }
    for (name, some, none, all) in [
        ("min", 0.0, 0.0, 1.0),
        ("max", 1.0, 0.0, 1.0),
        ("argmin", 0.0, 0.0, 0.0),
        ("argmax", 2.0, 0.0, 0.0),
    ] {
        for (values, expected) in [([0, 0, 1, 0], some), ([0; 4], none), ([1; 4], all)] {
            check(name, vec![bools(values)], &[expected]);
        }
    }
    for name in ["matmul", "vecdot"] {
        check(name, vec![bools([0, 1, 1, 1]), bools([1, 1, 1, 0])], &[1.0]);
        check(name, vec![bools([0, 1, 0, 1]), bools([1, 0, 1, 0])], &[0.0]);
    }
}

/// No integer dtype holds all values of `int64` and `uint64`, and `float64` has too few digits.
#[test]
fn comparisons_of_integers_are_exact() {
    let place = Place::quick();
    let (most, large) = (i128::from(i64::MAX), i128::from(u64::MAX));
    let signed = [most, most, most - 1, -1, -1, 0, i128::from(i64::MIN), 5];
    let unsigned = [most + 1, most, most, large, 0, 0, most + 1, 5];
    let array = |values: &[i128], dtype| {
        Value::Array(stored(&list(values.iter().map(|i| Element::Int(*i)).collect()), dtype, &[3]))
    };
    type Comparison = fn(&i128, &i128) -> bool;
    let all: [(&str, Comparison); 6] = [
        ("equal", i128::eq),
        ("not_equal", i128::ne),
        ("less", |x, y| x < y),
        ("less_equal", |x, y| x <= y),
        ("greater", |x, y| x > y),
        ("greater_equal", |x, y| x >= y),
    ];
    for (name, compare) in all {
        for (x, y, kinds) in [
            (signed, unsigned, [DType::Int64, DType::UInt64]),
            (unsigned, signed, [DType::UInt64, DType::Int64]),
        ] {
            let Ok(Value::Array(found)) = function(name)
                .unwrap()
                .call(vec![array(&x, kinds[0]), array(&y, kinds[1])], vec![])
            else {
                panic!("{name}")
            };
            let expected =
                list(x.iter().zip(&y).map(|(x, y)| Element::Bool(compare(x, y))).collect());
            assert_eq!(computed(&found, &place.spec()).unwrap(), expected, "{name} of {kinds:?}");
        }
    }
}

/// Returns the dtype of an array combined with a number; `None` is an error.
fn with_number(array: DType, number: &Value) -> Option<DType> {
    let whole = array == DType::Bool || array.is_integer();
    match number {
        Value::Bool(_) => Some(array),
        // The standard does not define numbers of another kind with bools and integers, nor arrays.
        Value::Int(i) if array == DType::Bool => {
            Some(if i64::try_from(*i).is_ok() { DType::Int64 } else { DType::UInt64 })
        }
        Value::Int(i) => (!array.is_integer() || Element::Int(*i).fit(array) == Element::Int(*i))
            .then_some(array),
        Value::Float(_) => Some(if whole { DType::Float64 } else { array }),
        Value::Complex(..) if array == DType::Float32 => Some(DType::Complex64),
        _ => Some(if is_complex(array) { array } else { DType::Complex128 }),
    }
}

/// Python's numbers take the dtype of the array, on either side.
#[test]
fn promotion_of_arrays_and_numbers() {
    let (place, mut tried) = (Place::quick(), 0);
    let (least, most) = (i128::from(i64::MIN), i128::from(u64::MAX));
    let integers = [
        0,
        1,
        -1,
        127,
        128,
        -128,
        -129,
        255,
        256,
        32_767,
        32_768,
        65_536,
        1 << 31,
        -(1 << 31) - 1,
        1 << 32,
        least,
        most,
        most / 2 + 1,
    ];
    let numbers: Vec<Value> = integers
        .map(Value::Int)
        .into_iter()
        .chain([Value::Bool(true), Value::Float(0.1), Value::Complex(0.5, -2.0)])
        .collect();
    for dtype in DType::ALL {
        for number in &numbers {
            let expected = with_number(dtype, number);
            let exact = |d: DType| match number {
                Value::Bool(b) => {
                    if d == DType::Bool {
                        Element::Bool(*b)
                    } else {
                        Element::Int((*b).into()).fit(d)
                    }
                }
                Value::Int(i) => Element::Int(*i).fit(d),
                Value::Float(x) => Element::Real(*x).fit(d),
                Value::Complex(re, im) => Element::Complex(Complex128::new(*re, *im)).fit(d),
                other => panic!("{other:?} is not a number"),
            };
            for turned in [false, true] {
                let mut arguments =
                    vec![Value::Array(stored(&ones(dtype), dtype, &[2])), number.clone()];
                if turned {
                    arguments.reverse();
                }
                let found = function("multiply").unwrap().call(arguments, vec![]);
                match (expected, found) {
                    (Some(expected), Ok(Value::Array(array))) => {
                        assert_eq!(array.dtype().unwrap(), expected, "{dtype} and {number:?}");
                        let values = computed(&array, &place.spec()).unwrap();
                        assert_eq!(
                            values,
                            ArrayD::from_elem(IxDyn(&[3]), exact(expected)),
                            "{dtype} and {number:?}"
                        );
                    }
                    (None, Err(_)) => {}
                    (expected, found) => {
                        panic!("{dtype} and {number:?}: {found:?}, not {expected:?}")
                    }
                }
                tried += 1;
            }
        }
    }
    assert_eq!(tried, 13 * 21 * 2);
    println!("promotion with numbers: {tried} calls");
}

/// The promotion table is symmetric, and undefined only for `uint64` with signed integers.
#[test]
fn the_promotion_table_is_consistent() {
    let all: Vec<_> = promotions().collect();
    for (left, right, result) in &all {
        assert!(
            all.contains(&(*right, *left, *result)),
            "{left} and {right} differ from {right} and {left}"
        );
        if left.is_integer() && right.is_integer() {
            let lost = is_signed(*left) != is_signed(*right)
                && (*left == DType::UInt64 || *right == DType::UInt64);
            assert_eq!(result.is_none(), lost, "{left} and {right}");
        }
    }
}
