//! Requests over HTTP, retried: the only place that repeats a request.
//!
//! `object_store` makes its requests through a [`Connector`]. A request that fails in a way that may pass is repeated as [`Retry`] says; what is left
//! after that is a [`GaveUp`] in the error's chain of sources. `object_store` does not repeat what this client gave up; it goes on with a body that
//! broke off, by the same policy.
//!
//! Every request may be repeated, also a put with a condition whose answer was lost: the second one then finds the condition false, and whoever makes
//! such puts looks at what is there.

use std::error::Error;

use object_store::client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use thiserror::Error as ThisError;

use crate::retry::Retry;
use crate::system::System;

/// Why a request was given up.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[error("{what}, {tries} {}", if *tries == 1 { "try" } else { "tries" })]
pub(super) struct GaveUp {
    /// The last failure.
    what: String,
    tries: u32,
    pub(super) kind: Failure,
}

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The server or the connection failed; it may pass.
    Outage,
    /// The server asked for fewer requests.
    Throttle,
    /// The server cannot do this.
    Unsupported,
}

impl GaveUp {
    /// What an error of `object_store` has of it.
    pub(super) fn of(error: &object_store::Error) -> Option<&GaveUp> {
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

/// Makes clients that retry.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    pub(super) retry: Retry,
    pub(super) system: System,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Retrying { inner, retry: self.retry, system: self.system.clone() }))
    }
}

/// The policy as `object_store` has it, which follows it where a body breaks off.
pub(super) fn retry_config(retry: &Retry) -> RetryConfig {
    let backoff = BackoffConfig { init_backoff: retry.backoff.first, max_backoff: retry.backoff.longest, base: 2.0 };
    RetryConfig { backoff, max_retries: retry.tries.saturating_sub(1) as usize, retry_timeout: retry.within }
}

#[derive(Debug)]
struct Retrying {
    inner: HttpClient,
    retry: Retry,
    system: System,
}

#[async_trait::async_trait]
impl HttpService for Retrying {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let begun = self.system.now();
        let mut tries = 0;
        loop {
            tries += 1;
            let (what, kind) = match answered(self.inner.execute(request.clone()).await).await {
                Answer::Final(result) => return result,
                Answer::Failed(what, kind) => (what, kind),
            };
            let elapsed = self.system.elapsed(begun);
            let next = if kind == Failure::Unsupported { None } else { self.retry.next(tries, elapsed, self.system.fraction()) };
            match next {
                Some(pause) => self.system.wait(pause).await,
                // Of this kind `object_store` repeats nothing.
                None => return Err(HttpError::new(HttpErrorKind::Unknown, GaveUp { what, tries, kind })),
            }
        }
    }
}

/// What came of one try.
enum Answer {
    /// What `object_store` is to see.
    Final(Result<HttpResponse, HttpError>),
    /// What went wrong.
    Failed(String, Failure),
}

async fn answered(result: Result<HttpResponse, HttpError>) -> Answer {
    let response = match result {
        Ok(response) => response,
        Err(error) => {
            return match error.kind() {
                HttpErrorKind::Connect | HttpErrorKind::Request | HttpErrorKind::Timeout | HttpErrorKind::Interrupted => {
                    Answer::Failed(sources(&error), Failure::Outage)
                }
                _ => Answer::Final(Err(error)),
            };
        }
    };
    let status = response.status();
    let number = status.as_u16();
    match number {
        // A bad request is what S3 answers where a client was too slow, too.
        400 | 408 | 429 | 500.. => {}
        _ => return Answer::Final(Ok(response)),
    }
    let (head, body) = response.into_parts();
    let body = match body.bytes().await {
        Ok(body) => body,
        Err(error) => return Answer::Failed(sources(&error), if is_throttle(number, None) { Failure::Throttle } else { Failure::Outage }),
    };
    let text = String::from_utf8_lossy(&body);
    let code = code(&text);
    let kind = match number {
        _ if is_throttle(number, code) => Failure::Throttle,
        400 if code != Some("RequestTimeout") => return Answer::Final(Ok(HttpResponse::from_parts(head, body.clone().into()))),
        501 | 505 => Failure::Unsupported,
        _ => Failure::Outage,
    };
    let code = code.map_or_else(String::new, |c| format!(" ({c})"));
    Answer::Failed(format!("the server answered {status}{code}"), kind)
}

/// Codes by which S3 and what speaks its language, and Azure, ask for fewer requests.
const THROTTLES: [&str; 7] =
    ["SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "BandwidthLimitExceeded", "TooManyRequests", "ServerBusy"];

fn is_throttle(status: u16, code: Option<&str>) -> bool {
    matches!(status, 429 | 503) || code.is_some_and(|c| THROTTLES.contains(&c))
}

/// The code in the XML of an error.
fn code(body: &str) -> Option<&str> {
    let (_, rest) = body.split_once("<Error>")?;
    let (_, rest) = rest.split_once("<Code>")?;
    rest.split_once("</Code>").map(|(code, _)| code.trim())
}

/// An error with all that is behind it.
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

    /// What a server does with a request.
    #[derive(Clone, Copy)]
    enum Reply {
        /// Answers with a status and a body.
        Answer(u16, &'static str),
        /// Sends a part of the body and closes the connection.
        Part,
        /// Closes the connection.
        Lose,
    }
    use Reply::{Answer, Lose, Part};

    const SLOW_DOWN: &str = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
    const INTERNAL: &str = "<Error><Code>InternalError</Code><Message>Not a SlowDown, nor a 503 Service Unavailable, nor a Throttle.</Message></Error>";
    const TOO_SLOW: &str = "<Error><Code>RequestTimeout</Code></Error>";
    const EXPIRED: &str = "<Error><Code>ExpiredToken</Code></Error>";

    /// A server on this machine that gives these replies, the last one again and again, after calling `each`; and the methods of the requests.
    fn server(replies: &'static [Reply], each: impl Fn() + Send + 'static) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let (url, seen) = (format!("http://{}", listener.local_addr().unwrap()), Arc::new(Mutex::new(Vec::new())));
        let methods = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let head: Vec<String> = reader.by_ref().lines().map_while(Result::ok).take_while(|l| !l.is_empty()).collect();
                let Some(method) = head.first().and_then(|l| l.split(' ').next()) else { continue };
                let length = head.iter().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length:").map(|v| v.trim().parse().unwrap()));
                std::io::copy(&mut reader.take(length.unwrap_or(0)), &mut std::io::sink()).unwrap();
                each();
                let n = {
                    let mut seen = methods.lock().unwrap();
                    seen.push(method.to_owned());
                    seen.len()
                };
                let fixed = "Last-Modified: Sun, 22 Nov 2026 20:00:00 GMT\r\nETag: \"1\"\r\nConnection: close";
                let written = match replies[n.min(replies.len()) - 1] {
                    Answer(status, body) => write!(stream, "HTTP/1.1 {status} Status\r\nContent-Length: {}\r\n{fixed}\r\n\r\n{body}", body.len()),
                    Part => write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n{fixed}\r\n\r\nhe"),
                    Lose => Ok(()),
                };
                written.unwrap();
            }
        });
        (url, seen)
    }

    const QUICK: Retry = Retry { backoff: Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(2) }, ..Retry::REQUESTS };

    /// A bucket at an endpoint, and the same place as a plain server.
    fn stores(endpoint: &str, system: &System) -> [ObjectStore; 2] {
        let connector = Connector { retry: QUICK, system: system.clone() };
        let bucket = AmazonS3Builder::new().with_endpoint(endpoint).with_allow_http(true).with_bucket_name("bucket").with_region("r");
        let bucket = bucket.with_access_key_id("k").with_secret_access_key("s").with_retry(retry_config(&QUICK)).with_http_connector(connector);
        [ObjectStore::over("s3://bucket", "", Arc::new(bucket.build().unwrap()), system), ObjectStore::open_with(endpoint, system, QUICK).unwrap()]
    }

    fn read(store: &dyn Store) -> Result<Option<Vec<u8>>, StorageError> {
        let mut into = Buffer::zeroed(100);
        store.read("SlowDown/429 Too Many", None, 100, &mut into).map(|found| found.then(|| into.bytes().to_vec()))
    }

    type Request = fn(&dyn Store) -> Result<(), StorageError>;

    /// How a request ended.
    fn ending(result: Result<(), StorageError>) -> &'static str {
        match result {
            Ok(()) => "done",
            Err(e) if e.is_throttle() && !e.may_be_retried() => "throttled",
            Err(e) if e.is_transient() && !e.may_be_retried() => "gave up",
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

    /// Each kind of request meets these replies, of S3 and of a plain server, so often, and ends so.
    #[track_caller]
    fn check(replies: &'static [Reply], requests: usize, expect: &str) {
        // An answer to the last kind, a HEAD, has no body, and so no code.
        let is_coded = replies.iter().any(|r| matches!(r, Answer(400 | 500, body) if !body.is_empty()));
        for (name, make) in &REQUESTS[..if is_coded { 3 } else { 4 }] {
            for which in 0..2 {
                let (url, seen) = server(replies, || {});
                let store = &stores(&url, &System::default())[which];
                let ended = make(store);
                let said = format!("{ended:?}");
                assert_eq!((ending(ended), seen.lock().unwrap().len()), (expect, requests), "{name} at {}: {said}", store.url());
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
        // The last failure counts.
        check(&[Lose, Answer(500, ""), Answer(429, ""), Lose, Lose, Answer(503, SLOW_DOWN)], tries, "throttled");
        // New credentials may do.
        check(&[Answer(400, EXPIRED)], 1, "gave up");
        check(&[Answer(501, "")], 1, "failed");
        check(&[Answer(403, "<Error><Code>AccessDenied</Code></Error>")], 1, "denied");
    }

    #[test]
    fn what_passes_is_not_noticed() {
        for replies in [&[Answer(503, SLOW_DOWN), Answer(429, ""), Answer(200, "here")][..], &[Answer(500, ""), Lose, Answer(200, "here")]] {
            for which in 0..2 {
                let (url, seen) = server(replies, || {});
                let store = &stores(&url, &System::default())[which];
                assert_eq!((read(store).unwrap().unwrap().as_slice(), seen.lock().unwrap().len()), (&b"here"[..], 3));
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
        let put = runtime.block_on(object_store::ObjectStore::put_opts(store.backend(), &"key".into(), b"me".to_vec().into(), options));
        assert!(matches!(put, Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. })), "{put:?}");
        assert_eq!(*seen.lock().unwrap(), ["PUT", "PUT"]);
        let _ = runtime.block_on(store.backend().head(&"key".into()));
    }

    #[test]
    fn bodies_that_break_off_are_gone_on_with_a_bounded_number_of_times() {
        for which in 0..2 {
            let (url, seen) = server(&[Part], || {});
            let ended = read(&stores(&url, &System::default())[which]).map(drop);
            let n = seen.lock().unwrap().len();
            assert!(ending(ended) == "gave up" && (2..=QUICK.tries as usize).contains(&n), "{n} requests");
        }
    }

    #[test]
    fn requests_end_with_their_time() {
        let clock = ManualClock::default();
        let system = System { clock: Arc::new(clock.clone()), ..System::default() };
        // The clock stands still but for the server, and so do the pauses.
        let moving = clock.clone();
        let (url, seen) = server(&[Answer(503, "")], move || moving.advance(Duration::from_secs(8)));
        let store = stores(&url, &system);
        let reading = std::thread::spawn(move || ending(read(&store[0]).map(drop)));
        while !reading.is_finished() {
            clock.advance(Duration::from_micros(10));
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!((reading.join().unwrap(), seen.lock().unwrap().len()), ("throttled", 3));
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
