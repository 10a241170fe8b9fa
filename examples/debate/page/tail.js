/** Keeps the end of a box in sight while it changes, until the reader scrolls up. */
export class Tail {
  #box;
  #follows = true;
  #top = 0;
  #height = 0;

  constructor(box) {
    this.#box = box;
    box.addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = box;
      if (scrollHeight - scrollTop - clientHeight < 40) this.#follows = true;
      // A box that changed its size is not at its end either, but the reader has not scrolled.
      else if (scrollTop < this.#top && clientHeight === this.#height) this.#follows = false;
      this.#top = scrollTop;
      this.#height = clientHeight;
      box.classList.toggle("scrolled", scrollTop > 0);
    });
    new ResizeObserver(() => this.keep()).observe(box);
  }

  /** Show the end after a change. */
  keep() {
    if (this.#follows) this.#box.scrollTop = this.#box.scrollHeight;
  }

  /** Show the end, wherever the reader is. */
  restart() {
    this.#follows = true;
    this.keep();
  }
}
