// Runs network.onnx on the images of page.json, compares its outputs with those of PyTorch in answers.bin, and shows both.
import * as ort from "./ort.wasm.bundle.min.mjs";

const WARM_UP = 3, BLOCKS = 21, BLOCK_MS = 5, MOST_BOXES = 12, LEAST_SCORE = 0.3;
const part = id => document.getElementById(id);
const json = async file => (await fetch(file)).json();
const results = { done: false, errors: [], answers: [], ms: null };
globalThis.results = results;  // for the console, and for tests

function element(name, parent, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  parent.append(made);
  return made;
}

async function decoded(source) {
  const image = new Image();
  image.src = source;
  await image.decode();
  return image;
}

// The middle of an image, cut to the network's shape and resized, as RGBA.
function pixels(image, [, height, width]) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const scale = Math.max(width / image.naturalWidth, height / image.naturalHeight);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const [w, h] = [image.naturalWidth * scale, image.naturalHeight * scale];
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(image, (width - w) / 2, (height - h) / 2, w, h);
  return context.getImageData(0, 0, width, height);
}

function tensor(rgba, page) {
  const [channels, height, width] = page.shape, size = height * width, values = new Float32Array(channels * size), { data } = rgba;
  for (let c = 0; c < channels; c++) {
    for (let i = 0; i < size; i++) {
      const at = 4 * i, value = channels === 3 ? data[at + c] : Math.round(0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2]);
      values[c * size + i] = (value / 255 - page.mean[c]) / page.std[c];
    }
  }
  return new ort.Tensor("float32", values, [1, ...page.shape]);
}

// Of all outputs, the largest difference relative to the largest value.
function largestError(found, expected) {
  return Math.max(...expected.map((wanted, i) => {
    let off = 0, size = 1e-30;
    const values = found[i].data;
    if (values.length !== wanted.length) return Infinity;
    for (let k = 0; k < wanted.length; k++) {
      const error = Math.abs(Number(values[k]) - wanted[k]);
      if (!(error <= off)) off = Number.isNaN(error) ? Infinity : error;
      size = Math.max(size, Math.abs(wanted[k]));
    }
    return off / size;
  }));
}

const output = (found, page, name) => found[Math.max(0, page.outputs.findIndex(one => one.name === name))];
const mark = (page, number, score = null) => ({ name: page.class_names[number] ?? `class ${number}`, number, score });

function classes(found, page) {
  const scores = Array.from(found[0].data, Number), top = Math.max(...scores), shares = scores.map(value => Math.exp(value - top));
  const sum = shares.reduce((a, b) => a + b, 0);
  const order = scores.map((_, k) => k).sort((a, b) => scores[b] - scores[a]).slice(0, 3);
  return { marks: order.map(k => mark(page, k, shares[k] / sum)) };
}

// The class of each pixel; smaller maps are enlarged, bilinearly.
function segments(found, page) {
  const { data, dims: [, kinds, h, w] } = output(found, page, "out"), [, height, width] = page.shape, map = new Uint8Array(height * width);
  const place = (i, from, to) => {
    const at = Math.max(0, (i + 0.5) * from / to - 0.5), low = Math.floor(at), high = Math.min(low + 1, from - 1);
    return [low, high, at - low];
  };
  for (let y = 0; y < height; y++) {
    const [top, bottom, down] = place(y, h, height);
    for (let x = 0; x < width; x++) {
      const [left, right, across] = place(x, w, width);
      let best = -Infinity;
      for (let k = 0; k < kinds; k++) {
        const row = at => data[k * h * w + at * w + left] * (1 - across) + data[k * h * w + at * w + right] * across;
        const score = row(top) * (1 - down) + row(bottom) * down;
        if (score > best) [best, map[y * width + x]] = [score, k];
      }
    }
  }
  const seen = [...new Set(map)].sort((a, b) => a - b).filter(k => page.class_names[k] !== "background");
  const canvas = painted(page, i => {
    const colour = page.colours[map[i] % page.colours.length];
    return seen.includes(map[i]) ? [1, 3, 5].map(at => parseInt(colour.slice(at, at + 2), 16)).concat(150) : [0, 0, 0, 0];
  });
  return { over: canvas, marks: seen.slice(0, MOST_BOXES).map(k => mark(page, k)), map: Array.from(map) };
}

function painted(page, colour) {
  const canvas = document.createElement("canvas"), [, height, width] = page.shape;
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"), made = context.createImageData(width, height);
  for (let i = 0; i < height * width; i++) made.data.set(colour(i), 4 * i);
  context.putImageData(made, 0, 0);
  return canvas;
}

function made(found, page) {
  const { data, dims: [, channels, height, width] } = found[0], size = height * width;
  const level = (c, i) => 255 * data[Math.min(c, channels - 1) * size + i];  // clamped and rounded by the canvas
  return { over: painted({ shape: [channels, height, width] }, i => [level(0, i), level(1, i), level(2, i), 255]), marks: [] };
}

// Boxes at the peaks of the heat.
function peaks(found, page) {
  const [heat, size, offset] = ["heat", "size", "offset"].map(name => output(found, page, name)), [, kinds, rows, columns] = heat.dims;
  const at = (k, y, x) => heat.data[(k * rows + y) * columns + x], boxes = [];
  for (let k = 0; k < kinds; k++) for (let y = 0; y < rows; y++) for (let x = 0; x < columns; x++) {
    const score = 1 / (1 + Math.exp(-at(k, y, x)));
    if (score < LEAST_SCORE) continue;
    let peak = true;
    for (let i = Math.max(0, y - 1); i <= Math.min(rows - 1, y + 1); i++)
      for (let j = Math.max(0, x - 1); j <= Math.min(columns - 1, x + 1); j++) peak &&= at(k, i, j) <= at(k, y, x);
    if (!peak) continue;
    const [[w, h], [dx, dy]] = [size, offset].map(one => [0, 1].map(c => one.data[(c * rows + y) * columns + x]));
    const edge = (value, most) => Math.min(Math.max(value / most, 0), 1);
    const edges = [edge(x + dx - w / 2, columns), edge(y + dy - h / 2, rows), edge(x + dx + w / 2, columns), edge(y + dy + h / 2, rows)];
    boxes.push({ mark: mark(page, k, score), edges });
  }
  return { boxes: boxes.sort((a, b) => b.mark.score - a.mark.score).slice(0, MOST_BOXES), marks: [] };
}

function answer(found, page) {
  if (page.task === "classification") return classes(found, page);
  if (page.task === "segmentation") return segments(found, page);
  if (page.task === "image-to-image") return made(found, page);
  return page.task === "detection" && page.decodes ? peaks(found, page) : null;
}

const labelled = ({ name, score }) => score === null || score === undefined ? name : `${name} ${(100 * score).toFixed(0)} %`;

function addMark(one, parent, page) {
  element("span", parent, labelled(one), "mark").style.setProperty("--hue", page.colours[one.number % page.colours.length]);
}

// One figure: the image, an answer's picture or boxes over it, and its classes below.
function show(parent, source, title, page, shown) {
  const figure = element("figure", parent), frame = element("div", figure, "", "frame"), image = element("img", frame);
  Object.assign(image, { src: source, alt: title, width: page.shape[2], height: page.shape[1] });
  const over = shown?.over;
  if (over) {
    const layer = typeof over === "string" ? Object.assign(document.createElement("img"), { src: `data:image/png;base64,${over}`, alt: "" }) : over;
    layer.classList.add("over");
    frame.append(layer);
  }
  for (const { mark: one, edges: [left, top, right, bottom] } of shown?.boxes ?? []) {
    const box = element("span", frame, "", "box"), sides = { left, top, width: right - left, height: bottom - top };
    for (const [side, share] of Object.entries(sides)) box.style[side] = `${100 * share}%`;
    box.style.setProperty("--hue", page.colours[one.number % page.colours.length]);
    addMark(one, box, page);
  }
  const caption = element("figcaption", figure, `${title} `);
  for (const one of shown?.marks ?? []) addMark(one, caption, page);
}

// Milliseconds of a call: clocks of browsers are coarse, so each measurement is of so many calls that take some milliseconds.
async function medianTime(call) {
  const timed = async count => {
    const began = performance.now();
    for (let i = 0; i < count; i++) await call();
    return (performance.now() - began) / count;
  };
  const count = Math.ceil(BLOCK_MS / Math.max(await timed(WARM_UP), 0.01)), times = [];
  for (let i = 0; i < BLOCKS; i++) times.push(await timed(count));
  return times.sort((a, b) => a - b)[BLOCKS >> 1];
}

async function main() {
  ort.env.wasm.numThreads = 1;
  const page = await json("page.json");
  const recorded = new Float32Array(await (await fetch("answers.bin")).arrayBuffer());
  part("title").textContent = document.title = page.title;
  const session = await ort.InferenceSession.create("network.onnx", { executionProviders: ["wasm"] });
  const run = async input => {
    const found = await session.run({ [page.input]: input });
    return page.outputs.map(({ name }) => found[name]);
  };
  let start = 0, first = null;
  for (const sample of page.samples) {
    const source = `data:image/png;base64,${sample.image}`, input = tensor(pixels(await decoded(source), page.shape), page);
    const found = await run(input), row = element("div", part("samples"), "", "row"), shown = answer(found, page);
    const expected = page.outputs.map(({ shape }) => recorded.subarray(start, start += shape.reduce((a, b) => a * b, 1)));
    first ??= input;
    results.errors.push(largestError(found, expected));
    results.answers.push({ marks: shown?.marks, boxes: shown?.boxes, map: shown?.map });
    if (sample.truth?.over || shown?.over) show(row, source, "image", page, null);
    if (sample.truth) show(row, source, "correct", page, sample.truth);
    if (sample.torch) show(row, source, "PyTorch", page, sample.torch);
    if (shown) show(row, source, "this browser", page, shown);
    else if (!sample.truth) show(row, source, "image", page, null);
  }
  results.ms = await medianTime(() => run(first));
  const worst = Math.max(...results.errors), equal = worst <= page.tolerance;
  part("status").textContent = `${equal ? "The outputs are PyTorch's" : "The outputs are not PyTorch's"}: over ${page.samples.length} images they are off by ` +
    `${worst.toExponential(1)} of the largest (${page.tolerance.toExponential(0)} is allowed in ${page.precision}). One image takes ${results.ms.toFixed(2)} ms, ` +
    `the median of ${BLOCKS} measurements.` + (page.task === "detection" && !page.decodes ? " This page does not turn outputs into boxes; those shown are PyTorch's." : "");
  part("status").className = equal ? "good" : "";
  results.own = async file => {
    const source = URL.createObjectURL(file), place = part("own");
    place.replaceChildren();
    try {
      const image = await decoded(source).catch(() => { throw new Error(`${file.name} is not an image that this browser reads`); });
      const rgba = pixels(image, page.shape), canvas = painted(page, i => rgba.data.subarray(4 * i, 4 * i + 4)), shown = answer(await run(tensor(rgba, page)), page);
      const row = element("div", place, "", "row"), cut = canvas.toDataURL();
      if (!shown || shown.over) show(row, cut, "image", page, null);
      if (shown) show(row, cut, "this browser", page, shown);
      return shown;
    } catch (error) {
      element("p", place, error.message);
      return null;
    } finally {
      URL.revokeObjectURL(source);
    }
  };
  part("file").onchange = event => event.target.files[0] && results.own(event.target.files[0]);
  const drop = part("drop");
  drop.ondragover = event => { event.preventDefault(); drop.className = "over"; };
  drop.ondragleave = () => { drop.className = ""; };
  drop.ondrop = event => { event.preventDefault(); drop.className = ""; if (event.dataTransfer.files[0]) results.own(event.dataTransfer.files[0]); };
}

main().catch(error => {
  part("status").textContent = `The network does not run in this browser: ${error.message}`;
  results.failed = error.message;
}).finally(() => { results.done = true; });
