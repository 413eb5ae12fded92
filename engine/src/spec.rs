//! What a computation may use.
//!
//! A [`Spec`] is resolved from layers, each of which sets some things and leaves others: code,
//! command line, environment, file, defaults, in that precedence.

use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use crate::memory::size;
use crate::storage::{Encoding, EncodingError};
use crate::work_dir::default_work_dir;
use crate::{files, machine};

/// Limits and places of a computation. The words mean what they mean in Cubed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Directory or URL for intermediate arrays, plans and journals. Unless said, a directory of
    /// the user's own: `freestone-UID` in `TMPDIR` where that is set, else `freestone` in
    /// `XDG_CACHE_HOME`, else `/tmp/freestone-UID`.
    pub work_dir: String,
    /// Bytes that one task may hold, `reserved_mem` included.
    pub allowed_mem: u64,
    /// Bytes that a worker holds before any array: program, stacks, plan.
    pub reserved_mem: u64,
    /// Bytes that the local process may hold in all.
    pub local_mem: u64,
    /// Tasks that the plan should keep busy at once. It is part of the plan, so it decides the bits
    /// of partial sums.
    pub parallelism: u64,
    /// Threads or processes of local executors.
    pub threads: usize,
    /// Codec of intermediate arrays. They have a checksum in any case.
    pub codec: Encoding,
    /// How often a task is tried again that storage or its worker failed.
    pub retries: u32,
    /// What each task may take. Where tasks run on threads, it is looked at between chunks, blocks
    /// and slices.
    pub task_timeout: Option<Duration>,
    /// What a whole run may take; then it stops as if it were cancelled, and can be resumed.
    pub deadline: Option<Duration>,
    /// The repository that results are committed to, where a run commits: a directory or URL.
    pub repository: String,
    /// Its branch.
    pub branch: String,
    /// How long a shared session lives unless it is said.
    pub session_expiry: Duration,
    /// Whether sessions may be shared by their ids.
    pub sharing: bool,
}

impl Spec {
    /// Bytes that a task may grow to where that only saves time: within what it is allowed, and so
    /// that as many tasks as the plan keeps busy fit the local process together, if they run there.
    pub fn soft_mem(&self) -> u64 {
        if self.parallelism > self.threads as u64 {
            return self.allowed_mem;
        }
        let each = self.local_mem.saturating_sub(self.reserved_mem) / self.parallelism.max(1);
        self.allowed_mem.min(self.reserved_mem.saturating_add(each))
    }

    /// Tasks that a stage should have where it can: the last ones to finish leave others idle for a
    /// fraction of a task only.
    pub fn wanted_tasks(&self) -> u64 {
        self.parallelism.max((TASKS_PER_SLOT * self.parallelism).min(64))
    }
}

/// Tasks for each slot of parallelism, where there are few.
const TASKS_PER_SLOT: u64 = 4;

/// One layer of settings; what is `None` is left to the layers below.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// See [`Spec::work_dir`].
    pub work_dir: Option<String>,
    /// See [`Spec::allowed_mem`].
    #[serde(default, deserialize_with = "bytes")]
    pub allowed_mem: Option<u64>,
    /// See [`Spec::reserved_mem`].
    #[serde(default, deserialize_with = "bytes")]
    pub reserved_mem: Option<u64>,
    /// See [`Spec::local_mem`].
    #[serde(default, deserialize_with = "bytes")]
    pub local_mem: Option<u64>,
    /// See [`Spec::parallelism`].
    pub parallelism: Option<u64>,
    /// See [`Spec::threads`].
    pub threads: Option<usize>,
    /// See [`Spec::codec`].
    pub codec: Option<Encoding>,
    /// See [`Spec::retries`].
    pub retries: Option<u32>,
    /// See [`Spec::task_timeout`].
    #[serde(default, deserialize_with = "duration")]
    pub task_timeout: Option<Duration>,
    /// See [`Spec::deadline`].
    #[serde(default, deserialize_with = "duration")]
    pub deadline: Option<Duration>,
    /// See [`Spec::repository`].
    pub repository: Option<String>,
    /// See [`Spec::branch`].
    pub branch: Option<String>,
    /// See [`Spec::session_expiry`].
    #[serde(default, deserialize_with = "duration")]
    pub session_expiry: Option<Duration>,
    /// See [`Spec::sharing`].
    pub sharing: Option<bool>,
}

/// Why settings do not hold.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum SpecError {
    #[error(
        "`{value}` is no size: write bytes or a number with a unit, as in 500MB or \"2 GB\" \
            (powers of 1000; GiB is 1024³)"
    )]
    Size { value: String },
    #[error("`{value}` is no duration: write a number with a unit, as in 90s, 15m or \"2h 30m\"")]
    Duration { value: String },
    #[error("{place} cannot be used: {why}")]
    Source { place: String, why: String },
    #[error("{name} must be at least {least}, not {value}")]
    TooSmall { name: &'static str, value: u64, least: u64 },
    #[error(
        "allowed_mem is {}, of which reserved_mem takes {}: no room is left for arrays (hint: \
            raise allowed_mem above reserved_mem)",
        size(*allowed), size(*reserved)
    )]
    NoRoom { allowed: u64, reserved: u64 },
    #[error("codec of intermediate arrays: {0}")]
    Codec(#[from] EncodingError),
}

/// Bytes of a text such as `2 GB` (powers of 1000), `1.5GiB` or `1000000`.
///
/// # Errors
/// Where it is no size.
pub fn parse_size(text: &str) -> Result<u64, SpecError> {
    text.trim()
        .parse::<ByteSize>()
        .map(|b| b.as_u64())
        .map_err(|_| SpecError::Size { value: text.to_owned() })
}

/// The time of a text such as `90s` or `2h 30m`.
///
/// # Errors
/// Where it is none, or no time at all.
pub fn parse_duration(text: &str) -> Result<Duration, SpecError> {
    let bad = || SpecError::Duration { value: text.to_owned() };
    humantime::parse_duration(text.trim()).ok().filter(|d| *d > Duration::ZERO).ok_or_else(bad)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|t| parse_duration(&t)).transpose().map_err(serde::de::Error::custom)
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Text {
        Number(u64),
        Words(String),
    }
    match Option::<Text>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Text::Number(n)) => Ok(Some(n)),
        Some(Text::Words(words)) => parse_size(&words).map(Some).map_err(serde::de::Error::custom),
    }
}

/// What the defaults reserve: the program, its libraries and stacks, the allocator and the plan. An
/// idle process of ours has 11 to 25 MB resident, of which the greater part are pages of the
/// program's file.
pub const DEFAULT_RESERVED_MEM: u64 = 32_000_000;
/// What a task may hold if nothing is said.
pub const DEFAULT_ALLOWED_MEM: u64 = 2_000_000_000;
/// How often a task is tried again if nothing is said.
pub const DEFAULT_RETRIES: u32 = 4;
/// The repository if nothing is said, in the current directory, and its branch.
pub const DEFAULT_REPOSITORY: &str = "freestone.icechunk";
/// See [`DEFAULT_REPOSITORY`].
pub const DEFAULT_BRANCH: &str = "main";
/// How long a shared session lives if nothing is said.
pub const DEFAULT_SESSION_EXPIRY: Duration = Duration::from_secs(24 * 3600);
/// The file that is read if no other is named, in the current directory.
pub const DEFAULT_FILE: &str = "freestone.toml";

impl Settings {
    /// From the variables `FREESTONE_WORK_DIR`, `FREESTONE_ALLOWED_MEM`, … .
    ///
    /// # Errors
    /// Where one of them cannot be read.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Result<Settings, SpecError> {
        let text = |name: &str| lookup(&format!("FREESTONE_{name}")).filter(|v| !v.is_empty());
        let bad = |name: &str, why: String| SpecError::Source {
            place: format!("the environment variable FREESTONE_{name}"),
            why,
        };
        let size = |name: &str| {
            text(name).map(|v| parse_size(&v).map_err(|e| bad(name, e.to_string()))).transpose()
        };
        let time = |name: &str| {
            text(name).map(|v| parse_duration(&v).map_err(|e| bad(name, e.to_string()))).transpose()
        };
        let count = |name: &str| {
            text(name)
                .map(|v| {
                    v.parse::<u64>().map_err(|_| bad(name, format!("`{v}` is no whole number")))
                })
                .transpose()
        };
        Ok(Settings {
            work_dir: text("WORK_DIR"),
            allowed_mem: size("ALLOWED_MEM")?,
            reserved_mem: size("RESERVED_MEM")?,
            local_mem: size("LOCAL_MEM")?,
            parallelism: count("PARALLELISM")?,
            threads: count("THREADS")?.map(|n| n as usize),
            codec: text("CODEC")
                .map(|v| v.parse().map_err(|e: EncodingError| bad("CODEC", e.to_string())))
                .transpose()?,
            retries: count("RETRIES")?.map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
            task_timeout: time("TASK_TIMEOUT")?,
            deadline: time("DEADLINE")?,
            repository: text("REPOSITORY"),
            branch: text("BRANCH"),
            session_expiry: time("SESSION_EXPIRY")?,
            sharing: text("SHARING")
                .map(|v| {
                    v.parse()
                        .map_err(|_| bad("SHARING", format!("`{v}` is neither true nor false")))
                })
                .transpose()?,
        })
    }

    /// From a TOML file; one that is not there sets nothing.
    ///
    /// # Errors
    /// Where it cannot be read or says what is not known.
    pub fn from_file(path: &Path) -> Result<Settings, SpecError> {
        let bad = |why: String| SpecError::Source {
            place: format!("the settings file {}", path.display()),
            why,
        };
        match files::read_to_string(path) {
            Ok(text) => toml::from_str(&text).map_err(|e| bad(e.to_string())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Settings::default()),
            Err(e) => Err(bad(e.to_string())),
        }
    }

    /// These settings, and what they leave open from `below`.
    #[must_use]
    pub fn or(self, below: Settings) -> Settings {
        Settings {
            work_dir: self.work_dir.or(below.work_dir),
            allowed_mem: self.allowed_mem.or(below.allowed_mem),
            reserved_mem: self.reserved_mem.or(below.reserved_mem),
            local_mem: self.local_mem.or(below.local_mem),
            parallelism: self.parallelism.or(below.parallelism),
            threads: self.threads.or(below.threads),
            codec: self.codec.or(below.codec),
            retries: self.retries.or(below.retries),
            task_timeout: self.task_timeout.or(below.task_timeout),
            deadline: self.deadline.or(below.deadline),
            repository: self.repository.or(below.repository),
            branch: self.branch.or(below.branch),
            session_expiry: self.session_expiry.or(below.session_expiry),
            sharing: self.sharing.or(below.sharing),
        }
    }

    /// Fills what is still open with the defaults.
    ///
    /// # Errors
    /// Where a limit is too small to mean anything.
    pub fn resolve(self) -> Result<Spec, SpecError> {
        let at_least = |name, value: u64, least| {
            if value < least { Err(SpecError::TooSmall { name, value, least }) } else { Ok(value) }
        };
        let threads =
            at_least("threads", self.threads.unwrap_or_else(machine::cores) as u64, 1)? as usize;
        let allowed_mem = self.allowed_mem.unwrap_or(DEFAULT_ALLOWED_MEM);
        let reserved_mem = self.reserved_mem.unwrap_or(DEFAULT_RESERVED_MEM);
        if at_least("allowed_mem", allowed_mem, 1)? <= reserved_mem {
            return Err(SpecError::NoRoom { allowed: allowed_mem, reserved: reserved_mem });
        }
        let codec = self.codec.unwrap_or_default();
        codec.check()?;
        let machine_mem = machine::memory_bytes() / 5 * 4;
        Ok(Spec {
            work_dir: self
                .work_dir
                .unwrap_or_else(|| default_work_dir(|name| std::env::var(name).ok())),
            allowed_mem,
            reserved_mem,
            local_mem: self
                .local_mem
                .unwrap_or_else(|| allowed_mem.saturating_mul(threads as u64).min(machine_mem)),
            parallelism: at_least("parallelism", self.parallelism.unwrap_or(threads as u64), 1)?,
            threads,
            codec,
            retries: self.retries.unwrap_or(DEFAULT_RETRIES),
            task_timeout: self.task_timeout,
            deadline: self.deadline,
            repository: self.repository.unwrap_or_else(|| DEFAULT_REPOSITORY.to_owned()),
            branch: self.branch.unwrap_or_else(|| DEFAULT_BRANCH.to_owned()),
            session_expiry: self.session_expiry.unwrap_or(DEFAULT_SESSION_EXPIRY),
            sharing: self.sharing.unwrap_or(true),
        })
    }
}

impl Spec {
    /// Resolves settings from code with those of the environment, of the file `FREESTONE_CONFIG` or
    /// `freestone.toml`, and the defaults.
    ///
    /// # Errors
    /// Where a layer cannot be read or a limit is too small.
    pub fn load(code: Settings) -> Result<Spec, SpecError> {
        Spec::load_over(code, Settings::default())
    }

    /// The same, with other defaults for what no layer sets.
    ///
    /// # Errors
    /// As [`load`](Spec::load).
    pub fn load_over(code: Settings, defaults: Settings) -> Result<Spec, SpecError> {
        let environment = Settings::from_env(|name| std::env::var(name).ok())?;
        let named = std::env::var("FREESTONE_CONFIG").ok().filter(|name| !name.is_empty());
        if let Some(name) = named.as_ref().filter(|name| !Path::new(name).exists()) {
            return Err(SpecError::Source {
                place: format!("the settings file {name}, which FREESTONE_CONFIG names,"),
                why: "there is no such file".into(),
            });
        }
        let file = named.unwrap_or_else(|| DEFAULT_FILE.into());
        code.or(environment).or(Settings::from_file(Path::new(&file))?).or(defaults).resolve()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Option<u64>) {
        assert_eq!(parse_size(text).ok(), expect, "{text}");
    }

    #[test]
    fn sizes_are_powers_of_1000_unless_said() {
        check("2 GB", Some(2_000_000_000));
        check("500MB", Some(500_000_000));
        check("1.5 GiB", Some(1_610_612_736));
        check("1000000", Some(1_000_000));
        check("60 kB", Some(60_000));
        for bad in ["", "GB", "2 QB", "-1", "two"] {
            check(bad, None);
        }
    }

    #[test]
    fn code_comes_before_environment_before_file() {
        let file: Settings =
            toml::from_str("allowed_mem = \"1 GB\"\nthreads = 3\nwork_dir = \"f\"").unwrap();
        let env = Settings::from_env(|n| match n {
            "FREESTONE_THREADS" => Some("5".into()),
            "FREESTONE_WORK_DIR" => Some("e".into()),
            _ => None,
        })
        .unwrap();
        let code = Settings { work_dir: Some("c".into()), ..Settings::default() };
        let spec = code.or(env).or(file).resolve().unwrap();
        assert_eq!(
            (spec.work_dir.as_str(), spec.threads, spec.allowed_mem, spec.reserved_mem),
            ("c", 5, 1_000_000_000, DEFAULT_RESERVED_MEM)
        );
        assert_eq!(spec.parallelism, 5);
    }

    #[test]
    fn bad_settings_name_their_source() {
        assert!(toml::from_str::<Settings>("alowed_mem = 1").is_err());
        let error = Settings::from_env(|n| (n == "FREESTONE_ALLOWED_MEM").then(|| "lots".into()))
            .unwrap_err();
        assert!(error.to_string().contains("FREESTONE_ALLOWED_MEM"), "{error}");
        assert!(Settings { threads: Some(0), ..Settings::default() }.resolve().is_err());
    }

    /// Whichever layer says it: what a task may hold is more than what is reserved of it.
    #[test]
    fn allowed_mem_has_room_beside_reserved_mem() {
        let toml = |text: &str| toml::from_str::<Settings>(text).unwrap();
        let env = |name: &'static str, value: &'static str| {
            Settings::from_env(move |n| (n == name).then(|| value.to_owned())).unwrap()
        };
        let code = |allowed, reserved| Settings {
            allowed_mem: allowed,
            reserved_mem: reserved,
            ..Settings::default()
        };
        let refused = [
            code(Some(20_000_000), None),
            code(Some(1000), Some(2000)),
            code(Some(1000), Some(1000)),
            env("FREESTONE_ALLOWED_MEM", "20MB"),
            env("FREESTONE_RESERVED_MEM", "3GB"),
            toml("allowed_mem = \"32 MB\""),
            toml("reserved_mem = \"2 GB\""),
            // One layer says one thing, another the other.
            code(Some(100_000_000), None).or(toml("reserved_mem = \"200 MB\"")),
            env("FREESTONE_ALLOWED_MEM", "100MB").or(toml("reserved_mem = \"100 MB\"")),
        ];
        for settings in refused {
            let error = settings.clone().resolve().unwrap_err();
            assert!(
                matches!(error, SpecError::NoRoom { allowed, reserved } if allowed <= reserved),
                "{settings:?}: {error}"
            );
            assert!(error.to_string().contains("raise allowed_mem"), "{error}");
        }
        assert!(code(Some(1001), Some(1000)).resolve().is_ok());
        assert_eq!(
            code(Some(0), Some(0)).resolve().unwrap_err(),
            SpecError::TooSmall { name: "allowed_mem", value: 0, least: 1 }
        );
    }

    #[test]
    fn a_codec_of_settings_has_levels() {
        let codec = Some(crate::storage::CodecName::Zstd(99).into());
        assert!(matches!(
            Settings { codec, ..Settings::default() }.resolve(),
            Err(SpecError::Codec(_))
        ));
    }
}
