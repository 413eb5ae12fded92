//! The suite that every place for repositories passes.

use std::sync::Arc;
use std::time::Duration;

use freestone_engine::storage::{Store, Stores};
use freestone_sessions::{
    Clash, Closed, CommitOptions, Error, Fork, Format, MAIN, Rebase, Receipt, Repository, SCHEME,
    SessionState, SharedCommit, SharedSession, Ticket, Version, open_store,
};
use serde_json::{Map, json};

use crate::support::{Place, bytes, create, floats, info, raw, read, through_engine};

/// Each case as a test in memory, in a directory and on S3.
macro_rules! everywhere {
    ($($case:ident),* $(,)?) => {
        mod in_memory { $(#[test] fn $case() { super::$case(&crate::support::Place::memory()); })* }
        mod in_a_directory { $(#[test] fn $case() { super::$case(&crate::support::Place::local()); })* }
        mod s3_server { $(#[test] #[ignore = "needs an S3 server: run by \
            .ci/run"] fn $case() { super::$case(&crate::support::Place::s3(stringify!($case))); })* }
    };
}

everywhere!(
    repositories_are_made_and_opened,
    who_makes_a_repository_at_once_shares_it,
    a_coordinator_that_died_is_finished_for,
    branches_tags_and_history,
    a_commit_shows_all_at_once,
    an_old_snapshot_stays_readable,
    missing_chunks_are_fill_values,
    arrays_are_replaced_resized_and_removed,
    regions_must_be_aligned,
    stores_are_found_by_their_url,
    forks_write_and_are_merged,
    a_chunk_is_written_once_or_with_the_same_content,
    engine_receipts_are_enough,
    every_chunk_must_have_a_receipt,
    two_sessions_that_change_the_same_conflict,
    disjoint_sessions_rebase,
    nodes_conflict_too,
    nothing_is_no_commit,
    a_shared_session_is_written_by_joiners,
    open_joiners_keep_a_commit_waiting,
    who_joins_again_takes_over,
    closed_sessions_take_nothing,
    sharing_can_be_switched_off,
    sessions_expire_and_are_extended,
    collection_spares_live_sessions,
    collection_by_others_is_noticed,
    expiry_keeps_what_is_needed,
);

/// The same on format 1, which Icechunk 1 reads.
#[test]
fn format_1_has_sessions_too() {
    let place = Place::local();
    let repository = Repository::create(&place.url("v1"), Format::V1).unwrap();
    assert_eq!(Repository::open(&place.url("v1")).unwrap().format(), Format::V1);
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "u", &info(&[4], &[2]));
    session.array("u").unwrap().write_chunk(&[1], &bytes(&[3.0, 4.0])).unwrap();
    session.commit("first").unwrap();
    let shared = repository.create_session(MAIN, "second", None).unwrap();
    let joiner = shared.join("a").unwrap();
    joiner.array("u").unwrap().write_chunk(&[0], &bytes(&[1.0, 2.0])).unwrap();
    joiner.close().unwrap();
    shared.commit().unwrap();
    assert_eq!(read(main(&repository).array("u").unwrap()), [1.0, 2.0, 3.0, 4.0]);
    repository.gc(Some(Duration::ZERO)).unwrap();
    assert_eq!(read(main(&repository).array("u").unwrap()), [1.0, 2.0, 3.0, 4.0]);
}

/// Nothing blocks or panics where the caller belongs to a runtime of its own.
#[test]
fn sessions_work_inside_a_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let repository = Repository::in_memory().unwrap();
        filled(&repository);
        assert_eq!(read(main(&repository).array("u").unwrap()), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    });
}

fn main(repository: &Repository) -> freestone_sessions::ReadonlySession {
    repository.readonly_session(&Version::Branch(MAIN.into())).unwrap()
}

/// `u` of 6 elements in chunks of 2, with the values 0 to 5; its snapshot.
fn filled(repository: &Repository) -> String {
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "u", &info(&[6], &[2]));
    session
        .array("u")
        .unwrap()
        .write_region(&[0..6], &bytes(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]))
        .unwrap();
    session.commit("filled").unwrap()
}

/// Values that do not fit into a receipt.
fn long(n: usize, first: f32) -> Vec<f32> {
    (0..n).map(|i| first + i as f32).collect()
}

fn repositories_are_made_and_opened(place: &Place) {
    let url = place.url("repository");
    assert!(matches!(
        Repository::open(&url),
        Err(Error::NoRepository { .. } | Error::NotInProcess { .. })
    ));
    let made = Repository::create(&url, Format::default()).unwrap();
    assert!(matches!(Repository::create(&url, Format::default()), Err(Error::Exists { .. })));
    let opened = Repository::open(made.url()).unwrap();
    assert_eq!((opened.url(), opened.format()), (made.url(), Format::V2));
    assert_eq!(
        Repository::open_or_create(&url, Format::default()).unwrap().branches().unwrap(),
        [MAIN]
    );
    let other = Repository::open_or_create(&place.url("other"), Format::default()).unwrap();
    assert_eq!(other.history(&Version::Branch(MAIN.into())).unwrap().len(), 1);
}

fn who_makes_a_repository_at_once_shares_it(place: &Place) {
    let url = place.url("repository");
    let kept = std::thread::scope(|scope| {
        let open = |i: u64| {
            let repository = Repository::open_or_create(&url, Format::default()).unwrap();
            let session = repository.writable_session(MAIN).unwrap();
            create(&session, &format!("a{i}"), &info(&[1], &[1]));
            session
                .commit_with(
                    "mine",
                    &CommitOptions {
                        rebase: Rebase::Disjoint { attempts: 50 },
                        ..CommitOptions::default()
                    },
                )
                .unwrap();
            repository
        };
        let openers: Vec<_> = (0..6).map(|i| scope.spawn(move || open(i))).collect();
        openers.into_iter().map(|o| o.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(kept[0].history(&Version::Branch(MAIN.into())).unwrap().len(), 7);
    assert_eq!(main(&kept[0]).store().list("").unwrap().len(), 7);
}

/// Between the commit and its record, and before the commit.
fn a_coordinator_that_died_is_finished_for(place: &Place) {
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
    // Others have committed meanwhile.
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

    // Who swaps what somebody else has swapped is refused.
    let shared = written("stale");
    let stale = std::thread::scope(|scope| {
        let swaps: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| shared.update_expiration(Duration::from_secs(60))))
            .collect();
        swaps.into_iter().filter_map(|s| s.join().unwrap().err()).collect::<Vec<_>>()
    });
    assert!(stale.len() < 8 && stale.iter().all(|e| matches!(e, Error::Stale { .. })), "{stale:?}");
}

fn branches_tags_and_history(place: &Place) {
    let repository = place.new_repository();
    let first = filled(&repository);
    repository.create_branch("side", &Version::Snapshot(first.clone())).unwrap();
    repository.create_tag("v1", &Version::Branch(MAIN.into())).unwrap();
    let session = repository.writable_session("side").unwrap();
    session.set_attributes("u", &Map::from_iter([("units".to_owned(), json!("m"))])).unwrap();
    let options = CommitOptions {
        properties: Map::from_iter([("by".to_owned(), json!("me"))]),
        ..CommitOptions::default()
    };
    let second = session.commit_with("units", &options).unwrap();
    let history = repository.history(&Version::Branch("side".into())).unwrap();
    assert_eq!(
        history.iter().map(|s| s.id.clone()).take(2).collect::<Vec<_>>(),
        [second, first.clone()]
    );
    assert_eq!(
        (history[0].message.as_str(), &history[0].properties["by"], history[0].parent.as_ref()),
        ("units", &json!("me"), Some(&first))
    );
    assert_eq!(repository.resolve(&Version::Tag("v1".into())).unwrap(), first);
    assert_eq!(repository.resolve(&Version::Branch(MAIN.into())).unwrap(), first);
    assert_eq!(
        (repository.branches().unwrap(), repository.tags().unwrap()),
        (vec![MAIN.to_owned(), "side".to_owned()], vec!["v1".to_owned()])
    );
    repository.delete_branch("side").unwrap();
    repository.delete_tag("v1").unwrap();
    for gone in [
        Version::Branch("side".into()),
        Version::Tag("v1".into()),
        Version::Snapshot("AAAAAAAAAAAAAAAAAAAG".into()),
        Version::Snapshot("?".into()),
    ] {
        assert!(
            matches!(repository.readonly_session(&gone), Err(Error::NoVersion { .. })),
            "{gone:?}"
        );
    }
}

fn a_commit_shows_all_at_once(place: &Place) {
    let repository = place.new_repository();
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "g/a", &info(&[3, 5], &[2, 2]));
    create(&session, "g/b", &raw(&[400], &[200]));
    let values: Vec<f32> = (0..15).map(|i| i as f32).collect();
    session.array("g/a").unwrap().write_region(&[0..3, 0..5], &bytes(&values)).unwrap();
    session.array("g/b").unwrap().write_chunk(&[1], &bytes(&long(200, 7.0))).unwrap();
    // Its own writes are seen by itself, and by nobody else.
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

fn an_old_snapshot_stays_readable(place: &Place) {
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

fn missing_chunks_are_fill_values(place: &Place) {
    let repository = place.new_repository();
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "u", &raw(&[2000], &[500]));
    session.array("u").unwrap().write_chunk(&[2], &bytes(&long(500, 1.0))).unwrap();
    // Fill values are not stored, and hide what was written before.
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
    assert!(store.read("u/c/2", None, 1999, &mut buffer).is_err(), "a limit holds");
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
    assert!(store.write("u/c/2", b"x").is_err() && store.remove("u/c/2").is_err(), "it only reads");
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

    // What was cut off does not come back.
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
    assert_eq!(read(session.array("u").unwrap()), [-1.0; 4], "what was there is not seen any more");
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

fn stores_are_found_by_their_url(place: &Place) {
    let repository = place.new_repository();
    filled(&repository);
    let session = main(&repository);
    let url = session.store().url().to_owned();
    assert!(
        url.starts_with(SCHEME) && url.ends_with(&format!("#snapshot={}", session.snapshot())),
        "{url}"
    );
    let stores = Stores::default().with_opener(SCHEME, open_store);
    let store = stores.open(&url).unwrap();
    assert_eq!((store.url(), store.is_remote()), (url.as_str(), url.contains("s3://")));
    assert_eq!(freestone_engine::storage::is_remote_url(&url), store.is_remote());
    assert_eq!(through_engine(&store, "u"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(
        freestone_engine::storage::split_location(&format!("{url}/u")),
        (url.clone(), "u".to_owned())
    );
    assert!(stores.open(&url.replace("snapshot=", "snapshot=00")).is_err());
    assert!(stores.open(&format!("{SCHEME}{}", repository.url())).is_err());
}

/// A fork in what could be another process.
fn travelled(ticket: &Ticket) -> Fork {
    let text = serde_json::to_string(ticket).unwrap();
    no_secrets(&text);
    serde_json::from_str::<Ticket>(&text).unwrap().open().unwrap()
}

/// What travels holds nothing that would open a store.
#[track_caller]
fn no_secrets(text: &str) {
    assert!(!text.contains("secret") && !text.contains("credential"), "{text}");
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"] {
        let value = std::env::var(name).unwrap_or_default();
        assert!(value.len() < 4 || !text.contains(&value), "{name} is in {text}");
    }
}

fn forks_write_and_are_merged(place: &Place) {
    let repository = place.new_repository();
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "u", &raw(&[800], &[200]));
    let ticket = session.fork().unwrap();
    let batches: Vec<String> = std::thread::scope(|scope| {
        let write = |i: u64| {
            let fork = travelled(&ticket);
            fork.array("u")
                .unwrap()
                .write_chunk(&[i], &bytes(&long(200, 200.0 * i as f32)))
                .unwrap();
            serde_json::to_string(&fork.receipts()).unwrap()
        };
        let forks: Vec<_> = (0..4).map(|i| scope.spawn(move || write(i))).collect();
        forks.into_iter().map(|f| f.join().unwrap()).collect()
    });
    for batch in batches.iter().chain(&batches[..1]) {
        no_secrets(batch);
        session.merge(serde_json::from_str(batch).unwrap()).unwrap();
    }
    assert_eq!(session.n_chunks(), 4);
    session
        .commit_with(
            "forked",
            &CommitOptions { complete: vec!["u".into()], ..CommitOptions::default() },
        )
        .unwrap();
    assert_eq!(read(main(&repository).array("u").unwrap()), long(800, 0.0));
    // Receipts of one session are not another's.
    let other = repository.writable_session(MAIN).unwrap();
    assert!(matches!(
        other.merge(serde_json::from_str(&batches[0]).unwrap()),
        Err(Error::Foreign { .. })
    ));
}

fn a_chunk_is_written_once_or_with_the_same_content(place: &Place) {
    let repository = place.new_repository();
    filled(&repository);
    let session = repository.writable_session(MAIN).unwrap();
    let written = |value: f32| {
        let fork = travelled(&session.fork().unwrap());
        fork.array("u").unwrap().write_chunk(&[1], &bytes(&[value, value])).unwrap();
        fork.receipts()
    };
    session.merge(written(7.0)).unwrap();
    session.merge(written(7.0)).unwrap();
    for other in [8.0, -1.0] {
        let error = session.merge(written(other)).unwrap_err();
        assert!(
            matches!(&error, Error::WrittenTwice { array, chunk } if array == "u" && *chunk == [1]),
            "{error}"
        );
    }
    session.commit("once").unwrap();
    assert_eq!(read(main(&repository).array("u").unwrap()), [0.0, 1.0, 7.0, 7.0, 4.0, 5.0]);
}

fn engine_receipts_are_enough(place: &Place) {
    use freestone_engine::storage::reader::Written;
    let repository = place.new_repository();
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "u", &info(&[6], &[2]));
    let ticket = session.fork().unwrap();
    // As the engine's worker writes: a store by its URL, and an array by what the plan says of it.
    let store: Arc<dyn Store> =
        Stores::default().with_opener(SCHEME, open_store).open(&ticket.store_url()).unwrap();
    let access =
        freestone_engine::storage::reader::ChunkAccess::new(store, "u", &info(&[6], &[2])).unwrap();
    let mut resources = freestone_engine::storage::reader::WorkerResources {
        arena: freestone_engine::memory::Arena::new(1_000_000),
        contexts: Default::default(),
        traffic: Default::default(),
    };
    let receipts: Vec<Receipt> = [[1.0, 2.0], [-1.0, -1.0], [5.0, 6.0]]
        .iter()
        .enumerate()
        .map(|(i, values)| {
            match access.write(&[i as u64], &bytes(values), &mut resources).unwrap() {
                Written::Fill => Receipt::fill("u", &[i as u32]),
                Written::Object { len, hash } => {
                    Receipt::object(&ticket.session, "u", &[i as u32], len, hash)
                }
            }
        })
        .collect();
    session.merge_receipts(receipts).unwrap();
    session
        .commit_with(
            "by tasks",
            &CommitOptions { complete: vec!["u".into()], ..CommitOptions::default() },
        )
        .unwrap();
    assert_eq!(read(main(&repository).array("u").unwrap()), [1.0, 2.0, -1.0, -1.0, 5.0, 6.0]);
}

fn every_chunk_must_have_a_receipt(place: &Place) {
    let repository = place.new_repository();
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "u", &info(&[4, 4], &[2, 2]));
    let mut u = session.array("u").unwrap();
    u.write_region(&[0..2, 0..4], &bytes(&[1.0; 8])).unwrap();
    u.write_chunk(&[1, 1], &bytes(&[-1.0; 4])).unwrap();
    let complete = CommitOptions { complete: vec!["u".into()], ..CommitOptions::default() };
    let error = session.commit_with("too early", &complete).unwrap_err();
    assert!(
        matches!(&error, Error::Incomplete { n_missing: 1, first, .. } if *first == [1, 0]),
        "{error}"
    );
    u.write_chunk(&[1, 0], &bytes(&[2.0; 4])).unwrap();
    session.commit_with("complete", &complete).unwrap();
}

fn two_sessions_that_change_the_same_conflict(place: &Place) {
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
    // Other attributes are no reason to refuse chunks, another shape is.
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

fn nodes_conflict_too(place: &Place) {
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
    // Two change the attributes of one array.
    let (ours, theirs) = (begin(), begin());
    [&ours, &theirs].iter().for_each(|s| s.set_attributes("u", &same).unwrap());
    theirs.commit("theirs").unwrap();
    check(ours, node("u"));
    // Two make an array of one name.
    let (ours, theirs) = (begin(), begin());
    [&ours, &theirs].iter().for_each(|s| create(s, "g/new", &info(&[2], &[2])));
    theirs.commit("theirs").unwrap();
    check(ours, node("g/new"));
    // One writes what the other removes, and the other way round.
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
    // Two make groups of one name, with arrays of different names in them: that is no conflict.
    let (ours, theirs) = (begin(), begin());
    create(&ours, "h/a", &info(&[2], &[2]));
    create(&theirs, "h/b", &info(&[2], &[2]));
    theirs.commit("theirs").unwrap();
    ours.commit_with("ours", &rebased).unwrap();
    assert_eq!(main(&repository).store().list("h/").unwrap(), ["a", "b", "zarr.json"]);
}

fn nothing_is_no_commit(place: &Place) {
    let repository = place.new_repository();
    assert!(matches!(
        repository.writable_session(MAIN).unwrap().commit("nothing"),
        Err(Error::NothingToCommit)
    ));
    assert!(matches!(repository.writable_session("other"), Err(Error::NoVersion { .. })));
}

fn a_shared_session_is_written_by_joiners(place: &Place) {
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
        // It sees what was made before it was shared, and its own.
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
    // A handle is enough for another process.
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

fn open_joiners_keep_a_commit_waiting(place: &Place) {
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

fn who_joins_again_takes_over(place: &Place) {
    let repository = place.new_repository();
    filled(&repository);
    let shared = repository.create_session(MAIN, "again", None).unwrap();
    let dead = shared.join("worker").unwrap();
    dead.array("u").unwrap().write_region(&[0..4], &bytes(&[7.0; 4])).unwrap();
    dead.flush().unwrap();
    let alive = shared.join("worker").unwrap();
    // The one before is no longer listened to.
    let _ = dead.array("u").unwrap().write_chunk(&[2], &bytes(&[7.0, 7.0]));
    assert!(matches!(dead.close(), Err(Error::Replaced { .. })));
    alive.array("u").unwrap().write_chunk(&[0], &bytes(&[8.0, 8.0])).unwrap();
    alive.close().unwrap();
    shared.commit().unwrap();
    assert_eq!(read(main(&repository).array("u").unwrap()), [8.0, 8.0, 7.0, 7.0, 4.0, 5.0]);
}

fn closed_sessions_take_nothing(place: &Place) {
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

fn sharing_can_be_switched_off(place: &Place) {
    let repository = place.new_repository();
    filled(&repository);
    let shared = repository.create_session(MAIN, "on", None).unwrap();
    let off = repository.clone().sharing(false);
    assert!(matches!(off.create_session(MAIN, "off", None), Err(Error::SharingOff { .. })));
    assert!(matches!(off.join_session(shared.id(), "a"), Err(Error::SharingOff { .. })));
    assert_eq!(off.list_sessions().unwrap().len(), 1, "no record was kept");
    // Sessions of its own work as ever.
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
        "a life is counted from its beginning"
    );
    let default = repository.create_session(MAIN, "default", None).unwrap();
    assert_eq!(life(&default), Duration::from_secs(24 * 3600));
}

fn collection_spares_live_sessions(place: &Place) {
    let repository = place.new_repository();
    filled(&repository);
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "v", &raw(&[400], &[200]));
    let shared = session.share("lives", None).unwrap();
    let joiner = shared.join("a").unwrap();
    joiner.array("v").unwrap().write_chunk(&[0], &bytes(&long(200, 0.0))).unwrap();
    // What an abandoned session has left would go, were it older than the one that lives.
    let unknown = repository.writable_session(MAIN).unwrap();
    unknown.array("u").unwrap().write_chunk(&[0], &bytes(&[1.0, 1.0])).unwrap();
    repository.gc(Some(Duration::ZERO)).unwrap();
    joiner.array("v").unwrap().write_chunk(&[1], &bytes(&long(200, 200.0))).unwrap();
    joiner.close().unwrap();
    shared.commit().unwrap();
    assert_eq!(read(main(&repository).array("v").unwrap()), long(400, 0.0));
    // Nobody lives: all goes that no snapshot has.
    let left = repository.writable_session(MAIN).unwrap();
    create(&left, "w", &raw(&[200], &[200]));
    left.array("w").unwrap().write_chunk(&[0], &bytes(&long(200, 5.0))).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    // A writer was killed in the middle of a file.
    let part = format!("{}/chunks/.X.1-1.part", repository.url().trim_start_matches("file://"));
    if repository.url().starts_with("file://") {
        std::fs::write(&part, b"half").unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    let collected = repository.gc(Some(Duration::ZERO)).unwrap();
    assert_eq!(collected.n_chunks, 1, "{collected:?}");
    assert!(!std::path::Path::new(&part).exists());
    assert!(matches!(left.commit("lost"), Err(Error::Collected { .. })));
    assert_eq!(read(main(&repository).array("v").unwrap()), long(400, 0.0));
    assert!(main(&repository).array("w").is_err());
    // One that begins afterwards has nothing to fear.
    let after = repository.writable_session(MAIN).unwrap();
    after.resize("v", &[200]).unwrap();
    after.commit("after").unwrap();
}

fn collection_by_others_is_noticed(place: &Place) {
    if !place.url("x").starts_with('/') {
        return;
    }
    let repository = place.new_repository();
    filled(&repository);
    let shared = repository.create_session(MAIN, "unlucky", None).unwrap();
    let joiner = shared.join("a").unwrap();
    joiner.array("u").unwrap().write_chunk(&[0], &bytes(&[1.0, 1.0])).unwrap();
    joiner.close().unwrap();
    foreign_collection(&place.url("repository"));
    assert!(matches!(shared.commit(), Err(Error::Collected { .. })));
    assert_eq!(
        read(main(&repository).array("u").unwrap()),
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
        "nothing of it is visible"
    );
}

/// Another program's collection, which removes whatever is not committed.
fn foreign_collection(path: &str) {
    use icechunk::ops::gc::{GCConfig, garbage_collect};
    use std::num::{NonZeroU16, NonZeroUsize};
    let path = std::path::PathBuf::from(path);
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(
        async move {
            let storage = icechunk::new_local_filesystem_storage(&path).await.unwrap();
            let repository = icechunk::Repository::open(storage).execute().await.unwrap();
            let (few, mem, now) = (
                NonZeroU16::new(4).unwrap(),
                NonZeroUsize::new(1 << 24).unwrap(),
                chrono::Utc::now(),
            );
            let config =
                GCConfig::clean_all(now, now, None, few, mem, mem, few, few, few, None, false);
            garbage_collect(Arc::clone(repository.asset_manager()), &config, None, 100)
                .await
                .unwrap();
        },
    );
}

fn expiry_keeps_what_is_needed(place: &Place) {
    let repository = place.new_repository();
    filled(&repository);
    let grow = |n: u64| {
        let session = repository.writable_session(MAIN).unwrap();
        session.resize("u", &[n]).unwrap();
        session.commit("grown").unwrap()
    };
    let base = grow(8);
    let shared = repository.create_session(MAIN, "based on the second", None).unwrap();
    grow(10);
    grow(12);
    let joiner = shared.join("a").unwrap();
    joiner.array("u").unwrap().write_chunk(&[0], &bytes(&[5.0, 5.0])).unwrap();
    joiner.close().unwrap();
    repository.expire(Duration::ZERO).unwrap();
    repository.gc(Some(Duration::ZERO)).unwrap();
    let history = repository.history(&Version::Branch(MAIN.into())).unwrap();
    assert!(history.iter().any(|s| s.id == base), "{history:?}");
    // The session's array was given another shape meanwhile.
    let how = SharedCommit {
        options: CommitOptions {
            rebase: Rebase::Disjoint { attempts: 3 },
            ..CommitOptions::default()
        },
        force: false,
    };
    assert!(matches!(shared.commit_with(&how), Err(Error::Conflict(_))));
    shared.abandon().unwrap();
    let expired = repository.expire(Duration::ZERO).unwrap();
    assert!(!expired.snapshots.is_empty());
    let history = repository.history(&Version::Branch(MAIN.into())).unwrap();
    assert!(!history.iter().any(|s| s.id == base), "{history:?}");
    assert_eq!(read(main(&repository).array("u").unwrap())[..6], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
}
