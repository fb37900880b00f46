// The page's parts put together: filters, list, stage, decisions, keyboard.

const { run, rows } = JSON.parse($("data").textContent);
const blocks = document.querySelectorAll("script.p");
rows.forEach((row, place) => { row.place = place; });
// Parsed when they are looked at: a page's pictures are some 20 MB.
const picturesOf = (row) => JSON.parse(blocks[row.place].textContent);

const decisions = new Decisions(run, rows.map((row) => row.key));
const form = document.querySelector(".filters");
const detail = document.querySelector(".detail");
const stage = new Stage($("stage"));
const wide = matchMedia("(min-width: 900px)");
let shown = [];
let chosen = null;

// One row of the list

const DECIDED = { accept: "accepted", reject: "rejected", "": "" };
const SIGNS = { accept: "✓", reject: "✕", "": "" };

const draw = (row) => {
  const [before, after] = picturesOf(row);
  const small = after ?? before;
  return make(
    "div", { role: "option", class: "row" },
    small ? make("img", { src: small[0], alt: "", decoding: "async", draggable: "false" }) : make("span", { class: "gap" }, "–"),
    make(
      "span", { class: "text" },
      make("span", { class: "id" }, row.id),
      make("span", { class: "under" }, badges(row).at(-1), make("span", { class: "quiet" }, row.error ? row.error[0] : lorasOf(row) || row.prompt)),
      row.score !== null && make("span", { class: "under" }, meter(row.score), make("span", { class: "quiet" }, percent(row.score))),
    ),
    make("span", { class: "mark" }),
  );
};

const mark = (element, row) => {
  const decision = decisions.of(row.key);
  if (element.dataset.decision === decision) return;
  element.dataset.decision = decision;
  element.querySelector(".mark").replaceChildren(make("span", { "aria-hidden": "true" }, SIGNS[decision]), make("span", { class: "unseen" }, DECIDED[decision]));
};

const list = new List($("list"), draw, mark, (row) => {
  choose(row);
  open();
});

// Filters

const wanted = () => Object.fromEntries(["search", "status", "lora", "score", "decision", "sort"].map((name) => [name, form.elements[name].value]));

const option = (value, label) => make("option", { value }, label);

const offer = () => {
  const statuses = [...new Set(rows.map((row) => row.status))].sort();
  form.elements.status.append(option("", "any"), ...statuses.map((status) => option(status, status)));
  const codes = [...new Set(rows.filter((row) => row.error).map((row) => `${row.status}\n${row.error[0]}`))].sort();
  if (codes.length) {
    form.elements.status.append(make("optgroup", { label: "because of" }, ...codes.map((code) => option(code, code.split("\n")[1]))));
  }
  const loras = [...new Set(rows.flatMap(loraNames))].sort();
  form.elements.lora.append(option("", "any"), ...loras.map((name) => option(name, name)));
  if (rows.some((row) => !row.loras.length)) form.elements.lora.append(option("\n", "none"));
};

const openShown = () => shown.filter((row) => row.status === "succeeded" && !decisions.of(row.key));

const arrange = () => {
  shown = arranged(rows, wanted(), decisions);
  list.show(shown);
  $("none").hidden = shown.length > 0;
  const all = openShown().length;
  $("shown").textContent = shown.length === rows.length ? plural(rows.length, "result") : `${number(shown.length)} of ${plural(rows.length, "result")}`;
  $("accept-shown").disabled = all === 0;
  $("accept-shown").textContent = all ? `Accept ${number(all)} open` : "Accept all open";
};

// Another filter keeps the chosen result if it can; another order begins at its first.
const refilter = (event) => {
  arrange();
  $("list").scrollTop = 0;
  const keep = event?.target !== form.elements.sort && shown.includes(chosen);
  choose(keep ? chosen : wide.matches ? shown[0] : null);
};

// What is chosen

function choose(row) {
  const fresh = row && row !== chosen;
  chosen = row ?? null;
  list.choose(chosen);
  detail.hidden = !chosen;
  if (!chosen) close();
  if (fresh) {
    $("name").textContent = row.id;
    $("badges").replaceChildren(...badges(row));
    stage.show(row, picturesOf(row));
    $("words").replaceChildren(...words(row));
    detail.scrollTop = 0;
  }
  const decision = chosen ? decisions.of(chosen.key) : "";
  for (const name of ["accept", "reject"]) $(name).setAttribute("aria-pressed", String(decision === name));
  const at = shown.indexOf(chosen);
  $("previous").disabled = at <= 0;
  $("next").disabled = at < 0 || at >= shown.length - 1;
}

const step = (by) => {
  const at = shown.indexOf(chosen);
  const next = shown[at < 0 ? 0 : at + by];
  if (next) choose(next);
};

const nextOpen = () => {
  const at = shown.indexOf(chosen);
  const next = [...shown.slice(at + 1), ...shown.slice(0, at + 1)].find((row) => !decisions.of(row.key));
  if (next) choose(next);
};

// On a narrow screen the detail lies over the list.
const narrow = (opened) => {
  document.body.classList.toggle("open", opened);
  for (const under of [document.querySelector("header"), document.querySelector(".results")]) under.inert = opened && !wide.matches;
};

function open() {
  narrow(true);
  if (!wide.matches) $("name").focus();
}

function close() {
  if (!document.body.classList.contains("open")) return;
  narrow(false);
  $("list").focus();
}

// Decisions

const tell = () => {
  const accepted = decisions.count("accept");
  const rejected = decisions.count("reject");
  $("progress").max = rows.length || 1;
  $("progress").value = accepted + rejected;
  $("progress-words").textContent = `${number(accepted + rejected)} of ${number(rows.length)} reviewed` + (rejected ? `, ${number(rejected)} rejected` : "");
  $("undo").disabled = decisions.past.length === 0;
  $("export").disabled = accepted + rejected === 0;
  $("kept").textContent = decisions.kept
    ? "Your decisions are kept in this browser. Export them to take them elsewhere."
    : "This browser keeps no decisions: export them before you close the page.";
  $("kept").classList.toggle("bad", !decisions.kept);
  if (!decisions.kept) $("progress-words").textContent += " – not kept, export them";
};

const say = (what) => { $("said").textContent = what; };

const decide = (decision) => {
  if (!chosen) return;
  const row = chosen;
  const at = shown.indexOf(row);
  const next = decision ? shown[at + 1] ?? row : row;
  decisions.decide([row], decision);
  arrange();
  choose(shown.includes(next) ? next : shown.includes(row) ? row : shown[Math.min(Math.max(at, 0), shown.length - 1)]);
  tell();
  say(`${row.id} ${DECIDED[decision] || "open again"}`);
};

const undo = () => {
  const keys = new Set(decisions.undo());
  if (!keys.size) return;
  const row = rows.find((one) => keys.has(one.key));
  arrange();
  choose(shown.includes(row) ? row : chosen);
  tell();
  say(keys.size === 1 ? `${row.id} as before` : `${plural(keys.size, "decision")} taken back`);
};

const acceptShown = () => {
  const open = openShown();
  decisions.decide(open, "accept");
  arrange();
  choose(shown.includes(chosen) ? chosen : shown[0]);
  tell();
  say(`${plural(open.length, "result")} accepted`);
};

const view = (name) => {
  stage.view = name;
  for (const button of document.querySelectorAll("[data-view]")) button.setAttribute("aria-pressed", String(button.dataset.view === name));
  if (chosen) stage.draw();
};

// What a person does

const KEYS = {
  a: () => decide("accept"),
  r: () => decide("reject"),
  x: () => decide(""),
  u: undo,
  j: () => step(1),
  k: () => step(-1),
  n: nextOpen,
  v: () => view(VIEWS[(VIEWS.indexOf(stage.view) + 1) % VIEWS.length]),
  "/": () => form.elements.search.focus(),
  "?": () => $("keys").showModal(),
  arrowdown: () => step(1),
  arrowup: () => step(-1),
  home: () => shown.length && choose(shown[0]),
  end: () => shown.length && choose(shown.at(-1)),
  arrowleft: () => stage.move(stage.at - 5),
  arrowright: () => stage.move(stage.at + 5),
  enter: () => chosen && open(),
  escape: close,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const key = event.key.toLowerCase();
  if (event.target.matches("select, input[type=search]")) {
    if (key === "escape") $("list").focus();
    return;
  }
  if (key === "enter" && event.target !== $("list")) return; // a button's own
  if (!KEYS[key]) return;
  event.preventDefault();
  KEYS[key]();
});

const clicks = {
  accept: () => decide("accept"), reject: () => decide("reject"), undo, previous: () => step(-1), next: () => step(1), close,
  help: () => $("keys").showModal(), "keys-close": () => $("keys").close(), "accept-shown": acceptShown,
  export: () => download(reviewLines(rows.filter((row) => decisions.of(row.key)).map((row) => [row.key, decisions.entries.get(row.key)]))),
  clear: () => { form.reset(); refilter(); },
};
for (const [id, act] of Object.entries(clicks)) $(id).addEventListener("click", act);
for (const button of document.querySelectorAll("[data-view]")) button.addEventListener("click", () => view(button.dataset.view));
form.addEventListener("input", refilter);
form.addEventListener("submit", (event) => event.preventDefault());
wide.addEventListener("change", () => { narrow(false); refilter(); });
window.addEventListener("storage", (event) => {
  if (event.key !== placeOf(run)) return;
  decisions.read();
  arrange();
  choose(chosen);
  tell();
});

offer();
refilter();
tell();
$("list").focus({ preventScroll: true });
