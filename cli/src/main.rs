//! The `freestone` command: its arguments and exit codes. [`command`] has the subcommands.

mod command;

use std::process;

use clap::{CommandFactory, Parser, Subcommand};
use command::Failure;
use command::console::{self, Console, Verbosity};
use freestone_cli::logging;

#[global_allocator]
static ALLOCATOR: freestone_allocator::Allocator = freestone_allocator::Allocator;

/// Compute on chunked arrays larger than memory, within a fixed memory limit
#[derive(Parser)]
#[command(name = "freestone", version, disable_help_subcommand = true, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    output: OutputArgs,
}

const EXIT_CODES: &str = "\
Exit codes:
  0    Success
  1    Failure of a task or of storage
  2    Invalid usage
  3    Memory limit exceeded
  4    Invalid input
  5    Conflict with existing data or another process
  124  Deadline exceeded; the run can be resumed
  130  Interrupted; the run can be resumed";

#[derive(clap::Args)]
#[command(next_help_heading = "Output options")]
struct OutputArgs {
    /// Print the whole plan before a run
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Print only data and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Log events at LEVEL, such as info, or by module as in RUST_LOG
    #[arg(long, global = true, value_name = "LEVEL")]
    #[arg(env = "FREESTONE_LOG", hide_env_values = true)]
    log: Option<logging::Filter>,
}

#[derive(Subcommand)]
enum Command {
    /// Compute arrays from expressions and store them
    ///
    /// Expressions use Python's syntax and the functions of the Array API standard, which
    /// `freestone functions` lists. All expressions are computed in one plan. Example:
    ///
    /// freestone compute "mean(u*v, axis=0)" -i u=STORE/u -i v=STORE/v -o uv.zarr
    Compute(command::compute::Arguments),
    /// Print and explain the plan of a computation without running it
    Plan(command::compute::PlanArguments),
    /// List the functions of expressions, or explain one of them
    Functions {
        /// Function to explain
        name: Option<String>,
        /// Print the index of all functions as Markdown (docs/functions.md)
        #[arg(long, conflicts_with = "name")]
        markdown: bool,
    },
    /// Print shape, dtype, chunks, codecs and attributes of an array, or the arrays of a group
    Info {
        /// Path, file://…, s3://… or http(s)://… location
        store: String,
    },
    /// Copy an array into chunks of another shape
    Rechunk(command::rechunk::Arguments),
    /// Resume a run that was interrupted, killed or failed
    ///
    /// Finished tasks are not repeated.
    Resume(command::resume::Arguments),
    /// List the runs of a work directory and remove those that cannot be resumed
    Clean(command::clean::Arguments),
    /// Manage sessions that several programs write and one commit publishes
    #[command(subcommand)]
    Session(command::session::Arguments),
    /// Show history and branches of a repository, and remove old data
    #[command(subcommand)]
    Repo(command::repo::Arguments),
    /// Package the worker for AWS Lambda
    #[command(subcommand)]
    Lambda(command::lambda::Action),
    /// Print a completion script for a shell
    Completions {
        /// Shell that reads the script
        shell: clap_complete::Shell,
    },
    /// Write man pages
    #[command(hide = true)]
    Man {
        /// Directory for the pages
        dir: std::path::PathBuf,
    },
    /// Run as a worker process, started by a driver
    #[command(name = freestone::WORKER_ARGUMENT, hide = true)]
    Worker,
}

fn main() {
    let mut definition = Arguments::command();
    // Global options belong to the subcommands only once they are built.
    definition.build();
    let arguments = command::negative::mark(std::env::args_os(), &definition);
    let Arguments { command, output } = Arguments::parse_from(arguments);
    let verbosity = match (output.quiet, output.verbose) {
        (true, _) => Verbosity::Quiet,
        (_, true) => Verbosity::Verbose,
        _ => Verbosity::Normal,
    };
    let console = Console { verbosity, logs: output.log.is_some() };
    if let Some(filter) = output.log {
        logging::init(filter, console::has_colors());
    }
    let code = match run(command, &console) {
        Ok(()) | Err(Failure::ClosedPipe) => 0,
        Err(failure) => {
            console::error(&failure);
            failure.exit_code() as i32
        }
    };
    process::exit(code);
}

fn run(command: Command, console: &Console) -> Result<(), Failure> {
    match command {
        Command::Compute(arguments) => command::compute::compute(&arguments, console),
        Command::Plan(arguments) => command::compute::plan(&arguments, console),
        Command::Functions { name, markdown } => {
            command::functions::functions(name.as_deref(), markdown)
        }
        Command::Info { store } => command::info::info(&store),
        Command::Rechunk(arguments) => command::rechunk::rechunk(&arguments, console),
        Command::Resume(arguments) => command::resume::resume(&arguments, console),
        Command::Clean(arguments) => command::clean::clean(&arguments, console),
        Command::Session(arguments) => command::session::session(&arguments, console),
        Command::Repo(arguments) => command::repo::repo(&arguments, console),
        Command::Lambda(action) => command::lambda::run(&action, console),
        Command::Completions { shell } => command::docs::completions(shell, Arguments::command()),
        Command::Man { dir } => command::docs::man(&dir, Arguments::command()),
        Command::Worker => freestone::serve(&freestone::KernelRegistry::new())
            .map_err(|e| Failure::usage(e.to_string())),
    }
}
