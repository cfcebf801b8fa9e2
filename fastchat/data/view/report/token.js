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

function selectNone() {
  state.token = null;
  markToken(false);
  $("tokens").removeAttribute("aria-activedescendant");
  remember();
}

function drawDetails(i) {
  $("details").hidden = i === null || !view;
  if ($("details").hidden) return;
  const { record, texts } = view, token = tokens[record.t[i]], turn = view.turn[i], why = view.why[i];
  const item = (name, value, code = false) => make("div", {}, make("span", { className: "name", textContent: name }),
    make(code ? "code" : "span", { className: "value", textContent: value }));
  const [name, meaning, learned] = reasons[why];
  const label = unseen(why) ? "none, training does not see it" : record.drop !== null ? "none, the row is dropped"
    : learned ? `${token[ID]}, its own id` : "−100, not learned";
  $("details").replaceChildren(
    item("token", i), texts[i] ? item("text", visible(texts[i]), true) : item("text", "part of a character"),
    item("id", token[ID]), item("in the vocabulary", visible(token[PIECE]), true),
    token[CONTROL] ? item("kind", "control token") : "",
    item("role", roles[view.role[i]] + (turn < 0 ? "" : `, turn ${turn + 1}`)), item("label", label),
    make("div", { className: "why" }, make("span", { className: `k swatch ${LOOKS[why]}`, textContent: name }), `${meaning}.`),
    make("button", { type: "button", id: "close-details", textContent: "✕", title: "Close (Esc)", "aria-label": "Close", onclick: selectNone }));
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
