//! What AWS Lambda takes as a function's program: a zip with one file, `bootstrap`, that runs on
//! what Lambda has.
//!
//! Whether it does is read from the program itself: for which machine it is, which shared libraries
//! it wants, and which version of the C library.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use object::Endianness;
use object::elf::{DT_NEEDED, EM_X86_64, ET_DYN, ET_EXEC, FileHeader64};
use object::read::elf::{Dyn, FileHeader};
use thiserror::Error;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// The C library of the runtime `provided.al2023`.
const GLIBC: (u32, u32) = (2, 34);
/// Shared libraries that it has, of those that programs of Rust want.
const LIBRARIES: [&str; 7] = [
    "libc.so.6",
    "libm.so.6",
    "libgcc_s.so.1",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "ld-linux-x86-64.so.2",
];
/// Longer zips cannot be given to Lambda directly.
const MAX_ZIP_BYTES: u64 = 50_000_000;
/// Nor may the unpacked program be longer.
const MAX_PROGRAM_BYTES: u64 = 250_000_000;

/// Why there is no package.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum PackageError {
    #[error("{} cannot be read: {error}", path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{} is no program for x86-64 Linux: {why}", path.display())]
    NotAProgram { path: PathBuf, why: String },
    #[error(
        "{} needs version {}.{} of the C library, Lambda's provided.al2023 has {}.{}: build it on \
            a system that has no newer one, such as Amazon Linux 2023",
        path.display(), wants.0, wants.1, GLIBC.0, GLIBC.1
    )]
    Glibc { path: PathBuf, wants: (u32, u32) },
    #[error("{} needs the shared library {library}, which Lambda does not have: link it \
        statically", path.display())]
    Library { path: PathBuf, library: String },
    #[error(
        "the package would have {bytes} bytes, Lambda takes {most}: build the worker with `strip = \
            true` in its profile"
    )]
    TooLong { bytes: u64, most: u64 },
    #[error("{} cannot be written: {why}", path.display())]
    Write { path: PathBuf, why: String },
}

/// What was packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Bytes of the program.
    pub program_bytes: u64,
    /// Bytes of the zip.
    pub zip_bytes: u64,
    /// The newest version of the C library that a symbol of the program wants; `None` if it is
    /// linked statically.
    pub glibc: Option<(u32, u32)>,
}

/// Packs a worker program for Lambda. The same program gives the same bytes.
///
/// # Errors
/// Where Lambda could not run it, or files fail. Then there is no zip.
pub fn package(program: &Path, zip: &Path) -> Result<Package, PackageError> {
    let bytes = std::fs::read(program)
        .map_err(|error| PackageError::Read { path: program.to_owned(), error })?;
    let wants =
        wants(&bytes).map_err(|why| PackageError::NotAProgram { path: program.to_owned(), why })?;
    if let Some(wants) = wants.glibc.filter(|v| *v > GLIBC) {
        return Err(PackageError::Glibc { path: program.to_owned(), wants });
    }
    if let Some(library) = wants.libraries.into_iter().find(|l| !LIBRARIES.contains(&l.as_str())) {
        return Err(PackageError::Library { path: program.to_owned(), library });
    }
    let too_long = |bytes: u64, most: u64| {
        if bytes > most { Err(PackageError::TooLong { bytes, most }) } else { Ok(bytes) }
    };
    let program_bytes = too_long(bytes.len() as u64, MAX_PROGRAM_BYTES)?;
    let packed = packed(&bytes)
        .map_err(|e| PackageError::Write { path: zip.to_owned(), why: e.to_string() })?;
    let zip_bytes = too_long(packed.len() as u64, MAX_ZIP_BYTES)?;
    let write = || {
        zip.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        File::create(zip)?.write_all(&packed)
    };
    write().map_err(|e| PackageError::Write { path: zip.to_owned(), why: e.to_string() })?;
    Ok(Package { program_bytes, zip_bytes, glibc: wants.glibc })
}

/// What a program wants of the system.
#[derive(Debug, PartialEq, Eq)]
struct Wants {
    glibc: Option<(u32, u32)>,
    libraries: Vec<String>,
}

/// Reads what a program wants; why it is none, if it is none.
fn wants(bytes: &[u8]) -> Result<Wants, String> {
    let text = |e: object::Error| e.to_string();
    let header = FileHeader64::<Endianness>::parse(bytes).map_err(text)?;
    let endian = header.endian().map_err(text)?;
    if header.e_machine.get(endian) != EM_X86_64
        || ![ET_DYN, ET_EXEC].contains(&header.e_type.get(endian))
    {
        return Err("it is for another machine, or no program".to_owned());
    }
    let sections = header.sections(endian, bytes).map_err(text)?;
    let mut wants = Wants { glibc: None, libraries: Vec::new() };
    let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if let Some((entries, link)) = sections.dynamic(endian, bytes).map_err(text)? {
        let strings = sections.strings(endian, bytes, link).map_err(text)?;
        for entry in entries.iter().filter(|e| e.tag(endian) == DT_NEEDED) {
            wants.libraries.push(name(entry.string(endian, strings).map_err(text)?));
        }
    }
    if let Some((mut files, link)) = sections.gnu_verneed(endian, bytes).map_err(text)? {
        let strings = sections.strings(endian, bytes, link).map_err(text)?;
        while let Some((_, mut versions)) = files.next().map_err(text)? {
            while let Some(version) = versions.next().map_err(text)? {
                wants.glibc =
                    wants.glibc.max(glibc(&name(version.name(endian, strings).map_err(text)?)));
            }
        }
    }
    Ok(wants)
}

/// The number in `GLIBC_2.34`.
fn glibc(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.strip_prefix("GLIBC_")?.split('.').map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn packed(program: &[u8]) -> zip::result::ZipResult<Vec<u8>> {
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

    /// A program that wants the C library and nothing else.
    const PROGRAM: &str = "/bin/true";

    #[test]
    fn a_program_is_packed_and_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let (this, zip) = (PathBuf::from(PROGRAM), folder.path().join("new/worker.zip"));
        let bytes = std::fs::read(&this).unwrap();
        let wants = wants(&bytes).unwrap();
        assert!(wants.libraries.iter().any(|l| l == "libc.so.6"), "{wants:?}");
        assert!(wants.glibc.is_some_and(|v| v >= (2, 2)), "{wants:?}");
        match package(&this, &zip) {
            Ok(package) => {
                assert_eq!(
                    (package.program_bytes, package.zip_bytes),
                    (bytes.len() as u64, std::fs::metadata(&zip).unwrap().len())
                );
                let mut archive = zip::ZipArchive::new(File::open(&zip).unwrap()).unwrap();
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
            // A system that is newer than Lambda's.
            Err(error) => {
                assert!(matches!(error, PackageError::Glibc { .. }) && !zip.exists(), "{error}")
            }
        }
    }

    #[test]
    fn what_lambda_cannot_run_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (path, zip) = (folder.path().join("program"), folder.path().join("zip"));
        let check = |bytes: &[u8], says: &str| {
            std::fs::write(&path, bytes).unwrap();
            let error = package(&path, &zip).unwrap_err().to_string();
            assert!(error.contains(says) && !zip.exists(), "{error}");
        };
        check(b"#!/bin/sh\necho\n", "is no program for x86-64");
        let this = std::fs::read(PROGRAM).unwrap();
        check(&this[..100], "is no program for x86-64");
        let mut arm = this.clone();
        arm[18] = 183;
        check(&arm, "another machine");
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
