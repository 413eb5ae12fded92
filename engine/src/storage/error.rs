//! Errors of stores.

use thiserror::Error;

/// The error of a storage operation.
///
/// Every error names the location. [`is_transient`](StorageError::is_transient),
/// [`is_throttle`](StorageError::is_throttle) and [`is_retryable`](StorageError::is_retryable)
/// classify errors; no caller parses texts.
#[derive(Clone, Debug, Error)]
#[allow(missing_docs)]
pub enum StorageError {
    #[error(
        "object `{place}` has {len} bytes, expected at most {limit}: it is damaged or of another \
            kind"
    )]
    TooLong { place: String, len: u64, limit: u64 },
    #[error("object `{place}` is truncated: it ends before byte {wanted}")]
    Truncated { place: String, wanted: u64 },
    /// A repository, version or other container of objects does not exist. A missing object is not
    /// an error.
    #[error("cannot {action} `{place}`: {message}")]
    NotFound { place: String, action: &'static str, message: String },
    #[error(
        "no space left at `{place}` (hint: free some space, or choose another work directory or \
            output)"
    )]
    NoSpace { place: String },
    /// The action is a verb in the infinitive, such as `read`.
    #[error("cannot {action} `{place}`: permission denied")]
    Denied { place: String, action: &'static str },
    #[error("cannot {action} `{place}`: {message}")]
    Io { place: String, action: &'static str, message: String, transient: bool },
    #[error(
        "cannot use the default work directory `{place}`: {why} (hint: remove it, or set \
            FREESTONE_WORK_DIR to a directory of your own)"
    )]
    NotPrivate { place: String, why: String },
    /// The store accepts no writes from this run, because it or its session has ended.
    #[error("cannot write to `{place}`: {message}")]
    Refused { place: String, message: String },
    #[error("rate limited by the store at `{place}`: {message}")]
    Throttled { place: String, message: String },
    /// The store's client has retried a network request without success. Callers do not retry it
    /// immediately.
    #[error("cannot {action} `{place}`: {message}")]
    RetriesExhausted { place: String, action: &'static str, message: String, is_throttle: bool },
    #[error(
        "internal error at `{place}`: broken invariant: {invariant} (hint: this is a defect of \
            Freestone, please report it)"
    )]
    Internal { place: String, invariant: &'static str },
    #[error("invalid location `{url}`: {why}")]
    InvalidUrl { url: String, why: String },
    #[error(
        "store `{0}` is in the memory of another process (hint: use a directory or an object store \
            with executors that run processes)"
    )]
    NotInProcess(String),
}

impl StorageError {
    /// Returns true if a later request may succeed and the store has not limited the request rate.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            StorageError::Io { transient: true, .. }
                | StorageError::RetriesExhausted { is_throttle: false, .. }
        )
    }

    /// Returns true if the store has limited the request rate.
    pub fn is_throttle(&self) -> bool {
        matches!(
            self,
            StorageError::Throttled { .. }
                | StorageError::RetriesExhausted { is_throttle: true, .. }
        )
    }

    /// Returns true if a retry may succeed and none has been made. Network requests are retried by
    /// the store's client.
    pub fn is_retryable(&self) -> bool {
        matches!(self, StorageError::Io { transient: true, .. } | StorageError::Throttled { .. })
    }

    /// Returns the error of a broken invariant, which ends the run. Panics in debug builds.
    pub(crate) fn internal(place: String, invariant: &'static str) -> StorageError {
        debug_assert!(false, "broken invariant at {place}: {invariant}");
        StorageError::Internal { place, invariant }
    }

    /// Converts an I/O error of `action` at a location.
    pub(crate) fn io(place: String, action: &'static str, error: &std::io::Error) -> StorageError {
        use std::io::ErrorKind as K;
        match error.kind() {
            K::StorageFull | K::QuotaExceeded => StorageError::NoSpace { place },
            K::PermissionDenied | K::ReadOnlyFilesystem => StorageError::Denied { place, action },
            kind => StorageError::Io {
                place,
                action,
                message: error.to_string(),
                transient: matches!(
                    kind,
                    K::Interrupted | K::TimedOut | K::WouldBlock | K::ResourceBusy
                ),
            },
        }
    }
}
