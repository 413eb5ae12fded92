//! Linux: `/proc`, and memory cgroups of versions 1 and 2.

use std::fs;
use std::time::Duration;

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

pub(super) fn total_memory() -> Option<u64> {
    line_value(&read("/proc/meminfo"), "MemTotal:")
}

/// Returns the values that `value` parses from a file of each of this process's memory cgroups.
fn of_cgroups(v2: &str, v1: &str, value: impl Fn(&str) -> Option<u64>) -> Vec<u64> {
    let groups = read("/proc/self/cgroup");
    let values = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let file = if id == "0" {
            format!("/sys/fs/cgroup{path}/{v2}")
        } else if controllers.split(',').any(|c| c == "memory") {
            format!("/sys/fs/cgroup/memory{path}/{v1}")
        } else {
            return None;
        };
        value(&fs::read_to_string(file).ok()?)
    });
    values.collect()
}

pub(super) fn memory_limit() -> Option<u64> {
    of_cgroups("memory.max", "memory.limit_in_bytes", |text| text.trim().parse().ok())
        .into_iter()
        .min()
}

pub(super) fn oom_kills() -> u64 {
    let kills =
        |text: &str| text.lines().find_map(|l| l.strip_prefix("oom_kill "))?.trim().parse().ok();
    of_cgroups("memory.events", "memory.oom_control", kills).into_iter().max().unwrap_or(0)
}

pub(super) fn boot_id() -> String {
    read("/proc/sys/kernel/random/boot_id").trim().to_owned()
}

/// Returns the peak resident memory of this process in bytes.
///
/// `getrusage` is not used: its value survives `exec`, so a worker would report its parent's peak.
pub(super) fn peak_rss_bytes() -> u64 {
    line_value(&read("/proc/self/status"), "VmHWM:").unwrap_or(0)
}

pub(super) fn rss_bytes() -> u64 {
    line_value(&read("/proc/self/status"), "VmRSS:").unwrap_or(0)
}

pub(super) fn reset_peak_rss() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

pub(super) fn process_age() -> Duration {
    let started = started("self").map(|ticks| Duration::from_millis(10 * ticks));
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    started.map_or(Duration::ZERO, |s| {
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32).saturating_sub(s)
    })
}

/// Returns the start time of a running process, in hundredths of a second since boot. Returns
/// `None` if the process has ended.
pub(super) fn started(pid: &str) -> Option<u64> {
    // The fields after the parenthesised command name: the first is the state, and the start time
    // is field 22 of the whole line.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    fields.nth(18)?.parse().ok().filter(|_| !ended)
}

pub(super) fn namespace() -> String {
    fs::read_link("/proc/self/ns/pid").map_or_else(|_| String::new(), |n| n.display().to_string())
}

/// Returns the value of a line such as `VmHWM:  1234 kB`, in bytes.
fn line_value(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.starts_with(name))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
