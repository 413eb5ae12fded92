//! The Invoke API, signed, without an SDK.

use std::sync::Arc;
use std::time::Duration;

use freestone_engine::storage::aws;
use freestone_worker::Invocation;
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{
    HttpClient, HttpConnector, HttpErrorKind, HttpRequest, HttpRequestBody, ReqwestConnector,
};
use object_store::{ClientOptions, HeaderValue};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::LambdaExecutor;
use super::reply::{Raw, Reply, read};

/// Bodies of answers that may be in memory at once, in units: TCP holds the others back.
const BODY_UNITS: u32 = 1024;
const UNIT_BYTES: u64 = 64 << 10;

/// A client of one function.
#[derive(Debug)]
pub(super) struct Client {
    http: HttpClient,
    url: String,
    region: String,
    credentials: AwsCredentialProvider,
    bodies: Arc<Semaphore>,
}

/// A reply, and what holds the room that it takes.
pub(super) type Replied = (Reply, Option<OwnedSemaphorePermit>);

impl Client {
    /// One that waits for an answer so long. No I/O.
    pub(super) fn new(of: &LambdaExecutor, timeout: Duration) -> Result<Client, String> {
        let options = ClientOptions::new()
            .with_allow_http(of.endpoint.starts_with("http://"))
            .with_timeout(timeout)
            .with_connect_timeout(Duration::from_secs(10))
            .with_user_agent(HeaderValue::from_static(concat!(
                "freestone/",
                env!("CARGO_PKG_VERSION")
            )));
        let http = ReqwestConnector::default().connect(&options).map_err(|e| e.to_string())?;
        let mut url = format!(
            "{}/2015-03-31/functions/{}/invocations",
            of.endpoint.trim_end_matches('/'),
            of.function
        );
        if let Some(qualifier) = &of.qualifier {
            url = format!("{url}?Qualifier={qualifier}");
        }
        let credentials = match &of.credentials {
            Some(given) => Arc::clone(given),
            None => aws::credentials(&of.region).map_err(|e| e.to_string())?,
        };
        Ok(Client {
            http,
            url,
            region: of.region.clone(),
            credentials,
            bodies: Arc::new(Semaphore::new(BODY_UNITS as usize)),
        })
    }

    /// Invokes the function and waits for its answer.
    pub(super) async fn invoke(&self, invocation: &Invocation) -> Replied {
        let refused = |message: String, denied| (Reply::Refused { denied, message }, None);
        let credential = match self.credentials.get_credential().await {
            Ok(credential) => credential,
            Err(error) => return refused(sources(&error), true),
        };
        let mut request = match serde_json::to_vec(invocation) {
            Ok(body) => HttpRequest::new(HttpRequestBody::from(body)),
            Err(error) => {
                return refused(
                    format!(
                        "internal error: cannot serialize an invocation: {error} (hint: please report \
                            this defect)"
                    ),
                    false,
                );
            }
        };
        match (self.url.parse(), "POST".parse()) {
            (Ok(url), Ok(post)) => (*request.uri_mut(), *request.method_mut()) = (url, post),
            _ => return refused(format!("invalid endpoint: `{}` is not a URL", self.url), false),
        }
        for (name, value) in [
            ("x-amz-invocation-type", "RequestResponse"),
            ("x-amz-log-type", "Tail"),
            ("content-type", "application/json"),
        ] {
            request.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        if let Err(error) = AwsAuthorizer::new(&credential, "lambda", &self.region)
            .try_authorize(&mut request, None)
        {
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
        let units = header("content-length")
            .and_then(|v| v.parse::<u64>().ok())
            .unwrap_or(UNIT_BYTES)
            .div_ceil(UNIT_BYTES);
        let permit = Arc::clone(&self.bodies)
            .acquire_many_owned(u32::try_from(units).unwrap_or(BODY_UNITS).clamp(1, BODY_UNITS))
            .await
            .ok();
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

/// Descriptors that are not for sockets.
const OTHER_DESCRIPTORS: u64 = 256;

/// Sees to it that this process may have so many connections, where it may; how many it may have.
pub(super) fn sockets(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let needed = wanted as u64 + OTHER_DESCRIPTORS;
    let mut current = limit.current.unwrap_or(u64::MAX);
    if current < needed {
        let raised = needed.min(limit.maximum.unwrap_or(u64::MAX));
        if setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum })
            .is_ok()
        {
            current = raised;
        }
    }
    wanted
        .min(usize::try_from(current.saturating_sub(OTHER_DESCRIPTORS)).unwrap_or(usize::MAX))
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limit is one of the whole process: it is only raised here, as a run would.
    #[test]
    fn there_are_as_many_sockets_as_the_system_lets_us_have() {
        let before = getrlimit(Resource::Nofile);
        let (current, maximum) =
            (before.current.unwrap_or(u64::MAX), before.maximum.unwrap_or(u64::MAX));
        assert_eq!(sockets(1), 1);
        let fits = usize::try_from(current.min(1 << 20)).unwrap() - OTHER_DESCRIPTORS as usize;
        assert_eq!(sockets(fits), fits);
        assert_eq!(
            getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            current,
            "nothing is raised that is enough"
        );
        if maximum < 1 << 30 {
            assert_eq!(sockets(1 << 30) as u64, maximum - OTHER_DESCRIPTORS);
            assert_eq!(getrlimit(Resource::Nofile).current, Some(maximum));
        }
        assert!(
            super::super::dispatch::LOOKS as u64 <= OTHER_DESCRIPTORS / 2,
            "looking for records takes sockets too"
        );
    }
}
