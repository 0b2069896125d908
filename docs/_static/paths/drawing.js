// What the pages of paths draw with: filled contours, minima and trails on a canvas, in the colours of the page's theme.
"use strict";

(function () {
  // Colours of the theme that the page has.
  function themeColours(app) {
    const style = getComputedStyle(app);
    return { text: style.getPropertyValue("--paths-text"), line: style.getPropertyValue("--paths-line"),
      low: style.getPropertyValue("--paths-low"), high: style.getPropertyValue("--paths-high") };
  }

  function prepared(canvas) {
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.clearRect(0, 0, width, height);
    return { context, width, height };
  }

  const level = (value, lowest) => Math.log10(value - lowest + 1e-3);

  function lowest(s) {
    return Math.min(...s.minima.map(s.f));
  }

  function mix(a, b, share) {
    const part = (text, i) => parseInt(text.trim().slice(1 + 2 * i, 3 + 2 * i), 16);
    return [0, 1, 2].map((i) => Math.round(part(a, i) + (part(b, i) - part(a, i)) * share));
  }

  function drawSurface(context, width, height, s, inks) {
    const cells = 180;
    const picture = document.createElement("canvas");
    picture.width = picture.height = cells;
    const inside = picture.getContext("2d");
    const image = inside.createImageData(cells, cells);
    const values = [];
    for (let j = 0; j < cells; j++) {
      for (let i = 0; i < cells; i++) {
        const x = s.x[0] + ((s.x[1] - s.x[0]) * (i + 0.5)) / cells;
        const y = s.y[1] - ((s.y[1] - s.y[0]) * (j + 0.5)) / cells;
        values.push(level(s.f([x, y]), lowest(s)));
      }
    }
    const [least, most] = [values, values].map((v, i) => v.reduce((a, b) => (i ? Math.max(a, b) : Math.min(a, b))));
    const bands = 14; // filled contours, at even distances of the logarithm
    values.forEach((value, k) => {
      const share = Math.floor((bands * (value - least)) / (most - least + 1e-12)) / bands;
      const [r, g, b] = mix(inks.low, inks.high, share);
      image.data.set([r, g, b, 255], 4 * k);
    });
    inside.putImageData(image, 0, 0);
    context.imageSmoothingEnabled = true;
    context.drawImage(picture, 0, 0, width, height);
    context.strokeStyle = inks.text;
    context.lineWidth = 2;
    for (const point of s.minima) {
      const [x, y] = placed(s, point, width, height);
      context.beginPath();
      context.moveTo(x - 6, y);
      context.lineTo(x + 6, y);
      context.moveTo(x, y - 6);
      context.lineTo(x, y + 6);
      context.stroke();
    }
  }

  // A path so far, with a dot where it is.
  function drawTrail(context, points, colour) {
    context.strokeStyle = context.fillStyle = colour;
    context.lineWidth = 2.2;
    context.lineJoin = "round";
    context.beginPath();
    points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.stroke();
    const [x, y] = points[points.length - 1];
    context.beginPath();
    context.arc(x, y, 5, 0, 2 * Math.PI);
    context.fill();
    context.strokeStyle = "#ffffff";
    context.lineWidth = 1.5;
    context.stroke();
  }

  // A point of the surface on the canvas.
  function placed(s, [x, y], width, height) {
    return [((x - s.x[0]) / (s.x[1] - s.x[0])) * width, ((s.y[1] - y) / (s.y[1] - s.y[0])) * height];
  }

  window.adaptkDrawing = { themeColours, prepared, lowest, drawSurface, drawTrail, placed };
})();
