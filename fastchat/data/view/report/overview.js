// --- the overview: counts, lengths, reasons

function drawOverview() {
  const card = (title, ...nodes) => make("div", { className: "card" }, make("h2", { textContent: title }), ...nodes);
  const counts = data.counts.map(([name, value]) => make("tr", {},
    make("th", { scope: "row", textContent: name }), make("td", { textContent: value })));
  $("overview").replaceChildren(
    card("Counts", make("table", {}, make("tbody", {}, ...counts))),
    card("Tokens per dialogue", ...lengthsChart()),
    card("Why tokens are supervised or not", reasonsTable(), leftOut()),
    keys());
}

function reasonsTable() {
  const totals = new Array(reasons.length).fill(0);
  for (const record of records) for (const run of runsOf(record)) totals[run.why] += run.end - run.start;
  const all = totals.reduce((a, b) => a + b, 0), rows = [];
  reasons.forEach(([name, meaning], why) => {
    if (totals[why]) rows.push(make("tr", {},
      make("th", { scope: "row" }, make("button", {
        type: "button", className: `k swatch ${LOOKS[why]}`, textContent: name, title: "Click to find these tokens.",
        onclick: () => { search({ reason: name }); go(found[0]); },
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

function keys() {
  const pairs = [[["/"], "search"], [["j", "k"], "next and previous row"], [["n", "p"], "next and previous hit"],
    [["o"], "overview"], [["←", "→", "↑", "↓"], "tokens and turns, when the text has the focus"]];
  return make("p", { className: "keys" }, ...pairs.map(([names, meaning]) =>
    make("span", {}, ...names.map((textContent) => make("kbd", { textContent })), ` ${meaning}`)));
}

// --- the histogram

const FATES = { whole: "complete", cut: "cut", dropped: "dropped" };

function svg(tag, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
}

function lengthsChart() {
  const { bins, max, facts } = data.lengths;
  if (!bins.length) return [make("p", { textContent: "No dialogue has tokens." })];
  const said = Object.entries(facts).map(([name, value]) => `${name} ${number(value)}`).join(", ");
  const size = { wide: 900, high: 190, left: 44, top: 22, base: 166 };
  size.slot = (size.wide - size.left - 8) / bins.length;
  const most = Math.max(...bins.map(([, , ...counts]) => counts.reduce((a, b) => a + b, 0)));
  const chart = svg("svg", { viewBox: `0 0 ${size.wide} ${size.high}`, class: "chart", role: "img",
    "aria-label": `Histogram of tokens per dialogue: ${said}` });
  chart.append(svg("line", { class: "axis", x1: size.left, x2: size.wide - 8, y1: size.base, y2: size.base }),
    svg("text", { x: size.left - 6, y: size.top + 4, "text-anchor": "end" }, number(most)),
    svg("text", { x: size.left - 6, y: size.base, "text-anchor": "end" }, "0"),
    ...bins.map((bin, i) => chartBar(bin, size.left + i * size.slot, (size.base - size.top) / most, size)),
    ...lengthLabels(bins, size), ...limitLine(bins, max, size));
  const swatches = Object.entries(FATES).filter((_, k) => bins.some((bin) => bin[2 + k]))
    .map(([kind, name]) => make("span", {}, make("i", { className: kind }), name));
  return [chart, make("p", { className: "swatches" }, ...swatches, make("span", { textContent: said }))];
}

function chartBar([first, last, ...counts], x, scale, size) {
  const names = Object.values(FATES), bar = svg("g", {}), kinds = Object.keys(FATES);
  const said = counts.map((n, k) => (n ? `${number(n)} ${names[k]}` : "")).filter(Boolean).join(", ") || "none";
  let y = size.base;
  bar.append(svg("title", {}, `${number(first)} to ${number(last)} tokens: ${said}`),
    svg("rect", { x, y: size.top, width: size.slot, height: size.base - size.top, fill: "transparent" }));
  counts.forEach((n, k) => {
    if (!n) return;
    const height = Math.max(n * scale, 1);
    y -= height;
    bar.append(svg("rect", { class: kinds[k], x: x + size.slot * .08, y, width: size.slot * .84, height }));
  });
  return bar;
}

// Powers of two are labels at the left edge of their bins, if there is room.
function lengthLabels(bins, size) {
  const labels = [];
  let room = -Infinity;
  bins.forEach(([first], i) => {
    const x = size.left + i * size.slot;
    if ((first & (first - 1)) !== 0 || x < room) return;
    labels.push(svg("text", { x, y: size.base + 16, "text-anchor": "middle" }, number(first)));
    room = x + 40;
  });
  return labels;
}

function limitLine(bins, max, size) {
  const at = bins.findIndex(([first, last]) => first <= max && max <= last);
  if (at < 0) return [];
  const [first, last] = bins[at], x = size.left + (at + (max + 1 - first) / (last + 1 - first)) * size.slot;
  const left = x > size.wide / 2;
  return [svg("line", { class: "limit", x1: x, x2: x, y1: 4, y2: size.base }),
    svg("text", { class: "limit-text", x: left ? x - 5 : x + 5, y: 13, "text-anchor": left ? "end" : "start" },
      `--model_max_length ${number(max)}`)];
}
