//! `freestone lambda`: the worker for AWS Lambda.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::Subcommand;
use freestone_cli::package::package;

use super::{Failure, say};

#[derive(Subcommand)]
pub(crate) enum Action {
    /// Makes the zip that AWS Lambda takes as the function's program, and checks that Lambda can
    /// run it.
    Package {
        /// The worker program: by itself the one named bootstrap beside this program.
        #[arg(long)]
        bootstrap: Option<PathBuf>,
        /// Builds this package's program bootstrap with cargo first, in the current directory.
        #[arg(long, value_name = "PACKAGE", num_args = 0..=1, default_missing_value = "freestone-lambda", conflicts_with = "bootstrap")]
        build: Option<String>,
        /// Where the zip goes.
        #[arg(long, short, default_value = "target/lambda/freestone.zip")]
        output: PathBuf,
    },
}

pub(crate) fn run(action: &Action) -> Result<(), Failure> {
    let Action::Package { bootstrap, build, output } = action;
    let program = match (bootstrap, build) {
        (Some(program), _) => program.clone(),
        (None, Some(package)) => built(package)?,
        (None, None) => {
            let beside = std::env::current_exe()
                .map_err(|e| Failure::Usage(e.to_string()))?
                .with_file_name("bootstrap");
            if !beside.is_file() {
                return Err(Failure::Usage(format!(
                    "there is no {}: name the worker with --bootstrap, or have it made with \
                        --build",
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
    say(&format!(
        "{}: {} of {}, for provided.al2023 on x86_64 (needs {glibc})",
        output.display(),
        megabytes(made.zip_bytes),
        megabytes(made.program_bytes)
    ))
}

/// Builds a package's program `bootstrap`; where it is then.
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
        .map_err(|e| Failure::Usage(format!("cargo cannot be run: {e}")))?;
    if !output.status.success() {
        return Err(Failure::Usage("cargo has built nothing".into()));
    }
    let lines = String::from_utf8_lossy(&output.stdout);
    let mut programs = lines.lines().filter_map(|line| {
        serde_json::from_str::<serde_json::Value>(line).ok()?["executable"]
            .as_str()
            .map(PathBuf::from)
    });
    programs
        .next_back()
        .ok_or_else(|| Failure::Usage("cargo does not say where the program is".into()))
}
