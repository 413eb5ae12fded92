//! The running suite: its environment, commands, logs and counts.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::iter;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;

/// Prefixes of environment variables that no suite inherits: settings of Freestone must not decide
/// what tests see, and those of `cargo run` would make cargo compile packages again.
const REMOVED: [&str; 3] = ["FREESTONE_", "CARGO_PKG_", "CARGO_MANIFEST_"];

/// What the suites of one run share.
#[derive(Debug)]
pub(crate) struct Context {
    /// The root of the repository.
    pub(crate) root: PathBuf,
    /// Cargo's target folder.
    pub(crate) target: PathBuf,
    /// The folder of logs and outputs.
    pub(crate) out: PathBuf,
    /// Whether the outputs of the suite `example` are those of this run.
    pub(crate) example_ran: bool,
    suite: &'static str,
    environment: BTreeMap<OsString, OsString>,
    removed: Vec<String>,
    n_passed: u64,
    n_ignored_by_default: u64,
    n_ignored_run: u64,
}

/// Counts of the tests in the output of `cargo test`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct TestCounts {
    /// Tests that passed, of test programs without a failure.
    pub(crate) passed: u64,
    /// Tests that were ignored.
    pub(crate) ignored: u64,
}

impl Context {
    /// Prepares the folder of outputs.
    pub(crate) fn new() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(folder) => std::path::absolute(folder)?,
            None => root.join("target"),
        };
        let out = target.join("ci");
        let context = Self {
            root,
            target,
            out,
            example_ran: false,
            suite: "",
            environment: BTreeMap::new(),
            removed: Vec::new(),
            n_passed: 0,
            n_ignored_by_default: 0,
            n_ignored_run: 0,
        };
        context.remove_temporary_files()?;
        fs::create_dir_all(context.temporary_files())?;
        Ok(context)
    }

    /// Starts the counts and the environment of a suite.
    pub(crate) fn begin(&mut self, suite: &'static str) {
        self.suite = suite;
        self.n_passed = 0;
        self.environment.clear();
        self.removed = REMOVED.map(String::from).to_vec();
        self.set("CARGO_TERM_COLOR", "never");
        // On the disk of the build: files in a /tmp in memory would count as memory of the tests.
        self.set("TMPDIR", self.temporary_files());
        if env::var_os("CARGO_TARGET_DIR").is_some() {
            // A relative path would be relative to the root now.
            self.set("CARGO_TARGET_DIR", self.target.clone());
        }
    }

    /// Sets an environment variable of all later commands of the suite.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<OsString>) {
        self.environment.insert(name.into(), value.into());
    }

    /// Removes the inherited environment variables with a prefix from all later commands of the
    /// suite.
    pub(crate) fn unset(&mut self, prefix: &str) {
        self.removed.push(prefix.into());
    }

    /// Returns a command that runs in the root of the repository with the environment of the suite.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if self.removed.iter().any(|prefix| text.starts_with(prefix.as_str())) {
                command.env_remove(&name);
            }
        }
        command.envs(&self.environment);
        command
    }

    /// Returns a cargo command.
    pub(crate) fn cargo<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        let mut command = self.command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(arguments);
        command
    }

    /// Returns the path of a program of the release build.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }

    /// Adds to the suite's count of what passed.
    pub(crate) fn passed(&mut self, count: u64) {
        self.n_passed += count;
    }

    /// What passed in the suite.
    pub(crate) fn n_passed(&self) -> u64 {
        self.n_passed
    }

    /// The tests that the suite `tests` ignored.
    pub(crate) fn n_ignored_by_default(&self) -> u64 {
        self.n_ignored_by_default
    }

    /// The ignored tests that other suites ran.
    pub(crate) fn n_ignored_run(&self) -> u64 {
        self.n_ignored_run
    }

    /// Runs all tests of the workspace except ignored ones.
    pub(crate) fn default_tests(&mut self) -> Result<()> {
        let log = self.cargo_test(self.cargo(["test", "--release", "--workspace"]))?;
        let counts = TestCounts::of(&log);
        self.n_ignored_by_default = counts.ignored;
        self.passed(counts.passed);
        Ok(())
    }

    /// Runs the ignored end-to-end tests with a prefix, and returns their output.
    ///
    /// They are ignored because they need what the suite has set up, and fail without it.
    pub(crate) fn ignored_tests(&mut self, prefix: &str, options: &[&str]) -> Result<String> {
        self.ignored_tests_of(&["end_to_end", "sessions"], prefix, options)
    }

    /// Runs the ignored tests with a prefix in some test programs, and returns their output.
    pub(crate) fn ignored_tests_of(
        &mut self,
        programs: &[&str],
        prefix: &str,
        options: &[&str],
    ) -> Result<String> {
        self.run_ignored_tests(self.ignored_tests_command(programs, prefix, options))
    }

    /// Returns the command that runs the ignored tests with a prefix.
    pub(crate) fn ignored_tests_command(
        &self,
        programs: &[&str],
        prefix: &str,
        options: &[&str],
    ) -> Command {
        let mut command = self.cargo(["test", "--release", "--workspace"]);
        for program in programs {
            command.args(["--test", program]);
        }
        command.args(["--", "--ignored", prefix]).args(options);
        command
    }

    /// Runs a command that runs ignored tests, and counts them.
    pub(crate) fn run_ignored_tests(&mut self, command: Command) -> Result<String> {
        let log = self.cargo_test(command)?;
        let counts = TestCounts::of(&log);
        if counts.ignored > 0 {
            return Err("some tests were skipped".into());
        }
        self.n_ignored_run += counts.passed;
        self.passed(counts.passed);
        Ok(log)
    }

    fn cargo_test(&self, command: Command) -> Result<String> {
        tee(command, &self.out.join(format!("{}.tests.log", self.suite)))
    }

    /// Removes the temporary files of all suites.
    pub(crate) fn remove_temporary_files(&self) -> Result<()> {
        remove_dir(&self.temporary_files())
    }

    fn temporary_files(&self) -> PathBuf {
        self.out.join("tmp")
    }
}

impl TestCounts {
    /// Adds up the result lines of test programs.
    pub(crate) fn of(log: &str) -> Self {
        let mut counts = Self::default();
        for line in log.lines() {
            let Some(fields) = line.strip_prefix("test result: ok. ") else { continue };
            for field in fields.split("; ") {
                match field.split_once(' ') {
                    Some((n, "passed")) => counts.passed += n.parse::<u64>().unwrap_or(0),
                    Some((n, "ignored")) => counts.ignored += n.parse::<u64>().unwrap_or(0),
                    _ => {}
                }
            }
        }
        counts
    }
}

/// Runs a command.
pub(crate) fn run(mut command: Command) -> Result<()> {
    let status = command.status().map_err(|e| cannot_start(&command, &e))?;
    if status.success() { Ok(()) } else { Err(failed(&command, status)) }
}

/// Runs a command without its output, and returns whether it was successful.
pub(crate) fn succeeds(mut command: Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// Runs a command and returns its standard output.
pub(crate) fn stdout_of(mut command: Command) -> Result<String> {
    command.stderr(std::process::Stdio::inherit());
    let output = command.output().map_err(|e| cannot_start(&command, &e))?;
    if !output.status.success() {
        return Err(failed(&command, output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command, copies its output and errors to the terminal and to a log, and returns them.
pub(crate) fn tee(mut command: Command, log: &Path) -> Result<String> {
    let (reader, writer) = io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().map_err(|e| cannot_start(&command, &e))?;
    let description = describe(&command);
    // The command holds the pipe's writing ends; reading would not end while it is open here.
    drop(command);
    let text = copy_lines(reader, log)?;
    let status = child.wait()?;
    if status.success() { Ok(text) } else { Err(format!("{description}: {status}").into()) }
}

fn copy_lines(reader: impl io::Read, log: &Path) -> Result<String> {
    let mut reader = BufReader::new(reader);
    let mut log = File::create(log)?;
    let mut text = String::new();
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        io::stdout().write_all(&line)?;
        log.write_all(&line)?;
        text.push_str(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok(text)
}

/// Removes a folder if it exists.
pub(crate) fn remove_dir(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("cannot remove `{}`: {error}", folder.display()).into())
        }
        _ => Ok(()),
    }
}

/// Counts the lines that satisfy a predicate.
pub(crate) fn count_lines(text: &str, predicate: impl Fn(&str) -> bool) -> u64 {
    text.lines().filter(|line| predicate(line)).count() as u64
}

/// Adds up the numbers of lines `N rows`.
pub(crate) fn sum_rows(log: &str) -> u64 {
    log.lines().filter_map(|line| line.strip_suffix(" rows")?.parse::<u64>().ok()).sum()
}

/// Adds up the numbers of lines `N cases on …`, which may follow the name of a test.
pub(crate) fn sum_cases(log: &str) -> u64 {
    let of_line = |line: &str| -> Option<u64> {
        let text = line.rsplit_once("... ").map_or(line, |(_, text)| text);
        text.split_once(" cases on ")?.0.parse().ok()
    };
    log.lines().filter_map(of_line).sum()
}

fn cannot_start(command: &Command, error: &io::Error) -> Box<dyn std::error::Error> {
    format!("cannot start `{}`: {error}", command.get_program().to_string_lossy()).into()
}

fn failed(command: &Command, status: std::process::ExitStatus) -> Box<dyn std::error::Error> {
    format!("{}: {status}", describe(command)).into()
}

/// The command line in backquotes.
fn describe(command: &Command) -> String {
    let words = iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
    format!("`{}`", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_over_test_programs() {
        let log = "running 3 tests\n\
            test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out;\n\
            test result: FAILED. 7 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n\
            test result: ok. 40 passed; 0 failed; 2 ignored; 0 measured; 5 filtered out;\n";
        assert_eq!(TestCounts::of(log), TestCounts { passed: 42, ignored: 3 });
    }

    #[test]
    fn rows_and_cases_are_read_from_output_of_tests() {
        assert_eq!(sum_rows("438 rows\n12 rows of a table\nx rows\n2 rows\n"), 440);
        let log = "200 cases on threads: 12 faults\n\
            test faults_model ... 100 cases on processes: 3 faults\n";
        assert_eq!(sum_cases(log), 300);
    }

    #[test]
    fn tee_returns_both_streams_and_fails_with_the_command() {
        let folder = env::temp_dir().join(format!("xtask-tee-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let log = folder.join("log");
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        assert_eq!(tee(shell("echo a; echo b >&2"), &log).unwrap(), "a\nb\n");
        assert_eq!(fs::read_to_string(&log).unwrap(), "a\nb\n");
        assert!(tee(shell("exit 3"), &log).unwrap_err().to_string().contains("exit status: 3"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
