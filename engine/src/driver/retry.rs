//! Retries of storage operations and publication by the driver.
//!
//! Operations that a store's client has already retried are not retried again
//! ([`StorageError::is_retryable`]).

use crate::publish::{PublishError, Rejection};
use crate::retry::Retry;
use crate::storage::StorageError;
use crate::system::System;

/// Retries a storage operation that failed transiently and that the store has not retried.
pub(super) fn retry_storage<T>(
    system: &System,
    operation: impl FnMut() -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    retry(system, operation, StorageError::is_retryable)
}

/// Retries a publisher's operation that failed transiently.
pub(super) fn retry_publish<T>(
    system: &System,
    operation: &dyn Fn() -> Result<T, PublishError>,
) -> Result<T, PublishError> {
    retry(system, operation, |error| match error {
        PublishError::Storage(error) => error.is_retryable(),
        PublishError::Rejected { why, .. } => *why == Rejection::Transient,
        _ => false,
    })
}

fn retry<T, E>(
    system: &System,
    mut operation: impl FnMut() -> Result<T, E>,
    is_retryable: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let (start, mut failures) = (system.now(), 0);
    loop {
        let error = match operation() {
            Err(error) if is_retryable(&error) => error,
            result => return result,
        };
        failures += 1;
        match Retry::STORAGE.next(failures, system.elapsed(start), system.fraction()) {
            Some(pause) => system.sleep(pause),
            None => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::system::ManualClock;

    /// Checks the number of tries of an operation that fails `failures` times, with a clock that
    /// advances only by sleeping.
    #[track_caller]
    fn check(error: &StorageError, failures: u32, expect: (u32, bool)) {
        let clock = ManualClock::default();
        let (system, mut tries) =
            (System { clock: Arc::new(clock.clone()), ..System::default() }, 0);
        let result = retry_storage(&system, || {
            tries += 1;
            if tries > failures { Ok(()) } else { Err(error.clone()) }
        });
        assert_eq!((tries, result.is_ok()), expect, "{error}");
        let longest = (1..tries).map(|n| Retry::STORAGE.backoff.pause(n, 0.0)).sum();
        assert!(
            clock.passed() <= longest && clock.passed() >= longest / 2,
            "{:?} of {longest:?}",
            clock.passed()
        );
    }

    #[test]
    fn transient_failures_are_retried_unless_the_client_gave_up() {
        let place = || "p".to_owned();
        let failed = |transient| StorageError::Io {
            place: place(),
            action: "remove",
            message: "m".into(),
            transient,
        };
        let gave_up = |is_throttle| StorageError::RetriesExhausted {
            place: place(),
            action: "read",
            message: "m".into(),
            is_throttle,
        };
        let throttled = StorageError::Throttled { place: place(), message: "m".into() };
        let tries = Retry::STORAGE.tries;
        check(&failed(true), 0, (1, true));
        check(&failed(true), tries - 1, (tries, true));
        check(&failed(true), tries, (tries, false));
        check(&throttled, 2, (3, true));
        check(&failed(false), 1, (1, false));
        check(&StorageError::NoSpace { place: place() }, 1, (1, false));
        check(&gave_up(false), 1, (1, false));
        check(&gave_up(true), 1, (1, false));
    }
}
