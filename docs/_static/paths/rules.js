// The update rules of adaptk on points of the plane, in plain JavaScript, and the surfaces that the page draws.
//
// A rule is a function (p, g, s, t, h) that returns the new p: p is the point, g the gradient, s the states (arrays, or
// numbers for those that start as a hyperparameter), which it updates in place, t the number of the step, from 1, and h
// the hyperparameters. The formulas are those of the reference, docs/rules.md; tests/test_paths.py compares every path
// with adaptk.ops. Names, defaults and initial states come from the registry, in registry.js.
"use strict";

(function (root) {
  const map = (f, ...arrays) => arrays[0].map((_, i) => f(...arrays.map((array) => array[i])));
  const set = (target, values) => values.forEach((value, i) => (target[i] = value));
  const divisor = (r, h) => Math.sqrt(r + h.eps_in) + h.eps_out;

  function average(state, decay, values) {
    set(state, map((old, value) => decay * old + (1 - decay) * value, state, values));
  }
  const squares = (g) => g.map((x) => x * x);

  // A momentum buffer that gradients enter with the factor `rate`.
  function buffer(b, g, t, h, rate) {
    const first = t === 1 && !h.dampen_first;
    set(b, map((old, x) => (first ? rate * x : h.momentum * old + rate * (1 - h.dampening) * x), b, g));
  }

  function momentum(p, g, s, t, h) {
    buffer(s[0], g, t, h, h.velocity ? -h.lr : 1);
    return map((x, b) => (h.velocity ? x + b : x - h.lr * b), p, s[0]);
  }

  function nesterov(p, g, s, t, h) {
    buffer(s[0], g, t, h, h.velocity ? -h.lr : 1);
    return map(
      (x, d, b) => (h.velocity ? x + (h.momentum * b - h.lr * d) : x - h.lr * (d + h.momentum * b)), p, g, s[0]);
  }

  function asgd(p, g, s, t, h) {
    const eta = h.lr / (1 + h.lambd * h.lr * (t - 1)) ** h.alpha;
    const mu = 1 / Math.max(1, t - 1 - h.t0);
    const next = map((x, d) => x * (1 - h.lambd * eta) - eta * d, p, g);
    set(s[0], map((a, x) => a + (x - a) * mu, s[0], next));
    return next;
  }

  function deltaBarDelta(p, g, s, t, h) {
    const [bar, eta] = s;
    const raised = map((b, d, e) => (b * d > 0 ? e + h.kappa : b * d < 0 ? e * (1 - h.phi) : e), bar, g, eta);
    set(eta, raised.map((e) => Math.min(Math.max(e, h.eta_min), h.eta_max)));
    const next = map((x, e, d) => x - e * d, p, eta, g);
    average(bar, h.theta, g);
    return next;
  }

  function rprop(p, g, s, t, h) {
    const [previous, size] = s;
    const same = map((a, b) => a * b, previous, g);
    const changed = map((z, c) => (c > 0 ? z * h.eta_plus : c < 0 ? z * h.eta_minus : z), size, same);
    set(size, changed.map((z) => Math.min(Math.max(z, h.step_min), h.step_max)));
    const used = map((d, c) => (c < 0 ? 0 : d), g, same);
    set(previous, used);
    return map((x, d, z) => x - Math.sign(d) * z, p, used, size);
  }

  function adagrad(p, g, s, t, h) {
    set(s[0], map((r, d) => r + d * d, s[0], g));
    const rate = h.lr / (1 + (t - 1) * h.lr_decay);
    return map((x, d, r) => x - (rate * d) / divisor(r, h), p, g, s[0]);
  }

  // All forms of RMSProp: with the variance in the place of the second moment, with a momentum buffer, with both.
  function rmspropForm(centered, withMomentum) {
    return function (p, g, s, t, h) {
      average(s[0], h.rho, squares(g));
      let under = s[0];
      if (centered) {
        average(s[1], h.rho, g);
        under = map((r, m) => Math.max(r - m * m, 0), s[0], s[1]);
      }
      if (!withMomentum) return map((x, d, r) => x - (h.lr * d) / divisor(r, h), p, g, under);
      const b = s[s.length - 1];
      const rate = h.lr_inside ? h.lr : 1;
      set(b, map((old, d, r) => h.momentum * old + (rate * d) / divisor(r, h), b, g, under));
      return map((x, move) => x - (h.lr_inside ? move : h.lr * move), p, b);
    };
  }

  // Its gradient is the one at p + momentum * velocity: `gradientPoint`.
  function rmspropNesterov(p, g, s, t, h) {
    average(s[0], h.rho, squares(g));
    set(s[1], map((v, d, r) => h.momentum * v - (h.lr * d) / divisor(r, h), s[1], g, s[0]));
    return map((x, v) => x + v, p, s[1]);
  }

  function adadelta(p, g, s, t, h) {
    average(s[0], h.rho, squares(g));
    const move = map((d, u, r) => (Math.sqrt(u + h.eps) / Math.sqrt(r + h.eps)) * d, g, s[1], s[0]);
    average(s[1], h.rho, squares(move));
    return map((x, u) => x - h.lr * u, p, move);
  }

  function adamStep(p, m, v, t, h) {
    const c1 = 1 - h.beta1 ** t;
    const c2 = 1 - h.beta2 ** t;
    if (h.eps_hat) {
      const rate = (h.lr * Math.sqrt(c2)) / c1;
      return map((x, a, b) => x - (rate * a) / (Math.sqrt(b + h.eps_root * c2) + h.eps), p, m, v);
    }
    return map(
      (x, a, b) => x - ((h.lr / c1) * a) / (Math.sqrt(b + h.eps_root * c2) / Math.sqrt(c2) + h.eps), p, m, v);
  }

  function moments(g, s, h) {
    average(s[0], h.beta1, g);
    average(s[1], h.beta2, squares(g));
  }

  function adam(p, g, s, t, h) {
    moments(g, s, h);
    return adamStep(p, s[0], s[1], t, h);
  }

  function amsgrad(p, g, s, t, h) {
    moments(g, s, h);
    set(s[2], map(Math.max, s[2], s[1]));
    return adamStep(p, s[0], s[2], t, h);
  }

  function adamax(p, g, s, t, h) {
    average(s[0], h.beta1, g);
    set(s[1], map((u, d) => Math.max(h.beta2 * u, Math.abs(d) + h.eps), s[1], g));
    return map((x, m, u) => x - ((h.lr / (1 - h.beta1 ** t)) * m) / u, p, s[0], s[1]);
  }

  function nadam(p, g, s, t, h) {
    moments(g, s, h);
    const mu = (i) => h.beta1 * (1 - 0.5 * 0.96 ** (i * h.momentum_decay));
    let product = 1;
    for (let i = 1; i <= t; i++) product *= mu(i);
    const ofGradient = (h.lr * (1 - mu(t))) / (1 - product);
    const ofMoment = (h.lr * mu(t + 1)) / (1 - product * mu(t + 1));
    const c2 = Math.sqrt(1 - h.beta2 ** t);
    return map((x, d, m, v) => x - (ofGradient * d + ofMoment * m) / (Math.sqrt(v) / c2 + h.eps), p, g, s[0], s[1]);
  }

  function radam(p, g, s, t, h) {
    moments(g, s, h);
    const c1 = 1 - h.beta1 ** t;
    const c2 = 1 - h.beta2 ** t;
    const longest = 2 / (1 - h.beta2) - 1;
    const length = longest - (2 * t * h.beta2 ** t) / c2;
    if (length <= 5) return map((x, m) => x - (h.lr / c1) * m, p, s[0]);
    const r = Math.sqrt(((length - 4) * (length - 2) * longest) / ((longest - 4) * (longest - 2) * length));
    const rate = (h.lr * r * Math.sqrt(c2)) / c1;
    return map((x, m, v) => x - (rate * m) / (Math.sqrt(v) + h.eps), p, s[0], s[1]);
  }

  function lion(p, g, s, t, h) {
    const next = map((x, m, d) => x - h.lr * Math.sign(h.beta1 * m + (1 - h.beta1) * d), p, s[0], g);
    average(s[0], h.beta2, g);
    return next;
  }

  function adabelief(p, g, s, t, h) {
    average(s[0], h.beta1, g);
    set(s[1], map((v, d, m) => h.beta2 * v + (1 - h.beta2) * (d - m) ** 2 + h.eps_root, s[1], g, s[0]));
    return corrected(p, s, t, h);
  }

  function yogi(p, g, s, t, h) {
    average(s[0], h.beta1, g);
    set(s[1], map((v, d) => v - (1 - h.beta2) * Math.sign(v - d * d) * (d * d), s[1], g));
    return corrected(p, s, t, h);
  }

  function corrected(p, s, t, h) {
    const rate = h.lr / (1 - h.beta1 ** t);
    const c2 = Math.sqrt(1 - h.beta2 ** t);
    return map((x, m, v) => x - (rate * m) / (Math.sqrt(v) / c2 + h.eps), p, s[0], s[1]);
  }

  function adan(p, g, s, t, h) {
    const [m, v, n, previous] = s;
    const d = t === 1 ? g.map(() => 0) : map((a, b) => a - b, g, previous);
    average(m, h.beta1, g);
    average(v, h.beta2, d);
    average(n, h.beta3, squares(map((a, b) => a + h.beta2 * b, g, d)));
    set(previous, g);
    const ofMoment = h.lr / (1 - h.beta1 ** t);
    const ofDifference = (h.lr * h.beta2) / (1 - h.beta2 ** t);
    const c3 = 1 - h.beta3 ** t;
    return map(
      (x, a, b, c) => x - (ofMoment * a + ofDifference * b) / (Math.sqrt(c / c3 + h.eps_root) + h.eps), p, m, v, n);
  }

  const rules = {
    sgd: (p, g, s, t, h) => map((x, d) => x - h.lr * d, p, g),
    momentum,
    nesterov,
    asgd,
    delta_bar_delta: deltaBarDelta,
    rprop,
    adagrad,
    rmsprop: rmspropForm(false, false),
    rmsprop_centered: rmspropForm(true, false),
    rmsprop_momentum: rmspropForm(false, true),
    rmsprop_centered_momentum: rmspropForm(true, true),
    rmsprop_nesterov: rmspropNesterov,
    adadelta,
    adam,
    amsgrad,
    adamw: adam,
    adamax,
    nadam,
    radam,
    lion,
    adabelief,
    yogi,
    adan,
  };

  // Each surface: f, its gradient, what part of the plane is drawn, where paths start, the lowest value there.
  const surfaces = {
    ravine: {
      label: "Ravine: an ill-conditioned quadratic",
      formula: "f(x, y) = (x² + 50 y²) / 2",
      f: ([x, y]) => (x * x + 50 * y * y) / 2,
      gradient: ([x, y]) => [x, 50 * y],
      x: [-4.5, 1.5],
      y: [-2, 2],
      start: [-4, 1.2],
      minima: [[0, 0]],
    },
    rosenbrock: {
      label: "Rosenbrock: a curved valley",
      formula: "f(x, y) = (1 − x)² + 100 (y − x²)²",
      f: ([x, y]) => (1 - x) ** 2 + 100 * (y - x * x) ** 2,
      gradient: ([x, y]) => [-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)],
      x: [-2, 2],
      y: [-0.8, 2.6],
      start: [-1.2, 1],
      minima: [[1, 1]],
    },
    beale: {
      label: "Beale: flat plateaus and steep walls",
      formula: "f(x, y) = (1.5 − x + xy)² + (2.25 − x + xy²)² + (2.625 − x + xy³)²",
      f: ([x, y]) => (1.5 - x + x * y) ** 2 + (2.25 - x + x * y * y) ** 2 + (2.625 - x + x * y ** 3) ** 2,
      gradient: ([x, y]) => {
        const a = 1.5 - x + x * y;
        const b = 2.25 - x + x * y * y;
        const c = 2.625 - x + x * y ** 3;
        return [
          2 * a * (y - 1) + 2 * b * (y * y - 1) + 2 * c * (y ** 3 - 1),
          2 * a * x + 4 * b * x * y + 6 * c * x * y * y,
        ];
      },
      x: [-1, 4.5],
      y: [-2, 2],
      start: [1, 1.4],
      minima: [[3, 0.5]],
    },
    saddle: {
      label: "Saddle: a plateau between two minima",
      formula: "f(x, y) = x² / 2 + y⁴ / 4 − y² / 2",
      f: ([x, y]) => (x * x) / 2 + y ** 4 / 4 - (y * y) / 2,
      gradient: ([x, y]) => [x, y ** 3 - y],
      x: [-2, 2],
      y: [-1.6, 1.6],
      start: [1.8, 0.001],
      minima: [[0, 1], [0, -1]],
    },
    himmelblau: {
      label: "Himmelblau: four minima",
      formula: "f(x, y) = (x² + y − 11)² + (x + y² − 7)²",
      f: ([x, y]) => (x * x + y - 11) ** 2 + (x + y * y - 7) ** 2,
      gradient: ([x, y]) => [
        4 * x * (x * x + y - 11) + 2 * (x + y * y - 7),
        2 * (x * x + y - 11) + 4 * y * (x + y * y - 7),
      ],
      x: [-5.5, 5.5],
      y: [-5.5, 5.5],
      start: [-0.5, -0.8],
      minima: [[3, 2], [-2.805118086952745, 3.131312518250573], [-3.779310253377747, -3.283185991286170],
        [3.584428340330492, -1.848126526964404]],
    },
  };

  // The points that `rule` visits, the start among them; shorter than `steps` + 1 if it leaves all bounds.
  // `facts` has the defaults and the initial states, by the registry.
  function path(rule, facts, surface, start, steps, lr) {
    const h = { ...facts.hyperparameters, lr };
    const states = facts.states.map((initial) => start.map(() => (initial === "lr" ? lr : initial)));
    const points = [[...start]];
    let p = [...start];
    for (let t = 1; t <= steps; t++) {
      const at = facts.lookahead ? map((x, v) => x + h.momentum * v, p, states[1]) : p;
      let g = surface.gradient(at);
      if (h.weight_decay && h.decoupled) p = p.map((x) => x * (1 - lr * h.weight_decay));
      else if (h.weight_decay) g = map((d, x) => d + h.weight_decay * x, g, p);
      p = rules[rule](p, g, states, t, h);
      if (!p.every((x) => Math.abs(x) < 1e6)) break;
      points.push([...p]);
    }
    return points;
  }

  // The rate of `rates` whose path ends lowest, among those that do not run away.
  function bestRate(rule, facts, surface, start, steps, rates) {
    let best = rates[0];
    let lowest = Infinity;
    for (const lr of rates) {
      const points = path(rule, facts, surface, start, steps, lr);
      const value = points.length === steps + 1 ? surface.f(points[steps]) : Infinity;
      if (value < lowest) [best, lowest] = [lr, value];
    }
    return best;
  }

  root.adaptkPaths = { rules, surfaces, path, bestRate };
  if (typeof module !== "undefined") module.exports = root.adaptkPaths;
})(typeof window === "undefined" ? globalThis : window);
