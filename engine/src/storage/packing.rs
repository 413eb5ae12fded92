//! Packed values: CF conventions attributes that define a mapping from stored numbers to values.
//!
//! Reads do not apply `scale_factor`, `add_offset`, `_Unsigned`, `_FillValue` and `missing_value`.
//! A [`Packing`] states whether they would change an array's values, so that no computation uses
//! packed numbers unless requested.
//!
//! Zarr format 3 stores a float's `_FillValue` in base64, as Xarray does. In format 2, Xarray masks
//! by the fill value of `.zarray` instead. `normalized` converts both to the form of format 3, so
//! that a copy has the missing values of its source.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use freestone_kernels::dtype::{Complex128, Kind};
use freestone_kernels::{DType, Scalar};
use serde_json::{Map, Value, json};

/// The attributes that define the packing of values or mark missing values.
pub const PACKING_ATTRIBUTES: [&str; 5] =
    ["_FillValue", "missing_value", "scale_factor", "add_offset", "_Unsigned"];

/// The packing of an array's values, restricted to attributes that change them.
#[derive(Clone, Debug, Default)]
pub struct Packing {
    /// True if the missing values have single precision.
    single: bool,
    /// The stored values that mark missing data, sorted and without duplicates.
    missing: Vec<Number>,
    scale: Option<Number>,
    offset: Option<Number>,
    /// The dtype to which integers of the opposite signedness are reinterpreted.
    reinterpret: Option<DType>,
    /// The display text of the attributes that define this packing.
    attributes: Vec<String>,
}

/// A number in an attribute.
#[derive(Clone, Debug, PartialEq, PartialOrd)]
enum Number {
    Int(i128),
    Float(f64),
    /// A value that is not recognized, as text.
    Other(String),
}

impl Packing {
    /// Returns the packing that attributes define for a dtype, or `None` if they change no value.
    ///
    /// Booleans are never packed. A missing value of NaN, a scale of 1 and an offset of 0 change no
    /// value.
    pub fn of(attributes: &Map<String, Value>, dtype: DType) -> Option<Packing> {
        if dtype == DType::Bool {
            return None;
        }
        let mut packing = Packing { single: dtype == DType::Float32, ..Packing::default() };
        for name in PACKING_ATTRIBUTES {
            let Some(value) = attributes.get(name) else { continue };
            let changes = match name {
                "scale_factor" => packing.scale.insert_unless(factor(value), 1.0),
                "add_offset" => packing.offset.insert_unless(factor(value), 0.0),
                "_Unsigned" => {
                    packing.reinterpret = reinterpreted(value, dtype);
                    packing.reinterpret.is_some()
                }
                _ => {
                    let found: Vec<Number> =
                        numbers(value, dtype).into_iter().filter(|n| !n.is_nan()).collect();
                    let changes = !found.is_empty();
                    packing.missing.extend(found);
                    changes
                }
            };
            if changes {
                packing.attributes.push(format!("{name}={}", shown(name, value, dtype)));
            }
        }
        packing.missing.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        packing.missing.dedup();
        (!packing.attributes.is_empty()).then_some(packing)
    }

    /// Returns the attributes as text, such as `scale_factor=0.01, _FillValue=-32767`.
    pub fn attributes(&self) -> String {
        self.attributes.join(", ")
    }

    /// Returns true if values packed by `other` can be stored unchanged in an array packed by
    /// `here`. This requires equal scale, offset and signedness, and that every missing value of
    /// `other` is also one of `here`.
    pub fn takes(here: Option<&Packing>, other: Option<&Packing>) -> bool {
        let none = Packing::default();
        let (here, other) = (here.unwrap_or(&none), other.unwrap_or(&none));
        here.same_scale(other) && other.missing.iter().all(|m| here.missing.contains(m))
    }

    /// Returns true if two packings unpack all values identically.
    pub fn same(a: Option<&Packing>, b: Option<&Packing>) -> bool {
        Packing::takes(a, b) && Packing::takes(b, a)
    }

    fn same_scale(&self, other: &Packing) -> bool {
        self.scale == other.scale
            && self.offset == other.offset
            && self.reinterpret == other.reinterpret
    }

    /// Returns the expression that unpacks the stored numbers called `name`, or `None` if an
    /// attribute is not recognized.
    pub fn expression(&self, name: &str) -> Option<String> {
        let conditions = self
            .missing
            .iter()
            .map(|m| Some(format!("{name} == {}", m.literal(self.single)?)))
            .collect::<Option<Vec<_>>>()?;
        let mut value = self
            .reinterpret
            .map_or_else(|| name.to_owned(), |dtype| format!("astype({name}, {dtype})"));
        if let Some(scale) = &self.scale {
            value = format!("{value} * {}", scale.literal(false)?);
        }
        if let Some(offset) = &self.offset {
            value = match offset.literal(false)?.strip_prefix('-') {
                Some(positive) => format!("{value} - {positive}"),
                None => format!("{value} + {}", offset.literal(false)?),
            };
        }
        Some(match conditions.as_slice() {
            [] => value,
            [one] => format!("where({one}, nan, {value})"),
            all => format!(
                "where({}, nan, {value})",
                all.iter().map(|c| format!("({c})")).collect::<Vec<_>>().join(" | ")
            ),
        })
    }
}

/// Conditional insertion of a number that differs from the neutral one. Returns true if the number
/// was inserted.
trait InsertUnless {
    fn insert_unless(&mut self, number: Number, neutral: f64) -> bool;
}

impl InsertUnless for Option<Number> {
    fn insert_unless(&mut self, number: Number, neutral: f64) -> bool {
        *self = (number != Number::Float(neutral)).then_some(number);
        self.is_some()
    }
}

impl Number {
    fn is_nan(&self) -> bool {
        matches!(self, Number::Float(x) if x.is_nan())
    }

    /// Returns the number as an expression literal: the shortest text with the same bits, in single
    /// precision if `single` is true.
    fn literal(&self, single: bool) -> Option<String> {
        match self {
            Number::Int(i) => Some(i.to_string()),
            Number::Float(x) if x.is_infinite() => {
                Some(if *x > 0.0 { "inf".into() } else { "-inf".into() })
            }
            Number::Float(x) if single => Some(format!("{:?}", *x as f32)),
            Number::Float(x) => Some(format!("{x:?}")),
            Number::Other(_) => None,
        }
    }
}

/// Parses a scale or an offset: a number, or a list of one number.
fn factor(value: &Value) -> Number {
    match value {
        Value::Array(list) if list.len() == 1 => factor(&list[0]),
        Value::Number(n) => n.as_f64().map_or_else(|| Number::Other(n.to_string()), Number::Float),
        Value::String(text) => {
            text.trim().parse().map_or_else(|_| Number::Other(text.clone()), Number::Float)
        }
        other => Number::Other(other.to_string()),
    }
}

/// Parses the missing values of an attribute: one value or a list.
fn numbers(value: &Value, dtype: DType) -> Vec<Number> {
    match value {
        Value::Array(list) if dtype.kind() == Kind::Complex => vec![complex(list, value)],
        Value::Array(list) => list.iter().map(|v| number(v, dtype)).collect(),
        other => vec![number(other, dtype)],
    }
}

/// Parses a missing value for a dtype.
fn number(value: &Value, dtype: DType) -> Number {
    let float =
        |x: f64| Number::Float(if dtype == DType::Float32 { f64::from(x as f32) } else { x });
    let exact = |n: &serde_json::Number| n.as_i64().map(i128::from).or(n.as_u64().map(i128::from));
    match value {
        Value::Number(n) => match (exact(n), n.as_f64()) {
            (Some(i), _) if dtype.is_integer() => Number::Int(i),
            // An integer may be written with a decimal point.
            (_, Some(x)) if dtype.is_integer() && x == x.trunc() && x.abs() < 1e18 => {
                Number::Int(x as i128)
            }
            (_, Some(x)) => float(x),
            (_, None) => Number::Other(n.to_string()),
        },
        Value::String(text) => {
            match (text.parse::<i128>(), of_base64(text).or_else(|| text.parse().ok())) {
                (Ok(i), _) if dtype.is_integer() => Number::Int(i),
                (_, Some(x)) if !dtype.is_integer() || x.is_nan() => float(x),
                _ => Number::Other(text.clone()),
            }
        }
        other => Number::Other(other.to_string()),
    }
}

/// Parses a complex missing value: a pair of floats. Only a pair of NaNs is recognized.
fn complex(list: &[Value], whole: &Value) -> Number {
    let parts: Vec<Number> = list.iter().map(|part| number(part, DType::Float64)).collect();
    if parts.len() == 2 && parts.iter().all(Number::is_nan) {
        Number::Float(f64::NAN)
    } else {
        Number::Other(whole.to_string())
    }
}

/// Returns the dtype to which `_Unsigned` reinterprets another.
fn reinterpreted(value: &Value, dtype: DType) -> Option<DType> {
    let said = |word: &str| {
        value.as_str().map_or_else(|| value.to_string(), str::to_owned).eq_ignore_ascii_case(word)
    };
    const PAIRS: [(DType, DType); 4] = [
        (DType::Int8, DType::UInt8),
        (DType::Int16, DType::UInt16),
        (DType::Int32, DType::UInt32),
        (DType::Int64, DType::UInt64),
    ];
    PAIRS.iter().find_map(|(signed, unsigned)| match dtype {
        d if d == *signed && said("true") => Some(*unsigned),
        d if d == *unsigned && said("false") => Some(*signed),
        _ => None,
    })
}

/// Returns an attribute's value for display, with a base64 float decoded.
fn shown(name: &str, value: &Value, dtype: DType) -> String {
    match (name, value) {
        ("_FillValue", Value::String(text)) => match number(value, dtype) {
            Number::Float(x) => format!("{x:?}"),
            _ => text.clone(),
        },
        (_, Value::String(text)) => text.clone(),
        (_, other) => other.to_string(),
    }
}

/// Returns a float in the encoding of `_FillValue` in format 3: 8 bytes, little-endian, in base64.
fn to_base64(x: f64) -> Value {
    json!(BASE64.encode(x.to_le_bytes()))
}

fn of_base64(text: &str) -> Option<f64> {
    let bytes = BASE64.decode(text).ok()?;
    Some(f64::from_le_bytes(bytes.try_into().ok()?))
}

/// Returns a fill value in the encoding of `_FillValue` in format 3.
fn encoded(fill: &Scalar) -> Option<Value> {
    match fill.dtype().kind() {
        Kind::Complex => {
            let c = fill.cast(DType::Complex128).get::<Complex128>()?;
            Some(json!([to_base64(c.re), to_base64(c.im)]))
        }
        Kind::Float => Some(to_base64(fill.cast(DType::Float64).get::<f64>()?)),
        _ => serde_json::to_value(fill).ok().map(|v| v["value"].clone()),
    }
}

/// Converts the attributes of a format 2 array to those of a format 3 array.
///
/// Xarray masks by the fill value of `.zarray`, if there is one, else by `_FillValue`, which may be
/// a bare number. Xarray reads only arrays with named axes (`_ARRAY_DIMENSIONS`). In other arrays,
/// a fill value is only the value of chunks that are not stored. `fill` is `None` if `.zarray` has
/// `null`.
pub(crate) fn normalized(
    mut attributes: Map<String, Value>,
    dtype: DType,
    fill: Option<&Scalar>,
) -> Map<String, Value> {
    let is_named = attributes.remove("_ARRAY_DIMENSIONS").is_some();
    if dtype == DType::Bool {
        return attributes;
    }
    let of_document = fill.filter(|_| is_named).and_then(encoded);
    let of_attribute = || match number(attributes.get("_FillValue")?, dtype) {
        Number::Float(x) if dtype.kind() == Kind::Float => Some(to_base64(x)),
        _ => None,
    };
    if let Some(value) = of_document.or_else(of_attribute) {
        // NaN is missing in any case, so no attribute is needed.
        if numbers(&value, dtype).iter().any(|n| !n.is_nan())
            || attributes.contains_key("_FillValue")
        {
            attributes.insert("_FillValue".into(), value);
        }
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packing(attributes: Value, dtype: DType) -> Option<Packing> {
        Packing::of(attributes.as_object().unwrap(), dtype)
    }

    #[track_caller]
    fn check(attributes: Value, dtype: DType, expect: Option<&str>) {
        let found =
            packing(attributes, dtype).map(|p| p.expression("t").unwrap_or_else(|| "?".into()));
        assert_eq!(found.as_deref(), expect);
    }

    #[test]
    fn packed_values_have_an_expression() {
        use DType::*;
        check(
            json!({"scale_factor": 0.01, "add_offset": 273.15, "_FillValue": -32767}),
            Int16,
            Some("where(t == -32767, nan, t * 0.01 + 273.15)"),
        );
        check(
            json!({"scale_factor": [0.5], "add_offset": -10, "units": "K"}),
            Int8,
            Some("t * 0.5 - 10.0"),
        );
        check(
            json!({"_FillValue": 255, "missing_value": [255, 254]}),
            UInt8,
            Some("where((t == 254) | (t == 255), nan, t)"),
        );
        check(json!({"_FillValue": "AAAAAICHw8A="}), Float32, Some("where(t == -9999.0, nan, t)"));
        check(json!({"missing_value": 1e20}), Float64, Some("where(t == 1e20, nan, t)"));
        check(json!({"missing_value": 1e20}), Float32, Some("where(t == 1e20, nan, t)"));
        check(json!({"missing_value": -9999.0}), Int16, Some("where(t == -9999, nan, t)"));
        check(
            json!({"_FillValue": i64::MIN}),
            Int64,
            Some("where(t == -9223372036854775808, nan, t)"),
        );
        check(
            json!({"_FillValue": u64::MAX}),
            UInt64,
            Some("where(t == 18446744073709551615, nan, t)"),
        );
        check(
            json!({"_Unsigned": "true", "_FillValue": -1, "scale_factor": 2}),
            Int8,
            Some("where(t == -1, nan, astype(t, uint8) * 2.0)"),
        );
        check(json!({"_Unsigned": false}), UInt16, Some("astype(t, int16)"));
        check(json!({"missing_value": "Infinity"}), Float32, Some("where(t == inf, nan, t)"));
        // Unrecognized attributes are not ignored.
        check(json!({"_FillValue": "n/a"}), Int16, Some("?"));
        check(json!({"scale_factor": {"a": 1}}), Int16, Some("?"));
        check(json!({"_FillValue": ["AAAAAAAA8D8=", "AAAAAAAAAAA="]}), Complex64, Some("?"));
    }

    #[test]
    fn what_changes_no_value_is_no_packing() {
        use DType::*;
        check(json!({"units": "K", "valid_min": 0}), Int16, None);
        check(json!({"_FillValue": "AAAAAAAA+H8=", "missing_value": "NaN"}), Float32, None);
        check(json!({"_FillValue": ["AAAAAAAA+H8=", "AAAAAAAA+H8="]}), Complex128, None);
        check(json!({"scale_factor": 1, "add_offset": 0.0}), Int16, None);
        check(json!({"_Unsigned": "true"}), UInt8, None);
        check(json!({"_Unsigned": "false"}), Int8, None);
        check(json!({"_FillValue": false}), Bool, None);
    }

    #[test]
    fn values_go_where_they_are_unpacked_alike() {
        let takes = |here: Value, other: Value| {
            Packing::takes(
                packing(here, DType::Int16).as_ref(),
                packing(other, DType::Int16).as_ref(),
            )
        };
        let scaled = || json!({"scale_factor": 0.1, "_FillValue": -1});
        assert!(takes(scaled(), scaled()) && takes(json!({}), json!({})));
        assert!(
            takes(scaled(), json!({"scale_factor": 0.1}))
                && !takes(json!({"scale_factor": 0.1}), scaled())
        );
        assert!(
            !takes(scaled(), json!({}))
                && !takes(json!({}), scaled())
                && !takes(scaled(), json!({"scale_factor": 0.2}))
        );
        // Values may be stored where some would be read as missing, because the attributes inform
        // readers.
        assert!(takes(json!({"_FillValue": -1}), json!({})));
        assert!(!takes(json!({"_Unsigned": "true"}), json!({})));
        assert!(takes(json!({"_FillValue": 5}), json!({"missing_value": 5})));
    }

    #[test]
    fn format_2_keeps_missing_values_in_its_fill_value() {
        let of = |attributes: Value, fill: Option<Scalar>, dtype| {
            Value::Object(normalized(attributes.as_object().unwrap().clone(), dtype, fill.as_ref()))
        };
        let named = || json!({"_ARRAY_DIMENSIONS": ["x"], "units": "K"});
        let int = Scalar::from_f64(DType::Int16, -32767.0);
        assert_eq!(
            of(named(), Some(int), DType::Int16),
            json!({"units": "K", "_FillValue": -32767})
        );
        assert_eq!(of(named(), None, DType::Int16), json!({"units": "K"}));
        assert_eq!(of(json!({"units": "K"}), Some(int), DType::Int16), json!({"units": "K"}));
        let float = |x: f64| Scalar::from_f64(DType::Float32, x);
        assert_eq!(
            of(named(), Some(float(-9999.0)), DType::Float32),
            json!({"units": "K", "_FillValue": "AAAAAICHw8A="})
        );
        assert_eq!(of(named(), Some(float(f64::NAN)), DType::Float32), json!({"units": "K"}));
        assert_eq!(
            of(json!({"_FillValue": -9999.0}), None, DType::Float32),
            json!({"_FillValue": "AAAAAICHw8A="})
        );
        assert_eq!(
            of(json!({"_FillValue": "NaN"}), None, DType::Float64),
            json!({"_FillValue": "AAAAAAAA+H8="})
        );
        assert_eq!(of(json!({"_FillValue": 7}), None, DType::Int16), json!({"_FillValue": 7}));
        assert_eq!(
            of(named(), Some(Scalar::zero(DType::Bool)), DType::Bool),
            json!({"units": "K"})
        );
    }
}
