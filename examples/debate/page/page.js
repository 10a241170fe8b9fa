/** The page of the debate: joins the connection, the microphone and what is seen. */

import { Captions } from "/page/captions.js";
import { Connection } from "/page/connection.js";
import { Debaters } from "/page/debaters.js";
import { Microphone, explain } from "/page/microphone.js";
import { Questions } from "/page/questions.js";

const find = (selector) => document.querySelector(selector);
const connection = new Connection();
const microphone = new Microphone();
const captions = new Captions(find("#captions"));
const debaters = new Debaters(document.querySelectorAll("[data-debater]"));
const questions = new Questions(find("#questions"), (id, value) =>
  connection.request("pipecat-jobs", { action: "answer", question_id: id, value }),
);

/** Who has the floor: "", "user", "thinking", "debaters" or "bot". */
let floor = "";
let thinking = null;
let botSpeaks = false;
let botWrites = false;
/** A topic that was chosen before the bot was ready, which greets first. */
let topicToSend = null;
let topic = "";
let hasConversed = false;

// -- the connection -------------------------------------------------------------------------

connection.addEventListener("state", ({ detail }) => {
  const { state, text, seconds, attempt, of, gaveUp } = detail;
  const before = document.body.dataset.connection;
  document.body.dataset.connection = state;
  setText("#status", text);
  // Apart from the status, which is read aloud whenever it changes.
  setText("#countdown", seconds ? `Attempt ${attempt} of ${of} in ${seconds} s` : "");
  find("#reconnect").hidden = state !== "lost";
  find("#reconnect").textContent = gaveUp ? "Try again" : "Try now";
  if (before === "on" && state !== "on") leave();
  if (state === "off") {
    microphone.close();
    topicToSend = null;
  }
  showControls();
});

connection.addEventListener("ready", async ({ detail }) => {
  // Bots before Pipecat 1.14 do not say whether they hear and speak.
  const { audio_in: hears = true, audio_out: speaks = true } = detail.capabilities ?? {};
  captions.spoken = speaks;
  document.body.dataset.voice = speaks ? "on" : "off";
  document.body.dataset.ears = hears ? "on" : "off";
  if (hasConversed) {
    captions.divide("Connected again, to a new conversation: the bot has forgotten the one before.");
  }
  hasConversed = true;
  if (!hears && microphone.track) {
    await connection.setTrack(null);
    microphone.close();
    showHelp("This bot does not listen", "It was started without speech. Type instead.");
    find("#ask-again").hidden = true;
  }
  showControls();
});

connection.addEventListener("sound", ({ detail }) => {
  find("#voice").srcObject = detail;
  // It follows a click, so browsers let it play; where one does not, the next click starts it.
  find("#voice").play().catch(() => {
    window.addEventListener("pointerdown", () => find("#voice").play(), { once: true });
  });
});

function leave() {
  captions.interrupt();
  debaters.leave();
  questions.clear();
  botSpeaks = botWrites = false;
  setFloor("");
}

// -- what the bot sends ----------------------------------------------------------------------

const handlers = {
  "user-started-speaking": () => {
    captions.listen();
    setFloor("user");
  },
  "user-stopped-speaking": () => setFloor("thinking"),
  "user-transcription": ({ text, final }) => {
    const whole = captions.hear(text, final);
    if (final) topic = whole;
    showBegun();
  },
  "bot-llm-started": () => {
    botWrites = true;
    captions.begin();
    setFloor("bot");
  },
  "bot-llm-text": ({ text }) => {
    captions.write(text);
    if (floor !== "bot") setFloor("bot");
  },
  "bot-llm-stopped": () => {
    botWrites = false;
    captions.finish();
    settleFloor();
    if (!captions.spoken) sendTopic();
  },
  "bot-output": (data) => {
    captions.say(data);
    showBegun();
  },
  "bot-started-speaking": () => {
    setHeard(true);
    botSpeaks = true;
    setFloor("bot");
  },
  "bot-stopped-speaking": () => {
    botSpeaks = false;
    settleFloor();
    sendTopic();
  },
  "bot-interrupted": interrupted,
  "llm-function-call-stopped": () => settleFloor(),
  "ui-job-group": (card) => {
    debaters.onCard(card);
    if (card.kind === "group_started") {
      find("#interrupted").textContent = "";
      if (topic) find("#topic").textContent = topic;
      showBegun();
    }
    settleFloor();
  },
  "server-message": (message) => {
    if (message?.type !== "pipecat-jobs") return;
    if (message.event === "stream") debaters.onStream(message);
    if (message.event === "question") questions.open(message);
    if (message.event === "question_closed") questions.close(message.id);
    if (message.event === "report") {
      captions.note(`Report, ${message.state}: ${write(message.content)}`);
    }
  },
  "error": ({ error }) => captions.note(error, "problem"),
};

connection.addEventListener("message", ({ detail: { type, data } }) => handlers[type]?.(data));

function interrupted() {
  setHeard(false);
  const botHadMore = captions.interrupt();
  const { count, seconds } = debaters.interrupt();
  if (count) {
    const who = ["", "One debater", "Two debaters", "All three debaters"][count];
    find("#interrupted").textContent = `${who} cut after ${seconds.toFixed(1)} s`;
  } else if (botHadMore) {
    find("#interrupted").textContent = "You interrupted the moderator";
  }
  botWrites = botSpeaks = false;
  settleFloor();
  showControls();
}

function write(content) {
  return typeof content === "string" ? content : JSON.stringify(content);
}

// A bot with a voice is heard; its captions are not read aloud as well.
captions.addEventListener("said", ({ detail }) => {
  if (!captions.spoken || find("#voice").muted) find("#aloud").textContent = detail;
});

// -- what the user does ----------------------------------------------------------------------

async function talk(deviceId) {
  find("#permission").hidden = true;
  try {
    await microphone.open(deviceId);
  } catch (error) {
    showHelp(...explain(error.name));
    showControls();
    return;
  }
  setSound(true);
  await showDevices();
  showControls();
  if (connection.state === "on") await connection.setTrack(microphone.track);
  else await connection.open(microphone.track);
}

async function connectTyped() {
  find("#permission").hidden = true;
  setSound(false);
  if (connection.state === "off") await connection.open(null);
}

function type() {
  find("#say").focus();
  connectTyped();
}

function say(text) {
  if (connection.state !== "on") {
    topicToSend = text;
    if (connection.state === "off") connectTyped();
    return;
  }
  topic = text;
  captions.type(text);
  showBegun();
  connection.send("send-text", { content: text });
  setFloor("thinking");
}

function sendTopic() {
  if (topicToSend === null) return;
  const text = topicToSend;
  topicToSend = null;
  say(text);
}

function interrupt() {
  connection.send("client-message", { t: "interrupt" });
}

find("#talk").addEventListener("click", () => talk());
find("#connect-typed").addEventListener("click", type);
find("#stop").addEventListener("click", () => connection.close());
find("#reconnect").addEventListener("click", () => connection.reconnect());
find("#interrupt").addEventListener("click", interrupt);
find("#ask-again").addEventListener("click", () => talk());
find("#type-instead").addEventListener("click", type);
find("#mute").addEventListener("click", toggleMute);
find("#sound").addEventListener("click", () => setSound(find("#voice").muted));
find("#devices").addEventListener("change", ({ target }) => talk(target.value));
find("#composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = find("#say").value.trim();
  if (!text) return;
  find("#say").value = "";
  say(text);
});
for (const button of document.querySelectorAll("[data-topic]")) {
  button.addEventListener("click", () => say(button.dataset.topic));
}

window.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.defaultPrevented) return;
  if (!find("#permission").hidden) find("#permission").hidden = true;
  else if (isBusy()) interrupt();
  else if (microphone.track) toggleMute();
});

window.addEventListener("pagehide", () => connection.close());

microphone.addEventListener("level", ({ detail: level }) => showLevel(level));
microphone.addEventListener("ended", () => {
  connection.setTrack(null);
  showHelp(...explain("ended"));
  showControls();
});
navigator.mediaDevices?.addEventListener("devicechange", () => {
  if (microphone.track) showDevices();
});

function toggleMute() {
  microphone.muted = !microphone.muted;
  showControls();
}

function setSound(on) {
  find("#voice").muted = !on;
  find("#sound").setAttribute("aria-pressed", `${on}`);
}

/** Silences what the browser still holds of an interrupted speech: on a busy machine, a second of it. */
function setHeard(heard) {
  for (const track of find("#voice").srcObject?.getTracks() ?? []) track.enabled = heard;
}

// -- what is seen ----------------------------------------------------------------------------

function showControls() {
  const { state } = connection;
  const mic = microphone.track !== null;
  const listens = state === "off" || (state === "on" && document.body.dataset.ears === "on");
  find("#talk").hidden = mic || !listens;
  find("#connect-typed").hidden = state !== "off";
  find("#stop").hidden = state === "off";
  find("#microphone").hidden = !mic;
  find("#mute").setAttribute("aria-pressed", `${microphone.muted}`);
  find("#sound").hidden = state !== "on" || document.body.dataset.voice !== "on";
  find("#interrupt").hidden = !isBusy();
}

function isBusy() {
  return connection.state === "on" && (debaters.arguing || botSpeaks || botWrites);
}

function setFloor(who) {
  floor = who;
  clearTimeout(thinking);
  // A noise that was no speech has no response.
  if (who === "thinking") thinking = setTimeout(() => setFloor(""), 10000);
  const texts = {
    "": "",
    "user": "Listening to you",
    "thinking": "The moderator thinks",
    "debaters": "The debaters argue",
    "bot": "The moderator speaks",
  };
  document.body.dataset.floor = who;
  setText("#floor", texts[who]);
  showControls();
}

function setText(selector, text) {
  if (find(selector).textContent !== text) find(selector).textContent = text;
}

/** Who has the floor once somebody has ended. */
function settleFloor() {
  if (floor === "user") return;
  if (botSpeaks || botWrites) setFloor("bot");
  else if (debaters.arguing) setFloor("debaters");
  else if (floor !== "thinking") setFloor("");
}

function showBegun() {
  find("#nothing-said").hidden = true;
  if (topic) find("#welcome").hidden = true;
}

function showHelp(title, text) {
  find("#permission h2").textContent = title;
  find("#permission p").textContent = text;
  find("#ask-again").hidden = false;
  find("#permission").hidden = false;
}

function showLevel(level) {
  const meter = find("#level");
  // Screen readers ask for it; a value that changes with each sample would not be read.
  meter.setAttribute("aria-valuenow", `${Math.round(level / 5) * 5}`);
  meter.style.setProperty("--level", `${level / 100}`);
}

async function showDevices() {
  const devices = await microphone.devices();
  const select = find("#devices");
  const used = microphone.track?.getSettings().deviceId;
  select.replaceChildren(
    ...devices.map(
      ({ deviceId, label }, index) =>
        new Option(label || `Microphone ${index + 1}`, deviceId, false, deviceId === used),
    ),
  );
  select.hidden = devices.length < 2;
}

// The keyboard of a phone covers a part of the page, which browsers leave to the page.
function fit() {
  const { height } = window.visualViewport;
  document.documentElement.style.setProperty("--height", `${height}px`);
  document.body.classList.toggle("low", height < 520);
}

window.visualViewport.addEventListener("resize", fit);
fit();
showControls();
