//! Links the C++ standard library statically into the worker. A codec (snappy, in blosc) requires
//! it, and Lambda's system may lack it or have another version.
//!
//! The linker first searches a folder that holds only the static library. If the compiler has no
//! static library, the shared one is linked, and `freestone lambda package` reports that.

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

/// Returns the path of the compiler's static library.
fn library() -> Option<PathBuf> {
    let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let output = Command::new(compiler).arg(format!("-print-file-name={LIBRARY}")).output().ok()?;
    let path = Path::new(std::str::from_utf8(&output.stdout).ok()?.trim()).to_owned();
    // A compiler without the library prints the bare name.
    path.is_absolute().then_some(path)
}
