// The labeling page: one image at a time, an answer on every key, each saved at once.
// All texts of others (names of files and classes) go into textContent alone.

import {
  $, KEYS, ask, busy, element, end, gone, hush, loadInTurn, lookForOthers, outlook,
  percent, question, say, setBusy, tellWhenLost, whichName,
} from "./common.js";

const AHEAD = 4; // images that are loaded before they are shown
const PULSE = 3000; // milliseconds between looks for what others have changed
const MOST_ZOOM = 12;

let state; // as the server has it; answers as a Map
let row = null; // what is shown, or null at the end of the list
let deaf = 0; // until then no answer is taken: the person has not seen a change yet
let trail = []; // rows shown before, for the way back
let images = new Map(); // row: its image, loaded ahead
let rows = new Map(); // row: a promise of what is known of it

// -- the server

function take(found) {
  state = {...found, answers: new Map()};
  for (const [key, answer] of Object.entries(found.answers)) {
    state.answers.set(Number(key), answer);
  }
  state.place = new Map(state.order.map((r, i) => [r, i]));
  rows.clear();
}

async function reload() {
  const found = await ask("/state");
  if (state && found.version < state.version) return; // an answer has overtaken it
  take(found);
}

/** Show what somebody else has changed, and give the person the time to see it. */
async function showOthers(more = "") {
  deaf = performance.now() + 500;
  say(`The answers were changed in another tab or in the list; the page now shows them.${more}`);
  await show(row, false);
}

/** Send a change; return the reply, or null where it was refused. */
async function change(path, body = {}) {
  if (busy || gone) return null;
  setBusy(true);
  try {
    return await ask(path, {version: state.version, ...body});
  } catch (error) {
    await refused(error, path, body);
    return null;
  } finally {
    setBusy(false);
  }
}

async function refused(error, path, body) {
  if (gone) return;
  if (error.status === 409) {
    await reload();
    await showOthers(" Please answer again.");
  } else if (error.body?.known) {
    const isRename = path === "/rename";
    const name = await whichName(error.body);
    setBusy(false);
    if (name === null) return;
    const again = isRename ? {...body, new: name} : {...body, label: name};
    await (isRename ? rename : answer)({...again, alike: true});
  } else {
    say(error.message);
  }
}

/** Take what the reply to a change tells. */
function apply(reply) {
  for (const [key, found] of Object.entries(reply.changed)) {
    if (found === null) state.answers.delete(Number(key));
    else state.answers.set(Number(key), found);
  }
  const {changed, row: changedRow, turn, ...rest} = reply;
  Object.assign(state, rest);
  if (turn !== state.turn) reload().then(() => show(row, false)).catch(() => {});
}

// -- what is asked

const isOpen = (r) => !state.answers.has(r);
const isSkipped = (r) => state.answers.get(r)?.[1] === "skipped";

/** Return up to n rows to ask after one: open ones, then those that were skipped. */
function coming(from, n) {
  const start = (state.place.get(from) ?? -1) + 1;
  const inTurn = [];
  for (let i = 0; i < state.order.length && inTurn.length < n; i++) {
    const r = state.order[(start + i) % state.order.length];
    if (r !== from && isOpen(r)) inTurn.push(r);
  }
  for (let i = 0; i < state.order.length && inTurn.length < n; i++) {
    const r = state.order[(start + i) % state.order.length];
    if (r !== from && isSkipped(r)) inTurn.push(r);
  }
  return inTurn;
}

async function answer(body) {
  const asked = row;
  if (asked === null && body.row === undefined) return;
  if (performance.now() < deaf) return;
  const wasOpen = isOpen(asked) || isSkipped(asked);
  const reply = await change("/answer", {row: asked, ...body});
  if (reply === null) return;
  hush();
  apply(reply);
  trail.push(asked);
  // who corrects an earlier answer goes on from there
  const next = wasOpen ? coming(asked, 1)[0] ?? null : following(asked);
  if (next === null && body.mark === "skipped") say("Only skipped images are left.");
  await show(next);
}

/** Return the row after one in the order, or the next open one after the last. */
function following(from) {
  const place = state.place.get(from);
  if (place !== undefined && place + 1 < state.order.length) return state.order[place + 1];
  return coming(from, 1)[0] ?? null;
}

async function rename(body) {
  const reply = await change("/rename", body);
  if (reply === null) return;
  apply(reply);
  rows.clear();
  await show(row, false);
}

async function unmake(path) {
  const reply = await change(path);
  if (reply === null) return;
  apply(reply);
  const n = Object.keys(reply.changed).length;
  if (n === 1) await show(reply.row); // what was undone is what is looked at
  else await show(row, false);
  say(path === "/undo" ? "Undone." : "Redone.", 1500);
}

// -- what is shown

function side() {
  const box = $("stage").getBoundingClientRect();
  return Math.max(box.width, box.height) * devicePixelRatio > 700 ? 1600 : 640;
}

function load(r) {
  if (!images.has(r)) {
    const image = new Image();
    image.alt = "";
    image.draggable = false;
    image.src = `/image/${state.about.key}/${r}/${side()}`;
    image.ready = image.decode().then(() => true, () => false);
    images.set(r, image);
  }
  return images.get(r);
}

function about(r) {
  if (!rows.has(r)) rows.set(r, ask(`/row/${r}`));
  return rows.get(r);
}

async function loadAhead() {
  const now = row;
  const next = coming(now ?? -1, AHEAD);
  const keep = new Set([now, ...next, ...trail.slice(-2)]);
  for (const r of images.keys()) if (!keep.has(r)) images.delete(r);
  await Promise.all(next.map((r) => load(r).ready));
  if (row !== now || !next.length) return;
  const found = await about(next[0]).catch(() => ({near: []}));
  loadInTurn(found.near.map((r) => [new Image(), thumbnail(r)]), () => row === now);
}

const thumbnail = (r) => `/image/${state.about.key}/${r}/160`;

/** Show a row, or the end of the list. */
async function show(r, isNew = true) {
  row = r ?? null;
  if (row === null) {
    showEnd();
    showAnswers();
    return;
  }
  document.body.classList.remove("ended");
  $("done").hidden = true;
  const image = load(row);
  const whole = await image.ready;
  if (row !== r) return; // the person was faster
  if (isNew || $("frame").firstChild !== image) {
    unzoom();
    image.classList.toggle("small", whole && image.naturalWidth < 64);
    $("frame").replaceChildren(whole ? image : unreadable());
    $("name").textContent = "";
    $("strip").replaceChildren();
  }
  showAnswers();
  document.body.dataset.row = row;
  requestAnimationFrame(() => setTimeout(loadAhead));
  about(r).then((found) => { if (row === r) showRow(found); }).catch(() => {});
}

function unreadable() {
  const text = document.createElement("p");
  text.textContent = "This file cannot be shown as an image.";
  return text;
}

function showRow(found) {
  const image = $("frame").querySelector("img");
  $("name").textContent = found.name;
  if (image) image.alt = `Image ${found.name}`;
  const now = row;
  const pairs = [];
  $("strip").replaceChildren(...found.near.map((r) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    const small = new Image();
    small.alt = "";
    pairs.push([small, thumbnail(r)]);
    button.append(small);
    const given = said(state.answers.get(r));
    button.setAttribute("aria-label", `Go to a similar image${given && `: ${given}`}`);
    if (given) {
      const label = document.createElement("span");
      label.textContent = given;
      button.append(label);
    }
    button.onclick = () => { trail.push(row); show(r); };
    item.append(button);
    return item;
  }));
  loadInTurn(pairs, () => row === now);
  document.querySelector(".near").hidden = !found.near.length;
  showAnswers(found.proposal);
}

const said = (answer) => (answer ? answer[0] ?? answer[1] : "");

let proposed = null; // the class that Enter confirms

function showAnswers(proposal = null) {
  const given = state.answers.get(row);
  const counts = new Map();
  for (const [label] of state.answers.values()) {
    if (label !== null) counts.set(label, (counts.get(label) ?? 0) + 1);
  }
  const isProposed = proposal && row !== null && (!given || given[1] === "skipped");
  proposed = isProposed && state.classes.includes(proposal[0]) ? proposal[0] : null;
  const list = $("classes");
  const focused = document.activeElement?.closest?.("#classes button")?.dataset;
  state.classes.forEach((label, i) => {
    const item = list.children[i] ?? list.appendChild(classItem());
    const [button, edit] = item.children;
    const [key, name, n] = button.children;
    key.textContent = KEYS[i] ?? "";
    key.hidden = i >= KEYS.length;
    name.textContent = name.title = label;
    n.textContent = label === proposed
      ? `${percent(proposal[1])} ⏎` : counts.get(label) ?? 0;
    button.dataset.label = edit.dataset.label = label;
    button.classList.toggle("proposed", label === proposed);
    button.setAttribute("aria-pressed", given?.[0] === label);
    button.setAttribute("aria-label", `${label}, ${label === proposed
      ? `proposed, ${percent(proposal[1])}, Enter` : `${counts.get(label) ?? 0} images`}`);
    edit.setAttribute("aria-label", `Rename ${label}`);
    button.disabled = row === null;
  });
  while (list.children.length > state.classes.length) list.lastChild.remove();
  list.querySelector(".proposed, [aria-pressed=true]")?.scrollIntoView({block: "nearest"});
  if (focused && !document.activeElement?.dataset?.label) list.querySelector("button")?.focus();
  for (const button of document.querySelectorAll("[data-mark]")) {
    button.setAttribute("aria-pressed", given?.[1] === button.dataset.mark);
    button.disabled = row === null;
  }
  $("name-new").disabled = row === null;
  $("name-new").placeholder = state.classes.length ? "New class" : "Name of the first class";
  $("hint").hidden = state.classes.length > 0;
  $("given").textContent = said(given);
  showProgress();
}

const PEN = "M4 20h4L19 9a2.8 2.8 0 0 0-4-4L4 16v4Z";

function classItem() {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "class";
  for (const [tag, kind] of [["kbd", "key"], ["span", "label"], ["span", "n"]]) {
    const part = document.createElement(tag);
    part.className = kind;
    button.append(part);
  }
  button.onclick = () => answer({label: button.dataset.label});
  const edit = document.createElement("button");
  edit.type = "button";
  edit.className = "edit";
  edit.title = "Rename, or merge with another class";
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  picture.setAttribute("viewBox", "0 0 24 24");
  picture.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PEN);
  picture.append(path);
  edit.append(picture);
  edit.onclick = () => askForName(edit.dataset.label);
  item.append(button, edit);
  return item;
}

async function askForName(old) {
  const name = await question({
    title: `Rename “${old}”`,
    text: "The name of another class merges both.",
    yes: "Rename", no: "Cancel", value: old,
  });
  if (typeof name === "string" && name.trim() && name !== old) {
    await rename({old, new: name});
  }
}

function showProgress() {
  const n = state.order.length;
  const done = state.order.filter((r) => !isOpen(r) && !isSkipped(r)).length;
  $("bar").max = n || 1;
  $("bar").value = done;
  $("count").textContent = `${done} of ${n}`;
  document.title = `${done} of ${n} · ${state.about.title}`;
  $("undo").disabled = !state.can_undo;
  $("redo").disabled = !state.can_redo;
  const place = state.place.get(row);
  $("back").disabled = !(row === null ? n : trail.length || place > 0);
  $("forth").disabled = row === null;
  $("insight").replaceChildren(...outlook(state));
}

function showEnd() {
  document.body.classList.add("ended");
  delete document.body.dataset.row;
  $("frame").replaceChildren();
  $("strip").replaceChildren();
  $("name").textContent = $("given").textContent = "";
  document.querySelector(".near").hidden = true;
  const n = state.order.length;
  const parts = [element("h2", n ? `All ${n} images are answered` : "Nothing to label")];
  const text = document.createElement("p");
  text.append(...outlook(state));
  parts.push(text);
  const choice = element("div", "", {className: "choice"});
  const more = Math.min(40, state.n_more);
  if (more) {
    choice.append(element("button", `Label ${more} more`, {
      type: "button", className: more ? "main" : "", onclick: () => askMore(more),
    }));
  }
  choice.append(element("button", "Finish", {
    type: "button", className: more ? "" : "main", onclick: finish,
  }));
  parts.push(choice);
  if (more) {
    parts.push(element("p", "The next images are the most informative ones: first those " +
      "unlike any labeled image, then uncertain ones."));
  }
  $("done").replaceChildren(...parts);
  $("done").hidden = false;
  choice.firstChild.focus();
}

async function askMore(n) {
  if (busy || gone) return;
  try {
    await ask("/more", {n});
    await reload();
    await show(coming(-1, 1)[0] ?? null);
  } catch (error) {
    if (!gone) say(error.message);
  }
}

async function finish() {
  if (gone) return;
  const left = state.order.filter((r) => isOpen(r) || isSkipped(r)).length;
  if (left) {
    const yes = await question({
      title: "Finish for now?",
      text: `${left} images have no answer yet. ` + (state.about.leave ??
        "Everything else is saved, and the same command continues."),
      yes: "Finish", no: "Continue",
    });
    if (!yes) return;
  }
  try {
    await ask("/finish", {});
  } catch {
    return;
  }
  end("Finished", `Your answers are in ${state.about.list}. You can close this page.`,
    state.about.next, "To label all other images from them:");
}

// -- back and forth

async function back() {
  if (busy) return;
  let before = trail.pop();
  while (before === row && trail.length) before = trail.pop();
  if (before === undefined || before === row) {
    const place = row === null ? state.order.length : state.place.get(row) ?? 0;
    before = state.order[place - 1];
  }
  if (before !== undefined) await show(before);
}

async function forth() {
  if (busy || row === null) return;
  trail.push(row);
  await show(following(row));
}

// -- zoom

let zoom = {scale: 1, x: 0, y: 0};

function setZoom(scale, x, y) {
  const image = $("frame").querySelector("img");
  if (!image) return;
  scale = Math.min(MOST_ZOOM, Math.max(1, scale));
  const box = $("frame").getBoundingClientRect();
  const [dx, dy] = [(scale - 1) * box.width / 2, (scale - 1) * box.height / 2];
  zoom = {scale, x: Math.min(dx, Math.max(-dx, x)), y: Math.min(dy, Math.max(-dy, y))};
  image.style.transform = `translate(${zoom.x}px, ${zoom.y}px) scale(${zoom.scale})`;
  $("frame").style.cursor = zoom.scale > 1 ? "grab" : "";
}

/** Zoom by a factor; what is under a point of the window stays there. */
function zoomBy(factor, clientX, clientY) {
  const box = $("frame").getBoundingClientRect();
  const px = (clientX ?? box.left + box.width / 2) - box.left - box.width / 2;
  const py = (clientY ?? box.top + box.height / 2) - box.top - box.height / 2;
  const scale = Math.min(MOST_ZOOM, Math.max(1, zoom.scale * factor));
  const by = scale / zoom.scale;
  setZoom(scale, px - (px - zoom.x) * by, py - (py - zoom.y) * by);
}

function unzoom() {
  setZoom(1, 0, 0);
}

const touches = new Map();

function watchZoom() {
  const frame = $("frame");
  frame.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY / 400), event.clientX, event.clientY);
  }, {passive: false});
  frame.addEventListener("dblclick", (event) => {
    if (zoom.scale > 1) unzoom();
    else zoomBy(2.5, event.clientX, event.clientY);
  });
  frame.addEventListener("pointerdown", (event) => {
    touches.set(event.pointerId, event);
    frame.setPointerCapture(event.pointerId);
  });
  frame.addEventListener("pointermove", (event) => {
    const before = touches.get(event.pointerId);
    if (!before) return;
    const other = [...touches.values()].find((t) => t.pointerId !== event.pointerId);
    if (other) {
      const span = (t) => Math.hypot(t.clientX - other.clientX, t.clientY - other.clientY);
      zoomBy(span(event) / Math.max(1, span(before)),
        (event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2);
    } else if (zoom.scale > 1) {
      setZoom(zoom.scale, zoom.x + event.clientX - before.clientX,
        zoom.y + event.clientY - before.clientY);
    }
    touches.set(event.pointerId, event);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    frame.addEventListener(name, (event) => {
      const first = touches.get(event.pointerId);
      touches.delete(event.pointerId);
      swipe(first, event);
    });
  }
}

let swiped = null; // where a touch began

function swipe(last, event) {
  if (event.pointerType !== "touch" || !swiped || zoom.scale > 1) return;
  const dx = event.clientX - swiped.clientX;
  if (Math.abs(dx) > 60 && Math.abs(dx) > 2 * Math.abs(event.clientY - swiped.clientY)) {
    if (dx > 0) back();
    else forth();
  }
  swiped = null;
}

// -- keys

const ACTIONS = {
  Enter: () => proposed !== null && answer({label: proposed}),
  " ": () => answer({mark: "skipped"}),
  "?": () => answer({mark: "cannot tell"}),
  0: () => answer({mark: "none of these"}),
  "+": () => $("name-new").focus(),
  Backspace: () => unmake("/undo"),
  ArrowLeft: back,
  ArrowRight: forth,
  ArrowUp: () => zoomBy(1.5),
  ArrowDown: () => zoomBy(1 / 1.5),
  Escape: () => (zoom.scale > 1 ? unzoom() : hush()),
  F1: () => $("help").showModal(),
};
const MOVES = {
  ArrowLeft: [80, 0], ArrowRight: [-80, 0], ArrowUp: [0, 80], ArrowDown: [0, -80],
};

function onKey(event) {
  if (gone || document.querySelector("dialog[open]")) return;
  const target = event.target;
  if (target.id === "name-new") {
    if (event.key === "Escape") target.blur();
    return;
  }
  if (event.ctrlKey || event.metaKey) {
    const key = event.key.toLowerCase();
    if (key === "z" || key === "y") {
      event.preventDefault();
      unmake(key === "y" || event.shiftKey ? "/redo" : "/undo");
    }
    return;
  }
  if (event.altKey) return;
  const onButton = target.closest?.("button") && ["Enter", " "].includes(event.key);
  if (onButton && target.matches(":focus-visible")) return; // it is pressed
  if (event.repeat && !event.key.startsWith("Arrow")) return;
  let action = ACTIONS[event.key];
  if (event.shiftKey && MOVES[event.key]) {
    const [dx, dy] = MOVES[event.key];
    action = () => setZoom(zoom.scale, zoom.x + dx, zoom.y + dy);
  } else if (event.shiftKey && event.key === "Backspace") {
    action = () => unmake("/redo");
  } else if (!action && row !== null) {
    const label = event.key.length === 1 && state.classes[KEYS.indexOf(event.key.toLowerCase())];
    if (label !== undefined && label !== false) action = () => answer({label});
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
  $("back").onclick = back;
  $("forth").onclick = forth;
  for (const button of document.querySelectorAll("[data-mark]")) {
    button.onclick = () => answer({mark: button.dataset.mark});
  }
  $("new").onsubmit = (event) => {
    event.preventDefault();
    const label = $("name-new").value;
    if (!label.trim()) return;
    $("name-new").value = "";
    $("name-new").blur();
    answer({label});
  };
  $("frame").addEventListener("pointerdown", (event) => {
    swiped = event.pointerType === "touch" && !touches.size ? event : null;
  }, true);
  watchZoom();
  lookForOthers(PULSE, () => state, reload, async (isOther) => {
    if (isOther) await showOthers();
    else await show(row, false);
  });
}

async function begin() {
  try {
    await reload();
  } catch (error) {
    if (!gone) end("This page cannot be shown", error.message);
    return;
  }
  if (state.about.lost) { // the answers are in memory
    tellWhenLost(state.about.lost);
    $("saved").textContent = state.about.leave;
  }
  $("title").textContent = $("title").title = state.about.title;
  watch();
  await show(coming(-1, 1)[0] ?? null);
  if (!state.classes.length && innerWidth > 720) $("name-new").focus();
}

begin();
