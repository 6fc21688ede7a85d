"use strict";
// The page keeps all of its state in the address, so that every view has a link. Texts of a run are only ever set as
// text, never as HTML.
const ROW = 44, COLUMNS = 8; // pixels of a row of the list; frames in a row of a sheet
const $ = (id) => document.getElementById(id);
const embedded = document.getElementById("data");
let runs = [];
let shown = []; // places of the groups that pass the filters, in their order
let state = { run: 0, group: null, text: "", task: "", only: "", sort: "step" };

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
// Texts of a run: characters that are not seen, or turn round the text behind them, are shown by name, each text apart.
const visible = (text) => String(text ?? "").replace(/[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g,
  (c) => c < " " ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : "[U+" + c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0") + "]");
const apart = (text) => element("bdi", {}, visible(text));
const number = (value, digits = 3) => (value === null || value === undefined ? "-" : Number(value).toFixed(digits).replace(/^-(0\.?0*)$/, "$1"));
const short = (text, most) => (text.length <= most ? text : text.slice(0, most) + "…");
const sign = (value) => (value > 0 ? "plus" : value < 0 ? "minus" : "quiet");
const columns = () => runs[state.run].groups;

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const key of ["text", "task", "only"]) state[key] = given.get(key) || "";
  state.sort = given.get("sort") || "step";
  state.run = Math.min(Math.max(0, Number(given.get("run")) || 0), runs.length - 1);
  const group = given.get("group");
  state.group = group === null || !/^\d+$/.test(group) ? null : Number(group);
  for (const key of ["text", "task", "only", "sort"]) $(key).value = state[key];
  $("run").value = String(state.run);
}
function writeAddress() {
  const said = new URLSearchParams();
  for (const [key, value] of Object.entries(state)) if (value !== "" && value !== null) said.set(key, value);
  history.replaceState(null, "", "#" + said.toString());
}

// ---------------------------------------------------------------------------------------------- signs and curves

function drawSigns() {
  const about = runs[state.run].signs.map((sign) =>
    element("div", { class: sign.trouble ? "sign trouble" : "sign" },
      element("strong", {}, sign.name + ": " + number(sign.value, 2)),
      element("p", { class: "quiet" }, sign.meaning + " (trouble past " + number(sign.limit, 2) + ")"),
      ...sign.groups.map((place) => element("button", { type: "button", onclick: () => open(place) }, "step " + columns().step[place]))));
  $("signs").replaceChildren(...about);
}
function drawCurves() {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))];
  const isBound = (name) => /\/(low|high)$/.test(name) && names.includes(name.replace(/\/(low|high)$/, ""));
  $("curves").replaceChildren(...names.filter((name) => !isBound(name)).map(curveOf));
}
// A line for each run, a dot where there is one point, and a band between <name>/low and <name>/high.
function curveOf(name) {
  const [lines, lows, highs] = ["", "/low", "/high"].map((end) => runs.map((run) => run.curves[name + end] || []));
  const points = [...lines, ...lows, ...highs].flat(), xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const share = (value, from, to) => (to > from ? (value - from) / (to - from) : 0.5);
  const at = (p) => [(4 + 212 * share(p[0], left, right)).toFixed(1), (76 - 72 * share(p[1], low, high)).toFixed(1)];
  const drawn = (kind, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const joined = (some) => some.map((p) => at(p).join(",")).join(" ");
  const svg = drawn("svg", { viewBox: "0 0 220 80", role: "img", "aria-label": name + ", from " + number(low) + " to " + number(high) });
  lines.forEach((line, i) => {
    const color = "run" + (i % 3);
    if (lows[i].length && highs[i].length) svg.append(drawn("polygon", { class: color, points: joined([...lows[i], ...[...highs[i]].reverse()]) }));
    if (line.length === 1) svg.append(drawn("circle", { class: color, cx: at(line[0])[0], cy: at(line[0])[1], r: 3 }));
    else svg.append(drawn("polyline", { class: color, points: joined(line) }));
  });
  const end = (line, digits) => (line.length ? number(line[line.length - 1][1], digits) : "-");
  const bounds = (i) => (lows[i].length && highs[i].length ? " (" + end(lows[i], 2) + "–" + end(highs[i], 2) + ")" : "");
  const last = lines.map((line) => end(line)).join(" | ") + (lines.length === 1 ? bounds(0) : ""); // of several there is no room
  const about = name + ", " + number(low) + " to " + number(high) + "; last " + lines.map((line, i) => end(line) + bounds(i)).join(" | ");
  return element("figure", { class: "curve" }, element("figcaption", { title: about }, element("span", {}, name), element("b", {}, last)), svg);
}

// ----------------------------------------------------------------------------------------------------- the list

function filter() {
  const c = columns(), words = state.text.toLowerCase();
  const passes = (i) =>
    (!words || [c.id[i], c.question[i], c.best[i] || ""].some((text) => text.toLowerCase().includes(words))) &&
    (!state.task || c.task[i] === state.task) &&
    (!state.only || (state.only === "disagrees" ? c.agrees[i] !== null && c.agrees[i] < 0 : c[state.only][i] === true));
  shown = [...c.step.keys()].filter(passes);
  const down = state.sort.startsWith("-"), by = c[state.sort.replace("-", "")];
  const unknown = (value) => value === null || value === undefined;
  shown.sort((i, j) => {
    if (unknown(by[i]) || unknown(by[j])) return unknown(by[i]) - unknown(by[j]) || i - j;
    return (by[i] < by[j] ? -1 : by[i] > by[j] ? 1 : 0) * (down ? -1 : 1) || i - j;
  });
  $("count").textContent = shown.length + " of " + c.step.length + " groups";
  $("space").style.height = shown.length * ROW + "px";
  drawRows();
}
function drawRows() {
  const box = $("rows"), c = columns();
  const first = Math.max(0, Math.floor(box.scrollTop / ROW) - 5);
  const last = Math.min(shown.length, first + Math.ceil(box.clientHeight / ROW) + 10);
  const rows = shown.slice(first, last).map((place, k) => {
    const marks = [c.failed[place] ? "unranked" : c.tied[place] ? "tied" : null, c.overruled[place] ? "overruled" : null];
    const row = element("div", { class: place === state.group ? "row picked" : "row", role: "option", "aria-selected": String(place === state.group), onclick: () => open(place) },
      element("div", {}, "step " + c.step[place] + "  ", element("span", { class: "quiet" }, apart(c.id[place]), " " + marks.filter(Boolean).join(", "))),
      element("div", {}, apart(c.question[place]), " → ", element("b", {}, apart(c.best[place] ?? "-"))));
    row.style.top = (first + k) * ROW + "px";
    return row;
  });
  $("space").replaceChildren(...rows);
}
function move(by) {
  const at = shown.indexOf(state.group), next = Math.min(Math.max(0, at + by), shown.length - 1);
  if (shown.length) open(shown[next]);
  const box = $("rows"), top = next * ROW;
  if (top < box.scrollTop) box.scrollTop = top;
  if (top + ROW > box.scrollTop + box.clientHeight) box.scrollTop = top + ROW - box.clientHeight;
}

// ---------------------------------------------------------------------------------------------------- one group

async function fetchGroup(run, place) {
  if (embedded) return runs[run].whole[place] ?? null;
  const reply = await fetch("api/group/" + run + "/" + place);
  return reply.ok ? reply.json() : null;
}
async function open(place) {
  state.group = place;
  writeAddress();
  drawRows();
  const run = state.run, group = await fetchGroup(run, place);
  if (state.group !== place || state.run !== run) return; // another was opened meanwhile
  if (group === null) return $("group").replaceChildren(element("p", {}, "This group is no longer kept."));
  if (group.step !== columns().step[place] || group.prompt.id !== columns().id[place]) // read again by another page
    return $("group").replaceChildren(element("p", {}, "The run has changed since this list was made: read it again."));
  const others = [];
  for (const [i, other] of runs.entries()) {
    if (i === run) continue;
    const same = other.groups.id.map((id, n) => (id === group.prompt.id ? n : -1)).filter((n) => n >= 0);
    const near = same.sort((a, b) => Math.abs(other.groups.step[a] - group.step) - Math.abs(other.groups.step[b] - group.step))[0];
    if (near !== undefined) others.push([i, near, await fetchGroup(i, near)]);
  }
  if (state.group !== place || state.run !== run) return;
  const c = columns(), again = [...c.step.keys()].filter((i) => c.id[i] === group.prompt.id);
  const parts = [
    element("h2", {}, apart(group.prompt.question)),
    element("p", { class: "quiet" }, "step " + group.step + ", epoch " + group.epoch + ", prompt ", apart(group.prompt.id),
      ...(group.prompt.answer ? ["; reference: ", apart(group.prompt.answer)] : []), "; rollout " + number(group.seconds.rollout, 2) + " s, oracle " + number(group.seconds.oracle, 2) + " s (batch)"),
    ...mediaOf(group, run, place),
    element("div", { class: "others" }, "This prompt over time: ", ...again.map((i) =>
      element("button", { type: "button", "aria-pressed": String(i === place), onclick: () => open(i) }, "step " + c.step[i]))),
    group.failure ? element("p", { class: "minus" }, apart(group.failure)) : null,
    ...answersOf(group),
    ...others.flatMap(([i, near, other]) => other === null ? [] :
      [element("h2", { class: "run" + (i % 3) }, apart(runs[i].name), ", step " + runs[i].groups.step[near]), ...answersOf(other)]),
    ...wordsOf(group)];
  $("group").replaceChildren(...parts.filter((part) => part !== null));
}
function mediaOf(group, run, place) {
  return group.seen.flatMap((item, n) => {
    const span = item.times_s ? "#t=" + item.times_s[0] + "," + (item.times_s[item.times_s.length - 1] + 0.1) : "";
    const frames = element("div", { class: "frames" }), note = element("p", { class: "quiet" }, apart(item.path));
    const says = (words) => note.replaceChildren(apart(item.path), " (" + words + ")");
    showSheet(frames, item, sheetOf(run, place, n), () => says(embedded ? "its frames are not in this file" : "no frames to be had here"));
    const video = embedded || !item.times_s || !item.plays ? null :
      element("video", { controls: "", preload: "metadata", muted: "", src: "media/" + [run, place, n].join("/") + span, onerror: () => video.remove() });
    return [video, frames, note];
  });
}
// The address of a sheet of frames; of an exported page those that it holds.
const made = {};
function sheetOf(run, place, n) {
  if (!embedded) return "sheet/" + [run, place, n].join("/");
  const key = runs[run].sheet_of[place + "/" + n];
  if (key === undefined) return null;
  if (!(key in made)) {
    const bytes = Uint8Array.from(atob(runs[run].sheets[key]), (c) => c.charCodeAt(0));
    made[key] = URL.createObjectURL(new Blob([bytes], { type: "image/webp" }));
  }
  return made[key];
}
// Cuts the frames out of a sheet: COLUMNS in a row, all of one size.
function showSheet(box, item, source, failed) {
  if (source === null) return failed();
  const count = item.shown.length, wide = Math.min(COLUMNS, count), high = Math.ceil(count / wide);
  const sheet = new Image();
  sheet.onerror = failed;
  sheet.onload = () => {
    const width = (96 * (sheet.naturalWidth / wide)) / (sheet.naturalHeight / high);
    box.replaceChildren(...item.shown.map((place, k) => {
      const time = item.times_s ? number(item.times_s[place], 2) + " s" : "";
      const frame = element("div", { class: "frame", role: "img", "aria-label": time ? "frame at " + time : "image" });
      Object.assign(frame.style, { width: width + "px", backgroundImage: 'url("' + source + '")',
        backgroundSize: wide * width + "px " + high * 96 + "px", backgroundPosition: -(k % wide) * width + "px " + -Math.floor(k / wide) * 96 + "px" });
      return element("figure", {}, frame, time);
    }));
  };
  sheet.src = source;
}
function answersOf(group) {
  const order = group.answers.map((answer, i) => [answer, i]);
  order.sort((a, b) => (a[0].rank < 0) - (b[0].rank < 0) || a[0].rank - b[0].rank || a[1] - b[1]);
  return order.map(([answer]) =>
    element("div", { class: "answer" },
      element("p", {}, "rank " + (answer.rank < 0 ? "-" : answer.rank) + "  ",
        element("span", { class: sign(answer.advantage) }, "advantage " + number(answer.advantage)),
        "  " + answer.tokens.length + (answer.tokens.length === 1 ? " token" : " tokens") + (answer.score === null ? "" : "  score " + number(answer.score)) + (answer.kl === null ? "" : "  KL " + number(answer.kl))),
      element("div", { class: "text", dir: "auto" }, ...tokensOf(answer))));
}
function tokensOf(answer) {
  if (answer.logps === null) return [visible(answer.text)];
  return answer.tokens.map((token, i) => {
    const surprise = Math.min(1, -answer.logps[i] / 6);
    const made = element("span", { class: "token", title: "log-prob " + number(answer.logps[i]) }, visible(token));
    made.style.backgroundColor = "rgba(217, 119, 6, " + (0.75 * surprise).toFixed(3) + ")";
    return made;
  });
}
function wordsOf(group) {
  return group.exchanges.flatMap((one) => [
    element("h2", {}, "The judge was asked"), element("pre", { dir: "auto" }, visible(one.asked)),
    element("h2", {}, "and replied"), element("pre", { dir: "auto" }, visible(one.replied))]);
}

// -------------------------------------------------------------------------------------------------------- start

function drawAll(again) {
  $("runs").replaceChildren(...runs.map((run, i) => element("span", { class: "run" + (i % 3) }, apart(run.name), "  ")));
  $("run").replaceChildren(...runs.map((run, i) => element("option", { value: i, dir: "auto" }, visible(run.name))));
  const tasks = [...new Set(runs.flatMap((run) => run.groups.task))].filter(Boolean).sort();
  $("task").replaceChildren(element("option", { value: "" }, "all"), ...tasks.map((task) => element("option", { value: task, title: visible(task), dir: "auto" }, short(visible(task), 60))));
  const wrong = runs.filter((run) => run.left_out);
  $("left_out").replaceChildren(...wrong.map((run) => element("div", {}, apart(run.name), ": ", apart(run.left_out))));
  $("left_out").hidden = !wrong.length;
  readAddress();
  drawSigns();
  drawCurves();
  filter();
  if (state.group !== null && state.group < columns().step.length) {
    open(state.group);
    if (!again) $("rows").scrollTop = shown.indexOf(state.group) * ROW - $("rows").clientHeight / 3; // a link leads far down
  }
  document.body.dataset.ready = "yes";
}
async function load(again) {
  $("group").replaceChildren(element("p", { class: "quiet" }, "Choose a group."));
  runs = embedded ? JSON.parse(embedded.textContent) : await (await fetch("api/runs" + (again ? "?refresh=1" : ""))).json();
  drawAll(again);
}
for (const key of ["text", "task", "only", "sort"]) {
  $(key).addEventListener("input", () => { state[key] = $(key).value; writeAddress(); $("rows").scrollTop = 0; filter(); });
}
$("run").addEventListener("input", () => { state.run = Number($("run").value); state.group = null; writeAddress(); drawSigns(); filter(); });
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("rows").addEventListener("scroll", drawRows);
$("rows").addEventListener("keydown", (event) => {
  const by = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9, Enter: 0 }[event.key];
  if (by === undefined) return;
  event.preventDefault();
  move(by);
});
$("refresh").addEventListener("click", () => load(true));
if (embedded) $("refresh").hidden = true;
window.addEventListener("hashchange", () => drawAll(false));
window.addEventListener("resize", drawRows);
load(false);
