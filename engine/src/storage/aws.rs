//! S3 buckets and AWS credentials.
//!
//! Credentials are searched in this order, for stores, repositories and requests to other AWS
//! services:
//!
//! 1. the environment (keys, a web identity, or a container role), read by `object_store`
//! 2. the profile in use, single sign-on included, through `aws configure export-credentials`
//! 3. the machine's instance role
//!
//! Credentials are renewed before they expire. A profile's are also renewed once a service refuses
//! them, since clocks differ and not all credentials state when they expire.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use object_store::aws::{AmazonS3Builder, AwsAuthorizer, AwsCredential, AwsCredentialProvider};
use object_store::client::HttpRequest;
use object_store::{CredentialProvider, Error};
use serde::Deserialize;
use thiserror::Error as ThisError;
use tokio::sync::Mutex;

use super::client::{Connector, retry_config};
use crate::retry::Retry;
use crate::system::{Clock, System};

/// The time before expiry at which credentials are renewed.
const RENEWAL_MARGIN: Duration = Duration::from_secs(300);
/// The interval at which credentials without an expiry are renewed.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(600);
/// The minimum interval between calls of the `aws` command after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// The timeout of the `aws` command, which may use the network or prompt for a code.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// Variables whose presence means that the environment provides credentials.
const ENVIRONMENT_CREDENTIALS: [&str; 4] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// Variables that select a profile. The machine's credentials never replace a selected profile's.
const PROFILES: [&str; 2] = ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"];

fn is_set(name: &&str) -> bool {
    std::env::var_os(name).is_some_and(|v| !v.is_empty())
}

/// Returns a builder for a bucket, configured by `AWS_…` variables, with the credentials that this
/// module describes.
///
/// The client retries requests by [`Retry::REQUESTS`], including conditional puts. A caller
/// whose conditional put fails must check whether the stored object is its own.
///
/// # Errors
/// Returns an error if a variable has an invalid value.
pub fn bucket(name: &str) -> object_store::Result<AmazonS3Builder> {
    bucket_with(name, Connector::new(Retry::REQUESTS, System::default()))
}

pub(super) fn bucket_with(
    name: &str,
    connector: Connector,
) -> object_store::Result<AmazonS3Builder> {
    let in_environment = ENVIRONMENT_CREDENTIALS.iter().any(is_set);
    let connector = Connector { renews: !in_environment, ..connector };
    let retries = retry_config(&connector.retry);
    let clock = Arc::clone(&connector.system.clock);
    let builder = AmazonS3Builder::from_env()
        .with_retry(retries)
        .with_http_connector(connector)
        .with_bucket_name(name);
    if in_environment {
        return Ok(builder);
    }
    let machine = Arc::clone(builder.clone().build()?.credentials());
    Ok(builder.with_credentials(Arc::new(ProfileProvider { machine, clock })))
}

/// Returns the credential provider for other AWS services in a region.
///
/// # Errors
/// Returns an error if a variable has an invalid value.
pub fn credentials(region: &str) -> object_store::Result<AwsCredentialProvider> {
    // The builder requires a bucket; no request is made to it.
    Ok(Arc::clone(bucket("freestone")?.with_region(region).build()?.credentials()))
}

/// Returns the profile's current credentials, or `None` if the environment or the machine provides
/// them, in which case AWS clients find them on their own.
///
/// # Errors
/// Returns an error if a profile is selected and the `aws` command cannot provide its credentials.
pub async fn profile_credentials() -> object_store::Result<Option<Arc<AwsCredential>>> {
    if ENVIRONMENT_CREDENTIALS.iter().any(is_set) {
        return Ok(None);
    }
    Ok(cached_lookup(&*System::default().clock).await?.0)
}

/// The reason why no credentials were found.
#[derive(Debug, ThisError)]
#[error("cannot find AWS credentials: {0}")]
pub(super) struct NoCredentials(String);

impl From<NoCredentials> for Error {
    fn from(error: NoCredentials) -> Error {
        Error::Generic { store: "AWS", source: Box::new(error) }
    }
}

/// Provides the profile's credentials, or the machine's if there is no profile.
#[derive(Debug)]
struct ProfileProvider {
    machine: AwsCredentialProvider,
    clock: Arc<dyn Clock>,
}

#[async_trait::async_trait]
impl CredentialProvider for ProfileProvider {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let (found, reason) = cached_lookup(&*self.clock).await?;
        match found {
            Some(credential) => Ok(credential),
            None => self.machine.get_credential().await.map_err(|e| {
                NoCredentials(format!("{reason}; the machine's instance role: {e}")).into()
            }),
        }
    }
}

/// A cached result of the `aws` command.
struct Lookup {
    credential: Option<Arc<AwsCredential>>,
    /// The reason why there is no credential.
    reason: String,
    expires: Option<SystemTime>,
    /// The time of the next call.
    renew_at: SystemTime,
    /// Whether a service refused the credential as expired.
    is_refused: bool,
}

/// The last result of the `aws` command. A call takes about a second, and a process uses one
/// profile.
static LOOKUP: Mutex<Option<Lookup>> = Mutex::const_new(None);

/// Returns the credentials of the `aws` command, or the reason why there are none. Calls the
/// command if the cached result is due for renewal.
async fn cached_lookup(
    clock: &dyn Clock,
) -> Result<(Option<Arc<AwsCredential>>, String), NoCredentials> {
    let mut lookup = LOOKUP.lock().await;
    let now = clock.system_time();
    if lookup.as_ref().is_none_or(|l| l.renew_at <= now) {
        let exported = tokio::task::spawn_blocking(|| {
            export_credentials("aws".as_ref(), COMMAND_TIMEOUT, &*System::default().clock)
        })
        .await
        .unwrap_or_else(|e| Err(e.to_string()));
        *lookup = Some(next_lookup(exported, lookup.take(), now));
    }
    if let Some(Lookup { credential: None, reason, .. }) = &*lookup
        && PROFILES.iter().any(is_set)
    {
        return Err(NoCredentials(reason.clone()));
    }
    Ok(lookup.as_ref().map_or((None, String::new()), |l| (l.credential.clone(), l.reason.clone())))
}

/// Signs a request again with renewed credentials, after a service refused those of the profile as
/// expired. Returns false if there are no other credentials.
pub(super) async fn sign_again(request: &mut HttpRequest, clock: &dyn Clock) -> bool {
    let header = |name: &str| {
        request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    let token = header("x-amz-security-token");
    let Some(authorization) = header("authorization") else { return false };
    let scope = authorization.split_once("Credential=").map_or("", |(_, rest)| rest);
    let scope: Vec<&str> = scope.split(',').next().unwrap_or_default().split('/').collect();
    let &[key, _, region, service, _] = scope.as_slice() else { return false };
    let Some(credential) = replacement(key, token.as_deref(), clock).await else { return false };
    let digest = header("x-amz-content-sha256").and_then(|text| from_hex(&text));
    request.headers_mut().remove("x-amz-security-token");
    AwsAuthorizer::new(&credential, service, region)
        .with_sign_payload(digest.is_some())
        .try_authorize(request, digest.as_deref())
        .is_ok()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = (0..text.len() / 2).map(|i| text.get(2 * i..2 * i + 2));
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

/// Returns the credentials that replace those with this key and token, if there are others. Calls
/// the command once for all requests that were refused.
async fn replacement(
    key: &str,
    token: Option<&str>,
    clock: &dyn Clock,
) -> Option<Arc<AwsCredential>> {
    let is_refused = |c: &AwsCredential| c.key_id == key && c.token.as_deref() == token;
    if let Some(lookup) = &mut *LOOKUP.lock().await
        && lookup.credential.as_deref().is_some_and(is_refused)
        && !lookup.is_refused
    {
        lookup.is_refused = true;
        lookup.renew_at = clock.system_time();
    }
    let (found, _) = cached_lookup(clock).await.ok()?;
    found.filter(|credential| !is_refused(credential))
}

/// Returns the lookup that replaces `previous`, given the output of the `aws` command. If the
/// command failed, credentials that have not expired remain in use.
fn next_lookup(
    exported: Result<(AwsCredential, Option<SystemTime>), String>,
    previous: Option<Lookup>,
    now: SystemTime,
) -> Lookup {
    match (exported, previous) {
        (Ok((credential, expires)), previous) => {
            let renew_at = expires.map_or(now + RENEWAL_INTERVAL, |at| {
                (at - RENEWAL_MARGIN).max(now + RETRY_INTERVAL).min(at)
            });
            // The command may have a cache of its own.
            let is_refused = previous.is_some_and(|old| {
                old.is_refused && old.credential.as_deref() == Some(&credential)
            });
            Lookup {
                credential: Some(Arc::new(credential)),
                reason: String::new(),
                expires,
                renew_at: if is_refused { now + RETRY_INTERVAL } else { renew_at },
                is_refused,
            }
        }
        (Err(_), Some(old))
            if old.credential.is_some() && old.expires.is_none_or(|at| now < at) =>
        {
            let retry_at = now + RETRY_INTERVAL;
            Lookup { renew_at: old.expires.map_or(retry_at, |at| retry_at.min(at)), ..old }
        }
        (Err(reason), _) => {
            let is_selected = PROFILES.iter().any(is_set);
            let interval = if is_selected { RETRY_INTERVAL } else { RENEWAL_INTERVAL };
            let renew_at = now + interval;
            Lookup { credential: None, reason, expires: None, renew_at, is_refused: false }
        }
    }
}

/// Returns the credentials of the profile in use, with their expiry if they have one.
fn export_credentials(
    program: &OsStr,
    timeout: Duration,
    clock: &dyn Clock,
) -> Result<(AwsCredential, Option<SystemTime>), String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Exported {
        access_key_id: String,
        secret_access_key: String,
        session_token: Option<String>,
        expiration: Option<String>,
    }
    const COMMAND: &str = "`aws configure export-credentials`";
    // The machine's credentials are renewed by `object_store`, so the command must not return them.
    let mut command = Command::new(program);
    command
        .args(["configure", "export-credentials", "--format", "process"])
        .env("AWS_EC2_METADATA_DISABLED", "true");
    let output = output_within(&mut command, timeout, clock).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            "AWS_ACCESS_KEY_ID is not set, and the `aws` command, which provides a profile's \
            credentials, is not installed"
                .to_owned()
        }
        io::ErrorKind::TimedOut => {
            let timeout = humantime::format_duration(timeout);
            format!(
                "{COMMAND} timed out after {timeout} (hint: run it by hand to see what it waits \
                for, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
            )
        }
        _ => format!("cannot run {COMMAND}: {e}"),
    })?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{COMMAND} failed: {}", message.trim()));
    }
    // The output is secret, so errors must not quote it.
    let found: Exported = serde_json::from_slice(&output.stdout).map_err(|e| {
        format!("invalid output of {COMMAND}: expected credentials as JSON ({:?})", e.classify())
    })?;
    let expires = found.expiration.as_deref().and_then(timestamp);
    let credential = AwsCredential {
        key_id: found.access_key_id,
        secret_key: found.secret_access_key,
        token: found.session_token,
    };
    Ok((credential, expires))
}

/// Returns a command's output and exit status. Kills the command after `timeout`.
fn output_within(
    command: &mut Command,
    timeout: Duration,
    clock: &dyn Clock,
) -> io::Result<Output> {
    let end = clock.now() + timeout;
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (stdout, stderr) = (child.stdout.take().map(reader), child.stderr.take().map(reader));
    loop {
        // Processes that the command has started may keep the pipes open after it has ended. The
        // timeout covers them too.
        if stdout.iter().chain(&stderr).all(thread::JoinHandle::is_finished)
            && let Some(status) = child.try_wait()?
        {
            return Ok(Output { status, stdout: joined(stdout)?, stderr: joined(stderr)? });
        }
        if clock.now() >= end {
            let _ = child.kill();
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        clock.sleep(Duration::from_millis(20));
    }
}

type Reader = thread::JoinHandle<io::Result<Vec<u8>>>;

fn reader(mut pipe: impl Read + Send + 'static) -> Reader {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).map(|_| bytes)
    })
}

fn joined(reader: Option<Reader>) -> io::Result<Vec<u8>> {
    reader.and_then(|r| r.join().ok()).unwrap_or_else(|| Ok(Vec::new()))
}

/// Parses a timestamp such as `2026-11-22T20:00:00+00:00` or `2026-11-22T20:00:00Z`.
fn timestamp(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(&text.replace("+00:00", "Z")).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::time::Instant;

    use super::*;
    use crate::system::ManualClock;

    #[test]
    fn timestamps_are_parsed() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_379_768);
        assert_eq!(
            (
                timestamp("2026-11-22T20:36:08Z"),
                timestamp("2026-11-22T20:36:08+00:00"),
                timestamp("soon")
            ),
            (Some(at), Some(at), None)
        );
    }

    /// A clock that stands still until a file has a line, and then advances by a minute a sleep.
    #[derive(Debug)]
    struct ClockOfFile {
        clock: ManualClock,
        file: PathBuf,
    }

    impl Clock for ClockOfFile {
        fn now(&self) -> Instant {
            self.clock.now()
        }

        fn system_time(&self) -> SystemTime {
            self.clock.system_time()
        }

        fn sleep(&self, time: Duration) {
            if fs::read_to_string(&self.file).is_ok_and(|text| text.ends_with('\n')) {
                self.clock.advance(Duration::from_secs(60));
            }
            thread::sleep(time);
        }

        fn wait_bound(&self, time: Duration) -> Duration {
            self.clock.wait_bound(time)
        }
    }

    #[test]
    fn a_command_that_hangs_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("aws");
        // The second script leaves a child that keeps its pipes open.
        for script in
            ["echo $$ >\"$0.pid\"; exec sleep 600", "sleep 60 & echo $$ >\"$0.pid\"; exit 0"]
        {
            fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            let file = folder.path().join("aws.pid");
            let clock = ClockOfFile { clock: ManualClock::default(), file: file.clone() };
            let timeout = Duration::from_secs(60);
            let error = export_credentials(path.as_os_str(), timeout, &clock).unwrap_err();
            assert!(error.contains("timed out after 1m (hint: run it by hand"), "{error}");
            let pid = fs::read_to_string(&file).unwrap();
            fs::remove_file(&file).unwrap();
            let process = Path::new("/proc").join(pid.trim());
            assert!(!process.exists(), "the process is killed and reaped");
        }
    }
}
