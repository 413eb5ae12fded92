//! What a computation may use, on a command line.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use freestone::{LambdaExecutor, Processes, Serial, Threads};
use freestone_engine::executor::{Executor, ExecutorError};
use freestone_engine::spec::{Settings, Spec, SpecError, parse_duration, parse_size};

/// What a computation may use. What is not given comes from FREESTONE_… variables, freestone.toml,
/// or the defaults.
#[derive(Args, Clone, Debug)]
pub struct Limits {
    /// Bytes that one task may hold, as in 200MB.
    #[arg(long, value_parser = parse_size)]
    pub allowed_mem: Option<u64>,
    /// Bytes of those that are not arrays.
    #[arg(long, value_parser = parse_size)]
    pub reserved_mem: Option<u64>,
    /// Bytes that the whole local process may hold.
    #[arg(long, value_parser = parse_size)]
    pub local_mem: Option<u64>,
    /// Directory or URL for intermediate arrays, plans and journals.
    #[arg(long)]
    pub work_dir: Option<String>,
    /// Threads or processes.
    #[arg(long)]
    pub threads: Option<usize>,
    /// How often a task is tried again that storage or its worker failed.
    #[arg(long)]
    pub retries: Option<u32>,
    /// What each task may take, as in 10m.
    #[arg(long, value_parser = parse_duration)]
    pub task_timeout: Option<Duration>,
    /// What the whole run may take, as in 2h; it can be resumed then.
    #[arg(long, value_parser = parse_duration)]
    pub deadline: Option<Duration>,
    /// Where tasks run: serial, threads, processes, or lambda:FUNCTION on AWS Lambda.
    #[arg(long, value_name = "EXECUTOR", default_value = "threads")]
    pub executor: ExecutorName,
}

/// The executors by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecutorName {
    /// One task after the other.
    Serial,
    /// In this process.
    Threads,
    /// In processes of this program, whose `main` must call [`serve`](freestone::serve) when it is
    /// asked to.
    Processes,
    /// On AWS Lambda: the function, if it is not the one that `FREESTONE_LAMBDA_FUNCTION` names.
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
            _ => Err("there are serial, threads, processes, lambda and lambda:FUNCTION".into()),
        }
    }
}

/// Tasks that a plan for AWS Lambda is cut for, unless it is said: as many as an account has
/// invocations at once at first.
const LAMBDA_PARALLELISM: u64 = 1000;

impl Limits {
    /// Together with environment, file and defaults.
    ///
    /// # Errors
    /// As [`Spec::load`].
    pub fn spec(&self) -> Result<Spec, SpecError> {
        let parallelism =
            matches!(self.executor, ExecutorName::Lambda(_)).then_some(LAMBDA_PARALLELISM);
        Spec::load_over(self.settings(), Settings { parallelism, ..Settings::default() })
    }

    /// What is given here.
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

    /// The executor.
    ///
    /// # Errors
    /// Where the system does not say which program this is, so that it could be started again;
    /// where no function or region is named.
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

/// Invokes a function as often at once as the plan has parts, or as `FREESTONE_LAMBDA_CONCURRENCY`
/// says.
fn lambda(function: Option<&str>, spec: &Spec) -> Result<Box<dyn Executor>, ExecutorError> {
    let variable = |name: &str| std::env::var(name).ok();
    let executor = LambdaExecutor::from_env(function, variable)?;
    let concurrency = match variable("FREESTONE_LAMBDA_CONCURRENCY").filter(|v| !v.is_empty()) {
        Some(text) => text.parse().map_err(|_| ExecutorError::Unavailable {
            worker: "on AWS Lambda".into(),
            message: format!("FREESTONE_LAMBDA_CONCURRENCY is `{text}`, which is no whole number"),
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
