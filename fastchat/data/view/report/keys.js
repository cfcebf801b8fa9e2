// --- keys

const KEYS = [
  [["/"], "search"], [["g"], "go to a row by its number"], [["j", "k"], "next and previous row"],
  [["n", "p"], "next and previous hit"], [["←", "→"], "next and previous token"], [["↑", "↓"], "next and previous turn"],
  [["e"], "show the edges of tokens, or hide them"], [["o"], "overview"],
  [["Esc"], "close: this list, the token, the row"], [["?"], "this list"],
];

function drawHelp() {
  const rows = KEYS.map(([names, meaning]) => make("div", {},
    make("dt", {}, ...names.map((textContent) => make("kbd", { textContent }))), make("dd", { textContent: meaning })));
  $("help").replaceChildren(make("h2", { id: "help-title", textContent: "Keys" }), make("dl", {}, ...rows),
    make("button", { type: "button", id: "close-help", textContent: "Close", onclick: () => $("help").close() }));
}

const toggleHelp = () => ($("help").open ? $("help").close() : $("help").showModal());

function onTokenKey(event) {
  const { size, turn } = view, at = state.token;
  const start = (i) => { while (i > 0 && turn[i - 1] === turn[i]) i -= 1; return i; };
  const next = () => { let i = at; while (i < size && turn[i] === turn[at]) i += 1; return i; };
  const before = () => (start(at) < at ? start(at) : start(at - 1));
  const moves = { ArrowRight: () => at + 1, ArrowLeft: () => at - 1, ArrowDown: next, ArrowUp: before };
  if (event.target.id === "tokens") Object.assign(moves, { Home: () => 0, End: () => size - 1 });
  if (!Object.hasOwn(moves, event.key) || !size) return;
  event.preventDefault();
  goToToken(at === null ? view.from : Math.min(Math.max(moves[event.key](), 0), size - 1));
}

// Close what is open, the innermost first.
function closeOne(event) {
  if (event.target.id === "query" && state.query) search({ query: "" });
  else if (event.target.matches("input, select")) event.target.blur();
  else if (state.token !== null) selectNone();
  else if (view) go(null);
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if ($("help").open) {
    if (event.key === "?") { event.preventDefault(); toggleHelp(); }
    return;  // the browser closes it on Escape
  }
  if (event.key === "Escape") { closeOne(event); return; }
  if (event.target.matches("input, select")) return;
  if (view && !event.shiftKey) onTokenKey(event);
  const acts = {
    "/": () => $("query").focus(), g: () => $("row").focus(), o: () => go(null), e: () => showEdges(!state.edges),
    j: () => stepRecord(1), k: () => stepRecord(-1), n: () => goToHit(1), p: () => goToHit(-1), "?": toggleHelp,
  };
  if (!Object.hasOwn(acts, event.key)) return;
  event.preventDefault();
  acts[event.key]();
}
