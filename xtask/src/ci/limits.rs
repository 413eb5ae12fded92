//! Limits on the length of Rust files and lines. rustfmt does not wrap comments, strings and macro
//! bodies.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;

/// The longest file, in lines.
const MAX_LINES: usize = 600;
/// The longest line, in characters.
const MAX_WIDTH: usize = 100;

/// Checks all Rust files of the repository and returns their number.
///
/// # Errors
///
/// Lists every file and line over a limit.
pub(crate) fn check(root: &Path) -> Result<u64> {
    let mut files = Vec::new();
    collect(root, &mut files)?;
    let mut problems = Vec::new();
    for file in &files {
        let name = file.strip_prefix(root).unwrap_or(file).display().to_string();
        problems.extend(problems_of(&name, &fs::read_to_string(file)?));
    }
    if problems.is_empty() {
        return Ok(files.len() as u64);
    }
    problems.sort();
    Err(format!("files or lines that are too long:\n{}", problems.join("\n")).into())
}

/// Collects the Rust files of a folder, except in hidden folders and in target folders.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" {
                collect(&path, files)?;
            }
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn problems_of(name: &str, text: &str) -> Vec<String> {
    let n_lines = text.lines().count();
    let mut problems = Vec::new();
    if n_lines > MAX_LINES {
        problems.push(format!("{name}: {n_lines} lines, expected at most {MAX_LINES}"));
    }
    for (index, line) in text.lines().enumerate() {
        let width = line.chars().count();
        if width > MAX_WIDTH {
            let line = index + 1;
            problems
                .push(format!("{name}:{line}: {width} characters, expected at most {MAX_WIDTH}"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_and_lines_are_reported_with_their_place() {
        assert!(problems_of("a.rs", &"é".repeat(MAX_WIDTH)).is_empty());
        let text = format!("//\n{}\n", "é".repeat(MAX_WIDTH + 1));
        assert_eq!(problems_of("a.rs", &text), ["a.rs:2: 101 characters, expected at most 100"]);
        assert!(problems_of("a.rs", &"\n".repeat(MAX_LINES)).is_empty());
        let text = "\n".repeat(MAX_LINES + 1);
        assert_eq!(problems_of("a.rs", &text), ["a.rs: 601 lines, expected at most 600"]);
    }
}
