//! Signs of zeros in sums and products.

use freestone::{Complex128, DType, Spec};
use freestone_expr::vocabulary::{Value, function};

use crate::elements::{Element, computed, is_complex, list, stored};
use crate::support::Place;

/// A cumulative sum of negative zeros is negative, in one part and in several; a total sum is +0.
#[test]
fn sums_of_negative_zeros() {
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
        // The initial 1 changes no value.
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
