//! Keys of Zarr documents and chunks.

/// A parsed key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Key<'a> {
    Document(&'a str),
    Chunk(&'a str, Vec<u32>),
    Nothing,
}

impl Key<'_> {
    pub(crate) fn parse(key: &str) -> Key<'_> {
        if let Some(path) = key.strip_suffix("zarr.json") {
            return match path.strip_suffix('/') {
                Some(path) => Key::Document(path),
                None if path.is_empty() => Key::Document(""),
                None => Key::Nothing,
            };
        }
        let mut coords: Vec<u32> = Vec::new();
        let mut rest = key;
        loop {
            let (above, last) =
                rest.rsplit_once('/').map_or(("", rest), |(above, last)| (above, last));
            if last == "c" {
                coords.reverse();
                return Key::Chunk(above, coords);
            }
            match last.parse() {
                Ok(n) if !above.is_empty() && last.bytes().all(|b| b.is_ascii_digit()) => {
                    coords.push(n)
                }
                _ => return Key::Nothing,
            }
            rest = above;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_documents_and_chunks() {
        for (key, expect) in [
            ("zarr.json", Key::Document("")),
            ("a/b/zarr.json", Key::Document("a/b")),
            ("c/0/1", Key::Chunk("", vec![0, 1])),
            ("a/c/2", Key::Chunk("a", vec![2])),
            ("a/c", Key::Chunk("a", vec![])),
            ("c/c/7", Key::Chunk("c", vec![7])),
            (".zarray", Key::Nothing),
            ("a/xzarr.json", Key::Nothing),
            ("a/0/1", Key::Nothing),
            ("a/c/+1", Key::Nothing),
            ("", Key::Nothing),
        ] {
            assert_eq!(Key::parse(key), expect, "{key}");
        }
    }
}
