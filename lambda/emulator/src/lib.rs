//! AWS Lambda on one machine, for tests.
//!
//! One function behind the Invoke API. Every execution environment is an operating system's process
//! of its own that runs the real worker program against a Runtime API of its own, under a memory
//! cgroup of the function's size: who takes more is killed, as there. Time limits kill too;
//! invocations beyond the function's concurrency or rates get a 429; bodies beyond 6 MiB are
//! refused both ways; between invocations a process is stopped; a client that hangs up does not
//! stop its invocation. What goes wrong besides is asked for by [`Faults`].
//!
//! [`Emulator::start`] takes a [`Config`] and listens on 127.0.0.1, at a port that the system
//! chooses; when the value is dropped, everything is stopped. `front` has the Invoke API,
//! `environment` a process and its Runtime API, `cgroup` its memory. [`StoreProxy`] lets requests
//! to an object store go wrong, and [`Answering`] is a function without environments, to measure
//! clients with.
//!
//! Left out: signatures are looked for, not verified; CPU is not rationed; response streams,
//! layers, versions.

mod answering;
mod cgroup;
mod client;
mod environment;
mod faults;
mod front;
mod function;
mod proxy;
mod stats;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

pub use answering::Answering;
pub use client::{Invoked, request};
pub use faults::Faults;
pub use proxy::{StoreFaults, StoreProxy, StoreStats};
pub use stats::{Ended, EnvironmentStats, FaultsFired, Kept, Stats};

use function::Function;

/// Bodies are not longer, in both directions.
pub const MAX_BODY_BYTES: usize = 6 * 1024 * 1024;

/// A function, and what it runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name.
    pub function: String,
    /// The worker program.
    pub command: PathBuf,
    /// Its arguments. On AWS there are none.
    pub arguments: Vec<OsString>,
    /// Its environment, besides what Lambda sets. Nothing is inherited.
    pub variables: Vec<(String, String)>,
    /// Memory of an environment.
    pub memory_mib: u64,
    /// What an invocation may take.
    pub timeout: Duration,
    /// Invocations at once; more get a 429.
    pub concurrency: usize,
    /// How fast environments may be added.
    pub scaling: Option<Rate>,
    /// How fast invocations may come.
    pub requests: Option<Rate>,
    /// Stops processes between invocations.
    pub freeze: bool,
    /// Whether memory cgroups are needed.
    pub cap: Cap,
    /// The limit of an environment's memory cgroup, where it is not the memory that its worker is
    /// told of.
    pub cap_bytes: Option<u64>,
    /// Refuses invocations without a signature.
    pub signed: bool,
    /// Keeps the bodies of all invocations and answers ([`Emulator::kept`]).
    pub keep_bodies: bool,
    /// What goes wrong.
    pub faults: Faults,
    /// Where workers' output goes; by itself to this process's standard error.
    pub log: Option<PathBuf>,
}

impl Config {
    /// A function of 256 MiB and 30 seconds that runs a program in up to 8 environments, on which
    /// nothing goes wrong.
    pub fn new(function: impl Into<String>, command: impl Into<PathBuf>) -> Config {
        Config {
            function: function.into(),
            command: command.into(),
            arguments: Vec::new(),
            variables: Vec::new(),
            memory_mib: 256,
            timeout: Duration::from_secs(30),
            concurrency: 8,
            scaling: None,
            requests: None,
            freeze: true,
            cap: Cap::WherePossible,
            cap_bytes: None,
            signed: false,
            keep_bodies: false,
            faults: Faults::default(),
            log: None,
        }
    }
}

/// So many at once, and so many more each second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// At once, after a rest.
    pub burst: u32,
    /// More each second.
    pub per_second: f64,
}

/// Whether environments have memory cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cap {
    /// Not starting without.
    Always,
    /// Where the system lets us.
    WherePossible,
}

/// A function that runs.
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
    /// Starts to listen. No process is started before the first invocation.
    ///
    /// # Errors
    /// Where there is no such program, nothing to listen on, or no memory cgroup but one is needed.
    pub fn start(config: Config) -> io::Result<Emulator> {
        if !config.command.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("there is no worker program at {}", config.command.display()),
            ));
        }
        let parent = match (cgroup::parent(), config.cap) {
            (Ok(parent), _) => Some(parent),
            (Err(error), Cap::Always) => return Err(error),
            (Err(_), Cap::WherePossible) => None,
        };
        // Processes die with the thread that started them; these threads live as long as the
        // runtime.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("emulator")
            .enable_all()
            .build()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0)))?;
        let address = listener.local_addr()?;
        let function = Arc::new(Function::new(config, parent));
        runtime.spawn(front::listen(listener, Arc::clone(&function)));
        Ok(Emulator { runtime: Some(runtime), function, address })
    }

    /// Where clients send to: what `AWS_ENDPOINT_URL_LAMBDA` would be.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Invokes the function and waits for its answer, on a connection of its own.
    ///
    /// # Errors
    /// Where the connection is closed without an answer.
    pub fn invoke(&self, body: &[u8]) -> io::Result<Invoked> {
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

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// True if environments' memory is capped.
    pub fn is_capped(&self) -> bool {
        self.function.is_capped()
    }

    /// What has happened so far. The same is at `/_stats`, as JSON.
    pub fn stats(&self) -> Stats {
        self.function.stats()
    }

    /// Bodies of the invocations that have ended so far, where [`Config::keep_bodies`] asks for it.
    pub fn kept(&self) -> Vec<Kept> {
        self.function.kept()
    }

    /// Replaces the faults from here on.
    pub fn set_faults(&self, faults: Faults) {
        self.function.set_faults(faults);
    }

    /// Ends all environments at once, also those at work, as if their machines were lost. The
    /// function stays.
    pub fn lose_environments(&self) {
        self.function.kill_all();
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.function.close();
        if let Some(runtime) = self.runtime.take() {
            // Also where this is called on a thread of another runtime.
            runtime.shutdown_background();
        }
    }
}

/// The worker program `bootstrap` of the build that the calling test belongs to: it lies beside the
/// test's folder. The variable `FREESTONE_BOOTSTRAP` names another.
///
/// # Errors
/// Where it was not built.
pub fn worker_binary() -> io::Result<PathBuf> {
    if let Some(path) = std::env::var_os("FREESTONE_BOOTSTRAP") {
        return Ok(path.into());
    }
    let this = std::env::current_exe()?;
    let candidates = this.ancestors().skip(1).take(3).map(|folder| folder.join("bootstrap"));
    candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        let why = format!(
            "there is no `bootstrap` near {}: cargo build --release -p freestone-lambda",
            this.display()
        );
        io::Error::new(io::ErrorKind::NotFound, why)
    })
}
