// --- the overview: counts, lengths, reasons

function drawOverview() {
  const card = (title, ...nodes) => make("div", { className: "card" }, make("h2", { textContent: title }), ...nodes);
  const counts = data.counts.map(([name, parts]) => make("tr", {},
    make("th", { scope: "row", textContent: name }), make("td", {}, ...parts.map(countOf))));
  $("overview").replaceChildren(
    card("Counts", make("table", { id: "counts" }, make("tbody", {}, ...counts))),
    card("Tokens per dialogue", make("div", { id: "lengths" })),
    card("Why tokens are learned or not", reasonsTable(), leftOut()));
}

// A part of a line of counts; one that counts rows of this page opens them.
function countOf([textContent, name]) {
  if (!name || !records.some(STATES[name][1])) return textContent;
  return make("button", { type: "button", className: "link", textContent, title: "Click to list them.", onclick: () => {
    search({ state: name, query: "", reason: "" });
    go(found[0]);
  } });
}

function reasonsTable() {
  const totals = new Array(reasons.length).fill(0);
  for (const record of records) for (const run of runsOf(record)) totals[run.why] += run.end - run.start;
  const all = totals.reduce((a, b) => a + b, 0), rows = [];
  reasons.forEach(([name, meaning], why) => {
    if (totals[why]) rows.push(make("tr", {},
      make("th", { scope: "row" }, make("button", {
        type: "button", className: `k swatch ${LOOKS[why]}`, textContent: name, title: "Click to find these tokens.",
        onclick: () => { search({ reason: name, query: "", state: "all" }); go(found[0]); },
      })),
      make("td", { className: "meaning", textContent: meaning }),
      make("td", { className: "number", textContent: number(totals[why]) }),
      make("td", { className: "number", textContent: percent(totals[why], all) })));
  });
  const head = ["Reason", "Meaning", "Tokens", "Share"].map((textContent, i) =>
    make("th", { scope: "col", textContent, className: i > 1 ? "number" : "" }));
  return make("table", { id: "reasons" }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
}

function leftOut() {
  const more = data.total - records.length;
  if (!more) return "";
  const textContent = `Only the first ${plural(records.length, data.unit)}: with the tokens of ${number(more)} more, this page `
    + `would be too large. Counts and lengths cover all ${plural(data.total, data.unit)}.`;
  return make("p", { className: "sum", textContent });
}
