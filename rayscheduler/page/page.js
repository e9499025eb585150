// The live page: asks /api/v1/status once a second and draws it.
//
// Rules of this file: whatever comes from the service is put on the page as text, never as markup (models are
// named by whoever writes the catalog). Rows are kept and only changed cells are drawn anew, so that a button
// does not vanish under a click.

const EVERY_MS = 1000;
const ROWS_MAX = 200;
const ANSWERS_WITHIN_MS = 10000;
const $ = (selector) => document.querySelector(selector);

const TONE = {
  loaded: "good", RUNNING: "good", grant: "good", start: "good",
  loading: "warn", PENDING: "warn", STARTING: "warn", DRAINING: "warn", STOPPING: "warn", stop: "warn",
  SUSPENDING: "warn", ROUSED: "warn", WAKING: "warn", sleep: "warn", wake: "good",
  sizing: "warn", backing_off: "bad", refused: "bad", unsized: "bad", reject: "bad",
};
const COMING = new Set(["PENDING", "STARTING", "ROUSED", "WAKING"]);
const LEAVING = new Set(["DRAINING", "SUSPENDING", "STOPPING"]);

// -- elements ------------------------------------------------------------------------------------

function element(tag, classes, ...children) {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const badge = (word) => element("span", `badge ${TONE[word] ?? ""}`, String(word));

// Neighbours in the catalog get colours far apart (the golden angle), and keep them.
const hues = new Map();

function coloured(made, name) {
  made.style.setProperty("--hue", hues.get(name) ?? 215);
  return made;
}

// -- numbers for people --------------------------------------------------------------------------

function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  if (bytes === 0) return "0";
  const mib = bytes / 2 ** 20;
  return mib < 1024 ? `${mib < 10 ? mib.toFixed(1) : Math.round(mib)} MiB` : `${(mib / 1024).toFixed(1)} GiB`;
}

function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} d`;
}

// -- tables --------------------------------------------------------------------------------------

// `cells` gives, for an item, [signature, class, () => children] per column; equal signatures are not redrawn.
function fill(section, items, key, cells, nothing) {
  const body = $(`${section} tbody`);
  const known = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  const shown = items.slice(0, ROWS_MAX);
  const rows = shown.map((item) => {
    const row = known.get(key(item)) ?? element("tr");
    row.dataset.key = key(item);
    cells(item).forEach(([signature, classes, children], column) => {
      const cell = row.cells[column] ?? row.insertCell();
      if (cell.dataset.signature === String(signature)) return;
      cell.dataset.signature = String(signature);
      cell.className = classes;
      cell.replaceChildren(...[children()].flat());
    });
    return row;
  });
  const columns = body.parentElement.tHead.rows[0].cells.length;
  const left = items.length - shown.length;
  if (!items.length || left) {
    const cell = element("td", "", items.length ? `… and ${left} more: filter by name` : nothing);
    cell.colSpan = columns;
    rows.push(element("tr", "empty", cell));
  }
  if (rows.length !== body.rows.length || rows.some((row, index) => row !== body.rows[index])) {
    body.replaceChildren(...rows);
  }
}

const text = (value, classes = "") => [value, classes, () => String(value)];

function count(section, words) {
  $(`${section} h2 small`).textContent = words;
}

// -- parts of the page ---------------------------------------------------------------------------

function drawHead(status) {
  $("#policy").textContent = status.policy ?? "";
  const counters = Object.entries(status.counters ?? {}).map(([name, value]) =>
    element("div", "", element("dt", "", name), element("dd", "", Number(value).toLocaleString())));
  $("#counters").replaceChildren(...counters);
}

function drawDevices(status) {
  const parts = new Map();
  for (const replica of status.replicas) {
    replica.devices.forEach((device, index) => {
      if (!parts.has(device)) parts.set(device, []);
      parts.get(device).push([replica, replica.device_bytes[index]]);
    });
  }
  const nodes = status.nodes.map((node) => drawNode(node, parts));
  $("#devices .nodes").replaceChildren(...(nodes.length ? nodes : [element("p", "empty", "no node has joined yet")]));
  const devices = status.nodes.flatMap((node) => node.devices);
  const sum = (name) => devices.reduce((total, device) => total + (device[name] ?? 0), 0);
  count("#devices", devices.length
    ? `${size(sum("reserved_bytes"))} of ${size(sum("capacity_bytes"))} reserved on ${devices.length}` : "");
}

function drawNode(node, parts) {
  const host = node.host_memory?.reserved_bytes ? `${size(node.host_memory.reserved_bytes)} of its memory reserved` : null;
  const facts = [node.backend, node.simulated ? "simulated" : null, `${node.cpus} cpus`, host].filter(Boolean).join(" · ");
  const title = element("h3", "", node.name, element("span", "", node.alive ? facts : "away"));
  const mend = node.mend ? element("p", "mend", node.mend) : null;
  const devices = node.devices.map((device) => drawDevice(device, parts.get(device.id) ?? []));
  return element("div", node.alive ? "node" : "node away", title, mend, ...devices);
}

function drawDevice(device, held) {
  const share = (bytes) => (100 * bytes) / Math.max(1, device.capacity_bytes);
  const bar = element("div", "bar");
  for (const [replica, bytes] of held) {
    const away = LEAVING.has(replica.state) || replica.state === "ASLEEP";
    const state = COMING.has(replica.state) ? " coming" : away ? " leaving" : "";
    const narrow = share(bytes) < 12;
    const part = coloured(element("div", `part${state}${narrow ? " narrow" : ""}`, narrow ? "" : replica.id), replica.model);
    part.style.width = `${share(bytes)}%`;
    part.title = `${replica.id}: ${replica.state}, ${size(bytes)} reserved`;
    bar.append(part);
  }
  if (device.used_by_others_bytes > 0) {
    const part = element("div", "part others narrow");
    part.style.width = `${share(device.used_by_others_bytes)}%`;
    part.title = `${size(device.used_by_others_bytes)} used by other programs`;
    bar.append(part);
  }
  if (device.measured_bytes > 0) {
    const mark = element("div", "mark");
    mark.style.width = `${Math.min(100, share(device.measured_bytes))}%`;
    bar.append(mark);
  }
  const foreign = device.foreign ?? [];
  const others = foreign.length ? element("p", "foreign", `other programs: ${foreign.map(program).join(", ")}`) : null;
  const name = element("span", "", element("b", "", device.id), device.type ? ` ${device.type}` : "",
    device.offered === false ? " – lost" : "");
  const figures = `${size(device.reserved_bytes)} of ${size(device.capacity_bytes)}, ${size(device.free_bytes)} free`;
  bar.title = device.measured_bytes ? `${size(device.measured_bytes)} measured` : "";
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", `${device.id}: ${figures}`);
  return element("div", "device", element("div", "what", name, element("span", "", figures)), bar, others);
}

function program(process) {
  const whose = [process.user, process.left_by ? `left by ${process.left_by}` : null].filter(Boolean).join(", ");
  return `${process.name ?? "?"} (pid ${process.pid}${whose ? `, ${whose}` : ""}) ${size(process.held_bytes)}`;
}

function drawModels(models) {
  const order = { loaded: 0, loading: 1, sizing: 1, asleep: 2, backing_off: 2, refused: 2, unsized: 2, unloaded: 3 };
  const sorted = [...models].sort((a, b) => (order[a.state] ?? 4) - (order[b.state] ?? 4) || a.name.localeCompare(b.name));
  count("#models", `${models.filter((model) => model.state === "loaded").length} of ${models.length} loaded`);
  fill("#models", sorted, (model) => model.name, (model) => {
    const aliases = model.aliases.length ? ` ${model.aliases.join(", ")}` : "";
    const trouble = ["backing_off", "refused", "unsized"].includes(model.state) && model.last_error ? model.last_error : "";
    const figure = model.memory?.by_count?.[0];
    return [
      [`${model.name}${aliases}${trouble}`, "name", () => [
        coloured(element("span", "dot"), model.name), model.name, element("small", "", aliases),
        ...(trouble ? [element("span", "problem", trouble)] : [])]],
      [`${model.state}${model.pinned}`, "", () => [badge(model.state), model.pinned ? " pinned" : ""]],
      text(model.engine ?? "–"),
      memoryCell(size(model.memory_bytes), figure ? `as ${figure.source}` : ""),
      memoryCell(size(figure?.estimated_bytes), parts(figure?.parts_bytes)),
      memoryCell(size(figure?.measured_bytes), figure?.measured_bytes && !figure.exercised ? "seen idle only" : ""),
      text(model.replicas.length, "num"),
      text(model.waiting, "num"),
      [`${model.state}${model.pinned}`, "acts", () => [
        act(model.name, "load", ["loaded", "loading", "refused", "unsized"].includes(model.state)),
        act(model.name, "unload", ["unloaded", "refused", "unsized"].includes(model.state)),
        act(model.name, model.pinned ? "unpin" : "pin", false)]],
    ];
  }, "the catalog is empty");
}

// A size, and under the pointer where it comes from.
const memoryCell = (shown, why) => [`${shown}${why}`, "num", () => {
  const cell = element("span", "", shown);
  cell.title = why;
  return cell;
}];

function parts(sizes) {
  return Object.entries(sizes ?? {}).sort((a, b) => b[1] - a[1])
    .map(([name, bytes]) => `${name.replaceAll("_", " ")} ${size(bytes)}`).join(", ");
}

function act(model, verb, disabled) {
  const button = element("button", "", verb);
  button.type = "button";
  button.disabled = disabled;
  button.setAttribute("aria-label", `${verb} ${model}`);
  button.addEventListener("click", () => send(model, verb, button));
  return button;
}

function drawReplicas(replicas) {
  count("#replicas", String(replicas.length));
  fill("#replicas", replicas, (replica) => replica.id, (replica) => {
    const where = replica.devices.length ? replica.devices.join(", ") : replica.nodes.join(", ");
    const asleep = replica.state === "ASLEEP";
    const reserved = replica.device_bytes.reduce((sum, bytes) => sum + bytes, asleep ? 0 : replica.host_bytes ?? 0);
    const way = replica.makes_way_for ? ` makes way for ${replica.makes_way_for}`
      : asleep ? ` ${size(replica.host_bytes)} in host memory` : "";
    const adapters = replica.adapters.length ? ` with ${replica.adapters.join(", ")}` : "";
    return [
      [replica.id, "name", () => [coloured(element("span", "dot"), replica.model), replica.id]],
      [`${replica.state}${way}${adapters}`, "", () => [badge(replica.state), element("small", "", way + adapters)]],
      text(where),
      text(size(reserved), "num"),
      text(size(replica.measured_bytes), "num"),
      text(replica.leases, "num"),
      text(span(replica.since_s), "num"),
      text(span(replica.idle_s), "num"),
    ];
  }, "nothing is loaded");
}

function drawQueue(queue) {
  count("#queue", queue.length ? `${queue.length} waiting` : "");
  fill("#queue", queue, (waiting) => waiting.request, (waiting) => [
    text(waiting.position, "num"), text(waiting.model, "name"), text(waiting.request, "name"),
    text(waiting.priority, "num"), text(span(waiting.waited_s), "num"),
  ], "nobody waits");
}

// A busy service grants hundreds of leases a second: those on one replica in a row are one line.
function together(decisions) {
  const lines = [];
  for (const made of decisions) {
    const last = lines.at(-1);
    if (made.decision === "grant" && last?.decision === "grant" && last.replica === made.replica) last.times += 1;
    else lines.push({ ...made, times: 1 });
  }
  return lines;
}

function drawDecisions(decisions) {
  const items = together(decisions).slice(0, ROWS_MAX).map((decision) => {
    const at = new Date(decision.at * 1000);
    const time = element("time", "", at.toLocaleTimeString());
    time.dateTime = at.toISOString();
    const many = decision.times > 1;
    const subject = [decision.replica, many ? `${decision.times} requests` : decision.request].filter(Boolean).join(" ← ");
    const what = element("span", "", subject, element("span", "why", many ? "" : decision.why ?? ""));
    return element("li", "", time, badge(decision.decision), what);
  });
  $("#decisions ol").replaceChildren(...(items.length ? items : [element("li", "empty", "none yet")]));
}

// -- talking to the service ----------------------------------------------------------------------

let shown = null; // what the page was drawn from
let decisions = [];

// The key stays in this tab: it is gone when the tab is, and sent nowhere but to where the page came from.
async function ask(path, options) {
  const key = sessionStorage.getItem("key");
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch(path, { ...options, headers, signal: AbortSignal.timeout(ANSWERS_WITHIN_MS) });
  const said = await answer.json().catch(() => ({}));
  $("#key").hidden = answer.status !== 401;
  if (!answer.ok) throw new Error(said.error?.message ?? `${path} answers with ${answer.status}`);
  return said;
}

async function send(model, verb, button) {
  button.disabled = true;
  const path = model.split("/").map(encodeURIComponent).join("/");
  try {
    tell((await ask(`/api/v1/models/${path}/${verb}`, { method: "POST" })).message ?? "done", false);
  } catch (error) {
    tell(error.message, true);
  }
  button.disabled = false;
}

let silence;
function tell(words, bad) {
  $("#told").textContent = words;
  $("#told").className = bad ? "bad" : "";
  $("#told").hidden = false;
  clearTimeout(silence);
  silence = setTimeout(() => { $("#told").hidden = true; }, 6000);
}

function draw() {
  if (!shown) return;
  const wanted = $("#filter").value.trim().toLowerCase();
  const holds = (...words) => !wanted || words.some((word) => String(word ?? "").toLowerCase().includes(wanted));
  shown.models.forEach((model, index) => hues.set(model.name, (215 + index * 137.508) % 360));
  drawHead(shown);
  drawDevices(shown);
  drawModels(shown.models.filter((model) => holds(model.name, model.engine, model.state, ...model.aliases)));
  drawReplicas(shown.replicas.filter((replica) => holds(replica.id, replica.state, ...replica.devices, ...replica.nodes)));
  drawQueue(shown.queue.filter((waiting) => holds(waiting.model, waiting.request)));
  drawDecisions(decisions.filter((made) => holds(made.model, made.replica, made.request, made.decision)));
}

async function look() {
  try {
    const status = await ask("/api/v1/status");
    if (status.serial !== shown?.serial || !decisions.length) decisions = await ask("/api/v1/decisions?limit=300");
    shown = status;
    draw();
    say("live", "good", "");
  } catch (error) {
    say("no answer", "bad", `${error.message} ${shown ? "What you see is the last that was known." : ""}`);
  }
}

function say(word, tone, problem) {
  $("#live").textContent = word;
  $("#live").className = `live ${tone}`;
  $("#problem").textContent = problem;
  $("#problem").hidden = !problem;
}

async function keepLooking() {
  if (!document.hidden) await look();
  setTimeout(keepLooking, EVERY_MS);
}

// -- light and dark ------------------------------------------------------------------------------

const root = document.documentElement;
const remembered = localStorage.getItem("theme");
if (remembered) root.dataset.theme = remembered;
$("#theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
});
$("#filter").addEventListener("input", draw);
$("#key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("#key input").value.trim());
  $("#key input").value = "";
  look();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
keepLooking();
