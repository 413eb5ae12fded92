//! The `freestone` command: its arguments. What they ask for is done in [`command`].

mod command;

use std::io::{self, IsTerminal, Write};
use std::process;

use clap::{CommandFactory, Parser, Subcommand};
use command::Failure;
use freestone::ExitCode;

#[global_allocator]
static ALLOCATOR: freestone_allocator::Allocator = freestone_allocator::Allocator;

/// Computes on arrays that are larger than memory, within a memory that is promised.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 over allowed_mem, 4 an input cannot be used, 5
/// something is in the way of the result, 124 over its deadline, 130 interrupted; finished work is
/// kept then.
#[derive(Parser)]
#[command(name = "freestone", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Computes arrays from expressions, as in: freestone compute "mean(u*v, axis=0)" -i u=STORE/u
    /// -i v=STORE/v -o uv.zarr
    ///
    /// Expressions are written as in Python, with the functions of the Array API standard:
    /// freestone functions lists them. All of them are one plan.
    Compute(command::compute::Arguments),
    /// Prints the plan of a computation and why it is so, and runs nothing.
    Plan(command::compute::PlanArguments),
    /// Lists the functions that expressions can use, or explains one.
    Functions {
        /// The function.
        name: Option<String>,
        /// The index of all functions as Markdown, which is docs/functions.md.
        #[arg(long, conflicts_with = "name")]
        markdown: bool,
    },
    /// Says what is stored at a location: an array's shape, dtype, chunks and codecs, or a group's
    /// arrays.
    Info {
        /// A path, file://…, s3://… or http(s)://….
        store: String,
    },
    /// Copies an array into chunks of another shape.
    Rechunk(command::rechunk::Arguments),
    /// Goes on with a run that was interrupted, killed or has failed: what it has finished is not
    /// computed again.
    Resume(command::resume::Arguments),
    /// Lists the runs in a work directory, and removes those that are of no use any more.
    Clean(command::clean::Arguments),
    /// Sessions that several programs write together, and that become visible by one commit.
    #[command(subcommand)]
    Session(command::session::Arguments),
    /// A repository's history and branches, and what it need not keep any more.
    #[command(subcommand)]
    Repo(command::repo::Arguments),
    /// The worker for AWS Lambda.
    #[command(subcommand)]
    Lambda(command::lambda::Action),
    /// Answers a driver's requests: the driver starts it.
    #[command(name = freestone::WORKER_ARGUMENT, hide = true)]
    Worker,
}

fn main() {
    let arguments = command::negative::mark(std::env::args_os(), &Arguments::command());
    let code = match run(Arguments::parse_from(arguments).command) {
        Ok(()) | Err(Failure::Pipe) => 0,
        Err(Failure::Usage(message)) => {
            let _ = writeln!(io::stderr(), "error: {message}");
            ExitCode::Usage as i32
        }
        Err(Failure::Freestone(error)) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            error.exit_code() as i32
        }
        Err(Failure::Expression(error)) => {
            let _ = writeln!(io::stderr(), "{}", error.render(io::stderr().is_terminal()));
            // Well-formed, but wrong for these inputs, or wrong in itself.
            (if error.cause.is_some() { ExitCode::Input } else { ExitCode::Usage }) as i32
        }
    };
    process::exit(code);
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Compute(arguments) => command::compute::compute(&arguments),
        Command::Plan(arguments) => command::compute::plan(&arguments),
        Command::Functions { name, markdown } => {
            command::functions::functions(name.as_deref(), markdown)
        }
        Command::Info { store } => command::info::info(&store),
        Command::Rechunk(arguments) => command::rechunk::rechunk(&arguments),
        Command::Resume(arguments) => command::resume::resume(&arguments),
        Command::Clean(arguments) => command::clean::clean(&arguments),
        Command::Session(arguments) => command::session::session(&arguments),
        Command::Repo(arguments) => command::repo::repo(&arguments),
        Command::Lambda(action) => command::lambda::run(&action),
        Command::Worker => freestone::serve(&freestone::KernelRegistry::new())
            .map_err(|e| Failure::Usage(e.to_string())),
    }
}
