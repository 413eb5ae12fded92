//! Arrays and groups of a commit: their shapes, and changes to them in Icechunk's session.

use bytes::Bytes;
use futures_util::StreamExt;
use icechunk::format::snapshot::{ArrayShape, DimensionName, NodeData};
use icechunk::format::{ChunkIndices, Path};
use icechunk::session::{Session, SessionErrorKind};
use serde_json::{Map, Value};

use crate::draft::{NodeChange, ancestors, icechunk_path};
use crate::error::Error;
use crate::repository::failed;

/// The shape and chunk shape of an array.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) lens: Vec<u64>,
    pub(crate) chunks: Vec<u64>,
    names: Option<Vec<DimensionName>>,
}

impl Shape {
    pub(crate) fn of(path: &str, document: &Value) -> Result<Shape, Error> {
        let bad = |why: &str| Error::InvalidNode { path: path.to_owned(), why: why.to_owned() };
        if document["node_type"] != "array" {
            return Err(bad("expected an array"));
        }
        if document["chunk_grid"]["name"] != "regular" {
            return Err(bad("unsupported chunk grid: expected a regular grid"));
        }
        let encoding = &document["chunk_key_encoding"];
        if encoding["name"].as_str().or(encoding.as_str()) != Some("default")
            || encoding["configuration"]["separator"].as_str().is_some_and(|s| s != "/")
        {
            return Err(bad("unsupported chunk keys: expected Zarr's default encoding"));
        }
        let numbers = |v: &Value| {
            v.as_array()
                .map(|a| a.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>())
                .unwrap_or_default()
        };
        let (lens, chunks) = (
            numbers(&document["shape"]),
            numbers(&document["chunk_grid"]["configuration"]["chunk_shape"]),
        );
        let (Some(lens), Some(chunks)) = (lens, chunks) else {
            return Err(bad("invalid shape or chunk shape: expected lists of integers"));
        };
        if lens.len() != chunks.len() || chunks.contains(&0) {
            return Err(bad("invalid chunk shape: expected a positive size for each axis"));
        }
        let name = |v: &Value| {
            v.as_str().map_or(DimensionName::NotSpecified, |n| DimensionName::Name(n.to_owned()))
        };
        let names =
            document["dimension_names"].as_array().map(|names| names.iter().map(name).collect());
        Ok(Shape { lens, chunks, names })
    }

    /// Returns the number of chunks along each axis.
    pub(crate) fn counts(&self) -> impl Iterator<Item = u64> {
        self.lens.iter().zip(&self.chunks).map(|(len, chunk)| len.div_ceil(*chunk))
    }

    pub(crate) fn n_chunks(&self) -> u64 {
        self.counts().product()
    }

    fn icechunk(&self, path: &str) -> Result<ArrayShape, Error> {
        let too_many = || Error::InvalidNode {
            path: path.to_owned(),
            why: "too many chunks along an axis for a repository (hint: use larger chunks)".into(),
        };
        let axes: Vec<(u64, u32)> = self
            .lens
            .iter()
            .zip(self.counts())
            .map(|(len, n)| u32::try_from(n).map(|n| (*len, n)))
            .collect::<Result<_, _>>()
            .map_err(|_| too_many())?;
        ArrayShape::new(axes).ok_or_else(too_many)
    }
}

/// Applies one change of a node.
pub(crate) async fn apply_node(
    session: &mut Session,
    place: &str,
    path: &str,
    change: &NodeChange,
) -> Result<(), Error> {
    let at = icechunk_path(path)?;
    let lost = |e: icechunk::session::SessionError| match e.kind {
        SessionErrorKind::AlreadyExists { .. } => {
            Error::NodeExists { place: place.to_owned(), path: path.to_owned() }
        }
        SessionErrorKind::NodeNotFound { .. } => {
            Error::NoNode { place: place.to_owned(), path: path.to_owned() }
        }
        kind => failed(place, "change", kind),
    };
    match change {
        NodeChange::Removed => remove_node(session, &at).await.map_err(lost),
        NodeChange::New(document) | NodeChange::Replaced(document) => {
            if matches!(change, NodeChange::Replaced(_)) {
                remove_node(session, &at).await.map_err(lost)?;
            }
            for above in ancestors(path) {
                match session.add_group(icechunk_path(above)?, group_document()).await {
                    Err(e) if !matches!(e.kind, SessionErrorKind::AlreadyExists { .. }) => {
                        return Err(lost(e));
                    }
                    _ => {}
                }
            }
            let text = text_of(document);
            if document["node_type"] == "group" {
                return match session.add_group(at, text).await {
                    // Another commit may have created the group. Conflicts were checked before.
                    Err(e) if is_existing_group(&e.kind) => Ok(()),
                    other => other.map_err(lost),
                };
            }
            let shape = Shape::of(path, document)?;
            session.add_array(at, shape.icechunk(path)?, shape.names, text).await.map_err(lost)
        }
        NodeChange::Updated(document) if document["node_type"] == "group" => {
            session.update_group(&at, text_of(document)).await.map_err(lost)
        }
        NodeChange::Updated(document) => {
            let shape = Shape::of(path, document)?;
            drop_outside(session, &at, &shape).await.map_err(lost)?;
            session
                .update_array(&at, shape.icechunk(path)?, shape.names, text_of(document))
                .await
                .map_err(lost)
        }
    }
}

/// Returns true if an error states that a group exists.
fn is_existing_group(kind: &SessionErrorKind) -> bool {
    match kind {
        SessionErrorKind::AlreadyExists { node, .. } => matches!(node.node_data, NodeData::Group),
        _ => false,
    }
}

/// Removes the chunks of an array outside of its new shape, so that they do not reappear if the
/// array grows again.
async fn drop_outside(
    session: &mut Session,
    at: &Path,
    shape: &Shape,
) -> Result<(), icechunk::session::SessionError> {
    let node = session.get_array(at).await?;
    let counts: Vec<u64> = shape.counts().collect();
    let NodeData::Array { shape: before, .. } = &node.node_data else { return Ok(()) };
    if before.num_chunks().zip(&counts).all(|(before, after)| u64::from(before) <= *after) {
        return Ok(());
    }
    let outside: Vec<ChunkIndices> = {
        let chunks = session.chunk_coordinates(at).await?;
        let is_outside =
            |c: &ChunkIndices| c.0.iter().zip(&counts).any(|(c, n)| u64::from(*c) >= *n);
        let found: Vec<Result<ChunkIndices, _>> = chunks
            .filter(|c| std::future::ready(c.as_ref().map_or(true, is_outside)))
            .collect()
            .await;
        found.into_iter().collect::<Result<_, _>>()?
    };
    session.delete_chunks(at, outside).await
}

async fn remove_node(
    session: &mut Session,
    at: &Path,
) -> Result<(), icechunk::session::SessionError> {
    match session.get_node(at).await {
        Ok(node) => session.delete_node(node).await,
        Err(e) if matches!(e.kind, SessionErrorKind::NodeNotFound { .. }) => Ok(()),
        Err(e) => Err(e),
    }
}

fn text_of(document: &Value) -> Bytes {
    Bytes::from(document.to_string())
}

fn group_document() -> Bytes {
    text_of(&freestone_engine::storage::metadata::group_document(&Map::new()))
}
