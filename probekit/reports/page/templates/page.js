// Shared code: the data, elements, number formatting, the theme, and the model selector.

const MOST_CARDS = 10;
const $ = (id) => document.getElementById(id);

// Text is never interpreted as HTML, because names in a result may contain any characters.
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, run] of Object.entries(value)) made.addEventListener(event, run);
    else if (name === "text") made.textContent = value;
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else if (value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

function unpacked(text, Kind) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Kind(bytes.buffer);
}

function shown(value, kind) {
  if (kind === "flag") return value > 0 ? "yes" : Number.isNaN(value) ? "–" : "no";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "–" : value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (kind === "count") return value.toLocaleString("en");
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(2).replace("-", "−");
  return (size >= 1000 ? Math.round(value).toLocaleString("en") : value.toFixed(3)).replace("-", "−");
}

const middle = (text, most, head = most >> 1) => (text.length > most ? `${text.slice(0, head)}…${text.slice(1 + head - most)}` : text);
const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

class Model {
  constructor(raw, number) {
    Object.assign(this, { number, name: raw.name, layers: raw.layers, count: raw.units });
    this.layer = unpacked(raw.layer, Int32Array);
    this.channel = unpacked(raw.channel, Int32Array);
    this.classes = new Map(raw.classes);
    this.columns = raw.columns.map((column) => ({ ...column, values: unpacked(column.values, ["class", "count"].includes(column.kind) ? Float64Array : Float32Array) }));
    this.column = new Map(this.columns.map((column) => [column.name, column]));
    this.tuning = raw.tuning && {
      ...raw.tuning,
      label: Float64Array.from(unpacked(raw.tuning.place, Int32Array), (at) => raw.tuning.labels[at]),
      mean: unpacked(raw.tuning.mean, Float32Array),
      rest: unpacked(raw.tuning.rest, Float32Array),
    };
    this.top = raw.top && {
      ...raw.top,
      sample: unpacked(raw.top.sample, Int32Array),
      label: raw.top.label && unpacked(raw.top.label, Float64Array),
      activation: unpacked(raw.top.activation, Float32Array),
    };
    this.drawn = raw.drawn && { ...raw.drawn, activation: unpacked(raw.drawn.activation, Float32Array) };
    this.perturbed = (raw.perturbed || []).map((one) => ({ ...one, change: unpacked(one.change, Float32Array) }));
  }
  value(name, unit) {
    return this.column.has(name) ? this.column.get(name).values[unit] : NaN;
  }
  // Names of layers, cut in the middle where that keeps them distinct.
  layerNames(most) {
    for (let head = most >> 1; head >= 0; head--) {
      const names = this.layers.map((name) => middle(name, most, head));
      if (new Set(names).size === names.length) return names;
    }
    return this.layers.map((name) => middle(name, most));
  }
  className(label) {
    return label < 0 ? "none" : Number.isNaN(label) ? "–" : this.classes.get(label) ?? String(label);
  }
  preferred(unit) {
    return this.column.has("preferred_class") ? this.value("preferred_class", unit) : NaN;
  }
  // The top images of a unit, highest first; the address is missing if the image did not fit the budget.
  images(unit, most) {
    const found = [];
    for (let rank = 0; this.top && rank < Math.min(most, this.top.count); rank++) {
      const at = unit * this.top.count + rank;
      const sample = this.top.sample[at];
      if (sample < 0) break; // not measured in a merged result
      const label = this.top.label ? this.top.label[at] : null;
      found.push({ sample, label, activation: this.top.activation[at], address: images[sample] });
    }
    return found;
  }
}

function picture(image, model) {
  const label = image.label == null ? "" : `, ${model.className(image.label)}`;
  const made = el("img", { class: "pic", alt: `sample ${image.sample}${label}`, decoding: "async", src: `data:image/${image.address}` });
  made.addEventListener("load", () => made.classList.toggle("tiny", made.naturalWidth < 64));
  return made;
}

const data = JSON.parse($("payload").textContent);
const images = data.images || {};
const models = data.models.map((raw, number) => new Model(raw, number));
let model = models[0];

function choose(number) {
  model = models[number];
  for (const part of document.querySelectorAll(".model")) part.hidden = Number(part.dataset.model) !== number;
  for (const button of document.querySelectorAll("[data-show]"))
    button.setAttribute("aria-pressed", String(Number(button.dataset.show) === number));
  closeDossier();
  startTable();
  showBest();
}

function isDark() {
  const asked = document.documentElement.dataset.theme;
  return asked ? asked === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function startTheme() {
  const tell = () => { $("theme").textContent = isDark() ? "Light" : "Dark"; };
  // A file opened from an email may have no access to storage.
  try { document.documentElement.dataset.theme = localStorage.getItem("probekit-theme") || ""; } catch { /* not kept */ }
  if (!document.documentElement.dataset.theme) delete document.documentElement.dataset.theme;
  $("theme").addEventListener("click", () => {
    const next = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    try { localStorage.setItem("probekit-theme", next); } catch { /* not kept */ }
    tell();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tell);
  tell();
}

// The most selective unit of each class, as a starting point.
function showBest() {
  const index = model.column.get("selectivity");
  const place = $("best");
  place.replaceChildren();
  place.hidden = !index || !model.column.has("preferred_class") || !model.count;
  if (place.hidden) return;
  const best = new Map();
  for (let unit = 0; unit < model.count; unit++) {
    const label = model.preferred(unit);
    if (!(label >= 0) || Number.isNaN(index.values[unit])) continue;
    if (!best.has(label) || index.values[unit] > index.values[best.get(label)]) best.set(label, unit);
  }
  const units = [...best.values()].sort((a, b) => index.values[b] - index.values[a]).slice(0, MOST_CARDS);
  const layerNames = model.layerNames(24);
  const cards = units.map((unit) => {
    const shots = model.images(unit, 3).filter((image) => image.address).map((image) => picture(image, model));
    return el("button", { type: "button", class: "card", on: { click: () => showUnit(unit) } },
      shots.length ? el("span", { class: "pics" }, ...shots) : null,
      el("b", {}, el("bdi", { text: model.className(model.preferred(unit)) })),
      el("small", { text: `selectivity ${shown(index.values[unit])}` }),
      el("small", {}, el("bdi", { text: layerNames[model.layer[unit]] }), ` · ${model.channel[unit]}`));
  });
  const whose = models.length > 1 ? ` in ${model.name}` : "";
  const classes = best.size > MOST_CARDS ? `${MOST_CARDS} of ${best.size} classes` : "each class";
  place.append(el("h3", { text: `The most selective unit for ${classes}${whose}` }), el("div", { class: "cards" }, ...cards));
}

// Layers are a list that the arrow keys navigate; each layer links to its units.
function startLayers() {
  for (const body of document.querySelectorAll("#layers tbody")) {
    const buttons = [...body.querySelectorAll("button")];
    body.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      const next = buttons[buttons.indexOf(document.activeElement) + step];
      if (!step || !next) return;
      event.preventDefault();
      document.activeElement.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
    body.addEventListener("click", (event) => {
      const row = event.target.closest("tr[data-layer]");
      if (row) showLayer(Number(row.dataset.layer));
    });
  }
  for (const button of document.querySelectorAll("[data-goto]"))
    button.addEventListener("click", () => showLayer(model.layers.indexOf(button.dataset.goto)));
}

function showLayer(number) {
  $("query").value = "";
  $("layer").value = String(number);
  $("class").value = "";
  filter();
  $("units").scrollIntoView();
}
