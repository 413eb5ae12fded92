//! A drawing of a plan as a self-contained SVG document.
//!
//! Stages are boxes and arrays are rounded boxes, in layers: each after its inputs (`layout`).
//! Layers are columns, or rows if there are more layers than nodes in any layer, so that large
//! plans grow downwards. Labels of edges are in the gaps between layers (`render`).

mod layout;
mod render;
mod text;

use freestone_engine::plan::PlanExplanation;

use layout::Graph;
pub(crate) use text::grouped;

/// Returns a drawing of a plan as SVG, in the light or dark colours that its viewer prefers.
///
/// The drawing shows every stage with its tasks and its projected memory as a bar within
/// `allowed_mem`, and every array with its shape, chunks and bytes. Edges are labelled with decoded
/// bytes and requests. Truncated texts are complete in the titles of their boxes.
pub fn svg(plan: &PlanExplanation) -> String {
    let mut graph = Graph::of(plan);
    graph.set_layers();
    graph.add_bends();
    graph.order();
    let direction = graph.direction();
    let (width, height) = graph.place(direction);
    graph.draw(plan, direction, width, height)
}
