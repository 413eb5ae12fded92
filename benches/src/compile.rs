//! CPU time of compilation: after a change in an elementwise loop, and from a clean state.
//!
//! The CPU time includes `cargo` and all its children. Dependencies must be downloaded already.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::{Failure, process};

/// CPU seconds to relink the test binary in the development profile.
const CHANGE_SECONDS: f64 = 60.0;
/// CPU seconds of a clean release build: of the library and the command, and of a program that uses
/// the library without default features.
const COLD_SECONDS: f64 = 720.0;
const PROGRAM_SECONDS: f64 = 300.0;
/// The file of the changed loops.
const LOOPS: &str = "engine/kernels/src/apply.rs";
/// The changed line, before and after.
const LOOP: &str = "self.wrapping_add(other) }";
const CHANGED_LOOP: &str = "self.wrapping_add(other).wrapping_add(0) }";
const TIME_LIMIT: Duration = Duration::from_secs(3600);

/// Measures and prints the time after a change, and with `cold` also of clean builds. Returns true
/// if all bars hold.
pub(crate) fn measure(cold: bool) -> Result<bool, Failure> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the workspace has no root")?;
    let test_binary = [
        "test",
        "--profile",
        "quick",
        "--workspace",
        "--test",
        "end_to_end",
        "--no-run",
        "--offline",
    ];
    cargo(root, &test_binary)?;
    let edit = Edit::make(root.join(LOOPS))?;
    let changed = cargo(root, &test_binary)?;
    drop(edit);
    let mut hold = judged(
        "compile_time: a change in an elementwise loop, until the test binary is linked",
        changed,
        CHANGE_SECONDS,
    );
    if cold {
        let folder = tempfile::Builder::new().prefix("cold-").tempdir_in(root.join("target"))?;
        let target = folder.path().display().to_string();
        hold &= judged(
            "compile_time: a release build from nothing",
            cargo(root, &["build", "--release", "--offline", "--target-dir", &target])?,
            COLD_SECONDS,
        );
        let program =
            tempfile::Builder::new().prefix("program-").tempdir_in(root.join("target"))?;
        write_program(root, program.path())?;
        let built = cargo(
            program.path(),
            &[
                "build",
                "--release",
                "--offline",
                "--target-dir",
                &program.path().join("target").display().to_string(),
            ],
        )?;
        hold &= judged(
            "compile_time: a program on the library without default features, from nothing",
            built,
            PROGRAM_SECONDS,
        );
    }
    Ok(hold)
}

/// A change of one line in a source file, reverted on drop. A new modification time alone would
/// leave incremental compilation nothing to do.
struct Edit {
    file: PathBuf,
    before: String,
}

impl Edit {
    fn make(file: PathBuf) -> Result<Edit, Failure> {
        let before = fs::read_to_string(&file)?;
        let after = before.replacen(LOOP, CHANGED_LOOP, 1);
        if after == before {
            return Err(format!("`{LOOP}` is not in {}", file.display()).into());
        }
        fs::write(&file, after)?;
        Ok(Edit { file, before })
    }
}

impl Drop for Edit {
    fn drop(&mut self) {
        if let Err(e) = fs::write(&self.file, &self.before) {
            eprintln!("cannot undo the change in {}: {e}", self.file.display());
        }
    }
}

/// A user's program in a separate workspace, so that no profile of this workspace applies.
fn write_program(root: &Path, folder: &Path) -> Result<(), Failure> {
    let manifest = format!(
        "[workspace]\n[package]\nname = \"program\"\nedition = \"2024\"\n[dependencies]\nfreestone \
            = {{ path = {:?}, default-features = false }}\n",
        root.display().to_string()
    );
    fs::write(folder.join("Cargo.toml"), manifest)?;
    fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock"))?;
    fs::create_dir(folder.join("src"))?;
    fs::write(
        folder.join("src/main.rs"),
        "fn main() {\n    println!(\"{:?}\", freestone::Settings::default().resolve());\n}\n",
    )?;
    Ok(())
}

fn judged(what: &str, seconds: f64, bar: f64) -> bool {
    println!(
        "{:<5} {what}: {seconds:.1} s of CPU, bar {bar} s",
        if seconds <= bar { "ok" } else { "FAIL" }
    );
    seconds <= bar
}

/// Returns the CPU seconds of cargo and all its children.
fn cargo(root: &Path, arguments: &[&str]) -> Result<f64, Failure> {
    let before = children_cpu_s()?;
    process::checked(Command::new("cargo").current_dir(root).args(arguments), TIME_LIMIT)?;
    Ok(children_cpu_s()? - before)
}

/// Returns the CPU seconds of all ended children.
fn children_cpu_s() -> Result<f64, Failure> {
    /// Linux reports these times in units of 1/100 s.
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The second field is a name in parentheses that may contain spaces; `cutime` and `cstime` are
    // fields 16 and 17.
    let fields = stat.rsplit_once(')').ok_or("/proc/self/stat is not understood")?.1;
    let ticks: Vec<f64> =
        fields.split_whitespace().skip(13).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_children_is_counted() {
        let before = children_cpu_s().unwrap();
        process::checked(
            Command::new("sh").args(["-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"]),
            TIME_LIMIT,
        )
        .unwrap();
        assert!(children_cpu_s().unwrap() > before);
    }
}
