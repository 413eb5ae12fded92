//! Packages for AWS Lambda: a zip with the function's program, `bootstrap`.
//!
//! The program's ELF headers show whether Lambda can run it: its machine, its shared libraries, and
//! the required version of the C library.

use std::io::Write;
use std::path::{Path, PathBuf};

use freestone_engine::files;
use object::Endianness;
use object::elf::{DT_NEEDED, EM_X86_64, ET_DYN, ET_EXEC, FileHeader64};
use object::read::elf::{Dyn, FileHeader};
use thiserror::Error;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// The version of the C library in the runtime `provided.al2023`.
const GLIBC: (u32, u32) = (2, 34);
/// The shared libraries in that runtime, of those that Rust programs link to.
const LIBRARIES: [&str; 7] = [
    "libc.so.6",
    "libm.so.6",
    "libgcc_s.so.1",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "ld-linux-x86-64.so.2",
];
/// The maximum size of a zip that is uploaded directly.
const MAX_ZIP_BYTES: u64 = 50_000_000;
/// The maximum size of the unpacked program.
const MAX_PROGRAM_BYTES: u64 = 250_000_000;

/// An error of packaging.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum PackageError {
    #[error("cannot read the worker program: {error}")]
    Read { error: std::io::Error },
    #[error("`{}` is not a program for x86-64 Linux: {why}", path.display())]
    NotAProgram { path: PathBuf, why: String },
    #[error(
        "`{}` requires glibc {}.{}, but Lambda's provided.al2023 has {}.{} (hint: build the \
            worker on a system with an older glibc, such as Amazon Linux 2023)",
        path.display(), wants.0, wants.1, GLIBC.0, GLIBC.1
    )]
    Glibc { path: PathBuf, wants: (u32, u32) },
    #[error(
        "`{}` requires the shared library {library}, which Lambda does not have (hint: link the \
            library statically)",
        path.display()
    )]
    Library { path: PathBuf, library: String },
    #[error(
        "package is too large: {bytes} bytes, at most {most} (hint: build the worker with `strip = \
            true` in its profile)"
    )]
    TooLong { bytes: u64, most: u64 },
    #[error("cannot write the package: {why}")]
    Write { why: String },
}

/// A package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// The size of the program in bytes.
    pub program_bytes: u64,
    /// The size of the zip in bytes.
    pub zip_bytes: u64,
    /// The newest version of the C library that a symbol requires, or `None` if it is linked
    /// statically.
    pub glibc: Option<(u32, u32)>,
}

/// Packages a worker program for Lambda. Equal programs give equal zips.
///
/// # Errors
/// Returns an error if Lambda cannot run the program, or if a file cannot be read or written. No
/// zip is written then.
pub fn package(program: &Path, zip: &Path) -> Result<Package, PackageError> {
    let bytes = files::read(program).map_err(|error| PackageError::Read { error })?;
    let required = Requirements::of(&bytes)
        .map_err(|why| PackageError::NotAProgram { path: program.to_owned(), why })?;
    if let Some(wants) = required.glibc.filter(|v| *v > GLIBC) {
        return Err(PackageError::Glibc { path: program.to_owned(), wants });
    }
    if let Some(library) = required.libraries.into_iter().find(|l| !LIBRARIES.contains(&l.as_str()))
    {
        return Err(PackageError::Library { path: program.to_owned(), library });
    }
    let program_bytes = check_size(bytes.len() as u64, MAX_PROGRAM_BYTES)?;
    let cannot_write = |why: String| PackageError::Write { why };
    let zipped = zipped(&bytes).map_err(|e| cannot_write(e.to_string()))?;
    let zip_bytes = check_size(zipped.len() as u64, MAX_ZIP_BYTES)?;
    zip.parent()
        .map_or(Ok(()), files::create_dir_all)
        .and_then(|()| files::write(zip, &zipped))
        .map_err(|e| cannot_write(e.to_string()))?;
    Ok(Package { program_bytes, zip_bytes, glibc: required.glibc })
}

fn check_size(bytes: u64, most: u64) -> Result<u64, PackageError> {
    if bytes > most { Err(PackageError::TooLong { bytes, most }) } else { Ok(bytes) }
}

/// The libraries that a program requires.
#[derive(Debug, PartialEq, Eq)]
struct Requirements {
    glibc: Option<(u32, u32)>,
    libraries: Vec<String>,
}

impl Requirements {
    /// Reads the requirements of a program from its ELF headers.
    ///
    /// # Errors
    /// Returns the reason if the bytes are not a program for x86-64 Linux.
    fn of(bytes: &[u8]) -> Result<Requirements, String> {
        let text = |e: object::Error| e.to_string();
        let header = FileHeader64::<Endianness>::parse(bytes).map_err(text)?;
        let endian = header.endian().map_err(text)?;
        if header.e_machine.get(endian) != EM_X86_64
            || ![ET_DYN, ET_EXEC].contains(&header.e_type.get(endian))
        {
            return Err("expected an ELF executable for x86-64".to_owned());
        }
        let sections = header.sections(endian, bytes).map_err(text)?;
        let mut found = Requirements { glibc: None, libraries: Vec::new() };
        let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if let Some((entries, link)) = sections.dynamic(endian, bytes).map_err(text)? {
            let strings = sections.strings(endian, bytes, link).map_err(text)?;
            for entry in entries.iter().filter(|e| e.tag(endian) == DT_NEEDED) {
                found.libraries.push(name(entry.string(endian, strings).map_err(text)?));
            }
        }
        if let Some((mut files, link)) = sections.gnu_verneed(endian, bytes).map_err(text)? {
            let strings = sections.strings(endian, bytes, link).map_err(text)?;
            while let Some((_, mut versions)) = files.next().map_err(text)? {
                while let Some(version) = versions.next().map_err(text)? {
                    let version = name(version.name(endian, strings).map_err(text)?);
                    found.glibc = found.glibc.max(glibc(&version));
                }
            }
        }
        Ok(found)
    }
}

/// Parses a version such as `GLIBC_2.34`.
fn glibc(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.strip_prefix("GLIBC_")?.split('.').map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Returns a zip with the program as its only file.
fn zipped(program: &[u8]) -> zip::result::ZipResult<Vec<u8>> {
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .compression_level(Some(9))
        .unix_permissions(0o755)
        .last_modified_time(DateTime::default());
    zip.start_file("bootstrap", options)?;
    zip.write_all(program)?;
    Ok(zip.finish()?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that requires only the C library.
    const PROGRAM: &str = "/bin/true";

    #[test]
    fn a_program_is_packaged() {
        let folder = tempfile::tempdir().unwrap();
        let (this, zip) = (PathBuf::from(PROGRAM), folder.path().join("new/worker.zip"));
        let bytes = std::fs::read(&this).unwrap();
        let wants = Requirements::of(&bytes).unwrap();
        assert!(wants.libraries.iter().any(|l| l == "libc.so.6"), "{wants:?}");
        assert!(wants.glibc.is_some_and(|v| v >= (2, 2)), "{wants:?}");
        match package(&this, &zip) {
            Ok(package) => {
                assert_eq!(
                    (package.program_bytes, package.zip_bytes),
                    (bytes.len() as u64, std::fs::metadata(&zip).unwrap().len())
                );
                let mut archive = zip::ZipArchive::new(std::fs::File::open(&zip).unwrap()).unwrap();
                let mut file = archive.by_name("bootstrap").unwrap();
                assert_eq!(file.unix_mode().map(|m| m & 0o777), Some(0o755));
                let mut back = Vec::new();
                std::io::Read::read_to_end(&mut file, &mut back).unwrap();
                assert_eq!(back, bytes);
                drop(file);
                let again = folder.path().join("again.zip");
                self::package(&this, &again).unwrap();
                assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&zip).unwrap());
            }
            // This system has a newer C library than Lambda.
            Err(error) => {
                assert!(matches!(error, PackageError::Glibc { .. }) && !zip.exists(), "{error}")
            }
        }
    }

    #[test]
    fn programs_that_lambda_cannot_run_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let (path, zip) = (folder.path().join("program"), folder.path().join("zip"));
        let check = |bytes: &[u8], says: &str| {
            std::fs::write(&path, bytes).unwrap();
            let error = package(&path, &zip).unwrap_err().to_string();
            assert!(error.contains(says) && !zip.exists(), "{error}");
        };
        check(b"#!/bin/sh\necho\n", "is not a program for x86-64");
        let this = std::fs::read(PROGRAM).unwrap();
        check(&this[..100], "is not a program for x86-64");
        let mut arm = this.clone();
        arm[18] = 183;
        check(&arm, "expected an ELF executable for x86-64");
        // A library of another name: the first `libc.so.6` of the program's strings.
        let mut other = this;
        let at = other.windows(10).position(|w| w == b"libc.so.6\0").unwrap();
        other[at..at + 9].copy_from_slice(b"libz.so.1");
        check(&other, "shared library libz.so.1");
        assert!(matches!(
            package(&folder.path().join("nothing"), &zip),
            Err(PackageError::Read { .. })
        ));
        assert_eq!(
            [
                glibc("GLIBC_2.34"),
                glibc("GLIBC_2.2.5"),
                glibc("GLIBC_ABI_DT_RELR"),
                glibc("GCC_3.0")
            ],
            [Some((2, 34)), Some((2, 2)), None, None]
        );
    }
}
