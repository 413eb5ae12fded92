//! A client of the Invoke API of AWS Lambda, with signed requests.

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

/// The maximum size of the answers in memory at once, in units. Others are not read from their
/// sockets yet.
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

/// A reply with the permit for its memory.
pub(super) type Replied = (Reply, Option<OwnedSemaphorePermit>);

impl Client {
    /// Creates a client with a time limit for answers. Performs no I/O.
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

    /// Invokes the function and waits for its reply.
    pub(super) async fn invoke(&self, invocation: &Invocation) -> Replied {
        match self.signed_request(invocation).await {
            Ok(request) => self.send(request).await,
            Err(refused) => (refused, None),
        }
    }

    async fn signed_request(&self, invocation: &Invocation) -> Result<HttpRequest, Reply> {
        let refused = |denied, message: String| Reply::Refused { denied, message };
        let credential = self.credentials.get_credential().await;
        let credential = credential.map_err(|e| refused(true, with_sources(&e)))?;
        let body = serde_json::to_vec(invocation).map_err(|e| {
            let text = "internal error: cannot serialize an invocation";
            refused(false, format!("{text}: {e} (hint: please report this defect)"))
        })?;
        let mut request = HttpRequest::new(HttpRequestBody::from(body));
        let (Ok(url), Ok(post)) = (self.url.parse(), "POST".parse()) else {
            return Err(refused(false, format!("invalid endpoint: `{}` is not a URL", self.url)));
        };
        (*request.uri_mut(), *request.method_mut()) = (url, post);
        for (name, value) in [
            ("x-amz-invocation-type", "RequestResponse"),
            ("x-amz-log-type", "Tail"),
            ("content-type", "application/json"),
        ] {
            request.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        AwsAuthorizer::new(&credential, "lambda", &self.region)
            .try_authorize(&mut request, None)
            .map_err(|e| refused(true, e.to_string()))?;
        Ok(request)
    }

    async fn send(&self, request: HttpRequest) -> Replied {
        let lost = |error: object_store::client::HttpError| {
            // A request that was not sent is not run.
            let is_over = error.kind() == HttpErrorKind::Connect;
            (Reply::Lost { message: with_sources(&error), is_over }, None)
        };
        let response = match self.http.execute(request).await {
            Ok(response) => response,
            Err(error) => return lost(error),
        };
        let (head, body) = response.into_parts();
        let header = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok());
        let length = header("content-length").and_then(|v| v.parse::<u64>().ok());
        let units = u32::try_from(length.unwrap_or(UNIT_BYTES).div_ceil(UNIT_BYTES));
        let permit = Arc::clone(&self.bodies)
            .acquire_many_owned(units.unwrap_or(BODY_UNITS).clamp(1, BODY_UNITS))
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

/// Returns the text of an error and its sources.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        next = source.source();
    }
    text
}

/// The number of descriptors reserved for other purposes than invocations.
const OTHER_DESCRIPTORS: u64 = 256;

/// Raises the limit of open descriptors for a number of connections, as far as permitted. Returns
/// the possible number of connections.
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

    /// The limit belongs to the whole process, so the test only raises it, as a run would.
    #[test]
    fn sockets_raises_the_descriptor_limit() {
        let before = getrlimit(Resource::Nofile);
        let (current, maximum) =
            (before.current.unwrap_or(u64::MAX), before.maximum.unwrap_or(u64::MAX));
        assert_eq!(sockets(1), 1);
        let fits = usize::try_from(current.min(1 << 20)).unwrap() - OTHER_DESCRIPTORS as usize;
        assert_eq!(sockets(fits), fits);
        assert_eq!(
            getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            current,
            "a sufficient limit is not raised"
        );
        if maximum < 1 << 30 {
            assert_eq!(sockets(1 << 30) as u64, maximum - OTHER_DESCRIPTORS);
            assert_eq!(getrlimit(Resource::Nofile).current, Some(maximum));
        }
        assert!(
            super::super::invocation::MAX_RECORD_READS as u64 <= OTHER_DESCRIPTORS / 2,
            "reading records takes sockets too"
        );
    }
}
