//! An HTTP client with retries: the only place that retries network requests.
//!
//! `object_store` sends its requests through a [`Connector`]. Transient failures are retried as
//! [`Retry`] specifies. After the last try, the error's chain of sources contains a
//! [`RequestFailed`].
//! `object_store` does not retry those requests. It does resume interrupted
//! response bodies, with the same policy.
//!
//! A request whose credentials have expired is signed again with renewed ones, if there are any.
//!
//! Every request may be retried, including a conditional put whose response was lost. The second
//! put then fails its condition, so callers of conditional puts must read the object to detect
//! their own write.

use std::error::Error;

use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use thiserror::Error as ThisError;

use super::aws;
use crate::retry::Retry;
use crate::system::System;

/// The reason for which a request failed after all retries.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[error("{what}, {tries} {}", if *tries == 1 { "try" } else { "tries" })]
pub(super) struct RequestFailed {
    /// The last failure.
    what: String,
    tries: u32,
    pub(super) kind: Failure,
}

/// The kind of a request's failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The server or the connection failed; the failure may be transient.
    Outage,
    /// The server limited the request rate.
    Throttle,
    /// The server does not support the operation.
    Unsupported,
    /// The credentials have expired. A later request may be signed with others.
    Expired,
}

impl RequestFailed {
    /// Returns the [`RequestFailed`] in an error of `object_store`, if there is one.
    pub(super) fn of(error: &object_store::Error) -> Option<&RequestFailed> {
        chain(error).find_map(<dyn Error>::downcast_ref)
    }
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let this = next?;
        next = this.source();
        Some(this)
    })
}

/// A connector whose clients retry.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    pub(super) retry: Retry,
    pub(super) system: System,
    /// Whether requests are signed with a profile's credentials, which are renewed if a server
    /// refuses them as expired.
    pub(super) renews: bool,
}

impl Connector {
    /// Returns a connector whose clients do not renew credentials.
    pub(super) fn new(retry: Retry, system: System) -> Connector {
        Connector { retry, system, renews: false }
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Retrying { inner, with: self.clone() }))
    }
}

/// Returns the equivalent policy for `object_store`, which applies it to interrupted response
/// bodies.
pub(super) fn retry_config(retry: &Retry) -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: retry.backoff.first,
        max_backoff: retry.backoff.longest,
        base: 2.0,
    };
    RetryConfig {
        backoff,
        max_retries: retry.tries.saturating_sub(1) as usize,
        retry_timeout: retry.within,
    }
}

#[derive(Debug)]
struct Retrying {
    inner: HttpClient,
    with: Connector,
}

#[async_trait::async_trait]
impl HttpService for Retrying {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let Connector { retry, system, renews } = &self.with;
        let begun = system.now();
        let (mut tries, mut is_renewed) = (0, false);
        loop {
            tries += 1;
            let (what, kind) = match answered(self.inner.execute(request.clone()).await).await {
                Answer::Final(result) => return result,
                Answer::Failed(what, kind) => (what, kind),
            };
            if kind == Failure::Expired && *renews && !is_renewed {
                is_renewed = true;
                if aws::sign_again(&mut request, &*system.clock).await {
                    continue;
                }
            }
            let next = if matches!(kind, Failure::Unsupported | Failure::Expired) {
                None
            } else {
                retry.next(tries, system.elapsed(begun), system.fraction())
            };
            match next {
                Some(pause) => system.wait(pause).await,
                // `object_store` does not retry errors of this kind.
                None => {
                    return Err(HttpError::new(
                        HttpErrorKind::Unknown,
                        RequestFailed { what, tries, kind },
                    ));
                }
            }
        }
    }
}

/// The result of one try.
enum Answer {
    /// The result to return to `object_store`.
    Final(Result<HttpResponse, HttpError>),
    /// The message and kind of a failure.
    Failed(String, Failure),
}

async fn answered(result: Result<HttpResponse, HttpError>) -> Answer {
    let response = match result {
        Ok(response) => response,
        Err(error) => {
            return match error.kind() {
                HttpErrorKind::Connect
                | HttpErrorKind::Request
                | HttpErrorKind::Timeout
                | HttpErrorKind::Interrupted => Answer::Failed(sources(&error), Failure::Outage),
                _ => Answer::Final(Err(error)),
            };
        }
    };
    let status = response.status();
    let number = status.as_u16();
    match number {
        // S3 also answers slow clients with status 400.
        400 | 408 | 429 | 500.. => {}
        _ => return Answer::Final(Ok(response)),
    }
    let (head, body) = response.into_parts();
    let body = match body.bytes().await {
        Ok(body) => body,
        Err(error) => {
            return Answer::Failed(
                sources(&error),
                if is_throttle(number, None) { Failure::Throttle } else { Failure::Outage },
            );
        }
    };
    let text = String::from_utf8_lossy(&body);
    let code = code(&text);
    let kind = match number {
        _ if is_throttle(number, code) => Failure::Throttle,
        400 if code == Some("ExpiredToken") => Failure::Expired,
        400 if code != Some("RequestTimeout") => {
            return Answer::Final(Ok(HttpResponse::from_parts(head, body.clone().into())));
        }
        501 | 505 => Failure::Unsupported,
        _ => Failure::Outage,
    };
    let code = code.map_or_else(String::new, |c| format!(" ({c})"));
    Answer::Failed(format!("the server answered {status}{code}"), kind)
}

/// The error codes for rate limits of S3, of services compatible with it, and of Azure.
const THROTTLES: [&str; 7] = [
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "TooManyRequests",
    "ServerBusy",
];

fn is_throttle(status: u16, code: Option<&str>) -> bool {
    matches!(status, 429 | 503) || code.is_some_and(|c| THROTTLES.contains(&c))
}

/// Returns the code in the XML of an error response.
fn code(body: &str) -> Option<&str> {
    let (_, rest) = body.split_once("<Error>")?;
    let (_, rest) = rest.split_once("<Code>")?;
    rest.split_once("</Code>").map(|(code, _)| code.trim())
}

/// Returns the text of an error with all of its sources.
fn sources(error: &HttpError) -> String {
    let mut text = error.to_string();
    for source in chain(error).skip(1) {
        let said = source.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use freestone_kernels::Buffer;
    use object_store::aws::AmazonS3Builder;

    use super::*;
    use crate::retry::Backoff;
    use crate::storage::object::ObjectStore;
    use crate::storage::{StorageError, Store};
    use crate::system::ManualClock;

    /// The reaction of a test server to a request.
    #[derive(Clone, Copy)]
    enum Reply {
        /// Sends a response with a status and a body.
        Answer(u16, &'static str),
        /// Sends a part of the body and closes the connection.
        Part,
        /// Closes the connection.
        Lose,
    }
    use Reply::{Answer, Lose, Part};

    const SLOW_DOWN: &str = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Please \
        reduce your request rate.</Message></Error>";
    const INTERNAL: &str = "<Error><Code>InternalError</Code><Message>Not a SlowDown, nor a 503 \
        Service Unavailable, nor a Throttle.</Message></Error>";
    const TOO_SLOW: &str = "<Error><Code>RequestTimeout</Code></Error>";
    const EXPIRED: &str = "<Error><Code>ExpiredToken</Code></Error>";

    /// Starts a local server that sends these replies and repeats the last. Calls `each` before a
    /// reply. Returns the URL and the received methods.
    fn server(
        replies: &'static [Reply],
        each: impl Fn() + Send + 'static,
    ) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let (url, seen) = (
            format!("http://{}", listener.local_addr().unwrap()),
            Arc::new(Mutex::new(Vec::new())),
        );
        let methods = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let head: Vec<String> = reader
                    .by_ref()
                    .lines()
                    .map_while(Result::ok)
                    .take_while(|l| !l.is_empty())
                    .collect();
                let Some(method) = head.first().and_then(|l| l.split(' ').next()) else { continue };
                let length = head.iter().find_map(|l| {
                    l.to_ascii_lowercase()
                        .strip_prefix("content-length:")
                        .map(|v| v.trim().parse().unwrap())
                });
                std::io::copy(&mut reader.take(length.unwrap_or(0)), &mut std::io::sink()).unwrap();
                each();
                let n = {
                    let mut seen = methods.lock().unwrap();
                    seen.push(method.to_owned());
                    seen.len()
                };
                let fixed = "Last-Modified: Sun, 22 Nov 2026 20:00:00 GMT\r\nETag: \
                    \"1\"\r\nConnection: close";
                let written = match replies[n.min(replies.len()) - 1] {
                    Answer(status, body) => write!(
                        stream,
                        "HTTP/1.1 {status} Status\r\nContent-Length: {}\r\n{fixed}\r\n\r\n{body}",
                        body.len()
                    ),
                    Part => {
                        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n{fixed}\r\n\r\nhe")
                    }
                    Lose => Ok(()),
                };
                written.unwrap();
            }
        });
        (url, seen)
    }

    const QUICK: Retry = Retry {
        backoff: Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(2) },
        ..Retry::REQUESTS
    };

    /// Returns a bucket at an endpoint, and the same location as a plain HTTP server.
    fn stores(endpoint: &str, system: &System) -> [ObjectStore; 2] {
        let connector = Connector::new(QUICK, system.clone());
        let bucket = AmazonS3Builder::new()
            .with_endpoint(endpoint)
            .with_allow_http(true)
            .with_bucket_name("bucket")
            .with_region("r");
        let bucket = bucket
            .with_access_key_id("k")
            .with_secret_access_key("s")
            .with_retry(retry_config(&QUICK))
            .with_http_connector(connector);
        [
            ObjectStore::over("s3://bucket", "", Arc::new(bucket.build().unwrap()), system),
            ObjectStore::open_with(endpoint, system, QUICK).unwrap(),
        ]
    }

    fn read(store: &dyn Store) -> Result<Option<Vec<u8>>, StorageError> {
        let mut into = Buffer::zeroed(100);
        store
            .read("SlowDown/429 Too Many", None, 100, &mut into)
            .map(|found| found.then(|| into.bytes().to_vec()))
    }

    type Request = fn(&dyn Store) -> Result<(), StorageError>;

    /// Returns the outcome of a request.
    fn ending(result: Result<(), StorageError>) -> &'static str {
        match result {
            Ok(()) => "done",
            Err(e) if e.is_throttle() && !e.is_retryable() => "throttled",
            Err(e) if e.is_transient() && !e.is_retryable() => "gave up",
            Err(StorageError::Denied { .. }) => "denied",
            Err(e) if !e.is_transient() && !e.is_throttle() => "failed",
            Err(e) => panic!("it may be retried: {e}"),
        }
    }

    const REQUESTS: [(&str, Request); 4] = [
        ("read", |s| read(s).map(drop)),
        ("write", |s| s.write("SlowDown", b"here")),
        ("remove", |s| s.remove("SlowDown")),
        ("size", |s| s.size("SlowDown").map(drop)),
    ];

    /// Checks the number of requests and the outcome for each kind of request, with these replies
    /// of S3 and of a plain server.
    #[track_caller]
    fn check(replies: &'static [Reply], requests: usize, expect: &str) {
        // The response to a HEAD, the last kind of request, has no body and thus no code.
        let is_coded =
            replies.iter().any(|r| matches!(r, Answer(400 | 500, body) if !body.is_empty()));
        for (name, make) in &REQUESTS[..if is_coded { 3 } else { 4 }] {
            for which in 0..2 {
                let (url, seen) = server(replies, || {});
                let store = &stores(&url, &System::default())[which];
                let ended = make(store);
                let said = format!("{ended:?}");
                assert_eq!(
                    (ending(ended), seen.lock().unwrap().len()),
                    (expect, requests),
                    "{name} at {}: {said}",
                    store.url()
                );
            }
        }
    }

    #[test]
    fn requests_are_retried_by_what_the_server_answers() {
        let tries = QUICK.tries as usize;
        check(&[Answer(503, SLOW_DOWN)], tries, "throttled");
        check(&[Answer(503, "")], tries, "throttled");
        check(&[Answer(429, "")], tries, "throttled");
        check(&[Answer(500, SLOW_DOWN)], tries, "throttled");
        check(&[Answer(400, SLOW_DOWN)], tries, "throttled");
        check(&[Answer(500, INTERNAL)], tries, "gave up");
        check(&[Answer(502, "<html>SlowDown: 503 Service Unavailable</html>")], tries, "gave up");
        check(&[Answer(408, "")], tries, "gave up");
        check(&[Answer(400, TOO_SLOW)], tries, "gave up");
        check(&[Lose], tries, "gave up");
        // The last failure determines the outcome.
        check(
            &[Lose, Answer(500, ""), Answer(429, ""), Lose, Lose, Answer(503, SLOW_DOWN)],
            tries,
            "throttled",
        );
        // These credentials cannot be renewed, but a later request may have others.
        check(&[Answer(400, EXPIRED)], 1, "gave up");
        check(&[Answer(501, "")], 1, "failed");
        check(&[Answer(403, "<Error><Code>AccessDenied</Code></Error>")], 1, "denied");
    }

    #[test]
    fn what_passes_is_not_noticed() {
        for replies in [
            &[Answer(503, SLOW_DOWN), Answer(429, ""), Answer(200, "here")][..],
            &[Answer(500, ""), Lose, Answer(200, "here")],
        ] {
            for which in 0..2 {
                let (url, seen) = server(replies, || {});
                let store = &stores(&url, &System::default())[which];
                assert_eq!(
                    (read(store).unwrap().unwrap().as_slice(), seen.lock().unwrap().len()),
                    (&b"here"[..], 3)
                );
            }
        }
    }

    #[test]
    fn a_put_with_a_condition_is_repeated_once_its_answer_is_lost() {
        use object_store::{ObjectStoreExt as _, PutMode, PutOptions};
        let (url, seen) = server(&[Lose, Answer(412, "")], || {});
        let store = &stores(&url, &System::default())[0];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = runtime.block_on(object_store::ObjectStore::put_opts(
            store.backend(),
            &"key".into(),
            b"me".to_vec().into(),
            options,
        ));
        assert!(
            matches!(
                put,
                Err(object_store::Error::AlreadyExists { .. }
                    | object_store::Error::Precondition { .. })
            ),
            "{put:?}"
        );
        assert_eq!(*seen.lock().unwrap(), ["PUT", "PUT"]);
        let _ = runtime.block_on(store.backend().head(&"key".into()));
    }

    #[test]
    fn bodies_that_break_off_are_gone_on_with_a_bounded_number_of_times() {
        for which in 0..2 {
            let (url, seen) = server(&[Part], || {});
            let ended = read(&stores(&url, &System::default())[which]).map(drop);
            let n = seen.lock().unwrap().len();
            assert!(
                ending(ended) == "gave up" && (2..=QUICK.tries as usize).contains(&n),
                "{n} requests"
            );
        }
    }

    #[test]
    fn requests_end_with_their_time() {
        let clock = ManualClock::default();
        let system = System { clock: Arc::new(clock.clone()), ..System::default() };
        // Only the server and the loop below advance the clock, so pauses end only then.
        let moving = clock.clone();
        let (url, seen) =
            server(&[Answer(503, "")], move || moving.advance(Duration::from_secs(8)));
        let store = stores(&url, &system);
        let reading = std::thread::spawn(move || ending(read(&store[0]).map(drop)));
        while !reading.is_finished() {
            clock.advance(Duration::from_micros(10));
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!((reading.join().unwrap(), seen.lock().unwrap().len()), ("throttled", 3));
    }

    /// A listing of two objects, and the response to their deletion.
    const LISTED: &str = "<ListBucketResult><IsTruncated>false</IsTruncated>\
        <Contents><Key>a/b/0</Key><LastModified>2026-11-22T20:00:00.000Z</LastModified>\
        <ETag>1</ETag><Size>1</Size></Contents>\
        <Contents><Key>a/c/d/1</Key><LastModified>2026-11-22T20:00:00.000Z</LastModified>\
        <ETag>1</ETag><Size>1</Size></Contents></ListBucketResult>";
    const DELETED: &str = "<DeleteResult><Deleted><Key>a/b/0</Key></Deleted>\
        <Deleted><Key>a/c/d/1</Key></Deleted></DeleteResult>";
    const KEPT: &str = "<DeleteResult><Deleted><Key>a/b/0</Key></Deleted><Error>\
        <Key>a/c/d/1</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>";

    #[test]
    fn prefix_is_removed_with_one_listing_and_one_deletion() {
        let remove = |replies: &'static [Reply]| {
            let (url, seen) = server(replies, || {});
            let removed = stores(&url, &System::default())[0].remove("a/");
            let seen = seen.lock().unwrap().clone();
            (removed, seen)
        };
        let (removed, seen) = remove(&[Answer(200, LISTED), Answer(200, DELETED)]);
        assert!(removed.is_ok(), "{removed:?}");
        assert_eq!(seen, ["GET", "POST"]);
        // A deletion whose response was lost is repeated.
        let (removed, seen) =
            remove(&[Answer(200, LISTED), Lose, Answer(503, ""), Answer(200, DELETED)]);
        assert!(removed.is_ok() && seen.len() == 4, "{removed:?} after {seen:?}");
        let (removed, _) = remove(&[Answer(200, LISTED), Answer(200, KEPT)]);
        assert!(removed.unwrap_err().to_string().contains("AccessDenied"));
    }

    #[test]
    fn the_code_is_that_of_the_error() {
        assert_eq!(code(SLOW_DOWN), Some("SlowDown"));
        assert_eq!(code("<Error>\n  <Code> ServerBusy </Code></Error>"), Some("ServerBusy"));
        assert_eq!(code("{\"Code\": \"SlowDown\"}"), None);
        assert_eq!(code("<Code>SlowDown</Code>"), None);
        assert_eq!(code(""), None);
    }
}
