// --- navigation; the address contains what is shown, so that it can be shared

function remember() {
  const words = new URLSearchParams();
  if (state.record !== null) words.set("record", records[state.record].i);
  if (state.token !== null) words.set("token", state.token);
  if (state.query) words.set("search", state.query);
  if (state.reason) words.set("tokens", state.reason);
  if (state.state !== "all") words.set("records", state.state);
  history.replaceState(null, "", `#${words}`);
}

function recall() {
  const words = new URLSearchParams(location.hash.slice(1));
  const named = (key, known, otherwise) => (known(words.get(key)) ? words.get(key) : otherwise);
  state.query = words.get("search") || "";
  state.reason = named("tokens", (name) => reasonNamed.has(name), "");
  state.state = named("records", (name) => Object.hasOwn(STATES, name), "all");
  showFilters();
  filter();
  const record = records.findIndex((r) => String(r.i) === words.get("record"));
  drawList();
  go(record < 0 ? null : record, Number.parseInt(words.get("token"), 10));
}

// Open a record (an index into `records`), or the overview for null; select the token if it exists.
function go(record, token = NaN) {
  state.record = record;
  state.token = null;
  view = null;
  $("overview").hidden = record !== null;
  $("record").hidden = record === null;
  if (record !== null) showRecord(record);
  scrollTo(0, matchMedia("(max-width: 800px)").matches && record !== null ? $("main").offsetTop : 0);
  if (view && token >= 0 && token < view.size) goToToken(token, "center");
  else if (view && view.hits.length) goToHit(1);
  else drawDetails(null);
  markCurrent();
  remember();
}

function stepRecord(by) {
  const next = found[found.indexOf(state.record) + by];
  if (next !== undefined) go(next);
}

function search(change) {
  Object.assign(state, change);
  rowsShown = ROWS;
  showFilters();
  filter();
  drawList();
  if (view) {
    drawRecord();
    goToHit(1);
  }
  remember();
}

function showFilters() {
  if ($("query").value !== state.query) $("query").value = state.query;
  $("state").value = state.state;
  $("reason").value = state.reason;
}

// --- keys

function onTokenKey(event) {
  const { size, turn } = view, at = state.token;
  const start = (i) => { while (i > 0 && turn[i - 1] === turn[i]) i -= 1; return i; };
  const next = () => { let i = at; while (i < size && turn[i] === turn[at]) i += 1; return i; };
  const before = () => (start(at) < at ? start(at) : start(at - 1));
  const moves = {
    ArrowRight: () => at + 1, ArrowLeft: () => at - 1, ArrowDown: next, ArrowUp: before, Home: () => 0, End: () => size - 1,
  };
  if (!Object.hasOwn(moves, event.key)) return;
  event.preventDefault();
  goToToken(at === null ? view.from : Math.min(Math.max(moves[event.key](), 0), size - 1));
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.matches("input, select")) {
    if (event.key === "Escape" && event.target.id === "query") search({ query: "" });
    return;
  }
  if (event.target.id === "tokens") onTokenKey(event);
  const acts = {
    "/": () => $("query").focus(), o: () => go(null),
    j: () => stepRecord(1), k: () => stepRecord(-1), n: () => goToHit(1), p: () => goToHit(-1),
  };
  if (!Object.hasOwn(acts, event.key)) return;
  event.preventDefault();
  acts[event.key]();
}

// --- pointers

function tokenAt(event) {
  const node = event.target.closest("#tokens [data-token]");
  return node ? Number(node.dataset.token) : null;
}

function listen() {
  let typing = 0;
  const submit = () => {
    clearTimeout(typing);
    if ($("query").value !== state.query) search({ query: $("query").value });
  };
  $("query").oninput = () => { clearTimeout(typing); typing = setTimeout(submit, TYPING_PAUSE); };
  $("find").onsubmit = (event) => {
    event.preventDefault();
    submit();
    if (!view && found.length) go(found[0]); else goToHit(1);
  };
  $("state").onchange = () => search({ state: $("state").value });
  $("reason").onchange = () => search({ reason: $("reason").value });
  $("list").onclick = (event) => {
    const button = event.target.closest("button");
    if (button) go(Number(button.dataset.record));
  };
  $("more-records").onclick = () => { rowsShown += ROWS; drawList(); };
  $("to-overview").onclick = () => go(null);
  $("record").onclick = (event) => { const i = tokenAt(event); if (i !== null) goToToken(i); };
  $("record").onmouseover = (event) => { const i = tokenAt(event); if (i !== null) drawDetails(i); };
  $("record").onmouseleave = () => drawDetails(state.token);
  $("skip").onclick = (event) => { event.preventDefault(); $("main").focus(); };
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", recall);
}

for (const [name, value] of data.about) {
  $("about").append(make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: visible(value) })));
}
for (const [value, [textContent]] of Object.entries(STATES)) $("state").append(make("option", { value, textContent }));
$("reason").append(make("option", { value: "", textContent: "of any kind" }));
for (const [name] of reasons) $("reason").append(make("option", { value: name, textContent: name }));
listen();
drawOverview();
recall();
