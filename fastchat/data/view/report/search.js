// --- the records in the list, and the search hits in the open one

const STATES = {
  all: ["all", () => true],
  learned: ["complete", (r) => r.drop === null && !r.n[1]],
  cut: ["cut", (r) => r.drop === null && r.n[1] > 0],
  dropped: ["dropped", (r) => r.drop !== null],
  untrained: ["with answers not trained on", (r) => r.n[3] > 0],
  boundary: ["with boundary tokens", (r) => r.n[4] > 0],
  lookalikes: ["with special-token strings", (r) => r.n[5] > 0],
};
let rowsShown = ROWS;

const pattern = (query) => new RegExp(query.replace(/[.*+?^${}()|[\]\\\/]/g, "\\$&"), "giu");

// The id in a query such as `id:29871`, else null.
function wantedId() {
  const match = /^\s*id:\s*(\d+)\s*$/.exec(state.query);
  return match ? Number(match[1]) : null;
}

function filter() {
  const tests = [STATES[state.state][1]], why = reasonNamed.get(state.reason), id = wantedId();
  if (why !== undefined) tests.push((record) => [...runsOf(record)].some((run) => run.why === why));
  if (id !== null) {
    const place = tokens.findIndex((token) => token[ID] === id);
    tests.push((record) => place >= 0 && !!record.t && record.t.includes(place));
  } else if (state.query) {
    const search = pattern(state.query);
    tests.push((record) => [textOf(record), record.at, record.id || "", record.drop || ""].some((s) => s.search(search) >= 0));
  }
  found = [];
  records.forEach((record, i) => { if (tests.every((test) => test(record))) found.push(i); });
}

// The hits of the open record, as [first token, last token].
function hitsOf({ record, texts }) {
  const why = reasonNamed.get(state.reason), id = wantedId(), runs = [...runsOf(record)];
  if (!state.query) return runs.filter((run) => run.why === why).map((run) => [run.start, run.end - 1]);
  let hits = id === null ? textHits(texts) : [];
  if (id !== null) record.t.forEach((place, i) => { if (tokens[place][ID] === id) hits.push([i, i]); });
  if (why !== undefined) {
    hits = hits.filter(([a, b]) => runs.some((run) => run.why === why && run.start <= b && a < run.end));
  }
  return hits.slice(0, MAX_HITS);
}

function textHits(texts) {
  const ends = [], hits = [];
  let length = 0, at = 0;
  for (const text of texts) ends.push(length += text.length);
  for (const match of texts.join("").matchAll(pattern(state.query))) {
    while (ends[at] <= match.index) at += 1;
    let last = at;
    while (ends[last] < match.index + match[0].length) last += 1;
    hits.push([at, last]);
    if (hits.length > MAX_HITS) break;
  }
  return hits;
}

function drawRow(i) {
  const record = records[i], size = sizeOf(record), bar = make("i");
  bar.style.width = `${size ? 100 * record.n[0] / size : 0}%`;
  const facts = [make("span", { className: "share" }, bar), `${number(record.n[0])} of ${number(size)} supervised`];
  const button = make("button", { type: "button" },
    make("span", { className: "name" }, make("b", { textContent: record.p ? `${record.i}.${record.p[0] + 1}` : record.i }), make("span", { textContent: nameOf(record) })),
    make("span", { className: "facts" }, ...facts, ...badgesOf(record).slice(0, 1).map(badge)));
  button.dataset.record = i;
  return make("li", {}, button);
}

function drawList() {
  const shown = found.slice(0, rowsShown), more = data.total - records.length;
  $("list").replaceChildren(...shown.map(drawRow));
  $("more-records").hidden = shown.length === found.length;
  const of = found.length === records.length ? "" : `${number(found.length)} of `;
  $("found").textContent = of + plural(records.length, data.unit) + (more ? `; ${number(more)} more are only counted` : "");
  markCurrent();
}

function markCurrent() {
  for (const button of $("list").querySelectorAll("button")) {
    button.setAttribute("aria-current", Number(button.dataset.record) === state.record);
  }
  $("to-overview").setAttribute("aria-current", state.record === null);
}
