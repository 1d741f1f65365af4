"use strict";
(() => {
  const page = document.documentElement;
  const all = (selector) => Array.from(document.querySelectorAll(selector));
  const element = (id) => document.getElementById(id);
  page.classList.add("js");

  // One slider blends image, truth and prediction; the other selects the step of the prediction.
  const blend = element("blend");
  const step = element("step");
  const names = ["image", "truth", "prediction"];

  function showBlend() {
    const value = Number(blend.value);
    for (const img of all(".flip .truth")) img.style.opacity = Math.min(Math.max(value, 0), 1);
    for (const img of all(".flip .prediction")) img.style.opacity = Math.min(Math.max(value - 1, 0), 1);
    const layer = Math.floor(value);
    const weight = Math.round(100 * (value - layer));
    const label = weight === 0 ? names[layer] : `${names[layer]}, ${weight} percent towards ${names[layer + 1]}`;
    blend.setAttribute("aria-valuetext", label);
    for (const button of all("[data-blend]")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.blend) === value));
    }
  }

  function showStep() {
    for (const img of all(".flip .prediction")) {
      const shown = img.dataset.step === step.value;
      img.hidden = !shown;
      if (shown) element("step-label").textContent = img.dataset.label;
    }
    step.setAttribute("aria-valuetext", element("step-label").textContent);
  }

  if (blend) {
    blend.addEventListener("input", showBlend);
    for (const button of all("[data-blend]")) {
      button.addEventListener("click", () => {
        blend.value = button.dataset.blend;
        showBlend();
      });
    }
    showBlend();
  }
  if (step) {
    step.addEventListener("input", showStep);
    showStep();
  }

  // Copies a command, or selects it where a local file may not use the clipboard.
  async function copy(button) {
    const code = button.parentElement.querySelector("code");
    let result = "Copied";
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      result = document.execCommand("copy") ? "Copied" : "Selected";
    }
    button.textContent = result;
    element("announcement").textContent = `${result}: ${code.textContent}`;
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }
  for (const button of all("button.copy")) button.addEventListener("click", () => copy(button));
})();
