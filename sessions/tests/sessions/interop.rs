//! Interoperability with Icechunk's Python package, in both directions. The Python side is
//! `tests/interop/icechunk_*.py`.

use freestone_sessions::{Format, MAIN, Repository, Version};
use serde_json::{Map, Value, json};

use crate::support::{bytes, info, raw, read};

fn folder() -> String {
    std::env::var("FREESTONE_ICECHUNK").expect("FREESTONE_ICECHUNK is set by .ci/run")
}

#[test]
#[ignore = "needs Python's icechunk: run by .ci/run"]
fn icechunk_reads_what_we_write() {
    for (name, format) in [("ours-1", Format::V1), ("ours-2", Format::V2)] {
        let path = format!("{}/{name}", folder());
        let _ = std::fs::remove_dir_all(&path);
        let repository = Repository::create(&path, format).unwrap();
        let session = repository.writable_session(MAIN).unwrap();
        let units = Map::from_iter([("units".to_owned(), json!("m s-1"))]);
        session
            .create_array(
                "u",
                &info(&[3, 4], &[2, 3]),
                &[Some("y".into()), Some("x".into())],
                &units,
            )
            .unwrap();
        session.create_array("x", &info(&[4], &[4]), &[Some("x".into())], &Map::new()).unwrap();
        session
            .create_array("g/long", &raw(&[1000], &[500]), &[Some("t".into())], &Map::new())
            .unwrap();
        let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        session.array("u").unwrap().write_region(&[0..3, 0..4], &bytes(&values)).unwrap();
        session
            .array("x")
            .unwrap()
            .write_region(&[0..4], &bytes(&[10.0, 20.0, 30.0, 40.0]))
            .unwrap();
        let long: Vec<f32> = (0..500).map(|i| i as f32).collect();
        session.array("g/long").unwrap().write_chunk(&[1], &bytes(&long)).unwrap();
        session.commit("made by us").unwrap();
        let session = repository.writable_session(MAIN).unwrap();
        session.array("u").unwrap().write_region(&[0..2, 0..3], &bytes(&[100.0; 6])).unwrap();
        session.commit("changed by us").unwrap();
        repository.create_tag("v1", &Version::Branch(MAIN.into())).unwrap();
    }
}

#[test]
#[ignore = "needs Python's icechunk: run by .ci/run"]
fn icechunk_wrote_what_we_read() {
    let mut n = 0;
    for name in ["theirs-1", "theirs-2"] {
        let path = format!("{}/{name}", folder());
        if !std::path::Path::new(&path).exists() {
            continue;
        }
        n += 1;
        let repository = Repository::open(&path).unwrap();
        let messages: Vec<String> = repository
            .history(&Version::Branch(MAIN.into()))
            .unwrap()
            .into_iter()
            .map(|s| s.message)
            .collect();
        assert_eq!(messages[..2], ["changed", "made"]);
        let at = |version: Version| repository.readonly_session(&version).unwrap();
        let values = |first: f32| {
            let mut all: Vec<f32> = (0..12).map(|i| i as f32).collect();
            all[0] = first;
            all
        };
        assert_eq!(read(at(Version::Branch(MAIN.into())).array("u").unwrap()), values(-5.0));
        assert_eq!(read(at(Version::Tag("v1".into())).array("u").unwrap()), values(0.0));
        let u = at(Version::Branch(MAIN.into())).array("u").unwrap();
        assert_eq!(u.stored().attributes["units"], Value::from("m s-1"));
        assert_eq!(u.stored().dims, [Some("y".to_owned()), Some("x".to_owned())]);
        let long = read(at(Version::Branch(MAIN.into())).array("g/long").unwrap());
        assert_eq!((long[0], long[499], long[500], long[999]), (-1.0, -1.0, 0.0, 499.0));
        // Continue from that snapshot.
        let session = repository.writable_session(MAIN).unwrap();
        session.resize("u", &[5, 4]).unwrap();
        session.commit("by us").unwrap();
        assert_eq!(read(at(Version::Branch(MAIN.into())).array("u").unwrap())[12..], [-1.0; 8]);
    }
    assert!(n > 0, "there is nothing to read");
}
