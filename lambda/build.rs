//! Links the C++ library into the worker: one of the codecs (snappy, in blosc) wants it, and
//! Lambda's system is not bound to have it, or the same.
//!
//! A folder that has only the static library, and is searched first, does it. Where there is none,
//! the shared one is linked, and `freestone lambda package` will say so.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const LIBRARY: &str = "libstdc++.a";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CXX");
    if env::var("CARGO_CFG_TARGET_ENV").as_deref() != Ok("gnu") {
        return;
    }
    if let (Some(library), Some(folder)) = (library(), env::var_os("OUT_DIR").map(PathBuf::from))
        && fs::copy(&library, folder.join(LIBRARY)).is_ok()
    {
        println!("cargo::rustc-link-search=native={}", folder.display());
    }
}

/// Where the compiler has its static library.
fn library() -> Option<PathBuf> {
    let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let output = Command::new(compiler).arg(format!("-print-file-name={LIBRARY}")).output().ok()?;
    let path = Path::new(std::str::from_utf8(&output.stdout).ok()?.trim()).to_owned();
    // A compiler that has none gives back the bare name.
    path.is_absolute().then_some(path)
}
