"use strict";
(() => {
  const PAGE = 60;
  const data = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const names = new Map(data.classes);
  const named = (label) => names.get(label) ?? label;
  const [POSITION, ID, GIVEN, SUGGESTED, SCORE, FLAGGED, WRONG, LOOK] = [0, 1, 2, 3, 4, 5, 6, 7];
  const key = "afterfit-review:" + data.run;
  const byPosition = new Map(data.items.map((item) => [item[POSITION], item]));
  const images = data.items.filter((item) => typeof item[LOOK] === "number").length;
  const decisions = new Map();
  const past = [];
  let shown = [], page = 0, chosen = 0;

  const element = (tag, kind, text) => {
    const made = document.createElement(tag);
    made.className = kind;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  try {
    for (const [position, entry] of JSON.parse(localStorage.getItem(key) ?? "[]")) {
      if (byPosition.has(position)) decisions.set(position, entry);
    }
  } catch { get("unsaved").hidden = false; }
  const save = () => {
    try { localStorage.setItem(key, JSON.stringify([...decisions])); }
    catch { get("unsaved").hidden = false; }
  };

  const look = (item) => {
    const what = item[LOOK];
    if (typeof what === "number") {
      const across = data.across, place = what % (across * across);
      const sheet = Math.floor(what / (across * across));
      const rows = Math.ceil(Math.min(across * across, images - sheet * across * across) / across);
      const box = element("div", "image");
      box.setAttribute("role", "img");
      box.setAttribute("aria-label", "sample " + item[ID]);
      box.style.backgroundImage = 'url("' + data.sheets[sheet] + '")';
      box.style.backgroundSize = across * 100 + "% " + rows * 100 + "%";
      const across100 = 100 * (place % across) / (across - 1);
      const down100 = rows > 1 ? 100 * Math.floor(place / across) / (rows - 1) : 0;
      box.style.backgroundPosition = across100 + "% " + down100 + "%";
      return box;
    }
    const lines = typeof what === "string" ? what : what.map((pair) => pair.join(": ")).join("\n");
    return element("p", "text", lines);
  };

  const told = (item) => {
    const entry = decisions.get(item[POSITION]);
    if (!entry) return "";
    return entry[0] === "relabel" ? "relabel: " + named(entry[1]) : entry[0];
  };

  const mark = (item) => {
    const card = get("gallery").querySelector('[data-position="' + item[POSITION] + '"]');
    if (card) {
      card.className = "card " + (decisions.get(item[POSITION])?.[0] ?? "");
      card.querySelector(".told").textContent = told(item);
    }
    get("done").textContent = decisions.size + " of " + data.items.length + " decided";
  };

  const put = (position, entry) => {
    if (entry) decisions.set(position, entry); else decisions.delete(position);
    save();
    mark(byPosition.get(position));
  };
  const decide = (item, what, label) => {
    past.push([item[POSITION], decisions.get(item[POSITION])]);
    put(item[POSITION], [what, what === "relabel" ? label ?? item[SUGGESTED] : ""]);
  };
  const undo = () => {
    const last = past.pop();
    if (!last) return;
    put(...last);
    const place = shown.findIndex((item) => item[POSITION] === last[0]);
    if (place >= 0) choose(place);
  };

  const card = (item, place) => {
    const made = element("li", "card " + (decisions.get(item[POSITION])?.[0] ?? ""));
    made.tabIndex = 0;
    made.dataset.position = item[POSITION];
    made.addEventListener("focusin", () => { chosen = place; });
    const words = element("div", "words"), change = element("div", "change");
    change.append(element("span", "given", named(item[GIVEN])), " \u2192 ",
      element("span", "suggested", named(item[SUGGESTED])));
    const wrong = item[WRONG] === null ? "" : Math.round(100 * item[WRONG]) + "% wrong, ";
    const score = item[SCORE] === null ? "" : "score " + item[SCORE].toPrecision(3) + ", ";
    const numbers = element("div", "numbers", wrong + score + "sample " + item[ID]);
    const actions = element("div", "actions");
    for (const what of ["keep", "relabel", "drop"]) {
      const button = element("button", "", what);
      button.type = "button";
      button.addEventListener("click", () => decide(item, what));
      actions.append(button);
    }
    if (data.classes.length) {
      const select = element("select", "");
      select.setAttribute("aria-label", "relabel to another class");
      select.append(new Option("other class", ""));
      const fill = () => {  // when first used: many classes on many cards would be slow
        if (select.length === 1) {
          for (const [label, name] of data.classes) select.append(new Option(name, label));
        }
      };
      select.addEventListener("focus", fill);
      select.addEventListener("pointerdown", fill);
      select.addEventListener("change", () => {
        if (select.value !== "") decide(item, "relabel", select.value);
      });
      actions.append(select);
    }
    words.append(change, numbers, element("div", "told", told(item)), actions);
    made.append(look(item), words);
    return made;
  };

  const render = () => {
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const first = page * PAGE;
    get("gallery").replaceChildren(
      ...shown.slice(first, first + PAGE).map((item, place) => card(item, first + place)));
    get("place").textContent = "page " + (page + 1) + " of " + pages + ", " + shown.length + " samples";
    get("previous").disabled = page === 0;
    get("next").disabled = page === pages - 1;
    get("done").textContent = decisions.size + " of " + data.items.length + " decided";
  };

  const choose = (place) => {
    chosen = Math.min(Math.max(place, 0), shown.length - 1);
    if (chosen < 0) return;
    if (Math.floor(chosen / PAGE) !== page) { page = Math.floor(chosen / PAGE); render(); }
    get("gallery").children[chosen - page * PAGE].focus();
  };

  const select = () => {
    const given = get("given").value, suggested = get("suggested").value;
    const percent = Number(get("threshold").value), column = Number(get("sort").value);
    if (data.counts.length) {
      const [count, right] = data.counts[percent];
      get("percent").textContent = percent + "%";
      get("counts").textContent = count + " labels of all the data, " + right.toFixed(1) +
        " of them expected to be right";
    }
    shown = data.items.filter((item) =>
      (given === "" || named(item[GIVEN]) === given) &&
      (suggested === "" || named(item[SUGGESTED]) === suggested) &&
      (!data.counts.length || item[WRONG] === null || 100 * item[WRONG] >= percent));
    shown.sort((a, b) => (b[column] ?? -1e300) - (a[column] ?? -1e300));
    page = chosen = 0;
    render();
  };

  const download = (name, kind, text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: kind }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const quoted = (text) => (/[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text);
  const sorted = () => [...decisions].sort((a, b) => a[0] - b[0]);
  get("csv").addEventListener("click", () => download("decisions.csv", "text/csv",
    "position,decision,label\n" + sorted().map(([position, [what, label]]) =>
      position + "," + what + "," + quoted(label) + "\n").join("")));
  get("json").addEventListener("click", () => download("decisions.json", "application/json",
    JSON.stringify({ run: data.run, decisions: sorted().map(([position, [decision, label]]) => ({
      position, id: byPosition.get(position)[ID], decision, label: label === "" ? null : label,
      class: label === "" ? null : named(label) })) }, null, 1)));

  for (const [id, column] of [["given", GIVEN], ["suggested", SUGGESTED]]) {
    const there = [...new Set(data.items.map((item) => named(item[column])))];
    there.sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
    get(id).append(new Option("any", ""), ...there.map((name) => new Option(name, name)));
  }
  get("slide").hidden = !data.counts.length;
  const flagged = data.items.filter((item) => item[FLAGGED] && item[WRONG] !== null);
  get("threshold").value = Math.floor(flagged.reduce((p, item) => Math.min(p, 100 * item[WRONG]),
    flagged.length ? 100 : 0));
  for (const id of ["given", "suggested", "sort", "threshold"]) {
    get(id).addEventListener("input", select);
  }
  const turn = (pages) => {
    page += pages;
    chosen = page * PAGE;  // keys decide on what is seen
    render();
    choose(chosen);
  };
  get("previous").addEventListener("click", () => turn(-1));
  get("next").addEventListener("click", () => turn(1));

  const columns = () => getComputedStyle(get("gallery")).gridTemplateColumns.split(" ").length;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const what = { k: "keep", r: "relabel", d: "drop" }[event.key];
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns() };
    if (what && shown.length) { decide(shown[chosen], what); choose(chosen + 1); }
    else if (event.key === "u") undo();
    else if (event.key in steps) choose(chosen + steps[event.key]);
    else return;
    event.preventDefault();
  });
  select();
  choose(0);
})();
