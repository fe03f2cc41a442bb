"use strict";
// Sorting, filtering, choosing, charts and comparisons. Whatever is shown is set as text, never as HTML.
const find = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const store = find("#data");
const data = store ? JSON.parse(store.textContent) : {};

function make(tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function number(value) {
  if (value === undefined) return "";
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en");
  return Math.abs(value) >= 1e-4 || value === 0 ? String(Number(value.toPrecision(4))) : value.toExponential(3);
}

function interval(run, metric) {
  const low = run.metrics[`${metric}_low`], high = run.metrics[`${metric}_high`];
  return low === undefined || high === undefined ? null : [low, high];
}

// -- tables: sorting by the buttons in their heads, filters, columns

function cellValue(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent.trim();
  return text === "" ? null : text;
}

function compareValues(one, other) {
  const [a, b] = [Number(one), Number(other)];
  if (!Number.isNaN(a) && !Number.isNaN(b)) return a - b;
  return one.localeCompare(other, "en", { numeric: true });
}

function sortTable(table, head) {
  const descending = head.getAttribute("aria-sort") === "ascending";
  const column = head.cellIndex, body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [cellValue(row, column), row]);
  rows.sort(([one], [other]) => {
    if (one === null || other === null) return (one === null) - (other === null);
    return descending ? compareValues(other, one) : compareValues(one, other);
  });
  body.append(...rows.map(([, row]) => row));
  for (const other of all("[aria-sort]", table)) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

function filterTable(form, table) {
  const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
  const status = form.elements.status.value, sweep = form.elements.sweep?.value ?? "";
  const rows = [...table.tBodies[0].rows];
  for (const row of rows) {
    const { text, status: own, sweep: whose } = row.dataset;
    row.hidden = !words.every((word) => text.includes(word)) || (status && own !== status) || (sweep && whose !== sweep);
  }
  find("[role=status]", form).textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} runs shown`;
}

// -- the chart of a sweep: a parameter against a metric

function drawn(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function niceSteps(low, high) {
  const rough = (high - low || Math.abs(high) || 1) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const steps = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) steps.push(at);
  return steps;
}

function numericScale(values, from, to) {
  const log = Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) >= 100;
  const turn = log ? Math.log10 : (one) => one;
  let [low, high] = [turn(Math.min(...values)), turn(Math.max(...values))];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  [low, high] = [low - room, high + room];
  const place = (value) => from + ((turn(value) - low) / (high - low)) * (to - from);
  const decades = Array.from({ length: 40 }, (_, index) => 10 ** (Math.ceil(low) + index)).filter((one) => turn(one) <= high);
  return { place, log, ticks: (log ? decades : niceSteps(low, high)).map((one) => [number(one), place(one)]) };
}

function wordScale(words, from, to) {
  const step = (to - from) / words.length;
  const middle = (word) => from + (words.indexOf(word) + 0.5) * step;
  return { place: middle, spread: step * 0.6, ticks: words.map((word) => [word, middle(word)]) };
}

function shownWord(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

function drawChart() {
  const parameter = find("#axes").elements.parameter.value, metric = find("#axes").elements.metric.value;
  const runs = data.runs.filter((run) => parameter in run.point && metric in run.metrics);
  const box = find("#chart"), width = Math.max(box.clientWidth, 280), height = 360;
  box.replaceChildren();
  if (!runs.length) return box.append(make("p", `No run has both ${parameter} and ${metric}.`));
  const numeric = runs.every((run) => typeof run.point[parameter] === "number") &&
    new Set(runs.map((run) => run.point[parameter])).size > 1;
  const words = [...new Set(runs.map((run) => shownWord(run.point[parameter])))].sort((a, b) => compareValues(a, b));
  const x = numeric ? numericScale(runs.map((run) => run.point[parameter]), 64, width - 16) : wordScale(words, 64, width - 16);
  const y = numericScale(runs.flatMap((run) => [run.metrics[metric], ...(interval(run, metric) ?? [])]), height - 56, 16);
  const sign = data.smaller.includes(metric) ? 1 : -1;
  const best = runs.reduce((one, other) => (sign * other.metrics[metric] < sign * one.metrics[metric] ? other : one));
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group" });
  svg.setAttribute("aria-label", `${metric} by ${parameter}: ${runs.length} runs, best ${best.key} with ${number(best.metrics[metric])}`);
  drawAxes(svg, x, y, { width, height, parameter: parameter + (x.log ? " (logarithmic)" : ""), metric: metric + (y.log ? " (logarithmic)" : "") });
  runs.forEach((run) => {
    const same = runs.filter((other) => shownWord(other.point[parameter]) === shownWord(run.point[parameter]));
    const shift = numeric ? 0 : ((same.indexOf(run) + 0.5) / same.length - 0.5) * x.spread;
    svg.append(drawRun(run, metric, parameter, x.place(numeric ? run.point[parameter] : shownWord(run.point[parameter])) + shift, y, run === best));
  });
  box.append(svg);
}

function drawAxes(svg, x, y, { width, height, parameter, metric }) {
  for (const [text, at] of y.ticks) {
    svg.append(drawn("line", { class: "grid", x1: 64, x2: width - 16, y1: at, y2: at }));
    svg.append(drawn("text", { x: 58, y: at + 4, "text-anchor": "end" }, text));
  }
  const most = Math.max(4, Math.floor((width - 80) / x.ticks.length / 7.5));
  for (const [text, at] of x.ticks) {
    const shown = text.length > most ? `${text.slice(0, most - 1)}…` : text;
    svg.append(drawn("text", { x: at, y: height - 36, "text-anchor": "middle" }, shown, drawn("title", {}, text)));
  }
  svg.append(drawn("line", { class: "axis", x1: 64, x2: width - 16, y1: height - 56, y2: height - 56 }));
  svg.append(drawn("text", { class: "name", x: (width + 48) / 2, y: height - 10, "text-anchor": "middle" }, parameter));
  svg.append(drawn("text", { class: "name", "text-anchor": "middle", transform: `translate(13 ${(height - 40) / 2}) rotate(-90)` }, metric));
}

function drawRun(run, metric, parameter, at, y, best) {
  const value = run.metrics[metric], range = interval(run, metric);
  const ends = range ? ` (95 % interval ${number(range[0])} – ${number(range[1])})` : "";
  const label = `${run.key}: ${metric} ${number(value)}${ends}, ${parameter} ${shownWord(run.point[parameter])}${best ? ", the best" : ""}`;
  // the keyboard goes on to the table, which has the same links
  const link = drawn("a", { href: run.href, "aria-label": label, tabindex: -1 }, drawn("title", {}, label));
  if (range) link.append(drawn("line", { class: "range", x1: at, x2: at, y1: y.place(range[0]), y2: y.place(range[1]) }));
  if (best) link.append(drawn("circle", { class: "best", cx: at, cy: y.place(value), r: 10 }));
  link.append(drawn("circle", { class: "dot", cx: at, cy: y.place(value), r: 5 }));
  return link;
}

// -- the comparison: which runs is in the address, after #

function chosenRuns() {
  const names = new URLSearchParams(location.hash.slice(1)).getAll("run");
  return names.map((name) => data.runs.find((run) => run.name === name)).filter(Boolean);
}

function addressOf(names) {
  return `#${names.map((name) => `run=${encodeURIComponent(name)}`).join("&")}`;
}

function showComparison() {
  const runs = chosenRuns(), names = runs.map((run) => run.name);
  const asked = new URLSearchParams(location.hash.slice(1)).getAll("run");
  const missing = asked.filter((name) => !names.includes(name));
  find("#choose [role=status]").textContent = missing.length ? `Not in this report: ${missing.join(", ")}` : "";
  find("#chosen").replaceChildren(...runs.map((run) => {
    const item = make("li"), button = make("button", "Remove", { type: "button", "aria-label": `Remove ${run.name}` });
    button.addEventListener("click", () => { location.hash = addressOf(names.filter((name) => name !== run.name)); });
    item.append(make("a", run.name, { href: run.href }), " ", button);
    return item;
  }));
  const box = find("#comparison");
  if (runs.length < 2) return box.replaceChildren(make("p", "Add two runs or more, or tick them in the table of runs."));
  const parameters = sortParameters(runs);
  box.replaceChildren(make("h2", "Parameters"), parametersTable("Parameters that differ", runs, parameters.differ));
  for (const [caption, names] of [["Parameters of some of these runs", parameters.some], ["Parameters that are the same", parameters.same]]) {
    const fold = make("details");
    fold.append(make("summary", `${caption} (${names.length})`), parametersTable(caption, runs, names));
    box.append(fold);
  }
  box.append(make("h2", "Metrics"), metricsTable(runs), make("p", "≈ The first run's value lies within this run's 95 % interval: " +
    "by these rows the two cannot be told apart.", { class: "legend" }));
}

function sortParameters(runs) {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.parameters)))].sort();
  const known = (name) => runs.filter((run) => name in run.parameters).map((run) => run.parameters[name]);
  const differ = names.filter((name) => new Set(known(name)).size > 1);
  const rest = names.filter((name) => !differ.includes(name));
  return { differ, some: rest.filter((name) => known(name).length < runs.length), same: rest.filter((name) => known(name).length === runs.length) };
}

function sideBySide(caption, runs, rows) {
  const table = make("table"), head = make("tr"), box = make("div", "", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption });
  head.append(make("td"), ...runs.map((run) => make("th", run.name, { scope: "col", class: "run" })));
  table.append(make("caption", caption), make("thead"), make("tbody"));
  table.tHead.append(head);
  for (const [name, cells] of rows) {
    const row = make("tr");
    row.append(make("th", name, { scope: "row" }), ...cells);
    table.tBodies[0].append(row);
  }
  box.append(table);
  return box;
}

function parametersTable(caption, runs, names) {
  if (!names.length) return make("p", `${caption}: none.`);
  return sideBySide(caption, runs, names.map((name) => [name, runs.map((run) => {
    const cell = make("td");
    if (name in run.parameters) cell.append(make("code", run.parameters[name]));
    return cell;
  })]));
}

function metricsTable(runs) {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.metrics)))].filter((name) => !/_(low|high)$/.test(name)).sort();
  const ranged = names.filter((name) => runs.some((run) => interval(run, name)));
  const ordered = [...ranged, ...names.filter((name) => !ranged.includes(name))];
  return sideBySide("Metrics, with 95 % intervals and the difference from the first run", runs,
    ordered.map((name) => [name, runs.map((run) => metricCell(run, runs[0], name))]));
}

function metricCell(run, first, name) {
  const cell = make("td", number(run.metrics[name]), { class: "number" }), range = interval(run, name);
  if (range) cell.append(" ", make("small", `${number(range[0])} – ${number(range[1])}`));
  if (run === first || run.metrics[name] === undefined || first.metrics[name] === undefined) return cell;
  const gap = run.metrics[name] - first.metrics[name];
  if (gap === 0) return cell;
  const alike = range && range[0] <= first.metrics[name] && first.metrics[name] <= range[1];
  cell.append(make("span", `${gap > 0 ? "+" : "−"}${number(Math.abs(gap))}${alike ? " ≈" : ""}`, { class: "gap" }));
  return cell;
}

// -- what the page has of all this

for (const element of all("[data-script]")) element.hidden = false;
for (const head of all("th[aria-sort]")) {
  find("button", head).addEventListener("click", () => sortTable(head.closest("table"), head));
}
for (const form of all("form[data-table]")) {
  const table = document.getElementById(form.dataset.table);
  form.addEventListener("input", () => filterTable(form, table));
  form.addEventListener("submit", (event) => event.preventDefault());
  filterTable(form, table);
}
for (const box of all(".columns input")) {
  const show = () => { for (const cell of all(`[data-column="${CSS.escape(box.value)}"]`)) cell.hidden = !box.checked; };
  box.addEventListener("change", show);
  show();
}
for (const form of all("form.compare")) {
  const ticked = () => all("input[name=run]:checked").map((box) => box.value);
  const tell = () => { find("[role=status]", form).textContent = `${ticked().length} ticked${ticked().length < 2 ? "; tick two or more" : ""}`; };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (ticked().length > 1) location.href = form.dataset.page + addressOf(ticked());
  });
  document.addEventListener("change", tell);
  tell();
}
if (find("#axes")) {
  find("#axes").addEventListener("input", drawChart);
  addEventListener("resize", drawChart);
  drawChart();
}
if (find("#choose")) {
  find("#choose").addEventListener("submit", (event) => {
    event.preventDefault();
    const field = find("#choose").elements.run, names = chosenRuns().map((run) => run.name);
    if (!data.runs.some((run) => run.name === field.value)) {
      find("#choose [role=status]").textContent = `There is no run ${field.value}.`;
    } else if (!names.includes(field.value)) {
      location.hash = addressOf([...names, field.value]);
      field.value = "";
    }
  });
  addEventListener("hashchange", showComparison);
  showComparison();
}
