"use strict";
// A filter box and, for some columns, a choice over each filterable table. Without this the whole table is there.
const FIRST = 300;  // rows that fit are laid out at once, so that filtering is quick; the others come by a button
for (const box of document.querySelectorAll(".filterable")) {
  const rows = [...box.querySelectorAll("tbody tr")];
  const heads = [...box.querySelectorAll("thead th")].map((head) => head.textContent);
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const bar = document.createElement("div");
  bar.className = "filter";
  bar.setAttribute("role", "search");

  const labelled = (text, control) => {
    const label = document.createElement("label");
    label.append(text, control);
    bar.append(label);
    return control;
  };
  const search = labelled("Find", document.createElement("input"));
  search.type = "search";

  const choices = box.dataset.choices.split(",").filter(Boolean).map(Number).map((column) => {
    const select = labelled(heads[column], document.createElement("select"));
    const cells = rows.map((row) => row.cells[column].textContent);
    const values = new Set(cells);
    select.append(new Option("all", ""));
    for (const value of [...values].sort()) select.append(new Option(value, value));
    return { cells, select };
  });
  const told = document.createElement("output");
  const more = document.createElement("button");
  more.type = "button";
  bar.append(told, more);
  box.prepend(bar);

  const apply = (most) => {
    const wanted = search.value.toLowerCase();
    let fitting = 0;
    rows.forEach((row, i) => {
      const fits = texts[i].includes(wanted)
        && choices.every(({ cells, select }) => !select.value || cells[i] === select.value);
      fitting += fits;
      row.hidden = !fits || fitting > most;
    });
    more.hidden = fitting <= most;
    more.textContent = `Show all ${fitting}`;
    told.textContent = `${fitting} of ${rows.length} rows${more.hidden ? "" : `, the first ${most} shown`}`;
  };
  bar.addEventListener("input", () => apply(FIRST));
  more.addEventListener("click", () => apply(Infinity));
  apply(FIRST);
}

// Paper cannot be unfolded: what is folded away is open while the page is printed.
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details:not([open])")];
  for (const details of unfolded) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of unfolded) details.open = false;
});

// The shadows that say "there is more to the side" are only for what does not fit.
const fit = () => {
  for (const box of document.querySelectorAll(".scroll")) box.classList.toggle("fits", box.scrollWidth <= box.clientWidth);
};
addEventListener("resize", fit);
document.addEventListener("toggle", fit, true);
fit();
