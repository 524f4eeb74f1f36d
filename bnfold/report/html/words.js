"use strict";
// What is told of a node, as elements. Texts of the model reach the page as text nodes only.

// Characters that would reorder or hide what is beside them are shown by their numbers.
const ODD = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
const shown = (text) => String(text).replace(ODD, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  for (const child of children.flat(Infinity)) if (child !== null) made.append(typeof child === "object" ? child : shown(child));
  return made;
}

const counted = (count, one, many = one + "s") => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

// A report, and questions about it. `link` makes an element that leads to a node.
class Story {
  constructor(data) {
    this.data = data;
    this.report = data.report;
    this.entries = new Map(this.report.entries.map((entry) => [entry.name, entry]));
    this.routes = new Map(Object.entries(data.routes));
    this.took = new Map(); // for each node: the batch norms that it took in
    this.blocks = new Map(); // for each node or tensor: the batch norms that it keeps
    for (const entry of this.report.entries) {
      for (const into of entry.into) this.note(this.took, into, entry.name);
      for (const name of entry.outcome === "kept" ? this.blockers(entry) : []) this.note(this.blocks, name, entry.name);
    }
    this.merged = new Map(); // for each node that is gone: the node that took it in
    for (const merge of this.report.merged) for (const name of merge.replaces) this.merged.set(name, merge.name);
    this.rewritten = new Map();
    for (const one of this.report.rewritten) for (const name of one.replaces) this.rewritten.set(name, one.name);
    this.link = (name) => element("b", {}, name);
  }

  note(map, key, value) {
    if (!map.has(key)) map.set(key, []);
    map.get(key).push(value);
  }

  // Two names are joined by a comma, which a name may hold itself; the reason tells where the first one ends.
  blockers({ blocked_by: names, reason }) {
    for (let at = names.indexOf(", "); at >= 0; at = names.indexOf(", ", at + 1)) {
      const [first, second] = [names.slice(0, at), names.slice(at + 2)];
      if (reason.startsWith(`backward, ${first}: `) && reason.includes(`; forward, ${second}: `)) return [first, second];
    }
    return names ? [names] : [];
  }

  outcome(name) {
    const entry = this.entries.get(name);
    if (entry) return entry.outcome;
    return this.merged.has(name) ? "merged" : "";
  }

  // As the report calls it.
  operator(name, op) {
    const entry = this.entries.get(name);
    return entry && op !== "input" && op !== "output" ? entry.op : op;
  }

  names(names, most = 6) {
    const some = names.slice(0, most).flatMap((name, i) => [i ? ", " : "", this.link(name)]);
    return names.length > most ? [...some, ` and ${names.length - most} more`] : some;
  }

  // Where the scale or the shift went.
  way(what, [side, tensors, into]) {
    const title = element("b", {}, what === "scale" ? "Scale" : "Shift");
    if (!tensors.length && !into.length) return element("div", { class: `way ${what}` }, title, ": there was nothing to move.");
    const through = tensors.length === 1 ? ["on the tensor ", this.tensor(tensors[0])]
      : ["through ", counted(tensors.length, "tensor"), ": ", ...tensors.slice(0, 8).flatMap((t, i) => [i ? ", " : "", this.tensor(t)]),
        tensors.length > 8 ? ", ..." : ""];
    const end = into.length ? [element("br", {}), "taken in by ", this.names(into, 12)] : [];
    return element("div", { class: `way ${what}` }, title, side === "back" ? " went back, " : " went forward, ", tensors.length ? through : "at once", end);
  }

  tensor(name) {
    return element("span", { class: "soft" }, name);
  }

  about(name, op) {
    const entry = this.entries.get(name), route = this.routes.get(name);
    const parts = [element("h3", {}, name), element("p", { class: "soft" }, entry ? entry.op : op)];
    if (entry) {
      parts[1].append(" ", element("span", { class: `chip ${entry.outcome}` }, entry.outcome));
      if (entry.outcome === "folded") {
        if (route) parts.push(this.way("scale", route[0]), this.way("shift", route[1]));
        else parts.push(element("p", {}, "It is part of ", this.names(entry.into), " now."));
        if (entry.reason) parts.push(element("p", {}, entry.reason));
      } else {
        const at = this.blockers(entry);
        if (at.length) parts.push(element("div", { class: "way block" }, element("b", {}, "Blocked by "), this.names(at)));
        parts.push(element("p", {}, element("b", {}, "Why: "), entry.reason));
        if (entry.cure) parts.push(element("p", { class: "cure" }, element("b", {}, "What would let it go: "), entry.cure));
      }
      if (entry.dead_channels.length) {
        const some = entry.dead_channels.slice(0, 12).join(", ") + (entry.dead_channels.length > 12 ? ", ..." : "");
        parts.push(element("p", {}, `${counted(entry.dead_channels.length, "channel")} never changes (${some}).`));
      }
    }
    if (this.merged.has(name)) parts.push(element("p", {}, "It was merged into ", this.link(this.merged.get(name)), "."));
    if (this.rewritten.has(name)) parts.push(element("p", {}, "For the target it is part of ", this.link(this.rewritten.get(name)), " now."));
    for (const merge of this.report.merged) {
      if (merge.name !== name) continue;
      const [before, after] = [merge.multiplications_before, merge.multiplications_after].map((n) => n.toLocaleString("en"));
      parts.push(element("p", {}, "It does the work of ", this.names(merge.replaces), `, too: ${before} multiplications before, ${after} now.`));
    }
    const took = this.took.get(name), blocks = this.blocks.get(name);
    if (took) parts.push(element("p", {}, `It took in ${counted(took.length, "map")}: `, this.names(took, 20)));
    if (blocks) parts.push(element("p", {}, `It keeps ${counted(blocks.length, "map")}: `, this.names(blocks, 20)));
    return parts;
  }

  // The last cell of the table.
  why(entry) {
    if (entry.outcome === "folded") return this.names(entry.into, 3);
    const at = this.blockers(entry);
    return [...this.names(at), at.length ? ": " : "", entry.reason, entry.cure ? ` (${entry.cure})` : ""];
  }
}
