//! Names of chunk encodings, such as `zstd:3+crc32c`.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use freestone_kernels::DType;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

/// A compressor that can be selected by name. Its memory use is bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CodecName {
    /// Uncompressed.
    #[default]
    None,
    /// zstd with a level from -7 to 22. Level 0 is the library's default.
    Zstd(i32),
    /// blosc with byte shuffle and lz4.
    Lz4,
    /// gzip with a level from 0 to 9.
    Gzip(u32),
}

/// A compressor with an optional checksum. As text: `none`, `lz4`, `zstd`, `zstd:LEVEL`, `gzip` or
/// `gzip:LEVEL`, with an optional suffix `+crc32c`.
///
/// ```
/// # use freestone_engine::storage::{CodecName, Encoding};
/// let encoding: Encoding = "zstd:3+crc32c".parse()?;
/// assert_eq!(encoding, Encoding { codec: CodecName::Zstd(3), crc32c: true });
/// assert_eq!(Encoding::from(CodecName::Lz4).to_string(), "lz4");
/// # Ok::<(), freestone_engine::storage::EncodingError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Encoding {
    /// The compressor.
    pub codec: CodecName,
    /// True if each chunk ends with its CRC-32C, so that readers detect damage.
    pub crc32c: bool,
}

/// The error of an invalid encoding.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum EncodingError {
    #[error("invalid level `{level}` of codec `{codec}`: expected an integer from {} to \
        {}", levels.start(), levels.end())]
    Level { codec: &'static str, level: String, levels: RangeInclusive<i64> },
    #[error("codec `{0}` has no levels (hint: write `{0}`)")]
    NoLevels(String),
    #[error("invalid suffix `+{0}` of a codec: expected `+crc32c`")]
    Suffix(String),
    #[error(
        "unknown codec `{0}`: expected none, lz4, zstd, zstd:LEVEL, gzip or gzip:LEVEL, optionally \
            followed by +crc32c"
    )]
    Unknown(String),
}

/// The default level of the command `gzip`.
const GZIP_LEVEL: u32 = 6;
const GZIP_LEVELS: RangeInclusive<i64> = 0..=9;
const ZSTD_LEVELS: RangeInclusive<i64> = -7..=22;

impl CodecName {
    /// Checks the level.
    fn check(self) -> Result<(), EncodingError> {
        let (codec, level, levels) = match self {
            CodecName::None | CodecName::Lz4 => return Ok(()),
            CodecName::Zstd(level) => ("zstd", i64::from(level), ZSTD_LEVELS),
            CodecName::Gzip(level) => ("gzip", i64::from(level), GZIP_LEVELS),
        };
        if levels.contains(&level) {
            Ok(())
        } else {
            Err(EncodingError::Level { codec, level: level.to_string(), levels })
        }
    }
}

impl Encoding {
    /// Checks the compressor's level. Parsing checks it too; values are checked when they are used.
    ///
    /// # Errors
    /// Returns [`EncodingError::Level`] if the compressor does not have the level.
    pub fn check(self) -> Result<(), EncodingError> {
        self.codec.check()
    }

    /// Returns the Zarr v3 codec list.
    pub fn codecs(self, dtype: DType) -> Vec<Value> {
        let bytes = if dtype.size() == 1 {
            json!({"name": "bytes"})
        } else {
            json!({"name": "bytes", "configuration": {"endian": "little"}})
        };
        let filter = match self.codec {
            CodecName::None => None,
            CodecName::Zstd(level) => {
                Some(json!({"name": "zstd", "configuration": {"level": level, "checksum": false}}))
            }
            CodecName::Lz4 => {
                let shuffle = if dtype.size() == 1 { "noshuffle" } else { "shuffle" };
                Some(json!({"name": "blosc", "configuration": {
                    "cname": "lz4", "clevel": 5, "shuffle": shuffle, "typesize": dtype.size(),
                    "blocksize": 0
                }}))
            }
            CodecName::Gzip(level) => {
                Some(json!({"name": "gzip", "configuration": {"level": level}}))
            }
        };
        let checksum = self.crc32c.then(|| json!({"name": "crc32c"}));
        std::iter::once(bytes).chain(filter).chain(checksum).collect()
    }
}

impl From<CodecName> for Encoding {
    fn from(codec: CodecName) -> Encoding {
        Encoding { codec, crc32c: false }
    }
}

impl FromStr for Encoding {
    type Err = EncodingError;

    fn from_str(text: &str) -> Result<Encoding, EncodingError> {
        let (compressor, crc32c) = match text.split_once('+') {
            None => (text, false),
            Some((compressor, "crc32c")) => (compressor, true),
            Some((_, other)) => return Err(EncodingError::Suffix(other.to_owned())),
        };
        let (name, level) =
            compressor.split_once(':').map_or((compressor, None), |(n, l)| (n, Some(l)));
        let codec = match (name, level) {
            ("none", None) => CodecName::None,
            ("lz4", None) => CodecName::Lz4,
            ("zstd", None) => CodecName::Zstd(0),
            ("gzip", None) => CodecName::Gzip(GZIP_LEVEL),
            ("zstd", Some(level)) => {
                let bad = |_| EncodingError::Level {
                    codec: "zstd",
                    level: level.to_owned(),
                    levels: ZSTD_LEVELS,
                };
                CodecName::Zstd(level.parse().map_err(bad)?)
            }
            ("gzip", Some(level)) => {
                let bad = |_| EncodingError::Level {
                    codec: "gzip",
                    level: level.to_owned(),
                    levels: GZIP_LEVELS,
                };
                CodecName::Gzip(level.parse().map_err(bad)?)
            }
            ("none" | "lz4", Some(_)) => return Err(EncodingError::NoLevels(name.to_owned())),
            _ => return Err(EncodingError::Unknown(text.to_owned())),
        };
        codec.check()?;
        Ok(Encoding { codec, crc32c })
    }
}

impl TryFrom<String> for Encoding {
    type Error = EncodingError;

    fn try_from(text: String) -> Result<Encoding, EncodingError> {
        text.parse()
    }
}

impl From<Encoding> for String {
    fn from(encoding: Encoding) -> String {
        encoding.to_string()
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.codec {
            CodecName::None => f.write_str("none")?,
            CodecName::Lz4 => f.write_str("lz4")?,
            CodecName::Zstd(0) => f.write_str("zstd")?,
            CodecName::Zstd(level) => write!(f, "zstd:{level}")?,
            CodecName::Gzip(GZIP_LEVEL) => f.write_str("gzip")?,
            CodecName::Gzip(level) => write!(f, "gzip:{level}")?,
        }
        f.write_str(if self.crc32c { "+crc32c" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for name in [
            "none",
            "lz4",
            "zstd",
            "zstd:-3",
            "zstd:19",
            "gzip",
            "gzip:0",
            "none+crc32c",
            "lz4+crc32c",
            "zstd:3+crc32c",
            "gzip:9+crc32c",
        ] {
            assert_eq!(name.parse::<Encoding>().unwrap().to_string(), name);
        }
    }

    #[track_caller]
    fn check(bad: &str, says: &str) {
        let error = bad.parse::<Encoding>().unwrap_err().to_string();
        assert!(error.contains(says), "{bad}: `{error}` does not say `{says}`");
    }

    #[test]
    fn invalid_names_are_errors_with_the_expected_form() {
        check("", "expected none, lz4, zstd");
        check("brotli", "unknown codec `brotli`");
        check("zstd:23", "`23` of codec `zstd`: expected an integer from -7 to 22");
        check("zstd:-8", "`-8` of codec `zstd`");
        check("zstd:99999999999", "-7 to 22");
        check("zstd:x", "invalid level `x`");
        check("gzip:10", "from 0 to 9");
        check("gzip:-1", "from 0 to 9");
        check("none:1", "no levels");
        check("lz4:3", "no levels");
        check("zstd+sha256", "expected `+crc32c`");
        check("zstd+crc32c+crc32c", "expected `+crc32c`");
    }

    /// A value and its text have the same error.
    #[test]
    fn levels_of_values_are_those_of_texts() {
        for level in -200..200 {
            let both = |codec: CodecName, name: &str| {
                assert_eq!(
                    Encoding::from(codec).check().err(),
                    format!("{name}:{level}").parse::<Encoding>().err()
                )
            };
            both(CodecName::Zstd(level), "zstd");
            if let Ok(level) = u32::try_from(level) {
                both(CodecName::Gzip(level), "gzip");
            }
        }
        assert!(
            [i32::MIN, -8, 23, i32::MAX]
                .iter()
                .all(|l| Encoding::from(CodecName::Zstd(*l)).check().is_err())
        );
        assert!(
            [10, u32::MAX].iter().all(|l| Encoding::from(CodecName::Gzip(*l)).check().is_err())
        );
        assert!(
            [
                CodecName::None,
                CodecName::Lz4,
                CodecName::Zstd(-7),
                CodecName::Zstd(22),
                CodecName::Gzip(9)
            ]
            .iter()
            .all(|c| c.check().is_ok())
        );
    }
}
