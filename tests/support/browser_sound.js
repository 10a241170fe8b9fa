// The sound of a page in a test: what the test says into its microphone, and what the page plays.
// One audio clock times both, in samples of 16 bits at `RATE` per second.
(() => {
  const RATE = 16000;
  const LOUD = 0.02;
  const RECORDER = `
    registerProcessor("recorder", class extends AudioWorkletProcessor {
      process([[channel]]) {
        this.port.postMessage(channel?.slice() ?? new Float32Array(128));
        return true;
      }
    });`;

  const recorded = [];  // Blocks of 128 samples.
  let lastLoud = -1;    // The index of one.
  let opening;

  // The first call follows the click after which a page may make sound.
  function open() {
    opening ??= (async () => {
      const context = new AudioContext({ sampleRate: RATE });
      const script = URL.createObjectURL(new Blob([RECORDER], { type: "text/javascript" }));
      await context.audioWorklet.addModule(script);
      const recorder = new AudioWorkletNode(context, "recorder");
      recorder.connect(context.destination);
      recorder.port.onmessage = ({ data: block }) => {
        if (!audible()) block.fill(0);
        if (block.some((sample) => Math.abs(sample) > LOUD)) lastLoud = recorded.length;
        recorded.push(block);
      };
      return { context, recorder, microphone: context.createMediaStreamDestination() };
    })();
    return opening;
  }

  const seconds = (blocks) => blocks * 128 / RATE;
  const voice = () => document.querySelector("audio#voice");
  const audible = () => voice() && !voice().paused && !voice().muted && voice().volume > 0;

  const played = new WeakSet();

  // Media events do not bubble, but they can be captured.
  document.addEventListener("playing", async ({ target }) => {
    if (target !== voice() || played.has(target.srcObject)) return;
    played.add(target.srcObject);
    const { context, recorder } = await open();
    context.createMediaStreamSource(target.srcObject).connect(recorder);
  }, true);

  window.testSound = {
    // Returns the microphone of the test in place of the browser's.
    async getUserMedia() {
      const { microphone } = await open();
      return microphone.stream.clone();
    },

    // Speaks, and returns the second of the recording at which the speech begins.
    async say(base64) {
      const { context, microphone } = await open();
      const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
      const samples = Float32Array.from(new Int16Array(bytes.buffer), (sample) => sample / 32768);
      const buffer = new AudioBuffer({ length: samples.length, sampleRate: RATE });
      buffer.copyToChannel(samples, 0);
      const speech = new AudioBufferSourceNode(context, { buffer });
      speech.connect(microphone);
      const begin = seconds(recorded.length);
      speech.start();
      await new Promise((done) => { speech.onended = done; });
      return begin;
    },

    // Returns the seconds since the page was last loud; Infinity before it was.
    silence() {
      return lastLoud < 0 ? Infinity : seconds(recorded.length - 1 - lastLoud);
    },

    // Returns what the page has played since the first call of `open`.
    recording() {
      const pcm = Int16Array.from(
        recorded.flatMap((block) => [...block]),
        (sample) => Math.max(-1, Math.min(1, sample)) * 32767,
      );
      let bytes = "";
      for (const byte of new Uint8Array(pcm.buffer)) bytes += String.fromCharCode(byte);
      return btoa(bytes);
    },
  };
})();
