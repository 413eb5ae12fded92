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
use tokio::sync::oneshot;

use crate::faults::InvocationFaults;
use crate::function::{Function, Reply, Slot, Throttled};
use crate::runtime_api::read_body;

type Answer = Response<Full<Bytes>>;

/// Answers until the runtime ends.
pub(crate) async fn listen(listener: TcpListener, function: Arc<Function>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Too many open files: retried once some have been closed.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let function = Arc::clone(&function);
        tokio::spawn(async move {
            // An error closes the connection without an answer.
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
            if is_name_of(&function.config.function, name) {
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
            json!({ "Message": format!("unknown operation {path}") }),
        )),
    }
}

/// Returns true if a path component names the function: its name or its ARN, with or without a
/// qualifier.
fn is_name_of(function: &str, name: &str) -> bool {
    let name = name.replace("%3A", ":").replace("%24", "$");
    let name = name.split_once(":function:").map_or(name.as_str(), |(_, rest)| rest);
    name.split(':').next() == Some(function)
}

/// The parts of an invoke request that matter.
struct InvokeRequest {
    invocation_type: String,
    wants_log: bool,
    body: Bytes,
}

async fn invoke(function: Arc<Function>, request: Request<Incoming>) -> io::Result<Answer> {
    let request = match check(&function, request).await? {
        Ok(request) => request,
        Err(refusal) => return Ok(refusal),
    };
    match request.invocation_type.as_str() {
        "" | "RequestResponse" => invoke_now(function, request).await,
        "DryRun" => Ok(respond(StatusCode::NO_CONTENT, &[], Bytes::new())),
        "Event" => {
            tokio::spawn(event(function, request.body));
            Ok(respond(StatusCode::ACCEPTED, &[], Bytes::new()))
        }
        other => {
            let message = format!("invalid invocation type `{other}`");
            Ok(refuse(
                StatusCode::BAD_REQUEST,
                "InvalidParameterValueException",
                json!({ "message": message }),
            ))
        }
    }
}

/// Checks signature, length and format of a request. Returns the refusal if it is invalid.
async fn check(
    function: &Function,
    request: Request<Incoming>,
) -> io::Result<Result<InvokeRequest, Answer>> {
    let header = |name: &str| {
        request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
    };
    let invocation_type = header("x-amz-invocation-type");
    let wants_log = header("x-amz-log-type") == "Tail";
    let is_signed = header("authorization").starts_with("AWS4-HMAC-SHA256 ");
    if function.config.require_signatures && !is_signed {
        let body = json!({ "message": "Missing Authentication Token" });
        let kind = "MissingAuthenticationTokenException";
        return Ok(Err(refuse(StatusCode::FORBIDDEN, kind, body)));
    }
    let body = match read_body(request.into_body()).await {
        Some(Ok(body)) => body,
        Some(Err(length)) => {
            let message = format!(
                "Request must be smaller than {} bytes for the InvokeFunction operation, it has \
                    {length}",
                crate::MAX_BODY_BYTES
            );
            let body = json!({ "Type": "User", "message": message });
            let kind = "RequestTooLargeException";
            return Ok(Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, kind, body)));
        }
        None => return Err(io::ErrorKind::UnexpectedEof.into()),
    };
    let body = if body.is_empty() { Bytes::from_static(b"{}") } else { body };
    if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(&body) {
        let message = format!("Could not parse request body into json: {error}");
        let body = json!({ "Type": "User", "message": message });
        let kind = "InvalidRequestContentException";
        return Ok(Err(refuse(StatusCode::BAD_REQUEST, kind, body)));
    }
    Ok(Ok(InvokeRequest { invocation_type, wants_log, body }))
}

/// Runs an invocation and answers with its result.
async fn invoke_now(function: Arc<Function>, request: InvokeRequest) -> io::Result<Answer> {
    let faults = function.next_faults();
    if faults.throttle {
        return Ok(throttled(Throttled::Concurrency));
    }
    let slot = match function.reserve_slot() {
        Ok(slot) => slot,
        Err(reason) => return Ok(throttled(reason)),
    };
    let memory_mib = function.config.memory_mib;
    // The invocation continues if the client disconnects.
    let (sender, receiver) = oneshot::channel();
    let id = request_id();
    tokio::spawn(run(function, slot, request.body, faults, (id.clone(), sender)));
    let version = ("X-Amz-Executed-Version", "$LATEST");
    match receiver.await {
        Ok(Reply::Response(body)) => {
            Ok(respond(StatusCode::OK, &[version, ("X-Amzn-RequestId", &id)], body))
        }
        Ok(Reply::Error(body, peak_bytes)) => {
            let mut headers =
                vec![version, ("X-Amzn-RequestId", &id), ("X-Amz-Function-Error", "Unhandled")];
            let log = peak_bytes.map(|bytes| report_line(&id, memory_mib, bytes));
            if let Some(log) = log.as_ref().filter(|_| request.wants_log) {
                headers.push(("X-Amz-Log-Result", log));
            }
            Ok(respond(StatusCode::OK, &headers, body))
        }
        Ok(Reply::Service(message)) => Ok(refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "ServiceException",
            json!({ "Type": "Service", "Message": message }),
        )),
        Ok(Reply::Lost) | Err(_) => Err(io::ErrorKind::ConnectionReset.into()),
    }
}

/// Runs an invocation to its end and sends the reply to the client, if it still waits.
async fn run(
    function: Arc<Function>,
    slot: Slot,
    body: Bytes,
    faults: InvocationFaults,
    (id, mut client): (String, oneshot::Sender<Reply>),
) {
    let mut invocation = pin!(Arc::clone(&function).invoke(slot, body, faults, id));
    let reply = tokio::select! {
        biased;
        reply = &mut invocation => reply,
        () = client.closed() => {
            function.count_disconnect();
            drop(invocation.await);
            return;
        }
    };
    if client.send(reply).is_err() {
        function.count_disconnect();
    }
}

/// Returns the end of the function's log, in base 64: the line that reports memory usage.
fn report_line(id: &str, memory_mib: u64, peak_bytes: u64) -> String {
    let used = (peak_bytes >> 20).min(memory_mib);
    base64(&format!(
        "REPORT RequestId: {id}\tMemory Size: {memory_mib} MB\tMax Memory Used: {used} MB\t\n"
    ))
}

/// Encodes a text in base 64.
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

/// Runs an asynchronous invocation, with two retries after errors of the function.
async fn event(function: Arc<Function>, body: Bytes) {
    let (mut tries, mut pause) = (0, Duration::from_millis(100));
    let id = request_id();
    while tries < 3 {
        let faults = function.next_faults();
        if !faults.throttle
            && let Ok(slot) = function.reserve_slot()
        {
            tries += 1;
            if matches!(
                Arc::clone(&function).invoke(slot, body.clone(), faults, id.clone()).await,
                Reply::Response(_) | Reply::Lost
            ) {
                return;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(Duration::from_secs(5));
    }
}

/// Returns a new request id: a random UUID.
fn request_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default().trim().to_owned()
}

fn throttled(reason: Throttled) -> Answer {
    let body = json!({ "Type": "User", "Reason": reason.name(), "message": "Rate Exceeded." });
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
