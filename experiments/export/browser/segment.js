// Segment a picture in the browser with network.onnx and export.json, which `segnet export --format onnx` writes.
"use strict";

const element = (id) => document.getElementById(id);
const state = { session: null, about: null, picture: null, classIds: null, size: null };

async function load() {
  ort.env.wasm.wasmPaths = new URL("node_modules/onnxruntime-web/dist/", location.href).href;
  ort.env.wasm.numThreads = 1; // more need a page that is isolated from other origins
  const answer = await fetch("export.json");
  if (!answer.ok) throw new Error("there is no export.json beside this page; see README.md");
  state.about = (await answer.json()).onnx;
  state.session = await ort.InferenceSession.create("network.onnx", { executionProviders: ["wasm"] });
  say(`Ready: ${state.about.classes.length} classes, pictures are resized to ${inputSize().join("x")}.`);
}

// Height and width of the network's input: fixed by the file (--size), else as in training.
function inputSize() {
  const [, height, width] = state.session.inputMetadata?.[0]?.shape ?? [];
  return typeof height === "number" ? [height, width] : state.about.network.image_size;
}

async function segment(file) {
  if (!state.session) return;
  try {
    say("Segmenting…");
    state.picture = await createImageBitmap(file);
    const [height, width] = inputSize();
    const started = performance.now();
    const images = new ort.Tensor("uint8", pixels(state.picture, height, width), [1, height, width, 3]);
    const { prediction } = await state.session.run({ images }, ["prediction"]);
    state.classIds = prediction.data;
    state.size = [height, width];
    say(`Done in ${((performance.now() - started) / 1000).toFixed(2)} s.`);
    draw();
    list();
  } catch (error) {
    say(`This picture cannot be segmented: ${error.message}`);
  }
}

// Return a picture as RGB, uint8 [height, width, 3].
function pixels(picture, height, width) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillRect(0, 0, width, height); // what is transparent becomes black
  context.drawImage(picture, 0, 0, width, height);
  const rgba = context.getImageData(0, 0, width, height).data;
  const rgb = new Uint8Array(height * width * 3);
  for (let i = 0, j = 0; i < rgba.length; i += 4) {
    rgb[j++] = rgba[i];
    rgb[j++] = rgba[i + 1];
    rgb[j++] = rgba[i + 2];
  }
  return rgb;
}

// Draw the picture at its own size, overlaid with the classes.
function draw() {
  const { picture, classIds, about, size: [height, width] } = state;
  const painted = new ImageData(width, height);
  const rgba = about.colors.map(([red, green, blue]) => red | (green << 8) | (blue << 16) | (255 << 24));
  new Uint32Array(painted.data.buffer).set(Array.from(classIds, (id) => rgba[id])); // little-endian, as all browsers'
  const overlay = new OffscreenCanvas(width, height);
  overlay.getContext("2d").putImageData(painted, 0, 0);
  const canvas = element("canvas");
  canvas.width = picture.width;
  canvas.height = picture.height;
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  context.globalAlpha = element("opacity").value / 100;
  context.imageSmoothingEnabled = false;
  context.drawImage(overlay, 0, 0, picture.width, picture.height);
  element("result").hidden = false;
}

// List the classes in the picture, the largest first.
function list() {
  const { classIds, about } = state;
  const counts = new Array(about.classes.length).fill(0);
  classIds.forEach((id) => counts[id]++);
  const order = counts.map((_, id) => id).filter((id) => counts[id]).sort((a, b) => counts[b] - counts[a]);
  element("classes").replaceChildren(...order.map((id) => {
    const item = document.createElement("li"), color = document.createElement("i");
    color.style.background = `rgb(${about.colors[id].join(" ")})`;
    item.append(color, `${about.classes[id]} ${(100 * counts[id] / classIds.length).toFixed(1)} %`);
    return item;
  }));
}

function say(text) {
  element("status").textContent = text;
}

const drop = element("drop");
for (const name of ["dragenter", "dragover"]) {
  drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (event.dataTransfer.files.length) segment(event.dataTransfer.files[0]);
});
element("file").addEventListener("change", (event) => event.target.files.length && segment(event.target.files[0]));
element("opacity").addEventListener("input", () => state.classIds && draw());
load().catch((error) => say(`The network cannot be loaded: ${error.message}`));
