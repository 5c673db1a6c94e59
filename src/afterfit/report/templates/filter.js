"use strict";
(() => {
  const suspects = document.querySelector(".filtered");
  const query = suspects.querySelector(".query");
  const flaggedOnly = suspects.querySelector(".flagged-only");
  const shown = suspects.querySelector("output");
  const body = suspects.querySelector(".issues tbody");
  const items = [...suspects.querySelectorAll("[data-text]")];
  suspects.querySelector(".controls").hidden = false;

  const filter = () => {
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const item of items) {
      const matches = words.every((word) => item.dataset.text.toLowerCase().includes(word));
      item.hidden = !matches || (flaggedOnly.checked && item.dataset.issue !== "1");
    }
    const left = [...body.rows].filter((row) => !row.hidden).length;
    shown.textContent = left + " of " + body.rows.length + " rows";
  };
  query.addEventListener("input", filter);
  flaggedOnly.addEventListener("change", filter);
  filter();

  const heads = [...suspects.querySelectorAll(".issues thead th")];
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
      const compare = head.dataset.kind === "number"
        ? (a, b) => value(a, column) - value(b, column)
        : (a, b) => value(a, column).localeCompare(value(b, column), undefined, { numeric: true });
      body.append(...[...body.rows].sort((a, b) => direction * compare(a, b)));
    });
  });
})();
