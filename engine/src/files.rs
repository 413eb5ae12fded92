//! File functions of [`std::fs`] with errors that name the path.
//!
//! Arrays and runs are accessed through [`storage`](crate::storage), whose errors name their
//! location.
#![allow(clippy::disallowed_methods, reason = "the only module that calls std::fs")]

use std::fs::{self, Metadata, ReadDir};
use std::io::{Error, Result};
use std::path::Path;

fn named<T>(path: &Path, action: &str, result: Result<T>) -> Result<T> {
    result.map_err(|e| Error::new(e.kind(), format!("cannot {action} `{}`: {e}", path.display())))
}

/// Reads a whole file.
///
/// # Errors
/// See [`fs::read`].
pub fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    named(path.as_ref(), "read", fs::read(path.as_ref()))
}

/// Reads a whole file as UTF-8 text.
///
/// # Errors
/// See [`fs::read_to_string`].
pub fn read_to_string(path: impl AsRef<Path>) -> Result<String> {
    named(path.as_ref(), "read", fs::read_to_string(path.as_ref()))
}

/// Writes a whole file, replacing any contents.
///
/// # Errors
/// See [`fs::write`].
pub fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
    named(path.as_ref(), "write", fs::write(path.as_ref(), bytes))
}

/// Creates a file, truncating an existing one.
///
/// # Errors
/// See [`fs::File::create`].
pub fn create(path: impl AsRef<Path>) -> Result<fs::File> {
    named(path.as_ref(), "create", fs::File::create(path.as_ref()))
}

/// Opens a file with options.
///
/// # Errors
/// See [`fs::OpenOptions::open`].
pub fn open_with(options: &fs::OpenOptions, path: impl AsRef<Path>) -> Result<fs::File> {
    named(path.as_ref(), "open", options.open(path.as_ref()))
}

/// Creates a directory and all missing parents.
///
/// # Errors
/// See [`fs::create_dir_all`].
pub fn create_dir_all(path: impl AsRef<Path>) -> Result<()> {
    named(path.as_ref(), "create", fs::create_dir_all(path.as_ref()))
}

/// Removes a file.
///
/// # Errors
/// See [`fs::remove_file`].
pub fn remove_file(path: impl AsRef<Path>) -> Result<()> {
    named(path.as_ref(), "remove", fs::remove_file(path.as_ref()))
}

/// Lists a directory.
///
/// # Errors
/// See [`fs::read_dir`].
pub fn read_dir(path: impl AsRef<Path>) -> Result<ReadDir> {
    named(path.as_ref(), "list", fs::read_dir(path.as_ref()))
}

/// Returns the metadata of a file or directory.
///
/// # Errors
/// See [`fs::metadata`].
pub fn metadata(path: impl AsRef<Path>) -> Result<Metadata> {
    named(path.as_ref(), "inspect", fs::metadata(path.as_ref()))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[track_caller]
    fn check<T: std::fmt::Debug>(result: Result<T>) {
        let error = result.unwrap_err();
        assert!(
            error.to_string().contains("/no such/folder/file")
                && matches!(error.kind(), ErrorKind::NotFound),
            "{error}"
        );
    }

    #[test]
    fn errors_name_the_path() {
        let path = "/no such/folder/file";
        check(read(path));
        check(read_to_string(path));
        check(write(path, b""));
        check(create(path));
        check(open_with(fs::OpenOptions::new().read(true), path));
        check(remove_file(path));
        check(read_dir(path));
        check(metadata(path));
        let file = tempfile::NamedTempFile::new().unwrap();
        let below = file.path().join("x");
        assert!(
            create_dir_all(&below).unwrap_err().to_string().contains(&below.display().to_string())
        );
    }
}
