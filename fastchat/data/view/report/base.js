"use strict";
// The page's data, and helpers that every part uses. Texts from the data are only written with `textContent` (or
// `append`, which makes text nodes), and at most PAGE tokens or ROWS records are in the page at once.

const PAGE = 2000, ROWS = 100, MAX_HITS = 20000, TYPING_PAUSE = 150;
const data = JSON.parse(document.getElementById("data").textContent);
const { tokens, records, roles, reasons } = data;
const [ID, TEXT, PIECE, CONTROL] = [0, 1, 2, 3];
const reasonNamed = new Map(reasons.map(([name], why) => [name, why]));
// How each reason looks; the order is that of the class Why in reasons.py.
const LOOKS = ["learned", "learned first", "learned stop", "learned boundary", "learned", "learned", "template", "start",
  "", "", "", "", "", "unlearned", "unlearned", "unlearned", "unlearned", "", "boundary", "cut", "cut after", "dropped"];
// Roles from this one on are kinds of text within a turn; they are named in front of it.
const KINDS = roles.indexOf("reasoning");

// The state, also in the address; `record` is an index into `records`, `token` an index into the record's tokens;
// `edges`: whether the edges of tokens are visible.
const state = { record: null, token: null, query: "", reason: "", state: "all", sort: "file", edges: false };
let found = [];   // the records that pass the filters, as indices into `records`
let view = null;  // the open record: its tokens, its hits, and which part of it is in the page

const $ = (id) => document.getElementById(id);
const number = (n) => n.toLocaleString("en");
const percent = (part, whole) => (whole ? `${(100 * part / whole).toFixed(1)} %` : "–");
const plural = (n, one, many = one + "s") => `${number(n)} ${n === 1 ? one : many}`;

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in node) node[key] = value; else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== ""));
  return node;
}

const badge = ([text, kind]) => make("span", { className: `badge ${kind}`, textContent: visible(text) });

// --- texts

// Characters that are invisible, or change how others are shown, are written as escapes.
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cn}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/u;
const HIDDEN_ALL = new RegExp(HIDDEN.source, "gu");
const HIDDEN_APART = new RegExp(`(${HIDDEN.source})`, "u");
const NAMED = { "\t": "\\t", "\n": "\\n", "\r": "\\r" };

function escaped(character) {
  const code = character.codePointAt(0).toString(16);
  return NAMED[character] || (code.length < 3 ? "\\x" + code.padStart(2, "0") : `\\u{${code}}`);
}

const visible = (text) => text.replace(HIDDEN_ALL, escaped);

function showText(node, text) {
  if (!HIDDEN.test(text)) { node.textContent = text; return; }
  for (const part of text.split(HIDDEN_APART)) {
    if (part === "\n") node.append(make("i", { className: "end", textContent: "↵" }), "\n");
    else if (HIDDEN.test(part)) node.append(make("i", { textContent: escaped(part) }));
    else node.append(part);
  }
}

// --- a record's tokens

const sizeOf = (record) => (record.t ? record.t.length : 0);

function textsOf(record) {
  const texts = (record.t || []).map((place) => tokens[place][TEXT]);
  for (let i = 0; i < (record.x || []).length; i += 2) texts[record.x[i]] = record.x[i + 1];
  return texts;
}

const joined = new Map();  // texts that have been searched
function textOf(record) {
  if (!joined.has(record)) joined.set(record, textsOf(record).join(""));
  return joined.get(record);
}

function* runsOf(record) {
  const runs = record.r || [];
  for (let i = 0, start = 0; i < runs.length; i += 4) {
    yield { start, end: start + runs[i], turn: runs[i + 1], role: runs[i + 2], why: runs[i + 3] };
    start += runs[i];
  }
}

const nameOf = (record) => visible((record.id === null ? record.at.split("/").at(-1) : record.id).slice(0, 120));

// The number of a record's row; of a row that is several examples, with that of the example.
const rowOf = (record) => (record.p ? `${record.i}.${record.p[0] + 1}` : `${record.i}`);

const exampleOf = (record) => (record.p ? `, example ${record.p[0] + 1} of ${record.p[1]}` : "");

// What is unusual about a record, as [text, kind].
function badgesOf(record) {
  const [, , , untrained, straddling, lookalikes, lost] = record.n;
  const badges = [];
  if (record.drop !== null) badges.push([`dropped: ${record.drop}`, "warn"]);
  else if (lost) badges.push([`${number(lost)} lost`, "warn"]);
  if (straddling) badges.push([plural(straddling, "boundary token"), "warn"]);
  if (lookalikes) badges.push([plural(lookalikes, "special-token string") + " kept as plain text", "warn"]);
  if (untrained && record.drop === null) badges.push([plural(untrained, "answer") + " not learned", ""]);
  return badges;
}
