//! Limits and locations of a computation.
//!
//! A [`Spec`] is resolved from layers of [`Settings`], in this order of precedence: code, command
//! line, environment, file, defaults.

mod builder;

use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use crate::memory::size;
use crate::storage::{Encoding, EncodingError};
use crate::work_dir::default_work_dir;
use crate::{environment, files, machine};

pub use builder::{IntoSize, Size, SpecBuilder};

/// The limits and locations of a computation. The names have the same meanings as in Cubed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The directory or URL for intermediate arrays, plans and journals. The default is private to
    /// the user: `freestone-UID` in `TMPDIR` if that is set, else `freestone` in `XDG_CACHE_HOME`,
    /// else `/tmp/freestone-UID`.
    pub work_dir: String,
    /// The maximum memory of one task in bytes, including `reserved_mem`.
    pub allowed_mem: u64,
    /// The memory of a worker without arrays, in bytes: program, stacks and plan.
    pub reserved_mem: u64,
    /// The maximum memory of the local process in bytes.
    pub local_mem: u64,
    /// The number of concurrent tasks that the plan is made for. It is part of the plan and
    /// determines the order of partial sums, and so their bits.
    pub parallelism: u64,
    /// The number of threads or processes of local executors.
    pub threads: usize,
    /// The codec of intermediate arrays. They always have a checksum.
    pub codec: Encoding,
    /// The maximum number of retries of a task after a failure of storage or of its worker.
    pub retries: u32,
    /// The maximum duration of a task. On threads, it is checked between chunks, blocks and slices.
    pub task_timeout: Option<Duration>,
    /// The maximum duration of a run. A run that exceeds it stops like a cancelled run, and can be
    /// resumed.
    pub deadline: Option<Duration>,
    /// The repository to which runs commit: a directory or URL.
    pub repository: String,
    /// The branch of the repository.
    pub branch: String,
    /// The default lifetime of a shared session.
    pub session_expiry: Duration,
    /// True if sessions may be shared by their ids.
    pub sharing: bool,
}

impl Spec {
    /// Returns the memory that a task may use to save time, in bytes. It is within `allowed_mem`.
    /// If tasks run in the local process, `parallelism` tasks of this size fit it together.
    pub fn soft_mem(&self) -> u64 {
        if self.parallelism > self.threads as u64 {
            return self.allowed_mem;
        }
        let each = self.local_mem.saturating_sub(self.reserved_mem) / self.parallelism.max(1);
        self.allowed_mem.min(self.reserved_mem.saturating_add(each))
    }

    /// Returns the desired number of tasks of a stage. With several tasks per slot, workers idle
    /// only for a fraction of a task at the end of the stage.
    pub fn wanted_tasks(&self) -> u64 {
        self.parallelism.max((TASKS_PER_SLOT * self.parallelism).min(64))
    }
}

/// The desired number of tasks per slot of parallelism.
const TASKS_PER_SLOT: u64 = 4;

/// One layer of settings. A `None` is resolved by the layers below.
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

/// The error of invalid settings.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum SpecError {
    #[error(
        "invalid size `{value}`: expected bytes or a number with a unit, such as `500MB` or \
            `2 GB` (powers of 1000; GiB is 1024³)"
    )]
    InvalidSize { value: String },
    #[error(
        "invalid duration `{value}`: expected a number with a unit, such as `90s`, `15m` or \
            `2h 30m`"
    )]
    InvalidDuration { value: String },
    #[error("cannot use {place}: {why}")]
    Source { place: String, why: String },
    #[error("invalid {name} `{value}`: expected at least {least}")]
    TooSmall { name: &'static str, value: u64, least: u64 },
    #[error(
        "allowed_mem is {} but reserved_mem is {}: no memory is left for arrays (hint: raise \
            allowed_mem above reserved_mem)",
        size(*allowed), size(*reserved)
    )]
    NoRoom { allowed: u64, reserved: u64 },
    #[error("invalid codec of intermediate arrays: {0}")]
    Codec(#[from] EncodingError),
}

/// Parses a size such as `2 GB` (powers of 1000), `1.5GiB` or `1000000`, and returns bytes.
///
/// # Errors
/// Returns [`SpecError::InvalidSize`] for other texts.
pub fn parse_size(text: &str) -> Result<u64, SpecError> {
    text.trim()
        .parse::<ByteSize>()
        .map(|b| b.as_u64())
        .map_err(|_| SpecError::InvalidSize { value: text.to_owned() })
}

/// Parses a duration such as `90s` or `2h 30m`.
///
/// # Errors
/// Returns [`SpecError::InvalidDuration`] for other texts and for a duration of zero.
pub fn parse_duration(text: &str) -> Result<Duration, SpecError> {
    let bad = || SpecError::InvalidDuration { value: text.to_owned() };
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

/// The default of [`Spec::reserved_mem`]: the program, its libraries and stacks, the allocator and
/// the plan. An idle process has 11 to 25 MB resident, mostly pages of the program file.
pub const DEFAULT_RESERVED_MEM: u64 = 32_000_000;
/// The default of [`Spec::allowed_mem`].
pub const DEFAULT_ALLOWED_MEM: u64 = 2_000_000_000;
/// The default of [`Spec::retries`].
pub const DEFAULT_RETRIES: u32 = 4;
/// The default of [`Spec::repository`], in the current directory.
pub const DEFAULT_REPOSITORY: &str = "freestone.icechunk";
/// The default of [`Spec::branch`].
pub const DEFAULT_BRANCH: &str = "main";
/// The default of [`Spec::session_expiry`].
pub const DEFAULT_SESSION_EXPIRY: Duration = Duration::from_secs(24 * 3600);
/// The default settings file, in the current directory.
pub const DEFAULT_FILE: &str = "freestone.toml";

impl Settings {
    /// Reads the environment variables of settings, such as `FREESTONE_WORK_DIR`. Empty variables
    /// count as unset.
    ///
    /// # Errors
    /// Returns an error if a variable has an invalid value.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Result<Settings, SpecError> {
        let text = |name: &str| lookup(name).filter(|v| !v.is_empty());
        let bad = |name: &str, why: String| SpecError::Source {
            place: format!("the environment variable {name}"),
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
                    v.parse::<u64>()
                        .map_err(|_| bad(name, format!("invalid value `{v}`: expected an integer")))
                })
                .transpose()
        };
        Ok(Settings {
            work_dir: text(environment::WORK_DIR),
            allowed_mem: size(environment::ALLOWED_MEM)?,
            reserved_mem: size(environment::RESERVED_MEM)?,
            local_mem: size(environment::LOCAL_MEM)?,
            parallelism: count(environment::PARALLELISM)?,
            threads: count(environment::THREADS)?.map(|n| n as usize),
            codec: text(environment::CODEC)
                .map(|v| {
                    v.parse().map_err(|e: EncodingError| bad(environment::CODEC, e.to_string()))
                })
                .transpose()?,
            retries: count(environment::RETRIES)?.map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
            task_timeout: time(environment::TASK_TIMEOUT)?,
            deadline: time(environment::DEADLINE)?,
            repository: text(environment::REPOSITORY),
            branch: text(environment::BRANCH),
            session_expiry: time(environment::SESSION_EXPIRY)?,
            sharing: text(environment::SHARING)
                .map(|v| {
                    let why = format!("invalid value `{v}`: expected true or false");
                    v.parse().map_err(|_| bad(environment::SHARING, why))
                })
                .transpose()?,
        })
    }

    /// Reads a TOML file. A missing file sets nothing.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or contains unknown settings.
    pub fn from_file(path: &Path) -> Result<Settings, SpecError> {
        let bad = |why: String| SpecError::Source {
            place: format!("the settings file `{}`", path.display()),
            why,
        };
        match files::read_to_string(path) {
            Ok(text) => toml::from_str(&text).map_err(|e| bad(e.to_string())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Settings::default()),
            Err(e) => Err(bad(e.to_string())),
        }
    }

    /// Returns these settings, with missing ones from `below`.
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

    /// Returns the settings with defaults for missing ones.
    ///
    /// # Errors
    /// Returns an error if a limit is too small.
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
    /// Returns a builder. Values that it does not set come from the environment, the settings file
    /// and the defaults, in that order.
    pub fn builder() -> SpecBuilder {
        SpecBuilder::default()
    }

    /// Resolves settings from code, the environment, the file `FREESTONE_CONFIG` or
    /// `freestone.toml`, and the defaults.
    ///
    /// # Errors
    /// Returns an error if a layer is invalid or a limit is too small.
    pub fn load(code: Settings) -> Result<Spec, SpecError> {
        Spec::load_over(code, Settings::default())
    }

    /// Resolves settings like [`load`](Spec::load), with other defaults.
    ///
    /// # Errors
    /// Returns the errors of [`load`](Spec::load).
    pub fn load_over(code: Settings, defaults: Settings) -> Result<Spec, SpecError> {
        let environment = Settings::from_env(|name| std::env::var(name).ok())?;
        let named = std::env::var(environment::CONFIG).ok().filter(|name| !name.is_empty());
        if let Some(name) = named.as_ref().filter(|name| !Path::new(name).exists()) {
            return Err(SpecError::Source {
                place: format!("the settings file `{name}` of FREESTONE_CONFIG"),
                why: "it does not exist".into(),
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
    fn units_are_powers_of_1000_by_default() {
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

    /// `allowed_mem` must exceed `reserved_mem`, whichever layers set them.
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
            // Two layers set one limit each.
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
