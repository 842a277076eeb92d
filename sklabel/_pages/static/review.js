// The page of a review: a grid of all images, corrected one by one or in runs.
// All texts of others (names of files and classes) go into textContent alone.

import {
  $, KEYS, ask, busy, element, end, gone, hush, loadInSight, lookForOthers, outlook,
  percent, question, say, setBusy, whichName,
} from "./common.js";

const PULSE = 2000; // milliseconds between looks for what others have changed
const TILE = 138; // pixels of a tile, at least
const GAP = 10;
const CAPTION = 44;
const BEYOND = 1; // rows that are drawn above and below those in sight
const KEPT = 800; // cells that are kept
const WORDS = {
  "suspicious label": "suspicious", "exact copy": "copy", "near duplicate": "near copy",
};

let state; // as the server has it; answers, predictions and issues as Maps
let names = []; // of the files, by row
let list = []; // rows that are shown, in order
let place = new Map(); // row: its place in the list
let at = 0; // place where the person is
let anchor = 0; // place where a run began
let selected = new Set(); // rows
let chosen = false; // whether rows were selected one by one
let show = {label: null, kind: null, sort: "least"};

// -- the server

const rowsOf = (found) => new Map(Object.entries(found).map(([r, v]) => [Number(r), v]));

async function reload() {
  const found = await ask("/state");
  if (state && found.version < state.version) return; // an answer has overtaken it
  const issues = new Map();
  for (const [row, kind, detail] of found.issues) {
    if (!issues.has(row)) issues.set(row, []);
    issues.get(row).push({kind, detail});
  }
  state = {
    ...found, issues, answers: rowsOf(found.answers), predictions: rowsOf(found.predictions),
    settled: new Set(found.settled), news: new Set(found.news),
  };
}

/** Send a change and take what the reply tells; return it, or null if it was refused. */
async function change(path, body = {}) {
  if (busy || gone) return null;
  setBusy(true);
  let reply;
  try {
    reply = await ask(path, {version: state.version, ...body});
  } catch (error) {
    await refused(error, path, body);
    return null;
  } finally {
    setBusy(false);
  }
  for (const [key, found] of Object.entries(reply.changed)) {
    if (found === null) state.answers.delete(Number(key));
    else state.answers.set(Number(key), found);
  }
  const {changed, row, turn, settled, ...rest} = reply;
  Object.assign(state, rest, {settled: new Set(settled)});
  return {...reply, rows: Object.keys(changed).map(Number)};
}

async function refused(error, path, body) {
  if (gone) return;
  if (error.status === 409) {
    await reload();
    arrange();
    say("The labels have changed; the page now shows them. Please answer again.");
  } else if (error.body?.known) {
    const name = await whichName(error.body);
    setBusy(false);
    if (name !== null) await correct({...body, label: name, alike: true});
  } else {
    say(error.message);
  }
}

// -- what is known of a row

const given = (r) => state.answers.get(r);
const predicted = (r) => state.predictions.get(r);
const isGiven = (r) => given(r) !== undefined;

/** Return the label of a row; "" where it has none. */
const labelOf = (r) => (isGiven(r) ? given(r)[0] ?? "" : predicted(r)?.[0] ?? "");
const issuesOf = (r) => (state.settled.has(r) ? [] : state.issues.get(r) ?? []);
const hasIssue = (r, kind) => issuesOf(r).some((issue) => issue.kind === kind);

function isOfKind(r, kind) {
  if (kind === null) return true;
  if (kind === "given") return isGiven(r);
  if (kind === "predicted") return !isGiven(r);
  if (kind === "news") return state.news.has(r) && !isGiven(r);
  return hasIssue(r, kind);
}

/** Return how sure a label is, for the order: what is suspicious is the least. */
function sureness(r) {
  if (!isGiven(r)) return predicted(r)?.[1] ?? -0.5;
  return hasIssue(r, "suspicious label") ? -1 : 2;
}

// -- what is shown

/** Show the rows that fit, in order; the person stays at a row or at a place. */
function arrange(row = null) {
  const rows = [];
  for (let r = 0; r < names.length; r++) {
    if (show.label !== null && labelOf(r) !== show.label) continue;
    if (isOfKind(r, show.kind)) rows.push(r);
  }
  if (show.sort !== "name") {
    const sign = show.sort === "least" ? 1 : -1;
    const keys = new Map(rows.map((r) => [r, sureness(r)]));
    // what is given stands last in both orders
    const key = (r) => (keys.get(r) === 2 ? 2 : sign * keys.get(r));
    rows.sort((a, b) => key(a) - key(b) || a - b);
  }
  list = rows;
  place = new Map(list.map((r, i) => [r, i]));
  moveTo(place.get(row) ?? at);
  draw();
}

/** Go to a place; then what is selected is the image there alone. */
function moveTo(index) {
  at = anchor = Math.max(0, Math.min(list.length - 1, index));
  selected = new Set(list.slice(at, at + 1));
  chosen = false;
}

function filter(changed) {
  show = {...show, ...changed};
  at = 0;
  $("scroll").scrollTop = 0;
  closeLarge();
  arrange();
}

/** Draw all but the list itself anew. */
function draw() {
  drawFilters();
  drawActions();
  drawGrid();
  drawLarge();
  const n = state.answers.size;
  const open = names.length - n;
  $("count").textContent = `${count(n)} given, ${count(open)} predicted`;
  document.title = `Review · ${state.about.title}`;
  $("undo").disabled = !state.can_undo;
  $("redo").disabled = !state.can_redo;
  $("insight").replaceChildren(...outlook(state));
}

const count = (n) => n.toLocaleString("en");
const images = (n) => `${count(n)} image${n === 1 ? "" : "s"}`;

function filterButton(text, n, isOn, onclick) {
  const item = document.createElement("li");
  const button = element("button", "", {type: "button", onclick});
  button.append(element("span", text, {className: "label"}),
    element("span", count(n), {className: "n"}));
  button.setAttribute("aria-pressed", isOn);
  button.setAttribute("aria-label", `${text}, ${images(n)}`);
  item.append(button);
  return item;
}

/** Return the kinds with their rows' number: of issues, and who has said it. */
function kinds() {
  const found = new Map();
  const add = (kind) => found.set(kind, (found.get(kind) ?? 0) + 1);
  for (const [r, issues] of state.issues) {
    if (!state.settled.has(r)) new Set(issues.map(({kind}) => kind)).forEach(add);
  }
  for (const r of state.news) if (!isGiven(r)) add("news");
  found.set("predicted", names.length - state.answers.size);
  found.set("given", state.answers.size);
  return found;
}

function drawFilters() {
  const counts = new Map();
  for (let r = 0; r < names.length; r++) {
    counts.set(labelOf(r), (counts.get(labelOf(r)) ?? 0) + 1);
  }
  const focused = document.activeElement?.closest(".filters button")?.textContent;
  const labels = classesShown(counts);
  $("show-classes").replaceChildren(...labels.map((label) => filterButton(
    label === null ? "All" : label === "" ? "Without a label" : label,
    label === null ? names.length : counts.get(label) ?? 0,
    show.label === label, () => filter({label}))));
  const texts = {news: "changed predictions", given: "given", predicted: "predicted"};
  const found = [...kinds()].filter(([kind, n]) => n || kind === show.kind);
  $("show-kinds").replaceChildren(...found.map(([kind, n]) => filterButton(
    texts[kind] ?? WORDS[kind] ?? kind, n, show.kind === kind,
    () => filter({kind: show.kind === kind ? null : kind}))));
  if (focused) {
    [...document.querySelectorAll(".filters button")]
      .find((button) => button.textContent === focused)?.focus();
  }
  const n = found.find(([kind]) => kind === "news")?.[1] ?? 0;
  $("news").hidden = !n || show.kind === "news";
  $("news").firstElementChild.textContent = `${count(n)} prediction${n === 1 ? "" : "s"} changed`;
}

function classesShown(counts) {
  const labels = [null, ...state.classes];
  if (counts?.get("") || show.label === "") labels.push("");
  return labels;
}

/** Rows that an answer is meant for. */
function targets() {
  if (!list.length) return [];
  if (!$("large").hidden) return [list[at]];
  return list.filter((r) => selected.has(r));
}

function drawActions() {
  const rows = targets();
  const labels = new Set(rows.map(labelOf));
  const only = labels.size === 1 ? [...labels][0] : null;
  $("target").textContent = rows.length > 1 ? `${count(rows.length)} selected`
    : rows.length ? "1 image" : "No image";
  const open = rows.filter((r) => !isGiven(r) && predicted(r)).length;
  const right = rows.length - open && rows.some((r) => issuesOf(r).length);
  $("confirm").disabled = !open && !right;
  $("confirm").lastElementChild.textContent =
    rows.length > 1 ? "These labels are right" : only ? `${only} is right` : "It is right";
  const buttons = $("classes");
  state.classes.forEach((label, i) => {
    const item = buttons.children[i] ?? buttons.appendChild(classItem());
    const [button] = item.children;
    const [key, name] = button.children;
    key.textContent = KEYS[i] ?? "";
    key.hidden = i >= KEYS.length;
    name.textContent = name.title = label;
    button.dataset.label = label;
    button.setAttribute("aria-pressed", label === only && rows.every(isGiven));
    button.classList.toggle("proposed", label === only && !rows.every(isGiven));
    button.disabled = !rows.length;
  });
  while (buttons.children.length > state.classes.length) buttons.lastChild.remove();
  for (const button of document.querySelectorAll("[data-mark], #zoom")) {
    button.disabled = !rows.length;
  }
  $("name-new").disabled = $("all").disabled = !list.length;
  $("shown").textContent = list.length ? images(list.length)
    : "Nothing to show: choose another class or kind.";
}

function classItem() {
  const item = document.createElement("li");
  const button = element("button", "", {type: "button", className: "class"});
  button.append(element("kbd", ""), element("span", "", {className: "label"}));
  button.onclick = () => correct({label: button.dataset.label});
  item.append(button);
  return item;
}

// -- the grid: only what is in sight is in the document

let shape = {columns: 1, side: TILE, height: TILE + CAPTION};
const cells = new Map(); // row: its cell, the last used last
const lines = new Map(); // number of a line: its element

function measure() {
  const width = $("grid").clientWidth;
  const columns = Math.max(2, Math.floor((width + GAP) / (TILE + GAP)));
  const side = Math.floor((width - GAP * (columns - 1)) / columns);
  shape = {columns, side, height: side + CAPTION + GAP};
  document.documentElement.style.setProperty("--side", `${side}px`);
}

function drawGrid() {
  measure();
  const n = Math.ceil(list.length / shape.columns);
  $("grid").style.height = `${n * shape.height}px`;
  $("grid").setAttribute("aria-rowcount", n);
  $("grid").setAttribute("aria-colcount", shape.columns);
  lines.forEach((line) => line.remove());
  lines.clear();
  keepInSight();
  drawLines();
}

function drawLines() {
  const {scrollTop, clientHeight} = $("scroll");
  const n = Math.ceil(list.length / shape.columns);
  const first = Math.max(0, Math.floor(scrollTop / shape.height) - BEYOND);
  const last = Math.min(n - 1, Math.floor((scrollTop + clientHeight) / shape.height) + BEYOND);
  for (const [number, line] of lines) {
    if (number < first || number > last) {
      line.remove();
      lines.delete(number);
    }
  }
  for (let number = first; number <= last; number++) {
    if (lines.has(number)) continue;
    const line = document.createElement("div");
    line.setAttribute("role", "row");
    line.setAttribute("aria-rowindex", number + 1);
    line.className = "row";
    line.style.transform = `translateY(${number * shape.height}px)`;
    const from = number * shape.columns;
    list.slice(from, from + shape.columns).forEach((r, i) => line.append(cell(r, i)));
    lines.set(number, line);
    $("grid").append(line);
  }
  drawSelection();
  while (cells.size > KEPT) {
    const oldest = cells.keys().next().value;
    if (cells.get(oldest).isConnected) break;
    cells.delete(oldest);
  }
  loadInSight($("scroll"), shape.height, (image) =>
    `/image/${state.about.key}/${image.parentElement.dataset.row}/160`);
}

/** Return the cell of a row as it is now. */
function cell(r, column) {
  const found = cells.get(r) ?? newCell(r);
  cells.delete(r);
  cells.set(r, found);
  found.setAttribute("aria-colindex", column + 1);
  const [, badges, caption] = found.children;
  const [label, more] = caption.children;
  const text = labelOf(r) || given(r)?.[1] || "no label";
  const p = isGiven(r) ? null : predicted(r)?.[1];
  label.textContent = label.title = text;
  more.textContent = isGiven(r) ? "✓ given" : typeof p === "number" ? percent(p) : "";
  found.classList.toggle("given", isGiven(r));
  const issues = issuesOf(r);
  badges.replaceChildren(...issues.map(({kind, detail}) => element(
    "span", WORDS[kind] ?? kind, {title: detail || kind})));
  const told = [names[r], text, more.textContent.replace("✓ ", ""),
    ...issues.map(inWords)];
  found.setAttribute("aria-label", told.filter(Boolean).join(", "));
  return found;
}

function newCell(r) {
  const found = element("div", "", {className: "cell", id: `cell-${r}`});
  found.setAttribute("role", "gridcell");
  found.dataset.row = r;
  const image = new Image();
  image.alt = "";
  image.draggable = false;
  const caption = element("div", "", {className: "caption"});
  caption.append(element("span", "", {className: "label"}),
    element("span", "", {className: "n"}));
  found.append(image, element("div", "", {className: "badges"}), caption);
  return found;
}

function drawSelection() {
  for (const line of lines.values()) {
    for (const found of line.children) {
      const r = Number(found.dataset.row);
      found.setAttribute("aria-selected", selected.has(r));
      found.classList.toggle("at", r === list[at]);
    }
  }
  const active = list.length && cells.get(list[at])?.isConnected;
  if (active) $("grid").setAttribute("aria-activedescendant", `cell-${list[at]}`);
  else $("grid").removeAttribute("aria-activedescendant");
}

function keepInSight() {
  const top = Math.floor(at / shape.columns) * shape.height;
  const box = $("scroll");
  if (top < box.scrollTop) box.scrollTop = top;
  const below = top + shape.height - box.clientHeight;
  if (below > box.scrollTop) box.scrollTop = below;
}

const inWords = ({kind, detail}) => [kind, detail].filter(Boolean).join(": ");

// -- selecting

/** Go to a place; with a run, all from where it began are selected. */
function go(index, isRun = false) {
  if (!list.length) return;
  index = Math.max(0, Math.min(list.length - 1, index));
  if (isRun) selectRun(index);
  else moveTo(index);
  keepInSight();
  drawLines();
  drawActions();
  drawLarge();
}

function selectRun(index) {
  const run = list.slice(Math.min(anchor, index), Math.max(anchor, index) + 1);
  selected = new Set(run);
  at = index;
  chosen = true;
}

function toggle(index) {
  const r = list[index];
  if (!chosen && selected.size < 2 && matchMedia("(pointer: coarse)").matches) {
    selected.clear(); // on a phone nothing is selected before the first touch
  }
  if (!selected.delete(r)) selected.add(r);
  at = anchor = index;
  chosen = true;
  drawSelection();
  drawActions();
}

function selectAll() {
  if (!list.length) return;
  selected = new Set(list);
  chosen = true;
  drawSelection();
  drawActions();
}

function onClick(event) {
  const found = event.target.closest("[role=gridcell]");
  if (!found) return;
  const index = place.get(Number(found.dataset.row));
  if (index === undefined) return;
  $("grid").focus({preventScroll: true});
  if (event.shiftKey) go(index, true);
  else if (event.ctrlKey || event.metaKey || event.pointerType === "touch") toggle(index);
  else go(index);
}

// -- a large image

function openLarge() {
  if (!list.length) return;
  $("large").hidden = false;
  drawLarge();
  drawActions();
}

function closeLarge() {
  if ($("large").hidden) return;
  $("large").hidden = true;
  $("large-image").replaceChildren();
  $("grid").focus({preventScroll: true});
  drawActions();
}

function drawLarge() {
  if ($("large").hidden) return;
  if (!list.length) return closeLarge();
  const r = list[at];
  const box = $("large").getBoundingClientRect();
  const side = Math.max(box.width, box.height) * devicePixelRatio > 700 ? 1600 : 640;
  const address = `/image/${state.about.key}/${r}/${side}`;
  if ($("large-image").firstChild?.getAttribute("src") !== address) {
    const image = new Image();
    image.alt = `Image ${names[r]}`;
    image.onload = () => image.classList.toggle("small", image.naturalWidth < 64);
    image.src = address;
    $("large-image").replaceChildren(image);
  }
  const p = isGiven(r) ? null : predicted(r)?.[1];
  const issues = issuesOf(r).map(inWords);
  const label = element("strong", labelOf(r) || given(r)?.[1] || "no label");
  const more = [isGiven(r) ? "given" : typeof p === "number" ? percent(p) : "", ...issues];
  $("large-text").replaceChildren(label, element("span", more.filter(Boolean).join(", ")),
    element("span", names[r], {className: "file"}));
  $("large-back").disabled = at === 0;
  $("large-forth").disabled = at === list.length - 1;
}

// -- answers

/** Say that what is selected is something else. */
async function correct(body) {
  const rows = body.rows ?? targets();
  if (!rows.length) return;
  const first = Math.min(...rows.map((r) => place.get(r) ?? at));
  const reply = await change("/correct", {...body, rows});
  if (reply !== null) answered(first, reply, body.label ?? body.mark);
}

/** Say that the labels of what is selected are right. */
async function confirm() {
  const rows = targets();
  if (!rows.length || $("confirm").disabled) return;
  const first = Math.min(...rows.map((r) => place.get(r) ?? at));
  const reply = await change("/confirm", {turn: state.turn, rows});
  if (reply !== null) answered(first, reply, null);
}

function answered(first, reply, text) {
  const n = reply.rows.length;
  const before = list;
  at = first;
  arrange();
  // what stays where it was has been dealt with: go on behind it
  const stayed = before[first] !== undefined && place.get(before[first]) === first;
  if (stayed) go(first + Math.max(1, n));
  if (n > 1) say(text === null ? `${images(n)} confirmed.` : `${images(n)}: ${text}.`, 2500);
  else hush();
}

async function unmake(path) {
  if (path === "/undo" ? !state.can_undo : !state.can_redo) return;
  const reply = await change(path);
  if (reply === null) return;
  arrange(reply.rows[0]);
  const found = reply.rows.filter((r) => place.has(r));
  if (found.length > 1) {
    selected = new Set(found);
    chosen = true;
    drawSelection();
    drawActions();
  }
  keepInSight();
  drawLines();
  say(path === "/undo" ? "Undone." : "Redone.", 1500);
}

async function finish() {
  if (gone) return;
  const yes = await question({
    title: "Finish?",
    text: "Everything is saved, and the same command continues.",
    yes: "Finish", no: "Continue",
  });
  if (!yes) return;
  try {
    await ask("/finish", {});
  } catch {
    return;
  }
  end("Finished", `The labels are in ${state.about.list}. You can close this page.`,
    state.about.next, "To see how good they are:");
}

// -- keys

const ACTIONS = {
  Enter: confirm,
  " ": () => ($("large").hidden ? openLarge() : closeLarge()),
  "?": () => correct({mark: "cannot tell"}),
  0: () => correct({mark: "none of these"}),
  "+": () => $("name-new").focus(),
  "!": () => !$("news").hidden && $("news").click(),
  "[": () => turn(-1),
  "]": () => turn(1),
  Backspace: () => unmake("/undo"),
  Escape: () => {
    if (!$("large").hidden) closeLarge();
    else go(at);
    hush();
  },
  F1: () => $("help").showModal(),
};

/** Show another class. */
function turn(by) {
  const labels = classesShown();
  const now = labels.indexOf(show.label);
  filter({label: labels[(now + by + labels.length) % labels.length]});
}

function moves() {
  const isLarge = !$("large").hidden;
  const {columns, height} = shape;
  const page = columns * Math.max(1, Math.floor($("scroll").clientHeight / height));
  return {
    ArrowLeft: at - 1, ArrowRight: at + 1,
    ArrowUp: at - (isLarge ? 1 : columns), ArrowDown: at + (isLarge ? 1 : columns),
    PageUp: at - page, PageDown: at + page, Home: 0, End: list.length - 1,
  };
}

function onKey(event) {
  if (gone || document.querySelector("dialog[open]")) return;
  const target = event.target;
  if (target.id === "name-new") {
    if (event.key === "Escape") target.blur();
    return;
  }
  if (target.tagName === "SELECT") return;
  if (event.ctrlKey || event.metaKey) {
    const key = event.key.toLowerCase();
    if (key !== "a" && key !== "z" && key !== "y") return;
    event.preventDefault();
    if (key === "a") selectAll();
    else unmake(key === "y" || event.shiftKey ? "/redo" : "/undo");
    return;
  }
  if (event.altKey) return;
  const onButton = target.closest?.("button") && ["Enter", " "].includes(event.key);
  if (onButton && target.matches(":focus-visible")) return; // it is pressed
  const index = moves()[event.key];
  let action = ACTIONS[event.key];
  if (index !== undefined) action = () => go(index, event.shiftKey && $("large").hidden);
  else if (event.repeat) return;
  else if (event.shiftKey && event.key === "Backspace") action = () => unmake("/redo");
  else if (!action && event.key.length === 1) {
    const label = state.classes[KEYS.indexOf(event.key.toLowerCase())];
    if (label !== undefined) action = () => correct({label});
  }
  if (!action) return;
  event.preventDefault();
  action();
}

// -- the beginning

function watch() {
  document.addEventListener("keydown", onKey);
  $("undo").onclick = () => unmake("/undo");
  $("redo").onclick = () => unmake("/redo");
  $("keys").onclick = ACTIONS.F1;
  $("finish").onclick = finish;
  $("all").onclick = selectAll;
  $("confirm").onclick = confirm;
  $("zoom").onclick = ACTIONS[" "];
  $("news").onclick = () => filter({label: null, kind: "news"});
  $("sort").onchange = () => filter({sort: $("sort").value});
  $("large-back").onclick = () => go(at - 1);
  $("large-forth").onclick = () => go(at + 1);
  $("large-close").onclick = closeLarge;
  for (const button of document.querySelectorAll("[data-mark]")) {
    button.onclick = () => correct({mark: button.dataset.mark});
  }
  $("new").onsubmit = (event) => {
    event.preventDefault();
    const label = $("name-new").value;
    if (!label.trim()) return;
    $("name-new").value = "";
    $("grid").focus({preventScroll: true});
    correct({label});
  };
  $("grid").addEventListener("click", onClick);
  $("grid").addEventListener("dblclick", openLarge);
  let waiting = false;
  $("scroll").addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      drawLines();
    });
  });
  new ResizeObserver(drawGrid).observe($("scroll"));
  lookForOthers(PULSE, () => state, reload, async (isOther) => {
    if (isOther) {
      arrange();
      say("The labels were changed in another tab or in the list; the page now shows them.");
    } else {
      draw(); // in the order that the person sees
    }
  });
}

async function begin() {
  try {
    names = await ask("/names");
    await reload();
  } catch (error) {
    if (!gone) end("This page cannot be shown", error.message);
    return;
  }
  $("title").textContent = $("title").title = state.about.title;
  watch();
  arrange();
  document.body.dataset.ready = "yes";
  $("grid").focus({preventScroll: true});
}

begin();
