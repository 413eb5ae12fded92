//! macOS: `sysctl` and `ps`.

use std::process::{Command, Stdio};
use std::time::Duration;

/// Returns the output of a command, or `None` if it fails.
fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|text| output.status.success() && !text.is_empty())
}

pub(super) fn total_memory() -> Option<u64> {
    said("sysctl", &["-n", "hw.memsize"])?.parse().ok()
}

/// Returns `None`, because macOS has no cgroups.
pub(super) fn memory_limit() -> Option<u64> {
    None
}

pub(super) fn oom_kills() -> u64 {
    0
}

pub(super) fn boot_id() -> String {
    said("sysctl", &["-n", "kern.bootsessionuuid"]).unwrap_or_default()
}

/// Returns 0, because the value is not available for this process alone.
pub(super) fn peak_rss_bytes() -> u64 {
    0
}

pub(super) fn rss_bytes() -> u64 {
    let kilobytes = said("ps", &["-o", "rss=", "-p", &std::process::id().to_string()]);
    kilobytes.and_then(|text| text.parse::<u64>().ok()).map_or(0, |kb| kb * 1024)
}

pub(super) fn reset_peak_rss() {}

/// Returns zero, because the value is not available.
pub(super) fn process_age() -> Duration {
    Duration::ZERO
}

/// Returns a hash of the start time of a running process. Returns `None` if the process has ended.
pub(super) fn started(pid: &str) -> Option<u64> {
    let own;
    let pid = if pid == "self" {
        own = std::process::id().to_string();
        &own
    } else {
        pid
    };
    let text = said("ps", &["-o", "state=,lstart=", "-p", pid])?;
    let (state, date) = text.split_once(' ')?;
    (!state.starts_with('Z')).then(|| xxhash_rust::xxh3::xxh3_64(date.trim().as_bytes()))
}

/// Returns an empty string, because all processes share one namespace.
pub(super) fn namespace() -> String {
    String::new()
}
