//! The layout of a plan's graph in layers.
//!
//! Within a layer, nodes are ordered by the barycentres of their neighbours (Sugiyama 1981), and
//! then placed as near to their neighbours as their sizes permit.

use std::collections::HashMap;

use freestone_engine::plan::PlanExplanation;
use freestone_engine::plan::explain::{ArrayExplanation, StageExplanation, Traffic};

/// The size of a stage.
pub(super) const STAGE: (f64, f64) = (214.0, 82.0);
/// The size of an array.
const ARRAY: (f64, f64) = (186.0, 54.0);
/// The space for labels between layers that are columns.
pub(super) const GAP: f64 = 122.0;
pub(super) const MARGIN: f64 = 18.0;
/// The heights of the title and the legend.
const HEAD: f64 = 46.0;
const FOOT: f64 = 40.0;
const MIN_WIDTH: f64 = 820.0;
/// The height of a line of text.
pub(super) const LINE: f64 = 13.0;
/// The maximum number of bends; beyond it, edges are straight.
const MAX_BENDS: usize = 20_000;

/// The direction in which layers follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Layers are columns.
    Columns,
    /// Layers are rows.
    Rows,
}

impl Direction {
    /// Returns the extent of a node within its layer.
    fn breadth(self, node: &Node<'_>) -> f64 {
        if self == Direction::Rows { node.w } else { node.h }
    }

    /// Returns the extent of a node across layers.
    fn depth(self, node: &Node<'_>) -> f64 {
        if self == Direction::Rows { node.h } else { node.w }
    }
}

pub(super) enum NodeKind<'a> {
    Stage(&'a StageExplanation),
    Array(&'a ArrayExplanation),
    /// A point at which an edge passes a layer.
    Bend,
}

pub(super) struct Node<'a> {
    pub(super) kind: NodeKind<'a>,
    layer: usize,
    /// The neighbours in the layers before and after.
    pub(super) before: Vec<usize>,
    pub(super) after: Vec<usize>,
    /// The size.
    pub(super) w: f64,
    pub(super) h: f64,
    /// The upper left corner.
    pub(super) x: f64,
    pub(super) y: f64,
}

impl Node<'_> {
    fn is_bend(&self) -> bool {
        matches!(self.kind, NodeKind::Bend)
    }

    pub(super) fn is_stage(&self) -> bool {
        matches!(self.kind, NodeKind::Stage(_))
    }

    /// Returns the centre.
    pub(super) fn centre(&self) -> (f64, f64) {
        (self.x + self.w / 2.0, self.y + self.h / 2.0)
    }
}

pub(super) struct Edge {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) traffic: Traffic,
    /// The path over its bends, including both ends.
    pub(super) path: Vec<usize>,
}

pub(super) struct Graph<'a> {
    pub(super) nodes: Vec<Node<'a>>,
    pub(super) edges: Vec<Edge>,
    layers: Vec<Vec<usize>>,
}

impl<'a> Graph<'a> {
    pub(super) fn of(plan: &'a PlanExplanation) -> Graph<'a> {
        let mut graph = Graph { nodes: Vec::new(), edges: Vec::new(), layers: Vec::new() };
        let mut arrays: HashMap<usize, usize> = HashMap::new();
        for stage in &plan.stages {
            let at = graph.add(NodeKind::Stage(stage), STAGE);
            let reads = stage.reads.iter().map(|r| (&r.array, r.traffic, true));
            for (array, traffic, is_read) in
                reads.chain(stage.writes.iter().map(|w| (&w.array, w.traffic, false)))
            {
                let other = match arrays.get(&array.id) {
                    Some(other) => *other,
                    None => {
                        *arrays.entry(array.id).or_insert(graph.add(NodeKind::Array(array), ARRAY))
                    }
                };
                let (from, to) = if is_read { (other, at) } else { (at, other) };
                graph.edges.push(Edge { from, to, traffic, path: Vec::new() });
            }
        }
        graph
    }

    fn add(&mut self, kind: NodeKind<'a>, (w, h): (f64, f64)) -> usize {
        self.nodes.push(Node {
            kind,
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

    /// Assigns layers by the longest path. Arrays that are only read are in the layer before their
    /// first reader. Stages have odd layers.
    pub(super) fn set_layers(&mut self) {
        let stages: Vec<usize> =
            (0..self.nodes.len()).filter(|n| self.nodes[*n].is_stage()).collect();
        let (mut reads, mut writes) =
            (vec![Vec::new(); self.nodes.len()], vec![Vec::new(); self.nodes.len()]);
        let mut written = vec![false; self.nodes.len()];
        for edge in &self.edges {
            if self.nodes[edge.to].is_stage() {
                reads[edge.to].push(edge.from);
            } else {
                writes[edge.from].push(edge.to);
                written[edge.to] = true;
            }
        }
        // Stages are in topological order.
        for stage in &stages {
            let layer = reads[*stage].iter().map(|a| self.nodes[*a].layer + 1).max().unwrap_or(1);
            self.nodes[*stage].layer = layer;
            writes[*stage].iter().for_each(|a| self.nodes[*a].layer = layer + 1);
        }
        for array in (0..self.nodes.len())
            .filter(|n| matches!(self.nodes[*n].kind, NodeKind::Array(_)) && !written[*n])
            .collect::<Vec<_>>()
        {
            let readers =
                self.edges.iter().filter(|e| e.from == array).map(|e| self.nodes[e.to].layer);
            self.nodes[array].layer = readers.min().unwrap_or(1) - 1;
        }
    }

    /// Adds a bend in every layer that an edge passes.
    pub(super) fn add_bends(&mut self) {
        let passed: usize =
            self.edges.iter().map(|e| self.nodes[e.to].layer - self.nodes[e.from].layer - 1).sum();
        for i in 0..self.edges.len() {
            let (from, to) = (self.edges[i].from, self.edges[i].to);
            let mut path = vec![from];
            if passed <= MAX_BENDS {
                for layer in self.nodes[from].layer + 1..self.nodes[to].layer {
                    let bend = self.add(NodeKind::Bend, (2.0, 2.0));
                    self.nodes[bend].layer = layer;
                    path.push(bend);
                }
            }
            path.push(to);
            for pair in path.windows(2) {
                self.nodes[pair[0]].after.push(pair[1]);
                self.nodes[pair[1]].before.push(pair[0]);
            }
            self.edges[i].path = path;
        }
        let n = self.nodes.iter().map(|n| n.layer + 1).max().unwrap_or(0);
        self.layers = vec![Vec::new(); n];
        for (i, node) in self.nodes.iter().enumerate() {
            self.layers[node.layer].push(i);
        }
    }

    /// Orders each layer by the mean positions of neighbours, forwards and backwards.
    pub(super) fn order(&mut self) {
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
        // Edges meet a node in the order of their other ends.
        for n in 0..self.nodes.len() {
            let by_place =
                |list: &mut Vec<usize>| list.sort_by(|a, b| place[*a].total_cmp(&place[*b]));
            by_place(&mut self.nodes[n].before);
            by_place(&mut self.nodes[n].after);
        }
    }

    /// Returns the direction of layers: rows if columns would be wider than a screen and rows are
    /// narrower.
    pub(super) fn direction(&self) -> Direction {
        let widest = self
            .layers
            .iter()
            .map(|l| l.iter().filter(|n| !self.nodes[**n].is_bend()).count())
            .max()
            .unwrap_or(0);
        let (columns, rows) =
            (self.layers.len() as f64 * (ARRAY.0 + GAP), widest as f64 * (STAGE.0 + MARGIN));
        if columns > 1700.0 && rows < columns { Direction::Rows } else { Direction::Columns }
    }

    /// Places all nodes. Returns the width and height of the drawing.
    pub(super) fn place(&mut self, direction: Direction) -> (f64, f64) {
        self.make_room_for_labels(direction);
        let across = self.across_positions(direction);
        let start = |n: usize| across[n] - direction.breadth(&self.nodes[n]) / 2.0;
        let first = (0..self.nodes.len()).map(start).fold(f64::INFINITY, f64::min);
        let first = if first.is_finite() { first } else { 0.0 };
        let end = |n: usize| across[n] - first + direction.breadth(&self.nodes[n]) / 2.0;
        let breadth = (0..self.nodes.len()).map(end).fold(0.0, f64::max);
        let depth = self.place_layers(direction, |n| across[n] - first);
        // The rightmost nodes need space for labels beside them.
        let (width, height, labels) = match direction {
            Direction::Rows => (MARGIN + breadth, depth, GAP),
            Direction::Columns => (depth, HEAD + breadth, 0.0),
        };
        ((width + MARGIN + labels).max(MIN_WIDTH).ceil(), (height + FOOT).ceil())
    }

    /// Enlarges stages with many edges, which need room for their labels.
    fn make_room_for_labels(&mut self, direction: Direction) {
        for node in self.nodes.iter_mut().filter(|n| n.is_stage()) {
            let ports = node.before.len().max(node.after.len()) as f64;
            match direction {
                Direction::Rows => node.w = node.w.max(ports * 22.0 + 20.0),
                Direction::Columns => node.h = node.h.max(ports * LINE + 10.0),
            }
        }
    }

    /// Returns the centre of each node within its layer, as near to its neighbours as sizes permit.
    fn across_positions(&self, direction: Direction) -> Vec<f64> {
        let distance = |a: usize, b: usize| {
            let (a, b) = (&self.nodes[a], &self.nodes[b]);
            let space = if a.is_bend() && b.is_bend() { 8.0 } else { 18.0 };
            (direction.breadth(a) + direction.breadth(b)) / 2.0 + space
        };
        let mut at = vec![0.0; self.nodes.len()];
        for layer in &self.layers {
            let mut end = 0.0;
            for (i, n) in layer.iter().enumerate() {
                end += if i > 0 { distance(layer[i - 1], *n) } else { 0.0 };
                at[*n] = end;
            }
        }
        for round in 0..16 {
            for i in 0..self.layers.len() {
                let layer =
                    &self.layers[if round % 2 == 0 { i } else { self.layers.len() - 1 - i }];
                let targets: Vec<f64> =
                    layer.iter().map(|n| self.mean_of_neighbours(*n, &at)).collect();
                let gaps: Vec<f64> = layer.windows(2).map(|w| distance(w[0], w[1])).collect();
                layer.iter().zip(nearest(&targets, &gaps)).for_each(|(n, x)| at[*n] = x);
            }
        }
        at
    }

    /// Returns the mean position of a node's neighbours, or its own position if it has none.
    fn mean_of_neighbours(&self, n: usize, at: &[f64]) -> f64 {
        let node = &self.nodes[n];
        let count = node.before.len() + node.after.len();
        if count == 0 {
            return at[n];
        }
        node.before.iter().chain(&node.after).map(|m| at[*m]).sum::<f64>() / count as f64
    }

    /// Places the nodes of each layer after those of the layer before. Returns the depth of all
    /// layers.
    fn place_layers(&mut self, direction: Direction, across: impl Fn(usize) -> f64) -> f64 {
        let is_rows = direction == Direction::Rows;
        let space = if is_rows { 26.0 } else { GAP };
        let mut depth = if is_rows { HEAD } else { MARGIN };
        for layer in &self.layers {
            let n_labels = |n: &usize| {
                let node = &self.nodes[*n];
                if node.is_stage() { node.before.len().max(node.after.len()) } else { 0 }
            };
            // In rows, the labels of a stage's edges are stacked above and below it.
            let most = layer.iter().map(n_labels).max().unwrap_or(0);
            let labels = if is_rows { most as f64 * LINE } else { 0.0 };
            let layer_depth =
                layer.iter().map(|n| direction.depth(&self.nodes[*n])).fold(0.0, f64::max);
            depth += labels;
            for n in layer {
                let node = &mut self.nodes[*n];
                let along = depth + (layer_depth - direction.depth(node)) / 2.0;
                let across = across(*n) - direction.breadth(node) / 2.0;
                (node.x, node.y) =
                    if is_rows { (MARGIN + across, along) } else { (along, HEAD + across) };
            }
            depth += layer_depth + space + if is_rows { labels } else { 0.0 };
        }
        depth - space
    }

    /// Returns the point at which the edge between a node and `neighbour` meets the node: on its
    /// left or upper side for incoming edges, and on the opposite side for outgoing ones.
    pub(super) fn port(
        &self,
        node: usize,
        neighbour: usize,
        is_incoming: bool,
        direction: Direction,
    ) -> (f64, f64) {
        let node = &self.nodes[node];
        let list = if is_incoming { &node.before } else { &node.after };
        let i = list.iter().position(|m| *m == neighbour).unwrap_or(0) as f64;
        let n = list.len().max(1) as f64;
        let spread = |length: f64, step: f64| {
            // Edges of a stage have separate ports; those of an array share one.
            length / 2.0 + if node.is_stage() { (i - (n - 1.0) / 2.0) * step } else { 0.0 }
        };
        match direction {
            Direction::Rows => {
                let step = ((node.w - 20.0) / n).min(70.0);
                let y = if is_incoming { node.y } else { node.y + node.h };
                (node.x + spread(node.w, step), y)
            }
            Direction::Columns => {
                let step = ((node.h - 8.0) / n).min(22.0);
                let x = if is_incoming { node.x } else { node.x + node.w };
                (x, node.y + spread(node.h, step))
            }
        }
    }

    /// Returns the depth of the largest node of a node's layer.
    pub(super) fn layer_depth(&self, node: usize, direction: Direction) -> f64 {
        let layer = &self.layers[self.nodes[node].layer];
        layer.iter().map(|n| direction.depth(&self.nodes[*n])).fold(0.0, f64::max)
    }
}

/// Returns the positions that are nearest to targets, by least squares, with minimum gaps between
/// neighbours. Neighbours that would be too close move together.
fn nearest(targets: &[f64], gaps: &[f64]) -> Vec<f64> {
    let mut offset = 0.0;
    // Groups that move together: the sum of their targets without gaps, and their count.
    let mut groups: Vec<(f64, usize)> = Vec::new();
    for (i, target) in targets.iter().enumerate() {
        offset += if i > 0 { gaps[i - 1] } else { 0.0 };
        let mut group = (target - offset, 1);
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
