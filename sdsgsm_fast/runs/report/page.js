"use strict";
// The gallery: filters, order and pages over arrays of numbers; only one page's cards are in the document.
const data = JSON.parse(document.getElementById("data").textContent);
const columns = data.columns, count = data.strips.length, PAGE = 60;
const gallery = document.getElementById("gallery"), dialog = document.querySelector("dialog");
const all = Array.from({ length: count }, (_, i) => i);
document.body.style.setProperty("--views", data.views.length);
let chosen = all, page = 0, shown = 0;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const number = (value, digits) => (value === null ? "–" : value.toFixed(digits));
const source = (i) => "data:image/webp;base64," + data.strips[i];
const classes = (i) => data.classes[columns.true[i]] + " → " + data.classes[columns.other[i]];
const figures = (i) => data.numbers.map((n) => n.name + " " + number(columns[n.key][i], n.digits)).join(" · ");

// Controls

const option = (value, text) => make("option", { value: String(value) }, text);

function labelled(text, control) {
  control.id = "by-" + text.replaceAll(" ", "-");
  return make("div", { class: "control" }, make("label", { for: control.id }, text), control);
}

const select = (options) => make("select", {}, ...options);

function classSelect(key) {
  const seen = new Array(data.classes.length).fill(false);
  for (const value of columns[key]) seen[value] = true;
  return select([option("", "all"), ...data.classes.flatMap((name, i) => (seen[i] ? [option(i, name)] : []))]);
}

function range(n) {
  const low = make("input", { type: "number", step: "any", "aria-label": n.name + " at least" });
  const high = make("input", { type: "number", step: "any", "aria-label": n.name + " at most" });
  const group = make("fieldset", {}, make("legend", {}, n.name), make("div", {}, low, "to", high));
  return { key: n.key, low, high, group };
}

const controls = {
  true: classSelect("true"),
  other: classSelect("other"),
  result: select([option("", "all"), ...data.results.map((name, i) => option(i, name))]),
};
const ranges = data.numbers.filter((n) => n.filtered).map(range);
const order = select([option("index", "place in the data"), ...data.numbers.map((n) => option(n.key, n.name))]);
const direction = select([option(1, "smallest first"), option(-1, "largest first")]);
const form = make(
  "form", { "aria-label": "Filters" },
  labelled("true class", controls.true), labelled(data.other, controls.other), labelled("result", controls.result),
  ...ranges.map((r) => r.group), labelled("sorted by", order), labelled("order", direction),
  make("button", { type: "reset" }, "Reset"),
);
const status = make("p", { role: "status" });
const views = make("p", { class: "aside" }, "From left to right: " + data.views.join(", ") + ".");
const cards = make("ul", { class: "cards" });
const back = make("button", { type: "button" }, "Previous page"), on = make("button", { type: "button" }, "Next page");
const where = make("span");
gallery.append(form, status, views, cards, make("nav", { "aria-label": "Pages of the gallery" }, back, where, on));

// Filters and order

function choose() {
  const exact = Object.keys(controls).filter((key) => controls[key].value !== "");
  const wanted = exact.map((key) => Number(controls[key].value));
  const limits = ranges.map((r) => [columns[r.key], r.low.value, r.high.value]).filter(([, a, b]) => a !== "" || b !== "");
  const inside = ([values, low, high], i) =>
    values[i] !== null && (low === "" || values[i] >= Number(low)) && (high === "" || values[i] <= Number(high));
  chosen = all.filter(
    (i) => exact.every((key, k) => columns[key][i] === wanted[k]) && limits.every((limit) => inside(limit, i)),
  );
  const values = columns[order.value], sign = Number(direction.value);
  // Images without the number come last, whatever the order.
  chosen.sort((a, b) => (values[a] === null) - (values[b] === null) || sign * (values[a] - values[b]) || a - b);
  page = 0;
  show();
}

function show() {
  const pages = Math.max(1, Math.ceil(chosen.length / PAGE));
  page = Math.min(page, pages - 1);
  cards.replaceChildren(...chosen.slice(page * PAGE, (page + 1) * PAGE).map(card));
  const whole = data.of > count ? `; the set has ${data.of}` : "";
  status.textContent = `${chosen.length} of ${count} images${whole}`;
  where.textContent = `page ${page + 1} of ${pages}`;
  back.disabled = page === 0;
  on.disabled = page === pages - 1;
}

function card(i) {
  const name = `image ${columns.index[i]}, ${classes(i)}, ${data.results[columns.result[i]]}`;
  const button = make(
    "button", { type: "button", class: "card", "data-image": String(i), "aria-haspopup": "dialog" },
    make("img", { src: source(i), alt: name }),
    make("span", { class: "line" }, `${classes(i)} (${data.results[columns.result[i]]})`),
    make("span", { class: "line numbers" }, figures(i)),
  );
  button.addEventListener("click", () => open(chosen.indexOf(i)));
  return make("li", {}, button);
}

function turn(step) {
  page += step;
  show();
  gallery.scrollIntoView();
}

// One image, large

function open(place) {
  shown = place;
  const i = chosen[place];
  const earlier = make("button", { type: "button" }, "Previous"), later = make("button", { type: "button" }, "Next");
  const close = make("button", { type: "button" }, "Close");
  earlier.disabled = place === 0;
  later.disabled = place === chosen.length - 1;
  earlier.addEventListener("click", () => open(shown - 1));
  later.addEventListener("click", () => open(shown + 1));
  close.addEventListener("click", () => dialog.close());
  const facts = [
    ["place in the data", columns.index[i]], ["true class", data.classes[columns.true[i]]],
    [data.other, data.classes[columns.other[i]]], ["result", data.results[columns.result[i]]],
    ...data.numbers.map((n) => [n.name, number(columns[n.key][i], n.digits)]),
  ];
  dialog.replaceChildren(
    make("h2", { id: "shown" }, `Image ${columns.index[i]}: ${classes(i)}`),
    make("img", { src: source(i), alt: data.views.join(", ") }),
    make("div", { class: "views", "aria-hidden": "true" }, ...data.views.map((name) => make("span", {}, name))),
    make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))])),
    make("div", { class: "buttons" }, earlier, later, close),
  );
  if (!dialog.open) dialog.showModal();
  close.focus();
}

dialog.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step && chosen[shown + step] !== undefined) open(shown + step);
});
dialog.addEventListener("close", () => {
  page = Math.floor(shown / PAGE);
  show();
  const button = cards.querySelector(`[data-image="${chosen[shown]}"]`);
  if (button) button.focus();
});
form.addEventListener("input", choose);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(choose));
back.addEventListener("click", () => turn(-1));
on.addEventListener("click", () => turn(1));
for (const button of document.querySelectorAll(".pair")) {
  button.addEventListener("click", () => {
    form.reset();
    controls.true.value = button.dataset.true;
    controls.other.value = button.dataset.other;
    setTimeout(() => {
      choose();
      gallery.focus();
      gallery.scrollIntoView();
    });
  });
}
choose();
