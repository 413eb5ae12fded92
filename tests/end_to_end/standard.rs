//! The Python Array API standard's tables: special cases of elementwise functions, and which dtype two operands have in common.
//!
//! `tests/data/special_cases.txt` says at its head what a row means.

use std::collections::BTreeMap;

use freestone::{Complex128, DType};
use freestone_expr::vocabulary::{Value, function};
use ndarray::{ArrayD, IxDyn};

use crate::elements::{Element, computed, is_complex, is_signed, list, part, stored, ulps};
use crate::support::Place;

const CASES: &str = include_str!("../data/special_cases.txt");
const CASES_BY_DTYPE: &str = include_str!("../data/special_cases_by_dtype.txt");
const REDUCTIONS: &str = include_str!("../data/reductions.txt");
const PROMOTION: &str = include_str!("../data/promotion.txt");

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
        Row { function, kind, operands, expected, also, doubtful: note == "doubtful", optional: note == "optional" }
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
        return value.is_nan() && found.is_nan() && found.is_sign_negative() == value.is_sign_negative();
    }
    let same_zero = found != 0.0 || value != 0.0 || found.is_sign_negative() == value.is_sign_negative();
    same_zero && ulps(found, value, dtype) <= if about { 4 } else { 0 }
}

fn is_expected(found: Element, expected: &str, dtype: DType) -> bool {
    match found {
        Element::Bool(x) => expected == if x { "true" } else { "false" },
        Element::Int(x) => expected.parse() == Ok(x),
        Element::Real(x) => is_float(x, expected, dtype),
        Element::Complex(x) => parts(expected).is_some_and(|(re, im)| is_float(x.re, re, dtype) && is_float(x.im, im, dtype)),
    }
}

/// The dtypes of a kind that hold all of a row.
fn dtypes(row: &Row) -> Vec<DType> {
    let holds = |d: &DType| {
        let operands = row.operands.split(' ').all(|o| o == "none" || operand(o, *d).is_some());
        // Of a comparison the result is no integer.
        operands && (matches!(row.expected, "true" | "false") || operand(row.expected, *d).is_some())
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
                let values = rows.iter().map(|r| operand(r.operands.split(' ').nth(i).unwrap(), *dtype).unwrap()).collect();
                Value::Array(stored(&list(values), *dtype, &[chunk]))
            };
            let arguments = absent.iter().enumerate().map(|(i, absent)| if *absent { Value::None } else { argument(i) }).collect();
            let count = counts.entry(*name).or_default();
            let array = match function(name).unwrap_or_else(|| panic!("there is no {name}")).call(arguments, vec![]) {
                Ok(Value::Array(array)) => array,
                _ if rows.iter().all(|r| r.optional) => {
                    count.refused += rows.len();
                    continue;
                }
                other => panic!("{name} of {dtype}: {other:?}"),
            };
            let result = array.dtype().unwrap();
            assert!(result == DType::Bool || result == *dtype || (is_complex(*dtype) && result == part(*dtype)), "{name} of {dtype} gives {result}");
            for (row, found) in rows.iter().zip(computed(&array, &place.spec()).unwrap()) {
                let passes = is_expected(found, row.expected, result) || row.also.is_some_and(|also| is_expected(found, also, result));
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
    println!("special cases of the standard: {} rows, each for its dtypes in chunks of 61 and of 7", rows.len());
    println!("{:24}passed   failed   doubtful   failed   refused", "");
    for (name, c) in &counts {
        println!("{name:20} {:9} {:8} {:10} {:8} {:9}", c.passed, c.failed, c.doubtful_passed, c.doubtful_failed, c.refused);
    }
    let (passed, failed) = counts.values().fold((0, 0), |(p, f), c| (p + c.passed, f + c.failed));
    println!("{passed} of {} pass: {:.3} %", passed + failed, 100.0 * passed as f64 / (passed + failed) as f64);
    for (row, dtype, found) in &failures {
        let word = if row.doubtful { "doubtful" } else { "FAILED" };
        println!("{word}: {} of {dtype} {}: {found:?}, not {}", row.function, row.operands, row.expected);
    }
    assert_eq!(failed, 0, "rows that are not doubtful fail");
    assert!(counts.len() == 67 && passed > 30_000, "rows are missing");
}

#[test]
fn results_are_told_apart() {
    let float = |found: f64, expected: &str, dtype: DType, same: bool| assert_eq!(is_float(found, expected, dtype), same, "{found:?} {expected}");
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
    assert!(is_expected(Element::Complex(Complex128::new(1.0, -0.0)), "(1.0,-0.0)", DType::Complex128));
    assert!(!is_expected(Element::Complex(Complex128::new(1.0, 0.0)), "(1.0,-0.0)", DType::Complex64));
    assert!(!is_expected(Element::Bool(true), "false", DType::Bool) && !is_expected(Element::Int(1), "2", DType::Int8));
}

/// `[[1.0,nan],[3.0,4.0]]` and the like: the shape and the elements as text.
fn nested(text: &str) -> (Vec<usize>, Vec<&str>) {
    let Some(inside) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) else { return (vec![], vec![text]) };
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
    text.trim_matches(['(', ')']).split(',').filter(|n| !n.is_empty()).map(|n| n.parse().unwrap()).collect()
}

fn keyword(text: &str) -> (String, Value) {
    let (name, value) = text.split_once('=').unwrap();
    let value = match value {
        "None" => Value::None,
        "true" => Value::Bool(true),
        v if v.starts_with('(') => Value::Sequence(tuple(v).into_iter().map(|i| Value::Int(i as i128)).collect()),
        v => v.parse().map(Value::Int).or(v.parse().map(Value::Float)).unwrap_or_else(|_| Value::DType(DType::from_name(v).unwrap())),
    };
    (name.to_owned(), value)
}

/// One row of the reductions for one dtype; what is wrong, if something is.
fn reduced(function_name: &str, about: &str, input: &str, keywords: &str, expected: &str, dtype: DType, place: &Place) -> Result<(), String> {
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
    let array = stored(&ArrayD::from_shape_vec(IxDyn(&shape), values).unwrap(), dtype, &vec![1; shape.len()]);
    let named = keywords.split(' ').filter(|k| !k.is_empty()).map(keyword).collect();
    let result = match function(function_name).unwrap().call(vec![Value::Array(array)], named) {
        Ok(Value::Array(result)) => result,
        other if expected.split(" or ").any(|e| e == "error") => return if other.is_err() { Ok(()) } else { Err("no array".into()) },
        other => return Err(format!("{other:?}")),
    };
    let found = result.dtype().unwrap();
    if about == "dtype" {
        return if expected.split(" or ").any(|e| e == found.name()) { Ok(()) } else { Err(format!("{found}")) };
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
    if expected.split(" or ").filter(|e| *e != "error").any(fits) { Ok(()) } else { Err(format!("{values:?}")) }
}

/// What reductions give for nothing, for NaN and infinities, for every dtype, and in which shape.
#[test]
fn reductions() {
    let (place, mut counts, mut failures) = (Place::quick(), BTreeMap::<&str, (usize, usize)>::new(), vec![]);
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
                failures.push(format!("{name} of {dtype}, {input} {keywords}: {found}, not {expected} {}", columns[5..].concat()));
            }
        }
    }
    for (name, (all, failed)) in &counts {
        println!("{name:20} {} of {all} rows pass", all - failed);
    }
    failures.iter().for_each(|f| println!("{f}"));
    assert!(counts.len() == 12 && counts.values().all(|c| c.1 == 0), "{failures:#?}");
}

/// NumPy's answer for an integer beside a float, which the standard leaves open: the least float that holds half of the integer's bits.
fn mixed(left: DType, right: DType) -> Option<DType> {
    let (integer, float) = if left.is_integer() { (left, right) } else { (right, left) };
    let inexact = matches!(float, DType::Float32 | DType::Float64) || is_complex(float);
    if !integer.is_integer() || !inexact {
        return None;
    }
    Some(match float {
        DType::Float32 if integer.size() > 2 => DType::Float64,
        DType::Complex64 if integer.size() > 2 => DType::Complex128,
        other => other,
    })
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

/// Every function of two operands for every pair of dtypes: the dtype of the result where there is one, else an error.
#[test]
fn promotion_of_two_arrays() {
    let (place, mut pairs, mut refused, mut extended) = (Place::quick(), 0, 0, 0);
    for (left, right, standard) in promotions() {
        let common = standard.or_else(|| mixed(left, right));
        assert_eq!(left.promote(right), common, "{left} with {right}");
        pairs += 1;
        extended += usize::from(standard.is_none() && common.is_some());
        for (name, op, _) in freestone::BINARY {
            let arrays = [left, right].map(|d| Value::Array(stored(&ones(d), d, &[2])));
            let works = |d: &DType| op.domain().has(*d) || (d.is_integer() && op.domain().has(DType::Float64));
            let found = function(name).unwrap().call(arrays.to_vec(), vec![]);
            let Some(common) = common.filter(works) else {
                assert!(found.is_err(), "{name} of {left} and {right} is defined");
                refused += 1;
                continue;
            };
            let Ok(Value::Array(array)) = found else { panic!("{name} of {left} and {right}: {found:?}") };
            let comparison = matches!(*name, "equal" | "not_equal" | "less" | "less_equal" | "greater" | "greater_equal");
            let expected = if comparison {
                DType::Bool
            } else if op.domain().has(common) {
                common
            } else {
                DType::Float64
            };
            assert_eq!(array.dtype().unwrap(), expected, "{name} of {left} and {right}");
            // Ones survive every cast.
            if *name == "multiply" {
                assert_eq!(computed(&array, &place.spec()).unwrap(), ones(expected), "{left} and {right}");
            }
        }
    }
    println!("promotion: {pairs} pairs, {extended} of them beyond the standard; {refused} calls refused");
    assert_eq!((pairs, extended), (169, 64));
}

/// A number beside an array: the dtype that it takes. `None` is an error.
fn beside(array: DType, number: &Value) -> Option<DType> {
    let float = matches!(array, DType::Float32 | DType::Float64);
    match number {
        Value::Bool(_) => (array == DType::Bool).then_some(array),
        Value::Int(i) => (array != DType::Bool && (!array.is_integer() || Element::Int(*i).fit(array) == Element::Int(*i))).then_some(array),
        // The standard leaves a float beside integers open, as it does with arrays of them.
        Value::Float(_) if array.is_integer() => Some(DType::Float64),
        Value::Float(_) => (float || is_complex(array)).then_some(array),
        Value::Complex(..) if array == DType::Float32 => Some(DType::Complex64),
        Value::Complex(..) if array == DType::Float64 => Some(DType::Complex128),
        _ => is_complex(array).then_some(array),
    }
}

/// Python's numbers take the dtype of the array beside them, on either side.
#[test]
fn promotion_of_an_array_and_a_number() {
    let (place, mut tried) = (Place::quick(), 0);
    let (least, most) = (i128::from(i64::MIN), i128::from(u64::MAX));
    let integers = [0, 1, -1, 127, 128, -128, -129, 255, 256, 32_767, 32_768, 65_536, 1 << 31, -(1 << 31) - 1, 1 << 32, least, most, most / 2 + 1];
    let numbers: Vec<Value> = integers.map(Value::Int).into_iter().chain([Value::Bool(true), Value::Float(0.1), Value::Complex(0.5, -2.0)]).collect();
    for dtype in DType::ALL {
        for number in &numbers {
            let expected = beside(dtype, number);
            let exact = |d: DType| match number {
                Value::Bool(b) => Element::Bool(*b),
                Value::Int(i) => Element::Int(*i).fit(d),
                Value::Float(x) => Element::Real(*x).fit(d),
                Value::Complex(re, im) => Element::Complex(Complex128::new(*re, *im)).fit(d),
                other => panic!("{other:?} is no number"),
            };
            for turned in [false, true] {
                let mut arguments = vec![Value::Array(stored(&ones(dtype), dtype, &[2])), number.clone()];
                if turned {
                    arguments.reverse();
                }
                let name = if dtype == DType::Bool { "bitwise_and" } else { "multiply" };
                let found = function(name).unwrap().call(arguments, vec![]);
                match (expected, found) {
                    (Some(expected), Ok(Value::Array(array))) => {
                        assert_eq!(array.dtype().unwrap(), expected, "{dtype} and {number:?}");
                        let values = computed(&array, &place.spec()).unwrap();
                        assert_eq!(values, ArrayD::from_elem(IxDyn(&[3]), exact(expected)), "{dtype} and {number:?}");
                    }
                    (None, Err(_)) => {}
                    (expected, found) => panic!("{dtype} and {number:?}: {found:?}, not {expected:?}"),
                }
                tried += 1;
            }
        }
    }
    assert_eq!(tried, 13 * 21 * 2);
    println!("promotion with numbers: {tried} calls");
}

/// Signedness decides which integers take which: said once more here, where no table of the library is asked.
#[test]
fn the_table_of_promotion_is_whole() {
    let all: Vec<_> = promotions().collect();
    for (left, right, result) in &all {
        assert!(all.contains(&(*right, *left, *result)), "{left} and {right} are not as {right} and {left}");
        if left.is_integer() && right.is_integer() {
            let lost = is_signed(*left) != is_signed(*right) && (*left == DType::UInt64 || *right == DType::UInt64);
            assert_eq!(result.is_none(), lost, "{left} and {right}");
        }
    }
}
