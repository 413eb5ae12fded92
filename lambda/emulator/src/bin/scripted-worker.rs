//! A worker without Freestone, for the emulator's own tests. Each invocation names an action:
//!
//! ```text
//! {"do": "echo" | "allocate" | "exit" | "abort" | "error" | "long" | "append",
//!  "n": 3, "to": "FILE", "once": "FILE"}
//! ```
//!
//! With `once`, the worker first waits until that file exists.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use freestone_lambda_emulator::request;
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let address: SocketAddr = std::env::var("AWS_LAMBDA_RUNTIME_API")?.parse()?;
    let long = Duration::from_secs(3600);
    if std::env::var("FAIL_INIT").is_ok() {
        return Err("FAIL_INIT is set".into());
    }
    let mut count = 0;
    loop {
        let job = request(address, "GET", "/2018-06-01/runtime/invocation/next", &[], b"", long)?;
        let id = job.header("lambda-runtime-aws-request-id").ok_or("no id")?.to_owned();
        let deadline: u64 =
            job.header("lambda-runtime-deadline-ms").ok_or("no deadline")?.parse()?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis() as u64;
        count += 1;
        let body: Value = serde_json::from_slice(&job.body)?;
        let n = body["n"].as_u64().unwrap_or_default();
        let mut answer = json!({
            "pid": std::process::id(),
            "count": count,
            "left_ms": deadline.saturating_sub(now),
            "echo": body,
        });
        let mut kind = "response";
        if let Some(file) = body["once"].as_str() {
            while !Path::new(file).exists() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        match body["do"].as_str().unwrap_or_default() {
            "allocate" => {
                let block = vec![1u8; (n as usize) << 20];
                answer["sum"] =
                    block.iter().step_by(4096).map(|b| u64::from(*b)).sum::<u64>().into();
            }
            "exit" => std::process::exit(n as i32),
            "abort" => std::process::abort(),
            "error" => {
                kind = "error";
                answer =
                    json!({ "errorType": "Requested", "errorMessage": "an error as requested" });
            }
            "long" => answer = "x".repeat(n as usize).into(),
            "append" => {
                let mut file = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(body["to"].as_str().unwrap_or_default())?;
                file.write_all(b"x")?;
            }
            _ => {}
        }
        request(
            address,
            "POST",
            &format!("/2018-06-01/runtime/invocation/{id}/{kind}"),
            &[],
            answer.to_string().as_bytes(),
            long,
        )?;
    }
}
