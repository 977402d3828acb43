// Small helpers to make and fill elements. Text is always text: nothing here reads HTML.

export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list" && name !== "form") element[name] = value;
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

export const fill = (element, ...children) => element.replaceChildren(...children.flat(Infinity).filter((c) => c != null && c !== false));

// A field with its label around it.
export const field = (label, control, hint) => h("label", { className: "field" }, h("span", {}, label), control, hint && h("small", {}, hint));

export const select = (options, value, onchange, label) =>
  h("select", { onchange, "aria-label": label }, options.map(([key, text]) => h("option", { value: key, selected: key === value }, text)));

export function number(value) {
  if (value == null) return "–";
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? String(value) : Math.abs(value) < 0.001 ? value.toExponential(2) : value.toFixed(4);
}

export function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min${whole % 60 ? ` ${whole % 60} s` : ""}`;
  return `${Math.floor(whole / 3600)} h ${Math.round((whole % 3600) / 60)} min`;
}

export const count = (n, one, many = `${one}s`) => `${n || "no"} ${n === 1 ? one : many}`;

export function trouble(error) {
  const place = document.getElementById("trouble"), text = error ? error.message ?? String(error) : "";
  if (place.textContent !== text) place.textContent = text; // what goes on is read out once
}

// Makes something anew, and the keyboard should not notice: what had the focus has it again, by its id.
export function renew(make) {
  const focused = document.activeElement?.id;
  make();
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

// Runs what a button does; a refusal is shown, and the button waits meanwhile.
export const doing = (action) => async (event) => {
  const button = event.currentTarget, focused = document.activeElement === button;
  event.preventDefault();
  trouble(null);
  button.disabled = true;
  try {
    await action();
  } catch (error) {
    trouble(error);
  } finally {
    button.disabled = false;
    if (focused && document.activeElement === document.body) button.focus({ preventScroll: true }); // which it lost meanwhile
  }
};
