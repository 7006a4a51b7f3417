// The table of units: only visible rows are elements, so that 10,000 units scroll smoothly.

const ROW = 36;
const AHEAD = 8;
const PRINTED = 60;
const LEAST = 760;
const table = { columns: [], hidden: new Set(), order: [], sort: null, descending: true, at: 0, rows: new Map(), frame: 0, all: false };

function startTable() {
  table.hidden = new Set(model.columns.filter((column) => !column.shown).map((column) => column.name));
  $("layer").replaceChildren(el("option", { value: "", text: "all" }), ...model.layers.map((name, number) => el("option", { value: number, text: name })));
  const labels = [...new Set(model.column.get("preferred_class")?.values ?? [])].filter((label) => label >= 0).sort((a, b) => a - b);
  $("class").replaceChildren(el("option", { value: "", text: "all" }), ...labels.map((label) => el("option", { value: label, text: model.className(label) })));
  $("class").parentElement.hidden = !labels.length;
  $("dead").parentElement.hidden = !model.column.has("dead");
  $("columns").replaceChildren(...model.columns.map((column) => el("label", { title: column.about },
    el("input", { type: "checkbox", checked: !table.hidden.has(column.name), on: { change: () => toggle(column.name) } }), column.label)));
  const first = model.column.get("selectivity") ?? model.columns.find((column) => column.shown && column.kind !== "class");
  Object.assign(table, { sort: first ? first.name : "layer", descending: Boolean(first), at: 0 });
  arrange();
  filter();
}

function toggle(name) {
  if (!table.hidden.delete(name)) table.hidden.add(name);
  arrange();
  render(true);
}

function arrange() {
  const narrow = innerWidth < 720;
  const layerNames = model.layerNames(narrow ? 13 : 23);
  const fixed = [
    { name: "layer", label: "layer", width: narrow ? 108 : 190, text: true, value: (unit) => model.layer[unit], cell: (unit) => [el("bdi", { text: layerNames[model.layer[unit]] })] },
    { name: "channel", label: narrow ? "unit" : "channel", width: narrow ? 40 : 84, right: true, value: (unit) => model.channel[unit], cell: (unit) => [String(model.channel[unit])] },
  ];
  const pictured = Object.keys(images).length && model.top;
  if (pictured) fixed.push({ name: "images", label: narrow ? "" : "best images", width: narrow ? 40 : 132, cell: (unit) => strip(unit, narrow ? 1 : 4) });
  const range = model.column.has("selectivity_low") && model.column.has("selectivity_high");
  const measured = model.columns.filter((column) => !table.hidden.has(column.name)).map((column) => ({
    ...column,
    label: narrow && column.kind === "class" ? "class" : column.label,
    width: narrow && ["share", "class"].includes(column.kind) ? (column.kind === "share" ? 96 : 74) : ["share", "class"].includes(column.kind) ? 156 : Math.max(104, 7 * column.label.length + 34),
    right: column.kind === "number" || column.kind === "count",
    value: column.kind === "class" ? (unit) => model.className(column.values[unit]) : (unit) => column.values[unit],
    cell: (unit) => cell(column, unit, range && column.name === "selectivity", narrow),
  }));
  table.columns = [...fixed, ...measured];
  const heads = table.columns.map((column) => {
    const button = column.value ? el("button", { type: "button", text: column.label, on: { click: () => sortBy(column.name) } }) : column.label;
    return el("th", { scope: "col", role: "columnheader", title: column.about || column.label, class: column.right && "right", "data-name": column.name }, button);
  });
  for (const [number, column] of table.columns.entries()) heads[number].style.width = `${column.width}px`;
  $("head").replaceChildren(...heads);
  $("table").style.minWidth = `${table.columns.reduce((sum, column) => sum + column.width, 0)}px`;
  $("table").setAttribute("aria-colcount", table.columns.length);
  tellSort();
}

function strip(unit, most) {
  const shots = model.images(unit, most).filter((image) => image.address);
  return [el("span", { class: "strip" }, ...shots.map((image) => picture(image, model)))];
}

function cell(column, unit, range, narrow) {
  const value = column.values[unit];
  if (column.kind === "class") return [el("bdi", { text: model.className(value) })];
  if (narrow || column.kind !== "share" || Number.isNaN(value)) return [shown(value, column.kind)];
  const percent = (share) => `${100 * Math.min(Math.max(share, 0), 1)}%`;
  const amount = el("span", { class: "amount" });
  amount.style.width = percent(value);
  const track = el("span", { class: "track" }, amount);
  if (range) {
    const [low, high] = ["selectivity_low", "selectivity_high"].map((name) => model.value(name, unit));
    const line = el("span", { class: "range" });
    line.style.left = percent(low);
    line.style.width = percent(high - low);
    if (high >= low) track.append(line);
  }
  return [el("span", { class: "gauge" }, el("span", { class: "figure", text: shown(value) }), track)];
}

// A filter: words match layer or class names, #17 matches a channel, name>0.5 compares a column.
function matcher(text) {
  const plain = (name) => name.toLowerCase().replace(/[\s_]/g, "");
  const tests = text.trim().toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
    if (/^#\d+$/.test(word)) return (unit) => model.channel[unit] === Number(word.slice(1));
    const compared = /^([^<>=]+)(<=|>=|<|>|=)([-+]?[\d.]+(?:e[-+]?\d+)?)$/.exec(word);
    const column = compared && model.columns.find((one) => plain(one.label).startsWith(plain(compared[1])) || plain(one.name).startsWith(plain(compared[1])));
    if (column) {
      const limit = Number(compared[3]);
      const test = { "<": (x) => x < limit, ">": (x) => x > limit, "<=": (x) => x <= limit, ">=": (x) => x >= limit, "=": (x) => Math.abs(x - limit) < 5e-4 }[compared[2]];
      return (unit) => test(column.values[unit]);
    }
    const layers = model.layers.map((name) => name.toLowerCase().includes(word));
    const labels = new Set([...model.classes].filter(([, name]) => name.toLowerCase().includes(word)).map(([label]) => label));
    return (unit) => layers[model.layer[unit]] || labels.has(model.preferred(unit));
  });
  return (unit) => tests.every((test) => test(unit));
}

function filter() {
  const matches = matcher($("query").value);
  const [layer, label] = [$("layer").value, $("class").value];
  const alive = $("dead").checked && model.column.has("dead");
  const kept = [];
  for (let unit = 0; unit < model.count; unit++) {
    if (layer !== "" && model.layer[unit] !== Number(layer)) continue;
    if (label !== "" && model.preferred(unit) !== Number(label)) continue;
    if (alive && model.value("dead", unit) > 0) continue;
    if (matches(unit)) kept.push(unit);
  }
  for (const row of document.querySelectorAll(`.model[data-model="${model.number}"] tr[data-layer]`))
    row.toggleAttribute("data-chosen", row.dataset.layer === layer);
  table.order = kept;
  sort();
}

function sortBy(name) {
  const column = table.columns.find((one) => one.name === name);
  const descends = column.right || column.kind === "share" || column.kind === "flag";
  table.descending = table.sort === name ? !table.descending : Boolean(descends) && name !== "channel";
  table.sort = name;
  sort();
}

function sort() {
  const column = table.columns.find((one) => one.name === table.sort) ?? table.columns[0];
  const turn = table.descending ? -1 : 1;
  const keys = new Map(table.order.map((unit) => [unit, column.value(unit)]));
  const order = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
  table.order.sort((one, other) => {
    const [a, b] = [keys.get(one), keys.get(other)];
    // Missing values come last in both sort orders.
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b) || one - other;
    return turn * order(a, b) || one - other;
  });
  table.at = Math.max(0, table.order.indexOf(dossier.unit));
  $("scroller").scrollTop = Math.max(0, table.at - 3) * ROW;
  tellSort();
  tellCount();
  render(true);
}

function tellSort() {
  for (const head of $("head").children) {
    const sorted = head.dataset.name === table.sort;
    const sortable = head.firstElementChild !== null;
    if (sortable) head.setAttribute("aria-sort", sorted ? (table.descending ? "descending" : "ascending") : "none");
  }
}

function tellCount() {
  const count = table.order.length;
  const of = count === model.count ? "" : ` of ${model.count.toLocaleString("en")}`;
  const part = table.all && count > PRINTED ? `, the first ${PRINTED} of them here` : "";
  $("count").textContent = count ? `${count.toLocaleString("en")}${of} units${part}` : "No unit matches the filter.";
  $("table").setAttribute("aria-rowcount", count + 1);
}

function makeRow(place) {
  const unit = table.order[place];
  const row = el("tr", { role: "row", tabindex: place === table.at ? 0 : -1, "aria-rowindex": place + 2, "aria-selected": String(unit === dossier.unit), "data-place": place });
  for (const column of table.columns)
    row.append(el("td", { role: "gridcell", class: column.text ? "mono" : column.right && "right", title: column.text ? model.layers[model.layer[unit]] : null }, ...column.cell(unit)));
  return row;
}

function gap() {
  return el("tr", { class: "gap", "aria-hidden": "true" }, el("td"));
}

// Rows that stay visible are not moved; gaps take the place of rows that are not visible.
function render(anew) {
  const [scroller, body] = [$("scroller"), $("body")];
  if (!table.above) body.append(table.above = gap(), table.below = gap());
  const count = table.order.length;
  const seen = Math.ceil(Math.max(scroller.clientHeight, LEAST) / ROW);
  const first = table.all ? 0 : Math.max(0, Math.min(Math.floor(scroller.scrollTop / ROW), count) - AHEAD);
  const last = Math.min(count, table.all ? PRINTED : first + seen + 2 * AHEAD);
  const focused = document.activeElement?.closest?.("#body tr");
  const height = (part, rows) => { part.firstChild.style.height = `${rows * ROW}px`; part.firstChild.colSpan = table.columns.length; };
  // The height must not decrease before the end, or the browser would scroll up.
  height(table.below, count);
  for (const [place, row] of table.rows) {
    if (!anew && place >= first && place < last) continue;
    row.remove();
    table.rows.delete(place);
  }
  let next = table.above.nextSibling;
  for (let place = first; place < last; place++) {
    const known = table.rows.get(place);
    if (known) next = known.nextSibling;
    else {
      table.rows.set(place, makeRow(place));
      body.insertBefore(table.rows.get(place), next);
    }
  }
  height(table.above, first);
  height(table.below, table.all ? 0 : count - last);
  // If the focused row is no longer visible, its container gets the focus, so that keys still work.
  if (focused && !focused.isConnected) (table.rows.get(Number(focused.dataset.place)) ?? scroller).focus({ preventScroll: true });
}

function move(place, focus) {
  table.at = Math.min(Math.max(place, 0), table.order.length - 1);
  const scroller = $("scroller");
  const head = $("head").offsetHeight;
  const top = table.at * ROW;
  const least = top + ROW + head - scroller.clientHeight;
  if (scroller.scrollTop > top) scroller.scrollTop = top;
  else if (scroller.scrollTop < least) scroller.scrollTop = least;
  render(false);
  for (const [at, row] of table.rows) row.tabIndex = at === table.at ? 0 : -1;
  if (focus) table.rows.get(table.at)?.focus({ preventScroll: true });
}

function onKey(event) {
  const page = Math.max(1, Math.floor($("scroller").clientHeight / ROW) - 2);
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
  if (event.target.closest("thead") || !table.order.length) return;
  if (event.key in steps) {
    event.preventDefault();
    move(table.at + steps[event.key], true);
    if (!$("dossier").hidden) openDossier(table.order[table.at], false);
  } else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    openDossier(table.order[table.at], true);
  }
}

function onClick(event) {
  const row = event.target.closest("tr[data-place]");
  if (!row) return;
  move(Number(row.dataset.place), true);
  openDossier(table.order[table.at], false);
}

function select(unit) {
  const place = table.order.indexOf(unit);
  if (place >= 0) move(place, false);
  for (const [at, row] of table.rows) row.setAttribute("aria-selected", String(table.order[at] === unit));
}

function saveCsv() {
  const columns = [...table.columns.filter((column) => column.value)];
  // Prevents spreadsheets from interpreting a name as a formula.
  const quoted = (text) => `"${(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replace(/"/g, '""')}"`;
  const plain = (column, unit) => {
    if (column.name === "layer") return quoted(model.layers[model.layer[unit]]);
    const value = column.value(unit);
    return typeof value === "string" ? quoted(value) : Number.isNaN(value) ? "" : String(column.kind === "count" ? value : Number(value.toPrecision(7)));
  };
  const lines = [columns.map((column) => quoted(column.name)).join(","), ...table.order.map((unit) => columns.map((column) => plain(column, unit)).join(","))];
  const address = URL.createObjectURL(new Blob([lines.join("\r\n")], { type: "text/csv" }));
  el("a", { href: address, download: "units.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

function listen() {
  const later = (run) => { let timer; return () => { clearTimeout(timer); timer = setTimeout(run, 90); }; };
  $("query").addEventListener("input", later(filter));
  for (const id of ["layer", "class", "dead"]) $(id).addEventListener("change", filter);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("csv").addEventListener("click", saveCsv);
  $("scroller").addEventListener("scroll", () => {
    if (!table.frame) table.frame = requestAnimationFrame(() => { table.frame = 0; render(false); });
  }, { passive: true });
  $("scroller").addEventListener("keydown", onKey);
  $("body").addEventListener("click", onClick);
  addEventListener("resize", later(() => render(false)));
  for (const [event, all] of [["beforeprint", true], ["afterprint", false]])
    addEventListener(event, () => { table.all = all; tellCount(); render(true); });
}
