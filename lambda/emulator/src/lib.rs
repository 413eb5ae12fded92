//! An emulator of AWS Lambda on one machine, for tests.
//!
//! The emulator serves one function behind the Invoke API. Each execution environment is a process
//! that runs the real worker program against its own Runtime API, in a memory cgroup of the
//! function's size. As on AWS:
//!
//! - processes that exceed the memory limit or the timeout are killed
//! - invocations beyond the function's concurrency or rates receive status 429
//! - bodies beyond 6 MiB are refused in both directions
//! - processes are stopped between invocations
//! - an invocation continues if its client disconnects
//!
//! [`Faults`] injects further failures. [`Emulator::start`] takes a [`Config`] and listens on
//! 127.0.0.1, at a port chosen by the system. Dropping the value stops everything.
//!
//! `invoke_api` serves clients, `function` selects environments, `environment` runs a process with
//! its `runtime_api`, and `cgroup` limits its memory. [`StoreProxy`] injects failures into requests
//! to an object store. [`StubFunction`] is a function without environments, for measuring clients.
//!
//! Not emulated: verification of signatures (only their presence is checked), CPU limits, response
//! streams, layers and versions.

mod cgroup;
mod client;
mod environment;
mod faults;
mod function;
mod invoke_api;
mod proxy;
mod runtime_api;
mod stats;
mod stub;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

pub use client::{HttpResponse, request};
pub use faults::Faults;
pub use proxy::{StoreFaults, StoreProxy, StoreStats};
pub use stats::{EnvironmentStats, FaultCounts, InvocationEnd, RecordedInvocation, Stats};
pub use stub::StubFunction;

use function::Function;

/// The maximum length of a body in either direction.
pub const MAX_BODY_BYTES: usize = 6 * 1024 * 1024;

/// The configuration of a function.
#[derive(Clone, Debug)]
pub struct Config {
    /// The function's name.
    pub function: String,
    /// The worker program.
    pub command: PathBuf,
    /// The worker's arguments. Workers on AWS have none.
    pub arguments: Vec<OsString>,
    /// Environment variables in addition to those of Lambda. None are inherited.
    pub variables: Vec<(String, String)>,
    /// The memory of an environment in MiB.
    pub memory_mib: u64,
    /// The timeout of an invocation.
    pub timeout: Duration,
    /// The deadline that workers see, if it differs from `timeout`. Workers are not killed for
    /// exceeding it, so that tests of deadlines do not depend on the load of the machine.
    pub deadline: Option<Duration>,
    /// The maximum number of concurrent invocations; further ones receive status 429.
    pub concurrency: usize,
    /// The rate limit of new environments.
    pub scaling: Option<Rate>,
    /// The rate limit of invocations.
    pub requests: Option<Rate>,
    /// Stops processes between invocations.
    pub freeze: bool,
    /// Whether memory cgroups are required.
    pub cap: Cap,
    /// The limit of an environment's memory cgroup, if it differs from `memory_mib`, which its
    /// worker sees.
    pub cgroup_bytes: Option<u64>,
    /// Refuses invocations without a signature.
    pub require_signatures: bool,
    /// Records the bodies of all invocations and answers ([`Emulator::recorded_invocations`]).
    pub record_bodies: bool,
    /// Injected faults.
    pub faults: Faults,
    /// The file for workers' output; by default, it goes to this process's standard error.
    pub log: Option<PathBuf>,
}

impl Config {
    /// Returns the configuration of a function with 256 MiB, a timeout of 30 seconds, at most 8
    /// environments, and no injected faults.
    pub fn new(function: impl Into<String>, command: impl Into<PathBuf>) -> Config {
        Config {
            function: function.into(),
            command: command.into(),
            arguments: Vec::new(),
            variables: Vec::new(),
            memory_mib: 256,
            timeout: Duration::from_secs(30),
            deadline: None,
            concurrency: 8,
            scaling: None,
            requests: None,
            freeze: true,
            cap: Cap::IfAvailable,
            cgroup_bytes: None,
            require_signatures: false,
            record_bodies: false,
            faults: Faults::default(),
            log: None,
        }
    }
}

/// A rate limit: a token bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// The capacity of the bucket.
    pub burst: u32,
    /// Tokens added per second.
    pub per_second: f64,
}

/// Whether environments run in memory cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cap {
    /// The emulator does not start without cgroups.
    Required,
    /// Cgroups are used if the process may create them.
    IfAvailable,
}

/// A running function. Dropping it stops its environments.
pub struct Emulator {
    runtime: Option<tokio::runtime::Runtime>,
    function: Arc<Function>,
    address: SocketAddr,
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emulator").field("url", &self.url()).finish_non_exhaustive()
    }
}

impl Emulator {
    /// Starts to listen. The first invocation starts the first process.
    ///
    /// # Errors
    /// Returns an error if the program does not exist, no port is available, or required memory
    /// cgroups cannot be created.
    pub fn start(config: Config) -> io::Result<Emulator> {
        if !config.command.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no worker program at `{}`", config.command.display()),
            ));
        }
        let parent = match (cgroup::parent(), config.cap) {
            (Ok(parent), _) => Some(parent),
            (Err(error), Cap::Required) => return Err(error),
            (Err(_), Cap::IfAvailable) => None,
        };
        // Processes are killed when the thread that started them ends, so these threads live as
        // long as the runtime.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("emulator")
            .enable_all()
            .build()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0)))?;
        let address = listener.local_addr()?;
        let function = Arc::new(Function::new(config, parent));
        runtime.spawn(invoke_api::listen(listener, Arc::clone(&function)));
        Ok(Emulator { runtime: Some(runtime), function, address })
    }

    /// Returns the URL for clients, as a value for `AWS_ENDPOINT_URL_LAMBDA`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Invokes the function on a new connection and waits for the answer.
    ///
    /// # Errors
    /// Returns an error if the connection is closed without an answer.
    pub fn invoke(&self, body: &[u8]) -> io::Result<HttpResponse> {
        let path = format!("/2015-03-31/functions/{}/invocations", self.function.config.function);
        request(
            self.address,
            "POST",
            &path,
            &[],
            body,
            self.function.config.timeout + Duration::from_secs(30),
        )
    }

    /// Returns the address on which the emulator listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns true if environments run in memory cgroups.
    pub fn has_cgroups(&self) -> bool {
        self.function.has_cgroups()
    }

    /// Returns the current counters, which `/_stats` serves as JSON.
    pub fn stats(&self) -> Stats {
        self.function.stats()
    }

    /// Returns the invocations that have ended, if [`Config::record_bodies`] is set.
    pub fn recorded_invocations(&self) -> Vec<RecordedInvocation> {
        self.function.recorded()
    }

    /// Replaces the fault rates for subsequent invocations.
    pub fn set_faults(&self, faults: Faults) {
        self.function.set_faults(faults);
    }

    /// Kills all environments, including busy ones, as if their machines had failed.
    pub fn kill_environments(&self) {
        self.function.kill_all();
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.function.close();
        if let Some(runtime) = self.runtime.take() {
            // A blocking shutdown would panic on a thread of another runtime.
            runtime.shutdown_background();
        }
    }
}

/// Returns the path of the worker program `bootstrap`, which the build of the calling test places
/// beside the test's folder. `FREESTONE_BOOTSTRAP` overrides the path.
///
/// # Errors
/// Returns an error if the program has not been built.
pub fn worker_binary() -> io::Result<PathBuf> {
    if let Some(path) = std::env::var_os("FREESTONE_BOOTSTRAP") {
        return Ok(path.into());
    }
    let this = std::env::current_exe()?;
    let candidates = this.ancestors().skip(1).take(3).map(|folder| folder.join("bootstrap"));
    candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        let message = format!(
            "cannot find the worker program `bootstrap` near `{}` (hint: run `cargo build \
                --release -p freestone-lambda`)",
            this.display()
        );
        io::Error::new(io::ErrorKind::NotFound, message)
    })
}
