//! Garbage collection and expiry.

use std::sync::Arc;
use std::time::Duration;

use freestone_sessions::{CommitOptions, Error, MAIN, Rebase, SharedCommit, Version};

use super::{filled, long, main};
use crate::support::{Place, bytes, create, raw, read};

everywhere!(
    collection_retains_live_sessions,
    collection_by_other_programs_is_detected,
    expiry_retains_bases_of_live_sessions,
);

fn collection_retains_live_sessions(place: &Place) {
    let repository = place.new_repository();
    filled(&repository);
    let session = repository.writable_session(MAIN).unwrap();
    create(&session, "v", &raw(&[400], &[200]));
    let shared = session.share("lives", None).unwrap();
    let joiner = shared.join("a").unwrap();
    joiner.array("v").unwrap().write_chunk(&[0], &bytes(&long(200, 0.0))).unwrap();
    // Objects of an abandoned session are retained if they are younger than a live session.
    let unknown = repository.writable_session(MAIN).unwrap();
    unknown.array("u").unwrap().write_chunk(&[0], &bytes(&[1.0, 1.0])).unwrap();
    repository.gc(Some(Duration::ZERO)).unwrap();
    joiner.array("v").unwrap().write_chunk(&[1], &bytes(&long(200, 200.0))).unwrap();
    joiner.close().unwrap();
    shared.commit().unwrap();
    assert_eq!(read(main(&repository).array("v").unwrap()), long(400, 0.0));
    // Without live sessions, all unreferenced objects are removed.
    let left = repository.writable_session(MAIN).unwrap();
    create(&left, "w", &raw(&[200], &[200]));
    left.array("w").unwrap().write_chunk(&[0], &bytes(&long(200, 5.0))).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    // A partial file of a killed writer.
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
    // Later sessions are not affected.
    let after = repository.writable_session(MAIN).unwrap();
    after.resize("v", &[200]).unwrap();
    after.commit("after").unwrap();
}

fn collection_by_other_programs_is_detected(place: &Place) {
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
        "no change is visible"
    );
}

fn expiry_retains_bases_of_live_sessions(place: &Place) {
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
    // The session's array was resized concurrently.
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

/// Runs the collection of another program, which removes all uncommitted objects.
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
