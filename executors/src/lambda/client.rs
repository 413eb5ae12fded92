//! The Invoke API, signed, without an SDK.

use std::io;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use freestone_engine::remote::Invocation;
use object_store::aws::{AmazonS3Builder, AwsAuthorizer, AwsCredential, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpConnector, HttpErrorKind, HttpRequest, HttpRequestBody, ReqwestConnector};
use object_store::{ClientOptions, HeaderValue};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Deserialize;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use super::LambdaExecutor;
use super::reply::{Raw, Reply, read};

/// Bodies of answers that may be in memory at once, in units: TCP holds the others back.
const BODY_UNITS: u32 = 1024;
const UNIT_BYTES: u64 = 64 << 10;
/// An answer comes so long after the function's time is over at the latest.
const GRACE: Duration = Duration::from_secs(10);
/// Credentials from the AWS command are asked for anew so often; it keeps them itself.
const REFRESH: Duration = Duration::from_secs(600);

/// A client of one function.
#[derive(Debug)]
pub(super) struct Client {
    http: HttpClient,
    url: String,
    region: String,
    credentials: Credentials,
    bodies: Arc<Semaphore>,
}

/// A reply, and what holds the room that it takes.
pub(super) type Replied = (Reply, Option<OwnedSemaphorePermit>);

impl Client {
    /// No I/O, but that the AWS command may be asked for credentials.
    pub(super) fn new(of: &LambdaExecutor) -> Result<Client, String> {
        let options = ClientOptions::new()
            .with_allow_http(of.endpoint.starts_with("http://"))
            .with_timeout(of.function_timeout + GRACE)
            .with_connect_timeout(Duration::from_secs(10))
            .with_user_agent(HeaderValue::from_static(concat!("freestone/", env!("CARGO_PKG_VERSION"))));
        let http = ReqwestConnector::default().connect(&options).map_err(|e| e.to_string())?;
        let mut url = format!("{}/2015-03-31/functions/{}/invocations", of.endpoint.trim_end_matches('/'), of.function);
        if let Some(qualifier) = &of.qualifier {
            url = format!("{url}?Qualifier={qualifier}");
        }
        let credentials = match &of.credentials {
            Some(given) => Credentials::Given(Arc::clone(given)),
            None => Credentials::find(&of.region)?,
        };
        Ok(Client { http, url, region: of.region.clone(), credentials, bodies: Arc::new(Semaphore::new(BODY_UNITS as usize)) })
    }

    /// Invokes the function and waits for its answer.
    pub(super) async fn invoke(&self, invocation: &Invocation) -> Replied {
        let refused = |message: String, denied| (Reply::Refused { denied, message }, None);
        let credential = match self.credentials.get().await {
            Ok(credential) => credential,
            Err(message) => return refused(format!("there are no AWS credentials: {message}"), true),
        };
        // Plain data always has a JSON.
        let mut request = HttpRequest::new(HttpRequestBody::from(serde_json::to_vec(invocation).unwrap_or_default()));
        match (self.url.parse(), "POST".parse()) {
            (Ok(url), Ok(post)) => (*request.uri_mut(), *request.method_mut()) = (url, post),
            _ => return refused(format!("{} is no URL", self.url), false),
        }
        for (name, value) in [("x-amz-invocation-type", "RequestResponse"), ("x-amz-log-type", "Tail"), ("content-type", "application/json")] {
            request.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        if let Err(error) = AwsAuthorizer::new(&credential, "lambda", &self.region).try_authorize(&mut request, None) {
            return refused(error.to_string(), true);
        }
        let lost = |error: object_store::client::HttpError| {
            // What was not sent is not run.
            let is_over = error.kind() == HttpErrorKind::Connect;
            (Reply::Lost { message: sources(&error), is_over }, None)
        };
        let response = match self.http.execute(request).await {
            Ok(response) => response,
            Err(error) => return lost(error),
        };
        let (head, body) = response.into_parts();
        let header = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok());
        let units = header("content-length").and_then(|v| v.parse::<u64>().ok()).unwrap_or(UNIT_BYTES).div_ceil(UNIT_BYTES);
        let permit = Arc::clone(&self.bodies).acquire_many_owned(u32::try_from(units).unwrap_or(BODY_UNITS).clamp(1, BODY_UNITS)).await.ok();
        let body = match body.bytes().await {
            Ok(body) => body,
            Err(error) => return lost(error),
        };
        let raw = Raw {
            status: head.status.as_u16(),
            function_error: header("x-amz-function-error"),
            error_type: header("x-amzn-errortype"),
            log: header("x-amz-log-result"),
            body: &body,
        };
        (read(&raw), permit)
    }
}

/// An error with all that is behind it.
fn sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let said = source.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = source.source();
    }
    text
}

/// Who we are to AWS.
#[derive(Debug)]
enum Credentials {
    Given(Arc<AwsCredential>),
    /// Environment, web identity, container or instance, as for S3.
    Chain(AwsCredentialProvider),
    /// A profile, as the AWS command resolves it; single sign-on too.
    Exported(Mutex<(Arc<AwsCredential>, Instant)>),
}

/// What says that the chain has something.
const OF_CHAIN: [&str; 4] =
    ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"];

impl Credentials {
    fn find(region: &str) -> Result<Credentials, String> {
        if !OF_CHAIN.iter().any(|name| std::env::var_os(name).is_some_and(|v| !v.is_empty())) {
            match exported() {
                Ok(Some(credential)) => return Ok(Credentials::Exported(Mutex::new((Arc::new(credential), Instant::now())))),
                // A profile that was asked for must not be replaced by what a machine has.
                Err(error) if std::env::var_os("AWS_PROFILE").is_some() => return Err(error),
                _ => {}
            }
        }
        // The bucket is never asked for anything.
        let s3 = AmazonS3Builder::from_env().with_bucket_name("freestone").with_region(region).build().map_err(|e| e.to_string())?;
        Ok(Credentials::Chain(Arc::clone(s3.credentials())))
    }

    async fn get(&self) -> Result<Arc<AwsCredential>, String> {
        match self {
            Credentials::Given(given) => Ok(Arc::clone(given)),
            Credentials::Chain(provider) => provider.get_credential().await.map_err(|e| e.to_string()),
            Credentials::Exported(known) => {
                let mut known = known.lock().await;
                if known.1.elapsed() > REFRESH {
                    let asked = tokio::task::spawn_blocking(exported).await.map_err(|e| e.to_string())?;
                    *known = (Arc::new(asked?.ok_or("the aws command is gone")?), Instant::now());
                }
                Ok(Arc::clone(&known.0))
            }
        }
    }
}

/// What the AWS command says of the profile in use; `None` where it is not installed.
fn exported() -> Result<Option<AwsCredential>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Exported {
        access_key_id: String,
        secret_access_key: String,
        session_token: Option<String>,
    }
    let output = match Command::new("aws").args(["configure", "export-credentials", "--format", "process"]).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        output => output.map_err(|e| format!("aws configure export-credentials: {e}"))?,
    };
    if !output.status.success() {
        return Err(format!("aws configure export-credentials: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let exported: Exported = serde_json::from_slice(&output.stdout).map_err(|e| format!("aws configure export-credentials: {e}"))?;
    Ok(Some(AwsCredential { key_id: exported.access_key_id, secret_key: exported.secret_access_key, token: exported.session_token }))
}

/// Descriptors that are not for sockets.
const OTHER_DESCRIPTORS: u64 = 256;

/// Sees to it that this process may have so many connections, where it may; how many it may have.
pub(super) fn sockets(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let needed = wanted as u64 + OTHER_DESCRIPTORS;
    let mut current = limit.current.unwrap_or(u64::MAX);
    if current < needed {
        let raised = needed.min(limit.maximum.unwrap_or(u64::MAX));
        if setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum }).is_ok() {
            current = raised;
        }
    }
    wanted.min(usize::try_from(current.saturating_sub(OTHER_DESCRIPTORS)).unwrap_or(usize::MAX)).max(1)
}
