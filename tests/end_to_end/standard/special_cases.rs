//! Special cases of elementwise functions. `tests/data/special_cases.txt` explains its columns.

use std::collections::BTreeMap;

use freestone::{Complex128, DType};
use freestone_expr::vocabulary::{Value, function};

use super::{is_expected, is_float, operand};
use crate::elements::{Element, computed, is_complex, list, part, stored};
use crate::support::Place;

const CASES: &str = include_str!("../../data/special_cases.txt");
const CASES_BY_DTYPE: &str = include_str!("../../data/special_cases_by_dtype.txt");

#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    function: &'static str,
    kind: &'static str,
    operands: &'static str,
    expected: &'static str,
    /// Another correct result.
    also: Option<&'static str>,
    doubtful: bool,
    /// Whether the function may be undefined for this kind.
    optional: bool,
}

fn rows() -> Vec<Row> {
    let row = |line: &'static str| {
        let mut columns = line.split('\t');
        let mut next = || columns.next().unwrap_or_else(|| panic!("missing columns: {line}"));
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

/// Returns the dtypes of a kind that hold all values of a row.
fn dtypes(row: &Row) -> Vec<DType> {
    let holds = |d: &DType| {
        let operands = row.operands.split(' ').all(|o| o == "none" || operand(o, *d).is_some());
        // Results of comparisons are bools.
        operands
            && (matches!(row.expected, "true" | "false") || operand(row.expected, *d).is_some())
    };
    match row.kind {
        "real" => vec![DType::Float32, DType::Float64],
        "complex" => vec![DType::Complex64, DType::Complex128],
        "int" => DType::ALL.into_iter().filter(|d| d.is_integer()).filter(holds).collect(),
        other => vec![DType::from_name(other).unwrap_or_else(|| panic!("invalid dtype {other}"))],
    }
}

/// Rows that are computed together: of one function and dtype, with the same missing arguments.
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
fn special_cases_of_the_standard() {
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
        // Chunk lengths that are multiples of neither the vector nor the strip length.
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
                .unwrap_or_else(|| panic!("unknown function {name}"))
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
fn expected_values_are_compared_exactly() {
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
