// The explorer's pictures: an image under its anomaly maps, one a panel. What a threshold outlines is found here, so
// that it moves without the kernel. Points are given in a map's columns and rows, which the image fills.

/** A trait of bytes, which arrives as a DataView or not at all. */
export function bytes(view) {
  return view?.byteLength ? new Uint8Array(view.buffer, view.byteOffset, view.byteLength) : new Uint8Array();
}

/** uint16, little endian, at any offset of its buffer. */
export function decode(view) {
  const raw = bytes(view), values = new Uint16Array(raw.length >> 1);
  for (let i = 0; i < values.length; i++) values[i] = raw[2 * i] | (raw[2 * i + 1] << 8);
  return values;
}

// Which sides of four neighbouring samples a line joins: 0 above, 1 right, 2 below, 3 left; by which of them
// (clockwise from the upper left: 1, 2, 4, 8) lie above the level. Regions join at corners.
const LINES = [[], [3, 0], [0, 1], [3, 1], [1, 2], [0, 1, 3, 2], [0, 2], [3, 2],
  [2, 3], [0, 2], [3, 0, 1, 2], [1, 2], [1, 3], [0, 1], [3, 0], []];

/** The border of values > level: its pieces x0, y0, x1, y1, ..., each sample in the middle of its pixel. */
export function contour(values, [height, width], level) {
  const found = [];
  for (let y = 0; y + 1 < height; y++) {
    for (let x = 0, i = y * width; x + 1 < width; x++, i++) {
      const a = values[i], b = values[i + 1], c = values[i + width + 1], d = values[i + width];
      const lines = LINES[(a > level) | (b > level) << 1 | (c > level) << 2 | (d > level) << 3];
      for (const side of lines) {
        if (!side) found.push(x + 0.5 + (level - a) / (b - a), y + 0.5);
        else if (side === 1) found.push(x + 1.5, y + 0.5 + (level - b) / (c - b));
        else if (side === 2) found.push(x + 0.5 + (level - d) / (c - d), y + 1.5);
        else found.push(x + 0.5, y + 0.5 + (level - a) / (d - a));
      }
    }
  }
  return found;
}

/** RGBA of a map: more opaque where it is higher, so that sound parts of the image stay visible. */
export function heat(values, palette, opacity) {
  const colours = new Uint32Array(256), drawn = new Uint8ClampedArray(4 * values.length);
  const parts = new Uint8ClampedArray(colours.buffer), pixels = new Uint32Array(drawn.buffer);
  for (let i = 0; i < 256; i++) {
    parts.set([...palette.subarray(3 * i, 3 * i + 3), 255 * opacity ** (2 - 1.5 * i / 255)], 4 * i);
  }
  for (let i = 0; i < values.length; i++) pixels[i] = colours[values[i] >> 8];
  return drawn;
}

const TRAITS = "image size shape truth maps names chosen threshold pixel opacity show_truth".split(" ");
const CLOSEST = 16, STILL = 4; // largest zoom; pixels that a click may move
const WHOLE = { x: 0.5, y: 0.5, zoom: 1 };
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const clip = (value, low, high) => Math.min(Math.max(value, low), high);

function add(parent, tag, properties = {}) {
  return parent.appendChild(Object.assign(document.createElement(tag), properties));
}

function render({ model, el }) {
  const get = (name) => model.get(name);
  const save = (name, value) => { model.set(name, value); model.save_changes(); };
  const centre = { ...WHOLE }; // of what is seen, as shares of the image
  let panels = [], picture = null, decoded = null, truth = [], hover = null, held = null, sliding = false;

  el.classList.add("dmdd-canvas");
  el.dataset.lmSuppressShortcuts = "true"; // else JupyterLab takes the arrow keys
  const bar = add(el, "label", { className: "dmdd-bar", textContent: "Threshold" });
  const slider = add(bar, "input", { type: "range", step: "any" });
  const level = add(bar, "output");
  const reset = add(bar, "button", { textContent: "Reset", title: "Put the threshold back to where it started" });
  const grid = add(el, "div", { className: "dmdd-panels", tabIndex: 0, role: "group",
    ariaLabel: "The image and its anomaly maps; arrow keys move the chosen pixel" });
  const told = add(el, "div", { className: "dmdd-values" });

  // once a frame, however often it is asked for
  const once = (call, queued = 0) => () => { queued ||= requestAnimationFrame(() => { queued = 0; call(); }); };

  function outline(panel) {
    const { low, high, start } = panel.map, chosen = panel.name === get("chosen");
    const threshold = !chosen ? start : sliding ? +slider.value : get("threshold");
    const at = clip(65535 * (threshold - low) / (high - low), -1, 65536);
    panel.lines = contour(panel.values, get("shape"), at);
    if (!chosen) return;
    const above = panel.values.reduce((count, value) => count + (value > at), 0) / panel.values.length;
    level.textContent = `${threshold.toFixed(3)} · ${(100 * above).toFixed(2)} % of the image above`;
  }

  /** Take over what the kernel has sent, in whatever order it comes: what does not fit yet is left out. */
  function update() {
    const [height, width] = get("shape"), image = get("image"), mask = bytes(get("truth"));
    if (image !== decoded) {
      decoded = image;
      createImageBitmap(new Blob([bytes(image)])).then((bitmap) => {
        if (image === decoded) { picture = bitmap; draw(); } // else a later one was faster
      }, () => {}); // nothing has come yet
    }
    truth = get("show_truth") && mask.length === width * height ? contour(mask, [height, width], 0.5) : [];
    const maps = get("maps"), fits = (name) => maps[name]?.values.byteLength === 2 * width * height;
    const names = ["image", ...get("names").filter(fits)]; // the image alone comes first
    if (names.join() !== panels.map(({ name }) => name).join()) {
      grid.replaceChildren();
      panels = names.map(newPanel);
      grid.style.setProperty("--columns", names.length === 4 || names.length > 6 ? 4 : 3);
    }
    const palette = bytes(get("palette"));
    for (const panel of panels) {
      panel.canvas.style.aspectRatio = get("size").join(" / ");
      panel.figure.classList.toggle("dmdd-chosen", panel.name === get("chosen"));
      if (!(panel.map = maps[panel.name])) continue;
      panel.title.textContent = panel.map.title;
      panel.values = decode(panel.map.values);
      Object.assign(panel.heat, { width, height }).getContext("2d")
        .putImageData(new ImageData(heat(panel.values, palette, get("opacity")), width, height), 0, 0);
    }
    const range = maps[get("chosen")];
    if (range && !sliding) { // the ends first: they would bend the value
      Object.assign(slider, { min: range.low, max: range.high, value: get("threshold") });
      const stops = [0, 51, 102, 153, 204, 255].map((i) => `rgb(${palette.subarray(3 * i, 3 * i + 3)})`);
      slider.style.background = `linear-gradient(to right, ${stops})`;
    }
    panels.slice(1).forEach(outline);
    draw();
  }

  function newPanel(name) {
    const figure = add(grid, "figure"), heat = document.createElement("canvas");
    const title = add(figure, "button", { textContent: "Image", disabled: name === "image",
      onclick: () => save("chosen", name) });
    const canvas = add(figure, "canvas", { onpointerdown: press, onpointermove: move, onpointerup: release,
      onpointerleave: () => { hover = held = null; later(); },
      ondblclick: () => { Object.assign(centre, WHOLE); later(); } });
    canvas.addEventListener("wheel", turn, { passive: false });
    figure.dataset.map = name;
    return { name, figure, title, canvas, heat, lines: [] };
  }

  function draw() {
    panels.forEach(drawPanel);
    const [x, y] = hover ?? get("pixel"), [width, height] = get("size"), [rows, columns] = get("shape");
    const at = Math.floor((y + 0.5) * rows / height) * columns + Math.floor((x + 0.5) * columns / width);
    const found = panels.slice(1).map(({ map: { low, high, title }, values }) =>
      `${title} ${(low + values[at] * (high - low) / 65535).toFixed(3)}`);
    told.textContent = [`Pixel (${x}, ${y})`, ...found].join(" · ");
  }

  function drawPanel({ map, canvas, heat, lines }) {
    const sharp = globalThis.devicePixelRatio || 1, [rows, columns] = get("shape"), [w, h] = get("size");
    if (!canvas.clientWidth) return; // hidden for a moment
    const [across, down] = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.round(side * sharp));
    const context = Object.assign(canvas, { width: across, height: down }).getContext("2d"); // which clears it
    const width = across * centre.zoom, height = down * centre.zoom;
    const left = across / 2 - centre.x * width, top = down / 2 - centre.y * height;
    if (picture) context.drawImage(picture, left, top, width, height);
    if (map) context.drawImage(heat, left, top, width, height);

    function stroke(pieces, colour) {
      const kx = width / columns, ky = height / rows;
      context.beginPath();
      for (let i = 0; i < pieces.length; i += 4) {
        context.moveTo(left + kx * pieces[i], top + ky * pieces[i + 1]);
        context.lineTo(left + kx * pieces[i + 2], top + ky * pieces[i + 3]);
      }
      for (const [line, ink] of [[3.6, "rgba(0, 0, 0, .7)"], [1.6, colour]]) { // a dark rim shows on any image
        Object.assign(context, { lineWidth: line * sharp, strokeStyle: ink, lineCap: "round" });
        context.stroke();
      }
    }
    const colours = get("colours");
    stroke(truth, colours.truth);
    stroke(lines, colours.decision);
    for (const [pixel, colour] of [[get("pixel"), colours.picked], [hover, "rgba(255, 255, 255, .7)"]]) {
      if (!pixel) continue;
      const x = (pixel[0] + 0.5) * columns / w, y = (pixel[1] + 0.5) * rows / h;
      const a = 7 * sharp * columns / width, b = 7 * sharp * rows / height; // free around the pixel
      stroke([0, y, x - a, y, x + a, y, columns, y, x, 0, x, y - b, x, y + b, x, rows], colour);
    }
  }
  const later = once(draw);

  /** The image's point below the pointer, in shares of it, and its pixel. */
  function below(event) {
    const { left, top, width, height } = event.currentTarget.getBoundingClientRect();
    const x = centre.x + ((event.clientX - left) / width - 0.5) / centre.zoom;
    const y = centre.y + ((event.clientY - top) / height - 0.5) / centre.zoom;
    return { x, y, pixel: get("size").map((side, i) => clip(Math.floor((i ? y : x) * side), 0, side - 1)) };
  }

  function look(from, to) { // the point `from` comes to where `to` is, but nothing beyond the image's border
    const half = 0.5 / centre.zoom;
    for (const i of ["x", "y"]) centre[i] = clip(centre[i] + from[i] - to[i], half, 1 - half);
    later();
  }

  function press(event) {
    if (event.button) return;
    event.currentTarget.setPointerCapture(event.pointerId);
    held = { ...below(event), at: [event.clientX, event.clientY], moved: false };
  }

  function move(event) {
    const here = below(event);
    hover = here.pixel;
    later();
    if (!held) return;
    held.moved ||= Math.hypot(event.clientX - held.at[0], event.clientY - held.at[1]) > STILL;
    if (held.moved) look(held, here);
  }

  function release() {
    if (held && !held.moved) save("pixel", held.pixel);
    held = null;
  }

  function turn(event) {
    const before = below(event), zoom = clip(centre.zoom * 1.002 ** -event.deltaY, 1, CLOSEST);
    if (zoom === centre.zoom) return; // the page scrolls on
    event.preventDefault();
    centre.zoom = zoom;
    look(before, below(event));
  }

  grid.onkeydown = (event) => {
    const by = ARROWS[event.key], far = event.shiftKey ? 10 : 1;
    if (!by) return;
    event.preventDefault();
    save("pixel", get("pixel").map((at, i) => clip(at + far * by[i], 0, get("size")[i] - 1)));
  };
  slider.oninput = () => { // drawn at once, sent when it is let go
    sliding = true;
    const panel = panels.find(({ name }) => name === get("chosen"));
    if (panel) { outline(panel); drawPanel(panel); }
  };
  slider.onchange = slider.onpointerup = () => {
    sliding = false;
    if (+slider.value !== get("threshold")) save("threshold", +slider.value);
  };
  reset.onclick = () => save("threshold", get("maps")[get("chosen")]?.start ?? get("threshold"));

  const anew = once(update), observer = new ResizeObserver(later);
  for (const name of TRAITS) model.on(`change:${name}`, anew);
  observer.observe(grid);
  update();
  return () => {
    observer.disconnect();
    for (const name of TRAITS) model.off(`change:${name}`, anew);
  };
}

export default { render };
