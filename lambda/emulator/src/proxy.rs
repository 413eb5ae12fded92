//! A proxy in front of an object store, with injected faults.
//!
//! Some requests are refused before they reach the store. Others reach it, but the answer is lost.
//! A client cannot distinguish the two, and the retry of a conditional put then conflicts with the
//! client's own object.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex as AsyncMutex;

use crate::faults::unit;

/// The rates of injected faults, each as a fraction of requests from 0 to 1. The seed and the
/// number of a request determine its fault.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StoreFaults {
    /// The seed of the selection.
    pub seed: u64,
    /// The request is answered with `503 SlowDown` and not forwarded.
    pub slow_down: f64,
    /// The request is answered with `500 InternalError` and not forwarded.
    pub fail: f64,
    /// The request is forwarded, and the connection is closed or reset without an answer.
    pub lose: f64,
    /// Like `lose`, but only for conditional puts whose condition held. There are few of them, and
    /// commits depend on them. At 1, each such put loses its answer and fails when retried.
    pub lose_conditional: f64,
}

/// The counters of a proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Received requests.
    pub requests: u64,
    /// Injected responses with status 503.
    pub slowed_down: u64,
    /// Injected responses with status 500.
    pub failed: u64,
    /// Lost answers.
    pub lost: u64,
    /// Of these, answers to conditional puts that the store accepted.
    pub lost_conditional: u64,
}

/// The conditions of puts: those of S3 and Azure, and that of Google Cloud Storage.
const CONDITIONS: [&str; 3] = ["if-match", "if-none-match", "x-goog-if-generation-match"];

/// The fault of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    SlowDown,
    Fail,
    Lose,
    /// Loses the answer to a conditional put whose condition held.
    LoseConditional,
}

impl StoreFaults {
    fn of_request(&self, n: u64) -> Fault {
        // These kinds differ from those of the function's faults, so both can use one seed.
        let at = unit(self.seed, 100, n);
        match () {
            () if at < self.slow_down => Fault::SlowDown,
            () if at < self.slow_down + self.fail => Fault::Fail,
            () if at < self.slow_down + self.fail + self.lose => Fault::Lose,
            () if unit(self.seed, 101, n) < self.lose_conditional => Fault::LoseConditional,
            () => Fault::None,
        }
    }
}

/// A proxy that stops on drop.
#[derive(Debug)]
pub struct StoreProxy {
    runtime: Option<tokio::runtime::Runtime>,
    shared: Arc<Shared>,
    address: SocketAddr,
}

#[derive(Debug)]
struct Shared {
    store: SocketAddr,
    faults: Mutex<StoreFaults>,
    stats: Mutex<StoreStats>,
    connections: AtomicU64,
}

impl StoreProxy {
    /// Listens on 127.0.0.1, at a port chosen by the system. The store must use plain HTTP.
    ///
    /// # Errors
    /// Returns an error if no port is available.
    pub fn start(store: SocketAddr, faults: StoreFaults) -> io::Result<StoreProxy> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("store-proxy")
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            store,
            faults: Mutex::new(faults),
            stats: Mutex::default(),
            connections: AtomicU64::new(0),
        });
        runtime.spawn(listen(listener, Arc::clone(&shared)));
        Ok(StoreProxy { runtime: Some(runtime), shared, address })
    }

    /// Returns the URL for clients, as a value for `AWS_ENDPOINT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the current counters.
    pub fn stats(&self) -> StoreStats {
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the fault rates for subsequent requests.
    pub fn set_faults(&self, faults: StoreFaults) {
        *self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }
}

impl Drop for StoreProxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

type Answer = Response<Full<Bytes>>;
type Upstream = Arc<AsyncMutex<Option<client::SendRequest<Full<Bytes>>>>>;

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Too many open files: retried once some have been closed.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        // Clients handle resets and closes differently, so every second connection is reset when
        // it breaks and the others are closed.
        if shared.connections.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
            let _ = stream.set_zero_linger();
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let upstream = Upstream::default();
            // An error closes the connection without an answer.
            let service = service_fn(move |request| {
                answer(Arc::clone(&shared), Arc::clone(&upstream), request)
            });
            let _ = server::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl Shared {
    /// Returns the fault of the next request. Counts faults that precede forwarding.
    fn next_fault(&self) -> Fault {
        let faults = *self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = faults.of_request(stats.requests);
        stats.requests += 1;
        stats.slowed_down += u64::from(fault == Fault::SlowDown);
        stats.failed += u64::from(fault == Fault::Fail);
        fault
    }
}

async fn answer(
    shared: Arc<Shared>,
    upstream: Upstream,
    request: Request<Incoming>,
) -> io::Result<Answer> {
    let fault = shared.next_fault();
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    match fault {
        Fault::SlowDown => {
            return Ok(refuse(
                StatusCode::SERVICE_UNAVAILABLE,
                "SlowDown",
                "Please reduce your request rate.",
            ));
        }
        Fault::Fail => {
            return Ok(refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalError",
                "We encountered an internal error. Please try again.",
            ));
        }
        Fault::None | Fault::Lose | Fault::LoseConditional => {}
    }
    let is_conditional = head.method == Method::PUT
        && CONDITIONS.iter().any(|name| head.headers.contains_key(*name));
    let response = forward(&shared, &upstream, Request::from_parts(head, Full::new(body))).await?;
    let is_conditional = is_conditional && response.status().is_success();
    if fault == Fault::Lose || (fault == Fault::LoseConditional && is_conditional) {
        let mut stats = shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.lost += 1;
        stats.lost_conditional += u64::from(is_conditional);
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    Ok(response)
}

/// Forwards a request to the store, on the upstream connection of the client's connection.
async fn forward(
    shared: &Shared,
    upstream: &Upstream,
    request: Request<Full<Bytes>>,
) -> io::Result<Answer> {
    let mut upstream = upstream.lock().await;
    let mut sender = match upstream.take().filter(|s| !s.is_closed()) {
        Some(sender) => sender,
        None => {
            let stream = TcpStream::connect(shared.store).await?;
            let _ = stream.set_nodelay(true);
            let (sender, connection) =
                client::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
            tokio::spawn(connection);
            sender
        }
    };
    sender.ready().await.map_err(io::Error::other)?;
    let (mut head, body) =
        sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    *upstream = Some(sender);
    // The body is complete now. The response to a HEAD request has a length without a body.
    head.headers.remove("transfer-encoding");
    Ok(Response::from_parts(head, Full::new(body)))
}

/// Returns an error response in the format of S3.
fn refuse(status: StatusCode, code: &str, message: &str) -> Answer {
    let body = format!(
        "<?xml version=\"1.0\" \
            encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    Response::builder()
        .status(status)
        .header("Content-Type", "application/xml")
        .body(Full::new(body.into()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;
    use crate::request;

    #[test]
    fn faults_are_deterministic_and_match_their_rates() {
        let faults =
            StoreFaults { seed: 3, slow_down: 0.05, fail: 0.03, lose: 0.02, lose_conditional: 0.0 };
        let count = |fault: Fault| {
            (0..20_000).filter(|n| faults.of_request(*n) == fault).count() as f64 / 20_000.0
        };
        for (fault, rate) in
            [(Fault::SlowDown, 0.05), (Fault::Fail, 0.03), (Fault::Lose, 0.02), (Fault::None, 0.9)]
        {
            assert!((count(fault) / rate - 1.0).abs() < 0.2, "{fault:?}");
        }
        assert!(
            (0..1000)
                .any(|n| StoreFaults { seed: 4, ..faults }.of_request(n) != faults.of_request(n))
        );
        assert!((0..1000).all(|n| StoreFaults::default().of_request(n) == Fault::None));
    }

    /// Starts a store that answers each request with its method, path and body. Returns its address
    /// and its number of requests.
    fn store() -> (SocketAddr, Arc<AtomicU64>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let (address, done) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
        let its = Arc::clone(&done);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (its, stream) = (Arc::clone(&its), stream.unwrap());
                std::thread::spawn(move || {
                    let mut input = BufReader::new(stream.try_clone().unwrap());
                    let mut output = stream;
                    loop {
                        let (mut head, mut length) = (String::new(), 0);
                        loop {
                            let mut line = String::new();
                            if input.read_line(&mut line).unwrap_or(0) == 0 {
                                return;
                            }
                            if let Some(n) =
                                line.to_ascii_lowercase().strip_prefix("content-length:")
                            {
                                length = n.trim().parse().unwrap();
                            }
                            if line == "\r\n" {
                                break;
                            }
                            if head.is_empty() {
                                head = line;
                            }
                        }
                        let mut body = vec![0; length];
                        input.read_exact(&mut body).unwrap();
                        its.fetch_add(1, Ordering::Relaxed);
                        let said = format!("{} {}", head.trim(), String::from_utf8_lossy(&body));
                        write!(
                            output,
                            "HTTP/1.1 200 OK\r\nETag: \"7\"\r\nContent-Length: {}\r\n\r\n{said}",
                            said.len()
                        )
                        .unwrap();
                    }
                });
            }
        });
        (address, done)
    }

    #[test]
    fn refused_requests_are_not_forwarded_and_lost_ones_are() {
        let (store, done) = store();
        let proxy = StoreProxy::start(store, StoreFaults::default()).unwrap();
        let ask = |headers: &[(&str, &str)]| {
            request(
                proxy.address,
                "PUT",
                "/bucket/key?x=1",
                headers,
                b"bytes",
                Duration::from_secs(300),
            )
        };
        let fine = ask(&[]).unwrap();
        assert_eq!(
            (fine.status, fine.header("etag"), fine.text().as_str()),
            (200, Some("\"7\""), "PUT /bucket/key?x=1 HTTP/1.1 bytes")
        );
        let only = |faults: StoreFaults| proxy.set_faults(faults);
        only(StoreFaults { slow_down: 1.0, ..StoreFaults::default() });
        let refused = ask(&[]).unwrap();
        assert!(
            refused.status == 503 && refused.text().contains("<Code>SlowDown</Code>"),
            "{refused:?}"
        );
        only(StoreFaults { fail: 1.0, ..StoreFaults::default() });
        let refused = ask(&[]).unwrap();
        assert!(
            refused.status == 500 && refused.text().contains("<Code>InternalError</Code>"),
            "{refused:?}"
        );
        assert_eq!(done.load(Ordering::Relaxed), 1);
        // Closed, reset, closed.
        only(StoreFaults { lose: 1.0, ..StoreFaults::default() });
        let kinds = [&[][..], &[("If-None-Match", "*")], &[("If-Match", "\"7\"")]]
            .map(|headers| ask(headers).unwrap_err().kind());
        assert_eq!(done.load(Ordering::Relaxed), 4);
        assert!(
            kinds.contains(&io::ErrorKind::ConnectionReset)
                && kinds.contains(&io::ErrorKind::UnexpectedEof),
            "{kinds:?}"
        );
        only(StoreFaults { lose_conditional: 1.0, ..StoreFaults::default() });
        assert!(ask(&[]).is_ok() && ask(&[("If-Match", "\"7\"")]).is_err());
        let expect =
            StoreStats { requests: 8, slowed_down: 1, failed: 1, lost: 4, lost_conditional: 3 };
        assert_eq!(proxy.stats(), expect);
    }
}
