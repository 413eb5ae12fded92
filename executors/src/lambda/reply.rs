//! Replies of the Invoke API.

use freestone_engine::task::FailureKind;
use freestone_worker::Answer;
use serde::Deserialize;

/// The status, relevant headers and body of a reply.
#[derive(Debug, Default)]
pub(super) struct Raw<'a> {
    pub(super) status: u16,
    /// The header `x-amz-function-error`.
    pub(super) function_error: Option<&'a str>,
    /// The header `x-amzn-errortype`.
    pub(super) error_type: Option<&'a str>,
    /// The header `x-amz-log-result`: the end of the function's log in base64.
    pub(super) log: Option<&'a str>,
    pub(super) body: &'a [u8],
}

/// A parsed reply.
#[derive(Debug)]
pub(super) enum Reply {
    /// The worker's answer.
    Answer(Box<Answer>),
    /// Too many concurrent invocations, or with `too_often` too many per second. Nothing was run.
    Throttled { too_often: bool, why: String },
    /// The environment ended, or its time limit was reached. Some requests may be finished.
    Ended(FailureKind, String),
    /// The service failed, or the answer is invalid. Some requests may be finished, and others may
    /// still run unless `is_over`.
    Lost { message: String, is_over: bool },
    /// All invocations of this function would be refused.
    Refused { denied: bool, message: String },
}

/// The body of an error reply.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ErrorBody {
    #[serde(rename = "errorType")]
    error_type: String,
    #[serde(rename = "errorMessage")]
    error_message: String,
    #[serde(alias = "Message")]
    message: String,
    #[serde(rename = "Reason")]
    reason: String,
}

/// The share of its memory from which a killed process counts as out of memory.
const FULL: f64 = 0.95;

/// Parses a reply.
pub(super) fn read(raw: &Raw<'_>) -> Reply {
    let error = || serde_json::from_slice::<ErrorBody>(raw.body).unwrap_or_default();
    match (raw.status, raw.function_error) {
        (200, None) => match serde_json::from_slice(raw.body) {
            Ok(answer) => Reply::Answer(Box::new(answer)),
            Err(error) => over(format!("invalid answer: {error}")),
        },
        (200, Some(_)) => function_error(&error(), raw.log),
        (429, _) => {
            let error = error();
            // The limit of the function, of its reserved concurrency, or of the caller.
            let too_often = error.reason.ends_with("RateLimitExceeded");
            Reply::Throttled {
                too_often,
                why: if error.reason.is_empty() { error.message } else { error.reason },
            }
        }
        (status @ 500.., _) => over(format!(
            "Lambda answered with status {status} {}: {}",
            raw.error_type.unwrap_or_default(),
            error().message
        )),
        (status, _) => {
            let kind = raw.error_type.map_or_else(
                || status.to_string(),
                |t| t.split(':').next().unwrap_or(t).to_owned(),
            );
            let hint = match status {
                401 | 403 => " (hint: use credentials that permit `lambda:InvokeFunction`)",
                404 => " (hint: deploy the function, or check its name and region)",
                _ => "",
            };
            Reply::Refused {
                denied: matches!(status, 401 | 403),
                message: format!("{kind}: {}{hint}", error().message),
            }
        }
    }
}

fn over(message: String) -> Reply {
    Reply::Lost { message, is_over: true }
}

fn function_error(body: &ErrorBody, log: Option<&str>) -> Reply {
    let ErrorBody { error_type, error_message, .. } = body;
    let text = if error_type.is_empty() {
        error_message.clone()
    } else {
        format!("{error_type}: {error_message}")
    };
    match error_type.as_str() {
        // The outcomes are in the records.
        "Function.ResponseSizeTooLarge" => over(text),
        "Sandbox.Timedout" => Reply::Ended(FailureKind::TimedOut, text),
        "Runtime.OutOfMemory" => out_of_memory(log),
        "Runtime.ExitError" if error_message.contains("signal: killed") => {
            // Lambda reports this if a process exceeds its memory, without the reason. The log, if
            // present, has the memory figures.
            match log.and_then(megabytes) {
                Some([size, used]) if used < FULL * size => {
                    Reply::Ended(FailureKind::WorkerLost, text)
                }
                _ => out_of_memory(log),
            }
        }
        _ if error_message.contains("Task timed out") => Reply::Ended(FailureKind::TimedOut, text),
        _ => Reply::Ended(FailureKind::Crashed, text),
    }
}

fn out_of_memory(log: Option<&str>) -> Reply {
    let of = log.and_then(megabytes).map_or_else(String::new, |[size, _]| format!(" of {size} MB"));
    Reply::Ended(
        FailureKind::OutOfMemory,
        format!(
            "the environment{of} was killed because it is out of memory (hint: give the function \
                more memory)"
        ),
    )
}

/// Returns the memory size and the used memory of a function, from the REPORT line of its log.
fn megabytes(log: &str) -> Option<[f64; 2]> {
    let text = String::from_utf8_lossy(&base64(log)?).into_owned();
    let report = text.lines().rfind(|l| l.starts_with("REPORT "))?;
    let megabytes =
        |name: &str| report.split_once(name)?.1.split_whitespace().next()?.parse::<f64>().ok();
    Some([megabytes("Memory Size: ")?, megabytes("Max Memory Used: ")?])
}

/// Decodes base64. Returns `None` if the text is invalid.
fn base64(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut n) = (Vec::with_capacity(text.len() / 4 * 3), 0u32, 0);
    for c in text.bytes().filter(|c| *c != b'=') {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (bits, n) = (bits << 6 | u32::from(value), n + 6);
        if n >= 8 {
            n -= 8;
            bytes.push((bits >> n) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(raw: &Raw<'_>, expect: &str) {
        let found = match read(raw) {
            Reply::Answer(_) => "answer".into(),
            Reply::Throttled { too_often, why } => {
                format!("throttled{}: {why}", if too_often { ", too often" } else { "" })
            }
            Reply::Ended(kind, why) => format!("{}: {why}", kind.name()),
            Reply::Lost { message, is_over } => format!("lost: {message} {is_over}"),
            Reply::Refused { denied, message } => {
                format!("refused{}: {message}", if denied { ", denied" } else { "" })
            }
        };
        assert!(found.starts_with(expect), "{found}\nis not\n{expect}");
    }

    #[test]
    fn errors_of_the_function_are_classified() {
        let failed = |body: &'static str| Raw {
            status: 200,
            function_error: Some("Unhandled"),
            body: body.as_bytes(),
            ..Raw::default()
        };
        let killed = r#"{"errorType":"Runtime.ExitError",
            "errorMessage":"RequestId: 7 Error: Runtime exited with error: signal: killed"}"#;
        check(
            &failed(killed),
            "out of memory: the environment was killed because it is out of memory (hint: give",
        );
        // REPORT RequestId: 7 Memory Size: 256 MB Max Memory Used: 256 MB, and with 100 MB used.
        let full = concat!(
            "UkVQT1JUIFJlcXVlc3RJZDogNwlNZW1vcnkgU2l6ZTogMjU2IE1CCU1heCBNZW1vcnkgVXNl",
            "ZDogMjU2IE1CCQo="
        );
        let half = concat!(
            "UkVQT1JUIFJlcXVlc3RJZDogNwlNZW1vcnkgU2l6ZTogMjU2IE1CCU1heCBNZW1vcnkgVXNl",
            "ZDogMTAwIE1CCQo="
        );
        check(
            &Raw { log: Some(full), ..failed(killed) },
            "out of memory: the environment of 256 MB was killed because it is out of memory",
        );
        check(
            &Raw { log: Some(full), ..failed(r#"{"errorType":"Runtime.OutOfMemory"}"#) },
            "out of memory: the environment of 256 MB",
        );
        check(&Raw { log: Some(half), ..failed(killed) }, "worker lost");
        check(
            &failed(
                r#"{"errorType":"Runtime.ExitError",
                    "errorMessage":"Runtime exited with error: exit status 3"}"#,
            ),
            "crashed",
        );
        check(
            &failed(
                r#"{"errorType":"Sandbox.Timedout",
                    "errorMessage":"Task timed out after 5.00 seconds"}"#,
            ),
            "timed out",
        );
        check(
            &failed(r#"{"errorMessage":"2026-11-22 Task timed out after 3.00 seconds"}"#),
            "timed out",
        );
        check(
            &failed(
                r#"{"errorType":"Function.ResponseSizeTooLarge",
                    "errorMessage":"Response payload size"}"#,
            ),
            "lost: Function.Resp",
        );
        check(&failed(r#"{"errorType":"panic","errorMessage":"oh"}"#), "crashed: panic: oh");
        check(&failed("not json"), "crashed");
    }

    #[test]
    fn errors_of_the_service_are_classified() {
        let refused = |status, kind, body: &'static str| Raw {
            status,
            error_type: Some(kind),
            body: body.as_bytes(),
            ..Raw::default()
        };
        let many = r#"{"Type":"User","Reason":"ConcurrentInvocationLimitExceeded",
            "message":"Rate Exceeded."}"#;
        check(
            &refused(429, "TooManyRequestsException", many),
            "throttled: ConcurrentInvocationLimitExceeded",
        );
        let often =
            r#"{"Reason":"FunctionInvocationRateLimitExceeded","message":"Rate Exceeded."}"#;
        check(
            &refused(429, "TooManyRequestsException", often),
            "throttled, too often: FunctionInvocationRateLimitExceeded",
        );
        check(
            &refused(429, "TooManyRequestsException", r#"{"message":"Rate Exceeded."}"#),
            "throttled: Rate",
        );
        check(
            &refused(500, "ServiceException", r#"{"Message":"oops"}"#),
            "lost: Lambda answered with status 500 ServiceException: oops",
        );
        check(&refused(503, "", ""), "lost: Lambda answered with status 503");
        check(
            &refused(
                404,
                "ResourceNotFoundException:http://x",
                r#"{"Message":"Function not found"}"#,
            ),
            "refused: ResourceNotFoundException: Function not",
        );
        check(&refused(403, "AccessDeniedException", "{}"), "refused, denied: AccessDenied");
        check(&refused(413, "RequestTooLargeException", "{}"), "refused: RequestTooLarge");
    }

    #[test]
    fn answers_are_parsed() {
        check(&Raw { status: 200, body: b"null", ..Raw::default() }, "lost: invalid answer: ");
        let refusal = br#"{"refused":{
            "environment":{"id":"e","invocations":1,"had_plan":false,"init_ms":1,
                "memory_bytes":1,"peak_bytes":1},
            "refusal":{"kind":"plan","message":"m"}}}"#;
        check(&Raw { status: 200, body: refusal, ..Raw::default() }, "answer");
    }
}
