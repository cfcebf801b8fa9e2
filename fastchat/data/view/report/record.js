// --- one record: its turns, its tokens, and the selected token

function showRecord(i) {
  const record = records[i], size = sizeOf(record);
  view = {
    i, record, size, texts: textsOf(record), turn: new Int32Array(size), role: new Uint8Array(size),
    why: new Uint8Array(size), whysOfTurn: new Map(), hits: [], hit: -1, covered: new Set(),
    from: 0, to: Math.min(size, PAGE), end: size,  // `end`: of what training sees
  };
  for (const { start, end, turn, role, why } of runsOf(record)) {
    view.turn.fill(turn, start, end);
    view.role.fill(role, start, end);
    view.why.fill(why, start, end);
    if (unseen(why)) view.end = Math.min(view.end, start);
    if (!view.whysOfTurn.has(turn)) view.whysOfTurn.set(turn, new Set());
    view.whysOfTurn.get(turn).add(why);
  }
  drawRecord();
}

const unseen = (why) => LOOKS[why].startsWith("cut");

// Redraw the open record; the element that had the focus gets it back.
function drawRecord() {
  const focused = document.activeElement && $("record").contains(document.activeElement) ? document.activeElement.id : "";
  findHits();
  const { record } = view;
  const parts = [recordBar(), make("p", { className: "sum", textContent: summary() }), ...recordBadges()];
  const look = state.edges ? "edges" : "prose";
  if (record.t) {
    parts.push(legend(), make("button", { type: "button", id: "earlier", className: "wide", onclick: showEarlier }),
      make("div", { id: "tokens", className: look, tabIndex: 0, role: "group",
        "aria-label": "Tokens; arrow keys move from token to token, up and down from turn to turn" }),
      make("button", { type: "button", id: "later", className: "wide", onclick: showLater }));
  }
  $("record").replaceChildren(...parts);
  if (record.t) drawTokens();
  if (focused && $(focused)) $(focused).focus({ preventScroll: true });
}

function recordBar() {
  const { record } = view, place = found.indexOf(view.i);
  const step = (id, by, ...children) => make("button", {
    id, type: "button", "aria-label": `${id} row`, disabled: found[place + by] === undefined, onclick: () => stepRecord(by),
  }, ...children);
  const word = (textContent) => make("span", { className: "word", textContent });
  const name = record.id === null ? "" : `: ${visible(record.id.slice(0, 200))}`;
  return make("div", { className: "bar" }, make("h2", { textContent: `Row ${record.i}${exampleOf(record)}${name}` }),
    make("div", { className: "hits", id: "hits" }), edgesSwitch(), step("previous", -1, "←", word(" previous")), step("next", 1, word("next "), "→"));
}

function edgesSwitch() {
  return make("button", { id: "edges", type: "button", textContent: "Token edges", "aria-pressed": state.edges,
    onclick: () => showEdges(!state.edges) });
}

// The edges of tokens: without them neighbours with the same reason are one, and the text can be read.
function showEdges(on) {
  state.edges = on;
  if (view) {
    $("edges").setAttribute("aria-pressed", on);
    if ($("tokens")) $("tokens").className = on ? "edges" : "prose";
  }
  remember();
}

function summary() {
  const { record, size } = view, [learned, cut, turns, untrained, , , lost] = record.n, kept = size - cut;
  if (!record.t) return visible(record.at);
  const parts = [visible(record.at), plural(size, "token")];
  if (record.drop === null) {
    const share = `${percent(learned, kept)} of ${cut ? "those kept" : "them"}`;
    parts.push(`${number(learned)} learned (${share}) in ${plural(turns, "answer")}`);
    if (untrained) parts.push(`${plural(untrained, "answer")} not learned`);
    if (cut) parts.push(`${plural(cut, "token")} not seen, ${lost ? `${number(lost)} of them to learn` : "nothing in them to learn"}`);
  }
  return parts.join(" · ");
}

function recordBadges() {
  const badges = badgesOf(view.record).filter(([text]) => !/ lost$|not learned$/.test(text));
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

// One block per turn; in it one part per kind of text, such as reasoning, and the rule where training ends.
function drawTokens() {
  const { from, to, turn, role, size } = view, blocks = [];
  let block = null, part = null;
  for (let i = from; i < to; i++) {
    const other = i === from || turn[i] !== turn[i - 1];
    if (other) {
      block = make("div", { className: "tokens" });
      blocks.push(make("div", { className: `turn is-${speaker(i).replace(" ", "-")}` }, whoSays(i), block));
    }
    if (i === view.end || (i === from && from > view.end)) { part = null; block.append(endRule()); }
    const starts = other || role[i] !== role[i - 1];
    if (starts) part = null;
    if (role[i] >= KINDS && part === null) {
      const name = roles[role[i]];
      part = make("span", { className: `part is-${name.replace(" ", "-")}` },
        make("span", { className: "kind", textContent: starts ? name : `${name}, continued` }));
      block.append(part);
    }
    (part || block).append(drawToken(i));
  }
  $("tokens").replaceChildren(...blocks);
  $("earlier").hidden = from === 0;
  $("later").hidden = to === size;
  $("earlier").textContent = `Show more: ${plural(from, "token")} before`;
  $("later").textContent = `Show more: ${plural(size - to, "token")} after`;
  drawHits();
  markToken(false);
}

function endRule() {
  const { record, end } = view, max = data.lengths.max, lost = record.n[6], after = number(record.n[1]);
  const at = end === max ? `cut at ${number(max)}` : `cut at ${number(end)}, the last whole answer within ${number(max)}`;
  const textContent = lost ? `${at}: training does not see the next ${after}, with ${plural(lost, "token")} to learn`
    : `end of the example (limit ${number(max)}): nothing to learn in the next ${after}`;
  return make("span", { className: lost ? "rule lost" : "rule", textContent });
}

function showEarlier() { view.from = Math.max(0, view.from - PAGE); drawTokens(); }
function showLater() { view.to = Math.min(view.size, view.to + PAGE); drawTokens(); }

function drawToken(i) {
  const { record, texts, why, covered } = view, marks = ["k", LOOKS[why[i]]];
  if (i % 2) marks.push("odd");
  if (tokens[record.t[i]][CONTROL]) marks.push("control");
  if (covered.has(i)) marks.push("hit");
  if (!texts[i]) marks.push("part-of");
  const node = make("span", { className: marks.join(" ") });
  node.dataset.token = i;
  showText(node, texts[i]);
  return node;
}

// Who speaks in the turn of token i; before the first turn, the one that the template's text introduces.
function speaker(i) {
  const { record, turn, role, size } = view;
  if (turn[i] >= 0) return roles[record.s[turn[i]]];
  if (view.whysOfTurn.get(turn[i]).has(reasonNamed.get("example"))) return "example";
  let last = i;
  while (last + 1 < size && turn[last + 1] === turn[i] && !role[last]) last += 1;
  return roles[role[last]] === "tools" ? "system" : roles[role[last]];
}

// The role of the turn of token i, and whether it is learned.
function whoSays(i) {
  const turn = view.turn[i], whys = [...view.whysOfTurn.get(turn)], role = speaker(i);
  const who = make("div", { className: "who" }, make("b", { textContent: role }), turn < 0 ? "" : `turn ${turn + 1} `);
  if (turn < 0 || role !== "assistant") return who;
  const missed = whys.find((why) => ["unlearned", "dropped", "cut"].includes(LOOKS[why]));
  if (whys.some((why) => reasons[why][2])) who.append(badge(["learned", "good"]), " ");
  if (missed !== undefined) who.append(badge([reasons[missed][0], "warn"]));
  return who;
}
