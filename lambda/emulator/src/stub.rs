//! A stub function without environments, whose answers this process computes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::runtime_api::read_body;

/// The body of an answer and its delay; `None` for a service error.
type Answer = Option<(Vec<u8>, Duration)>;

/// A stub function, for measuring clients in other processes. It stops on drop.
pub struct StubFunction {
    runtime: Option<tokio::runtime::Runtime>,
    address: SocketAddr,
}

impl fmt::Debug for StubFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StubFunction").field("url", &self.url()).finish_non_exhaustive()
    }
}

impl StubFunction {
    /// Listens on 127.0.0.1, at a port chosen by the system. `answer` maps the body of each
    /// invocation to its answer; the client receives status 500 if it returns `None`.
    ///
    /// # Errors
    /// Returns an error if no port is available.
    pub fn start(
        answer: impl Fn(&[u8]) -> Answer + Send + Sync + 'static,
    ) -> io::Result<StubFunction> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("stub-function")
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
        let address = listener.local_addr()?;
        runtime.spawn(listen(listener, Arc::new(answer)));
        Ok(StubFunction { runtime: Some(runtime), address })
    }

    /// Returns the URL for clients.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for StubFunction {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn listen(
    listener: TcpListener,
    answer: Arc<impl Fn(&[u8]) -> Answer + Send + Sync + 'static>,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Too many open files: retried once some have been closed.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let answer = Arc::clone(&answer);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = Arc::clone(&answer);
                async move {
                    let answered = match read_body(request.into_body()).await {
                        Some(Ok(body)) => answer(&body),
                        _ => None,
                    };
                    let Some((body, time)) = answered else {
                        let mut response = Response::new(Full::new(Bytes::from_static(b"{}")));
                        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                        return Ok::<_, Infallible>(response);
                    };
                    tokio::time::sleep(time).await;
                    Ok(Response::new(Full::new(body.into())))
                }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
