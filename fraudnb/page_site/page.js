// The scoring page. Everything that comes from a file or a person is put on the page as text, never as HTML.

const PAGE_ROWS = 25;
const FIELD_BYTES = 40; // of a number in the answer
const KEPT_CLOCK = "the time of day", KEPT_PASTE = "the pasted row"; // beside the fields, in this tab's storage
const ID_NAMES = ["id", "row_id", "transaction_id"];

// -- small tools

function h(tag, attributes = {}, ...children) {
  const svg = ["svg", "rect", "line", "text", "polyline", "g", "title"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const fill = (element, ...children) => element.replaceChildren(...children.flat(Infinity).filter(Boolean));
const whole = (number) => Math.round(number).toLocaleString("en");
const money = (number) => number.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const plain = (number) => (number === null || number === undefined ? "missing" : String(Number(number.toPrecision(4))));

const rough = (number) => String(Number(number.toPrecision(2)));

function percent(probability) {
  const value = 100 * probability;
  if (value > 0 && value < 0.01) return "< 0.01 %";
  if (value < 100 && value > 99.99) return "> 99.99 %";
  if (value > 99.9 && value < 100) return `${value.toFixed(2)} %`;
  return `${value.toFixed(value < 10 ? 2 : 1)} %`;
}

function share(value) {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`;
}

// A cell of a table: numbers to six digits, the whole is in the title.
const shortened = (text) => (text.length > 9 && Number.isFinite(Number(text)) ? String(Number(Number(text).toPrecision(6))) : text);

class Problem extends Error {
  constructor(message, problems = [], total = problems.length) {
    super(message);
    this.problems = problems;
    this.total = total;
  }
}

// -- CSV: records of an answer or of what a person pastes (RFC 4180)

function parseRecord(text, delimiter = ",") {
  const fields = [];
  let at = 0;
  while (at <= text.length) {
    if (text[at] === '"') {
      let value = "";
      for (at += 1; at < text.length; at += 1) {
        if (text[at] !== '"') value += text[at];
        else if (text[at + 1] === '"') { value += '"'; at += 1; }
        else break;
      }
      fields.push(value);
      at = text.indexOf(delimiter, at) < 0 ? text.length + 1 : text.indexOf(delimiter, at) + 1;
    } else {
      const end = text.indexOf(delimiter, at) < 0 ? text.length : text.indexOf(delimiter, at);
      fields.push(text.slice(at, end));
      at = end + 1;
    }
  }
  return fields;
}

// Where the records of the CSV in `blob` begin, and each one's probability (the last field but one) and amount. One
// pass over the bytes: a file of 300,000 rows stays a Blob, which the browser may keep on the disk.
async function indexRecords(blob, amountName, progress) {
  const reader = blob.stream().getReader();
  const starts = [0], probabilities = [], amounts = [];
  let header = null, amountAt = -1, headerBytes = [];
  let current = new Uint8Array(FIELD_BYTES), previous = new Uint8Array(FIELD_BYTES), used = 0, usedBefore = 0;
  let quoted = false, field = 0, position = 0, amount = NaN, content = false;
  const number = (bytes, length) => {
    const text = String.fromCharCode(...bytes.subarray(0, length)).replaceAll('"', "");
    return text === "" ? NaN : Number(text);
  };
  const endRecord = (after) => {
    if (!content) { starts[starts.length - 1] = after; return; }
    if (!header) {
      header = parseRecord(new TextDecoder().decode(new Uint8Array(headerBytes)).replace(/^\ufeff/, ""));
      amountAt = header.indexOf(amountName);
    } else {
      probabilities.push(number(previous, usedBefore));
      amounts.push(amount);
    }
    starts.push(after);
    field = used = usedBefore = 0;
    amount = NaN;
    content = false;
  };
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    for (let at = 0; at < value.length; at += 1) {
      const byte = value[at];
      if (byte === 34) quoted = !quoted;
      if (!quoted && byte === 44) {
        if (field === amountAt) amount = number(current, used);
        [current, previous] = [previous, current];
        usedBefore = used;
        used = 0;
        field += 1;
      } else if (!quoted && byte === 10) {
        endRecord(position + at + 1);
        continue;
      } else if (byte !== 13) {
        if (used < FIELD_BYTES) current[used] = byte;
        used = Math.min(used + 1, FIELD_BYTES);
      }
      if (byte !== 13) content = true;
      if (!header && byte !== 13) headerBytes.push(byte);
    }
    position += value.length;
    progress(position / blob.size);
  }
  if (content) endRecord(position);
  return {
    blob, header: header ?? [], starts: Float64Array.from(starts), amounts: Float64Array.from(amounts),
    probabilities: Float64Array.from(probabilities),
  };
}

async function readRecord(table, row) {
  const text = await table.blob.slice(table.starts[row + 1], table.starts[row + 2]).text();
  return parseRecord(text.replace(/\r?\n$/, ""));
}

// The rows in whose text `query` occurs, as a set. Bytes are taken as Latin-1, so that places are byte offsets.
async function findRows(table, query, stopped) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(query)).toLowerCase();
  const found = new Set(), last = table.starts.length - 2;
  const decoder = new TextDecoder("latin1");
  for (let row = 0; row < last; ) {
    let until = row + 1;
    while (until < last && table.starts[until + 1] - table.starts[row + 1] < 4e6) until += 1;
    const text = decoder.decode(await table.blob.slice(table.starts[row + 1], table.starts[until + 1]).arrayBuffer()).toLowerCase();
    if (stopped()) return null;
    for (let at = text.indexOf(bytes), here = row; at >= 0; ) {
      const place = table.starts[row + 1] + at;
      while (here + 1 < until && table.starts[here + 2] <= place) here += 1;
      found.add(here);
      at = here + 1 < until ? text.indexOf(bytes, table.starts[here + 2] - table.starts[row + 1]) : -1;
    }
    row = until;
  }
  return found;
}

// A text as a field of a CSV, its bytes as Latin-1 characters.
const csvField = (text) => {
  const bytes = String.fromCharCode(...new TextEncoder().encode(text));
  return /[",\r\n]/.test(bytes) ? `"${bytes.replaceAll('"', '""')}"` : bytes;
};

// The answer's CSV with other decisions: the last field of each record is written anew, and what `columns` names follows
// in each row. A row says itself by which model and threshold it was decided: file names change, rows are sorted,
// filtered and pasted into a case.
async function withDecisions(table, isAlert, columns) {
  const decoder = new TextDecoder("latin1"), bytesOf = (text) => Uint8Array.from(text, (character) => character.charCodeAt(0));
  const names = Object.keys(columns).map((name) => csvField(table.header.includes(name) ? `scored_${name}` : name));
  const added = Object.values(columns).map((value) => `,${csvField(String(value))}`).join("");
  const head = decoder.decode(await table.blob.slice(0, table.starts[1]).arrayBuffer()).replace(/\r?\n$/, "");
  const parts = [bytesOf(`${[head, ...names].join(",")}\n`)], last = table.starts.length - 2;
  for (let row = 0; row < last; ) {
    const until = Math.min(row + 20_000, last), begin = table.starts[row + 1];
    const text = decoder.decode(await table.blob.slice(begin, table.starts[until + 1]).arrayBuffer());
    const lines = [];
    for (; row < until; row += 1) {
      const line = text.slice(table.starts[row + 1] - begin, table.starts[row + 2] - begin);
      const end = line.endsWith("\r\n") ? "\r\n" : "\n";
      lines.push(line.slice(0, line.lastIndexOf(",") + 1), isAlert(row) ? "alert" : "pass", added, end);
    }
    parts.push(bytesOf(lines.join("")));
  }
  return new Blob(parts, { type: "text/csv" });
}

// -- what a person pastes: a JSON object, a header and a row, or a row in the order of the training file

function parsePasted(text, facts) {
  const trimmed = text.trim();
  if (!trimmed) throw new Problem("There is nothing to read yet: paste one row.");
  if (trimmed.startsWith("{")) {
    try { return JSON.parse(trimmed); } catch { throw new Problem("This begins like JSON but is none."); }
  }
  const lines = trimmed.split(/\r?\n/);
  const delimiter = ["\t", ";", ","].find((mark) => lines[0].includes(mark)) ?? ",";
  const cells = lines.map((line) => parseRecord(line, delimiter).map((cell) => cell.trim()));
  const values = (row) => row.map((cell) => (delimiter === "," ? cell : cell.replace(",", ".")));
  const named = cells[0].some((cell) => cell !== "" && Number.isNaN(Number(cell.replace(",", "."))));
  if (named) {
    if (cells.length < 2) throw new Problem("There are names here but no values: paste the header and a row, or only a row.");
    return Object.fromEntries(cells[0].map((name, at) => [name, values(cells[1])[at]]));
  }
  const order = facts.orders.find((names) => names.length === cells[0].length);
  if (!order) {
    const wanted = facts.orders.map((names) => names.length).join(" or ");
    throw new Problem(`This row has ${cells[0].length} values; the model's file has ${wanted}. Paste the header with it.`);
  }
  return Object.fromEntries(order.map((name, at) => [name, values(cells[0])[at]]));
}

// -- asking: the kernel for one transaction, the API for files (the kernel where there is no API)

const LOST = "There was no answer. The connection may be lost: reconnect and try again.";

// Questions to the kernel, and what cuts off those that wait. `onState(true)` is called with each answer.
function makeKernel(model, onState) {
  const waiting = new Map();
  let next = 1;
  const lost = () => Object.assign(new Problem(LOST), { lost: true });
  model.on("msg:custom", (message, buffers) => {
    const one = waiting.get(message.id);
    if (!one) return;
    waiting.delete(message.id);
    clearTimeout(one.timer);
    onState(true);
    if (message.error) one.fail(Object.assign(new Problem(message.error, message.problems), { status: message.status }));
    else one.done({ ...message, buffers });
  });
  const ask = (kind, content = {}, buffers = [], seconds = 20) =>
    new Promise((done, fail) => {
      const id = next++;
      const timer = setTimeout(() => {
        waiting.delete(id);
        onState(false);
        fail(lost());
      }, seconds * 1000);
      waiting.set(id, { done, fail, timer });
      model.send({ kind, id, ...content }, undefined, buffers);
    });
  const cut = () => {
    for (const one of waiting.values()) {
      clearTimeout(one.timer);
      one.fail(lost());
    }
    waiting.clear();
  };
  return { ask, cut };
}

// Call `onState` when the websocket to the kernel breaks, or stands again: JupyterLab's front end and Voila's know.
// A break of a moment mends itself. Elsewhere the pings alone tell.
function watchSocket(model, onState) {
  const kernel = model.widget_manager?.kernel;
  if (!kernel?.connectionStatusChanged) return () => undefined;
  let timer = null;
  const connection = (_, status) => {
    clearTimeout(timer);
    if (status === "connected") onState(true);
    else timer = setTimeout(() => onState(false), status === "connecting" ? 2000 : 0);
  };
  const life = (_, status) => { if (status === "dead") onState(false); };
  kernel.connectionStatusChanged.connect(connection);
  kernel.statusChanged.connect(life);
  return () => {
    clearTimeout(timer);
    kernel.connectionStatusChanged.disconnect(connection);
    kernel.statusChanged.disconnect(life);
  };
}

// One transaction asked of the API itself, as the kernel would: for a page whose kernel is gone.
async function askApi(api, { row, threshold, model }) {
  const query = new URLSearchParams({ reasons: 8, model, ...(threshold === null ? {} : { threshold }) });
  let answer;
  try {
    answer = await fetch(`${api}?${query}`, {
      method: "POST", body: JSON.stringify({ rows: [row] }), headers: { "Content-Type": "application/json", Accept: "application/json" }, signal: AbortSignal.timeout(20_000),
    });
  } catch {
    throw Object.assign(new Problem(LOST), { lost: true });
  }
  if (answer.status === 401) throw new Problem(SIGNED_OUT);
  if (!answer.ok) throw Object.assign(readProblem(await answer.text(), answer.status), { status: answer.status });
  const { rows, ...origin } = await answer.json();
  return { ...origin, ...rows[0] };
}

const SIGNED_OUT = "You are signed out. Reload the page to sign in again.";

// What the headers of an answer say of the model and the rule it is of.
function originFrom(header) {
  const [name, threshold, policy] = ["Model", "Threshold", "Policy"].map((what) => header(`Fraudnb-${what}`));
  return {
    model: name === null ? null : decodeURIComponent(name), sha256: header("Fraudnb-Model-Sha256"),
    threshold: threshold === null ? null : Number(threshold), policy: policy === null ? null : JSON.parse(policy),
  };
}

function postFile(url, file, threshold, sha256, onSent) {
  return new Promise((done, fail) => {
    const request = new XMLHttpRequest();
    request.open("POST", `${url}?model=${sha256}${threshold === null ? "" : `&threshold=${threshold}`}`);
    const parquet = /\.(parquet|pq)$/i.test(file.name);
    request.setRequestHeader("Content-Type", parquet ? "application/vnd.apache.parquet" : "text/csv");
    request.setRequestHeader("Accept", "text/csv");
    request.responseType = "blob";
    request.upload.onprogress = (event) => onSent(event.lengthComputable ? event.loaded / event.total : null);
    request.onerror = () => fail(new Problem("The connection broke while the file was being scored. Nothing was kept; try again."));
    request.onload = async () => {
      if (request.status === 200) return done({ blob: request.response, origin: originFrom((name) => request.getResponseHeader(name)) });
      if ([429, 503].includes(request.status)) {
        return fail(Object.assign(new Problem("The server is busy."), { again: Number(request.getResponseHeader("Retry-After")) || 2 }));
      }
      if (request.status === 401) return fail(new Problem(SIGNED_OUT));
      fail(Object.assign(readProblem(await request.response.text(), request.status), { status: request.status }));
    };
    request.send(file);
  });
}

// The problem document of RFC 9457 that the API answers with.
function readProblem(text, status) {
  try {
    const answer = JSON.parse(text);
    return new Problem(answer.detail ?? answer.title ?? `The server answered with ${status}.`, answer.errors ?? []);
  } catch {
    return new Problem(`The server answered with ${status} and no reason.`);
  }
}

// What `question` answers by the model that the page shows. Where the server has another by now, the page learns of it
// first, and asks that one: `question` is called with what the page shows then.
async function byThisModel(state, question) {
  for (let attempt = 0; ; attempt += 1) {
    const shown = { ...state.facts }, { asked } = state;
    try {
      const answer = await question(shown, asked);
      await state.notice(answer.origin ?? answer, asked === null);
      return { answer, shown };
    } catch (problem) {
      if (problem.status !== 409 || attempt === 3) throw problem;
      await state.refresh();
    }
  }
}

// `again`: the page asks by itself, which is no use of it by a person.
const scoreRow = (state, row, again) => byThisModel(state, (shown, asked) => state.ask("row", { row, again, threshold: asked, model: shown.sha256 }));

async function sendFile(state, shown, asked, file, onStep) {
  if (shown.api) {
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await postFile(shown.api, file, asked, shown.sha256, (sent) => onStep(sent === 1 ? "Scoring" : "Sending", sent));
      } catch (problem) {
        if (!problem.again || attempt === 4) throw problem;
        onStep("The server is busy; waiting for it", null);
        await new Promise((done) => setTimeout(done, 1000 * problem.again));
      }
    }
  }
  if (file.size > shown.largest) {
    throw new Problem(`This page was opened by Voila alone, which takes files up to ${whole(shown.largest / 1e6)} MB. \`fraudnb serve\` takes larger ones, and so does \`fraudnb score\`.`);
  }
  onStep("Scoring", null);
  const bytes = new DataView(await file.arrayBuffer());
  const { buffers, origin } = await state.ask("file", { name: file.name, threshold: asked }, [bytes], 300);
  return { blob: new Blob(buffers, { type: "text/csv" }), origin };
}

// The file scored, and what the page showed of the model that did it.
async function scoreFile(state, file, onStep) {
  const { answer, shown } = await byThisModel(state, (now, asked) => sendFile(state, now, asked, file, onStep));
  return { blob: answer.blob, shown };
}

// -- parts that both the first and the second tab show

function reasonsList(reasons) {
  if (!reasons.length) return h("p", { class: "quiet" }, "No single value moves this probability: setting any one of them to what is typical leaves it as it is.");
  const most = Math.max(...reasons.map((one) => Math.abs(one.change)), 1e-12);
  return h("ul", { class: "reasons" }, reasons.map((one) => {
    const up = one.change > 0, width = Math.max(1, (48 * Math.abs(one.change)) / most);
    const points = `${up ? "+" : "−"}${Number((100 * Math.abs(one.change)).toPrecision(2))} points`;
    return h("li", {},
      h("span", {}, h("b", {}, one.column), h("span", { class: "hint" }, plain(one.value))),
      h("span", { class: "bar", "aria-hidden": "true" }, h("i", { class: up ? "up" : "down", style: `width:${width}%` })),
      h("span", {}, `${up ? "▲" : "▼"} ${points}`, h("span", { class: "hint" }, `typical ${plain(one.typical)}`)));
  }));
}

function problemTable(problem) {
  if (!problem.problems.length) return null;
  const cell = (text, kind) => h("td", { class: kind }, String(text ?? ""));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "What does not fit" },
    h("table", {},
      h("thead", {}, h("tr", {}, ["Row", "Column", "Value", "Reason"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, problem.problems.slice(0, 200).map((one) =>
        h("tr", {}, cell(one.row, "number"), cell(one.column), cell(one.value), cell(one.reason, "free"))))),
    problem.total > 200 ? h("p", { class: "quiet" }, `And ${whole(problem.total - 200)} more.`) : null);
}

const failure = (title, problem) => [
  h("div", { class: "notice bad" }, h("b", {}, title), h("p", {}, problem.message)), problemTable(problem)];

// The decision by one threshold for all or, where `rule` is one, by the amount; the same sum as in Python.
function decides(probability, amount, threshold, rule) {
  return rule ? probability * amount * rule.recovery_rate >= rule.review_cost : probability >= threshold;
}

function verdict(probability, amount, threshold, rule) {
  const alert = decides(probability, amount, threshold, rule), side = `${percent(probability)} is ${alert ? "at or above" : "below"}`;
  const own = rule && rule.review_cost && rule.review_cost / (rule.recovery_rate * amount);
  const why = !rule ? `${side} the threshold of ${percent(threshold)}`
    : own > 1 ? `No probability makes a review worth its cost for an amount of ${money(amount)}`
    : `${side} ${percent(own)}, the threshold for an amount of ${money(amount)}`;
  return h("p", { class: `verdict ${alert ? "alert" : "pass"}` }, alert ? "▲ Alert: look at it" : "✓ Pass", h("span", { class: "hint" }, why));
}

// -- the header

const versionWords = (facts) => `${facts.name}, version ${facts.sha256.slice(0, 10)}`;
const ruleWords = (facts) => (facts.rule ? `by amount: a review costs ${money(facts.rule.review_cost)}` : `from ${percent(facts.threshold)} on`);

// What has changed when `now` took the place of `before`, in plain words; `chosen` is a person's own threshold, if any.
function changeWords(before, now, chosen, at) {
  const time = at.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  const decided = chosen === null ? `Alerts are now ${ruleWords(now)}${ruleWords(now) === ruleWords(before) ? ", as before" : `; before, ${ruleWords(before)}`}.`
    : `The threshold of ${percent(chosen)} that you have chosen stays; the model's own is now ${ruleWords(now)}.`;
  if (before.sha256 === now.sha256) return [`The threshold of the model was changed at ${time}. `, decided];
  return [`The model was replaced at ${time}. `, `This page now shows ${versionWords(now)}; before, ${versionWords(before)}. ${decided}`];
}

function header(facts) {
  const [value, low, high] = facts.average_precision ?? [];
  const number = (one) => one.toFixed(3).replace(/^0/, "");
  return h("header", {},
    h("h1", {}, "Score card transactions"),
    h("p", { class: "facts" }, "Model ", h("b", {}, facts.name), `, version ${facts.sha256.slice(0, 10)}, ${facts.kind ? `${facts.kind}, ` : ""}trained ${facts.trained} on ${whole(facts.rows)} transactions`,
      facts.frauds ? ` with ${whole(facts.frauds)} frauds` : "", facts.source ? ` (${facts.source})` : "", "."),
    value === undefined ? h("p", { class: "facts" }, "It was not evaluated.") : h("p", { class: "facts" },
      "Average precision on transactions it had not seen: ", h("b", {}, number(value)), low === undefined ? "" : ` (95 % interval ${number(low)} to ${number(high)})`, ". ", facts.policy),
    facts.synthetic ? h("div", { class: "notice", role: "note" }, h("b", {}, "Demonstration model. "),
      "It was trained on made-up transactions: its scores say nothing about real ones.") : null);
}

// -- first tab: one transaction

function oneTab(state) {
  const { facts } = state, fields = new Map(), hints = new Map();
  const range = (input) => (input.low === null ? "no typical range" : `mostly ${rough(input.low)} to ${rough(input.high)}`);
  const field = (input) => {
    const id = `fraudnb-${input.name}`;
    const box = h("input", { id, name: input.name, inputmode: "text", autocomplete: "off", required: true, "aria-describedby": `${id}-hint` });
    fields.set(input.name, box);
    hints.set(input.name, h("span", { class: "hint", id: `${id}-hint` }, range(input)));
    return h("div", {}, h("label", { for: id }, input.name), box, hints.get(input.name));
  };
  const clock = h("input", { id: "fraudnb-clock", type: "time", "aria-describedby": "fraudnb-clock-hint" });
  const timed = facts.inputs.some((one) => one.name === facts.time);
  const first = facts.inputs.filter((one) => one.name === facts.amount || one.name === facts.time);
  const others = facts.inputs.filter((one) => !first.includes(one));
  const result = h("div", { class: "card", "aria-live": "polite" });
  const message = h("div", { role: "alert" });
  const pasted = h("textarea", { id: "fraudnb-pasted", rows: "3", spellcheck: "false" });
  const paste = h("div", { hidden: true }, h("label", { for: "fraudnb-pasted" }, "A row, with or without its header; CSV, tab-separated or a JSON object"), pasted,
    h("div", { class: "row" }, h("button", { type: "button", class: "act", onclick: () => take(() => parsePasted(pasted.value, facts)) }, "Take these values")));
  let scored = null, turn = 0;

  const empty = () => fill(result, h("h2", { style: "margin-top:0" }, "Result"), h("p", { class: "quiet" }, "Fill in the values, or load an example, then score."));
  const values = () => Object.fromEntries([...fields].map(([name, box]) => [name, box.value]));
  const keep = () => state.keep({ ...values(), [KEPT_CLOCK]: clock.value, [KEPT_PASTE]: pasted.value });
  const put = (row) => {
    for (const [name, box] of fields) {
      box.value = row[name] ?? "";
      box.removeAttribute("aria-invalid");
    }
    const seconds = Number(row[facts.time]);
    if (row[facts.time] !== undefined && Number.isFinite(seconds)) clock.value = new Date(1000 * (seconds % 86400)).toISOString().slice(11, 16);
    keep();
  };
  const take = (make) => {
    try {
      const row = make();
      put(row);
      const absent = facts.inputs.filter((one) => row[one.name] === undefined || row[one.name] === "");
      fill(message, absent.length && absent.length < facts.inputs.length ? h("p", { class: "wrong" }, `Without a value: ${absent.map((one) => one.name).join(", ")}.`) : null);
      if (absent.length === facts.inputs.length) throw new Problem("None of these names is one of the model's.");
      if (!absent.length) score();
    } catch (problem) {
      fill(message, h("p", { class: "wrong" }, problem.message));
    }
  };
  const wrongFields = () => [...fields].filter(([name, box]) => {
    const text = box.value.trim().replace(",", ".");
    const wrong = text === "" || !Number.isFinite(Number(text)) || (name === facts.amount && Number(text) < 0);
    box.toggleAttribute("aria-invalid", wrong);
    if (wrong) box.setAttribute("aria-invalid", "true");
    return wrong;
  });
  const show = () => {
    if (!scored) return;
    const amount = Number(scored.row[facts.amount]), { rule } = state;
    const review = rule ? `; a review costs ${money(rule.review_cost)}${rule.recovery_rate < 1 ? ` and recovers ${share(rule.recovery_rate)} of it` : ""}` : "";
    fill(result, h("h2", { style: "margin-top:0" }, "Result"),
      h("div", {}, h("span", { class: "big", "data-probability": scored.probability }, percent(scored.probability)), " probability of fraud"),
      verdict(scored.probability, amount, state.threshold, rule),
      Number.isFinite(amount) ? h("p", {}, "Expected loss if it passes: ", h("b", {}, money(scored.probability * amount)), h("span", { class: "hint" }, `probability × amount${review}`)) : null,
      h("h2", {}, "What it rests on"),
      h("p", { class: "quiet" }, "How the probability would change if one value were typical. ▲ raises it, ▼ (striped) lowers it."),
      reasonsList(scored.reasons));
  };
  const score = async () => {
    const wrong = wrongFields();
    if (wrong.length) {
      fill(message, h("p", { class: "wrong" }, `${wrong.map(([name]) => name).slice(0, 5).join(", ")}${wrong.length > 5 ? " and others" : ""}: a number is needed${wrong.some(([name]) => name === facts.amount) ? " (an amount is not negative)" : ""}.`));
      wrong[0][1].focus();
      return;
    }
    fill(message);
    await ask(Object.fromEntries(Object.entries(values()).map(([name, text]) => [name, Number(text.trim().replace(",", "."))])));
    if (scored && window.innerWidth <= 960) result.scrollIntoView({ block: "nearest" }); // there it is below the form
  };
  const ask = async (row, again = false) => {
    const mine = ++turn;
    scored = null; // while an answer is awaited, none of another row or model is shown
    button.disabled = true;
    result.setAttribute("aria-busy", "true");
    const late = setTimeout(() => fill(result, h("p", {}, h("span", { class: "spin" }), " Scoring …")), 300);
    try {
      const { answer } = await scoreRow(state, row, again);
      if (mine === turn) scored = { ...answer, row };
    } catch (problem) {
      if (mine === turn) fill(result, failure("It was not scored.", problem));
    }
    clearTimeout(late);
    if (mine !== turn) return;
    if (scored) show();
    button.disabled = false;
    result.removeAttribute("aria-busy");
  };
  const button = h("button", { type: "submit", class: "act main" }, "Score");
  const example = (name, text) => facts.examples[name] && h("button", { type: "button", class: "act", onclick: () => take(() => facts.examples[name]) }, text);
  const samples = h("span", { class: "row", style: "margin:0" });
  const offer = () => fill(samples, example("typical", "Load a typical example"), example("fraudulent", "Load a fraudulent example"));
  offer();
  const form = h("form", { novalidate: true, onsubmit: (event) => { event.preventDefault(); score(); }, oninput: keep },
    h("div", { class: "row" }, samples,
      h("button", { type: "button", class: "act", "aria-expanded": "false", onclick: (event) => {
        paste.hidden = !paste.hidden;
        event.currentTarget.setAttribute("aria-expanded", String(!paste.hidden));
        if (!paste.hidden) pasted.focus();
      } }, "Paste a row")),
    paste, message,
    h("div", { class: "grid" }, first.map(field),
      timed ? null : h("div", {}, h("label", { for: "fraudnb-clock" }, "Time of day"), clock, h("span", { class: "hint", id: "fraudnb-clock-hint" }, "for your notes: this model does not use it"))),
    h("h2", {}, "Features"), h("div", { class: "grid" }, others.map(field)),
    h("div", { class: "row" }, button, h("button", { type: "button", class: "act", onclick: () => { put({}); clock.value = ""; scored = null; turn += 1; fill(message); empty(); } }, "Clear")));
  if (state.kept) {
    pasted.value = state.kept[KEPT_PASTE] ?? "";
    paste.hidden = !pasted.value;
    clock.value = state.kept[KEPT_CLOCK] ?? "";
    put(state.kept);
  }
  empty();
  state.onThreshold.push(show);
  state.onModel.push((before) => {
    offer();
    for (const input of facts.inputs) if (hints.has(input.name)) fill(hints.get(input.name), range(input));
    if (scored && before.sha256 !== facts.sha256) ask(scored.row, true); else show();
  });
  return h("div", { class: "split" }, form, result);
}

// -- second tab: a file

const REPLACED = "The model that scored this file has been replaced, and the new one would give its own reasons. Score the file again.";

function histogram(table, threshold) { // null: there is no one threshold
  const bins = new Array(20).fill(0);
  for (const probability of table.probabilities) bins[Math.min(19, Math.floor(20 * probability))] += 1;
  const most = Math.log10(1 + Math.max(...bins)), width = 600, height = 150;
  const bars = bins.map((count, at) => {
    const tall = count ? Math.max(2, (height * Math.log10(1 + count)) / most) : 0;
    return h("rect", { x: 40 + at * 27, y: 10 + height - tall, width: 24, height: tall, class: threshold !== null && (at + 1) / 20 > threshold ? "above" : "below" },
      h("title", {}, `${5 * at} to ${5 * at + 5} %: ${whole(count)} rows`));
  });
  const x = 40 + 540 * threshold;
  const ticks = [0, 25, 50, 75, 100].map((value) => h("text", { x: 40 + 5.4 * value, y: height + 28, "text-anchor": "middle" }, `${value} %`));
  const label = `Histogram of probabilities: ${bins.map((count, at) => [count, at]).filter(([count]) => count).map(([count, at]) => `${5 * at} to ${5 * at + 5} %: ${count}`).join("; ")}`;
  return h("svg", { viewBox: `0 0 ${width} ${height + 50}`, role: "img", "aria-label": label },
    bars, h("line", { x1: 40, x2: 580, y1: height + 10, y2: height + 10, class: "axis" }), ticks,
    threshold === null ? null : [h("line", { x1: x, x2: x, y1: 4, y2: height + 10, class: "here" }),
      h("text", { x: x > 300 ? x - 4 : x + 4, y: 14, "text-anchor": x > 300 ? "end" : "start" }, "threshold")],
    h("text", { x: 310, y: height + 45, "text-anchor": "middle" }, "probability of fraud (height of bars: logarithm of the number of rows)"));
}

function fileTab(state) {
  const { facts } = state, names = facts.inputs.map((one) => one.name);
  const input = h("input", { type: "file", id: "fraudnb-file", accept: ".csv,.parquet,.pq,.gz,.zip", onchange: () => input.files[0] && start(input.files[0]) });
  const status = h("div", { "aria-live": "polite" }), mark = h("div", { "aria-live": "polite" }), shown = h("div", {}), why = h("div", { "aria-live": "polite" });
  const drop = h("div", { class: "drop",
    ondragover: (event) => { event.preventDefault(); drop.classList.add("over"); },
    ondragleave: () => drop.classList.remove("over"),
    ondrop: (event) => { event.preventDefault(); drop.classList.remove("over"); if (event.dataTransfer.files[0]) start(event.dataTransfer.files[0]); } },
  h("label", { for: "fraudnb-file" }, "Drop a CSV or Parquet file here, or choose one"), input,
  h("p", { class: "hint" }, `It needs the columns ${names.length > 4 ? `${names.slice(0, 3).join(", ")} … ${names.at(-1)}` : names.join(", ")}; others are kept as they are.`));
  let table = null, order = null, page = 0, query = "", turn = 0, link = null, busy = false;

  async function start(file, again = false) { // again: what is there stays until the new answer has come
    const mine = ++turn;
    busy = true;
    if (!again) {
      table = null;
      fill(shown);
      delete shown.dataset.scoredFile;
      fill(why);
      fill(mark);
    }
    const bar = h("progress", { max: "1", "aria-label": "Progress" }), text = h("span", {}, "Reading");
    fill(status, h("div", { class: "row" }, h("span", { class: "spin" }), text, h("span", { class: "quiet" }, `${file.name}, ${plain(file.size / 1e6)} MB`)), bar);
    const step = (name, done) => {
      if (mine !== turn) return;
      text.textContent = done === null ? name : `${name}, ${Math.round(100 * done)} %`;
      if (done === null) bar.removeAttribute("value"); else bar.value = done;
    };
    try {
      if (!file.size) throw new Problem("The file is empty.");
      const { blob, shown: by } = await scoreFile(state, file, step);
      const found = await indexRecords(blob, by.amount, (done) => step("Sorting", done));
      if (mine !== turn) return;
      table = Object.assign(found, { name: file.name, file, by, saved: false, priced: found.amounts.every(Number.isFinite) });
      fill(why);
      table.byRisk = Uint32Array.from(table.probabilities.keys()).sort((one, other) => table.probabilities[other] - table.probabilities[one]);
      order = table.byRisk;
      [page, query] = [0, ""];
      fill(status, h("p", {}, `${whole(table.probabilities.length)} transactions of ${file.name} were scored.`));
      await build();
    } catch (problem) {
      if (mine === turn) fill(status, failure("Nothing was scored.", problem));
    }
    if (mine === turn) busy = false;
    input.value = "";
  }

  // After a change of the model the table stays what it was: the former model's, by whose threshold it is decided.
  const former = () => table.by.sha256 !== facts.sha256;
  const own = () => (former() ? table.by : facts);

  // a file that was scored at a chosen threshold may lack amounts; then one threshold is all there is to decide by
  const ruleHere = () => (table.priced && state.chosen === null ? own().rule : null);
  const thresholdHere = () => state.chosen ?? own().threshold;
  const isAlert = (row) => decides(table.probabilities[row], table.amounts[row], thresholdHere(), ruleHere());
  const originColumns = () => ({ model: own().name, model_sha256: own().sha256,
    ...(ruleHere() ? { review_cost: ruleHere().review_cost, recovery_rate: ruleHere().recovery_rate } : { threshold: thresholdHere() }) });

  const showMark = () => fill(mark, table && former() ? h("div", { class: "notice" }, h("b", {}, "Scored by the former model. "),
    `These probabilities and decisions are of ${versionWords(table.by)}, which has been replaced. `,
    h("div", { class: "row" }, h("button", { type: "button", class: "act", onclick: () => start(table.file, true) }, "Score the file again"))) : null);

  function summary() {
    const how = ruleHere() ? `decided by amount: a review costs ${money(ruleHere().review_cost)}` : `at a threshold of ${percent(thresholdHere())}`;
    let alerts = 0, held = 0, expected = 0, known = 0;
    table.probabilities.forEach((probability, row) => {
      const alert = isAlert(row), amount = table.amounts[row];
      alerts += alert;
      if (!Number.isFinite(amount)) return;
      known += 1;
      if (alert) held += amount;
      expected += probability * amount;
    });
    const box = (value, text) => h("div", {}, h("b", {}, value), text);
    return h("div", { class: "numbers" },
      box(whole(alerts), `alerts, ${share(alerts / Math.max(1, table.probabilities.length))} of the transactions, ${how}`),
      known ? box(money(held), "in the alerts") : null, known ? box(money(expected), "expected fraud in all: sum of probability × amount") : null);
  }

  async function build() {
    const find = h("input", { id: "fraudnb-find", type: "search", value: query, autocomplete: "off" });
    let timer = null;
    find.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => search(find.value), 250); });
    const parts = { summary: h("div", {}), histogram: h("div", {}), rows: h("div", {}), pages: h("div", { class: "row" }) };
    shown.dataset.scoredFile = table.name;
    fill(shown, parts.summary, parts.histogram,
      h("div", { class: "row" }, h("button", { type: "button", class: "act main", onclick: download }, "Download the scored file (CSV)")),
      h("h2", {}, "By risk"),
      h("div", { style: "max-width:24rem" }, h("label", { for: "fraudnb-find" }, "Search in all columns"), find),
      why, parts.rows, parts.pages);
    table.parts = parts;
    await refresh();
  }

  async function search(text) {
    const mine = ++turn;
    query = text.trim();
    if (query) {
      fill(table.parts.pages, h("span", { class: "spin" }), "Searching …");
      const found = await findRows(table, query, () => mine !== turn);
      if (!found) return;
      order = table.byRisk.filter((row) => found.has(row));
    } else order = table.byRisk;
    page = 0;
    await refresh();
  }

  async function refresh() {
    if (!table) return;
    const { parts } = table, mine = table;
    showMark();
    fill(parts.summary, summary());
    fill(parts.histogram, histogram(table, ruleHere() ? null : thresholdHere()));
    const rows = [...order.slice(page * PAGE_ROWS, (page + 1) * PAGE_ROWS)];
    const records = await Promise.all(rows.map((row) => readRecord(mine, row)));
    if (mine !== table) return;
    const idAt = table.header.findIndex((name) => ID_NAMES.includes(name));
    const rest = table.header.map((name, at) => [name, at]).slice(0, -2).filter(([, at]) => at !== idAt)
      .sort(([one], [other]) => Number(other === facts.amount) - Number(one === facts.amount));
    const names = [idAt < 0 ? "Row" : table.header[idAt], "Probability", "Decision", "Why", ...rest.map(([name]) => name)];
    fill(parts.rows, rows.length ? h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Scored transactions by risk" },
      h("table", {}, h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name)))),
        h("tbody", {}, rows.map((row, at) => {
          const id = idAt < 0 ? whole(row + 1) : records[at][idAt], alert = isAlert(row);
          const line = h("tr", {}, h("th", { scope: "row" }, id), h("td", { class: "number" }, percent(table.probabilities[row])),
            h("td", {}, alert ? "▲ alert" : "✓ pass"),
            h("td", {}, h("button", { type: "button", "aria-label": `Why ${id}`, onclick: () => explain(records[at], id, row, line) }, "Why")),
            rest.map(([, column]) => h("td", { class: "number", title: records[at][column] }, shortened(records[at][column]))));
          return line;
        })))) : h("p", { class: "quiet" }, "No transaction has this in any of its columns."));
    const last = Math.max(0, Math.ceil(order.length / PAGE_ROWS) - 1);
    const turnTo = (text, target, off) => h("button", { type: "button", class: "act", disabled: off, onclick: async () => { page = target; await refresh(); } }, text);
    fill(parts.pages, order.length ? [turnTo("← Riskier", page - 1, page === 0), h("span", { role: "status" }, `${whole(page * PAGE_ROWS + 1)} to ${whole(page * PAGE_ROWS + rows.length)} of ${whole(order.length)}`), turnTo("Less risky →", page + 1, page >= last)] : null);
  }

  async function explain(record, id, row, line) {
    for (const other of line.parentElement.children) other.classList.toggle("chosen", other === line);
    fill(why, h("p", {}, h("span", { class: "spin" }), " Asking why …"));
    try {
      if (former()) throw new Problem(REPLACED);
      const values = Object.fromEntries(facts.inputs.map(({ name }) => {
        const text = record[table.header.indexOf(name)];
        return [name, text === "" ? null : Number(text)];
      }));
      const answer = await state.ask("row", { row: values, threshold: ruleHere() ? null : thresholdHere(), model: table.by.sha256 });
      fill(why, h("div", { class: "card" }, h("h2", { style: "margin-top:0" }, `Transaction ${id}`),
        verdict(table.probabilities[row], table.amounts[row], thresholdHere(), ruleHere()), reasonsList(answer.reasons)));
      why.scrollIntoView({ block: "nearest" });
    } catch (problem) {
      if (problem.status === 409) await state.refresh().catch(() => undefined);
      fill(why, failure("There is no answer why.", problem.status === 409 ? new Problem(REPLACED) : problem));
    }
  }

  async function download() {
    const blob = await withDecisions(table, isAlert, originColumns());
    if (link) URL.revokeObjectURL(link);
    link = URL.createObjectURL(blob);
    h("a", { href: link, download: `${table.name.replace(/(\.(csv|parquet|pq|gz|zip))+$/i, "")}-scored-${own().name.replace(/[^\w-]+/g, "_")}-${own().sha256.slice(0, 10)}.csv` }).click();
    table.saved = true;
  }

  state.unsaved = () => busy || Boolean(table && !table.saved);
  state.onThreshold.push(refresh);
  state.onModel.push(() => { fill(why); refresh(); });
  return h("div", {}, drop, status, mark, shown);
}

// -- third tab: the threshold

function curveChart(curve, threshold) { // null: there is no one threshold
  const width = 600, height = 180, x = (value) => 40 + 540 * value, y = (value) => 10 + height * (1 - value);
  const line = (at, kind) => h("polyline", { points: curve.filter((point) => point[at] !== null).map((point) => `${x(point[0]).toFixed(1)},${y(point[at]).toFixed(1)}`).join(" "), fill: "none", "stroke-width": 2, class: kind });
  return h("svg", { viewBox: `0 0 ${width} ${height + 50}`, role: "img", "aria-label": "Precision and recall by threshold; the numbers beside the slider say the same" },
    [0, 0.5, 1].map((value) => [h("line", { x1: 40, x2: 580, y1: y(value), y2: y(value), class: "axis", "stroke-width": 0.5 }), h("text", { x: 34, y: y(value) + 4, "text-anchor": "end" }, `${100 * value} %`)]),
    [0, 0.25, 0.5, 0.75, 1].map((value) => h("text", { x: x(value), y: height + 26, "text-anchor": "middle" }, `${100 * value} %`)),
    line(1, "precision-line"), line(2, "recall-line"),
    threshold === null ? null : h("line", { x1: x(threshold), x2: x(threshold), y1: 6, y2: height + 10, class: "here" }),
    h("text", { x: 310, y: height + 44, "text-anchor": "middle" }, "threshold (solid: precision, dashed: recall)"));
}

function thresholdTab(state) {
  const panel = h("div", {});
  let show = () => undefined;
  const build = () => { show = fillThreshold(state, panel); };
  build();
  state.onThreshold.push(() => show());
  state.onModel.push(build);
  return panel;
}

// Fill `panel` for the model that the page shows; what shows another threshold in it.
function fillThreshold(state, panel) {
  const { facts } = state, curve = facts.curve;
  if (!curve.length) {
    fill(panel, h("p", {}, "This model was not evaluated, so there is no telling what a threshold would bring. Run 04_evaluate."));
    return () => undefined;
  }
  const numbers = h("div", { class: "numbers", "aria-live": "polite" }), chart = h("div", {});
  const hint = h("p", { id: "fraudnb-threshold-hint" }), seen = "The numbers are of the model's test, which it had not seen in training.";
  const slider = h("input", { type: "range", id: "fraudnb-threshold", min: "0", max: "1", step: "0.001", "aria-describedby": "fraudnb-threshold-hint" });
  const typed = h("input", { id: "fraudnb-threshold-number", inputmode: "decimal", style: "max-width:10rem" });
  // the curve's last point whose threshold is still reached: alerts are the rows from the threshold on
  const at = (threshold) => curve.findLast((point) => point[0] >= threshold) ?? null;
  const show = () => {
    const point = state.rule ? [null, ...state.rule.measured] : at(state.threshold), box = (value, text) => h("div", {}, h("b", {}, value), text);
    if (document.activeElement !== typed) typed.value = String(Number(state.threshold.toPrecision(6)));
    slider.value = state.threshold;
    slider.setAttribute("aria-valuetext", percent(state.threshold));
    fill(hint, state.rule ? `${facts.policy} That holds in all three tabs until you choose one threshold for all; the cheapest is where the slider stands. ${seen}`
      : `From this probability on a transaction is an alert, in all three tabs. ${seen}`);
    fill(numbers, point
      ? [box(share(point[1]), "precision: of the alerts, how many are frauds"), box(share(point[2]), "recall: of the frauds, how many are caught"),
         box(whole(point[3]), "alerts a day"), box(whole(point[4]), "expected cost over the test's days: missed frauds and reviews")]
      : [box("0", "alerts: no transaction of the test is that risky")]);
    fill(chart, curveChart(curve, state.rule ? null : state.threshold));
  };
  slider.addEventListener("input", () => state.setThreshold(Number(slider.value)));
  typed.addEventListener("change", () => {
    const value = Number(typed.value.replace(",", "."));
    if (typed.value.trim() !== "" && value >= 0 && value <= 1) state.setThreshold(value);
    else show();
  });
  show();
  fill(panel,
    hint,
    h("label", { for: "fraudnb-threshold" }, "Threshold"), slider,
    h("div", { class: "row" }, h("label", { for: "fraudnb-threshold-number" }, "As a number, 0 to 1"), typed,
      h("button", { type: "button", class: "act", onclick: () => state.setThreshold(null) }, "The model's own")),
    numbers, chart);
  return show;
}

// -- the page

function tabs(state, parts) {
  const panels = [], list = h("div", { role: "tablist", "aria-label": "What to do" });
  const choose = (name, focus) => {
    parts.forEach(([id], at) => {
      const chosen = id === name, tab = list.children[at];
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      panels[at].hidden = !chosen;
      if (chosen && focus) tab.focus();
    });
    state.remember("tab", name === parts[0][0] ? null : name);
  };
  parts.forEach(([id, text, build], at) => {
    list.append(h("button", { type: "button", role: "tab", id: `fraudnb-tab-${id}`, "aria-controls": `fraudnb-panel-${id}`, onclick: () => choose(id, false),
      onkeydown: (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        const target = event.key === "Home" ? 0 : event.key === "End" ? parts.length - 1 : step && (at + step + parts.length) % parts.length;
        if (target === undefined) return;
        event.preventDefault();
        choose(parts[target][0], true);
      } }, text));
    panels.push(h("div", { role: "tabpanel", id: `fraudnb-panel-${id}`, "aria-labelledby": `fraudnb-tab-${id}`, hidden: true }, build(state)));
  });
  const wanted = state.address.get("tab");
  choose(parts.some(([id]) => id === wanted) ? wanted : parts[0][0], false);
  return [list, ...panels];
}

function makeState(model) {
  const facts = { ...model.get("facts") }, address = new URLSearchParams(location.hash.slice(1));
  const asked = Number(address.get("threshold") ?? "x");
  const stored = () => { try { return JSON.parse(sessionStorage.getItem("fraudnb-form")); } catch { return null; } };
  let refreshing = null;
  const state = {
    facts, address, onThreshold: [], onModel: [], kept: stored(), ask: null, unsaved: () => false,
    chosen: asked >= 0 && asked <= 1 ? asked : null, // a threshold, in place of the model's own
    get threshold() { return state.chosen ?? facts.threshold; },
    get rule() { return state.chosen === null ? facts.rule : null; },
    get asked() { return state.chosen ?? (facts.decides ? null : facts.threshold); }, // null: by the model's own rule
    keep: (values) => sessionStorage.setItem("fraudnb-form", JSON.stringify(values)),
    remember(name, value) {
      if (value === null) address.delete(name); else address.set(name, value);
      const text = address.toString();
      history.replaceState(history.state, "", text ? `#${text}` : location.pathname + location.search);
    },
    setThreshold(value) {
      state.chosen = value === facts.threshold && !facts.rule ? null : value;
      state.remember("threshold", state.chosen === null ? null : String(state.chosen));
      state.onThreshold.forEach((act) => act());
    },
    // Show another model when `origin`, of an answer, is not of the one that is shown; `own`: by the model's own rule.
    async notice(origin, own) {
      if (!origin?.sha256) return;
      const known = facts.decides && own ? facts.decided : { sha256: facts.sha256 };
      const same = Object.entries(known).every(([name, value]) => name === "model" || JSON.stringify(origin[name] ?? null) === JSON.stringify(value ?? null));
      if (!same) await state.refresh();
    },
    // Ask what the model is now, and show that everywhere.
    refresh() {
      refreshing ??= (async () => {
        const before = { ...facts }, { facts: now } = await state.ask("facts");
        Object.assign(facts, now);
        if (JSON.stringify(before.decided) !== JSON.stringify(facts.decided)) state.onModel.forEach((act) => act(before));
      })().finally(() => { refreshing = null; });
      return refreshing;
    },
  };
  return state;
}

// A page that nobody uses gives its place to others. It says so before, and afterwards it can be gone on with: what was
// filled in is kept in this tab. Use is what a person does; the server is told of it now and then.
function watchUse(state, notice, onEnd) {
  const seconds = Number(document.querySelector('meta[name="fraudnb-idle"]')?.content);
  if (!seconds) return () => undefined; // plain Voila ends nothing
  const early = Math.min(120, seconds / 3), every = 1000 * Math.min(15, seconds / 10);
  const events = ["pointerdown", "keydown", "wheel", "input", "drop", "paste"], left = h("span", { "aria-hidden": "true" });
  const long = seconds < 120 ? `${whole(seconds)} seconds` : `${whole(seconds / 60)} minutes`;
  let used = Date.now(), waiting = null, warned = false, ended = false;
  const say = (...parts) => { fill(notice, parts); notice.hidden = !parts.length; };
  const use = () => {
    if (ended) return;
    used = Date.now();
    if (warned) say();
    warned = false;
    waiting ??= setTimeout(() => { waiting = null; state.ask("use", {}, [], 8).catch(() => undefined); }, every);
  };
  const goOn = (act) => h("button", { type: "button", class: "act main", onclick: act }, "Go on");
  const check = () => {
    const remaining = seconds - (Date.now() - used) / 1000;
    if (ended || remaining > early) return;
    if (remaining > 0) {
      left.textContent = ` ${Math.ceil(remaining)} s left. `;
      if (!warned) say(h("b", {}, "Are you still there? "), "This page is not being used, and will soon close to make room for others. What you have filled in is kept.", left, goOn(use));
      warned = true;
      return;
    }
    ended = true;
    onEnd();
    const file = document.querySelector("[data-scored-file]") ? " The scored file can be read and downloaded until you go on; after that it has to be sent again." : "";
    say(h("b", {}, "This page was closed. "), `It was not used for ${long}. What you have filled in is kept.${file} `, goOn(() => location.reload()));
  };
  for (const kind of events) window.addEventListener(kind, use, { capture: true, passive: true });
  const timer = setInterval(check, Math.min(1000, every));
  use();
  return () => {
    clearInterval(timer);
    clearTimeout(waiting);
    for (const kind of events) window.removeEventListener(kind, use, { capture: true });
  };
}

// The connection of the page: to its kernel or, when that is gone, to the API alone, which can do the same but for
// describing another model. `lost` is where the page says so. What is asked goes the way that is open.
function connect(model, state, lost) {
  const { facts } = state, kernel = makeKernel(model, (connected) => onState(connected));
  let way = "kernel", resting = false; // or "none", or "api"
  const show = (...content) => { fill(lost, ...content); lost.hidden = !content.length; };
  const offer = () => show(h("p", {}, h("b", {}, "The connection is lost. "), "What you have filled in stays."), h("button", { type: "button", class: "act", onclick: reconnect }, "Reconnect"));
  function onState(connected) {
    if (resting) return;
    if (connected && way !== "kernel") { way = "kernel"; show(); }
    if (!connected && way === "kernel") { way = "none"; offer(); }
    if (!connected) kernel.cut();
  }
  const get = async (path) => fetch(facts.api.replace(/api\/score$/, path), { cache: "no-store", signal: AbortSignal.timeout(5000) });

  // The server is asked before the page is left, so that nobody ends at a browser's error page.
  async function reconnect() {
    for (let attempt = 0; way === "none"; attempt += 1) {
      if (attempt) await new Promise((done) => setTimeout(done, 2000));
      try {
        if (!facts.api) {
          await fetch(location.href, { method: "HEAD", cache: "no-store", signal: AbortSignal.timeout(5000) });
          return location.reload();
        }
        if ((await get("readyz")).ok) {
          const answer = await get("api/model");
          if (answer.status === 401) return location.reload(); // to the log-in
          if (answer.ok) { way = "api"; show(); return beat(); }
        }
      } catch { /* it does not answer yet */ }
      if (way === "none") show(h("span", { class: "spin" }), h("b", {}, " The server does not answer yet. "), "This page asks again by itself; what you have filled in stays.");
    }
    return undefined;
  }

  const reload = () => show(h("p", {}, h("b", {}, "The model was replaced. "), "This page still shows the former one. Download what you need, then reload it."),
    h("button", { type: "button", class: "act", onclick: () => location.reload() }, "Reload"));
  state.ask = async (kind, content, buffers, seconds) => {
    if (kind === "facts" && way === "api") {
      reload();
      throw new Problem("The model was replaced. Reload the page to go on with the new one.");
    }
    try {
      if (way === "kernel" || !facts.api || kind !== "row") return await kernel.ask(kind, content, buffers, seconds);
    } catch (problem) {
      if (!problem.lost || !facts.api || kind !== "row") throw problem;
    }
    const answer = await askApi(facts.api, content);
    if (way === "none") { way = "api"; show(); }
    return answer;
  };

  // Now and then the page asks which model is there, and so whether anybody is.
  async function beat() {
    try {
      if (way !== "api") await state.notice((await kernel.ask("ping", {}, [], 8)).current, true);
      else {
        const { headers } = await get("readyz");
        await state.notice(originFrom((name) => headers.get(name)), true);
      }
    } catch { /* the banner says it */ }
  }
  const timer = setInterval(beat, 10_000), unwatch = watchSocket(model, onState);
  const offline = () => onState(false), seen = () => { if (!document.hidden) beat(); };
  window.addEventListener("offline", offline);
  window.addEventListener("online", beat);
  document.addEventListener("visibilitychange", seen);
  const rest = () => { // the kernel was given back: nothing is said of it, and what is there is explained by the API
    resting = true;
    clearInterval(timer);
    kernel.cut();
    if (facts.api) way = "api";
    show();
  };
  const disconnect = () => {
    clearInterval(timer);
    unwatch();
    window.removeEventListener("offline", offline);
    window.removeEventListener("online", beat);
    document.removeEventListener("visibilitychange", seen);
  };
  return { rest, disconnect };
}

// The question before a scored file is lost. It comes before the front end's own listener, which ends the kernel even
// if the person then stays.
function askBeforeLeaving(state) {
  const leave = (event) => {
    if (!state.unsaved()) return;
    event.stopImmediatePropagation();
    event.preventDefault();
    event.returnValue = true; // for browsers that ask for it
  };
  window.addEventListener("beforeunload", leave, true);
  return () => window.removeEventListener("beforeunload", leave, true);
}

function render({ model, el }) {
  document.body.classList.add("fraudnb-page");
  document.documentElement.lang = "en";
  document.title = "Score card transactions";
  const facts = model.get("facts"), root = h("main", { class: "fraudnb" });
  el.append(root);
  if (facts.error) {
    fill(root, h("h1", {}, "Score card transactions"), h("div", { class: "notice bad", role: "alert" }, h("b", {}, "There is no model to ask."), h("p", {}, facts.error)),
      h("button", { type: "button", class: "act main", onclick: () => location.reload() }, "Try again"));
    return undefined;
  }
  const lost = h("div", { class: "notice bad", role: "alert", hidden: true }), changed = h("div", { "aria-live": "polite" }), head = h("div", {});
  const notice = h("div", { class: "notice", role: "alert", hidden: true });
  const state = makeState(model), { rest, disconnect } = connect(model, state, lost), unask = askBeforeLeaving(state);
  fill(head, header(state.facts));
  state.onModel.push((before) => {
    fill(head, header(state.facts));
    const [title, text] = changeWords(before, state.facts, state.chosen, new Date());
    fill(changed, h("div", { class: "notice changed" }, h("p", {}, h("b", {}, title), text.replaceAll(" %", "\u00a0%")),
      h("button", { type: "button", class: "act", onclick: () => fill(changed) }, "Got it")));
  });
  fill(root, head, lost, notice, changed, tabs(state, [["one", "One transaction", oneTab], ["file", "A file", fileTab], ["threshold", "Threshold", thresholdTab]]));
  root.dataset.ready = "true";
  const unwatch = watchUse(state, notice, rest);
  return () => {
    disconnect();
    unwatch();
    unask();
  };
}

export default { render };
