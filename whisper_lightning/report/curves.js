// A run's training, on the page of its report: curves over the steps, models between before and after, settings.
const T = R.training;
const SVG = "http://www.w3.org/2000/svg";
const RIGHT = 12, TOP = 36, BOTTOM = 36, LETTER = 6.6;
// So many steps of one curve are noise to the eye; their mean over a thirtieth of the run is drawn over them.
const NOISY = 60;
const sign = (value) => (value > 0 ? `+${percent(value)}` : signed(value));
const short = (value) => (Math.abs(value) < 1 ? value.toPrecision(3) : value.toFixed(2)).replace("-", "−");
const points = (value) => `${sign(value)} points`;
const share = (value) => `${percent(value)} %`;
const ofStep = (step) => `step ${number.format(step)}`;
const ofAlpha = (alpha) => `alpha ${Number(alpha.toFixed(3))}`;
const hasEnds = (point) => (point[2] ?? null) !== null;

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Round values between two ends, about `count` of them, and the decimals that they need.
function ticks(from, to, count, whole = false) {
  const rough = (to - from) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(whole ? 1 : 0, power * [1, 2, 5, 10].find((each) => each * power >= rough * 0.999));
  const values = [];
  for (let i = Math.ceil(from / step - 1e-9); i <= to / step + 1e-9; i++) values.push(i * step || 0); // never -0
  return { values, decimals: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

function meanOf(all) {
  const half = Math.ceil(all.length / 60), sums = [0];
  for (const [, y] of all) sums.push(sums[sums.length - 1] + y);
  return all.map(([x], i) => {
    const from = Math.max(0, i - half), to = Math.min(all.length, i + half + 1);
    return [x, (sums[to] - sums[from]) / (to - from)];
  });
}

// What is drawn: noisy lines faint, and their mean over them. Lines that are only read out (`silent`) are not.
function drawn(lines) {
  return lines.filter((line) => !line.silent).flatMap((line) => (line.points.length > NOISY && !line.dots
    ? [{ ...line, faint: true }, { ...line, name: `${line.name}, running mean`, points: meanOf(line.points) }] : [line]));
}

// A chart: {title, unit, x, to, lines, value, at, whole, zero, mark, small}, whose x goes from 0 to `to`; `value` and
// `at` write a y and an x. A line is {name, kind, points, dots, whiskers, hollow, silent, note, value}, a point is
// [x, y, low, high], the mark {x, text}.
function chart(spec) {
  const lines = drawn(spec.lines), height = spec.small ? 200 : 270;
  const xs = [...new Set(spec.lines.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
  const read = (x) => {
    const told = spec.lines.flatMap((line) => line.points.filter((point) => point[0] === x).map((point) => {
      const [value, low, high] = point.slice(1).map((y) => (y === null ? "" : (line.value ?? spec.value)(y)));
      const ends = hasEnds(point) ? ` (${low.split(" ")[0]} to ${high.split(" ")[0]})` : "";
      return `${line.name} ${value}${ends}${line.note?.(x) ?? ""}`;
    }));
    return `${spec.at(x)}: ${told.join(" · ")}`;
  };
  const start = spec.mark && xs.includes(spec.mark.x) ? spec.mark.x : xs[xs.length - 1];
  const place = element("div", { class: "plot-area" }), readout = element("p", { class: "readout muted", "aria-live": "polite" }, read(start));
  const legend = lines.length > 1 ? [element("ul", { class: "keys" }, ...lines.map((line) => element("li", {}, svg("svg", { width: 28, height: 10, "aria-hidden": "true" }, svg("path", { class: `curve ${line.kind}${line.faint ? " faint" : ""}`, d: "M1 5H27" })), line.name)))] : [];
  let picture = null, at = start, width = 0;
  const look = (x) => { at = x; picture.rule(x); readout.textContent = read(x); };
  const draw = () => {
    width = place.clientWidth;
    const focused = picture !== null && document.activeElement === picture.node;
    picture = plot(spec, lines, xs, width, height, read);
    picture.node.addEventListener("pointermove", (event) => look(picture.nearest(event.offsetX)));
    picture.node.addEventListener("pointerleave", () => look(start));
    picture.node.addEventListener("focus", () => look(at));
    picture.node.addEventListener("keydown", (event) => {
      const i = xs.indexOf(at), to = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: xs.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      look(xs[Math.min(xs.length - 1, Math.max(0, to))]);
    });
    place.replaceChildren(picture.node);
    if (focused) picture.node.focus({ preventScroll: true });
  };
  new ResizeObserver(() => { if (place.clientWidth > 0 && place.clientWidth !== width) draw(); }).observe(place);
  return element("figure", { class: "panel chart" }, element("figcaption", {}, spec.title), ...legend, place, readout);
}

// In words, for who does not see it.
function describe(spec, read) {
  const told = spec.lines.filter((line) => line.points.length).map(({ name, points: all, value = spec.value }) => {
    const first = all[0], last = all[all.length - 1], least = all.reduce((a, b) => (b[1] < a[1] ? b : a));
    return `${name}: ${value(first[1])} at ${spec.at(first[0])}, ${value(last[1])} at ${spec.at(last[0])}, lowest ${value(least[1])} at ${spec.at(least[0])}`;
  });
  return `${spec.title}, ${spec.unit}. ${told.join("; ")}.${spec.mark ? ` Marked: ${spec.mark.text}.` : ""} Arrow keys read the values.`;
}

function plot(spec, lines, xs, width, height, read) {
  const all = lines.flatMap((line) => line.points.flatMap((point) => [point[1], ...(hasEnds(point) ? point.slice(2, 4) : [])]));
  let least = all.reduce((a, b) => Math.min(a, b), spec.zero ? 0 : Infinity), most = all.reduce((a, b) => Math.max(a, b), spec.zero ? 0 : -Infinity);
  const pad = (most - least || Math.abs(most) || 1) * 0.08;
  [least, most] = [least >= 0 ? Math.max(0, least - pad) : least - pad, most + pad];
  const levels = ticks(least, most, spec.small ? 4 : 5), level = (y) => y.toFixed(levels.decimals).replace("-", "−");
  const left = Math.max(...levels.values.map((y) => level(y).length)) * LETTER + 12;
  const from = 0, to = spec.to || 1;
  const X = (x) => left + 6 + ((x - from) / (to - from)) * (width - left - RIGHT - 6), Y = (y) => TOP + ((most - y) / (most - least)) * (height - TOP - BOTTOM);
  const near = (value) => value.toFixed(1);
  const foot = height - BOTTOM, across = ticks(from, to, Math.max(2, Math.floor((width - left) / 90)), spec.whole);
  const grid = [
    ...levels.values.map((y) => svg("g", {}, svg("path", { class: "grid-line", d: `M${near(left)} ${near(Y(y))}H${width - RIGHT}` }), svg("text", { class: "tick", x: near(left - 6), y: near(Y(y) + 4), "text-anchor": "end" }, level(y)))),
    ...across.values.map((x) => svg("g", {}, svg("path", { class: "axis", d: `M${near(X(x))} ${foot}v4` }), svg("text", { class: "tick", x: near(X(x)), y: foot + 17, "text-anchor": X(x) > width - 24 ? "end" : "middle" }, spec.whole ? number.format(x) : x.toFixed(across.decimals)))),
    svg("path", { class: "axis", d: `M${near(left)} ${foot}H${width - RIGHT}` }),
    svg("text", { class: "tick", x: 0, y: 11 }, spec.unit), svg("text", { class: "tick", x: width - RIGHT, y: height - 3, "text-anchor": "end" }, spec.x),
  ];
  if (spec.zero) grid.push(svg("path", { class: "zero", d: `M${near(left)} ${near(Y(0))}H${width - RIGHT}` }));
  if (spec.mark && spec.mark.x <= to) {
    const x = X(spec.mark.x), end = x > left + (width - left) / 2;
    grid.push(svg("path", { class: "mark", d: `M${near(x)} ${TOP - 18}V${foot}` }), svg("text", { class: "mark-text", x: near(end ? x - 5 : x + 5), y: TOP - 8, "text-anchor": end ? "end" : "start" }, spec.mark.text));
  }
  const path = (list) => list.map((point, i) => `${i ? "L" : "M"}${near(X(point[0]))} ${near(Y(point[1]))}`).join("");
  const shapes = lines.flatMap(({ kind, points: list, dots, faint, hollow, whiskers }) => {
    const sure = list.filter(hasEnds), made = [];
    if (whiskers) made.push(...sure.map((point) => svg("path", { class: `whisker ${kind}`, d: `M${near(X(point[0]))} ${near(Y(point[2]))}V${near(Y(point[3]))}` })));
    else if (sure.length) made.push(svg("path", { class: `band ${kind}`, d: `${path(sure.map((p) => [p[0], p[3]]))}${path(sure.map((p) => [p[0], p[2]]).reverse()).replace("M", "L")}Z` }));
    made.push(svg("path", { class: `curve ${kind}${faint ? " faint" : ""}`, d: path(list) }));
    // Where there is but one point there is no line.
    if (dots || list.length === 1) made.push(...list.map((point) => svg("circle", { class: `dot-mark ${kind}${hollow?.(point[0]) ? " hollow" : ""}${spec.mark?.x === point[0] ? " best" : ""}`, cx: near(X(point[0])), cy: near(Y(point[1])), r: spec.mark?.x === point[0] ? 5.5 : list.length > NOISY ? 2 : 3.5 }, svg("title", {}, read(point[0])))));
    return made;
  });
  const rule = svg("path", { class: "rule", d: "" });
  const node = svg("svg", { class: "picture", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": describe(spec, read) }, ...grid, rule, ...shapes);
  return {
    node,
    rule: (x) => rule.setAttribute("d", `M${near(X(x))} ${TOP}V${foot}`),
    nearest: (offset) => xs.reduce((a, b) => (Math.abs(X(b) - offset) < Math.abs(X(a) - offset) ? b : a)),
  };
}

function stepCharts() {
  const all = [...Object.values(T.curves), ...T.guards.map((guard) => guard.differences)];
  const to = Math.max(0, ...all.filter((each) => each.length).map((each) => each[each.length - 1][0]));
  const mark = { x: T.best_step, text: `best/: ${ofStep(T.best_step)}` }, over = { to, x: "optimizer steps", at: ofStep, whole: true, mark };
  const line = (name, kind, dots) => (T.curves[name] ? [{ name, kind, dots, points: T.curves[name] }] : []);
  const charts = [
    { ...over, title: "Loss", unit: "nats per token", value: short, lines: [...line("train/loss", "one", false), ...line("val/loss", "two", true)] },
    { ...over, title: "Word error rate of the validation", unit: "WER, %", value: share, lines: [...line("val/wer", "one", true), ...line("val/wer_normalized", "two", true)] },
  ];
  const guards = T.guards.filter((guard) => guard.differences.length).map((guard) => ({
    ...over, small: true, zero: true, title: `Guard: ${guard.name}`, unit: "points of normalized WER, now − before", value: points,
    lines: [{ name: "difference", kind: "one", dots: true, points: guard.differences }, { name: "WER", kind: "two", silent: true, value: share, points: guard.wer }],
  }));
  return [charts.filter((each) => each.lines.length), guards];
}

function blendCharts() {
  const chosen = T.blends.find((blend) => blend.chosen), refused = new Set(T.blends.filter((blend) => !blend.admitted).map((blend) => blend.alpha));
  const over = { to: 1, x: "alpha: 0 the starting model, 1 the tuned one", at: ofAlpha, mark: chosen && { x: chosen.alpha, text: `chosen: ${ofAlpha(chosen.alpha)}` } };
  const shared = { kind: "one", dots: true, hollow: (alpha) => refused.has(alpha) };
  const note = (alpha) => (refused.has(alpha) ? ", not admitted" : "");
  const wer = { ...over, title: "Between the starting and the tuned model", unit: "WER of the validation, %", value: share, lines: [{ ...shared, note, name: "val/wer", whiskers: true, points: T.blends.map((blend) => [blend.alpha, ...blend.wer]) }] };
  const names = [...new Set(T.blends.flatMap((blend) => Object.keys(blend.guards)))];
  const guards = names.map((name) => ({ ...over, x: "alpha", small: true, zero: true, title: `Guard: ${name}`, unit: "points of normalized WER, blend − before", value: points, lines: [{ ...shared, name: "difference", points: T.blends.filter((blend) => blend.guards[name]).map((blend) => [blend.alpha, ...blend.guards[name]]) }] }));
  return [[wer], guards];
}

function settings() {
  const head = element("tr", {}, ...["Option", "this run", "default"].map((name) => element("th", { scope: "col" }, name)));
  const rows = T.changed.map((each) => element("tr", {}, element("th", { scope: "row" }, each.name), element("td", {}, each.value), element("td", { class: "muted" }, each.default)));
  const table = rows.length ? element("table", { class: "settings" }, element("caption", {}, "Where it differs from the defaults"), element("thead", {}, head), element("tbody", {}, ...rows)) : element("p", { class: "muted" }, "Everything is at its default.");
  return [element("h3", {}, "Settings"), table, element("details", {}, element("summary", {}, "All settings (config.yaml)"), element("pre", { class: "scroll", tabindex: 0 }, T.config))];
}

function drawTraining() {
  document.querySelector(".kicker").textContent = R.models.length > 1 ? "A training run, after against before" : "A training run";
  byId("about").textContent = `${byId("source").textContent} · ${byId("about").textContent}`;
  byId("source").textContent = T.name;
  document.querySelector("header").append(...T.remarks.map((remark) => element("p", { class: "remark" }, `${remark}.`)));
  const grid = (specs, small) => (specs.length ? [element("div", { class: small ? "grid three" : "grid" }, ...specs.map(chart))] : []);
  const note = (text) => element("p", { class: "muted note" }, text);
  const [curves, guards] = stepCharts();
  const parts = [element("h2", { id: "training-title" }, "Training"), ...grid(curves, false)];
  if (guards.length) parts.push(element("h3", {}, "Guards over the steps"), note("Other speech that the training shall not make worse: WER now minus WER before training, with its 95\u202f% interval. Below 0 it has become better."), ...grid(guards, true));
  if (T.blends.length) {
    const [wer, differences] = blendCharts();
    parts.push(element("h3", {}, "Interpolation"), note("Models whose weights lie between those before and after, with 95\u202f% intervals. Hollow ones were not admitted."), ...grid(wer, false), ...grid(differences, true));
  }
  const section = element("section", { id: "training", "aria-labelledby": "training-title" }, ...parts, ...settings());
  document.querySelector("main > section").after(section);
}

if (T) drawTraining();
