//! Frames between the driver and a worker process: a length, then JSON. Both directions share one
//! socket, the worker's standard input at its start.
//!
//! Standard output is not part of the protocol: output of kernels, libraries and `main` goes to the
//! driver's standard error.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The maximum length of a frame. A request's outcome takes a few hundred bytes per chunk.
const MAX_FRAME_BYTES: u32 = 1 << 28;

pub(crate) fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|n| *n <= MAX_FRAME_BYTES)
        .ok_or(io::ErrorKind::InvalidData)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(&body)?;
    to.flush()
}

/// Receives the next message. Returns `None` at the end of the stream.
pub(crate) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        // A peer that exits before reading everything resets the connection.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
            ) =>
        {
            return Ok(None);
        }
        other => other?,
    }
    let length = u32::from_le_bytes(length);
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("invalid frame of {length} bytes: expected at most {MAX_FRAME_BYTES}"),
        ));
    }
    let mut body = vec![0; length as usize];
    from.read_exact(&mut body)?;
    Ok(Some(serde_json::from_slice(&body)?))
}

/// Takes the driver's socket from standard input and leaves standard input empty, so that neither
/// kernels nor their child processes can read requests.
///
/// # Errors
/// Returns an error if standard input is not a socket, because no driver has started this process.
#[allow(clippy::disallowed_methods, reason = "the path is constant")]
pub(crate) fn socket() -> io::Result<UnixStream> {
    let stdin = io::stdin();
    // A descriptor above those of the standard streams, which child processes do not inherit.
    let socket = UnixStream::from(stdin.as_fd().try_clone_to_owned()?);
    if let Err(error) = socket.peer_addr() {
        let message = format!(
            "cannot serve as a worker: standard input is not a driver's socket: {error} (hint: \
                worker processes are started by `Processes`)"
        );
        return Err(io::Error::new(error.kind(), message));
    }
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(socket)
}
