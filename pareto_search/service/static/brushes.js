// Bounds by dragging along an axis of the parallel lines. The sliders do the same with the keyboard.

import { h } from "./dom.js";

const STILL = 4; // pixels: whoever moves less has clicked

// `onbound(name, low, high)` gets shares of the axis, 0 at its foot, or nulls; `onpick(name, share)` a click.
export class Brushes {
  constructor(onbound, onpick) {
    Object.assign(this, { onbound, onpick });
    this.strips = new Map();
    this.element = h("div", { className: "brushes", "aria-hidden": true });
  }

  // `axes` have name, left, top and height in pixels, and `band`, the bounds as shares or null.
  place(axes) {
    for (const { name, left, top, height, band } of axes) {
      if (!this.strips.has(name)) {
        this.strips.set(name, new Strip(name, this.onbound, this.onpick));
        this.element.append(this.strips.get(name).element);
      }
      const strip = this.strips.get(name);
      Object.assign(strip.element.style, { left: `${left}px`, top: `${top}px`, height: `${height}px` });
      strip.draw(band);
    }
  }
}

// One axis; it stays the same element, or there would be no double click on it.
class Strip {
  constructor(name, onbound, onpick) {
    this.band = h("div", { className: "band", hidden: true });
    this.element = h("div", { className: "brush", title: `${name}: drag for bounds, double-click for none` }, this.band);
    let from = null;
    const span = (event) => [from, this.share(event)].sort((a, b) => a - b);
    const isFar = (event) => Math.abs(this.share(event) - from) * this.element.clientHeight > STILL;
    const on = (type, hear) => this.element.addEventListener(type, hear);
    on("pointerdown", (event) => {
      this.element.setPointerCapture(event.pointerId);
      from = this.share(event);
    });
    on("pointermove", (event) => from != null && isFar(event) && this.draw(span(event)));
    on("pointerup", (event) => {
      if (from == null) return;
      if (isFar(event)) onbound(name, ...span(event));
      else onpick(name, from);
      from = null;
    });
    on("pointercancel", () => (from = null));
    on("dblclick", () => onbound(name, null, null));
  }

  share(event) {
    const { top, height } = this.element.getBoundingClientRect();
    return Math.min(1, Math.max(0, 1 - (event.clientY - top) / height));
  }

  draw(band) {
    this.band.hidden = !band;
    if (band) Object.assign(this.band.style, { top: `${(1 - band[1]) * 100}%`, height: `${(band[1] - band[0]) * 100}%` });
  }
}
