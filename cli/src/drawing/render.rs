//! The shapes and texts of a drawing.

use std::fmt::Write as _;

use freestone_engine::memory::size;
use freestone_engine::plan::PlanExplanation;
use freestone_engine::plan::explain::{ArrayExplanation, Role, StageExplanation, Traffic};

use super::layout::{Direction, Edge, GAP, Graph, LINE, MARGIN, Node, NodeKind, STAGE};
use super::text::{escaped, grouped, lengths, short, text, width_of};

impl Graph<'_> {
    /// Returns the drawing of a placed graph.
    pub(super) fn draw(
        &self,
        plan: &PlanExplanation,
        direction: Direction,
        width: f64,
        height: f64,
    ) -> String {
        let mut s = String::new();
        let _ = write!(
            s,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"freestone-plan\" viewBox=\"0 0 \
                {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n\
             <style>{STYLE}</style>\n<rect class=\"paper\" width=\"{width}\" \
             height=\"{height}\"/>\n"
        );
        let counted =
            |n: u64, noun: &str| format!("{} {noun}{}", grouped(n), if n == 1 { "" } else { "s" });
        let head = format!(
            "plan {}: {}, {}, allowed_mem {}; reads {}, writes {}",
            plan.plan,
            counted(plan.stages.len() as u64, "stage"),
            counted(plan.tasks, "task"),
            size(plan.allowed_mem),
            size(plan.read.bytes),
            size(plan.written.bytes)
        );
        text(&mut s, "head", (MARGIN, 26.0), &head, (width - 2.0 * MARGIN, 13.0));
        self.edges.iter().for_each(|e| self.line(&mut s, e, direction));
        for node in &self.nodes {
            match node.kind {
                NodeKind::Stage(stage) => draw_stage(&mut s, node, stage, plan.allowed_mem),
                NodeKind::Array(array) => draw_array(&mut s, node, array),
                NodeKind::Bend => {}
            }
        }
        // Labels follow all edges, so that no edge covers them.
        self.edges.iter().for_each(|e| self.label(&mut s, e, direction));
        legend(&mut s, width, height - 16.0);
        s.push_str("</svg>\n");
        s
    }

    fn line(&self, s: &mut String, edge: &Edge, direction: Direction) {
        let points = self.points(edge, direction);
        let _ = write!(s, "<path class=\"line\" d=\"M{:.1} {:.1}", points[0].0, points[0].1);
        for (i, pair) in points.windows(2).enumerate() {
            let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
            let (x, y) = ((x0 + x1) / 2.0, (y0 + y1) / 2.0);
            let _ = match (i % 2 == 1, direction) {
                (true, _) => write!(s, "L{x1:.1} {y1:.1}"),
                (false, Direction::Rows) => {
                    write!(s, "C{x0:.1} {y:.1} {x1:.1} {y:.1} {x1:.1} {y1:.1}")
                }
                (false, Direction::Columns) => {
                    write!(s, "C{x:.1} {y0:.1} {x:.1} {y1:.1} {x1:.1} {y1:.1}")
                }
            };
        }
        let _ = writeln!(s, "\"/>");
    }

    /// Returns the points of an edge: its ends, and two points for each layer that it passes.
    fn points(&self, edge: &Edge, direction: Direction) -> Vec<(f64, f64)> {
        let last = edge.path.len() - 1;
        let mut points = Vec::with_capacity(2 * edge.path.len());
        points.push(self.port(edge.from, edge.path[1], false, direction));
        for n in &edge.path[1..last] {
            // The edge passes the boxes of the layer in a straight line.
            let half = self.layer_depth(*n, direction) / 2.0;
            let (x, y) = self.nodes[*n].centre();
            points.extend(match direction {
                Direction::Rows => [(x, y - half), (x, y + half)],
                Direction::Columns => [(x - half, y), (x + half, y)],
            });
        }
        points.push(self.port(edge.to, edge.path[last - 1], true, direction));
        points
    }

    /// Writes the label of an edge beside its stage.
    fn label(&self, s: &mut String, edge: &Edge, direction: Direction) {
        let Traffic { bytes, requests, exact } = edge.traffic;
        if requests == 0 {
            return;
        }
        let label =
            format!("{}{} · {}", if exact { "" } else { "≈ " }, size(bytes), short(requests));
        let is_incoming = self.nodes[edge.to].is_stage();
        let (stage, neighbour) = if is_incoming {
            (edge.to, edge.path[edge.path.len() - 2])
        } else {
            (edge.from, edge.path[1])
        };
        let (x, y) = self.port(stage, neighbour, is_incoming, direction);
        let (x, y, class) = match direction {
            Direction::Rows => {
                let node = &self.nodes[stage];
                let list = if is_incoming { &node.before } else { &node.after };
                let position = list.iter().position(|m| *m == neighbour).unwrap_or(0);
                // Labels are stacked, from the rightmost edge outwards.
                let from_right = (list.len() - 1 - position) as f64;
                let y = if is_incoming {
                    y - 5.0 - LINE * from_right
                } else {
                    y + LINE * (from_right + 1.0) - 2.0
                };
                (x + 4.0, y, "on")
            }
            Direction::Columns if is_incoming => (x - 5.0, y - 2.5, "on before"),
            Direction::Columns => (x + 5.0, y - 2.5, "on"),
        };
        // A wide outline separates the label from edges below it.
        text(s, &format!("under {class}"), (x, y), &label, (GAP - 8.0, 9.5));
        text(s, class, (x, y), &label, (GAP - 8.0, 9.5));
    }
}

fn draw_stage(s: &mut String, node: &Node<'_>, stage: &StageExplanation, allowed: u64) {
    let (x, y, w, h) = (node.x, node.y, node.w, node.h);
    let _ = write!(s, "<g><title>{}</title>", escaped(stage.to_string().trim()));
    let _ = write!(
        s,
        "<rect class=\"box stage\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" \
            rx=\"2\"/>"
    );
    let top = y + (h - STAGE.1) / 2.0;
    let room = w - 20.0;
    text(s, "name", (x + 10.0, top + 18.0), &stage.name, (room, 12.0));
    text(s, "small", (x + 10.0, top + 33.0), &stage.kernel, (room, 10.5));
    let tasks = format!(
        "{} task{} of {}",
        grouped(stage.tasks),
        if stage.tasks == 1 { "" } else { "s" },
        lengths(&stage.task_shape)
    );
    text(s, "small", (x + 10.0, top + 47.0), &tasks, (room, 10.5));
    let share = (stage.projected_mem as f64 / allowed.max(1) as f64).min(1.0);
    let _ = write!(
        s,
        "<rect class=\"trough\" x=\"{:.1}\" y=\"{:.1}\" width=\"{room:.1}\" height=\"5\"/>",
        x + 10.0,
        top + 55.0
    );
    let _ = write!(
        s,
        "<rect class=\"bar\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"5\"/>",
        x + 10.0,
        top + 55.0,
        (share * room).max(1.0)
    );
    text(
        s,
        "small",
        (x + 10.0, top + 73.0),
        &format!("{} of {} per task", size(stage.projected_mem), size(allowed)),
        (room, 10.5),
    );
    s.push_str("</g>\n");
}

fn draw_array(s: &mut String, node: &Node<'_>, array: &ArrayExplanation) {
    let (x, y, w, h) = (node.x, node.y, node.w, node.h);
    let class = class_of(array.role);
    let chunks = format!("chunks {}", lengths(array.shards.as_ref().unwrap_or(&array.chunks)));
    let full = format!(
        "{} {} {:?} in chunks {:?}, {}, {}",
        array.name,
        array.dtype,
        array.shape,
        array.chunks,
        size(array.bytes),
        array.place
    );
    let _ = write!(s, "<g><title>{}</title>", escaped(&full));
    let _ = write!(
        s,
        "<rect class=\"box array {class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" \
            height=\"{h:.1}\" rx=\"14\"/>"
    );
    let bytes = size(array.bytes).to_string();
    let beside = width_of(&bytes, 10.5) + 8.0;
    text(s, "name", (x + 12.0, y + 17.0), &array.name, (w - 24.0 - beside, 11.5));
    text(s, "small before", (x + w - 12.0, y + 17.0), &bytes, (beside, 10.5));
    text(
        s,
        "small",
        (x + 12.0, y + 31.0),
        &format!("{} {}", array.dtype, lengths(&array.shape)),
        (w - 24.0, 10.5),
    );
    let chunks =
        if array.shards.is_some() { chunks.replacen("chunks", "shards", 1) } else { chunks };
    text(s, "small", (x + 12.0, y + 45.0), &chunks, (w - 24.0, 10.5));
    s.push_str("</g>\n");
}

fn class_of(role: Role) -> &'static str {
    match role {
        Role::Input => "input",
        Role::Output => "output",
        Role::Intermediate => "between",
        Role::Constant | Role::Generated => "made",
    }
}

fn legend(s: &mut String, width: f64, y: f64) {
    let mut x = MARGIN;
    for (class, name) in [
        ("stage", "stage"),
        ("array input", "input"),
        ("array between", "intermediate"),
        ("array output", "output"),
        ("array made", "generated"),
    ] {
        let radius = if class == "stage" { 1 } else { 5 };
        let _ = write!(
            s,
            "<rect class=\"key {class}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"18\" height=\"11\" \
                rx=\"{radius}\"/>",
            y - 9.5
        );
        text(s, "small", (x + 23.0, y), name, (80.0, 10.5));
        x += 23.0 + width_of(name, 10.5) + 14.0;
    }
    text(
        s,
        "small",
        (x, y),
        "bar: memory per task; edges: decoded bytes · requests",
        (width - x - MARGIN, 10.5),
    );
    s.push('\n');
}

/// The style sheet. Colours are repeated for light and dark, because some viewers do not support
/// variables.
const STYLE: &str = "\
.freestone-plan{font-family:system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif}\
.freestone-plan text{font-size:10.5px}\
.freestone-plan .head{font-size:13px;font-weight:600}\
.freestone-plan .name{font-size:11.5px;font-weight:600}\
.freestone-plan .before{text-anchor:end}\
.freestone-plan .on{font-size:9.5px}\
.freestone-plan .under{stroke-width:3px;stroke-linejoin:round}\
.freestone-plan .line{fill:none;stroke-width:1.3}\
.freestone-plan .made{stroke-dasharray:3 2}\
.freestone-plan .paper{fill:#fff}\
.freestone-plan text{fill:#1d2329}\
.freestone-plan .small{fill:#5b6670}\
.freestone-plan .on{fill:#5b6670}\
.freestone-plan .under{stroke:#fff}\
.freestone-plan .line{stroke:#a3adb6}\
.freestone-plan .stage{fill:#f1f3f5;stroke:#6b7782}\
.freestone-plan .input{fill:#dcebfb;stroke:#3f7fc0}\
.freestone-plan .output{fill:#dcf3e1;stroke:#3a9455}\
.freestone-plan .between{fill:#fbeed3;stroke:#bd8a22}\
.freestone-plan .made{fill:#ebe6f5;stroke:#8168b3}\
.freestone-plan .trough{fill:#d9dee3}\
.freestone-plan .bar{fill:#c8553d}\
@media (prefers-color-scheme:dark){\
.freestone-plan .paper{fill:#14181c}\
.freestone-plan text{fill:#e6eaee}\
.freestone-plan .small{fill:#a9b4be}\
.freestone-plan .on{fill:#a9b4be}\
.freestone-plan .under{stroke:#14181c}\
.freestone-plan .line{stroke:#56616b}\
.freestone-plan .stage{fill:#232a31;stroke:#8a97a3}\
.freestone-plan .input{fill:#16304a;stroke:#5b9ddf}\
.freestone-plan .output{fill:#153a22;stroke:#55b574}\
.freestone-plan .between{fill:#40310f;stroke:#d3a343}\
.freestone-plan .made{fill:#2d2543;stroke:#a68fd6}\
.freestone-plan .trough{fill:#39434c}\
.freestone-plan .bar{fill:#e0725a}}";
