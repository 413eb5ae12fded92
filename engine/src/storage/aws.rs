//! Buckets of S3, and who we are to AWS.
//!
//! Credentials are what the environment says (keys, a web identity, a container), as `object_store`
//! finds them. Where it says nothing, they are those of a profile, single sign-on included, which
//! the `aws` command resolves; else those of the machine. Stores, repositories and whoever signs
//! requests to other services of AWS take them from here.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use object_store::aws::{AmazonS3Builder, AwsCredential, AwsCredentialProvider};
use object_store::{CredentialProvider, Error};
use serde::Deserialize;
use thiserror::Error as ThisError;
use tokio::sync::Mutex;

use super::client::{Connector, retry_config};
use crate::retry::Retry;
use crate::system::System;

/// Credentials that say when they expire are asked for anew so long before that, others so often;
/// after a failure one waits so long at least.
const MARGIN: Duration = Duration::from_secs(300);
const REFRESH: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_secs(60);

/// The AWS command has so long to answer. It may go over the network, or ask for a code.
const LIMIT: Duration = Duration::from_secs(60);

/// What says that the environment has credentials.
const OF_ENVIRONMENT: [&str; 4] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// A profile that was asked for must not be replaced by what a machine has.
const PROFILES: [&str; 2] = ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"];

fn is_set(name: &&str) -> bool {
    std::env::var_os(name).is_some_and(|v| !v.is_empty())
}

/// A bucket as the environment (`AWS_…`) describes it, with its credentials or a profile's.
///
/// Requests are retried by the client as [`Retry::REQUESTS`] says, also puts with a condition:
/// whoever makes one and finds its condition false must look whether what is there is its own.
///
/// # Errors
/// Where the environment holds nonsense.
pub fn bucket(name: &str) -> object_store::Result<AmazonS3Builder> {
    bucket_with(name, Connector { retry: Retry::REQUESTS, system: System::default() })
}

pub(super) fn bucket_with(
    name: &str,
    connector: Connector,
) -> object_store::Result<AmazonS3Builder> {
    let retries = retry_config(&connector.retry);
    let builder = AmazonS3Builder::from_env()
        .with_retry(retries)
        .with_http_connector(connector)
        .with_bucket_name(name);
    if OF_ENVIRONMENT.iter().any(is_set) {
        return Ok(builder);
    }
    let machine = Arc::clone(builder.clone().build()?.credentials());
    Ok(builder.with_credentials(Arc::new(OfProfile { machine })))
}

/// Credentials for other services in a region.
///
/// # Errors
/// Where the environment holds nonsense.
pub fn credentials(region: &str) -> object_store::Result<AwsCredentialProvider> {
    // The bucket is never asked for anything.
    Ok(Arc::clone(bucket("freestone")?.with_region(region).build()?.credentials()))
}

/// The profile's credentials as they are now; `None` where the environment or the machine has
/// others, which are found without us.
///
/// # Errors
/// Where a profile was asked for, and the `aws` command cannot give its credentials.
pub async fn of_profile() -> object_store::Result<Option<Arc<AwsCredential>>> {
    if OF_ENVIRONMENT.iter().any(is_set) { Ok(None) } else { Ok(ask().await?.0) }
}

/// Why there are no credentials.
#[derive(Debug, ThisError)]
#[error("there are no AWS credentials: {0}")]
pub(super) struct NoCredentials(String);

impl From<NoCredentials> for Error {
    fn from(error: NoCredentials) -> Error {
        Error::Generic { store: "AWS", source: Box::new(error) }
    }
}

/// A profile's credentials, and the machine's where there is none.
#[derive(Debug)]
struct OfProfile {
    machine: AwsCredentialProvider,
}

#[async_trait::async_trait]
impl CredentialProvider for OfProfile {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let (found, why) = ask().await?;
        match found {
            Some(credential) => Ok(credential),
            None => self
                .machine
                .get_credential()
                .await
                .map_err(|e| NoCredentials(format!("{why}; and of the machine: {e}")).into()),
        }
    }
}

/// What the AWS command has said.
struct Said {
    credential: Option<Arc<AwsCredential>>,
    /// Why there is none.
    why: String,
    expires: Option<SystemTime>,
    /// When it is asked again.
    again: SystemTime,
}

/// It takes a second to answer, and whole processes have one profile.
static SAID: Mutex<Option<Said>> = Mutex::const_new(None);

/// What the AWS command says, or has said lately: credentials, or why there are none.
async fn ask() -> Result<(Option<Arc<AwsCredential>>, String), NoCredentials> {
    let mut said = SAID.lock().await;
    let now = SystemTime::now();
    if said.as_ref().is_none_or(|s| s.again <= now) {
        let asked = tokio::task::spawn_blocking(|| exported("aws".as_ref(), LIMIT))
            .await
            .unwrap_or_else(|e| Err(e.to_string()));
        let profile = PROFILES.iter().any(is_set);
        *said = Some(match (asked, said.take()) {
            (Ok((credential, expires)), _) => {
                let again =
                    expires.map_or(now + REFRESH, |at| (at - MARGIN).max(now + PAUSE).min(at));
                Said { credential: Some(Arc::new(credential)), why: String::new(), expires, again }
            }
            // What is known holds a while longer.
            (Err(_), Some(old))
                if old.credential.is_some() && old.expires.is_none_or(|at| now < at) =>
            {
                let again = old.expires.map_or(now + PAUSE, |at| (now + PAUSE).min(at));
                Said { again, ..old }
            }
            (Err(why), _) => Said {
                credential: None,
                why,
                expires: None,
                again: now + if profile { PAUSE } else { REFRESH },
            },
        });
    }
    if let Some(Said { credential: None, why, .. }) = &*said
        && PROFILES.iter().any(is_set)
    {
        return Err(NoCredentials(why.clone()));
    }
    Ok(said.as_ref().map_or((None, String::new()), |s| (s.credential.clone(), s.why.clone())))
}

/// Credentials of the profile in use, and when they expire if they do.
fn exported(
    program: &OsStr,
    limit: Duration,
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
    // Those of the machine are renewed without it.
    let mut command = Command::new(program);
    command
        .args(["configure", "export-credentials", "--format", "process"])
        .env("AWS_EC2_METADATA_DISABLED", "true");
    let output = output_within(&mut command, limit).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            "AWS_ACCESS_KEY_ID is not set, and there is no `aws` command to \
            ask for a profile's"
                .to_owned()
        }
        io::ErrorKind::TimedOut => {
            let limit = humantime::format_duration(limit);
            format!(
                "{COMMAND} has not answered in {limit} and was stopped: run it by hand to see \
                what it waits for, or set AWS_ACCESS_KEY_ID and the like"
            )
        }
        _ => format!("{COMMAND}: {e}"),
    })?;
    if !output.status.success() {
        return Err(format!("{COMMAND} says: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    // Its output is a secret: an error must not quote it.
    let found: Exported = serde_json::from_slice(&output.stdout)
        .map_err(|e| format!("{COMMAND} answers no JSON of credentials ({:?})", e.classify()))?;
    let expires = found.expiration.as_deref().and_then(time);
    Ok((
        AwsCredential {
            key_id: found.access_key_id,
            secret_key: found.secret_access_key,
            token: found.session_token,
        },
        expires,
    ))
}

/// What a command prints and how it ends; one that takes longer is killed.
fn output_within(command: &mut Command, limit: Duration) -> io::Result<Output> {
    let end = Instant::now() + limit;
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (stdout, stderr) = (child.stdout.take().map(reader), child.stderr.take().map(reader));
    loop {
        // What it has started may keep the pipes open after it, and is not waited for any longer
        // either.
        if stdout.iter().chain(&stderr).all(thread::JoinHandle::is_finished)
            && let Some(status) = child.try_wait()?
        {
            let read = |pipe: Option<thread::JoinHandle<_>>| {
                pipe.and_then(|p| p.join().ok()).unwrap_or_else(|| Ok(Vec::new()))
            };
            return Ok(Output { status, stdout: read(stdout)?, stderr: read(stderr)? });
        }
        if Instant::now() >= end {
            let _ = child.kill();
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn reader(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<io::Result<Vec<u8>>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).map(|_| bytes)
    })
}

/// A time as `2026-11-22T20:00:00+00:00` or with a `Z`.
fn time(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(&text.replace("+00:00", "Z")).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn times_are_read() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_379_768);
        assert_eq!(
            (time("2026-11-22T20:36:08Z"), time("2026-11-22T20:36:08+00:00"), time("soon")),
            (Some(at), Some(at), None)
        );
    }

    #[test]
    fn a_command_that_hangs_is_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("aws");
        // The second leaves a child that keeps its pipes open.
        for rest in ["exec sleep 600", "sleep 20 & exit 0"] {
            let text = format!("#!/bin/sh\necho $$ >\"$0.pid\"\n{rest}");
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            let said = exported(path.as_os_str(), Duration::from_secs(3)).unwrap_err();
            assert!(
                said.contains("has not answered in 3s and was stopped: run it by hand"),
                "{said}"
            );
            let pid = fs::read_to_string(folder.path().join("aws.pid")).unwrap();
            assert!(
                !std::path::Path::new("/proc").join(pid.trim()).exists(),
                "it is gone, and was waited for"
            );
        }
    }
}
