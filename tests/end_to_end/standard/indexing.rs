//! Indexing, against NumPy.

use freestone::DType;
use freestone_expr::{Expression, Inputs};

use crate::support::Place;

const INDEXING: &str = include_str!("../../data/indexing.txt");

/// Shapes and elements, also for lists and integers that are not adjacent.
#[test]
fn indexing_matches_numpy() {
    let (place, mut rows) = (Place::quick(), 0);
    let counted =
        freestone::arange(0, 60, 1, DType::Int64, 60).reshape([3, 4, 5]).rechunk([2, 3, 2]);
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
