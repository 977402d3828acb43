// What is deployed: its state, its endpoint, the canary, and a form that asks it.

import { get, post, put, remove, watch } from "./api.js";
import { doing, field, fill, h, renew, select, trouble } from "./dom.js";
import { asker, listing } from "./recommend.js";

export async function deploymentsView(main, wanted, signal) {
  const list = h("div", { id: "deployments" });
  fill(main, h("h1", {}, "Deployments"), list);
  const cards = new Map();
  await watch("/deployments/events", signal, ({ deployments }) => {
    const known = new Set(deployments.map((d) => d.id));
    [...cards.keys()].filter((id) => !known.has(id)).forEach((id) => (cards.get(id).element.remove(), cards.delete(id)));
    if (!deployments.length) return fill(list, empty());
    list.querySelector(".empty")?.remove();
    for (const deployment of deployments) {
      if (!cards.has(deployment.id)) {
        cards.set(deployment.id, new Card(deployment));
        list.append(cards.get(deployment.id).element);
        if (deployment.id === wanted) cards.get(wanted).element.scrollIntoView();
      }
      cards.get(deployment.id).update(deployment);
    }
  });
}

const empty = () =>
  h("p", { className: "empty" }, "Nothing is deployed. Open a ", h("a", { href: "#/" }, "search"), " that has ended, select the entry whose trade-off you want, and press Deploy.");

const percent = (share) => `${Math.round(share * 100)} %`;

// One deployment; made once and then updated, so that nobody loses what they are typing.
class Card {
  constructor(deployment) {
    this.id = deployment.id;
    this.state = h("span", { className: "state" });
    this.error = h("p", { className: "bad" });
    this.served = h("tbody", {});
    this.doing = h("div", { className: "row" });
    this.trial = h("div", { className: "row" });
    this.curl = h("pre", {});
    this.answer = h("div", { "aria-live": "polite" });
    this.tried = h("div", {});
    this.element = h(
      "article",
      { className: "deployment", id: `deployment-${this.id}`, "aria-label": this.id },
      h("h2", {}, this.id, " ", this.state),
      h("p", {}, h("small", {}, "from ", h("a", { href: `#/search/${deployment.search}` }, deployment.search), ", at ", h("code", {}, deployment.endpoint), " on the service's machine")),
      this.error,
      h(
        "div",
        { className: "halves" },
        h(
          "div",
          {},
          h("div", { className: "wide" }, h("table", {}, h("thead", {}, h("tr", {}, ["entry", "answers to", "so far"].map((t) => h("th", { scope: "col" }, t)))), this.served)),
          this.trial,
          this.doing,
          h("details", { ontoggle: (event) => event.target.open && this.reveal(deployment) }, h("summary", {}, "Ask it with curl"), this.curl),
        ),
        h("div", {}, h("h3", {}, "Try it"), this.tried, this.answer),
      ),
    );
    this.prepare(deployment);
  }

  // What a form needs to know that does not change.
  async prepare(deployment) {
    const detail = await get(`/deployments/${this.id}`).catch(() => null);
    const front = await get(`/searches/${deployment.search}/front`).catch(() => null); // it may have been deleted
    this.objectives = detail?.objectives ?? [];
    this.front = front?.final ? front.front.map((e) => e.entry) : [];
    this.key = null;
    this.update(this.now);
  }

  async reveal(deployment) {
    const { token } = await get(`/deployments/${this.id}`);
    this.curl.textContent = `curl -H "Authorization: Bearer ${token}" ${deployment.endpoint} \\\n     -d '{"user": "42", "k": 10, "explain": true}'`;
  }

  update(deployment) {
    this.now = deployment;
    const { state, entries, canary, answers } = deployment;
    fill(this.state, state);
    this.state.className = `state ${state}`;
    this.error.textContent = deployment.error ?? "";
    this.error.hidden = !deployment.error;
    const served = canary && !entries.includes(canary.entry) ? [...entries, canary.entry] : entries;
    const role = (entry) => {
      if (entry === canary?.entry) return `a canary, ${percent(canary.share)} of the users`;
      if (entry === entries[0]) return canary ? `everybody else` : "everybody";
      return "by its name or by preference";
    };
    fill(this.served, served.map((entry) => h("tr", {}, h("th", { scope: "row" }, entry), h("td", {}, role(entry)), h("td", {}, String(answers[entry] ?? 0)))));
    if (this.telling || !this.objectives) return;
    const key = JSON.stringify([state === "deleting", !!deployment.error, entries, canary?.entry, deployment.earlier]);
    if (key !== this.key) renew(() => this.offer(served)); // else what can be done is as before
    else if (canary && document.activeElement !== this.share) this.slide(canary.share); // not under somebody's fingers
    this.key = key;
  }

  slide(share) {
    this.share.value = Math.round(share * 100);
    this.told.textContent = percent(share);
  }

  offer(served) {
    const { entries, canary, earlier, state, error } = this.now;
    const tell = (deed) => doing(() => post(`/deployments/${this.id}/${deed}`));
    const erase = doing(async () => {
      if (!confirm(`Delete ${this.id}? Its endpoint answers nobody any more.`)) return;
      await remove(`/deployments/${this.id}`);
    });
    const others = [...new Set([...served, ...this.front])].filter((entry) => entry !== entries[0]);
    this.share = h("input", { type: "range", min: 0, max: 100, step: 5, id: `share-${this.id}`, "aria-label": "Share of the users", oninput: () => this.slide(this.share.value / 100), onchange: () => canary && this.set() });
    this.told = h("output", {});
    this.slide(canary?.share ?? 0.1);
    this.choice = select(others.map((o) => [o, o]), canary?.entry ?? others[0], () => canary && this.set(), "Canary");
    this.choice.id = `canary-${this.id}`;
    fill(
      this.trial,
      others.length ? [field("Canary", this.choice), field("for", h("span", { className: "slider" }, this.share, this.told)), !canary && h("button", { onclick: () => this.set(), className: "try" }, "Try it out")] : h("small", {}, "The front has no other entry to try out."),
    );
    const button = (deed, text, props) => h("button", { id: `${deed}-${this.id}`, onclick: tell(deed), ...props }, text);
    fill(
      this.doing,
      canary && button("promote", "Promote the canary", { className: "primary" }),
      (canary || earlier > 0) && button("rollback", canary ? "Take the canary back" : "Roll back"),
      error && button("restart", "Begin it anew"),
      button("delete", "Delete", { onclick: erase, disabled: state === "deleting" }),
    );
    this.question(served);
  }

  // Tells what the controls say, one request after another. They are not disabled meanwhile, which would take the focus
  // away: what somebody has moved by then is told next.
  async set() {
    this.moved = true;
    if (this.telling) return;
    this.telling = true;
    trouble(null);
    try {
      while (this.moved) {
        this.moved = false;
        this.now = await put(`/deployments/${this.id}/canary`, { entry: this.choice.value, share: this.share.value / 100 });
      }
    } catch (error) {
      this.key = null; // so that the controls show what is, and not what was refused
      trouble(error);
    }
    this.telling = false;
    this.update(this.now);
  }

  // The form stays as it is filled in while only the entries change.
  question(served) {
    const who = [["", "as for anybody"], ...served.map((e) => [e, e]), ["prefer", "by preference"]];
    const chosen = who.some(([key]) => key === this.who?.value) ? this.who.value : "";
    const options = select(who, chosen, (event) => (this.sliders.hidden = event.target.value !== "prefer"), "Which entry");
    options.id = `who-${this.id}`;
    if (this.who) this.who.replaceWith(options);
    else this.ask(options);
    this.who = options;
  }

  ask(who) {
    const form = asker(this.now.data, this.id, field("Entry", who));
    const weights = this.objectives.map((name) => h("input", { type: "range", min: 0, max: 10, value: 1, "aria-label": `How much ${name} matters` }));
    this.sliders = h("div", { className: "grid", hidden: true }, this.objectives.map((name, i) => field(name, weights[i])));
    const ask = async () => {
      const prefer = Object.fromEntries(this.objectives.map((name, i) => [name, Number(weights[i].value)]));
      const by = this.who.value === "prefer" ? { prefer } : this.who.value ? { entry: this.who.value } : {};
      try {
        const answer = await post(`/deployments/${this.id}/recommend`, { ...form.question(), ...by });
        fill(this.answer, h("p", {}, h("small", {}, "answered by ", h("b", {}, answer.entry))), listing(answer));
      } catch (error) {
        fill(this.answer, h("p", { className: "bad" }, error.message));
      }
    };
    fill(this.tried, h("form", { onsubmit: (event) => event.preventDefault() }, form.element, this.sliders, h("button", { className: "primary ask", onclick: doing(ask) }, "Recommend")));
  }
}
