//! The conformance suite of repositories in all locations.

use std::time::Duration;

use freestone_sessions::{Format, MAIN, Repository, Version};

use crate::support::{Place, bytes, create, info, read};

/// Defines each case as a test in memory, in a directory and in an object store.
macro_rules! everywhere {
    ($($case:ident),* $(,)?) => {
        mod in_memory {
            $(#[test]
            fn $case() {
                super::$case(&crate::support::Place::memory());
            })*
        }
        mod in_a_directory {
            $(#[test]
            fn $case() {
                super::$case(&crate::support::Place::local());
            })*
        }
        mod store_server {
            $(#[test]
            #[ignore = "needs an object store: run by .ci/run"]
            fn $case() {
                super::$case(&crate::support::Place::store(stringify!($case)));
            })*
        }
    };
}

mod arrays;
mod conflicts;
mod forks;
mod maintenance;
mod repositories;
mod shared;

/// Sessions also work in format 1, which Icechunk 1 reads.
#[test]
fn sessions_work_in_format_1() {
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

/// Nothing blocks or panics on a thread of the caller's runtime.
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

/// Commits `u` of 6 elements in chunks of 2 with the values 0 to 5, and returns the snapshot.
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

/// Returns values that do not fit into a receipt.
fn long(n: usize, first: f32) -> Vec<f32> {
    (0..n).map(|i| first + i as f32).collect()
}

/// Checks that a ticket or receipt contains no credentials.
#[track_caller]
fn no_secrets(text: &str) {
    assert!(!text.contains("secret") && !text.contains("credential"), "{text}");
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"] {
        let value = std::env::var(name).unwrap_or_default();
        assert!(value.len() < 4 || !text.contains(&value), "{name} is in {text}");
    }
}
