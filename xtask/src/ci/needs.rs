//! Programs that suites need from the system.
//!
//! Packages of the system are installed only if `CI=true`; elsewhere an error names what is
//! missing. Python packages go to environments in the target folder.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::context::{Context, run, stdout_of, succeeds};
use crate::Result;

const PYTHON_PACKAGES: [&str; 3] = ["ministack==1.5.33", "boto3==1.43.106", "cfn-lint==1.58.0"];

const AZURITE: &str = "azurite@3.35.0";

const REQUIREMENTS: &str = "tests/interop/requirements.txt";
const REQUIREMENTS_ICECHUNK: &str = "tests/interop/requirements-icechunk.txt";

/// Exits successfully if this Python can make virtual environments and is at least 3.11.
const PYTHON_CHECK: &str =
    "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11) or sys.version_info >= (4,))";

/// Prints the version of a Python that can make virtual environments.
const PYTHON_VERSION: &str =
    r#"import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])"#;

/// Checks for rustfmt, clippy and a C++ compiler.
pub(crate) fn rust_tools(context: &Context) -> Result<()> {
    for (tool, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if !succeeds(context.cargo([tool, "--version"])) {
            return Err(
                format!("missing {component} (hint: rustup component add {component})").into()
            );
        }
    }
    packages(context, &[("c++", "build-essential")])
}

/// Installs the Debian packages of the commands that are missing, each given as command and
/// package.
pub(crate) fn packages(context: &Context, needed: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = needed
        .iter()
        .filter(|(command, _)| !on_path(command))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() { Ok(()) } else { install(context, &missing) }
}

fn install(context: &Context, packages: &[&str]) -> Result<()> {
    let names = packages.join(" ");
    if env::var_os("CI").is_none_or(|value| value != "true") {
        let hint = "install them, or set CI=true to let this program install them";
        return Err(format!("missing Debian packages: {names} (hint: {hint})").into());
    }
    if !on_path("apt-get") {
        return Err(format!("cannot install {names}: expected Debian's apt-get").into());
    }
    let mut update = context.command("apt-get");
    update.args(["update", "-qq"]);
    run(update)?;
    let mut install = context.command("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    install.args(["install", "-qq", "--no-install-recommends"]).args(packages);
    run(install)
}

fn on_path(command: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(command).is_file())
}

/// The virtual environment of the suites that need Python: Zarr, Xarray, an S3 server, AWS's own
/// client, and a linter of AWS templates.
///
/// Returns the folder of its programs. It is made again when its requirements have changed.
pub(crate) fn python(context: &Context) -> Result<PathBuf> {
    let folder = context.target.join("ci-venv");
    let requirements = fs::read_to_string(context.root.join(REQUIREMENTS))?;
    let stamp = format!("{requirements}{}\n", PYTHON_PACKAGES.join("\n"));
    if !is_current(&folder, &stamp) {
        let mut python = find_python(context);
        if python.is_none() {
            install(context, &["python3", "python3-venv"])?;
            python = find_python(context);
        }
        let python = python.ok_or("missing Python 3.11 or newer with venv")?;
        let mut arguments = vec!["-r", REQUIREMENTS];
        arguments.extend(PYTHON_PACKAGES);
        make_environment(context, &python, &folder, &arguments)?;
        fs::write(folder.join("stamp"), stamp)?;
    }
    Ok(folder.join("bin"))
}

/// The folder of Azurite's programs. The package is installed again when its version changes.
pub(crate) fn azurite(context: &Context) -> Result<PathBuf> {
    packages(context, &[("node", "nodejs"), ("npm", "npm")])?;
    let folder = context.target.join("ci-node");
    let is_current = fs::read_to_string(folder.join("stamp")).is_ok_and(|found| found == AZURITE);
    if !is_current {
        fs::create_dir_all(&folder)?;
        // npm looks for this file in the folders above, too.
        fs::write(folder.join("package.json"), "{}\n")?;
        let mut npm = context.command("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(&folder).arg(AZURITE);
        run(npm)?;
        fs::write(folder.join("stamp"), AZURITE)?;
    }
    Ok(folder.join("node_modules/.bin"))
}

fn find_python(context: &Context) -> Option<String> {
    let candidates = ["python3", "python3.11", "python3.12", "python3.13", "python3.14"];
    let suitable = |python: &&str| {
        let mut command = context.command(python);
        command.args(["-c", PYTHON_CHECK]);
        succeeds(command)
    };
    candidates.into_iter().find(suitable).map(String::from)
}

/// The virtual environments with Python's icechunk, one for each version of Python that is found.
///
/// Python 3.11 has its version 1, which knows format 1 only; Python 3.12 has version 2. Returns
/// their Pythons.
pub(crate) fn icechunk_pythons(context: &Context) -> Result<Vec<PathBuf>> {
    let stamp = fs::read_to_string(context.root.join(REQUIREMENTS_ICECHUNK))?;
    let mut environments = Vec::new();
    for python in icechunk_candidates() {
        let mut version = context.command(&python);
        version.args(["-c", PYTHON_VERSION]).stderr(std::process::Stdio::null());
        let Ok(output) = version.output() else { continue };
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let folder = context.target.join(format!("ci-venv-icechunk-{version}"));
        let supported = output.status.success() && is_supported(&version);
        if !supported || environments.contains(&folder) {
            continue;
        }
        if !is_current(&folder, &stamp) {
            let arguments = ["-r", REQUIREMENTS_ICECHUNK];
            make_environment(context, &python, &folder, &arguments)?;
            fs::write(folder.join("stamp"), &stamp)?;
        }
        environments.push(folder);
    }
    if environments.is_empty() {
        return Err("missing Python 3.11 or newer with venv".into());
    }
    Ok(environments.into_iter().map(|folder| folder.join("bin/python")).collect())
}

fn is_supported(version: &str) -> bool {
    let minor = version.strip_prefix("3.").and_then(|minor| minor.parse::<u32>().ok());
    minor.is_some_and(|minor| (11..=19).contains(&minor))
}

/// Python 3.11, 3.12 and the default one on the path, then those of pyenv.
fn icechunk_candidates() -> Vec<String> {
    let mut candidates = ["python3.11", "python3.12", "python3"].map(String::from).to_vec();
    let home = env::var_os("HOME").unwrap_or_default();
    let mut versions: Vec<PathBuf> = fs::read_dir(Path::new(&home).join(".pyenv/versions"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("3.11.") || name.starts_with("3.12.")
        })
        .collect();
    versions.sort();
    let programs = versions.iter().map(|v| v.join("bin/python3").to_string_lossy().into_owned());
    candidates.extend(programs);
    candidates
}

/// Returns whether a virtual environment is complete. Its stamp is written last, so that an
/// interrupted installation is repeated.
fn is_current(folder: &Path, stamp: &str) -> bool {
    folder.join("bin/python").exists()
        && fs::read_to_string(folder.join("stamp")).is_ok_and(|found| found == stamp)
}

fn make_environment(
    context: &Context,
    python: &str,
    folder: &Path,
    requirements: &[&str],
) -> Result<()> {
    let mut venv = context.command(python);
    venv.args(["-m", "venv", "--clear"]).arg(folder);
    run(venv)?;
    let mut pip = context.command(folder.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(requirements);
    run(pip)
}

/// Returns how `unshare` makes a mount namespace: other users than root are root of a user
/// namespace.
pub(crate) fn mount_namespace(context: &Context) -> Result<&'static [&'static str]> {
    packages(context, &[("unshare", "util-linux")])?;
    let mut id = context.command("id");
    id.arg("-u");
    let is_root = stdout_of(id)?.trim() == "0";
    let options: &[&str] = if is_root { &["--mount"] } else { &["--mount", "--map-root-user"] };
    let mut unshare = context.command("unshare");
    unshare.args(options).arg("true");
    if succeeds(unshare) {
        Ok(options)
    } else {
        Err("cannot make a mount namespace: expected root with CAP_SYS_ADMIN or user namespaces"
            .into())
    }
}
