// --- the histogram of lengths, drawn for the width that it has; a pointer, a finger or arrow keys read its bins

const FATES = { whole: "complete", cut: "cut", dropped: "dropped" };

function svg(tag, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
}

function drawChart() {
  const { bins, max, facts } = data.lengths, box = $("lengths"), wide = Math.floor(box.clientWidth);
  if (!bins.length) { box.textContent = "No dialogue has tokens."; return; }
  if (!wide || wide === Number(box.dataset.wide)) return;
  box.dataset.wide = wide;
  const most = Math.max(...bins.map(([, , ...counts]) => counts.reduce((a, b) => a + b, 0)));
  const said = Object.entries(facts).map(([name, value]) => `${name} ${number(value)}`).join(", ");
  const size = { wide, high: 250, left: 12 + 8 * number(most).length, top: 52, base: 200 };
  size.slot = (wide - size.left - 16) / bins.length;
  const chart = svg("svg", { viewBox: `0 0 ${wide} ${size.high}`, class: "chart", role: "img", tabindex: 0,
    "aria-label": `Histogram of tokens per dialogue: ${said}` });
  chart.append(svg("line", { class: "axis", x1: size.left, x2: wide - 16, y1: size.base, y2: size.base }),
    svg("text", { class: "title", x: 0, y: 14 }, "Dialogues"),
    svg("text", { class: "title", x: wide - 16, y: size.base + 42, "text-anchor": "end" }, "Tokens per dialogue (logarithmic)"),
    svg("text", { x: size.left - 6, y: size.top + 4, "text-anchor": "end" }, number(most)),
    svg("text", { x: size.left - 6, y: size.base, "text-anchor": "end" }, "0"),
    ...bins.map((bin, i) => chartBar(bin, size.left + i * size.slot, (size.base - size.top) / most, size)),
    ...lengthLabels(bins, size), ...limitLine(bins, max, size));
  const swatches = Object.entries(FATES).filter((_, k) => bins.some((bin) => bin[2 + k]))
    .map(([kind, name]) => make("span", {}, make("i", { className: kind }), name));
  const reading = make("p", { id: "bin", className: "sum", textContent: `${said}. Point at a bar to read it.` });
  reading.setAttribute("aria-live", "polite");
  box.replaceChildren(make("p", { className: "swatches" }, ...swatches), chart, reading);
  readBins(chart, bins, size);
}

function chartBar([first, last, ...counts], x, scale, size) {
  const bar = svg("g", {}), kinds = Object.keys(FATES);
  let y = size.base;
  bar.append(svg("rect", { class: "slot", x, y: size.top, width: size.slot, height: size.base - size.top }));
  counts.forEach((n, k) => {
    if (!n) return;
    const height = Math.max(n * scale, 1);
    y -= height;
    bar.append(svg("rect", { class: kinds[k], x: x + size.slot * .08, y, width: size.slot * .84, height }));
  });
  return bar;
}

function readBins(chart, bins, size) {
  const names = Object.values(FATES), bars = chart.querySelectorAll("g");
  let at = -1;
  const read = (i) => {
    at = Math.min(Math.max(i, 0), bins.length - 1);
    const [first, last, ...counts] = bins[at];
    const parts = counts.map((n, k) => (n ? `${number(n)} ${names[k]}` : "")).filter(Boolean).join(", ") || "none";
    $("bin").textContent = `${first === last ? number(first) : `${number(first)} to ${number(last)}`} tokens: ${parts}`;
    bars.forEach((bar, k) => bar.classList.toggle("at", k === at));
  };
  const point = (event) => {
    const box = chart.getBoundingClientRect(), x = (event.clientX - box.left) * size.wide / box.width;
    read(Math.floor((x - size.left) / size.slot));
  };
  chart.onpointermove = point;
  chart.onpointerdown = point;
  chart.onkeydown = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { event.preventDefault(); read(at + by); }
  };
}

// Powers of two are labels at the left edge of their bins, if there is room.
function lengthLabels(bins, size) {
  const labels = [];
  let room = -Infinity;
  bins.forEach(([first], i) => {
    const x = size.left + i * size.slot;
    if ((first & (first - 1)) !== 0 || x < room) return;
    labels.push(svg("text", { x, y: size.base + 18, "text-anchor": "middle" }, number(first)));
    room = x + 14 + 8 * number(first).length;
  });
  return labels;
}

function limitLine(bins, max, size) {
  const at = bins.findIndex(([first, last]) => first <= max && max <= last);
  if (at < 0) return [];
  const [first, last] = bins[at], x = size.left + (at + (max + 1 - first) / (last + 1 - first)) * size.slot;
  const left = x > size.wide / 2;
  return [svg("line", { class: "limit", x1: x, x2: x, y1: 18, y2: size.base }),
    svg("text", { class: "limit-text", x: left ? x - 5 : x + 5, y: 29, "text-anchor": left ? "end" : "start" },
      `--model_max_length ${number(max)}`)];
}
