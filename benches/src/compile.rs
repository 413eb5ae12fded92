//! CPU time of compiling: after a change in an elementwise loop, and from nothing.
//!
//! The CPU time is that of `cargo` and everything that it starts. Dependencies must be there; nothing is downloaded.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::{Failure, process};

/// CPU seconds until the test binary is linked again, in the profile for development.
const CHANGE_SECONDS: f64 = 60.0;
/// CPU seconds of a release build from nothing: of the library and the command, and of a program on the library without default features.
const COLD_SECONDS: f64 = 720.0;
const PROGRAM_SECONDS: f64 = 300.0;
/// The loops that are changed, in the workspace.
const LOOPS: &str = "engine/kernels/src/apply.rs";
const TIME_LIMIT: Duration = Duration::from_secs(3600);

/// Measures and prints what a change takes, and with `cold` also builds from nothing; tells whether all stay below their bars.
pub(crate) fn measure(cold: bool) -> Result<bool, Failure> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the workspace has no root")?;
    let test_binary = ["test", "--profile", "quick", "--workspace", "--test", "end_to_end", "--no-run", "--offline"];
    cargo(root, &test_binary)?;
    // Cargo goes by this time alone, and compiles whole crates: what is changed does not matter.
    File::options().append(true).open(root.join(LOOPS))?.set_modified(SystemTime::now())?;
    let mut hold = judged("compile_time: a change in an elementwise loop, until the test binary is linked", cargo(root, &test_binary)?, CHANGE_SECONDS);
    if cold {
        let folder = tempfile::Builder::new().prefix("cold-").tempdir_in(root.join("target"))?;
        let target = folder.path().display().to_string();
        hold &= judged("compile_time: a release build from nothing", cargo(root, &["build", "--release", "--offline", "--target-dir", &target])?, COLD_SECONDS);
        let program = tempfile::Builder::new().prefix("program-").tempdir_in(root.join("target"))?;
        write_program(root, program.path())?;
        let built = cargo(program.path(), &["build", "--release", "--offline", "--target-dir", &program.path().join("target").display().to_string()])?;
        hold &= judged("compile_time: a program on the library without default features, from nothing", built, PROGRAM_SECONDS);
    }
    Ok(hold)
}

/// A user's program: a workspace of its own, so that none of this workspace's profiles apply to it.
fn write_program(root: &Path, folder: &Path) -> Result<(), Failure> {
    let manifest = format!(
        "[workspace]\n[package]\nname = \"program\"\nedition = \"2024\"\n[dependencies]\nfreestone = {{ path = {:?}, default-features = false }}\n",
        root.display().to_string()
    );
    fs::write(folder.join("Cargo.toml"), manifest)?;
    fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock"))?;
    fs::create_dir(folder.join("src"))?;
    fs::write(folder.join("src/main.rs"), "fn main() {\n    println!(\"{:?}\", freestone::Settings::default().resolve());\n}\n")?;
    Ok(())
}

fn judged(what: &str, seconds: f64, bar: f64) -> bool {
    println!("{:<5} {what}: {seconds:.1} s of CPU, bar {bar} s", if seconds <= bar { "ok" } else { "FAIL" });
    seconds <= bar
}

/// CPU seconds of a run of cargo with all its children.
fn cargo(root: &Path, arguments: &[&str]) -> Result<f64, Failure> {
    let before = children_cpu_s()?;
    process::checked(Command::new("cargo").current_dir(root).args(arguments), TIME_LIMIT)?;
    Ok(children_cpu_s()? - before)
}

/// CPU seconds of children that have ended, and of theirs.
fn children_cpu_s() -> Result<f64, Failure> {
    /// Linux counts in these for people, whatever its own clock is.
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The second field is a name in brackets, which may have spaces; `cutime` and `cstime` are fields 16 and 17.
    let fields = stat.rsplit_once(')').ok_or("/proc/self/stat is not understood")?.1;
    let ticks: Vec<f64> = fields.split_whitespace().skip(13).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_children_is_counted() {
        let before = children_cpu_s().unwrap();
        process::checked(Command::new("sh").args(["-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"]), TIME_LIMIT).unwrap();
        assert!(children_cpu_s().unwrap() > before);
    }
}
