//! The runtime for requests.
//!
//! The public API is synchronous. Callers wait on a channel, which works on any thread, including
//! the threads of a user's runtime.

use std::sync::{OnceLock, mpsc};
use std::task::{Context, Poll, Waker};

use crate::error::Error;

/// The number of threads that wait for disks and sockets, and encode manifests.
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
/// A request that is ready at once, such as a reference in a cached manifest, is completed on the
/// calling thread. A switch to another thread would take many times as long.
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
        .unwrap_or_else(|_| Err(Error::Runtime { message: "the request was cancelled".into() }))
}
