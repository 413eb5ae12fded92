//! Conflicts and rebases.

use freestone_sessions::{Clash, CommitOptions, Error, MAIN, Rebase};
use serde_json::{Map, json};

use super::{filled, main};
use crate::support::{Place, bytes, create, info, read};

everywhere!(common_changes_conflict, disjoint_sessions_rebase, changes_of_nodes_conflict,);

fn common_changes_conflict(place: &Place) {
    let repository = place.new_repository();
    filled(&repository);
    let sessions = [1.0, 2.0].map(|value| {
        let session = repository.writable_session(MAIN).unwrap();
        session.array("u").unwrap().write_region(&[2..6], &bytes(&[value; 4])).unwrap();
        session
    });
    let tip = sessions[0].commit("first").unwrap();
    for rebase in [Rebase::Never, Rebase::Disjoint { attempts: 5 }] {
        let error = sessions[1]
            .commit_with("second", &CommitOptions { rebase, ..CommitOptions::default() })
            .unwrap_err();
        let Error::Conflict(conflict) = &error else { panic!("{error}") };
        assert_eq!(
            conflict.clashes,
            [Clash::Chunks { array: "u".into(), chunks: vec![vec![1], vec![2]] }]
        );
        assert_eq!((conflict.tip.as_str(), conflict.branch.as_str()), (tip.as_str(), MAIN));
        assert!(error.to_string().contains("2 chunks of `u` ([1], [2])"), "{error}");
    }
    assert_eq!(read(main(&repository).array("u").unwrap()), [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
}

fn disjoint_sessions_rebase(place: &Place) {
    let repository = place.new_repository();
    filled(&repository);
    let sessions = [0, 1, 2].map(|chunk| {
        let session = repository.writable_session(MAIN).unwrap();
        session
            .array("u")
            .unwrap()
            .write_chunk(&[chunk], &bytes(&[9.0 + chunk as f32; 2]))
            .unwrap();
        session
    });
    sessions[0].commit("first").unwrap();
    let error = sessions[1].commit("second").unwrap_err();
    assert!(matches!(&error, Error::Conflict(c) if c.clashes.is_empty()), "{error}");
    assert!(error.to_string().contains("commit with a rebase"), "{error}");
    // Changed attributes do not conflict with chunks, a changed shape does.
    let attributes = repository.writable_session(MAIN).unwrap();
    attributes.set_attributes("u", &Map::from_iter([("a".to_owned(), json!(1))])).unwrap();
    attributes.commit("attributes").unwrap();
    let rebased =
        CommitOptions { rebase: Rebase::Disjoint { attempts: 5 }, ..CommitOptions::default() };
    sessions[1].commit_with("second", &rebased).unwrap();
    assert_eq!(read(main(&repository).array("u").unwrap()), [9.0, 9.0, 10.0, 10.0, 4.0, 5.0]);
    let resized = repository.writable_session(MAIN).unwrap();
    resized.resize("u", &[4]).unwrap();
    resized.commit("resized").unwrap();
    let error = sessions[2].commit_with("third", &rebased).unwrap_err();
    let cut = [
        Clash::Chunks { array: "u".into(), chunks: vec![vec![2]] },
        Clash::Node { path: "u".into() },
    ];
    assert!(matches!(&error, Error::Conflict(c) if c.clashes == cut), "{error}");
}

fn changes_of_nodes_conflict(place: &Place) {
    let repository = place.new_repository();
    filled(&repository);
    let begin = || repository.writable_session(MAIN).unwrap();
    let rebased =
        CommitOptions { rebase: Rebase::Disjoint { attempts: 5 }, ..CommitOptions::default() };
    let node = |path: &str| vec![Clash::Node { path: path.into() }];
    let check = |ours: freestone_sessions::WritableSession, expect: Vec<Clash>| match ours
        .commit_with("ours", &rebased)
    {
        Err(Error::Conflict(c)) => assert_eq!(c.clashes, expect),
        other => panic!("{other:?}, but expected {expect:?}"),
    };
    let same = Map::from_iter([("a".to_owned(), json!(1))]);
    // Both change the attributes of one array.
    let (ours, theirs) = (begin(), begin());
    [&ours, &theirs].iter().for_each(|s| s.set_attributes("u", &same).unwrap());
    theirs.commit("theirs").unwrap();
    check(ours, node("u"));
    // Both create an array of the same name.
    let (ours, theirs) = (begin(), begin());
    [&ours, &theirs].iter().for_each(|s| create(s, "g/new", &info(&[2], &[2])));
    theirs.commit("theirs").unwrap();
    check(ours, node("g/new"));
    // One writes an array that the other removes, and vice versa.
    let (writes, removes, removes_too) = (begin(), begin(), begin());
    writes.array("u").unwrap().write_chunk(&[0], &bytes(&[1.0, 1.0])).unwrap();
    [&removes, &removes_too].iter().for_each(|s| s.remove("u").unwrap());
    let late = begin();
    late.array("u").unwrap().write_chunk(&[0], &bytes(&[1.0, 1.0])).unwrap();
    writes.commit("writes").unwrap();
    check(removes, node("u"));
    let fresh = begin();
    fresh.remove("u").unwrap();
    fresh.commit("removes").unwrap();
    check(
        late,
        vec![
            Clash::Chunks { array: "u".into(), chunks: vec![vec![0]] },
            Clash::Node { path: "u".into() },
        ],
    );
    // Both create a group of the same name with different arrays, which is not a conflict.
    let (ours, theirs) = (begin(), begin());
    create(&ours, "h/a", &info(&[2], &[2]));
    create(&theirs, "h/b", &info(&[2], &[2]));
    theirs.commit("theirs").unwrap();
    ours.commit_with("ours", &rebased).unwrap();
    assert_eq!(main(&repository).store().list("h/").unwrap(), ["a", "b", "zarr.json"]);
}
