//! The default work directory: one for each user, inaccessible to other users.
//!
//! Its location is `TMPDIR`, which schedulers set for each job; else `XDG_CACHE_HOME`; else `/tmp`.
//! The first run creates the directory with mode 0700. An existing entry is used only if it is a
//! directory owned by this user with that mode. Users create other work directories themselves.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::environment::{TMPDIR, XDG_CACHE_HOME};
use crate::storage::StorageError;

/// Returns the default work directory of this user, given the environment variables.
pub(crate) fn default_work_dir(variable: impl Fn(&str) -> Option<String>) -> String {
    // The XDG Base Directory Specification requires relative paths to be ignored.
    let folder = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let user = rustix::process::geteuid().as_raw();
    let path = match (folder(TMPDIR), folder(XDG_CACHE_HOME)) {
        (Some(temporary), _) => temporary.join(format!("freestone-{user}")),
        (None, Some(cache)) => cache.join("freestone"),
        (None, None) => PathBuf::from(format!("/tmp/freestone-{user}")),
    };
    path.to_string_lossy().into_owned()
}

fn is_default(work_dir: &str) -> bool {
    work_dir == default_work_dir(|name| std::env::var(name).ok())
}

/// Creates the default work directory if it does not exist. The first write creates any other
/// directory.
///
/// # Errors
/// Returns an error if the directory cannot be created, and the errors of [`check`].
pub(crate) fn make(work_dir: &str) -> Result<(), StorageError> {
    if is_default(work_dir) {
        make_at(work_dir.as_ref(), rustix::process::geteuid().as_raw())
    } else {
        Ok(())
    }
}

/// Checks that the default work directory, if it exists, is private to this user.
///
/// # Errors
/// Returns [`StorageError::NotPrivate`] if the directory is not private.
pub(crate) fn check(work_dir: &str) -> Result<(), StorageError> {
    if is_default(work_dir) {
        check_at(work_dir.as_ref(), rustix::process::geteuid().as_raw())
    } else {
        Ok(())
    }
}

const MODE: u32 = 0o700;

fn make_at(path: &Path, user: u32) -> Result<(), StorageError> {
    let failed = |error| StorageError::io(path.display().to_string(), "create", &error);
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(MODE).create(parent).map_err(failed)?;
    }
    match DirBuilder::new().mode(MODE).create(path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(failed(e)),
        _ => check_at(path, user),
    }
}

fn check_at(path: &Path, user: u32) -> Result<(), StorageError> {
    let metadata = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| StorageError::io(path.display().to_string(), "inspect", &e))?,
    };
    let why = if metadata.is_symlink() {
        "it is a symbolic link".to_owned()
    } else if !metadata.is_dir() {
        "it is not a directory".to_owned()
    } else if metadata.uid() != user {
        format!("it is owned by user {}, expected user {user}", metadata.uid())
    } else if metadata.mode() & 0o777 != MODE {
        format!("its mode is {:o}, expected {MODE:o}", metadata.mode() & 0o777)
    } else {
        return Ok(());
    };
    Err(StorageError::NotPrivate { place: path.display().to_string(), why })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[track_caller]
    fn check_default(variables: &[(&str, &str)], expect: &str) {
        let variable = |name: &str| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        };
        let user = rustix::process::geteuid().as_raw().to_string();
        assert_eq!(default_work_dir(variable), expect.replace("UID", &user));
    }

    #[test]
    fn tmpdir_comes_before_the_users_cache() {
        check_default(
            &[("TMPDIR", "/scratch/job-7"), ("XDG_CACHE_HOME", "/home/u/.cache")],
            "/scratch/job-7/freestone-UID",
        );
        check_default(&[("XDG_CACHE_HOME", "/home/u/.cache")], "/home/u/.cache/freestone");
        check_default(&[], "/tmp/freestone-UID");
        check_default(&[("TMPDIR", ""), ("XDG_CACHE_HOME", "cache")], "/tmp/freestone-UID");
    }

    /// Checks the error for an existing entry at the path of the default work directory.
    #[track_caller]
    fn check_found(prepare: impl Fn(&Path), stranger: u32, expect: Option<&str>) {
        let folder = tempfile::tempdir().unwrap();
        let (path, user) =
            (folder.path().join("deep/freestone"), rustix::process::geteuid().as_raw() + stranger);
        fs::create_dir(folder.path().join("deep")).unwrap();
        prepare(&path);
        for result in [check_at(&path, user), make_at(&path, user)] {
            match (result, expect) {
                (Ok(()), None) => {}
                (Err(e @ StorageError::NotPrivate { .. }), Some(why)) => {
                    let said = e.to_string();
                    assert!(
                        said.contains(why)
                            && said.contains(&path.display().to_string())
                            && said.contains("FREESTONE_WORK_DIR"),
                        "{said}"
                    );
                }
                (result, expect) => panic!("{result:?}, not {expect:?}"),
            }
        }
    }

    fn made(path: &Path, mode: u32) {
        fs::create_dir(path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_a_private_directory_is_used() {
        check_found(|path| made(path, 0o700), 0, None);
        check_found(|path| made(path, 0o755), 0, Some("mode is 755"));
        check_found(|path| made(path, 0o770), 0, Some("mode is 770"));
        check_found(|path| made(path, 0o777), 0, Some("mode is 777"));
        check_found(|path| made(path, 0o700), 1, Some("owned by user"));
        check_found(|path| fs::write(path, "").unwrap(), 0, Some("not a directory"));
        check_found(|path| symlink("elsewhere", path).unwrap(), 0, Some("symbolic link"));
        let there = tempfile::tempdir().unwrap();
        check_found(|path| symlink(there.path(), path).unwrap(), 0, Some("symbolic link"));
    }

    #[test]
    fn directory_and_missing_parents_are_created_private() {
        let folder = tempfile::tempdir().unwrap();
        let (path, user) =
            (folder.path().join("cache/freestone"), rustix::process::geteuid().as_raw());
        check_at(&path, user).unwrap();
        assert!(!path.exists(), "a check creates nothing");
        make_at(&path, user).unwrap();
        make_at(&path, user).unwrap();
        for made in [path.parent().unwrap(), &path] {
            assert_eq!(fs::metadata(made).unwrap().mode() & 0o777, 0o700, "{}", made.display());
        }
    }
}
