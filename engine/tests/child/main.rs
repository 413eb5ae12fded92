//! The child process of this package's tests: `freestone-engine-test-child ROLE`.

// A test child reports errors by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use freestone_engine::storage::{StorageError, Stores, read_small};
use freestone_engine::system::{Clock, ManualClock, System};

fn main() {
    match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [role] if role == "read" => read_on_request(),
        other => panic!("unknown role: {other:?}"),
    }
}

/// A manual clock on which waits, such as those between retries, end at once.
#[derive(Debug)]
struct SkippingClock(ManualClock);

impl Clock for SkippingClock {
    fn now(&self) -> Instant {
        self.0.now()
    }

    fn system_time(&self) -> SystemTime {
        self.0.system_time()
    }

    fn sleep(&self, time: Duration) {
        self.0.advance(time);
    }

    fn wait_bound(&self, time: Duration) -> Duration {
        self.0.advance(time);
        Duration::ZERO
    }
}

/// Executes commands from standard input: `read KEY` reads an object of a bucket and prints the
/// result, `advance SECONDS` advances the clock.
fn read_on_request() {
    let clock = ManualClock::default();
    let system = System { clock: Arc::new(SkippingClock(clock.clone())), ..System::default() };
    let stores = Stores::with_system(system);
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        match line.split_once(' ') {
            Some(("read", key)) => println!("{}", read(&stores, key)),
            Some(("advance", seconds)) => {
                clock.advance(Duration::from_secs(seconds.parse().unwrap()));
            }
            _ => panic!("unknown command: {line}"),
        }
    }
}

fn read(stores: &Stores, key: &str) -> String {
    match read_small(&*stores.open("s3://bucket/place").unwrap(), key, 100) {
        Ok(found) => format!("read {}", String::from_utf8(found.unwrap()).unwrap()),
        Err(error) => format!(
            "{} {}",
            error.to_string().replace('\n', " "),
            matches!(error, StorageError::Io { transient: false, .. })
        ),
    }
}
