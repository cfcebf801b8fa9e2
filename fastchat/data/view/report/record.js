// --- one record: its turns, its tokens, and the selected token

function showRecord(i) {
  const record = records[i], size = sizeOf(record);
  view = {
    i, record, size, texts: textsOf(record), turn: new Int32Array(size), role: new Uint8Array(size),
    why: new Uint8Array(size), whysOfTurn: new Map(), hits: [], hit: -1, covered: new Set(),
    from: 0, to: Math.min(size, PAGE),
  };
  for (const { start, end, turn, role, why } of runsOf(record)) {
    view.turn.fill(turn, start, end);
    view.role.fill(role, start, end);
    view.why.fill(why, start, end);
    if (!view.whysOfTurn.has(turn)) view.whysOfTurn.set(turn, new Set());
    view.whysOfTurn.get(turn).add(why);
  }
  drawRecord();
}

// Redraw the open record; the element that had the focus gets it back.
function drawRecord() {
  const focused = document.activeElement && $("record").contains(document.activeElement) ? document.activeElement.id : "";
  findHits();
  const { record } = view;
  const parts = [recordBar(), make("p", { className: "sum", textContent: summary() }), ...recordBadges()];
  if (record.t) {
    parts.push(legend(), make("button", { type: "button", id: "earlier", className: "wide", onclick: showEarlier }),
      make("div", { id: "tokens", tabIndex: 0, role: "group",
        "aria-label": "Tokens; arrow keys move from token to token, up and down from turn to turn" }),
      make("button", { type: "button", id: "later", className: "wide", onclick: showLater }));
  }
  $("record").replaceChildren(...parts);
  if (record.t) drawTokens();
  if (focused && $(focused)) $(focused).focus({ preventScroll: true });
}

function recordBar() {
  const { record } = view, place = found.indexOf(view.i);
  const step = (id, by, textContent) => make("button", {
    id, type: "button", textContent, disabled: found[place + by] === undefined, onclick: () => stepRecord(by),
  });
  const name = record.id === null ? "" : `: ${visible(record.id.slice(0, 200))}`;
  return make("div", { className: "bar" }, make("h2", { textContent: `Row ${record.i}${exampleOf(record)}${name}` }),
    make("div", { className: "hits", id: "hits" }), step("previous", -1, "← previous"), step("next", 1, "next →"));
}

function summary() {
  const { record, size } = view, [learned, cut, turns, untrained] = record.n, kept = size - cut;
  if (!record.t) return visible(record.at);
  const parts = [visible(record.at), plural(size, "token")];
  if (record.drop === null) {
    const share = `${percent(learned, kept)} of ${cut ? "those kept" : "them"}`;
    parts.push(`${number(learned)} supervised (${share}) in ${plural(turns, "answer")}`);
    if (untrained) parts.push(`${plural(untrained, "answer")} not trained on`);
    if (cut) parts.push(`${plural(cut, "token")} cut off`);
  }
  return parts.join(" · ");
}

function recordBadges() {
  const badges = badgesOf(view.record).filter(([text]) => !/^cut by|not trained on$/.test(text));
  return badges.length ? [make("p", { className: "sum badges" }, ...badges.map(badge))] : [];
}

function legend() {
  const counts = new Map();
  for (const { start, end, why } of runsOf(view.record)) counts.set(why, (counts.get(why) || 0) + end - start);
  const items = [...counts].sort((a, b) => a[0] - b[0]).map(([why, n]) => {
    const [name, meaning] = reasons[why], on = state.reason === name;
    return make("li", {}, make("button", {
      id: `reason-${why}`, type: "button", className: `k ${LOOKS[why]}`, textContent: `${name} ${number(n)}`,
      title: `${meaning}. Click to find these tokens.`, "aria-pressed": on, onclick: () => search({ reason: on ? "" : name }),
    }));
  });
  return make("ul", { className: "legend", "aria-label": "Reasons in this row" }, ...items);
}

function drawTokens() {
  const { from, to, turn, size } = view, blocks = [];
  let block = null;
  for (let i = from; i < to; i++) {
    if (i === from || turn[i] !== turn[i - 1]) {
      block = make("div", { className: "tokens" });
      blocks.push(make("div", { className: "turn" }, whoSays(i), block));
    }
    const kind = view.role[i] >= KINDS && (i === from || turn[i] !== turn[i - 1] || view.role[i] !== view.role[i - 1]);
    if (kind) block.append(make("span", { className: "kind", textContent: roles[view.role[i]] }));
    block.append(drawToken(i));
  }
  $("tokens").replaceChildren(...blocks);
  $("earlier").hidden = from === 0;
  $("later").hidden = to === size;
  $("earlier").textContent = `Show more: ${plural(from, "token")} before`;
  $("later").textContent = `Show more: ${plural(size - to, "token")} after`;
  drawHits();
  markToken(false);
}

function showEarlier() { view.from = Math.max(0, view.from - PAGE); drawTokens(); }
function showLater() { view.to = Math.min(view.size, view.to + PAGE); drawTokens(); }

function drawToken(i) {
  const { record, texts, why, covered } = view, marks = ["k", LOOKS[why[i]]];
  if (i % 2) marks.push("odd");
  if (tokens[record.t[i]][CONTROL]) marks.push("control");
  if (covered.has(i)) marks.push("hit");
  if (!texts[i]) marks.push("part");
  const node = make("span", { className: marks.join(" ") });
  node.dataset.token = i;
  showText(node, texts[i]);
  return node;
}

// The role of the turn of token i, and whether it is trained on.
function whoSays(i) {
  const { record, whysOfTurn } = view, turn = view.turn[i], whys = [...whysOfTurn.get(turn)];
  if (turn < 0) {
    let last = i;
    while (last + 1 < view.size && view.turn[last + 1] === turn && !view.role[last]) last += 1;
    const speaks = whys.includes(reasonNamed.get("example")) ? "example" : roles[view.role[last]];
    return make("div", { className: "who" }, make("b", { textContent: speaks }));
  }
  const role = roles[record.s[turn]];
  const who = make("div", { className: "who" }, make("b", { textContent: role }), `turn ${turn + 1} `);
  if (role !== "assistant") return who;
  const missed = whys.find((why) => ["unlearned", "dropped", "cut"].includes(LOOKS[why]));
  if (whys.some((why) => reasons[why][2])) who.append(badge(["supervised", "good"]), " ");
  if (missed !== undefined) who.append(badge([reasons[missed][0], "warn"]));
  return who;
}

// --- the selected token

function markToken(scroll) {
  for (const node of $("tokens").querySelectorAll(".at")) { node.classList.remove("at"); node.removeAttribute("id"); }
  const node = state.token === null ? null : $("tokens").querySelector(`[data-token="${state.token}"]`);
  if (node) {
    node.classList.add("at");
    node.id = "token-at";
    $("tokens").setAttribute("aria-activedescendant", "token-at");
    if (scroll) node.scrollIntoView({ block: scroll });
  }
  drawDetails(state.token);
}

// Select token i, and draw the part of the record around it if necessary.
function goToToken(i, scroll = "nearest") {
  state.token = i;
  if (i < view.from || i >= view.to) {
    view.from = Math.max(0, i - PAGE / 4);
    view.to = Math.min(view.size, view.from + PAGE);
    drawTokens();
  }
  markToken(scroll);
  remember();
}

function drawDetails(i) {
  $("details").hidden = i === null || !view;
  if ($("details").hidden) return;
  const { record, texts } = view, token = tokens[record.t[i]], turn = view.turn[i], why = view.why[i];
  const item = (name, value, code = false) => make("div", {}, make("span", { className: "name", textContent: name }),
    make(code ? "code" : "span", { className: "value", textContent: value }));
  const [name, meaning, learned] = reasons[why];
  const label = LOOKS[why] === "cut" ? "none, it is cut" : record.drop !== null ? "none, the row is dropped"
    : learned ? `${token[ID]}, its own id` : "−100, not supervised";
  $("details").replaceChildren(
    item("token", i), texts[i] ? item("text", visible(texts[i]), true) : item("text", "part of a character"),
    item("id", token[ID]), item("in the vocabulary", visible(token[PIECE]), true),
    token[CONTROL] ? item("kind", "control token") : "",
    item("role", roles[view.role[i]] + (turn < 0 ? "" : `, turn ${turn + 1}`)), item("label", label),
    make("div", { className: "why" }, make("span", { className: `k swatch ${LOOKS[why]}`, textContent: name }), `${meaning}.`));
}

// --- hits

function findHits() {
  view.hits = view.record.t ? hitsOf(view) : [];
  view.hit = -1;
  view.covered = new Set();
  for (const [a, b] of view.hits) for (let i = a; i <= b; i++) view.covered.add(i);
}

function goToHit(by) {
  if (!view || !view.hits.length) return;
  view.hit = view.hit < 0 ? 0 : (view.hit + by + view.hits.length) % view.hits.length;
  goToToken(view.hits[view.hit][0], "center");
  drawHits();
}

function drawHits() {
  if (!state.query && !state.reason) { $("hits").replaceChildren(); return; }
  const n = view.hits.length, at = view.hit < 0 ? "" : `${number(view.hit + 1)} of `;
  const button = (id, by, name, textContent) => make("button", {
    id, type: "button", textContent, title: name, "aria-label": name, disabled: !n,
    onclick: () => { goToHit(by); $(id).focus(); },
  });
  $("hits").replaceChildren(n ? `${at}${number(n)}${n === MAX_HITS ? " or more" : ""} ${n === 1 ? "hit" : "hits"}` : "no hits",
    button("hit-before", -1, "previous hit", "↑"), button("hit-after", 1, "next hit", "↓"));
}
