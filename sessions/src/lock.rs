//! The lock of a local repository.
//!
//! File systems have no compare-and-swap. Icechunk alone loses concurrent commits to one directory
//! while it reports success (up to a tenth of them, measured). Operations that change a branch or
//! other metadata of a repository in a directory therefore hold an exclusive lock on a file there.
//!
//! The lock excludes programs that use this crate, on one machine or on file systems that share
//! `flock` between machines. It does not exclude other programs, whose concurrent commits to the
//! same directory can be lost. The lock of a process that ends is released at once.

use std::fs::{self, File};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::Error;
use crate::location::Location;

/// The polling interval while another process holds the lock.
const TICK: Duration = Duration::from_millis(5);

/// A lock on a repository, released when dropped.
#[derive(Debug)]
pub(crate) struct Lock(Option<File>);

impl Lock {
    /// Waits for the lock of a local repository, unless cancelled. Other repositories need no lock.
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
            // All waiters poll, because the system would prefer a blocked waiter over pollers.
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
