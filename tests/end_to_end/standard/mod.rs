//! The tables of the Python Array API standard and of NumPy, against the vocabulary of expressions.

mod dtypes;
mod indexing;
mod reductions;
mod special_cases;
mod zeros;

use freestone::{Complex128, DType};
use ndarray::{ArrayD, IxDyn};

use crate::elements::{Element, ulps};

fn number(text: &str) -> f64 {
    match text {
        "nan" | "+nan" => f64::NAN.copysign(1.0),
        "-nan" => f64::NAN.copysign(-1.0),
        _ => text.parse().unwrap_or_else(|_| panic!("invalid number {text}")),
    }
}

fn parts(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')
}

/// Parses an operand of a dtype. Returns `None` if the dtype cannot hold the value.
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
    let value: i128 = text.parse().unwrap_or_else(|_| panic!("invalid integer {text}"));
    Some(Element::Int(value)).filter(|x| x.fit(dtype) == *x)
}

/// Returns true if a float matches a column: `any`, a number, `~` for nearly, `±` for either sign.
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

/// Returns true if a value matches a column.
fn is_expected(found: Element, expected: &str, dtype: DType) -> bool {
    match found {
        Element::Bool(x) => expected == if x { "true" } else { "false" },
        Element::Int(x) => expected.parse() == Ok(x),
        Element::Real(x) => is_float(x, expected, dtype),
        Element::Complex(x) => parts(expected)
            .is_some_and(|(re, im)| is_float(x.re, re, dtype) && is_float(x.im, im, dtype)),
    }
}

fn ones(dtype: DType) -> ArrayD<Element> {
    ArrayD::from_elem(IxDyn(&[3]), Element::Int(1).fit(dtype))
}
