//! Forks and receipts.

use std::sync::Arc;

use freestone_engine::storage::{Store, Stores};
use freestone_sessions::{CommitOptions, Error, Fork, MAIN, Receipt, SCHEME, Ticket, open_store};

use super::{filled, long, main, no_secrets};
use crate::support::{Place, bytes, create, info, raw, read};

everywhere!(
    forks_write_and_are_merged,
    repeated_chunks_must_have_equal_contents,
    engine_receipts_suffice_to_commit,
    missing_receipts_are_an_error,
);

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
    // Receipts of another session are refused.
    let other = repository.writable_session(MAIN).unwrap();
    assert!(matches!(
        other.merge(serde_json::from_str(&batches[0]).unwrap()),
        Err(Error::Foreign { .. })
    ));
}

fn repeated_chunks_must_have_equal_contents(place: &Place) {
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

fn engine_receipts_suffice_to_commit(place: &Place) {
    use freestone_engine::storage::reader::Written;
    let repository = place.new_repository();
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "u", &info(&[6], &[2]));
    let ticket = session.fork().unwrap();
    // Write like the engine's worker: open a store by URL and an array by its description.
    let store: Arc<dyn Store> =
        Stores::default().with_opener(SCHEME, open_store).open(&ticket.store_url()).unwrap();
    let access =
        freestone_engine::storage::reader::ChunkAccess::new(store, "u", &info(&[6], &[2])).unwrap();
    let mut resources = freestone_engine::storage::reader::WorkerResources::new(1_000_000);
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

fn missing_receipts_are_an_error(place: &Place) {
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

/// Opens a serialized ticket, as another process would.
fn travelled(ticket: &Ticket) -> Fork {
    let text = serde_json::to_string(ticket).unwrap();
    no_secrets(&text);
    serde_json::from_str::<Ticket>(&text).unwrap().open().unwrap()
}
