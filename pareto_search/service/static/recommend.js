// Recommendations: the form that asks for them, and the lists that come back.

import { get, post } from "./api.js";
import { count, doing, field, fill, h } from "./dom.js";

const ids = (text) => text.split(",").map((id) => id.trim()).filter(Boolean);

// "gender=F, occupation=artist" as { gender: "F", occupation: "artist" }
const pairs = (text) =>
  Object.fromEntries(
    ids(text).map((pair) => {
      const [kind, ...group] = pair.split("=").map((part) => part.trim());
      if (!kind || !group.join("=")) throw new Error(`'${pair}' names no group; expected something like occupation=artist.`);
      return [kind, group.join("=")];
    }),
  );

// Finds items of a data set by their title, and adds the one that is chosen to a text of ids.
function finder(data, into, id) {
  const options = h("datalist", { id: `${id}-titles` }), chosen = h("small", { className: "chosen", "aria-live": "polite" });
  const input = h("input", { id, type: "search", size: 18, placeholder: "a word of a title", autocomplete: "off", list: options.id });
  const titles = new Map();
  let last = 0;
  const add = () => {
    const item = titles.get(input.value);
    if (item === undefined) return false;
    into.value = [...ids(into.value), item].join(", ");
    fill(chosen, chosen.textContent ? `${chosen.textContent}, ` : "", input.value);
    input.value = "";
    return true;
  };
  input.addEventListener("input", async (event) => {
    const asked = ++last;
    const typing = event.inputType && event.inputType !== "insertReplacementText"; // "Dune", on the way to "Dune Messiah"
    if ((!typing && add()) || !input.value.trim()) return;
    await new Promise((resolve) => setTimeout(resolve, 200)); // until nobody types
    if (asked !== last) return;
    const { items } = await get(`/data/${data}/items?query=${encodeURIComponent(input.value.trim())}&limit=12`).catch(() => ({ items: [] })); // the ids can still be typed
    if (asked !== last) return;
    titles.clear();
    const count = (title) => items.filter((i) => i.title === title).length;
    for (const { item, title } of items) titles.set(count(title) > 1 ? `${title} (${item})` : title, item);
    fill(options, [...titles.keys()].map((value) => h("option", { value })));
  });
  into.addEventListener("input", () => fill(chosen)); // they are not the ones that were chosen any more
  return [input, options, chosen];
}

// Who is asked about, how many items and of which kind; `question` raises where nobody is named.
export function asker(data, id, extra) {
  const text = (name, placeholder, size) => h("input", { name, placeholder, size, autocomplete: "off" });
  const user = text("user", "such as 42", 9), history = text("history", "item ids, oldest first", 18), exclude = text("exclude", "item ids", 12);
  const groups = text("groups", "occupation=artist, …", 18);
  const k = h("input", { type: "number", min: 1, max: 100, value: 10, name: "k" });
  const least = (name) => h("input", { type: "number", min: 0, max: 1, step: 0.05, placeholder: "0 to 1", name });
  const credibility = least("credibility"), novelty = least("novelty");
  const question = () => {
    if (!user.value.trim() && !history.value.trim()) {
      user.focus();
      throw new Error("Name a user of the data, or the items that somebody has liked.");
    }
    const floors = Object.entries({ credibility, novelty }).filter(([, input]) => input.value).map(([name, input]) => [name, Number(input.value)]);
    return {
      ...(history.value.trim() ? { history: ids(history.value) } : { user: user.value.trim() }),
      ...(groups.value.trim() ? { groups: pairs(groups.value) } : {}),
      k: Number(k.value) || 10,
      exclude: ids(exclude.value),
      least: Object.fromEntries(floors),
      explain: true,
    };
  };
  const element = [
    h("div", { className: "row" }, field("User", user), field("or history", history), field("add by title", finder(data, history, `${id}-find`)), field("How many", k), extra),
    h("details", {}, h("summary", {}, "Groups and filters"), h("div", { className: "row" }, field("Groups of who has the history", groups, "where the model reads them"), field("Without items", exclude), field("Least credibility", credibility), field("Least novelty", novelty))),
  ];
  return { element, question, isAsked: () => Boolean(user.value.trim() || history.value.trim()) };
}

// What one entry shows; items in `everywhere` are those that all entries beside it show too.
export function listing(answer, everywhere = new Set()) {
  const row = ({ item, title, score, because }) =>
    h(
      "li",
      { className: everywhere.has(item) ? "everywhere" : "" },
      h("span", {}, title),
      h("small", { title: "The entry's blended score, to compare for this user only" }, `item ${item} · score ${score.toFixed(2)}`),
      because?.length ? h("small", { className: "because" }, `because of ${because.join(" and ")}`) : null,
    );
  const unknown = answer.unknown.length > 0 && h("p", {}, h("small", {}, `left out, since nobody knows them: ${answer.unknown.join(", ")}`));
  return h("div", {}, h("ol", { className: "items" }, answer.items.map(row)), unknown);
}

// What some entries of a search that has ended would show to the same user, a column each.
export class Previews {
  constructor(search, data) {
    this.search = search;
    this.entries = [];
    this.form = asker(data, "previews");
    this.lists = h("div", { "aria-live": "polite" });
    this.heading = h("h2", {}, "What it recommends");
    this.element = h(
      "section",
      { id: "previews" },
      this.heading,
      h("form", { onsubmit: (event) => event.preventDefault() }, this.form.element, h("button", { onclick: doing(() => this.ask()), id: "preview" }, "Show")),
      this.lists,
    );
  }

  // Asks again where somebody has asked before and the entries are others now.
  show(entries) {
    if (entries.join() === this.entries.join()) return;
    this.entries = entries;
    this.heading.textContent = entries.length > 1 ? "What each recommends to the same user" : "What it recommends";
    if (this.form.isAsked()) this.ask().catch((error) => this.tell(error.message, "bad"));
    else this.tell("Name a user, or the items that somebody has liked, to see what they would be shown. The first time takes some seconds, in which the model is loaded.");
  }

  tell = (text, className = "empty") => fill(this.lists, h("p", { className }, text));

  async ask() {
    const question = this.form.question(), entries = this.entries;
    this.tell("One moment.");
    const answers = [];
    try {
      for (const entry of entries) answers.push(await post(`/searches/${this.search}/recommend`, { ...question, entry }));
    } catch (error) {
      if (entries === this.entries) this.tell(error.message, "bad");
      return;
    }
    if (entries !== this.entries) return; // others have been chosen meanwhile
    const shown = answers.map((a) => new Set(a.items.map((i) => i.item)));
    const everywhere = answers.length > 1 ? new Set([...shown[0]].filter((item) => shown.every((s) => s.has(item)))) : new Set();
    fill(
      this.lists,
      answers.length > 1 && h("p", {}, h("small", {}, everywhere.size ? `${count(everywhere.size, "item")} in all of the lists, in grey.` : "No item is in all of the lists.")),
      h("div", { className: "lists" }, answers.map((answer) => h("div", {}, h("h3", {}, answer.entry), listing(answer, everywhere)))),
    );
  }
}
