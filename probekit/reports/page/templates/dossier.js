// The dossier of a unit: its class means, top images, sensitivity to perturbations, and values.

const MOST_BARS = 20;
const dossier = { unit: -1 };

function openDossier(unit, focus) {
  const place = $("dossier");
  dossier.unit = unit;
  const layer = model.layers[model.layer[unit]];
  const parts = [
    el("div", { class: "top" },
      el("button", { type: "button", class: "quiet", text: "↑ Previous", on: { click: () => step(-1) } }),
      el("button", { type: "button", class: "quiet", text: "↓ Next", on: { click: () => step(1) } }),
      el("span"),
      el("button", { type: "button", class: "quiet", text: "Close", on: { click: () => closeDossier(true) } })),
    el("p", { class: "where" }, el("bdi", { text: models.length > 1 ? `${model.name}: ${layer}` : layer })),
    el("h2", { text: `Unit ${model.channel[unit]}` }),
    sentence(unit), tuning(unit), photos(unit), spread(unit), ...perturbed(unit), values(unit)];
  place.replaceChildren(...parts.filter(Boolean));
  place.setAttribute("aria-label", `Dossier of unit ${model.channel[unit]} of ${layer}`);
  place.hidden = false;
  place.scrollTop = 0;
  document.body.classList.add("open");
  select(unit);
  remember(`#unit=${model.number}.${model.layer[unit]}.${model.channel[unit]}`);
  if (focus) place.focus();
}

function closeDossier(refocus) {
  $("dossier").hidden = true;
  dossier.unit = -1;
  document.body.classList.remove("open");
  remember(" ");
  for (const row of table.rows.values()) row.setAttribute("aria-selected", "false");
  if (refocus) move(table.at, true);
}

function step(by) {
  move(table.at + by, false);
  const again = by < 0 ? 0 : 1;
  openDossier(table.order[table.at], false);
  $("dossier").querySelectorAll("button")[again].focus();
}

function remember(hash) {
  try { history.replaceState(null, "", hash.trim() || location.pathname + location.search); } catch { /* not allowed in some viewers */ }
}

function showUnit(unit) {
  if (!table.order.includes(unit)) {
    $("query").value = $("layer").value = $("class").value = "";
    $("dead").checked = false;
    filter();
  }
  openDossier(unit, true);
}

function sentence(unit) {
  const index = model.value("selectivity", unit);
  const summary = el("p", { class: "summary" });
  const label = model.preferred(unit);
  if (label >= 0) summary.append("Responds most to ", el("b", {}, el("bdi", { text: model.className(label) })), ". ");
  else if (label < 0) summary.append("Dead: it responds to no class. ");
  if (Number.isFinite(index)) {
    const [low, high] = ["selectivity_low", "selectivity_high"].map((name) => model.value(name, unit));
    let place = 1;
    let count = 0;
    for (let other = 0; other < model.count; other++) {
      if (model.layer[other] !== model.layer[unit]) continue;
      count += 1;
      if (model.value("selectivity", other) > index) place += 1;
    }
    summary.append(`Selectivity ${shown(index)}`, Number.isFinite(low) ? ` (interval ${shown(low)} to ${shown(high)})` : "", `, number ${place} of ${count} in its layer.`);
  }
  return summary;
}

function part(title, detail, ...content) {
  return el("section", {}, el("h3", { text: title }, detail ? el("small", { text: detail }) : null), ...content);
}

// Bars from zero; bars of negative values extend to the left.
function bars(rows, first) {
  const high = Math.max(0, ...rows.map((row) => row.value));
  const low = Math.min(0, ...rows.map((row) => row.value));
  const [left, width, height] = [128, 222, 19];
  const at = (value) => left + ((value - low) / (high - low || 1)) * width;
  const parts = rows.flatMap((row, number) => {
    const y = number * height;
    const kind = row.value < 0 ? "bar below" : number === 0 && first ? "bar first" : "bar";
    return [
      svg("text", { x: left - 10, y: y + 13, "text-anchor": "end", class: row.soft ? "soft" : "" }, svg("title", { text: row.name }), short(row.name, 19)),
      svg("rect", { class: kind, x: Math.min(at(0), at(row.value)), y: y + 3, width: Math.max(Math.abs(at(row.value) - at(0)), 0.5), height: height - 6, rx: 1.5 }),
      svg("text", { x: 406, y: y + 13, "text-anchor": "end", class: "soft", text: shown(row.value) }),
    ];
  });
  return svg("svg", { viewBox: `0 0 408 ${rows.length * height}`, role: "img", "aria-label": rows.map((row) => `${row.name} ${shown(row.value)}`).join(", ") },
    svg("line", { class: "rule", x1: at(0), x2: at(0), y1: 0, y2: rows.length * height }), ...parts);
}

function tuning(unit) {
  const found = model.tuning;
  if (!found || Number.isNaN(found.mean[unit * found.count])) return null;
  const rows = [];
  for (let place = 0; place < found.count; place++) {
    const at = unit * found.count + place;
    rows.push({ name: model.className(found.label[at]), value: found.mean[at] });
  }
  const others = { name: `${found.others} others`, value: found.rest[unit], soft: true };
  const whole = () => bars(found.others ? [...rows, others] : rows, true);
  if (rows.length <= MOST_BARS + 4) return part("Tuning", "mean activation by class, highest first", whole());
  const box = el("div", {}, bars(rows.slice(0, MOST_BARS), true));
  const more = el("button", { type: "button", class: "link", text: `show ${rows.length} of ${rows.length + found.others} classes`, on: { click: () => box.replaceChildren(whole()) } });
  box.append(more);
  return part("Tuning", `mean activation by class, the ${MOST_BARS} highest`, box);
}

function photos(unit) {
  if (!model.top) return null;
  const shots = model.images(unit, model.top.count);
  if (!shots.length) return null;
  if (!shots.some((image) => image.address) && !model.top.images) return part("Best images", "", el("p", { class: "hint", text: `Not in this report. Samples: ${shots.map((image) => image.sample).join(", ")}` }));
  const preferred = model.preferred(unit);
  const items = shots.map((image) => {
    const name = image.label == null ? `sample ${image.sample}` : model.className(image.label);
    const other = image.label != null && preferred >= 0 && image.label !== preferred;
    const seen = image.address ? picture(image, model) : el("div", { class: "none", text: `sample ${image.sample}` });
    return el("li", { class: other && "other", title: `${name}, sample ${image.sample}, activation ${shown(image.activation)}` },
      el("figure", {}, seen, el("figcaption", {}, el("span", {}, el("bdi", { text: name })), el("span", { text: shown(image.activation) }))));
  });
  return part("Best images", "with label and activation", el("ul", { class: "photos" }, ...items));
}

// The activations of the top images among those of random images.
function spread(unit) {
  if (!model.drawn || !model.top) return null;
  const slice = (from) => [...from.activation.subarray(unit * from.count, (unit + 1) * from.count)];
  const [random, best] = [slice(model.drawn), slice(model.top)];
  if (!best.some(Number.isFinite)) return null;
  const every = [...random, ...best, 0].filter(Number.isFinite);
  const [low, high] = [Math.min(...every), Math.max(...every)];
  const at = (value) => 8 + ((value - low) / (high - low || 1)) * 392;
  const dots = (values, y, kind) => values.filter(Number.isFinite).map((value) => svg("circle", { class: kind, cx: at(value), cy: y, r: 4 }));
  return part("Activation", `${random.length} random images (gray) and the ${best.length} best`,
    svg("svg", { viewBox: "0 0 408 44", role: "img", "aria-label": `random images: ${random.map((value) => shown(value)).join(", ")}; best: ${best.map((value) => shown(value)).join(", ")}` },
      svg("line", { class: "rule", x1: 0, x2: 408, y1: 14, y2: 14 }), ...dots(random, 14, "dot"), ...dots(best, 14, "dot strong"),
      svg("text", { class: "soft", x: at(low), y: 38, text: shown(low) }), svg("text", { class: "soft", x: 408, y: 38, "text-anchor": "end", text: shown(high) })));
}

function perturbed(unit) {
  return model.perturbed.map((found) => {
    const usual = model.value("mean_activation", unit);
    const relative = usual > 0;
    const rows = found.names.map((name, number) => {
      const change = found.change[unit * found.names.length + number];
      return { name: name.replaceAll("_", " "), value: relative ? change / usual : change };
    }).filter((row) => Number.isFinite(row.value)).sort((a, b) => b.value - a.value);
    if (!rows.length) return null;
    const title = found.kind === "corruption" ? "Sensitivity to corruption" : "Sensitivity to attack";
    return part(title, relative ? "mean |change| over mean activation" : "mean |change| of activation", bars(rows, false));
  });
}

function values(unit) {
  const rows = model.columns.map((column) => {
    const value = column.values[unit];
    const text = column.kind === "class" ? model.className(value) : shown(value, column.kind);
    return el("div", {}, el("dt", { text: column.label, title: column.about || null }), el("dd", {}, el("bdi", { text })));
  });
  return part("Numbers", "", el("dl", { class: "values" }, ...rows));
}

function startDossier() {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("dossier").hidden) closeDossier(true);
  });
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });
  const asked = /^#unit=(\d+)\.(\d+)\.(\d+)$/.exec(location.hash);
  if (!asked || !models[asked[1]]) return;
  if (Number(asked[1]) !== model.number) choose(Number(asked[1]));
  const unit = model.layer.findIndex((layer, at) => layer === Number(asked[2]) && model.channel[at] === Number(asked[3]));
  if (unit >= 0) showUnit(unit);
}

for (const button of document.querySelectorAll("[data-show]")) button.addEventListener("click", () => choose(Number(button.dataset.show)));
const address = location.hash;
startTheme();
startLayers();
listen();
choose(0);
remember(address || " ");
startDossier();
