//! The Runtime API, from which a worker requests jobs and to which it posts their results.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot, watch};

use crate::MAX_BODY_BYTES;
use crate::environment::lock;

/// An invocation on its way to a worker.
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) body: Bytes,
    pub(crate) deadline_ms: u128,
}

/// The result that a worker posts.
pub(crate) enum WorkerResult {
    Response(Bytes),
    Error(Bytes),
    TooLong(usize),
}

/// The state of one worker's Runtime API.
pub(crate) struct RuntimeApi {
    arn: String,
    queue: AsyncMutex<mpsc::Receiver<Job>>,
    /// The number of the worker's requests for a job.
    pub(crate) requests: watch::Sender<u64>,
    /// The id of the running invocation, and the receiver of its result.
    current: Mutex<Option<(String, oneshot::Sender<WorkerResult>)>>,
}

/// Answers the worker's requests until its process has ended.
pub(crate) async fn serve(listener: TcpListener, api: Arc<RuntimeApi>) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let api = Arc::clone(&api);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let api = Arc::clone(&api);
                async move { Ok::<_, Infallible>(api.answer(request).await) }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl RuntimeApi {
    pub(crate) fn new(function: &str, queue: mpsc::Receiver<Job>) -> RuntimeApi {
        RuntimeApi {
            arn: format!("arn:aws:lambda:us-east-1:000000000000:function:{function}"),
            queue: AsyncMutex::new(queue),
            requests: watch::channel(0).0,
            current: Mutex::new(None),
        }
    }

    /// Returns the receiver of the result of an invocation.
    pub(crate) fn expect_result(&self, id: &str) -> oneshot::Receiver<WorkerResult> {
        let (sender, receiver) = oneshot::channel();
        *lock(&self.current) = Some((id.to_owned(), sender));
        receiver
    }

    /// Rejects a result from now on.
    pub(crate) fn forget_result(&self) {
        lock(&self.current).take();
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let Some(path) = path.strip_prefix("/2018-06-01/runtime/") else {
            return status(StatusCode::NOT_FOUND);
        };
        match (request.method(), path.split('/').collect::<Vec<_>>().as_slice()) {
            (&Method::GET, ["invocation", "next"]) => self.next().await,
            (&Method::POST, ["invocation", id, "response"]) => {
                self.receive((*id).to_owned(), request, WorkerResult::Response).await
            }
            (&Method::POST, ["invocation", id, "error"]) => {
                self.receive((*id).to_owned(), request, WorkerResult::Error).await
            }
            // The process exits afterwards, and its exit ends the invocation.
            (&Method::POST, ["init", "error"]) => status(StatusCode::ACCEPTED),
            _ => status(StatusCode::NOT_FOUND),
        }
    }

    async fn next(&self) -> Response<Full<Bytes>> {
        self.requests.send_modify(|n| *n += 1);
        let Some(job) = self.queue.lock().await.recv().await else {
            return status(StatusCode::GONE);
        };
        Response::builder()
            .header("Content-Type", "application/json")
            .header("Lambda-Runtime-Aws-Request-Id", &job.id)
            .header("Lambda-Runtime-Deadline-Ms", job.deadline_ms.to_string())
            .header("Lambda-Runtime-Invoked-Function-Arn", &self.arn)
            .header("Lambda-Runtime-Trace-Id", "Root=1-00000000-000000000000000000000000;Sampled=0")
            .body(Full::new(job.body))
            .unwrap_or_else(|_| status(StatusCode::INTERNAL_SERVER_ERROR))
    }

    async fn receive(
        &self,
        id: String,
        request: Request<Incoming>,
        result: fn(Bytes) -> WorkerResult,
    ) -> Response<Full<Bytes>> {
        let body = read_body(request.into_body()).await;
        let mut current = lock(&self.current);
        let Some((_, sender)) = current.take_if(|(expected, _)| *expected == id) else {
            return status(StatusCode::BAD_REQUEST);
        };
        match body {
            Some(Ok(body)) => drop(sender.send(result(body))),
            Some(Err(length)) => {
                drop(sender.send(WorkerResult::TooLong(length)));
                return status(StatusCode::PAYLOAD_TOO_LARGE);
            }
            None => return status(StatusCode::BAD_REQUEST),
        }
        status(StatusCode::ACCEPTED)
    }
}

fn status(code: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(b"{\"status\":\"OK\"}")));
    *response.status_mut() = code;
    response
}

/// Reads a body. Returns `Err` with the length if it exceeds [`MAX_BODY_BYTES`], and `None` if it
/// is interrupted.
pub(crate) async fn read_body(mut body: Incoming) -> Option<Result<Bytes, usize>> {
    let (mut kept, mut length) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        if let Ok(part) = frame.ok()?.into_data() {
            length += part.len();
            // A body that is too long is read to its end, because the sender reads the refusal
            // only after sending.
            if length <= MAX_BODY_BYTES {
                kept.extend_from_slice(&part);
            } else {
                kept = Vec::new();
            }
        }
    }
    Some(if length <= MAX_BODY_BYTES { Ok(kept.into()) } else { Err(length) })
}
