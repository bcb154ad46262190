"use strict";
const EVERY_MS = 10000, PATH = "/dashboard/";
const $ = id => document.getElementById(id);
const esc = text => String(text).replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);
const known = value => value !== null && value !== undefined;
let data = null, baseline = "", timer = 0;

// --- numbers, as people read them

const digits = (value, n) => value.toLocaleString("en", {maximumSignificantDigits: n});
const plain = value => Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : digits(value, 3);
const percent = (value, n) => `${(100 * value).toFixed(n)} %`.replace("-", "−");
const finely = value => percent(value, 1);
const share = value => percent(value, value && Math.abs(value) < 0.1 ? 1 : 0);
const usd = value => value > 0 && value < 0.01 ? `${digits(100 * value, 3)} ¢` : `$${value >= 1 ? value.toFixed(2) : digits(value, 3)}`;
const ms = value => value >= 10000 ? `${digits(value / 1000, 3)} s` : `${digits(value, 3)} ms`;
const seconds = value => value < 120 ? `${digits(value, 2)} s` : value < 7200 ? `${Math.round(value / 60)} min` : `${Math.round(value / 3600)} h`;
const clock = at => new Date(at).toLocaleTimeString("en-GB", {hour: "2-digit", minute: "2-digit"});
const moment = at => new Date(at).toLocaleString("en-GB");

// What the JSON has under a dotted key; names may have dots in them, too.
function within(found, key) {
  if (!known(found)) return null;
  if (Object.hasOwn(found, key)) return found[key];
  for (const name of Object.keys(found))
    if (key.startsWith(name + ".")) return within(found[name], key.slice(name.length + 1));
  return null;
}

// One figure, with the key it comes from: nothing is on the page that is not in the JSON.
function fig(key, form, none = "–") {
  const value = within(data, key);
  const text = known(value) ? form(value) : none;
  return `<span data-key="${esc(key)}" data-value="${esc(JSON.stringify(value))}">${esc(text)}</span>`;
}

function table(heads, rows, none = "None.") {
  if (!rows.length) return `<p class="muted">${none}</p>`;
  const head = heads.map(([text, kind]) => `<th scope="col" class="${kind || ""}">${esc(text)}</th>`).join("");
  const body = rows.map(row => `<tr class="${row.on ? "on" : ""}">` + row.map((cell, i) => i ? `<td class="${heads[i][1] || ""}">${cell}</td>` : `<th scope="row">${cell}</th>`).join("") + "</tr>").join("");
  return `<div class="wide" tabindex="0" role="group" aria-label="${esc(heads.map(h => h[0]).filter(Boolean).join(", "))}"><table><thead><tr>${head}</tr></thead><tbody>${body}</tbody></table></div>`;
}

// --- charts: SVG by hand, because nothing may be loaded

const W = 400, H = 150, LEFT = 46, BOTTOM = 18, TOP = 8;
const colour = i => `var(--c${i % 8})`;

function nice(most) {
  if (!(most > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 2.5, 5, 10].map(step => step * unit).find(step => step >= most);
}

function lines(at, curves, top) {
  const x = i => LEFT + (W - LEFT) * i / Math.max(1, at.length - 1);
  const y = v => TOP + (H - TOP - BOTTOM) * (1 - Math.min(1, v / top));
  return curves.map(({values, stroke, low, high}) => {
    let path = "", up = false, band = "";
    values.forEach((v, i) => { if (known(v)) { path += `${up ? "L" : "M"}${x(i).toFixed(1)} ${y(Math.max(0, v)).toFixed(1)}`; up = true; } else up = false; });
    const dots = values.map((v, i) => known(v) && !known(values[i - 1]) && !known(values[i + 1]) ? `<circle cx="${x(i).toFixed(1)}" cy="${y(Math.max(0, v)).toFixed(1)}" r="2" fill="${stroke}"/>` : "").join("");
    if (low) values.forEach((v, i) => { if (known(v)) band += `<line x1="${x(i).toFixed(1)}" x2="${x(i).toFixed(1)}" y1="${y(Math.max(0, low[i])).toFixed(1)}" y2="${y(Math.max(0, high[i])).toFixed(1)}" stroke="${stroke}" stroke-width="7" stroke-opacity=".25"/>`; });
    return `${band}<path d="${path}" fill="none" stroke="${stroke}" stroke-width="1.8" stroke-linejoin="round"/>${dots}`;
  }).join("");
}

function areas(at, curves, top) {
  const x = i => LEFT + (W - LEFT) * i / Math.max(1, at.length - 1);
  const y = v => TOP + (H - TOP - BOTTOM) * (1 - v / top);
  let below = at.map(() => 0);
  return curves.map(({values, stroke}) => {
    const above = below.map((b, i) => b + (values[i] || 0));
    const path = "M" + above.map((v, i) => `${x(i).toFixed(1)} ${y(v).toFixed(1)}`).join("L") + "L" + below.map((v, i) => `${x(i).toFixed(1)} ${y(v).toFixed(1)}`).reverse().join("L") + "Z";
    below = above;
    return `<path d="${path}" fill="${stroke}" fill-opacity=".8"/>`;
  }).join("");
}

function chart(title, unit, at, named, form, {stacked = false, most = 0} = {}) {
  const curves = named.filter(one => one.values && one.values.some(known)).map((one, i) => ({...one, stroke: colour(i)}));
  if (!curves.length) return `<figure><figcaption>${esc(title)}</figcaption><div class="empty">Nothing to show yet</div></figure>`;
  const highest = stacked ? Math.max(...at.map((_, i) => curves.reduce((sum, c) => sum + (c.values[i] || 0), 0))) : Math.max(...curves.flatMap(c => [...c.values, ...(c.high || [])].filter(known)));
  const top = most || nice(highest);
  const grid = [0, .5, 1].map(part => { const y = TOP + (H - TOP - BOTTOM) * (1 - part); return `<line class="grid" x1="${LEFT}" x2="${W}" y1="${y}" y2="${y}"/><text x="${LEFT - 5}" y="${y + 4}" text-anchor="end">${esc(form(part * top))}</text>`; }).join("");
  const ticks = [0, .25, .5, .75, 1].map(part => { const i = Math.round(part * (at.length - 1)); return `<text x="${LEFT + (W - LEFT) * part}" y="${H - 3}" text-anchor="${part === 1 ? "end" : part ? "middle" : "start"}">${clock(at[i])}</text>`; }).join("");
  const last = curves.map(c => { const v = c.values.findLast(known); return `${c.name} ${form(v)}`; });
  const key = curves.map(c => `<li><i style="background:${c.stroke}"></i>${esc(c.name)}</li>`).join("");
  const rows = at.map((t, i) => [esc(moment(t)), ...curves.map(c => known(c.values[i]) ? esc(form(c.values[i])) : "–")]).filter((_, i) => curves.some(c => known(c.values[i]))).reverse().slice(0, 60);
  return `<figure><figcaption><span>${esc(title)}</span><span class="muted">${esc(unit)}</span></figcaption><svg viewBox="0 0 ${W} ${H}" role="img" aria-label="${esc(`${title}, ${unit}; last: ${last.join(", ")}`)}">${grid}${ticks}${(stacked ? areas : lines)(at, curves, top)}</svg>${curves.length > 1 || stacked ? `<ul class="key">${key}</ul>` : ""}<details data-title="${esc(title)}"><summary>As a table</summary>${table([["time", "text"], ...curves.map(c => [c.name])], rows)}</details></figure>`;
}

// --- sections

const tile = (name, big, ...rest) => `<div class="tile"><h2>${esc(name)}</h2><div class="big">${big}</div>${rest.map(text => `<p>${text}</p>`).join("")}</div>`;
const last = name => { const found = data.history[name]; const at = found ? found.findLastIndex(known) : -1; return at < 0 ? null : `history.${name}.${at}`; };
const lastFig = (name, form, none) => { const key = last(name); return key ? fig(key, form, none) : none || "–"; };

function savings() {
  const {savings} = data;
  if (!savings.baseline) return tile("Saved", "–", "No model to compare with.");
  const pick = data.baselines.length > 1 ? `<label>against <select id="baseline">${data.baselines.map(name => `<option ${name === savings.baseline ? "selected" : ""}>${esc(name)}</option>`).join("")}</select></label> alone` : `against ${fig("savings.baseline", String)} alone`;
  if (!savings.saved_share) return tile("Saved, 24 h", "–", pick, `Not enough evidence yet: ${fig("savings.effective", plain)} requests' worth, 30 are needed.`);
  const interval = `95 %: ${fig("savings.saved_share.low", finely)} to ${fig("savings.saved_share.high", finely)}`;
  const quality = savings.baseline_quality ? `quality ${fig("savings.router.quality.mean", v => v.toFixed(3), "–")}, not ${fig("savings.baseline_quality.mean", v => v.toFixed(3))}` : "";
  return tile("Saved, 24 h", fig("savings.saved_share.mean", share), pick, interval, quality);
}

function tiles() {
  const learning = known(within(data, "status.snapshot_age_s"));
  const decided = last("latency_ms_p50") || known(within(data, "status.router.latency_ms_p50"));
  return [
    tile("Decisions", `${fig("status.router.decisions_per_s", plain, "0")} <small>a second</small>`, `${fig("status.router.refused_per_s", plain, "0")} refused a second`, `${fig("status.router.replicas", plain, "no")} replicas decide`),
    tile("Time to decide", known(within(data, "status.router.latency_ms_p50")) ? fig("status.router.latency_ms_p50", ms) : lastFig("latency_ms_p50", ms), decided ? `median; 99 %: ${known(within(data, "status.router.latency_ms_p99")) ? fig("status.router.latency_ms_p99", ms) : lastFig("latency_ms_p99", ms)}` : "nothing was decided lately", `answers took ${lastFig("answer_ms", ms)}`),
    tile("Quality", lastFig("quality", v => v.toFixed(3)), "mean of the latest reports", learning ? `learned ${fig("status.snapshot_age_s", seconds)} ago` : ""),
    tile("Cost of an answer", lastFig("cost_usd", usd), "mean of the latest reports", `${lastFig("error_share", share, "no")} of calls failed`),
    savings(),
  ].join("");
}

function alarms() {
  return data.status.alarms.map((one, i) => `<div class="alarm"><h2>${fig(`status.alarms.${i}.name`, name => name.replaceAll("_", " "))}</h2><p>${fig(`status.alarms.${i}.cause`, String)}</p><p>${esc(one.remedy)} <span class="muted">Since ${esc(moment(one.since))}.</span></p></div>`).join("");
}

function charts() {
  const h = data.history, at = h.at_unix_ms;
  const each = of => Object.entries(of || {}).map(([name, values]) => ({name, values}));
  const hours = data.savings_by_hour;
  const saved = {name: "saved", values: hours.map(o => o.saved_share && o.saved_share.mean), low: hours.map(o => o.saved_share && o.saved_share.low), high: hours.map(o => o.saved_share && o.saved_share.high)};
  return [
    chart("Traffic", "requests a second", at, [{name: "decided", values: h.decisions_per_s}, {name: "refused", values: h.refused_per_s}], plain),
    chart("Who answers", "decisions a second", at, each(h.models_per_s), plain, {stacked: true}),
    chart("Time to decide", "milliseconds", at, [{name: "median", values: h.latency_ms_p50}, {name: "99 %", values: h.latency_ms_p99}], plain),
    chart("Quality", "mean, 0 to 1", at, [{name: "quality", values: h.quality}], v => v.toFixed(2), {most: 1}),
    chart("Cost of an answer", "US dollars", at, [{name: "cost", values: h.cost_usd}], usd),
    chart("Saved", `against ${data.savings.baseline || "nobody"} alone, 95 %`, hours.map(o => o.at_unix_ms), [saved], share),
    chart("Price of capacity", "1: what it costs to have", at, each(h.price), plain),
    chart("Replicas", "of each pool", at, each(h.replicas), plain, {stacked: true}),
    chart("Feedback not learned yet", "seconds behind", at, [{name: "behind", values: h.lag_s}], plain),
  ].join("");
}

function models() {
  const router = data.status.router;
  if (!router) return "<p class=\"muted\">No decision yet.</p>";
  const all = router.mix.reduce((sum, one) => sum + one.decisions, 0) || 1;
  const rows = router.mix.map((one, i) => ({one, i})).sort((a, b) => b.one.decisions - a.one.decisions).map(({one, i}) => [
    esc(one.model), esc(one.pool), fig(`status.router.mix.${i}.decisions_per_s`, plain), fig(`status.router.mix.${i}.decisions`, plain),
    `${share(one.decisions / all)}<span class="bar" style="width:${(60 * one.decisions / all).toFixed(0)}px"></span>`, fig(`status.router.mix.${i}.explored`, plain)]);
  return table([["model"], ["pool", "text"], ["a second"], ["in all"], ["share"], ["to explore"]], rows);
}

function pools() {
  const rows = Object.entries(data.status.pools).map(([name, one]) => {
    const key = `status.pools.${name}`, price = data.status.prices[name];
    const states = Object.entries(one.replicas).map(([state, n]) => `${n} ${state}`).join(", ") || "none";
    return [esc(name), esc(states), fig(`${key}.queued`, plain), fig(`${key}.running`, plain), fig(`${key}.ttft_ms.p50`, ms), fig(`${key}.ttft_ms.p99`, ms), price ? fig(`status.prices.${name}.load`, share) : "–", price ? fig(`status.prices.${name}.multiple`, plain) : "–"];
  });
  return rows.length ? table([["pool"], ["replicas", "text"], ["waiting"], ["running"], ["first token"], ["99 %"], ["load"], ["price"]], rows) : "";
}

function feedback() {
  const one = (name, key, form = plain) => [esc(name), fig(key, form)];
  const dead = Object.keys(data.status.dead_letter).map(name => one(`set aside: ${name.replaceAll("_", " ")}`, `status.dead_letter.${name}`));
  const decided = Object.values(data.status.decided).reduce((a, b) => a + b, 0), open = Object.values(data.status.unanswered).reduce((a, b) => a + b, 0);
  const rows = [one("records read", "status.records"), one("learned", "status.learned"), one("repeated", "status.duplicate"), ...dead, one("lost by the log", "status.skipped"), one("waiting", "status.lag_records"), one("behind by", "status.lag_s", seconds)];
  if (decided) rows.push(["decisions without feedback", share(open / decided)]);
  return table([["what"], ["records"]], rows);
}

function budgets() {
  const rows = Object.entries(data.status.budgets).map(([name, one]) => [esc(name), `${plain(one.spent)} of ${fig(`status.budgets.${name}.amount`, plain)} ${esc(one.unit)} a ${esc(one.per)}`, fig(`status.budgets.${name}.refused`, plain), esc(clock(one.renewed_at_unix_ms))]);
  return table([["budget"], ["spent", "text"], ["refused"], ["renewed"]], rows, "No budget is set.");
}

function drift() {
  const rows = data.status.changes.map((one, i) => [esc(one.model), fig(`status.changes.${i}.target`, String) + (one.by_load ? ", its pools being full" : ""), fig(`status.changes.${i}.shift`, v => `${v > 0 ? "+" : ""}${plain(v)} σ`), esc(moment(one.since_ms))]);
  return table([["model"], ["what", "text"], ["by"], ["since"]], rows, "None: every model is as it was.");
}

// --- the explorer

function candidates(rows) {
  return table([["model"], ["pool", "text"], ["probability"], ["utility"], ["quality"], ["cost"], ["time"], ["why", "why"]], rows.map(one => {
    const p = one.propensity;
    const row = [esc(one.model) + (one.chosen ? " ✓" : ""), esc(one.pool || "–"), `${share(p)}<span class="bar" style="width:${(60 * p).toFixed(0)}px"></span>`, known(one.utility) ? digits(one.utility, 3) : "–", known(one.quality) ? one.quality.toFixed(3) : "–", known(one.cost_usd) ? usd(one.cost_usd) : "–", known(one.latency_ms) ? ms(one.latency_ms) : "–", esc(one.reason || "")];
    row.on = one.chosen;
    return row;
  }));
}

function explained(one) {
  const weights = Object.entries(one.preference || {}).map(([name, value]) => `${name} ${digits(value, 4)}`).join(", ");
  const prices = Object.entries(one.prices).map(([name, value]) => `${esc(name)} ${digits(value, 3)}`).join(", ");
  const near = table([["who answered"], ["similarity"], ["quality"], ["when", "text"]], one.neighbours.map(n => [esc(n.model), n.similarity.toFixed(3), n.quality.toFixed(3), esc(moment(n.decided_at_unix_ms))]), "No outcome is known yet.");
  return `<div class="card"><h3>Decision ${esc(one.decision_id)}</h3><p>${esc(moment(one.decided_at_unix_ms))}, ${one.tenant ? `tenant ${esc(one.tenant)}` : "no tenant"}, snapshot ${esc(one.snapshot_version)}, policy ${esc(one.policy)}; weights: ${esc(weights)}</p>${candidates(one.models)}<h3>Nearest outcomes known now</h3>${near}<p class="muted">Price of capacity now, 1 being what it costs to have: ${prices || "none is scarce"}.</p></div>`;
}

function logged(one) {
  const rows = Object.entries(one.propensities).sort((a, b) => b[1] - a[1]).map(([model, p]) => model === one.model ? {...one, chosen: true} : {model, propensity: p, chosen: false});
  return `<div class="card"><h3>Decision ${esc(one.decision_id)}</h3><p>${esc(moment(one.decided_at_unix_ms))}, ${one.tenant ? `tenant ${esc(one.tenant)}` : "no tenant"}, snapshot ${esc(one.snapshot_version)}, ${esc(one.policy)}</p>${candidates(rows)}<p class="muted">The log has estimates of the chosen model alone; the decision's ticket has those of all.</p></div>`;
}

async function explain(event) {
  event.preventDefault();
  try { $("one").innerHTML = explained(await get("decision.json?ticket=" + encodeURIComponent($("ticket").value.trim()))); }
  catch (error) { $("one").innerHTML = `<p class="alarm">${esc(error.message)}</p>`; }
}

let rows = [];
async function recent() {
  rows = (await get("decisions.json?n=20")).decisions;
  $("recent").innerHTML = table([["when"], ["model", "text"], ["pool", "text"], ["probability"], ["quality"], ["cost"], ["tenant", "text"], ["", "text"]], rows.map((one, i) => [esc(new Date(one.decided_at_unix_ms).toLocaleTimeString("en-GB")), esc(one.model), esc(one.pool), share(one.propensity), one.quality.toFixed(3), usd(one.cost_usd), esc(one.tenant || "–"), `<button data-row="${i}" aria-label="Look at decision ${i + 1}">Look</button>`]), "None is logged.");
}
$("recent").addEventListener("click", event => { const i = event.target.dataset.row; if (i !== undefined) { $("one").innerHTML = logged(rows[i]); $("one").scrollIntoView({block: "nearest"}); } });

// --- reading

async function get(what) {
  const secret = sessionStorage.getItem("fairlead-token");
  const reply = await fetch(PATH + what, {headers: secret ? {authorization: `Bearer ${secret}`} : {}, cache: "no-store"});
  const found = await reply.json().catch(() => ({}));
  if (reply.ok) return found;
  const error = new Error(found.error ? found.error.message : `HTTP ${reply.status}`);
  error.status = reply.status;
  throw error;
}

function show() {
  const open = new Set([...document.querySelectorAll("details[open]")].map(one => one.dataset.title)), focus = document.activeElement && document.activeElement.id;
  const n = data.status.alarms.length;
  $("state").className = "pill " + (n ? "bad" : "good");
  $("state").textContent = n ? `${n} ${n === 1 ? "alarm" : "alarms"}` : "All well";
  $("stamp").textContent = `${moment(data.at_unix_ms)} · version ${data.version}`;
  for (const [id, what] of Object.entries({alarms, tiles, charts, models, pools, feedback, budgets, drift})) $(id).innerHTML = what();
  document.querySelectorAll("details").forEach(one => { one.open = open.has(one.dataset.title); });
  if (focus && $(focus) && document.activeElement !== $(focus)) $(focus).focus();
  $("token").hidden = true; $("all").hidden = false;
}

$("tiles").addEventListener("change", event => { baseline = event.target.value; refresh(); });
$("ask").addEventListener("submit", explain);
$("token").addEventListener("submit", event => { event.preventDefault(); sessionStorage.setItem("fairlead-token", $("secret").value.trim()); $("secret").value = ""; refresh(); });

async function refresh() {
  clearTimeout(timer);
  try {
    data = await get("now.json" + (baseline ? "?baseline=" + encodeURIComponent(baseline) : ""));
    show();
    requestAnimationFrame(() => setTimeout(() => { if (!document.documentElement.dataset.paintedMs) document.documentElement.dataset.paintedMs = performance.now().toFixed(1); }));
    await recent();
    timer = setTimeout(refresh, EVERY_MS);
  } catch (error) {
    if (error.status === 401 || error.status === 403) { $("state").className = "pill"; $("state").textContent = "Locked"; $("all").hidden = true; $("token").hidden = false; $("refused").textContent = sessionStorage.getItem("fairlead-token") ? error.message : ""; sessionStorage.removeItem("fairlead-token"); $("secret").focus(); return; }
    $("state").className = "pill bad"; $("state").textContent = "Out of reach";
    $("stamp").textContent = `${data ? `Figures of ${moment(data.at_unix_ms)}; ` : ""}${error.message}`;
    timer = setTimeout(refresh, EVERY_MS);
  }
}
refresh();
