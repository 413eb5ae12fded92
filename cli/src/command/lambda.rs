//! `freestone lambda`: the worker for AWS Lambda.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::Subcommand;
use freestone_cli::package::package;

use super::Failure;
use super::console::Console;

#[derive(Subcommand)]
pub(crate) enum Action {
    /// Create the zip of the function's program, and check that AWS Lambda can run it
    Package {
        /// Worker program [default: bootstrap in the directory of this program]
        #[arg(long, value_name = "FILE")]
        bootstrap: Option<PathBuf>,
        /// Build the program bootstrap of PACKAGE with cargo first [default: freestone-lambda]
        #[arg(long, value_name = "PACKAGE", num_args = 0..=1, conflicts_with = "bootstrap")]
        #[arg(default_missing_value = "freestone-lambda")]
        build: Option<String>,
        /// Location of the zip
        #[arg(long, short, value_name = "FILE", default_value = "target/lambda/freestone.zip")]
        output: PathBuf,
    },
}

pub(crate) fn run(action: &Action, console: &Console) -> Result<(), Failure> {
    let Action::Package { bootstrap, build, output } = action;
    let program = match (bootstrap, build) {
        (Some(program), _) => program.clone(),
        (None, Some(package)) => built(package)?,
        (None, None) => {
            let beside = std::env::current_exe()
                .map_err(|e| Failure::Usage(e.to_string()))?
                .with_file_name("bootstrap");
            if !beside.is_file() {
                return Err(Failure::usage(format!(
                    "worker program `{}` does not exist (hint: name it with --bootstrap, or build \
                        it with --build)",
                    beside.display()
                )));
            }
            beside
        }
    };
    let made = package(&program, output).map_err(|e| Failure::Usage(e.to_string()))?;
    let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    let glibc = made.glibc.map_or_else(
        || "no C library".to_owned(),
        |(major, minor)| format!("glibc {major}.{minor}"),
    );
    console.note(&format!(
        "{}: {} of {}, for provided.al2023 on x86_64 (needs {glibc})",
        output.display(),
        megabytes(made.zip_bytes),
        megabytes(made.program_bytes)
    ));
    Ok(())
}

/// Builds a package's program `bootstrap` and returns its path.
fn built(package: &str) -> Result<PathBuf, Failure> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = [
        "build",
        "--release",
        "--bin",
        "bootstrap",
        "--message-format",
        "json-render-diagnostics",
        "--package",
        package,
    ];
    let output = Command::new(cargo)
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| Failure::Usage(format!("cannot run cargo: {e}")))?;
    if !output.status.success() {
        return Err(Failure::Usage("cargo failed to build the worker".into()));
    }
    let lines = String::from_utf8_lossy(&output.stdout);
    let mut programs = lines.lines().filter_map(|line| {
        serde_json::from_str::<serde_json::Value>(line).ok()?["executable"]
            .as_str()
            .map(PathBuf::from)
    });
    programs.next_back().ok_or_else(|| Failure::Usage("cargo built no executable".into()))
}
