//! Formats of figures on the page.

use std::time::{Duration, UNIX_EPOCH};

use crate::drawing::grouped;

/// Formats a count with its noun: `1 task`, `2 000 tasks`.
pub(super) fn counted(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(n), if n == 1 { "" } else { "s" })
}

/// Formats a fraction of at most 1 in percent.
pub(super) fn percent(fraction: f64) -> String {
    format!("{:.0} %", 100.0 * fraction.min(1.0))
}

/// Formats microseconds with about three digits: `850 µs`, `1.23 s`, `2 min 05 s`.
pub(super) fn duration(us: u64) -> String {
    let (s, min) = (us / 1_000_000, us / 60_000_000);
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{:.0} ms", us as f64 / 1e3),
        1_000_000..10_000_000 => format!("{:.2} s", us as f64 / 1e6),
        10_000_000..100_000_000 => format!("{:.1} s", us as f64 / 1e6),
        100_000_000..3_600_000_000 => format!("{min} min {:02} s", s % 60),
        _ => format!("{} h {:02} min", min / 60, min % 60),
    }
}

/// Formats a time since the Unix epoch as `2026-11-22 13:07:10`, in UTC.
pub(super) fn date(since_epoch: Duration) -> String {
    let text = humantime::format_rfc3339_seconds(UNIX_EPOCH + since_epoch).to_string();
    text.replace('T', " ").trim_end_matches('Z').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_about_three_digits() {
        for (us, expected) in [
            (0, "0 µs"),
            (999, "999 µs"),
            (1_234, "1.23 ms"),
            (99_940, "99.9 ms"),
            (850_400, "850 ms"),
            (1_234_000, "1.23 s"),
            (99_000_000, "99.0 s"),
            (125_000_000, "2 min 05 s"),
            (7_500_000_000, "2 h 05 min"),
        ] {
            assert_eq!(duration(us), expected);
        }
    }

    #[test]
    fn dates_have_no_time_zone() {
        for (seconds, expected) in
            [(0, "1970-01-01 00:00:00"), (1_795_352_830, "2026-11-22 13:07:10")]
        {
            assert_eq!(date(Duration::from_secs(seconds)), expected);
        }
    }
}
