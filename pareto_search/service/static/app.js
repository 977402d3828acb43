// Which view is shown: the searches, one of them, a comparison or the deployments, by the address after the #.

import { get, hasToken, keepToken, takeToken } from "./api.js";
import { comparison } from "./comparison.js";
import { deploymentsView } from "./deployments.js";
import { fill, h, trouble } from "./dom.js";
import { home } from "./home.js";
import { searchView } from "./search.js";

const main = document.getElementById("main");
let shown = new AbortController();

async function show() {
  shown.abort();
  shown = new AbortController();
  trouble(null);
  takeToken();
  if (!hasToken()) return askToken();
  const [, view = "", name = ""] = location.hash.split("/");
  for (const link of document.querySelectorAll("nav a")) {
    if ((link.hash === "#/deployments") === (view === "deployments")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  try {
    if (view === "search") await searchView(main, name, shown.signal);
    else if (view === "compare") await comparison(main, name.split(","), shown.signal);
    else if (view === "deployments") await deploymentsView(main, name, shown.signal);
    else await home(main, shown.signal);
  } catch (error) {
    if (error.status === 401) askToken(error.message);
    else if (!shown.signal.aborted) trouble(error);
  }
}

function askToken(complaint) {
  const token = h("input", { type: "password", autocomplete: "off", required: true, id: "token" });
  const go = async (event) => {
    event.preventDefault();
    keepToken(token.value.trim());
    await get("/bases").then(show, (error) => askToken(error.message));
  };
  fill(
    main,
    h("h1", {}, "Your token, please"),
    h("p", {}, "Open the link that ", h("code", {}, "pareto-search serve"), " printed, or enter the token that it was started with."),
    h("form", { onsubmit: go, className: "row" }, h("label", { className: "field" }, h("span", {}, "Token"), token), h("button", { className: "primary" }, "Go on")),
    complaint && h("p", { className: "bad" }, complaint),
  );
  token.focus();
}

addEventListener("hashchange", () => {
  if (location.hash !== "#main") show();
});
show();
