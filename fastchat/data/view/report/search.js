// --- the records that the filters let through, in order, and the search hits in the open one

const STATES = {
  all: ["all", () => true],
  trained: ["used", (r) => r.drop === null],
  complete: ["complete", (r) => r.drop === null && !r.n[6]],
  cut: ["cut", (r) => r.n[6] > 0],
  dropped: ["dropped", (r) => r.drop !== null],
  untrained: ["with answers not learned", (r) => r.n[3] > 0],
  boundary: ["with boundary tokens", (r) => r.n[4] > 0],
  lookalikes: ["with special-token strings", (r) => r.n[5] > 0],
};

const shareOf = (record) => record.n[0] / Math.max(sizeOf(record) - record.n[1], 1);
const SORTS = {
  file: ["as in the data", null],
  longest: ["longest first", (a, b) => sizeOf(b) - sizeOf(a)],
  least: ["least learned first", (a, b) => shareOf(a) - shareOf(b)],
  most: ["most learned first", (a, b) => shareOf(b) - shareOf(a)],
};

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
  const order = SORTS[state.sort][1];
  if (order) found.sort((a, b) => order(records[a], records[b]) || a - b);
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
