"use strict";
// The headers of sortable tables become buttons: ascending, then descending, then as it was.
const collator = new Intl.Collator("en", { numeric: true });
const next = { none: "ascending", ascending: "descending", descending: "none" };

// A cell is worth its number if it says one, else its text; null, which stays last, if it is empty or NaN.
const worth = (cell) => {
  if (!("value" in cell.dataset)) return cell.textContent.trim() || null;
  const number = Number(cell.dataset.value);
  return Number.isNaN(number) ? null : number;
};

const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a, b));

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.replaceChildren(button);
    header.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = next[header.getAttribute("aria-sort")];
      for (const other of headers) other.setAttribute("aria-sort", other === header ? order : "none");
      const sign = order === "descending" ? -1 : 1;
      const sorted = [...body.rows].sort((first, second) => {
        const [a, b] = [worth(first.cells[column]), worth(second.cells[column])];
        return a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b);
      });
      body.append(...(order === "none" ? original : sorted));
    });
  });
}
