//! Locks in object stores: an object that says who has the lock, written again every few seconds.
//!
//! It is made and renewed by puts with a condition, of which a store lets one win. Who finds the
//! lock taken waits for a sign of life, unless the holder was a process of this machine that is
//! gone. To take it, no clocks are compared: what counts is whether the object changes while
//! somebody looks. Who only asks whether it is taken ([`is_held`]) gets an answer at once, by the
//! store's time of the last sign.

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

/// How often a holder gives a sign of life, and how long it may give none before others take the
/// lock.
#[derive(Clone, Copy, Debug)]
struct Terms {
    renew: Duration,
    expire: Duration,
}

const TERMS: Terms = Terms { renew: Duration::from_secs(5), expire: Duration::from_secs(40) };
/// Whoever waits for a lock looks at it so often in twice that time.
const TURNS: u32 = 40;
/// Letting go of a lock takes no longer.
const RELEASE: Duration = Duration::from_secs(5);
const MAX_BYTES: u64 = 10_000;

/// What the object says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    id: String,
    process: ProcessId,
    renewed: u64,
}

/// A lock that this process has, as long as it lives.
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
    /// What was written last, and which version of the object that is.
    last: Mutex<(Holder, UpdateVersion)>,
    is_lost: AtomicBool,
    system: System,
}

impl Lease {
    /// Takes the lock at a path; `None` if somebody has it who lives. That may take as long as a
    /// sign of life of somebody who gives none.
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

    /// True once it is known that somebody else has taken the lock, or removed it.
    pub(super) fn is_lost(&self) -> bool {
        self.held.is_lost.load(Ordering::Relaxed)
    }

    /// Finds out whether the lock is still this process's, by a sign of life.
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
            // One that cannot be removed runs out.
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
    /// Gives a sign of life, and takes note if the lock is somebody else's.
    async fn renew(&self) -> Result<()> {
        let mut last = self.last.lock().await;
        let now = Holder { renewed: last.0.renewed + 1, ..last.0.clone() };
        if let Some(version) =
            put(&*self.backend, &self.path, &now, PutMode::Update(last.1.clone())).await?
        {
            *last = (now, version);
            return Ok(());
        }
        // An earlier one whose answer was lost may have been ours.
        match look(&*self.backend, &self.path).await? {
            Some((holder, meta)) if holder.id == now.id => *last = (holder, version_of(meta)),
            _ => self.is_lost.store(true, Ordering::Relaxed),
        }
        Ok(())
    }
}

/// True if somebody has the lock at a path who has given a sign of life of late, by the clocks of
/// this machine and the store, or is a process of this machine. Nothing is written.
pub(super) async fn is_held(backend: Arc<dyn Backend>, path: Path, system: System) -> Result<bool> {
    let Some((holder, meta)) = look(&*backend, &path).await? else { return Ok(false) };
    let age =
        system.clock.system_time().duration_since(meta.last_modified.into()).unwrap_or_default();
    Ok(age < TERMS.expire && !holder.process.is_gone())
}

/// Makes the object, or takes it over from somebody who gives no sign of life.
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
        // It may be gone again.
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
    // Others come and go too fast.
    Ok(None)
}

/// Gives signs of life until the lock is somebody else's.
async fn keep(held: Arc<Held>, terms: Terms) {
    while !held.is_lost.load(Ordering::Relaxed) {
        held.system.wait(terms.renew).await;
        // One that fails, or takes too long, is made up for by the next.
        let _ = tokio::time::timeout(terms.renew, held.renew()).await;
    }
}

/// Writes the object if a condition holds; `None` if it does not, or if it was this put that has
/// made it so: the client repeats one whose answer was lost. What is there then tells.
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

/// Who has the lock; nothing is known of one who has written something else.
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
    /// As if it had been killed.
    const NEVER: Terms =
        Terms { renew: Duration::from_secs(1_000_000), expire: Duration::from_millis(400) };

    /// A store, and a clock that the tests move.
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

        /// Takes the lock, or learns that it cannot be had, while the clock is moved on by
        /// `advance`.
        fn take_while(&self, terms: Terms, advance: impl Fn()) -> Option<Lease> {
            let taking = self.begin(terms);
            while !taking.is_finished() {
                advance();
            }
            self.runtime.block_on(taking).unwrap().unwrap()
        }

        /// Takes the lock where nobody gives signs of life.
        fn take(&self, terms: Terms) -> Option<Lease> {
            self.take_while(terms, || {
                self.clock.advance(Duration::from_millis(1));
                std::thread::yield_now();
            })
        }

        fn holder(&self) -> Option<Holder> {
            self.runtime.block_on(look(&*self.backend, &self.path)).unwrap().map(|(h, _)| h)
        }

        /// Moves the clock on until the holder has given one more sign of life.
        fn renew(&self) {
            let Some(before) = self.holder() else { return };
            // A holder that began to wait after the clock moved waits for the next move. So few do
            // not expire it.
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
            panic!("the holder gives no sign of life");
        }
    }

    #[test]
    fn one_has_the_lock_until_it_lets_go() {
        let bench = Bench::new();
        let first = bench.take(QUICK).unwrap();
        // The store in memory dates its objects by the machine's clock.
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
    fn who_gives_no_sign_of_life_loses_it_and_notices() {
        let bench = Bench::new();
        let silent = bench.take(NEVER).unwrap();
        let begun = bench.clock.passed();
        let next = bench.take(NEVER).unwrap();
        assert!(bench.clock.passed() - begun >= NEVER.expire, "it is waited for");
        // It wakes up.
        assert!(
            !bench.runtime.block_on(silent.confirm()).unwrap()
                && bench.runtime.block_on(next.confirm()).unwrap()
        );
        assert!(silent.is_lost() && !next.is_lost());
        let taken = bench.holder().unwrap().id;
        drop(silent);
        assert_eq!(bench.holder().unwrap().id, taken, "who has lost it does not remove it");
    }

    #[test]
    fn a_process_of_this_machine_that_is_gone_is_not_waited_for() {
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
            assert!(!waits.is_finished(), "it is there");
        }
        waits.abort();
        child.kill().unwrap();
        child.wait().unwrap();
        let begun = bench.clock.passed();
        assert!(bench.take_while(never, || {}).is_some());
        assert_eq!(bench.clock.passed(), begun);
    }

    #[test]
    fn of_many_who_want_it_at_once_one_gets_it() {
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
    fn what_somebody_else_has_written_there_runs_out() {
        let bench = Bench::new();
        bench
            .runtime
            .block_on(bench.backend.put(&bench.path, PutPayload::from_static(b"no holder")))
            .unwrap();
        assert!(bench.take(QUICK).is_some());
    }
}
