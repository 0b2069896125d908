// The interactive page: draws a surface, the paths of the chosen rules on it, and their values. All state is in `choice`,
// which the address after # keeps, so that a view can be linked.
"use strict";

(function () {
  const { surfaces, path, bestRate } = window.adaptkPaths;
  const { themeColours, prepared, lowest, drawSurface, drawTrail, placed } = window.adaptkDrawing;
  const registry = window.adaptkRegistry;
  const RATES = Array.from({ length: 33 }, (_, i) => 10 ** (-5 + i / 5)); // 1e-5 to about 25
  // Paul Tol's bright and muted colours, told apart without red against green.
  const COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee7733", "#332288", "#999933",
    "#882255", "#44aa99", "#cc6677", "#117733", "#ddcc77", "#88ccee", "#0077bb", "#cc3311", "#009988", "#ee3377",
    "#994455", "#6699cc", "#997700", "#ef8a62"];
  const names = Object.keys(registry);
  const START = ["sgd", "momentum", "rmsprop", "adam"];

  const by = (id) => document.getElementById(id);
  const choice = { surface: "ravine", rules: [...START], rates: {}, steps: 120, start: null };
  let shown = 0; // how many steps are drawn
  let playing = null;
  let paths = {};

  const surface = () => surfaces[choice.surface];
  const start = () => choice.start || surface().start;

  function rate(rule) {
    if (!(rule in choice.rates)) {
      choice.rates[rule] = bestRate(rule, registry[rule], surface(), start(), choice.steps, RATES);
    }
    return choice.rates[rule];
  }

  // A chosen rule keeps its colour, the first that no other chosen rule had.
  const slots = {};
  function colour(rule) {
    if (!(rule in slots)) {
      const used = new Set(Object.values(slots));
      slots[rule] = COLOURS.findIndex((_, i) => !used.has(i));
    }
    return COLOURS[slots[rule]];
  }

  function compute() {
    for (const rule of Object.keys(slots)) if (!choice.rules.includes(rule)) delete slots[rule];
    paths = {};
    for (const rule of choice.rules) {
      paths[rule] = path(rule, registry[rule], surface(), start(), choice.steps, rate(rule));
    }
  }

  const ink = () => themeColours(by("paths-app"));

  const place = (point, width, height) => placed(surface(), point, width, height);

  function drawPaths() {
    const { context, width, height } = prepared(by("paths-surface"));
    drawSurface(context, width, height, surface(), ink());
    for (const rule of choice.rules) {
      drawTrail(context, paths[rule].slice(0, shown + 1).map((p) => place(p, width, height)), colour(rule));
    }
    const [x, y] = place(start(), width, height);
    context.strokeStyle = ink().text;
    context.lineWidth = 1.5;
    context.strokeRect(x - 4, y - 4, 8, 8);
  }

  function drawValues() {
    const { context, width, height } = prepared(by("paths-values"));
    const colours = ink();
    const s = surface();
    const least = lowest(s);
    const [left, bottom, top] = [52, 26, 10];
    const curves = choice.rules.map((rule) => [rule, paths[rule].map((p) => Math.log10(s.f(p) - least + 1e-12))]);
    const all = curves.flatMap(([, v]) => v.filter(Number.isFinite));
    const high = Math.ceil(Math.min(Math.max(...all, -2), 6));
    const low = Math.floor(Math.max(Math.min(...all, high - 1), high - 14, -12));
    const px = (t) => left + ((width - left - 8) * t) / choice.steps;
    const py = (v) => top + ((height - top - bottom) * (high - Math.min(Math.max(v, low), high))) / (high - low);
    context.font = "12px system-ui, sans-serif";
    context.fillStyle = colours.text;
    context.strokeStyle = colours.line;
    context.lineWidth = 1;
    const every = Math.max(1, Math.ceil((high - low) / 5));
    for (let v = low; v <= high; v += every) {
      context.beginPath();
      context.moveTo(left, py(v));
      context.lineTo(width - 8, py(v));
      context.stroke();
      context.textAlign = "right";
      context.fillText(`1e${v}`, left - 6, py(v) + 4);
    }
    context.textAlign = "center";
    context.fillText(`step (0 to ${choice.steps})`, (left + width) / 2, height - 6);
    for (const [rule, values] of curves) {
      context.strokeStyle = colour(rule);
      context.lineWidth = 2;
      context.beginPath();
      values.slice(0, shown + 1).forEach((v, t) => (t ? context.lineTo(px(t), py(v)) : context.moveTo(px(t), py(v))));
      context.stroke();
    }
  }

  function distance(rule) {
    const s = surface();
    const p = paths[rule][Math.min(shown, paths[rule].length - 1)];
    return s.f(p) - lowest(s);
  }

  function drawTable() {
    const body = by("paths-table").tBodies[0];
    const rows = choice.rules.map((rule) => [rule, distance(rule)]).sort((a, b) => a[1] - b[1]);
    body.replaceChildren(
      ...rows.map(([rule, value]) => {
        const row = document.createElement("tr");
        row.dataset.rule = rule;
        const left = paths[rule].length < choice.steps + 1 && shown >= paths[rule].length - 1;
        const cells = [rule, rate(rule).toPrecision(2), left ? "left the plane" : value.toExponential(2)];
        cells.forEach((text, i) => {
          const cell = document.createElement("td");
          cell.textContent = text;
          if (i === 0) cell.style.borderLeft = `0.5em solid ${colour(rule)}`;
          row.append(cell);
        });
        return row;
      })
    );
  }

  function draw() {
    drawPaths();
    drawValues();
    drawTable();
    by("paths-step").textContent = `step ${shown} of ${choice.steps}`;
    by("paths-play").textContent = playing ? "Pause" : "Play";
    by("paths-app").dataset.shown = shown;
  }

  function stop() {
    if (playing) cancelAnimationFrame(playing);
    playing = null;
  }

  function play() {
    if (shown >= choice.steps) shown = 0;
    let last = 0;
    const perSecond = Math.max(20, choice.steps / 6);
    const frame = (now) => {
      const steps = last ? Math.floor(((now - last) * perSecond) / 1000) : 1;
      if (steps >= 1) {
        last = now;
        shown = Math.min(choice.steps, shown + steps);
      }
      playing = shown < choice.steps ? requestAnimationFrame(frame) : null;
      draw();
    };
    playing = requestAnimationFrame(frame);
  }

  // What changes the paths: compute them, show them whole, and put the choice into the address.
  function update() {
    stop();
    compute();
    shown = choice.steps;
    drawControls();
    draw();
    const words = new URLSearchParams({ surface: choice.surface, steps: choice.steps });
    words.set("rules", choice.rules.map((rule) => `${rule}:${rate(rule).toPrecision(3)}`).join(","));
    if (choice.start) words.set("start", choice.start.map((x) => x.toFixed(3)).join(","));
    history.replaceState(null, "", `#${words}`);
  }

  function drawControls() {
    by("paths-kind").value = choice.surface;
    by("paths-formula").textContent = surface().formula;
    by("paths-steps").value = choice.steps;
    by("paths-rules").replaceChildren(
      ...names.map((rule) => {
        const on = choice.rules.includes(rule);
        const row = document.createElement("div");
        row.className = "paths-rule";
        const label = document.createElement("label");
        const box = document.createElement("input");
        box.type = "checkbox";
        box.checked = on;
        box.name = rule;
        if (on) box.style.accentColor = colour(rule);
        box.addEventListener("change", () => {
          choice.rules = names.filter((name) => (name === rule ? box.checked : choice.rules.includes(name)));
          update();
          document.querySelector(`#paths-rules input[name="${rule}"]`).focus();
        });
        label.append(box, ` ${rule}`);
        label.title = registry[rule].summary;
        row.append(label);
        if (on) {
          const slider = document.createElement("input");
          slider.type = "range";
          slider.min = -5;
          slider.max = 1.4;
          slider.step = 0.05;
          slider.value = Math.log10(rate(rule));
          slider.name = `${rule}-lr`;
          slider.setAttribute("aria-label", `learning rate of ${rule}`);
          const number = document.createElement("output");
          number.textContent = rate(rule).toPrecision(2);
          slider.addEventListener("input", () => {
            choice.rates[rule] = 10 ** slider.value;
            number.textContent = rate(rule).toPrecision(2);
            stop();
            compute();
            shown = choice.steps;
            draw();
          });
          slider.addEventListener("change", update);
          row.append(slider, number);
        }
        return row;
      })
    );
  }

  function read() {
    const words = new URLSearchParams(location.hash.slice(1));
    if (words.get("surface") in surfaces) choice.surface = words.get("surface");
    const steps = Number(words.get("steps"));
    if (Number.isInteger(steps) && steps >= 1 && steps <= 2000) choice.steps = steps;
    const point = (words.get("start") || "").split(",").map(Number);
    if (point.length === 2 && point.every(Number.isFinite)) choice.start = point;
    if (words.has("rules")) {
      const chosen = words.get("rules").split(",").map((word) => word.split(":"));
      choice.rules = names.filter((name) => chosen.some(([rule]) => rule === name));
      for (const [rule, lr] of chosen) if (rule in registry && Number(lr) > 0) choice.rates[rule] = Number(lr);
    }
  }

  function begin() {
    for (const [key, s] of Object.entries(surfaces)) by("paths-kind").add(new Option(s.label, key));
    read();
    by("paths-kind").addEventListener("change", (event) => {
      choice.surface = event.target.value;
      choice.rates = {};
      choice.start = null;
      update();
    });
    by("paths-steps").addEventListener("change", (event) => {
      const steps = Math.round(Number(event.target.value));
      choice.steps = Math.min(2000, Math.max(1, Number.isFinite(steps) ? steps : 120));
      update();
    });
    by("paths-best").addEventListener("click", () => {
      choice.rates = {};
      update();
    });
    by("paths-play").addEventListener("click", () => {
      if (playing) stop();
      else play();
      draw();
    });
    by("paths-surface").addEventListener("click", (event) => {
      const box = event.target.getBoundingClientRect();
      const s = surface();
      choice.start = [
        s.x[0] + ((event.clientX - box.left) / box.width) * (s.x[1] - s.x[0]),
        s.y[1] - ((event.clientY - box.top) / box.height) * (s.y[1] - s.y[0]),
      ];
      update();
    });
    window.addEventListener("resize", draw);
    new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: ["data-theme"] });
    update();
  }

  begin();
})();
