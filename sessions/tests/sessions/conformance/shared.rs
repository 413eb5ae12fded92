//! Shared sessions.

use std::time::Duration;

use freestone_sessions::{Closed, Error, MAIN, SessionState, SharedCommit, SharedSession, Version};
use serde_json::json;

use super::{filled, long, main, no_secrets};
use crate::support::{Place, bytes, create, floats, raw, read};

everywhere!(
    interrupted_commit_is_completed,
    joiners_write_to_a_shared_session,
    open_joiners_prevent_the_commit,
    later_joiners_replace_earlier_ones,
    closed_sessions_refuse_writes,
    sharing_can_be_disabled,
    sessions_expire_and_are_extended,
);

/// Tests interruptions between the commit and its record, and before the commit.
fn interrupted_commit_is_completed(place: &Place) {
    let root = place.url("repository");
    if !root.starts_with('/') {
        return;
    }
    let repository = place.new_repository();
    filled(&repository);
    let written = |message: &str| {
        let shared = repository.create_session(MAIN, message, None).unwrap();
        let joiner = shared.join("a").unwrap();
        joiner.array("u").unwrap().write_chunk(&[0], &bytes(&[5.0, 5.0])).unwrap();
        joiner.close().unwrap();
        shared
    };
    let state = |s: &SharedSession, n: u32| {
        format!("{root}/_freestone/sessions/{}/state/00000{n}.json", s.id())
    };
    let history = || repository.history(&Version::Branch(MAIN.into())).unwrap().len();

    let shared = written("record lost");
    let done = shared.commit().unwrap();
    std::fs::remove_file(state(&shared, 3)).unwrap();
    assert_eq!(shared.status().unwrap().state, SessionState::Committing);
    assert!(matches!(shared.join("b"), Err(Error::Committing { .. })));
    assert!(matches!(shared.abandon(), Err(Error::Committing { .. })));
    let before = history();
    // Other sessions have committed concurrently.
    let session = repository.writable_session(MAIN).unwrap();
    session.resize("u", &[8]).unwrap();
    session.commit("longer").unwrap();
    assert_eq!(shared.commit().unwrap(), done);
    assert_eq!(history(), before + 1);
    assert!(matches!(shared.commit(), Err(Error::Closed { state: Closed::Committed { .. }, .. })));

    let shared = written("died before");
    let open = std::fs::read_to_string(state(&shared, 1)).unwrap();
    std::fs::write(state(&shared, 2), open.replace("\"open\"", "\"committing\"")).unwrap();
    assert_eq!(shared.status().unwrap().state, SessionState::Committing);
    let done = shared.commit().unwrap();
    assert_eq!(repository.history(&Version::Branch(MAIN.into())).unwrap()[0].id, done.snapshot);

    // A second concurrent change of the state is refused.
    let shared = written("stale");
    let stale = std::thread::scope(|scope| {
        let swaps: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| shared.update_expiration(Duration::from_secs(60))))
            .collect();
        swaps.into_iter().filter_map(|s| s.join().unwrap().err()).collect::<Vec<_>>()
    });
    assert!(stale.len() < 8 && stale.iter().all(|e| matches!(e, Error::Stale { .. })), "{stale:?}");
}

fn joiners_write_to_a_shared_session(place: &Place) {
    let repository = place.new_repository();
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "u", &raw(&[600], &[200]));
    session.array("u").unwrap().write_chunk(&[0], &bytes(&long(200, 0.0))).unwrap();
    let shared = session.share("by three", None).unwrap();
    let id = shared.id().to_owned();
    assert_eq!(repository.shared_session(&id).unwrap().id(), id);
    for name in ["", "a/b", ".hidden", "ü"] {
        assert!(matches!(shared.join(name), Err(Error::InvalidName { .. })), "{name}");
    }
    for i in 1..3u64 {
        let joiner = repository.join_session(&id, &format!("worker-{i}")).unwrap();
        let mut u = joiner.array("u").unwrap();
        u.write_chunk(&[i], &bytes(&long(200, 200.0 * i as f32))).unwrap();
        // A joiner sees the arrays of the shared session and its own writes.
        assert_eq!(
            floats(&u.read_region(&[i * 200..i * 200 + 2]).unwrap()),
            long(2, 200.0 * i as f32)
        );
        assert_eq!(floats(&u.read_region(&[0..1]).unwrap()), [-1.0]);
        joiner.close().unwrap();
    }
    let status = shared.status().unwrap();
    assert_eq!((status.state, status.message.as_str()), (SessionState::Open, "by three"));
    let joiners: Vec<(String, bool, u64)> =
        status.joiners.into_iter().map(|j| (j.name, j.open, j.n_chunks)).collect();
    assert_eq!(
        joiners,
        [
            ("creator".to_owned(), false, 1),
            ("worker-1".to_owned(), false, 1),
            ("worker-2".to_owned(), false, 1)
        ]
    );
    // Another process needs only the handle.
    let handle = serde_json::to_string(&shared).unwrap();
    no_secrets(&handle);
    let done = serde_json::from_str::<SharedSession>(&handle).unwrap().commit().unwrap();
    assert!(done.dropped.is_empty());
    assert_eq!(read(main(&repository).array("u").unwrap()), long(600, 0.0));
    let history = repository.history(&Version::Branch(MAIN.into())).unwrap();
    assert_eq!(
        (history[0].id.as_str(), history[0].message.as_str()),
        (done.snapshot.as_str(), "by three")
    );
    assert_eq!(
        repository.list_sessions().unwrap().iter().map(|s| s.id.as_str()).collect::<Vec<_>>(),
        [id.as_str()]
    );
    assert!(matches!(repository.join_session("nobody", "a"), Err(Error::NoSession { .. })));
}

fn open_joiners_prevent_the_commit(place: &Place) {
    let repository = place.new_repository();
    filled(&repository);
    let shared = repository.create_session(MAIN, "waits", None).unwrap();
    let (open, closed) = (shared.join("open").unwrap(), shared.join("closed").unwrap());
    open.array("u").unwrap().write_chunk(&[0], &bytes(&[8.0, 8.0])).unwrap();
    open.flush().unwrap();
    closed.array("u").unwrap().write_chunk(&[1], &bytes(&[9.0, 9.0])).unwrap();
    closed.close().unwrap();
    let error = shared.commit().unwrap_err();
    assert!(
        matches!(&error, Error::OpenJoiners { joiners, .. } if *joiners == ["open"]),
        "{error}"
    );
    assert_eq!(shared.status().unwrap().state, SessionState::Open);
    let done =
        shared.commit_with(&SharedCommit { force: true, ..SharedCommit::default() }).unwrap();
    assert_eq!(
        done.dropped.iter().map(|j| (j.name.as_str(), j.n_chunks)).collect::<Vec<_>>(),
        [("open", 1)]
    );
    assert_eq!(read(main(&repository).array("u").unwrap()), [0.0, 1.0, 9.0, 9.0, 4.0, 5.0]);
    let history = repository.history(&Version::Branch(MAIN.into())).unwrap();
    assert_eq!(history[0].properties["freestone_dropped"], json!({"open": 1}));
    assert!(matches!(open.close(), Err(Error::Closed { .. })));
}

fn later_joiners_replace_earlier_ones(place: &Place) {
    let repository = place.new_repository();
    filled(&repository);
    let shared = repository.create_session(MAIN, "again", None).unwrap();
    let dead = shared.join("worker").unwrap();
    dead.array("u").unwrap().write_region(&[0..4], &bytes(&[7.0; 4])).unwrap();
    dead.flush().unwrap();
    let alive = shared.join("worker").unwrap();
    // The earlier joiner is refused.
    let _ = dead.array("u").unwrap().write_chunk(&[2], &bytes(&[7.0, 7.0]));
    assert!(matches!(dead.close(), Err(Error::Replaced { .. })));
    alive.array("u").unwrap().write_chunk(&[0], &bytes(&[8.0, 8.0])).unwrap();
    alive.close().unwrap();
    shared.commit().unwrap();
    assert_eq!(read(main(&repository).array("u").unwrap()), [8.0, 8.0, 7.0, 7.0, 4.0, 5.0]);
}

fn closed_sessions_refuse_writes(place: &Place) {
    let repository = place.new_repository();
    filled(&repository);
    let check = |shared: &SharedSession, end: &dyn Fn(), expect: &dyn Fn(&Closed) -> bool| {
        let joiner = shared.join("late").unwrap();
        let mut u = joiner.array("u").unwrap();
        end();
        let closed = |e: &Error| matches!(e, Error::Closed { state, .. } if expect(state));
        if !repository.url().starts_with("s3") {
            let refused = u.write_chunk(&[0], &bytes(&[1.0, 1.0])).unwrap_err();
            assert!(refused.to_string().contains("begin another"), "{refused}");
        }
        let refused = [
            joiner.close().unwrap_err(),
            shared.join("later").unwrap_err(),
            shared.commit().unwrap_err(),
            shared.abandon().unwrap_err(),
        ];
        assert!(refused.iter().all(closed), "{refused:?}");
        assert!(closed(&shared.update_expiration(Duration::from_secs(60)).unwrap_err()));
    };
    let shared = repository.create_session(MAIN, "abandoned", None).unwrap();
    check(&shared, &|| shared.abandon().unwrap(), &|c| *c == Closed::Abandoned);
    let shared = repository.create_session(MAIN, "expired", None).unwrap();
    check(&shared, &|| shared.update_expiration(Duration::ZERO).unwrap(), &|c| {
        *c == Closed::Expired
    });
    let shared = repository.create_session(MAIN, "committed", None).unwrap();
    let other = shared.join("other").unwrap();
    other.array("u").unwrap().write_chunk(&[0], &bytes(&[3.0, 3.0])).unwrap();
    other.close().unwrap();
    let commit = || {
        shared
            .commit_with(&SharedCommit { force: true, ..SharedCommit::default() })
            .map(drop)
            .unwrap()
    };
    check(&shared, &commit, &|c| matches!(c, Closed::Committed { .. }));
    assert_eq!(read(main(&repository).array("u").unwrap())[0], 3.0);
}

fn sharing_can_be_disabled(place: &Place) {
    let repository = place.new_repository();
    filled(&repository);
    let shared = repository.create_session(MAIN, "on", None).unwrap();
    let off = repository.clone().sharing(false);
    assert!(matches!(off.create_session(MAIN, "off", None), Err(Error::SharingOff { .. })));
    assert!(matches!(off.join_session(shared.id(), "a"), Err(Error::SharingOff { .. })));
    assert_eq!(off.list_sessions().unwrap().len(), 1, "no record was kept");
    // Other sessions still work.
    let session = off.writable_session(MAIN).unwrap();
    session.resize("u", &[8]).unwrap();
    session.commit("longer").unwrap();
}

fn sessions_expire_and_are_extended(place: &Place) {
    let repository = place.new_repository();
    filled(&repository);
    let week = Duration::from_secs(7 * 24 * 3600);
    assert!(matches!(
        repository.create_session(MAIN, "long", Some(week + Duration::from_secs(1))),
        Err(Error::TooLong { .. })
    ));
    let shared = repository.create_session(MAIN, "short", Some(Duration::from_secs(1800))).unwrap();
    let life = |s: &SharedSession| {
        s.status().map(|s| s.expires_at.duration_since(s.created_at).unwrap()).unwrap()
    };
    assert_eq!(life(&shared), Duration::from_secs(1800));
    shared.update_expiration(Duration::from_secs(3600)).unwrap();
    assert!(life(&shared) >= Duration::from_secs(3600));
    assert!(
        matches!(
            shared.update_expiration(week + Duration::from_secs(1)),
            Err(Error::TooLong { .. })
        ),
        "the lifetime begins at the creation"
    );
    let default = repository.create_session(MAIN, "default", None).unwrap();
    assert_eq!(life(&default), Duration::from_secs(24 * 3600));
}
