//! A proxy before an object store, on which requests go wrong by plan.
//!
//! Some are refused before the store hears of them; of others the store's answer gets lost, which a
//! client cannot tell from the former, and which makes a conditional put find itself when it is
//! tried again.

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

/// What goes wrong. Each is a share of requests, from 0 to 1; which ones follows from the seed and
/// from the number of the request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StoreFaults {
    /// Other seeds choose others.
    pub seed: u64,
    /// Is answered `503 SlowDown`, and not done.
    pub slow_down: f64,
    /// Is answered `500 InternalError`, and not done.
    pub fail: f64,
    /// Is done, and the connection is closed or reset without an answer.
    pub lose: f64,
    /// The same, of puts alone whose condition held: there are few, and they are what commits hang
    /// on. With 1 each is done without an answer, and fails when it is tried again.
    pub lose_conditional: f64,
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Requests that came.
    pub requests: u64,
    /// 503s by plan.
    pub slowed_down: u64,
    /// 500s by plan.
    pub failed: u64,
    /// Answers that got lost.
    pub lost: u64,
    /// Of these, to puts with a condition that the store had accepted.
    pub lost_conditional: u64,
}

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Fine,
    SlowDown,
    Fail,
    Lose,
    /// If it is a put whose condition held.
    LoseConditional,
}

impl StoreFaults {
    fn fate(&self, n: u64) -> Fate {
        // Kinds that the function's own faults do not have, so that one seed serves both.
        let at = unit(self.seed, 100, n);
        match () {
            () if at < self.slow_down => Fate::SlowDown,
            () if at < self.slow_down + self.fail => Fate::Fail,
            () if at < self.slow_down + self.fail + self.lose => Fate::Lose,
            () if unit(self.seed, 101, n) < self.lose_conditional => Fate::LoseConditional,
            () => Fate::Fine,
        }
    }
}

/// A proxy that runs until it is dropped.
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
    /// Listens on 127.0.0.1, at a port that the system chooses, for a store that speaks plain HTTP.
    ///
    /// # Errors
    /// Where there is nothing to listen on.
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

    /// Where clients send to: what `AWS_ENDPOINT` would be.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What has happened so far.
    pub fn stats(&self) -> StoreStats {
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the faults from here on.
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
            // Too many files are open: some will be closed.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        // Clients do not take the two ways to break for the same: every second connection is reset
        // where it breaks, the others are closed.
        if shared.connections.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
            let _ = stream.set_zero_linger();
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let upstream = Upstream::default();
            // That an answer fails closes the connection without one.
            let service = service_fn(move |request| {
                answer(Arc::clone(&shared), Arc::clone(&upstream), request)
            });
            let _ = server::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl Shared {
    /// The next request's fate, counted where it is one before the store hears of the request.
    fn fate(&self) -> Fate {
        let faults = *self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        let fate = faults.fate(stats.requests);
        stats.requests += 1;
        stats.slowed_down += u64::from(fate == Fate::SlowDown);
        stats.failed += u64::from(fate == Fate::Fail);
        fate
    }
}

async fn answer(
    shared: Arc<Shared>,
    upstream: Upstream,
    request: Request<Incoming>,
) -> io::Result<Answer> {
    let fate = shared.fate();
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    match fate {
        Fate::SlowDown => {
            return Ok(refuse(
                StatusCode::SERVICE_UNAVAILABLE,
                "SlowDown",
                "Please reduce your request rate.",
            ));
        }
        Fate::Fail => {
            return Ok(refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalError",
                "We encountered an internal error. Please try again.",
            ));
        }
        Fate::Fine | Fate::Lose | Fate::LoseConditional => {}
    }
    let is_conditional = head.method == Method::PUT
        && (head.headers.contains_key("if-match") || head.headers.contains_key("if-none-match"));
    let response = forward(&shared, &upstream, Request::from_parts(head, Full::new(body))).await?;
    let is_conditional = is_conditional && response.status().is_success();
    if fate == Fate::Lose || (fate == Fate::LoseConditional && is_conditional) {
        let mut stats = shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.lost += 1;
        stats.lost_conditional += u64::from(is_conditional);
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    Ok(response)
}

/// Asks the store, on a connection that belongs to the client's.
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
    // The body is in one piece now. What answers a HEAD has a length without a body.
    head.headers.remove("transfer-encoding");
    Ok(Response::from_parts(head, Full::new(body)))
}

/// An answer in S3's words.
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
    fn fates_follow_from_seed_and_number_and_come_as_often_as_asked() {
        let faults =
            StoreFaults { seed: 3, slow_down: 0.05, fail: 0.03, lose: 0.02, lose_conditional: 0.0 };
        let count =
            |fate: Fate| (0..20_000).filter(|n| faults.fate(*n) == fate).count() as f64 / 20_000.0;
        for (fate, asked) in
            [(Fate::SlowDown, 0.05), (Fate::Fail, 0.03), (Fate::Lose, 0.02), (Fate::Fine, 0.9)]
        {
            assert!((count(fate) / asked - 1.0).abs() < 0.2, "{fate:?}");
        }
        assert!((0..1000).any(|n| StoreFaults { seed: 4, ..faults }.fate(n) != faults.fate(n)));
        assert!((0..1000).all(|n| StoreFaults::default().fate(n) == Fate::Fine));
    }

    /// A store that answers each request with its method, path and body.
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
    fn what_is_refused_is_not_done_and_what_gets_lost_is() {
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
