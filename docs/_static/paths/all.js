// The page of all rules: dots that follow the paths in runs.js, and a list of the rules in the order of their values.
"use strict";

(function () {
  const { surfaces } = window.adaptkPaths;
  const { themeColours, prepared, lowest, drawSurface, drawTrail, placed } = window.adaptkDrawing;
  const { every, frames, runs } = window.adaptkRuns;
  // Paul Tol's bright colours, of the rules that are chosen; all others are grey.
  const COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee7733", "#332288"];
  const OTHERS = "#888888";

  const by = (id) => document.getElementById(id);
  const app = by("paths-app");
  let kind = "ravine";
  let shown = frames - 1;
  let chosen = ["sgd", "momentum", "adagrad", "adam"];
  let timer = null;

  // Where a rule is; it stays where it was lost.
  const at = (rule, frame) => {
    const points = runs[kind][rule].points;
    return points[Math.min(frame, points.length - 1)];
  };
  const value = (rule) => surfaces[kind].f(at(rule, shown)) - lowest(surfaces[kind]);
  const colour = (rule) => (chosen.includes(rule) ? COLOURS[chosen.indexOf(rule) % COLOURS.length] : OTHERS);

  function draw() {
    const s = surfaces[kind];
    const { context, width, height } = prepared(by("paths-surface"));
    drawSurface(context, width, height, s, themeColours(app));
    const names = Object.keys(runs[kind]);
    for (const rule of names.filter((name) => !chosen.includes(name))) {
      const [x, y] = placed(s, at(rule, shown), width, height);
      context.fillStyle = OTHERS;
      context.beginPath();
      context.arc(x, y, 3.5, 0, 2 * Math.PI);
      context.fill();
    }
    for (const rule of chosen) {
      const trail = runs[kind][rule].points.slice(0, shown + 1).map((p) => placed(s, p, width, height));
      drawTrail(context, trail, colour(rule));
      const [x, y] = trail[trail.length - 1];
      context.font = "13px system-ui, sans-serif";
      context.fillText(rule, x + 8, y - 6);
    }
    by("all-shown").textContent = `step ${shown * every}`;
    by("all-step").value = String(shown);
    app.dataset.shown = String(shown);
    const order = names.map((rule) => [rule, value(rule)]).sort((a, b) => a[1] - b[1]);
    by("all-rules").replaceChildren(
      ...order.map(([rule, f]) => {
        const button = document.createElement("button");
        button.type = "button";
        button.dataset.rule = rule;
        button.setAttribute("aria-pressed", String(chosen.includes(rule)));
        button.style.borderColor = colour(rule);
        button.dataset.value = String(f);
        // Points are written with four decimals.
        button.textContent = `${rule} ${f < 1e-7 ? "< 1e-7" : f.toExponential(1)}`;
        button.title = `learning rate ${runs[kind][rule].lr}`;
        button.addEventListener("click", () => {
          chosen = chosen.includes(rule) ? chosen.filter((name) => name !== rule) : [...chosen, rule];
          draw();
        });
        return button;
      }),
    );
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    by("all-play").textContent = "Play";
  }

  function play() {
    if (timer !== null) return stop();
    if (shown === frames - 1) shown = 0;
    by("all-play").textContent = "Pause";
    timer = setInterval(() => {
      shown += 1;
      draw();
      if (shown === frames - 1) stop();
    }, 90);
    return undefined;
  }

  for (const [name, s] of Object.entries(surfaces)) by("all-kind").add(new Option(s.label, name));
  by("all-step").max = String(frames - 1);
  by("all-kind").addEventListener("change", (event) => {
    kind = event.target.value;
    draw();
  });
  by("all-step").addEventListener("input", (event) => {
    stop();
    shown = Number(event.target.value);
    draw();
  });
  by("all-play").addEventListener("click", play);
  window.addEventListener("resize", draw);
  draw();
})();
