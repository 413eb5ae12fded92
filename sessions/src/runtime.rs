//! Where requests run: a small runtime of this crate's own.
//!
//! The public API is synchronous. A caller waits on a channel, which works from any thread, also
//! from one that belongs to a runtime of the user's.

use std::sync::{OnceLock, mpsc};
use std::task::{Context, Poll, Waker};

use crate::error::Error;

/// Threads that wait for disks and sockets, and encode manifests.
const IO_THREADS: usize = 2;

fn runtime() -> Result<&'static tokio::runtime::Runtime, Error> {
    static RUNTIME: OnceLock<Result<tokio::runtime::Runtime, String>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(IO_THREADS)
            .thread_name("freestone-sessions")
            .enable_all()
            .build()
            .map_err(|e| e.to_string())
    });
    made.as_ref().map_err(|message| Error::Runtime { message: message.clone() })
}

/// Runs a request and waits for it.
///
/// What needs no waiting, as a reference in a manifest that is at hand, is answered where it was
/// asked: going to another thread and back takes many times as long.
pub(crate) fn wait<T: Send + 'static>(
    request: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let runtime = runtime()?;
    let mut request = Box::pin(request);
    let at_once = {
        let _inside = runtime.enter();
        request.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    };
    if let Poll::Ready(answer) = at_once {
        return answer;
    }
    let (send, receive) = mpsc::sync_channel(1);
    runtime.spawn(async move {
        let _ = send.send(request.await);
    });
    receive
        .recv()
        .unwrap_or_else(|_| Err(Error::Runtime { message: "a request was dropped".into() }))
}
