"use strict";
// Draws the page from the JSON in it. Transcripts are untrusted: they go in as text, never as markup.
const R = JSON.parse(document.getElementById("results").textContent);
const PER_PAGE = 50;
const SLICES_SHOWN = 12, WORDS_SHOWN = 15;
const ERROR_BINS = [[0, 0, "none"], [0, 10, "to 10 %"], [10, 25, "to 25 %"], [25, 50, "to 50 %"], [50, 100, "to 100 %"], [100, Infinity, "over 100 %"]];
const FLAG_NAMES = { empty: "empty", loop: "loop", speed_outlier: "unlikely speed" };
const state = { model: 0, scoring: Math.min(1, R.scorings.length - 1), search: "", show: "all", sort: "errors", only: null, page: 0 };
const byId = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const percent = (value) => (value === 0 ? "0" : Math.abs(value) < 1000 ? value.toFixed(Math.abs(value) < 10 ? 2 : 1) : number.format(Math.round(value)));
const estimate = (e) => `${percent(e[0])} %`;
const signed = (value) => percent(value).replace("-", "−");
const few = "no interval";
const interval = (e) => (e[1] === null ? few : `${percent(e[1])} – ${percent(e[2])}`);
// An estimate without an interval is drawn as a point.
const low = (e) => e[1] ?? e[0], high = (e) => e[2] ?? e[0];
const title = (name) => (name[0].toUpperCase() + name.slice(1)).replaceAll("_", " ");
const scoringName = () => R.scorings[state.scoring].name;
const fold = (text) => text.normalize("NFD").replace(/[\u0300-\u0302\u0304-\u036f]/g, "").normalize("NFC").toLowerCase();
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name === "style") for (const [key, each] of Object.entries(value)) made.style.setProperty(key, each);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") made.toggleAttribute(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}
// Errors of every utterance under the chosen model and scoring, counted once per choice.
let counted = [];
function countErrors(model, scoring) {
  return R.utterances.map((utterance) => {
    const steps = { "=": 0, S: 0, D: 0, I: 0 };
    for (const step of utterance.models[model].alignments[scoring]) steps[step] += 1;
    const errors = steps.S + steps.D + steps.I, words = steps["="] + steps.S + steps.D;
    return { ...steps, errors, words, wer: (100 * errors) / Math.max(1, words) };
  });
}

function drawHeader() {
  const { source, num_utterances: count, seconds, rejected } = R.data;
  byId("source").textContent = source.split(/[\\/]/).slice(-2).join("/");
  byId("source").title = source;
  const length = seconds < 3600 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(2)} h`;
  const models = R.models.length === 1 ? "1 model" : `${R.models.length} models`;
  const left = rejected.length ? `${number.format(rejected.length)} rows left out` : "no row left out";
  byId("about").textContent = `${number.format(count)} utterances · ${length} of speech · ${models} · ${left} · decoded at full context`;
  const options = (id, names, chosen) => byId(id).append(...names.map(([value, name]) => element("option", { value, selected: value === chosen }, name)));
  options("model", R.models.map((model, i) => [i, model.name]), 0);
  options("scoring", R.scorings.map((scoring, i) => [i, title(scoring.name)]), state.scoring);
  options("show", [["all", "all"], ["wrong", "with errors"], ["right", "without errors"], ...Object.entries(FLAG_NAMES)], "all");
  const sorts = [["errors", "most errors"], ["wer", "highest WER"], ["longest", "longest"], ["shortest", "shortest"], ["fast", "most characters per second"], ["row", "row of the CSV"]];
  if (R.models.length > 1) sorts.splice(2, 0, ["worse", "worse than the best other model"], ["better", "better than the best other model"]);
  options("sort", sorts, "errors");
  if (rejected.length) {
    const rows = rejected.slice(0, 200).map((row) => element("tr", {}, element("td", { class: "name" }, String(row.row)), element("td", { class: "name" }, row.value), element("td", { class: "name" }, row.reason), element("td", { class: "name" }, row.detail)));
    const more = rejected.length > 200 ? element("p", { class: "muted" }, "The others are in rejected.csv.") : null;
    byId("rejected").append(element("details", {}, element("summary", {}, `${number.format(rejected.length)} rows left out, and why`), element("div", { class: "scroll" }, element("table", {}, element("tbody", {}, ...rows))), more));
  }
}

function drawHeadline() {
  const model = R.models[state.model], scores = model.scores[scoringName()];
  const card = (name, figure, detail, chosen = false) => element("dl", { class: chosen ? "card chosen" : "card" }, element("dt", {}, name), element("dd", { class: "figure" }, figure), element("dd", { class: "interval" }, detail));
  const rate = (name, e, chosen) => (e ? card(name, estimate(e), interval(e), chosen) : card(name, "–", "the references have none"));
  byId("headline").replaceChildren(
    ...R.scorings.map((scoring, i) => rate(`WER, ${scoring.name.replaceAll("_", " ")}`, model.scores[scoring.name].wer, i === state.scoring)),
    rate("CER", scores.cer), rate("Punctuation F1", model.punctuation_f1), rate("Capitals F1", model.capitalisation_f1),
    ...Object.entries(FLAG_NAMES).map(([flag, name]) => card(title(name), number.format(model.flags[flag].count), `${percent(model.flags[flag].share[0])} % of utterances`)),
  );
  drawWhiskers();
  const head = ["Model", "WER", "CER", "Substituted", "Lost", "Inserted"].map((name) => element("th", { scope: "col" }, name));
  const cell = (e) => element("td", {}, estimate(e), element("small", {}, interval(e)));
  const rows = R.models.map((each, i) => {
    const s = each.scores[scoringName()];
    return element("tr", { class: i === state.model ? "chosen" : "" }, element("th", { scope: "row" }, each.name, decodeOf(each)), ...[s.wer, s.cer, s.substitutions, s.deletions, s.insertions].map(cell));
  });
  const caption = `${title(scoringName())}; in percent of the reference's words, CER of its characters`;
  byId("scores").replaceChildren(element("caption", {}, caption), element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
  drawDifferences();
}

function decodeOf({ decode }) {
  const search = decode.num_beams === 1 ? "greedy" : `${decode.num_beams} beams`;
  const never = decode.never_written;
  const marks = never.length ? `, ${never.length} marks never written` : "";
  return element("small", never.length ? { title: `Never written: ${never.join(" ")}` } : {}, search + marks);
}

function drawWhiskers() {
  const all = R.models.map((model) => model.scores[scoringName()].wer);
  const least = Math.min(...all.map(low)), most = Math.max(...all.map(high), least + 0.01);
  const pad = (most - least) * 0.06, from = Math.max(0, least - pad), to = most + pad;
  const place = (value) => `${(100 * (value - from)) / (to - from)}%`;
  byId("whiskers").replaceChildren(...all.flatMap((e, i) => [
    element("button", { type: "button", "aria-pressed": String(i === state.model), onclick: () => choose({ model: i }) }, R.models[i].name),
    element("div", { class: i === state.model ? "track chosen" : "track", "aria-hidden": "true" },
      element("i", { class: "range", style: { left: place(low(e)), right: `calc(100% - ${place(high(e))})` } }), element("i", { class: "dot", style: { left: place(e[0]) } })),
    element("span", { class: "value" }, `${estimate(e)}  (${interval(e)})`),
  ]));
}

function drawDifferences() {
  const found = R.differences.filter((each) => each.scoring === scoringName() && each.rate === "wer");
  if (!found.length) return;
  const rows = found.map((d) => {
    const sure = d.low !== null && (d.low > 0 || d.high < 0);
    const verdict = d.value === 0 && d.p_value === 1 ? "no difference" : sure ? `${d.value < 0 ? d.first : d.second} is better` : "not told apart";
    return element("tr", {}, element("th", { scope: "row" }, `${d.first} − ${d.second}`), element("td", {}, signed(d.value)), element("td", {}, d.low === null ? few : `${signed(d.low)} to ${signed(d.high)}`), element("td", {}, d.p_value === null ? "–" : d.p_value < 0.001 ? "< 0.001" : d.p_value.toFixed(3)), element("td", { class: "name" }, verdict));
  });
  const head = ["Difference in WER", "points", "95 % interval", "p", ""].map((name) => element("th", { scope: "col" }, name));
  byId("differences").replaceChildren(element("div", { class: "scroll" }, element("table", {}, element("caption", {}, "Each pair on the same utterances (paired bootstrap, two-sided)"), element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows))));
}

function pressed(label) {
  return { type: "button", "aria-pressed": String(state.only !== null && state.only.label === label) };
}

function only(label, members) {
  const same = state.only !== null && state.only.label === label;
  choose({ only: same ? null : { label, members: new Set(members) } });
  if (!same) byId("utterances").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

// A list that shows its first items, and the others when asked.
function shortened(items, shown) {
  const list = element("ul", {}, ...items.slice(0, shown));
  if (items.length <= shown) return [list];
  const more = element("button", { type: "button", class: "more", onclick: () => { list.append(...items.slice(shown)); more.remove(); } }, `Show ${items.length - shown} more`);
  return [list, more];
}

function drawSlices() {
  byId("slices").replaceChildren(...R.slices.map((slice) => {
    const wers = slice.values.map((each) => each.wer[scoringName()][state.model]);
    // By those seen at first: the interval of one rare value would flatten all others.
    const scale = Math.max(...wers.slice(0, SLICES_SHOWN).map(high), ...wers.map((e) => e[0]), 1);
    const rows = slice.values.map((each, i) => {
      const label = `${slice.column}: ${each.value}`, e = wers[i], end = (value) => `${(100 * value) / scale}%`;
      const plot = element("span", { class: "plot", "aria-hidden": "true" }, element("i", { class: "fill", style: { width: end(e[0]) } }), element("i", { class: "range", style: { left: end(low(e)), width: end(high(e) - low(e)) } }), ...(e[1] === null ? [] : [element("i", { class: "end", style: { left: end(low(e)) } }), element("i", { class: "end", style: { left: `calc(${end(high(e))} - 1.5px)` } })]));
      const name = element("span", { class: "label", title: each.value }, element("span", {}, each.value), element("small", {}, `${number.format(each.utterances.length)}`, element("span", { class: "hidden" }, " utterances")));
      return element("li", {}, element("button", { ...pressed(label), class: "row slice", title: `${estimate(e)} (${interval(e)}), ${each.utterances.length} utterances`, onclick: () => only(label, each.utterances) }, name, plot, element("span", { class: "amount" }, estimate(e))));
    });
    return element("div", { class: "panel" }, element("h3", {}, title(slice.column)), ...shortened(rows, SLICES_SHOWN));
  }));
}

function drawHeat() {
  const durations = R.slices.find((slice) => slice.column === "duration").values;
  const inBin = ([low, high], wer) => (high === 0 ? wer === 0 : wer > low && wer <= high);
  const head = element("tr", {}, element("th", { scope: "col" }, "WER"), ...durations.map((each) => element("th", { scope: "col" }, each.value)));
  const rows = ERROR_BINS.map((bin) => element("tr", {}, element("th", { scope: "row" }, bin[2]), ...durations.map((each) => {
    const members = each.utterances.filter((i) => inBin(bin, counted[i].wer));
    if (!members.length) return element("td", {}, element("button", { type: "button", disabled: true, "aria-label": "none" }, "·"));
    const share = members.length / each.utterances.length, label = `${each.value}, errors ${bin[2]}`;
    // Never so dark that the ink on it could not be read.
    const style = { background: `color-mix(in oklab, var(--heat) calc(4% + ${share.toFixed(3)} * var(--heat-most)), var(--card))` };
    return element("td", {}, element("button", { ...pressed(label), style, "aria-label": `${members.length} utterances of ${each.value} with errors: ${bin[2]}`, onclick: () => only(label, members) }, number.format(members.length)));
  })));
  byId("heat").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

// Positions of the utterances in which these words stand against each other.
function having(step, reference, hypothesis) {
  const found = [];
  R.utterances.forEach((utterance, number) => {
    for (const pair of pairs(utterance, utterance.models[state.model])) if (pair[0] === step && pair[1] === reference && pair[2] === hypothesis) { found.push(number); break; }
  });
  return found;
}

function drawConfusions() {
  const { substitutions, deletions, insertions } = R.models[state.model].confusions[scoringName()];
  const panel = (name, step, items, write) => {
    const most = Math.max(1, ...items.map((item) => item[2]));
    const rows = items.map(([reference, hypothesis, count]) => {
      const label = `${name.toLowerCase()}: ${write(reference, hypothesis)}`;
      return element("li", {}, element("button", { ...pressed(label), class: "row word", onclick: () => only(label, having(step, reference, hypothesis)) },
        element("span", { class: "label" }, element("span", {}, write(reference, hypothesis))), element("span", { class: "plot", "aria-hidden": "true" }, element("i", { class: "fill", style: { width: `${(100 * count) / most}%` } })), element("span", { class: "amount" }, number.format(count))));
    });
    return element("div", { class: "panel" }, element("h3", {}, name), ...(rows.length ? shortened(rows, WORDS_SHOWN) : [element("p", { class: "muted" }, "None.")]));
  };
  byId("confusions").replaceChildren(panel("Substituted", "S", substitutions, (r, h) => `${r} → ${h}`), panel("Lost", "D", deletions, (r) => r), panel("Inserted", "I", insertions, (_, h) => h));
}

function pairs(utterance, model) {
  const reference = utterance.references[state.scoring].split(" "), hypothesis = model.hypotheses[state.scoring].split(" ");
  let i = 0, j = 0;
  return [...model.alignments[state.scoring]].map((step) => [step, step === "I" ? "" : reference[i++], step === "D" ? "" : hypothesis[j++]]);
}

function searched(utterance, query) {
  utterance.folded ??= {};
  utterance.folded[state.model] ??= fold([utterance.row, utterance.audio, ...utterance.references, ...utterance.models[state.model].hypotheses].join("\n"));
  return utterance.folded[state.model].includes(query);
}

function selected() {
  const query = fold(state.search.trim());
  const kept = [...R.utterances.keys()].filter((i) => {
    if (state.only && !state.only.members.has(i)) return false;
    if (state.show === "wrong" && counted[i].errors === 0) return false;
    if (state.show === "right" && counted[i].errors > 0) return false;
    if (state.show in FLAG_NAMES && !R.utterances[i].models[state.model].flags.includes(state.show)) return false;
    return !query || searched(R.utterances[i], query);
  });
  const seconds = (i) => R.utterances[i].seconds;
  const speed = (i) => R.utterances[i].models[state.model].characters_per_second;
  let behind = () => 0;
  if (state.sort === "worse" || state.sort === "better") {
    const others = R.models.map((_, m) => m).filter((m) => m !== state.model).map((m) => countErrors(m, state.scoring));
    behind = (i) => counted[i].errors - Math.min(...others.map((each) => each[i].errors));
  }
  const orders = {
    errors: (a, b) => counted[b].errors - counted[a].errors || counted[b].wer - counted[a].wer, wer: (a, b) => counted[b].wer - counted[a].wer,
    worse: (a, b) => behind(b) - behind(a), better: (a, b) => behind(a) - behind(b),
    longest: (a, b) => seconds(b) - seconds(a), shortest: (a, b) => seconds(a) - seconds(b), fast: (a, b) => speed(b) - speed(a), row: () => 0,
  };
  return kept.sort((a, b) => orders[state.sort](a, b) || a - b);
}

function drawUtterance(i) {
  const utterance = R.utterances[i], model = utterance.models[state.model], c = counted[i];
  const errors = c.errors === 0 ? "no errors" : `WER ${percent(c.wer)} %`;
  const detail = c.errors === 0 ? `${c.words} words` : `${c.S} substituted, ${c.D} lost, ${c.I} inserted of ${c.words}`;
  const meta = element("div", { class: "meta" }, element("b", {}, errors), element("span", {}, detail), element("span", {}, `row ${utterance.row}`), element("span", {}, `${utterance.seconds.toFixed(1)} s`), ...Object.entries(utterance.columns).filter(([, value]) => value && value.length <= 40).map(([name, value]) => element("span", {}, `${name}: ${value}`)), ...model.flags.map((flag) => element("span", { class: "flag" }, FLAG_NAMES[flag])), player(utterance));
  const sides = element("span", { class: "sides", "aria-hidden": "true" }, element("span", {}, "said"), element("span", {}, "heard"));
  const kinds = { "=": ["same", ""], S: ["sub", "substituted: "], D: ["del", "lost: "], I: ["ins", "inserted: "] };
  const words = pairs(utterance, model).map(([step, reference, hypothesis]) => element("span", { class: `pair ${kinds[step][0]}` }, element("span", { class: "reference" }, kinds[step][1] ? element("span", { class: "hidden" }, kinds[step][1]) : null, reference || "\u00a0"), element("span", { class: "hypothesis", "aria-hidden": String(step === "=") }, hypothesis || "\u00a0")));
  const others = R.models.flatMap((other, m) => {
    if (m === state.model) return [];
    const steps = utterance.models[m].alignments[state.scoring], wrong = steps.length - steps.split("=").length + 1;
    return [element("dt", {}, other.name), element("dd", { class: "muted" }, wrong === 1 ? "1 error" : `${wrong} errors`), element("dd", { lang: "es" }, utterance.models[m].hypotheses[state.scoring] || "(empty)")];
  });
  return element("li", {}, meta, element("div", { class: "aligned", lang: "es" }, sides, ...words), others.length ? element("dl", { class: "others" }, ...others) : null);
}

function player(utterance) {
  if (!utterance.url) return element("span", { class: "silent" }, utterance.audio);
  const audio = element("audio", { controls: true, preload: "none", src: utterance.url, "aria-label": `Row ${utterance.row}: ${utterance.audio}`, title: utterance.audio });
  audio.addEventListener("error", () => audio.replaceWith(element("a", { class: "silent", href: utterance.url }, "not found, or of a kind this browser does not play")), { once: true });
  audio.addEventListener("play", () => document.querySelectorAll("audio").forEach((other) => other !== audio && other.pause()));
  return audio;
}

function drawList() {
  const found = selected(), pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
  state.page = Math.min(state.page, pages - 1);
  const start = state.page * PER_PAGE, shown = found.slice(start, start + PER_PAGE);
  byId("list").replaceChildren(...shown.map(drawUtterance));
  byId("count").textContent = found.length ? `${number.format(start + 1)}–${number.format(start + shown.length)} of ${number.format(found.length)} utterances` : "No utterance is like this.";
  byId("page").textContent = `Page ${state.page + 1} of ${pages}`;
  byId("previous").disabled = state.page === 0;
  byId("next").disabled = state.page === pages - 1;
  byId("clear").hidden = state.only === null;
  byId("clear").textContent = state.only ? `${state.only.label} ✕` : "";
  byId("clear").setAttribute("aria-label", state.only ? `Show all again, not only ${state.only.label}` : "");
}

function draw() {
  counted = countErrors(state.model, state.scoring);
  byId("model").value = state.model;
  byId("scoring").value = state.scoring;
  byId("meaning").textContent = R.scorings[state.scoring].meaning;
  drawHeadline();
  drawSlices();
  drawHeat();
  drawConfusions();
  drawList();
}

function choose(change) {
  const focused = document.activeElement, place = focused && focused.closest("#slices, #heat, #confusions, #whiskers");
  const position = place ? [...place.querySelectorAll("button")].indexOf(focused) : -1;
  // What was chosen by its errors is another set under another model or scoring.
  if ("model" in change || "scoring" in change) state.only = null;
  Object.assign(state, { page: 0 }, change);
  draw();
  if (position >= 0) place.querySelectorAll("button")[position]?.focus({ preventScroll: true });
}

function list(change) {
  Object.assign(state, { page: 0 }, change);
  drawList();
}

drawHeader();
draw();
byId("model").addEventListener("change", (event) => choose({ model: Number(event.target.value) }));
byId("scoring").addEventListener("change", (event) => choose({ scoring: Number(event.target.value) }));
byId("show").addEventListener("change", (event) => list({ show: event.target.value }));
byId("sort").addEventListener("change", (event) => list({ sort: event.target.value }));
byId("search").addEventListener("input", (event) => list({ search: event.target.value }));
byId("tools").addEventListener("submit", (event) => event.preventDefault());
byId("clear").addEventListener("click", () => choose({ only: null }));
for (const [id, step] of [["previous", -1], ["next", 1]]) byId(id).addEventListener("click", () => { list({ page: state.page + step }); byId("utterances").scrollIntoView(); byId("utterances").focus({ preventScroll: true }); });
