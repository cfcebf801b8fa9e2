// --- navigation; the address contains what is shown, so that it can be shared

function remember() {
  const words = new URLSearchParams();
  if (state.record !== null) words.set("record", rowOf(records[state.record]));
  if (state.token !== null) words.set("token", state.token);
  if (state.query) words.set("search", state.query);
  if (state.reason) words.set("tokens", state.reason);
  if (state.state !== "all") words.set("records", state.state);
  if (state.sort !== "file") words.set("sort", state.sort);
  if (state.edges) words.set("edges", "on");
  history.replaceState(null, "", `#${words}`);
}

function recall() {
  const words = new URLSearchParams(location.hash.slice(1));
  const named = (key, known, otherwise) => (known(words.get(key)) ? words.get(key) : otherwise);
  state.query = words.get("search") || "";
  state.reason = named("tokens", (name) => reasonNamed.has(name), "");
  state.state = named("records", (name) => Object.hasOwn(STATES, name), "all");
  state.sort = named("sort", (name) => Object.hasOwn(SORTS, name), "file");
  state.edges = words.get("edges") === "on";
  showFilters();
  filter();
  const record = recordNamed(words.get("record"));
  state.record = record < 0 ? null : record;
  redrawList();
  go(state.record, Number.parseInt(words.get("token"), 10));
}

// Open a record (an index into `records`), or the overview for null; select the token if it exists.
function go(record, token = NaN) {
  state.record = record;
  state.token = null;
  view = null;
  $("overview").hidden = record !== null;
  $("record").hidden = record === null;
  if (record !== null) showRecord(record); else drawChart();
  followRecord();
  scrollTo(0, matchMedia("(max-width: 800px)").matches && record !== null ? $("main").offsetTop : 0);
  if (view && token >= 0 && token < view.size) goToToken(token, "center");
  else if (view && view.hits.length) goToHit(1);
  else drawDetails(null);
  remember();
}

function stepRecord(by) {
  const place = found.indexOf(state.record), next = found[place < 0 ? 0 : place + by];
  if (next !== undefined) go(next);
}

function search(change) {
  Object.assign(state, change);
  showFilters();
  filter();
  redrawList();
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
  $("sort").value = state.sort;
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
  $("sort").onchange = () => { state.sort = $("sort").value; filter(); redrawList(); if (view) drawRecord(); remember(); };
  $("jump").onsubmit = (event) => { event.preventDefault(); if ($("row").value.trim()) jump($("row").value); };
  $("earlier-records").onclick = () => showMoreRecords(true);
  $("more-records").onclick = () => showMoreRecords(false);
  $("open-help").onclick = toggleHelp;
  new ResizeObserver(drawChart).observe($("overview"));
  $("to-overview").onclick = () => go(null);
  $("record").onclick = (event) => { const i = tokenAt(event); if (i !== null) goToToken(i); };
  $("record").onmouseover = (event) => { const i = tokenAt(event); if (i !== null) drawDetails(i); };
  $("record").onmouseleave = () => drawDetails(state.token);
  $("skip").onclick = (event) => { event.preventDefault(); $("main").focus(); };
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", recall);
}

$("verdict").textContent = `${data.verdict}.`;
for (const [name, value] of data.about) {
  $("about").append(make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: visible(value) })));
}
for (const [value, [textContent]] of Object.entries(STATES)) $("state").append(make("option", { value, textContent }));
for (const [value, [textContent]] of Object.entries(SORTS)) $("sort").append(make("option", { value, textContent }));
$("reason").append(make("option", { value: "", textContent: "of any kind" }));
for (const [name] of reasons) $("reason").append(make("option", { value: name, textContent: name }));
drawHelp();
listen();
drawOverview();
recall();
