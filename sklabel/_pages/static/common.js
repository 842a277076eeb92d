// What all pages share: the server, its end, words, dialogs.
// All texts of others (names of files and classes) go into textContent alone.

export const KEYS = "123456789abcdefghijklmnopqrstuvwxyz";

export const $ = (id) => document.getElementById(id);

export let gone = false; // the program has ended
export let busy = false; // while an answer is being saved

export function setBusy(now) {
  busy = now;
  document.body.dataset.busy = now ? "yes" : "";
}

// -- the server

export class Refused extends Error {
  constructor(status, body) {
    super(body.error || `The program answered ${status}.`);
    this.status = status;
    this.body = body;
  }
}

export async function ask(path, body) {
  let answer;
  try {
    answer = await fetch(path, body === undefined ? {} : {
      method: "POST",
      headers: {"content-type": "application/json"},
      body: JSON.stringify(body),
    });
  } catch {
    end("The program is not running", whatIsSaved(body !== undefined));
    throw new Refused(0, {error: "The program is not running."});
  }
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, found);
  return found;
}

let whenLost = null;

/** Say this where the program is not running any more. */
export function tellWhenLost(text) {
  whenLost = text;
}

function whatIsSaved(isChange) {
  const saved = isChange ? "What you did last may not be saved; everything before it is." :
    "All your answers are saved.";
  return whenLost || `${saved} To continue, run the same command again and open the ` +
    "address that it prints.";
}

/** Ask whether a name that looks like a known one is meant; return a name or null. */
export async function whichName({label, known}) {
  const yes = await question({
    title: `Is “${label}” the same as “${known}”?`,
    text: "The names look alike. Two names would make two classes.",
    yes: `Use “${known}”`, no: `Two classes`,
  });
  return yes === null ? null : yes ? known : label;
}

/** Look now and then for what others have changed or what has been learned, and show it. */
export function lookForOthers(milliseconds, known, reload, show) {
  async function look() {
    if (busy || gone || document.hidden) return;
    try {
      const before = known().version;
      const found = await ask("/pulse");
      // an answer of this page may have overtaken the reply
      if (busy || gone || known().version !== before) return;
      const isOther = found.version !== known().version;
      if (!isOther && found.turn === known().turn) return;
      await reload();
      await show(isOther);
    } catch (error) {
      if (!gone && error instanceof Refused) say(error.message);
    }
  }
  setInterval(look, milliseconds);
  document.addEventListener("visibilitychange", look);
}

/** Show nothing but that it is over; a command to go on with, and what it is for. */
export function end(title, text, command, what) {
  if (gone) return;
  gone = true;
  document.querySelectorAll("dialog[open]").forEach((dialog) => dialog.close());
  const over = element("section", "", {className: "over"});
  over.append(element("h2", title), element("p", text));
  if (command) {
    over.append(element("p", what));
    over.append(element("code", command));
  }
  document.querySelector("main").replaceWith(over);
  document.querySelector(".tools").remove();
  $("notice").hidden = true;
}

// -- images

/** Load images one after the other: a browser has few ways to one server, and an answer
 * must not wait for them. */
export async function loadInTurn(pairs, isWanted) {
  for (const [image, address] of pairs) {
    if (!isWanted()) return;
    image.src = address;
    await image.decode().catch(() => {});
  }
}

const AT_ONCE = 3; // images that are loaded at a time: an answer must not wait
let loading = 0;

/** Load the images in sight of a box and a little beyond, those first that are seen first. */
export function loadInSight(box, beyond, addressOf) {
  const {top, bottom} = box.getBoundingClientRect();
  while (loading < AT_ONCE) {
    const waiting = [...box.querySelectorAll("img:not([src])")]
      .map((image) => [image, image.getBoundingClientRect()])
      .filter(([, place]) => place.bottom > top - beyond && place.top < bottom + beyond)
      .sort(([, a], [, b]) => a.top - b.top || a.left - b.left);
    if (!waiting.length) return;
    const [[image]] = waiting;
    loading++;
    image.src = addressOf(image);
    image.decode().catch(() => image.classList.add("broken")).then(() => {
      loading--;
      loadInSight(box, beyond, addressOf);
    });
  }
}

// -- words

export const percent = (share) => `${Math.round(100 * share)} %`;

export function element(tag, text, more = {}) {
  return Object.assign(document.createElement(tag), {textContent: text, ...more});
}

/** Say how good it is by now, and what more labels would bring. */
export function outlook(state) {
  const known = state.insight;
  if (state.trouble) {
    return [`Learning has stopped (${state.trouble}). Your answers are still saved.`];
  }
  if (!known || known.accuracy === null) {
    return known ? ["The first estimate comes after a few labels of two classes."] : [];
  }
  const about = document.createElement("strong");
  about.textContent = `About ${percent(known.accuracy)} right`;
  const [low, high] = known.interval.map((share) => Math.round(100 * share));
  const parts = [about, ` (${low} to ${high} %) for all other images`];
  if (known.gain !== null) {
    const points = Math.round(100 * known.gain);
    const bring = points < 1 ? "less than one point: a good time to stop"
      : `about ${points} point${points > 1 ? "s" : ""}`;
    parts.push(`. ${known.more} more labels would bring ${bring}`);
  }
  return [...parts, "."];
}

let hushing;

export function say(text, milliseconds = 6000) {
  clearTimeout(hushing);
  $("notice").textContent = text;
  $("notice").hidden = false;
  hushing = setTimeout(hush, milliseconds);
}

export function hush() {
  $("notice").hidden = true;
}

/** Ask in a dialog; with a value for a text. Return it, true, false (no) or null. */
export function question({title, text, yes, no, value}) {
  const dialog = $("ask");
  const input = $("ask-input");
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-yes").textContent = yes;
  $("ask-no").textContent = no;
  input.hidden = value === undefined;
  input.value = value ?? "";
  dialog.returnValue = "";
  dialog.showModal();
  if (value === undefined) $("ask-yes").focus();
  else input.select();
  $("ask-no").onclick = () => dialog.close("no");
  return new Promise((resolve) => {
    dialog.onclose = () => resolve({
      yes: value === undefined ? true : input.value, no: false,
    }[dialog.returnValue] ?? null);
  });
}
