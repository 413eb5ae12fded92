//! Reductions of empty arrays, NaN and infinities, for every dtype.

use std::collections::BTreeMap;

use freestone::DType;
use freestone_expr::vocabulary::{Value, function};
use ndarray::{ArrayD, IxDyn};

use super::{is_expected, operand};
use crate::elements::{Element, computed, stored};
use crate::support::Place;

const REDUCTIONS: &str = include_str!("../../data/reductions.txt");

/// Parses an array such as `[[1.0,nan],[3.0,4.0]]`. Returns the shape and the elements as text.
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

/// Parses a tuple such as `(2,3)`, `(2,)` or `()`.
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

/// Checks one row for one dtype. The error is the result that does not match.
fn check_row(
    [function_name, about, input, keywords, expected]: [&str; 5],
    dtype: DType,
    place: &Place,
) -> Result<(), String> {
    let elements = input.split(' ').skip(1).find(|t| t.starts_with('['));
    let (shape, values) = match (elements, input.split_once("shape=")) {
        (Some(text), _) => nested(text),
        (None, Some((_, shape))) => (tuple(shape), vec![]),
        // Rows about dtypes have no values.
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

#[test]
fn reductions_of_special_values() {
    let (place, mut counts, mut failures) =
        (Place::quick(), BTreeMap::<&str, (usize, usize)>::new(), vec![]);
    for line in REDUCTIONS.lines().filter(|l| !l.starts_with('#')) {
        let columns: Vec<&str> = line.split('\t').collect();
        let row: [&str; 5] = *columns.first_chunk().unwrap();
        let [name, _, input, keywords, expected] = row;
        let dtypes = match input.split(' ').next().unwrap() {
            "real" => vec![DType::Float32, DType::Float64],
            "complex" => vec![DType::Complex64, DType::Complex128],
            one => vec![DType::from_name(one).unwrap()],
        };
        for dtype in dtypes.into_iter().filter(|_| expected != "unspecified") {
            let count = counts.entry(name).or_default();
            count.0 += 1;
            if let Err(found) = check_row(row, dtype, &place) {
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
