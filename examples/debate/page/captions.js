/**
 * The captions of both sides, one element for each utterance.
 *
 * The bot's words appear as its LLM writes them. Where they are spoken, those that were spoken are
 * darker than those that come, and an interruption cuts the utterance between the two.
 */

import { Tail } from "/page/tail.js";

/** Characters of speech in a second, for a voice that reports sentences and not words. */
const PACE = 15;

export class Captions extends EventTarget {
  #list;
  #tail;
  #listening = mark("listening", "Listening");
  #user = null;
  #bot = null;
  /** The utterance before, whose last sentences may be reported late. */
  #before = null;
  /** Whether the bot has a voice, so that its words are spoken after they are written. */
  spoken = false;

  constructor(list) {
    super();
    this.#list = list;
    this.#tail = new Tail(list);
  }

  /** The user typed. */
  type(text) {
    this.#user = null;
    this.#add("user").textContent = text;
    this.#tail.restart();
  }

  /** The user has begun to speak; the words come later. */
  listen() {
    if (this.#listening.isConnected) return;
    this.#list.append(this.#listening);
    this.#tail.keep();
  }

  /** Speech recognition has a part of what the user says; a later one replaces one not final. */
  hear(text, final) {
    this.#user ??= { element: this.#add("user"), sure: "" };
    const { element, sure } = this.#user;
    const whole = [sure, text.trim()].filter(Boolean).join(" ");
    element.replaceChildren(sure ? `${sure} ` : "", mark(final ? "" : "interim", text.trim()));
    if (final) this.#user.sure = whole;
    this.#tail.keep();
    return whole;
  }

  /** The LLM begins a response. */
  begin() {
    this.#user = null;
    this.#end();
  }

  /** The LLM has written a part of its response. */
  write(text) {
    this.#bot ??= new Utterance(this.#add("bot"));
    this.#bot.write(text);
    this.#draw();
  }

  /** The LLM has written its whole response. */
  finish() {
    if (this.#bot) this.#bot.written = true;
    this.#draw();
  }

  /** The bot says a sentence, or a part of it: the data of `bot-output`. */
  say({ text, will_be_spoken, spoken_status, spoken_progress }) {
    const sentence = squeeze(text).trim();
    if (!sentence) return;
    let utterance = [this.#bot, this.#before].find((one) => one?.has(sentence));
    if (!utterance) {
      // Not of the LLM, such as "They are still arguing."
      this.#user = null;
      this.#end();
      utterance = this.#bot = new Utterance(this.#add("bot"));
      utterance.write(sentence);
      utterance.written = true;
    }
    const whole = !will_be_spoken || spoken_status === "completed";
    const spoken = squeeze(spoken_progress?.accumulated_text ?? "").trim();
    utterance.speak(sentence, whole ? sentence.length : spoken.length);
    utterance.draw(this.spoken);
    this.#tail.keep();
    if (spoken_status === "new") this.dispatchEvent(new CustomEvent("said", { detail: sentence }));
  }

  /** The bot was interrupted. Whether it had more to say is returned. */
  interrupt() {
    const bot = this.#bot;
    this.#end();
    if (!bot?.isOpen(this.spoken)) return false;
    bot.cut(this.spoken);
    return true;
  }

  /** Draw a line: another conversation begins. */
  divide(text) {
    this.#user = this.#bot = this.#before = null;
    const line = document.createElement("p");
    line.className = "divider";
    line.textContent = text;
    this.#list.append(line);
    this.#tail.keep();
  }

  /** A remark of the page, such as an error of the bot. */
  note(text, kind = "note") {
    const line = document.createElement("p");
    line.className = kind;
    line.textContent = text;
    this.#list.append(line);
    this.#tail.keep();
  }

  #add(side) {
    this.#listening.remove();
    const utterance = document.createElement("p");
    utterance.dataset.side = side;
    this.#list.append(utterance);
    return utterance;
  }

  #draw() {
    this.#bot?.draw(this.spoken);
    this.#tail.keep();
  }

  #end() {
    if (this.#bot) this.#before = this.#bot;
    this.#bot = null;
  }
}

class Utterance {
  written = false;
  #element;
  #text = "";
  #isCut = false;
  /** Where the sentence begins that is being spoken, where it ends, and since when. */
  #begin = 0;
  #end = 0;
  #since = 0;
  /** How much was spoken. */
  #spoken = 0;

  constructor(element) {
    this.#element = element;
  }

  write(text) {
    this.#text = squeeze(this.#text + text).trimStart();
  }

  has(sentence) {
    return this.#text.indexOf(sentence, this.#begin) >= 0;
  }

  speak(sentence, length) {
    const begin = this.#text.indexOf(sentence, this.#begin);
    if (begin !== this.#begin || this.#since === 0) this.#since = performance.now();
    this.#begin = begin;
    this.#end = begin + sentence.length;
    this.#spoken = Math.max(this.#spoken, begin + length);
    if (length === sentence.length) this.#begin = this.#end;
  }

  /** Whether more of it was to come. */
  isOpen(spoken) {
    return spoken ? this.#spoken < this.#text.trimEnd().length : !this.written;
  }

  cut(spoken) {
    const text = this.#text;
    let at = spoken ? this.#spoken : text.length;
    if (spoken && at <= this.#begin && this.#begin < this.#end) {
      const elapsed = (performance.now() - this.#since) / 1000;
      at = Math.min(this.#end, this.#begin + Math.round(elapsed * PACE));
      // The cut is between two words.
      at = Math.max(this.#begin, text.lastIndexOf(" ", at));
    }
    this.#isCut = true;
    this.#element.dataset.cut = "";
    this.#element.replaceChildren(
      `${text.slice(0, at).trimEnd()} `,
      mark("cut", "cut by you"),
      " ",
      mark("lost", text.slice(at).trim()),
    );
  }

  draw(spoken) {
    if (this.#isCut) return;
    const at = spoken ? Math.max(this.#spoken, this.#end) : this.#text.length;
    this.#element.replaceChildren(this.#text.slice(0, at), mark("ahead", this.#text.slice(at)));
  }
}

/** Responses of LLMs may have line breaks that the sentences made of them have not. */
function squeeze(text) {
  return text.replace(/\s+/g, " ");
}

function mark(kind, text) {
  const element = document.createElement("span");
  element.className = kind;
  element.textContent = text;
  return element;
}
