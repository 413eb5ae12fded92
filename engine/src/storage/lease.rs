//! Locks in object stores: a lease object that names its holder and is renewed every few seconds.
//!
//! Conditional puts create and renew the object, so that one of several competitors wins. A process
//! that finds the lease held waits for a renewal. It does not wait if the holder was a process of
//! this machine that has ended. Taking a lease compares no clocks: the lease is expired if the
//! object does not change while it is observed. [`is_held`] returns at once and uses the store's
//! time of the last renewal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use object_store::path::Path;
use object_store::{
    Error, ObjectMeta, ObjectStore as Backend, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    Result, UpdateVersion,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::task::AbortHandle;

use crate::machine::ProcessId;
use crate::system::System;

/// The intervals of renewals, and the time without a renewal after which a lease expires.
#[derive(Clone, Copy, Debug)]
struct Terms {
    renew: Duration,
    expire: Duration,
}

const TERMS: Terms = Terms { renew: Duration::from_secs(5), expire: Duration::from_secs(40) };
/// The number of polls of a held lease within twice its expiry time.
const TURNS: u32 = 40;
/// The maximum duration of the release of a lease.
const RELEASE: Duration = Duration::from_secs(5);
const MAX_BYTES: u64 = 10_000;

/// The contents of the lease object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    id: String,
    process: ProcessId,
    renewed: u64,
}

/// A lease held by this process. Dropping it releases the lease.
#[derive(Debug)]
pub(super) struct Lease {
    held: Arc<Held>,
    runtime: Handle,
    renewal: AbortHandle,
}

#[derive(Debug)]
struct Held {
    backend: Arc<dyn Backend>,
    path: Path,
    /// The last written contents, and the version of that object.
    last: Mutex<(Holder, UpdateVersion)>,
    is_lost: AtomicBool,
    system: System,
}

impl Lease {
    /// Takes the lease at a path. Returns `None` if another process holds and renews it. Waits for
    /// the expiry time if the holder does not renew it.
    pub(super) async fn take(
        backend: Arc<dyn Backend>,
        path: Path,
        system: System,
    ) -> Result<Option<Lease>> {
        Lease::take_on(backend, path, TERMS, system).await
    }

    async fn take_on(
        backend: Arc<dyn Backend>,
        path: Path,
        terms: Terms,
        system: System,
    ) -> Result<Option<Lease>> {
        static LEASES: AtomicU64 = AtomicU64::new(0);
        let process = ProcessId::own();
        let now = system.since_epoch().as_nanos();
        let id = format!(
            "{}-{now:x}-{}-{}",
            process.boot,
            process.pid,
            LEASES.fetch_add(1, Ordering::Relaxed)
        );
        let me = Holder { id, process, renewed: 0 };
        let Some(version) = acquire(&*backend, &path, &me, terms, &system).await? else {
            return Ok(None);
        };
        let held = Arc::new(Held {
            backend,
            path,
            last: Mutex::new((me, version)),
            is_lost: AtomicBool::new(false),
            system,
        });
        let runtime = Handle::current();
        let renewal = runtime.spawn(keep(Arc::clone(&held), terms)).abort_handle();
        Ok(Some(Lease { held, runtime, renewal }))
    }

    /// Returns true if the lease is known to be taken or removed by another process.
    pub(super) fn is_lost(&self) -> bool {
        self.held.is_lost.load(Ordering::Relaxed)
    }

    /// Renews the lease and returns whether this process still holds it.
    pub(super) fn confirm(&self) -> impl Future<Output = Result<bool>> + Send + 'static {
        let held = Arc::clone(&self.held);
        async move { held.renew().await.map(|()| !held.is_lost.load(Ordering::Relaxed)) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewal.abort();
        if self.is_lost() {
            return;
        }
        let held = Arc::clone(&self.held);
        let (done, wait) = std::sync::mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            // A lease that cannot be removed expires.
            let last = held.last.lock().await;
            if let Ok(Some((holder, _))) = look(&*held.backend, &held.path).await
                && holder.id == last.0.id
            {
                let _ = held.backend.delete(&held.path).await;
            }
            let _ = done.send(());
        });
        let _ = wait.recv_timeout(RELEASE);
    }
}

impl Held {
    /// Renews the lease, or records that it is lost.
    async fn renew(&self) -> Result<()> {
        let mut last = self.last.lock().await;
        let now = Holder { renewed: last.0.renewed + 1, ..last.0.clone() };
        if let Some(version) =
            put(&*self.backend, &self.path, &now, PutMode::Update(last.1.clone())).await?
        {
            *last = (now, version);
            return Ok(());
        }
        // An earlier renewal may have succeeded although its response was lost.
        match look(&*self.backend, &self.path).await? {
            Some((holder, meta)) if holder.id == now.id => *last = (holder, version_of(meta)),
            _ => self.is_lost.store(true, Ordering::Relaxed),
        }
        Ok(())
    }
}

/// Returns true if the lease at a path was renewed within its expiry time, and its holder is not
/// known to have ended. Compares the clocks of this machine and the store. Writes nothing.
pub(super) async fn is_held(backend: Arc<dyn Backend>, path: Path, system: System) -> Result<bool> {
    let Some((holder, meta)) = look(&*backend, &path).await? else { return Ok(false) };
    let age =
        system.clock.system_time().duration_since(meta.last_modified.into()).unwrap_or_default();
    Ok(age < TERMS.expire && !holder.process.is_gone())
}

/// Creates the lease object, or replaces an expired one.
async fn acquire(
    backend: &dyn Backend,
    path: &Path,
    me: &Holder,
    terms: Terms,
    system: &System,
) -> Result<Option<UpdateVersion>> {
    let mut seen: Option<(Holder, Instant)> = None;
    for _ in 0..TURNS {
        if let Some(version) = put(backend, path, me, PutMode::Create).await? {
            return Ok(Some(version));
        }
        // The holder may have released it since.
        if let Some((holder, meta)) = look(backend, path).await? {
            let version = version_of(meta);
            if holder.id == me.id {
                return Ok(Some(version));
            }
            let silent = match &seen {
                Some((before, _)) if *before != holder => return Ok(None),
                Some((_, since)) => system.elapsed(*since),
                None => Duration::ZERO,
            };
            if (silent >= terms.expire || holder.process.is_gone())
                && let Some(version) = put(backend, path, me, PutMode::Update(version)).await?
            {
                return Ok(Some(version));
            }
            seen.get_or_insert((holder, system.now()));
        }
        system.wait(terms.expire / (TURNS / 2)).await;
    }
    // Other processes take and release the lease too often.
    Ok(None)
}

/// Renews the lease until it is lost.
async fn keep(held: Arc<Held>, terms: Terms) {
    while !held.is_lost.load(Ordering::Relaxed) {
        held.system.wait(terms.renew).await;
        // The next renewal makes up for one that fails or takes too long.
        let _ = tokio::time::timeout(terms.renew, held.renew()).await;
    }
}

/// Writes the object if a condition holds. Returns `None` if it does not. The client retries a put
/// whose response was lost, so this process may have made the condition false itself; callers read
/// the object to find out.
async fn put(
    backend: &dyn Backend,
    path: &Path,
    holder: &Holder,
    mode: PutMode,
) -> Result<Option<UpdateVersion>> {
    let body = serde_json::to_vec(holder)
        .map_err(|e| Error::Generic { store: "lock", source: Box::new(e) })?;
    let is_update = matches!(mode, PutMode::Update(_));
    match backend
        .put_opts(path, PutPayload::from(body), PutOptions { mode, ..PutOptions::default() })
        .await
    {
        Ok(done) => Ok(Some(done.into())),
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(None),
        Err(Error::NotFound { .. }) if is_update => Ok(None),
        Err(e) => Err(e),
    }
}

/// Reads the holder. An object with other contents has a default holder.
async fn look(backend: &dyn Backend, path: &Path) -> Result<Option<(Holder, ObjectMeta)>> {
    match backend.get(path).await {
        Ok(found) => {
            let meta = found.meta.clone();
            let holder = if meta.size > MAX_BYTES {
                Holder::default()
            } else {
                serde_json::from_slice(&found.bytes().await?).unwrap_or_default()
            };
            Ok(Some((holder, meta)))
        }
        Err(Error::NotFound { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

fn version_of(meta: ObjectMeta) -> UpdateVersion {
    UpdateVersion { e_tag: meta.e_tag, version: meta.version }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::system::ManualClock;

    const QUICK: Terms =
        Terms { renew: Duration::from_millis(20), expire: Duration::from_millis(400) };
    /// The terms of a holder that never renews, like a killed process.
    const NEVER: Terms =
        Terms { renew: Duration::from_secs(1_000_000), expire: Duration::from_millis(400) };

    /// A store, and a clock that tests advance.
    struct Bench {
        runtime: tokio::runtime::Runtime,
        backend: Arc<dyn Backend>,
        path: Path,
        clock: ManualClock,
    }

    impl Bench {
        fn new() -> Bench {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            Bench {
                runtime,
                backend: Arc::new(InMemory::new()),
                path: Path::from("run/lock"),
                clock: ManualClock::default(),
            }
        }

        fn system(&self) -> System {
            System { clock: Arc::new(self.clock.clone()), ..System::default() }
        }

        fn begin(&self, terms: Terms) -> JoinHandle<Result<Option<Lease>>> {
            self.runtime.spawn(Lease::take_on(
                Arc::clone(&self.backend),
                self.path.clone(),
                terms,
                self.system(),
            ))
        }

        /// Tries to take the lease while `advance` advances the clock.
        fn take_while(&self, terms: Terms, advance: impl Fn()) -> Option<Lease> {
            let taking = self.begin(terms);
            while !taking.is_finished() {
                advance();
            }
            self.runtime.block_on(taking).unwrap().unwrap()
        }

        /// Takes a lease whose holder does not renew it.
        fn take(&self, terms: Terms) -> Option<Lease> {
            self.take_while(terms, || {
                self.clock.advance(Duration::from_millis(1));
                std::thread::yield_now();
            })
        }

        fn holder(&self) -> Option<Holder> {
            self.runtime.block_on(look(&*self.backend, &self.path)).unwrap().map(|(h, _)| h)
        }

        /// Advances the clock until the holder has renewed the lease.
        fn renew(&self) {
            let Some(before) = self.holder() else { return };
            // A holder that started to wait after an advance waits for the next. This number of
            // advances does not expire the lease.
            let mut pause = Duration::from_millis(20);
            for _ in 0..12 {
                self.clock.advance(QUICK.renew);
                let moved = std::time::Instant::now();
                while moved.elapsed() < pause {
                    if self.holder().is_none_or(|h| h != before) {
                        return;
                    }
                    std::thread::yield_now();
                }
                pause *= 2;
            }
            panic!("the holder does not renew the lease");
        }
    }

    #[test]
    fn lease_is_exclusive_until_released() {
        let bench = Bench::new();
        let first = bench.take(QUICK).unwrap();
        // The store in memory uses the machine's clock.
        let is_held = || {
            bench
                .runtime
                .block_on(is_held(
                    Arc::clone(&bench.backend),
                    bench.path.clone(),
                    System::default(),
                ))
                .unwrap()
        };
        assert!(
            bench.take_while(QUICK, || bench.renew()).is_none() && is_held(),
            "its holder lives"
        );
        assert!(!first.is_lost() && bench.holder().unwrap().renewed > 0);
        drop(first);
        assert!(bench.holder().is_none() && !is_held());
        assert!(bench.take(QUICK).is_some());
    }

    #[test]
    fn expired_lease_is_taken_over_and_reported_lost() {
        let bench = Bench::new();
        let silent = bench.take(NEVER).unwrap();
        let begun = bench.clock.passed();
        let next = bench.take(NEVER).unwrap();
        assert!(bench.clock.passed() - begun >= NEVER.expire, "the expiry time passes first");
        // The first holder continues.
        assert!(
            !bench.runtime.block_on(silent.confirm()).unwrap()
                && bench.runtime.block_on(next.confirm()).unwrap()
        );
        assert!(silent.is_lost() && !next.is_lost());
        let taken = bench.holder().unwrap().id;
        drop(silent);
        assert_eq!(bench.holder().unwrap().id, taken, "a lost lease is not removed");
    }

    #[test]
    fn lease_of_an_ended_local_process_is_taken_at_once() {
        let bench = Bench::new();
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let process = ProcessId::of(child.id());
        let theirs = Holder { id: "theirs".into(), process, renewed: 3 };
        bench
            .runtime
            .block_on(put(&*bench.backend, &bench.path, &theirs, PutMode::Overwrite))
            .unwrap();
        let never =
            Terms { renew: Duration::from_secs(1_000_000), expire: Duration::from_secs(1000) };
        let waits = bench.begin(never);
        for _ in 0..10 {
            bench.clock.advance(Duration::from_secs(50));
            std::thread::sleep(Duration::from_millis(5));
            assert!(!waits.is_finished(), "the process is running");
        }
        waits.abort();
        child.kill().unwrap();
        child.wait().unwrap();
        let begun = bench.clock.passed();
        assert!(bench.take_while(never, || {}).is_some());
        assert_eq!(bench.clock.passed(), begun);
    }

    #[test]
    fn one_of_many_competitors_takes_the_lease() {
        let bench = Bench::new();
        for _ in 0..20 {
            let taking: Vec<_> = (0..8).map(|_| bench.begin(QUICK)).collect();
            while !taking.iter().all(JoinHandle::is_finished) {
                bench.renew();
            }
            let taken: Vec<_> = taking
                .into_iter()
                .filter_map(|t| bench.runtime.block_on(t).unwrap().unwrap())
                .collect();
            assert_eq!(taken.len(), 1);
        }
    }

    #[test]
    fn invalid_lease_object_expires() {
        let bench = Bench::new();
        bench
            .runtime
            .block_on(bench.backend.put(&bench.path, PutPayload::from_static(b"no holder")))
            .unwrap();
        assert!(bench.take(QUICK).is_some());
    }
}
