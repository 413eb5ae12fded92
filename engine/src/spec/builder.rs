//! A builder of [`Spec`], and sizes as numbers or text.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{Settings, Spec, SpecError, parse_size};
use crate::memory::size;
use crate::storage::Encoding;

/// A number of bytes, from a number or from text such as `500MB` or `1.5 GiB`.
///
/// ```
/// use freestone_engine::spec::Size;
///
/// assert_eq!("2 GB".parse::<Size>()?, Size::from(2_000_000_000));
/// # Ok::<(), freestone_engine::spec::SpecError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

impl Size {
    /// Returns the number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl From<u64> for Size {
    fn from(bytes: u64) -> Size {
        Size(bytes)
    }
}

impl FromStr for Size {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Size, SpecError> {
        parse_size(text).map(Size)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        size(self.0).fmt(f)
    }
}

/// A value that can be converted to a [`Size`]: a number of bytes, text, or a [`Size`].
pub trait IntoSize {
    /// Converts the value.
    ///
    /// # Errors
    /// Returns [`SpecError::InvalidSize`] for text that is not a size.
    fn into_size(self) -> Result<Size, SpecError>;
}

impl IntoSize for Size {
    fn into_size(self) -> Result<Size, SpecError> {
        Ok(self)
    }
}

impl IntoSize for u64 {
    fn into_size(self) -> Result<Size, SpecError> {
        Ok(Size(self))
    }
}

impl IntoSize for &str {
    fn into_size(self) -> Result<Size, SpecError> {
        self.parse()
    }
}

/// Builds a [`Spec`]. Created by [`Spec::builder`].
///
/// Values that are not set come from the environment, the settings file and the defaults, in that
/// order, as in [`Spec::load`].
///
/// ```
/// use freestone_engine::spec::Spec;
///
/// let spec = Spec::builder().allowed_mem("500MB").work_dir("/tmp/work").threads(2).build()?;
/// assert_eq!(spec.allowed_mem, 500_000_000);
/// # Ok::<(), freestone_engine::spec::SpecError>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct SpecBuilder {
    settings: Settings,
    /// The first error of a setter, which `build` returns.
    error: Option<SpecError>,
}

impl SpecBuilder {
    fn bytes(&mut self, size: impl IntoSize) -> Option<u64> {
        size.into_size().map_err(|e| self.error.get_or_insert(e)).map(Size::bytes).ok()
    }

    /// Sets the directory or URL for intermediate arrays, plans and journals.
    pub fn work_dir(mut self, location: impl AsRef<std::path::Path>) -> SpecBuilder {
        self.settings.work_dir = Some(location.as_ref().to_string_lossy().into_owned());
        self
    }

    /// Sets the maximum memory of one task in bytes, including `reserved_mem`.
    pub fn allowed_mem(mut self, size: impl IntoSize) -> SpecBuilder {
        self.settings.allowed_mem = self.bytes(size);
        self
    }

    /// Sets the memory of a worker without arrays, in bytes: program, stacks and plan.
    pub fn reserved_mem(mut self, size: impl IntoSize) -> SpecBuilder {
        self.settings.reserved_mem = self.bytes(size);
        self
    }

    /// Sets the maximum memory of the local process in bytes.
    pub fn local_mem(mut self, size: impl IntoSize) -> SpecBuilder {
        self.settings.local_mem = self.bytes(size);
        self
    }

    /// Sets the number of concurrent tasks that the plan is made for. It is part of the plan and
    /// determines the order of partial sums, and so their bits.
    pub fn parallelism(mut self, n_tasks: u64) -> SpecBuilder {
        self.settings.parallelism = Some(n_tasks);
        self
    }

    /// Sets the number of threads or processes of local executors.
    pub fn threads(mut self, n_threads: usize) -> SpecBuilder {
        self.settings.threads = Some(n_threads);
        self
    }

    /// Sets the codec of intermediate arrays.
    pub fn codec(mut self, codec: impl Into<Encoding>) -> SpecBuilder {
        self.settings.codec = Some(codec.into());
        self
    }

    /// Sets the maximum retries per task.
    pub fn retries(mut self, n_retries: u32) -> SpecBuilder {
        self.settings.retries = Some(n_retries);
        self
    }

    /// Sets the maximum duration of each task.
    pub fn task_timeout(mut self, timeout: Duration) -> SpecBuilder {
        self.settings.task_timeout = Some(timeout);
        self
    }

    /// Sets the maximum duration of a run. A run that exceeds it stops and can be resumed.
    pub fn deadline(mut self, deadline: Duration) -> SpecBuilder {
        self.settings.deadline = Some(deadline);
        self
    }

    /// Builds the spec.
    ///
    /// # Errors
    /// Returns an error if a size is invalid, if the environment or the settings file cannot be
    /// read, or if a limit is too small.
    pub fn build(self) -> Result<Spec, SpecError> {
        match self.error {
            Some(error) => Err(error),
            None => Spec::load(self.settings),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_invalid_size_is_the_error() {
        let built = Spec::builder().allowed_mem("much").local_mem("more").build();
        assert_eq!(built, Err(SpecError::InvalidSize { value: "much".into() }));
        let spec = Spec::builder().allowed_mem(64_000_000).reserved_mem("16MB").build().unwrap();
        assert_eq!((spec.allowed_mem, spec.reserved_mem), (64_000_000, 16_000_000));
    }
}
