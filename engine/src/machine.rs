//! Machine resources (CPUs, memory, cgroup limits), and this process's usage of them.
//!
//! Linux and macOS on 64-bit processors are supported. Each has a file for its own interfaces. The
//! functions document what they return if macOS does not provide a value.

#[cfg(target_os = "linux")]
#[allow(clippy::disallowed_methods, reason = "missing system information is not an error")]
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

/// Returns the memory that this process may use, in bytes: the machine's memory, or the limit of
/// the memory cgroup if that is lower.
pub fn memory_bytes() -> u64 {
    let machine = system::total_memory().unwrap_or(UNKNOWN_MEMORY_BYTES);
    system::memory_limit().map_or(machine, |limit| limit.min(machine))
}

/// Returns an identifier of the current boot of this machine, or an empty string if the system
/// provides none.
pub fn boot_id() -> String {
    system::boot_id()
}

/// Returns the number of processes in this process's memory cgroup that the system has killed
/// because memory was exhausted. Returns 0 without a cgroup.
pub fn oom_kills() -> u64 {
    system::oom_kills()
}

/// Returns the number of CPUs that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Returns the peak resident memory of this process in bytes, or 0 if not available.
pub fn peak_rss_bytes() -> u64 {
    system::peak_rss_bytes()
}

/// Returns the resident memory of this process in bytes, or 0 if not available.
pub fn rss_bytes() -> u64 {
    system::rss_bytes()
}

/// Returns the age of this process with a resolution of 10 ms, or 0 if not available.
pub fn process_age() -> Duration {
    system::process_age()
}

/// Resets [`peak_rss_bytes`] to the current resident memory, if the system supports it.
pub fn reset_peak_rss() {
    system::reset_peak_rss();
}

/// An identifier of a process with which other processes can determine whether it is running. It
/// includes the boot of the machine and the process namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The [`boot_id`].
    pub boot: String,
    /// The process namespace.
    pub namespace: String,
    /// The process id in the namespace.
    pub pid: u32,
    /// The start time of the process, because ids are reused.
    pub started: u64,
}

impl ProcessId {
    /// Returns the identifier of this process.
    pub fn own() -> ProcessId {
        ProcessId::of(std::process::id())
    }

    /// Returns the identifier of a process in this process's namespace.
    pub fn of(pid: u32) -> ProcessId {
        ProcessId {
            boot: boot_id(),
            namespace: system::namespace(),
            pid,
            started: system::started(&pid.to_string()).unwrap_or(0),
        }
    }

    /// Returns true if the process is known to have ended. Returns false if it is on another
    /// machine or in another namespace.
    pub fn is_gone(&self) -> bool {
        let now = ProcessId::of(self.pid);
        // Process 1 is hidden if the processes of other users are.
        let sees_all = system::started("1").is_some();
        sees_all
            && !self.boot.is_empty()
            && (&self.boot, &self.namespace) == (&now.boot, &now.namespace)
            && self.started != now.started
    }
}

/// Returns the CPU time of all threads of this process in nanoseconds.
pub fn process_cpu_ns() -> u64 {
    clock(rustix::time::ClockId::ProcessCPUTime)
}

/// Returns the CPU time of this thread in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    clock(rustix::time::ClockId::ThreadCPUTime)
}

fn clock(id: rustix::time::ClockId) -> u64 {
    let now = rustix::time::clock_gettime(id);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
