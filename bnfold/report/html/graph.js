"use strict";
// One graph on a canvas. Places come with the data; only what is in sight is drawn. `chosen` is the place of a node,
// `rims` has a colour for the name of each node that belongs to it, `found` the places of what a search has found.

const WIDTH = 150, HEIGHT = 36, STRIP = 13, PAD = 30;

class View {
  constructor(canvas, graph, story, select) {
    canvas.view = this;
    Object.assign(this, { canvas, story, select, scale: 1, left: 0, top: 0, chosen: -1, found: new Set(), rims: new Map() });
    this.nodes = graph.nodes.map(([name, op, x, y]) => ({ name, op: story.operator(name, op), x, y, outcome: story.outcome(name) }));
    this.edges = graph.edges.map(([from, to, tensor, ...bends]) => ({ from, to, tensor, points: this.points(from, to, bends) }));
    this.tensors = graph.tensors;
    this.byName = new Map();
    this.nodes.forEach((node, i) => { if (!this.byName.has(node.name) || (node.op !== "input" && node.op !== "output")) this.byName.set(node.name, i); });
    this.byTensor = new Map();
    for (const edge of this.edges) {
      const name = this.tensors[edge.tensor];
      if (!this.byTensor.has(name)) this.byTensor.set(name, []);
      this.byTensor.get(name).push(edge);
    }
    this.rows = this.nodes.map((_, i) => i).sort((a, b) => this.nodes[a].y - this.nodes[b].y);
    this.bounds = [Infinity, -Infinity, Infinity, -Infinity];
    for (const { x, y } of this.nodes) {
      this.bounds = [Math.min(this.bounds[0], x), Math.max(this.bounds[1], x), Math.min(this.bounds[2], y), Math.max(this.bounds[3], y)];
    }
    this.labels = new Map();
    this.ways = { scale: new Set(), shift: new Set() };
    this.listen();
    new ResizeObserver(() => this.resized()).observe(canvas);
  }

  points(from, to, bends) {
    const a = this.nodes[from], b = this.nodes[to], points = [a.x, a.y + HEIGHT / 2, ...bends, b.x, b.y - HEIGHT / 2];
    let low = Infinity, high = -Infinity;
    for (let i = 1; i < points.length; i += 2) { low = Math.min(low, points[i]); high = Math.max(high, points[i]); }
    return { points, low, high };
  }

  // -- where we look

  resized() {
    const ratio = devicePixelRatio || 1, first = !this.wide;
    [this.wide, this.high] = [this.canvas.clientWidth, this.canvas.clientHeight];
    if (!this.wide) return;
    [this.canvas.width, this.canvas.height] = [Math.round(this.wide * ratio), Math.round(this.high * ratio)];
    if (first) this.begin();
    this.draw();
  }

  begin() {
    this.fit();
    if (this.scale >= 0.55) return;
    const [x0, x1, y0] = this.bounds;
    this.scale = Math.min(1, Math.max(0.55, (this.wide - STRIP) / (x1 - x0 + WIDTH + 2 * PAD)));
    const first = this.nodes.find((node) => node.op === "input") || this.nodes[this.rows[0]] || { x: 0 };
    this.left = first.x - (this.wide - STRIP) / this.scale / 2;
    this.top = y0 - HEIGHT / 2 - PAD;
  }

  fit() {
    if (!this.nodes.length) return;
    const [x0, x1, y0, y1] = this.bounds, wide = x1 - x0 + WIDTH + 2 * PAD, high = y1 - y0 + HEIGHT + 2 * PAD;
    this.scale = Math.min(1, (this.wide - STRIP) / wide, this.high / high);
    this.left = (x0 + x1) / 2 - (this.wide - STRIP) / this.scale / 2;
    this.top = (y0 + y1) / 2 - this.high / this.scale / 2;
    this.draw();
  }

  zoom(factor, x = this.wide / 2, y = this.high / 2) {
    const next = Math.min(3, Math.max(0.002, this.scale * factor));
    this.left += x / this.scale - x / next;
    this.top += y / this.scale - y / next;
    this.scale = next;
    this.draw();
  }

  show(index) {
    const node = this.nodes[index], x = (node.x - this.left) * this.scale, y = (node.y - this.top) * this.scale;
    if (this.scale < 0.4) this.scale = 0.8;
    else if (x > 60 && y > 30 && x < this.wide - 60 - STRIP && y < this.high - 30) return this.draw();
    this.left = node.x - (this.wide - STRIP) / this.scale / 2;
    this.top = node.y - this.high / this.scale / 2;
    this.draw();
  }

  draw() {
    if (this.waiting || !this.wide) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.paint(); });
  }

  // -- what is drawn

  colours() {
    const style = getComputedStyle(document.documentElement), found = {};
    for (const name of ["paper", "ink", "soft", "line", "edge", "node", "folded", "folded-ink", "kept", "kept-ink", "merged", "merged-ink",
      "took", "scale", "shift", "mark", "found"]) found[name] = style.getPropertyValue(`--${name}`).trim();
    return found;
  }

  paint() {
    const pen = this.canvas.getContext("2d"), ratio = devicePixelRatio || 1, scale = this.scale, colours = this.colours();
    const top = this.top, bottom = top + this.high / scale;
    this.canvas.dataset.painted = String(Number(this.canvas.dataset.painted || 0) + 1);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = colours.paper;
    pen.fillRect(0, 0, this.wide, this.high);
    pen.setTransform(ratio * scale, 0, 0, ratio * scale, -this.left * scale * ratio, -top * scale * ratio);
    const inSight = (edge) => edge.points.high >= top && edge.points.low <= bottom;
    pen.lineJoin = "round";
    pen.lineWidth = Math.max(1.2, 0.6 / scale);
    pen.strokeStyle = colours.edge;
    pen.beginPath();
    for (const edge of this.edges) if (inSight(edge)) this.trace(pen, edge.points.points);
    pen.stroke();
    for (const what of ["scale", "shift"]) {
      pen.strokeStyle = colours[what];
      pen.lineWidth = Math.max(what === "scale" ? 5 : 3, 2 / scale);
      pen.setLineDash(what === "scale" ? [] : [9 / Math.min(scale, 1), 6 / Math.min(scale, 1)]);
      pen.beginPath();
      for (const name of this.ways[what]) for (const edge of this.byTensor.get(name) || []) if (inSight(edge)) this.trace(pen, edge.points.points);
      pen.stroke();
    }
    pen.setLineDash([]);
    for (let k = this.from(top - HEIGHT); k < this.rows.length; k++) {
      const node = this.nodes[this.rows[k]];
      if (node.y - HEIGHT > bottom) break;
      this.node(pen, node, this.rows[k], colours);
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.strip(pen, colours);
  }

  from(y) { // the first of the rows that is not above y
    let low = 0, high = this.rows.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.nodes[this.rows[middle]].y < y) low = middle + 1; else high = middle;
    }
    return low;
  }

  trace(pen, points) {
    pen.moveTo(points[0], points[1]);
    for (let i = 2; i < points.length; i += 2) {
      const half = (points[i + 1] - points[i - 1]) / 2;
      if (points[i] === points[i - 2]) pen.lineTo(points[i], points[i + 1]);
      else pen.bezierCurveTo(points[i - 2], points[i - 1] + half, points[i], points[i + 1] - half, points[i], points[i + 1]);
    }
  }

  node(pen, node, index, colours) {
    const x = node.x - WIDTH / 2, y = node.y - HEIGHT / 2, round = node.op === "input" || node.op === "output" ? HEIGHT / 2 : 6;
    const rim = this.rims.get(node.name);
    pen.beginPath();
    pen.roundRect(x, y, WIDTH, HEIGHT, round);
    pen.fillStyle = colours[node.outcome || (round > 6 ? "line" : "node")];
    pen.fill();
    if (rim || index === this.chosen || this.found.has(index)) {
      pen.lineWidth = (index === this.chosen ? 4 : 2.5) * Math.max(1, 0.5 / this.scale);
      pen.strokeStyle = index === this.chosen ? colours.ink : rim ? colours[rim] : colours.found;
      pen.stroke();
    } else if (this.story.took.has(node.name)) {
      pen.lineWidth = Math.max(1.2, 0.5 / this.scale);
      pen.strokeStyle = colours.took;
      pen.stroke();
    }
    if (this.scale < 0.33) return;
    pen.textBaseline = "middle";
    pen.textAlign = "center";
    pen.fillStyle = node.outcome ? colours[`${node.outcome}-ink`] : colours.ink;
    pen.font = "600 12px system-ui, sans-serif";
    pen.fillText(this.label(pen, node.op, false), node.x, node.y - 7);
    pen.font = "11px system-ui, sans-serif";
    pen.globalAlpha = 0.8;
    pen.fillText(this.label(pen, node.name, true), node.x, node.y + 8);
    pen.globalAlpha = 1;
  }

  // A text that fits; of a name both ends say most.
  label(pen, text, middle) {
    const key = pen.font + text;
    if (this.labels.has(key)) return this.labels.get(key);
    let label = shown(text.length > 400 ? text.slice(0, 200) + text.slice(-200) : text), full = label;
    for (let keep = full.length - 1; keep > 0 && pen.measureText(label).width > WIDTH - 14; keep--) {
      keep = Math.min(keep, Math.ceil(label.length * (WIDTH - 14) / pen.measureText(label).width));
      const head = middle ? Math.floor(keep * 0.35) : keep;
      label = full.slice(0, head) + "\u2026" + full.slice(full.length - (keep - head));
    }
    if (this.labels.size > 4000) this.labels.clear();
    this.labels.set(key, label);
    return label;
  }

  // All of the height at the right, with a tick for each batch norm: the kept ones over the others.
  strip(pen, colours) {
    const [, , y0, y1] = this.bounds, at = (y) => ((y - y0) / Math.max(1, y1 - y0)) * (this.high - 8) + 4, x = this.wide - STRIP;
    pen.fillStyle = colours.node;
    pen.fillRect(x, 0, STRIP, this.high);
    for (const outcome of ["merged", "folded", "kept"]) {
      pen.fillStyle = colours[`${outcome}-ink`];
      for (const node of this.nodes) if (node.outcome === outcome) pen.fillRect(x + 2, at(node.y) - 1, STRIP - 4, 2);
    }
    pen.fillStyle = colours.found;
    for (const index of this.found) pen.fillRect(x, at(this.nodes[index].y) - 1, 4, 2);
    pen.strokeStyle = colours.ink;
    pen.lineWidth = 1;
    const top = Math.max(0.5, at(this.top)), bottom = Math.min(this.high - 0.5, at(this.top + this.high / this.scale));
    pen.strokeRect(x + 0.5, top, STRIP - 1, Math.max(2, bottom - top));
  }

  // -- what the user does

  at(x, y) {
    const gx = x / this.scale + this.left, gy = y / this.scale + this.top;
    for (let k = this.from(gy - HEIGHT); k < this.rows.length && this.nodes[this.rows[k]].y < gy + HEIGHT; k++) {
      const node = this.nodes[this.rows[k]];
      if (Math.abs(node.x - gx) <= WIDTH / 2 && Math.abs(node.y - gy) <= HEIGHT / 2) return this.rows[k];
    }
    return -1;
  }

  listen() {
    const canvas = this.canvas;
    let drag = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      drag = { x: event.offsetX, y: event.offsetY, moved: false, strip: event.offsetX > this.wide - STRIP };
      if (drag.strip) this.jump(event.offsetY);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!drag) return void (canvas.style.cursor = this.at(event.offsetX, event.offsetY) < 0 ? "grab" : "pointer");
      if (drag.strip) return this.jump(event.offsetY);
      const [dx, dy] = [event.offsetX - drag.x, event.offsetY - drag.y];
      if (!drag.moved && Math.abs(dx) + Math.abs(dy) < 4) return;
      Object.assign(drag, { x: event.offsetX, y: event.offsetY, moved: true });
      this.left -= dx / this.scale;
      this.top -= dy / this.scale;
      this.draw();
    });
    canvas.addEventListener("pointerup", (event) => {
      const index = drag && !drag.moved && !drag.strip ? this.at(event.offsetX, event.offsetY) : -1;
      drag = null;
      if (index >= 0) this.select(this.nodes[index].name, this);
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (event.ctrlKey || event.metaKey) return this.zoom(Math.exp(-event.deltaY / 200), event.offsetX, event.offsetY);
      this.left += event.deltaX / this.scale;
      this.top += event.deltaY / this.scale;
      this.draw();
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const step = 80 / this.scale, moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step],
        PageUp: [0, -this.high / this.scale], PageDown: [0, this.high / this.scale] };
      if (moves[event.key]) {
        this.left += moves[event.key][0];
        this.top += moves[event.key][1];
        this.draw();
      } else if (event.key === "+" || event.key === "=") this.zoom(1.3);
      else if (event.key === "-") this.zoom(1 / 1.3);
      else if (event.key === "0") this.fit();
      else return;
      event.preventDefault();
    });
  }

  jump(y) {
    const [, , y0, y1] = this.bounds;
    this.top = y0 + ((y - 4) / (this.high - 8)) * (y1 - y0) - this.high / this.scale / 2;
    this.draw();
  }
}
