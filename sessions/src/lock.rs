//! Who may change a local repository.
//!
//! A file system has no compare-and-swap, and Icechunk alone loses racing commits to one directory
//! while it reports success (up to a tenth of them, measured). So whatever moves a branch, or
//! anything else of a repository in a directory, holds an exclusive lock on a file beside it.
//!
//! The lock holds programs that use this crate, on one machine or on file systems that carry
//! `flock` between machines. It does not hold other programs: two that commit to one directory, one
//! of them not this crate's, can lose a commit. The lock of a process that dies is free at once.

use std::fs::{self, File};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::Error;
use crate::location::Location;

/// While somebody else has the lock, it is looked for so often.
const TICK: Duration = Duration::from_millis(5);

/// The right to change a repository; ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Lock(Option<File>);

impl Lock {
    /// Waits for the lock of a local repository, unless that is cancelled; elsewhere there is none.
    pub(crate) fn take(
        location: &Location,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Lock, Error> {
        let Some(directory) = location.directory() else { return Ok(Lock(None)) };
        let path = directory.join(crate::FOLDER).join("lock");
        let failed = |e: std::io::Error| Error::Repository {
            place: path.display().to_string(),
            action: "lock",
            message: e.to_string(),
            transient: false,
        };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
        loop {
            // All who wait do it in this way: one who slept in the system would be served before
            // those who ask.
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if is_cancelled() => return Err(Error::Cancelled),
                Err(Errno::WOULDBLOCK) => thread::sleep(TICK),
                other => break other.map_err(|e| failed(e.into()))?,
            }
        }
        Ok(Lock(Some(file)))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(file) = &self.0 {
            let _ = flock(file, FlockOperation::Unlock);
        }
    }
}
