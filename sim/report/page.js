"use strict";
// The picture is drawn for a width of 1000 pixels and the whole run. This lays it out for
// the window and for what is zoomed to. Without it the page still says all.
(() => {
  const all = (root, q) => Array.from(root.querySelectorAll(q));
  const set = (e, o) => { for (const k in o) e.setAttribute(k, o[k]); };
  const make = (tag, o, parent) => { const e = document.createElementNS(parent.namespaceURI, tag); set(e, o); parent.appendChild(e); return e; };
  const seconds = ms => (ms / 1000).toFixed(3) + "s";
  const clamp = (x, a, b) => Math.min(b, Math.max(a, x));

  // place puts everything that has times where they are, for x(ms).
  function place(svg, x, left, right, width) {
    for (const e of all(svg, "rect[data-a]")) {
      const a = clamp(x(+e.dataset.a), left - 4, width - right + 4), b = clamp(x(+e.dataset.b), left - 4, width - right + 4);
      set(e, { x: a.toFixed(1), width: Math.max(b - a, b > left && a < width - right ? 2 : 0).toFixed(1) });
    }
    for (const e of all(svg, "line[data-a]")) set(e, { x1: x(+e.dataset.a).toFixed(1), x2: x(+e.dataset.b).toFixed(1) });
    for (const e of all(svg, "rect.clip")) set(e, { x: left - 6, width: width - left + 6 });
    for (const e of all(svg, "rect.full")) set(e, { x: left, width: width - left - right });
    for (const e of all(svg, "line.full")) set(e, { x1: left, x2: width - right });
    for (const e of all(svg, ".name, .top")) set(e, { x: left - 10 });
  }
  const gutterOf = (svg, width) => width < 560 ? Math.min(54, +svg.dataset.left) : +svg.dataset.left;

  const runSVG = document.getElementById("run");
  let showSeen = () => {};
  if (runSVG) {
    const height = runSVG.viewBox.baseVal.height, was = runSVG.viewBox.baseVal.width;
    const first = +runSVG.dataset.left, right = +runSVG.dataset.right;
    const last = (typeof story === "undefined") ? null : story.end;
    let seen = null;
    const draw = () => {
      const width = runSVG.clientWidth || was, left = gutterOf(runSVG, width);
      const k = (width - left - right) / (was - first - right);
      set(runSVG, { viewBox: `0 0 ${width} ${height}`, height });
      runSVG.style.height = height + "px";
      for (const e of all(runSVG, "rect[data-a], line[data-a]")) {
        if (!e.dataset.x) { e.dataset.x = e.getAttribute("x") || e.getAttribute("x1"); e.dataset.w = e.getAttribute("width") || 0; }
        const x = left + (e.dataset.x - first) * k;
        if (e.tagName === "line") set(e, { x1: x, x2: x }); else set(e, { x, width: Math.max(1.5, e.dataset.w * k) });
      }
      for (const e of all(runSVG, "rect.full")) set(e, { x: left, width: width - left - right });
      for (const e of all(runSVG, "line.full")) set(e, { x1: left, x2: width - right });
      for (const e of all(runSVG, ".name, .top")) set(e, { x: left - 10 });
      for (const e of all(runSVG, ".title")) {
        const what = e.querySelector(".what");
        what.style.display = "";
        set(e, { x: left });
        what.style.display = e.getComputedTextLength() > width - left ? "none" : "";
      }
      for (const e of all(runSVG, ".plot")) set(e, { transform: `translate(${left} ${e.dataset.y}) scale(${(width - left - right) / 1000} 1)` });
      let before = -100;
      for (const e of all(runSVG, ".axis > g")) {
        const x = left + (e.dataset.x - first) * k, y = e.transform.baseVal[0].matrix.f;
        set(e, { transform: `translate(${x} ${y})`, visibility: x - before < 44 ? "hidden" : "visible" });
        if (x - before >= 44) before = x;
      }
      if (seen && last) {
        const x = ms => left + ms / last * (width - left - right);
        set(runSVG.querySelector(".seen"), { x: x(seen[0]), width: Math.max(2, x(seen[1]) - x(seen[0])), visibility: seen[0] <= 0 && seen[1] >= last ? "hidden" : "visible" });
      }
    };
    showSeen = (a, b) => { seen = [a, b]; draw(); };
    new ResizeObserver(draw).observe(runSVG);
    draw();
  }

  const svg = document.getElementById("story");
  if (!svg) return;
  const height = svg.viewBox.baseVal.height, right = +svg.dataset.right, top = +svg.dataset.top, bottom = +svg.dataset.bottom, scrubY = +svg.dataset.scrub;
  const axes = { event: story.knots, clock: [[0, 0], [story.end, 1]] };
  let knots = axes.event, view = [story.from, story.to], left = 0, width = 0;

  const search = (v, i) => { let a = 0, b = knots.length; while (a < b) { const m = (a + b) >> 1; if (knots[m][i] >= v) b = m; else a = m + 1; } return a; };
  const between = (v, from, to) => {
    const i = search(v, from), last = knots.length - 1;
    if (i === 0) return knots[0][to];
    if (i > last) return knots[last][to];
    const p = knots[i - 1], n = knots[i];
    return p[to] + (n[from] === p[from] ? 0 : (v - p[from]) / (n[from] - p[from])) * (n[to] - p[to]);
  };
  const unit = ms => between(ms, 0, 1), time = u => between(u, 1, 0);
  const inner = () => width - left - right;
  const x = ms => left + (unit(ms) - view[0]) / (view[1] - view[0]) * inner();
  const unitAt = px => view[0] + (px - left) / inner() * (view[1] - view[0]);

  const axis = svg.querySelector(".axis"), axisY = bottom + 4;
  function ticks() {
    axis.replaceChildren();
    const from = time(view[0]), to = time(view[1]);
    let at = [];
    if (knots === axes.event) at = knots.map(k => k[0]);
    else {
      const rough = (to - from) / Math.max(3, inner() / 110), step = 10 ** Math.floor(Math.log10(Math.max(rough, .01)));
      const by = [1, 2, 5, 10].find(m => step * m >= rough) * step;
      for (let t = Math.ceil(from / by) * by; t <= to; t += by) at.push(t);
    }
    let before = -100;
    for (const ms of at) {
      const px = x(ms);
      if (px < left - 1 || px > width - right + 1 || px - before < 68) continue;
      before = px;
      const g = make("g", { transform: `translate(${px.toFixed(1)} ${axisY})` }, axis);
      make("line", { y1: -4, y2: 2 }, g);
      make("text", { y: 15, "text-anchor": px > width - 34 ? "end" : "middle" }, g).textContent = seconds(ms);
    }
  }

  const scrub = make("g", { class: "scrub" }, svg);
  const track = make("rect", { class: "track", y: scrubY, height: 14, rx: 3 }, scrub);
  const spots = make("g", {}, scrub);
  const seenPart = make("rect", { class: "view", y: scrubY, height: 14 }, scrub);
  const edges = [0, 1].map(() => make("rect", { class: "edge", y: scrubY - 1, height: 16, width: 4, rx: 2 }, scrub));

  function draw() {
    width = svg.clientWidth || 1000;
    left = gutterOf(svg, width);
    place(svg, x, left, right, width);
    const last = {}; // marks of a lane make room for each other
    for (const e of all(svg, "g[data-a]")) {
      const y = e.dataset.y ?? (e.dataset.y = e.transform.baseVal[0].matrix.f);
      let px = x(+e.dataset.a);
      if (e.matches(".mark") && px > left - 20) {
        const half = -e.firstElementChild.getAttribute("x");
        px = Math.max(px, Math.min(px + 22, (last[y] ?? -99) + half + 1));
        last[y] = px + half;
      }
      set(e, { transform: `translate(${px.toFixed(1)} ${y})` });
    }
    const faults = [];
    for (const e of all(svg, "text.label")) {
      const a = x(+e.dataset.a), b = x(+e.dataset.b);
      const start = clamp(a, left, width - right), end = clamp(Math.max(b, a), left, width - right);
      const fits = width - right - start >= e.textContent.length * 6.2;
      set(e, fits ? { x: start.toFixed(1), "text-anchor": "start" } : { x: Math.max(end, Math.min(width - right, left + e.textContent.length * 6.2)).toFixed(1), "text-anchor": "end" });
      const there = b >= left - 1 && a <= width - right + 1;
      e.parentNode.style.display = there ? "" : "none";
      if (there) faults.push(e.parentNode);
    }
    // Faults that are there now, above the lanes, in rows of their own; thin ones if they are many.
    const row = faults.length > 12 ? 6 : 20, above = top - 14 - faults.length * row;
    faults.forEach((g, i) => {
      const y = above + i * row;
      g.classList.toggle("thin", row < 20);
      set(g.querySelector("rect"), { y: y + row - (row < 20 ? 4 : 5) });
      set(g.querySelector("text"), { y: y + row - 8 });
    });
    const shown = height - above + 4;
    set(svg, { viewBox: `0 ${above - 4} ${width} ${shown}`, height: shown });
    svg.style.height = shown + "px";
    ticks();
    set(track, { x: left, width: inner() });
    spots.replaceChildren();
    for (const e of all(svg, ".mark, .broke")) {
      const px = left + unit(+e.dataset.a) * inner();
      make("line", { class: e.matches(".broke, .bad") ? "spot bad" : "spot", x1: px, x2: px, y1: scrubY + 3, y2: scrubY + 11 }, spots);
    }
    const a = left + view[0] * inner(), b = left + view[1] * inner();
    set(seenPart, { x: a, width: Math.max(2, b - a) });
    set(edges[0], { x: a - 2 });
    set(edges[1], { x: b - 2 });
    showSeen(time(view[0]), time(view[1]));
  }

  function look(a, b) {
    const least = 1e-4;
    if (b - a < least) { const m = (a + b) / 2; a = m - least / 2; b = m + least / 2; }
    if (b - a >= 1) { a = 0; b = 1; }
    if (a < 0) { b -= a; a = 0; }
    if (b > 1) { a -= b - 1; b = 1; }
    view = [a, b];
    draw();
  }
  const zoom = (factor, about) => look(about - (about - view[0]) * factor, about + (view[1] - about) * factor);

  const tools = document.querySelector(".tools");
  tools.hidden = false;
  for (const b of all(tools, "[data-axis]")) b.onclick = () => {
    const t = view.map(time);
    knots = axes[b.dataset.axis];
    for (const o of all(tools, "[data-axis]")) o.classList.toggle("on", o === b);
    look(unit(t[0]), unit(t[1]));
  };
  const broke = svg.querySelector(".broke");
  const middle = () => broke ? clamp(unit(+broke.dataset.a), view[0], view[1]) : (view[0] + view[1]) / 2;
  for (const b of all(tools, "[data-zoom]")) b.onclick = () => {
    switch (b.dataset.zoom) {
    case "in": zoom(.5, middle()); break;
    case "out": zoom(2, middle()); break;
    case "all": look(0, 1); break;
    case "end": { const u = broke ? unit(+broke.dataset.a) : 1, w = Math.min(1, 24 / Math.max(24, story.knots.length)); look(u - w * .95, u + w * .05); }
    }
  };

  // What is under the pointer: a moment, an arrow, a line of the biography.
  const out = tools.querySelector("output"), cursor = svg.querySelector(".cursor");
  let hot = [];
  function light(arrow, lines, scroll) {
    for (const e of hot) e.classList.remove("hot");
    hot = [];
    if (arrow) hot.push(...all(svg, `.arrow[data-arrow="${arrow}"]`));
    for (const n of lines) {
      hot.push(...all(svg, ".mark").filter(e => e.dataset.lines.split(" ").includes(n)));
      hot.push(...all(document, `tr[data-line="${n}"]`));
    }
    for (const e of hot) e.classList.add("hot");
    svg.classList.toggle("dim", hot.length > 0);
    const row = hot.find(e => e.tagName === "TR"), box = document.querySelector(".told");
    if (scroll && row && (row.offsetTop < box.scrollTop || row.offsetTop + row.offsetHeight > box.scrollTop + box.clientHeight)) box.scrollTop = row.offsetTop - box.clientHeight / 2;
  }
  for (const row of all(document, "tr[data-line]")) {
    row.onmouseenter = () => light(row.dataset.of, [row.dataset.line], false);
    row.onmouseleave = () => light(0, [], false);
    row.onclick = () => { const u = unit(+row.dataset.a), w = view[1] - view[0]; if (u < view[0] || u > view[1]) look(u - w / 2, u + w / 2); };
  }
  for (const e of all(svg, ".arrow[data-arrow]")) {
    e.onmouseenter = () => { light(e.dataset.arrow, all(document, `tr[data-of="${e.dataset.arrow}"]`).map(r => r.dataset.line), true); out.textContent = e.querySelector("title").textContent; };
    e.onmouseleave = () => light(0, [], false);
  }
  for (const e of all(svg, ".mark")) {
    e.onmouseenter = () => light(0, e.dataset.lines.split(" "), true);
    e.onmouseleave = () => light(0, [], false);
  }
  const pointer = ev => ev.clientX - svg.getBoundingClientRect().left;
  let held = null;
  svg.onpointerdown = ev => {
    const px = pointer(ev), u = (px - left) / inner(), edge = edges.indexOf(ev.target);
    if (edge >= 0) held = { edge };
    else if (ev.target === track) { const w = view[1] - view[0]; look(u - w / 2, u + w / 2); held = { slide: u, view: view.slice() }; }
    else if (ev.target === seenPart) held = { slide: u, view: view.slice() };
    else held = { pan: px, view: view.slice() };
    svg.setPointerCapture(ev.pointerId);
    svg.classList.add("held");
  };
  svg.onpointermove = ev => {
    const px = pointer(ev);
    if (held) {
      const u = clamp((px - left) / inner(), 0, 1);
      if (held.edge === 0) look(Math.min(u, view[1] - 1e-3), view[1]);
      else if (held.edge === 1) look(view[0], Math.max(u, view[0] + 1e-3));
      else {
        const by = "slide" in held ? (px - left) / inner() - held.slide : -(px - held.pan) / inner() * (held.view[1] - held.view[0]);
        const w = held.view[1] - held.view[0], a = clamp(held.view[0] + by, 0, 1 - w);
        look(a, a + w);
      }
      return;
    }
    const inside = px >= left && px <= width - right;
    set(cursor, { x1: px, x2: px, visibility: inside ? "visible" : "hidden" });
    if (inside && !ev.target.closest(".arrow")) out.textContent = seconds(time(clamp(unitAt(px), 0, 1)));
  };
  svg.onpointerup = svg.onpointercancel = () => { held = null; svg.classList.remove("held"); };
  svg.onpointerleave = () => { cursor.setAttribute("visibility", "hidden"); out.textContent = ""; };
  svg.addEventListener("wheel", ev => {
    if (!ev.ctrlKey && !ev.metaKey) return;
    ev.preventDefault();
    zoom(2 ** (ev.deltaY / 200), clamp(unitAt(pointer(ev)), view[0], view[1]));
  }, { passive: false });
  svg.ondblclick = () => look(0, 1);

  new ResizeObserver(() => { if (svg.clientWidth !== width) draw(); }).observe(svg);
  draw();
  const told = document.querySelector(".told"), last = told.querySelector("tr.bad");
  if (last) told.scrollTop = Math.max(0, last.offsetTop - told.clientHeight + last.offsetHeight + 8);
})();
