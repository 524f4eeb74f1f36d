"use strict";
// Puts the page together: the summary, the two graphs, what is told of a node, the search, the tables.

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const story = new Story(data), report = data.report, views = [];
  const MOST = 200; // rows that are shown at first

  // -- the graphs

  function tell(name) {
    const view = views.find((each) => each.byName.has(name)), op = view ? view.nodes[view.byName.get(name)].op : "";
    byId("details").replaceChildren(...story.about(name, op));
  }

  // Choose a node by name: told, marked in both graphs with what belongs to it, and in sight.
  function select(name, origin) {
    const entry = story.entries.get(name), route = story.routes.get(name), rims = new Map();
    const took = entry ? (entry.outcome === "folded" ? entry.into : []) : story.merged.has(name) ? [story.merged.get(name)] : [];
    for (const each of [...took, ...(story.took.get(name) || [])]) rims.set(each, "took");
    for (const each of entry && entry.outcome === "kept" ? story.blockers(entry) : []) rims.set(each, "mark");
    for (const each of story.blocks.get(name) || []) rims.set(each, "mark");
    for (const view of views) {
      view.rims = rims;
      view.chosen = view.byName.has(name) ? view.byName.get(name) : -1;
      view.ways = { scale: new Set(route ? route[0][1] : []), shift: new Set(route ? route[1][1] : []) };
      const near = view.chosen >= 0 ? view.chosen : took.map((each) => view.byName.get(each)).find((each) => each !== undefined);
      if (near !== undefined && view !== origin) view.show(near); else view.draw();
    }
    tell(name);
  }

  // A tensor leads to the node that makes it.
  function go(name) {
    for (const view of views) {
      const edges = view.byTensor.get(name);
      if (!view.byName.has(name) && edges) return select(view.nodes[edges[0].from].name);
    }
    select(name);
  }

  story.link = (name) => {
    const made = element("button", { type: "button", class: "node" }, name);
    made.addEventListener("click", () => go(name));
    return made;
  };

  if (data.graphs) {
    document.querySelectorAll(".graph").forEach((section, i) => {
      const view = new View(section.querySelector("canvas"), data.graphs[i], story, select);
      views.push(view);
      const count = view.nodes.filter((node) => node.op !== "input" && node.op !== "output").length, out = data.graphs[i].left_out;
      section.querySelector("small").textContent = counted(count, "node") + (out ? `, and ${out.toLocaleString("en")} that compute constants` : "");
      const does = { in: () => view.zoom(1.4), out: () => view.zoom(1 / 1.4), all: () => view.fit() };
      for (const button of section.querySelectorAll("button")) button.addEventListener("click", does[button.dataset.do]);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => views.forEach((view) => view.draw()));
  } else document.body.classList.add("bare");

  // -- in words

  const chip = (kind, text) => element("span", { class: `chip ${kind}` }, text);
  const check = report.verification, summary = byId("summary");
  const status = check ? check.status : "not checked";
  summary.append(chip(report.folded ? "folded" : "", `${report.folded.toLocaleString("en")} folded`), " ", chip(report.kept ? "kept" : "", `${report.kept.toLocaleString("en")} kept`));
  if (report.merged.length) summary.append(" ", chip("merged", `${report.merged.length} merged`));
  if (report.rewritten.length) summary.append(" ", chip("", `${report.rewritten.length} rewritten`));
  if (report.dropped) summary.append(" ", chip("", `${report.dropped.channels} channels dropped`));
  summary.append(" ", chip(status === "failed" ? "failed" : status === "passed" ? "folded" : "", check ? `check: ${status}` : status));
  byId("details").append(element("p", { class: "soft" },
    data.graphs ? "Choose a node in a graph, or a name in the table, to see what became of it." : "Choose a name in the table to see what became of it."));
  const key = (kind, text) => element("span", {}, element("i", { class: kind }), text);
  byId("legend").append(key("folded", "folded: gone"), key("kept", "kept"), key("merged", "merged with others"), key("took", "took something in"),
    key("scale", "the way of the scale"), key("shift", "the way of the shift"),
    "Drag or scroll to move, Ctrl and scroll to zoom; the strip at the right is the whole height.");
  if (!data.graphs) byId("legend").remove();

  // -- the table of batch norms

  const search = byId("search");
  let filter = "all", most = MOST;
  const wanted = () => search.value.trim().toLowerCase();
  const hits = (text, needle) => text.toLowerCase().includes(needle);

  function list() {
    const needle = wanted();
    const rows = report.entries.filter((e) => (filter === "all" || e.outcome === filter) && (!needle || hits(e.name, needle) || hits(e.op, needle)));
    rows.sort((a, b) => (a.outcome === "kept" ? 0 : 1) - (b.outcome === "kept" ? 0 : 1));
    byId("entries").replaceChildren(...rows.slice(0, most).map((e) => element("tr", {}, element("td", {}, story.link(e.name)), element("td", {}, e.op),
      element("td", {}, chip(e.outcome, e.outcome)), element("td", {}, story.why(e)))));
    const left = rows.length - most, more = byId("more");
    more.replaceChildren();
    if (left > 0) {
      const button = element("button", { type: "button" }, `show ${Math.min(left, 10 * MOST)} of ${left.toLocaleString("en")} more`);
      button.addEventListener("click", () => { most += 10 * MOST; list(); });
      more.append(button);
    }
  }

  for (const [kind, count] of [["all", report.entries.length], ["kept", report.kept], ["folded", report.folded]]) {
    const button = element("button", { type: "button", "aria-pressed": String(kind === filter), "data-filter": kind }, `${kind} ${count.toLocaleString("en")}`);
    button.addEventListener("click", () => {
      [filter, most] = [kind, MOST];
      for (const each of byId("filters").children) each.setAttribute("aria-pressed", String(each === button));
      list();
    });
    byId("filters").append(button, " ");
  }

  // -- the search: marks nodes of both graphs, shortens the table; Enter goes from one to the next

  let place = -1, waiting = 0;
  function find() {
    const needle = wanted();
    for (const view of views) {
      view.found = new Set();
      if (needle) view.nodes.forEach((node, i) => { if (hits(node.name, needle) || hits(node.op, needle)) view.found.add(i); });
      view.draw();
    }
    const count = views.length ? views[0].found.size : 0;
    byId("matches").textContent = needle && views.length ? (count ? counted(count, "node") : "nothing") : "";
    [place, most] = [-1, MOST];
    list();
  }
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(find, 120); });
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !views.length) return;
    clearTimeout(waiting);
    if (place < 0) find();
    const found = [...views[0].found];
    if (!found.length) return;
    place = (place + (event.shiftKey ? found.length - 1 : 1) + (place < 0 && event.shiftKey ? 1 : 0)) % found.length;
    byId("matches").textContent = `${place + 1} of ${found.length}`;
    select(views[0].nodes[found[place]].name);
  });
  list();

  // -- the check

  const part = byId("check"), number = (value) => (value === null ? "not finite" : Number(value).toPrecision(3));
  if (!check) part.append(element("p", {}, "Nothing was checked."));
  else {
    part.append(element("p", {}, chip(status === "failed" ? "failed" : status === "passed" ? "folded" : "", status),
      check.reason ? ` ${check.reason}` : "", check.evaluator ? ` with ${check.evaluator}, tolerance ${check.rtol} of the largest value` : ""));
    const proof = check.proof;
    if (proof) {
      const claims = Object.entries(proof.claims || {}).filter(([, count]) => count).map(([kind, count]) => `${count} ${kind}`);
      part.append(element("p", {}, `By proof: ${proof.status}`, claims.length ? ` (tensors: ${claims.join(", ")}; stored numbers at most ${number(proof.ulps)} ulp off)` : ""));
    }
    errors(part, check.outputs);
    for (const note of check.notes) part.append(element("p", { class: "soft" }, note));
  }
  if (report.precision) {
    part.append(element("h2", {}, `Half precision: ${report.precision.precision}, ${report.precision.status}`));
    errors(part, report.precision.outputs);
  }

  function errors(to, outputs) {
    if (!outputs.length) return;
    const head = ["output", "type", "largest error", "relative", "largest value", ""].map((text, i) => element("th", { class: i > 1 ? "number" : "" }, text));
    const rows = outputs.map((o) => element("tr", {}, element("td", {}, o.name), element("td", {}, o.dtype),
      ...[o.max_abs, o.max_rel, o.largest].map((value) => element("td", { class: "number" }, number(value))),
      element("td", {}, chip(o.ok ? "folded" : "failed", o.rounding ? "rounding" : o.ok ? "ok" : "WRONG"), o.note ? ` ${o.note}` : "")));
    to.append(element("table", { class: "errors" }, element("thead", {}, element("tr", {}, head)), element("tbody", {}, rows)));
  }

  // -- the model before and after, where the report says so

  if (report.summary) {
    const { before, after } = report.summary, text = (value) => (value === null || value === undefined ? "" : Array.isArray(value)
      ? value.join("; ") : value.toLocaleString("en"));
    const row = (name, a, b) => element("tr", {}, element("td", {}, name), element("td", {}, text(a)), element("td", {}, text(b)));
    const kinds = [...new Set([...Object.keys(before.operators), ...Object.keys(after.operators)])].sort();
    byId("model").append(element("h2", {}, "The model"), element("table", {},
      element("thead", {}, element("tr", {}, ["", "before", "after"].map((head) => element("th", {}, head)))),
      element("tbody", {}, ["opset", "inputs", "outputs", "parameters", "multiplications", "bytes"].map((key) => row(key, before[key], after[key])),
        kinds.map((kind) => row(kind, before.operators[kind] || 0, after.operators[kind] || 0)))));
  }

  // -- and what else there is

  const others = byId("others");
  if (report.notes.length) others.append(element("h2", {}, "Notes"), ...report.notes.map((note) => element("p", {}, note)));
})();
