//! The Python Array API standard's tables: special cases of elementwise functions, and which dtype
//! two operands have in common.
//!
//! `tests/data/special_cases.txt` says at its head what a row means.

use std::collections::BTreeMap;

use freestone::{Complex128, DType, Spec};
use freestone_expr::vocabulary::{Value, function};
use freestone_expr::{Expression, Inputs};
use ndarray::{ArrayD, IxDyn};

use crate::elements::{Element, computed, is_complex, is_signed, list, part, stored, ulps};
use crate::support::Place;

const CASES: &str = include_str!("../data/special_cases.txt");
const CASES_BY_DTYPE: &str = include_str!("../data/special_cases_by_dtype.txt");
const REDUCTIONS: &str = include_str!("../data/reductions.txt");
const PROMOTION: &str = include_str!("../data/promotion.txt");
/// NumPy's; `tests/interop/numpy_tables.py` writes them.
const DTYPES: &str = include_str!("../data/dtypes.txt");
const INDEXING: &str = include_str!("../data/indexing.txt");

#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    function: &'static str,
    kind: &'static str,
    operands: &'static str,
    expected: &'static str,
    /// Right too.
    also: Option<&'static str>,
    doubtful: bool,
    /// May be refused for this kind.
    optional: bool,
}

fn rows() -> Vec<Row> {
    let row = |line: &'static str| {
        let mut columns = line.split('\t');
        let mut next = || columns.next().unwrap_or_else(|| panic!("a short row: {line}"));
        let (function, kind, operands, expected) = (next(), next(), next(), next());
        let note = columns.next().unwrap_or_default();
        let also = note.strip_prefix("may: ");
        assert!(also.is_some() || matches!(note, "" | "doubtful" | "optional"), "{line}");
        Row {
            function,
            kind,
            operands,
            expected,
            also,
            doubtful: note == "doubtful",
            optional: note == "optional",
        }
    };
    CASES.lines().chain(CASES_BY_DTYPE.lines()).filter(|l| !l.starts_with('#')).map(row).collect()
}

fn number(text: &str) -> f64 {
    match text {
        "nan" | "+nan" => f64::NAN.copysign(1.0),
        "-nan" => f64::NAN.copysign(-1.0),
        _ => text.parse().unwrap_or_else(|_| panic!("{text} is no number")),
    }
}

fn parts(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')
}

/// An operand of a dtype; `None` where the dtype does not hold it.
fn operand(text: &str, dtype: DType) -> Option<Element> {
    if let Some((re, im)) = parts(text) {
        return Some(Element::Complex(Complex128::new(number(re), number(im))));
    }
    if dtype == DType::Bool {
        return Some(Element::Bool(text == "true"));
    }
    if !dtype.is_integer() {
        return Some(Element::Real(number(text)).fit(dtype));
    }
    let value: i128 = text.parse().unwrap_or_else(|_| panic!("{text} is no integer"));
    Some(Element::Int(value)).filter(|x| x.fit(dtype) == *x)
}

/// True if a float is what a column says.
fn is_float(found: f64, expected: &str, dtype: DType) -> bool {
    if expected == "any" || (expected == "nan" && found.is_nan()) {
        return true;
    }
    let (about, either) = (expected.contains('~'), expected.contains('±'));
    let value = number(expected.trim_start_matches(['~', '±']));
    let (found, value) = if either { (found.abs(), value.abs()) } else { (found, value) };
    if value.is_nan() || found.is_nan() {
        return value.is_nan()
            && found.is_nan()
            && found.is_sign_negative() == value.is_sign_negative();
    }
    let same_zero =
        found != 0.0 || value != 0.0 || found.is_sign_negative() == value.is_sign_negative();
    same_zero && ulps(found, value, dtype) <= if about { 4 } else { 0 }
}

fn is_expected(found: Element, expected: &str, dtype: DType) -> bool {
    match found {
        Element::Bool(x) => expected == if x { "true" } else { "false" },
        Element::Int(x) => expected.parse() == Ok(x),
        Element::Real(x) => is_float(x, expected, dtype),
        Element::Complex(x) => parts(expected)
            .is_some_and(|(re, im)| is_float(x.re, re, dtype) && is_float(x.im, im, dtype)),
    }
}

/// The dtypes of a kind that hold all of a row.
fn dtypes(row: &Row) -> Vec<DType> {
    let holds = |d: &DType| {
        let operands = row.operands.split(' ').all(|o| o == "none" || operand(o, *d).is_some());
        // Of a comparison the result is no integer.
        operands
            && (matches!(row.expected, "true" | "false") || operand(row.expected, *d).is_some())
    };
    match row.kind {
        "real" => vec![DType::Float32, DType::Float64],
        "complex" => vec![DType::Complex64, DType::Complex128],
        "int" => DType::ALL.into_iter().filter(|d| d.is_integer()).filter(holds).collect(),
        other => vec![DType::from_name(other).unwrap_or_else(|| panic!("{other} is no dtype"))],
    }
}

/// Rows that can be computed at once: of one function and dtype, with the same arguments left out.
type Group<'a> = BTreeMap<(&'a str, DType, Vec<bool>), Vec<Row>>;

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    passed: usize,
    failed: usize,
    doubtful_passed: usize,
    doubtful_failed: usize,
    refused: usize,
}

#[test]
fn special_cases() {
    let (place, rows) = (Place::quick(), rows());
    let mut groups: Group<'_> = BTreeMap::new();
    for row in &rows {
        let absent: Vec<bool> = row.operands.split(' ').map(|o| o == "none").collect();
        for dtype in dtypes(row) {
            groups.entry((row.function, dtype, absent.clone())).or_default().push(*row);
        }
    }
    let mut counts: BTreeMap<&str, Count> = BTreeMap::new();
    let mut failures: Vec<(Row, DType, Element)> = Vec::new();
    for ((name, dtype, absent), rows) in &groups {
        // Chunks that end within vectors and within strips of them.
        for chunk in [61, 7] {
            let argument = |i: usize| {
                let values = rows
                    .iter()
                    .map(|r| operand(r.operands.split(' ').nth(i).unwrap(), *dtype).unwrap())
                    .collect();
                Value::Array(stored(&list(values), *dtype, &[chunk]))
            };
            let arguments = absent
                .iter()
                .enumerate()
                .map(|(i, absent)| if *absent { Value::None } else { argument(i) })
                .collect();
            let count = counts.entry(*name).or_default();
            let array = match function(name)
                .unwrap_or_else(|| panic!("there is no {name}"))
                .call(arguments, vec![])
            {
                Ok(Value::Array(array)) => array,
                _ if rows.iter().all(|r| r.optional) => {
                    count.refused += rows.len();
                    continue;
                }
                other => panic!("{name} of {dtype}: {other:?}"),
            };
            let result = array.dtype().unwrap();
            assert!(
                result == DType::Bool
                    || result == *dtype
                    || (is_complex(*dtype) && result == part(*dtype)),
                "{name} of {dtype} gives {result}"
            );
            for (row, found) in rows.iter().zip(computed(&array, &place.spec()).unwrap()) {
                let passes = is_expected(found, row.expected, result)
                    || row.also.is_some_and(|also| is_expected(found, also, result));
                match (passes, row.doubtful) {
                    (true, false) => count.passed += 1,
                    (false, false) => count.failed += 1,
                    (true, true) => count.doubtful_passed += 1,
                    (false, true) => count.doubtful_failed += 1,
                }
                if !passes {
                    failures.push((*row, *dtype, found));
                }
            }
        }
    }
    println!(
        "special cases of the standard: {} rows, each for its dtypes in chunks of 61 and of 7",
        rows.len()
    );
    println!("{:24}passed   failed   doubtful   failed   refused", "");
    for (name, c) in &counts {
        println!(
            "{name:20} {:9} {:8} {:10} {:8} {:9}",
            c.passed, c.failed, c.doubtful_passed, c.doubtful_failed, c.refused
        );
    }
    let (passed, failed) = counts.values().fold((0, 0), |(p, f), c| (p + c.passed, f + c.failed));
    println!(
        "{passed} of {} pass: {:.3} %",
        passed + failed,
        100.0 * passed as f64 / (passed + failed) as f64
    );
    for (row, dtype, found) in &failures {
        let word = if row.doubtful { "doubtful" } else { "FAILED" };
        println!(
            "{word}: {} of {dtype} {}: {found:?}, not {}",
            row.function, row.operands, row.expected
        );
    }
    assert_eq!(failed, 0, "rows that are not doubtful fail");
    assert!(counts.len() == 67 && passed > 30_000, "rows are missing");
}

#[test]
fn results_are_told_apart() {
    let float = |found: f64, expected: &str, dtype: DType, same: bool| {
        assert_eq!(is_float(found, expected, dtype), same, "{found:?} {expected}")
    };
    use DType::{Float32, Float64};
    float(0.0, "+0.0", Float64, true);
    float(-0.0, "+0.0", Float64, false);
    float(-0.0, "±0.0", Float64, true);
    float(0.0, "~-0.0", Float32, false);
    float(f64::NAN, "any", Float32, true);
    float(-f64::NAN, "nan", Float32, true);
    float(-f64::NAN, "+nan", Float32, false);
    float(f64::INFINITY, "nan", Float64, false);
    float(f64::INFINITY, "-inf", Float64, false);
    float(f64::INFINITY, "±inf", Float64, true);
    float(f64::MAX, "+inf", Float64, false);
    float(1.0 + 4.0 * f64::EPSILON, "~1.0", Float64, true);
    float(1.0 + 5.0 * f64::EPSILON, "~1.0", Float64, false);
    float(1.0 + f64::EPSILON, "1.0", Float64, false);
    float(1.0 + 5.0 * f64::from(f32::EPSILON), "~1.0", Float32, false);
    float(-1e-320, "~1e-320", Float64, false);
    assert!(is_expected(
        Element::Complex(Complex128::new(1.0, -0.0)),
        "(1.0,-0.0)",
        DType::Complex128
    ));
    assert!(!is_expected(
        Element::Complex(Complex128::new(1.0, 0.0)),
        "(1.0,-0.0)",
        DType::Complex64
    ));
    assert!(
        !is_expected(Element::Bool(true), "false", DType::Bool)
            && !is_expected(Element::Int(1), "2", DType::Int8)
    );
}

/// `[[1.0,nan],[3.0,4.0]]` and the like: the shape and the elements as text.
fn nested(text: &str) -> (Vec<usize>, Vec<&str>) {
    let Some(inside) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) else {
        return (vec![], vec![text]);
    };
    let (mut depth, mut start, mut items) = (0, 0, vec![]);
    for (i, c) in inside.char_indices() {
        match c {
            '[' | '(' => depth += 1,
            ']' | ')' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&inside[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    if !inside.is_empty() {
        items.push(&inside[start..]);
    }
    let all: Vec<_> = items.iter().map(|t| nested(t)).collect();
    let rest = all.first().map_or(vec![], |a| a.0.clone());
    ([vec![items.len()], rest].concat(), all.into_iter().flat_map(|a| a.1).collect())
}

/// `(2,3)`, `(2,)` and `()`.
fn tuple(text: &str) -> Vec<usize> {
    text.trim_matches(['(', ')'])
        .split(',')
        .filter(|n| !n.is_empty())
        .map(|n| n.parse().unwrap())
        .collect()
}

fn keyword(text: &str) -> (String, Value) {
    let (name, value) = text.split_once('=').unwrap();
    let value = match value {
        "None" => Value::None,
        "true" => Value::Bool(true),
        v if v.starts_with('(') => {
            Value::Sequence(tuple(v).into_iter().map(|i| Value::Int(i as i128)).collect())
        }
        v => v
            .parse()
            .map(Value::Int)
            .or(v.parse().map(Value::Float))
            .unwrap_or_else(|_| Value::DType(DType::from_name(v).unwrap())),
    };
    (name.to_owned(), value)
}

/// One row of the reductions for one dtype; what is wrong, if something is.
fn reduced(
    function_name: &str,
    about: &str,
    input: &str,
    keywords: &str,
    expected: &str,
    dtype: DType,
    place: &Place,
) -> Result<(), String> {
    let elements = input.split(' ').skip(1).find(|t| t.starts_with('['));
    let (shape, values) = match (elements, input.split_once("shape=")) {
        (Some(text), _) => nested(text),
        (None, Some((_, shape))) => (tuple(shape), vec![]),
        // Of a `dtype` row.
        (None, None) => (vec![2], vec![]),
    };
    let values: Vec<Element> = values.iter().map(|v| operand(v, dtype).unwrap()).collect();
    let len = shape.iter().product();
    let values = if values.is_empty() { vec![Element::Int(1).fit(dtype); len] } else { values };
    let array = stored(
        &ArrayD::from_shape_vec(IxDyn(&shape), values).unwrap(),
        dtype,
        &vec![1; shape.len()],
    );
    let named = keywords.split(' ').filter(|k| !k.is_empty()).map(keyword).collect();
    let result = match function(function_name).unwrap().call(vec![Value::Array(array)], named) {
        Ok(Value::Array(result)) => result,
        other if expected.split(" or ").any(|e| e == "error") => {
            return if other.is_err() { Ok(()) } else { Err("no array".into()) };
        }
        other => return Err(format!("{other:?}")),
    };
    let found = result.dtype().unwrap();
    if about == "dtype" {
        return if expected.split(" or ").any(|e| e == found.name()) {
            Ok(())
        } else {
            Err(format!("{found}"))
        };
    }
    let lengths: Vec<usize> = result.shape().unwrap().iter().map(|n| *n as usize).collect();
    let values = computed(&result, &place.spec()).map_err(|e| e.to_string())?;
    let fits = |one: &str| {
        if let Some(shape) = one.strip_prefix("shape=") {
            return lengths == tuple(shape);
        }
        let (shape, texts) = nested(one);
        shape == lengths && values.iter().zip(texts).all(|(x, text)| is_expected(*x, text, found))
    };
    if expected.split(" or ").filter(|e| *e != "error").any(fits) {
        Ok(())
    } else {
        Err(format!("{values:?}"))
    }
}

/// What reductions give for nothing, for NaN and infinities, for every dtype, and in which shape.
#[test]
fn reductions() {
    let (place, mut counts, mut failures) =
        (Place::quick(), BTreeMap::<&str, (usize, usize)>::new(), vec![]);
    for line in REDUCTIONS.lines().filter(|l| !l.starts_with('#')) {
        let columns: Vec<&str> = line.split('\t').collect();
        let [name, about, input, keywords, expected] = *columns.first_chunk().unwrap();
        let dtypes = match input.split(' ').next().unwrap() {
            "real" => vec![DType::Float32, DType::Float64],
            "complex" => vec![DType::Complex64, DType::Complex128],
            one => vec![DType::from_name(one).unwrap()],
        };
        for dtype in dtypes.into_iter().filter(|_| expected != "unspecified") {
            let count = counts.entry(name).or_default();
            count.0 += 1;
            if let Err(found) = reduced(name, about, input, keywords, expected, dtype, &place) {
                count.1 += usize::from(columns.len() == 5);
                failures.push(format!(
                    "{name} of {dtype}, {input} {keywords}: {found}, not {expected} {}",
                    columns[5..].concat()
                ));
            }
        }
    }
    for (name, (all, failed)) in &counts {
        println!("{name:20} {} of {all} rows pass", all - failed);
    }
    failures.iter().for_each(|f| println!("{f}"));
    assert!(counts.len() == 12 && counts.values().all(|c| c.1 == 0), "{failures:#?}");
}

fn promotions() -> impl Iterator<Item = (DType, DType, Option<DType>)> {
    PROMOTION.lines().filter(|l| !l.starts_with('#')).map(|line| {
        let [left, right, result] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let dtype = |name| DType::from_name(name).unwrap();
        (dtype(left), dtype(right), (result != "undefined").then(|| dtype(result)))
    })
}

fn ones(dtype: DType) -> ArrayD<Element> {
    ArrayD::from_elem(IxDyn(&[3]), Element::Int(1).fit(dtype))
}

/// The dtype that we give where it is not NumPy's; `None` is a refusal.
fn instead_of_numpy(name: &str, dtypes: &[DType]) -> Option<Option<DType>> {
    let any_complex = dtypes.iter().any(|d| is_complex(*d));
    let common = dtypes.iter().copied().reduce(DType::promote).unwrap();
    match name {
        // The standard has them for bools only, and no order of complex numbers.
        "logical_and" | "logical_or" | "logical_xor" if common != DType::Bool => Some(None),
        "less" | "less_equal" | "greater" | "greater_equal" | "maximum" | "minimum" | "min"
        | "max" | "argmin" | "argmax"
            if any_complex =>
        {
            Some(None)
        }
        "var" | "std" if any_complex => Some(None),
        // There is no `float16`: floats of integers are all `float64`.
        "atan2" | "copysign" | "hypot" | "logaddexp" | "nextafter"
            if common == DType::Bool || common.is_integer() =>
        {
            Some(Some(DType::Float64))
        }
        _ => None,
    }
}

/// Every function of arrays whose dtypes may differ, for every dtype and pair of dtypes: NumPy's
/// dtype, or an error where NumPy has one.
#[test]
fn dtypes_of_results_are_those_of_numpy() {
    let (mut rows, mut refused) = (0, 0);
    for line in DTYPES.lines().filter(|l| !l.starts_with('#')) {
        let [name, dtypes, result] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let dtypes: Vec<DType> = dtypes.split(' ').map(|d| DType::from_name(d).unwrap()).collect();
        let expected = instead_of_numpy(name, &dtypes)
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
fn promotion_is_the_standards_where_it_has_one() {
    for (left, right, standard) in promotions() {
        assert!(standard.is_none_or(|d| d == left.promote(right)), "{left} with {right}");
    }
}

/// Two bools, of all four kinds of pairs, as NumPy has them.
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

/// A signed integer and a `uint64` have no integer in common, and `float64` holds too few digits to
/// tell them apart.
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

/// NumPy's shape and elements, also where a list and integers are apart from each other.
#[test]
fn indices_are_those_of_numpy() {
    let (place, mut rows) = (Place::quick(), 0);
    let counted =
        freestone::arange(0, 60, 1, DType::Int64, 60).reshape(&[3, 4, 5]).rechunk(&[2, 3, 2]);
    let inputs = Inputs::from([("x".to_owned(), counted)]);
    for line in INDEXING.lines().filter(|l| !l.starts_with('#')) {
        let [index, shape, elements] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let numbers = |text: &str| {
            text.split(' ')
                .filter(|n| !n.is_empty())
                .map(|n| n.parse().unwrap())
                .collect::<Vec<i64>>()
        };
        let array = Expression::parse(&format!("x[{index}]"))
            .unwrap()
            .array(&inputs)
            .unwrap_or_else(|e| panic!("{index}: {e}"));
        let found = freestone::compute::<i64>(&array, &place.spec()).unwrap();
        assert_eq!(
            found.shape().iter().map(|n| *n as i64).collect::<Vec<_>>(),
            numbers(shape),
            "{index}"
        );
        assert_eq!(
            found.iter().copied().take(40).step_by(3).collect::<Vec<_>>(),
            numbers(elements),
            "{index}"
        );
        rows += 1;
    }
    assert!(rows > 450, "rows are missing");
}

/// A zero keeps its sign in a running sum until something else comes, in one part and in several; a
/// sum of nothing but zeros is +0.
#[test]
fn running_sums_of_negative_zeros() {
    let quick = Place::quick();
    for dtype in [DType::Float32, DType::Float64, DType::Complex64, DType::Complex128] {
        let value = |x: f64| {
            if is_complex(dtype) {
                Element::Complex(Complex128::new(x, -0.0))
            } else {
                Element::Real(x)
            }
        };
        for (n, last) in [(2, -0.0), (30, -0.0), (30, 1.0)] {
            let values: Vec<Element> =
                (0..n).map(|i| value(if i + 1 == n { last } else { -0.0 })).collect();
            for parallelism in [1, 8] {
                let spec = Spec { parallelism, ..quick.spec() };
                let x = Value::Array(stored(&list(values.clone()), dtype, &[2]));
                let of = |name: &str, named: Vec<(String, Value)>| {
                    let Ok(Value::Array(array)) =
                        function(name).unwrap().call(vec![x.clone()], named)
                    else {
                        panic!("{name}")
                    };
                    computed(&array, &spec)
                        .unwrap()
                        .iter()
                        .map(|x| format!("{x:?}"))
                        .collect::<Vec<_>>()
                };
                let text = |values: &[Element]| {
                    values.iter().map(|x| format!("{x:?}")).collect::<Vec<_>>()
                };
                assert_eq!(
                    of("cumulative_sum", vec![]),
                    text(&values),
                    "{dtype} {n} {parallelism}"
                );
                let zero = if is_complex(dtype) {
                    Element::Complex(Complex128::new(0.0, 0.0))
                } else {
                    Element::Real(0.0)
                };
                let initial =
                    of("cumulative_sum", vec![("include_initial".into(), Value::Bool(true))]);
                assert_eq!(
                    initial,
                    text(&[vec![zero], values.clone()].concat()),
                    "{dtype} {n} {parallelism}"
                );
                if last == 0.0 {
                    assert_eq!(of("sum", vec![]), text(&[zero]), "{dtype} {n} {parallelism}");
                    assert_eq!(of("mean", vec![]), text(&[zero]), "{dtype} {n} {parallelism}");
                }
            }
        }
        // 1, which comes before all, leaves everything as it is.
        let first = if is_complex(dtype) {
            Element::Complex(Complex128::new(f64::INFINITY, 1.0))
        } else {
            Element::Real(-0.0)
        };
        let Ok(Value::Array(array)) = function("cumulative_prod")
            .unwrap()
            .call(vec![Value::Array(stored(&list(vec![first]), dtype, &[1]))], vec![])
        else {
            panic!("cumulative_prod of {dtype}")
        };
        assert_eq!(
            format!("{:?}", computed(&array, &quick.spec()).unwrap().first()),
            format!("{:?}", Some(first)),
            "{dtype}"
        );
    }
}

/// A number beside an array: the dtype that it takes. `None` is an error.
fn beside(array: DType, number: &Value) -> Option<DType> {
    let whole = array == DType::Bool || array.is_integer();
    match number {
        Value::Bool(_) => Some(array),
        // The standard leaves open what a number of another kind makes of bools and integers, as it
        // does with arrays of them.
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

/// Python's numbers take the dtype of the array beside them, on either side.
#[test]
fn promotion_of_an_array_and_a_number() {
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
            let expected = beside(dtype, number);
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
                other => panic!("{other:?} is no number"),
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

/// Signedness decides which integers take which: said once more here, where no table of the library
/// is asked.
#[test]
fn the_table_of_promotion_is_whole() {
    let all: Vec<_> = promotions().collect();
    for (left, right, result) in &all {
        assert!(
            all.contains(&(*right, *left, *result)),
            "{left} and {right} are not as {right} and {left}"
        );
        if left.is_integer() && right.is_integer() {
            let lost = is_signed(*left) != is_signed(*right)
                && (*left == DType::UInt64 || *right == DType::UInt64);
            assert_eq!(result.is_none(), lost, "{left} and {right}");
        }
    }
}
