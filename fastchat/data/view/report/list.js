// --- the list of rows: a part of `found`, always with the open record where that is among them

const listed = { from: 0, to: ROWS };

function drawRow(i) {
  const record = records[i], size = sizeOf(record), bar = make("i");
  bar.style.width = `${100 * Math.min(shareOf(record), 1)}%`;
  const facts = [make("span", { className: "share" }, bar), `${number(record.n[0])} of ${number(size)} learned`];
  const button = make("button", { type: "button" },
    make("span", { className: "name" }, make("b", { textContent: rowOf(record) }), make("span", { textContent: nameOf(record) })),
    make("span", { className: "facts" }, ...facts, ...badgesOf(record).slice(0, 1).map(badge)));
  button.dataset.record = i;
  return make("li", {}, button);
}

function drawList() {
  const shown = found.slice(listed.from, listed.to), more = data.total - records.length;
  $("list").replaceChildren(...shown.map(drawRow));
  $("list").start = listed.from + 1;
  $("earlier-records").hidden = listed.from === 0;
  $("more-records").hidden = listed.to >= found.length;
  const of = found.length === records.length ? "" : `${number(found.length)} of `;
  $("found").textContent = of + plural(records.length, data.unit) + (more ? `; ${number(more)} more are only counted` : "");
  markCurrent();
}

// Draw the list from its beginning, or around the open record.
function redrawList() {
  listed.from = 0;
  listed.to = ROWS;
  const place = found.indexOf(state.record);
  if (place >= ROWS) {
    listed.from = place - ROWS / 4;
    listed.to = listed.from + ROWS;
  }
  drawList();
}

// Mark the open record, bring it into the list, and scroll the list to it.
function followRecord() {
  const place = found.indexOf(state.record);
  if (place >= 0 && (place < listed.from || place >= listed.to)) redrawList(); else markCurrent();
}

function markCurrent() {
  $("to-overview").setAttribute("aria-current", state.record === null);
  for (const button of $("list").querySelectorAll("button")) {
    const current = Number(button.dataset.record) === state.record;
    button.setAttribute("aria-current", current);
    if (current) scrollList(button);
  }
}

// Only the list scrolls, not the page.
function scrollList(button) {
  const box = $("rows"), top = button.offsetTop;
  if (top < box.scrollTop || top + button.offsetHeight > box.scrollTop + box.clientHeight) {
    box.scrollTop = top - box.clientHeight / 2;
  }
}

function showMoreRecords(before) {
  if (before) listed.from = Math.max(0, listed.from - ROWS); else listed.to += ROWS;
  drawList();
}

// Open the row with this number, "900", or "900.2" for its second example; false if the page has none.
function jump(word) {
  const record = recordNamed(word.trim());
  $("row").setAttribute("aria-invalid", record < 0);
  if (record < 0) {
    $("found").textContent = `no row ${word.trim()} on this page: it has ${number(records[0]?.i ?? 0)} to ${number(records.at(-1)?.i ?? 0)}`;
    return;
  }
  if (!found.includes(record)) search({ query: "", reason: "", state: "all" });
  go(record);
}

const recordNamed = (word) => records.findIndex((record) => rowOf(record) === word || String(record.i) === word);
