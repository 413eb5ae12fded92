//! What the machine has, and what this process has used of it.

use std::fs;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Bytes of memory that this process may use: the machine's, or its memory cgroup's limit if that is lower.
pub fn memory_bytes() -> u64 {
    let machine = line_value(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:").unwrap_or(4_000_000_000);
    cgroup_limit().map_or(machine, |limit| limit.min(machine))
}

/// The limit of the memory cgroup that this process is in (version 2, then 1); `None` if there is none.
fn cgroup_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let file = if id == "0" {
                format!("/sys/fs/cgroup{path}/memory.max")
            } else if controllers.split(',').any(|c| c == "memory") {
                format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")
            } else {
                return None;
            };
            fs::read_to_string(file).ok()?.trim().parse().ok()
        })
        .min()
}

/// Names this start of this machine; empty where the system does not tell.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// How often the system has ended a process of this process's memory cgroup for want of memory; 0 where there is none.
pub fn oom_kills() -> u64 {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let kills = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let file = if id == "0" {
            format!("/sys/fs/cgroup{path}/memory.events")
        } else if controllers.split(',').any(|c| c == "memory") {
            format!("/sys/fs/cgroup/memory{path}/memory.oom_control")
        } else {
            return None;
        };
        let text = fs::read_to_string(file).ok()?;
        text.lines().find_map(|l| l.strip_prefix("oom_kill "))?.trim().parse().ok()
    };
    groups.lines().filter_map(kills).max().unwrap_or(0)
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The highest resident memory of this process so far (`VmHWM`), in bytes; 0 where the system does not tell.
///
/// `getrusage` is not used: its figure survives `exec`, so a worker would report its parent's.
pub fn peak_rss_bytes() -> u64 {
    line_value(&fs::read_to_string("/proc/self/status").unwrap_or_default(), "VmHWM:").unwrap_or(0)
}

/// The resident memory of this process (`VmRSS`), in bytes; 0 where the system does not tell.
pub fn rss_bytes() -> u64 {
    line_value(&fs::read_to_string("/proc/self/status").unwrap_or_default(), "VmRSS:").unwrap_or(0)
}

/// How long ago this process was started, to a hundredth of a second; 0 where the system does not tell.
pub fn process_age() -> Duration {
    let started = started("self").map(|ticks| Duration::from_millis(10 * ticks));
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    started.map_or(Duration::ZERO, |s| Duration::new(now.tv_sec as u64, now.tv_nsec as u32).saturating_sub(s))
}

/// When a process that has not ended was started, in hundredths of a second since the machine's start.
fn started(pid: &str) -> Option<u64> {
    // The fields after the command's name, which is in brackets: the first is the state, the start is the 22nd of all.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    fields.nth(18)?.parse().ok().filter(|_| !ended)
}

/// A process, such that others can tell whether it still runs: on the same start of the same machine, among the same processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// [`boot_id`].
    pub boot: String,
    /// Names the processes that see each other.
    pub namespace: String,
    /// Its number there.
    pub pid: u32,
    /// When it was started, in hundredths of a second since the machine's start: numbers are used again.
    pub started: u64,
}

impl ProcessId {
    /// This process.
    pub fn own() -> ProcessId {
        ProcessId::of(std::process::id())
    }

    /// A process that this one sees.
    pub fn of(pid: u32) -> ProcessId {
        let namespace = fs::read_link("/proc/self/ns/pid").map_or_else(|_| String::new(), |n| n.display().to_string());
        ProcessId { boot: boot_id(), namespace, pid, started: started(&pid.to_string()).unwrap_or(0) }
    }

    /// True if it was one that this process would see, and it is not there any more.
    pub fn is_gone(&self) -> bool {
        let now = ProcessId::of(self.pid);
        // Where those of others are hidden, the first one is.
        let sees_all = started("1").is_some();
        sees_all && !self.boot.is_empty() && (&self.boot, &self.namespace) == (&now.boot, &now.namespace) && self.started != now.started
    }
}

/// Starts [`peak_rss_bytes`] anew from what is resident now, where the system allows it.
pub fn reset_peak_rss() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// CPU time of this process in nanoseconds, all threads.
pub fn process_cpu_ns() -> u64 {
    clock(rustix::thread::ClockId::ProcessCPUTime)
}

/// CPU time of this thread in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    clock(rustix::thread::ClockId::ThreadCPUTime)
}

fn clock(id: rustix::thread::ClockId) -> u64 {
    let now = rustix::time::clock_gettime(id);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The value of a line like `VmHWM:  1234 kB`, in bytes.
fn line_value(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.starts_with(name))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
