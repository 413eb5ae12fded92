//! What a computation may use, on a command line.

use std::time::Duration;

use clap::{Args, ValueEnum};
use freestone_engine::executor::{Executor, ExecutorError};
use freestone_engine::spec::{Settings, Spec, SpecError, parse_duration, parse_size};
use freestone_executors::{Processes, Serial, Threads};

/// What a computation may use. What is not given comes from FREESTONE_… variables, freestone.toml, or the defaults.
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
    /// Where tasks run.
    #[arg(long, value_enum, default_value = "threads")]
    pub executor: ExecutorName,
}

/// The executors that run on this machine.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ExecutorName {
    /// One task after the other.
    Serial,
    /// In this process.
    Threads,
    /// In processes of this program, whose `main` must call [`serve`](crate::serve) when it is asked to.
    Processes,
}

impl Limits {
    /// Together with environment, file and defaults.
    ///
    /// # Errors
    /// As [`Spec::load`].
    pub fn spec(&self) -> Result<Spec, SpecError> {
        Spec::load(self.settings())
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
    /// Where the system does not say which program this is, so that it could be started again.
    pub fn executor(&self, spec: &Spec) -> Result<Box<dyn Executor>, ExecutorError> {
        Ok(match self.executor {
            ExecutorName::Serial => Box::new(Serial),
            ExecutorName::Threads => Box::new(Threads::new(spec.threads)),
            ExecutorName::Processes => {
                let start = |e: std::io::Error| ExecutorError::Start { command: "this program".into(), message: e.to_string() };
                Box::new(Processes::of_this_program(spec.threads).map_err(start)?)
            }
        })
    }
}
