/**
 * The connection to the bot: WebRTC carries the sound, and RTVI messages on its data channel.
 *
 * Events: "state" (detail: the state and, for people, what happens), "ready" (detail: the data of
 * `bot-ready`), "message" (detail: an RTVI message), "sound" (detail: the MediaStream of the bot).
 */

/** Seconds before each attempt to connect again. */
const WAITS = [1, 2, 4, 8, 16, 30];
/** A network that changes may come back within this time. */
const PATIENCE = 3000;
const GATHERING = 2000;
const BOT_READY = 30000;

export class Connection extends EventTarget {
  /** "off", "connecting", "on" or "lost". */
  state = "off";
  #track = null;
  #peer = null;
  #channel = null;
  #sender = null;
  #timer = null;
  #attempt = 0;
  #botLeft = false;
  /** Counts what was begun, so that an attempt that fails late does not end a newer one. */
  #run = 0;
  #requests = new Map();

  constructor() {
    super();
    window.addEventListener("online", () => {
      if (this.state === "lost") this.reconnect();
    });
  }

  /** Connect with a track of the microphone, or with null to type only. */
  async open(track) {
    this.#track = track;
    this.#attempt = 0;
    this.#tearDown();
    const run = this.#run;
    this.#set("connecting", "Connecting…");
    try {
      await this.#connect();
    } catch (error) {
      if (run !== this.#run) return;
      this.#tearDown();
      this.#set("off", `The bot cannot be reached: ${error.message}`);
    }
  }

  /** End the connection, or give up connecting. */
  close() {
    this.#tearDown();
    this.#set("off", "Not connected");
  }

  /** Try again now, from the beginning of the waits. */
  reconnect() {
    this.#attempt = 0;
    this.#retry();
  }

  /** Send another track, or none, on the connection that is open. */
  async setTrack(track) {
    this.#track = track;
    await this.#sender?.replaceTrack(track);
  }

  /** Send an RTVI message; its id is returned, or null without a connection. */
  send(type, data) {
    if (this.#channel?.readyState !== "open") return null;
    const id = makeId();
    this.#channel.send(JSON.stringify({ label: "rtvi-ai", type, id, data }));
    return id;
  }

  /** Send a client message, and wait for its response. */
  request(type, data) {
    const id = this.send("client-message", { t: type, d: data });
    if (id === null) return Promise.reject(new Error("not connected"));
    return new Promise((resolve, reject) => this.#requests.set(id, { resolve, reject }));
  }

  async #connect() {
    this.#botLeft = false;
    // Without ICE servers: nothing but the bot's own host is asked.
    const peer = (this.#peer = new RTCPeerConnection());
    const channel = (this.#channel = peer.createDataChannel("rtvi"));
    this.#sender = peer.addTransceiver("audio", { direction: "sendrecv" }).sender;
    await this.#sender.replaceTrack(this.#track);

    peer.ontrack = ({ track }) => this.#emit("sound", new MediaStream([track]));
    const ready = new Promise((resolve, reject) => {
      const limit = setTimeout(() => reject(new Error("it does not answer")), BOT_READY);
      const fail = (why) => {
        clearTimeout(limit);
        reject(new Error(why));
        if (this.#peer === peer) this.#lose();
      };
      channel.onopen = () =>
        this.send("client-ready", { version: "2.0.0", about: { library: "debate-page" } });
      channel.onmessage = ({ data }) => {
        const message = JSON.parse(data);
        if (message.type === "bot-ready") {
          clearTimeout(limit);
          resolve(message.data);
        }
        this.#receive(message);
      };
      channel.onclose = () => fail("the connection was closed");
      peer.onconnectionstatechange = () => {
        if (peer.connectionState === "failed") fail("the connection failed");
        if (peer.connectionState === "disconnected") {
          setTimeout(() => {
            if (peer.connectionState === "disconnected") fail("the connection broke off");
          }, PATIENCE);
        }
      };
    });
    // An error before may have stopped what waits for it.
    ready.catch(() => {});

    await peer.setLocalDescription();
    await gather(peer);
    const { sdp, type } = peer.localDescription;
    const response = await fetch("/api/offer", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ sdp, type }),
    });
    if (!response.ok) throw new Error(`its server responds ${response.status}`);
    const answer = await response.json();
    if (this.#peer !== peer) throw new Error("stopped");
    await peer.setRemoteDescription({ type: answer.type, sdp: answer.sdp });
    const data = await ready;
    if (this.#peer !== peer) throw new Error("stopped");
    this.#attempt = 0;
    this.#set("on", "Connected");
    this.#emit("ready", data);
  }

  #receive(message) {
    if (message.type === "signalling") {
      this.#botLeft ||= message.message?.type === "peerLeft";
      return;
    }
    if (message.label !== "rtvi-ai") return;
    const request = this.#requests.get(message.id);
    if (request) {
      this.#requests.delete(message.id);
      if (message.type === "error-response") request.reject(new Error(message.data.error));
      else request.resolve(message.data?.d);
      return;
    }
    this.#emit("message", message);
  }

  async #lose() {
    if (this.state !== "on") return;
    const ended = this.#botLeft;
    this.#tearDown();
    const run = this.#run;
    this.#set("lost", "The connection is lost.");
    // The server of a bot that has ended the conversation still runs. That is no reason to connect
    // again, which would begin another one.
    const isDeliberate = ended && (await isReachable());
    if (run !== this.#run) return;
    if (isDeliberate) this.#set("off", "The bot has ended the conversation");
    else this.#wait();
  }

  #wait() {
    if (this.#attempt >= WAITS.length) {
      this.#set("lost", "The bot cannot be reached.", { gaveUp: true });
      return;
    }
    const until = Date.now() + WAITS[this.#attempt] * 1000;
    const count = () => {
      const left = Math.ceil((until - Date.now()) / 1000);
      if (left <= 0) return this.#retry();
      this.#set("lost", "The connection is lost.", {
        seconds: left, attempt: this.#attempt + 1, of: WAITS.length,
      });
      this.#timer = setTimeout(count, 500);
    };
    count();
  }

  async #retry() {
    this.#tearDown();
    const run = this.#run;
    this.#set("lost", "Connecting again…");
    this.#attempt += 1;
    try {
      await this.#connect();
    } catch {
      if (run !== this.#run) return;
      this.#tearDown();
      this.#wait();
    }
  }

  #tearDown() {
    this.#run += 1;
    clearTimeout(this.#timer);
    const peer = this.#peer;
    this.#peer = this.#channel = this.#sender = null;
    peer?.close();
    for (const { reject } of this.#requests.values()) reject(new Error("not connected"));
    this.#requests.clear();
  }

  #set(state, text, more = {}) {
    this.state = state;
    this.#emit("state", { state, text, ...more });
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

function gather(peer) {
  return new Promise((done) => {
    if (peer.iceGatheringState === "complete") return done();
    const limit = setTimeout(done, GATHERING);
    peer.onicegatheringstatechange = () => {
      if (peer.iceGatheringState !== "complete") return;
      clearTimeout(limit);
      done();
    };
  });
}

async function isReachable() {
  try {
    return (await fetch("/", { method: "HEAD", cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

/** crypto.randomUUID() is missing where the page is not served from localhost or over HTTPS. */
function makeId() {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join("");
}
