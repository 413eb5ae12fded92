//! How chunks can be asked to be encoded, by name: `zstd:3+crc32c`.

use std::fmt;
use std::str::FromStr;

use freestone_kernels::DType;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Compressors that can be asked for by name. What they take is bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CodecName {
    /// Uncompressed.
    #[default]
    None,
    /// zstd at a level, -7 to 22; 0 is the library's default.
    Zstd(i32),
    /// lz4 behind a byte shuffle, by blosc.
    Lz4,
    /// gzip at a level, 0 to 9.
    Gzip(u32),
}

/// A compressor, and whether a checksum follows. As text: `none`, `lz4`, `zstd`, `zstd:LEVEL`, `gzip`, `gzip:LEVEL`, each of them with
/// `+crc32c` or without.
///
/// ```
/// # use freestone_engine::storage::{CodecName, Encoding};
/// let encoding: Encoding = "zstd:3+crc32c".parse()?;
/// assert_eq!(encoding, Encoding { codec: CodecName::Zstd(3), crc32c: true });
/// assert_eq!(Encoding::from(CodecName::Lz4).to_string(), "lz4");
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Encoding {
    /// The compressor.
    pub codec: CodecName,
    /// Each chunk ends with its CRC-32C, so that a damaged one is found when it is read.
    pub crc32c: bool,
}

/// What gzip's own command uses.
const GZIP_LEVEL: u32 = 6;

impl Encoding {
    /// The Zarr v3 codec list.
    pub fn codecs(self, dtype: DType) -> Vec<Value> {
        let bytes = if dtype.size() == 1 { json!({"name": "bytes"}) } else { json!({"name": "bytes", "configuration": {"endian": "little"}}) };
        let filter = match self.codec {
            CodecName::None => None,
            CodecName::Zstd(level) => Some(json!({"name": "zstd", "configuration": {"level": level, "checksum": false}})),
            CodecName::Lz4 => Some(json!({"name": "blosc", "configuration":
                {"cname": "lz4", "clevel": 5, "shuffle": if dtype.size() == 1 { "noshuffle" } else { "shuffle" }, "typesize": dtype.size(), "blocksize": 0}})),
            CodecName::Gzip(level) => Some(json!({"name": "gzip", "configuration": {"level": level}})),
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
    type Err = String;

    fn from_str(text: &str) -> Result<Encoding, String> {
        let (compressor, crc32c) = match text.split_once('+') {
            None => (text, false),
            Some((compressor, "crc32c")) => (compressor, true),
            Some((_, other)) => return Err(format!("`+{other}` cannot follow a codec: only +crc32c can")),
        };
        let (name, level) = compressor.split_once(':').map_or((compressor, None), |(n, l)| (n, Some(l)));
        let codec = match (name, level) {
            ("none", None) => CodecName::None,
            ("lz4", None) => CodecName::Lz4,
            ("zstd", None) => CodecName::Zstd(0),
            ("gzip", None) => CodecName::Gzip(GZIP_LEVEL),
            ("zstd", Some(level)) => match level.parse() {
                Ok(level @ -7..=22) => CodecName::Zstd(level),
                _ => return Err(format!("zstd has levels -7 to 22, not `{level}`")),
            },
            ("gzip", Some(level)) => match level.parse() {
                Ok(level @ 0..=9) => CodecName::Gzip(level),
                _ => return Err(format!("gzip has levels 0 to 9, not `{level}`")),
            },
            ("none" | "lz4", Some(_)) => return Err(format!("{name} has no levels: write `{name}`")),
            _ => return Err(format!("`{text}` is no codec: use none, lz4, zstd, zstd:LEVEL, gzip or gzip:LEVEL, with +crc32c after it for a checksum")),
        };
        Ok(Encoding { codec, crc32c })
    }
}

impl TryFrom<String> for Encoding {
    type Error = String;

    fn try_from(text: String) -> Result<Encoding, String> {
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
        for name in ["none", "lz4", "zstd", "zstd:-3", "zstd:19", "gzip", "gzip:0", "none+crc32c", "lz4+crc32c", "zstd:3+crc32c", "gzip:9+crc32c"] {
            assert_eq!(name.parse::<Encoding>().unwrap().to_string(), name);
        }
    }

    #[track_caller]
    fn check(bad: &str, says: &str) {
        let error = bad.parse::<Encoding>().unwrap_err();
        assert!(error.contains(says), "{bad}: `{error}` does not say `{says}`");
    }

    #[test]
    fn what_is_no_name_says_what_is() {
        check("", "use none, lz4, zstd");
        check("brotli", "`brotli` is no codec");
        check("zstd:23", "-7 to 22");
        check("zstd:x", "not `x`");
        check("gzip:10", "0 to 9");
        check("none:1", "no levels");
        check("lz4:3", "no levels");
        check("zstd+sha256", "only +crc32c");
        check("zstd+crc32c+crc32c", "only +crc32c");
    }
}
