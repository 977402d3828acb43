// Bounds by dragging along an axis of the parallel lines. The sliders do the same with the keyboard.

import { h } from "./dom.js";

const STILL = 4; // pixels: whoever moves less has clicked

// `onbound(name, low, high)` gets shares of the axis, 0 at its foot, or nulls; `onpick(name, share)` a click.
export class Brushes {
  constructor(onbound, onpick) {
    Object.assign(this, { onbound, onpick });
    this.element = h("div", { className: "brushes", "aria-hidden": true });
  }

  // `axes` have name, left, top and height in pixels, and `band`, the bounds as shares or null.
  place(axes) {
    if (this.dragging) return;
    this.element.replaceChildren(...axes.map((axis) => this.strip(axis)));
  }

  strip({ name, left, top, height, band }) {
    const shown = h("div", { className: "band", hidden: !band });
    const draw = ([low, high]) => Object.assign(shown.style, { top: `${(1 - high) * height}px`, height: `${(high - low) * height}px` });
    if (band) draw(band);
    const strip = h("div", { className: "brush", title: `${name}: drag for bounds, double-click for none` }, shown);
    Object.assign(strip.style, { left: `${left}px`, top: `${top}px`, height: `${height}px` });
    const share = (event) => Math.min(1, Math.max(0, 1 - (event.clientY - strip.getBoundingClientRect().top) / height));
    let from = null;
    strip.addEventListener("pointerdown", (event) => {
      strip.setPointerCapture(event.pointerId);
      from = share(event);
      this.dragging = true;
    });
    const span = (event) => [from, share(event)].sort((a, b) => a - b);
    const far = (event) => Math.abs(share(event) - from) * height > STILL;
    strip.addEventListener("pointermove", (event) => {
      if (from == null || !far(event)) return;
      shown.hidden = false;
      draw(span(event));
    });
    strip.addEventListener("pointerup", (event) => {
      if (from == null) return;
      this.dragging = false;
      if (far(event)) this.onbound(name, ...span(event));
      else this.onpick(name, from);
      from = null;
    });
    strip.addEventListener("pointercancel", () => (this.dragging = false, from = null));
    strip.addEventListener("dblclick", () => this.onbound(name, null, null));
    return strip;
  }
}
