//! Command-line arguments for limits and executor of a computation.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use freestone::{LambdaExecutor, Processes, Serial, Threads};
use freestone_engine::environment;
use freestone_engine::executor::{Executor, ExecutorError};
use freestone_engine::spec::{Settings, Spec, SpecError, parse_duration, parse_size};

/// Limits and executor of a computation. Absent arguments come from `FREESTONE_…` variables,
/// `freestone.toml` or the defaults.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Resource options (defaults: FREESTONE_… variables, freestone.toml)")]
pub struct Limits {
    /// Maximum memory of a task, such as 200MB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub allowed_mem: Option<u64>,
    /// Part of `--allowed-mem` reserved for the program itself
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub reserved_mem: Option<u64>,
    /// Maximum memory of the local process
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub local_mem: Option<u64>,
    /// Directory or URL for intermediate arrays, plans and journals
    #[arg(long, value_name = "LOCATION")]
    pub work_dir: Option<String>,
    /// Number of threads or worker processes
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Maximum retries per task
    #[arg(long, value_name = "N")]
    pub retries: Option<u32>,
    /// Maximum time of a task, such as 10m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub task_timeout: Option<Duration>,
    /// Maximum time of the run, such as 2h; the run can then be resumed
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub deadline: Option<Duration>,
    /// Executor of tasks: serial, threads, processes, lambda or lambda:FUNCTION
    #[arg(long, value_name = "EXECUTOR", default_value = "threads")]
    pub executor: ExecutorName,
}

/// The name of an executor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecutorName {
    /// One task at a time in this process.
    Serial,
    /// Threads of this process.
    Threads,
    /// Processes of this program, whose `main` must call [`serve`](freestone::serve) for the
    /// argument [`WORKER_ARGUMENT`](freestone::WORKER_ARGUMENT).
    Processes,
    /// AWS Lambda, with the function's name or that in `FREESTONE_LAMBDA_FUNCTION`.
    Lambda(Option<String>),
}

impl FromStr for ExecutorName {
    type Err = String;

    fn from_str(text: &str) -> Result<ExecutorName, String> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("serial", "") => Ok(ExecutorName::Serial),
            ("threads", "") => Ok(ExecutorName::Threads),
            ("processes", "") => Ok(ExecutorName::Processes),
            ("lambda", "") => Ok(ExecutorName::Lambda(None)),
            ("lambda", function) => Ok(ExecutorName::Lambda(Some(function.to_owned()))),
            _ => Err("expected serial, threads, processes, lambda or lambda:FUNCTION".into()),
        }
    }
}

/// The default `parallelism` of plans for AWS Lambda: the initial limit of concurrent invocations
/// of an account.
const LAMBDA_PARALLELISM: u64 = 1000;

impl Limits {
    /// Returns the specification from these arguments, environment, file and defaults.
    ///
    /// # Errors
    /// As [`Spec::load`].
    pub fn spec(&self) -> Result<Spec, SpecError> {
        let parallelism =
            matches!(self.executor, ExecutorName::Lambda(_)).then_some(LAMBDA_PARALLELISM);
        Spec::load_over(self.settings(), Settings { parallelism, ..Settings::default() })
    }

    /// Returns the settings that these arguments set.
    pub fn settings(&self) -> Settings {
        Settings {
            work_dir: self.work_dir.clone(),
            allowed_mem: self.allowed_mem,
            reserved_mem: self.reserved_mem,
            local_mem: self.local_mem,
            threads: self.threads,
            retries: self.retries,
            task_timeout: self.task_timeout,
            deadline: self.deadline,
            ..Settings::default()
        }
    }

    /// Returns the executor.
    ///
    /// # Errors
    /// Returns an error if the path of this program is unknown, which worker processes require, or
    /// if AWS Lambda's function or region is not set.
    pub fn executor(&self, spec: &Spec) -> Result<Box<dyn Executor>, ExecutorError> {
        Ok(match &self.executor {
            ExecutorName::Serial => Box::new(Serial),
            ExecutorName::Threads => Box::new(Threads::new(spec.threads)),
            ExecutorName::Processes => {
                let start = |e: std::io::Error| ExecutorError::Start {
                    command: "this program".into(),
                    message: e.to_string(),
                };
                Box::new(Processes::of_this_program(spec.threads).map_err(start)?)
            }
            ExecutorName::Lambda(function) => lambda(function.as_deref(), spec)?,
        })
    }
}

/// Returns the executor for a function. The maximum of concurrent invocations is the plan's
/// parallelism or `FREESTONE_LAMBDA_CONCURRENCY`.
fn lambda(function: Option<&str>, spec: &Spec) -> Result<Box<dyn Executor>, ExecutorError> {
    let variable = |name: &str| std::env::var(name).ok();
    let executor = LambdaExecutor::from_env(function, variable)?;
    let concurrency = match variable(environment::LAMBDA_CONCURRENCY).filter(|v| !v.is_empty()) {
        Some(text) => text.parse().map_err(|_| ExecutorError::Unavailable {
            worker: "on AWS Lambda".into(),
            message: format!(
                "invalid FREESTONE_LAMBDA_CONCURRENCY `{text}`: expected a whole number"
            ),
        })?,
        None => usize::try_from(spec.parallelism).unwrap_or(usize::MAX),
    };
    Ok(Box::new(executor.concurrency(concurrency)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executors_have_names() {
        let check = |text: &str, expect: Option<ExecutorName>| {
            assert_eq!(text.parse().ok(), expect, "{text}")
        };
        check("threads", Some(ExecutorName::Threads));
        check("lambda", Some(ExecutorName::Lambda(None)));
        check("lambda:f", Some(ExecutorName::Lambda(Some("f".into()))));
        check("lambda:f:live", Some(ExecutorName::Lambda(Some("f:live".into()))));
        check("threads:4", None);
        check("cloud", None);
    }
}
