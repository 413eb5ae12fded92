//! A plan as a picture: an SVG drawing that needs nothing else to be looked at.
//!
//! Stages are boxes, arrays are rounded ones, in layers: each after what it is made of. Within a
//! layer they are put where their neighbours are (barycentres, Sugiyama 1981), then as near to
//! these as their sizes allow. Layers are columns, or rows where there are more layers than
//! anything beside each other, so that large plans grow downwards. What is written on edges stands
//! in the gaps between layers, where there are no boxes.

use std::collections::HashMap;
use std::fmt::Write as _;

use freestone_engine::memory::size;
use freestone_engine::plan::PlanExplanation;
use freestone_engine::plan::explain::{ArrayExplanation, Role, StageExplanation, Traffic};

/// A drawing of a plan, light or dark as its viewer is.
///
/// Every stage with its tasks and its projected memory as a bar against `allowed_mem`; every array
/// with its shape, chunks and bytes; on the lines between them decoded bytes and requests. Where a
/// text is cut off, its full form is in the title of its box.
pub fn svg(plan: &PlanExplanation) -> String {
    let mut graph = Graph::of(plan);
    graph.set_layers();
    graph.add_bends();
    graph.order();
    let turned = graph.is_deep();
    let (width, height) = graph.place(turned);
    graph.draw(plan, turned, width, height)
}

const STAGE: (f64, f64) = (214.0, 82.0);
const ARRAY: (f64, f64) = (186.0, 54.0);
/// Room for texts on edges, between layers that are columns.
const GAP: f64 = 122.0;
const MARGIN: f64 = 18.0;
/// Title above, legend below.
const HEAD: f64 = 46.0;
const FOOT: f64 = 40.0;
const LEAST_WIDTH: f64 = 820.0;
const LINE: f64 = 13.0;
/// More bends than this are not made: then lines go straight.
const MAX_BENDS: usize = 20_000;

enum What<'a> {
    Stage(&'a StageExplanation),
    Array(&'a ArrayExplanation),
    /// Where a line passes a layer.
    Bend,
}

struct Node<'a> {
    what: What<'a>,
    layer: usize,
    /// Lines that come from the layer before, and that go to the one after.
    before: Vec<usize>,
    after: Vec<usize>,
    /// Size, and where it is.
    w: f64,
    h: f64,
    x: f64,
    y: f64,
}

impl Node<'_> {
    fn is_bend(&self) -> bool {
        matches!(self.what, What::Bend)
    }
}

struct Edge {
    from: usize,
    to: usize,
    traffic: Traffic,
    /// The whole way, with its bends.
    way: Vec<usize>,
}

struct Graph<'a> {
    nodes: Vec<Node<'a>>,
    edges: Vec<Edge>,
    layers: Vec<Vec<usize>>,
}

impl<'a> Graph<'a> {
    fn of(plan: &'a PlanExplanation) -> Graph<'a> {
        let mut graph = Graph { nodes: Vec::new(), edges: Vec::new(), layers: Vec::new() };
        let mut arrays: HashMap<usize, usize> = HashMap::new();
        for stage in &plan.stages {
            let at = graph.add(What::Stage(stage), STAGE);
            let reads = stage.reads.iter().map(|r| (&r.array, r.traffic, true));
            for (array, traffic, is_read) in
                reads.chain(stage.writes.iter().map(|w| (&w.array, w.traffic, false)))
            {
                let other = match arrays.get(&array.id) {
                    Some(other) => *other,
                    None => *arrays.entry(array.id).or_insert(graph.add(What::Array(array), ARRAY)),
                };
                let (from, to) = if is_read { (other, at) } else { (at, other) };
                graph.edges.push(Edge { from, to, traffic, way: Vec::new() });
            }
        }
        graph
    }

    fn add(&mut self, what: What<'a>, (w, h): (f64, f64)) -> usize {
        self.nodes.push(Node {
            what,
            layer: 0,
            before: Vec::new(),
            after: Vec::new(),
            w,
            h,
            x: 0.0,
            y: 0.0,
        });
        self.nodes.len() - 1
    }

    /// Layers by the longest way there; what is only read stands just before its first reader.
    /// Stages have odd numbers.
    fn set_layers(&mut self) {
        let stages: Vec<usize> = (0..self.nodes.len())
            .filter(|n| matches!(self.nodes[*n].what, What::Stage(_)))
            .collect();
        let (mut reads, mut writes) =
            (vec![Vec::new(); self.nodes.len()], vec![Vec::new(); self.nodes.len()]);
        let mut written = vec![false; self.nodes.len()];
        for edge in &self.edges {
            if matches!(self.nodes[edge.to].what, What::Stage(_)) {
                reads[edge.to].push(edge.from);
            } else {
                writes[edge.from].push(edge.to);
                written[edge.to] = true;
            }
        }
        // Stages are in an order in which they can run.
        for stage in &stages {
            let layer = reads[*stage].iter().map(|a| self.nodes[*a].layer + 1).max().unwrap_or(1);
            self.nodes[*stage].layer = layer;
            writes[*stage].iter().for_each(|a| self.nodes[*a].layer = layer + 1);
        }
        for array in (0..self.nodes.len())
            .filter(|n| matches!(self.nodes[*n].what, What::Array(_)) && !written[*n])
            .collect::<Vec<_>>()
        {
            let readers =
                self.edges.iter().filter(|e| e.from == array).map(|e| self.nodes[e.to].layer);
            self.nodes[array].layer = readers.min().unwrap_or(1) - 1;
        }
    }

    /// A bend in every layer that an edge passes.
    fn add_bends(&mut self) {
        let passed: usize =
            self.edges.iter().map(|e| self.nodes[e.to].layer - self.nodes[e.from].layer - 1).sum();
        for i in 0..self.edges.len() {
            let (from, to) = (self.edges[i].from, self.edges[i].to);
            let mut way = vec![from];
            if passed <= MAX_BENDS {
                for layer in self.nodes[from].layer + 1..self.nodes[to].layer {
                    let bend = self.add(What::Bend, (2.0, 2.0));
                    self.nodes[bend].layer = layer;
                    way.push(bend);
                }
            }
            way.push(to);
            for pair in way.windows(2) {
                self.nodes[pair[0]].after.push(pair[1]);
                self.nodes[pair[1]].before.push(pair[0]);
            }
            self.edges[i].way = way;
        }
        let n = self.nodes.iter().map(|n| n.layer + 1).max().unwrap_or(0);
        self.layers = vec![Vec::new(); n];
        for (i, node) in self.nodes.iter().enumerate() {
            self.layers[node.layer].push(i);
        }
    }

    /// Orders layers by the mean place of neighbours, to and fro.
    fn order(&mut self) {
        let mut place = vec![0.0; self.nodes.len()];
        let number = |layer: &[usize], place: &mut Vec<f64>| {
            layer.iter().enumerate().for_each(|(i, n)| place[*n] = i as f64)
        };
        self.layers.iter().for_each(|l| number(l, &mut place));
        for round in 0..12 {
            let forward = round % 2 == 0;
            for i in 0..self.layers.len() {
                let l = if forward { i } else { self.layers.len() - 1 - i };
                let mut layer = std::mem::take(&mut self.layers[l]);
                let key = |n: usize| {
                    let near = if forward { &self.nodes[n].before } else { &self.nodes[n].after };
                    if near.is_empty() {
                        place[n]
                    } else {
                        near.iter().map(|m| place[*m]).sum::<f64>() / near.len() as f64
                    }
                };
                let keys: HashMap<usize, f64> = layer.iter().map(|n| (*n, key(*n))).collect();
                layer.sort_by(|a, b| keys[a].total_cmp(&keys[b]));
                number(&layer, &mut place);
                self.layers[l] = layer;
            }
        }
        // Lines come in and go out in the order of what they come from and go to.
        for n in 0..self.nodes.len() {
            let by_place =
                |list: &mut Vec<usize>| list.sort_by(|a, b| place[*a].total_cmp(&place[*b]));
            by_place(&mut self.nodes[n].before);
            by_place(&mut self.nodes[n].after);
        }
    }

    /// True if layers are better rows than columns: columns would be wider than a screen, and rows
    /// are narrower.
    fn is_deep(&self) -> bool {
        let widest = self
            .layers
            .iter()
            .map(|l| l.iter().filter(|n| !self.nodes[**n].is_bend()).count())
            .max()
            .unwrap_or(0);
        let (columns, rows) =
            (self.layers.len() as f64 * (ARRAY.0 + GAP), widest as f64 * (STAGE.0 + MARGIN));
        columns > 1700.0 && rows < columns
    }

    /// Gives every box its place, and says how large the drawing is.
    fn place(&mut self, turned: bool) -> (f64, f64) {
        // Lines that meet a stage need room for what is written on them.
        for node in self.nodes.iter_mut().filter(|n| matches!(n.what, What::Stage(_))) {
            let ports = node.before.len().max(node.after.len()) as f64;
            if turned {
                node.w = node.w.max(ports * 22.0 + 20.0)
            } else {
                node.h = node.h.max(ports * LINE + 10.0)
            }
        }
        let breadth = |n: &Node<'_>| if turned { n.w } else { n.h };
        let apart = |a: &Node<'_>, b: &Node<'_>| {
            (breadth(a) + breadth(b)) / 2.0 + if a.is_bend() && b.is_bend() { 8.0 } else { 18.0 }
        };
        let mut at = vec![0.0; self.nodes.len()];
        for layer in &self.layers {
            let mut end = 0.0;
            for (i, n) in layer.iter().enumerate() {
                end += if i > 0 { apart(&self.nodes[layer[i - 1]], &self.nodes[*n]) } else { 0.0 };
                at[*n] = end;
            }
        }
        for round in 0..16 {
            for i in 0..self.layers.len() {
                let layer =
                    &self.layers[if round % 2 == 0 { i } else { self.layers.len() - 1 - i }];
                let wish = |n: &usize| {
                    let node = &self.nodes[*n];
                    let near = node.before.iter().chain(&node.after);
                    let count = node.before.len() + node.after.len();
                    if count == 0 {
                        at[*n]
                    } else {
                        near.map(|m| at[*m]).sum::<f64>() / count as f64
                    }
                };
                let wishes: Vec<f64> = layer.iter().map(wish).collect();
                let gaps: Vec<f64> =
                    layer.windows(2).map(|w| apart(&self.nodes[w[0]], &self.nodes[w[1]])).collect();
                layer.iter().zip(near(&wishes, &gaps)).for_each(|(n, x)| at[*n] = x);
            }
        }
        let least = (0..self.nodes.len())
            .map(|n| at[n] - breadth(&self.nodes[n]) / 2.0)
            .fold(f64::INFINITY, f64::min);
        let least = if least.is_finite() { least } else { 0.0 };
        let most = (0..self.nodes.len())
            .map(|n| at[n] - least + breadth(&self.nodes[n]) / 2.0)
            .fold(0.0, f64::max);
        let mut depth = if turned { HEAD } else { MARGIN };
        for layer in &self.layers {
            let lines = |n: &usize| {
                if matches!(self.nodes[*n].what, What::Stage(_)) {
                    self.nodes[*n].before.len().max(self.nodes[*n].after.len())
                } else {
                    0
                }
            };
            // Texts on lines that come into a stage from above stand above each other.
            let room =
                if turned { layer.iter().map(lines).max().unwrap_or(0) as f64 * LINE } else { 0.0 };
            let deep = layer
                .iter()
                .map(|n| if turned { self.nodes[*n].h } else { self.nodes[*n].w })
                .fold(0.0, f64::max);
            depth += room;
            for n in layer {
                let node = &mut self.nodes[*n];
                let own = if turned { node.h } else { node.w };
                // Centred in their layer.
                let (along, across) =
                    (depth + (deep - own) / 2.0, at[*n] - least - breadth(node) / 2.0);
                (node.x, node.y) =
                    if turned { (MARGIN + across, along) } else { (along, HEAD + across) };
            }
            depth += deep + if turned { 26.0 + room } else { GAP };
        }
        let depth = depth - if turned { 26.0 } else { GAP };
        let (w, h) = if turned { (MARGIN + most, depth) } else { (depth, HEAD + most) };
        // On the right there is room for what is written beside the last boxes.
        let beside = if turned { GAP } else { 0.0 };
        ((w + MARGIN + beside).max(LEAST_WIDTH).ceil(), (h + FOOT).ceil())
    }

    /// Where line `of` of `n` meets a box: on its left or upper side, or opposite.
    fn port(&self, node: usize, towards: usize, end: bool, turned: bool) -> (f64, f64) {
        let node_ = &self.nodes[node];
        let list = if end { &node_.before } else { &node_.after };
        let (i, n) =
            (list.iter().position(|m| *m == towards).unwrap_or(0) as f64, list.len().max(1) as f64);
        let spread = |length: f64, each: f64| {
            // Stages have a place for each line; arrays let them all begin in the middle.
            if matches!(node_.what, What::Stage(_)) {
                length / 2.0 + (i - (n - 1.0) / 2.0) * each
            } else {
                length / 2.0
            }
        };
        if turned {
            let each = ((node_.w - 20.0) / n).min(70.0);
            (node_.x + spread(node_.w, each), if end { node_.y } else { node_.y + node_.h })
        } else {
            let each = ((node_.h - 8.0) / n).min(22.0);
            (if end { node_.x } else { node_.x + node_.w }, node_.y + spread(node_.h, each))
        }
    }

    fn draw(&self, plan: &PlanExplanation, turned: bool, width: f64, height: f64) -> String {
        let mut s = String::new();
        let _ = write!(
            s,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"freestone-plan\" viewBox=\"0 0 \
                {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n\
             <style>{STYLE}</style>\n<rect class=\"paper\" width=\"{width}\" \
             height=\"{height}\"/>\n"
        );
        let n =
            |n: u64, what: &str| format!("{} {what}{}", grouped(n), if n == 1 { "" } else { "s" });
        let head = format!(
            "plan {}: {}, {}, allowed_mem {}; reads {}, writes {}",
            plan.plan,
            n(plan.stages.len() as u64, "stage"),
            n(plan.tasks, "task"),
            size(plan.allowed_mem),
            size(plan.read.bytes),
            size(plan.written.bytes)
        );
        text(&mut s, "head", (MARGIN, 26.0), &head, width - 2.0 * MARGIN, 13.0);
        self.edges.iter().for_each(|e| self.line(&mut s, e, turned));
        for node in &self.nodes {
            match node.what {
                What::Stage(stage) => draw_stage(&mut s, node, stage, plan.allowed_mem),
                What::Array(array) => draw_array(&mut s, node, array),
                What::Bend => {}
            }
        }
        // After all lines, so that none goes over them.
        self.edges.iter().for_each(|e| self.label(&mut s, e, turned));
        legend(&mut s, width, height - 16.0);
        s.push_str("</svg>\n");
        s
    }

    fn line(&self, s: &mut String, edge: &Edge, turned: bool) {
        let last = edge.way.len() - 1;
        let mut points = Vec::with_capacity(2 * edge.way.len());
        points.push(self.port(edge.from, edge.way[1], false, turned));
        for n in &edge.way[1..last] {
            // Straight through the layer, past its boxes.
            let (node, layer) = (&self.nodes[*n], &self.layers[self.nodes[*n].layer]);
            let deep = layer
                .iter()
                .map(|m| if turned { self.nodes[*m].h } else { self.nodes[*m].w })
                .fold(0.0, f64::max)
                / 2.0;
            let (x, y) = (node.x + node.w / 2.0, node.y + node.h / 2.0);
            if turned {
                points.extend([(x, y - deep), (x, y + deep)])
            } else {
                points.extend([(x - deep, y), (x + deep, y)])
            }
        }
        points.push(self.port(edge.to, edge.way[last - 1], true, turned));
        let _ = write!(s, "<path class=\"line\" d=\"M{:.1} {:.1}", points[0].0, points[0].1);
        for (i, pair) in points.windows(2).enumerate() {
            let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
            let _ = match (i % 2 == 1, turned) {
                (true, _) => write!(s, "L{x1:.1} {y1:.1}"),
                (false, true) => write!(
                    s,
                    "C{x0:.1} {:.1} {x1:.1} {:.1} {x1:.1} {y1:.1}",
                    (y0 + y1) / 2.0,
                    (y0 + y1) / 2.0
                ),
                (false, false) => write!(
                    s,
                    "C{:.1} {y0:.1} {:.1} {y1:.1} {x1:.1} {y1:.1}",
                    (x0 + x1) / 2.0,
                    (x0 + x1) / 2.0
                ),
            };
        }
        let _ = writeln!(s, "\"/>");
    }

    /// What a line stands for, beside the stage that it comes from or goes to.
    fn label(&self, s: &mut String, edge: &Edge, turned: bool) {
        let Traffic { bytes, requests, exact } = edge.traffic;
        if requests == 0 {
            return;
        }
        let words =
            format!("{}{} · {}", if exact { "" } else { "≈ " }, size(bytes), short(requests));
        let end = matches!(self.nodes[edge.to].what, What::Stage(_));
        let (stage, towards) =
            if end { (edge.to, edge.way[edge.way.len() - 2]) } else { (edge.from, edge.way[1]) };
        let (x, y) = self.port(stage, towards, end, turned);
        let (x, y, class) = if turned {
            let list = if end { &self.nodes[stage].before } else { &self.nodes[stage].after };
            let from_right = list.len() - 1 - list.iter().position(|m| *m == towards).unwrap_or(0);
            let y = if end {
                y - 5.0 - LINE * from_right as f64
            } else {
                y + LINE * (from_right + 1) as f64 - 2.0
            };
            (x + 4.0, y, "on")
        } else {
            (x + if end { -5.0 } else { 5.0 }, y - 2.5, if end { "on before" } else { "on" })
        };
        // Lines that pass below it are covered first.
        text(s, &format!("under {class}"), (x, y), &words, GAP - 8.0, 9.5);
        text(s, class, (x, y), &words, GAP - 8.0, 9.5);
    }
}

/// Places as near to wishes as gaps between neighbours allow, by least squares: neighbours that are
/// too near move together.
fn near(wishes: &[f64], gaps: &[f64]) -> Vec<f64> {
    let mut offset = 0.0;
    // Groups that move together: sum of wishes without the gaps, and count.
    let mut groups: Vec<(f64, usize)> = Vec::new();
    for (i, wish) in wishes.iter().enumerate() {
        offset += if i > 0 { gaps[i - 1] } else { 0.0 };
        let mut group = (wish - offset, 1);
        while let Some(before) =
            groups.last().filter(|g| g.0 / g.1 as f64 >= group.0 / group.1 as f64)
        {
            group = (group.0 + before.0, group.1 + before.1);
            groups.pop();
        }
        groups.push(group);
    }
    let mut offset = 0.0;
    let means = groups.iter().flat_map(|(sum, n)| std::iter::repeat_n(sum / *n as f64, *n));
    means
        .enumerate()
        .map(|(i, mean)| {
            offset += if i > 0 { gaps[i - 1] } else { 0.0 };
            mean + offset
        })
        .collect()
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
    text(s, "name", (x + 10.0, top + 18.0), &stage.name, room, 12.0);
    text(s, "small", (x + 10.0, top + 33.0), &stage.kernel, room, 10.5);
    let tasks = format!(
        "{} task{} of {}",
        grouped(stage.tasks),
        if stage.tasks == 1 { "" } else { "s" },
        lengths(&stage.task_shape)
    );
    text(s, "small", (x + 10.0, top + 47.0), &tasks, room, 10.5);
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
        &format!("{} of {} a task", size(stage.projected_mem), size(allowed)),
        room,
        10.5,
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
    let beside = wide(&bytes, 10.5) + 8.0;
    text(s, "name", (x + 12.0, y + 17.0), &array.name, w - 24.0 - beside, 11.5);
    text(s, "small before", (x + w - 12.0, y + 17.0), &bytes, beside, 10.5);
    text(
        s,
        "small",
        (x + 12.0, y + 31.0),
        &format!("{} {}", array.dtype, lengths(&array.shape)),
        w - 24.0,
        10.5,
    );
    let chunks =
        if array.shards.is_some() { chunks.replacen("chunks", "shards", 1) } else { chunks };
    text(s, "small", (x + 12.0, y + 45.0), &chunks, w - 24.0, 10.5);
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
    for (class, words) in [
        ("stage", "stage"),
        ("array input", "input"),
        ("array between", "in between"),
        ("array output", "output"),
        ("array made", "no store"),
    ] {
        let radius = if class == "stage" { 1 } else { 5 };
        let _ = write!(
            s,
            "<rect class=\"key {class}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"18\" height=\"11\" \
                rx=\"{radius}\"/>",
            y - 9.5
        );
        text(s, "small", (x + 23.0, y), words, 80.0, 10.5);
        x += 23.0 + wide(words, 10.5) + 14.0;
    }
    text(
        s,
        "small",
        (x, y),
        "bar: memory of a task; lines: decoded bytes · requests",
        width - x - MARGIN,
        10.5,
    );
    s.push('\n');
}

/// Writes a text, cut off where it is wider than its room.
fn text(s: &mut String, class: &str, (x, y): (f64, f64), words: &str, room: f64, points: f64) {
    let _ = write!(
        s,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>",
        escaped(&fitted(words, room, points))
    );
}

/// As much of a text as fits, with `…` where something is left out.
fn fitted(words: &str, room: f64, points: f64) -> String {
    if wide(words, points) <= room {
        return words.to_owned();
    }
    let mut left = room - wide("…", points);
    let mut kept: String = words
        .chars()
        .take_while(|c| {
            left -= char_width(*c) * points;
            left >= 0.0
        })
        .collect();
    kept.push('…');
    kept
}

fn wide(words: &str, points: f64) -> f64 {
    words.chars().map(char_width).sum::<f64>() * points
}

/// Width of a character in a font without serifs, rather too large, in heights of the font.
fn char_width(c: char) -> f64 {
    match c {
        'i' | 'j' | 'l' | 'f' | 't' | 'r' | ' ' | '.' | ',' | ':' | ';' | '|' | '!' | '\''
        | '[' | ']' | '(' | ')' | '/' | 'I' => 0.4,
        'm' | 'w' | 'M' | 'W' | '@' | '%' | '…' => 0.95,
        'A'..='Z' => 0.74,
        '\u{1100}'.. => 1.1,
        _ => 0.61,
    }
}

/// `12 × 73 × 144`.
fn lengths(shape: &[u64]) -> String {
    if shape.is_empty() {
        "one element".into()
    } else {
        shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" × ")
    }
}

/// `1 234 567`.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{2009}');
        }
        text.push(c);
    }
    text
}

/// Requests in few characters: `1 234`, `12.3 M`.
fn short(n: u64) -> String {
    match n {
        0..=99_999 => grouped(n),
        100_000..=999_999 => format!("{} k", n / 1000),
        1_000_000..=999_999_999 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.1e}", n as f64),
    }
}

/// A text as it stands in XML, without characters that it cannot have.
pub(crate) fn escaped(words: &str) -> String {
    let mut text = String::with_capacity(words.len());
    for c in words.chars() {
        match c {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '"' => text.push_str("&quot;"),
            '\'' => text.push_str("&#39;"),
            '\n' | '\t' => text.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => text.push('\u{fffd}'),
            c => text.push(c),
        }
    }
    text
}

/// Colours are written out, light and dark: not every viewer knows variables.
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
