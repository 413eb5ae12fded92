//! What the tests of this package run in other processes: `freestone-engine-test-child ROLE`.

// A child of tests says by panicking that something is wrong, as they do.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use freestone_engine::storage::{StorageError, Stores, read_small};

fn main() {
    match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [role] if role == "read" => read_three(),
        other => panic!("unknown role: {other:?}"),
    }
}

/// Reads two objects of a bucket, and a third one once standard input has ended. Prints what came
/// of each.
fn read_three() {
    let read = |key: &str| match read_small(
        &*Stores::default().open("s3://bucket/place").unwrap(),
        key,
        100,
    ) {
        Ok(found) => println!("read {}", String::from_utf8(found.unwrap()).unwrap()),
        Err(error) => println!(
            "{} {}",
            error.to_string().replace('\n', " "),
            matches!(error, StorageError::Io { transient: false, .. })
        ),
    };
    read("a");
    read("b");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    read("c");
}
