//! Arrays and groups: commits, snapshots, and changes of arrays.

use freestone_sessions::{Closed, Error, MAIN, Repository, Version};
use serde_json::Map;

use super::{filled, long, main};
use crate::support::{Place, bytes, create, floats, info, raw, read, through_engine};

everywhere!(
    commit_is_atomic,
    old_snapshots_stay_readable,
    missing_chunks_read_as_fill_values,
    arrays_are_replaced_resized_and_removed,
    regions_must_be_aligned,
    empty_commits_are_refused,
);

fn commit_is_atomic(place: &Place) {
    let repository = place.new_repository();
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "g/a", &info(&[3, 5], &[2, 2]));
    create(&session, "g/b", &raw(&[400], &[200]));
    let values: Vec<f32> = (0..15).map(|i| i as f32).collect();
    session.array("g/a").unwrap().write_region(&[0..3, 0..5], &bytes(&values)).unwrap();
    session.array("g/b").unwrap().write_chunk(&[1], &bytes(&long(200, 7.0))).unwrap();
    // Only the session itself sees its writes before the commit.
    assert_eq!(read(session.array("g/a").unwrap()), values);
    assert!(main(&repository).array("g/a").is_err());
    let snapshot = session.commit("both").unwrap();
    let after = main(&Repository::open(repository.url()).unwrap());
    assert_eq!(after.snapshot(), snapshot);
    assert_eq!(read(after.array("g/a").unwrap()), values);
    assert_eq!(
        floats(&after.array("g/a").unwrap().read_region(&[1..3, 1..4]).unwrap()),
        [6.0, 7.0, 8.0, 11.0, 12.0, 13.0]
    );
    let b = read(after.array("g/b").unwrap());
    assert_eq!((b[0], b[199], b[200], b[399]), (-1.0, -1.0, 7.0, 206.0));
    assert_eq!(through_engine(&after.store(), "g/b"), b);
    assert_eq!(after.store().list("g/").unwrap(), ["a", "b", "zarr.json"]);
    // One session, one commit.
    assert!(matches!(
        session.commit("again"),
        Err(Error::Closed { state: Closed::Committed { .. }, .. })
    ));
    let refused =
        session.array("g/a").unwrap().write_chunk(&[0, 0], &bytes(&[0.0; 4])).unwrap_err();
    assert!(refused.to_string().contains("committed as snapshot"), "{refused}");
    assert!(session.create_group("x", &Map::new()).is_err());
}

fn old_snapshots_stay_readable(place: &Place) {
    let repository = place.new_repository();
    let first = filled(&repository);
    let before = repository.readonly_session(&Version::Snapshot(first)).unwrap();
    let session = repository.writable_session(MAIN).unwrap();
    // A result of one commit is the input of the next.
    let doubled: Vec<f32> = read(session.array("u").unwrap()).iter().map(|x| x * 2.0).collect();
    session.array("u").unwrap().write_region(&[0..6], &bytes(&doubled)).unwrap();
    session.commit("doubled").unwrap();
    assert_eq!(read(before.array("u").unwrap()), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(read(main(&repository).array("u").unwrap()), doubled);
}

fn missing_chunks_read_as_fill_values(place: &Place) {
    let repository = place.new_repository();
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "u", &raw(&[2000], &[500]));
    session.array("u").unwrap().write_chunk(&[2], &bytes(&long(500, 1.0))).unwrap();
    // Fill values are not stored, and hide previous chunks.
    session.array("u").unwrap().write_chunk(&[3], &bytes(&long(500, 1.0))).unwrap();
    session.array("u").unwrap().write_chunk(&[3], &bytes(&[-1.0; 500])).unwrap();
    session.commit("sparse").unwrap();
    let after = main(&repository);
    assert_eq!(
        floats(&after.array("u").unwrap().read_region(&[990..1010]).unwrap()),
        [vec![-1.0; 10], long(10, 1.0)].concat()
    );
    let store = after.store();
    let mut buffer = freestone_engine::kernels::Buffer::zeroed(2000);
    for missing in ["u/c/0", "u/c/3", "u/c/99", "v/c/0", "v/zarr.json", "u/.zarray", "u"] {
        assert!(!store.read(missing, None, 2000, &mut buffer).unwrap(), "{missing}");
    }
    assert!(
        store
            .read(
                "u/c/2",
                Some(freestone_engine::storage::ByteRange::At { offset: 4, len: 8 }),
                8,
                &mut buffer
            )
            .unwrap()
    );
    assert_eq!(floats(buffer.bytes()), [2.0, 3.0]);
    assert!(
        store
            .read("u/c/2", Some(freestone_engine::storage::ByteRange::Last(4)), 8, &mut buffer)
            .unwrap()
    );
    assert_eq!(floats(buffer.bytes()), [500.0]);
    assert!(store.read("u/c/2", None, 1999, &mut buffer).is_err(), "reads are limited");
    let mut parts = [0; 8];
    let part = freestone_engine::storage::ObjectPart { offset: 8, place: 4, len: 4 };
    assert_eq!(
        store.read_parts("u/c/2", 2000, &[part], &mut parts).unwrap(),
        freestone_engine::storage::PartsRead::Done
    );
    assert_eq!(floats(&parts), [0.0, 3.0]);
    assert_eq!(
        store.read_parts("u/c/1", 2000, &[part], &mut parts).unwrap(),
        freestone_engine::storage::PartsRead::Missing
    );
    assert!(
        store.write("u/c/2", b"x").is_err() && store.remove("u/c/2").is_err(),
        "the store is read-only"
    );
}

fn arrays_are_replaced_resized_and_removed(place: &Place) {
    let repository = place.new_repository();
    filled(&repository);
    let session = repository.writable_session(MAIN).unwrap();
    assert!(matches!(
        session.create_array("u", &info(&[3], &[3]), &[], &Map::new()),
        Err(Error::NodeExists { .. })
    ));
    session.resize("u", &[9]).unwrap();
    session.array("u").unwrap().write_region(&[6..9], &bytes(&[6.0, 7.0, 8.0])).unwrap();
    session.commit("appended").unwrap();
    assert_eq!(
        read(main(&repository).array("u").unwrap()),
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    );

    // Removed chunks do not reappear.
    for shape in [[2], [6]] {
        let session = repository.writable_session(MAIN).unwrap();
        session.resize("u", &shape).unwrap();
        session.commit("resized").unwrap();
    }
    assert_eq!(read(main(&repository).array("u").unwrap()), [0.0, 1.0, -1.0, -1.0, -1.0, -1.0]);

    let session = repository.writable_session(MAIN).unwrap();
    let document = freestone_engine::storage::metadata::array_document(
        &info(&[4], &[4]),
        &[Some("x".into())],
        &Map::new(),
    );
    session.replace_node("u", document).unwrap();
    assert_eq!(read(session.array("u").unwrap()), [-1.0; 4], "the replaced chunks are not visible");
    session.commit("replaced").unwrap();
    let stored = main(&repository).array("u").unwrap();
    assert_eq!(
        (stored.stored().dims.clone(), read(stored)),
        (vec![Some("x".to_owned())], vec![-1.0; 4])
    );

    let session = repository.writable_session(MAIN).unwrap();
    session.remove("u").unwrap();
    assert!(session.array("u").is_err());
    assert!(matches!(session.resize("u", &[1]), Err(Error::NoNode { .. })));
    session.commit("removed").unwrap();
    assert!(main(&repository).array("u").is_err());
}

fn regions_must_be_aligned(place: &Place) {
    let repository = place.new_repository();
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "u", &info(&[7, 6], &[3, 2]));
    let mut u = session.array("u").unwrap();
    let error = u.write_region(&[0..3, 1..4], &bytes(&[0.0; 9])).unwrap_err();
    assert!(
        matches!(&error, Error::Misaligned { axis: 1, size: 2, around, .. } if *around == (0..4)),
        "{error}"
    );
    assert!(error.to_string().contains("0..4 is the smallest aligned region"), "{error}");
    assert!(matches!(
        u.write_region(&[0..5, 0..2], &bytes(&[0.0; 10])),
        Err(Error::Misaligned { axis: 0, .. })
    ));
    assert!(matches!(u.write_region(&[0..9, 0..2], &[]), Err(Error::Outside { .. })));
    assert!(matches!(u.write_region(&[0..3], &[]), Err(Error::Rank { .. })));
    assert!(matches!(
        u.write_region(&[0..3, 0..2], &[0; 5]),
        Err(Error::Length { expected: 24, .. })
    ));
    u.write_region(&[6..7, 4..6], &bytes(&[8.0, 9.0])).unwrap();
    u.write_region(&[3..3, 0..6], &[]).unwrap();
    assert_eq!(floats(&u.read_region(&[5..7, 3..6]).unwrap()), [-1.0, -1.0, -1.0, -1.0, 8.0, 9.0]);
}

fn empty_commits_are_refused(place: &Place) {
    let repository = place.new_repository();
    assert!(matches!(
        repository.writable_session(MAIN).unwrap().commit("nothing"),
        Err(Error::NothingToCommit)
    ));
    assert!(matches!(repository.writable_session("other"), Err(Error::NoVersion { .. })));
}
