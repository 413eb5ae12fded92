//! Memory cgroups, version 1 or 2. The kernel kills processes that exceed their cgroup's limit.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{io, process};

/// The directory in which cgroups are created.
#[derive(Clone, Debug)]
pub(crate) struct Parent {
    folder: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A cgroup, removed on drop. Its processes must have ended by then.
#[derive(Debug)]
pub(crate) struct Cgroup {
    folder: PathBuf,
    version: Version,
}

/// Returns the directory in which this process may create memory cgroups: `FREESTONE_CGROUP` if it
/// is set, else the root of the hierarchy.
///
/// # Errors
/// Returns an error if no cgroup can be created there.
pub(crate) fn parent() -> io::Result<Parent> {
    let base = Path::new("/sys/fs/cgroup");
    let one = base.join("memory");
    let given = std::env::var_os("FREESTONE_CGROUP").map(PathBuf::from);
    let is_one = one.join("memory.limit_in_bytes").exists();
    let parent = Parent {
        version: if is_one { Version::One } else { Version::Two },
        folder: given.unwrap_or_else(|| if is_one { one } else { base.to_owned() }),
    };
    if parent.version == Version::Two {
        let enabled = fs::read_to_string(parent.folder.join("cgroup.subtree_control"))?;
        if !enabled.split_whitespace().any(|c| c == "memory") {
            fs::write(parent.folder.join("cgroup.subtree_control"), "+memory")?;
        }
    }
    // Permission is tested by creating a cgroup.
    parent.make(1 << 30).map(drop)?;
    Ok(parent)
}

impl Parent {
    /// Creates a cgroup with a limit in bytes, without swap.
    pub(crate) fn make(&self, bytes: u64) -> io::Result<Cgroup> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "freestone-lambda-{}-{}",
            process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let cgroup = Cgroup { folder: self.folder.join(name), version: self.version };
        fs::create_dir(&cgroup.folder)?;
        match self.version {
            Version::One => {
                fs::write(cgroup.folder.join("memory.limit_in_bytes"), bytes.to_string())?
            }
            Version::Two => {
                fs::write(cgroup.folder.join("memory.max"), bytes.to_string())?;
                // The file does not exist on systems without swap.
                let _ = fs::write(cgroup.folder.join("memory.swap.max"), "0");
            }
        }
        Ok(cgroup)
    }
}

impl Cgroup {
    /// Opens the file to which a process writes `0` to join the cgroup.
    pub(crate) fn procs(&self) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.folder.join("cgroup.procs"))
    }

    /// Returns the peak memory usage in bytes.
    pub(crate) fn max_bytes(&self) -> Option<u64> {
        let file =
            if self.version == Version::One { "memory.max_usage_in_bytes" } else { "memory.peak" };
        fs::read_to_string(self.folder.join(file)).ok()?.trim().parse().ok()
    }

    /// Returns the number of processes that the OOM killer ended.
    pub(crate) fn oom_kills(&self) -> u64 {
        let file =
            if self.version == Version::One { "memory.oom_control" } else { "memory.events" };
        let text = fs::read_to_string(self.folder.join(file)).unwrap_or_default();
        text.lines()
            .find_map(|l| l.strip_prefix("oom_kill "))
            .and_then(|n| n.trim().parse().ok())
            .unwrap_or(0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A killed process may take a moment to leave the cgroup.
        for _ in 0..100 {
            match fs::remove_dir(&self.folder) {
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(Duration::from_millis(5))
                }
                _ => return,
            }
        }
    }
}
