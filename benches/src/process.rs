//! Child processes that print one line of JSON.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::Failure;

/// A time limit that only a hanging process reaches.
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(600);

/// Runs a command and parses the last line of its standard output.
///
/// Both streams go to files. An unread pipe would block the process, and a reader thread would
/// share its cores.
pub(crate) fn json<T: DeserializeOwned>(
    command: &mut Command,
    limit: Duration,
) -> Result<T, Failure> {
    let stdout = checked(command, limit)?;
    let line = stdout.lines().rfind(|l| !l.trim().is_empty()).ok_or("printed nothing")?;
    serde_json::from_str(line).map_err(|e| format!("invalid last line `{line}`: {e}").into())
}

/// Runs a command and returns its standard output. Its standard error is shown if it fails.
pub(crate) fn checked(command: &mut Command, limit: Duration) -> Result<String, Failure> {
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Err(format!("exceeded the time limit of {} s", limit.as_secs()).into());
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    if status.success() {
        return Ok(text(&mut stdout)?);
    }
    eprintln!("{}", text(&mut stderr)?.trim_end());
    Err(format!("failed: {status}").into())
}

fn text(file: &mut File) -> std::io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the folder of the peers' scripts.
fn peers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

/// Returns the user's Python interpreter with the peers, if set.
fn given_python() -> Option<OsString> {
    std::env::var_os("FREESTONE_PEERS_PYTHON").filter(|p| !p.is_empty())
}

/// Creates the peers' environment if it is missing, with downloads.
pub(crate) fn set_up_peers() -> Result<(), Failure> {
    if given_python().is_some() {
        return Ok(());
    }
    eprintln!("installing the peers");
    checked(Command::new("sh").arg(peers().join("setup.sh")), TIME_LIMIT)
        .map_err(|e| format!("cannot run the peers' setup.sh: {e}"))?;
    Ok(())
}

/// Returns the command of a peers' script.
pub(crate) fn script(name: &str) -> Command {
    let mut command =
        Command::new(given_python().unwrap_or_else(|| peers().join(".venv/bin/python").into()));
    command.arg(peers().join(name));
    command
}

/// Returns a command of this program.
pub(crate) fn own(subcommand: &str) -> Result<Command, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(subcommand);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_last_line_counts() {
        assert_eq!(json::<u32>(&mut shell("echo noise; echo 7; echo"), TIME_LIMIT).unwrap(), 7);
        assert!(json::<u32>(&mut shell("true"), TIME_LIMIT).is_err());
        assert!(
            json::<u32>(&mut shell("echo 7; exit 3"), TIME_LIMIT)
                .unwrap_err()
                .to_string()
                .contains("failed")
        );
    }

    #[test]
    fn what_hangs_is_stopped() {
        let error =
            json::<u32>(&mut shell("exec sleep 60"), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("time limit"), "{error}");
    }
}
