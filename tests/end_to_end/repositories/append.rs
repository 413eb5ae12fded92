//! Arrays of a repository that grow.

use freestone::sessions::{Format, MAIN, Repository};
use freestone::{Array, DType, Error, ExitCode, Serial, Session, Target};
use ndarray::Axis;

use super::{repository, values};
use crate::support::Place;

#[test]
fn an_array_grows_by_whole_chunks() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let part = |n: u64, value: f64| freestone::full([n, 6], value, DType::Float64, [2, 3]);
    let mut session = Session::begin(&repository, MAIN).unwrap();
    session.store(&part(4, 1.0), "t").unwrap();
    session.commit("first", &spec).unwrap();
    for (value, n) in [(2.0, 2), (3.0, 1)] {
        let mut session = Session::begin(&repository, MAIN).unwrap();
        session.append(&part(n, value), "t", 0).unwrap();
        session.commit("more", &spec).unwrap();
    }
    let rows: Vec<f64> =
        values(&repository, MAIN, "t", &spec).mean_axis(Axis(1)).unwrap().into_iter().collect();
    assert_eq!(rows, [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 3.0]);
    let mut session = Session::begin(&repository, MAIN).unwrap();
    let error = session
        .append(&freestone::zeros([2, 5], DType::Float64, [2, 5]), "t", 0)
        .unwrap_err()
        .to_string();
    assert!(error.contains("all other axes must be of the same length"), "{error}");
    // The error about a region that cuts a chunk names the boundary.
    let target = session.target(&part(3, 5.0), "t").region(&[1..4, 0..6]);
    session.add(target);
    let error = session.commit("cut", &spec).unwrap_err().to_string();
    assert!(error.contains("0..4"), "{error}");
    let mut session = Session::begin(&repository, MAIN).unwrap();
    let target = session.target(&part(2, 5.0), "t").region(&[2..4, 0..6]);
    session.add(target);
    session.commit("a region", &spec).unwrap();
    assert_eq!(
        values(&repository, MAIN, "t", &spec).sum(),
        6.0 * (1.0 + 1.0 + 5.0 + 5.0 + 2.0 + 2.0 + 3.0)
    );
    // The array now ends inside a chunk, which is rewritten with its old values.
    let mut session = Session::begin(&repository, MAIN).unwrap();
    session.append(&part(2, 4.0), "t", 0).unwrap();
    let error = session.append(&part(1, 4.0), "t", 0).unwrap_err().to_string();
    assert!(
        error.contains(
            "ends at 9 along axis 0, inside of a chunk of 2, and was changed in this session"
        ),
        "{error}"
    );
    let ints = freestone::zeros([1, 6], DType::Int64, [1, 6]);
    let error = session.append(&ints, "t", 0).unwrap_err().to_string();
    assert!(error.contains("cast it by `astype`"), "{error}");
    session.commit("inside", &spec).unwrap();
    let rows: Vec<f64> =
        values(&repository, MAIN, "t", &spec).mean_axis(Axis(1)).unwrap().into_iter().collect();
    assert_eq!(rows, [1.0, 1.0, 5.0, 5.0, 2.0, 2.0, 3.0, 4.0, 4.0]);
}

/// Returns a wind array and a time array of `n` days from `first` on, with named axes.
pub(super) fn days(first: u64, n: u64) -> (Array, Array) {
    let time = freestone::arange(first as f64, (first + n) as f64, 1.0, DType::Float64, 4)
        .with_dims(["time"]);
    let ones = freestone::full([n, 6], 1.0, DType::Float64, [2, 3]);
    ((&time.expand_dims(1) * &ones).with_dims(["time", "x"]), time)
}

/// Creates a group `wind` with four days of `speed`, `direction` and `time`.
pub(super) fn four_days(place: &Place, format: Format) -> Repository {
    let repository = Repository::create(&place.at("wind"), format).unwrap();
    let mut session = Session::begin(&repository, MAIN).unwrap();
    let (wind, time) = days(0, 4);
    let time = time.with_attribute("units", "days since 2000-01-01");
    session
        .store(&wind, "wind/speed")
        .unwrap()
        .store(&wind, "wind/direction")
        .unwrap()
        .store(&time, "wind/time")
        .unwrap();
    session.commit("four days", &place.spec()).unwrap();
    repository
}

fn lengths(repository: &Repository) -> [u64; 3] {
    ["speed", "direction", "time"].map(|name| {
        freestone::open_version(repository, MAIN, &format!("wind/{name}")).unwrap().shape().unwrap()
            [0]
    })
}

/// Readers refuse a group whose arrays differ in length along an axis. The commit refuses it, too,
/// and names the missing arrays.
#[test]
fn arrays_of_a_group_grow_together() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = four_days(&place, Format::default());
    let (wind, time) = days(4, 2);
    let all = [("wind/speed", &wind), ("wind/direction", &wind), ("wind/time", &time)];
    for chosen in 1..8 {
        let mut session = Session::begin(&repository, MAIN).unwrap();
        let grown: Vec<_> = all
            .iter()
            .enumerate()
            .filter(|(i, _)| chosen & (1 << i) != 0)
            .map(|(_, a)| *a)
            .collect();
        for (path, array) in &grown {
            session.append(array, path, 0).unwrap();
        }
        if grown.len() == 3 {
            session.commit("six days", &spec).unwrap();
            continue;
        }
        let error = session.commit("uneven", &spec).unwrap_err();
        let Error::Uneven { left, before: 4, after: 6, .. } = &error else { panic!("{error}") };
        let missing: Vec<&str> = all
            .iter()
            .map(|(path, _)| *path)
            .filter(|path| !grown.iter().any(|(g, _)| g == path))
            .collect();
        assert!(
            left.len() == missing.len()
                && missing.iter().all(|path| left.iter().any(|l| l == path)),
            "{left:?}, not {missing:?}"
        );
        assert!(
            error.to_string().contains("session.append(&values, \"wind/")
                && error.exit_code() == ExitCode::Input,
            "{error}"
        );
        assert_eq!(lengths(&repository), [4, 4, 4], "nothing is visible");
    }
    assert_eq!(lengths(&repository), [6, 6, 6]);
    let expect: Vec<f64> = (0..6).map(f64::from).collect();
    assert_eq!(
        values(&repository, MAIN, "wind/time", &spec).into_iter().collect::<Vec<_>>(),
        expect
    );
}

/// Appending a stored array appends its coordinates, also if these end inside a chunk.
#[test]
fn coordinates_are_appended_automatically() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = four_days(&place, Format::default());
    let source = |name: &str, units: &str, first: u64, n: u64| {
        let (wind, time) = days(first, n);
        let time = time.with_attribute("units", units);
        let targets = [
            Target::in_group(&wind, place.at(name), "w"),
            Target::in_group(&time, place.at(name), "time"),
        ];
        freestone::run(&freestone::plan(&targets, &spec).unwrap(), &spec, &Serial).unwrap();
        freestone::open(place.at(&format!("{name}/w"))).unwrap()
    };
    for (i, (first, n)) in [(4, 3), (7, 1), (8, 2)].into_iter().enumerate() {
        let wind = source(&format!("part-{i}"), "days since 2000-01-01", first, n);
        let mut session = Session::begin(&repository, MAIN).unwrap();
        session
            .append(&(&wind * 1.0), "wind/speed", 0)
            .unwrap()
            .append(&wind, "wind/direction", 0)
            .unwrap();
        session.commit("more days", &spec).unwrap();
    }
    assert_eq!(lengths(&repository), [10, 10, 10]);
    let expect: Vec<f64> = (0..10).map(f64::from).collect();
    for name in ["wind/time", "wind/speed"] {
        let found = values(&repository, MAIN, name, &spec);
        let found: Vec<f64> = if found.ndim() == 1 {
            found.into_iter().collect()
        } else {
            found.index_axis(Axis(1), 2).iter().copied().collect()
        };
        assert_eq!(found, expect, "{name}");
    }
    let units = freestone::open_version(&repository, MAIN, "wind/time")
        .unwrap()
        .attributes()
        .unwrap()["units"]
        .clone();
    assert_eq!(units, "days since 2000-01-01");

    // Other units, and arrays of different days.
    let refused = |arrays: [&Array; 2]| {
        let mut session = Session::begin(&repository, MAIN).unwrap();
        session
            .append(arrays[0], "wind/speed", 0)
            .unwrap()
            .append(arrays[1], "wind/direction", 0)
            .unwrap();
        let error = session.commit("no", &spec).unwrap_err();
        assert!(
            error.to_string().contains("has other coordinates")
                && error.exit_code() == ExitCode::Conflict,
            "{error}"
        );
        assert_eq!(lengths(&repository), [10, 10, 10]);
    };
    let hours = source("hours", "hours since 2000-01-01", 10, 2);
    refused([&hours, &hours]);
    let (ours, others) = (
        source("ours", "days since 2000-01-01", 10, 2),
        source("others", "days since 2000-01-01", 12, 2),
    );
    refused([&ours, &others]);
}
