//! Memory cgroups, of version 1 or 2: what is in one cannot have more memory than it allows, and is
//! killed where it tries.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{io, process};

/// Where cgroups are made.
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

/// A cgroup, which is removed when the value is dropped. Its processes must be gone by then.
#[derive(Debug)]
pub(crate) struct Cgroup {
    folder: PathBuf,
    version: Version,
}

/// Where this process may make memory cgroups: below `FREESTONE_CGROUP` if that is set, else below
/// the root.
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
    // Whether it can be done is found by doing it.
    parent.make(1 << 30).map(drop)?;
    Ok(parent)
}

impl Parent {
    /// A cgroup of so many bytes, without swap.
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
                // There is none where the system has no swap.
                let _ = fs::write(cgroup.folder.join("memory.swap.max"), "0");
            }
        }
        Ok(cgroup)
    }
}

impl Cgroup {
    /// The file to which a process writes `0` to be in it.
    pub(crate) fn entrance(&self) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.folder.join("cgroup.procs"))
    }

    /// The most bytes that were in it.
    pub(crate) fn max_bytes(&self) -> Option<u64> {
        let file =
            if self.version == Version::One { "memory.max_usage_in_bytes" } else { "memory.peak" };
        fs::read_to_string(self.folder.join(file)).ok()?.trim().parse().ok()
    }

    /// How many of its processes were killed for want of memory.
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
        // A process that was killed a moment ago may still be on its way out.
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
