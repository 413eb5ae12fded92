//! What suites share with the system: servers on the loopback interface and a memory cgroup.
//!
//! Each is removed by a [`Guard`], a shell that outlives this process, so that nothing is left
//! behind by an interrupted run either.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::context::{Context, run};
use crate::Result;

/// Cleanup that runs when the guard is dropped, or when this process ends in any other way.
#[derive(Debug)]
struct Guard {
    shell: Child,
}

impl Guard {
    /// Starts a shell that runs `script` with `$1` = `argument` once its standard input is closed.
    fn new(script: &str, argument: impl AsRef<OsStr>) -> Result<Self> {
        let script = format!("trap '' INT TERM HUP; while read -r _; do :; done; {script}");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(argument);
        Ok(Self { shell: command.stdin(Stdio::piped()).spawn()? })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// A memory cgroup in which tests make a child for every process that they cap.
#[derive(Debug)]
pub(crate) struct Cgroup {
    /// The folder of the cgroup.
    pub(crate) folder: PathBuf,
    _guard: Guard,
}

/// Kills the processes of a cgroup and removes it. Only processes of tests can be in it, and a
/// remaining one would keep it alive.
const REMOVE_CGROUP: &str = r#"
for round in 1 2 3 4 5; do
    find "$1" -name cgroup.procs -exec cat {} + | while read -r pid; do kill -KILL "$pid"; done
    find "$1" -depth -type d -exec rmdir {} + 2>/dev/null && exit
    sleep 0.2
done
echo "xtask: cannot remove the cgroup \`$1\`" >&2"#;

impl Cgroup {
    /// Makes a cgroup with the memory controller, of version 1 or 2.
    pub(crate) fn new() -> Result<Self> {
        let base = Self::base(Path::new("/sys/fs/cgroup"))?;
        let folder = base.join(format!("freestone-ci-{}", std::process::id()));
        fs::create_dir(&folder).map_err(|error| {
            format!("cannot make the cgroup `{}`: {error} (hint: run as root)", folder.display())
        })?;
        let guard = Guard::new(REMOVE_CGROUP, &folder)?;
        let control = folder.join("cgroup.subtree_control");
        if control.exists() {
            fs::write(control, "+memory\n")?;
        }
        Ok(Self { folder, _guard: guard })
    }

    fn base(root: &Path) -> Result<PathBuf> {
        if root.join("memory/memory.limit_in_bytes").exists() {
            return Ok(root.join("memory"));
        }
        let lists_memory = |file: &str| {
            fs::read_to_string(root.join(file))
                .is_ok_and(|list| list.split_whitespace().any(|controller| controller == "memory"))
        };
        if !lists_memory("cgroup.controllers") {
            return Err(format!("no memory controller in `{}`", root.display()).into());
        }
        if !lists_memory("cgroup.subtree_control") {
            fs::write(root.join("cgroup.subtree_control"), "+memory\n").map_err(|error| {
                format!("cannot enable the memory controller below `{}`: {error}", root.display())
            })?;
        }
        Ok(root.to_owned())
    }
}

/// A server on this machine, which keeps everything in memory.
#[derive(Debug)]
pub(crate) struct Server {
    /// The URL of the server.
    pub(crate) endpoint: String,
    server: Child,
    guard: Option<Guard>,
}

/// The S3 server of most suites.
#[derive(Debug)]
pub(crate) struct S3Server;

impl S3Server {
    /// Starts ministack with some services, such as `s3,lambda`, and makes the bucket
    /// `freestone-ci`.
    ///
    /// Later commands of the suite find the server by their environment.
    pub(crate) fn start(context: &mut Context, programs: &Path, services: &str) -> Result<Server> {
        let port = free_port()?;
        set_s3_environment(context, &format!("http://127.0.0.1:{port}"));
        let mut command = context.command(programs.join("ministack"));
        command.env("BIND_HOST", "127.0.0.1").env("GATEWAY_PORT", port.to_string());
        command.env("SERVICES", services).env("LAMBDA_ACCOUNT_CONCURRENCY", "8");
        command.env("LOG_LEVEL", "WARNING");
        for name in ["AWS_ENDPOINT", "AWS_ALLOW_HTTP", "AWS_REGION", "AWS_DEFAULT_REGION"] {
            command.env_remove(name);
        }
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        let ready = || matches!(status_of(port, "GET", "/_ministack/health"), Some(200..400));
        let started = Server::start(context, "s3-server", command, port, ready)?;
        // The server does not check signatures.
        match status_of(port, "PUT", "/freestone-ci") {
            Some(200..300) => Ok(started),
            _ => Err("cannot make a bucket on the S3 server".into()),
        }
    }
}

/// The bucket of all servers.
const BUCKET: &str = "freestone-ci";

impl Server {
    /// Starts `tests/interop/object_server.py` with a dialect, `gs` or `s3`, and further arguments.
    pub(crate) fn python(
        context: &Context,
        programs: &Path,
        name: &str,
        arguments: &[&str],
    ) -> Result<Self> {
        let port = free_port()?;
        let mut command = context.command(programs.join("python"));
        command.arg("tests/interop/object_server.py").arg(port.to_string());
        command.arg(BUCKET).args(arguments);
        let ready = || status_of(port, "HEAD", "/").is_some();
        Self::start(context, name, command, port, ready)
    }

    /// Starts Azurite, the emulator of Azure Blob Storage, and creates the container.
    pub(crate) fn azurite(context: &Context, node: &Path, programs: &Path) -> Result<Self> {
        let port = free_port()?;
        let mut command = context.command(node.join("azurite-blob"));
        command.args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()]);
        command.args(["--inMemoryPersistence", "--silent", "--disableTelemetry"]);
        command.arg("--skipApiVersionCheck");
        let ready = || status_of(port, "GET", "/").is_some();
        let started = Self::start(context, "azurite", command, port, ready)?;
        let mut create = context.command(programs.join("python"));
        create.arg("tests/interop/azure_container.py").arg(&started.endpoint).arg(BUCKET);
        run(create)?;
        Ok(started)
    }

    fn start(
        context: &Context,
        name: &str,
        mut command: Command,
        port: u16,
        is_ready: impl Fn() -> bool,
    ) -> Result<Self> {
        let log = context.out.join(format!("{name}.log"));
        let file = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let server = command.spawn().map_err(|e| format!("cannot start {name}: {e}"))?;
        let id = server.id().to_string();
        let endpoint = format!("http://127.0.0.1:{port}");
        let mut started = Self { endpoint, server, guard: None };
        started.guard = Some(Guard::new("kill \"$1\" 2>/dev/null", id)?);
        for _ in 0..150 {
            if let Some(status) = started.server.try_wait()? {
                let log = fs::read_to_string(log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().rev().take(3).collect();
                let lines: Vec<&str> = lines.into_iter().rev().collect();
                return Err(format!("{name} ended: {status}\n{}", lines.join("\n")).into());
            }
            if is_ready() {
                return Ok(started);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Err(format!("{name} did not answer within 30 s").into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.guard.take());
        let _ = self.server.wait();
    }
}

/// Makes later commands of the suite find an S3 server.
pub(crate) fn set_s3_environment(context: &mut Context, endpoint: &str) {
    context.unset("AWS_");
    set_no_proxy(context);
    context.set("AWS_ENDPOINT", endpoint);
    context.set("AWS_ALLOW_HTTP", "true");
    for name in ["AWS_REGION", "AWS_DEFAULT_REGION"] {
        context.set(name, "us-east-1");
    }
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        context.set(name, "test");
    }
}

/// Makes later commands of the suite find a server of Google Cloud Storage.
pub(crate) fn set_google_environment(context: &mut Context, endpoint: &str) {
    context.unset("GOOGLE_");
    set_no_proxy(context);
    let account = format!(
        r#"{{"gcs_base_url": "{endpoint}", "disable_oauth": true, "client_email": "",
            "private_key": "", "private_key_id": ""}}"#
    );
    context.set("GOOGLE_SERVICE_ACCOUNT_KEY", account);
    context.set("GOOGLE_ALLOW_HTTP", "true");
}

/// Makes later commands of the suite find Azurite.
pub(crate) fn set_azure_environment(context: &mut Context, endpoint: &str) {
    context.unset("AZURE_");
    set_no_proxy(context);
    context.set("AZURE_STORAGE_USE_EMULATOR", "true");
    context.set("AZURITE_BLOB_STORAGE_URL", endpoint);
}

fn set_no_proxy(context: &mut Context) {
    for name in ["NO_PROXY", "no_proxy"] {
        context.set(name, "127.0.0.1");
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The status of a request without a body to a server on this machine, or none if it did not
/// answer.
fn status_of(port: u16, method: &str, path: &str) -> Option<u16> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let timeout = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&address, timeout).ok()?;
    stream.set_read_timeout(Some(timeout)).ok()?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    line.split(' ').nth(1)?.parse().ok()
}

/// A proxy in front of an object store that fails requests and loses answers.
///
/// It ends when its standard input is closed, so that it does not outlive this process.
#[derive(Debug)]
pub(crate) struct FaultyProxy {
    /// The URL of the proxy.
    pub(crate) endpoint: String,
    process: Child,
    output: BufReader<ChildStdout>,
}

impl FaultyProxy {
    /// Starts the proxy.
    pub(crate) fn start(context: &Context, endpoint: &str, options: &[&str]) -> Result<Self> {
        let mut command = context.command(context.program("freestone-store-proxy"));
        command.arg(endpoint).args(options).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let output = process.stdout.take().ok_or("the proxy has no output")?;
        let mut output = BufReader::new(output);
        let mut line = String::new();
        output.read_line(&mut line)?;
        Ok(Self { endpoint: line.trim().to_owned(), process, output })
    }

    /// Stops the proxy and returns its report.
    pub(crate) fn stop(mut self) -> Result<String> {
        drop(self.process.stdin.take());
        let mut report = String::new();
        self.output.read_to_string(&mut report)?;
        self.process.wait()?;
        Ok(report)
    }
}
