//! The Invoke API.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::environment::read;
use crate::function::{Function, Reply, Throttled};

type Answer = Response<Full<Bytes>>;

/// Answers until the runtime ends.
pub(crate) async fn listen(listener: TcpListener, function: Arc<Function>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Too many files are open: some will be closed.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let function = Arc::clone(&function);
        tokio::spawn(async move {
            // That an answer fails closes the connection without one.
            let service = service_fn(move |request| answer(Arc::clone(&function), request));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(function: Arc<Function>, request: Request<Incoming>) -> io::Result<Answer> {
    let path = request.uri().path().to_owned();
    match (request.method(), path.trim_start_matches('/').split('/').collect::<Vec<_>>().as_slice())
    {
        (&Method::GET, ["_stats"]) => {
            Ok(respond(StatusCode::OK, &[], serde_json::to_vec(&function.stats())?.into()))
        }
        (&Method::POST, ["2015-03-31", "functions", name, "invocations"]) => {
            if is_it(&function.config.function, name) {
                return invoke(function, request).await;
            }
            Ok(refuse(
                StatusCode::NOT_FOUND,
                "ResourceNotFoundException",
                json!({ "Type": "User", "Message": format!("Function not found: {name}") }),
            ))
        }
        _ => Ok(refuse(
            StatusCode::NOT_FOUND,
            "UnknownOperationException",
            json!({ "Message": format!("nothing is at {path}") }),
        )),
    }
}

/// True if a name in a path, or an ARN with or without a qualifier, is the function's.
fn is_it(function: &str, name: &str) -> bool {
    let name = name.replace("%3A", ":").replace("%24", "$");
    let name = name.split_once(":function:").map_or(name.as_str(), |(_, rest)| rest);
    name.split(':').next() == Some(function)
}

async fn invoke(function: Arc<Function>, request: Request<Incoming>) -> io::Result<Answer> {
    let header = |name: &str| {
        request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
    };
    let kind = header("x-amz-invocation-type");
    let (wants_log, its_size) = (header("x-amz-log-type") == "Tail", function.config.memory_mib);
    if function.config.signed && !header("authorization").starts_with("AWS4-HMAC-SHA256 ") {
        let why = json!({ "message": "Missing Authentication Token" });
        return Ok(refuse(StatusCode::FORBIDDEN, "MissingAuthenticationTokenException", why));
    }
    let body = match read(request.into_body()).await {
        Some(Ok(body)) => body,
        Some(Err(length)) => {
            let why = format!(
                "Request must be smaller than {} bytes for the InvokeFunction operation, it has \
                    {length}",
                crate::MAX_BODY_BYTES
            );
            return Ok(refuse(
                StatusCode::PAYLOAD_TOO_LARGE,
                "RequestTooLargeException",
                json!({ "Type": "User", "message": why }),
            ));
        }
        None => return Err(io::ErrorKind::UnexpectedEof.into()),
    };
    let body = if body.is_empty() { Bytes::from_static(b"{}") } else { body };
    if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(&body) {
        let why = json!({ "Type": "User", "message": format!("Could not parse request body into \
            json: {error}") });
        return Ok(refuse(StatusCode::BAD_REQUEST, "InvalidRequestContentException", why));
    }
    match kind.as_str() {
        "" | "RequestResponse" => {}
        "DryRun" => return Ok(respond(StatusCode::NO_CONTENT, &[], Bytes::new())),
        "Event" => {
            tokio::spawn(event(function, body));
            return Ok(respond(StatusCode::ACCEPTED, &[], Bytes::new()));
        }
        other => {
            let why = json!({ "message": format!("`{other}` is no type of invocations") });
            return Ok(refuse(StatusCode::BAD_REQUEST, "InvalidParameterValueException", why));
        }
    }
    let fate = function.fate();
    if fate.throttle {
        return Ok(throttled(Throttled::Concurrency));
    }
    let lease = match function.lease() {
        Ok(lease) => lease,
        Err(why) => return Ok(throttled(why)),
    };
    // The invocation does not depend on this connection.
    let (mut send, receive) = tokio::sync::oneshot::channel();
    let id = request_id();
    let (its_function, its_id) = (Arc::clone(&function), id.clone());
    tokio::spawn(async move {
        let mut invocation = pin!(Arc::clone(&its_function).invoke(lease, body, fate, its_id));
        let reply = tokio::select! {
            biased;
            reply = &mut invocation => reply,
            () = send.closed() => {
                its_function.count_hang_up();
                drop(invocation.await);
                return;
            }
        };
        if send.send(reply).is_err() {
            its_function.count_hang_up();
        }
    });
    let version = ("X-Amz-Executed-Version", "$LATEST");
    match receive.await {
        Ok(Reply::Response(body)) => {
            Ok(respond(StatusCode::OK, &[version, ("X-Amzn-RequestId", &id)], body))
        }
        Ok(Reply::Error(body, used)) => {
            let mut headers =
                vec![version, ("X-Amzn-RequestId", &id), ("X-Amz-Function-Error", "Unhandled")];
            // What is of the log is the line with the figures.
            let log = used.map(|used| {
                let size = its_size;
                base64(&format!(
                    "REPORT RequestId: {id}\tMemory Size: {size} MB\tMax Memory Used: {} MB\t\n",
                    (used >> 20).min(size)
                ))
            });
            if let Some(log) = log.as_ref().filter(|_| wants_log) {
                headers.push(("X-Amz-Log-Result", log));
            }
            Ok(respond(StatusCode::OK, &headers, body))
        }
        Ok(Reply::Service(why)) => Ok(refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "ServiceException",
            json!({ "Type": "Service", "Message": why }),
        )),
        Ok(Reply::Lost) | Err(_) => Err(io::ErrorKind::ConnectionReset.into()),
    }
}

/// A text in base 64.
fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut coded = String::new();
    for three in text.as_bytes().chunks(3) {
        let bits =
            (0..3).fold(0, |bits, i| bits << 8 | u32::from(three.get(i).copied().unwrap_or(0)));
        let digit = |i: usize| {
            if i <= three.len() {
                char::from(DIGITS[(bits >> (18 - 6 * i)) as usize % 64])
            } else {
                '='
            }
        };
        coded.extend((0..4).map(digit));
    }
    coded
}

/// An invocation that nobody waits for: after an error of the function it is tried twice more.
async fn event(function: Arc<Function>, body: Bytes) {
    let (mut tries, mut pause) = (0, Duration::from_millis(100));
    let id = request_id();
    while tries < 3 {
        let fate = function.fate();
        if !fate.throttle
            && let Ok(lease) = function.lease()
        {
            tries += 1;
            if matches!(
                Arc::clone(&function).invoke(lease, body.clone(), fate, id.clone()).await,
                Reply::Response(_) | Reply::Lost
            ) {
                return;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(Duration::from_secs(5));
    }
}

/// A number that no other invocation has, in the form of a UUID.
fn request_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default().trim().to_owned()
}

fn throttled(why: Throttled) -> Answer {
    let body = json!({ "Type": "User", "Reason": why.reason(), "message": "Rate Exceeded." });
    refuse(StatusCode::TOO_MANY_REQUESTS, "TooManyRequestsException", body)
}

fn refuse(status: StatusCode, kind: &str, body: Value) -> Answer {
    respond(
        status,
        &[("X-Amzn-ErrorType", kind), ("X-Amzn-RequestId", &request_id())],
        body.to_string().into(),
    )
}

fn respond(status: StatusCode, headers: &[(&str, &str)], body: Bytes) -> Answer {
    let mut builder = Response::builder().status(status).header("Content-Type", "application/json");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Full::new(body)).unwrap_or_default()
}
