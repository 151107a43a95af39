"""The script of the page on which people rate answers. It makes no request; texts of models are only ever set as text.

Ratings are kept in the browser's storage, those of each person apart, until they are saved as a file: one line of JSON per
record that is rated entirely.
"""

SCRIPT = r"""
"use strict";
const data = JSON.parse(document.getElementById("records").textContent);
const records = data.records, key = "mmrlhf review " + data.queue + " by ";
const $ = (id) => document.getElementById(id);
let state = fresh(""), active = 0;

// What one person has said: `said` by a record's id, the place of the record that is shown, and whether it was saved as a file.
function fresh(who) {
  return { who, said: Object.create(null), at: 0, unsaved: false };
}

function make(name, properties, ...children) {
  const found = Object.assign(document.createElement(name), properties);
  found.append(...children);
  return found;
}

// What is kept in the browser, and for as long as the page is open also where the browser keeps nothing.
const memory = new Map();

function keep() {
  const text = JSON.stringify(state);
  memory.set(placeOf(state.who), text);
  try { localStorage.setItem(placeOf(state.who), text); } catch { $("storage").hidden = false; }
}

function kept(place) {
  let text = null;
  try { text = localStorage.getItem(place); } catch { $("storage").hidden = false; }
  try {
    const found = JSON.parse(text ?? memory.get(place) ?? "null");
    if (!found || !found.said || !found.who) return null;
    return Object.assign(fresh(found.who), found, { said: Object.assign(Object.create(null), found.said) });
  } catch { return null; }
}

// Where a person's ratings are kept. Case and spaces make no other person of a name.
function placeOf(who) {
  return key + who.normalize("NFC").trim().split(/\s+/).join(" ").toLowerCase();
}

// What is said of a record: {ratings: {digest: 1 to 5 or "same"}, reason, when}
function said(record) {
  return state.said[record.id] ||= { ratings: {}, reason: "", when: null };
}

function isDone(record, of = state) {
  const found = of.said[record.id];
  return !!found && record.answers.every((answer) => found.ratings[answer.digest]);
}

function rate(place, value) {
  const record = records[state.at], found = said(record), digest = record.answers[place].digest;
  if (value === "same" && place === 0) return;
  if (found.ratings[digest] === value) delete found.ratings[digest]; else found.ratings[digest] = value;
  found.when = new Date().toISOString();
  state.unsaved = true;
  active = found.ratings[digest] ? Math.min(place + 1, record.answers.length - 1) : place;
  keep();
  refresh();
}

function go(place) {
  if (place < 0 || place >= records.length) return;
  state.at = place;
  active = 0;
  $("how").open = false;
  keep();
  show();
  window.scrollTo(0, 0);
}

function goToUnrated() {
  for (let step = 1; step <= records.length; step++) {
    const place = (state.at + step) % records.length;
    if (!isDone(records[place])) return go(place);
  }
}

// Who rates. Nobody sees what another person has rated in the same browser: the page begins with the question who is there.
function askWho() {
  let places = [...memory.keys()];
  try { places.push(...Object.keys(localStorage)); } catch { $("storage").hidden = false; }
  const known = [...new Set(places)].filter((place) => place.startsWith(key)).map(kept).filter((found) => found);
  $("known").replaceChildren(...known.map((found) => {
    const done = records.filter((record) => isDone(record, found)).length;
    const count = `${done} of ${records.length} rated${found.unsaved ? ", not saved yet" : ""}`;
    const button = make("button", { textContent: `Go on as ${found.who} (${count})` });
    button.onclick = () => enter(found.who);
    return button;
  }));
  state = fresh("");
  active = 0;
  $("name").value = "";
  show();
  $("name").focus();
}

function enter(who) {
  if (!who.trim()) {
    $("name").focus();
    return;
  }
  state = kept(placeOf(who)) || fresh(who.trim());
  state.at = Math.min(Math.max(0, state.at), records.length - 1);
  active = 0;
  $("message").textContent = "";
  $("how").open = Object.keys(state.said).length === 0;
  keep();
  show();
}

// The record that is shown: everything that does not change while it is rated.
function show() {
  const record = records[state.at], someone = state.who !== "";
  $("start").hidden = someone;
  $("sides").hidden = $("person").hidden = !someone;
  $("who").textContent = state.who;
  $("place").textContent = `${state.at + 1} of ${records.length}`;
  $("pictures").replaceChildren(...record.pictures.map((name, number, all) => {
    const title = `picture ${number + 1}`;
    const button = make("button", { className: "enlarge", title: "enlarge or shrink" });
    button.append(make("img", { src: data.pictures[name], alt: title }));
    button.onclick = () => button.classList.toggle("large");
    return all.length > 1 ? make("figure", {}, button, make("figcaption", { textContent: title })) : button;
  }));
  $("sides").classList.toggle("alone", record.pictures.length === 0);
  $("pictures").classList.toggle("several", record.pictures.length > 1);
  $("question").textContent = record.question;
  $("answers").replaceChildren(...record.answers.map(card));
  $("reason").value = said(record).reason;
  refresh();
}

function card(answer, place) {
  const button = (sign, meaning, value) => {
    const found = make("button", { className: "level" });
    found.append(make("b", { textContent: sign }), make("span", { textContent: meaning }));
    found.onclick = (event) => { event.stopPropagation(); rate(place, value); };
    return found;
  };
  const buttons = data.levels.map((meaning, i) => button(i + 1, meaning, i + 1));
  if (place) buttons.push(button("=", data.same, "same"));
  const title = make("h3", { textContent: `Answer ${place + 1}` });
  const text = make("p", { className: "text", textContent: answer.text });
  const found = make("article", { className: "answer" }, title, text, make("div", { className: "levels" }, ...buttons));
  found.onclick = () => { if (active !== place) { active = place; refresh(); } };
  return found;
}

// What changes with a rating.
function refresh() {
  const record = records[state.at], found = said(record);
  [...$("answers").children].forEach((one, place) => {
    const value = found.ratings[record.answers[place].digest];
    one.classList.toggle("active", place === active);
    one.classList.toggle("rated", !!value);
    one.querySelectorAll(".level").forEach((button, i) => {
      const chosen = value === (i < data.levels.length ? i + 1 : "same");
      button.classList.toggle("chosen", chosen);
      button.setAttribute("aria-pressed", chosen);
    });
  });
  const done = records.filter((record) => isDone(record)).length;
  $("count").textContent = `${done} of ${records.length} rated`;
  $("bar").value = done;
  $("bar").max = records.length;
  $("before").disabled = state.at === 0;
  $("after").disabled = state.at === records.length - 1;
  $("after").classList.toggle("chosen", isDone(record) && done < records.length);
  $("unrated").disabled = done === records.length;
  $("state").textContent = isDone(record) ? "✓ rated" : "";
  $("finished").hidden = done < records.length || !state.unsaved;
  $("save").disabled = done === 0;
}

function lines() {
  return records.filter((record) => isDone(record)).map((record) => {
    const found = said(record);
    const answers = record.answers.map(({ digest }) => {
      const value = found.ratings[digest];
      return value === "same" ? { digest, same_as_above: true } : { digest, rating: value };
    });
    const row = { id: record.id, prompt: record.prompt, answers, who: state.who, when: found.when, tool: "page" };
    if (found.reason.trim()) row.reason = found.reason.trim();
    return JSON.stringify(row) + "\n";
  }).join("");
}

function save() {
  const link = make("a", { href: URL.createObjectURL(new Blob([lines()], { type: "application/jsonl" })) });
  link.download = `verdicts-${state.who.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-")}.jsonl`;
  link.click();
  state.unsaved = false;
  keep();
  refresh();
  const part = records.filter((record) => !isDone(record) && Object.keys(said(record).ratings).length).length;
  const left = part ? ` Not in it: records that are rated in part (${part}).` : "";
  $("message").textContent = `Saved as ${link.download} among your downloads. Send it to whoever gave you this page.${left}`;
}

// A saved file belongs to the person who is named in it.
function load(text) {
  let rows;
  try { rows = text.split("\n").filter((line) => line.trim()).map((line) => JSON.parse(line)); } catch { rows = []; }
  const who = rows.map((row) => row && row.who).find((name) => typeof name === "string" && name.trim());
  if (!who) {
    $("message").textContent = "This is no file that was saved here.";
    return;
  }
  if (state.who && placeOf(state.who) !== placeOf(who)) {
    $("message").textContent = `That file has the verdicts of ${who}. Choose “Someone else” first, if you are ${who}.`;
    return;
  }
  if (!state.who) enter(who);
  const taken = rows.filter(take).length, left = rows.length - taken;
  const others = left ? ` ${left} of the file are left out: rated later here, of another page, or of another person.` : "";
  $("message").textContent = `Taken from the file: ${taken} records.${others}`;
  keep();
  show();
}

// Take a row of a saved file; false for one that has no place here, or is older than what is said here.
function take(row) {
  const record = records.find((one) => row && one.id === row.id && one.prompt === row.prompt);
  if (!record || !Array.isArray(row.answers) || placeOf(row.who || "") !== placeOf(state.who)) return false;
  const ratings = Object.create(null);
  let above;
  for (const one of row.answers) {
    if (!one) return false;
    above = one.same_as_above ? above : one.rating; // a number, because the answers above may be others there
    ratings[one.digest] = above;
  }
  const isLevel = (rating) => Number.isInteger(rating) && rating >= 1 && rating <= data.levels.length;
  if (!record.answers.every(({ digest }) => isLevel(ratings[digest]))) return false;
  if (isDone(record) && (said(record).when || "") > (row.when || "")) return false;
  state.said[record.id] = { ratings, reason: row.reason || "", when: row.when };
  return true;
}

document.addEventListener("keydown", (event) => {
  if (!state.who || event.target.matches("input, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  const answers = records[state.at].answers.length;
  const level = Number(event.key);
  if (level >= 1 && level <= data.levels.length) rate(active, level);
  else if (event.key === "=" || event.key === "s") rate(active, "same");
  else if (event.key === "ArrowRight" || event.key === "Enter" && !event.target.matches("button")) go(state.at + 1);
  else if (event.key === "ArrowLeft") go(state.at - 1);
  else if (event.key === "ArrowDown") { active = Math.min(active + 1, answers - 1); refresh(); }
  else if (event.key === "ArrowUp") { active = Math.max(active - 1, 0); refresh(); }
  else return;
  event.preventDefault();
  $("answers").children[active]?.scrollIntoView({ block: "nearest" });
});
window.addEventListener("beforeunload", (event) => { if (state.unsaved) event.preventDefault(); });

window.addEventListener("storage", (event) => { // the same person rates in another window
  const found = state.who && event.key === placeOf(state.who) ? kept(event.key) : null;
  if (!found) return;
  state = Object.assign(found, { at: state.at });
  show();
});

$("start").onsubmit = (event) => { event.preventDefault(); enter($("name").value); };
$("someone").onclick = askWho;
$("reason").oninput = (event) => { said(records[state.at]).reason = event.target.value; state.unsaved = true; keep(); };
$("before").onclick = () => go(state.at - 1);
$("after").onclick = () => go(state.at + 1);
$("unrated").onclick = goToUnrated;
$("save").onclick = save;
$("load").onchange = async (event) => {
  if (event.target.files[0]) load(await event.target.files[0].text());
  event.target.value = "";
};
askWho();
"""
