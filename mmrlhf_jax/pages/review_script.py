"""The script of the page on which people rate answers. It makes no request; texts of models are only ever set as text.

Ratings are kept in the browser's storage until they are saved as a file, one line of JSON per record that is rated entirely.
"""

SCRIPT = r"""
"use strict";
const data = JSON.parse(document.getElementById("records").textContent);
const records = data.records, key = "mmrlhf review " + data.queue;
const $ = (id) => document.getElementById(id);
let state = { who: "", said: {}, at: 0, unsaved: false }, active = 0;

function make(name, properties, ...children) {
  const found = Object.assign(document.createElement(name), properties);
  found.append(...children);
  return found;
}

function keep() {
  try { localStorage.setItem(key, JSON.stringify(state)); } catch { $("storage").hidden = false; }
}

function recall() {
  try {
    const found = JSON.parse(localStorage.getItem(key));
    if (found && found.said) state = Object.assign(state, found);
  } catch { $("storage").hidden = false; }
}

// What is said of a record: {ratings: {digest: 1 to 5 or "same"}, reason, when}
function said(record) {
  return state.said[record.id] ||= { ratings: {}, reason: "", when: null };
}

function isDone(record) {
  const found = state.said[record.id];
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

// The record that is shown: everything that does not change while it is rated.
function show() {
  const record = records[state.at];
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
  const done = records.filter(isDone).length;
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
  return records.filter(isDone).map((record) => {
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
  if (!state.who.trim()) {
    $("who").focus();
    $("who").classList.add("wanted");
    $("message").textContent = "Please enter your name first: verdicts are kept by person.";
    return;
  }
  const link = make("a", { href: URL.createObjectURL(new Blob([lines()], { type: "application/jsonl" })) });
  link.download = `verdicts-${state.who.trim().toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-")}.jsonl`;
  link.click();
  state.unsaved = false;
  keep();
  refresh();
  $("message").textContent = `Saved as ${link.download} among your downloads. Send it to whoever gave you this page.`;
}

function load(text) {
  let taken = 0;
  for (const line of text.split("\n").filter((line) => line.trim())) {
    let row;
    try { row = JSON.parse(line); } catch { $("message").textContent = "This is no file that was saved here."; return; }
    const record = records.find((one) => one.id === row.id && one.prompt === row.prompt);
    if (!record || !Array.isArray(row.answers)) continue;
    const ratings = Object.fromEntries(row.answers.map((one) => [one.digest, one.same_as_above ? "same" : one.rating]));
    if (!record.answers.every(({ digest }) => ratings[digest])) continue;
    state.said[record.id] = { ratings, reason: row.reason || "", when: row.when };
    state.who ||= row.who || "";
    taken++;
  }
  $("who").value = state.who;
  $("message").textContent = `Taken from the file: ${taken} records.`;
  keep();
  show();
}

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
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

recall();
$("how").open = Object.keys(state.said).length === 0;
state.at = Math.min(Math.max(0, state.at), records.length - 1);
$("who").value = state.who;
$("who").oninput = (event) => { state.who = event.target.value; event.target.classList.remove("wanted"); keep(); };
$("reason").oninput = (event) => { said(records[state.at]).reason = event.target.value; state.unsaved = true; keep(); };
$("before").onclick = () => go(state.at - 1);
$("after").onclick = () => go(state.at + 1);
$("unrated").onclick = goToUnrated;
$("save").onclick = save;
$("load").onchange = async (event) => {
  if (event.target.files[0]) load(await event.target.files[0].text());
  event.target.value = "";
};
show();
"""
