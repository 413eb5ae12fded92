//! Texts of drawings: fitted to their space, escaped, and with grouped digits.

use std::fmt::Write as _;

/// Writes a text with a maximum width and a font size. A longer text is truncated.
pub(super) fn text(
    s: &mut String,
    class: &str,
    (x, y): (f64, f64),
    content: &str,
    (max_width, font_size): (f64, f64),
) {
    let _ = write!(
        s,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>",
        escaped(&fitted(content, max_width, font_size))
    );
}

/// Truncates a text to a width, with `…` at its end.
fn fitted(content: &str, max_width: f64, font_size: f64) -> String {
    if width_of(content, font_size) <= max_width {
        return content.to_owned();
    }
    let mut left = max_width - width_of("…", font_size);
    let mut kept: String = content
        .chars()
        .take_while(|c| {
            left -= char_width(*c) * font_size;
            left >= 0.0
        })
        .collect();
    kept.push('…');
    kept
}

/// Returns the approximate width of a text, which is rather too large.
pub(super) fn width_of(content: &str, font_size: f64) -> f64 {
    content.chars().map(char_width).sum::<f64>() * font_size
}

/// Returns the approximate width of a character in a sans-serif font of size 1.
fn char_width(c: char) -> f64 {
    match c {
        'i' | 'j' | 'l' | 'f' | 't' | 'r' | ' ' | '.' | ',' | ':' | ';' | '|' | '!' | '\''
        | '[' | ']' | '(' | ')' | '/' | 'I' => 0.4,
        'm' | 'w' | 'M' | 'W' | '@' | '%' | '…' => 0.95,
        'A'..='Z' => 0.74,
        '\u{1100}'.. => 1.1,
        _ => 0.61,
    }
}

/// Formats a shape as `12 × 73 × 144`.
pub(super) fn lengths(shape: &[u64]) -> String {
    if shape.is_empty() {
        "one element".into()
    } else {
        shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" × ")
    }
}

/// Formats a number with grouped digits: `1 234 567`.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{2009}');
        }
        text.push(c);
    }
    text
}

/// Formats a number in few characters: `1 234`, `12.3 M`.
pub(super) fn short(n: u64) -> String {
    match n {
        0..=99_999 => grouped(n),
        100_000..=999_999 => format!("{} k", n / 1000),
        1_000_000..=999_999_999 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.1e}", n as f64),
    }
}

/// Escapes a text for XML. Replaces characters that XML does not permit.
pub(super) fn escaped(content: &str) -> String {
    let mut text = String::with_capacity(content.len());
    for c in content.chars() {
        match c {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '"' => text.push_str("&quot;"),
            '\'' => text.push_str("&#39;"),
            '\n' | '\t' => text.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => text.push('\u{fffd}'),
            c => text.push(c),
        }
    }
    text
}
