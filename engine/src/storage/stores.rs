//! The open stores of a program, and opening of stores by URL.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use super::lock::guard;
#[cfg(feature = "object-stores")]
use super::object;
use super::{LocalStore, StorageError, Store};
use crate::system::System;

/// The stores that a program has opened, by URL. Stores in memory can only be found here.
#[derive(Clone, Debug, Default)]
pub struct Stores {
    open: Arc<Mutex<HashMap<String, Arc<Entry>>>>,
    openers: Vec<(&'static str, Opener)>,
    system: System,
}

/// A store that is open or is being opened. Opening may take network requests; meanwhile only
/// callers that open the same store wait.
#[derive(Debug, Default)]
struct Entry {
    store: OnceLock<Arc<dyn Store>>,
    opening: Mutex<()>,
}

impl From<Arc<dyn Store>> for Entry {
    fn from(store: Arc<dyn Store>) -> Entry {
        Entry { store: store.into(), opening: Mutex::default() }
    }
}

/// A function that opens a store whose URL has a prefix unknown to the engine.
pub type Opener = fn(&str) -> Result<Arc<dyn Store>, StorageError>;

impl Stores {
    /// Creates an empty set of stores with a clock and a source of random numbers.
    pub fn with_system(system: System) -> Stores {
        Stores { system, ..Stores::default() }
    }

    /// Returns the clock and the source of random numbers.
    pub fn system(&self) -> &System {
        &self.system
    }

    /// Adds an opener for URLs that begin with a prefix such as `icechunk+`.
    #[must_use]
    pub fn with_opener(mut self, prefix: &'static str, opener: Opener) -> Stores {
        self.openers.push((prefix, opener));
        self
    }

    /// Adds an open store.
    pub fn insert(&self, store: Arc<dyn Store>) {
        guard(&self.open).insert(store.url().to_owned(), Arc::new(store.into()));
    }

    /// Returns the store at a URL if it is open.
    pub fn get(&self, url: &str) -> Option<Arc<dyn Store>> {
        guard(&self.open)
            .get(url.trim_end_matches('/'))
            .and_then(|entry| entry.store.get().cloned())
    }

    /// Adds all open stores of another set, without its openers.
    pub fn extend(&self, other: &Stores) {
        let theirs: Vec<_> =
            guard(&other.open).values().filter_map(|entry| entry.store.get().cloned()).collect();
        theirs.into_iter().for_each(|s| self.insert(s));
    }

    /// Returns the same set with another store at a URL.
    pub fn with(&self, url: &str, store: Arc<dyn Store>) -> Stores {
        let mut open = guard(&self.open).clone();
        open.insert(url.trim_end_matches('/').to_owned(), Arc::new(store.into()));
        Stores { open: Arc::new(Mutex::new(open)), ..self.clone() }
    }

    /// Opens the store at a path or URL: `file://…`; with the feature `object-stores`
    /// `s3://bucket/prefix` and `http(s)://host/prefix`; with `gcs` `gs://bucket/prefix`; with
    /// `azure` `az://container/prefix`. Creates nothing. Each URL is opened once.
    ///
    /// # Errors
    /// Returns an error if the scheme is unknown, or if the store is in the memory of another
    /// process.
    pub fn open(&self, url: &str) -> Result<Arc<dyn Store>, StorageError> {
        let url = url.trim_end_matches('/');
        let entry = Arc::clone(guard(&self.open).entry(url.to_owned()).or_default());
        let _opening = guard(&entry.opening);
        if let Some(store) = entry.store.get() {
            return Ok(Arc::clone(store));
        }
        let store = self.open_new(url)?;
        Ok(Arc::clone(entry.store.get_or_init(|| store)))
    }

    fn open_new(&self, url: &str) -> Result<Arc<dyn Store>, StorageError> {
        if let Some((_, opener)) = self.openers.iter().find(|(prefix, _)| url.starts_with(prefix)) {
            return opener(url);
        }
        match url.split_once("://") {
            None => Ok(Arc::new(LocalStore::new(url))),
            Some(("file", path)) => Ok(Arc::new(LocalStore::new(path))),
            Some(("memory", _)) => Err(StorageError::NotInProcess(url.to_owned())),
            Some((scheme, _)) => self.open_remote(url, scheme),
        }
    }

    fn open_remote(&self, url: &str, scheme: &str) -> Result<Arc<dyn Store>, StorageError> {
        let invalid = |why| StorageError::InvalidUrl { url: url.to_owned(), why };
        match REMOTE_SCHEMES.iter().find(|(known, ..)| *known == scheme) {
            #[cfg(feature = "object-stores")]
            Some((.., true)) => Ok(Arc::new(object::ObjectStore::open(url, &self.system)?)),
            Some((_, feature, _)) => Err(invalid(format!(
                "this program was built without the feature `{feature}` (hint: build it with \
                    `--features {feature}`)"
            ))),
            None => {
                let known: Vec<&str> = REMOTE_SCHEMES.iter().map(|(scheme, ..)| *scheme).collect();
                let known = known.join(", ");
                Err(invalid(format!("unknown scheme `{scheme}`, expected one of file, {known}")))
            }
        }
    }
}

/// The schemes of remote stores, the feature that each needs, and whether this build has it.
pub(super) const REMOTE_SCHEMES: [(&str, &str, bool); 5] = [
    ("s3", "object-stores", cfg!(feature = "object-stores")),
    ("http", "object-stores", cfg!(feature = "object-stores")),
    ("https", "object-stores", cfg!(feature = "object-stores")),
    ("gs", "gcs", cfg!(feature = "gcs")),
    ("az", "azure", cfg!(feature = "azure")),
];

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, PoisonError};

    use super::super::{MemoryStore, is_remote_url};
    use super::*;

    #[track_caller]
    fn check(url: &str, feature: &str, built: bool) {
        assert!(is_remote_url(url));
        let opened = Stores::default().open(url);
        match opened {
            Err(error) if !built => {
                assert!(error.to_string().contains(&format!("`--features {feature}`")), "{error}")
            }
            // Variables that the store needs may be missing.
            opened => {
                assert!(built && opened.is_ok_and(|s| s.url() == url && s.is_remote()), "{url}")
            }
        }
    }

    #[test]
    fn a_scheme_whose_feature_is_off_names_it() {
        check("s3://bucket/prefix", "object-stores", cfg!(feature = "object-stores"));
        check("http://host/prefix", "object-stores", cfg!(feature = "object-stores"));
        check("gs://bucket/prefix", "gcs", cfg!(feature = "gcs"));
        if cfg!(not(feature = "azure")) {
            // With the feature, the environment must name the account.
            check("az://container/prefix", "azure", false);
        }
        for url in ["gopher://hole", "gs", "file:///tmp", "/s3://x"] {
            assert!(!is_remote_url(url), "{url}");
        }
        let error = Stores::default().open("gopher://hole").unwrap_err().to_string();
        assert!(error.contains("file, s3, http, https, gs, az"), "{error}");
    }

    #[cfg(feature = "object-stores")]
    #[test]
    fn a_url_without_a_bucket_is_refused() {
        for (scheme, ..) in REMOTE_SCHEMES.iter().filter(|(.., built)| *built) {
            let error =
                Stores::default().open(&format!("{scheme}:///prefix")).unwrap_err().to_string();
            assert!(error.contains("missing bucket"), "{error}");
        }
    }

    /// An opener that checks that each URL is opened once.
    fn gated(url: &str) -> Result<Arc<dyn Store>, StorageError> {
        static OPENED: Mutex<Vec<String>> = Mutex::new(Vec::new());
        static CHANGED: Condvar = Condvar::new();
        let mut opened = guard(&OPENED);
        assert!(!opened.iter().any(|o| o == url), "{url} is opened once");
        opened.push(url.to_owned());
        CHANGED.notify_all();
        // Opening the first blocks until the second is being opened.
        while url.ends_with("first") && !opened.iter().any(|o| o.ends_with("second")) {
            opened = CHANGED.wait(opened).unwrap_or_else(PoisonError::into_inner);
        }
        if url.ends_with("broken") && !opened.iter().any(|o| o == "retried") {
            opened.retain(|o| o != url);
            opened.push("retried".into());
            return Err(StorageError::NotInProcess(url.to_owned()));
        }
        Ok(Arc::new(MemoryStore::new()))
    }

    #[test]
    fn stores_are_opened_beside_each_other_and_each_once() {
        let stores = Stores::default().with_opener("gate://", gated);
        std::thread::scope(|scope| {
            let first: Vec<_> =
                (0..4).map(|_| scope.spawn(|| stores.open("gate://first").unwrap())).collect();
            // Deadlocks if one open waits for another.
            let second = stores.open("gate://second").unwrap();
            let first: Vec<_> = first.into_iter().map(|t| t.join().unwrap()).collect();
            assert!(
                first.iter().all(|s| s.url() == first[0].url()) && second.url() != first[0].url()
            );
        });
        assert!(stores.get("gate://third").is_none() && stores.get("gate://second/").is_some());
    }

    #[test]
    fn a_store_that_could_not_be_opened_is_tried_again() {
        let stores = Stores::default().with_opener("gate://", gated);
        assert!(stores.open("gate://broken").is_err() && stores.get("gate://broken").is_none());
        let copy = Stores::default();
        copy.extend(&stores);
        assert!(copy.get("gate://broken").is_none());
        assert!(stores.open("gate://broken").is_ok());
    }
}
