//! Machine resources (CPUs, memory, cgroup limits), and this process's usage of them.
//!
//! Linux and macOS on 64-bit processors are supported. What only one of them tells is in a file of
//! its own; where macOS does not tell it, the function says what it returns instead.

#[cfg(target_os = "linux")]
#[allow(clippy::disallowed_methods, reason = "what the system does not tell is no error")]
#[path = "machine/linux.rs"]
mod system;
#[cfg(target_os = "macos")]
#[path = "machine/macos.rs"]
mod system;

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
compile_error!(
    "Freestone supports Linux and macOS: on Windows, build it in the Windows Subsystem for Linux"
);
#[cfg(not(target_pointer_width = "64"))]
compile_error!("Freestone supports 64-bit processors only: sizes of arrays are 64-bit numbers");

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The memory that is assumed if the system does not report its own, in bytes.
const UNKNOWN_MEMORY_BYTES: u64 = 4_000_000_000;

/// Bytes of memory that this process may use: the machine's, or its memory cgroup's limit if that
/// is lower.
pub fn memory_bytes() -> u64 {
    let machine = system::total_memory().unwrap_or(UNKNOWN_MEMORY_BYTES);
    system::memory_limit().map_or(machine, |limit| limit.min(machine))
}

/// Names this start of this machine; empty where the system does not tell.
pub fn boot_id() -> String {
    system::boot_id()
}

/// How often the system has ended a process of this process's memory cgroup for want of memory; 0
/// where there is none.
pub fn oom_kills() -> u64 {
    system::oom_kills()
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The highest resident memory of this process so far, in bytes; 0 where the system does not tell.
pub fn peak_rss_bytes() -> u64 {
    system::peak_rss_bytes()
}

/// The resident memory of this process, in bytes; 0 where the system does not tell.
pub fn rss_bytes() -> u64 {
    system::rss_bytes()
}

/// How long ago this process was started, to a hundredth of a second; 0 where the system does not
/// tell.
pub fn process_age() -> Duration {
    system::process_age()
}

/// Starts [`peak_rss_bytes`] anew from what is resident now, where the system allows it.
pub fn reset_peak_rss() {
    system::reset_peak_rss();
}

/// A process, such that others can tell whether it still runs: on the same start of the same
/// machine, among the same processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// [`boot_id`].
    pub boot: String,
    /// Names the processes that see each other.
    pub namespace: String,
    /// Its number there.
    pub pid: u32,
    /// When it was started, as the system tells it: numbers are used again.
    pub started: u64,
}

impl ProcessId {
    /// This process.
    pub fn own() -> ProcessId {
        ProcessId::of(std::process::id())
    }

    /// A process that this one sees.
    pub fn of(pid: u32) -> ProcessId {
        ProcessId {
            boot: boot_id(),
            namespace: system::namespace(),
            pid,
            started: system::started(&pid.to_string()).unwrap_or(0),
        }
    }

    /// True if it was one that this process would see, and it is not there any more.
    pub fn is_gone(&self) -> bool {
        let now = ProcessId::of(self.pid);
        // Where those of others are hidden, the first one is.
        let sees_all = system::started("1").is_some();
        sees_all
            && !self.boot.is_empty()
            && (&self.boot, &self.namespace) == (&now.boot, &now.namespace)
            && self.started != now.started
    }
}

/// CPU time of this process in nanoseconds, all threads.
pub fn process_cpu_ns() -> u64 {
    clock(rustix::time::ClockId::ProcessCPUTime)
}

/// CPU time of this thread in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    clock(rustix::time::ClockId::ThreadCPUTime)
}

fn clock(id: rustix::time::ClockId) -> u64 {
    let now = rustix::time::clock_gettime(id);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
