/** The microphone: its track, its level, its devices, and help when the browser refuses it. */

const HELP = {
  insecure: [
    "The microphone needs a secure address",
    "Browsers give the microphone only to pages on this machine or over HTTPS. Open the page at " +
      "the address localhost instead, or serve it over HTTPS. Typing works here as well.",
  ],
  NotAllowedError: [
    "The microphone is blocked",
    "Click the icon to the left of the page's address, set “Microphone” to “Allow”, and try " +
      "again. If it stays blocked, allow your browser the microphone in the privacy settings of " +
      "your system.",
  ],
  NotFoundError: [
    "There is no microphone",
    "Plug one in or switch your headset on, and try again. Typing works without one.",
  ],
  NotReadableError: [
    "The microphone is in use",
    "Another program holds it. Close calls and recorders in other windows, and try again.",
  ],
  ended: [
    "The microphone was disconnected",
    "Plug it in again or choose another one, and try again. The conversation goes on, and you can " +
      "type.",
  ],
};

/** Explain an error of the microphone: a heading, and what to do. */
export function explain(name) {
  return (
    HELP[name] ?? [
      "The microphone does not start",
      `The browser reports ${name}. Try again, or type instead.`,
    ]
  );
}

export class Microphone extends EventTarget {
  #stream = null;
  #context = null;
  #timer = null;

  /** The track for the connection, or null while the microphone is off. */
  get track() {
    return this.#stream?.getAudioTracks()[0] ?? null;
  }

  get muted() {
    return this.track !== null && !this.track.enabled;
  }

  /** While muted, silence is sent, so that the bot still hears the end of a sentence. */
  set muted(muted) {
    if (this.track) this.track.enabled = !muted;
  }

  /**
   * Ask for the microphone, or for another device.
   *
   * Throws an Error whose `name` is one that `explain()` knows.
   */
  async open(deviceId) {
    if (!navigator.mediaDevices) throw Object.assign(new Error(), { name: "insecure" });
    const audio = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };
    if (deviceId) audio.deviceId = { exact: deviceId };
    const stream = await navigator.mediaDevices.getUserMedia({ audio });
    this.close();
    this.#stream = stream;
    this.track.onended = () => {
      this.close();
      this.dispatchEvent(new Event("ended"));
    };
    this.#measure();
  }

  close() {
    clearInterval(this.#timer);
    for (const track of this.#stream?.getTracks() ?? []) {
      track.onended = null;
      track.stop();
    }
    this.#context?.close();
    this.#stream = this.#context = null;
  }

  /** List the microphones: their ids and labels. */
  async devices() {
    const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
    return devices.filter(({ kind, deviceId }) => kind === "audioinput" && deviceId);
  }

  #measure() {
    this.#context = new AudioContext();
    const analyser = this.#context.createAnalyser();
    this.#context.createMediaStreamSource(this.#stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    this.#timer = setInterval(() => {
      analyser.getFloatTimeDomainData(samples);
      const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
      // Speech lies between -60 dB and -10 dB.
      const level = Math.round(Math.min(100, Math.max(0, (10 * Math.log10(power) + 60) * 2)));
      this.dispatchEvent(new CustomEvent("level", { detail: this.muted ? 0 : level }));
    }, 80);
  }
}
