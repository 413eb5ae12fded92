//! Concurrent requests, and the count of serial round trips.

use std::cell::Cell;
use std::panic::resume_unwind;
use std::thread;

/// The maximum number of calls at once.
const MAX_CALLS: usize = 16;

thread_local! {
    static ROUND_TRIPS: Cell<u64> = const { Cell::new(0) };
}

/// Returns the number of round trips on the critical path of this thread: requests that waited for
/// earlier ones. Stores that count requests add to it with [`add_round_trip`].
pub fn round_trips() -> u64 {
    ROUND_TRIPS.get()
}

/// Counts a round trip of this thread.
pub fn add_round_trip() {
    ROUND_TRIPS.set(round_trips() + 1);
}

/// Calls a function for each item, up to 16 at once, and returns the results in order. For requests
/// to stores: the threads mostly wait.
pub fn concurrently<T: Sync, R: Send>(items: &[T], call: impl Fn(&T) -> R + Sync) -> Vec<R> {
    if items.len() < 2 {
        return items.iter().map(call).collect();
    }
    let (width, begun) = (items.len().min(MAX_CALLS), round_trips());
    let share = |first: usize| {
        ROUND_TRIPS.set(begun);
        let calls = items.iter().enumerate().skip(first).step_by(width);
        let results: Vec<(usize, R)> = calls.map(|(i, item)| (i, call(item))).collect();
        (results, round_trips())
    };
    let share = &share;
    let shares = thread::scope(|scope| {
        let start = |n| thread::Builder::new().spawn_scoped(scope, move || share(n));
        let started: Vec<_> = (1..width).map(|n| (n, start(n))).collect();
        let mut shares = vec![share(0)];
        for (n, thread) in started {
            shares.push(match thread {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                // The system has no more threads.
                Err(_) => share(n),
            });
        }
        shares
    });
    ROUND_TRIPS.set(shares.iter().map(|(_, ended)| *ended).max().unwrap_or(begun));
    let mut results: Vec<(usize, R)> = shares.into_iter().flat_map(|(share, _)| share).collect();
    results.sort_unstable_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, result)| result).collect()
}

/// An operation for [`all`].
pub type Operation<'a, E> = Box<dyn Fn() -> Result<(), E> + Sync + 'a>;

/// Runs operations concurrently.
///
/// # Errors
/// Returns the error of the first operation in order that failed. The others are completed.
pub fn all<E: Send>(operations: &[Operation<'_, E>]) -> Result<(), E> {
    concurrently(operations, |operation| operation()).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_and_round_trips_are_those_of_the_longest_call() {
        let before = round_trips();
        for n in [0, 1, 2, 16, 40] {
            let items: Vec<usize> = (0..n).collect();
            assert_eq!(
                concurrently(&items, |i| i * i),
                items.iter().map(|i| i * i).collect::<Vec<_>>()
            );
        }
        assert_eq!(round_trips(), before);
        add_round_trip();
        concurrently(&[1, 4, 2], |n| (0..*n).for_each(|_| add_round_trip()));
        assert_eq!(round_trips() - before, 5);
    }
}
