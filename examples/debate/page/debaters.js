/** The three debaters: their words, their states and how long each has argued. */

import { Tail } from "/page/tail.js";

const LABELS = {
  idle: "Waits for a topic",
  waiting: "Thinks",
  speaking: "Speaks",
  done: "Done in",
  cut: "Stopped after",
  failed: "Failed",
};

export class Debaters {
  #job = null;
  #debaters = new Map();

  constructor(elements) {
    for (const element of elements) {
      const debater = new Debater(element);
      this.#debaters.set(element.dataset.debater, debater);
    }
  }

  get arguing() {
    return [...this.#debaters.values()].some((debater) => debater.open);
  }

  /** Take a message of `ui-job-group`. */
  onCard(card) {
    switch (card.kind) {
      case "group_started": {
        if (!card.workers.every((name) => this.#debaters.has(name))) return;
        this.#job = card.job_id;
        const now = performance.now();
        for (const debater of this.#debaters.values()) debater.start(card.at, now);
        break;
      }
      case "job_completed":
        if (card.job_id === this.#job) this.#debaters.get(card.worker_name)?.end(card);
        break;
    }
  }

  /** Take the chunks of a stream. */
  onStream({ job_id, worker, first, chunks }) {
    if (job_id === this.#job) this.#debaters.get(worker)?.add(first, chunks);
  }

  /** Freeze what was interrupted; how many were, and after how many seconds, is returned. */
  interrupt() {
    const now = performance.now();
    const cut = [...this.#debaters.values()].filter((debater) => debater.interrupt(now));
    return { count: cut.length, seconds: cut[0]?.secondsAt(now) };
  }

  /** Nothing more comes of them. */
  leave() {
    for (const debater of this.#debaters.values()) debater.leave();
    this.#job = null;
  }
}

class Debater {
  #element;
  #words;
  /** An inline element, at whose end a mark may be. */
  #text = null;
  #tail;
  #seconds;
  #state;
  #timer = null;
  #startedHere = 0;
  #startedAt = 0;
  #endedHere = 0;
  #chunks = 0;
  #interrupted = false;

  constructor(element) {
    this.#element = element;
    this.#words = element.querySelector(".words");
    this.#tail = new Tail(this.#words);
    this.#seconds = element.querySelector(".seconds");
    this.#state = element.querySelector(".state");
    this.#set("idle");
  }

  get open() {
    return ["waiting", "speaking"].includes(this.#element.dataset.state);
  }

  secondsAt(now) {
    return (now - this.#startedHere) / 1000;
  }

  start(at, now) {
    this.#text = document.createElement("span");
    this.#text.append(document.createTextNode(""));
    this.#words.replaceChildren(this.#text);
    this.#tail.restart();
    this.#startedHere = now;
    this.#startedAt = at;
    this.#chunks = 0;
    this.#interrupted = false;
    this.#set("waiting");
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.#showSeconds(this.secondsAt(performance.now())), 200);
    this.#showSeconds(0);
  }

  add(first, chunks) {
    if (!this.open) return;
    // Chunks that come once more after a reconnection are known already.
    const news = chunks.slice(Math.max(0, this.#chunks - first));
    if (first > this.#chunks) this.#write("… ");
    this.#chunks = Math.max(this.#chunks, first + chunks.length);
    const text = news.map(({ text }) => text ?? "").join("");
    if (!text) return;
    this.#set("speaking");
    this.#write(text);
  }

  end({ status, response, at }) {
    const seconds = (at - this.#startedAt) / 1000;
    if (status === "completed") {
      this.#text.textContent = response?.text ?? this.#text.textContent;
      this.#stop("done", seconds);
    } else if (this.open) {
      this.#stop(status === "cancelled" ? "cut" : "failed", seconds, response?.error);
    }
  }

  interrupt(now) {
    // The card of a job that ends may overtake the message about the interruption.
    const justStopped =
      this.#element.dataset.state === "cut" && now - this.#endedHere < 1000;
    if (this.#interrupted || !(this.open || justStopped)) return false;
    this.#interrupted = true;
    this.#stop("cut", this.secondsAt(now));
    this.#state.textContent = "Cut by you after";
    return true;
  }

  leave() {
    if (!this.open) return;
    this.#stop("failed", this.secondsAt(performance.now()), "The connection broke off");
  }

  #stop(state, seconds, why) {
    clearInterval(this.#timer);
    this.#endedHere = performance.now();
    this.#set(state);
    this.#showSeconds(seconds);
    if (why) this.#state.textContent = why;
  }

  #set(state) {
    if (this.#element.dataset.state === state && this.#state.textContent) return;
    this.#element.dataset.state = state;
    this.#state.textContent = LABELS[state];
    if (state === "idle") this.#seconds.textContent = "";
  }

  #showSeconds(seconds) {
    this.#seconds.textContent = `${seconds.toFixed(1)} s`;
  }

  #write(text) {
    this.#text.firstChild.appendData(text);
    this.#tail.keep();
  }
}
